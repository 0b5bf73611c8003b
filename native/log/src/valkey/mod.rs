//! A log in the streams of a Valkey server or cluster, or of Redis from 6.2 on.
//!
//! The keys are `rekindle:2:{SCOPE}:control` and, for each partition N, `rekindle:2:{SCOPE:N}:sessions`. A record is an
//! entry with one field, `r`. A cluster also has `rekindle:2:bell`, a short stream in which writers name the streams
//! that they have appended to. Followers wait for the bell, because no command can wait for streams on several servers.
//!
//! No key has an expiry: it would follow the server's clock, and a clock that is corrected could drop a log in use.
//!
//! The user needs XADD, XTRIM, XREAD, XREVRANGE, XINFO and TIME for keys `rekindle:2:*`, and CLUSTER SLOTS in a cluster.
//! With the right to MEMORY USAGE the size of a scope is measured, without it estimated. With the right to INFO the
//! eviction policy is known: if it can evict the log, a notice says so.
//!
//! The client is Rekindle's own and small, because the usual one bounds neither the memory of an answer nor the time of
//! a call.

mod config;
mod connection;
mod follower;
mod reader;
mod resp;
mod servers;
mod trim;
mod writer;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use config::{Password, ValkeyConfig};

use crate::{Log, LogError, LogFollower, LogReader, LogWriter, Record, Stream};
use resp::Value;

/// A call's time for answers. The work after the last answer must fit into the 10 seconds that a call may take.
const CALL: Duration = Duration::from_secs(9);
/// How many entries a command may ask for, in all streams together. So the answer stays far below its limit.
const MAX_ENTRIES: usize = 10_000;
/// The field of an entry with the record.
const FIELD: &[u8] = b"r";
/// In a cluster, the stream that names the streams with new entries.
const BELL: &[u8] = b"rekindle:2:bell";

/// A log in the streams of a Valkey server or cluster.
pub struct ValkeyLog {
    config: Arc<ValkeyConfig>,
}

impl ValkeyLog {
    /// Does not connect yet. Fails if the settings are wrong, as far as that can be seen without a file or a server.
    pub fn new(config: ValkeyConfig) -> Result<Self, LogError> {
        config.check().map_err(LogError)?;
        let config = Arc::new(config);
        Ok(Self { config })
    }
}

impl Log for ValkeyLog {
    fn location(&self) -> String {
        self.config.location()
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn writer(&self) -> Box<dyn LogWriter> {
        Box::new(writer::Writer::new(self.config.clone()))
    }

    fn reader(&self) -> Box<dyn LogReader> {
        Box::new(reader::Reader::new(self.config.clone()))
    }

    fn follower(&self) -> Option<Box<dyn LogFollower>> {
        Some(Box::new(follower::Follower::new(self.config.clone())))
    }
}

/// The id of an entry. It orders the stream: milliseconds of the server's clock, and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Id(u64, u64);

impl Id {
    fn parse(text: &[u8]) -> Option<Self> {
        let (time, number) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self(time.parse().ok()?, number.parse().ok()?))
    }

    /// The id before this one. No entry has 0-0.
    fn previous(self) -> Option<Self> {
        let previous = match self.1.checked_sub(1) {
            Some(number) => Self(self.0, number),
            None => Self(self.0.checked_sub(1)?, u64::MAX),
        };
        Some(previous).filter(|id| *id != Self::default())
    }

