//! The workloads, and the store's target in each.
//!
//! The letters and numbers name families: W1 steady devices, W2 noise, W3 noise that resumes, W4 a flood while
//! devices are silent, W5 a flood that resumes, W6 all devices lose their sessions, W7 half of them do, W8
//! some do all the time, W9 strangers ask for evicted ids, W10 all devices at once, W11 many strangers, W12
//! nights. P is of pure order, 20 µs for each call, and C of certificates.

use super::script::Script;
use super::{Cache, Habits, Micros, Simulation, Strangers, HOUR, MINUTE, SECOND};

/// A workload for a cache of any size.
pub struct Workload {
    /// Its name in tables.
    pub name: &'static str,
    /// The events, and the meaning of the result.
    pub about: &'static str,
    /// Devices for each session that there is room for.
    fill: f64,
    habits: Habits,
    script: Script,
    verdict: Verdict,
    /// The store's target: the least result.
    pub target: Option<f64>,
    /// Whether it is part of a short run.
    pub quick: bool,
}

/// Which of several results is the workload's result.
#[derive(Clone, Copy, PartialEq)]
enum Verdict {
    First,
    Lowest,
    Mean,
    /// The lowest one from the third round on.
    Recovered,
}

/// The results of a cache.
pub struct Outcome {
    /// The result that is compared with the target.
    pub result: f64,
    /// The mean of the rounds, if there are any.
    pub mean: Option<f64>,
    /// Each round.
    pub rounds: Vec<f64>,
}

impl Workload {
    /// How the target applies to the rounds.
    pub fn target_of_rounds(&self) -> Option<String> {
        let target = self.target?;
        match self.verdict {
            Verdict::First => None,
            Verdict::Lowest => Some(format!("{target} in each")),
            Verdict::Mean => Some(format!("{target} in the mean")),
            Verdict::Recovered => Some(format!("{target} from the third on")),
        }
    }

    /// Runs the workload on an empty cache with room for this many sessions.
    pub fn run(&self, cache: &mut dyn Cache, room: usize, seed: u64) -> Outcome {
        let mut simulation = Simulation::new(cache, room, self.fill, self.habits, seed);
        let rounds = self.script.play(&mut simulation);
        let mean = rounds.iter().sum::<f64>() / rounds.len() as f64;
        Outcome {
            result: match self.verdict {
                Verdict::First => rounds[0],
                Verdict::Lowest => lowest(&rounds),
                Verdict::Mean => mean,
                Verdict::Recovered => lowest(&rounds[2..]),
            },
            mean: matches!(self.verdict, Verdict::Mean | Verdict::Recovered).then_some(mean),
            rounds,
        }
    }
}

/// All workloads.
pub fn all() -> Vec<Workload> {
    let mut workloads = steady_devices();
    workloads.extend(floods());
    workloads.extend(evicted_ids());
    workloads.extend(lost_sessions());
    workloads.extend(bursts_and_nights());
    workloads.extend(pure_order());
    workloads.extend(certificates());
    workloads
}

/// Devices that only come back.
const ORDINARY: Habits = Habits {
    loss: 0.0,
    strangers: 0,
    sleep: false,
    certified: 0.0,
};

/// Strangers who never come back.
const ONCE: Strangers = Strangers {
    resumptions: 0,
    gap: 0,
    asked_again_after: None,
    certificate: None,
};

/// Strangers each of whose sessions is asked for again when it is likely to have been evicted.
const REVISITING: Strangers = Strangers {
    asked_again_after: Some(0.5),
    ..ONCE
};

/// Strangers who resume their session this often, after this pause each time.
fn resuming(resumptions: u32, gap: Micros) -> Strangers {
    Strangers {
        resumptions,
        gap,
        ..ONCE
    }
}

/// Devices without strangers.
const NOBODY: Script = noise(ONCE, 0.0);

const fn noise(strangers: Strangers, rooms: f64) -> Script {
    Script::Steady { strangers, rooms }
}

fn attack(strangers: Strangers, rooms: f64) -> Script {
    Script::Attack {
        strangers,
        rooms,
        time: 2 * HOUR,
    }
}

fn storm(strangers: Strangers, time: Micros) -> Script {
    Script::Storm {
        strangers,
        rooms: 5.0,
        time,
    }
}

fn workload(name: &'static str, fill: f64, script: Script, about: &'static str) -> Workload {
    Workload {
        name,
        about,
        fill,
        habits: ORDINARY,
        script,
        verdict: Verdict::First,
        target: None,
        quick: false,
    }
}

impl Workload {
    fn target(self, target: f64) -> Self {
        Workload {
            target: Some(target),
            ..self
        }
    }

    fn habits(self, habits: Habits) -> Self {
        Workload { habits, ..self }
    }

    fn verdict(self, verdict: Verdict) -> Self {
        Workload { verdict, ..self }
    }

