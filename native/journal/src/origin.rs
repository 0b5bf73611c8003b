//! What a node knows of one origin of revocations, and when it forgets that. See `revocations` for what an epoch is.

use crate::revocations::Known;
use rangemap::RangeInclusiveSet;
use std::collections::VecDeque;

/// Revocations whose expiry times differ by less than this expire together, at the latest of these times.
pub const EXPIRY_STEP_MS: u64 = 60_000;

/// How many epochs pass while a revocation is kept. They are short because a node that ends loses a part of one.
pub const EPOCHS_PER_TERM: u64 = 64;

/// The log keeps control records for two terms. So a node may learn a revocation this many epochs later than other nodes,
/// and nodes may differ by as much about the epoch in which it has expired.
const LATE_EPOCHS: u64 = 2 * EPOCHS_PER_TERM;

/// A revocation that was known this many epochs ago has expired on all nodes. A node learns it at most two terms late, and
/// keeps it for one. The fourth term is a margin, because the nodes' epochs may differ a little.
pub const OLD_EPOCHS: u64 = 4 * EPOCHS_PER_TERM;

/// For this many epochs after the last revocation of an origin has expired, nodes go on telling each other of the origin.
/// Nodes may differ by `LATE_EPOCHS` about when that was. This is longer, so no session counts as outdated only because
/// its writer has forgotten the origin.
pub const LISTED_EPOCHS: u64 = 4 * LATE_EPOCHS;

/// A node also remembers the origin until it has used the log for this many epochs. Until then, the log may have records
/// from before the expiry, such as this node wrote after an outage. A node without the origin would take them for new, and
/// wait for revocations that nobody has.
pub const REMEMBERED_EPOCHS: u64 = 3 * EPOCHS_PER_TERM;

/// No node counts that far.
pub const MAX_EPOCH: u64 = 1 << 48;

/// One origin.
#[derive(Default)]
pub struct Origin {
    /// Its number.
    pub number: u64,
    /// Counters that are known, expired or replaced.
    pub accounted: RangeInclusiveSet<u64>,
    /// Counters that a later one has replaced, or that were given up.
    pub replaced: RangeInclusiveSet<u64>,
    /// All up to this counter have expired.
    pub expired: u64,
    /// The epoch in which the last of them has expired.
    pub expired_in: u64,
    /// In how many epochs the node had used the log when `expired` last rose.
    pub used_epochs: u64,
    /// Whether this node has known revocations of it that had not expired yet, and may have told others of them.
    pub was_current: bool,
    /// The highest counter that any node claims to know.
    pub claimed: u64,
    /// The last epoch in which this node knew of new revocations, and was sure that it knew the others' epoch as well.
    pub noted: Option<Noted>,
    /// When those expire that are known. They are in the order of their counters.
    pub expiry: VecDeque<Expiry>,
}

/// An epoch in which revocations were known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Noted {
    /// All up to this counter.
    pub upto: u64,
    /// The epoch.
    pub epoch: u64,
    /// The epoch in which all of them have expired.
    pub old_in: u64,
}

/// When revocations up to a counter expire, by this node's running time.
pub struct Expiry {
    upto: u64,
    at_ms: u64,
    /// When the first of them would have expired.
    from_ms: u64,
}

impl Origin {
    /// All up to this counter are known.
    pub fn upto(&self) -> u64 {
        self.accounted.get(&1).map_or(0, |range| *range.end())
    }

    /// How many are not known that another node claims to know.
    pub fn missing(&self) -> u64 {
        if self.claimed == 0 {
            return 0;
        }
        let claimed = 1..=self.claimed;
        let gaps = self.accounted.gaps(&claimed);
        gaps.map(|gap| gap.end() - gap.start() + 1).sum()
    }

    /// What other nodes are told of it.
    pub fn known(&self) -> Known {
        let upto = self.upto();
        let known = 1..=upto;
        let replaced = self.replaced.overlapping(&known);
        Known {
            upto,
            expired: self.expired,
            expired_in: self.expired_in,
            replaced: replaced
                .map(|range| *range.start()..=upto.min(*range.end()))
                .collect(),
        }
    }

