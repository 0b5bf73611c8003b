//! Any client certificates, well-formed or not: names and serial numbers are read without harm, and what a store keeps,
//! compressed or not, comes back bit for bit and is found when it is revoked.

#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use rekindle_core::{
    canonical_name, is_same_name, issuer_and_serial, Limits, NewSession, Selector, ServerStore,
    SessionKey, Trust,
};
use std::collections::HashMap;

#[derive(Arbitrary, Debug)]
enum Certificate {
    Any(Vec<u8>),
    /// With a name of one part, of one of a few authorities, whatever the string's type is.
    Of {
        authority: u8,
        string_type: u8,
        serial: Vec<u8>,
        key: Vec<u8>,
    },
}

impl Certificate {
    fn der(self) -> Vec<u8> {
        let (authority, string_type, serial, key) = match self {
            Certificate::Any(der) => return der,
            Certificate::Of {
                authority,
                string_type,
                serial,
                key,
            } => (authority, string_type, serial, key),
        };
        let text =
            ["Device CA 1", "device ca 1", "another one", "\0D\0e"][usize::from(authority % 4)];
        let tag = [12, 19, 20, 22, 30, string_type][usize::from(string_type % 6)];
        let attribute = [tlv(6, &[0x55, 4, 3]), tlv(tag, text.as_bytes())].concat();
        let name = tlv(0x30, &tlv(0x31, &tlv(0x30, &attribute)));
        // Most certificates of an authority are alike.
        let rest = tlv(4, &[&[7; 300][..], &key].concat());
        let fields = [tlv(2, &serial), tlv(0x30, b""), name, rest].concat();
        tlv(0x30, &tlv(0x30, &fields))
    }
}

fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len();
    let header = match length {
        0..128 => vec![tag, length as u8],
        128..256 => vec![tag, 0x81, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    [&header[..], value].concat()
}

fn read(der: &[u8]) {
    assert_eq!(canonical_name(der), canonical_name(der));
    assert!(is_same_name(der, der));
    if let Some((name, serial)) = issuer_and_serial(der) {
        let range = der.as_ptr_range();
        let is_part = |part: &[u8]| part.is_empty() || range.contains(&part.as_ptr());
        assert!(is_part(name) && is_part(serial));
        assert!(name.len() + serial.len() < der.len());
    }
}

fuzz_target!(|certificates: Vec<Certificate>| {
    // There is little room, so that certificates are compressed.
    let store = ServerStore::<()>::new(Limits {
        max_bytes: 1 << 17,
        max_sessions: u64::MAX,
        lifetime_ms: 1_000_000,
    });
    // Lookups must find expired certificates as well.
    store.set_trust(Trust {
        allows_expired: true,
        ..Trust::default()
    });
    let mut held = HashMap::new();
    for (n, certificate) in certificates.into_iter().enumerate() {
        let (id, der) = ([n as u8; 32], certificate.der());
        read(&der);
        let new = NewSession {
            key: SessionKey::Id(&id),
            secret: &[0; 48],
            template: None,
            certificate: Some(&der),
            tail: b"",
        };
        if store.insert(new, 0).is_ok() {
            held.insert(id, der);
        }
        store.tidy(0);
    }
    while store.tidy(0) {}
    let find = |id: &[u8; 32]| {
        store.peek(SessionKey::Id(id), 0, |session| {
            session
                .certificate
                .map_or(Vec::new(), |found| found.der().into_owned())
        })
    };
    held.retain(|id, der| {
        let found = find(id);
        assert!(found.as_ref().is_none_or(|found| found == der));
        found.is_some()
    });
    assert_eq!(held.len() as u64, store.sessions());
    for der in held.values() {
        let Some((name, serial)) = issuer_and_serial(der) else {
            continue;
        };
        let is_meant = |other: &Vec<u8>| {
            issuer_and_serial(other)
                .is_some_and(|(issuer, own)| own == serial && is_same_name(issuer, name))
        };
        let others = |id: &[u8; 32]| find(id).is_some_and(|found| is_meant(&found));
        let meant = held.keys().filter(|id| others(id)).count() as u64;
        assert_eq!(store.revoke(&[Selector::Serial(name, serial)]), meant);
    }
    while store.clear(7) > 0 {}
    assert_eq!((store.certificates(), store.issuers().len()), (0, 0));
});
