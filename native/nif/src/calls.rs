//! The functions that every handshake calls, without the overhead of `#[rustler::nif]`: a list of the arguments on the heap,
//! and an answer that passes through two results.

#![allow(unsafe_code)]

use crate::kept::Kept;
use crate::reference::Reference;
use crate::words::{Answer, Word};
use crate::{atoms, faults, session, terms};
use rekindle_core as core;
use rekindle_core::Store;
use rustler::codegen_runtime::{c_int, inventory, NifReturnable};
use rustler::sys::{enif_raise_exception, ErlNifEnv, ERL_NIF_TERM};
use rustler::types::atom::nif_panicked;
use rustler::{Env, Nif};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::slice;

inventory::submit!(Nif {
    name: c"server_lookup".as_ptr(),
    arity: 2,
    flags: 0,
    raw_func: server_lookup,
});

inventory::submit!(Nif {
    name: c"server_lookup".as_ptr(),
    arity: 3,
    flags: 0,
    raw_func: server_lookup,
});

inventory::submit!(Nif {
    name: c"insert".as_ptr(),
    arity: 3,
    flags: 0,
    raw_func: insert,
});

/// The session under a key, or `undefined`. [`session::decode`] explains the third argument.
fn look_up<'a>(env: Env<'a>, arguments: &[Word<'a>]) -> Answer<'a> {
    faults::fail_point()?;
    let store = arguments[0].term(env).decode::<Reference>()?.server()?;
    let key = arguments[1];
    let kept = arguments.get(2).map(|kept| Kept::read(env, *kept));
    let now_ms = core::now_ms();
    let found = session::with_key(key.term(env), |id| {
        store.lookup(id, now_ms, |found| {
            session::decode(env, key, found, kept.as_ref())
        })
    });
    found.unwrap_or_else(|| Ok(Word::atom(atoms::undefined())))
}

/// Stores a session, and returns whether it was stored.
fn store<'a>(env: Env<'a>, arguments: &[Word<'a>]) -> Answer<'a> {
    faults::fail_point()?;
    let reference = arguments[0].term(env).decode::<Reference>()?;
    let (key, session) = (arguments[1], arguments[2]);
    let is_stored = match reference.store() {
        Store::Client(store) => {
            let (key, session) = (key.term(env), session.term(env));
            store.insert(terms::encode(key).expose(), terms::encode(session));
            true
        }
        Store::Server(store) => {
            session::insert(env, &reference, store, key, session, core::now_ms())
        }
    };
    let answer = match is_stored {
        true => atoms::stored(),
        false => atoms::refused(),
    };
    Ok(Word::atom(answer))
}

unsafe extern "C" fn server_lookup(
    env: *mut ErlNifEnv,
    argc: c_int,
    argv: *const ERL_NIF_TERM,
) -> ERL_NIF_TERM {
    // SAFETY: the BEAM calls this with such arguments.
    unsafe { call(env, argc, argv, look_up) }
}

unsafe extern "C" fn insert(
    env: *mut ErlNifEnv,
    argc: c_int,
    argv: *const ERL_NIF_TERM,
) -> ERL_NIF_TERM {
    // SAFETY: the BEAM calls this with such arguments.
    unsafe { call(env, argc, argv, store) }
}

/// # Safety
/// The arguments are those of a call by the BEAM: an environment that lives as long as the call, and `argc` terms in it.
#[inline(always)]
unsafe fn call(
    nif_env: *mut ErlNifEnv,
    argc: c_int,
    argv: *const ERL_NIF_TERM,
    function: impl for<'a> FnOnce(Env<'a>, &[Word<'a>]) -> Answer<'a>,
) -> ERL_NIF_TERM {
    let lifetime = ();
    // SAFETY: guaranteed by the caller. A `Word` has the layout of a term.
    let (env, arguments) = unsafe {
        let env = Env::new(&lifetime, nif_env);
        (env, slice::from_raw_parts(argv.cast(), argc as usize))
    };
    // A panic must not unwind into the BEAM. Unwinding has released all locks, and no term was returned.
    let answer = catch_unwind(AssertUnwindSafe(|| function(env, arguments)));
    // SAFETY: the environment is that of this call, and an exception becomes its result.
    unsafe {
        match answer {
            Ok(Ok(answer)) => answer.term(env).as_c_arg(),
            Ok(Err(error)) => error.into_returned(env).apply(env),
            Err(_) => enif_raise_exception(nif_env, nif_panicked().as_c_arg()),
        }
    }
}
