//! Where the slab's segments lie: side by side in regions of the size of a huge page.
//!
//! The processor remembers the addresses of a few thousand pages. A large store has more, so most lookups would wait for the
//! system's page tables. Once all pages of a region were touched, the system can replace them by one huge page, which takes no
//! more memory. A part of a huge page can be given back like other pages.

#![allow(unsafe_code)]

use super::pages::{Mapping, HUGE_PAGE};
use std::sync::Arc;

/// Bytes of a segment.
pub(super) const SEGMENT: usize = 256 * 1024;

/// Elsewhere pages go back to the system only with their mapping, and there are no huge pages.
const SEGMENTS: usize = if cfg!(target_os = "linux") {
    HUGE_PAGE / SEGMENT
} else {
    1
};

const ALL: u8 = u8::MAX >> (u8::BITS as usize - SEGMENTS);

/// Bytes of the tables per segment.
pub(super) const TABLE_BYTES: usize =
    (size_of::<Option<Region>>() + 2 * size_of::<usize>() + size_of::<Mapping>())
        .div_ceil(SEGMENTS);

/// Regions by number. A segment's number decides where it lies.
#[derive(Default)]
pub(super) struct Regions(Vec<Option<Region>>);

struct Region {
    pages: Arc<Mapping>,
    /// A bit for each segment that is in use, and for each whose pages were all touched.
    used: u8,
    full: u8,
    /// Whether the pages were replaced, or would have been if the system had huge pages.
    is_huge: bool,
}

/// A region to make a huge page of.
pub(crate) struct FullRegion {
    number: usize,
    pages: Arc<Mapping>,
}

impl FullRegion {
    /// Takes long: the caller holds no lock.
    pub fn make_huge_page(&self) {
        self.pages.make_huge_page(0);
    }

    /// How many bytes of the region are in memory.
    #[cfg(all(test, target_os = "linux", not(miri)))]
    pub fn resident_bytes(&self) -> usize {
        let mut is_resident = vec![0u8; HUGE_PAGE / 4096];
        // SAFETY: the region is mapped, and the vector has a byte for each page of at least 4 KiB.
        let result = unsafe {
            libc::mincore(
                self.pages.start().cast(),
                HUGE_PAGE,
                is_resident.as_mut_ptr(),
            )
        };
        assert_eq!(result, 0);
        let page_bytes = super::pages::whole_pages(1);
        is_resident.iter().filter(|byte| **byte & 1 == 1).count() * page_bytes
    }
}

fn bit(segment: usize) -> u8 {
    1 << (segment % SEGMENTS)
}

fn offset(segment: usize) -> usize {
    segment % SEGMENTS * SEGMENT
}

impl Regions {
    /// The address of a new segment, whose pages are zeros. `None` if the system has no memory.
    pub fn add(&mut self, segment: usize) -> Option<*mut u8> {
        let number = segment / SEGMENTS;
        let missing = (number + 1).saturating_sub(self.0.len());
        self.0.try_reserve(missing).ok()?;
        if self.0.get(number).is_none_or(Option::is_none) {
            let region = Region {
                pages: Arc::new(Mapping::new(SEGMENTS * SEGMENT)?),
                used: 0,
                full: 0,
                is_huge: false,
            };
            self.0.extend((0..missing).map(|_| None));
            self.0[number] = Some(region);
        }
        let region = self.0[number].as_mut()?;
        region.used |= bit(segment);
        // SAFETY: the segment lies in the region.
        Some(unsafe { region.pages.start().add(offset(segment)) })
    }

    /// Gives back a segment, of whose pages the first `touched` bytes were touched.
    pub fn remove(&mut self, segment: usize, touched: usize) {
        self.release(segment, 0, touched);
        if let Some(place) = self.0.get_mut(segment / SEGMENTS) {
            if let Some(region) = place {
                region.used &= !bit(segment);
            }
            // The mapping goes with the last segment.
            place.take_if(|region| region.used == 0);
        }
        while let Some(None) = self.0.last() {
            self.0.pop();
        }
    }

    /// Records that all pages of a segment were touched.
    pub fn note_full(&mut self, segment: usize) {
        if let Some(Some(region)) = self.0.get_mut(segment / SEGMENTS) {
            region.full |= bit(segment);
        }
    }

    /// Gives back the pages between two offsets of a segment, both multiples of the page size.
    pub fn release(&mut self, segment: usize, from: usize, to: usize) {
        if let Some(Some(region)) = self.0.get_mut(segment / SEGMENTS) {
            region.full &= !bit(segment);
            region.is_huge = false;
            let start = offset(segment);
            // SAFETY: the slab, which owns the regions, has no slot in use there.
            unsafe { region.pages.release(start + from, start + to) };
        }
    }

    /// A region all of whose pages were touched since it was last returned. Pass it to [`finish`](Self::finish) afterwards.
    pub fn next_full(&mut self) -> Option<FullRegion> {
        let is_due = |region: &Region| region.full == ALL && !region.is_huge;
        let mut regions = self.0.iter_mut().enumerate();
        regions.find_map(|(number, place)| {
            let region = place.as_mut().filter(|region| is_due(region))?;
            region.is_huge = true;
            let pages = Arc::clone(&region.pages);
            Some(FullRegion { number, pages })
        })
    }

    /// The segments that lie in a region that has become a huge page, if some of its pages were given back meanwhile: these may
    /// have come again, and have to be given back again.
    pub fn finish(&self, made: &FullRegion) -> impl Iterator<Item = usize> {
        let region = self.0.get(made.number).and_then(Option::as_ref);
        let is_same = region.is_some_and(|region| Arc::ptr_eq(&region.pages, &made.pages));
        let has_changed = is_same && region.is_some_and(|region| region.full != ALL);
        let first = made.number * SEGMENTS;
        (first..first + SEGMENTS).filter(move |_| has_changed)
    }
    /// Compares the regions with the segments: how many bytes of each were touched, if it exists.
    #[cfg(test)]
    pub fn check(&self, touched: &[Option<usize>]) {
        for (number, segments) in touched.chunks(SEGMENTS).enumerate() {
            let bits = |has_it: &dyn Fn(usize) -> bool| {
                let chosen = segments.iter().enumerate();
                let chosen = chosen.filter(|(_, touched)| touched.is_some_and(has_it));
                chosen.fold(0, |bits, (at, _)| bits | bit(at))
            };
            let region = self.0.get(number).and_then(Option::as_ref);
            let found = region.map_or((0, 0), |region| (region.used, region.full));
            assert_eq!(
                found,
                (bits(&|_| true), bits(&|touched| touched == SEGMENT))
            );
        }
    }
}
