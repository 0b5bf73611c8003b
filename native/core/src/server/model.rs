//! Compares a [`ServerStore`] with a naive store, which knows after every call which sessions may be stored, and what must be
//! true. The policy's own tests check which session is evicted. Here, each session that went must have been counted, and no
//! other may be missing.

use super::*;
use crate::clock::set_wall::WALL_S;
use crate::counters::Counts;
use crate::trust::{IssuerHash, IssuerLists, Known, Lists};
use std::collections::{HashMap, HashSet};

/// A call, or time that passes. The functions below turn the numbers into keys, lengths and bounds.
#[derive(Debug, Clone)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
#[allow(missing_docs)]
pub enum Call {
    Insert {
        key: u8,
        parts: Parts,
    },
    /// A session that was made this many times 50 ms ago.
    Restore {
        key: u8,
        parts: Parts,
        age: u8,
        replayed: bool,
    },
    Lookup(u8),
    Peek(u8),
    Delete(u8),
    Revoke(u8),
    Expire(u8),
    Tidy(u8),
    Clear(u8),
    SetLimits(Bounds),
    Pass(u8),
    /// The wall clock shows this many seconds after [`WALL_BEGIN_S`]. Certificates end within the first minute.
    SetWall(u8),
    SetTrust {
        allows_expired: bool,
        allows_stale: bool,
        has_lists: bool,
    },
    Publish(Issued),
}

/// The revocation lists of both authorities.
#[derive(Debug, Clone)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
#[allow(missing_docs)]
pub struct Issued {
    /// One bit for each certificate.
    pub revoked: u16,
    /// Until when the list of each authority is current, as the number of [`Call::SetWall`]. `None` where it has no list.
    pub current_until: [Option<u8>; 2],
    pub is_complete: bool,
}

/// The parts of a session.
#[derive(Debug, Clone)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
#[allow(missing_docs)]
pub struct Parts {
    pub template: u8,
    pub tail: u16,
    pub certificate: u8,
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
                bytes => u64::from(bytes) * 2048,
            },
            max_sessions: match self.sessions {
                128.. => u64::MAX,
                sessions => u64::from(sessions),
            },
            lifetime_ms: u64::from(self.lifetime) * 50,
        }
    }
}

struct Common(u8);

impl Pattern<u8> for Common {
    fn hash(&self) -> u64 {
        u64::from(self.0 % 2)
    }
    fn matches(&self, template: &u8) -> bool {
        *template == self.0
    }
    fn make(&self) -> Option<Made<u8>> {
        let part = Part {
            key: usize::from(self.0 % 3),
            bytes: 50,
        };
        Some(Made {
            template: self.0,
            bytes: 10,
            part: Some(part),
        })
    }
}

/// Every third key is no id, and some of these are long.
fn with_key<R>(key: u8, with: impl FnOnce(SessionKey) -> R) -> R {
    match (key % 3, key % 4) {
        (0, 0) => with(SessionKey::Other(&vec![key; 1000])),
        (0, _) => with(SessionKey::Other(&vec![key; usize::from(key)])),
        _ => with(SessionKey::Id(&[key; 32])),
    }
}

/// Mostly short tails, and some around the longest that the store accepts.
fn tail_of(number: u16) -> Vec<u8> {
    let longest = MAX_SESSION_BYTES as u16;
    let len = match number % 16 {
        0..6 => 0,
        6..13 => number % 300,
        13 | 14 => number % 4000,
        _ => longest - 150 + number % 200,
    };
    (0..len).map(|n| (n ^ number) as u8).collect()
}

/// A few certificates, so that they come again. Half of the sessions have none.
fn holder_of(number: u8) -> Option<Holder> {
    (number % 2 == 1).then_some(Holder(number / 2 % 12))
}

/// The holder of a client certificate. What the first two hold is no certificate.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Holder(u8);

impl Holder {
    fn certificate(self) -> Vec<u8> {
        match self.0 {
            0 => vec![7; MAX_CERTIFICATE / 2],
            1 => vec![9; 3],
            _ => self.real_certificate(),
        }
    }

