//! The thread that reads lists again when they change, and its events.

use crate::merge::{merge, Held};
use crate::source::{Change, Sources, LOST};
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use rekindle_core::{wall_s, IssuerHash, Lists};
use std::collections::{HashMap, HashSet};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// How often the thread checks the files.
const EVERY: Duration = Duration::from_millis(500);

/// The longest pause, if a check takes long.
const LONGEST_PAUSE: Duration = Duration::from_millis(1200);

const _: () = assert!(
    LONGEST_PAUSE.as_millis() <= 1500,
    "a change must be read within two seconds"
);

/// The pause is this many times as long as the check, within these bounds.
const SHARE: u32 = 20;

/// Most events that are kept until the next [`take_events`].
const MAX_EVENTS: usize = 1000;

/// The lists that stores have, by their paths, and the state of the files.
static OPEN: Lazy<Mutex<HashMap<Vec<PathBuf>, Open>>> = Lazy::new(Mutex::default);

static EVENTS: Lazy<Mutex<Vec<Event>>> = Lazy::new(Mutex::default);

struct Open {
    lists: Weak<Lists>,
    status: Arc<Mutex<Status>>,
}

/// An event of a file or a folder.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Event {
    /// Its path.
    pub path: PathBuf,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// Its lists were read.
    Read {
        /// How many lists it has.
        lists: usize,
        /// How many entries they have.
        entries: usize,
    },
    /// It can be read again.
    Recovered,
    /// It cannot be read.
    Failed {
        /// What is wrong with it.
        error: String,
        /// Whether it was read before. Those lists hold.
        is_known: bool,
    },
    /// It is no longer there. What was read from it holds.
    Gone,
    /// A list is too old.
    Ended {
        /// Its issuer's name in DER.
        issuer: Box<[u8]>,
        /// When a newer one was due, in seconds since 1970.
        next_update_s: u64,
    },
    /// There is a delta list of this issuer, but not the list that it changes.
    OnlyChanges {
        /// Its issuer's name in DER.
        issuer: Box<[u8]>,
    },
}

/// The state of the lists of some paths.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Whether the first attempt to read them is over.
    pub is_read: bool,
    /// Whether each path, and each file in the folders, was read at least once.
    pub is_complete: bool,
    /// The files and folders.
    pub files: Vec<FileStatus>,
}

/// The state of a file or a folder.
#[derive(Debug, Clone)]
pub struct FileStatus {
    /// Its path.
    pub path: PathBuf,
    /// The lists that hold.
    pub lists: Vec<Held>,
    /// What is wrong with it now.
    pub error: Option<String>,
    /// Whether it was read before. Those lists hold.
    pub is_known: bool,
}

/// Opens the lists in these files, and in the files of these folders. A thread reads them, and reads them again when they
/// change, until the last holder drops them. Fails if the system cannot start a thread.
pub fn open(paths: Vec<PathBuf>) -> std::io::Result<Arc<Lists>> {
    let mut open = OPEN.lock();
    open.retain(|_, open| open.lists.strong_count() > 0);
    if let Some(lists) = open.get(&paths).and_then(|open| open.lists.upgrade()) {
        return Ok(lists);
    }
    let (lists, status) = (Arc::new(Lists::new()), Arc::default());
    let watcher = Watcher {
        lists: Arc::downgrade(&lists),
        status: Arc::clone(&status),
        sources: Sources::new(paths.clone()),
        not_current: HashSet::new(),
    };
    let started = thread::Builder::new().name("rekindle-crl".into());
    started.spawn(move || watcher.run())?;
    let lists_of = Arc::downgrade(&lists);
    open.insert(
        paths,
        Open {
            lists: lists_of,
            status,
        },
    );
    Ok(lists)
}

impl Status {
    /// The state of all lists that stores have now.
    pub fn all() -> Vec<Status> {
        let open = OPEN.lock();
        let live = open.values().filter(|open| open.lists.strong_count() > 0);
        live.map(|open| open.status.lock().clone()).collect()
    }
}

/// Whether any store has lists.
pub fn are_any_open() -> bool {
    let open = OPEN.lock();
    open.values().any(|open| open.lists.strong_count() > 0)
}

/// The events since the last call, the oldest first.
pub fn take_events() -> Vec<Event> {
    std::mem::take(&mut *EVENTS.lock())
}

struct Watcher {
    lists: Weak<Lists>,
    status: Arc<Mutex<Status>>,
    sources: Sources,
    /// The events that were emitted for lists that are still not current. Each is emitted once.
    not_current: HashSet<Event>,
}

impl Watcher {
    fn run(mut self) {
        // If a defect ends the thread, the lists hold until they are too old.
        let _ = catch_unwind(AssertUnwindSafe(|| while self.turn() {}));
    }

