//! Finds a slot by a hash of its key, mostly in one cache line.
//!
//! The index is a linear hash table. A bucket is a cache line with a lock and twelve entries, each a tag of eight bits of the
//! hash and the number of a slot. The caller compares the key in the slot, so two keys with the same hash do not displace each
//! other. A full bucket continues in another one, its spill.
//!
//! The table grows by one bucket at a time: bucket `n` takes about half of the entries of the bucket whose number is `n`
//! without its highest bit. So an insertion never moves the entries of more than a few buckets.
//!
//! # Who may touch a bucket
//!
//! A bucket's lock protects it and its spills. Writers take the lock, and wait for the lookups that have announced the
//! bucket; see [`crate::lookups`]. They also hold the order lock of the store. [`Growth`] proves that: it exists once, under
//! that lock. A thread that has it may read without the bucket's lock.
//!
//! Readers announce the bucket while its lock is free, or take the lock. Before they read anything, they check again that the
//! key belongs there. They keep the announcement or the lock while they read the slot that they found.
//!
//! A late reader may come to a bucket that is no longer in the table. So a writer closes the lock of such a bucket before its
//! page goes back to the system. Otherwise a lock that a thread has could turn into zeros, and another thread could take it
//! as well.

#![allow(unsafe_code)]

use super::pages::Zeroed;
use crate::lookups::{Announced, Line, Lookups};
use crate::sync::RawLock;
use std::ops::Deref;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;

/// Entries of a bucket.
const WIDTH: usize = 12;

/// Buckets that a table with any entry has: a page.
const FEWEST: usize = Zeroed::<Bucket>::FIRST;

/// A table whose number of buckets is a power of two begins to grow at this load, in entries per bucket, and has doubled at
/// `HIGHEST_LOAD`.
const HIGH_LOAD: usize = 9;
const HIGHEST_LOAD: usize = 11;

/// Below this load the table shrinks.
const LOW_LOAD: usize = 3;

/// Most buckets that an insertion splits. One per two insertions would suffice.
const SPLITS_PER_INSERT: usize = 2;

/// Buckets of an empty table that a slice gives back.
const EMPTY_BUCKETS_PER_SLICE: usize = 512;

/// The number of a slot, or of a certificate. Never 0.
pub(crate) type Number = u32;

/// Twelve entries in 64 bytes. A bucket of zeros is empty and unlocked. The tag 0 marks an empty entry.
#[repr(C, align(64))]
struct Bucket {
    lock: RawLock,
    /// The number of the spill that follows, plus one; 0 if none follows.
    spill: [u8; 3],
    tags: [u8; WIDTH],
    numbers: [Number; WIDTH],
}

const _: () = assert!(size_of::<Bucket>() == 64);

/// Most spills: three bytes hold a spill's number plus one.
const MAX_SPILLS: u32 = (1 << 24) - 2;

impl Bucket {
    fn spill(&self) -> Option<u32> {
        let [a, b, c] = self.spill;
        u32::from_le_bytes([a, b, c, 0]).checked_sub(1)
    }

    fn set_spill(&mut self, spill: Option<u32>) {
        let [a, b, c, _] = spill.map_or(0, |spill| spill + 1).to_le_bytes();
        self.spill = [a, b, c];
    }

    /// The places with this tag, as a bit each.
    fn with_tag(&self, tag: u8) -> u16 {
        let mut places = 0;
        for (place, other) in self.tags.iter().enumerate() {
            places |= u16::from(*other == tag) << place;
        }
        places
    }

    fn vacancy(&self) -> Option<usize> {
        self.tags.iter().position(|tag| *tag == 0)
    }

    fn is_empty(&self) -> bool {
        self.tags == [0; WIDTH]
    }

    /// The next and the previous free spill of a free spill, which has them in place of its first two entries.
    fn neighbours(&self) -> [Option<u32>; 2] {
        [0, 1].map(|side| self.numbers[side].checked_sub(1))
    }

    fn set_neighbour(&mut self, side: usize, spill: Option<u32>) {
        self.numbers[side] = spill.map_or(0, |spill| spill + 1);
    }
}

pub(crate) struct Index {
    buckets: Zeroed<Bucket>,
    spills: Zeroed<Bucket>,
    /// How many buckets there are: 0, or at least `FEWEST`.
    length: AtomicUsize,
    /// Where readers announce buckets. `None` if the index has no readers but writers.
    lookups: Option<Arc<Lookups>>,
}

/// The writers' part of the index. It lies under the order lock, so a reference to it proves that the lock is held.
#[derive(Default)]
pub(crate) struct Growth {
    entries: usize,
    /// How many spills were ever in use, less those given back.
    spills: u32,
    /// How many of these are free, and the first of the list of free ones.
    free_spills: u32,
    free_spill: Option<u32>,
    /// Entries of a bucket that is being split or merged.
    moving: Vec<(u64, Number)>,
}

