//! Tests of the log in a folder: what it keeps through kills, damage, full disks and other processes that want it.

use std::env;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::iter;
use std::os::unix::fs::{chown, symlink, FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use rekindle_log::{
    Batch, Bounds, Folder, Log, LogError, LogReader, LogWriter, Mark, Record, Stream,
};
use rustix::process::{geteuid, setrlimit, Resource, Rlimit};
use rustix::time::{clock_gettime, ClockId};
use tempfile::TempDir;

const SCOPE: &str = "mqtt";
const HOUR: Duration = Duration::from_secs(3600);
const FOR_EVER: Duration = Duration::from_secs(u64::MAX);

/// The log, used for one scope at a time.
struct One(Folder);

struct Writer {
    writer: Box<dyn LogWriter>,
    scope: String,
}

struct Reader {
    reader: Box<dyn LogReader>,
    scope: String,
}

impl One {
    fn at(folder: impl Into<PathBuf>) -> Self {
        One(Folder::at(folder))
    }

    fn writer(&self, scope: &str) -> Writer {
        Writer {
            writer: self.0.writer(),
            scope: scope.into(),
        }
    }

    fn reader(&self, scope: &str) -> Reader {
        Reader {
            reader: self.0.reader(),
            scope: scope.into(),
        }
    }
}

impl Writer {
    fn append(&mut self, stream: Stream, records: &[Record]) -> Result<(), LogError> {
        let (control, sessions) = match stream {
            Stream::Control => (records, &[][..]),
            Stream::Sessions => (&[][..], records),
        };
        let batch = Batch {
            scope: &self.scope,
            control,
            sessions,
        };
        let mut results = self.writer.append(&[batch])?;
        assert_eq!(results.len(), 1);
        results.remove(0)
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.writer.sync()
    }

    fn trim(&mut self, keep: Duration) -> Result<(), LogError> {
        self.writer.trim(&[bounds(&self.scope, keep, u64::MAX)])
    }

    fn take_notice(&mut self) -> Option<String> {
        self.writer.take_notice()
    }
}

impl Reader {
    fn mark(&mut self) -> Result<Mark, LogError> {
        self.reader.mark(&self.scope)
    }

    fn older(&mut self, stream: Stream, limit: usize) -> Result<Vec<Record>, LogError> {
        self.reader.older(stream, limit)
    }
}

fn bounds(scope: &str, keep: Duration, max_bytes: u64) -> Bounds<'_> {
    Bounds {
        scope,
        keep,
        max_bytes,
    }
}

/// Records with their numbers `from..to`, each as large as a session.
fn numbered(from: usize, to: usize) -> Vec<Record> {
    (from..to)
        .map(|n| {
            let mut record = vec![n as u8; 250];
            record[..8].copy_from_slice(&(n as u64).to_be_bytes());
            record
        })
        .collect()
}

fn number(record: &Record) -> usize {
    u64::from_be_bytes(record[..8].try_into().unwrap()) as usize
}

fn append(folder: &Path, scope: &str, records: &[Record]) {
    let mut writer = One::at(folder).writer(scope);
    writer.append(Stream::Sessions, records).unwrap();
}

/// All records of a stream, newest first.
fn try_read(log: &One, scope: &str, stream: Stream) -> Result<Vec<Record>, String> {
    let mut reader = log.reader(scope);
    reader.mark().map_err(|error| error.0)?;
    let mut all = Vec::new();
    loop {
        let page = reader.older(stream, 1000).map_err(|error| error.0)?;
        if page.is_empty() {
            return Ok(all);
        }
        assert!(page.len() <= 1000);
        all.extend(page);
    }
}

fn read(folder: &Path, scope: &str) -> Vec<usize> {
    let records = try_read(&One::at(folder), scope, Stream::Sessions).unwrap();
    records.iter().map(number).collect()
}

fn newest_first(from: usize, to: usize) -> Vec<usize> {
    (from..to).rev().collect()
}

fn database(folder: &Path) -> PathBuf {
    folder.join("log-2/records.sqlite")
}

fn write_ahead(folder: &Path) -> PathBuf {
    folder.join("log-2/records.sqlite-wal")
}

fn damaged(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut damaged: Vec<_> = entries
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .unwrap()
                .starts_with("log-2.damaged-")
        })
        .map(|entry| entry.path())
        .collect();
    damaged.sort();
    damaged
}

/// Makes records of a scope older, in a log that nobody has open.
fn age(folder: &Path, scope: &str, seconds: i64) {
    let db = rusqlite::Connection::open(database(folder)).unwrap();
    db.execute(
        "UPDATE range SET begun_ms = begun_ms - ?1 * 1000, until_ms = until_ms - ?1 * 1000
         WHERE scope = (SELECT id FROM scope WHERE name = ?2)",
        rusqlite::params![seconds, scope],
    )
    .unwrap();
}

