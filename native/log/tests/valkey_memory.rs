//! How much memory a hostile server can make the Valkey log take. It is a test program of its own, because it counts
//! all allocations.
#![cfg(feature = "valkey")]
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rekindle_log::{Log, Mark, ValkeyConfig, ValkeyLog};

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work, and gets each call as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn an_answer_without_end_takes_no_more_than_64_mib() {
    let record = [&b"$1048576\r\n"[..], &[b'x'; 1 << 20], b"\r\n"].concat();
    let short = [&b"$1024\r\n"[..], &[b'x'; 1024], b"\r\n"].concat();
    let error = [&b"-ERR "[..], &[b'x'; 2000], b"\r\n"].concat();
    let endless: [&[u8]; 8] = [
        b"*1\r\n:1\r\n",
        b"*0\r\n",
        b"$-1\r\n",
        b"$1\r\nx\r\n",
        b"+OK\r\n",
        &record,
        &short,
        &error,
    ];
    for part in endless {
        let part = part.repeat((100_000 / part.len()).max(1));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let _ = client.read(&mut [0; 4096]);
            let _ = client.write_all(b"+OK\r\n*9223372036854775807\r\n");
            while client.write_all(&part).is_ok() {}
        });
        let log = ValkeyLog::new(ValkeyConfig::new(url)).unwrap();
        let mut follower = log.follower().unwrap();
        follower.follow(&"scope".into(), &Mark::default());
        let before = NOW.load(Ordering::Relaxed);
        PEAK.store(before, Ordering::Relaxed);
        let failed = follower.newer(10, Duration::ZERO);
        let peak = PEAK.load(Ordering::Relaxed) - before;
        println!("{peak} bytes: {failed:?}");
        assert!(failed.is_err());
        assert!(peak <= 64 << 20, "{peak} bytes");
        drop(follower);
        server.join().unwrap();
    }
}