impl Growth {
    #[cfg(test)]
    pub fn spills(&self) -> usize {
        self.spills as usize
    }
}

/// The bucket in which a hash may be found. The bucket and its slots do not change while this lives.
pub(crate) struct Visit<'a> {
    index: &'a Index,
    /// Null if the index has no buckets.
    bucket: *mut Bucket,
    hold: Hold<'a>,
}

enum Hold<'a> {
    Nothing,
    Announced(Announced<'a>),
    Locked(#[allow(dead_code)] Locked<'a>),
}

impl Visit<'_> {
    /// The first entry under `hash` that `is_it` accepts.
    #[inline]
    pub fn find(&self, hash: u64, is_it: impl Fn(Number) -> bool) -> Option<Number> {
        if self.bucket.is_null() {
            return None;
        }
        // SAFETY: the bucket stays as it is.
        unsafe { self.index.find_in(self.bucket, hash, is_it) }
    }

    /// Whether [`Lookups::await_all`] waits for this visit.
    pub fn is_announced(&self) -> bool {
        matches!(self.hold, Hold::Announced(_))
    }

    /// Adds one to a counter of lookups.
    #[inline]
    pub fn count(&self, counter: impl Fn(&Line) -> &AtomicU64) {
        match (&self.hold, &self.index.lookups) {
            (Hold::Announced(announced), _) => announced.count(counter),
            (_, Some(lookups)) => _ = counter(lookups.common()).fetch_add(1, Ordering::Relaxed),
            (_, None) => {}
        }
    }
}

/// A locked bucket. Dropping this unlocks it, also in a panic.
struct Locked<'a> {
    index: &'a Index,
    bucket: *mut Bucket,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // SAFETY: a bucket's memory lives as long as the index, and this has the lock.
        unsafe { (*self.bucket).lock.unlock() };
    }
}

/// A locked bucket that no thread reads.
struct Seized<'a>(Locked<'a>);

impl<'a> Deref for Seized<'a> {
    type Target = Locked<'a>;

    fn deref(&self) -> &Locked<'a> {
        &self.0
    }
}

/// An entry's bucket, which may be a spill, and its place there.
type Place = (*mut Bucket, usize);

fn tag_of(hash: u64) -> u8 {
    ((hash >> 56) as u8).max(1)
}

/// The bucket of a hash in a table of `length` buckets.
fn bucket_of(hash: u64, length: usize) -> usize {
    let mask = length.next_power_of_two() - 1;
    let bucket = hash as usize & mask;
    if bucket < length {
        bucket
    } else {
        bucket & (mask >> 1)
    }
}

/// The largest power of two that is not larger than `length`.
fn lower_power(length: usize) -> usize {
    1 << length.ilog2()
}

impl Index {
    /// An index that only writers use, all under one lock.
    pub const fn new() -> Self {
        Index {
            buckets: Zeroed::new(),
            spills: Zeroed::new(),
            length: AtomicUsize::new(0),
            lookups: None,
        }
    }

    /// An index that readers visit without a lock.
    pub fn visited(lookups: Arc<Lookups>) -> Self {
        Index {
            lookups: Some(lookups),
            ..Index::new()
        }
    }

    /// How many bytes the index takes.
    pub fn bytes(&self, growth: &Growth) -> usize {
        Zeroed::<Bucket>::bytes(self.length.load(Ordering::Relaxed))
            + Zeroed::<Bucket>::bytes(growth.spills as usize)
    }

    /// The first entry under `hash` that `is_it` accepts. For writers.
    pub fn find(
        &self,
        _growth: &Growth,
        hash: u64,
        is_it: impl Fn(Number) -> bool,
    ) -> Option<Number> {
        let length = self.length.load(Ordering::Relaxed);
        if length == 0 {
            return None;
        }
        // SAFETY: the bucket was reserved before the length was published, and only writers change it.
        unsafe { self.find_in(self.buckets.at(bucket_of(hash, length)), hash, is_it) }
    }

