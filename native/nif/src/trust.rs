//! The checks of a client's certificate before a session is resumed: how Erlang sets them, and sees their lists and events.

use crate::reference::Reference;
use crate::{atoms, faults, terms};
use rekindle_core::{canonical_name, CertificateMiss, Counts, Trust};
use rekindle_crl::{self as crl, Event, EventKind, FileStatus, Held, Status};
use rustler::{Atom, Binary, Encoder, Env, Error, NifResult, Term};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Sets the checks of a server's scope: whether sessions are resumed after their certificate has expired, whether they are
/// resumed if a list is too old, and the paths of the lists. See `rekindle_trust`.
#[rustler::nif]
fn set_trust(
    reference: Reference,
    allows_expired: bool,
    allows_stale: bool,
    paths: Term,
) -> NifResult<Atom> {
    faults::fail_point()?;
    // An improper list has no length. Decoding it as a vector would panic.
    paths.list_length()?;
    let paths = paths.decode::<Vec<Binary>>()?;
    let paths: Vec<PathBuf> = paths
        .iter()
        .map(|path| PathBuf::from(OsStr::from_bytes(path)))
        .collect();
    let lists = match paths.is_empty() {
        true => None,
        // The system could not start a thread.
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
pub fn certificate_misses_by<'a>(env: Env<'a>, counts: &Counts) -> NifResult<Term<'a>> {
    let atom = |miss: &CertificateMiss| match miss {
        CertificateMiss::Expired => atoms::expired(),
        CertificateMiss::Revoked => atoms::revoked(),
        CertificateMiss::Unknown => atoms::unknown(),
    };
    let by = CertificateMiss::ALL.iter().zip(&counts.certificate_misses);
    let by: Vec<(Term, Term)> = by
        .map(|(miss, count)| (atom(miss).encode(env), count.encode(env)))
        .collect();
    Term::map_from_pairs(env, &by)
}

/// The events of the revocation lists since the last call, the oldest first, and whether any store has lists.
#[rustler::nif]
fn crl_events(env: Env) -> (Vec<Term>, bool) {
    let events = crl::take_events();
    let events = events.iter().map(|event| self::event(env, event)).collect();
    (events, crl::are_any_open())
}

fn event<'a>(env: Env<'a>, event: &Event) -> Term<'a> {
    let what = match &event.kind {
        EventKind::Read { lists, entries } => (atoms::read(), *lists, *entries).encode(env),
        EventKind::Recovered => atoms::up().encode(env),
        EventKind::Failed { error, is_known } => {
            let error = terms::binary(env, error.as_bytes());
            (atoms::error(), error, *is_known).encode(env)
        }
        EventKind::Gone => atoms::down().encode(env),
        EventKind::Ended {
            issuer,
            next_update_s,
        } => (atoms::expired(), terms::binary(env, issuer), *next_update_s).encode(env),
        EventKind::OnlyChanges { issuer } => {
            (atoms::delta(), terms::binary(env, issuer)).encode(env)
        }
    };
    (path(env, &event.path), what).encode(env)
}

/// The state of all revocation lists, for each set of paths that scopes have; see `rekindle_nif:crls/0`.
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

fn list<'a>(env: Env<'a>, held: &Held) -> Term<'a> {
    let list = &held.list;
    let next_update = match list.next_update_s {
        Some(next_update_s) => next_update_s.encode(env),
        None => atoms::undefined().encode(env),
    };
    let issuer = terms::binary(env, &list.issuer_name);
    let authority = terms::binary(env, &canonical_name(&list.issuer_name));
    (
        issuer,
        list.entries,
        list.this_update_s,
        next_update,
        list.is_delta,
        (authority, terms::binary(env, &list.part)),
        held.has_end,
    )
        .encode(env)
}

fn path<'a>(env: Env<'a>, path: &Path) -> Term<'a> {
    terms::binary(env, path.as_os_str().as_bytes())
}
