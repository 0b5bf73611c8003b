//! Several nodes on one log, step by step and in a time of their own, beside what must be true of them:
//! a revoked or expired session is never found, another one is missing only where a counter says so.

use super::*;
use crate::clock::set_moved;
use crate::testing::{id, insert, key_line, open, options, secret, store, Common, Memory, LAYOUT};
use proptest::collection::vec;
use proptest::prelude::*;
use rekindle_core::{Limits, Reference};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::HashSet;

const NODES: usize = 3;
const LIFETIMES_MS: [u64; NODES] = [100_000, 100_000, 60_000];

/// Clocks are apart by no more than what is taken for the same time.
const WALLS_MS: [i64; NODES] = [0, -900, 1000];
const APART_MS: u64 = 2_000;

/// What the real clocks and the ticks of the store may add to that.
const SLACK_MS: u64 = 3_000;

const SCOPE: &[u8] = b"model";

#[derive(Debug, Clone)]
enum Step {
    Birth {
        node: usize,
        certificate: u8,
    },
    /// More than may wait.
    Burst {
        node: usize,
    },
    Forget {
        node: usize,
        which: prop::sample::Index,
    },
    Flush {
        node: usize,
    },
    Revoke {
        node: usize,
        certificate: u8,
    },
    Lookup {
        node: usize,
        which: prop::sample::Index,
    },
    Pass {
        ms: u64,
    },
    Write {
        node: usize,
    },
    Read {
        node: usize,
    },
    Trim {
        node: usize,
    },
    Down(bool),
    Double(bool),
    HalfAppend,
    Corrupt(prop::sample::Index, u16),
    /// And back again. Its reader comes so many records late, and sees some at a time.
    Crash {
        node: usize,
        late: usize,
        at_once: usize,
    },
    Quiesce,
}

struct Born {
    node: usize,
    /// The number of the step.
    step: usize,
    at_ms: u64,
    certificate: u8,
}

enum What {
    Session(u32),
    All,
    Certificate(u8),
}

struct Revocation {
    what: What,
    at_ms: u64,
    step: usize,
    /// Who knows of it at least.
    node: usize,
    /// Not in the log yet.
    is_waiting: bool,
    /// Its node crashed before it was in the log.
    is_lost: bool,
}

struct Node {
    _reference: Reference<Common>,
    scope: Arc<Scope<Common>>,
    journal: Journal,
    writer: Writer<Common>,
    reader: Reader<Common>,
    /// When it was started.
    step: usize,
}

struct Model {
    log: Memory,
    is_down: bool,
    max_sessions: [u64; NODES],
    nodes: Vec<Node>,
    moved_ms: u64,
    steps: usize,
    born: Vec<Born>,
    revocations: Vec<Revocation>,
    /// When all was written and read.
    quiet: Vec<usize>,
    /// Sessions that a counter says are not in the log, of nodes that are no more.
    dropped: u64,
    /// And those that waited when a node crashed, or were spoilt in the log.
    lost: u64,
    /// What is known to be in a record.
    opened: RefCell<HashMap<Record, Option<usize>>>,
}

fn certificate(number: u8) -> Vec<u8> {
    match number {
        0 => Vec::new(),
        1 => vec![1; 4_000],
        number => vec![number; 20],
    }
}

fn wanted(number: u8) -> Wanted {
    let certificate = certificate(number);
    match number {
        1 => Wanted::Sha256(Sha256::digest(certificate).into()),
        _ => Wanted::Sha1(Sha1::digest(certificate).into()),
    }
}

fn keys() -> Keys {
    Keys::parse(&key_line("a")).unwrap()
}

