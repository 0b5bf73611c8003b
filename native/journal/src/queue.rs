//! What is to be written, on its way from those who must not wait to the thread that may.

use crate::portable::Content;
use crate::revocations::Wanted;
use parking_lot::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use zeroize::Zeroize;

/// Most bytes of sessions that wait to be written.
const MAX_BYTES: usize = if cfg!(test) { 32 } else { 32 * 1024 } * 1024;

/// Most sessions to write in one go.
const BATCH: usize = if cfg!(test) { 50 } else { 1000 };

/// How long sessions are gathered before they are written: else each would wake the writer, at the cost of
/// who stores it.
const GATHER: Duration = Duration::from_millis(1);

/// How long the writer looks for more by itself, while sessions keep coming, before it has to be woken: to wake a
/// thread takes longer than all else that a registration does here.
const LINGER: Duration = Duration::from_millis(20);

/// A session that was stored. Wiped when dropped, and boxed in a queue: what is moved leaves its bytes behind.
pub(crate) struct Birth {
    pub id: [u8; 32],
    pub secret: [u8; 48],
    pub content: Arc<Content>,
    /// The client's, in DER; empty if it has none.
    pub certificate: Box<[u8]>,
    pub tail: Box<[u8]>,
    pub made_ms: u64,
    pub expires_ms: u64,
}

impl Birth {
    fn bytes(&self) -> usize {
        size_of::<Birth>() + self.certificate.len() + self.tail.len()
    }
}

impl Drop for Birth {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.tail.zeroize();
    }
}

/// A revocation.
pub(crate) struct Note {
    pub what: Revoked,
    pub made_ms: u64,
    pub expires_ms: u64,
}

pub(crate) enum Revoked {
    Session([u8; 32]),
    All,
    Certificate(Wanted),
}

/// What the writer has to do next.
#[derive(Default)]
pub(crate) struct Batch {
    pub births: VecDeque<Box<Birth>>,
    pub notes: VecDeque<Note>,
    /// No more will come.
    pub is_last: bool,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.births.is_empty() && self.notes.is_empty()
    }
}

#[derive(Default)]
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Condvar,
}

#[derive(Default)]
struct Waiting {
    births: VecDeque<Box<Birth>>,
    bytes: usize,
    notes: VecDeque<Note>,
    is_closed: bool,
    /// Whether the writer sleeps until something comes: only then it has to be woken.
    is_awaited: bool,
    /// Whether the writer has just had something to do.
    is_busy: bool,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.births.is_empty() && self.notes.is_empty()
    }
}

impl Queue {
    /// Adds a session, and returns how many of the oldest were dropped for it.
    pub fn push_birth(&self, birth: Box<Birth>) -> u64 {
        let mut waiting = self.waiting.lock();
        waiting.bytes += birth.bytes();
        waiting.births.push_back(birth);
        let mut dropped = 0;
        while waiting.bytes > MAX_BYTES {
            let Some(oldest) = waiting.births.pop_front() else {
                break;
            };
            waiting.bytes -= oldest.bytes();
            dropped += 1;
        }
        self.wake(&mut waiting);
        dropped
    }

    /// Adds a revocation. None is ever dropped.
    pub fn push_note(&self, note: Note) {
        let mut waiting = self.waiting.lock();
        waiting.notes.push_back(note);
        self.wake(&mut waiting);
    }

    /// No more will come.
    pub fn close(&self) {
        let mut waiting = self.waiting.lock();
        waiting.is_closed = true;
        self.wake(&mut waiting);
    }

    /// Whether no more will come.
    pub fn is_closed(&self) -> bool {
        self.waiting.lock().is_closed
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        let waiting = self.waiting.lock();
        waiting.births.len() + waiting.notes.len()
    }

    /// The next to write, once there is something, or nothing after `patience`.
    pub fn take(&self, patience: Duration) -> Batch {
        if self.wait(patience) {
            thread::sleep(GATHER);
        }
        let mut waiting = self.waiting.lock();
        let count = waiting.births.len().min(BATCH);
        let births: VecDeque<Box<Birth>> = waiting.births.drain(..count).collect();
        waiting.bytes -= births.iter().map(|birth| birth.bytes()).sum::<usize>();
        waiting.is_busy = count > 0;
        Batch {
            births,
            notes: std::mem::take(&mut waiting.notes),
            is_last: waiting.is_closed && waiting.births.is_empty(),
        }
    }

