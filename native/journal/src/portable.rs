//! What sessions have in common, as far as it has to leave the process.

use crate::record::{content_hash, ContentHash};
use rekindle_core::{Held, ServerStore};
use std::sync::Arc;

/// A template as bytes, without any secret in it.
pub struct Content {
    hash: ContentHash,
    bytes: Box<[u8]>,
}

impl Content {
    /// The content of a template.
    pub fn new(bytes: Vec<u8>) -> Self {
        Content {
            hash: content_hash(&bytes),
            bytes: bytes.into(),
        }
    }

    /// What sessions refer to it by.
    pub fn hash(&self) -> &ContentHash {
        &self.hash
    }

    /// The bytes themselves.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// What sessions have in common, where it can be written and read again in another process.
pub trait Portable: Sized + Send + Sync + 'static {
    /// The template as bytes.
    fn content(&self) -> &Arc<Content>;

    /// The template that these bytes stand for, in a store. `None` if they stand for none that can be used
    /// here, or the store has too many.
    fn intern<'a>(store: &'a ServerStore<Self>, content: &[u8]) -> Option<Held<'a, Self>>;
}
