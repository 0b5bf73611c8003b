//! Reads a whole log back: first its control stream and then, unless revocations may be missing, its sessions. One
//! thread does this for all scopes with this log.

use crate::clock::instant;
use crate::hub::Hub;
use crate::queue::ControlRecord;
use crate::reader::{Seen, Unopened, Unread};
use crate::record::{ContentHash, LogIdentity, Skipped};
use crate::shared::{ReplayState, Shared};
use crate::status::{EventKind, Part};
use crate::template::TemplateCodec;
use chacha20poly1305::aead::Generate;
use rekindle_core::{Arrival, SessionKey};
use rekindle_log::{Batch as LogBatch, LogError, LogReader, Record, Stream};
use std::collections::HashSet;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Records read at once.
const PAGE: usize = if cfg!(test) { 50 } else { 1000 };

/// How often the thread looks for work if nobody wakes it.
const TICK: Duration = Duration::from_millis(100);

/// How soon a node reads the log again if it may not read sessions, and asks the others for missing records. The time
/// doubles, up to 8 seconds, or 32 if only a key is missing.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Limit on the questions that wait for an answer.
const MAX_ASKED: usize = 32;

/// Limit on the claims that are remembered. One whose append has failed may be in the log nevertheless.
const MAX_BEGUN: usize = 16;

/// How long a node waits at an empty shared log before it takes the log for a new one. If records were lost, a node
/// that knows them writes them again in that time.
const NEW_LOG_AFTER: Duration = Duration::from_millis(1500);

/// Looks at an empty log that are further apart do not count together. With many scopes, a round of looks takes seconds.
const LOOKS_APART: Duration = Duration::from_secs(10);

/// How often the node checks a log whose identity is not known yet.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// How long an unused reader keeps its connection.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) struct Replayer<T> {
    hub: Arc<Hub<T>>,
    reader: Option<(Box<dyn LogReader>, Instant)>,
}

/// The reason why a scope's sessions are not read.
struct Hold(String);

impl<T: TemplateCodec> Replayer<T> {
    pub fn new(hub: Arc<Hub<T>>) -> Self {
        Replayer { hub, reader: None }
    }

    /// Does replays and passes until the hub has ended.
    pub fn run(mut self) {
        while !self.hub.has_ended() {
            if !self.turn() {
                self.hub.sleep(TICK);
            }
            let is_idle = |(_, used): &(_, Instant)| used.elapsed() >= IDLE;
            if self.reader.as_ref().is_some_and(is_idle) {
                self.reader = None;
            }
        }
    }

    /// Reads for one scope. Returns whether there was one to read for.
    pub fn turn(&mut self) -> bool {
        let journals = self.hub.journals().into_iter();
        // The one that has waited longest, so that each has its turn even if another one's cannot be read.
        let due = journals.filter_map(|journal| Some((due_since(&journal)?, journal)));
        let Some((_, journal)) = due.min_by_key(|(since, _)| *since) else {
            return false;
        };
        let is_replay = {
            let mut replay = journal.replay.lock();
            replay.wants_scan = false;
            std::mem::take(&mut replay.wants_replay)
        };
        let hub = Arc::clone(&self.hub);
        let (reader, used) = self
            .reader
            .get_or_insert_with(|| (hub.log.reader(), Instant::now()));
        *used = Instant::now();
        let read = match is_replay {
            true => replay(&hub, &journal, &mut **reader),
            false => scan_only(&journal, &mut **reader),
        };
        let mut replay = journal.replay.lock();
        replay.backoff.note(read.is_ok());
        if read.is_err() {
            replay.empty_since = None;
            replay.wants_replay |= is_replay;
            replay.wants_scan |= !is_replay;
            replay.not_before = instant() + replay.backoff.left();
        }
        drop(replay);
        journal.set(Part::Reader, read.map_err(|error| error.0));
        true
    }
}

