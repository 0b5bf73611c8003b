//! A naive store that a [`ServerStore`] must agree with after every call: in what it holds, in what goes
//! when something has to, and in every byte it counts.

use super::*;
use crate::counters::Counts;
use std::collections::HashSet;

/// A call, or time that passes. Numbers become keys, lengths and bounds by the functions below.
#[derive(Debug, Clone)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
#[allow(missing_docs)]
pub enum Call {
    Insert {
        key: u8,
        template: u8,
        tail: u16,
        verified: bool,
    },
    /// Of a session that was made so many times 50 ms ago.
    Restore {
        key: u8,
        template: u8,
        tail: u16,
        verified: bool,
        age: u8,
        replayed: bool,
    },
    Lookup(u8),
    Peek(u8),
    Delete(u8),
    Expire(u8),
    Shrink(u8),
    Trim,
    Clear(u8),
    SetLimits(Bounds),
    Pass(u8),
}

/// Numbers for [`Limits`].
#[derive(Debug, Clone)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
#[allow(missing_docs)]
pub struct Bounds {
    pub bytes: u8,
    pub sessions: u8,
    pub lifetime: u8,
}

impl Bounds {
    fn limits(&self) -> Limits {
        Limits {
            max_bytes: match self.bytes {
                u8::MAX => 1 << 30,
                bytes => u64::from(bytes) * 512,
            },
            max_sessions: match self.sessions {
                128.. => u64::MAX,
                sessions => u64::from(sessions),
            },
            lifetime_ms: u64::from(self.lifetime) * 50,
        }
    }
}

const TEMPLATE_BYTES: u64 = 100;

struct Common(u8);

impl Pattern<u8> for Common {
    fn hash(&self) -> u64 {
        u64::from(self.0 % 2)
    }
    fn matches(&self, template: &u8) -> bool {
        *template == self.0
    }
    fn make(&self) -> Option<(u8, u64)> {
        Some((self.0, TEMPLATE_BYTES))
    }
}

/// Every third key is no id; of these one in four does not fit a slot.
fn with_key<R>(key: u8, with: impl FnOnce(SessionKey) -> R) -> R {
    match (key % 3, key % 4) {
        (0, 0) => with(SessionKey::Other(&vec![key; MAX_TAIL - 2])),
        (0, _) => with(SessionKey::Other(&vec![key; usize::from(key)])),
        _ => with(SessionKey::Id(&[key; 32])),
    }
}

/// Sessions that come from elsewhere have ids.
fn id_key(key: u8) -> u8 {
    match key % 3 {
        0 => key ^ 1,
        _ => key,
    }
}

/// Mostly short, some around the longest that a slot holds.
fn tail_of(number: u16) -> Vec<u8> {
    let len = match number % 16 {
        0..4 => 0,
        4..12 => number % 512,
        12..14 => number % MAX_TAIL as u16,
        _ => MAX_TAIL as u16 - 64 + number % 128,
    };
    (0..len).map(|n| (n ^ number) as u8).collect()
}

/// What there is no template for goes without one.
fn template_of(number: u8) -> Option<u8> {
    (!number.is_multiple_of(8)).then_some(number % 8)
}

/// A session as the caller knows it, and what it was stored as.
struct Entry {
    key: u8,
    template: Option<u8>,
    tail: Vec<u8>,
    born: u64,
    cost: u64,
    visited: bool,
}

/// Oldest first.
#[derive(Default)]
struct Queue {
    entries: Vec<Entry>,
    hand: Option<usize>,
}

impl Queue {
    fn remove(&mut self, place: usize) {
        self.entries.remove(place);
        self.hand = match self.hand {
            Some(hand) if hand > place => Some(hand - 1),
            Some(hand) if hand == self.entries.len() => None,
            hand => hand,
        };
    }

    /// As the newest; or as the oldest, if it was made before all others.
    fn restore(&mut self, entry: Entry) {
        match self.entries.first() {
            Some(oldest) if entry.born <= oldest.born => {
                self.entries.insert(0, entry);
                self.hand = self.hand.map(|hand| hand + 1);
            }
            _ => self.entries.push(entry),
        }
    }

    fn victim(&mut self, patience: &mut usize) -> Option<usize> {
        let number = self.entries.len();
        if number == 0 {
            return None;
        }
        let mut hand = self.hand.unwrap_or(0);
        while *patience > 0 && std::mem::take(&mut self.entries[hand].visited) {
            *patience -= 1;
            hand = (hand + 1) % number;
        }
        self.hand = Some(hand);
        Some(hand)
    }
}

