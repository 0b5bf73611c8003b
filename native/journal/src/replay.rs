//! Reads a whole log back: its control stream, and then, unless revocations may be missing, its sessions. One thread for all
//! scopes that have this log.

use crate::backoff::Backoff;
use crate::clock::instant;
use crate::hub::Hub;
use crate::queue::Note;
use crate::reader::{Seen, Unread};
use crate::record::{ContentHash, LogIdentity, Skipped};
use crate::shared::Shared;
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

/// How often the thread looks for something to do, where nobody tells it.
const TICK: Duration = Duration::from_millis(100);

/// How soon a node asks the others for what is missing once more. Doubled each time, up to 8 seconds.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// Most questions whose answer is waited for.
const MAX_ASKED: usize = 32;

/// How long a node waits in front of an empty log that others have as well, before it takes it for a new one: a node that
/// knows more would write again what was lost.
const NEW_LOG_AFTER: Duration = Duration::from_millis(1500);

/// How often a log whose identity cannot be told is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// How long an unused reader keeps its connection.
const IDLE: Duration = Duration::from_secs(10);

pub(crate) struct Replayer<T> {
    hub: Arc<Hub<T>>,
    reader: Option<(Box<dyn LogReader>, Instant)>,
    backoff: Backoff,
}

/// What keeps a scope from being replayed.
struct Hold(String);

impl<T: TemplateCodec> Replayer<T> {
    pub fn new(hub: Arc<Hub<T>>) -> Self {
        Replayer {
            hub,
            reader: None,
            backoff: Backoff::default(),
        }
    }

    /// Reads what is to be read until the hub has ended.
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

    /// Does one scope's reading, and tells whether there was one to do.
    pub fn turn(&mut self) -> bool {
        if !self.backoff.is_over() {
            return false;
        }
        let due = self
            .hub
            .journals()
            .into_iter()
            .find(|journal| is_due(journal));
        let Some(journal) = due else {
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
        self.backoff.note(read.is_ok());
        if let Err(error) = &read {
            let mut replay = journal.replay.lock();
            replay.wants_replay |= is_replay;
            replay.wants_scan |= !is_replay;
            drop(replay);
            journal.set(Part::Reader, Err(error.0.clone()));
        } else {
            journal.set(Part::Reader, Ok(()));
        }
        true
    }
}

fn is_due<T: TemplateCodec>(journal: &Shared<T>) -> bool {
    let replay = journal.replay.lock();
    (replay.wants_replay || replay.wants_scan)
        && instant() >= replay.not_before
        && !journal.has_ended()
}

/// Reads the control stream to see whether it has what this node knows.
fn scan_only<T: TemplateCodec>(
    journal: &Shared<T>,
    reader: &mut dyn LogReader,
) -> Result<(), LogError> {
    if journal.keys().is_none() || journal.identity().is_none() {
        return Ok(());
    }
    reader.mark(&journal.name)?;
    let seen = scan(journal, reader)?;
    if seen.has_other_log && has_changed(journal, reader)? {
        journal.replay.lock().want_replay(Duration::ZERO);
        return Ok(());
    }
    let is_held = journal.replay.lock().is_held;
    if is_held {
        // The replay that is to come does the rest.
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
    let mut seen = Seen::default();
    loop {
        let records = reader.older(Stream::Control, PAGE)?;
        if records.is_empty() || journal.has_ended() {
            return Ok(seen);
        }
        journal.apply_control(&records, Some(&mut seen));
    }
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
        again(LOOK_AGAIN);
        return Ok(());
    }
    let mark = reader.mark(&journal.name)?;
    journal.replay.lock().lacks_keys = false;
    let seen = scan(journal, reader)?;
    if seen.has_other_log && has_changed(journal, reader)? {
        again(Duration::ZERO);
        return Ok(());
    }
    let mut held = reason_to_hold(journal, &seen);
    let doubt = doubt(journal, &seen).filter(|_| held.is_none());
    if let Some(why) = doubt {
        // A log without sessions is beyond doubt.
        let is_empty = reader.older(Stream::Sessions, 1)?.is_empty();
        held = (!is_empty).then(|| Hold(why.into()));
    }
    // From now on control records are carried out as they come, and sessions unless the journal is held.
    journal.replay.lock().is_held = held.is_some();
    hub.follow(journal, mark);
    // Also what one node waits for may be known to another one that waits.
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

/// Sessions, the newest first: those that are most likely to be wanted, and whose writers knew most.
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
            // Revocations are missing that may cover what was read already.
            journal.with_store(|_, store| {
                for id in &restored {
                    store.delete(SessionKey::Id(id));
                }
            });
            let why = "sessions in it know of revocations that are no longer in it";
            return Ok(Some(Hold(why.into())));
        }
    }
}

/// Whether a session may be left out because what its writer knew is not in the log: if another node has answered that it
/// knows no more, or nobody else could know.
fn is_settled<T: TemplateCodec>(journal: &Shared<T>, hash: ContentHash) -> bool {
    let is_alone = !journal.is_shared_log && journal.was_remembered();
    let mut replay = journal.replay.lock();
    if replay.is_answered || is_alone {
        replay.settled.insert(hash);
    }
    replay.settled.contains(&hash)
}

