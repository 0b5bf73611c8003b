//! Journals with their threads, on one log in memory.

use crate::clock::set_moved;
use crate::journal::carry_out_here;
use crate::node_memory::NodeMemory;
use crate::reader::Seen;
use crate::record::{content_hash, header, seal, Body, Skipped, Statement};
use crate::replay::Replayer;
use crate::revocations::Knowledge;
use crate::status::Part;
use crate::testing::{
    has, id, insert, key_line, open, options, store, Common, Memory, Placed, POISON, USELESS,
};
use crate::writer::Writer;
use crate::{
    revoke, take_events, CertificateSelector, Event, EventKind, Hub, Journal, Options, Report,
    Revoked, Suite, Target,
};
use parking_lot::Mutex;
use rekindle_core::{now_ms, Limits, Reference, Scope, SessionKey};
use rekindle_log::{Log, Record, Stream};
use sha2::{Digest, Sha256};
use std::fs;
use std::ops::Range;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{mpsc, Arc};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const HOUR_MS: u64 = 3_600_000;

/// A log, and the key files of the nodes that use it.
struct Fleet {
    name: String,
    log: Memory,
    folder: TempDir,
}

struct Node {
    /// Ends the scope when dropped.
    _reference: Reference<Common>,
    scope: Arc<Scope<Common>>,
}

/// Waits until the threads have done something.
fn until(what: &str, mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

fn write_keys(path: &Path, names: &[&str]) {
    write_key_lines(path, names.iter().map(|name| key_line(name)).collect());
}

/// Replaces the file at once, so that a reader sees the old content or the new one.
fn write_key_lines(path: &Path, text: String) {
    let new = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new).unwrap();
    std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    fs::rename(new, path).unwrap();
}

fn limits(max_sessions: u64) -> Limits {
    Limits {
        max_bytes: 100_000_000,
        max_sessions,
        lifetime_ms: HOUR_MS,
    }
}

/// Events belong to the process: a test that takes them takes those of other tests as well.
static OTHERS: Mutex<Vec<Event>> = Mutex::new(Vec::new());

fn certificate_target() -> Target {
    let digest = Sha256::digest(b"certificate").into();
    Target::Certificate(CertificateSelector::Sha256(digest))
}

impl Fleet {
    /// A log that several nodes share. Its name finds its events.
    fn new(name: &str) -> Fleet {
        Fleet::with(name, Memory::new(true))
    }

    /// A log of one node.
    fn alone(name: &str) -> Fleet {
        Fleet::with(name, Memory::new(false))
    }

    fn with(name: &str, log: Memory) -> Fleet {
        let fleet = Fleet {
            name: name.into(),
            log,
            folder: tempfile::tempdir().unwrap(),
        };
        write_keys(&fleet.path("keys"), &["a", "b"]);
        fleet
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self) -> Options {
        options(&self.name, self.path("keys"))
    }

    /// A node without a memory of its own.
    fn node(&self) -> Node {
        self.node_with(self.options(), limits(u64::MAX))
    }

    /// A node that remembers in this folder.
    fn node_in(&self, folder: &str) -> Node {
        let mut options = self.options();
        options.node_folder = Some(self.path(folder));
        self.node_with(options, limits(u64::MAX))
    }

    /// A node that has read the log.
    fn replayed(&self) -> Node {
        let node = self.node();
        node.wait_for_replay();
        node
    }

    fn node_with_keys(&self, file: &Path) -> Node {
        let mut options = self.options();
        options.keys.path = file.into();
        self.node_with(options, limits(u64::MAX))
    }

    fn node_with(&self, options: Options, limits: Limits) -> Node {
        let hub = Hub::new(Arc::new(self.log.clone()));
        Node::start(open(&self.name, limits), options, &hub)
    }

    /// A hub whose work the test does.
    fn hub(&self) -> Arc<Hub<Common>> {
        Hub::without_threads(Arc::new(self.log.clone()))
    }

    /// A node on this hub. Options have the scope's name.
    fn node_on(&self, hub: &Arc<Hub<Common>>, options: Options) -> Node {
        Node::start(open(&options.scope, limits(u64::MAX)), options, hub)
    }

    /// The events of this fleet's journals since the last call.
    fn events(&self) -> Vec<EventKind> {
        let mut events = OTHERS.lock();
        events.extend(take_events());
        let is_own = |event: &Event| event.scope == self.name.as_bytes();
        let (own, others) = events.drain(..).partition(is_own);
        *events = others;
        let own: Vec<Event> = own;
        own.into_iter().map(|event| event.kind).collect()
    }

    fn down(&self, is_down: bool) {
        self.log.switch(|log| log.is_down = is_down);
    }

    /// An attacker removes the records of revocations. Their kinds can be read without a key.
    fn lose_knowledge(&self) {
        let tells = |record: &Record| record[1] == 3 || record[1] == 5;
        let change = |records: &mut Vec<Placed>| records.retain(|it| !tells(&it.record));
        self.log.change(change);
    }

    /// The last knowledge record of this node.
    fn last_statement(&self, node: &Node) -> Record {
        let mut records = self.records_of(node, Stream::Control);
        records.retain(|record| record[1] == 3);
        records.pop().unwrap()
    }

    fn records_of(&self, node: &Node, stream: Stream) -> Vec<Record> {
        let writer = node.journal().0.writer.to_be_bytes();
        let mut records = self.log.records(stream);
        records.retain(|record| record[18..26] == writer);
        records
    }

    fn count(&self, stream: Stream) -> usize {
        self.log.records(stream).len()
    }
}

impl Node {
    fn start(
        (reference, scope): (Reference<Common>, Arc<Scope<Common>>),
        options: Options,
        hub: &Arc<Hub<Common>>,
    ) -> Node {
        // Without folders, nodes in one process share a memory.
        let memory = match &options.node_folder {
            Some(folder) => NodeMemory::of(Some(folder)),
            None => Arc::new(NodeMemory::new(None)),
        };
        let journal = Journal::start_with(&scope, options, memory, || Arc::clone(hub)).unwrap();
        assert!(scope.attach(journal));
        Node {
            _reference: reference,
            scope,
        }
    }

    fn journal(&self) -> &Journal<Common> {
        self.scope.attached().unwrap()
    }

    fn add_with(&self, n: u32, template: &[u8], certificate: &[u8]) {
        assert!(insert(&self.scope, n, template, certificate));
    }

    fn add(&self, n: u32) {
        self.add_with(n, b"template", b"");
    }

    /// Forgets a session as OTP's process does.
    fn forget(&self, n: u32) {
        self.journal().forget(&id(n));
        store(&self.scope).delete(SessionKey::Id(&id(n)));
    }

    fn revoke(&self, target: Target) -> Revoked {
        revoke(&[Arc::clone(&self.scope)], false, &[], &[target])
    }

    /// Revokes, and waits until that is durable: on a busy machine, longer than the call waits.
    fn revoke_for_good(&self, target: Target) -> u64 {
        let revoked = self.revoke(target);
        until("the revocation", || self.journal().unwritten() == 0);
        revoked.dropped
    }

    fn has(&self, n: u32) -> bool {
        has(&self.scope, n)
    }

    fn report(&self) -> Report {
        self.journal().report()
    }

    fn is_up(&self) -> bool {
        self.report().health == Some(Ok(()))
    }

    fn error(&self) -> String {
        match self.report().health {
            Some(Err(error)) => error,
            _ => String::new(),
        }
    }

    fn skipped(&self, reason: Skipped) -> u64 {
        self.report().skipped[reason.index()]
    }

    fn skipped_at_all(&self) -> u64 {
        self.report().skipped.iter().sum()
    }

    fn allow(&self, suites: Option<&[&Suite]>) -> u64 {
        let suites = suites.map(|suites| suites.iter().map(|suite| **suite).collect());
        self.journal().allow_suites(suites)
    }

    fn wait_for_replay(&self) {
        until("the replay", || self.report().replay_ms.is_some());
    }

    /// Closes the listener, and waits until its threads have ended.
    fn end(self) {
        let memory = Arc::clone(&self.journal().0.memory);
        let shared = Arc::downgrade(&self.journal().0);
        let users = Arc::strong_count(&memory);
        drop(self);
        until("the threads' end", || shared.strong_count() == 0);
        // What a thread has ended with is dropped only then.
        until("the end of its use of the node folder", || {
            memory.folder().is_none() || Arc::strong_count(&memory) < users
        });
    }

    /// Waits until everything is in the log.
    fn wait_for_writing(&self) {
        let is_written = || {
            let is_idle = |report: Report| report.queued == 0 && report.unwritten == 0;
            is_idle(self.report()) && self.is_up()
        };
        until("the writing", is_written);
    }
}

fn key_of(record: &Record) -> String {
    let length = usize::from(record[42]);
    String::from_utf8_lossy(&record[43..43 + length]).into_owned()
}

#[test]
fn a_session_is_found_on_another_node_as_it_was() {
    let fleet = Fleet::new("shared");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.add(1);
    one.add_with(2, b"another", b"certificate");
    until("sessions", || other.has(1) && other.has(2));
    let peeked = store(&other.scope).peek(SessionKey::Id(&id(2)), now_ms(), |session| {
        let template = session.template.unwrap();
        let bytes = crate::TemplateCodec::encoded(&**template).bytes().to_vec();
        (bytes, session.certificate.unwrap().der().into_owned())
    });
    let expected = (b"another".to_vec(), b"certificate".to_vec());
    assert_eq!(peeked.unwrap(), expected);
    until("the count", || other.report().applied == 2);
    let report = other.report();
    assert_eq!((report.applied, report.known, report.dropped), (2, 0, 0));
    assert_eq!(other.skipped_at_all(), 0);
    until("health", || one.is_up());
}

