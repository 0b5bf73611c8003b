//! Memory from the system: zeroed pages, which are kept out of core dumps and can be given back one by one.
//!
//! The store has pages of its own because sessions are secrets, because it must know to the page how much it takes, and because
//! an empty page should go back to the system at once.

#![allow(unsafe_code)]

use memmap2::{MmapOptions, MmapRaw};
use once_cell::sync::{Lazy, OnceCell};
use std::marker::PhantomData;
use std::mem::size_of;
use std::ops::Range;

/// Bytes of the system's pages.
static PAGE_BYTES: Lazy<usize> = Lazy::new(|| {
    // SAFETY: the call only returns a number.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).map_or(SMALLEST_PAGE, |bytes| bytes.max(SMALLEST_PAGE))
});

const SMALLEST_PAGE: usize = 4096;

/// `bytes` rounded up to whole pages.
pub(crate) fn whole_pages(bytes: usize) -> usize {
    bytes.next_multiple_of(*PAGE_BYTES)
}

/// Pages from the system. A page takes no memory before something is written to it.
pub(crate) struct Mapping(MmapRaw);

impl Mapping {
    /// `None` if the system has no memory.
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

    /// Gives back the pages between two multiples of the page size. On Linux they read as zeros afterwards, and take no memory
    /// until something is written to them. On other systems this does nothing.
    ///
    /// # Safety
    /// No thread relies on the content of these pages.
    pub unsafe fn release(&self, from: usize, to: usize) {
        #[cfg(all(target_os = "linux", not(miri)))]
        if from < to {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: guaranteed by the caller. An error leaves the pages as they are.
            let _ = unsafe { self.0.unchecked_advise_range(advice, from, to - from) };
        }
        #[cfg(any(not(target_os = "linux"), miri))]
        let _ = (from, to);
    }
}

/// A system may not know the advice; then core dumps contain the secrets, as with other memory. A huge page would take memory
/// for all of it as soon as a part is written to.
#[cfg(all(target_os = "linux", not(miri)))]
fn advise(pages: &MmapRaw) {
    let _ = pages.advise(memmap2::Advice::DontDump);
    let _ = pages.advise(memmap2::Advice::NoHugePage);
}

#[cfg(any(not(target_os = "linux"), miri))]
fn advise(_pages: &MmapRaw) {}

/// Makes the processor fetch `bytes` bytes, which the caller reads a little later. They need not be mapped.
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

/// Chunks of an array: enough for half a billion buckets of the index.
const CHUNKS: usize = 24;

/// An array that starts as zeros, grows without moving, and is read without a lock.
///
/// Its chunks double in size, so there are few of them. A chunk stays mapped until the array is dropped, but its pages can be
/// given back before.
pub(crate) struct Zeroed<T> {
    chunks: [OnceCell<Mapping>; CHUNKS],
    _elements: PhantomData<T>,
}

// SAFETY: the array only returns addresses. Its owner decides which thread may use an element, and how.
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

    /// The chunk of an element, the first element of that chunk, and how many elements the chunk has.
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

    /// Maps the chunk of `element`. `false` if the system has no memory, or the array has its greatest length.
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
    /// The element was reserved.
    pub unsafe fn at(&self, element: usize) -> *mut T {
        let (chunk, first, _) = Self::place(element);
        // SAFETY: a reserved element's chunk is mapped, and the element is in it.
        unsafe {
            let mapping = self.chunks.get_unchecked(chunk).get().unwrap_unchecked();
            mapping.start().cast::<T>().add(element - first)
        }
    }

    /// Bytes of the first `elements` elements, in whole pages.
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
    /// No thread relies on the content of these pages.
    pub unsafe fn release(&self, elements: usize, former: usize) {
        for (mapping, _, bytes) in self.ranges(elements, former) {
            // SAFETY: guaranteed by the caller.
            unsafe { mapping.release(bytes.start, bytes.end) };
        }
    }

    /// For each chunk with such pages: its mapping, its first element, and the range of the pages in bytes.
    fn ranges(
        &self,
        elements: usize,
        former: usize,
    ) -> impl Iterator<Item = (&Mapping, usize, Range<usize>)> + '_ {
        // Mostly there are none.
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
#[allow(
    clippy::undocumented_unsafe_blocks,
    reason = "tests use what they have made"
)]
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