    /// A certificate that compresses.
    fn real_certificate(self) -> Vec<u8> {
        let end = match self.end_s() {
            None => short(24, b"99991231235959Z"),
            Some(end_s) => short(
                23,
                format!("2601010000{:02}Z", end_s - WALL_BEGIN_S).as_bytes(),
            ),
        };
        let fields = [
            short(2, &[self.0]),
            short(0x30, &[]),
            authority_name(self.authority()),
            short(0x30, &[short(23, b"250101000000Z"), end].concat()),
            short(4, &[3; 70]),
        ]
        .concat();
        short(0x30, &short(0x30, &fields))
    }

    fn is_certified(self) -> bool {
        self.0 > 1
    }

    fn authority(self) -> usize {
        usize::from(self.0 % 2)
    }

    /// The last second of the certificate, if it has one.
    fn end_s(self) -> Option<u64> {
        (self.is_certified() && self.0 < 11).then(|| WALL_BEGIN_S + 5 * u64::from(self.0))
    }
}

/// 2026-01-01, in seconds since 1970.
const WALL_BEGIN_S: u64 = 1_767_225_600;

fn short(tag: u8, value: &[u8]) -> Vec<u8> {
    [&[tag, value.len() as u8], value].concat()
}

fn authority_name(number: usize) -> Vec<u8> {
    let attribute = [short(6, &[0x55, 4, 3]), short(12, &[b"ab"[number]])].concat();
    short(0x30, &short(0x31, &short(0x30, &attribute)))
}

impl Issued {
    fn has(&self, holder: Holder) -> bool {
        self.revoked & 1 << holder.0 != 0
    }

    fn known(&self) -> Known {
        let issuers = (0..2).filter_map(|number| {
            let current_until_s = WALL_BEGIN_S + u64::from(self.current_until[number]?);
            let issuer = IssuerHash::of(&authority_name(number));
            // A list and a delta list.
            let revoked = [0..7u8, 7..12].map(|range| {
                let mut hashes: Vec<u64> = range
                    .filter(|n| self.has(Holder(*n)))
                    .map(|n| issuer.certificate(&[n]))
                    .collect();
                hashes.sort_unstable();
                hashes.into()
            });
            let lists = IssuerLists {
                current_until_s,
                revoked: revoked.into(),
            };
            Some((issuer, lists))
        });
        Known::new(issuers, self.is_complete)
    }
}

/// Sessions of some kinds have no template.
fn template_of(number: u8) -> Option<u8> {
    (number % 8 != 0).then_some(number % 8)
}

/// A session as the caller knows it.
#[derive(Clone, PartialEq, Debug)]
struct Entry {
    template: Option<u8>,
    tail: Vec<u8>,
    holder: Option<Holder>,
    born_ms: u64,
}

impl Entry {
    fn new(parts: &Parts, born_ms: u64) -> Self {
        Entry {
            template: template_of(parts.template),
            tail: tail_of(parts.tail),
            holder: holder_of(parts.certificate),
            born_ms,
        }
    }

    fn certificate(&self) -> Option<Vec<u8>> {
        self.holder.map(Holder::certificate)
    }
}

struct Model {
    /// The sessions that may be in the store: all stored ones, and none that was removed.
    entries: HashMap<u8, Entry>,
    limits: Limits,
    counts: Counts,
    /// Whether a bound may be exceeded until the store is tidied.
    is_narrowed: bool,
    wall_s: u64,
    allows_expired: bool,
    allows_stale: bool,
    has_lists: bool,
    lists: Arc<Lists>,
    issued: Option<Issued>,
}

impl Model {
    /// Whether the certificate of a session lets it be resumed.
    fn check(&self, entry: &Entry) -> Result<(), CertificateMiss> {
        let Some(holder) = entry.holder else {
            return Ok(());
        };
        if !self.allows_expired && holder.end_s().is_some_and(|end_s| end_s < self.wall_s) {
            return Err(CertificateMiss::Expired);
        }
        if !self.has_lists {
            return Ok(());
        }
        let issued = self.issued.as_ref().ok_or(CertificateMiss::Unknown)?;
        if !holder.is_certified() {
            return Err(CertificateMiss::Unknown);
        }
        let until = issued.current_until[holder.authority()];
        if until.is_some() && issued.has(holder) {
            return Err(CertificateMiss::Revoked);
        }
        let is_old = until.is_some_and(|until| WALL_BEGIN_S + u64::from(until) < self.wall_s);
        match !self.allows_stale && (is_old || !issued.is_complete) {
            true => Err(CertificateMiss::Unknown),
            false => Ok(()),
        }
    }

