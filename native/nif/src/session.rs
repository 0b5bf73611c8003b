//! Stores server sessions, and reads them from the store.
//!
//! The fields that many sessions share go into a [`Template`](crate::template::Template). A session itself consists of the
//! id, the master secret, the peer's certificate and the server name that the client asked for. The listener's private key is
//! left out, and a session that a lookup returns has another time stamp.

#![allow(unsafe_code)]

use crate::fields::{
    self, Holes, Own, INTERNAL_ID, MAX_SERVER_NAME, PEER_CERTIFICATE, PRIVATE_KEY, SESSION_ID, TAG,
};
use crate::kept::Kept;
use crate::packed::MAX_FIELDS;
use crate::template::{IfNew, Kind, Template};
use crate::words::{make_binary, make_integer, make_string, make_tuple, Answer, Word};
use crate::{atoms, journal, terms};
use rekindle_core::{
    is_canonical, Certificate, Listed, NewSession, Refusal, Scope, ServerStore, Session, SessionKey,
};
use rekindle_journal::TemplateCodec;
use rustler::{Encoder, Env, Error, NifResult, Term};
use std::sync::Arc;
use zeroize::Zeroize;

/// The first byte of a session without a template is the place of the time stamp, or this: then the rest is any other term.
const AS_IT_CAME: u8 = 0;

/// The time stamp of sessions that lookups return, in OTP's native time unit, so that no lifetime has passed since. It is the
/// largest integer that needs no memory: 36 years after the node's start if the unit is a nanosecond.
const FAR_FUTURE: i64 = (1 << 59) - 1;

/// The secret field of a session without a template.
const NO_SECRET: [u8; 48] = [0; 48];

/// Stores `session` without the private key, and returns whether it was stored. A term that is no session record is stored as
/// it is.
pub fn insert<'a>(
    env: Env<'a>,
    scope: &Scope<Template>,
    store: &ServerStore<Template>,
    key: Word<'a>,
    session: Word<'a>,
    now_ms: u64,
) -> bool {
    let tag = Word::atom(atoms::session());
    let fields = session.tuple(env);
    let Some(fields) = fields.filter(|fields| fields.len() > 1 && fields[TAG] == tag) else {
        let plain = terms::encode(session.term(env));
        let key = key.term(env);
        return insert_encoded(store, key, AS_IT_CAME, plain.expose(), None, now_ms);
    };
    let certificate = fields.get(PEER_CERTIFICATE).and_then(|der| der.bytes(env));
    if certificate.is_some_and(|der| !der.is_empty() && !is_canonical(der)) {
        store.counters().refuse(Refusal::Certificate);
        return false;
    }
    let arriving = Arriving {
        env,
        scope,
        store,
        key,
        fields,
        now_ms,
    };
    let holes = Holes::last(fields.len());
    let is_stored = holes.and_then(|holes| arriving.insert(holes, IfNew::Leave));
    match is_stored.map_or_else(|| arriving.insert_new(), Ok) {
        Ok(is_stored) => is_stored,
        Err(refusal) => {
            store.counters().refuse(refusal);
            false
        }
    }
}

/// A session record that is to be stored.
struct Arriving<'a, 's> {
    env: Env<'a>,
    scope: &'s Scope<Template>,
    store: &'s ServerStore<Template>,
    key: Word<'a>,
    fields: &'a [Word<'a>],
    now_ms: u64,
}

