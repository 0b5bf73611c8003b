use crate::{Counters, Secret};
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

/// How long a deleted session stays findable for a handshake that already offered it.
const LINGER_MS: u64 = 5_000;

/// Most deleted sessions to keep findable at a time.
const MAX_LINGERING: usize = 1_024;

/// The sessions of a client manager, exactly as it stored them. The store has no bound and no expiry, because the manager's
/// own book-keeping does both, and fails if the two differ.
///
/// A connection that offered a session to its server looks it up again when the server agrees. If the session was deleted in
/// between, that handshake fails. So a caller that chose a session before it was deleted can still find it for a moment. No
/// other caller can: a session may be deleted because it must not be resumed.
pub struct ClientStore {
    sessions: RwLock<Sessions>,
    bytes: AtomicU64,
    /// Written while `sessions` is locked.
    deletions: AtomicU64,
    counters: Counters,
}

#[derive(Default)]
struct Sessions {
    live: BTreeMap<Box<[u8]>, Live>,
    inserted: u64,
    lingering: HashMap<Box<[u8]>, Lingering>,
}

struct Live {
    session: Arc<Secret>,
    age: u64,
}

struct Lingering {
    session: Arc<Secret>,
    until_ms: u64,
    /// The store's deletions up to this one.
    deletions: u64,
}

impl ClientStore {
    /// An empty store.
    pub fn new() -> Self {
        ClientStore {
            sessions: RwLock::default(),
            bytes: AtomicU64::new(0),
            deletions: AtomicU64::new(0),
            counters: Counters::default(),
        }
    }

    /// The events in this store.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many sessions are held, lingering ones not counted.
    pub fn sessions(&self) -> u64 {
        self.sessions.read().live.len() as u64
    }

    /// How many bytes of keys and sessions are held, lingering ones not counted.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }

    /// How many sessions were deleted so far. It serves as the time at which a caller chooses a session.
    pub fn deletions(&self) -> u64 {
        self.deletions.load(Relaxed)
    }

    /// Stores `session`, and replaces one under the same key.
    pub fn insert(&self, key: &[u8], session: Secret) {
        let cost = cost(key, &session);
        let mut sessions = self.sessions.write();
        sessions.lingering.remove(key);
        sessions.inserted += 1;
        let live = Live {
            session: Arc::new(session),
            age: sessions.inserted,
        };
        self.bytes.fetch_add(cost, Relaxed);
        if let Some(old) = sessions.live.insert(Box::from(key), live) {
            self.forget(key, &old.session);
        }
        Counters::add(&self.counters.inserts);
    }

    /// The session under `key`; also one that was deleted a moment ago, if the caller chose it before, when there were
    /// `chosen_at` deletions. Counted as a hit or a miss. `now_ms` is by [`now_ms`](crate::now_ms).
    pub fn lookup(&self, key: &[u8], chosen_at: Option<u64>, now_ms: u64) -> Option<Arc<Secret>> {
        let sessions = self.sessions.read();
        let lingering = || {
            let lingering = sessions.lingering.get(key)?;
            let was_chosen = chosen_at.is_some_and(|at| at < lingering.deletions);
            (was_chosen && now_ms < lingering.until_ms).then_some(&lingering.session)
        };
        let live = sessions.live.get(key).map(|live| &live.session);
        let found = live.or_else(lingering);
        let lookups = self.counters.lookups.common();
        Counters::add(match found {
            Some(_) => &lookups.hits,
            None => &lookups.misses,
        });
        found.cloned()
    }

    /// The live session under `key`. Not counted.
    pub fn peek(&self, key: &[u8]) -> Option<Arc<Secret>> {
        let sessions = self.sessions.read();
        sessions.live.get(key).map(|live| Arc::clone(&live.session))
    }

