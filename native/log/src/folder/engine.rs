//! The one database of a folder: opens it, checks its files, and decides what to do when they fail.

use super::tables;
use crate::place::{self, Lock};
use once_cell::sync::{Lazy, OnceCell};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::collections::{HashMap, VecDeque};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::LogError;

/// The subfolder with the database's files.
const FILES: &str = "log-2";
const DATABASE: &str = "records.sqlite";
/// The subfolder of the former format.
const FORMER_FILES: &str = "log";
/// The lock file: the process that has the folder open holds it.
const LOCK: &str = "lock";
/// The name of a damaged log. A number behind it tells their order.
const DAMAGED: &str = "log-2.damaged-";
const DAMAGED_KEPT: usize = 2;

/// The engines in use, by the canonical paths of their folders. There is one engine, and so one lock, per folder.
static ENGINES: Lazy<Mutex<HashMap<PathBuf, Weak<Engine>>>> = Lazy::new(Mutex::default);

/// A folder as the caller named it, and its engine from the first use on.
pub(super) struct Handle {
    pub(super) asked: PathBuf,
    engine: OnceCell<Arc<Engine>>,
}

impl Handle {
    pub(super) fn new(asked: PathBuf) -> Self {
        Handle {
            asked,
            engine: OnceCell::new(),
        }
    }

    /// Calls `work` with the log. Nobody else uses the log in the meantime. `task` completes the error "cannot … the
    /// log".
    pub(super) fn with<R>(
        &self,
        task: &str,
        work: impl FnOnce(&mut Open) -> Result<R, Failure>,
    ) -> Result<R, LogError> {
        self.on_engine(task, |engine| engine.with(&mut engine.state.lock(), work))
    }

    /// Removes the log if `is_spent`. It may have filled the disk, and dropping records one by one would need room.
    pub(super) fn remove_if(
        &self,
        task: &str,
        is_spent: impl FnOnce(&mut Open) -> Result<bool, Failure>,
    ) -> Result<(), LogError> {
        self.on_engine(task, |engine| {
            let state = &mut engine.state.lock();
            if engine.with(state, is_spent)? {
                state.open = None;
                fs::remove_dir_all(engine.path.join(FILES))
                    .map_err(|error| format!("cannot remove it: {error}"))?;
                state.lock = None;
            }
            Ok(())
        })
    }

    /// The oldest notice for the operator.
    pub(super) fn take_notice(&self) -> Option<String> {
        self.engine.get()?.state.lock().notices.pop_front()
    }

    pub(super) fn bytes(&self, scope: &str) -> Option<u64> {
        self.engine.get()?.state.lock().bytes.get(scope).copied()
    }

    pub(super) fn set_bytes(&self, bytes: HashMap<String, u64>) {
        if let Some(engine) = self.engine.get() {
            engine.state.lock().bytes = bytes;
        }
    }

    fn on_engine<R>(
        &self,
        task: &str,
        work: impl FnOnce(&Engine) -> Result<R, String>,
    ) -> Result<R, LogError> {
        let log_error = |path: &Path, why| {
            LogError(format!(
                "cannot {task} the log in {}: {why}",
                path.display()
            ))
        };
        let engine = self.engine().map_err(|why| log_error(&self.asked, why))?;
        work(engine).map_err(|why| log_error(&engine.path, why))
    }