impl<'a> Arriving<'a, '_> {
    /// Stores the session with a template, and returns whether it was stored. `None` if it has no template with these holes.
    fn insert(&self, holes: Holes, if_new: IfNew) -> Option<bool> {
        let mut name = [0; MAX_SERVER_NAME];
        let own = Own::read(self.env, self.key, self.fields, holes, &mut name)?;
        let kind = Kind::new(self.env, self.fields, own.holes, if_new);
        let template = self.store.template(&kind)?;
        let journal = journal::of(self.scope);
        // The known revocations are read before the session is stored, so that a revocation in between covers it.
        let journaled =
            journal.map(|journal| (journal, Arc::clone(template.encoded()), journal.knowledge()));
        let session = NewSession {
            key: SessionKey::Id(own.id),
            secret: own.secret,
            template: Some(template),
            certificate: own.certificate,
            tail: own.server_name,
        };
        let is_stored = self.store.insert(session, self.now_ms).is_ok();
        if let (true, Some((journal, template, knowledge))) = (is_stored, journaled) {
            journal.add(
                own.id,
                own.secret,
                template,
                knowledge,
                own.certificate.unwrap_or_default(),
                own.server_name,
                self.store.limits().lifetime_ms,
            );
        }
        Some(is_stored)
    }

    /// Stores a session that differs from the last one. The error says why it cannot be stored, if that was found before the
    /// store was asked.
    fn insert_new(&self) -> Result<bool, Refusal> {
        let found = fields::find(self.env, self.key, self.fields)?;
        let journal = journal::of(self.scope);
        let is_journaled = journal.is_some();
        if let Some(holes) = found.holes {
            if let Some(is_stored) = self.insert(holes, IfNew::Make { is_journaled }) {
                holes.remember(self.fields.len());
                return Ok(is_stored);
            }
        }
        if let Some(journal) = journal {
            journal.leave_out();
        }
        self.insert_whole(found.time_stamp)
    }

    /// Stores the session without a template.
    fn insert_whole(&self, time_stamp: usize) -> Result<bool, Refusal> {
        let mut fields = self.fields.to_vec();
        for place in [INTERNAL_ID, PRIVATE_KEY, time_stamp] {
            fields[place] = fields::undefined();
        }
        let certificate = fields[PEER_CERTIFICATE].bytes(self.env);
        let certificate = certificate.filter(|der| !der.is_empty());
        if certificate.is_some() {
            fields[PEER_CERTIFICATE] = fields::undefined();
        }
        if fields::may_hold_private_key(self.env, fields.iter().copied()) {
            return Err(Refusal::PrivateKey);
        }
        let place = u8::try_from(time_stamp).map_err(|_| Refusal::Layout)?;
        let encoded = terms::encode(tuple_of(self.env, &fields));
        let (key, encoded) = (self.key.term(self.env), encoded.expose());
        Ok(insert_encoded(
            self.store,
            key,
            place,
            encoded,
            certificate,
            self.now_ms,
        ))
    }
}

fn tuple_of<'a>(env: Env<'a>, fields: &[Word<'a>]) -> Term<'a> {
    let fields: Vec<usize> = fields.iter().map(|field| field.raw()).collect();
    // SAFETY: the fields are in `env`.
    unsafe { make_tuple(env, &fields) }.term(env)
}

/// Makes the session under `key`, with a time stamp in the [far future](FAR_FUTURE): the store alone decides on a session's
/// age, and OTP's own check must always pass, whatever lifetime it uses.
///
/// If the caller has templates on its heap, the result is one of these: a tuple tagged `session`; a tuple tagged `plain` with
/// any other term; or a tuple tagged `kept` with the templates to keep from now on, and the session.
pub fn decode<'a>(
    env: Env<'a>,
    key: Word<'a>,
    session: Session<Template>,
    kept: Option<&Kept<'a>>,
) -> Answer<'a> {
    let Some(template) = session.template else {
        let term = decode_whole(env, session)?;
        return Ok(Word::of(match kept {
            Some(_) => (atoms::plain(), term).encode(env),
            None => term,
        }));
    };
    let mut fields = [0; MAX_FIELDS];
    let mut to_keep = None;
    match kept.and_then(|kept| kept.find(env, template)) {
        Some(record) => {
            for (field, known) in fields.iter_mut().zip(record) {
                *field = known.raw();
            }
        }
        None => {
            template.make(env, &mut fields);
            let record = &fields[..template.len()];
            to_keep = kept.and_then(|kept| kept.with(env, template, record));
        }
    }
    let holes = template.holes();
    let stamp = make_integer(env, FAR_FUTURE);
    fields[SESSION_ID] = key.raw();
    fields[INTERNAL_ID] = internal_id(env, stamp).raw();
    fields[usize::from(holes.master_secret)] = binary(env, session.secret).raw();
    fields[usize::from(holes.time_stamp)] = stamp.raw();
    if let Some(certificate) = &session.certificate {
        fields[PEER_CERTIFICATE] = binary_of(env, certificate).raw();
    }
    if let Some(place) = holes.server_name {
        fields[usize::from(place)] = make_string(env, session.tail).raw();
    }
    // SAFETY: all the fields are in `env`, or immediates.
    unsafe {
        let session = make_tuple(env, &fields[..template.len()]);
        Ok(match to_keep {
            Some(kept) => {
                let tag = Word::atom(atoms::kept());
                make_tuple(env, &[tag.raw(), kept.raw(), session.raw()])
            }
            None => session,
        })
    }
}

