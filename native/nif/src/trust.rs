//! What is checked of a client's certificate before a session is resumed, as Erlang sets it and asks about it.

use crate::reference::Reference;
use crate::{atoms, faults, terms};
use rekindle_core::{Counts, Ended, Trust};
use rekindle_crl::{self as crl, Event, FileStatus, Happened, List, Status};
use rustler::{Atom, Binary, Encoder, Env, Error, NifResult, Term};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Sets what is checked in a server's scope: whether sessions are resumed after their certificate has ended, whether on
/// the word of a list that is too old, and where the lists are. See `rekindle_trust`.
#[rustler::nif]
fn set_trust(
    reference: Reference,
    allows_expired: bool,
    allows_stale: bool,
    paths: Term,
) -> NifResult<Atom> {
    faults::strike()?;
    // An improper list has no length; made into a vector, it would panic.
    paths.list_length()?;
    let paths = paths.decode::<Vec<Binary>>()?;
    let paths: Vec<PathBuf> = paths
        .iter()
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect();
    let lists = match paths.is_empty() {
        true => None,
        // No thread: whoever asks gets no store.
        false => Some(crl::open(paths).map_err(|_| Error::RaiseAtom("system_limit"))?),
    };
    reference.server()?.set_trust(Trust {
        allows_expired,
        allows_stale,
        lists,
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

/// What happened to the revocation lists since the last call, the oldest first, and whether there are any.
#[rustler::nif]
fn crl_events(env: Env) -> (Vec<Term>, bool) {
    let events = crl::take_events();
    let events = events.iter().map(|event| self::event(env, event)).collect();
    (events, crl::are_any_open())
}

fn event<'a>(env: Env<'a>, event: &Event) -> Term<'a> {
    let what = match &event.what {
        Happened::Read { lists, entries } => (atoms::read(), *lists, *entries).encode(env),
        Happened::Recovered => atoms::up().encode(env),
        Happened::Failed { error, is_known } => {
            let error = terms::binary(env, error.as_bytes());
            (atoms::error(), error, *is_known).encode(env)
        }
        Happened::Gone => atoms::down().encode(env),
        Happened::Ended {
            issuer,
            next_update_s,
        } => (atoms::expired(), terms::binary(env, issuer), *next_update_s).encode(env),
    };
    (path(env, &event.path), what).encode(env)
}

/// All files and folders with revocation lists, by the sets of paths that scopes have; see `rekindle_nif:crls/0`.
#[rustler::nif(schedule = "DirtyCpu")]
fn crls(env: Env) -> Vec<Term> {
    let all = Status::all();
    all.iter()
        .map(|status| {
            let files = status.files.iter().map(|file| self::file(env, file));
            let files: Vec<Term> = files.collect();
            (status.is_read, status.is_complete, files).encode(env)
        })
        .collect()
}

fn file<'a>(env: Env<'a>, file: &FileStatus) -> Term<'a> {
    let lists: Vec<Term> = file.lists.iter().map(|one| list(env, one)).collect();
    let error = match &file.error {
        Some(error) => terms::binary(env, error.as_bytes()),
        None => atoms::undefined().encode(env),
    };
    (path(env, &file.path), lists, error, file.is_known).encode(env)
}

fn list<'a>(env: Env<'a>, list: &List) -> Term<'a> {
    let next_update = match list.next_update_s {
        Some(next_update_s) => next_update_s.encode(env),
        None => atoms::undefined().encode(env),
    };
    let issuer = terms::binary(env, &list.issuer_name);
    (
        issuer,
        list.entries,
        list.this_update_s,
        next_update,
        list.is_delta,
    )
        .encode(env)
}

fn path<'a>(env: Env<'a>, path: &Path) -> Term<'a> {
    terms::binary(env, path.as_os_str().as_bytes())
}
