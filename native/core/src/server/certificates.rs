//! Client certificates, each kept once per scope, with the chain of the sessions that were made with it.
//!
//! A new session finds its certificate by the content; a revocation finds it by its fingerprint, or by its issuer and serial
//! number. The janitor does slow work later: fingerprints and, if memory is short, compression against another certificate of
//! the same authority.
//!
//! # Who may touch a certificate
//!
//! Sessions name certificates by number. The entry of that number has the slot and a lock. A reader comes from a session
//! whose bucket it visits, so the certificate stays. If the reader has announced the bucket, it just reads; if it has locked
//! the bucket, it takes the entry's lock as well. Writers hold the order lock, and [`Books`] proves that. To move a
//! certificate, a writer copies it, changes the slot under the entry's lock, and waits until all present announcements have
//! ended: later readers find the new slot.

#![allow(unsafe_code)]

use super::index::{Growth, Index, Number};
use super::pages::{prefetch, Zeroed};
use super::slab::{slot_bytes, Directory, Kind, Slab, SlotRef};
use super::slice::Slice;
use crate::lookups::Lookups;
use crate::sync::RawLock;
use crate::trust::{Claims, IssuerHash};
use crate::x509::{canonical_name, is_same_name, issuer_and_serial, Signed};
use dashmap::DashMap;
use foldhash::quality::RandomState;
use once_cell::sync::OnceCell;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, Hash};
use std::mem::size_of;
use std::slice;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::Arc;

/// The largest certificate that is stored, in bytes.
pub(crate) const MAX_CERTIFICATE: usize = 64 * 1024;

/// How many bytes of a certificate are prefetched before its length is known.
const USUAL_CERTIFICATE: usize = 1024;

/// Most authorities with a number. Certificates of others are never compressed. The bound is needed because a client that
/// issues its own certificates can make any number of authorities.
const MAX_ISSUERS: usize = 4096;

/// The largest certificate that others are compressed against.
const MAX_DICTIONARY: usize = 4096;

/// The longest name of an authority with a number, in bytes, both as it is and in canonical form.
const MAX_NAME: usize = 1024;

/// Bytes of an authority beside its names and its dictionary.
const ISSUER_BYTES: usize = 256;

/// Shards of the table of authorities. Few suffice, because the table is small and locked only for moments.
const SHARDS: usize = 4;

/// How many certificates of one authority with the same serial number the index finds by it. There should be only one, but a
/// script that makes certificates may repeat numbers. The index finds further ones by their whole content, and a revocation
/// of the number walks over all certificates.
const SAME_SERIAL: usize = 8;

/// A table with no more numbers than this is not worth shrinking.
const FEW_NUMBERS: Number = 1024;

/// Entries that one step looks at.
const ENTRIES_PER_STEP: u32 = 64;

/// The beginning of a certificate's slot. The certificate follows at `DATA`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Header {
    number: Number,
    /// The number of its authority, or 0.
    issuer: u32,
    /// Its newest session.
    newest: SlotRef,
    /// Its keys in the indexes: by issuer and serial number, and by its fingerprints.
    serial_key: u32,
    fingerprint_keys: [u32; 2],
    /// Its [`Claims`], in halves, because this header is aligned to four bytes.
    last_second: u32,
    issuer_hash: [u32; 2],
    certificate_hash: [u32; 2],
    /// Its length, and how many bytes are stored, each less one.
    length: u16,
    stored: u16,
    is_compressed: bool,
}

/// The offset of the certificate, right behind the last field.
const DATA: usize = 49;

const USED: u8 = 1;
const FINGERPRINTED: u8 = 2;
/// Compressed, or not worth compressing.
const PACKED: u8 = 4;

/// The entry of a certificate's number. Zeros mean that it is free.
#[repr(C)]
struct Entry {
    /// The slot, or in a free entry the number of the next free one.
    slot: AtomicU32,
    lock: RawLock,
    state: u8,
}

const _: () = assert!(size_of::<Entry>() == 8);

impl Entry {
    fn slot(&self) -> SlotRef {
        SlotRef(self.slot.load(SeqCst))
    }

    fn set_slot(&self, slot: SlotRef) {
        self.slot.store(slot.0, SeqCst);
    }
}

struct Issuer {
    /// Its name in DER, as in its first certificate.
    name: Box<[u8]>,
    canonical: Box<[u8]>,
    hash: IssuerHash,
    /// The certificate against which its others are compressed.
    dictionary: OnceCell<Arc<[u8]>>,
}

/// Selects certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selector<'a> {
    /// The certificate with this SHA-256 fingerprint.
    Sha256(&'a [u8; 32]),
    /// The certificate with this SHA-1 fingerprint.
    Sha1(&'a [u8; 20]),
    /// All certificates of the authority with this name in DER.
    Issuer(&'a [u8]),
    /// The certificate of this authority with this serial number: the value in DER, without tag and length.
    Serial(&'a [u8], &'a [u8]),
}

/// Selectors as sets of hashes, so that one look at a certificate's header serves all.
pub(crate) struct Meant<'a> {
    issuers: HashSet<u64>,
    serials: HashSet<u64>,
    fingerprints: HashSet<&'a [u8]>,
}

impl<'a> Meant<'a> {
    pub fn new(selectors: &'a [Selector]) -> Self {
        let mut meant = Meant {
            issuers: HashSet::new(),
            serials: HashSet::new(),
            fingerprints: HashSet::new(),
        };
        for selector in selectors {
            match selector {
                Selector::Sha256(digest) => _ = meant.fingerprints.insert(&digest[..]),
                Selector::Sha1(digest) => _ = meant.fingerprints.insert(&digest[..]),
                Selector::Issuer(name) => _ = meant.issuers.insert(IssuerHash::of(name).get()),
                Selector::Serial(name, serial) => {
                    let hash = IssuerHash::of(name).certificate(serial);
                    meant.serials.insert(hash);
                }
            }
        }
        meant
    }

    fn has_fingerprint_of(&self, der: &[u8]) -> bool {
        self.fingerprints.contains(&Sha256::digest(der)[..])
            || self.fingerprints.contains(&Sha1::digest(der)[..])
    }
}

/// A session's client certificate, which may be stored compressed.
pub struct Certificate<'a> {
    stored: &'a [u8],
    length: usize,
    dictionary: Option<Arc<[u8]>>,
}

