//! Which keys this node has, has taken out of use, or lacks, and what nodes tell each other of that.

use super::{random_delay, ReplayState, Shared, COMPLETE_WITHIN_MS};
use crate::clock::instant;
use crate::keys::{KeyFile, Keys};
use crate::queue::{ControlRecord, Queue};
use crate::reader::Seen;
use crate::record::{Stamp, Statement};
use crate::references::make_room;
use crate::status::Part;
use crate::template::TemplateCodec;
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Limit on the names of retired keys. There are far fewer, but an attacker can make up names of keys before the operator
/// decides to replay anyway.
pub(crate) const MAX_RETIRED_KEYS: usize = 1000;

/// How often a node tells the others which keys it lacks: while they seal with such a key, and while they do not.
const TELL_EVERY: Duration = Duration::from_secs(10);
const TELL_IDLY_EVERY: Duration = Duration::from_secs(60);

/// How long they remember it.
const LACK_LASTS: Duration = Duration::from_secs(75);

/// Limit on what they remember.
const MAX_LACKED: usize = 256;

/// Limit on the names of such keys: an attacker can make them up.
const MAX_LACKED_KEYS: usize = 16;

/// Whether others have the sealing key, as far as the log shows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum SealingKey {
    /// No pass over the control stream has ended since the node has this key.
    Unknown,
    /// There is no sign that it is another one.
    Right,
    /// Others have another key of this name, and could not read what this node writes.
    Wrong,
}

/// What other nodes have said of the keys of this one.
#[derive(Default)]
pub(super) struct Heard {
    /// When each writer made its newest statement, by its own clock. What it said before counts no more, even if somebody
    /// copies it.
    newest_ms: HashMap<u64, u64>,
    /// Keys that a writer does not have; with a time until which that counts, unless it has taken the key out of use.
    lacked: HashMap<(String, u64), Option<Instant>>,
}

/// That a writer has sealed with a key that was taken out of use here.
pub(crate) struct StillSealed {
    key: String,
    /// When its last such record came.
    at: Instant,
    /// When the newest of them was made, and until when the writer used the key as far as it has said, by the writer's clock.
    made_ms: u64,
    until_ms: u64,
}

impl<T: TemplateCodec> Shared<T> {
    /// Reads the key file. If it cannot be read, the keys in force stay, and no new ones are made.
    pub fn load_keys(&self) -> Result<(), String> {
        let mut loaded = self.key_version.lock();
        let file = KeyFile {
            make: self.options.keys.make && self.keys.read().is_none(),
            ..self.options.keys.clone()
        };
        let result = file.load().and_then(|(keys, version)| {
            let former = self.keys();
            let replaced = former.as_ref().and_then(|former| keys.replaced(former));
            // Unless the keys in force are the wrong ones.
            let may_be_right = self.replay.lock().lacked_key.is_none();
            if let Some(name) = replaced.filter(|_| may_be_right) {
                return Err(format!(
                    "key file {}: the key {name} is another one than before; a new key needs a new name, and if the former \
                     one was wrong, this node needs a restart",
                    file.path.display()
                ));
            }
            let is_new = loaded.replace(version) != Some(version);
            let keys = Arc::new(keys);
            let former = former.filter(|_| is_new);
            // Before the new keys are in force: otherwise a pass would miss the former ones.
            let has_retired_some = former
                .as_ref()
                .is_some_and(|former| self.retire(former, &keys));
            let was_known = |former: &Arc<Keys>| {
                // Another key of this name would have been noticed.
                former.seal_like(&keys) || may_be_right && former.have_sealing_key_of(&keys)
            };
            let mut sealing_key = self.sealing_key.lock();
            if self.is_shared_log && !former.as_ref().is_none_or(was_known) {
                *sealing_key = SealingKey::Unknown;
            }
            *self.keys.write() = Some(Arc::clone(&keys));
            drop(sealing_key);
            if let Some(former) = former {
                self.note_new_keys(&former, &keys, has_retired_some);
            }
            Ok(())
        });
        if result.is_err() {
            // The next try reads the file even if it comes back unchanged.
            *loaded = None;
        }
        let lack = self.check_sealing_key();
        if result.is_ok() {
            // So the error goes away once the others have the key.
            self.is_key_lacked.store(lack.is_err(), Relaxed);
        }
        self.set(Part::Keys, result.clone().and(lack));
        result
    }

