//! Logs of sealed records, each for all scopes of a node: in a folder, or in the streams of a Valkey server.
//!
//! Writers, readers and followers connect, or open files, on first use and again after an error. The caller may repeat
//! a call that failed. One thread uses each of them, and no call takes longer than 10 seconds. What a server answers
//! takes no more than 64 MiB of memory, in a call and after it.

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
    /// Revocations, and records that sessions refer to. There are few.
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

    /// A new writer.
    fn writer(&self) -> Box<dyn LogWriter>;

    /// A new reader.
    fn reader(&self) -> Box<dyn LogReader>;

    /// A new follower, which reads records of other nodes; `None` if no other node writes to the log.
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
    /// Sessions older than this are dropped. A log that nodes share keeps control records twice as long: a node that
    /// learns a revocation late also needs it later.
    pub keep: Duration,
    /// If the scope takes more bytes than this, its oldest sessions are dropped, but never a control record.
    pub max_bytes: u64,
}

/// Appends to a log.
pub trait LogWriter: Send {
    /// Appends the records of each scope, its control records before its first session. Returns one result per batch,
    /// in their order, or an error if it could try none. Records of a batch with `Ok` outlive this process. After an
    /// error, any record may be in the log or not: the caller appends all of them again, and readers expect records
    /// twice.
    fn append(&mut self, batches: &[Batch]) -> Result<Vec<Result<(), LogError>>, LogError>;

    /// Makes appended records outlive a power cut, if that is this side's task.
    fn sync(&mut self) -> Result<(), LogError> {
        Ok(())
    }

    /// Drops records that exceed the bounds of the scopes. A call may leave some of them to the next one. The age of a
    /// record is the time that a log, or this process, has seen pass since it was appended; wall clocks do not count.
    fn trim(&mut self, scopes: &[Bounds]) -> Result<(), LogError>;

    /// How many bytes the scope took when it was last trimmed, if known.
    fn bytes(&self, scope: &str) -> Option<u64>;

    /// A notice for the operator. Returns each notice once.
    fn take_notice(&mut self) -> Option<String> {
        None
    }
}

/// Reads one scope backwards, from the end that [`mark`](Self::mark) found.
pub trait LogReader: Send {
    /// Marks the present ends of the scope's streams: reading begins there. A follower can continue from the mark.
    fn mark(&mut self, scope: &str) -> Result<Mark, LogError>;

    /// The next older records of a stream of the marked scope, newest first, about `limit` at most. Empty at the
    /// beginning of the stream.
    fn older(&mut self, stream: Stream, limit: usize) -> Result<Vec<Record>, LogError>;

    /// How many milliseconds the log's clock is ahead of this machine's; `None` if the log has no clock of its own.
    fn clock_ahead_ms(&mut self) -> Result<Option<i64>, LogError> {
        Ok(None)
    }
}

/// Where the streams of a scope ended: one position per stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mark(pub Vec<(u64, u64)>);

/// Reads new records of scopes, of this node and of others.
pub trait LogFollower: Send {
    /// Follows a scope from a mark on. If it followed the scope already, it now begins at this mark.
    fn follow(&mut self, scope: &Arc<str>, from: &Mark);

    /// Stops following a scope.
    fn leave(&mut self, scope: &str);

    /// New records of the followed scopes, about `limit` at most. Waits up to `wait` for the first.
    fn newer(&mut self, limit: usize, wait: Duration) -> Result<News, LogError>;
}

/// What a follower found.
#[derive(Debug, Default)]
pub struct News {
    /// Records: those of a stream oldest first, and of a scope the control records before the sessions.
    pub records: Vec<(Arc<str>, Stream, Record)>,
    /// Scopes whose control stream may have lost records: it was emptied, set back or trimmed, or has fewer records
    /// than this follower has seen. After the connection was lost, all scopes.
    pub lost: Vec<Arc<str>>,
    /// Scopes that cannot be read now though the others can, and why. They are listed on every call while that lasts.
    pub refused: Vec<(Arc<str>, LogError)>,
}

/// Why a log could not be used, as a line for the operator: what was tried and what failed. Contains no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogError(pub String);

impl fmt::Display for LogError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for LogError {}
