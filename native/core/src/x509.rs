//! The fields that are read from a client's certificate: its issuer, serial number and end of validity (RFC 5280, 4.1).

use der::asn1::{AnyRef, GeneralizedTime, UtcTime};
use der::{Decode, Reader, SliceReader, Tag, Tagged};

/// The issuer's name, as it is in the certificate, and the value of the serial number in as few bytes as possible, without tag
/// and length. `None` if this is no certificate.
pub fn issuer_and_serial(certificate: &[u8]) -> Option<(&[u8], &[u8])> {
    let signed = Signed::of(certificate)?;
    Some((signed.issuer, signed.serial))
}

/// Whether a certificate is written in the form that its authority gave it: in DER, with the signature algorithm that the
/// signed part names, and with nothing behind it.
///
/// The signature covers only a part of a certificate. OTP accepts other forms of the rest, such as longer lengths or bytes at
/// the end. So a client could send one certificate in any number of forms, each with a fingerprint of its own.
pub fn is_canonical(certificate: &[u8]) -> bool {
    has_canonical_form(certificate).unwrap_or(false)
}

fn has_canonical_form(certificate: &[u8]) -> Option<bool> {
    let Signed {
        algorithm,
        mut validity_and_rest,
        mut behind,
        ends_certificate,
        ..
    } = Signed::of(certificate)?;
    sequence(AnyRef::decode(&mut validity_and_rest).ok()?)?;
    let is_same_algorithm = behind.tlv_bytes().ok()? == algorithm;
    let signature = AnyRef::decode(&mut behind).ok()?;
    let has_signature = signature.tag() == Tag::BitString && signature.value().first() == Some(&0);
    let is_whole = ends_certificate && behind.is_finished();
    Some(is_whole && has_signature && is_same_algorithm)
}

/// A serial number without superfluous leading bytes, which some authorities write.
pub(crate) fn shortest(mut serial: &[u8]) -> &[u8] {
    while matches!(serial, [0, 0..=127, ..] | [255, 128..=255, ..]) {
        serial = &serial[1..];
    }
    serial
}

/// An end of validity that never comes.
pub(crate) const NEVER: u32 = u32::MAX;

/// A time in seconds since 1970. `None` if the value is no time, or before 1970.
pub fn seconds(time: AnyRef) -> Option<u64> {
    let since = match time.tag() {
        Tag::UtcTime => time.decode_as::<UtcTime>().ok()?.to_unix_duration(),
        Tag::GeneralizedTime => {
            let time = time.decode_as::<GeneralizedTime>().ok()?;
            time.to_unix_duration()
        }
        _ => return None,
    };
    Some(since.as_secs())
}

/// The beginning of the part of a certificate that is signed, and what is behind this part.
pub(crate) struct Signed<'a> {
    /// The value of the serial number in as few bytes as possible, without tag and length.
    pub serial: &'a [u8],
    algorithm: &'a [u8],
    /// The issuer's name in DER.
    pub issuer: &'a [u8],
    validity_and_rest: SliceReader<'a>,
    /// The algorithm and the signature.
    behind: SliceReader<'a>,
    /// Whether nothing follows the certificate.
    ends_certificate: bool,
}

impl<'a> Signed<'a> {
    /// `None` if this is no certificate.
    pub fn of(certificate: &'a [u8]) -> Option<Self> {
        let mut whole = SliceReader::new(certificate).ok()?;
        let mut parts = SliceReader::new(sequence(whole.decode().ok()?)?).ok()?;
        let mut signed = SliceReader::new(sequence(parts.decode().ok()?)?).ok()?;
        let mut field = AnyRef::decode(&mut signed).ok()?;
        if matches!(field.tag(), Tag::ContextSpecific { .. }) {
            // The version.
            field = AnyRef::decode(&mut signed).ok()?;
        }
        if field.tag() != Tag::Integer {
            return None;
        }
        Some(Signed {
            serial: shortest(field.value()),
            algorithm: signed.tlv_bytes().ok()?,
            issuer: signed.tlv_bytes().ok()?,
            validity_and_rest: signed,
            behind: parts,
            ends_certificate: whole.is_finished(),
        })
    }

    /// The last second of the certificate's validity, in seconds since 1970. [`NEVER`] if it does not fit into 32 bits, or if
    /// there is no validity; 0 if the time cannot be parsed.
    pub fn last_second(&self) -> u32 {
        let validity = AnyRef::decode(&mut self.validity_and_rest.clone());
        let Some(validity) = validity.ok().and_then(sequence) else {
            return NEVER;
        };
        let not_after = || {
            let mut validity = SliceReader::new(validity).ok()?;
            AnyRef::decode(&mut validity).ok()?;
            seconds(AnyRef::decode(&mut validity).ok()?)
        };
        not_after().map_or(0, |seconds| u32::try_from(seconds).unwrap_or(NEVER))
    }
}

