//! Simpler caches for comparison. They know nothing of certificates.

use crate::simulation::{Cache, LIFETIME_MS};
use std::collections::{BTreeMap, HashMap, VecDeque};

/// Which session a [`Simple`] cache drops when it is full of sessions that have not expired.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Policy {
    /// The session that was inserted first.
    Fifo,
    /// The session that was not used for the longest time.
    Lru,
    /// The next one under the hand that was not used since the hand last came by. The hand passes over
    /// [`MAX_PASSED_SESSIONS`] sessions at most.
    Sieve,
}

/// A server cannot let one insertion wait until the hand has passed over all sessions.
const MAX_PASSED_SESSIONS: usize = 256;

/// A cache that drops expired sessions first, and then by its policy.
pub struct Simple {
    policy: Policy,
    room: usize,
    entries: HashMap<u64, Entry>,
    /// Sessions by place: the next one to go is first, and for SIEVE at the hand or after it.
    order: BTreeMap<u64, u64>,
    /// Sessions by birth, those that are gone included.
    births: VecDeque<(u64, u64)>,
    /// The place that SIEVE looks at next.
    hand: u64,
    next_place: u64,
}

struct Entry {
    born_ms: u64,
    place: u64,
    visited: bool,
}

impl Simple {
    /// A cache with room for `room` sessions.
    pub fn new(policy: Policy, room: usize) -> Self {
        Simple {
            policy,
            room,
            entries: HashMap::new(),
            order: BTreeMap::new(),
            births: VecDeque::new(),
            hand: 0,
            next_place: 0,
        }
    }

    /// A cache without a bound.
    pub fn unbounded() -> Self {
        Simple::new(Policy::Fifo, usize::MAX)
    }

    fn new_place(&mut self, session: u64) -> u64 {
        self.next_place += 1;
        self.order.insert(self.next_place, session);
        self.next_place
    }

    fn drop_expired(&mut self, now_ms: u64) {
        while let Some(&(born_ms, session)) = self.births.front() {
            if !is_expired(born_ms, now_ms) {
                break;
            }
            self.births.pop_front();
            self.remove(session);
        }
    }

    fn victim(&mut self) -> u64 {
        let first = |order: &BTreeMap<u64, u64>| *order.values().next().expect("is full");
        if self.policy != Policy::Sieve {
            return first(&self.order);
        }
        let mut passes_left = MAX_PASSED_SESSIONS;
        loop {
            let under_hand = self.order.range(self.hand..).next();
            let session = under_hand.map_or_else(|| first(&self.order), |(_, session)| *session);
            let entry = self.entries.get_mut(&session).expect("is in the order");
            let newer = self.order.range(entry.place + 1..).next();
            self.hand = newer.map_or(0, |(place, _)| *place);
            if passes_left == 0 || !std::mem::take(&mut entry.visited) {
                return session;
            }
            passes_left -= 1;
        }
    }

    fn remove(&mut self, session: u64) {
        if let Some(entry) = self.entries.remove(&session) {
            self.order.remove(&entry.place);
        }
    }
}

impl Cache for Simple {
    fn insert(&mut self, session: u64, _certificate: Option<u64>, now_ms: u64) {
        self.drop_expired(now_ms);
        while self.entries.len() >= self.room {
            let victim = self.victim();
            self.remove(victim);
        }
        let entry = Entry {
            born_ms: now_ms,
            place: self.new_place(session),
            visited: false,
        };
        self.entries.insert(session, entry);
        self.births.push_back((now_ms, session));
    }

    fn lookup(&mut self, session: u64, now_ms: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&session) else {
            return false;
        };
        if is_expired(entry.born_ms, now_ms) {
            return false;
        }
        entry.visited = true;
        if self.policy == Policy::Lru {
            let old = entry.place;
            let new = self.new_place(session);
            self.order.remove(&old);
            self.entries
                .entry(session)
                .and_modify(|entry| entry.place = new);
        }
        true
    }
}

fn is_expired(born_ms: u64, now_ms: u64) -> bool {
    now_ms - born_ms >= LIFETIME_MS
}
