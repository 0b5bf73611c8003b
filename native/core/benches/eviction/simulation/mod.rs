//! Simulates devices that come back, and strangers, whose results do not count, with one cache.
//!
//! A device connects after log-normal pauses around a pace of its own; half of all paces are below two
//! hours. A device whose session is not found makes a full handshake, and its new session is stored. Only
//! the connections of devices are counted. One seed gives one sequence of events.

mod script;
pub mod store;
pub mod workloads;

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp, LogNormal};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// Simulated time.
pub type Micros = u64;

const SECOND: Micros = 1_000_000;
const MINUTE: Micros = 60 * SECOND;
const HOUR: Micros = 60 * MINUTE;
const DAY: Micros = 24 * HOUR;

/// How long a session may be resumed.
pub const LIFETIME_MS: u64 = 24 * 60 * 60 * 1000;

/// The cache that clients meet. Sessions are numbered in the order in which they are made.
pub trait Cache {
    /// Stores a new session. `certificate` is the number of its client's certificate.
    fn insert(&mut self, session: u64, certificate: Option<u64>, now_ms: u64);

    /// Whether the session resumes.
    fn lookup(&mut self, session: u64, now_ms: u64) -> bool;
}

/// The behaviour of the devices of a workload, beside coming back.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// How likely a device is to have lost its session when it connects.
    pub loss: f64,
    /// Sessions of strangers that are made at each connection of a device.
    pub strangers: u32,
    /// No device connects between 22 and 6 o'clock.
    pub sleep: bool,
    /// The share of the devices that have a certificate, each its own.
    pub certified: f64,
}

/// Clients whose results do not count. Each makes one session.
#[derive(Debug, Clone, Copy)]
pub struct Strangers {
    /// How often a stranger resumes its session.
    pub resumptions: u32,
    /// The time before each of these.
    pub gap: Micros,
    /// After how many further sessions of strangers each session is asked for once more, for each session
    /// that there is room for.
    pub asked_again_after: Option<f64>,
    /// The certificate that all of them show.
    pub certificate: Option<u64>,
}

struct Device {
    pauses: LogNormal<f64>,
    session: Option<u64>,
    certificate: Option<u64>,
}

/// Strangers who arrive at random with a constant rate.
struct Arrivals {
    strangers: Strangers,
    gaps: Exp<f64>,
    /// Not rounded, so that the rate is right with many arrivals in a microsecond.
    next_at: f64,
    until: Micros,
    /// Sessions to be asked for once more, the oldest first.
    earlier: VecDeque<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A device connects.
    Device(usize),
    /// A stranger arrives.
    Stranger { arrivals: usize },
    /// A stranger resumes its session, and does so `left` times in all.
    Resumption {
        session: u64,
        left: u32,
        gap: Micros,
    },
}

/// Connections of devices.
#[derive(Clone, Copy, Default)]
struct Tally {
    all: u64,
    resumed: u64,
}

/// One cache and its clients.
pub struct Simulation<'a> {
    cache: &'a mut dyn Cache,
    random: StdRng,
    /// How many sessions the cache has room for.
    room: usize,
    devices: Vec<Device>,
    habits: Habits,
    arrivals: Vec<Arrivals>,
    agenda: BinaryHeap<Reverse<(Micros, Event)>>,
    now: Micros,
    sessions: u64,
    /// The results of devices without and with certificates.
    tallies: [Tally; 2],
}

