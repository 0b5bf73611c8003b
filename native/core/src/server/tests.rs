//! Tests of the store's promises, one at a time. The model checks arbitrary sequences of calls.

use super::*;
use std::ops::Range;

struct Common(u8);

impl Pattern<u8> for Common {
    fn hash(&self) -> u64 {
        u64::from(self.0 % 2)
    }
    fn matches(&self, template: &u8) -> bool {
        *template == self.0
    }
    fn make(&self) -> Option<Made<u8>> {
        Some(Made {
            template: self.0,
            bytes: 100,
            part: None,
        })
    }
}

fn store(max_bytes: u64, max_sessions: u64, lifetime_ms: u64) -> ServerStore<u8> {
    ServerStore::new(Limits {
        max_bytes,
        max_sessions,
        lifetime_ms,
    })
}

const ANY: u64 = u64::MAX;
const LONG_MS: u64 = 86_400_000;
const MIB: u64 = 1 << 20;

fn id(n: u32) -> [u8; 32] {
    let mut id = [7; 32];
    let (a, b) = (n.wrapping_mul(2_654_435_761), n.wrapping_mul(0x9e37_79b1));
    id[..4].copy_from_slice(&a.to_ne_bytes());
    id[8..12].copy_from_slice(&b.to_ne_bytes());
    id
}

fn session<'a>(
    store: &'a ServerStore<u8>,
    id: &'a [u8; 32],
    secret: &'a [u8; 48],
) -> NewSession<'a, u8> {
    NewSession {
        key: SessionKey::Id(id),
        secret,
        template: store.template(&Common(1)),
        certificate: None,
        tail: b"",
    }
}

fn try_insert(
    store: &ServerStore<u8>,
    n: u32,
    certificate: Option<&[u8]>,
    tail: &[u8],
    now_ms: u64,
) -> Result<(), Refusal> {
    let (id, secret) = (id(n), [n as u8; 48]);
    let new = NewSession {
        certificate,
        tail,
        ..session(store, &id, &secret)
    };
    store.insert(new, now_ms)
}

fn insert(store: &ServerStore<u8>, n: u32, tail: &[u8], now_ms: u64) {
    assert_eq!(try_insert(store, n, None, tail, now_ms), Ok(()));
}

fn insert_certified(store: &ServerStore<u8>, n: u32, certificate: &[u8], now_ms: u64) {
    assert_eq!(try_insert(store, n, Some(certificate), b"", now_ms), Ok(()));
}

fn restore(
    store: &ServerStore<u8>,
    n: u32,
    born_ms: u64,
    arrival: Arrival,
    now_ms: u64,
) -> Restored {
    let (id, secret) = (id(n), [n as u8; 48]);
    store.restore(session(store, &id, &secret), born_ms, arrival, now_ms)
}

fn use_it(store: &ServerStore<u8>, n: u32, now_ms: u64) -> bool {
    store
        .lookup(SessionKey::Id(&id(n)), now_ms, |_| ())
        .is_some()
}

/// The last byte of the secret, the certificate, and the tail.
fn held(store: &ServerStore<u8>, n: u32, now_ms: u64) -> Option<(u8, Vec<u8>, Vec<u8>)> {
    store.peek(SessionKey::Id(&id(n)), now_ms, |session| {
        assert_eq!(session.template.map(|template| **template), Some(1));
        let certificate = session
            .certificate
            .map(|certificate| certificate.der().into_owned());
        (
            session.secret[47],
            certificate.unwrap_or_default(),
            session.tail.to_vec(),
        )
    })
}

fn survivors(store: &ServerStore<u8>, range: Range<u32>) -> Vec<u32> {
    range.filter(|n| held(store, *n, 0).is_some()).collect()
}

fn tidy(store: &ServerStore<u8>, now_ms: u64) {
    while store.tidy(now_ms) {}
}

/// The parts of a certificate that the store reads.
fn certificate(issuer: &str, serial: u32) -> Vec<u8> {
    fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
        let length = (value.len() as u16).to_be_bytes();
        [&[tag, 0x82], &length[..], value].concat()
    }
    fn short(tag: u8, value: &[u8]) -> Vec<u8> {
        [&[tag, value.len() as u8], value].concat()
    }
    let number = short(2, &[&[1], &serial.to_be_bytes()[..]].concat());
    let algorithm = short(0x30, &short(6, &[42, 3]));
    let attribute = [short(6, &[0x55, 4, 3]), short(12, issuer.as_bytes())].concat();
    let name = short(0x30, &short(0x31, &short(0x30, &attribute)));
    let key: Vec<u8> = (0..64u32)
        .map(|n| (serial.wrapping_mul(n + 3) >> 5) as u8)
        .collect();
    let rest = tlv(4, &[&[9; 400][..], &key].concat());
    let signed = tlv(0x30, &[number, algorithm, name, rest].concat());
    tlv(0x30, &signed)
}

#[test]
fn hands_out_what_was_inserted_and_counts() {
    let store = store(ANY, ANY, 1000);
    assert_eq!(
        try_insert(&store, 1, Some(b"certificate"), b"tail", 0),
        Ok(())
    );
    let found = held(&store, 1, 0);
    assert_eq!(found, Some((1, b"certificate".to_vec(), b"tail".to_vec())));
    assert!(use_it(&store, 1, 0));
    assert!(!use_it(&store, 2, 0));
    let counts = store.counters().read();
    assert_eq!((counts.inserts, counts.hits, counts.misses), (1, 1, 1));
}