    fn next(self) -> Self {
        match self.1.checked_add(1) {
            Some(number) => Self(self.0, number),
            None => Self(self.0.saturating_add(1), 0),
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// Entries of a stream, in the order of the answer, each with its record if it can be one.
#[derive(Debug, PartialEq)]
struct Page {
    entries: Vec<(Id, Option<Record>)>,
    /// The first entry whose record had no room in memory.
    cut_at: Option<Id>,
}

impl Page {
    /// Whether the ids are at most this one and descend. Otherwise reading backwards might never end.
    fn descends_from(&self, first: Id) -> bool {
        let mut upto = Some(first);
        let ids = self.entries.iter().map(|(id, _)| *id);
        ids.chain(self.cut_at).all(|id| {
            let is_next = upto.is_some_and(|upto| id <= upto);
            upto = id.previous();
            is_next
        })
    }
}

/// The entries in an answer, or `None` if it has another form.
fn page(answer: Value) -> Option<Page> {
    let Value::Array(values) = answer else {
        return None;
    };
    let mut page = Page {
        entries: Vec::with_capacity(values.len()),
        cut_at: None,
    };
    for value in values {
        let [Value::Text(id), fields] = value.array()? else {
            return None;
        };
        let id = Id::parse(&id)?;
        let mut fields = match fields {
            Value::Array(fields) => fields.into_iter(),
            _ => Vec::new().into_iter(),
        };
        let record = match (fields.next(), fields.next()) {
            (Some(Value::Text(name)), Some(Value::Text(record))) if name == FIELD => Some(record),
            (Some(Value::Text(name)), Some(Value::NoRoom)) if name == FIELD => {
                page.cut_at = Some(id);
                break;
            }
            _ => None,
        };
        page.entries.push((id, record));
    }
    Some(page)
}

/// The length of a stream, and the last id that it ever had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Extent {
    length: u64,
    last: Id,
}

/// The answer to XINFO STREAM: `Err` with the server's error, or `None` if the answer makes no sense.
fn extent(answer: Value) -> Result<Option<Extent>, String> {
    let values = match answer {
        Value::Error(error) if error == "ERR no such key" => return Ok(Some(Extent::default())),
        Value::Error(error) => return Err(error),
        Value::Array(values) => values,
        _ => return Ok(None),
    };
    let mut length = None;
    let mut last = None;
    let mut values = values.into_iter();
    while let (Some(Value::Text(name)), Some(value)) = (values.next(), values.next()) {
        match (&name[..], value) {
            (b"length", Value::Int(value)) => length = u64::try_from(value).ok(),
            (b"last-generated-id", Value::Text(id)) => last = Id::parse(&id),
            _ => {}
        }
    }
    Ok(length
        .zip(last)
        .map(|(length, last)| Extent { length, last }))
}

/// The part of a key between the braces: without characters that would end it or that cannot be typed.
fn escaped(scope: &str) -> String {
    let mut escaped = String::new();
    for c in scope.chars() {
        if c.is_control() || c.is_whitespace() || matches!(c, '%' | '{' | '}' | ':') {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                escaped.push_str(&format!("%{byte:02X}"));
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// The keys of a scope: that of the control stream first, then those of the partitions.
fn keys(config: &ValkeyConfig, scope: &str) -> Vec<Vec<u8>> {
    let scope = escaped(scope);
    let control = format!("rekindle:2:{{{scope}}}:control");
    let sessions = (0..config.partitions)
        .map(|partition| format!("rekindle:2:{{{scope}:{partition}}}:sessions"));
    [control]
        .into_iter()
        .chain(sessions)
        .map(String::into_bytes)
        .collect()
}

/// The stream of a scope whose key has this index.
fn stream_of(index: usize) -> Stream {
    match index {
        0 => Stream::Control,
        _ => Stream::Sessions,
    }
}

fn deadline() -> Instant {
    Instant::now() + CALL
}

fn error(config: &ValkeyConfig, task: &str, why: &str) -> LogError {
    LogError(format!(
        "cannot {task} the log at {}: {why}",
        config.location()
    ))
}

/// An error that a server returned for a key.
fn error_for(config: &ValkeyConfig, task: &str, why: &str, key: &[u8]) -> LogError {
    let key = String::from_utf8_lossy(key);
    error(config, task, &format!("{why} (key {key})"))
}

fn nonsense(config: &ValkeyConfig, task: &str, command: &str) -> LogError {
    error(
        config,
        task,
        &format!("its answer to {command} makes no sense"),
    )
}

#[cfg(test)]
mod tests;
