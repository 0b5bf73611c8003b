//! Which session goes when one has to: SIEVE (Zhang et al., NSDI 2024).
//!
//! Sessions stand in order of insertion and never move. A lookup only marks a session as visited. A hand
//! goes from the oldest to the newest, takes the mark from those that have one, and evicts the first that
//! has none. So what was used since the hand last came by stays, and a flood of sessions that are used
//! once goes as it came.

use crate::slab::SlotRef;

/// The most marks to take for one caller. The whole order may be marked, and the caller is waiting: then
/// the one the hand has come to goes, marked or not.
pub(crate) const PATIENCE: usize = 256;

/// What the order needs of where the sessions are.
pub(crate) trait Links {
    /// The next newer session.
    fn newer(&self, slot: SlotRef) -> SlotRef;
    /// The next older session.
    fn older(&self, slot: SlotRef) -> SlotRef;
    fn set_newer(&self, slot: SlotRef, newer: SlotRef);
    fn set_older(&self, slot: SlotRef, older: SlotRef);
    /// Takes the mark, and tells if there was one.
    fn take_visited(&self, slot: SlotRef) -> bool;
}

/// Sessions in order of insertion, with the hand.
pub(crate) struct Sieve {
    newest: SlotRef,
    oldest: SlotRef,
    hand: SlotRef,
}

impl Default for Sieve {
    fn default() -> Self {
        Sieve {
            newest: SlotRef::NONE,
            oldest: SlotRef::NONE,
            hand: SlotRef::NONE,
        }
    }
}

impl Sieve {
    /// The session that was inserted first.
    pub fn oldest(&self) -> Option<SlotRef> {
        (self.oldest != SlotRef::NONE).then_some(self.oldest)
    }

    /// Adds a session as the newest.
    pub fn insert(&mut self, links: &impl Links, slot: SlotRef) {
        links.set_newer(slot, SlotRef::NONE);
        links.set_older(slot, self.newest);
        match self.newest {
            SlotRef::NONE => self.oldest = slot,
            newest => links.set_newer(newest, slot),
        }
        self.newest = slot;
    }

    /// Adds a session as the oldest.
    pub fn insert_oldest(&mut self, links: &impl Links, slot: SlotRef) {
        links.set_older(slot, SlotRef::NONE);
        links.set_newer(slot, self.oldest);
        match self.oldest {
            SlotRef::NONE => self.newest = slot,
            oldest => links.set_older(oldest, slot),
        }
        self.oldest = slot;
    }

    /// Takes a session out.
    pub fn remove(&mut self, links: &impl Links, slot: SlotRef) {
        let (newer, older) = (links.newer(slot), links.older(slot));
        match newer {
            SlotRef::NONE => self.newest = older,
            newer => links.set_older(newer, older),
        }
        match older {
            SlotRef::NONE => self.oldest = newer,
            older => links.set_newer(older, newer),
        }
        if self.hand == slot {
            self.hand = newer;
        }
    }

    /// The session to evict. It is still in the order. Each mark that is taken uses up `patience`.
    pub fn victim(&mut self, links: &impl Links, patience: &mut usize) -> Option<SlotRef> {
        let mut slot = self.or_oldest(self.hand)?;
        while *patience > 0 && links.take_visited(slot) {
            *patience -= 1;
            slot = self.or_oldest(links.newer(slot))?;
        }
        self.hand = slot;
        Some(slot)
    }

    /// From the newest the hand goes to the oldest again.
    fn or_oldest(&self, slot: SlotRef) -> Option<SlotRef> {
        match slot {
            SlotRef::NONE => self.oldest(),
            slot => Some(slot),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    /// Slots are places in a vector.
    #[derive(Default)]
    struct Table(RefCell<Vec<(SlotRef, SlotRef, bool)>>);

    impl Links for Table {
        fn newer(&self, slot: SlotRef) -> SlotRef {
            self.0.borrow()[slot.0 as usize].0
        }
        fn older(&self, slot: SlotRef) -> SlotRef {
            self.0.borrow()[slot.0 as usize].1
        }
        fn set_newer(&self, slot: SlotRef, newer: SlotRef) {
            self.0.borrow_mut()[slot.0 as usize].0 = newer;
        }
        fn set_older(&self, slot: SlotRef, older: SlotRef) {
            self.0.borrow_mut()[slot.0 as usize].1 = older;
        }
        fn take_visited(&self, slot: SlotRef) -> bool {
            std::mem::take(&mut self.0.borrow_mut()[slot.0 as usize].2)
        }
    }

    fn filled(number: u32, visited: &[u32]) -> (Table, Sieve) {
        let table = Table::default();
        let mut sieve = Sieve::default();
        for n in 0..number {
            let none = SlotRef::NONE;
            table
                .0
                .borrow_mut()
                .push((none, none, visited.contains(&n)));
            sieve.insert(&table, SlotRef(n));
        }
        (table, sieve)
    }

    fn evict(table: &Table, sieve: &mut Sieve) -> Option<u32> {
        let victim = sieve.victim(table, &mut PATIENCE.clone())?;
        sieve.remove(table, victim);
        Some(victim.0)
    }

    #[test]
    fn unvisited_sessions_go_oldest_first() {
        let (table, mut sieve) = filled(3, &[]);
        let order: Vec<_> = std::iter::from_fn(|| evict(&table, &mut sieve)).collect();
        assert_eq!(order, [0, 1, 2]);
    }

    #[test]
    fn a_visited_session_is_passed_over_once() {
        let (table, mut sieve) = filled(4, &[0, 2]);
        let order: Vec<_> = std::iter::from_fn(|| evict(&table, &mut sieve)).collect();
        assert_eq!(order, [1, 3, 0, 2]);
    }

    #[test]
    fn the_hand_stays_where_it_is_while_sessions_come() {
        let (table, mut sieve) = filled(3, &[0]);
        assert_eq!(evict(&table, &mut sieve), Some(1));
        table
            .0
            .borrow_mut()
            .push((SlotRef::NONE, SlotRef::NONE, false));
        sieve.insert(&table, SlotRef(3));
        assert_eq!(evict(&table, &mut sieve), Some(2));
        assert_eq!(evict(&table, &mut sieve), Some(3));
        assert_eq!(evict(&table, &mut sieve), Some(0));
        assert_eq!(evict(&table, &mut sieve), None);
    }

    #[test]
    fn removing_the_one_under_the_hand_moves_it_on() {
        let (table, mut sieve) = filled(4, &[0]);
        assert_eq!(sieve.victim(&table, &mut 10), Some(SlotRef(1)));
        sieve.remove(&table, SlotRef(1));
        sieve.remove(&table, SlotRef(2));
        assert_eq!(evict(&table, &mut sieve), Some(3));
    }

    #[test]
    fn patience_ends() {
        let all: Vec<u32> = (0..1000).collect();
        let (table, mut sieve) = filled(1000, &all);
        assert_eq!(evict(&table, &mut sieve), Some(PATIENCE as u32));
    }
}
