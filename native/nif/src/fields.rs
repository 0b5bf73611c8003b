//! Finds the fields of a session record.
//!
//! OTP's record is opaque and differs between releases. Some fields are at the same place in all releases. This module finds
//! the others by their content (see docs/otp.md), and first looks where they were in the last session.

use crate::atoms;
use crate::packed::MAX_FIELDS;
use crate::words::Word;
use rekindle_core::Refusal;
use rekindle_journal::Suite;
use rustler::{Atom, Env, TermType};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

pub const TAG: usize = 0;
pub const SESSION_ID: usize = 1;
pub const INTERNAL_ID: usize = 2;
pub const PEER_CERTIFICATE: usize = 3;
pub const OWN_CERTIFICATES: usize = 4;
pub const PRIVATE_KEY: usize = 5;

/// Places that are the same in all releases, and empty in a template.
const FIXED_HOLES: [usize; 4] = [SESSION_ID, INTERNAL_ID, PEER_CERTIFICATE, PRIVATE_KEY];

/// More than the depth of any field of a session.
const MAX_DEPTH: u8 = 8;

/// The longest server name that is stored, in bytes. No host name is longer (RFC 1035, 2.3.4).
pub const MAX_SERVER_NAME: usize = 255;

/// The places, beside the [`FIXED_HOLES`], in which sessions of one template differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Holes {
    pub master_secret: u8,
    pub time_stamp: u8,
    pub server_name: Option<u8>,
}

/// The holes of the last new kind of session: the number of its fields, and the places, 0 for none.
static LAST: AtomicU32 = AtomicU32::new(0);

impl Holes {
    /// A bit for each hole.
    pub fn bits(self) -> u32 {
        const FIXED: u32 =
            1 << SESSION_ID | 1 << INTERNAL_ID | 1 << PEER_CERTIFICATE | 1 << PRIVATE_KEY;
        let bit = |place: u8| 1 << place;
        FIXED | bit(self.master_secret) | bit(self.time_stamp) | self.server_name.map_or(0, bit)
    }

    /// The holes of the last session, if it had as many fields.
    pub fn last(length: usize) -> Option<Holes> {
        let [last, master_secret, time_stamp, server_name] = LAST.load(Relaxed).to_le_bytes();
        let holes = Holes {
            master_secret,
            time_stamp,
            server_name: (server_name != 0).then_some(server_name),
        };
        (usize::from(last) == length).then_some(holes)
    }

    /// Remembers the holes of a session. A session without a server name does not change the place of names.
    pub fn remember(mut self, length: usize) {
        if self.server_name.is_none() {
            let last = Self::last(length);
            self.server_name = last.and_then(|last| last.server_name);
        }
        let length = length as u8;
        let name = self.server_name.unwrap_or_default();
        let bytes = [length, self.master_secret, self.time_stamp, name];
        LAST.store(u32::from_le_bytes(bytes), Relaxed);
    }
}

/// The parts that differ between sessions of one template.
pub struct Own<'a, 'n> {
    pub id: &'a [u8; 32],
    pub secret: &'a [u8; 48],
    /// The peer's certificate.
    pub certificate: Option<&'a [u8]>,
    pub server_name: &'n [u8],
    /// Where these were found. The place of the server name is `None` if there is no name.
    pub holes: Holes,
}