impl Certificate<'_> {
    /// The length of the certificate in DER, in bytes. Never 0.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Copies the certificate into a buffer of exactly its length. `false` if it cannot be decompressed, which would be a
    /// defect of this library.
    pub fn copy_to(&self, buffer: &mut [u8]) -> bool {
        match &self.dictionary {
            Some(dictionary) => {
                let length =
                    lz4_flex::block::decompress_into_with_dict(self.stored, buffer, dictionary);
                length.is_ok_and(|length| length == self.length)
            }
            None => {
                buffer.copy_from_slice(self.stored);
                true
            }
        }
    }

    /// The certificate, in DER.
    pub fn der(&self) -> Cow<'_, [u8]> {
        if self.dictionary.is_none() {
            return Cow::Borrowed(self.stored);
        }
        let mut der = vec![0; self.length];
        self.copy_to(&mut der);
        Cow::Owned(der)
    }
}

pub(crate) struct Certificates {
    entries: Zeroed<Entry>,
    issuers: DashMap<u32, Arc<Issuer>, RandomState>,
    by_serial: Index,
    /// The indexes by SHA-256 and by SHA-1.
    by_fingerprint: [Index; 2],
    keys: RandomState,
    /// Where readers announce buckets.
    lookups: Arc<Lookups>,
}

/// The writers' part of the certificates. It lies under the order lock, so a reference to it proves that the lock is held.
#[derive(Default)]
pub(crate) struct Books {
    serials: Growth,
    fingerprints: [Growth; 2],
    /// The first free number, and the largest number in use so far.
    free: Number,
    last: Number,
    /// While certificates are renumbered: all numbers below this are in use. The list of free numbers is empty then.
    lowered_to: Option<Number>,
    /// How many certificates were renumbered.
    renumbered: u64,
    length: u64,
    /// Whether the index finds some certificates by their content, because others have their serial number.
    has_same_serials: bool,
    /// Bytes of their slots.
    slot_bytes: u64,
    without_fingerprint: u64,
    unpacked: u64,
    /// Whether certificates that can be compressed have come since all were last looked at.
    may_pack: bool,
    /// How many entries in a row gave the janitor nothing to do.
    in_vain: Number,
    /// The entry that the janitor looked at last.
    looked_at: Number,
    numbers: HashMap<Box<[u8]>, u32>,
    last_issuer: u32,
    /// How many certificates each authority has.
    of_issuer: HashMap<u32, u64>,
    issuer_bytes: usize,
    /// The authority of the last new certificate, which is mostly that of the next one as well.
    recent: Option<(u32, Arc<Issuer>)>,
}

/// The state of a walk over all certificates.
#[derive(Default)]
pub(crate) struct Walk {
    from: Number,
    renumbered: u64,
    is_over: bool,
}

impl Walk {
    /// Makes the walk find the last certificate again.
    pub fn step_back(&mut self) {
        self.from = self.from.saturating_sub(1);
    }

    /// Whether all selected certificates were found.
    pub fn is_over(&self) -> bool {
        self.is_over
    }
}

/// The parts by which a new session finds its certificate.
pub(crate) struct Identity<'a> {
    /// The issuer's name, if this is a certificate.
    issuer: Option<&'a [u8]>,
    serial_key: u32,
    claims: Claims,
}

/// A certificate's locked entry. Dropping this unlocks it.
pub(crate) struct Locked<'a>(&'a Entry);

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.0.lock.unlock();
    }
}

/// A certificate in its slot, made by [`Certificates::find_place`], whose caller sees to it that it stays there.
#[derive(Clone, Copy)]
pub(crate) struct CertificatePtr<'a> {
    certificates: &'a Certificates,
    place: *mut u8,
}

// SAFETY of both methods: the caller of `find_place` guarantees that the certificate stays in its slot. No method makes a
// reference to the whole header, because writers change other fields of it.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one argument holds for all"
)]
impl<'a> CertificatePtr<'a> {
    /// The fields that the check of a resumption needs. The certificate need not be decompressed for them.
    #[inline]
    pub fn claims(self) -> Claims {
        let header = self.place.cast::<Header>();
        unsafe {
            Claims {
                last_second: (*header).last_second,
                issuer: IssuerHash::known(whole((*header).issuer_hash)),
                certificate: whole((*header).certificate_hash),
            }
        }
    }

    #[inline]
    pub fn view(self) -> Certificate<'a> {
        let header = self.place.cast::<Header>();
        unsafe {
            let stored = usize::from((*header).stored) + 1;
            let dictionary = match (*header).is_compressed {
                true => self.certificates.dictionary((*header).issuer),
                false => None,
            };
            Certificate {
                stored: slice::from_raw_parts(self.place.add(DATA), stored),
                length: usize::from((*header).length) + 1,
                dictionary,
            }
        }
    }
}

