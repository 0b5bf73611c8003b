//! What a node remembers outside any log: the revocations of all its scopes, and which log each scope has.
//!
//! With a folder, the memory is a sealed file there. A node writes to it before it writes to a log, if the folder answers,
//! and loads it before it reads a log. Without a folder, the memory lasts as long as the process. Ages are counted in running time: how
//! long processes with this memory have run in all. So no wrong clock ends a revocation early.

use crate::clock::now_ms;
use crate::folder_thread::{Answer, FolderThread, Progress, STUCK_AFTER};
use crate::origin::Noted;
use crate::record::{LogIdentity, Statement};
use crate::revocations::{random_origin, Knowledge, RevocationId, Revocations};
use crate::target::Target;
use once_cell::sync::Lazy;
use parking_lot::{Mutex, MutexGuard, RwLock};
use rekindle_log::sealed_file::{SealedFile, MAX_BLOCK_BYTES};
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::Instant;

const FILE: &str = "revocations";

/// How much running time a killed process may lose.
const ELAPSED_STEP_MS: u64 = 10 * 60 * 1000;

/// How long a revocation is kept for scopes that are not open, if no scope is open, because their lifetimes are unknown
/// then: 31 days.
const KEEP_FOR_LATER_MS: u64 = 31 * 24 * 3600 * 1000;

/// Size of a block of a compacted file, about.
const BLOCK_BYTES: usize = 64 * 1024;

/// A file smaller than this is not compacted.
const COMPACT_FROM_BYTES: u64 = 4 * 1024 * 1024;

/// Size of an entry with a digest, about.
const ENTRY_BYTES: u64 = 72;

/// The memories by folder. The memory without a folder stays as long as the process.
static MEMORIES: Lazy<Mutex<HashMap<PathBuf, Weak<NodeMemory>>>> = Lazy::new(Mutex::default);
static WITHOUT_FOLDER: Lazy<Arc<NodeMemory>> = Lazy::new(|| Arc::new(NodeMemory::new(None)));

/// For each folder, a lock that its thread holds until it ends. So the thread of another memory with the same folder waits
/// until the last one has written everything.
static IN_USE: Lazy<Mutex<HashMap<PathBuf, Arc<Mutex<()>>>>> = Lazy::new(Mutex::default);

/// The memories whose files lack something. They stay, even without an open listener, until it is written.
static UNSAVED: Lazy<Mutex<Vec<Arc<NodeMemory>>>> = Lazy::new(Mutex::default);

/// A node's memory.
///
/// What is in memory changes at once. What the folder needs of it is written by a thread, in the same order, and callers
/// wait for that no longer than [`STUCK_AFTER`].
pub struct NodeMemory {
    state: Arc<State>,
    file: Place,
}

/// Who works on the file.
enum Place {
    /// The caller: there is no folder, or no thread.
    Here(Mutex<File>),
    Thread(FolderThread<File>),
}

/// What is in memory. Locks are taken in this order: that of the scopes, a scope's own. None is held during waits for a
/// disk.
struct State {
    folder: Option<PathBuf>,
    scopes: Mutex<Scopes>,
    /// Why the file cannot be opened, or why the last append failed.
    error: Mutex<Option<String>>,
    /// How often something could not be written to the file since it last had everything.
    unsaved: AtomicU64,
    /// Running time when the process's clock was at zero.
    running_offset_ms: AtomicI64,
    /// Bytes of the file.
    bytes: AtomicU64,
}

/// The file in the folder.
#[derive(Default)]
struct File {
    progress: Arc<Progress>,
    sealed: Option<SealedFile>,
    /// The running time up to which the file has it.
    noted_ms: u64,
    /// The numbers that stand for scopes' names in entries of the file.
    numbers: HashMap<Arc<str>, u32>,
}

#[derive(Default)]
struct Scopes {
    by_name: HashMap<Arc<str>, Arc<ScopeMemory>>,
    /// Revocations for scopes that this node has not seen yet, with their expiry, if no other scope has them.
    later: HashMap<Target, u64>,
    /// Whether the file was loaded, so that `by_name` has all scopes that it names.
    is_loaded: bool,
}

/// A node's memory of a scope.
pub struct ScopeMemory {
    /// Its name.
    pub name: Arc<str>,
    revocations: Mutex<Revocations>,
    /// A copy of what `revocations` know, for callers that must not wait for a long change.
    knowledge: RwLock<Arc<Knowledge>>,
    log: Mutex<Option<KnownLog>>,
    /// How far the scope has come. That the file has a number for it, or revocations, does not mean that it was prepared.
    stage: Mutex<Stage>,
}

/// How far a scope has come on this node, now or before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    New,
    /// It has got the revocations that were made for all scopes before.
    Prepared,
    /// Its log was new. So the node knows all revocations, unless another log comes back in the place of this one.
    Began(LogIdentity),
    /// Its log was read, and had everything or another node confirmed it. So the node knows all revocations.
    Complete,
}

/// Which log a scope has.
#[derive(Clone)]
pub struct KnownLog {
    /// Where it is.
    pub location: String,
    /// Whether other nodes use it as well.
    pub is_shared: bool,
    /// The log's identity.
    pub identity: LogIdentity,
}

/// Revocations that were made and that the folder does not have yet.
pub struct Made {
    /// Those of each scope.
    pub scopes: Vec<MadeIn>,
    targets: Arc<[Target]>,
    /// How long the last ones are kept for scopes that open later.
    later: Option<(u64, Vec<Target>)>,
}

/// The revocations that were made for one scope.
#[derive(Clone)]
pub struct MadeIn {
    /// The scope.
    pub scope: Arc<ScopeMemory>,
    /// One revocation per target, in the order of the targets.
    pub ids: Vec<RevocationId>,
    keep_ms: u64,
}

