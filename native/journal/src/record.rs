//! Sealed records: what is said of a session, and what an attacker with the log sees of it.
//!
//! ```text
//!  0  format version (2)           26  expires, milliseconds since 1970
//!  1  kind                         34  length of the key's name
//!  2  tag of the scope (4)         35  the key's name
//!  6  tag of the layout (4)         …  nonce (24)
//! 10  writer (8)                    …  sealed body, tag (16)
//! 18  made, milliseconds since 1970
//! ```
//!
//! Numbers are big-endian. The body is sealed with XChaCha20-Poly1305 under a random nonce. Everything before the nonce
//! is associated data, and so are the names of scope and layout in full: a record opens only where it belongs.

use crate::keys::{Keys, MAX_ID};
use crate::revocations::Wanted;
use crate::Record;
use chacha20poly1305::aead::{Aead, Generate, Payload};
use chacha20poly1305::XNonce;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use zeroize::Zeroizing;

const VERSION: u8 = 2;
const KEY_ID_AT: usize = 35;
const NONCE: usize = 24;
/// How many of them the system is asked for at once.
const NONCES: usize = 40;
const TAG: usize = 16;

/// Longest record that is looked at.
const MAX_RECORD: usize = 1024 * 1024;

/// How far a record may come out of the future: clocks differ.
pub const MAX_AHEAD_MS: u64 = 5 * 60 * 1000;

/// Content of a template, by which sessions refer to it: the beginning of its SHA-256.
pub type ContentHash = [u8; 16];

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
    /// `scope` is the scope's name, `layout` says how its sessions are written: other layouts are not read.
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
            Kind::Birth | Kind::Template => (&self.layout, self.layout_tag),
            // A session may be revoked by whoever cannot read it.
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

/// Who made a record, and when, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// A random number of the process.
    pub writer: u64,
    /// When what it tells of happened.
    pub made_ms: u64,
    /// From when on it means nothing.
    pub expires_ms: u64,
}

