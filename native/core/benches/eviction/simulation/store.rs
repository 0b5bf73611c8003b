//! The store as a cache of the simulation: every call of the store is in this file.

use super::{Cache, LIFETIME_MS};
use crate::support::id;
use rekindle_core::{Limits, NewSession, ServerStore, SessionKey, BEGIN_MS};

/// The bytes of a session beside its secret, if the bound is in bytes.
const TAIL: usize = 900;

/// Bytes of a certificate: few, so that as many sessions with one have room where bytes are the bound.
const SMALL_CERTIFICATE: usize = 40;

/// How often the janitor comes.
const JANITOR_MS: u64 = 1000;

/// The store itself.
pub struct Rekindle {
    store: ServerStore<()>,
    tail: usize,
    janitor_at_ms: u64,
}

impl Rekindle {
    /// A store with room for this many sessions.
    pub fn of_sessions(room: usize) -> Self {
        Self::new(room as u64, u64::MAX, 0)
    }

    /// A store with room for this many bytes. Its sessions are long, so that there are many of them in a page, but not so
    /// many that a page more or less matters.
    pub fn of_bytes(max_bytes: u64) -> Self {
        Self::new(u64::MAX, max_bytes, TAIL)
    }

    fn new(max_sessions: u64, max_bytes: u64, tail: usize) -> Self {
        let limits = Limits {
            max_bytes,
            max_sessions,
            lifetime_ms: LIFETIME_MS,
        };
        Rekindle {
            store: ServerStore::new(limits),
            tail,
            janitor_at_ms: 0,
        }
    }

    fn tidy(&mut self, now_ms: u64) {
        if now_ms >= self.janitor_at_ms {
            while self.store.tidy(BEGIN_MS + now_ms) {}
            self.janitor_at_ms = now_ms + JANITOR_MS;
        }
    }
}

impl Cache for Rekindle {
    fn insert(&mut self, session: u64, certificate: Option<u64>, now_ms: u64) {
        self.tidy(now_ms);
        let der = certificate.map(|client| {
            let mut der = [3; SMALL_CERTIFICATE];
            der[..8].copy_from_slice(&client.to_ne_bytes());
            der
        });
        let stored = self.store.insert(
            NewSession {
                key: SessionKey::Id(&id(session)),
                secret: &[5; 48],
                template: None,
                certificate: der.as_ref().map(|der| &der[..]),
                tail: &[9; TAIL][..self.tail],
            },
            BEGIN_MS + now_ms,
        );
        assert!(stored.is_ok(), "{stored:?}");
    }

    fn lookup(&mut self, session: u64, now_ms: u64) -> bool {
        self.tidy(now_ms);
        let id = id(session);
        let found = self
            .store
            .lookup(SessionKey::Id(&id), BEGIN_MS + now_ms, |_| ());
        found.is_some()
    }
}

/// The least `max_bytes` with which the store has this many sessions after it was full for long.
pub fn bytes_for(room: usize) -> u64 {
    let holds = |max_bytes| {
        let mut cache = Rekindle::of_bytes(max_bytes);
        for session in 0..3 * room as u64 {
            cache.insert(session, None, 0);
        }
        cache.store.sessions() >= room as u64
    };
    let (mut too_few, mut enough) = ((room * TAIL) as u64, (3 * room * TAIL) as u64);
    assert!(!holds(too_few) && holds(enough));
    while enough - too_few > 1024 {
        let middle = (too_few + enough) / 2;
        match holds(middle) {
            true => enough = middle,
            false => too_few = middle,
        }
    }
    enough
}
