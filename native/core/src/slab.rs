//! Memory for sessions: slots of a few sizes in pages of the store's own.
//!
//! Pages of its own, because sessions are secrets and the pages can be kept out of core dumps; because
//! a slot costs nothing beside its bytes; and because the pages of an ended scope go back to the system.
//!
//! A slot is named by a [`SlotRef`] of 32 bits. Who may touch which part of a slot, and when, is the
//! affair of [`crate::server_store`].

#![allow(unsafe_code)]

use memmap2::MmapMut;
use std::ptr::{null_mut, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::OnceLock;

/// Bytes of pages taken from the system at a time.
const SEGMENT: usize = 256 * 1024;

/// Slots begin at multiples of this.
const GRANULE: usize = 8;

/// Small slots differ in size by this much.
const STEP: usize = 16;

/// Up to this size slots are small.
const SMALL: usize = 256;

const OFFSET_BITS: u32 = (SEGMENT / GRANULE).trailing_zeros();

/// Segments are found through chunks of this many pointers.
const CHUNK: usize = 1024;

/// 2^32 granules in segments: 32 GiB for a scope.
const MAX_SEGMENTS: usize = 1 << (32 - OFFSET_BITS);

/// A slot, by segment and place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotRef(pub u32);

impl SlotRef {
    /// Names no slot: the last granule of the last segment has room for none.
    pub const NONE: SlotRef = SlotRef(u32::MAX);

    fn new(segment: usize, offset: usize) -> Self {
        SlotRef(((segment as u32) << OFFSET_BITS) | (offset / GRANULE) as u32)
    }

    fn segment(self) -> usize {
        (self.0 >> OFFSET_BITS) as usize
    }

    fn offset(self) -> usize {
        (self.0 & ((1 << OFFSET_BITS) - 1)) as usize * GRANULE
    }
}

/// Finds slots. Shared by all, without a lock.
pub(crate) struct Directory {
    chunks: Box<[OnceLock<Chunk>]>,
}

type Chunk = Box<[AtomicPtr<u8>]>;

impl Directory {
    pub fn new() -> Self {
        Directory {
            chunks: (0..MAX_SEGMENTS / CHUNK).map(|_| OnceLock::new()).collect(),
        }
    }

    /// Where the slot is.
    ///
    /// # Safety
    /// `slot` was allocated by the [`Slab`] of this directory and has not been freed since.
    pub unsafe fn find(&self, slot: SlotRef) -> NonNull<u8> {
        let segment = slot.segment();
        let chunk = self.chunks[segment / CHUNK].get();
        // SAFETY: an allocated slot's segment is mapped, and was entered here before the slot was given
        // out; the offset of a slot is within its segment.
        unsafe {
            let base = chunk.unwrap_unchecked()[segment % CHUNK].load(Ordering::Acquire);
            NonNull::new_unchecked(base.add(slot.offset()))
        }
    }

    fn enter(&self, segment: usize, base: *mut u8) {
        let chunk = self.chunks[segment / CHUNK]
            .get_or_init(|| (0..CHUNK).map(|_| AtomicPtr::new(null_mut())).collect());
        chunk[segment % CHUNK].store(base, Ordering::Release);
    }
}

/// Allocates and frees slots. For one thread at a time.
#[derive(Default)]
pub(crate) struct Slab {
    segments: Vec<Option<Segment>>,
    /// Places in `segments` that are empty.
    vacant: Vec<usize>,
    /// For each size, in steps, the segments with room.
    roomy: Vec<Vec<usize>>,
}

struct Segment {
    /// Only held: the directory has the address, and slots are reached through it.
    _pages: MmapMut,
    size: usize,
    used: usize,
    /// Slots that were never in use begin here.
    fresh: usize,
    free: SlotRef,
    /// Place in the list of roomy segments, where it is in it.
    roomy_at: Option<usize>,
}

/// Pages that are no longer used.
pub(crate) struct Pages(#[allow(dead_code)] Segment);

impl Segment {
    fn has_room(&self) -> bool {
        self.free != SlotRef::NONE || self.fresh + self.size <= SEGMENT
    }
}

impl Slab {
    /// What a slot for `bytes` bytes takes. Of sizes there are few, as each has segments of its own: from
    /// the small ones on, eight to each doubling.
    pub fn slot_size(bytes: usize) -> usize {
        if bytes <= SMALL {
            // Headers are an odd multiple of the granule: steps are counted from there.
            GRANULE + (bytes - GRANULE).div_ceil(STEP) * STEP
        } else {
            bytes.next_multiple_of(bytes.next_power_of_two() / 16)
        }
    }

    /// Room for `bytes` bytes, at most a quarter of a segment, with anything in them. `None` where the
    /// system has no pages to give, or the scope has as many as it can have.
    pub fn allocate(&mut self, directory: &Directory, bytes: usize) -> Option<SlotRef> {
        let size = Self::slot_size(bytes);
        debug_assert!(size <= SEGMENT / 4);
        let class = size / STEP;
        if self.roomy.len() <= class {
            self.roomy.resize_with(class + 1, Vec::new);
        }
        let at = match self.roomy[class].last() {
            Some(at) => *at,
            None => self.add_segment(directory, size)?,
        };
        let segment = self.segments[at].as_mut()?;
        let slot = if segment.free == SlotRef::NONE {
            let slot = SlotRef::new(at, segment.fresh);
            segment.fresh += size;
            slot
        } else {
            let slot = segment.free;
            // SAFETY: a free slot holds the reference of the next free one in its first bytes.
            segment.free = unsafe { directory.find(slot).cast::<SlotRef>().read() };
            slot
        };
        segment.used += 1;
        if !segment.has_room() {
            self.leave_roomy(class, at);
        }
        Some(slot)
    }

    /// Frees a slot. Its contents have been wiped.
    ///
    /// # Safety
    /// `slot` is allocated, was so for this many `bytes`, and nobody will touch it again.
    pub unsafe fn free(&mut self, directory: &Directory, slot: SlotRef, bytes: usize) {
        let at = slot.segment();
        let class = Self::slot_size(bytes) / STEP;
        let Some(segment) = self.segments[at].as_mut() else {
            return;
        };
        // SAFETY: the slot is this function's alone now, is aligned for a SlotRef, and has room for one.
        unsafe { directory.find(slot).cast::<SlotRef>().write(segment.free) };
        segment.free = slot;
        segment.used -= 1;
        if segment.roomy_at.is_none() {
            segment.roomy_at = Some(self.roomy[class].len());
            self.roomy[class].push(at);
        } else if segment.used == 0 && self.roomy[class].len() > 1 {
            // One roomy segment stays, so that a session coming and going does not map and unmap pages.
            drop(self.remove_segment(directory, at));
        }
    }

    /// The pages in which no slot is in use, for the caller to drop. They may be taken at any time.
    pub fn take_empty(&mut self, directory: &Directory) -> Vec<Pages> {
        let is_empty = |segment: &Option<Segment>| segment.as_ref().is_some_and(|s| s.used == 0);
        let empty: Vec<usize> = (0..self.segments.len())
            .filter(|at| is_empty(&self.segments[*at]))
            .collect();
        empty
            .into_iter()
            .filter_map(|at| self.remove_segment(directory, at))
            .collect()
    }

    /// How many segments are taken from the system.
    #[cfg(any(test, fuzzing))]
    pub fn mapped(&self) -> usize {
        self.segments.iter().flatten().count()
    }

    fn remove_segment(&mut self, directory: &Directory, at: usize) -> Option<Pages> {
        let class = self.segments[at].as_ref()?.size / STEP;
        self.leave_roomy(class, at);
        directory.enter(at, null_mut());
        self.vacant.push(at);
        Some(Pages(self.segments[at].take()?))
    }

    fn add_segment(&mut self, directory: &Directory, size: usize) -> Option<usize> {
        let at = match self.vacant.last() {
            Some(at) => *at,
            None if self.segments.len() < MAX_SEGMENTS => self.segments.len(),
            None => return None,
        };
        let mut pages = MmapMut::map_anon(SEGMENT).ok()?;
        keep_out_of_core_dumps(&pages);
        directory.enter(at, pages.as_mut_ptr());
        let class = size / STEP;
        let segment = Segment {
            _pages: pages,
            size,
            used: 0,
            fresh: 0,
            free: SlotRef::NONE,
            roomy_at: Some(self.roomy[class].len()),
        };
        if at == self.segments.len() {
            self.segments.push(Some(segment));
        } else {
            self.vacant.pop();
            self.segments[at] = Some(segment);
        }
        self.roomy[class].push(at);
        Some(at)
    }

    fn leave_roomy(&mut self, class: usize, at: usize) {
        let roomy = &mut self.roomy[class];
        let Some(place) = self.segments[at].as_mut().and_then(|s| s.roomy_at.take()) else {
            return;
        };
        roomy.swap_remove(place);
        if let Some(moved) = roomy.get(place) {
            if let Some(segment) = self.segments[*moved].as_mut() {
                segment.roomy_at = Some(place);
            }
        }
    }
}

/// Best effort: where the system does not know the advice, secrets are in core dumps as they would be
/// anywhere else.
#[cfg(all(target_os = "linux", not(miri)))]
fn keep_out_of_core_dumps(pages: &MmapMut) {
    let _ = pages.advise(memmap2::Advice::DontDump);
}

#[cfg(any(not(target_os = "linux"), miri))]
fn keep_out_of_core_dumps(_pages: &MmapMut) {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn slots_do_not_overlap_and_are_used_again() {
        let directory = Directory::new();
        let mut slab = Slab::default();
        for size in [104, 120, 1016, 8000] {
            let slots: Vec<_> = (0..5000)
                .map(|_| slab.allocate(&directory, size).unwrap())
                .collect();
            let mut starts: Vec<_> = slots
                .iter()
                .map(|slot| unsafe { directory.find(*slot) }.as_ptr() as usize)
                .collect();
            starts.sort_unstable();
            assert!(starts.windows(2).all(|pair| pair[0] + size <= pair[1]));
            let before = slab.mapped();
            for slot in &slots[1000..3000] {
                unsafe { slab.free(&directory, *slot, size) };
            }
            let again: HashSet<_> = (0..2000)
                .map(|_| slab.allocate(&directory, size).unwrap().0)
                .collect();
            assert_eq!(again.len(), 2000);
            assert!(slab.mapped() <= before);
        }
    }

    #[test]
    fn pages_go_back_when_their_slots_are_free() {
        let directory = Directory::new();
        let mut slab = Slab::default();
        let slots: Vec<_> = (0..100_000)
            .map(|_| slab.allocate(&directory, 104).unwrap())
            .collect();
        assert_eq!(slab.mapped(), 40);
        for slot in slots {
            unsafe { slab.free(&directory, slot, 104) };
        }
        assert_eq!(slab.mapped(), 1);
        drop(slab.take_empty(&directory));
        assert_eq!(slab.mapped(), 0);
        assert!(slab.allocate(&directory, 104).is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 4 } else { 128 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        /// Each slot is filled, to its end, with bytes that no other slot has.
        #[test]
        fn no_slot_is_written_through_another(
            sizes in vec(104..SEGMENT / 4, 1..4),
            steps in vec((any::<bool>(), any::<u16>()), 1..1000),
        ) {
            let directory = Directory::new();
            let mut slab = Slab::default();
            let mut held: Vec<(SlotRef, usize, u8)> = Vec::new();
            for (n, (allocates, pick)) in steps.into_iter().enumerate() {
                let pick = usize::from(pick);
                if allocates || held.is_empty() {
                    let size = sizes[pick % sizes.len()];
                    prop_assert!(Slab::slot_size(size) >= size);
                    let slot = slab.allocate(&directory, size).unwrap();
                    let place = unsafe { directory.find(slot) };
                    prop_assert_eq!(place.as_ptr() as usize % GRANULE, 0);
                    unsafe { place.write_bytes(n as u8, Slab::slot_size(size)) };
                    held.push((slot, size, n as u8));
                } else {
                    let (slot, size, n) = held.swap_remove(pick % held.len());
                    unsafe { check_and_free(&directory, &mut slab, slot, size, n) };
                }
            }
            for (slot, size, n) in held {
                unsafe { check_and_free(&directory, &mut slab, slot, size, n) };
            }
            drop(slab.take_empty(&directory));
            prop_assert_eq!(slab.mapped(), 0);
        }
    }

    /// # Safety
    /// As for [`Slab::free`].
    unsafe fn check_and_free(
        directory: &Directory,
        slab: &mut Slab,
        slot: SlotRef,
        size: usize,
        n: u8,
    ) {
        unsafe {
            let place = directory.find(slot).as_ptr();
            let bytes = std::slice::from_raw_parts(place, Slab::slot_size(size));
            assert!(bytes.iter().all(|byte| *byte == n));
            slab.free(directory, slot, size);
        }
    }
}
