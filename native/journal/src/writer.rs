//! From the stores to a log: one thread for all scopes that have this log.

use crate::backoff::Backoff;
use crate::clock::{instant, now_ms};
use crate::hub::Hub;
use crate::queue::{Batch, Content, Note};
use crate::record::{content_hash, seal, Body, ContentHash, LogIdentity, Statement};
use crate::revocations::Knowledge;
use crate::shared::Shared;
use crate::status::{EventKind, Part};
use crate::template::TemplateCodec;
use rekindle_log::{Batch as LogBatch, Bounds, LogError, LogWriter, Record};
use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How often key files, clocks and the node's memory are looked after.
const TICK: Duration = Duration::from_secs(1);

/// How soon after it was written a record outlives a power cut.
const SYNC_EVERY: Duration = Duration::from_millis(100);

/// How often the log is trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(60);

pub(crate) struct Writer<T> {
    hub: Arc<Hub<T>>,
    log: Box<dyn LogWriter>,
    /// What each scope has still to write, by its journal's number.
    hands: HashMap<u64, Hand>,
    backoff: Backoff,
    ticked: Option<Instant>,
    trimmed: Option<Instant>,
    unsynced: Option<Instant>,
    is_busy: bool,
}

/// What is being written for one scope. Sealed once, so that a retry writes the same records.
#[derive(Default)]
struct Hand {
    batch: Batch,
    control: Vec<Record>,
    sessions: Vec<Record>,
    /// The log that the records are sealed for, once they are.
    sealed_for: Option<LogIdentity>,
    backoff: Backoff,
    /// When the log was last looked through for revocations that were trimmed before this node let go of them.
    completed: Option<Instant>,
}

impl Hand {
    fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.control.is_empty() && self.sessions.is_empty()
    }
}

impl<T: TemplateCodec> Writer<T> {
    pub fn new(hub: Arc<Hub<T>>, log: Box<dyn LogWriter>) -> Self {
        Writer {
            hub,
            log,
            hands: HashMap::new(),
            backoff: Backoff::default(),
            ticked: None,
            trimmed: None,
            unsynced: None,
            is_busy: false,
        }
    }

    /// Writes until all journals have ended and what they had is written, or cannot be.
    pub fn run(mut self) {
        while self.turn() {}
        let _ = self.log.sync();
    }

    fn turn(&mut self) -> bool {
        let journals = self.hub.journals();
        self.work(&journals);
        if self.hub.end_if_unused() {
            return false;
        }
        self.wait(&journals);
        true
    }

    /// Waits until there is something to write.
    fn wait(&self, journals: &[Arc<Shared<T>>]) {
        if !self.backoff.is_over() {
            // Not woken meanwhile: what comes has to wait as well.
            thread::sleep(self.backoff.left().min(TICK));
            return;
        }
        let (failing, ready): (Vec<_>, Vec<_>) = journals.iter().partition(|journal| {
            let hand = self.hands.get(&journal.writer);
            hand.is_some_and(|hand| !hand.backoff.is_over())
        });
        let backoffs = failing
            .iter()
            .map(|journal| self.hands[&journal.writer].backoff.left());
        let sync = self
            .unsynced
            .map(|since| SYNC_EVERY.saturating_sub(instant().duration_since(since)));
        let patience = backoffs.chain(sync).min().unwrap_or(TICK).min(TICK);
        let has_work = || {
            ready
                .iter()
                .any(|journal| journal.queue.len() > 0 && is_ready(journal))
                || self.hub.has_changed(journals.len())
        };
        self.hub.waker.wait(patience, self.is_busy, has_work);
    }

    /// Does what there is to do.
    pub fn work(&mut self, journals: &[Arc<Shared<T>>]) {
        self.tick(journals);
        journals.iter().for_each(|journal| remember(journal));
        if self.backoff.is_over() {
            self.is_busy = self.write(journals);
        }
        self.leave(journals);
    }

    /// Writes what there is, and tells whether there was anything.
    fn write(&mut self, journals: &[Arc<Shared<T>>]) -> bool {
        let mut ready = Vec::new();
        for journal in journals.iter().filter(|journal| is_ready(journal)) {
            let hand = self.hands.entry(journal.writer).or_default();
            if !hand.backoff.is_over() {
                continue;
            }
            if hand.is_empty() {
                remember(journal);
                hand.batch = journal.queue.take();
            }
            if hand.is_empty() {
                continue;
            }
            match fill(journal, hand) {
                Ok(()) => ready.push(Arc::clone(journal)),
                Err(error) => {
                    hand.backoff.note(false);
                    journal.set(Part::Writer, Err(error));
                }
            }
        }
        if ready.is_empty() {
            return false;
        }
        // The control records first and alone: a retry does not write them again because of a session.
        let is_written = self.append(&ready, true) && self.append(&ready, false);
        self.backoff.note(is_written);
        true
    }