/// What a record says. Not `Debug`: it would show the secret.
pub enum Body<'a> {
    /// A session was stored.
    Birth {
        id: &'a [u8; 32],
        secret: &'a [u8; 48],
        template: &'a ContentHash,
        /// The client's, in DER; empty if it has none.
        certificate: &'a [u8],
        tail: &'a [u8],
    },
    /// What sessions have in common.
    Template(&'a [u8]),
    /// The session of this id is revoked.
    Forget(&'a [u8; 32]),
    /// All sessions made until then are revoked.
    Flush,
    /// All sessions made until then with these certificates are revoked.
    Revoke(Wanted),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Birth = 1,
    Template = 2,
    Forget = 3,
    Flush = 4,
    Revoke = 5,
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
    /// Written by another release of OTP's ssl.
    Layout,
    /// Sealed with a key that is not known here.
    Key,
    /// Changed after it was sealed, or not sealed with the key it names.
    Forged,
    /// A session made in the future: the clock of who wrote it is wrong, or this one.
    Future,
    /// Its time is over.
    Expired,
    /// Revoked.
    Revoked,
    /// What it has in common with others is not in the log, or not readable here.
    Template,
    /// No room was left in the store.
    Full,
}

impl Skipped {
    /// All reasons, in the order of [`index`](Self::index).
    pub const ALL: [Skipped; 11] = [
        Skipped::Malformed,
        Skipped::Version,
        Skipped::Scope,
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

/// A record that was opened. The body is wiped when it is dropped.
pub struct Opened {
    /// Who made it, and when.
    pub stamp: Stamp,
    kind: Kind,
    body: Zeroizing<Vec<u8>>,
}

/// Seals a record with the key that is to be sealed with.
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
    record.extend(stamp.writer.to_be_bytes());
    record.extend(stamp.made_ms.to_be_bytes());
    record.extend(stamp.expires_ms.to_be_bytes());
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

/// A random nonce. The system is asked for many at a time: asked for each, it took a quarter of the writer's time.
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

/// Opens a record. Every byte of it may be an attacker's.
pub fn open(keys: &Keys, context: &Context, record: &[u8], now_ms: u64) -> Result<Opened, Skipped> {
    if record.len() > MAX_RECORD {
        return Err(Skipped::Malformed);
    }
    let (&version, rest) = record.split_first().ok_or(Skipped::Malformed)?;
    if version != VERSION {
        return Err(Skipped::Version);
    }
    let (&kind, rest) = rest.split_first().ok_or(Skipped::Malformed)?;
    let kind = kind_of(kind).ok_or(Skipped::Version)?;
    let (scope_tag, rest) = split::<4>(rest)?;
    if *scope_tag != context.scope_tag {
        return Err(Skipped::Scope);
    }
    let (layout_tag, rest) = split::<4>(rest)?;
    if *layout_tag != context.layout(kind).1 {
        return Err(Skipped::Layout);
    }
    let (writer, rest) = split::<8>(rest)?;
    let (made_ms, rest) = split::<8>(rest)?;
    let (expires_ms, rest) = split::<8>(rest)?;
    let stamp = Stamp {
        writer: u64::from_be_bytes(*writer),
        made_ms: u64::from_be_bytes(*made_ms),
        expires_ms: u64::from_be_bytes(*expires_ms),
    };
    let (&key_len, rest) = rest.split_first().ok_or(Skipped::Malformed)?;
    if usize::from(key_len) > MAX_ID {
        return Err(Skipped::Malformed);
    }
    let (key_id, rest) = rest
        .split_at_checked(key_len.into())
        .ok_or(Skipped::Malformed)?;
    let header = &record[..record.len() - rest.len()];
    let (nonce, sealed) = split::<NONCE>(rest)?;
    if stamp.expires_ms <= now_ms {
        return Err(Skipped::Expired);
    }
    // A revocation holds whatever the clock of who made it.
    let is_ahead = stamp.made_ms > now_ms.saturating_add(MAX_AHEAD_MS);
    if is_ahead && matches!(kind, Kind::Birth | Kind::Template) {
        return Err(Skipped::Future);
    }
    let cipher = keys.find(key_id).ok_or(Skipped::Key)?;
    let payload = Payload {
        msg: sealed,
        aad: &context.associated_data(header, kind),
    };
    let body = cipher
        .decrypt(&XNonce::from(*nonce), payload)
        .map_err(|_| Skipped::Forged)?;
    Ok(Opened {
        stamp,
        kind,
        body: Zeroizing::new(body),
    })
}

impl Opened {
    /// What it says.
    pub fn body(&self) -> Result<Body<'_>, Skipped> {
        let body = &self.body;
        Ok(match self.kind {
            Kind::Birth => {
                let (length, rest) = split::<4>(body)?;
                let length = u32::from_be_bytes(*length) as usize;
                let (id, rest) = split(rest)?;
                let (secret, rest) = split(rest)?;
                let (template, rest) = split(rest)?;
                let (certificate, tail) =
                    rest.split_at_checked(length).ok_or(Skipped::Malformed)?;
                Body::Birth {
                    id,
                    secret,
                    template,
                    certificate,
                    tail,
                }
            }
            Kind::Template => Body::Template(body),
            Kind::Forget => Body::Forget(split(body)?.0),
            Kind::Flush => Body::Flush,
            Kind::Revoke => Body::Revoke(Wanted::decode(body).ok_or(Skipped::Malformed)?),
        })
    }
}

fn encode(body: &Body) -> (Kind, Zeroizing<Vec<u8>>) {
    let (kind, plain) = match body {
        Body::Birth {
            id,
            secret,
            template,
            certificate,
            tail,
        } => {
            let length = (certificate.len() as u32).to_be_bytes();
            let parts: [&[u8]; 6] = [&length, *id, *secret, *template, certificate, tail];
            (Kind::Birth, parts.concat())
        }
        Body::Template(content) => (Kind::Template, content.to_vec()),
        Body::Forget(id) => (Kind::Forget, id.to_vec()),
        Body::Flush => (Kind::Flush, Vec::new()),
        Body::Revoke(wanted) => (Kind::Revoke, wanted.encode()),
    };
    (kind, Zeroizing::new(plain))
}

pub(crate) fn kind_of(byte: u8) -> Option<Kind> {
    [
        Kind::Birth,
        Kind::Template,
        Kind::Forget,
        Kind::Flush,
        Kind::Revoke,
    ]
    .into_iter()
    .find(|kind| *kind as u8 == byte)
}

fn split<const N: usize>(bytes: &[u8]) -> Result<(&[u8; N], &[u8]), Skipped> {
    bytes.split_first_chunk().ok_or(Skipped::Malformed)
}

fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    *bytes.first_chunk().expect("a digest is longer")
}
