//! What a node remembers by itself: the revocations of all its scopes, outside any log, and which log a scope has.
//!
//! With a folder, it is in a sealed file there, written before a log and loaded before any log is read. Without, it lasts as
//! long as the process. Ages are counted in running time: how long processes with this memory have run in all. So no
//! clock that is wrong makes a revocation end early.

use crate::clock::now_ms;
use crate::record::{LogIdentity, Statement};
use crate::revocations::{Knowledge, RevocationId, Revocations};
use crate::target::Target;
use chacha20poly1305::aead::Generate;
use once_cell::sync::Lazy;
use parking_lot::{Mutex, MutexGuard, RwLock};
use rekindle_log::SealedFile;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};

const FILE: &str = "revocations";

/// How much running time may be lost when a process is killed.
const ELAPSED_STEP_MS: u64 = 10 * 60 * 1000;

/// How long a revocation is kept for scopes that this node has not seen: their lifetimes are unknown. Ten years.
const KEEP_FOR_LATER_MS: u64 = 10 * 366 * 24 * 3600 * 1000;

/// About how large a block of a compacted file is.
const BLOCK_BYTES: usize = 64 * 1024;

/// A file smaller than this is not compacted.
const COMPACT_FROM_BYTES: u64 = 4 * 1024 * 1024;

/// Bytes of an entry with a digest, about.
const ENTRY_BYTES: u64 = 72;

/// Memories by folder. The one without a folder stays for as long as the process.
static MEMORIES: Lazy<Mutex<HashMap<PathBuf, Weak<NodeMemory>>>> = Lazy::new(Mutex::default);
static WITHOUT_FOLDER: Lazy<Arc<NodeMemory>> = Lazy::new(|| Arc::new(NodeMemory::new(None)));

/// What a node remembers.
pub struct NodeMemory {
    folder: Option<PathBuf>,
    state: Mutex<State>,
    /// Running time when the process's clock was at zero.
    running_offset_ms: AtomicI64,
    /// How often revocations were loaded while scopes were at work.
    late_loads: AtomicU64,
}

#[derive(Default)]
struct State {
    file: Option<SealedFile>,
    /// Why the file cannot be opened, or the last append failed.
    error: Option<String>,
    /// Up to where the running time is in the file.
    noted_ms: u64,
    scopes: HashMap<Arc<str>, Arc<ScopeMemory>>,
    /// The numbers that entries of the file have for scopes' names.
    numbers: HashMap<Arc<str>, u32>,
    /// For scopes that this node has not seen yet, with their expiry: what no other scope has as well.
    later: HashMap<Target, u64>,
}

/// What a node remembers of a scope.
pub struct ScopeMemory {
    /// Its name.
    pub name: Arc<str>,
    revocations: Mutex<Revocations>,
    /// What `revocations` know, for callers that must not wait for a long change of them.
    knowledge: RwLock<Arc<Knowledge>>,
    log: Mutex<Option<Remembered>>,
}

/// Which log a scope has.
#[derive(Clone, PartialEq, Eq)]
struct Remembered {
    location: String,
    is_shared: bool,
    identity: LogIdentity,
}

/// What was made for one scope.
pub struct Made {
    /// The scope.
    pub scope: Arc<ScopeMemory>,
    /// A revocation for each target, in their order.
    pub ids: Vec<RevocationId>,
}

