//! Sealed records: their format, and what they contain. An attacker with the log sees everything before the body.
//!
//! ```text
//!  0  format version (4)           26  made, milliseconds by the writer's monotonic clock
//!  1  kind                         34  lifetime, milliseconds
//!  2  tag of the scope (4)         42  length of the key's name
//!  6  tag of the record layout (4) 43  the key's name
//! 10  identity of the log (8)       …  nonce (24)
//! 18  writer (8)                    …  sealed body, tag (16)
//! ```
//!
//! Numbers are big-endian. The body is sealed with XChaCha20-Poly1305 under a random nonce. Everything before the nonce
//! is associated data, and so are the full names of scope and record layout. The kind decides the stream. So a record
//! opens only in the log, scope and stream for which it was written.

use crate::keys::{is_id, Keys};
use crate::revocations::{Knowledge, Known, RevocationId};
use crate::target::Target;
use chacha20poly1305::aead::{Aead, Generate, Payload};
use chacha20poly1305::XNonce;
use rekindle_log::{Record, Stream};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::ops::RangeInclusive;
use zeroize::Zeroizing;

const VERSION: u8 = 4;
const KEY_ID_AT: usize = 43;
const NONCE: usize = 24;
/// How many nonces are taken from the system at once.
const NONCES: usize = 40;
const TAG: usize = 16;

/// Longest record that is opened, in bytes.
const MAX_RECORD: usize = 1024 * 1024;

/// Hash by which sessions refer to a template or a knowledge record: the beginning of its SHA-256.
pub type ContentHash = [u8; 16];

/// The random identity of a log.
pub type LogIdentity = [u8; 8];

/// The hash by which sessions refer to this content.
pub fn content_hash(content: &[u8]) -> ContentHash {
    first(Sha256::digest(content).as_slice())
}

/// The scope and the record layout of records.
pub struct Context {
    scope: Vec<u8>,
    layout: Vec<u8>,
    scope_tag: [u8; 4],
    layout_tag: [u8; 4],
}

impl Context {
    /// `scope` is the scope's name. `layout` names the fields of session records. Records of other layouts are not
    /// read.
    pub fn new(scope: &[u8], layout: &[u8]) -> Self {
        Context {
            scope: scope.into(),
            layout: layout.into(),
            scope_tag: first(Sha256::digest(scope).as_slice()),
            layout_tag: first(Sha256::digest(layout).as_slice()),
        }
    }

    fn layout(&self, kind: Kind) -> (&[u8], [u8; 4]) {
        match kind {
            Kind::Session | Kind::Template => (&self.layout, self.layout_tag),
            // Other records have no layout: a node that cannot read a session must still obey its revocation.
            _ => (&[], [0; 4]),
        }
    }

    fn associated_data(&self, header: &[u8], kind: Kind) -> Vec<u8> {
        let length = |part: &[u8]| (part.len() as u32).to_be_bytes();
        let layout = self.layout(kind).0;
        [
            header,
            &length(&self.scope),
            &self.scope,
            &length(layout),
            layout,
        ]
        .concat()
    }
}

/// Writer, log and time of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The log for which it was written.
    pub log: LogIdentity,
    /// The random number of the journal that wrote it.
    pub writer: u64,
    /// When it was made, in milliseconds by the writer's monotonic clock. A [`Body::Clock`] relates that to the time of
    /// day.
    pub made_ms: u64,
    /// How long the session lives, in milliseconds.
    pub lifetime_ms: u64,
}