/// Random numbers, the same at each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[test]
fn records_are_read_newest_first_in_pages() {
    let folder = TempDir::new().unwrap();
    let log = One::at(folder.path());
    let mut writer = log.writer(SCOPE);
    for from in (0..3000).step_by(300) {
        writer
            .append(Stream::Sessions, &numbered(from, from + 300))
            .unwrap();
    }
    let mut reader = log.reader(SCOPE);
    reader.mark().unwrap();
    let mut all = Vec::new();
    for expected in [1400, 1400, 200, 0, 0] {
        let page = reader.older(Stream::Sessions, 1400).unwrap();
        assert_eq!(page.len(), expected);
        all.extend(page);
    }
    assert_eq!(all, numbered(0, 3000).into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn scopes_and_streams_are_apart() {
    let folder = TempDir::new().unwrap();
    let log = One::at(folder.path());
    let places = [
        ("a", Stream::Sessions),
        ("a", Stream::Control),
        ("b", Stream::Sessions),
        ("", Stream::Control),
    ];
    for (n, (scope, stream)) in places.into_iter().enumerate() {
        let mut writer = log.writer(scope);
        writer
            .append(stream, &numbered(10 * n, 10 * n + 3))
            .unwrap();
    }
    for (n, (scope, stream)) in places.into_iter().enumerate() {
        let found = try_read(&log, scope, stream).unwrap();
        let found: Vec<_> = found.iter().map(number).collect();
        assert_eq!(
            found,
            newest_first(10 * n, 10 * n + 3),
            "{scope:?} {stream:?}"
        );
    }
    assert_eq!(try_read(&log, "b", Stream::Control), Ok(vec![]));
    assert_eq!(try_read(&log, "c", Stream::Sessions), Ok(vec![]));
}

#[test]
fn what_is_appended_after_the_mark_is_not_met() {
    let folder = TempDir::new().unwrap();
    let log = One::at(folder.path());
    let (mut writer, mut reader) = (log.writer(SCOPE), log.reader(SCOPE));
    writer.append(Stream::Sessions, &numbered(0, 10)).unwrap();
    reader.mark().unwrap();
    writer.append(Stream::Sessions, &numbered(10, 20)).unwrap();
    let first = reader.older(Stream::Sessions, 5).unwrap();
    writer.append(Stream::Sessions, &numbered(20, 30)).unwrap();
    let second = reader.older(Stream::Sessions, 50).unwrap();
    let all: Vec<_> = first.iter().chain(&second).map(number).collect();
    assert_eq!(all, newest_first(0, 10));

    // Nor in a stream or scope that was empty.
    let mut early = log.reader("other");
    early.mark().unwrap();
    let mut other = log.writer("other");
    other.append(Stream::Control, &numbered(0, 1)).unwrap();
    writer.append(Stream::Control, &numbered(0, 1)).unwrap();
    assert_eq!(early.older(Stream::Control, 9), Ok(vec![]));
    assert_eq!(reader.older(Stream::Control, 9), Ok(vec![]));
    assert!(log.0.follower().is_none());
}

#[test]
fn records_stay_when_the_folder_is_closed_and_opened() {
    let folder = TempDir::new().unwrap();
    for from in (0..50).step_by(10) {
        append(folder.path(), SCOPE, &numbered(from, from + 10));
        assert!(!write_ahead(folder.path()).exists(), "still open");
    }
    assert_eq!(read(folder.path(), SCOPE), newest_first(0, 50));
}

#[test]
fn a_folder_that_is_opened_by_several_names_at_once_is_one_log() {
    let folder = TempDir::new().unwrap();
    let link = folder.path().join("link");
    symlink(folder.path(), &link).unwrap();
    let names = [folder.path().to_path_buf(), link, folder.path().join(".")];
    thread::scope(|threads| {
        for (n, name) in names.iter().enumerate() {
            threads.spawn(move || {
                for round in 0..100 {
                    // One thread opens it while another closes it, and while a forked process has it open.
                    let mut writer = One::at(name).writer(SCOPE);
                    let from = 1000 * n + 10 * round;
                    writer
                        .append(Stream::Sessions, &numbered(from, from + 10))
                        .unwrap();
                    writer.sync().unwrap();
                    writer.trim(HOUR).unwrap();
                    drop(writer);
                    // From time to time all are closed.
                    thread::sleep(Duration::from_millis(n as u64 * 7));
                }
            });
        }
        for _ in 0..100 {
            assert!(Command::new("true").status().unwrap().success());
        }
    });
    let mut all = read(folder.path(), SCOPE);
    all.sort();
    let expected: Vec<_> = (0..3).flat_map(|n| 1000 * n..1000 * n + 1000).collect();
    assert_eq!(all, expected);
}

#[test]
fn the_folder_is_made_for_its_owner_alone() {
    let folder = TempDir::new().unwrap();
    let made = folder.path().join("var/rekindle");
    append(&made, SCOPE, &numbered(0, 1));
    for path in [made.clone(), made.join("log-2")] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o700);
    }
}

#[test]
fn nothing_is_mapped_into_memory() {
    let folder = TempDir::new().unwrap();
    let log = One::at(folder.path());
    log.writer(SCOPE)
        .append(Stream::Sessions, &numbered(0, 1000))
        .unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(folder.path().to_str().unwrap()));
    assert!(write_ahead(folder.path()).exists());
    assert!(!folder.path().join("log-2/records.sqlite-shm").exists());
}

#[test]
fn each_scope_is_trimmed_by_its_own_age_by_whichever_is_open() {
    let folder = TempDir::new().unwrap();
    for (scope, keep) in [("short", HOUR), ("long", 10 * HOUR), ("closed", HOUR)] {
        append(folder.path(), scope, &numbered(0, 5000));
        One::at(folder.path()).writer(scope).trim(keep).unwrap();
        assert_eq!(read(folder.path(), scope).len(), 5000);
        age(folder.path(), scope, 2 * 3600);
        append(folder.path(), scope, &numbered(5000, 5010));
    }
    // This scope never had a bound on age, so the longest of all counts.
    append(folder.path(), "unsaid", &numbered(0, 10));
    age(folder.path(), "unsaid", 2 * 3600);

    One::at(folder.path()).writer("short").trim(HOUR).unwrap();
    assert_eq!(read(folder.path(), "short"), newest_first(5000, 5010));
    assert_eq!(read(folder.path(), "closed"), newest_first(5000, 5010));
    assert_eq!(read(folder.path(), "long"), newest_first(0, 5010));
    assert_eq!(read(folder.path(), "unsaid"), newest_first(0, 10));

    for scope in ["closed", "unsaid"] {
        age(folder.path(), scope, 9 * 3600);
    }
    One::at(folder.path())
        .writer("short")
        .trim(FOR_EVER)
        .unwrap();
    assert_eq!(read(folder.path(), "closed"), []);
    // Now the longest bound is for ever.
    assert_eq!(read(folder.path(), "unsaid"), newest_first(0, 10));
    assert_eq!(read(folder.path(), "short"), newest_first(5000, 5010));
}

#[test]
fn the_space_of_what_is_dropped_is_used_again_or_given_back() {
    let folder = TempDir::new().unwrap();
    let size = || fs::metadata(database(folder.path())).unwrap().len();
    let mut sizes = Vec::new();
    for round in 0..6 {
        let mut writer = One::at(folder.path()).writer(SCOPE);
        for from in (0..20_000).step_by(500) {
            writer
                .append(Stream::Sessions, &numbered(from, from + 500))
                .unwrap();
        }
        drop(writer);
        // Two rounds are kept.
        age(folder.path(), SCOPE, 1000);
        let mut writer = One::at(folder.path()).writer(SCOPE);
        writer.trim(Duration::from_secs(2500)).unwrap();
        drop(writer);
        assert_eq!(
            read(folder.path(), SCOPE).len(),
            20_000 * (round + 1).min(2)
        );
        sizes.push(size());
    }
    assert!(sizes[5] < sizes[2] * 11 / 10, "{sizes:?}");

    age(folder.path(), SCOPE, 10_000);
    let mut writer = One::at(folder.path()).writer(SCOPE);
    writer.append(Stream::Sessions, &numbered(0, 1)).unwrap();
    writer.trim(HOUR).unwrap();
    // They are removed while the log is open.
    assert!(size() < 3 << 20, "{}", size());
}