impl<'a, 'n> Own<'a, 'n> {
    /// Reads the holes of a session that is to be stored under `key`. `None` if one of them has an unexpected content.
    pub fn read(
        env: Env<'a>,
        key: Word<'a>,
        fields: &[Word<'a>],
        holes: Holes,
        name: &'n mut [u8; MAX_SERVER_NAME],
    ) -> Option<Self> {
        let time_stamp = stamp(env, fields)?;
        let is_as_expected = fields[SESSION_ID].is_identical(key)
            && fields[usize::from(holes.time_stamp)].is_identical(time_stamp)
            && is_private_key(env, fields[PRIVATE_KEY]);
        if !is_as_expected {
            return None;
        }
        let certificate = match fields[PEER_CERTIFICATE] {
            none if none == undefined() => None,
            certificate => Some(certificate.bytes(env).filter(|der| !der.is_empty())?),
        };
        let place = holes.server_name.map(usize::from);
        let length = match place.map_or(Text::None, |place| Text::read(env, fields[place], name)) {
            Text::None => 0,
            Text::Bytes(length) => length,
            Text::Numbers | Text::TooLong => return None,
        };
        Some(Own {
            id: key.array(env)?,
            secret: fields[usize::from(holes.master_secret)].array(env)?,
            certificate,
            server_name: &name[..length],
            holes: Holes {
                server_name: holes.server_name.filter(|_| length > 0),
                ..holes
            },
        })
    }
}

/// The places of a session's fields.
pub struct Found {
    pub time_stamp: usize,
    /// `None` if one of the other fields is not as in any known release.
    pub holes: Option<Holes>,
}

/// Finds the fields of a session that is to be stored under `key`. The error says why it cannot be stored.
pub fn find<'a>(env: Env<'a>, key: Word<'a>, fields: &[Word<'a>]) -> Result<Found, Refusal> {
    // Without it, a lookup could not return the time stamp that OTP needs.
    let time_stamp = find_time_stamp(env, key, fields).ok_or(Refusal::Layout)?;
    // Another field in this place would be missing in the session that a lookup returns.
    if !is_private_key(env, fields[PRIVATE_KEY]) {
        return Err(Refusal::Layout);
    }
    let server_name = find_server_name(env, fields)?;
    let mut secrets = others(fields).filter(|place| is_master_secret(env, fields[*place]));
    let master_secret = match (secrets.next(), secrets.next()) {
        (only, None) => only,
        _ => None,
    };
    let holes = master_secret.filter(|_| fields.len() <= MAX_FIELDS);
    Ok(Found {
        time_stamp,
        holes: holes.map(|master_secret| Holes {
            master_secret: master_secret as u8,
            time_stamp: time_stamp as u8,
            server_name: server_name.map(|place| place as u8),
        }),
    })
}

/// The places whose fields differ between releases.
fn others(fields: &[Word]) -> std::ops::Range<usize> {
    PRIVATE_KEY + 1..fields.len()
}

/// The place of the time stamp: behind the fields that all releases share, the only integer that equals the first element of
/// `internal_id`.
fn find_time_stamp<'a>(env: Env<'a>, key: Word<'a>, fields: &[Word<'a>]) -> Option<usize> {
    if fields.len() <= PRIVATE_KEY || !fields[SESSION_ID].is_identical(key) {
        return None;
    }
    let stamp = stamp(env, fields)?;
    let mut places = others(fields).filter(|place| fields[*place].is_identical(stamp));
    match (places.next(), places.next()) {
        (place, None) => place,
        _ => None,
    }
}

/// The first element of `internal_id`.
fn stamp<'a>(env: Env, fields: &[Word<'a>]) -> Option<Word<'a>> {
    match fields[INTERNAL_ID].tuple(env) {
        Some([stamp, _]) if stamp.integer(env).is_some() => Some(*stamp),
        _ => None,
    }
}

/// The place of the server name: the only field that is a non-empty Erlang string. The client chooses the name, so it must
/// not be in the template: otherwise each name would make a template.
fn find_server_name<'a>(env: Env<'a>, fields: &[Word<'a>]) -> Result<Option<usize>, Refusal> {
    let mut found = None;
    let mut name = [0; MAX_SERVER_NAME];
    for place in others(fields) {
        match Text::read(env, fields[place], &mut name) {
            Text::None => {}
            Text::TooLong => return Err(Refusal::TooLarge),
            _ if found.is_some() => return Ok(None),
            Text::Numbers => {}
            Text::Bytes(_) => found = Some(place),
        }
    }
    Ok(found)
}

/// A term, seen as a non-empty Erlang string.
enum Text {
    None,
    /// A string of bytes, and its length.
    Bytes(usize),
    /// A string with numbers that do not fit into bytes.
    Numbers,
    TooLong,
}

