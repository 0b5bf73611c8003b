//! A scope's journal, as its listener and its operator use it.

use crate::clock::now_ms;
use crate::hub::Hub;
use crate::node_memory::{Made, MadeIn, NodeMemory, ScopeMemory};
use crate::queue::{ControlRecord, InFolder, NewSession};
use crate::reader::carry_out;
use crate::record::{Skipped, Term};
use crate::revocations::{Knowledge, RevocationId};
use crate::shared::{Options, Shared};
use crate::status::Report;
use crate::suites::Suite;
use crate::target::Target;
use crate::template::{EncodedTemplate, TemplateCodec};
use rekindle_core::{Scope, ServerStore, SessionKey};
use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long `revoke` waits until the revocation is in every log.
const DURABLE_WITHIN: Duration = Duration::from_secs(2);

/// Sessions that are looked at under one hold of a lock.
const PAGE: usize = if cfg!(test) { 5 } else { 1000 };

/// An open journal. It ends when it is dropped, after it has written what it was given.
pub struct Journal<T: TemplateCodec>(pub(crate) Arc<Shared<T>>);

impl<T: TemplateCodec> Journal<T> {
    /// Starts the journal of a server scope: it puts what is in the log into the scope's store, and follows the log if
    /// that is shared. `hub` returns the hub of the log, and a new one if the last has ended. Errors are the system's:
    /// no thread, or no random number.
    pub fn start(
        scope: &Arc<Scope<T>>,
        options: Options,
        hub: impl FnMut() -> Arc<Hub<T>>,
    ) -> io::Result<Journal<T>> {
        let memory = NodeMemory::of(options.node_folder.as_deref());
        Self::start_with(scope, options, memory, hub)
    }

    /// Like [`start`](Self::start), with this memory of the node.
    pub(crate) fn start_with(
        scope: &Arc<Scope<T>>,
        options: Options,
        memory: Arc<NodeMemory>,
        mut hub: impl FnMut() -> Arc<Hub<T>>,
    ) -> io::Result<Journal<T>> {
        let mut options = Some(options);
        let mut current = hub();
        let shared = loop {
            let (log, waker) = (&current.log, Arc::clone(&current.waker));
            let Some(given) = options.take() else {
                return Err(io::Error::other("the log's threads have ended"));
            };
            let memory = Arc::clone(&memory);
            let (location, is_shared) = (log.location(), log.is_shared());
            let shared = Shared::new(scope, given, memory, location, is_shared, waker)?;
            let shared = Arc::new(shared);
            if current.add(&shared)? {
                break shared;
            }
            options = Arc::into_inner(shared).map(|shared| shared.options);
            current = hub();
        };
        Ok(Journal(shared))
    }

    /// The revocations that are known now. The caller takes this before it stores a session, so that a revocation made
    /// in the meantime covers the session.
    pub fn knowledge(&self) -> Arc<Knowledge> {
        self.0.remembered.knowledge()
    }

    /// Notes a session that was just stored, with its client's certificate (empty if there is none). Never waits for
    /// the log.
    #[allow(clippy::too_many_arguments)]
    pub fn add(
        &self,
        id: &[u8; 32],
        secret: &[u8; 48],
        template: Arc<EncodedTemplate>,
        knowledge: Arc<Knowledge>,
        certificate: &[u8],
        tail: &[u8],
        lifetime_ms: u64,
    ) {
        self.0.note_lifetime(lifetime_ms);
        let dropped = self.0.queue.push_session(Box::new(NewSession {
            id: *id,
            secret: *secret,
            template,
            knowledge,
            certificate: certificate.into(),
            tail: tail.into(),
            made_ms: now_ms(),
            lifetime_ms,
        }));
        self.0.status.dropped.fetch_add(dropped, Relaxed);
    }

    /// Counts a session that cannot be written.
    pub fn leave_out(&self) {
        self.0.status.dropped.fetch_add(1, Relaxed);
    }

    /// Revokes one session. The caller drops it from the store. Does not wait: the revocation is remembered and written
    /// a moment later.
    pub fn forget(&self, id: &[u8; 32]) {
        let target = Target::Session(*id);
        let keep_ms = self.0.keep_ms();
        // It is queued before anybody can read that it is known.
        self.0.remembered.change(|revocations| {
            let expires_ms = self.0.memory.running_ms().saturating_add(keep_ms);
            let id = revocations.make(&target, expires_ms);
            self.0.queue.push_record(ControlRecord::Revocation {
                id,
                term: Term::new(keep_ms),
                target,
                in_folder: InFolder::No,
            });
        });
    }

    /// Reads the key file again, and returns the names of the keys, the newest last.
    pub fn reload_keys(&self) -> Result<Vec<String>, String> {
        self.0.ask_for_retired_keys();
        self.0.load_keys()?;
        Ok(self.0.key_ids())
    }

    /// Replays the log although revocations may be missing. This is the operator's decision.
    pub fn replay_anyway(&self) {
        let shared = &self.0;
        (shared.remembered).change(|revocations| revocations.give_up_missing());
        let known = shared.remembered.knowledge();
        shared.memory.note_knowledge(&shared.remembered, &known);
        let mut replay = shared.replay.lock();
        replay.is_overridden = true;
        replay.want_replay(Duration::ZERO);
    }

