//! Ghosts remember sessions that were evicted recently, or went for another reason: two bytes each, without a lock.
//!
//! A ghost is a part of the hash of a session's key, at a place that another part of the hash chooses. A newer ghost replaces
//! an older one, and two sessions may have the same ghost. So users of ghosts must tolerate a wrong one now and then.

#![allow(unsafe_code)]

use super::pages::Zeroed;
use super::policy::Class;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::*};

/// The two highest bits of a ghost: the class of the session if it was evicted, or that it went for another reason.
const CERTIFIED: u16 = 1 << 15;
const LOST: u16 = 1 << 14;
const KIND: u16 = CERTIFIED | LOST;

/// Whose ghost was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ghost {
    /// A session of this class that was evicted.
    Evicted(Class),
    /// A session that went for another reason: it expired, or somebody dropped it.
    Lost,
}

/// Places that a slice gives back: 64 pages.
const PLACES_PER_SLICE: usize = 64 * Zeroed::<AtomicU16>::FIRST;

pub(crate) struct Ghosts {
    places: Zeroed<AtomicU16>,
    /// How many places are in use. No thread looks at those behind. A thread that reads this without the lock must also see that
    /// the places were mapped.
    length: AtomicUsize,
    /// How many places may have pages. Written under the lock under which ghosts are left.
    reach: AtomicUsize,
}

impl Ghosts {
    pub const fn new() -> Self {
        Ghosts {
            places: Zeroed::new(),
            length: AtomicUsize::new(0),
            reach: AtomicUsize::new(0),
        }
    }

    /// Bytes for the ghosts of this many sessions. They are counted before there are any, so that the first eviction has room.
    pub fn bytes(&self, sessions: u64) -> usize {
        let places = self.reach.load(Relaxed).max(sessions as usize);
        Zeroed::<AtomicU16>::bytes(places)
    }

    /// How many more bytes one more session takes.
    pub fn bytes_to_grow(&self, sessions: u64) -> usize {
        self.bytes(sessions + 1) - self.bytes(sessions)
    }

    /// Leaves a ghost of one of `sessions` sessions.
    pub fn leave(&self, hash: u64, class: Class, sessions: u64) {
        let length = self.fit(sessions as usize);
        if let Some(place) = self.place(hash, length) {
            let class = if class == Class::Certified {
                CERTIFIED
            } else {
                0
            };
            place.store(tag(hash) | class, Relaxed);
        }
    }

    /// Leaves a ghost of one of `sessions` sessions, which was not evicted. It does not replace the ghost of an evicted one,
    /// because the policy needs those.
    pub fn leave_lost(&self, hash: u64, sessions: u64) {
        let length = self.fit(sessions as usize);
        if let Some(place) = self.place(hash, length) {
            let ghost = place.load(Relaxed);
            if ghost == 0 || ghost & KIND == LOST {
                place.store(tag(hash) | LOST, Relaxed);
            }
        }
    }

    /// Takes the ghost of a session away, if there is one.
    pub fn take(&self, hash: u64) -> Option<Ghost> {
        let place = self.place(hash, self.length.load(Acquire))?;
        let ghost = place.load(Relaxed);
        if ghost & !KIND != tag(hash) {
            return None;
        }
        // If two threads ask at once, one of them gets it.
        place.compare_exchange(ghost, 0, Relaxed, Relaxed).ok()?;
        Some(match ghost & KIND {
            LOST => Ghost::Lost,
            0 => Ghost::Evicted(Class::Anonymous),
            _ => Ghost::Evicted(Class::Certified),
        })
    }