#[test]
fn the_first_to_go_is_the_oldest_that_was_not_used() {
    let store = store(ANY, 4, LONG_MS);
    for n in 0..4 {
        insert(&store, n, b"", 0);
    }
    assert!(use_it(&store, 0, 5_000));
    for n in 4..6 {
        insert(&store, n, b"", 6_000);
    }
    assert_eq!(survivors(&store, 0..6), [0, 3, 4, 5]);
    assert_eq!((store.sessions(), store.counters().read().evicted), (4, 2));
}

#[test]
fn lookups_of_evicted_sessions_are_distinguished_from_others() {
    let store = store(ANY, 100, LONG_MS);
    for n in 0..200 {
        insert(&store, n, b"", 0);
    }
    for n in 0..100 {
        assert!(!use_it(&store, n, 0));
        assert!(!use_it(&store, n + 1_000, 0));
    }
    let counts = store.counters().read();
    assert_eq!(counts.misses, 200);
    assert!((50..=100).contains(&counts.evicted_misses), "{counts:?}");
}

#[test]
fn certified_sessions_outlive_others_until_they_have_half_of_the_room() {
    let store = store(ANY, 8, LONG_MS);
    for n in 0..3 {
        insert_certified(&store, n, &certificate("ca", n), 0);
    }
    for n in 3..100 {
        insert(&store, n, b"", 0);
    }
    assert_eq!(survivors(&store, 0..100), [0, 1, 2, 95, 96, 97, 98, 99]);
    for n in 100..200 {
        insert_certified(&store, n, &certificate("ca", n), 0);
    }
    assert_eq!(
        survivors(&store, 95..200),
        [97, 98, 99, 195, 196, 197, 198, 199]
    );
}

#[test]
fn a_certificates_sessions_beyond_the_newest_count_as_anonymous() {
    let store = store(ANY, ANY, LONG_MS);
    let der = certificate("ca", 1);
    for n in 0..20 {
        insert_certified(&store, n, &der, u64::from(n) * 10);
    }
    assert_eq!((store.certified(), store.certificates()), (8, 1));
    let mut certified = Vec::new();
    store.page(0, 100, 200, |listed| {
        certified.push((listed.age_ms, listed.is_certified))
    });
    certified.sort();
    assert!(
        certified[..8].iter().all(|(_, certified)| *certified),
        "{certified:?}"
    );
    assert!(
        certified[8..].iter().all(|(_, certified)| !*certified),
        "{certified:?}"
    );
    // A replay brings older sessions.
    let (id, secret) = (id(50), [1; 48]);
    let old = NewSession {
        certificate: Some(&der),
        ..session(&store, &id, &secret)
    };
    assert_eq!(
        store.restore(old, 0, Arrival::Replayed, 200),
        Restored::Stored
    );
    assert_eq!(store.certified(), 8);
    for n in 0..20 {
        store.delete(SessionKey::Id(&super::tests::id(n)));
    }
    assert_eq!((store.sessions(), store.certificates()), (1, 1));
    store.delete(SessionKey::Id(&id));
    assert_eq!((store.certified(), store.certificates()), (0, 0));
}

#[test]
fn certificates_are_kept_once_compressed_and_come_back_bit_for_bit() {
    let store = store(4 * MIB, ANY, LONG_MS);
    let certificates: Vec<_> = (0..3_000)
        .map(|n| certificate(["one", "two"][n % 2], n as u32))
        .collect();
    for (n, der) in certificates.iter().enumerate() {
        insert_certified(&store, n as u32, der, 0);
        insert_certified(&store, n as u32 + 10_000, der, 0);
    }
    assert_eq!(store.certificates(), 3_000);
    assert!(store.bytes() > 2 * MIB);
    let slot_bytes = || store.order.lock().books.slot_bytes();
    let before = slot_bytes();
    tidy(&store, 0);
    assert!(slot_bytes() < before / 2, "{} of {before}", slot_bytes());
    for (n, der) in certificates.iter().enumerate() {
        assert_eq!(held(&store, n as u32, 0).unwrap().1, *der);
        assert_eq!(held(&store, n as u32 + 10_000, 0).unwrap().1, *der);
    }
    // The same certificate is found among the compressed ones.
    insert_certified(&store, 20_000, &certificates[7], 0);
    assert_eq!(store.certificates(), 3_000);
    while store.clear(100) > 0 {}
    assert_eq!((store.certificates(), store.certified()), (0, 0));
}

