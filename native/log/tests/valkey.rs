//! Tests of the log in Valkey and Redis, with real servers: those of `valkey-server` and `redis-server` that are
//! installed. `scripts/setup.sh valkey-server redis-server` installs them.
#![cfg(feature = "valkey")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::{Duration, Instant};

use rekindle_log::{
    Batch, Bounds, Log, LogError, LogFollower, LogReader, LogWriter, Mark, News, Password, Record,
    Stream, ValkeyConfig, ValkeyLog,
};

const SECRET: &str = "correct-horse";
const SCOPE: &str = "mqtt";
const CONTROL: &str = "rekindle:2:{mqtt}:control";
const SESSIONS: &str = "rekindle:2:{mqtt:0}:sessions";
/// A test that takes longer has failed.
const TEST_TIMEOUT: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_millis(200);
const KEEP: Duration = Duration::from_secs(3600);

/// The servers that are installed.
fn installed() -> impl Iterator<Item = &'static str> {
    ["valkey-server", "redis-server"]
        .into_iter()
        .filter(|program| Command::new(program).arg("--version").output().is_ok())
}

/// Runs a test with each server that is installed, side by side: tests wait more than they work.
fn each(test: impl Fn(&'static str) + Sync) {
    let found: Vec<_> = installed().collect();
    assert!(
        !found.is_empty(),
        "neither valkey-server nor redis-server is installed"
    );
    thread::scope(|scope| {
        for program in found {
            // A panic's message names the thread.
            let named = thread::Builder::new().name(program.into());
            named.spawn_scoped(scope, || test(program)).unwrap();
        }
    });
}

/// A folder that is deleted after the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("rekindle-log-valkey-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str, contents: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, contents).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server that ends with the test.
struct Server {
    program: &'static str,
    options: Vec<String>,
    port: u16,
    child: Child,
    folder: Folder,
}

impl Server {
    fn start(program: &'static str) -> Self {
        Self::with(program, &["--requirepass", SECRET])
    }

    fn with(program: &'static str, options: &[&str]) -> Self {
        let port = free_port();
        let own = ["--port", &port.to_string()].map(String::from);
        let options = options.iter().map(|option| option.to_string());
        Self::at(program, port, own.into_iter().chain(options).collect())
    }

    fn at(program: &'static str, port: u16, options: Vec<String>) -> Self {
        let folder = Folder::new();
        let child = Self::spawn(program, &options, &folder.0);
        let server = Self {
            program,
            options,
            port,
            child,
            folder,
        };
        server.await_port();
        server
    }

    fn spawn(program: &str, options: &[String], folder: &Path) -> Child {
        Command::new(program)
            .args(["--bind", "127.0.0.1", "--save", "", "--dir"])
            .arg(folder)
            .args(options)
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn await_port(&self) {
        until("the server listens", || {
            TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(self.program, &self.options, &self.folder.0);
        self.await_port();
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        let done = Command::new("sh")
            .args(["-c", r#"kill "-$0" "$1""#, signal, &pid])
            .status();
        assert!(done.unwrap().success());
    }

    fn config(&self) -> ValkeyConfig {
        ValkeyConfig::new(format!("valkey://:{SECRET}@127.0.0.1:{}", self.port))
    }

    fn log(&self) -> ValkeyLog {
        log(&self.config())
    }

    /// The tests' own connection to the server.
    fn admin(&self) -> Admin {
        until("the server answers", || {
            let stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
            let mut admin = Admin(BufReader::new(stream));
            admin.run(&["AUTH", SECRET]);
            (admin.run(&["PING"]) == "PONG").then_some(admin)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client of the tests. Returns answers as text, with the elements of arrays in lines.
struct Admin(BufReader<TcpStream>);

impl Admin {
    fn run(&mut self, words: &[&str]) -> String {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.send(&words);
        self.answer()
    }

    fn send(&mut self, words: &[&[u8]]) {
        let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            bytes.extend(format!("${}\r\n", word.len()).as_bytes());
            bytes.extend(*word);
            bytes.extend(b"\r\n");
        }
        self.0.get_mut().write_all(&bytes).unwrap();
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let rest = line[1..].trim_end().to_owned();
        match (&line[..1], rest.parse::<i64>()) {
            ("$" | "*", Ok(-1)) => String::new(),
            ("$", Ok(length)) => {
                let mut text = vec![0; length as usize + 2];
                self.0.read_exact(&mut text).unwrap();
                text.truncate(length as usize);
                String::from_utf8_lossy(&text).into_owned()
            }
            ("*", Ok(length)) => {
                let lines: Vec<_> = (0..length).map(|_| self.answer()).collect();
                lines.join("\n")
            }
            _ => rest,
        }
    }

    fn number(&mut self, words: &[&str]) -> i64 {
        let answer = self.run(words);
        answer
            .parse()
            .unwrap_or_else(|_| panic!("{words:?}: {answer}"))
    }

    /// How many commands the server has carried out, including those of the tests.
    fn commands(&mut self) -> i64 {
        let info = self.run(&["INFO", "stats"]);
        let line = info
            .lines()
            .find_map(|line| line.strip_prefix("total_commands_processed:"));
        line.unwrap().trim().parse().unwrap()
    }

    /// How much CPU time the server has used.
    fn cpu_seconds(&mut self) -> f64 {
        let info = self.run(&["INFO", "cpu"]);
        let seconds = |name| {
            let line = info.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().trim().parse::<f64>().unwrap()
        };
        seconds("used_cpu_sys:") + seconds("used_cpu_user:")
    }

    /// How many connections Rekindle has.
    fn connections(&mut self) -> usize {
        self.run(&["CLIENT", "LIST"])
            .matches("name=rekindle ")
            .count()
    }

    fn kill_clients(&mut self) -> i64 {
        self.number(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"])
    }
}

fn log(config: &ValkeyConfig) -> ValkeyLog {
    ValkeyLog::new(config.clone()).unwrap()
}

/// A port that nobody uses, another one with each call. Ports from 32768 on are not among them, because the system gives
/// those to any client, also before a server listens. Other processes on this machine begin elsewhere.
fn free_port() -> u16 {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let begin = 397 * std::process::id() as usize;
    loop {
        // The suites of Common Test, which run at the same time, take ports from 13,000 on. Otherwise both could find a port
        // free before either listens.
        let port = 10_000 + (begin + COUNT.fetch_add(1, Ordering::Relaxed)) % 3_000;
        if TcpListener::bind(("127.0.0.1", port as u16)).is_ok() {
            return port as u16;
        }
    }
}

fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs something that must end within the time of a call, 9 seconds, or a little later on a busy machine. The servers that
/// are tested so would never let it end.
fn bounded<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(what()));
    ended
        .recv_timeout(Duration::from_secs(30))
        .expect("the call does not end")
}

fn records(range: Range<u32>) -> Vec<Record> {
    range.map(|n| format!("record {n}").into_bytes()).collect()
}

fn append(
    writer: &mut dyn LogWriter,
    scope: &str,
    control: &[Record],
    sessions: &[Record],
) -> Result<(), LogError> {
    let batch = Batch {
        scope,
        control,
        sessions,
    };
    writer.append(&[batch])?.remove(0)
}

fn append_sessions(writer: &mut dyn LogWriter, range: Range<u32>) -> Result<(), LogError> {
    append(writer, SCOPE, &[], &records(range))
}

fn append_control(writer: &mut dyn LogWriter, range: Range<u32>) -> Result<(), LogError> {
    append(writer, SCOPE, &records(range), &[])
}

/// A follower that begins at the scope's present end.
fn follow(log: &ValkeyLog, scope: &str) -> Box<dyn LogFollower> {
    let mark = log.reader().mark(scope).unwrap();
    let mut follower = log.follower().unwrap();
    follower.follow(&scope.into(), &mark);
    follower
}

/// A follower that begins at the scope's beginning.
fn follow_all(log: &ValkeyLog, scope: &str) -> Box<dyn LogFollower> {
    let mut follower = log.follower().unwrap();
    follower.follow(&scope.into(), &Mark::default());
    follower
}

/// The next `count` records, however many calls they take.
fn read(follower: &mut dyn LogFollower, count: usize) -> Vec<(Stream, Record)> {
    let mut all = Vec::new();
    until("all are read", || {
        let news = follower.newer(100, SOON).unwrap_or_default();
        all.extend(
            news.records
                .into_iter()
                .map(|(_, lane, record)| (lane, record)),
        );
        (all.len() >= count).then_some(())
    });
    all
}

/// Reads until these sessions have come, and returns all records.
fn read_until(follower: &mut dyn LogFollower, range: Range<u32>) -> Vec<Record> {
    let mut all = Vec::new();
    let wanted = records(range);
    until("all are read", || {
        let news = follower.newer(1000, SOON).unwrap_or_default();
        all.extend(news.records.into_iter().map(|(_, _, record)| record));
        wanted
            .iter()
            .all(|record| all.contains(record))
            .then_some(())
    });
    all
}

/// Waits until the follower reports that a scope may have lost revocations.
fn await_loss(follower: &mut dyn LogFollower, scope: &str) {
    until("the loss is noticed", || {
        let lost = follower.newer(100, SOON).unwrap_or_default().lost;
        lost.iter().any(|name| &**name == scope).then_some(())
    });
}

/// Lets the follower check everything, without a loss.
fn settle(follower: &mut dyn LogFollower) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(2500) {
        assert!(follower.newer(100, SOON).unwrap().lost.is_empty());
    }
}

fn sessions(range: Range<u32>) -> Vec<(Stream, Record)> {
    let records = records(range).into_iter();
    records.map(|record| (Stream::Sessions, record)).collect()
}

/// Writes these sessions as soon as the server accepts them.
fn write_again(writer: &mut dyn LogWriter, range: Range<u32>) {
    until("it is written to again", || {
        append_sessions(writer, range.clone()).ok()
    });
}

fn all_older(reader: &mut dyn LogReader, stream: Stream, limit: usize) -> Vec<Record> {
    let mut all = Vec::new();
    loop {
        let page = reader.older(stream, limit).unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// The text of an error. It must not contain a password.
fn said<T: std::fmt::Debug>(result: Result<T, LogError>) -> String {
    let error = result.expect_err("it has to fail");
    let said = format!("{error} {error:?}");
    println!("{error}");
    for secret in [SECRET, "battery", "staple"] {
        assert!(!said.contains(secret), "a password is in {said}");
    }
    assert!(!error.0.contains('\n'));
    error.0
}

#[test]
fn records_go_in_and_come_out_in_their_order() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        let mut reader = log.reader();
        assert_eq!(reader.mark(SCOPE), Ok(Mark(vec![(0, 0); 3])));
        assert_eq!(reader.older(Stream::Sessions, 10), Ok(vec![]));
        let mut follower = follow(&log, SCOPE);
        let News {
            records: new, lost, ..
        } = follower.newer(10, Duration::ZERO).unwrap();
        assert_eq!((new.len(), lost.len()), (0, 0));
        append_sessions(&mut *writer, 0..1200).unwrap();
        assert_eq!(read(&mut *follower, 1200), sessions(0..1200));

        // Control records come first, and any bytes.
        let odd = vec![vec![], b"\r\n\0*1".to_vec(), vec![0xff; 1 << 20]];
        append(&mut *writer, SCOPE, &odd, &records(1200..1201)).unwrap();
        let mut expected: Vec<_> = odd
            .iter()
            .map(|record| (Stream::Control, record.clone()))
            .collect();
        expected.extend(sessions(1200..1201));
        assert_eq!(read(&mut *follower, 4), expected);

        // Another follower and a reader begin at the mark, in both directions.
        let mark = reader.mark(SCOPE).unwrap();
        append_sessions(&mut *writer, 1201..1300).unwrap();
        let mut back = all_older(&mut *reader, Stream::Sessions, 7);
        back.reverse();
        assert_eq!(back, records(0..1201));
        assert_eq!(all_older(&mut *reader, Stream::Control, 100).len(), 3);
        let mut second = log.follower().unwrap();
        second.follow(&SCOPE.into(), &mark);
        assert_eq!(read(&mut *second, 99), sessions(1201..1300));

        // Another scope has none of these records.
        reader.mark("mqtt:0").unwrap();
        assert_eq!(reader.older(Stream::Sessions, 10), Ok(vec![]));

        let ahead = reader.clock_ahead_ms().unwrap().unwrap();
        assert!(ahead.abs() < 60_000, "{ahead} ms");
        // The connections of a writer and two followers. The reader has read everything and closed its own.
        let mut admin = server.admin();
        until("the reader's connection is closed", || {
            (admin.connections() == 3).then_some(())
        });
    });
}

#[test]
fn a_call_returns_about_what_was_asked_for() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        append_sessions(&mut *log.writer(), 0..1000).unwrap();
        let mut follower = follow_all(&log, SCOPE);
        let mut all = Vec::new();
        while all.len() < 1000 {
            let some = follower.newer(30, Duration::ZERO).unwrap().records;
            assert!(some.len() <= 30);
            all.extend(some.into_iter().map(|(_, _, record)| record));
        }
        assert_eq!(all, records(0..1000));
        // Records that were not returned yet are dropped with the scope.
        let mut follower = follow_all(&log, SCOPE);
        assert_eq!(follower.newer(30, SOON).unwrap().records.len(), 30);
        follower.leave(SCOPE);
        assert_eq!(follower.newer(30, Duration::ZERO).unwrap().records, vec![]);
    });
}

#[test]
fn a_waiting_follower_is_woken_up() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut follower = follow(&log, SCOPE);
        let waiting = thread::spawn(move || loop {
            let news = follower.newer(10, Duration::from_secs(5)).unwrap();
            if !news.records.is_empty() {
                return news.records;
            }
        });
        let mut admin = server.admin();
        until("it waits", || {
            let clients = admin.run(&["CLIENT", "LIST"]);
            clients.contains("flags=b").then_some(())
        });
        append_sessions(&mut *log.writer(), 0..1).unwrap();
        let found = waiting.join().unwrap();
        assert_eq!(
            found,
            vec![(SCOPE.into(), Stream::Sessions, records(0..1).remove(0))]
        );
    });
}

