//! The journals of scopes: how Erlang opens them, revokes through them, and sees their state and events.

use crate::reference::Reference;
use crate::template::Template;
use crate::{atoms, faults, session, terms, REGISTRY};
use once_cell::sync::Lazy;
use rekindle_core::{Scope, Secret, SessionKey, Store};
use rekindle_journal::{
    drop_sessions, revoke as revoke_in, take_events, CertificateSelector, EventKind, Hub, Journal,
    KeyFile, Options, Report, Revoked, Skipped, Suite, Target,
};
#[cfg(feature = "folder")]
use rekindle_log::Folder;
use rekindle_log::Log;
#[cfg(feature = "valkey")]
use rekindle_log::{Password, ValkeyConfig, ValkeyLog};
use rustler::{Atom, Binary, Decoder, Encoder, Env, Error, NifResult, Term};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// The hubs in use, by the options of their logs.
static HUBS: Lazy<Mutex<Hubs>> = Lazy::new(Mutex::default);

type Hubs = Vec<(Place, Weak<Hub<Template>>)>;

/// The options in `rekindle_nif:journal/0`.
struct Config<'a> {
    options: Options,
    log: Term<'a>,
}

/// The options of a log, in the external term format. They may contain a password.
struct Place(Secret);

/// Whether there can be journals. A library that is built without logs contains nothing that only journals call.
const HAS_LOGS: bool = cfg!(any(feature = "folder", feature = "valkey"));

/// The scope's journal.
pub fn of(scope: &Scope<Template>) -> Option<&Journal<Template>> {
    match HAS_LOGS {
        true => scope.attached(),
        false => None,
    }
}

impl<'a> Config<'a> {
    fn decode(map: Term<'a>) -> NifResult<Self> {
        let log: Term = get(map, atoms::log())?;
        let scope: Binary = get(map, atoms::scope())?;
        let node_folder: Option<Binary> = find(map, atoms::node_folder())?;
        let node_folder = node_folder.map(path);
        let key_file = path(get(map, atoms::key_file())?);
        // A folder that was used with a key must not get another one.
        let used = match &node_folder {
            Some(folder) => vec![
                folder.join("log-2"),
                folder.join("node.key"),
                folder.join("log"),
            ],
            None => Vec::new(),
        };
        Ok(Config {
            options: Options {
                scope: String::from_utf8(scope.to_vec()).map_err(|_| Error::BadArg)?,
                layout: get::<Binary>(map, atoms::layout())?.to_vec(),
                keys: KeyFile {
                    path: key_file,
                    make: get(map, atoms::makes_key())?,
                    unless: used,
                },
                node_folder,
                wait_for_living_node: get(map, atoms::wait_for_living_node())?,
                max_log_bytes: get(map, atoms::max_log_bytes())?,
            },
            log,
        })
    }
}

/// The log that `{folder, Dir}` or `{valkey, Map}` names, or why there is none.
fn open_log(log: Term) -> NifResult<Result<Arc<dyn Log>, String>> {
    let (kind, options): (Atom, Term) = log.decode()?;
    if kind == atoms::folder() {
        return Ok(open_folder(path(options.decode()?)));
    }
    match kind == atoms::valkey() {
        true => open_valkey(options),
        false => Err(Error::BadArg),
    }
}

#[cfg(feature = "folder")]
fn open_folder(folder: PathBuf) -> Result<Arc<dyn Log>, String> {
    Ok(Arc::new(Folder::at(folder)))
}

#[cfg(not(feature = "folder"))]
fn open_folder(_: PathBuf) -> Result<Arc<dyn Log>, String> {
    Err("the native library was built without the feature folder (see REKINDLE_FEATURES)".into())
}

#[cfg(feature = "valkey")]
fn open_valkey(options: Term) -> NifResult<Result<Arc<dyn Log>, String>> {
    let log = ValkeyLog::new(valkey(options)?);
    let log = log.map(|log| Arc::new(log) as Arc<dyn Log>);
    Ok(log.map_err(|error| error.0))
}

