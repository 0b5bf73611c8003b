//! How a log in Valkey is trimmed: by age without clocks, and by bytes. Also the servers' eviction policies.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::resp::Value;
use super::servers::{Command, Repeat};
use super::writer::Writer;
use super::{error, error_for, extent, nonsense, Extent, Id};
use crate::{Bounds, LogError};

/// How often a scope in use is checked, and how often an idle one.
const BUSY: Duration = Duration::from_secs(15);
const IDLE: Duration = Duration::from_secs(600);
/// A call starts nothing new after this time. The next call does the rest.
const ENOUGH: Duration = Duration::from_secs(4);
/// How many keys are checked at once.
const MAX_KEYS: usize = 500;
/// How many samples of a stream's end are taken during the time that a record is kept.
const SAMPLES: u32 = 16;
/// The least time between two samples of a control stream. A follower takes each drop as a possible loss, and checks
/// the stream.
const CONTROL_SAMPLE: Duration = Duration::from_secs(60);
/// How many entries one command drops, so that it does not block the server.
const MAX_DROPPED: u64 = 20_000;
/// How often the eviction policy is asked for.
const POLICY: Duration = Duration::from_secs(600);
/// Bytes of an entry besides its record, and the assumed size of a record while none was seen.
const ENTRY_BYTES: u64 = 24;
const USUAL_RECORD_BYTES: u64 = 1000;

/// What is known of a scope's size and age.
pub(super) struct Kept {
    streams: Vec<KeptStream>,
    keep: Option<Duration>,
    max_bytes: u64,
    due: Option<Instant>,
    interval: Duration,
    /// How many records, and how many bytes of records, this writer has appended; and the bytes since the last check.
    appended: u64,
    appended_bytes: u64,
    new_bytes: u64,
}

#[derive(Clone, Default)]
struct KeptStream {
    extent: Option<Extent>,
    bytes: Option<u64>,
    /// Samples: where the stream ended at which time. All records up to there are at least as old.
    samples: VecDeque<(Instant, Id)>,
    sampled: Option<Instant>,
}

impl KeptStream {
    /// Notes the end of the stream, and returns the id up to which records are older than `keep`.
    fn observe(
        &mut self,
        now: Instant,
        extent: Extent,
        keep: Duration,
        spacing: Duration,
    ) -> Option<Id> {
        if self
            .samples
            .back()
            .is_some_and(|(_, last)| extent.last < *last)
        {
            // The stream was deleted and began again. Its ids say nothing about the ones before.
            self.samples.clear();
            self.sampled = None;
        }
        if self
            .sampled
            .is_none_or(|sampled| now.duration_since(sampled) >= spacing)
        {
            self.samples.push_back((now, extent.last));
            self.sampled = Some(now);
        }
        let mut too_old = None;
        while let Some((at, last)) = self.samples.front() {
            if now.duration_since(*at) < keep {
                break;
            }
            too_old = Some(*last);
            self.samples.pop_front();
        }
        too_old.filter(|_| extent.length > 0)
    }
}

impl Kept {
    pub(super) fn new(streams: usize) -> Self {
        Self {
            streams: vec![KeptStream::default(); streams],
            keep: None,
            max_bytes: u64::MAX,
            due: None,
            interval: BUSY,
            appended: 0,
            appended_bytes: 0,
            new_bytes: 0,
        }
    }

    /// Notes that a record was appended.
    pub(super) fn count(&mut self, record_bytes: usize) {
        self.appended += 1;
        self.appended_bytes += record_bytes as u64;
        self.new_bytes += record_bytes as u64;
    }

    pub(super) fn bytes(&self) -> Option<u64> {
        self.streams.iter().map(|stream| stream.bytes).sum()
    }