#[test]
fn batches_of_many_scopes_have_a_result_each() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        server
            .admin()
            .run(&["SET", "rekindle:2:{b}:control", "a string"]);
        server
            .admin()
            .run(&["SET", "rekindle:2:{d:0}:sessions", "a string"]);
        let mut writer = log.writer();
        let (control, new) = (records(0..2), records(2..5));
        let batches = ["a", "b", "c", "d"].map(|scope| Batch {
            scope,
            control: &control,
            sessions: &new,
        });
        let results = writer.append(&batches).unwrap();
        assert_eq!(
            results.iter().map(Result::is_ok).collect::<Vec<_>>(),
            [true, false, true, false]
        );
        let b = results[1].clone();
        assert!(said(b).contains("WRONGTYPE"));
        let d = results[3].clone();
        assert!(said(d).contains("rekindle:2:{d:0}:sessions"));
        // Without its control records, a scope's sessions are not read.
        assert_eq!(
            server
                .admin()
                .number(&["XLEN", "rekindle:2:{b:0}:sessions"]),
            0
        );
        assert_eq!(
            server.admin().number(&["XLEN", "rekindle:2:{d}:control"]),
            2
        );

        // The other streams are followed, if they can be read.
        let mut follower = log.follower().unwrap();
        for scope in ["a", "b", "c", "d"] {
            follower.follow(&scope.into(), &Mark::default());
        }
        let mut found = Vec::new();
        let mut lost = Vec::new();
        until("the others are read", || {
            let news = follower.newer(100, SOON).unwrap();
            found.extend(
                news.records
                    .into_iter()
                    .map(|(scope, ..)| scope.to_string()),
            );
            lost.extend(news.lost);
            (found.len() >= 12).then_some(())
        });
        found.sort_unstable();
        found.dedup();
        assert_eq!(found, ["a", "c", "d"]);
        assert!(lost.contains(&"b".into()));
        // The scopes stay refused, each for its own reason, and that is no news.
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(2500) {
            let asked = Instant::now();
            let news = follower.newer(100, SOON).unwrap();
            assert!(asked.elapsed() >= SOON);
            assert_eq!((news.records.len(), news.lost.len()), (0, 0));
            let refused: Vec<_> = news.refused.iter().map(|(scope, _)| &**scope).collect();
            assert_eq!(refused, ["b", "d"]);
            for ((_, why), key) in news.refused.iter().zip(["{b}:control", "{d:0}:sessions"]) {
                assert!(why.0.contains("WRONGTYPE") && why.0.contains(key), "{why}");
            }
        }
        // The stream is read again as soon as that is possible.
        server.admin().run(&["DEL", "rekindle:2:{b}:control"]);
        assert!(append(&mut *writer, "b", &control, &new).is_ok());
        let mut found = 0;
        let mut lost = Vec::new();
        until("it is read again", || {
            let news = follower.newer(100, SOON).unwrap();
            found += news.records.len();
            lost.extend(news.lost);
            let refused: Vec<_> = news.refused.iter().map(|(scope, _)| &**scope).collect();
            (found == 5 && refused == ["d"]).then_some(())
        });
        assert_eq!(lost, ["b".into()]);
    });
}