    /// The session that a lookup must return.
    fn resumable(&self, key: u8, now_ms: u64) -> Option<&Entry> {
        self.fresh(key, now_ms)
            .filter(|entry| self.check(entry).is_ok())
    }

    fn is_expired(&self, entry: &Entry, now_ms: u64) -> bool {
        let age_ms = (now_ms / TICK_MS - entry.born_ms / TICK_MS) * TICK_MS;
        age_ms >= self.limits.lifetime_ms
    }

    fn fresh(&self, key: u8, now_ms: u64) -> Option<&Entry> {
        let entry = self.entries.get(&key)?;
        (!self.is_expired(entry, now_ms)).then_some(entry)
    }

    /// Forgets the sessions that the store has dropped. It must have counted them, and as expired those that have expired.
    fn follow(&mut self, store: &ServerStore<u8>, now_ms: u64) {
        let mut held = HashSet::new();
        store.for_each_key(|key| {
            let known = (0..=u8::MAX).find(|n| with_key(*n, |expected| key == expected));
            assert!(held.insert(known.expect("a key that was inserted")));
        });
        let (mut gone, mut expired) = (0, 0);
        let limits = self.limits;
        self.entries.retain(|key, entry| {
            let stays = held.contains(key);
            gone += u64::from(!stays);
            let age_ms = (now_ms / TICK_MS - entry.born_ms / TICK_MS) * TICK_MS;
            expired += u64::from(!stays && age_ms >= limits.lifetime_ms);
            stays
        });
        assert_eq!(held.len(), self.entries.len(), "what was taken out is back");
        let counts = store.counters().read();
        let counted = counts.evicted + counts.expired - self.counts.evicted - self.counts.expired;
        assert_eq!(counted, gone);
        assert_eq!(counts.expired - self.counts.expired, expired);
        self.counts.evicted = counts.evicted;
        self.counts.expired = counts.expired;
        self.counts.moved = counts.moved;
    }
}

/// Makes all `calls` on a store and on the naive one, and panics where they disagree.
pub fn check(bounds: &Bounds, calls: &[Call]) {
    let store = ServerStore::<u8>::new(bounds.limits());
    let mut model = Model {
        entries: HashMap::new(),
        limits: bounds.limits(),
        counts: store.counters().read(),
        is_narrowed: false,
        wall_s: WALL_BEGIN_S,
        allows_expired: false,
        allows_stale: false,
        has_lists: false,
        lists: Arc::new(Lists::new()),
        issued: None,
    };
    WALL_S.set(Some(WALL_BEGIN_S));
    let mut now_ms = 12_345_000;
    for call in calls {
        make(call, &store, &mut model, &mut now_ms);
        check_sums(&store, &model);
        check_sessions(&store, &model, now_ms);
        check_parts(&store);
    }
    while store.clear(7) > 0 {}
    while store.tidy(now_ms) {}
    assert_eq!((store.sessions(), store.templates()), (0, 0));
    assert_eq!((store.certificates(), store.certified()), (0, 0));
    assert_eq!(store.order.lock().slab.mapped(), 0);
    assert!(store.issuers().is_empty());
}

