//! A large store lies on huge pages where the system has them, and takes no more memory for that.

#![cfg(target_os = "linux")]
#![cfg(not(any(shuttle, miri)))]
#![allow(unsafe_code)]

use rekindle_core::{Limits, NewSession, ServerStore, SessionKey};
use std::fs;

const HUGE_PAGE: u64 = 2 << 20;
const SESSIONS: u64 = 200_000;
const NOW_MS: u64 = 1_700_000_000_000;

/// The sum of a field of all mappings of this process, in bytes.
fn mapped_bytes(field: &str) -> u64 {
    let rollup = fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix(field));
    let kilobytes = line.unwrap().split_whitespace().next().unwrap();
    kilobytes.parse::<u64>().unwrap() * 1024
}

/// Whether the system can make a huge page on request: Linux from 6.1 on, on most processors.
fn has_huge_pages() -> bool {
    let mut pages = memmap2::MmapOptions::new();
    let mut pages = pages.len(2 * HUGE_PAGE as usize).map_anon().unwrap();
    pages.fill(1);
    let start = pages.as_mut_ptr();
    let start = start.wrapping_add(start.align_offset(HUGE_PAGE as usize));
    [libc::MADV_HUGEPAGE, 25].into_iter().all(|advice| {
        // SAFETY: the range lies in the mapping, and its content stays the same.
        unsafe { libc::madvise(start.cast(), HUGE_PAGE as usize, advice) == 0 }
    })
}

fn id(number: u64) -> [u8; 32] {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    id
}

#[test]
fn a_large_store_lies_on_huge_pages() {
    let store = ServerStore::<()>::new(Limits {
        max_bytes: u64::MAX,
        max_sessions: u64::MAX,
        lifetime_ms: 1_000_000,
    });
    for number in 0..SESSIONS {
        let session = NewSession {
            key: SessionKey::Id(&id(number)),
            secret: &[7; 48],
            template: None,
            certificate: None,
            tail: &number.to_be_bytes(),
        };
        store.insert(session, NOW_MS).unwrap();
    }
    let before = [mapped_bytes("Rss:"), mapped_bytes("AnonHugePages:")];
    while store.tidy(NOW_MS) {}
    let after = [mapped_bytes("Rss:"), mapped_bytes("AnonHugePages:")];
    assert!(
        after[0] <= before[0] + HUGE_PAGE / 4,
        "{before:?} {after:?}"
    );
    if has_huge_pages() {
        // All but a region of each class, and the tables' first pages.
        assert!(
            after[1] - before[1] >= store.bytes() - 6 * HUGE_PAGE,
            "{before:?} {after:?}"
        );
    } else {
        println!("This system makes no huge pages on request.");
    }
    let is_there = |number: u64| {
        let tail = store.lookup(SessionKey::Id(&id(number)), NOW_MS, |session| {
            session.tail.to_vec()
        });
        tail.as_deref() == Some(&number.to_be_bytes())
    };
    assert!((0..SESSIONS).all(is_there));
}
