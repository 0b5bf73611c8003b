//! The servers of a log: one server, or those of a cluster that have its streams. Keeps a connection to each one in
//! use.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::ValkeyConfig;
use super::connection::{Address, Broken, Connection, ANSWER};
use super::resp::{encode, Budget, Value};

/// Number of slots in a cluster.
const SLOTS: u16 = 16384;
/// No cluster has more servers.
const MAX_SERVERS: usize = 1000;

/// A command for the server that has a key.
pub(super) struct Command {
    slot: u16,
    encoded: Vec<u8>,
}

impl Command {
    /// A command for the server that has `key`, with all its words.
    pub(super) fn new(key: &[u8], words: &[&[u8]]) -> Self {
        Self {
            slot: slot(key),
            encoded: encode(words),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.encoded.len()
    }
}

/// What to do if a server, or something on the way, has ended the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Connect and send the commands again: repeating them does no harm.
    Safe,
    /// Return an error, as the server may have carried out the commands. To make that rare, connections are tested
    /// first.
    Never,
}

/// The memory for the answers of a call.
#[derive(Clone)]
pub(super) enum Room {
    /// For all of them together: the first come first.
    Together(Budget),
    /// For each of them.
    Each(Budget),
}

/// The servers of a log.
pub(super) struct Servers {
    config: Arc<ValkeyConfig>,
    nodes: Vec<Node>,
    /// In a cluster, which node has which slots.
    homes: Vec<(RangeInclusive<u16>, usize)>,
    /// The servers of the cluster when it was last asked: one of them is asked if the server in the URL is gone.
    known: VecDeque<Address>,
    connected: u64,
    lost: u64,
}

struct Node {
    address: Address,
    connection: Option<Connection>,
}

impl Servers {
    /// Does not connect yet.
    pub(super) fn new(config: Arc<ValkeyConfig>) -> Self {
        Self {
            config,
            nodes: Vec::new(),
            homes: Vec::new(),
            known: VecDeque::new(),
            connected: 0,
            lost: 0,
        }
    }

    /// How many connections were made so far, including those that asked for slots.
    pub(super) fn connected(&self) -> u64 {
        self.connected
    }

    /// How often connections were ended, by either side.
    pub(super) fn lost(&self) -> u64 {
        self.lost
    }

    /// Ends all connections.
    pub(super) fn disconnect(&mut self) {
        if self.nodes.iter().any(|node| node.connection.is_some()) {
            self.lost += 1;
        }
        self.nodes.clear();
        self.homes.clear();
    }