#[test]
fn after_a_restart_sessions_are_there_and_revocations_hold() {
    let fleet = Fleet::new("restarted");
    let before = fleet.replayed();
    for n in 0..500 {
        before.add(n);
        // Fewer sessions than the queue takes.
        if n % 100 == 99 {
            before.wait_for_writing();
        }
    }
    before.add_with(3000, b"template", b"certificate");
    before.forget(7);
    assert_eq!(before.revoke_for_good(certificate_target()), 1);
    before.add_with(3001, b"template", b"certificate");
    before.wait_for_writing();
    until("sessions", || fleet.count(Stream::Sessions) == 502);
    before.end();
    let after = fleet.replayed();
    for n in (0..500).filter(|n| *n != 7) {
        assert!(after.has(n), "{n}");
    }
    // They are never in the store, not even for a moment. Sessions that were made afterwards are.
    assert!(!after.has(7) && !after.has(3000) && after.has(3001));
    assert_eq!(
        (after.skipped(Skipped::Revoked), after.skipped_at_all()),
        (2, 2)
    );
    assert_eq!(
        (after.report().applied, after.report().revocations),
        (500, 2)
    );
    let replayed = |kind: &EventKind| matches!(kind, EventKind::Replayed { sessions: 500, .. });
    until("the event", || {
        fleet.events().iter().filter(|kind| replayed(kind)).count() == 1
    });
    assert_eq!(after.revoke_for_good(Target::All), 500);
    after.end();
    let empty = fleet.replayed();
    assert_eq!((empty.scope.sessions(), empty.report().applied), (0, 0));
    assert_eq!(empty.skipped(Skipped::Revoked), 502);
}

#[test]
fn sessions_with_other_cipher_suites_are_left_out_until_these_are_allowed() {
    let fleet = Fleet::new("suites");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    let suite = |n: u32| match n % 2 {
        0 => b"suite AA",
        _ => b"suite BB",
    };
    (0..20).for_each(|n| one.add_with(n, suite(n), b""));
    one.add(20);
    until("sessions", || other.scope.sessions() == 21);
    assert_eq!(other.allow(Some(&[b"AA", b"BB"])), 0);
    assert_eq!(other.allow(Some(&[b"BB", b"CC"])), 10);
    let has_others = |node: &Node| (0..20).all(|n| node.has(n) == (n % 2 == 1)) && node.has(20);
    assert!(has_others(&other));
    assert_eq!(other.skipped(Skipped::Suite), 10);
    one.add_with(30, suite(30), b"");
    one.add_with(31, suite(31), b"");
    until("a session", || other.has(31));
    assert!(!other.has(30));
    assert_eq!(other.skipped(Skipped::Suite), 11);
    // A session that the listener itself has made is kept.
    other.add_with(40, suite(40), b"");
    assert!(other.has(40));
    until("sessions", || fleet.count(Stream::Sessions) == 24);

    let after = fleet.node();
    let before_replay = after.allow(Some(&[b"BB"]));
    after.wait_for_replay();
    assert!(has_others(&after) && after.has(31) && !after.has(30) && !after.has(40));
    assert_eq!(after.skipped(Skipped::Suite), 12);

    // Also sessions of its own, which were dropped.
    for (node, others) in [(&other, 2), (&after, 12 - before_replay)] {
        assert_eq!(node.allow(Some(&[b"BB"])), others);
        assert_eq!(node.allow(Some(&[b"BB", b"AA"])), 0);
        until("sessions", || {
            (0..21).chain([30, 31, 40]).all(|n| node.has(n))
        });
    }
    assert_eq!(after.skipped_at_all(), 12);
    assert_eq!(after.allow(Some(&[])), 23);
    assert_eq!(after.scope.sessions(), 1);
    assert_eq!(after.allow(None), 0);
    until("sessions", || {
        (0..21).chain([30, 31, 40]).all(|n| after.has(n))
    });
}

#[test]
fn the_newest_sessions_are_replayed_first() {
    let fleet = Fleet::new("newest");
    let before = fleet.replayed();
    (0..10).for_each(|n| before.add(n));
    until("sessions", || fleet.count(Stream::Sessions) == 10);
    let after = fleet.node_with(fleet.options(), limits(3));
    after.wait_for_replay();
    let held: Vec<u32> = (0..10).filter(|n| after.has(*n)).collect();
    assert_eq!(held, [7, 8, 9]);
    assert_eq!(after.skipped(Skipped::Full), 7);
}

#[test]
fn a_log_that_fails_loses_nothing_that_is_not_counted() {
    let fleet = Fleet::new("failing");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.add(0);
    until("a session", || other.has(0));
    fleet.events();
    fleet.down(true);
    until("both to notice", || {
        one.add(0);
        [&one, &other]
            .iter()
            .all(|node| node.error().contains("it is down"))
    });
    (1..1000).for_each(|n| one.add(n));
    assert!(one.report().dropped >= 100);
    fleet.log.switch(|log| {
        (log.is_down, log.half_appends) = (false, 3);
        log.is_doubling = true;
    });
    until("sessions", || other.has(999) && one.report().queued == 0);
    until("health", || one.is_up() && other.is_up());
    let lost = (1..1000).filter(|n| !other.has(*n)).count() as u64;
    assert!(lost <= one.report().dropped && lost > 0, "{lost}");
    assert_eq!(other.skipped_at_all(), 0);
    // The second copies were known already.
    assert!(other.report().known > 0);
    let is_up = |kind: &EventKind| matches!(kind, EventKind::Up { .. });
    let mut ups = 0;
    until("the events", || {
        ups += fleet.events().iter().filter(|kind| is_up(kind)).count();
        ups >= 2
    });
}

#[test]
fn connected_nodes_obey() {
    let fleet = Fleet::new("obeyed");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.add(1);
    one.add_with(2, b"template", b"certificate");
    one.add(3);
    until("sessions", || [1, 2, 3].iter().all(|n| other.has(*n)));
    assert_eq!(one.revoke_for_good(Target::Session(id(1))), 1);
    until("the revocation", || !other.has(1));
    assert_eq!(other.revoke_for_good(certificate_target()), 1);
    until("the revocation", || !one.has(2));
    one.forget(3);
    until("the revocation", || !other.has(3));
    one.add(4);
    until("a session", || other.has(4));
    one.revoke_for_good(Target::All);
    until("the flush", || other.scope.sessions() == 0);
    let after = fleet.replayed();
    assert_eq!(after.scope.sessions(), 0);
}

#[test]
fn a_revocation_that_is_not_written_is_pending_and_made_up_for() {
    let fleet = Fleet::new("pending");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.add(1);
    one.add(2);
    until("sessions", || other.has(1) && other.has(2));
    fleet.down(true);
    until("the error", || one.error().contains("it is down"));
    let revoked = one.revoke(Target::Session(id(1)));
    assert_eq!(revoked.dropped, 1);
    let why = &revoked.pending["pending"];
    assert!(why.contains("it is down"), "{why}");
    assert_eq!(one.report().unwritten, 1);
    assert!(!one.has(1) && other.has(1));
    // They are made and revoked before either is written.
    one.add(5);
    one.forget(5);
    fleet
        .log
        .switch(|log| (log.is_down, log.half_appends) = (false, 2));
    until("the revocation", || !other.has(1));
    one.wait_for_writing();
    other.add(6);
    until("a session", || one.has(6));
    assert!(other.has(2) && !other.has(5));
    assert_eq!(fleet.replayed().report().missing, 0);
}

#[test]
fn retries_write_nothing_twice() {
    let fleet = Fleet::new("twice");
    let hub = fleet.hub();
    let node = fleet.node_on(&hub, fleet.options());
    let mut writer = Writer::new(Arc::clone(&hub), fleet.log.writer());
    let mut replayer = Replayer::new(Arc::clone(&hub));
    // If threads did this, a pass that has read the log before a retry could write revocations again.
    let mut work_in = |seconds: Range<u64>| {
        for second in seconds {
            set_moved(1000 * second, 1000 * second as i64);
            while replayer.turn() {}
            writer.work(&hub.journals());
        }
    };
    work_in(0..4);
    node.add(1);
    work_in(4..5);
    fleet.down(true);
    let targets: Vec<_> = (100..200).map(|n| Target::Session(id(n))).collect();
    let scopes = [Arc::clone(&node.scope)];
    assert_eq!(revoke(&scopes, false, &[], &targets).pending.len(), 1);
    work_in(4..20);
    assert_eq!(node.report().unwritten, 100);
    let before = fleet.count(Stream::Control);
    fleet.down(false);
    // First the pass, then the retry.
    work_in(30..40);
    set_moved(0, 0);
    let written = fleet.count(Stream::Control) - before;
    assert!((100..105).contains(&written), "{written}");
}

#[test]
fn a_log_that_is_lost_gets_revocations_again_and_starting_nodes_wait_for_them() {
    let fleet = Fleet::new("lost control");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.add(1);
    until("a session", || other.has(1));
    one.revoke_for_good(Target::Session(id(1)));
    one.add(2);
    until("sessions", || other.has(2) && !other.has(1));
    fleet.lose_knowledge();
    let after = fleet.node();
    after.wait_for_replay();
    assert!(!after.has(1));
    until("the session", || after.has(2));
    one.end();
    other.end();
    // Now no other node knows.
    until("the end", || after.is_up());
    after.end();
    fleet.lose_knowledge();
    let late = fleet.node();
    until("the hold", || {
        late.error().contains("revocations that were known")
    });
    assert_eq!((late.scope.sessions(), late.report().replay_ms), (0, None));
    // Sessions that are made here are shared nevertheless.
    late.add(3);
    late.wait_for_replay_anyway();
    assert!(late.has(1) && late.has(2) && late.has(3));
}

impl Node {
    fn wait_for_replay_anyway(&self) {
        self.journal().replay_anyway();
        self.wait_for_replay();
        until("health", || self.error().is_empty());
    }
}

#[test]
fn a_node_that_comes_back_with_its_memory_ends_the_wait() {
    let fleet = Fleet::new("comes back");
    let one = fleet.node_in("one");
    one.wait_for_replay();
    one.add(1);
    one.revoke_for_good(Target::Session(id(1)));
    one.add(2);
    until("sessions", || fleet.count(Stream::Sessions) == 2);
    one.end();
    fleet.lose_knowledge();
    let late = fleet.node();
    until("the hold", || late.error().contains("no session is read"));
    let back = fleet.node_in("one");
    back.wait_for_replay();
    late.wait_for_replay();
    assert!(!late.has(1) && !back.has(1));
    until("a session", || late.has(2) && back.has(2));
}

