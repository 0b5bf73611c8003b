//! Reads a scope of a log in Valkey backwards. It is connected only while it reads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::config::ValkeyConfig;
use super::resp::Value;
use super::servers::{Command, Repeat, Servers};
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
    /// The newest entry that was not yet requested, if there may be one.
    next: Option<Id>,
    /// Records that were read but not yet returned: other partitions of the scope had newer ones.
    page: VecDeque<(Id, Record)>,
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

    /// The entries of some streams, from these ids back.
    fn pages(
        &mut self,
        from: &[(usize, String)],
        count: usize,
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
                    b"-",
                    b"COUNT",
                    count.as_bytes(),
                ];
                Command::new(key, words)
            })
            .collect();
        let answers = self
            .servers
            .call(&commands, Duration::ZERO, deadline, Repeat::Safe)
            .map_err(|why| error(&self.config, TASK, &why))?;
        let mut pages = Vec::new();
        for ((stream, _), answer) in from.iter().zip(answers) {
            if let Value::Error(why) = &answer {
                return Err(error_for(&self.config, TASK, why, &self.keys[*stream]));
            }
            let Some(page) = page(answer) else {
                self.servers.disconnect();
                return Err(nonsense(&self.config, TASK, "XREVRANGE"));
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
        for page in self.pages(&all, 1, deadline)? {
            let last = page.entries.first().map(|(id, _)| *id);
            ends.push(last.or(page.cut_at).unwrap_or_default());
        }
        // The control stream comes last, so it has all records that the sessions refer to.
        let control = self.control(deadline)?;
        ends[0] = control.last;
        let back = |last: &Id| Back {
            next: Some(*last).filter(|last| *last != Id::default()),
            page: VecDeque::new(),
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
        let count = limit.min(MAX_ENTRIES).div_ceil(streams.len()).max(1);
        loop {
            let from: Vec<_> = streams
                .clone()
                .filter(|stream| self.back[*stream].page.is_empty())
                .filter_map(|stream| Some((stream, self.back[stream].next?.to_string())))
                .collect();
            if from.is_empty() {
                break;
            }
            let pages = self.pages(&from, count, deadline)?;
            for ((stream, _), page) in from.into_iter().zip(pages) {
                let next = self.back[stream].next;
                if !next.is_some_and(|next| page.descends_from(next)) {
                    self.servers.disconnect();
                    return Err(nonsense(&self.config, TASK, "XREVRANGE"));
                }
                let oldest = page.entries.last().filter(|_| page.entries.len() >= count);
                let next = page
                    .cut_at
                    .or_else(|| oldest.and_then(|(id, _)| id.previous()));
                let records = page.entries.into_iter();
                self.back[stream] = Back {
                    next,
                    page: records
                        .filter_map(|(id, record)| Some((id, record?)))
                        .collect(),
                };
            }
        }
        let mut records = Vec::new();
        while records.len() < limit {
            let back = &self.back[streams.clone()];
            let Some(newest) =
                (0..back.len()).max_by_key(|stream| back[*stream].page.front().map(|(id, _)| *id))
            else {
                break;
            };
            let back = &mut self.back[streams.start + newest];
            let Some((_, record)) = back.page.pop_front() else {
                break;
            };
            records.push(record);
            if back.page.is_empty() && back.next.is_some() {
                // Its next record may be newer than those of all other partitions.
                break;
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
            let answers = self
                .servers
                .call(&time, Duration::ZERO, deadline, Repeat::Safe)
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
