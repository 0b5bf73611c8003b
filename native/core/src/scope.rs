use crate::{ClientStore, Counters, ServerStore};
use once_cell::sync::OnceCell;
use std::any::Any;

/// Most sessions dropped under one hold of a lock.
const SLICE: usize = 128;

/// A partition that no session leaves, and its name.
pub struct Scope<T> {
    number: u64,
    name: Box<[u8]>,
    store: Store<T>,
    attached: OnceCell<Box<dyn Any + Send + Sync>>,
}

/// The content of a scope.
// There are few scopes, and a lookup would follow one more pointer.
#[allow(clippy::large_enum_variant)]
pub enum Store<T> {
    /// Sessions of one or more listeners.
    Server(ServerStore<T>),
    /// Sessions of one client manager.
    Client(ClientStore),
}

impl<T> Scope<T> {
    pub(crate) fn new(number: u64, name: &[u8], store: Store<T>) -> Self {
        Scope {
            number,
            name: Box::from(name),
            store,
            attached: OnceCell::new(),
        }
    }

    /// Attaches a value that is dropped with the scope. `false` if the scope has one already.
    pub fn attach(&self, value: impl Any + Send + Sync) -> bool {
        self.attached.set(Box::new(value)).is_ok()
    }

    /// The attached value, if it has this type.
    pub fn attached<A: Any>(&self) -> Option<&A> {
        self.attached.get()?.downcast_ref()
    }

    /// A number that distinguishes this scope from all others of its registry, also from those with the same name.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The name the scope was opened with, in the caller's encoding.
    pub fn name(&self) -> &[u8] {
        &self.name
    }

    /// The sessions.
    pub fn store(&self) -> &Store<T> {
        &self.store
    }

    /// The events in this scope.
    pub fn counters(&self) -> &Counters {
        match &self.store {
            Store::Server(store) => store.counters(),
            Store::Client(store) => store.counters(),
        }
    }

    /// How many sessions the scope has.
    pub fn sessions(&self) -> u64 {
        match &self.store {
            Store::Server(store) => store.sessions(),
            Store::Client(store) => store.sessions(),
        }
    }

    /// How many bytes the sessions take.
    pub fn bytes(&self) -> u64 {
        match &self.store {
            Store::Server(store) => store.bytes(),
            Store::Client(store) => store.bytes(),
        }
    }

    /// Does a slice of the janitor's work, and returns whether there is more: drops sessions that have expired or exceed a
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

    /// Drops a slice of all sessions, and returns whether there are more.
    pub(crate) fn clear_slice(&self) -> bool {
        match &self.store {
            Store::Server(store) => store.clear(SLICE) == SLICE,
            Store::Client(store) => {
                store.clear();
                false
            }
        }
    }

    /// Drops all sessions, and returns how many. That takes half a second for a million sessions, so do not call it on a
    /// scheduler thread.
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
