//! Memory for sessions and certificates: slots of a few sizes in pages of the store's own.
//!
//! Slots of one size and kind make up a class, which has segments of its own. A segment takes pages as it fills, and counts
//! those that it has touched. New slots use freed ones of their class first. A class with much free memory is compacted: the
//! caller moves the last slots of its emptiest segment into gaps of the others, until pages at its end are free and go back
//! to the system. So whatever sizes come and go, the memory taken can be brought down to the memory in use, except for a page
//! per class.
//!
//! A [`SlotRef`] of 32 bits names a slot. [`super`] says which thread may touch which part of a slot, and when.

#![allow(unsafe_code)]

use super::pages::{whole_pages, Mapping, Zeroed};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Bytes of a segment.
const SEGMENT: usize = 256 * 1024;

/// Offsets and sizes of slots are multiples of this.
const GRANULE: usize = 16;

/// Up to this size there is a class for each multiple of the granule; above it there are eight per doubling.
const SMALL: usize = 512;

const OFFSET_BITS: u32 = (SEGMENT / GRANULE).trailing_zeros();

/// Most segments of a scope: 64 GiB.
const MAX_SEGMENTS: usize = (1 << (u32::BITS - OFFSET_BITS)) - 1;

/// The largest slot, for a certificate of 64 KiB and its header.
pub(crate) const MAX_SLOT: usize = 72 * 1024;

/// Classes of each kind.
const SIZES: usize = size_class(MAX_SLOT) + 1;

/// The content of a slot. Each kind has classes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Session = 0,
    Certificate = 1,
}

const KINDS: usize = 2;

const fn size_class(bytes: usize) -> usize {
    if bytes <= SMALL {
        bytes.div_ceil(GRANULE)
    } else {
        let doubling = (bytes - 1).ilog2();
        let eighth = ((bytes - 1) >> (doubling - 3)) & 7;
        SMALL / GRANULE + 8 * (doubling - SMALL.ilog2()) as usize + eighth + 1
    }
}

const fn class_bytes(class: usize) -> usize {
    if class <= SMALL / GRANULE {
        class * GRANULE
    } else {
        let above = class - SMALL / GRANULE - 1;
        (SMALL << (above / 8)) / 8 * (9 + above % 8)
    }
}

/// The size of a slot for `bytes` bytes.
pub(crate) fn slot_bytes(bytes: usize) -> usize {
    class_bytes(size_class(bytes))
}

/// Names a slot by its segment and offset.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotRef(pub u32);

impl SlotRef {
    /// Names no slot: segments are counted from 1.
    pub const NONE: SlotRef = SlotRef(0);

    fn new(segment: usize, offset: usize) -> Self {
        SlotRef((((segment + 1) as u32) << OFFSET_BITS) | (offset / GRANULE) as u32)
    }

    fn segment(self) -> usize {
        (self.0 >> OFFSET_BITS) as usize - 1
    }

    fn offset(self) -> usize {
        (self.0 & ((1 << OFFSET_BITS) - 1)) as usize * GRANULE
    }

    /// `None` for [`SlotRef::NONE`].
    pub fn some(self) -> Option<Self> {
        (self != Self::NONE).then_some(self)
    }
}

/// Finds slots. All threads share it without a lock.
pub(crate) struct Directory {
    segments: Zeroed<AtomicPtr<u8>>,
}

impl Directory {
    pub const fn new() -> Self {
        Directory {
            segments: Zeroed::new(),
        }
    }

    /// The address of a slot.
    ///
    /// # Safety
    /// `slot` was allocated by the [`Slab`] of this directory and has not been freed since.
    pub unsafe fn find(&self, slot: SlotRef) -> *mut u8 {
        // SAFETY: an allocated slot's segment is mapped, and was entered here before the slot was allocated. The offset of a
        // slot is within its segment.
        unsafe {
            let base = (*self.segments.at(slot.segment())).load(Ordering::Acquire);
            base.add(slot.offset())
        }
    }

    fn enter(&self, segment: usize, base: *mut u8) -> bool {
        let is_reserved = self.segments.reserve(segment);
        if is_reserved {
            // SAFETY: the element was just reserved, and zeros are a null pointer.
            unsafe { (*self.segments.at(segment)).store(base, Ordering::Release) };
        }
        is_reserved
    }
}