    /// Notes the bounds, and returns whether it is time to check them.
    fn is_due(&mut self, now: Instant, bounds: &Bounds) -> bool {
        let are_new = self.keep != Some(bounds.keep) || self.max_bytes != bounds.max_bytes;
        self.keep = Some(bounds.keep);
        self.max_bytes = bounds.max_bytes;
        are_new || self.due.is_none_or(|due| due <= now) || self.new_bytes > bounds.max_bytes / 16
    }

    fn estimate(&self, length: u64) -> u64 {
        let mean = self
            .appended_bytes
            .checked_div(self.appended)
            .unwrap_or(USUAL_RECORD_BYTES);
        length.saturating_mul(mean + ENTRY_BYTES)
    }
}

/// How long a stream keeps its records. The first one is the control stream.
fn keep_in(stream: usize, keep: Duration) -> Duration {
    match stream {
        0 => keep.saturating_mul(2),
        _ => keep,
    }
}

/// The servers' eviction policies.
#[derive(Default)]
pub(super) struct Policies {
    asked: Option<(Instant, u64)>,
    notice: Option<String>,
    noticed: bool,
}

impl Policies {
    pub(super) fn take_notice(&mut self) -> Option<String> {
        self.notice.take()
    }

    fn learn(&mut self, policies: &[Option<String>]) {
        // The others evict nothing, or only keys with an expiry.
        let evicts = |policy: &&String| policy.starts_with("allkeys-");
        if let Some(policy) = policies.iter().flatten().find(evicts) {
            if !self.noticed {
                self.noticed = true;
                self.notice = Some(format!(
                    "the server's eviction policy is {policy}: when its memory is full it may delete revocations; \
                     set maxmemory-policy to noeviction"
                ));
            }
        }
    }
}

/// The answer to MEMORY USAGE. `None` if the user has no right to ask.
fn size(answer: &Value) -> Option<u64> {
    match answer {
        Value::Int(size) => Some(u64::try_from(*size).unwrap_or(0)),
        Value::Nil => Some(0),
        _ => None,
    }
}

/// The eviction policy in an answer to INFO, if it is there.
fn policy(answer: Value) -> Option<String> {
    let Value::Text(text) = answer else {
        return None;
    };
    let text = String::from_utf8_lossy(&text);
    let policy = text
        .lines()
        .find_map(|line| line.strip_prefix("maxmemory_policy:"))?;
    Some(super::resp::printable(policy, 40))
}

/// A key of a scope that is being trimmed.
#[derive(Clone, Copy)]
struct Part {
    /// The index of the scope's bounds.
    scope: usize,
    /// The index of the key.
    stream: usize,
}

impl Writer {
    pub(super) fn trim_scopes(
        &mut self,
        scopes: &[Bounds],
        deadline: Instant,
    ) -> Result<(), LogError> {
        let began = Instant::now();
        let mut due = Vec::new();
        for bounds in scopes {
            let kept = &mut self.scope(bounds.scope).kept;
            if kept.is_due(began, bounds) {
                due.push(*bounds);
            }
        }
        if due.is_empty() {
            return Ok(());
        }
        // There may not be time for all, so those that have waited longest come first.
        due.sort_by_key(|bounds| self.scopes[bounds.scope].kept.due);
        self.ask_for_policies(&due, deadline)?;
        let streams = 1 + usize::from(self.config.partitions);
        let mut result = Ok(());
        for some in due.chunks((MAX_KEYS / streams).max(1)) {
            if began.elapsed() > ENOUGH {
                break;
            }
            let trimmed = self.trim_some(some, began, deadline)?;
            result = result.and(trimmed);
        }
        result
    }