#[test]
fn revoking_drops_the_sessions_of_the_certificates_that_are_meant() {
    use sha1::Sha1;
    use sha2::{Digest, Sha256};
    let store = store(ANY, ANY, LONG_MS);
    let der = |n: u32| certificate(["Device CA", "other"][n as usize % 2], n);
    for n in 0..1_000 {
        insert_certified(&store, n, &der(n), 0);
        insert_certified(&store, n + 1_000, &der(n), 0);
    }
    insert(&store, 5_000, b"", 0);
    let has = |n: u32| {
        (
            held(&store, n, 0).is_some(),
            held(&store, n + 1_000, 0).is_some(),
        )
    };
    assert_eq!(
        store.revoke(&[Selector::Sha256(&Sha256::digest(der(3)).into())]),
        2
    );
    assert_eq!(
        store.revoke(&[Selector::Sha1(&Sha1::digest(der(5)).into())]),
        2
    );
    let odd = der(7);
    let (name, serial) = crate::issuer_and_serial(&odd).unwrap();
    assert_eq!(store.revoke(&[Selector::Serial(name, serial)]), 2);
    assert_eq!(
        [has(3), has(5), has(7), has(9)],
        [(false, false), (false, false), (false, false), (true, true)]
    );
    assert_eq!(
        store.revoke(&[Selector::Sha256(&[0; 32]), Selector::Serial(name, b"x")]),
        0
    );
    // The name is written in other letters.
    let written = certificate("device  ca", 0);
    let (name, _) = crate::issuer_and_serial(&written).unwrap();
    assert_eq!(store.revoke(&[Selector::Issuer(name)]), 1_000);
    assert_eq!((store.sessions(), store.certificates()), (995, 497));
    assert!(held(&store, 5_000, 0).is_some());
    assert_eq!(store.issuers().len(), 1);
}

#[test]
fn a_certificate_with_thousands_of_sessions_is_revoked_whole() {
    let store = store(ANY, ANY, LONG_MS);
    let der = certificate("ca", 1);
    for n in 0..3_000 {
        insert_certified(&store, n, &der, 0);
    }
    let (name, _) = crate::issuer_and_serial(&der).unwrap();
    assert_eq!(store.revoke(&[Selector::Issuer(name)]), 3_000);
    assert_eq!((store.sessions(), store.certificates()), (0, 0));
}

#[test]
fn what_is_no_certificate_is_kept_as_well() {
    let store = store(ANY, ANY, LONG_MS);
    for n in 0..100u32 {
        insert_certified(&store, n, &[&n.to_be_bytes()[..], &[1; 60]].concat(), 0);
    }
    tidy(&store, 0);
    assert_eq!(store.certificates(), 100);
    assert_eq!(held(&store, 7, 0).unwrap().1[..4], 7u32.to_be_bytes());
    use sha2::{Digest, Sha256};
    let seven = [&7u32.to_be_bytes()[..], &[1; 60]].concat();
    assert_eq!(
        store.revoke(&[Selector::Sha256(&Sha256::digest(&seven).into())]),
        1
    );
}

#[test]
fn the_bound_in_bytes_is_kept_at_every_moment_with_sizes_that_drift() {
    let store = store(2 * MIB, ANY, LONG_MS);
    let mut now_ms = 0;
    for size in (0..8_000).step_by(97) {
        for n in 0..400 {
            now_ms += 10;
            insert(&store, size * 1_000 + n, &vec![3; size as usize], now_ms);
            // A few survivors of each size.
            if n % 100 == 0 {
                now_ms += 1_000;
                use_it(&store, size * 1_000 + n, now_ms);
            }
            assert!(store.bytes() <= 2 * MIB);
        }
    }
    let counts = store.counters().read();
    assert_eq!(counts.refused_total(), 0);
    assert!(counts.moved > 100, "{counts:?}");
    let held = store.order.lock().slab.free_bytes() as u64;
    assert!(held < MIB / 2, "{held} bytes are free");
}

#[test]
fn a_narrower_bound_is_kept_after_a_few_slices() {
    let store = store(64 * MIB, ANY, LONG_MS);
    for n in 0..200_000 {
        insert(&store, n, b"", 0);
    }
    assert!(store.bytes() > 20 * MIB);
    store.set_limits(Limits {
        max_bytes: MIB,
        ..store.limits()
    });
    insert(&store, 200_000, b"", 0);
    tidy(&store, 0);
    assert!(store.bytes() <= MIB, "{}", store.bytes());
    assert!(store.sessions() > 6_000, "{}", store.sessions());
    store.set_limits(Limits {
        max_sessions: 10,
        ..store.limits()
    });
    tidy(&store, 0);
    assert_eq!(store.sessions(), 10);
    while store.clear(100) > 0 {}
    tidy(&store, 0);
    assert!(store.bytes() < 64 * 1024, "{}", store.bytes());
}

#[test]
fn what_is_larger_than_the_store_takes_is_refused_and_counted() {
    let store = store(ANY, ANY, LONG_MS);
    let refused =
        |certificate: Option<&[u8]>, tail: &[u8]| try_insert(&store, 1, certificate, tail, 0);
    assert_eq!(
        refused(None, &[1; MAX_SESSION_BYTES]),
        Err(Refusal::TooLarge)
    );
    assert_eq!(refused(None, &[1; MAX_SESSION_BYTES - 98]), Ok(()));
    assert_eq!(
        refused(Some(&[1; MAX_CERTIFICATE + 1]), b""),
        Err(Refusal::TooLarge)
    );
    assert_eq!(refused(Some(&[1; MAX_CERTIFICATE]), b""), Ok(()));
    assert_eq!(held(&store, 1, 0).unwrap().1.len(), MAX_CERTIFICATE);
    store.set_limits(Limits {
        lifetime_ms: 0,
        ..store.limits()
    });
    assert_eq!(refused(None, b""), Err(Refusal::Lifetime));
    store.set_limits(Limits {
        lifetime_ms: 1000,
        max_bytes: 90,
        ..store.limits()
    });
    assert_eq!(refused(None, b""), Err(Refusal::NoRoom));
    assert_eq!(store.counters().read().refused, [2, 1, 0, 0, 1, 0]);
}

