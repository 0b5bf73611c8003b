use crate::{Counters, Secret};
use dashmap::DashMap;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

/// What a server session is found by.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SessionKey {
    /// A session id as OTP makes them: 32 random bytes.
    Id([u8; 32]),
    /// Anything else, in the caller's encoding.
    Other(Box<[u8]>),
}

impl SessionKey {
    fn heap_bytes(&self) -> usize {
        match self {
            SessionKey::Id(_) => 0,
            SessionKey::Other(bytes) => bytes.len(),
        }
    }
}

/// Bounds of one scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes to hold, keys and book-keeping included.
    pub max_bytes: u64,
    /// Most sessions to hold; `u64::MAX` means no bound.
    pub max_sessions: u64,
    /// How long a session may be handed out, in milliseconds. 0 keeps nothing.
    pub lifetime_ms: u64,
}

/// Bytes an entry costs beside its key's and session's own: its places in the index and in the
/// order, and the allocations' headers.
const ENTRY_OVERHEAD: usize = 192;

/// The sessions of a server scope: bounded in bytes and in number, oldest out first, never handed
/// out after their lifetime.
///
/// Lookups take only a read lock on one shard of the index. Writers take the `order` lock first and
/// a shard's lock under it, never the other way round.
pub struct ServerStore {
    index: DashMap<SessionKey, Entry>,
    order: Mutex<Order>,
    sessions: AtomicU64,
    bytes: AtomicU64,
    max_bytes: AtomicU64,
    max_sessions: AtomicU64,
    lifetime_ms: AtomicU64,
    counters: Counters,
}

struct Entry {
    session: Arc<Secret>,
    age: u64,
    expires_ms: u64,
}

/// Keys in order of insertion. With one lifetime for the scope that is the order of expiry, too.
#[derive(Default)]
struct Order {
    next: u64,
    by_age: BTreeMap<u64, SessionKey>,
}

impl ServerStore {
    /// An empty store.
    pub fn new(limits: Limits) -> Self {
        ServerStore {
            index: DashMap::new(),
            order: Mutex::default(),
            sessions: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            max_bytes: AtomicU64::new(limits.max_bytes),
            max_sessions: AtomicU64::new(limits.max_sessions),
            lifetime_ms: AtomicU64::new(limits.lifetime_ms),
            counters: Counters::default(),
        }
    }

    /// The bounds in force.
    pub fn limits(&self) -> Limits {
        Limits {
            max_bytes: self.max_bytes.load(Relaxed),
            max_sessions: self.max_sessions.load(Relaxed),
            lifetime_ms: self.lifetime_ms.load(Relaxed),
        }
    }

    /// Puts new bounds in force. They are kept from the next insertion on; a new lifetime is that of
    /// the sessions inserted from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.max_bytes.store(limits.max_bytes, Relaxed);
        self.max_sessions.store(limits.max_sessions, Relaxed);
        self.lifetime_ms.store(limits.lifetime_ms, Relaxed);
    }

    /// What happened in this store.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many sessions are held.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Relaxed)
    }

    /// How many bytes are held.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// Stores `session`, in place of one that may be there, and evicts the oldest sessions while a
    /// bound is exceeded. `false` if this session alone exceeds a bound or would be expired at once.
    pub fn insert(&self, key: SessionKey, session: Secret, now_ms: u64) -> bool {
        let limits = self.limits();
        let cost = cost(&key, &session);
        if cost > limits.max_bytes || limits.max_sessions == 0 || limits.lifetime_ms == 0 {
            Counters::add(&self.counters.refused);
            return false;
        }
        let mut order = self.order.lock();
        let age = order.next;
        order.next += 1;
        let entry = Entry {
            session: Arc::new(session),
            age,
            expires_ms: now_ms.saturating_add(limits.lifetime_ms),
        };
        self.sessions.fetch_add(1, Relaxed);
        self.bytes.fetch_add(cost, Relaxed);
        order.by_age.insert(age, key.clone());
        if let Some(old) = self.index.insert(key.clone(), entry) {
            order.by_age.remove(&old.age);
            self.forget(&key, &old);
        }
        Counters::add(&self.counters.inserts);
        while self.bytes() > limits.max_bytes || self.sessions() > limits.max_sessions {
            self.drop_oldest(&mut order, now_ms);
        }
        true
    }

    /// The session under `key`, unless its lifetime has run out. Counted as a hit or a miss.
    pub fn lookup(&self, key: &SessionKey, now_ms: u64) -> Option<Arc<Secret>> {
        let found = self.peek(key, now_ms);
        Counters::add(match found {
            Some(_) => &self.counters.hits,
            None => &self.counters.misses,
        });
        found
    }

    /// As [`lookup`](Self::lookup), but not counted.
    pub fn peek(&self, key: &SessionKey, now_ms: u64) -> Option<Arc<Secret>> {
        let entry = self.index.get(key)?;
        (now_ms < entry.expires_ms).then(|| Arc::clone(&entry.session))
    }

    /// Drops the session under `key`.
    pub fn delete(&self, key: &SessionKey) {
        let mut order = self.order.lock();
        if let Some((key, entry)) = self.index.remove(key) {
            order.by_age.remove(&entry.age);
            self.forget(&key, &entry);
        }
    }

    /// Drops at most `slice` sessions whose lifetime has run out, and returns how many.
    pub fn expire(&self, now_ms: u64, slice: usize) -> usize {
        let mut order = self.order.lock();
        let mut dropped = 0;
        while dropped < slice && self.oldest_is_expired(&order, now_ms) {
            self.drop_oldest(&mut order, now_ms);
            dropped += 1;
        }
        dropped
    }

    /// Drops at most `slice` sessions, oldest first, and returns how many.
    pub fn clear(&self, slice: usize) -> usize {
        let mut order = self.order.lock();
        let mut dropped = 0;
        while dropped < slice {
            let Some((_, key)) = order.by_age.pop_first() else {
                break;
            };
            if let Some((key, entry)) = self.index.remove(&key) {
                self.forget(&key, &entry);
            }
            dropped += 1;
        }
        dropped
    }

    /// All keys, oldest first.
    pub fn keys(&self) -> Vec<SessionKey> {
        self.order.lock().by_age.values().cloned().collect()
    }

    fn oldest_is_expired(&self, order: &Order, now_ms: u64) -> bool {
        order
            .by_age
            .first_key_value()
            .and_then(|(_, key)| self.index.get(key))
            .is_some_and(|entry| entry.expires_ms <= now_ms)
    }

    fn drop_oldest(&self, order: &mut Order, now_ms: u64) {
        let Some((_, key)) = order.by_age.pop_first() else {
            return;
        };
        if let Some((key, entry)) = self.index.remove(&key) {
            self.forget(&key, &entry);
            Counters::add(if entry.expires_ms <= now_ms {
                &self.counters.expired
            } else {
                &self.counters.evicted
            });
        }
    }

    fn forget(&self, key: &SessionKey, entry: &Entry) {
        self.sessions.fetch_sub(1, Relaxed);
        self.bytes.fetch_sub(cost(key, &entry.session), Relaxed);
    }
}

