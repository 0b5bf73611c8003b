//! How much is done under one hold of the order lock.

use std::time::{Duration, Instant};

/// How long a slice goes on. The step that it ends with comes on top.
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

    /// Whether there is time for another step. For the first one there always is.
    pub fn goes_on(&mut self) -> bool {
        !std::mem::replace(&mut self.has_begun, true) || !self.is_over()
    }

    pub fn is_over(&self) -> bool {
        Instant::now() >= self.end
    }
}