    /// The sessions whose keys begin with `prefix`, newest first. The caller tries them in this order, and a server that was
    /// restarted knows only the newest.
    pub fn select(&self, prefix: &[u8]) -> Vec<Arc<Secret>> {
        let sessions = self.sessions.read();
        let mut selected: Vec<&Live> = sessions
            .live
            .range::<[u8], _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, live)| live)
            .collect();
        selected.sort_unstable_by_key(|live| std::cmp::Reverse(live.age));
        selected
            .into_iter()
            .map(|live| Arc::clone(&live.session))
            .collect()
    }

    /// Deletes the session under `key`. It lingers for callers that have chosen it.
    pub fn delete(&self, key: &[u8], now_ms: u64) {
        let mut sessions = self.sessions.write();
        if let Some((key, Live { session, .. })) = sessions.live.remove_entry(key) {
            self.forget(&key, &session);
            let deletions = self.deletions.fetch_add(1, Relaxed) + 1;
            if sessions.lingering.len() < MAX_LINGERING {
                let lingering = Lingering {
                    session,
                    until_ms: now_ms + LINGER_MS,
                    deletions,
                };
                sessions.lingering.insert(key, lingering);
            }
        }
    }

    /// Drops the deleted sessions that have lingered long enough.
    pub fn expire(&self, now_ms: u64) {
        self.sessions
            .write()
            .lingering
            .retain(|_, lingering| now_ms < lingering.until_ms);
    }

    /// Drops everything, and returns how many sessions it dropped.
    pub fn clear(&self) -> u64 {
        let dropped = std::mem::take(&mut *self.sessions.write());
        for (key, live) in &dropped.live {
            self.forget(key, &live.session);
        }
        dropped.live.len() as u64
    }

    /// All keys, in order.
    pub fn keys(&self) -> Vec<Box<[u8]>> {
        self.sessions.read().live.keys().cloned().collect()
    }

    fn forget(&self, key: &[u8], session: &Secret) {
        self.bytes.fetch_sub(cost(key, session), Relaxed);
    }
}

impl Default for ClientStore {
    fn default() -> Self {
        Self::new()
    }
}

