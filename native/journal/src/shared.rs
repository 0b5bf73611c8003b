//! The state of one scope's journal, shared by callers and the threads of its log.

pub(crate) use key_state::{note_newest, MAX_RETIRED_KEYS};

mod key_state;

use self::key_state::{Heard, SealingKey, StillSealed};
use crate::backoff::Backoff;
use crate::clock::{instant, now_ms, wall_ms};
use crate::keys::{KeyFile, Keys, Version};
use crate::node_memory::{KnownLog, NodeMemory, ScopeMemory};
use crate::queue::{Content, ControlRecord, Queue, Waker};
use crate::reader::carry_out;
use crate::record::{ContentHash, Context, LogIdentity, Stamp};
use crate::references::{References, MAX_REFERENCES};
use crate::revocations::{Knowledge, STATED_EPOCHS};
use crate::status::{emit, Event, EventKind, Part, Status};
use crate::suites::Suites;
use crate::template::TemplateCodec;
use chacha20poly1305::aead::Generate;
use once_cell::sync::OnceCell;
use parking_lot::{Mutex, RwLock};
use rekindle_core::{Scope, ServerStore, Store};
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

/// How many revocations a node writes again in its first pass over a log that has lost them.
pub(crate) const REWRITE_LIMIT: usize = if cfg!(test) { 50 } else { 4096 };

/// If a log has lost records, nodes write them again within this time, each after a delay of its own.
pub(crate) const COMPLETE_WITHIN_MS: u64 = 500;

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
    /// How long the revocations that are known are kept at least.
    kept_ms: AtomicU64,
    pub has_replayed: AtomicBool,
    /// Whether this log has, or the queue has for it, all revocations that this node knew. Before that, the records of an
    /// open journal do not tell of them: if this node crashed, the others would wait for a revocation that nobody has.
    pub is_log_complete: AtomicBool,
    /// Until when all control records were read, by the monotonic clock.
    read_until_ms: AtomicU64,
    /// The latest epoch in the log's statements, as far as this node has read them, or in its own that it writes next.
    pub told_epoch: AtomicU64,
    /// Whether something was written after the listener had closed.
    pub has_written_late: AtomicBool,
    pub status: Status,
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

/// A record that sessions refer to and that was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Lacking {
    Template(ContentHash),
    /// The clock of this writer.
    Clock(u64),
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
            // Nobody else reads a log that is not shared.
            sealing_key: Mutex::new(match is_shared_log {
                true => SealingKey::Unknown,
                false => SealingKey::Right,
            }),
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
            kept_ms: AtomicU64::new(keep_ms(lifetime_ms)),
            has_replayed: AtomicBool::new(false),
            is_log_complete: AtomicBool::new(false),
            read_until_ms: AtomicU64::new(0),
            told_epoch: AtomicU64::new(0),
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
        let loaded = self.memory.prepare(&self.remembered, self.keep_ms());
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
            let known = before.origins.get(&id.origin);
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

    /// Notes a lifetime of sessions. Never waits, so the revocations that are known are only kept longer by
    /// [`renew_lifetime`](Self::renew_lifetime).
    pub fn note_lifetime(&self, lifetime_ms: u64) {
        if self.longest_ms.load(Relaxed) < lifetime_ms {
            self.longest_ms.fetch_max(lifetime_ms, Relaxed);
        }
    }

    /// Notes a lifetime that was found in the log.
    pub fn note_lifetime_in_log(&self, lifetime_ms: u64) {
        if self.longest_ms.load(Relaxed) < lifetime_ms {
            self.note_lifetime(lifetime_ms);
            self.renew_expiry();
        }
    }

    /// Updates the scope's lifetime, which the operator may have changed, and returns it in milliseconds.
    pub fn renew_lifetime(&self) -> u64 {
        if let Some(scope) = self.scope.upgrade() {
            let lifetime_ms = lifetime_ms(&scope);
            self.lifetime_ms.store(lifetime_ms, Relaxed);
            self.note_lifetime(lifetime_ms);
        }
        self.renew_expiry();
        self.lifetime_ms.load(Relaxed)
    }

    /// Keeps revocations longer if sessions that they cover may live longer.
    fn renew_expiry(&self) {
        let keep_ms = self.keep_ms();
        let more_ms = keep_ms.saturating_sub(self.kept_ms.swap(keep_ms, Relaxed));
        if more_ms > 0 {
            self.memory.put_off(&self.remembered, more_ms);
        }
    }

    /// The scope's lifetime, in milliseconds.
    pub fn lifetime_ms(&self) -> u64 {
        self.lifetime_ms.load(Relaxed)
    }

    /// How long before a session the records that it refers to may have been written, in milliseconds.
    pub fn announce_again_ms(&self) -> u64 {
        self.lifetime_ms() / 4
    }

    /// How long records are needed, in milliseconds.
    pub fn keep_ms(&self) -> u64 {
        keep_ms(self.longest_ms.load(Relaxed))
    }

    /// Counts epochs. To be called often.
    pub fn count_epochs(&self) {
        let (now_ms, keep_ms) = (now_ms(), self.keep_ms());
        (self.remembered).change(|revocations| revocations.count_epochs(now_ms, keep_ms));
    }

    /// Notes that the log has a statement with this epoch.
    pub fn note_told_epoch(&self, epoch: u64) {
        self.told_epoch.fetch_max(epoch, Relaxed);
    }

    /// Tells nodes that start of the epoch, if the log does not. To be called often while this node can use the log.
    pub fn tell_epoch(&self) {
        let told_epoch = self.told_epoch.load(Relaxed);
        let epoch = self.remembered.knowledge().epoch;
        let has_read = self.is_log_complete.load(SeqCst);
        if has_read && epoch >= told_epoch.saturating_add(STATED_EPOCHS) {
            self.note_told_epoch(epoch);
            self.queue.push_record(ControlRecord::Statement);
        }
    }

    /// Drops revocations that have expired, and tells the other nodes.
    pub fn expire(&self) {
        let now_ms = self.memory.running_ms();
        if (self.remembered).change(|revocations| revocations.expire(now_ms)) {
            self.note_expired();
        }
    }

    /// After revocations have expired.
    pub fn note_expired(&self) {
        let known = self.remembered.knowledge();
        self.memory.note_knowledge(&self.remembered, &known);
        // Other nodes must learn it before their records go.
        self.queue.push_record(ControlRecord::Statement);
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

impl ReplayState {
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

/// How long records are needed if sessions live this long. The records that sessions refer to were written up to a quarter
/// of a lifetime before. The rest is the difference that two nodes' clocks may have: a revocation must outlive every session
/// that it covers.
fn keep_ms(lifetime_ms: u64) -> u64 {
    lifetime_ms
        .saturating_add(lifetime_ms / 4)
        .saturating_add(2 * MAX_AHEAD_MS)
}

fn lifetime_ms<T>(scope: &Scope<T>) -> u64 {
    match scope.store() {
        Store::Server(store) => store.limits().lifetime_ms,
        Store::Client(_) => 0,
    }
}
