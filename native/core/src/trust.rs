//! Whether a client's certificate lets its session be resumed: it has not expired, and is on no revocation list.
//!
//! A resumption skips the checks of a handshake, so the store makes these at each lookup. A refusal costs the client one full
//! handshake, in which the listener decides. So the store refuses when it does not know, and a hash of the serial number
//! suffices.
//!
//! A thread replaces the lists as a whole, and lookups read them without a lock.

use crate::clock::wall_s;
use crate::x509::{canonical_name, shortest, Signed, NEVER};
use arc_swap::{ArcSwapOption, Guard};
use foldhash::quality::RandomState;
use once_cell::sync::Lazy;
use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicBool, Ordering::*};
use std::sync::Arc;

/// The same for all stores and lists of this process, and unknown to those who make certificates.
static KEYS: Lazy<RandomState> = Lazy::new(RandomState::default);

/// Why a session is not resumed although the store has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateMiss {
    /// Its client's certificate has expired.
    Expired,
    /// Its client's certificate is on a revocation list.
    Revoked,
    /// The revocation lists were not read yet, or the list of the certificate's issuer is too old.
    Unknown,
}

impl CertificateMiss {
    /// All of them, in the order of [`Counts::certificate_misses`](crate::Counts::certificate_misses).
    pub const ALL: [CertificateMiss; 3] = [
        CertificateMiss::Expired,
        CertificateMiss::Revoked,
        CertificateMiss::Unknown,
    ];
}

/// The name of an authority, as the hash of its canonical form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct IssuerHash(u64);

impl IssuerHash {
    /// The hash of a name in DER.
    pub fn of(name: &[u8]) -> Self {
        Self::of_canonical(&canonical_name(name))
    }

    pub(crate) fn of_canonical(canonical: &[u8]) -> Self {
        // 0 stands for no name.
        IssuerHash(KEYS.hash_one(canonical).max(1))
    }

    /// The hash as a number, which is not 0.
    pub(crate) fn get(self) -> u64 {
        self.0
    }

    /// `None` for 0.
    pub(crate) fn known(hash: u64) -> Option<Self> {
        (hash != 0).then_some(IssuerHash(hash))
    }

    /// The hash of this authority's certificate with this serial number: the value in DER, without tag and length.
    pub fn certificate(self, serial: &[u8]) -> u64 {
        KEYS.hash_one((self.0, shortest(serial)))
    }
}

/// What the check needs to know of a certificate. The store keeps it with the certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claims {
    /// The last second of its validity, in seconds since 1970.
    pub last_second: u32,
    /// Its issuer, or `None` if it is no certificate.
    pub issuer: Option<IssuerHash>,
    /// The hash by [`IssuerHash::certificate`].
    pub certificate: u64,
}

impl Claims {
    /// The claims of a certificate in DER.
    pub fn of(certificate: &[u8]) -> Self {
        match Signed::of(certificate) {
            Some(signed) => Claims::new(&signed, IssuerHash::of(signed.issuer)),
            None => Claims::NONE,
        }
    }

    /// The claims of a certificate of the authority with this hash.
    pub fn new(signed: &Signed, issuer: IssuerHash) -> Self {
        Claims {
            last_second: signed.last_second(),
            issuer: Some(issuer),
            certificate: issuer.certificate(signed.serial),
        }
    }

    /// The claims of bytes that are no certificate.
    pub const NONE: Claims = Claims {
        last_second: NEVER,
        issuer: None,
        certificate: 0,
    };
}

/// What revocation lists say about the certificates of one authority.
#[derive(Debug, Clone, Default)]
pub struct IssuerLists {
    /// Until when they are current, in seconds since 1970.
    pub current_until_s: u64,
    /// The revoked certificates, as sorted hashes by [`IssuerHash::certificate`].
    pub revoked: Vec<Arc<[u64]>>,
}

/// The content of all revocation lists at one moment.
#[derive(Debug, Default)]
pub struct Known {
    issuers: HashMap<IssuerHash, IssuerLists, foldhash::fast::RandomState>,
    is_complete: bool,
}

impl Known {
    /// `is_complete` says whether each configured list was read at least once.
    pub fn new(
        issuers: impl IntoIterator<Item = (IssuerHash, IssuerLists)>,
        is_complete: bool,
    ) -> Self {
        Known {
            issuers: issuers.into_iter().collect(),
            is_complete,
        }
    }

