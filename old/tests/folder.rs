//! The log in a folder: what it keeps through kills, damage, full disks and others who want it.

use std::env;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Read, Write};
use std::iter;
use std::os::unix::fs::{chown, symlink, FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rekindle_journal::{Folder, Lane, LogReader, LogWriter, Record};
use rustix::process::{geteuid, setrlimit, Resource, Rlimit};
use tempfile::TempDir;

const SCOPE: &str = "mqtt";
const HOUR: Duration = Duration::from_secs(3600);
const FOR_EVER: Duration = Duration::from_secs(u64::MAX);

/// Records of a session's size that say their number, `from..to`.
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
    let mut writer = Folder::at(folder).writer(scope);
    writer.append(Lane::Births, records).unwrap();
}

/// All of a lane, newest first.
fn try_read(log: &Arc<Folder>, scope: &str, lane: Lane) -> Result<Vec<Record>, String> {
    let mut reader = log.reader(scope);
    reader.mark().map_err(|error| error.0)?;
    let mut all = Vec::new();
    loop {
        let page = reader.older(lane, 1000).map_err(|error| error.0)?;
        if page.is_empty() {
            return Ok(all);
        }
        assert!(page.len() <= 1000);
        all.extend(page);
    }
}

fn read(folder: &Path, scope: &str) -> Vec<usize> {
    let records = try_read(&Folder::at(folder), scope, Lane::Births).unwrap();
    records.iter().map(number).collect()
}

fn newest_first(from: usize, to: usize) -> Vec<usize> {
    (from..to).rev().collect()
}

fn database(folder: &Path) -> PathBuf {
    folder.join("log/records.sqlite")
}

fn write_ahead(folder: &Path) -> PathBuf {
    folder.join("log/records.sqlite-wal")
}

fn damaged(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut damaged: Vec<_> = entries
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .unwrap()
                .starts_with("log.damaged-")
        })
        .map(|entry| entry.path())
        .collect();
    damaged.sort();
    damaged
}

/// Makes the records of a log that nobody has open older, or younger.
fn age(folder: &Path, scope: &str, seconds: i64) {
    let db = rusqlite::Connection::open(database(folder)).unwrap();
    db.execute(
        "UPDATE record SET seq = seq - ?1 * 1000000 WHERE scope = (SELECT id FROM scope WHERE name = ?2)",
        rusqlite::params![seconds, scope.as_bytes()],
    )
    .unwrap();
}

/// The same numbers at each run.
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
    let log = Folder::at(folder.path());
    let mut writer = log.writer(SCOPE);
    for from in (0..3000).step_by(300) {
        writer
            .append(Lane::Births, &numbered(from, from + 300))
            .unwrap();
    }
    let mut reader = log.reader(SCOPE);
    reader.mark().unwrap();
    let mut all = Vec::new();
    for expected in [1400, 1400, 200, 0, 0] {
        let page = reader.older(Lane::Births, 1400).unwrap();
        assert_eq!(page.len(), expected);
        all.extend(page);
    }
    assert_eq!(all, numbered(0, 3000).into_iter().rev().collect::<Vec<_>>());
}

#[test]
fn scopes_and_lanes_are_apart() {
    let folder = TempDir::new().unwrap();
    let log = Folder::at(folder.path());
    let places = [
        ("a", Lane::Births),
        ("a", Lane::Control),
        ("b", Lane::Births),
        ("", Lane::Control),
    ];
    for (n, (scope, lane)) in places.into_iter().enumerate() {
        let mut writer = log.writer(scope);
        writer.append(lane, &numbered(10 * n, 10 * n + 3)).unwrap();
    }
    for (n, (scope, lane)) in places.into_iter().enumerate() {
        let found = try_read(&log, scope, lane).unwrap();
        let found: Vec<_> = found.iter().map(number).collect();
        assert_eq!(
            found,
            newest_first(10 * n, 10 * n + 3),
            "{scope:?} {lane:?}"
        );
    }
    assert_eq!(try_read(&log, "b", Lane::Control), Ok(vec![]));
    assert_eq!(try_read(&log, "c", Lane::Births), Ok(vec![]));
}

