//! Reads a scope of a log in Valkey backwards. It is connected only while it reads.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::config::ValkeyConfig;
use super::resp::{Budget, Value};
use super::servers::{Command, Repeat, Room, Servers};
use super::{
    deadline, error, error_for, extent, keys, nonsense, page, Extent, Id, Page, MAX_ENTRIES,
};
use crate::{LogError, LogReader, Mark, Record, Stream};

const TASK: &str = "read";
/// How long an answer about the server's clock counts.
const CLOCK: Duration = Duration::from_secs(60);

/// Reads one scope backwards.
pub(super) struct Reader {
    config: Arc<ValkeyConfig>,
    servers: Servers,
    keys: Vec<Vec<u8>>,
    back: Vec<Back>,
    clock: Option<(Instant, i64)>,
}

/// A position in one stream, on the way back.
#[derive(Default)]
struct Back {
    /// The newest entry that was not yet read, if there may be one.
    next: Option<Id>,
    /// Records that were read but not yet returned: other partitions of the scope had newer ones. It takes no more than
    /// the stream's share of memory, however many streams there are.
    page: VecDeque<(Id, Record)>,
    /// Whether the next record is longer than the share. It is read alone, and returned at once.
    is_long: bool,
}

impl Back {
    /// No entry on the way back is newer.
    fn newest(&self) -> Option<Id> {
        let read = self.page.front().map(|(id, _)| *id);
        read.or(self.next)
    }
}

impl Reader {
    /// Does not connect yet.
    pub(super) fn new(config: Arc<ValkeyConfig>) -> Self {
        Self {
            servers: Servers::new(config.clone()),
            config,
            keys: Vec::new(),
            back: Vec::new(),
            clock: None,
        }
    }

    /// The entries of some streams, from these ids back to another one. Each page may take so much memory.
    fn pages(
        &mut self,
        from: &[(usize, String)],
        to: &str,
        count: usize,
        budget: Budget,
        deadline: Instant,
    ) -> Result<Vec<Page>, LogError> {
        let count = count.to_string();
        let commands: Vec<_> = from
            .iter()
            .map(|(stream, id)| {
                let key = &self.keys[*stream];
                let words: &[&[u8]] = &[
                    b"XREVRANGE",
                    key,
                    id.as_bytes(),
                    to.as_bytes(),
                    b"COUNT",
                    count.as_bytes(),
                ];
                Command::new(key, words)
            })
            .collect();
        let room = Room::Each(budget);
        let answers = self
            .servers
            .call_within(room, &commands, Duration::ZERO, deadline, Repeat::Safe)
            .map_err(|why| error(&self.config, TASK, &why))?;
        let mut pages = Vec::new();
        for ((stream, _), answer) in from.iter().zip(answers) {
            if let Value::Error(why) = &answer {
                return Err(error_for(&self.config, TASK, why, &self.keys[*stream]));
            }
            let Some(page) = page(answer) else {
                return Err(self.nonsense());
            };
            pages.push(page);
        }
        Ok(pages)
    }

    /// The length and the end of the control stream.
    fn control(&mut self, deadline: Instant) -> Result<Extent, LogError> {
        let key = &self.keys[0];
        let command = Command::new(key, &[b"XINFO", b"STREAM", key]);
        let answer = self
            .servers
            .call(&[command], Duration::ZERO, deadline, Repeat::Safe)
            .map_err(|why| error(&self.config, TASK, &why))?
            .pop();
        match answer.map(extent) {
            Some(Ok(Some(extent))) => Ok(extent),
            Some(Err(why)) => Err(error_for(&self.config, TASK, &why, &self.keys[0])),
            _ => {
                self.servers.disconnect();
                Err(nonsense(&self.config, TASK, "XINFO STREAM"))
            }
        }
    }

    /// Reads until the newest record of these streams is there, up to `count` entries of a stream at a time.
    fn fill(
        &mut self,
        streams: Range<usize>,
        count: usize,
        deadline: Instant,
    ) -> Result<(), LogError> {
        loop {
            let from: Vec<_> = streams
                .clone()
                .filter(|stream| self.back[*stream].page.is_empty() && !self.back[*stream].is_long)
                .filter_map(|stream| Some((stream, self.back[stream].next?.to_string())))
                .collect();
            if from.is_empty() {
                let newest = streams
                    .clone()
                    .max_by_key(|stream| self.back[*stream].newest());
                match newest.filter(|stream| self.back[*stream].is_long) {
                    Some(stream) => self.read_alone(stream, deadline)?,
                    None => return Ok(()),
                }
                continue;
            }
            let share = Budget::share(self.keys.len());
            let pages = self.pages(&from, "-", count, share, deadline)?;
            for ((stream, _), page) in from.into_iter().zip(pages) {
                let next = self.back[stream].next;
                if !next.is_some_and(|next| page.descends_from(next)) {
                    return Err(self.nonsense());
                }
                let oldest = page.entries.last().filter(|_| page.entries.len() >= count);
                self.back[stream] = Back {
                    next: page
                        .cut_at
                        .or_else(|| oldest.and_then(|(id, _)| id.previous())),
                    is_long: page.entries.is_empty() && page.cut_at.is_some(),
                    page: records(page),
                };
            }
        }
    }

