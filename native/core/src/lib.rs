//! The store behind Rekindle, without a word of Erlang.
//!
//! A [`Scope`] is a partition that no session leaves: the sessions of one listener, of a group of
//! listeners the operator named, or of one client manager. A scope holds either a [`ServerStore`],
//! which bounds and expires itself, or a [`ClientStore`], which keeps exactly what it is told.
//! Callers hold a scope through a [`Reference`]; when the last one is dropped the scope is handed to
//! the janitor thread, which also drops what has expired.
//!
//! Sessions are opaque bytes here, kept as [`Secret`]s: wiped when dropped, never printed.

#![deny(missing_docs)]
#![deny(unsafe_code)]

mod client_store;
mod clock;
mod counters;
mod janitor;
mod memory;
mod registry;
mod scope;
mod secret;
mod server_store;

pub use client_store::ClientStore;
pub use clock::now_ms;
pub use counters::{Counters, Counts};
pub use registry::{open_client, open_server, scopes, sockets, Join, Reference};
pub use scope::{Scope, Store};
pub use secret::Secret;
pub use server_store::{Limits, ServerStore, SessionKey};
