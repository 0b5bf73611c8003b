//! A model of several nodes on one log, step by step and in a time of their own, with an attacker who has the log and
//! no key.
//!
//! Once `revoke` has returned without `pending`, its sessions must not be found on any node. There is one exception:
//! the log has lost the revocation while no node that knew it was alive or kept its memory. Nor must a node find
//! sessions whose certificate has ended by its clock, or is on the revocation list that it has read. And if nobody
//! attacks, sessions that were made under a right clock must not be lost.
//!
//! `REKINDLE_MODEL_STEPS` sets the number of steps, and `PROPTEST_RNG_SEED` selects them.

use crate::clock::set_moved;
use crate::follow::Follower;
use crate::hub::Hub;
use crate::journal::{carry_out_here, wait_written};
use crate::node_memory::NodeMemory;
use crate::queue::ControlRecord;
use crate::reader::Seen;
use crate::record::{header, Body, Context, LogIdentity, Skipped, Statement};
use crate::replay::Replayer;
use crate::revocations::{Knowledge, RevocationId};
use crate::shared::Shared;
use crate::testing::{
    has, id, insert, key_line, keys, open, options, store, Common, Memory, Placed, LAYOUT,
};
use crate::writer::Writer;
use crate::{CertificateSelector, Journal, Target};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use rekindle_core::{
    IssuerHash, IssuerLists, Known, Limits, Lists, Reference, Scope, SessionKey, Trust, WALL_S,
};
use rekindle_log::{Log, Record, Stream};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::Instant;
use tempfile::TempDir;

const NODES: usize = 3;
const LIFETIME_MS: u64 = 100_000;
/// How long revocations are kept.
const KEEP_MS: u64 = LIFETIME_MS + LIFETIME_MS / 4 + 600_000;
/// When nodes do not take sessions for older ones any more because their writers have forgotten a revocation.
const FORGOTTEN_MS: u64 = 12 * KEEP_MS;
/// What clocks round, and more.
const SLACK_MS: u64 = 5_000;
/// How far ahead a clock may be and still count as right.
const AHEAD_MS: [i64; NODES] = [0, -900, 1000];
const SCOPE: &str = "model";
/// Most steps of a case; half as many on average.
const STEPS_PER_CASE: usize = 100;
/// When a case begins by the clock that certificates and revocation lists go by: 2026-01-01, in seconds since 1970.
const BEGIN_S: i64 = 1_767_225_600;
/// The end of the last certificate, in seconds after the beginning.
const CERTIFICATE_ENDS_AFTER_S: i64 = 50;
const CERTIFICATES: u8 = 3;
/// The contents of key files. The last one opens everything.
const KEYS: [&[&str]; 6] = [
    &[],
    &["a"],
    &["a", "b"],
    &["b", "c"],
    &["c"],
    &["a", "b", "c"],
];

#[derive(Debug, Clone)]
enum Step {
    Add {
        node: usize,
        certificate: u8,
    },
    Forget {
        node: usize,
        which: Index,
    },
    Revoke {
        node: usize,
        what: Revoke,
    },
    Pass {
        ms: u64,
    },
    /// Time passes while the nodes work: so many times as long as revocations are kept.
    Run(u64),
    Work {
        node: usize,
    },
    Start {
        node: usize,
    },
    Crash {
        node: usize,
    },
    Stop {
        node: usize,
    },
    Clock {
        node: usize,
        ahead_ms: i64,
    },
    Keys {
        node: usize,
        level: usize,
    },
    List {
        node: usize,
        listed: u8,
    },
    Down(bool),
    Double(bool),
    HoldBack(bool),
    HalfAppend,
    Attack(Attack),
    Quiesce,
}

#[derive(Debug, Clone)]
enum Revoke {
    Session(Index),
    Certificate(u8),
    All,
}

#[derive(Debug, Clone)]
enum Attack {
    LoseAll,
    LoseControl,
    Lose(Index),
    Snapshot,
    RollBack,
    Swap(Index, Index),
    Copy { which: Index, stream: bool },
    CopyToScope(Index),
    Flip(Index, u16),
}

struct Added {
    step: usize,
    at_ms: u64,
    certificate: u8,
    /// The node that made it, and when that node was started.
    by: (usize, usize),
    /// Revocations that its writer knew.
    known: HashSet<usize>,
    /// Whether its writer had read the log.
    has_read: bool,
}

struct Revoked {
    target: Target,
    id: RevocationId,
    step: usize,
    at_ms: u64,
    is_promised: bool,
    is_lost: bool,
    /// Whether it was kept until no session was left that it could cover.
    has_expired: bool,
}

struct Node {
    reference: Reference<Common>,
    scope: Arc<Scope<Common>>,
    memory: Arc<NodeMemory>,
    hub: Arc<Hub<Common>>,
    writer: Writer<Common>,
    replayer: Replayer<Common>,
    follower: Follower<Common>,
    lists: Arc<Lists>,
    /// The newest list that it has read.
    listed: Option<u8>,
    /// Certificates that were on one of its lists: their sessions are not replayed.
    was_listed: u8,
    /// When it was started.
    step: usize,
}

/// The content of a record, opened with all keys.
#[derive(Clone)]
enum Parsed {
    Session(usize),
    Revocation(RevocationId),
    Knowledge(Knowledge),
    Other,
}

#[derive(Debug, Clone, Copy)]
struct Config {
    has_folder: [bool; NODES],
    waits: bool,
    has_attacks: bool,
}

struct Model {
    config: Config,
    began: Instant,
    log: Memory,
    folder: TempDir,
    nodes: [Option<Node>; NODES],
    ahead_ms: [i64; NODES],
    moved_ms: u64,
    step: usize,
    added: Vec<Added>,
    revoked: Vec<Revoked>,
    snapshot: Vec<Placed>,
    /// The last step in which the log may have lost something.
    attacked: usize,
    parsed: HashMap<(Stream, Record), (Option<LogIdentity>, Parsed)>,
    /// What each node with a folder has known.
    folders: [HashSet<RevocationId>; NODES],
    /// Revocations that are in the log, or that a living node knows: those of nodes that are down are missing here.
    reachable: HashSet<RevocationId>,
    /// Nodes whose clock was wrong for a while, by when they were started.
    wrong: HashSet<(usize, usize)>,
    /// Whether anything went wrong since the last time that all was quiet.
    is_disturbed: bool,
    keys: [KeyChange; NODES],
    /// Whether nodes can write to the log, and read new records.
    is_down: bool,
    is_held_back: bool,
    /// When each node last worked with the log, and when a running node last had not done so for long.
    worked_ms: [u64; NODES],
    paused_ms: u64,
    /// When nodes with a folder ended.
    ended_ms: Vec<u64>,
    /// The lifetime with which nodes start.
    lifetime_ms: u64,
    /// For how long each node's monotonic clock has stood still: its machine was suspended.
    lag_ms: [u64; NODES],
}

/// What a node's key file has, and when the others hear of it.
#[derive(Default, Clone, Copy)]
struct KeyChange {
    level: usize,
    /// The step and the time in which a key was removed from it, since the last time that all was quiet.
    removed: Option<(usize, u64)>,
    /// When the node has told the others of that.
    told_ms: Option<u64>,
    /// When the node last read what others have written.
    heard_ms: u64,
}

/// A certificate with the fields that the store reads. One authority has made all of them, and the last one ends.
fn certificate(number: u8) -> Vec<u8> {
    let der = |tag: u8, value: &[u8]| [&[tag, value.len() as u8], value].concat();
    let end = match number {
        0 => return Vec::new(),
        CERTIFICATES => format!("2601010000{CERTIFICATE_ENDS_AFTER_S:02}Z"),
        _ => "491231235959Z".to_string(),
    };
    let validity = [der(23, b"250101000000Z"), der(23, end.as_bytes())].concat();
    let signed = [
        der(2, &[number]),
        der(0x30, &[]),
        NAME.to_vec(),
        der(0x30, &validity),
    ];
    der(0x30, &der(0x30, &signed.concat()))
}