    fn engine(&self) -> Result<&Arc<Engine>, String> {
        self.engine.get_or_try_init(|| {
            place::make_folder(&self.asked)?;
            let path = self
                .asked
                .canonicalize()
                .map_err(|error| format!("cannot find the folder: {error}"))?;
            let mut engines = ENGINES.lock();
            engines.retain(|_, engine| engine.strong_count() > 0);
            let known = engines.get(&path).and_then(Weak::upgrade);
            Ok(known.unwrap_or_else(|| {
                let engine = Arc::new(Engine {
                    path: path.clone(),
                    state: Mutex::default(),
                });
                engines.insert(path, Arc::downgrade(&engine));
                engine
            }))
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // The next caller who opens the folder must find either this engine or a lock that was released.
        let _engines = ENGINES.lock();
        self.engine.take();
    }
}

struct Engine {
    /// Without symbolic links.
    path: PathBuf,
    state: Mutex<State>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(open) = &mut self.state.get_mut().open {
            // If this fails, records only stay a little longer.
            let _ = open
                .check()
                .and_then(|()| tables::store_clock(&open.db, open.clock.now_ms()));
        }
    }
}

/// The database, if it is open, and its lock. They are dropped in this order.
#[derive(Default)]
struct State {
    open: Option<Open>,
    lock: Option<Lock>,
    notices: VecDeque<String>,
    has_looked_for_former: bool,
    /// The clock when the database was last closed. It continues when the database is opened again.
    clock: Option<Clock>,
    /// How many new logs this process has begun in this folder.
    begun: u64,
    /// What each scope took when it was last trimmed.
    bytes: HashMap<String, u64>,
}

pub(super) struct Open {
    pub(super) db: Connection,
    pub(super) clock: Clock,
    /// Distinguishes this log from one that was here before.
    pub(super) generation: u64,
    /// The folder, and its subfolder with the files.
    folders: [PathBuf; 2],
    /// The database, and its write-ahead log.
    files: [PathBuf; 2],
    /// How the last use left them, if they existed.
    left: [Option<Left>; 2],
    is_synced: bool,
}

const WRITE_AHEAD: usize = 1;

struct Left {
    inode: u64,
    bytes: u64,
}

/// The total time that the log has been open.
#[derive(Clone, Copy)]
pub(super) struct Clock {
    base_ms: i64,
    since: Instant,
}

impl Clock {
    fn from(base_ms: i64) -> Self {
        Clock {
            base_ms,
            since: Instant::now(),
        }
    }

    pub(super) fn now_ms(&self) -> i64 {
        let passed_ms = self.since.elapsed().as_millis();
        let passed_ms = i64::try_from(passed_ms).unwrap_or(i64::MAX);
        self.base_ms.saturating_add(passed_ms)
    }
}

impl Open {
    /// Fails if the files are not as the last use left them, except for being longer, or if others can write to them.
    ///
    /// If a file is cut short during a use, that use can make it as long as before. Then the database, which SQLite
    /// rarely writes to, is empty, or the write-ahead log begins with zeros.
    fn check(&self) -> Result<(), Failure> {
        const CUT_SHORT: &str = "somebody has replaced its files, or cut them short";
        for (path, left) in self.files.iter().zip(&self.left) {
            let found = look(path)?;
            if let Some(found) = &found {
                place::check_rights(path, found).map_err(Failure::Place)?;
            }
            let Some(left) = left else {
                continue;
            };
            match found {
                Some(found) if found.ino() == left.inode && found.len() >= left.bytes => {}
                Some(_) => return Err(Failure::Damage(CUT_SHORT.into())),
                None => return Err(Failure::Removed),
            }
        }
        let [database, write_ahead] = &self.left;
        let is_cut = match database {
            Some(database) => database.bytes == 0,
            None => return Err(Failure::Removed),
        };
        let is_refilled = write_ahead.as_ref().is_some_and(|left| left.bytes > 0)
            && begins_with_zeros(&self.files[WRITE_AHEAD]).map_err(failed("look at its files"))?;
        if is_cut || is_refilled {
            return Err(Failure::Damage(CUT_SHORT.into()));
        }
        for folder in &self.folders {
            place::check_folder(folder).map_err(Failure::Place)?;
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Failure> {
        for (path, left) in self.files.iter().zip(&mut self.left) {
            *left = look(path)?.map(|found| Left {
                inode: found.ino(),
                bytes: found.len(),
            });
        }
        Ok(())
    }

    /// Notes a commit, which [`sync`](Self::sync) then writes to the disk.
    pub(super) fn has_appended(&mut self) {
        self.is_synced = false;
    }

    pub(super) fn sync(&mut self) -> Result<(), Failure> {
        if !self.is_synced {
            // Commits that are no longer in this file are in the database, which SQLite synced when it moved them.
            File::open(&self.files[WRITE_AHEAD])
                .and_then(|file| file.sync_data())
                .map_err(failed("write to the disk"))?;
            self.is_synced = true;
        }
        Ok(())
    }
}

/// Not for the database: to close another handle of that would unlock it.
fn begins_with_zeros(path: &Path) -> io::Result<bool> {
    let mut beginning = [0; 4];
    let read = File::open(path)?.read(&mut beginning)?;
    Ok(beginning[..read] == [0; 4][..read])
}

/// The metadata of a file, if it exists.
fn look(path: &Path) -> Result<Option<fs::Metadata>, Failure> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::Io("look at its files", error)),
    }
}

