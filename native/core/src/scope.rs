use crate::{memory, ClientStore, Counters, ServerStore};

/// Most sessions dropped under one hold of a lock.
const SLICE: usize = 256;

/// Slices after which the memory of what was dropped is given back.
const SLICES_A_GIVING: usize = 16;

/// A partition that no session leaves, and what it is called.
pub struct Scope {
    label: Box<[u8]>,
    store: Store,
}

/// What a scope holds.
pub enum Store {
    /// Sessions of one or more listeners.
    Server(ServerStore),
    /// Sessions of one client manager.
    Client(ClientStore),
}

impl Scope {
    pub(crate) fn new(label: &[u8], store: Store) -> Self {
        Scope {
            label: Box::from(label),
            store,
        }
    }

    /// The name the scope was opened with, in the caller's encoding.
    pub fn label(&self) -> &[u8] {
        &self.label
    }

    /// The sessions.
    pub fn store(&self) -> &Store {
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

    /// Drops what has had its time.
    pub(crate) fn expire(&self, now_ms: u64) {
        match &self.store {
            Store::Server(store) => while store.expire(now_ms, SLICE) == SLICE {},
            Store::Client(store) => store.expire(now_ms),
        }
    }

    /// Drops everything. Takes about a second for a million sessions: not for a scheduler's thread.
    pub fn clear(&self) {
        match &self.store {
            Store::Client(store) => store.clear(),
            Store::Server(store) => {
                for slice in 1.. {
                    let dropped = store.clear(SLICE);
                    if slice % SLICES_A_GIVING == 0 || dropped < SLICE {
                        memory::give_back();
                    }
                    if dropped < SLICE {
                        break;
                    }
                }
            }
        }
    }
}