/// Since when there has been something to read, if it is time for that.
fn due_since<T: TemplateCodec>(journal: &Shared<T>) -> Option<Instant> {
    let replay = journal.replay.lock();
    let is_wanted = replay.wants_replay || replay.wants_scan;
    let is_time = instant() >= replay.not_before && replay.backoff.is_over();
    (is_wanted && is_time && !journal.has_ended()).then_some(replay.not_before)
}

/// Reads the control stream, to see whether it has everything that this node knows.
fn scan_only<T: TemplateCodec>(
    journal: &Shared<T>,
    reader: &mut dyn LogReader,
) -> Result<(), LogError> {
    if journal.keys().is_none() || journal.identity().is_none() {
        return Ok(());
    }
    reader.mark(&journal.name)?;
    let seen = scan(journal, reader)?;
    if journal.has_ended() {
        return Ok(());
    }
    if has_changed(journal, &seen) {
        journal.replay.lock().want_replay(Duration::ZERO);
        return Ok(());
    }
    let is_held = journal.replay.lock().is_held;
    if is_held {
        // The next replay does the rest.
        journal.replay.lock().wants_replay = true;
        return Ok(());
    }
    let held = reason_to_hold(journal, &seen);
    journal.complete_log(&seen, held.is_none());
    match held {
        Some(Hold(why)) => hold(journal, why),
        None => note_done(journal),
    }
    Ok(())
}

fn scan<T: TemplateCodec>(
    journal: &Shared<T>,
    reader: &mut dyn LogReader,
) -> Result<Seen, LogError> {
    let keys = journal.keys();
    let mut seen = Seen::default();
    loop {
        let records = reader.older(Stream::Control, PAGE)?;
        if records.is_empty() || journal.has_ended() {
            break;
        }
        journal.apply_control(&records, Some(&mut seen));
    }
    seen.check_excuses();
    if let Some(keys) = keys.filter(|_| !journal.has_ended()) {
        journal.check_sealing(&keys, &seen);
    }
    Ok(seen)
}

fn replay<T: TemplateCodec>(
    hub: &Hub<T>,
    journal: &Arc<Shared<T>>,
    reader: &mut dyn LogReader,
) -> Result<(), LogError> {
    let again = |delay| journal.replay.lock().want_replay(delay);
    if journal.keys().is_none() && journal.load_keys().is_err() {
        // The status has the reason.
        again(Duration::from_millis(500));
        return Ok(());
    }
    if journal.load_memory().is_err() {
        again(Duration::from_millis(500));
        return Ok(());
    }
    let began = Instant::now();
    if journal.identity().is_none() && !identify(hub, journal, reader)? {
        let mut replay = journal.replay.lock();
        let delay = match replay.lacked_key {
            Some(_) => next_delay(&mut replay, 2),
            None => LOOK_AGAIN,
        };
        replay.want_replay(delay);
        return Ok(());
    }
    let mark = reader.mark(&journal.name)?;
    journal.replay.lock().lacks_keys = false;
    let seen = scan(journal, reader)?;
    if journal.has_ended() {
        return Ok(());
    }
    if has_changed(journal, &seen) {
        again(Duration::ZERO);
        return Ok(());
    }
    let mut held = reason_to_hold(journal, &seen);
    let mut is_new_log = false;
    if let Some(why) = doubt(journal, &seen).filter(|_| held.is_none()) {
        // A log that this node has just begun, and that nobody has written to yet, is safe to use.
        let identity = journal.identity();
        let has_begun = identity.is_some_and(|log| journal.begun.lock().contains(&log));
        is_new_log =
            has_begun && !seen.has_content && reader.older(Stream::Sessions, 1)?.is_empty();
        held = (!is_new_log).then(|| Hold(why.into()));
    }
    // From now on the follower carries out control records as they come, and sessions unless the journal is held.
    journal.replay.lock().is_held = held.is_some();
    hub.follow(journal, mark);
    // This happens while the node is held, too: another node may wait for records that this node has.
    journal.complete_log(&seen, held.is_none());
    let held = match held {
        Some(hold) => Some(hold),
        None => read_sessions(journal, reader)?,
    };
    if let Some(Hold(why)) = held {
        hold(journal, why);
        return Ok(());
    }
    note_done(journal);
    // A pass is cut short when the listener closes.
    if !journal.has_ended() {
        note_complete(journal, is_new_log);
    }
    let took_ms = began.elapsed().as_millis() as u64;
    journal.status.note_replay(took_ms);
    if !journal.has_replayed.swap(true, Relaxed) {
        journal.emit(EventKind::Replayed {
            sessions: journal.status.applied.load(Relaxed),
            took_ms,
        });
    }
    if let Ok(Some(ahead_ms)) = reader.clock_ahead_ms() {
        journal.status.clock_ahead_ms.store(ahead_ms, Relaxed);
    }
    Ok(())
}

