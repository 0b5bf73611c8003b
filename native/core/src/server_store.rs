//! The sessions of a server scope.
//!
//! # Who may touch a slot
//!
//! A slot is written by the thread that holds the `order` lock, and entered into the index after that.
//! From then on its parts are safe in different hands:
//!
//! - id, secret, tail, template and birth are never changed. They are read under the read lock of the
//!   slot's shard in the index, or under the `order` lock.
//! - `uses` is atomic.
//! - `newer` and `older` are read and written under the `order` lock only.
//!
//! A slot is freed under the `order` lock, after it was taken out of the index. Taking it out needs the
//! write lock of its shard, so by then no reader is left, and none can come.

#![allow(unsafe_code)]

use crate::index::{Found, Index};
use crate::sieve::{Links, Sieve, PATIENCE};
use crate::slab::{Directory, Slab, SlotRef};
use crate::sync::{unlock_fair, Mutex};
use crate::templates::{Pattern, Templates};
use crate::Counters;
use std::mem::size_of;
use std::ptr::{addr_of, addr_of_mut, null};
use std::slice;
use std::sync::atomic::{AtomicU64, AtomicU8, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use zeroize::Zeroize;

/// What a server session is found by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionKey<'a> {
    /// A session id as OTP makes them: 32 random bytes.
    Id(&'a [u8; 32]),
    /// Anything else, in the caller's encoding.
    Other(&'a [u8]),
}

/// A session as it is stored and handed out. Not `Debug`: it would show the secret.
pub struct Session<'a, T> {
    /// The master secret, or anything where there is no template.
    pub secret: &'a [u8; 48],
    /// What it has in common with other sessions.
    pub template: Option<&'a T>,
    /// What neither the template nor the secret holds.
    pub tail: &'a [u8],
}

/// A session as it is shown to an operator: nothing of it is secret but `session.secret`. Not `Debug`.
pub struct Listed<'a, T> {
    /// What it is found by.
    pub key: SessionKey<'a>,
    /// The session itself.
    pub session: Session<'a, T>,
    /// How long ago it was stored, in milliseconds, to a tenth of a second.
    pub age_ms: u64,
    /// How often it was looked up, at least: lookups at the same moment may count as one, and from
    /// [`MOST_USES`] on no more are counted.
    pub uses: u8,
    /// Whether it has a verified peer certificate.
    pub verified: bool,
}

/// The most uses of a session that are counted.
pub const MOST_USES: u8 = !VISITED;

/// Bounds of one scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most bytes to hold, index and templates included.
    pub max_bytes: u64,
    /// Most sessions to hold; `u64::MAX` means no bound.
    pub max_sessions: u64,
    /// How long a session may be handed out, in milliseconds. 0 keeps nothing.
    pub lifetime_ms: u64,
}

/// The sessions of a server scope: bounded in bytes and in number, never handed out after their lifetime.
///
/// Under pressure expired sessions go first; then, by SIEVE, those without a verified peer
/// certificate; and only when none of these is left those with one, which nobody can make in numbers
/// without the certificates.
///
/// `T` is what sessions have in common; see [`Pattern`].
pub struct ServerStore<T> {
    index: Index,
    directory: Directory,
    order: Mutex<Order>,
    templates: Templates<T>,
    sessions: AtomicU64,
    slot_bytes: AtomicU64,
    index_bytes: AtomicU64,
    max_bytes: AtomicU64,
    max_sessions: AtomicU64,
    lifetime_ms: AtomicU64,
    counters: Counters,
}

// SAFETY: slots are shared between threads as the module's documentation says, and hold nothing that is
// bound to a thread but templates, which are `Send` and `Sync` themselves.
unsafe impl<T: Send + Sync> Send for ServerStore<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for ServerStore<T> {}

#[derive(Default)]
struct Order {
    slab: Slab,
    unverified: Sieve,
    verified: Sieve,
    /// In so many insertions the index may have grown.
    measure_index_in: u64,
}

/// Whether sessions that were made elsewhere or before come as they are made, or afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arrival {
    /// Just made: treated as this store's own.
    Live,
    /// The newest first, made before this store was opened: takes no other's place.
    Replayed,
}

/// What became of a session that was made elsewhere or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// It is in the store.
    Stored,
    /// There was one under its id.
    Known,
    /// It had no room, or would be expired at once.
    NoRoom,
}

/// What is written into a slot, and where it goes.
struct Entry<'a> {
    id: &'a [u8; 32],
    secret: &'a [u8; 48],
    tail: &'a [u8],
    flags: u8,
    born_ms: u64,
    arrival: Option<Arrival>,
}

/// What has to be free.
#[derive(Default)]
struct Room {
    bytes: u64,
    sessions: u64,
}

/// The beginning of a slot. The tail follows.
#[repr(C)]
struct Slot<T> {
    /// From [`Arc::into_raw`], or null.
    template: *const T,
    id: [u8; 32],
    secret: [u8; 48],
    newer: SlotRef,
    older: SlotRef,
    born: u32,
    tail_len: u16,
    /// How often it was looked up, up to [`MOST_USES`], and [`VISITED`].
    uses: AtomicU8,
    flags: u8,
}

/// Looked up since the hand came by.
const VISITED: u8 = 0x80;

/// Has a verified peer certificate: which order it is in.
const VERIFIED: u8 = 1;
/// The key is not an id: the tail is its length, the key and the session's tail.
const OTHER_KEY: u8 = 2;
/// The tail is a [`Boxed`].
const BOXED: u8 = 4;

/// A tail that is too long for a slot: what `Box::into_raw` gave.
type Boxed = *mut [u8];