#[test]
fn a_log_that_is_rolled_back_is_noticed_by_living_nodes_and_by_those_with_a_memory() {
    let fleet = Fleet::new("rolled back");
    let one = fleet.node_in("one");
    one.wait_for_replay();
    one.add(1);
    until("a session", || fleet.count(Stream::Sessions) == 1);
    let snapshot = fleet.log.snapshot();
    one.revoke_for_good(Target::Session(id(1)));
    fleet.log.change(|records| records.clone_from(&snapshot));
    until("the revocation", || {
        fleet.log.snapshot().len() > snapshot.len()
    });
    assert!(!fleet.replayed().has(1));
    one.end();
    fleet.log.change(|records| records.clone_from(&snapshot));
    let back = fleet.node_in("one");
    back.wait_for_replay();
    assert!(!back.has(1));
    back.wait_for_writing();
    assert!(!fleet.replayed().has(1));
}

#[test]
fn a_node_waits_for_a_living_one_if_it_is_to() {
    let fleet = Fleet::new("confirmed");
    let one = fleet.replayed();
    one.add(1);
    one.wait_for_writing();
    until("a session", || fleet.count(Stream::Sessions) == 1);
    let waiting = || {
        let mut options = fleet.options();
        options.wait_for_living_node = true;
        fleet.node_with(options, limits(u64::MAX))
    };
    let other = waiting();
    other.wait_for_replay();
    assert!(other.has(1));
    one.end();
    other.end();
    let alone = waiting();
    until("the hold", || {
        alone.error().contains("another node has to confirm")
    });
    assert!(!alone.has(1));
    let living = fleet.replayed();
    alone.wait_for_replay();
    assert!(living.has(1) && alone.has(1));
}

#[test]
fn nodes_that_wait_ask_seldom() {
    let fleet = Fleet::new("asks");
    let one = fleet.replayed();
    one.add(1);
    until("a session", || fleet.count(Stream::Sessions) == 1);
    one.end();
    let waiting = || {
        let mut options = fleet.options();
        options.wait_for_living_node = true;
        fleet.node_with(options, limits(u64::MAX))
    };
    let began = Instant::now();
    let nodes = [(); 6].map(|()| waiting());
    until("the hold", || {
        let mut nodes = nodes.iter();
        nodes.all(|node| node.error().contains("another node has to confirm"))
    });
    thread::sleep(Duration::from_secs(5));
    let asks = fleet.log.records(Stream::Control);
    let asks = asks.iter().filter(|record| record[1] == 6).count();
    // Each asks at its start, and then at most every two seconds.
    let most = nodes.len() * (1 + began.elapsed().as_secs() as usize / 2);
    assert!((nodes.len()..=most).contains(&asks), "{asks}, {most}");
    let living = fleet.replayed();
    nodes.iter().for_each(Node::wait_for_replay);
    assert!(living.has(1) && nodes.iter().all(|node| node.has(1)));
}

#[test]
fn a_node_that_has_waited_in_vain_waits_again() {
    let fleet = Fleet::new("waits again");
    let one = fleet.replayed();
    one.add(1);
    one.wait_for_writing();
    until("a session", || fleet.count(Stream::Sessions) == 1);
    one.end();
    let folder = fleet.path("waiting");
    let waiting = || {
        let mut options = fleet.options();
        options.wait_for_living_node = true;
        options.node_folder = Some(folder.clone());
        fleet.node_with(options, limits(u64::MAX))
    };
    let holds = |node: &Node| {
        until("the hold", || {
            node.error().contains("another node has to confirm")
        });
        assert!(!node.has(1));
    };
    let first = waiting();
    holds(&first);
    // Now its folder has a revocation, but it still knows nothing of those of others.
    first.revoke_for_good(Target::Session(id(9)));
    let memory = NodeMemory::of(Some(&folder));
    first.end();
    let opened_again = waiting();
    holds(&opened_again);
    opened_again.end();
    drop(memory);
    let started_again = waiting();
    holds(&started_again);
    let living = fleet.replayed();
    started_again.wait_for_replay();
    assert!(started_again.has(1));
    living.end();
    started_again.end();
    // What was confirmed stays so.
    let alone = waiting();
    alone.wait_for_replay();
    assert!(alone.has(1));
}

/// An attacker hides what a log has until a node that waits takes the log for a new one.
#[test]
fn a_node_that_waits_is_not_misled_by_a_log_that_looks_new() {
    let is_claim = |placed: &Placed| placed.record[1] == 8;
    for shown in ["nothing", "claims", "control records"] {
        let fleet = Fleet::new("hidden");
        let one = fleet.replayed();
        one.add(1);
        one.wait_for_writing();
        let snapshot = fleet.log.snapshot();
        assert!(snapshot.iter().any(is_claim));
        one.revoke_for_good(Target::Session(id(1)));
        one.end();
        fleet.log.change(|records| {
            records.clone_from(&snapshot);
            records.retain(|placed| match shown {
                "nothing" => false,
                "claims" => is_claim(placed),
                _ => placed.stream == Stream::Control,
            });
        });
        let mut options = fleet.options();
        options.wait_for_living_node = true;
        let waiting = fleet.node_with(options, limits(u64::MAX));
        match shown {
            "nothing" => waiting.wait_for_replay(),
            _ => until("the hold", || waiting.error().contains("has to confirm")),
        }
        fleet.log.change(|records| records.clone_from(&snapshot));
        until("the hold", || waiting.error().contains("has to confirm"));
        thread::sleep(Duration::from_millis(500));
        assert!(!waiting.has(1) && !waiting.is_up(), "{shown}");
        waiting.end();
    }
}

#[test]
fn an_answer_counts_only_with_what_its_writer_knew() {
    let fleet = Fleet::new("answers");
    let one = fleet.replayed();
    one.add(1);
    one.wait_for_writing();
    until("a session", || fleet.count(Stream::Sessions) == 1);
    one.end();
    let mut options = fleet.options();
    options.wait_for_living_node = true;
    let waiting = fleet.node_with(options, limits(u64::MAX));
    let shared = &waiting.journal().0;
    let answer = |knowledge| {
        until("a question", || !shared.replay.lock().asked.is_empty());
        let nonce = shared.replay.lock().asked[0];
        let body = Body::Answer {
            nonce,
            knowledge: &knowledge,
        };
        let stamp = shared.stamp(shared.identity().unwrap(), now_ms(), 0);
        let record = seal(&shared.keys().unwrap(), &shared.context, stamp, &body).unwrap();
        fleet.log.append(&fleet.name, Stream::Control, record);
        until("the answer", || {
            !shared.replay.lock().asked.contains(&nonce)
        });
    };
    // Somebody has removed the record of what its writer knew, and perhaps revocations.
    answer([9; 16]);
    thread::sleep(Duration::from_millis(500));
    assert!(!waiting.has(1) && waiting.error().contains("has to confirm"));
    let known = *shared.references.lock().knowledge.keys().next().unwrap();
    answer(known);
    waiting.wait_for_replay();
    assert!(waiting.has(1));
}

/// By a clock that the test moves: all nodes notice the loss at the same moment.
#[test]
fn nodes_share_the_work_of_writing_again_what_a_log_has_lost() {
    let fleet = Fleet::new("shared work");
    let start = |_| {
        let hub = fleet.hub();
        let node = fleet.node_on(&hub, fleet.options());
        let writer = Writer::new(Arc::clone(&hub), fleet.log.writer());
        (node, writer, Replayer::new(Arc::clone(&hub)), hub)
    };
    let mut nodes: Vec<_> = (0..4).map(start).collect();
    let mut at_ms = 0;
    let mut pass = |nodes: &mut [(Node, Writer<Common>, Replayer<Common>, _)]| {
        at_ms += 1000;
        set_moved(at_ms, at_ms as i64);
        for (node, _, replayer, _) in &mut *nodes {
            node.journal().0.replay.lock().wants_scan = true;
            while replayer.turn() {}
        }
        for (_, writer, _, hub) in nodes {
            let hub: &Arc<Hub<Common>> = hub;
            writer.work(&hub.journals());
            writer.work(&hub.journals());
        }
    };
    (0..4).for_each(|_| pass(&mut nodes));
    let targets: Vec<_> = (0..600).map(|n| Target::Session(id(n))).collect();
    let scopes = [Arc::clone(&nodes[0].0.scope)];
    carry_out_here(&scopes, false, &[], &targets, Instant::now());
    (0..4).for_each(|_| pass(&mut nodes));
    assert!(nodes
        .iter()
        .all(|(node, ..)| node.report().revocations == 600));
    fleet.lose_knowledge();
    let written = || {
        let records = fleet.log.records(Stream::Control).into_iter();
        let revocations: Vec<_> = records.filter(|record| record[1] == 5).collect();
        revocations.len()
    };
    pass(&mut nodes);
    // Each leaves something to the others.
    assert!((1..600).contains(&written()), "{}", written());
    (0..10).for_each(|_| pass(&mut nodes));
    set_moved(0, 0);
    // Without a limit, each of the four writes all of them.
    assert!((600..1500).contains(&written()), "{}", written());
    let late = fleet.replayed();
    assert_eq!(late.report().revocations, 600);
}

#[test]
fn nobody_waits_for_a_folder_that_hangs() {
    let fleet = Fleet::new("hanging folder");
    let (one, other) = (fleet.node_in("node"), fleet.replayed());
    one.wait_for_replay();
    (1..4).for_each(|n| one.add(n));
    until("sessions", || other.has(3));
    // All that follows comes back while the folder hangs.
    let hanging = one.journal().0.memory.hang();
    let revoked = one.revoke(Target::Session(id(1)));
    assert_eq!(revoked.dropped, 1);
    assert!(
        revoked.pending["hanging folder"].contains("does not answer"),
        "{revoked:?}"
    );
    // The others obey nevertheless.
    until("the revocation", || !other.has(1));
    one.forget(2);
    until("the revocation", || !other.has(2));
    assert!(!one.revoke(Target::Session(id(9))).pending.is_empty());
    let error = one.report().node_folder_error.unwrap();
    assert!(error.contains("does not answer"), "{error}");
    one.add(5);
    until("a session", || other.has(5));
    drop(hanging);
    until("the folder", || {
        let revoked = one.revoke(Target::Session(id(3)));
        revoked.pending.is_empty() && one.report().node_folder_error.is_none()
    });
    let known = one.report().revocations;
    one.end();
    other.end();
    fleet.log.change(Vec::clear);
    let back = fleet.node_in("node");
    back.wait_for_replay();
    assert_eq!(back.report().revocations, known);
}

