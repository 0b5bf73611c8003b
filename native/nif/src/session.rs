//! Server sessions into the store and out of it.
//!
//! OTP's session record is opaque and differs between releases, so its fields are found by content
//! where the place is not the same in all of them (see docs/otp.md). What many sessions share goes into
//! a [`Template`]; of each session only the id, the master secret, the peer's certificate and the server name that
//! it asked for are kept.
//! The listener's private key is left out; the time stamps are put in new each time a session is handed
//! out.

use crate::template::{undefined, Holes, Shared, Template};
use crate::{atoms, stamp, terms};
use rekindle_core::{Listed, Scope, ServerStore, Session, SessionKey};
use rekindle_journal::{Journal, Portable};
use rustler::env::OwnedEnv;
use rustler::types::tuple::{get_tuple, make_tuple};
use rustler::{Atom, Binary, Encoder, Env, Error, NifResult, Term, TermType};
use std::borrow::Cow;
use std::sync::Arc;
use zeroize::Zeroize;

const TAG: usize = 0;
const SESSION_ID: usize = 1;
const INTERNAL_ID: usize = 2;
const PEER_CERTIFICATE: usize = 3;
pub const OWN_CERTIFICATES: usize = 4;
const PRIVATE_KEY: usize = 5;

/// Deeper than any field of a session is nested.
const MAX_DEPTH: u8 = 8;

/// First byte of what is kept without a template: where the time stamp goes, or that the rest is a term
/// as it came.
const AS_IT_CAME: u8 = 0;

/// Where there is no master secret of its own.
const NO_SECRET: [u8; 48] = [0; 48];

/// Stores `session`, without the private key. A term that is no session record is kept as it is.
///
/// `None` for a session record of a shape that is not understood: it could hold a private key, and OTP
/// could not be given it with the time stamp it needs. `Some(false)` if the store did not take it.
pub fn insert<'a>(
    scope: &Scope<Template>,
    store: &ServerStore<Template>,
    key: Term<'a>,
    session: Term<'a>,
    now_ms: u64,
) -> Option<bool> {
    let Some(mut fields) = session_fields(session) else {
        let plain = terms::encode(session);
        return Some(insert_encoded(
            store,
            key,
            AS_IT_CAME,
            plain.expose(),
            false,
            now_ms,
        ));
    };
    let env = session.get_env();
    let time_stamp = find_time_stamp(&fields, key)?;
    // Another field in this place would be missing when the session is handed out.
    if atoms::undefined() != fields[PRIVATE_KEY] && !is_key_like(fields[PRIVATE_KEY], 0) {
        return None;
    }
    let certificate = fields[PEER_CERTIFICATE];
    let verified = certificate.is_binary();
    fields[INTERNAL_ID] = undefined(env);
    fields[PRIVATE_KEY] = undefined(env);
    fields[time_stamp] = undefined(env);

    if let Some(own) = own_parts(&fields, key, certificate) {
        let mut shared = fields.clone();
        let own_places = [SESSION_ID, PEER_CERTIFICATE, own.secret_at];
        for place in own_places.into_iter().chain(own.server_name_at) {
            shared[place] = undefined(env);
        }
        let template = store.template(&Shared {
            fields: &shared,
            holes: Holes {
                master_secret: own.secret_at,
                time_stamp,
                server_name: own.server_name_at,
            },
        });
        if let Some(template) = template {
            let journal = scope.attached::<Journal>();
            let content = journal.map(|_| Arc::clone(template.content()));
            let id = SessionKey::Id(own.id);
            let stored = store.insert(id, own.secret, Some(template), &own.tail, verified, now_ms);
            if let (true, Some(journal), Some(content)) = (stored, journal, content) {
                let lifetime_ms = store.limits().lifetime_ms;
                journal.born(
                    own.id,
                    own.secret,
                    content,
                    verified,
                    &own.tail,
                    lifetime_ms,
                );
            }
            return Some(stored);
        }
    }
    if let Some(journal) = scope.attached::<Journal>() {
        journal.leave_out();
    }
    if may_hold_private_key(&fields) {
        return None;
    }
    let place = u8::try_from(time_stamp).ok()?;
    let encoded = terms::encode(make_tuple(env, &fields));
    Some(insert_encoded(
        store,
        key,
        place,
        encoded.expose(),
        verified,
        now_ms,
    ))
}