    /// Appends one half of what the scopes have in hand, and tells whether the log could be used.
    fn append(&mut self, journals: &[Arc<Shared<T>>], is_control: bool) -> bool {
        let half = |hand: &Hand| match is_control {
            true => !hand.control.is_empty(),
            // Not before what they refer to.
            false => hand.control.is_empty() && !hand.sessions.is_empty(),
        };
        let journals: Vec<_> = (journals.iter())
            .filter(|journal| self.hands.get(&journal.writer).is_some_and(half))
            .collect();
        let batches: Vec<_> = (journals.iter())
            .map(|journal| {
                let hand = &self.hands[&journal.writer];
                LogBatch {
                    scope: &journal.name,
                    control: if is_control { &hand.control } else { &[] },
                    sessions: if is_control { &[] } else { &hand.sessions },
                }
            })
            .collect();
        if batches.is_empty() {
            return true;
        }
        let appended = self.log.append(&batches);
        if let Err(error) = &appended {
            self.note_for_all(Err(error.clone()));
            return false;
        }
        let results = appended.unwrap_or_default();
        for (journal, result) in journals.into_iter().zip(results) {
            let hand = self.hands.entry(journal.writer).or_default();
            hand.backoff.note(result.is_ok());
            if result.is_ok() {
                let written = match is_control {
                    true => std::mem::take(&mut hand.control),
                    false => std::mem::take(&mut hand.sessions),
                };
                note_written(journal, hand, &written);
                if is_control {
                    journal
                        .queue
                        .note_written(&std::mem::take(&mut hand.batch.notes));
                }
                self.unsynced.get_or_insert_with(instant);
            } else {
                note_lost(journal);
            }
            // The log works once it has taken both halves.
            let is_half_done = !hand.control.is_empty() || !hand.sessions.is_empty();
            if result.is_err() || !is_half_done {
                journal.set(Part::Writer, result.map_err(|error| error.0));
            }
        }
        true
    }

    /// Lets go of journals that have ended and have nothing left to write. A session that cannot be written is given up
    /// then, a revocation never.
    fn leave(&mut self, journals: &[Arc<Shared<T>>]) {
        for journal in journals.iter().filter(|journal| journal.queue.is_closed()) {
            let is_failing = !is_ready(journal) || !self.backoff.is_over();
            let hand = self.hands.entry(journal.writer).or_default();
            if is_failing || !hand.backoff.is_over() {
                let given_up = journal.queue.drop_sessions() + hand.sessions.len() as u64;
                hand.sessions.clear();
                hand.batch.sessions.clear();
                journal.status.dropped.fetch_add(given_up, Relaxed);
                if hand.control.is_empty() {
                    hand.sealed_for = None;
                }
            }
            let is_remembered = journal.memory.folder().is_some();
            let is_done = hand.is_empty() && journal.queue.len() == 0;
            if is_done || is_failing && is_remembered || journal.identity().is_none() {
                self.hands.remove(&journal.writer);
                self.hub.remove(journal);
                // A listener that was opened again in the meantime has not read the last sessions.
                let is_behind = journal.has_written_late.load(Relaxed);
                let again = journals.iter().filter(|other| {
                    is_behind && other.name == journal.name && !Arc::ptr_eq(other, journal)
                });
                for other in again {
                    other.replay.lock().want_replay(Duration::ZERO);
                }
            }
        }
    }

    fn tick(&mut self, journals: &[Arc<Shared<T>>]) {
        if self.unsynced.is_some() && is_over(self.unsynced, SYNC_EVERY) {
            self.unsynced = None;
            let synced = self.log.sync();
            self.note_for_all(synced);
        }
        if !is_over(self.ticked, TICK) {
            return;
        }
        self.ticked = Some(instant());
        for journal in journals {
            journal.renew_keys();
            journal.renew_lifetime();
            journal.check_clock();
        }
        if is_over(self.trimmed, TRIM_EVERY) {
            self.trim(journals);
        }
        if let Some(notice) = self.log.take_notice() {
            if let Some(journal) = journals.first() {
                journal.emit(EventKind::Noticed(notice));
            }
        }
    }

