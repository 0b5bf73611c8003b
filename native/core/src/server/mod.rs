//! The sessions of a server scope.
//!
//! # Who may touch a slot
//!
//! The thread that holds the `order` lock fills a slot, and enters it into the index after that. From then on these rules hold:
//!
//! - Id, secret, tail, template and birth never change. The number of the certificate changes only while the slot's bucket is
//!   seized. A thread that visits the slot's bucket, or holds the `order` lock, may read them.
//! - `used` and `flags` are atomic. `flags` is written under the `order` lock only.
//! - The links to other sessions are read and written under the `order` lock only.
//!
//! A slot is freed or moved under the `order` lock, after it was removed from the index, or while its bucket is seized. So by
//! then no reader is left, and none can come.
//!
//! Locks are taken in this order: `order`, a bucket of an index, the entry of a certificate, the table of templates.
//!
//! # What is counted
//!
//! [`ServerStore::bytes`] is what the store has taken from the system: touched pages of slots, buckets of indexes, ghosts, and
//! the tables of templates and certificates. No insertion raises it above `max_bytes`: it moves sessions together, evicts some,
//! or is refused.

#![allow(unsafe_code)]

mod certificates;
mod ghosts;
mod index;
mod pages;
mod policy;
mod slab;
mod slice;
mod slot;
mod templates;

pub use certificates::{Certificate, Selector};
pub use templates::{Held, Made, Part, Pattern, Template, TemplateName};

use crate::counters::{Counters, Refusal};
use crate::lookups::Line;
use crate::sync::{unlock_fair, Mutex};
use crate::trust::{CertificateMiss, Claims, Trust, TrustCell};
use certificates::{Books, CertificatePtr, Certificates, Locked, Meant, Walk, MAX_CERTIFICATE};
use foldhash::quality::RandomState;
use ghosts::{Ghost, Ghosts};
use index::{Growth, Index, Number, Visit};
use once_cell::sync::OnceCell;
use policy::{age_of, code_of, Class, Links, Policy};
use slab::{slot_bytes, Directory, Kind, Move, Search, Slab, SlotRef, Step};
use slice::Slice;
use slot::{Content, SlotPtr, CERTIFIED, HAS_CERTIFICATE, KEPT};
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::Arc;
use templates::Templates;

/// The key of a server session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionKey<'a> {
    /// A session id as OTP makes it: 32 random bytes.
    Id(&'a [u8; 32]),
    /// Any other key, in the caller's encoding.
    Other(&'a [u8]),
}

/// A session to be stored. Not `Debug`, which would show the secret.
pub struct NewSession<'a, T> {
    /// The key.
    pub key: SessionKey<'a>,
    /// The master secret, or any bytes if there is no template.
    pub secret: &'a [u8; 48],
    /// The parts that it shares with other sessions.
    pub template: Option<Held<'a, T>>,
    /// The client's certificate, verified, in DER.
    pub certificate: Option<&'a [u8]>,
    /// All other parts, in the caller's encoding.
    pub tail: &'a [u8],
}

/// A session that was found. Not `Debug`, which would show the secret.
pub struct Session<'a, T> {
    /// The master secret, or any bytes if there is no template.
    pub secret: &'a [u8; 48],
    /// The parts that it shares with other sessions.
    pub template: Option<&'a Template<T>>,
    /// The client's certificate.
    pub certificate: Option<Certificate<'a>>,
    /// All other parts, in the caller's encoding.
    pub tail: &'a [u8],
}

/// A session in a list for an operator. Only `session.secret` is secret. Not `Debug`, which would show it.
pub struct Listed<'a, T> {
    /// The key.
    pub key: SessionKey<'a>,
    /// The session itself.
    pub session: Session<'a, T>,
    /// How long ago it was stored, in milliseconds, to within 10 ms.
    pub age_ms: u64,
    /// How old it was at its last lookup, in milliseconds, or up to a quarter less. `None` if it was never looked up.
    pub age_at_last_use_ms: Option<u64>,
    /// Whether it is one of the newest of its certificate.
    pub is_certified: bool,
    /// For how many seconds its certificate still lets it be resumed; 0 if it does not. `None` if the certificate sets no end.
    pub certificate_left_s: Option<u64>,
}

/// Bounds of one scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes to take from the system; see [`ServerStore::bytes`].
    pub max_bytes: u64,
    /// Most sessions to hold; `u64::MAX` means no bound.
    pub max_sessions: u64,
    /// How long a session may be resumed, in milliseconds, up to [`LONGEST_LIFETIME_MS`]. With 0 the store keeps nothing.
    pub lifetime_ms: u64,
}

/// The sessions of a server scope, bounded in bytes and in number, and never found after their lifetime.
///
/// When room is needed, the policy chooses among the anonymous sessions first. It chooses among the certified ones (the newest
/// of each client certificate) only if no others are left, or while the certified ones take more than half of the room.
///
/// `T` holds the parts that sessions share; see [`Pattern`].
pub struct ServerStore<T> {
    index: Index,
    directory: Directory,
    order: Mutex<Order>,
    templates: Templates<T>,
    certificates: OnceCell<Box<Certificates>>,
    ghosts: Ghosts,
    sessions: AtomicU64,
    certified: AtomicU64,
    certificates_held: AtomicU64,
    /// The count, without templates, when the order lock was last given up.
    bytes: AtomicU64,
    max_bytes: AtomicU64,
    max_sessions: AtomicU64,
    lifetime_ms: AtomicU64,
    trust: TrustCell,
    counters: Counters,
    hash_keys: RandomState,
    id_keys: [u64; 2],
}

// SAFETY: threads share slots as the module's documentation says, and slots hold nothing that is bound to a thread.
unsafe impl<T: Send + Sync> Send for ServerStore<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for ServerStore<T> {}

#[derive(Default)]
struct Order {
    slab: Slab,
    growth: Growth,
    books: Books,
    /// By class.
    policies: [Policy; 2],
    /// Bytes of the slots of certified sessions.
    certified_bytes: u64,
}

/// How a session that was made on another node, or earlier, arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Right after it was made. It is treated as a session of this store.
    Live,
    /// Made before this store was opened. It takes no other session's place.
    Replayed,
}

/// The result of storing a session that was made on another node, or earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// It was stored.
    Stored,
    /// The store had one under its id.
    Known,
    /// There was no room, it was too large, or it would have expired at once.
    NoRoom,
    /// Its client's certificate has expired.
    Expired,
    /// Its client's certificate is revoked.
    Revoked,
}

/// The longest lifetime, in milliseconds: 366 days. The store keeps no session longer, whatever the limit says.
pub const LONGEST_LIFETIME_MS: u64 = 366 * 24 * 60 * 60 * 1000;

/// How many of the newest sessions of one certificate count as certified. The rest count as anonymous: otherwise a client
/// with one valid certificate could fill the store.
pub const CERTIFIED_PER_CERTIFICATE: usize = 8;