impl Engine {
    /// Opens the log if necessary, and calls `work` with it. Returns the reason if either failed.
    fn with<R>(
        &self,
        state: &mut State,
        work: impl FnOnce(&mut Open) -> Result<R, Failure>,
    ) -> Result<R, String> {
        let worked = self.opened(state).and_then(|open| {
            let result = work(open)?;
            open.leave()?;
            Ok(result)
        });
        worked.map_err(|failure| {
            state.open = None;
            let reason = if failure.is_damage(&self.path) {
                let reason = self.move_aside(&failure.reason());
                let notice = format!("the log in {}: {reason}", self.path.display());
                state.notices.push_back(notice);
                reason
            } else {
                failure.reason()
            };
            state.lock = None;
            reason
        })
    }

    fn opened<'a>(&self, state: &'a mut State) -> Result<&'a mut Open, Failure> {
        match state.open {
            Some(ref mut open) => open.check().map(|()| open),
            None => {
                place::make_folder(&self.path).map_err(Failure::Place)?;
                place::check_folder(&self.path).map_err(Failure::Place)?;
                let files = self.path.join(FILES);
                place::make_folder(&files).map_err(Failure::Place)?;
                place::check_folder(&files).map_err(Failure::Place)?;
                // A lock from before would be in the way.
                state.lock = None;
                let lock = place::lock(&self.path.join(LOCK)).map_err(Failure::Place)?;
                state.lock = Some(lock.ok_or(Failure::InUse)?);
                self.look_for_former(state);
                let (db, is_new) = open(&files)?;
                state.begun += u64::from(is_new);
                let stored = Clock::from(tables::clock_ms(&db)?);
                let clock = match state.clock {
                    Some(clock) if clock.now_ms() > stored.base_ms => clock,
                    _ => stored,
                };
                state.clock = Some(clock);
                let path = files.join(DATABASE);
                let mut open = Open {
                    db,
                    clock,
                    generation: state.begun,
                    files: [path, write_ahead(&files)],
                    folders: [self.path.clone(), files],
                    left: [None, None],
                    is_synced: false,
                };
                open.leave()?;
                Ok(state.open.insert(open))
            }
        }
    }

    fn look_for_former(&self, state: &mut State) {
        if std::mem::replace(&mut state.has_looked_for_former, true) {
            return;
        }
        let files = self.path.join(FORMER_FILES);
        if !files.join(DATABASE).exists() {
            return;
        }
        let entries = fs::read_dir(&files).into_iter().flatten().flatten();
        let sizes = entries.filter_map(|entry| Some(entry.metadata().ok()?.len()));
        state.notices.push_back(format!(
            "{} is a log of a former format, which is not read ({} bytes); it can be deleted",
            files.display(),
            sizes.sum::<u64>()
        ));
    }

    /// Moves a damaged log aside, to make room for a new one. Returns a line about it.
    fn move_aside(&self, damage: &str) -> String {
        let mut kept = self.kept_damage();
        let newest = kept.last().map_or(0, |(number, _)| *number);
        let name = format!("{DAMAGED}{}", newest.saturating_add(1));
        if let Err(error) = fs::rename(self.path.join(FILES), self.path.join(&name)) {
            return format!("it is damaged ({damage}) and cannot be moved aside: {error}");
        }
        kept.truncate((kept.len() + 1).saturating_sub(DAMAGED_KEPT));
        for (_, path) in kept {
            // If this fails, it is tried again at the next damage.
            let _ = fs::remove_dir_all(path);
        }
        format!("it was damaged ({damage}), is kept as {name}, and a new one is begun")
    }

    /// The logs that were moved aside, the oldest first, with their numbers.
    fn kept_damage(&self) -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut kept: Vec<_> = entries
            .filter_map(|entry| {
                let name = entry.file_name();
                let number = name.to_str()?.strip_prefix(DAMAGED)?.parse().ok()?;
                Some((number, entry.path()))
            })
            .collect();
        kept.sort_unstable();
        kept
    }
}