    /// Reads the key file if it has changed.
    pub fn renew_keys(&self) {
        let found = self.options.keys.version();
        let is_new = found.is_none() || found != *self.key_version.lock();
        if is_new {
            // The error is in the status.
            let _ = self.load_keys();
        }
    }

    /// Takes the former keys out of use that are not among the new ones. Returns whether that changes anything.
    fn retire(&self, former: &Keys, keys: &Keys) -> bool {
        let ids = keys.ids();
        let mut retired = self.retired_keys.lock();
        let before = retired.clone();
        retired.retain(|id| !ids.contains(&&**id));
        for id in former.ids() {
            if !ids.contains(&id) {
                retire(&mut retired, id);
            }
        }
        *retired != before
    }

    fn note_new_keys(&self, former: &Keys, keys: &Keys, has_retired_some: bool) {
        let ids = keys.ids();
        let mut replay = self.replay.lock();
        if replay.lacks_keys || self.identity().is_none() {
            replay.want_replay(Duration::ZERO);
        }
        let is_sealing_changed = !keys.seal_like(former);
        if is_sealing_changed || has_retired_some {
            // Records are sealed again with the new key, because a node may start that has only newer keys. And none must
            // tell later of keys that were taken out of use before.
            self.announced.lock().clear();
            self.clock.lock().written_ms = None;
            replay.want_scan(random_delay(COMPLETE_WITHIN_MS));
        }
        let is_kept = |(name, _): &(String, u64)| ids.contains(&&**name);
        self.heard.lock().lacked.retain(|lacked, _| is_kept(lacked));
        let lacked = replay.lacked_keys.len();
        replay.lacked_keys.retain(|id| !ids.contains(&&**id));
        if is_sealing_changed || has_retired_some || lacked != replay.lacked_keys.len() {
            // Other nodes must hear whether this one reads what they write, and say whether they read what it writes.
            self.queue.push_record(ControlRecord::Statement);
        }
    }

    /// Lets other nodes say again which of this node's keys they have taken out of use: those who said so may have ended.
    pub fn ask_for_retired_keys(&self) {
        let until = instant() + LACK_LASTS;
        for counts in self.heard.lock().lacked.values_mut() {
            counts.get_or_insert(until);
        }
        // A node that cannot read it answers.
        self.queue.push_record(ControlRecord::Statement);
    }

    /// An error if other nodes do not read what this node writes.
    pub fn check_sealing_key(&self) -> Result<(), String> {
        let keys = self.keys().ok_or("there is no key to seal with")?;
        let name = keys.sealing().0;
        let now = instant();
        let heard = self.heard.lock();
        let mut lacked = heard.lacked.iter();
        match lacked.any(|((lacked, _), until)| lacked == name && until.is_none_or(|at| now < at)) {
            false => Ok(()),
            true => Err(format!(
                "other nodes do not have the key {name}, with which this node seals: give all nodes the same key file"
            )),
        }
    }

    /// Whether this node may write. A journal that has closed reads the log no more. It then writes nothing, unless its
    /// revocations would be lost.
    pub fn may_seal(&self) -> bool {
        match *self.sealing_key.lock() {
            SealingKey::Unknown => self.queue.is_closed() && !self.memory.is_saved(),
            SealingKey::Right => true,
            SealingKey::Wrong => false,
        }
    }

    /// Whether others have another key of the sealing key's name.
    pub fn has_wrong_key(&self) -> bool {
        *self.sealing_key.lock() == SealingKey::Wrong
    }

    /// Finds out whether others have the sealing key, after a pass over the control stream with these keys: they do not if
    /// records name it and none opens with it.
    pub fn check_sealing(&self, with: &Keys, seen: &Seen) {
        let name = with.sealing().0.as_bytes();
        let replay = self.replay.lock();
        let mut forged = seen.unopened.forged.iter();
        let is_another = !replay.is_overridden
            && forged.any(|(hash, named)| named == name && !replay.settled.contains(hash));
        drop(replay);
        let mut sealing_key = self.sealing_key.lock();
        // A key that was right stays right, even if somebody damages all records.
        let is_checked = *sealing_key == SealingKey::Right;
        if is_checked || !self.keys().is_some_and(|keys| keys.seal_like(with)) {
            return;
        }
        *sealing_key = match is_another && !seen.has_sealed {
            true => SealingKey::Wrong,
            false => SealingKey::Right,
        };
        drop(sealing_key);
        // Records have waited for that.
        self.queue.wake();
    }