/// Makes a session, or another term, that was stored without a template.
fn decode_whole<'a>(env: Env<'a>, session: Session<Template>) -> NifResult<Term<'a>> {
    let (place, encoded) = session.tail.split_first().ok_or(Error::BadArg)?;
    let term = terms::decode(env, encoded)?;
    if *place == AS_IT_CAME {
        return Ok(term);
    }
    let stamp = make_integer(env, FAR_FUTURE);
    let mut fields = Word::of(term).tuple(env).ok_or(Error::BadArg)?.to_vec();
    if let Some(certificate) = &session.certificate {
        fields[PEER_CERTIFICATE] = binary_of(env, certificate);
    }
    fields[INTERNAL_ID] = internal_id(env, stamp);
    fields[usize::from(*place)] = stamp;
    Ok(tuple_of(env, &fields))
}

/// The parts of a session that an operator may see: its key, its age and its age at the last use, in milliseconds, the peer's
/// certificate, the cipher suite, and for how many seconds the certificate lets it be resumed. A missing part is `undefined`.
pub fn describe<'a>(env: Env<'a>, listed: Listed<Template>) -> NifResult<Term<'a>> {
    let undefined = fields::undefined().term(env);
    let certificate = match &listed.session.certificate {
        Some(certificate) => binary_of(env, certificate).term(env),
        None => undefined,
    };
    let cipher_suite = match listed.session.template {
        Some(template) => template.suite(),
        None => {
            let (place, encoded) = listed.session.tail.split_first().ok_or(Error::BadArg)?;
            match *place {
                AS_IT_CAME => None,
                _ => {
                    let fields = Word::of(terms::decode(env, encoded)?).tuple(env);
                    fields::cipher_suite(env, fields.unwrap_or_default().iter().copied())
                }
            }
        }
    };
    let age_at_last_use_ms = match listed.age_at_last_use_ms {
        Some(age_ms) => age_ms.encode(env),
        None => undefined,
    };
    let left_s = match listed.certificate_left_s {
        Some(left_s) => left_s.encode(env),
        None => undefined,
    };
    let key = self::key(env, listed.key)?;
    Ok((
        key,
        listed.age_ms,
        age_at_last_use_ms,
        certificate,
        cipher_suite.map_or(undefined, |suite| terms::binary(env, &suite)),
        left_s,
    )
        .encode(env))
}

/// The key of a server session as an Erlang term.
pub fn key<'a>(env: Env<'a>, key: SessionKey) -> NifResult<Term<'a>> {
    match key {
        SessionKey::Id(id) => Ok(terms::binary(env, id)),
        SessionKey::Other(encoded) => terms::decode(env, encoded),
    }
}

/// Calls `with` with the store's form of a server session's key.
pub fn with_key<R>(key: Term, with: impl FnOnce(SessionKey) -> R) -> R {
    match Word::of(key).array(key.get_env()) {
        Some(id) => with(SessionKey::Id(id)),
        None => with(SessionKey::Other(terms::encode(key).expose())),
    }
}

/// A certificate as an Erlang binary.
fn binary_of<'a>(env: Env<'a>, certificate: &Certificate) -> Word<'a> {
    make_binary(env, certificate.len(), |bytes| {
        _ = certificate.copy_to(bytes)
    })
}

fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Word<'a> {
    make_binary(env, bytes.len(), |copy| copy.copy_from_slice(bytes))
}

fn internal_id<'a>(env: Env<'a>, stamp: Word<'a>) -> Word<'a> {
    let number = make_integer(env, 0);
    // SAFETY: both are in `env`.
    unsafe { make_tuple(env, &[stamp.raw(), number.raw()]) }
}

fn insert_encoded(
    store: &ServerStore<Template>,
    key: Term,
    place: u8,
    encoded: &[u8],
    certificate: Option<&[u8]>,
    now_ms: u64,
) -> bool {
    let mut tail = [&[place], encoded].concat();
    let is_stored = with_key(key, |key| {
        let session = NewSession {
            key,
            secret: &NO_SECRET,
            template: None,
            certificate,
            tail: &tail,
        };
        store.insert(session, now_ms).is_ok()
    });
    tail.zeroize();
    is_stored
}
