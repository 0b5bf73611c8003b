//! Writes sessions and revocations from the stores to a log. One thread does this for all scopes with this log.

use crate::backoff::Backoff;
use crate::clock::{instant, now_ms};
use crate::hub::Hub;
use crate::keys::Keys;
use crate::queue::{Batch, Content, ControlRecord, NewSession};
use crate::record::{content_hash, seal, Body, ContentHash, LogIdentity, Statement};
use crate::references::make_room;
use crate::revocations::Knowledge;
use crate::shared::Shared;
use crate::status::{EventKind, Part};
use crate::template::TemplateCodec;
use rekindle_log::{Batch as LogBatch, Bounds, LogError, LogWriter, Record};
use std::collections::HashMap;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How often the writer checks key files and clocks.
const TICK: Duration = Duration::from_secs(1);

/// How soon after it was written a record is synced, so that it outlives a power cut.
const SYNC_EVERY: Duration = Duration::from_millis(100);

/// How often the log is trimmed.
const TRIM_EVERY: Duration = Duration::from_secs(60);

pub(crate) struct Writer<T> {
    hub: Arc<Hub<T>>,
    log: Box<dyn LogWriter>,
    /// The open batch of each scope, by its journal's number.
    open_batches: HashMap<u64, OpenBatch>,
    backoff: Backoff,
    /// After a sync or a trim has failed. It is repeated until it succeeds: if there is nothing to append, nothing else
    /// shows that the log works again.
    syncing: Backoff,
    trimming: Backoff,
    ticked: Option<Instant>,
    tidied: Instant,
    trimmed: Option<Instant>,
    unsynced: Option<Instant>,
    is_busy: bool,
}

/// The batch that is being written for one scope. It is sealed once, so that a retry writes the same records.
#[derive(Default)]
struct OpenBatch {
    batch: Batch,
    /// What the node knew before the batch was taken from the queue.
    knowledge: Arc<Knowledge>,
    control: Vec<Record>,
    sessions: Vec<Record>,
    /// The identity of the log for which the records are sealed, and the keys with which they are, once they are. They are
    /// sealed again only for another log or with another key.
    sealed_for: Option<(LogIdentity, Arc<Keys>)>,
    backoff: Backoff,
    /// When the log was last searched for revocations that it has trimmed and this node still keeps.
    completed: Option<Instant>,
}

impl OpenBatch {
    fn is_empty(&self) -> bool {
        self.batch.is_empty() && self.control.is_empty() && self.sessions.is_empty()
    }

    /// Drops sessions that have expired while the log was away, and returns how many. Their writer's clock may be wrong, and
    /// the other nodes have forgotten which of them were revoked.
    fn drop_expired(&mut self, now_ms: u64) -> u64 {
        let sessions = &mut self.batch.sessions;
        let ends_ms = |session: &NewSession| session.made_ms.saturating_add(session.lifetime_ms);
        let are_alive: Vec<bool> = (sessions.iter())
            .map(|session| now_ms < ends_ms(session))
            .collect();
        let (mut of_batch, mut of_sealed) = (are_alive.iter(), are_alive.iter());
        sessions.retain(|_| of_batch.next() == Some(&true));
        // If they are sealed, the records are in the same order.
        self.sessions.retain(|_| of_sealed.next() == Some(&true));
        if self.is_empty() {
            self.sealed_for = None;
        }
        are_alive.iter().filter(|is_alive| !**is_alive).count() as u64
    }

    /// Whether the records are sealed for this log and with the sealing key of these keys.
    fn is_sealed_for(&self, identity: LogIdentity, keys: &Keys) -> bool {
        (self.sealed_for.as_ref())
            .is_some_and(|(log, with)| *log == identity && with.seal_like(keys))
    }
}

impl<T: TemplateCodec> Writer<T> {
    pub fn new(hub: Arc<Hub<T>>, log: Box<dyn LogWriter>) -> Self {
        Writer {
            hub,
            log,
            open_batches: HashMap::new(),
            backoff: Backoff::default(),
            syncing: Backoff::default(),
            trimming: Backoff::default(),
            ticked: None,
            tidied: instant(),
            trimmed: None,
            unsynced: None,
            is_busy: false,
        }
    }

    /// Writes until all journals have ended, and all they had is written or cannot be.
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