#[test]
fn a_folder_that_is_removed_is_made_again() {
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("log of sessions");
    let mut writer = One::at(&log).writer(SCOPE);
    writer.sync().unwrap();
    writer.append(Stream::Sessions, &numbered(0, 10)).unwrap();
    fs::remove_dir_all(&log).unwrap();
    let appended = writer.append(Stream::Sessions, &numbered(10, 20));
    let error = appended.unwrap_err().0;
    assert!(error.starts_with("cannot append to the log in"), "{error}");
    assert!(error.ends_with("somebody has removed its files"), "{error}");
    writer.append(Stream::Sessions, &numbered(20, 30)).unwrap();
    writer.sync().unwrap();
    assert_eq!(writer.take_notice(), None);
    drop(writer);
    assert_eq!(read(&log, SCOPE), newest_first(20, 30));
}

/// SQLite itself would go on, and what it wrote would be lost with the process.
#[test]
fn files_that_are_cut_short_while_open_are_set_aside() {
    for file in ["records.sqlite", "records.sqlite-wal"] {
        let folder = TempDir::new().unwrap();
        let mut writer = One::at(folder.path()).writer(SCOPE);
        writer.append(Stream::Sessions, &numbered(0, 10)).unwrap();
        let path = folder.path().join("log-2").join(file);
        let open = OpenOptions::new().write(true).open(path).unwrap();
        open.set_len(0).unwrap();
        let appended = writer.append(Stream::Sessions, &numbered(10, 20));
        let error = appended.unwrap_err().0;
        assert!(error.contains("cut them short"), "{error}");
        assert!(writer.take_notice().is_some());
        writer.append(Stream::Sessions, &numbered(20, 30)).unwrap();
        drop(writer);
        assert_eq!(read(folder.path(), SCOPE), newest_first(20, 30));
    }
}

#[test]
fn something_else_in_the_place_of_the_folder_is_an_error_until_it_is_gone() {
    let folder = TempDir::new().unwrap();
    let place = folder.path().join("journal");
    fs::write(&place, "mine").unwrap();
    let log = One::at(&place);
    let (mut writer, mut reader) = (log.writer(SCOPE), log.reader(SCOPE));
    for _ in 0..2 {
        let error = writer
            .append(Stream::Sessions, &numbered(0, 1))
            .unwrap_err()
            .0;
        let expected = format!(
            "cannot append to the log in {}: cannot make the folder: ",
            place.display()
        );
        assert!(error.starts_with(&expected), "{error}");
        assert!(reader.mark().is_err());
        assert!(writer.trim(HOUR).is_err());
    }
    assert_eq!(fs::read(&place).unwrap(), b"mine");
    fs::remove_file(&place).unwrap();
    writer.append(Stream::Sessions, &numbered(0, 1)).unwrap();
    reader.mark().unwrap();
    assert_eq!(reader.older(Stream::Sessions, 9).unwrap().len(), 1);
    assert_eq!(writer.take_notice(), None);
}

// ---- age, bounds, rights ----

fn sql(folder: &Path, query: &str) -> i64 {
    let db = rusqlite::Connection::open(database(folder)).unwrap();
    db.query_row(query, [], |row| row.get(0)).unwrap()
}

/// Lets time pass for a log that nobody has open.
fn let_pass(folder: &Path, minutes: i64) {
    let db = rusqlite::Connection::open(database(folder)).unwrap();
    db.execute("UPDATE clock SET open_ms = open_ms + ?", [minutes * 60_000])
        .unwrap();
}

#[test]
fn age_is_the_time_that_the_log_has_been_open() {
    let folder = TempDir::new().unwrap();
    let trim = || One::at(folder.path()).writer(SCOPE).trim(HOUR).unwrap();
    append(folder.path(), SCOPE, &numbered(0, 10));
    let_pass(folder.path(), 40);
    trim();
    append(folder.path(), SCOPE, &numbered(10, 20));
    assert_eq!(sql(folder.path(), "SELECT count(*) FROM range"), 2);
    let_pass(folder.path(), 10);
    trim();
    assert_eq!(read(folder.path(), SCOPE), newest_first(0, 20));
    let_pass(folder.path(), 11);
    trim();
    assert_eq!(read(folder.path(), SCOPE), newest_first(10, 20));
    assert_eq!(sql(folder.path(), "SELECT count(*) FROM range"), 1);
    // Numbers continue.
    append(folder.path(), SCOPE, &numbered(20, 30));
    assert_eq!(read(folder.path(), SCOPE), newest_first(10, 30));
}

#[test]
fn the_time_that_the_log_was_open_outlives_it() {
    let folder = TempDir::new().unwrap();
    let open_ms = || sql(folder.path(), "SELECT open_ms FROM clock");
    append(folder.path(), SCOPE, &numbered(0, 1));
    let mut before = open_ms();
    for _ in 0..3 {
        let log = One::at(folder.path());
        log.reader(SCOPE).mark().unwrap();
        thread::sleep(Duration::from_millis(20));
        drop(log);
        assert!(open_ms() >= before + 20);
        before = open_ms();
    }
    // No record is younger than the log, even after a kill.
    left_by_a_kill(folder.path());
    assert!(open_ms() >= sql(folder.path(), "SELECT max(until_ms) FROM range"));
    assert!(open_ms() > before);
}

/// The bytes of a scope, as the tables have them and as counted.
fn counted_bytes(folder: &Path, scope: &str) -> u64 {
    let query = format!(
        "SELECT coalesce(sum(length(sealed) + 20), 0) FROM record
         WHERE scope = (SELECT id FROM scope WHERE name = '{scope}')"
    );
    sql(folder, &query) as u64
}

#[test]
fn the_oldest_sessions_of_a_scope_that_is_too_large_go_and_never_its_control_records() {
    let folder = TempDir::new().unwrap();
    let log = One::at(folder.path());
    let mut writer = log.writer("large");
    writer.append(Stream::Control, &numbered(0, 100)).unwrap();
    writer.append(Stream::Sessions, &numbered(0, 9000)).unwrap();
    let mut small = log.writer("small");
    small.append(Stream::Sessions, &numbered(0, 100)).unwrap();
    assert_eq!(writer.writer.bytes("large"), None);
    let mut trim = |max_bytes| {
        writer
            .writer
            .trim(&[
                bounds("large", HOUR, max_bytes),
                bounds("small", HOUR, 100 * 270),
            ])
            .unwrap();
        writer.writer.bytes("large").unwrap()
    };
    let kept = |scope, stream| {
        let records = try_read(&log, scope, stream).unwrap();
        records.iter().map(number).collect::<Vec<_>>()
    };
    assert_eq!(trim(9100 * 270), 9100 * 270);
    assert_eq!(trim(9100 * 270 - 1), 9099 * 270);
    assert_eq!(kept("large", Stream::Sessions), newest_first(1, 9000));
    assert_eq!(trim(1100 * 270), 1100 * 270);
    assert_eq!(kept("large", Stream::Sessions), newest_first(8000, 9000));
    assert_eq!(trim(99 * 270), 100 * 270);
    assert_eq!(kept("large", Stream::Sessions), []);
    assert_eq!(kept("large", Stream::Control), newest_first(0, 100));
    assert_eq!(kept("small", Stream::Sessions), newest_first(0, 100));
    assert_eq!(trim(0), 100 * 270);
}

