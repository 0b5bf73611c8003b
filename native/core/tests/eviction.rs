//! Tests how many devices keep their sessions while others connect: the workloads of the benchmark of the same name on the
//! store, with room for 2,000 sessions instead of 10,000, one seed, and the same targets.

#![cfg(not(shuttle))]

#[allow(dead_code, reason = "the benchmark uses all of it")]
#[path = "../benches/eviction/simulation/mod.rs"]
mod simulation;
#[path = "../benches/support/mod.rs"]
mod support;

use simulation::store::{bytes_for, Rekindle};
use simulation::workloads;

const ROOM: usize = 2_000;
const SEED: u64 = 1;

/// Runs these workloads, each on a new store, and fails if one misses its target.
fn assert_targets(names: &[&str], store: impl Fn() -> Rekindle) {
    let chosen: Vec<_> = workloads::all()
        .into_iter()
        .filter(|workload| names.contains(&workload.name))
        .collect();
    assert_eq!(chosen.len(), names.len(), "each of {names:?} is a workload");
    let missed: Vec<String> = chosen
        .iter()
        .filter_map(|workload| {
            let target = workload.target.expect("has a target");
            let percent = workload.run(&mut store(), ROOM, SEED).result;
            let missed = percent < target;
            missed.then(|| format!("{}: {percent:.1} of {target} %", workload.about))
        })
        .collect();
    assert!(missed.is_empty(), "{missed:#?}");
}

fn bounded_in_sessions() -> Rekindle {
    Rekindle::of_sessions(ROOM)
}

#[test]
fn noise_costs_no_more_when_it_resumes_its_sessions() {
    assert_targets(&["W2 1x", "W3 r1", "W3 r5"], bounded_in_sessions);
}

#[test]
fn a_flood_that_resumes_its_sessions_does_not_push_out_steady_devices() {
    assert_targets(&["W5 r1", "W5 r2"], bounded_in_sessions);
}

#[test]
fn a_flood_does_not_push_out_silent_devices() {
    assert_targets(&["W4", "W4r1"], bounded_in_sessions);
}

#[test]
fn devices_that_all_lost_their_sessions_resume_from_the_third_round_on() {
    assert_targets(
        &[
            "W6 .5",
            "W6 .6",
            "W6 .88",
            "W6 1",
            "W6fast .6",
            "W6fast .88",
        ],
        bounded_in_sessions,
    );
}

#[test]
fn most_devices_resume_after_half_of_them_lost_their_sessions() {
    assert_targets(&["W7 .88"], bounded_in_sessions);
}

#[test]
fn asking_for_evicted_ids_does_not_push_out_steady_devices() {
    assert_targets(&["W9 1x", "W9 5x"], bounded_in_sessions);
}

#[test]
fn strangers_do_not_push_out_devices_within_a_second() {
    assert_targets(&["P n1", "P fl5"], bounded_in_sessions);
}

#[test]
fn one_certificate_does_not_push_out_devices_without_one() {
    assert_targets(&["C one"], bounded_in_sessions);
}

#[test]
fn devices_with_and_without_certificates_share_the_room() {
    assert_targets(&["C half", "C most"], bounded_in_sessions);
}

#[test]
fn a_bound_in_bytes_serves_as_well_as_one_in_sessions() {
    let max_bytes = bytes_for(ROOM);
    assert_targets(&["W3 r1", "W4", "W5 r1", "W6 .88", "W9 5x"], || {
        Rekindle::of_bytes(max_bytes)
    });
}