fn sequence<'a>(any: AnyRef<'a>) -> Option<&'a [u8]> {
    (any.tag() == Tag::Sequence).then(|| any.value())
}

/// A name in canonical form: strings as UTF-8, in lower case, with single spaces between words and none around them (RFC 5280,
/// 7.1, as in OpenSSL). Bytes that are no name stay as they are.
pub fn canonical_name(name: &[u8]) -> Vec<u8> {
    canonical(name).unwrap_or_else(|| name.to_vec())
}

/// Whether two names in DER are the same, in whatever string type, case and spacing they are written.
pub fn is_same_name(one: &[u8], other: &[u8]) -> bool {
    one == other || canonical_name(one) == canonical_name(other)
}

fn canonical(name: &[u8]) -> Option<Vec<u8>> {
    let mut canonical = Vec::with_capacity(name.len());
    let mut push = |bytes: &[u8]| {
        canonical.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
        canonical.extend_from_slice(bytes);
    };
    let name = SliceReader::new(name).ok()?.decode().ok()?;
    let mut sets = SliceReader::new(sequence(name)?).ok()?;
    while !sets.is_finished() {
        let set = AnyRef::decode(&mut sets).ok()?;
        if set.tag() != Tag::Set {
            return None;
        }
        let mut attributes = SliceReader::new(set.value()).ok()?;
        let mut in_set = Vec::new();
        while !attributes.is_finished() {
            let attribute = AnyRef::decode(&mut attributes).ok()?;
            let mut attribute = SliceReader::new(sequence(attribute)?).ok()?;
            let kind = attribute.tlv_bytes().ok()?;
            let value = AnyRef::decode(&mut attribute).ok()?;
            in_set.push(match text(value) {
                Some(text) => (kind, words(&text).into_bytes()),
                None => (kind, value.value().to_vec()),
            });
        }
        // DER sorts them by their encodings, which differ between string types.
        in_set.sort_unstable();
        for (kind, value) in &in_set {
            push(kind);
            push(value);
        }
        push(&(in_set.len() as u32).to_be_bytes());
    }
    Some(canonical)
}

/// The characters of a string of any type. `None` for anything else.
fn text(value: AnyRef) -> Option<String> {
    let bytes = value.value();
    match value.tag() {
        Tag::Utf8String | Tag::PrintableString | Tag::Ia5String | Tag::VisibleString => {
            String::from_utf8(bytes.to_vec()).ok()
        }
        Tag::TeletexString => Some(bytes.iter().map(|byte| char::from(*byte)).collect()),
        Tag::BmpString => {
            let pairs = bytes.chunks_exact(2);
            let units: Vec<u16> = pairs
                .map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
                .collect();
            String::from_utf16(&units).ok()
        }
        _ => None,
    }
}

