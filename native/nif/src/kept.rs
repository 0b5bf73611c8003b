//! Templates that a process keeps on its own heap, so that a session which is handed to it takes no copy of them.
//!
//! They are in one tuple, which the process keeps for us (`rekindle` does so in the process dictionary of OTP's cache
//! process) and gives to each lookup. The tuple names the load of this library that made it; anything else is
//! taken for an empty one, and replaced. Each template is a number that no other has or had, and a session record with
//! nothing in the places where sessions have their own.

#![allow(unsafe_code)]

use crate::packed::MAX_FIELDS;
use crate::template::Template;
use crate::words::{make_tuple, Word};
use rustler::sys::{enif_make_unique_integer, ERL_NIF_UNIQUE_POSITIVE};
use rustler::{Encoder, Env, Term};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

/// The most templates of a process.
const MAX_KEPT: usize = 8;

/// What a template may take on a heap.
pub const MAX_HEAP_WORDS: usize = 256;

/// Of the templates that were looked for in a full tuple and not found, one in so many is kept in place of another:
/// where there are many kinds of session, making tuples all the time would cost more than it is worth, and the
/// frequent ones come back sooner than they go.
const LOOKUPS_PER_REPLACEMENT: u64 = 16;

/// Integers below this are small on all machines.
const SMALL: i64 = 1 << 26;

/// What this load of the library is called, as a term.
static LOAD: AtomicUsize = AtomicUsize::new(0);

static LOOKED_FOR: AtomicU64 = AtomicU64::new(0);

/// Names this load of the library.
pub fn name_load(env: Env) {
    // SAFETY: makes a term in `env`.
    let unique = unsafe {
        let unique = enif_make_unique_integer(env.as_c_arg(), ERL_NIF_UNIQUE_POSITIVE);
        Term::new(env, unique)
    };
    let unique: i64 = unique.decode().unwrap_or_default();
    // An immediate, and so the same term in any environment.
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

    /// The tuple with another template in it, whose record is in `env`. `None` if it is not to be kept.
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
        // SAFETY: what was kept lives as long as the call, and the record is in its environment.
        unsafe {
            elements[1 + place] = template.name();
            elements[2 + place] = make_tuple(env, record).raw();
            let length = 1 + self.0.len().max(place + 2);
            Some(make_tuple(env, &elements[..length]))
        }
    }
}

const _: () = assert!(MAX_HEAP_WORDS > MAX_FIELDS);
