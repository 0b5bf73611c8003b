//! Terms as machine words, in the form in which a call gets them. Reading them needs no copy, vector or error value.
//!
//! The functions that every handshake calls use these; all others use Rustler's [`Term`].

#![allow(unsafe_code)]

use rustler::sys::{
    enif_get_int64, enif_get_list_cell, enif_get_tuple, enif_inspect_binary, enif_is_atom,
    enif_is_empty_list, enif_is_identical, enif_make_copy, enif_make_int64, enif_make_new_binary,
    enif_make_string_len, enif_make_tuple_from_array, ErlNifBinary, ErlNifCharEncoding,
    ERL_NIF_TERM,
};
use rustler::{Atom, Env, Error, Term};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::slice;

/// The BEAM keeps an integer of up to this many bits, sign included, in the word itself; see "Memory" in Erlang's Efficiency
/// Guide.
const SMALL_BITS: u32 = usize::BITS - 4;

/// A term that lives for `'a`. Equal words are the same term; different words may be the same term, too.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct Word<'a>(usize, PhantomData<&'a ()>);

/// The result of a call. It fits into two registers, which [`rustler::NifResult`] does not.
pub type Answer<'a> = Result<Word<'a>, Box<Error>>;

impl<'a> Word<'a> {
    /// # Safety
    /// The term lives for `'a`: its environment does, or it is an [immediate](Self::is_immediate).
    pub unsafe fn new(raw: usize) -> Self {
        Word(raw, PhantomData)
    }

    pub fn of(term: Term<'a>) -> Self {
        Word(term.as_c_arg(), PhantomData)
    }

    pub fn atom(atom: Atom) -> Self {
        Word(atom.as_c_arg(), PhantomData)
    }

    pub fn raw(self) -> usize {
        self.0
    }

    fn arg(self) -> ERL_NIF_TERM {
        self.0
    }

    /// The term in Rustler's form. It must be in `env`.
    pub fn term(self, env: Env<'a>) -> Term<'a> {
        // SAFETY: the word lives as long as the call that has the environment.
        unsafe { Term::new(env, self.arg()) }
    }

    /// Whether the word contains the whole term, so that it is the same term in any environment: an atom, a small integer, or
    /// the empty list.
    pub fn is_immediate(self, env: Env) -> bool {
        let is_small = |number: i64| {
            let rest = number >> (SMALL_BITS - 1);
            rest == 0 || rest == -1
        };
        // SAFETY: the term is alive.
        let is_atom = unsafe { enif_is_atom(env.as_c_arg(), self.arg()) != 0 };
        is_atom || self.integer(env).is_some_and(is_small) || self.is_empty_list(env)
    }

    pub fn is_empty_list(self, env: Env) -> bool {
        // SAFETY: the term is alive.
        unsafe { enif_is_empty_list(env.as_c_arg(), self.arg()) != 0 }
    }

    /// An integer of 64 bits.
    pub fn integer(self, env: Env) -> Option<i64> {
        let mut number = 0;
        // SAFETY: the term is alive, and the call writes to a valid number.
        let is_integer = unsafe { enif_get_int64(env.as_c_arg(), self.arg(), &mut number) != 0 };
        is_integer.then_some(number)
    }

    /// The elements of a tuple.
    pub fn tuple(self, env: Env) -> Option<&'a [Word<'a>]> {
        let (mut arity, mut elements) = (0, std::ptr::null());
        // SAFETY: the term is alive for `'a`, and so are its elements, which are words.
        unsafe {
            if enif_get_tuple(env.as_c_arg(), self.arg(), &mut arity, &mut elements) == 0 {
                return None;
            }
            if arity == 0 {
                return Some(&[]);
            }
            Some(slice::from_raw_parts(elements.cast(), arity as usize))
        }
    }

