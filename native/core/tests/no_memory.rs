//! Tests on a system without memory: sessions go, and the process stays.
//!
//! Each test runs in a process of its own, which bounds its address space after it has started.

#![cfg(target_os = "linux")]
#![cfg(not(shuttle))]
#![allow(unsafe_code)]

use rekindle_core::{Limits, NewSession, ServerStore, SessionKey};
use std::env;
use std::fs;
use std::process::Command;

/// The variable that makes this process bound its memory.
const CHILD: &str = "REKINDLE_TEST_NO_MEMORY";

const MIB: u64 = 1 << 20;

fn in_a_process(name: &str, test: fn()) {
    if env::var_os(CHILD).is_some() {
        return test();
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{:?}: {text} {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

/// From now on the address space may grow by at most `bytes` bytes.
fn bound_memory(bytes: u64) {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kilobytes = size
        .and_then(|line| line.split_whitespace().next())
        .unwrap();
    let most = kilobytes.parse::<u64>().unwrap() * 1024 + bytes;
    let limit = libc::rlimit {
        rlim_cur: most,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the pointer is to a whole structure.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
}

fn store() -> ServerStore<()> {
    ServerStore::new(Limits {
        max_bytes: 1 << 40,
        max_sessions: u64::MAX,
        lifetime_ms: 86_400_000,
    })
}

fn id(n: u64) -> [u8; 32] {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_ne_bytes());
    id[8..16].copy_from_slice(&n.to_ne_bytes());
    id
}

fn insert(store: &ServerStore<()>, n: u64, certificate: Option<&[u8]>, tail: &[u8]) -> bool {
    let id = id(n);
    let new = NewSession {
        key: SessionKey::Id(&id),
        secret: &[n as u8; 48],
        template: None,
        certificate,
        tail,
    };
    store.insert(new, n).is_ok()
}

fn is_held(store: &ServerStore<()>, n: u64) -> bool {
    let read = |session: rekindle_core::Session<()>| session.secret == &[n as u8; 48];
    store.peek(SessionKey::Id(&id(n)), n, read) == Some(true)
}

#[test]
fn the_newest_sessions_take_the_place_of_others() {
    in_a_process("the_newest_sessions_take_the_place_of_others", || {
        let store = store();
        bound_memory(24 * MIB);
        for n in 0..300_000 {
            assert!(insert(&store, n, None, b""), "{n}");
            assert!(is_held(&store, n), "{n}");
        }
        let counts = store.counters().read();
        assert!(counts.evicted > 50_000, "{counts:?}");
        assert!(store.sessions() > 50_000, "{}", store.sessions());
        while store.tidy(300_000) {}
        while store.clear(100) > 0 {}
    });
}

#[test]
fn sizes_that_change_get_room_in_the_end() {
    in_a_process("sizes_that_change_get_room_in_the_end", || {
        let store = store();
        bound_memory(24 * MIB);
        let mut certificate = vec![3; 900];
        for n in 0..200_000u64 {
            certificate[..8].copy_from_slice(&n.to_ne_bytes());
            let kind = n / 40_000;
            let certificate = (kind % 2 == 1).then_some(&certificate[..]);
            insert(&store, n, certificate, &vec![5; 100 * kind as usize]);
            if n % 1_000 == 0 {
                store.tidy(n);
            }
            if n % 40_000 == 39_999 {
                let held = (n - 10_000..=n).filter(|n| is_held(&store, *n)).count();
                assert!(held > 5_000, "{held} of the kind {kind}");
            }
        }
    });
}