#[test]
fn any_key_will_do() {
    let store = store(ANY, ANY, 1000);
    let long = vec![1; 7_000];
    let keys: [&[u8]; 4] = [b"", b"short", &id(5), &long];
    for (n, key) in keys.iter().enumerate() {
        let new = NewSession {
            key: SessionKey::Other(key),
            secret: &[0; 48],
            template: None,
            certificate: None,
            tail: &[n as u8; 3],
        };
        assert_eq!(store.insert(new, 0), Ok(()));
    }
    insert(&store, 5, b"by id", 0);
    for (n, key) in keys.iter().enumerate() {
        let tail = store.lookup(SessionKey::Other(key), 0, |s| s.tail.to_vec());
        assert_eq!(tail, Some(vec![n as u8; 3]));
    }
    assert_eq!(held(&store, 5, 0).unwrap().2, b"by id");
    let mut others = 0;
    store.for_each_key(|key| others += u32::from(matches!(key, SessionKey::Other(_))));
    assert_eq!((others, store.sessions()), (4, 5));
    assert!(store.delete(SessionKey::Other(b"short")));
    assert!(store.peek(SessionKey::Other(b"short"), 0, |_| ()).is_none());
}

#[test]
fn replacing_keeps_one_session() {
    let store = store(ANY, 2, LONG_MS);
    insert(&store, 1, b"old", 0);
    insert(&store, 2, b"", 0);
    insert(&store, 1, b"new", 0);
    assert_eq!((store.sessions(), store.counters().read().evicted), (2, 0));
    assert_eq!(held(&store, 1, 0).unwrap().2, b"new");
    insert(&store, 3, b"", 0);
    assert_eq!(survivors(&store, 0..4), [1, 3]);
}

#[test]
fn sessions_expire_in_whatever_order_they_came() {
    let store = store(ANY, ANY, 1000);
    for n in 0..1_000 {
        let born_ms = 10_000 - u64::from(n * 7 % 1_000);
        let arrival = if n % 2 == 0 {
            Arrival::Live
        } else {
            Arrival::Replayed
        };
        assert_eq!(
            restore(&store, n, born_ms, arrival, 10_000),
            Restored::Stored
        );
    }
    for now_ms in (10_000..11_000).step_by(100) {
        tidy(&store, now_ms);
        let expected = (0..1_000u32).filter(|n| {
            let born = 10_000 - u64::from(n * 7 % 1_000);
            (now_ms / TICK_MS - born / TICK_MS) * TICK_MS < 1_000
        });
        assert_eq!(store.sessions(), expected.count() as u64, "{now_ms}");
    }
    tidy(&store, 11_000);
    assert_eq!(
        (store.sessions(), store.counters().read().expired),
        (0, 1_000)
    );
}

#[test]
fn the_age_of_the_oldest_session_is_known() {
    let store = store(ANY, ANY, LONG_MS);
    assert_eq!(store.oldest_ms(10_000), None);
    for (n, born_ms) in [(1, 9_000), (2, 7_000), (3, 9_500)] {
        restore(&store, n, born_ms, Arrival::Live, 10_000);
    }
    assert_eq!(store.oldest_ms(10_000), Some(3_000));
    store.delete(SessionKey::Id(&id(2)));
    assert_eq!(store.oldest_ms(10_000), Some(1_000));
}

#[test]
fn old_sessions_that_were_moved_among_young_ones_expire_in_time() {
    let store = store(ANY, ANY, 100_000);
    for n in 0..40_000 {
        insert(&store, n, b"", if n < 20_000 { 0 } else { 50_000 });
    }
    // There are fewer old sessions, so these are moved.
    for n in (0..40_000).filter(|n| n % if *n < 20_000 { 100 } else { 50 } != 0) {
        store.delete(SessionKey::Id(&id(n)));
    }
    tidy(&store, 50_000);
    assert!(store.counters().read().moved > 100);
    tidy(&store, 100_000);
    assert_eq!(store.sessions(), 400);
    tidy(&store, 150_000);
    assert_eq!(store.sessions(), 0);
}

#[test]
fn an_expired_session_is_never_handed_out_and_is_not_counted_as_evicted() {
    let store = store(ANY, 3, 1000);
    insert(&store, 1, b"", 0);
    insert(&store, 2, b"", 500);
    insert(&store, 3, b"", 500);
    assert!(held(&store, 1, 900).is_some());
    assert!(held(&store, 1, 1000).is_none());
    assert!(!use_it(&store, 1, 1000));
    insert(&store, 4, b"", 1000);
    let counts = store.counters().read();
    assert_eq!((counts.expired, counts.evicted), (1, 0));
    assert_eq!((store.expire(1500, 1), store.expire(1500, 10)), (1, 1));
    assert_eq!(store.sessions(), 1);
}

