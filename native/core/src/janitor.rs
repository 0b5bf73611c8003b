//! The thread that drops sessions, so that no scheduler of the BEAM has to.
//!
//! It works on all scopes in turn, a slice at a time, so that no scope waits for one with much work.

use crate::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use crate::sync::thread;
use crate::{clock, memory, Registry, Scope};
use once_cell::sync::OnceCell;
use std::collections::HashSet;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often the janitor visits each scope.
const TICK: Duration = Duration::from_millis(900);

/// A pause between two rounds, in which insertions get the locks.
const PAUSE: Duration = Duration::from_micros(50);

/// Slices of one scope in a round. Between two slices, threads that wait for a lock get it.
const SLICES_PER_ROUND: usize = 8;

/// Most tasks that the thread accepts between two rounds.
const MAX_SENT_PER_ROUND: usize = 1000;

/// Channel to the thread; `None` if no thread could start. Then the caller drops a scope that ends, and an expired session
/// goes when its place is needed.
pub(crate) struct Janitor<T> {
    tasks: OnceCell<Option<Sender<Task<T>>>>,
}

impl<T: Send + Sync + 'static> Janitor<T> {
    pub fn new() -> Self {
        Janitor {
            tasks: OnceCell::new(),
        }
    }

    /// Starts the thread if it is not running.
    pub fn start(&self, registry: &'static Registry<T>) {
        self.tasks.get_or_init(|| {
            let (sender, receiver) = channel();
            thread::Builder::new()
                .name("rekindle-janitor".into())
                .spawn(move || work(registry, &receiver))
                .ok()
                .map(|_| sender)
        });
    }

    /// Hands over a scope that has no references left.
    pub fn dispose(&self, scope: Arc<Scope<T>>) {
        self.send(Task::clear(scope));
    }

    /// Makes the janitor visit a scope now, and not at the next tick.
    pub fn look_after(&self, scope: Arc<Scope<T>>) {
        self.send(Task::tidy(scope));
    }

    fn send(&self, task: Task<T>) {
        if let Some(Some(janitor)) = self.tasks.get() {
            // On an error the scope comes back, and is dropped here.
            let _ = janitor.send(task);
        }
    }
}

/// A scope that the janitor works on.
struct Task<T> {
    scope: Arc<Scope<T>>,
    /// Whether the scope has no references left, so that all sessions go.
    has_ended: bool,
}

impl<T> Task<T> {
    fn clear(scope: Arc<Scope<T>>) -> Self {
        Task {
            scope,
            has_ended: true,
        }
    }

    fn tidy(scope: Arc<Scope<T>>) -> Self {
        Task {
            scope,
            has_ended: false,
        }
    }

    /// Does a few slices, and returns whether there is more to do. A panic over one scope must not end the work on the others.
    fn step(&self) -> bool {
        let slice = || match self.has_ended {
            true => self.scope.clear_slice(),
            false => self.scope.tidy(clock::now_ms()),
        };
        let slices = || (0..SLICES_PER_ROUND).all(|_| slice());
        catch_unwind(AssertUnwindSafe(slices)).unwrap_or(false)
    }
}

/// Works on each scope for a short time, and keeps those with more to do.
fn round<T>(tasks: &mut Vec<Task<T>>) {
    tasks.retain(Task::step);
}

fn work<T: Send + Sync>(registry: &'static Registry<T>, sent: &Receiver<Task<T>>) {
    let mut tasks: Vec<Task<T>> = Vec::new();
    let mut has_cleared = false;
    let mut next_tick = Instant::now() + TICK;
    loop {
        if tasks.is_empty() {
            let wait = next_tick.saturating_duration_since(Instant::now());
            match sent.recv_timeout(wait) {
                Ok(task) => tasks.push(task),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
        // The bound leaves time for the tasks that are there.
        let others = std::iter::from_fn(|| sent.try_recv().ok());
        tasks.extend(others.take(MAX_SENT_PER_ROUND));
        if Instant::now() >= next_tick {
            let at_work: HashSet<u64> = tasks.iter().map(|task| task.scope.number()).collect();
            let scopes = registry.scopes().into_iter();
            let idle = scopes.filter(|scope| !at_work.contains(&scope.number()));
            tasks.extend(idle.map(Task::tidy));
            if std::mem::take(&mut has_cleared) {
                memory::trim();
            }
            next_tick = Instant::now() + TICK;
        }
        has_cleared |= tasks.iter().any(|task| task.has_ended);
        round(&mut tasks);
        if !tasks.is_empty() {
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Limits, NewSession, ServerStore, SessionKey, Store};

    const LIFETIME_MS: u64 = 1000;

    /// A task for the janitor: a scope with this many sessions, which have all expired.
    fn expired(sessions: u64) -> Task<()> {
        let store = ServerStore::new(Limits {
            max_bytes: u64::MAX,
            max_sessions: u64::MAX,
            lifetime_ms: LIFETIME_MS,
        });
        for number in 0..sessions {
            let mut id = [0; 32];
            id[..8].copy_from_slice(&number.to_be_bytes());
            let session = NewSession {
                key: SessionKey::Id(&id),
                secret: &[7; 48],
                template: None,
                certificate: None,
                tail: b"",
            };
            store
                .insert(session, clock::now_ms() - 2 * LIFETIME_MS)
                .unwrap();
        }
        Task::tidy(Arc::new(Scope::new(1, b"", Store::Server(store))))
    }

    /// The large scope needs many rounds, however fast the machine is.
    #[test]
    fn a_scope_that_expires_as_a_whole_does_not_hold_up_others() {
        let mut tasks = vec![expired(400_000), expired(10)];
        let small = Arc::clone(&tasks[1].scope);
        round(&mut tasks);
        assert_eq!(small.sessions(), 0);
        assert!(tasks[0].scope.sessions() > 0);
        while !tasks.is_empty() {
            round(&mut tasks);
        }
    }
}
