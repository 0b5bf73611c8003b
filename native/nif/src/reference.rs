//! What a cache reference is to Erlang: a resource that holds a scope, and gives the hold up when it is
//! collected.
//!
//! Rustler's own resources are found by type in a map, and counted while a call holds them. That would be
//! a tenth of a lookup.

#![allow(unsafe_code)]

use crate::template::Template;
use rekindle_core as core;
use rekindle_core::{ClientStore, ServerStore, Store};
use rustler::sys::{
    c_void, enif_alloc_resource, enif_get_resource, enif_make_resource, enif_open_resource_type,
    enif_release_resource, ErlNifEnv, ErlNifResourceFlags, ErlNifResourceType,
};
use rustler::{Decoder, Env, Error, NifResult, Term};
use std::mem::{align_of, size_of};
use std::ops::Deref;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::ptr::{drop_in_place, null, null_mut};
use std::sync::atomic::{AtomicPtr, Ordering};

type Held = core::Reference<Template>;

/// Set once, when the library is loaded.
static TYPE: AtomicPtr<ErlNifResourceType> = AtomicPtr::new(null_mut());

/// A reference that a call was given: it lives as long as the call's terms.
#[derive(Clone, Copy)]
pub struct Reference<'a>(&'a Held);

/// Makes the resource type known to the BEAM. For the library's load function.
pub fn register(env: Env) -> bool {
    let mut tried = ErlNifResourceFlags::ERL_NIF_RT_CREATE;
    // SAFETY: called while the library is loaded, with that call's environment and a C string.
    let opened = unsafe {
        enif_open_resource_type(
            env.as_c_arg(),
            null(),
            c"rekindle_reference".as_ptr(),
            Some(destroy),
            ErlNifResourceFlags::ERL_NIF_RT_CREATE,
            &mut tried,
        )
    };
    TYPE.store(opened.cast_mut(), Ordering::Release);
    !opened.is_null()
}

/// Hands a hold on a scope to Erlang.
pub fn make<'a>(env: Env<'a>, held: Held) -> Term<'a> {
    // The BEAM aligns a resource for any C type.
    const { assert!(align_of::<Held>() <= align_of::<u64>()) };
    // SAFETY: the memory is large enough, aligned, and filled before the term is made; the term has the
    // only hold on it from then on.
    unsafe {
        let object = enif_alloc_resource(TYPE.load(Ordering::Acquire), size_of::<Held>());
        object.cast::<Held>().write(held);
        let term = enif_make_resource(env.as_c_arg(), object);
        enif_release_resource(object);
        Term::new(env, term)
    }
}

/// Called by the BEAM when the last term that names the resource is gone.
unsafe extern "C" fn destroy(_env: *mut ErlNifEnv, object: *mut c_void) {
    // SAFETY: the object was filled by `make`, and nobody else has it any more.
    let drop = || unsafe { drop_in_place(object.cast::<Held>()) };
    // A panic must not unwind into the BEAM.
    let _ = catch_unwind(AssertUnwindSafe(drop));
}

impl<'a> Decoder<'a> for Reference<'a> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let mut object = null();
        // SAFETY: the type was registered; what the BEAM finds of that type was filled by `make`, is never
        // changed, and is kept alive by the term.
        unsafe {
            let env = term.get_env().as_c_arg();
            let resource_type = TYPE.load(Ordering::Relaxed);
            match enif_get_resource(env, term.as_c_arg(), resource_type, &mut object) {
                0 => Err(Error::BadArg),
                _ => Ok(Reference(&*object.cast::<Held>())),
            }
        }
    }
}

impl Deref for Reference<'_> {
    type Target = core::Scope<Template>;

    fn deref(&self) -> &Self::Target {
        self.0.scope()
    }
}

impl<'a> Reference<'a> {
    /// The sessions of a server's scope.
    pub fn server(self) -> NifResult<&'a ServerStore<Template>> {
        match self.0.scope().store() {
            Store::Server(store) => Ok(store),
            Store::Client(_) => Err(Error::BadArg),
        }
    }

    /// The sessions of a client's scope.
    pub fn client(self) -> NifResult<&'a ClientStore> {
        match self.0.scope().store() {
            Store::Client(store) => Ok(store),
            Store::Server(_) => Err(Error::BadArg),
        }
    }
}