/// Allocates and frees slots. For one thread at a time.
#[derive(Default)]
pub(crate) struct Slab {
    segments: Segments,
    /// Empty places in `segments`, and some places behind its end. The lowest is used first, so that `segments` becomes
    /// shorter.
    vacant: BinaryHeap<Reverse<u32>>,
    classes: Vec<Class>,
    /// Bytes of the pages that were touched and not given back.
    bytes: usize,
    /// Bytes of the bits for slots in use.
    live_bytes: usize,
    /// Bytes of touched slots that are free.
    free_bytes: usize,
    /// Segments in which at some time no slot was in use.
    emptied: Vec<u32>,
    /// The class that is being compacted.
    compacted: usize,
    /// The segment at which [`next_due`](Self::next_due) continues, how many it has searched in this pass, and the oldest birth
    /// that it has met or that was recorded meanwhile.
    looked_at: usize,
    searched: usize,
    oldest_met: u64,
    /// No session was born before this.
    none_before: u64,
}

#[derive(Default)]
struct Class {
    segments: Vec<u32>,
    /// Segments with a free touched slot.
    roomy: Vec<u32>,
    /// Segments with free slots that were never touched, or whose pages were given back.
    growable: Vec<u32>,
    /// The number of free touched slots.
    free: usize,
    /// The segment that is being emptied.
    source: Option<usize>,
}

struct Segment {
    pages: Mapping,
    class: usize,
    size: usize,
    used: usize,
    /// Counted bytes from the start: whole pages, or the whole segment.
    touched: usize,
    /// A bit for each slot that is in use.
    live: Box<[u64]>,
    roomy_at: Option<usize>,
    growable_at: Option<usize>,
    /// Whether the segment is in [`Slab::emptied`].
    is_emptied: bool,
    /// No session in this segment was born before this moment, in the caller's unit.
    oldest: u64,
}

impl Segment {
    /// The number of slots in the touched part.
    fn usable(&self) -> usize {
        self.touched / self.size
    }

    fn free(&self) -> usize {
        self.usable() - self.used
    }

    /// Whether another slot fits behind the touched ones.
    fn can_grow(&self) -> bool {
        (self.usable() + 1) * self.size <= SEGMENT
    }

    fn first_free(&self) -> Option<usize> {
        let word = self.live.iter().position(|word| *word != u64::MAX)?;
        let slot = word * 64 + self.live[word].trailing_ones() as usize;
        (slot < self.usable()).then_some(slot)
    }

    fn last_used(&self) -> Option<usize> {
        let word = self.live.iter().rposition(|word| *word != 0)?;
        Some(word * 64 + 63 - self.live[word].leading_zeros() as usize)
    }

    fn set_live(&mut self, slot: usize, is_live: bool) {
        let (word, bit) = (slot / 64, 1 << (slot % 64));
        match is_live {
            true => self.live[word] |= bit,
            false => self.live[word] &= !bit,
        }
    }
}

/// Segments by number, in chunks, because it would take long to move all when there are more.
#[derive(Default)]
struct Segments {
    chunks: Vec<Vec<Option<Segment>>>,
    length: usize,
}

impl Segments {
    const CHUNK: usize = 64;

    fn len(&self) -> usize {
        self.length
    }

    fn get(&self, at: usize) -> Option<&Option<Segment>> {
        self.chunks.get(at / Self::CHUNK)?.get(at % Self::CHUNK)
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut Option<Segment>> {
        self.chunks
            .get_mut(at / Self::CHUNK)?
            .get_mut(at % Self::CHUNK)
    }

    fn iter(&self) -> impl Iterator<Item = &Option<Segment>> {
        self.chunks.iter().flatten()
    }

    /// Reserves a place for one more segment. `false` if the system has no memory.
    fn reserve(&mut self) -> bool {
        if self.length < self.chunks.len() * Self::CHUNK {
            return true;
        }
        let mut chunk = Vec::new();
        let is_reserved =
            chunk.try_reserve_exact(Self::CHUNK).is_ok() && self.chunks.try_reserve(1).is_ok();
        if is_reserved {
            self.chunks.push(chunk);
        }
        is_reserved
    }

    fn push(&mut self, segment: Segment) {
        self.chunks[self.length / Self::CHUNK].push(Some(segment));
        self.length += 1;
    }

    /// Removes empty places at the end, and returns the new length.
    fn shorten(&mut self) -> usize {
        while let Some(None) = self.length.checked_sub(1).and_then(|last| self.get(last)) {
            self.length -= 1;
            self.chunks[self.length / Self::CHUNK].pop();
            if self.length % Self::CHUNK == 0 {
                self.chunks.truncate(self.length / Self::CHUNK);
            }
        }
        self.length
    }
}

impl std::ops::Index<usize> for Segments {
    type Output = Option<Segment>;