impl Model {
    fn new(max_sessions: [u64; NODES]) -> Model {
        let mut model = Model {
            log: Memory::default(),
            is_down: false,
            max_sessions,
            nodes: Vec::new(),
            moved_ms: 1_000_000,
            born: Vec::new(),
            revocations: Vec::new(),
            quiet: Vec::new(),
            steps: 0,
            dropped: 0,
            lost: 0,
            opened: RefCell::default(),
        };
        for node in 0..NODES {
            let started = model.start(node, 0, usize::MAX);
            model.nodes.push(started);
        }
        model
    }

    /// From here on it is this node's time.
    fn be(&self, node: usize) {
        set_moved(self.moved_ms, self.moved_ms as i64 + WALLS_MS[node]);
    }

    /// The time that all agree on.
    fn now_ms(&self) -> u64 {
        set_moved(self.moved_ms, self.moved_ms as i64);
        now_ms()
    }

    fn start(&self, node: usize, late: usize, at_once: usize) -> Node {
        self.be(node);
        let limits = Limits {
            max_bytes: 100_000_000,
            max_sessions: self.max_sessions[node],
            lifetime_ms: LIFETIMES_MS[node],
        };
        let (reference, scope) = open(SCOPE, limits);
        let options = options(SCOPE, "/nonexistent".into());
        let shared = Arc::new(Shared::new(&scope, options).unwrap());
        *shared.keys.write() = Some(Arc::new(keys()));
        let mut reader = Reader::new(Arc::clone(&shared), &scope, self.log.reader(late, at_once));
        self.log.switch(|log| log.is_down = false);
        assert!(reader.retry(|log| log.mark()).is_ok() && reader.replay().is_ok());
        self.log.switch(|log| log.is_down = self.is_down);
        Node {
            _reference: reference,
            writer: Writer::new(Arc::clone(&shared), &scope, self.log.writer()),
            journal: Journal(shared),
            reader,
            scope,
            step: self.steps,
        }
    }

    fn take(&mut self, step: &Step) {
        self.steps += 1;
        match *step {
            Step::Birth { node, certificate } => self.birth(node, certificate),
            Step::Burst { node } => (0..8).for_each(|_| self.birth(node, 1)),
            Step::Forget { node, which } => {
                if !self.born.is_empty() {
                    let n = which.index(self.born.len()) as u32;
                    self.be(node);
                    self.nodes[node].journal.forget(&id(n), LIFETIMES_MS[node]);
                    self.store(node).delete(SessionKey::Id(&id(n)));
                    self.revoked(node, What::Session(n));
                }
            }
            Step::Flush { node } => {
                self.be(node);
                self.nodes[node].journal.flush(LIFETIMES_MS[node]);
                self.nodes[node].scope.clear();
                self.revoked(node, What::All);
            }
            Step::Revoke { node, certificate } => {
                self.be(node);
                let wanted = [wanted(certificate)];
                self.nodes[node].journal.revoke(&wanted, LIFETIMES_MS[node]);
                let selectors: Vec<_> = wanted.iter().map(Wanted::selector).collect();
                self.store(node).revoke(&selectors);
                self.revoked(node, What::Certificate(certificate));
            }
            Step::Lookup { node, which } => {
                if !self.born.is_empty() {
                    let key = id(which.index(self.born.len()) as u32);
                    self.be(node);
                    self.store(node)
                        .lookup(SessionKey::Id(&key), now_ms(), |_| ());
                }
            }
            Step::Pass { ms } => self.moved_ms += ms,
            Step::Write { node } => _ = self.write(node),
            Step::Read { node } => _ = self.read(node),
            Step::Trim { node } => {
                self.nodes[node].writer.trimmed = None;
                if !self.is_down {
                    self.be(node);
                    self.nodes[node].writer.tidy();
                }
            }
            Step::Down(is_down) => {
                self.is_down = is_down;
                self.log.switch(|log| log.is_down = is_down);
            }
            Step::Double(is_doubling) => self.log.switch(|log| log.is_doubling = is_doubling),
            Step::HalfAppend => self.log.switch(|log| log.half_appends = 1),
            Step::Corrupt(which, bit) => self.spoil(which, bit),
            Step::Crash {
                node,
                late,
                at_once,
            } => self.crash(node, late, at_once),
            Step::Quiesce => self.quiesce(),
        }
        self.check_known();
    }