/// Opens the database. Returns whether it is new.
fn open(files: &Path) -> Result<(Connection, bool), Failure> {
    let path = files.join(DATABASE);
    check_writable(files).map_err(failed("open the database"))?;
    for file in [path.clone(), write_ahead(files)] {
        if let Some(found) = look(&file)? {
            place::check_rights(&file, &found).map_err(Failure::Place)?;
        }
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(&path, flags)?;
    db.set_prepared_statement_cache_capacity(64);
    // The exclusive mode comes first. It keeps the index of the write-ahead log out of shared memory, where others
    // could change it, or truncate it and so kill the process.
    db.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE;
         PRAGMA synchronous = NORMAL;
         PRAGMA cache_size = -4096;
         PRAGMA temp_store = MEMORY;
         PRAGMA cell_size_check = ON;
         PRAGMA trusted_schema = OFF;",
    )?;
    let layout: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if layout == 0 {
        // This must come before anything is in the file. Later it would be a write, for which there may be no room.
        db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    db.pragma_update(None, "journal_mode", "WAL")?;
    match layout {
        tables::LAYOUT => {}
        0 => {
            tables::create(&mut db)?;
            File::open(files)
                .and_then(|folder| folder.sync_all())
                .map_err(failed("write to the disk"))?;
        }
        other => {
            return Err(Failure::Damage(format!(
                "its layout is {other}, not {}",
                tables::LAYOUT
            )))
        }
    }
    Ok((db, layout == 0))
}

/// Without this check, SQLite would go on without the right to write, and report it in the same way as damage.
fn check_writable(files: &Path) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).mode(0o600);
    match options.open(write_ahead(files)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => options.create(true).open(files.join(DATABASE)).map(drop),
    }
}

fn write_ahead(files: &Path) -> PathBuf {
    files.join(format!("{DATABASE}-wal"))
}

fn failed(tried: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| Failure::Io(tried, error)
}

/// Why the log could not be used.
pub(super) enum Failure {
    Engine(rusqlite::Error),
    /// What was tried, and the error.
    Io(&'static str, io::Error),
    /// The folder or a file cannot be made or locked, or others can use it as well.
    Place(String),
    InUse,
    Removed,
    Damage(String),
}

impl Failure {
    pub(super) fn reason(&self) -> String {
        match self {
            Failure::Engine(error) => match error.sqlite_error() {
                // SQLite's text says little; the code says where it failed.
                Some(code) => format!("{error} (SQLite {})", code.extended_code),
                None => error.to_string(),
            },
            Failure::Io(tried, error) => format!("cannot {tried}: {error}"),
            Failure::InUse => "it is in use by another process".into(),
            Failure::Removed => "somebody has removed its files".into(),
            Failure::Place(what) | Failure::Damage(what) => what.clone(),
        }
    }

    /// Whether the disk had no room for it.
    pub(super) fn is_full(&self) -> bool {
        match self {
            Failure::Engine(error) => error.sqlite_error_code() == Some(ErrorCode::DiskFull),
            _ => false,
        }
    }

    /// Whether the files are damaged, so that retrying cannot help.
    fn is_damage(&self, folder: &Path) -> bool {
        let error = match self {
            Failure::Engine(error) => error,
            Failure::Damage(_) => return true,
            Failure::Io(..) | Failure::Place(_) | Failure::InUse | Failure::Removed => {
                return false
            }
        };
        // Other errors mean values or tables that Rekindle has not written.
        let Some(error) = error.sqlite_error() else {
            return true;
        };
        match error.code {
            // A damaged byte in the file can cause this error as well.
            ErrorCode::ReadOnly => check_writable(&folder.join(FILES)).is_ok(),
            ErrorCode::PermissionDenied
            | ErrorCode::OperationAborted
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::OutOfMemory
            | ErrorCode::OperationInterrupted
            | ErrorCode::SystemIoFailure
            | ErrorCode::DiskFull
            | ErrorCode::CannotOpen
            | ErrorCode::FileLockingProtocolFailed
            | ErrorCode::NoLargeFileSupport
            | ErrorCode::AuthorizationForStatementDenied => false,
            _ => true,
        }
    }
}

impl From<rusqlite::Error> for Failure {
    fn from(error: rusqlite::Error) -> Self {
        Failure::Engine(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_cut_short_during_a_use_are_set_aside() {
        let fill = |open: &mut Open| {
            let sql = "CREATE TABLE IF NOT EXISTS t (v); INSERT INTO t VALUES (zeroblob(20000))";
            open.db.execute_batch(sql).map_err(Failure::from)
        };
        for which in [0, WRITE_AHEAD] {
            let folder = tempfile::TempDir::new().unwrap();
            let handle = Handle::new(folder.path().into());
            handle.with("write to", fill).unwrap();
            let cut = |open: &mut Open| {
                let file = File::options().write(true).open(&open.files[which]);
                file.unwrap().set_len(0).unwrap();
                fill(open)
            };
            handle.with("write to", cut).unwrap();
            let error = handle.with("write to", fill).unwrap_err();
            assert!(error.0.contains("cut them short"), "{}", error.0);
            assert!(handle.take_notice().is_some());
            handle.with("write to", fill).unwrap();
        }
    }
}