/// A user may have the right to check a stream, and none to read it. Here it may read the sessions, but they have to
/// wait for the control records.
#[test]
fn a_scope_that_may_not_be_read_stays_refused() {
    each(|program| {
        let server = Server::start(program);
        append_sessions(&mut *server.log().writer(), 0..5).unwrap();
        let mut admin = server.admin();
        let mut rights = |more: &[&str]| {
            let user = ["ACL", "SETUSER", "half", "on", ">staple", "~rekindle:2:*"];
            assert_eq!(admin.run(&[&user[..], more].concat()), "OK");
        };
        rights(&["+xinfo", "(+xread ~rekindle:2:{mqtt:*)"]);
        let url = format!("redis://half:staple@127.0.0.1:{}", server.port);
        let half = log(&ValkeyConfig::new(url));
        let mut follower = follow_all(&half, SCOPE);
        let mut lost = 0;
        let mut calls = 0;
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(3500) {
            let news = follower.newer(10, Duration::from_secs(1)).unwrap();
            assert_eq!((news.records.len(), news.refused.len()), (0, 1));
            assert!(news.refused[0].1 .0.contains("NOPERM"), "{news:?}");
            lost += news.lost.len();
            calls += 1;
        }
        assert!(lost <= 1 && calls <= 6, "{lost} losses, {calls} calls");
        rights(&["+xread"]);
        assert_eq!(read(&mut *follower, 5), sessions(0..5));
        assert_eq!(follower.newer(10, SOON).unwrap().refused, []);
    });
}

#[test]
fn partitions_are_merged_newest_first() {
    each(|program| {
        let server = Server::start(program);
        let config = ValkeyConfig {
            partitions: 4,
            ..server.config()
        };
        let log = log(&config);
        let mut writer = log.writer();
        for batch in 0..40 {
            append_sessions(&mut *writer, 25 * batch..25 * (batch + 1)).unwrap();
            // The next one has later ids.
            thread::sleep(Duration::from_millis(3));
        }
        // One partition has far more sessions than the others. That does not say which are newest.
        let mut admin = server.admin();
        for n in 1000..1100 {
            admin.run(&["XADD", SESSIONS, "*", "r", &format!("record {n}")]);
        }
        let mut reader = log.reader();
        let mark = reader.mark(SCOPE).unwrap();
        let mut back = all_older(&mut *reader, Stream::Sessions, 30);
        back.reverse();
        assert_eq!(back, records(0..1100));
        assert_eq!(admin.run(&["KEYS", "*sessions"]).lines().count(), 4);

        let mut follower = log.follower().unwrap();
        follower.follow(&SCOPE.into(), &mark);
        append_sessions(&mut *writer, 0..250).unwrap();
        let mut new = read(&mut *follower, 250);
        new.sort_by_key(|(_, record)| (record.len(), record.clone()));
        assert_eq!(new, sessions(0..250));
    });
}

/// A partition's share of memory is less than the longest record.
#[test]
fn long_records_in_many_partitions_are_merged() {
    each(|program| {
        let server = Server::start(program);
        let log = log(&ValkeyConfig {
            partitions: 64,
            ..server.config()
        });
        let mut writer = log.writer();
        let lengths = [1 << 20, 100, 400_000].into_iter().cycle();
        let all: Vec<Record> = (0..150).zip(lengths).map(|(n, l)| vec![n; l]).collect();
        for record in &all {
            append(&mut *writer, SCOPE, &[], std::slice::from_ref(record)).unwrap();
            // The next one has a later id.
            thread::sleep(Duration::from_millis(3));
        }
        let mut reader = log.reader();
        for limit in [1, 1000] {
            reader.mark(SCOPE).unwrap();
            let mut back = all_older(&mut *reader, Stream::Sessions, limit);
            back.reverse();
            assert!(back == all, "{} records", back.len());
        }
    });
}

#[test]
fn sessions_wait_for_all_control_records() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        append_sessions(&mut *writer, 0..5).unwrap();
        // More records than one read returns.
        append_control(&mut *writer, 0..15_000).unwrap();
        let mut follower = follow_all(&log, SCOPE);
        let all = read(&mut *follower, 15_005);
        assert!(all[..15_000]
            .iter()
            .all(|(stream, _)| *stream == Stream::Control));
        assert_eq!(all[15_000..], sessions(0..5));
        settle(&mut *follower);
    });
}

#[test]
fn long_answers_are_read_in_parts() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let long: Vec<Record> = (0..80).map(|n| vec![n; 1 << 20]).collect();
        append(&mut *log.writer(), SCOPE, &[], &long).unwrap();
        let mut follower = follow_all(&log, SCOPE);
        let found: Vec<Record> = read(&mut *follower, 80)
            .into_iter()
            .map(|(_, r)| r)
            .collect();
        assert!(found == long);
        let mut reader = log.reader();
        reader.mark(SCOPE).unwrap();
        let mut back = all_older(&mut *reader, Stream::Sessions, 80);
        back.reverse();
        assert!(back == long);
        let too_long = vec![vec![0; (1 << 20) + 1]];
        said(append(&mut *log.writer(), SCOPE, &[], &too_long));
    });
}

#[test]
fn passwords() {
    each(|program| {
        let server = Server::start(program);
        let port = server.port;
        let try_it = |config: ValkeyConfig| append_sessions(&mut *log(&config).writer(), 0..1);
        let plain = format!("redis://127.0.0.1:{port}");

        assert!(said(try_it(ValkeyConfig::new(&plain))).contains("NOAUTH"));
        for user in ["", "me"] {
            let url = format!("redis://{user}:staple@127.0.0.1:{port}");
            assert!(said(try_it(ValkeyConfig::new(url))).contains("refused"));
        }
        assert_eq!(try_it(server.config()), Ok(()));

        let file = server.folder.file("password", "staple\n");
        let config = ValkeyConfig {
            password: Password::File(file.clone()),
            ..ValkeyConfig::new(&plain)
        };
        assert!(said(try_it(config.clone())).contains("refused"));
        server.folder.file("password", "\n");
        assert!(said(try_it(config.clone())).contains("empty"));
        fs::remove_file(&file).unwrap();
        assert!(said(try_it(config.clone())).contains("No such file"));
        server.folder.file("password", &format!("{SECRET}\r\n"));
        assert_eq!(try_it(config.clone()), Ok(()));

        let name = format!("REKINDLE_TEST_{port}");
        let env = ValkeyConfig {
            password: Password::Env(name.clone()),
            ..ValkeyConfig::new(&plain)
        };
        assert!(said(try_it(env.clone())).contains(&name));
        std::env::set_var(&name, SECRET);
        assert_eq!(try_it(env), Ok(()));

        // Redis repeats unknown commands in its errors.
        let deaf = Server::with(program, &["--rename-command", "AUTH", ""]);
        assert!(said(try_it(deaf.config())).contains("refused"));

        // The password changes while both ends are connected.
        let log = log(&config);
        let mut writer = log.writer();
        append_sessions(&mut *writer, 0..1).unwrap();
        let mut follower = follow(&log, SCOPE);
        follower.newer(10, Duration::ZERO).unwrap();
        let mut admin = server.admin();
        admin.run(&["CONFIG", "SET", "requirepass", "battery"]);
        assert!(admin.kill_clients() >= 2);
        assert!(said(append_sessions(&mut *writer, 1..2)).contains("refused"));
        assert!(said(follower.newer(10, Duration::ZERO)).contains("refused"));
        server.folder.file("password", "battery");
        assert_eq!(append_sessions(&mut *writer, 2..3), Ok(()));
        assert_eq!(read(&mut *follower, 1), sessions(2..3));
    });
}

