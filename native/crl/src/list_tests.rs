use super::*;
use crate::testing::{crl, entry, extension, name, pem, tlv, Crl};
use proptest::prelude::*;

fn hash(authority: &str, serial: &[u8]) -> u64 {
    IssuerHash::of(&name(authority)).certificate(serial)
}

fn revoked(list: &List, authority: &str) -> Vec<u64> {
    let of = IssuerHash::of(&name(authority));
    let mut found = list.revoked.iter().filter(|(other, _)| *other == of);
    found
        .next()
        .map_or(Vec::new(), |(_, hashes)| hashes.to_vec())
}

fn sorted(mut hashes: Vec<u64>) -> Vec<u64> {
    hashes.sort_unstable();
    hashes
}

#[test]
fn a_list_is_read_as_der_and_as_pem() {
    let der = crl(
        "ca",
        &[entry(&[5], &[]), entry(&[0, 200], &[])],
        Crl::default(),
    );
    let text = [b"Certificate Revocation List (CRL):\r\n", &pem(&der)[..]].concat();
    for file in [der.clone(), text] {
        let lists = parse(&file).unwrap();
        assert_eq!(lists.len(), 1);
        let list = &lists[0];
        assert_eq!(list.issuer, IssuerHash::of(&name("ca")));
        assert_eq!(*list.issuer_name, *name("ca"));
        assert_eq!(
            (list.this_update_s, list.next_update_s),
            (1_767_323_045, Some(1_767_409_445))
        );
        assert_eq!((list.entries, list.is_delta), (2, false));
        let expected = sorted(vec![hash("ca", &[5]), hash("ca", &[0, 200])]);
        assert_eq!(revoked(list, "ca"), expected);
    }
}

#[test]
fn a_file_may_have_several_lists_and_other_things_in_pem() {
    let [one, other] = ["one", "other"].map(|ca| crl(ca, &[], Crl::default()));
    let issuers = |file: &[u8]| -> Vec<_> {
        let lists = parse(file).unwrap();
        lists.iter().map(|list| list.issuer_name.to_vec()).collect()
    };
    let both = vec![name("one"), name("other")];
    assert_eq!(issuers(&[one.clone(), other.clone()].concat()), both);
    let certificate = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let file = [&pem(&one)[..], certificate, &pem(&other)].concat();
    assert_eq!(issuers(&file), both);
    assert_eq!(parse(certificate).unwrap(), []);
}

#[test]
fn a_list_need_not_have_entries_nor_an_end() {
    let der = crl(
        "ca",
        &[],
        Crl {
            has_next_update: false,
            ..Crl::default()
        },
    );
    let list = &parse(&der).unwrap()[0];
    assert_eq!((list.entries, list.next_update_s), (0, None));
    assert_eq!(revoked(list, "ca"), []);
}

#[test]
fn an_entry_that_takes_another_one_back_does_not_count() {
    let reason = |code: u8| extension(&[0x55, 0x1d, 21], false, &tlv(10, &[code]));
    let entries = [
        entry(&[1], &[reason(6)]),
        entry(&[2], &[reason(8)]),
        entry(&[3], &[]),
    ];
    let delta = extension(&[0x55, 0x1d, 27], true, &tlv(2, &[1]));
    let der = crl(
        "ca",
        &entries,
        Crl {
            extensions: vec![delta],
            ..Crl::default()
        },
    );
    let list = &parse(&der).unwrap()[0];
    assert!(list.is_delta);
    assert_eq!(
        revoked(list, "ca"),
        sorted(vec![hash("ca", &[1]), hash("ca", &[3])])
    );
}

#[test]
fn entries_of_an_indirect_list_are_of_the_authority_that_was_named_last() {
    let authority = |name_of: &str| {
        let names = tlv(0x30, &tlv(0xa4, &name(name_of)));
        extension(&[0x55, 0x1d, 29], true, &names)
    };
    let entries = [
        entry(&[1], &[]),
        entry(&[2], &[authority("One")]),
        entry(&[3], &[]),
        entry(&[4], &[authority("two")]),
        entry(&[5], &[authority("ca")]),
    ];
    let point = extension(&[0x55, 0x1d, 28], true, &tlv(0x30, &tlv(0x84, &[255])));
    let der = crl(
        "ca",
        &entries,
        Crl {
            extensions: vec![point],
            ..Crl::default()
        },
    );
    let list = &parse(&der).unwrap()[0];
    assert_eq!(
        revoked(list, "ca"),
        sorted(vec![hash("ca", &[1]), hash("ca", &[5])])
    );
    assert_eq!(
        revoked(list, "one"),
        sorted(vec![hash("one", &[2]), hash("one", &[3])])
    );
    assert_eq!(revoked(list, "two"), [hash("two", &[4])]);
    assert_eq!(*list.part, tlv(0x30, &tlv(0x84, &[255]))[..]);
}

