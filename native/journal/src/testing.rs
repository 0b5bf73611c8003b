//! Shared by the tests: a log in memory that fails on request, sessions without Erlang, and keys.

#![cfg_attr(fuzzing, allow(dead_code))]

use crate::clock::now_ms;
use crate::keys::Keys;
use crate::{EncodedTemplate, KeyFile, Options, TemplateCodec};
use once_cell::sync::Lazy;
use parking_lot::{Condvar, Mutex};
use rekindle_core::{
    Held, Join, Limits, Made, NewSession, Pattern, Reference, Registry, Scope, ServerStore,
    SessionKey, Store,
};
use rekindle_log::{
    Batch, Bounds, Log, LogError, LogFollower, LogReader, LogWriter, Mark, News, Record, Stream,
};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A log in memory. Its clones are the same log.
#[derive(Clone)]
pub struct Memory {
    kept: Arc<(Mutex<Kept>, Condvar)>,
    is_shared: bool,
}

#[derive(Default)]
struct Kept {
    records: Vec<Placed>,
    /// The next record's number.
    next: u64,
    /// How often records were changed or lost.
    changes: u64,
    /// How many calls to trim there were.
    trims: usize,
    switches: Switches,
    /// This scope cannot be read.
    unreadable: Option<Arc<str>>,
}

/// A record and its position.
#[derive(Clone, PartialEq, Eq)]
pub struct Placed {
    /// Grows from one record to the next.
    pub number: u64,
    pub scope: Arc<str>,
    pub stream: Stream,
    pub record: Record,
    /// When it was appended, in milliseconds by the monotonic clock.
    at_ms: u64,
}

/// How a log misbehaves.
#[derive(Clone, Copy, Default)]
pub struct Switches {
    /// Every call fails.
    pub is_down: bool,
    /// For this many calls, half of the records are appended and then the call fails.
    pub half_appends: usize,
    /// All records are appended twice.
    pub is_doubling: bool,
    /// Nothing can be trimmed.
    pub refuses_trims: bool,
    /// Nothing can be synced.
    pub refuses_syncs: bool,
    /// Followers do not see new records.
    pub is_held_back: bool,
    /// Followers do not wait for new records.
    pub is_impatient: bool,
}

impl Memory {
    /// A log that other nodes share, or a log of one node.
    pub fn new(is_shared: bool) -> Memory {
        Memory {
            kept: Arc::default(),
            is_shared,
        }
    }

    pub fn switch(&self, switch: impl FnOnce(&mut Switches)) {
        switch(&mut self.kept.0.lock().switches);
        self.kept.1.notify_all();
    }

    /// Makes this scope unreadable.
    pub fn spoil(&self, scope: &str) {
        self.kept.0.lock().unreadable = Some(scope.into());
    }

    /// Every call waits while a test holds this lock.
    pub fn hang(&self) -> impl Sized + '_ {
        self.kept.0.lock()
    }

    /// All records, the oldest first.
    pub fn snapshot(&self) -> Vec<Placed> {
        self.kept.0.lock().records.clone()
    }

    /// The records of a stream of all scopes, the oldest first.
    pub fn records(&self, stream: Stream) -> Vec<Record> {
        let records = self.snapshot().into_iter();
        let records = records.filter(|placed| placed.stream == stream);
        records.map(|placed| placed.record).collect()
    }

    pub fn append(&self, scope: &str, stream: Stream, record: Record) {
        self.kept.0.lock().append(&scope.into(), stream, record);
        self.kept.1.notify_all();
    }

    /// How many calls to trim there were.
    pub fn trims(&self) -> usize {
        self.kept.0.lock().trims
    }

    /// Changes the log's records: loses some, sets them back, or reorders them.
    pub fn change(&self, change: impl FnOnce(&mut Vec<Placed>)) {
        let mut kept = self.kept.0.lock();
        change(&mut kept.records);
        kept.changes += 1;
        self.kept.1.notify_all();
    }
}

