//! What the sessions of one listener and cipher suite have in common, as terms that are ready to be
//! handed out: the listener's certificates, the cipher suite, the curve, the flags.

#![allow(unsafe_code)]

use crate::{atoms, session};
use rekindle_core::{Pattern, ServerStore, Session};
use rekindle_journal::{Content, Portable};
use rustler::env::OwnedEnv;
use rustler::sys::{
    enif_get_tuple, enif_is_identical, enif_make_copy, enif_make_tuple_from_array, ErlNifTerm,
};
use rustler::types::tuple::{get_tuple, make_tuple};
use rustler::{Encoder, Env, Term};
use std::borrow::Cow;
use std::sync::Arc;

/// More fields than any session record has.
pub const MAX_FIELDS: usize = 32;

/// What an environment of its own takes beside its terms, about.
const ENVIRONMENT_BYTES: usize = 1024;

/// The fields of a session record, with holes where sessions differ.
pub struct Template {
    fields: Vec<Field>,
    /// A tuple of the fields that are no atoms: one copy instead of many.
    boxed: ErlNifTerm,
    holes: Holes,
    /// The same as bytes, for other processes.
    content: Arc<Content>,
    /// Owns `boxed`.
    _env: OwnedEnv,
}

/// Where sessions of one template differ beside the fields at places that are the same in all releases.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Holes {
    pub master_secret: usize,
    pub time_stamp: usize,
    pub server_name: Option<usize>,
}

enum Field {
    /// A term that is its own value, in any environment.
    Atom(ErlNifTerm),
    /// A place in the tuple of boxed fields.
    Boxed(usize),
}

// SAFETY: the terms are never changed after the template is made. To read them, `enif_is_identical` and
// `enif_make_copy` follow them without touching their environment; what they write to is the reference
// counts of binaries, which are atomic.
unsafe impl Sync for Template {}
// SAFETY: an environment that belongs to no process may be freed by any thread.
unsafe impl Send for Template {}

impl Template {
    pub fn holes(&self) -> Holes {
        self.holes
    }

    /// The cipher suite of the template's sessions, in `env`.
    pub fn cipher_suite<'a>(&self, env: Env<'a>) -> Option<Term<'a>> {
        // SAFETY: `env` is the calling process's, and the tuple lives as long as the template.
        let boxed = unsafe { elements(enif_make_copy(env.as_c_arg(), self.boxed), env) };
        // SAFETY: the terms were just copied into `env`.
        let boxed: Vec<Term> = boxed
            .iter()
            .map(|term| unsafe { Term::new(env, *term) })
            .collect();
        session::find_cipher_suite(&boxed)
    }

    /// The field of the listener's own certificates, in `env`.
    pub fn own_certificates<'a>(&self, env: Env<'a>) -> Term<'a> {
        let filled = self.fill(env, []);
        get_tuple(filled)
            .ok()
            .and_then(|fields| fields.get(session::OWN_CERTIFICATES).copied())
            .unwrap_or(undefined(env))
    }

    /// A tuple of the template's fields in `env`, but of `fillings` where there are any.
    pub fn fill<'a>(
        &self,
        env: Env<'a>,
        fillings: impl IntoIterator<Item = (usize, Term<'a>)>,
    ) -> Term<'a> {
        let mut terms = [undefined(env).as_c_arg(); MAX_FIELDS];
        let terms = &mut terms[..self.fields.len()];
        // SAFETY: `env` is the calling process's, and the tuple lives as long as the template.
        let boxed = unsafe { elements(enif_make_copy(env.as_c_arg(), self.boxed), env) };
        for (term, field) in terms.iter_mut().zip(&self.fields) {
            *term = match field {
                Field::Atom(atom) => *atom,
                Field::Boxed(place) => boxed[*place],
            };
        }
        for (place, filling) in fillings {
            terms[place] = filling.as_c_arg();
        }
        // SAFETY: all the terms are in `env`, or are atoms.
        unsafe {
            let tuple =
                enif_make_tuple_from_array(env.as_c_arg(), terms.as_ptr(), terms.len() as u32);
            Term::new(env, tuple)
        }
    }
}

/// The fields of one session, `undefined` in the holes.
pub struct Shared<'a, 'b> {
    pub fields: &'b [Term<'a>],
    pub holes: Holes,
}

