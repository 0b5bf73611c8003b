//! How long to wait after a failure.

use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(2);

/// Waits that double from one failure to the next.
#[derive(Default)]
pub(crate) struct Backoff {
    next: Option<Duration>,
    until: Option<Instant>,
}

impl Backoff {
    /// Whether another try may be made.
    pub fn is_over(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() >= until)
    }

    /// How long to wait until then.
    pub fn left(&self) -> Duration {
        self.until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }

    /// Notes how a try went.
    pub fn note(&mut self, is_ok: bool) {
        if is_ok {
            *self = Backoff::default();
            return;
        }
        let wait = self.next.unwrap_or(FIRST);
        self.next = Some(LAST.min(2 * wait));
        self.until = Some(Instant::now() + wait);
    }
}