    /// Lets only sessions with these cipher suites come from the log, or all if `None` is given. Sessions with other
    /// suites are dropped from the store, and sessions that were left out are read if they may be now. Returns how many
    /// were left out or dropped since the last call.
    pub fn allow_suites(&self, allowed: Option<HashSet<Suite>>) -> u64 {
        let shared = &self.0;
        // One change is complete before the next one begins.
        let _change = shared.suites_change.lock();
        if shared.suites.lock().allow(allowed.clone()) {
            shared.replay.lock().want_replay(Duration::ZERO);
        }
        if let Some(allowed) = allowed {
            shared.with_store(|_, store| self.drop_others(store, &allowed));
        }
        shared.suites.lock().report()
    }

    /// Drops the sessions with other suites.
    fn drop_others(&self, store: &ServerStore<T>, allowed: &HashSet<Suite>) {
        let shared = &self.0;
        let other = |template: &T| template.suite().filter(|suite| !allowed.contains(suite));
        let mut others = Vec::new();
        store.for_each_template(|template| others.extend(other(template)));
        let mut dropped = 0;
        let mut from = (!others.is_empty()).then_some(0);
        while let Some(position) = from {
            let mut ids = Vec::new();
            from = store.page(position, PAGE, now_ms(), |listed| {
                let template = listed.session.template;
                let is_other = template.is_some_and(|template| other(template).is_some());
                if let (SessionKey::Id(id), true) = (listed.key, is_other) {
                    ids.push(*id);
                }
            });
            let keys = ids.iter().map(SessionKey::Id);
            dropped += keys.filter(|key| store.delete(*key)).count() as u64;
        }
        shared.suites.lock().note_dropped(dropped, others);
        shared.status.skipped[Skipped::Suite.index()].fetch_add(dropped, Relaxed);
    }

    /// Revocations that are not in the log yet.
    #[cfg(test)]
    pub fn unwritten(&self) -> u64 {
        self.0.queue.unwritten()
    }

    /// The journal's state and counts.
    pub fn report(&self) -> Report {
        let shared = &self.0;
        let status = &shared.status;
        let (health, since_ms, last_error) = status.health();
        let (revocations, missing) = {
            let revocations = shared.remembered.revocations();
            (revocations.len() as u64, revocations.missing())
        };
        Report {
            location: shared.location.clone(),
            health,
            since_ms,
            last_error,
            queued: shared.queue.len() as u64,
            written: status.written.load(Relaxed),
            written_bytes: status.written_bytes.load(Relaxed),
            dropped: status.dropped.load(Relaxed),
            read: status.read.load(Relaxed),
            applied: status.applied.load(Relaxed),
            known: status.known.load(Relaxed),
            skipped: status
                .skipped
                .iter()
                .map(|count| count.load(Relaxed))
                .collect(),
            revocations,
            unwritten: shared.queue.unwritten(),
            missing,
            node_folder: shared
                .memory
                .folder()
                .map(|folder| folder.display().to_string()),
            node_folder_error: shared.memory.error(),
            node_folder_bytes: shared.memory.bytes(),
            log_bytes: status.log_bytes.load(Relaxed).checked_sub(1),
            lag_ms: status.lag_ms.load(Relaxed),
            clock_ahead_ms: status.clock_ahead_ms.load(Relaxed),
            replay_ms: status.replay_ms.get().copied(),
            keys: shared.key_ids(),
            is_shared: shared.is_shared_log,
        }
    }
}

impl<T: TemplateCodec> Drop for Journal<T> {
    fn drop(&mut self) {
        self.0.queue.close();
    }
}

/// The result of a revocation.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Sessions dropped from the stores of this node.
    pub dropped: u64,
    /// The names of scopes for which the revocation is not durable yet, and why. Instead of a scope it may be a node
    /// folder, if that could not be used and no scope is known.
    pub pending: BTreeMap<String, String>,
}

/// Revokes in these scopes, and waits a short time until that is durable. With `is_for_all`, it also holds in scopes
/// that open later with one of these memories: folders of this node, or `None` for the process's own memory.
pub fn revoke<T: TemplateCodec>(
    scopes: &[Arc<Scope<T>>],
    is_for_all: bool,
    memories: &[Option<PathBuf>],
    targets: &[Target],
) -> Revoked {
    let deadline = Instant::now() + DURABLE_WITHIN;
    let mut revoked = carry_out_here(scopes, is_for_all, memories, targets, deadline);
    wait_written(scopes, deadline, &mut revoked);
    revoked
}