    /// The bytes of a binary.
    pub fn bytes(self, env: Env) -> Option<&'a [u8]> {
        let mut binary = MaybeUninit::<ErlNifBinary>::uninit();
        // SAFETY: the term is alive for `'a`, and so are its bytes. The structure is filled if the term is a binary.
        unsafe {
            if enif_inspect_binary(env.as_c_arg(), self.arg(), binary.as_mut_ptr()) == 0 {
                return None;
            }
            let binary = binary.assume_init();
            if binary.size == 0 {
                return Some(&[]);
            }
            Some(slice::from_raw_parts(binary.data, binary.size))
        }
    }

    /// The bytes of a binary of exactly this length.
    pub fn array<const N: usize>(self, env: Env) -> Option<&'a [u8; N]> {
        self.bytes(env)?.try_into().ok()
    }

    pub fn cells(self, env: Env<'_>) -> Cells<'a, '_> {
        Cells { rest: self, env }
    }

    fn cell(self, env: Env) -> Option<(Word<'a>, Word<'a>)> {
        let (mut head, mut tail) = Default::default();
        // SAFETY: the term is alive for `'a`, and so are the parts of a list.
        unsafe {
            let is_cell = enif_get_list_cell(env.as_c_arg(), self.arg(), &mut head, &mut tail) != 0;
            is_cell.then(|| (Word::new(head), Word::new(tail)))
        }
    }

    /// Whether both are the same term (`=:=`), wherever they are.
    pub fn is_identical(self, other: Word) -> bool {
        // SAFETY: both terms are alive; they need not be in one environment.
        self.0 == other.0 || unsafe { enif_is_identical(self.arg(), other.arg()) != 0 }
    }
}

/// A tuple of `elements` in `env`.
///
/// # Safety
/// The elements are in `env`, or immediates.
pub unsafe fn make_tuple<'a>(env: Env<'a>, elements: &[usize]) -> Word<'a> {
    let (first, arity) = (elements.as_ptr().cast(), elements.len() as u32);
    // SAFETY: guaranteed by the caller; a term is a word.
    unsafe { Word::new(enif_make_tuple_from_array(env.as_c_arg(), first, arity)) }
}

pub fn make_integer(env: Env<'_>, number: i64) -> Word<'_> {
    // SAFETY: the call makes a term in `env`.
    unsafe { Word::new(enif_make_int64(env.as_c_arg(), number)) }
}

/// A binary of `length` bytes, which `fill` fills.
pub fn make_binary<'a>(env: Env<'a>, length: usize, fill: impl FnOnce(&mut [u8])) -> Word<'a> {
    let mut term = Default::default();
    // SAFETY: the call makes a term in `env`, and nothing else refers to its bytes yet. Bytes are valid whatever their value.
    unsafe {
        let bytes = enif_make_new_binary(env.as_c_arg(), length, &mut term);
        fill(slice::from_raw_parts_mut(bytes, length));
        Word::new(term)
    }
}

/// A copy in `env` of a term in any environment.
pub fn make_copy<'a>(env: Env<'a>, term: Word) -> Word<'a> {
    // SAFETY: the term is alive, and its copy is in `env`.
    unsafe { Word::new(enif_make_copy(env.as_c_arg(), term.arg())) }
}

/// An Erlang string.
pub fn make_string<'a>(env: Env<'a>, bytes: &[u8]) -> Word<'a> {
    let (first, latin1) = (bytes.as_ptr().cast(), ErlNifCharEncoding::ERL_NIF_LATIN1);
    // SAFETY: the call reads the bytes, and makes the string in `env`.
    unsafe {
        Word::new(enif_make_string_len(
            env.as_c_arg(),
            first,
            bytes.len(),
            latin1,
        ))
    }
}

/// The elements of a list. A term that is no list has none.
pub struct Cells<'a, 'e> {
    rest: Word<'a>,
    env: Env<'e>,
}

impl<'a> Cells<'a, '_> {
    /// The rest of the list: after the last element, the empty list or the end of an improper list.
    pub fn rest(&self) -> Word<'a> {
        self.rest
    }

    /// Whether the rest is the empty list.
    pub fn is_at_end(&self) -> bool {
        self.rest.is_empty_list(self.env)
    }
}

impl<'a> Iterator for Cells<'a, '_> {
    type Item = Word<'a>;

    fn next(&mut self) -> Option<Word<'a>> {
        let (head, tail) = self.rest.cell(self.env)?;
        self.rest = tail;
        Some(head)
    }
}