    /// The index of one key per server in use: a command for each of these keys reaches all servers.
    pub(super) fn one_for_each_server(&mut self, keys: &[&[u8]]) -> Vec<usize> {
        let mut homes = Vec::new();
        let mut chosen = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            if let Some(home) = self.home(slot(key)) {
                if !homes.contains(&home) {
                    homes.push(home);
                    chosen.push(index);
                }
            }
        }
        chosen
    }

    /// Sends each command to the server that has its key. Returns the answers in the order of the commands; some may be
    /// errors. Commands to different servers are carried out in any order. `wait` is how long the servers may stay
    /// silent because the commands wait for something. After an error no connection is left.
    ///
    /// If a server refuses commands because another server has the keys now, they are sent there, once.
    pub(super) fn call(
        &mut self,
        commands: &[Command],
        wait: Duration,
        deadline: Instant,
        repeat: Repeat,
    ) -> Result<Vec<Value>, String> {
        let room = Room::Together(Budget::CALL);
        self.call_within(room, commands, wait, deadline, repeat)
    }

    /// The same, with another limit for the memory of the answers.
    pub(super) fn call_within(
        &mut self,
        mut room: Room,
        commands: &[Command],
        wait: Duration,
        deadline: Instant,
        repeat: Repeat,
    ) -> Result<Vec<Value>, String> {
        let all: Vec<&Command> = commands.iter().collect();
        let mut answers = self.send(&mut room, &all, wait, deadline, repeat)?;
        let refused: Vec<usize> = (0..answers.len())
            .filter(|index| is_elsewhere(&answers[*index]))
            .collect();
        if !refused.is_empty() {
            self.disconnect();
            let again: Vec<&Command> = refused.iter().map(|index| &commands[*index]).collect();
            let others = self.send(&mut room, &again, wait, deadline, repeat)?;
            for (index, answer) in refused.into_iter().zip(others) {
                answers[index] = answer;
            }
            if answers.iter().any(is_elsewhere) {
                self.disconnect();
            }
        }
        Ok(answers)
    }

    fn send(
        &mut self,
        room: &mut Room,
        commands: &[&Command],
        wait: Duration,
        deadline: Instant,
        repeat: Repeat,
    ) -> Result<Vec<Value>, String> {
        let had_connections = self.nodes.iter().any(|node| node.connection.is_some());
        let before = room.clone();
        let mut result = self.round(room, commands, wait, deadline, repeat);
        if result.as_ref().is_err_and(|broken| broken.lost) {
            self.disconnect();
            if had_connections && repeat == Repeat::Safe {
                // The answers up to there were dropped.
                *room = before;
                result = self.round(room, commands, wait, deadline, repeat);
            }
        }
        result.map_err(|broken| {
            self.disconnect();
            broken.words
        })
    }

    fn round(
        &mut self,
        room: &mut Room,
        commands: &[&Command],
        wait: Duration,
        deadline: Instant,
        repeat: Repeat,
    ) -> Result<Vec<Value>, Broken> {
        let mut homes = Vec::with_capacity(commands.len());
        for command in commands {
            if self.nodes.is_empty() {
                self.find(deadline)?;
            }
            let home = self.home(command.slot);
            homes.push(home.ok_or_else(|| Broken::new("a part of the cluster has no server"))?);
        }
        let mut encoded = vec![Vec::new(); self.nodes.len()];
        for (command, home) in commands.iter().zip(&homes) {
            encoded[*home].extend_from_slice(&command.encoded);
        }
        // All connections must stand before anything is sent.
        for (node, encoded) in encoded.iter().enumerate() {
            if !encoded.is_empty() {
                self.prepare(node, deadline, repeat)
                    .map_err(|broken| self.at(node, broken))?;
            }
        }
        for (node, encoded) in encoded.iter().enumerate() {
            if !encoded.is_empty() {
                let sent = self.connection(node)?.send(encoded, deadline);
                sent.map_err(|broken| self.at(node, broken))?;
            }
        }
        let silence = wait.saturating_add(ANSWER);
        let mut answers = Vec::with_capacity(commands.len());
        for node in homes {
            let mut own;
            let budget = match room {
                Room::Together(budget) => budget,
                Room::Each(budget) => {
                    own = budget.clone();
                    &mut own
                }
            };
            let answer = self.connection(node)?.receive(deadline, silence, budget);
            answers.push(answer.map_err(|broken| self.at(node, broken))?);
        }
        Ok(answers)
    }

    /// In a cluster, adds to an error which server it is about.
    fn at(&self, node: usize, broken: Broken) -> Broken {
        match self.config.cluster {
            true => at(&self.nodes[node].address, broken),
            false => broken,
        }
    }

    fn connection(&mut self, node: usize) -> Result<&mut Connection, Broken> {
        let connection = self.nodes[node].connection.as_mut();
        connection.ok_or_else(|| Broken::new("not connected"))
    }

    /// Connects to a node, unless there is a connection that can be used.
    fn prepare(&mut self, node: usize, deadline: Instant, repeat: Repeat) -> Result<(), Broken> {
        let node = &mut self.nodes[node];
        if let Some(connection) = &mut node.connection {
            if repeat == Repeat::Safe || connection.is_alive(deadline) {
                return Ok(());
            }
        }
        node.connection = None;
        let target = self.config.target().map_err(Broken::new)?;
        let connection = Connection::open(&self.config, &target, &node.address, deadline)?;
        node.connection = Some(connection);
        self.connected += 1;
        Ok(())
    }

    /// The node that has a slot.
    fn home(&self, slot: u16) -> Option<usize> {
        match self.config.cluster {
            true => self
                .homes
                .iter()
                .find(|(slots, _)| slots.contains(&slot))
                .map(|(_, home)| *home),
            false => Some(0).filter(|_| !self.nodes.is_empty()),
        }
    }

    /// Finds out which servers there are.
    fn find(&mut self, deadline: Instant) -> Result<(), Broken> {
        let target = self.config.target().map_err(Broken::new)?;
        let first = (target.host.clone(), target.port);
        if !self.config.cluster {
            self.nodes.push(Node {
                address: first,
                connection: None,
            });
            return Ok(());
        }
        let mut seed = first;
        let mut opened = Connection::open(&self.config, &target, &seed, deadline);
        if opened.is_err() && !self.known.is_empty() {
            self.known.rotate_left(1);
            seed = self.known[0].clone();
            opened = Connection::open(&self.config, &target, &seed, deadline)
                .map_err(|broken| at(&seed, broken));
        }
        let mut connection = opened?;
        connection.send(&encode(&[b"CLUSTER", b"SLOTS"]), deadline)?;
        let nonsense = || Broken::new("its answer to CLUSTER SLOTS makes no sense");
        let ranges = match connection.receive(deadline, ANSWER, &mut Budget::SLOTS.clone())? {
            Value::Error(error) => return Err(Broken::new(error)),
            answer => ranges(answer).ok_or_else(nonsense)?,
        };
        self.connected += 1;
        self.disconnect();
        let mut nodes: Vec<Node> = Vec::new();
        for range in ranges {
            // A server that does not know its own name leaves out the host.
            let address = (range.host.unwrap_or_else(|| seed.0.clone()), range.port);
            let known = nodes.iter().position(|node| node.address == address);
            let home = known.unwrap_or_else(|| {
                nodes.push(Node {
                    address,
                    connection: None,
                });
                nodes.len() - 1
            });
            if nodes.len() > MAX_SERVERS {
                self.homes.clear();
                return Err(nonsense());
            }
            self.homes.push((range.slots, home));
        }
        if let Some(node) = nodes.iter_mut().find(|node| node.address == seed) {
            node.connection = Some(connection);
        }
        if nodes.is_empty() {
            return Err(Broken::new("a part of the cluster has no server"));
        }
        self.known = nodes.iter().map(|node| node.address.clone()).collect();
        self.nodes = nodes;
        Ok(())
    }
}