    fn check(&self, claims: &Claims, allows_stale: bool) -> Result<(), CertificateMiss> {
        let Some(issuer) = claims.issuer else {
            // OTP has verified something that this library cannot parse.
            return Err(CertificateMiss::Unknown);
        };
        let lists = self.issuers.get(&issuer);
        let has = |list: &Arc<[u64]>| has(list, claims.certificate);
        if lists.is_some_and(|lists| lists.revoked.iter().any(has)) {
            return Err(CertificateMiss::Revoked);
        }
        let is_current = self.is_complete && lists.is_none_or(|l| l.current_until_s >= wall_s());
        match is_current || allows_stale {
            true => Ok(()),
            false => Err(CertificateMiss::Unknown),
        }
    }
}

/// Whether sorted hashes contain this one. Hashes are spread evenly, so it is near the place that its value says. Each step of a
/// binary search among 100,000 would wait for memory instead.
fn has(sorted: &[u64], hash: u64) -> bool {
    let share = |part: u64| ((u128::from(part) * sorted.len() as u128) >> u64::BITS) as usize;
    let Some(near) = sorted.get(share(hash)) else {
        return false;
    };
    let last = sorted.len() - 1;
    let nearer = match *near <= hash {
        true => (share(hash) + share(hash - near)).min(last),
        false => share(hash).saturating_sub(share(near - hash)),
    };
    let (mut low, mut high, mut step) = (nearer, nearer, 8);
    while low > 0 && sorted[low] > hash {
        low = low.saturating_sub(step);
        step *= 2;
    }
    while high < last && sorted[high] < hash {
        high = (high + step).min(last);
        step *= 2;
    }
    sorted[low..=high].binary_search(&hash).is_ok()
}

/// The revocation lists of one or more stores. A thread replaces their content when it has changed.
#[derive(Debug, Default)]
pub struct Lists(ArcSwapOption<Known>);

impl Lists {
    /// Lists that were not read yet, so that no session with a certificate is resumed.
    pub fn new() -> Self {
        Lists::default()
    }

    /// Replaces the content.
    pub fn publish(&self, known: Known) {
        self.0.store(Some(Arc::new(known)));
    }

    fn known(&self) -> Guard<Option<Arc<Known>>> {
        self.0.load()
    }
}

/// The checks of a certificate before a lookup returns its session.
#[derive(Debug, Clone, Default)]
pub struct Trust {
    /// Whether sessions are resumed after their client's certificate has expired.
    pub allows_expired: bool,
    /// Whether sessions are resumed if a revocation list is too old or could not be read. Even then none is resumed before the
    /// first attempt to read it.
    pub allows_stale: bool,
    /// The revocation lists, if any are configured.
    pub lists: Option<Arc<Lists>>,
}

/// A [`Trust`] that any thread may read and replace.
#[derive(Debug, Default)]
pub(crate) struct TrustCell {
    allows_expired: AtomicBool,
    allows_stale: AtomicBool,
    /// Whether there are `lists`: most stores have none, and this is quicker to read.
    has_lists: AtomicBool,
    lists: ArcSwapOption<Lists>,
}

impl TrustCell {
    pub fn set(&self, trust: Trust) {
        self.allows_expired.store(trust.allows_expired, Relaxed);
        self.allows_stale.store(trust.allows_stale, Relaxed);
        let has_lists = trust.lists.is_some();
        self.lists.store(trust.lists);
        self.has_lists.store(has_lists, Release);
    }

    /// Whether a session with this certificate may be resumed now.
    pub fn check(&self, claims: &Claims) -> Result<(), CertificateMiss> {
        if self.has_expired(claims) {
            return Err(CertificateMiss::Expired);
        }
        if !self.has_lists.load(Acquire) {
            return Ok(());
        }
        let lists = self.lists.load();
        match &*lists {
            None => Ok(()),
            Some(lists) => match &*lists.known() {
                None => Err(CertificateMiss::Unknown),
                Some(known) => known.check(claims, self.allows_stale.load(Relaxed)),
            },
        }
    }

    fn has_expired(&self, claims: &Claims) -> bool {
        let ends = claims.last_second != NEVER && !self.allows_expired.load(Relaxed);
        ends && wall_s() > claims.last_second.into()
    }