/// Finds out which log it is. `false` if that cannot be said yet.
fn identify<T: TemplateCodec>(
    hub: &Hub<T>,
    journal: &Shared<T>,
    reader: &mut dyn LogReader,
) -> Result<bool, LogError> {
    let mut unknown = HashSet::new();
    let mut found = oldest_identity(journal, reader, &mut unknown)?;
    if found.is_none() {
        if let Some(Hold(why)) = lack_of_key(journal, &unknown) {
            // It has an identity, which other nodes know.
            set_held(journal, &why);
            return Ok(false);
        }
        let mut replay = journal.replay.lock();
        let since = *replay.empty_since.get_or_insert_with(instant);
        drop(replay);
        if journal.is_shared_log && instant().duration_since(since) < NEW_LOG_AFTER {
            return Ok(false);
        }
        // Of several nodes that begin a log, the first one names it.
        let claim = journal.claim().map_err(LogError)?;
        let batch = LogBatch {
            scope: &journal.name,
            control: &[claim],
            sessions: &[],
        };
        let appended = hub.log.writer().append(&[batch])?;
        appended.into_iter().collect::<Result<(), _>>()?;
        found = oldest_identity(journal, reader, &mut unknown)?;
    }
    let Some(identity) = found else {
        return Ok(false);
    };
    journal.note_identity(identity);
    Ok(true)
}

/// Whether the log has another identity than this node knew, as it was lost and begun again, or rolled back. All nodes
/// take that of the oldest record, or they would not hear each other.
fn has_changed<T: TemplateCodec>(
    journal: &Shared<T>,
    reader: &mut dyn LogReader,
) -> Result<bool, LogError> {
    let found = oldest_identity(journal, reader, &mut HashSet::new())?;
    let other = found.filter(|found| journal.identity() != Some(*found));
    if let Some(identity) = other {
        journal.note_identity(identity);
    }
    Ok(other.is_some())
}

/// The identity that the log's oldest record has: what was copied into a log comes behind its own records.
fn oldest_identity<T: TemplateCodec>(
    journal: &Shared<T>,
    reader: &mut dyn LogReader,
    unknown: &mut HashSet<Vec<u8>>,
) -> Result<Option<LogIdentity>, LogError> {
    reader.mark(&journal.name)?;
    let mut found = None;
    loop {
        let records = reader.older(Stream::Control, PAGE)?;
        if records.is_empty() || journal.has_ended() {
            break;
        }
        let identity = |record: &Record| journal.identity_of(Stream::Control, record, unknown);
        found = records.iter().rev().find_map(identity).or(found);
    }
    if found.is_none() {
        let sessions = reader.older(Stream::Sessions, PAGE)?;
        let identity = |record: &Record| journal.identity_of(Stream::Sessions, record, unknown);
        found = sessions.iter().find_map(identity);
    }
    Ok(found)
}

/// Why another node has to confirm the log before its first replay, by a node that remembers nothing of it.
fn doubt<T: TemplateCodec>(journal: &Shared<T>, seen: &Seen) -> Option<&'static str> {
    let replay = journal.replay.lock();
    let is_settled = replay.is_answered || replay.is_overridden;
    if !journal.is_shared_log || journal.was_remembered() || is_settled {
        return None;
    }
    if journal.has_replayed.load(Relaxed) {
        return None;
    }
    if journal.options.wait_for_living_node {
        return Some("it waits until another node confirms that no revocation is missing");
    }
    (!seen.has_any).then_some("its control records are lost, and revocations may be among them")
}

/// Whether revocations may be missing.
fn reason_to_hold<T: TemplateCodec>(journal: &Shared<T>, seen: &Seen) -> Option<Hold> {
    let missing = journal.remembered.revocations().missing();
    if missing > 0 {
        return Some(Hold(format!(
            "other nodes know of {missing} revocations that are missing from it"
        )));
    }
    lack_of_key(journal, &seen.unknown_keys)
}

/// Whether records are sealed with a key that was never retired and is not here.
fn lack_of_key<T: TemplateCodec>(journal: &Shared<T>, unknown: &HashSet<Vec<u8>>) -> Option<Hold> {
    let retired: HashSet<Vec<u8>> = journal
        .retired_keys()
        .into_iter()
        .map(String::into_bytes)
        .collect();
    let mut unknown: Vec<_> = unknown.difference(&retired).collect();
    unknown.sort();
    let name = unknown.first()?;
    if journal.replay.lock().is_overridden {
        let names = unknown
            .iter()
            .map(|name| String::from_utf8_lossy(name).into_owned());
        journal.note_retired_keys(&names.collect::<Vec<_>>());
        return None;
    }
    Some(Hold(format!(
        "records that may be revocations are sealed with the key {}, which is not in the key file",
        String::from_utf8_lossy(name).escape_debug()
    )))
}

fn note_done<T: TemplateCodec>(journal: &Shared<T>) {
    journal.set(Part::Replay, Ok(()));
    let mut replay = journal.replay.lock();
    replay.is_held = false;
    replay.is_answered = false;
    replay.is_overridden = false;
    replay.holds = 0;
}

fn set_held<T: TemplateCodec>(journal: &Shared<T>, why: &str) {
    journal.set(Part::Replay, Err(format!("the log is not replayed: {why}")));
}

/// Keeps sessions of the log out of the store, says why, and asks the other nodes.
fn hold<T: TemplateCodec>(journal: &Shared<T>, why: String) {
    set_held(journal, &why);
    let mut replay = journal.replay.lock();
    replay.is_held = true;
    replay.is_answered = false;
    let delay = ASK_AGAIN.saturating_mul(1 << replay.holds.min(2));
    replay.holds += 1;
    replay.want_replay(delay);
    if !journal.is_shared_log {
        return;
    }
    if let Ok(nonce) = u64::try_generate() {
        if replay.asked.len() == MAX_ASKED {
            replay.asked.remove(0);
        }
        replay.asked.push(nonce);
        drop(replay);
        journal.queue.push_note(Note::Ask { nonce });
    }
}
