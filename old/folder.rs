//! The log in a folder, for one node: an SQLite database that this process alone has open.
//!
//! With a million records of 250 bytes, in batches of 50 to 500 and an fsync every 200 ms, SQLite wrote
//! 270,000 records/s (3 s of CPU, 700 MB written, 280 MB kept) and read 2,400,000/s newest first; dropping half
//! of them took a second, and memory peaked at 8 MB. fjall 2.11 wrote 100,000/s (2.3 s of CPU, 530 MB written),
//! with a stall of half a second, three threads and 33 MB; a damaged byte of its smaller files keeps it shut, it
//! lets a second process in, and its next major version needs a newer Rust. redb 2.6 wrote 170,000/s, but to
//! drop 50,000 of 100,000 records it took three seconds, wrote 780 MB and made a file of 50 MB one of 830 MB. LMDB was
//! not tried: it maps its file, so that a truncated one or a full disk can end the node.
//!
//! - A commit is in the write-ahead log, and so outlives the process. [`sync`](LogWriter::sync) makes it outlive
//!   a power cut; the engine itself does at each checkpoint.
//! - The number of a record is the microsecond it was appended at, or the next free one. So age is a range.
//! - After any error the database is closed, and opened again by the next call.
//! - The engine goes on with files that somebody else has removed or cut short: what it then writes is gone with the
//!   process. So they are looked at before each use, two `stat`s a batch.

use crate::log::{Lane, LogError, LogReader, LogWriter, Record};
use once_cell::sync::{Lazy, OnceCell};
use parking_lot::Mutex;
use rusqlite::{params, Connection, ErrorCode, OpenFlags, OptionalExtension};
use rustix::fs::{flock, FlockOperation};
use std::collections::HashMap;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the engine's files are, in the folder.
const FILES: &str = "log";
const DATABASE: &str = "records.sqlite";
/// Held by the one process that has the folder open.
const LOCK: &str = "lock";
/// What a damaged log is called, with the second it was moved aside at behind it.
const DAMAGED: &str = "log.damaged-";
const DAMAGED_KEPT: usize = 2;

/// Another arrangement of the tables has another number.
const LAYOUT: i64 = 1;
const TABLES: &str = "
    CREATE TABLE scope (id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, keep_us INTEGER) STRICT;
    CREATE TABLE record (
        scope INTEGER NOT NULL, lane INTEGER NOT NULL, seq INTEGER NOT NULL, sealed BLOB NOT NULL,
        PRIMARY KEY (scope, lane, seq)
    ) STRICT, WITHOUT ROWID;";

/// How long a trim may take. What is left is for the next one.
const TRIM: Duration = Duration::from_secs(3);
/// How many records are dropped, and pages given back, before others have a turn: some milliseconds.
const DROPPED_AT_ONCE: usize = 2000;
const PAGES_AT_ONCE: i64 = 1024;
/// Free pages that are never given back: the next records need them.
const SPARE_PAGES: i64 = 256;

/// A log in a folder, of all scopes that have theirs there. It stays open until this, and all writers and
/// readers, of every `Folder` for the same place, are gone.
pub struct Folder {
    asked: PathBuf,
    engine: OnceCell<Arc<Engine>>,
}

/// The engines in use, by the true paths of their folders: of an engine and its lock there can only be one.
static ENGINES: Lazy<Mutex<HashMap<PathBuf, Weak<Engine>>>> = Lazy::new(Mutex::default);

impl Folder {
    /// The log in a folder. It is made or opened when it is first used.
    pub fn at(path: impl Into<PathBuf>) -> Arc<Self> {
        Arc::new(Folder {
            asked: path.into(),
            engine: OnceCell::new(),
        })
    }

    /// A scope's end to write to.
    pub fn writer(self: &Arc<Self>, scope: impl AsRef<[u8]>) -> FolderWriter {
        FolderWriter {
            folder: Arc::clone(self),
            scope: scope.as_ref().into(),
        }
    }

    /// A scope's end to read from.
    pub fn reader(self: &Arc<Self>, scope: impl AsRef<[u8]>) -> FolderReader {
        FolderReader {
            folder: Arc::clone(self),
            scope: scope.as_ref().into(),
            before: HashMap::new(),
        }
    }

    /// That the log was damaged, in words for an operator; once, to whichever scope asks first.
    pub fn take_damage(&self) -> Option<String> {
        self.engine.get()?.state.lock().damage.take()
    }