#[test]
fn pages_hold_each_session_once_whatever_comes_and_goes() {
    let store = store(ANY, ANY, LONG_MS);
    for n in 0..5_000 {
        insert(&store, n, b"tail", 0);
    }
    let names: std::collections::HashMap<_, _> = (0..20_000).map(|n| (id(n), n)).collect();
    let (mut met, mut from, mut pages) = (vec![0; 20_000], Some(0), 0u32);
    while let Some(position) = from {
        let mut on_page = 0;
        from = store.page(position, 100, 200, |listed| {
            let SessionKey::Id(id) = listed.key else {
                panic!("no id")
            };
            let n = names[id];
            met[n as usize] += 1;
            on_page += 1;
            assert_eq!(
                (listed.session.tail, listed.session.secret[0]),
                (&b"tail"[..], n as u8)
            );
        });
        assert!(on_page <= 200);
        pages += 1;
        if pages % 5 == 0 {
            // Meanwhile the table grows, and even numbers go.
            (5_000..)
                .skip(pages as usize * 20)
                .take(100)
                .for_each(|n| insert(&store, n, b"tail", 0));
            store.delete(SessionKey::Id(&id(pages * 2)));
        }
    }
    assert!(pages >= 25);
    assert!((1..5_000).step_by(2).all(|n| met[n] == 1));
    assert!(met.iter().all(|times| *times <= 1));
}

#[test]
fn the_age_at_last_use_is_listed() {
    let store = store(ANY, ANY, LONG_MS);
    insert(&store, 1, b"", 0);
    let listed = |now_ms| {
        let mut age = None;
        store.page(0, 10, now_ms, |listed| {
            age = Some((listed.age_ms, listed.age_at_last_use_ms))
        });
        age
    };
    assert_eq!(listed(5_000), Some((5_000, None)));
    assert!(use_it(&store, 1, 40_000));
    let (age_ms, used_ms) = listed(90_000).unwrap();
    assert_eq!(age_ms, 90_000);
    assert!((30_000..=40_000).contains(&used_ms.unwrap()));
}

#[test]
fn templates_go_with_their_last_session() {
    let store = store(ANY, ANY, 1000);
    insert(&store, 1, b"", 0);
    insert(&store, 2, b"", 0);
    assert_eq!(store.templates(), 1);
    store.delete(SessionKey::Id(&id(1)));
    assert_eq!(store.templates(), 1);
    store.clear(10);
    assert_eq!(store.templates(), 0);
    // The same holds for a template of a refused session.
    assert!(try_insert(&store, 1, None, &[0; 10_000], 0).is_err());
    assert_eq!(store.templates(), 0);
}

#[test]
fn what_is_replayed_takes_no_place_of_others() {
    let store = store(ANY, 2, 1000);
    insert(&store, 0, b"", 500);
    assert_eq!(
        restore(&store, 0, 400, Arrival::Replayed, 500),
        Restored::Known
    );
    assert_eq!(
        restore(&store, 1, 400, Arrival::Replayed, 500),
        Restored::Stored
    );
    assert_eq!(
        restore(&store, 2, 300, Arrival::Replayed, 500),
        Restored::NoRoom
    );
    assert_eq!(
        restore(&store, 3, 500, Arrival::Live, 500),
        Restored::Stored
    );
    assert_eq!(
        restore(&store, 4, 100, Arrival::Live, 1100),
        Restored::NoRoom
    );
    assert_eq!((store.sessions(), store.counters().read().evicted), (2, 1));
    assert_eq!(store.counters().read().inserts, 1);
    // The replayed session is the oldest.
    assert_eq!(survivors(&store, 0..5), [0, 3]);
}

#[test]
fn an_empty_store_takes_next_to_nothing() {
    let store = store(1 << 40, ANY, LONG_MS);
    assert_eq!(store.bytes(), 0);
    assert!(
        size_of::<ServerStore<u8>>() < 6 * 1024,
        "{}",
        size_of::<ServerStore<u8>>()
    );
    assert!(!use_it(&store, 1, 0));
    assert!(!store.tidy(0));
}

#[test]
fn births_wrap_around_and_clocks_may_be_behind() {
    let wrap_ms = u64::from(u32::MAX) * TICK_MS;
    let store = store(ANY, ANY, 1000);
    insert(&store, 1, b"", wrap_ms - 500);
    assert!(held(&store, 1, wrap_ms + 400).is_some());
    assert!(held(&store, 1, wrap_ms + 500).is_none());
    // A session from the future.
    insert(&store, 2, b"", wrap_ms + 5_000);
    assert!(held(&store, 2, wrap_ms).is_some());
    tidy(&store, wrap_ms + 3_000);
    assert_eq!(store.sessions(), 1);
}

#[test]
fn lookups_go_on_while_sessions_come_and_go() {
    let store = store(400_000, ANY, LONG_MS);
    let certificate = |n: u32| certificate("ca", n % 50);
    std::thread::scope(|threads| {
        for _ in 0..2 {
            threads.spawn(|| {
                for n in (0..2_000).cycle().take(100_000) {
                    let der = if n % 3 == 0 {
                        certificate(n)
                    } else {
                        Vec::new()
                    };
                    let tail = vec![n as u8; (n % 500) as usize];
                    let found = held(&store, n, 0);
                    assert!(found.is_none_or(|found| found == (n as u8, der, tail)));
                }
            });
        }
        for round in 0..10 {
            for n in 0..2_000 {
                let der = certificate(n);
                let der = (n % 3 == 0).then_some(&der[..]);
                let tail = vec![n as u8; (n % 500) as usize];
                _ = try_insert(&store, n, der, &tail, 0);
                if n % 7 == round % 7 {
                    store.delete(SessionKey::Id(&id(n)));
                }
                if n % 100 == 0 {
                    store.tidy(0);
                }
            }
        }
    });
    assert!(store.counters().read().moved > 0);
}

