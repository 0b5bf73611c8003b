//! Memory from the system: zeroed pages that are kept out of core dumps and can be given back one by one.
//!
//! Pages of our own, because sessions are secrets; because what they take is known to the page; and because
//! they go back to the system as soon as nothing is in them.

#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use once_cell::sync::{Lazy, OnceCell};
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::Range;

/// Bytes of the system's pages.
static PAGE_BYTES: Lazy<usize> = Lazy::new(|| {
    // SAFETY: asks for a number.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).map_or(SMALLEST_PAGE, |bytes| bytes.max(SMALLEST_PAGE))
});

const SMALLEST_PAGE: usize = 4096;

/// What `bytes` bytes at the start of a mapping take, in whole pages.
pub(crate) fn whole_pages(bytes: usize) -> usize {
    bytes.next_multiple_of(*PAGE_BYTES)
}

/// Pages from the system. Those that were never written to take no memory.
pub(crate) struct Mapping(MmapRaw);

impl Mapping {
    /// `None` where the system has none to give.
    pub fn new(bytes: usize) -> Option<Self> {
        let mut options = MmapOptions::new();
        options.len(bytes);
        #[cfg(not(miri))]
        options.no_reserve_swap();
        let pages = MmapRaw::from(options.map_anon().ok()?);
        advise(&pages);
        Some(Mapping(pages))
    }

    pub fn start(&self) -> *mut u8 {
        self.0.as_mut_ptr()
    }

    /// Gives the pages between two multiples of the page size back. On Linux they read as zeros afterwards, and
    /// take no memory until they are written to again; elsewhere nothing happens.
    ///
    /// # Safety
    /// Nobody relies on what is in them.
    pub unsafe fn release(&self, from: usize, to: usize) {
        #[cfg(all(target_os = "linux", not(miri)))]
        if from < to {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: by the caller. An error leaves the pages as they are.
            let _ = unsafe { self.0.unchecked_advise_range(advice, from, to - from) };
        }
        #[cfg(any(not(target_os = "linux"), miri))]
        let _ = (from, to);
    }
}

/// Best effort: where the system does not know the advice, secrets are in core dumps as they would be
/// anywhere else. Huge pages would be taken, and zeroed, as soon as a part of one is written to.
#[cfg(all(target_os = "linux", not(miri)))]
fn advise(pages: &MmapRaw) {
    let _ = pages.advise(memmap2::Advice::DontDump);
    let _ = pages.advise(memmap2::Advice::NoHugePage);
}

#[cfg(any(not(target_os = "linux"), miri))]
fn advise(_pages: &MmapRaw) {}

/// Has the processor fetch so many bytes, which will be read a little later. They need not be mapped.
#[inline]
pub(crate) fn prefetch(place: *const u8, bytes: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    for line in (0..bytes).step_by(64) {
        use std::arch::x86_64::{_mm_prefetch, _MM_HINT_T0};
        // SAFETY: a hint, which has no effect on what is computed and never fails.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(place.wrapping_add(line).cast()) };
    }
    #[cfg(any(not(target_arch = "x86_64"), miri))]
    let _ = (place, bytes);
}

/// Enough for half a billion buckets of the index.
const CHUNKS: usize = 24;

/// An array that starts as zeros, grows without moving, and is read without a lock.
///
/// Its chunks double in size, so there are few of them. A chunk that is mapped stays so until the array is
/// dropped; its pages can be given back before.
pub(crate) struct Zeroed<T> {
    chunks: [OnceCell<Mapping>; CHUNKS],
    _elements: PhantomData<T>,
}

// SAFETY: this hands out addresses. Who may use an element, and how, is up to the owner of the array.
unsafe impl<T: Send + Sync> Send for Zeroed<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Zeroed<T> {}

impl<T> Zeroed<T> {
    /// Elements of the first chunk, and of the second.
    pub const FIRST: usize = SMALLEST_PAGE / size_of::<T>();

    pub const fn new() -> Self {
        Zeroed {
            chunks: [const { OnceCell::new() }; CHUNKS],
            _elements: PhantomData,
        }
    }

