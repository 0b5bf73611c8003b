//! The thread that drops sessions, so that no scheduler of the BEAM has to.

use crate::{clock, registry, Scope};
use once_cell::sync::Lazy;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::mpsc::{channel, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How often expired sessions are looked for.
const TICK: Duration = Duration::from_secs(1);

/// `None` where the system gives no thread: what ends is then dropped where it ends, and what has
/// expired when its place is needed.
static JANITOR: Lazy<Option<Sender<Arc<Scope>>>> = Lazy::new(|| {
    let (sender, receiver) = channel();
    thread::Builder::new()
        .name("rekindle-janitor".into())
        .spawn(move || work(&receiver))
        .ok()
        .map(|_| sender)
});

/// Starts the thread if it is not running.
pub(crate) fn start() {
    Lazy::force(&JANITOR);
}

/// Hands over a scope that has no references left.
pub(crate) fn dispose(scope: Arc<Scope>) {
    if let Some(janitor) = &*JANITOR {
        // An error hands the scope back, and it is dropped here.
        let _ = janitor.send(scope);
    }
}

fn work(ended: &Receiver<Arc<Scope>>) {
    let mut next_tick = Instant::now() + TICK;
    loop {
        let wait = next_tick.saturating_duration_since(Instant::now());
        match ended.recv_timeout(wait) {
            Ok(scope) => surviving(|| scope.clear()),
            Err(RecvTimeoutError::Timeout) => {
                surviving(expire);
                next_tick = Instant::now() + TICK;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn expire() {
    for scope in registry::scopes() {
        scope.expire(clock::now_ms());
    }
}

/// One scope's trouble must not end the work for all others.
fn surviving(work: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(work));
}