fn at((host, port): &Address, broken: Broken) -> Broken {
    Broken {
        words: format!("{host}:{port}: {}", broken.words),
        ..broken
    }
}

/// Whether a server refused a command, and did not carry it out, because another one has the key now or because it has
/// become a replica.
fn is_elsewhere(answer: &Value) -> bool {
    matches!(
        answer.error_code(),
        Some("MOVED" | "READONLY" | "UNBLOCKED")
    )
}

/// A range of slots, and the server that has them.
struct Slots {
    slots: RangeInclusive<u16>,
    host: Option<String>,
    port: u16,
}

/// The answer to CLUSTER SLOTS.
fn ranges(answer: Value) -> Option<Vec<Slots>> {
    let range = |range: Value| {
        let Value::Array(range) = range else {
            return None;
        };
        let mut range = range.into_iter();
        let (Value::Int(first), Value::Int(last)) = (range.next()?, range.next()?) else {
            return None;
        };
        let Value::Array(primary) = range.next()? else {
            return None;
        };
        let mut primary = primary.into_iter();
        let host = match primary.next()? {
            Value::Text(host) if !host.is_empty() && host != b"?" => {
                Some(String::from_utf8(host).ok()?)
            }
            _ => None,
        };
        let Value::Int(port) = primary.next()? else {
            return None;
        };
        Some(Slots {
            slots: u16::try_from(first).ok()?..=u16::try_from(last).ok()?,
            host,
            port: port.try_into().ok()?,
        })
    };
    let Value::Array(all) = answer else {
        return None;
    };
    if all.len() > usize::from(SLOTS) {
        return None;
    }
    all.into_iter().map(range).collect()
}

/// The slot of a key. If there is something between its first braces, only that counts.
fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|start| {
        let rest = &key[start + 1..];
        let end = rest.iter().position(|byte| *byte == b'}')?;
        Some(&rest[..end]).filter(|tag| !tag.is_empty())
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

/// CRC-16/XMODEM, with which clusters assign keys to slots.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| {
            let shifted = crc << 1;
            match crc & 0x8000 {
                0 => shifted,
                _ => shifted ^ 0x1021,
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_the_slots_that_servers_give_them() {
        // From the specification of Redis Cluster.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        assert_eq!(slot(b"123456789"), 12739);
        assert_eq!(slot(b"x{123456789}y}"), 12739);
        assert_eq!(
            slot(b"foo{}{123456789}"),
            crc16(b"foo{}{123456789}") % SLOTS
        );
        assert_eq!(slot(b"foo{bar"), crc16(b"foo{bar") % SLOTS);
    }

    #[test]
    fn answers_to_cluster_slots() {
        let text = |text: &str| Value::Text(text.into());
        let range = |first, last, host| {
            let primary = Value::Array(vec![host, Value::Int(7000), text("id")]);
            Value::Array(vec![Value::Int(first), Value::Int(last), primary])
        };
        let found = ranges(Value::Array(vec![
            range(0, 99, text("10.0.0.1")),
            range(100, 16383, Value::Nil),
        ]))
        .unwrap();
        assert_eq!(found[0].host.as_deref(), Some("10.0.0.1"));
        assert_eq!(
            (&found[1].host, found[1].slots.clone(), found[1].port),
            (&None, 100..=16383, 7000)
        );
        let full = vec![range(0, 0, Value::Nil); usize::from(SLOTS)];
        assert!(ranges(Value::Array(full.clone())).is_some());
        let too_many = [full, vec![range(0, 0, Value::Nil)]].concat();
        assert!(ranges(Value::Array(too_many)).is_none());
        for wrong in [
            Value::Nil,
            Value::Array(vec![Value::Nil]),
            Value::Array(vec![range(-1, 5, Value::Nil)]),
            Value::Array(vec![Value::Array(vec![Value::Int(0), Value::Int(1)])]),
        ] {
            assert!(ranges(wrong.clone()).is_none(), "{wrong:?}");
        }
    }
}