    /// Adds a revocation that is new.
    pub fn add(&mut self, counter: u64, expires_ms: u64) {
        self.accounted.insert(counter..=counter);
        self.claimed = self.claimed.max(counter);
        let place = self.expiry.partition_point(|it| it.upto < counter);
        let expiry = match place < self.expiry.len() {
            true => self.expiry.get_mut(place),
            false => (self.expiry.back_mut())
                .filter(|last| expires_ms < last.from_ms.saturating_add(EXPIRY_STEP_MS)),
        };
        match expiry {
            Some(expiry) => {
                expiry.upto = counter.max(expiry.upto);
                expiry.at_ms = expires_ms.max(expiry.at_ms);
            }
            None => self.expiry.push_back(Expiry {
                upto: counter,
                at_ms: expires_ms,
                from_ms: expires_ms,
            }),
        }
    }

    /// When a revocation expires that is known.
    pub fn expires_ms(&self, counter: u64) -> u64 {
        let place = self.expiry.partition_point(|it| it.upto < counter);
        self.expiry.get(place).map_or(u64::MAX, |it| it.at_ms)
    }

    /// Postpones all expiries.
    pub fn put_off(&mut self, by_ms: u64) {
        for expiry in &mut self.expiry {
            expiry.at_ms = expiry.at_ms.saturating_add(by_ms);
            expiry.from_ms = expiry.from_ms.saturating_add(by_ms);
        }
    }

    /// Counts all missing ones as replaced.
    pub fn give_up_missing(&mut self) {
        if self.claimed == 0 {
            return;
        }
        let gaps: Vec<_> = self.accounted.gaps(&(1..=self.claimed)).collect();
        for gap in gaps {
            self.accounted.insert(gap.clone());
            self.replaced.insert(gap);
        }
    }

    /// Up to which counter revocations have expired, and in which epoch, if there are new ones.
    pub fn take_expired(&mut self, now_ms: u64, epoch: u64) -> Option<(u64, u64)> {
        let mut upto = 0;
        while let Some(expiry) = self.expiry.front().filter(|it| it.at_ms <= now_ms) {
            upto = expiry.upto;
            self.expiry.pop_front();
        }
        if let Some(noted) = self.noted.filter(|noted| epoch >= noted.old_in) {
            // No node has them any more, and this one may have missed that they have expired.
            upto = noted.upto.max(upto);
        }
        // This node may have been suspended since.
        let noted = self.noted.filter(|noted| upto <= noted.upto);
        let expired_in = noted.map_or(epoch, |noted| epoch.min(noted.epoch + LATE_EPOCHS));
        (upto > self.expired).then_some((upto, expired_in))
    }

    /// All up to this counter have expired: missing ones would have expired as well. `used_epochs` says in how many epochs
    /// the node could use the log. Returns whether some that were known may have to be dropped now.
    pub fn note_expired(&mut self, upto: u64, expired_in: u64, used_epochs: u64) -> bool {
        let is_current = self.is_current();
        self.was_current |= is_current;
        self.expired = upto;
        self.expired_in = expired_in;
        self.used_epochs = used_epochs;
        self.claimed = self.claimed.max(upto);
        self.accounted.insert(1..=upto);
        self.replaced.remove(1..=upto);
        self.expiry.retain(|expiry| expiry.upto > upto);
        is_current
    }

    /// Notes in which epoch the revocations are known, if there are new ones.
    pub fn note_epoch(&mut self, epoch: u64) -> Option<Noted> {
        let noted = Noted {
            upto: self.claimed,
            epoch,
            old_in: epoch + OLD_EPOCHS,
        };
        let is_new = noted.upto > self.noted.map_or(0, |noted| noted.upto);
        if is_new {
            self.noted = Some(noted);
        }
        is_new.then_some(noted)
    }

    /// Whether it has revocations, and all of them have expired.
    pub fn is_over(&self) -> bool {
        self.expired > 0 && self.expired == self.upto() && self.expired >= self.claimed
    }

    /// Whether other nodes have forgotten it, or will do so soon.
    pub fn is_past(&self, epoch: u64) -> bool {
        self.is_over() && epoch >= self.expired_in.saturating_add(LISTED_EPOCHS)
    }

    /// Whether revocations are known that have not expired.
    pub fn is_current(&self) -> bool {
        let last = self.accounted.iter().next_back();
        last.is_some_and(|range| *range.end() > self.expired)
    }

    /// Whether the log may still have records that name it as if it were new.
    pub fn is_remembered(&self, used_epochs: u64) -> bool {
        used_epochs < self.used_epochs + REMEMBERED_EPOCHS
    }
}
