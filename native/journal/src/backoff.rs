//! How long to wait after a failure.

use crate::clock::instant;
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_millis(100);
const LAST: Duration = Duration::from_secs(2);

/// Waiting times that double from one failure to the next.
#[derive(Default)]
pub(crate) struct Backoff {
    next: Option<Duration>,
    until: Option<Instant>,
}

impl Backoff {
    /// Whether the last try has failed.
    pub fn is_failing(&self) -> bool {
        self.next.is_some()
    }

    /// Whether another try may be made.
    pub fn is_over(&self) -> bool {
        self.until.is_none_or(|until| instant() >= until)
    }

    /// How long to wait until the next try.
    pub fn left(&self) -> Duration {
        self.until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(instant())
        })
    }

    /// Notes whether a try succeeded.
    pub fn note(&mut self, is_ok: bool) {
        if is_ok {
            *self = Backoff::default();
            return;
        }
        let wait = self.next.unwrap_or(FIRST);
        self.next = Some(LAST.min(2 * wait));
        self.until = Some(instant() + wait);
    }
}