/// Most sessions one insertion evicts. It needs to evict more than one only where it is larger than what
/// it evicts, where the index has grown, or where a bound was made narrower.
const EVICTIONS_AN_INSERT: usize = 256;

/// Longest tail in a slot.
const MAX_TAIL: usize = 8 * 1024;

/// Births are kept in tenths of a second since the library's clock began: enough for 13 years.
const TICK_MS: u64 = 100;

impl<T> ServerStore<T> {
    /// An empty store.
    pub fn new(limits: Limits) -> Self {
        let expected = limits
            .max_sessions
            .min(limits.max_bytes / size_of::<Slot<T>>() as u64);
        ServerStore {
            index: Index::new(expected),
            directory: Directory::new(),
            order: Mutex::default(),
            templates: Templates::new(),
            sessions: AtomicU64::new(0),
            slot_bytes: AtomicU64::new(0),
            index_bytes: AtomicU64::new(0),
            max_bytes: AtomicU64::new(limits.max_bytes),
            max_sessions: AtomicU64::new(limits.max_sessions),
            lifetime_ms: AtomicU64::new(limits.lifetime_ms),
            counters: Counters::default(),
        }
    }

    /// The bounds in force.
    pub fn limits(&self) -> Limits {
        Limits {
            max_bytes: self.max_bytes.load(Relaxed),
            max_sessions: self.max_sessions.load(Relaxed),
            lifetime_ms: self.lifetime_ms.load(Relaxed),
        }
    }

    /// Puts new bounds in force. The lifetime holds at once; what is too much goes with the next insertions
    /// and calls of [`shrink`](Self::shrink).
    pub fn set_limits(&self, limits: Limits) {
        self.max_bytes.store(limits.max_bytes, Relaxed);
        self.max_sessions.store(limits.max_sessions, Relaxed);
        self.lifetime_ms.store(limits.lifetime_ms, Relaxed);
    }

    /// What happened in this store.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// How many sessions are held.
    pub fn sessions(&self) -> u64 {
        self.sessions.load(Relaxed)
    }

    /// How many bytes are held: by sessions, index and templates.
    pub fn bytes(&self) -> u64 {
        self.slot_bytes.load(Relaxed) + self.index_bytes.load(Relaxed) + self.templates.bytes()
    }

    /// How many templates are held.
    pub fn templates(&self) -> usize {
        self.templates.len()
    }

    /// Calls `visit` with each template. It must be quick and not call this store.
    pub fn for_each_template(&self, visit: impl FnMut(&T)) {
        self.templates.for_each(visit);
    }

    /// The template that matches `pattern`, for a session to be inserted with. `None` if there are as
    /// many as there may be, or there must be none like this.
    pub fn template(&self, pattern: &impl Pattern<T>) -> Option<Arc<T>> {
        self.templates.intern(pattern)
    }

    /// The same template once more, if there still is one.
    pub fn hold_template(&self, template: &Weak<T>) -> Option<Arc<T>> {
        self.templates.hold(template)
    }

    /// Gives back a template that was not given to a session.
    pub fn release_template(&self, template: Arc<T>) {
        self.templates.release(template);
    }

    /// Stores a session, in place of one that may be there, and evicts others while a bound is exceeded.
    /// `verified` says that it has a verified peer certificate. `false` if this session alone exceeds a
    /// bound, would be expired at once, or the system has no memory for it.
    pub fn insert(
        &self,
        key: SessionKey,
        secret: &[u8; 48],
        template: Option<Arc<T>>,
        tail: &[u8],
        verified: bool,
        now_ms: u64,
    ) -> bool {
        let entry = Entry {
            id: &[0; 32],
            secret,
            tail,
            flags: if verified { VERIFIED } else { 0 },
            born_ms: now_ms,
            arrival: None,
        };
        let stored = match key {
            SessionKey::Id(id) => self.insert_slot(key, template, Entry { id, ..entry }, now_ms),
            SessionKey::Other(other) => {
                let mut tail = [&(other.len() as u64).to_ne_bytes(), other, tail].concat();
                let entry = Entry {
                    tail: &tail,
                    flags: entry.flags | OTHER_KEY,
                    ..entry
                };
                let restored = self.insert_slot(key, template, entry, now_ms);
                tail.zeroize();
                restored
            }
        } == Restored::Stored;
        Counters::add(match stored {
            true => &self.counters.inserts,
            false => &self.counters.refused,
        });
        stored
    }

    /// Stores a session that was made elsewhere or before, at `born_ms` by this store's clock, unless there is
    /// one under its id. Not counted.
    #[allow(clippy::too_many_arguments)]
    pub fn restore(
        &self,
        id: &[u8; 32],
        secret: &[u8; 48],
        template: Arc<T>,
        tail: &[u8],
        verified: bool,
        born_ms: u64,
        arrival: Arrival,
        now_ms: u64,
    ) -> Restored {
        let entry = Entry {
            id,
            secret,
            tail,
            flags: if verified { VERIFIED } else { 0 },
            born_ms,
            arrival: Some(arrival),
        };
        self.insert_slot(SessionKey::Id(id), Some(template), entry, now_ms)
    }

    /// Calls `read` with the session under `key`, unless its lifetime has run out. Counted as a hit or a
    /// miss. `read` must not call this store.
    pub fn lookup<R>(
        &self,
        key: SessionKey,
        now_ms: u64,
        read: impl FnOnce(Session<T>) -> R,
    ) -> Option<R> {
        let answer = self.find_fresh(key, now_ms).map(|found| {
            // SAFETY: the slot is in the index, and `found` keeps it there.
            let slot = unsafe { self.slot(found.slot()) };
            // SAFETY: as above; `uses` is atomic. Not counted in one step, which would cost more than the
            // count is worth, and written only where it changes something, so that lookups of one session
            // do not take the cache line from each other for ever.
            let uses = unsafe { &*addr_of!((*slot).uses) };
            let before = uses.load(Relaxed);
            let after = VISITED | (before & MOST_USES).saturating_add(1).min(MOST_USES);
            if before != after {
                uses.store(after, Relaxed);
            }
            // SAFETY: as above.
            read(unsafe { session(slot) })
        });
        Counters::add(match answer {
            Some(_) => &self.counters.hits,
            None => &self.counters.misses,
        });
        answer
    }