#[test]
fn a_connection_that_was_closed_while_idle_is_no_error() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        append_control(&mut *writer, 0..3).unwrap();
        let mut follower = follow(&log, SCOPE);
        let mut reader = log.reader();
        reader.mark(SCOPE).unwrap();
        settle(&mut *follower);
        let mut admin = server.admin();
        for round in 0..3 {
            let connected = if round == 0 { 3 } else { 2 };
            // The reader has closed its connection in the first round, and the server may not have noticed yet.
            until("the connections", || {
                (admin.connections() == connected).then_some(())
            });
            assert_eq!(admin.kill_clients(), connected as i64);
            append_sessions(&mut *writer, round..round + 1).unwrap();
            let news = follower.newer(10, SOON).unwrap();
            assert_eq!(news.lost, [SCOPE.into()]);
            let mut found = news.records;
            while found.is_empty() {
                found = follower.newer(10, SOON).unwrap().records;
            }
            assert_eq!(found.len(), 1);
            if round == 0 {
                assert_eq!(reader.older(Stream::Control, 10).unwrap().len(), 3);
            }
        }
        // Nothing was written twice.
        assert_eq!(admin.number(&["XLEN", SESSIONS]), 3);
        settle(&mut *follower);
    });
}

#[test]
fn a_server_that_is_killed_and_comes_back_empty() {
    each(|program| {
        let mut server = Server::start(program);
        let config = ValkeyConfig {
            partitions: 2,
            ..server.config()
        };
        let log = log(&config);
        let mut writer = log.writer();
        append_sessions(&mut *writer, 0..250).unwrap();
        let mut follower = follow_all(&log, SCOPE);
        assert_eq!(read(&mut *follower, 250).len(), 250);
        let mut behind = log.reader();
        behind.mark(SCOPE).unwrap();
        assert!(!behind.older(Stream::Sessions, 3).unwrap().is_empty());
        server.kill();
        let refused = said(append_sessions(&mut *writer, 250..251));
        assert!(refused.contains("Connection refused"), "{refused}");
        said(follower.newer(10, Duration::ZERO));
        let bounds = Bounds {
            scope: SCOPE,
            keep: KEEP,
            max_bytes: 1 << 30,
        };
        said(writer.trim(&[bounds]));
        said(behind.mark(SCOPE));
        server.restart();
        write_again(&mut *writer, 251..252);
        await_loss(&mut *follower, SCOPE);
        write_again(&mut *writer, 252..253);
        assert!(read_until(&mut *follower, 252..253).len() <= 2);
    });
}

#[test]
fn lost_control_records_are_noticed() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        let mut admin = server.admin();
        append_control(&mut *writer, 0..5).unwrap();
        // An entry that is no record counts as well.
        admin.run(&["XADD", CONTROL, "*", "other", "field"]);
        let mut follower = follow(&log, SCOPE);
        settle(&mut *follower);
        append(&mut *writer, SCOPE, &records(5..8), &records(0..3)).unwrap();
        assert_eq!(read(&mut *follower, 6).len(), 6);
        settle(&mut *follower);

        // One record is deleted, one is trimmed.
        let first = admin.run(&["XRANGE", CONTROL, "-", "+", "COUNT", "1"]);
        admin.run(&["XDEL", CONTROL, first.lines().next().unwrap()]);
        await_loss(&mut *follower, SCOPE);
        settle(&mut *follower);
        admin.run(&["XTRIM", CONTROL, "MAXLEN", "7"]);
        await_loss(&mut *follower, SCOPE);
        settle(&mut *follower);

        // The stream is deleted, and soon has as many new records.
        admin.run(&["DEL", CONTROL]);
        append_control(&mut *writer, 10..20).unwrap();
        await_loss(&mut *follower, SCOPE);
        settle(&mut *follower);

        // An older state comes back, and a record is appended to it.
        let mut copies = Vec::new();
        for n in 0..3 {
            let copy = format!("rekindle:2:{{mqtt}}:copy{n}");
            admin.run(&["COPY", CONTROL, &copy]);
            copies.push(copy);
            append_control(&mut *writer, 20 + n..21 + n).unwrap();
        }
        read_until(&mut *follower, 20..23);
        settle(&mut *follower);
        admin.run(&["COPY", &copies[0], CONTROL, "REPLACE"]);
        append_control(&mut *writer, 30..31).unwrap();
        await_loss(&mut *follower, SCOPE);
        settle(&mut *follower);
        admin.run(&["COPY", &copies[0], CONTROL, "REPLACE"]);
        await_loss(&mut *follower, SCOPE);

        // Lost sessions are not reported.
        admin.run(&["DEL", SESSIONS]);
        settle(&mut *follower);
        append_sessions(&mut *writer, 40..41).unwrap();
        assert!(read_until(&mut *follower, 40..41).contains(&records(40..41)[0]));
    });
}

#[test]
fn a_stream_that_begins_again_with_earlier_ids_is_read() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        let mut follower = follow(&log, SCOPE);
        let mut admin = server.admin();
        for key in [CONTROL, SESSIONS] {
            admin.run(&["XADD", key, "99999999999999-7", "r", "late"]);
        }
        assert_eq!(read(&mut *follower, 2).len(), 2);
        admin.run(&["FLUSHALL"]);
        append(&mut *writer, SCOPE, &records(0..1), &records(1..2)).unwrap();
        let mut found = read(&mut *follower, 2);
        found.sort_by_key(|(_, record)| record.clone());
        let control = (Stream::Control, records(0..1).remove(0));
        assert_eq!(found, [control, sessions(1..2).remove(0)]);
        // It is reported once.
        settle(&mut *follower);
    });
}

#[test]
fn a_server_that_stops_makes_errors_and_hangs_nobody() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        append_sessions(&mut *writer, 0..10).unwrap();
        let mut follower = follow_all(&log, SCOPE);
        assert_eq!(read(&mut *follower, 10), sessions(0..10));
        server.signal("STOP");
        // Hundreds of missing answers cost one wait.
        let mut writer = bounded(move || {
            let late = said(append_sessions(&mut *writer, 10..700));
            assert!(late.contains("no answer in time"));
            writer
        });
        let mut follower = bounded(move || {
            said(follower.newer(10, Duration::from_millis(500)));
            follower
        });
        // Now they have to connect.
        let mut writer = bounded(move || {
            said(append_sessions(&mut *writer, 700..710));
            writer
        });
        server.signal("CONT");
        write_again(&mut *writer, 10..20);
        // Records that were sent before may have arrived as well.
        let found = read_until(&mut *follower, 10..20);
        assert!(!found.contains(&records(0..1)[0]));
    });
}

#[test]
fn a_full_server_refuses_records_until_there_is_room() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        append_sessions(&mut *writer, 0..1).unwrap();
        let mut follower = follow_all(&log, SCOPE);
        let mut admin = server.admin();
        admin.run(&["CONFIG", "SET", "maxmemory", "1"]);
        assert!(said(append_sessions(&mut *writer, 1..2)).contains("OOM"));
        assert_eq!(read(&mut *follower, 1), sessions(0..1));
        assert_eq!(writer.trim(&[bounds(KEEP, u64::MAX)]), Ok(()));
        admin.run(&["CONFIG", "SET", "maxmemory", "0"]);
        assert_eq!(append_sessions(&mut *writer, 2..3), Ok(()));
        assert_eq!(read(&mut *follower, 1), sessions(2..3));
    });
}

fn bounds(keep: Duration, max_bytes: u64) -> Bounds<'static> {
    Bounds {
        scope: SCOPE,
        keep,
        max_bytes,
    }
}

