//! The events of the workloads, and their order.

use super::{Micros, Simulation, Strangers, DAY, HOUR, MINUTE};

/// How long devices connect at their own pace before something else happens.
const BEFORE: Micros = 36 * HOUR;

/// The time of a call in workloads in which only the order of calls matters.
const CALL: Micros = 20;

/// The events, their order, and the part that counts.
#[derive(Clone, Copy)]
pub enum Script {
    /// Devices come for two days. Then a day counts. `rooms` in two hours come all the time.
    Steady { strangers: Strangers, rooms: f64 },
    /// Devices come for a day and a half. Then strangers come, too, and this time counts.
    Attack {
        strangers: Strangers,
        rooms: f64,
        time: Micros,
    },
    /// Devices come for a day and a half. Then only strangers come. Then all devices come within ten
    /// minutes, and this counts.
    Storm {
        strangers: Strangers,
        rooms: f64,
        time: Micros,
    },
    /// Three rounds of all devices. Then a share of them loses its sessions, and all come within ten minutes.
    /// Ten further rounds count.
    Loss { share: f64, round: Micros },
    /// Devices come for a day and a half. Then all lose their sessions and come within ten minutes. The ten
    /// hours after that count.
    LossAtOwnPace,
    /// Devices come for a day and a half. Then all come within a minute, and once more, and for half a day at
    /// their own pace. All three count.
    Bursts,
    /// Three rounds of all devices, then strangers, then a round that counts: 20 µs for each call.
    Order { strangers: Strangers, rooms: f64 },
    /// Three rounds of all devices, an hour each. Then ten further rounds count, for devices without and with
    /// certificates.
    Kinds,
}

impl Script {
    /// Plays it, and returns the per cent of the devices' connections that resumed, for each part that counts.
    pub fn play(self, simulation: &mut Simulation) -> Vec<f64> {
        match self {
            Script::Steady { strangers, rooms } => {
                simulation.start_devices();
                if rooms > 0.0 {
                    let time = 3 * DAY;
                    let in_all = rooms * time as f64 / (2 * HOUR) as f64;
                    simulation.start_strangers(strangers, in_all, time);
                }
                simulation.run(2 * DAY);
                vec![simulation.run(DAY)]
            }
            Script::Attack {
                strangers,
                rooms,
                time,
            } => {
                simulation.start_devices();
                simulation.run(BEFORE);
                simulation.start_strangers(strangers, rooms, time);
                vec![simulation.run(time)]
            }
            Script::Storm {
                strangers,
                rooms,
                time,
            } => {
                simulation.start_devices();
                simulation.run(BEFORE);
                simulation.silence_devices();
                simulation.start_strangers(strangers, rooms, time);
                simulation.run(time);
                vec![simulation.round(10 * MINUTE)]
            }
            Script::Loss { share, round } => {
                for _ in 0..3 {
                    simulation.round(round);
                }
                simulation.lose_sessions(share);
                simulation.round(round.min(10 * MINUTE));
                (0..10).map(|_| simulation.round(round)).collect()
            }
            Script::LossAtOwnPace => {
                simulation.start_devices();
                simulation.run(BEFORE);
                simulation.lose_sessions(1.0);
                simulation.round(10 * MINUTE);
                (0..10).map(|_| simulation.run(HOUR)).collect()
            }
            Script::Bursts => {
                simulation.start_devices();
                simulation.run(BEFORE);
                vec![
                    simulation.round(MINUTE),
                    simulation.round(MINUTE),
                    simulation.run(12 * HOUR),
                ]
            }
            Script::Order { strangers, rooms } => {
                let round = CALL * simulation.devices.len() as u64;
                for _ in 0..3 {
                    simulation.round(round);
                }
                let calls = rooms * simulation.room as f64 * f64::from(1 + strangers.resumptions);
                let time = calls as u64 * CALL;
                simulation.start_strangers(strangers, rooms, time);
                simulation.run(time);
                vec![simulation.round(round)]
            }
            Script::Kinds => {
                for _ in 0..3 {
                    simulation.round(HOUR);
                }
                let mut sums = [0.0; 2];
                for _ in 0..10 {
                    simulation.round(HOUR);
                    for (sum, percent) in sums.iter_mut().zip(simulation.percent_by_kind()) {
                        *sum += percent;
                    }
                }
                sums.map(|sum| sum / 10.0).to_vec()
            }
        }
    }
}