impl Kept {
    fn append(&mut self, scope: &Arc<str>, stream: Stream, record: Record) {
        self.records.push(Placed {
            number: self.next,
            scope: Arc::clone(scope),
            stream,
            record,
            at_ms: now_ms(),
        });
        self.next += 1;
    }

    fn check(&self, what: &str) -> Result<(), LogError> {
        match self.switches.is_down {
            true => Err(LogError(format!("{what} a log in memory: it is down"))),
            false => Ok(()),
        }
    }
}

impl Log for Memory {
    fn location(&self) -> String {
        "memory".into()
    }

    fn is_shared(&self) -> bool {
        self.is_shared
    }

    fn writer(&self) -> Box<dyn LogWriter> {
        Box::new(Writer(self.clone()))
    }

    fn reader(&self) -> Box<dyn LogReader> {
        Box::new(Reader {
            log: self.clone(),
            scope: "".into(),
            next: [0; 2],
        })
    }

    fn follower(&self) -> Option<Box<dyn LogFollower>> {
        let follower = Follower {
            log: self.clone(),
            next: HashMap::new(),
            changes: self.kept.0.lock().changes,
        };
        self.is_shared.then(|| Box::new(follower) as _)
    }
}

struct Writer(Memory);

impl LogWriter for Writer {
    fn append(&mut self, batches: &[Batch]) -> Result<Vec<Result<(), LogError>>, LogError> {
        let mut kept = self.0.kept.0.lock();
        kept.check("writing to")?;
        let is_half = kept.switches.half_appends > 0;
        kept.switches.half_appends -= usize::from(is_half);
        let mut results = Vec::new();
        for batch in batches {
            let of = |stream, records: &[Record]| {
                let records = records.iter().cloned();
                records.map(|record| (stream, record)).collect::<Vec<_>>()
            };
            let mut records = of(Stream::Control, batch.control);
            records.extend(of(Stream::Sessions, batch.sessions));
            let count = if is_half {
                records.len() / 2
            } else {
                records.len()
            };
            for _ in 0..1 + usize::from(kept.switches.is_doubling) {
                for (stream, record) in records[..count].iter().cloned() {
                    kept.append(&batch.scope.into(), stream, record);
                }
            }
            results.push(match is_half {
                true => Err(LogError("writing to a log in memory: half of it".into())),
                false => Ok(()),
            });
        }
        self.0.kept.1.notify_all();
        Ok(results)
    }

    fn sync(&mut self) -> Result<(), LogError> {
        match self.0.kept.0.lock().switches.refuses_syncs {
            true => Err(LogError("syncing is not possible".into())),
            false => Ok(()),
        }
    }

    fn trim(&mut self, scopes: &[Bounds]) -> Result<(), LogError> {
        let mut kept = self.0.kept.0.lock();
        kept.check("trimming")?;
        kept.trims += 1;
        if kept.switches.refuses_trims {
            return Err(LogError("trimming is not allowed".into()));
        }
        for bounds in scopes {
            let keep_ms = bounds.keep.as_millis() as u64;
            let is_old = |placed: &Placed| {
                let keep_ms = match placed.stream {
                    Stream::Control => 2 * keep_ms,
                    Stream::Sessions => keep_ms,
                };
                now_ms().saturating_sub(placed.at_ms) > keep_ms
            };
            let is_of = |placed: &Placed| *placed.scope == *bounds.scope;
            let mut bytes: u64 = kept.bytes(bounds.scope);
            kept.records.retain(|placed| {
                let is_too_much = bytes > bounds.max_bytes && placed.stream == Stream::Sessions;
                let is_dropped = is_of(placed) && (is_old(placed) || is_too_much);
                bytes -= u64::from(is_dropped) * placed.record.len() as u64;
                !is_dropped
            });
        }
        Ok(())
    }

    fn bytes(&self, scope: &str) -> Option<u64> {
        Some(self.0.kept.0.lock().bytes(scope))
    }
}

impl Kept {
    fn bytes(&self, scope: &str) -> u64 {
        let records = self.records.iter().filter(|placed| *placed.scope == *scope);
        records.map(|placed| placed.record.len() as u64).sum()
    }
}