    /// Waits until there is work.
    fn wait(&self, journals: &[Arc<Shared<T>>]) {
        if !self.backoff.is_over() {
            // New records must not wake the writer: they have to wait as well.
            thread::sleep(self.backoff.left().min(TICK));
            return;
        }
        let (failing, ready): (Vec<_>, Vec<_>) = journals.iter().partition(|journal| {
            let open_batch = self.open_batches.get(&journal.writer);
            open_batch.is_some_and(|open_batch| !open_batch.backoff.is_over())
        });
        let backoffs = failing
            .iter()
            .map(|journal| self.open_batches[&journal.writer].backoff.left());
        let timeout = backoffs.chain(self.sync_in()).min().unwrap_or(TICK);
        let timeout = timeout.min(TICK);
        let has_work = || {
            ready
                .iter()
                .any(|journal| is_ready(journal) && self.has_work(journal))
                || self.hub.has_changed(journals.len())
        };
        self.hub.waker.wait(timeout, self.is_busy, has_work);
    }

    /// Whether there is something to write that may be written now.
    fn has_work(&self, journal: &Shared<T>) -> bool {
        let may_tell = may_tell(journal);
        let open_batch = self.open_batches.get(&journal.writer);
        match open_batch.filter(|open_batch| !open_batch.is_empty()) {
            Some(open_batch) => may_tell || open_batch.batch.is_of_revocations(),
            None => journal.queue.has_work(!may_tell),
        }
    }

    /// How long to wait until the next sync, if there is something to sync.
    pub(crate) fn sync_in(&self) -> Option<Duration> {
        let since = self.unsynced?;
        let wait = SYNC_EVERY.saturating_sub(instant().duration_since(since));
        Some(wait.max(self.syncing.left()))
    }

    /// Does all work that is due.
    pub fn work(&mut self, journals: &[Arc<Shared<T>>]) {
        self.tick(journals);
        journals.iter().for_each(|journal| remember(journal));
        if self.backoff.is_over() {
            self.is_busy = self.write(journals);
        }
        self.leave(journals);
    }

    /// Writes what is in the queues. Returns whether there was anything.
    fn write(&mut self, journals: &[Arc<Shared<T>>]) -> bool {
        let mut ready = Vec::new();
        for journal in journals.iter().filter(|journal| is_ready(journal)) {
            let only_revocations = !may_tell(journal);
            let open_batch = self.open_batches.entry(journal.writer).or_default();
            let must_wait = only_revocations && !open_batch.batch.is_of_revocations();
            if must_wait || !open_batch.backoff.is_over() {
                continue;
            }
            if open_batch.is_empty() {
                remember(journal);
                // In this order, no statement in the batch tells of a revocation that comes after it.
                open_batch.knowledge = journal.remembered.knowledge();
                open_batch.batch = journal.queue.take(only_revocations);
            }
            let dropped = open_batch.drop_expired(now_ms());
            journal.status.dropped.fetch_add(dropped, Relaxed);
            if open_batch.is_empty() {
                continue;
            }
            match fill(journal, open_batch) {
                // The log may have been lost meanwhile, and begun again.
                Ok(()) if !may_tell(journal) && !open_batch.batch.is_of_revocations() => {
                    open_batch.sealed_for = None;
                }
                Ok(()) => ready.push(Arc::clone(journal)),
                Err(error) => {
                    open_batch.backoff.note(false);
                    journal.set(Part::Writer, Err(error));
                }
            }
        }
        if ready.is_empty() {
            return false;
        }
        // Control records are appended first and alone, so that a retry because of a session does not write them again.
        let is_written = self.append(&ready, true) && self.append(&ready, false);
        self.backoff.note(is_written);
        true
    }

