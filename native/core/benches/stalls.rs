//! Measures the longest single calls, because a scheduler of the BEAM may wait for each of them.
//!
//! `cargo bench --bench stalls -- [--quick] [FOLDER]`
//!
//! Now and then the system suspends a thread, which is not the store's fault. So for calls of a single thread the CPU time
//! counts, including the system's work; or the real time if that is shorter, because a virtual machine may count time that
//! its host took. For calls that wait for another thread, the real time counts. Each case runs a few times. The slowest calls
//! of each run are ranked, and for each rank the quickest run counts.

mod support;

use memmap2::{Advice, MmapMut};
use rekindle_core::{Limits, ServerStore};
use rustix::time::{clock_gettime, ClockId};
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::Duration;
use support::{
    at_most, delete, filled, insert, insert_at, lookup, rounded, scatter, Arguments, Table,
    CERTIFICATE, OPEN,
};

/// How many sessions the janitor drops under one hold of the lock.
const SLICE: usize = 128;

/// The case of the memory that stores grow into.
const NEW_PAGE: &str = "first write to a new page";

/// Bytes of a session, index included, and of a page.
const SESSION: usize = 108;
const PAGE: usize = 4096;

/// Times of calls of a single thread.
const ALONE: &[ClockId] = &[ClockId::Monotonic, ClockId::ThreadCPUTime];

/// Times of calls that wait for other threads.
const BESIDE: &[ClockId] = &[ClockId::Monotonic];

/// The slowest calls of one run, or for each rank the quickest of several runs.
struct Slowest {
    calls: u64,
    total_ns: u64,
    /// The slowest first.
    ranked: Vec<u64>,
}

impl Slowest {
    /// Calls `call` with numbers while there are some. Of the clocks the one that ran less counts.
    fn of(
        clocks: &[ClockId],
        numbers: impl Iterator<Item = u64>,
        mut call: impl FnMut(u64),
    ) -> Self {
        // Reserved at once, because growing would take longer than the calls.
        let most = numbers.size_hint().1.unwrap_or(1 << 23);
        let mut times: Vec<u32> = Vec::with_capacity(most);
        let mut before = read(clocks);
        for n in numbers {
            call(n);
            let now = read(clocks);
            let time = (0..clocks.len()).map(|clock| (now[clock] - before[clock]).as_nanos());
            times.push(time.min().map_or(0, |time| time as u32));
            before = now;
        }
        let calls = times.len() as u64;
        let total_ns = times.iter().map(|time| u64::from(*time)).sum();
        times.sort_unstable_by_key(|time| std::cmp::Reverse(*time));
        times.truncate(times.len() / 10_000 + 1);
        Slowest {
            calls,
            total_ns,
            ranked: times.into_iter().map(u64::from).collect(),
        }
    }

    /// The quicker of two runs for each rank.
    fn or(self, other: Self) -> Self {
        Slowest {
            calls: self.calls.min(other.calls),
            total_ns: self.total_ns.min(other.total_ns),
            ranked: self
                .ranked
                .into_iter()
                .zip(other.ranked)
                .map(|(one, two)| one.min(two))
                .collect(),
        }
    }

    fn row(&self, case: &str, certificate: usize) -> Vec<serde_json::Value> {
        let micros = |ns: u64| rounded(ns as f64 / 1000.0, 1);
        vec![
            json!(case),
            json!(certificate),
            json!(self.calls),
            rounded(self.total_ns as f64 / self.calls as f64 / 1000.0, 2),
            micros(*self.ranked.last().expect("there are calls")),
            micros(self.ranked[0]),
        ]
    }
}

fn read(clocks: &[ClockId]) -> [Duration; 2] {
    let mut times = [Duration::ZERO; 2];
    for (time, clock) in times.iter_mut().zip(clocks) {
        *time = clock_gettime(*clock).try_into().expect("is not negative");
    }
    times
}

/// A case, and how it is measured.
struct Case {
    name: &'static str,
    sessions: u64,
    certificate: usize,
    run: Run,
}

/// A store with this many sessions, whose certificates have this many bytes.
type Run = fn(u64, usize) -> Slowest;

