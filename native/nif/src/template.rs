//! Templates: the fields that the sessions of one listener and cipher suite share, such as the listener's certificates and the
//! curve.

#![allow(unsafe_code)]

use crate::fields::{self, Holes, OWN_CERTIFICATES};
use crate::own_certificates::{self, OwnCertificates};
use crate::packed::{Packed, MAX_FIELDS};
use crate::words::{make_tuple, Word};
use foldhash::quality::FixedState;
use once_cell::sync::OnceCell;
use rekindle_core::{Held, Made, Part, Pattern, ServerStore};
use rekindle_journal::{EncodedTemplate, Suite, TemplateCodec};
use rustler::env::OwnedEnv;
use rustler::{Encoder, Env, Term};
use std::hash::BuildHasher;
use std::mem::size_of;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;

/// Bytes that the allocator takes in addition.
const ALLOCATION_BYTES: usize = 16;

static NEXT_NAME: AtomicU64 = AtomicU64::new(1);

/// The fields of a session record, with holes in the places where sessions differ.
pub struct Template {
    /// An integer that no other template of this load of the library has or had.
    name: usize,
    holes: Holes,
    /// The fields, with `undefined` in the holes, and in place of certificates that are kept separately.
    fields: Packed,
    own_certificates: Option<Arc<OwnCertificates>>,
    suite: Option<Suite>,
    /// The template as bytes, for a journal.
    encoded: OnceCell<Arc<EncodedTemplate>>,
}

impl Template {
    pub fn holes(&self) -> Holes {
        self.holes
    }

    pub fn name(&self) -> usize {
        self.name
    }

    /// The number of fields.
    pub fn len(&self) -> usize {
        self.fields.len()
    }

    /// About how many words it takes on a process's heap. `None` if the number is unknown.
    pub fn heap_words(&self) -> Option<usize> {
        let own = self.own_certificates.as_ref();
        Some(self.fields.heap_words()? + self.len() + own.map_or(0, |own| own.heap_words()))
    }

    /// Makes its fields in `env`.
    pub fn make(&self, env: Env, fields: &mut [usize; MAX_FIELDS]) {
        self.fields.make(env, fields);
        if let Some(own) = &self.own_certificates {
            fields[OWN_CERTIFICATES] = own.make(env).raw();
        }
    }

    /// The field of the listener's own certificates, in `env`.
    pub fn own_certificates<'a>(&self, env: Env<'a>) -> Term<'a> {
        let mut fields = [0; MAX_FIELDS];
        self.make(env, &mut fields);
        // SAFETY: the fields were just made in `env`.
        unsafe { Word::new(fields[OWN_CERTIFICATES]) }.term(env)
    }

    /// Whether these are its fields, apart from the holes.
    fn is<'a>(&self, env: Env<'a>, fields: &[Word<'a>]) -> bool {
        let (mut holes, own) = (self.holes.bits(), self.own_certificates.as_ref());
        if own.is_some() {
            holes |= 1 << OWN_CERTIFICATES;
        }
        self.fields.is(env, fields, holes)
            && own.is_none_or(|own| own.is(env, fields[OWN_CERTIFICATES]))
    }

    /// The holes and the fields in the external term format.
    fn to_bytes(&self) -> Vec<u8> {
        OwnedEnv::new().run(|env| {
            let mut fields = [0; MAX_FIELDS];
            self.make(env, &mut fields);
            // SAFETY: the fields were just made in `env`.
            let fields = unsafe { make_tuple(env, &fields[..self.len()]) };
            let Holes {
                master_secret,
                time_stamp,
                server_name,
            } = self.holes;
            (master_secret, time_stamp, server_name, fields.term(env))
                .encode(env)
                .to_binary()
                .to_vec()
        })
    }
}

/// The pattern of a session's template.
pub struct Kind<'a> {
    env: Env<'a>,
    fields: &'a [Word<'a>],
    holes: Holes,
    if_new: IfNew,
    packed: OnceCell<Option<Packed>>,
}

/// Whether to make a template if there is none.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum IfNew {
    Leave,
    Make { is_journaled: bool },
}

