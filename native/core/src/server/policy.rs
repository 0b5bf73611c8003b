//! Chooses the session to evict.
//!
//! A session earns protection in proportion to the age at which it was last used. A session that was resumed a second after
//! its birth has proved nothing: every client can do that, and a flood of clients does. A session that was resumed at the age
//! of two hours is protected to the age of eight. So a flood pays in time, not in handshakes.
//!
//! New sessions wait in a queue, the oldest at its end. A session at the end goes if it was never used or has been idle for
//! too long. Otherwise it is kept: it moves to a clock, from which a flood evicts nothing. Kept sessions go only for others
//! that have earned their place, and for clients that ask for evicted sessions, because devices that have lost their sessions
//! all at once look like that. docs/store.md has the reasons, and what the rule is bad at.

use super::slab::SlotRef;

/// Encodes an age in ticks as one byte: 0 means no age, 1 an age of 0. From 8 ticks on there are four steps per doubling.
pub(crate) fn code_of(age: u32) -> u8 {
    if age < 8 {
        return age as u8 + 1;
    }
    let doubling = age.ilog2();
    let quarter = (age >> (doubling - 2)) & 3;
    (4 * (doubling - 3) + quarter) as u8 + 9
}

/// The least age with this code, in ticks; 0 for the code 0.
pub(crate) fn age_of(code: u8) -> u32 {
    match code {
        0..9 => u32::from(code.saturating_sub(1)),
        _ => {
            let step = u32::from(code - 9);
            (4 + step % 4) << (step / 4 + 1)
        }
    }
}

/// The policy evicts sessions of each class separately.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Sessions that anybody can make.
    Anonymous = 0,
    /// The newest sessions of a verified client certificate.
    Certified = 1,
}

/// What the policy needs to know about sessions. Called under the order lock.
pub(crate) trait Links {
    fn newer(&self, slot: SlotRef) -> SlotRef;
    fn older(&self, slot: SlotRef) -> SlotRef;
    fn set_newer(&self, slot: SlotRef, newer: SlotRef);
    fn set_older(&self, slot: SlotRef, older: SlotRef);
    /// In ticks.
    fn age(&self, slot: SlotRef) -> u32;
    /// The code of the age at the last use.
    fn used(&self, slot: SlotRef) -> u8;
    fn is_kept(&self, slot: SlotRef) -> bool;
    fn set_kept(&self, slot: SlotRef, kept: bool);
}

/// For how many times the age at its last use a session may be idle: while there is room among the kept sessions, while there
/// is no room, and while many clients ask for evicted sessions.
const PATIENCE_WITH_ROOM: f32 = 2.0;
const PATIENCE: f32 = 3.0;
const PATIENCE_WHILE_SESSIONS_RETURN: f32 = 0.5;

/// A shorter pause (a second) does not make a session idle, unless its last use came earlier than the other bound (30 ms).
const SHORTEST_PAUSE_TICKS: u32 = 100;
const SHORTEST_USE_TICKS: u32 = 3;

/// Many clients ask for evicted sessions if there are more such lookups than this per hit.
const RETURNS_PER_HIT: f32 = 8.0;

/// The share of sessions that may be kept.
const KEPT_SHARE: f32 = 0.9;

/// Most kept sessions that an eviction looks at for an idle one.
const MAX_LOOKS: u32 = 16;

/// Most steps of an eviction.
const MAX_STEPS: u32 = 64;

/// How many kept sessions may go per lookup of an evicted session.
const CREDIT_PER_RETURN: f32 = 2.0;

#[derive(Default)]
struct List {
    newest: SlotRef,
    oldest: SlotRef,
    length: u64,
}

impl List {
    fn push_newest(&mut self, links: &impl Links, slot: SlotRef) {
        links.set_newer(slot, SlotRef::NONE);
        links.set_older(slot, self.newest);
        match self.newest.some() {
            None => self.oldest = slot,
            Some(newest) => links.set_newer(newest, slot),
        }
        self.newest = slot;
        self.length += 1;
    }

    fn push_oldest(&mut self, links: &impl Links, slot: SlotRef) {
        links.set_older(slot, SlotRef::NONE);
        links.set_newer(slot, self.oldest);
        match self.oldest.some() {
            None => self.newest = slot,
            Some(oldest) => links.set_older(oldest, slot),
        }
        self.oldest = slot;
        self.length += 1;
    }

