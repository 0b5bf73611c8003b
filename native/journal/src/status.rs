//! Counts, states and events of a journal, for operators.

use crate::record::Skipped;
use once_cell::sync::{Lazy, OnceCell};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Limit on the events that wait to be taken.
const MAX_EVENTS: usize = if cfg!(test) { 100_000 } else { 256 };

/// A part that must be in order for a journal to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Keys,
    /// The node's memory cannot be loaded.
    Memory,
    Writer,
    /// The log cannot be read from its beginning.
    Reader,
    /// New records cannot be read.
    Follower,
    /// No session is read from the log, because it may lack revocations.
    Replay,
}

const PARTS: usize = 6;

/// An event of a journal, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The scope's name.
    pub scope: Vec<u8>,
    /// Where the log is.
    pub location: String,
    /// What happened.
    pub kind: EventKind,
}

/// The kind of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// The journal has stopped working, and why.
    Down(String),
    /// The journal works again.
    Up {
        /// How long it did not work, in milliseconds.
        after_ms: u64,
        /// Sessions that were not written in that time.
        dropped: u64,
    },
    /// The log has been read at the start.
    Replayed {
        /// Sessions that were put into the store.
        sessions: u64,
        /// How long reading took, in milliseconds.
        took_ms: u64,
    },
    /// A notice for the operator.
    Noticed(String),
}

static EVENTS: Lazy<Mutex<VecDeque<Event>>> = Lazy::new(Mutex::default);

/// Takes the events of all journals of the process since the last call, the oldest first.
pub fn take_events() -> Vec<Event> {
    EVENTS.lock().drain(..).collect()
}

/// Counts and states. Counts begin when the journal opens.
#[derive(Default)]
pub(crate) struct Status {
    pub written: AtomicU64,
    pub written_bytes: AtomicU64,
    pub dropped: AtomicU64,
    pub read: AtomicU64,
    pub applied: AtomicU64,
    pub known: AtomicU64,
    pub lag_ms: AtomicU64,
    pub clock_ahead_ms: AtomicI64,
    /// How long the first replay took, once it is done.
    pub replay_ms: OnceCell<u64>,
    /// Bytes in the log, plus one; 0 while they are unknown.
    pub log_bytes: AtomicU64,
    pub skipped: [AtomicU64; Skipped::ALL.len()],
    health: Mutex<Health>,
}

#[derive(Default)]
struct Health {
    /// Why a part does not work.
    errors: [Option<String>; PARTS],
    /// Whether anything has been written at all.
    has_written: bool,
    last_error: Option<String>,
    since: Option<Instant>,
    dropped_before: u64,
}

/// A journal's state and counts.
#[derive(Debug, Clone)]
pub struct Report {
    /// Where the log is, without any password.
    pub location: String,
    /// Whether it works: the error if it does not, `None` before the first try.
    pub health: Option<Result<(), String>>,
    /// How long it has been in this state, in milliseconds.
    pub since_ms: u64,
    /// The last error, if there was one.
    pub last_error: Option<String>,
    /// Records that wait to be written.
    pub queued: u64,
    /// Records written.
    pub written: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Sessions that were not written, because too many waited.
    pub dropped: u64,
    /// Records read.
    pub read: u64,
    /// Sessions put into the store.
    pub applied: u64,
    /// Sessions that were read and that the store had already.
    pub known: u64,
    /// How many records were not used, by reason, in the order of [`Skipped::ALL`].
    pub skipped: Vec<u64>,
    /// Revocations that are remembered.
    pub revocations: u64,
    /// Revocations that are not in the log yet.
    pub unwritten: u64,
    /// Revocations that other nodes know and this one does not.
    pub missing: u64,
    /// Where the node remembers revocations, outside the log.
    pub node_folder: Option<String>,
    /// Why that folder cannot be used.
    pub node_folder_error: Option<String>,
    /// Bytes of the file in that folder.
    pub node_folder_bytes: u64,
    /// Bytes of the scope in the log, if known.
    pub log_bytes: Option<u64>,
    /// How old the last session of another node was when it was read, in milliseconds.
    pub lag_ms: u64,
    /// How far the log's clock is ahead of this machine's, in milliseconds.
    pub clock_ahead_ms: i64,
    /// How long the replay took, in milliseconds; `None` while it goes on.
    pub replay_ms: Option<u64>,
    /// The names of the keys, the newest last.
    pub keys: Vec<String>,
    /// Whether other nodes read and write this log.
    pub is_shared: bool,
}

impl Health {
    /// The first error. Without keys the writer fails as well, and the keys are the cause.
    fn error(&self) -> Option<&String> {
        self.errors.iter().flatten().next()
    }
}

impl Status {
    /// Notes how long a replay took. Only the first one counts.
    pub fn note_replay(&self, took_ms: u64) {
        let _ = self.replay_ms.set(took_ms);
    }

    pub fn skip(&self, reason: Skipped) {
        self.skipped[reason.index()].fetch_add(1, Relaxed);
    }

    /// Notes that a part works, or why it does not. Returns an event if that changes whether the journal works.
    pub fn set(&self, part: Part, state: Result<(), String>) -> Option<EventKind> {
        let mut health = self.health.lock();
        let was_down = health.error().is_some();
        health.has_written |= part == Part::Writer && state.is_ok();
        let error = state.err();
        if error.is_some() {
            health.last_error.clone_from(&error);
        }
        health.errors[part as usize] = error;
        let error = health.error().cloned();
        match (was_down, error) {
            (false, Some(error)) => {
                health.since = Some(Instant::now());
                health.dropped_before = self.dropped.load(Relaxed);
                Some(EventKind::Down(error))
            }
            (true, None) => {
                let since = health.since.replace(Instant::now());
                Some(EventKind::Up {
                    after_ms: since.map_or(0, |since| since.elapsed().as_millis() as u64),
                    dropped: self.dropped.load(Relaxed) - health.dropped_before,
                })
            }
            _ => {
                health.since.get_or_insert_with(Instant::now);
                None
            }
        }
    }

    /// Whether a part does not work.
    pub fn is_failing(&self, part: Part) -> bool {
        self.health.lock().errors[part as usize].is_some()
    }

    /// Whether it works, for how long in milliseconds, and the last error.
    pub fn health(&self) -> (Option<Result<(), String>>, u64, Option<String>) {
        let health = self.health.lock();
        let error = health.error();
        let state = match error {
            Some(error) => Some(Err(error.clone())),
            None => health.has_written.then_some(Ok(())),
        };
        let last_error = error.or(health.last_error.as_ref()).cloned();
        let since = health.since.map_or(0, |since| since.elapsed().as_millis());
        (state, since as u64, last_error)
    }
}

pub(crate) fn emit(event: Event) {
    let mut events = EVENTS.lock();
    if events.len() == MAX_EVENTS {
        events.pop_front();
    }
    events.push_back(event);
}