/// The content of a record. Not `Debug`, which would show the secret.
pub enum Body<'a> {
    /// A session was stored.
    Session {
        /// Its id.
        id: &'a [u8; 32],
        /// The master secret.
        secret: &'a [u8; 48],
        /// The hash of its template.
        template: &'a ContentHash,
        /// The hash of the revocations that its writer knew when it was made.
        knowledge: &'a ContentHash,
        /// The client's certificate, in DER; empty if it has none.
        certificate: &'a [u8],
        /// All other fields that differ from the template.
        tail: &'a [u8],
    },
    /// Fields that sessions have in common.
    Template(&'a [u8]),
    /// What a writer knows: revocations, and names of keys that were taken out of use.
    Knowledge(&'a [u8]),
    /// The writer's monotonic clock was at zero at this time, in milliseconds since 1970. `revision` counts the
    /// corrections.
    Clock { zero_ms: i64, revision: u64 },
    /// Sessions are revoked.
    Revocation {
        id: RevocationId,
        term: Term,
        target: Target,
    },
    /// A node asks the others to write what is missing, and then to answer with this number.
    Ask { nonce: u64 },
    /// A node answers that it has written all missing records that it knew. `knowledge` is the hash of what it knew.
    Answer {
        nonce: u64,
        knowledge: &'a ContentHash,
    },
    /// Gives the log the identity that is in the record's header, if the log has none.
    Claim,
}

/// How long a node keeps a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Term {
    /// How long it keeps a new one, in milliseconds.
    pub keep_ms: u64,
    /// How much of that is left, in milliseconds.
    pub left_ms: u64,
}

impl Term {
    /// The term of a new revocation.
    pub fn new(keep_ms: u64) -> Term {
        Term {
            keep_ms,
            left_ms: keep_ms,
        }
    }

    /// How long another node keeps the revocation, in milliseconds. Sessions may live longer there. It must not begin to
    /// count anew: if all nodes were restarted before the time is over, the revocation would never expire.
    pub fn left_with_ms(self, keep_ms: u64) -> u64 {
        // The writer may have it from a node that keeps revocations for longer.
        let its_keep_ms = self.keep_ms.max(self.left_ms);
        self.left_ms
            .saturating_add(keep_ms.saturating_sub(its_keep_ms))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Session = 1,
    Template = 2,
    Knowledge = 3,
    Clock = 4,
    Revocation = 5,
    Ask = 6,
    Answer = 7,
    Claim = 8,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Session,
        Kind::Template,
        Kind::Knowledge,
        Kind::Clock,
        Kind::Revocation,
        Kind::Ask,
        Kind::Answer,
        Kind::Claim,
    ];

    fn of(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    pub fn stream(self) -> Stream {
        match self {
            Kind::Session => Stream::Sessions,
            _ => Stream::Control,
        }
    }
}

/// Why a record was not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Skipped {
    /// Too short, too long, or not a Rekindle record.
    Malformed,
    /// Written by a newer or an older version of Rekindle.
    Version,
    /// It belongs to another scope.
    Scope,
    /// It belongs to another log, or to the other stream.
    Log,
    /// It has another record layout: it was written by an ssl whose session records have other fields.
    Layout,
    /// Sealed with a key that is not known here.
    Key,
    /// Changed after it was sealed, or sealed with another key than it names.
    Forged,
    /// A session from the future: its writer's clock is wrong, or this node's. It is read again later.
    Future,
    /// Its lifetime is over.
    Expired,
    /// Revoked.
    Revoked,
    /// A record that it refers to is not in the log, or cannot be read here.
    Template,
    /// No room was left in the store.
    Full,
    /// A session with a cipher suite that its listeners no longer allow. It is read again if they allow it later.
    Suite,
}

impl Skipped {
    /// All reasons, in the order of [`index`](Self::index).
    pub const ALL: [Skipped; 13] = [
        Skipped::Malformed,
        Skipped::Version,
        Skipped::Scope,
        Skipped::Log,
        Skipped::Layout,
        Skipped::Key,
        Skipped::Forged,
        Skipped::Future,
        Skipped::Expired,
        Skipped::Revoked,
        Skipped::Template,
        Skipped::Full,
        Skipped::Suite,
    ];

    /// Its place in [`ALL`](Self::ALL).
    pub fn index(self) -> usize {
        self as usize
    }
}

/// The part of a record that is not sealed.
pub struct Header<'a> {
    /// Writer, log and time.
    pub stamp: Stamp,
    kind: Kind,
    /// The name of the key that it is sealed with.
    pub key_id: &'a [u8],
    bytes: &'a [u8],
    nonce: &'a [u8; NONCE],
    sealed: &'a [u8],
}