/// The authority's name. It is empty.
const NAME: &[u8] = &[0x30, 0];

/// What a node knows after it has read a revocation list, which has one bit for each certificate.
fn known(listed: u8) -> Known {
    let issuer = IssuerHash::of(NAME);
    let numbers = (1..=CERTIFICATES).filter(|number| listed & 1 << number != 0);
    let mut revoked: Vec<u64> = numbers
        .map(|number| issuer.certificate(&[number]))
        .collect();
    revoked.sort_unstable();
    let lists = IssuerLists {
        current_until_s: u64::MAX,
        revoked: vec![revoked.into()],
    };
    Known::new([(issuer, lists)], true)
}

fn selector(number: u8) -> CertificateSelector {
    let certificate = certificate(number);
    match number {
        1 => CertificateSelector::Sha256(Sha256::digest(certificate).into()),
        _ => CertificateSelector::Sha1(Sha1::digest(certificate).into()),
    }
}

impl Node {
    fn journal(&self) -> &Journal<Common> {
        self.scope.attached().unwrap()
    }

    /// Does what the node's threads would do.
    fn work(&mut self) {
        self.writer.work(&self.hub.journals());
        while self.replayer.turn() {}
        self.follower.turn();
        self.writer.work(&self.hub.journals());
    }

    fn read_list(&mut self, listed: u8) {
        self.lists.publish(known(listed));
        self.listed = Some(listed);
        self.was_listed |= listed;
    }

    fn known(&self) -> HashSet<RevocationId> {
        let mut known = HashSet::new();
        let shared = &self.journal().0;
        let revocations = shared.remembered.revocations();
        revocations.for_each(|id, _, _| _ = known.insert(id));
        drop(revocations);
        for (origin, of) in &shared.remembered.knowledge().origins {
            let counters = 1..=of.upto;
            known.extend(counters.map(|counter| RevocationId {
                origin: *origin,
                counter,
            }));
        }
        known
    }

    /// Revocations that this node must have applied. If some are missing, it may know of others only that a missing one
    /// has replaced them.
    fn applied(&self) -> HashSet<RevocationId> {
        let mut applied = HashSet::new();
        let revocations = self.journal().0.remembered.revocations();
        if revocations.missing() == 0 {
            drop(revocations);
            return self.known();
        }
        revocations.for_each(|id, _, _| _ = applied.insert(id));
        applied
    }
}

impl Model {
    fn new(config: Config) -> Model {
        let shm = std::path::Path::new("/dev/shm");
        let folder = match shm.is_dir() {
            true => tempfile::tempdir_in(shm),
            false => tempfile::tempdir(),
        };
        let mut model = Model {
            config,
            began: Instant::now(),
            log: Memory::new(true),
            folder: folder.unwrap(),
            nodes: Default::default(),
            ahead_ms: AHEAD_MS,
            moved_ms: 0,
            step: 1,
            added: Vec::new(),
            revoked: Vec::new(),
            snapshot: Vec::new(),
            attacked: 0,
            parsed: HashMap::new(),
            folders: Default::default(),
            reachable: HashSet::new(),
            wrong: HashSet::new(),
            is_disturbed: true,
            keys: Default::default(),
            is_down: false,
            is_held_back: false,
            worked_ms: [0; NODES],
            paused_ms: 0,
            ended_ms: Vec::new(),
            lifetime_ms: LIFETIME_MS,
            lag_ms: [0; NODES],
        };
        model.log.switch(|log| log.is_impatient = true);
        for node in 0..NODES {
            model.change_keys(node, KEYS.len() - 1);
            model.start(node);
        }
        model
    }

    /// From here on, this node's time counts.
    fn be(&self, node: usize) {
        let passed_ms = self.moved_ms as i64 + self.ahead_ms[node];
        set_moved(self.moved_ms - self.lag_ms[node], passed_ms);
        WALL_S.set(Some((BEGIN_S + passed_ms.div_euclid(1000)) as u64));
    }

    fn change_keys(&mut self, node: usize, level: usize) {
        let keys = &mut self.keys[node];
        let is_removed = |key: &&str| !KEYS[level].contains(key);
        if KEYS[keys.level].iter().any(is_removed) {
            keys.removed = Some((self.step, self.moved_ms));
            keys.told_ms = None;
        }
        keys.level = level;
        self.write_keys(node, level);
    }

    /// Whether another node may have removed the key with which this one seals, and this one has not heard of it.
    fn may_be_unread(&self, number: usize) -> bool {
        let started = self.nodes[number].as_ref().map_or(0, |node| node.step);
        let heard_ms = self.keys[number].heard_ms;
        (0..NODES).filter(|other| *other != number).any(|other| {
            let KeyChange {
                removed, told_ms, ..
            } = self.keys[other];
            removed.is_some_and(|(step, _)| {
                started > step || told_ms.is_none_or(|told_ms| heard_ms < told_ms + 2000)
            })
        })
    }

    fn write_keys(&self, node: usize, level: usize) {
        let path = self.folder.path().join(format!("keys{node}"));
        let new = path.with_extension("new");
        let _ = fs::remove_file(&path);
        if level > 0 {
            let text: String = KEYS[level].iter().map(|name| key_line(name)).collect();
            let mut options = fs::OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            let mut file = options.open(&new).unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            fs::rename(new, path).unwrap();
        }
    }

    fn start(&mut self, node: usize) {
        if self.nodes[node].is_some() {
            return;
        }
        self.be(node);
        self.worked_ms[node] = self.moved_ms;
        let limits = Limits {
            max_bytes: 100_000_000,
            max_sessions: u64::MAX,
            lifetime_ms: self.lifetime_ms,
        };
        let (reference, scope) = open(SCOPE, limits);
        let lists = Arc::new(Lists::new());
        store(&scope).set_trust(Trust {
            lists: Some(Arc::clone(&lists)),
            ..Trust::default()
        });
        let mut options = options(SCOPE, self.folder.path().join(format!("keys{node}")));
        options.wait_for_living_node = self.config.waits;
        let has_folder = self.config.has_folder[node];
        let folder = has_folder.then(|| self.folder.path().join(format!("node{node}")));
        let memory = Arc::new(NodeMemory::new(folder));
        let hub = Hub::without_threads(Arc::new(self.log.clone()));
        let with_memory = Arc::clone(&memory);
        let journal =
            Journal::start_with(&scope, options, with_memory, || Arc::clone(&hub)).unwrap();
        assert!(scope.attach(journal));
        if self.ahead_ms[node].unsigned_abs() > 1000 {
            self.wrong.insert((node, self.step));
        }
        self.nodes[node] = Some(Node {
            reference,
            writer: Writer::new(Arc::clone(&hub), self.log.writer()),
            replayer: Replayer::new(Arc::clone(&hub)),
            follower: Follower::new(Arc::clone(&hub), self.log.follower().unwrap()),
            scope,
            memory,
            hub,
            lists,
            listed: None,
            was_listed: 0,
            step: self.step,
        });
    }