/// Reads sessions, the newest first: they are the most likely to be needed, and their writers knew the most
/// revocations.
fn read_sessions<T: TemplateCodec>(
    journal: &Shared<T>,
    reader: &mut dyn LogReader,
) -> Result<Option<Hold>, LogError> {
    let mut restored = Vec::new();
    loop {
        let records = reader.older(Stream::Sessions, PAGE)?;
        if records.is_empty() || journal.has_ended() {
            return Ok(None);
        }
        let unknown = journal.with_store(|_, store| {
            for record in &records {
                let applied =
                    journal.apply_session(store, record, Arrival::Replayed, Some(&mut restored));
                match applied {
                    Ok(()) => {}
                    Err(Unread::Skipped(reason)) => journal.status.skip(reason),
                    Err(Unread::UnknownKnowledge(hash)) => {
                        journal.status.skip(Skipped::Template);
                        if !is_settled(journal, hash) {
                            return true;
                        }
                    }
                }
            }
            false
        });
        if unknown == Some(true) {
            // The missing revocations may cover sessions that were already read.
            journal.with_store(|_, store| {
                for id in &restored {
                    store.delete(SessionKey::Id(id));
                }
            });
            let why = "it has lost revocations that were known when its sessions were written";
            return Ok(Some(Hold(why.into())));
        }
    }
}

/// Whether sessions may be left out because the record of their writer's knowledge is lost: either another node has
/// answered that it does not have the record, or no other node can have it.
fn is_settled<T: TemplateCodec>(journal: &Shared<T>, hash: ContentHash) -> bool {
    let is_alone = is_alone(journal);
    let is_answered = journal.is_answered();
    let mut replay = journal.replay.lock();
    if is_answered || is_alone {
        replay.settled.insert(hash);
    }
    replay.settled.contains(&hash)
}

/// Whether the node is alone with its log: it has made all revocations itself, and remembers them.
fn is_alone<T: TemplateCodec>(journal: &Shared<T>) -> bool {
    !journal.is_shared_log && journal.was_complete()
}

/// Finds the log's identity. `false` if it cannot be known yet.
fn identify<T: TemplateCodec>(
    hub: &Hub<T>,
    journal: &Shared<T>,
    reader: &mut dyn LogReader,
) -> Result<bool, LogError> {
    let mut unopened = Unopened::default();
    let mut found = oldest_identity(journal, reader, &mut unopened)?;
    if found.is_none() {
        if let Some(Hold(why)) = lack_of_key(journal, &unopened) {
            // The log has an identity, and other nodes know it.
            set_held(journal, &why);
            return Ok(false);
        }
        let now = instant();
        let mut replay = journal.replay.lock();
        // If much time has passed since this node last looked, the log may have been in use and lost meanwhile.
        let is_recent = |(_, last): &(Instant, Instant)| now.duration_since(*last) < LOOKS_APART;
        let since = replay
            .empty_since
            .filter(is_recent)
            .map_or(now, |(since, _)| since);
        replay.empty_since = Some((since, now));
        drop(replay);
        if journal.is_shared_log && now.duration_since(since) < NEW_LOG_AFTER {
            return Ok(false);
        }
        // If several nodes begin a log, the first one decides its identity.
        let (claimed, claim) = journal.claim().map_err(LogError)?;
        let mut begun = journal.begun.lock();
        if begun.len() == MAX_BEGUN {
            begun.remove(0);
        }
        begun.push(claimed);
        drop(begun);
        let batch = LogBatch {
            scope: &journal.name,
            control: &[claim],
            sessions: &[],
        };
        let appended = hub.log.writer().append(&[batch])?;
        appended.into_iter().collect::<Result<(), _>>()?;
        found = oldest_identity(journal, reader, &mut unopened)?;
    }
    let Some(identity) = found else {
        return Ok(false);
    };
    journal.note_identity(identity);
    Ok(true)
}