/// A record that was opened. The body is wiped when it is dropped.
pub struct Opened {
    /// Writer, log and time.
    pub stamp: Stamp,
    kind: Kind,
    body: Zeroizing<Vec<u8>>,
}

/// Seals a record with the sealing key.
pub fn seal(keys: &Keys, context: &Context, stamp: Stamp, body: &Body) -> Result<Record, String> {
    let (kind, plain) = encode(body);
    seal_plain(keys, context, stamp, kind, &plain)
}

/// Like [`seal`], with any bytes as the body.
pub(crate) fn seal_plain(
    keys: &Keys,
    context: &Context,
    stamp: Stamp,
    kind: Kind,
    plain: &[u8],
) -> Result<Record, String> {
    let (key_id, cipher) = keys.sealing();
    let mut record = Vec::with_capacity(KEY_ID_AT + key_id.len() + NONCE + plain.len() + TAG);
    record.extend([VERSION, kind as u8]);
    record.extend(context.scope_tag);
    record.extend(context.layout(kind).1);
    record.extend(stamp.log);
    record.extend(stamp.writer.to_be_bytes());
    record.extend(stamp.made_ms.to_be_bytes());
    record.extend(stamp.lifetime_ms.to_be_bytes());
    record.push(key_id.len() as u8);
    record.extend(key_id.as_bytes());
    let nonce = nonce()?;
    let payload = Payload {
        msg: plain,
        aad: &context.associated_data(&record, kind),
    };
    let sealed = cipher
        .encrypt(&nonce, payload)
        .map_err(|_| "a record could not be sealed")?;
    record.extend(nonce.iter());
    record.extend(sealed);
    Ok(record)
}

/// A random nonce. They are taken from the system in batches, because one call per nonce took a quarter of the writer's
/// time.
fn nonce() -> Result<XNonce, String> {
    thread_local! {
        static LEFT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    LEFT.with_borrow_mut(|left| {
        if left.is_empty() {
            let random = <[u8; NONCES * NONCE]>::try_generate();
            left.extend(random.map_err(|_| "the system gives no random bytes")?);
        }
        let last = left.split_off(left.len() - NONCE);
        XNonce::try_from(&last[..]).map_err(|_| "a nonce has another length".into())
    })
}

/// Reads the header of a record in this stream. Every byte may be an attacker's.
pub fn header<'a>(
    context: &Context,
    stream: Stream,
    record: &'a [u8],
) -> Result<Header<'a>, Skipped> {
    if record.len() > MAX_RECORD {
        return Err(Skipped::Malformed);
    }
    let (&version, rest) = record.split_first().ok_or(Skipped::Malformed)?;
    if version != VERSION {
        return Err(Skipped::Version);
    }
    let (&kind, rest) = rest.split_first().ok_or(Skipped::Malformed)?;
    let kind = Kind::of(kind).ok_or(Skipped::Version)?;
    if kind.stream() != stream {
        return Err(Skipped::Log);
    }
    let (scope_tag, rest) = split::<4>(rest)?;
    if *scope_tag != context.scope_tag {
        return Err(Skipped::Scope);
    }
    let (layout_tag, rest) = split::<4>(rest)?;
    if *layout_tag != context.layout(kind).1 {
        return Err(Skipped::Layout);
    }
    let (log, rest) = split::<8>(rest)?;
    let (writer, rest) = number(rest)?;
    let (made_ms, rest) = number(rest)?;
    let (lifetime_ms, rest) = number(rest)?;
    let (&key_len, rest) = rest.split_first().ok_or(Skipped::Malformed)?;
    let (key_id, rest) = rest
        .split_at_checked(key_len.into())
        .filter(|(key_id, _)| is_id(key_id))
        .ok_or(Skipped::Malformed)?;
    let bytes = &record[..record.len() - rest.len()];
    let (nonce, sealed) = split::<NONCE>(rest)?;
    Ok(Header {
        stamp: Stamp {
            log: *log,
            writer,
            made_ms,
            lifetime_ms,
        },
        kind,
        key_id,
        bytes,
        nonce,
        sealed,
    })
}