    fn take(&mut self, step: &Step) {
        self.step += 1;
        self.is_disturbed |= !matches!(
            step,
            Step::Add { .. }
                | Step::Forget { .. }
                | Step::Revoke { .. }
                | Step::Pass { .. }
                | Step::Run(_)
                | Step::Work { .. }
                | Step::List { .. }
                | Step::Quiesce
        );
        match *step {
            Step::Add { node, certificate } => self.add(node, certificate),
            Step::Forget { node, which } => {
                if !self.added.is_empty() && self.nodes[node].is_some() {
                    let n = which.index(self.added.len()) as u32;
                    self.revoke(node, Target::Session(id(n)), true);
                }
            }
            Step::Revoke { node, ref what } => {
                let target = match what {
                    Revoke::Session(which) if !self.added.is_empty() => {
                        Target::Session(id(which.index(self.added.len()) as u32))
                    }
                    Revoke::Certificate(number) => Target::Certificate(selector(*number)),
                    _ => Target::All,
                };
                if self.nodes[node].is_some() {
                    self.revoke(node, target, false);
                }
            }
            Step::Pass { ms } => self.moved_ms += ms,
            Step::Run(terms) => {
                for _ in 0..8 * terms {
                    self.moved_ms += KEEP_MS / 8;
                    (0..NODES).for_each(|node| self.work(node));
                }
            }
            Step::Work { node } => self.work(node),
            Step::Start { node } => self.start(node),
            Step::Crash { node } => self.end(node),
            Step::Stop { node } => self.stop(node),
            Step::Clock { node, ahead_ms } => {
                self.ahead_ms[node] = ahead_ms;
                if let Some(started) = &self.nodes[node] {
                    self.wrong.insert((node, started.step));
                }
            }
            Step::Keys { node, level } => self.change_keys(node, level),
            Step::List { node, listed } => {
                if let Some(node) = &mut self.nodes[node] {
                    node.read_list(listed);
                }
            }
            Step::Down(is_down) => {
                self.is_down = is_down;
                self.log.switch(|log| log.is_down = is_down);
            }
            Step::Double(is_doubling) => self.log.switch(|log| log.is_doubling = is_doubling),
            Step::HoldBack(is_held_back) => {
                self.is_held_back = is_held_back;
                self.log.switch(|log| log.is_held_back = is_held_back);
            }
            Step::HalfAppend => self.log.switch(|log| log.half_appends = 1),
            Step::Attack(ref attack) if self.config.has_attacks => self.attack(attack),
            Step::Attack(_) => {}
            Step::Quiesce => self.quiesce(),
        }
        self.note_losses();
        self.check_promises(false);
    }

    fn add(&mut self, node: usize, number: u8) {
        self.be(node);
        let Some(Node { scope, step, .. }) = &self.nodes[node] else {
            return;
        };
        let journal = scope.attached::<Journal<Common>>().unwrap();
        let (knowledge, has_read) = (journal.knowledge(), journal.0.has_replayed.load(Relaxed));
        let knew = |revoked: &Revoked| {
            let known = knowledge.origins.get(&revoked.id.origin);
            known.is_some_and(|known| known.upto >= revoked.id.counter)
        };
        let known = self.revoked.iter().enumerate();
        let known = known.filter(|(_, revoked)| knew(revoked));
        self.added.push(Added {
            step: self.step,
            at_ms: self.moved_ms,
            certificate: number,
            by: (node, *step),
            known: known.map(|(place, _)| place).collect(),
            has_read,
        });
        let n = self.added.len() as u32 - 1;
        assert!(insert(scope, n, &[b't', number], &certificate(number)));
    }

    fn revoke(&mut self, number: usize, target: Target, is_callback: bool) {
        self.be(number);
        let may_be_unread = self.may_be_unread(number);
        let node = self.nodes[number].as_mut().unwrap();
        let mut is_promised = false;
        if is_callback {
            let Target::Session(id) = &target else {
                unreachable!("OTP drops single sessions")
            };
            node.journal().forget(id);
            store(&node.scope).delete(SessionKey::Id(id));
        } else {
            let scopes = [Arc::clone(&node.scope)];
            let (targets, now) = (std::slice::from_ref(&target), Instant::now());
            let mut revoked = carry_out_here(&scopes, false, &[], targets, now);
            node.writer.work(&node.hub.journals());
            wait_written(&scopes, now, &mut revoked);
            is_promised = revoked.pending.is_empty() && !may_be_unread;
        }
        let id = node.journal().0.remembered.revocations().last_made();
        self.revoked.push(Revoked {
            target,
            id,
            step: self.step,
            at_ms: self.moved_ms,
            is_promised,
            is_lost: false,
            has_expired: false,
        });
    }

    fn work(&mut self, number: usize) {
        self.be(number);
        let Some(node) = &mut self.nodes[number] else {
            return;
        };
        node.work();
        if self.moved_ms > self.worked_ms[number] + KEEP_MS / 4 {
            self.paused_ms = self.moved_ms;
        }
        if self.is_down || self.is_held_back {
            return;
        }
        self.worked_ms[number] = self.moved_ms;
        let keys = &mut self.keys[number];
        keys.heard_ms = self.moved_ms;
        let is_late = |(_, removed_ms): (usize, u64)| self.moved_ms >= removed_ms + 1000;
        if keys.removed.is_some_and(is_late) {
            keys.told_ms.get_or_insert(self.moved_ms);
        }
    }

    fn stop(&mut self, number: usize) {
        self.be(number);
        if let Some(node) = &mut self.nodes[number] {
            node.journal().0.queue.close();
            for _ in 0..10 {
                node.writer.work(&node.hub.journals());
            }
        }
        self.end(number);
    }

    /// Drops everything that a node has, so that its folder can be opened again.
    fn end(&mut self, number: usize) {
        self.be(number);
        if let Some(node) = self.nodes[number].take() {
            if node.memory.folder().is_some() {
                self.ended_ms.push(self.moved_ms);
            }
            drop(node.reference);
            // The store's janitor may still use it.
            while Arc::strong_count(&node.scope) > 1 {
                std::thread::yield_now();
            }
        }
    }

    fn attack(&mut self, attack: &Attack) {
        self.attacked = self.step;
        let snapshot = &mut self.snapshot;
        let copy = |records: &[Placed], which: &Index| {
            let copied = (!records.is_empty()).then(|| which.get(records));
            copied.map(|placed| (placed.stream, placed.record.clone()))
        };
        let other = |stream| match stream {
            Stream::Control => Stream::Sessions,
            Stream::Sessions => Stream::Control,
        };
        let records = self.log.snapshot();
        match attack {
            Attack::LoseAll => self.log.change(Vec::clear),
            Attack::LoseControl => self
                .log
                .change(|records| records.retain(|placed| placed.stream == Stream::Sessions)),
            Attack::Lose(which) => self.log.change(|records| {
                if !records.is_empty() {
                    records.remove(which.index(records.len()));
                }
            }),
            Attack::Snapshot => *snapshot = records,
            Attack::RollBack => self.log.change(|records| records.clone_from(snapshot)),
            Attack::Swap(one, two) => self.log.change(|records| {
                if !records.is_empty() {
                    let (one, two) = (one.index(records.len()), two.index(records.len()));
                    if records[one].stream == records[two].stream {
                        let numbers = (records[one].number, records[two].number);
                        records.swap(one, two);
                        (records[one].number, records[two].number) = numbers;
                    }
                }
            }),
            Attack::Copy { which, stream } => {
                if let Some((its, record)) = copy(&records, which) {
                    let stream = if *stream { other(its) } else { its };
                    self.log.append(SCOPE, stream, record);
                }
            }
            Attack::CopyToScope(which) => {
                if let Some((stream, record)) = copy(&records, which) {
                    self.log.append("another", stream, record);
                }
            }
            Attack::Flip(which, bit) => self.log.change(|records| {
                if !records.is_empty() {
                    let place = which.index(records.len());
                    let record = &mut records[place].record;
                    let bit = usize::from(*bit) % (8 * record.len());
                    record[bit / 8] ^= 1 << (bit % 8);
                }
            }),
        }
    }

