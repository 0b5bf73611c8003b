//! A thread that works on what is in a folder. Its callers wait for a moment and not for a disk that hangs.

use parking_lot::Mutex;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// A folder that has made no progress for longer than this does not answer.
pub(crate) const STUCK_AFTER: Duration = Duration::from_secs(2);

/// How often a caller that waits looks whether the folder answers.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Limit on the work that waits for a folder that does not answer.
const MAX_WAITING: usize = 100;

type Work<F> = Box<dyn FnOnce(&mut F) + Send>;

/// The thread. It ends when this is dropped, after it has done what it was given.
pub(crate) struct FolderThread<F> {
    work: Sender<Work<F>>,
    progress: Arc<Progress>,
}

/// What the thread does. Long work notes its progress.
#[derive(Default)]
pub(crate) struct Progress {
    waiting: AtomicUsize,
    /// When the thread began what it does now, or last noted progress.
    busy_since: Mutex<Option<Instant>>,
}

impl Progress {
    pub fn note(&self) {
        *self.busy_since.lock() = Some(Instant::now());
    }

    fn is_stuck(&self) -> bool {
        let since = *self.busy_since.lock();
        since.is_some_and(|since| since.elapsed() > STUCK_AFTER)
    }
}

impl<F: 'static> FolderThread<F> {
    /// Starts the thread, which first makes what it works on and at last ends it. It does both while nobody else holds
    /// this lock.
    pub fn start(
        in_use: Arc<Mutex<()>>,
        make: impl FnOnce(Arc<Progress>) -> F + Send + 'static,
        end: impl FnOnce(F) + Send + 'static,
    ) -> io::Result<FolderThread<F>> {
        let (work, given) = mpsc::channel::<Work<F>>();
        let progress = Arc::new(Progress::default());
        let own = Arc::clone(&progress);
        let run = move || {
            own.note();
            let _in_use = in_use.lock();
            let mut folder = make(Arc::clone(&own));
            *own.busy_since.lock() = None;
            for work in given {
                own.note();
                // A panic ends neither the thread nor the node. The caller gets no answer.
                let _ = catch_unwind(AssertUnwindSafe(|| work(&mut folder)));
                own.waiting.fetch_sub(1, SeqCst);
                *own.busy_since.lock() = None;
            }
            end(folder);
        };
        let thread = thread::Builder::new().name("rekindle-folder".into());
        thread.spawn(run)?;
        Ok(FolderThread { work, progress })
    }

    /// Whether the folder does not answer.
    pub fn is_stuck(&self) -> bool {
        self.progress.is_stuck()
    }

    /// Whether the thread has something to do.
    pub fn has_waiting(&self) -> bool {
        self.progress.waiting.load(SeqCst) > 0
    }

    /// Lets the thread do this, without waiting. `false` if too much waits already: then it is not done.
    pub fn submit(&self, work: impl FnOnce(&mut F) + Send + 'static) -> bool {
        if self.progress.waiting.load(SeqCst) >= MAX_WAITING && self.is_stuck() {
            return false;
        }
        self.progress.waiting.fetch_add(1, SeqCst);
        self.work.send(Box::new(work)).is_ok()
    }

    /// Lets the thread do this, and waits for the result as long as the folder answers, but not past the deadline, if
    /// there is one. What is late is done later.
    pub fn call<R: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        work: impl FnOnce(&mut F) -> R + Send + 'static,
    ) -> Answer<R> {
        let (done, result) = mpsc::sync_channel(1);
        let work = move |folder: &mut F| {
            let _ = done.send(work(folder));
        };
        if !self.submit(work) {
            return Answer::Refused;
        }
        loop {
            let left = deadline.map_or(STUCK_AFTER, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            let patience = if self.is_stuck() {
                Duration::ZERO
            } else {
                left.min(LOOK_AGAIN)
            };
            match result.recv_timeout(patience) {
                Ok(result) => return Answer::Done(result),
                Err(RecvTimeoutError::Disconnected) => return Answer::Late,
                Err(RecvTimeoutError::Timeout) if self.is_stuck() || left.is_zero() => {
                    return Answer::Late
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }
}

/// What became of a call.
pub(crate) enum Answer<R> {
    Done(R),
    /// There is no answer yet.
    Late,
    /// It will not be done.
    Refused,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_folder_that_hangs_and_nothing_is_left_out() {
        let (ended, end) = mpsc::channel();
        let done: Vec<u32> = Vec::new();
        let thread = FolderThread::start(
            Arc::default(),
            |_| done,
            move |done| ended.send(done).unwrap(),
        )
        .unwrap();
        let soon = || Instant::now() + Duration::from_millis(50);
        let hanging = Arc::new(Mutex::new(()));
        let held = hanging.lock();
        let (begin, begun) = mpsc::channel();
        let work = {
            let hanging = Arc::clone(&hanging);
            move |done: &mut Vec<u32>| {
                begin.send(()).unwrap();
                drop(hanging.lock());
                done.push(1);
            }
        };
        assert!(matches!(thread.call(Some(soon()), work), Answer::Late));
        begun.recv().unwrap();
        let long_ago = Instant::now() - 2 * STUCK_AFTER;
        thread.progress.busy_since.lock().replace(long_ago);
        assert!(thread.is_stuck());
        let began = Instant::now();
        let far = began + Duration::from_secs(600);
        for n in 2..2 + MAX_WAITING as u32 {
            let is_refused = n == 1 + MAX_WAITING as u32;
            match thread.call(Some(far), move |done| done.push(n)) {
                Answer::Late => assert!(!is_refused),
                Answer::Refused => assert!(is_refused),
                Answer::Done(()) => panic!("it hangs"),
            }
        }
        assert!(began.elapsed() < Duration::from_secs(60));
        drop(held);
        let far = Instant::now() + Duration::from_secs(60);
        // Until it answers again, nobody waits.
        let count = loop {
            if let Answer::Done(count) = thread.call(Some(far), |done| done.len()) {
                break count;
            }
            thread::yield_now();
        };
        assert_eq!(count, MAX_WAITING);
        assert!(!thread.is_stuck());
        let panicked = thread.call(Some(far), |_| -> () { panic!("a defect that is wanted") });
        assert!(matches!(panicked, Answer::Late));
        assert!(thread.submit(|done| done.push(0)));
        drop(thread);
        let done = end.recv_timeout(Duration::from_secs(60)).unwrap();
        let expected: Vec<u32> = (1..=MAX_WAITING as u32).chain([0]).collect();
        assert_eq!(done, expected);
    }
}