    /// For how many seconds the certificate still lets its session be resumed, as far as is known. `None` if the certificate
    /// sets no end.
    pub fn seconds_left(&self, claims: &Claims) -> Option<u64> {
        if self.check(claims).is_err() {
            return Some(0);
        }
        let ends = claims.last_second != NEVER && !self.allows_expired.load(Relaxed);
        ends.then(|| u64::from(claims.last_second).saturating_sub(wall_s()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::set_wall::WALL_S;

    fn claims(issuer: &[u8], serial: &[u8]) -> Claims {
        let issuer = IssuerHash::of_canonical(issuer);
        Claims {
            last_second: 1000,
            issuer: Some(issuer),
            certificate: issuer.certificate(serial),
        }
    }

    fn lists(current_until_s: u64, revoked: &[u64]) -> IssuerLists {
        let mut revoked = revoked.to_vec();
        revoked.sort_unstable();
        IssuerLists {
            current_until_s,
            revoked: vec![revoked.into()],
        }
    }

    fn trust(known: Option<Known>, allows_stale: bool) -> TrustCell {
        let lists = Lists::new();
        if let Some(known) = known {
            lists.publish(known);
        }
        let cell = TrustCell::default();
        cell.set(Trust {
            allows_expired: false,
            allows_stale,
            lists: Some(Arc::new(lists)),
        });
        cell
    }

    #[test]
    fn a_certificate_is_good_until_its_last_second_is_over() {
        let cell = TrustCell::default();
        let (certificate, endless) = (claims(b"ca", b"1"), Claims::NONE);
        WALL_S.set(Some(1000));
        assert_eq!(cell.check(&certificate), Ok(()));
        assert_eq!(cell.seconds_left(&certificate), Some(0));
        WALL_S.set(Some(1001));
        assert_eq!(cell.check(&certificate), Err(CertificateMiss::Expired));
        assert_eq!(cell.check(&endless), Ok(()));
        // The clock was wrong.
        WALL_S.set(Some(900));
        assert_eq!(cell.check(&certificate), Ok(()));
        assert_eq!(cell.seconds_left(&certificate), Some(100));
        assert_eq!(cell.seconds_left(&endless), None);
        WALL_S.set(Some(1001));
        cell.set(Trust {
            allows_expired: true,
            ..Trust::default()
        });
        assert_eq!(cell.check(&certificate), Ok(()));
        assert_eq!(cell.seconds_left(&certificate), None);
    }

    #[test]
    fn what_a_list_has_is_revoked_and_others_of_its_issuer_while_it_is_current() {
        WALL_S.set(Some(100));
        let (one, other) = (claims(b"ca", b"1"), claims(b"ca", b"2"));
        let stranger = claims(b"other", b"1");
        let issuer = one.issuer.unwrap();
        let known = |until_s, is_complete| {
            let lists = lists(until_s, &[one.certificate, 0, u64::MAX]);
            Some(Known::new([(issuer, lists)], is_complete))
        };
        for (allows_stale, until_s, is_complete, expected) in [
            (false, 100, true, Ok(())),
            (false, 99, true, Err(CertificateMiss::Unknown)),
            (true, 99, true, Ok(())),
            (false, 100, false, Err(CertificateMiss::Unknown)),
            (true, 100, false, Ok(())),
        ] {
            let cell = trust(known(until_s, is_complete), allows_stale);
            assert_eq!(cell.check(&one), Err(CertificateMiss::Revoked));
            assert_eq!(cell.check(&other), expected, "{until_s} {is_complete}");
            assert_eq!(cell.check(&stranger).is_ok(), is_complete || allows_stale);
        }
    }

    #[test]
    fn hashes_are_found_however_they_are_spread() {
        let spread = |n: u64| KEYS.hash_one(n);
        let lists: [&dyn Fn(u64) -> u64; 5] = [
            &spread,
            &|n| n * 2,
            &|n| u64::MAX - n * 2,
            &|n| n << 63 | spread(n) >> 40,
            &|_| 7,
        ];
        for of in lists {
            for length in [0, 1, 2, 3, 10, 1000] {
                let mut list: Vec<u64> = (0..length).map(of).collect();
                list.sort_unstable();
                let near = list
                    .iter()
                    .flat_map(|hash| [hash.wrapping_sub(1), *hash, hash.wrapping_add(1)]);
                for hash in near
                    .chain([0, 1, 1 << 63, u64::MAX])
                    .chain((0..100).map(spread))
                {
                    assert_eq!(has(&list, hash), list.contains(&hash), "{hash} {list:?}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_resumed_before_the_lists_were_read() {
        WALL_S.set(Some(100));
        let cell = trust(None, true);
        assert_eq!(
            cell.check(&claims(b"ca", b"1")),
            Err(CertificateMiss::Unknown)
        );
        let cell = trust(Some(Known::new([], true)), false);
        assert_eq!(cell.check(&claims(b"ca", b"1")), Ok(()));
        assert_eq!(cell.check(&Claims::NONE), Err(CertificateMiss::Unknown));
    }

    #[test]
    fn a_serial_number_is_the_same_with_bytes_that_say_nothing() {
        let issuer = IssuerHash::of_canonical(b"ca");
        let same = |one: &[u8], other: &[u8]| issuer.certificate(one) == issuer.certificate(other);
        assert!(same(&[0, 0, 5], &[5]));
        assert!(same(&[255, 255, 200], &[200]));
        assert!(same(&[0, 0, 200], &[0, 200]));
        assert!(!same(&[0, 200], &[200]));
        assert!(!same(&[0], &[]));
        assert!(same(&[0, 0], &[0]));
    }
}