    fn index(&self, at: usize) -> &Self::Output {
        &self.chunks[at / Self::CHUNK][at % Self::CHUNK]
    }
}

impl std::ops::IndexMut<usize> for Segments {
    fn index_mut(&mut self, at: usize) -> &mut Self::Output {
        &mut self.chunks[at / Self::CHUNK][at % Self::CHUNK]
    }
}

/// Bytes of the tables per segment, without the bits of its slots.
const TABLE_BYTES: usize = size_of::<Option<Segment>>() + size_of::<AtomicPtr<u8>>();

/// How many words of 64 bits have a bit for each slot of a segment.
const fn live_words(slot_bytes: usize) -> usize {
    (SEGMENT / slot_bytes).div_ceil(64)
}

/// A slot to move, and its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Move {
    pub from: SlotRef,
    pub to: SlotRef,
    pub kind: Kind,
    /// The size of either slot.
    pub bytes: usize,
}

/// Segments that one call of [`Slab::next_due`] looks at. The tests have few segments.
const SEGMENTS_PER_SEARCH: usize = if cfg!(test) { 2 } else { 4096 };

/// The result of a step of [`Slab::next_due`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Search {
    /// The segment with this number may have one.
    Found(usize),
    /// There are more segments to look at.
    GoesOn,
    /// No segment has a session born before the limit.
    Over,
}

/// The next step to reduce the memory taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Pages went back to the system.
    Released,
    /// The caller moves the content of a slot, wipes the slot, and frees it.
    Move(Move),
}

/// A list of segments, each of which knows its place in the list.
macro_rules! listed {
    ($enter:ident, $leave:ident, $list:ident, $place:ident) => {
        fn $enter(&mut self, at: usize) {
            let Some(segment) = self.segments[at].as_mut() else {
                return;
            };
            if segment.$place.is_none() {
                let list = &mut self.classes[segment.class].$list;
                segment.$place = Some(list.len());
                list.push(at as u32);
            }
        }

        fn $leave(&mut self, at: usize) {
            let Some(segment) = self.segments[at].as_mut() else {
                return;
            };
            let Some(place) = segment.$place.take() else {
                return;
            };
            let list = &mut self.classes[segment.class].$list;
            list.swap_remove(place);
            if let Some(moved) = list.get(place).copied() {
                if let Some(segment) = self.segments[moved as usize].as_mut() {
                    segment.$place = Some(place);
                }
            }
        }
    };
}

impl Slab {
    listed!(enter_roomy, leave_roomy, roomy, roomy_at);
    listed!(enter_growable, leave_growable, growable, growable_at);

    /// Bytes of the slots, in whole pages, and of their tables.
    pub fn bytes(&self) -> usize {
        self.bytes + self.live_bytes + self.segments.len() * TABLE_BYTES
    }

    /// Bytes of free slots whose pages were not given back.
    pub fn free_bytes(&self) -> usize {
        self.free_bytes
    }

    fn class_of(kind: Kind, bytes: usize) -> usize {
        kind as usize * SIZES + size_class(bytes)
    }

    fn class(&self, kind: Kind, bytes: usize) -> Option<&Class> {
        self.classes.get(Self::class_of(kind, bytes))
    }

    /// How many more bytes a slot for `bytes` bytes would take: 0 if a touched one is free.
    pub fn bytes_to_grow(&self, kind: Kind, bytes: usize) -> usize {
        let size = slot_bytes(bytes);
        let new_segment = whole_pages(size) + TABLE_BYTES + size_of::<u64>() * live_words(size);
        let Some(class) = self.class(kind, bytes) else {
            return new_segment;
        };
        if class.free > 0 {
            return 0;
        }
        let growable = class
            .growable
            .last()
            .and_then(|at| self.segments[*at as usize].as_ref());
        match growable {
            Some(segment) => grown(segment) - segment.touched,
            None => new_segment,
        }
    }

