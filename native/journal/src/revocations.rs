//! The revocations of a scope: which there are, and which sessions they cover. No clock decides that.
//!
//! A revocation is named by its origin, a random number of one scope in one run of a node, and a counter that begins at 1.
//! A node knows, for each origin, up to which counter it has every revocation. A session is written with what its writer
//! knew. A revocation covers the sessions that it is for and whose writer did not know it.
//!
//! Nodes only ever learn: revocations, that older ones have expired, and that one was replaced by a later one of the same
//! origin for the same sessions. So the order in which they learn does not matter, and learning twice changes nothing.

use crate::target::{CertificateSelector, Target};
use hashbrown::{DefaultHashBuilder, HashTable};
use rangemap::RangeInclusiveSet;
use rekindle_core::issuer_and_serial;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::BuildHasher;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Names a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RevocationId {
    /// The scope and run of a node that made it.
    pub origin: u64,
    /// The how-many-eth of that origin it is, from 1.
    pub counter: u64,
}

/// For each origin, the revocations that a node knows.
pub type Knowledge = BTreeMap<u64, Known>;

/// The revocations of one origin that a node knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    /// Every one up to this counter.
    pub upto: u64,
    /// Of these, the ones up to this counter have expired: no session is left that they could cover.
    pub expired: u64,
    /// Of these, the ones that a later one of the same origin has replaced.
    pub replaced: Vec<RangeInclusive<u64>>,
}

/// What becomes of a session that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No revocation covers it.
    Free,
    /// A revocation covers it.
    Revoked,
    /// Its writer did not know a revocation that has expired since: it is older than any session that lives.
    Outdated,
}

/// Expiry times this close together count as one.
const EXPIRY_STEP_MS: u64 = 60_000;

/// The revocations of one scope.
pub struct Revocations {
    origins: Vec<Origin>,
    numbers: HashMap<u64, usize>,
    /// The place of this node's own origin.
    own: usize,
    sessions: DigestTable,
    fingerprints: DigestTable,
    selectors: HashMap<CertificateSelector, Vec<Short>>,
    all: Vec<Short>,
    /// For those that the tables have: what has to be told to others, until something changes.
    statement: Option<Arc<Knowledge>>,
}

#[derive(Default)]
struct Origin {
    number: u64,
    /// Counters that are known, expired or replaced.
    accounted: RangeInclusiveSet<u64>,
    replaced: RangeInclusiveSet<u64>,
    expired: u64,
    /// The highest counter that any node claims to know.
    claimed: u64,
    /// Up to which counter revocations expire at which time, by this node's running time.
    expiry: VecDeque<(u64, u64)>,
}

impl Origin {
    fn upto(&self) -> u64 {
        self.accounted.get(&1).map_or(0, |range| *range.end())
    }

    fn missing(&self) -> u64 {
        if self.claimed == 0 {
            return 0;
        }
        let claimed = 1..=self.claimed;
        let gaps = self.accounted.gaps(&claimed);
        gaps.map(|gap| gap.end() - gap.start() + 1).sum()
    }
}

/// A revocation's id in eight bytes: the place of its origin, and the counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Short(u64);

const COUNTER_BITS: u32 = 48;

impl Short {
    fn new(place: usize, counter: u64) -> Self {
        Short((place as u64) << COUNTER_BITS | counter & ((1 << COUNTER_BITS) - 1))
    }

    fn place(self) -> usize {
        (self.0 >> COUNTER_BITS) as usize
    }

    fn counter(self) -> u64 {
        self.0 & ((1 << COUNTER_BITS) - 1)
    }
}

impl Revocations {
    /// No revocations yet. `origin` is random.
    pub fn new(origin: u64) -> Self {
        let mut revocations = Revocations {
            origins: Vec::new(),
            numbers: HashMap::new(),
            own: 0,
            sessions: DigestTable::default(),
            fingerprints: DigestTable::default(),
            selectors: HashMap::new(),
            all: Vec::new(),
            statement: None,
        };
        revocations.place(origin);
        revocations
    }

    /// Makes a revocation, to be kept until `expires_ms`.
    pub fn make(&mut self, target: &Target, expires_ms: u64) -> RevocationId {
        let own = &self.origins[self.own];
        let id = RevocationId {
            origin: own.number,
            counter: own.upto() + 1,
        };
        self.learn(id, target, expires_ms);
        id
    }

    /// Learns of a revocation. `false` if it was known, or has expired.
    pub fn learn(&mut self, id: RevocationId, target: &Target, expires_ms: u64) -> bool {
        if id.counter == 0 || id.counter >> COUNTER_BITS != 0 {
            return false;
        }
        let Some(place) = self.place(id.origin) else {
            return false;
        };
        let origin = &mut self.origins[place];
        if origin.accounted.contains(&id.counter) {
            return false;
        }
        origin.accounted.insert(id.counter..=id.counter);
        origin.claimed = origin.claimed.max(id.counter);
        match origin.expiry.back_mut() {
            Some((upto, at_ms)) if expires_ms < *at_ms + EXPIRY_STEP_MS => {
                *upto = id.counter.max(*upto);
                *at_ms = expires_ms.max(*at_ms);
            }
            _ => origin.expiry.push_back((id.counter, expires_ms)),
        }
        self.statement = None;
        self.keep(target, Short::new(place, id.counter));
        true
    }

