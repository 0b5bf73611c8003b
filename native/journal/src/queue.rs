//! The records to write, between callers that must not wait and the writer's thread.

use crate::record::Term;
use crate::revocations::{Knowledge, RevocationId};
use crate::target::Target;
use crate::template::EncodedTemplate;
use parking_lot::{Condvar, Mutex};
use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use zeroize::Zeroize;

/// Limit on the bytes of sessions that wait to be written.
const MAX_BYTES: usize = if cfg!(test) { 32 } else { 32 * 1024 } * 1024;

/// The most sessions, and the most control records, that are written at once for one scope.
const SESSION_BATCH: usize = if cfg!(test) { 50 } else { 1000 };
const CONTROL_BATCH: usize = 10 * SESSION_BATCH;

/// How long the writer gathers sessions before it writes them. Otherwise each session would wake it, at its caller's
/// cost.
const GATHER: Duration = Duration::from_millis(1);

/// How long the writer polls while sessions keep coming, before it sleeps. Waking a thread takes longer than everything
/// else that a registration does here.
const LINGER: Duration = Duration::from_millis(20);

/// A session that was stored. It is wiped when dropped, and boxed in the queue, because a moved value leaves its bytes
/// behind.
pub(crate) struct NewSession {
    pub id: [u8; 32],
    pub secret: [u8; 48],
    pub template: Arc<EncodedTemplate>,
    /// The revocations that this node knew when the session was made.
    pub knowledge: Arc<Knowledge>,
    /// The client's certificate, in DER; empty if it has none.
    pub certificate: Box<[u8]>,
    pub tail: Box<[u8]>,
    /// In milliseconds, by the monotonic clock.
    pub made_ms: u64,
    pub lifetime_ms: u64,
}

impl NewSession {
    fn bytes(&self) -> usize {
        size_of::<NewSession>() + self.certificate.len() + self.tail.len()
    }
}

impl Drop for NewSession {
    fn drop(&mut self) {
        self.secret.zeroize();
        self.tail.zeroize();
    }
}

/// Content that sessions refer to by its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Template(Arc<[u8]>),
    Knowledge(Arc<[u8]>),
}

impl Content {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Content::Template(bytes) | Content::Knowledge(bytes) => bytes,
        }
    }
}

/// Whether a revocation is in the node's folder, as far as the folder can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InFolder {
    /// The writer has to store it there.
    No,
    /// The caller who made it stores it there.
    Soon,
    Yes,
}

/// A control record to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ControlRecord {
    Revocation {
        id: RevocationId,
        term: Term,
        target: Target,
        in_folder: InFolder,
    },
    /// This node's knowledge, even if the log has it already.
    Statement,
    /// A template or a knowledge that the log has lost, and when it was made. Newer knowledge must stay newer.
    Content {
        content: Content,
        made_ms: u64,
    },
    /// The writer's clock, because it was corrected or the log has lost it.
    Clock,
    Ask {
        nonce: u64,
    },
    Answer {
        nonce: u64,
    },
}

/// What the writer has to write next for a scope.
#[derive(Default)]
pub(crate) struct Batch {
    pub sessions: VecDeque<Box<NewSession>>,
    pub control: VecDeque<ControlRecord>,
}

impl Batch {
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty() && self.control.is_empty()
    }

    /// Whether there are only revocations.
    pub fn is_of_revocations(&self) -> bool {
        let is_revocation =
            |record: &ControlRecord| matches!(record, ControlRecord::Revocation { .. });
        self.sessions.is_empty() && self.control.iter().all(is_revocation)
    }
}

/// Wakes the writer of all queues of a log.
#[derive(Default)]
pub(crate) struct Waker {
    /// Whether the writer sleeps until something comes. Only then it must be woken.
    is_awaited: AtomicBool,
    is_woken: Mutex<bool>,
    woken: Condvar,
}

impl Waker {
    /// Wakes the writer if it sleeps.
    pub fn wake(&self) {
        // Pairs with `wait`, which sets this first and then looks into the queues.
        if self.is_awaited.swap(false, SeqCst) {
            *self.is_woken.lock() = true;
            self.woken.notify_all();
        }
    }

