//! The thread that drops sessions, so that no scheduler of the BEAM has to.
//!
//! It works on all scopes by turns, a slice at a time: none waits for another that has much to be done.

use crate::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use crate::sync::thread;
use crate::{clock, memory, Registry, Scope};
use once_cell::sync::OnceCell;
use std::collections::HashSet;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often each scope is looked after.
const TICK: Duration = Duration::from_millis(900);

/// What insertions have between two rounds of slices.
const PAUSE: Duration = Duration::from_micros(50);

/// Slices of one scope in a round. Between two of them, those who wait for a lock get it.
const SLICES_PER_ROUND: usize = 8;

/// Tasks that are taken over between two rounds.
const MAX_SENT_PER_ROUND: usize = 1000;

/// Channel to the thread; `None` if the system could not start one. Then what ends is dropped where it ends, and what
/// has expired when its place is needed.
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

    /// Has a scope looked after now, and not at the next tick.
    pub fn look_after(&self, scope: Arc<Scope<T>>) {
        self.send(Task::tidy(scope));
    }

    fn send(&self, task: Task<T>) {
        if let Some(Some(janitor)) = self.tasks.get() {
            // An error hands the scope back, and it is dropped here.
            let _ = janitor.send(task);
        }
    }
}

/// A scope that is worked on.
struct Task<T> {
    scope: Arc<Scope<T>>,
    /// It has no references left: everything goes.
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

    /// Does a few slices, and tells whether there is more. One scope's trouble must not end the work for all others.
    fn step(&self) -> bool {
        let slice = || match self.has_ended {
            true => self.scope.clear_slice(),
            false => self.scope.tidy(clock::now_ms()),
        };
        let slices = || (0..SLICES_PER_ROUND).all(|_| slice());
        catch_unwind(AssertUnwindSafe(slices)).unwrap_or(false)
    }
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
        // Not more at once: there is other work.
        let others = std::iter::from_fn(|| sent.try_recv().ok());
        tasks.extend(others.take(MAX_SENT_PER_ROUND));
        if Instant::now() >= next_tick {
            let at_work: HashSet<u64> = tasks.iter().map(|task| task.scope.number()).collect();
            let scopes = registry.scopes().into_iter();
            let idle = scopes.filter(|scope| !at_work.contains(&scope.number()));
            tasks.extend(idle.map(Task::tidy));
            if std::mem::take(&mut has_cleared) {
                memory::give_back();
            }
            next_tick = Instant::now() + TICK;
        }
        has_cleared |= tasks.iter().any(|task| task.has_ended);
        tasks.retain(Task::step);
        if !tasks.is_empty() {
            thread::sleep(PAUSE);
        }
    }
}