/// By a clock that the test moves.
#[test]
fn no_record_tells_of_a_revocation_before_the_log_has_it() {
    let fleet = Fleet::new("untold");
    let start = || {
        let hub = fleet.hub();
        let node = fleet.node_on(&hub, {
            let mut options = fleet.options();
            options.node_folder = Some(fleet.path("node"));
            options
        });
        let writer = Writer::new(Arc::clone(&hub), fleet.log.writer());
        (node, writer, Replayer::new(Arc::clone(&hub)), hub)
    };
    let (node, mut writer, mut replayer, hub) = start();
    node.journal().0.load_keys().unwrap();
    until("the folder", || node.journal().0.load_memory().is_ok());
    for at_ms in [0, 1000, 2000] {
        set_moved(at_ms, at_ms as i64);
        while replayer.turn() {}
        writer.work(&hub.journals());
    }
    node.forget(1);
    writer.work(&hub.journals());
    drop((node, writer, replayer, hub));
    fleet.lose_knowledge();
    let lost = fleet.log.snapshot().len();
    let (node, mut writer, mut replayer, hub) = start();
    // The folder is loaded, and the log not read yet.
    node.journal().0.load_keys().unwrap();
    until("the folder", || node.journal().0.load_memory().is_ok());
    assert_eq!(node.report().revocations, 1);
    node.add(2);
    writer.work(&hub.journals());
    assert_eq!(fleet.log.snapshot().len(), lost);
    while replayer.turn() {}
    writer.work(&hub.journals());
    set_moved(0, 0);
    let written = fleet.log.snapshot().split_off(lost);
    let kinds: Vec<u8> = written.iter().map(|placed| placed.record[1]).collect();
    assert_eq!(kinds[0], 5, "{kinds:?}");
    assert!(kinds.contains(&3) && kinds.contains(&1), "{kinds:?}");
}

#[test]
fn a_copied_record_changes_nothing() {
    let fleet = Fleet::new("copied");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.add(1);
    one.revoke_for_good(Target::All);
    one.add(2);
    one.add_with(3, b"template", b"certificate");
    until("sessions", || other.has(2) && other.has(3) && !other.has(1));
    let other_stream = |stream| match stream {
        Stream::Control => Stream::Sessions,
        Stream::Sessions => Stream::Control,
    };
    for placed in fleet.log.snapshot() {
        fleet.log.append(
            &fleet.name,
            other_stream(placed.stream),
            placed.record.clone(),
        );
        fleet.log.append(&fleet.name, placed.stream, placed.record);
    }
    one.add(4);
    until("a session", || other.has(4));
    for node in [&one, &other, &fleet.replayed()] {
        until("the copies", || node.skipped(Skipped::Log) > 0);
        assert!(!node.has(1) && node.has(2) && node.has(3) && node.has(4));
    }
}

#[test]
fn a_second_claim_of_a_log_is_no_record_of_another() {
    let fleet = Fleet::new("claimed twice");
    let one = fleet.replayed();
    let (_, claim) = one.journal().0.claim().unwrap();
    fleet.log.append(&fleet.name, Stream::Control, claim);
    one.add(1);
    let other = fleet.replayed();
    until("a session", || other.has(1));
    let skipped = [&one, &other].map(|node| node.report().skipped);
    assert_eq!(
        skipped,
        [vec![0; skipped[0].len()], vec![0; skipped[0].len()]]
    );
}

#[test]
fn a_log_of_one_node_is_replayed_without_asking() {
    let fleet = Fleet::alone("alone");
    let before = fleet.node_in("node");
    before.wait_for_replay();
    before.add(1);
    before.add(2);
    before.revoke_for_good(Target::Session(id(1)));
    until("sessions", || fleet.count(Stream::Sessions) == 2);
    before.end();
    fleet
        .log
        .change(|records| records.retain(|it| it.stream == Stream::Sessions));
    let after = fleet.node_in("node");
    after.wait_for_replay();
    assert!(!after.has(1));
    assert!(after.report().revocations == 1);
}

#[test]
fn keys_are_rotated_without_any_session_lost() {
    let fleet = Fleet::new("rotated");
    let [one_keys, other_keys] = ["one", "other"].map(|name| fleet.path(name));
    let node = |path: &PathBuf| {
        let node = fleet.node_with_keys(path);
        node.wait_for_replay();
        node
    };
    write_keys(&one_keys, &["k1"]);
    write_keys(&other_keys, &["k1"]);
    let nodes = [node(&one_keys), node(&other_keys)];
    let mut n = 0;
    let mut shares = |sealing: [&str; 2]| {
        for (from, to, key) in [(0, 1, sealing[0]), (1, 0, sealing[1])] {
            n += 1;
            nodes[from].add(n);
            until("a session", || nodes[to].has(n));
            let records = fleet.log.records(Stream::Sessions);
            assert_eq!(key_of(records.last().unwrap()), key);
        }
    };
    shares(["k1", "k1"]);
    // Each node learns of a key before any node seals with it.
    let steps: [(&[&str], &str, &str); 3] = [
        (&["k1", "k2"], "k1", "k1"),
        (&["k1", "k2", "k3"], "k1", "k2"),
        (&["k2", "k3"], "k2", "k2"),
    ];
    for (names, before, after) in steps {
        write_keys(&one_keys, names);
        nodes[0].journal().reload_keys().unwrap();
        shares([after, before]);
        write_keys(&other_keys, names);
        assert_eq!(nodes[1].journal().reload_keys().unwrap(), names);
        shares([after, after]);
    }
    // A node that has only the new keys finds all records that the present sessions refer to.
    let late = node(&one_keys);
    assert!(late.has(n) && late.error().is_empty());
}

#[test]
fn what_waits_for_the_log_is_sealed_with_the_keys_that_are_there_when_it_is_back() {
    let fleet = Fleet::new("waiting");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.add(1);
    until("a session", || other.has(1));
    one.wait_for_writing();
    let before = fleet.count(Stream::Control);
    fleet.down(true);
    assert!(!one.revoke(Target::Session(id(1))).pending.is_empty());
    until("an attempt to write it", || !one.error().is_empty());
    write_keys(&fleet.path("keys"), &["c", "d"]);
    for node in [&one, &other] {
        node.journal().reload_keys().unwrap();
    }
    fleet.down(false);
    until("the revocation", || one.journal().unwritten() == 0);
    // The other node may have sealed a statement while its keys changed.
    let shared = &one.journal().0;
    let of_one = |record: &Record| {
        let header = header(&shared.context, Stream::Control, record).unwrap();
        header.stamp.writer == shared.writer
    };
    let mut written = fleet.log.records(Stream::Control).split_off(before);
    written.retain(of_one);
    assert!(!written.is_empty());
    assert!(written.iter().all(|record| key_of(record) == "c"));
    until("the revocation on the other node", || !other.has(1));
}

#[test]
fn what_was_written_with_a_key_that_was_replaced_meanwhile_does_not_count() {
    let fleet = Fleet::new("in flight");
    let node = fleet.replayed();
    node.add(1);
    node.wait_for_writing();
    let mut tries = 0;
    // The writer may hang in a sync, and then has not taken the revocation yet.
    let hanging = loop {
        let hanging = fleet.log.hang();
        node.forget(1);
        thread::sleep(Duration::from_millis(500));
        if node.report().queued == 0 {
            break hanging;
        }
        drop(hanging);
        node.wait_for_writing();
        tries += 1;
        assert!(tries < 20);
    };
    write_keys(&fleet.path("keys"), &["c", "d"]);
    node.journal().reload_keys().unwrap();
    drop(hanging);
    until("the revocation", || node.journal().unwritten() == 0);
    let written = fleet.log.records(Stream::Control);
    let is_readable = |record: &Record| record[1] == 5 && key_of(record) == "c";
    assert!(written.iter().any(is_readable));
}

#[test]
fn a_node_with_a_key_that_others_have_taken_out_of_use_promises_nothing() {
    let fleet = Fleet::new("behind");
    let [ahead_keys, behind_keys] = ["ahead", "behind"].map(|name| fleet.path(name));
    let node = |path: &PathBuf, names: &[&str]| {
        write_keys(path, names);
        let node = fleet.node_with_keys(path);
        node.wait_for_replay();
        node
    };
    let ahead = node(&ahead_keys, &["a", "b"]);
    let behind = node(&behind_keys, &["a", "b"]);
    for (n, replaced) in [(1, ["b", "c"]), (2, ["d", "e"])] {
        behind.add(n);
        until("a session", || ahead.has(n));
        fleet.events();
        write_keys(&ahead_keys, &replaced);
        ahead.journal().reload_keys().unwrap();
        // It can read the records of the first new key, and of the second one only a statement that was sealed while the
        // keys changed.
        let hints: &[&str] = match n {
            1 => &["do not have the key a"],
            _ => &["key d", "do not have the key b"],
        };
        let is_hint = |text: &str| hints.iter().any(|hint| text.contains(hint));
        until("the hint", || is_hint(&behind.error()));
        let revoked = behind.revoke(Target::Session(id(n)));
        assert!(is_hint(&revoked.pending["behind"]), "{revoked:?}");
        assert!(!behind.has(n));
        // It may have come before that, because `behind` has written former revocations again. And none comes for a record
        // that a pass reads first.
        until("the notice", || {
            behind.revoke(Target::Session(id(20)));
            let notice = "still revokes with the key";
            let is_notice = |kind: &EventKind| matches!(kind, EventKind::Noticed(text) if text.contains(notice));
            fleet.events().iter().any(is_notice)
        });
        assert!(ahead.has(n));
        until("health", || ahead.is_up());
        // Nor does the other one know whether it is understood.
        until("the other hint", || {
            let pending = ahead.revoke(Target::Session(id(30 + n))).pending;
            let why = pending.get("behind");
            why.is_some_and(|why| why.contains("still seals"))
        });
        write_keys(&behind_keys, &replaced);
        behind.journal().reload_keys().unwrap();
        until("the revocation", || !ahead.has(n));
        until("health", || behind.error().is_empty());
        behind.add(10 + n);
        until("a session", || ahead.has(10 + n));
        assert_eq!(behind.revoke_for_good(Target::Session(id(10 + n))), 1);
        until("the promise", || {
            behind.revoke(Target::Session(id(20))).pending.is_empty()
        });
        until("the end", || {
            ahead.revoke(Target::Session(id(30))).pending.is_empty()
        });
    }
}

