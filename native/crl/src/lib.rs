//! Revocation lists. A thread reads them from files and folders, and reads them again when these change.
//!
//! The thread publishes the content to the stores as [`rekindle_core::Lists`], whose lookups never wait for it. Nothing
//! checks the lists' signatures: anyone who can change these files could also change the lists that the listener reads, and an
//! entry too many costs one full handshake.

mod list;
mod merge;
mod source;
#[cfg(test)]
mod testing;
mod watch;

pub use list::{parse, List, Revoked};
pub use merge::Held;
pub use watch::{are_any_open, open, take_events, Event, EventKind, FileStatus, Status};