impl Header<'_> {
    /// Whether it is a revocation, if nobody has changed the header.
    pub fn is_revocation(&self) -> bool {
        self.kind == Kind::Revocation
    }

    /// Opens the record.
    pub fn open(&self, keys: &Keys, context: &Context) -> Result<Opened, Skipped> {
        let cipher = keys.find(self.key_id).ok_or(Skipped::Key)?;
        let payload = Payload {
            msg: self.sealed,
            aad: &context.associated_data(self.bytes, self.kind),
        };
        let body = cipher
            .decrypt(&XNonce::from(*self.nonce), payload)
            .map_err(|_| Skipped::Forged)?;
        Ok(Opened {
            stamp: self.stamp,
            kind: self.kind,
            body: Zeroizing::new(body),
        })
    }
}

impl Opened {
    /// The content.
    pub fn body(&self) -> Result<Body<'_>, Skipped> {
        let body = &self.body[..];
        Ok(match self.kind {
            Kind::Session => {
                let (length, rest) = split::<4>(body)?;
                let length = u32::from_be_bytes(*length) as usize;
                let (id, rest) = split(rest)?;
                let (secret, rest) = split(rest)?;
                let (template, rest) = split(rest)?;
                let (knowledge, rest) = split(rest)?;
                let (certificate, tail) =
                    rest.split_at_checked(length).ok_or(Skipped::Malformed)?;
                Body::Session {
                    id,
                    secret,
                    template,
                    knowledge,
                    certificate,
                    tail,
                }
            }
            Kind::Template => Body::Template(body),
            Kind::Knowledge => Body::Knowledge(body),
            Kind::Clock => {
                let (zero_ms, rest) = number(body)?;
                let (revision, _) = number(rest)?;
                Body::Clock {
                    zero_ms: zero_ms as i64,
                    revision,
                }
            }
            Kind::Revocation => {
                let (origin, rest) = number(body)?;
                let (counter, rest) = number(rest)?;
                let (keep_ms, rest) = number(rest)?;
                let (left_ms, rest) = number(rest)?;
                Body::Revocation {
                    id: RevocationId { origin, counter },
                    term: Term { keep_ms, left_ms },
                    target: Target::decode(rest).ok_or(Skipped::Malformed)?,
                }
            }
            Kind::Ask => Body::Ask {
                nonce: number(body)?.0,
            },
            Kind::Answer => {
                let (nonce, rest) = number(body)?;
                let (knowledge, _) = split(rest)?;
                Body::Answer { nonce, knowledge }
            }
            Kind::Claim => Body::Claim,
        })
    }
}

fn encode(body: &Body) -> (Kind, Zeroizing<Vec<u8>>) {
    let (kind, plain) = match body {
        Body::Session {
            id,
            secret,
            template,
            knowledge,
            certificate,
            tail,
        } => {
            let length = (certificate.len() as u32).to_be_bytes();
            let parts: [&[u8]; 7] = [
                &length,
                *id,
                *secret,
                *template,
                *knowledge,
                certificate,
                tail,
            ];
            (Kind::Session, parts.concat())
        }
        Body::Template(content) => (Kind::Template, content.to_vec()),
        Body::Knowledge(content) => (Kind::Knowledge, content.to_vec()),
        Body::Clock { zero_ms, revision } => (
            Kind::Clock,
            [zero_ms.to_be_bytes(), revision.to_be_bytes()].concat(),
        ),
        Body::Revocation { id, term, target } => {
            let numbers = [id.origin, id.counter, term.keep_ms, term.left_ms];
            let numbers = numbers.map(u64::to_be_bytes);
            let plain = [&numbers.concat()[..], &target.encode()].concat();
            (Kind::Revocation, plain)
        }
        Body::Ask { nonce } => (Kind::Ask, nonce.to_be_bytes().to_vec()),
        Body::Answer { nonce, knowledge } => {
            let plain = [&nonce.to_be_bytes()[..], &knowledge[..]].concat();
            (Kind::Answer, plain)
        }
        Body::Claim => (Kind::Claim, Vec::new()),
    };
    (kind, Zeroizing::new(plain))
}

