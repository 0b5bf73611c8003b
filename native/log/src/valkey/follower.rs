//! Follows scopes of a log in Valkey: finds new records, and notices lost revocations.
//!
//! With one server, one command waits for all streams. In a cluster, the follower waits for the bell, which names the
//! streams with new entries. From time to time it checks each stream by itself: whether all its control records are
//! still there, and whether there are entries that nobody announced.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::config::ValkeyConfig;
use super::resp::{Budget, Value};
use super::servers::{Command, Repeat, Room, Servers};
use super::{
    deadline, error, error_for, extent, keys, nonsense, page, stream_of, Extent, Id, Page, BELL,
    MAX_ENTRIES,
};
use crate::{LogError, LogFollower, Mark, News, Record, Stream};

const TASK: &str = "read";
/// The least time between two reads while new records keep coming.
const PACE: Duration = Duration::from_millis(50);
/// How long one command waits.
const BLOCK: Duration = Duration::from_secs(1);
/// The longest wait of a call, so that it ends in time whatever happens.
const MAX_WAIT: Duration = Duration::from_secs(5);
/// How often streams are checked by themselves, and how many of each kind at a time.
const CHECK: Duration = Duration::from_secs(1);
const CONTROL_CHECKS: usize = 8;
const SESSIONS_CHECKS: usize = 4;
/// How many streams are read at once with a command each.
const MAX_STREAMS: usize = 2000;
/// If a follower finds this many entries in the bell, it may have missed some, as writers shorten the bell to twice as
/// many.
const BELL_PAGE: usize = 500;

/// Reads new records of scopes.
pub(super) struct Follower {
    config: Arc<ValkeyConfig>,
    servers: Servers,
    scopes: Vec<Scope>,
    /// Scope and stream of each key; empty after a change of scopes.
    index: HashMap<Vec<u8>, (usize, usize)>,
    /// Records that exceed the limit of the call that read them.
    ready: VecDeque<(Arc<str>, Stream, Record)>,
    /// The count of lost connections when the state of the log was last known.
    lost: u64,
    checked: Option<Instant>,
    next_control: usize,
    next_sessions: usize,
    /// When new records were last read, if there were no more of them.
    paced: Option<Instant>,
    /// In a cluster, up to where the bell has been read.
    bell: Option<Id>,
}

/// Streams, by the indices of scope and key, with the entries that were found in them.
type Found = Vec<((usize, usize), Page)>;

/// A scope that is followed.
struct Scope {
    name: Arc<str>,
    tails: Vec<Tail>,
    lost: bool,
}

/// A stream that is followed.
struct Tail {
    key: Vec<u8>,
    /// The last entry that was read.
    last: Id,
    /// Only for a control stream: how many entries it must have at least, and the id from which on they are counted one
    /// by one.
    counted: Option<Extent>,
    /// Whether it has been checked since the start, or since the connection was lost.
    is_checked: bool,
    /// In a cluster, whether there may be new entries.
    is_due: bool,
    /// Why the server refuses to read the key, for instance because it is no stream. This stays until it has been read.
    refusal: Option<LogError>,
    /// Whether it is left out until a check says that it could be read.
    is_refused: bool,
}

impl Tail {
    /// Notes how far the stream goes. Returns whether it has lost entries.
    fn compare(&mut self, now: Extent, is_control: bool) -> bool {
        self.is_checked = true;
        let went_back = now.last < self.last;
        if went_back {
            // The stream began again. Its ids need not continue the old ones.
            self.last = Id::default();
        }
        self.is_due |= now.last > self.last;
        if !is_control {
            return false;
        }
        let is_short = self
            .counted
            .is_some_and(|counted| now.length < counted.length);
        if went_back || is_short || self.counted.is_none() {
            self.counted = Some(now);
        }
        went_back || is_short
    }

    /// Notes an entry that was read.
    fn read(&mut self, id: Id) {
        self.last = id;
        if let Some(counted) = &mut self.counted {
            if id > counted.last {
                *counted = Extent {
                    length: counted.length + 1,
                    last: id,
                };
            }
        }
    }
}

/// Whether an answer says that a key cannot be read, for a reason that does not pass by itself.
fn is_refusal(answer: &Value) -> bool {
    matches!(answer.error_code(), Some("WRONGTYPE" | "NOPERM"))
}

