//! Locks, channels and pauses. Under `--cfg shuttle` a test chooses which thread runs next; see `tests/schedules.rs`.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::*};
use std::time::Duration;

#[cfg(not(shuttle))]
pub(crate) use {
    parking_lot::{Mutex, MutexGuard},
    std::{sync::mpsc, thread},
};

/// Unlocks, and lets waiting threads have the lock before the caller.
#[cfg(not(shuttle))]
pub(crate) fn unlock_fair<T>(guard: MutexGuard<T>) {
    MutexGuard::unlock_fair(guard);
}

#[cfg(shuttle)]
pub(crate) use {
    scheduled::{unlock_fair, Mutex},
    shuttle::{sync::mpsc, thread},
};

#[cfg(shuttle)]
mod scheduled {
    use shuttle::sync::MutexGuard;

    #[derive(Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);

    impl<T> Mutex<T> {
        pub fn new(value: T) -> Self {
            Mutex(shuttle::sync::Mutex::new(value))
        }

        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("no test panics with a lock held")
        }
    }

    pub(crate) fn unlock_fair<T>(guard: MutexGuard<T>) {
        drop(guard);
    }
}

#[cfg(not(shuttle))]
use std::thread_local;

#[cfg(shuttle)]
use shuttle::thread_local;

/// A number for this thread, which chooses its line in [`crate::lookups`].
pub(crate) fn line_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LINE: usize = NEXT.fetch_add(1, Relaxed);
    }
    // A thread that is ending has lost its number.
    LINE.try_with(|line| *line).unwrap_or(0)
}

/// How long a waiting thread sleeps after a few attempts, for an event that usually takes less than a microsecond.
const PAUSE: Duration = Duration::from_micros(50);

/// Waits for an event that wakes nobody: spins, then sleeps.
pub(crate) struct Pause(parking::Spin);

impl Pause {
    pub fn new() -> Self {
        Pause(parking::Spin::new())
    }

    pub fn pause(&mut self) {
        if !self.0.spin() {
            thread::sleep(PAUSE);
        }
    }
}

/// No thread has the lock. The value is 0, because a new page consists of zeros.
const UNLOCKED: u8 = 0;
const LOCKED: u8 = 1;
/// A thread has the lock, and others may be parked.
const AWAITED: u8 = 2;
const CLOSED: u8 = 3;

/// A lock of one byte at which waiters park. It can be closed before its page is given back.
pub(crate) struct RawLock(AtomicU8);

impl RawLock {
    /// Waits for the lock. `false` if it is closed.
    #[inline]
    pub fn lock(&self) -> bool {
        #[cfg(shuttle)]
        thread::yield_now();
        let state = self.0.compare_exchange(UNLOCKED, LOCKED, SeqCst, Acquire);
        state.is_ok() || self.wait_and_lock()
    }

    /// Whether no thread has the lock. Only for a thread that has announced itself; see [`crate::lookups`].
    #[inline]
    pub fn is_free(&self) -> bool {
        self.0.load(SeqCst) == UNLOCKED
    }

    /// Only for the thread that has the lock.
    #[inline]
    pub fn unlock(&self) {
        if self.0.swap(UNLOCKED, Release) == AWAITED {
            parking::unpark_one(&self.0);
        }
    }

    /// Only for the thread that has the lock. No thread gets it any more, and `lock` returns `false` to those that wait.
    pub fn close(&self) {
        if self.0.swap(CLOSED, AcqRel) == AWAITED {
            parking::unpark_all(&self.0);
        }
    }

    /// Unlocks the lock if it is closed.
    pub fn open(&self) {
        let _ = self.0.compare_exchange(CLOSED, UNLOCKED, AcqRel, Acquire);
    }

    #[cold]
    fn wait_and_lock(&self) -> bool {
        let mut spin = parking::Spin::new();
        loop {
            let state = self.0.load(Acquire);
            let next = match state {
                CLOSED => return false,
                LOCKED if spin.spin() => continue,
                // Another thread may be parked, and this one has to wake it.
                _ => AWAITED,
            };
            if self
                .0
                .compare_exchange(state, next, SeqCst, Acquire)
                .is_err()
            {
                continue;
            }
            if state == UNLOCKED {
                return true;
            }
            parking::park_while(&self.0, AWAITED);
            spin.reset();
        }
    }
}

#[cfg(not(shuttle))]
#[allow(unsafe_code)]
mod parking {
    use parking_lot_core::{park, ParkToken, UnparkToken};
    use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

    pub use parking_lot_core::SpinWait as Spin;

    fn key(byte: &AtomicU8) -> usize {
        byte as *const AtomicU8 as usize
    }

    /// Parks this thread, unless the byte has another value.
    pub fn park_while(byte: &AtomicU8, value: u8) {
        let is_still_so = || byte.load(Relaxed) == value;
        // SAFETY: the key is an address that this lock controls, and no function given here panics or parks.
        unsafe { park(key(byte), is_still_so, || {}, |_, _| {}, ParkToken(0), None) };
    }

    pub fn unpark_one(byte: &AtomicU8) {
        // SAFETY: as above.
        unsafe { parking_lot_core::unpark_one(key(byte), |_| UnparkToken(0)) };
    }

    pub fn unpark_all(byte: &AtomicU8) {
        // SAFETY: as above.
        unsafe { parking_lot_core::unpark_all(key(byte), UnparkToken(0)) };
    }
}

/// The scheduler chooses before each attempt, and a waiting thread tries again.
#[cfg(shuttle)]
mod parking {
    use std::sync::atomic::AtomicU8;

    pub struct Spin;

    impl Spin {
        pub fn new() -> Self {
            Spin
        }

        pub fn spin(&mut self) -> bool {
            false
        }

        pub fn reset(&mut self) {}
    }

    pub fn park_while(_byte: &AtomicU8, _value: u8) {
        shuttle::thread::yield_now();
    }

    pub fn unpark_one(_byte: &AtomicU8) {}

    pub fn unpark_all(_byte: &AtomicU8) {}
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    #[test]
    fn one_at_a_time_has_the_lock() {
        let rounds = if cfg!(miri) { 20 } else { 10_000 };
        let (lock, sum) = (RawLock(AtomicU8::new(0)), AtomicUsize::new(0));
        thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..rounds {
                        assert!(lock.lock());
                        let before = sum.load(Relaxed);
                        if before % 100 == 0 {
                            thread::yield_now();
                        }
                        sum.store(before + 1, Relaxed);
                        lock.unlock();
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * rounds);
    }

    #[test]
    fn waiting_threads_learn_that_it_is_closed() {
        let lock = RawLock(AtomicU8::new(0));
        assert!(lock.lock());
        thread::scope(|threads| {
            let waiting: Vec<_> = (0..3).map(|_| threads.spawn(|| lock.lock())).collect();
            thread::sleep(Duration::from_millis(50));
            lock.close();
            assert!(waiting.into_iter().all(|thread| !thread.join().unwrap()));
        });
        assert!(!lock.lock());
        lock.open();
        assert!(lock.lock());
        // Only what is closed is opened.
        lock.open();
        assert_eq!(lock.0.load(Relaxed), LOCKED);
    }
}