#[test]
fn a_server_that_has_become_a_replica_is_left() {
    each(|program| {
        let primary = Server::start(program);
        let old = Server::with(program, &["--requirepass", SECRET, "--masterauth", SECRET]);
        let log = old.log();
        let mut writer = log.writer();
        append_control(&mut *writer, 0..2).unwrap();
        let mut follower = follow(&log, SCOPE);
        settle(&mut *follower);
        let mut admin = old.admin();
        admin.run(&["REPLICAOF", "127.0.0.1", &primary.port.to_string()]);
        assert!(said(append_control(&mut *writer, 1..2)).contains("READONLY"));
        // It becomes a replica, and takes over the empty state of the primary.
        until("it follows the primary", || {
            let info = admin.run(&["INFO", "replication"]);
            info.contains("master_link_status:up").then_some(())
        });
        await_loss(&mut *follower, SCOPE);
        admin.run(&["REPLICAOF", "NO", "ONE"]);
        append_control(&mut *writer, 2..3).unwrap();
        read_until(&mut *follower, 2..3);
    });
}

#[test]
fn what_is_lost_between_mark_and_first_read_is_noticed() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        append_control(&mut *writer, 0..5).unwrap();
        let mut follower = follow(&log, SCOPE);
        let mut admin = server.admin();
        admin.run(&["XTRIM", CONTROL, "MAXLEN", "1"]);
        append_control(&mut *writer, 5..7).unwrap();
        await_loss(&mut *follower, SCOPE);
    });
}

fn openssl(folder: &Folder, arguments: &str) {
    let arguments: Vec<_> = arguments.split(' ').collect();
    let done = Command::new("openssl")
        .args(&arguments)
        .current_dir(&folder.0)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "openssl {arguments:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// A CA with certificates for a server at 127.0.0.1 and for a client; and another CA.
fn certificates() -> Folder {
    let folder = Folder::new();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc";
    for ca in ["ca", "other"] {
        openssl(
            &folder,
            &format!("req -x509 {key} -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem"),
        );
    }
    folder.file("names", "subjectAltName=IP:127.0.0.1");
    for name in ["server", "client"] {
        openssl(
            &folder,
            &format!("req {key} -subj /CN={name} -keyout {name}.key -out {name}.csr"),
        );
        openssl(
            &folder,
            &format!(
                "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names \
                 -out {name}.pem"
            ),
        );
    }
    folder
}

fn tls_server(program: &'static str, files: &Folder, auth_clients: &str) -> Server {
    let path = |name: &str| files.0.join(name).to_str().unwrap().to_owned();
    let port = free_port();
    let options = [
        "--port",
        "0",
        "--tls-port",
        &port.to_string(),
        "--tls-auth-clients",
        auth_clients,
        "--requirepass",
        SECRET,
        "--tls-cert-file",
        &path("server.pem"),
        "--tls-key-file",
        &path("server.key"),
        "--tls-ca-cert-file",
        &path("ca.pem"),
    ]
    .map(String::from);
    Server::at(program, port, options.into())
}

#[test]
fn tls() {
    each(|program| {
        let files = certificates();
        let server = tls_server(program, &files, "no");
        let config = |scheme: &str, host: &str, ca: Option<&str>| ValkeyConfig {
            ca_file: ca.map(|ca| files.0.join(ca)),
            ..ValkeyConfig::new(format!("{scheme}://:{SECRET}@{host}:{}", server.port))
        };
        for scheme in ["rediss", "valkeys"] {
            let log = log(&config(scheme, "127.0.0.1", Some("ca.pem")));
            let mut follower = follow(&log, SCOPE);
            let mut writer = log.writer();
            append_sessions(&mut *writer, 0..2000).unwrap();
            assert_eq!(read(&mut *follower, 2000), sessions(0..2000));
            // Records that TLS itself sends must not look like the end of a connection.
            append_sessions(&mut *writer, 2000..2001).unwrap();
            assert_eq!(follower.newer(10, SOON).unwrap().lost.len(), 0);
        }
        let try_it = |config| append_sessions(&mut *log(&config).writer(), 0..1);
        for (config, words) in [
            (
                config("rediss", "127.0.0.1", Some("other.pem")),
                "UnknownIssuer",
            ),
            (
                config("rediss", "localhost", Some("ca.pem")),
                "not valid for name",
            ),
            (
                config("rediss", "127.0.0.1", Some("server.key")),
                "no certificate",
            ),
            (
                config("rediss", "127.0.0.1", Some("missing.pem")),
                "No such file",
            ),
            (config("rediss", "127.0.0.1", None), ""),
            (config("redis", "127.0.0.1", None), ""),
        ] {
            let said = said(try_it(config));
            assert!(said.contains(words), "{said}");
        }
        // A server without TLS.
        let plain = Server::start(program);
        let url = format!("rediss://:{SECRET}@127.0.0.1:{}", plain.port);
        said(try_it(ValkeyConfig {
            ca_file: Some(files.0.join("ca.pem")),
            ..ValkeyConfig::new(url)
        }));
    });
}

#[test]
fn tls_with_client_certificates() {
    each(|program| {
        let files = certificates();
        let server = tls_server(program, &files, "yes");
        let config = |certificate: Option<&str>, key: Option<&str>| ValkeyConfig {
            ca_file: Some(files.0.join("ca.pem")),
            tls_cert_file: certificate.map(|name| files.0.join(name)),
            tls_key_file: key.map(|name| files.0.join(name)),
            ..ValkeyConfig::new(format!("rediss://:{SECRET}@127.0.0.1:{}", server.port))
        };
        let try_it = |config: ValkeyConfig| append_sessions(&mut *log(&config).writer(), 0..5);
        let good = config(Some("client.pem"), Some("client.key"));
        assert_eq!(try_it(good.clone()), Ok(()));
        assert_eq!(
            read(&mut *follow_all(&log(&good), SCOPE), 5),
            sessions(0..5)
        );

        said(try_it(config(None, None)));
        said(try_it(config(Some("other.pem"), Some("other.key"))));
        for (certificate, key, words) in [
            ("missing.pem", "client.key", "No such file"),
            ("client.key", "client.key", "no certificate in it"),
            ("client.pem", "client.pem", "no private key in it"),
            ("client.pem", "server.key", "does not belong to"),
        ] {
            let said = said(try_it(config(Some(certificate), Some(key))));
            assert!(said.contains(words), "{said}");
        }
    });
}

#[test]
fn a_user_with_the_least_rights() {
    each(|program| {
        let server = Server::start(program);
        let mut admin = server.admin();
        let mut user = |name: &str, rights: &str| {
            let mut words = vec!["ACL", "SETUSER", name, "on", ">staple", "~rekindle:2:*"];
            words.extend(rights.split(' '));
            assert_eq!(admin.run(&words), "OK");
        };
        user("journal", "+xadd +xtrim +time +xread +xrevrange +xinfo");
        user("hoarder", "+xadd +time +xinfo");
        user("nobody", "+ping");
        let config = ValkeyConfig {
            user: Some("journal".into()),
            password: Password::File(server.folder.file("password", "staple")),
            ..ValkeyConfig::new(format!("redis://127.0.0.1:{}", server.port))
        };
        let log_of = log(&config);
        let mut writer = log_of.writer();
        let mut follower = follow(&log_of, SCOPE);
        append_sessions(&mut *writer, 0..5).unwrap();
        assert_eq!(writer.trim(&[bounds(KEEP, 1 << 30)]), Ok(()));
        let bytes = writer.bytes(SCOPE).unwrap();
        assert!((50..1000).contains(&bytes), "{bytes}");
        assert_eq!(writer.take_notice(), None);
        assert_eq!(read(&mut *follower, 5), sessions(0..5));
        settle(&mut *follower);
        let mut reader = log_of.reader();
        reader.mark(SCOPE).unwrap();
        assert_eq!(reader.older(Stream::Sessions, 10).unwrap().len(), 5);
        assert!(reader.clock_ahead_ms().is_ok());

        let hoarder = log(&ValkeyConfig {
            user: Some("hoarder".into()),
            ..config.clone()
        });
        let trimmed = hoarder.writer().trim(&[bounds(Duration::ZERO, u64::MAX)]);
        let error = said(trimmed);
        assert!(
            error.contains("NOPERM") && error.contains("{mqtt:0}"),
            "{error}"
        );

        let nobody = log(&ValkeyConfig {
            user: Some("nobody".into()),
            ..config
        });
        let mut writer = nobody.writer();
        assert!(said(append_sessions(&mut *writer, 0..1)).contains("NOPERM"));
        assert!(said(writer.trim(&[bounds(KEEP, 1)])).contains("NOPERM"));
        assert!(said(nobody.reader().mark(SCOPE)).contains("NOPERM"));
        let mut follower = follow_all(&nobody, SCOPE);
        for _ in 0..3 {
            let refused = follower.newer(1, Duration::ZERO).unwrap().refused;
            assert_eq!(&*refused[0].0, SCOPE);
            assert!(said::<()>(Err(refused[0].1.clone())).contains("NOPERM"));
        }
    });
}

#[test]
fn what_was_seen_to_grow_too_old_is_dropped() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        let mut admin = server.admin();
        // Ids of ten days ago and of next year say nothing about an entry's age.
        for time in ["1000000", "99999999999999"] {
            for n in 0..300 {
                admin.run(&["XADD", SESSIONS, &format!("{time}-{n}"), "r", "old"]);
                admin.run(&["XADD", CONTROL, &format!("{time}-{n}"), "r", "old"]);
            }
        }
        let keep = Duration::from_secs(1);
        let began = Instant::now();
        writer.trim(&[bounds(keep, u64::MAX)]).unwrap();
        assert_eq!(admin.number(&["XLEN", SESSIONS]), 600);
        assert_eq!(admin.number(&["XLEN", CONTROL]), 600);
        append_sessions(&mut *writer, 0..50).unwrap();
        for (stream, at_least) in [(SESSIONS, keep), (CONTROL, 2 * keep)] {
            until("the old records are dropped", || {
                writer.trim(&[bounds(keep, u64::MAX)]).unwrap();
                (admin.number(&["XLEN", stream]) < 150).then_some(())
            });
            assert!(began.elapsed() > at_least - Duration::from_millis(500));
        }

        // Absurd ages are no error.
        for keep in [Duration::ZERO, Duration::MAX] {
            assert_eq!(writer.trim(&[bounds(keep, 0)]), Ok(()));
        }
    });
}

