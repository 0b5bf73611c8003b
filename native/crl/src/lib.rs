//! Revocation lists: read from files and folders by a thread of their own, and again when these change.
//!
//! What is known of them goes to the stores as [`rekindle_core::Lists`], whose lookups wait for nothing here. The lists'
//! signatures are not checked: who could change these files could change the list that the listener reads as well, and
//! an entry that should not be there costs one full handshake.

#![deny(missing_docs)]
#![deny(unsafe_code)]

mod list;
mod merge;
mod source;
#[cfg(test)]
mod testing;
mod watch;

pub use list::{parse, List, Revoked};
pub use watch::{are_any_open, open, take_events, Event, FileStatus, Happened, Status};