#[test]
fn what_a_scope_takes_is_counted_right_after_any_drops() {
    let folder = TempDir::new().unwrap();
    let mut dice = Dice(31);
    for round in 0..60 {
        let log = One::at(folder.path());
        let mut writer = log.writer("a");
        for scope in ["a", "b"] {
            let (control, sessions) = (dice.below(5), dice.below(40));
            let batch = Batch {
                scope,
                control: &numbered(0, control as usize),
                sessions: &numbered(0, sessions as usize),
            };
            writer.writer.append(&[batch]).unwrap();
        }
        let max_bytes = dice.below(100) * 270;
        let keep = Duration::from_secs(60 * dice.below(30));
        writer.writer.trim(&[bounds("a", keep, max_bytes)]).unwrap();
        let told = ["a", "b"].map(|scope| writer.writer.bytes(scope).unwrap_or(0));
        drop((log, writer));
        let counted = ["a", "b"].map(|scope| counted_bytes(folder.path(), scope));
        assert_eq!(told, counted, "in round {round}");
        let_pass(folder.path(), dice.below(10) as i64);
    }
}

#[test]
fn a_scope_that_is_gone_and_comes_back_begins_at_its_end_for_old_readers() {
    let folder = TempDir::new().unwrap();
    let log = One::at(folder.path());
    let mut keeps_it = log.writer("other");
    keeps_it.append(Stream::Sessions, &numbered(0, 1)).unwrap();
    let mut writer = log.writer(SCOPE);
    writer.append(Stream::Sessions, &numbered(0, 10)).unwrap();
    let mut reader = log.reader(SCOPE);
    reader.mark().unwrap();
    let only = |keep| [bounds("other", FOR_EVER, u64::MAX), bounds(SCOPE, keep, 0)];
    writer.writer.trim(&only(HOUR)).unwrap();
    // Its row is removed as well.
    writer.writer.trim(&only(HOUR)[..1]).unwrap();
    writer.append(Stream::Sessions, &numbered(10, 15)).unwrap();
    assert_eq!(reader.older(Stream::Sessions, 100), Ok(vec![]));
}

#[test]
fn a_log_that_is_begun_again_has_nothing_for_old_readers() {
    let folder = TempDir::new().unwrap();
    let log = One::at(folder.path());
    let (mut writer, mut reader) = (log.writer(SCOPE), log.reader(SCOPE));
    writer.append(Stream::Sessions, &numbered(0, 10)).unwrap();
    reader.mark().unwrap();
    writer.trim(Duration::ZERO).unwrap();
    // They have the numbers of the old ones.
    writer.append(Stream::Sessions, &numbered(10, 15)).unwrap();
    assert_eq!(reader.older(Stream::Sessions, 100), Ok(vec![]));
    reader.mark().unwrap();
    let found = reader.older(Stream::Sessions, 100).unwrap();
    assert_eq!(
        found.iter().map(number).collect::<Vec<_>>(),
        newest_first(10, 15)
    );
}

#[test]
fn batches_of_several_scopes_are_appended_at_once() {
    let folder = TempDir::new().unwrap();
    let log = One::at(folder.path());
    let mut writer = log.0.writer();
    assert_eq!(writer.append(&[]), Ok(vec![]));
    let (control, sessions) = (numbered(0, 2), numbered(2, 5));
    let batches = ["a", "b", "a"].map(|scope| Batch {
        scope,
        control: &control,
        sessions: &sessions,
    });
    assert_eq!(writer.append(&batches), Ok(vec![Ok(()); 3]));
    let found = try_read(&log, "a", Stream::Sessions).unwrap();
    assert_eq!(
        found.iter().map(number).collect::<Vec<_>>(),
        [4, 3, 2, 4, 3, 2]
    );
    let found = try_read(&log, "b", Stream::Control).unwrap();
    assert_eq!(found.iter().map(number).collect::<Vec<_>>(), [1, 0]);
}

/// A thousand scopes, trimmed as it happens each minute. The time is printed, and decides nothing.
#[test]
fn many_scopes_are_trimmed_in_one_call() {
    let folder = TempDir::new().unwrap();
    let log = One::at(folder.path());
    let mut writer = log.0.writer();
    let names: Vec<_> = (0..1000).map(|n| format!("scope {n}")).collect();
    let records = numbered(0, 20);
    let batches: Vec<_> = names
        .iter()
        .map(|scope| Batch {
            scope,
            control: &records[..2],
            sessions: &records,
        })
        .collect();
    let all: Vec<_> = names
        .iter()
        .map(|name| bounds(name, HOUR, 22 * 270))
        .collect();
    let cpu_ms = || {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        now.tv_sec * 1000 + now.tv_nsec / 1_000_000
    };
    for _ in 0..3 {
        let begun = cpu_ms();
        writer.append(&batches).unwrap();
        let appended = cpu_ms();
        writer.trim(&all).unwrap();
        let trimmed = cpu_ms();
        writer.trim(&all).unwrap();
        println!(
            "CPU: append {} ms, trim {} ms, trim with nothing to drop {} ms",
            appended - begun,
            trimmed - appended,
            cpu_ms() - trimmed
        );
    }
    for name in &names {
        assert!(writer.bytes(name).unwrap() <= 22 * 270);
        let found = try_read(&log, name, Stream::Sessions).unwrap();
        let found: Vec<_> = found.iter().map(number).collect();
        assert_eq!(found, newest_first(4, 20));
    }
}