#[cfg(not(feature = "valkey"))]
fn open_valkey(_: Term) -> NifResult<Result<Arc<dyn Log>, String>> {
    Ok(Err(
        "the native library was built without the feature valkey (see REKINDLE_FEATURES)".into(),
    ))
}

#[cfg(feature = "valkey")]
fn valkey(map: Term) -> NifResult<ValkeyConfig> {
    let file: Option<Binary> = find(map, atoms::password_file())?;
    let variable = find(map, atoms::password_env())?;
    let path_of = |key| Ok::<_, Error>(find(map, key)?.map(path));
    Ok(ValkeyConfig {
        user: find(map, atoms::user())?,
        password: match (file, variable) {
            (Some(file), _) => Password::File(path(file)),
            (None, Some(name)) => Password::Env(name),
            (None, None) => Password::Url,
        },
        ca_file: path_of(atoms::ca_file())?,
        tls_cert_file: path_of(atoms::tls_cert_file())?,
        tls_key_file: path_of(atoms::tls_key_file())?,
        cluster: get(map, atoms::cluster())?,
        partitions: get(map, atoms::partitions())?,
        ..ValkeyConfig::new(get::<String>(map, atoms::url())?)
    })
}

fn get<'a, T: Decoder<'a>>(map: Term<'a>, key: Atom) -> NifResult<T> {
    find(map, key)?.ok_or(Error::BadArg)
}

/// The value under the key, if there is one.
fn find<'a, T: Decoder<'a>>(map: Term<'a>, key: Atom) -> NifResult<Option<T>> {
    if !map.is_map() {
        return Err(Error::BadArg);
    }
    // Rustler's own errors for a wrong value would be raised as they are.
    match map.map_get(key) {
        Ok(value) => value.decode().map(Some).map_err(|_| Error::BadArg),
        Err(_) => Ok(None),
    }
}

/// Gives the scope a journal if it has none. Returns `ok`, or why it cannot have one. The journal's threads open and connect,
/// and the caller does not wait.
#[rustler::nif]
fn open_journal<'a>(
    env: Env<'a>,
    reference: Reference<'a>,
    config: Term<'a>,
) -> NifResult<Term<'a>> {
    faults::fail_point()?;
    reference.server()?;
    let config = Config::decode(config)?;
    let mut hubs = HUBS.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(scope) = REGISTRY.scope(reference.number()) else {
        return Err(Error::BadArg);
    };
    if of(&scope).is_some() {
        return Ok(atoms::ok().encode(env));
    }
    let log = match open_log(config.log)? {
        Ok(log) => log,
        Err(why) => return Ok((atoms::error(), terms::binary(env, why.as_bytes())).encode(env)),
    };
    let place = terms::encode(config.log);
    let mut is_first = true;
    let hub = || {
        // The journal asks a second time if the threads of the hub that was found are ending.
        let found = hubs
            .iter()
            .find(|(known, _)| known.0.expose() == place.expose());
        let found = found.and_then(|(_, hub)| hub.upgrade());
        if let Some(hub) = found.filter(|_| std::mem::take(&mut is_first)) {
            return hub;
        }
        is_first = false;
        let hub = Hub::new(Arc::clone(&log));
        hubs.retain(|(known, hub)| hub.strong_count() > 0 && known.0.expose() != place.expose());
        hubs.push((Place(Secret::new(place.expose())), Arc::downgrade(&hub)));
        hub
    };
    Ok(match Journal::start(&scope, config.options, hub) {
        Ok(journal) => {
            scope.attach(journal);
            atoms::ok().encode(env)
        }
        Err(error) => {
            let why = error.to_string();
            (atoms::error(), terms::binary(env, why.as_bytes())).encode(env)
        }
    })
}

fn path(binary: Binary) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(&binary))
}

