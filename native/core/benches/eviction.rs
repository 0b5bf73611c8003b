//! How many reconnects resume, with the store and with simpler caches under the same load.
//!
//! `cargo bench --bench eviction -- [--quick] [FOLDER]`
//!
//! Devices reconnect after log-normal pauses around a log-normal pace of their own. One that is not
//! found makes a full handshake, and its new session is stored. All caches have the same capacity, and
//! all drop expired sessions first. The clock is simulated, and all numbers are the same in each run.

mod support;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, LogNormal};
use rekindle_core::{Limits, ServerStore, SessionKey};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use support::{id, rounded, Arguments, Table};

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const LIFETIME: u64 = 24 * HOUR;

/// What devices and noise meet.
trait Cache {
    fn insert(&mut self, n: u64, verified: bool, now: u64);
    /// Whether the session may be resumed.
    fn lookup(&mut self, n: u64, now: u64) -> bool;
}

/// The store itself.
struct Rekindle(ServerStore<()>);

impl Rekindle {
    fn new(capacity: usize) -> Self {
        Rekindle(ServerStore::new(Limits {
            max_bytes: u64::MAX,
            max_sessions: capacity as u64,
            lifetime_ms: LIFETIME,
        }))
    }
}

impl Cache for Rekindle {
    fn insert(&mut self, n: u64, verified: bool, now: u64) {
        let key = id(n);
        let key = SessionKey::Id(&key);
        assert!(self.0.insert(key, &[5; 48], None, b"", verified, now));
    }

    fn lookup(&mut self, n: u64, now: u64) -> bool {
        self.0.lookup(SessionKey::Id(&id(n)), now, |_| ()).is_some()
    }
}

/// Which session a [`Simple`] cache drops.
#[derive(Clone, Copy, PartialEq)]
enum Policy {
    /// The one inserted first.
    Fifo,
    /// The one not used for longest.
    Lru,
    /// The next one under the hand that was not used since the hand last came by, without a limit to how
    /// many it passes over: the store's own policy by the book.
    Sieve,
    /// None: what is lost then is lost to the lifetime.
    Unbounded,
}

/// A cache as short as it can be written.
struct Simple {
    policy: Policy,
    capacity: usize,
    entries: HashMap<u64, Entry>,
    /// The next to go is first.
    order: BTreeMap<u64, u64>,
    /// Sessions by birth, those that are gone included.
    births: VecDeque<(u64, u64)>,
    hand: u64,
    next: u64,
}

struct Entry {
    born: u64,
    place: u64,
    visited: bool,
}

impl Simple {
    fn new(policy: Policy, capacity: usize) -> Self {
        Simple {
            policy,
            capacity,
            entries: HashMap::new(),
            order: BTreeMap::new(),
            births: VecDeque::new(),
            hand: 0,
            next: 0,
        }
    }

    fn new_place(&mut self, n: u64) -> u64 {
        self.next += 1;
        self.order.insert(self.next, n);
        self.next
    }

    fn expired(&mut self, now: u64) -> Option<u64> {
        let (born, n) = *self.births.front()?;
        is_expired(born, now).then(|| self.births.pop_front())?;
        Some(n)
    }

    fn victim(&mut self) -> u64 {
        let first = |order: &BTreeMap<u64, u64>| *order.values().next().expect("is full");
        if self.policy != Policy::Sieve {
            return first(&self.order);
        }
        loop {
            let under_hand = self.order.range(self.hand..).next();
            let n = under_hand.map_or_else(|| first(&self.order), |(_, n)| *n);
            let entry = self.entries.get_mut(&n).expect("is in the order");
            self.hand = entry.place + 1;
            if !std::mem::take(&mut entry.visited) {
                return n;
            }
        }
    }

    fn remove(&mut self, n: u64) {
        if let Some(entry) = self.entries.remove(&n) {
            self.order.remove(&entry.place);
        }
    }
}

impl Cache for Simple {
    fn insert(&mut self, n: u64, _verified: bool, now: u64) {
        while self.entries.len() >= self.capacity {
            let goes = self.expired(now).unwrap_or_else(|| self.victim());
            self.remove(goes);
        }
        let entry = Entry {
            born: now,
            place: self.new_place(n),
            visited: false,
        };
        self.entries.insert(n, entry);
        self.births.push_back((now, n));
    }

