//! The open scopes, who holds them, and who may join one.

use crate::janitor::Janitor;
use crate::sync::Mutex;
use crate::{ClientStore, Limits, Scope, ServerStore, Store};
use std::collections::HashMap;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

/// The open scopes. A registry lives as long as the process, because references point to it.
pub struct Registry<T: 'static> {
    table: Mutex<Table<T>>,
    janitor: Janitor<T>,
}

struct Table<T> {
    next: u64,
    open: HashMap<u64, Open<T>>,
    /// The newest scope of each name, which callers may join.
    newest: HashMap<Box<[u8]>, u64>,
}

struct Open<T> {
    scope: Arc<Scope<T>>,
    references: usize,
    sockets: Vec<Box<[u8]>>,
}

/// Whether a new reference shares the scope that is open under its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Join {
    /// Shares it; opens one if there is none.
    IfOpen,
    /// Opens a new one, which takes the name over. The other one stays with its holders.
    Never,
}

/// A hold on a scope. The scope ends when its last reference is dropped. The janitor then drops the sessions, not the thread
/// that drops the reference.
pub struct Reference<T: Send + Sync + 'static> {
    registry: &'static Registry<T>,
    scope: Arc<Scope<T>>,
    socket: Option<Box<[u8]>>,
}

// The scope's locks do not poison, and each operation leaves its state whole.
impl<T: Send + Sync> UnwindSafe for Reference<T> {}
impl<T: Send + Sync> RefUnwindSafe for Reference<T> {}

impl<T: Send + Sync> Reference<T> {
    /// The scope held.
    pub fn scope(&self) -> &Scope<T> {
        &self.scope
    }
}

impl<T: Send + Sync> Drop for Reference<T> {
    fn drop(&mut self) {
        if self.registry.table.lock().leave(self) {
            self.registry.janitor.dispose(Arc::clone(&self.scope));
        }
    }
}

impl<T: Send + Sync> Registry<T> {
    /// No scope is open.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Registry {
            table: Mutex::new(Table {
                next: 0,
                open: HashMap::new(),
                newest: HashMap::new(),
            }),
            janitor: Janitor::new(),
        }
    }

    /// Returns a reference to a scope for server sessions called `name`: to the open one or to a new one, as `join` says. The
    /// scope then has these limits. `socket` is any name for the listening socket; see [`sockets`](Self::sockets).
    pub fn open_server(
        &'static self,
        name: &[u8],
        socket: Option<&[u8]>,
        join: Join,
        limits: Limits,
    ) -> Reference<T> {
        self.janitor.start(self);
        let mut table = self.table.lock();
        let number = match (join, table.newest.get(name)) {
            (Join::IfOpen, Some(number)) => *number,
            _ => table.open(name, Store::Server(ServerStore::new(limits))),
        };
        let reference = table.enter(self, number, socket);
        if let Store::Server(store) = reference.scope.store() {
            store.set_limits(limits);
        }
        reference
    }

    /// Opens a scope for client sessions, which nobody can join.
    pub fn open_client(&'static self, name: &[u8]) -> Reference<T> {
        self.janitor.start(self);
        let mut table = self.table.lock();
        let number = table.open(name, Store::Client(ClientStore::new()));
        table.enter(self, number, None)
    }

    /// Sets new limits of a server scope, and wakes the janitor. `false` if there is no such scope.
    pub fn set_limits(&self, number: u64, limits: Limits) -> bool {
        let Some(scope) = self.scope(number) else {
            return false;
        };
        let Store::Server(store) = scope.store() else {
            return false;
        };
        store.set_limits(limits);
        self.janitor.look_after(scope);
        true
    }

    /// The sockets of all references to the scope that a caller may join under `name`.
    pub fn sockets(&self, name: &[u8]) -> Vec<Box<[u8]>> {
        let table = self.table.lock();
        match table.newest.get(name) {
            Some(number) => table.open[number].sockets.clone(),
            None => Vec::new(),
        }
    }

    /// The open scope of that number.
    pub fn scope(&self, number: u64) -> Option<Arc<Scope<T>>> {
        let table = self.table.lock();
        Some(Arc::clone(&table.open.get(&number)?.scope))
    }

    /// All open scopes, in the order in which they were opened.
    pub fn scopes(&self) -> Vec<Arc<Scope<T>>> {
        let table = self.table.lock();
        let mut open: Vec<_> = table.open.iter().collect();
        open.sort_by_key(|(number, _)| **number);
        open.into_iter()
            .map(|(_, open)| Arc::clone(&open.scope))
            .collect()
    }
}