/// The events of the journals since the last call, the oldest first, and whether there is any journal; see `rekindle_journal`.
#[rustler::nif]
fn journal_events(env: Env) -> (Vec<Term>, bool) {
    let events = take_events()
        .iter()
        .map(|event| {
            let scope = terms::binary(env, &event.scope);
            let location = terms::binary(env, event.location.as_bytes());
            (scope, location, happened(env, &event.kind)).encode(env)
        })
        .collect();
    let scopes = REGISTRY.scopes();
    let is_any = scopes.iter().any(|scope| of(scope).is_some());
    (events, is_any)
}

fn happened<'a>(env: Env<'a>, kind: &EventKind) -> Term<'a> {
    let text = |text: &str| terms::binary(env, text.as_bytes());
    match kind {
        EventKind::Down(error) => (atoms::down(), text(error)).encode(env),
        EventKind::Up { after_ms, dropped } => (atoms::up(), *after_ms, *dropped).encode(env),
        EventKind::Replayed { sessions, took_ms } => {
            (atoms::replayed(), *sessions, *took_ms).encode(env)
        }
        EventKind::Noticed(notice) => (atoms::noticed(), text(notice)).encode(env),
    }
}

/// Reads a scope's key file again: `{ok, Names}`, `{error, Line}`, or `undefined` if there is no journal.
#[rustler::nif(schedule = "DirtyIo")]
fn reload_keys(env: Env, number: u64) -> Term {
    let Some(scope) = REGISTRY.scope(number) else {
        return atoms::undefined().encode(env);
    };
    match of(&scope).map(Journal::reload_keys) {
        Some(Ok(names)) => (atoms::ok(), binaries(env, &names)).encode(env),
        Some(Err(line)) => (atoms::error(), terms::binary(env, line.as_bytes())).encode(env),
        None => atoms::undefined().encode(env),
    }
}

/// Drops a session of a server scope, on this node and through the journal on others. Does not wait, because OTP's process
/// calls it.
pub fn forget(scope: &Scope<Template>, key: Term) {
    let Store::Server(store) = scope.store() else {
        return;
    };
    session::with_key(key, |key| {
        if let (Some(journal), SessionKey::Id(id)) = (of(scope), key) {
            journal.forget(id);
        }
        store.delete(key);
    })
}

/// Revokes in all server scopes, or in those with these numbers, and waits at most two seconds until the revocation is durable.
/// Returns how many sessions were dropped on this node, and for which scopes the revocation is not durable yet, and why.
#[rustler::nif(schedule = "DirtyIo")]
fn revoke<'a>(
    env: Env<'a>,
    scopes: Term<'a>,
    what: Term<'a>,
    memories: Term<'a>,
) -> NifResult<(u64, Vec<(Term<'a>, Term<'a>)>)> {
    let is_for_all = scopes.decode().is_ok_and(|atom: Atom| atom == atoms::all());
    let numbers: Vec<u64> = match is_for_all {
        true => Vec::new(),
        false => list(scopes)?,
    };
    let folders: Vec<Term> = list(memories)?;
    let folders = folders
        .into_iter()
        .map(|folder| folder.decode().ok().map(path));
    let meant = |scope: &Arc<Scope<Template>>| {
        let is_server = matches!(scope.store(), Store::Server(_));
        is_server && (is_for_all || numbers.contains(&scope.number()))
    };
    let scopes = || -> Vec<_> { REGISTRY.scopes().into_iter().filter(meant).collect() };
    let before = scopes();
    let folders: Vec<_> = folders.collect();
    let targets = targets(what)?;
    let mut revoked = match HAS_LOGS {
        true => revoke_in(&before, is_for_all, &folders, &targets),
        false => Revoked {
            dropped: drop_sessions(&before, &targets),
            ..Revoked::default()
        },
    };
    // A scope that was opened meanwhile may have read such sessions before this node remembered the revocation.
    let known: HashSet<u64> = before.iter().map(|scope| scope.number()).collect();
    let mut opened = scopes();
    opened.retain(|scope| !known.contains(&scope.number()));
    revoked.dropped += drop_sessions(&opened, &targets);
    let text = |text: &str| terms::binary(env, text.as_bytes());
    let pending = revoked.pending.iter();
    let pending = pending.map(|(scope, why)| (text(scope), text(why)));
    Ok((revoked.dropped, pending.collect()))
}