impl Follower {
    /// Does not connect yet.
    pub(super) fn new(config: Arc<ValkeyConfig>) -> Self {
        Self {
            servers: Servers::new(config.clone()),
            config,
            scopes: Vec::new(),
            index: HashMap::new(),
            ready: VecDeque::new(),
            lost: 0,
            checked: None,
            next_control: 0,
            next_sessions: 0,
            paced: None,
            bell: None,
        }
    }

    fn number_keys(&mut self) {
        if !self.index.is_empty() {
            return;
        }
        for (scope, followed) in self.scopes.iter().enumerate() {
            for (stream, tail) in followed.tails.iter().enumerate() {
                self.index.insert(tail.key.clone(), (scope, stream));
            }
        }
    }

    fn call(
        &mut self,
        commands: &[Command],
        wait: Duration,
        deadline: Instant,
    ) -> Result<Vec<Value>, LogError> {
        self.call_within(Room::Together(Budget::CALL), commands, wait, deadline)
    }

    fn call_within(
        &mut self,
        room: Room,
        commands: &[Command],
        wait: Duration,
        deadline: Instant,
    ) -> Result<Vec<Value>, LogError> {
        let answers = self
            .servers
            .call_within(room, commands, wait, deadline, Repeat::Safe)
            .map_err(|why| error(&self.config, TASK, &why))?;
        if self.lost != self.servers.lost() {
            self.lost = self.servers.lost();
            self.suspect_all();
        }
        Ok(answers)
    }

    /// Notes that nothing is known of the log after the connection was lost.
    fn suspect_all(&mut self) {
        self.checked = None;
        self.bell = None;
        for scope in &mut self.scopes {
            scope.lost = true;
            for tail in &mut scope.tails {
                tail.counted = None;
                tail.is_checked = false;
                tail.is_due = true;
            }
        }
    }

    /// The next streams of one kind to check, in rotation.
    fn turn(
        scopes: &[Scope],
        next: &mut usize,
        most: usize,
        is_wanted: impl Fn(usize) -> bool,
    ) -> Vec<(usize, usize)> {
        let all: Vec<(usize, usize)> = scopes
            .iter()
            .enumerate()
            .flat_map(|(scope, followed)| {
                (0..followed.tails.len()).map(move |stream| (scope, stream))
            })
            .filter(|(_, stream)| is_wanted(*stream))
            .collect();
        let some = most.min(all.len());
        let turn = (0..some).map(|n| all[(*next + n) % all.len()]).collect();
        *next = next.wrapping_add(some) % all.len().max(1);
        turn
    }

    /// Checks new scopes at once, and the others in rotation, at most once a second.
    fn check(&mut self, deadline: Instant) -> Result<(), LogError> {
        let mut chosen: Vec<(usize, usize)> = (0..self.scopes.len())
            .filter(|scope| {
                let control = &self.scopes[*scope].tails[0];
                !control.is_checked && !control.is_refused
            })
            .map(|scope| (scope, 0))
            .collect();
        let is_time = self
            .checked
            .is_none_or(|checked| checked.elapsed() >= CHECK);
        if is_time {
            self.checked = Some(Instant::now());
            let scopes = &self.scopes;
            let control = |stream| stream == 0;
            let turn = Self::turn(scopes, &mut self.next_control, CONTROL_CHECKS, control);
            chosen.extend(turn);
            let sessions = |stream| stream != 0;
            let turn = Self::turn(scopes, &mut self.next_sessions, SESSIONS_CHECKS, sessions);
            chosen.extend(turn);
            chosen.sort_unstable();
            chosen.dedup();
        }
        let mut commands: Vec<Command> = chosen
            .iter()
            .map(|(scope, stream)| {
                let key = &self.scopes[*scope].tails[*stream].key;
                Command::new(key, &[b"XINFO", b"STREAM", key])
            })
            .collect();
        let asks_bell = self.config.cluster && (is_time || self.bell.is_none());
        if asks_bell {
            commands.push(Command::new(BELL, &[b"XINFO", b"STREAM", BELL]));
        }
        if commands.is_empty() {
            return Ok(());
        }
        let mut answers = self.call(&commands, Duration::ZERO, deadline)?;
        if asks_bell {
            let answer = answers
                .pop()
                .and_then(|answer| extent(answer).ok().flatten());
            // If there is no bell yet, streams are only checked in rotation.
            let now = answer.unwrap_or_default().last;
            if self.bell.is_none_or(|bell| now < bell) {
                self.bell = Some(now);
                self.all_due();
            }
        }
        for ((scope, stream), answer) in chosen.into_iter().zip(answers) {
            if let Value::Error(why) = &answer {
                if is_refusal(&answer) {
                    self.refuse(scope, stream, why);
                    continue;
                }
            }
            let followed = &mut self.scopes[scope];
            let tail = &mut followed.tails[stream];
            match extent(answer) {
                Ok(Some(now)) => {
                    if std::mem::take(&mut tail.is_refused) {
                        tail.counted = None;
                        tail.is_due = true;
                    }
                    followed.lost |= tail.compare(now, stream == 0);
                }
                Ok(None) => {
                    self.servers.disconnect();
                    return Err(nonsense(&self.config, TASK, "XINFO STREAM"));
                }
                Err(why) => return Err(error_for(&self.config, TASK, &why, &tail.key)),
            }
        }
        Ok(())
    }

