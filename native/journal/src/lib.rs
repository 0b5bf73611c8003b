//! The journals of a node's scopes. A journal seals sessions and revocations and appends them to a log. At the start it
//! puts what is in the log into the scope's store; if other nodes write to the log as well, it goes on doing so.

mod backoff;
mod clock;
mod digest_table;
mod folder_thread;
mod follow;
#[cfg(any(test, fuzzing))]
pub mod hostile;
mod hub;
mod journal;
mod keys;
#[cfg(test)]
mod model;
mod node_memory;
mod origin;
mod queue;
mod reader;
mod record;
mod references;
mod replay;
mod revocations;
mod shared;
mod status;
mod suites;
mod target;
mod template;
#[cfg(any(test, fuzzing))]
mod testing;
#[cfg(test)]
mod tests;
mod writer;

pub use hub::Hub;
pub use journal::{drop_sessions, revoke, Journal, Revoked};
pub use keys::KeyFile;
pub use record::Skipped;
pub use revocations::{Knowledge, Known, RevocationId};
pub use shared::Options;
pub use status::{take_events, Event, EventKind, Report};
pub use suites::Suite;
pub use target::{CertificateSelector, Target};
pub use template::{EncodedTemplate, TemplateCodec};
