//! A log in the streams of a Valkey server, or of Redis from 6.2 on; in a cluster, of its servers.
//!
//! The keys are `rekindle:1:{SCOPE}:control` and `rekindle:1:{SCOPE:N}:births` for each partition N, and a
//! record is an entry with one field, `r`. A server's user needs XADD, XTRIM, XREAD, XREVRANGE and EXPIRE for
//! these keys, TIME, and in a cluster CLUSTER SLOTS and CLUSTER KEYSLOT. Where the server may evict keys, the log
//! is among them: its policy has to be noeviction.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redis::io::tcp::TcpSettings;
use redis::{
    cmd, Client, Cmd, Connection, ConnectionAddr, ConnectionInfo, ConnectionLike, ErrorKind,
    IntoConnectionInfo, RedisError, TlsCertificates, Value,
};

use crate::log::{Lane, LogError, LogReader, LogWriter, Record};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(2);
/// How long a server may keep silent where nothing was to be waited for.
const ANSWER: Duration = Duration::from_secs(3);
/// How many records, and about how many bytes, are sent before the answers are read.
const CHUNK: (usize, usize) = (500, 1 << 20);
/// Longer records are nobody's that this journal knows.
const MAX_RECORD: usize = 1 << 20;
const MAX_PARTITIONS: u16 = 64;
/// How often a reader looks for streams that have begun anew.
const CHECK: Duration = Duration::from_secs(1);
/// How often the streams of a cluster are asked for something new.
const POLL: Duration = Duration::from_millis(20);
/// How long what a server said about its clock is good for.
const CLOCK: Duration = Duration::from_secs(60);
/// How long keys that nobody writes to stay after their last record has become too old.
const MARGIN: Duration = Duration::from_secs(3600);
/// A server refuses times of expiry far beyond this.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

const FIELD: &[u8] = b"r";
const CONTROL: usize = 0;

const PLAIN: [&str; 2] = ["valkey", "redis"];
const TLS: [&str; 2] = ["valkeys", "rediss"];

/// Which server, or cluster, has the log.
#[derive(Clone)]
pub struct ValkeyConfig {
    /// `valkey://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE]`, `valkeys` with TLS; or with `redis`, `rediss`. Port
    /// 6379 and database 0 are the defaults. Of a cluster, any server.
    pub url: String,
    /// In the place of a user in the URL.
    pub user: Option<String>,
    /// Where the password is.
    pub password: Password,
    /// The certificates, in PEM, of which one has to vouch for the server's, which may not be that of a CA
    /// itself. Without, the system's.
    pub ca_file: Option<PathBuf>,
    /// Whether the server is one of a cluster.
    pub cluster: bool,
    /// How many streams the sessions are spread over, the same number for all who share the log. 1 does, but
    /// for a cluster whose servers are to share the load; 64 at most.
    pub partitions: u16,
}

/// Where a password is. It is looked up for each connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Password {
    /// In the URL, or there is none.
    #[default]
    Url,
    /// The contents of a file, without line ends behind it.
    File(PathBuf),
    /// The value of a variable of the environment.
    Env(String),
}

