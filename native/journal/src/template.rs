//! What sessions have in common, as far as it has to leave the process.

use crate::record::{content_hash, ContentHash};
use rekindle_core::{Held, ServerStore};
use std::sync::Arc;

/// A template as bytes, without any secret in it.
pub struct EncodedTemplate {
    hash: ContentHash,
    bytes: Arc<[u8]>,
}

impl EncodedTemplate {
    /// The content of a template.
    pub fn new(bytes: Vec<u8>) -> Self {
        EncodedTemplate {
            hash: content_hash(&bytes),
            bytes: bytes.into(),
        }
    }

    /// What sessions refer to it by.
    pub fn hash(&self) -> &ContentHash {
        &self.hash
    }

    /// The bytes themselves.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }
}

/// What sessions have in common, where it can be written and read again in another process.
pub trait TemplateCodec: Sized + Send + Sync + 'static {
    /// The template as bytes.
    fn encoded(&self) -> &Arc<EncodedTemplate>;

    /// The template that these bytes stand for, in a store. `None` if they stand for none that can be used
    /// here, or the store has too many.
    fn intern<'a>(store: &'a ServerStore<Self>, content: &[u8]) -> Option<Held<'a, Self>>;
}