    fn store(&self, node: usize) -> &ServerStore<Common> {
        store(&self.nodes[node].scope)
    }

    fn birth(&mut self, node: usize, number: u8) {
        let at_ms = self.now_ms();
        self.be(node);
        let store = self.store(node);
        let n = self.born.len() as u32;
        let certificate = certificate(number);
        let template = Common::intern(store, &[b't', number]).unwrap();
        let content = Arc::clone(template.content());
        if insert(store, n, template, &certificate) {
            let lifetime_ms = LIFETIMES_MS[node];
            let journal = &self.nodes[node].journal;
            journal.born(&id(n), &secret(n), content, &certificate, b"", lifetime_ms);
        }
        self.born.push(Born {
            node,
            step: self.steps,
            at_ms,
            certificate: number,
        });
    }

    fn revoked(&mut self, node: usize, what: What) {
        self.revocations.push(Revocation {
            what,
            at_ms: self.now_ms(),
            step: self.steps,
            node,
            is_waiting: true,
            is_lost: false,
        });
    }

    /// Tells if something was written.
    fn write(&mut self, node: usize) -> bool {
        if self.is_down || self.nodes[node].journal.report().queued == 0 {
            return false;
        }
        self.be(node);
        assert!(self.nodes[node].writer.turn());
        for revocation in &mut self.revocations {
            revocation.is_waiting &= revocation.node != node;
        }
        true
    }

    /// Tells if something was read.
    fn read(&mut self, node: usize) -> bool {
        if self.is_down {
            return false;
        }
        self.be(node);
        let node = &mut self.nodes[node];
        let before = node.journal.report().read;
        assert!(node.reader.follow(Duration::ZERO).is_ok());
        node.journal.report().read > before
    }

    fn spoil(&mut self, which: prop::sample::Index, bit: u16) {
        let births = self.log.records();
        let births = births.iter().filter(|(lane, _)| *lane == Lane::Births);
        let births: Vec<Record> = births.map(|(_, record)| record.clone()).collect();
        if births.is_empty() {
            return;
        }
        let chosen = &births[which.index(births.len())];
        self.lost += 1;
        self.log.corrupt(|record| {
            if record == chosen {
                let bit = usize::from(bit) % (8 * record.len());
                record[bit / 8] ^= 1 << (bit % 8);
            }
        });
    }

    fn crash(&mut self, node: usize, late: usize, at_once: usize) {
        let report = self.nodes[node].journal.report();
        self.dropped += report.dropped;
        self.lost += report.queued;
        for revocation in &mut self.revocations {
            if revocation.node == node {
                revocation.is_lost |= revocation.is_waiting;
                revocation.node = NODES;
            }
        }
        self.nodes[node] = self.start(node, late, at_once);
    }

    /// Until all is written and read.
    fn quiesce(&mut self) {
        self.take_down(false);
        let mut is_busy = true;
        while is_busy {
            is_busy = false;
            for node in 0..NODES {
                while self.write(node) {
                    is_busy = true;
                }
            }
            for node in 0..NODES {
                while self.read(node) {
                    is_busy = true;
                }
            }
        }
        self.check_all();
        self.quiet.push(self.steps);
    }

    fn take_down(&mut self, is_down: bool) {
        self.is_down = is_down;
        self.log.switch(|log| log.is_down = is_down);
    }

    fn has(&self, node: usize, n: usize) -> bool {
        self.be(node);
        let key = id(n as u32);
        let is_held = self
            .store(node)
            .peek(SessionKey::Id(&key), now_ms(), |session| {
                assert_eq!(*session.secret, secret(n as u32));
                let der = session
                    .certificate
                    .map_or(Vec::new(), |der| der.der().into_owned());
                assert_eq!(der, certificate(self.born[n].certificate));
            });
        is_held.is_some()
    }

