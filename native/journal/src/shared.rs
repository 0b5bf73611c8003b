//! The state of one scope's journal, shared by callers and the threads of its log.

use crate::backoff::Backoff;
use crate::clock::{instant, now_ms, wall_ms};
use crate::keys::{KeyFile, Keys, Version};
use crate::node_memory::{KnownLog, NodeMemory, ScopeMemory};
use crate::queue::{Content, ControlRecord, Queue, Waker};
use crate::reader::{carry_out, Seen};
use crate::record::{ContentHash, Context, LogIdentity, Stamp, Statement};
use crate::revocations::Knowledge;
use crate::status::{emit, Event, EventKind, Part, Status};
use crate::suites::{Suite, Suites};
use crate::template::TemplateCodec;
use chacha20poly1305::aead::Generate;
use once_cell::sync::OnceCell;
use parking_lot::{Mutex, RwLock};
use rekindle_core::{Scope, ServerStore, Store, TemplateName};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

/// How far clocks may differ. A session that is further ahead waits.
pub(crate) const MAX_AHEAD_MS: u64 = 5 * 60 * 1000;

/// A correction of a clock by this much changes which sessions can be read.
pub(crate) const CLOCK_STEP_MS: u64 = 30_000;

/// Smaller corrections of a clock are not written.
const CLOCK_PRECISION_MS: u64 = 1000;

/// Limits on the templates, and on each other kind of record that sessions refer to.
const MAX_TEMPLATES: usize = 4096;
pub(crate) const MAX_REFERENCES: usize = if cfg!(test) { 1024 } else { 65_536 };

/// Limit on the names of retired keys. There are far fewer, but an attacker can make up names of keys before the operator
/// decides to replay anyway.
pub(crate) const MAX_RETIRED_KEYS: usize = 1000;

/// How many revocations a node writes again in its first pass over a log that has lost them.
pub(crate) const REWRITE_LIMIT: usize = if cfg!(test) { 50 } else { 4096 };

/// If a log has lost records, nodes write them again within this time, each after a delay of its own.
pub(crate) const COMPLETE_WITHIN_MS: u64 = 500;

/// How often a node tells the others which keys it lacks: while they seal with such a key, and while they do not.
const TELL_EVERY: Duration = Duration::from_secs(10);
const TELL_IDLY_EVERY: Duration = Duration::from_secs(60);

/// How long they remember it.
const LACK_LASTS: Duration = Duration::from_secs(75);

/// Limit on what they remember.
const MAX_LACKED: usize = 256;

/// Limit on the names of such keys: an attacker can make them up.
const MAX_LACKED_KEYS: usize = 16;

/// The options of a journal.
pub struct Options {
    /// The scope's name. Nodes with the same log, key and name share records.
    pub scope: String,
    /// The names of the fields of session records, see [`Context::new`].
    pub layout: Vec<u8>,
    /// The keys that records are sealed with.
    pub keys: KeyFile,
    /// Where this node remembers revocations. Without a folder, it forgets them when it ends.
    pub node_folder: Option<PathBuf>,
    /// Whether a node that remembers nothing of the scope waits until another one confirms that no revocation is missing.
    pub wait_for_living_node: bool,
    /// Most bytes that the log keeps for the scope, about.
    pub max_log_bytes: u64,
}