/// `all`, `{session, Id}` or `{certificates, Selectors}`.
fn targets(what: Term) -> NifResult<Vec<Target>> {
    if let Ok(atom) = what.decode::<Atom>() {
        return match atom == atoms::all() {
            true => Ok(vec![Target::All]),
            false => Err(Error::BadArg),
        };
    }
    let (kind, value): (Atom, Term) = what.decode()?;
    if kind == atoms::session() {
        let id: Binary = value.decode()?;
        let id = id.as_slice().try_into().map_err(|_| Error::BadArg)?;
        return Ok(vec![Target::Session(id)]);
    }
    match kind == atoms::certificates() {
        true => Ok(selectors(value)?
            .into_iter()
            .map(Target::Certificate)
            .collect()),
        false => Err(Error::BadArg),
    }
}

/// How many revocations of all scopes are not in the logs yet, also of scopes that have closed.
#[rustler::nif]
fn unwritten() -> u64 {
    let hubs = HUBS.lock().unwrap_or_else(PoisonError::into_inner);
    let hubs = hubs.iter().filter_map(|(_, hub)| hub.upgrade());
    hubs.map(|hub| hub.unwritten()).sum()
}

/// Replays a scope's log although it may lack revocations. `undefined` if there is no journal.
#[rustler::nif(schedule = "DirtyIo")]
fn replay_anyway(number: u64) -> Atom {
    let scope = REGISTRY.scope(number);
    match scope.as_ref().and_then(|scope| of(scope)) {
        Some(journal) => {
            journal.replay_anyway();
            atoms::ok()
        }
        None => atoms::undefined(),
    }
}

/// Lets only sessions with these cipher suites (or `all`) come from a scope's log. Returns how many others were left out
/// or dropped since the last call. `undefined` if there is no journal.
#[rustler::nif(schedule = "DirtyCpu")]
fn allow_suites<'a>(env: Env<'a>, number: u64, suites: Term<'a>) -> NifResult<Term<'a>> {
    let is_all = suites.decode().is_ok_and(|atom: Atom| atom == atoms::all());
    let suite = |bytes: &Binary| Suite::try_from(bytes.as_slice()).map_err(|_| Error::BadArg);
    let allowed = match is_all {
        true => None,
        false => Some(list(suites)?.iter().map(suite).collect::<NifResult<_>>()?),
    };
    let scope = REGISTRY.scope(number);
    let journal = scope.as_ref().and_then(|scope| of(scope));
    Ok(journal.map_or(atoms::undefined().encode(env), |journal| {
        journal.allow_suites(allowed).encode(env)
    }))
}

/// Decodes a proper list. An improper list has no length; decoding it as a vector would panic.
fn list<'a, T: Decoder<'a>>(term: Term<'a>) -> NifResult<Vec<T>> {
    term.list_length()?;
    term.decode()
}

/// Decodes certificate selectors; see `rekindle_certificate:selectors/1`.
fn selectors(term: Term) -> NifResult<Vec<CertificateSelector>> {
    list::<Term>(term)?.into_iter().map(selector).collect()
}

fn selector(term: Term) -> NifResult<CertificateSelector> {
    if let Ok((kind, name, serial)) = term.decode::<(Atom, Binary, Binary)>() {
        return match kind == atoms::issuer() {
            true => Ok(CertificateSelector::Serial {
                name: name.as_slice().into(),
                serial: serial.as_slice().into(),
            }),
            false => Err(Error::BadArg),
        };
    }
    let (kind, bytes): (Atom, Binary) = term.decode()?;
    let bytes = bytes.as_slice();
    let selector = if kind == atoms::sha256() {
        bytes.try_into().ok().map(CertificateSelector::Sha256)
    } else if kind == atoms::sha() {
        bytes.try_into().ok().map(CertificateSelector::Sha1)
    } else if kind == atoms::issuer() {
        Some(CertificateSelector::Issuer { name: bytes.into() })
    } else {
        None
    };
    selector.ok_or(Error::BadArg)
}