    fn remove(&mut self, links: &impl Links, slot: SlotRef) {
        let (newer, older) = (links.newer(slot), links.older(slot));
        match newer.some() {
            None => self.newest = older,
            Some(newer) => links.set_older(newer, older),
        }
        match older.some() {
            None => self.oldest = newer,
            Some(older) => links.set_newer(older, newer),
        }
        self.length -= 1;
    }

    /// Puts `new` into the place of `old`.
    fn replace(&mut self, links: &impl Links, old: SlotRef, new: SlotRef) {
        let (newer, older) = (links.newer(new), links.older(new));
        match newer.some() {
            None => self.newest = new,
            Some(newer) => links.set_older(newer, new),
        }
        match older.some() {
            None => self.oldest = new,
            Some(older) => links.set_newer(older, new),
        }
        debug_assert!(self.newest != old && self.oldest != old);
    }
}

/// The sessions of one class.
#[derive(Default)]
pub(crate) struct Policy {
    new: List,
    kept: List,
    credit: f32,
    /// Recent hits of kept sessions, and recent lookups of evicted ones.
    hits: f32,
    returns: f32,
    seen_hits: u64,
    seen_returns: u64,
}

/// The session to evict.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Victim {
    pub slot: SlotRef,
    /// Whether the store should remember it, to notice if a client asks for it.
    pub leaves_ghost: bool,
}

impl Policy {
    pub fn length(&self) -> u64 {
        self.new.length + self.kept.length
    }

    /// Adds a session as the newest; or as the oldest, if it was made before all others. `is_replayed` says that sessions
    /// arrive newest first, so that of two with the same age the later one is the older.
    pub fn insert(&mut self, links: &impl Links, slot: SlotRef, is_replayed: bool) {
        let is_oldest = self.new.oldest.some().is_some_and(|oldest| {
            let (age, oldest) = (links.age(slot), links.age(oldest));
            age > oldest || (is_replayed && age == oldest)
        });
        if is_oldest {
            self.new.push_oldest(links, slot);
        } else {
            self.new.push_newest(links, slot);
        }
    }

    pub fn remove(&mut self, links: &impl Links, slot: SlotRef) {
        self.list_of(links, slot).remove(links, slot);
    }

    /// Updates the lists after the session in `old` was moved to `new`, with its links.
    pub fn moved(&mut self, links: &impl Links, old: SlotRef, new: SlotRef) {
        self.list_of(links, new).replace(links, old, new);
    }

    /// Any session.
    pub fn any(&self) -> Option<SlotRef> {
        self.new.oldest.some().or(self.kept.oldest.some())
    }

    /// Takes the numbers of hits of kept sessions and of lookups of evicted ones since the store was made.
    pub fn observe(&mut self, hits: u64, returns: u64) {
        let returned = (returns - self.seen_returns) as f32;
        self.hits += (hits - self.seen_hits) as f32;
        self.returns += returned;
        (self.seen_hits, self.seen_returns) = (hits, returns);
        let room = self.length() as f32;
        self.credit = (self.credit + CREDIT_PER_RETURN * returned).min((room / 16.0).max(4.0));
        let most = (room / 8.0).max(256.0);
        while self.hits + self.returns > most {
            self.hits /= 2.0;
            self.returns /= 2.0;
        }
    }

    /// The session to evict. It is still in its list.
    pub fn victim(&mut self, links: &impl Links) -> Option<Victim> {
        if self.credit >= 1.0 {
            if 4.0 * self.returns < self.hits {
                self.credit = 0.0;
            } else {
                self.credit -= 1.0;
                if let Some(slot) = self.find_idle(links) {
                    return Some(Victim {
                        slot,
                        leaves_ghost: false,
                    });
                }
            }
        }
        for _ in 0..MAX_STEPS {
            let Some(candidate) = self.new.oldest.some() else {
                break;
            };
            let has_room = self.has_room();
            let patience = match has_room {
                true => PATIENCE_WITH_ROOM,
                false => self.patience(),
            };
            if links.used(candidate) == 0 || is_idle(links, candidate, patience) {
                return Some(Victim {
                    slot: candidate,
                    leaves_ghost: true,
                });
            }
            if has_room {
                self.keep(links, candidate);
                continue;
            }
            let Some(slot) = self.find_idle(links) else {
                return Some(Victim {
                    slot: candidate,
                    leaves_ghost: true,
                });
            };
            self.keep(links, candidate);
            return Some(Victim {
                slot,
                leaves_ghost: false,
            });
        }
        let slot = self.new.newest.some().or(self.kept.oldest.some())?;
        Some(Victim {
            slot,
            leaves_ghost: true,
        })
    }