    /// A slot for `bytes` bytes, filled with zeros. `None` if the system has no memory, or the scope has as many segments as
    /// it can have.
    pub fn allocate(&mut self, directory: &Directory, kind: Kind, bytes: usize) -> Option<SlotRef> {
        if self.classes.is_empty() {
            self.classes.try_reserve_exact(KINDS * SIZES).ok()?;
            self.classes.resize_with(KINDS * SIZES, Class::default);
        }
        let class = Self::class_of(kind, bytes);
        let at = match self.classes[class].roomy.last() {
            Some(at) => *at as usize,
            None => {
                let at = match self.classes[class].growable.last() {
                    Some(at) => *at as usize,
                    None => self.add_segment(directory, class, slot_bytes(bytes))?,
                };
                self.grow_segment(at);
                at
            }
        };
        self.take_slot(at)
    }

    fn take_slot(&mut self, at: usize) -> Option<SlotRef> {
        let segment = self.segments[at].as_mut()?;
        let slot = segment.first_free()?;
        segment.set_live(slot, true);
        segment.used += 1;
        let (size, class, is_full) = (segment.size, segment.class, segment.free() == 0);
        self.classes[class].free -= 1;
        self.free_bytes -= size;
        if is_full {
            self.leave_roomy(at);
        }
        Some(SlotRef::new(at, slot * size))
    }

    /// Frees a slot, which the caller has filled with zeros.
    pub fn free(&mut self, slot: SlotRef) {
        let at = slot.segment();
        let Some(segment) = self.segments[at].as_mut() else {
            return;
        };
        segment.set_live(slot.offset() / segment.size, false);
        segment.used -= 1;
        self.classes[segment.class].free += 1;
        self.free_bytes += segment.size;
        if segment.used == 0 && !std::mem::replace(&mut segment.is_emptied, true) {
            self.emptied.push(at as u32);
        }
        self.enter_roomy(at);
    }

    /// Whether [`next_step`](Self::next_step) can gain pages by a move.
    pub fn can_compact(&mut self) -> bool {
        if self.can_compact_class(self.compacted) {
            return true;
        }
        let most = (0..self.classes.len()).max_by_key(|class| self.free_bytes_of(*class));
        self.compacted = most.unwrap_or(0);
        self.can_compact_class(self.compacted)
    }

    fn free_bytes_of(&self, class: usize) -> usize {
        self.classes[class].free * class_bytes(class % SIZES)
    }

    /// Whether at least a page is free. If slots lie close together, less than that is free.
    fn can_compact_class(&self, class: usize) -> bool {
        let free = self.classes.get(class).is_some_and(|class| class.free > 0);
        free && self.free_bytes_of(class) >= whole_pages(1)
    }

    /// Gives back a segment in which no slot is in use. `false` if there is none.
    pub fn release_empty_segment(&mut self, directory: &Directory) -> bool {
        while let Some(at) = self.emptied.pop() {
            let at = at as usize;
            let Some(Some(segment)) = self.segments.get_mut(at) else {
                continue;
            };
            segment.is_emptied = false;
            if segment.used == 0 {
                return self.remove_segment(directory, at).is_some();
            }
        }
        false
    }

    /// Gives back some pages, or names the slot to move before more can be given back. `None` if nothing can be gained.
    pub fn next_step(&mut self, directory: &Directory) -> Option<Step> {
        if self.release_empty_segment(directory) {
            return Some(Step::Released);
        }
        if self.can_compact() {
            let class = self.compacted;
            let at = match self.classes[class].source {
                Some(at) => at,
                None => {
                    let used = |at: &usize| self.segments[*at].as_ref().map_or(0, |s| s.used);
                    let segments = self.classes[class].segments.iter();
                    let source = segments.map(|at| *at as usize).min_by_key(used)?;
                    self.classes[class].source = Some(source);
                    source
                }
            };
            let segment = self.segments[at].as_ref()?;
            let Some(last) = segment.last_used() else {
                drop(self.remove_segment(directory, at));
                return Some(Step::Released);
            };
            let (size, used) = (segment.size, (last + 1) * segment.size);
            if whole_pages(used) < segment.touched {
                self.shrink_segment(at, used);
                return Some(Step::Released);
            }
            let other = self.classes[class]
                .roomy
                .iter()
                .rev()
                .take(2)
                .find(|other| **other as usize != at);
            let to = match other {
                Some(other) => self.take_slot(*other as usize)?,
                None if segment.first_free().is_some_and(|slot| slot < last) => {
                    self.take_slot(at)?
                }
                None => {
                    // The segment is dense, and the only one. The next class has its turn.
                    self.classes[class].source = None;
                    return None;
                }
            };
            return Some(Step::Move(Move {
                from: SlotRef::new(at, last * size),
                to,
                kind: if class < SIZES {
                    Kind::Session
                } else {
                    Kind::Certificate
                },
                bytes: size,
            }));
        }
        None
    }

