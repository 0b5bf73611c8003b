//! Templates that a process keeps on its own heap, so that a lookup need not copy them there.
//!
//! They are in one tuple, which the process passes to each lookup (`rekindle` keeps it in the process dictionary of OTP's
//! cache process). The tuple names the load of this library that made it. Any other term counts as empty, and is replaced.
//! Each template consists of a number that no other template has or had, and a session record with empty holes.

#![allow(unsafe_code)]

use crate::packed::MAX_FIELDS;
use crate::template::Template;
use crate::words::{make_tuple, Word};
use rustler::sys::{enif_make_unique_integer, ERL_NIF_UNIQUE_POSITIVE};
use rustler::{Encoder, Env, Term};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The most templates of a process.
const MAX_KEPT: usize = 8;

/// Most words of a template on a heap.
pub const MAX_HEAP_WORDS: usize = 256;

/// If a template is not found in a full tuple, it replaces another one only once per this many lookups. With many kinds of
/// session, it would cost too much to make a tuple each time, and frequent templates come back sooner than they go.
const LOOKUPS_PER_REPLACEMENT: u64 = 16;

/// Integers below this are small on all machines.
const SMALL: i64 = 1 << 26;

/// The name of this load of the library, as a term.
static LOAD: AtomicUsize = AtomicUsize::new(0);

static LOOKED_FOR: AtomicU64 = AtomicU64::new(0);

/// Gives this load of the library a name.
pub fn name_load(env: Env) {
    // SAFETY: makes a term in `env`.
    let unique = unsafe {
        let unique = enif_make_unique_integer(env.as_c_arg(), ERL_NIF_UNIQUE_POSITIVE);
        Term::new(env, unique)
    };
    let unique: i64 = unique.decode().unwrap_or_default();
    // An immediate, so that it is the same term in any environment.
    let name = (unique % SMALL).encode(env);
    LOAD.store(Word::of(name).raw(), Relaxed);
}

/// The names and records of the templates that the caller keeps.
pub struct Kept<'a>(&'a [Word<'a>]);

impl<'a> Kept<'a> {
    pub fn read(env: Env, term: Word<'a>) -> Self {
        match term.tuple(env) {
            Some([load, pairs @ ..])
                if load.raw() == LOAD.load(Relaxed)
                    && pairs.len() % 2 == 0
                    && pairs.len() <= 2 * MAX_KEPT =>
            {
                Kept(pairs)
            }
            _ => Kept(&[]),
        }
    }

    /// The record of a template.
    pub fn find(&self, env: Env, template: &Template) -> Option<&'a [Word<'a>]> {
        let mut pairs = self.0.chunks_exact(2);
        pairs.find_map(|pair| {
            let is_it = pair[0].raw() == template.name();
            let record = pair[1..].first().filter(|_| is_it)?.tuple(env)?;
            (record.len() == template.len()).then_some(record)
        })
    }

    /// The tuple with another template, whose record is in `env`. `None` if the template should not be kept.
    pub fn with(&self, env: Env<'a>, template: &Template, record: &[usize]) -> Option<Word<'a>> {
        if template
            .heap_words()
            .is_none_or(|words| words > MAX_HEAP_WORDS)
        {
            return None;
        }
        let mut place = self.0.len();
        if place == 2 * MAX_KEPT {
            let looked_for = LOOKED_FOR.fetch_add(1, Relaxed);
            let (turn, left) = (
                looked_for / LOOKUPS_PER_REPLACEMENT,
                looked_for % LOOKUPS_PER_REPLACEMENT,
            );
            if left > 0 {
                return None;
            }
            place = 2 * (turn as usize % MAX_KEPT);
        }
        let mut elements = [LOAD.load(Relaxed); 1 + 2 * MAX_KEPT];
        for (element, kept) in elements[1..].iter_mut().zip(self.0) {
            *element = kept.raw();
        }
        // SAFETY: the kept terms live as long as the call, and the record is in its environment.
        unsafe {
            elements[1 + place] = template.name();
            elements[2 + place] = make_tuple(env, record).raw();
            let length = 1 + self.0.len().max(place + 2);
            Some(make_tuple(env, &elements[..length]))
        }
    }
}

const _: () = assert!(MAX_HEAP_WORDS > MAX_FIELDS);