#[test]
fn a_list_that_names_many_authorities_for_an_entry_is_refused() {
    let list = |authorities: usize| {
        let names = tlv(0xa4, &name("other")).repeat(authorities);
        let issuers = extension(&[0x55, 0x1d, 29], true, &tlv(0x30, &names));
        parse(&crl("ca", &[entry(&[1], &[issuers])], Crl::default()))
    };
    assert!(list(MAX_AUTHORITIES).is_ok());
    let error = "an entry names too many issuers of its certificate";
    assert_eq!(list(MAX_AUTHORITIES + 1), Err(error.into()));
}

/// Without a name, nobody knows whose certificates this entry and the following ones revoke.
#[test]
fn a_list_that_names_an_authority_in_another_form_is_refused() {
    let list = |names: &[Vec<u8>]| {
        let issuers = extension(&[0x55, 0x1d, 29], true, &tlv(0x30, &names.concat()));
        let entries = [entry(&[1], &[issuers]), entry(&[2], &[])];
        let der = crl("ca", &entries, Crl::default());
        parse(&[der, crl("ca", &[], Crl::default())].concat())
    };
    let uri = tlv(0x86, b"http://ca");
    let directory_name = tlv(0xa4, &name("other"));
    let found = &list(&[uri.clone(), directory_name]).unwrap()[0];
    let expected = sorted(vec![hash("other", &[1]), hash("other", &[2])]);
    assert_eq!(revoked(found, "other"), expected);
    for names in [vec![uri], vec![]] {
        let error = "an entry does not name the issuer of its certificate by a directory name";
        assert_eq!(list(&names), Err(error.into()));
    }
}

#[test]
fn entries_with_extensions_that_nobody_knows_count() {
    let unknown = extension(&[0x2a, 3], true, b"?");
    let entries = [entry(&[1], std::slice::from_ref(&unknown))];
    let der = crl(
        "ca",
        &entries,
        Crl {
            extensions: vec![unknown],
            ..Crl::default()
        },
    );
    assert_eq!(revoked(&parse(&der).unwrap()[0], "ca"), [hash("ca", &[1])]);
}

#[test]
fn a_file_that_was_cut_off_is_seen_at_every_length() {
    let entries: Vec<_> = (1..40).map(|n| entry(&[n], &[])).collect();
    let der = crl("ca", &entries, Crl::default());
    for length in 0..der.len() {
        assert!(parse(&der[..length]).is_err(), "{length}");
    }
    let text = pem(&der);
    let end = text.len() - "\n".len();
    for length in 0..end {
        assert!(parse(&text[..length]).is_err(), "{length}");
    }
    assert!(parse(&text[..end]).is_ok());
    let two = [&der[..], &der[..]].concat();
    assert!(parse(&two[..der.len() + 5]).is_err());
    // Something that follows.
    assert!(parse(&[&der[..], b"\n"].concat()).is_err());
}

#[test]
fn what_is_no_list_is_reported() {
    let list = crl("ca", &[], Crl::default());
    for file in [
        &b""[..],
        b"<html>404</html>",
        b"-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----\n",
        &[b"\xef\xbb\xbf", &pem(&list)[..], &pem(&list)].concat(),
        b"-----BEGIN X509 CRL-----\n-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n",
        &tlv(0x30, &[0; 200]),
        &[0x30, 0x84, 255, 255, 255, 255],
    ] {
        assert!(parse(file).is_err(), "{file:?}");
    }
}

#[test]
fn a_hundred_thousand_entries_take_eight_bytes_each() {
    let entries: Vec<_> = (0..100_000u32)
        .map(|n| entry(&[&[1], &n.to_be_bytes()[..]].concat(), &[]))
        .collect();
    let list = &parse(&crl("ca", &entries, Crl::default())).unwrap()[0];
    assert_eq!(list.entries, 100_000);
    let hashes = revoked(list, "ca");
    assert_eq!(hashes.len(), 100_000);
    assert!(hashes.is_sorted());
    assert!(hashes.binary_search(&hash("ca", &[1, 0, 1, 0, 7])).is_ok());
    assert!(hashes.binary_search(&hash("ca", &[1, 1, 1, 0, 7])).is_err());
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(bytes: Vec<u8>, at: prop::sample::Index, with: u8) {
        let _ = parse(&bytes);
        let mut der = crl("ca", &[entry(&[5], &[])], Crl::default());
        let at = at.index(der.len());
        der[at] = with;
        let _ = parse(&der);
    }
}
