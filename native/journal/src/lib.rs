//! The journal of a scope: sessions that are stored and revocations are appended, sealed, to a log, and what
//! is in the log is put into the scope's store, at the start and, where others write to it as well, all the time.

#![deny(missing_docs)]
#![deny(unsafe_code)]

mod log;

pub use log::{Lane, LogError, LogReader, LogWriter, Record};
