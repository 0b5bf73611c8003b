//! Puts records of a log into a scope's store, whether the replay or the follower has read them.

use crate::clock::{now_ms, wall_ms};
use crate::queue::{Content, ControlRecord, InFolder};
use crate::record::{
    content_hash, header, seal, Body, ContentHash, Header, LogIdentity, Opened, Skipped, Stamp,
    Statement, Term,
};
use crate::references::{References, MAX_REFERENCES};
use crate::revocations::{Learned, RevocationId, Verdict};
use crate::shared::{
    note_newest, random_delay, Lacking, Shared, CLOCK_STEP_MS, COMPLETE_WITHIN_MS, MAX_AHEAD_MS,
    MAX_RETIRED_KEYS, REWRITE_LIMIT,
};
use crate::status::{EventKind, Part};
use crate::suites::Suites;
use crate::target::Target;
use crate::template::TemplateCodec;
use chacha20poly1305::aead::Generate;
use rangemap::RangeInclusiveSet;
use rekindle_core::{Arrival, Held, NewSession, Restored, Scope, ServerStore, SessionKey};
use rekindle_log::{Record, Stream};
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::Arc;
use std::time::Duration;

/// How long a node may take to answer a question. Each node waits for a delay of its own, and the first answer is
/// enough.
const ANSWER_WITHIN_MS: u64 = 400;

/// Limit on the questions that wait for an answer: a node that may lack something answers none.
const MAX_TO_ANSWER: usize = 1000;

/// Limit on the names of unknown keys that are noted. An attacker can make up names. As there may be more names than
/// those of retired keys, one that is not retired is always among them.
const MAX_UNKNOWN_KEYS: usize = MAX_RETIRED_KEYS + 1;

/// What a pass over the control stream has found.
#[derive(Default)]
pub(crate) struct Seen {
    /// Revocations that are sealed with the sealing key or a newer one.
    pub revocations: HashMap<u64, RangeInclusiveSet<u64>>,
    pub contents: HashSet<ContentHash>,
    /// The latest epoch in its statements.
    told_epoch: u64,
    pub has_own_clock: bool,
    /// The log that the oldest record was written to. The pass goes from the newest to the oldest.
    pub oldest_log: Option<LogIdentity>,
    /// Whether there is any record of this log.
    pub has_any: bool,
    /// Whether there is anything besides the claims, questions and answers of nodes that begin a log.
    pub has_content: bool,
    pub answers: HashSet<u64>,
    /// Whether a record opens with the sealing key.
    pub has_sealed: bool,
    /// Statements that name keys as taken out of use: for each key, the writers, and when the newest by each was made.
    retired_keys: HashMap<Vec<u8>, HashMap<u64, u64>>,
    /// For each such key that seals some records, the statements that are newer than all of these.
    excused: HashMap<Vec<u8>, HashMap<u64, u64>>,
    /// When each writer's newest statement was made.
    newest_ms: HashMap<u64, u64>,
    pub unopened: Unopened,
}

impl Seen {
    /// Notes a record that does not open. One that is sealed with a key that was taken out of use since is of no interest:
    /// who has said so writes all revocations again, and names them in the same statement.
    fn note_unopened(&mut self, header: &Header, record: &[u8], reason: Skipped) {
        match self.retired_keys.get(header.key_id) {
            Some(statements) if reason == Skipped::Key => {
                if !self.excused.contains_key(header.key_id) {
                    self.excused
                        .insert(header.key_id.into(), statements.clone());
                }
            }
            _ => self.unopened.note(header, record, reason),
        }
    }

    fn note_statement(&mut self, stamp: Stamp, statement: &Statement) {
        self.told_epoch = self.told_epoch.max(statement.knowledge.epoch);
        note_newest(&mut self.newest_ms, stamp);
        for name in &statement.retired_keys {
            let statements = self.retired_keys.entry(name.clone().into()).or_default();
            note_newest(statements, stamp);
        }
    }

