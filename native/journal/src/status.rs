//! What a journal did and how it is, for operators.

use crate::record::Skipped;
use once_cell::sync::{Lazy, OnceCell};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// Most events that wait to be told.
const MAX_EVENTS: usize = 256;

/// What has to be in order for a journal to work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Keys,
    /// The node's memory cannot be loaded.
    Memory,
    Writer,
    Reader,
    /// The log is not replayed, as it may lack revocations.
    Replay,
}

const PARTS: usize = 5;

/// What happened to a journal, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The scope's name.
    pub scope: Vec<u8>,
    /// Where the log is.
    pub location: String,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// It does not work any more, and why.
    Down(String),
    /// It works again, after so many milliseconds in which so many sessions were not written.
    Up {
        /// Milliseconds.
        after_ms: u64,
        /// Sessions.
        dropped: u64,
    },
    /// What was in the log is in the store: sessions, and the milliseconds that took.
    Replayed {
        /// Sessions.
        sessions: u64,
        /// Milliseconds.
        took_ms: u64,
    },
    /// Something else to know of.
    Noticed(String),
}

static EVENTS: Lazy<Mutex<VecDeque<Event>>> = Lazy::new(Mutex::default);

/// What happened to all journals of the process since the last call, the oldest first.
pub fn take_events() -> Vec<Event> {
    EVENTS.lock().drain(..).collect()
}

/// Counts and states. Counts begin with the journal.
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
    /// Bytes in the log and one more; 0 while they are not known.
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

/// How a journal is: see the fields.
#[derive(Debug, Clone)]
pub struct Report {
    /// Where the log is, without any password.
    pub location: String,
    /// Whether it works: the error if it does not, `None` if it has not been tried yet.
    pub health: Option<Result<(), String>>,
    /// For how long it has worked, or not, in milliseconds.
    pub since_ms: u64,
    /// The last error, if there was one.
    pub last_error: Option<String>,
    /// Records that wait to be written.
    pub queued: u64,
    /// Records written.
    pub written: u64,
    /// Bytes of these.
    pub written_bytes: u64,
    /// Sessions that were not written, because too many waited.
    pub dropped: u64,
    /// Records read.
    pub read: u64,
    /// Sessions put into the store.
    pub applied: u64,
    /// Sessions read that the store had.
    pub known: u64,
    /// How many records were left out, by reason, in the order of [`Skipped::ALL`].
    pub skipped: Vec<u64>,
    /// Revocations that are remembered.
    pub revocations: u64,
    /// Revocations that are not in the log yet.
    pub unwritten: u64,
    /// Revocations that other nodes know of and this one does not.
    pub missing: u64,
    /// Where the node remembers revocations, outside the log.
    pub node_folder: Option<String>,
    /// Why that folder cannot be used.
    pub node_folder_error: Option<String>,
    /// Bytes of the file in that folder.
    pub node_folder_bytes: u64,
    /// Bytes of the scope in the log, as far as known.
    pub log_bytes: Option<u64>,
    /// How old the last session of another node was when it was put into the store, in milliseconds.
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
    /// The first error: without keys the writer fails as well, and they are the cause.
    fn error(&self) -> Option<&String> {
        self.errors.iter().flatten().next()
    }
}

impl Status {
    /// Notes that a replay is done, and how long it took. The first one counts.
    pub fn note_replay(&self, took_ms: u64) {
        let _ = self.replay_ms.set(took_ms);
    }

    pub fn skip(&self, reason: Skipped) {
        self.skipped[reason.index()].fetch_add(1, Relaxed);
    }

    /// Notes that a part works, or why it does not, and tells if the journal as a whole has changed by that.
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

    /// Health, for how long in milliseconds, and the last error.
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