pub(crate) struct Shared<T> {
    pub options: Options,
    pub name: Arc<str>,
    pub location: String,
    pub is_shared_log: bool,
    pub scope: Weak<Scope<T>>,
    pub context: Context,
    /// The number that marks records as this journal's own.
    pub writer: u64,
    pub queue: Queue,
    pub memory: Arc<NodeMemory>,
    pub remembered: Arc<ScopeMemory>,
    /// What was known before the memory was loaded.
    known_before: OnceCell<Arc<Knowledge>>,
    /// Whether a folder remembered anything of the scope. Known once the memory is loaded.
    was_remembered: OnceCell<bool>,
    identity: Mutex<Option<LogIdentity>>,
    /// Whether others lacked the sealing key when that was last looked at.
    is_key_lacked: AtomicBool,
    /// The identities that this journal has given to an empty log.
    pub begun: Mutex<Vec<LogIdentity>>,
    keys: RwLock<Option<Arc<Keys>>>,
    key_version: Mutex<Option<Version>>,
    sealing_key: Mutex<SealingKey>,
    retired_keys: Mutex<BTreeSet<String>>,
    heard: Mutex<Heard>,
    pub clock: Mutex<OwnClock>,
    pub references: Mutex<References>,
    pub suites: Mutex<Suites>,
    /// Held by the caller that changes the allowed suites.
    pub suites_change: Mutex<()>,
    /// Content that was written for sessions to refer to, and when, by the monotonic clock.
    pub announced: Mutex<HashMap<ContentHash, (u64, Content)>>,
    pub replay: Mutex<ReplayState>,
    /// The scope's lifetime, and the longest one that this journal has found in the log, in milliseconds.
    lifetime_ms: AtomicU64,
    longest_ms: AtomicU64,
    pub has_replayed: AtomicBool,
    /// Whether this log has, or the queue has for it, all revocations that this node knew. Before that, the records of an
    /// open journal do not tell of them: if this node crashed, the others would wait for a revocation that nobody has.
    pub is_log_complete: AtomicBool,
    /// Until when all control records were read, by the monotonic clock.
    read_until_ms: AtomicU64,
    /// Whether something was written after the listener had closed.
    pub has_written_late: AtomicBool,
    pub status: Status,
}

/// Whether others have the sealing key, as far as the log shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum SealingKey {
    /// No pass over the control stream has ended since the key is in force.
    Unknown,
    /// There is no sign that it is another one.
    Right,
    /// Others have another key of this name, and could not read what this node writes.
    Wrong,
}

/// What other nodes have said of the keys of this one.
#[derive(Default)]
struct Heard {
    /// When each writer made its newest statement, by its own clock. What it said before counts no more, even if somebody
    /// copies it.
    newest_ms: HashMap<u64, u64>,
    /// Keys that a writer does not have; with a time until which that counts, unless it has taken the key out of use.
    lacked: HashMap<(String, u64), Option<Instant>>,
}

/// This journal's clock, as the log has it.
#[derive(Clone, Copy)]
pub(crate) struct OwnClock {
    /// The wall time at zero of the monotonic clock, in milliseconds since 1970.
    pub zero_ms: i64,
    pub revision: u64,
    /// When it was last written, by the monotonic clock.
    pub written_ms: Option<u64>,
}

/// Records that sessions refer to when they are read.
#[derive(Default)]
pub(crate) struct References {
    pub templates: HashMap<ContentHash, KnownTemplate>,
    pub knowledge: HashMap<ContentHash, Learned<Arc<Knowledge>>>,
    pub clocks: HashMap<u64, Learned<(i64, u64)>>,
}

/// A record to refer to, and until when sessions may do so, by the monotonic clock.
pub(crate) struct Learned<V> {
    pub value: V,
    until_ms: u64,
}

/// A template that the log has.
pub(crate) struct KnownTemplate {
    pub content: Box<[u8]>,
    until_ms: u64,
    /// Its name in the store, while sessions use it.
    pub template: Option<TemplateName>,
    /// The cipher suite of its sessions, once it was used.
    pub suite: Option<Suite>,
}

/// A record that sessions refer to and that was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lacking {
    Template(ContentHash),
    /// The clock of this writer.
    Clock(u64),
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