    /// Does something with the log, which no one else uses meanwhile. `task` is what, as in "cannot … the log".
    fn with<R>(
        &self,
        task: &str,
        work: impl FnOnce(&mut Open) -> Result<R, Failure>,
    ) -> Result<R, LogError> {
        self.on_engine(task, |engine| engine.with(&mut engine.state.lock(), work))
    }

    /// Does away with the log if that is so.
    fn remove_if(
        &self,
        task: &str,
        so: impl FnOnce(&mut Open) -> Result<bool, Failure>,
    ) -> Result<(), LogError> {
        self.on_engine(task, |engine| {
            let state = &mut engine.state.lock();
            if engine.with(state, so)? {
                state.open = None;
                fs::remove_dir_all(engine.path.join(FILES))
                    .map_err(|error| format!("cannot remove it: {error}"))?;
                state.lock = None;
            }
            Ok(())
        })
    }

    fn on_engine<R>(
        &self,
        task: &str,
        work: impl FnOnce(&Engine) -> Result<R, String>,
    ) -> Result<R, LogError> {
        let told = |path: &Path, why| {
            LogError(format!(
                "cannot {task} the log in {}: {why}",
                path.display()
            ))
        };
        let engine = self
            .engine()
            .map_err(|failure| told(&self.asked, failure.reason()))?;
        work(engine).map_err(|why| told(&engine.path, why))
    }