enum Entry<'a> {
    Scope(u32, &'a str),
    Revocation(u32, RevocationId, u64, &'a Target),
    Statement(u32, &'a Knowledge),
    Log(u32, &'a Remembered),
    Elapsed(u64),
    Later(u64, &'a Target),
}

impl NodeMemory {
    /// The memory in this folder, or that of the process alone. It is there even if the folder cannot be used: see
    /// [`ready`](Self::ready).
    pub fn of(folder: Option<&Path>) -> Arc<NodeMemory> {
        let Some(folder) = folder else {
            return Arc::clone(&WITHOUT_FOLDER);
        };
        let mut memories = MEMORIES.lock();
        memories.retain(|_, memory| memory.strong_count() > 0);
        if let Some(memory) = memories.get(folder).and_then(Weak::upgrade) {
            return memory;
        }
        let memory = Arc::new(NodeMemory::new(Some(folder.into())));
        memories.insert(folder.into(), Arc::downgrade(&memory));
        memory
    }

    pub(crate) fn new(folder: Option<PathBuf>) -> NodeMemory {
        NodeMemory {
            folder,
            state: Mutex::default(),
            running_offset_ms: AtomicI64::new(-(now_ms() as i64)),
            late_loads: AtomicU64::new(0),
        }
    }

    /// The folder.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// Loads the file unless that is done, and says why it cannot be.
    pub fn ready(&self) -> Result<(), String> {
        self.opened().map(drop)
    }

    /// Why the file could not be opened, or not be written the last time.
    pub fn error(&self) -> Option<String> {
        self.state.lock().error.clone()
    }

    /// Bytes of the file.
    pub fn bytes(&self) -> u64 {
        self.state.lock().file.as_ref().map_or(0, SealedFile::bytes)
    }

    /// Running time, in milliseconds. Never waits.
    pub fn running_ms(&self) -> u64 {
        now_ms().saturating_add_signed(self.running_offset_ms.load(Relaxed))
    }

    /// How often revocations were loaded after scopes had begun to work with this memory.
    pub fn late_loads(&self) -> u64 {
        self.late_loads.load(Relaxed)
    }

    /// What is remembered of a scope. A scope that is new to this node gets the revocations that were made for all.
    pub fn scope(&self, name: &str) -> Arc<ScopeMemory> {
        // Without the file, what is there already has to do.
        let mut state = match self.opened() {
            Ok(state) => state,
            Err(_) => self.state.lock(),
        };
        let (scope, entries) = state.scope(name, self.running_ms());
        // A failure is in the state's error, and the revocations stay for later as well.
        let _ = state.append(&entries, true);
        scope
    }

    /// Makes revocations, one for each target, in each of these scopes, which keep them for so long; and, if they are for
    /// everything, in the scopes that this node knows and has not open now, and for those that it does not know yet.
    /// Says why they would not outlive this process, if so.
    pub fn revoke(
        &self,
        scopes: &[(Arc<ScopeMemory>, u64)],
        is_for_all: bool,
        targets: &[Target],
    ) -> (Vec<Made>, Result<(), String>) {
        let (mut state, opened) = match self.opened() {
            Ok(state) => (state, Ok(())),
            Err(error) => (self.state.lock(), Err(error)),
        };
        let now_ms = self.running_ms();
        let longest_ms = scopes.iter().map(|(_, keep_ms)| *keep_ms).max();
        let mut meant = scopes.to_vec();
        let mut bytes = Vec::new();
        if is_for_all {
            let is_open = |name: &Arc<str>| scopes.iter().any(|(scope, _)| scope.name == *name);
            let closed = state.scopes.iter().filter(|(name, _)| !is_open(name));
            let keep_ms = longest_ms.unwrap_or(KEEP_FOR_LATER_MS);
            meant.extend(closed.map(|(_, scope)| (Arc::clone(scope), keep_ms)));
            let is_nowhere_else = meant.is_empty();
            let is_kept = |target: &&Target| is_nowhere_else || **target == Target::All;
            for target in targets.iter().filter(is_kept) {
                let expires_ms = now_ms.saturating_add(KEEP_FOR_LATER_MS);
                state.later.insert(target.clone(), expires_ms);
                Entry::Later(KEEP_FOR_LATER_MS, target).encode(&mut bytes);
            }
        }
        let mut made = Vec::new();
        for (scope, keep_ms) in meant {
            let number = state.number(&scope.name, &mut bytes);
            let ids = scope.change(|revocations| {
                let make = |target| revocations.make(target, now_ms.saturating_add(keep_ms));
                targets.iter().map(make).collect::<Vec<_>>()
            });
            for (id, target) in ids.iter().zip(targets) {
                Entry::Revocation(number, *id, keep_ms, target).encode(&mut bytes);
            }
            made.push(Made { scope, ids });
        }
        let written = state.append(&bytes, true);
        (made, opened.and(written))
    }

    /// Remembers revocations of a scope that were read, until `expires_ms`.
    pub fn note_read(&self, scope: &ScopeMemory, read: &[(RevocationId, Target)], keep_ms: u64) {
        let mut state = self.state.lock();
        let mut bytes = Vec::new();
        let number = state.number(&scope.name, &mut bytes);
        for (id, target) in read {
            Entry::Revocation(number, *id, keep_ms, target).encode(&mut bytes);
        }
        let _ = state.append(&bytes, true);
    }

    /// Remembers what a scope knows: what has expired or was given up.
    pub fn note_knowledge(&self, scope: &ScopeMemory) {
        let mut state = self.state.lock();
        let knowledge = scope.knowledge();
        let mut bytes = Vec::new();
        let number = state.number(&scope.name, &mut bytes);
        Entry::Statement(number, &knowledge).encode(&mut bytes);
        let _ = state.append(&bytes, false);
    }

    /// The identity of the scope's log, if it is at this location.
    pub fn log_identity(&self, scope: &ScopeMemory, location: &str) -> Option<LogIdentity> {
        let log = scope.log.lock();
        let log = log.as_ref().filter(|log| log.location == location);
        log.map(|log| log.identity)
    }

    /// Remembers the identity of the scope's log.
    pub fn note_log_identity(
        &self,
        scope: &ScopeMemory,
        location: &str,
        is_shared: bool,
        identity: LogIdentity,
    ) {
        let log = Remembered {
            location: location.into(),
            is_shared,
            identity,
        };
        let mut state = self.state.lock();
        let mut bytes = Vec::new();
        let number = state.number(&scope.name, &mut bytes);
        Entry::Log(number, &log).encode(&mut bytes);
        let _ = state.append(&bytes, true);
        *scope.log.lock() = Some(log);
    }

    /// Lets go of what has expired, notes the running time, and makes the file smaller if much of it is of no use. To be
    /// called now and then. Answers the scopes whose revocations have changed.
    pub fn tidy(&self) -> Vec<Arc<str>> {
        let mut state = self.state.lock();
        let now_ms = self.running_ms();
        state.later.retain(|_, expires_ms| *expires_ms > now_ms);
        let mut changed = Vec::new();
        for scope in state.scopes.values() {
            if scope.change(|revocations| revocations.expire(now_ms)) {
                changed.push(Arc::clone(&scope.name));
            }
        }
        if now_ms >= state.noted_ms + ELAPSED_STEP_MS {
            let _ = state.note_elapsed(now_ms);
        }
        let live_bytes = state.live() * ENTRY_BYTES;
        let is_large = |file: &SealedFile| file.bytes() > COMPACT_FROM_BYTES.max(2 * live_bytes);
        if state.file.as_ref().is_some_and(is_large) {
            let _ = state.compact(self.running_ms());
        }
        changed
    }

    fn opened(&self) -> Result<MutexGuard<'_, State>, String> {
        let mut state = self.state.lock();
        let Some(folder) = self.folder.as_ref().filter(|_| state.file.is_none()) else {
            return Ok(state);
        };
        let is_late = !state.scopes.is_empty();
        // Ages in the file count from its beginning.
        let mut elapsed_ms = 0;
        let mut names: HashMap<u32, Arc<str>> = HashMap::new();
        let mut damage = None;
        let opened = SealedFile::open(folder, FILE, |block| {
            let loaded = load(&mut state, &mut names, &mut elapsed_ms, block);
            damage = damage.take().or(loaded.err());
        });
        match opened {
            Ok(file) => {
                state.file = Some(file);
                state.error = damage.map(|what| format!("{}: {what}", folder.display()));
                self.running_offset_ms.fetch_add(elapsed_ms as i64, Relaxed);
                state.noted_ms = elapsed_ms;
                state.numbers = names.into_iter().map(|(number, name)| (name, number)).collect();
                if is_late {
                    self.late_loads.fetch_add(1, Relaxed);
                    // What was made meanwhile is not in the file yet.
                    let _ = state.compact(self.running_ms());
                }
                Ok(state)
            }
            Err(error) => {
                state.error = Some(error.0.clone());
                Err(error.0)
            }
        }
    }
}

impl Drop for NodeMemory {
    fn drop(&mut self) {
        let _ = self.state.lock().note_elapsed(self.running_ms());
    }
}

impl ScopeMemory {
    fn new(name: Arc<str>) -> Self {
        // Without a random number an origin could be another's: 0 is nobody's, and revocations stay in this node.
        let origin = u64::try_generate().unwrap_or_default();
        ScopeMemory {
            name,
            revocations: Mutex::new(Revocations::new(origin)),
            knowledge: RwLock::default(),
            log: Mutex::default(),
        }
    }

    /// Changes the revocations. The lock must not be held while anything waits for a disk or a server.
    pub fn change<R>(&self, change: impl FnOnce(&mut Revocations) -> R) -> R {
        let mut revocations = self.revocations.lock();
        let result = change(&mut revocations);
        *self.knowledge.write() = revocations.knowledge();
        result
    }

    /// The revocations, which nobody changes meanwhile. Their times are running time.
    pub fn revocations(&self) -> MutexGuard<'_, Revocations> {
        self.revocations.lock()
    }

    /// What is known. Never waits for long.
    pub fn knowledge(&self) -> Arc<Knowledge> {
        Arc::clone(&self.knowledge.read())
    }

    /// Whether it is remembered which log the scope has.
    pub fn has_log(&self) -> bool {
        self.log.lock().is_some()
    }

    /// Whether the scope's log is known to be this node's alone.
    pub fn has_own_log(&self) -> bool {
        self.log.lock().as_ref().is_some_and(|log| !log.is_shared)
    }
}

impl State {
    fn scope(&mut self, name: &str, now_ms: u64) -> (Arc<ScopeMemory>, Vec<u8>) {
        if let Some(scope) = self.scopes.get(name) {
            return (Arc::clone(scope), Vec::new());
        }
        let name: Arc<str> = name.into();
        let mut targets = self.later.clone();
        for scope in self.scopes.values() {
            // A whole scope may have been flushed without the others.
            scope.revocations().for_each(|_, target, expires_ms| {
                if target != Target::All {
                    targets.insert(target, expires_ms);
                }
            });
        }
        let scope = Arc::new(ScopeMemory::new(Arc::clone(&name)));
        self.scopes.insert(Arc::clone(&name), Arc::clone(&scope));
        let mut bytes = Vec::new();
        let number = self.number(&name, &mut bytes);
        scope.change(|revocations| {
            for (target, expires_ms) in &targets {
                let id = revocations.make(target, *expires_ms);
                let left_ms = expires_ms.saturating_sub(now_ms);
                Entry::Revocation(number, id, left_ms, target).encode(&mut bytes);
            }
        });
        (scope, bytes)
    }

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

    fn append(&mut self, entries: &[u8], is_synced: bool) -> Result<(), String> {
        if entries.is_empty() {
            return Ok(());
        }
        let Some(file) = &mut self.file else {
            return match &self.error {
                Some(error) => Err(error.clone()),
                None => Ok(()),
            };
        };
        let appended = file.append(entries, is_synced).map_err(|error| error.0);
        self.error = appended.clone().err();
        if appended.is_err() {
            // What names the scopes may be missing.
            self.numbers.clear();
        }
        appended
    }

    fn note_elapsed(&mut self, now_ms: u64) -> Result<(), String> {
        let mut bytes = Vec::new();
        Entry::Elapsed(now_ms - self.noted_ms.min(now_ms)).encode(&mut bytes);
        self.append(&bytes, false)?;
        self.noted_ms = now_ms;
        Ok(())
    }

    fn live(&self) -> u64 {
        let counts = self.scopes.values().map(|scope| scope.revocations.lock().len() as u64);
        counts.sum::<u64>() + self.later.len() as u64
    }

    fn compact(&mut self, now_ms: u64) -> Result<(), String> {
        let left = |expires_ms: u64| expires_ms.saturating_sub(now_ms);
        let mut blocks = Vec::new();
        let mut block = Vec::new();
        // Times in the file are from its beginning.
        Entry::Elapsed(now_ms).encode(&mut block);
        self.numbers.clear();
        for scope in self.scopes.clone().into_values() {
            let number = self.number(&scope.name, &mut block);
            if let Some(log) = &*scope.log.lock() {
                Entry::Log(number, log).encode(&mut block);
            }
            let mut revocations = scope.revocations.lock();
            Entry::Statement(number, &revocations.knowledge()).encode(&mut block);
            revocations.for_each(|id, target, expires_ms| {
                Entry::Revocation(number, id, left(expires_ms), &target).encode(&mut block);
                if block.len() >= BLOCK_BYTES {
                    blocks.push(std::mem::take(&mut block));
                }
            });
        }
        for (target, expires_ms) in &self.later {
            Entry::Later(left(*expires_ms), target).encode(&mut block);
        }
        blocks.push(block);
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let rewritten = file.rewrite(blocks.into_iter()).map_err(|error| error.0);
        self.error = rewritten.clone().err();
        self.noted_ms = now_ms;
        rewritten
    }
}

impl Entry<'_> {
    /// Adds it to a block: its length in four bytes, its kind, and the rest.
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
                    retired_keys: Vec::new(),
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
        }
        let length = (block.len() - at - 4) as u32;
        block[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
}

/// Takes over the entries of a block. Blocks are sealed: what makes no sense was written by another version.
fn load(
    state: &mut State,
    names: &mut HashMap<u32, Arc<str>>,
    elapsed_ms: &mut u64,
    mut block: &[u8],
) -> Result<(), &'static str> {
    const ODD: &str = "an entry makes no sense; was it written by another version?";
    while !block.is_empty() {
        let (length, rest) = block.split_first_chunk().ok_or(ODD)?;
        let (entry, rest) = rest
            .split_at_checked(u32::from_be_bytes(*length) as usize)
            .ok_or(ODD)?;
        block = rest;
        load_entry(state, names, elapsed_ms, entry).ok_or(ODD)?;
    }
    Ok(())
}

