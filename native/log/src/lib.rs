//! Logs of sealed records, each for all scopes of a node: in a folder, or in the streams of a Valkey server.
//!
//! Writers, readers and followers connect, or open, on first use and again after an error. A call that failed may be
//! repeated. Each is used by one thread, and no call takes longer than 10 seconds.

#![deny(missing_docs)]

#[cfg(feature = "folder")]
mod folder;
mod place;
pub mod sealed_file;

#[cfg(feature = "valkey")]
mod valkey;

#[cfg(feature = "folder")]
pub use folder::Folder;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

#[cfg(feature = "valkey")]
pub use valkey::{Password, ValkeyConfig, ValkeyLog};

/// The two streams of a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stream {
    /// Revocations, and what sessions refer to: few records.
    Control,
    /// Sessions.
    Sessions,
}

/// A sealed record.
pub type Record = Vec<u8>;

/// A log for all scopes of a node.
pub trait Log: Send + Sync {
    /// Where the log is, without any password.
    fn location(&self) -> String;

    /// Whether other nodes read and write the log as well.
    fn is_shared(&self) -> bool;

    /// Something to append with.
    fn writer(&self) -> Box<dyn LogWriter>;

    /// Something to read back with.
    fn reader(&self) -> Box<dyn LogReader>;

    /// Something to read new records of other nodes with; `None` if no other node writes.
    fn follower(&self) -> Option<Box<dyn LogFollower>>;
}

/// Records to append for one scope.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// The scope's name.
    pub scope: &'a str,
    /// For the control stream, in this order.
    pub control: &'a [Record],
    /// For the stream of sessions, in this order.
    pub sessions: &'a [Record],
}

/// How much of a scope a log keeps.
#[derive(Debug, Clone, Copy)]
pub struct Bounds<'a> {
    /// The scope's name.
    pub scope: &'a str,
    /// Records older than this are dropped, from both streams.
    pub keep: Duration,
    /// If the scope takes more bytes than this, its oldest sessions are dropped, but never a control record.
    pub max_bytes: u64,
}

/// The end of a log that is appended to.
pub trait LogWriter: Send {
    /// Appends the records of each scope, its control records before its first session. Answers one result for each batch,
    /// in their order, or an error if no batch could be tried. Records of a batch with `Ok` outlive this process. After an
    /// error any of them may be in the log: the caller appends them again, and readers expect records twice.
    fn append(&mut self, batches: &[Batch]) -> Result<Vec<Result<(), LogError>>, LogError>;

    /// Makes what was appended outlive a power cut, where that is this side's task.
    fn sync(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    /// Drops what exceeds the bounds of the scopes, or a part of it: the rest is for the next call. Age is the time that a
    /// log, or this process, has seen pass since a record was appended: never what a wall clock says.
    fn trim(&mut self, scopes: &[Bounds]) -> Result<(), LogError>;

    /// How many bytes the scope took when it was last trimmed, as far as known.
    fn bytes(&self, scope: &str) -> Option<u64>;

    /// What an operator should know about the log, each notice once.
    fn take_notice(&mut self) -> Option<String> {
        None
    }
}

/// Reads one scope backwards, from the end that [`mark`](Self::mark) found.
pub trait LogReader: Send {
    /// Takes the present ends of the scope's streams as the place to read back from. A follower can go on from the mark.
    fn mark(&mut self, scope: &str) -> Result<Mark, LogError>;

    /// The next records of a stream of the marked scope, newest first, about `limit` at most. Empty at the beginning.
    fn older(&mut self, stream: Stream, limit: usize) -> Result<Vec<Record>, LogError>;

    /// How many milliseconds the log's clock is ahead of this machine's, where it has a clock of its own.
    fn clock_ahead_ms(&mut self) -> Result<Option<i64>, LogError> {
        Ok(None)
    }
}

/// Where streams ended: a position for each stream that the log has for the scope.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mark(pub Vec<(u64, u64)>);

/// Reads what is appended to scopes, by whomever.
pub trait LogFollower: Send {
    /// Follows a scope from a mark on, also if it was followed from another mark before.
    fn follow(&mut self, scope: &Arc<str>, from: &Mark);

    /// Follows a scope no longer.
    fn leave(&mut self, scope: &str);

    /// New records of the scopes followed, about `limit` at most. Waits up to `wait` for the first.
    fn newer(&mut self, limit: usize, wait: Duration) -> Result<News, LogError>;
}

/// What a follower found.
#[derive(Debug, Default)]
pub struct News {
    /// Records, oldest first for each stream; of each scope the control records before the sessions.
    pub records: Vec<(Arc<str>, Stream, Record)>,
    /// Scopes whose control stream may have lost records: it was emptied, rolled back, trimmed, or has fewer records than
    /// this follower has seen. Also every scope after the connection was lost.
    pub lost: Vec<Arc<str>>,
}

/// Why a log could not be used: what was tried and what failed, for an operator. Holds no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogError(pub String);

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LogError {}