/// What the reader has to do for a scope, and what keeps it from doing so.
pub(crate) struct ReplayState {
    /// Whether to read the whole log, or only its control stream.
    pub wants_replay: bool,
    pub wants_scan: bool,
    /// The reader waits until this time, and after an error also for `backoff`.
    pub not_before: Instant,
    pub backoff: Backoff,
    /// Sessions are not read, because revocations may be missing.
    pub is_held: bool,
    /// Records were found that this node has no key for.
    pub lacks_keys: bool,
    /// Why other nodes may be unable to read what this node writes: they write records that it has no key for.
    pub lacked_key: Option<String>,
    /// Keys that were taken out of use here, and with which another node has revoked since.
    pub still_used: BTreeSet<String>,
    /// Writers who have sealed with a key that was taken out of use here.
    pub still_sealed: HashMap<u64, StillSealed>,
    /// Other keys that seal records and that this node does not have.
    pub lacked_keys: BTreeSet<String>,
    /// When this node last told the others which keys it lacks, and whether it has to tell them again soon.
    pub told: Option<Instant>,
    pub is_telling_due: bool,
    /// When this node last asked the others.
    pub asked_at: Option<Instant>,
    /// Questions that this node has asked, and the knowledge of the nodes that have answered.
    pub asked: Vec<u64>,
    pub answers: Vec<ContentHash>,
    /// The operator has decided to replay anyway.
    pub is_overridden: bool,
    /// Questions of others to answer.
    pub to_answer: Vec<u64>,
    pub answered: HashSet<u64>,
    /// Since when an empty log was found again and again, and when it was the last time. A node that knows its identity
    /// may come back to it.
    pub empty_since: Option<(Instant, Instant)>,
    /// The earliest session from the future, in milliseconds since 1970.
    pub future_ms: Option<u64>,
    /// Hashes of records that no longer hold the replay: those that no node has any more, and control records that did not
    /// open when the operator decided to replay anyway.
    pub settled: HashSet<ContentHash>,
    /// How often in a row the replay was held.
    pub holds: u32,
    /// How many revocations the next pass writes again at most. All nodes notice a loss at the same time, and each
    /// shall leave something to the others. If they do nothing, the number doubles from pass to pass.
    pub rewrite_limit: usize,
    /// Records that sessions referred to and the log did not have. If one comes, the log is read again.
    pub lacking: HashSet<Lacking>,
}

impl<T: TemplateCodec> Shared<T> {
    pub fn new(
        scope: &Arc<Scope<T>>,
        options: Options,
        memory: Arc<NodeMemory>,
        location: String,
        is_shared_log: bool,
        waker: Arc<Waker>,
    ) -> io::Result<Shared<T>> {
        let remembered = memory.scope(&options.scope);
        let lifetime_ms = lifetime_ms(scope);
        Ok(Shared {
            name: Arc::clone(&remembered.name),
            location,
            is_shared_log,
            scope: Arc::downgrade(scope),
            context: Context::new(options.scope.as_bytes(), &options.layout),
            writer: u64::try_generate().map_err(io::Error::other)?,
            queue: Queue::new(waker),
            known_before: OnceCell::new(),
            was_remembered: OnceCell::new(),
            memory,
            remembered,
            identity: Mutex::default(),
            is_key_lacked: AtomicBool::new(false),
            begun: Mutex::default(),
            keys: RwLock::default(),
            key_version: Mutex::default(),
            sealing_key: Mutex::new(SealingKey::Unknown),
            retired_keys: Mutex::default(),
            heard: Mutex::default(),
            clock: Mutex::new(OwnClock {
                zero_ms: zero_ms(),
                revision: 1,
                written_ms: None,
            }),
            references: Mutex::default(),
            suites: Mutex::default(),
            suites_change: Mutex::default(),
            announced: Mutex::default(),
            replay: Mutex::new(ReplayState {
                wants_replay: true,
                wants_scan: false,
                not_before: instant(),
                backoff: Backoff::default(),
                is_held: true,
                lacks_keys: false,
                lacked_key: None,
                still_used: BTreeSet::new(),
                still_sealed: HashMap::new(),
                lacked_keys: BTreeSet::new(),
                told: None,
                is_telling_due: false,
                asked_at: None,
                asked: Vec::new(),
                answers: Vec::new(),
                is_overridden: false,
                to_answer: Vec::new(),
                answered: HashSet::new(),
                empty_since: None,
                future_ms: None,
                settled: HashSet::new(),
                holds: 0,
                rewrite_limit: REWRITE_LIMIT,
                lacking: HashSet::new(),
            }),
            lifetime_ms: AtomicU64::new(lifetime_ms),
            longest_ms: AtomicU64::new(lifetime_ms),
            has_replayed: AtomicBool::new(false),
            is_log_complete: AtomicBool::new(false),
            read_until_ms: AtomicU64::new(0),
            has_written_late: AtomicBool::new(false),
            status: Status::default(),
            options,
        })
    }

