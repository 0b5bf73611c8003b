use coarsetime::Instant;
use once_cell::sync::Lazy;
use std::time::{SystemTime, UNIX_EPOCH};

static START: Lazy<Instant> = Lazy::new(Instant::now);

/// What the clock shows when the library is first asked: room for sessions that were made before.
pub const BEGIN_MS: u64 = 366 * 24 * 60 * 60 * 1000;

/// Milliseconds since [`BEGIN_MS`] before this library was first asked: monotonic, meaningless outside this
/// process, and some milliseconds behind. Lifetimes are seconds, and each lookup asks.
pub fn now_ms() -> u64 {
    BEGIN_MS + START.elapsed().as_millis() + advanced_ms()
}

/// Seconds since 1970, by the system's clock: what certificates and revocation lists are dated by. It may be set back.
pub fn wall_s() -> u64 {
    #[cfg(any(test, fuzzing))]
    if let Some(wall_s) = set_wall::WALL_S.get() {
        return wall_s;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let wall_ms = since.map_or(0, |since| since.as_millis() as u64);
    (wall_ms + advanced_ms()) / 1000
}

/// The wall clock of a thread that tests.
#[cfg(any(test, fuzzing))]
pub(crate) mod set_wall {
    use std::cell::Cell;

    thread_local! {
        pub static WALL_S: Cell<Option<u64>> = const { Cell::new(None) };
    }
}

/// How far a test has put the clock forward.
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

    /// How far a test has put the clock forward.
    pub fn advanced_ms() -> u64 {
        ADVANCED_MS.load(SeqCst)
    }

    /// Puts the clock forward for everyone, and returns by how much it is by now.
    pub fn advance_ms(by_ms: u64) -> u64 {
        ADVANCED_MS.fetch_add(by_ms, SeqCst) + by_ms
    }
}