/// An expiry would follow the server's clock, whatever happens to that.
#[test]
fn no_key_of_the_log_has_an_expiry() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        // The server says its eviction policy when the log is trimmed.
        for keep in [KEEP, 2 * KEEP] {
            append(&mut *writer, SCOPE, &records(0..3), &records(3..6)).unwrap();
            writer.trim(&[bounds(keep, u64::MAX)]).unwrap();
        }
        assert_no_expiry(&mut server.admin(), 2);
    });
}

/// Checks that no key of the server has an expiry, and that it has at least this number of keys.
fn assert_no_expiry(admin: &mut Admin, at_least: usize) {
    let keys = admin.run(&["KEYS", "*"]);
    assert!(keys.lines().count() >= at_least, "{keys}");
    for key in keys.lines() {
        assert_eq!(admin.number(&["TTL", key]), -1, "{key}");
    }
}

#[test]
fn what_takes_too_much_loses_its_oldest_sessions() {
    each(|program| {
        let server = Server::start(program);
        let config = ValkeyConfig {
            partitions: 3,
            ..server.config()
        };
        let log = log(&config);
        let mut writer = log.writer();
        let long = |n: u32| format!("{n:06}{}", "x".repeat(500)).into_bytes();
        let new: Vec<Record> = (0..30_000).map(long).collect();
        append(&mut *writer, SCOPE, &new[..1000], &new).unwrap();
        assert_eq!(writer.bytes(SCOPE), None);
        let max_bytes = 5 << 20;
        until("there is little enough", || {
            writer.trim(&[bounds(KEEP, max_bytes)]).unwrap();
            writer.bytes(SCOPE).filter(|bytes| *bytes <= max_bytes)
        });
        let mut admin = server.admin();
        let keys = (0..3).map(|n| format!("rekindle:2:{{mqtt:{n}}}:sessions"));
        let keys: Vec<_> = keys.chain([CONTROL.to_owned()]).collect();
        let mut used = 0;
        for key in &keys {
            used += admin.number(&["MEMORY", "USAGE", key, "SAMPLES", "0"]);
        }
        assert!((4 << 20..6 << 20).contains(&used), "{used}");
        assert_eq!(admin.number(&["XLEN", CONTROL]), 1000);
        // The newest are left.
        let mut reader = log.reader();
        reader.mark(SCOPE).unwrap();
        let back = all_older(&mut *reader, Stream::Sessions, 1000);
        assert!(back.len() > 5000, "{}", back.len());
        assert!(back.iter().all(|record| *record >= long(15_000)));
        // If the control records alone exceed the bound, they stay.
        writer.trim(&[bounds(KEEP, 1)]).unwrap();
        assert_eq!(admin.number(&["XLEN", CONTROL]), 1000);
        assert_eq!(admin.number(&["XLEN", &keys[0]]), 0);
    });
}

#[test]
fn a_server_that_may_evict_revocations_is_noticed_once() {
    each(|program| {
        let server = Server::with(
            program,
            &["--requirepass", SECRET, "--maxmemory-policy", "allkeys-lru"],
        );
        let log = server.log();
        let mut writer = log.writer();
        append_control(&mut *writer, 0..1).unwrap();
        writer.trim(&[bounds(KEEP, u64::MAX)]).unwrap();
        let notice = writer.take_notice().unwrap();
        assert!(
            notice.contains("allkeys-lru") && notice.contains("noeviction"),
            "{notice}"
        );
        append_control(&mut *writer, 0..1).unwrap();
        writer.trim(&[bounds(KEEP, 0)]).unwrap();
        assert_eq!(writer.take_notice(), None);
    });
}

#[test]
fn what_is_no_record_is_passed_over() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        let mut admin = server.admin();
        let huge = vec![7; 20 << 20];
        let just_too_long = vec![7; (1 << 20) + 1];
        append_sessions(&mut *writer, 0..1).unwrap();
        for key in [CONTROL, SESSIONS] {
            for fields in [
                vec![&b"s"[..], &b"other field"[..]],
                vec![b"x", b"1", b"y", b"2", b"r", b"third"],
                vec![b"", b""],
                vec![b"r", &huge],
                vec![b"r", &just_too_long],
            ] {
                let words = [vec![&b"XADD"[..], key.as_bytes(), b"*"], fields].concat();
                admin.send(&words);
                admin.answer();
            }
        }
        append_sessions(&mut *writer, 1..2).unwrap();
        let mut follower = follow_all(&log, SCOPE);
        assert_eq!(read(&mut *follower, 2), sessions(0..2));
        let mut reader = log.reader();
        for limit in [1, 100] {
            reader.mark(SCOPE).unwrap();
            let mut back = all_older(&mut *reader, Stream::Sessions, limit);
            back.reverse();
            assert_eq!(back, records(0..2));
            assert_eq!(
                all_older(&mut *reader, Stream::Control, limit),
                Vec::<Record>::new()
            );
        }

        // The key is no stream.
        for key in [CONTROL, SESSIONS] {
            admin.run(&["SET", key, "a string"]);
        }
        assert!(said(append_sessions(&mut *writer, 2..3)).contains("WRONGTYPE"));
        assert!(said(writer.trim(&[bounds(KEEP, 1)])).contains(CONTROL));
        until("the follower finds out", || {
            let refused = follower.newer(10, Duration::ZERO).unwrap().refused;
            (refused.first()?.1 .0.contains("WRONGTYPE")).then_some(())
        });
        assert!(said(reader.mark(SCOPE)).contains("WRONGTYPE"));
        admin.run(&["DEL", CONTROL, SESSIONS]);
        append_sessions(&mut *writer, 3..4).unwrap();
        assert_eq!(read(&mut *follower, 1), sessions(3..4));
    });
}

/// Returns the command for the connection's name, and then behaves as the test says.
fn impostor(then: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> ValkeyConfig {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    let then = Arc::new(then);
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let then = then.clone();
            thread::spawn(move || {
                let _ = client.read(&mut [0; 4096]);
                let _ = client.write_all(b"+OK\r\n");
                then(&mut client);
            });
        }
    });
    ValkeyConfig::new(url)
}