    /// Calls `work` with the server store, if the scope still exists.
    pub fn with_store<R>(&self, work: impl FnOnce(&Scope<T>, &ServerStore<T>) -> R) -> Option<R> {
        let scope = self.scope.upgrade()?;
        match scope.store() {
            Store::Server(store) => Some(work(&scope, store)),
            Store::Client(_) => None,
        }
    }

    /// Whether the listener has closed.
    pub fn has_ended(&self) -> bool {
        self.queue.is_closed() || self.scope.strong_count() == 0
    }

    pub fn stamp(&self, log: LogIdentity, made_ms: u64, lifetime_ms: u64) -> Stamp {
        Stamp {
            log,
            writer: self.writer,
            made_ms,
            lifetime_ms,
        }
    }

    /// Loads what the node remembers of the scope, and carries out the revocations in it.
    pub fn load_memory(&self) -> Result<(), String> {
        if self.was_remembered.get().is_some() {
            return Ok(());
        }
        // A folder that was late may have been loaded since the last try.
        let before = (self.known_before).get_or_init(|| self.remembered.knowledge());
        let loaded = self.memory.prepare(&self.remembered);
        self.set(Part::Memory, loaded.clone().map(drop));
        let was_known = loaded?;
        let identity = self.memory.log_identity(&self.remembered, &self.location);
        if let Some(identity) = identity {
            self.set_identity(identity);
        }
        let mut targets = Vec::new();
        let revocations = self.remembered.revocations();
        let own_origin = revocations.own_origin();
        revocations.for_each(|id, target, _| {
            let known = before.get(&id.origin);
            if id.origin != own_origin && known.is_none_or(|known| known.upto < id.counter) {
                targets.push(target);
            }
        });
        drop(revocations);
        // Sessions may have been stored before the disk was read. Revocations of this process were carried out when
        // they were made.
        self.with_store(|scope, store| carry_out(scope, store, &targets));
        let _ = (self.was_remembered).set(was_known && self.memory.folder().is_some());
        Ok(())
    }

    /// Whether a folder remembered anything of the scope when the journal was opened, perhaps only revocations that were
    /// made here.
    pub fn was_remembered(&self) -> bool {
        self.was_remembered.get().copied().unwrap_or(false)
    }

    /// Whether this node has known all revocations that this log's sessions may need: since the journal was opened, or
    /// before that if a folder remembers it.
    pub fn was_complete(&self) -> bool {
        let may_count = self.memory.folder().is_some() || self.has_replayed.load(Relaxed);
        let log = self.identity();
        may_count && log.is_some_and(|log| self.remembered.is_complete_for(log))
    }

    // ---- the log ----

    /// The log's identity, once it is known.
    pub fn identity(&self) -> Option<LogIdentity> {
        *self.identity.lock()
    }

    /// Sets the log's identity, and remembers it.
    pub fn note_identity(&self, identity: LogIdentity) {
        self.set_identity(identity);
        let log = KnownLog {
            location: self.location.clone(),
            is_shared: self.is_shared_log,
            identity,
        };
        self.memory.note_log(&self.remembered, log);
    }

    /// Sets the log's identity. What was written for another log will be written again.
    pub fn set_identity(&self, identity: LogIdentity) {
        let mut current = self.identity.lock();
        if current.is_some_and(|former| former != identity) {
            self.is_log_complete.store(false, SeqCst);
            self.announced.lock().clear();
            self.clock.lock().written_ms = None;
        }
        *current = Some(identity);
    }