    /// To be called after the pass. A copy of a statement proves nothing if its writer has made another one since.
    pub fn check_excuses(&mut self) {
        for (key, statements) in std::mem::take(&mut self.excused) {
            let is_newest = |(writer, made_ms)| self.newest_ms.get(writer) == Some(made_ms);
            if !statements.iter().any(is_newest) {
                self.unopened.unknown_keys.insert(key);
            }
        }
    }
}

/// Records that do not open.
#[derive(Default)]
pub(crate) struct Unopened {
    /// Names of keys that this node does not have and that seal some records.
    pub unknown_keys: HashSet<Vec<u8>>,
    /// Records that name a key of this node and do not open with it, with the name.
    pub forged: HashMap<ContentHash, Vec<u8>>,
}

impl Unopened {
    fn note(&mut self, header: &Header, record: &[u8], reason: Skipped) {
        let name = header.key_id;
        match reason {
            Skipped::Key if self.unknown_keys.len() < MAX_UNKNOWN_KEYS => {
                self.unknown_keys.insert(name.into());
            }
            Skipped::Forged if self.forged.len() < MAX_REFERENCES => {
                self.forged.insert(content_hash(record), name.into());
            }
            _ => {}
        }
    }
}

/// Why a session was not put into the store.
pub(crate) enum Unread {
    Skipped(Skipped),
    /// The log lacks the record that says what its writer knew.
    UnknownKnowledge(ContentHash),
}

impl From<Skipped> for Unread {
    fn from(reason: Skipped) -> Self {
        Unread::Skipped(reason)
    }
}