impl Pattern<Template> for Shared<'_, '_> {
    fn hash(&self) -> u64 {
        make_tuple(self.fields[0].get_env(), self.fields).hash_internal(0)
    }

    fn matches(&self, template: &Template) -> bool {
        // SAFETY: the tuple lives as long as the template.
        let boxed = unsafe { elements(template.boxed, self.fields[0].get_env()) };
        let is_identical = |(field, other): (&Term, &Field)| {
            let other = match other {
                Field::Atom(atom) => *atom,
                Field::Boxed(place) => boxed[*place],
            };
            // SAFETY: both terms are alive; they need not be in one environment.
            unsafe { enif_is_identical(field.as_c_arg(), other) != 0 }
        };
        self.holes == template.holes
            && self.fields.len() == template.fields.len()
            && self.fields.iter().zip(&template.fields).all(is_identical)
    }

    fn make(&self) -> Option<(Template, u64)> {
        if self.fields.len() > MAX_FIELDS || session::may_hold_private_key(self.fields) {
            return None;
        }
        let mut boxed = Vec::new();
        let fields = self.fields.iter().map(|field| {
            if field.is_atom() {
                Field::Atom(field.as_c_arg())
            } else {
                boxed.push(*field);
                Field::Boxed(boxed.len() - 1)
            }
        });
        let fields = fields.collect();
        let boxed = make_tuple(self.fields[0].get_env(), &boxed);
        let content = Content::new(self.to_bytes());
        let bytes = ENVIRONMENT_BYTES + boxed.to_binary().len() + content.bytes().len();
        let env = OwnedEnv::new();
        let template = Template {
            fields,
            boxed: env.run(|env| boxed.in_env(env).as_c_arg()),
            holes: self.holes,
            content: Arc::new(content),
            _env: env,
        };
        Some((template, bytes as u64))
    }
}

impl Shared<'_, '_> {
    /// The holes and the fields, in the external term format.
    fn to_bytes(&self) -> Vec<u8> {
        let env = self.fields[0].get_env();
        let Holes {
            master_secret,
            time_stamp,
            server_name,
        } = self.holes;
        let fields = make_tuple(env, self.fields);
        (master_secret, time_stamp, server_name, fields)
            .encode(env)
            .to_binary()
            .to_vec()
    }
}

/// First bytes of a term in the external term format that is not compressed.
const MAGIC: u8 = 131;
const COMPRESSED: u8 = 80;

impl Portable for Template {
    fn content(&self) -> &Arc<Content> {
        &self.content
    }

    /// The bytes are those of a node that has the key. Still, a term that is not a template of this release must
    /// not get into a session, and what is compressed could be anything large.
    fn intern(store: &ServerStore<Template>, content: &[u8]) -> Option<Arc<Template>> {
        match content {
            [MAGIC, COMPRESSED, ..] => return None,
            [MAGIC, ..] => {}
            _ => return None,
        }
        OwnedEnv::new().run(|env| {
            // Makes no atoms: those of a session are there wherever ssl is.
            let (term, _) = env.binary_to_term(content)?;
            let (master_secret, time_stamp, server_name, fields): (_, _, _, Term) =
                term.decode().ok()?;
            let fields = get_tuple(fields).ok()?;
            let holes = Holes {
                master_secret,
                time_stamp,
                server_name,
            };
            if !session::are_fields_of_template(&fields, holes) {
                return None;
            }
            store.template(&Shared {
                fields: &fields,
                holes,
            })
        })
    }

    fn certificate<'a>(session: &Session<'a, Template>) -> Option<Cow<'a, [u8]>> {
        session::certificate_of(session)
    }
}

/// The elements of a tuple.
///
/// # Safety
/// `tuple` is a tuple, alive for `'a`. It need not be in `env`, which is not used but asked for.
unsafe fn elements<'a>(tuple: ErlNifTerm, env: Env<'a>) -> &'a [ErlNifTerm] {
    let mut arity = 0;
    let mut elements = std::ptr::null();
    // SAFETY: by the caller.
    unsafe {
        if enif_get_tuple(env.as_c_arg(), tuple, &mut arity, &mut elements) == 0 {
            return &[];
        }
        std::slice::from_raw_parts(elements, arity as usize)
    }
}

/// What stands in a hole.
pub fn undefined(env: Env) -> Term {
    atoms::undefined().to_term(env)
}
