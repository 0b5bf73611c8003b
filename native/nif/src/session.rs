//! Server sessions as bytes and back.
//!
//! OTP's session record is opaque and differs between releases, so its fields are found by content
//! where the position is not the same in all of them (see docs/otp.md). The listener's private key is
//! left out; the time stamps are put in new at each decoding.

use crate::{atoms, terms};
use rekindle_core::Secret;
use rustler::types::tuple::{get_tuple, make_tuple};
use rustler::{Atom, Encoder, Env, Error, NifResult, Term, TermType};
use zeroize::Zeroize;

const TAG: usize = 0;
const SESSION_ID: usize = 1;
const INTERNAL_ID: usize = 2;
const PRIVATE_KEY: usize = 5;

/// Deeper than any field of a session is nested.
const MAX_DEPTH: u8 = 8;

/// First byte of an encoding: where the time stamp goes, or that the rest is a term as it came.
const AS_IT_CAME: u8 = 0;

/// `session` as bytes, without the private key. A term that is no session record is kept as it is.
/// `None` for a session record of a shape that is not understood: it could hold a private key, and
/// OTP could not be given it with the time stamp it needs.
pub fn encode<'a>(key: Term<'a>, session: Term<'a>) -> Option<Secret> {
    let Some(mut fields) = session_fields(session) else {
        return Some(prefixed(AS_IT_CAME, &terms::encode(session)));
    };
    let env = session.get_env();
    let undefined = atoms::undefined().to_term(env);
    let time_stamp = find_time_stamp(&fields, key)?;
    fields[INTERNAL_ID] = undefined;
    fields[PRIVATE_KEY] = undefined;
    fields[time_stamp] = undefined;
    if fields.iter().any(|field| may_hold_private_key(*field, 0)) {
        return None;
    }
    let place = u8::try_from(time_stamp).ok()?;
    Some(prefixed(place, &terms::encode(make_tuple(env, &fields))))
}

/// The session that was encoded, as if it had been made at `now`: the store alone decides on a
/// session's age, and OTP's own check must always pass.
pub fn decode<'a>(env: Env<'a>, encoded: &Secret, now: i64) -> NifResult<Term<'a>> {
    let (place, term) = encoded.expose().split_first().ok_or(Error::BadArg)?;
    let term = terms::decode(env, term)?;
    if *place == AS_IT_CAME {
        return Ok(term);
    }
    let mut fields = get_tuple(term)?;
    fields[INTERNAL_ID] = (now, 0).encode(env);
    fields[usize::from(*place)] = now.encode(env);
    Ok(make_tuple(env, &fields))
}

fn session_fields(term: Term) -> Option<Vec<Term>> {
    let fields = get_tuple(term).ok()?;
    (fields.len() > 1 && atoms::session() == fields[TAG]).then_some(fields)
}

/// Where the time stamp is: the one integer beyond the fields all releases share that equals the
/// first element of `internal_id`.
fn find_time_stamp<'a>(fields: &[Term<'a>], key: Term<'a>) -> Option<usize> {
    if fields.len() <= PRIVATE_KEY || fields[SESSION_ID] != key {
        return None;
    }
    let (stamp, _): (Term, Term) = fields[INTERNAL_ID].decode().ok()?;
    let mut places = (PRIVATE_KEY + 1..fields.len())
        .filter(|place| stamp.is_integer() && fields[*place] == stamp);
    match (places.next(), places.next()) {
        (place, None) => place,
        _ => None,
    }
}

/// Whether `term` is, or has within, what a private key is made of: a key record, or a map or a fun
/// that stands for a key kept elsewhere. No other field of a session has any of these. What is nested
/// deeper than any field of a session is not searched, and not trusted.
fn may_hold_private_key(term: Term, depth: u8) -> bool {
    match term.get_type() {
        TermType::Map | TermType::Fun => true,
        TermType::List | TermType::Tuple if depth == MAX_DEPTH => true,
        TermType::List => list_cells(term).any(|cell| may_hold_private_key(cell, depth + 1)),
        TermType::Tuple => get_tuple(term).is_ok_and(|elements| {
            elements
                .iter()
                .any(|element| is_key_tag(*element) || may_hold_private_key(*element, depth + 1))
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

fn prefixed(first: u8, rest: &Secret) -> Secret {
    let mut bytes = Vec::with_capacity(1 + rest.len());
    bytes.push(first);
    bytes.extend_from_slice(rest.expose());
    let secret = Secret::new(&bytes);
    bytes.zeroize();
    secret
}
