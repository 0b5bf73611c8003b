//! The journal of a scope: sessions that are stored and revocations are appended, sealed, to a log, and what
//! is in the log is put into the scope's store, at the start and, where others write to it as well, all the time.

#![deny(missing_docs)]
#![deny(unsafe_code)]

mod clock;
#[cfg(not(fuzzing))]
mod folder;
mod journal;
mod keys;
mod log;
mod portable;
mod queue;
mod record;
mod revocations;
mod status;
#[cfg(any(test, fuzzing))]
mod testing;
#[cfg(not(fuzzing))]
mod valkey;

#[cfg(not(fuzzing))]
pub use folder::{Folder, FolderReader, FolderWriter};
#[cfg(fuzzing)]
pub use journal::hostile;
pub use journal::{Journal, Options};
pub use keys::KeyFile;
pub use log::{Lane, LogError, LogReader, LogWriter, Record};
pub use portable::{Content, Portable};
pub use record::Skipped;
pub use revocations::Wanted;
pub use status::{take_events, Event, Happened, Report};
#[cfg(not(fuzzing))]
pub use valkey::{Password, ValkeyConfig, ValkeyReader, ValkeyWriter};