    /// Waits until `has_work`, but no longer than `timeout`. `is_busy` says that more work is likely to come soon.
    pub fn wait(&self, timeout: Duration, is_busy: bool, has_work: impl Fn() -> bool) {
        let deadline = Instant::now() + timeout;
        let lingers_until = deadline.min(Instant::now() + LINGER);
        while is_busy && Instant::now() < lingers_until {
            if has_work() {
                return;
            }
            thread::sleep(GATHER);
        }
        self.is_awaited.store(true, SeqCst);
        if !has_work() {
            let mut is_woken = self.is_woken.lock();
            while !*is_woken && !self.woken.wait_until(&mut is_woken, deadline).timed_out() {}
        }
        self.is_awaited.store(false, SeqCst);
        *self.is_woken.lock() = false;
        if has_work() {
            thread::sleep(GATHER);
        }
    }
}

/// The queue of one scope.
pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    waker: Arc<Waker>,
    written: Condvar,
}

#[derive(Default)]
struct Waiting {
    sessions: VecDeque<Box<NewSession>>,
    bytes: usize,
    revocations: VecDeque<ControlRecord>,
    /// The control records that are no revocations.
    others: VecDeque<ControlRecord>,
    /// Revocations that are not in the log yet, including those that the writer has taken.
    unwritten: HashSet<RevocationId>,
    /// Whether the writer may have to store some of the revocations in the node's folder.
    has_unstored: bool,
    is_closed: bool,
}

impl Queue {
    pub fn new(waker: Arc<Waker>) -> Self {
        Queue {
            waiting: Mutex::default(),
            waker,
            written: Condvar::new(),
        }
    }

    /// Wakes the writer.
    pub fn wake(&self) {
        self.waker.wake();
    }

    /// Adds a session, and returns how many of the oldest sessions were dropped for it.
    pub fn push_session(&self, session: Box<NewSession>) -> u64 {
        let mut waiting = self.waiting.lock();
        if waiting.is_closed {
            return 1;
        }
        waiting.bytes += session.bytes();
        waiting.sessions.push_back(session);
        let mut dropped = 0;
        while waiting.bytes > MAX_BYTES {
            let Some(oldest) = waiting.sessions.pop_front() else {
                break;
            };
            waiting.bytes -= oldest.bytes();
            dropped += 1;
        }
        drop(waiting);
        self.waker.wake();
        dropped
    }

    /// Adds a control record. None is ever dropped.
    pub fn push_record(&self, record: ControlRecord) {
        self.push_records([record]);
    }

    /// Adds control records, except for revocations that are already on their way.
    pub fn push_records(&self, records: impl IntoIterator<Item = ControlRecord>) {
        let mut waiting = self.waiting.lock();
        for record in records {
            match &record {
                ControlRecord::Revocation { id, in_folder, .. } => {
                    waiting.has_unstored |= *in_folder == InFolder::No;
                    if waiting.unwritten.insert(*id) {
                        waiting.revocations.push_back(record);
                    }
                }
                ControlRecord::Statement | ControlRecord::Ask { .. } => {
                    // Only the last one counts.
                    let kind = std::mem::discriminant(&record);
                    let is_other = |other: &ControlRecord| std::mem::discriminant(other) != kind;
                    waiting.others.retain(is_other);
                    waiting.others.push_back(record);
                }
                _ => waiting.others.push_back(record),
            }
        }
        drop(waiting);
        self.waker.wake();
    }

    /// The revocations that the writer has to store in the node's folder, with how long they are kept. They count as
    /// stored from now on: it does that before it takes them.
    pub fn take_unstored(&self) -> Vec<(RevocationId, Target, u64)> {
        let mut waiting = self.waiting.lock();
        if !std::mem::take(&mut waiting.has_unstored) {
            return Vec::new();
        }
        let take = |record: &mut ControlRecord| match record {
            ControlRecord::Revocation {
                id,
                term,
                target,
                in_folder: in_folder @ InFolder::No,
            } => {
                *in_folder = InFolder::Yes;
                Some((*id, target.clone(), term.left_ms))
            }
            _ => None,
        };
        waiting.revocations.iter_mut().filter_map(take).collect()
    }

    /// Notes that a caller has stored revocations in the node's folder, or that it cannot.
    pub fn note_stored(&self, ids: &[RevocationId]) {
        let ids: HashSet<_> = ids.iter().collect();
        let mut waiting = self.waiting.lock();
        for record in &mut waiting.revocations {
            if let ControlRecord::Revocation { id, in_folder, .. } = record {
                if ids.contains(id) {
                    *in_folder = InFolder::Yes;
                }
            }
        }
        drop(waiting);
        self.waker.wake();
    }