    /// Records when the session in a slot was born.
    pub fn note_birth(&mut self, slot: SlotRef, born: u64) {
        if let Some(segment) = self.segments[slot.segment()].as_mut() {
            segment.oldest = segment.oldest.min(born);
        }
        self.oldest_met = self.oldest_met.min(born);
        self.none_before = self.none_before.min(born);
    }

    /// Records that the session in `from` is also in `to`.
    pub fn inherit_birth(&mut self, from: SlotRef, to: SlotRef) {
        let from = self.segments[from.segment()].as_ref();
        if let Some(oldest) = from.map(|segment| segment.oldest) {
            self.note_birth(to, oldest);
        }
    }

    /// The segment that may have the oldest session, and the moment before which no session was born.
    pub fn oldest(&self) -> Option<(usize, u64)> {
        let segments = self.segments.iter().enumerate();
        let of_sessions = segments.filter_map(|(at, segment)| {
            let segment = segment.as_ref()?;
            (segment.class < SIZES && segment.used > 0).then_some((at, segment.oldest))
        });
        of_sessions.min_by_key(|(_, oldest)| *oldest)
    }

    /// Searches for a segment that may have a session born before `limit`. A whole search takes long if there are many segments,
    /// so each call looks at the next few in turn. There is nothing to search before the oldest session is due.
    pub fn next_due(&mut self, limit: u64) -> Search {
        let number = self.segments.len();
        for _ in 0..SEGMENTS_PER_SEARCH {
            if limit <= self.none_before {
                return Search::Over;
            }
            if self.searched >= number {
                self.none_before = std::mem::replace(&mut self.oldest_met, u64::MAX);
                self.searched = 0;
                continue;
            }
            self.looked_at %= number;
            let segment = self.segments[self.looked_at].as_ref();
            let of_sessions = segment.filter(|segment| segment.class < SIZES && segment.used > 0);
            let oldest = of_sessions.map_or(u64::MAX, |segment| segment.oldest);
            if oldest < limit {
                return Search::Found(self.looked_at);
            }
            self.oldest_met = self.oldest_met.min(oldest);
            self.looked_at += 1;
            self.searched += 1;
        }
        Search::GoesOn
    }