    fn trim(&mut self, journals: &[Arc<Shared<T>>]) {
        // Not before the lifetimes in the log are known.
        let known: Vec<_> = (journals.iter())
            .filter(|journal| journal.has_replayed.load(Relaxed) && is_ready(journal))
            .collect();
        self.trimmed = match known.is_empty() {
            true => return,
            false => Some(instant()),
        };
        let mut memories: Vec<&Arc<_>> = known.iter().map(|journal| &journal.memory).collect();
        memories.sort_by_key(|memory| Arc::as_ptr(memory));
        memories.dedup_by_key(|memory| Arc::as_ptr(memory));
        let changed: Vec<_> = memories.iter().flat_map(|memory| memory.tidy()).collect();
        for journal in &known {
            if changed.contains(&journal.name) {
                let known = journal.remembered.knowledge();
                journal.memory.note_knowledge(&journal.remembered, &known);
                // Others learn what has expired before its records go.
                journal.queue.push_note(Note::Statement);
            }
            let (now_ms, keep_ms) = (now_ms(), journal.keep_ms());
            let is_kept = |at_ms: u64| now_ms < at_ms.saturating_add(keep_ms);
            journal
                .announced
                .lock()
                .retain(|_, (at_ms, _)| is_kept(*at_ms));
        }
        let bounds: Vec<_> = (known.iter())
            .map(|journal| Bounds {
                scope: &journal.name,
                keep: Duration::from_millis(journal.keep_ms()),
                max_bytes: journal.options.max_log_bytes,
            })
            .collect();
        let trimmed = self.log.trim(&bounds);
        for journal in &known {
            let bytes = self.log.bytes(&journal.name);
            let log_bytes = bytes.map_or(0, |bytes| bytes.saturating_add(1));
            journal.status.log_bytes.store(log_bytes, Relaxed);
            // A node that learned a revocation late keeps it for longer than the log, which still tells that it is known.
            let hand = self.hands.entry(journal.writer).or_default();
            let every = Duration::from_millis(journal.keep_ms() / 64);
            let is_due =
                is_over(hand.completed, every) && journal.remembered.revocations().len() > 0;
            if is_due || bytes == Some(0) {
                // An empty log would be taken for a new one by a node that starts.
                hand.completed = Some(instant());
                journal.replay.lock().want_scan(Duration::ZERO);
            }
        }
        self.note_for_all(trimmed);
    }

    /// Notes how a call went that was for all scopes.
    fn note_for_all(&mut self, result: Result<(), LogError>) {
        let result = result.map_err(|error| error.0);
        for journal in self
            .hub
            .journals()
            .iter()
            .filter(|journal| is_ready(journal))
        {
            if result.is_err() {
                note_lost(journal);
            }
            // What cannot be appended is not mended by another call that worked.
            let hand = self.hands.get(&journal.writer);
            let is_failing =
                self.backoff.is_failing() || hand.is_some_and(|hand| hand.backoff.is_failing());
            if result.is_err() || !is_failing {
                journal.set(Part::Writer, result.clone());
            }
        }
    }
}

fn is_over(since: Option<Instant>, time: Duration) -> bool {
    since.is_none_or(|since| instant().duration_since(since) >= time)
}

/// Whether records can be sealed, and into which log is known.
fn is_ready<T: TemplateCodec>(journal: &Shared<T>) -> bool {
    journal.identity().is_some() && journal.keys().is_some()
}

/// After an error the log may have lost what it had.
fn note_lost<T: TemplateCodec>(journal: &Shared<T>) {
    journal.replay.lock().want_scan(Duration::from_millis(200));
}

fn note_written<T>(journal: &Shared<T>, hand: &mut Hand, records: &[Record]) {
    if journal.queue.is_closed() {
        journal.has_written_late.store(true, Relaxed);
    }
    let bytes: usize = records.iter().map(Vec::len).sum();
    journal
        .status
        .written
        .fetch_add(records.len() as u64, Relaxed);
    journal
        .status
        .written_bytes
        .fetch_add(bytes as u64, Relaxed);
    if hand.control.is_empty() && hand.sessions.is_empty() {
        hand.batch.sessions.clear();
        hand.sealed_for = None;
    }
}