    /// Visits the bucket in which `hash` may be found.
    #[inline]
    pub fn visit(&self, hash: u64) -> Visit<'_> {
        self.announce_home(hash)
            .unwrap_or_else(|| self.visit_locked(hash))
    }

    #[cold]
    fn visit_locked(&self, hash: u64) -> Visit<'_> {
        let locked = self.lock_home(hash);
        Visit {
            index: self,
            bucket: locked.as_ref().map_or(null_mut(), |locked| locked.bucket),
            hold: locked.map_or(Hold::Nothing, Hold::Locked),
        }
    }

    /// `None` if the bucket has to be locked.
    #[inline]
    fn announce_home(&self, hash: u64) -> Option<Visit<'_>> {
        let length = self.length.load(Ordering::Acquire);
        if length == 0 {
            return None;
        }
        let number = bucket_of(hash, length);
        // SAFETY: the bucket was reserved before its number was published.
        let bucket = unsafe { self.buckets.at(number) };
        let announced = self.lookups.as_ref()?.announce(bucket.addr())?;
        // SAFETY: its memory lives as long as the index.
        if !unsafe { (*bucket).lock.is_free() } {
            return None;
        }
        // From here on no thread splits or merges the bucket.
        let length = self.length.load(Ordering::Acquire);
        (length != 0 && bucket_of(hash, length) == number).then_some(Visit {
            index: self,
            bucket,
            hold: Hold::Announced(announced),
        })
    }

    /// Enters `number`. `false` if the system has no memory for it.
    pub fn insert(&self, growth: &mut Growth, hash: u64, number: Number) -> bool {
        if self.length.load(Ordering::Relaxed) == 0 {
            if !self.buckets.reserve(FEWEST - 1) {
                return false;
            }
            (0..FEWEST).for_each(|bucket| self.open(bucket));
            self.length.store(FEWEST, Ordering::Release);
        }
        let Some(home) = self.seize_home(hash) else {
            return false;
        };
        let is_entered = home.enter(growth, tag_of(hash), number);
        growth.entries += usize::from(is_entered);
        is_entered
    }

    /// Removes `number`. Afterwards no thread finds it or holds it.
    pub fn remove(&self, growth: &mut Growth, hash: u64, number: Number) {
        let Some(home) = self.seize_home(hash) else {
            return;
        };
        let Some(place) = home.search(tag_of(hash), |other| other == number) else {
            return;
        };
        home.vacate(growth, place);
        growth.entries -= 1;
    }

    /// Calls `work` and then replaces `old` by `new`, while no thread can find either.
    pub fn replace(
        &self,
        _growth: &mut Growth,
        hash: u64,
        old: Number,
        new: Number,
        work: impl FnOnce(),
    ) {
        if let Some(home) = self.seize_home(hash) {
            work();
            if let Some((bucket, place)) = home.search(tag_of(hash), |other| other == old) {
                // SAFETY: the bucket is locked, and the place is in it or in a spill of it.
                unsafe { (*bucket).numbers[place] = new };
            }
        }
    }

    /// Whether there are enough entries for another bucket.
    fn is_crowded(&self, entries: usize) -> bool {
        let length = self.length.load(Ordering::Relaxed);
        if length == 0 {
            return false;
        }
        let low = lower_power(length);
        let wanted = entries.saturating_sub(HIGH_LOAD * low) / (HIGHEST_LOAD - HIGH_LOAD);
        length - low < wanted.min(low)
    }

    /// How many more bytes one more entry may take: a page of buckets, and one of spills.
    pub fn bytes_to_grow(&self, growth: &Growth) -> usize {
        let added = |length: usize, more: usize| {
            Zeroed::<Bucket>::bytes(length + more) - Zeroed::<Bucket>::bytes(length)
        };
        let length = self.length.load(Ordering::Relaxed);
        let buckets = match length {
            0 => added(0, FEWEST),
            _ if self.is_crowded(growth.entries + 1) => added(length, SPLITS_PER_INSERT),
            _ => 0,
        };
        let spill = match growth.free_spills == 0 {
            true => added(growth.spills as usize, 1),
            false => 0,
        };
        buckets + spill
    }

    /// Adds a few buckets if there are many entries.
    pub fn grow(&self, growth: &mut Growth, hash_of: impl Fn(Number) -> u64) {
        for _ in 0..SPLITS_PER_INSERT {
            if !self.is_crowded(growth.entries) || !self.split(growth, &hash_of) {
                return;
            }
        }
    }

    /// Removes at most `slice` buckets if there are few entries. Returns whether there is more to do.
    pub fn shrink(
        &self,
        growth: &mut Growth,
        slice: usize,
        hash_of: impl Fn(Number) -> u64,
    ) -> bool {
        let former = self.length.load(Ordering::Relaxed);
        if growth.entries == 0 {
            return self.clear_slice(growth);
        }
        let is_sparse =
            |length: usize, entries: usize| length > FEWEST && entries < LOW_LOAD * length;
        let mut merged = 0;
        while merged < slice && is_sparse(former - merged, growth.entries) {
            if !self.merge(growth, &hash_of) {
                break;
            }
            merged += 1;
        }
        let length = former - merged;
        self.trim(length, former);
        (merged > 0 && is_sparse(length, growth.entries))
            || self.shrink_spills(growth, slice, hash_of)
    }

    /// Removes buckets and spills of a table without entries. Returns whether there is more to do.
    fn clear_slice(&self, growth: &mut Growth) -> bool {
        let former = self.length.load(Ordering::Relaxed);
        let length = match former.saturating_sub(EMPTY_BUCKETS_PER_SLICE) {
            0..FEWEST => 0,
            length => length,
        };
        self.length.store(length, Ordering::Release);
        self.trim(length, former);
        // All spills are empty, and so in the list of free ones. An insertion may come before the next slice and use the rest.
        let spills = growth.spills.saturating_sub(EMPTY_BUCKETS_PER_SLICE as u32);
        for spill in spills..growth.spills {
            self.leave_free(growth, spill);
        }
        self.trim_spills(growth, spills);
        growth.moving = Vec::new();
        length > 0 || spills > 0
    }

    /// Gives back the pages of the buckets behind the last one, which are all empty.
    fn trim(&self, length: usize, former: usize) {
        for bucket in self.buckets.behind(length, former).flatten() {
            if let Some(seized) = self.seize(bucket) {
                seized.close();
            }
        }
        // SAFETY: the buckets are closed, so no thread has one, or gets one before its page is zeros.
        unsafe { self.buckets.release(length, former) };
    }

    /// Gives back the pages of spills that are in no list and belong to no bucket.
    fn trim_spills(&self, growth: &mut Growth, spills: u32) {
        let former = std::mem::replace(&mut growth.spills, spills);
        // SAFETY: only a thread that has announced or locked a spill's bucket reads the spill, and these have no bucket.
        unsafe { self.spills.release(spills as usize, former as usize) };
    }

    /// If most spills are free, moves at most `slice` of the last ones to the places of others. Returns whether there is more
    /// to do.
    fn shrink_spills(
        &self,
        growth: &mut Growth,
        slice: usize,
        hash_of: impl Fn(Number) -> u64,
    ) -> bool {
        let mut spills = growth.spills;
        let enough = 2 * (growth.spills - growth.free_spills) + Zeroed::<Bucket>::FIRST as u32;
        for _ in 0..slice {
            if spills <= enough {
                break;
            }
            // SAFETY: spills below `growth.spills` were reserved. Only writers change one, and this thread is the only writer.
            let last = unsafe { self.spills.at(spills as usize - 1) };
            // SAFETY: as above.
            let first = unsafe { (*last).tags.iter().position(|tag| *tag != 0) };
            match first {
                None => self.leave_free(growth, spills - 1),
                Some(place) => {
                    // SAFETY: as above.
                    let hash = hash_of(unsafe { (*last).numbers[place] });
                    let is_moved = self
                        .seize_home(hash)
                        .is_some_and(|home| home.move_spill(growth, spills - 1));
                    if !is_moved {
                        break;
                    }
                }
            }
            spills -= 1;
        }
        let is_shorter = spills < growth.spills;
        self.trim_spills(growth, spills);
        is_shorter && spills > enough
    }

    /// Calls `visit` with `limit` entries from the position `from` on, which is 0 at first. Returns the position of the next
    /// entry, or `None` after the last. Visits entries with the same hash together, even beyond the limit.
    ///
    /// A position is a hash with its bits in reverse order. In that order the entries of a bucket keep their place when it is
    /// split or merged. So an entry that stays is visited once, whatever comes and goes.
    pub fn page(
        &self,
        from: u64,
        limit: usize,
        hash_of: impl Fn(Number) -> u64,
        mut visit: impl FnMut(Number),
    ) -> Option<u64> {
        let mut from = from;
        let mut left = limit.max(1);
        let mut entries: Vec<(u64, Number)> = Vec::new();
        while left > 0 {
            let bucket = self.lock_home(from.reverse_bits())?;
            let length = self.length.load(Ordering::Relaxed);
            let number = bucket_of(from.reverse_bits(), length);
            // How many bits of the hash all entries of this bucket share.
            let low = lower_power(length);
            let is_split = number >= low || number + low < length;
            let bits = low.ilog2() + u32::from(is_split);
            entries.clear();
            bucket.for_each(|number| entries.push((hash_of(number).reverse_bits(), number)));
            entries.retain(|(position, _)| *position >= from);
            entries.sort_unstable();
            let mut last = None;
            for (position, number) in &entries {
                if left == 0 && last != Some(position) {
                    return Some(*position);
                }
                visit(*number);
                left = left.saturating_sub(1);
                last = Some(position);
            }
            from = ((from >> (u64::BITS - bits)) + 1).checked_mul(1 << (u64::BITS - bits))?;
        }
        Some(from)
    }

    fn lock(&self, bucket: usize) -> Option<Locked<'_>> {
        // SAFETY: the bucket was reserved before its number was published.
        let bucket = unsafe { self.buckets.at(bucket) };
        // SAFETY: its memory lives as long as the index.
        let is_locked = unsafe { (*bucket).lock.lock() };
        is_locked.then_some(Locked {
            index: self,
            bucket,
        })
    }

    /// Locks a bucket, and waits until no thread reads it. For writers.
    fn seize(&self, bucket: usize) -> Option<Seized<'_>> {
        self.lock(bucket).map(Locked::seize)
    }

    /// The same for the bucket that `hash` belongs to.
    fn seize_home(&self, hash: u64) -> Option<Seized<'_>> {
        self.lock_home(hash).map(Locked::seize)
    }

    /// Opens the lock of a reserved bucket, before it comes into the table.
    fn open(&self, bucket: usize) {
        // SAFETY: guaranteed by the caller.
        unsafe { (*self.buckets.at(bucket)).lock.open() };
    }

    /// Locks the bucket that `hash` belongs to. `None` if there are no buckets.
    fn lock_home(&self, hash: u64) -> Option<Locked<'_>> {
        let mut length = self.length.load(Ordering::Acquire);
        loop {
            if length == 0 {
                return None;
            }
            let number = bucket_of(hash, length);
            let locked = self.lock(number);
            // While the bucket is locked, no thread splits or merges it.
            length = self.length.load(Ordering::Acquire);
            if locked.is_some() && length != 0 && bucket_of(hash, length) == number {
                return locked;
            }
        }
    }

    /// Adds one bucket. `false` if the system has no memory for it.
    fn split(&self, growth: &mut Growth, hash_of: impl Fn(Number) -> u64) -> bool {
        let length = self.length.load(Ordering::Relaxed);
        if !self.buckets.reserve(length) {
            return false;
        }
        let low = lower_power(length);
        self.open(length);
        let (Some(old), Some(new)) = (self.seize(length - low), self.seize(length)) else {
            return false;
        };
        if !old.make_way(growth) {
            return false;
        }
        let mut moving = std::mem::take(&mut growth.moving);
        old.drain(growth, |number| moving.push((hash_of(number), number)));
        for (hash, number) in moving.drain(..) {
            let home = if hash as usize & low == 0 { &old } else { &new };
            let is_entered = home.enter(growth, tag_of(hash), number);
            // Two buckets together need no more than the one had.
            debug_assert!(is_entered);
        }
        growth.moving = moving;
        self.length.store(length + 1, Ordering::Release);
        true
    }

    /// Removes the last bucket. `false` if the system has no memory for a spill.
    fn merge(&self, growth: &mut Growth, hash_of: impl Fn(Number) -> u64) -> bool {
        let last = self.length.load(Ordering::Relaxed) - 1;
        let home = last - lower_power(last);
        let (Some(home), Some(last_bucket)) = (self.seize(home), self.seize(last)) else {
            return false;
        };
        if !last_bucket.make_way(growth) {
            return false;
        }
        let mut moving = std::mem::take(&mut growth.moving);
        last_bucket.drain(growth, |number| moving.push((hash_of(number), number)));
        let mut entered = 0;
        while let Some((hash, number)) = moving.get(entered) {
            if !home.enter(growth, tag_of(*hash), *number) {
                break;
            }
            entered += 1;
        }
        let is_done = entered == moving.len();
        if is_done {
            self.length.store(last, Ordering::Release);
        } else {
            for (hash, number) in moving.drain(..entered) {
                if let Some(place) = home.search(tag_of(hash), |other| other == number) {
                    home.vacate(growth, place);
                }
            }
            for (hash, number) in moving.drain(..) {
                // The bucket had room for them a moment ago.
                let is_entered = last_bucket.enter(growth, tag_of(hash), number);
                debug_assert!(is_entered);
            }
        }
        moving.clear();
        growth.moving = moving;
        is_done
    }
}