fn make(call: &Call, store: &ServerStore<u8>, model: &mut Model, now: &mut u64) {
    let now_ms = *now;
    match call {
        Call::Insert { key, parts } => {
            let entry = Entry::new(parts, now_ms);
            let inserted = with_new(store, *key, &entry, |new| store.insert(new, now_ms));
            let was_asked = !matches!(inserted, Err(Refusal::TooLarge | Refusal::Lifetime));
            check_refusal(inserted.err(), &entry, *key, model, now_ms);
            match inserted {
                Ok(()) => model.counts.inserts += 1,
                Err(refusal) => model.counts.refused[refusal as usize] += 1,
            }
            // The former session is gone in any case, unless the store was not asked.
            if was_asked && !is_held(store, *key) {
                model.entries.remove(key);
            }
            if inserted.is_ok() {
                model.entries.insert(*key, entry);
            }
            model.follow(store, now_ms);
        }
        Call::Restore {
            key,
            parts,
            age,
            replayed,
        } => {
            let born_ms = now_ms - 50 * u64::from(*age);
            let entry = Entry::new(parts, born_ms);
            let arrival = match replayed {
                true => Arrival::Replayed,
                false => Arrival::Live,
            };
            let restored = with_new(store, *key, &entry, |new| {
                store.restore(new, born_ms, arrival, now_ms)
            });
            // If the lists are not known yet, the lookup decides.
            let refused = match model.check(&entry) {
                Err(CertificateMiss::Expired) => Some(Restored::Expired),
                Err(CertificateMiss::Revoked) => Some(Restored::Revoked),
                Err(CertificateMiss::Unknown) | Ok(()) => None,
            };
            match restored {
                _ if refused.is_some() => assert_eq!(Some(restored), refused),
                Restored::Stored => assert!(model.entries.insert(*key, entry).is_none()),
                Restored::Known => assert!(model.entries.contains_key(key)),
                Restored::NoRoom => {}
                Restored::Expired | Restored::Revoked => panic!("{restored:?}"),
            }
            let before = model.entries.len();
            model.follow(store, now_ms);
            assert!(
                !replayed || model.entries.len() == before,
                "a replay takes no place"
            );
        }
        Call::Lookup(key) => {
            let found = with_key(*key, |id| store.lookup(id, now_ms, owned));
            let expected = model.resumable(*key, now_ms).map(owned_entry(*key));
            assert_eq!(found, expected);
            match found {
                Some(_) => model.counts.hits += 1,
                None => model.counts.misses += 1,
            }
            let checked = model.fresh(*key, now_ms).map(|entry| model.check(entry));
            if let Some(Err(miss)) = checked {
                model.counts.certificate_misses[miss as usize] += 1;
            }
            model.counts.evicted_misses = store.counters().read().evicted_misses;
            model.counts.lost_misses = store.counters().read().lost_misses;
            let counts = &model.counts;
            let explained =
                counts.evicted_misses + counts.lost_misses + counts.certificate_misses_total();
            assert!(explained <= counts.misses);
        }
        Call::Peek(key) => {
            let found = with_key(*key, |id| store.peek(id, now_ms, owned));
            assert_eq!(found, model.resumable(*key, now_ms).map(owned_entry(*key)));
        }
        Call::Delete(key) => {
            let is_held = with_key(*key, |id| store.delete(id));
            assert_eq!(is_held, model.entries.remove(key).is_some());
        }
        Call::Revoke(number) => {
            let holder = holder_of(number | 1).expect("an odd number");
            let der = holder.certificate();
            let dropped = match number % 3 {
                0 => store.revoke(&[Selector::Sha256(&Sha256::digest(&der).into())]),
                1 => store.revoke(&[Selector::Sha1(&Sha1::digest(&der).into())]),
                _ => match crate::issuer_and_serial(&der) {
                    Some((name, serial)) => store.revoke(&[Selector::Serial(name, serial)]),
                    None => 0,
                },
            };
            let is_named = number % 3 < 2 || crate::issuer_and_serial(&der).is_some();
            let before = model.entries.len();
            model
                .entries
                .retain(|_, entry| !is_named || entry.holder != Some(holder));
            assert_eq!(dropped, (before - model.entries.len()) as u64);
        }
        Call::Expire(slice) => {
            let dropped = store.expire(now_ms, (*slice).into());
            assert!(dropped <= usize::from(*slice));
            model.follow(store, now_ms);
        }
        Call::Tidy(slices) => {
            let is_done = (0..*slices).any(|_| !store.tidy(now_ms));
            model.follow(store, now_ms);
            if is_done {
                model.is_narrowed = false;
                assert!(model
                    .entries
                    .values()
                    .all(|entry| !model.is_expired(entry, now_ms)));
            }
        }
        Call::Clear(slice) => {
            let dropped = store.clear((*slice).into());
            let before = model.entries.len();
            assert_eq!(dropped, before.min((*slice).into()));
            model.entries.retain(|key, _| is_held(store, *key));
            assert_eq!(model.entries.len(), before - dropped);
        }
        Call::SetLimits(bounds) => {
            store.set_limits(bounds.limits());
            model.limits = bounds.limits();
            model.is_narrowed = true;
        }
        Call::Pass(ms) => *now += 10 * u64::from(*ms),
        Call::SetWall(seconds) => {
            model.wall_s = WALL_BEGIN_S + u64::from(*seconds);
            WALL_S.set(Some(model.wall_s));
        }
        Call::SetTrust {
            allows_expired,
            allows_stale,
            has_lists,
        } => {
            (model.allows_expired, model.allows_stale) = (*allows_expired, *allows_stale);
            model.has_lists = *has_lists;
            store.set_trust(Trust {
                allows_expired: *allows_expired,
                allows_stale: *allows_stale,
                lists: has_lists.then(|| Arc::clone(&model.lists)),
            });
        }
        Call::Publish(issued) => {
            model.lists.publish(issued.known());
            model.issued = Some(issued.clone());
        }
    }
}

