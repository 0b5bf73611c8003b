//! The thread that drops sessions, so that no scheduler of the BEAM has to.

use crate::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use crate::sync::thread;
use crate::{clock, memory, Registry, Scope};
use once_cell::sync::OnceCell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often expired sessions are looked for.
const TICK: Duration = Duration::from_secs(1);

/// The way to the thread. There is none where the system gives no thread: what ends is then dropped
/// where it ends, and what has expired when its place is needed.
pub(crate) struct Janitor<T> {
    ended: OnceCell<Option<Sender<Arc<Scope<T>>>>>,
}

impl<T: Send + Sync + 'static> Janitor<T> {
    pub fn new() -> Self {
        Janitor {
            ended: OnceCell::new(),
        }
    }

    /// Starts the thread if it is not running.
    pub fn start(&self, registry: &'static Registry<T>) {
        self.ended.get_or_init(|| {
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
        if let Some(Some(janitor)) = self.ended.get() {
            // An error hands the scope back, and it is dropped here.
            let _ = janitor.send(scope);
        }
    }
}

fn work<T: Send + Sync>(registry: &'static Registry<T>, ended: &Receiver<Arc<Scope<T>>>) {
    let mut next_tick = Instant::now() + TICK;
    loop {
        let wait = next_tick.saturating_duration_since(Instant::now());
        match ended.recv_timeout(wait) {
            Ok(scope) => surviving(|| {
                scope.clear();
                drop(scope);
                memory::give_back();
            }),
            Err(RecvTimeoutError::Timeout) => {
                surviving(|| {
                    for scope in registry.scopes() {
                        scope.tidy(clock::now_ms());
                    }
                });
                next_tick = Instant::now() + TICK;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// One scope's trouble must not end the work for all others.
fn surviving(work: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(work));
}
