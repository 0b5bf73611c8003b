//! The threads of a log: a writer, a reader for replays and, if other nodes write to the log, a follower. They serve
//! all scopes of the node with this log, and end with the last of them.

use crate::follow::Follower;
use crate::queue::Waker;
use crate::replay::Replayer;
use crate::shared::Shared;
use crate::status::Part;
use crate::template::TemplateCodec;
use crate::writer::Writer;
use parking_lot::{Condvar, Mutex};
use rekindle_log::{Log, Mark};
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A log, and the journals that use it.
pub struct Hub<T> {
    pub(crate) log: Arc<dyn Log>,
    pub(crate) waker: Arc<Waker>,
    state: Mutex<State<T>>,
    woken: Condvar,
    has_ended: AtomicBool,
}

struct State<T> {
    journals: Vec<Arc<Shared<T>>>,
    marks: Vec<(Arc<Shared<T>>, Mark)>,
    is_running: bool,
}

impl<T: TemplateCodec> Hub<T> {
    /// Starts no threads yet: they start with the first journal.
    pub fn new(log: Arc<dyn Log>) -> Arc<Hub<T>> {
        Arc::new(Hub {
            log,
            waker: Arc::default(),
            state: Mutex::new(State {
                journals: Vec::new(),
                marks: Vec::new(),
                is_running: false,
            }),
            woken: Condvar::new(),
            has_ended: AtomicBool::new(false),
        })
    }

    /// A hub without threads: a test does their work.
    #[cfg(test)]
    pub fn without_threads(log: Arc<dyn Log>) -> Arc<Hub<T>> {
        let hub = Hub::new(log);
        hub.state.lock().is_running = true;
        hub
    }

    /// Adds a journal. `false` if the hub has ended: the caller then makes another one.
    pub(crate) fn add(self: &Arc<Self>, journal: &Arc<Shared<T>>) -> io::Result<bool> {
        let mut state = self.state.lock();
        if self.has_ended() {
            return Ok(false);
        }
        if !state.is_running {
            self.start_threads().inspect_err(|_| self.end())?;
            state.is_running = true;
        }
        state.journals.push(Arc::clone(journal));
        drop(state);
        self.waker.wake();
        Ok(true)
    }

    fn start_threads(self: &Arc<Self>) -> io::Result<()> {
        let writer = Writer::new(Arc::clone(self), self.log.writer());
        self.spawn("rekindle-writer", Part::Writer, move || writer.run())?;
        let replayer = Replayer::new(Arc::clone(self));
        self.spawn("rekindle-reader", Part::Reader, move || replayer.run())?;
        if let Some(log) = self.log.follower() {
            let follower = Follower::new(Arc::clone(self), log);
            self.spawn("rekindle-follow", Part::Follower, move || follower.run())?;
        }
        Ok(())
    }

    /// A panic ends the threads of this log and not the node. The journals then report it.
    fn spawn(
        self: &Arc<Self>,
        name: &str,
        part: Part,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<()> {
        let hub = Arc::clone(self);
        let run = move || {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                hub.end();
                for journal in hub.journals() {
                    journal.set(part, Err("a defect ended the journal's thread".into()));
                }
            }
        };
        thread::Builder::new()
            .name(name.into())
            .spawn(run)
            .map(drop)
    }

    /// How many revocations of its scopes are not in the log yet, also of scopes that have closed.
    pub fn unwritten(&self) -> u64 {
        let journals = self.journals().into_iter();
        journals.map(|journal| journal.queue.unwritten()).sum()
    }

    /// The journals that use this log.
    pub(crate) fn journals(&self) -> Vec<Arc<Shared<T>>> {
        self.state.lock().journals.clone()
    }

    /// Whether journals have been added or removed.
    pub(crate) fn has_changed(&self, count: usize) -> bool {
        self.state.lock().journals.len() != count
    }

    /// Removes a journal that has ended.
    pub(crate) fn remove(&self, journal: &Arc<Shared<T>>) {
        let mut state = self.state.lock();
        state.journals.retain(|other| !Arc::ptr_eq(other, journal));
    }

    /// Tells the follower, if there is one, to follow a journal from a mark on.
    pub(crate) fn follow(&self, journal: &Arc<Shared<T>>, mark: Mark) {
        if self.log.is_shared() {
            self.state.lock().marks.push((Arc::clone(journal), mark));
            self.woken.notify_all();
        }
    }

    /// The marks that the follower has not taken yet.
    pub(crate) fn take_marks(&self) -> Vec<(Arc<Shared<T>>, Mark)> {
        std::mem::take(&mut self.state.lock().marks)
    }

    /// Ends the hub if no journal is left, and returns whether it has.
    pub(crate) fn end_if_unused(&self) -> bool {
        let state = self.state.lock();
        if state.journals.is_empty() {
            self.end();
        }
        self.has_ended()
    }

    fn end(&self) {
        self.has_ended.store(true, SeqCst);
        self.woken.notify_all();
    }

    /// Whether the threads have to end.
    pub(crate) fn has_ended(&self) -> bool {
        self.has_ended.load(SeqCst)
    }

    /// Sleeps until the time is over or the hub ends.
    pub(crate) fn sleep(&self, time: Duration) {
        self.sleep_unless(time, |_| false);
    }

    /// Sleeps until the time is over, the hub ends or there is a mark.
    pub(crate) fn sleep_until_mark(&self, time: Duration) {
        self.sleep_unless(time, |state| !state.marks.is_empty());
    }

    fn sleep_unless(&self, time: Duration, is_woken: impl Fn(&State<T>) -> bool) {
        let deadline = Instant::now() + time;
        let mut state = self.state.lock();
        while !self.has_ended() && !is_woken(&state) {
            if self.woken.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}