    /// As [`lookup`](Self::lookup), but neither counted nor remembered as use.
    pub fn peek<R>(
        &self,
        key: SessionKey,
        now_ms: u64,
        read: impl FnOnce(Session<T>) -> R,
    ) -> Option<R> {
        let found = self.find_fresh(key, now_ms)?;
        // SAFETY: the slot is in the index, and `found` keeps it there.
        Some(read(unsafe { session(self.slot(found.slot())) }))
    }

    /// Drops the session under `key`, and tells if there was one.
    pub fn delete(&self, key: SessionKey) -> bool {
        let mut order = self.order.lock();
        // Found and let go: under the order lock nobody else takes it out.
        let slot = self.find(key).map(|found| found.slot());
        if let Some(slot) = slot {
            self.take_out(&mut order, slot);
        }
        slot.is_some()
    }

    /// How long ago the oldest session was stored, in milliseconds.
    pub fn oldest_ms(&self, now_ms: u64) -> Option<u64> {
        let order = self.order.lock();
        let oldest = [order.unverified.oldest(), order.verified.oldest()];
        // SAFETY: what is in an order is allocated, and the order lock is held.
        let age_ms = |slot| unsafe { age_ms(self.slot(slot), now_ms) };
        oldest.into_iter().flatten().map(age_ms).max()
    }

    /// Calls `visit` with about `limit` sessions from the position `from` on, which is 0 at first, and
    /// returns the position of the next, or `None` after the last. A session that stays is met once,
    /// whatever comes and goes in between. `visit` must be quick and not call this store.
    pub fn page(
        &self,
        from: u64,
        limit: usize,
        now_ms: u64,
        mut visit: impl FnMut(Listed<T>),
    ) -> Option<u64> {
        self.index.page(from, limit, |slot| {
            // SAFETY: the slot is in the index, whose lock on this part is held.
            unsafe {
                let slot = self.slot(slot);
                if !self.is_expired(slot, now_ms) {
                    visit(Listed {
                        key: key_of(slot),
                        session: session(slot),
                        age_ms: age_ms(slot, now_ms),
                        uses: (*addr_of!((*slot).uses)).load(Relaxed) & MOST_USES,
                        verified: (*slot).flags & VERIFIED != 0,
                    });
                }
            }
        })
    }

    /// Drops at most `slice` sessions whose lifetime has run out, and returns how many.
    pub fn expire(&self, now_ms: u64, slice: usize) -> usize {
        let mut order = self.order.lock();
        let dropped = (0..slice)
            .take_while(|_| self.drop_expired(&mut order, now_ms))
            .count();
        // To whoever waits, not to the caller's next slice.
        unlock_fair(order);
        dropped
    }

    /// Drops at most `slice` sessions to keep the bounds, and returns how many: for bounds that were made
    /// narrower, as one insertion only makes room for itself. 0 when the bounds are kept.
    pub fn shrink(&self, now_ms: u64, slice: usize) -> usize {
        let mut order = self.order.lock();
        let dropped = self.make_room(&mut order, Room::default(), now_ms, slice);
        unlock_fair(order);
        dropped
    }

    /// Gives back what the store has no use for now: empty pages, and an index that is much too large.
    /// Each part of the index is locked for a moment.
    pub fn trim(&self) {
        let empty = self.order.lock().slab.take_empty(&self.directory);
        drop(empty);
        self.index.shrink(self.sessions());
        self.index_bytes.store(self.index.bytes(), Relaxed);
    }

    /// Drops at most `slice` sessions, and returns how many.
    pub fn clear(&self, slice: usize) -> usize {
        let mut order = self.order.lock();
        let mut dropped = 0;
        while dropped < slice {
            let oldest = order
                .unverified
                .oldest()
                .or_else(|| order.verified.oldest());
            let Some(slot) = oldest else { break };
            self.take_out(&mut order, slot);
            dropped += 1;
        }
        unlock_fair(order);
        dropped
    }

    /// Calls `visit` with each key. A part of the index is locked meanwhile: `visit` must be quick and not
    /// call this store.
    pub fn for_each_key(&self, mut visit: impl FnMut(SessionKey)) {
        self.index.for_each(|slot| {
            // SAFETY: the slot is in the index, whose lock on this part is held.
            let slot = unsafe { self.slot(slot) };
            // SAFETY: as above.
            visit(unsafe { key_of(slot) });
        });
    }

