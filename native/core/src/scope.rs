use crate::{ClientStore, Counters, ServerStore};
use once_cell::sync::OnceCell;
use std::any::Any;

/// Most sessions dropped under one hold of a lock.
const SLICE: usize = 128;

/// A partition that no session leaves, and what it is called.
pub struct Scope<T> {
    number: u64,
    label: Box<[u8]>,
    store: Store<T>,
    attached: OnceCell<Box<dyn Any + Send + Sync>>,
}

/// What a scope holds.
// There are few scopes, and a lookup would follow one more pointer.
#[allow(clippy::large_enum_variant)]
pub enum Store<T> {
    /// Sessions of one or more listeners.
    Server(ServerStore<T>),
    /// Sessions of one client manager.
    Client(ClientStore),
}

impl<T> Scope<T> {
    pub(crate) fn new(number: u64, label: &[u8], store: Store<T>) -> Self {
        Scope {
            number,
            label: Box::from(label),
            store,
            attached: OnceCell::new(),
        }
    }

    /// Gives the scope something that ends with it. `false` if it has something already.
    pub fn attach(&self, value: impl Any + Send + Sync) -> bool {
        self.attached.set(Box::new(value)).is_ok()
    }

    /// What was attached, if it is of this type.
    pub fn attached<A: Any>(&self) -> Option<&A> {
        self.attached.get()?.downcast_ref()
    }

    /// Tells this scope from all others of its registry, also from those under the same label.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The name the scope was opened with, in the caller's encoding.
    pub fn label(&self) -> &[u8] {
        &self.label
    }

    /// The sessions.
    pub fn store(&self) -> &Store<T> {
        &self.store
    }

    /// What happened in this scope.
    pub fn counters(&self) -> &Counters {
        match &self.store {
            Store::Server(store) => store.counters(),
            Store::Client(store) => store.counters(),
        }
    }

    /// How many sessions are held.
    pub fn sessions(&self) -> u64 {
        match &self.store {
            Store::Server(store) => store.sessions(),
            Store::Client(store) => store.sessions(),
        }
    }

    /// How many bytes are held.
    pub fn bytes(&self) -> u64 {
        match &self.store {
            Store::Server(store) => store.bytes(),
            Store::Client(store) => store.bytes(),
        }
    }

    /// Does a slice of what is to be done, and tells whether there is more: drops what has expired and what exceeds a
    /// bound, and gives memory back.
    pub(crate) fn tidy(&self, now_ms: u64) -> bool {
        match &self.store {
            Store::Server(store) => store.tidy(now_ms),
            Store::Client(store) => {
                store.expire(now_ms);
                false
            }
        }
    }

    /// Drops a slice of everything, and tells whether there is more.
    pub(crate) fn clear_slice(&self) -> bool {
        match &self.store {
            Store::Server(store) => store.clear(SLICE) == SLICE,
            Store::Client(store) => {
                store.clear();
                false
            }
        }
    }

    /// Drops everything, and tells how many sessions that were. Takes half a second for a million sessions:
    /// not for a scheduler's thread.
    pub fn clear(&self) -> u64 {
        match &self.store {
            Store::Client(store) => store.clear(),
            Store::Server(store) => {
                let mut dropped = 0;
                loop {
                    let slice = store.clear(SLICE);
                    dropped += slice as u64;
                    if slice < SLICE {
                        return dropped;
                    }
                }
            }
        }
    }
}
