//! The journals of a node's scopes: sessions and revocations are appended, sealed, to a log, and what is in the log is
//! put into the scope's store, at the start and, if other nodes write to it as well, all the time.

#![deny(missing_docs)]
#![deny(unsafe_code)]

mod backoff;
mod clock;
mod follow;
mod hub;
mod journal;
mod keys;
mod node_memory;
mod queue;
mod reader;
mod record;
mod replay;
mod revocations;
mod shared;
mod status;
mod target;
mod template;
mod writer;

pub use hub::Hub;
pub use journal::{revoke, Journal, Revoked};
pub use keys::KeyFile;
pub use record::Skipped;
pub use revocations::{Knowledge, Known, RevocationId};
pub use shared::Options;
pub use status::{take_events, Event, EventKind, Report};
pub use target::{CertificateSelector, Target};
pub use template::{EncodedTemplate, TemplateCodec};