    fn lookup(&mut self, n: u64, now: u64) -> bool {
        let Some(entry) = self.entries.get_mut(&n) else {
            return false;
        };
        if is_expired(entry.born, now) {
            return false;
        }
        entry.visited = true;
        if self.policy == Policy::Lru {
            let old = entry.place;
            let new = self.new_place(n);
            self.order.remove(&old);
            self.entries.entry(n).and_modify(|entry| entry.place = new);
        }
        true
    }
}

fn is_expired(born: u64, now: u64) -> bool {
    now - born >= LIFETIME
}

/// A load on a cache.
struct Scenario {
    name: &'static str,
    /// Sessions the cache has room for, for each device.
    room: f64,
    /// One-shot sessions for each reconnect.
    noise: f64,
    /// Hours of reconnects before those that are counted, and then.
    hours: (u64, u64),
    /// How the counted time begins.
    turn: Turn,
    /// Devices show a certificate.
    verified: bool,
}

#[derive(Clone, Copy)]
enum Turn {
    /// As the time before ended.
    None,
    /// A flood of one-shot sessions, so many for each one the cache has room for, in ten minutes. Then all
    /// devices reconnect in ten minutes, in any order, and only that is counted.
    Flood(f64),
    /// All devices come anew, and all reconnect for the first time after noise as in the flood.
    Fresh(f64),
}

const STEADY: Scenario = Scenario {
    name: "",
    room: 1.2,
    noise: 0.0,
    hours: (24, 24),
    turn: Turn::None,
    verified: false,
};

fn scenarios() -> Vec<Scenario> {
    let flood = Scenario {
        hours: (24, 0),
        turn: Turn::Flood(5.0),
        ..STEADY
    };
    let fresh = Scenario {
        hours: (0, 0),
        turn: Turn::Fresh(0.5),
        ..STEADY
    };
    vec![
        Scenario {
            name: "room for 120% of the devices",
            ..STEADY
        },
        Scenario {
            name: "room for 50% of the devices",
            room: 0.5,
            ..STEADY
        },
        Scenario {
            name: "room for 120%, two one-shot sessions a reconnect",
            noise: 2.0,
            ..STEADY
        },
        Scenario {
            name: "room for 50%, two one-shot sessions a reconnect",
            room: 0.5,
            noise: 2.0,
            ..STEADY
        },
        Scenario {
            name: "flood of 5 × the room, then all reconnect",
            ..flood
        },
        Scenario {
            name: "the same, devices with certificates",
            verified: true,
            ..flood
        },
        Scenario {
            name: "never read yet, noise of 0.5 × the room, then all reconnect",
            ..fresh
        },
        Scenario {
            name: "the same, devices with certificates",
            verified: true,
            ..fresh
        },
    ]
}

struct Device {
    /// Of the logarithms of its pauses.
    pauses: LogNormal<f64>,
    session: u64,
}

/// One cache in one scenario.
struct Simulation<'a> {
    cache: &'a mut dyn Cache,
    random: StdRng,
    devices: Vec<Device>,
    /// When which device reconnects.
    agenda: BinaryHeap<Reverse<(u64, usize)>>,
    now: u64,
    sessions: u64,
    noise: f64,
    verified: bool,
    reconnects: u64,
    resumed: u64,
}

impl<'a> Simulation<'a> {
    fn new(cache: &'a mut dyn Cache, scenario: &Scenario, devices: usize) -> Self {
        let mut simulation = Simulation {
            cache,
            random: StdRng::seed_from_u64(5077),
            devices: Vec::new(),
            agenda: BinaryHeap::new(),
            now: 0,
            sessions: 0,
            noise: scenario.noise,
            verified: scenario.verified,
            reconnects: 0,
            resumed: 0,
        };
        // Half of all devices reconnect more often than every two hours.
        let paces = LogNormal::new((2.0 * HOUR as f64).ln(), 1.0).expect("is a distribution");
        for device in 0..devices {
            let pace: f64 = paces.sample(&mut simulation.random);
            let pauses = LogNormal::new(pace.ln(), 0.7).expect("is a distribution");
            simulation.devices.push(Device { pauses, session: 0 });
            simulation.plan(device);
        }
        simulation
    }

