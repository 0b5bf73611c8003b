//! Sessions for the stores of the benchmarks, and tables of results.

// Each bench uses a part of this.
#![allow(dead_code)]

use rekindle_core::{Limits, NewSession, ServerStore, SessionKey};
use serde_json::{json, Map, Value};
use std::fs;
use std::path::PathBuf;

/// Bytes of a client's certificate.
pub const CERTIFICATE: usize = 900;

/// No bound that matters here, and a day.
pub const OPEN: Limits = Limits {
    max_bytes: 1 << 40,
    max_sessions: u64::MAX,
    lifetime_ms: 86_400_000,
};

/// Limits with this many sessions.
pub fn at_most(sessions: u64) -> Limits {
    Limits {
        max_sessions: sessions,
        ..OPEN
    }
}

/// A number that looks random and differs for each `n`: SplitMix64.
pub fn scatter(n: u64) -> u64 {
    let mut z = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The id of the session `n`.
pub fn id(n: u64) -> [u8; 32] {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&scatter(n).to_ne_bytes());
    id
}

/// Stores the session `n`, without a certificate or with its own one of this length.
pub fn insert(store: &ServerStore<()>, n: u64, certificate: usize) -> bool {
    insert_at(store, n, certificate, 0)
}

/// The same at a time of the store's clock.
pub fn insert_at(store: &ServerStore<()>, n: u64, certificate: usize, now_ms: u64) -> bool {
    let mut der = [3; CERTIFICATE];
    der[..8].copy_from_slice(&scatter(n).to_ne_bytes());
    let id = id(n);
    let session = NewSession {
        key: SessionKey::Id(&id),
        secret: &[5; 48],
        template: None,
        certificate: Some(&der[..certificate]),
        tail: b"",
    };
    store.insert(session, now_ms).is_ok()
}

/// Whether a lookup finds the session `n`.
pub fn lookup(store: &ServerStore<()>, n: u64) -> bool {
    store
        .lookup(SessionKey::Id(&id(n)), 0, |session| session.secret[0])
        .is_some()
}

/// Drops the session `n`.
pub fn delete(store: &ServerStore<()>, n: u64) {
    store.delete(SessionKey::Id(&id(n)));
}

/// A store of the sessions 0 to `sessions`.
pub fn filled(limits: Limits, sessions: u64, certificate: usize) -> ServerStore<()> {
    let store = ServerStore::new(limits);
    for n in 0..sessions {
        insert(&store, n, certificate);
    }
    store
}

/// The arguments of a benchmark.
pub struct Arguments {
    /// Whether to measure less.
    pub quick: bool,
    /// The folder for the results, which also go to standard output.
    pub folder: Option<PathBuf>,
}

impl Arguments {
    /// Reads the arguments of this process, and ignores cargo's `--bench`.
    pub fn read() -> Self {
        let given: Vec<String> = std::env::args().skip(1).collect();
        Arguments {
            quick: given.iter().any(|argument| argument == "--quick"),
            folder: given
                .iter()
                .find(|argument| !argument.starts_with("--"))
                .map(PathBuf::from),
        }
    }
}

/// Rows of named values.
pub struct Table {
    name: &'static str,
    title: &'static str,
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

impl Table {
    /// A table without rows. Its files are called `name`.
    pub fn new(name: &'static str, title: &'static str, columns: &'static [&'static str]) -> Self {
        Table {
            name,
            title,
            columns,
            rows: Vec::new(),
        }
    }

    /// Adds a row of as many values as there are columns.
    pub fn row(&mut self, values: Vec<Value>) {
        assert_eq!(values.len(), self.columns.len());
        self.rows.push(values);
    }

    /// Prints the table, and writes it to the folder as Markdown and as JSON.
    pub fn publish(&self, folder: &Option<PathBuf>) {
        let markdown = self.markdown();
        println!("{markdown}");
        if let Some(folder) = folder {
            let write = |extension, text: &str| {
                fs::create_dir_all(folder)?;
                fs::write(folder.join(self.name).with_extension(extension), text)
            };
            write("md", &markdown).expect("the folder can be written");
            write("json", &format!("{:#}\n", self.json())).expect("the folder can be written");
        }
    }

    fn markdown(&self) -> String {
        let mut text = format!("## {}\n\n{}", self.title, line(self.columns));
        text += &line(&vec!["---"; self.columns.len()]);
        for row in &self.rows {
            text += &line(&row.iter().map(cell).collect::<Vec<_>>());
        }
        text
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let fields = self.columns.iter().map(|name| name.to_string());
            Value::Object(fields.zip(row.iter().cloned()).collect::<Map<_, _>>())
        });
        json!({ "title": self.title, "rows": rows.collect::<Vec<_>>() })
    }
}

fn line(cells: &[impl AsRef<str>]) -> String {
    let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
    format!("| {} |\n", cells.join(" | "))
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "–".into(),
        other => other.to_string(),
    }
}

/// Formats a number with this many decimal places.
pub fn rounded(value: f64, digits: i32) -> Value {
    let scale = 10f64.powi(digits);
    json!((value * scale).round() / scale)
}
