//! The fields of a record as a few machine words. They are in no environment, which would take kilobytes.
//!
//! An immediate is its own word. Any other term is a header with its type and size, and its content: for a tuple, a word with
//! a bit for each element that is no immediate, and the elements; for a binary, its bytes; for all others, the bytes of the
//! external term format.

#![allow(unsafe_code)]

use crate::terms;
use crate::words::{make_tuple, Word};
use rustler::Env;
use std::mem::{size_of, size_of_val};
use std::slice;

/// Most fields of a record, and most elements of a tuple that is stored as a tuple.
pub const MAX_FIELDS: usize = 32;

/// Tuples that are nested more deeply, as in no known session, are stored in the external term format.
const MAX_DEPTH: u8 = 8;

const TUPLE: usize = 0;
const BYTES: usize = 1;
const ENCODED: usize = 2;
const KIND_BITS: u32 = 2;

/// Fields, in order.
#[derive(Clone)]
pub struct Packed {
    length: u8,
    /// Whether all terms take as many words on a heap as here.
    is_plain: bool,
    /// A bit for each field that is no immediate.
    boxed: u32,
    words: Box<[usize]>,
}

impl Packed {
    /// The fields of a record, at most [`MAX_FIELDS`].
    pub fn new<'a>(env: Env<'a>, fields: impl Iterator<Item = Word<'a>>) -> Self {
        let mut writer = Writer {
            env,
            words: Vec::with_capacity(2 * MAX_FIELDS),
            is_plain: true,
        };
        let (mut boxed, mut length) = (0, 0);
        for field in fields {
            boxed |= u32::from(writer.write(field, 0)) << length;
            length += 1;
        }
        Packed {
            length,
            is_plain: writer.is_plain,
            boxed,
            words: writer.words.into(),
        }
    }

    pub fn len(&self) -> usize {
        self.length.into()
    }

    /// Bytes on the heap.
    pub fn bytes(&self) -> usize {
        self.words.len() * size_of::<usize>()
    }

    /// About how many words the fields take on a process's heap. `None` if the number is unknown.
    pub fn heap_words(&self) -> Option<usize> {
        self.is_plain.then_some(self.words.len())
    }

    pub fn words(&self) -> &[usize] {
        &self.words
    }

    /// Whether these are the fields, apart from those with a bit in `holes`, which are not stored.
    pub fn is<'a>(&self, env: Env<'a>, fields: &[Word<'a>], holes: u32) -> bool {
        let mut reader = Reader(&self.words);
        let is_field = |(place, field): (usize, &Word<'a>)| {
            if holes & (1 << place) != 0 {
                // An immediate.
                reader.next();
                return true;
            }
            reader.is(env, *field, self.boxed & (1 << place) != 0)
        };
        fields.len() == self.len() && fields.iter().enumerate().all(is_field)
    }

    /// Makes the fields in `env`.
    pub fn make(&self, env: Env, fields: &mut [usize; MAX_FIELDS]) {
        let mut reader = Reader(&self.words);
        for (place, field) in fields[..self.len()].iter_mut().enumerate() {
            *field = reader.make(env, self.boxed & (1 << place) != 0);
        }
    }
}

struct Writer<'a> {
    env: Env<'a>,
    words: Vec<usize>,
    is_plain: bool,
}

impl<'a> Writer<'a> {
    /// Writes a term, and returns whether it is no immediate.
    fn write(&mut self, term: Word<'a>, depth: u8) -> bool {
        if term.is_immediate(self.env) {
            self.words.push(term.raw());
            return false;
        }
        let is_kept = |elements: &&[Word]| elements.len() <= MAX_FIELDS && depth < MAX_DEPTH;
        if let Some(elements) = term.tuple(self.env).filter(is_kept) {
            self.write_header(TUPLE, elements.len());
            let at = self.words.len();
            self.words.push(0);
            for (place, element) in elements.iter().enumerate() {
                let is_boxed = self.write(*element, depth + 1);
                self.words[at] |= usize::from(is_boxed) << place;
            }
        } else if let Some(bytes) = term.bytes(self.env) {
            self.write_bytes(BYTES, bytes);
        } else {
            self.is_plain = false;
            self.write_bytes(ENCODED, terms::encode(term.term(self.env)).expose());
        }
        true
    }

    fn write_header(&mut self, kind: usize, size: usize) {
        self.words.push(size << KIND_BITS | kind);
    }

    fn write_bytes(&mut self, kind: usize, bytes: &[u8]) {
        self.write_header(kind, bytes.len());
        for chunk in bytes.chunks(size_of::<usize>()) {
            let mut word = [0; size_of::<usize>()];
            word[..chunk.len()].copy_from_slice(chunk);
            self.words.push(usize::from_ne_bytes(word));
        }
    }
}

struct Reader<'p>(&'p [usize]);

/// Reads what a [`Writer`] has written, word for word.
impl<'p> Reader<'p> {
    fn next(&mut self) -> usize {
        let words = self.0;
        self.0 = &words[1..];
        words[0]
    }

    /// The type and the size of the next term.
    fn header(&mut self) -> (usize, usize) {
        let header = self.next();
        (header & ((1 << KIND_BITS) - 1), header >> KIND_BITS)
    }

    fn bytes(&mut self, length: usize) -> &'p [u8] {
        let words = length.div_ceil(size_of::<usize>());
        let (words, rest) = self.0.split_at(words);
        self.0 = rest;
        // SAFETY: a word may be read as bytes.
        let bytes = unsafe { slice::from_raw_parts(words.as_ptr().cast(), size_of_val(words)) };
        &bytes[..length]
    }

    /// Whether this is the next term. If not, the reader cannot be used any more.
    #[inline]
    fn is<'a>(&mut self, env: Env<'a>, term: Word<'a>, is_boxed: bool) -> bool {
        match is_boxed {
            false => self.next() == term.raw(),
            true => self.is_boxed(env, term),
        }
    }

    fn is_boxed<'a>(&mut self, env: Env<'a>, term: Word<'a>) -> bool {
        match self.header() {
            (TUPLE, arity) => {
                let boxed = self.next();
                let Some(elements) = term.tuple(env).filter(|all| all.len() == arity) else {
                    return false;
                };
                let mut all = elements.iter().enumerate();
                all.all(|(place, element)| self.is(env, *element, boxed & (1 << place) != 0))
            }
            (BYTES, length) => term.bytes(env) == Some(self.bytes(length)),
            // No known session has such a term.
            (_, length) => terms::encode(term.term(env)).expose() == self.bytes(length),
        }
    }

    fn make(&mut self, env: Env, is_boxed: bool) -> usize {
        if !is_boxed {
            return self.next();
        }
        match self.header() {
            (TUPLE, arity) => {
                let boxed = self.next();
                let mut elements = [0; MAX_FIELDS];
                for (place, element) in elements[..arity].iter_mut().enumerate() {
                    *element = self.make(env, boxed & (1 << place) != 0);
                }
                // SAFETY: the elements are in `env`, or immediates.
                unsafe { make_tuple(env, &elements[..arity]) }.raw()
            }
            (BYTES, length) => Word::of(terms::binary(env, self.bytes(length))).raw(),
            (_, length) => {
                let term = terms::decode(env, self.bytes(length));
                Word::of(term.expect("it was encoded here")).raw()
            }
        }
    }
}