    fn run(mut self, scenario: &Scenario, room: usize) -> f64 {
        self.reconnect_for(scenario.hours.0 * HOUR);
        (self.reconnects, self.resumed) = (0, 0);
        match scenario.turn {
            Turn::None => self.reconnect_for(scenario.hours.1 * HOUR),
            Turn::Flood(size) => {
                self.flood((size * room as f64) as u64);
                self.storm();
            }
            Turn::Fresh(noise) => {
                self.storm();
                self.flood((noise * room as f64) as u64);
                (self.reconnects, self.resumed) = (0, 0);
                self.storm();
            }
        }
        self.resumed as f64 / self.reconnects as f64
    }

    fn reconnect_for(&mut self, time: u64) {
        let end = self.now + time;
        while let Some(Reverse((at, device))) = self.agenda.pop() {
            if at >= end {
                self.agenda.push(Reverse((at, device)));
                break;
            }
            self.now = at;
            self.reconnect(device);
            self.plan(device);
            self.make_noise();
        }
        self.now = end;
    }

    fn plan(&mut self, device: usize) {
        let pause = self.devices[device].pauses.sample(&mut self.random);
        self.agenda.push(Reverse((self.now + pause as u64, device)));
    }

    fn reconnect(&mut self, device: usize) {
        self.reconnects += 1;
        let session = self.devices[device].session;
        if session != 0 && self.cache.lookup(session, self.now) {
            self.resumed += 1;
        } else {
            self.devices[device].session = self.new_session(self.verified);
        }
    }

    fn new_session(&mut self, verified: bool) -> u64 {
        self.sessions += 1;
        self.cache.insert(self.sessions, verified, self.now);
        self.sessions
    }

    /// As many one-shot sessions as there are for a reconnect, on average.
    fn make_noise(&mut self) {
        let whole = self.noise.trunc();
        let more = self.random.random_bool(self.noise - whole);
        for _ in 0..whole as u64 + u64::from(more) {
            self.new_session(false);
        }
    }

    fn flood(&mut self, sessions: u64) {
        let start = self.now;
        for n in 0..sessions {
            self.now = start + n * 10 * MINUTE / sessions;
            self.new_session(false);
        }
    }

    fn storm(&mut self) {
        let start = self.now;
        let number = self.devices.len();
        let mut devices: Vec<usize> = (0..number).collect();
        devices.shuffle(&mut self.random);
        for (n, device) in devices.into_iter().enumerate() {
            self.now = start + (n as u64) * 10 * MINUTE / number as u64;
            self.reconnect(device);
        }
    }
}

fn measure(scenario: &Scenario, devices: usize, policy: Option<Policy>) -> f64 {
    let room = (scenario.room * devices as f64) as usize;
    let mut cache: Box<dyn Cache> = match policy {
        None => Box::new(Rekindle::new(room)),
        Some(Policy::Unbounded) => Box::new(Simple::new(Policy::Unbounded, usize::MAX)),
        Some(policy) => Box::new(Simple::new(policy, room)),
    };
    100.0 * Simulation::new(&mut *cache, scenario, devices).run(scenario, room)
}

fn main() {
    let arguments = Arguments::read();
    let devices = if arguments.quick { 5_000 } else { 30_000 };
    let columns = &["scenario", "rekindle", "sieve", "fifo", "lru", "unbounded"];
    let mut table = Table::new("eviction", "Reconnects that resume, in %", columns);
    for scenario in scenarios() {
        let caches = [
            None,
            Some(Policy::Sieve),
            Some(Policy::Fifo),
            Some(Policy::Lru),
            Some(Policy::Unbounded),
        ];
        let mut row = vec![scenario.name.into()];
        row.extend(caches.map(|cache| rounded(measure(&scenario, devices, cache), 1)));
        table.row(row);
    }
    table.publish(&arguments.folder);
}