    /// Notes that control records are in the log.
    pub fn note_written(&self, records: &VecDeque<ControlRecord>) {
        let mut waiting = self.waiting.lock();
        for record in records {
            if let ControlRecord::Revocation { id, .. } = record {
                waiting.unwritten.remove(id);
            }
        }
        self.written.notify_all();
    }

    /// Revocations that are not in the log yet.
    pub fn unwritten(&self) -> u64 {
        self.waiting.lock().unwritten.len() as u64
    }

    /// Waits until all revocations are in the log, and returns whether they are.
    pub fn wait_written(&self, deadline: Instant) -> bool {
        let mut waiting = self.waiting.lock();
        while !waiting.unwritten.is_empty() {
            if self.written.wait_until(&mut waiting, deadline).timed_out() {
                return waiting.unwritten.is_empty();
            }
        }
        true
    }

    /// Closes the queue for sessions.
    pub fn close(&self) {
        self.waiting.lock().is_closed = true;
        self.waker.wake();
    }

    /// Whether the queue is closed for sessions.
    pub fn is_closed(&self) -> bool {
        self.waiting.lock().is_closed
    }

    /// How many records wait.
    pub fn len(&self) -> usize {
        let waiting = self.waiting.lock();
        waiting.sessions.len() + waiting.revocations.len() + waiting.others.len()
    }

    /// Drops the sessions that wait, and returns how many there were.
    pub fn drop_sessions(&self) -> u64 {
        let mut waiting = self.waiting.lock();
        waiting.bytes = 0;
        std::mem::take(&mut waiting.sessions).len() as u64
    }

    /// Takes the next records to write; only revocations, if no record may tell of what this node knows. There may be none.
    /// Revocations come first, because all other records may tell of them: if this node crashed in between, the others
    /// would wait for a revocation that nobody has.
    pub fn take(&self, only_revocations: bool) -> Batch {
        let mut waiting = self.waiting.lock();
        let Ready {
            revocations,
            others,
            sessions,
        } = waiting.ready(only_revocations);
        let mut control: VecDeque<_> = waiting.revocations.drain(..revocations).collect();
        control.extend(waiting.others.drain(..others));
        let sessions: VecDeque<_> = waiting.sessions.drain(..sessions).collect();
        let bytes = sessions.iter().map(|session| session.bytes());
        waiting.bytes -= bytes.sum::<usize>();
        Batch { sessions, control }
    }

    /// Whether there is anything for the writer to store or to take.
    pub fn has_work(&self, only_revocations: bool) -> bool {
        let waiting = self.waiting.lock();
        waiting.has_unstored || waiting.ready(only_revocations) != Ready::default()
    }
}

/// How many records can be taken, from the first on.
#[derive(Default, PartialEq, Eq)]
struct Ready {
    revocations: usize,
    others: usize,
    sessions: usize,
}

