//! The store behind Rekindle, without a word of Erlang.
//!
//! A [`Scope`] is a partition that no session leaves: the sessions of one listener, of a group of
//! listeners the operator named, or of one client manager. A scope holds either a [`ServerStore`],
//! which bounds and expires itself, or a [`ClientStore`], which keeps exactly what it is told.
//! A [`Registry`] opens scopes. Callers hold them through [`Reference`]s; when the last one is dropped
//! the scope is handed to the registry's janitor thread, which also drops what has expired.
//!
//! Sessions are opaque bytes here: wiped when dropped, never printed. What many sessions of a server
//! have in common is the caller's type `T`, kept once; see [`Pattern`].

#![deny(missing_docs)]
#![deny(unsafe_code)]

mod client_store;
mod clock;
mod counters;
mod janitor;
mod lookups;
mod memory;
mod registry;
mod scope;
mod secret;
mod server;
mod sync;
mod trust;
mod x509;

pub use client_store::ClientStore;
#[cfg(feature = "testing")]
pub use clock::advance_ms;
pub use clock::{advanced_ms, now_ms, wall_s, BEGIN_MS};
pub use counters::{Counters, Counts, Refusal};
pub use memory::give_back;
pub use registry::{Join, Reference, Registry};
pub use scope::{Scope, Store};
pub use secret::Secret;
#[cfg(fuzzing)]
pub use server::model;
pub use server::{
    Arrival, Certificate, Held, Limits, Listed, Made, NewSession, Part, Pattern, Restored,
    Selector, ServerStore, Session, SessionKey, Template, TemplateName, CERTIFIED_PER_CERTIFICATE,
    LONGEST_LIFETIME_MS, MAX_SESSION_BYTES,
};
pub use trust::{Ended, IssuerHash, IssuerLists, Known, Lists, Trust};
pub use x509::{canonical_name, is_same_name, issuer_and_serial, seconds};
