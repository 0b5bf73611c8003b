//! A few calls of several threads at once. They are few enough for Miri to run them in many schedules, in which threads take
//! turns anywhere and not only at locks. ThreadSanitizer runs them as well.

#![cfg(not(shuttle))]

mod common;

use common::Common;
use rekindle_core::{Join, Limits, NewSession, Registry, Selector, ServerStore, SessionKey, Store};
use std::thread;

const ROUNDS: u8 = if cfg!(miri) { 2 } else { 250 };

/// Bounded to few sessions, as an index for many is large. The janitor's clock must not matter.
const FEW: Limits = Limits {
    max_bytes: 1 << 20,
    max_sessions: 3,
    lifetime_ms: 1_000_000,
};

fn insert(store: &ServerStore<u8>, n: u8, secret: u8, tail_len: usize) -> bool {
    insert_certified(store, n, secret, tail_len, None)
}

fn insert_certified(
    store: &ServerStore<u8>,
    n: u8,
    secret: u8,
    tail_len: usize,
    certificate: Option<&[u8]>,
) -> bool {
    let id = [n; 32];
    let session = NewSession {
        key: SessionKey::Id(&id),
        secret: &[secret; 48],
        template: store.template(&Common(7)),
        certificate,
        tail: &vec![secret; tail_len],
    };
    store.insert(session, 0).is_ok()
}

/// Checks that all parts of a session come from one insertion, and that its certificate belongs to its key.
fn assert_whole(store: &ServerStore<u8>, n: u8) {
    store.lookup(SessionKey::Id(&[n; 32]), 0, |session| {
        let secret = session.secret[0];
        assert_eq!(session.template.map(|template| **template), Some(7));
        assert!(session.secret.iter().all(|byte| *byte == secret));
        assert!(session.tail.iter().all(|byte| *byte == secret));
        if let Some(certificate) = session.certificate {
            assert!(certificate.der().iter().all(|byte| *byte == n));
        }
    });
}

#[test]
fn a_session_is_found_whole_or_not_at_all() {
    let store = ServerStore::new(FEW);
    thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..ROUNDS {
                assert!(insert(&store, 1, round, 10));
                assert!(insert(&store, 2, round, 1_000));
                assert!(insert_certified(&store, 3, round, 10, Some(&[3; 60])));
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
                store.tidy(0);
                store.clear(1);
            }
        });
    });
    while store.clear(2) > 0 {}
    assert_eq!((store.sessions(), store.templates()), (0, 0));
    assert_eq!(store.certificates(), 0);
}

/// The index doubles and halves, and sessions of two sizes are moved together, under those who look them up.
#[test]
fn lookups_find_what_stays_while_the_index_grows_and_sessions_are_moved() {
    let store = ServerStore::new(Limits {
        max_sessions: u64::MAX,
        ..FEW
    });
    // With a larger page there would be no second one here.
    let others = if cfg!(miri) { 20 } else { 120 };
    let stays = |n: u8| n % 10 == 0;
    for n in (0..others).filter(|n| stays(*n)) {
        assert!(insert_certified(&store, n, 1, 300, Some(&[n; 100])));
    }
    thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..ROUNDS {
                for n in (0..others).filter(|n| !stays(*n)) {
                    assert!(insert(&store, n, round, usize::from(n % 2) * 300));
                }
                for n in (0..others).filter(|n| !stays(*n)) {
                    store.delete(SessionKey::Id(&[n; 32]));
                }
                while store.tidy(0) {}
            }
        });
        threads.spawn(|| {
            for _ in 0..ROUNDS {
                for n in (0..others).filter(|n| stays(*n)) {
                    assert_whole(&store, n);
                    assert!(store.peek(SessionKey::Id(&[n; 32]), 0, |_| ()).is_some());
                }
            }
        });
        threads.spawn(|| {
            for _ in 0..ROUNDS {
                let (mut met, mut from) = (0, Some(0));
                while let Some(position) = from {
                    from = store.page(position, 5, 0, |listed| {
                        met += u8::from(listed.is_certified);
                    });
                }
                assert_eq!(met, others.div_ceil(10));
            }
        });
    });
}

#[test]
fn sessions_are_revoked_while_others_come() {
    let store = ServerStore::new(Limits {
        max_sessions: u64::MAX,
        ..FEW
    });
    thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..ROUNDS {
                for n in 0..4 {
                    assert!(insert_certified(&store, n, round, 0, Some(&[n; 50])));
                }
            }
        });
        threads.spawn(|| {
            for _ in 0..ROUNDS {
                store.revoke(&[Selector::Sha1(&[0; 20]), Selector::Issuer(b"nobody")]);
                (0..4).for_each(|n| assert_whole(&store, n));
            }
        });
    });
    assert_eq!((store.sessions(), store.certificates()), (4, 4));
}

/// The links between sessions change while other threads read the sessions.
#[test]
fn sessions_of_one_certificate_come_and_go_while_another_is_read() {
    let store = ServerStore::new(Limits {
        max_sessions: u64::MAX,
        ..FEW
    });
    let der = [0; 50];
    assert!(insert_certified(&store, 0, 0, 0, Some(&der)));
    thread::scope(|threads| {
        threads.spawn(|| {
            for round in 0..ROUNDS {
                for n in 1..4 {
                    assert!(insert_certified(&store, n, round, 0, Some(&der)));
                }
                (1..4).for_each(|n| _ = store.delete(SessionKey::Id(&[n; 32])));
            }
        });
        threads.spawn(|| {
            for _ in 0..4 * ROUNDS as usize {
                let read = |session: rekindle_core::Session<u8>| {
                    session
                        .certificate
                        .map(|certificate| certificate.der().into_owned())
                };
                let found = store.lookup(SessionKey::Id(&[0; 32]), 0, read);
                assert_eq!(found, Some(Some(der.to_vec())));
            }
        });
    });
    assert_eq!((store.sessions(), store.certificates()), (1, 1));
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
                    let reference = REGISTRY.open_server(b"name", Some(&[n]), join, FEW);
                    let Store::Server(store) = reference.scope().store() else {
                        unreachable!("opened for a server");
                    };
                    assert!(insert(store, n, n, 10));
                    assert!(store.peek(SessionKey::Id(&[n; 32]), 0, |_| ()).is_some());
                });
            }
        });
        assert!(REGISTRY.scopes().is_empty());
        assert!(REGISTRY.sockets(b"name").is_empty());
    }
}
