use crate::lookups::Lookups;
use crate::trust::Ended;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

/// Why a session was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its server name, its certificate or what is kept of it besides is larger than what the store takes.
    TooLarge,
    /// The bounds are too narrow for this session alone, or the system has no memory.
    NoRoom,
    /// A field could hold a private key.
    PrivateKey,
    /// It is a session record of a shape that is not understood.
    Layout,
    /// It would be expired at once.
    Lifetime,
}

impl Refusal {
    /// All of them, in the order of [`Counts::refused`].
    pub const ALL: [Refusal; 5] = [
        Refusal::TooLarge,
        Refusal::NoRoom,
        Refusal::PrivateKey,
        Refusal::Layout,
        Refusal::Lifetime,
    ];
}

/// What happened in a scope since it was opened. Each is counted as it happens.
#[derive(Debug, Default)]
pub struct Counters {
    /// Sessions stored.
    pub inserts: AtomicU64,
    /// Sessions dropped because their lifetime ran out.
    pub expired: AtomicU64,
    /// Sessions dropped to keep a bound.
    pub evicted: AtomicU64,
    /// Sessions and certificates that were moved to give pages back to the system.
    pub moved: AtomicU64,
    /// Calls that failed below OTP's callback and were answered as if the store were empty.
    pub faults: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    pub(crate) lookups: Arc<Lookups>,
}

/// The values of [`Counters`] at one moment, with the same names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Counts {
    pub inserts: u64,
    /// Lookups that found a session.
    pub hits: u64,
    /// Lookups that found none, or only an expired one.
    pub misses: u64,
    /// Those of the misses whose sessions were evicted not long ago.
    pub evicted_misses: u64,
    /// Those of the misses whose sessions were here not long ago and went for another reason: they expired, or somebody
    /// dropped them.
    pub lost_misses: u64,
    /// Those of the misses whose sessions are there and must not be resumed, in the order of [`Ended::ALL`].
    pub ended: [u64; Ended::ALL.len()],
    pub expired: u64,
    pub evicted: u64,
    pub moved: u64,
    /// Sessions not stored, in the order of [`Refusal::ALL`].
    pub refused: [u64; Refusal::ALL.len()],
    pub faults: u64,
}

impl Counts {
    /// Sessions not stored, for whatever reason.
    pub fn refused_total(&self) -> u64 {
        self.refused.iter().sum()
    }

    /// Misses of ids of which nothing is known: this store did not make them, or it is too long ago.
    pub fn unknown_misses(&self) -> u64 {
        // They are read one after the other.
        self.misses
            .saturating_sub(self.evicted_misses + self.lost_misses + self.ended_total())
    }

    /// Misses of sessions that must not be resumed, for whatever reason.
    pub fn ended_total(&self) -> u64 {
        self.ended.iter().sum()
    }
}

impl Counters {
    /// Adds one to `counter` and returns the new value.
    pub fn add(counter: &AtomicU64) -> u64 {
        counter.fetch_add(1, Relaxed) + 1
    }

    /// Counts a session that was not stored.
    pub fn refuse(&self, refusal: Refusal) {
        Self::add(&self.refused[refusal as usize]);
    }

    /// Reads all counters, one after the other.
    pub fn read(&self) -> Counts {
        Counts {
            inserts: self.inserts.load(Relaxed),
            hits: self.lookups.sum(|line| &line.hits),
            misses: self.lookups.sum(|line| &line.misses),
            evicted_misses: self.lookups.sum(|line| &line.returns[0])
                + self.lookups.sum(|line| &line.returns[1]),
            lost_misses: self.lookups.sum(|line| &line.lost),
            ended: std::array::from_fn(|why| self.lookups.sum(|line| &line.ended[why])),
            expired: self.expired.load(Relaxed),
            evicted: self.evicted.load(Relaxed),
            moved: self.moved.load(Relaxed),
            refused: std::array::from_fn(|reason| self.refused[reason].load(Relaxed)),
            faults: self.faults.load(Relaxed),
        }
    }
}
