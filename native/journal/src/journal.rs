//! A scope's journal: what its listener tells it, what its operator asks of it.

use crate::clock::now_ms;
use crate::hub::Hub;
use crate::node_memory::NodeMemory;
use crate::queue::{NewSession, Note};
use crate::reader::carry_out;
use crate::revocations::Knowledge;
use crate::shared::{Options, Shared};
use crate::status::Report;
use crate::target::Target;
use crate::template::{EncodedTemplate, TemplateCodec};
use rekindle_core::Scope;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a revocation waits until it is in every log.
const DURABLE_WITHIN: Duration = Duration::from_secs(2);

/// A journal at work. It ends when it is dropped, after what it was told is written.
pub struct Journal<T: TemplateCodec>(pub(crate) Arc<Shared<T>>);

impl<T: TemplateCodec> Journal<T> {
    /// Starts the journal of a server scope: puts what is in the log into its store, and follows the log if it is
    /// shared. `hub` answers the hub of the log: a new one if the last has ended. An error is one of the system's: no
    /// thread, no random number.
    pub fn start(
        scope: &Arc<Scope<T>>,
        options: Options,
        hub: impl FnMut() -> Arc<Hub<T>>,
    ) -> io::Result<Journal<T>> {
        let memory = NodeMemory::of(options.node_folder.as_deref());
        Self::start_with(scope, options, memory, hub)
    }

    /// As [`start`](Self::start), of a node with this memory.
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

    /// What is known now, for a session that is about to be stored: taken before it is stored, so that a revocation made
    /// meanwhile covers it.
    pub fn knowledge(&self) -> Arc<Knowledge> {
        self.0.remembered.knowledge()
    }

    /// Notes that a session was stored just now, with its client's certificate, which is empty if there is none.
    /// Never waits for the log.
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

    /// Revokes one session, to be dropped from the store by the caller. Waits for nothing: it is remembered and written a moment
    /// later.
    pub fn forget(&self, id: &[u8; 32]) {
        let target = Target::Session(*id);
        let keep_ms = self.0.keep_ms();
        let expires_ms = self.0.memory.running_ms().saturating_add(keep_ms);
        let made = |revocations: &mut crate::revocations::Revocations| {
            revocations.make(&target, expires_ms)
        };
        let id = self.0.remembered.change(made);
        self.0.queue.push_note(Note::Revocation {
            id,
            keep_ms,
            target,
            is_remembered: false,
        });
    }

    /// Reads the key file again, and answers the names of the keys, the newest last.
    pub fn reload_keys(&self) -> Result<Vec<String>, String> {
        self.0.load_keys()?;
        Ok(self.0.key_ids())
    }

    /// Replays the log although revocations may be missing: the operator's decision.
    pub fn replay_anyway(&self) {
        let shared = &self.0;
        let give_up =
            |revocations: &mut crate::revocations::Revocations| revocations.give_up_missing();
        shared.remembered.change(give_up);
        let known = shared.remembered.knowledge();
        shared.memory.note_knowledge(&shared.remembered, &known);
        let mut replay = shared.replay.lock();
        replay.is_overridden = true;
        replay.want_replay(Duration::ZERO);
    }

    /// Revocations that are not in the log yet.
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

/// What came of revoking.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Sessions dropped from the stores of this node.
    pub dropped: u64,
    /// Scopes for which the revocation is not durable yet, by name, and why.
    pub pending: BTreeMap<String, String>,
}

/// Revokes in these scopes, and waits until that is durable, but not for long. Revocations for everything also hold in
/// scopes that open later with one of these memories: the folders of this node, or `None` for the process's own.
pub fn revoke<T: TemplateCodec>(
    scopes: &[Arc<Scope<T>>],
    is_for_all: bool,
    memories: &[Option<PathBuf>],
    targets: &[Target],
) -> Revoked {
    let mut revoked = carry_out_here(scopes, is_for_all, memories, targets);
    wait_written(scopes, Instant::now() + DURABLE_WITHIN, &mut revoked);
    revoked
}

/// Revokes in this node, and has the logs' threads write it.
pub(crate) fn carry_out_here<T: TemplateCodec>(
    scopes: &[Arc<Scope<T>>],
    is_for_all: bool,
    memories: &[Option<PathBuf>],
    targets: &[Target],
) -> Revoked {
    let mut revoked = Revoked::default();
    let journals: Vec<&Journal<T>> = scopes.iter().filter_map(|scope| scope.attached()).collect();
    let mut all: Vec<Arc<NodeMemory>> = Vec::new();
    let used = journals.iter().map(|journal| Arc::clone(&journal.0.memory));
    let named = memories.iter().filter(|_| is_for_all);
    for memory in used.chain(named.map(|folder| NodeMemory::of(folder.as_deref()))) {
        if !all.iter().any(|other| Arc::ptr_eq(other, &memory)) {
            all.push(memory);
        }
    }
    for memory in &all {
        let mut here = Vec::new();
        for journal in journals
            .iter()
            .filter(|journal| Arc::ptr_eq(&journal.0.memory, memory))
        {
            let is_new = |(other, _): &(Arc<_>, u64)| !Arc::ptr_eq(other, &journal.0.remembered);
            if here.iter().all(is_new) {
                here.push((Arc::clone(&journal.0.remembered), journal.0.keep_ms()));
            }
        }
        let (made, written) = memory.revoke(&here, is_for_all, targets);
        for made in made {
            let name = made.scope.name.to_string();
            if let Err(error) = &written {
                revoked.pending.insert(name.clone(), error.clone());
            }
            let open: Vec<_> = (journals.iter())
                .filter(|journal| Arc::ptr_eq(&journal.0.remembered, &made.scope))
                .collect();
            for journal in &open {
                let keep_ms = journal.0.keep_ms();
                let notes = made
                    .ids
                    .iter()
                    .zip(targets)
                    .map(|(id, target)| Note::Revocation {
                        id: *id,
                        keep_ms,
                        target: target.clone(),
                        is_remembered: true,
                    });
                journal.0.queue.push_notes(notes);
            }
            let is_durable = memory.folder().is_some() && made.scope.has_own_log();
            if open.is_empty() && !is_durable {
                let why = "no listener of this scope is open; its log is written when one opens";
                revoked.pending.entry(name).or_insert(why.into());
            }
        }
    }
    for scope in scopes {
        if let rekindle_core::Store::Server(store) = scope.store() {
            revoked.dropped += carry_out(scope, store, targets);
        }
    }
    revoked
}

/// Waits until the logs have all revocations, and notes for which scopes they have not.
pub(crate) fn wait_written<T: TemplateCodec>(
    scopes: &[Arc<Scope<T>>],
    deadline: Instant,
    revoked: &mut Revoked,
) {
    let journals = scopes
        .iter()
        .filter_map(|scope| scope.attached::<Journal<T>>());
    for journal in journals {
        if !journal.0.queue.wait_written(deadline) {
            let why = match journal.0.status.health() {
                (Some(Err(error)), ..) => error,
                _ => "the log has not answered within two seconds".into(),
            };
            revoked.pending.insert(journal.0.name.to_string(), why);
        }
    }
}
