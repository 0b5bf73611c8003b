//! Templates in the form in which they leave the process.

use crate::record::{content_hash, ContentHash};
use crate::suites::Suite;
use rekindle_core::{Held, ServerStore};
use std::sync::Arc;

/// A template as bytes, without any secret in it.
pub struct EncodedTemplate {
    hash: ContentHash,
    bytes: Arc<[u8]>,
}

impl EncodedTemplate {
    /// Wraps the content of a template.
    pub fn new(bytes: Vec<u8>) -> Self {
        EncodedTemplate {
            hash: content_hash(&bytes),
            bytes: bytes.into(),
        }
    }

    /// The hash by which sessions refer to it.
    pub fn hash(&self) -> &ContentHash {
        &self.hash
    }

    /// The bytes themselves.
    pub fn bytes(&self) -> &Arc<[u8]> {
        &self.bytes
    }
}

/// Converts a template of the store to bytes and back, for another process.
pub trait TemplateCodec: Sized + Send + Sync + 'static {
    /// The template as bytes.
    fn encoded(&self) -> &Arc<EncodedTemplate>;

    /// The cipher suite of its sessions, if it is known.
    fn suite(&self) -> Option<Suite>;

    /// The template for these bytes, in a store. `None` if they make no template that can be used here, or the store
    /// has too many.
    fn intern<'a>(store: &'a ServerStore<Self>, content: &[u8]) -> Option<Held<'a, Self>>;
}