    /// The slot of a session that may be handed out at `now_ms`.
    fn find_fresh(&self, key: SessionKey, now_ms: u64) -> Option<Found<'_>> {
        let found = self.find(key)?;
        // SAFETY: the slot is in the index, and `found` keeps it there.
        let is_expired = unsafe { self.is_expired(self.slot(found.slot()), now_ms) };
        (!is_expired).then_some(found)
    }

    /// The slot of a session.
    fn find(&self, key: SessionKey) -> Option<Found<'_>> {
        let found = self.index.find(self.index.digest(key))?;
        // SAFETY: the slot is in the index, and `found` keeps it there.
        let slot = unsafe { self.slot(found.slot()) };
        // SAFETY: as above.
        let is_it = unsafe { key_of(slot) == key };
        is_it.then_some(found)
    }

    /// Stores a session, or releases its template.
    fn insert_slot(
        &self,
        key: SessionKey,
        template: Option<Arc<T>>,
        entry: Entry,
        now_ms: u64,
    ) -> Restored {
        let restored = self.try_insert_slot(key, template.as_ref(), entry, now_ms);
        match (restored, template) {
            // The slot has it.
            (Restored::Stored, Some(template)) => std::mem::forget(template),
            (_, Some(template)) => self.templates.release(template),
            (_, None) => {}
        }
        restored
    }

    /// Stores a session. If that is done, the caller's hold on the template is the slot's.
    fn try_insert_slot(
        &self,
        key: SessionKey,
        template: Option<&Arc<T>>,
        entry: Entry,
        now_ms: u64,
    ) -> Restored {
        let Entry { tail, flags, .. } = entry;
        let boxed = tail.len() > MAX_TAIL;
        let slot_bytes = size_of::<Slot<T>>()
            + if boxed {
                size_of::<Boxed>()
            } else {
                tail.len()
            };
        let cost = Slab::slot_size(slot_bytes) + if boxed { tail.len() } else { 0 };
        let limits = self.limits();
        if cost as u64 > limits.max_bytes
            || limits.max_sessions == 0
            || now_ms.saturating_sub(entry.born_ms) >= limits.lifetime_ms
        {
            return Restored::NoRoom;
        }
        let digest = self.index.digest(key);
        let mut order = self.order.lock();
        self.measure_index(&mut order);
        if entry.arrival.is_some() && self.find(key).is_some() {
            return Restored::Known;
        }
        let in_its_place = u64::from(self.index.find(digest).is_some());
        let room = Room {
            bytes: cost as u64,
            sessions: 1 - in_its_place,
        };
        if entry.arrival == Some(Arrival::Replayed) {
            if !self.has_room(&room) {
                return Restored::NoRoom;
            }
        } else {
            self.make_room(&mut order, room, now_ms, EVICTIONS_AN_INSERT);
        }
        let Some(slot) = order.slab.allocate(&self.directory, slot_bytes) else {
            return Restored::NoRoom;
        };
        // SAFETY: the slot was allocated for a header and this tail, and nobody else knows of it yet.
        unsafe {
            let slot = self.slot(slot);
            slot.write(Slot {
                template: template.map_or(null(), Arc::as_ptr),
                id: *entry.id,
                secret: *entry.secret,
                newer: SlotRef::NONE,
                older: SlotRef::NONE,
                born: ticks(entry.born_ms),
                tail_len: if boxed { 0 } else { tail.len() as u16 },
                uses: AtomicU8::new(0),
                flags: flags | if boxed { BOXED } else { 0 },
            });
            let place = tail_place(slot);
            if boxed {
                let tail: Box<[u8]> = Box::from(tail);
                place.cast::<Boxed>().write_unaligned(Box::into_raw(tail));
            } else {
                place.copy_from_nonoverlapping(tail.as_ptr(), tail.len());
            }
        }
        self.enter_order(&mut order, slot, flags, &entry);
        self.sessions.fetch_add(1, Relaxed);
        self.slot_bytes.fetch_add(cost as u64, Relaxed);
        if let Some(old) = self.index.insert(digest, slot) {
            self.free(&mut order, old);
        }
        Restored::Stored
    }

    /// As the newest; or as the oldest, if it was made before all others.
    fn enter_order(&self, order: &mut Order, slot: SlotRef, flags: u8, entry: &Entry) {
        let sieve = order.sieve(flags);
        let is_oldest = entry.arrival.is_some()
            && sieve.oldest().is_some_and(|oldest| {
                // SAFETY: what is in an order is allocated, and the order lock is held.
                ticks(entry.born_ms) <= unsafe { (*self.slot(oldest)).born }
            });
        if is_oldest {
            sieve.insert_oldest(&LinksOf(self), slot);
        } else {
            sieve.insert(&LinksOf(self), slot);
        }
    }

    /// Before room is made, so that an index that has grown is made room for as well.
    fn measure_index(&self, order: &mut Order) {
        if order.measure_index_in == 0 {
            self.index_bytes.store(self.index.bytes(), Relaxed);
            order.measure_index_in = self.index.measure_again_in(self.sessions());
        }
        order.measure_index_in = order.measure_index_in.saturating_sub(1);
    }

    fn has_room(&self, room: &Room) -> bool {
        let limits = self.limits();
        self.bytes() + room.bytes <= limits.max_bytes
            && self.sessions() + room.sessions <= limits.max_sessions
    }

    /// Drops at most `slice` sessions, expired ones first, until there is `room`. Where none is asked
    /// for, fewer when patience ends: the caller comes again, and what was read is not dropped for haste.
    fn make_room(&self, order: &mut Order, room: Room, now_ms: u64, slice: usize) -> usize {
        let mut dropped = 0;
        let mut patience = PATIENCE;
        while dropped < slice
            && (patience > 0 || room.bytes > 0)
            && !self.has_room(&room)
            && (self.drop_expired(order, now_ms) || self.evict(order, &mut patience))
        {
            dropped += 1;
        }
        dropped
    }

    /// Drops the oldest session of either order if it has expired.
    fn drop_expired(&self, order: &mut Order, now_ms: u64) -> bool {
        let oldest = [order.unverified.oldest(), order.verified.oldest()];
        // SAFETY: what is in an order is allocated, and the order lock is held.
        let is_expired = |slot: &SlotRef| unsafe { self.is_expired(self.slot(*slot), now_ms) };
        let Some(slot) = oldest.into_iter().flatten().find(is_expired) else {
            return false;
        };
        self.take_out(order, slot);
        Counters::add(&self.counters.expired);
        true
    }

    fn evict(&self, order: &mut Order, patience: &mut usize) -> bool {
        let links = LinksOf(self);
        let victim = order
            .unverified
            .victim(&links, patience)
            .or_else(|| order.verified.victim(&links, patience));
        let Some(slot) = victim else { return false };
        self.take_out(order, slot);
        Counters::add(&self.counters.evicted);
        true
    }

    /// Takes a session out of the index, and frees it.
    fn take_out(&self, order: &mut Order, slot: SlotRef) {
        // SAFETY: what is in an order is allocated, and the order lock is held.
        let key = unsafe { key_of(self.slot(slot)) };
        self.index.remove(self.index.digest(key));
        self.free(order, slot);
    }

    /// Frees a session that was taken out of the index: out of the order, wiped, and its slot given back.
    fn free(&self, order: &mut Order, slot: SlotRef) {
        // SAFETY: the slot is in an order and so allocated; it is out of the index, and the order lock is
        // held, so it is this function's alone.
        unsafe {
            let place = self.slot(slot);
            order.sieve((*place).flags).remove(&LinksOf(self), slot);
            let mut slot_bytes = size_of::<Slot<T>>() + usize::from((*place).tail_len);
            let mut cost = 0;
            if (*place).flags & BOXED != 0 {
                let mut tail = Box::from_raw(tail_place(place).cast::<Boxed>().read_unaligned());
                tail.zeroize();
                slot_bytes += size_of::<Boxed>();
                cost += tail.len();
            }
            cost += Slab::slot_size(slot_bytes);
            let template = (*place).template;
            slice::from_raw_parts_mut(place.cast::<u8>(), slot_bytes).zeroize();
            if !template.is_null() {
                self.templates.release(Arc::from_raw(template));
            }
            order.slab.free(&self.directory, slot, slot_bytes);
            self.sessions.fetch_sub(1, Relaxed);
            self.slot_bytes.fetch_sub(cost as u64, Relaxed);
        }
    }

    /// # Safety
    /// `slot` is allocated.
    unsafe fn slot(&self, slot: SlotRef) -> *mut Slot<T> {
        // SAFETY: by the caller.
        unsafe { self.directory.find(slot).as_ptr().cast() }
    }

    /// # Safety
    /// `slot` is in the index or in an order, and the lock on it is held.
    unsafe fn is_expired(&self, slot: *const Slot<T>, now_ms: u64) -> bool {
        // SAFETY: by the caller.
        unsafe { age_ms(slot, now_ms) >= self.lifetime_ms.load(Relaxed) }
    }
}