fn load_entry(
    state: &mut State,
    names: &mut HashMap<u32, Arc<str>>,
    elapsed_ms: &mut u64,
    entry: &[u8],
) -> Option<()> {
    let number = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
    let (kind, rest) = entry.split_first()?;
    match kind {
        5 => *elapsed_ms += number(rest)?,
        6 => {
            let (left, target) = rest.split_at_checked(8)?;
            let expires_ms = elapsed_ms.saturating_add(number(left)?);
            state.later.insert(Target::decode(target)?, expires_ms);
        }
        _ => {
            let (place, rest) = rest.split_first_chunk()?;
            let place = u32::from_be_bytes(*place);
            if *kind == 1 {
                let name: Arc<str> = std::str::from_utf8(rest).ok()?.into();
                names.insert(place, Arc::clone(&name));
                let scope = || Arc::new(ScopeMemory::new(Arc::clone(&name)));
                state.scopes.entry(Arc::clone(&name)).or_insert_with(scope);
                return Some(());
            }
            let scope = state.scopes.get(names.get(&place)?)?;
            match kind {
                2 => {
                    let (numbers, target) = rest.split_at_checked(24)?;
                    let id = RevocationId {
                        origin: number(&numbers[..8])?,
                        counter: number(&numbers[8..16])?,
                    };
                    let expires_ms = elapsed_ms.saturating_add(number(&numbers[16..])?);
                    let target = Target::decode(target)?;
                    scope.change(|revocations| revocations.learn(id, &target, expires_ms));
                }
                3 => {
                    let statement = Statement::decode(rest).ok()?;
                    scope.change(|revocations| revocations.learn_statement(&statement.knowledge));
                }
                4 => {
                    let (identity, rest) = rest.split_first_chunk()?;
                    let (is_shared, location) = rest.split_first()?;
                    *scope.log.lock() = Some(Remembered {
                        location: String::from_utf8(location.into()).ok()?,
                        is_shared: *is_shared != 0,
                        identity: *identity,
                    });
                }
                _ => return None,
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests;