/// Most bytes of a session without its certificate and its template.
pub const MAX_SESSION_BYTES: usize = 8 * 1024;

/// Certified sessions and certificates may take one part in this many of the room. Above that they are evicted first.
const CERTIFIED_SHARE: u64 = 2;

/// Most sessions that an insertion evicts or moves to make room for one slot.
const MAX_STEPS_PER_INSERT: usize = 512;

/// The unit of births and ages. 32 bits are enough for 497 days, and births wrap around.
const TICK_MS: u64 = 10;

/// A larger age means that the session's birth is in the future, by this clock.
const OLDEST_TICKS: u32 = (400 * 24 * 60 * 60 * 1000 / TICK_MS) as u32;

/// Free memory that the janitor leaves for new sessions: one part in this many of all, and a MiB.
const SPARE_SHARE: usize = 8;
const SPARE_BYTES: usize = 1 << 20;

/// Sessions of one segment that a step drops, and sessions that a slice of the janitor settles.
const DROPS_PER_STEP: usize = 32;
/// Most segments that are searched for the oldest session.
const SEGMENTS_TO_LOOK_AT: usize = 4;
/// A certificate with more sessions than this keeps its number until some are gone.
const MAX_TO_RENUMBER: usize = 256;
/// Buckets that a slice of the janitor removes.
const BUCKETS_PER_SLICE: usize = 64;

/// Bytes that must be free before a certificate is compressed.
const ROOM_TO_PACK: u64 = 16 * 1024;

/// The room that an insertion needs.
#[derive(Clone, Copy)]
struct Room {
    kind: Kind,
    bytes: usize,
    sessions: u64,
}

/// How many sessions of a certificate were dropped. `Nothing` if there was no certificate.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Dropped {
    Nothing,
    Some,
    All,
}

/// Expired sessions of a segment.
#[derive(Default)]
struct Due {
    slots: [SlotRef; DROPS_PER_STEP],
    length: usize,
    /// The oldest birth of the other sessions, if `slots` has all that have expired.
    oldest: Option<u64>,
}

/// The certificate of a session whose bucket is visited. It stays where it is until this is dropped.
struct VisitedCertificate<'a> {
    place: CertificatePtr<'a>,
    _locked: Option<Locked<'a>>,
}

impl VisitedCertificate<'_> {
    fn claims(&self) -> Claims {
        self.place.claims()
    }

    fn view(&self) -> Certificate<'_> {
        self.place.view()
    }
}

impl<T> ServerStore<T> {
    /// An empty store. It takes hardly any memory before the first session.
    pub fn new(limits: Limits) -> Self {
        let hash_keys = RandomState::default();
        let id_keys = [hash_keys.hash_one(1), hash_keys.hash_one(2)];
        let counters = Counters::default();
        ServerStore {
            index: Index::visited(Arc::clone(&counters.lookups)),
            directory: Directory::new(),
            order: Mutex::default(),
            templates: Templates::new(),
            certificates: OnceCell::new(),
            ghosts: Ghosts::new(),
            sessions: AtomicU64::new(0),
            certified: AtomicU64::new(0),
            certificates_held: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            max_bytes: AtomicU64::new(limits.max_bytes),
            max_sessions: AtomicU64::new(limits.max_sessions),
            lifetime_ms: AtomicU64::new(limits.lifetime_ms),
            trust: TrustCell::default(),
            counters,
            hash_keys,
            id_keys,
        }
    }

    /// The current bounds.
    pub fn limits(&self) -> Limits {
        Limits {
            max_bytes: self.max_bytes.load(Relaxed),
            max_sessions: self.max_sessions.load(Relaxed),
            lifetime_ms: self.lifetime_ms.load(Relaxed),
        }
    }

    /// Sets new bounds. The lifetime takes effect at once. Sessions that exceed a bound go with the next insertions and calls
    /// of [`tidy`](Self::tidy).
    pub fn set_limits(&self, limits: Limits) {
        self.max_bytes.store(limits.max_bytes, Relaxed);
        self.max_sessions.store(limits.max_sessions, Relaxed);
        self.lifetime_ms.store(limits.lifetime_ms, Relaxed);
    }

    /// Sets what each lookup checks of a session's certificate. A new store checks only whether it has expired.
    pub fn set_trust(&self, trust: Trust) {
        self.trust.set(trust);
    }