impl<T> Drop for ServerStore<T> {
    fn drop(&mut self) {
        while self.clear(usize::MAX) > 0 {}
    }
}

impl Order {
    fn sieve(&mut self, flags: u8) -> &mut Sieve {
        if flags & VERIFIED == 0 {
            &mut self.unverified
        } else {
            &mut self.verified
        }
    }
}

/// The links of a store's slots. Used under its order lock only.
struct LinksOf<'a, T>(&'a ServerStore<T>);

// SAFETY of all: what is in an order is allocated, and the order lock is held.
impl<T> Links for LinksOf<'_, T> {
    fn newer(&self, slot: SlotRef) -> SlotRef {
        unsafe { (*self.0.slot(slot)).newer }
    }

    fn older(&self, slot: SlotRef) -> SlotRef {
        unsafe { (*self.0.slot(slot)).older }
    }

    fn set_newer(&self, slot: SlotRef, newer: SlotRef) {
        unsafe { addr_of_mut!((*self.0.slot(slot)).newer).write(newer) }
    }

    fn set_older(&self, slot: SlotRef, older: SlotRef) {
        unsafe { addr_of_mut!((*self.0.slot(slot)).older).write(older) }
    }

    fn take_visited(&self, slot: SlotRef) -> bool {
        unsafe {
            (*addr_of!((*self.0.slot(slot)).uses)).fetch_and(!VISITED, Relaxed) & VISITED != 0
        }
    }
}

/// # Safety
/// `slot` is in the index or in an order, and the lock on it is held.
unsafe fn age_ms<T>(slot: *const Slot<T>, now_ms: u64) -> u64 {
    // SAFETY: by the caller.
    let born = u64::from(unsafe { (*slot).born });
    (now_ms / TICK_MS).saturating_sub(born) * TICK_MS
}

fn ticks(now_ms: u64) -> u32 {
    (now_ms / TICK_MS) as u32
}

fn tail_place<T>(slot: *mut Slot<T>) -> *mut u8 {
    // Behind the header, in the same slot.
    slot.wrapping_add(1).cast()
}

/// # Safety
/// `slot` is in the index or in an order, and the lock on it is held for `'a`.
unsafe fn whole_tail<'a, T>(slot: *const Slot<T>) -> &'a [u8] {
    let place = tail_place(slot.cast_mut());
    // SAFETY: by the caller; the tail was written before the slot was entered anywhere.
    unsafe {
        if (*slot).flags & BOXED != 0 {
            &*place.cast::<Boxed>().read_unaligned()
        } else {
            slice::from_raw_parts(place, usize::from((*slot).tail_len))
        }
    }
}

/// The key and the session's own tail.
///
/// # Safety
/// As [`whole_tail`].
unsafe fn parts<'a, T>(slot: *const Slot<T>) -> (SessionKey<'a>, &'a [u8]) {
    // SAFETY: by the caller.
    let (flags, tail) = unsafe { ((*slot).flags, whole_tail(slot)) };
    if flags & OTHER_KEY == 0 {
        // SAFETY: by the caller.
        return (SessionKey::Id(unsafe { &*addr_of!((*slot).id) }), tail);
    }
    let (len, rest) = tail.split_at(size_of::<u64>());
    let len = u64::from_ne_bytes(len.try_into().unwrap_or_default());
    let (key, tail) = rest.split_at(len as usize);
    (SessionKey::Other(key), tail)
}

