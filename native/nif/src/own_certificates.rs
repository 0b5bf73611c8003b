//! The certificates that a listener sends to its clients. They are a field of all its sessions, and kept once for all
//! templates.

#![allow(unsafe_code)]

use crate::words::{make_copy, Word};
use foldhash::quality::FixedState;
use once_cell::sync::Lazy;
use rustler::env::OwnedEnv;
use rustler::{Env, Term};
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// About how many bytes an environment takes beside its terms, and a binary beside its bytes.
const ENVIRONMENT_BYTES: usize = 3584;
const BINARY_BYTES: usize = 64;

/// How many words a list cell takes on a heap, together with the reference to its binary.
const WORDS_PER_CERTIFICATE: usize = 12;

/// The lists in use, by hash. Different lists can have the same hash.
static KNOWN: Lazy<Mutex<HashMap<u64, Vec<Weak<OwnCertificates>>>>> = Lazy::new(Mutex::default);

/// A list of binaries.
pub struct OwnCertificates {
    /// A term in `_env`. The bytes are there as well.
    list: usize,
    certificates: Box<[&'static [u8]]>,
    hash: u64,
    _env: OwnedEnv,
}

// SAFETY: nothing changes the list after it is made. `enif_make_copy` reads it without touching its environment, and writes
// only to the reference counts of binaries, which are atomic.
unsafe impl Sync for OwnCertificates {}
// SAFETY: an environment that belongs to no process may be freed by any thread.
unsafe impl Send for OwnCertificates {}

impl OwnCertificates {
    /// The list, kept once. `None` for a term that is no list of binaries, or empty.
    pub fn keep<'a>(env: Env<'a>, list: Word<'a>) -> Option<Arc<Self>> {
        let hash = hash(env, list)?;
        // Dropped after the lock: the last holder of a list takes the lock when it drops it.
        let alive: Vec<Arc<Self>>;
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let alike = known.entry(hash).or_default();
        alive = alike.iter().filter_map(Weak::upgrade).collect();
        if let Some(found) = alive.iter().find(|other| other.is(env, list)) {
            return Some(Arc::clone(found));
        }
        let made = Arc::new(Self::copy(list.term(env), hash));
        alike.push(Arc::downgrade(&made));
        Some(made)
    }

    fn copy(list: Term, hash: u64) -> Self {
        let owned = OwnedEnv::new();
        let (list, certificates) = owned.run(|env| {
            let list = Word::of(list.in_env(env));
            let bytes = list.cells(env).filter_map(|element| element.bytes(env));
            // SAFETY: the bytes live as long as the environment, which is dropped together with the references to them.
            let bytes = bytes.map(|bytes| unsafe { &*std::ptr::from_ref(bytes) });
            (list.raw(), bytes.collect())
        });
        OwnCertificates {
            list,
            certificates,
            hash,
            _env: owned,
        }
    }

    /// Whether they are the elements of `list`.
    pub fn is<'a>(&self, env: Env<'a>, list: Word<'a>) -> bool {
        let mut elements = list.cells(env);
        let is_next = |known: &&[u8]| {
            let next = elements.next().and_then(|element| element.bytes(env));
            next.is_some_and(|bytes| is_same(known, bytes))
        };
        self.certificates.iter().all(is_next) && elements.is_at_end()
    }

    /// Makes the list in `env`. It shares the binaries' bytes.
    pub fn make<'a>(&self, env: Env<'a>) -> Word<'a> {
        // SAFETY: the list lives as long as this.
        make_copy(env, unsafe { Word::new(self.list) })
    }

    /// Bytes that they take once.
    pub fn bytes(&self) -> usize {
        let each = self.certificates.iter();
        ENVIRONMENT_BYTES + each.map(|bytes| BINARY_BYTES + bytes.len()).sum::<usize>()
    }

    /// Words that a copy of the list takes on a process's heap.
    pub fn heap_words(&self) -> usize {
        WORDS_PER_CERTIFICATE * self.certificates.len()
    }
}

impl Drop for OwnCertificates {
    fn drop(&mut self) {
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(alike) = known.get_mut(&self.hash) {
            alike.retain(|other| other.strong_count() > 0);
            if alike.is_empty() {
                known.remove(&self.hash);
            }
        }
    }
}

/// A hash of a non-empty list of binaries, from the end of each, which differs most.
pub fn hash<'a>(env: Env<'a>, list: Word<'a>) -> Option<u64> {
    let mut hasher = FixedState::default().build_hasher();
    let mut elements = list.cells(env);
    for element in &mut elements {
        let bytes = element.bytes(env)?;
        let end = &bytes[bytes.len().saturating_sub(16)..];
        (bytes.len(), end).hash(&mut hasher);
    }
    let is_list = elements.is_at_end() && !list.is_empty_list(env);
    is_list.then(|| hasher.finish())
}

/// Whether the bytes are equal. Mostly they are the same, because processes share large binaries.
fn is_same(one: &[u8], other: &[u8]) -> bool {
    std::ptr::eq(one, other) || one == other
}