impl<T: TemplateCodec> Shared<T> {
    /// Carries out control records. `seen` is given in a pass over the whole stream; without it, the records are new.
    pub fn apply_control<'a>(
        &self,
        records: impl IntoIterator<Item = &'a Record>,
        mut seen: Option<&mut Seen>,
    ) {
        let mut revoked = Vec::new();
        for record in records {
            self.status.read.fetch_add(1, Relaxed);
            let is_new = seen.is_none();
            let opened = self.open(Stream::Control, record, is_new, seen.as_deref_mut());
            if let Some(seen) = seen.as_deref_mut() {
                let body = opened
                    .as_ref()
                    .map_err(|reason| *reason)
                    .and_then(Opened::body);
                let is_about_log = matches!(
                    body,
                    Ok(Body::Claim | Body::Ask { .. } | Body::Answer { .. })
                );
                seen.has_content |= !is_about_log;
            }
            let applied = opened
                .and_then(|opened| self.apply_one(&opened, &mut revoked, seen.as_deref_mut()));
            if let Err(reason) = applied {
                self.status.skip(reason);
            }
        }
        self.apply_revocations(revoked);
    }

    /// Opens a record of this log. `is_new` says whether it has just been written, as far as this node knows.
    fn open(
        &self,
        stream: Stream,
        record: &[u8],
        is_new: bool,
        mut seen: Option<&mut Seen>,
    ) -> Result<Opened, Skipped> {
        let header = header(&self.context, stream, record)?;
        let keys = self.keys().ok_or(Skipped::Key)?;
        let is_current = keys.is_current(header.key_id);
        let opened = header.open(&keys, &self.context).inspect_err(|reason| {
            self.note_unopened(stream, &header, *reason, is_new);
        });
        if let (Some(seen), true) = (seen.as_deref_mut(), opened.is_ok()) {
            seen.oldest_log = Some(header.stamp.log);
        }
        // This comes after opening: with a wrong key, every log would look like another one.
        if let (Ok(other), true) = (&opened, self.identity() != Some(header.stamp.log)) {
            if seen.is_none() {
                // The log may have been lost, and another node may have begun it again.
                self.replay.lock().want_scan(Duration::from_secs(1));
            }
            // If several nodes begin a log at the same time, each writes a claim, and all accept the oldest.
            return match other.body() {
                Ok(Body::Claim) => opened,
                _ => Err(Skipped::Log),
            };
        }
        let Some(seen) = seen else {
            return opened;
        };
        seen.has_any |= opened.is_ok();
        seen.has_sealed |= opened.is_ok() && header.key_id == keys.sealing().0.as_bytes();
        match &opened {
            Ok(opened) => match opened.body() {
                Ok(Body::Revocation { id, .. }) if is_current && id.counter > 0 => {
                    let counters = seen.revocations.entry(id.origin).or_default();
                    counters.insert(id.counter..=id.counter);
                }
                Ok(Body::Template(content) | Body::Knowledge(content)) if is_current => {
                    seen.contents.insert(content_hash(content));
                }
                Ok(Body::Clock { .. }) if opened.stamp.writer == self.writer => {
                    seen.has_own_clock = true;
                }
                _ => {}
            },
            Err(reason) => seen.note_unopened(&header, record, *reason),
        }
        opened
    }

    /// An identity for a new log, and the record that gives it.
    pub fn claim(&self) -> Result<(LogIdentity, Record), String> {
        let keys = self.keys().ok_or("there is no key to seal with")?;
        let random = LogIdentity::try_generate();
        let identity = random.map_err(|_| "the system gives no random bytes")?;
        let stamp = self.stamp(identity, now_ms(), 0);
        let claim = seal(&keys, &self.context, stamp, &Body::Claim)?;
        Ok((identity, claim))
    }

    /// The identity of the log that a record was written to, if it opens.
    pub fn identity_of(
        &self,
        stream: Stream,
        record: &[u8],
        unopened: &mut Unopened,
    ) -> Option<LogIdentity> {
        let keys = self.keys()?;
        let header = header(&self.context, stream, record).ok()?;
        let opened = header.open(&keys, &self.context);
        let opened = opened.inspect_err(|reason| unopened.note(&header, record, *reason));
        Some(opened.ok()?.stamp.log)
    }

    /// Whether the operator has decided to read sessions although the record of their writer's knowledge is lost.
    fn settle_overridden(&self, knowledge: ContentHash) -> bool {
        let mut replay = self.replay.lock();
        replay.is_overridden && {
            replay.settled.insert(knowledge);
            true
        }
    }

    fn note_unopened(&self, stream: Stream, header: &Header, reason: Skipped, is_new: bool) {
        self.replay.lock().lacks_keys = true;
        if !is_new {
            return;
        }
        let id = String::from_utf8_lossy(header.key_id).into_owned();
        let is_unknown = reason == Skipped::Key;
        let is_retired = is_unknown && self.has_retired(&id);
        let mut replay = self.replay.lock();
        let may_revoke = stream == Stream::Control && !is_retired;
        if may_revoke && !replay.is_held {
            // It may be a revocation. The pass reports that, and goes on once the record can be read.
            replay.want_scan(Duration::from_millis(200));
        }
        if is_retired {
            replay.note_still_sealed(&self.queue, &id, header.stamp);
        } else if may_revoke && is_unknown {
            replay.note_lacked_key(&self.queue, &id);
        }
        let is_used = is_retired && header.is_revocation();
        if is_used && replay.still_used.insert(id.clone()) {
            drop(replay);
            let notice = format!(
                "another node still revokes with the key {}, which was taken out of use here: its revocations do not \
                 hold on this node until that node has the new key file",
                id.escape_debug()
            );
            self.emit(EventKind::Noticed(notice));
        }
    }

    fn apply_one(
        &self,
        opened: &Opened,
        revoked: &mut Vec<(RevocationId, Term, Target)>,
        seen: Option<&mut Seen>,
    ) -> Result<(), Skipped> {
        let stamp = opened.stamp;
        let keep_ms = self.keep_ms();
        match opened.body()? {
            Body::Template(content) => {
                let hash = content_hash(content);
                let mut references = self.references.lock();
                if !references.learn_template(hash, content, keep_ms) {
                    return Err(Skipped::Full);
                }
                drop(references);
                self.replay.lock().note_found(Lacking::Template(hash));
            }
            Body::Knowledge(content) => {
                self.learn_statement(content, stamp, keep_ms, seen)?;
            }
            Body::Clock { zero_ms, revision } => {
                let clock = (zero_ms, revision);
                let mut references = self.references.lock();
                let is_new = seen.is_none();
                let former_ms = references.learn_clock(stamp.writer, clock, keep_ms, is_new);
                drop(references);
                (self.replay.lock()).note_found(Lacking::Clock(stamp.writer));
                if former_ms.is_some_and(|former| former.abs_diff(zero_ms) >= CLOCK_STEP_MS) {
                    self.replay.lock().want_replay(Duration::ZERO);
                }
            }
            Body::Revocation { id, term, target } => revoked.push((id, term, target)),
            Body::Ask { nonce } => {
                let mut replay = self.replay.lock();
                let is_own = replay.asked.contains(&nonce);
                if seen.is_none() && !is_own && !replay.answered.contains(&nonce) {
                    if replay.to_answer.len() == MAX_TO_ANSWER {
                        replay.to_answer.remove(0);
                    }
                    replay.to_answer.push(nonce);
                    // While this node is held it cannot answer, and if it read the log at once, two such nodes would ask
                    // each other all the time.
                    if !replay.is_held {
                        let delay_ms = (nonce ^ self.writer) % ANSWER_WITHIN_MS;
                        replay.want_scan(Duration::from_millis(delay_ms));
                    }
                }
            }
            Body::Answer { nonce, knowledge } => {
                let mut replay = self.replay.lock();
                // Each answer counts once, because it stays in the log.
                if let Some(place) = replay.asked.iter().position(|asked| *asked == nonce) {
                    replay.asked.remove(place);
                    replay.answers.push(*knowledge);
                    if seen.is_none() {
                        replay.want_replay(Duration::ZERO);
                    }
                }
                if let Some(seen) = seen {
                    seen.answers.insert(nonce);
                }
            }
            Body::Claim | Body::Session { .. } => {}
        }
        Ok(())
    }

    fn learn_statement(
        &self,
        content: &[u8],
        stamp: Stamp,
        keep_ms: u64,
        seen: Option<&mut Seen>,
    ) -> Result<(), Skipped> {
        let is_new = seen.is_none();
        let is_newest = self.note_statement(stamp);
        let statement = Statement::decode(content)?;
        self.note_lifetime_in_log(statement.lifetime_ms);
        if let Some(seen) = seen {
            seen.note_statement(stamp, &statement);
        } else {
            self.note_told_epoch(statement.knowledge.epoch);
            self.replay
                .lock()
                .note_retired_elsewhere(&statement.retired_keys);
        }
        self.note_retired_by(stamp, &statement.retired_keys);
        if is_new && is_newest {
            // Who has written an older one may have ended, or changed its keys since.
            self.note_lacked_by(stamp.writer, &statement);
        }
        let hash = content_hash(content);
        if self.references.lock().knowledge.contains_key(&hash) {
            return Ok(());
        }
        let knowledge = &statement.knowledge;
        self.count_epochs();
        let has_changed =
            (self.remembered).change(|revocations| revocations.learn_statement(knowledge));
        // If another node's epoch is a later one, it begins now.
        self.count_epochs();
        if has_changed {
            // So this node need not wait for some missing revocations, or keep some, when it starts again.
            self.memory.note_knowledge(&self.remembered, knowledge);
        }
        let mut references = self.references.lock();
        references.learn_knowledge(hash, statement.knowledge, keep_ms, is_new);
        Ok(())
    }

    fn apply_revocations(&self, revoked: Vec<(RevocationId, Term, Target)>) {
        if revoked.is_empty() {
            return;
        }
        let (now_ms, keep_ms) = (self.memory.running_ms(), self.keep_ms());
        let mut new = Vec::new();
        let mut targets = Vec::new();
        let mut longest_ms = 0;
        self.remembered.change(|revocations| {
            for (id, term, target) in revoked {
                let left_ms = term.left_with_ms(keep_ms);
                let learned = revocations.learn(id, &target, now_ms.saturating_add(left_ms));
                if learned == Learned::Nothing {
                    continue;
                }
                if learned == Learned::Revocation {
                    targets.push(target.clone());
                }
                new.push((id, target));
                longest_ms = longest_ms.max(left_ms);
            }
        });
        if new.is_empty() {
            return;
        }
        self.with_store(|scope, store| carry_out(scope, store, &targets));
        self.memory.note(&self.remembered, new, longest_ms);
    }

    /// Puts a session into the store, unless it has expired, is revoked, or has a cipher suite that is not allowed.
    pub fn apply_session(
        &self,
        store: &ServerStore<T>,
        record: &[u8],
        arrival: Arrival,
        restored: Option<&mut Vec<[u8; 32]>>,
    ) -> Result<(), Unread> {
        self.status.read.fetch_add(1, Relaxed);
        let header = header(&self.context, Stream::Sessions, record)?;
        let is_new = arrival == Arrival::Live;
        let is_own = header.stamp.writer == self.writer;
        if is_own && !(arrival == Arrival::Replayed && self.suites.lock().has_dropped()) {
            return Ok(());
        }
        let clock = {
            let references = self.references.lock();
            let clock = references.clocks.get(&header.stamp.writer);
            clock.map(|clock| clock.value)
        };
        let Some((zero_ms, _)) = clock else {
            // A record that does not open must not make this node wait for a clock.
            self.open(Stream::Sessions, record, is_new, None)?;
            let lacking = Lacking::Clock(header.stamp.writer);
            self.replay.lock().note_lacking(lacking);
            return Err(Skipped::Template.into());
        };
        // This comes before opening, because most sessions of an old log have expired.
        let times = self.times(store, zero_ms, header.stamp, arrival)?;
        let opened = self.open(Stream::Sessions, record, is_new, None)?;
        let Body::Session {
            id,
            secret,
            template,
            knowledge,
            certificate,
            tail,
        } = opened.body()?
        else {
            return Err(Skipped::Malformed.into());
        };
        self.note_lifetime_in_log(opened.stamp.lifetime_ms);
        let mut references = self.references.lock();
        let known = match references.knowledge.get(knowledge) {
            Some(known) => Arc::clone(&known.value),
            // The session counts as written without any knowledge, so all revocations that this node knows cover it.
            None if self.settle_overridden(*knowledge) => Arc::default(),
            None => return Err(Unread::UnknownKnowledge(*knowledge)),
        };
        if !references.templates.contains_key(template) {
            self.replay
                .lock()
                .note_lacking(Lacking::Template(*template));
        }
        // This lock is held until the session is stored, too: when other suites are allowed, sessions of the former ones
        // are in the store already, or are not read any more.
        let mut suites = self.suites.lock();
        let template = references.template(store, template, &mut suites)?;
        drop(references);
        // The lock is held until the session is stored. So each revocation either is known here, or finds the session
        // in the store when it is carried out.
        let revocations = self.remembered.revocations();
        let certificate = (!certificate.is_empty()).then_some(certificate);
        match revocations.judge(id, certificate, &known) {
            Verdict::Free => {}
            Verdict::Revoked => return Err(Skipped::Revoked.into()),
            Verdict::Outdated => return Err(Skipped::Expired.into()),
        }
        let (born_ms, now_ms) = times;
        let session = NewSession {
            key: SessionKey::Id(id),
            secret,
            template: Some(template),
            certificate,
            tail,
        };
        let result = store.restore(session, born_ms, arrival, now_ms);
        drop((revocations, suites));
        match result {
            Restored::Stored => {
                self.status.applied.fetch_add(1, Relaxed);
                if let Some(restored) = restored {
                    restored.push(*id);
                }
            }
            Restored::Known => _ = self.status.known.fetch_add(1, Relaxed),
            Restored::NoRoom => return Err(Skipped::Full.into()),
            Restored::Expired => return Err(Skipped::Expired.into()),
            Restored::Revoked => return Err(Skipped::Revoked.into()),
        }
        Ok(())
    }

    /// When a session was made, by the store's clock, and the present time. `zero_ms` is the time of day at zero of its
    /// writer's clock.
    fn times(
        &self,
        store: &ServerStore<T>,
        zero_ms: i64,
        stamp: Stamp,
        arrival: Arrival,
    ) -> Result<(u64, u64), Skipped> {
        let made_ms = (zero_ms.max(0) as u64).saturating_add(stamp.made_ms);
        let made_ms = made_ms.saturating_sub(zero_ms.min(0).unsigned_abs());
        let (now_ms, now_wall_ms) = (now_ms(), wall_ms());
        if made_ms > now_wall_ms.saturating_add(MAX_AHEAD_MS) {
            let mut replay = self.replay.lock();
            let earliest = replay.future_ms.map_or(made_ms, |other| other.min(made_ms));
            replay.future_ms = Some(earliest);
            return Err(Skipped::Future);
        }
        let lifetime_ms = store.limits().lifetime_ms;
        let age_ms = now_wall_ms.saturating_sub(made_ms);
        if arrival == Arrival::Live {
            self.status.lag_ms.store(age_ms, Relaxed);
        }
        let left_ms = (stamp.lifetime_ms.min(lifetime_ms)).saturating_sub(age_ms);
        let born_ms = now_ms.checked_sub(lifetime_ms - left_ms);
        match born_ms {
            Some(born_ms) if left_ms > 0 => Ok((born_ms, now_ms)),
            _ => Err(Skipped::Expired),
        }
    }

    /// Writes what this node knows and the log does not have. If it may, it also answers questions; a node that may
    /// lack something itself must not.
    pub fn complete_log(&self, seen: &Seen, may_answer: bool) {
        if !self.may_seal() {
            return;
        }
        let was_complete = self.is_log_complete.load(Relaxed);
        if was_complete && self.status.is_failing(Part::Writer) && self.queue.len() > 0 {
            // The queue already has enough for a log that fails.
            self.replay.lock().want_scan(Duration::from_secs(1));
            return;
        }
        self.expire();
        // The log may have lost later ones.
        self.told_epoch.store(seen.told_epoch, Relaxed);
        let mut records = self.lost_revocations(seen);
        let is_complete = records.is_empty();
        let is_all = self.leave_some_to_others(&mut records);
        let mut has_lost_knowledge = false;
        for (hash, (made_ms, content)) in &*self.announced.lock() {
            if !seen.contents.contains(hash) {
                has_lost_knowledge |= matches!(content, Content::Knowledge(_));
                let (content, made_ms) = (content.clone(), *made_ms);
                records.push(ControlRecord::Content { content, made_ms });
            }
        }
        if !seen.has_own_clock && self.clock.lock().written_ms.is_some() {
            records.push(ControlRecord::Clock);
        }
        if !seen.has_any && self.has_replayed.load(Relaxed) {
            let notice = "somebody has emptied the log; this node writes again what it knows";
            self.emit(EventKind::Noticed(notice.into()));
        }
        if is_all {
            let open = self.take_questions(seen, may_answer, is_complete);
            // What it says of keys counts only if it comes last.
            if !is_complete || !open.is_empty() || !seen.has_any || has_lost_knowledge {
                records.push(ControlRecord::Statement);
            }
            let answers = open.into_iter();
            records.extend(answers.map(|nonce| ControlRecord::Answer { nonce }));
        }
        self.queue.push_records(records);
        if is_all && !self.is_log_complete.swap(true, SeqCst) {
            // Other records have waited for that.
            self.queue.wake();
        }
    }

    /// The revocations that this node knows and the log does not have.
    fn lost_revocations(&self, seen: &Seen) -> Vec<ControlRecord> {
        let (now_ms, keep_ms) = (self.memory.running_ms(), self.keep_ms());
        let mut records = Vec::new();
        let revocations = self.remembered.revocations();
        revocations.for_each(|id, target, expires_ms| {
            let counters = seen.revocations.get(&id.origin);
            if !counters.is_some_and(|counters| counters.contains(&id.counter)) {
                let left_ms = expires_ms.saturating_sub(now_ms);
                records.push(ControlRecord::Revocation {
                    id,
                    term: Term { keep_ms, left_ms },
                    target,
                    in_folder: InFolder::Yes,
                });
            }
        });
        records
    }

    /// Takes some out at random if there are many, and asks for another pass. Returns whether all stay.
    fn leave_some_to_others(&self, records: &mut Vec<ControlRecord>) -> bool {
        let mut replay = self.replay.lock();
        let (count, limit) = (records.len(), replay.rewrite_limit);
        if !self.is_shared_log || count <= limit {
            replay.rewrite_limit = REWRITE_LIMIT;
            return true;
        }
        replay.rewrite_limit = 2 * limit;
        let delay = Duration::from_millis(COMPLETE_WITHIN_MS / 2);
        replay.want_scan(delay + random_delay(COMPLETE_WITHIN_MS));
        drop(replay);
        let random = RandomState::new();
        let mut place = 0u64;
        records.retain(|_| {
            place += 1;
            random.hash_one(place) % (count as u64) < limit as u64
        });
        false
    }

    /// Takes the questions that this node can answer now, and returns those that nobody has answered.
    fn take_questions(&self, seen: &Seen, may_answer: bool, is_complete: bool) -> Vec<u64> {
        let mut replay = self.replay.lock();
        let asked = match may_answer {
            true => std::mem::take(&mut replay.to_answer),
            false => Vec::new(),
        };
        let open = (asked.iter().copied())
            .filter(|nonce| !is_complete || !seen.answers.contains(nonce))
            .collect();
        if replay.answered.len() > 10_000 {
            replay.answered.clear();
        }
        replay.answered.extend(asked);
        open
    }
}

