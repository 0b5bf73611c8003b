//! Sealed records: what an attacker with the log sees of them, and what they say.
//!
//! ```text
//!  0  format version (3)           26  made, milliseconds by the writer's monotonic clock
//!  1  kind                         34  lifetime, milliseconds
//!  2  tag of the scope (4)         42  length of the key's name
//!  6  tag of the record layout (4) 43  the key's name
//! 10  identity of the log (8)       …  nonce (24)
//! 18  writer (8)                    …  sealed body, tag (16)
//! ```
//!
//! Numbers are big-endian. The body is sealed with XChaCha20-Poly1305 under a random nonce. Everything before the nonce
//! is associated data, and so are the full names of scope and record layout. The kind decides the stream. So a record
//! opens only in the log, scope and stream that it was written for.

use crate::keys::{Keys, MAX_ID};
use crate::revocations::{Knowledge, Known, RevocationId};
use crate::target::Target;
use chacha20poly1305::aead::{Aead, Generate, Payload};
use chacha20poly1305::XNonce;
use rekindle_log::{Record, Stream};
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::ops::RangeInclusive;
use zeroize::Zeroizing;

const VERSION: u8 = 3;
const KEY_ID_AT: usize = 43;
const NONCE: usize = 24;
/// Nonces that are taken from the system at once.
const NONCES: usize = 40;
const TAG: usize = 16;

/// Longest record that is opened.
const MAX_RECORD: usize = 1024 * 1024;

/// Hash of a template or of a knowledge, by which sessions refer to it: the beginning of its SHA-256.
pub type ContentHash = [u8; 16];

/// Tells a log from all others: random.
pub type LogIdentity = [u8; 8];

/// The hash that sessions refer to this content by.
pub fn content_hash(content: &[u8]) -> ContentHash {
    first(Sha256::digest(content).as_slice())
}

/// What a record belongs to.
pub struct Context {
    scope: Vec<u8>,
    layout: Vec<u8>,
    scope_tag: [u8; 4],
    layout_tag: [u8; 4],
}

impl Context {
    /// `scope` is the scope's name. `layout` names the fields of session records: other layouts are not read.
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
            // A node that cannot read a session still obeys its revocation.
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

/// Who wrote a record, where and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// The log it was written to.
    pub log: LogIdentity,
    /// A random number of the journal.
    pub writer: u64,
    /// When, in milliseconds by the writer's monotonic clock: a [`Body::Clock`] relates it to the time of day.
    pub made_ms: u64,
    /// How long a session lives.
    pub lifetime_ms: u64,
}

/// What a record says. Not `Debug`: it would show the secret.
pub enum Body<'a> {
    /// A session was stored.
    Session {
        /// Its id.
        id: &'a [u8; 32],
        /// The master secret.
        secret: &'a [u8; 48],
        /// The template that it refers to.
        template: &'a ContentHash,
        /// The revocations that its writer knew when it was made.
        knowledge: &'a ContentHash,
        /// The client's certificate, in DER; empty if it has none.
        certificate: &'a [u8],
        /// What else differs from the template.
        tail: &'a [u8],
    },
    /// What sessions have in common.
    Template(&'a [u8]),
    /// What a writer knows: revocations, and names of keys that are no longer in use.
    Knowledge(&'a [u8]),
    /// Zero of the writer's monotonic clock, in milliseconds since 1970, for the `revision`th time.
    Clock { zero_ms: i64, revision: u64 },
    /// Sessions are revoked.
    Revocation {
        id: RevocationId,
        /// How long the writer keeps it.
        keep_ms: u64,
        target: Target,
    },
    /// A node asks the others to write what is missing, and to answer with this number.
    Ask { nonce: u64 },
    /// A node has written what was missing and it knew of.
    Answer { nonce: u64 },
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
}

impl Kind {
    const ALL: [Kind; 7] = [
        Kind::Session,
        Kind::Template,
        Kind::Knowledge,
        Kind::Clock,
        Kind::Revocation,
        Kind::Ask,
        Kind::Answer,
    ];

    fn of(byte: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }

    fn stream(self) -> Stream {
        match self {
            Kind::Session => Stream::Sessions,
            _ => Stream::Control,
        }
    }
}

/// Why a record was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Skipped {
    /// Too short, too long, or not what a record looks like.
    Malformed,
    /// Of a newer version of Rekindle, or an older one.
    Version,
    /// Of another scope.
    Scope,
    /// Of another log, or of the other stream.
    Log,
    /// Of another record layout: written by an ssl whose session records have other fields.
    Layout,
    /// Sealed with a key that is not known here.
    Key,
    /// Changed after it was sealed, or not sealed with the key it names.
    Forged,
    /// A session from the future: the clock of its writer is wrong, or this node's. It is read again later.
    Future,
    /// Its lifetime is over.
    Expired,
    /// Revoked.
    Revoked,
    /// A record that it refers to is not in the log, or not readable here.
    Template,
    /// No room was left in the store.
    Full,
}