/// Every operation on a server fails, and in time.
fn all_fails(config: &ValkeyConfig) {
    let log_of = log(config);
    let tries: [fn(&ValkeyLog); 6] = [
        |log| drop(said(append_sessions(&mut *log.writer(), 0..5))),
        |log| drop(said(log.writer().trim(&[bounds(KEEP, 1)]))),
        |log| drop(said(log.reader().mark(SCOPE))),
        |log| drop(said(log.reader().clock_ahead_ms())),
        |log| drop(said(follow_all(log, SCOPE).newer(1, Duration::ZERO))),
        |log| {
            drop(said(
                follow_all(log, SCOPE).newer(1, Duration::from_secs(60)),
            ))
        },
    ];
    let cluster = log(&ValkeyConfig {
        cluster: true,
        ..config.clone()
    });
    let logs = [Arc::new(log_of), Arc::new(cluster)];
    let running: Vec<_> = logs
        .iter()
        .flat_map(|log| tries.map(|attempt| (log.clone(), attempt)))
        .map(|(log, attempt)| thread::spawn(move || bounded(move || attempt(&log))))
        .collect();
    for attempt in running {
        attempt.join().expect("see above");
    }
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    let answers: [&[u8]; 11] = [
        b":1\r\n",
        b"$2\r\nxx\r\n",
        b"*1\r\n:1\r\n",
        b"*2\r\n$1\r\nx\r\n$1\r\n1\r\n",
        b"*1\r\n*2\r\n$5\r\nother\r\n*0\r\n",
        b"*1\r\n*2\r\n$1\r\nx\r\n*2\r\n$1\r\nr\r\n$1\r\n1\r\n",
        b"-ERR \x1b[31mbut why\r\n",
        b"garbage\r\n",
        b"$-5\r\n",
        b"*99999999999999999\r\n",
        b"*9223372036854775807\r\n*1\r\n",
    ];
    for answer in answers {
        println!("{}", String::from_utf8_lossy(answer));
        // Enough answers for all that is asked at a time.
        let answers = answer.repeat(8);
        let config = impostor(move |client| {
            while client.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                if client.write_all(&answers).is_err() {
                    break;
                }
            }
        });
        let log = log(&config);
        if answer != b"$2\r\nxx\r\n" {
            said(append_sessions(&mut *log.writer(), 0..1));
        }
        said(log.writer().trim(&[bounds(KEEP, 1)]));
        said(log.reader().mark(SCOPE));
        said(log.reader().clock_ahead_ms());
        said(follow_all(&log, SCOPE).newer(1, Duration::ZERO));
    }
}

#[test]
fn a_cluster_of_too_many_servers_makes_no_sense() {
    for (servers, is_too_many) in [(1000, false), (1001, true)] {
        let server = |n: u16| format!("*3\r\n:{n}\r\n:{n}\r\n*2\r\n$-1\r\n:{}\r\n", 20_000 + n);
        let ranges: String = (0..servers).map(server).collect();
        let config = impostor(move |client| {
            let _ = client.read(&mut [0; 4096]);
            let _ = write!(client, "*{servers}\r\n{ranges}");
            let _ = client.read(&mut [0; 4096]);
        });
        let cluster = log(&ValkeyConfig {
            cluster: true,
            ..config
        });
        let said = said(append_sessions(&mut *cluster.writer(), 0..1));
        let is_nonsense = said.contains("CLUSTER SLOTS makes no sense");
        assert_eq!(is_nonsense, is_too_many, "{said}");
    }
}

/// Otherwise it could make a reader read for ever.
#[test]
fn a_server_that_does_not_go_back_is_an_error() {
    let page = |ids: &[&str]| {
        let entry = |id: &&str| format!("*2\r\n$3\r\n{id}\r\n*2\r\n$1\r\nr\r\n$1\r\nx\r\n");
        let entries: String = ids.iter().map(entry).collect();
        format!("*{}\r\n{entries}", ids.len())
    };
    for ids in [&["6-0"][..], &["5-0", "5-0"], &["4-0", "5-0"]] {
        let pages = [page(&["5-0"]), page(ids)];
        let config = impostor(move |client| {
            let mut asked = [0; 4096];
            while let Ok(length @ 1..) = client.read(&mut asked) {
                let asked = String::from_utf8_lossy(&asked[..length]);
                let answer = match asked.contains("XREVRANGE") {
                    true => &pages[usize::from(!asked.contains("\r\n+\r\n"))],
                    false => {
                        "*4\r\n$6\r\nlength\r\n:1\r\n$17\r\nlast-generated-id\r\n$3\r\n9-9\r\n"
                    }
                };
                if client.write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
        });
        let log = log(&config);
        let mut reader = log.reader();
        reader.mark(SCOPE).unwrap();
        let error = said(reader.older(Stream::Sessions, 10));
        assert!(error.contains("XREVRANGE makes no sense"), "{error}");
    }
}

#[test]
fn a_server_that_answers_a_byte_a_second_is_an_error() {
    all_fails(&impostor(|client| {
        while client.write_all(b"*").is_ok() {
            thread::sleep(Duration::from_secs(1));
        }
    }));
}

#[test]
fn a_server_that_answers_without_end_is_an_error() {
    for endless in [&b"*9\r\n"[..], b"$5\r\nabcde\r\n", b"x"] {
        all_fails(&impostor(move |client| {
            let _ = client.write_all(b"*9223372036854775807\r\n");
            let chunk = endless.repeat(1000);
            while client.write_all(&chunk).is_ok() {}
        }));
    }
}

#[test]
fn a_server_that_says_nothing_is_an_error() {
    all_fails(&impostor(|client| {
        while client.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
    }));
    // It does not accept data, either.
    all_fails(&impostor(|_| thread::sleep(Duration::from_secs(60))));
}

#[test]
fn many_idle_scopes_cost_little() {
    each(|program| {
        let server = Server::start(program);
        let log = server.log();
        let mut writer = log.writer();
        let scopes: Vec<String> = (0..200).map(|n| format!("scope{n}")).collect();
        let new = records(0..3);
        let batch = |scope| Batch {
            scope,
            control: &new,
            sessions: &new,
        };
        let batches: Vec<_> = scopes.iter().map(|scope| batch(scope)).collect();
        assert!(writer.append(&batches).unwrap().iter().all(Result::is_ok));
        let mut follower = log.follower().unwrap();
        for scope in &scopes {
            let mut reader = log.reader();
            let mark = reader.mark(scope).unwrap();
            follower.follow(&scope.as_str().into(), &mark);
        }
        let bounds: Vec<_> = scopes
            .iter()
            .map(|scope| Bounds {
                scope,
                keep: KEEP,
                max_bytes: 1 << 30,
            })
            .collect();
        writer.trim(&bounds).unwrap();
        follower.newer(100, Duration::from_secs(1)).unwrap();
        let mut admin = server.admin();
        let before = admin.commands();
        let began = Instant::now();
        // What has just been appended to is trimmed again after 15 seconds.
        while began.elapsed() < Duration::from_secs(5) {
            let news = follower.newer(100, Duration::from_secs(1)).unwrap();
            assert!(news.records.is_empty() && news.lost.is_empty());
            writer.trim(&bounds).unwrap();
        }
        let rate = (admin.commands() - before) as f64 / began.elapsed().as_secs_f64();
        println!("{rate:.1} commands a second");
        assert!(rate <= 20.0, "{rate} commands a second");
        assert_eq!(admin.connections(), 2);

        // All of them are checked in the end.
        admin.run(&["XTRIM", "rekindle:2:{scope77}:control", "MAXLEN", "2"]);
        let began = Instant::now();
        loop {
            let lost = follower.newer(100, SOON).unwrap().lost;
            if lost == ["scope77".into()] {
                break;
            }
            assert!(lost.is_empty() && began.elapsed() < 2 * TEST_TIMEOUT);
        }
    });
}

/// The servers of a cluster. The first one is in the URL.
fn cluster(program: &'static str) -> Vec<Server> {
    let servers: Vec<_> = (0..3)
        .map(|_| {
            let bus = free_port().to_string();
            let secret = ["--requirepass", SECRET, "--masterauth", SECRET];
            let cluster = [
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                &bus,
                "--cluster-config-file",
                "nodes.conf",
                // A server that is stopped in a test stays in the cluster.
                "--cluster-node-timeout",
                "60000",
            ];
            Server::with(program, &[secret.as_slice(), cluster.as_slice()].concat())
        })
        .collect();
    let addresses = servers
        .iter()
        .map(|server| format!("127.0.0.1:{}", server.port));
    let arguments: Vec<_> = ["create".into()].into_iter().chain(addresses).collect();
    manage(&servers[0], &arguments);
    for server in &servers {
        let mut admin = server.admin();
        until("the cluster is up", || {
            let info = admin.run(&["CLUSTER", "INFO"]);
            info.contains("cluster_state:ok").then_some(())
        });
    }
    servers
}

/// The server's own tool for clusters.
fn manage(server: &Server, arguments: &[String]) {
    let tool = server.program.replace("server", "cli");
    let own = [
        "--no-auth-warning",
        "-a",
        SECRET,
        "--cluster-yes",
        "--cluster",
    ];
    let done = Command::new(tool)
        .args(own)
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&done.stdout)
    );
}