/// Whether the session is in the store, even if lookups must not return it.
fn is_held(store: &ServerStore<u8>, key: u8) -> bool {
    let order = store.order.lock();
    with_key(key, |id| {
        store.find_slot(&order, store.hash(id), id).is_some()
    })
}

fn with_new<R>(
    store: &ServerStore<u8>,
    key: u8,
    entry: &Entry,
    with: impl FnOnce(NewSession<u8>) -> R,
) -> R {
    let template = entry.template.and_then(|n| store.template(&Common(n)));
    let certificate = entry.certificate();
    with_key(key, |id| {
        with(NewSession {
            key: id,
            secret: &[key; 48],
            template,
            certificate: certificate.as_deref(),
            tail: &entry.tail,
        })
    })
}

/// A session is refused for a reason, and only then.
fn check_refusal(refusal: Option<Refusal>, entry: &Entry, key: u8, model: &Model, now_ms: u64) {
    let key_bytes = with_key(key, |id| match id {
        SessionKey::Id(_) => 0,
        SessionKey::Other(other) => 2 + other.len(),
    });
    let bytes = 96 + key_bytes + entry.tail.len();
    match refusal {
        Some(Refusal::TooLarge) => assert!(bytes + 14 > MAX_SESSION_BYTES),
        Some(Refusal::Lifetime) => assert!(model.is_expired(entry, now_ms)),
        Some(Refusal::NoRoom) => {
            // A page for each part that a session needs, or a bound that was lowered.
            let certificate = entry.certificate().map_or(0, |der| der.len());
            let needed = (bytes + certificate + 16 * 4096) as u64;
            assert!(
                model.limits.max_bytes < 2 * needed
                    || model.limits.max_sessions == 0
                    || model.is_narrowed
            );
        }
        Some(other) => panic!("{other:?}"),
        None => assert!(bytes <= MAX_SESSION_BYTES && !model.is_expired(entry, now_ms)),
    }
}

fn check_sums(store: &ServerStore<u8>, model: &Model) {
    assert_eq!(store.sessions(), model.entries.len() as u64);
    let templates: HashSet<u8> = model
        .entries
        .values()
        .filter_map(|entry| entry.template)
        .collect();
    assert_eq!(store.templates(), templates.len());
    let holders: HashSet<Holder> = model
        .entries
        .values()
        .filter_map(|entry| entry.holder)
        .collect();
    assert_eq!(store.certificates(), holders.len() as u64);
    let certified = holders.iter().map(|holder| {
        let with_it = |entry: &&Entry| entry.holder == Some(*holder);
        model
            .entries
            .values()
            .filter(with_it)
            .count()
            .min(CERTIFIED_PER_CERTIFICATE)
    });
    assert!(store.certified() <= certified.sum::<usize>() as u64);
    assert_eq!(store.counters().read(), model.counts);
    assert!(
        model.is_narrowed || store.bytes() <= model.limits.max_bytes.max(16 * 1024),
        "{} of {}",
        store.bytes(),
        model.limits.max_bytes
    );
    assert!(model.is_narrowed || store.sessions() <= model.limits.max_sessions);
}

fn check_sessions(store: &ServerStore<u8>, model: &Model, now_ms: u64) {
    for key in model.entries.keys() {
        let found = with_key(*key, |id| store.peek(id, now_ms, owned));
        assert_eq!(found, model.resumable(*key, now_ms).map(owned_entry(*key)));
    }
}