// SAFETY of all that follows: the caller guarantees that the bucket and its spills stay as they are.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one argument holds for all"
)]
impl Index {
    unsafe fn next(&self, bucket: *mut Bucket) -> Option<*mut Bucket> {
        let spill = unsafe { (*bucket).spill()? };
        Some(unsafe { self.spills.at(spill as usize) })
    }

    #[inline]
    unsafe fn search(
        &self,
        home: *mut Bucket,
        tag: u8,
        is_it: impl Fn(Number) -> bool,
    ) -> Option<Place> {
        let mut bucket = home;
        loop {
            let mut places = unsafe { (*bucket).with_tag(tag) };
            while places != 0 {
                let place = places.trailing_zeros() as usize;
                if is_it(unsafe { (*bucket).numbers[place] }) {
                    return Some((bucket, place));
                }
                places &= places - 1;
            }
            bucket = unsafe { self.next(bucket)? };
        }
    }

    #[inline]
    unsafe fn find_in(
        &self,
        home: *mut Bucket,
        hash: u64,
        is_it: impl Fn(Number) -> bool,
    ) -> Option<Number> {
        let (bucket, place) = unsafe { self.search(home, tag_of(hash), is_it)? };
        Some(unsafe { (*bucket).numbers[place] })
    }
}

// SAFETY of all that follows: the bucket is locked, so it and its spills stay as they are.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one argument holds for all"
)]
impl<'a> Locked<'a> {
    /// Waits until no thread reads the bucket any more.
    fn seize(self) -> Seized<'a> {
        if let Some(lookups) = &self.index.lookups {
            lookups.await_readers_of(self.bucket.addr());
        }
        Seized(self)
    }

    fn next(&self, bucket: *mut Bucket) -> Option<*mut Bucket> {
        unsafe { self.index.next(bucket) }
    }

    fn for_each(&self, mut visit: impl FnMut(Number)) {
        let mut bucket = self.bucket;
        loop {
            let entries = unsafe { (*bucket).tags.iter().zip(&(*bucket).numbers) };
            for (tag, number) in entries {
                if *tag != 0 {
                    visit(*number);
                }
            }
            match self.next(bucket) {
                Some(next) => bucket = next,
                None => return,
            }
        }
    }
}