struct Model {
    /// Those without a verified certificate, and those with one.
    queues: [Queue; 2],
    limits: Limits,
    counts: Counts,
    /// What the store found its index to take. That is the table's affair.
    index_bytes: u64,
}

impl Model {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.queues.iter().flat_map(|queue| &queue.entries)
    }

    fn sessions(&self) -> u64 {
        self.entries().count() as u64
    }

    fn templates(&self) -> HashSet<u8> {
        self.entries().filter_map(|entry| entry.template).collect()
    }

    fn bytes(&self) -> u64 {
        let slots: u64 = self.entries().map(|entry| entry.cost).sum();
        slots + self.templates().len() as u64 * TEMPLATE_BYTES + self.index_bytes
    }

    fn place(&self, key: u8) -> Option<(usize, usize)> {
        let place = |queue: &Queue| queue.entries.iter().position(|entry| entry.key == key);
        (0..2).find_map(|queue| Some((queue, place(&self.queues[queue])?)))
    }

    fn is_expired(&self, entry: &Entry, now_ms: u64) -> bool {
        (now_ms / TICK_MS - entry.born) * TICK_MS >= self.limits.lifetime_ms
    }

    fn fresh(&mut self, key: u8, now_ms: u64) -> Option<&mut Entry> {
        let (queue, place) = self.place(key)?;
        let is_expired = self.is_expired(&self.queues[queue].entries[place], now_ms);
        (!is_expired).then(|| &mut self.queues[queue].entries[place])
    }

    fn drop_expired(&mut self, now_ms: u64) -> bool {
        for queue in 0..2 {
            let oldest = self.queues[queue].entries.first();
            if oldest.is_some_and(|oldest| self.is_expired(oldest, now_ms)) {
                self.queues[queue].remove(0);
                self.counts.expired += 1;
                return true;
            }
        }
        false
    }

    fn evict(&mut self, patience: &mut usize) -> bool {
        for queue in &mut self.queues {
            if let Some(victim) = queue.victim(patience) {
                queue.remove(victim);
                self.counts.evicted += 1;
                return true;
            }
        }
        false
    }

    /// Whether there is no room for `entry` as so many more sessions.
    fn is_short_for(&self, entry: &Entry, sessions: u64) -> bool {
        // The template is held already.
        let is_new = |template: u8| !self.templates().contains(&template);
        let template = entry.template.is_some_and(is_new);
        let bytes = entry.cost + if template { TEMPLATE_BYTES } else { 0 };
        self.bytes() + bytes > self.limits.max_bytes
            || self.sessions() + sessions > self.limits.max_sessions
    }

    /// For an insertion, where `entry` is to come in the place of another or beside all others.
    fn make_room(&mut self, entry: &Entry, now_ms: u64) {
        let sessions = u64::from(self.place(entry.key).is_none());
        let mut patience = PATIENCE;
        for _ in 0..EVICTIONS_AN_INSERT {
            if !self.is_short_for(entry, sessions)
                || !(self.drop_expired(now_ms) || self.evict(&mut patience))
            {
                return;
            }
        }
    }

    fn insert(&mut self, entry: Entry, verified: bool, now_ms: u64) -> bool {
        let limits = self.limits;
        if entry.cost > limits.max_bytes || limits.max_sessions == 0 || limits.lifetime_ms == 0 {
            self.counts.refused += 1;
            return false;
        }
        self.make_room(&entry, now_ms);
        if let Some((queue, place)) = self.place(entry.key) {
            // The newest comes first and the old one goes then: a hand on the old one may be moved to it.
            let old = if queue == usize::from(verified) {
                self.queues[queue].entries.push(entry);
                self.queues[queue].remove(place);
                None
            } else {
                self.queues[queue].remove(place);
                Some(entry)
            };
            self.queues[usize::from(verified)].entries.extend(old);
        } else {
            self.queues[usize::from(verified)].entries.push(entry);
        }
        self.counts.inserts += 1;
        true
    }

    fn restore(
        &mut self,
        entry: Entry,
        verified: bool,
        age_ms: u64,
        arrival: Arrival,
        now_ms: u64,
    ) -> Restored {
        let limits = self.limits;
        if entry.cost > limits.max_bytes || limits.max_sessions == 0 || age_ms >= limits.lifetime_ms
        {
            return Restored::NoRoom;
        }
        if self.place(entry.key).is_some() {
            return Restored::Known;
        }
        match arrival {
            Arrival::Replayed if self.is_short_for(&entry, 1) => return Restored::NoRoom,
            Arrival::Replayed => {}
            Arrival::Live => self.make_room(&entry, now_ms),
        }
        self.queues[usize::from(verified)].restore(entry);
        Restored::Stored
    }

    fn shrink(&mut self, now_ms: u64, slice: usize) -> usize {
        let mut patience = PATIENCE;
        let mut dropped = 0;
        while dropped < slice
            && patience > 0
            && (self.bytes() > self.limits.max_bytes || self.sessions() > self.limits.max_sessions)
            && (self.drop_expired(now_ms) || self.evict(&mut patience))
        {
            dropped += 1;
        }
        dropped
    }

    fn clear(&mut self, slice: usize) -> usize {
        let drop_one = |_: &usize| {
            let queue = self.queues.iter_mut().find(|q| !q.entries.is_empty());
            queue.map(|queue| queue.remove(0)).is_some()
        };
        (0..slice).take_while(drop_one).count()
    }
}