    fn ask_for_policies(&mut self, scopes: &[Bounds], deadline: Instant) -> Result<(), LogError> {
        let connected = self.servers.connected();
        if self
            .policies
            .asked
            .is_some_and(|(at, then)| at.elapsed() < POLICY && then == connected)
        {
            return Ok(());
        }
        let keys: Vec<&[u8]> = scopes
            .iter()
            .flat_map(|bounds| &self.scopes[bounds.scope].keys)
            .map(|key| &key[..])
            .collect();
        let chosen = self.servers.one_for_each_server(&keys);
        let commands: Vec<Command> = chosen
            .into_iter()
            .map(|index| Command::new(keys[index], &[b"INFO", b"memory"]))
            .collect();
        if commands.is_empty() {
            // No server is known yet. The next call asks.
            return Ok(());
        }
        let answers = self
            .servers
            .call(&commands, Duration::ZERO, deadline, Repeat::Safe)
            .map_err(|why| error(&self.config, "trim", &why))?;
        let policies: Vec<_> = answers.into_iter().map(policy).collect();
        self.policies.learn(&policies);
        self.policies.asked = Some((Instant::now(), self.servers.connected()));
        Ok(())
    }

    /// Trims some scopes. The inner error is about one scope; the others were trimmed.
    fn trim_some(
        &mut self,
        scopes: &[Bounds],
        began: Instant,
        deadline: Instant,
    ) -> Result<Result<(), LogError>, LogError> {
        let now = Instant::now();
        let streams = 1 + usize::from(self.config.partitions);
        let all: Vec<Part> = (0..scopes.len())
            .flat_map(|scope| (0..streams).map(move |stream| Part { scope, stream }))
            .collect();
        let answers = self.ask(
            scopes,
            &all,
            |key, _| Command::new(key, &[b"XINFO", b"STREAM", key]),
            deadline,
        )?;
        let mut result = Ok(());
        let mut changed = Vec::new();
        let mut too_old = Vec::new();
        let mut in_use = vec![false; scopes.len()];
        for (part, answer) in all.iter().zip(answers) {
            let bounds = &scopes[part.scope];
            let scope = self
                .scopes
                .get_mut(bounds.scope)
                .expect("trimmed scopes are known");
            let extent = match extent(answer) {
                Ok(Some(extent)) => extent,
                Ok(None) => return Err(nonsense(&self.config, "trim", "XINFO STREAM")),
                Err(why) => {
                    let key = &scope.keys[part.stream];
                    result = result.and(Err(error_for(&self.config, "trim", &why, key)));
                    continue;
                }
            };
            let kept = &mut scope.kept.streams[part.stream];
            let spacing = match part.stream {
                0 => (bounds.keep / SAMPLES).max(CONTROL_SAMPLE),
                _ => bounds.keep / SAMPLES,
            };
            let keep = keep_in(part.stream, bounds.keep);
            let drop = kept.observe(now, extent, keep, spacing);
            too_old.extend(drop.map(|last| (*part, last)));
            if kept.extent != Some(extent) || kept.bytes.is_none() || drop.is_some() {
                kept.extent = Some(extent);
                in_use[part.scope] = true;
                changed.push(*part);
            }
        }
        self.drop_old(scopes, too_old, began, deadline)?;
        self.measure(scopes, &changed, deadline)?;
        let complete = self.drop_excess(scopes, began, deadline)?;

        for (index, bounds) in scopes.iter().enumerate() {
            let kept = &mut self.scope(bounds.scope).kept;
            kept.interval = match in_use[index] {
                true => BUSY,
                false => (kept.interval * 2).min(IDLE),
            };
            let wait = kept.interval.min(bounds.keep / SAMPLES);
            kept.due = Some(now + wait).filter(|_| complete[index]);
            kept.new_bytes = 0;
        }
        Ok(result)
    }

    /// Sends a command for each of some keys, and returns the answers.
    fn ask(
        &mut self,
        scopes: &[Bounds],
        parts: &[Part],
        command: impl Fn(&[u8], Part) -> Command,
        deadline: Instant,
    ) -> Result<Vec<Value>, LogError> {
        let commands: Vec<_> = parts
            .iter()
            .map(|part| {
                let key = &self.scopes[scopes[part.scope].scope].keys[part.stream];
                command(key, *part)
            })
            .collect();
        // Trimming twice does no harm.
        self.servers
            .call(&commands, Duration::ZERO, deadline, Repeat::Safe)
            .map_err(|why| error(&self.config, "trim", &why))
    }