fn cases(quick: bool) -> Vec<Case> {
    let million = if quick { 100_000 } else { 1_000_000 };
    let mut cases = vec![
        case("insert, growing to the bound", million, growing_to_bound),
        case("insert, growing without a bound", million, growing),
        case(NEW_PAGE, million, writing_to_new_pages),
        case("insert at the bound", million, evicting),
        case("insert, bound narrowed", million, narrowed),
        case(
            "insert, bound narrowed, all read",
            million,
            narrowed_all_read,
        ),
        case(
            "insert while others are expired",
            million,
            insert_while_expiring,
        ),
        case(
            "insert while the scope is cleared",
            million,
            insert_while_clearing,
        ),
        case(
            "lookup while others are expired",
            million,
            lookup_while_expiring,
        ),
        case(
            "lookup while others are stored",
            million,
            lookup_while_growing,
        ),
        case("slice of 128 expired", million, expiring),
        case("slice of 128 cleared", million, clearing),
        case(
            "janitor, all read and to be evicted",
            million,
            tidying_all_read,
        ),
        case("janitor, all expired", million, tidying_expired),
        case("janitor, all deleted", million, tidying_deleted),
        case("janitor, bound narrowed", million, tidying_narrowed),
    ];
    if !quick {
        let most = 10_000_000;
        cases.push(case("insert, growing to the bound", most, growing_to_bound));
        cases.push(case(NEW_PAGE, most, writing_to_new_pages));
    }
    let long: [(_, Run); 5] = [
        ("insert, growing to the bound", growing_to_bound),
        ("insert at the bound", evicting),
        ("slice of 128 cleared", clearing),
        ("janitor, all expired", tidying_expired),
        ("janitor, bound narrowed", tidying_narrowed),
    ];
    for (name, run) in long {
        cases.push(Case {
            certificate: CERTIFICATE,
            ..case(name, million, run)
        });
    }
    cases
}

fn case(name: &'static str, sessions: u64, run: Run) -> Case {
    Case {
        name,
        sessions,
        certificate: 0,
        run,
    }
}

fn growing_to_bound(sessions: u64, certificate: usize) -> Slowest {
    let store = ServerStore::new(at_most(sessions));
    Slowest::of(ALONE, 0..sessions, |n| _ = insert(&store, n, certificate))
}

fn growing(sessions: u64, certificate: usize) -> Slowest {
    let store = ServerStore::new(OPEN);
    Slowest::of(ALONE, 0..sessions, |n| _ = insert(&store, n, certificate))
}

/// What the system alone takes: the first write to a page, for as many pages as the sessions need.
fn writing_to_new_pages(sessions: u64, _: usize) -> Slowest {
    let pages = sessions as usize * SESSION / PAGE;
    let mut memory = MmapMut::map_anon(pages * PAGE).expect("there is memory");
    memory
        .advise(Advice::NoHugePage)
        .expect("the advice is known");
    Slowest::of(ALONE, 0..pages as u64, |page| {
        memory[page as usize * PAGE] = 1
    })
}

fn evicting(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(at_most(sessions), sessions, certificate);
    Slowest::of(ALONE, sessions..2 * sessions, |n| {
        _ = insert(&store, n, certificate)
    })
}

fn narrowed(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(at_most(sessions), sessions, certificate);
    insert_into_narrowed(&store, sessions, certificate)
}

fn narrowed_all_read(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(at_most(sessions), sessions, certificate);
    read_all(&store, sessions);
    insert_into_narrowed(&store, sessions, certificate)
}

fn insert_into_narrowed(store: &ServerStore<()>, sessions: u64, certificate: usize) -> Slowest {
    store.set_limits(at_most(sessions / 100));
    let inserts = sessions..sessions + sessions / SLICE as u64;
    Slowest::of(ALONE, inserts, |n| _ = insert(store, n, certificate))
}

fn read_all(store: &ServerStore<()>, sessions: u64) {
    for n in 0..sessions {
        lookup(store, n);
    }
}

fn expiring(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(OPEN, sessions, certificate);
    Slowest::of(ALONE, 0..sessions / SLICE as u64, |_| _ = expire(&store))
}

fn expire(store: &ServerStore<()>) -> usize {
    store.expire(OPEN.lifetime_ms, SLICE)
}

