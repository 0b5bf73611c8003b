//! What a log has to do: be appended to, be read, be trimmed by age. It sees sealed records only.
//!
//! A writer and a reader live as long as the journal. They connect, or open, when they are first used and
//! again after an error: a call that fails may be repeated, and goes on where the one before has stopped.
//! Each is used by one thread, which may be kept waiting, but for no longer than some seconds a call.

use std::fmt;
use std::time::Duration;

/// Each scope has two logs, of which one is read as a whole before the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lane {
    /// What sessions have in common, and which ones are revoked: few records.
    Control,
    /// Sessions.
    Births,
}

/// A sealed record.
pub type Record = Vec<u8>;

/// The end of a log that is written to.
pub trait LogWriter: Send {
    /// Adds records to the end of a lane, in their order. When it returns, they outlive this process. After an
    /// error any of them may be in the log; they are then appended once more, and readers expect that.
    fn append(&mut self, lane: Lane, records: &[Record]) -> Result<(), LogError>;

    /// Makes what was appended outlive a power cut, where that is this side's to do.
    fn sync(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    /// Drops, sooner or later, what was appended longer ago than this.
    fn trim(&mut self, keep: Duration) -> Result<(), LogError>;

    /// What an operator should know of that happened to the log, once.
    fn take_notice(&mut self) -> Option<String> {
        None
    }
}

/// The end of a log that is read from.
pub trait LogReader: Send {
    /// Takes the present end of the log for what [`older`](Self::older) goes back from and
    /// [`newer`](Self::newer) goes on from. Called once, before these.
    fn mark(&mut self) -> Result<(), LogError>;

    /// The next records of a lane on the way back, newest first, about `limit` at most. None at the beginning.
    fn older(&mut self, lane: Lane, limit: usize) -> Result<Vec<Record>, LogError>;

    /// The next records on the way forward, oldest first, about `limit` at most. Waits up to `wait` for the
    /// first of them.
    fn newer(&mut self, limit: usize, wait: Duration) -> Result<Vec<(Lane, Record)>, LogError>;

    /// How far the log's clock is ahead of this machine's, in milliseconds, where it has one of its own.
    fn clock_ahead_ms(&mut self) -> Result<Option<i64>, LogError> {
        Ok(None)
    }
}

/// Why a log could not be used, in words for an operator: what was tried, what failed. Nothing of it is secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogError(pub String);

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LogError {}