    /// The events in this store.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many sessions the store has.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Relaxed)
    }

    /// How many of these are certified: among the newest of their client certificate.
    pub fn certified(&self) -> u64 {
        self.certified.load(Relaxed)
    }

    /// How many client certificates the store has.
    pub fn certificates(&self) -> u64 {
        self.certificates_held.load(Relaxed)
    }

    /// How many bytes the store has taken from the system, for sessions, certificates, indexes, ghosts and templates.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed) + self.templates.bytes()
    }

    /// How many templates the store has.
    pub fn templates(&self) -> usize {
        self.templates.len()
    }

    /// Calls `visit` with each template. `visit` must be quick and must not call this store.
    pub fn for_each_template(&self, visit: impl FnMut(&T)) {
        self.templates.for_each(visit);
    }

    /// The template that matches `pattern`, for a new session. If the store has no such template, `pattern` makes it. `None` if
    /// `pattern` does not, or if the store has as many templates as it may have.
    pub fn template(&self, pattern: &impl Pattern<T>) -> Option<Held<'_, T>> {
        self.templates.intern(pattern)
    }

    /// Another hold on the named template, if the store still has it.
    pub fn hold_template(&self, name: TemplateName) -> Option<Held<'_, T>> {
        self.templates.hold_again(name)
    }

    /// Stores a session, and replaces one under the same key. Evicts others if there is no room.
    pub fn insert(&self, session: NewSession<T>, now_ms: u64) -> Result<(), Refusal> {
        let inserted = self.insert_born(session, now_ms, None, now_ms);
        match inserted {
            Ok(_) => _ = Counters::add(&self.counters.inserts),
            Err(refusal) => self.counters.refuse(refusal),
        }
        inserted.map(|_| ())
    }

    /// Stores a session that was made on another node, or earlier, at `born_ms` by this store's clock, unless the store has one
    /// under its key. Not counted.
    pub fn restore(
        &self,
        session: NewSession<T>,
        born_ms: u64,
        arrival: Arrival,
        now_ms: u64,
    ) -> Restored {
        // If the lists are not known yet, the lookup decides.
        let checked = session
            .certificate
            .map(|der| self.trust.check(&Claims::of(der)));
        match checked {
            Some(Err(CertificateMiss::Expired)) => return Restored::Expired,
            Some(Err(CertificateMiss::Revoked)) => return Restored::Revoked,
            _ => {}
        }
        match self.insert_born(session, born_ms, Some(arrival), now_ms) {
            Ok(restored) => restored,
            Err(_) => Restored::NoRoom,
        }
    }

    /// Calls `read` with the session under `key`, unless its lifetime is over or its certificate
    /// [forbids](Self::set_trust) a resumption. Counted as a hit or a miss. `read` must not call this store.
    pub fn lookup<R>(
        &self,
        key: SessionKey,
        now_ms: u64,
        read: impl FnOnce(Session<T>) -> R,
    ) -> Option<R> {
        let hash = self.hash(key);
        let visit = self.index.visit(hash);
        let known = self.find_visited(&visit, hash, key);
        let Some(slot) = known.filter(|slot| self.is_fresh(*slot, now_ms)) else {
            visit.count(|line| &line.misses);
            match self.ghosts.take(hash) {
                // It has expired, and the janitor has not dropped it yet.
                _ if known.is_some() => visit.count(|line| &line.lost),
                Some(Ghost::Evicted(class)) => visit.count(|line| &line.returns[class as usize]),
                Some(Ghost::Lost) => visit.count(|line| &line.lost),
                None => {}
            }
            return None;
        };
        let certificate = self.certificate(slot, visit.is_announced());
        if let Err(miss) = self.check(certificate.as_ref()) {
            visit.count(|line| &line.misses);
            visit.count(|line| &line.certificate_misses[miss as usize]);
            return None;
        }
        let used = code_of(age_of_birth(slot.born(), now_ms));
        // Written only if it changes, so that lookups of one session do not take the cache line from each other all the time.
        if slot.used().load(Relaxed) != used {
            slot.used().store(used, Relaxed);
        }
        visit.count(|line| &line.hits);
        let flags = slot.flags();
        if flags & KEPT != 0 {
            visit.count(|line| &line.kept_hits[class_of(flags) as usize]);
        }
        Some(self.read(slot, certificate.as_ref(), read))
    }

    /// As [`lookup`](Self::lookup), but neither counted nor remembered as a use.
    pub fn peek<R>(
        &self,
        key: SessionKey,
        now_ms: u64,
        read: impl FnOnce(Session<T>) -> R,
    ) -> Option<R> {
        let hash = self.hash(key);
        let visit = self.index.visit(hash);
        let slot = self
            .find_visited(&visit, hash, key)
            .filter(|slot| self.is_fresh(*slot, now_ms))?;
        let certificate = self.certificate(slot, visit.is_announced());
        self.check(certificate.as_ref()).ok()?;
        Some(self.read(slot, certificate.as_ref(), read))
    }

    /// Drops the session under `key`, and returns whether there was one.
    pub fn delete(&self, key: SessionKey) -> bool {
        let mut order = self.order.lock();
        let slot = self.find_slot(&order, self.hash(key), key);
        if let Some(slot) = slot {
            self.lose(&mut order, slot);
            self.note_bytes(&order);
        }
        slot.is_some()
    }

    /// How long ago the oldest session was stored, in milliseconds.
    pub fn oldest_ms(&self, now_ms: u64) -> Option<u64> {
        let mut order = self.order.lock();
        let now = now_ms / TICK_MS;
        // A segment may remember a session that is gone, so it is searched.
        for _ in 0..SEGMENTS_TO_LOOK_AT {
            let (at, oldest) = order.slab.oldest()?;
            if self.look_through(&mut order, at, now, 0, 0).oldest == Some(oldest) {
                break;
            }
        }
        let (_, oldest) = order.slab.oldest()?;
        Some(now.saturating_sub(oldest) * TICK_MS)
    }

    /// Calls `visit` with about `limit` sessions from the position `from` on, which is 0 at first. Returns the position of
    /// the next session, or `None` after the last. A session that stays is visited once, whatever comes and goes in between.
    /// `visit` must be quick and must not call this store.
    pub fn page(
        &self,
        from: u64,
        limit: usize,
        now_ms: u64,
        mut visit: impl FnMut(Listed<T>),
    ) -> Option<u64> {
        self.index.page(
            from,
            limit,
            |number| self.hash_of(number),
            |number| {
                // SAFETY: the slot is in the index, whose lock on this part is held.
                let slot = unsafe { self.slot(number) };
                let age = age_of_birth(slot.born(), now_ms);
                if self.is_expired(age) {
                    return;
                }
                let used = slot.used().load(Relaxed);
                let certificate = self.certificate(slot, false);
                let claims = certificate.as_ref().map(VisitedCertificate::claims);
                self.read(slot, certificate.as_ref(), |session| {
                    visit(Listed {
                        key: slot.key(),
                        session,
                        age_ms: u64::from(age) * TICK_MS,
                        age_at_last_use_ms: (used != 0).then(|| u64::from(age_of(used)) * TICK_MS),
                        is_certified: slot.flags() & CERTIFIED != 0,
                        certificate_left_s: claims
                            .and_then(|claims| self.trust.seconds_left(&claims)),
                    });
                });
            },
        )
    }

    /// Calls `visit` with each key. A part of the index is locked meanwhile, so `visit` must be quick and must not call this
    /// store.
    pub fn for_each_key(&self, mut visit: impl FnMut(SessionKey)) {
        let mut from = Some(0);
        while let Some(position) = from {
            from = self.index.page(
                position,
                usize::MAX,
                |number| self.hash_of(number),
                |number| {
                    // SAFETY: the slot is in the index, whose lock on this part is held.
                    visit(unsafe { self.slot(number) }.key());
                },
            );
        }
    }

    /// Does a slice of the janitor's work, and returns whether there is more: drops sessions that have expired or exceed a
    /// bound, gives memory back, and works on certificates.
    pub fn tidy(&self, now_ms: u64) -> bool {
        // If there are many scopes, most of them are empty.
        if self.bytes.load(Relaxed) == 0 {
            return false;
        }
        let parts = [
            Self::expire_slice,
            Self::shrink_slice,
            Self::settle_slice,
            Self::compact_slice,
            Self::shrink_tables_slice,
            Self::maintain_certificates_slice,
        ];
        let mut order = self.order.lock();
        let slice = Slice::begin();
        // Parts that find nothing to do share one hold of the lock.
        let has_more = parts
            .iter()
            .any(|part| part(self, &mut order, now_ms) || slice.is_over());
        self.note_bytes(&order);
        // So that a waiting thread gets the lock, and not the caller's next slice.
        unlock_fair(order);
        has_more
    }

    /// Drops at most `slice` sessions whose lifetime is over, and returns how many.
    pub fn expire(&self, now_ms: u64, slice: usize) -> usize {
        let mut order = self.order.lock();
        let mut dropped = 0;
        while dropped < slice {
            match self.drop_expired(&mut order, now_ms, slice - dropped) {
                Some(more) => dropped += more,
                None => break,
            }
        }
        self.note_bytes(&order);
        unlock_fair(order);
        dropped
    }

    /// Drops at most `slice` sessions, and returns how many.
    pub fn clear(&self, slice: usize) -> usize {
        let mut order = self.order.lock();
        let mut dropped = 0;
        while dropped < slice {
            let Some(slot) = order.policies.iter().find_map(Policy::any) else {
                break;
            };
            self.take_out(&mut order, slot);
            dropped += 1;
        }
        // Does as much as there is time for. The janitor does the rest.
        let mut time = Slice::begin();
        while time.goes_on() && order.slab.release_empty_segment(&self.directory) {}
        if dropped < slice {
            self.shrink_tables_slice(&mut order, 0);
        }
        self.note_bytes(&order);
        unlock_fair(order);
        dropped
    }

    /// Drops the sessions that were made with these certificates, and returns how many. Holds the lock for a few at a time.
    /// Walks over all certificates once for all authorities together, and looks everything else up.
    pub fn revoke(&self, selectors: &[Selector]) -> u64 {
        let Some(certificates) = self.certificates.get() else {
            return 0;
        };
        let is_fingerprint =
            |selector: &Selector| matches!(selector, Selector::Sha256(_) | Selector::Sha1(_));
        let mut left = None;
        while selectors.iter().any(is_fingerprint) {
            let mut order = self.order.lock();
            let has_more =
                certificates.fingerprint_slice(&mut order.books, &self.directory, &mut left);
            self.note_bytes(&order);
            unlock_fair(order);
            if !has_more {
                break;
            }
        }
        let mut dropped = 0;
        for selector in selectors {
            let find = |order: &Order, _: &mut Slice| {
                certificates.find_selected(&order.books, &self.directory, selector)
            };
            while self.drop_sessions_of(find, &mut dropped) != Dropped::Nothing {}
        }
        let (meant, mut walk) = (Meant::new(selectors), Walk::default());
        while !walk.is_over() {
            let find = |order: &Order, slice: &mut Slice| {
                certificates.walk(&order.books, &self.directory, &meant, &mut walk, slice)
            };
            if self.drop_sessions_of(find, &mut dropped) == Dropped::Some {
                // The rest of this certificate's sessions come next.
                walk.step_back();
            }
        }
        dropped
    }

    /// Drops as many sessions of a certificate as fit into a slice, and adds their number to `dropped`.
    fn drop_sessions_of(
        &self,
        find: impl FnOnce(&Order, &mut Slice) -> Option<Number>,
        dropped: &mut u64,
    ) -> Dropped {
        let mut order = self.order.lock();
        let mut slice = Slice::begin();
        let number = find(&order, &mut slice);
        let Some((number, certificates)) = number.zip(self.certificates.get()) else {
            unlock_fair(order);
            return Dropped::Nothing;
        };
        let mut newest = certificates.newest(&self.directory, number);
        while let Some(slot) = newest.some() {
            // SAFETY: a session in a chain is allocated, and the order lock is held.
            let chain = unsafe { self.slot(slot.0) }.chain();
            newest = chain.map_or(SlotRef::NONE, |chain| chain.older);
            self.lose(&mut order, slot);
            *dropped += 1;
            if !slice.goes_on() {
                break;
            }
        }
        self.note_bytes(&order);
        unlock_fair(order);
        match newest {
            SlotRef::NONE => Dropped::All,
            _ => Dropped::Some,
        }
    }

    /// The names, in DER, of the authorities that have issued the certificates in the store.
    pub fn issuers(&self) -> Vec<Box<[u8]>> {
        self.certificates
            .get()
            .map_or(Vec::new(), |certificates| certificates.issuers())
    }

    /// A session's certificate. The caller visits the slot's bucket, announced or locked.
    #[inline]
    fn certificate(&self, slot: SlotPtr, is_announced: bool) -> Option<VisitedCertificate<'_>> {
        let (number, certificates) = slot.certificate().zip(self.certificates.get())?;
        // SAFETY: a session's certificate stays as long as the session, whose bucket is visited.
        let locked = (!is_announced).then(|| unsafe { certificates.lock(number) });
        // SAFETY: the bucket is announced, or the certificate is locked as long as this is used.
        let place = unsafe { certificates.find_place(&self.directory, number) };
        Some(VisitedCertificate {
            place,
            _locked: locked,
        })
    }

    /// Whether a session with this certificate may be resumed.
    #[inline]
    fn check(&self, certificate: Option<&VisitedCertificate>) -> Result<(), CertificateMiss> {
        certificate.map_or(Ok(()), |certificate| {
            self.trust.check(&certificate.claims())
        })
    }

    /// Calls `read` with the session in a slot. The caller visits the slot's bucket.
    #[inline]
    fn read<R>(
        &self,
        slot: SlotPtr,
        certificate: Option<&VisitedCertificate>,
        read: impl FnOnce(Session<T>) -> R,
    ) -> R {
        let template = match slot.template() {
            0 => None,
            // SAFETY: the session holds its template, and stays while its slot is read.
            number => Some(unsafe { self.templates.get(number) }),
        };
        read(Session {
            secret: slot.secret(),
            template,
            certificate: certificate.map(VisitedCertificate::view),
            tail: slot.tail(),
        })
    }

    /// The hash of a key, with random keys that clients do not know.
    fn hash(&self, key: SessionKey) -> u64 {
        match key {
            SessionKey::Id(id) => {
                let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|n| id[at + n]));
                let [a, b] = self.id_keys;
                let half = |one: u64, other: u64| fold(u128::from(one ^ a) * u128::from(other ^ b));
                let halves = half(word(0), word(8)) ^ half(word(24), word(16)).rotate_left(32);
                fold(u128::from(halves ^ a) * 0x9e37_79b9_7f4a_7c15)
            }
            SessionKey::Other(key) => self.hash_keys.hash_one(key),
        }
    }

    fn hash_of(&self, number: Number) -> u64 {
        // SAFETY: what is in the index is allocated, and the caller has locked its bucket or the order.
        self.hash(unsafe { self.slot(number) }.key())
    }

    #[inline]
    fn find_visited<'a>(
        &'a self,
        visit: &'a Visit,
        hash: u64,
        key: SessionKey,
    ) -> Option<SlotPtr<'a>> {
        let number = visit.find(hash, |number| self.has_key(number, key))?;
        // SAFETY: the slot is in the index, and the visit keeps it there.
        Some(unsafe { self.slot(number) })
    }

    /// Whether a session's lifetime has not run out.
    fn is_fresh(&self, slot: SlotPtr, now_ms: u64) -> bool {
        !self.is_expired(age_of_birth(slot.born(), now_ms))
    }

    fn find_slot(&self, order: &Order, hash: u64, key: SessionKey) -> Option<SlotRef> {
        let is_it = |number| self.has_key(number, key);
        self.index.find(&order.growth, hash, is_it).map(SlotRef)
    }

    fn has_key(&self, number: Number, key: SessionKey) -> bool {
        // SAFETY: the slot is in the index, where it stays while that is visited, or by the order lock.
        unsafe { self.slot(number) }.key() == key
    }

    fn is_expired(&self, age: u32) -> bool {
        u64::from(age) * TICK_MS >= self.lifetime_ms.load(Relaxed).min(LONGEST_LIFETIME_MS)
    }

    /// # Safety
    /// As for [`SlotPtr::new`].
    unsafe fn slot(&self, number: Number) -> SlotPtr<'_> {
        // SAFETY: guaranteed by the caller.
        unsafe { SlotPtr::new(self.directory.find(SlotRef(number))) }
    }

    /// Why a session is refused, whatever room there is.
    fn refusal(&self, session: &NewSession<T>, slot_bytes: usize, age_ms: u64) -> Option<Refusal> {
        let limits = self.limits();
        let certificate = session.certificate.map_or(0, <[u8]>::len);
        if slot_bytes > MAX_SESSION_BYTES || certificate > MAX_CERTIFICATE {
            Some(Refusal::TooLarge)
        } else if age_ms >= limits.lifetime_ms.min(LONGEST_LIFETIME_MS) {
            Some(Refusal::Lifetime)
        } else if limits.max_sessions == 0 || (slot_bytes + certificate) as u64 > limits.max_bytes {
            Some(Refusal::NoRoom)
        } else {
            None
        }
    }

    fn insert_born(
        &self,
        mut session: NewSession<T>,
        born_ms: u64,
        arrival: Option<Arrival>,
        now_ms: u64,
    ) -> Result<Restored, Refusal> {
        // Empty bytes are no certificate.
        session.certificate = session
            .certificate
            .filter(|certificate| !certificate.is_empty());
        let content = Content {
            key: session.key,
            secret: session.secret,
            tail: session.tail,
            template: session.template.as_ref().map_or(0, Held::number),
            born: (born_ms / TICK_MS) as u32,
            flags: match session.certificate {
                Some(_) => HAS_CERTIFICATE,
                None => 0,
            },
        };
        let bytes = content.bytes();
        if let Some(refusal) = self.refusal(&session, bytes, now_ms.saturating_sub(born_ms)) {
            return Err(refusal);
        }
        let hash = self.hash(session.key);
        let mut order = self.order.lock();
        if let Some(known) = self.find_slot(&order, hash, session.key) {
            if arrival.is_some() {
                return Ok(Restored::Known);
            }
            self.take_out(&mut order, known);
        }
        let may_evict = arrival != Some(Arrival::Replayed);
        let certificate = match session.certificate {
            Some(der) => Some(self.keep_certificate(&mut order, der, may_evict, now_ms)?),
            None => None,
        };
        let room = Room {
            kind: Kind::Session,
            bytes,
            sessions: 1,
        };
        let stored = self.in_room(&mut order, room, certificate, may_evict, now_ms, |order| {
            let is_filled = self.fill(order, &content, hash, certificate, arrival, now_ms);
            is_filled.then_some(())
        });
        let stored = stored.is_some();
        if stored {
            // From now on the session holds the template.
            session.template.map(Held::into_number);
        } else if let Some(number) = certificate {
            self.leave_certificate(&mut order, number);
        }
        self.note_bytes(&order);
        match stored {
            true => Ok(Restored::Stored),
            false => Err(Refusal::NoRoom),
        }
    }

    /// Writes a session into a slot, and enters it into the index and the lists. `false` if the system has no memory.
    fn fill(
        &self,
        order: &mut Order,
        content: &Content,
        hash: u64,
        certificate: Option<Number>,
        arrival: Option<Arrival>,
        now_ms: u64,
    ) -> bool {
        let bytes = content.bytes();
        let Some(slot) = order.slab.allocate(&self.directory, Kind::Session, bytes) else {
            return false;
        };
        // SAFETY: the slot was just allocated, and no other thread knows it yet.
        let place = unsafe { self.slot(slot.0) };
        place.fill(content);
        if let Some(certificate) = certificate {
            // Before a reader can find the session.
            place.set_certificate(certificate);
        }
        if !self.index.insert(&mut order.growth, hash, slot.0) {
            place.wipe(slot_bytes(bytes));
            order.slab.free(slot);
            return false;
        }
        let age = u64::from(age_of_birth(content.born, now_ms));
        order
            .slab
            .note_birth(slot, (now_ms / TICK_MS).saturating_sub(age));
        self.sessions.fetch_add(1, Relaxed);
        let class = match certificate {
            Some(number) => self.enter_chain(order, slot, number, now_ms),
            None => Class::Anonymous,
        };
        let is_replayed = arrival == Some(Arrival::Replayed);
        self.enter_class(order, slot, class, is_replayed, now_ms);
        self.index
            .grow(&mut order.growth, |number| self.hash_of(number));
        true
    }

    /// Enters a session into the chain of its certificate, among the newest in order of birth. The session that is now one too
    /// many counts as anonymous. Returns the new session's class.
    fn enter_chain(&self, order: &mut Order, slot: SlotRef, number: Number, now_ms: u64) -> Class {
        let Some(certificates) = self.certificates.get() else {
            return Class::Anonymous;
        };
        // SAFETY: sessions in a chain are allocated, and the order lock is held.
        let at = |slot: SlotRef| unsafe { self.slot(slot.0) };
        let age = |slot: SlotRef| age_of_birth(at(slot).born(), now_ms);
        let (mut newer, mut older) = (SlotRef::NONE, certificates.newest(&self.directory, number));
        let mut place = 0;
        while place < CERTIFIED_PER_CERTIFICATE && older != SlotRef::NONE && age(older) < age(slot)
        {
            (newer, older) = (
                older,
                at(older).chain().map_or(SlotRef::NONE, |chain| chain.older),
            );
            place += 1;
        }
        at(slot).set_chain_newer(newer);
        at(slot).set_chain_older(older);
        match newer.some() {
            None => certificates.set_newest(&self.directory, number, slot),
            Some(newer) => at(newer).set_chain_older(slot),
        }
        if let Some(older) = older.some() {
            at(older).set_chain_newer(slot);
        }
        // The first session behind the certified ones.
        let mut next = older;
        for _ in place + 1..CERTIFIED_PER_CERTIFICATE {
            next = next
                .some()
                .and_then(|slot| at(slot).chain())
                .map_or(SlotRef::NONE, |chain| chain.older);
        }
        if let Some(demoted) = next
            .some()
            .filter(|slot| at(*slot).flags() & CERTIFIED != 0)
        {
            self.leave_class(order, demoted);
            self.enter_class(order, demoted, Class::Anonymous, false, now_ms);
        }
        match place < CERTIFIED_PER_CERTIFICATE {
            true => Class::Certified,
            false => Class::Anonymous,
        }
    }

    fn enter_class(
        &self,
        order: &mut Order,
        slot: SlotRef,
        class: Class,
        is_replayed: bool,
        now_ms: u64,
    ) {
        // SAFETY: the slot is allocated, and the order lock is held.
        let place = unsafe { self.slot(slot.0) };
        place.set_flag(KEPT, false);
        place.set_flag(CERTIFIED, class == Class::Certified);
        if class == Class::Certified {
            order.certified_bytes += slot_bytes(place.bytes()) as u64;
            self.certified.fetch_add(1, Relaxed);
        }
        let links = LinksOf {
            store: self,
            now_ms,
        };
        order.policies[class as usize].insert(&links, slot, is_replayed);
    }

    fn leave_class(&self, order: &mut Order, slot: SlotRef) {
        // SAFETY: the slot is allocated, and the order lock is held.
        let place = unsafe { self.slot(slot.0) };
        let class = class_of(place.flags());
        let links = LinksOf {
            store: self,
            now_ms: 0,
        };
        order.policies[class as usize].remove(&links, slot);
        if class == Class::Certified {
            order.certified_bytes -= slot_bytes(place.bytes()) as u64;
            self.certified.fetch_sub(1, Relaxed);
        }
    }

    /// The number of a certificate, which the store keeps from now on, even without sessions.
    fn keep_certificate(
        &self,
        order: &mut Order,
        der: &[u8],
        may_evict: bool,
        now_ms: u64,
    ) -> Result<Number, Refusal> {
        let certificates = self
            .certificates
            .get_or_init(|| Box::new(Certificates::new(Arc::clone(&self.counters.lookups))));
        let identity = certificates.identify(&mut order.books, der);
        if let Some(number) = certificates.find(&order.books, &self.directory, der, &identity) {
            return Ok(number);
        }
        let room = Room {
            kind: Kind::Certificate,
            bytes: Certificates::slot_bytes_for(der.len()),
            sessions: 0,
        };
        let number = self.in_room(order, room, None, may_evict, now_ms, |order| {
            let Order { books, slab, .. } = order;
            certificates.insert(books, &self.directory, slab, der, &identity)
        });
        self.certificates_held.store(order.books.length(), Relaxed);
        self.note_bytes(order);
        number.ok_or(Refusal::NoRoom)
    }

    /// Forgets a certificate if it has no sessions.
    fn leave_certificate(&self, order: &mut Order, number: Number) {
        if let Some(certificates) = self.certificates.get() {
            if certificates.newest(&self.directory, number) == SlotRef::NONE {
                let Order { books, slab, .. } = order;
                certificates.remove(books, &self.directory, slab, number);
                self.certificates_held.store(books.length(), Relaxed);
            }
        }
    }

    /// The bytes taken from the system, without templates.
    fn taken(&self, order: &Order) -> u64 {
        let certificates = self
            .certificates
            .get()
            .map_or(0, |certificates| certificates.bytes(&order.books));
        let bytes = order.slab.bytes()
            + self.index.bytes(&order.growth)
            + self.ghosts.bytes(self.sessions())
            + certificates;
        bytes as u64
    }

    fn note_bytes(&self, order: &Order) {
        self.bytes.store(self.taken(order), Relaxed);
    }

    /// How many more bytes an insertion would take.
    fn bytes_to_grow(&self, order: &Order, room: Room) -> u64 {
        let slot = order.slab.bytes_to_grow(room.kind, room.bytes);
        let tables = match room.kind {
            Kind::Session => {
                self.index.bytes_to_grow(&order.growth) + self.ghosts.bytes_to_grow(self.sessions())
            }
            Kind::Certificate => self
                .certificates
                .get()
                .map_or(0, |certificates| certificates.bytes_to_grow(&order.books)),
        };
        (slot + tables) as u64
    }

    /// Makes room, and calls `add`. If the system has no memory, it evicts more sessions, whose places `add` can use.
    fn in_room<R>(
        &self,
        order: &mut Order,
        room: Room,
        pinned: Option<Number>,
        may_evict: bool,
        now_ms: u64,
        add: impl Fn(&mut Order) -> Option<R>,
    ) -> Option<R> {
        for _ in 0..MAX_STEPS_PER_INSERT {
            if !self.make_room(order, room, pinned, may_evict, now_ms) {
                return None;
            }
            let added = add(order);
            if added.is_some() || !may_evict || !self.evict(order, pinned, false, now_ms) {
                return added;
            }
            self.compact_one(order);
        }
        None
    }

    /// Moves sessions together and evicts some until there is room. `pinned` is a certificate that stays even without sessions.
    /// `false` if there is still no room after [`MAX_STEPS_PER_INSERT`] steps: then the caller must not add anything.
    fn make_room(
        &self,
        order: &mut Order,
        room: Room,
        pinned: Option<Number>,
        may_evict: bool,
        now_ms: u64,
    ) -> bool {
        let limits = self.limits();
        let mut evicted = 0;
        for _ in 0..MAX_STEPS_PER_INSERT {
            let growth = self.bytes_to_grow(order, room);
            let has_bytes = self.taken(order) + self.templates.bytes() + growth <= limits.max_bytes;
            let has_place = self.sessions() + room.sessions <= limits.max_sessions;
            if has_bytes && has_place {
                return true;
            }
            if !has_bytes && self.compact_one(order) {
                continue;
            }
            if !may_evict || !self.evict(order, pinned, !has_place, now_ms) {
                return false;
            }
            evicted += 1;
        }
        // A bound was lowered, and the janitor works on it. A session that takes another one's place adds nothing.
        evicted > 0 && order.slab.bytes_to_grow(room.kind, room.bytes) == 0
    }

    /// Evicts a session of the class that takes too much room. `false` if there is none.
    fn evict(
        &self,
        order: &mut Order,
        pinned: Option<Number>,
        by_number: bool,
        now_ms: u64,
    ) -> bool {
        let limits = self.limits();
        let [anonymous, certified] = &order.policies;
        let has_too_much = match by_number {
            true => certified.length() > limits.max_sessions / CERTIFIED_SHARE,
            false => {
                // The system may have less memory than the bound allows.
                let room = (self.taken(order) + self.templates.bytes()).min(limits.max_bytes);
                order.certified_bytes + order.books.slot_bytes() > room / CERTIFIED_SHARE
            }
        };
        let class = match (anonymous.length(), certified.length()) {
            (0, 0) => return false,
            (0, _) => Class::Certified,
            (_, 0) => Class::Anonymous,
            _ if has_too_much => Class::Certified,
            _ => Class::Anonymous,
        };
        let sum = |counter: &PerClass| counter[class as usize];
        let counters = self.policy_counters();
        let policy = &mut order.policies[class as usize];
        policy.observe(sum(&counters.0), sum(&counters.1));
        let links = LinksOf {
            store: self,
            now_ms,
        };
        let Some(victim) = policy.victim(&links) else {
            return false;
        };
        // SAFETY: what is in a list is allocated, and the order lock is held.
        let place = unsafe { self.slot(victim.slot.0) };
        if self.is_expired(age_of_birth(place.born(), now_ms)) {
            Counters::add(&self.counters.expired);
        } else {
            Counters::add(&self.counters.evicted);
            if victim.leaves_ghost {
                self.ghosts
                    .leave(self.hash(place.key()), class, self.sessions());
            }
        }
        self.take_out_pinned(order, victim.slot, pinned);
        true
    }

    fn policy_counters(&self) -> (PerClass, PerClass) {
        let sum = |counter: fn(&Line) -> &[AtomicU64; 2]| {
            [0, 1].map(|class| self.counters.lookups.sum(|line| &counter(line)[class]))
        };
        (sum(|line| &line.kept_hits), sum(|line| &line.returns))
    }

    /// Removes a session from the index and all lists, wipes it, and frees its slot.
    fn take_out(&self, order: &mut Order, slot: SlotRef) {
        self.take_out_pinned(order, slot, None);
    }

    /// Removes a session for another reason than eviction, and remembers it, as its client may come back.
    fn lose(&self, order: &mut Order, slot: SlotRef) {
        // SAFETY: what is in a list or in the index is allocated, and the order lock is held.
        let hash = self.hash(unsafe { self.slot(slot.0) }.key());
        self.ghosts.leave_lost(hash, self.sessions());
        self.take_out(order, slot);
    }

    fn take_out_pinned(&self, order: &mut Order, slot: SlotRef, pinned: Option<Number>) {
        // SAFETY: what is in a list or in the index is allocated, and the order lock is held.
        let place = unsafe { self.slot(slot.0) };
        self.index
            .remove(&mut order.growth, self.hash(place.key()), slot.0);
        self.leave_class(order, slot);
        let chain = place.chain();
        // SAFETY: as above.
        let at = |slot: SlotRef| unsafe { self.slot(slot.0) };
        if let Some((chain, certificates)) = chain.zip(self.certificates.get()) {
            match chain.newer.some() {
                None => certificates.set_newest(&self.directory, chain.certificate, chain.older),
                Some(newer) => at(newer).set_chain_older(chain.older),
            }
            if let Some(older) = chain.older.some() {
                at(older).set_chain_newer(chain.newer);
            }
        }
        let template = place.template();
        place.wipe(slot_bytes(place.bytes()));
        order.slab.free(slot);
        self.sessions.fetch_sub(1, Relaxed);
        if template != 0 {
            self.templates.release(template);
        }
        if let Some(chain) = chain.filter(|chain| pinned != Some(chain.certificate)) {
            self.leave_certificate(order, chain.certificate);
        }
    }

    /// Gives pages back, or moves a session or a certificate so that more can be given back. `false` if nothing can be gained.
    fn compact_one(&self, order: &mut Order) -> bool {
        let Move {
            from,
            to,
            kind,
            bytes,
        } = match order.slab.next_step(&self.directory) {
            Some(Step::Move(step)) => step,
            Some(Step::Released) => return true,
            None => return false,
        };
        match (kind, self.certificates.get()) {
            (Kind::Session, _) => self.move_session(order, from, to, bytes),
            (Kind::Certificate, Some(certificates)) => {
                certificates.relocate(&self.directory, from, to, bytes);
            }
            (Kind::Certificate, None) => {}
        }
        order.slab.free(from);
        Counters::add(&self.counters.moved);
        true
    }

    fn move_session(&self, order: &mut Order, from: SlotRef, to: SlotRef, bytes: usize) {
        // SAFETY: both slots are allocated, and the order lock is held.
        let (old, new) = unsafe { (self.slot(from.0), self.slot(to.0)) };
        let hash = self.hash(old.key());
        // While the bucket is seized, because a lookup writes to the slot.
        self.index
            .replace(&mut order.growth, hash, from.0, to.0, || {
                old.copy_to(new, bytes)
            });
        let class = class_of(new.flags());
        let links = LinksOf {
            store: self,
            now_ms: 0,
        };
        order.policies[class as usize].moved(&links, from, to);
        // SAFETY: sessions in a chain are allocated, and the order lock is held.
        let at = |slot: SlotRef| unsafe { self.slot(slot.0) };
        if let Some((chain, certificates)) = new.chain().zip(self.certificates.get()) {
            match chain.newer.some() {
                None => certificates.set_newest(&self.directory, chain.certificate, to),
                Some(newer) => at(newer).set_chain_older(to),
            }
            if let Some(older) = chain.older.some() {
                at(older).set_chain_newer(to);
            }
        }
        order.slab.inherit_birth(from, to);
        old.wipe(bytes);
    }

    fn expire_slice(&self, order: &mut Order, now_ms: u64) -> bool {
        let mut slice = Slice::begin();
        while slice.goes_on() {
            if self.drop_expired(order, now_ms, DROPS_PER_STEP).is_none() {
                return false;
            }
        }
        true
    }

    /// Drops at most `most` sessions of one segment whose lifetime is over, if there is such a segment among the next ones in turn.
    /// Returns how many, or `None` if no segment has any.
    fn drop_expired(&self, order: &mut Order, now_ms: u64, most: usize) -> Option<usize> {
        let now = now_ms / TICK_MS;
        let lifetime_ms = self.lifetime_ms.load(Relaxed).min(LONGEST_LIFETIME_MS);
        // A session that was born before this has expired.
        let limit = (now + 1).checked_sub(lifetime_ms.div_ceil(TICK_MS))?;
        let at = match order.slab.next_due(limit) {
            Search::Found(at) => at,
            Search::GoesOn => return Some(0),
            Search::Over => return None,
        };
        let due = self.look_through(order, at, now, limit, most);
        for slot in &due.slots[..due.length] {
            self.lose(order, *slot);
            Counters::add(&self.counters.expired);
        }
        Some(due.length)
    }

    /// Finds at most `most` sessions of a segment that were born before `limit`. If these are all, notes the oldest birth of
    /// the others.
    fn look_through(&self, order: &mut Order, at: usize, now: u64, limit: u64, most: usize) -> Due {
        let mut due = Due::default();
        let mut oldest = u64::MAX;
        for slot in order.slab.slots_of(at) {
            // SAFETY: the slot is in use, and the order lock is held.
            let born = unsafe { self.slot(slot.0) }.born();
            let born = now.saturating_sub(age_of_birth(born, now * TICK_MS).into());
            if born >= limit {
                oldest = oldest.min(born);
            } else if due.length < most.min(DROPS_PER_STEP) {
                due.slots[due.length] = slot;
                due.length += 1;
            } else {
                return due;
            }
        }
        due.oldest = Some(oldest);
        order.slab.set_oldest(at, oldest);
        due
    }

    /// Drops sessions that exceed a bound, after it was lowered.
    fn shrink_slice(&self, order: &mut Order, now_ms: u64) -> bool {
        let limits = self.limits();
        let mut slice = Slice::begin();
        while slice.goes_on() {
            let taken = self.taken(order) + self.templates.bytes();
            let excess = taken.saturating_sub(limits.max_bytes);
            let has_place = self.sessions() <= limits.max_sessions;
            if excess == 0 && has_place {
                return false;
            }
            if excess > 0 && order.slab.release_empty_segment(&self.directory) {
                continue;
            }
            // As late as possible, because a session that was moved may have to go all the same.
            let is_enough = order.slab.free_bytes() as u64 >= excess;
            if excess > 0 && is_enough && self.compact_one(order) {
                continue;
            }
            if excess > 0 && self.shrink_tables_slice(order, now_ms) {
                return true;
            }
            if !self.evict(order, None, !has_place, now_ms) {
                return false;
            }
        }
        true
    }

    /// Prepares for evictions when the store is about to be full.
    fn settle_slice(&self, order: &mut Order, now_ms: u64) -> bool {
        let limits = self.limits();
        let is_large = |part: u64, most: u64| part > most - most / 4;
        let taken = self.taken(order) + self.templates.bytes();
        if !is_large(taken, limits.max_bytes) && !is_large(self.sessions(), limits.max_sessions) {
            return false;
        }
        let links = LinksOf {
            store: self,
            now_ms,
        };
        let mut has_more = false;
        for policy in &mut order.policies {
            has_more |= policy.settle(&links, DROPS_PER_STEP);
        }
        has_more
    }

    fn compact_slice(&self, order: &mut Order, _now_ms: u64) -> bool {
        let mut slice = Slice::begin();
        while slice.goes_on() {
            let spare = match self.sessions() {
                0 => 0,
                _ => order.slab.bytes() / SPARE_SHARE + SPARE_BYTES,
            };
            if order.slab.free_bytes() < spare || !self.compact_one(order) {
                return false;
            }
        }
        true
    }

    fn shrink_tables_slice(&self, order: &mut Order, _now_ms: u64) -> bool {
        if self.renumber_slice(order) {
            return true;
        }
        let mut of_certificates = || {
            self.certificates.get().is_some_and(|certificates| {
                certificates.shrink(&mut order.books, &self.directory, BUCKETS_PER_SLICE)
            })
        };
        let hash_of = |number| self.hash_of(number);
        self.ghosts.trim(self.sessions())
            || of_certificates()
            || self
                .index
                .shrink(&mut order.growth, BUCKETS_PER_SLICE, hash_of)
    }

    /// Gives certificates lower numbers if there are few, so that the table of numbers becomes shorter. Returns whether there
    /// is more to do.
    fn renumber_slice(&self, order: &mut Order) -> bool {
        let Some(certificates) = self.certificates.get() else {
            return false;
        };
        let mut slice = Slice::begin();
        while slice.goes_on() {
            let Some((from, to)) = certificates.next_to_renumber(&mut order.books, &mut slice)
            else {
                return Certificates::is_renumbering(&order.books);
            };
            // SAFETY: sessions in a chain are allocated, and the order lock is held.
            let older = |slot: &SlotRef| unsafe { self.slot(slot.0) }.chain()?.older.some();
            let newest = certificates.newest(&self.directory, from).some();
            if std::iter::successors(newest, older)
                .nth(MAX_TO_RENUMBER)
                .is_some()
            {
                return false;
            }
            certificates.begin_to_renumber(from, to);
            for session in std::iter::successors(newest, older) {
                // SAFETY: as above.
                let place = unsafe { self.slot(session.0) };
                let hash = self.hash(place.key());
                // While the bucket is seized, because a lookup reads the number.
                self.index
                    .replace(&mut order.growth, hash, session.0, session.0, || {
                        place.set_certificate(to);
                    });
            }
            certificates.end_to_renumber(&mut order.books, &self.directory, from, to);
        }
        true
    }

    fn maintain_certificates_slice(&self, order: &mut Order, now_ms: u64) -> bool {
        let Some(certificates) = self.certificates.get() else {
            return false;
        };
        let limits = self.limits();
        let taken = |order: &Order| self.taken(order) + self.templates.bytes();
        let packs = taken(order) > limits.max_bytes / 2;
        if packs && certificates.may_pack(&order.books) {
            // A certificate is written to its new place before the old one is free. It gains more than that costs.
            let mut steps = 0..MAX_STEPS_PER_INSERT;
            while taken(order) + ROOM_TO_PACK > limits.max_bytes && steps.next().is_some() {
                let is_freed = self.compact_one(order) || self.evict(order, None, false, now_ms);
                if !is_freed {
                    break;
                }
            }
        }
        let room_bytes = limits.max_bytes.saturating_sub(taken(order));
        let Order { books, slab, .. } = order;
        let slice = &mut Slice::begin();
        certificates.maintain(books, &self.directory, slab, packs, room_bytes, slice)
    }
}

