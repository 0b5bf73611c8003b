//! What the tests share: a log in memory that fails as it is told, sessions without Erlang, and key files.

#![cfg_attr(fuzzing, allow(dead_code))]

use crate::clock::wall_ms;
use crate::{Content, KeyFile, Lane, LogError, LogReader, LogWriter, Options, Portable, Record};
use once_cell::sync::Lazy;
use parking_lot::{Condvar, Mutex};
use rekindle_core::{
    Held, Join, Limits, Made, NewSession, Pattern, Reference, Registry, Scope, ServerStore,
    SessionKey, Store,
};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// A log in memory. Its clones are the same log.
#[derive(Clone, Default)]
pub struct Memory(Arc<(Mutex<Kept>, Condvar)>);

#[derive(Default)]
struct Kept {
    /// With the wall clock's time of their being appended.
    records: Vec<(Lane, Record, u64)>,
    /// How many were there before the first of these.
    gone: usize,
    switches: Switches,
}

/// How a log misbehaves.
#[derive(Clone, Copy, Default)]
pub struct Switches {
    /// Every call fails.
    pub is_down: bool,
    /// So many times half of what is appended is, and then the call fails.
    pub half_appends: usize,
    /// Everything is appended twice.
    pub is_doubling: bool,
    /// Readers do not see what is new.
    pub is_held_back: bool,
}

impl Memory {
    pub fn writer(&self) -> Box<End> {
        self.reader(0, usize::MAX)
    }

    /// A reader that takes the end for where it was so many records ago, and then sees so many at a time.
    pub fn reader(&self, late: usize, at_once: usize) -> Box<End> {
        Box::new(End {
            log: self.clone(),
            late,
            at_once,
            back: [0; 2],
            next: 0,
        })
    }

    pub fn switch(&self, switch: impl FnOnce(&mut Switches)) {
        switch(&mut self.0 .0.lock().switches);
        self.0 .1.notify_all();
    }

    /// Every call waits while this is held.
    pub fn hang(&self) -> impl Sized + '_ {
        self.0 .0.lock()
    }

    /// All records, oldest first.
    pub fn records(&self) -> Vec<(Lane, Record)> {
        let held = self.0 .0.lock();
        let records = held.records.iter();
        records
            .map(|(lane, record, _)| (*lane, record.clone()))
            .collect()
    }

    pub fn append(&self, lane: Lane, record: Record) {
        self.0 .0.lock().records.push((lane, record, wall_ms()));
        self.0 .1.notify_all();
    }

    /// Changes every record.
    pub fn corrupt(&self, change: impl FnMut(&mut Record)) {
        let mut held = self.0 .0.lock();
        let records = held.records.iter_mut();
        records.map(|(_, record, _)| record).for_each(change);
    }

    /// Loses every record.
    pub fn lose_all(&self) {
        let mut held = self.0 .0.lock();
        held.gone += held.records.len();
        held.records.clear();
    }
}

/// An end of the log, to write to or to read from.
pub struct End {
    log: Memory,
    late: usize,
    at_once: usize,
    /// What [`LogReader::older`] has still to come to in each lane is before these.
    back: [usize; 2],
    next: usize,
}

fn work(held: &Kept, what: &str) -> Result<(), LogError> {
    match held.switches.is_down {
        true => Err(LogError(format!("{what} a log in memory: it is down"))),
        false => Ok(()),
    }
}

impl LogWriter for End {
    fn append(&mut self, lane: Lane, records: &[Record]) -> Result<(), LogError> {
        let mut held = self.log.0 .0.lock();
        work(&held, "writing to")?;
        let is_half = held.switches.half_appends > 0;
        let count = if is_half {
            held.switches.half_appends -= 1;
            records.len() / 2
        } else {
            records.len()
        };
        for _ in 0..1 + usize::from(held.switches.is_doubling) {
            let records = records[..count].iter().cloned();
            held.records
                .extend(records.map(|record| (lane, record, wall_ms())));
        }
        self.log.0 .1.notify_all();
        match is_half {
            true => Err(LogError("writing to a log in memory: half of it".into())),
            false => Ok(()),
        }
    }

