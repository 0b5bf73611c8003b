//! The reference of a cache, as Erlang sees it: a resource that holds a scope until it is garbage-collected.
//!
//! Rustler would find the resource type in a map, and count references while a call uses a resource. That would take a tenth of
//! the time of a lookup.

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

/// The resource type. Set once, when the library is loaded.
static TYPE: AtomicPtr<ErlNifResourceType> = AtomicPtr::new(null_mut());

/// A reference in the arguments of a call. It lives as long as the call's terms.
#[derive(Clone, Copy)]
pub struct Reference<'a>(&'a Held);

/// Registers the resource type. For the library's load function.
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

/// Makes a term that holds a scope.
pub fn make<'a>(env: Env<'a>, held: Held) -> Term<'a> {
    // The BEAM aligns a resource for any C type.
    const { assert!(align_of::<Held>() <= align_of::<u64>()) };
    // SAFETY: the memory is large enough, aligned, and filled before the term is made. From then on only the term refers to it.
    unsafe {
        let object = enif_alloc_resource(TYPE.load(Ordering::Acquire), size_of::<Held>());
        object.cast::<Held>().write(held);
        let term = enif_make_resource(env.as_c_arg(), object);
        enif_release_resource(object);
        Term::new(env, term)
    }
}

/// The BEAM calls this when the last term that refers to the resource is gone.
unsafe extern "C" fn destroy(_env: *mut ErlNifEnv, object: *mut c_void) {
    // SAFETY: `make` filled the object, and nothing else refers to it any more.
    let drop = || unsafe { drop_in_place(object.cast::<Held>()) };
    // A panic must not unwind into the BEAM.
    let _ = catch_unwind(AssertUnwindSafe(drop));
}

impl<'a> Decoder<'a> for Reference<'a> {
    fn decode(term: Term<'a>) -> NifResult<Self> {
        let mut object = null();
        // SAFETY: the type was registered. `make` filled each object of that type, nothing changes it, and the term keeps it
        // alive.
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