/// Compressed, it has another slot, and the former one is wiped. Who looks up has announced the bucket; who pages has
/// locked it.
#[test]
fn a_certificate_is_not_moved_while_it_is_read() {
    let full = || {
        let store = store(MIB / 4, ANY, LONG_MS);
        (0..200).for_each(|n| insert_certified(&store, n, &certificate("ca", n), 0));
        store
    };
    let (looked_up, paged) = (full(), full());
    std::thread::scope(|threads| {
        let read = |store, session: Session<u8>| {
            let read = session.certificate.unwrap();
            let der = read.der().into_owned();
            let tidies = threads.spawn(move || tidy(store, 0));
            std::thread::sleep(std::time::Duration::from_millis(200));
            assert!(!tidies.is_finished());
            assert_eq!(*read.der(), der);
        };
        let found = looked_up.lookup(SessionKey::Id(&id(0)), 0, |session| {
            read(&looked_up, session)
        });
        assert!(found.is_some());
        let mut is_first = true;
        paged.page(0, 1, 0, |listed| {
            if std::mem::take(&mut is_first) {
                read(&paged, listed.session);
            }
        });
        assert!(!is_first);
    });
}

/// Their issuers would be known by number, and would take more than there is room for.
#[test]
fn long_names_of_authorities_do_not_exceed_the_bound() {
    fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
        let length = (value.len() as u16).to_be_bytes();
        [&[tag, 0x82], &length[..], value].concat()
    }
    let store = store(512 * 1024, ANY, LONG_MS);
    for n in 0..200u32 {
        let text = [n.to_string().as_bytes(), &[b'n'; 20_000]].concat();
        let attribute = [&[6, 3, 0x55, 4, 3][..], &tlv(12, &text)].concat();
        let name = tlv(0x30, &tlv(0x31, &tlv(0x30, &attribute)));
        let fields = [&[2, 1, 1, 0x30, 0][..], &name].concat();
        let der = tlv(0x30, &tlv(0x30, &fields));
        insert_certified(&store, n, &der, 0);
        assert!(store.bytes() <= 512 * 1024, "{} after {n}", store.bytes());
        let issuer_bytes = store.order.lock().books.issuer_bytes();
        assert_eq!(issuer_bytes, 0);
        assert_eq!(store.revoke(&[Selector::Issuer(&name)]), 1);
        insert_certified(&store, n, &der, 0);
    }
}

#[test]
fn certificates_with_one_serial_number_do_not_slow_each_other_down() {
    let store = store(ANY, ANY, LONG_MS);
    let der = |n: u32| [&certificate("ca", 1)[..], &n.to_be_bytes()].concat();
    // The length has to be right for it to be a certificate.
    let der = |n: u32| {
        let mut der = der(n);
        let length = (der.len() as u16 - 4).to_be_bytes();
        der[2..4].copy_from_slice(&length);
        der
    };
    assert!(crate::issuer_and_serial(&der(1)).is_some());
    for n in 0..2_000 {
        insert_certified(&store, n, &der(n), 0);
        insert_certified(&store, n + 10_000, &der(n), 0);
    }
    assert_eq!((store.certificates(), store.certified()), (2_000, 4_000));
    let spills = store.order.lock().books.serial_spills();
    assert!(spills < 100, "{spills}");
    insert_certified(&store, 50_000, &certificate("ca", 2), 0);
    let one = der(1);
    let (name, serial) = crate::issuer_and_serial(&one).unwrap();
    assert_eq!(store.revoke(&[Selector::Serial(name, serial)]), 4_000);
    assert_eq!((store.sessions(), store.certificates()), (1, 1));
}

#[test]
fn few_certificates_that_are_left_of_many_get_lower_numbers() {
    use sha2::{Digest, Sha256};
    let store = store(64 * MIB, ANY, LONG_MS);
    for n in 0..30_000 {
        insert_certified(&store, n, &certificate("ca", n), 0);
        insert_certified(&store, n + 100_000, &certificate("ca", n), 0);
    }
    tidy(&store, 0);
    store.set_limits(Limits {
        max_bytes: 400 * 1024,
        ..store.limits()
    });
    tidy(&store, 0);
    assert!(store.bytes() <= 400 * 1024);
    // As many bytes as in a store that never had more.
    let left = store.sessions();
    assert!(left > 600, "{left}");
    let last = store.order.lock().books.last();
    assert!(u64::from(last) <= 4 * store.certificates() + 1024, "{last}");
    let mut found = 0;
    for n in (0..30_000).chain(100_000..130_000) {
        if let Some((_, der, _)) = held(&store, n, 0) {
            assert_eq!(der, certificate("ca", n % 100_000));
            found += 1;
        }
    }
    assert_eq!(found, left);
    // New certificates come, and the renumbered ones are found by their fingerprints and contents.
    let known = (0..30_000).filter(|n| held(&store, *n, 0).is_some());
    let known: Vec<u32> = known.take(100).collect();
    let certificates = store.certificates();
    for (at, n) in known.iter().enumerate() {
        insert_certified(&store, 200_000 + at as u32, &certificate("ca", *n), 0);
    }
    assert!(store.certificates() <= certificates);
    let fingerprint = Sha256::digest(certificate("ca", known[99])).into();
    assert!(store.revoke(&[Selector::Sha256(&fingerprint)]) >= 1);
    for n in 0..1_000 {
        insert_certified(&store, 300_000 + n, &certificate("new", n), 0);
        assert_eq!(
            held(&store, 300_000 + n, 0).unwrap().1,
            certificate("new", n)
        );
        store.tidy(0);
    }
    assert!(store.bytes() <= 400 * 1024);
    while store.clear(100) > 0 {}
    assert_eq!((store.certificates(), store.certified()), (0, 0));
}