// SAFETY of all that follows: the bucket and its spills are this thread's alone.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one argument holds for all"
)]
impl Seized<'_> {
    fn search(&self, tag: u8, is_it: impl Fn(Number) -> bool) -> Option<Place> {
        unsafe { self.index.search(self.bucket, tag, is_it) }
    }

    /// Closes the lock, until the bucket is opened.
    fn close(self) {
        unsafe { (*self.bucket).lock.close() };
        std::mem::forget(self);
    }

    /// Reserves memory to take all entries out. `false` if the system has none.
    fn make_way(&self, growth: &mut Growth) -> bool {
        let mut entries = 0;
        self.for_each(|_| entries += 1);
        growth.moving.try_reserve(entries).is_ok()
    }

    /// Enters a number in the first empty place, or in a new spill.
    fn enter(&self, growth: &mut Growth, tag: u8, number: Number) -> bool {
        let mut bucket = self.bucket;
        loop {
            if let Some(place) = unsafe { (*bucket).vacancy() } {
                unsafe {
                    (*bucket).tags[place] = tag;
                    (*bucket).numbers[place] = number;
                }
                return true;
            }
            match self.next(bucket) {
                Some(next) => bucket = next,
                None => break,
            }
        }
        let Some(spill) = self.index.take_spill(growth) else {
            return false;
        };
        unsafe {
            (*bucket).set_spill(Some(spill));
            let spill = self.index.spills.at(spill as usize);
            (*spill).tags[0] = tag;
            (*spill).numbers[0] = number;
        }
        true
    }

    /// Empties a place, and moves the last entry there, so that no spill stays for a few entries.
    fn vacate(&self, growth: &mut Growth, (bucket, place): Place) {
        let (mut before, mut last) = (self.bucket, self.bucket);
        while let Some(next) = self.next(last) {
            (before, last) = (last, next);
        }
        unsafe {
            let end = (*last).tags.iter().rposition(|tag| *tag != 0).unwrap_or(0);
            (*bucket).tags[place] = (*last).tags[end];
            (*bucket).numbers[place] = (*last).numbers[end];
            (*last).tags[end] = 0;
            (*last).numbers[end] = 0;
            if last != self.bucket && (*last).is_empty() {
                let spill = (*before).spill();
                (*before).set_spill(None);
                self.index.free_spill(growth, spill);
            }
        }
    }

    /// Removes all entries.
    fn drain(&self, growth: &mut Growth, visit: impl FnMut(Number)) {
        self.for_each(visit);
        let mut bucket = self.bucket;
        let mut freed = None;
        loop {
            let next = self.next(bucket);
            unsafe {
                let spill = (*bucket).spill();
                (*bucket).set_spill(None);
                (*bucket).tags = [0; WIDTH];
                (*bucket).numbers = [0; WIDTH];
                self.index.free_spill(growth, freed);
                freed = spill;
            }
            match next {
                Some(next) => bucket = next,
                None => return,
            }
        }
    }

    /// Moves a spill of this bucket to a free place. `false` if there is none.
    fn move_spill(&self, growth: &mut Growth, old: u32) -> bool {
        let mut before = self.bucket;
        while unsafe { (*before).spill() } != Some(old) {
            let Some(next) = self.next(before) else {
                return false;
            };
            before = next;
        }
        let Some(new) = growth.free_spill else {
            return false;
        };
        self.index.leave_free(growth, new);
        unsafe {
            let (from, to) = (
                self.index.spills.at(old as usize),
                self.index.spills.at(new as usize),
            );
            (*to).tags = (*from).tags;
            (*to).numbers = (*from).numbers;
            (*to).spill = (*from).spill;
            (*from).tags = [0; WIDTH];
            (*from).numbers = [0; WIDTH];
            (*from).spill = [0; 3];
            (*before).set_spill(Some(new));
        }
        true
    }
}

