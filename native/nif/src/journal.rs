//! A scope's journal, as Erlang opens it and asks about it.

use crate::reference::Reference;
use crate::template::Template;
use crate::{atoms, faults, session, terms, REGISTRY};
use once_cell::sync::Lazy;
use rekindle_core::{Scope, SessionKey, Store};
use rekindle_journal::{
    take_events, Folder, Happened, Journal, KeyFile, LogReader, LogWriter, Options, Password,
    Report, Skipped, ValkeyConfig, ValkeyReader, ValkeyWriter, Wanted,
};
use rustler::{Atom, Binary, Decoder, Encoder, Env, Error, NifResult, Term};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Under which socket a private scope's journal was last opened, by name. A listener that is opened again is
/// another one, perhaps with other authorities: it does not get the sessions of the one before.
static OPENED: Lazy<Mutex<HashMap<Vec<u8>, Vec<u8>>>> = Lazy::new(Mutex::default);

/// As `rekindle_nif:journal/0` describes it.
struct Config<'a> {
    scope: &'a str,
    layout: &'a [u8],
    /// The listening socket of a private scope.
    private: Option<Term<'a>>,
    key_file: PathBuf,
    log: Log,
}

enum Log {
    Folder(PathBuf),
    Valkey(ValkeyConfig),
}

impl<'a> Config<'a> {
    fn decode(map: Term<'a>) -> NifResult<Self> {
        let (kind, log): (Atom, Term) = get(map, atoms::log())?;
        Ok(Config {
            scope: get(map, atoms::scope())?,
            layout: get::<Binary>(map, atoms::layout())?.as_slice(),
            private: find(map, atoms::private())?,
            key_file: path(get(map, atoms::key_file())?),
            log: if kind == atoms::folder() {
                Log::Folder(path(log.decode()?))
            } else if kind == atoms::valkey() {
                Log::Valkey(valkey(log)?)
            } else {
                return Err(Error::BadArg);
            },
        })
    }
}

fn valkey(map: Term) -> NifResult<ValkeyConfig> {
    let file: Option<Binary> = find(map, atoms::password_file())?;
    let variable = find(map, atoms::password_env())?;
    Ok(ValkeyConfig {
        url: get(map, atoms::url())?,
        user: find(map, atoms::user())?,
        password: match (file, variable) {
            (Some(file), _) => Password::File(path(file)),
            (None, Some(name)) => Password::Env(name),
            (None, None) => Password::Url,
        },
        ca_file: find(map, atoms::ca_file())?.map(path),
        cluster: get(map, atoms::cluster())?,
        partitions: get(map, atoms::partitions())?,
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
    // What these say of a wrong value would be raised as it is.
    match map.map_get(key) {
        Ok(value) => value.decode().map(Some).map_err(|_| Error::BadArg),
        Err(_) => Ok(None),
    }
}

/// Gives the scope a journal if it has none: `ok`, or why it cannot have one. Nothing is opened or connected
/// in the caller's time.
#[rustler::nif]
fn open_journal<'a>(
    env: Env<'a>,
    reference: Reference<'a>,
    config: Term<'a>,
) -> NifResult<Term<'a>> {
    faults::strike()?;
    reference.server()?;
    let config = Config::decode(config)?;
    let opened = OPENED.lock();
    let mut opened = opened.unwrap_or_else(PoisonError::into_inner);
    let Some(scope) = REGISTRY.scope(reference.number()) else {
        return Err(Error::BadArg);
    };
    if scope.attached::<Journal>().is_some() {
        return Ok(atoms::ok().encode(env));
    }
    let is_fresh = config.private.is_some_and(|socket| {
        let socket = terms::encode(socket).expose().to_vec();
        let former = opened.insert(config.scope.into(), socket.clone());
        former.is_some_and(|former| former != socket)
    });
    Ok(match start(&scope, config, is_fresh) {
        Ok(journal) => {
            scope.attach(journal);
            atoms::ok().encode(env)
        }
        Err(why) => (atoms::error(), terms::binary(env, why.as_bytes())).encode(env),
    })
}

fn start(scope: &Arc<Scope<Template>>, config: Config, is_fresh: bool) -> Result<Journal, String> {
    let name = config.scope;
    let (writer, reader, location, is_shared): (Box<dyn LogWriter>, Box<dyn LogReader>, _, _) =
        match config.log {
            Log::Folder(dir) => {
                let folder = Folder::at(&dir);
                let (writer, reader) = (folder.writer(name), folder.reader(name));
                let location = dir.display().to_string();
                (Box::new(writer), Box::new(reader), location, false)
            }
            Log::Valkey(valkey) => {
                valkey.check()?;
                let location = valkey.location();
                let writer = ValkeyWriter::new(valkey.clone(), name);
                let reader = ValkeyReader::new(valkey, name);
                (Box::new(writer), Box::new(reader), location, true)
            }
        };
    let options = Options {
        scope: name.into(),
        layout: config.layout.into(),
        keys: KeyFile {
            path: config.key_file,
            make: !is_shared,
        },
        location,
        is_shared,
        is_fresh,
    };
    Journal::start(scope, options, writer, reader).map_err(|error| error.to_string())
}

