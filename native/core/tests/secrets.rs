//! Once a session is gone, no copy of its secret may be in the process's memory: not in its slot, not in the slot that it was
//! moved from, not on the stack of the thread that inserted it. The tests search all memory, as an attacker would.

#![cfg(all(target_os = "linux", not(miri), not(shuttle)))]

mod common;

use common::Common;
use once_cell::sync::Lazy;
use rekindle_core::{
    Join, Limits, NewSession, Reference, Registry, ServerStore, SessionKey, Store,
};
use std::fs::{read_to_string, File};
use std::hint::spin_loop;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use zeroize::Zeroize;

static REGISTRY: Lazy<Registry<u8>> = Lazy::new(Registry::new);

const LIMITS: Limits = Limits {
    max_bytes: 4 << 20,
    max_sessions: u64::MAX,
    lifetime_ms: 1_000_000,
};

/// The lengths of the other parts of sessions.
const TAILS: Range<usize> = 0..256;

/// A secret that is in memory only while [`expose`](Self::expose) runs: the exclusive or of two random halves.
struct Hidden {
    halves: [[u8; 48]; 2],
}

impl Hidden {
    fn new() -> Self {
        Hidden {
            halves: [rand::random(), rand::random()],
        }
    }

    fn byte(&self, at: usize) -> u8 {
        self.halves[0][at] ^ self.halves[1][at]
    }

    fn expose(&self, to: impl FnOnce(&[u8; 48])) {
        let mut secret = Box::new([0; 48]);
        for at in 0..48 {
            secret[at] = self.byte(at);
        }
        to(&secret);
        secret.zeroize();
    }

    /// How often half of the secret or more is in this process's memory.
    fn occurrences(&self) -> usize {
        // Another search would have read it into a window of its own.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _others_wait = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut window = [0; WINDOW + HALF];
        let own = window.as_ptr_range();
        let own = own.start as usize..own.end as usize;
        let memory = File::open("/proc/self/mem").unwrap();
        let mut found = [0; 2];
        for range in writable() {
            for from in range.clone().step_by(WINDOW) {
                // A match may begin in a window and end behind it.
                let to = range.end.min(from + WINDOW + HALF);
                let is_read = memory.read_exact_at(&mut window[..to - from], from as u64);
                if is_read.is_err() || window[..to - from] == [0; WINDOW + HALF][..to - from] {
                    continue;
                }
                for at in 0..WINDOW.min(to - from) {
                    // The bytes of the window itself are in memory as well.
                    if !own.contains(&(from + at)) {
                        found[0] += usize::from(self.is_half(0, &window[at..to - from]));
                        found[1] += usize::from(self.is_half(HALF, &window[at..to - from]));
                    }
                }
            }
        }
        window.zeroize();
        found[0].max(found[1])
    }

    fn is_half(&self, begin: usize, bytes: &[u8]) -> bool {
        bytes.len() >= HALF
            && bytes[0] == self.byte(begin)
            && (1..HALF).all(|at| bytes[at] == self.byte(begin + at))
    }
}

const HALF: usize = 24;

/// Bytes read at a time.
const WINDOW: usize = 4096;

/// The parts of the process's memory that can be written to.
fn writable() -> Vec<Range<usize>> {
    let maps = read_to_string("/proc/self/maps").unwrap();
    let range = |line: &str| {
        let (addresses, rest) = line.split_once(' ')?;
        let (from, to) = addresses.split_once('-')?;
        let address = |digits| usize::from_str_radix(digits, 16).ok();
        rest.starts_with("rw")
            .then_some(address(from)?..address(to)?)
    };
    maps.lines().filter_map(range).collect()
}

fn open(name: &[u8], limits: Limits) -> Reference<u8> {
    REGISTRY.open_server(name, None, Join::Never, limits)
}

fn server(reference: &Reference<u8>) -> &ServerStore<u8> {
    match reference.scope().store() {
        Store::Server(store) => store,
        Store::Client(_) => unreachable!("a server's scope was opened"),
    }
}

fn id(n: u32) -> [u8; 32] {
    let mut id = [7; 32];
    id[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_ne_bytes());
    id
}

fn insert(store: &ServerStore<u8>, n: u32, secret: &[u8; 48], tail_len: usize) {
    let id = id(n);
    let session = NewSession {
        key: SessionKey::Id(&id),
        secret,
        template: store.template(&Common(7)),
        certificate: None,
        tail: &vec![n as u8; tail_len],
    };
    let inserted = store.insert(session, rekindle_core::now_ms());
    assert_eq!(inserted, Ok(()));
}

#[test]
fn a_search_finds_a_secret_that_is_there_and_not_one_that_was() {
    let hidden = Hidden::new();
    assert_eq!(hidden.occurrences(), 0);
    hidden.expose(|_| assert_eq!(hidden.occurrences(), 1));
    assert_eq!(hidden.occurrences(), 0);
}

/// The thread stays in the function that has called the store, and calls no other one that might overwrite its stack.
#[test]
fn insertion_leaves_no_copy_on_the_threads_stack() {
    for tail_len in [0, 200, 8_000] {
        let reference = open(b"stack", LIMITS);
        let hidden = Hidden::new();
        let (is_inserted, is_searched) = (AtomicBool::new(false), AtomicBool::new(false));
        let occurrences = thread::scope(|threads| {
            threads.spawn(|| {
                hidden.expose(|secret| insert(server(&reference), 1, secret, tail_len));
                is_inserted.store(true, SeqCst);
                while !is_searched.load(SeqCst) {
                    spin_loop();
                }
            });
            while !is_inserted.load(SeqCst) {
                thread::yield_now();
            }
            let while_stored = hidden.occurrences();
            server(&reference).delete(SessionKey::Id(&id(1)));
            let afterwards = hidden.occurrences();
            is_searched.store(true, SeqCst);
            (while_stored, afterwards)
        });
        assert_eq!(occurrences, (1, 0), "with a tail of {tail_len} bytes");
    }
}

#[test]
fn no_secret_of_an_evicted_session_stays() {
    let limits = Limits {
        max_sessions: 100,
        ..LIMITS
    };
    let reference = open(b"evicted", limits);
    let hidden = Hidden::new();
    hidden.expose(|secret| (0..50).for_each(|n| insert(server(&reference), n, secret, 10)));
    (50..1000).for_each(|n| insert(server(&reference), n, &[7; 48], 10));
    let is_gone = |n| {
        let now_ms = rekindle_core::now_ms();
        server(&reference)
            .peek(SessionKey::Id(&id(n)), now_ms, |_| ())
            .is_none()
    };
    assert!((0..50).all(is_gone));
    assert_eq!(hidden.occurrences(), 0);
}

#[test]
fn no_secret_stays_where_a_session_was_moved_from() {
    let reference = open(b"moved", LIMITS);
    let hidden = Hidden::new();
    let left = thin_out(server(&reference), &hidden);
    wait_for(|| hidden.occurrences() <= left);
    drop(reference);
    wait_for(|| hidden.occurrences() == 0);
}

/// One in fifty sessions of all sizes stays.
fn thin_out(store: &ServerStore<u8>, hidden: &Hidden) -> usize {
    hidden.expose(|secret| {
        for n in 0..10_000 {
            insert(store, n, secret, TAILS.start + n as usize % TAILS.len());
        }
    });
    for n in (0..10_000).filter(|n| n % 50 > 0) {
        store.delete(SessionKey::Id(&id(n)));
    }
    store.sessions() as usize
}

/// Waits for the janitor.
fn wait_for(is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(120));
        thread::sleep(Duration::from_millis(100));
    }
}
