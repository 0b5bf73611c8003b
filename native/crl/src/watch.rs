//! The thread that reads lists again when they change, and what it tells.

use crate::merge::merge;
use crate::source::{Change, Sources};
use crate::List;
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use rekindle_core::{wall_s, Lists};
use std::collections::{HashMap, HashSet};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// How often files are looked at.
const EVERY: Duration = Duration::from_millis(500);

/// Longest pause where a look takes long.
const LONGEST_PAUSE: Duration = Duration::from_millis(1200);

/// A look takes at most this part of the time.
const SHARE: u32 = 20;

/// Events that wait to be asked for.
const MAX_EVENTS: usize = 1000;

/// The lists of these paths that stores have, and what is known of their files.
static OPEN: Lazy<Mutex<HashMap<Vec<PathBuf>, Open>>> = Lazy::new(Mutex::default);

static EVENTS: Lazy<Mutex<Vec<Event>>> = Lazy::new(Mutex::default);

struct Open {
    lists: Weak<Lists>,
    status: Arc<Mutex<Status>>,
}

/// What happened to a file or a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its name.
    pub path: PathBuf,
    /// What it was.
    pub what: Happened,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happened {
    /// Its lists were read.
    Read {
        /// How many lists it has.
        lists: usize,
        /// How many entries they have.
        entries: usize,
    },
    /// It can be read again.
    Recovered,
    /// It cannot be read. `is_known` tells whether it was before, and holds.
    Failed {
        /// What is wrong with it.
        error: String,
        /// Whether it was read before. What was read then holds.
        is_known: bool,
    },
    /// It is not there any more. What was read of it holds.
    Gone,
    /// A list is too old.
    Ended {
        /// Its issuer's name in DER.
        issuer: Box<[u8]>,
        /// When there was to be a newer one, in seconds since 1970.
        next_update_s: u64,
    },
}

/// What is known of the lists of some paths.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Whether they were read once, as far as that was possible.
    pub is_read: bool,
    /// Whether all that there is to be was read at least once.
    pub is_complete: bool,
    /// The files and folders, by name.
    pub files: Vec<FileStatus>,
}

/// What is known of a file or a folder.
#[derive(Debug, Clone)]
pub struct FileStatus {
    /// Its name.
    pub path: PathBuf,
    /// The lists that hold.
    pub lists: Vec<Arc<List>>,
    /// What is wrong with it now.
    pub error: Option<String>,
    /// Whether it was read before. What was read then holds.
    pub is_known: bool,
}

/// The lists in these files, and in the files of these folders. A thread reads them, and again when they change, for as
/// long as somebody has them. An error is the system's, if it has no thread to give.
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
        ended: HashSet::new(),
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
    /// Of all lists that stores have now.
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

/// What happened since the last call, the oldest first.
pub fn take_events() -> Vec<Event> {
    std::mem::take(&mut *EVENTS.lock())
}

struct Watcher {
    lists: Weak<Lists>,
    status: Arc<Mutex<Status>>,
    sources: Sources,
    /// Lists of which it was told that they are too old.
    ended: HashSet<(PathBuf, Box<[u8]>, u64)>,
}

impl Watcher {
    fn run(mut self) {
        // If it ends by a defect, what was known holds until it is too old.
        let _ = catch_unwind(AssertUnwindSafe(|| while self.turn() {}));
    }

    /// `false` when nobody has the lists any more.
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
                .for_each(|change| self.tell_change(change));
            *self.status.lock() = self.new_status(is_complete);
            // What a file was read into is many times what is kept of it.
            rekindle_core::give_back();
        }
        self.tell_ended();
        drop(lists);
        thread::sleep((begun.elapsed() * SHARE).clamp(EVERY, LONGEST_PAUSE));
        true
    }

    fn new_status(&self, is_complete: bool) -> Status {
        let files = self.sources.files.iter();
        let files = files.map(|(path, file)| FileStatus {
            path: path.clone(),
            lists: file.lists.clone(),
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

    /// Whether a file, or one in this folder, was read before.
    fn is_known(&self, path: &Path) -> bool {
        let is_in = |file: &Path| file == path || file.parent() == Some(path);
        let mut files = self.sources.files.iter();
        files.any(|(name, file)| is_in(name) && file.is_known)
    }

    fn tell_change(&self, change: Change) {
        let lists = |path: &Path| {
            let file = self.sources.files.get(path);
            file.map_or(&[][..], |file| &file.lists)
        };
        let (path, what) = match change {
            Change::Read(path) => {
                let entries = lists(&path).iter().map(|list| list.entries).sum();
                let lists = lists(&path).len();
                (path, Happened::Read { lists, entries })
            }
            Change::Failed(path, error) => {
                let is_known = self.is_known(&path);
                (path, Happened::Failed { error, is_known })
            }
            Change::Recovered(path) => (path, Happened::Recovered),
            // Others may say the same by now.
            Change::Gone(path) if !self.sources.files.contains_key(&path) => return,
            Change::Gone(path) => (path, Happened::Gone),
        };
        tell(path, what);
    }

    /// Once for each list that is too old now, if no other list of its issuer is newer.
    fn tell_ended(&mut self) {
        let now_s = wall_s();
        let files = &self.sources.files;
        let is_over = |list: &List| list.next_update_s.is_some_and(|end| end < now_s);
        let is_replaced = |list: &List| {
            let mut others = files.values().flat_map(|file| &file.lists);
            others.any(|other| {
                (other.issuer, &other.part) == (list.issuer, &list.part)
                    && !other.is_delta
                    && !is_over(other)
            })
        };
        let mut ended = HashSet::new();
        for (path, file) in files {
            for list in file
                .lists
                .iter()
                .filter(|list| !list.is_delta && is_over(list))
            {
                if !is_replaced(list) {
                    let next_update_s = list.next_update_s.unwrap_or_default();
                    ended.insert((path.clone(), list.issuer_name.clone(), next_update_s));
                }
            }
        }
        for (path, issuer, next_update_s) in ended.difference(&self.ended) {
            let (issuer, next_update_s) = (issuer.clone(), *next_update_s);
            tell(
                path.clone(),
                Happened::Ended {
                    issuer,
                    next_update_s,
                },
            );
        }
        self.ended = ended;
    }
}

fn tell(path: PathBuf, what: Happened) {
    let mut events = EVENTS.lock();
    if events.len() < MAX_EVENTS {
        events.push(Event { path, what });
    }
}
