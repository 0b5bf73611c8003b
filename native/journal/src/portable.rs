//! What sessions have in common, as far as it has to leave the process.

use crate::clock::now_ms;
use crate::record::{content_hash, ContentHash};
use crate::revocations::{issuer, Wanted};
use rekindle_core::{ServerStore, Session, SessionKey};
use std::borrow::Cow;
use std::collections::HashSet;
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
    fn intern(store: &ServerStore<Self>, content: &[u8]) -> Option<Arc<Self>>;

    /// The client's certificate of a session, as DER, if it has one.
    fn certificate<'a>(session: &Session<'a, Self>) -> Option<Cow<'a, [u8]>>;
}

/// Sessions that a walk looks at in one go.
const SLICE: usize = 500;

/// Drops the sessions made with these certificates, and tells how many there were. Takes some seconds for a
/// million sessions: not for a scheduler's thread.
pub fn revoke<T: Portable>(store: &ServerStore<T>, wanted: &[Wanted]) -> u64 {
    let mut dropped = 0;
    for_each_certificate(store, |key, certificate| {
        if wanted.iter().any(|wanted| wanted.matches(certificate)) {
            dropped += u64::from(store.delete(key));
        }
    });
    dropped
}

/// The names, in DER, of the authorities whose certificates sessions were made with. Takes as long.
pub fn issuers<T: Portable>(store: &ServerStore<T>) -> HashSet<Box<[u8]>> {
    let mut names: HashSet<Box<[u8]>> = HashSet::new();
    for_each_certificate(store, |_, certificate| {
        if let Some((name, _)) = issuer(certificate) {
            if !names.contains(name) {
                names.insert(name.into());
            }
        }
    });
    names
}

fn for_each_certificate<T: Portable>(
    store: &ServerStore<T>,
    mut visit: impl FnMut(SessionKey, &[u8]),
) {
    enum Key {
        Id([u8; 32]),
        Other(Box<[u8]>),
    }
    let mut next = Some(0);
    while let Some(from) = next {
        // Copied, as the store is locked while they are met.
        let mut rows: Vec<(Key, Vec<u8>)> = Vec::new();
        next = store.page(from, SLICE, now_ms(), |listed| {
            if let Some(certificate) = T::certificate(&listed.session) {
                let key = match listed.key {
                    SessionKey::Id(id) => Key::Id(*id),
                    SessionKey::Other(key) => Key::Other(key.into()),
                };
                rows.push((key, certificate.into_owned()));
            }
        });
        for (key, certificate) in &rows {
            let key = match key {
                Key::Id(id) => SessionKey::Id(id),
                Key::Other(key) => SessionKey::Other(key),
            };
            visit(key, certificate);
        }
    }
}