fn clearing(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(OPEN, sessions, certificate);
    Slowest::of(ALONE, 0..sessions / SLICE as u64, |_| {
        _ = store.clear(SLICE)
    })
}

fn tidying_all_read(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(OPEN, sessions, certificate);
    read_all(&store, sessions);
    store.set_limits(at_most(0));
    tidying(&store, 0)
}

fn tidying_expired(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(OPEN, sessions, certificate);
    tidying(&store, OPEN.lifetime_ms)
}

/// All pages are empty, and so are all buckets.
fn tidying_deleted(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(OPEN, sessions, certificate);
    for n in 0..sessions {
        delete(&store, scatter(n) % sessions);
        delete(&store, n);
    }
    tidying(&store, 0)
}

/// To a sixteenth of what it takes.
fn tidying_narrowed(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(OPEN, sessions, certificate);
    store.set_limits(Limits {
        max_bytes: store.bytes() / 16,
        ..OPEN
    });
    tidying(&store, 0)
}

fn tidying(store: &ServerStore<()>, now_ms: u64) -> Slowest {
    let has_more = AtomicBool::new(true);
    let slices = (0..).take_while(|_| has_more.load(Relaxed));
    Slowest::of(ALONE, slices, |_| {
        has_more.store(store.tidy(now_ms), Relaxed)
    })
}

fn insert_while_expiring(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(OPEN, sessions, certificate);
    let fresh = |n| _ = insert_at(&store, n, certificate, OPEN.lifetime_ms);
    meanwhile(
        || while expire(&store) > 0 {},
        |running| Slowest::of(BESIDE, while_it_runs(running, sessions), fresh),
    )
}

fn insert_while_clearing(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(OPEN, sessions, certificate);
    meanwhile(
        || (0..sessions / SLICE as u64).for_each(|_| _ = store.clear(SLICE)),
        |running| {
            Slowest::of(BESIDE, while_it_runs(running, sessions), |n| {
                _ = insert(&store, n, certificate)
            })
        },
    )
}

fn lookup_while_expiring(sessions: u64, certificate: usize) -> Slowest {
    let store = filled(OPEN, sessions, certificate);
    meanwhile(
        || while expire(&store) > 0 {},
        |running| {
            Slowest::of(BESIDE, while_it_runs(running, 0), |n| {
                _ = lookup(&store, scatter(n) % sessions)
            })
        },
    )
}

fn lookup_while_growing(sessions: u64, certificate: usize) -> Slowest {
    let store = ServerStore::new(at_most(sessions));
    meanwhile(
        || (0..sessions).for_each(|n| _ = insert(&store, n, certificate)),
        |running| {
            Slowest::of(BESIDE, while_it_runs(running, 0), |n| {
                _ = lookup(&store, scatter(n) % sessions)
            })
        },
    )
}

/// Runs `work` on another thread beside `measured`, to which a flag says how long.
fn meanwhile(work: impl FnOnce() + Send, measured: impl FnOnce(&AtomicBool) -> Slowest) -> Slowest {
    let running = AtomicBool::new(true);
    thread::scope(|threads| {
        threads.spawn(|| {
            work();
            running.store(false, Relaxed);
        });
        measured(&running)
    })
}

fn while_it_runs(running: &AtomicBool, from: u64) -> impl Iterator<Item = u64> + '_ {
    (from..).take_while(|_| running.load(Relaxed))
}

fn main() {
    let arguments = Arguments::read();
    let columns = &[
        "case",
        "sessions",
        "certificate",
        "calls",
        "mean µs",
        "p99.99 µs",
        "max µs",
    ];
    let mut table = Table::new("stalls", "Longest calls", columns);
    let runs = if arguments.quick { 3 } else { 5 };
    for case in cases(arguments.quick) {
        let runs = if case.sessions > 1_000_000 { 3 } else { runs };
        let run = |_| (case.run)(case.sessions, case.certificate);
        let slowest = (0..runs).map(run).reduce(Slowest::or);
        let mut row = slowest
            .expect("there are runs")
            .row(case.name, case.certificate);
        row.insert(1, json!(case.sessions));
        table.row(row);
    }
    table.publish(&arguments.folder);
}