    /// Learns what another node knows, or this one knew before.
    pub fn learn_statement(&mut self, statement: &Knowledge) {
        for (number, known) in statement {
            let Some(place) = self.place(*number) else {
                continue;
            };
            let origin = &mut self.origins[place];
            origin.claimed = origin.claimed.max(known.upto);
            for range in &known.replaced {
                if origin.replaced.gaps(range).next().is_some() {
                    origin.replaced.insert(range.clone());
                    origin.accounted.insert(range.clone());
                    self.statement = None;
                }
            }
            if known.expired > self.origins[place].expired {
                self.drop_expired(place, known.expired);
            }
        }
    }

    /// Lets go of what has expired by this node's running time, and tells whether anything has.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let mut has_expired = false;
        for place in 0..self.origins.len() {
            let origin = &mut self.origins[place];
            let mut upto = 0;
            while origin
                .expiry
                .front()
                .is_some_and(|(_, at_ms)| *at_ms <= now_ms)
            {
                upto = origin
                    .expiry
                    .pop_front()
                    .map_or(upto, |(last, _)| upto.max(last));
            }
            // Those before it that are missing would have expired as well.
            if upto > origin.expired {
                self.drop_expired(place, upto);
                has_expired = true;
            }
        }
        has_expired
    }

    /// Takes all that is missing for expired: the operator's decision.
    pub fn give_up_missing(&mut self) {
        for origin in &mut self.origins {
            if origin.claimed == 0 {
                continue;
            }
            let gaps: Vec<_> = origin.accounted.gaps(&(1..=origin.claimed)).collect();
            for gap in gaps {
                origin.accounted.insert(gap.clone());
                origin.replaced.insert(gap);
            }
        }
        self.statement = None;
    }

    /// How many revocations other nodes know of and this one does not.
    pub fn missing(&self) -> u64 {
        self.origins.iter().map(Origin::missing).sum()
    }

    /// What this node knows.
    pub fn knowledge(&mut self) -> Arc<Knowledge> {
        let statement = self.statement.get_or_insert_with(|| {
            let known = |origin: &Origin| {
                let upto = origin.upto();
                let known = 1..=upto;
                let replaced = origin.replaced.overlapping(&known);
                let known = Known {
                    upto,
                    expired: origin.expired,
                    replaced: replaced
                        .map(|range| *range.start()..=upto.min(*range.end()))
                        .collect(),
                };
                (upto > 0).then_some((origin.number, known))
            };
            Arc::new(self.origins.iter().filter_map(known).collect())
        });
        Arc::clone(statement)
    }

    /// Whether a session is covered whose writer had this knowledge.
    pub fn judge(
        &self,
        session: &[u8; 32],
        certificate: Option<&[u8]>,
        knowledge: &Knowledge,
    ) -> Verdict {
        let knew = |id: Short| {
            let known = knowledge.get(&self.origins[id.place()].number);
            known.is_some_and(|known| id.counter() <= known.upto)
        };
        let is_outdated = |origin: &Origin| {
            origin.expired > 0
                && (knowledge.get(&origin.number)).map_or(0, |known| known.upto) < origin.expired
        };
        if self.origins.iter().any(is_outdated) {
            return Verdict::Outdated;
        }
        let is_covered = !self.all.iter().all(|id| knew(*id))
            || !self.sessions.ids(session).all(knew)
            || certificate.is_some_and(|certificate| self.is_revoked(certificate, knew));
        match is_covered {
            true => Verdict::Revoked,
            false => Verdict::Free,
        }
    }

    fn is_revoked(&self, certificate: &[u8], knew: impl Fn(Short) -> bool + Copy) -> bool {
        if !self.fingerprints.is_empty() {
            let digest: [u8; 32] = Sha256::digest(certificate).into();
            if !self.fingerprints.ids(&digest).all(knew) {
                return true;
            }
        }
        if self.selectors.is_empty() {
            return false;
        }
        let mut candidates = vec![CertificateSelector::Sha1(Sha1::digest(certificate).into())];
        if let Some((name, serial)) = issuer_and_serial(certificate) {
            let (name, serial): (Box<[u8]>, _) = (name.into(), serial.into());
            candidates.push(CertificateSelector::Issuer { name: name.clone() });
            candidates.push(CertificateSelector::Serial { name, serial });
        }
        let ids = candidates
            .iter()
            .filter_map(|selector| self.selectors.get(selector));
        !ids.flatten().all(|id| knew(*id))
    }

    /// How many revocations there are.
    pub fn len(&self) -> usize {
        let selectors = self.selectors.values().map(Vec::len);
        self.sessions.len() + self.fingerprints.len() + selectors.sum::<usize>() + self.all.len()
    }

    /// Calls `visit` with each revocation and when it expires, by this node's running time.
    pub fn for_each(&self, mut visit: impl FnMut(RevocationId, Target, u64)) {
        let mut visit = |short: Short, target| {
            let origin = &self.origins[short.place()];
            let id = RevocationId {
                origin: origin.number,
                counter: short.counter(),
            };
            let expiry = origin.expiry.iter().find(|(upto, _)| id.counter <= *upto);
            visit(id, target, expiry.map_or(u64::MAX, |(_, at_ms)| *at_ms));
        };
        for (digest, id) in self.sessions.iter() {
            visit(id, Target::Session(*digest));
        }
        for (digest, id) in self.fingerprints.iter() {
            visit(
                id,
                Target::Certificate(CertificateSelector::Sha256(*digest)),
            );
        }
        for (selector, ids) in &self.selectors {
            for id in ids {
                visit(*id, Target::Certificate(selector.clone()));
            }
        }
        for id in &self.all {
            visit(*id, Target::All);
        }
    }

    /// The place of an origin. `None` if there are too many.
    fn place(&mut self, number: u64) -> Option<usize> {
        if let Some(place) = self.numbers.get(&number) {
            return Some(*place);
        }
        let place = self.origins.len();
        if place >> (64 - COUNTER_BITS) != 0 {
            return None;
        }
        self.origins.push(Origin {
            number,
            ..Origin::default()
        });
        self.numbers.insert(number, place);
        Some(place)
    }

    /// Puts a revocation in the place of an earlier one of its origin for the same sessions.
    fn keep(&mut self, target: &Target, id: Short) {
        let former = match target {
            Target::Session(session) => self.sessions.insert(session, id),
            Target::Certificate(CertificateSelector::Sha256(digest)) => {
                self.fingerprints.insert(digest, id)
            }
            Target::Certificate(selector) => {
                replace(self.selectors.entry(selector.clone()).or_default(), id)
            }
            Target::All => replace(&mut self.all, id),
        };
        if let Some(former) = former {
            let origin = &mut self.origins[id.place()];
            let counter = former.counter().min(id.counter());
            origin.replaced.insert(counter..=counter);
        }
    }

    fn drop_expired(&mut self, place: usize, upto: u64) {
        let origin = &mut self.origins[place];
        origin.expired = upto;
        origin.claimed = origin.claimed.max(upto);
        origin.accounted.insert(1..=upto);
        origin.replaced.remove(1..=upto);
        origin.expiry.retain(|(last, _)| *last > upto);
        let is_kept = |id: &Short| id.place() != place || id.counter() > upto;
        self.sessions.retain(is_kept);
        self.fingerprints.retain(is_kept);
        self.selectors.retain(|_, ids| {
            ids.retain(is_kept);
            !ids.is_empty()
        });
        self.all.retain(is_kept);
        self.statement = None;
    }
}