impl ValkeyConfig {
    /// One server, with all that is not in the URL left out.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: None,
            password: Password::Url,
            ca_file: None,
            cluster: false,
            partitions: 1,
        }
    }

    /// Says what is wrong, as far as that can be seen without a file or a server.
    pub fn check(&self) -> Result<(), String> {
        self.target().map(|_| ())
    }

    /// The URL without user and password.
    pub fn location(&self) -> String {
        match (self.target(), redis::parse_redis_url(&self.url)) {
            (Ok(_), Some(mut url)) => {
                // Neither fails for a URL with a host.
                let _ = url.set_username("");
                let _ = url.set_password(None);
                url.to_string()
            }
            _ => "a server without a valid URL".into(),
        }
    }

    /// What to connect to, with the password only if it is in the URL.
    fn target(&self) -> Result<ConnectionInfo, String> {
        // Nothing of the URL is repeated: where it is wrong, parts of a password may be anywhere in it.
        let url = redis::parse_redis_url(&self.url)
            .filter(|url| [PLAIN, TLS].concat().contains(&url.scheme()))
            .filter(|url| url.host_str().is_some_and(|host| !host.is_empty()))
            .ok_or(
                "the URL is not of the form valkey://[[USER]:PASSWORD@]HOST[:PORT][/DATABASE] with one of the \
                 schemes valkey, redis and, with TLS, valkeys, rediss; \
                 special characters of a password are written as %XX",
            )?;
        let tls = TLS.contains(&url.scheme());
        if url.query().is_some() || url.fragment().is_some() {
            return Err("the URL has a ? or # in it: nothing of that kind can be set".into());
        }
        if self.ca_file.is_some() && !tls {
            return Err("a CA file needs a URL with TLS, of the scheme valkeys or rediss".into());
        }
        if !(1..=MAX_PARTITIONS).contains(&self.partitions) {
            return Err(format!(
                "the number of partitions is from 1 to {MAX_PARTITIONS}"
            ));
        }
        // redis-rs also says the kind of the error, and behind it nothing of use.
        let short = |error: RedisError| {
            words(error)
                .split(" - ")
                .next()
                .unwrap_or_default()
                .to_owned()
        };
        let target = url
            .into_connection_info()
            .map_err(|error| format!("the URL: {}", short(error)))?;
        let mut login = target.redis_settings().clone().set_skip_set_lib_name();
        if login.db() < 0 || self.cluster && login.db() != 0 {
            return Err("the URL names a database that cannot be: a cluster has 0 only".into());
        }
        let in_url = login
            .password()
            .is_some_and(|password| !password.is_empty());
        if in_url && self.password != Password::Url {
            return Err("there is a password in the URL and one elsewhere".into());
        }
        if let Some(user) = &self.user {
            login = login.set_username(user);
        }
        if login.username().is_some() && !in_url && self.password == Password::Url {
            return Err("a user needs a password".into());
        }
        Ok(target
            .set_redis_settings(login)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true)))
    }

    fn secret(&self) -> Result<Option<String>, String> {
        let (secret, of) = match &self.password {
            Password::Url => return Ok(None),
            Password::File(path) => (
                fs::read_to_string(path).map_err(|error| error.to_string()),
                format!("the password file {}", path.display()),
            ),
            Password::Env(name) => (
                // The error of a value that is no text has the value in it.
                std::env::var(name).map_err(|_| "not set, or no text".into()),
                format!("the variable {name} for the password"),
            ),
        };
        match secret
            .as_deref()
            .map(|secret| secret.trim_end_matches(['\r', '\n']))
        {
            Ok("") => Err(format!("{of}: empty")),
            Ok(secret) => Ok(Some(secret.into())),
            Err(error) => Err(format!("{of}: {error}")),
        }
    }

    fn connect(&self, target: ConnectionInfo) -> Result<Connection, String> {
        let client = if let ConnectionAddr::TcpTls { .. } = target.addr() {
            // Only fails when there is one.
            let _ = rustls::crypto::ring::default_provider().install_default();
            let root_cert = self.ca_file.as_ref().map(|path| {
                let pem = fs::read_to_string(path).map_err(|error| error.to_string());
                pem.and_then(|pem| match pem.contains("BEGIN CERTIFICATE") {
                    true => Ok(pem.into_bytes()),
                    false => Err("no certificate in it".into()),
                })
                .map_err(|error| format!("the CA file {}: {error}", path.display()))
            });
            let root_cert = root_cert.transpose()?;
            Client::build_with_tls(
                target,
                TlsCertificates {
                    client_tls: None,
                    root_cert,
                },
            )
        } else {
            Client::open(target)
        };
        let connect = || {
            let mut connection = client?.get_connection_with_timeout(CONNECT)?;
            connection.set_read_timeout(Some(ANSWER))?;
            connection.set_write_timeout(Some(ANSWER))?;
            // A server that refuses this one may do well otherwise.
            connection.req_command(cmd("CLIENT").arg("SETNAME").arg("rekindle"))?;
            Ok(connection)
        };
        connect().map_err(words)
    }
}

impl fmt::Debug for ValkeyConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ValkeyConfig")
            .field("url", &self.location())
            .field("user", &self.user)
            .field("password", &self.password)
            .field("ca_file", &self.ca_file)
            .field("cluster", &self.cluster)
            .field("partitions", &self.partitions)
            .finish()
    }
}

/// What went wrong, in one line.
fn words(error: RedisError) -> String {
    let words = if error.is_timeout() {
        "no answer in time".into()
    } else if error.kind() == ErrorKind::AuthenticationFailed {
        "the user or the password is refused".into()
    } else if error.kind() == ErrorKind::Parse {
        "its answer makes no sense".into()
    } else if error.is_connection_dropped() && !error.is_connection_refusal() {
        format!("the connection was lost: {error}")
    } else if let Some(code) = error.code() {
        format!("{code} {}", error.detail().unwrap_or_default())
    } else {
        error.to_string()
    };
    // Some are a server's own.
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    words.chars().map(printable).take(300).collect()
}

/// The id of an entry, by which a stream is in order: milliseconds of the server's clock, and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
struct Id(u64, u64);

impl Id {
    fn parse(text: &[u8]) -> Option<Self> {
        let (time, number) = std::str::from_utf8(text).ok()?.split_once('-')?;
        Some(Self(time.parse().ok()?, number.parse().ok()?))
    }

    /// The one before. No entry has the first of all, 0-0.
    fn previous(self) -> Option<Self> {
        let previous = match self.1.checked_sub(1) {
            Some(number) => Self(self.0, number),
            None => Self(self.0.checked_sub(1)?, u64::MAX),
        };
        Some(previous).filter(|id| *id != Self::default())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0, self.1)
    }
}

/// An entry of a stream, with its record if there is a likely one in it.
type Entry = (Id, Option<Record>);

/// The entries in an answer, or none where it is of another form.
fn entries(answer: Value) -> Option<Vec<Entry>> {
    let Value::Array(entries) = answer else {
        return None;
    };
    entries.into_iter().map(entry).collect()
}