impl Books {
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Bytes of the certificates' slots.
    pub fn slot_bytes(&self) -> u64 {
        self.slot_bytes
    }

    /// The number of spills in the index by serial number.
    #[cfg(test)]
    pub fn serial_spills(&self) -> usize {
        self.serials.spills()
    }

    /// The largest number in use so far.
    #[cfg(test)]
    pub fn last(&self) -> Number {
        self.last
    }

    /// Bytes of the tables of authorities.
    #[cfg(test)]
    pub fn issuer_bytes(&self) -> usize {
        self.issuer_bytes
    }
}

impl Certificates {
    pub fn new(lookups: Arc<Lookups>) -> Self {
        Certificates {
            entries: Zeroed::new(),
            issuers: DashMap::with_capacity_and_hasher_and_shard_amount(
                0,
                RandomState::default(),
                SHARDS,
            ),
            by_serial: Index::new(),
            by_fingerprint: [Index::new(), Index::new()],
            keys: RandomState::default(),
            lookups,
        }
    }

    /// Bytes of the tables of certificates, without their slots.
    pub fn bytes(&self, books: &Books) -> usize {
        if books.last == 0 {
            return 0;
        }
        // Fingerprints come later, and then take as much as serial numbers. They are counted from the start.
        let serials = self.by_serial.bytes(&books.serials);
        let fingerprints = [0, 1].map(|which| {
            let growth = &books.fingerprints[which];
            self.by_fingerprint[which].bytes(growth).max(serials)
        });
        Zeroed::<Entry>::bytes(books.last as usize + 1)
            + serials
            + fingerprints[0]
            + fingerprints[1]
            + books.issuer_bytes
    }

    /// How many more bytes a new certificate may take beside its slot: a page of each table, and another authority.
    pub fn bytes_to_grow(&self, books: &Books) -> usize {
        let (last, entries) = (books.last as usize, |number| {
            Zeroed::<Entry>::bytes(number + 1)
        });
        let entry = match (books.free, last) {
            (0, 0) => entries(1),
            (0, _) => entries(last + 1) - entries(last),
            _ => 0,
        };
        let indexes = 3 * self.by_serial.bytes_to_grow(&books.serials);
        entry + indexes + ISSUER_BYTES + 3 * MAX_NAME
    }

    /// The bytes that a slot needs for a certificate of this length.
    pub fn slot_bytes_for(length: usize) -> usize {
        DATA + length
    }