/// Adds an id to others for the same sessions, and returns the one of the same origin that it replaces. Keeps the later.
fn replace(ids: &mut Vec<Short>, id: Short) -> Option<Short> {
    let former = ids.iter_mut().find(|former| former.place() == id.place());
    match former {
        Some(former) if former.counter() < id.counter() => Some(std::mem::replace(former, id)),
        Some(_) => Some(id),
        None => {
            ids.push(id);
            None
        }
    }
}

/// Ids of revocations by 32 bytes, 45 to 51 bytes each: there may be millions.
#[derive(Default)]
struct DigestTable {
    entries: Vec<([u8; 32], Short)>,
    /// Places in `entries`.
    places: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl DigestTable {
    /// Adds an id, and returns the one of the same origin and digest that it replaces, or that replaces it.
    fn insert(&mut self, digest: &[u8; 32], id: Short) -> Option<Short> {
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
            // Doubling would take too much.
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

    fn ids<'a>(&'a self, digest: &'a [u8; 32]) -> impl Iterator<Item = Short> + 'a {
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

    fn iter(&self) -> impl Iterator<Item = (&[u8; 32], Short)> {
        self.entries.iter().map(|(digest, id)| (digest, *id))
    }

    fn retain(&mut self, is_kept: impl Fn(&Short) -> bool) {
        let before = self.entries.len();
        self.entries.retain(|(_, id)| is_kept(id));
        if self.entries.len() == before {
            return;
        }
        self.entries.shrink_to_fit();
        let (entries, hasher) = (&self.entries, &self.hasher);
        let hash = |place: &u32| hasher.hash_one(entries[*place as usize].0);
        let mut places = HashTable::with_capacity(entries.len());
        for place in 0..entries.len() as u32 {
            places.insert_unique(hash(&place), place, hash);
        }
        self.places = places;
    }

    fn len(&self) -> usize {
        self.entries.len()
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
