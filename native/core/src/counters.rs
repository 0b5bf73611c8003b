use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What happened in a scope since it was opened. Each is counted as it happens.
#[derive(Debug, Default)]
pub struct Counters {
    /// Sessions stored.
    pub inserts: AtomicU64,
    /// Lookups that found a session.
    pub hits: AtomicU64,
    /// Lookups that found none, or only an expired one.
    pub misses: AtomicU64,
    /// Sessions dropped because their lifetime ran out.
    pub expired: AtomicU64,
    /// Sessions dropped to keep a bound.
    pub evicted: AtomicU64,
    /// Sessions that were not stored.
    pub refused: AtomicU64,
    /// Calls that failed below OTP's callback and were answered as if the store were empty.
    pub faults: AtomicU64,
}

/// The values of [`Counters`] at one moment, with the same names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counts {
    pub inserts: u64,
    pub hits: u64,
    pub misses: u64,
    pub expired: u64,
    pub evicted: u64,
    pub refused: u64,
    pub faults: u64,
}

impl Counters {
    /// Adds one to `counter` and returns the new value.
    pub fn add(counter: &AtomicU64) -> u64 {
        counter.fetch_add(1, Relaxed) + 1
    }

    /// Reads all counters, one after the other.
    pub fn read(&self) -> Counts {
        Counts {
            inserts: self.inserts.load(Relaxed),
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
            expired: self.expired.load(Relaxed),
            evicted: self.evicted.load(Relaxed),
            refused: self.refused.load(Relaxed),
            faults: self.faults.load(Relaxed),
        }
    }
}