impl Text {
    fn read<'a>(env: Env<'a>, term: Word<'a>, name: &mut [u8; MAX_SERVER_NAME]) -> Text {
        let mut cells = term.cells(env);
        let (mut length, mut is_bytes) = (0, true);
        for cell in &mut cells {
            let number = cell.integer(env);
            if length == 0 && number.is_none() && !cell.term(env).is_integer() {
                return Text::None;
            }
            match (name.get_mut(length), number.map(u8::try_from)) {
                (Some(place), Some(Ok(byte))) => *place = byte,
                _ => is_bytes = false,
            }
            length += 1;
        }
        match length {
            // An improper list is no string.
            _ if !cells.is_at_end() => Text::None,
            0 => Text::None,
            1..=MAX_SERVER_NAME if is_bytes => Text::Bytes(length),
            1..=MAX_SERVER_NAME => Text::Numbers,
            _ => Text::TooLong,
        }
    }
}

pub fn is_master_secret(env: Env, field: Word) -> bool {
    field.array::<48>(env).is_some()
}

/// The cipher suite: the only binary of two bytes.
pub fn cipher_suite<'a>(env: Env<'a>, mut fields: impl Iterator<Item = Word<'a>>) -> Option<Suite> {
    fields.find_map(|field| field.array(env).copied())
}

/// Whether a template of this node could have these fields: a session record whose holes are empty.
pub fn are_of_template(env: Env, fields: &[Word], holes: Holes) -> bool {
    let varying = [
        Some(holes.master_secret),
        Some(holes.time_stamp),
        holes.server_name,
    ];
    let varying = || varying.iter().flatten().map(|place| usize::from(*place));
    let is_empty = |place: usize| fields.get(place) == Some(&undefined());
    (PRIVATE_KEY + 2..=MAX_FIELDS).contains(&fields.len())
        && fields[TAG] == Word::atom(atoms::session())
        && varying().all(|place| place > PRIVATE_KEY)
        && varying().all(|place| varying().filter(|other| *other == place).count() == 1)
        && FIXED_HOLES.into_iter().chain(varying()).all(is_empty)
        && !others(fields).any(|place| is_master_secret(env, fields[place]))
}

fn is_private_key<'a>(env: Env<'a>, field: Word<'a>) -> bool {
    field == undefined() || is_key_like(env, field, 0)
}

/// Whether one of `fields` is or contains a private key: a key record, or a map or a fun that stands for a key that is kept
/// elsewhere. Only the key's field of a session has any of these.
pub fn may_hold_private_key<'a>(env: Env<'a>, mut fields: impl Iterator<Item = Word<'a>>) -> bool {
    fields.any(|field| is_key_like(env, field, 0))
}

/// A term that is nested more deeply than any field of a session counts as a key, and is not searched.
fn is_key_like<'a>(env: Env<'a>, term: Word<'a>, depth: u8) -> bool {
    if let Some(elements) = term.tuple(env) {
        let is_key =
            |element: &Word<'a>| is_key_tag(*element) || is_key_like(env, *element, depth + 1);
        return depth == MAX_DEPTH || elements.iter().any(is_key);
    }
    match term.term(env).get_type() {
        TermType::Map | TermType::Fun => true,
        TermType::List => {
            let mut cells = term.cells(env);
            depth == MAX_DEPTH
                || cells.any(|cell| is_key_like(env, cell, depth + 1))
                || (!cells.is_at_end() && is_key_like(env, cells.rest(), depth + 1))
        }
        _ => false,
    }
}

fn is_key_tag(element: Word) -> bool {
    let tags: [Atom; 5] = [
        atoms::rsa_private_key(),
        atoms::ec_private_key(),
        atoms::dsa_private_key(),
        atoms::private_key_info(),
        atoms::one_asymmetric_key(),
    ];
    tags.iter().any(|tag| Word::atom(*tag) == element)
}

/// The content of an empty hole.
pub fn undefined() -> Word<'static> {
    Word::atom(atoms::undefined())
}
