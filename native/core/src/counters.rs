use crate::lookups::Lookups;
use crate::trust::CertificateMiss;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

/// Why a session was not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its server name, its certificate or the rest of it is larger than the store accepts.
    TooLarge,
    /// The bounds are too narrow for this session alone, or the system has no memory.
    NoRoom,
    /// A field could hold a private key.
    PrivateKey,
    /// It is a session record with unknown fields.
    Layout,
    /// It would be expired at once.
    Lifetime,
    /// Its client certificate is not [in canonical form](crate::is_canonical).
    Certificate,
}

impl Refusal {
    /// All of them, in the order of [`Counts::refused`].
    pub const ALL: [Refusal; 6] = [
        Refusal::TooLarge,
        Refusal::NoRoom,
        Refusal::PrivateKey,
        Refusal::Layout,
        Refusal::Lifetime,
        Refusal::Certificate,
    ];
}

/// Counts of events in a scope since it was opened. Each event is counted as it happens.
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
    /// Calls that failed below OTP's callback, which then answered as an empty store would.
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
    /// Misses of sessions that were evicted recently.
    pub evicted_misses: u64,
    /// Misses of sessions that went recently for another reason: they expired, or an operator or ssl dropped them.
    pub lost_misses: u64,
    /// Misses of sessions that are stored but must not be resumed, in the order of [`CertificateMiss::ALL`].
    pub certificate_misses: [u64; CertificateMiss::ALL.len()],
    pub expired: u64,
    pub evicted: u64,
    pub moved: u64,
    /// Sessions not stored, in the order of [`Refusal::ALL`].
    pub refused: [u64; Refusal::ALL.len()],
    pub faults: u64,
}

impl Counts {
    /// Sessions not stored, for all reasons together.
    pub fn refused_total(&self) -> u64 {
        self.refused.iter().sum()
    }

    /// Misses of ids that the store does not know: it never had them, or too long ago.
    pub fn unknown_misses(&self) -> u64 {
        // The counters are read one after the other, so the sum may be larger.
        self.misses.saturating_sub(
            self.evicted_misses + self.lost_misses + self.certificate_misses_total(),
        )
    }

    /// Misses of sessions that must not be resumed, for all reasons together.
    pub fn certificate_misses_total(&self) -> u64 {
        self.certificate_misses.iter().sum()
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
            certificate_misses: std::array::from_fn(|why| {
                self.lookups.sum(|line| &line.certificate_misses[why])
            }),
            expired: self.expired.load(Relaxed),
            evicted: self.evicted.load(Relaxed),
            moved: self.moved.load(Relaxed),
            refused: std::array::from_fn(|reason| self.refused[reason].load(Relaxed)),
            faults: self.faults.load(Relaxed),
        }
    }
}
