use coarsetime::Instant;
use once_cell::sync::Lazy;

static START: Lazy<Instant> = Lazy::new(Instant::now);

/// Milliseconds since this library was first asked: monotonic, meaningless outside this process, and
/// some milliseconds behind. Lifetimes are seconds, and each lookup asks.
pub fn now_ms() -> u64 {
    START.elapsed().as_millis()
}