fn words(text: &str) -> String {
    let words: Vec<String> = text
        .split_ascii_whitespace()
        .map(str::to_lowercase)
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
        [&[tag, value.len() as u8], value].concat()
    }

    /// A name with a common name of this string type.
    fn name(tag: u8, value: &[u8]) -> Vec<u8> {
        let attribute = [tlv(6, &[0x55, 4, 3]), tlv(tag, value)].concat();
        tlv(0x30, &tlv(0x31, &tlv(0x30, &attribute)))
    }

    #[test]
    fn a_name_is_the_same_in_any_string_type_case_and_spacing() {
        let plain = name(12, b"device ca 1");
        let bmp: Vec<u8> = "Device CA 1".bytes().flat_map(|byte| [0, byte]).collect();
        for other in [
            name(19, b"Device CA 1"),
            name(12, b"  device   CA 1 "),
            name(22, b"DEVICE CA 1"),
            name(20, b"Device CA 1"),
            name(30, &bmp),
        ] {
            assert!(is_same_name(&plain, &other), "{other:?}");
        }
        assert!(!is_same_name(&plain, &name(12, b"device ca 2")));
        assert!(!is_same_name(&plain, &name(12, b"deviceca 1")));
        assert!(is_same_name(
            &name(20, b"\xc4rger"),
            &name(12, "ärger".as_bytes())
        ));
    }

    /// A certificate that ends before the subject, without a signature.
    fn certificate(validity: &[u8]) -> Vec<u8> {
        let fields = [
            tlv(2, &[7]),
            tlv(0x30, &[]),
            name(12, b"ca"),
            validity.to_vec(),
        ]
        .concat();
        tlv(0x30, &tlv(0x30, &fields))
    }

    fn last_second(certificate: &[u8]) -> Option<u32> {
        Some(Signed::of(certificate)?.last_second())
    }

    fn ends(tag: u8, time: &[u8]) -> u32 {
        let validity = [tlv(23, b"200101000000Z"), tlv(tag, time)].concat();
        last_second(&certificate(&tlv(0x30, &validity))).unwrap()
    }

    #[test]
    fn the_last_second_of_a_certificate_is_read_in_both_forms_of_time() {
        assert_eq!(ends(23, b"260102030405Z"), 1_767_323_045);
        assert_eq!(ends(24, b"20260102030405Z"), 1_767_323_045);
        // Two digits are of a year until 2049.
        assert_eq!(ends(23, b"491231235959Z"), 2_524_607_999);
        assert_eq!(ends(24, b"99991231235959Z"), NEVER);
        assert_eq!(ends(24, b"21070101000000Z"), NEVER);
    }

    #[test]
    fn a_certificate_whose_end_cannot_be_read_has_ended() {
        for (tag, time) in [
            (23, &b"2601020304Z"[..]),
            (23, b"500101000000Z"),
            (23, b"260102030405+0100"),
            (24, b"20261302030405Z"),
            (4, b"20260102030405Z"),
        ] {
            assert_eq!(ends(tag, time), 0, "{}", String::from_utf8_lossy(time));
        }
        assert_eq!(last_second(&certificate(&tlv(0x30, &[]))), Some(0));
        assert_eq!(last_second(&certificate(&[])), Some(NEVER));
        assert_eq!(last_second(b"no certificate"), None);
    }

    #[test]
    fn the_order_of_attributes_in_a_set_does_not_matter() {
        let attribute = |number: u8, tag: u8, value: &[u8]| {
            tlv(
                0x30,
                &[tlv(6, &[0x55, 4, number]), tlv(tag, value)].concat(),
            )
        };
        let set = |attributes: [Vec<u8>; 2]| tlv(0x30, &tlv(0x31, &attributes.concat()));
        let one = set([attribute(3, 12, b"ca"), attribute(10, 12, b"org")]);
        let other = set([attribute(10, 19, b"Org"), attribute(3, 19, b"CA")]);
        assert!(is_same_name(&one, &other));
        let changed = set([attribute(3, 12, b"org"), attribute(10, 12, b"ca")]);
        assert!(!is_same_name(&one, &changed));
    }

    #[test]
    fn what_is_no_name_equals_itself_only() {
        assert!(is_same_name(b"abc", b"abc"));
        assert!(!is_same_name(b"abc", b"abd"));
        assert!(!is_same_name(b"", &name(12, b"")));
    }

    #[test]
    fn a_serial_number_has_no_superfluous_bytes() {
        let certificate = |serial: &[u8]| {
            let fields = [tlv(2, serial), tlv(0x30, &[]), name(12, b"ca")].concat();
            tlv(0x30, &tlv(0x30, &fields))
        };
        for (serial, expected) in [(&[0, 0, 5][..], &[5][..]), (&[0, 200], &[0, 200])] {
            let der = certificate(serial);
            assert_eq!(issuer_and_serial(&der).unwrap().1, expected);
        }
    }

    #[test]
    fn only_the_form_that_the_authority_gave_is_canonical() {
        let (ecdsa, rsa) = (tlv(0x30, &tlv(6, &[1, 2])), tlv(0x30, &tlv(6, &[1, 3])));
        let signed = [tlv(2, &[5]), ecdsa.clone(), name(12, b"ca"), tlv(0x30, &[])].concat();
        let (signed, signature) = (tlv(0x30, &signed), tlv(3, &[0, 9, 9]));
        let whole = |parts: &[&[u8]]| tlv(0x30, &parts.concat());
        let good = whole(&[&signed, &ecdsa, &signature]);
        assert!(is_canonical(&good));

        let with_header = |header: &[u8]| [header, &good[2..]].concat();
        let length = good[1];
        for other in [
            [&good[..], &[0]].concat(),
            [&good[..], &good].concat(),
            with_header(&[0x30, 0x81, length]),
            with_header(&[0x30, 0x82, 0, length]),
            [&with_header(&[0x30, 0x80])[..], &[0, 0]].concat(),
            whole(&[&signed, &rsa, &signature]),
            whole(&[&signed, &ecdsa, &signature, &[5, 0]]),
            whole(&[&signed, &ecdsa, &[3, 0x81, 3, 0, 9, 9]]),
            whole(&[&signed, &ecdsa, &tlv(3, &[1, 9, 8])]),
            whole(&[&signed, &ecdsa, &tlv(4, &[0, 9, 9])]),
            whole(&[&signed, &ecdsa]),
            whole(&[&signed]),
            b"no certificate".to_vec(),
            Vec::new(),
        ] {
            assert!(!is_canonical(&other), "{other:?}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_issuer() {
        assert_eq!(issuer_and_serial(b""), None);
        assert_eq!(issuer_and_serial(&name(12, b"x")), None);
    }
}