/// A certificate that is revoked must not hide behind those that were looked at.
#[test]
fn a_walk_meets_certificates_that_get_other_numbers_meanwhile() {
    let store = store(ANY, ANY, LONG_MS);
    for n in 0..8_000 {
        insert_certified(&store, n, &certificate("ca", n), 0);
    }
    // The last certificates stay, and the first numbers are free.
    for n in (0..7_000).filter(|n| n % 100 != 0) {
        store.delete(SessionKey::Id(&id(n)));
    }
    for n in 7_000..7_900 {
        store.delete(SessionKey::Id(&id(n)));
    }
    let one = certificate("ca", 0);
    let (name, _) = crate::issuer_and_serial(&one).unwrap();
    let certificates = store.certificates.get().unwrap();
    let (mut walk, mut met) = (Walk::default(), std::collections::HashSet::new());
    while !walk.is_over() {
        let order = store.order.lock();
        let (books, selectors) = (&order.books, [Selector::Issuer(name)]);
        let meant = Meant::new(&selectors);
        let mut slice = Slice::begin();
        let found = certificates.walk(books, &store.directory, &meant, &mut walk, &mut slice);
        drop(order);
        met.extend(found);
        if met.len() == 60 {
            tidy(&store, 0);
        }
    }
    let order = store.order.lock();
    assert!(order.books.last() < 1_024 && store.certificates() == 170);
    let mut numbers = std::collections::HashSet::new();
    for n in 0..8_000 {
        let id = id(n);
        let key = SessionKey::Id(&id);
        if let Some(slot) = store.find_slot(&order, store.hash(key), key) {
            // SAFETY: the slot was found in the index, and the order lock is held.
            numbers.extend(unsafe { store.slot(slot.0) }.certificate());
        }
    }
    assert_eq!(numbers.len(), 170);
    assert!(numbers.is_subset(&met));
}

#[test]
fn what_has_no_fingerprint_yet_is_found_all_the_same() {
    use sha2::{Digest, Sha256};
    let store = store(ANY, ANY, LONG_MS);
    for n in 0..500 {
        insert_certified(&store, n, &certificate("ca", n), 0);
    }
    let certificates = store.certificates.get().unwrap();
    let fingerprint = Sha256::digest(certificate("ca", 400)).into();
    let selectors = [Selector::Sha256(&fingerprint)];
    let (mut walk, meant) = (Walk::default(), Meant::new(&selectors));
    let order = store.order.lock();
    let mut found = None;
    while found.is_none() && !walk.is_over() {
        let mut slice = Slice::begin();
        let books = &order.books;
        found = certificates.walk(books, &store.directory, &meant, &mut walk, &mut slice);
    }
    assert_eq!(found, Some(401));
}

/// A certificate whose validity ends at this time.
fn ending_certificate(serial: u32, last: &str) -> Vec<u8> {
    let tlv = |tag: u8, value: &[u8]| {
        let length = (value.len() as u16).to_be_bytes();
        match value.len() {
            0..128 => [&[tag, length[1]], value].concat(),
            128..256 => [&[tag, 0x81, length[1]], value].concat(),
            _ => [&[tag, 0x82], &length[..], value].concat(),
        }
    };
    let times = [tlv(23, b"200101000000Z"), tlv(24, last.as_bytes())];
    let attribute = [tlv(6, &[0x55, 4, 3]), tlv(12, b"ca")].concat();
    let fields = [
        tlv(2, &[&[1], &serial.to_be_bytes()[..]].concat()),
        tlv(0x30, &[]),
        tlv(0x30, &tlv(0x31, &tlv(0x30, &attribute))),
        tlv(0x30, &times.concat()),
        tlv(4, &[9; 400]),
    ];
    tlv(0x30, &tlv(0x30, &fields.concat()))
}

/// 2026-01-02 03:04:05.
const LAST_SECOND: u64 = 1_767_323_045;

#[test]
fn a_session_is_not_found_after_its_certificate_has_ended_and_stays() {
    let store = store(4 * MIB, ANY, LONG_MS);
    let wall = &crate::clock::set_wall::WALL_S;
    wall.set(Some(LAST_SECOND));
    for n in 0..3_000 {
        insert_certified(&store, n, &ending_certificate(n, "20260102030405Z"), 0);
    }
    insert_certified(
        &store,
        9_000,
        &ending_certificate(9_000, "20260102030406Z"),
        0,
    );
    // Compressed or not.
    for is_tidied in [false, true] {
        wall.set(Some(LAST_SECOND));
        assert!(use_it(&store, 7, 0));
        wall.set(Some(LAST_SECOND + 1));
        assert!(!use_it(&store, 7, 0));
        assert!(store.peek(SessionKey::Id(&id(7)), 0, |_| ()).is_none());
        assert!(use_it(&store, 9_000, 0));
        store.set_trust(Trust {
            allows_expired: true,
            ..Trust::default()
        });
        assert!(use_it(&store, 7, 0));
        store.set_trust(Trust::default());
        if !is_tidied {
            tidy(&store, 0);
        }
    }
    let counts = store.counters().read();
    assert_eq!(counts.certificate_misses, [2, 0, 0]);
    assert_eq!((counts.hits, counts.misses), (6, 2));
    assert_eq!(store.sessions(), 3_001);
    let mut left = Vec::new();
    store.page(0, 10_000, 0, |listed| left.push(listed.certificate_left_s));
    left.sort_unstable();
    assert_eq!((left[0], left[3_000]), (Some(0), Some(0)));
    wall.set(Some(LAST_SECOND - 10));
    let mut left = Vec::new();
    store.page(0, 10_000, 0, |listed| left.push(listed.certificate_left_s));
    left.sort_unstable();
    assert_eq!((left[0], left[3_000]), (Some(10), Some(11)));
}