    /// Moves revocations that came later to a batch that is not written yet: no session is to be in the log before
    /// the revocation that it had meanwhile.
    pub fn catch_up(&self, batch: &mut Batch) {
        batch.notes.append(&mut self.waiting.lock().notes);
    }

    /// Waits for the first to come, and tells if more may follow it.
    fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut waiting = self.waiting.lock();
        let lingers_until = deadline.min(Instant::now() + LINGER);
        while waiting.is_busy && waiting.is_empty() && !waiting.is_closed {
            let now = Instant::now();
            // Not `is_awaited`: nobody has to wake the writer.
            self.filled.wait_until(&mut waiting, now + GATHER);
            waiting.is_busy = now < lingers_until;
        }
        let mut is_timed_out = Instant::now() >= deadline;
        while waiting.is_empty() && !waiting.is_closed && !is_timed_out {
            waiting.is_awaited = true;
            is_timed_out = self.filled.wait_until(&mut waiting, deadline).timed_out();
        }
        waiting.is_awaited = false;
        !waiting.is_closed && (1..BATCH).contains(&waiting.births.len())
    }

    /// Waits, but not once no more will come.
    pub fn pause(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut waiting = self.waiting.lock();
        while !waiting.is_closed {
            // Not `is_awaited`: what comes meanwhile has to wait as well.
            if self.filled.wait_until(&mut waiting, deadline).timed_out() {
                return;
            }
        }
    }

    fn wake(&self, waiting: &mut Waiting) {
        if waiting.is_awaited || waiting.is_closed {
            waiting.is_awaited = false;
            self.filled.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn birth(n: u8, tail: usize) -> Box<Birth> {
        Box::new(Birth {
            id: [n; 32],
            secret: [n; 48],
            content: Arc::new(Content::new(Vec::new())),
            certificate: Box::default(),
            tail: vec![0; tail].into(),
            made_ms: 0,
            expires_ms: 1,
        })
    }

    #[test]
    fn the_oldest_sessions_go_where_there_are_too_many() {
        let queue = Queue::default();
        let third = MAX_BYTES / 3;
        assert_eq!(queue.push_birth(birth(1, third)), 0);
        assert_eq!(queue.push_birth(birth(2, third)), 0);
        assert_eq!(queue.push_birth(birth(3, third)), 1);
        let note = Note {
            what: Revoked::All,
            made_ms: 0,
            expires_ms: 1,
        };
        queue.push_note(note);
        let batch = queue.take(Duration::ZERO);
        let ids: Vec<_> = batch.births.iter().map(|birth| birth.id[0]).collect();
        assert_eq!((ids, batch.notes.len()), (vec![2, 3], 1));
        assert_eq!(queue.push_birth(birth(4, 2 * third)), 0);
    }

    #[test]
    fn a_batch_that_waits_gets_the_revocations_made_meanwhile() {
        let queue = Queue::default();
        queue.push_birth(birth(1, 0));
        let mut batch = queue.take(Duration::ZERO);
        queue.push_birth(birth(2, 0));
        queue.push_note(Note {
            what: Revoked::Session([1; 32]),
            made_ms: 0,
            expires_ms: 1,
        });
        queue.catch_up(&mut batch);
        assert_eq!((batch.births.len(), batch.notes.len()), (1, 1));
        let next = queue.take(Duration::ZERO);
        assert_eq!((next.births.len(), next.notes.len()), (1, 0));
    }

    #[test]
    fn a_closed_queue_is_emptied_before_it_ends() {
        let queue = Queue::default();
        for n in 0..=BATCH {
            queue.push_birth(birth(n as u8, 0));
        }
        queue.push_note(Note {
            what: Revoked::All,
            made_ms: 0,
            expires_ms: 1,
        });
        queue.close();
        let first = queue.take(Duration::from_secs(60));
        assert_eq!((first.births.len(), first.is_last), (BATCH, false));
        // Revocations do not wait for sessions.
        assert_eq!(first.notes.len(), 1);
        let second = queue.take(Duration::from_secs(60));
        assert_eq!((second.births.len(), second.is_last), (1, true));
        assert!(queue.take(Duration::from_secs(60)).is_last);
    }
}