/// # Safety
/// As [`whole_tail`].
unsafe fn key_of<'a, T>(slot: *const Slot<T>) -> SessionKey<'a> {
    // SAFETY: by the caller.
    unsafe { parts(slot).0 }
}

/// # Safety
/// As [`whole_tail`].
unsafe fn session<'a, T>(slot: *const Slot<T>) -> Session<'a, T> {
    // SAFETY: by the caller; the slot holds its template.
    unsafe {
        Session {
            secret: &*addr_of!((*slot).secret),
            template: (*slot).template.as_ref(),
            tail: parts(slot).1,
        }
    }
}

#[cfg(any(test, fuzzing))]
pub mod model;

#[cfg(test)]
mod tests {
    use super::*;

    /// What test sessions have in common.
    struct Common(u8);

    impl Pattern<u8> for Common {
        fn hash(&self) -> u64 {
            u64::from(self.0)
        }
        fn matches(&self, template: &u8) -> bool {
            *template == self.0
        }
        fn make(&self) -> Option<(u8, u64)> {
            Some((self.0, 100))
        }
    }

    fn store(max_bytes: u64, max_sessions: u64, lifetime_ms: u64) -> ServerStore<u8> {
        ServerStore::new(Limits {
            max_bytes,
            max_sessions,
            lifetime_ms,
        })
    }

    fn id(n: u32) -> [u8; 32] {
        let mut id = [7; 32];
        id[..4].copy_from_slice(&n.wrapping_mul(2_654_435_761).to_ne_bytes());
        id
    }

    fn restore(
        store: &ServerStore<u8>,
        n: u32,
        born_ms: u64,
        arrival: Arrival,
        now_ms: u64,
    ) -> Restored {
        let template = store.template(&Common(1)).unwrap();
        let secret = [n as u8; 48];
        store.restore(
            &id(n),
            &secret,
            template,
            b"",
            false,
            born_ms,
            arrival,
            now_ms,
        )
    }

    fn insert(store: &ServerStore<u8>, n: u32, tail: &[u8], verified: bool, now_ms: u64) -> bool {
        let template = store.template(&Common(1));
        let secret = [n as u8; 48];
        store.insert(
            SessionKey::Id(&id(n)),
            &secret,
            template,
            tail,
            verified,
            now_ms,
        )
    }

    fn held(store: &ServerStore<u8>, n: u32, now_ms: u64) -> Option<(u8, Vec<u8>)> {
        store.peek(SessionKey::Id(&id(n)), now_ms, |session| {
            assert_eq!(session.template, Some(&1));
            (session.secret[47], session.tail.to_vec())
        })
    }

    fn survivors(store: &ServerStore<u8>, range: std::ops::Range<u32>) -> Vec<u32> {
        range.filter(|n| held(store, *n, 0).is_some()).collect()
    }

    #[test]
    fn hands_out_what_was_inserted_and_counts() {
        let store = store(u64::MAX, u64::MAX, 1000);
        assert!(insert(&store, 1, b"certificate", true, 0));
        let found = store.lookup(SessionKey::Id(&id(1)), 0, |s| {
            (s.secret[0], s.tail.to_vec())
        });
        assert_eq!(found, Some((1, b"certificate".to_vec())));
        assert!(store.lookup(SessionKey::Id(&id(2)), 0, |_| ()).is_none());
        let counts = store.counters().read();
        assert_eq!((counts.inserts, counts.hits, counts.misses), (1, 1, 1));
    }

    #[test]
    fn the_first_to_go_is_the_oldest_that_was_not_looked_up() {
        let store = store(u64::MAX, 4, 1000);
        for n in 0..4 {
            insert(&store, n, b"", false, 0);
        }
        store.lookup(SessionKey::Id(&id(0)), 0, |_| ());
        for n in 4..6 {
            insert(&store, n, b"", false, 0);
        }
        assert_eq!(survivors(&store, 0..6), [0, 3, 4, 5]);
        assert_eq!((store.sessions(), store.counters().read().evicted), (4, 2));
    }

    #[test]
    fn verified_sessions_outlive_the_others() {
        let store = store(u64::MAX, 4, 1000);
        for n in 0..4 {
            insert(&store, n, b"", n < 2, 0);
        }
        for n in 4..100 {
            insert(&store, n, b"", false, 0);
        }
        assert_eq!(survivors(&store, 0..100), [0, 1, 98, 99]);
        for n in 100..104 {
            insert(&store, n, b"", true, 0);
        }
        assert_eq!(survivors(&store, 0..104), [100, 101, 102, 103]);
    }

    #[test]
    fn the_bound_in_bytes_is_kept_with_tails_of_all_sizes() {
        let store = store(2_000_000, u64::MAX, 1000);
        for n in 0..20_000 {
            assert!(insert(
                &store,
                n,
                &vec![3; (n * 37 % 3000) as usize],
                false,
                0
            ));
            assert!(store.bytes() <= 2_000_000);
        }
        assert!(store.bytes() > 1_900_000);
        assert_eq!(held(&store, 19_999, 0).unwrap().1.len(), 19_999 * 37 % 3000);
        assert!(!insert(&store, 1, &vec![0; 3_000_000], false, 0));
        assert_eq!(store.counters().read().refused, 1);
        while store.clear(100) > 0 {}
        assert_eq!((store.sessions(), store.slot_bytes.load(Relaxed)), (0, 0));
    }