    // ---- lifetimes ----

    /// Notes a lifetime of sessions in the log.
    pub fn note_lifetime(&self, lifetime_ms: u64) {
        if self.longest_ms.load(Relaxed) < lifetime_ms {
            self.longest_ms.fetch_max(lifetime_ms, Relaxed);
        }
    }

    /// Updates the scope's lifetime, which the operator may have changed, and returns it in milliseconds.
    pub fn renew_lifetime(&self) -> u64 {
        if let Some(scope) = self.scope.upgrade() {
            let lifetime_ms = lifetime_ms(&scope);
            self.lifetime_ms.store(lifetime_ms, Relaxed);
            self.note_lifetime(lifetime_ms);
        }
        self.lifetime_ms.load(Relaxed)
    }

    /// How long before a session the records that it refers to may have been written, in milliseconds.
    pub fn announce_again_ms(&self) -> u64 {
        self.lifetime_ms.load(Relaxed) / 4
    }

    /// How long records are needed, in milliseconds. Sessions live for a lifetime, and the records that they refer to
    /// were written up to a quarter of one before. The rest is the difference that two nodes' clocks may have: a
    /// revocation must outlive every session that it covers.
    pub fn keep_ms(&self) -> u64 {
        let longest_ms = self.longest_ms.load(Relaxed);
        longest_ms
            .saturating_add(longest_ms / 4)
            .saturating_add(2 * MAX_AHEAD_MS)
    }

    /// Whether another node has answered a question of this one, and this one has learned what that node knew.
    pub fn is_answered(&self) -> bool {
        let references = self.references.lock();
        let replay = self.replay.lock();
        let mut answers = replay.answers.iter();
        answers.any(|knowledge| references.knowledge.contains_key(knowledge))
    }

    /// Notes that all control records were read that the log had at this time.
    pub fn note_read(&self, until_ms: u64) {
        self.read_until_ms.fetch_max(until_ms, Relaxed);
    }

    /// Whether this node has read the control records that are old enough to be trimmed. If it was cut off for long, it
    /// would otherwise drop a revocation that it does not know, and then wait for it.
    pub fn may_trim(&self) -> bool {
        let unread_ms = now_ms().saturating_sub(self.read_until_ms.load(Relaxed));
        !self.is_shared_log || unread_ms < self.keep_ms() / 2
    }

    // ---- keys ----