    fn engine(&self) -> Result<&Arc<Engine>, Failure> {
        self.engine.get_or_try_init(|| {
            make_folder(&self.asked)?;
            let path = self
                .asked
                .canonicalize()
                .map_err(failed("find the folder"))?;
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

impl Drop for Folder {
    fn drop(&mut self) {
        // Whoever opens the folder next finds this engine, or its lock released: nothing between.
        let _engines = ENGINES.lock();
        self.engine.take();
    }
}

/// Where a scope's records go.
pub struct FolderWriter {
    folder: Arc<Folder>,
    scope: Box<[u8]>,
}

impl LogWriter for FolderWriter {
    fn append(&mut self, lane: Lane, records: &[Record]) -> Result<(), LogError> {
        self.folder.with("append to", |open| {
            let append = open.db.transaction()?;
            append
                .prepare_cached("INSERT INTO scope (name) VALUES (?) ON CONFLICT DO NOTHING")?
                .execute([&self.scope])?;
            let scope = scope_id(&append, &self.scope)?;
            let mut seq = now_us().max(end(&append, scope, lane)?);
            let mut insert = append.prepare_cached("INSERT INTO record VALUES (?, ?, ?, ?)")?;
            for record in records {
                insert.execute(params![scope, number(lane), seq, record])?;
                seq = seq.saturating_add(1);
            }
            drop(insert);
            append.commit()?;
            open.is_synced = false;
            Ok(())
        })
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.folder.with("sync", |open| {
            if !open.is_synced {
                // What is not in this file is in the database, which was synced when it got there.
                File::open(&open.files[WRITE_AHEAD])
                    .and_then(|file| file.sync_data())
                    .map_err(failed("write to the disk"))?;
                open.is_synced = true;
            }
            Ok(())
        })
    }

    /// A log of which nothing is to be kept is removed: it may have filled the disk, and to drop records from it
    /// would need room.
    ///
    /// In all scopes: those that nobody opens any more have their records dropped as well, by the age that they
    /// last asked for. What is from the future, by as much, is from a clock that was wrong.
    fn trim(&mut self, keep: Duration) -> Result<(), LogError> {
        let begun = Instant::now();
        let keep_us = micros(keep);
        self.folder.remove_if("trim", |open| {
            is_spent(&open.db, &scopes(&open.db, &self.scope, keep_us)?)
        })?;
        let scopes = self.folder.with("trim", |open| {
            open.db
                .prepare_cached(
                    "INSERT INTO scope (name, keep_us) VALUES (?1, ?2)
                     ON CONFLICT DO UPDATE SET keep_us = ?2 WHERE keep_us IS NOT ?2",
                )?
                .execute(params![self.scope, keep_us])?;
            scopes(&open.db, &self.scope, keep_us)
        })?;
        for (scope, keep_us) in scopes {
            let (first, last) = kept(keep_us);
            let (aged, ahead) = ((i64::MIN, first - 1), (last + 1, i64::MAX));
            for (lane, (from, to)) in LANES
                .into_iter()
                .flat_map(|lane| [(lane, aged), (lane, ahead)])
            {
                let mut dropped = DROPPED_AT_ONCE;
                while dropped >= DROPPED_AT_ONCE {
                    if begun.elapsed() >= TRIM {
                        return Ok(());
                    }
                    dropped = self
                        .folder
                        .with("trim", |open| drop_some(&open.db, scope, lane, from, to))?;
                }
            }
        }
        self.folder.with("trim", |open| {
            open.db
                .prepare_cached(
                    "DELETE FROM scope WHERE NOT EXISTS (SELECT 1 FROM record WHERE scope = scope.id)",
                )?
                .execute([])?;
            Ok(())
        })?;
        while begun.elapsed() < TRIM && self.folder.with("trim", |open| give_back(&open.db))? {}
        Ok(())
    }

    fn take_notice(&mut self) -> Option<String> {
        self.folder.take_damage()
    }
}

/// Where a scope's records come from.
pub struct FolderReader {
    folder: Arc<Folder>,
    scope: Box<[u8]>,
    /// The number that all records still to be read are below, by lane.
    before: HashMap<Lane, i64>,
}

impl LogReader for FolderReader {
    fn mark(&mut self) -> Result<(), LogError> {
        self.before = self.folder.with("read", |open| {
            let Some(scope) = scope_id(&open.db, &self.scope).optional()? else {
                return Ok(HashMap::new());
            };
            LANES
                .into_iter()
                .map(|lane| Ok((lane, end(&open.db, scope, lane)?)))
                .collect()
        })?;
        Ok(())
    }

    fn older(&mut self, lane: Lane, limit: usize) -> Result<Vec<Record>, LogError> {
        let Some(before) = self.before.get_mut(&lane) else {
            return Ok(Vec::new());
        };
        let (records, next) = self.folder.with("read", |open| {
            let mut records = Vec::new();
            let mut next = *before;
            let Some(scope) = scope_id(&open.db, &self.scope).optional()? else {
                return Ok((records, next));
            };
            let mut select = open.db.prepare_cached(
                "SELECT seq, sealed FROM record WHERE scope = ? AND lane = ? AND seq < ?
                 ORDER BY seq DESC LIMIT ?",
            )?;
            let mut rows = select.query(params![scope, number(lane), next, limit as i64])?;
            while let Some(row) = rows.next()? {
                let seq: i64 = row.get(0)?;
                // Otherwise a damaged page could be met for ever.
                if seq >= next {
                    return Err(Failure::Damage("records are out of order".into()));
                }
                next = seq;
                records.push(row.get(1)?);
            }
            Ok((records, next))
        })?;
        *before = next;
        Ok(records)
    }

    /// Nobody else writes to it: nothing is ever new.
    fn newer(&mut self, _limit: usize, wait: Duration) -> Result<Vec<(Lane, Record)>, LogError> {
        thread::sleep(wait);
        Ok(Vec::new())
    }
}

// ---- tables ----

const LANES: [Lane; 2] = [Lane::Control, Lane::Births];

fn number(lane: Lane) -> i64 {
    match lane {
        Lane::Control => 0,
        Lane::Births => 1,
    }
}

fn scope_id(db: &Connection, name: &[u8]) -> rusqlite::Result<i64> {
    db.prepare_cached("SELECT id FROM scope WHERE name = ?")?
        .query_row([name], |row| row.get(0))
}

/// Each scope, with the microseconds that its records are kept: what it asks for now, or did last; the longest
/// that any did where it never has.
fn scopes(db: &Connection, asking: &[u8], keep_us: i64) -> Result<Vec<(i64, i64)>, Failure> {
    let mut select = db.prepare_cached(
        "SELECT id, CASE name WHEN ?1 THEN ?2
                    ELSE coalesce(keep_us, (SELECT max(keep_us) FROM scope), ?2) END
         FROM scope",
    )?;
    let scopes = select.query_map(params![asking, keep_us], |row| {
        Ok((row.get(0)?, row.get(1)?))
    })?;
    Ok(scopes.collect::<Result<_, _>>()?)
}

/// The number behind that of a lane's last record.
fn end(db: &Connection, scope: i64, lane: Lane) -> rusqlite::Result<i64> {
    let last: Option<i64> = db
        .prepare_cached("SELECT max(seq) FROM record WHERE scope = ? AND lane = ?")?
        .query_row([scope, number(lane)], |row| row.get(0))?;
    Ok(last.map_or(i64::MIN, |last| last.saturating_add(1)))
}

/// The numbers, first and last, of records that are neither too old nor from too far ahead.
fn kept(keep_us: i64) -> (i64, i64) {
    let now = now_us();
    let first = now.saturating_sub(keep_us).saturating_add(1);
    (first, now.saturating_add(keep_us).saturating_sub(1))
}

/// Whether there are records, and none of them is to be kept.
fn is_spent(db: &Connection, scopes: &[(i64, i64)]) -> Result<bool, Failure> {
    let mut is_some_kept = db.prepare_cached(
        "SELECT EXISTS (SELECT 1 FROM record WHERE scope = ? AND lane = ? AND seq BETWEEN ? AND ?)",
    )?;
    for (scope, keep_us) in scopes {
        let (first, last) = kept(*keep_us);
        for lane in LANES {
            if is_some_kept.query_row([*scope, number(lane), first, last], |row| row.get(0))? {
                return Ok(false);
            }
        }
    }
    let mut is_any = db.prepare_cached("SELECT EXISTS (SELECT 1 FROM record)")?;
    Ok(is_any.query_row([], |row| row.get(0))?)
}

/// Drops the first [`DROPPED_AT_ONCE`] of the records that are numbered so, or all. Returns how many.
fn drop_some(
    db: &Connection,
    scope: i64,
    lane: Lane,
    from: i64,
    to: i64,
) -> Result<usize, Failure> {
    let mut delete = db.prepare_cached(
        "DELETE FROM record WHERE scope = ?1 AND lane = ?2 AND seq BETWEEN ?3 AND min(?4, coalesce(
             (SELECT seq FROM record WHERE scope = ?1 AND lane = ?2 AND seq >= ?3 ORDER BY seq LIMIT 1 OFFSET ?5), ?4))",
    )?;
    let last = DROPPED_AT_ONCE as i64 - 1;
    Ok(delete.execute([scope, number(lane), from, to, last])?)
}

/// Gives some of the file back to the disk, where much of it is free. Returns whether it did.
fn give_back(db: &Connection) -> Result<bool, Failure> {
    let count = |pragma| db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let free = count("freelist_count")?;
    if free <= SPARE_PAGES.max(count("page_count")? / 4) {
        return Ok(false);
    }
    // One page a row.
    db.pragma(None, "incremental_vacuum", PAGES_AT_ONCE, |_| Ok(()))?;
    // This is what makes the file shorter.
    db.query_row("PRAGMA wal_checkpoint", [], |_| Ok(()))?;
    Ok(count("freelist_count")? < free)
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, micros)
}

fn micros(time: Duration) -> i64 {
    time.as_micros().try_into().unwrap_or(i64::MAX)
}

// ---- one database a folder ----

struct Engine {
    /// Without symbolic links.
    path: PathBuf,
    state: Mutex<State>,
}

/// The database, if it is open, and the right to it. The fields are dropped in this order.
#[derive(Default)]
struct State {
    open: Option<Open>,
    lock: Option<Lock>,
    damage: Option<String>,
}

struct Open {
    db: Connection,
    /// The database, and its write-ahead log.
    files: [PathBuf; 2],
    /// How they were left, if they were there.
    left: [Option<Left>; 2],
    is_synced: bool,
}

const WRITE_AHEAD: usize = 1;

struct Left {
    inode: u64,
    bytes: u64,
}

impl Open {
    /// Fails if the files are not as they were left, but for being longer.
    fn check(&self) -> Result<(), Failure> {
        for (path, left) in self.files.iter().zip(&self.left) {
            let (Some(left), found) = (left, look(path)?) else {
                continue;
            };
            match found {
                Some(found) if found.inode == left.inode && found.bytes >= left.bytes => {}
                Some(_) => {
                    let what = "somebody has replaced its files, or cut them short";
                    return Err(Failure::Damage(what.into()));
                }
                None => return Err(Failure::Removed),
            }
        }
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Failure> {
        for (path, left) in self.files.iter().zip(&mut self.left) {
            *left = look(path)?;
        }
        Ok(())
    }
}

/// How a file is, if there is one.
fn look(path: &Path) -> Result<Option<Left>, Failure> {
    match fs::metadata(path) {
        Ok(found) => Ok(Some(Left {
            inode: found.ino(),
            bytes: found.len(),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::Io("look at its files", error)),
    }
}

enum Failure {
    Engine(rusqlite::Error),
    /// What was tried, and what came of it.
    Io(&'static str, io::Error),
    InUse,
    Removed,
    Damage(String),
}

impl Engine {
    /// Opens the log if it is not, and does something with it. Says why either failed.
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
                state.damage = Some(format!("the log in {}: {reason}", self.path.display()));
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
                let files = self.path.join(FILES);
                make_folder(&files)?;
                // One from before would be in the way.
                state.lock = None;
                state.lock = Some(lock(&self.path.join(LOCK))?);
                Ok(state.open.insert(open(&files)?))
            }
        }
    }

    /// Makes room for a new log. Says what was done.
    fn move_aside(&self, damage: &str) -> String {
        let mut kept = self.kept_damage();
        // Names tell the order, whatever the clock says.
        let newest = kept.last().map_or(0, |(second, _)| *second);
        let second = (now_us() as u64 / 1_000_000).max(newest.saturating_add(1));
        let name = format!("{DAMAGED}{second}");
        if let Err(error) = fs::rename(self.path.join(FILES), self.path.join(&name)) {
            return format!("it is damaged ({damage}) and cannot be moved aside: {error}");
        }
        kept.truncate((kept.len() + 1).saturating_sub(DAMAGED_KEPT));
        for (_, path) in kept {
            // What cannot be removed now is tried again at the next damage.
            let _ = fs::remove_dir_all(path);
        }
        format!("it was damaged ({damage}), is kept as {name}, and a new one is begun")
    }

    /// What was moved aside, the oldest first, by seconds.
    fn kept_damage(&self) -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut kept: Vec<_> = entries
            .filter_map(|entry| {
                let name = entry.file_name();
                let second = name.to_str()?.strip_prefix(DAMAGED)?.parse().ok()?;
                Some((second, entry.path()))
            })
            .collect();
        kept.sort_unstable();
        kept
    }
}

fn make_folder(path: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed("make the folder"))
}