/// The session under `key`, as if it had been made now: the store alone decides on a session's age,
/// and OTP's own check must always pass.
pub fn decode<'a>(
    env: Env<'a>,
    key: Term<'a>,
    session: Session<Template>,
    now_ms: u64,
) -> NifResult<Term<'a>> {
    let stamp = stamp::present(env, now_ms);
    let internal_id = (stamp, 0).encode(env);
    let Some(template) = session.template else {
        let (place, encoded) = session.tail.split_first().ok_or(Error::BadArg)?;
        let term = terms::decode(env, encoded)?;
        if *place == AS_IT_CAME {
            return Ok(term);
        }
        let mut fields = get_tuple(term)?;
        fields[INTERNAL_ID] = internal_id;
        fields[usize::from(*place)] = stamp;
        return Ok(make_tuple(env, &fields));
    };
    let Holes {
        master_secret,
        time_stamp,
        server_name,
    } = template.holes();
    let (name, tail) = parts_of_tail(template.holes(), session.tail)?;
    let fillings = [
        (SESSION_ID, key),
        (INTERNAL_ID, internal_id),
        (PEER_CERTIFICATE, certificate(env, tail)),
        (master_secret, terms::binary(env, session.secret)),
        (time_stamp, stamp),
    ];
    let server_name = server_name.map(|place| (place, name.encode(env)));
    Ok(template.fill(env, fillings.into_iter().chain(server_name)))
}

/// What an operator may see of a session: its key, age in milliseconds, uses, peer certificate and cipher
/// suite, the latter two `undefined` where there are none.
pub fn describe<'a>(env: Env<'a>, listed: Listed<Template>) -> NifResult<Term<'a>> {
    let (certificate, cipher_suite) = match listed.session.template {
        Some(template) => {
            let (_, tail) = parts_of_tail(template.holes(), listed.session.tail)?;
            (certificate(env, tail), template.cipher_suite(env))
        }
        None => {
            let (place, encoded) = listed.session.tail.split_first().ok_or(Error::BadArg)?;
            match *place {
                AS_IT_CAME => (undefined(env), None),
                _ => {
                    let fields = get_tuple(terms::decode(env, encoded)?)?;
                    (fields[PEER_CERTIFICATE], find_cipher_suite(&fields))
                }
            }
        }
    };
    let key = self::key(env, listed.key)?;
    let cipher_suite = cipher_suite.unwrap_or(undefined(env));
    Ok((key, listed.age_ms, listed.uses, certificate, cipher_suite).encode(env))
}

/// What a server session is found by, as Erlang knows it.
pub fn key<'a>(env: Env<'a>, key: SessionKey) -> NifResult<Term<'a>> {
    match key {
        SessionKey::Id(id) => Ok(terms::binary(env, id)),
        SessionKey::Other(encoded) => terms::decode(env, encoded),
    }
}

/// The cipher suite among the fields of a session record: the one binary of two bytes.
pub fn find_cipher_suite<'a>(fields: &[Term<'a>]) -> Option<Term<'a>> {
    let is_it = |field: &&Term| Binary::from_term(**field).is_ok_and(|binary| binary.len() == 2);
    fields.iter().find(is_it).copied()
}

fn certificate<'a>(env: Env<'a>, tail: &[u8]) -> Term<'a> {
    match tail {
        [] => undefined(env),
        certificate => terms::binary(env, certificate),
    }
}

/// Calls `with` with what a server session under `key` is found by.
pub fn with_key<R>(key: Term, with: impl FnOnce(SessionKey) -> R) -> R {
    match id(key) {
        Some(id) => with(SessionKey::Id(id)),
        None => with(SessionKey::Other(terms::encode(key).expose())),
    }
}