impl<T> Drop for ServerStore<T> {
    fn drop(&mut self) {
        while self.clear(usize::MAX) > 0 {}
    }
}

/// A number for each class of sessions.
type PerClass = [u64; 2];

/// The links between a store's slots. Used under its order lock only.
struct LinksOf<'a, T> {
    store: &'a ServerStore<T>,
    now_ms: u64,
}

impl<T> LinksOf<'_, T> {
    fn at(&self, slot: SlotRef) -> SlotPtr<'_> {
        // SAFETY: what is in a list is allocated, and the order lock is held.
        unsafe { self.store.slot(slot.0) }
    }
}

impl<T> Links for LinksOf<'_, T> {
    fn newer(&self, slot: SlotRef) -> SlotRef {
        self.at(slot).newer()
    }

    fn older(&self, slot: SlotRef) -> SlotRef {
        self.at(slot).older()
    }

    fn set_newer(&self, slot: SlotRef, newer: SlotRef) {
        self.at(slot).set_newer(newer);
    }

    fn set_older(&self, slot: SlotRef, older: SlotRef) {
        self.at(slot).set_older(older);
    }

    fn age(&self, slot: SlotRef) -> u32 {
        age_of_birth(self.at(slot).born(), self.now_ms)
    }

    fn used(&self, slot: SlotRef) -> u8 {
        self.at(slot).used().load(Relaxed)
    }

    fn is_kept(&self, slot: SlotRef) -> bool {
        self.at(slot).flags() & KEPT != 0
    }

    fn set_kept(&self, slot: SlotRef, kept: bool) {
        self.at(slot).set_flag(KEPT, kept);
    }
}

fn class_of(flags: u8) -> Class {
    match flags & CERTIFIED {
        0 => Class::Anonymous,
        _ => Class::Certified,
    }
}

/// The age, in ticks, of a session, from the lower 32 bits of the tick of its birth.
fn age_of_birth(born: u32, now_ms: u64) -> u32 {
    let age = ((now_ms / TICK_MS) as u32).wrapping_sub(born);
    // Another node's clock may be ahead.
    if age > OLDEST_TICKS {
        0
    } else {
        age
    }
}

/// Combines the halves of a product, so that each bit depends on both factors.
fn fold(product: u128) -> u64 {
    product as u64 ^ (product >> 64) as u64
}

#[cfg(any(test, fuzzing))]
pub mod model;

#[cfg(test)]
mod tests;