    #[cfg(any(test, fuzzing))]
    pub fn set_keys(&self, keys: Keys) {
        *self.keys.write() = Some(Arc::new(keys));
    }

    pub fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.read().clone()
    }

    pub fn key_ids(&self) -> Vec<String> {
        let ids = |keys: Arc<Keys>| keys.ids().into_iter().map(str::to_owned).collect();
        self.keys().map(ids).unwrap_or_default()
    }

    /// Why other nodes may be unable to read what this node writes, as far as it knows.
    pub fn why_unread(&self) -> Option<String> {
        if !self.is_shared_log {
            return None;
        }
        let replay = self.replay.lock();
        let is_recent = |sealed: &&StillSealed| {
            sealed.made_ms > sealed.until_ms && instant().duration_since(sealed.at) < LACK_LASTS
        };
        let why = replay.still_sealed.values().find(is_recent).map(|sealed| {
            let key = &sealed.key;
            format!("another node still seals with the key {key}, so it may not have the keys of this one")
        });
        let lacked = replay.lacked_key.clone();
        drop(replay);
        self.check_sealing_key().err().or(lacked).or(why)
    }

    /// Names of keys that this node has taken out of use.
    pub fn retired_keys(&self) -> Vec<String> {
        let names = self.retired_keys.lock().clone();
        self.without_own(names)
    }

    /// Whether this node has taken a key that it does not have out of use.
    pub fn has_retired(&self, name: &str) -> bool {
        self.retired_keys.lock().contains(name)
    }

    /// Names of other keys that seal records and that this node does not have.
    pub fn lacked_keys(&self) -> Vec<String> {
        let names = self.replay.lock().lacked_keys.clone();
        self.without_own(names)
    }

    /// Leaves out keys that this node has got since.
    fn without_own(&self, names: BTreeSet<String>) -> Vec<String> {
        let has = self.key_ids();
        let others = names.into_iter();
        others.filter(|name| !has.contains(name)).collect()
    }

    /// Takes keys out of use that this node does not have: the operator has decided that.
    pub fn retire_lacked_keys(&self, names: &[String]) {
        let mut retired = self.retired_keys.lock();
        for name in names {
            retire(&mut retired, name);
        }
    }

    /// Notes when a writer has made a statement. Returns whether it is the newest one that is known of this writer.
    pub fn note_statement(&self, stamp: Stamp) -> bool {
        let mut heard = self.heard.lock();
        make_room(&mut heard.newest_ms, |made_ms| *made_ms);
        note_newest(&mut heard.newest_ms, stamp)
    }

    /// Notes which keys a running node does not have, to know whether it reads what this one writes.
    pub fn note_lacked_by(&self, writer: u64, statement: &Statement) {
        if writer == self.writer {
            return;
        }
        let until = instant() + LACK_LASTS;
        let retired = statement.retired_keys.iter().map(|name| (name, None));
        let others = statement.lacked_keys.iter().map(|name| (name, Some(until)));
        // Most names are not of this node's keys, or of former ones. Attackers can make some up, too.
        let Some(keys) = self.keys() else {
            return;
        };
        let own = retired
            .chain(others)
            .filter(|(name, _)| keys.is_current(name.as_bytes()));
        let mut heard = self.heard.lock();
        heard.lacked.retain(|(_, by), _| *by != writer);
        for (name, until) in own {
            if heard.lacked.len() < MAX_LACKED {
                heard.lacked.insert((name.clone(), writer), until);
            }
        }
        drop(heard);
        self.report_lack();
    }

    /// Notes which keys a node has taken out of use, and so no longer seals with.
    pub fn note_retired_by(&self, stamp: Stamp, retired_keys: &[String]) {
        let mut replay = self.replay.lock();
        let sealed = replay.still_sealed.get_mut(&stamp.writer);
        if let Some(sealed) = sealed.filter(|sealed| retired_keys.contains(&sealed.key)) {
            sealed.until_ms = sealed.until_ms.max(stamp.made_ms);
        }
    }

    /// To be called each second: forgets which keys nodes lacked that have not said so again, and says again which ones
    /// this node lacks.
    pub fn renew_lacks(&self) {
        let now = instant();
        let parts = [Part::Writer, Part::Follower];
        let is_cut_off = parts.iter().any(|part| self.status.is_failing(*part));
        self.heard.lock().lacked.retain(|_, until| {
            if is_cut_off {
                // They cannot say it again now.
                *until = until.map(|_| now + LACK_LASTS);
            }
            until.is_none_or(|at| now < at)
        });
        self.report_lack();
        self.replay.lock().tell_if_due(&self.queue);
    }

    /// Reports whether others lack the sealing key.
    fn report_lack(&self) {
        if self.keys().is_none() {
            return;
        }
        let state = self.check_sealing_key();
        let was_lacked = self.is_key_lacked.swap(state.is_err(), Relaxed);
        match state {
            Err(error) => self.set(Part::Keys, Err(error)),
            // The file may be wrong in another way. The error is in the status.
            Ok(()) if was_lacked => _ = self.load_keys(),
            _ => {}
        }
    }
}