#[test]
fn what_is_appended_after_the_mark_is_not_met() {
    let folder = TempDir::new().unwrap();
    let log = Folder::at(folder.path());
    let (mut writer, mut reader) = (log.writer(SCOPE), log.reader(SCOPE));
    writer.append(Lane::Births, &numbered(0, 10)).unwrap();
    reader.mark().unwrap();
    writer.append(Lane::Births, &numbered(10, 20)).unwrap();
    let first = reader.older(Lane::Births, 5).unwrap();
    writer.append(Lane::Births, &numbered(20, 30)).unwrap();
    let second = reader.older(Lane::Births, 50).unwrap();
    let all: Vec<_> = first.iter().chain(&second).map(number).collect();
    assert_eq!(all, newest_first(0, 10));

    // Nor in a lane, or a scope, that was empty.
    let mut early = log.reader("other");
    early.mark().unwrap();
    let mut other = log.writer("other");
    other.append(Lane::Control, &numbered(0, 1)).unwrap();
    writer.append(Lane::Control, &numbered(0, 1)).unwrap();
    assert_eq!(early.older(Lane::Control, 9), Ok(vec![]));
    assert_eq!(reader.older(Lane::Control, 9), Ok(vec![]));
    assert_eq!(reader.newer(9, Duration::ZERO), Ok(vec![]));
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
                    // Opened by one while another closes it, and while a process is forked that has it open.
                    let mut writer = Folder::at(name).writer(SCOPE);
                    let from = 1000 * n + 10 * round;
                    writer
                        .append(Lane::Births, &numbered(from, from + 10))
                        .unwrap();
                    writer.sync().unwrap();
                    writer.trim(HOUR).unwrap();
                    drop(writer);
                    // Now and then, all are closed.
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
    for path in [made.clone(), made.join("log")] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o700);
    }
}

#[test]
fn nothing_is_mapped_into_memory() {
    let folder = TempDir::new().unwrap();
    let log = Folder::at(folder.path());
    log.writer(SCOPE)
        .append(Lane::Births, &numbered(0, 1000))
        .unwrap();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains(folder.path().to_str().unwrap()));
    assert!(write_ahead(folder.path()).exists());
    assert!(!folder.path().join("log/records.sqlite-shm").exists());
}

#[test]
fn each_scope_is_trimmed_by_its_own_age_by_whichever_is_open() {
    let folder = TempDir::new().unwrap();
    for (scope, keep) in [("short", HOUR), ("long", 10 * HOUR), ("closed", HOUR)] {
        append(folder.path(), scope, &numbered(0, 5000));
        Folder::at(folder.path()).writer(scope).trim(keep).unwrap();
        assert_eq!(read(folder.path(), scope).len(), 5000);
        age(folder.path(), scope, 2 * 3600);
        append(folder.path(), scope, &numbered(5000, 5010));
    }
    // This one never said how long; the longest time of all is kept.
    append(folder.path(), "unsaid", &numbered(0, 10));
    age(folder.path(), "unsaid", 2 * 3600);

    Folder::at(folder.path())
        .writer("short")
        .trim(HOUR)
        .unwrap();
    assert_eq!(read(folder.path(), "short"), newest_first(5000, 5010));
    assert_eq!(read(folder.path(), "closed"), newest_first(5000, 5010));
    assert_eq!(read(folder.path(), "long"), newest_first(0, 5010));
    assert_eq!(read(folder.path(), "unsaid"), newest_first(0, 10));

    for scope in ["closed", "unsaid"] {
        age(folder.path(), scope, 9 * 3600);
    }
    Folder::at(folder.path())
        .writer("short")
        .trim(FOR_EVER)
        .unwrap();
    assert_eq!(read(folder.path(), "closed"), []);
    // For ever is now the longest.
    assert_eq!(read(folder.path(), "unsaid"), newest_first(0, 10));
    assert_eq!(read(folder.path(), "short"), newest_first(5000, 5010));
}