/// Makes all `calls` on a store and on the naive one, and panics where they disagree.
pub fn check(bounds: &Bounds, calls: &[Call]) {
    let store = ServerStore::<u8>::new(bounds.limits());
    let mut model = Model {
        queues: Default::default(),
        limits: bounds.limits(),
        counts: Counters::default().read(),
        index_bytes: 0,
    };
    let mut now_ms = 12_345;
    for call in calls {
        make(call, &store, &mut model, &mut now_ms);
        check_sums(&store, &model);
        check_sessions(&store, &mut model, now_ms);
    }
    while store.clear(7) > 0 {}
    store.trim();
    assert_eq!((store.sessions(), store.templates()), (0, 0));
    assert_eq!(store.bytes(), store.index.bytes());
    assert_eq!(store.order.lock().slab.mapped(), 0);
}

fn make(call: &Call, store: &ServerStore<u8>, model: &mut Model, now: &mut u64) {
    let now_ms = *now;
    match *call {
        Call::Insert {
            key,
            template,
            tail,
            verified,
        } => {
            let tail = tail_of(tail);
            let entry = Entry {
                key,
                template: template_of(template),
                born: now_ms / TICK_MS,
                cost: cost(key, &tail),
                tail,
                visited: false,
            };
            let held = entry.template.and_then(|n| store.template(&Common(n)));
            let stored = with_key(key, |id| {
                store.insert(id, &[key; 48], held, &entry.tail, verified, now_ms)
            });
            // Measured before room is made, or not at all.
            model.index_bytes = store.index_bytes.load(Relaxed);
            assert_eq!(stored, model.insert(entry, verified, now_ms));
        }
        Call::Restore {
            key,
            template,
            tail,
            verified,
            age,
            replayed,
        } => {
            let key = id_key(key);
            let template = template % 7 + 1;
            let tail = tail_of(tail);
            let born_ms = now_ms.saturating_sub(50 * u64::from(age));
            let arrival = match replayed {
                true => Arrival::Replayed,
                false => Arrival::Live,
            };
            let held = store.template(&Common(template)).expect("there are few");
            let restored = store.restore(
                &[key; 32], &[key; 48], held, &tail, verified, born_ms, arrival, now_ms,
            );
            model.index_bytes = store.index_bytes.load(Relaxed);
            let entry = Entry {
                key,
                template: Some(template),
                born: born_ms / TICK_MS,
                cost: cost(key, &tail),
                tail,
                visited: false,
            };
            let age_ms = now_ms - born_ms;
            let expected = model.restore(entry, verified, age_ms, arrival, now_ms);
            assert_eq!(restored, expected);
        }
        Call::Lookup(key) => {
            let found = with_key(key, |id| store.lookup(id, now_ms, owned));
            match model.fresh(key, now_ms) {
                Some(entry) => {
                    entry.visited = true;
                    assert_eq!(found, Some(owned_entry(entry)));
                    model.counts.hits += 1;
                }
                None => {
                    assert_eq!(found, None);
                    model.counts.misses += 1;
                }
            }
        }
        Call::Peek(key) => {
            let found = with_key(key, |id| store.peek(id, now_ms, owned));
            assert_eq!(found, model.fresh(key, now_ms).map(|e| owned_entry(e)));
        }
        Call::Delete(key) => {
            with_key(key, |id| store.delete(id));
            if let Some((queue, place)) = model.place(key) {
                model.queues[queue].remove(place);
            }
        }
        Call::Expire(slice) => {
            let slice = usize::from(slice);
            let expired = (0..slice)
                .take_while(|_| model.drop_expired(now_ms))
                .count();
            assert_eq!(store.expire(now_ms, slice), expired);
        }
        Call::Shrink(slice) => {
            let slice = usize::from(slice);
            assert_eq!(store.shrink(now_ms, slice), model.shrink(now_ms, slice));
        }
        Call::Trim => {
            store.trim();
            model.index_bytes = store.index.bytes();
        }
        Call::Clear(slice) => {
            let slice = usize::from(slice);
            assert_eq!(store.clear(slice), model.clear(slice));
        }
        Call::SetLimits(ref bounds) => {
            store.set_limits(bounds.limits());
            model.limits = bounds.limits();
        }
        Call::Pass(ms) => *now += 10 * u64::from(ms),
    }
}