    /// Ends all disturbances, and gives the nodes the time that they need.
    fn quiesce(&mut self) {
        self.log.switch(|log| {
            log.is_down = false;
            log.is_held_back = false;
        });
        (self.is_down, self.is_held_back) = (false, false);
        self.ahead_ms = AHEAD_MS;
        for node in 0..NODES {
            self.change_keys(node, KEYS.len() - 1);
        }
        for node in self.nodes.iter_mut().flatten() {
            node.read_list(node.listed.unwrap_or(0));
        }
        for round in 0..40 {
            if round == 4 && !self.is_disturbed {
                // Connected nodes obey within a second.
                self.check_promises(true);
            }
            self.moved_ms += 250;
            for node in 0..NODES {
                self.work(node);
            }
            self.note_losses();
        }
        self.check_promises(true);
        self.check_sessions();
        self.is_disturbed = false;
        self.keys.iter_mut().for_each(|keys| keys.removed = None);
    }

    /// The log's own records, as far as they can be read. Those that were written to a log that was lost do not count.
    fn in_log(&mut self) -> Vec<(Stream, Parsed)> {
        let context = Context::new(SCOPE.as_bytes(), LAYOUT);
        let keys = keys(KEYS[KEYS.len() - 1]);
        let numbers: HashMap<[u8; 32], usize> =
            (0..self.added.len()).map(|n| (id(n as u32), n)).collect();
        let parse = |stream, record: &[u8]| {
            let opened = header(&context, stream, record).and_then(|it| it.open(&keys, &context));
            let Ok(opened) = opened else {
                return (None, Parsed::Other);
            };
            let parsed = match opened.body() {
                Ok(Body::Session { id, .. }) => Parsed::Session(numbers[id]),
                Ok(Body::Revocation { id, .. }) => Parsed::Revocation(id),
                Ok(Body::Knowledge(content)) => {
                    let statement = Statement::decode(content);
                    statement.map_or(Parsed::Other, |it| Parsed::Knowledge(it.knowledge))
                }
                _ => Parsed::Other,
            };
            (Some(opened.stamp.log), parsed)
        };
        let parsed = &mut self.parsed;
        let records = self.log.snapshot().into_iter();
        let records = records.filter(|placed| *placed.scope == *SCOPE);
        let records: Vec<_> = records
            .map(|Placed { stream, record, .. }| {
                let parsed = parsed.entry((stream, record));
                let parsed = parsed.or_insert_with_key(|(stream, record)| parse(*stream, record));
                (stream, parsed.clone())
            })
            .collect();
        let control = (records.iter()).filter(|(stream, _)| *stream == Stream::Control);
        let identity = control.filter_map(|(_, (log, _))| *log).next();
        let own = records.into_iter().filter(|(_, (log, _))| *log == identity);
        own.map(|(stream, (_, parsed))| (stream, parsed)).collect()
    }

    /// Finds revocations that no node and no log has any more.
    fn note_losses(&mut self) {
        if self.revoked.iter().all(|revoked| revoked.is_lost) {
            return;
        }
        let mut known = HashSet::new();
        for (_, parsed) in self.in_log() {
            match parsed {
                Parsed::Revocation(id) => _ = known.insert(id),
                Parsed::Knowledge(knowledge) => {
                    for (origin, of) in knowledge.origins {
                        let gone = of.replaced.into_iter().flatten();
                        let gone = gone.chain(1..=of.expired);
                        known.extend(gone.map(|counter| RevocationId { origin, counter }));
                    }
                }
                _ => {}
            }
        }
        for (node, folder) in self.nodes.iter().zip(&mut self.folders) {
            if let Some(node) = node {
                let of_node = node.known();
                known.extend(&of_node);
                if node.memory.folder().is_some() {
                    folder.extend(of_node);
                }
            }
        }
        self.reachable.clone_from(&known);
        known.extend(self.folders.iter().flatten());
        for revoked in &mut self.revoked {
            let has_expired = self.moved_ms > revoked.at_ms + 3 * KEEP_MS;
            revoked.has_expired |= has_expired && !self.config.has_attacks && !revoked.is_lost;
            revoked.is_lost |= !known.contains(&revoked.id) && !revoked.has_expired;
        }
    }

    fn concerns(&self, revoked: &Revoked, n: usize) -> bool {
        match &revoked.target {
            Target::Session(of) => *of == id(n as u32),
            Target::All => true,
            Target::Certificate(of) => {
                let number = self.added[n].certificate;
                number > 0 && of.matches(&certificate(number))
            }
        }
    }

    /// Whether the session's certificate does not let it be resumed on this node now.
    fn is_refused(&self, node: &Node, number: usize, n: usize) -> bool {
        match self.added[n].certificate {
            0 => false,
            certificate => {
                let has_ended = certificate == CERTIFICATES && self.has_ended(number);
                has_ended
                    || node
                        .listed
                        .is_none_or(|listed| listed & 1 << certificate != 0)
            }
        }
    }

    /// Whether the last certificate has ended by the node's clock.
    fn has_ended(&self, number: usize) -> bool {
        self.moved_ms as i64 + self.ahead_ms[number] >= 1000 * (CERTIFICATE_ENDS_AFTER_S + 1)
    }

    fn check_promises(&self, is_quiet: bool) {
        for (number, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else {
                continue;
            };
            self.be(number);
            for n in (0..self.added.len()).filter(|n| self.is_refused(node, number, *n)) {
                assert!(
                    !has(&node.scope, n as u32),
                    "the certificate of session {n} does not let it be resumed on node {number}",
                );
            }
            let (known, applied) = (node.known(), node.applied());
            for revoked in self.revoked.iter().filter(|revoked| !revoked.is_lost) {
                let is_after = node.step > revoked.step && self.attacked < revoked.step;
                let is_remembered = self.folders[number].contains(&revoked.id);
                let is_young = self.moved_ms < revoked.at_ms + KEEP_MS;
                if is_quiet && is_young && is_remembered && revoked.is_promised {
                    let replaces = |later: &&Revoked| {
                        later.id.origin == revoked.id.origin
                            && later.id.counter >= revoked.id.counter
                            && later.target == revoked.target
                    };
                    let mut same = self.revoked.iter().filter(replaces);
                    assert!(
                        same.any(|it| known.contains(&it.id)),
                        "node {number} has forgotten"
                    );
                }
                let is_quiet = is_quiet && self.reachable.contains(&revoked.id);
                let is_due = (is_quiet || is_after) && revoked.is_promised;
                if !is_due && !applied.contains(&revoked.id) {
                    continue;
                }
                for n in 0..self.added.len() {
                    if self.added[n].step < revoked.step && self.concerns(revoked, n) {
                        assert!(
                            !has(&node.scope, n as u32),
                            "session {n} of step {} is revoked since step {} and found on node \
                             {number} of step {}, which knows it: {}; {}",
                            self.added[n].step,
                            revoked.step,
                            node.step,
                            known.contains(&revoked.id),
                            is_quiet,
                        );
                    }
                }
            }
        }
    }