    /// Leaves a stream out until it can be read again. The other streams and scopes go on.
    fn refuse(&mut self, scope: usize, stream: usize, why: &str) {
        let followed = &mut self.scopes[scope];
        let tail = &mut followed.tails[stream];
        let refusal = error_for(&self.config, TASK, why, &tail.key);
        followed.lost |= tail.refusal.replace(refusal).is_none() && stream == 0;
        tail.is_refused = true;
    }

    /// Notes that a stream could be read. If it could not before, it may have lost anything since.
    fn accept(&mut self, scope: usize, stream: usize) {
        let followed = &mut self.scopes[scope];
        let refusal = followed.tails[stream].refusal.take();
        followed.lost |= refusal.is_some() && stream == 0;
    }

    fn all_due(&mut self) {
        for tail in self.scopes.iter_mut().flat_map(|scope| &mut scope.tails) {
            tail.is_due = true;
        }
    }

    /// A command that reads the streams' entries behind those that were read.
    fn read_command(&self, parts: &[(usize, usize)], count: usize, wait: Duration) -> Command {
        let count = count.to_string();
        let block = wait.as_millis().to_string();
        let tails = || {
            parts
                .iter()
                .map(|(scope, stream)| &self.scopes[*scope].tails[*stream])
        };
        let ids: Vec<String> = tails().map(|tail| tail.last.to_string()).collect();
        let mut words: Vec<&[u8]> = vec![b"XREAD", b"COUNT", count.as_bytes()];
        // 0 would mean no limit.
        if wait.as_millis() > 0 {
            words.extend([&b"BLOCK"[..], block.as_bytes()]);
        }
        words.push(b"STREAMS");
        words.extend(tails().map(|tail| &tail.key[..]));
        words.extend(ids.iter().map(String::as_bytes));
        Command::new(words[words.len() - 2 * parts.len()], &words)
    }

    /// The streams in an answer to XREAD, with their entries.
    fn found(&self, answer: Value) -> Option<Found> {
        let stream = |value: Value| {
            let [Value::Text(key), entries] = value.array()? else {
                return None;
            };
            Some((*self.index.get(&key)?, page(entries)?))
        };
        match answer {
            Value::Nil => Some(Vec::new()),
            Value::Array(streams) => streams.into_iter().map(stream).collect(),
            _ => None,
        }
    }

    /// Reads from one server, and waits up to `wait`.
    fn look(&mut self, wait: Duration, deadline: Instant) -> Result<(), LogError> {
        let parts = self.parts(|_| true);
        let count = (MAX_ENTRIES / parts.len().max(1)).max(1);
        let command = self.read_command(&parts, count, wait);
        let answer = self.call(&[command], wait, deadline)?.pop();
        match answer {
            // A server refuses the whole command because of one key.
            Some(answer) if is_refusal(&answer) => self.read_each(&parts, deadline),
            Some(Value::Error(why)) => Err(error(&self.config, TASK, &why)),
            answer => match answer.and_then(|answer| self.found(answer)) {
                Some(found) => {
                    for (scope, stream) in parts {
                        self.accept(scope, stream);
                    }
                    self.take(found, count);
                    Ok(())
                }
                None => {
                    self.servers.disconnect();
                    Err(nonsense(&self.config, TASK, "XREAD"))
                }
            },
        }
    }

    /// The streams that can be read. Sessions cannot be read if the control records of their scope cannot.
    fn parts(&self, is_wanted: impl Fn(&Tail) -> bool) -> Vec<(usize, usize)> {
        let mut parts = Vec::new();
        for (scope, followed) in self.scopes.iter().enumerate() {
            if followed.tails[0].is_refused {
                continue;
            }
            for (stream, tail) in followed.tails.iter().enumerate() {
                if !tail.is_refused && is_wanted(tail) {
                    parts.push((scope, stream));
                }
            }
        }
        parts
    }