fn entry(value: Value) -> Option<Entry> {
    let [Value::BulkString(id), fields] = array(value)? else {
        return None;
    };
    let mut fields = match fields {
        Value::Array(fields) => fields.into_iter(),
        _ => Vec::new().into_iter(),
    };
    let record = match (fields.next(), fields.next()) {
        (Some(Value::BulkString(name)), Some(Value::BulkString(record)))
            if name == FIELD && record.len() <= MAX_RECORD =>
        {
            Some(record)
        }
        _ => None,
    };
    Some((Id::parse(&id)?, record))
}

/// An array of that many elements.
fn array<const N: usize>(value: Value) -> Option<[Value; N]> {
    match value {
        Value::Array(values) => values.try_into().ok(),
        _ => None,
    }
}

/// What goes between the braces of a key: nothing that ends them, and nothing that cannot be typed.
fn escaped(scope: &str) -> String {
    let mut escaped = String::new();
    for c in scope.chars() {
        if c.is_control() || c.is_whitespace() || matches!(c, '%' | '{' | '}' | ':') {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                escaped.push_str(&format!("%{byte:02X}"));
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// The streams of a scope: that of the control lane, then those of the births.
struct Streams {
    config: ValkeyConfig,
    keys: Vec<String>,
    link: Option<Link>,
    /// The servers of the cluster when it was last asked, to be asked where the one in the URL is gone.
    known: VecDeque<(String, u16)>,
}

/// Connections to the servers that have the streams.
struct Link {
    nodes: Vec<Connection>,
    /// For each stream, which of these.
    homes: Vec<usize>,
}

impl Link {
    /// Sends commands, each to the server of its stream, and reads the answers, in the same order. It keeps
    /// no order between servers. For `wait` the servers may be silent with good reason. An error that is an
    /// answer comes with its stream.
    fn call(
        &mut self,
        commands: &[(usize, Cmd)],
        wait: Duration,
    ) -> Result<Vec<Value>, (Option<usize>, String)> {
        let mut packed = vec![Vec::new(); self.nodes.len()];
        for (stream, command) in commands {
            command.write_packed_command(&mut packed[self.homes[*stream]]);
        }
        for (stream, _) in commands {
            let home = self.homes[*stream];
            if !packed[home].is_empty() {
                let node = &mut self.nodes[home];
                node.set_read_timeout(Some(wait.saturating_add(ANSWER)))
                    .and_then(|()| node.send_packed_command(&packed[home]))
                    .map_err(|error| (None, words(error)))?;
                packed[home].clear();
            }
        }
        // redis-rs's own pipelines, and its clusters, wait for all the answers even after one was late: as
        // many times as long.
        let answer = |(stream, _): &(usize, Cmd)| {
            self.nodes[self.homes[*stream]]
                .recv_response()
                .map_err(|error| (None, words(error)))?
                .extract_error()
                .map_err(|error| (Some(*stream), words(error)))
        };
        commands.iter().map(answer).collect()
    }
}

impl Streams {
    fn new(config: ValkeyConfig, scope: &str) -> Self {
        let scope = escaped(scope);
        // Of 0, the first call complains.
        let births =
            (0..config.partitions.max(1)).map(|n| format!("rekindle:1:{{{scope}:{n}}}:births"));
        let keys = [format!("rekindle:1:{{{scope}}}:control")]
            .into_iter()
            .chain(births)
            .collect();
        Self {
            config,
            keys,
            link: None,
            known: VecDeque::new(),
        }
    }

    fn of(&self, lane: Lane) -> Range<usize> {
        match lane {
            Lane::Control => 0..1,
            Lane::Births => 1..self.keys.len(),
        }
    }

    /// A command for each of some streams.
    fn each(
        &self,
        streams: impl IntoIterator<Item = usize>,
        command: impl Fn(usize, &str) -> Cmd,
    ) -> Vec<(usize, Cmd)> {
        streams
            .into_iter()
            .map(|stream| (stream, command(stream, &self.keys[stream])))
            .collect()
    }

    /// The answers to commands, none of which is an error. After an error there is no connection any more.
    fn call(
        &mut self,
        doing: &str,
        commands: &[(usize, Cmd)],
        wait: Duration,
    ) -> Result<Vec<Value>, LogError> {
        let mut link = match self.link.take() {
            Some(link) => link,
            None => self
                .connect()
                .map_err(|error| self.error("connecting to", &error))?,
        };
        let answers = link
            .call(commands, wait)
            .map_err(|(stream, error)| match stream {
                Some(stream) => self.error(doing, &format!("{error} (key {})", self.keys[stream])),
                None => self.error(doing, &error),
            })?;
        self.link = Some(link);
        Ok(answers)
    }

    fn error(&self, doing: &str, why: &str) -> LogError {
        LogError(format!(
            "{doing} the log at {}: {why}",
            self.config.location()
        ))
    }

    /// What comes next on the connection is no better.
    fn nonsense(&mut self, doing: &str, name: &str) -> LogError {
        self.link = None;
        self.error(doing, &format!("its answer to {name} makes no sense"))
    }

    fn connect(&mut self) -> Result<Link, String> {
        let mut target = self.config.target()?;
        if let Some(secret) = self.config.secret()? {
            let login = target.redis_settings().clone().set_password(secret);
            target = target.set_redis_settings(login);
        }
        let first = match self.config.connect(target.clone()) {
            Err(error) if self.known.is_empty() => return Err(error),
            Err(_) => {
                self.known.rotate_left(1);
                target = elsewhere(&target, &self.known[0]);
                self.config
                    .connect(target.clone())
                    .map_err(|error| at(&self.known[0], &error))?
            }
            Ok(first) => first,
        };
        let mut link = Link {
            nodes: vec![first],
            homes: vec![0; self.keys.len()],
        };
        if !self.config.cluster {
            return Ok(link);
        }

        let mut questions = self.each(0..self.keys.len(), |_, key| {
            command("CLUSTER", &["KEYSLOT", key])
        });
        questions.push((0, command("CLUSTER", &["SLOTS"])));
        let mut slots = link
            .call(&questions, Duration::ZERO)
            .map_err(|(_, error)| error)?;
        let ranges = slots
            .pop()
            .and_then(ranges)
            .ok_or("its answer to CLUSTER SLOTS makes no sense")?;
        let mut addresses = vec![address(&target)];
        for (home, slot) in link.homes.iter_mut().zip(slots) {
            let range = ranges
                .iter()
                .find(|range| matches!(slot, Value::Int(slot) if range.slots.contains(&slot)));
            let range = range.ok_or("a part of the cluster has no server")?;
            // A server that does not know its name leaves it out.
            let host = range.host.clone().unwrap_or_else(|| addresses[0].0.clone());
            let node = (host, range.port);
            *home = match addresses.iter().position(|known| *known == node) {
                Some(known) => known,
                None => {
                    let connection = self.config.connect(elsewhere(&target, &node));
                    link.nodes
                        .push(connection.map_err(|error| at(&node, &error))?);
                    addresses.push(node);
                    addresses.len() - 1
                }
            };
        }
        self.known = addresses.into();
        Ok(link)
    }
}

fn command(name: &str, arguments: &[&str]) -> Cmd {
    let mut command = cmd(name);
    command.arg(arguments);
    command
}

fn at((host, port): &(String, u16), error: &str) -> String {
    format!("{host}:{port}: {error}")
}

fn address(target: &ConnectionInfo) -> (String, u16) {
    match target.addr() {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            (host.clone(), *port)
        }
        _ => Default::default(),
    }
}

/// Another server, to be connected to in the same way.
fn elsewhere(target: &ConnectionInfo, (host, port): &(String, u16)) -> ConnectionInfo {
    let (host, port) = (host.clone(), *port);
    let address = match target.addr() {
        ConnectionAddr::TcpTls { .. } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: false,
            tls_params: None,
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    target.clone().set_addr(address)
}

/// Slots of a cluster and the server that has them.
struct Slots {
    slots: std::ops::RangeInclusive<i64>,
    host: Option<String>,
    port: u16,
}

/// The answer to CLUSTER SLOTS.
fn ranges(answer: Value) -> Option<Vec<Slots>> {
    let range = |range: Value| {
        let Value::Array(range) = range else {
            return None;
        };
        let mut range = range.into_iter();
        let (Value::Int(first), Value::Int(last)) = (range.next()?, range.next()?) else {
            return None;
        };
        let Value::Array(primary) = range.next()? else {
            return None;
        };
        let mut primary = primary.into_iter();
        let host = match primary.next()? {
            Value::BulkString(host) if !host.is_empty() && host != b"?" => {
                Some(String::from_utf8(host).ok()?)
            }
            _ => None,
        };
        let Value::Int(port) = primary.next()? else {
            return None;
        };
        Some(Slots {
            slots: first..=last,
            host,
            port: port.try_into().ok()?,
        })
    };
    let Value::Array(all) = answer else {
        return None;
    };
    all.into_iter().map(range).collect()
}

/// A server's clock, in milliseconds since 1970, from its answer to TIME.
fn clock(answer: Value) -> Option<u64> {
    let [Value::BulkString(seconds), Value::BulkString(micros)] = array(answer)? else {
        return None;
    };
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
    number(&seconds)?
        .checked_mul(1000)?
        .checked_add(number(&micros)? / 1000)
}

/// The end that is appended to.
pub struct ValkeyWriter {
    streams: Streams,
    /// How many births were appended: the next goes to the partition after the last one's.
    births: usize,
    /// What was last trimmed to.
    keep: Option<Duration>,
    /// The last entry of the control lane from here. Births come soon enough after it that it is still there, or the
    /// log was emptied, and has nothing of what they refer to.
    witness: Option<Id>,
}

impl ValkeyWriter {
    /// Connects to nothing yet.
    pub fn new(config: ValkeyConfig, scope: &str) -> Self {
        Self {
            streams: Streams::new(config, scope),
            births: 0,
            keep: None,
            witness: None,
        }
    }

    /// Has streams go that nobody appends to or trims any more, once their last record is too old.
    fn expiry(&self, streams: impl IntoIterator<Item = usize>) -> Vec<(usize, Cmd)> {
        let Some(keep) = self.keep else {
            return Vec::new();
        };
        let seconds = keep.saturating_add(MARGIN).min(FOREVER).as_secs();
        self.streams.each(streams, |_, key| {
            command("EXPIRE", &[key, &seconds.to_string()])
        })
    }
}

impl LogWriter for ValkeyWriter {
    fn append(&mut self, lane: Lane, records: &[Record]) -> Result<(), LogError> {
        let doing = "appending to";
        let streams = self.streams.of(lane);
        let mut records = records.iter().peekable();
        while records.peek().is_some() {
            let mut commands = Vec::new();
            let mut bytes = 0;
            while let Some(record) =
                records.next_if(|_| commands.len() < CHUNK.0 && bytes < CHUNK.1)
            {
                let stream = streams.start + self.births % streams.len();
                self.births = self.births.wrapping_add(1);
                let mut xadd = command("XADD", &[&self.streams.keys[stream], "*"]);
                xadd.arg(FIELD).arg(&record[..]);
                commands.push((stream, xadd));
                bytes += record.len();
            }
            let added = commands.len();
            if records.peek().is_none() {
                commands.extend(self.expiry(streams.clone()));
            }
            let witness = self.witness.filter(|_| lane == Lane::Births);
            commands.extend(witness.map(|id| {
                let (key, id) = (&self.streams.keys[CONTROL], id.to_string());
                (CONTROL, command("XREVRANGE", &[key, &id, &id]))
            }));
            let mut answers = self.streams.call(doing, &commands, Duration::ZERO)?;
            if lane == Lane::Control {
                self.witness = match &answers[added - 1] {
                    Value::BulkString(id) => Id::parse(id),
                    _ => None,
                };
            } else if witness.is_some() && answers.pop() == Some(Value::Array(Vec::new())) {
                self.witness = None;
                return Err(self.streams.error(doing, "somebody has emptied it"));
            }
        }
        Ok(())
    }

    fn trim(&mut self, keep: Duration) -> Result<(), LogError> {
        self.keep = Some(keep);
        let all = 0..self.streams.keys.len();
        let mut commands = self.streams.each(all.clone(), |_, _| cmd("TIME"));
        commands.extend(self.expiry(all.clone()));
        let answers = self.streams.call("trimming", &commands, Duration::ZERO)?;
        let keep = u64::try_from(keep.as_millis()).unwrap_or(u64::MAX);
        let clocks = answers
            .into_iter()
            .take(all.len())
            .map(clock)
            .collect::<Option<Vec<_>>>();
        let clocks = clocks.ok_or_else(|| self.streams.nonsense("trimming", "TIME"))?;
        let commands = self.streams.each(all, |stream, key| {
            let oldest = Id(clocks[stream].saturating_sub(keep), 0);
            command("XTRIM", &[key, "MINID", "~", &oldest.to_string()])
        });
        // A server drops some ten thousand entries at a time. What it does not get done is left for the next time.
        let began = Instant::now();
        loop {
            let dropped = self.streams.call("trimming", &commands, Duration::ZERO)?;
            if dropped.iter().all(|dropped| *dropped == Value::Int(0)) || began.elapsed() > ANSWER {
                return Ok(());
            }
        }
    }
}

/// The end that is read from.
pub struct ValkeyReader {
    streams: Streams,
    back: Vec<Back>,
    /// For each stream, the last entry that was given out.
    forward: Vec<Id>,
    /// When it was last seen that the streams go on from there.
    checked: Option<Instant>,
    clock: Option<(Instant, i64)>,
}

/// The way back through one stream.
#[derive(Default)]
struct Back {
    /// The newest entry that was not asked for yet, if there may be one.
    next: Option<Id>,
    /// Records that others of the lane's are newer than.
    page: VecDeque<(Id, Record)>,
}

impl ValkeyReader {
    /// Connects to nothing yet.
    pub fn new(config: ValkeyConfig, scope: &str) -> Self {
        let streams = Streams::new(config, scope);
        Self {
            back: streams.keys.iter().map(|_| Back::default()).collect(),
            forward: vec![Id::default(); streams.keys.len()],
            streams,
            checked: None,
            clock: None,
        }
    }

    /// The last entry of each stream.
    fn last(&mut self) -> Result<Vec<Id>, LogError> {
        let all = 0..self.streams.keys.len();
        let commands = self.streams.each(all, |_, key| {
            command("XREVRANGE", &[key, "+", "-", "COUNT", "1"])
        });
        let pages = self.pages(&commands)?;
        Ok(pages
            .into_iter()
            .map(|page| page.last().map(|(id, _)| *id).unwrap_or_default())
            .collect())
    }

    /// The answers to XREVRANGE.
    fn pages(&mut self, commands: &[(usize, Cmd)]) -> Result<Vec<Vec<Entry>>, LogError> {
        let answers = self.streams.call("reading", commands, Duration::ZERO)?;
        let pages = answers.into_iter().map(entries).collect::<Option<_>>();
        pages.ok_or_else(|| self.streams.nonsense("reading", "XREVRANGE"))
    }

    /// Begins a stream anew whose entries would not be seen: it was emptied, and the server's clock has gone
    /// back.
    fn check(&mut self) -> Result<(), LogError> {
        if self
            .checked
            .is_none_or(|checked| checked.elapsed() >= CHECK)
        {
            let last = self.last()?;
            for (forward, last) in self.forward.iter_mut().zip(last) {
                if last < *forward {
                    *forward = Id::default();
                }
            }
            self.checked = Some(Instant::now());
        }
        Ok(())
    }

    /// What streams have after what was given out, `count` entries of each at most.
    fn after(
        &mut self,
        streams: Range<usize>,
        count: usize,
        wait: Duration,
    ) -> Result<Vec<(usize, Vec<Entry>)>, LogError> {
        let read = |streams: Range<usize>| {
            let mut read = command("XREAD", &["COUNT", &count.to_string()]);
            // 0 is for ever.
            if wait.as_millis() > 0 {
                read.arg("BLOCK").arg(wait.as_millis() as u64);
            }
            read.arg("STREAMS").arg(&self.streams.keys[streams.clone()]);
            for id in &self.forward[streams.clone()] {
                read.arg(id.to_string());
            }
            (streams.start, read)
        };
        // A server of a cluster takes no command for streams of different slots.
        let commands: Vec<_> = match self.streams.config.cluster {
            true => streams.map(|stream| read(stream..stream + 1)).collect(),
            false => vec![read(streams)],
        };
        let answers = self.streams.call("reading", &commands, wait)?;
        let found = answers
            .into_iter()
            .map(|answer| self.found(answer))
            .collect::<Option<Vec<_>>>();
        let found = found.ok_or_else(|| self.streams.nonsense("reading", "XREAD"))?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The answer to one XREAD: streams and their entries.
    fn found(&self, answer: Value) -> Option<Vec<(usize, Vec<Entry>)>> {
        let stream = |value| {
            let [Value::BulkString(key), page] = array(value)? else {
                return None;
            };
            let stream = self
                .streams
                .keys
                .iter()
                .position(|known| known.as_bytes() == key)?;
            Some((stream, entries(page)?))
        };
        match answer {
            Value::Nil => Some(Vec::new()),
            Value::Array(streams) => streams.into_iter().map(stream).collect(),
            _ => None,
        }
    }

    /// Looks for new entries once.
    fn look(&mut self, count: usize, wait: Duration) -> Result<Vec<(Lane, Record)>, LogError> {
        self.check()?;
        let births = self.streams.of(Lane::Births);
        let mut found = if self.streams.config.cluster {
            // The control lane after the others, for it to have what the births need.
            let mut found = self.after(births, count, Duration::ZERO)?;
            found.extend(self.after(CONTROL..CONTROL + 1, count, Duration::ZERO)?);
            found
        } else {
            self.after(CONTROL..births.end, count, wait)?
        };
        found.sort_by_key(|(stream, _)| *stream);
        if found
            .first()
            .is_some_and(|(stream, page)| *stream == CONTROL && page.len() >= count)
        {
            // There may be more of it, for the same reason.
            found.truncate(1);
        }
        let mut records = Vec::new();
        for (stream, page) in found {
            let lane = if stream == CONTROL {
                Lane::Control
            } else {
                Lane::Births
            };
            for (id, record) in page {
                self.forward[stream] = id;
                records.extend(record.map(|record| (lane, record)));
            }
        }
        Ok(records)
    }
}

impl LogReader for ValkeyReader {
    fn mark(&mut self) -> Result<(), LogError> {
        self.forward = self.last()?;
        let back = |last: &Id| Back {
            next: Some(*last).filter(|last| *last != Id::default()),
            page: VecDeque::new(),
        };
        self.back = self.forward.iter().map(back).collect();
        Ok(())
    }

    fn older(&mut self, lane: Lane, limit: usize) -> Result<Vec<Record>, LogError> {
        let limit = limit.max(1);
        let streams = self.streams.of(lane);
        let count = limit.div_ceil(streams.len()).max(1);
        loop {
            let empty = |stream: &usize| {
                self.back[*stream].page.is_empty() && self.back[*stream].next.is_some()
            };
            let empty: Vec<usize> = streams.clone().filter(empty).collect();
            if empty.is_empty() {
                break;
            }
            let commands = self.streams.each(empty.iter().copied(), |stream, key| {
                let next = self.back[stream].next.unwrap_or_default().to_string();
                command("XREVRANGE", &[key, &next, "-", "COUNT", &count.to_string()])
            });
            for (stream, page) in empty.into_iter().zip(self.pages(&commands)?) {
                let oldest = page.last().filter(|_| page.len() >= count);
                let next = oldest.and_then(|(id, _)| id.previous());
                let page = page
                    .into_iter()
                    .filter_map(|(id, record)| Some((id, record?)))
                    .collect();
                self.back[stream] = Back { next, page };
            }
        }
        let mut records = Vec::new();
        while records.len() < limit {
            let back = &self.back[streams.clone()];
            let Some(newest) =
                (0..back.len()).max_by_key(|stream| back[*stream].page.front().map(|(id, _)| *id))
            else {
                break;
            };
            let back = &mut self.back[streams.start + newest];
            let Some((_, record)) = back.page.pop_front() else {
                break;
            };
            records.push(record);
            if back.page.is_empty() && back.next.is_some() {
                // Its next one may be newer than all the others'.
                break;
            }
        }
        Ok(records)
    }

    fn newer(&mut self, limit: usize, wait: Duration) -> Result<Vec<(Lane, Record)>, LogError> {
        let count = limit.div_ceil(self.streams.keys.len()).max(1);
        let began = Instant::now();
        loop {
            let found = self.look(count, wait).inspect_err(|_| self.checked = None);
            let left = wait.saturating_sub(began.elapsed());
            if !self.streams.config.cluster
                || left.is_zero()
                || found.as_ref().map_or(true, |found| !found.is_empty())
            {
                return found;
            }
            thread::sleep(POLL.min(left));
        }
    }

    fn clock_ahead_ms(&mut self) -> Result<Option<i64>, LogError> {
        if let Some((_, ahead)) = self.clock.filter(|(asked, _)| asked.elapsed() < CLOCK) {
            return Ok(Some(ahead));
        }
        // Once for the connection: what it takes to make one would count as the way there.
        let time = [(CONTROL, cmd("TIME"))];
        self.streams
            .call("asking the time of", &time, Duration::ZERO)?;
        let asked = Instant::now();
        let answer = self
            .streams
            .call("asking the time of", &time, Duration::ZERO)?
            .pop();
        let way = asked.elapsed() / 2;
        let ours = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .saturating_sub(way);
        let theirs = answer
            .and_then(clock)
            .and_then(|theirs| i64::try_from(theirs).ok())
            .ok_or_else(|| self.streams.nonsense("asking the time of", "TIME"))?;
        let ahead = theirs.saturating_sub(ours.as_millis() as i64);
        self.clock = Some((asked, ahead));
        Ok(Some(ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(url: &str) -> Result<(), String> {
        ValkeyConfig::new(url).check()
    }

    #[test]
    fn urls() {
        for url in [
            "valkey://host",
            "valkeys://:secret@host:7000",
            "redis://user:secret@10.0.0.1:6379/3",
            "rediss://[::1]:6379/",
            "redis://:pa@ss:wo%2Frd@host",
        ] {
            assert_eq!(check(url), Ok(()), "{url}");
        }
        for url in [
            "",
            "secret",
            "host:6379",
            "http://user:secret@host",
            "unix:///secret",
            "redis+unix:///secret",
            "redis://",
            "redis://:secret@",
            "redis://:secret@:6379",
            "redis://:sec/ret@host",
            "redis://user:1234/secret@host",
            "redis://secret/secret@host",
            "redis://:secret@host:port",
            "redis://:secret@host:70000",
            "redis://:secret@host/zero",
            "redis://:secret@host/-1",
            "redis://:secret@0.0.0.0",
            "redis://:%ff%fe@host",
            "rediss://:secret@host/#insecure",
            "redis://:secret@host?protocol=resp3",
            "redis://user@host",
        ] {
            let wrong = check(url).expect_err(url);
            assert!(
                !wrong.contains("secret") && !wrong.contains('\n'),
                "{url}: {wrong}"
            );
            let config = ValkeyConfig::new(url);
            let shown = format!("{} {config:?}", config.location());
            assert!(!shown.contains("secret"), "{url}: {shown}");
            let error = ValkeyWriter::new(config, "scope").append(Lane::Births, &[vec![]]);
            assert!(
                error.clone().is_err_and(|error| error.0.contains(&wrong)),
                "{url}: {error:?}"
            );
        }
        assert!(check("http://host")
            .is_err_and(|wrong| wrong.contains("valkey, redis and, with TLS, valkeys, rediss")));
    }

    #[test]
    fn what_does_not_go_together() {
        let config = |url: &str| ValkeyConfig::new(url);
        let file = || Password::File("/nowhere".into());
        for (config, right) in [
            (
                ValkeyConfig {
                    partitions: 0,
                    ..config("redis://host")
                },
                false,
            ),
            (
                ValkeyConfig {
                    partitions: 65,
                    ..config("redis://host")
                },
                false,
            ),
            (
                ValkeyConfig {
                    partitions: 64,
                    ..config("redis://host")
                },
                true,
            ),
            (
                ValkeyConfig {
                    ca_file: Some("ca".into()),
                    ..config("redis://host")
                },
                false,
            ),
            (
                ValkeyConfig {
                    ca_file: Some("ca".into()),
                    ..config("valkeys://host")
                },
                true,
            ),
            (
                ValkeyConfig {
                    cluster: true,
                    ..config("redis://host/1")
                },
                false,
            ),
            (
                ValkeyConfig {
                    cluster: true,
                    ..config("redis://host/0")
                },
                true,
            ),
            (
                ValkeyConfig {
                    password: file(),
                    ..config("redis://:secret@host")
                },
                false,
            ),
            (
                ValkeyConfig {
                    password: file(),
                    ..config("redis://host")
                },
                true,
            ),
            (
                ValkeyConfig {
                    password: file(),
                    ..config("redis://user@host")
                },
                true,
            ),
            (
                ValkeyConfig {
                    user: Some("user".into()),
                    ..config("redis://host")
                },
                false,
            ),
            (
                ValkeyConfig {
                    user: Some("user".into()),
                    ..config("redis://:secret@host")
                },
                true,
            ),
        ] {
            assert_eq!(
                config.check().is_ok(),
                right,
                "{config:?}: {:?}",
                config.check()
            );
            let mut writer = ValkeyWriter::new(config.clone(), "scope");
            let mut reader = ValkeyReader::new(config, "scope");
            if !right {
                assert!(writer.append(Lane::Births, &[vec![]]).is_err());
                assert!(reader.older(Lane::Births, 0).is_ok());
                assert!(reader.newer(0, Duration::ZERO).is_err());
            }
        }
    }

    #[test]
    fn what_people_see_has_no_password() {
        let config = ValkeyConfig::new("rediss://user:secret@host:7000/2");
        assert_eq!(config.location(), "rediss://host:7000/2");
        assert_eq!(
            format!("{config:?}"),
            "ValkeyConfig { url: \"rediss://host:7000/2\", user: None, password: Url, ca_file: None, \
             cluster: false, partitions: 1 }"
        );
    }

    #[test]
    fn keys_of_different_scopes_are_different() {
        let scopes = [
            "",
            "a",
            "a:0",
            "a}:0",
            "{a}",
            "a%3A0",
            "a b",
            "a%20b",
            "a\nb",
            "café",
            "127.0.0.1:8883",
        ];
        let mut keys = Vec::new();
        for scope in scopes {
            let config = ValkeyConfig {
                partitions: 2,
                ..ValkeyConfig::new("redis://host")
            };
            keys.extend(Streams::new(config, scope).keys);
        }
        for key in &keys {
            assert_eq!(key.matches(['{', '}']).count(), 2, "{key}");
            assert!(
                !key.contains(|c: char| c.is_control() || c.is_whitespace()),
                "{key}"
            );
        }
        assert!(keys.contains(&"rekindle:1:{127.0.0.1%3A8883:1}:births".to_owned()));
        assert!(keys.contains(&"rekindle:1:{café}:control".to_owned()));
        let count = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!((keys.len(), count), (33, 33));
    }

    #[test]
    fn ids_are_in_the_order_of_the_server() {
        assert_eq!(Id::parse(b"12-3"), Some(Id(12, 3)));
        for wrong in [
            "",
            "12",
            "12-",
            "-3",
            "12-3-4",
            "x-3",
            "12-99999999999999999999",
        ] {
            assert_eq!(Id::parse(wrong.as_bytes()), None, "{wrong}");
        }
        assert!(Id(9, 7) < Id(10, 0));
        assert_eq!(Id(10, 0).previous(), Some(Id(9, u64::MAX)));
        assert_eq!(Id(10, 5).previous(), Some(Id(10, 4)));
        assert_eq!(Id(0, 1).previous(), None);
        assert_eq!(Id(0, 0).previous(), None);
    }

    #[test]
    fn answers_to_a_read() {
        let reader = ValkeyReader::new(ValkeyConfig::new("redis://host"), "a");
        let text = |text: &str| Value::BulkString(text.into());
        let entry =
            |id: &str| Value::Array(vec![text(id), Value::Array(vec![text("r"), text("x")])]);
        let stream =
            |key: &str, entries| Value::Array(vec![Value::Array(vec![text(key), entries])]);
        let births = "rekindle:1:{a:0}:births";
        assert_eq!(reader.found(Value::Nil), Some(vec![]));
        let found = reader.found(stream(births, Value::Array(vec![entry("7-1"), Value::Nil])));
        assert_eq!(found, None);
        let found = reader.found(stream(births, Value::Array(vec![entry("7-1")])));
        assert_eq!(
            found,
            Some(vec![(1, vec![(Id(7, 1), Some(b"x".to_vec()))])])
        );
        for wrong in [
            Value::Int(1),
            Value::Array(vec![Value::Nil]),
            stream("another", Value::Array(vec![])),
            stream(births, Value::Nil),
            stream(births, Value::Array(vec![entry("7")])),
        ] {
            assert_eq!(reader.found(wrong.clone()), None, "{wrong:?}");
        }
    }

    #[test]
    fn errors_are_short_lines() {
        let error = RedisError::from((ErrorKind::Client, "bad", "\x1b\r\n".repeat(1000)));
        let words = words(error);
        assert!(
            words.len() <= 300 && !words.contains(char::is_control),
            "{words}"
        );
    }
}