// SAFETY of all that follows: spills below `growth.spills` were reserved, and a free one is the writer's alone.
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "one argument holds for all"
)]
impl Index {
    fn take_spill(&self, growth: &mut Growth) -> Option<u32> {
        if let Some(spill) = growth.free_spill {
            self.leave_free(growth, spill);
            return Some(spill);
        }
        let spill = growth.spills;
        if spill == MAX_SPILLS || !self.spills.reserve(spill as usize) {
            return None;
        }
        growth.spills += 1;
        Some(spill)
    }

    /// Enters an empty spill into the list of free ones.
    fn free_spill(&self, growth: &mut Growth, spill: Option<u32>) {
        let Some(spill) = spill else { return };
        unsafe {
            let free = self.spills.at(spill as usize);
            (*free).set_neighbour(0, growth.free_spill);
            (*free).set_neighbour(1, None);
            if let Some(next) = growth.free_spill {
                (*self.spills.at(next as usize)).set_neighbour(1, Some(spill));
            }
        }
        growth.free_spill = Some(spill);
        growth.free_spills += 1;
    }

    /// Removes a spill from the list of free ones.
    fn leave_free(&self, growth: &mut Growth, spill: u32) {
        unsafe {
            let free = self.spills.at(spill as usize);
            let [next, before] = (*free).neighbours();
            match before {
                None => growth.free_spill = next,
                Some(before) => (*self.spills.at(before as usize)).set_neighbour(0, next),
            }
            if let Some(next) = next {
                (*self.spills.at(next as usize)).set_neighbour(1, before);
            }
            (*free).set_neighbour(0, None);
            (*free).set_neighbour(1, None);
        }
        growth.free_spills -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::HashMap;

    /// Numbers are their own keys.
    fn hash_of(number: Number) -> u64 {
        (u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15)).rotate_left(32)
            ^ u64::from(number).wrapping_mul(0xbf58_476d_1ce4_e5b9)
    }

