//! Measures the longest single calls, because a scheduler of the BEAM may wait for each of them.
//!
//! `cargo bench --bench stalls -- [--quick] [FOLDER]`
//!
//! Now and then the system suspends a thread, which is not the store's fault. So for calls of a single thread the CPU time
//! counts, including the system's work; or the real time if that is shorter, because a virtual machine may count time that
//! its host took. For calls that wait for another thread, the real time counts.
//!
//! Each case runs a few times. While a store grows, a call does the same work in each run, so for each call the quickest run
//! counts. In other cases the calls of each run are ranked, and for each rank the quickest run counts. The last column is the
//! slowest call of a single run, of the run where it was the quickest: what the system does counts there, too.

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

/// How long the calls of one run took, or those of several runs.
struct Times {
    total_ns: u64,
    /// In the order of the calls, or the longest first.
    ns: Vec<u32>,
    /// The longest of one run.
    max_ns: u32,
}

impl Times {
    /// Calls `call` with each number. A call's time is the shortest of those that the clocks show. The calls do the same work in
    /// each run.
    fn in_order(
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
        Times {
            total_ns: times.iter().map(|ns| u64::from(*ns)).sum(),
            max_ns: times.iter().copied().max().unwrap_or(0),
            ns: times,
        }
    }

    /// The same with calls whose work differs between runs.
    fn ranked(
        clocks: &[ClockId],
        numbers: impl Iterator<Item = u64>,
        call: impl FnMut(u64),
    ) -> Self {
        let mut times = Self::in_order(clocks, numbers, call);
        times.sort();
        times
    }

    fn sort(&mut self) {
        self.ns.sort_unstable_by_key(|ns| std::cmp::Reverse(*ns));
    }

    /// The quicker of two runs for each call or rank.
    fn or(mut self, other: Self) -> Self {
        self.total_ns = self.total_ns.min(other.total_ns);
        self.max_ns = self.max_ns.min(other.max_ns);
        self.ns.truncate(other.ns.len());
        for (one, two) in self.ns.iter_mut().zip(other.ns) {
            *one = two.min(*one);
        }
        self
    }

