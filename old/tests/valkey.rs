//! The log in Valkey and Redis, with real servers: each of `valkey-server` and `redis-server` that is
//! installed. `scripts/setup.sh valkey-server redis-server` installs them.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use redis::{cmd, Connection};
use rekindle_journal::{
    Lane, LogError, LogReader, LogWriter, Password, Record, ValkeyConfig, ValkeyReader,
    ValkeyWriter,
};

const SECRET: &str = "correct-horse";
const SCOPE: &str = "mqtt";
const CONTROL: &str = "rekindle:1:{mqtt}:control";
const BIRTHS: &str = "rekindle:1:{mqtt:0}:births";
const PATIENCE: Duration = Duration::from_secs(30);

/// Runs a test with each server that is installed.
fn each(test: impl Fn(&'static str)) {
    let found: Vec<_> = ["valkey-server", "redis-server"]
        .into_iter()
        .filter(|program| Command::new(program).arg("--version").output().is_ok())
        .collect();
    assert!(
        !found.is_empty(),
        "neither valkey-server nor redis-server is installed"
    );
    for program in found {
        println!("with {program}");
        test(program);
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("rekindle-valkey-{}-{number}", std::process::id()));
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
        Self::at(
            program,
            port,
            own.into_iter()
                .chain(options.iter().map(|option| option.to_string()))
                .collect(),
        )
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
        until("the server listens", || {
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
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

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn restart(&mut self) {
        self.child = Self::spawn(self.program, &self.options, &self.folder.0);
        until("the server listens", || {
            TcpStream::connect(("127.0.0.1", self.port)).ok()
        });
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("sh")
            .args(["-c", r#"kill "-$0" "$1""#, signal, &pid])
            .status()
            .unwrap()
            .success());
    }

    fn url(&self) -> String {
        format!("valkey://:{SECRET}@127.0.0.1:{}", self.port)
    }

    fn config(&self) -> ValkeyConfig {
        ValkeyConfig::new(self.url())
    }

    /// Both ends of the log.
    fn ends(&self) -> (ValkeyWriter, ValkeyReader) {
        ends(&self.config())
    }

    /// What the tests themselves do with the server.
    fn admin(&self) -> Connection {
        until("the server answers", || {
            let mut admin = redis::Client::open(self.url())
                .unwrap()
                .get_connection()
                .ok()?;
            cmd("PING").query::<String>(&mut admin).ok()?;
            Some(admin)
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ends(config: &ValkeyConfig) -> (ValkeyWriter, ValkeyReader) {
    (
        ValkeyWriter::new(config.clone(), SCOPE),
        ValkeyReader::new(config.clone(), SCOPE),
    )
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

fn until<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs something that has to end, if with an error, while a server does not answer.
fn bounded<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ended) = mpsc::channel();
    thread::spawn(move || done.send(what()));
    ended.recv_timeout(PATIENCE).expect("it hangs")
}

fn records(range: Range<u32>) -> Vec<Record> {
    range.map(|n| format!("record {n}").into_bytes()).collect()
}

fn births(range: Range<u32>) -> Vec<(Lane, Record)> {
    records(range)
        .into_iter()
        .map(|record| (Lane::Births, record))
        .collect()
}

/// The next `count` records, however many calls they take; in the order of their lanes' streams.
fn read(reader: &mut ValkeyReader, count: usize) -> Vec<(Lane, Record)> {
    let mut all = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while all.len() < count {
        assert!(
            Instant::now() < deadline,
            "{} of {count} records",
            all.len()
        );
        all.extend(
            reader
                .newer(100, Duration::from_millis(200))
                .unwrap_or_default(),
        );
    }
    all
}

/// Writes these as soon as the server takes them.
fn write_again(writer: &mut ValkeyWriter, range: Range<u32>) {
    until("it is written to again", || {
        writer.append(Lane::Births, &records(range.clone())).ok()
    });
}

/// All that is read until these have been.
fn read_again(reader: &mut ValkeyReader, range: Range<u32>) -> Vec<(Lane, Record)> {
    let mut found = Vec::new();
    until("all are read", || {
        let newer = reader.newer(1000, Duration::from_millis(100));
        found.extend(newer.unwrap_or_default());
        births(range.clone())
            .iter()
            .all(|birth| found.contains(birth))
            .then_some(())
    });
    found
}

fn all_older(reader: &mut ValkeyReader, lane: Lane, limit: usize) -> Vec<Record> {
    let mut all = Vec::new();
    loop {
        let page = reader.older(lane, limit).unwrap();
        assert!(page.len() <= limit);
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

/// An error's words, in which no password may be.
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
        let (mut writer, mut reader) = server.ends();
        reader.mark().unwrap();
        assert_eq!(reader.older(Lane::Births, 10), Ok(vec![]));
        assert_eq!(reader.newer(10, Duration::ZERO), Ok(vec![]));
        writer.append(Lane::Births, &records(0..1200)).unwrap();
        assert_eq!(read(&mut reader, 1200), births(0..1200));

        // A lane each, and any bytes.
        let odd = vec![vec![], b"\r\n\0*1".to_vec(), vec![0xff; 1 << 20]];
        writer.append(Lane::Control, &odd).unwrap();
        assert_eq!(
            read(&mut reader, 3),
            odd.iter()
                .map(|record| (Lane::Control, record.clone()))
                .collect::<Vec<_>>()
        );

        // Another one begins where it looked first, and goes both ways from there.
        let (_, mut second) = server.ends();
        second.mark().unwrap();
        writer.append(Lane::Births, &records(1200..1300)).unwrap();
        let mut back = all_older(&mut second, Lane::Births, 7);
        back.reverse();
        assert_eq!(back, records(0..1200));
        assert_eq!(all_older(&mut second, Lane::Control, 100).len(), 3);
        assert_eq!(read(&mut second, 100), births(1200..1300));

        // Another scope has nothing of it.
        let mut other = ValkeyReader::new(server.config(), "mqtt:0");
        other.mark().unwrap();
        assert_eq!(other.older(Lane::Births, 10), Ok(vec![]));

        let ahead = reader.clock_ahead_ms().unwrap().unwrap();
        assert!(ahead.abs() < 60_000, "{ahead} ms");
        let clients: String = cmd("CLIENT")
            .arg("LIST")
            .query(&mut server.admin())
            .unwrap();
        assert_eq!(clients.matches("name=rekindle ").count(), 4, "{clients}");
    });
}

#[test]
fn a_waiting_reader_is_woken_up() {
    each(|program| {
        let server = Server::start(program);
        let (mut writer, mut reader) = server.ends();
        reader.mark().unwrap();
        let waiting = thread::spawn(move || {
            let began = Instant::now();
            (reader.newer(10, 2 * PATIENCE), began.elapsed())
        });
        let mut admin = server.admin();
        until("it waits", || {
            let clients: String = cmd("CLIENT").arg("LIST").query(&mut admin).unwrap();
            clients.contains("cmd=xread").then_some(())
        });
        writer.append(Lane::Births, &records(0..1)).unwrap();
        let (found, waited) = waiting.join().unwrap();
        assert_eq!(found, Ok(births(0..1)));
        assert!(waited < PATIENCE);
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
        let (mut writer, mut reader) = ends(&config);
        for batch in 0..40 {
            writer
                .append(Lane::Births, &records(25 * batch..25 * (batch + 1)))
                .unwrap();
            // For the next one to have later ids in all the partitions.
            thread::sleep(Duration::from_millis(3));
        }
        // One partition has far more than the others, which says nothing about which are newest.
        let mut admin = server.admin();
        for n in 1000..1100 {
            let record = format!("record {n}");
            let _: String = cmd("XADD")
                .arg(BIRTHS)
                .arg("*")
                .arg("r")
                .arg(record)
                .query(&mut admin)
                .unwrap();
        }
        reader.mark().unwrap();
        let back = all_older(&mut reader, Lane::Births, 30);
        let number = |record: &Record| {
            String::from_utf8_lossy(&record[7..])
                .parse::<u32>()
                .unwrap()
        };
        let batches: Vec<_> = back.iter().map(|record| number(record) / 25).collect();
        assert!(
            batches
                .windows(2)
                .all(|pair| pair[0] >= pair[1] || pair[0] >= 40),
            "{batches:?}"
        );
        assert!(
            batches[..100].iter().all(|batch| *batch >= 40),
            "{batches:?}"
        );
        let mut numbers: Vec<_> = back.iter().map(number).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..1100).collect::<Vec<_>>());

        let keys: Vec<String> = cmd("KEYS").arg("*births").query(&mut admin).unwrap();
        assert_eq!(keys.len(), 4);
        writer.append(Lane::Births, &records(0..10)).unwrap();
        let mut new = read(&mut reader, 10);
        new.sort_by_key(|(_, record)| number(record));
        assert_eq!(new, births(0..10));
    });
}

#[test]
fn births_wait_for_the_control_lane() {
    each(|program| {
        let server = Server::start(program);
        let (mut writer, mut reader) = server.ends();
        writer.append(Lane::Births, &records(0..5)).unwrap();
        writer.append(Lane::Control, &records(0..30)).unwrap();
        let all: Vec<_> = read(&mut reader, 35)
            .into_iter()
            .map(|(lane, _)| lane)
            .collect();
        assert_eq!(
            all,
            [vec![Lane::Control; 30], vec![Lane::Births; 5]].concat()
        );
        let mut reader = ValkeyReader::new(server.config(), SCOPE);
        let mut first = Vec::new();
        while first.len() < 35 {
            first.extend(reader.newer(4, Duration::ZERO).unwrap());
        }
        assert!(first[..30].iter().all(|(lane, _)| *lane == Lane::Control));
    });
}

#[test]
fn passwords() {
    each(|program| {
        let server = Server::start(program);
        let port = server.port;
        let try_it = |config: ValkeyConfig| {
            ValkeyWriter::new(config, SCOPE).append(Lane::Births, &records(0..1))
        };
        let plain = format!("redis://127.0.0.1:{port}");

        assert!(said(try_it(ValkeyConfig::new(&plain))).contains("NOAUTH"));
        assert!(said(try_it(ValkeyConfig::new(format!(
            "redis://:staple@127.0.0.1:{port}"
        ))))
        .contains("refused"));
        assert!(said(try_it(ValkeyConfig::new(format!(
            "redis://me:staple@127.0.0.1:{port}"
        ))))
        .contains("refused"));
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

        // Redis repeats what it does not know.
        let deaf = Server::with(program, &["--rename-command", "AUTH", ""]);
        assert!(said(try_it(deaf.config())).contains("refused"));

        // It changes while both ends are connected.
        let (mut writer, mut reader) = ends(&config);
        writer.append(Lane::Births, &records(0..1)).unwrap();
        reader.mark().unwrap();
        let mut admin = server.admin();
        let () = cmd("CONFIG")
            .arg("SET")
            .arg("requirepass")
            .arg("battery")
            .query(&mut admin)
            .unwrap();
        let killed: u32 = cmd("CLIENT")
            .arg("KILL")
            .arg("TYPE")
            .arg("normal")
            .arg("SKIPME")
            .arg("yes")
            .query(&mut admin)
            .unwrap();
        assert!(killed >= 2);
        said(writer.append(Lane::Births, &records(1..2)));
        assert!(said(writer.append(Lane::Births, &records(1..2))).contains("refused"));
        said(reader.newer(10, Duration::ZERO));
        assert!(said(reader.newer(10, Duration::ZERO)).contains("refused"));
        server.folder.file("password", "battery");
        assert_eq!(writer.append(Lane::Births, &records(2..3)), Ok(()));
        assert_eq!(read(&mut reader, 1), births(2..3));
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
        let (mut writer, mut reader) = ends(&config);
        writer.append(Lane::Births, &records(0..10)).unwrap();
        assert_eq!(read(&mut reader, 10).len(), 10);
        let mut behind = ValkeyReader::new(config, SCOPE);
        behind.mark().unwrap();
        assert_eq!(behind.older(Lane::Births, 3).unwrap().len(), 3);
        server.kill();
        said(writer.append(Lane::Births, &records(10..11)));
        said(reader.newer(10, Duration::ZERO));
        assert!(said(writer.append(Lane::Births, &records(10..11))).contains("Connection refused"));
        said(writer.trim(PATIENCE));
        said(
            behind
                .older(Lane::Control, 3)
                .and_then(|_| behind.newer(3, Duration::ZERO)),
        );
        server.restart();
        write_again(&mut writer, 11..12);
        assert_eq!(read(&mut reader, 1), births(11..12));
        // What was there before is gone; that is the beginning then.
        assert!(all_older(&mut behind, Lane::Births, 3).len() <= 7);
        assert_eq!(read(&mut behind, 1), births(11..12));
    });
}

#[test]
fn a_stream_that_begins_anew_with_earlier_ids_is_read() {
    each(|program| {
        let server = Server::start(program);
        let (mut writer, mut reader) = server.ends();
        reader.mark().unwrap();
        let mut admin = server.admin();
        for key in [CONTROL, BIRTHS] {
            let _: String = cmd("XADD")
                .arg(key)
                .arg("99999999999999-7")
                .arg("r")
                .arg("late")
                .query(&mut admin)
                .unwrap();
        }
        assert_eq!(read(&mut reader, 2).len(), 2);
        let () = cmd("FLUSHALL").query(&mut admin).unwrap();
        writer.append(Lane::Control, &records(0..1)).unwrap();
        writer.append(Lane::Births, &records(1..2)).unwrap();
        let mut found = read(&mut reader, 2);
        found.sort_by_key(|(_, record)| record.clone());
        assert_eq!(
            found,
            [
                (Lane::Control, records(0..1).remove(0)),
                births(1..2).remove(0)
            ]
        );
        // Once.
        thread::sleep(Duration::from_millis(1200));
        assert_eq!(reader.newer(10, Duration::ZERO), Ok(vec![]));
    });
}

#[test]
fn a_log_that_somebody_empties_is_an_error_once() {
    each(|program| {
        let server = Server::start(program);
        let config = ValkeyConfig {
            partitions: 2,
            ..server.config()
        };
        let (mut writer, mut reader) = ends(&config);
        reader.mark().unwrap();
        writer.append(Lane::Control, &records(0..1)).unwrap();
        writer.trim(PATIENCE).unwrap();
        writer.append(Lane::Births, &records(1..2)).unwrap();
        assert_eq!(read(&mut reader, 2).len(), 2);
        let () = cmd("FLUSHALL").query(&mut server.admin()).unwrap();
        assert!(said(writer.append(Lane::Births, &records(2..3))).contains("emptied"));
        writer.append(Lane::Control, &records(3..4)).unwrap();
        writer.append(Lane::Births, &records(4..5)).unwrap();
        let found = read(&mut reader, 3);
        assert!(found.contains(&births(4..5)[0]), "{found:?}");
    });
}

#[test]
fn a_server_that_stops_makes_errors_and_hangs_nobody() {
    each(|program| {
        let server = Server::start(program);
        let (mut writer, mut reader) = server.ends();
        writer.append(Lane::Births, &records(0..10)).unwrap();
        assert_eq!(read(&mut reader, 10), births(0..10));
        server.signal("STOP");
        // Some hundred answers that do not come are one wait.
        let (mut writer, mut reader) =
            bounded(move || {
                assert!(said(writer.append(Lane::Births, &records(10..700)))
                    .contains("no answer in time"));
                assert!(said(reader.newer(10, Duration::from_millis(500)))
                    .contains("no answer in time"));
                // Now they would have to connect.
                assert!(said(writer.append(Lane::Births, &records(700..710)))
                    .contains("no answer in time"));
                said(reader.newer(10, Duration::ZERO));
                (writer, reader)
            });
        server.signal("CONT");
        write_again(&mut writer, 10..20);
        // What was sent before may have arrived as well.
        let found = read_again(&mut reader, 10..20);
        assert!(!found.contains(&births(0..1)[0]));
    });
}

#[test]
fn a_full_server_refuses_records_until_there_is_room() {
    each(|program| {
        let server = Server::start(program);
        let (mut writer, mut reader) = server.ends();
        writer.append(Lane::Births, &records(0..1)).unwrap();
        let mut admin = server.admin();
        let mut set = |name: &str, value: &str| {
            let () = cmd("CONFIG")
                .arg("SET")
                .arg(name)
                .arg(value)
                .query(&mut admin)
                .unwrap();
        };
        set("maxmemory-policy", "noeviction");
        set("maxmemory", "1");
        assert!(said(writer.append(Lane::Births, &records(1..2))).contains("OOM"));
        assert_eq!(read(&mut reader, 1), births(0..1));
        assert_eq!(writer.trim(PATIENCE), Ok(()));
        set("maxmemory", "0");
        assert_eq!(writer.append(Lane::Births, &records(2..3)), Ok(()));
        assert_eq!(read(&mut reader, 1), births(2..3));
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

/// A CA, and a server's certificate for 127.0.0.1 by it.
fn certificates() -> Folder {
    let folder = Folder::new();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc";
    for ca in ["ca", "other"] {
        openssl(
            &folder,
            &format!("req -x509 {key} -days 2 -subj /CN={ca} -keyout {ca}.key -out {ca}.pem"),
        );
    }
    openssl(
        &folder,
        &format!("req {key} -subj /CN=server -keyout server.key -out server.csr"),
    );
    folder.file("names", "subjectAltName=IP:127.0.0.1");
    openssl(
        &folder,
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out server.pem",
    );
    folder
}

#[test]
fn tls() {
    each(|program| {
        let files = certificates();
        let path = |name: &str| files.0.join(name).to_str().unwrap().to_owned();
        let port = free_port();
        let options = [
            "--port",
            "0",
            "--tls-port",
            &port.to_string(),
            "--tls-auth-clients",
            "no",
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
        let server = Server::at(program, port, options.into());
        let config = |scheme: &str, host: &str, ca: Option<&str>| ValkeyConfig {
            ca_file: ca.map(|ca| path(ca).into()),
            ..ValkeyConfig::new(format!("{scheme}://:{SECRET}@{host}:{port}"))
        };
        for scheme in ["rediss", "valkeys"] {
            let (mut writer, mut reader) = ends(&config(scheme, "127.0.0.1", Some("ca.pem")));
            reader.mark().unwrap();
            writer.append(Lane::Births, &records(0..2000)).unwrap();
            assert_eq!(read(&mut reader, 2000), births(0..2000));
        }
        let try_it = |config| ValkeyWriter::new(config, SCOPE).append(Lane::Births, &records(0..1));
        for (config, words) in [
            (
                config("rediss", "127.0.0.1", Some("other.pem")),
                "UnknownIssuer",
            ),
            (config("rediss", "127.0.0.1", None), "UnknownIssuer"),
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
            (config("redis", "127.0.0.1", None), ""),
        ] {
            let said = said(try_it(config));
            assert!(said.contains(words), "{said}");
        }
        // To one that speaks no TLS.
        let plain = Server::start(program);
        said(try_it(ValkeyConfig::new(format!(
            "rediss://:{SECRET}@127.0.0.1:{}",
            plain.port
        ))));
        drop(server);
    });
}

#[test]
fn a_user_with_the_least_rights() {
    each(|program| {
        let server = Server::start(program);
        let mut admin = server.admin();
        let mut user = |name: &str, rights: &[&str]| {
            let () = cmd("ACL")
                .arg(&["SETUSER", name, "on", ">staple", "~rekindle:1:*"])
                .arg(rights)
                .query(&mut admin)
                .unwrap();
        };
        user(
            "journal",
            &[
                "+xadd",
                "+xtrim",
                "+expire",
                "+time",
                "+xread",
                "+xrevrange",
            ],
        );
        user("nobody", &["+ping"]);
        let config = ValkeyConfig {
            user: Some("journal".into()),
            password: Password::File(server.folder.file("password", "staple")),
            ..ValkeyConfig::new(format!("redis://127.0.0.1:{}", server.port))
        };
        let (mut writer, mut reader) = ends(&config);
        reader.mark().unwrap();
        writer.append(Lane::Births, &records(0..5)).unwrap();
        writer.trim(PATIENCE).unwrap();
        assert_eq!(read(&mut reader, 5), births(0..5));
        reader.mark().unwrap();
        assert_eq!(reader.older(Lane::Births, 10).unwrap().len(), 5);
        assert!(reader.clock_ahead_ms().is_ok());

        let nobody = ValkeyConfig {
            user: Some("nobody".into()),
            ..config
        };
        let (mut writer, mut reader) = ends(&nobody);
        assert!(said(writer.append(Lane::Births, &records(0..1))).contains("NOPERM"));
        assert!(said(writer.trim(PATIENCE)).contains("NOPERM"));
        assert!(said(reader.mark()).contains("NOPERM"));
        assert!(said(reader.newer(1, Duration::ZERO)).contains("NOPERM"));
    });
}

#[test]
fn what_is_too_old_is_dropped() {
    each(|program| {
        let server = Server::start(program);
        let (mut writer, mut reader) = server.ends();
        let mut admin = server.admin();
        let (now, _): (u64, u64) = cmd("TIME").query(&mut admin).unwrap();
        // More than one XTRIM drops.
        let mut old = redis::pipe();
        for n in 0..25_000 {
            let id = format!("{}-{n}", (now - 7200) * 1000);
            old.cmd("XADD")
                .arg(BIRTHS)
                .arg(id)
                .arg("r")
                .arg("old")
                .ignore();
        }
        let () = old.query(&mut admin).unwrap();
        writer.append(Lane::Births, &records(0..500)).unwrap();
        let keep = Duration::from_secs(3600);
        writer.trim(keep).unwrap();
        reader.mark().unwrap();
        let left = all_older(&mut reader, Lane::Births, 1000);
        assert_eq!(
            left[..500],
            records(0..500).into_iter().rev().collect::<Vec<_>>()
        );
        // A server drops whole nodes of its tree, of a hundred entries.
        assert!(left.len() < 700, "{} records", left.len());

        let mut ttl = |key: &str| cmd("TTL").arg(key).query::<i64>(&mut admin).unwrap();
        assert!((3600..=7200).contains(&ttl(BIRTHS)), "{}", ttl(BIRTHS));
        // A key made since has it as well.
        assert_eq!(ttl(CONTROL), -2);
        writer.append(Lane::Control, &records(0..1)).unwrap();
        assert!((3600..=7200).contains(&ttl(CONTROL)), "{}", ttl(CONTROL));
        // Absurd ages are no error.
        for keep in [Duration::ZERO, Duration::MAX] {
            assert_eq!(writer.trim(keep), Ok(()));
        }
    });
}

#[test]
fn what_is_no_record_is_passed_over() {
    each(|program| {
        let server = Server::start(program);
        let (mut writer, mut reader) = server.ends();
        let mut admin = server.admin();
        let huge = vec![7; 20 << 20];
        let just_too_long = vec![7; (1 << 20) + 1];
        writer.append(Lane::Births, &records(0..1)).unwrap();
        for key in [CONTROL, BIRTHS] {
            for fields in [
                vec![(&b"s"[..], &b"other field"[..])],
                vec![(b"x", b"1"), (b"y", b"2"), (b"r", b"third")],
                vec![(b"", b"")],
                vec![(b"r", &huge)],
                vec![(b"r", &just_too_long)],
            ] {
                let _: String = cmd("XADD")
                    .arg(key)
                    .arg("*")
                    .arg(&fields)
                    .query(&mut admin)
                    .unwrap();
            }
        }
        writer.append(Lane::Births, &records(1..2)).unwrap();
        assert_eq!(read(&mut reader, 2), births(0..2));
        for limit in [1, 100] {
            reader.mark().unwrap();
            let mut back = all_older(&mut reader, Lane::Births, limit);
            back.reverse();
            assert_eq!(back, records(0..2));
            assert_eq!(
                all_older(&mut reader, Lane::Control, limit),
                Vec::<Record>::new()
            );
        }

        // No stream at all.
        for key in [CONTROL, BIRTHS] {
            let () = cmd("SET")
                .arg(key)
                .arg("a string")
                .query(&mut admin)
                .unwrap();
        }
        assert!(said(writer.append(Lane::Births, &records(2..3))).contains("WRONGTYPE"));
        assert!(said(writer.trim(PATIENCE)).contains(CONTROL));
        assert!(said(reader.newer(10, Duration::ZERO)).contains("WRONGTYPE"));
        assert!(said(reader.mark()).contains("WRONGTYPE"));
        let _: u32 = cmd("DEL")
            .arg(&[CONTROL, BIRTHS])
            .query(&mut admin)
            .unwrap();
        writer.append(Lane::Births, &records(3..4)).unwrap();
        assert_eq!(read(&mut reader, 1), births(3..4));
    });
}

/// Answers everything with the same bytes, as no server would.
fn impostor(answer: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("redis://{}", listener.local_addr().unwrap());
    // Enough for all that is asked at a time.
    let answers = answer.repeat(8);
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let answers = answers.clone();
            thread::spawn(move || {
                // The first command is only the connection's name.
                let mut ours: &[u8] = b"+OK\r\n";
                while client.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {
                    if client.write_all(ours).is_err() {
                        break;
                    }
                    ours = &answers;
                }
            });
        }
    });
    url
}

#[test]
fn answers_that_make_no_sense_are_errors() {
    let answers: [&[u8]; 12] = [
        b":1\r\n",
        b"$2\r\nxx\r\n",
        b"*1\r\n:1\r\n",
        b"*2\r\n$1\r\nx\r\n$1\r\n1\r\n",
        b"*1\r\n*2\r\n$5\r\nother\r\n*0\r\n",
        b"*1\r\n*2\r\n$1\r\nx\r\n*2\r\n$1\r\nr\r\n$1\r\n1\r\n",
        b"*1\r\n*2\r\n$25\r\nrekindle:1:{mqtt}:control\r\n*1\r\n*2\r\n$3\r\nx-y\r\n*2\r\n$1\r\nr\r\n$1\r\n1\r\n",
        b"-ERR \x1b[31mbut why\r\n",
        b"garbage\r\n",
        b"$-5\r\n",
        b"*99999999999999999\r\n",
        b"*9223372036854775807\r\n*1\r\n",
    ];
    // All at once, as some of them are waited for.
    let tries = answers.map(|answer| {
        thread::spawn(move || {
            let config = ValkeyConfig::new(impostor(answer));
            let (mut writer, mut reader) = ends(&config);
            println!("{}", String::from_utf8_lossy(answer));
            said(writer.trim(PATIENCE));
            said(reader.mark());
            said(reader.clock_ahead_ms());
            let cluster = ValkeyConfig {
                cluster: true,
                ..config
            };
            said(ValkeyReader::new(cluster, SCOPE).mark());
            if answer != b"$-5\r\n" {
                said(reader.newer(1, Duration::ZERO));
            }
        })
    });
    bounded(move || tries.map(|done| done.join().expect("see above")));
}

/// Servers of one cluster, the first of which is in the URL.
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
            ];
            Server::with(program, &[secret.as_slice(), cluster.as_slice()].concat())
        })
        .collect();
    let addresses = servers
        .iter()
        .map(|server| format!("127.0.0.1:{}", server.port));
    let arguments = ["create".into()]
        .into_iter()
        .chain(addresses)
        .collect::<Vec<_>>();
    manage(&servers[0], &arguments);
    for server in &servers {
        let mut admin = server.admin();
        until("the cluster is up", || {
            let info: String = cmd("CLUSTER").arg("INFO").query(&mut admin).unwrap();
            info.contains("cluster_state:ok").then_some(())
        });
    }
    servers
}

/// The tool of the server's own that looks after clusters.
fn manage(server: &Server, arguments: &[String]) {
    let tool = server.program.replace("server", "cli");
    let done = Command::new(tool)
        .args([
            "--no-auth-warning",
            "-a",
            SECRET,
            "--cluster-yes",
            "--cluster",
        ])
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
        let (mut writer, mut reader) = ends(&config);
        reader.mark().unwrap();
        for batch in 0..20 {
            writer
                .append(Lane::Births, &records(60 * batch..60 * (batch + 1)))
                .unwrap();
        }
        writer.append(Lane::Control, &records(0..3)).unwrap();
        for server in &servers {
            let keys: Vec<String> = cmd("KEYS")
                .arg("*births")
                .query(&mut server.admin())
                .unwrap();
            assert!(!keys.is_empty());
        }
        let mut found = read(&mut reader, 1203);
        found.sort_by_key(|(lane, record)| (*lane == Lane::Births, record.len(), record.clone()));
        let control = records(0..3)
            .into_iter()
            .map(|record| (Lane::Control, record));
        assert_eq!(found, control.chain(births(0..1200)).collect::<Vec<_>>());
        let (_, mut second) = ends(&config);
        second.mark().unwrap();
        let mut back = all_older(&mut second, Lane::Births, 50);
        back.sort_by_key(|record| (record.len(), record.clone()));
        assert_eq!(back, records(0..1200));
        assert_eq!(all_older(&mut second, Lane::Control, 50).len(), 3);
        writer.trim(PATIENCE).unwrap();
        assert!(reader.clock_ahead_ms().unwrap().is_some());
        assert_eq!(reader.newer(10, Duration::from_millis(50)), Ok(vec![]));

        // Without the word that it is one.
        let alone = ValkeyConfig {
            cluster: false,
            ..config.clone()
        };
        let said_so = said(ends(&alone).0.append(Lane::Births, &records(0..12)));
        assert!(said_so.contains("MOVED"), "{said_so}");

        // One stops: an error, soon, and after it everything goes on.
        servers[1].signal("STOP");
        let (mut writer, mut reader) = bounded(move || {
            said(writer.append(Lane::Births, &records(2000..2600)));
            said(reader.newer(10, Duration::from_millis(100)));
            said(reader.newer(10, Duration::from_millis(100)));
            (writer, reader)
        });
        servers[1].signal("CONT");
        write_again(&mut writer, 2000..2600);
        read_again(&mut reader, 2000..2600);

        // The streams move to other servers, and the one in the URL ends.
        let id: String = cmd("CLUSTER")
            .arg("MYID")
            .query(&mut servers[0].admin())
            .unwrap();
        let arguments = [
            "rebalance",
            &format!("127.0.0.1:{}", servers[0].port),
            "--cluster-weight",
        ];
        manage(
            &servers[0],
            &[&arguments[..], &[&format!("{id}=0")]]
                .concat()
                .iter()
                .map(|a| a.to_string())
                .collect::<Vec<_>>(),
        );
        write_again(&mut writer, 3000..3012);
        until("it is read again", || {
            reader.newer(1000, Duration::from_millis(100)).ok()
        });
        servers[0].kill();
        // All have to connect again, elsewhere.
        for server in &servers[1..] {
            let _: u32 = cmd("CLIENT")
                .arg(&["KILL", "TYPE", "normal"])
                .query(&mut server.admin())
                .unwrap();
        }
        write_again(&mut writer, 3012..3024);
        read_again(&mut reader, 3012..3024);
    });
}
