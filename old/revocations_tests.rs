//! What is read of certificates, beside what openssl reads.

use super::*;
use once_cell::sync::Lazy;
use proptest::prelude::*;
use std::fs;
use std::path::Path;
use std::process::Command;

fn openssl(folder: &Path, arguments: &str) -> String {
    let run = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .output()
        .expect("openssl is installed");
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    String::from_utf8(run.stdout).unwrap()
}

/// Name and number by openssl's word: where they are, and what the number is.
fn seen_by_openssl<'a>(folder: &Path, certificate: &'a [u8]) -> (&'a [u8], String) {
    fs::write(folder.join("der"), certificate).unwrap();
    let parsed = openssl(folder, "asn1parse -inform DER -in der");
    // Such as `    4:d=1  hl=4 l= 502 cons: SEQUENCE`, in the signed part.
    let lines = parsed.lines().filter(|line| line.contains(":d=2 "));
    let mut fields = lines.skip_while(|line| !line.contains("INTEGER"));
    let number = fields
        .next()
        .unwrap()
        .rsplit(':')
        .next()
        .unwrap()
        .to_owned();
    let name = fields.nth(1).unwrap();
    let after = |mark: &str| {
        let rest = name.split(mark).nth(1).unwrap().trim_start();
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        digits.parse::<usize>().unwrap()
    };
    let from: usize = name.trim().split(':').next().unwrap().parse().unwrap();
    (
        &certificate[from..from + after("hl=") + after(" l=")],
        number,
    )
}

/// A number as openssl writes it.
fn in_hex(number: &[u8]) -> String {
    let is_negative = number[0] >= 0x80;
    let mut carry = is_negative;
    let mut digits: Vec<u8> = number.to_vec();
    for byte in digits.iter_mut().rev().filter(|_| is_negative) {
        *byte = (!*byte).wrapping_add(u8::from(carry));
        carry &= *byte == 0;
    }
    let hex: String = digits.iter().map(|byte| format!("{byte:02X}")).collect();
    let hex = match hex.trim_start_matches("00") {
        "" => "00",
        hex => hex,
    };
    format!("{}{hex}", if is_negative { "-" } else { "" })
}

/// Made once: it takes a while.
static MADE: Lazy<Vec<Vec<u8>>> = Lazy::new(|| certificates(tempfile::tempdir().unwrap().path()));

/// Made by openssl: the keys' kinds, and numbers short, long, negative and 0.
fn certificates(folder: &Path) -> Vec<Vec<u8>> {
    let large = "0xF123456789ABCDEF0123456789ABCDEF01234567";
    let make = [
        ("rsa:2048", "/CN=one", "1"),
        ("rsa:2048", "/C=DE/O=Größe/OU=a/OU=b/CN=two", large),
        ("ec:p", "/CN=three", "-5"),
        ("ec:p", "/CN=four", "-32768"),
        ("ec:p", "/CN=five/emailAddress=a@example.org", "128"),
        ("ed25519", "/CN=six", "0"),
    ];
    openssl(
        folder,
        "genpkey -genparam -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out p",
    );
    let made = make.map(|(key, name, serial)| {
        let request = format!("req -x509 -newkey {key} -nodes -keyout key -out cert -outform DER -days 1 -utf8 -subj {name} -set_serial {serial}");
        openssl(folder, &request);
        fs::read(folder.join("cert")).unwrap()
    });
    made.into()
}

/// The same without a version: version 1, as old authorities write it. Its signature is not asked for.
fn of_version_1(certificate: &[u8]) -> Vec<u8> {
    fn sequence(content: &[u8]) -> Vec<u8> {
        let length = (content.len() as u16).to_be_bytes();
        [&[0x30, 0x82], &length[..], content].concat()
    }
    let signed = &certificate[8..];
    let version = [0xa0, 3, 2, 1, 2];
    assert_eq!(signed[..5], version);
    let length = usize::from(u16::from_be_bytes([certificate[6], certificate[7]]));
    let without = sequence(&signed[5..length]);
    sequence(&[&without, &signed[length..]].concat())
}

#[test]
fn names_and_numbers_are_those_that_openssl_reads() {
    let folder = tempfile::tempdir().unwrap();
    let mut numbers = Vec::new();
    for certificate in &*MADE {
        let seen = seen_by_openssl(folder.path(), certificate);
        let (name, number) = issuer_and_serial(certificate).unwrap();
        assert_eq!((name, in_hex(number)), seen);
        numbers.push(seen.1);
        // Long certificates have two bytes of length in both places.
        if certificate[1] == 0x82 && certificate[5] == 0x82 {
            let old = of_version_1(certificate);
            fs::write(folder.path().join("old"), &old).unwrap();
            let text = openssl(folder.path(), "x509 -inform DER -in old -noout -text");
            assert!(text.contains("Version: 1 "), "{text}");
            assert_eq!(issuer_and_serial(&old).unwrap(), (name, number));
            assert_eq!(seen_by_openssl(folder.path(), &old).0, name);
        }
    }
    let large = "F123456789ABCDEF0123456789ABCDEF01234567";
    assert_eq!(numbers, ["01", large, "-05", "-8000", "80", "00"]);
}

#[test]
fn a_certificate_is_meant_by_what_it_is() {
    for certificate in &*MADE {
        let (name, serial) = issuer_and_serial(certificate).unwrap();
        let (name, serial): (Box<[u8]>, Box<[u8]>) = (name.into(), serial.into());
        let all = [
            Wanted::Sha256(Sha256::digest(certificate).into()),
            Wanted::Sha1(Sha1::digest(certificate).into()),
            Wanted::Issuer { name: name.clone() },
            Wanted::Serial { name, serial },
        ];
        for wanted in all {
            assert!(wanted.matches(certificate));
            assert_eq!(Wanted::decode(&wanted.encode()), Some(wanted.clone()));
            let mut revocations = Revocations::default();
            revocations.revoke(wanted.clone(), 1000, 2000);
            for other in &*MADE {
                let is_it = other == certificate;
                assert_eq!(wanted.matches(other), is_it);
                assert_eq!(revocations.is_revoked(&[0; 32], 1000, Some(other)), is_it);
            }
        }
    }
}

#[test]
fn what_is_no_certificate_has_no_issuer() {
    let made = &MADE;
    let (name, _) = issuer_and_serial(&made[0]).unwrap();
    let end = made[0]
        .windows(name.len())
        .position(|part| part == name)
        .unwrap()
        + name.len();
    for length in 0..end {
        assert_eq!(issuer_and_serial(&made[0][..length]), None, "{length}");
    }
    let indefinite = [&[0x30, 0x80], &made[0][4..], &[0, 0]].concat();
    let others: [&[u8]; 6] = [
        b"",
        b"garbage",
        &[0x30, 0],
        &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
        &[0xff; 100],
        &indefinite,
    ];
    for other in others {
        assert_eq!(issuer_and_serial(other), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_may_be_asked_for_an_issuer(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
        let wrapped = [&[0x30, bytes.len() as u8], &bytes[..]].concat();
        let twice = [&[0x30, wrapped.len() as u8], &wrapped[..]].concat();
        for bytes in [&bytes, &wrapped, &twice] {
            if let Some((name, number)) = issuer_and_serial(bytes) {
                prop_assert!(name.len() + number.len() <= bytes.len());
            }
            if let Some(wanted) = Wanted::decode(bytes) {
                prop_assert_eq!(&wanted.encode(), bytes);
            }
        }
    }
}
