//! The one function that is called in every handshake that offers a session, without what
//! `#[rustler::nif]` adds: a list of the arguments on the heap, and an answer passed through two results.

#![allow(unsafe_code)]

use crate::reference::Reference;
use crate::{atoms, faults, session};
use rekindle_core as core;
use rustler::codegen_runtime::{c_int, inventory};
use rustler::sys::{enif_make_badarg, enif_raise_exception, ErlNifEnv, ErlNifTerm};
use rustler::types::atom::nif_panicked;
use rustler::{Env, Nif, NifResult, Term};
use std::panic::{catch_unwind, AssertUnwindSafe};

inventory::submit!(Nif {
    name: c"server_lookup".as_ptr(),
    arity: 2,
    flags: 0,
    raw_func: server_lookup,
});

/// The session under a key, stamped with the present, or `undefined`.
fn lookup<'a>(env: Env<'a>, reference: Term<'a>, key: Term<'a>) -> NifResult<Term<'a>> {
    faults::strike()?;
    let store = reference.decode::<Reference>()?.server()?;
    let now_ms = core::now_ms();
    let found = session::with_key(key, |id| {
        store.lookup(id, now_ms, |found| session::decode(env, key, found, now_ms))
    });
    found.unwrap_or_else(|| Ok(atoms::undefined().to_term(env)))
}

unsafe extern "C" fn server_lookup(
    nif_env: *mut ErlNifEnv,
    _argc: c_int,
    argv: *const ErlNifTerm,
) -> ErlNifTerm {
    let call = ();
    // SAFETY: the BEAM calls with an environment for the length of the call, and as many terms in it as
    // the arity says.
    let (env, reference, key) = unsafe {
        let env = Env::new(&call, nif_env);
        (env, Term::new(env, *argv), Term::new(env, *argv.add(1)))
    };
    // A panic must not unwind into the BEAM. What was locked is let go, and no term was handed out.
    let answer = catch_unwind(AssertUnwindSafe(|| lookup(env, reference, key)));
    // SAFETY: the environment is that of this call, and an exception is its answer.
    unsafe {
        match answer {
            Ok(Ok(session)) => session.as_c_arg(),
            Ok(Err(_)) => enif_make_badarg(nif_env),
            Err(_) => enif_raise_exception(nif_env, nif_panicked().as_c_arg()),
        }
    }
}