struct Reader {
    log: Memory,
    scope: Arc<str>,
    /// For each stream, records with smaller numbers are still to be read.
    next: [u64; 2],
}

impl LogReader for Reader {
    fn mark(&mut self, scope: &str) -> Result<Mark, LogError> {
        let kept = self.log.kept.0.lock();
        kept.check("marking the end of")?;
        if kept.unreadable.as_deref() == Some(scope) {
            return Err(LogError(format!("{scope} cannot be read")));
        }
        self.scope = scope.into();
        self.next = [kept.next; 2];
        Ok(Mark(vec![(kept.next, 0)]))
    }

    fn older(&mut self, stream: Stream, limit: usize) -> Result<Vec<Record>, LogError> {
        let kept = self.log.kept.0.lock();
        kept.check("reading")?;
        let next = &mut self.next[stream as usize];
        let of = |placed: &&Placed| placed.scope == self.scope && placed.stream == stream;
        let older = kept.records.iter().rev().filter(of);
        let older = older.skip_while(|placed| placed.number >= *next);
        let found: Vec<_> = older.take(limit).collect();
        *next = found.last().map_or(0, |placed| placed.number);
        Ok(found.iter().map(|placed| placed.record.clone()).collect())
    }
}

struct Follower {
    log: Memory,
    next: HashMap<Arc<str>, u64>,
    /// The count of changes that this follower has reported.
    changes: u64,
}

impl LogFollower for Follower {
    fn follow(&mut self, scope: &Arc<str>, from: &Mark) {
        self.next.insert(Arc::clone(scope), from.0[0].0);
    }

    fn leave(&mut self, scope: &str) {
        self.next.remove(scope);
    }

    fn newer(&mut self, limit: usize, wait: Duration) -> Result<News, LogError> {
        let mut kept = self.log.kept.0.lock();
        let is_new = |placed: &&Placed| {
            let next = self.next.get(&placed.scope);
            next.is_some_and(|next| placed.number >= *next)
        };
        let sees = |kept: &Kept| {
            kept.changes != self.changes
                || !kept.switches.is_held_back && kept.records.iter().any(|placed| is_new(&placed))
        };
        if !kept.switches.is_impatient && !kept.switches.is_down && !sees(&kept) {
            self.log.kept.1.wait_for(&mut kept, wait);
        }
        kept.check("following")?;
        let mut news = News::default();
        if std::mem::replace(&mut self.changes, kept.changes) != kept.changes {
            news.lost = self.next.keys().cloned().collect();
        }
        if kept.switches.is_held_back {
            return Ok(news);
        }
        let found: Vec<_> = kept.records.iter().filter(is_new).take(limit).collect();
        for placed in &found {
            let scope = Arc::clone(&placed.scope);
            self.next.insert(scope, placed.number + 1);
        }
        let records = found.iter();
        let records = records.map(|placed| {
            let (scope, record) = (Arc::clone(&placed.scope), placed.record.clone());
            (scope, placed.stream, record)
        });
        news.records = records.collect();
        news.records.sort_by_key(|(_, stream, _)| *stream);
        Ok(news)
    }
}

/// The template of test sessions: any bytes.
pub struct Common(Arc<EncodedTemplate>);

/// A template that begins with this cannot be used.
pub const USELESS: &[u8] = b"useless";

/// A template that begins with this ends with its cipher suite.
pub const SUITE: &[u8] = b"suite ";

/// Decoding this template panics.
pub const POISON: &[u8] = b"poison";

struct Bytes<'a>(&'a [u8]);

impl Pattern<Common> for Bytes<'_> {
    fn hash(&self) -> u64 {
        self.0.len() as u64
    }
    fn matches(&self, template: &Common) -> bool {
        **template.0.bytes() == *self.0
    }
    fn make(&self) -> Option<Made<Common>> {
        let template = Common(Arc::new(EncodedTemplate::new(self.0.into())));
        (!self.0.starts_with(USELESS)).then_some(Made {
            template,
            bytes: 100,
            part: None,
        })
    }
}

