use crate::sync::thread;
use crate::{ClientStore, Counters, ServerStore};
use once_cell::sync::OnceCell;
use std::any::Any;
use std::time::Duration;

/// Most sessions dropped under one hold of a lock.
const SLICE: usize = 256;

/// What insertions have between two slices.
const PAUSE: Duration = Duration::from_millis(1);

/// A partition that no session leaves, and what it is called.
pub struct Scope<T> {
    number: u64,
    label: Box<[u8]>,
    store: Store<T>,
    attached: OnceCell<Box<dyn Any + Send + Sync>>,
}

/// What a scope holds.
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

    /// Drops what has had its time, and what exceeds a bound.
    pub(crate) fn tidy(&self, now_ms: u64) {
        match &self.store {
            Store::Server(store) => {
                in_slices(|| store.expire(now_ms, SLICE) == SLICE);
                store.trim();
                // What the index no longer needs is given back on the way, or sessions would go for it.
                in_slices(|| {
                    let is_more = store.shrink(now_ms, SLICE) > 0;
                    if is_more {
                        store.trim();
                    }
                    is_more
                });
            }
            Store::Client(store) => store.expire(now_ms),
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

/// Works while a slice leaves more to do. Without pauses, those who wait for the lock would
/// hardly get it between two slices.
fn in_slices(slice: impl Fn() -> bool) {
    while slice() {
        thread::sleep(PAUSE);
    }
}