    /// In a log that nobody has attacked, no session may be missing.
    fn check_sessions(&mut self) {
        if self.attacked > 0 || self.config.waits {
            return;
        }
        let slack_ms = SLACK_MS + self.began.elapsed().as_millis() as u64;
        let mut in_log = HashSet::new();
        for (_, parsed) in self.in_log() {
            if let Parsed::Session(n) = parsed {
                in_log.insert(n);
            }
        }
        for (number, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else {
                continue;
            };
            self.be(number);
            let report = node.journal().report();
            assert_eq!(report.missing, 0, "{report:?}");
            assert!(!node.journal().0.replay.lock().is_held, "{report:?}");
            // If two nodes begin a log at the same time, sessions that were written in the meantime are lost.
            if report.skipped[Skipped::Log.index()] > 0 {
                continue;
            }
            for (n, added) in self.added.iter().enumerate() {
                let (by, since) = added.by;
                let is_own = by == number && since == node.step;
                // A session that was read under a wrong clock ends too early, and stays so.
                let was_right =
                    !self.wrong.contains(&added.by) && !self.wrong.contains(&(number, node.step));
                let may_be_revoked = self.revoked.iter().enumerate().any(|(place, revoked)| {
                    // When a revocation expires, it ends sessions whose writers never heard of it.
                    let has_expired = self.moved_ms + slack_ms > revoked.at_ms + KEEP_MS;
                    // Unless they have forgotten it, and no node that had just learned it comes back.
                    let known_ms = revoked.at_ms..revoked.at_ms + 4 * KEEP_MS;
                    let was_forgotten = added.at_ms > revoked.at_ms + FORGOTTEN_MS
                        && !self.ended_ms.iter().any(|at_ms| known_ms.contains(at_ms))
                        && revoked.at_ms > self.paused_ms
                        && added.has_read;
                    let is_for = has_expired || self.concerns(revoked, n);
                    is_for && !was_forgotten && !added.known.contains(&place)
                });
                let is_young = self.moved_ms - added.at_ms + slack_ms < LIFETIME_MS;
                let was_listed = node.was_listed & 1 << added.certificate != 0;
                let may_be_refused = was_listed || self.is_refused(node, number, n);
                if is_young
                    && !may_be_refused
                    && !may_be_revoked
                    && was_right
                    && (is_own || in_log.contains(&n))
                {
                    assert!(
                        has(&node.scope, n as u32),
                        "session {n} of step {} is missing on node {number} of step {}: {report:?}",
                        added.step,
                        node.step,
                    );
                }
            }
        }
    }
}

fn attack() -> impl Strategy<Value = Attack> {
    let which = any::<Index>;
    prop_oneof![
        1 => Just(Attack::LoseAll),
        2 => Just(Attack::LoseControl),
        4 => which().prop_map(Attack::Lose),
        4 => Just(Attack::Snapshot),
        3 => Just(Attack::RollBack),
        2 => (which(), which()).prop_map(|(one, two)| Attack::Swap(one, two)),
        3 => (which(), any::<bool>()).prop_map(|(which, stream)| Attack::Copy { which, stream }),
        1 => which().prop_map(Attack::CopyToScope),
        1 => (which(), any::<u16>()).prop_map(|(which, bit)| Attack::Flip(which, bit)),
    ]
}

fn ahead_ms() -> impl Strategy<Value = i64> {
    const HOUR_MS: i64 = 3_600_000;
    prop_oneof![
        4 => Just(0),
        2 => -250_000..250_000i64,
        1 => prop::sample::select(vec![-240 * HOUR_MS, -HOUR_MS, HOUR_MS, 9600 * HOUR_MS]),
    ]
}

