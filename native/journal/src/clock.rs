//! The time. A test can move the clocks of its own thread.

use rekindle_core as core;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds by the stores' clock.
pub fn now_ms() -> u64 {
    core::now_ms() + moved().0
}

/// Milliseconds since 1970.
pub fn wall_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let wall_ms = since.map_or(0, |since| since.as_millis() as u64);
    (wall_ms + core::advanced_ms()).saturating_add_signed(moved().1)
}

/// A precise time, for waits.
pub fn instant() -> Instant {
    Instant::now() + Duration::from_millis(moved().0)
}

#[cfg(not(test))]
const fn moved() -> (u64, i64) {
    (0, 0)
}

#[cfg(test)]
use own::moved;
#[cfg(test)]
pub use own::set_moved;

#[cfg(test)]
mod own {
    use std::cell::Cell;

    thread_local! {
        static MOVED: Cell<(u64, i64)> = const { Cell::new((0, 0)) };
    }

    pub fn moved() -> (u64, i64) {
        MOVED.get()
    }

    /// Puts this thread's clocks forward. The wall clock may also go back.
    pub fn set_moved(now_ms: u64, wall_ms: i64) {
        MOVED.set((now_ms, wall_ms));
    }
}