#[test]
fn a_node_hears_that_the_others_have_its_new_key_however_soon() {
    let fleet = Fleet::new("soon");
    let keys = fleet.path("soon keys");
    write_keys(&keys, &["a", "b"]);
    let node = fleet.node_with_keys(&keys);
    node.wait_for_replay();
    let shared = &node.journal().0;
    let lacking = |names: &[&str]| Statement {
        lacked_keys: names.iter().map(|name| name.to_string()).collect(),
        ..Statement::default()
    };
    let another = shared.writer + 1;
    shared.note_lacked_by(another, &lacking(&["b"]));
    until("health", || node.error().is_empty());
    write_keys(&keys, &["a", "b", "c"]);
    node.journal().reload_keys().unwrap();
    assert!(node.error().contains("do not have the key b"));
    shared.note_lacked_by(another, &lacking(&[]));
    until("health", || node.error().is_empty());
}

#[test]
fn a_node_that_seals_with_a_key_that_another_one_lacks_hears_of_it() {
    hears_that_its_key_is_lacked(false);
}

#[test]
fn a_node_that_seals_with_a_key_that_a_starting_one_lacks_hears_of_it() {
    hears_that_its_key_is_lacked(true);
}

fn hears_that_its_key_is_lacked(is_restarted: bool) {
    let fleet = Fleet::new("too early");
    let early_keys = fleet.path("early");
    write_keys(&early_keys, &["a", "b"]);
    let early = fleet.node_with_keys(&early_keys);
    early.wait_for_replay();
    let before = (!is_restarted).then(|| fleet.replayed());
    early.add(1);
    if let Some(other) = &before {
        until("a session", || other.has(1));
    }
    write_keys(&early_keys, &["a", "b", "x", "y"]);
    early.journal().reload_keys().unwrap();
    // A node that starts finds old records only, and must say so as well.
    let other = before.unwrap_or_else(|| {
        early.wait_for_writing();
        fleet.node()
    });
    until("the hint", || {
        early.error().contains("do not have the key x")
    });
    let revoked = early.revoke(Target::Session(id(1)));
    assert!(
        revoked.pending["too early"].contains("the key x"),
        "{revoked:?}"
    );
    write_keys(&fleet.path("keys"), &["a", "b", "x", "y"]);
    other.journal().reload_keys().unwrap();
    until("the revocation", || !other.has(1));
    until("health", || {
        early.error().is_empty() && other.error().is_empty()
    });
    until("the promise", || {
        early.revoke(Target::Session(id(2))).pending.is_empty()
    });
}

/// The lines of a key file in which keys have these names, and their bytes come from other words.
fn other_lines(names: &[&str]) -> String {
    let line = |name: &&str| key_line(&format!("other-{name}")).replacen("other-", "", 1);
    names.iter().map(line).collect()
}

#[test]
fn a_node_with_other_keys_of_the_same_names_reads_and_writes_nothing() {
    // It may know the log from before.
    for is_new in [true, false] {
        let fleet = Fleet::new("same names");
        if !is_new {
            let former = fleet.node_in("node");
            former.wait_for_replay();
            former.revoke_for_good(Target::Session(id(9)));
            former.end();
        }
        let one = fleet.replayed();
        one.add(1);
        one.wait_for_writing();
        until("a session", || fleet.count(Stream::Sessions) == 1);
        let keys = fleet.path("other");
        write_key_lines(&keys, other_lines(&["a", "b"]));
        let mut options = fleet.options();
        options.keys.path = keys.clone();
        options.node_folder = Some(fleet.path("node"));
        let other = fleet.node_with(options, limits(u64::MAX));
        assert!(!other.revoke(Target::Session(id(4))).pending.is_empty());
        until("the hold", || {
            other.error().contains("do not open with the key")
        });
        other.add(2);
        until("the promise", || {
            one.revoke(Target::Session(id(3))).pending.is_empty()
        });
        assert!(!other.revoke(Target::Session(id(4))).pending.is_empty());
        assert_eq!(one.skipped_at_all(), 0);
        write_keys(&keys, &["a", "b"]);
        other.wait_for_replay();
        until("sessions", || one.has(2) && other.has(1));
        until("health", || one.is_up() && other.is_up());
        until("the promise", || {
            other.revoke(Target::Session(id(2))).pending.is_empty()
        });
        until("the revocation", || !one.has(2));
    }
}

#[test]
fn a_key_that_came_back_into_use_is_not_taken_for_one_out_of_use() {
    let fleet = Fleet::new("back in use");
    let keys = fleet.path("other");
    write_keys(&keys, &["a", "b"]);
    let (one, other) = (fleet.replayed(), fleet.node_with_keys(&keys));
    other.wait_for_replay();
    // A mistake, which is mended.
    write_keys(&keys, &["b", "c"]);
    other.journal().reload_keys().unwrap();
    other.add(5);
    until("a session", || one.has(5));
    until("the hint", || one.error().contains("do not have the key a"));
    let mistaken = fleet.last_statement(&other);
    write_keys(&keys, &["a", "b"]);
    other.journal().reload_keys().unwrap();
    until("health", || one.is_up() && other.is_up());
    // It says something with a key that the node below has.
    write_keys(&keys, &["a", "b", "c"]);
    other.journal().reload_keys().unwrap();
    other.add(6);
    until("a session", || one.has(6));
    assert_eq!(one.revoke_for_good(Target::Session(id(5))), 1);
    until("the revocation", || !other.has(5));
    fleet.log.append(&fleet.name, Stream::Control, mistaken);
    // A node that makes the same mistake at its start finds what was said before.
    write_keys(&fleet.path("third"), &["b", "c"]);
    let third = fleet.node_with_keys(&fleet.path("third"));
    until("the hold", || third.error().contains("the key a"));
    assert!(!third.has(5));
}

#[test]
fn a_log_that_another_key_of_the_same_name_began_is_used_once_the_operator_decides() {
    let fleet = Fleet::new("began wrong");
    let other_keys = fleet.path("other keys");
    let start = |folder: &str, keys: &Path| {
        let mut options = fleet.options();
        options.node_folder = Some(fleet.path(folder));
        options.keys.path = keys.into();
        fleet.node_with(options, limits(u64::MAX))
    };
    let right_keys = fleet.options().keys.path;
    let one = start("one", &right_keys);
    one.wait_for_replay();
    one.revoke_for_good(Target::Session(id(1)));
    one.end();
    fleet.log.change(Vec::clear);
    write_key_lines(&other_keys, other_lines(&["a", "b"]));
    let other = start("other", &other_keys);
    other.wait_for_replay();
    other.add(2);
    other.wait_for_writing();
    let one = start("one", &right_keys);
    let is_held = |node: &Node| node.error().contains("do not open with the key");
    until("the hold", || is_held(&one));
    other.end();
    write_keys(&other_keys, &["a", "b"]);
    let other = start("other", &other_keys);
    until("the hold", || is_held(&one) && is_held(&other));
    for node in [&one, &other] {
        node.journal().replay_anyway();
    }
    until("health", || one.is_up() && other.is_up());
    let log = |node: &Node| node.journal().0.identity();
    until("one identity", || log(&one) == log(&other));
    other.add(3);
    until("a session", || one.has(3));
    assert_eq!(one.revoke_for_good(Target::Session(id(3))), 1);
    until("the revocation", || !other.has(3));
}

#[test]
fn records_that_do_not_open_and_do_not_matter_are_not_read_again_and_again() {
    let fleet = Fleet::new("quiet");
    let one = fleet.replayed();
    one.add(1);
    one.wait_for_writing();
    let is_quiet = |node: &Node| {
        until("health", || node.is_up());
        let shared = &node.journal().0;
        shared.replay.lock().want_scan(Duration::ZERO);
        thread::sleep(Duration::from_secs(1));
        let before = node.report().read;
        thread::sleep(Duration::from_secs(2));
        node.report().read - before <= 2 * fleet.count(Stream::Control) as u64
    };
    write_keys(&fleet.path("keys"), &["b", "c"]);
    one.journal().reload_keys().unwrap();
    until("health", || one.is_up());
    one.add(2);
    one.wait_for_writing();
    let late = fleet.replayed();
    assert!(is_quiet(&late) && is_quiet(&one));
    let mut damaged = fleet.log.records(Stream::Control).pop().unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fleet.log.append(&fleet.name, Stream::Control, damaged);
    for node in [&one, &late] {
        until("the hold", || node.error().contains("do not open"));
        node.journal().replay_anyway();
    }
    assert!(is_quiet(&late) && is_quiet(&one));
}

/// By a clock that the test moves.
#[test]
fn what_others_lack_is_not_forgotten_while_they_cannot_say_it_again() {
    let fleet = Fleet::new("cut off");
    let node = fleet.node_on(&fleet.hub(), fleet.options());
    let shared = &node.journal().0;
    shared.load_keys().unwrap();
    let statement = Statement {
        lacked_keys: vec!["a".into()],
        ..Statement::default()
    };
    shared.note_lacked_by(1, &statement);
    for (at_s, is_down) in [(50, true), (150, true), (200, false), (400, false)] {
        let down = Err("it is down".to_string());
        shared.set(Part::Follower, if is_down { down } else { Ok(()) });
        set_moved(1000 * at_s, 1000 * at_s as i64);
        shared.renew_lacks();
        assert_eq!(shared.check_sealing_key().is_err(), at_s < 400);
    }
    set_moved(0, 0);
}