#[test]
fn what_has_ended_or_is_revoked_is_not_restored() {
    let store = store(4 * MIB, ANY, LONG_MS);
    crate::clock::set_wall::WALL_S.set(Some(LAST_SECOND + 1));
    let ended = ending_certificate(1, "20260102030405Z");
    let revoked = ending_certificate(2, "20270102030405Z");
    let (issuer, serial) = crate::issuer_and_serial(&revoked).unwrap();
    let issuer = crate::IssuerHash::of(issuer);
    let lists = Arc::new(crate::Lists::new());
    let restore = |n: u32, der: &[u8]| {
        let id = id(n);
        let session = NewSession {
            key: SessionKey::Id(&id),
            secret: &[7; 48],
            template: None,
            certificate: Some(der),
            tail: b"",
        };
        store.restore(session, 0, Arrival::Live, 0)
    };
    store.set_trust(Trust {
        lists: Some(Arc::clone(&lists)),
        ..Trust::default()
    });
    assert_eq!(restore(1, &ended), Restored::Expired);
    // The lists were not read yet, so the session is not found.
    assert_eq!(restore(2, &revoked), Restored::Stored);
    assert!(!use_it(&store, 2, 0));
    let known = |entries: &[u64]| {
        let of_issuer = crate::IssuerLists {
            current_until_s: u64::MAX,
            revoked: vec![entries.into()],
        };
        crate::Known::new([(issuer, of_issuer)], true)
    };
    lists.publish(known(&[issuer.certificate(serial)]));
    assert!(!use_it(&store, 2, 0));
    assert_eq!(restore(3, &revoked), Restored::Revoked);
    lists.publish(known(&[]));
    assert!(use_it(&store, 2, 0));
    assert_eq!(store.counters().read().certificate_misses, [0, 1, 1]);
}

#[test]
fn many_selectors_of_all_kinds_are_carried_out_at_once() {
    use sha2::{Digest, Sha256};
    let store = store(ANY, ANY, LONG_MS);
    let cas = ["one", "two", "three", "four"];
    for n in 0..800u32 {
        insert_certified(&store, n, &certificate(cas[n as usize % 4], n), 0);
    }
    // Only some certificates have their fingerprints in an index.
    tidy(&store, 0);
    for n in 800..1_600u32 {
        insert_certified(&store, n, &certificate(cas[n as usize % 4], n), 0);
    }
    let names = [certificate("ONE", 0), certificate(" Two ", 0)];
    let names: Vec<_> = names
        .iter()
        .map(|der| crate::issuer_and_serial(der).unwrap().0)
        .collect();
    let third: Vec<_> = (0..400).map(|n| certificate("three", 4 * n + 2)).collect();
    let fourth: Vec<[u8; 32]> = (0..400)
        .map(|n| Sha256::digest(certificate("four", 4 * n + 3)).into())
        .collect();
    let mut selectors: Vec<_> = names.iter().map(|name| Selector::Issuer(name)).collect();
    for der in &third[..399] {
        let (name, serial) = crate::issuer_and_serial(der).unwrap();
        selectors.push(Selector::Serial(name, serial));
    }
    selectors.extend(fourth[1..].iter().map(Selector::Sha256));
    assert_eq!(store.revoke(&selectors), 1_598);
    assert_eq!(survivors(&store, 0..1_600), [3, 1_598]);
}

#[test]
fn lookups_of_sessions_that_were_lost_are_distinguished_from_ids_that_nobody_knows() {
    let store = store(ANY, ANY, 1_000);
    for n in 0..1_000 {
        insert(&store, n, b"", 0);
    }
    for n in 0..100 {
        assert!(store.delete(SessionKey::Id(&id(n))));
        assert!(!use_it(&store, n, 0));
    }
    // Expired and not dropped yet, and afterwards.
    assert!(!use_it(&store, 500, 1_000));
    insert(&store, 5_000, b"", 1_000);
    store.expire(1_000, usize::MAX);
    for n in 100..200 {
        assert!(!use_it(&store, n, 1_000));
    }
    let counts = store.counters().read();
    // All but those whose place has the ghost of another session.
    assert!((120..=201).contains(&counts.lost_misses), "{counts:?}");
    let strangers = 20_000..21_000;
    strangers.for_each(|n| assert!(!use_it(&store, n, 1_000)));
    let after = store.counters().read();
    assert!(after.lost_misses - counts.lost_misses < 5, "{after:?}");
    assert_eq!(after.misses, 1_201);
    assert_eq!(after.unknown_misses(), 1_201 - after.lost_misses);
}