/// Whether the log's identity has changed because the log was lost and begun again, or set back. All nodes take the
/// identity of its oldest record: otherwise they could not read each other's records.
fn has_changed<T: TemplateCodec>(journal: &Shared<T>, seen: &Seen) -> bool {
    let other = (seen.oldest_log).filter(|found| journal.identity() != Some(*found));
    if let Some(identity) = other {
        journal.note_identity(identity);
    }
    other.is_some()
}

/// The identity in the log's oldest record. Records that somebody copied into a log come after its own.
fn oldest_identity<T: TemplateCodec>(
    journal: &Shared<T>,
    reader: &mut dyn LogReader,
    unopened: &mut Unopened,
) -> Result<Option<LogIdentity>, LogError> {
    reader.mark(&journal.name)?;
    let mut found = None;
    loop {
        let records = reader.older(Stream::Control, PAGE)?;
        if records.is_empty() || journal.has_ended() {
            break;
        }
        let identity = |record: &Record| journal.identity_of(Stream::Control, record, unopened);
        found = records.iter().rev().find_map(identity).or(found);
    }
    if found.is_none() {
        let sessions = reader.older(Stream::Sessions, PAGE)?;
        let identity = |record: &Record| journal.identity_of(Stream::Sessions, record, unopened);
        found = sessions.iter().find_map(identity);
    }
    Ok(found)
}

/// Why another node has to confirm the log before its sessions are read, if this node may not know all revocations.
fn doubt<T: TemplateCodec>(journal: &Shared<T>, seen: &Seen) -> Option<&'static str> {
    let is_overridden = journal.replay.lock().is_overridden;
    if !journal.is_shared_log || journal.was_complete() || journal.is_answered() || is_overridden {
        return None;
    }
    if journal.options.wait_for_living_node {
        return Some("another node has to confirm that no revocation is missing");
    }
    let is_known = seen.has_any || journal.was_remembered() || journal.has_replayed.load(Relaxed);
    (!is_known).then_some("its control records are lost, perhaps with revocations")
}

/// Notes that this node knows all revocations. If nobody has confirmed that because the log was new, it counts for this
/// log only: an older one may come back in its place.
fn note_complete<T: TemplateCodec>(journal: &Shared<T>, is_new_log: bool) {
    let Some(log) = journal.identity() else {
        return;
    };
    if is_new_log {
        journal.memory.note_began(&journal.remembered, log);
    } else if !journal.remembered.is_complete_for(log) {
        journal.memory.note_complete(&journal.remembered);
    }
}

/// The reason not to read sessions, if revocations may be missing.
fn reason_to_hold<T: TemplateCodec>(journal: &Shared<T>, seen: &Seen) -> Option<Hold> {
    // This also decides what revoke/1 answers.
    let lack_of_key = lack_of_key(journal, &seen.unopened);
    let missing = journal.remembered.revocations().missing();
    let lack = || {
        Hold(format!(
            "it lacks {missing} revocations that other nodes know"
        ))
    };
    lack_of_key.or_else(|| (missing > 0).then(lack))
}