    fn trim(&mut self, keep: Duration) -> Result<(), LogError> {
        let mut held = self.log.0 .0.lock();
        work(&held, "trimming")?;
        let since_ms = wall_ms().saturating_sub(keep.as_millis() as u64);
        let old = |record: &&(Lane, Record, u64)| record.2 < since_ms;
        let old = held.records.iter().take_while(old).count();
        held.records.drain(..old);
        held.gone += old;
        Ok(())
    }
}

impl LogReader for End {
    fn mark(&mut self) -> Result<(), LogError> {
        let held = self.log.0 .0.lock();
        work(&held, "marking the end of")?;
        self.next = held.gone + held.records.len().saturating_sub(self.late);
        self.back = [self.next; 2];
        Ok(())
    }

    fn older(&mut self, lane: Lane, limit: usize) -> Result<Vec<Record>, LogError> {
        let held = self.log.0 .0.lock();
        work(&held, "reading")?;
        let back = &mut self.back[lane as usize];
        let mut records = Vec::new();
        while records.len() < limit && *back > held.gone {
            *back -= 1;
            let (its, record, _) = &held.records[*back - held.gone];
            if *its == lane {
                records.push(record.clone());
            }
        }
        Ok(records)
    }

    fn newer(&mut self, limit: usize, wait: Duration) -> Result<Vec<(Lane, Record)>, LogError> {
        let mut held = self.log.0 .0.lock();
        let is_there = |held: &Kept| self.next.max(held.gone) < held.gone + held.records.len();
        let sees = |held: &Kept| is_there(held) && !held.switches.is_held_back;
        if !wait.is_zero() && !sees(&held) && !held.switches.is_down {
            self.log.0 .1.wait_for(&mut held, wait);
        }
        work(&held, "following")?;
        if !sees(&held) {
            return Ok(Vec::new());
        }
        let from = self.next.max(held.gone) - held.gone;
        let records: Vec<_> = held.records[from..]
            .iter()
            .take(limit.min(self.at_once))
            .map(|(lane, record, _)| (*lane, record.clone()))
            .collect();
        self.next = held.gone + from + records.len();
        Ok(records)
    }
}

/// What test sessions have in common: bytes.
pub struct Common(Arc<Content>);

/// Templates that begin with this are of no use.
pub const USELESS: &[u8] = b"useless";

/// And this one shows a defect.
pub const POISON: &[u8] = b"poison";

struct Bytes<'a>(&'a [u8]);

impl Pattern<Common> for Bytes<'_> {
    fn hash(&self) -> u64 {
        self.0.len() as u64
    }
    fn matches(&self, template: &Common) -> bool {
        template.0.bytes() == self.0
    }
    fn make(&self) -> Option<Made<Common>> {
        let content = Arc::new(Content::new(self.0.into()));
        (!self.0.starts_with(USELESS)).then_some(Made {
            template: Common(content),
            bytes: 100,
            part: None,
        })
    }
}

impl Portable for Common {
    fn content(&self) -> &Arc<Content> {
        &self.0
    }

    fn intern<'a>(store: &'a ServerStore<Self>, content: &[u8]) -> Option<Held<'a, Self>> {
        assert!(content != POISON, "a defect that is wanted");
        store.template(&Bytes(content))
    }
}

static REGISTRY: Lazy<Registry<Common>> = Lazy::new(Registry::new);

pub const LAYOUT: &[u8] = b"layout";

/// Of a journal whose log others share, and whose keys are in this file.
pub fn options(scope: &[u8], key_file: PathBuf) -> Options {
    Options {
        scope: scope.into(),
        layout: LAYOUT.into(),
        keys: KeyFile {
            path: key_file,
            make: false,
        },
        location: "memory".into(),
        is_shared: true,
        is_fresh: false,
    }
}

/// Opens a scope. It ends when the first of the two is dropped.
pub fn open(name: &[u8], limits: Limits) -> (Reference<Common>, Arc<Scope<Common>>) {
    let reference = REGISTRY.open_server(name, None, Join::Never, limits);
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

/// Stores a session, whose certificate is empty if it has none.
pub fn insert(
    store: &ServerStore<Common>,
    n: u32,
    template: Held<Common>,
    certificate: &[u8],
) -> bool {
    let (id, secret) = (id(n), secret(n));
    let session = NewSession {
        key: SessionKey::Id(&id),
        secret: &secret,
        template: Some(template),
        certificate: Some(certificate),
        tail: b"",
    };
    store.insert(session, crate::clock::now_ms()).is_ok()
}
