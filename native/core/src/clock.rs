use once_cell::sync::Lazy;
use std::time::Instant;

static START: Lazy<Instant> = Lazy::new(Instant::now);

/// Milliseconds since this library was first asked: monotonic, meaningless outside this process.
pub fn now_ms() -> u64 {
    START.elapsed().as_millis() as u64
}
