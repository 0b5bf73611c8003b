//! The revocations of a scope, and which sessions they cover. No clock decides that.
//!
//! A revocation is named by its origin, a random number of one scope in one run of a node, and a counter from 1. For
//! each origin, a node knows up to which counter it has all revocations. Each session is written with what its writer
//! knew. A revocation covers a session if it matches and the session's writer did not know it.
//!
//! Nodes only learn: revocations, that older ones have expired, and that a later one of the same origin for the same
//! sessions has replaced one. So the order of learning does not matter, and learning twice changes nothing.
//!
//! An origin whose revocations have all expired is forgotten some time later. The nodes must agree on when: a node that
//! has forgotten one writes sessions without it, and another one must not take them for older ones. So the nodes count
//! epochs. Each node counts while it runs, and goes on from the highest number that it reads. Epochs do not pass faster
//! than time. A session is written with its writer's epoch. A node that was away for long also learns from the epoch
//! which of its revocations have expired meanwhile.

use crate::digest_table::{DigestTable, ShortId, COUNTER_BITS};
use crate::origin::{Noted, Origin, EPOCHS_PER_TERM, MAX_EPOCH};
use crate::target::{CertificateSelector, Target};
use chacha20poly1305::aead::Generate;
use rekindle_core::{canonical_name, issuer_and_serial};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// The name of a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RevocationId {
    /// The scope and the node's run in which it was made.
    pub origin: u64,
    /// Its number within the origin, from 1.
    pub counter: u64,
}

/// What a node knows of a scope.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Knowledge {
    /// An epoch that has begun.
    pub epoch: u64,
    /// For each origin, the revocations that it knows.
    pub origins: BTreeMap<u64, Known>,
}

/// The revocations of one origin that a node knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Known {
    /// It knows all up to this counter.
    pub upto: u64,
    /// Those up to this counter have expired: no session is left that they could cover.
    pub expired: u64,
    /// The epoch in which the last of these expired, as far as the node knows.
    pub expired_in: u64,
    /// Those that a later one of the same origin has replaced.
    pub replaced: Vec<RangeInclusive<u64>>,
}

/// The verdict on a session that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// No revocation covers it.
    Free,
    /// A revocation covers it.
    Revoked,
    /// Its writer did not know a revocation that has expired since, and wrote it before that. So the session has expired,
    /// too.
    Outdated,
}

/// What learning a revocation has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Learned {
    /// Nothing: it was known, has expired, or has a number that no node gives.
    Nothing,
    /// Only how many are known: a later revocation covers the same sessions.
    Replaced,
    /// It covers sessions from now on.
    Revocation,
}

/// If nothing else has changed, a node writes a new statement with the present epoch once this many have passed.
pub const STATED_EPOCHS: u64 = EPOCHS_PER_TERM / 8;

/// How many pieces of knowledge are kept that lack nothing that has expired.
const MAX_CURRENT: usize = 256;

/// The revocations of one scope.
pub struct Revocations {
    origins: Vec<Origin>,
    numbers: HashMap<u64, usize>,
    /// Places in `origins` of those that were forgotten.
    vacant: Vec<usize>,
    /// The present epoch. The first one is 1.
    epoch: u64,
    /// The epoch in the last statement.
    stated_epoch: u64,
    /// In how many epochs this node could use the log, and the last of them.
    used_epochs: u64,
    last_used_epoch: u64,
    /// Whether what is noted of origins has changed, although they have no new revocations.
    has_moved_noted: bool,
    /// When the present epoch began, or this node heard of it.
    epoch_began_ms: Option<u64>,
    /// The place of this node's own origin in `origins`.
    own: usize,
    /// Some knowledge that lacks nothing that has expired, by its address. Many sessions have the same.
    current: RefCell<HashMap<usize, Arc<Knowledge>>>,
    sessions: DigestTable,
    fingerprints: DigestTable,
    /// By the canonical forms of the selectors: other nodes may have certificates that write the same name in another
    /// way.
    selectors: HashMap<CertificateSelector, (CertificateSelector, Vec<ShortId>)>,
    all: Vec<ShortId>,
    /// The statement of what is known, kept until something changes.
    statement: Option<Arc<Knowledge>>,
}

impl Revocations {
    /// Starts without revocations. `origin` is random.
    pub fn new(origin: u64) -> Self {
        let mut revocations = Revocations {
            origins: Vec::new(),
            numbers: HashMap::new(),
            vacant: Vec::new(),
            epoch: 1,
            stated_epoch: 0,
            used_epochs: 0,
            last_used_epoch: 0,
            has_moved_noted: false,
            epoch_began_ms: None,
            own: 0,
            current: RefCell::default(),
            sessions: DigestTable::default(),
            fingerprints: DigestTable::default(),
            selectors: HashMap::new(),
            all: Vec::new(),
            statement: None,
        };
        revocations.place(origin);
        revocations
    }

    /// Makes a revocation, and keeps it until `expires_ms`.
    pub fn make(&mut self, target: &Target, expires_ms: u64) -> RevocationId {
        if self.origins[self.own].is_over() {
            // Other nodes may have forgotten it.
            self.begin_origin();
        }
        let own = &self.origins[self.own];
        let id = RevocationId {
            origin: own.number,
            counter: own.upto() + 1,
        };
        self.learn(id, target, expires_ms);
        id
    }

    /// The origin of the revocations that are made here.
    pub fn own_origin(&self) -> u64 {
        self.origins[self.own].number
    }

    /// Whether any revocation was made here.
    pub fn has_own(&self) -> bool {
        self.origins[self.own].upto() > 0
    }