    /// Appends one half of the open batches: control records or sessions. Returns whether the log could be used.
    fn append(&mut self, journals: &[Arc<Shared<T>>], is_control: bool) -> bool {
        let half = |open_batch: &OpenBatch| match is_control {
            true => !open_batch.control.is_empty(),
            // Sessions come after the control records that they refer to.
            false => open_batch.control.is_empty() && !open_batch.sessions.is_empty(),
        };
        let journals: Vec<_> = (journals.iter())
            .filter(|journal| self.open_batches.get(&journal.writer).is_some_and(half))
            .collect();
        let batches: Vec<_> = (journals.iter())
            .map(|journal| {
                let open_batch = &self.open_batches[&journal.writer];
                LogBatch {
                    scope: &journal.name,
                    control: if is_control { &open_batch.control } else { &[] },
                    sessions: if is_control {
                        &[]
                    } else {
                        &open_batch.sessions
                    },
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
            let open_batch = self.open_batches.entry(journal.writer).or_default();
            open_batch.backoff.note(result.is_ok());
            let is_still_sealed = match (journal.identity(), journal.keys()) {
                (Some(identity), Some(keys)) => open_batch.is_sealed_for(identity, &keys),
                _ => false,
            };
            if result.is_ok() && !is_still_sealed {
                // Meanwhile the log's identity or the sealing key has changed, so the records do not count. They are
                // sealed and written again.
                continue;
            }
            if result.is_ok() {
                let written = match is_control {
                    true => std::mem::take(&mut open_batch.control),
                    false => std::mem::take(&mut open_batch.sessions),
                };
                note_written(journal, open_batch, &written);
                if is_control {
                    journal
                        .queue
                        .note_written(&std::mem::take(&mut open_batch.batch.control));
                }
                self.unsynced.get_or_insert_with(instant);
                if self.trimming.is_failing() {
                    // The log works for appending, so a trim that failed waits for its usual time. Otherwise a user
                    // without the right to trim would be told every two seconds.
                    self.trimming = Backoff::default();
                    self.trimmed = Some(instant());
                }
            } else {
                note_lost(journal);
            }
            // The log counts as working once it has taken both halves, and syncs them.
            let is_half_done = !open_batch.control.is_empty() || !open_batch.sessions.is_empty();
            if result.is_err() || !is_half_done && !self.syncing.is_failing() {
                journal.set(Part::Writer, result.map_err(|error| error.0));
            }
        }
        true
    }

    /// Removes journals that have ended and have nothing left to write. Sessions that cannot be written are given up;
    /// revocations only if a node folder has them, or if the log's identity never became known, or if no other node could
    /// read them.
    fn leave(&mut self, journals: &[Arc<Shared<T>>]) {
        for journal in journals.iter().filter(|journal| journal.queue.is_closed()) {
            // The last revocations may have come after the others were put into the node's memory.
            remember(journal);
            let is_failing = !is_ready(journal) || !self.backoff.is_over();
            let open_batch = self.open_batches.entry(journal.writer).or_default();
            if is_failing || !open_batch.backoff.is_over() {
                let given_up = journal.queue.drop_sessions() + open_batch.sessions.len() as u64;
                open_batch.sessions.clear();
                open_batch.batch.sessions.clear();
                journal.status.dropped.fetch_add(given_up, Relaxed);
                if open_batch.control.is_empty() {
                    open_batch.sealed_for = None;
                }
            }
            let is_remembered = journal.memory.is_saved();
            let is_done = open_batch.is_empty() && journal.queue.len() == 0;
            // It reads the log no more, so that will not change.
            let is_vain = journal.identity().is_none() || journal.has_wrong_key();
            if is_done || is_failing && is_remembered || is_vain {
                self.open_batches.remove(&journal.writer);
                self.hub.remove(journal);
                journal.memory.keep_unsaved();
                // A listener that was opened again in the meantime has not read the last sessions of the closed one.
                if journal.has_written_late.load(Relaxed) {
                    let others = self.hub.journals().into_iter();
                    for other in others.filter(|other| other.name == journal.name) {
                        other.replay.lock().want_replay(Duration::ZERO);
                    }
                }
            }
        }
    }

    fn tick(&mut self, journals: &[Arc<Shared<T>>]) {
        let is_unsynced = self.unsynced.is_some() && is_over(self.unsynced, SYNC_EVERY);
        if is_unsynced && self.syncing.is_over() {
            let synced = self.log.sync();
            self.syncing.note(synced.is_ok());
            self.unsynced = synced.is_err().then(instant);
            self.note_for_all(synced);
        }
        if !is_over(self.ticked, TICK) {
            return;
        }
        self.ticked = Some(instant());
        for journal in journals {
            journal.renew_keys();
            journal.renew_lacks();
            journal.renew_lifetime();
            journal.check_clock();
            journal.count_epochs();
            if can_use_log(journal) {
                journal.tell_epoch();
            }
        }
        if is_over(Some(self.tidied), TRIM_EVERY) {
            self.tidied = instant();
            tidy(journals);
        }
        if is_over(self.trimmed, TRIM_EVERY) && self.trimming.is_over() {
            self.trim(journals);
        }
        if let Some(notice) = self.log.take_notice() {
            if let Some(journal) = journals.first() {
                journal.emit(EventKind::Noticed(notice));
            }
        }
    }

    fn trim(&mut self, journals: &[Arc<Shared<T>>]) {
        // Only after a replay are the lifetimes in the log known.
        let known: Vec<_> = (journals.iter())
            .filter(|journal| journal.has_replayed.load(Relaxed) && is_ready(journal))
            // The server would refuse to trim what it refuses to read, and the other scopes would seem to fail.
            .filter(|journal| journal.may_trim() && !journal.status.is_failing(Part::Follower))
            .collect();
        if known.is_empty() {
            return;
        }
        for journal in &known {
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
        self.trimming.note(trimmed.is_ok());
        self.trimmed = trimmed.is_ok().then(instant);
        for journal in &known {
            let bytes = self.log.bytes(&journal.name);
            let log_bytes = bytes.map_or(0, |bytes| bytes.saturating_add(1));
            journal.status.log_bytes.store(log_bytes, Relaxed);
            // A node that learned a revocation late keeps it longer than the log does, and sessions in the log still
            // refer to it.
            let open_batch = self.open_batches.entry(journal.writer).or_default();
            let every = Duration::from_millis(journal.keep_ms() / 64);
            let is_due =
                is_over(open_batch.completed, every) && journal.remembered.revocations().len() > 0;
            if is_due || bytes == Some(0) {
                // A node that starts would take an empty log for a new one.
                open_batch.completed = Some(instant());
                journal.replay.lock().want_scan(Duration::ZERO);
            }
        }
        self.note_for_all(trimmed);
    }

    /// Notes the result of a call for all scopes.
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
            // A success of another call does not mean that appending or syncing works again.
            let open_batch = self.open_batches.get(&journal.writer);
            let is_failing = self.backoff.is_failing()
                || self.syncing.is_failing()
                || open_batch.is_some_and(|open_batch| open_batch.backoff.is_failing());
            if result.is_err() || !is_failing {
                journal.set(Part::Writer, result.clone());
            }
        }
    }
}

fn is_over(since: Option<Instant>, time: Duration) -> bool {
    since.is_none_or(|since| instant().duration_since(since) >= time)
}

/// Whether there are keys that others can be expected to have, and the log's identity is known.
fn is_ready<T: TemplateCodec>(journal: &Shared<T>) -> bool {
    journal.identity().is_some() && journal.keys().is_some() && journal.may_seal()
}

/// Whether this node reads and writes the log, and so hears of the others' epoch.
fn can_use_log<T: TemplateCodec>(journal: &Shared<T>) -> bool {
    let is_failing = |part| journal.status.is_failing(part);
    is_ready(journal)
        && journal.may_trim()
        && !is_failing(Part::Writer)
        && !is_failing(Part::Follower)
}

/// Whether records may tell of the revocations that this node knows: the log has them, or they come first. A journal that
/// has closed reads the log no more and would never learn whether the log has them.
fn may_tell<T: TemplateCodec>(journal: &Shared<T>) -> bool {
    // Whoever sets it wakes the writer, see `Waker::wake`.
    journal.is_log_complete.load(SeqCst) || journal.queue.is_closed()
}

/// After an error, the log may have lost records: asks for a pass over the control stream.
fn note_lost<T: TemplateCodec>(journal: &Shared<T>) {
    journal.replay.lock().want_scan(Duration::from_millis(200));
}

fn note_written<T>(journal: &Shared<T>, open_batch: &mut OpenBatch, records: &[Record]) {
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
    if open_batch.control.is_empty() && open_batch.sessions.is_empty() {
        open_batch.batch.sessions.clear();
        open_batch.sealed_for = None;
    }
}

/// Seals the open batch of the scope. Records that the sessions refer to come first, unless the log has them.
fn fill<T: TemplateCodec>(journal: &Shared<T>, open_batch: &mut OpenBatch) -> Result<(), String> {
    let identity = journal
        .identity()
        .ok_or("the log's identity is not known yet")?;
    let keys = journal.keys().ok_or("there is no key to seal with")?;
    if open_batch.is_sealed_for(identity, &keys) {
        return Ok(());
    }
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
    for session in &open_batch.batch.sessions {
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
    let mut answers = Vec::new();
    for record in &open_batch.batch.control {
        let body = match record {
            ControlRecord::Revocation {
                id, term, target, ..
            } => Body::Revocation {
                id: *id,
                term: *term,
                target: target.clone(),
            },
            ControlRecord::Ask { nonce } => Body::Ask { nonce: *nonce },
            ControlRecord::Answer { nonce } => {
                answers.push((*nonce, announcing.knowledge(&open_batch.knowledge)));
                continue;
            }
            ControlRecord::Statement => {
                let content = statement(journal, &open_batch.knowledge);
                announcing.note(&content, now);
                control.push(seal_as(now, 0, &body_of(&content))?);
                continue;
            }
            ControlRecord::Content { content, made_ms } => {
                announcing.note(content, *made_ms);
                control.push(seal_as(*made_ms, 0, &body_of(content))?);
                continue;
            }
            ControlRecord::Clock => {
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
    // They come after the knowledge that they refer to.
    for (nonce, knowledge) in answers {
        let body = Body::Answer {
            nonce,
            knowledge: &knowledge,
        };
        control.push(seal_as(now, 0, &body)?);
    }
    (open_batch.control, open_batch.sessions) = (control, sessions);
    open_batch.sealed_for = Some((identity, Arc::clone(&keys)));
    Ok(())
}

/// Puts revocations that OTP's process has made into the node's memory: before they go into the log, and even if the
/// log cannot be written. That process does not wait for a disk.
fn remember<T: TemplateCodec>(journal: &Shared<T>) {
    let new = journal.queue.take_unstored();
    let longest_ms = new.iter().map(|(.., left_ms)| *left_ms).max();
    if let Some(longest_ms) = longest_ms {
        let new: Vec<_> = (new.into_iter())
            .map(|(id, target, _)| (id, target))
            .collect();
        journal.memory.note(&journal.remembered, new, longest_ms);
    }
}

/// Drops what the node's memory need not remember any more, and writes to its folder what could not be written before.
fn tidy<T: TemplateCodec>(journals: &[Arc<Shared<T>>]) {
    let mut memories: Vec<&Arc<_>> = journals.iter().map(|journal| &journal.memory).collect();
    memories.sort_by_key(|memory| Arc::as_ptr(memory));
    memories.dedup_by_key(|memory| Arc::as_ptr(memory));
    for journal in journals {
        if !can_use_log(journal) {
            continue;
        }
        let new = (journal.remembered).change(|revocations| revocations.use_epoch());
        if !new.is_empty() {
            journal.memory.note_epochs(&journal.remembered, new);
        }
    }
    let changed: Vec<_> = memories.iter().flat_map(|memory| memory.tidy()).collect();
    for journal in journals {
        if changed.contains(&journal.name) {
            journal.note_expired();
        }
    }
}

fn statement<T: TemplateCodec>(journal: &Shared<T>, knowledge: &Knowledge) -> Content {
    let statement = Statement {
        knowledge: knowledge.clone(),
        lifetime_ms: journal.lifetime_ms(),
        retired_keys: journal.retired_keys(),
        lacked_keys: journal.lacked_keys(),
    };
    Content::Knowledge(statement.encode().into())
}

fn body_of(content: &Content) -> Body<'_> {
    match content {
        Content::Template(bytes) => Body::Template(bytes),
        Content::Knowledge(bytes) => Body::Knowledge(bytes),
    }
}

/// Records that sessions of a batch refer to and the log does not have.
struct Announcing<'a, T> {
    journal: &'a Shared<T>,
    now_ms: u64,
    bodies: Vec<Announced>,
    /// The hashes of knowledge in this batch.
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
            make_room(&mut announced, |(at_ms, _)| *at_ms);
            announced.insert(hash, (self.now_ms, content.clone()));
            self.bodies.push(Announced::Content(content));
        }
        hash
    }

    /// Whether content that was written then need not be written again.
    fn is_recent(&self, at_ms: u64) -> bool {
        self.now_ms < at_ms.saturating_add(self.journal.announce_again_ms())
    }

    fn note(&self, content: &Content, made_ms: u64) {
        let hash = content_hash(content.bytes());
        let mut announced = self.journal.announced.lock();
        make_room(&mut announced, |(at_ms, _)| *at_ms);
        announced.insert(hash, (made_ms, content.clone()));
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