/// Revokes in this node, and queues the revocations for the logs. Waits for the node's folders until the deadline.
pub(crate) fn carry_out_here<T: TemplateCodec>(
    scopes: &[Arc<Scope<T>>],
    is_for_all: bool,
    memories: &[Option<PathBuf>],
    targets: &[Target],
    deadline: Instant,
) -> Revoked {
    let journals: Vec<&Journal<T>> = scopes.iter().filter_map(|scope| scope.attached()).collect();
    let mut all: Vec<Arc<NodeMemory>> = Vec::new();
    let used = journals.iter().map(|journal| Arc::clone(&journal.0.memory));
    let named = memories.iter().filter(|_| is_for_all);
    for memory in used.chain(named.map(|folder| NodeMemory::of(folder.as_deref()))) {
        if !all.iter().any(|other| Arc::ptr_eq(other, &memory)) {
            all.push(memory);
        }
    }
    let made: Vec<_> = (all.iter())
        .map(|memory| Queued {
            journals: &journals,
            made: make(memory, &journals, is_for_all, targets),
        })
        .collect();
    let mut revoked = Revoked {
        dropped: drop_sessions(scopes, targets),
        ..Revoked::default()
    };
    for (memory, queued) in all.iter().zip(made) {
        let written = memory.store(&queued.made, deadline);
        memory.keep_unsaved();
        if let (Err(error), [], Some(folder)) = (&written, &queued.made.scopes[..], memory.folder())
        {
            let name = format!("node folder {}", folder.display());
            revoked.pending.insert(name, error.clone());
        }
        for made in &queued.made.scopes {
            let name = made.scope.name.to_string();
            if let Err(error) = &written {
                revoked.pending.insert(name.clone(), error.clone());
            }
            let is_open = of_scope(&journals, &made.scope).next().is_some();
            let is_durable = memory.folder().is_some() && made.scope.has_own_log();
            if !is_open && !is_durable {
                let why = "no listener of this scope is open; its log is written when one opens";
                revoked.pending.entry(name).or_insert(why.into());
            }
        }
    }
    // A session whose handshake ended just before the revocation may have been stored since.
    revoked.dropped += drop_sessions(scopes, targets);
    revoked
}

/// Revocations that wait in queues. When this is dropped, they are in the node's folder or cannot be, and the writers
/// may take them.
struct Queued<'a, T: TemplateCodec> {
    journals: &'a [&'a Journal<T>],
    made: Made,
}

impl<T: TemplateCodec> Drop for Queued<'_, T> {
    fn drop(&mut self) {
        for made in &self.made.scopes {
            for journal in of_scope(self.journals, &made.scope) {
                journal.0.queue.note_stored(&made.ids);
            }
        }
    }
}

/// The journals of a scope.
fn of_scope<'a, T: TemplateCodec>(
    journals: &'a [&'a Journal<T>],
    scope: &'a Arc<ScopeMemory>,
) -> impl Iterator<Item = &'a Journal<T>> {
    let is_of = |journal: &&Journal<T>| Arc::ptr_eq(&journal.0.remembered, scope);
    journals.iter().copied().filter(is_of)
}

/// Makes revocations in the open scopes with this memory, and queues them.
fn make<T: TemplateCodec>(
    memory: &Arc<NodeMemory>,
    journals: &[&Journal<T>],
    is_for_all: bool,
    targets: &[Target],
) -> Made {
    let mut open: Vec<(Arc<ScopeMemory>, u64)> = Vec::new();
    for Journal(journal) in journals {
        let is_of = Arc::ptr_eq(&journal.memory, memory);
        let is_same = |(other, _): &(Arc<_>, u64)| Arc::ptr_eq(other, &journal.remembered);
        if is_of && !open.iter().any(is_same) {
            open.push((Arc::clone(&journal.remembered), journal.keep_ms()));
        }
    }
    memory.make(&open, is_for_all, targets, |made: &MadeIn| {
        for Journal(journal) in of_scope(journals, &made.scope) {
            let term = Term::new(journal.keep_ms());
            let record = |(id, target): (&RevocationId, &Target)| ControlRecord::Revocation {
                id: *id,
                term,
                target: target.clone(),
                in_folder: InFolder::Soon,
            };
            journal
                .queue
                .push_records(made.ids.iter().zip(targets).map(record));
        }
    })
}

/// Drops the sessions that these scopes have now. Neither a journal nor this node's memory takes note of it.
pub fn drop_sessions<T: TemplateCodec>(scopes: &[Arc<Scope<T>>], targets: &[Target]) -> u64 {
    let drop_in = |scope: &Arc<Scope<T>>| match scope.store() {
        rekindle_core::Store::Server(store) => carry_out(scope, store, targets),
        rekindle_core::Store::Client(_) => 0,
    };
    scopes.iter().map(drop_in).sum()
}

/// Waits until the logs have all revocations, and notes the scopes for which they have not.
pub(crate) fn wait_written<T: TemplateCodec>(
    scopes: &[Arc<Scope<T>>],
    deadline: Instant,
    revoked: &mut Revoked,
) {
    let journals = scopes
        .iter()
        .filter_map(|scope| scope.attached::<Journal<T>>());
    for journal in journals {
        let why = match (
            journal.0.queue.wait_written(deadline),
            journal.0.status.health(),
        ) {
            (true, _) => journal.0.why_unread(),
            (false, (Some(Err(error)), ..)) => Some(error),
            (false, _) => Some("the log has not answered within two seconds".into()),
        };
        if let Some(why) = why {
            let name = journal.0.name.to_string();
            revoked.pending.entry(name).or_insert(why);
        }
    }
}
