//! Terms as bytes and back, in the external term format: the general way, for any term.

use rekindle_core::Secret;
use rustler::{Env, Error, NewBinary, NifResult, Term};
use zeroize::Zeroize;

/// Magic of the external term format, the tag of a small tuple, and an arity of two.
const PAIR_HEADER: [u8; 3] = [131, 104, 2];

/// Any term as bytes that only [`decode`] reads.
pub fn encode(term: Term) -> Secret {
    let mut binary = term.to_binary();
    let encoded = Secret::new(&binary);
    binary.as_mut_slice().zeroize();
    encoded
}

/// How the encoding of every `{first, _}` begins. No other encoding begins so, because that of a
/// term is never the beginning of another term's.
pub fn encode_pair_prefix(first: Term) -> Secret {
    let encoded = encode(first);
    let mut prefix = [&PAIR_HEADER, &encoded.expose()[1..]].concat();
    let secret = Secret::new(&prefix);
    prefix.zeroize();
    secret
}

/// The term that was encoded.
pub fn decode<'a>(env: Env<'a>, encoded: &[u8]) -> NifResult<Term<'a>> {
    // SAFETY: `encoded` was made by `encode` in this process and never left it. The checked variant
    // would refuse some of what `encode` takes, external funs among it.
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