#[test]
fn a_damaged_record_does_not_hold_a_node_that_is_alone_with_its_log() {
    let fleet = Fleet::alone("damaged alone");
    let start = || {
        let node = fleet.node_in("node");
        node.wait_for_replay();
        node
    };
    let node = start();
    node.add(1);
    node.revoke_for_good(Target::Session(id(7)));
    node.wait_for_writing();
    node.end();
    fleet.log.change(|records| {
        let mut revocations = records.iter_mut();
        let damaged = revocations.find(|it| it.record[1] == 5).unwrap();
        *damaged.record.last_mut().unwrap() ^= 1;
    });
    let node = start();
    until("health", || node.is_up());
    assert!(node.has(1) && node.skipped(Skipped::Forged) >= 1);
    node.add(2);
    node.wait_for_writing();
    node.end();
    assert!(start().has(2));
}

#[test]
fn a_key_that_is_replaced_by_another_one_of_its_name_is_refused() {
    let fleet = Fleet::new("replaced by name");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    write_key_lines(&fleet.path("keys"), other_lines(&["a", "b"]));
    let error = one.journal().reload_keys().unwrap_err();
    assert!(
        error.contains("the key a is another one than before"),
        "{error}"
    );
    until("the error", || other.error().contains("is another one"));
    one.add(1);
    until("a session", || other.has(1));
    write_keys(&fleet.path("keys"), &["a", "b"]);
    until("health", || one.is_up() && other.is_up());
}

#[test]
fn a_control_record_that_does_not_open_holds_the_replay_until_the_operator_decides() {
    let fleet = Fleet::new("damaged");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.add(1);
    until("a session", || other.has(1));
    one.revoke_for_good(Target::Session(id(7)));
    let written = fleet.log.records(Stream::Control);
    let mut damaged = written.into_iter().rfind(|it| it[1] == 5).unwrap();
    *damaged.last_mut().unwrap() ^= 1;
    fleet
        .log
        .append(&fleet.name, Stream::Control, damaged.clone());
    let why = "do not open with the key a";
    until("the hold", || {
        one.error().contains(why) && other.error().contains(why)
    });
    assert!(!one.revoke(Target::Session(id(8))).pending.is_empty());
    let late = fleet.node();
    until("the hold", || late.error().contains(why));
    assert!(!late.has(1) && one.has(1) && other.has(1));
    for node in [&one, &other, &late] {
        node.journal().replay_anyway();
    }
    until("health", || one.is_up() && other.is_up() && late.is_up());
    assert!(late.has(1));
    // It is not new any more.
    fleet.log.append(&fleet.name, Stream::Control, damaged);
    one.add(2);
    until("a session", || other.has(2) && late.has(2));
    until("health", || one.is_up() && other.is_up() && late.is_up());
    assert!(one.revoke_for_good(Target::Session(id(1))) == 1);
    until("the revocation", || !late.has(1));
}

#[test]
fn copies_of_old_statements_do_not_count() {
    let fleet = Fleet::new("old statements");
    let keys = fleet.path("other");
    write_keys(&keys, &["a", "b"]);
    let (one, other) = (fleet.replayed(), fleet.node_with_keys(&keys));
    other.wait_for_replay();
    other.add(7);
    until("a session", || one.has(7));
    let innocent = fleet.last_statement(&other);
    // A mistake, which is mended.
    write_keys(&keys, &["b", "c"]);
    other.journal().reload_keys().unwrap();
    let lacks = |error: String| error.contains("do not have the key a");
    until("the hint", || lacks(one.error()));
    let lacking = fleet.last_statement(&other);
    fleet.log.append(&fleet.name, Stream::Control, innocent);
    // The other's session may be there twice: its keys may have been replaced while it was written.
    for n in 1..=2 {
        one.add(7 + n);
        until("a session", || {
            fleet.records_of(&one, Stream::Sessions).len() == n as usize
        });
    }
    thread::sleep(Duration::from_millis(500));
    assert!(lacks(one.error()));
    assert!(!one.revoke(Target::Session(id(7))).pending.is_empty());
    write_keys(&keys, &["a", "b"]);
    other.journal().reload_keys().unwrap();
    until("health", || one.is_up() && other.is_up());
    fleet.log.append(&fleet.name, Stream::Control, lacking);
    other.add(10);
    until("a session", || one.has(10));
    assert!(one.is_up());
    until("the promise", || {
        one.revoke(Target::Session(id(10))).pending.is_empty()
    });
}

#[test]
fn made_up_names_of_keys_hide_none_that_is_lacked() {
    let fleet = Fleet::new("made up");
    let keys = fleet.path("early");
    write_keys(&keys, &["a", "b"]);
    let (early, other) = (fleet.node_with_keys(&keys), fleet.replayed());
    early.wait_for_replay();
    early.add(1);
    until("a session", || other.has(1));
    let record = fleet.log.records(Stream::Sessions).remove(0);
    for n in 0..16 {
        let mut forged = record.clone();
        forged[18] ^= 1;
        forged[43] = b'A' + n;
        fleet.log.append(&fleet.name, Stream::Sessions, forged);
    }
    until("the records", || other.skipped(Skipped::Key) == 16);
    write_keys(&keys, &["a", "b", "x", "y"]);
    early.journal().reload_keys().unwrap();
    until("the hint", || {
        early.error().contains("do not have the key x")
    });
}

#[test]
fn what_others_still_lack_is_not_forgotten_when_keys_are_read_again() {
    let fleet = Fleet::new("read again");
    let keys = fleet.path("other");
    write_keys(&keys, &["a", "b"]);
    let (one, other) = (fleet.replayed(), fleet.node_with_keys(&keys));
    other.wait_for_replay();
    write_keys(&keys, &["b", "c"]);
    other.journal().reload_keys().unwrap();
    let lacks = |error: String| error.contains("do not have the key a");
    until("the hint", || lacks(one.error()));
    one.journal().reload_keys().unwrap();
    assert!(lacks(one.error()));
    assert!(!one.revoke(Target::Session(id(1))).pending.is_empty());
    write_keys(&fleet.path("keys"), &["b", "c"]);
    until("health", || one.is_up() && other.is_up());
    until("the promise", || {
        one.revoke(Target::Session(id(1))).pending.is_empty()
    });
}

#[test]
fn keys_that_are_replaced_while_no_node_runs_are_missed_until_the_operator_decides() {
    let fleet = Fleet::new("replaced");
    let before = fleet.replayed();
    before.add(1);
    before.revoke_for_good(Target::Session(id(1)));
    before.end();
    write_keys(&fleet.path("keys"), &["c", "d"]);
    let (one, other) = (fleet.node(), fleet.node());
    for node in [&one, &other] {
        until("the hold", || node.error().contains("the key a"));
        assert!(!node.revoke(Target::Session(id(1))).pending.is_empty());
    }
    one.journal().replay_anyway();
    until("health", || one.is_up() && other.is_up());
    one.wait_for_writing();
    other.wait_for_writing();
    one.add(2);
    until("a session", || other.has(2));
    other.revoke_for_good(Target::Session(id(2)));
    until("a revocation", || !one.has(2));
}

#[test]
fn what_came_before_its_key_is_read_once_the_key_is_there() {
    let fleet = Fleet::new("late key");
    let late_keys = fleet.path("late");
    let one = fleet.replayed();
    one.add(1);
    one.add(2);
    one.revoke_for_good(Target::Session(id(1)));
    until("sessions", || fleet.count(Stream::Sessions) == 2);
    let late = fleet.node_with_keys(&late_keys);
    until("the error", || late.error().contains("No such file"));
    // A node with a key of its own, but without that of the others.
    write_keys(&late_keys, &["z"]);
    until("the hold", || {
        late.error().contains("no session is read") || late.error().contains("key a")
    });
    assert_eq!(late.scope.sessions(), 0);
    write_keys(&late_keys, &["a", "b", "z"]);
    until("the session", || late.has(2));
    assert!(!late.has(1));
    until("health", || late.error().is_empty());
}

#[test]
fn keys_stay_in_force_while_their_file_is_not_there() {
    let fleet = Fleet::new("no file");
    let path = fleet.path("keys");
    let away = fleet.path("away");
    let mut options = fleet.options();
    options.keys.make = true;
    let one = fleet.node_with(options, limits(u64::MAX));
    one.wait_for_replay();
    let other = fleet.replayed();
    let rights = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let mut n = 0;
    let mut shares = || {
        n += 1;
        one.add(n);
        until("a session", || other.has(n));
    };
    shares();
    until("health", || one.is_up());
    type Do<'a> = &'a dyn Fn();
    let spoil: [(Do, Do, &str); 3] = [
        (
            &|| fs::rename(&path, &away).unwrap(),
            &|| fs::rename(&away, &path).unwrap(),
            "No such file",
        ),
        (&|| rights(0o644), &|| rights(0o600), "mode 644"),
        (
            &|| fs::write(&path, "k1").unwrap(),
            &|| write_keys(&path, &["a", "b"]),
            "line 1",
        ),
    ];
    for (spoil, mend, error) in spoil {
        spoil();
        until(error, || one.error().contains(error));
        shares();
        assert_eq!(one.report().keys, ["a", "b"]);
        mend();
        until("health", || one.is_up());
        shares();
    }
    assert_eq!(other.skipped_at_all(), 0);
    // The operator can reload the file, too.
    fs::rename(&path, &away).unwrap();
    let error = one.journal().reload_keys().unwrap_err();
    assert!(error.contains("No such file"), "{error}");
    fs::rename(&away, &path).unwrap();
    assert_eq!(one.journal().reload_keys().unwrap(), ["a", "b"]);
    assert!(one.is_up());
}

#[test]
fn sessions_wait_for_a_key_that_may_be_used() {
    let fleet = Fleet::new("wrong rights");
    let path = fleet.path("keys");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let node = fleet.node();
    node.add(1);
    until("the error", || node.error().contains("mode 640"));
    assert_eq!(node.report().written, 0);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    until("the session", || fleet.count(Stream::Sessions) == 1);
    until("health", || node.is_up());
    assert_eq!(node.report().dropped, 0);
}

#[test]
fn what_sessions_refer_to_is_in_the_log_again_after_it_was_lost() {
    let fleet = Fleet::new("lost");
    let node = fleet.replayed();
    node.add(1);
    until("a session", || fleet.count(Stream::Sessions) == 1);
    fleet.log.change(Vec::clear);
    fleet.log.switch(|log| log.half_appends = 1);
    node.add(2);
    until("a session", || fleet.count(Stream::Sessions) == 1);
    let after = fleet.replayed();
    until("the session", || after.has(2));
    assert!(!after.has(1));
}