    /// Reads streams, each with a command of its own, and the control streams of their scopes.
    fn read_each(&mut self, parts: &[(usize, usize)], deadline: Instant) -> Result<(), LogError> {
        // The sessions are kept until the control records are there, so each gets half of the memory.
        let count = (MAX_ENTRIES / 2 / parts.len().max(1)).max(1);
        let sessions: Vec<_> = parts.iter().copied().filter(|part| part.1 != 0).collect();
        let mut control: Vec<_> = parts.iter().map(|(scope, _)| (*scope, 0)).collect();
        control.dedup();
        // The control streams come after the others, so they have all records that the sessions refer to.
        let mut found = self.pages(&sessions, count, deadline)?;
        found.extend(self.pages(&control, count, deadline)?);
        for (scope, stream) in parts {
            self.scopes[*scope].tails[*stream].is_due = false;
        }
        self.take(found, count);
        Ok(())
    }

    /// The new entries of streams, in half of a call's memory. The server may refuse some streams.
    fn pages(
        &mut self,
        parts: &[(usize, usize)],
        count: usize,
        deadline: Instant,
    ) -> Result<Found, LogError> {
        let commands: Vec<Command> = parts
            .iter()
            .map(|part| self.read_command(&[*part], count, Duration::ZERO))
            .collect();
        let room = Room::Together(Budget::share(2));
        let answers = self.call_within(room, &commands, Duration::ZERO, deadline)?;
        let mut all = Vec::new();
        for ((scope, stream), answer) in parts.iter().zip(answers) {
            match &answer {
                Value::Error(why) if is_refusal(&answer) => {
                    self.refuse(*scope, *stream, why);
                    continue;
                }
                Value::Error(why) => {
                    let key = &self.scopes[*scope].tails[*stream].key;
                    return Err(error_for(&self.config, TASK, why, key));
                }
                _ => {}
            }
            let Some(found) = self.found(answer) else {
                self.servers.disconnect();
                return Err(nonsense(&self.config, TASK, "XREAD"));
            };
            self.accept(*scope, *stream);
            all.extend(found);
        }
        Ok(all)
    }

    /// Reads from the servers of a cluster, and waits up to `wait`.
    fn look_around(&mut self, wait: Duration, deadline: Instant) -> Result<(), LogError> {
        let is_due = |tail: &Tail| tail.is_due;
        if self.parts(is_due).is_empty() {
            self.listen(wait, deadline)?;
        }
        let mut due = self.parts(is_due);
        if due.is_empty() {
            return Ok(());
        }
        // The others remain due.
        due.truncate(MAX_STREAMS);
        self.read_each(&due, deadline)
    }

    /// Waits for the bell, and notes which streams have new entries.
    fn listen(&mut self, wait: Duration, deadline: Instant) -> Result<(), LogError> {
        let bell = self.bell.unwrap_or_default().to_string();
        let count = BELL_PAGE.to_string();
        let block = wait.as_millis().to_string();
        let mut words: Vec<&[u8]> = vec![b"XREAD", b"COUNT", count.as_bytes()];
        if wait.as_millis() > 0 {
            words.extend([&b"BLOCK"[..], block.as_bytes()]);
        }
        words.extend([&b"STREAMS"[..], BELL, bell.as_bytes()]);
        let answer = self
            .call(&[Command::new(BELL, &words)], wait, deadline)?
            .pop();
        let entries = match answer {
            Some(Value::Nil) => return Ok(()),
            Some(Value::Error(why)) => return Err(error_for(&self.config, TASK, &why, BELL)),
            answer => answer
                .and_then(Value::array)
                .and_then(|[stream]| stream.array())
                .and_then(|[_, entries]| page(entries)),
        };
        let Some(rung) = entries else {
            self.servers.disconnect();
            return Err(nonsense(&self.config, TASK, "XREAD"));
        };
        if rung.entries.len() >= BELL_PAGE || rung.cut_at.is_some() {
            // The end of the bell will be looked up again.
            self.bell = None;
            self.all_due();
            return Ok(());
        }
        for (id, named) in rung.entries {
            self.bell = Some(id);
            for key in named.unwrap_or_default().split(|byte| *byte == b'\n') {
                if let Some((scope, stream)) = self.index.get(key) {
                    self.scopes[*scope].tails[*stream].is_due = true;
                }
            }
        }
        Ok(())
    }