#[test]
fn a_log_of_the_former_format_is_reported_once_and_left_alone() {
    let folder = TempDir::new().unwrap();
    let former = folder.path().join("log");
    fs::create_dir(&former).unwrap();
    fs::write(former.join("records.sqlite"), vec![1; 5000]).unwrap();
    fs::write(former.join("records.sqlite-wal"), vec![2; 1000]).unwrap();
    let log = One::at(folder.path());
    let mut writer = log.writer(SCOPE);
    assert_eq!(writer.take_notice(), None);
    writer.append(Stream::Sessions, &numbered(0, 1)).unwrap();
    let expected = format!(
        "{} is a log of a former format, which is not read (6000 bytes); it can be deleted",
        former.canonicalize().unwrap().display()
    );
    assert_eq!(log.writer("other").take_notice(), Some(expected));
    // It is not repeated when the database is opened again.
    fs::remove_dir_all(folder.path().join("log-2")).unwrap();
    writer
        .append(Stream::Sessions, &numbered(0, 1))
        .unwrap_err();
    writer.append(Stream::Sessions, &numbered(0, 1)).unwrap();
    assert_eq!(writer.take_notice(), None);
    assert_eq!(fs::read(former.join("records.sqlite")).unwrap(), [1; 5000]);
}

#[test]
fn a_folder_that_others_can_write_to_is_refused_also_while_it_is_open() {
    let folder = TempDir::new().unwrap();
    let place = folder.path().canonicalize().unwrap();
    let mut writer = One::at(&place).writer(SCOPE);
    for is_open in [false, true] {
        for (path, mode, good) in [
            (place.clone(), 0o770, 0o755),
            (place.clone(), 0o1703, 0o700),
            (place.join("log-2"), 0o720, 0o750),
            (database(&place), 0o622, 0o644),
            (write_ahead(&place), 0o602, 0o600),
            (place.join("lock"), 0o660, 0o600),
        ] {
            if is_open {
                writer.append(Stream::Sessions, &numbered(0, 1)).unwrap();
            } else {
                drop(writer);
                writer = One::at(&place).writer(SCOPE);
            }
            let is_lock = path.ends_with("lock");
            if !path.exists() || is_open && is_lock {
                continue;
            }
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let result = writer.append(Stream::Sessions, &numbered(0, 1));
            let error = result.unwrap_err().0;
            let example = if path.is_dir() { "700" } else { "600" };
            let expected = format!(
                "cannot append to the log in {}: {} has mode {mode:o}; allowed: modes without \
                 write access for group and others, for example {example}",
                place.display(),
                path.display()
            );
            assert_eq!(error, expected);
            // SQLite removes the write-ahead log when the database is closed, which happens after each error.
            if !path.exists() {
                continue;
            }
            writer.trim(HOUR).unwrap_err();
            writer.sync().unwrap_err();
            fs::set_permissions(&path, Permissions::from_mode(good)).unwrap();
            writer.append(Stream::Sessions, &numbered(0, 1)).unwrap();
        }
    }
    assert_eq!(damaged(&place), [] as [PathBuf; 0]);
}

#[test]
fn a_folder_of_another_user_is_refused() {
    if !geteuid().is_root() {
        println!("not tried: only root can give a folder away");
        return;
    }
    let folder = TempDir::new().unwrap();
    let place = folder.path().canonicalize().unwrap();
    append(&place, SCOPE, &numbered(0, 1));
    for path in [place.clone(), place.join("log-2"), database(&place)] {
        chown(&path, Some(65534), None).unwrap();
        let error = try_read(&One::at(&place), SCOPE, Stream::Sessions).unwrap_err();
        let expected = format!(
            "cannot read the log in {}: {} belongs to user 65534; allowed: user 0, who runs this process",
            place.display(),
            path.display()
        );
        assert_eq!(error, expected);
        chown(&path, Some(0), None).unwrap();
    }
    assert_eq!(read(&place, SCOPE), [0]);
}

/// A small file system of its own.
struct SmallDisk(TempDir);