    fn quick(self) -> Self {
        Workload {
            quick: true,
            ..self
        }
    }
}

fn steady_devices() -> Vec<Workload> {
    vec![
        workload("W1 .5", 0.5, NOBODY, "devices for half of the room"),
        workload("W1 .9", 0.9, NOBODY, "devices for 90 % of the room"),
        workload("W1 1.2", 1.2, NOBODY, "devices for 120 % of the room"),
        workload("W1 2", 2.0, NOBODY, "devices for twice the room"),
        workload(
            "W8 1%",
            0.9,
            NOBODY,
            "1 % of the devices lose their session each day",
        )
        .habits(losing(0.01 / 15.0)),
        workload(
            "W8 20%",
            0.9,
            NOBODY,
            "20 % of the devices lose their session each day",
        )
        .habits(losing(0.2 / 15.0)),
        workload(
            "W8slow",
            1.1,
            NOBODY,
            "devices for 110 % of the room, 5 % of them without session",
        )
        .habits(losing(0.05)),
        workload(
            "W11 .5",
            0.5,
            NOBODY,
            "devices for half of the room, four strangers at each connection",
        )
        .habits(FOUR_STRANGERS),
        workload(
            "W11 .9",
            0.9,
            NOBODY,
            "devices for 90 %, four strangers at each connection",
        )
        .habits(FOUR_STRANGERS),
    ]
}

/// Devices that have lost their session so often when they connect. They connect some 15 times a day.
fn losing(loss: f64) -> Habits {
    Habits { loss, ..ORDINARY }
}

const FOUR_STRANGERS: Habits = Habits {
    strangers: 4,
    ..ORDINARY
};

fn floods() -> Vec<Workload> {
    vec![
        workload(
            "W2 1x",
            0.9,
            noise(ONCE, 1.0),
            "noise of the room's size every two hours",
        )
        .target(79.0)
        .quick(),
        workload(
            "W2 5x",
            0.9,
            noise(ONCE, 5.0),
            "noise of five times the room every two hours",
        ),
        workload(
            "W3 r1",
            0.9,
            noise(resuming(1, SECOND), 1.0),
            "noise of the room's size, resumed once after a second",
        )
        .target(79.0)
        .quick(),
        workload(
            "W3 r2",
            0.9,
            noise(resuming(2, SECOND), 1.0),
            "noise of the room's size, resumed twice within seconds",
        ),
        workload(
            "W3 r5",
            0.9,
            noise(resuming(5, SECOND), 1.0),
            "noise of the room's size, resumed 5 times within seconds",
        )
        .target(79.0),
        workload(
            "W3slow",
            0.9,
            noise(resuming(2, 10 * MINUTE), 1.0),
            "noise of the room's size, resumed twice, ten minutes apart",
        ),
        workload(
            "W4",
            0.83,
            storm(ONCE, 10 * MINUTE),
            "all devices after a flood of five times the room",
        )
        .target(70.0)
        .quick(),
        workload(
            "W4r1",
            0.83,
            storm(resuming(1, SECOND), 10 * MINUTE),
            "all devices after a flood of five times the room, resumed once",
        )
        .target(70.0),
        workload(
            "W5 r1",
            0.9,
            attack(resuming(1, SECOND), 5.0),
            "during a flood of five times the room, resumed once",
        )
        .target(83.0)
        .quick(),
        workload(
            "W5 r2",
            0.9,
            attack(resuming(2, SECOND), 5.0),
            "during a flood of five times the room, resumed twice",
        )
        .target(83.0),
        workload(
            "W5slow",
            0.9,
            attack(resuming(4, 5 * MINUTE), 5.0),
            "during a flood of five times the room, resumed 4 times in 20 minutes",
        ),
    ]
}

fn evicted_ids() -> Vec<Workload> {
    let resumed_twice = Strangers {
        resumptions: 2,
        gap: SECOND,
        ..REVISITING
    };
    vec![
        workload(
            "W9 1x",
            0.9,
            attack(REVISITING, 1.0),
            "during a flood of the room's size that asks for evicted ids",
        )
        .target(86.0),
        workload(
            "W9 5x",
            0.9,
            attack(REVISITING, 5.0),
            "during a flood of five times the room that asks for evicted ids",
        )
        .target(81.0)
        .quick(),
        workload(
            "W9 20x",
            0.9,
            attack(REVISITING, 20.0),
            "during a flood of twenty times the room that asks for evicted ids",
        ),
        workload(
            "W9 24h",
            0.9,
            noise(REVISITING, 1.0),
            "noise of the room's size that asks for evicted ids",
        ),
        workload(
            "W9 storm",
            0.83,
            storm(REVISITING, 10 * MINUTE),
            "all devices after a flood like W9 5x in ten minutes",
        ),
        workload(
            "W9 r2",
            0.9,
            attack(resumed_twice, 5.0),
            "during a flood of five times the room, resumed twice, evicted ids",
        ),
        workload(
            "W9 lull",
            0.83,
            storm(REVISITING, 6 * HOUR),
            "all devices after the flood of W9 storm in six silent hours",
        ),
    ]
}