fn insert_encoded(
    store: &ServerStore<Template>,
    key: Term,
    place: u8,
    encoded: &[u8],
    verified: bool,
    now_ms: u64,
) -> bool {
    let mut tail = [&[place], encoded].concat();
    let stored = with_key(key, |key| {
        store.insert(key, &NO_SECRET, None, &tail, verified, now_ms)
    });
    tail.zeroize();
    stored
}

fn id(key: Term<'_>) -> Option<&[u8; 32]> {
    Binary::from_term(key).ok()?.as_slice().try_into().ok()
}

fn session_fields(term: Term) -> Option<Vec<Term>> {
    let fields = get_tuple(term).ok()?;
    (fields.len() > 1 && atoms::session() == fields[TAG]).then_some(fields)
}

/// What is kept of a session that has a template.
struct Own<'a> {
    id: &'a [u8; 32],
    secret_at: usize,
    secret: &'a [u8; 48],
    server_name_at: Option<usize>,
    /// The peer's certificate, empty where there is none; after the server name, where there is one.
    tail: Cow<'a, [u8]>,
}

/// `None` where one of the parts is not as it is in any known release.
fn own_parts<'a>(fields: &[Term<'a>], key: Term<'a>, certificate: Term<'a>) -> Option<Own<'a>> {
    let secret = |place: usize| -> Option<&'a [u8; 48]> {
        Binary::from_term(fields[place])
            .ok()?
            .as_slice()
            .try_into()
            .ok()
    };
    let places = PRIVATE_KEY + 1..fields.len();
    let mut secrets = places
        .clone()
        .filter_map(|place| Some((place, secret(place)?)));
    let (secret_at, secret) = match (secrets.next(), secrets.next()) {
        (Some(only), None) => only,
        _ => return None,
    };
    let certificate: &[u8] = match Binary::from_term(certificate) {
        Ok(certificate) if !certificate.is_empty() => certificate.as_slice(),
        Err(_) if atoms::undefined() == certificate => &[],
        _ => return None,
    };
    let mut strings = places.filter_map(|place| Some((place, string(fields[place])?)));
    let (server_name_at, tail) = match (strings.next(), strings.next()) {
        (None, _) => (None, Cow::Borrowed(certificate)),
        (Some((place, name)), None) => (Some(place), Cow::Owned(join_tail(&name, certificate)?)),
        _ => return None,
    };
    Some(Own {
        id: id(key)?,
        secret_at,
        secret,
        server_name_at,
        tail,
    })
}

/// The bytes of a string of Erlang's that is not empty. The client chooses the server name: if that were in the
/// template, it could have as many templates made as there may be.
fn string(term: Term) -> Option<Vec<u8>> {
    // An improper list has no length.
    if term.is_empty_list() || term.list_length().is_err() {
        return None;
    }
    // As bytes, larger numbers would be cut off.
    let byte = |cell: Term| u8::try_from(cell.decode::<i64>().ok()?).ok();
    list_cells(term).map(byte).collect()
}

/// `None` for a name longer than TLS can send.
fn join_tail(name: &[u8], certificate: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(name.len()).ok()?;
    Some([&length.to_ne_bytes(), name, certificate].concat())
}

/// The name, where sessions of the template have one, and the certificate.
fn parts_of_tail(holes: Holes, tail: &[u8]) -> NifResult<(&[u8], &[u8])> {
    if holes.server_name.is_none() {
        return Ok((&[], tail));
    }
    let (length, rest) = tail.split_first_chunk().ok_or(Error::BadArg)?;
    rest.split_at_checked(u16::from_ne_bytes(*length).into())
        .ok_or(Error::BadArg)
}