    /// Drops all entries up to these ids, as far as time allows.
    fn drop_old(
        &mut self,
        scopes: &[Bounds],
        mut too_old: Vec<(Part, Id)>,
        began: Instant,
        deadline: Instant,
    ) -> Result<(), LogError> {
        while !too_old.is_empty() && began.elapsed() < ENOUGH {
            let parts: Vec<Part> = too_old.iter().map(|(part, _)| *part).collect();
            let ids: Vec<String> = too_old
                .iter()
                .map(|(_, id)| id.next().to_string())
                .collect();
            let commands: Vec<Command> = parts
                .iter()
                .zip(&ids)
                .map(|(part, id)| {
                    let key = &self.scopes[scopes[part.scope].scope].keys[part.stream];
                    Command::new(key, &[b"XTRIM", key, b"MINID", b"~", id.as_bytes()])
                })
                .collect();
            let answers = self
                .servers
                .call(&commands, Duration::ZERO, deadline, Repeat::Safe)
                .map_err(|why| error(&self.config, "trim", &why))?;
            for (part, answer) in parts.iter().zip(&answers) {
                if let Value::Error(why) = answer {
                    let key = &self.scopes[scopes[part.scope].scope].keys[part.stream];
                    return Err(error_for(&self.config, "trim", why, key));
                }
            }
            // A server drops about ten thousand entries per command.
            let mut answers = answers.into_iter();
            too_old.retain(|_| matches!(answers.next(), Some(Value::Int(1..))));
        }
        Ok(())
    }

    /// Finds out how many bytes streams take.
    fn measure(
        &mut self,
        scopes: &[Bounds],
        parts: &[Part],
        deadline: Instant,
    ) -> Result<(), LogError> {
        let command = |key: &[u8], _| Command::new(key, &[b"MEMORY", b"USAGE", key]);
        // What a server answers in place of a number is dropped before it answers again.
        let sizes: Vec<Option<u64>> = self
            .ask(scopes, parts, command, deadline)?
            .iter()
            .map(size)
            .collect();
        let command = |key: &[u8], _| Command::new(key, &[b"XINFO", b"STREAM", key]);
        let extents = self.ask(scopes, parts, command, deadline)?;
        for ((part, size), now) in parts.iter().zip(sizes).zip(extents) {
            let kept = &mut self.scope(scopes[part.scope].scope).kept;
            let length = match extent(now) {
                Ok(Some(now)) => {
                    kept.streams[part.stream].extent = Some(now);
                    now.length
                }
                _ => 0,
            };
            let bytes = size.unwrap_or_else(|| kept.estimate(length));
            kept.streams[part.stream].bytes = Some(bytes);
        }
        Ok(())
    }