    /// The chunk of an element, the first element of that chunk, and how many the chunk has.
    const fn place(element: usize) -> (usize, usize, usize) {
        let chunk = (usize::BITS - (element / Self::FIRST).leading_zeros()) as usize;
        match chunk {
            0 => (0, 0, Self::FIRST),
            _ => (
                chunk,
                Self::FIRST << (chunk - 1),
                Self::FIRST << (chunk - 1),
            ),
        }
    }

    /// Sees to it that `element` has an address. `false` where the system has no memory, or the array can be
    /// no longer.
    pub fn reserve(&self, element: usize) -> bool {
        let (chunk, _, elements) = Self::place(element);
        let Some(cell) = self.chunks.get(chunk) else {
            return false;
        };
        let mapped = cell.get_or_try_init(|| Mapping::new(elements * size_of::<T>()).ok_or(()));
        mapped.is_ok()
    }

    /// The address of an element.
    ///
    /// # Safety
    /// It was reserved.
    pub unsafe fn at(&self, element: usize) -> *mut T {
        let (chunk, first, _) = Self::place(element);
        // SAFETY: a reserved element's chunk is mapped, and the element is in it.
        unsafe {
            let mapping = self.chunks.get_unchecked(chunk).get().unwrap_unchecked();
            mapping.start().cast::<T>().add(element - first)
        }
    }

    /// What the first `elements` elements take.
    pub fn bytes(elements: usize) -> usize {
        whole_pages(elements * size_of::<T>())
    }

    /// The elements in whole pages behind the first `elements`, of which `former` were in use.
    pub fn behind(
        &self,
        elements: usize,
        former: usize,
    ) -> impl Iterator<Item = Range<usize>> + '_ {
        self.ranges(elements, former).map(|(_, first, bytes)| {
            first + bytes.start / size_of::<T>()..first + bytes.end / size_of::<T>()
        })
    }

    /// Gives the pages of [`behind`](Self::behind) back.
    ///
    /// # Safety
    /// Nobody relies on what is in them.
    pub unsafe fn release(&self, elements: usize, former: usize) {
        for (mapping, _, bytes) in self.ranges(elements, former) {
            // SAFETY: by the caller.
            unsafe { mapping.release(bytes.start, bytes.end) };
        }
    }

    /// Of each chunk that has such pages its first element, and where the pages are.
    fn ranges(
        &self,
        elements: usize,
        former: usize,
    ) -> impl Iterator<Item = (&Mapping, usize, Range<usize>)> + '_ {
        // Most often there are none.
        let chunks = match Self::bytes(elements) < Self::bytes(former) {
            true => &self.chunks[..],
            false => &[],
        };
        chunks.iter().enumerate().filter_map(move |(chunk, cell)| {
            let (first, number) = match chunk {
                0 => (0, Self::FIRST),
                _ => (Self::FIRST << (chunk - 1), Self::FIRST << (chunk - 1)),
            };
            let end = number * size_of::<T>();
            let pages_of = |elements: usize| {
                whole_pages(elements.saturating_sub(first).min(number) * size_of::<T>()).min(end)
            };
            let bytes = pages_of(elements)..pages_of(former);
            let mapping = cell.get().filter(|_| bytes.start < bytes.end)?;
            Some((mapping, first, bytes))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_have_places_of_their_own_and_start_as_zeros() {
        let array = Zeroed::<u64>::new();
        for n in 0..100_000 {
            assert!(array.reserve(n));
            unsafe {
                assert_eq!(array.at(n).read(), 0);
                array.at(n).write(n as u64 + 1);
            }
        }
        assert!((0..100_000).all(|n| unsafe { array.at(n).read() } == n as u64 + 1));
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    #[test]
    fn released_pages_are_zeros_and_the_rest_stays() {
        let array = Zeroed::<u64>::new();
        for n in 0..10_000 {
            assert!(array.reserve(n));
            unsafe { array.at(n).write(7) };
        }
        unsafe { array.release(1000, 10_000) };
        let in_whole_pages = Zeroed::<u64>::bytes(1000) / size_of::<u64>();
        for n in 0..10_000 {
            let expected = if n < in_whole_pages { 7 } else { 0 };
            assert_eq!(unsafe { array.at(n).read() }, expected, "{n}");
        }
    }
}