impl<'a> Kind<'a> {
    /// There are at most [`MAX_FIELDS`] fields, and enough to include the own certificates.
    pub fn new(env: Env<'a>, fields: &'a [Word<'a>], holes: Holes, if_new: IfNew) -> Self {
        Kind {
            env,
            fields,
            holes,
            if_new,
            packed: OnceCell::new(),
        }
    }

    fn own_certificates(&self) -> Word<'a> {
        self.fields[OWN_CERTIFICATES]
    }

    fn hash_of_own_certificates(&self) -> Option<u64> {
        own_certificates::hash(self.env, self.own_certificates())
    }

    /// The fields of the template, without certificates that are kept separately.
    fn shared(&self, has_own: bool) -> impl Iterator<Item = Word<'a>> + '_ {
        let holes = self.holes.bits() | u32::from(has_own) << OWN_CERTIFICATES;
        let fields = self.fields.iter().enumerate();
        fields.map(move |(place, field)| match holes & (1 << place) {
            0 => *field,
            _ => fields::undefined(),
        })
    }

    /// `None` if one of the fields could be the master secret, which only the store may keep.
    fn packed(&self, has_own: bool) -> Option<&Packed> {
        let pack = || {
            let is_secret = |field| fields::is_master_secret(self.env, field);
            let has_secret = self.shared(has_own).any(is_secret);
            (!has_secret).then(|| Packed::new(self.env, self.shared(has_own)))
        };
        self.packed.get_or_init(pack).as_ref()
    }
}

impl Pattern<Template> for Kind<'_> {
    fn hash(&self) -> u64 {
        let own = self.hash_of_own_certificates();
        let packed = self.packed(own.is_some());
        FixedState::default().hash_one((self.holes, own, packed.map(Packed::words)))
    }

    fn matches(&self, template: &Template) -> bool {
        self.holes == template.holes && template.is(self.env, self.fields)
    }

    fn make(&self) -> Option<Made<Template>> {
        let IfNew::Make { is_journaled } = self.if_new else {
            return None;
        };
        if fields::may_hold_private_key(self.env, self.shared(false)) {
            return None;
        }
        let own_certificates = OwnCertificates::keep(self.env, self.own_certificates());
        let name = NEXT_NAME.fetch_add(1, Relaxed);
        let template = Template {
            name: Word::of(name.encode(self.env)).raw(),
            holes: self.holes,
            fields: self.packed(own_certificates.is_some())?.clone(),
            own_certificates,
            suite: fields::cipher_suite(self.env, self.shared(false)),
            encoded: OnceCell::new(),
        };
        let mut bytes = size_of::<Template>() + template.fields.bytes() + ALLOCATION_BYTES;
        if is_journaled {
            bytes += template.encoded().bytes().len() + ALLOCATION_BYTES;
        }
        let part = template.own_certificates.as_ref().map(|own| Part {
            key: Arc::as_ptr(own) as usize,
            bytes: own.bytes() as u64,
        });
        Some(Made {
            template,
            bytes: bytes as u64,
            part,
        })
    }
}

/// First bytes of a term in the external term format that is not compressed.
const MAGIC: u8 = 131;
const COMPRESSED: u8 = 80;

impl TemplateCodec for Template {
    fn encoded(&self) -> &Arc<EncodedTemplate> {
        self.encoded
            .get_or_init(|| Arc::new(EncodedTemplate::new(self.to_bytes())))
    }

    fn suite(&self) -> Option<Suite> {
        self.suite
    }

    /// The bytes come from a node that has the key. Still, a term that is no template of this release must not get into a
    /// session, and a compressed term could be very large.
    fn intern<'a>(store: &'a ServerStore<Template>, content: &[u8]) -> Option<Held<'a, Template>> {
        match content {
            [MAGIC, COMPRESSED, ..] => return None,
            [MAGIC, ..] => {}
            _ => return None,
        }
        OwnedEnv::new().run(|env| {
            // Makes no atoms: ssl has those of a session.
            let (term, _) = env.binary_to_term(content)?;
            let (master_secret, time_stamp, server_name, fields): (_, _, _, Term) =
                term.decode().ok()?;
            let holes = Holes {
                master_secret,
                time_stamp,
                server_name,
            };
            let fields = Word::of(fields).tuple(env)?;
            if !fields::are_of_template(env, fields, holes) {
                return None;
            }
            let is_journaled = true;
            store.template(&Kind::new(env, fields, holes, IfNew::Make { is_journaled }))
        })
    }
}