    fn concerns(&self, revocation: &Revocation, n: usize) -> bool {
        match revocation.what {
            What::Session(of) => of as usize == n,
            What::All => true,
            What::Certificate(number) => self.born[n].certificate == number,
        }
    }

    /// Whoever revokes does not find the session from then on, whatever happens to the log.
    fn check_known(&self) {
        for revocation in &self.revocations {
            for (n, born) in self.born.iter().enumerate() {
                let is_known = revocation.node < NODES && born.step < revocation.step;
                if is_known && self.concerns(revocation, n) {
                    assert!(!self.has(revocation.node, n), "{n} on {}", revocation.node);
                }
            }
        }
    }

    /// Whether a session must not be found on a node any more, and whether it may be missing there.
    fn is_over(&self, node: usize, n: usize) -> (bool, bool) {
        let born = &self.born[n];
        let (mut must, mut may) = (false, false);
        for revocation in &self.revocations {
            if !self.concerns(revocation, n) {
                continue;
            }
            if born.step < revocation.step {
                must |= !revocation.is_lost;
                may = true;
            } else {
                // It is for all that a node has when it comes to it, and for what was made a little later.
                let since = match self.is_own(node, n) {
                    true => revocation.step.max(self.nodes[node].step),
                    false => revocation.step,
                };
                let is_settled = self.quiet.iter().any(|at| (since..born.step).contains(at));
                let after_ms = born.at_ms - revocation.at_ms;
                may |= !is_settled || after_ms <= 2000 + APART_MS + SLACK_MS;
            }
        }
        (must, may)
    }

    /// Whether it was made there, and not before a crash.
    fn is_own(&self, node: usize, n: usize) -> bool {
        let born = &self.born[n];
        born.node == node && born.step > self.nodes[node].step
    }

    fn check_all(&self) {
        let now_ms = self.now_ms();
        let in_log = self.in_log();
        let is_away = |n: &usize| {
            let born = &self.born[*n];
            now_ms - born.at_ms + APART_MS + SLACK_MS < LIFETIMES_MS[born.node]
                && !in_log.contains(n)
        };
        let away = (0..self.born.len()).filter(is_away).count() as u64;
        let dropped = self.nodes.iter().map(|node| node.journal.report().dropped);
        let dropped = self.dropped + dropped.sum::<u64>();
        assert!(away <= dropped + self.lost, "{away} are not in the log");
        for (node, limit_ms) in LIFETIMES_MS.into_iter().enumerate() {
            let mut missing = Vec::new();
            for (n, born) in self.born.iter().enumerate() {
                let lifetime_ms = limit_ms.min(LIFETIMES_MS[born.node]);
                let age_ms = now_ms - born.at_ms;
                let (must, may) = self.is_over(node, n);
                let has = self.has(node, n);
                let apart_ms = APART_MS + SLACK_MS;
                assert!(!has || !must, "{n} is revoked and found on {node}");
                let is_expired = age_ms > lifetime_ms + apart_ms;
                assert!(!has || !is_expired, "{n} is expired and found on {node}");
                let is_there = self.is_own(node, n) || in_log.contains(&n);
                if is_there && !may && age_ms + apart_ms < lifetime_ms && !has {
                    missing.push(n);
                }
            }
            let report = self.nodes[node].journal.report();
            let skipped = |reason: Skipped| report.skipped[reason.index()];
            assert_eq!(skipped(Skipped::Template), 0);
            let evicted = self.store(node).counters().read().evicted;
            let counted = evicted + skipped(Skipped::Full);
            assert!(
                missing.len() as u64 <= counted,
                "{missing:?} are missing on {node}, of which {counted} are counted"
            );
            assert!(self.store(node).sessions() <= self.max_sessions[node]);
        }
    }