#[test]
fn a_template_that_cannot_be_used_costs_its_sessions_only() {
    let fleet = Fleet::new("useless");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.add(1);
    until("a session", || other.has(1));
    // A record of another version.
    let journal = one.journal();
    let useless = Arc::new(crate::EncodedTemplate::new(USELESS.to_vec()));
    let secret = crate::testing::secret(2);
    let knowledge = journal.knowledge();
    journal.add(&id(2), &secret, useless, knowledge, b"", b"", HOUR_MS);
    one.add(3);
    until("the session", || other.has(3));
    assert!(!other.has(2));
    assert_eq!(
        (other.skipped(Skipped::Template), other.skipped_at_all()),
        (1, 1)
    );
}

#[test]
fn the_shorter_lifetime_counts() {
    let fleet = Fleet::new("lifetimes");
    let short = Limits {
        lifetime_ms: 60_000,
        ..limits(u64::MAX)
    };
    let long = fleet.replayed();
    let short = fleet.node_with(fleet.options(), short);
    short.wait_for_replay();
    long.add(1);
    until("the session", || short.has(1));
    let is_there = |after_ms| {
        let peeked = store(&short.scope).peek(SessionKey::Id(&id(1)), now_ms() + after_ms, |_| ());
        peeked.is_some()
    };
    assert!(is_there(50_000) && !is_there(60_000));
    // A revocation is kept for the longest lifetime in the log, and for what clocks may differ.
    assert!(short.journal().0.keep_ms() >= HOUR_MS + 10 * 60_000);
}

#[test]
fn a_node_leaves_its_own_records_alone() {
    let fleet = Fleet::new("own");
    let node = fleet.replayed();
    node.add(1);
    node.revoke_for_good(Target::All);
    node.add(2);
    until("sessions", || fleet.count(Stream::Sessions) == 2);
    // As if the server had evicted it.
    store(&node.scope).delete(SessionKey::Id(&id(2)));
    let records = fleet.log.snapshot();
    let read = node.report().read;
    for placed in &records {
        fleet
            .log
            .append(&fleet.name, placed.stream, placed.record.clone());
    }
    until("the reading", || {
        node.report().read >= read + records.len() as u64
    });
    assert_eq!(node.scope.sessions(), 0);
    let report = node.report();
    let counts = (report.applied, report.known, node.skipped_at_all());
    assert_eq!(counts, (0, 0, 0));
}

#[test]
fn what_was_queued_is_written_before_the_end() {
    let fleet = Fleet::new("ended");
    let node = fleet.replayed();
    for n in 0..50 {
        node.add(n);
    }
    node.forget(0);
    node.end();
    assert_eq!(fleet.count(Stream::Sessions), 50);
    let after = fleet.replayed();
    assert!(!after.has(0) && after.has(49));
}

#[test]
fn a_journal_with_a_memory_ends_although_the_log_is_down() {
    let fleet = Fleet::new("ended down");
    let node = fleet.node_in("node");
    node.wait_for_replay();
    node.add(1);
    until("a session", || fleet.count(Stream::Sessions) == 1);
    fleet.down(true);
    until("the error", || {
        node.add(2);
        node.error().contains("it is down")
    });
    node.forget(1);
    node.end();
    fleet.down(false);
    let back = fleet.node_in("node");
    back.wait_for_replay();
    assert!(!back.has(1));
    back.wait_for_writing();
    assert!(!fleet.replayed().has(1));
}

#[test]
fn a_journal_without_a_memory_writes_its_revocations_however_long_that_takes() {
    let fleet = Fleet::new("ended late");
    let node = fleet.replayed();
    node.add(1);
    until("a session", || fleet.count(Stream::Sessions) == 1);
    fleet.down(true);
    until("the error", || {
        node.add(2);
        node.error().contains("it is down")
    });
    node.forget(1);
    let shared = Arc::downgrade(&node.journal().0);
    drop(node);
    fleet.down(false);
    until("the threads' end", || shared.strong_count() == 0);
    assert!(!fleet.replayed().has(1));
}

#[test]
fn scopes_with_one_log_have_its_threads_together() {
    let fleet = Fleet::new("hub");
    let hub = Hub::new(Arc::new(fleet.log.clone()));
    let scopes: Vec<_> = (0..20)
        .map(|n| {
            let name = format!("hub {n}");
            let (reference, scope) = open(&name, limits(u64::MAX));
            let options = options(&name, fleet.path("keys"));
            let journal = Journal::start(&scope, options, || Arc::clone(&hub)).unwrap();
            assert!(scope.attach(journal));
            (reference, scope)
        })
        .collect();
    for (n, (_, scope)) in scopes.iter().enumerate() {
        assert!(insert(scope, n as u32, b"template", b""));
    }
    until("sessions", || fleet.count(Stream::Sessions) == 20);
    let all: Vec<_> = scopes.iter().map(|(_, scope)| Arc::clone(scope)).collect();
    let revoked = revoke(&all, true, &[None], &[Target::Session(id(3))]);
    assert_eq!(revoked.dropped, 1);
    until("revocations", || {
        let journals = all.iter().map(|scope| scope.attached().unwrap());
        journals.map(Journal::<Common>::unwritten).sum::<u64>() == 0
    });
    let journals = hub.journals().len();
    drop((all, scopes));
    assert_eq!(journals, 20);
    until("the threads' end", || hub.has_ended());
}

#[test]
fn what_is_revoked_while_no_listener_is_open_holds_when_one_opens() {
    let fleet = Fleet::new("before opening");
    let node = fleet.node_in("node");
    node.wait_for_replay();
    node.add(1);
    node.add(2);
    until("sessions", || fleet.count(Stream::Sessions) == 2);
    let folder = fleet.path("node");
    // Otherwise it could end before the call, which would then not know the scope.
    let memory = NodeMemory::of(Some(&folder));
    drop(node);
    let scopes: [Arc<Scope<Common>>; 0] = [];
    let (folder, targets) = ([Some(folder)], [Target::Session(id(1))]);
    // Other nodes share this log, and do not know yet. A busy disk may answer late, which is another reason.
    until("the reason", || {
        let revoked = revoke(&scopes, true, &folder, &targets);
        assert_eq!(revoked.dropped, 0);
        revoked.pending["before opening"].contains("no listener")
    });
    drop(memory);
    let back = fleet.node_in("node");
    back.wait_for_replay();
    assert!(!back.has(1) && back.has(2));
    back.wait_for_writing();
    assert!(!fleet.replayed().has(1));
}

#[test]
fn what_is_revoked_without_a_listener_and_without_a_usable_folder_is_pending_and_not_forgotten() {
    let fleet = Fleet::alone("unusable folder");
    let (folder, away) = (fleet.path("node"), fleet.path("away"));
    let node = fleet.node_in("node");
    node.wait_for_replay();
    node.add(1);
    node.add(2);
    node.wait_for_writing();
    node.end();
    fs::rename(&folder, &away).unwrap();
    fs::write(&folder, "no folder").unwrap();
    let scopes: [Arc<Scope<Common>>; 0] = [];
    let revoked = revoke(
        &scopes,
        true,
        &[Some(folder.clone())],
        &[Target::Session(id(1))],
    );
    let name = format!("node folder {}", folder.display());
    assert_eq!(revoked.pending.into_keys().collect::<Vec<_>>(), [name]);
    fs::remove_file(&folder).unwrap();
    fs::rename(&away, &folder).unwrap();
    let back = fleet.node_in("node");
    back.wait_for_replay();
    assert!(!back.has(1) && back.has(2));
    back.end();
    // Now the folder has it.
    let memory = Arc::downgrade(&NodeMemory::of(Some(&folder)));
    assert!(memory.upgrade().is_none());
    let again = fleet.node_in("node");
    again.wait_for_replay();
    assert!(!again.has(1) && again.has(2));
}

/// By a clock that the test moves.
#[test]
fn a_closed_journal_stays_until_its_revocations_are_in_the_log_or_in_the_folder() {
    let fleet = Fleet::new("unsaved");
    let (folder, away) = (fleet.path("node"), fleet.path("away"));
    let mut options = fleet.options();
    options.node_folder = Some(folder.clone());
    let hub = fleet.hub();
    let node = fleet.node_on(&hub, options);
    let mut writer = Writer::new(Arc::clone(&hub), fleet.log.writer());
    let mut replayer = Replayer::new(Arc::clone(&hub));
    for second in 0..4 {
        set_moved(second * 1000, 0);
        writer.work(&hub.journals());
        while replayer.turn() {}
    }
    node.add(1);
    writer.work(&hub.journals());
    fleet.down(true);
    fs::rename(&folder, &away).unwrap();
    node.forget(1);
    node.journal().0.queue.close();
    for second in 4..10 {
        set_moved(second * 1000, 0);
        writer.work(&hub.journals());
    }
    assert_eq!((hub.journals().len(), hub.unwritten()), (1, 1));
    fs::rename(&away, &folder).unwrap();
    for second in 10..80 {
        set_moved(second * 1000, 0);
        writer.work(&hub.journals());
    }
    until("the folder", || node.journal().0.memory.is_saved());
    writer.work(&hub.journals());
    set_moved(0, 0);
    assert_eq!(hub.journals().len(), 0);
    drop(node);
    fleet.down(false);
    let back = fleet.node_in("node");
    back.wait_for_replay();
    assert!(!back.has(1));
}

#[test]
fn nobody_waits_for_a_log_that_hangs() {
    let fleet = Fleet::new("hanging");
    let node = fleet.replayed();
    node.add(1);
    until("a session", || fleet.count(Stream::Sessions) == 1);
    let (done, is_done) = mpsc::channel();
    let hanging = fleet.log.hang();
    let calls = thread::spawn(move || {
        for n in 2..500 {
            node.add(n);
            node.forget(n - 1);
            assert!(node.has(n) && !node.has(n - 1));
        }
        let revoked = node.revoke(Target::All);
        assert!(revoked.pending["hanging"].contains("two seconds"));
        assert!(node.report().queued > 0 && node.report().dropped > 0);
        node.journal().reload_keys().unwrap();
        drop(node);
        done.send(()).unwrap();
    });
    let ended = is_done.recv_timeout(Duration::from_secs(30));
    drop(hanging);
    assert!(ended.is_ok() && calls.join().is_ok());
}

