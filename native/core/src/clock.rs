use coarsetime::Instant;
use once_cell::sync::Lazy;

static START: Lazy<Instant> = Lazy::new(Instant::now);

/// What the clock shows when the library is first asked: room for sessions that were made before.
pub const BEGIN_MS: u64 = 366 * 24 * 60 * 60 * 1000;

/// Milliseconds since [`BEGIN_MS`] before this library was first asked: monotonic, meaningless outside this
/// process, and some milliseconds behind. Lifetimes are seconds, and each lookup asks.
pub fn now_ms() -> u64 {
    BEGIN_MS + START.elapsed().as_millis() + advanced_ms()
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