impl SmallDisk {
    /// `None` if this user cannot mount.
    fn new() -> Option<Self> {
        let place = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs"]);
        let mounted = mount.arg(place.path()).stderr(Stdio::null()).status();
        if mounted.is_ok_and(|status| status.success()) {
            return Some(SmallDisk(place));
        }
        println!("not tried: this user cannot mount a file system");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_small_batch_gets_into_a_full_disk_where_a_large_one_does_not() {
    let Some(disk) = SmallDisk::new() else {
        return;
    };
    let log = One::at(disk.0.path());
    let mut writer = log.0.writer();
    let (small, large) = (numbered(0, 1), numbered(0, 40_000));
    let batches = [("large", &large), ("small", &small)].map(|(scope, sessions)| Batch {
        scope,
        control: &[],
        sessions,
    });
    let results = writer.append(&batches).unwrap();
    let error = results[0].as_ref().unwrap_err();
    let expected = format!(
        "cannot append to the log in {}: database or disk is full (SQLite 13)",
        disk.0.path().display()
    );
    assert_eq!(error.0, expected);
    assert_eq!(results[1], Ok(()));
    assert_eq!(try_read(&log, "small", Stream::Sessions), Ok(small.clone()));
    assert_eq!(try_read(&log, "large", Stream::Sessions), Ok(vec![]));
    // Alone, the large one is an error as well.
    assert_eq!(writer.append(&batches[..1]).unwrap_err().0, expected);
    assert_eq!(writer.take_notice(), None);
}

#[test]
fn a_full_log_goes_when_all_of_it_is_too_old_and_not_while_something_is_to_be_kept() {
    let Some(disk) = SmallDisk::new() else {
        return;
    };
    let log = One::at(disk.0.path());
    let (mut writer, mut other) = (log.writer(SCOPE), log.writer("kept"));
    other.append(Stream::Control, &numbered(0, 1)).unwrap();
    while writer.append(Stream::Sessions, &numbered(0, 100)).is_ok() {}
    // Dropping records needs room, and may fail.
    let _ = writer.writer.trim(&[
        bounds(SCOPE, Duration::ZERO, u64::MAX),
        bounds("kept", HOUR, u64::MAX),
    ]);
    assert_eq!(try_read(&log, "kept", Stream::Control), Ok(numbered(0, 1)));
    let spent = [
        bounds(SCOPE, Duration::ZERO, u64::MAX),
        bounds("kept", Duration::ZERO, u64::MAX),
    ];
    // A child process that another test is about to start has the removed files open for a moment.
    let trimmed = (0..100).any(|_| {
        let trimmed = writer.writer.trim(&spent);
        trimmed
            .is_err()
            .then(|| thread::sleep(Duration::from_millis(20)));
        trimmed.is_ok()
    });
    assert!(trimmed);
    assert_eq!(try_read(&log, "kept", Stream::Control), Ok(vec![]));
    writer.append(Stream::Sessions, &numbered(0, 100)).unwrap();
    assert_eq!(writer.take_notice(), None);
}

// ---- damage ----

/// The files of a process that was killed while it was writing, and how many records it had acknowledged.
fn left_by_a_kill(folder: &Path) -> usize {
    let mut child = Process::start(folder);
    let mut acknowledged: usize = child.ask("write").parse().unwrap();
    // A part is in the database, a part in the write-ahead log, which has been begun again.
    while acknowledged < 20_000 || fs::metadata(write_ahead(folder)).unwrap().len() < 1 << 20 {
        acknowledged = child.says().parse().unwrap();
    }
    match child.kill() {
        Some(said) => said.parse().unwrap(),
        None => acknowledged,
    }
}

/// Likewise, but the kill was not in the midst of a checkpoint. Otherwise the database alone might be damaged, or have
/// everything.
fn left_by_a_kill_between_checkpoints(folder: &Path) -> usize {
    let copied = TempDir::new().unwrap();
    for _ in 0..3 {
        let all = left_by_a_kill(folder);
        copy(folder, copied.path());
        fs::remove_file(write_ahead(copied.path())).unwrap();
        let (read, told) = uses(copied.path());
        if told.is_none() && (10_000..all).contains(&read.len()) {
            return all;
        }
        fs::remove_dir_all(folder).unwrap();
        fs::create_dir(folder).unwrap();
    }
    panic!("the database alone is never right");
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to.join("log-2")).unwrap();
    fs::copy(database(from), database(to)).unwrap();
    // If the log was closed, there is no write-ahead log.
    let _ = fs::copy(write_ahead(from), write_ahead(to));
}

/// Reads and writes until both work, and checks that all records are known ones. Returns what was read first, and the
/// notice for the operator.
fn uses(folder: &Path) -> (Vec<Record>, Option<String>) {
    let log = One::at(folder);
    let mut writer = log.writer(SCOPE);
    let mut errors = Vec::new();
    let read = loop {
        match try_read(&log, SCOPE, Stream::Sessions) {
            Ok(read) => break read,
            Err(error) => errors.push(error),
        }
        assert!(errors.len() < 3, "{errors:?}");
    };
    let new = numbered(1 << 40, (1 << 40) + 100);
    while let Err(error) = writer
        .append(Stream::Sessions, &new)
        .and_then(|()| writer.trim(HOUR))
        .and_then(|()| writer.sync())
    {
        errors.push(error.0);
        assert!(errors.len() < 3, "{errors:?}");
    }
    let told = writer.take_notice();
    for error in &errors {
        assert!(error.contains("damaged"), "{error}");
    }
    assert_eq!(told.is_some(), !errors.is_empty(), "{told:?} {errors:?}");
    assert_eq!(told.is_some(), !damaged(folder).is_empty(), "{told:?}");
    let mut last = try_read(&log, SCOPE, Stream::Sessions).unwrap();
    last.truncate(100);
    last.reverse();
    assert_eq!(last, new);
    (read, told)
}

#[test]
fn the_write_ahead_log_may_end_anywhere() {
    let (left, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let all = left_by_a_kill_between_checkpoints(left.path());
    let length = fs::metadata(write_ahead(left.path())).unwrap().len();
    let mut dice = Dice(4711);
    let mut fewest = all;
    for round in 0..100 {
        let at = if round < 40 {
            round
        } else {
            dice.below(length)
        };
        copy(left.path(), folder.path());
        let file = OpenOptions::new()
            .write(true)
            .open(write_ahead(folder.path()))
            .unwrap();
        file.set_len(at).unwrap();
        let (read, told) = uses(folder.path());
        assert_eq!(told, None, "at {at}");
        // All but the tail.
        let read: Vec<_> = read.iter().map(number).collect();
        assert_eq!(read, newest_first(0, read.len()), "at {at}");
        fewest = fewest.min(read.len());
    }
    // The records in the database, and more if the write-ahead log is not all cut off.
    assert!((10_000..all).contains(&fewest), "{fewest} of {all}");
}

#[test]
fn the_database_may_end_anywhere() {
    let (left, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    left_by_a_kill(left.path());
    let length = fs::metadata(database(left.path())).unwrap().len();
    let mut dice = Dice(815);
    for round in 0..60 {
        let at = if round < 20 {
            5 * round
        } else {
            dice.below(length)
        };
        copy(left.path(), folder.path());
        let file = OpenOptions::new()
            .write(true)
            .open(database(folder.path()))
            .unwrap();
        file.set_len(at).unwrap();
        drop(file);
        uses(folder.path());
        fs::remove_dir_all(folder.path()).unwrap();
    }
}

#[test]
fn bytes_may_change_anywhere() {
    let (left, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let all = left_by_a_kill(left.path());
    let mut dice = Dice(1234);
    let mut moved = 0;
    for round in 0..250_u64 {
        if round == 50 {
            // No part of the database is in the write-ahead log as well.
            assert!(read(left.path(), SCOPE).len() >= all);
        }
        copy(left.path(), folder.path());
        let (path, end) = match round {
            0..25 => (write_ahead(folder.path()), u64::MAX),
            25..50 | 200.. => (database(folder.path()), u64::MAX),
            // The pages that describe the tables, and each byte of the header.
            50..100 => (database(folder.path()), 3 * 4096),
            _ => (database(folder.path()), 0),
        };
        let length = fs::metadata(&path).unwrap().len();
        let at = if end == 0 {
            round - 100
        } else {
            dice.below(end.min(length))
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let mut bytes = vec![0; 1 + dice.below(30) as usize];
        let length = file.read_at(&mut bytes, at).unwrap();
        for byte in &mut bytes[..length] {
            *byte ^= 1 + dice.below(255) as u8;
        }
        file.write_all_at(&bytes[..length], at).unwrap();
        drop(file);
        let (read, told) = uses(folder.path());
        assert!(read.len() <= all + 200);
        moved += usize::from(told.is_some());
        fs::remove_dir_all(folder.path()).unwrap();
    }
    assert!((50..200).contains(&moved), "{moved}");
}

#[test]
fn a_damaged_log_is_moved_aside_and_the_two_newest_are_kept() {
    let folder = TempDir::new().unwrap();
    let mut seen = Vec::new();
    for round in 0..4 {
        append(folder.path(), SCOPE, &numbered(round, round + 1));
        fs::write(database(folder.path()), format!("no database, but {round}")).unwrap();
        let log = One::at(folder.path());
        let (mut writer, mut reader) = (log.writer(SCOPE), log.reader("another"));
        let error = writer
            .append(Stream::Sessions, &numbered(0, 1))
            .unwrap_err()
            .0;
        let name = damaged(folder.path()).pop().unwrap();
        let expected = format!(
            "the log in {}: it was damaged (file is not a database (SQLite 26)), is kept as {}, and a new one is begun",
            folder.path().canonicalize().unwrap().display(),
            name.file_name().unwrap().to_str().unwrap(),
        );
        assert_eq!(error, format!("cannot append to {expected}"));
        // The notice comes once, to the first writer that asks.
        let mut other = One::at(folder.path()).writer("another");
        assert_eq!(other.take_notice(), None);
        reader.mark().unwrap();
        assert_eq!(log.writer("third").take_notice(), Some(expected));
        assert_eq!(writer.take_notice(), None);
        seen.push(name);
        writer.append(Stream::Sessions, &numbered(7, 8)).unwrap();
        drop((log, writer, reader, other));
        assert_eq!(read(folder.path(), SCOPE), [7]);
    }
    assert_eq!(damaged(folder.path()), seen[2..]);
    let kept = fs::read(seen[3].join("records.sqlite")).unwrap();
    assert_eq!(kept, b"no database, but 3");
}

#[test]
fn a_log_that_says_itself_that_it_may_not_be_written_to_is_damaged() {
    let folder = TempDir::new().unwrap();
    append(folder.path(), SCOPE, &numbered(0, 1));
    let database = OpenOptions::new()
        .write(true)
        .open(database(folder.path()))
        .unwrap();
    // What a program must know to write to it.
    database.write_all_at(&[3], 18).unwrap();
    let mut writer = One::at(folder.path()).writer(SCOPE);
    let error = writer
        .append(Stream::Sessions, &numbered(1, 2))
        .unwrap_err()
        .0;
    assert!(
        error.contains("damaged (attempt to write a readonly database"),
        "{error}"
    );
    writer.append(Stream::Sessions, &numbered(1, 2)).unwrap();
    drop(writer);
    assert_eq!(read(folder.path(), SCOPE), [1]);
}

#[test]
fn a_log_whose_tables_are_not_what_they_were_is_damaged() {
    for (change, why) in [
        ("DROP TABLE scope", "no such table: scope"),
        (
            "DROP TABLE record; CREATE TABLE record (scope, stream, seq, sealed);
             INSERT INTO record VALUES (1, 1, 1, 'text')",
            "Invalid column type Text",
        ),
    ] {
        let folder = TempDir::new().unwrap();
        append(folder.path(), SCOPE, &numbered(0, 1));
        let db = rusqlite::Connection::open(database(folder.path())).unwrap();
        db.execute_batch(change).unwrap();
        drop(db);
        let log = One::at(folder.path());
        let error = try_read(&log, SCOPE, Stream::Sessions).unwrap_err();
        assert!(error.contains(&format!("damaged ({why}")), "{error}");
        assert_eq!(try_read(&log, SCOPE, Stream::Sessions), Ok(vec![]));
    }
}

#[test]
fn a_log_in_which_a_later_record_comes_before_an_earlier_one_is_damaged() {
    let folder = TempDir::new().unwrap();
    append(folder.path(), SCOPE, &numbered(0, 1));
    let db = rusqlite::Connection::open(database(folder.path())).unwrap();
    // Numbers that can be found in the file.
    db.execute("UPDATE scope SET next_session = 1 << 40", [])
        .unwrap();
    drop(db);
    append(folder.path(), SCOPE, &numbered(1, 10));
    let db = rusqlite::Connection::open(database(folder.path())).unwrap();
    let query = "SELECT seq FROM record LIMIT 1 OFFSET 5";
    let seq: i64 = db.query_row(query, [], |row| row.get(0)).unwrap();
    drop(db);
    let mut bytes = fs::read(database(folder.path())).unwrap();
    let places = bytes
        .windows(6)
        .filter(|window| *window == &seq.to_be_bytes()[2..]);
    assert_eq!(places.count(), 1);
    let at = bytes
        .windows(6)
        .position(|window| window == &seq.to_be_bytes()[2..]);
    bytes[at.unwrap()] = 0x7f;
    fs::write(database(folder.path()), bytes).unwrap();
    let log = One::at(folder.path());
    let error = try_read(&log, SCOPE, Stream::Sessions).unwrap_err();
    assert!(
        error.contains("damaged (records are out of order)"),
        "{error}"
    );
    assert_eq!(try_read(&log, SCOPE, Stream::Sessions), Ok(vec![]));
}

#[test]
fn a_log_of_another_layout_is_moved_aside() {
    let folder = TempDir::new().unwrap();
    append(folder.path(), SCOPE, &numbered(0, 1));
    let db = rusqlite::Connection::open(database(folder.path())).unwrap();
    db.pragma_update(None, "user_version", 3).unwrap();
    drop(db);
    let mut writer = One::at(folder.path()).writer(SCOPE);
    let error = writer
        .append(Stream::Sessions, &numbered(0, 1))
        .unwrap_err()
        .0;
    assert!(
        error.contains("damaged (its layout is 3, not 2)"),
        "{error}"
    );
    writer.append(Stream::Sessions, &numbered(1, 2)).unwrap();
    assert_eq!(damaged(folder.path()).len(), 1);
}

// ---- other processes ----

/// Another process of this test program, with a folder.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(folder: &Path) -> Self {
        Self::start_as(folder, &env::current_exe().unwrap(), |_| {})
    }

    fn start_as(folder: &Path, program: &Path, prepare: impl FnOnce(&mut Command)) -> Self {
        // The limit on file sizes also sends a signal, which is ignored.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
            .arg(program)
            .args(["--exact", "--ignored", "--nocapture", "is_another_process"])
            .env("REKINDLE_TEST_FOLDER", folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        prepare(&mut command);
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Process { child, output }
    }

    fn ask(&mut self, what: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{what}").unwrap();
        self.says()
    }

    fn says(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "it has ended");
            // The test harness prints lines, too.
            if let Some((_, said)) = line.trim_end().split_once("> ") {
                return said.into();
            }
        }
    }

    /// Returns the last line.
    fn kill(&mut self) -> Option<String> {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let lines = self.output.by_ref().lines().map(Result::unwrap);
        lines.last()?.split_once("> ").map(|(_, said)| said.into())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

#[test]
#[ignore = "is what other tests start"]
fn is_another_process() {
    let folder = PathBuf::from(env::var_os("REKINDLE_TEST_FOLDER").expect("started by a test"));
    let log = One::at(&folder);
    let mut writer = log.writer(SCOPE);
    let mut count = 0;
    let mut append = |records: usize| {
        let result = writer.append(Stream::Sessions, &numbered(count, count + records));
        count += result.as_ref().map_or(0, |()| records);
        (
            count,
            result.map_or_else(|error| error.0, |()| "done".into()),
        )
    };
    for asked in std::io::stdin().lines() {
        match asked.unwrap().as_str() {
            "append" => println!("> {}", append(1).1),
            "write" => loop {
                let (count, result) = append(100);
                assert_eq!(result, "done");
                println!("> {count}");
            },
            "fill" => println!(
                "> {}",
                iter::repeat_with(|| append(100))
                    .map(|(count, result)| format!("{count} {result}"))
                    .find(|said| !said.ends_with("done"))
                    .unwrap()
            ),
            "trim" => {
                let result = log.writer(SCOPE).trim(Duration::ZERO);
                println!(
                    "> {}",
                    result.map_or_else(|error| error.0, |()| "done".into())
                );
            }
            limit => {
                let current = limit.parse().ok();
                let limit = Rlimit {
                    current,
                    maximum: None,
                };
                setrlimit(Resource::Fsize, limit).unwrap();
                println!("> {current:?}");
            }
        }
    }
}

#[test]
fn all_that_was_acknowledged_is_there_after_a_kill() {
    let folder = TempDir::new().unwrap();
    let mut dice = Dice(99);
    for _ in 0..5 {
        let mut child = Process::start(folder.path());
        let enough = 1 + dice.below(40_000) as usize;
        let mut acknowledged = child.ask("write").parse().unwrap();
        while acknowledged < enough {
            acknowledged = child.says().parse().unwrap();
        }
        if let Some(said) = child.kill() {
            acknowledged = said.parse().unwrap();
        }
        let found = read(folder.path(), SCOPE);
        assert!([acknowledged, acknowledged + 100].contains(&found.len()));
        assert_eq!(found, newest_first(0, found.len()));
        assert_eq!(damaged(folder.path()), [] as [PathBuf; 0]);
        fs::remove_dir_all(folder.path()).unwrap();
    }
}

#[test]
fn a_second_process_is_refused_until_the_first_is_gone() {
    let folder = TempDir::new().unwrap();
    let (mut first, mut second) = (Process::start(folder.path()), Process::start(folder.path()));
    assert_eq!(first.ask("append"), "done");
    let refused = format!(
        "cannot append to the log in {}: it is in use by another process",
        folder.path().canonicalize().unwrap().display()
    );
    assert_eq!(second.ask("append"), refused);
    assert_eq!(
        try_read(&One::at(folder.path()), SCOPE, Stream::Sessions),
        Err(refused.replace("append to", "read"))
    );
    assert_eq!(first.ask("append"), "done");
    assert_eq!(second.ask("append"), refused);
    first.kill();
    assert_eq!(second.ask("append"), "done");
    assert!(try_read(&One::at(folder.path()), SCOPE, Stream::Sessions).is_err());
    second.kill();
    assert_eq!(read(folder.path(), SCOPE), [0, 1, 0]);
}

#[test]
fn a_folder_that_may_not_be_written_to_is_an_error_until_it_may() {
    let folder = TempDir::new().unwrap();
    let program = folder.path().join("program");
    // Not by this process: a program that somebody has open to write cannot be run, and other tests' new processes would still
    // have it open for a moment.
    let copied = Command::new("cp")
        .arg(env::current_exe().unwrap())
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    let log = folder.path().join("journal");
    fs::create_dir(&log).unwrap();
    for path in [folder.path(), &log, &program] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    let is_root = geteuid().is_root();
    if is_root {
        chown(&log, Some(65534), Some(65534)).unwrap();
    }
    let start = || {
        Process::start_as(&log, &program, |command| {
            // To root, modes mean nothing.
            if is_root {
                command.uid(65534).gid(65534).current_dir("/");
            }
        })
    };
    let mut child = start();
    let allow = |path: &Path, mode| {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    let refused = |child: &mut Process, why: &str| {
        for _ in 0..2 {
            let expected = format!("cannot append to the log in {}: {why}", log.display());
            assert_eq!(child.ask("append"), expected);
        }
    };
    allow(&log, 0o500);
    refused(
        &mut child,
        "cannot make the folder: Permission denied (os error 13)",
    );
    allow(&log, 0o700);
    assert_eq!(child.ask("append"), "done");

    for (path, why) in [
        (
            log.join("lock"),
            "cannot open the lock file: Permission denied (os error 13)",
        ),
        (
            database(&log),
            "cannot open the database: Permission denied (os error 13)",
        ),
        (
            write_ahead(&log),
            "cannot open the database: Permission denied (os error 13)",
        ),
    ] {
        child.kill();
        child = start();
        allow(&path, 0o400);
        refused(&mut child, why);
        allow(&path, 0o600);
        assert_eq!(child.ask("append"), "done");
    }

    allow(&log, 0o500);
    let error = child.ask("trim");
    assert!(
        error.ends_with("cannot remove it: Permission denied (os error 13)"),
        "{error}"
    );
    assert_eq!(child.ask("append"), "done");
    allow(&log, 0o700);
    assert_eq!(damaged(&log), [] as [PathBuf; 0]);
}

#[test]
fn a_full_disk_is_an_error_until_there_is_room() {
    let folder = TempDir::new().unwrap();
    let mut child = Process::start(folder.path());
    child.ask("2000000");
    let mut acknowledged = 0;
    for _ in 0..3 {
        let said = child.ask("fill");
        let (count, error) = said.split_once(' ').unwrap();
        let expected = "cannot append to the log in ";
        assert!(
            error.starts_with(expected) && !error.contains("damaged"),
            "{error}"
        );
        println!("{count} {error}");
        acknowledged = count.parse().unwrap();
    }
    assert!(acknowledged > 1000, "{acknowledged}");
    child.ask("unlimited");
    assert_eq!(child.ask("append"), "done");
    child.kill();
    // A batch that failed may be in the log.
    let mut found = read(folder.path(), SCOPE);
    found.dedup();
    assert_eq!(found[0], acknowledged);
    found.retain(|n| *n < acknowledged);
    found.sort();
    found.dedup();
    assert_eq!(found, (0..acknowledged).collect::<Vec<_>>());
    assert_eq!(damaged(folder.path()), [] as [PathBuf; 0]);
}

#[test]
fn a_log_that_has_filled_the_disk_goes_when_all_of_it_is_too_old() {
    let folder = TempDir::new().unwrap();
    let mut child = Process::start(folder.path());
    child.ask("2000000");
    for _ in 0..3 {
        child.ask("fill");
    }
    assert_eq!(child.ask("trim"), "done");
    assert_eq!(child.ask("append"), "done");
    let size = fs::metadata(database(folder.path())).unwrap().len();
    assert!(size < 100_000, "{size}");
}