    #[derive(Default)]
    struct Table {
        growth: Growth,
        entries: HashMap<Number, u64>,
    }

    impl Table {
        fn insert(&mut self, index: &Index, number: Number, hash_of: impl Fn(Number) -> u64) {
            assert!(index.insert(&mut self.growth, hash_of(number), number));
            index.grow(&mut self.growth, &hash_of);
            self.entries.insert(number, hash_of(number));
        }

        fn remove(&mut self, index: &Index, number: Number) {
            if let Some(hash) = self.entries.remove(&number) {
                index.remove(&mut self.growth, hash, number);
            }
        }
    }

    fn has(index: &Index, number: Number, hash: u64) -> bool {
        let found = index.visit(hash).find(hash, |other| other == number);
        found.is_some()
    }

    fn visited() -> Index {
        Index::visited(Arc::default())
    }

    #[test]
    fn all_entries_are_found_while_it_grows_and_shrinks() {
        let (index, mut table) = (visited(), Table::default());
        for number in 1..=100_000 {
            table.insert(&index, number, hash_of);
        }
        assert!((1..=100_000).all(|number| has(&index, number, hash_of(number))));
        assert!((100_001..=200_000).all(|number| !has(&index, number, hash_of(number))));
        let bytes_per_entry = index.bytes(&table.growth) as f64 / 100_000.0;
        assert!(bytes_per_entry < 12.0, "{bytes_per_entry}");
        for number in 1_001..=100_000 {
            table.remove(&index, number);
        }
        while index.shrink(&mut table.growth, 64, hash_of) {}
        assert!((1..=1_000).all(|number| has(&index, number, hash_of(number))));
        assert!(
            index.bytes(&table.growth) < 64 * 1024,
            "{}",
            index.bytes(&table.growth)
        );
        (1..=1_000).for_each(|number| table.remove(&index, number));
        while index.shrink(&mut table.growth, 64, hash_of) {}
        assert_eq!(index.bytes(&table.growth), 0);
        table.insert(&index, 1, hash_of);
        assert!(has(&index, 1, hash_of(1)));
    }

    #[test]
    fn entries_with_one_hash_do_not_displace_each_other() {
        let (index, mut table) = (visited(), Table::default());
        for number in 1..=1_000 {
            table.insert(&index, number, |_| 7);
        }
        assert!((1..=1_000).all(|number| has(&index, number, 7)));
        (1..=999).for_each(|number| table.remove(&index, number));
        assert!(has(&index, 1_000, 7));
        assert_eq!(table.growth.free_spills, table.growth.spills);
    }

    /// The last spills are in use, and the first are free.
    #[test]
    fn spills_that_are_not_needed_are_given_back() {
        let (index, mut table) = (visited(), Table::default());
        let in_one_of_two = |number: Number| u64::from(number > 2_000) | 0xa500_0000_0000_0000;
        for number in 1..=4_000 {
            let is_entered = index.insert(&mut table.growth, in_one_of_two(number), number);
            assert!(is_entered);
        }
        let spills = table.growth.spills;
        assert!(spills > 300);
        for number in (1..=2_000).chain(2_500..=4_000) {
            index.remove(&mut table.growth, in_one_of_two(number), number);
        }
        while index.shrink(&mut table.growth, 64, in_one_of_two) {}
        let in_use = table.growth.spills - table.growth.free_spills;
        assert!(
            table.growth.spills <= 2 * in_use + 64,
            "{in_use} of {}",
            table.growth.spills
        );
        assert!((2_001..2_500).all(|number| has(&index, number, in_one_of_two(number))));
    }