fn check_sums(store: &ServerStore<u8>, model: &Model) {
    assert_eq!(store.sessions(), model.sessions());
    assert_eq!(store.bytes(), model.bytes());
    assert_eq!(store.templates(), model.templates().len());
    assert_eq!(store.counters().read(), model.counts);
}

fn check_sessions(store: &ServerStore<u8>, model: &mut Model, now_ms: u64) {
    let mut keys = 0;
    store.for_each_key(|key| {
        let (SessionKey::Id(&[n, ..]) | SessionKey::Other(&[n, ..])) = key else {
            // The key of no bytes.
            keys += 1;
            return;
        };
        assert!(with_key(n, |expected| key == expected) && model.place(n).is_some());
        keys += 1;
    });
    assert_eq!(keys, model.sessions());
    let held: Vec<u8> = model.entries().map(|entry| entry.key).collect();
    for key in held {
        let found = with_key(key, |id| store.peek(id, now_ms, owned));
        assert_eq!(found, model.fresh(key, now_ms).map(|e| owned_entry(e)));
    }
}

type Owned = (Option<u8>, Vec<u8>, Vec<u8>);

fn owned(session: Session<u8>) -> Owned {
    let Session {
        template,
        secret,
        tail,
    } = session;
    (template.copied(), secret.to_vec(), tail.to_vec())
}

fn owned_entry(entry: &Entry) -> Owned {
    (entry.template, vec![entry.key; 48], entry.tail.clone())
}

fn cost(key: u8, tail: &[u8]) -> u64 {
    let tail = tail.len()
        + with_key(key, |key| match key {
            SessionKey::Id(_) => 0,
            SessionKey::Other(key) => 8 + key.len(),
        });
    let header = 104;
    let cost = match tail {
        0..=MAX_TAIL => Slab::slot_size(header + tail),
        _ => Slab::slot_size(header + 16) + tail,
    };
    cost as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn bounds() -> impl Strategy<Value = Bounds> {
        let number = || prop_oneof![3 => 0..40u8, 1 => any::<u8>()];
        (any::<u8>(), number(), any::<u8>()).prop_map(|(bytes, sessions, lifetime)| Bounds {
            bytes,
            sessions,
            lifetime,
        })
    }

    fn call() -> impl Strategy<Value = Call> {
        // Few enough that they come again.
        let key = || 0..48u8;
        let insert = (key(), any::<u8>(), any::<u16>(), any::<bool>());
        let restore = (insert.clone(), any::<u8>(), any::<bool>());
        prop_oneof![
            12 => restore.prop_map(|((key, template, tail, verified), age, replayed)| Call::Restore {
                key, template, tail, verified, age, replayed
            }),
            20 => insert.prop_map(|(key, template, tail, verified)| Call::Insert {
                key, template, tail, verified
            }),
            12 => key().prop_map(Call::Lookup),
            2 => key().prop_map(Call::Peek),
            3 => key().prop_map(Call::Delete),
            1 => (0..8u8).prop_map(Call::Expire),
            1 => (0..8u8).prop_map(Call::Shrink),
            1 => Just(Call::Trim),
            1 => (0..8u8).prop_map(Call::Clear),
            1 => bounds().prop_map(Call::SetLimits),
            4 => any::<u8>().prop_map(Call::Pass),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 4 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn the_store_agrees_with_a_naive_one(bounds in bounds(), calls in vec(call(), 1..300)) {
            check(&bounds, &calls);
        }
    }
}