fn cost(key: &SessionKey, session: &Secret) -> u64 {
    // The key stands in the index and in the order.
    (ENTRY_OVERHEAD + 2 * key.heap_bytes() + session.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(max_bytes: u64, max_sessions: u64, lifetime_ms: u64) -> ServerStore {
        ServerStore::new(Limits {
            max_bytes,
            max_sessions,
            lifetime_ms,
        })
    }

    fn id(n: u8) -> SessionKey {
        SessionKey::Id([n; 32])
    }

    fn session(n: u8) -> Secret {
        Secret::new(&[n; 100])
    }

    fn held(store: &ServerStore, n: u8, now_ms: u64) -> Option<u8> {
        store.peek(&id(n), now_ms).map(|found| found.expose()[0])
    }

    #[test]
    fn hands_out_what_was_inserted_and_counts() {
        let store = store(u64::MAX, u64::MAX, 1000);
        assert!(store.insert(id(1), session(7), 0));
        assert_eq!(store.lookup(&id(1), 0).unwrap().expose(), &[7; 100]);
        assert!(store.lookup(&id(2), 0).is_none());
        let counts = store.counters().read();
        assert_eq!((counts.inserts, counts.hits, counts.misses), (1, 1, 1));
    }

    #[test]
    fn the_oldest_goes_when_there_are_too_many() {
        let store = store(u64::MAX, 2, 1000);
        for n in 1..=3 {
            store.insert(id(n), session(n), 0);
        }
        assert_eq!(store.sessions(), 2);
        assert_eq!(held(&store, 1, 0), None);
        assert_eq!(held(&store, 3, 0), Some(3));
        assert_eq!(store.counters().read().evicted, 1);
    }

    #[test]
    fn the_oldest_goes_when_they_are_too_large() {
        let one = cost(&id(1), &session(1));
        let store = store(2 * one, u64::MAX, 1000);
        for n in 1..=3 {
            store.insert(id(n), session(n), 0);
        }
        assert_eq!((store.sessions(), store.bytes()), (2, 2 * one));
        assert!(!store.insert(id(4), Secret::new(&vec![0; 1000]), 0));
        assert_eq!((store.sessions(), store.counters().read().refused), (2, 1));
    }

    #[test]
    fn replacing_keeps_one_session_and_its_new_age() {
        let store = store(u64::MAX, 2, 1000);
        store.insert(id(1), session(1), 0);
        store.insert(id(2), session(2), 0);
        store.insert(id(1), session(9), 0);
        assert_eq!((store.sessions(), store.keys()), (2, vec![id(2), id(1)]));
        store.insert(id(3), session(3), 0);
        assert_eq!(held(&store, 2, 0), None);
        assert_eq!(held(&store, 1, 0), Some(9));
    }

    #[test]
    fn an_expired_session_is_never_handed_out() {
        let store = store(u64::MAX, u64::MAX, 1000);
        store.insert(id(1), session(1), 0);
        assert_eq!(held(&store, 1, 999), Some(1));
        assert_eq!(held(&store, 1, 1000), None);
        assert_eq!((store.sessions(), store.expire(1000, 10)), (1, 1));
        assert_eq!((store.sessions(), store.bytes()), (0, 0));
        assert_eq!(store.counters().read().expired, 1);
    }

    #[test]
    fn a_lifetime_of_nothing_keeps_nothing() {
        let store = store(u64::MAX, u64::MAX, 0);
        assert!(!store.insert(id(1), session(1), 0));
        assert_eq!(store.sessions(), 0);
    }

    #[test]
    fn expiry_and_clearing_go_in_slices() {
        let store = store(u64::MAX, u64::MAX, 1000);
        for n in 0..10 {
            store.insert(id(n), session(n), 0);
        }
        assert_eq!((store.expire(1000, 4), store.sessions()), (4, 6));
        assert_eq!((store.clear(4), store.clear(4), store.clear(4)), (4, 2, 0));
        assert_eq!((store.sessions(), store.bytes()), (0, 0));
    }
}
