//! The data that lookups write: which bucket they read, and counters. Threads that look up at the same time must not write to
//! one cache line, which would move between their processors. So each thread has a line of its own.
//!
//! # Readers without a lock
//!
//! A reader announces a bucket in its line, and then reads the bucket if its lock is free. A writer takes the lock, and then
//! waits until no line has the bucket. All threads see these four accesses in one order (`SeqCst`): the reader's announcement
//! before its look at the lock, and the writer's taking of the lock before its look at the lines. So either the reader sees
//! that the lock is taken, or the writer sees the announcement. A reader that sees that the lock is taken withdraws, and
//! waits for the lock as a writer does.
//!
//! A reader ends its announcement with a release store. A writer that sees it also sees that the reads before it are over.

use crate::sync::{line_of_thread, Pause};
use crate::trust::CertificateMiss;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};

/// More threads than this share lines. They do not wait for each other: the second one locks the bucket instead.
const LINES: usize = if cfg!(shuttle) { 2 } else { 16 };

/// Nothing is announced.
const NOTHING: usize = 0;

#[derive(Debug, Default)]
pub(crate) struct Lookups {
    lines: [Line; LINES],
    /// The counters of threads whose line is in use.
    common: Line,
}

/// Two cache lines, because processors fetch them in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Line {
    /// The address of a bucket. Meanwhile only its reader writes to the line.
    announced: AtomicUsize,
    pub hits: AtomicU64,
    pub misses: AtomicU64,
    /// Misses of sessions that went for another reason than eviction.
    pub lost: AtomicU64,
    /// Misses of sessions that are stored but must not be resumed, by reason.
    pub certificate_misses: [AtomicU64; CertificateMiss::ALL.len()],
    /// Hits of sessions that the policy keeps, by class.
    pub kept_hits: [AtomicU64; 2],
    /// Misses of sessions that were evicted recently, by class.
    pub returns: [AtomicU64; 2],
}

impl Lookups {
    /// Announces a bucket until the result is dropped. `None` if another reader uses the line.
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

    /// Waits until no thread reads this bucket. Only for the thread that has its lock.
    pub fn await_readers_of(&self, bucket: usize) {
        for line in &self.lines {
            line.await_change(|announced| announced == bucket);
        }
    }

    /// Waits until all present announcements have ended. After that, no thread reads data that was unreachable before the call.
    pub fn await_all(&self) {
        for line in &self.lines {
            let announced = line.announced.load(SeqCst);
            line.await_change(|now| now == announced && now != NOTHING);
        }
    }

    /// The counters for threads without an announcement.
    pub fn common(&self) -> &Line {
        &self.common
    }

    pub fn sum(&self, counter: impl Fn(&Line) -> &AtomicU64) -> u64 {
        let lines = self.lines.iter().chain([&self.common]);
        lines.map(|line| counter(line).load(Relaxed)).sum()
    }
}

impl Line {
    /// Sleeps if it takes long, and nobody wakes it: to check for waiting threads, each reader would need another atomic
    /// exchange. A reader takes less than a microsecond, unless the system has suspended it.
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
    /// Adds one to a counter. No other thread writes to the line, so this needs no atomic addition.
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