    #[test]
    fn a_narrower_bound_is_kept_in_slices() {
        let store = store(u64::MAX, u64::MAX, 1000);
        for n in 0..1000 {
            insert(&store, n, b"", false, 0);
        }
        store.set_limits(Limits {
            max_sessions: 10,
            ..store.limits()
        });
        insert(&store, 1000, b"", false, 0);
        assert_eq!(store.sessions(), 1001 - EVICTIONS_AN_INSERT as u64);
        while store.shrink(0, 100) == 100 {}
        assert_eq!(store.sessions(), 10);
    }

    #[test]
    fn sessions_that_were_read_end_a_slice_early() {
        let store = store(u64::MAX, u64::MAX, 1000);
        for n in 0..10_000 {
            insert(&store, n, b"", false, 0);
            if n % 100 > 0 {
                store.lookup(SessionKey::Id(&id(n)), 0, |_| ());
            }
        }
        store.set_limits(Limits {
            max_sessions: 9_950,
            ..store.limits()
        });
        while store.shrink(0, 256) > 0 {}
        let cold = (0..100)
            .filter(|n| held(&store, n * 100, 0).is_some())
            .count();
        // Where patience ends, one goes that was read.
        assert_eq!(store.sessions(), 9_950);
        assert!(cold <= 75, "{cold}");
    }

    #[test]
    fn an_index_larger_than_a_narrower_bound_does_not_cost_all_sessions() {
        let store = store(100_000_000, u64::MAX, 1000);
        for n in 0..200_000 {
            insert(&store, n, b"", false, 0);
        }
        store.set_limits(Limits {
            max_bytes: 2_000_000,
            ..store.limits()
        });
        while store.shrink(0, 256) > 0 {
            store.trim();
        }
        assert!(store.bytes() <= 2_000_000);
        assert!(store.sessions() > 10_000, "{}", store.sessions());
    }

    #[test]
    fn long_tails_are_held_as_well() {
        let store = store(u64::MAX, u64::MAX, 1000);
        let tail: Vec<u8> = (0..100_000).map(|n| n as u8).collect();
        assert!(insert(&store, 1, &tail, false, 0));
        assert_eq!(held(&store, 1, 0), Some((1, tail)));
        assert!(store.bytes() > 100_000);
        store.delete(SessionKey::Id(&id(1)));
        assert_eq!((store.sessions(), store.slot_bytes.load(Relaxed)), (0, 0));
    }

    #[test]
    fn any_key_will_do() {
        let store = store(u64::MAX, u64::MAX, 1000);
        let long = vec![1; 20_000];
        let keys: [&[u8]; 4] = [b"", b"short", &id(5), &long];
        for (n, key) in keys.iter().enumerate() {
            let tail = [n as u8; 3];
            store.insert(SessionKey::Other(key), &[0; 48], None, &tail, false, 0);
        }
        insert(&store, 5, b"by id", false, 0);
        for (n, key) in keys.iter().enumerate() {
            let tail = store.lookup(SessionKey::Other(key), 0, |s| s.tail.to_vec());
            assert_eq!(tail, Some(vec![n as u8; 3]));
        }
        assert_eq!(held(&store, 5, 0).unwrap().1, b"by id");
        let mut others = 0;
        store.for_each_key(|key| others += u32::from(matches!(key, SessionKey::Other(_))));
        assert_eq!((others, store.sessions()), (4, 5));
        store.delete(SessionKey::Other(b"short"));
        assert!(store.peek(SessionKey::Other(b"short"), 0, |_| ()).is_none());
    }

    #[test]
    fn replacing_keeps_one_session() {
        let store = store(u64::MAX, 2, 1000);
        insert(&store, 1, b"old", false, 0);
        insert(&store, 2, b"", false, 0);
        insert(&store, 1, b"new", false, 0);
        assert_eq!((store.sessions(), store.counters().read().evicted), (2, 0));
        assert_eq!(held(&store, 1, 0).unwrap().1, b"new");
        insert(&store, 3, b"", false, 0);
        assert_eq!(survivors(&store, 0..4), [1, 3]);
    }

    #[test]
    fn an_expired_session_is_never_handed_out_and_goes_first() {
        let store = store(u64::MAX, 3, 1000);
        insert(&store, 1, b"", true, 0);
        insert(&store, 2, b"", false, 500);
        insert(&store, 3, b"", false, 500);
        assert!(held(&store, 1, 900).is_some());
        assert!(held(&store, 1, 1000).is_none());
        assert_eq!(store.sessions(), 3);
        insert(&store, 4, b"", false, 1000);
        assert_eq!(store.counters().read().expired, 1);
        assert_eq!((store.expire(1500, 1), store.expire(1500, 10)), (1, 1));
        assert_eq!(store.sessions(), 1);
    }

    #[test]
    fn a_lifetime_of_nothing_keeps_nothing() {
        let store = store(u64::MAX, u64::MAX, 0);
        assert!(!insert(&store, 1, b"", false, 0));
        assert_eq!((store.sessions(), store.templates()), (0, 0));
    }

    #[test]
    fn pages_hold_each_session_once_whatever_comes_and_goes() {
        let store = store(u64::MAX, u64::MAX, 1000);
        for n in 0..5_000 {
            insert(&store, n, b"tail", n % 2 == 0, u64::from(n / 50));
        }
        let (mut met, mut from, mut pages) = (vec![0; 20_000], Some(0), 0);
        while let Some(position) = from {
            let mut on_page = 0;
            from = store.page(position, 100, 200, |listed| {
                let SessionKey::Id(id) = listed.key else {
                    panic!("no id")
                };
                let n = (0..20_000).find(|n| super::tests::id(*n) == *id).unwrap();
                met[n as usize] += 1;
                on_page += 1;
                if n < 5_000 {
                    assert_eq!(listed.verified, n % 2 == 0);
                    assert_eq!(listed.age_ms, 200 - u64::from(n / 50) / 100 * 100);
                    assert_eq!(
                        (listed.session.tail, listed.session.secret[0]),
                        (&b"tail"[..], n as u8)
                    );
                }
            });
            assert!(on_page <= 100);
            pages += 1;
            if pages % 5 == 0 {
                // The table grows meanwhile, and even ones go.
                (5_000..)
                    .skip(pages * 20)
                    .take(100)
                    .for_each(|n| _ = insert(&store, n, b"", false, 0));
                store.delete(SessionKey::Id(&id(pages as u32 * 2)));
            }
        }
        assert!(pages >= 50);
        assert!((1..5_000).step_by(2).all(|n| met[n] == 1));
        assert!(met.iter().all(|times| *times <= 1));
    }