fn revoke() -> impl Strategy<Value = Revoke> {
    prop_oneof![
        4 => any::<Index>().prop_map(Revoke::Session),
        2 => (1..4u8).prop_map(Revoke::Certificate),
        1 => Just(Revoke::All),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    prop_oneof![
        20 => (node(), 0..4u8).prop_map(|(node, certificate)| Step::Add { node, certificate }),
        3 => (node(), any::<Index>()).prop_map(|(node, which)| Step::Forget { node, which }),
        8 => (node(), revoke()).prop_map(|(node, what)| Step::Revoke { node, what }),
        10 => (1..5_000u64).prop_map(|ms| Step::Pass { ms }),
        2 => (5_000..50_000u64).prop_map(|ms| Step::Pass { ms }),
        1 => (60_000..900_000u64).prop_map(|ms| Step::Pass { ms }),
        1 => (3..20u64).prop_map(|terms| Step::Pass { ms: terms * KEEP_MS }),
        1 => (1..20u64).prop_map(Step::Run),
        25 => node().prop_map(|node| Step::Work { node }),
        12 => node().prop_map(|node| Step::Start { node }),
        6 => node().prop_map(|node| Step::Crash { node }),
        2 => node().prop_map(|node| Step::Stop { node }),
        3 => (node(), ahead_ms()).prop_map(|(node, ahead_ms)| Step::Clock { node, ahead_ms }),
        2 => (node(), 0..KEYS.len()).prop_map(|(node, level)| Step::Keys { node, level }),
        4 => (node(), any::<u8>(), any::<u8>()).prop_map(|(node, one, other)| Step::List {
            node,
            // The sessions of number 0 have no certificate.
            listed: one & other & !1,
        }),
        2 => any::<bool>().prop_map(Step::Down),
        1 => any::<bool>().prop_map(Step::Double),
        1 => any::<bool>().prop_map(Step::HoldBack),
        1 => Just(Step::HalfAppend),
        10 => attack().prop_map(Step::Attack),
        6 => Just(Step::Quiesce),
    ]
}

fn config() -> impl Strategy<Value = Config> {
    let waits = prop::bool::weighted(0.2);
    (any::<[bool; NODES]>(), waits, any::<bool>()).prop_map(|(has_folder, waits, has_attacks)| {
        Config {
            has_folder,
            waits,
            has_attacks,
        }
    })
}

fn cases() -> u32 {
    let steps = std::env::var("REKINDLE_MODEL_STEPS").map(|steps| steps.parse().expect("a number"));
    steps
        .unwrap_or(2_000u32)
        .div_ceil(STEPS_PER_CASE as u32 / 2)
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_revoked_is_not_found_and_what_is_not_is_not_lost(
        config in config(),
        steps in vec(step(), 1..STEPS_PER_CASE),
    ) {
        let mut model = Model::new(config);
        for step in &steps {
            model.take(step);
        }
        model.take(&Step::Quiesce);
    }
}

#[test]
fn nodes_that_each_know_what_the_other_lacks_tell_each_other() {
    // The order depends on random numbers.
    for _ in 0..10 {
        let mut model = Model::new(Config {
            has_folder: [false; NODES],
            waits: false,
            has_attacks: true,
        });
        let add = |certificate| Step::Add {
            node: 0,
            certificate,
        };
        let revoke = |node, number| Step::Revoke {
            node,
            what: Revoke::Certificate(number),
        };
        for step in [add(1), add(2), Step::Quiesce, revoke(1, 1), revoke(0, 2)] {
            model.take(&step);
        }
        // When the log is lost, neither is written yet, and each says that there is more.
        model.revoke(1, Target::Session(id(0)), true);
        for step in [add(0), Step::Attack(Attack::LoseAll), Step::Quiesce] {
            model.take(&step);
        }
        for node in model.nodes.iter().flatten() {
            assert_eq!(node.known().len(), 3);
            assert!(!node.journal().0.replay.lock().is_held);
        }
    }
}

#[test]
fn a_revocation_that_replaced_another_comes_after_the_log_was_lost() {
    let mut model = Model::new(Config {
        has_folder: [false; NODES],
        waits: false,
        has_attacks: true,
    });
    let add = |node| Step::Add {
        node,
        certificate: 0,
    };
    for step in [add(0), add(0), Step::Quiesce] {
        model.take(&step);
    }
    // Node 0 does not read them before the log is lost, and learns first that the second one has replaced the other.
    model.revoke(1, Target::Session(id(1)), false);
    model.revoke(1, Target::Session(id(1)), false);
    for step in [
        Step::Work { node: 2 },
        Step::Attack(Attack::LoseAll),
        add(2),
    ] {
        model.take(&step);
    }
    model.revoke(2, Target::Session(id(0)), false);
    for step in [Step::Work { node: 0 }, Step::Quiesce] {
        model.take(&step);
    }
    for number in 0..NODES {
        model.be(number);
        let node = model.nodes[number].as_ref().unwrap();
        assert!(!has(&node.scope, 0) && !has(&node.scope, 1), "{number}");
    }
}

/// If the others read that a revocation exists, they would wait for it.
#[test]
fn a_node_that_crashes_during_a_write_leaves_no_trace_of_what_it_has_not_written() {
    for before_ms in [0, KEEP_MS] {
        let mut model = quiet_model();
        let revoke = || Step::Revoke {
            node: 2,
            what: Revoke::All,
        };
        for step in [
            Step::Quiesce,
            revoke(),
            Step::HalfAppend,
            // When the first one expires, the node tells of that in the same batch.
            Step::Pass { ms: before_ms },
            revoke(),
            Step::Crash { node: 2 },
            Step::Quiesce,
        ] {
            model.take(&step);
        }
    }
}

#[test]
fn a_node_that_lost_its_keys_before_it_read_the_log_does_not_take_it_for_a_new_one() {
    let mut model = quiet_model();
    let add = || Step::Add {
        node: 0,
        certificate: 0,
    };
    for step in [
        Step::Work { node: 1 },
        Step::Keys { node: 1, level: 1 },
        Step::Work { node: 0 },
        Step::Pass { ms: 1500 },
        add(),
        Step::Work { node: 0 },
        Step::Work { node: 1 },
        add(),
        Step::Revoke {
            node: 1,
            what: Revoke::All,
        },
        Step::Work { node: 0 },
        Step::Stop { node: 1 },
        Step::Quiesce,
    ] {
        model.take(&step);
    }
    let is_promised = model.revoked[0].is_promised;
    assert!(!is_promised, "other nodes cannot read it");
}

#[test]
fn a_node_that_could_not_read_a_log_that_is_lost_writes_its_revocations_again() {
    for _ in 0..20 {
        let mut model = Model::new(Config {
            has_folder: [false; NODES],
            waits: false,
            has_attacks: true,
        });
        for step in [
            Step::Work { node: 0 },
            Step::Pass { ms: 1500 },
            Step::Add {
                node: 1,
                certificate: 0,
            },
            Step::Work { node: 0 },
            Step::Revoke {
                node: 0,
                what: Revoke::All,
            },
            Step::Pass { ms: 1000 },
            Step::Down(true),
            Step::Work { node: 0 },
            Step::Attack(Attack::RollBack),
            Step::Quiesce,
        ] {
            model.take(&step);
        }
    }
}

fn quiet_model() -> Model {
    Model::new(Config {
        has_folder: [false; NODES],
        waits: false,
        has_attacks: false,
    })
}

#[test]
fn a_session_that_was_made_under_a_wrong_clock_is_there_once_the_clock_is_right() {
    const DAY_MS: i64 = 24 * 3_600_000;
    for ahead_ms in [-10 * DAY_MS, 400 * DAY_MS, DAY_MS / 24] {
        let mut model = quiet_model();
        model.take(&Step::Quiesce);
        let certificate = 0;
        for step in [
            Step::Clock { node: 0, ahead_ms },
            Step::Pass { ms: 2000 },
            Step::Work { node: 0 },
            Step::Add {
                node: 0,
                certificate,
            },
            // So are sessions that others make under a right clock.
            Step::Add {
                node: 1,
                certificate,
            },
        ] {
            model.take(&step);
        }
        for _ in 0..4 {
            (0..NODES).for_each(|node| model.work(node));
        }
        let has = |model: &Model, node: usize, n| {
            model.be(node);
            has(&model.nodes[node].as_ref().unwrap().scope, n)
        };
        assert!(!has(&model, 1, 0), "{ahead_ms}");
        model.take(&Step::Quiesce);
        for node in 0..NODES {
            assert!(has(&model, node, 0) && has(&model, node, 1), "{ahead_ms}");
        }
    }
}

#[test]
fn what_sessions_refer_to_is_in_the_log_as_long_as_they_do() {
    let mut model = quiet_model();
    for round in 0..40 {
        model.take(&Step::Add {
            node: 0,
            certificate: 0,
        });
        model.take(&Step::Quiesce);
        model.take(&Step::Pass {
            ms: LIFETIME_MS / 3,
        });
        model.take(&Step::Crash { node: 1 });
        model.take(&Step::Start { node: 1 });
        model.take(&Step::Quiesce);
        model.be(1);
        assert!(has(&model.nodes[1].as_ref().unwrap().scope, round));
    }
    // Records that are no longer needed are trimmed.
    assert!(model.log.records(Stream::Sessions).len() < 25);
}

#[test]
fn what_the_log_has_trimmed_is_written_again_by_a_node_that_still_has_it() {
    // The log trims the revocation after this node has read it and before the node stops.
    for late_ms in (0..4_000).step_by(250) {
        let mut model = quiet_model();
        for step in [
            Step::Revoke {
                node: 0,
                what: Revoke::All,
            },
            Step::Quiesce,
            Step::Crash { node: 0 },
            Step::Crash { node: 1 },
            Step::Crash { node: 2 },
            Step::Pass {
                ms: KEEP_MS - 10_000 + late_ms,
            },
            Step::Start { node: 0 },
            Step::Quiesce,
            Step::Crash { node: 0 },
            Step::Start { node: 1 },
            Step::Quiesce,
        ] {
            model.take(&step);
        }
    }
}

#[test]
fn a_revocation_is_kept_as_long_by_a_node_that_was_started_again() {
    let mut model = quiet_model();
    model.config.has_folder = [true; NODES];
    model.take(&Step::Crash { node: 0 });
    model.take(&Step::Start { node: 0 });
    for step in [
        Step::Quiesce,
        Step::Pass { ms: 700_000 },
        Step::Revoke {
            node: 0,
            what: Revoke::Certificate(1),
        },
        Step::Add {
            node: 1,
            certificate: 3,
        },
        Step::Quiesce,
        Step::Stop { node: 0 },
        Step::Start { node: 0 },
        Step::Pass { ms: 30_000 },
        Step::Quiesce,
        Step::Crash { node: 2 },
        Step::Start { node: 2 },
        Step::Quiesce,
    ] {
        model.take(&step);
    }
}

#[test]
fn revocations_expire_although_no_node_lives_as_long_as_they_are_kept() {
    let mut model = quiet_model();
    let revoke = Step::Revoke {
        node: 0,
        what: Revoke::All,
    };
    for step in [Step::Quiesce, revoke, Step::Quiesce] {
        model.take(&step);
    }
    for _ in 0..6 {
        for _ in 0..8 {
            model.take(&Step::Pass { ms: KEEP_MS / 10 });
            model.take(&Step::Quiesce);
        }
        for node in 0..NODES {
            model.take(&Step::Stop { node });
            model.take(&Step::Start { node });
            model.take(&Step::Quiesce);
        }
    }
    for node in model.nodes.iter().flatten() {
        assert_eq!(node.journal().0.remembered.revocations().len(), 0);
    }
}

#[test]
fn runs_of_nodes_are_forgotten_however_often_nodes_are_restarted() {
    const ROUNDS: u32 = 24;
    for has_folder in [false, true] {
        let mut model = quiet_model();
        model.config.has_folder = [has_folder; NODES];
        for round in 0..ROUNDS {
            for node in 0..NODES {
                model.take(&Step::Stop { node });
                model.take(&Step::Start { node });
                model.take(&Step::Quiesce);
                let certificate = 0;
                model.take(&Step::Add { node, certificate });
                model.revoke(node, Target::Session(id(round)), false);
            }
            model.take(&Step::Run(1));
            model.take(&Step::Quiesce);
        }
        for node in model.nodes.iter().flatten() {
            let knowledge = node.journal().0.remembered.knowledge();
            // They expire after one to three rounds, and are forgotten eight rounds later.
            assert!(knowledge.epoch > 150);
            let count = knowledge.origins.len();
            assert!(count < 13 * NODES, "{has_folder}: {count}");
        }
    }
}

fn has_on(model: &Model, node: usize, n: u32) -> bool {
    model.be(node);
    has(&model.nodes[node].as_ref().unwrap().scope, n)
}

fn shared(model: &Model, node: usize) -> &Shared<Common> {
    &model.nodes[node].as_ref().unwrap().journal().0
}

/// Lets the nodes tell each other what they know.
fn exchange(model: &mut Model) {
    for _ in 0..20 {
        model.moved_ms += 300;
        (0..NODES).for_each(|node| model.work(node));
    }
}

/// Eighths of a term pass while only these nodes work.
fn run_only(model: &mut Model, nodes: &[usize], eighths: u64) {
    for _ in 0..eighths {
        model.moved_ms += KEEP_MS / 8;
        nodes.iter().for_each(|node| model.work(*node));
    }
}

/// All nodes have the same epoch.
fn settled_model() -> Model {
    let mut model = quiet_model();
    model.take(&Step::Quiesce);
    model.moved_ms += KEEP_MS / 8;
    exchange(&mut model);
    model
}

fn add_to(model: &mut Model, node: usize, certificate: u8) {
    model.take(&Step::Add { node, certificate });
}

fn model_with_folders() -> Model {
    let mut model = quiet_model();
    model.config.has_folder = [true; NODES];
    for node in 0..NODES {
        model.take(&Step::Stop { node });
        model.take(&Step::Start { node });
    }
    model.take(&Step::Quiesce);
    model
}

#[test]
fn a_revocation_that_has_expired_does_not_come_back_when_nodes_start() {
    for is_away in [true, false] {
        let mut model = model_with_folders();
        model.revoke(0, Target::All, false);
        exchange(&mut model);
        // Long enough to note the epoch.
        for _ in 0..2 {
            model.moved_ms += KEEP_MS / 8;
            exchange(&mut model);
        }
        if is_away {
            model.stop(1);
        }
        model.take(&Step::Run(20));
        add_to(&mut model, 0, 0);
        add_to(&mut model, 2, 0);
        exchange(&mut model);
        model.stop(1);
        model.start(1);
        exchange(&mut model);
        for node in 0..NODES {
            for n in 0..2 {
                assert!(
                    has_on(&model, node, n),
                    "{is_away}: session {n}, node {node}"
                );
            }
        }
        for node in model.nodes.iter().flatten() {
            assert_eq!(
                node.journal().0.remembered.revocations().len(),
                0,
                "{is_away}"
            );
        }
    }
}

#[test]
fn a_node_that_missed_how_a_revocation_expired_does_not_wait_for_it_for_ever() {
    let mut model = quiet_model();
    model.take(&Step::Crash { node: 2 });
    model.take(&Step::Quiesce);
    // Node 1 can read that node 0 knows a revocation of node 2, but neither the revocation nor that it has expired.
    model.take(&Step::Keys { node: 1, level: 1 });
    model.take(&Step::Start { node: 2 });
    add_to(&mut model, 0, 0);
    model.revoke(0, Target::Session(id(0)), true);
    model.take(&Step::Keys { node: 0, level: 2 });
    model.revoke(2, Target::Session(id(0)), false);
    model.take(&Step::Run(11));
    model.take(&Step::Quiesce);
}

#[test]
fn a_node_that_was_stopped_for_long_takes_no_sessions_for_outdated() {
    let mut model = quiet_model();
    model.take(&Step::Run(1));
    model.take(&Step::Quiesce);
    model.revoke(0, Target::Session(id(77)), false);
    model.take(&Step::Quiesce);
    model.moved_ms += KEEP_MS / 8;
    model.take(&Step::Quiesce);
    run_only(&mut model, &[0, 2], 160);
    add_to(&mut model, 2, 0);
    exchange(&mut model);
    model.take(&Step::Crash { node: 0 });
    model.take(&Step::Start { node: 0 });
    exchange(&mut model);
    for node in 0..NODES {
        assert!(has_on(&model, node, 0), "{node}");
    }
}

#[test]
fn a_session_that_was_made_under_a_wrong_clock_and_written_late_stays_revoked() {
    let mut model = quiet_model();
    model.take(&Step::Quiesce);
    let ahead_ms = 20 * KEEP_MS as i64;
    model.take(&Step::Clock { node: 2, ahead_ms });
    model.take(&Step::Pass { ms: 2000 });
    exchange(&mut model);
    add_to(&mut model, 2, 0);
    model.revoke(0, Target::All, false);
    assert!(model.revoked[0].is_promised);
    run_only(&mut model, &[0, 1], 160);
    exchange(&mut model);
    assert!(!has_on(&model, 0, 0) && !has_on(&model, 1, 0));
}

#[test]
fn a_revocation_that_a_suspended_node_brings_back_ends_no_other_sessions() {
    for (is_suspended, is_follower_first) in [(false, false), (false, true), (true, true)] {
        let mut model = settled_model();
        model.revoke(0, Target::Session(id(77)), false);
        model.take(&Step::Quiesce);
        if is_suspended {
            model.lag_ms[1] += 160 * (KEEP_MS / 8);
        }
        run_only(&mut model, &[0, 2], 160);
        add_to(&mut model, 2, 0);
        [0, 2].into_iter().for_each(|node| model.work(node));
        if is_follower_first {
            model.be(1);
            model.nodes[1].as_mut().unwrap().follower.turn();
        }
        exchange(&mut model);
        model.moved_ms += LIFETIME_MS / 2;
        exchange(&mut model);
        model.take(&Step::Crash { node: 0 });
        model.take(&Step::Start { node: 0 });
        exchange(&mut model);
        for node in 0..NODES {
            assert!(
                has_on(&model, node, 0),
                "{is_suspended} {is_follower_first} {node}"
            );
        }
    }
}

#[test]
fn what_sessions_refer_to_is_written_although_other_sessions_expire_before() {
    let mut model = settled_model();
    add_to(&mut model, 0, 0);
    exchange(&mut model);
    // So the next sessions refer to something new.
    model.revoke(1, Target::Session(id(88)), false);
    exchange(&mut model);
    model.take(&Step::Down(true));
    add_to(&mut model, 0, 0);
    model.take(&Step::Pass {
        ms: LIFETIME_MS - 3000,
    });
    add_to(&mut model, 0, 0);
    model.work(0);
    model.take(&Step::Pass { ms: 4000 });
    model.take(&Step::Down(false));
    model.be(0);
    let node = model.nodes[0].as_mut().unwrap();
    for _ in 0..3 {
        node.writer.work(&node.hub.journals());
    }
    assert_eq!(node.journal().report().dropped, 1);
    (0..NODES).for_each(|node| model.end(node));
    model.start(1);
    exchange(&mut model);
    assert!(has_on(&model, 1, 2));
}

#[test]
fn no_node_waits_for_a_revocation_that_expires_while_its_node_is_restarted() {
    let mut model = quiet_model();
    model.config.has_folder[0] = true;
    model.take(&Step::Crash { node: 0 });
    model.take(&Step::Start { node: 0 });
    model.revoke(0, Target::All, false);
    model.take(&Step::Pass { ms: KEEP_MS - 1500 });
    model.take(&Step::Crash { node: 0 });
    model.take(&Step::Start { node: 0 });
    model.take(&Step::Work { node: 0 });
    add_to(&mut model, 0, 0);
    model.take(&Step::Quiesce);
}

#[test]
fn a_node_that_has_heard_of_a_later_epoch_counts_on_from_then() {
    let mut model = settled_model();
    model.lag_ms[1] += KEEP_MS / 8;
    run_only(&mut model, &[0], 1);
    add_to(&mut model, 0, 0);
    model.work(0);
    model.be(1);
    let node = model.nodes[1].as_mut().unwrap();
    node.follower.turn();
    let epoch = |node: &Node| node.journal().0.remembered.revocations().epoch();
    let heard = epoch(node);
    assert_eq!(heard, epoch(model.nodes[0].as_ref().unwrap()));
    // It was stopped at once.
    model.moved_ms += KEEP_MS;
    model.be(1);
    let node = model.nodes[1].as_mut().unwrap();
    node.writer.work(&node.hub.journals());
    assert!(epoch(node) >= heard + 63);
}

#[test]
fn sessions_are_written_after_all_those_before_them_have_expired() {
    let mut model = settled_model();
    add_to(&mut model, 0, 0);
    exchange(&mut model);
    model.take(&Step::Down(true));
    add_to(&mut model, 0, 0);
    // It is sealed, and refers to nothing that the log lacks.
    model.work(0);
    model.take(&Step::Pass { ms: LIFETIME_MS });
    model.take(&Step::Down(false));
    add_to(&mut model, 0, 0);
    exchange(&mut model);
    assert!(has_on(&model, 1, 2));
}

#[test]
fn a_node_that_is_cut_off_while_the_lifetime_is_raised_hears_of_what_was_revoked() {
    for is_restarted in [false, true] {
        let mut model = model_with_folders();
        model.moved_ms += KEEP_MS / 8;
        exchange(&mut model);
        add_to(&mut model, 2, 0);
        exchange(&mut model);
        model.revoke(0, Target::Session(id(0)), false);
        assert!(model.revoked[0].is_promised);
        model.lifetime_ms = 24 * LIFETIME_MS;
        for node in 0..NODES {
            let store = store(&model.nodes[node].as_ref().unwrap().scope);
            let limits = store.limits();
            store.set_limits(Limits {
                lifetime_ms: model.lifetime_ms,
                ..limits
            });
        }
        model.moved_ms += 2000;
        [0, 1].into_iter().for_each(|node| model.work(node));
        if is_restarted {
            model.stop(0);
            model.start(0);
        }
        run_only(&mut model, &[0, 1], 12);
        exchange(&mut model);
        assert!(!has_on(&model, 2, 0), "{is_restarted}");
    }
}

#[test]
fn what_a_node_revokes_in_a_long_outage_ends_no_sessions_of_others() {
    for terms in [0, 2, 4] {
        let mut model = quiet_model();
        model.take(&Step::Quiesce);
        model.take(&Step::Down(true));
        model.revoke(0, Target::Session(id(77)), true);
        run_only(&mut model, &[0, 1, 2], 8 * terms + 1);
        add_to(&mut model, 2, 0);
        model.take(&Step::Down(false));
        exchange(&mut model);
        for node in [1, 2] {
            model.take(&Step::Crash { node });
            model.take(&Step::Start { node });
        }
        exchange(&mut model);
        for node in 0..NODES {
            assert!(has_on(&model, node, 0), "{terms} {node}");
        }
    }
}

#[test]
fn old_revocations_do_not_come_back_although_their_origin_had_just_made_another() {
    let mut model = model_with_folders();
    model.revoke(0, Target::All, false);
    for _ in 0..4 {
        exchange(&mut model);
        model.moved_ms += KEEP_MS / 8;
    }
    model.revoke(0, Target::Session(id(77)), true);
    exchange(&mut model);
    model.stop(1);
    model.take(&Step::Run(20));
    add_to(&mut model, 0, 0);
    add_to(&mut model, 2, 0);
    exchange(&mut model);
    model.start(1);
    exchange(&mut model);
    for node in [0, 2] {
        assert!((0..2).all(|n| has_on(&model, node, n)), "{node}");
    }
}

#[test]
fn a_node_with_a_shorter_lifetime_keeps_revocations_no_longer_than_the_others() {
    let mut model = quiet_model();
    model.take(&Step::Stop { node: 0 });
    model.lifetime_ms = 24 * LIFETIME_MS;
    for node in [1, 2] {
        model.take(&Step::Stop { node });
        model.take(&Step::Start { node });
    }
    add_to(&mut model, 1, 0);
    model.take(&Step::Quiesce);
    model.revoke(1, Target::Session(id(0)), false);
    exchange(&mut model);
    model.lifetime_ms = LIFETIME_MS;
    model.take(&Step::Start { node: 0 });
    exchange(&mut model);
    model.be(0);
    let shared = shared(&model, 0);
    let end_ms = shared.memory.running_ms() + shared.keep_ms();
    let mut count = 0;
    shared
        .remembered
        .revocations()
        .for_each(|_, _, expires_ms| {
            assert!((end_ms - 20_000..=end_ms).contains(&expires_ms));
            count += 1;
        });
    assert_eq!(count, 1);
}

#[test]
fn a_node_that_starts_hears_the_epoch_although_nobody_makes_sessions() {
    let mut model = Model::new(Config {
        has_folder: [false, false, true],
        waits: false,
        has_attacks: false,
    });
    add_to(&mut model, 0, 0);
    model.take(&Step::Crash { node: 0 });
    model.take(&Step::Pass { ms: 1 });
    model.revoke(2, Target::Session(id(0)), true);
    model.take(&Step::Run(12));
    model.take(&Step::Crash { node: 2 });
    model.take(&Step::Start { node: 0 });
    model.take(&Step::Work { node: 0 });
    model.take(&Step::Quiesce);
    add_to(&mut model, 0, 0);
    model.take(&Step::Work { node: 0 });
    model.take(&Step::Start { node: 2 });
    model.take(&Step::Quiesce);
    assert!((0..NODES).all(|node| has_on(&model, node, 1)));
}

#[test]
fn a_node_hears_from_a_statement_alone_how_long_sessions_live() {
    let mut model = quiet_model();
    model.take(&Step::Stop { node: 1 });
    model.lifetime_ms = 24 * LIFETIME_MS;
    model.take(&Step::Start { node: 1 });
    model.take(&Step::Quiesce);
    let keep_ms = |model: &Model, node| shared(model, node).keep_ms();
    assert!(keep_ms(&model, 0) < keep_ms(&model, 1));
    shared(&model, 1)
        .queue
        .push_record(ControlRecord::Statement);
    exchange(&mut model);
    assert_eq!(keep_ms(&model, 0), keep_ms(&model, 1));
}

#[test]
fn a_revocation_that_has_just_expired_is_not_written_again_when_the_log_is_lost() {
    let mut model = settled_model();
    model.revoke(0, Target::All, false);
    exchange(&mut model);
    let writes_it = |model: &Model| {
        model.be(0);
        let shared = shared(model, 0);
        shared.complete_log(&Seen::default(), false);
        let written = shared.queue.take(false).control;
        shared.queue.note_written(&written);
        let is_revocation =
            |record: &ControlRecord| matches!(record, ControlRecord::Revocation { .. });
        written.iter().any(is_revocation)
    };
    assert!(writes_it(&model));
    model.moved_ms += KEEP_MS;
    assert!(!writes_it(&model));
}

#[test]
fn the_epoch_is_told_again_if_the_log_was_set_back() {
    let mut model = quiet_model();
    model.config.has_attacks = true;
    add_to(&mut model, 0, 0);
    model.take(&Step::Quiesce);
    model.take(&Step::Attack(Attack::Snapshot));
    model.take(&Step::Run(1));
    // So nobody has the statements any more.
    for node in 0..NODES {
        model.take(&Step::Crash { node });
        model.take(&Step::Start { node });
        exchange(&mut model);
    }
    model.take(&Step::Attack(Attack::RollBack));
    exchange(&mut model);
    let told = model
        .in_log()
        .into_iter()
        .filter_map(|(_, parsed)| match parsed {
            Parsed::Knowledge(knowledge) => Some(knowledge.epoch),
            _ => None,
        });
    let epoch = shared(&model, 0).remembered.revocations().epoch();
    assert!(epoch > 64);
    assert!(told.max() >= Some(epoch - 16));
}