    /// Drops the oldest sessions of scopes that take too many bytes. Returns for each scope whether it is done.
    fn drop_excess(
        &mut self,
        scopes: &[Bounds],
        began: Instant,
        deadline: Instant,
    ) -> Result<Vec<bool>, LogError> {
        let mut complete = vec![true; scopes.len()];
        let mut parts = Vec::new();
        for (index, bounds) in scopes.iter().enumerate() {
            let kept = &self.scopes[bounds.scope].kept;
            let bytes = |stream: &KeptStream| stream.bytes.unwrap_or(0);
            let control = bytes(&kept.streams[0]);
            let sessions: u64 = kept.streams[1..].iter().map(bytes).sum();
            if control.saturating_add(sessions) <= bounds.max_bytes {
                continue;
            }
            // Drops a little more than needed, so that not every call has to drop something.
            let target = (bounds.max_bytes - bounds.max_bytes / 16).saturating_sub(control);
            for (stream, kept) in kept.streams.iter().enumerate().skip(1) {
                let length = kept.extent.map_or(0, |extent| extent.length);
                let share = u128::from(length) * u128::from(target.min(sessions));
                let wanted = (share / u128::from(sessions.max(1))) as u64;
                if wanted < length {
                    parts.push((
                        Part {
                            scope: index,
                            stream,
                        },
                        length,
                        wanted,
                    ));
                }
            }
        }
        while !parts.is_empty() {
            if began.elapsed() > ENOUGH {
                for (part, ..) in parts {
                    complete[part.scope] = false;
                }
                break;
            }
            let next: Vec<Part> = parts.iter().map(|(part, ..)| *part).collect();
            let commands: Vec<Command> = parts
                .iter()
                .map(|(part, length, wanted)| {
                    let key = &self.scopes[scopes[part.scope].scope].keys[part.stream];
                    let length = length.saturating_sub(MAX_DROPPED).max(*wanted).to_string();
                    Command::new(key, &[b"XTRIM", key, b"MAXLEN", length.as_bytes()])
                })
                .collect();
            let answers = self
                .servers
                .call(&commands, Duration::ZERO, deadline, Repeat::Safe)
                .map_err(|why| error(&self.config, "trim", &why))?;
            for (part, answer) in next.iter().zip(answers) {
                if let Value::Error(why) = answer {
                    let key = &self.scopes[scopes[part.scope].scope].keys[part.stream];
                    return Err(error_for(&self.config, "trim", &why, key));
                }
            }
            for (part, length, wanted) in &mut parts {
                let left = length.saturating_sub(MAX_DROPPED).max(*wanted);
                let kept = &mut self.scope(scopes[part.scope].scope).kept;
                let stream = &mut kept.streams[part.stream];
                let bytes = u128::from(stream.bytes.unwrap_or(0)) * u128::from(left);
                stream.bytes = Some((bytes / u128::from((*length).max(1))) as u64);
                if let Some(extent) = &mut stream.extent {
                    extent.length = left;
                }
                *length = left;
            }
            parts.retain(|(_, length, wanted)| length > wanted);
        }
        Ok(complete)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn age_is_what_was_seen_to_pass() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let end = |last| Extent {
            length: 9,
            last: Id(last, 0),
        };
        let (keep, spacing) = (Duration::from_secs(160), Duration::from_secs(10));
        let mut stream = KeptStream::default();
        let mut observe = |seconds, last| stream.observe(at(seconds), end(last), keep, spacing);
        // Ids far in the past or in the future say nothing.
        assert_eq!(observe(0, 5), None);
        assert_eq!(observe(5, 1_000_000), None);
        assert_eq!(observe(10, 2_000_000), None);
        assert_eq!(observe(159, 2_000_001), None);
        assert_eq!(observe(160, 2_000_002), Some(Id(5, 0)));
        assert_eq!(observe(161, 2_000_003), None);
        assert_eq!(observe(400, 2_000_004), Some(Id(2_000_001, 0)));
        // A stream that began again has nothing that was seen before.
        assert_eq!(observe(401, 7), None);
        assert_eq!(observe(560, 8), None);
        assert_eq!(observe(561, 8), Some(Id(7, 0)));
    }

    #[test]
    fn a_policy_that_can_evict_the_log_is_noticed_once() {
        let mut policies = Policies::default();
        let mut notice = |of: &[Option<&str>]| {
            let of: Vec<_> = of.iter().map(|policy| policy.map(String::from)).collect();
            policies.learn(&of);
            policies.take_notice()
        };
        // A server that does not say its policy, and policies that spare keys without an expiry.
        for harmless in [None, Some("noeviction"), Some("volatile-lru")] {
            assert_eq!(notice(&[harmless]), None);
        }
        let said = notice(&[Some("noeviction"), Some("allkeys-lfu")]);
        assert!(said.is_some_and(|notice| notice.contains("allkeys-lfu")));
        assert_eq!(notice(&[Some("allkeys-lfu")]), None);
    }
}
