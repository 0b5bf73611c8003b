//! Appends to a log in Valkey.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::ValkeyConfig;
use super::resp::{Value, MAX_RECORD_BYTES};
use super::servers::{Command, Repeat, Servers};
use super::trim::Kept;
use super::{deadline, error, error_for, keys, BELL, FIELD};
use crate::{Batch, Bounds, LogError, LogWriter, Record};

/// How many records, and about how many bytes, are sent before answers are read.
const CHUNK: (usize, usize) = (500, 1 << 20);
/// How many sessions of a batch go to one partition before the next partition is used.
const RUN: usize = 100;
/// About how many entries the bell keeps, and how many keys an entry names.
const BELL_LENGTH: &[u8] = b"1000";
const BELL_KEYS: usize = 100;

/// The writer of a log.
pub(super) struct Writer {
    pub(super) config: Arc<ValkeyConfig>,
    pub(super) servers: Servers,
    pub(super) scopes: HashMap<String, Scope>,
    pub(super) policies: super::trim::Policies,
}

/// What the writer knows about a scope.
pub(super) struct Scope {
    /// The key of the control stream, then those of the partitions.
    pub(super) keys: Vec<Vec<u8>>,
    /// The partition that the next sessions go to.
    partition: usize,
    pub(super) kept: Kept,
}

/// A record to send.
struct Item<'a> {
    batch: usize,
    /// The index of its key among the scope's keys.
    key: usize,
    record: &'a Record,
}

impl Writer {
    /// Does not connect yet.
    pub(super) fn new(config: Arc<ValkeyConfig>) -> Self {
        Self {
            servers: Servers::new(config.clone()),
            config,
            scopes: HashMap::new(),
            policies: Default::default(),
        }
    }

    pub(super) fn scope(&mut self, name: &str) -> &mut Scope {
        if !self.scopes.contains_key(name) {
            let keys = keys(&self.config, name);
            let scope = Scope {
                kept: Kept::new(keys.len()),
                keys,
                partition: 0,
            };
            self.scopes.insert(name.to_owned(), scope);
        }
        self.scopes.get_mut(name).expect("it was just inserted")
    }

    /// Appends records, and notes the first error of each batch. Stops if there is no connection.
    fn append_items(
        &mut self,
        batches: &[Batch],
        items: &[Item],
        results: &mut [Result<(), LogError>],
        deadline: Instant,
    ) -> Result<(), LogError> {
        let mut rest = items;
        while !rest.is_empty() {
            let mut commands = Vec::new();
            let mut bytes = 0;
            for item in rest {
                if commands.len() == CHUNK.0 || bytes >= CHUNK.1 {
                    break;
                }
                let key = &self.scopes[batches[item.batch].scope].keys[item.key];
                let command = Command::new(key, &[b"XADD", key, b"*", FIELD, item.record]);
                bytes += command.len();
                commands.push(command);
            }
            let (sent, unsent) = rest.split_at(commands.len());
            let answers = self
                .servers
                .call(&commands, Duration::ZERO, deadline, Repeat::Never)
                .map_err(|why| {
                    let failed = error(&self.config, "append to", &why);
                    for item in rest {
                        let result = &mut results[item.batch];
                        *result = result.clone().and(Err(failed.clone()));
                    }
                    failed
                })?;
            for (item, answer) in sent.iter().zip(answers) {
                let scope = self.scope(batches[item.batch].scope);
                let why = match answer {
                    Value::Text(_) => {
                        scope.kept.count(item.record.len());
                        continue;
                    }
                    Value::Error(why) => why,
                    _ => "its answer to XADD makes no sense".into(),
                };
                let key = &self.scopes[batches[item.batch].scope].keys[item.key];
                let result = &mut results[item.batch];
                *result = result
                    .clone()
                    .and(Err(error_for(&self.config, "append to", &why, key)));
            }
            rest = unsent;
        }
        Ok(())
    }

    /// Tells followers in a cluster which streams have new entries. The records count without that, because followers
    /// also look from time to time. So errors are ignored.
    fn announce(&mut self, touched: &BTreeSet<Vec<u8>>, deadline: Instant) {
        let touched: Vec<&[u8]> = touched.iter().map(|key| &key[..]).collect();
        let ring = |keys: &[&[u8]]| {
            let keys = keys.join(&b'\n');
            let words: &[&[u8]] = &[
                b"XADD",
                BELL,
                b"MAXLEN",
                b"~",
                BELL_LENGTH,
                b"*",
                FIELD,
                &keys,
            ];
            Command::new(BELL, words)
        };
        let commands: Vec<Command> = touched.chunks(BELL_KEYS).map(ring).collect();
        if !commands.is_empty() {
            let _ = self
                .servers
                .call(&commands, Duration::ZERO, deadline, Repeat::Never);
        }
    }
}

impl LogWriter for Writer {
    fn append(&mut self, batches: &[Batch]) -> Result<Vec<Result<(), LogError>>, LogError> {
        let deadline = deadline();
        let mut results = vec![Ok(()); batches.len()];
        let mut control = Vec::new();
        for (index, batch) in batches.iter().enumerate() {
            self.scope(batch.scope);
            let mut records = batch.control.iter().chain(batch.sessions);
            if records.any(|record| record.len() > MAX_RECORD_BYTES) {
                let why = format!("a record is longer than {MAX_RECORD_BYTES} bytes");
                results[index] = Err(error(&self.config, "append to", &why));
                continue;
            }
            control.extend(batch.control.iter().map(|record| Item {
                batch: index,
                key: 0,
                record,
            }));
        }
        if let Err(failed) = self.append_items(batches, &control, &mut results, deadline) {
            // The sessions were not tried.
            for (batch, result) in batches.iter().zip(&mut results) {
                if !batch.sessions.is_empty() {
                    *result = result.clone().and(Err(failed.clone()));
                }
            }
            return settled(results, failed);
        }

        let mut sessions = Vec::new();
        for (index, batch) in batches.iter().enumerate() {
            if results[index].is_err() {
                continue;
            }
            let scope = self.scope(batch.scope);
            for run in batch.sessions.chunks(RUN) {
                let key = 1 + scope.partition;
                scope.partition = key % (scope.keys.len() - 1);
                sessions.extend(run.iter().map(|record| Item {
                    batch: index,
                    key,
                    record,
                }));
            }
        }
        if let Err(failed) = self.append_items(batches, &sessions, &mut results, deadline) {
            return settled(results, failed);
        }
        if self.config.cluster {
            let key = |item: &Item| self.scopes[batches[item.batch].scope].keys[item.key].clone();
            let touched = control.iter().chain(&sessions).map(key).collect();
            self.announce(&touched, deadline);
        }
        Ok(results)
    }

    fn trim(&mut self, scopes: &[Bounds]) -> Result<(), LogError> {
        self.trim_scopes(scopes, deadline())
    }

    fn bytes(&self, scope: &str) -> Option<u64> {
        self.scopes.get(scope)?.kept.bytes()
    }

    fn take_notice(&mut self) -> Option<String> {
        self.policies.take_notice()
    }
}

/// The results after the connection failed: one error for all if no batch is in the log.
fn settled(
    results: Vec<Result<(), LogError>>,
    failed: LogError,
) -> Result<Vec<Result<(), LogError>>, LogError> {
    match results.iter().any(Result::is_ok) {
        true => Ok(results),
        false => Err(failed),
    }
}