/// Where the time stamp is: the one integer beyond the fields all releases share that equals the
/// first element of `internal_id`.
fn find_time_stamp<'a>(fields: &[Term<'a>], key: Term<'a>) -> Option<usize> {
    if fields.len() <= PRIVATE_KEY || fields[SESSION_ID] != key {
        return None;
    }
    let (stamp, _): (Term, Term) = fields[INTERNAL_ID].decode().ok()?;
    if !stamp.is_integer() {
        return None;
    }
    let mut places = (PRIVATE_KEY + 1..fields.len()).filter(|place| fields[*place] == stamp);
    match (places.next(), places.next()) {
        (place, None) => place,
        _ => None,
    }
}

/// Whether these are fields that a template of this node could have: a session record with nothing where
/// sessions have their own.
pub fn are_fields_of_template(fields: &[Term], holes: Holes) -> bool {
    let Holes {
        master_secret,
        time_stamp,
        server_name,
    } = holes;
    let varying = [Some(master_secret), Some(time_stamp), server_name];
    let varying = || varying.iter().flatten().copied();
    let fixed = [SESSION_ID, INTERNAL_ID, PEER_CERTIFICATE, PRIVATE_KEY];
    let is_empty = |place: usize| {
        fields
            .get(place)
            .is_some_and(|field| atoms::undefined() == *field)
    };
    fields.len() > PRIVATE_KEY + 1
        && atoms::session() == fields[TAG]
        && varying().all(|place| place > PRIVATE_KEY)
        && varying().all(|place| varying().filter(|other| *other == place).count() == 1)
        && fixed.into_iter().chain(varying()).all(is_empty)
}

/// The client's certificate of a session, as DER.
pub fn certificate_of<'a>(session: &Session<'a, Template>) -> Option<Cow<'a, [u8]>> {
    if let Some(template) = session.template {
        let (_, certificate) = parts_of_tail(template.holes(), session.tail).ok()?;
        return (!certificate.is_empty()).then_some(Cow::Borrowed(certificate));
    }
    let (place, encoded) = session.tail.split_first()?;
    if *place == AS_IT_CAME {
        return None;
    }
    OwnedEnv::new().run(|env| {
        let fields = get_tuple(terms::decode(env, encoded).ok()?).ok()?;
        let certificate = Binary::from_term(*fields.get(PEER_CERTIFICATE)?).ok()?;
        Some(Cow::Owned(certificate.to_vec()))
    })
}

/// Whether one of `fields` is, or has within, what a private key is made of: a key record, or a map or a
/// fun that stands for a key kept elsewhere. No field of a session but that of the key has any of these.
pub fn may_hold_private_key(fields: &[Term]) -> bool {
    fields.iter().any(|field| is_key_like(*field, 0))
}

/// What is nested deeper than any field of a session is not searched, and not trusted.
fn is_key_like(term: Term, depth: u8) -> bool {
    match term.get_type() {
        TermType::Map | TermType::Fun => true,
        TermType::List | TermType::Tuple if depth == MAX_DEPTH => true,
        TermType::List => list_cells(term).any(|cell| is_key_like(cell, depth + 1)),
        TermType::Tuple => get_tuple(term).is_ok_and(|elements| {
            elements
                .iter()
                .any(|element| is_key_tag(*element) || is_key_like(*element, depth + 1))
        }),
        _ => false,
    }
}

/// The elements of a list, and the tail of an improper one.
fn list_cells(term: Term) -> impl Iterator<Item = Term> {
    let mut rest = Some(term);
    std::iter::from_fn(move || {
        let current = rest.take()?;
        match current.list_get_cell() {
            Ok((head, tail)) => {
                rest = Some(tail);
                Some(head)
            }
            Err(_) if current.is_empty_list() => None,
            Err(_) => Some(current),
        }
    })
}

fn is_key_tag(term: Term) -> bool {
    let tags: [Atom; 5] = [
        atoms::rsa_private_key(),
        atoms::ec_private_key(),
        atoms::dsa_private_key(),
        atoms::private_key_info(),
        atoms::one_asymmetric_key(),
    ];
    tags.iter().any(|tag| *tag == term)
}
