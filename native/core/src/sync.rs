//! What threads wait for each other with. Under `--cfg shuttle` a test chooses who goes first; see
//! `tests/schedules.rs`.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::*};
use std::time::Duration;

#[cfg(not(shuttle))]
pub(crate) use {
    parking_lot::{Mutex, MutexGuard},
    std::{sync::mpsc, thread},
};

/// Unlocks for whoever waits, before the caller can lock again.
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

/// A number for this thread, for it to have a line of its own in [`crate::lookups`].
pub(crate) fn line_of_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static LINE: usize = NEXT.fetch_add(1, Relaxed);
    }
    // A thread that is ending has none any more.
    LINE.try_with(|line| *line).unwrap_or(0)
}

/// How long to sleep for what takes less than a microsecond, if it is not there after a few looks.
const PAUSE: Duration = Duration::from_micros(50);

/// For what cannot wake who waits for it.
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

/// Nobody has it. A lock is made of zeros, as a page from the system is.
const UNLOCKED: u8 = 0;
const LOCKED: u8 = 1;
/// Somebody has it, and somebody may be parked.
const AWAITED: u8 = 2;
const CLOSED: u8 = 3;

/// A lock of one byte that waiters park at. It can be closed, before the page that it lies in is given back.
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

    /// Whether nobody has it: for who has announced himself to those who take it, see [`crate::lookups`].
    #[inline]
    pub fn is_free(&self) -> bool {
        self.0.load(SeqCst) == UNLOCKED
    }

    /// For whoever has the lock.
    #[inline]
    pub fn unlock(&self) {
        if self.0.swap(UNLOCKED, Release) == AWAITED {
            parking::unpark_one(&self.0);
        }
    }

    /// For whoever has the lock: nobody gets it any more, and those who wait are told.
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
                // Another one may be parked, and has to be woken by this one.
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

    /// Until somebody unparks this thread, or at once if the byte is another one.
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

/// The scheduler is asked before each try, and those who wait ask again.
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
    fn those_who_wait_are_told_that_it_is_closed() {
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