    /// The last revocation that was made here.
    #[cfg(test)]
    pub fn last_made(&self) -> RevocationId {
        let own = &self.origins[self.own];
        RevocationId {
            origin: own.number,
            counter: own.upto(),
        }
    }

    fn begin_origin(&mut self) {
        let number = random_origin();
        if number != NOBODYS_ORIGIN {
            self.own = self.place(number).unwrap_or(self.own);
        }
    }

    /// Learns a revocation.
    pub fn learn(&mut self, id: RevocationId, target: &Target, expires_ms: u64) -> Learned {
        if id.counter == 0 || id.counter >> COUNTER_BITS != 0 {
            return Learned::Nothing;
        }
        let Some(place) = self.place(id.origin) else {
            return Learned::Nothing;
        };
        let origin = &mut self.origins[place];
        if id.counter <= origin.expired && origin.is_past(self.epoch) {
            // Somebody still has it, and must hear that it has expired.
            origin.used_epochs = self.used_epochs;
            origin.was_current = true;
            self.statement = None;
        }
        let is_accounted = origin.accounted.contains(&id.counter);
        // One that was given up, or that a later one replaces which is not here yet, still covers its sessions.
        let is_replaced = origin.replaced.contains(&id.counter);
        if id.counter <= origin.expired || is_accounted && !is_replaced {
            return Learned::Nothing;
        }
        let is_kept = self.keep(target, ShortId::new(place, id.counter));
        if is_accounted && !is_kept {
            return Learned::Nothing;
        }
        self.origins[place].add(id.counter, expires_ms);
        self.statement = None;
        match is_kept {
            true => Learned::Revocation,
            false => Learned::Replaced,
        }
    }

    /// Learns what another node knows, or what this one knew before. Returns whether some revocations have expired, or some
    /// missing ones were replaced.
    pub fn learn_statement(&mut self, statement: &Knowledge) -> bool {
        let mut has_resolved_some = self.learn_epoch(statement.epoch) && self.expire(0);
        let mut has_dropped = false;
        for (number, known) in &statement.origins {
            let replaced = known.replaced.iter().map(|range| *range.end());
            let last = replaced.fold(known.upto.max(known.expired), u64::max);
            let place = match last >> COUNTER_BITS {
                0 => self.place(*number),
                // No node gives such numbers.
                _ => None,
            };
            let Some(place) = place else {
                continue;
            };
            let origin = &mut self.origins[place];
            origin.claimed = origin.claimed.max(known.upto);
            for range in &known.replaced {
                if origin.replaced.gaps(range).next().is_some() {
                    has_resolved_some |= origin.accounted.gaps(range).next().is_some();
                    origin.replaced.insert(range.clone());
                    origin.accounted.insert(range.clone());
                    self.statement = None;
                }
            }
            if known.expired > origin.expired {
                has_resolved_some |= origin.is_current()
                    || origin.accounted.gaps(&(1..=known.expired)).next().is_some();
                has_dropped |=
                    origin.note_expired(known.expired, known.expired_in, self.used_epochs);
                self.note_changed();
            } else if known.expired == origin.expired && known.expired_in < origin.expired_in {
                origin.expired_in = known.expired_in;
                self.statement = None;
            }
        }
        if has_dropped {
            self.drop_expired();
        }
        has_resolved_some
    }

    /// Drops revocations that have expired by this node's running time, or by the epoch. Returns whether there were any.
    pub fn expire(&mut self, now_ms: u64) -> bool {
        let (mut has_expired, mut has_dropped) = (false, false);
        for origin in &mut self.origins {
            if let Some((upto, expired_in)) = origin.take_expired(now_ms, self.epoch) {
                has_dropped |= origin.note_expired(upto, expired_in, self.used_epochs);
                has_expired = true;
            }
        }
        if has_expired {
            self.note_changed();
        }
        if has_dropped {
            self.drop_expired();
        }
        has_expired
    }

    /// Takes over another node's epoch, or that of a former run, if it is a later one.
    fn learn_epoch(&mut self, epoch: u64) -> bool {
        let ahead = epoch.saturating_sub(self.epoch);
        if ahead == 0 || epoch >= MAX_EPOCH {
            return false;
        }
        self.epoch = epoch;
        self.epoch_began_ms = None;
        if self.used_epochs > 0 && ahead > EPOCHS_PER_TERM {
            // Either this node was suspended, or other nodes count from a higher number than those that it has heard of so
            // far. Then no revocation may end too early.
            for noted in self.origins.iter_mut().filter_map(|it| it.noted.as_mut()) {
                noted.old_in = noted.old_in.saturating_add(ahead);
            }
            self.has_moved_noted = true;
        }
        self.renew_statement();
        true
    }

    /// Drops the statement if its epoch is too old.
    fn renew_statement(&mut self) {
        if self.epoch >= self.stated_epoch.saturating_add(STATED_EPOCHS) {
            self.statement = None;
        }
    }

    /// Notes that all that is known is from former runs: this one has told nobody yet.
    pub fn note_loaded(&mut self) {
        for origin in &mut self.origins {
            origin.was_current = false;
        }
    }

    /// Counts epochs by this node's monotonic clock. To be called often. A new revocation is kept for `keep_ms`.
    pub fn count_epochs(&mut self, now_ms: u64, keep_ms: u64) {
        let length_ms = (keep_ms / EPOCHS_PER_TERM).max(1);
        let began_ms = *self.epoch_began_ms.get_or_insert(now_ms);
        let count = now_ms.saturating_sub(began_ms) / length_ms;
        if count > 0 {
            self.epoch_began_ms = Some(began_ms + count * length_ms);
            self.epoch = self.epoch.saturating_add(count).min(MAX_EPOCH - 1);
            self.renew_statement();
        }
    }