    /// Reads the next record of a stream, which is longer than the stream's share of memory.
    fn read_alone(&mut self, stream: usize, deadline: Instant) -> Result<(), LogError> {
        let Some(next) = self.back[stream].next else {
            return Ok(());
        };
        let id = next.to_string();
        let from = [(stream, id.clone())];
        let mut pages = self.pages(&from, &id, 1, Budget::ENTRY, deadline)?;
        // The page is empty if the record was trimmed meanwhile.
        let is_it = |page: &Page| page.cut_at.is_none() && page.entries.iter().all(|e| e.0 == next);
        let Some(page) = pages.pop().filter(is_it) else {
            return Err(self.nonsense());
        };
        self.back[stream] = Back {
            next: next.previous(),
            page: records(page),
            is_long: false,
        };
        Ok(())
    }

    fn nonsense(&mut self) -> LogError {
        self.servers.disconnect();
        nonsense(&self.config, TASK, "XREVRANGE")
    }

    /// Ends the connections once everything has been read.
    fn rest(&mut self) {
        let is_done = |back: &Back| back.next.is_none() && back.page.is_empty();
        if self.back.iter().all(is_done) {
            self.servers.disconnect();
        }
    }
}

impl LogReader for Reader {
    fn mark(&mut self, scope: &str) -> Result<Mark, LogError> {
        let deadline = deadline();
        self.keys = keys(&self.config, scope);
        self.back = Vec::new();
        let all: Vec<_> = (1..self.keys.len())
            .map(|stream| (stream, "+".to_owned()))
            .collect();
        let mut ends = vec![Id::default()];
        let share = Budget::share(self.keys.len());
        for page in self.pages(&all, "-", 1, share, deadline)? {
            let last = page.entries.first().map(|(id, _)| *id);
            ends.push(last.or(page.cut_at).unwrap_or_default());
        }
        // The control stream comes last, so it has all records that the sessions refer to.
        let control = self.control(deadline)?;
        ends[0] = control.last;
        let back = |last: &Id| Back {
            next: Some(*last).filter(|last| *last != Id::default()),
            ..Back::default()
        };
        self.back = ends.iter().map(back).collect();
        self.rest();
        let ends = ends.into_iter().map(|Id(time, number)| (time, number));
        // A follower continues the count of control records from here.
        Ok(Mark(ends.chain([(control.length, 0)]).collect()))
    }

    fn older(&mut self, stream: Stream, limit: usize) -> Result<Vec<Record>, LogError> {
        if self.back.is_empty() {
            return Err(error(&self.config, TASK, "no scope is marked"));
        }
        let deadline = deadline();
        let limit = limit.max(1);
        let streams = match stream {
            Stream::Control => 0..1,
            Stream::Sessions => 1..self.back.len(),
        };
        let count = limit
            .div_ceil(streams.len())
            .min(MAX_ENTRIES / self.keys.len());
        self.fill(streams.clone(), count, deadline)?;
        let mut records = Vec::new();
        while records.len() < limit {
            let back = self.back[streams.clone()].iter_mut();
            let newest = back.max_by_key(|back| back.newest());
            match newest.and_then(|back| back.page.pop_front()) {
                Some((_, record)) => records.push(record),
                // All are returned, or the next call has to read the newest first.
                None => break,
            }
        }
        self.rest();
        Ok(records)
    }

    fn clock_ahead_ms(&mut self) -> Result<Option<i64>, LogError> {
        if let Some((_, ahead)) = self.clock.filter(|(asked, _)| asked.elapsed() < CLOCK) {
            return Ok(Some(ahead));
        }
        let task = "ask the time of";
        let deadline = deadline();
        let key = match self.keys.first() {
            Some(key) => key,
            None => &Vec::new(),
        };
        let time = [Command::new(key, &[b"TIME"])];
        let mut answer = None;
        let mut asked = Instant::now();
        // The first command only makes the connection: otherwise the time for that would count as the way to the
        // server.
        for _ in 0..2 {
            asked = Instant::now();
            let room = Room::Each(Budget::SHORT);
            let answers = self
                .servers
                .call_within(room, &time, Duration::ZERO, deadline, Repeat::Safe)
                .map_err(|why| error(&self.config, task, &why))?;
            answer = answers.into_iter().next();
        }
        let way = asked.elapsed() / 2;
        let ours = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .saturating_sub(way);
        self.rest();
        if let Some(Value::Error(why)) = &answer {
            return Err(error(&self.config, task, why));
        }
        let theirs = answer
            .and_then(clock)
            .and_then(|theirs| i64::try_from(theirs).ok())
            .ok_or_else(|| nonsense(&self.config, task, "TIME"))?;
        let ahead = theirs.saturating_sub(ours.as_millis() as i64);
        self.clock = Some((asked, ahead));
        Ok(Some(ahead))
    }
}

/// The records of a page. Entries without one are left out.
fn records(page: Page) -> VecDeque<(Id, Record)> {
    let entries = page.entries.into_iter();
    entries
        .filter_map(|(id, record)| Some((id, record?)))
        .collect()
}

/// A server's clock, in milliseconds since 1970, from its answer to TIME.
fn clock(answer: Value) -> Option<u64> {
    let [Value::Text(seconds), Value::Text(micros)] = answer.array()? else {
        return None;
    };
    let number = |text: &[u8]| std::str::from_utf8(text).ok()?.parse::<u64>().ok();
    number(&seconds)?
        .checked_mul(1000)?
        .checked_add(number(&micros)? / 1000)
}
