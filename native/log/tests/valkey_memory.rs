//! How much memory a hostile server can make the Valkey log take. It is a test program of its own, because it counts
//! all allocations.
#![cfg(feature = "valkey")]
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rekindle_log::{Bounds, Log, Mark, Stream, ValkeyConfig, ValkeyLog};

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

/// One test at a time, because all share the count.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls that must not take more than 64 MiB together.
fn bounded<T>(what: impl FnOnce() -> T) -> T {
    let before = NOW.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let result = what();
    let peak = PEAK.load(Ordering::Relaxed) - before;
    println!("{peak} bytes");
    assert!(peak <= 64 << 20, "{peak} bytes");
    result
}

/// A server that answers as the test says. The test gets the number of the connection and the words of the command.
fn server(
    answer: impl Fn(&mut TcpStream, usize, &[String]) -> io::Result<()> + Send + Sync + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for (connection, client) in listener.incoming().enumerate() {
            let mut client = client.unwrap();
            let answer = answer.clone();
            thread::spawn(move || {
                let mut commands = BufReader::new(client.try_clone().unwrap());
                while let Some(words) = command(&mut commands) {
                    if answer(&mut client, connection, &words).is_err() {
                        break;
                    }
                }
            });
        }
    });
    port
}

/// The words of the next command.
fn command(source: &mut impl BufRead) -> Option<Vec<String>> {
    let mut line = || {
        let mut line = String::new();
        source.read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let count: usize = line()?.strip_prefix('*')?.parse().ok()?;
    (0..count)
        .map(|_| {
            line()?;
            line()
        })
        .collect()
}

/// Entries with these numbers as ids, and with records of these lengths.
fn entries(to: &mut TcpStream, entries: &[(u64, usize)]) -> io::Result<()> {
    static RECORD: [u8; 1 << 20] = [b'x'; 1 << 20];
    write!(to, "*{}\r\n", entries.len())?;
    for (number, length) in entries {
        let id = format!("7-{number}");
        write!(to, "*2\r\n${}\r\n{id}\r\n", id.len())?;
        write!(to, "*2\r\n$1\r\nr\r\n${length}\r\n")?;
        to.write_all(&RECORD[..*length])?;
        to.write_all(b"\r\n")?;
    }
    Ok(())
}

/// An array that takes 44 MiB or so.
fn large(to: &mut TcpStream) -> io::Result<()> {
    let text = [&b"$1024\r\n"[..], &[b'x'; 1024], b"\r\n"].concat();
    to.write_all(b"*40000\r\n")?;
    (0..40_000).try_for_each(|_| to.write_all(&text))
}

/// The answer to XINFO STREAM for an empty stream.
fn empty(to: &mut TcpStream) -> io::Result<()> {
    to.write_all(b"*4\r\n$6\r\nlength\r\n:0\r\n$17\r\nlast-generated-id\r\n$3\r\n0-0\r\n")
}

/// The answer to CLUSTER SLOTS that the server at this end of a connection has all slots.
fn slots(to: &mut TcpStream) -> io::Result<()> {
    let port = to.local_addr()?.port();
    write!(
        to,
        "*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:{port}\r\n"
    )
}

fn log(port: u16, cluster: bool, partitions: u16) -> ValkeyLog {
    let config = ValkeyConfig {
        cluster,
        partitions,
        ..ValkeyConfig::new(format!("redis://127.0.0.1:{port}"))
    };
    ValkeyLog::new(config).unwrap()
}

const BOUNDS: Bounds = Bounds {
    scope: "scope",
    keep: Duration::from_secs(3600),
    max_bytes: 1 << 30,
};

#[test]
fn an_answer_without_end_is_an_error() {
    let _alone = alone();
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
        assert!(bounded(|| follower.newer(10, Duration::ZERO)).is_err());
        drop(follower);
        server.join().unwrap();
    }
}

