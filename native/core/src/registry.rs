//! Which scopes there are, who holds them, and who may join one.

use crate::{janitor, ClientStore, Limits, Scope, ServerStore, Store};
use once_cell::sync::Lazy;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

static REGISTRY: Lazy<Mutex<Registry>> = Lazy::new(Mutex::default);

#[derive(Default)]
struct Registry {
    next: u64,
    open: HashMap<u64, Open>,
    /// The newest scope of each label: the one that may be joined.
    newest: HashMap<Box<[u8]>, u64>,
}

struct Open {
    scope: Arc<Scope>,
    references: usize,
    sockets: Vec<Box<[u8]>>,
}

/// Whether a new reference shares the scope that is open under its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// Shares it; opens one if there is none.
    IfOpen,
    /// Opens a new one, which takes over the label. The other stays with those who hold it.
    Never,
}

/// A hold on a scope. The scope ends when its last reference is dropped; the sessions are dropped by
/// the janitor, not by the thread that drops the reference.
pub struct Reference {
    number: u64,
    scope: Arc<Scope>,
    socket: Option<Box<[u8]>>,
}

// The scope's locks do not poison and its state is only changed by operations that leave it whole.
impl UnwindSafe for Reference {}
impl RefUnwindSafe for Reference {}

impl Reference {
    /// The scope held.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }
}

impl Drop for Reference {
    fn drop(&mut self) {
        if REGISTRY.lock().leave(self) {
            janitor::dispose(Arc::clone(&self.scope));
        }
    }
}

/// Opens a scope for server sessions under `label`, or joins the one open there. The `limits` of the
/// last one to open count for all. `socket` is any name for the listening socket; see [`sockets`].
pub fn open_server(label: &[u8], socket: Option<&[u8]>, join: Join, limits: Limits) -> Reference {
    let mut registry = REGISTRY.lock();
    if join == Join::IfOpen {
        if let Some(number) = registry.newest.get(label).copied() {
            if let Store::Server(store) = registry.open[&number].scope.store() {
                store.set_limits(limits);
                return registry.enter(number, socket);
            }
        }
    }
    let scope = Scope::new(label, Store::Server(ServerStore::new(limits)));
    registry.open(scope, socket)
}

/// Opens a scope for client sessions. It is never joined.
pub fn open_client(label: &[u8]) -> Reference {
    let scope = Scope::new(label, Store::Client(ClientStore::new()));
    REGISTRY.lock().open(scope, None)
}

/// The sockets of the references to the scope that may be joined under `label`.
pub fn sockets(label: &[u8]) -> Vec<Box<[u8]>> {
    let registry = REGISTRY.lock();
    match registry.newest.get(label) {
        Some(number) => registry.open[number].sockets.clone(),
        None => Vec::new(),
    }
}

/// All open scopes, the first opened first.
pub fn scopes() -> Vec<Arc<Scope>> {
    let registry = REGISTRY.lock();
    let mut open: Vec<_> = registry.open.iter().collect();
    open.sort_by_key(|(number, _)| **number);
    open.into_iter()
        .map(|(_, open)| Arc::clone(&open.scope))
        .collect()
}

impl Registry {
    fn open(&mut self, scope: Scope, socket: Option<&[u8]>) -> Reference {
        janitor::start();
        let number = self.next;
        self.next += 1;
        self.newest.insert(Box::from(scope.label()), number);
        let open = Open {
            scope: Arc::new(scope),
            references: 0,
            sockets: Vec::new(),
        };
        self.open.insert(number, open);
        self.enter(number, socket)
    }

    fn enter(&mut self, number: u64, socket: Option<&[u8]>) -> Reference {
        let open = self.open.get_mut(&number).expect("scope is open");
        let socket: Option<Box<[u8]>> = socket.map(Box::from);
        open.references += 1;
        open.sockets.extend(socket.clone());
        Reference {
            number,
            scope: Arc::clone(&open.scope),
            socket,
        }
    }

    /// Takes `reference` out; `true` if it was the last to its scope.
    fn leave(&mut self, reference: &Reference) -> bool {
        let Some(open) = self.open.get_mut(&reference.number) else {
            return false;
        };
        open.references -= 1;
        if open.references > 0 {
            if let Some(socket) = &reference.socket {
                if let Some(place) = open.sockets.iter().position(|other| other == socket) {
                    open.sockets.swap_remove(place);
                }
            }
            return false;
        }
        self.open.remove(&reference.number);
        if self.newest.get(reference.scope.label()) == Some(&reference.number) {
            self.newest.remove(reference.scope.label());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Secret, SessionKey};
    use std::time::{Duration, Instant};

    const LIMITS: Limits = Limits {
        max_bytes: 1_000_000,
        max_sessions: u64::MAX,
        lifetime_ms: 60_000,
    };

    fn server(reference: &Reference) -> &ServerStore {
        match reference.scope().store() {
            Store::Server(store) => store,
            Store::Client(_) => panic!("a client scope"),
        }
    }

    fn is_open(label: &[u8]) -> bool {
        scopes().iter().any(|scope| scope.label() == label)
    }

    #[test]
    fn joining_shares_and_a_new_scope_takes_the_label_over() {
        let first = open_server(b"share", Some(b"1"), Join::IfOpen, LIMITS);
        let second = open_server(b"share", Some(b"2"), Join::IfOpen, LIMITS);
        server(&first).insert(SessionKey::Id([1; 32]), Secret::new(b"s"), 0);
        assert_eq!(server(&second).sessions(), 1);
        assert_eq!(sockets(b"share").len(), 2);

        let third = open_server(b"share", Some(b"3"), Join::Never, LIMITS);
        assert_eq!(server(&third).sessions(), 0);
        assert_eq!(sockets(b"share"), [Box::from(&b"3"[..])]);

        drop(first);
        drop(second);
        assert_eq!(sockets(b"share"), [Box::from(&b"3"[..])]);
        drop(third);
        assert!(!is_open(b"share"));
        assert!(sockets(b"share").is_empty());
    }

    #[test]
    fn the_last_to_open_sets_the_limits() {
        let first = open_server(b"limits", None, Join::IfOpen, LIMITS);
        let limits = Limits {
            max_sessions: 7,
            ..LIMITS
        };
        let _second = open_server(b"limits", None, Join::IfOpen, limits);
        assert_eq!(server(&first).limits(), limits);
    }

    #[test]
    fn the_janitor_drops_the_sessions_of_an_ended_scope() {
        let reference = open_server(b"ends", None, Join::Never, LIMITS);
        let scope = Arc::clone(&reference.scope);
        for n in 0..200 {
            server(&reference).insert(SessionKey::Id([n; 32]), Secret::new(b"s"), 0);
        }
        drop(reference);
        let start = Instant::now();
        while scope.sessions() > 0 {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(scope.bytes(), 0);
    }
}