    /// Gives back pages that so few sessions do not need, a slice at a time, under the lock under which ghosts are left.
    /// Returns whether there is more to do.
    pub fn trim(&self, sessions: u64) -> bool {
        let sessions = sessions as usize;
        let length = self.length.load(Relaxed);
        let is_much = length > 4 * sessions.max(Zeroed::<AtomicU16>::FIRST);
        if is_much || sessions == 0 {
            self.length.store(sessions, Release);
        }
        let (length, former) = (self.length.load(Relaxed), self.reach.load(Relaxed));
        let reach = former.saturating_sub(PLACES_PER_SLICE).max(length);
        self.reach.store(reach, Relaxed);
        // SAFETY: a thread that still looks there finds zeros, which are no ghost.
        unsafe { self.places.release(reach, former) };
        reach > length
    }

    /// How many places to use for this many sessions: one each. It stays as it is while that is about right, because each
    /// change loses the ghosts that are there.
    fn fit(&self, sessions: usize) -> usize {
        let length = self.length.load(Relaxed);
        if sessions <= length + length / 8 {
            return length;
        }
        if !self.places.reserve(sessions - 1) {
            return length;
        }
        // Chunks double, so all before the last one are needed as well.
        let mut chunk = 1;
        while chunk < sessions {
            if !self.places.reserve(chunk - 1) {
                return length;
            }
            chunk *= 2;
        }
        self.length.store(sessions, Release);
        self.reach.fetch_max(sessions, Relaxed);
        sessions
    }

    fn place(&self, hash: u64, length: usize) -> Option<&AtomicU16> {
        if length == 0 {
            return None;
        }
        let place = ((hash >> 32) * length as u64) >> 32;
        // SAFETY: all places below the length were reserved before it was published; all zeros is an atomic 0.
        Some(unsafe { &*self.places.at(place as usize) })
    }
}

/// The part of the hash that a ghost keeps. Never 0.
fn tag(hash: u64) -> u16 {
    (hash as u16 & !KIND).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64.
    fn hash(n: u64) -> u64 {
        let z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    #[test]
    fn a_ghost_is_taken_once_and_knows_its_class() {
        let ghosts = Ghosts::new();
        assert_eq!(ghosts.take(hash(1)), None);
        ghosts.leave(hash(1), Class::Certified, 1000);
        ghosts.leave(hash(2), Class::Anonymous, 1000);
        let evicted = |class| Some(Ghost::Evicted(class));
        assert_eq!(ghosts.take(hash(1)), evicted(Class::Certified));
        assert_eq!(ghosts.take(hash(1)), None);
        assert_eq!(ghosts.take(hash(2)), evicted(Class::Anonymous));
        ghosts.leave_lost(hash(3), 1000);
        assert_eq!(ghosts.take(hash(3)), Some(Ghost::Lost));
        assert_eq!(ghosts.take(hash(3)), None);
    }

    #[test]
    fn a_ghost_of_an_evicted_session_keeps_its_place() {
        let ghosts = Ghosts::new();
        // All in one place.
        ghosts.leave_lost(hash(1), 1);
        ghosts.leave_lost(hash(2), 1);
        assert_eq!(ghosts.take(hash(2)), Some(Ghost::Lost));
        ghosts.leave(hash(3), Class::Anonymous, 1);
        ghosts.leave_lost(hash(4), 1);
        assert_eq!(ghosts.take(hash(4)), None);
        assert_eq!(ghosts.take(hash(3)), Some(Ghost::Evicted(Class::Anonymous)));
    }

    #[test]
    fn there_is_a_place_for_each_session() {
        let ghosts = Ghosts::new();
        (0..100_000).for_each(|n| ghosts.leave(hash(n), Class::Anonymous, 100_000));
        let found = (0..100_000)
            .filter(|n| ghosts.take(hash(*n)).is_some())
            .count();
        // As many as have a place of their own, by chance.
        assert!((60_000..66_000).contains(&found), "{found}");
        assert!(
            (100_000..200_000)
                .filter(|n| ghosts.take(hash(*n)).is_some())
                .count()
                < 40
        );
        assert!(ghosts.bytes(100_000) < 205_000);
        while ghosts.trim(1_000) {}
        assert!(ghosts.bytes(1_000) <= 4096);
        while ghosts.trim(0) {}
        assert_eq!(ghosts.bytes(0), 0);
    }
}