impl Skipped {
    /// All reasons, in the order of [`index`](Self::index).
    pub const ALL: [Skipped; 12] = [
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
    ];

    /// Its place in [`ALL`](Self::ALL).
    pub fn index(self) -> usize {
        self as usize
    }
}

/// The part of a record that is not sealed.
pub struct Header<'a> {
    /// Who wrote it.
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
    /// Who wrote it.
    pub stamp: Stamp,
    kind: Kind,
    body: Zeroizing<Vec<u8>>,
}

/// Seals a record with the sealing key.
pub fn seal(keys: &Keys, context: &Context, stamp: Stamp, body: &Body) -> Result<Record, String> {
    let (kind, plain) = encode(body);
    seal_plain(keys, context, stamp, kind, &plain)
}

/// As [`seal`], whatever the body says.
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

/// A random nonce. Asking the system for each took a quarter of the writer's time.
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

/// Reads the header of a record that stands in this stream. Every byte may be an attacker's.
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
    if usize::from(key_len) > MAX_ID {
        return Err(Skipped::Malformed);
    }
    let (key_id, rest) = rest
        .split_at_checked(key_len.into())
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
    /// What it says.
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
                Body::Revocation {
                    id: RevocationId { origin, counter },
                    keep_ms,
                    target: Target::decode(rest).ok_or(Skipped::Malformed)?,
                }
            }
            Kind::Ask => Body::Ask {
                nonce: number(body)?.0,
            },
            Kind::Answer => Body::Answer {
                nonce: number(body)?.0,
            },
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
        Body::Revocation {
            id,
            keep_ms,
            target,
        } => {
            let numbers = [id.origin, id.counter, *keep_ms].map(u64::to_be_bytes);
            let plain = [&numbers.concat()[..], &target.encode()].concat();
            (Kind::Revocation, plain)
        }
        Body::Ask { nonce } => (Kind::Ask, nonce.to_be_bytes().to_vec()),
        Body::Answer { nonce } => (Kind::Answer, nonce.to_be_bytes().to_vec()),
    };
    (kind, Zeroizing::new(plain))
}

/// What a node knows, as its own records tell the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Statement {
    /// The revocations.
    pub knowledge: Knowledge,
    /// Names of keys that were in the node's key file and are no longer.
    pub retired_keys: Vec<String>,
}

impl Statement {
    /// As the content of a record.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = (self.knowledge.len() as u32).to_be_bytes().to_vec();
        for (origin, known) in self.knowledge.iter() {
            for number in [*origin, known.upto, known.expired] {
                bytes.extend(number.to_be_bytes());
            }
            bytes.extend((known.replaced.len() as u32).to_be_bytes());
            for range in &known.replaced {
                bytes.extend(range.start().to_be_bytes());
                bytes.extend(range.end().to_be_bytes());
            }
        }
        for key in &self.retired_keys {
            bytes.push(key.len() as u8);
            bytes.extend(key.as_bytes());
        }
        bytes
    }

    /// The reverse of [`encode`](Self::encode).
    pub fn decode(bytes: &[u8]) -> Result<Statement, Skipped> {
        let (origins, mut rest) = split::<4>(bytes)?;
        let mut statement = Statement::default();
        for _ in 0..u32::from_be_bytes(*origins) {
            let (origin, upto, expired, count);
            (origin, rest) = number(rest)?;
            (upto, rest) = number(rest)?;
            (expired, rest) = number(rest)?;
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
                replaced,
            };
            statement.knowledge.insert(origin, known);
        }
        while let Some((&length, more)) = rest.split_first() {
            let (name, more) = more
                .split_at_checked(length.into())
                .ok_or(Skipped::Malformed)?;
            let name = std::str::from_utf8(name).map_err(|_| Skipped::Malformed)?;
            statement.retired_keys.push(name.into());
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
