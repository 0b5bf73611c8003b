//! Ids of revocations by a digest of what they revoke.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

/// A revocation's id in eight bytes: the place of its origin, and the counter. There may be millions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShortId(u64);

/// The number of bits of a counter. The other 16 are the place of the origin.
pub const COUNTER_BITS: u32 = 48;

impl ShortId {
    pub fn new(place: usize, counter: u64) -> Self {
        ShortId((place as u64) << COUNTER_BITS | counter & ((1 << COUNTER_BITS) - 1))
    }

    pub fn place(self) -> usize {
        (self.0 >> COUNTER_BITS) as usize
    }

    pub fn counter(self) -> u64 {
        self.0 & ((1 << COUNTER_BITS) - 1)
    }
}

/// Ids of revocations by digest, in 45 to 58 bytes each: there may be millions.
#[derive(Default)]
pub struct DigestTable {
    entries: Vec<([u8; 32], ShortId)>,
    /// Places in `entries`.
    places: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl DigestTable {
    /// Adds an id. Of two ids with the same digest and origin it keeps the later, and returns the other.
    pub fn insert(&mut self, digest: &[u8; 32], id: ShortId) -> Option<ShortId> {
        let hash = self.hasher.hash_one(digest);
        let entries = &mut self.entries;
        let former = self.places.iter_hash(hash).find(|place| {
            let (other, former) = &entries[**place as usize];
            other == digest && former.place() == id.place()
        });
        if let Some(place) = former {
            let former = &mut entries[*place as usize].1;
            return Some(match former.counter() < id.counter() {
                true => std::mem::replace(former, id),
                false => id,
            });
        }
        if entries.len() == entries.capacity() {
            // Doubling would waste memory.
            entries.reserve_exact(64.max(entries.len() / 8));
        }
        entries.push((*digest, id));
        let place = (entries.len() - 1) as u32;
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.places.insert_unique(hash, place, |place| {
            hasher.hash_one(entries[*place as usize].0)
        });
        None
    }

    pub fn ids<'a>(&'a self, digest: &'a [u8; 32]) -> impl Iterator<Item = ShortId> + 'a {
        let hash = match self.is_empty() {
            true => 0,
            false => self.hasher.hash_one(digest),
        };
        let entries = self
            .places
            .iter_hash(hash)
            .map(|place| &self.entries[*place as usize]);
        entries.filter_map(move |(other, id)| (other == digest).then_some(*id))
    }

    pub fn iter(&self) -> impl Iterator<Item = (&[u8; 32], ShortId)> {
        self.entries.iter().map(|(digest, id)| (digest, *id))
    }

    pub fn retain(&mut self, is_kept: impl Fn(&ShortId) -> bool) {
        let mut at = 0;
        while let Some((digest, id)) = self.entries.get(at) {
            if is_kept(id) {
                at += 1;
                continue;
            }
            let hash = self.hasher.hash_one(digest);
            let is_there = |place: &u32| *place as usize == at;
            if let Ok(entry) = self.places.find_entry(hash, is_there) {
                entry.remove();
            }
            self.entries.swap_remove(at);
            if let Some((moved, _)) = self.entries.get(at) {
                let (from, hash) = (self.entries.len() as u32, self.hasher.hash_one(moved));
                if let Some(place) = self.places.find_mut(hash, |place| *place == from) {
                    *place = at as u32;
                }
            }
        }
        let most = self.entries.len() + self.entries.len() / 8 + 64;
        if self.entries.capacity() > most {
            self.entries.shrink_to_fit();
            let (entries, hasher) = (&self.entries, &self.hasher);
            self.places
                .shrink_to_fit(|place| hasher.hash_one(entries[*place as usize].0));
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
impl DigestTable {
    pub fn memory_bytes(&self) -> usize {
        self.entries.capacity() * size_of::<([u8; 32], ShortId)>()
            + self.places.capacity() * 8 / 7 * (size_of::<u32>() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sha2::{Digest, Sha256};

    fn digest(n: u32) -> [u8; 32] {
        Sha256::digest(n.to_be_bytes()).into()
    }

    #[test]
    fn a_table_finds_what_it_still_has() {
        let mut table = DigestTable::default();
        let count = 1000;
        for n in 0..count {
            table.insert(&digest(n / 2), ShortId::new(n as usize % 2, u64::from(n)));
        }
        for divisor in [7, 3, 2, 1] {
            table.retain(|id| id.counter() % divisor != 0);
            let is_left = |n: &u64| [7, 3, 2, 1].iter().all(|it| *it < divisor || n % it != 0);
            for n in 0..count / 2 {
                let digest = digest(n);
                let mut ids: Vec<_> = table.ids(&digest).map(ShortId::counter).collect();
                ids.sort_unstable();
                let pair = u64::from(2 * n)..u64::from(2 * n + 2);
                assert_eq!(ids, pair.filter(is_left).collect::<Vec<_>>());
            }
            assert_eq!(
                table.iter().count(),
                (0..u64::from(count)).filter(is_left).count()
            );
            assert_eq!(table.places.len(), table.len());
        }
    }
}