    /// Keeps a certificate in its slot. For a thread without an announcement that does not hold the order lock.
    ///
    /// # Safety
    /// As for [`find_place`](Self::find_place).
    pub unsafe fn lock(&self, number: Number) -> Locked<'_> {
        // SAFETY: the caller guarantees that the number is in use, so its entry is reserved.
        let entry = unsafe { &*self.entries.at(number as usize) };
        entry.lock.lock();
        Locked(entry)
    }

    /// The place of the certificate with this number.
    ///
    /// # Safety
    /// It stays there for as long as the answer is used: the caller holds the order lock, or has announced the bucket
    /// of a session that has it, or has locked that bucket and then the certificate.
    #[inline]
    pub unsafe fn find_place<'a>(
        &'a self,
        directory: &'a Directory,
        number: Number,
    ) -> CertificatePtr<'a> {
        // SAFETY: the caller guarantees that the number is in use, so its entry is reserved.
        let place = unsafe { directory.find((*self.entries.at(number as usize)).slot()) };
        prefetch(place, USUAL_CERTIFICATE);
        CertificatePtr {
            certificates: self,
            place,
        }
    }

    /// The certificate with this number.
    ///
    /// # Safety
    /// As for [`find_place`](Self::find_place).
    unsafe fn get<'a>(&'a self, directory: &'a Directory, number: Number) -> Certificate<'a> {
        // SAFETY: guaranteed by the caller.
        unsafe { self.find_place(directory, number) }.view()
    }

    /// Gives a certificate another slot, to which it was copied. Afterwards no thread reads it in the old one.
    fn set_slot(&self, number: Number, slot: SlotRef) {
        // SAFETY: the caller holds the order lock, and the number is in use.
        let locked = unsafe { self.lock(number) };
        locked.0.set_slot(slot);
        drop(locked);
        self.lookups.await_all();
    }

    /// The number of the certificate with this content and identity, if it is stored.
    pub fn find(
        &self,
        books: &Books,
        directory: &Directory,
        der: &[u8],
        identity: &Identity,
    ) -> Option<Number> {
        let key = identity.serial_key;
        let is_it = |number| self.with_der(directory, number, |other| *other == *der);
        let (found, _) = self.find_key(&books.serials, directory, key, SAME_SERIAL, is_it);
        match found {
            None if books.has_same_serials => {
                let key = self.key_of(der);
                self.find_key(&books.serials, directory, key, usize::MAX, is_it)
                    .0
            }
            found => found,
        }
    }

    /// Among at most `most` certificates with this key, the first that `is_it` accepts, and how many others there were.
    fn find_key(
        &self,
        serials: &Growth,
        directory: &Directory,
        key: u32,
        most: usize,
        is_it: impl Fn(Number) -> bool,
    ) -> (Option<Number>, usize) {
        let others = Cell::new(0);
        let is_found = Cell::new(false);
        let ends_search = |number| {
            if self.header(directory, number).serial_key != key {
                return false;
            }
            is_found.set(is_it(number));
            others.set(others.get() + usize::from(!is_found.get()));
            is_found.get() || others.get() >= most
        };
        let found = self.by_serial.find(serials, index_hash(key), ends_search);
        (found.filter(|_| is_found.get()), others.get())
    }

    /// Stores a new certificate, which has no sessions yet. The caller has made room for it. `None` if the system has no
    /// memory.
    pub fn insert(
        &self,
        books: &mut Books,
        directory: &Directory,
        slab: &mut Slab,
        der: &[u8],
        identity: &Identity,
    ) -> Option<Number> {
        let bytes = Self::slot_bytes_for(der.len());
        let number = match books.free {
            0 => books.last + 1,
            free => free,
        };
        if !self.entries.reserve(number as usize) {
            return None;
        }
        let slot = slab.allocate(directory, Kind::Certificate, bytes)?;
        let name = identity.issuer;
        let issuer = name.map_or(0, |name| self.find_issuer(books, name, true).0);
        let mut serial_key = identity.serial_key;
        let (_, others) = self.find_key(&books.serials, directory, serial_key, SAME_SERIAL, |_| {
            false
        });
        if others == SAME_SERIAL {
            serial_key = self.key_of(der);
            books.has_same_serials = true;
        }
        let hash = index_hash(serial_key);
        // SAFETY: the slot was just allocated, the entry is free and reserved, and the caller has the order lock.
        unsafe {
            let place = directory.find(slot);
            let Claims {
                last_second,
                issuer: issuer_hash,
                certificate,
            } = identity.claims;
            place.cast::<Header>().write(Header {
                number,
                issuer,
                newest: SlotRef::NONE,
                serial_key,
                fingerprint_keys: [0; 2],
                last_second,
                issuer_hash: halves(issuer_hash.map_or(0, IssuerHash::get)),
                certificate_hash: halves(certificate),
                length: (der.len() - 1) as u16,
                stored: (der.len() - 1) as u16,
                is_compressed: false,
            });
            place
                .add(DATA)
                .copy_from_nonoverlapping(der.as_ptr(), der.len());
            let entry = self.entries.at(number as usize);
            if books.free == 0 {
                books.last = number;
            } else {
                books.free = (*entry).slot().0;
            }
            (*entry).set_slot(slot);
            (*entry).state = USED;
        }
        books.length += 1;
        books.slot_bytes += slot_bytes(bytes) as u64;
        books.without_fingerprint += 1;
        books.unpacked += 1;
        if issuer != 0 {
            let siblings = books.of_issuer.entry(issuer).or_insert(0);
            *siblings += 1;
            books.may_pack |= *siblings > 1;
        }
        if !self.by_serial.insert(&mut books.serials, hash, number) {
            self.remove(books, directory, slab, number);
            return None;
        }
        let hash_of = |number| index_hash(self.header(directory, number).serial_key);
        self.by_serial.grow(&mut books.serials, hash_of);
        Some(number)
    }

    /// Forgets a certificate that has no sessions left.
    pub fn remove(
        &self,
        books: &mut Books,
        directory: &Directory,
        slab: &mut Slab,
        number: Number,
    ) {
        let header = self.header(directory, number);
        let serial = index_hash(header.serial_key);
        self.by_serial.remove(&mut books.serials, serial, number);
        // SAFETY: the caller has the order lock, and no session has the certificate, so no reader can come to it.
        unsafe {
            let entry = self.entries.at(number as usize);
            if (*entry).state & FINGERPRINTED != 0 {
                for (which, key) in header.fingerprint_keys.into_iter().enumerate() {
                    let growth = &mut books.fingerprints[which];
                    self.by_fingerprint[which].remove(growth, index_hash(key), number);
                }
            } else {
                books.without_fingerprint -= 1;
            }
            books.unpacked -= u64::from((*entry).state & PACKED == 0);
            let slot = (*entry).slot();
            (*entry).state = 0;
            match &mut books.lowered_to {
                Some(lowered_to) => *lowered_to = number.min(*lowered_to),
                None => {
                    (*entry).set_slot(SlotRef(books.free));
                    books.free = number;
                }
            }
            self.free_slot(books, directory, slab, slot, &header);
        }
        books.length -= 1;
        if header.issuer != 0 {
            self.leave_issuer(books, header.issuer);
        }
    }

    /// Wipes and frees the slot of a certificate.
    ///
    /// # Safety
    /// No thread uses the slot any more.
    unsafe fn free_slot(
        &self,
        books: &mut Books,
        directory: &Directory,
        slab: &mut Slab,
        slot: SlotRef,
        header: &Header,
    ) {
        let bytes = slot_bytes(Self::slot_bytes_for(usize::from(header.stored) + 1));
        // SAFETY: guaranteed by the caller.
        unsafe { directory.find(slot).write_bytes(0, bytes) };
        books.slot_bytes -= bytes as u64;
        slab.free(slot);
    }

    /// Moves the certificate in a slot to another slot.
    pub fn relocate(&self, directory: &Directory, from: SlotRef, to: SlotRef, bytes: usize) {
        // SAFETY: both slots are allocated, and the caller has the order lock.
        unsafe {
            let (from, to_place) = (directory.find(from), directory.find(to));
            let number = (*from.cast::<Header>()).number;
            to_place.copy_from_nonoverlapping(from, bytes);
            self.set_slot(number, to);
            from.write_bytes(0, bytes);
        }
    }

    /// The newest session of a certificate.
    pub fn newest(&self, directory: &Directory, number: Number) -> SlotRef {
        self.header(directory, number).newest
    }

    pub fn set_newest(&self, directory: &Directory, number: Number, newest: SlotRef) {
        // SAFETY: the certificate is in use, and the caller has the order lock. This field is only used under it.
        unsafe {
            let slot = (*self.entries.at(number as usize)).slot();
            (*directory.find(slot).cast::<Header>()).newest = newest;
        }
    }

    /// Works on a few certificates: computes fingerprints, and compresses if `packs`, which may take `room_bytes` more for a
    /// moment. Returns whether there is more that can be done now.
    pub fn maintain(
        &self,
        books: &mut Books,
        directory: &Directory,
        slab: &mut Slab,
        packs: bool,
        room_bytes: u64,
        slice: &mut Slice,
    ) -> bool {
        let has_work = |books: &Books| books.without_fingerprint > 0 || (packs && books.may_pack);
        let before = slab.bytes();
        while has_work(books) {
            let (number, state) = self.next_entry(books);
            let is_idle = state & USED == 0
                || (state & FINGERPRINTED != 0 && (!packs || state & PACKED != 0));
            let is_done = if is_idle {
                false
            } else if state & FINGERPRINTED == 0 {
                self.fingerprint(books, directory, number)
            } else {
                let taken = slab.bytes().saturating_sub(before) as u64;
                self.pack(
                    books,
                    directory,
                    slab,
                    number,
                    room_bytes.saturating_sub(taken),
                )
            };
            books.in_vain = if is_done { 0 } else { books.in_vain + 1 };
            if books.in_vain > books.last {
                // All were looked at. The rest can only be done after others have come.
                (books.in_vain, books.may_pack) = (0, false);
                return false;
            }
            let is_step = !is_idle || books.in_vain % ENTRIES_PER_STEP == 0;
            if is_step && !slice.goes_on() {
                return has_work(books);
            }
        }
        false
    }

    /// Whether there may be certificates that can be compressed.
    pub fn may_pack(&self, books: &Books) -> bool {
        books.may_pack
    }

    /// The next number, and the state of its entry.
    fn next_entry(&self, books: &mut Books) -> (Number, u8) {
        books.looked_at = match books.looked_at {
            number if number >= books.last => 1,
            number => number + 1,
        };
        // SAFETY: the number was used before, so its entry is reserved, and the caller has the order lock.
        let state = unsafe { (*self.entries.at(books.looked_at as usize)).state };
        (books.looked_at, state)
    }

    /// Gives back memory that so few certificates do not need, a slice at a time. Returns whether there is more to do.
    pub fn shrink(&self, books: &mut Books, directory: &Directory, slice: usize) -> bool {
        if books.length == 0 {
            // SAFETY: no certificate has a number, so no thread looks at an entry.
            unsafe { self.entries.release(0, books.last as usize + 1) };
            (books.last, books.free, books.looked_at) = (0, 0, 0);
            (books.lowered_to, books.has_same_serials) = (None, false);
        }
        let serial_of = |number| index_hash(self.header(directory, number).serial_key);
        if self.by_serial.shrink(&mut books.serials, slice, serial_of) {
            return true;
        }
        let mut fingerprints = self.by_fingerprint.iter().enumerate();
        fingerprints.any(|(which, index)| {
            let hash_of =
                |number| index_hash(self.header(directory, number).fingerprint_keys[which]);
            index.shrink(&mut books.fingerprints[which], slice, hash_of)
        })
    }

    /// If there are few certificates with high numbers: the highest number, and a lower one that is free. Gives back the
    /// entries behind the highest number.
    pub fn next_to_renumber(
        &self,
        books: &mut Books,
        slice: &mut Slice,
    ) -> Option<(Number, Number)> {
        let is_worth_it = u64::from(books.last) > 4 * books.length + u64::from(FEW_NUMBERS);
        if books.lowered_to.is_none() && is_worth_it {
            (books.lowered_to, books.free) = (Some(1), 0);
        }
        let mut low = books.lowered_to?;
        let former = books.last as usize + 1;
        // SAFETY: numbers up to the last one were used, so their entries are reserved, and the caller has the order lock.
        let is_used =
            |number: Number| unsafe { (*self.entries.at(number as usize)).state } & USED != 0;
        while books.last > 0 && !is_used(books.last) && slice.goes_on() {
            books.last -= 1;
        }
        // SAFETY: no thread looks at an entry behind the last one.
        unsafe { self.entries.release(books.last as usize + 1, former) };
        while low < books.last && is_used(low) && slice.goes_on() {
            low += 1;
        }
        books.lowered_to = (low < books.last).then_some(low);
        books.looked_at = books.looked_at.min(books.last);
        let is_pair = low < books.last && is_used(books.last) && !is_used(low);
        is_pair.then_some((books.last, low))
    }

    /// Whether certificates are being renumbered.
    pub fn is_renumbering(books: &Books) -> bool {
        books.lowered_to.is_some()
    }

    /// Gives the certificate `from` a second number, before its sessions get that number.
    pub fn begin_to_renumber(&self, from: Number, to: Number) {
        // SAFETY: both entries are reserved, no thread knows the second one yet, and the caller has the order lock.
        unsafe {
            let (from, to) = (self.entries.at(from as usize), self.entries.at(to as usize));
            (*to).set_slot((*from).slot());
            (*to).state = (*from).state;
        }
    }

    /// Removes the old number of a certificate, after all of its sessions have the new one.
    pub fn end_to_renumber(
        &self,
        books: &mut Books,
        directory: &Directory,
        from: Number,
        to: Number,
    ) {
        books.renumbered += 1;
        let header = self.header(directory, from);
        let hash = index_hash(header.serial_key);
        self.by_serial
            .replace(&mut books.serials, hash, from, to, || {});
        // SAFETY: no thread comes to the old entry any more, and the caller has the order lock.
        unsafe {
            let entry = self.entries.at(from as usize);
            if (*entry).state & FINGERPRINTED != 0 {
                for (which, key) in header.fingerprint_keys.into_iter().enumerate() {
                    let growth = &mut books.fingerprints[which];
                    self.by_fingerprint[which].replace(growth, index_hash(key), from, to, || {});
                }
            }
            (*directory.find((*entry).slot()).cast::<Header>()).number = to;
            (*entry).set_slot(SlotRef::NONE);
            (*entry).state = 0;
        }
    }

    /// Computes fingerprints, a slice at a time. `left` is the number of entries that are still to be looked at. `false` when
    /// none is left, or all certificates have their fingerprints. If the system has no memory for some, these have none then.
    pub fn fingerprint_slice(
        &self,
        books: &mut Books,
        directory: &Directory,
        left: &mut Option<Number>,
    ) -> bool {
        let mut left_now = left.unwrap_or(books.last);
        let mut slice = Slice::begin();
        while books.without_fingerprint > 0 && left_now > 0 {
            left_now -= 1;
            let (number, state) = self.next_entry(books);
            let is_without = state & (USED | FINGERPRINTED) == USED;
            if is_without {
                self.fingerprint(books, directory, number);
            }
            if (is_without || left_now % ENTRIES_PER_STEP == 0) && !slice.goes_on() {
                break;
            }
        }
        *left = Some(left_now);
        books.without_fingerprint > 0 && left_now > 0
    }

    /// Enters a certificate under its fingerprints. `false` if the system has no memory.
    fn fingerprint(&self, books: &mut Books, directory: &Directory, number: Number) -> bool {
        // SAFETY: the caller has the order lock.
        let certificate = unsafe { self.get(directory, number) };
        let der = certificate.der();
        let keys = [
            self.key_of(&Sha256::digest(&der)[..]),
            self.key_of(&Sha1::digest(&der)[..]),
        ];
        for (which, key) in keys.into_iter().enumerate() {
            let growth = &mut books.fingerprints[which];
            if !self.by_fingerprint[which].insert(growth, index_hash(key), number) {
                // There is no memory now. The janitor tries again later.
                for (which, key) in keys.into_iter().enumerate().take(which) {
                    let growth = &mut books.fingerprints[which];
                    self.by_fingerprint[which].remove(growth, index_hash(key), number);
                }
                return false;
            }
        }
        // SAFETY: the certificate is in use, and these fields are only used under the order lock.
        unsafe {
            let entry = self.entries.at(number as usize);
            let header = directory.find((*entry).slot()).cast::<Header>();
            (*header).fingerprint_keys = keys;
            (*entry).state |= FINGERPRINTED;
        }
        books.without_fingerprint -= 1;
        for (which, index) in self.by_fingerprint.iter().enumerate() {
            let hash_of =
                |number| index_hash(self.header(directory, number).fingerprint_keys[which]);
            index.grow(&mut books.fingerprints[which], hash_of);
        }
        true
    }

    /// Compresses a certificate, if there is another one of its authority. `false` if nothing was done.
    fn pack(
        &self,
        books: &mut Books,
        directory: &Directory,
        slab: &mut Slab,
        number: Number,
        room_bytes: u64,
    ) -> bool {
        let header = self.header(directory, number);
        let length = usize::from(header.length) + 1;
        if header.issuer == 0 {
            // SAFETY: the certificate is in use, and the caller has the order lock.
            unsafe { (*self.entries.at(number as usize)).state |= PACKED };
            books.unpacked -= 1;
            return true;
        }
        let siblings = books.of_issuer.get(&header.issuer).copied().unwrap_or(0);
        if siblings < 2 {
            // Another one may come later.
            return false;
        }
        let Some(issuer) = self
            .issuers
            .get(&header.issuer)
            .map(|issuer| Arc::clone(&issuer))
        else {
            return false;
        };
        // SAFETY: the caller has the order lock.
        let der = unsafe { self.get(directory, number) }.der().into_owned();
        let dictionary_bytes = match issuer.dictionary.get() {
            Some(_) => 0,
            None => length.min(MAX_DICTIONARY),
        };
        if dictionary_bytes as u64 > room_bytes {
            return false;
        }
        let room_bytes = room_bytes - dictionary_bytes as u64;
        let dictionary = issuer.dictionary.get_or_init(|| {
            let dictionary = &der[..length.min(MAX_DICTIONARY)];
            books.issuer_bytes += dictionary.len();
            Arc::from(dictionary)
        });
        let packed = lz4_flex::block::compress_with_dict(&der, dictionary);
        let (former, bytes) = (
            Self::slot_bytes_for(length),
            Self::slot_bytes_for(packed.len()),
        );
        let gains = slot_bytes(bytes) + slot_bytes(former) / 8 <= slot_bytes(former);
        let has_room = slab.bytes_to_grow(Kind::Certificate, bytes) as u64 <= room_bytes;
        if gains && !has_room {
            return false;
        }
        let slot = match gains {
            true => slab.allocate(directory, Kind::Certificate, bytes),
            false => None,
        };
        // SAFETY: the certificate is in use, the new slot was just allocated, and the caller has the order lock.
        unsafe {
            let entry = self.entries.at(number as usize);
            (*entry).state |= PACKED;
            if let Some(slot) = slot {
                let place = directory.find(slot);
                place.cast::<Header>().write(Header {
                    stored: (packed.len() - 1) as u16,
                    is_compressed: true,
                    ..header
                });
                place
                    .add(DATA)
                    .copy_from_nonoverlapping(packed.as_ptr(), packed.len());
                let old = (*entry).slot();
                self.set_slot(number, slot);
                self.free_slot(books, directory, slab, old, &header);
                books.slot_bytes += slot_bytes(bytes) as u64;
            }
        }
        books.unpacked -= 1;
        true
    }

    /// Finds a selected certificate in an index.
    pub fn find_selected(
        &self,
        books: &Books,
        directory: &Directory,
        selector: &Selector,
    ) -> Option<Number> {
        match selector {
            Selector::Sha256(digest) => {
                self.find_fingerprint(books, directory, 0, &digest[..], selector)
            }
            Selector::Sha1(digest) => {
                self.find_fingerprint(books, directory, 1, &digest[..], selector)
            }
            Selector::Serial(name, serial) => {
                let key = self.serial_key(IssuerHash::of(name), serial);
                let is_it = |number| self.is_selected(directory, number, selector);
                self.find_key(&books.serials, directory, key, SAME_SERIAL, is_it)
                    .0
            }
            Selector::Issuer(_) => None,
        }
    }

    /// Finds the next selected certificate that the indexes may lack. Looks at all certificates, a few per slice.
    pub fn walk(
        &self,
        books: &Books,
        directory: &Directory,
        meant: &Meant,
        walk: &mut Walk,
        slice: &mut Slice,
    ) -> Option<Number> {
        let has_issuers = !meant.issuers.is_empty();
        let has_serials = !meant.serials.is_empty() && books.has_same_serials;
        let has_fingerprints = !meant.fingerprints.is_empty() && books.without_fingerprint > 0;
        if walk.renumbered != books.renumbered {
            // A certificate ahead may have got a number behind.
            (walk.from, walk.renumbered) = (0, books.renumbered);
        }
        while (has_issuers || has_serials || has_fingerprints) && walk.from < books.last {
            if walk.from % ENTRIES_PER_STEP == 0 && !slice.goes_on() {
                return None;
            }
            walk.from += 1;
            // SAFETY: the number was used before, so its entry is reserved, and the caller has the order lock.
            let state = unsafe { (*self.entries.at(walk.from as usize)).state };
            if state & USED == 0 {
                continue;
            }
            let header = self.header(directory, walk.from);
            let is_meant = meant.issuers.contains(&whole(header.issuer_hash))
                || has_serials && meant.serials.contains(&whole(header.certificate_hash))
                || has_fingerprints
                    && state & FINGERPRINTED == 0
                    && self.with_der(directory, walk.from, |der| meant.has_fingerprint_of(der));
            if is_meant {
                return Some(walk.from);
            }
        }
        walk.is_over = true;
        None
    }

    /// Whether the selector selects a certificate.
    fn is_selected(&self, directory: &Directory, number: Number, selector: &Selector) -> bool {
        self.with_der(directory, number, |der| match selector {
            Selector::Sha256(digest) => Sha256::digest(der)[..] == digest[..],
            Selector::Sha1(digest) => Sha1::digest(der)[..] == digest[..],
            Selector::Issuer(name) => {
                issuer_and_serial(der).is_some_and(|(issuer, _)| is_same_name(issuer, name))
            }
            Selector::Serial(name, serial) => issuer_and_serial(der)
                .is_some_and(|(issuer, own)| own == *serial && is_same_name(issuer, name)),
        })
    }

    /// Checks that all counts are right.
    #[cfg(any(test, fuzzing))]
    pub fn check(&self, books: &Books, directory: &Directory) {
        let (mut length, mut slots, mut unpacked, mut without_fingerprint) = (0, 0, 0, 0);
        let mut of_issuer = HashMap::new();
        for number in 1..=books.last {
            // SAFETY: the number was used before, so its entry is reserved, and the caller has the order lock.
            let state = unsafe { (*self.entries.at(number as usize)).state };
            if state & USED == 0 {
                continue;
            }
            let header = self.header(directory, number);
            assert_eq!(header.number, number);
            length += 1;
            slots += slot_bytes(Self::slot_bytes_for(usize::from(header.stored) + 1)) as u64;
            unpacked += u64::from(state & PACKED == 0);
            without_fingerprint += u64::from(state & FINGERPRINTED == 0);
            if header.issuer != 0 {
                *of_issuer.entry(header.issuer).or_insert(0) += 1;
            }
        }
        assert_eq!((length, slots), (books.length, books.slot_bytes));
        assert_eq!(unpacked, books.unpacked);
        assert_eq!(without_fingerprint, books.without_fingerprint);
        assert_eq!(of_issuer, books.of_issuer);
        assert_eq!(self.issuers.len(), of_issuer.len());
    }

    /// The names of the authorities with a number, in DER.
    pub fn issuers(&self) -> Vec<Box<[u8]>> {
        self.issuers
            .iter()
            .map(|issuer| issuer.name.clone())
            .collect()
    }

    fn find_fingerprint(
        &self,
        books: &Books,
        directory: &Directory,
        which: usize,
        digest: &[u8],
        selector: &Selector,
    ) -> Option<Number> {
        let hash = index_hash(self.key_of(digest));
        let is_it = |number| self.is_selected(directory, number, selector);
        self.by_fingerprint[which].find(&books.fingerprints[which], hash, is_it)
    }

    /// Calls `read` with a certificate. Under the order lock.
    fn with_der<R>(
        &self,
        directory: &Directory,
        number: Number,
        read: impl FnOnce(&[u8]) -> R,
    ) -> R {
        // SAFETY: the caller has the order lock.
        let certificate = unsafe { self.get(directory, number) };
        read(&certificate.der())
    }

    /// The certificate against which others of an authority are compressed.
    fn dictionary(&self, issuer: u32) -> Option<Arc<[u8]>> {
        let issuer = self.issuers.get(&issuer)?;
        issuer.dictionary.get().cloned()
    }

    /// The header of a certificate. Under the order lock.
    fn header(&self, directory: &Directory, number: Number) -> Header {
        // SAFETY: the certificate is in use, and only writers change its header.
        unsafe {
            let slot = (*self.entries.at(number as usize)).slot();
            *directory.find(slot).cast::<Header>()
        }
    }

    /// The parts by which a certificate is found. Bytes that are no certificate are found by all of them.
    pub fn identify<'d>(&self, books: &mut Books, der: &'d [u8]) -> Identity<'d> {
        let Some(signed) = Signed::of(der) else {
            return Identity {
                issuer: None,
                serial_key: self.key_of(der),
                claims: Claims::NONE,
            };
        };
        let (_, hash) = self.find_issuer(books, signed.issuer, false);
        Identity {
            issuer: Some(signed.issuer),
            serial_key: self.serial_key(hash, signed.serial),
            claims: Claims::new(&signed, hash),
        }
    }

    /// The number of an authority, or 0 if it has none, and its hash.
    fn find_issuer(&self, books: &mut Books, name: &[u8], makes_issuer: bool) -> (u32, IssuerHash) {
        if let Some((number, issuer)) = &books.recent {
            if *issuer.name == *name {
                return (*number, issuer.hash);
            }
        }
        let canonical = canonical_name(name);
        let hash = IssuerHash::of_canonical(&canonical);
        let issuer = match books.numbers.get(&canonical[..]) {
            Some(number) => *number,
            None if makes_issuer => self.make_issuer(books, name, canonical, hash),
            None => 0,
        };
        if let Some(known) = self.issuers.get(&issuer) {
            books.recent = Some((issuer, Arc::clone(&known)));
        }
        (issuer, hash)
    }

    fn make_issuer(
        &self,
        books: &mut Books,
        name: &[u8],
        canonical: Vec<u8>,
        hash: IssuerHash,
    ) -> u32 {
        if self.issuers.len() >= MAX_ISSUERS
            || name.len().max(canonical.len()) > MAX_NAME
            || !self.can_grow()
            || books.numbers.try_reserve(1).is_err()
            || books.of_issuer.try_reserve(1).is_err()
        {
            return 0;
        }
        books.last_issuer = books.last_issuer.wrapping_add(1).max(1);
        let number = books.last_issuer;
        let issuer = Issuer {
            name: name.into(),
            canonical: canonical.into(),
            hash,
            dictionary: OnceCell::new(),
        };
        books.issuer_bytes += issuer.bytes();
        books.numbers.insert(issuer.canonical.clone(), number);
        self.issuers.insert(number, Arc::new(issuer));
        number
    }

    /// Whether the table of authorities has memory for another one.
    fn can_grow(&self) -> bool {
        self.issuers.shards().iter().all(|shard| {
            let hash_of = |(number, _): &(u32, _)| self.issuers.hasher().hash_one(number);
            shard.write().try_reserve(1, hash_of).is_ok()
        })
    }

    fn leave_issuer(&self, books: &mut Books, number: u32) {
        let Some(certificates) = books.of_issuer.get_mut(&number) else {
            return;
        };
        *certificates -= 1;
        if *certificates > 0 {
            return;
        }
        books.of_issuer.remove(&number);
        if books
            .recent
            .as_ref()
            .is_some_and(|(recent, _)| *recent == number)
        {
            books.recent = None;
        }
        if let Some((_, issuer)) = self.issuers.remove(&number) {
            books.numbers.remove(&issuer.canonical);
            books.issuer_bytes -=
                issuer.bytes() + issuer.dictionary.get().map_or(0, |bytes| bytes.len());
        }
    }

    fn serial_key(&self, issuer: IssuerHash, serial: &[u8]) -> u32 {
        self.key_of((issuer, serial))
    }

    fn key_of(&self, bytes: impl Hash) -> u32 {
        self.keys.hash_one(bytes) as u32
    }
}

impl Issuer {
    fn bytes(&self) -> usize {
        ISSUER_BYTES + self.name.len() + 2 * self.canonical.len()
    }
}

/// Splits 64 bits into halves, for a structure that is aligned to four bytes.
fn halves(whole: u64) -> [u32; 2] {
    [whole as u32, (whole >> u32::BITS) as u32]
}

fn whole([low, high]: [u32; 2]) -> u64 {
    u64::from(low) | u64::from(high) << u32::BITS
}

/// A hash of 64 bits from 32 random bits. The index uses both ends of it.
fn index_hash(key: u32) -> u64 {
    u64::from(key) << u32::BITS | u64::from(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_spread_over_all_buckets() {
        let keys = (0..64_000u32).map(|n| n.wrapping_mul(0x9e37_79b1) ^ n.rotate_left(16));
        let mut in_bucket = [0; 64];
        keys.for_each(|key| in_bucket[index_hash(key) as usize % 64] += 1);
        assert!(
            in_bucket.iter().all(|keys| (500..2_000).contains(keys)),
            "{in_bucket:?}"
        );
    }
}