    /// A scope that is in use is flushed: an insertion comes before all spills were given back.
    #[test]
    fn no_spill_is_lost_when_an_empty_table_is_used_again() {
        let (index, mut table) = (visited(), Table::default());
        let in_one_of_two = |number: Number| u64::from(number > 8_000) | 0xa500_0000_0000_0000;
        for _ in 0..3 {
            for number in 1..=16_000 {
                assert!(index.insert(&mut table.growth, in_one_of_two(number), number));
            }
            assert!(table.growth.spills > 2 * EMPTY_BUCKETS_PER_SLICE as u32);
            for number in 1..=16_000 {
                index.remove(&mut table.growth, in_one_of_two(number), number);
            }
            index.shrink(&mut table.growth, 64, in_one_of_two);
            assert!(index.insert(&mut table.growth, in_one_of_two(1), 1));
            assert_eq!(table.growth.free_spills, table.growth.spills);
            index.remove(&mut table.growth, in_one_of_two(1), 1);
        }
        while index.shrink(&mut table.growth, 64, in_one_of_two) {}
        assert_eq!(index.bytes(&table.growth), 0);
    }

    /// A late reader has the lock of a bucket that is no longer in the table.
    #[test]
    fn a_page_goes_back_when_nobody_has_a_lock_in_it() {
        let (index, mut table) = (visited(), Table::default());
        (1..=2_000).for_each(|number| table.insert(&index, number, hash_of));
        (11..=2_000).for_each(|number| table.remove(&index, number));
        let length = || index.length.load(Ordering::Relaxed);
        while length() > 120 {
            index.shrink(&mut table.growth, 1, hash_of);
        }
        let late = index.lock(121);
        std::thread::scope(|threads| {
            let shrinks = threads.spawn(|| while index.shrink(&mut table.growth, 64, hash_of) {});
            while length() > FEWEST {
                std::thread::yield_now();
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(!shrinks.is_finished());
            drop(late);
        });
        assert!((1..=10).all(|number| has(&index, number, hash_of(number))));
    }

    #[test]
    fn a_panic_leaves_no_bucket_locked() {
        let (index, mut table) = (visited(), Table::default());
        table.insert(&index, 1, hash_of);
        let panics = || {
            let visit = index.visit(hash_of(1));
            visit
                .find(hash_of(1), |_| panic!("in a comparison"))
                .is_some()
        };
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).is_err());
        // A writer gets the lock.
        table.insert(&index, 2, |_| hash_of(1));
        assert!(has(&index, 1, hash_of(1)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Insert(u16),
        Remove(u16),
        Shrink,
        Page(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..3000u16).prop_map(Step::Insert),
            3 => (1..3000u16).prop_map(Step::Remove),
            1 => Just(Step::Shrink),
            1 => any::<u8>().prop_map(Step::Page),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 2 } else { 64 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// If only few bits of the hash are used, there are many spills.
        #[test]
        fn it_agrees_with_a_map(steps in vec(step(), 1..4000), bits in 1..64u32) {
            let hash_of = |number: Number| hash_of(number) & (u64::MAX >> (64 - bits));
            let (index, mut table) = (visited(), Table::default());
            let (mut position, mut met) = (0, HashMap::new());
            for step in steps {
                match step {
                    Step::Insert(n) if !table.entries.contains_key(&n.into()) => {
                        table.insert(&index, n.into(), hash_of);
                    }
                    Step::Insert(_) => {}
                    Step::Remove(n) => {
                        table.remove(&index, n.into());
                        met.remove(&Number::from(n));
                    }
                    Step::Shrink => _ = index.shrink(&mut table.growth, 7, hash_of),
                    Step::Page(limit) => {
                        let next = index.page(position, limit.into(), hash_of, |number| {
                            *met.entry(number).or_insert(0) += 1;
                        });
                        prop_assert!(met.values().all(|times| *times == 1));
                        position = next.unwrap_or(0);
                        if next.is_none() {
                            met.clear();
                        }
                    }
                }
                prop_assert_eq!(table.growth.entries, table.entries.len());
            }
            let mut all = HashMap::new();
            let mut from = Some(0);
            while let Some(position) = from {
                from = index.page(position, 10, hash_of, |number| _ = all.insert(number, hash_of(number)));
            }
            prop_assert_eq!(&all, &table.entries);
            for (number, hash) in &table.entries {
                prop_assert!(has(&index, *number, *hash));
            }
        }
    }
}