    #[test]
    fn uses_are_counted_up_to_a_bound_and_not_taken_with_the_mark() {
        let uses = |store: &ServerStore<u8>, n: u32| {
            let mut found = None;
            store.page(0, 100, 0, |listed| {
                if listed.key == SessionKey::Id(&id(n)) {
                    found = Some(listed.uses);
                }
            });
            found
        };
        let store = store(u64::MAX, 3, 1000);
        for n in 0..3 {
            insert(&store, n, b"", false, 0);
        }
        for _ in 0..3 {
            store.lookup(SessionKey::Id(&id(0)), 0, |_| ());
        }
        (0..1000).for_each(|_| _ = store.lookup(SessionKey::Id(&id(2)), 0, |_| ()));
        assert_eq!(
            (uses(&store, 0), uses(&store, 1), uses(&store, 2)),
            (Some(3), Some(0), Some(MOST_USES))
        );
        // The hand takes the first one's mark, and evicts the second.
        insert(&store, 3, b"", false, 0);
        assert_eq!((uses(&store, 0), uses(&store, 1)), (Some(3), None));
        // Without its mark it goes when the hand comes again, however often it was used.
        insert(&store, 4, b"", false, 0);
        insert(&store, 5, b"", false, 0);
        assert_eq!(uses(&store, 0), None);
    }

    #[test]
    fn the_oldest_is_that_of_both_orders() {
        let store = store(u64::MAX, u64::MAX, 10_000);
        assert_eq!(store.oldest_ms(0), None);
        insert(&store, 1, b"", true, 1_000);
        insert(&store, 2, b"", false, 3_000);
        assert_eq!(store.oldest_ms(5_000), Some(4_000));
        assert!(store.delete(SessionKey::Id(&id(1))));
        assert!(!store.delete(SessionKey::Id(&id(1))));
        assert_eq!(store.oldest_ms(5_000), Some(2_000));
    }

    #[test]
    fn templates_go_with_their_last_session() {
        let store = store(u64::MAX, u64::MAX, 1000);
        insert(&store, 1, b"", false, 0);
        insert(&store, 2, b"", false, 0);
        assert_eq!(store.templates(), 1);
        store.delete(SessionKey::Id(&id(1)));
        assert_eq!(store.templates(), 1);
        store.clear(10);
        assert_eq!(store.templates(), 0);
    }

    #[test]
    fn lookups_go_on_while_sessions_come_and_go() {
        let store = store(400_000, u64::MAX, 1000);
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    for n in (0..2_000).cycle().take(200_000) {
                        let expected = (n as u8, vec![n as u8; (n % 500) as usize]);
                        let found = store.lookup(SessionKey::Id(&id(n)), 0, |session| {
                            (session.secret[0], session.tail.to_vec())
                        });
                        assert!(found.is_none_or(|found| found == expected));
                    }
                });
            }
            for round in 0..20 {
                for n in 0..2_000 {
                    insert(&store, n, &vec![n as u8; (n % 500) as usize], n % 3 == 0, 0);
                    if n % 7 == round % 7 {
                        store.delete(SessionKey::Id(&id(n)));
                    }
                }
            }
        });
        assert!(store.counters().read().hits > 0);
    }

    #[test]
    fn replayed_sessions_expire_in_the_order_they_were_made_in() {
        let store = store(1_000_000, 100, 1000);
        assert!(insert(&store, 0, b"", false, 1000));
        for n in 1..=5 {
            let born_ms = 1000 - u64::from(n) * 100;
            let restored = restore(&store, n, born_ms, Arrival::Replayed, 1000);
            assert_eq!(restored, Restored::Stored);
        }
        assert_eq!(store.oldest_ms(1000), Some(500));
        assert_eq!(store.expire(1700, 100), 3);
        assert_eq!(held(&store, 2, 1700).map(|(secret, _)| secret), Some(2));
        assert!(held(&store, 3, 1700).is_none());
        assert_eq!(store.expire(2000, 100), 3);
        assert_eq!(store.templates(), 0);
    }

    #[test]
    fn what_is_replayed_takes_no_place_of_others() {
        let store = store(1_000_000, 2, 1000);
        assert!(insert(&store, 0, b"", false, 500));
        assert_eq!(
            restore(&store, 0, 400, Arrival::Replayed, 500),
            Restored::Known
        );
        assert_eq!(
            restore(&store, 1, 400, Arrival::Replayed, 500),
            Restored::Stored
        );
        assert_eq!(
            restore(&store, 2, 300, Arrival::Replayed, 500),
            Restored::NoRoom
        );
        assert_eq!(
            restore(&store, 3, 500, Arrival::Live, 500),
            Restored::Stored
        );
        assert_eq!(
            restore(&store, 4, 100, Arrival::Live, 1100),
            Restored::NoRoom
        );
        assert_eq!((store.sessions(), store.counters().read().evicted), (2, 1));
        assert_eq!(store.counters().read().inserts, 1);
    }
}
