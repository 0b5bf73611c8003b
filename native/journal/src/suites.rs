//! The cipher suites that sessions from the log may have.

use crate::record::Skipped;
use std::collections::HashSet;

/// A cipher suite, as handshakes have it.
pub type Suite = [u8; 2];

/// The suites that the listeners of a scope allow.
#[derive(Default)]
pub(crate) struct Suites {
    /// `None` if all are allowed.
    allowed: Option<HashSet<Suite>>,
    /// Other suites, of sessions that were left out or dropped. If one is allowed later, the log is read again.
    left_out: HashSet<Suite>,
    /// How many such sessions were not reported yet.
    unreported: u64,
    /// Whether sessions were dropped from the store. This journal may have written some of them.
    has_dropped: bool,
}

impl Suites {
    /// Sets the allowed suites. Returns whether sessions were left out that may now be read.
    pub fn allow(&mut self, allowed: Option<HashSet<Suite>>) -> bool {
        let former = self.left_out.len();
        self.left_out
            .retain(|suite| (allowed.as_ref()).is_some_and(|allowed| !allowed.contains(suite)));
        self.allowed = allowed;
        self.left_out.len() < former
    }

    /// Notes that this many sessions were dropped, and suites that they may have.
    pub fn note_dropped(&mut self, dropped: u64, suites: Vec<Suite>) {
        self.left_out.extend(suites);
        self.unreported += dropped;
        self.has_dropped |= dropped > 0;
    }

    /// Whether a replay has to read the journal's own sessions as well.
    pub fn has_dropped(&self) -> bool {
        self.has_dropped
    }

    /// How many sessions were left out or dropped since the last call.
    pub fn report(&mut self) -> u64 {
        std::mem::take(&mut self.unreported)
    }

    /// Whether a session with this suite may be put into the store. If not, it counts as left out. A session whose suite
    /// is not known may be put there.
    pub fn check(&mut self, suite: Option<Suite>) -> Result<(), Skipped> {
        let allowed = self.allowed.as_ref();
        match suite.filter(|suite| allowed.is_some_and(|allowed| !allowed.contains(suite))) {
            Some(suite) => {
                self.left_out.insert(suite);
                self.unreported += 1;
                Err(Skipped::Suite)
            }
            None => Ok(()),
        }
    }
}
