//! Functions for operators, which name scopes by number. No handshake calls them.

use crate::template::Template;
use crate::{atoms, journal, session, terms, trust, REGISTRY};
use rekindle_core as core;
use rekindle_core::{Limits, Refusal, Scope, Store};
use rustler::{Atom, Encoder, Env, NifResult, Term};

/// Limits from their Erlang form.
pub fn limits((max_bytes, max_sessions, lifetime_ms): (u64, u64, u64)) -> Limits {
    Limits {
        max_bytes,
        max_sessions,
        lifetime_ms,
    }
}

/// A map for each scope; see `rekindle_admin:info/0`.
#[rustler::nif(schedule = "DirtyCpu")]
fn info(env: Env) -> NifResult<Vec<Term>> {
    REGISTRY
        .scopes()
        .iter()
        .map(|scope| scope_info(env, scope))
        .collect()
}

/// About `limit` sessions of a server scope from a position on, and the position of the next session or `done`. `undefined`
/// if the scope has ended, or is a client's.
#[rustler::nif(schedule = "DirtyCpu")]
fn page(env: Env, number: u64, from: u64, limit: usize) -> NifResult<Term> {
    let Some(scope) = REGISTRY.scope(number) else {
        return Ok(atoms::undefined().to_term(env));
    };
    let Store::Server(store) = scope.store() else {
        return Ok(atoms::undefined().to_term(env));
    };
    let mut rows = Vec::new();
    let next = store.page(from, limit, core::now_ms(), |listed| {
        rows.push(session::describe(env, listed));
    });
    let rows = rows.into_iter().collect::<NifResult<Vec<_>>>()?;
    let next = next.map_or(atoms::done().to_term(env), |position| position.encode(env));
    Ok((rows, next).encode(env))
}

/// The listener's certificates that a server scope's sessions were made under, as in session records.
#[rustler::nif(schedule = "DirtyCpu")]
fn own_certificates(env: Env, number: u64) -> Vec<Term> {
    let mut certificates: Vec<Term> = Vec::new();
    if let Some(scope) = REGISTRY.scope(number) {
        if let Store::Server(store) = scope.store() {
            store.for_each_template(|template| {
                let own = template.own_certificates(env);
                if !certificates.contains(&own) {
                    certificates.push(own);
                }
            });
        }
    }
    certificates
}

/// Sets new limits of a server scope. `undefined` if the scope has ended, or is a client's.
#[rustler::nif]
fn set_limits(number: u64, new: (u64, u64, u64)) -> Atom {
    match REGISTRY.set_limits(number, limits(new)) {
        true => atoms::ok(),
        false => atoms::undefined(),
    }
}

fn scope_info<'a>(env: Env<'a>, scope: &Scope<Template>) -> NifResult<Term<'a>> {
    let infinity = atoms::infinity().to_term(env);
    let bound = |value: u64| match value {
        u64::MAX => infinity,
        bounded => bounded.encode(env),
    };
    let undefined = atoms::undefined().to_term(env);
    let counts = scope.counters().read();
    let refused_by = Refusal::ALL.iter().zip(&counts.refused);
    let refused_by: Vec<(Term, Term)> = refused_by
        .map(|(refusal, count)| (refusal_atom(*refusal).encode(env), count.encode(env)))
        .collect();
    let (certificates, certified) = match scope.store() {
        Store::Client(_) => (0, 0),
        Store::Server(store) => (store.certificates(), store.certified()),
    };
    let (role, templates, max_bytes, max_sessions, lifetime, oldest) = match scope.store() {
        Store::Client(_) => (atoms::client(), 0, infinity, infinity, infinity, undefined),
        Store::Server(store) => {
            let limits = store.limits();
            let oldest_ms = store.oldest_ms(core::now_ms());
            (
                atoms::server(),
                store.templates(),
                bound(limits.max_bytes),
                bound(limits.max_sessions),
                (limits.lifetime_ms / 1000).encode(env),
                oldest_ms.map_or(undefined, |age| (age / 1000).encode(env)),
            )
        }
    };
    let pairs = [
        (atoms::number(), scope.number().encode(env)),
        (atoms::scope(), terms::decode(env, scope.name())?),
        (atoms::role(), role.to_term(env)),
        (atoms::sessions(), scope.sessions().encode(env)),
        (atoms::bytes(), scope.bytes().encode(env)),
        (atoms::templates(), templates.encode(env)),
        (atoms::certificates(), certificates.encode(env)),
        (atoms::certified(), certified.encode(env)),
        (atoms::oldest(), oldest),
        (atoms::max_bytes(), max_bytes),
        (atoms::max_sessions(), max_sessions),
        (atoms::lifetime(), lifetime),
        (atoms::inserts(), counts.inserts.encode(env)),
        (atoms::hits(), counts.hits.encode(env)),
        (atoms::misses(), counts.misses.encode(env)),
        (atoms::evicted_misses(), counts.evicted_misses.encode(env)),
        (atoms::lost_misses(), counts.lost_misses.encode(env)),
        (atoms::unknown_misses(), counts.unknown_misses().encode(env)),
        (
            atoms::certificate_misses(),
            counts.certificate_misses_total().encode(env),
        ),
        (
            atoms::certificate_misses_by(),
            trust::certificate_misses_by(env, &counts)?,
        ),
        (atoms::expired(), counts.expired.encode(env)),
        (atoms::evicted(), counts.evicted.encode(env)),
        (atoms::moved(), counts.moved.encode(env)),
        (atoms::refused(), counts.refused_total().encode(env)),
        (atoms::refused_by(), Term::map_from_pairs(env, &refused_by)?),
        (atoms::faults(), counts.faults.encode(env)),
        (atoms::journal(), journal::info(env, scope)?),
    ];
    Term::map_from_pairs(env, &pairs)
}

fn refusal_atom(refusal: Refusal) -> Atom {
    match refusal {
        Refusal::TooLarge => atoms::too_large(),
        Refusal::NoRoom => atoms::no_room(),
        Refusal::PrivateKey => atoms::private_key(),
        Refusal::Layout => atoms::layout(),
        Refusal::Lifetime => atoms::lifetime(),
        Refusal::Certificate => atoms::certificate(),
    }
}