/// The reason not to read sessions, if records are sealed with a key that is not here and was never taken out of use, or with
/// another one than the key here that has the same name.
fn lack_of_key<T: TemplateCodec>(journal: &Shared<T>, unopened: &Unopened) -> Option<Hold> {
    // If this node has not read the log yet, the key was removed too early: other nodes may still seal with it.
    let retired = match journal.identity() {
        Some(_) => journal.retired_keys(),
        None => Vec::new(),
    };
    let retired: HashSet<Vec<u8>> = retired.into_iter().map(String::into_bytes).collect();
    let unknown = unopened.unknown_keys.difference(&retired);
    let unknown = unknown.map(|name| String::from_utf8_lossy(name).into_owned());
    let mut unknown: Vec<String> = unknown.collect();
    unknown.sort();
    let is_alone = is_alone(journal);
    let mut replay = journal.replay.lock();
    if replay.is_overridden {
        replay.settled.extend(unopened.forged.keys());
        replay.lacked_key = None;
        replay.lacked_keys.clear();
        drop(replay);
        if !unknown.is_empty() {
            // The other nodes need not wait for these keys any more either.
            journal.retire_lacked_keys(&unknown);
            journal.queue.push_record(ControlRecord::Statement);
        }
        return None;
    }
    replay.note_lacked_keys(&journal.queue, unknown.iter().map(String::as_str));
    let is_new = |(hash, _): &(&ContentHash, _)| !replay.settled.contains(*hash);
    let forged = unopened.forged.iter();
    let forged = forged.filter(|it| is_new(it) && !is_alone).min();
    replay.lacked_key = match (unknown.first(), forged) {
        (Some(name), _) => Some(format!(
            "records that may be revocations are sealed with the key {}, which is not in the key file",
            name.escape_debug()
        )),
        (None, Some((_, name))) => Some(format!(
            "records that may be revocations do not open with the key {}: give all nodes the same key file",
            String::from_utf8_lossy(name).escape_debug()
        )),
        (None, None) => None,
    };
    replay.lacked_key.clone().map(Hold)
}

fn note_done<T: TemplateCodec>(journal: &Shared<T>) {
    journal.set(Part::Replay, Ok(()));
    let mut replay = journal.replay.lock();
    replay.is_held = false;
    replay.answers.clear();
    replay.is_overridden = false;
    replay.holds = 0;
}

fn set_held<T: TemplateCodec>(journal: &Shared<T>, why: &str) {
    journal.set(
        Part::Replay,
        Err(format!("no session is read from the log: {why}")),
    );
}

/// How long to wait before the log is read again. If that is in vain, longer the next time.
fn next_delay(replay: &mut ReplayState, most_doublings: u32) -> Duration {
    let delay = ASK_AGAIN.saturating_mul(1 << replay.holds.min(most_doublings));
    replay.holds += 1;
    delay
}

/// Keeps the log's sessions out of the store, reports the reason, and asks the other nodes.
fn hold<T: TemplateCodec>(journal: &Shared<T>, why: String) {
    set_held(journal, &why);
    let mut replay = journal.replay.lock();
    replay.is_held = true;
    replay.answers.clear();
    // A key that comes is noticed at once, and so is a record that takes it out of use.
    let most_doublings = if replay.lacked_key.is_some() { 4 } else { 2 };
    let delay = next_delay(&mut replay, most_doublings);
    replay.want_replay(delay);
    // Other nodes cannot help if a key is missing.
    let may_help = journal.is_shared_log && replay.lacked_key.is_none();
    let now = instant();
    let has_asked = |at: Instant| now.duration_since(at) < ASK_AGAIN;
    if !may_help || replay.asked_at.is_some_and(has_asked) {
        return;
    }
    replay.asked_at = Some(now);
    if let Ok(nonce) = u64::try_generate() {
        if replay.asked.len() == MAX_ASKED {
            replay.asked.remove(0);
        }
        replay.asked.push(nonce);
        drop(replay);
        journal.queue.push_record(ControlRecord::Ask { nonce });
    }
}