/// The first answers are kept while the commands that were refused are sent again.
#[test]
fn answers_before_and_after_a_move_are_bounded_together() {
    let _alone = alone();
    for large_one in ["XINFO", "CLUSTER", "CLIENT"] {
        println!("{large_one}");
        let port = server(move |to, connection, words| match &words[0][..] {
            word if connection > 0 && word == large_one => large(to),
            "CLUSTER" => slots(to),
            "XINFO" if words[2].ends_with("control") => large(to),
            "XINFO" => to.write_all(b"-MOVED 1 127.0.0.1:1\r\n"),
            _ => to.write_all(b"+OK\r\n"),
        });
        let mut writer = log(port, true, 1).writer();
        let failed = bounded(|| writer.trim(&[BOUNDS])).unwrap_err();
        assert!(failed.0.contains("too long"), "{failed}");
    }
}

/// The answers of a connection that was lost are dropped before the commands are sent again.
#[test]
fn lost_answers_do_not_count() {
    let _alone = alone();
    let asked = AtomicUsize::new(0);
    let port = server(move |to, connection, words| match &words[0][..] {
        "XINFO" if asked.fetch_add(1, Ordering::Relaxed) < 4 => empty(to),
        "XINFO" if words[2].ends_with("control") => large(to),
        "XINFO" if connection == 0 => Err(io::ErrorKind::ConnectionReset.into()),
        "XINFO" => empty(to),
        _ => to.write_all(b"+OK\r\n"),
    });
    let mut writer = log(port, false, 1).writer();
    writer.trim(&[BOUNDS]).unwrap();
    let other = Bounds {
        max_bytes: 1,
        ..BOUNDS
    };
    let failed = bounded(|| writer.trim(&[other])).unwrap_err();
    assert!(failed.0.contains("XINFO STREAM makes no sense"), "{failed}");
}

#[test]
fn sizes_and_lengths_are_bounded_together() {
    let _alone = alone();
    let asked = AtomicUsize::new(0);
    let port = server(move |to, _, words| match &words[0][..] {
        "XINFO" if asked.fetch_add(1, Ordering::Relaxed) < 2 => empty(to),
        "XINFO" | "MEMORY" if words[2].ends_with("control") => large(to),
        "XINFO" => empty(to),
        _ => to.write_all(b"+OK\r\n"),
    });
    let mut writer = log(port, false, 1).writer();
    bounded(|| writer.trim(&[BOUNDS])).unwrap();
}

/// Each partition has four records, and all of them may be the next one.
#[test]
fn pages_of_many_partitions_are_bounded_together() {
    let _alone = alone();
    for length in [1 << 20, 500_000, 1000] {
        let port = server(move |to, _, words| match &words[0][..] {
            "XINFO" => empty(to),
            "XREVRANGE" => {
                let (from, count) = (&words[2], words[5].parse::<u64>().unwrap());
                let first: u64 = from
                    .strip_prefix("7-")
                    .map_or(4, |number| number.parse().unwrap());
                let last = first.saturating_sub(count.min(4));
                let page: Vec<_> = (last + 1..=first).rev().map(|n| (n, length)).collect();
                entries(to, &page)
            }
            _ => to.write_all(b"+OK\r\n"),
        });
        let mut reader = log(port, false, 64).reader();
        let mut found = 0;
        bounded(|| {
            reader.mark("scope").unwrap();
            loop {
                let records = reader.older(Stream::Sessions, 1000).unwrap();
                assert!(records.iter().all(|record| record.len() == length));
                found += records.len();
                if records.is_empty() {
                    break;
                }
            }
        });
        assert_eq!(found, 4 * 64);
    }
}

/// In a cluster, sessions are kept until the control records were read.
#[test]
fn sessions_and_control_records_are_bounded_together() {
    let _alone = alone();
    let port = server(|to, _, words| match &words[0][..] {
        "CLUSTER" => slots(to),
        "XINFO" => empty(to),
        "XREAD" => {
            let key = &words[words.len() - 2];
            write!(to, "*1\r\n*2\r\n${}\r\n{key}\r\n", key.len())?;
            let page = (1..=40).map(|n| (n, 1 << 20));
            let page = page.chain((41..=4000).map(|n| (n, 1000)));
            entries(to, &page.collect::<Vec<_>>())
        }
        _ => to.write_all(b"+OK\r\n"),
    });
    let mut follower = log(port, true, 1).follower().unwrap();
    follower.follow(&"scope".into(), &Mark::default());
    let news = bounded(|| follower.newer(1, Duration::ZERO)).unwrap();
    assert_eq!(news.records.len(), 1);
}