    /// Keeps at most `most` of the oldest new sessions, as long as they have earned it, as the next evictions would. Returns
    /// whether there are more. Otherwise the first evictions of a store that was filled with sessions in use would have to keep
    /// them all, and would evict the newest ones meanwhile.
    pub fn settle(&mut self, links: &impl Links, most: usize) -> bool {
        for _ in 0..most {
            let Some(candidate) = self.new.oldest.some().filter(|_| self.has_room()) else {
                return false;
            };
            if links.used(candidate) == 0 || is_idle(links, candidate, PATIENCE_WITH_ROOM) {
                return false;
            }
            self.keep(links, candidate);
        }
        true
    }

    fn has_room(&self) -> bool {
        (self.kept.length as f32) < KEPT_SHARE * self.length() as f32
    }

    fn patience(&self) -> f32 {
        if self.returns > RETURNS_PER_HIT * (self.hits + 1.0) {
            PATIENCE_WHILE_SESSIONS_RETURN
        } else {
            PATIENCE
        }
    }

    fn keep(&mut self, links: &impl Links, slot: SlotRef) {
        self.new.remove(links, slot);
        self.kept.push_newest(links, slot);
        links.set_kept(slot, true);
    }

    /// A kept session that has been idle for too long. Others that it looks at go to the other end.
    fn find_idle(&mut self, links: &impl Links) -> Option<SlotRef> {
        let patience = self.patience();
        for _ in 0..MAX_LOOKS.min(self.kept.length as u32) {
            let slot = self.kept.oldest;
            if is_idle(links, slot, patience) {
                return Some(slot);
            }
            self.kept.remove(links, slot);
            self.kept.push_newest(links, slot);
        }
        None
    }

    fn list_of(&mut self, links: &impl Links, slot: SlotRef) -> &mut List {
        match links.is_kept(slot) {
            true => &mut self.kept,
            false => &mut self.new,
        }
    }
}

