//! Runs a few calls in thousands of schedules, which shuttle chooses:
//!
//! ```sh
//! RUSTFLAGS="--cfg shuttle" cargo test -p rekindle_core --test schedules --target-dir target/shuttle
//! ```
//!
//! Threads take turns at the locks of the registry, the order, the templates, the buckets of the index and the
//! certificates, and at the janitor's channel. Where there is no lock, lookups among insertions run under Miri and
//! ThreadSanitizer, see `scripts/sanitize.sh`.

#![cfg(shuttle)]

mod common;

use common::Common;
use rekindle_core::{
    Join, Limits, NewSession, Reference, Registry, Scope, ServerStore, SessionKey, Store,
};
use shuttle::{check_random, thread};
use std::sync::Arc;

const SCHEDULES: usize = 5_000;

const OPEN: Limits = Limits {
    max_bytes: 1 << 20,
    max_sessions: 1 << 10,
    lifetime_ms: 1000,
};

fn insert(store: &ServerStore<u8>, n: u8, secret: u8) -> bool {
    let tail = [secret; 20];
    insert_with(store, n, secret, n % 2, &tail)
}

/// Each third session has a certificate.
fn insert_with(store: &ServerStore<u8>, n: u8, secret: u8, template: u8, tail: &[u8]) -> bool {
    let certificate = [n; 40];
    let session = NewSession {
        key: SessionKey::Id(&[n; 32]),
        secret: &[secret; 48],
        template: store.template(&Common(template)),
        certificate: (n % 3 == 0).then_some(&certificate),
        tail,
    };
    store.insert(session, 0).is_ok()
}

/// The template is given up outside the order's lock.
fn refuse(store: &ServerStore<u8>) {
    assert!(!insert_with(store, 0, 0, 2, &[0; 10_000]));
}

/// The secret of an intact session.
fn lookup(store: &ServerStore<u8>, n: u8) -> Option<u8> {
    store.lookup(SessionKey::Id(&[n; 32]), 0, |session| {
        let secret = session.secret[0];
        // Other threads run while the session is read.
        thread::yield_now();
        assert_eq!(session.template.map(|template| **template), Some(n % 2));
        assert_eq!(session.secret, &[secret; 48]);
        assert_eq!(session.tail, [secret; 20]);
        let certificate = session
            .certificate
            .map(|certificate| certificate.der().into_owned());
        assert_eq!(certificate, (n % 3 == 0).then(|| vec![n; 40]));
        secret
    })
}

fn assert_empty(store: &ServerStore<u8>) {
    while store.clear(100) > 0 || store.tidy(0) {}
    assert_eq!((store.sessions(), store.templates()), (0, 0));
    assert_eq!((store.certificates(), store.bytes()), (0, 0));
}

fn server(scope: &Scope<u8>) -> &ServerStore<u8> {
    match scope.store() {
        Store::Server(store) => store,
        Store::Client(_) => panic!("a client scope"),
    }
}

#[test]
fn a_scope_lives_exactly_as_long_as_it_is_held() {
    let schedule = || {
        let place = Box::into_raw(Box::new(Registry::<u8>::new()));
        // SAFETY: it is there until nobody else has it.
        let registry: &'static Registry<u8> = unsafe { &*place };
        let open = move |socket: u8, join| -> Reference<u8> {
            registry.open_server(b"name", Some(&[socket]), join, OPEN)
        };
        let first = open(0, Join::IfOpen);
        let threads = [(1, Join::IfOpen), (2, Join::IfOpen), (3, Join::Never)].map(|(n, join)| {
            thread::spawn(move || {
                let reference = open(n, join);
                let store = server(reference.scope());
                assert!(insert(store, n, n));
                thread::yield_now();
                assert_eq!(lookup(store, n), Some(n));
                // No other thread takes the name over.
                assert!(join == Join::IfOpen || registry.sockets(b"name").contains(&[n].into()));
                let again = open(n, Join::IfOpen);
                drop(reference);
                let store = server(again.scope());
                assert!(insert(store, n, n));
                thread::yield_now();
                assert_eq!(lookup(store, n), Some(n));
            })
        });
        let seen = registry.scopes();
        assert!(!seen.is_empty() && registry.sockets(b"name").len() <= 7);
        drop(first);
        for thread in threads {
            thread.join().unwrap();
        }
        assert!(registry.scopes().is_empty());
        assert!(registry.sockets(b"name").is_empty());
        for scope in seen {
            // Until the janitor has done its part.
            while Arc::strong_count(&scope) > 1 {
                thread::yield_now();
            }
            assert_empty(server(&scope));
        }
        // SAFETY: all references are gone. The janitor waits, and ends now: shuttle wants to see the end of
        // every thread.
        drop(unsafe { Box::from_raw(place) });
    };
    check_random(schedule, SCHEDULES);
}

#[test]
fn what_comes_and_goes_at_once_leaves_nothing() {
    let schedule = || {
        let store = Arc::new(ServerStore::<u8>::new(OPEN));
        let look_up = |store: &ServerStore<u8>| {
            (1..4).for_each(|n| assert!(matches!(lookup(store, n), None | Some(10 | 20))));
        };
        let calls: [fn(&ServerStore<u8>); 8] = [
            |store| (1..4).for_each(|n| assert!(insert(store, n, 10))),
            |store| (1..4).for_each(|n| assert!(insert(store, n, 20))),
            refuse,
            refuse,
            |store| (1..4).for_each(|n| _ = store.delete(SessionKey::Id(&[n; 32]))),
            |store| {
                store.set_limits(Limits {
                    max_sessions: 2,
                    ..OPEN
                });
                store.tidy(0);
                store.expire(1000, 1);
                store.tidy(0);
                store.clear(1);
            },
            look_up,
            look_up,
        ];
        let threads = calls.map(|calls| {
            let store = Arc::clone(&store);
            thread::spawn(move || calls(&store))
        });
        for thread in threads {
            thread.join().unwrap();
        }
        let mut held = 0;
        store.for_each_key(|_| held += 1);
        assert_eq!(store.sessions(), held);
        assert!(store.templates() as u64 <= held);
        while store.clear(2) > 0 {}
        assert_empty(&store);
    };
    check_random(schedule, SCHEDULES);
}

/// Some of the readers share a line, and then one of them locks the bucket.
#[test]
fn nobody_writes_to_what_is_read() {
    let schedule = || {
        let store = Arc::new(ServerStore::<u8>::new(OPEN));
        assert!(insert(&store, 1, 10));
        let calls: [fn(&ServerStore<u8>); 4] = [
            |store| {
                assert!(store.delete(SessionKey::Id(&[1; 32])));
                assert!(insert(store, 1, 20));
            },
            look_up_twice,
            look_up_twice,
            look_up_twice,
        ];
        let threads = calls.map(|calls| {
            let store = Arc::clone(&store);
            thread::spawn(move || calls(&store))
        });
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(lookup(&store, 1), Some(20));
        let counts = store.counters().read();
        assert_eq!(counts.hits + counts.misses, 7);
    };
    check_random(schedule, SCHEDULES);
}

fn look_up_twice(store: &ServerStore<u8>) {
    for _ in 0..2 {
        assert!(matches!(lookup(store, 1), None | Some(10 | 20)));
    }
}