impl ReplayState {
    /// Asks for a replay if the node is held because it lacks one of these keys, which another node has taken out of use.
    pub fn note_retired_elsewhere(&mut self, keys: &[String]) {
        if self.is_held && keys.iter().any(|key| self.lacked_keys.contains(key)) {
            self.want_replay(Duration::from_secs(1 << self.holds.min(3)));
        }
    }

    /// Tells the others again which keys this node lacks, if it is time for that.
    fn tell_if_due(&mut self, queue: &Queue) {
        let every = match self.is_telling_due {
            true => TELL_EVERY,
            false if self.lacked_keys.is_empty() => return,
            false => TELL_IDLY_EVERY,
        };
        let now = instant();
        if self.told.is_none_or(|at| now.duration_since(at) >= every) {
            self.told = Some(now);
            self.is_telling_due = false;
            queue.push_record(ControlRecord::Statement);
        }
    }

    /// Notes that a writer has sealed a new record with a key that was taken out of use here. The writer must hear of that.
    pub fn note_still_sealed(&mut self, queue: &Queue, key: &str, stamp: Stamp) {
        if self.still_sealed.len() >= MAX_LACKED {
            self.still_sealed.clear();
        }
        let former = self.still_sealed.remove(&stamp.writer);
        let (made_ms, until_ms) = former.map_or((0, 0), |it| (it.made_ms, it.until_ms));
        let sealed = StillSealed {
            key: key.into(),
            at: instant(),
            made_ms: stamp.made_ms.max(made_ms),
            until_ms,
        };
        self.still_sealed.insert(stamp.writer, sealed);
        self.is_telling_due = true;
        self.tell_if_due(queue);
    }

    /// Notes that new records are sealed with a key that this node lacks. Those who seal with it must hear of that.
    pub fn note_lacked_key(&mut self, queue: &Queue, key: &str) {
        if self.lacked_keys.len() < MAX_LACKED_KEYS && self.lacked_keys.insert(key.into()) {
            self.told = None;
        }
        self.is_telling_due = true;
        self.tell_if_due(queue);
    }

    /// Notes which keys this node lacks to read all control records.
    pub fn note_lacked_keys<'a>(&mut self, queue: &Queue, keys: impl Iterator<Item = &'a str>) {
        let former = std::mem::take(&mut self.lacked_keys);
        self.lacked_keys = keys.take(MAX_LACKED_KEYS).map(str::to_owned).collect();
        if !self.lacked_keys.is_subset(&former) {
            self.told = None;
        }
        self.tell_if_due(queue);
    }
}

/// Notes when a writer made a record. Returns whether it is the writer's newest one there.
pub(crate) fn note_newest(newest_ms: &mut HashMap<u64, u64>, stamp: Stamp) -> bool {
    let newest_ms = newest_ms.entry(stamp.writer).or_default();
    *newest_ms = stamp.made_ms.max(*newest_ms);
    *newest_ms == stamp.made_ms
}

fn retire(retired: &mut BTreeSet<String>, id: &str) {
    if retired.len() < MAX_RETIRED_KEYS {
        retired.insert(id.into());
    }
}
