//! The NIF behind `rekindle_nif`: Erlang terms in, Erlang terms out.
//!
//! Rustler catches a panic in any of these functions and raises `nif_panicked`. The Erlang side turns that into an empty
//! answer and counts a fault.

mod admin;
mod calls;
mod faults;
mod fields;
mod journal;
mod kept;
mod own_certificates;
mod packed;
mod panics;
mod reference;
mod session;
mod template;
mod terms;
mod trust;
mod words;

use once_cell::sync::Lazy;
use reference::Reference;
use rekindle_core as core;
use rekindle_core::{Counters, Join, Registry, Store};
use rustler::{Atom, Env, NifResult, Term};
use template::Template;
use words::Word;

mod atoms {
    rustler::atoms! {
        ok,
        undefined,
        infinity,
        session,
        plain,
        kept,
        stored,
        refused,
        server,
        client,
        done,
        // keys of info/0
        number,
        scope,
        role,
        oldest,
        sessions,
        bytes,
        templates,
        max_bytes,
        max_sessions,
        lifetime,
        inserts,
        hits,
        misses,
        expired,
        delta,
        evicted,
        faults,
        certificate,
        certificates,
        certified,
        evicted_misses,
        lost_misses,
        unknown_misses,
        certificate_misses,
        certificate_misses_by,
        unknown,
        moved,
        refused_by,
        too_large,
        no_room,
        private_key,
        journal,
        // options and state of a journal
        log,
        folder,
        valkey,
        key_file,
        makes_key,
        node_folder,
        wait_for_living_node,
        max_log_bytes,
        url,
        user,
        password_file,
        password_env,
        ca_file,
        tls_cert_file,
        tls_key_file,
        cluster,
        partitions,
        error,
        down,
        up,
        starting,
        replayed,
        noticed,
        location,
        shared,
        state,
        since,
        last_error,
        queued,
        written,
        written_bytes,
        dropped,
        read,
        applied,
        known,
        skipped,
        revocations,
        unwritten,
        missing,
        node_folder_error,
        node_folder_bytes,
        log_bytes,
        lag,
        clock_ahead,
        replay,
        keys,
        // why a record was skipped
        malformed,
        version,
        layout,
        key,
        forged,
        future,
        revoked,
        template,
        full,
        suite,
        // what to revoke
        all,
        sha256,
        sha,
        issuer,
        // tags of private keys
        rsa_private_key = "RSAPrivateKey",
        ec_private_key = "ECPrivateKey",
        dsa_private_key = "DSAPrivateKey",
        private_key_info = "PrivateKeyInfo",
        one_asymmetric_key = "OneAsymmetricKey",
    }
}

rustler::init!("rekindle_nif", load = load);

fn load(env: Env, _info: Term) -> bool {
    panics::note_quietly();
    kept::name_load(env);
    reference::register(env)
}

static REGISTRY: Lazy<Registry<Template>> = Lazy::new(Registry::new);

#[rustler::nif]
fn open_server<'a>(
    env: Env<'a>,
    name: Term<'a>,
    socket: Term<'a>,
    join: bool,
    limits: (u64, u64, u64),
) -> NifResult<Term<'a>> {
    faults::fail_point()?;
    let socket = (atoms::undefined() != socket).then(|| terms::encode(socket));
    let held = REGISTRY.open_server(
        terms::encode(name).expose(),
        socket.as_ref().map(|socket| socket.expose()),
        if join { Join::IfOpen } else { Join::Never },
        admin::limits(limits),
    );
    Ok(reference::make(env, held))
}

#[rustler::nif]
fn open_client<'a>(env: Env<'a>, name: Term<'a>) -> NifResult<Term<'a>> {
    faults::fail_point()?;
    let held = REGISTRY.open_client(terms::encode(name).expose());
    Ok(reference::make(env, held))
}

/// The sockets of all references to the scope that a caller can join under `name`.
#[rustler::nif]
fn sockets<'a>(env: Env<'a>, name: Term<'a>) -> NifResult<Vec<Term<'a>>> {
    faults::fail_point()?;
    REGISTRY
        .sockets(terms::encode(name).expose())
        .iter()
        .map(|socket| terms::decode(env, socket))
        .collect()
}

