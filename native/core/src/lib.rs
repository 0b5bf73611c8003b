//! The store behind Rekindle. It knows nothing of Erlang.
//!
//! A [`Scope`] is a partition that no session leaves: the sessions of one listener, of a group of listeners that the
//! operator named, or of one client manager. A scope has either a [`ServerStore`], which bounds and expires its sessions, or a
//! [`ClientStore`], which keeps exactly what its caller stores. A [`Registry`] opens scopes. Callers hold them through
//! [`Reference`]s. When the last one is dropped, the registry's janitor thread drops the sessions; it also drops those that
//! have expired.
//!
//! Sessions are opaque bytes here, wiped when dropped and never printed. The store keeps the common parts of a server's
//! sessions once, as the caller's type `T`; see [`Pattern`].

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
pub use clock::{advance_ms, set_wall::WALL_S};
pub use clock::{advanced_ms, now_ms, wall_s, BEGIN_MS};
pub use counters::{Counters, Counts, Refusal};
pub use memory::trim;
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
pub use trust::{CertificateMiss, IssuerHash, IssuerLists, Known, Lists, Trust};
pub use x509::{canonical_name, is_canonical, is_same_name, issuer_and_serial, seconds};
