//! Which sessions were evicted not long ago: two bytes each, without a lock.
//!
//! A ghost is a part of the hash of a session's key, in a place that another part chooses. A newer one takes an
//! older one's place, and two may be alike: what is made of ghosts has to live with one that is wrong now and then.

#![allow(unsafe_code)]

use super::pages::Zeroed;
use super::policy::Class;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering::Relaxed};

/// The highest bit of a ghost tells the class of the session.
const CERTIFIED: u16 = 1 << 15;

/// Places that one slice gives back: 64 pages.
const PLACES_PER_SLICE: usize = 64 * Zeroed::<AtomicU16>::FIRST;

pub(crate) struct Ghosts {
    places: Zeroed<AtomicU16>,
    /// How many places are in use. Nobody looks at those behind.
    length: AtomicUsize,
    /// How many places may have pages. Under the lock under which ghosts are left.
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

    /// What ghosts of so many sessions take: counted before there are any, so that the first eviction has room.
    pub fn bytes(&self, sessions: u64) -> usize {
        let places = self.reach.load(Relaxed).max(sessions as usize);
        Zeroed::<AtomicU16>::bytes(places)
    }

    /// What one more session takes.
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

    /// Takes the ghost of a session, and tells its class, if there is one.
    pub fn take(&self, hash: u64) -> Option<Class> {
        let place = self.place(hash, self.length.load(Relaxed))?;
        let ghost = place.load(Relaxed);
        if ghost & !CERTIFIED != tag(hash) {
            return None;
        }
        // One of two that ask at once has it.
        place.compare_exchange(ghost, 0, Relaxed, Relaxed).ok()?;
        Some(match ghost & CERTIFIED {
            0 => Class::Anonymous,
            _ => Class::Certified,
        })
    }

    /// Gives back what so few sessions do not need, a slice at a time, under the lock under which ghosts are left. Tells
    /// whether there is more to do.
    pub fn trim(&self, sessions: u64) -> bool {
        let sessions = sessions as usize;
        let length = self.length.load(Relaxed);
        let is_much = length > 4 * sessions.max(Zeroed::<AtomicU16>::FIRST);
        if is_much || sessions == 0 {
            self.length.store(sessions, Relaxed);
        }
        let (length, former) = (self.length.load(Relaxed), self.reach.load(Relaxed));
        let reach = former.saturating_sub(PLACES_PER_SLICE).max(length);
        self.reach.store(reach, Relaxed);
        // SAFETY: whoever still looks there finds no ghost.
        unsafe { self.places.release(reach, former) };
        reach > length
    }

    /// How many places to use for so many sessions: one each, and as before while that is about right, because
    /// the ghosts of before are lost with each change.
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
        self.length.store(sessions, Relaxed);
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

/// Never 0 but for the bit of the class.
fn tag(hash: u64) -> u16 {
    (hash as u16 & !CERTIFIED).max(1)
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
        assert_eq!(ghosts.take(hash(1)), Some(Class::Certified));
        assert_eq!(ghosts.take(hash(1)), None);
        assert_eq!(ghosts.take(hash(2)), Some(Class::Anonymous));
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
                < 20
        );
        assert!(ghosts.bytes(100_000) < 205_000);
        while ghosts.trim(1_000) {}
        assert!(ghosts.bytes(1_000) <= 4096);
        while ghosts.trim(0) {}
        assert_eq!(ghosts.bytes(0), 0);
    }
}