impl Waiting {
    fn ready(&self, only_revocations: bool) -> Ready {
        // A revocation must be in the node's folder before it is written to the log.
        let is_ready = |record: &&ControlRecord| match record {
            ControlRecord::Revocation { in_folder, .. } => *in_folder == InFolder::Yes,
            _ => true,
        };
        let revocations = self.revocations.iter().take(CONTROL_BATCH);
        let mut ready = Ready {
            revocations: revocations.take_while(is_ready).count(),
            ..Ready::default()
        };
        if !only_revocations && ready.revocations == self.revocations.len() {
            ready.others = self.others.len().min(CONTROL_BATCH);
            // Sessions refer to other records as well.
            if ready.others == self.others.len() {
                ready.sessions = self.sessions.len().min(SESSION_BATCH);
            }
        }
        ready
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session(n: u8, tail: usize) -> Box<NewSession> {
        Box::new(NewSession {
            id: [n; 32],
            secret: [n; 48],
            template: Arc::new(EncodedTemplate::new(Vec::new())),
            knowledge: Arc::default(),
            certificate: Box::default(),
            tail: vec![0; tail].into(),
            made_ms: 0,
            lifetime_ms: 1,
        })
    }

    fn revocation(counter: u64) -> ControlRecord {
        ControlRecord::Revocation {
            id: RevocationId { origin: 1, counter },
            term: Term::new(1),
            target: Target::All,
            in_folder: InFolder::Yes,
        }
    }

    fn queue() -> Queue {
        Queue::new(Arc::default())
    }

    #[test]
    fn the_oldest_sessions_go_where_there_are_too_many() {
        let queue = queue();
        let third = MAX_BYTES / 3;
        assert_eq!(queue.push_session(session(1, third)), 0);
        assert_eq!(queue.push_session(session(2, third)), 0);
        assert_eq!(queue.push_session(session(3, third)), 1);
        queue.push_record(revocation(1));
        let batch = queue.take(false);
        let ids: Vec<_> = batch.sessions.iter().map(|session| session.id[0]).collect();
        assert_eq!((ids, batch.control.len()), (vec![2, 3], 1));
        assert_eq!(queue.push_session(session(4, 2 * third)), 0);
    }

    #[test]
    fn a_closed_queue_takes_no_sessions_and_still_takes_revocations() {
        let queue = queue();
        queue.push_session(session(1, 0));
        queue.close();
        assert_eq!(queue.push_session(session(2, 0)), 1);
        queue.push_record(revocation(1));
        let batch = queue.take(false);
        assert_eq!((batch.sessions.len(), batch.control.len()), (1, 1));
        assert!(queue.take(false).is_empty());
    }

    #[test]
    fn revocations_count_until_they_are_written() {
        let queue = Arc::new(queue());
        queue.push_records([ControlRecord::Statement, revocation(1), revocation(2)]);
        let batch = queue.take(false);
        assert_eq!(batch.control[2], ControlRecord::Statement);
        assert_eq!((queue.len(), queue.unwritten()), (0, 2));
        assert!(!queue.wait_written(Instant::now()));
        let waiting = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || queue.wait_written(Instant::now() + Duration::from_secs(60)))
        };
        queue.note_written(&batch.control);
        assert!(waiting.join().unwrap());
        assert_eq!(queue.unwritten(), 0);
    }

    #[test]
    fn a_revocation_is_in_the_folder_before_it_is_written() {
        let queue = queue();
        let target = Target::Session([1; 32]);
        let id = RevocationId {
            origin: 1,
            counter: 2,
        };
        queue.push_records([
            revocation(1),
            ControlRecord::Revocation {
                id,
                term: Term::new(5),
                target: target.clone(),
                in_folder: InFolder::No,
            },
            revocation(3),
            ControlRecord::Clock,
        ]);
        assert_eq!(queue.take(false).control, [revocation(1)]);
        assert!(queue.has_work(true) && queue.take(false).is_empty());
        assert_eq!(queue.take_unstored(), [(id, target, 5)]);
        assert_eq!(queue.take_unstored(), []);
        assert_eq!(queue.take(true).control.len(), 2);
        assert!(!queue.has_work(true) && queue.take(true).is_empty());
        assert_eq!(queue.take(false).control, [ControlRecord::Clock]);
        // A caller stores this one.
        let soon = |counter| ControlRecord::Revocation {
            id: RevocationId { origin: 2, counter },
            term: Term::new(1),
            target: Target::All,
            in_folder: InFolder::Soon,
        };
        queue.push_records([soon(1), soon(2)]);
        assert_eq!(queue.take_unstored(), []);
        assert!(queue.take(false).is_empty());
        queue.note_stored(&[RevocationId {
            origin: 2,
            counter: 1,
        }]);
        assert_eq!(queue.take(false).control.len(), 1);
    }

    #[test]
    fn the_writer_is_woken_whoever_comes_first() {
        let waker = Arc::new(Waker::default());
        let queue = Arc::new(Queue::new(Arc::clone(&waker)));
        for n in 0..200 {
            let pushing = {
                let queue = Arc::clone(&queue);
                thread::spawn(move || queue.push_session(session(n, 0)))
            };
            let began = Instant::now();
            waker.wait(Duration::from_secs(60), n % 2 == 0, || queue.len() > 0);
            assert!(began.elapsed() < Duration::from_secs(30));
            pushing.join().unwrap();
            assert_eq!(queue.take(false).sessions.len(), 1);
        }
    }
}