/// Whether the parts of the store agree with each other.
fn check_parts(store: &ServerStore<u8>) {
    let order = store.order.lock();
    let lengths = order.policies.iter().map(Policy::length).sum::<u64>();
    assert_eq!(lengths, store.sessions());
    assert_eq!(
        order.policies[Class::Certified as usize].length(),
        store.certified()
    );
    let mut certified_bytes = 0;
    let mut position = Some(0);
    while let Some(from) = position {
        position = store.index.page(
            from,
            1000,
            |number| store.hash_of(number),
            |number| {
                // SAFETY: the slot is in the index, whose lock on this part is held.
                let slot = unsafe { store.slot(number) };
                if slot.flags() & CERTIFIED != 0 {
                    certified_bytes += slot_bytes(slot.bytes()) as u64;
                }
                if let (Some(chain), Some(certificates)) = (slot.chain(), store.certificates.get())
                {
                    // SAFETY: sessions in a chain are allocated, and no other thread changes the store.
                    let at = |slot: SlotRef| unsafe { store.slot(slot.0) }.chain().unwrap();
                    match chain.newer.some() {
                        None => assert_eq!(
                            certificates.newest(&store.directory, chain.certificate).0,
                            number
                        ),
                        Some(newer) => assert_eq!(at(newer).older.0, number),
                    }
                    assert!(chain
                        .older
                        .some()
                        .is_none_or(|older| at(older).newer.0 == number));
                }
            },
        );
    }
    assert_eq!(order.certified_bytes, certified_bytes);
    if let Some(certificates) = store.certificates.get() {
        certificates.check(&order.books, &store.directory);
    }
    assert_eq!(store.taken(&order) + store.templates.bytes(), store.bytes());
}

type Owned = (Option<u8>, Vec<u8>, Option<Vec<u8>>, Vec<u8>);

fn owned(session: Session<u8>) -> Owned {
    (
        session.template.map(|template| **template),
        session.secret.to_vec(),
        session
            .certificate
            .map(|certificate| certificate.der().into_owned()),
        session.tail.to_vec(),
    )
}

fn owned_entry(key: u8) -> impl Fn(&Entry) -> Owned {
    move |entry| {
        (
            entry.template,
            vec![key; 48],
            entry.certificate(),
            entry.tail.clone(),
        )
    }
}

use sha1::Sha1;
use sha2::{Digest, Sha256};

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

    fn parts() -> impl Strategy<Value = Parts> {
        (any::<u8>(), any::<u16>(), any::<u8>()).prop_map(|(template, tail, certificate)| Parts {
            template,
            tail,
            certificate,
        })
    }

    fn issued() -> impl Strategy<Value = Issued> {
        let until = || prop::option::weighted(0.8, 0..90u8);
        let until = [until(), until()];
        let revoked = any::<u16>();
        (revoked, until, any::<bool>()).prop_map(|(revoked, current_until, is_complete)| Issued {
            revoked,
            current_until,
            is_complete,
        })
    }

    fn call() -> impl Strategy<Value = Call> {
        // So few that they come again.
        let key = || 0..96u8;
        let restore = (key(), parts(), any::<u8>(), any::<bool>());
        prop_oneof![
            20 => (key(), parts()).prop_map(|(key, parts)| Call::Insert { key, parts }),
            12 => restore.prop_map(|(key, parts, age, replayed)| Call::Restore {
                key, parts, age, replayed
            }),
            12 => key().prop_map(Call::Lookup),
            2 => key().prop_map(Call::Peek),
            3 => key().prop_map(Call::Delete),
            1 => any::<u8>().prop_map(Call::Revoke),
            1 => (0..8u8).prop_map(Call::Expire),
            3 => (0..40u8).prop_map(Call::Tidy),
            1 => (0..8u8).prop_map(Call::Clear),
            1 => bounds().prop_map(Call::SetLimits),
            4 => any::<u8>().prop_map(Call::Pass),
            3 => (0..64u8).prop_map(Call::SetWall),
            1 => any::<[bool; 3]>().prop_map(|[allows_expired, allows_stale, has_lists]| {
                Call::SetTrust { allows_expired, allows_stale, has_lists }
            }),
            3 => issued().prop_map(Call::Publish),
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