    /// Notes that this node can use the log, and so knows the others' epoch. Forgets what is long over. To be called often.
    /// Returns what is new in [`noted`](Self::noted).
    pub fn use_epoch(&mut self) -> Vec<(u64, Noted)> {
        let passed = self.epoch - self.last_used_epoch;
        if passed == 0 {
            return Vec::new();
        }
        self.last_used_epoch = self.epoch;
        // Who was stopped meanwhile could not use the log all the time.
        self.used_epochs += passed.min(STATED_EPOCHS);
        self.forget_past();
        let epoch = self.epoch;
        let note = |origin: &mut Origin| Some((origin.number, origin.note_epoch(epoch)?));
        let new = self.origins.iter_mut().filter_map(note).collect();
        match std::mem::take(&mut self.has_moved_noted) {
            true => self.noted().collect(),
            false => new,
        }
    }

    /// The present epoch.
    #[cfg(test)]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// For origins, an epoch in which their revocations were known, once it is sure that this node knew the others' epoch
    /// as well.
    pub fn noted(&self) -> impl Iterator<Item = (u64, Noted)> + '_ {
        let noted = |origin: &Origin| Some((origin.number, origin.noted?));
        self.origins.iter().filter_map(noted)
    }

    /// Takes over what was noted for an origin in a former run.
    pub fn learn_noted(&mut self, origin: u64, noted: Noted) {
        self.learn_epoch(noted.epoch);
        if let Some(place) = self.numbers.get(&origin) {
            if noted.epoch < MAX_EPOCH {
                self.origins[*place].noted = Some(noted);
            }
        }
    }

    fn forget_past(&mut self) {
        for place in 0..self.origins.len() {
            let origin = &self.origins[place];
            let is_remembered = place == self.own || origin.is_remembered(self.used_epochs);
            if origin.is_past(self.epoch) && !is_remembered {
                self.numbers.remove(&origin.number);
                self.origins[place] = Origin::default();
                self.vacant.push(place);
                self.statement = None;
            }
        }
    }

    /// Postpones the expiry of revocations that were made here.
    pub fn put_off_own(&mut self, by_ms: u64) {
        self.origins[self.own].put_off(by_ms);
    }

    /// Postpones the expiry of all revocations.
    pub fn put_off(&mut self, by_ms: u64) {
        for origin in &mut self.origins {
            origin.put_off(by_ms);
        }
    }

    /// Counts all missing revocations as replaced. This is the operator's decision.
    pub fn give_up_missing(&mut self) {
        self.origins.iter_mut().for_each(Origin::give_up_missing);
        self.statement = None;
    }

    /// How many revocations other nodes know and this one does not.
    pub fn missing(&self) -> u64 {
        self.origins.iter().map(Origin::missing).sum()
    }

    /// What this node knows, as a statement for other nodes.
    pub fn knowledge(&mut self) -> Arc<Knowledge> {
        let statement = self.statement.get_or_insert_with(|| {
            let known = |origin: &Origin| {
                let known = origin.known();
                let is_told = origin.was_current && origin.is_remembered(self.used_epochs);
                let is_listed = is_told || !origin.is_past(self.epoch);
                (known.upto > 0 && is_listed).then_some((origin.number, known))
            };
            self.stated_epoch = self.epoch;
            Arc::new(Knowledge {
                epoch: self.epoch,
                origins: self.origins.iter().filter_map(known).collect(),
            })
        });
        Arc::clone(statement)
    }

    /// The verdict on a session whose writer had this knowledge.
    pub fn judge(
        &self,
        session: &[u8; 32],
        certificate: Option<&[u8]>,
        knowledge: &Arc<Knowledge>,
    ) -> Verdict {
        let knew = |id: ShortId| {
            let known = knowledge.origins.get(&self.origins[id.place()].number);
            known.is_some_and(|known| id.counter() <= known.upto)
        };
        if self.is_outdated(knowledge) {
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

    /// Whether a revocation has expired that this knowledge lacks, and not only because it was forgotten.
    fn is_outdated(&self, knowledge: &Arc<Knowledge>) -> bool {
        let mut current = self.current.borrow_mut();
        let address = Arc::as_ptr(knowledge).addr();
        if current.contains_key(&address) {
            return false;
        }
        let lacks = |origin: &Origin| {
            let known = knowledge.origins.get(&origin.number);
            known.map_or(0, |known| known.upto) < origin.expired
                && knowledge.epoch < origin.expired_in
        };
        let is_outdated = self.origins.iter().any(lacks);
        if !is_outdated {
            if current.len() >= MAX_CURRENT {
                current.clear();
            }
            // The address stays its own as long as it is here.
            current.insert(address, Arc::clone(knowledge));
        }
        is_outdated
    }

    fn is_revoked(&self, certificate: &[u8], knew: impl Fn(ShortId) -> bool + Copy) -> bool {
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
            let (name, serial): (Box<[u8]>, _) = (canonical_name(name).into(), serial.into());
            candidates.push(CertificateSelector::Issuer { name: name.clone() });
            candidates.push(CertificateSelector::Serial { name, serial });
        }
        let ids = candidates
            .iter()
            .filter_map(|selector| self.selectors.get(selector));
        !ids.flat_map(|(_, ids)| ids).all(|id| knew(*id))
    }

    /// Number of revocations.
    pub fn len(&self) -> usize {
        let selectors = self.selectors.values().map(|(_, ids)| ids.len());
        self.sessions.len() + self.fingerprints.len() + selectors.sum::<usize>() + self.all.len()
    }

    /// Calls `visit` with each revocation and its expiry, by this node's running time.
    pub fn for_each(&self, mut visit: impl FnMut(RevocationId, Target, u64)) {
        let mut visit = |short: ShortId, target| {
            let origin = &self.origins[short.place()];
            let id = RevocationId {
                origin: origin.number,
                counter: short.counter(),
            };
            visit(id, target, origin.expires_ms(id.counter));
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
        for (selector, ids) in self.selectors.values() {
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
        let origin = Origin {
            number,
            ..Origin::default()
        };
        let place = match self.vacant.pop() {
            Some(place) => {
                self.origins[place] = origin;
                place
            }
            None if self.origins.len() >> (64 - COUNTER_BITS) == 0 => {
                self.origins.push(origin);
                self.origins.len() - 1
            }
            None => return None,
        };
        self.numbers.insert(number, place);
        Some(place)
    }

    /// Stores a revocation in place of an earlier one of its origin for the same sessions. `false` if this one, or a
    /// later one, is there.
    fn keep(&mut self, target: &Target, id: ShortId) -> bool {
        let former = match target {
            Target::Session(session) => self.sessions.insert(session, id),
            Target::Certificate(CertificateSelector::Sha256(digest)) => {
                self.fingerprints.insert(digest, id)
            }
            Target::Certificate(selector) => {
                let entry = self.selectors.entry(canonical(selector));
                replace(
                    &mut entry.or_insert_with(|| (selector.clone(), Vec::new())).1,
                    id,
                )
            }
            Target::All => replace(&mut self.all, id),
        };
        if let Some(former) = former {
            let origin = &mut self.origins[id.place()];
            origin.replaced.insert(former.counter()..=former.counter());
        }
        former != Some(id)
    }

    /// After revocations have expired: what was derived from the others is no longer true.
    fn note_changed(&mut self) {
        self.statement = None;
        self.current.get_mut().clear();
    }

    fn drop_expired(&mut self) {
        let origins = &self.origins;
        let is_kept = |id: &ShortId| id.counter() > origins[id.place()].expired;
        self.sessions.retain(is_kept);
        self.fingerprints.retain(is_kept);
        self.selectors.retain(|_, (_, ids)| {
            ids.retain(is_kept);
            !ids.is_empty()
        });
        self.all.retain(is_kept);
    }
}

/// What takes the place of a random number if there is none. No journal starts then.
const NOBODYS_ORIGIN: u64 = 0;

/// The number of a new origin.
pub fn random_origin() -> u64 {
    u64::try_generate().unwrap_or(NOBODYS_ORIGIN)
}

/// The canonical form: equal for all selectors that select the same certificates.
fn canonical(selector: &CertificateSelector) -> CertificateSelector {
    match selector {
        CertificateSelector::Issuer { name } => CertificateSelector::Issuer {
            name: canonical_name(name).into(),
        },
        CertificateSelector::Serial { name, serial } => CertificateSelector::Serial {
            name: canonical_name(name).into(),
            serial: serial.clone(),
        },
        fingerprint => fingerprint.clone(),
    }
}

/// Adds an id to others for the same sessions. Of two ids with the same origin it keeps the later, and returns the
/// other.
fn replace(ids: &mut Vec<ShortId>, id: ShortId) -> Option<ShortId> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::{EXPIRY_STEP_MS, LISTED_EPOCHS, OLD_EPOCHS, REMEMBERED_EPOCHS};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::time::Instant;

    /// CN=ca, as UTF-8.
    const ISSUER: &[u8] = b"\x30\x0d\x31\x0b\x30\x09\x06\x03\x55\x04\x03\x0c\x02ca";

    /// The part of a certificate that is read: serial number, algorithm, issuer.
    fn certificate(serial: u8) -> Vec<u8> {
        let signed = [&[2, 1, serial, 0x30, 0], ISSUER].concat();
        let signed = [&[0x30, signed.len() as u8], &signed[..]].concat();
        [&[0x30, signed.len() as u8], &signed[..]].concat()
    }

    fn targets() -> [Target; 6] {
        let der = certificate(1);
        [
            CertificateSelector::Sha256(Sha256::digest(&der).into()),
            CertificateSelector::Sha1(Sha1::digest(&der).into()),
            CertificateSelector::Serial {
                name: ISSUER.into(),
                serial: [1].into(),
            },
            CertificateSelector::Issuer {
                name: ISSUER.into(),
            },
        ]
        .map(Target::Certificate)
        .into_iter()
        .chain([Target::Session([1; 32]), Target::All])
        .collect::<Vec<_>>()
        .try_into()
        .unwrap()
    }

    fn id(origin: u64, counter: u64) -> RevocationId {
        RevocationId { origin, counter }
    }

    fn upto(origin: u64, upto: u64) -> Arc<Knowledge> {
        let known = Known {
            upto,
            ..Known::default()
        };
        Arc::new(Knowledge {
            epoch: 0,
            origins: [(origin, known)].into(),
        })
    }

    #[test]
    fn a_revocation_covers_the_sessions_it_is_for_whose_writer_did_not_know_it() {
        let others: [([u8; 32], Option<Vec<u8>>); 4] = [
            ([2; 32], None),
            ([2; 32], Some(certificate(2))),
            ([2; 32], Some(certificate(1))),
            ([1; 32], None),
        ];
        for (target, is_covered) in targets().into_iter().zip([
            [false, false, true, false],
            [false, false, true, false],
            [false, false, true, false],
            [false, true, true, false],
            [false, false, false, true],
            [true, true, true, true],
        ]) {
            let mut revocations = Revocations::new(7);
            revocations.make(&Target::Session([9; 32]), 1);
            assert_eq!(revocations.make(&target, 1), id(7, 2));
            for ((session, der), is_covered) in others.iter().zip(is_covered) {
                let judge = |knowledge: &Arc<Knowledge>| -> Verdict {
                    revocations.judge(session, der.as_deref(), knowledge)
                };
                let covered = match is_covered {
                    true => Verdict::Revoked,
                    false => Verdict::Free,
                };
                assert_eq!(judge(&Arc::default()), covered, "{target:?}");
                assert_eq!(judge(&upto(7, 1)), covered);
                assert_eq!(judge(&upto(8, 2)), covered);
                assert_eq!(judge(&upto(7, 2)), Verdict::Free);
            }
        }
    }

    #[test]
    fn names_are_the_same_however_they_are_written() {
        // CN=CA, as a printable string.
        let mut written = ISSUER.to_vec();
        written[11..].copy_from_slice(b"\x13\x02CA");
        let (name, serial): (Box<[u8]>, Box<[u8]>) = (written.into(), [1].into());
        for selector in [
            CertificateSelector::Issuer { name: name.clone() },
            CertificateSelector::Serial { name, serial },
        ] {
            let der = certificate(1);
            assert!(selector.matches(&der));
            let mut revocations = Revocations::new(7);
            let target = Target::Certificate(selector);
            revocations.make(&target, 1);
            let verdict = revocations.judge(&[1; 32], Some(&der), &Arc::default());
            assert_eq!(verdict, Verdict::Revoked);
            revocations.for_each(|_, as_made, _| assert_eq!(as_made, target));
        }
    }

    #[test]
    fn revocations_expire_while_new_ones_keep_coming() {
        let mut revocations = Revocations::new(7);
        let step_ms = EXPIRY_STEP_MS / 2;
        for count in 0..100 {
            let (digest, now_ms) = ([count as u8; 32], count * step_ms);
            revocations.make(&Target::Session(digest), now_ms + 10 * step_ms);
            revocations.expire(now_ms);
            assert!(revocations.len() <= 13, "{count}: {}", revocations.len());
        }
    }

    #[test]
    fn what_is_missing_is_counted_until_it_is_learned_or_given_up() {
        let mut revocations = Revocations::new(7);
        let mut learn = |counter, target: &Target| revocations.learn(id(1, counter), target, 10);
        assert_eq!(learn(3, &Target::All), Learned::Revocation);
        assert_eq!(learn(3, &Target::All), Learned::Nothing);
        assert_eq!(revocations.missing(), 2);
        assert!(!revocations.knowledge().origins.contains_key(&1));
        revocations.learn_statement(&upto(1, 5));
        assert_eq!(revocations.missing(), 4);
        revocations.learn(id(1, 1), &Target::Session([1; 32]), 10);
        assert_eq!(revocations.knowledge().origins[&1].upto, 1);
        revocations.learn(id(1, 2), &Target::Session([2; 32]), 10);
        assert_eq!(
            (
                revocations.knowledge().origins[&1].upto,
                revocations.missing()
            ),
            (3, 2)
        );
        revocations.give_up_missing();
        assert_eq!(
            (
                revocations.knowledge().origins[&1].upto,
                revocations.missing()
            ),
            (5, 0)
        );
        // A node comes back and knows a revocation that was given up.
        let late = revocations.learn(id(1, 4), &Target::Session([4; 32]), 10);
        assert_eq!(late, Learned::Revocation);
        let verdict = revocations.judge(&[4; 32], None, &upto(1, 3));
        assert_eq!(verdict, Verdict::Revoked);
        // Known revocations still hold.
        assert_eq!(
            revocations.judge(&[3; 32], None, &upto(1, 2)),
            Verdict::Revoked
        );
        for wrong in [id(1, 0), id(1, 1 << 48), id(1, u64::MAX)] {
            assert_eq!(revocations.learn(wrong, &Target::All, 10), Learned::Nothing);
        }
    }

    #[test]
    fn a_later_revocation_replaces_an_earlier_one_for_the_same_sessions() {
        for target in targets() {
            let mut revocations = Revocations::new(7);
            for _ in 0..100 {
                revocations.make(&target, 10);
            }
            assert_eq!(revocations.len(), 1);
            let known = revocations.knowledge().origins[&7].clone();
            assert_eq!((known.upto, known.replaced), (100, vec![1..=99]));
            // Another node needs only the last one.
            let mut other = Revocations::new(8);
            other.learn_statement(&revocations.knowledge());
            assert_eq!(other.missing(), 1);
            revocations.for_each(|id, target, _| {
                assert_eq!(other.learn(id, &target, 10), Learned::Revocation);
                assert_eq!(other.learn(id, &target, 10), Learned::Nothing);
            });
            // An old one is remembered but drops nothing.
            let mut late = Revocations::new(9);
            late.learn(id(7, 100), &target, 10);
            assert_eq!(late.learn(id(7, 1), &target, 10), Learned::Replaced);
            assert_eq!((late.len(), late.missing()), (1, 98));
            assert_eq!((other.missing(), other.len()), (0, 1));
            assert_eq!(other.knowledge(), revocations.knowledge());
        }
    }

    #[test]
    fn expired_revocations_are_dropped_and_sessions_older_than_they_are_outdated() {
        let mut revocations = Revocations::new(7);
        let minute = 60_000;
        for n in 1..=3 {
            for target in targets() {
                revocations.make(&target, n * minute);
            }
        }
        assert!(!revocations.expire(minute - 1));
        assert!(revocations.expire(2 * minute));
        let knowledge = revocations.knowledge();
        assert_eq!(
            (knowledge.origins[&7].expired, knowledge.origins[&7].upto),
            (12, 18)
        );
        assert_eq!(revocations.len(), 6);
        let judge =
            |revocations: &Revocations, knew| revocations.judge(&[8; 32], None, &upto(7, knew));
        assert_eq!(judge(&revocations, 11), Verdict::Outdated);
        assert_eq!(judge(&revocations, 12), Verdict::Revoked);
        assert_eq!(judge(&revocations, 18), Verdict::Free);
        let late = revocations.learn(id(7, 3), &Target::All, 10 * minute);
        assert_eq!(late, Learned::Nothing);
        assert!(revocations.expire(3 * minute));
        assert_eq!((revocations.len(), revocations.missing()), (0, 0));
        // Another node learns this without seeing any of them.
        let mut other = Revocations::new(8);
        other.learn_statement(&revocations.knowledge());
        assert_eq!((other.missing(), judge(&other, 17)), (0, Verdict::Outdated));
    }

    #[test]
    fn knowledge_that_lacked_nothing_lacks_what_has_expired_since() {
        let mut revocations = Revocations::new(7);
        revocations.learn(id(8, 1), &Target::Session([1; 32]), 1);
        let (knowledge, lacking) = (revocations.knowledge(), Arc::default());
        let judge =
            |revocations: &Revocations, knowledge| revocations.judge(&[9; 32], None, knowledge);
        assert_eq!(judge(&revocations, &lacking), Verdict::Free);
        assert!(revocations.expire(1));
        assert_eq!(judge(&revocations, &lacking), Verdict::Outdated);
        assert_eq!(judge(&revocations, &knowledge), Verdict::Free);
        assert_eq!(judge(&revocations, &lacking), Verdict::Outdated);
    }

    const TERM_MS: u64 = 64_000;
    const EPOCH_MS: u64 = TERM_MS / EPOCHS_PER_TERM;

    /// A node that counts.
    fn node(origin: u64) -> Revocations {
        let mut node = Revocations::new(origin);
        run(&mut node, 0, true);
        node
    }

    /// Time has passed. Returns the origins whose revocations are noted as known in the present epoch.
    fn run(node: &mut Revocations, now_ms: u64, can_use_log: bool) -> Vec<u64> {
        node.count_epochs(now_ms, TERM_MS);
        let noted = match can_use_log {
            true => node.use_epoch(),
            false => Vec::new(),
        };
        noted.into_iter().map(|(origin, _)| origin).collect()
    }

    /// Another node, which knows what this one says, and has counted as many epochs.
    fn told(origin: u64, by: &mut Revocations) -> Revocations {
        let mut other = node(origin);
        other.learn_statement(&by.knowledge());
        by.for_each(|id, target, expires_ms| {
            other.learn(id, &target, expires_ms);
        });
        other
    }

    #[test]
    fn an_origin_is_forgotten_long_after_its_revocations_have_expired() {
        let mut one = node(7);
        one.make(&Target::All, TERM_MS);
        let mut other = told(8, &mut one);
        let before = other.knowledge();
        assert!(one.expire(TERM_MS));
        other.learn_statement(&one.knowledge());
        let listed_ms = LISTED_EPOCHS * EPOCH_MS;
        for now_ms in (EPOCH_MS..listed_ms).step_by(EPOCH_MS as usize) {
            run(&mut other, now_ms, true);
            assert!(other.knowledge().origins.contains_key(&7));
        }
        run(&mut other, listed_ms, true);
        let after = other.knowledge();
        assert_eq!(after.origins, BTreeMap::new());
        assert_eq!((other.origins.len(), other.vacant.len()), (2, 1));
        // What an older record claims does not count as missing as long as the log may have such a record.
        let mut late = node(9);
        late.learn_statement(&after);
        late.learn_statement(&one.knowledge());
        late.learn_statement(&before);
        assert_eq!((late.missing(), late.knowledge().origins.len()), (0, 0));
        // The other's sessions are not outdated, however long this node has not counted.
        let judge =
            |it: &Revocations, knowledge: &Arc<Knowledge>| it.judge(&[1; 32], None, knowledge);
        assert_eq!(judge(&one, &after), Verdict::Free);
        assert_eq!(judge(&one, &Arc::default()), Verdict::Outdated);
        // The place is used again.
        other.learn(id(10, 1), &Target::All, TERM_MS);
        assert_eq!((other.origins.len(), other.vacant.len()), (2, 0));
        assert_eq!(judge(&other, &after), Verdict::Revoked);
        // This node itself begins another origin, because others may have forgotten this one.
        let next = one.make(&Target::All, TERM_MS);
        assert_eq!((next.origin == 7, next.counter), (false, 1));
        // It may have written older records after an outage, so it first uses the log for some time.
        run(&mut one, 2 * listed_ms, false);
        for epoch in 1..REMEMBERED_EPOCHS - STATED_EPOCHS {
            assert!(one.knowledge().origins.contains_key(&7), "{epoch}");
            run(&mut one, 2 * listed_ms + epoch * EPOCH_MS, true);
        }
        let end_ms = 2 * listed_ms + (REMEMBERED_EPOCHS + STATED_EPOCHS) * EPOCH_MS;
        run(&mut one, end_ms, true);
        let knowledge = one.knowledge();
        assert_eq!(knowledge.origins.keys().collect::<Vec<_>>(), [&next.origin]);
        // If somebody still has it, this node says again that it has expired.
        late.learn(id(7, 1), &Target::All, TERM_MS);
        assert!(late.knowledge().origins.contains_key(&7));
    }

    #[test]
    fn a_node_that_was_away_for_long_learns_what_has_expired() {
        for is_noted in [false, true] {
            let (mut one, mut other) = (node(7), node(8));
            one.make(&Target::All, TERM_MS);
            let noted = run(&mut one, EPOCH_MS, is_noted);
            assert_eq!(noted == [7], is_noted);
            run(&mut other, 20 * TERM_MS, true);
            // It is started again.
            let mut loaded = Revocations::new(9);
            one.for_each(|id, target, expires_ms| {
                loaded.learn(id, &target, expires_ms);
            });
            // Revocations that were made before the file was read are new.
            let new = loaded.make(&Target::Session([1; 32]), TERM_MS);
            for (origin, noted) in one.noted() {
                loaded.learn_noted(origin, noted);
            }
            assert!(loaded.learn_statement(&other.knowledge()) == is_noted);
            let mut known = Vec::new();
            loaded.for_each(|id, _, _| known.push(id));
            assert!(known.contains(&new));
            assert_eq!(known.len(), if is_noted { 1 } else { 2 });
        }
    }

    #[test]
    fn no_revocation_ends_too_early_if_the_others_are_far_ahead() {
        let (mut one, mut other) = (node(7), node(8));
        one.make(&Target::All, TERM_MS);
        assert_eq!(run(&mut one, EPOCH_MS, true), [7]);
        run(&mut other, 20 * TERM_MS, true);
        let before: Vec<_> = one.noted().collect();
        one.learn_statement(&other.knowledge());
        assert_eq!((one.len(), one.epoch()), (1, other.epoch()));
        // A restart does not change that.
        let mut loaded = Revocations::new(9);
        loaded.learn(id(7, 1), &Target::All, TERM_MS);
        for (origin, noted) in before.into_iter().chain(one.use_epoch()) {
            loaded.learn_noted(origin, noted);
        }
        loaded.learn_statement(&other.knowledge());
        assert_eq!((loaded.len(), loaded.epoch()), (1, other.epoch()));
        for epoch in 0..=OLD_EPOCHS {
            assert!(!one.expire(0), "{epoch}");
            run(&mut one, (2 + epoch) * EPOCH_MS, true);
        }
        assert!(one.expire(0));
        // The others' sessions are not outdated by that.
        let verdict = one.judge(&[1; 32], None, &other.knowledge());
        assert_eq!(verdict, Verdict::Free);
    }

    #[test]
    fn old_revocations_of_an_origin_end_without_the_new_ones() {
        let mut one = node(7);
        one.make(&Target::Session([1; 32]), u64::MAX);
        for (terms, is_new) in [(1, true), (2, false), (3, false)] {
            assert_eq!(run(&mut one, terms * TERM_MS, true) == [7], is_new);
        }
        one.make(&Target::Session([2; 32]), u64::MAX);
        run(&mut one, 6 * TERM_MS, false);
        assert!(one.expire(0));
        assert_eq!(one.len(), 1);
        assert_eq!(run(&mut one, 7 * TERM_MS, true), [7]);
        assert!(!one.expire(0));
        run(&mut one, 11 * TERM_MS, true);
        assert!(one.expire(0));
    }

    #[test]
    fn an_origin_that_was_given_up_is_forgotten() {
        let mut one = node(7);
        one.learn_statement(&upto(8, 5));
        one.give_up_missing();
        let mut other = node(9);
        other.learn_statement(&one.knowledge());
        for now_ms in (0..20 * TERM_MS).step_by(EPOCH_MS as usize) {
            for node in [&mut one, &mut other] {
                run(node, now_ms, true);
                node.expire(now_ms);
            }
        }
        for mut node in [one, other] {
            assert_eq!(node.knowledge().origins, BTreeMap::new());
        }
    }

    #[test]
    fn an_older_revocation_is_kept_as_long_as_it_was_to_be() {
        let mut node = node(7);
        for (counter, steps) in [(2, 10), (3, 20), (1, 30)] {
            let target = Target::Session([counter as u8; 32]);
            node.learn(id(8, counter), &target, steps * EXPIRY_STEP_MS);
        }
        assert!(!node.expire(29 * EXPIRY_STEP_MS));
        assert!(node.expire(30 * EXPIRY_STEP_MS));
        assert_eq!(node.len(), 0);
    }

    #[test]
    fn numbers_that_no_node_gives_change_nothing() {
        let told = |epoch, known| Knowledge {
            epoch,
            origins: [(8, known)].into(),
        };
        let mut statements = vec![
            told(MAX_EPOCH, Known::default()),
            told(u64::MAX, Known::default()),
        ];
        for number in [1 << COUNTER_BITS, u64::MAX] {
            let [mut high, mut expired, mut replaced] = [(); 3].map(|()| Known::default());
            high.upto = number;
            expired.expired = number;
            replaced.replaced = vec![1..=number];
            statements.extend([high, expired, replaced].map(|known| told(0, known)));
        }
        let mut node = node(7);
        node.make(&Target::All, TERM_MS);
        let before = node.knowledge();
        for statement in statements {
            assert!(!node.learn_statement(&statement));
        }
        assert_eq!((node.missing(), node.epoch()), (0, 1));
        assert_eq!(node.knowledge(), before);
    }

    #[test]
    fn no_session_is_outdated_because_its_writer_has_forgotten_an_origin() {
        // The reader has learned the revocation as late as the log lets it, and has not heard since when it has expired.
        let mut writer = node(8);
        writer.learn(id(7, 1), &Target::All, TERM_MS);
        let mut reader = node(9);
        reader.learn(id(7, 1), &Target::All, 3 * TERM_MS);
        let mut has_forgotten = false;
        for now_ms in (0..40 * TERM_MS).step_by(EPOCH_MS as usize) {
            for node in [&mut writer, &mut reader] {
                run(node, now_ms, true);
                node.expire(now_ms);
            }
            let knowledge = writer.knowledge();
            has_forgotten |= knowledge.origins.is_empty();
            let verdict = reader.judge(&[1; 32], None, &knowledge);
            assert_eq!(verdict, Verdict::Free, "{now_ms}");
        }
        assert!(has_forgotten && reader.vacant.len() == 1);
    }

    #[test]
    fn epochs_do_not_pass_faster_than_time() {
        const NODES: u64 = 5;
        let mut nodes: Vec<_> = (0..NODES).map(node).collect();
        for now_ms in (0..100 * EPOCH_MS).step_by(10) {
            let place = (now_ms / 10 % NODES) as usize;
            // Their epochs do not begin at the same time.
            if now_ms >= place as u64 * EPOCH_MS / NODES {
                run(&mut nodes[place], now_ms, true);
            }
            let knowledge = nodes[place].knowledge();
            assert!(nodes[place].epoch <= 1 + now_ms / EPOCH_MS);
            let next = (place + 1) % nodes.len();
            nodes[next].learn_statement(&knowledge);
        }
        assert!(nodes[0].epoch >= 90);
        // A node that was stopped catches up.
        run(&mut nodes[0], 200 * EPOCH_MS, true);
        assert!(nodes[0].epoch >= 190);
    }

    #[derive(Debug, Clone)]
    enum Lesson {
        Revocation(RevocationId, Target),
        Statement(Knowledge),
    }

    fn facts() -> impl Strategy<Value = Vec<Lesson>> {
        // The target of an id is always the same.
        let revocation = (0..3u64, 1..8u64).prop_map(|(origin, counter)| {
            let place = (origin + 5 * counter) as usize % 6;
            Lesson::Revocation(id(origin, counter), targets()[place].clone())
        });
        let counters = (0..8u64, 0..8u64, 1..8u64, 0..8u64);
        let statement = (0..3u64, counters, 0..100u64, 0..100u64).prop_map(
            |(origin, (upto, expired, from, length), epoch, expired_in)| {
                let to = upto.min(from + length);
                let known = Known {
                    upto,
                    expired: expired.min(upto) / 2,
                    expired_in,
                    replaced: (from <= to).then_some(from..=to).into_iter().collect(),
                };
                Lesson::Statement(Knowledge {
                    epoch,
                    origins: [(origin, known)].into(),
                })
            },
        );
        vec(prop_oneof![3 => revocation, 1 => statement], 0..30)
    }

    fn after<'a>(lessons: impl IntoIterator<Item = &'a Lesson>) -> Revocations {
        let mut revocations = Revocations::new(100);
        for lesson in lessons {
            match lesson {
                Lesson::Revocation(id, target) => {
                    revocations.learn(*id, target, 1000);
                }
                Lesson::Statement(statement) => _ = revocations.learn_statement(statement),
            }
        }
        revocations
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn the_order_of_learning_does_not_matter(
            lessons in facts().prop_flat_map(|lessons| (Just(lessons.clone()), Just(lessons).prop_shuffle())),
            knew in 0..8u64,
        ) {
            let (one, other) = lessons;
            let (mut one, mut other) = (after(&one), after(other.iter().chain(&one)));
            prop_assert_eq!(one.missing(), other.missing());
            let (known, its) = (one.knowledge(), other.knowledge());
            let counts = |known: &Knowledge| -> Vec<_> {
                known.origins.iter().map(|(origin, known)| {
                    (*origin, known.upto, known.expired, known.expired_in)
                }).collect()
            };
            prop_assert_eq!((known.epoch, counts(&known)), (its.epoch, counts(&its)));
            for origin in 0..3 {
                for session in [[1; 32], [2; 32]] {
                    let judge = |it: &Revocations| {
                        it.judge(&session, Some(&certificate(1)), &upto(origin, knew))
                    };
                    prop_assert_eq!(judge(&one), judge(&other));
                }
            }
        }
    }

    fn digest(n: u32) -> [u8; 32] {
        Sha256::digest(n.to_be_bytes()).into()
    }

    #[test]
    fn a_million_revocations_take_less_than_64_mib() {
        // A sixteenth of the million, which takes a sixteenth of the memory.
        let count = 1_000_000 / 16;
        for is_session in [true, false] {
            let mut revocations = Revocations::new(7);
            for n in 0..count {
                let target = match is_session {
                    true => Target::Session(digest(n)),
                    false => Target::Certificate(CertificateSelector::Sha256(digest(n))),
                };
                revocations.make(&target, u64::from(n));
            }
            let tables = [&revocations.sessions, &revocations.fingerprints];
            let bytes: usize = tables.iter().map(|table| table.memory_bytes()).sum();
            assert!(bytes / count as usize <= (64 << 20) / 1_000_000, "{bytes}");
            assert!(revocations.origins[0].expiry.len() < 100);
            assert_eq!(revocations.knowledge().origins[&7].replaced, []);
            let began = Instant::now();
            let der = certificate(1);
            for n in 0..10_000 {
                revocations.judge(&digest(n), Some(&der), &upto(7, u64::from(count)));
            }
            println!("judging takes {:?}", began.elapsed() / 10_000);
        }
    }
}
