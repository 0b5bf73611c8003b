//! A few calls of several threads at once, small enough for Miri to run in many schedules, of which it
//! chooses the turns anywhere and not at locks alone. ThreadSanitizer runs them as well.

#![cfg(not(shuttle))]

use rekindle_core::{Join, Limits, Pattern, Registry, ServerStore, SessionKey, Store};
use std::thread;

const ROUNDS: u8 = if cfg!(miri) { 2 } else { 250 };

/// Bounded to few sessions, as an index for many is large. The janitor's clock must not matter.
const FEW: Limits = Limits {
    max_bytes: 1 << 20,
    max_sessions: 3,
    lifetime_ms: 1_000_000,
};

struct Common;

impl Pattern<u8> for Common {
    fn hash(&self) -> u64 {
        0
    }
    fn matches(&self, _: &u8) -> bool {
        true
    }
    fn make(&self) -> Option<(u8, u64)> {
        Some((7, 100))
    }
}

fn insert(store: &ServerStore<u8>, n: u8, secret: u8, tail_len: usize) -> bool {
    let template = store.template(&Common);
    let tail = vec![secret; tail_len];
    let key = SessionKey::Id(&[n; 32]);
    store.insert(key, &[secret; 48], template, &tail, n == 3, 0)
}

fn assert_whole(store: &ServerStore<u8>, n: u8) {
    store.lookup(SessionKey::Id(&[n; 32]), 0, |session| {
        let secret = session.secret[0];
        assert_eq!(session.template, Some(&7));
        assert!(session.secret.iter().all(|byte| *byte == secret));
        assert!(session.tail.iter().all(|byte| *byte == secret));
    });
}

#[test]
fn a_session_is_found_whole_or_not_at_all() {
    let store = ServerStore::new(FEW);
    thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..ROUNDS {
                assert!(insert(&store, 1, round, 10));
                // Too long for a slot.
                assert!(insert(&store, 2, round, 10_000));
                assert!(insert(&store, 3, round, 10));
                assert!(insert(&store, 4, round, 10));
            }
        });
        threads.spawn(|| {
            for _ in 0..ROUNDS {
                (1..5).for_each(|n| assert_whole(&store, n));
                store.for_each_key(|key| assert!(matches!(key, SessionKey::Id(_))));
            }
        });
        threads.spawn(|| {
            for _ in 0..ROUNDS {
                store.delete(SessionKey::Id(&[2; 32]));
                store.trim();
                store.clear(1);
            }
        });
    });
    while store.clear(2) > 0 {}
    assert_eq!((store.sessions(), store.templates()), (0, 0));
}

#[test]
fn the_last_two_holds_on_a_template_are_given_up_at_once() {
    let store = ServerStore::new(Limits {
        max_sessions: 0,
        ..FEW
    });
    for _ in 0..ROUNDS {
        thread::scope(|threads| {
            for n in 1..3 {
                let store = &store;
                threads.spawn(move || assert!(!insert(store, n, n, 0)));
            }
        });
        assert_eq!(store.templates(), 0);
    }
}

#[test]
fn scopes_are_opened_and_dropped_at_once() {
    static REGISTRY: once_cell::sync::Lazy<Registry<u8>> =
        once_cell::sync::Lazy::new(Registry::new);
    for _ in 0..ROUNDS {
        thread::scope(|threads| {
            for (n, join) in [(1, Join::IfOpen), (2, Join::IfOpen), (3, Join::Never)] {
                threads.spawn(move || {
                    let reference = REGISTRY.open_server(b"label", Some(&[n]), join, FEW);
                    let Store::Server(store) = reference.scope().store() else {
                        unreachable!("opened for a server");
                    };
                    assert!(insert(store, n, n, 10));
                    assert!(store.peek(SessionKey::Id(&[n; 32]), 0, |_| ()).is_some());
                });
            }
        });
        assert!(REGISTRY.scopes().is_empty());
        assert!(REGISTRY.sockets(b"label").is_empty());
    }
}