impl<'a> Simulation<'a> {
    /// `fill` is the number of devices for each session that there is room for.
    pub fn new(
        cache: &'a mut dyn Cache,
        room: usize,
        fill: f64,
        habits: Habits,
        seed: u64,
    ) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let paces = log_normal(2.0 * HOUR as f64, 1.0);
        let devices = (0..(fill * room as f64) as u64).map(|number| Device {
            pauses: log_normal(paces.sample(&mut random), 0.7),
            session: None,
            certificate: random.random_bool(habits.certified).then_some(number),
        });
        Simulation {
            devices: devices.collect(),
            cache,
            random,
            room,
            habits,
            arrivals: Vec::new(),
            agenda: BinaryHeap::new(),
            now: 0,
            sessions: 0,
            tallies: Default::default(),
        }
    }

    /// Lets the devices connect for the first time within a day, and then at their own pace.
    pub fn start_devices(&mut self) {
        for device in 0..self.devices.len() {
            let at = self.now + self.random.random_range(0..DAY);
            self.plan(at, Event::Device(device));
        }
    }

    /// Lets all devices be silent from now on.
    pub fn silence_devices(&mut self) {
        self.agenda
            .retain(|Reverse((_, event))| !matches!(event, Event::Device(_)));
    }

    /// Lets strangers arrive for some time, `rooms` for each session that there is room for.
    pub fn start_strangers(&mut self, strangers: Strangers, rooms: f64, time: Micros) {
        let rate = rooms * self.room as f64 / time as f64;
        self.arrivals.push(Arrivals {
            strangers,
            gaps: Exp::new(rate).expect("the rate is positive"),
            next_at: self.now as f64,
            until: self.now + time,
            earlier: VecDeque::new(),
        });
        self.plan_stranger(self.arrivals.len() - 1);
    }

    /// Takes their sessions from this share of the devices.
    pub fn lose_sessions(&mut self, share: f64) {
        for device in &mut self.devices {
            if self.random.random_bool(share) {
                device.session = None;
            }
        }
    }

    /// Lets time pass, and returns the per cent of the devices' connections in it that resumed.
    pub fn run(&mut self, time: Micros) -> f64 {
        self.tallies = Default::default();
        let end = self.now + time;
        while let Some(Reverse((at, event))) = self.agenda.pop() {
            if at >= end {
                self.plan(at, event);
                break;
            }
            self.now = self.now.max(at);
            self.happen(event);
        }
        self.now = end;
        self.percent()
    }

    /// Lets all devices connect once in this time, in any order, and nothing else happen. Returns the per
    /// cent that resumed.
    pub fn round(&mut self, time: Micros) -> f64 {
        self.tallies = Default::default();
        let start = self.now;
        let number = self.devices.len() as u64;
        let mut devices: Vec<usize> = (0..self.devices.len()).collect();
        devices.shuffle(&mut self.random);
        for (place, device) in (0..).zip(devices) {
            self.now = start + place * time / number;
            self.connect(device);
        }
        self.now = start + time;
        self.percent()
    }

    /// The per cent of the last run or round, for devices without and with certificates.
    pub fn percent_by_kind(&self) -> [f64; 2] {
        self.tallies.map(Tally::percent)
    }

    fn percent(&self) -> f64 {
        let [anonymous, certified] = self.tallies;
        Tally {
            all: anonymous.all + certified.all,
            resumed: anonymous.resumed + certified.resumed,
        }
        .percent()
    }

    fn plan(&mut self, at: Micros, event: Event) {
        self.agenda.push(Reverse((at, event)));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Device(device) => {
                self.connect(device);
                self.plan_device(device);
                for _ in 0..self.habits.strangers {
                    self.new_session(None);
                }
            }
            Event::Stranger { arrivals } => {
                if self.now < self.arrivals[arrivals].until {
                    self.welcome(arrivals);
                    self.plan_stranger(arrivals);
                }
            }
            Event::Resumption { session, left, gap } => {
                self.lookup(session);
                self.plan_resumption(session, left - 1, gap);
            }
        }
    }

    fn connect(&mut self, device: usize) {
        if self.random.random_bool(self.habits.loss) {
            self.devices[device].session = None;
        }
        let Device {
            session,
            certificate,
            ..
        } = self.devices[device];
        let resumes = session.is_some_and(|session| self.lookup(session));
        if !resumes {
            self.devices[device].session = Some(self.new_session(certificate));
        }
        let tally = &mut self.tallies[usize::from(certificate.is_some())];
        tally.all += 1;
        tally.resumed += u64::from(resumes);
    }

    fn plan_device(&mut self, device: usize) {
        // Longer than a session lives, so that the longest pauses do not matter.
        const LONGEST: f64 = 100_000.0 * SECOND as f64;
        let pause = self.devices[device].pauses.sample(&mut self.random);
        let mut at = self.now + pause.min(LONGEST) as u64;
        if self.habits.sleep {
            at = self.after_the_night(at);
        }
        self.plan(at, Event::Device(device));
    }

    /// Moves events of the night to the first hour of the morning.
    fn after_the_night(&mut self, at: Micros) -> Micros {
        let midnight = at - at % DAY;
        let morning = match at - midnight {
            time if time < 6 * HOUR => midnight + 6 * HOUR,
            time if time >= 22 * HOUR => midnight + 30 * HOUR,
            _ => return at,
        };
        morning + self.random.random_range(0..HOUR)
    }

    fn plan_stranger(&mut self, arrivals: usize) {
        let this = &mut self.arrivals[arrivals];
        this.next_at += this.gaps.sample(&mut self.random);
        let at = this.next_at as u64;
        self.plan(at, Event::Stranger { arrivals });
    }

    fn welcome(&mut self, arrivals: usize) {
        let strangers = self.arrivals[arrivals].strangers;
        let session = self.new_session(strangers.certificate);
        self.plan_resumption(session, strangers.resumptions, strangers.gap);
        if let Some(rooms) = strangers.asked_again_after {
            let earlier = &mut self.arrivals[arrivals].earlier;
            earlier.push_back(session);
            if earlier.len() as f64 > rooms * self.room as f64 {
                let oldest = earlier.pop_front().expect("is not empty");
                self.lookup(oldest);
            }
        }
    }

    fn plan_resumption(&mut self, session: u64, left: u32, gap: Micros) {
        if left > 0 {
            self.plan(self.now + gap, Event::Resumption { session, left, gap });
        }
    }

    fn new_session(&mut self, certificate: Option<u64>) -> u64 {
        let session = self.sessions;
        self.sessions += 1;
        self.cache.insert(session, certificate, self.now_ms());
        session
    }

    fn lookup(&mut self, session: u64) -> bool {
        self.cache.lookup(session, self.now_ms())
    }

    fn now_ms(&self) -> u64 {
        self.now / 1000
    }
}

impl Tally {
    fn percent(self) -> f64 {
        100.0 * self.resumed as f64 / self.all as f64
    }
}

fn log_normal(median: f64, sigma: f64) -> LogNormal<f64> {
    LogNormal::new(median.ln(), sigma).expect("is a distribution")
}