    /// The slots of a segment that are in use.
    pub fn slots_of(&self, at: usize) -> impl Iterator<Item = SlotRef> + '_ {
        let segment = self.segments[at].as_ref();
        segment.into_iter().flat_map(move |segment| {
            let words = segment.live.iter().enumerate();
            words.flat_map(move |(word, bits)| {
                let mut bits = *bits;
                std::iter::from_fn(move || {
                    let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
                    bits &= bits - 1;
                    Some(SlotRef::new(at, (word * 64 + bit) * segment.size))
                })
            })
        })
    }

    /// Sets `oldest` of a segment that was searched.
    pub fn set_oldest(&mut self, at: usize, oldest: u64) {
        if let Some(segment) = self.segments[at].as_mut() {
            segment.oldest = oldest;
        }
    }

    /// How many segments are mapped.
    #[cfg(any(test, fuzzing))]
    pub fn mapped(&self) -> usize {
        self.segments.iter().flatten().count()
    }

    fn add_segment(&mut self, directory: &Directory, class: usize, size: usize) -> Option<usize> {
        while self
            .vacant
            .peek()
            .is_some_and(|Reverse(at)| *at as usize >= self.segments.len())
        {
            self.vacant.pop();
        }
        let at = match self.vacant.peek() {
            Some(Reverse(at)) => *at as usize,
            None if self.segments.len() < MAX_SEGMENTS => self.segments.len(),
            None => return None,
        };
        let pages = Mapping::new(SEGMENT)?;
        let mut live = Vec::new();
        live.try_reserve_exact(live_words(size)).ok()?;
        live.resize(live_words(size), 0);
        if !self.reserve_places(class) || !directory.enter(at, pages.start()) {
            return None;
        }
        let segment = Segment {
            pages,
            class,
            size,
            used: 0,
            touched: 0,
            live: live.into(),
            roomy_at: None,
            growable_at: None,
            is_emptied: false,
            oldest: u64::MAX,
        };
        self.live_bytes += size_of_val(&*segment.live);
        if at == self.segments.len() {
            self.segments.push(segment);
        } else {
            self.vacant.pop();
            self.segments[at] = Some(segment);
        }
        self.classes[class].segments.push(at as u32);
        self.enter_growable(at);
        Some(at)
    }

    /// Reserves places in all lists for one more segment of a class. `false` if the system has no memory.
    fn reserve_places(&mut self, class: usize) -> bool {
        let segments = self.segments.len() + 1;
        let missing = |length: usize| segments.saturating_sub(length);
        let Class {
            segments: of_class,
            roomy,
            growable,
            ..
        } = &mut self.classes[class];
        let most = of_class.len() + 1;
        let lists = [of_class, roomy, growable];
        lists
            .into_iter()
            .all(|list| list.try_reserve(most.saturating_sub(list.len())).is_ok())
            && self.segments.reserve()
            && self
                .emptied
                .try_reserve(missing(self.emptied.len()))
                .is_ok()
            && self.vacant.try_reserve(missing(self.vacant.len())).is_ok()
    }

    /// Touches as many pages as one more slot needs.
    fn grow_segment(&mut self, at: usize) {
        let Some(segment) = self.segments[at].as_mut() else {
            return;
        };
        let touched = grown(segment);
        self.bytes += touched - segment.touched;
        let before = segment.usable();
        segment.touched = touched;
        let added = segment.usable() - before;
        self.classes[segment.class].free += added;
        self.free_bytes += added * segment.size;
        if !segment.can_grow() {
            self.leave_growable(at);
        }
        self.enter_roomy(at);
    }

    /// Gives back the pages behind the first `used` bytes.
    fn shrink_segment(&mut self, at: usize, used: usize) {
        let Some(segment) = self.segments[at].as_mut() else {
            return;
        };
        let touched = whole_pages(used);
        if touched >= segment.touched {
            return;
        }
        // SAFETY: no slot in these pages is in use.
        unsafe { segment.pages.release(touched, segment.touched) };
        self.bytes -= segment.touched - touched;
        let before = segment.usable();
        segment.touched = touched;
        let taken = before - segment.usable();
        self.classes[segment.class].free -= taken;
        self.free_bytes -= taken * segment.size;
        let (is_full, can_grow) = (segment.free() == 0, segment.can_grow());
        if is_full {
            self.leave_roomy(at);
        }
        if can_grow {
            self.enter_growable(at);
        }
    }

    fn remove_segment(&mut self, directory: &Directory, at: usize) -> Option<Segment> {
        self.leave_roomy(at);
        self.leave_growable(at);
        let segment = self.segments[at].take()?;
        if segment.is_emptied {
            self.emptied.retain(|other| *other as usize != at);
        }
        directory.enter(at, null_mut());
        self.bytes -= segment.touched;
        let class = &mut self.classes[segment.class];
        class.free -= segment.usable();
        self.free_bytes -= segment.usable() * segment.size;
        class.segments.retain(|other| *other as usize != at);
        if class.source == Some(at) {
            class.source = None;
        }
        self.live_bytes -= size_of_val(&*segment.live);
        self.vacant.push(Reverse(at as u32));
        let length = self.segments.shorten();
        if 4 * length < self.vacant.len() {
            self.vacant.retain(|Reverse(at)| (*at as usize) < length);
        }
        Some(segment)
    }
}

/// How many bytes a segment has touched after it has grown by one slot.
fn grown(segment: &Segment) -> usize {
    whole_pages((segment.usable() + 1) * segment.size).min(SEGMENT)
}

