#![allow(unsafe_code)]

use crate::slab::SlotRef;
use dashmap::mapref::one::Ref;
use dashmap::DashMap;
use foldhash::quality::RandomState;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};
use std::mem::size_of_val;

/// Entries a shard should have when the scope is full: a shard that grows is locked while it does, for
/// about 0.1 µs an entry. A shard takes 128 bytes beside them.
const ENTRIES_A_SHARD: u64 = 4096;

/// Bytes of a table's place: digest, slot and the table's own byte.
const PLACE: usize = 6 + 4 + 1;

/// Finds slots by six bytes of a hash of their keys.
///
/// That many tell a million sessions apart but for one chance in 500. When two are alike the newer one
/// takes the older one's place, and the older one's client makes a full handshake.
pub(crate) struct Index {
    slots: DashMap<Digest, [u8; 4], BuildHasherDefault<Spread>>,
    keys: RandomState,
    shards: u64,
}

/// A slot that stays where it is while this lives.
pub(crate) struct Found<'a>(Ref<'a, Digest, [u8; 4]>);

impl Found<'_> {
    pub fn slot(&self) -> SlotRef {
        SlotRef(u32::from_ne_bytes(*self.0.value()))
    }
}

/// Six bytes of a hash.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest([u8; 6]);

impl Digest {
    fn number(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

impl Hash for Digest {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        hasher.write_u64(self.number());
    }
}

/// Makes the 48 bits of a digest 64 again, as the table uses them from both ends.
#[derive(Default)]
pub(crate) struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("a digest is one number");
    }

    fn write_u64(&mut self, digest: u64) {
        self.0 = digest.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32) ^ digest;
    }
}

impl Index {
    /// For about so many entries.
    pub fn new(expected: u64) -> Self {
        let shards = (expected / ENTRIES_A_SHARD)
            .clamp(4, 4096)
            .next_power_of_two();
        Index {
            slots: DashMap::with_capacity_and_hasher_and_shard_amount(
                0,
                BuildHasherDefault::default(),
                shards as usize,
            ),
            keys: RandomState::default(),
            shards,
        }
    }

    /// The digest of a key.
    pub fn digest(&self, key: impl Hash) -> Digest {
        let [a, b, c, d, e, f, _, _] = self.keys.hash_one(key).to_ne_bytes();
        Digest([a, b, c, d, e, f])
    }

    /// The slot under `digest`. Writers of that slot's shard wait while the answer is held.
    pub fn find(&self, digest: Digest) -> Option<Found<'_>> {
        self.slots.get(&digest).map(Found)
    }

    /// Enters a slot, and returns the one that was there.
    pub fn insert(&self, digest: Digest, slot: SlotRef) -> Option<SlotRef> {
        self.slots
            .insert(digest, slot.0.to_ne_bytes())
            .map(|old| SlotRef(u32::from_ne_bytes(old)))
    }

    /// Takes a slot out. From now on nobody finds it, and nobody holds it.
    pub fn remove(&self, digest: Digest) {
        self.slots.remove(&digest);
    }

    /// Calls `visit` with each slot. A shard at a time is locked.
    pub fn for_each(&self, mut visit: impl FnMut(SlotRef)) {
        for entry in &self.slots {
            visit(SlotRef(u32::from_ne_bytes(*entry.value())));
        }
    }

    /// Calls `visit` with the first `limit` slots from a position on, and returns the position of the next.
    /// Positions are those of a shard, and in it of the digests, which do not change when tables grow.
    /// A shard at a time is locked, and not for longer than it takes to go through it.
    pub fn page(&self, from: u64, limit: usize, mut visit: impl FnMut(SlotRef)) -> Option<u64> {
        let shards = self.slots.shards();
        let mut left = limit.max(1);
        for shard in (from >> 48) as usize..shards.len() {
            let first = ((shard as u64) << 48).max(from);
            let table = shards[shard].read();
            let mut places: Vec<(u64, [u8; 4])> = Vec::new();
            // SAFETY: the iterator does not outlive the lock on its table, and the entries neither.
            unsafe {
                for entry in table.iter() {
                    let (digest, slot) = entry.as_ref();
                    let position = (shard as u64) << 48 | digest.number();
                    if position >= first {
                        places.push((position, *slot.get()));
                    }
                }
            }
            let next = (places.len() > left).then(|| places.select_nth_unstable(left).1 .0);
            places.truncate(left);
            left -= places.len();
            for (_, slot) in places {
                visit(SlotRef(u32::from_ne_bytes(slot)));
            }
            if next.is_some() {
                return next;
            }
            if left == 0 {
                let following = (shard as u64 + 1) << 48;
                return (shard + 1 < shards.len()).then_some(following);
            }
        }
        None
    }

    /// In how many insertions to ask for [`bytes`](Self::bytes) again: as asking takes the lock of every
    /// shard, after so many that it costs little beside them. Also where entries only come in place of
    /// others, as the places they leave make a table grow.
    pub fn measure_again_in(&self, entries: u64) -> u64 {
        entries / 64 + self.shards / 4
    }

    /// Makes the tables smaller if they are much too large for so many entries.
    pub fn shrink(&self, entries: u64) {
        if self.slots.capacity() as u64 > 8 * entries + 16 * self.shards {
            self.slots.shrink_to_fit();
        }
    }

    /// What the index takes. Asks every shard.
    pub fn bytes(&self) -> u64 {
        let shards = self.slots.shards();
        // Not their capacity: it leaves out the places where an entry was.
        let places: usize = shards.iter().map(|shard| shard.read().buckets()).sum();
        (places * PLACE + size_of_val(shards)) as u64
    }
}
