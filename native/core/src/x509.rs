//! What is read of a client's certificate: who issued it, and its serial number (RFC 5280, 4.1).

use der::asn1::AnyRef;
use der::{Decode, Reader, SliceReader, Tag, Tagged};

/// The issuer's name, as the DER of the certificate has it, and the value of the serial number without tag and
/// length. `None` if this is no certificate.
pub fn issuer_and_serial(certificate: &[u8]) -> Option<(&[u8], &[u8])> {
    let certificate = SliceReader::new(certificate).ok()?.decode().ok()?;
    let mut certificate = SliceReader::new(sequence(certificate)?).ok()?;
    let mut signed = SliceReader::new(sequence(certificate.decode().ok()?)?).ok()?;
    let mut field = AnyRef::decode(&mut signed).ok()?;
    if matches!(field.tag(), Tag::ContextSpecific { .. }) {
        // The version.
        field = AnyRef::decode(&mut signed).ok()?;
    }
    if field.tag() != Tag::Integer {
        return None;
    }
    // The signature algorithm.
    AnyRef::decode(&mut signed).ok()?;
    Some((signed.tlv_bytes().ok()?, field.value()))
}

fn sequence<'a>(any: AnyRef<'a>) -> Option<&'a [u8]> {
    (any.tag() == Tag::Sequence).then(|| any.value())
}

/// A name in a form that is the same however it is written: strings as UTF-8, in lower case, with single spaces
/// between words and none around them (RFC 5280, 7.1, as OpenSSL does it). What is no name is left as it is.
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
        let mut number = 0u32;
        while !attributes.is_finished() {
            let attribute = AnyRef::decode(&mut attributes).ok()?;
            let mut attribute = SliceReader::new(sequence(attribute)?).ok()?;
            push(attribute.tlv_bytes().ok()?);
            let value = AnyRef::decode(&mut attribute).ok()?;
            match text(value) {
                Some(text) => push(words(&text).as_bytes()),
                None => push(value.value()),
            }
            number += 1;
        }
        push(&number.to_be_bytes());
    }
    Some(canonical)
}

/// The characters of a string, of whichever type. `None` for anything else.
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

    #[test]
    fn what_is_no_name_equals_itself_only() {
        assert!(is_same_name(b"abc", b"abc"));
        assert!(!is_same_name(b"abc", b"abd"));
        assert!(!is_same_name(b"", &name(12, b"")));
    }

    #[test]
    fn what_is_no_certificate_has_no_issuer() {
        assert_eq!(issuer_and_serial(b""), None);
        assert_eq!(issuer_and_serial(&name(12, b"x")), None);
    }
}