/// How many sessions of a client were deleted so far.
#[rustler::nif]
fn deletions(reference: Reference) -> NifResult<u64> {
    faults::fail_point()?;
    Ok(reference.client()?.deletions())
}

/// The session under `key`, or `undefined`; also one that was deleted a moment ago, if the caller chose it before, when
/// `deletions` returned `chosen_at`. If `chosen_at` is no number, the caller has chosen none.
#[rustler::nif]
fn client_lookup<'a>(
    env: Env<'a>,
    reference: Reference,
    key: Term<'a>,
    chosen_at: Term<'a>,
) -> NifResult<Term<'a>> {
    faults::fail_point()?;
    let key = terms::encode(key);
    let store = reference.client()?;
    match store.lookup(key.expose(), chosen_at.decode().ok(), core::now_ms()) {
        Some(encoded) => terms::decode(env, encoded.expose()),
        None => Ok(atoms::undefined().to_term(env)),
    }
}

/// As a lookup, but not counted: for a walk through a scope.
#[rustler::nif]
fn peek<'a>(env: Env<'a>, reference: Reference<'a>, key: Term<'a>) -> NifResult<Term<'a>> {
    faults::fail_point()?;
    let found = match reference.store() {
        Store::Client(store) => store
            .peek(terms::encode(key).expose())
            .map(|encoded| terms::decode(env, encoded.expose())),
        Store::Server(store) => {
            let now_ms = core::now_ms();
            session::with_key(key, |id| {
                store.peek(id, now_ms, |found| {
                    let session = session::decode(env, Word::of(key), found, None);
                    session
                        .map(|session| session.term(env))
                        .map_err(|error| *error)
                })
            })
        }
    };
    found.unwrap_or_else(|| Ok(atoms::undefined().to_term(env)))
}

#[rustler::nif]
fn delete(reference: Reference, key: Term) -> NifResult<Atom> {
    faults::fail_point()?;
    match reference.store() {
        Store::Client(store) => store.delete(terms::encode(key).expose(), core::now_ms()),
        Store::Server(_) => journal::forget(&reference, key),
    }
    Ok(atoms::ok())
}

/// The client sessions whose key is `{PartialKey, _}`.
#[rustler::nif]
fn select<'a>(
    env: Env<'a>,
    reference: Reference,
    partial_key: Term<'a>,
) -> NifResult<Vec<Term<'a>>> {
    faults::fail_point()?;
    reference
        .client()?
        .select(terms::encode_pair_prefix(partial_key).expose())
        .iter()
        .map(|encoded| terms::decode(env, encoded.expose()))
        .collect()
}

#[rustler::nif(schedule = "DirtyCpu")]
fn keys<'a>(env: Env<'a>, reference: Reference) -> NifResult<Vec<Term<'a>>> {
    faults::fail_point()?;
    match reference.store() {
        Store::Client(store) => store
            .keys()
            .iter()
            .map(|key| terms::decode(env, key))
            .collect(),
        Store::Server(store) => {
            let mut keys = Vec::new();
            store.for_each_key(|key| keys.push(session::key(env, key)));
            keys.into_iter().collect()
        }
    }
}

#[rustler::nif]
fn size(reference: Reference) -> NifResult<u64> {
    faults::fail_point()?;
    Ok(reference.sessions())
}

#[rustler::nif(schedule = "DirtyCpu")]
fn clear(reference: Reference) -> NifResult<Atom> {
    faults::fail_point()?;
    reference.clear();
    Ok(atoms::ok())
}

/// Counts a call that failed.
#[rustler::nif]
fn count_fault(reference: Reference) -> u64 {
    Counters::add(&reference.counters().faults)
}

/// File and line of the last panic, or `undefined`.
#[rustler::nif]
fn last_panic(env: Env) -> Term {
    match panics::last() {
        Some(place) => terms::binary(env, place.as_bytes()),
        None => atoms::undefined().to_term(env),
    }
}

/// Puts the clock forward, and returns by how much in all, in milliseconds.
#[cfg(feature = "testing")]
#[rustler::nif]
fn advance_clock(by_ms: u64) -> u64 {
    core::advance_ms(by_ms)
}