enum Entry<'a> {
    Scope(u32, &'a str),
    Revocation(u32, RevocationId, u64, &'a Target),
    Statement(u32, &'a Knowledge),
    Log(u32, &'a KnownLog),
    Elapsed(u64),
    Later(u64, &'a Target),
    Stage(u32, Stage),
    /// The epoch in which revocations of this origin were known.
    Noted(u32, u64, Noted),
    /// Postpones the expiry of the revocations in the entries before this one. In milliseconds.
    PutOff(u32, u64),
}

impl NodeMemory {
    /// The memory in this folder, or the process's own. Opens nothing yet.
    pub fn of(folder: Option<&Path>) -> Arc<NodeMemory> {
        let Some(folder) = folder else {
            return Arc::clone(&WITHOUT_FOLDER);
        };
        let mut memories = MEMORIES.lock();
        memories.retain(|_, memory| memory.strong_count() > 0);
        if let Some(memory) = memories.get(folder).and_then(Weak::upgrade) {
            return memory;
        }
        let memory = Arc::new(NodeMemory::with_thread(folder));
        memories.insert(folder.into(), Arc::downgrade(&memory));
        memory
    }

    /// A memory whose callers do the work in the folder.
    pub(crate) fn new(folder: Option<PathBuf>) -> NodeMemory {
        NodeMemory {
            state: Arc::new(State::new(folder)),
            file: Place::Here(Mutex::default()),
        }
    }

    fn with_thread(folder: &Path) -> NodeMemory {
        let in_use = Arc::clone(IN_USE.lock().entry(folder.into()).or_default());
        let state = Arc::new(State::new(Some(folder.into())));
        let end = {
            let state = Arc::clone(&state);
            move |mut file| state.note_elapsed(&mut file)
        };
        let make = |progress| File {
            progress,
            ..File::default()
        };
        match FolderThread::start(in_use, make, end) {
            Ok(thread) => NodeMemory {
                state,
                file: Place::Thread(thread),
            },
            // It works without, but callers wait for the disk.
            Err(_) => NodeMemory::new(Some(folder.into())),
        }
    }

    /// The folder.
    pub fn folder(&self) -> Option<&Path> {
        self.state.folder.as_deref()
    }

    /// Why the folder does not answer, or why its file could not be opened, or not be written the last time.
    pub fn error(&self) -> Option<String> {
        match &self.file {
            Place::Thread(thread) if thread.is_stuck() => Some(self.no_answer()),
            _ => self.state.error.lock().clone(),
        }
    }

    fn no_answer(&self) -> String {
        let folder = self.folder().unwrap_or(Path::new("")).display();
        format!(
            "{folder} does not answer within {} seconds",
            STUCK_AFTER.as_secs()
        )
    }

    /// Whether the folder lacks something because it could not be written.
    pub fn is_unsaved(&self) -> bool {
        self.state.is_unsaved()
    }

    /// Whether a folder has everything: nothing is missing in it, and nothing waits for it.
    pub fn is_saved(&self) -> bool {
        let has_waiting = match &self.file {
            Place::Here(_) => false,
            Place::Thread(thread) => thread.has_waiting(),
        };
        self.folder().is_some() && !has_waiting && !self.is_unsaved()
    }

    /// Keeps the memory until its folder has everything, even if no listener uses it.
    pub fn keep_unsaved(self: &Arc<Self>) {
        let mut unsaved = UNSAVED.lock();
        unsaved.retain(|other| !Arc::ptr_eq(other, self));
        if self.is_unsaved() {
            unsaved.push(Arc::clone(self));
        }
    }

    /// Does this with the file, and waits for the result as long as the folder answers, but not past the deadline.
    fn with_file<R: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        work: impl FnOnce(&State, &mut File) -> Result<R, String> + Send + 'static,
    ) -> Result<R, String> {
        let thread = match &self.file {
            Place::Here(file) => return work(&self.state, &mut file.lock()),
            Place::Thread(thread) => thread,
        };
        let state = Arc::clone(&self.state);
        match thread.call(deadline, move |file| work(&state, file)) {
            Answer::Done(result) => result,
            Answer::Late => Err(self.no_answer()),
            Answer::Refused => {
                self.state.note_unsaved();
                Err(self.no_answer())
            }
        }
    }

    /// The folder hangs from now on, as long as the result lives.
    #[cfg(test)]
    pub fn hang(&self) -> impl Sized {
        use std::sync::mpsc::channel;
        let (held, hanging) = channel::<()>();
        let (begin, begun) = channel();
        let hang = move |_: &State, _: &mut File| {
            let _ = begin.send(());
            let _ = hanging.recv();
            Ok(())
        };
        let answered = self.with_file(Some(Instant::now()), hang);
        assert!(answered.is_err(), "it has a thread");
        begun.recv().unwrap();
        held
    }

    /// Appends entries about a scope, which begin with its number in the file.
    fn append_about(
        &self,
        scope: &ScopeMemory,
        is_synced: bool,
        entries: impl FnOnce(u32, &mut Vec<u8>) + Send + 'static,
    ) {
        let name = Arc::clone(&scope.name);
        // `error` has the reason if it fails.
        let _ = self.with_file(Some(Instant::now() + STUCK_AFTER), move |state, file| {
            let mut bytes = Vec::new();
            let number = file.number(&name, &mut bytes);
            entries(number, &mut bytes);
            state.append(file, &bytes, is_synced)
        });
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.state.bytes.load(Relaxed)
    }

    /// Running time, in milliseconds. Never waits.
    pub fn running_ms(&self) -> u64 {
        self.state.running_ms()
    }

    /// The memory of a scope. Never waits for a disk: [`prepare`](Self::prepare) loads what is remembered.
    pub fn scope(&self, name: &str) -> Arc<ScopeMemory> {
        let mut scopes = self.state.scopes.lock();
        Arc::clone(scopes.get(name))
    }

    /// Loads what is remembered, before the scope's log is read. A scope that is new to this node gets the revocations
    /// that were made for all scopes, and needs none for longer than `keep_ms`. Returns whether anything of the scope itself
    /// was remembered.
    pub fn prepare(&self, scope: &Arc<ScopeMemory>, keep_ms: u64) -> Result<bool, String> {
        let scope = Arc::clone(scope);
        self.with_file(None, move |state, file| {
            state.load(file)?;
            let was_known =
                scope.stage() > Stage::Prepared || !scope.knowledge().origins.is_empty();
            if scope.reach(Stage::Prepared) {
                // If this cannot be written, nothing is lost: they also stay for later scopes.
                let _ = state.prepare(file, &scope, keep_ms);
            }
            Ok(was_known)
        })
    }

    /// Remembers that the scope's log was read, and that no revocation was missing.
    pub fn note_complete(&self, scope: &ScopeMemory) {
        self.note_stage(scope, Stage::Complete);
    }

    /// Remembers that the scope's log was new.
    pub fn note_began(&self, scope: &ScopeMemory, log: LogIdentity) {
        self.note_stage(scope, Stage::Began(log));
    }

    fn note_stage(&self, scope: &ScopeMemory, stage: Stage) {
        if scope.reach(stage) {
            self.append_about(scope, true, move |number, bytes| {
                Entry::Stage(number, stage).encode(bytes);
            });
        }
    }

    /// Makes one revocation per target in each of these scopes, which keep them for the given time. With `is_for_all`,
    /// also in the scopes that this node knows and that are not open now, and for scopes that it does not know yet. Each
    /// scope's are given to `queue` before anybody can read that they are known. The caller then has to
    /// [`store`](Self::store) them.
    pub fn make(
        &self,
        open: &[(Arc<ScopeMemory>, u64)],
        is_for_all: bool,
        targets: &[Target],
        mut queue: impl FnMut(&MadeIn),
    ) -> Made {
        let mut meant = open.to_vec();
        let mut later = None;
        if is_for_all {
            let longest_ms = open.iter().map(|(_, keep_ms)| *keep_ms).max();
            let keep_ms = longest_ms.unwrap_or(KEEP_FOR_LATER_MS);
            let mut scopes = self.state.scopes.lock();
            let is_open = |name: &Arc<str>| open.iter().any(|(scope, _)| scope.name == *name);
            let closed = scopes.by_name.iter().filter(|(name, _)| !is_open(name));
            meant.extend(closed.map(|(_, scope)| (Arc::clone(scope), keep_ms)));
            // The file may name more scopes. They get them once it is loaded.
            let may_have_more = self.folder().is_some() && !scopes.is_loaded;
            let is_for_later = meant.is_empty() || may_have_more;
            let is_kept = |target: &&Target| is_for_later || **target == Target::All;
            let kept: Vec<Target> = targets.iter().filter(is_kept).cloned().collect();
            let expires_ms = self.running_ms().saturating_add(keep_ms);
            let with_expiry = kept.iter().map(|target| (target.clone(), expires_ms));
            scopes.later.extend(with_expiry);
            later = Some((keep_ms, kept));
        }
        let make_in = |(scope, keep_ms): (Arc<ScopeMemory>, u64)| {
            scope.change(|revocations| {
                // The file may be loaded at the same time, and changes the running time before it postpones expiries.
                let expires_ms = self.running_ms().saturating_add(keep_ms);
                let make = |target| revocations.make(target, expires_ms);
                let made = MadeIn {
                    scope: Arc::clone(&scope),
                    ids: targets.iter().map(make).collect(),
                    keep_ms,
                };
                queue(&made);
                made
            })
        };
        Made {
            scopes: meant.into_iter().map(make_in).collect(),
            targets: targets.into(),
            later,
        }
    }

    /// Writes revocations to the folder, and waits for that until the deadline. The error says why they would not
    /// outlive this process.
    pub fn store(&self, made: &Made, deadline: Instant) -> Result<(), String> {
        let targets = Arc::clone(&made.targets);
        let (scopes, later) = (made.scopes.clone(), made.later.clone());
        self.with_file(Some(deadline), move |state, file| {
            let loaded = state.load(file);
            let mut bytes = Vec::new();
            if let Some((keep_ms, kept)) = later {
                for target in &kept {
                    Entry::Later(keep_ms, target).encode(&mut bytes);
                }
            }
            for made in scopes {
                let number = file.number(&made.scope.name, &mut bytes);
                for (id, target) in made.ids.iter().zip(&*targets) {
                    Entry::Revocation(number, *id, made.keep_ms, target).encode(&mut bytes);
                }
            }
            let written = state.append(file, &bytes, true);
            loaded.and(written)
        })
    }

    /// Stores revocations that the scope's memory already has, for this long.
    pub fn note(&self, scope: &ScopeMemory, new: Vec<(RevocationId, Target)>, left_ms: u64) {
        self.append_about(scope, true, move |number, bytes| {
            for (id, target) in &new {
                Entry::Revocation(number, *id, left_ms, target).encode(bytes);
            }
        });
    }

    /// Stores which revocations of a scope have expired, were replaced, or were given up.
    pub fn note_knowledge(&self, scope: &ScopeMemory, knowledge: &Knowledge) {
        let mut knowledge = knowledge.clone();
        for known in knowledge.origins.values_mut() {
            // The others are in the file, or come after this entry. If the node were killed in between, it would wait for
            // them.
            let replaced = known.replaced.last().map_or(0, |range| *range.end());
            known.upto = known.expired.max(replaced);
        }
        self.append_about(scope, false, move |number, bytes| {
            Entry::Statement(number, &knowledge).encode(bytes);
        });
    }

    /// Stores in which epochs revocations of these origins were known.
    pub fn note_epochs(&self, scope: &ScopeMemory, new: Vec<(u64, Noted)>) {
        self.append_about(scope, false, move |number, bytes| {
            for (origin, noted) in new {
                Entry::Noted(number, origin, noted).encode(bytes);
            }
        });
    }

    /// Postpones the expiry of all revocations of a scope.
    pub fn put_off(&self, scope: &ScopeMemory, by_ms: u64) {
        scope.change(|revocations| revocations.put_off(by_ms));
        self.append_about(scope, true, move |number, bytes| {
            Entry::PutOff(number, by_ms).encode(bytes);
        });
    }

    /// The identity of the scope's log, if the log is at this location.
    pub fn log_identity(&self, scope: &ScopeMemory, location: &str) -> Option<LogIdentity> {
        let log = scope.log.lock();
        let log = log.as_ref().filter(|log| log.location == location);
        log.map(|log| log.identity)
    }

    /// Remembers the scope's log.
    pub fn note_log(&self, scope: &ScopeMemory, log: KnownLog) {
        *scope.log.lock() = Some(log.clone());
        self.append_about(scope, true, move |number, bytes| {
            Entry::Log(number, &log).encode(bytes);
        });
    }

    /// Drops expired revocations, notes the running time, and compacts the file if much of it is no longer needed. To
    /// be called from time to time. Never waits for a disk. Returns the scopes whose revocations have changed.
    pub fn tidy(&self) -> Vec<Arc<str>> {
        let now_ms = self.running_ms();
        let mut scopes = self.state.scopes.lock();
        scopes.later.retain(|_, expires_ms| *expires_ms > now_ms);
        let known: Vec<_> = scopes.by_name.values().cloned().collect();
        let mut live = scopes.later.len() as u64;
        drop(scopes);
        let mut changed = Vec::new();
        for scope in known {
            if scope.change(|revocations| revocations.expire(now_ms)) {
                changed.push(Arc::clone(&scope.name));
            }
            live += scope.revocations().len() as u64;
        }
        match &self.file {
            Place::Here(file) => self.state.tidy(&mut file.lock(), live),
            Place::Thread(thread) => {
                let state = Arc::clone(&self.state);
                thread.submit(move |file| state.tidy(file, live));
            }
        }
        changed
    }
}

impl Drop for NodeMemory {
    fn drop(&mut self) {
        if let Place::Here(file) = &mut self.file {
            self.state.note_elapsed(file.get_mut());
        }
    }
}

impl State {
    fn new(folder: Option<PathBuf>) -> State {
        State {
            folder,
            scopes: Mutex::default(),
            error: Mutex::default(),
            unsaved: AtomicU64::new(0),
            running_offset_ms: AtomicI64::new(-(now_ms() as i64)),
            bytes: AtomicU64::new(0),
        }
    }

    fn running_ms(&self) -> u64 {
        now_ms().saturating_add_signed(self.running_offset_ms.load(Relaxed))
    }

    fn is_unsaved(&self) -> bool {
        self.unsaved.load(SeqCst) > 0
    }

    fn note_unsaved(&self) {
        self.unsaved.fetch_add(1, SeqCst);
    }

    /// Notes that the file has everything that was in memory when `unsaved` had this value.
    fn note_saved(&self, unsaved: u64) {
        let saved = self.unsaved.compare_exchange(unsaved, 0, SeqCst, SeqCst);
        if saved.is_ok() {
            let is_other = |memory: &Arc<NodeMemory>| !ptr::eq(&*memory.state, self);
            UNSAVED.lock().retain(is_other);
        }
    }

    /// Gives a new scope the revocations that were made for all scopes.
    fn prepare(&self, file: &mut File, scope: &ScopeMemory, keep_ms: u64) -> Result<(), String> {
        let scopes = self.scopes.lock();
        let mut targets = scopes.later.clone();
        let others = scopes
            .by_name
            .values()
            .filter(|other| other.name != scope.name);
        for other in others {
            // A flush of one scope does not concern the others.
            other.revocations().for_each(|_, target, expires_ms| {
                if target != Target::All {
                    let known_ms = targets.entry(target).or_default();
                    *known_ms = expires_ms.max(*known_ms);
                }
            });
        }
        drop(scopes);
        let mut bytes = Vec::new();
        let number = file.number(&scope.name, &mut bytes);
        let now_ms = self.running_ms();
        scope.change(|revocations| {
            for (target, expires_ms) in &targets {
                let left_ms = expires_ms.saturating_sub(now_ms).min(keep_ms);
                let id = revocations.make(target, now_ms.saturating_add(left_ms));
                Entry::Revocation(number, id, left_ms, target).encode(&mut bytes);
            }
        });
        // It comes last, because a crash may cut off the rest.
        Entry::Stage(number, Stage::Prepared).encode(&mut bytes);
        self.append(file, &bytes, true)
    }

    /// Loads the file, unless it is loaded.
    fn load(&self, file: &mut File) -> Result<(), String> {
        let Some(folder) = self.folder.as_ref().filter(|_| file.sealed.is_none()) else {
            return Ok(());
        };
        // Times in the file count from the file's beginning.
        let mut loading = Loading::default();
        let mut odd = None;
        let opened = SealedFile::for_each_block(folder, FILE, |block| {
            file.progress.note();
            let loaded = self.load_block(&mut loading, block);
            odd = odd.take().or(loaded.err());
        });
        let sealed = opened.map_err(|error| {
            *self.error.lock() = Some(error.0.clone());
            error.0
        })?;
        self.bytes.store(sealed.bytes(), Relaxed);
        file.sealed = Some(sealed);
        *self.error.lock() = odd.map(|what| format!("{}: {what}", folder.display()));
        // Revocations that were made before the file was loaded were to last from then on.
        let elapsed_ms = loading.elapsed_ms;
        let mut scopes = self.scopes.lock();
        self.running_offset_ms.fetch_add(elapsed_ms as i64, Relaxed);
        let mut was_used = !scopes.later.is_empty();
        let mut made: HashSet<(Arc<str>, Target)> = HashSet::new();
        for scope in scopes.by_name.values() {
            scope.change(|revocations| {
                revocations.put_off_own(elapsed_ms);
                revocations.note_loaded();
            });
            let revocations = scope.revocations();
            was_used |= revocations.has_own();
            if !scopes.later.is_empty() {
                let own = revocations.own_origin();
                revocations.for_each(|id, target, _| {
                    if id.origin == own {
                        made.insert((Arc::clone(&scope.name), target));
                    }
                });
            }
        }
        let of_file: HashSet<_> = loading.names.into_values().collect();
        let later = std::mem::replace(&mut scopes.later, loading.later);
        for (target, expires_ms) in later {
            let expires_ms = expires_ms.saturating_add(elapsed_ms);
            for name in &of_file {
                // Scopes that were known when it was made have it.
                if !made.contains(&(Arc::clone(name), target.clone())) {
                    let scope = scopes.get(name);
                    scope.change(|revocations| revocations.make(&target, expires_ms));
                }
            }
            let known_ms = scopes.later.entry(target).or_default();
            *known_ms = expires_ms.max(*known_ms);
        }
        scopes.is_loaded = true;
        drop(scopes);
        file.noted_ms = elapsed_ms;
        if was_used || self.is_unsaved() {
            // Revocations that were made in the meantime are not in the file yet.
            let _ = self.compact(file);
        }
        Ok(())
    }

    fn append(&self, file: &mut File, entries: &[u8], is_synced: bool) -> Result<(), String> {
        let Some(sealed) = &mut file.sealed else {
            if self.folder.is_some() && !entries.is_empty() {
                self.note_unsaved();
            }
            return self.error.lock().clone().map_or(Ok(()), Err);
        };
        // Times in entries count from the running time in the file.
        let now_ms = self.running_ms();
        let mut bytes = Vec::new();
        Entry::Elapsed(now_ms.saturating_sub(file.noted_ms)).encode(&mut bytes);
        bytes.extend_from_slice(entries);
        let mut appended = Ok(());
        let mut left = &bytes[..];
        while !left.is_empty() && appended.is_ok() {
            let block;
            (block, left) = left.split_at(block_len(left));
            appended = sealed.append(block, is_synced && left.is_empty());
            if appended.is_ok() {
                file.noted_ms = now_ms;
            }
        }
        self.bytes.store(sealed.bytes(), Relaxed);
        let appended = appended.map_err(|error| error.0);
        if appended.is_ok() && self.is_unsaved() {
            // There may be room again for what is missing. Until it is there, `error` has the reason.
            let _ = self.compact(file);
            return appended;
        }
        *self.error.lock() = appended.clone().err();
        if appended.is_err() {
            file.numbers.clear();
            self.note_unsaved();
        }
        appended
    }

    fn note_elapsed(&self, file: &mut File) {
        // `error` has the reason if it fails.
        let _ = self.append(file, &[], false);
    }

    /// Notes the running time. Writes the file anew if it lacks something, or if it is much larger than `live` revocations
    /// need.
    fn tidy(&self, file: &mut File, live: u64) {
        if self.running_ms() >= file.noted_ms + ELAPSED_STEP_MS {
            self.note_elapsed(file);
        }
        let limit_bytes = COMPACT_FROM_BYTES.max(2 * live * ENTRY_BYTES);
        if self.is_unsaved() || self.bytes.load(Relaxed) > limit_bytes {
            let _ = self.compact(file);
        }
    }

    fn compact(&self, file: &mut File) -> Result<(), String> {
        let unsaved = self.unsaved.load(SeqCst);
        let now_ms = self.running_ms();
        let left = |expires_ms: u64| expires_ms.saturating_sub(now_ms);
        let mut blocks = Vec::new();
        let mut block = Vec::new();
        Entry::Elapsed(now_ms).encode(&mut block);
        file.numbers.clear();
        let scopes = self.scopes.lock();
        let mut cut = |block: &mut Vec<u8>| {
            if block.len() >= BLOCK_BYTES {
                blocks.push(std::mem::take(block));
            }
        };
        for scope in scopes.by_name.values() {
            let number = file.number(&scope.name, &mut block);
            Entry::Stage(number, scope.stage()).encode(&mut block);
            if let Some(log) = &*scope.log.lock() {
                Entry::Log(number, log).encode(&mut block);
            }
            let mut revocations = scope.revocations();
            Entry::Statement(number, &revocations.knowledge()).encode(&mut block);
            revocations.for_each(|id, target, expires_ms| {
                cut(&mut block);
                Entry::Revocation(number, id, left(expires_ms), &target).encode(&mut block);
            });
            for (origin, noted) in revocations.noted() {
                cut(&mut block);
                Entry::Noted(number, origin, noted).encode(&mut block);
            }
            drop(revocations);
            cut(&mut block);
        }
        for (target, expires_ms) in &scopes.later {
            Entry::Later(left(*expires_ms), target).encode(&mut block);
            cut(&mut block);
        }
        drop(scopes);
        blocks.push(block);
        let Some(sealed) = &mut file.sealed else {
            return Ok(());
        };
        let progress = &file.progress;
        let blocks = blocks.into_iter().inspect(|_| progress.note());
        let rewritten = sealed.rewrite(blocks).map_err(|error| error.0);
        self.bytes.store(sealed.bytes(), Relaxed);
        *self.error.lock() = rewritten.clone().err();
        // Even after an error, the file may be the new one. If it is not, revocations only end a little later.
        file.noted_ms = now_ms;
        if rewritten.is_ok() {
            self.note_saved(unsaved);
        } else {
            file.numbers.clear();
            self.note_unsaved();
        }
        rewritten
    }
}

impl File {
    /// The number of a scope in the file.
    fn number(&mut self, name: &Arc<str>, bytes: &mut Vec<u8>) -> u32 {
        if let Some(number) = self.numbers.get(name) {
            return *number;
        }
        let number = self.numbers.len() as u32;
        self.numbers.insert(Arc::clone(name), number);
        Entry::Scope(number, name).encode(bytes);
        number
    }
}

impl Scopes {
    fn get(&mut self, name: &str) -> &Arc<ScopeMemory> {
        if !self.by_name.contains_key(name) {
            let name: Arc<str> = name.into();
            let scope = Arc::new(ScopeMemory::new(Arc::clone(&name)));
            self.by_name.insert(name, scope);
        }
        &self.by_name[name]
    }
}

impl ScopeMemory {
    fn new(name: Arc<str>) -> Self {
        ScopeMemory {
            name,
            revocations: Mutex::new(Revocations::new(random_origin())),
            knowledge: RwLock::default(),
            log: Mutex::default(),
            stage: Mutex::new(Stage::New),
        }
    }

    fn stage(&self) -> Stage {
        *self.stage.lock()
    }

    /// Returns whether the scope had not come that far.
    fn reach(&self, stage: Stage) -> bool {
        let mut reached = self.stage.lock();
        let is_new = match (*reached, stage) {
            (Stage::Began(one), Stage::Began(other)) => one != other,
            _ => *reached < stage,
        };
        if is_new {
            *reached = stage;
        }
        is_new
    }

    /// Whether a log of the scope was read completely on this node, so that it knows all revocations that sessions in
    /// this log may need.
    pub fn is_complete_for(&self, log: LogIdentity) -> bool {
        match self.stage() {
            Stage::Complete => true,
            Stage::Began(began) => began == log,
            Stage::New | Stage::Prepared => false,
        }
    }

    /// Changes the revocations. The lock must not be held during waits for a disk or a server.
    pub fn change<R>(&self, change: impl FnOnce(&mut Revocations) -> R) -> R {
        let mut revocations = self.revocations.lock();
        let result = change(&mut revocations);
        *self.knowledge.write() = revocations.knowledge();
        result
    }

    /// The revocations, locked against changes. Their times are running time.
    pub fn revocations(&self) -> MutexGuard<'_, Revocations> {
        self.revocations.lock()
    }

    /// The revocations that are known. Never waits for long.
    pub fn knowledge(&self) -> Arc<Knowledge> {
        Arc::clone(&self.knowledge.read())
    }

    /// Whether the scope's log is known to be this node's alone.
    pub fn has_own_log(&self) -> bool {
        self.log.lock().as_ref().is_some_and(|log| !log.is_shared)
    }
}

impl Stage {
    fn encode(self) -> Vec<u8> {
        match self {
            Stage::New => vec![0],
            Stage::Prepared => vec![1],
            Stage::Began(log) => [&[2], &log[..]].concat(),
            Stage::Complete => vec![3],
        }
    }

    fn decode(bytes: &[u8]) -> Option<Stage> {
        Some(match bytes {
            [0] => Stage::New,
            [1] => Stage::Prepared,
            [2, log @ ..] => Stage::Began(log.try_into().ok()?),
            [3] => Stage::Complete,
            _ => return None,
        })
    }
}

impl Entry<'_> {
    /// Appends the entry to a block: its length in four bytes, its kind, and its content.
    fn encode(&self, block: &mut Vec<u8>) {
        let at = block.len();
        block.extend([0; 4]);
        match self {
            Entry::Scope(number, name) => {
                block.push(1);
                block.extend(number.to_be_bytes());
                block.extend(name.as_bytes());
            }
            Entry::Revocation(number, id, left_ms, target) => {
                block.push(2);
                block.extend(number.to_be_bytes());
                for part in [id.origin, id.counter, *left_ms] {
                    block.extend(part.to_be_bytes());
                }
                block.extend(target.encode());
            }
            Entry::Statement(number, knowledge) => {
                block.push(3);
                block.extend(number.to_be_bytes());
                let statement = Statement {
                    knowledge: (*knowledge).clone(),
                    ..Statement::default()
                };
                block.extend(statement.encode());
            }
            Entry::Log(number, log) => {
                block.push(4);
                block.extend(number.to_be_bytes());
                block.extend(log.identity);
                block.push(log.is_shared.into());
                block.extend(log.location.as_bytes());
            }
            Entry::Elapsed(ms) => {
                block.push(5);
                block.extend(ms.to_be_bytes());
            }
            Entry::Later(left_ms, target) => {
                block.push(6);
                block.extend(left_ms.to_be_bytes());
                block.extend(target.encode());
            }
            Entry::Stage(number, stage) => {
                block.push(7);
                block.extend(number.to_be_bytes());
                block.extend(stage.encode());
            }
            Entry::Noted(number, origin, noted) => {
                block.push(8);
                block.extend(number.to_be_bytes());
                for number in [*origin, noted.upto, noted.epoch, noted.old_in] {
                    block.extend(number.to_be_bytes());
                }
            }
            Entry::PutOff(number, by_ms) => {
                block.push(9);
                block.extend(number.to_be_bytes());
                block.extend(by_ms.to_be_bytes());
            }
        }
        let length = (block.len() - at - 4) as u32;
        block[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// How many bytes of these entries fit into one block.
fn block_len(entries: &[u8]) -> usize {
    let mut len = 0;
    while let Some(length) = entries[len..].first_chunk() {
        let next = len + 4 + u32::from_be_bytes(*length) as usize;
        if len > 0 && next > MAX_BLOCK_BYTES || next > entries.len() {
            break;
        }
        len = next;
    }
    match len {
        0 => entries.len(),
        len => len,
    }
}

/// The error for entries that were sealed but make no sense.
const ODD: &str = "an entry makes no sense; was it written by another version?";

/// What was read of the file so far.
#[derive(Default)]
struct Loading {
    names: HashMap<u32, Arc<str>>,
    elapsed_ms: u64,
    later: HashMap<Target, u64>,
}

impl State {
    fn load_block(&self, loading: &mut Loading, mut block: &[u8]) -> Result<(), &'static str> {
        while !block.is_empty() {
            let (length, rest) = block.split_first_chunk().ok_or(ODD)?;
            let (entry, rest) = rest
                .split_at_checked(u32::from_be_bytes(*length) as usize)
                .ok_or(ODD)?;
            block = rest;
            self.load_entry(loading, entry).ok_or(ODD)?;
        }
        Ok(())
    }

    fn load_entry(&self, loading: &mut Loading, entry: &[u8]) -> Option<()> {
        let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
        let (kind, rest) = entry.split_first()?;
        match kind {
            5 => loading.elapsed_ms += number(rest)?,
            6 => {
                let (left, target) = rest.split_at_checked(8)?;
                let expires_ms = loading.elapsed_ms.saturating_add(number(left)?);
                loading.later.insert(Target::decode(target)?, expires_ms);
            }
            _ => {
                let (place, rest) = rest.split_first_chunk()?;
                let place = u32::from_be_bytes(*place);
                if *kind == 1 {
                    let name = std::str::from_utf8(rest).ok()?;
                    let name = Arc::clone(&self.scopes.lock().get(name).name);
                    loading.names.insert(place, name);
                    return Some(());
                }
                let name = loading.names.get(&place)?;
                let scope = Arc::clone(self.scopes.lock().get(name));
                load_of_scope(&scope, *kind, rest, loading.elapsed_ms)?;
            }
        }
        Some(())
    }
}

fn load_of_scope(scope: &ScopeMemory, kind: u8, entry: &[u8], elapsed_ms: u64) -> Option<()> {
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
    match kind {
        2 => {
            let (numbers, target) = entry.split_at_checked(24)?;
            let id = RevocationId {
                origin: number(&numbers[..8])?,
                counter: number(&numbers[8..16])?,
            };
            let expires_ms = elapsed_ms.saturating_add(number(&numbers[16..])?);
            let target = Target::decode(target)?;
            scope.change(|revocations| revocations.learn(id, &target, expires_ms));
        }
        3 => {
            let statement = Statement::decode(entry).ok()?;
            scope.change(|revocations| revocations.learn_statement(&statement.knowledge));
        }
        4 => {
            let (identity, rest) = entry.split_first_chunk()?;
            let (is_shared, location) = rest.split_first()?;
            *scope.log.lock() = Some(KnownLog {
                location: String::from_utf8(location.into()).ok()?,
                is_shared: *is_shared != 0,
                identity: *identity,
            });
        }
        7 => _ = scope.reach(Stage::decode(entry)?),
        8 => {
            let mut numbers = entry.chunks_exact(8).filter_map(number);
            let origin = numbers.next()?;
            let noted = Noted {
                upto: numbers.next()?,
                epoch: numbers.next()?,
                old_in: numbers.next()?,
            };
            scope.change(|revocations| revocations.learn_noted(origin, noted));
        }
        9 => {
            let by_ms = number(entry)?;
            scope.change(|revocations| revocations.put_off(by_ms));
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::set_moved;
    use crate::CertificateSelector;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::time::Duration;
    use tempfile::TempDir;

    const HOUR_MS: u64 = 3_600_000;
    const DAY_MS: u64 = 24 * HOUR_MS;

    fn open(folder: &TempDir) -> NodeMemory {
        NodeMemory::new(Some(folder.path().join("node")))
    }

    fn prepared(memory: &NodeMemory, name: &str) -> (Arc<ScopeMemory>, bool) {
        let scope = memory.scope(name);
        let began = Instant::now();
        // A busy disk may answer late.
        let was_known = loop {
            match memory.prepare(&scope, DAY_MS) {
                Ok(was_known) => break was_known,
                Err(error) => assert!(
                    error.contains("does not answer") && began.elapsed() < Duration::from_secs(60),
                    "{error}"
                ),
            }
        };
        (scope, was_known)
    }

    fn compact(memory: &NodeMemory) -> Result<(), String> {
        memory.with_file(None, |state, file| state.compact(file))
    }

    fn revoke(
        memory: &NodeMemory,
        open: &[(Arc<ScopeMemory>, u64)],
        is_for_all: bool,
        targets: &[Target],
    ) -> (Vec<MadeIn>, Result<(), String>) {
        let made = memory.make(open, is_for_all, targets, |_| {});
        let written = memory.store(&made, Instant::now());
        (made.scopes, written)
    }

    fn session(n: u8) -> Target {
        Target::Session([n; 32])
    }

    /// Revocations by their targets, with their ids and how long they are still kept.
    fn all(memory: &NodeMemory, scope: &ScopeMemory) -> Vec<(RevocationId, Target, u64)> {
        let mut all = Vec::new();
        let now_ms = memory.running_ms();
        let revocations = scope.revocations();
        revocations.for_each(|id, target, at_ms| {
            // Clocks tick in the meantime.
            all.push((id, target, at_ms.saturating_sub(now_ms).div_ceil(60_000)));
        });
        all.sort_by_key(|(id, ..)| *id);
        all
    }

    fn targets(memory: &NodeMemory, name: &str) -> Vec<Target> {
        let scope = memory.scope(name);
        let mut targets: Vec<_> = (all(memory, &scope).into_iter())
            .map(|(_, target, _)| target)
            .collect();
        targets.sort_by_key(Target::encode);
        targets
    }

    #[test]
    fn a_restart_forgets_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let memory = open(&folder);
        let (scope, was_known) = prepared(&memory, "scope");
        assert!(!was_known);
        let some = [
            session(1),
            Target::All,
            Target::Certificate(CertificateSelector::Sha256([2; 32])),
        ];
        let (made, written) = revoke(&memory, &[(Arc::clone(&scope), HOUR_MS)], false, &some);
        assert_eq!((made.len(), made[0].ids.len(), written), (1, 3, Ok(())));
        let foreign = RevocationId {
            origin: 1,
            counter: 2,
        };
        let expires_ms = memory.running_ms() + HOUR_MS;
        scope.change(|revocations| revocations.learn(foreign, &session(3), expires_ms));
        memory.note(&scope, vec![(foreign, session(3))], HOUR_MS);
        let noted = Noted {
            upto: 1,
            epoch: 5,
            old_in: 70,
        };
        scope.change(|revocations| revocations.learn_noted(1, noted));
        memory.note_epochs(&scope, vec![(1, noted)]);
        memory.put_off(&scope, DAY_MS);
        memory.note_log(
            &scope,
            KnownLog {
                location: "here".into(),
                is_shared: true,
                identity: [7; 8],
            },
        );
        let before = (all(&memory, &scope), scope.knowledge());
        assert_eq!(before.0.len(), 4);
        drop((made, scope, memory));
        for _ in 0..2 {
            let memory = open(&folder);
            let (scope, was_known) = prepared(&memory, "scope");
            assert!(was_known && memory.error().is_none() && memory.bytes() > 0);
            assert_eq!((all(&memory, &scope), scope.knowledge()), before);
            assert_eq!(scope.revocations().missing(), 1);
            assert_eq!(scope.revocations().noted().last(), Some((1, noted)));
            assert_eq!(memory.log_identity(&scope, "here"), Some([7; 8]));
            assert_eq!(memory.log_identity(&scope, "there"), None);
            compact(&memory).unwrap();
        }
    }

    #[test]
    fn a_later_scope_keeps_revocations_only_as_long_as_it_needs_them() {
        let folder = tempfile::tempdir().unwrap();
        let memory = open(&folder);
        let (first, _) = prepared(&memory, "first");
        let (.., written) = revoke(&memory, &[(first, 7 * DAY_MS)], true, &[session(1)]);
        assert_eq!(written, Ok(()));
        let later = memory.scope("later");
        memory.prepare(&later, HOUR_MS).unwrap();
        for memory in [memory, open(&folder)] {
            let (scope, _) = prepared(&memory, "later");
            let end_ms = memory.running_ms() + HOUR_MS;
            scope.revocations().for_each(|_, _, expires_ms| {
                assert!((end_ms - HOUR_MS / 2..=end_ms).contains(&expires_ms));
            });
            assert_eq!(scope.revocations().len(), 1);
        }
    }

    #[test]
    fn revocations_of_everything_hold_in_scopes_that_come_later() {
        let folder = tempfile::tempdir().unwrap();
        let memory = open(&folder);
        let (open_scope, _) = prepared(&memory, "open");
        prepared(&memory, "closed");
        let everything = [session(1), Target::All];
        let (made, written) = revoke(&memory, &[(open_scope, HOUR_MS)], true, &everything);
        assert_eq!((made.len(), written), (2, Ok(())));
        let (open_scope, _) = prepared(&memory, "open");
        // A flush of one scope holds for that scope only. Other revocations also hold for new scopes.
        let (_, written) = revoke(&memory, &[(open_scope, HOUR_MS)], false, &[session(2)]);
        assert_eq!(written, Ok(()));
        assert_eq!(targets(&memory, "closed"), everything);
        drop(made);
        let check = |memory: &NodeMemory, name: &str| {
            assert!(!prepared(memory, name).1);
            let later = [session(1), session(2), Target::All];
            assert_eq!(targets(memory, name), later);
        };
        check(&memory, "later");
        drop(memory);
        let memory = open(&folder);
        assert!(prepared(&memory, "later").1);
        check(&memory, "after a restart");
        assert_eq!(targets(&memory, "open").len(), 3);
    }

    #[test]
    fn a_revocation_before_any_scope_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let (made, written) = revoke(&open(&folder), &[], true, &[session(1)]);
        assert_eq!((made.len(), written), (0, Ok(())));
        let memory = open(&folder);
        assert!(!prepared(&memory, "scope").1);
        assert_eq!(targets(&memory, "scope"), [session(1)]);
    }

    /// A listener whose key file is late takes revocations before its scope is prepared.
    #[test]
    fn a_scope_that_was_only_revoked_in_is_prepared_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let memory = open(&folder);
        let (other, _) = prepared(&memory, "other");
        let meant = [(Arc::clone(&other), HOUR_MS)];
        assert_eq!(revoke(&memory, &meant, true, &[session(1)]).1, Ok(()));
        let late = memory.scope("late");
        let meant = [(other, HOUR_MS), (late, HOUR_MS)];
        assert_eq!(revoke(&memory, &meant, true, &[session(2)]).1, Ok(()));
        compact(&memory).unwrap();
        drop((meant, memory));
        for _ in 0..2 {
            let memory = open(&folder);
            let (late, was_known) = prepared(&memory, "late");
            assert!(was_known && late.stage() == Stage::Prepared);
            // One was made there, and one comes from the other scope. That happens once.
            assert_eq!(targets(&memory, "late"), [1, 2, 2].map(session));
        }
    }

    #[test]
    fn a_scope_is_complete_once_its_log_was_read() {
        let folder = tempfile::tempdir().unwrap();
        let complete_for = |memory: &NodeMemory| {
            let scope = prepared(memory, "scope").0;
            [1, 2].map(|log| scope.is_complete_for([log; 8]))
        };
        let memory = open(&folder);
        assert_eq!(complete_for(&memory), [false; 2]);
        drop(memory);
        let memory = open(&folder);
        assert_eq!(complete_for(&memory), [false; 2]);
        // The scope's log was new, so there can be no older one.
        memory.note_began(&memory.scope("scope"), [2; 8]);
        assert_eq!(complete_for(&memory), [false, true]);
        drop(memory);
        let memory = open(&folder);
        assert_eq!(complete_for(&memory), [false, true]);
        compact(&memory).unwrap();
        drop(memory);
        let memory = open(&folder);
        prepared(&memory, "scope");
        memory.note_began(&memory.scope("scope"), [1; 8]);
        assert_eq!(complete_for(&memory), [true, false]);
        memory.note_complete(&memory.scope("scope"));
        memory.note_began(&memory.scope("scope"), [3; 8]);
        assert_eq!(complete_for(&memory), [true; 2]);
        drop(memory);
        assert_eq!(complete_for(&open(&folder)), [true; 2]);
    }

    #[test]
    fn revocations_end_by_the_time_that_passes_and_not_by_clocks() {
        let folder = tempfile::tempdir().unwrap();
        set_moved(0, 0);
        let memory = open(&folder);
        let (scope, _) = prepared(&memory, "scope");
        let meant = [(Arc::clone(&scope), HOUR_MS)];
        assert_eq!(revoke(&memory, &meant, false, &[session(1)]).1, Ok(()));
        drop(meant);
        set_moved(HOUR_MS / 2, 400 * 24 * HOUR_MS as i64);
        assert!(memory.tidy().is_empty());
        drop((scope, memory));
        // The node is down for a long time, and its monotonic clock begins again.
        set_moved(0, -400);
        let memory = open(&folder);
        let (scope, _) = prepared(&memory, "scope");
        assert_eq!(all(&memory, &scope)[0].2, 30);
        set_moved(HOUR_MS / 2 - 60_000, 0);
        assert!(memory.tidy().is_empty());
        set_moved(HOUR_MS / 2 + 60_000, 0);
        assert_eq!(memory.tidy(), [Arc::from("scope")]);
        assert_eq!(scope.revocations().len(), 0);
        memory.note_knowledge(&scope, &scope.knowledge());
        drop((scope, memory));
        let memory = open(&folder);
        let (scope, _) = prepared(&memory, "scope");
        let knowledge = scope.knowledge();
        let known = knowledge.origins.values().next().unwrap();
        assert_eq!((known.upto, known.expired), (1, 1));
        assert_eq!(scope.revocations().len(), 0);
        set_moved(0, 0);
    }

    #[test]
    fn a_restart_does_not_make_revocations_end_early() {
        let folder = tempfile::tempdir().unwrap();
        set_moved(0, 0);
        let memory = open(&folder);
        let (scope, _) = prepared(&memory, "scope");
        set_moved(HOUR_MS, 0);
        let meant = [(scope, HOUR_MS)];
        assert_eq!(revoke(&memory, &meant, true, &[Target::All]).1, Ok(()));
        drop((meant, memory));
        set_moved(0, 0);
        let memory = open(&folder);
        // Before the file is loaded.
        let scope = memory.scope("scope");
        let expires_ms = memory.running_ms() + HOUR_MS;
        scope.change(|revocations| revocations.make(&session(1), expires_ms));
        prepared(&memory, "scope");
        let left: Vec<_> = (all(&memory, &scope).into_iter())
            .map(|(.., left)| left)
            .collect();
        assert_eq!(left, [60, 60]);
        let now_ms = memory.running_ms();
        let mut later = memory.state.scopes.lock().later.clone().into_values();
        assert!(later.all(|at_ms| at_ms > now_ms + HOUR_MS - 60_000));
        drop((scope, memory));
        set_moved(0, 0);
    }

    #[test]
    fn what_is_revoked_while_the_folder_cannot_be_used_is_remembered_once_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("node");
        fs::write(&place, "no folder").unwrap();
        let memory = open(&folder);
        let scope = memory.scope("scope");
        assert!(memory.prepare(&scope, DAY_MS).is_err());
        let meant = [(Arc::clone(&scope), HOUR_MS)];
        let (_, written) = revoke(&memory, &meant, true, &[session(1)]);
        assert!(written.is_err() && memory.error().is_some());
        assert_eq!(targets(&memory, "scope"), [session(1)]);
        fs::remove_file(&place).unwrap();
        assert!(memory.prepare(&scope, DAY_MS).unwrap());
        assert_eq!(memory.error(), None);
        drop((meant, scope, memory));
        let memory = open(&folder);
        assert!(prepared(&memory, "scope").1);
        assert_eq!(targets(&memory, "scope"), [session(1)]);
    }

    #[test]
    fn what_could_not_be_written_is_written_once_there_is_room() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("node");
        let rights = |mode| fs::set_permissions(&place, fs::Permissions::from_mode(mode)).unwrap();
        let memory = open(&folder);
        let (scope, _) = prepared(&memory, "scope");
        let revoke_one = |n| {
            revoke(
                &memory,
                &[(Arc::clone(&scope), HOUR_MS)],
                false,
                &[session(n)],
            )
            .1
        };
        assert_eq!(revoke_one(1), Ok(()));
        // Nothing can be appended, as with a full disk.
        rights(0o777);
        assert!(revoke_one(2).is_err() && memory.error().is_some());
        rights(0o700);
        // There is room to append, and none for a new file.
        let new = place.join("revocations.new");
        fs::create_dir_all(new.join("something")).unwrap();
        assert_eq!(revoke_one(3), Ok(()));
        assert!(memory.error().is_some() && memory.is_unsaved());
        let restarted = |expected: &[u8]| {
            let copied = tempfile::tempdir().unwrap();
            let copy = copied.path().join("node");
            fs::create_dir(&copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o700)).unwrap();
            for found in fs::read_dir(&place).unwrap().map(Result::unwrap) {
                if found.file_type().unwrap().is_file() {
                    fs::copy(found.path(), copy.join(found.file_name())).unwrap();
                }
            }
            let memory = open(&copied);
            prepared(&memory, "scope");
            let expected: Vec<_> = expected.iter().copied().map(session).collect();
            assert_eq!(targets(&memory, "scope"), expected);
        };
        restarted(&[1, 3]);
        fs::remove_dir_all(&new).unwrap();
        assert_eq!(revoke_one(4), Ok(()));
        assert!(memory.error().is_none() && !memory.is_unsaved());
        restarted(&[1, 2, 3, 4]);
        // Without another revocation, it is written when the memory is tidied.
        rights(0o777);
        assert!(revoke_one(5).is_err() && memory.is_unsaved());
        rights(0o700);
        memory.tidy();
        assert!(memory.error().is_none() && !memory.is_unsaved());
        restarted(&[1, 2, 3, 4, 5]);
    }

    #[test]
    fn what_is_revoked_before_the_file_is_loaded_holds_in_the_scopes_that_it_names() {
        let folder = tempfile::tempdir().unwrap();
        let (place, away) = (folder.path().join("node"), folder.path().join("away"));
        let memory = open(&folder);
        prepared(&memory, "open");
        prepared(&memory, "closed");
        drop(memory);
        fs::rename(&place, &away).unwrap();
        fs::write(&place, "no folder").unwrap();
        let memory = open(&folder);
        let meant = [(memory.scope("open"), HOUR_MS)];
        let everything = [session(1), Target::All];
        assert!(revoke(&memory, &meant, true, &everything).1.is_err());
        fs::remove_file(&place).unwrap();
        fs::rename(&away, &place).unwrap();
        for name in ["open", "closed", "new"] {
            prepared(&memory, name);
            assert_eq!(targets(&memory, name), everything, "{name}");
        }
        assert!(!memory.is_unsaved());
        drop((meant, memory));
        let memory = open(&folder);
        for name in ["open", "closed", "new"] {
            prepared(&memory, name);
            assert_eq!(targets(&memory, name), everything, "{name}");
        }
    }

    #[test]
    fn what_is_missing_since_a_file_was_begun_stays_missing() {
        let memory = NodeMemory::new(None);
        memory.state.note_unsaved();
        let begun = memory.state.unsaved.load(SeqCst);
        memory.state.note_unsaved();
        memory.state.note_saved(begun);
        assert!(memory.is_unsaved());
        memory.state.note_saved(memory.state.unsaved.load(SeqCst));
        assert!(!memory.is_unsaved());
    }

    #[test]
    fn revocations_are_queued_before_anybody_can_read_that_they_are_known() {
        let memory = NodeMemory::new(None);
        let scope = memory.scope("scope");
        let meant = [(Arc::clone(&scope), HOUR_MS)];
        let mut queued = Vec::new();
        let made = memory.make(&meant, true, &[session(1), session(2)], |made| {
            assert!(scope.knowledge().origins.is_empty());
            queued.extend_from_slice(&made.ids);
        });
        assert_eq!(queued, made.scopes[0].ids);
        assert_eq!(scope.knowledge().origins.values().next().unwrap().upto, 2);
    }

    #[test]
    fn a_folder_that_was_late_gets_everything_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("node");
        let memory = NodeMemory::of(Some(&place));
        let (scope, _) = prepared(&memory, "scope");
        let hanging = memory.hang();
        let meant = [(Arc::clone(&scope), HOUR_MS)];
        let (made, written) = revoke(&memory, &meant, false, &[session(1)]);
        assert_eq!(made[0].ids.len(), 1);
        assert!(written.unwrap_err().contains("does not answer"));
        assert_eq!(targets(&memory, "scope"), [session(1)]);
        let expired = scope.change(|revocations| revocations.expire(u64::MAX));
        assert!(expired);
        memory.tidy();
        let knowledge = scope.knowledge();
        // All this comes back while the folder hangs.
        memory.note_knowledge(&scope, &knowledge);
        assert!(memory.error().unwrap().contains("does not answer"));
        memory.note_complete(&scope);
        assert!(memory.bytes() > 0);
        // Another memory with this folder waits until this one has written everything.
        drop((memory, meant, scope));
        let memory = NodeMemory::of(Some(&place));
        assert!(memory.prepare(&memory.scope("scope"), DAY_MS).is_err());
        drop(hanging);
        let (scope, was_known) = prepared(&memory, "scope");
        assert!(was_known && scope.is_complete_for([1; 8]) && memory.error().is_none());
        assert_eq!(scope.knowledge(), knowledge);
        assert_eq!(targets(&memory, "scope"), []);
    }

    #[test]
    fn many_revocations_before_any_scope_are_compacted() {
        let folder = tempfile::tempdir().unwrap();
        let memory = open(&folder);
        let target = |n: u32| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            Target::Session(id)
        };
        let targets: Vec<_> = (0..30_000).map(target).collect();
        assert_eq!(revoke(&memory, &[], true, &targets).1, Ok(()));
        compact(&memory).unwrap();
        drop(memory);
        let (scope, _) = prepared(&open(&folder), "scope");
        assert_eq!(scope.revocations().len(), targets.len());
    }

    #[test]
    fn a_million_revocations_take_less_than_128_mib() {
        let folder = tempfile::tempdir().unwrap();
        let memory = open(&folder);
        let (scope, _) = prepared(&memory, "scope");
        let count = 20_000u32;
        let target = |n: u32| {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_be_bytes());
            Target::Session(id)
        };
        let meant = [(Arc::clone(&scope), HOUR_MS)];
        let targets: Vec<_> = (0..count).map(target).collect();
        let bytes_each = |memory: &NodeMemory| memory.bytes() / u64::from(count);
        assert_eq!(revoke(&memory, &meant, false, &targets).1, Ok(()));
        assert!(bytes_each(&memory) <= 134, "{}", bytes_each(&memory));
        compact(&memory).unwrap();
        assert!(bytes_each(&memory) <= 134, "{}", bytes_each(&memory));
        // One by one, as OTP's process makes them.
        let before = memory.bytes();
        for n in count..count + 100 {
            assert_eq!(revoke(&memory, &meant, false, &[target(n)]).1, Ok(()));
        }
        assert!((memory.bytes() - before) / 100 <= 134);
        drop((meant, scope, memory));
        let memory = open(&folder);
        let (scope, _) = prepared(&memory, "scope");
        assert_eq!(scope.revocations().len(), count as usize + 100);
    }
}