impl<T: Send + Sync> Table<T> {
    fn open(&mut self, name: &[u8], store: Store<T>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.newest.insert(Box::from(name), number);
        let open = Open {
            scope: Arc::new(Scope::new(number, name, store)),
            references: 0,
            sockets: Vec::new(),
        };
        self.open.insert(number, open);
        number
    }

    fn enter(
        &mut self,
        registry: &'static Registry<T>,
        number: u64,
        socket: Option<&[u8]>,
    ) -> Reference<T> {
        let open = self.open.get_mut(&number).expect("scope is open");
        let socket: Option<Box<[u8]>> = socket.map(Box::from);
        open.references += 1;
        open.sockets.extend(socket.clone());
        Reference {
            registry,
            scope: Arc::clone(&open.scope),
            socket,
        }
    }

    /// Removes `reference`; `true` if it was the last one to its scope.
    fn leave(&mut self, reference: &Reference<T>) -> bool {
        let Some(open) = self.open.get_mut(&reference.scope.number()) else {
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
        self.open.remove(&reference.scope.number());
        if self.newest.get(reference.scope.name()) == Some(&reference.scope.number()) {
            self.newest.remove(reference.scope.name());
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{NewSession, SessionKey};
    use once_cell::sync::Lazy;
    use std::time::{Duration, Instant};

    const LIMITS: Limits = Limits {
        max_bytes: 1_000_000,
        max_sessions: u64::MAX,
        lifetime_ms: 60_000,
    };

    static REGISTRY: Lazy<Registry<()>> = Lazy::new(Registry::new);

    fn open_server(
        name: &[u8],
        socket: Option<&[u8]>,
        join: Join,
        limits: Limits,
    ) -> Reference<()> {
        REGISTRY.open_server(name, socket, join, limits)
    }

    fn sockets(name: &[u8]) -> Vec<Box<[u8]>> {
        REGISTRY.sockets(name)
    }

    fn insert(reference: &Reference<()>, n: u8) {
        let key = [n; 32];
        let session = NewSession {
            key: SessionKey::Id(&key),
            secret: &[0; 48],
            template: None,
            certificate: None,
            tail: b"",
        };
        server(reference).insert(session, crate::now_ms()).unwrap();
    }

    fn server(reference: &Reference<()>) -> &ServerStore<()> {
        match reference.scope().store() {
            Store::Server(store) => store,
            Store::Client(_) => panic!("a client scope"),
        }
    }

    fn is_open(name: &[u8]) -> bool {
        REGISTRY.scopes().iter().any(|scope| scope.name() == name)
    }

    #[test]
    fn joining_shares_and_a_new_scope_takes_the_name_over() {
        let first = open_server(b"share", Some(b"1"), Join::IfOpen, LIMITS);
        let second = open_server(b"share", Some(b"2"), Join::IfOpen, LIMITS);
        insert(&first, 1);
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
            insert(&reference, n);
        }
        drop(reference);
        let start = Instant::now();
        while scope.sessions() > 0 {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn the_janitor_drops_what_has_expired_and_what_is_too_much() {
        let limits = Limits {
            lifetime_ms: 1000,
            ..LIMITS
        };
        let expiring = open_server(b"expiring", None, Join::Never, limits);
        let shrinking = open_server(b"shrinking", None, Join::Never, LIMITS);
        for n in 0..100 {
            insert(&expiring, n);
            insert(&shrinking, n);
        }
        let narrower = Limits {
            max_sessions: 7,
            ..LIMITS
        };
        assert!(REGISTRY.set_limits(shrinking.scope().number(), narrower));
        let start = Instant::now();
        let expired = || server(&expiring).counters().read().expired;
        // A session counts as expired just after it is gone, and as evicted just before.
        while expired() < 100
            || server(&expiring).sessions() > 0
            || server(&shrinking).sessions() > 7
        {
            assert!(start.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(expired(), 100);
        assert_eq!(server(&shrinking).counters().read().evicted, 93);
    }
}