/// The right to a folder. It ends with the process, too.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough while a process that was just forked has the file open as well.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn lock(path: &Path) -> Result<Lock, Failure> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed("open the lock file"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Failure::InUse),
        Err(error) => Err(Failure::Io("lock it", error.into())),
    }
}

fn open(files: &Path) -> Result<Open, Failure> {
    let path = files.join(DATABASE);
    check_writable(files).map_err(failed("open the database"))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_CREATE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut db = Connection::open_with_flags(&path, flags)?;
    // The exclusive mode comes first: it keeps the index of the write-ahead log out of shared memory, where
    // others could change it, or truncate it and so end the process.
    db.execute_batch(
        "PRAGMA locking_mode = EXCLUSIVE;
         PRAGMA synchronous = NORMAL;
         PRAGMA cache_size = -4096;
         PRAGMA temp_store = MEMORY;
         PRAGMA cell_size_check = ON;
         PRAGMA trusted_schema = OFF;",
    )?;
    let layout = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if layout == 0 {
        // Before there is anything in the file; and else it would be written to, for which there may be no room.
        db.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    db.pragma_update(None, "journal_mode", "WAL")?;
    match layout {
        LAYOUT => {}
        0 => {
            let begin = db.transaction()?;
            begin.execute_batch(TABLES)?;
            begin.pragma_update(None, "user_version", LAYOUT)?;
            begin.commit()?;
            File::open(files)
                .and_then(|folder| folder.sync_all())
                .map_err(failed("write to the disk"))?;
        }
        other => {
            return Err(Failure::Damage(format!(
                "its layout is {other}, not {LAYOUT}"
            )))
        }
    }
    Ok(Open {
        db,
        files: [path, write_ahead(files)],
        left: [None, None],
        is_synced: false,
    })
}

/// The engine would go on without the right to write, and say the same as of a file that is damaged.
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

impl Failure {
    fn reason(&self) -> String {
        match self {
            Failure::Engine(error) => match error.sqlite_error() {
                // Its words are few, and the number says at what.
                Some(code) => format!("{error} (SQLite {})", code.extended_code),
                None => error.to_string(),
            },
            Failure::Io(tried, error) => format!("cannot {tried}: {error}"),
            Failure::InUse => "it is in use by another process".into(),
            Failure::Removed => "somebody has removed its files".into(),
            Failure::Damage(what) => what.clone(),
        }
    }

    /// Whether another try would find the same, however well the system does.
    fn is_damage(&self, folder: &Path) -> bool {
        let error = match self {
            Failure::Engine(error) => error,
            Failure::Damage(_) => return true,
            Failure::Io(..) | Failure::InUse | Failure::Removed => return false,
        };
        // Other errors are about values and tables that are not what was written.
        let Some(error) = error.sqlite_error() else {
            return true;
        };
        match error.code {
            // A byte of the file can say so as well.
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
