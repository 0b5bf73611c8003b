//! Measures the memory per session, by the store's count and by the growth of the process.
//!
//! `cargo bench --bench memory -- [--quick] [FOLDER]`
//!
//! Each line is measured in a process of its own, so that no memory is used a second time. Linux only.

mod support;

use rekindle_core::ServerStore;
use serde_json::json;
use std::env;
use std::fs;
use std::process::Command;
use support::{at_most, insert, lookup, rounded, scatter, Arguments, Table, CERTIFICATE};

/// The history of a store before it is measured.
const LIVES: [&str; 3] = ["filled", "churned", "survivors"];

/// The variable that names the line which this process measures.
const LINE: &str = "REKINDLE_BENCH_MEMORY";

fn main() {
    match env::var(LINE) {
        Ok(line) => measure(&line),
        Err(_) => run(&Arguments::read()),
    }
}

fn run(arguments: &Arguments) {
    let columns = &[
        "sessions",
        "certificate",
        "life",
        "held",
        "bytes a session",
        "resident a session",
        "counted",
        "resident",
        "resident / counted",
    ];
    let mut table = Table::new("memory", "Memory of the store", columns);
    let most = if arguments.quick { 100_000 } else { 1_000_000 };
    for certificate in [0, CERTIFICATE] {
        for sessions in [1_000, 10_000, 100_000, 1_000_000u64] {
            for life in LIVES {
                if sessions <= most {
                    table.row(in_a_process(sessions, certificate, life));
                }
            }
        }
    }
    table.publish(&arguments.folder);
}

fn in_a_process(sessions: u64, certificate: usize, life: &str) -> Vec<serde_json::Value> {
    let output = Command::new(env::current_exe().expect("this file is known"))
        .env(LINE, format!("{sessions} {certificate} {life}"))
        .output()
        .expect("a process starts");
    let text = String::from_utf8(output.stdout).expect("is text");
    let numbers: Vec<u64> = text.split_whitespace().flat_map(str::parse).collect();
    let &[held, counted, resident] = &numbers[..] else {
        panic!("{sessions} {certificate} {life}: {text:?}");
    };
    let each = |bytes: u64| rounded(bytes as f64 / held.max(1) as f64, 1);
    vec![
        json!(sessions),
        json!(certificate),
        json!(life),
        json!(held),
        each(counted),
        each(resident),
        json!(counted),
        json!(resident),
        rounded(resident as f64 / counted.max(1) as f64, 2),
    ]
}

/// Prints how many sessions the store has, its count of bytes, and the growth of the process.
fn measure(line: &str) {
    let words: Vec<&str> = line.split(' ').collect();
    let (sessions, certificate) = (words[0].parse().unwrap(), words[1].parse().unwrap());
    let before = resident();
    let store = live(words[2], sessions, certificate);
    let grown = resident() - before;
    println!("{} {} {}", store.sessions(), store.bytes(), grown);
}

fn live(life: &str, sessions: u64, certificate: usize) -> ServerStore<()> {
    let store = ServerStore::new(at_most(sessions));
    for n in 0..sessions {
        insert(&store, n, certificate);
    }
    match life {
        "churned" => churn(&store, sessions, certificate),
        // One in ten, all over the pages, is left beside as many bytes of sessions of another size.
        "survivors" => {
            for n in 0..sessions / 10 {
                lookup(&store, n * 10);
            }
            let other = if certificate == 0 { 100 } else { 0 };
            for n in sessions..sessions + sessions * 9 / 10 {
                insert(&store, n, other);
            }
        }
        _ => {}
    }
    store
}

/// Three times as many sessions come as the store has. One in five lookups finds its session.
fn churn(store: &ServerStore<()>, sessions: u64, certificate: usize) {
    for n in sessions..4 * sessions {
        insert(store, n, certificate);
        if n % 5 == 0 {
            lookup(store, n - scatter(n) % sessions);
        }
    }
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("is Linux");
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = resident.and_then(|line| line.split_whitespace().next());
    kilobytes
        .expect("is there")
        .parse::<u64>()
        .expect("is a number")
        * 1024
}