    /// Reads the key file. If it cannot be read, the keys in force stay, and no new ones are made.
    pub fn load_keys(&self) -> Result<(), String> {
        let mut loaded = self.key_version.lock();
        let file = KeyFile {
            make: self.options.keys.make && self.keys.read().is_none(),
            ..self.options.keys.clone()
        };
        let result = file.load().and_then(|(keys, version)| {
            let in_force = self.keys();
            let replaced = in_force.as_ref().and_then(|former| keys.replaced(former));
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
            let former = self.keys().filter(|_| is_new);
            // Before the new keys are in force: otherwise a pass would miss the former ones.
            let has_retired_some = former
                .as_ref()
                .is_some_and(|former| self.retire(former, &keys));
            *self.keys.write() = Some(Arc::clone(&keys));
            if let Some(former) = former {
                self.note_new_keys(&former, &keys, has_retired_some);
            }
            Ok(())
        });
        if result.is_err() {
            // The next try reads the file even if it comes back unchanged.
            *loaded = None;
        }
        let state = result.clone().and_then(|()| self.check_sealing_key());
        self.set(Part::Keys, state);
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
        if is_sealing_changed {
            *self.sealing_key.lock() = SealingKey::Unknown;
        }
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

    /// Whether this node may write. A journal that has closed reads the log no more, and writes what it has.
    pub fn may_seal(&self) -> bool {
        match *self.sealing_key.lock() {
            SealingKey::Unknown => self.queue.is_closed(),
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
        let Some(keys) = self.keys().filter(|keys| keys.seal_like(with)) else {
            return;
        };
        let name = keys.sealing().0.as_bytes();
        let replay = self.replay.lock();
        let mut forged = seen.unopened.forged.iter();
        let is_another = !replay.is_overridden
            && forged.any(|(hash, named)| named == name && !replay.settled.contains(hash));
        drop(replay);
        let mut sealing_key = self.sealing_key.lock();
        // A key that was right stays right, even if somebody damages all records.
        if *sealing_key == SealingKey::Right {
            return;
        }
        *sealing_key = match is_another && !seen.has_sealed && self.is_shared_log {
            true => SealingKey::Wrong,
            false => SealingKey::Right,
        };
        drop(sealing_key);
        // Records have waited for that.
        self.queue.wake();
    }

    /// Whether the writer's statement, made at this time by its own clock, is its newest one.
    pub fn is_newest(&self, writer: u64, made_ms: u64) -> bool {
        let heard = self.heard.lock();
        heard
            .newest_ms
            .get(&writer)
            .is_none_or(|newest_ms| *newest_ms <= made_ms)
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
        let newest_ms = heard.newest_ms.entry(stamp.writer).or_default();
        *newest_ms = stamp.made_ms.max(*newest_ms);
        *newest_ms == stamp.made_ms
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

    // ---- clocks ----

    /// Notices that the time of day was corrected.
    pub fn check_clock(&self) {
        let now_zero_ms = zero_ms();
        let mut clock = self.clock.lock();
        let moved_ms = clock.zero_ms.abs_diff(now_zero_ms);
        if moved_ms < CLOCK_PRECISION_MS {
            drop(clock);
            let mut replay = self.replay.lock();
            let due_ms = wall_ms().saturating_add(MAX_AHEAD_MS);
            if replay.future_ms.is_some_and(|made_ms| made_ms <= due_ms) {
                replay.future_ms = None;
                replay.wants_replay = true;
            }
            return;
        }
        clock.zero_ms = now_zero_ms;
        clock.revision += 1;
        if clock.written_ms.is_some() {
            self.queue.push_record(ControlRecord::Clock);
        }
        drop(clock);
        if moved_ms >= CLOCK_STEP_MS {
            // By the old time, some sessions looked too old, or too young.
            self.replay.lock().wants_replay = true;
        }
    }

    // ---- reports ----

    pub fn set(&self, part: Part, state: Result<(), String>) {
        if let Some(kind) = self.status.set(part, state) {
            self.emit(kind);
        }
    }

    pub fn emit(&self, kind: EventKind) {
        emit(Event {
            scope: self.name.as_bytes().into(),
            location: self.location.clone(),
            kind,
        });
    }
}

impl References {
    /// Learns a template for `keep_ms`. `false` if there are too many.
    pub fn learn_template(&mut self, hash: ContentHash, content: &[u8], keep_ms: u64) -> bool {
        let now_ms = now_ms();
        let until_ms = now_ms.saturating_add(keep_ms);
        if let Some(known) = self.templates.get_mut(&hash) {
            known.until_ms = known.until_ms.max(until_ms);
            return true;
        }
        if self.templates.len() >= MAX_TEMPLATES {
            self.templates.retain(|_, known| known.until_ms > now_ms);
        }
        if self.templates.len() >= MAX_TEMPLATES {
            return false;
        }
        let known = KnownTemplate {
            content: content.into(),
            until_ms,
            template: None,
            suite: None,
        };
        self.templates.insert(hash, known);
        true
    }

    /// Learns what a node knew, for `keep_ms`. `is_new` says whether the record is newer than those that are known.
    pub fn learn_knowledge(
        &mut self,
        hash: ContentHash,
        knowledge: Knowledge,
        keep_ms: u64,
        is_new: bool,
    ) {
        let knowledge = Arc::new(knowledge);
        insert(&mut self.knowledge, hash, knowledge, keep_ms, is_new);
    }

    /// Likewise learns a writer's clock. If it is newer than a known one, returns the known one.
    pub fn learn_clock(
        &mut self,
        writer: u64,
        clock: (i64, u64),
        keep_ms: u64,
        is_new: bool,
    ) -> Option<i64> {
        let former = self.clocks.get(&writer).map(|learned| learned.value);
        if former.is_some_and(|(_, revision)| revision > clock.1) {
            return None;
        }
        insert(&mut self.clocks, writer, clock, keep_ms, is_new);
        former.map(|(zero_ms, _)| zero_ms)
    }
}

fn insert<K: Copy + Hash + Eq, V>(
    learned: &mut HashMap<K, Learned<V>>,
    key: K,
    value: V,
    keep_ms: u64,
    is_new: bool,
) {
    let now_ms = now_ms();
    if learned.len() >= MAX_REFERENCES && !learned.contains_key(&key) {
        learned.retain(|_, known| known.until_ms > now_ms);
        // A replay begins with the newest records, so the others can be missed.
        if is_new {
            make_room(learned, |known| known.until_ms);
        } else if learned.len() >= MAX_REFERENCES {
            return;
        }
    }
    let until_ms = now_ms.saturating_add(keep_ms);
    learned.insert(key, Learned { value, until_ms });
}

/// If there are too many references, drops a part of them: those with the smallest times.
pub(crate) fn make_room<K: Copy + Hash + Eq, V>(
    references: &mut HashMap<K, V>,
    time_ms: impl Fn(&V) -> u64,
) {
    if references.len() < MAX_REFERENCES {
        return;
    }
    let times = references.iter().map(|(key, value)| (time_ms(value), *key));
    let mut times: Vec<(u64, K)> = times.collect();
    let count = MAX_REFERENCES / 16;
    times.select_nth_unstable_by_key(count, |(at_ms, _)| *at_ms);
    for (_, key) in &times[..count] {
        references.remove(key);
    }
}

fn retire(retired: &mut BTreeSet<String>, id: &str) {
    if retired.len() < MAX_RETIRED_KEYS {
        retired.insert(id.into());
    }
}

impl ReplayState {
    /// Whether the node is held because it lacks one of these keys.
    pub fn is_lacked(&self, keys: &[String]) -> bool {
        self.is_held && keys.iter().any(|key| self.lacked_keys.contains(key))
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

    /// Asks for a replay after `delay`, or as soon as something else is read.
    pub fn want_replay(&mut self, delay: Duration) {
        self.want_within(delay);
        self.wants_replay = true;
    }

    /// Notes that a session was left out because this record is missing.
    pub fn note_lacking(&mut self, lacking: Lacking) {
        if self.lacking.len() < MAX_REFERENCES {
            self.lacking.insert(lacking);
        }
    }

    /// Asks for a replay if sessions were left out because this record was missing. The delay leaves time for records
    /// that come with it.
    pub fn note_found(&mut self, found: Lacking) {
        if self.lacking.remove(&found) && !self.wants_replay {
            self.want_replay(Duration::from_millis(300));
        }
    }

    /// Likewise asks for a pass over the control stream.
    pub fn want_scan(&mut self, delay: Duration) {
        self.want_within(delay);
        self.wants_scan = true;
    }

    fn want_within(&mut self, delay: Duration) {
        let at = instant() + delay;
        let is_idle = !self.wants_replay && !self.wants_scan;
        if is_idle || at < self.not_before {
            self.not_before = at;
        }
    }
}

/// A random time, shorter than this.
pub(crate) fn random_delay(below_ms: u64) -> Duration {
    Duration::from_millis(u64::try_generate().unwrap_or_default() % below_ms)
}

fn zero_ms() -> i64 {
    wall_ms() as i64 - now_ms() as i64
}

fn lifetime_ms<T>(scope: &Scope<T>) -> u64 {
    match scope.store() {
        Store::Server(store) => store.limits().lifetime_ms,
        Store::Client(_) => 0,
    }
}
