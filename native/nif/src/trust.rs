//! What is checked of a client's certificate before a session is resumed, as Erlang sets it and asks about it.

use crate::reference::Reference;
use crate::{atoms, faults};
use rekindle_core::{Counts, Ended, Trust};
use rustler::{Atom, Encoder, Env, NifResult, Term};

/// Sets what is checked in a server's scope; see `rekindle_trust`.
#[rustler::nif]
fn set_trust(reference: Reference, allows_expired: bool) -> NifResult<Atom> {
    faults::strike()?;
    reference.server()?.set_trust(Trust {
        allows_expired,
        ..Trust::default()
    });
    Ok(atoms::ok())
}

/// Lookups of sessions that must not be resumed, by reason.
pub fn ended_by<'a>(env: Env<'a>, counts: &Counts) -> NifResult<Term<'a>> {
    let atom = |ended: &Ended| match ended {
        Ended::Expired => atoms::expired(),
        Ended::Revoked => atoms::revoked(),
        Ended::Unknown => atoms::unknown(),
    };
    let by = Ended::ALL.iter().zip(&counts.ended);
    let by: Vec<(Term, Term)> = by
        .map(|(ended, count)| (atom(ended).encode(env), count.encode(env)))
        .collect();
    Term::map_from_pairs(env, &by)
}