#[test]
fn records_of_a_clock_that_was_far_ahead_go_and_later_ones_come_after_those_that_stay() {
    let folder = TempDir::new().unwrap();
    append(folder.path(), SCOPE, &numbered(0, 10));
    age(folder.path(), SCOPE, -1800);
    append(folder.path(), SCOPE, &numbered(10, 20));
    let mut writer = Folder::at(folder.path()).writer(SCOPE);
    writer.trim(HOUR).unwrap();
    drop(writer);
    assert_eq!(read(folder.path(), SCOPE), newest_first(0, 20));

    // With another scope's, so that the log is not spent.
    append(folder.path(), "other", &numbered(0, 1));
    age(folder.path(), SCOPE, -1801);
    append(folder.path(), SCOPE, &numbered(20, 30));
    let mut writer = Folder::at(folder.path()).writer(SCOPE);
    writer.trim(HOUR).unwrap();
    writer.append(Lane::Births, &numbered(30, 40)).unwrap();
    drop(writer);
    assert_eq!(read(folder.path(), SCOPE), newest_first(30, 40));
}

#[test]
fn the_space_of_what_is_dropped_is_used_again_or_given_back() {
    let folder = TempDir::new().unwrap();
    let size = || fs::metadata(database(folder.path())).unwrap().len();
    let mut sizes = Vec::new();
    for round in 0..6 {
        let mut writer = Folder::at(folder.path()).writer(SCOPE);
        for from in (0..20_000).step_by(500) {
            writer
                .append(Lane::Births, &numbered(from, from + 500))
                .unwrap();
        }
        drop(writer);
        // Two rounds are kept.
        age(folder.path(), SCOPE, 1000);
        let mut writer = Folder::at(folder.path()).writer(SCOPE);
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
    let mut writer = Folder::at(folder.path()).writer(SCOPE);
    writer.append(Lane::Births, &numbered(0, 1)).unwrap();
    writer.trim(HOUR).unwrap();
    // While it is open.
    assert!(size() < 3 << 20, "{}", size());
}

#[test]
fn a_folder_that_is_removed_is_made_again() {
    let folder = TempDir::new().unwrap();
    let log = folder.path().join("log of sessions");
    let mut writer = Folder::at(&log).writer(SCOPE);
    writer.sync().unwrap();
    writer.append(Lane::Births, &numbered(0, 10)).unwrap();
    fs::remove_dir_all(&log).unwrap();
    let appended = writer.append(Lane::Births, &numbered(10, 20));
    let error = appended.unwrap_err().0;
    assert!(error.starts_with("cannot append to the log in"), "{error}");
    assert!(error.ends_with("somebody has removed its files"), "{error}");
    writer.append(Lane::Births, &numbered(20, 30)).unwrap();
    writer.sync().unwrap();
    assert_eq!(writer.take_notice(), None);
    drop(writer);
    assert_eq!(read(&log, SCOPE), newest_first(20, 30));
}

/// The engine itself would go on, and what it wrote would be gone with the process.
#[test]
fn files_that_are_cut_short_while_open_are_set_aside() {
    for file in ["records.sqlite", "records.sqlite-wal"] {
        let folder = TempDir::new().unwrap();
        let mut writer = Folder::at(folder.path()).writer(SCOPE);
        writer.append(Lane::Births, &numbered(0, 10)).unwrap();
        let path = folder.path().join("log").join(file);
        let open = OpenOptions::new().write(true).open(path).unwrap();
        open.set_len(0).unwrap();
        let appended = writer.append(Lane::Births, &numbered(10, 20));
        let error = appended.unwrap_err().0;
        assert!(error.contains("cut them short"), "{error}");
        assert!(writer.take_notice().is_some());
        writer.append(Lane::Births, &numbered(20, 30)).unwrap();
        drop(writer);
        assert_eq!(read(folder.path(), SCOPE), newest_first(20, 30));
    }
}

#[test]
fn something_else_in_the_place_of_the_folder_is_an_error_until_it_is_gone() {
    let folder = TempDir::new().unwrap();
    let place = folder.path().join("journal");
    fs::write(&place, "mine").unwrap();
    let log = Folder::at(&place);
    let (mut writer, mut reader) = (log.writer(SCOPE), log.reader(SCOPE));
    for _ in 0..2 {
        let error = writer.append(Lane::Births, &numbered(0, 1)).unwrap_err().0;
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
    writer.append(Lane::Births, &numbered(0, 1)).unwrap();
    reader.mark().unwrap();
    assert_eq!(reader.older(Lane::Births, 9).unwrap().len(), 1);
    assert_eq!(writer.take_notice(), None);
}

// ---- damage ----

/// What a process that was killed in the midst of writing leaves, and how many records it acknowledged.
fn left_by_a_kill(folder: &Path) -> usize {
    let mut child = Process::start(folder);
    let mut acknowledged: usize = child.ask("write").parse().unwrap();
    // Some of it in the database, some in the write-ahead log, which has been begun anew.
    while acknowledged < 20_000 || fs::metadata(write_ahead(folder)).unwrap().len() < 1 << 20 {
        acknowledged = child.says().parse().unwrap();
    }
    match child.kill() {
        Some(said) => said.parse().unwrap(),
        None => acknowledged,
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir_all(to.join("log")).unwrap();
    fs::copy(database(from), database(to)).unwrap();
    // There is none where the log was closed.
    let _ = fs::copy(write_ahead(from), write_ahead(to));
}

/// Reads and writes until it works, and sees that what there is to see is known. Returns what was read first,
/// and what an operator was told.
fn uses(folder: &Path) -> (Vec<Record>, Option<String>) {
    let log = Folder::at(folder);
    let mut writer = log.writer(SCOPE);
    let mut errors = Vec::new();
    let read = loop {
        match try_read(&log, SCOPE, Lane::Births) {
            Ok(read) => break read,
            Err(error) => errors.push(error),
        }
        assert!(errors.len() < 3, "{errors:?}");
    };
    let new = numbered(1 << 40, (1 << 40) + 100);
    while let Err(error) = writer
        .append(Lane::Births, &new)
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
    let mut last = try_read(&log, SCOPE, Lane::Births).unwrap();
    last.truncate(100);
    last.reverse();
    assert_eq!(last, new);
    (read, told)
}

#[test]
fn the_write_ahead_log_may_end_anywhere() {
    let (left, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let all = left_by_a_kill(left.path());
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
    // What the database has, and more where not all is cut off.
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
            // Nothing of the database is in the write-ahead log as well.
            assert!(read(left.path(), SCOPE).len() >= all);
        }
        copy(left.path(), folder.path());
        let (path, end) = match round {
            0..25 => (write_ahead(folder.path()), u64::MAX),
            25..50 | 200.. => (database(folder.path()), u64::MAX),
            // The pages where the tables are described, and each byte of the header.
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
        let log = Folder::at(folder.path());
        let (mut writer, mut reader) = (log.writer(SCOPE), log.reader("another"));
        let error = writer.append(Lane::Births, &numbered(0, 1)).unwrap_err().0;
        let name = damaged(folder.path()).pop().unwrap();
        let expected = format!(
            "the log in {}: it was damaged (file is not a database (SQLite 26)), is kept as {}, and a new one is begun",
            folder.path().canonicalize().unwrap().display(),
            name.file_name().unwrap().to_str().unwrap(),
        );
        assert_eq!(error, format!("cannot append to {expected}"));
        // Told once, by whichever scope asks.
        assert_eq!(Folder::at(folder.path()).take_damage(), None);
        reader.mark().unwrap();
        assert_eq!(log.take_damage(), Some(expected));
        assert_eq!(writer.take_notice(), None);
        seen.push(name);
        writer.append(Lane::Births, &numbered(7, 8)).unwrap();
        drop((log, writer, reader));
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
    let mut writer = Folder::at(folder.path()).writer(SCOPE);
    let error = writer.append(Lane::Births, &numbered(1, 2)).unwrap_err().0;
    assert!(
        error.contains("damaged (attempt to write a readonly database"),
        "{error}"
    );
    writer.append(Lane::Births, &numbered(1, 2)).unwrap();
    drop(writer);
    assert_eq!(read(folder.path(), SCOPE), [1]);
}

#[test]
fn a_log_whose_tables_are_not_what_they_were_is_damaged() {
    for (change, why) in [
        ("DROP TABLE scope", "no such table: scope"),
        (
            "DROP TABLE record; CREATE TABLE record (scope, lane, seq, sealed);
             INSERT INTO record VALUES (1, 1, 1, 'text')",
            "Invalid column type Text",
        ),
    ] {
        let folder = TempDir::new().unwrap();
        append(folder.path(), SCOPE, &numbered(0, 1));
        let db = rusqlite::Connection::open(database(folder.path())).unwrap();
        db.execute_batch(change).unwrap();
        drop(db);
        let log = Folder::at(folder.path());
        let error = try_read(&log, SCOPE, Lane::Births).unwrap_err();
        assert!(error.contains(&format!("damaged ({why}")), "{error}");
        assert_eq!(try_read(&log, SCOPE, Lane::Births), Ok(vec![]));
    }
}

#[test]
fn a_log_in_which_a_later_record_comes_before_an_earlier_one_is_damaged() {
    let folder = TempDir::new().unwrap();
    append(folder.path(), SCOPE, &numbered(0, 10));
    let db = rusqlite::Connection::open(database(folder.path())).unwrap();
    let query = "SELECT seq FROM record LIMIT 1 OFFSET 5";
    let seq: i64 = db.query_row(query, [], |row| row.get(0)).unwrap();
    drop(db);
    let mut bytes = fs::read(database(folder.path())).unwrap();
    let places = bytes
        .windows(8)
        .filter(|window| *window == seq.to_be_bytes());
    assert_eq!(places.count(), 1);
    let at = bytes
        .windows(8)
        .position(|window| window == seq.to_be_bytes());
    bytes[at.unwrap()] = 0x7f;
    fs::write(database(folder.path()), bytes).unwrap();
    let log = Folder::at(folder.path());
    let error = try_read(&log, SCOPE, Lane::Births).unwrap_err();
    assert!(
        error.contains("damaged (records are out of order)"),
        "{error}"
    );
    assert_eq!(try_read(&log, SCOPE, Lane::Births), Ok(vec![]));
}

#[test]
fn a_log_of_another_layout_is_moved_aside() {
    let folder = TempDir::new().unwrap();
    append(folder.path(), SCOPE, &numbered(0, 1));
    let db = rusqlite::Connection::open(database(folder.path())).unwrap();
    db.pragma_update(None, "user_version", 2).unwrap();
    drop(db);
    let mut writer = Folder::at(folder.path()).writer(SCOPE);
    let error = writer.append(Lane::Births, &numbered(0, 1)).unwrap_err().0;
    assert!(
        error.contains("damaged (its layout is 2, not 1)"),
        "{error}"
    );
    writer.append(Lane::Births, &numbered(1, 2)).unwrap();
    assert_eq!(damaged(folder.path()).len(), 1);
}

// ---- other processes ----

/// Another process, which is this program as well, with a folder.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(folder: &Path) -> Self {
        Self::start_as(folder, &env::current_exe().unwrap(), |_| {})
    }

    fn start_as(folder: &Path, program: &Path, prepare: impl FnOnce(&mut Command)) -> Self {
        // The signal that comes with a limit to files is of no use.
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
            // The harness speaks as well.
            if let Some((_, said)) = line.trim_end().split_once("> ") {
                return said.into();
            }
        }
    }

    /// Returns what was said last.
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
    let log = Folder::at(&folder);
    let mut writer = log.writer(SCOPE);
    let mut count = 0;
    let mut append = |records: usize| {
        let result = writer.append(Lane::Births, &numbered(count, count + records));
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
        try_read(&Folder::at(folder.path()), SCOPE, Lane::Births),
        Err(refused.replace("append to", "read"))
    );
    assert_eq!(first.ask("append"), "done");
    assert_eq!(second.ask("append"), refused);
    first.kill();
    assert_eq!(second.ask("append"), "done");
    assert!(try_read(&Folder::at(folder.path()), SCOPE, Lane::Births).is_err());
    second.kill();
    assert_eq!(read(folder.path(), SCOPE), [0, 1, 0]);
}

#[test]
fn a_folder_that_may_not_be_written_to_is_an_error_until_it_may() {
    let folder = TempDir::new().unwrap();
    let program = folder.path().join("program");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
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