/// Seals what the scope has in hand. What the sessions refer to goes first, unless the log has it.
fn fill<T: TemplateCodec>(journal: &Shared<T>, hand: &mut Hand) -> Result<(), String> {
    let identity = journal.identity().ok_or("the log is not known yet")?;
    if hand.sealed_for == Some(identity) {
        return Ok(());
    }
    let keys = journal.keys().ok_or("there is no key to seal with")?;
    let now = now_ms();
    let seal_as = |made_ms, lifetime_ms, body: &Body| {
        seal(
            &keys,
            &journal.context,
            journal.stamp(identity, made_ms, lifetime_ms),
            body,
        )
    };
    let mut announcing = Announcing {
        journal,
        now_ms: now,
        bodies: Vec::new(),
        knowledge: Vec::new(),
    };
    let mut sessions = Vec::new();
    for session in &hand.batch.sessions {
        announcing.announce(Content::Template(Arc::clone(session.template.bytes())));
        let knowledge = announcing.knowledge(&session.knowledge);
        let body = Body::Session {
            id: &session.id,
            secret: &session.secret,
            template: session.template.hash(),
            knowledge: &knowledge,
            certificate: &session.certificate,
            tail: &session.tail,
        };
        sessions.push(seal_as(session.made_ms, session.lifetime_ms, &body)?);
    }
    if !sessions.is_empty() {
        announcing.announce_clock(false);
    }
    let mut control = Vec::new();
    for note in &hand.batch.notes {
        let body = match note {
            Note::Revocation {
                id,
                keep_ms,
                target,
                ..
            } => Body::Revocation {
                id: *id,
                keep_ms: *keep_ms,
                target: target.clone(),
            },
            Note::Ask { nonce } => Body::Ask { nonce: *nonce },
            Note::Answer { nonce } => Body::Answer { nonce: *nonce },
            Note::Statement => {
                let content = statement(journal, &journal.remembered.knowledge());
                announcing.note(&content);
                control.push(seal_as(now, 0, &body_of(&content))?);
                continue;
            }
            Note::Content(content) => {
                announcing.note(content);
                control.push(seal_as(now, 0, &body_of(content))?);
                continue;
            }
            Note::Clock => {
                announcing.announce_clock(true);
                continue;
            }
        };
        control.push(seal_as(now, 0, &body)?);
    }
    for body in &announcing.bodies {
        let body = match body {
            Announced::Content(content) => body_of(content),
            Announced::Clock { zero_ms, revision } => Body::Clock {
                zero_ms: *zero_ms,
                revision: *revision,
            },
        };
        control.push(seal_as(now, 0, &body)?);
    }
    (hand.control, hand.sessions) = (control, sessions);
    hand.sealed_for = Some(identity);
    Ok(())
}

/// Revocations that OTP's process made, which does not wait for a disk, go into the node's memory before they go into
/// the log, and also if the log cannot be written.
fn remember<T: TemplateCodec>(journal: &Shared<T>) {
    let new = journal.queue.take_unremembered();
    let longest_ms = new.iter().map(|(.., keep_ms)| *keep_ms).max();
    if let Some(longest_ms) = longest_ms {
        let new: Vec<_> = (new.into_iter())
            .map(|(id, target, _)| (id, target))
            .collect();
        journal.memory.note(&journal.remembered, &new, longest_ms);
    }
}

fn statement<T: TemplateCodec>(journal: &Shared<T>, knowledge: &Knowledge) -> Content {
    let statement = Statement {
        knowledge: knowledge.clone(),
        retired_keys: journal.retired_keys(),
    };
    Content::Knowledge(statement.encode().into())
}

fn body_of(content: &Content) -> Body<'_> {
    match content {
        Content::Template(bytes) => Body::Template(bytes),
        Content::Knowledge(bytes) => Body::Knowledge(bytes),
    }
}

/// What sessions of a batch refer to and the log does not have.
struct Announcing<'a, T> {
    journal: &'a Shared<T>,
    now_ms: u64,
    bodies: Vec<Announced>,
    /// The hashes of this batch's knowledge.
    knowledge: Vec<(Arc<Knowledge>, ContentHash)>,
}

enum Announced {
    Content(Content),
    Clock { zero_ms: i64, revision: u64 },
}

impl<T: TemplateCodec> Announcing<'_, T> {
    fn announce(&mut self, content: Content) -> ContentHash {
        let hash = content_hash(content.bytes());
        let mut announced = self.journal.announced.lock();
        let known = announced.get(&hash);
        if !known.is_some_and(|(at_ms, _)| self.is_recent(*at_ms)) {
            announced.insert(hash, (self.now_ms, content.clone()));
            self.bodies.push(Announced::Content(content));
        }
        hash
    }

    /// Whether what was written then need not be written again.
    fn is_recent(&self, at_ms: u64) -> bool {
        self.now_ms < at_ms.saturating_add(self.journal.announce_again_ms())
    }

    fn note(&self, content: &Content) {
        let hash = content_hash(content.bytes());
        self.journal
            .announced
            .lock()
            .insert(hash, (self.now_ms, content.clone()));
    }

    fn knowledge(&mut self, knowledge: &Arc<Knowledge>) -> ContentHash {
        let known = self
            .knowledge
            .iter()
            .find(|(other, _)| Arc::ptr_eq(other, knowledge));
        if let Some((_, hash)) = known {
            return *hash;
        }
        let hash = self.announce(statement(self.journal, knowledge));
        self.knowledge.push((Arc::clone(knowledge), hash));
        hash
    }

    fn announce_clock(&mut self, is_forced: bool) {
        let mut clock = self.journal.clock.lock();
        if is_forced || !clock.written_ms.is_some_and(|at_ms| self.is_recent(at_ms)) {
            clock.written_ms = Some(self.now_ms);
            self.bodies.push(Announced::Clock {
                zero_ms: clock.zero_ms,
                revision: clock.revision,
            });
        }
    }
}
