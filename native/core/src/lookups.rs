//! What lookups write: which bucket is being read, and counts. Threads that look up at once must not write to one
//! cache line, which would go back and forth between their processors: each has a line of its own.
//!
//! # Readers that lock nothing
//!
//! A reader announces a bucket in its line, and reads the bucket if its lock is free then. A writer takes the lock,
//! and waits until nobody has the bucket announced. Of these four steps the announcement and the look at the lock are
//! in one order for all threads, and so are the taking of the lock and the look at the lines (`SeqCst`). So either the
//! reader sees the lock taken, or the writer sees the announcement. A reader that sees the lock taken withdraws, and
//! waits for the lock as a writer does.
//!
//! A reader's announcement ends with a store that releases what it read to the writer that sees it.

use crate::sync::{line_of_thread, Pause};
use crate::trust::Ended;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};

/// Threads that share a line do not wait for each other: the second one locks the bucket.
const LINES: usize = if cfg!(shuttle) { 2 } else { 16 };

/// Nothing is announced.
const NOTHING: usize = 0;

#[derive(Debug, Default)]
pub(crate) struct Lookups {
    lines: [Line; LINES],
    /// For those whose line is taken.
    common: Line,
}

/// Two cache lines, as processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Line {
    /// The address of a bucket. The line is its reader's alone meanwhile.
    announced: AtomicUsize,
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    /// Misses of sessions that were there, and were not evicted.
    pub lost: AtomicU64,
    /// Misses of sessions that are there and must not be resumed, by reason.
    pub ended: [AtomicU64; Ended::ALL.len()],
    /// Hits of sessions that the policy keeps, by class.
    pub kept_hits: [AtomicU64; 2],
    /// Misses of sessions that were evicted not long ago, by class.
    pub returns: [AtomicU64; 2],
}

impl Lookups {
    /// Announces a bucket until the answer is dropped. `None` if another reader has the line.
    #[inline]
    pub fn announce(&self, bucket: usize) -> Option<Announced<'_>> {
        #[cfg(shuttle)]
        crate::sync::thread::yield_now();
        let line = &self.lines[line_of_thread() % LINES];
        let announced = line
            .announced
            .compare_exchange(NOTHING, bucket, SeqCst, Relaxed);
        #[cfg(shuttle)]
        crate::sync::thread::yield_now();
        announced.ok().map(|_| Announced(line))
    }

    /// Waits until nobody reads this bucket. For whoever has its lock.
    pub fn await_readers_of(&self, bucket: usize) {
        for line in &self.lines {
            line.await_change(|announced| announced == bucket);
        }
    }

    /// Waits until all that is announced now has ended: nobody reads any more what nobody comes to since then.
    pub fn await_all(&self) {
        for line in &self.lines {
            let announced = line.announced.load(SeqCst);
            line.await_change(|now| now == announced && now != NOTHING);
        }
    }

    /// For who has announced nothing.
    pub fn common(&self) -> &Line {
        &self.common
    }

    pub fn sum(&self, counter: impl Fn(&Line) -> &AtomicU64) -> u64 {
        let lines = self.lines.iter().chain([&self.common]);
        lines.map(|line| counter(line).load(Relaxed)).sum()
    }
}

impl Line {
    /// Sleeps where it takes long, and is not woken: to look whether somebody waits, each reader would need another
    /// exchange. Readers take less than a microsecond, unless the system has taken the processor away from one.
    fn await_change(&self, is_awaited: impl Fn(usize) -> bool) {
        let mut pause = Pause::new();
        loop {
            #[cfg(shuttle)]
            crate::sync::thread::yield_now();
            if !is_awaited(self.announced.load(SeqCst)) {
                return;
            }
            pause.pause();
        }
    }
}

/// An announcement.
pub(crate) struct Announced<'a>(&'a Line);

impl Announced<'_> {
    /// Adds one to a counter. Nobody else writes to the line, so this needs no exchange.
    pub fn count(&self, counter: impl Fn(&Line) -> &AtomicU64) {
        let counter = counter(self.0);
        counter.store(counter.load(Relaxed) + 1, Relaxed);
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.0.announced.store(NOTHING, Release);
    }
}