#[test]
fn a_cluster_shares_the_partitions() {
    each(|program| {
        let mut servers = cluster(program);
        let config = ValkeyConfig {
            cluster: true,
            partitions: 12,
            ..servers[0].config()
        };
        let log_of = log(&config);
        let mut writer = log_of.writer();
        let mut follower = follow(&log_of, SCOPE);
        for batch in 0..20 {
            append_sessions(&mut *writer, 60 * batch..60 * (batch + 1)).unwrap();
        }
        append_control(&mut *writer, 0..3).unwrap();
        for server in &servers {
            let keys = server.admin().run(&["KEYS", "*sessions"]);
            assert!(!keys.is_empty());
        }
        let mut found = read(&mut *follower, 1203);
        found.sort_by_key(|(stream, record)| (*stream, record.len(), record.clone()));
        let control = records(0..3).into_iter();
        let control = control.map(|record| (Stream::Control, record));
        assert_eq!(found, control.chain(sessions(0..1200)).collect::<Vec<_>>());
        let mut reader = log_of.reader();
        reader.mark(SCOPE).unwrap();
        let mut back = all_older(&mut *reader, Stream::Sessions, 50);
        back.sort_by_key(|record| (record.len(), record.clone()));
        assert_eq!(back, records(0..1200));
        assert_eq!(all_older(&mut *reader, Stream::Control, 50).len(), 3);
        writer.trim(&[bounds(KEEP, 1 << 30)]).unwrap();
        assert!(writer.bytes(SCOPE).is_some_and(|bytes| bytes > 12_000));
        assert!(reader.clock_ahead_ms().unwrap().is_some());
        settle(&mut *follower);
        append_sessions(&mut *writer, 0..1200).unwrap();
        read(&mut *follower, 1200);
        for server in &servers {
            assert_no_expiry(&mut server.admin(), 1);
        }
        // At most one connection of the writer and one of the follower per server.
        for server in &servers {
            assert!(server.admin().connections() <= 2);
        }

        // Lost control records are noticed as with one server.
        let home = servers
            .iter()
            .find(|server| !server.admin().run(&["KEYS", CONTROL]).is_empty());
        let mut admin = home.unwrap().admin();
        admin.run(&["XTRIM", CONTROL, "MAXLEN", "2"]);
        await_loss(&mut *follower, SCOPE);
        // Records that nobody announces are found, too.
        admin.run(&["XADD", CONTROL, "*", "r", "record 7"]);
        read_until(&mut *follower, 7..8);

        // Without the option that it is a cluster.
        let alone = ValkeyConfig {
            cluster: false,
            ..config.clone()
        };
        let said_so = said(append_sessions(&mut *log(&alone).writer(), 0..1200));
        assert!(said_so.contains("MOVED"), "{said_so}");

        // One server stops: there is an error soon, and then everything goes on.
        servers[1].signal("STOP");
        let mut writer = bounded(move || {
            said(append_sessions(&mut *writer, 2000..4600));
            writer
        });
        let mut follower = bounded(move || {
            let failed = until("it fails", || follower.newer(10, SOON).err());
            said::<()>(Err(failed));
            follower
        });
        servers[1].signal("CONT");
        write_again(&mut *writer, 2000..3200);
        read_until(&mut *follower, 2000..3200);

        // The streams move to other servers, and the server in the URL ends.
        let id = servers[0].admin().run(&["CLUSTER", "MYID"]);
        let first = format!("127.0.0.1:{}", servers[0].port);
        let weight = format!("{id}=0");
        manage(
            &servers[0],
            &["rebalance", &first, "--cluster-weight", &weight].map(String::from),
        );
        write_again(&mut *writer, 5000..6200);
        read_until(&mut *follower, 5000..6200);
        servers[0].kill();
        // All have to connect again, to other servers.
        for server in &servers[1..] {
            server.admin().kill_clients();
        }
        write_again(&mut *writer, 7000..8200);
        read_until(&mut *follower, 7000..8200);
    });
}

#[test]
fn an_idle_cluster_costs_little() {
    each(|program| {
        let servers = cluster(program);
        let log = log(&ValkeyConfig {
            cluster: true,
            partitions: 64,
            ..servers[0].config()
        });
        let mut writer = log.writer();
        let mut follower = follow(&log, SCOPE);
        append(&mut *writer, SCOPE, &records(0..3), &records(3..10)).unwrap();
        read(&mut *follower, 10);
        writer.trim(&[bounds(KEEP, 1 << 30)]).unwrap();
        settle(&mut *follower);
        let mut admins: Vec<_> = servers.iter().map(Server::admin).collect();
        let mut commands = || admins.iter_mut().map(Admin::commands).sum::<i64>();
        let before = commands();
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(10) {
            let news = follower.newer(100, Duration::from_secs(1)).unwrap();
            assert!(news.records.is_empty() && news.lost.is_empty());
            writer.trim(&[bounds(KEEP, 1 << 30)]).unwrap();
        }
        let rate = (commands() - before) as f64 / began.elapsed().as_secs_f64();
        println!("{rate:.1} commands a second");
        assert!(rate <= 20.0, "{rate} commands a second");
    });
}

/// A measurement: what 100 followers of 2,000 records a second cost the server, with records as large as those of sessions.
#[test]
#[ignore = "takes the whole machine"]
fn many_followers_cost_little() {
    installed().for_each(|program| {
        let server = Server::start(program);
        let log = Arc::new(server.log());
        let followers: Vec<_> = (0..100)
            .map(|_| {
                let mut follower = follow(&log, SCOPE);
                thread::spawn(move || {
                    let mut count = 0;
                    while count < 20_000 {
                        let news = follower.newer(1000, Duration::from_secs(1)).unwrap();
                        count += news.records.len();
                    }
                })
            })
            .collect();
        let mut writer = log.writer();
        let mut admin = server.admin();
        let before = admin.cpu_seconds();
        let record = vec![7; 200];
        for _ in 0..200 {
            let next = Instant::now() + Duration::from_millis(50);
            append(&mut *writer, SCOPE, &[], &vec![record.clone(); 100]).unwrap();
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        for follower in followers {
            follower.join().unwrap();
        }
        let cost = (admin.cpu_seconds() - before) / 20_000.0 * 1e6;
        println!("{program}: {cost:.1} microseconds of the server's CPU for each record");
        assert!(cost <= 100.0);
    });
}

/// A balancer: passes connections on to the server with the port that is set.
fn balancer(port: Arc<AtomicUsize>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let port = port.load(Ordering::Relaxed) as u16;
            let mut server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            let (mut from_client, mut from_server) =
                (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || std::io::copy(&mut from_client, &mut server));
            thread::spawn(move || std::io::copy(&mut from_server, &mut client));
        }
    });
    own
}

#[test]
fn a_failover_behind_a_balancer_is_no_error() {
    each(|program| {
        let options = ["--requirepass", SECRET, "--masterauth", SECRET];
        let (old, new) = (
            Server::with(program, &options),
            Server::with(program, &options),
        );
        let target = Arc::new(AtomicUsize::new(old.port.into()));
        let port = balancer(target.clone());
        let log = log(&ValkeyConfig::new(format!(
            "redis://:{SECRET}@127.0.0.1:{port}"
        )));
        let mut writer = log.writer();
        append_control(&mut *writer, 0..2).unwrap();
        let mut follower = follow(&log, SCOPE);
        settle(&mut *follower);
        // The new primary has none of the records. Connections to the old one stay open.
        old.admin()
            .run(&["REPLICAOF", "127.0.0.1", &new.port.to_string()]);
        target.store(new.port.into(), Ordering::Relaxed);
        append_control(&mut *writer, 2..3).unwrap();
        assert_eq!(new.admin().number(&["XLEN", CONTROL]), 1);
        await_loss(&mut *follower, SCOPE);
    });
}
