//! Measures single calls, with a thousand to ten million sessions.
//!
//! `cargo bench --bench operations -- [--quick] [FILTER]`
//!
//! The calls are `hit`, `miss`, `insert` into free room, `evict` (insert at the bound) and `delete`, on stores of sessions
//! without and with a certificate. Some run with one thread, and again with two threads that make half
//! of the calls each. The result is the whole time divided by the number of calls. Criterion writes its numbers to
//! `target/criterion/<call>/<certificate>_<threads>/<sessions>/new/estimates.json`.

mod support;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion};
use rekindle_core::ServerStore;
use std::hint::black_box;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};
use support::{at_most, delete, filled, insert, lookup, scatter, CERTIFICATE, OPEN};

const PLAIN: [u64; 5] = [1_000, 10_000, 100_000, 1_000_000, 10_000_000];
const LONG: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// A store of the sessions 0 to `sessions`, to which others are added.
struct Bench {
    store: ServerStore<()>,
    sessions: u64,
    certificate: usize,
    /// The number of the next session that was never stored.
    next: u64,
    threads: u64,
}

/// Makes a call this many times, and returns the time that it took.
type Call = fn(&mut Bench, u64) -> Duration;

/// Calls, and on how many threads. The sessions that come and go for the others leave too little to do
/// for starting two threads.
const CALLS: [(&str, Call, &[u64]); 4] = [
    ("hit", hit, &[1, 2]),
    ("miss", miss, &[1, 2]),
    ("insert", insert_new, &[1]),
    ("delete", delete_some, &[1]),
];

impl Bench {
    fn new(sessions: u64, certificate: usize) -> Self {
        Bench {
            store: filled(OPEN, sessions, certificate),
            sessions,
            certificate,
            next: sessions,
            threads: 1,
        }
    }

    /// Makes a call with each number of `range`, a part of them on each thread.
    fn time(&self, range: Range<u64>, call: impl Fn(&ServerStore<()>, u64) + Sync) -> Duration {
        if self.threads == 1 {
            let start = Instant::now();
            range.for_each(|n| call(&self.store, n));
            return start.elapsed();
        }
        let start = Instant::now();
        thread::scope(|threads| {
            for first in range.start..range.start + self.threads {
                let (call, end) = (&call, range.end);
                let part = (first..end).step_by(self.threads as usize);
                threads.spawn(move || part.for_each(|n| call(&self.store, n)));
            }
        });
        start.elapsed()
    }

    /// Takes `calls` numbers that were never used.
    fn fresh(&mut self, calls: u64) -> Range<u64> {
        self.next += calls;
        self.next - calls..self.next
    }
}

/// Splits `calls` so that no part changes the number of sessions much.
fn parts(sessions: u64, calls: u64) -> impl Iterator<Item = u64> {
    let most = (sessions / 8).clamp(100, 100_000);
    (0..calls.div_ceil(most)).map(move |part| most.min(calls - part * most))
}

fn hit(bench: &mut Bench, calls: u64) -> Duration {
    let sessions = bench.sessions;
    bench.time(0..calls, |store, n| {
        _ = black_box(lookup(store, scatter(n) % sessions));
    })
}

fn miss(bench: &mut Bench, calls: u64) -> Duration {
    let range = bench.fresh(calls);
    bench.time(range, |store, n| _ = black_box(lookup(store, n)))
}

fn insert_new(bench: &mut Bench, calls: u64) -> Duration {
    let sessions = bench.sessions;
    let part = |calls| {
        let range = bench.fresh(calls);
        let took = bench.time(range.clone(), |store, n| {
            _ = insert(store, n, bench.certificate)
        });
        range.for_each(|n| delete(&bench.store, n));
        took
    };
    parts(sessions, calls).map(part).sum()
}

fn delete_some(bench: &mut Bench, calls: u64) -> Duration {
    let sessions = bench.sessions;
    let part = |calls| {
        let range = bench.fresh(calls);
        range
            .clone()
            .for_each(|n| _ = insert(&bench.store, n, bench.certificate));
        bench.time(range, delete)
    };
    parts(sessions, calls).map(part).sum()
}

/// The store's bound is its present number of sessions.
fn evict(bench: &mut Bench, calls: u64) -> Duration {
    let range = bench.fresh(calls);
    bench.time(range, |store, n| _ = insert(store, n, bench.certificate))
}

fn measure(
    criterion: &mut Criterion,
    bench: &mut Bench,
    (name, call, threads): (&str, Call, &[u64]),
) {
    let mut group = criterion.benchmark_group(name);
    configure(&mut group);
    for &threads in threads {
        bench.threads = threads;
        let case = format!("{}_{}", bench.certificate, threads);
        group.bench_function(BenchmarkId::new(case, bench.sessions), |bencher| {
            bencher.iter_custom(|calls| call(bench, calls));
        });
    }
    group.finish();
}

fn configure(group: &mut BenchmarkGroup<WallTime>) {
    group
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500));
}

fn measure_all(criterion: &mut Criterion, sessions: u64, certificate: usize) {
    let mut bench = Bench::new(sessions, certificate);
    for call in CALLS {
        measure(criterion, &mut bench, call);
    }
    bench.store.set_limits(at_most(sessions));
    measure(criterion, &mut bench, ("evict", evict, &[1, 2]));
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for (sizes, certificate) in [(&PLAIN[..], 0), (&LONG[..], CERTIFICATE)] {
        for sessions in sizes {
            measure_all(&mut criterion, *sessions, certificate);
        }
    }
    criterion.final_summary();
}