/// Whether a session was not used for `patience` times the age at its last use. A pause of less than a second does not count,
/// unless the session was only used right after its birth, or clients ask for evicted sessions.
fn is_idle(links: &impl Links, slot: SlotRef, patience: f32) -> bool {
    let (age, used) = (links.age(slot), age_of(links.used(slot)));
    let is_long = age as f32 > (1.0 + patience) * used as f32;
    let is_pause = age - used.min(age) >= SHORTEST_PAUSE_TICKS;
    is_long && (is_pause || used < SHORTEST_USE_TICKS || patience < PATIENCE_WITH_ROOM)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::{Cell, RefCell};

    #[test]
    fn an_age_has_a_code_that_is_a_quarter_less_at_most() {
        let ages = (0..100_000)
            .chain((0..32).flat_map(|n| [(1u64 << n) as u32, ((1u64 << n) - 1) as u32]));
        for age in ages.chain([u32::MAX]) {
            let least = age_of(code_of(age));
            assert!(
                least <= age && u64::from(age) < u64::from(least) * 5 / 4 + 1,
                "{age}: {least}"
            );
            assert_eq!(code_of(least), code_of(age));
        }
        assert!(code_of(u32::MAX) < 128);
    }

    /// A slot is a place in the vector, counted from 1.
    #[derive(Default)]
    struct Table {
        sessions: RefCell<Vec<Session>>,
        now: Cell<u32>,
    }

    #[derive(Default, Clone, Copy)]
    struct Session {
        newer: SlotRef,
        older: SlotRef,
        born: u32,
        used: u8,
        kept: bool,
    }

    impl Table {
        fn get(&self, slot: SlotRef) -> Session {
            self.sessions.borrow()[slot.0 as usize - 1]
        }

        fn with(&self, slot: SlotRef, change: impl FnOnce(&mut Session)) {
            change(&mut self.sessions.borrow_mut()[slot.0 as usize - 1]);
        }

        fn insert(&self, policy: &mut Policy) -> SlotRef {
            self.sessions.borrow_mut().push(Session {
                born: self.now.get(),
                ..Session::default()
            });
            let slot = SlotRef(self.sessions.borrow().len() as u32);
            policy.insert(self, slot, false);
            slot
        }

        fn touch(&self, slot: SlotRef) {
            let age = self.age(slot);
            self.with(slot, |session| session.used = code_of(age));
        }

        fn evict(&self, policy: &mut Policy) -> Option<u32> {
            let victim = policy.victim(self)?;
            policy.remove(self, victim.slot);
            Some(victim.slot.0)
        }
    }

    impl Links for Table {
        fn newer(&self, slot: SlotRef) -> SlotRef {
            self.get(slot).newer
        }
        fn older(&self, slot: SlotRef) -> SlotRef {
            self.get(slot).older
        }
        fn set_newer(&self, slot: SlotRef, newer: SlotRef) {
            self.with(slot, |session| session.newer = newer);
        }
        fn set_older(&self, slot: SlotRef, older: SlotRef) {
            self.with(slot, |session| session.older = older);
        }
        fn age(&self, slot: SlotRef) -> u32 {
            self.now.get() - self.get(slot).born
        }
        fn used(&self, slot: SlotRef) -> u8 {
            self.get(slot).used
        }
        fn is_kept(&self, slot: SlotRef) -> bool {
            self.get(slot).kept
        }
        fn set_kept(&self, slot: SlotRef, kept: bool) {
            self.with(slot, |session| session.kept = kept);
        }
    }

    #[test]
    fn unused_sessions_go_oldest_first() {
        let (table, mut policy) = (Table::default(), Policy::default());
        (0..3).for_each(|_| _ = table.insert(&mut policy));
        let order: Vec<_> = std::iter::from_fn(|| table.evict(&mut policy)).collect();
        assert_eq!(order, [1, 2, 3]);
    }

    #[test]
    fn what_was_used_at_a_great_age_outlives_a_flood_that_is_used_at_once() {
        let (table, mut policy) = (Table::default(), Policy::default());
        let devices: Vec<_> = (0..80).map(|_| table.insert(&mut policy)).collect();
        table.now.set(7_200_000);
        devices.iter().for_each(|device| table.touch(*device));
        for n in 0..1000 {
            table.now.set(7_200_000 + n * 1000);
            while policy.length() >= 100 {
                assert!(table.evict(&mut policy).is_some_and(|slot| slot > 80));
            }
            let slot = table.insert(&mut policy);
            table.touch(slot);
        }
        assert_eq!(policy.kept.length, 80);
    }

    #[test]
    fn idle_sessions_go_when_evicted_ones_are_asked_for() {
        let (table, mut policy) = (Table::default(), Policy::default());
        let devices: Vec<_> = (0..100).map(|_| table.insert(&mut policy)).collect();
        table.now.set(1000);
        devices.iter().for_each(|device| table.touch(*device));
        // Fresh sessions evict no device.
        for _ in 0..50 {
            table.insert(&mut policy);
            table.evict(&mut policy);
        }
        assert!((85..=92).contains(&policy.kept.length));
        // Lookups of evicted sessions let idle ones go.
        table.now.set(100_000);
        policy.observe(0, 100);
        for _ in 0..20 {
            policy.observe(0, policy.seen_returns + 1);
            table.insert(&mut policy);
            table.evict(&mut policy);
        }
        assert!(policy.kept.length <= 80, "{}", policy.kept.length);
    }

    #[test]
    fn work_is_bounded_and_the_newest_goes_then() {
        let (table, mut policy) = (Table::default(), Policy::default());
        let slots: Vec<_> = (0..1000).map(|_| table.insert(&mut policy)).collect();
        table.now.set(10);
        slots.iter().for_each(|slot| table.touch(*slot));
        assert_eq!(table.evict(&mut policy), Some(1000));
        assert_eq!(policy.kept.length, u64::from(MAX_STEPS));
    }

    #[test]
    fn what_was_settled_before_costs_no_new_session() {
        let (table, mut policy) = (Table::default(), Policy::default());
        let slots: Vec<_> = (0..1000).map(|_| table.insert(&mut policy)).collect();
        table.now.set(10);
        slots.iter().for_each(|slot| table.touch(*slot));
        while policy.settle(&table, 128) {}
        assert_eq!(policy.kept.length, 900);
        let new = table.insert(&mut policy);
        assert!(table.evict(&mut policy).is_some_and(|slot| slot < new.0));
    }

    #[test]
    fn a_moved_session_keeps_its_place() {
        let (table, mut policy) = (Table::default(), Policy::default());
        (0..3).for_each(|_| _ = table.insert(&mut policy));
        for old in [1, 2, 3] {
            let session = table.get(SlotRef(old));
            table.sessions.borrow_mut().push(session);
            let new = SlotRef(table.sessions.borrow().len() as u32);
            policy.moved(&table, SlotRef(old), new);
        }
        let order: Vec<_> = std::iter::from_fn(|| table.evict(&mut policy)).collect();
        assert_eq!(order, [4, 5, 6]);
    }
}