    /// Checks the files once. `false` if no store has the lists any more.
    fn turn(&mut self) -> bool {
        let begun = Instant::now();
        let changes = self.sources.look();
        let Some(lists) = self.lists.upgrade() else {
            return false;
        };
        let is_complete = self.sources.is_complete();
        let is_news = {
            let status = self.status.lock();
            !changes.is_empty() || !status.is_read || status.is_complete != is_complete
        };
        if is_news {
            lists.publish(merge(&self.sources.lists(), is_complete));
            changes
                .into_iter()
                .for_each(|change| self.emit_change(change));
            *self.status.lock() = self.new_status(is_complete);
            // The buffers of the files were many times as large as the lists.
            rekindle_core::trim();
        }
        self.emit_not_current();
        drop(lists);
        thread::sleep((begun.elapsed() * SHARE).clamp(EVERY, LONGEST_PAUSE));
        true
    }

    fn new_status(&self, is_complete: bool) -> Status {
        let newest = self.sources.newest();
        let files = self.sources.files.iter();
        let files = files.map(|(path, file)| FileStatus {
            path: path.clone(),
            lists: file.held(&newest),
            error: self
                .sources
                .errors
                .get(path)
                .cloned()
                .or_else(|| file.error.clone()),
            is_known: file.is_known,
        });
        let others = self.sources.errors.iter();
        let others = others.filter(|(path, _)| !self.sources.files.contains_key(*path));
        let others = others.map(|(path, error)| FileStatus {
            path: path.clone(),
            lists: Vec::new(),
            error: Some(error.clone()),
            is_known: self.is_known(path),
        });
        Status {
            is_read: true,
            is_complete,
            files: others.chain(files).collect(),
        }
    }

    /// Whether this file, or a file in this folder, was read before.
    fn is_known(&self, path: &Path) -> bool {
        if let Some(file) = self.sources.files.get(path) {
            return file.is_known;
        }
        let mut files = self.sources.files.iter();
        files.any(|(name, file)| name.parent() == Some(path) && file.is_known)
    }

    /// Whether lists that were in this file still hold.
    fn lacks_list(&self, path: &Path) -> bool {
        let file = self.sources.files.get(path);
        file.is_some_and(|file| !file.lost.is_empty())
    }

    fn emit_change(&self, change: Change) {
        let lists = |path: &Path| {
            let file = self.sources.files.get(path);
            file.map_or(&[][..], |file| &file.lists)
        };
        let (path, kind) = match change {
            Change::Read(path) => {
                let entries = lists(&path).iter().map(|list| list.entries).sum();
                let lists = lists(&path).len();
                (path, EventKind::Read { lists, entries })
            }
            // Other lists have replaced those that are no longer in it.
            Change::Failed(path, error) if error == LOST && !self.lacks_list(&path) => return,
            Change::Failed(path, error) => {
                let is_known = self.is_known(&path);
                (path, EventKind::Failed { error, is_known })
            }
            Change::Recovered(path) => (path, EventKind::Recovered),
            // Another list has replaced it by now.
            Change::Gone(path) if !self.sources.files.contains_key(&path) => return,
            Change::Gone(path) => (path, EventKind::Gone),
        };
        emit(path, kind);
    }

    /// Emits an event for each list that is no longer current, unless another list for the same certificates is.
    fn emit_not_current(&mut self) {
        let now_s = wall_s();
        let newest = self.sources.newest();
        let files = self.sources.files.iter();
        let lists = files.flat_map(|(path, file)| {
            let held = file.held(&newest).into_iter();
            held.filter(|held| held.has_end)
                .map(move |held| (path, held.list))
        });
        let lists: Vec<_> = lists.collect();
        let whole = lists.iter().filter(|(_, list)| !list.is_delta);
        let with_whole: HashSet<IssuerHash> = whole.clone().map(|(_, list)| list.issuer).collect();
        let current = whole.filter(|(_, list)| list.next_update_s.is_none_or(|end| end >= now_s));
        let current: HashSet<_> = current.map(|(_, list)| (list.issuer, &list.part)).collect();
        let mut not_current = HashSet::new();
        for (path, list) in &lists {
            let issuer = list.issuer_name.clone();
            let kind = match list.is_delta {
                true if !with_whole.contains(&list.issuer) => EventKind::OnlyChanges { issuer },
                false if !current.contains(&(list.issuer, &list.part)) => EventKind::Ended {
                    issuer,
                    next_update_s: list.next_update_s.unwrap_or_default(),
                },
                _ => continue,
            };
            let path = path.to_path_buf();
            not_current.insert(Event { path, kind });
        }
        for event in not_current.difference(&self.not_current) {
            emit(event.path.clone(), event.kind.clone());
        }
        self.not_current = not_current;
    }
}

fn emit(path: PathBuf, kind: EventKind) {
    let mut events = EVENTS.lock();
    if events.len() < MAX_EVENTS {
        events.push(Event { path, kind });
    }
}