/// What a node knows, in the form of a record. The names of its keys tell others whether it reads their records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Statement {
    /// The revocations.
    pub knowledge: Knowledge,
    /// How long the node's sessions live, in milliseconds, so that others keep revocations as long, too.
    pub lifetime_ms: u64,
    /// Names of keys that were in the node's key file and were taken out.
    pub retired_keys: Vec<String>,
    /// Names of other keys that seal records and that the node does not have.
    pub lacked_keys: Vec<String>,
}

impl Statement {
    /// Encodes it as the content of a record.
    pub fn encode(&self) -> Vec<u8> {
        let Knowledge { epoch, origins } = &self.knowledge;
        let mut bytes = [*epoch, self.lifetime_ms].map(u64::to_be_bytes).concat();
        bytes.extend((origins.len() as u32).to_be_bytes());
        for (origin, known) in origins {
            for number in [*origin, known.upto, known.expired, known.expired_in] {
                bytes.extend(number.to_be_bytes());
            }
            bytes.extend((known.replaced.len() as u32).to_be_bytes());
            for range in &known.replaced {
                bytes.extend(range.start().to_be_bytes());
                bytes.extend(range.end().to_be_bytes());
            }
        }
        bytes.extend((self.retired_keys.len() as u32).to_be_bytes());
        for key in self.retired_keys.iter().chain(&self.lacked_keys) {
            bytes.push(key.len() as u8);
            bytes.extend(key.as_bytes());
        }
        bytes
    }

    /// The reverse of [`encode`](Self::encode).
    pub fn decode(bytes: &[u8]) -> Result<Statement, Skipped> {
        let mut statement = Statement::default();
        let (epoch, rest) = number(bytes)?;
        let (lifetime_ms, rest) = number(rest)?;
        let (origins, mut rest) = split::<4>(rest)?;
        statement.knowledge.epoch = epoch;
        statement.lifetime_ms = lifetime_ms;
        for _ in 0..u32::from_be_bytes(*origins) {
            let (origin, upto, expired, expired_in, count);
            (origin, rest) = number(rest)?;
            (upto, rest) = number(rest)?;
            (expired, rest) = number(rest)?;
            (expired_in, rest) = number(rest)?;
            (count, rest) = split::<4>(rest)?;
            let mut replaced: Vec<RangeInclusive<u64>> = Vec::new();
            for _ in 0..u32::from_be_bytes(*count) {
                let (from, to);
                (from, rest) = number(rest)?;
                (to, rest) = number(rest)?;
                if from == 0 || from > to || to > upto {
                    return Err(Skipped::Malformed);
                }
                replaced.push(from..=to);
            }
            if expired > upto {
                return Err(Skipped::Malformed);
            }
            let known = Known {
                upto,
                expired,
                expired_in,
                replaced,
            };
            statement.knowledge.origins.insert(origin, known);
        }
        let (retired, mut rest) = split::<4>(rest)?;
        let retired = u32::from_be_bytes(*retired) as usize;
        while let Some((&length, more)) = rest.split_first() {
            let (name, more) = more
                .split_at_checked(length.into())
                .ok_or(Skipped::Malformed)?;
            let name = std::str::from_utf8(name).map_err(|_| Skipped::Malformed)?;
            match statement.retired_keys.len() < retired {
                true => statement.retired_keys.push(name.into()),
                false => statement.lacked_keys.push(name.into()),
            }
            rest = more;
        }
        Ok(statement)
    }
}

fn number(bytes: &[u8]) -> Result<(u64, &[u8]), Skipped> {
    let (number, rest) = split::<8>(bytes)?;
    Ok((u64::from_be_bytes(*number), rest))
}