    fn row(mut self, case: &Case) -> Vec<serde_json::Value> {
        self.sort();
        let micros = |ns: u32| rounded(f64::from(ns) / 1000.0, 1);
        let calls = self.ns.len();
        vec![
            json!(case.name),
            json!(case.sessions),
            json!(case.certificate),
            json!(calls),
            rounded(self.total_ns as f64 / calls as f64 / 1000.0, 2),
            micros(self.ns[calls / 10_000]),
            micros(self.ns[0]),
            micros(self.max_ns),
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
type Run = fn(u64, usize) -> Times;

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

fn growing_to_bound(sessions: u64, certificate: usize) -> Times {
    let store = ServerStore::new(at_most(sessions));
    Times::in_order(ALONE, 0..sessions, |n| _ = insert(&store, n, certificate))
}

fn growing(sessions: u64, certificate: usize) -> Times {
    let store = ServerStore::new(OPEN);
    Times::in_order(ALONE, 0..sessions, |n| _ = insert(&store, n, certificate))
}

/// What the system alone takes: the first write to a page, for as many pages as the sessions need.
fn writing_to_new_pages(sessions: u64, _: usize) -> Times {
    let pages = sessions as usize * SESSION / PAGE;
    let mut memory = MmapMut::map_anon(pages * PAGE).expect("there is memory");
    memory
        .advise(Advice::NoHugePage)
        .expect("the advice is known");
    Times::in_order(ALONE, 0..pages as u64, |page| {
        memory[page as usize * PAGE] = 1
    })
}

fn evicting(sessions: u64, certificate: usize) -> Times {
    let store = filled(at_most(sessions), sessions, certificate);
    Times::ranked(ALONE, sessions..2 * sessions, |n| {
        _ = insert(&store, n, certificate)
    })
}

fn narrowed(sessions: u64, certificate: usize) -> Times {
    let store = filled(at_most(sessions), sessions, certificate);
    insert_into_narrowed(&store, sessions, certificate)
}

fn narrowed_all_read(sessions: u64, certificate: usize) -> Times {
    let store = filled(at_most(sessions), sessions, certificate);
    read_all(&store, sessions);
    insert_into_narrowed(&store, sessions, certificate)
}

fn insert_into_narrowed(store: &ServerStore<()>, sessions: u64, certificate: usize) -> Times {
    store.set_limits(at_most(sessions / 100));
    let inserts = sessions..sessions + sessions / SLICE as u64;
    Times::ranked(ALONE, inserts, |n| _ = insert(store, n, certificate))
}

fn read_all(store: &ServerStore<()>, sessions: u64) {
    for n in 0..sessions {
        lookup(store, n);
    }
}

fn expiring(sessions: u64, certificate: usize) -> Times {
    let store = filled(OPEN, sessions, certificate);
    Times::ranked(ALONE, 0..sessions / SLICE as u64, |_| _ = expire(&store))
}

fn expire(store: &ServerStore<()>) -> usize {
    store.expire(OPEN.lifetime_ms, SLICE)
}

fn clearing(sessions: u64, certificate: usize) -> Times {
    let store = filled(OPEN, sessions, certificate);
    Times::ranked(ALONE, 0..sessions / SLICE as u64, |_| {
        _ = store.clear(SLICE)
    })
}

fn tidying_all_read(sessions: u64, certificate: usize) -> Times {
    let store = filled(OPEN, sessions, certificate);
    read_all(&store, sessions);
    store.set_limits(at_most(0));
    tidying(&store, 0)
}

fn tidying_expired(sessions: u64, certificate: usize) -> Times {
    let store = filled(OPEN, sessions, certificate);
    tidying(&store, OPEN.lifetime_ms)
}

/// All pages are empty, and so are all buckets.
fn tidying_deleted(sessions: u64, certificate: usize) -> Times {
    let store = filled(OPEN, sessions, certificate);
    for n in 0..sessions {
        delete(&store, scatter(n) % sessions);
        delete(&store, n);
    }
    tidying(&store, 0)
}

/// To a sixteenth of what it takes.
fn tidying_narrowed(sessions: u64, certificate: usize) -> Times {
    let store = filled(OPEN, sessions, certificate);
    store.set_limits(Limits {
        max_bytes: store.bytes() / 16,
        ..OPEN
    });
    tidying(&store, 0)
}

fn tidying(store: &ServerStore<()>, now_ms: u64) -> Times {
    let has_more = AtomicBool::new(true);
    let slices = (0..).take_while(|_| has_more.load(Relaxed));
    Times::ranked(ALONE, slices, |_| {
        has_more.store(store.tidy(now_ms), Relaxed)
    })
}

fn insert_while_expiring(sessions: u64, certificate: usize) -> Times {
    let store = filled(OPEN, sessions, certificate);
    let fresh = |n| _ = insert_at(&store, n, certificate, OPEN.lifetime_ms);
    meanwhile(
        || while expire(&store) > 0 {},
        |running| Times::ranked(BESIDE, while_it_runs(running, sessions), fresh),
    )
}

fn insert_while_clearing(sessions: u64, certificate: usize) -> Times {
    let store = filled(OPEN, sessions, certificate);
    meanwhile(
        || (0..sessions / SLICE as u64).for_each(|_| _ = store.clear(SLICE)),
        |running| {
            Times::ranked(BESIDE, while_it_runs(running, sessions), |n| {
                _ = insert(&store, n, certificate)
            })
        },
    )
}

fn lookup_while_expiring(sessions: u64, certificate: usize) -> Times {
    let store = filled(OPEN, sessions, certificate);
    meanwhile(
        || while expire(&store) > 0 {},
        |running| {
            Times::ranked(BESIDE, while_it_runs(running, 0), |n| {
                _ = lookup(&store, scatter(n) % sessions)
            })
        },
    )
}

fn lookup_while_growing(sessions: u64, certificate: usize) -> Times {
    let store = ServerStore::new(at_most(sessions));
    meanwhile(
        || (0..sessions).for_each(|n| _ = insert(&store, n, certificate)),
        |running| {
            Times::ranked(BESIDE, while_it_runs(running, 0), |n| {
                _ = lookup(&store, scatter(n) % sessions)
            })
        },
    )
}

/// Runs `work` on another thread beside `measured`, to which a flag says how long.
fn meanwhile(work: impl FnOnce() + Send, measured: impl FnOnce(&AtomicBool) -> Times) -> Times {
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
        "max of a run µs",
    ];
    let mut table = Table::new("stalls", "Longest calls", columns);
    let runs = if arguments.quick { 3 } else { 5 };
    for case in cases(arguments.quick) {
        let runs = if case.sessions > 1_000_000 { 3 } else { runs };
        let run = |_| (case.run)(case.sessions, case.certificate);
        let times = (0..runs).map(run).reduce(Times::or);
        table.row(times.expect("there are runs").row(&case));
    }
    table.publish(&arguments.folder);
}