    /// The sessions that can be read from the log.
    fn in_log(&self) -> HashSet<usize> {
        let by_id: HashMap<[u8; 32], usize> =
            (0..self.born.len()).map(|n| (id(n as u32), n)).collect();
        let context = Context::new(SCOPE, LAYOUT);
        let (keys, wall_ms) = (keys(), wall_ms());
        let open = |record: &Record| {
            let opened = super::open(&keys, &context, record, wall_ms).ok()?;
            match opened.body() {
                Ok(Body::Birth { id, .. }) => by_id.get(id).copied(),
                _ => None,
            }
        };
        let mut opened = self.opened.borrow_mut();
        let records = self.log.records().into_iter();
        let sessions = records.filter_map(|(_, record)| match opened.get(&record) {
            Some(n) => *n,
            None => *opened.entry(record.clone()).or_insert(open(&record)),
        });
        sessions.collect()
    }
}

#[test]
fn templates_are_in_the_log_as_long_as_sessions_refer_to_them() {
    let mut model = Model::new([u64::MAX; NODES]);
    let birth = Step::Birth {
        node: 0,
        certificate: 0,
    };
    let longest = LIFETIMES_MS.into_iter().max().unwrap();
    for _ in 0..40 {
        model.take(&birth);
        model.take(&Step::Quiesce);
        model.take(&Step::Pass { ms: longest / 3 });
        (0..NODES).for_each(|node| model.take(&Step::Trim { node }));
        super::tests::put_events_aside();
    }
    let crash = Step::Crash {
        node: 1,
        late: 0,
        at_once: 1,
    };
    model.take(&crash);
    model.take(&Step::Quiesce);
    assert!(model.has(1, 39) && !model.has(1, 0));
    // Each time there was a session and its template.
    assert!(model.log.records().len() < 60);
}

fn step() -> impl Strategy<Value = Step> {
    let node = || 0..NODES;
    let which = any::<prop::sample::Index>;
    prop_oneof![
        30 => (node(), 0..4u8).prop_map(|(node, certificate)| Step::Birth { node, certificate }),
        1 => node().prop_map(|node| Step::Burst { node }),
        6 => (node(), which()).prop_map(|(node, which)| Step::Forget { node, which }),
        2 => node().prop_map(|node| Step::Flush { node }),
        3 => (node(), 1..4u8).prop_map(|(node, certificate)| Step::Revoke { node, certificate }),
        4 => (node(), which()).prop_map(|(node, which)| Step::Lookup { node, which }),
        12 => (1..20_000u64).prop_map(|ms| Step::Pass { ms }),
        2 => (60_000..900_000u64).prop_map(|ms| Step::Pass { ms }),
        12 => node().prop_map(|node| Step::Write { node }),
        12 => node().prop_map(|node| Step::Read { node }),
        3 => node().prop_map(|node| Step::Trim { node }),
        4 => any::<bool>().prop_map(Step::Down),
        2 => any::<bool>().prop_map(Step::Double),
        2 => Just(Step::HalfAppend),
        1 => (which(), any::<u16>()).prop_map(|(which, bit)| Step::Corrupt(which, bit)),
        6 => (node(), 0..30usize, 1..20usize)
            .prop_map(|(node, late, at_once)| Step::Crash { node, late, at_once }),
        12 => Just(Step::Quiesce),
    ]
}

/// Few on some nodes, any number on others.
fn bounds() -> impl Strategy<Value = [u64; NODES]> {
    [0; NODES].map(|_| prop_oneof![1 => 1..12u64, 2 => Just(u64::MAX)])
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_session_is_found_where_it_must_be_and_nowhere_else(
        bounds in bounds(),
        steps in vec(step(), 1..100),
    ) {
        let mut model = Model::new(bounds);
        for step in &steps {
            model.take(step);
            // Nobody asks for these, and there is room for few.
            super::tests::put_events_aside();
        }
        model.quiesce();
    }
}
