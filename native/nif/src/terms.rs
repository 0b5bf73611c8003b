//! Encodes and decodes any term, in the external term format.

#![allow(unsafe_code)]

use rekindle_core::Secret;
use rustler::{Env, Error, NewBinary, NifResult, Term};
use zeroize::Zeroize;

/// Magic of the external term format, the tag of a small tuple, and an arity of two.
const PAIR_HEADER: [u8; 3] = [131, 104, 2];

/// Encodes a term. Only [`decode`] reads the bytes.
pub fn encode(term: Term) -> Secret {
    let mut binary = term.to_binary();
    let encoded = Secret::new(&binary);
    binary.as_mut_slice().zeroize();
    encoded
}

/// The beginning of the encoding of every `{first, _}`. No other term's encoding begins with it, because the encoding of a
/// term is never the beginning of another one's.
pub fn encode_pair_prefix(first: Term) -> Secret {
    let encoded = encode(first);
    let mut prefix = [&PAIR_HEADER, &encoded.expose()[1..]].concat();
    let secret = Secret::new(&prefix);
    prefix.zeroize();
    secret
}

/// Decodes a term that [`encode`] encoded.
pub fn decode<'a>(env: Env<'a>, encoded: &[u8]) -> NifResult<Term<'a>> {
    // SAFETY: `encode` made the bytes in this process, and they never left it. The checked variant would refuse some terms that
    // `encode` accepts, such as external funs.
    match unsafe { env.binary_to_term_trusted(encoded) } {
        Some((term, _)) => Ok(term),
        None => Err(Error::BadArg),
    }
}

/// `bytes` as an Erlang binary.
pub fn binary<'a>(env: Env<'a>, bytes: &[u8]) -> Term<'a> {
    let mut binary = NewBinary::new(env, bytes.len());
    binary.as_mut_slice().copy_from_slice(bytes);
    binary.into()
}
