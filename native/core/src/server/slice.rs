//! How long a thread works under one hold of the order lock.

use std::time::{Duration, Instant};

/// How long a slice lasts. Its last step may exceed that.
const LENGTH: Duration = Duration::from_micros(100);

/// A slice of work. Insertions wait meanwhile.
pub(crate) struct Slice {
    end: Instant,
    has_begun: bool,
}

impl Slice {
    pub fn begin() -> Self {
        Slice {
            end: Instant::now() + LENGTH,
            has_begun: false,
        }
    }

    /// Whether there is time for another step. There always is for the first one.
    pub fn goes_on(&mut self) -> bool {
        !std::mem::replace(&mut self.has_begun, true) || !self.is_over()
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }
}