impl TemplateCodec for Common {
    fn encoded(&self) -> &Arc<EncodedTemplate> {
        &self.0
    }

    fn suite(&self) -> Option<[u8; 2]> {
        self.0.bytes().strip_prefix(SUITE)?.try_into().ok()
    }

    fn intern<'a>(store: &'a ServerStore<Self>, content: &[u8]) -> Option<Held<'a, Self>> {
        assert!(content != POISON, "a defect that is wanted");
        store.template(&Bytes(content))
    }
}

static REGISTRY: Lazy<Registry<Common>> = Lazy::new(Registry::new);

pub const LAYOUT: &[u8] = b"layout";

/// Options of a journal with this key file.
pub fn options(scope: &str, key_file: PathBuf) -> Options {
    Options {
        scope: scope.into(),
        layout: LAYOUT.into(),
        keys: KeyFile {
            path: key_file,
            make: false,
            unless: Vec::new(),
        },
        node_folder: None,
        wait_for_living_node: false,
        max_log_bytes: u64::MAX,
    }
}

/// Opens a scope. It ends when the first of the two is dropped.
pub fn open(name: &str, limits: Limits) -> (Reference<Common>, Arc<Scope<Common>>) {
    let reference = REGISTRY.open_server(name.as_bytes(), None, Join::Never, limits);
    let scope = REGISTRY.scope(reference.scope().number());
    (reference, scope.expect("it was just opened"))
}

pub fn store(scope: &Scope<Common>) -> &ServerStore<Common> {
    match scope.store() {
        Store::Server(store) => store,
        Store::Client(_) => unreachable!("only scopes of servers are opened"),
    }
}

pub fn id(n: u32) -> [u8; 32] {
    let mut id = [7; 32];
    id[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_be_bytes());
    id
}

pub fn secret(n: u32) -> [u8; 48] {
    let mut secret = [9; 48];
    secret[..4].copy_from_slice(&n.to_be_bytes());
    secret
}

/// A line of a key file, always the same for one name.
pub fn key_line(name: &str) -> String {
    use base64ct::{Base64, Encoding};
    use sha2::{Digest, Sha256};
    let key = Base64::encode_string(Sha256::digest(name).as_slice());
    format!("{name} {key}\n")
}

/// Keys with these names.
pub fn keys(names: &[&str]) -> Keys {
    let text: String = names.iter().map(|name| key_line(name)).collect();
    Keys::parse(&text).expect("lines of a key file")
}

/// Stores a session (with an empty certificate if it has none) and tells its journal, as the NIF does.
pub fn insert(scope: &Scope<Common>, n: u32, template: &[u8], certificate: &[u8]) -> bool {
    let store = store(scope);
    let journal = scope.attached::<crate::Journal<Common>>();
    let knowledge = journal.map(crate::Journal::knowledge).unwrap_or_default();
    let template = Common::intern(store, template).expect("room for a template");
    let encoded = Arc::clone(template.encoded());
    let (id, secret) = (id(n), secret(n));
    let session = NewSession {
        key: SessionKey::Id(&id),
        secret: &secret,
        template: Some(template),
        certificate: (!certificate.is_empty()).then_some(certificate),
        tail: b"",
    };
    let is_stored = store.insert(session, now_ms()).is_ok();
    if let Some(journal) = journal.filter(|_| is_stored) {
        let lifetime_ms = store.limits().lifetime_ms;
        journal.add(
            &id,
            &secret,
            encoded,
            knowledge,
            certificate,
            b"",
            lifetime_ms,
        );
    }
    is_stored
}

/// Whether the store has a session, with all its content.
pub fn has(scope: &Scope<Common>, n: u32) -> bool {
    let peeked = store(scope).peek(SessionKey::Id(&id(n)), now_ms(), |session| {
        assert_eq!(*session.secret, secret(n));
        assert!(session.template.is_some());
    });
    peeked.is_some()
}
