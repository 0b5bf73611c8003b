//! Measures how many connections of devices resume, with the store and with simpler caches under the same load.
//!
//! `cargo bench --bench eviction -- [--quick] [FOLDER]`
//!
//! Each cache has room for 10,000 sessions, drops expired ones first, and meets the same clients in simulated
//! time. Of several seeds the lowest result of each cache counts. The targets are for the store.

mod policies;
mod simulation;
#[path = "../support/mod.rs"]
mod support;

use policies::{Policy, Simple};
use serde_json::Value;
use simulation::store::{bytes_for, Rekindle};
use simulation::workloads::{self, Outcome, Workload};
use simulation::Cache;
use support::{rounded, Arguments, Table};

const ROOM: usize = 10_000;

/// The most rounds of a workload.
const ROUNDS: usize = 10;

/// A cache in the comparison.
#[derive(Clone, Copy)]
enum Contender {
    Rekindle,
    /// The store bounded by `max_bytes` instead of `max_sessions`.
    RekindleByBytes(u64),
    Simple(Policy),
    Unbounded,
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Contender::Rekindle => "rekindle",
            Contender::RekindleByBytes(_) => "rekindle by bytes",
            Contender::Simple(Policy::Sieve) => "sieve",
            Contender::Simple(Policy::Fifo) => "fifo",
            Contender::Simple(Policy::Lru) => "lru",
            Contender::Unbounded => "unbounded",
        }
    }

    fn cache(self) -> Box<dyn Cache> {
        match self {
            Contender::Rekindle => Box::new(Rekindle::of_sessions(ROOM)),
            Contender::RekindleByBytes(max_bytes) => Box::new(Rekindle::of_bytes(max_bytes)),
            Contender::Simple(policy) => Box::new(Simple::new(policy, ROOM)),
            Contender::Unbounded => Box::new(Simple::unbounded()),
        }
    }

    /// The lowest of all seeds: of the result, of the mean, and of each round.
    fn lowest(self, workload: &Workload, seeds: u64) -> Outcome {
        (1..=seeds)
            .map(|seed| workload.run(&mut *self.cache(), ROOM, seed))
            .reduce(|one, other| Outcome {
                result: one.result.min(other.result),
                mean: one.mean.zip(other.mean).map(|(one, other)| one.min(other)),
                rounds: one
                    .rounds
                    .iter()
                    .zip(other.rounds)
                    .map(|(one, other)| one.min(other))
                    .collect(),
            })
            .expect("there is a seed")
    }
}

fn main() {
    let arguments = Arguments::read();
    let seeds = if arguments.quick { 1 } else { 3 };
    let contenders = [
        Contender::Rekindle,
        Contender::RekindleByBytes(bytes_for(ROOM)),
        Contender::Simple(Policy::Sieve),
        Contender::Simple(Policy::Fifo),
        Contender::Simple(Policy::Lru),
        Contender::Unbounded,
    ];
    let mut results = Table::new(
        "eviction",
        "Connections of devices that resume, in %",
        &[
            "workload",
            "about",
            "rekindle",
            "rekindle by bytes",
            "sieve",
            "fifo",
            "lru",
            "unbounded",
            "target",
            "met",
        ],
    );
    let mut rounds = Table::new(
        "eviction_rounds",
        "The same, round by round (W10: both bursts, and the next half day; C: devices without, and with certificates)",
        &[
            "workload", "cache", "mean", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "target",
        ],
    );
    for workload in workloads::all() {
        if arguments.quick && !workload.quick {
            continue;
        }
        let outcomes = contenders.map(|contender| contender.lowest(&workload, seeds));
        results.row(result_row(&workload, &outcomes));
        for (contender, outcome) in contenders.iter().zip(&outcomes) {
            if outcome.rounds.len() > 1 {
                rounds.row(rounds_row(&workload, *contender, outcome));
            }
        }
    }
    results.publish(&arguments.folder);
    rounds.publish(&arguments.folder);
}

fn result_row(workload: &Workload, outcomes: &[Outcome]) -> Vec<Value> {
    let mut row: Vec<Value> = vec![workload.name.into(), workload.about.into()];
    row.extend(outcomes.iter().map(|outcome| rounded(outcome.result, 1)));
    row.push(workload.target.into());
    // The results of the store with each of its two bounds come first.
    let met = |target| match outcomes[..2].iter().all(|store| store.result >= target) {
        true => "yes",
        false => "no",
    };
    row.push(workload.target.map(met).into());
    row
}

fn rounds_row(workload: &Workload, contender: Contender, outcome: &Outcome) -> Vec<Value> {
    let whole = |percent: f64| Value::from(percent.round() as u64);
    let mut row: Vec<Value> = vec![workload.name.into(), contender.name().into()];
    row.push(outcome.mean.map_or(Value::Null, whole));
    row.extend(outcome.rounds.iter().copied().map(whole));
    row.resize(3 + ROUNDS, Value::Null);
    row.push(workload.target_of_rounds().into());
    row
}