#[test]
fn only_a_log_with_a_follower_has_marks_and_only_the_follower_wakes_for_them() {
    for is_shared in [false, true] {
        let fleet = Fleet::with("marks", Memory::new(is_shared));
        let hub = fleet.hub();
        let _node = fleet.node_on(&hub, fleet.options());
        let mut replayer = Replayer::new(Arc::clone(&hub));
        for at_ms in [0, 1000, 2000] {
            set_moved(at_ms, 0);
            while replayer.turn() {}
        }
        set_moved(0, 0);
        let began = Instant::now();
        hub.sleep(Duration::from_millis(50));
        assert!(began.elapsed() >= Duration::from_millis(50));
        if is_shared {
            hub.sleep_until_mark(Duration::from_secs(60));
        }
        assert_eq!(hub.take_marks().len(), usize::from(is_shared));
    }
}

#[test]
fn too_many_references_cost_the_oldest() {
    const LIMIT: usize = 1024;
    let fleet = Fleet::alone("too many");
    let hub = fleet.hub();
    let node = fleet.node_on(&hub, fleet.options());
    let mut writer = Writer::new(Arc::clone(&hub), fleet.log.writer());
    let mut replayer = Replayer::new(Arc::clone(&hub));
    while replayer.turn() {}
    let shared = &node.journal().0;
    let hash = |n: u64| content_hash(&n.to_be_bytes());
    let mut references = shared.references.lock();
    for n in 0..3000 {
        set_moved(n, n as i64);
        references.learn_knowledge(hash(n), Knowledge::default(), HOUR_MS, true);
        references.learn_clock(n, (0, 1), HOUR_MS, true);
        assert!(references.knowledge.len() <= LIMIT && references.clocks.len() <= LIMIT);
    }
    for n in 3000 - LIMIT as u64 * 15 / 16..3000 {
        assert!(references.knowledge.contains_key(&hash(n)) && references.clocks.contains_key(&n));
    }
    // A replay comes to older records later.
    for n in 3000..6000 {
        references.learn_knowledge(hash(n), Knowledge::default(), HOUR_MS, false);
    }
    assert!(references.knowledge.len() <= LIMIT);
    assert!(references.knowledge.contains_key(&hash(2999)));
    assert!(!references.knowledge.contains_key(&hash(5999)));
    drop(references);
    let template = |n: u32| format!("template {n}").into_bytes();
    for n in 0..2000 {
        set_moved(3000 + u64::from(n), 3000 + i64::from(n));
        node.add_with(n, &template(n), b"");
        if n % 50 == 49 {
            writer.work(&hub.journals());
        }
    }
    set_moved(0, 0);
    assert_eq!(fleet.count(Stream::Sessions), 2000);
    let announced = shared.announced.lock();
    assert!((LIMIT / 2..=LIMIT).contains(&announced.len()));
    assert!(announced.contains_key(&content_hash(&template(1999))));
}

#[test]
fn keys_that_many_nodes_have_taken_out_of_use_hide_none_that_this_one_seals_with() {
    let fleet = Fleet::new("many retired");
    let node = fleet.node_on(&fleet.hub(), fleet.options());
    let shared = &node.journal().0;
    shared.load_keys().unwrap();
    let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    for writer in 1..1000 {
        let statement = Statement {
            retired_keys: names(&["x", "y"]),
            ..Statement::default()
        };
        shared.note_lacked_by(writer, &statement);
    }
    assert_eq!(shared.check_sealing_key(), Ok(()));
    let statement = Statement {
        retired_keys: names(&["a"]),
        ..Statement::default()
    };
    shared.note_lacked_by(1000, &statement);
    assert!(shared.check_sealing_key().is_err());
}

#[test]
fn names_of_keys_that_somebody_makes_up_take_little_memory() {
    let fleet = Fleet::alone("made up");
    let node = fleet.node_on(&fleet.hub(), fleet.options());
    let shared = &node.journal().0;
    shared.load_keys().unwrap();
    let (_, claim) = shared.claim().unwrap();
    let sealed_with = |name: String| {
        let name = name.as_bytes();
        [&claim[..42], &[name.len() as u8], name, &claim[44..]].concat()
    };
    let named = |what: &str| -> Vec<String> { (0..2000).map(|n| format!("{what}{n}")).collect() };
    shared.retire_lacked_keys(&named("retired"));
    assert_eq!(shared.retired_keys().len(), 1000);
    // All retired ones come first, and still one of the others is noticed.
    let mut records: Vec<_> = shared.retired_keys().into_iter().map(sealed_with).collect();
    records.extend(named("new").into_iter().map(sealed_with));
    let mut seen = Seen::default();
    shared.apply_control(&records, Some(&mut seen));
    assert_eq!(seen.unopened.unknown_keys.len(), 1001);
    let is_new = |name: &&Vec<u8>| name.starts_with(b"new");
    assert_eq!(seen.unopened.unknown_keys.iter().filter(is_new).count(), 1);
    assert_eq!(node.skipped(Skipped::Key), 3000);
}

/// By a clock that the test moves.
#[test]
fn a_scope_that_cannot_be_read_keeps_no_other_from_being_read() {
    let fleet = Fleet::alone("one of two");
    fleet.log.spoil("spoilt");
    let hub = fleet.hub();
    let mut options = fleet.options();
    options.scope = "spoilt".into();
    let spoilt = fleet.node_on(&hub, options);
    let node = fleet.node_on(&hub, fleet.options());
    let mut replayer = Replayer::new(Arc::clone(&hub));
    let mut turns = 0;
    for second in 0..60 {
        set_moved(second * 1000, 0);
        while replayer.turn() {
            turns += 1;
        }
        assert!(node.report().replay_ms.is_some());
        let is_own = |journal: &Arc<_>| Arc::ptr_eq(journal, &node.journal().0);
        let journal = hub.journals().into_iter().find(is_own).unwrap();
        journal.replay.lock().want_scan(Duration::ZERO);
    }
    set_moved(0, 0);
    assert!(spoilt.error().contains("cannot be read"));
    assert!(node.error().is_empty());
    // 60 for this scope, and one every two seconds for the other.
    assert!((90..105).contains(&turns), "{turns}");
}

/// By a clock that the test moves.
#[test]
fn a_sync_that_fails_is_repeated_after_a_while() {
    let fleet = Fleet::alone("unsynced");
    let hub = fleet.hub();
    let node = fleet.node_on(&hub, fleet.options());
    let mut writer = Writer::new(Arc::clone(&hub), fleet.log.writer());
    let mut replayer = Replayer::new(Arc::clone(&hub));
    writer.work(&hub.journals());
    while replayer.turn() {}
    fleet.log.switch(|log| log.refuses_syncs = true);
    node.add(1);
    let began = Instant::now();
    let mut worked = Instant::now();
    writer.work(&hub.journals());
    let mut at_ms = 0;
    for _ in 0..10 {
        let wait = writer.sync_in().expect("there is something to sync");
        assert!(
            wait + worked.elapsed() > Duration::from_millis(20),
            "{wait:?}"
        );
        at_ms += wait.as_millis() as u64 + 1;
        set_moved(at_ms, at_ms as i64);
        worked = Instant::now();
        writer.work(&hub.journals());
    }
    let waited_ms = at_ms + began.elapsed().as_millis() as u64;
    assert!(waited_ms > 8_000 && node.error().contains("syncing"));
    // That it can be written to does not mean that the log works again.
    node.add(2);
    writer.work(&hub.journals());
    assert!(node.error().contains("syncing"));
    fleet.log.switch(|log| log.refuses_syncs = false);
    at_ms += 2000;
    set_moved(at_ms, at_ms as i64);
    writer.work(&hub.journals());
    assert_eq!(writer.sync_in(), None);
    assert!(node.error().is_empty());
    set_moved(0, 0);
}

/// By a clock that the test moves.
#[test]
fn a_listener_that_opens_while_another_one_ends_reads_its_last_sessions() {
    let fleet = Fleet::alone("opened again");
    let hub = fleet.hub();
    let former = fleet.node_on(&hub, fleet.options());
    let mut writer = Writer::new(Arc::clone(&hub), fleet.log.writer());
    let mut replayer = Replayer::new(Arc::clone(&hub));
    while replayer.turn() {}
    former.add(1);
    former.journal().0.queue.close();
    // It opens, and has read the log, after the writer has looked which journals there are.
    let journals = hub.journals();
    let next = fleet.node_on(&hub, fleet.options());
    while replayer.turn() {}
    assert!(!next.has(1));
    writer.work(&journals);
    while replayer.turn() {}
    assert_eq!(hub.journals().len(), 1);
    assert!(next.has(1));
}

/// By a clock that the test moves: two minutes in which a session comes each second.
#[test]
fn trimming_that_is_not_allowed_is_tried_once_a_minute() {
    let fleet = Fleet::alone("untrimmed");
    fleet.log.switch(|switches| switches.refuses_trims = true);
    let hub = fleet.hub();
    let node = fleet.node_on(&hub, fleet.options());
    let mut writer = Writer::new(Arc::clone(&hub), fleet.log.writer());
    let mut replayer = Replayer::new(Arc::clone(&hub));
    for second in 0..120 {
        set_moved(second * 1000, 0);
        node.add(second as u32);
        writer.work(&hub.journals());
        while replayer.turn() {}
        writer.work(&hub.journals());
    }
    set_moved(0, 0);
    assert_eq!(fleet.count(Stream::Sessions), 120);
    assert!(
        (1..=4).contains(&fleet.log.trims()),
        "{}",
        fleet.log.trims()
    );
}

#[test]
fn a_defect_ends_a_thread_and_not_the_node() {
    let fleet = Fleet::new("defect");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.add(1);
    until("a session", || other.has(1));
    let journal = one.journal();
    let poison = Arc::new(crate::EncodedTemplate::new(POISON.to_vec()));
    let secret = crate::testing::secret(2);
    let knowledge = journal.knowledge();
    journal.add(&id(2), &secret, poison, knowledge, b"", b"", HOUR_MS);
    until("the end", || other.error().contains("defect"));
    other.add(3);
    other.forget(1);
    assert!(other.has(3) && !other.has(1));
}