fn cost(key: &[u8], session: &Secret) -> u64 {
    (key.len() + session.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::option;
    use proptest::prelude::*;

    fn exposed(found: Option<Arc<Secret>>) -> Option<Vec<u8>> {
        found.map(|session| session.expose().to_vec())
    }

    #[test]
    fn keeps_exactly_what_is_stored() {
        let store = ClientStore::new();
        for n in 0..200u8 {
            store.insert(&[n], Secret::new(&[n]));
        }
        store.insert(&[7], Secret::new(&[70]));
        assert_eq!((store.sessions(), store.bytes()), (200, 400));
        assert_eq!(exposed(store.lookup(&[7], None, 0)), Some(vec![70]));
        assert_eq!(store.keys().len(), 200);
        store.clear();
        assert_eq!((store.sessions(), store.bytes()), (0, 0));
    }

    #[test]
    fn a_deleted_session_lingers_for_those_who_have_chosen_it() {
        let store = ClientStore::new();
        store.insert(b"k", Secret::new(b"s"));
        let before = Some(store.deletions());
        store.delete(b"k", 0);
        let after = Some(store.deletions());
        assert_eq!((store.sessions(), store.bytes()), (0, 0));
        assert!(store.lookup(b"k", None, 1).is_none());
        assert!(store.lookup(b"k", after, 1).is_none());
        assert!(store.select(b"k").is_empty());
        assert_eq!(exposed(store.lookup(b"k", before, 1)), Some(b"s".to_vec()));
        assert!(store.lookup(b"k", before, LINGER_MS).is_none());
        store.expire(LINGER_MS);
        assert!(store.lookup(b"k", before, 1).is_none());
    }

    #[test]
    fn who_chose_after_the_store_was_cleared_finds_what_is_deleted_later() {
        let store = ClientStore::new();
        store.insert(b"k", Secret::new(b"old"));
        store.delete(b"k", 0);
        let before = Some(store.deletions());
        store.clear();
        store.insert(b"k", Secret::new(b"new"));
        store.delete(b"k", 0);
        assert_eq!(
            exposed(store.lookup(b"k", before, 1)),
            Some(b"new".to_vec())
        );
    }

    #[test]
    fn storing_again_ends_the_lingering() {
        let store = ClientStore::new();
        store.insert(b"k", Secret::new(b"old"));
        store.delete(b"k", 0);
        store.insert(b"k", Secret::new(b"new"));
        assert_eq!(
            exposed(store.lookup(b"k", Some(0), 1)),
            Some(b"new".to_vec())
        );
    }

    #[test]
    fn selects_by_prefix_newest_first() {
        let store = ClientStore::new();
        for key in [&b"a2"[..], b"a1", b"b1", b"a3"] {
            store.insert(key, Secret::new(key));
        }
        let selected: Vec<_> = store
            .select(b"a")
            .into_iter()
            .map(|s| exposed(Some(s)))
            .collect();
        assert_eq!(
            selected,
            [b"a3", b"a1", b"a2"].map(|key| Some(key.to_vec()))
        );
        assert!(store.select(b"c").is_empty());
    }

    #[derive(Debug, Clone)]
    enum Call {
        Insert(Vec<u8>, Vec<u8>),
        Lookup(Vec<u8>, Option<usize>),
        Select(Vec<u8>),
        Delete(Vec<u8>),
        Expire,
        Clear,
        Pass(u64),
    }

    fn call() -> impl Strategy<Value = Call> {
        // Few enough that keys come again and are the beginnings of others.
        let key = || vec(0..3u8, 0..4);
        prop_oneof![
            8 => (key(), vec(any::<u8>(), 0..5)).prop_map(|(key, session)| Call::Insert(key, session)),
            8 => (key(), option::of(0..4usize)).prop_map(|(key, chosen_ago)| Call::Lookup(key, chosen_ago)),
            3 => key().prop_map(Call::Select),
            5 => key().prop_map(Call::Delete),
            1 => Just(Call::Expire),
            1 => Just(Call::Clear),
            3 => (0..LINGER_MS).prop_map(Call::Pass),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 4 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Compares the store with a list of live sessions, oldest first, and one of deleted ones. A session was chosen some
        /// deletions ago.
        #[test]
        fn agrees_with_two_lists(calls in vec(call(), 1..200)) {
            let store = ClientStore::new();
            let mut live: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
            let mut lingering: Vec<(Vec<u8>, Vec<u8>, u64, u64)> = Vec::new();
            let mut deletions = 0u64;
            let mut now_ms = 0;
            for call in calls {
                match call {
                    Call::Insert(key, session) => {
                        store.insert(&key, Secret::new(&session));
                        live.retain(|(other, _)| *other != key);
                        lingering.retain(|(other, ..)| *other != key);
                        live.push((key, session));
                    }
                    Call::Lookup(key, chosen_ago) => {
                        let chosen_at = chosen_ago.map(|ago| deletions.saturating_sub(ago as u64));
                        let is_live = live.iter().find(|(other, _)| *other == key);
                        let lingers = |(other, _, until, deleted): &&(Vec<u8>, Vec<u8>, u64, u64)| {
                            chosen_at.is_some_and(|at| at < *deleted) && *other == key && now_ms < *until
                        };
                        let expected = is_live
                            .map(|(_, session)| session)
                            .or_else(|| lingering.iter().find(lingers).map(|(_, session, ..)| session));
                        prop_assert_eq!(exposed(store.lookup(&key, chosen_at, now_ms)), expected.cloned());
                        prop_assert_eq!(exposed(store.peek(&key)), is_live.map(|(_, s)| s.clone()));
                    }
                    Call::Select(prefix) => {
                        let newest_first = live.iter().rev().filter(|(key, _)| key.starts_with(&prefix));
                        let expected: Vec<_> = newest_first.map(|(_, session)| session.clone()).collect();
                        let selected = store.select(&prefix);
                        let selected: Vec<_> = selected.iter().map(|s| s.expose().to_vec()).collect();
                        prop_assert_eq!(selected, expected);
                    }
                    Call::Delete(key) => {
                        store.delete(&key, now_ms);
                        if let Some(place) = live.iter().position(|(other, _)| *other == key) {
                            let (key, session) = live.remove(place);
                            deletions += 1;
                            lingering.push((key, session, now_ms + LINGER_MS, deletions));
                        }
                    }
                    Call::Expire => store.expire(now_ms),
                    Call::Clear => {
                        store.clear();
                        live.clear();
                        lingering.clear();
                    }
                    Call::Pass(ms) => now_ms += ms,
                }
                let bytes: usize = live.iter().map(|(key, session)| key.len() + session.len()).sum();
                prop_assert_eq!((store.sessions(), store.bytes()), (live.len() as u64, bytes as u64));
                prop_assert_eq!(store.deletions(), deletions);
                let mut keys: Vec<_> = live.iter().map(|(key, _)| key.clone().into_boxed_slice()).collect();
                keys.sort();
                prop_assert_eq!(store.keys(), keys);
            }
            store.expire(now_ms + LINGER_MS);
            prop_assert!(store.sessions.read().lingering.is_empty());
        }
    }
}