fn split<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), Skipped> {
    bytes.split_first_chunk().ok_or(Skipped::Malformed)
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("a digest is longer")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{keys, LAYOUT};
    use crate::CertificateSelector;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const STAMP: Stamp = Stamp {
        log: [1; 8],
        writer: 2,
        made_ms: 3,
        lifetime_ms: 4,
    };

    fn context() -> Context {
        Context::new(b"scope", LAYOUT)
    }

    fn bodies() -> [Body<'static>; 8] {
        [
            Body::Session {
                id: &[1; 32],
                secret: &[2; 48],
                template: &[3; 16],
                knowledge: &[4; 16],
                certificate: b"certificate",
                tail: b"tail",
            },
            Body::Template(b"template"),
            Body::Knowledge(b"\0\0\0\0"),
            Body::Clock {
                zero_ms: -5,
                revision: 6,
            },
            Body::Revocation {
                id: RevocationId {
                    origin: 7,
                    counter: 8,
                },
                term: Term {
                    keep_ms: 9,
                    left_ms: 10,
                },
                target: Target::Certificate(CertificateSelector::Sha1([10; 20])),
            },
            Body::Ask { nonce: 11 },
            Body::Answer {
                nonce: 12,
                knowledge: &[13; 16],
            },
            Body::Claim,
        ]
    }

    fn records(context: &Context) -> Vec<(Stream, Record)> {
        let seal = |(body, kind): (Body, Kind)| {
            let record = seal(&keys(&["a", "b"]), context, STAMP, &body).unwrap();
            (kind.stream(), record)
        };
        bodies().into_iter().zip(Kind::ALL).map(seal).collect()
    }

    fn open(context: &Context, stream: Stream, record: &[u8]) -> Result<Opened, Skipped> {
        header(context, stream, record)?.open(&keys(&["a", "b"]), context)
    }

    #[test]
    fn records_open_as_they_were_sealed() {
        let context = context();
        for ((stream, record), body) in records(&context).into_iter().zip(bodies()) {
            let opened = open(&context, stream, &record).ok().unwrap();
            assert_eq!(opened.stamp, STAMP);
            let read = encode(&opened.body().ok().unwrap());
            assert!(read == encode(&body));
        }
    }

    /// With the same nonce, the same body would make the same record.
    #[test]
    fn no_nonce_comes_twice() {
        let records = (0..1000).map(|_| records(&context()).remove(0).1);
        assert_eq!(
            records.collect::<std::collections::HashSet<_>>().len(),
            1000
        );
    }

    #[test]
    fn every_byte_and_every_length_counts() {
        let context = context();
        for (stream, record) in records(&context) {
            for place in 0..record.len() {
                for bit in 0..8 {
                    let mut changed = record.clone();
                    changed[place] ^= 1 << bit;
                    let opened = open(&context, stream, &changed);
                    assert!(opened.is_err(), "byte {place}, bit {bit}");
                }
                assert!(open(&context, stream, &record[..place]).is_err());
            }
            for more in [1, 16, MAX_RECORD] {
                let longer = [&record[..], &vec![0; more]].concat();
                assert!(open(&context, stream, &longer).is_err());
            }
        }
    }

    #[test]
    fn a_record_counts_in_its_scope_stream_layout_and_kind_alone() {
        let here = context();
        let all = records(&here);
        let others = [
            Context::new(b"another", LAYOUT),
            Context::new(b"scope", b"another"),
            Context::new(b"scopel", b"ayout"),
        ];
        for (stream, record) in &all {
            let other_stream = match stream {
                Stream::Control => Stream::Sessions,
                Stream::Sessions => Stream::Control,
            };
            assert_eq!(open(&here, other_stream, record).err(), Some(Skipped::Log));
            for kind in Kind::ALL {
                let mut changed = record.clone();
                changed[1] = kind as u8;
                for stream in [Stream::Control, Stream::Sessions] {
                    let opened = open(&here, stream, &changed);
                    assert_eq!(
                        opened.is_ok(),
                        changed == *record && stream == kind.stream()
                    );
                }
            }
            for (other, of_layout) in others.iter().zip([false, true, false]) {
                let is_of_layout = record[6..10] != [0; 4];
                let is_read = of_layout && !is_of_layout;
                assert_eq!(open(other, *stream, record).is_ok(), is_read);
                // The header is changed to look as if it came from there.
                let mut changed = record.clone();
                changed[2..6].copy_from_slice(&other.scope_tag);
                if is_of_layout {
                    changed[6..10].copy_from_slice(&other.layout_tag);
                }
                assert_eq!(open(other, *stream, &changed).is_ok(), is_read);
            }
        }
    }

    #[test]
    fn a_record_names_a_key_that_can_be_in_a_key_file() {
        let context = context();
        let (stream, record) = records(&context).remove(0);
        let with = |name: &[u8]| {
            let rest = &record[KEY_ID_AT + 1..];
            [&record[..KEY_ID_AT - 1], &[name.len() as u8], name, rest].concat()
        };
        let skipped = |name: &[u8]| open(&context, stream, &with(name)).err();
        for name in [&b"c"[..], b"A-z_0.9", &[b'x'; 16]] {
            assert_eq!(skipped(name), Some(Skipped::Key));
        }
        for name in [
            &b""[..],
            &[b'x'; 17],
            b"a b",
            b"a\0",
            b"a\n",
            "ä".as_bytes(),
            b"\xff",
        ] {
            assert_eq!(skipped(name), Some(Skipped::Malformed), "{name:?}");
        }
    }

    #[test]
    fn keys_are_told_apart() {
        let context = context();
        for (stream, record) in records(&context) {
            let header = header(&context, stream, &record).ok().unwrap();
            assert_eq!(header.key_id, b"a");
            let open = |keys: &Keys| header.open(keys, &context).err();
            assert_eq!(open(&keys(&["b"])), Some(Skipped::Key));
            let imposter = crate::testing::key_line("x").replacen('x', "a", 1);
            let imposter = Keys::parse(&imposter).unwrap();
            assert_eq!(open(&imposter), Some(Skipped::Forged));
        }
    }

    fn statement() -> impl Strategy<Value = Statement> {
        let range = (1..100u64, 0..10u64).prop_map(|(from, length)| from..=from + length);
        let known = (100..200u64, 0..100u64, any::<u64>(), vec(range, 0..4));
        let known = known.prop_map(|(upto, expired, expired_in, replaced)| Known {
            upto: upto + 10,
            expired,
            expired_in,
            replaced,
        });
        let origins = prop::collection::btree_map(any::<u64>(), known, 0..4);
        let knowledge = (any::<u64>(), origins);
        let knowledge = knowledge.prop_map(|(epoch, origins)| Knowledge { epoch, origins });
        let names = || vec("[a-z]{1,16}", 0..4);
        let statement = (knowledge, any::<u64>(), names(), names());
        statement.prop_map(
            |(knowledge, lifetime_ms, retired_keys, lacked_keys)| Statement {
                knowledge,
                lifetime_ms,
                retired_keys,
                lacked_keys,
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn statements_survive_encoding(statement in statement(), cut in any::<prop::sample::Index>()) {
            let bytes = statement.encode();
            prop_assert_eq!(Statement::decode(&bytes), Ok(statement));
            // Any remaining bytes are decoded or refused, without a panic.
            let _ = Statement::decode(&bytes[..cut.index(bytes.len())]);
        }

        #[test]
        fn any_bytes_may_be_read(bytes in vec(any::<u8>(), 0..300), kind in 1..8u8) {
            let context = context();
            for stream in [Stream::Control, Stream::Sessions] {
                prop_assert!(open(&context, stream, &bytes).is_err());
            }
            if let Ok(statement) = Statement::decode(&bytes) {
                prop_assert_eq!(Statement::decode(&statement.encode()), Ok(statement));
            }
            let kind = Kind::of(kind).unwrap();
            let record = seal_plain(&keys(&["a"]), &context, STAMP, kind, &bytes).unwrap();
            let opened = open(&context, kind.stream(), &record).ok().unwrap();
            let _ = opened.body();
        }
    }
}