fn path(binary: Binary) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(&binary))
}

/// What happened to the journals since the last call, the oldest first, and whether there is any journal; see
/// `rekindle_journal`.
#[rustler::nif]
fn journal_events(env: Env) -> (Vec<Term>, bool) {
    let events = take_events()
        .iter()
        .map(|event| {
            let scope = terms::binary(env, &event.scope);
            let location = terms::binary(env, event.location.as_bytes());
            (scope, location, happened(env, &event.what)).encode(env)
        })
        .collect();
    let scopes = REGISTRY.scopes();
    let is_any = scopes
        .iter()
        .any(|scope| scope.attached::<Journal>().is_some());
    (events, is_any)
}

fn happened<'a>(env: Env<'a>, what: &Happened) -> Term<'a> {
    let text = |text: &str| terms::binary(env, text.as_bytes());
    match what {
        Happened::Down(error) => (atoms::down(), text(error)).encode(env),
        Happened::Up { after_ms, dropped } => (atoms::up(), *after_ms, *dropped).encode(env),
        Happened::Replayed { sessions, took_ms } => {
            (atoms::replayed(), *sessions, *took_ms).encode(env)
        }
        Happened::Noticed(notice) => (atoms::noticed(), text(notice)).encode(env),
    }
}

/// Reads a scope's key file anew: `{ok, Names}`, `{error, Line}`, or `undefined` where there is no journal.
#[rustler::nif(schedule = "DirtyIo")]
fn reload_keys(env: Env, number: u64) -> Term {
    let Some(scope) = REGISTRY.scope(number) else {
        return atoms::undefined().encode(env);
    };
    match scope.attached::<Journal>().map(Journal::reload_keys) {
        Some(Ok(names)) => (atoms::ok(), binaries(env, &names)).encode(env),
        Some(Err(line)) => (atoms::error(), terms::binary(env, line.as_bytes())).encode(env),
        None => atoms::undefined().encode(env),
    }
}

/// Drops a session of a server scope, here and where the journal is read, and tells if it was here.
pub fn forget(scope: &Scope<Template>, key: Term) -> bool {
    let Store::Server(store) = scope.store() else {
        return false;
    };
    session::with_key(key, |key| {
        if let (Some(journal), SessionKey::Id(id)) = (scope.attached::<Journal>(), key) {
            journal.forget(id, store.limits().lifetime_ms);
        }
        store.delete(key)
    })
}

/// Drops all sessions of a server scope, likewise, and tells how many were here.
pub fn flush(scope: &Scope<Template>) -> u64 {
    let Store::Server(store) = scope.store() else {
        return 0;
    };
    if let Some(journal) = scope.attached::<Journal>() {
        journal.flush(store.limits().lifetime_ms);
    }
    scope.clear()
}

/// Drops the sessions of a server scope that were made with these certificates, likewise.
pub fn revoke(scope: &Scope<Template>, wanted: &[Wanted]) -> u64 {
    let Store::Server(store) = scope.store() else {
        return 0;
    };
    if let Some(journal) = scope.attached::<Journal>() {
        journal.revoke(wanted, store.limits().lifetime_ms);
    }
    let selectors: Vec<_> = wanted.iter().map(Wanted::selector).collect();
    store.revoke(&selectors)
}

/// Certificates as Erlang names them; see `rekindle_certificate:wanted/2`.
pub fn wanted(term: Term) -> NifResult<Vec<Wanted>> {
    // An improper list has no length; made into a vector, it would panic.
    term.list_length()?;
    term.decode::<Vec<Term>>()?
        .into_iter()
        .map(one_wanted)
        .collect()
}

fn one_wanted(term: Term) -> NifResult<Wanted> {
    if let Ok((kind, name, serial)) = term.decode::<(Atom, Binary, Binary)>() {
        return match kind == atoms::issuer() {
            true => Ok(Wanted::Serial {
                name: name.as_slice().into(),
                serial: serial.as_slice().into(),
            }),
            false => Err(Error::BadArg),
        };
    }
    let (kind, bytes): (Atom, Binary) = term.decode()?;
    let bytes = bytes.as_slice();
    let wanted = if kind == atoms::sha256() {
        bytes.try_into().ok().map(Wanted::Sha256)
    } else if kind == atoms::sha() {
        bytes.try_into().ok().map(Wanted::Sha1)
    } else if kind == atoms::issuer() {
        Some(Wanted::Issuer { name: bytes.into() })
    } else {
        None
    };
    wanted.ok_or(Error::BadArg)
}

/// How a scope's journal is, or `undefined`; see `rekindle_admin:info/0`.
pub fn info<'a>(env: Env<'a>, scope: &Scope<Template>) -> NifResult<Term<'a>> {
    match scope.attached::<Journal>() {
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
        Skipped::Layout => atoms::layout(),
        Skipped::Key => atoms::key(),
        Skipped::Forged => atoms::forged(),
        Skipped::Future => atoms::future(),
        Skipped::Expired => atoms::expired(),
        Skipped::Revoked => atoms::revoked(),
        Skipped::Template => atoms::template(),
        Skipped::Full => atoms::full(),
    }
}