#[cfg(test)]
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "tests use what they have made"
)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn classes_are_as_large_as_what_they_hold_and_not_much_larger() {
        for bytes in 1..=MAX_SLOT {
            let slot = slot_bytes(bytes);
            assert!(slot >= bytes && slot % GRANULE == 0, "{bytes}: {slot}");
            assert!(
                slot < bytes + GRANULE || slot <= bytes + bytes / 8,
                "{bytes}: {slot}"
            );
            assert_eq!(slot_bytes(slot), slot);
        }
        assert_eq!((slot_bytes(96), slot_bytes(108)), (96, 112));
    }

    /// Slots that are each filled with a byte of their own.
    #[derive(Default)]
    struct Filled {
        slab: Slab,
        slots: HashMap<u32, (SlotRef, usize, u8)>,
        next: u32,
    }

    impl Filled {
        fn allocate(&mut self, directory: &Directory, bytes: usize) {
            let promised = self.slab.bytes() + self.slab.bytes_to_grow(Kind::Session, bytes);
            let slot = self.slab.allocate(directory, Kind::Session, bytes).unwrap();
            // An empty place among the segments may be taken again.
            assert!(self.slab.bytes() <= promised);
            let (at, n) = (unsafe { directory.find(slot) }, self.next as u8 | 1);
            unsafe {
                assert!(std::slice::from_raw_parts(at, bytes)
                    .iter()
                    .all(|byte| *byte == 0));
                at.write_bytes(n, bytes);
            }
            self.slots.insert(self.next, (slot, bytes, n));
            self.next += 1;
        }

        fn check(directory: &Directory, (slot, bytes, n): (SlotRef, usize, u8)) {
            let filled = unsafe { std::slice::from_raw_parts(directory.find(slot), bytes) };
            assert!(filled.iter().all(|byte| *byte == n));
        }

        fn free(&mut self, directory: &Directory, pick: u32) {
            let mut keys: Vec<u32> = self.slots.keys().copied().collect();
            keys.sort_unstable();
            let key = keys[pick as usize % keys.len()];
            let (slot, bytes, n) = self.slots.remove(&key).unwrap();
            Self::check(directory, (slot, bytes, n));
            unsafe { directory.find(slot).write_bytes(0, bytes) };
            self.slab.free(slot);
        }

        fn compact(&mut self, directory: &Directory, moves: usize) -> usize {
            let moved = |slots: &mut HashMap<_, (SlotRef, usize, u8)>,
                         Move {
                             from, to, bytes, ..
                         }| {
                let slot = slots.values_mut().find(|(slot, ..)| *slot == from).unwrap();
                assert_eq!(slot_bytes(slot.1), bytes);
                slot.0 = to;
                unsafe {
                    let (from, to) = (directory.find(from), directory.find(to));
                    to.copy_from_nonoverlapping(from, bytes);
                    from.write_bytes(0, bytes);
                }
            };
            let mut moved_slots = 0;
            while moved_slots < moves {
                match self.slab.next_step(directory) {
                    Some(Step::Move(step)) => {
                        moved(&mut self.slots, step);
                        self.slab.free(step.from);
                        moved_slots += 1;
                    }
                    Some(Step::Released) => {}
                    None => break,
                }
            }
            moved_slots
        }

        fn check_all(&self, directory: &Directory) {
            self.slots
                .values()
                .for_each(|slot| Self::check(directory, *slot));
            let mut met: Vec<u32> = (0..self.slab.segments.len())
                .flat_map(|at| {
                    self.slab
                        .slots_of(at)
                        .map(|slot| slot.0)
                        .collect::<Vec<_>>()
                })
                .collect();
            let mut held: Vec<u32> = self.slots.values().map(|(slot, ..)| slot.0).collect();
            met.sort_unstable();
            held.sort_unstable();
            assert_eq!(met, held);
            let touched: usize = self.slab.segments.iter().flatten().map(|s| s.touched).sum();
            assert_eq!(self.slab.bytes, touched);
            let free = (0..self.slab.classes.len()).map(|class| self.slab.free_bytes_of(class));
            assert_eq!(self.slab.free_bytes, free.sum::<usize>());
            for class in &self.slab.classes {
                let segments = || {
                    class
                        .segments
                        .iter()
                        .filter_map(|at| self.slab.segments[*at as usize].as_ref())
                };
                assert_eq!(class.free, segments().map(Segment::free).sum::<usize>());
                assert_eq!(
                    class.roomy.len(),
                    segments().filter(|s| s.free() > 0).count()
                );
                assert_eq!(
                    class.growable.len(),
                    segments().filter(|s| s.can_grow()).count()
                );
            }
        }
    }

    #[test]
    fn survivors_of_many_sizes_are_moved_together() {
        let (directory, mut filled) = (Directory::new(), Filled::default());
        let mut kept: Vec<(usize, u32)> = Vec::new();
        for bytes in (96..400).step_by(16) {
            let first = filled.next;
            (0..5_000).for_each(|_| filled.allocate(&directory, bytes));
            kept.extend((first..filled.next).step_by(1_000).map(|n| (bytes, n)));
            for n in first..filled.next {
                if kept.binary_search(&(bytes, n)).is_err() {
                    let (slot, bytes, _) = filled.slots.remove(&n).unwrap();
                    unsafe { directory.find(slot).write_bytes(0, bytes) };
                    filled.slab.free(slot);
                }
            }
        }
        let moves = filled.compact(&directory, 10_000);
        filled.check_all(&directory);
        // Two pages a class.
        assert!(
            filled.slab.bytes <= 19 * 2 * 4096,
            "{} after {moves}",
            filled.slab.bytes
        );
        assert!(moves <= 2 * kept.len(), "{moves} of {}", kept.len());
    }

    #[test]
    fn a_search_looks_at_few_segments_at_a_time_and_finds_all() {
        let (directory, mut filled) = (Directory::new(), Filled::default());
        // One segment of each size.
        for n in 0..9 {
            filled.allocate(&directory, 96 + 16 * n);
            let slot = filled.slots[&filled.next.wrapping_sub(1)].0;
            filled.slab.note_birth(slot, 100 + n as u64);
        }
        let search = |slab: &mut Slab, limit| {
            let steps = std::iter::from_fn(|| match slab.next_due(limit) {
                Search::Found(at) => {
                    slab.set_oldest(at, 1000);
                    Some(true)
                }
                Search::GoesOn => Some(false),
                Search::Over => None,
            });
            let steps: Vec<bool> = steps.collect();
            (steps.iter().filter(|found| **found).count(), steps.len())
        };
        let slab = &mut filled.slab;
        let first_search = search(slab, 100);
        assert!(matches!(first_search, (0, 1..=10)), "{first_search:?}");
        // Nothing is searched before the oldest session is due.
        assert_eq!(search(slab, 100), (0, 0));
        assert!(matches!(search(slab, 105), (5, _)));
        assert_eq!(search(slab, 105), (0, 0));
        // A session that comes later is found, also in a segment that was searched.
        let first = filled.slots[&0].0;
        slab.note_birth(first, 50);
        assert!(matches!(search(slab, 60), (1, _)));
        assert!(matches!(search(slab, 200), (4, _)));
        assert_eq!(search(slab, 1000), (0, 0));
    }

    #[test]
    fn pages_go_back_when_their_slots_are_free() {
        let (directory, mut filled) = (Directory::new(), Filled::default());
        (0..50_000).for_each(|_| filled.allocate(&directory, 96));
        assert!(filled.slab.bytes < 50_000 * 97);
        let slots: Vec<_> = filled.slots.drain().map(|(_, slot)| slot).collect();
        for (slot, bytes, _) in slots {
            unsafe { directory.find(slot).write_bytes(0, bytes) };
            filled.slab.free(slot);
        }
        while filled.slab.release_empty_segment(&directory) {}
        assert_eq!((filled.slab.mapped(), filled.slab.bytes), (0, 0));
        filled.allocate(&directory, 96);
        filled.check_all(&directory);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 4 } else { 128 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn no_slot_is_written_through_another(
            sizes in vec(96..20_000usize, 1..4),
            steps in vec((0..8u8, any::<u16>()), 1..600),
        ) {
            let (directory, mut filled) = (Directory::new(), Filled::default());
            for (step, pick) in steps {
                match step {
                    0..4 => filled.allocate(&directory, sizes[usize::from(pick) % sizes.len()]),
                    4..7 if !filled.slots.is_empty() => filled.free(&directory, pick.into()),
                    4..7 => {}
                    _ if pick % 8 == 0 => while filled.slab.release_empty_segment(&directory) {},
                    _ => _ = filled.compact(&directory, usize::from(pick % 32)),
                }
            }
            filled.compact(&directory, usize::MAX);
            prop_assert!(!filled.slab.can_compact());
            filled.check_all(&directory);
        }
    }
}
