//! What threads wait for each other with. Under `--cfg shuttle` a test chooses who goes first; see
//! `tests/schedules.rs`.

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
