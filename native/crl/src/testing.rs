//! Unsigned lists for tests.

use base64ct::{Base64, Encoding};

pub fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len();
    let header = match length {
        0..128 => vec![tag, length as u8],
        128..256 => vec![tag, 0x81, length as u8],
        256..65_536 => vec![tag, 0x82, (length >> 8) as u8, length as u8],
        _ => [&[tag, 0x84], &(length as u32).to_be_bytes()[..]].concat(),
    };
    // DER has the shortest length.
    let header = match header[..] {
        [tag, 0x84, 0, ref digits @ ..] => [&[tag, 0x83], digits].concat(),
        _ => header,
    };
    [&header[..], value].concat()
}

pub fn name(common_name: &str) -> Vec<u8> {
    let attribute = [tlv(6, &[0x55, 4, 3]), tlv(12, common_name.as_bytes())].concat();
    tlv(0x30, &tlv(0x31, &tlv(0x30, &attribute)))
}

pub fn extension(kind: &[u8], is_critical: bool, content: &[u8]) -> Vec<u8> {
    let critical = if is_critical {
        tlv(1, &[255])
    } else {
        Vec::new()
    };
    tlv(0x30, &[tlv(6, kind), critical, tlv(4, content)].concat())
}

pub fn entry(serial: &[u8], extensions: &[Vec<u8>]) -> Vec<u8> {
    let extensions = match extensions {
        [] => Vec::new(),
        some => tlv(0x30, &some.concat()),
    };
    let fields = [tlv(2, serial), tlv(23, b"260101000000Z"), extensions].concat();
    tlv(0x30, &fields)
}

pub struct Crl {
    pub this_update: &'static [u8],
    pub next_update: &'static [u8],
    pub has_next_update: bool,
    pub extensions: Vec<Vec<u8>>,
}

impl Default for Crl {
    fn default() -> Self {
        Crl {
            this_update: b"260102030405Z",
            next_update: b"260103030405Z",
            has_next_update: true,
            extensions: Vec::new(),
        }
    }
}

pub fn crl(issuer: &str, entries: &[Vec<u8>], of: Crl) -> Vec<u8> {
    let next_update = if of.has_next_update {
        tlv(23, of.next_update)
    } else {
        Vec::new()
    };
    let revoked = if entries.is_empty() {
        Vec::new()
    } else {
        tlv(0x30, &entries.concat())
    };
    let extensions = match &of.extensions[..] {
        [] => Vec::new(),
        some => tlv(0xa0, &tlv(0x30, &some.concat())),
    };
    let algorithm = tlv(0x30, &tlv(6, &[42, 3]));
    let fields = [
        tlv(2, &[1]),
        algorithm.clone(),
        name(issuer),
        tlv(23, of.this_update),
        next_update,
        revoked,
        extensions,
    ];
    let signature = tlv(3, &[0; 72]);
    tlv(
        0x30,
        &[tlv(0x30, &fields.concat()), algorithm, signature].concat(),
    )
}

pub fn pem(der: &[u8]) -> Vec<u8> {
    let base64 = Base64::encode_string(der);
    let lines: Vec<&str> = base64
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    format!(
        "-----BEGIN X509 CRL-----\n{}\n-----END X509 CRL-----\n",
        lines.join("\n")
    )
    .into_bytes()
}

/// A certificate that ends after its issuer and its number.
pub fn certificate(issuer: &[u8], serial: &[u8]) -> Vec<u8> {
    let fields = [tlv(2, serial), tlv(0x30, &[]), issuer.to_vec()].concat();
    tlv(0x30, &tlv(0x30, &fields))
}