    /// Takes the entries that were found.
    fn take(&mut self, mut found: Found, count: usize) {
        found.sort_by_key(|(part, _)| *part);
        let mut is_more = false;
        let mut is_new = false;
        // A scope may have control records that were not read: there are more of them, or the server refuses them. Its
        // sessions have to wait, as they may refer to these.
        let mut incomplete = None;
        for ((scope, stream), page) in found {
            if incomplete == Some(scope) || self.scopes[scope].tails[0].is_refused {
                self.scopes[scope].tails[stream].is_due = true;
                continue;
            }
            let followed = &mut self.scopes[scope];
            if page.entries.len() >= count || page.cut_at.is_some() {
                is_more = true;
                followed.tails[stream].is_due = true;
                if stream == 0 {
                    incomplete = Some(scope);
                }
            }
            for (id, record) in page.entries {
                is_new = true;
                followed.tails[stream].read(id);
                if let Some(record) = record {
                    let name = followed.name.clone();
                    self.ready.push_back((name, stream_of(stream), record));
                }
            }
        }
        self.paced = Some(Instant::now()).filter(|_| is_new && !is_more);
    }

    /// Records to return, about `limit` at most.
    fn news(&mut self, limit: usize) -> News {
        let count = limit.max(1).min(self.ready.len());
        let mut lost = Vec::new();
        for scope in &mut self.scopes {
            if std::mem::take(&mut scope.lost) {
                lost.push(scope.name.clone());
            }
        }
        let refusal = |scope: &Scope| {
            let refusal = scope.tails.iter().find_map(|tail| tail.refusal.clone())?;
            Some((scope.name.clone(), refusal))
        };
        News {
            records: self.ready.drain(..count).collect(),
            lost,
            refused: self.scopes.iter().filter_map(refusal).collect(),
        }
    }

    fn has_news(&self) -> bool {
        !self.ready.is_empty() || self.scopes.iter().any(|scope| scope.lost)
    }

    /// Waits until there are records to return.
    fn wait(&mut self, wait: Duration) -> Result<(), LogError> {
        let deadline = deadline();
        let began = Instant::now();
        let left = || wait.saturating_sub(began.elapsed());
        loop {
            if let Some(paced) = self.paced {
                thread::sleep(PACE.saturating_sub(paced.elapsed()).min(left()));
            }
            self.check(deadline)?;
            if self.has_news() {
                return Ok(());
            }
            let block = left().min(BLOCK);
            if self.parts(|_| true).is_empty() {
                // All are refused. The next check may find that one can be read.
                thread::sleep(block);
            } else if self.config.cluster {
                self.look_around(block, deadline)?;
            } else {
                self.look(block, deadline)?;
            }
            if self.has_news() || left().is_zero() {
                return Ok(());
            }
        }
    }
}

impl LogFollower for Follower {
    fn follow(&mut self, scope: &Arc<str>, from: &Mark) {
        self.leave(scope);
        let keys = keys(&self.config, scope);
        // Behind the ends of the streams, a mark contains the number of control records.
        let count = from.0.get(keys.len()).map(|(length, _)| Extent {
            length: *length,
            last: Id(from.0[0].0, from.0[0].1),
        });
        let tails = keys
            .into_iter()
            .enumerate()
            .map(|(stream, key)| {
                let (time, number) = from.0.get(stream).copied().unwrap_or_default();
                Tail {
                    key,
                    last: Id(time, number),
                    counted: count.filter(|_| stream == 0),
                    is_checked: false,
                    is_due: true,
                    refusal: None,
                    is_refused: false,
                }
            })
            .collect();
        self.scopes.push(Scope {
            name: scope.clone(),
            tails,
            lost: false,
        });
        self.index.clear();
    }

    fn leave(&mut self, scope: &str) {
        self.scopes.retain(|followed| &*followed.name != scope);
        self.ready.retain(|(name, ..)| &**name != scope);
        self.index.clear();
    }

    fn newer(&mut self, limit: usize, wait: Duration) -> Result<News, LogError> {
        let wait = wait.min(MAX_WAIT);
        if self.scopes.is_empty() {
            thread::sleep(wait);
        } else if self.ready.is_empty() {
            self.number_keys();
            self.wait(wait)?;
        }
        Ok(self.news(limit))
    }
}