fn lost_sessions() -> Vec<Workload> {
    let lost = |name, fill, share, round, about| {
        workload(name, fill, Script::Loss { share, round }, about)
            .verdict(Verdict::Recovered)
            .target(95.0)
    };
    vec![
        lost(
            "W6 .5",
            0.5,
            1.0,
            HOUR,
            "all lose their session, 50 % full: the lowest round from the third on",
        ),
        lost(
            "W6 .6",
            0.6,
            1.0,
            HOUR,
            "all lose their session, 60 % full: the lowest round from the third on",
        ),
        lost(
            "W6 .88",
            0.88,
            1.0,
            HOUR,
            "all lose their session, 88 % full: the lowest round from the third on",
        )
        .quick(),
        lost(
            "W6 1",
            1.0,
            1.0,
            HOUR,
            "all lose their session, 100 % full: the lowest round from the third on",
        ),
        lost(
            "W6fast .6",
            0.6,
            1.0,
            2 * SECOND,
            "the same as W6 .6 in rounds of two seconds",
        ),
        lost(
            "W6fast .88",
            0.88,
            1.0,
            2 * SECOND,
            "the same as W6 .88 in rounds of two seconds",
        ),
        workload(
            "W6nat .88",
            0.88,
            Script::LossAtOwnPace,
            "all lose their session, 88 % full, own pace: mean of ten hours",
        )
        .verdict(Verdict::Mean),
        lost(
            "W7 .88",
            0.88,
            0.5,
            HOUR,
            "half lose their session, 88 % full: mean of ten rounds",
        )
        .verdict(Verdict::Mean)
        .target(75.0)
        .quick(),
    ]
}

fn bursts_and_nights() -> Vec<Workload> {
    let sleep = Habits {
        sleep: true,
        ..ORDINARY
    };
    vec![
        workload("W10 .9", 0.9, Script::Bursts, "all devices within a minute"),
        workload(
            "W10 1.2",
            1.2,
            Script::Bursts,
            "all devices within a minute, devices for 120 % of the room",
        ),
        workload("W12", 0.9, NOBODY, "devices that sleep at night").habits(sleep),
        workload(
            "W12 n1",
            0.9,
            noise(ONCE, 1.0),
            "devices that sleep at night, noise of the room's size every two hours",
        )
        .habits(sleep),
        workload(
            "W12 rev1",
            0.9,
            noise(REVISITING, 1.0),
            "devices that sleep at night, noise that asks for evicted ids",
        )
        .habits(sleep),
    ]
}

fn pure_order() -> Vec<Workload> {
    const GAP: Micros = 20;
    let asks_again = Strangers {
        asked_again_after: Some(0.375),
        ..ONCE
    };
    let order = |name, strangers, rooms, about| {
        workload(name, 0.76, Script::Order { strangers, rooms }, about)
    };
    vec![
        order(
            "P n1",
            resuming(1, GAP),
            1.0,
            "all devices after noise of the room's size, resumed once",
        )
        .target(95.0)
        .quick(),
        order(
            "P n2",
            resuming(2, GAP),
            1.0,
            "all devices after noise of the room's size, resumed twice",
        ),
        order(
            "P n5",
            resuming(5, GAP),
            1.0,
            "all devices after noise of the room's size, resumed 5 times",
        ),
        order(
            "P fl5",
            ONCE,
            5.0,
            "all devices after noise of five times the room",
        )
        .target(95.0),
        order(
            "P rev2",
            asks_again,
            2.0,
            "all devices after noise of twice the room that asks for evicted ids",
        ),
    ]
}

fn certificates() -> Vec<Workload> {
    let of_one = Strangers {
        certificate: Some(0),
        ..ONCE
    };
    let certified = |certified| Habits {
        certified,
        ..ORDINARY
    };
    vec![
        workload(
            "C one",
            0.76,
            Script::Order {
                strangers: of_one,
                rooms: 1.7,
            },
            "all devices after one certificate's handshakes for 1.7 times the room",
        )
        .target(95.0),
        workload(
            "C half",
            1.25,
            Script::Kinds,
            "half have certificates, room for 80 %: the kind that resumes less",
        )
        .habits(certified(0.5))
        .verdict(Verdict::Lowest)
        .target(60.0),
        workload(
            "C most",
            1.25,
            Script::Kinds,
            "80 % have certificates, room for 80 %: the kind that resumes less",
        )
        .habits(certified(0.8))
        .verdict(Verdict::Lowest)
        .target(55.0),
    ]
}

fn lowest(values: &[f64]) -> f64 {
    values.iter().copied().fold(f64::INFINITY, f64::min)
}