/// The state of a scope's journal, or `undefined`; see `rekindle_admin:info/0`.
pub fn info<'a>(env: Env<'a>, scope: &Scope<Template>) -> NifResult<Term<'a>> {
    match of(scope) {
        Some(journal) => report(env, journal.report()),
        None => Ok(atoms::undefined().encode(env)),
    }
}

fn report(env: Env, report: Report) -> NifResult<Term> {
    let text = |text: &str| terms::binary(env, text.as_bytes());
    let undefined = || atoms::undefined().encode(env);
    let state = match &report.health {
        None => atoms::starting(),
        Some(Ok(())) => atoms::up(),
        Some(Err(_)) => atoms::down(),
    };
    let skipped: Vec<(Term, Term)> = Skipped::ALL
        .iter()
        .zip(&report.skipped)
        .map(|(reason, count)| (skipped_atom(*reason).encode(env), count.encode(env)))
        .collect();
    let pairs = [
        (atoms::location(), text(&report.location)),
        (atoms::shared(), report.is_shared.encode(env)),
        (atoms::state(), state.encode(env)),
        (atoms::since(), (report.since_ms / 1000).encode(env)),
        (
            atoms::last_error(),
            report.last_error.as_deref().map_or_else(undefined, text),
        ),
        (atoms::queued(), report.queued.encode(env)),
        (atoms::written(), report.written.encode(env)),
        (atoms::written_bytes(), report.written_bytes.encode(env)),
        (atoms::dropped(), report.dropped.encode(env)),
        (atoms::read(), report.read.encode(env)),
        (atoms::applied(), report.applied.encode(env)),
        (atoms::known(), report.known.encode(env)),
        (atoms::skipped(), Term::map_from_pairs(env, &skipped)?),
        (atoms::revocations(), report.revocations.encode(env)),
        (atoms::unwritten(), report.unwritten.encode(env)),
        (atoms::missing(), report.missing.encode(env)),
        (
            atoms::node_folder(),
            report.node_folder.as_deref().map_or_else(undefined, text),
        ),
        (
            atoms::node_folder_error(),
            report
                .node_folder_error
                .as_deref()
                .map_or_else(undefined, text),
        ),
        (
            atoms::node_folder_bytes(),
            report.node_folder_bytes.encode(env),
        ),
        (
            atoms::log_bytes(),
            report
                .log_bytes
                .map_or_else(undefined, |bytes| bytes.encode(env)),
        ),
        (atoms::lag(), report.lag_ms.encode(env)),
        (atoms::clock_ahead(), report.clock_ahead_ms.encode(env)),
        (
            atoms::replay(),
            report.replay_ms.map_or_else(undefined, |ms| ms.encode(env)),
        ),
        (atoms::keys(), binaries(env, &report.keys)),
    ];
    Term::map_from_pairs(env, &pairs)
}

fn binaries<'a>(env: Env<'a>, texts: &[String]) -> Term<'a> {
    let texts: Vec<Term> = texts
        .iter()
        .map(|text| terms::binary(env, text.as_bytes()))
        .collect();
    texts.encode(env)
}

fn skipped_atom(reason: Skipped) -> Atom {
    match reason {
        Skipped::Malformed => atoms::malformed(),
        Skipped::Version => atoms::version(),
        Skipped::Scope => atoms::scope(),
        Skipped::Log => atoms::log(),
        Skipped::Layout => atoms::layout(),
        Skipped::Key => atoms::key(),
        Skipped::Forged => atoms::forged(),
        Skipped::Future => atoms::future(),
        Skipped::Expired => atoms::expired(),
        Skipped::Revoked => atoms::revoked(),
        Skipped::Template => atoms::template(),
        Skipped::Full => atoms::full(),
        Skipped::Suite => atoms::suite(),
    }
}
