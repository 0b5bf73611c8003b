#![allow(unsafe_code)]

use coarsetime::Instant;
use once_cell::sync::Lazy;
use std::time::Duration;

static START: Lazy<Instant> = Lazy::new(Instant::now);

/// What the clock shows at the first call. It leaves room for sessions that were made before.
pub const BEGIN_MS: u64 = 366 * 24 * 60 * 60 * 1000;

/// Monotonic time in milliseconds: [`BEGIN_MS`] at the first call. It means nothing outside this process. It may be some
/// milliseconds behind, because each lookup needs a fast clock and lifetimes are in seconds.
pub fn now_ms() -> u64 {
    BEGIN_MS + START.elapsed().as_millis() + advanced_ms()
}

/// Seconds since 1970, by the system's clock, as in certificates and revocation lists. It may be set back.
pub fn wall_s() -> u64 {
    #[cfg(any(test, fuzzing, feature = "testing"))]
    if let Some(wall_s) = set_wall::WALL_S.get() {
        return wall_s;
    }
    let wall_ms = since_1970().as_millis() as u64;
    (wall_ms + advanced_ms()) / 1000
}

/// Linux has a clock that is at most a tick (ten milliseconds) behind, and takes a fifth of the time to read. Each lookup of a
/// session with a certificate reads it.
#[cfg(target_os = "linux")]
fn since_1970() -> Duration {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the call writes to `now`, which stays 0 if the system does not have the clock.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME_COARSE, &mut now) };
    // Before 1970 counts as 1970.
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, now.tv_nsec as u32)
}

#[cfg(not(target_os = "linux"))]
fn since_1970() -> Duration {
    use std::time::{SystemTime, UNIX_EPOCH};
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// The wall clock of a test's thread.
#[cfg(any(test, fuzzing, feature = "testing"))]
pub(crate) mod set_wall {
    use std::cell::Cell;

    thread_local! {
        /// The result of [`wall_s`](super::wall_s) in this thread, for tests.
        pub static WALL_S: Cell<Option<u64>> = const { Cell::new(None) };
    }
}

/// How far a test has put the clock forward, in milliseconds.
#[cfg(not(feature = "testing"))]
pub const fn advanced_ms() -> u64 {
    0
}

#[cfg(feature = "testing")]
pub use moved::{advance_ms, advanced_ms};

#[cfg(feature = "testing")]
mod moved {
    use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

    static ADVANCED_MS: AtomicU64 = AtomicU64::new(0);

    /// How far a test has put the clock forward, in milliseconds.
    pub fn advanced_ms() -> u64 {
        ADVANCED_MS.load(SeqCst)
    }

    /// Puts the clock forward for the whole process, and returns by how much in all.
    pub fn advance_ms(by_ms: u64) -> u64 {
        ADVANCED_MS.fetch_add(by_ms, SeqCst) + by_ms
    }
}