impl References {
    /// Interns a template and returns a hold on it, if its suite is allowed.
    fn template<'a, T: TemplateCodec>(
        &mut self,
        store: &'a ServerStore<T>,
        hash: &ContentHash,
        suites: &mut Suites,
    ) -> Result<Held<'a, T>, Skipped> {
        let known = self.templates.get_mut(hash).ok_or(Skipped::Template)?;
        // No template is made for a session that is left out, unless it is the first.
        suites.check(known.suite)?;
        let name = known.template;
        if let Some(template) = name.and_then(|name| store.hold_template(name)) {
            return Ok(template);
        }
        let template = T::intern(store, &known.content).ok_or(Skipped::Template)?;
        known.template = Some(template.name());
        known.suite = template.suite();
        suites.check(known.suite)?;
        Ok(template)
    }
}

/// Drops the sessions that these revocations cover, and returns how many.
pub(crate) fn carry_out<T>(scope: &Scope<T>, store: &ServerStore<T>, targets: &[Target]) -> u64 {
    if targets.contains(&Target::All) {
        return scope.clear();
    }
    let mut dropped = 0;
    let mut selectors = Vec::new();
    for target in targets {
        match target {
            Target::Session(id) => dropped += u64::from(store.delete(SessionKey::Id(id))),
            Target::Certificate(selector) => selectors.push(selector.selector()),
            Target::All => {}
        }
    }
    match selectors.is_empty() {
        true => dropped,
        false => dropped + store.revoke(&selectors),
    }
}
