//! Parses revocation lists (RFC 5280, 5): PEM or DER, also several in one file.

use base64ct::{Base64, Encoding};
use der::asn1::AnyRef;
use der::{Decode, Reader, SliceReader, Tag, TagNumber, Tagged};
use rekindle_core::{seconds, IssuerHash};
use std::collections::HashMap;
use std::sync::Arc;

const BEGIN: &[u8] = b"-----BEGIN X509 CRL-----";
const END: &[u8] = b"-----END X509 CRL-----";
/// How any block of PEM begins.
const BEGIN_ANY: &[u8] = b"-----BEGIN ";
const END_ANY: &[u8] = b"-----";

/// Values of object identifiers, 2.5.29.*.
const REASON_CODE: &[u8] = &[0x55, 0x1d, 21];
const DELTA_INDICATOR: &[u8] = &[0x55, 0x1d, 27];
const DISTRIBUTION_POINT: &[u8] = &[0x55, 0x1d, 28];
const CERTIFICATE_ISSUER: &[u8] = &[0x55, 0x1d, 29];

/// The reason of an entry that cancels another entry.
const REMOVE_FROM_LIST: &[u8] = &[8];

/// Most authorities that an entry names. There should be one. Each of the following entries counts for all of them, so without
/// this bound a small file could fill the memory.
const MAX_AUTHORITIES: usize = 16;

/// The context-specific tag of a distinguished name among general names.
const DIRECTORY_NAME: TagNumber = TagNumber(4);

/// Sorted hashes of certificates, by authority.
pub type Revoked = Vec<(IssuerHash, Arc<[u64]>)>;

/// The content of one list.
#[derive(Debug, PartialEq, Eq)]
pub struct List {
    /// The issuer.
    pub issuer: IssuerHash,
    /// The issuer's name in DER.
    pub issuer_name: Box<[u8]>,
    /// When it was made, in seconds since 1970.
    pub this_update_s: u64,
    /// When a newer one is due, in seconds since 1970. `None` if the list does not say.
    pub next_update_s: Option<u64>,
    /// Whether it is a delta list, with only the changes since another list.
    pub is_delta: bool,
    /// The part of the certificates that it covers, as its distribution point in DER. Empty if it covers all.
    pub part: Box<[u8]>,
    /// How many entries it has.
    pub entries: usize,
    /// The certificates on it. An indirect list has those of other authorities, too.
    pub revoked: Revoked,
}

impl List {
    /// Whether the other list is of the same issuer and kind, for the same certificates.
    pub fn is_alike(&self, other: &List) -> bool {
        (self.issuer, self.is_delta, &self.part) == (other.issuer, other.is_delta, &other.part)
    }
}

/// All lists of a file. A PEM file may have none. The error says what is wrong.
pub fn parse(bytes: &[u8]) -> Result<Vec<List>, String> {
    match bytes {
        [] => Err("it is empty".into()),
        // In text, the second byte is smaller. In DER, only the shortest lists have a smaller byte there.
        [0x30, 0x80..=0xff, ..] => parse_ders(bytes),
        [0x30, ..] if outer_length(bytes) == Ok(bytes.len()) => parse_ders(bytes),
        _ => parse_pem(bytes),
    }
}

fn parse_pem(text: &[u8]) -> Result<Vec<List>, String> {
    let mut lists = Vec::new();
    let mut is_pem = false;
    let mut block: Option<Vec<u8>> = None;
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        match &mut block {
            None if line == BEGIN => block = Some(Vec::new()),
            // Something stands before the beginning, such as a byte order mark.
            None if line == END => return Err("a list in it has no beginning".into()),
            None => is_pem |= line.starts_with(BEGIN_ANY) && line.ends_with(END_ANY),
            Some(base64) if line == END => {
                let der = Base64::decode_in_place(base64).map_err(|_| "it is no base64")?;
                lists.append(&mut parse_ders(der)?);
                block = None;
            }
            Some(_) if line.starts_with(BEGIN_ANY) => return Err(cut_off()),
            Some(base64) => base64.extend_from_slice(line),
        }
    }
    match block {
        Some(_) => Err(cut_off()),
        None if lists.is_empty() && !is_pem => Err(NO_LIST.into()),
        None => Ok(lists),
    }
}

fn cut_off() -> String {
    "it ends too early".into()
}

fn parse_ders(mut bytes: &[u8]) -> Result<Vec<List>, String> {
    let mut lists = Vec::new();
    while !bytes.is_empty() {
        let length = outer_length(bytes)?;
        let (der, rest) = bytes.split_at_checked(length).ok_or_else(cut_off)?;
        lists.push(parse_der(der)?);
        bytes = rest;
    }
    Ok(lists)
}

/// The length, in bytes, of the DER value that begins here, by its header.
fn outer_length(bytes: &[u8]) -> Result<usize, String> {
    let (tag, rest) = bytes.split_first().ok_or_else(cut_off)?;
    if *tag != 0x30 {
        return Err("it is not a revocation list, or more data follows it".into());
    }
    let (first, rest) = rest.split_first().ok_or_else(cut_off)?;
    match first {
        0..=127 => Ok(2 + usize::from(*first)),
        0x81..=0x84 => {
            let digits = usize::from(first - 0x80);
            let digits = rest.get(..digits).ok_or_else(cut_off)?;
            let length = digits
                .iter()
                .fold(0, |sum, byte| sum << 8 | usize::from(*byte));
            Ok(2 + digits.len() + length)
        }
        _ => Err(NO_LIST.into()),
    }
}

/// The error says what is wrong.
type Parsed<T> = Result<T, &'static str>;

const NO_LIST: &str = "it is not a revocation list";

fn parse_der(der: &[u8]) -> Parsed<List> {
    let mut outer = reader(value(whole(der)?, Tag::Sequence)?)?;
    let mut signed = reader(value(next(&mut outer)?, Tag::Sequence)?)?;
    // The signature's algorithm, and the signature.
    value(next(&mut outer)?, Tag::Sequence)?;
    value(next(&mut outer)?, Tag::BitString)?;
    if !outer.is_finished() {
        return Err(NO_LIST);
    }
    let mut field = next(&mut signed)?;
    if field.tag() == Tag::Integer {
        // The version.
        field = next(&mut signed)?;
    }
    // The signature's algorithm once more.
    value(field, Tag::Sequence)?;
    let issuer_name = signed.tlv_bytes().map_err(|_| NO_LIST)?;
    let issuer = IssuerHash::of(issuer_name);
    let this_update_s = seconds(next(&mut signed)?).ok_or(NO_LIST)?;
    let mut entries = Entries::new(issuer);
    let mut list = List {
        issuer,
        issuer_name: issuer_name.into(),
        this_update_s,
        next_update_s: None,
        is_delta: false,
        part: Box::default(),
        entries: 0,
        revoked: Vec::new(),
    };
    while !signed.is_finished() {
        let field = next(&mut signed)?;
        match field.tag() {
            Tag::UtcTime | Tag::GeneralizedTime => {
                list.next_update_s = Some(seconds(field).ok_or(NO_LIST)?);
            }
            Tag::Sequence => entries.read(field.value())?,
            Tag::ContextSpecific { .. } => {
                let extensions = whole(field.value())?;
                for_each_extension(value(extensions, Tag::Sequence)?, |kind, content| {
                    match kind {
                        DELTA_INDICATOR => list.is_delta = true,
                        DISTRIBUTION_POINT => list.part = content.into(),
                        _ => {}
                    }
                    Ok(())
                })?;
            }
            _ => return Err(NO_LIST),
        }
    }
    (list.entries, list.revoked) = entries.finish();
    Ok(list)
}

/// The entries of a list while it is read.
struct Entries {
    number: usize,
    /// The issuers of the certificates that the following entries revoke.
    authorities: Vec<IssuerHash>,
    own: IssuerHash,
    of_own: Vec<u64>,
    of_others: HashMap<IssuerHash, Vec<u64>>,
}

impl Entries {
    fn new(own: IssuerHash) -> Self {
        Entries {
            number: 0,
            authorities: vec![own],
            own,
            of_own: Vec::new(),
            of_others: HashMap::new(),
        }
    }

    fn read(&mut self, entries: &[u8]) -> Parsed<()> {
        let mut entries = reader(entries)?;
        while !entries.is_finished() {
            let entry = value(next(&mut entries)?, Tag::Sequence)?;
            let mut entry = reader(entry)?;
            let serial = value(next(&mut entry)?, Tag::Integer)?;
            // When it was revoked.
            next(&mut entry)?;
            let mut is_taken_back = false;
            if !entry.is_finished() {
                let extensions = value(next(&mut entry)?, Tag::Sequence)?;
                for_each_extension(extensions, |kind, content| {
                    match kind {
                        REASON_CODE => {
                            let reason = whole(content)?;
                            is_taken_back = value(reason, Tag::Enumerated)? == REMOVE_FROM_LIST;
                        }
                        CERTIFICATE_ISSUER => self.authorities = directory_names(content)?,
                        _ => {}
                    }
                    Ok(())
                })?;
            }
            self.number += 1;
            if !is_taken_back {
                self.add(serial);
            }
        }
        Ok(())
    }

    fn add(&mut self, serial: &[u8]) {
        for authority in &self.authorities {
            let hash = authority.certificate(serial);
            match *authority == self.own {
                true => self.of_own.push(hash),
                false => self.of_others.entry(*authority).or_default().push(hash),
            }
        }
    }

    fn finish(self) -> (usize, Revoked) {
        let own = (self.own, self.of_own);
        let all = [own].into_iter().chain(self.of_others);
        let sorted = all.map(|(authority, mut hashes)| {
            hashes.sort_unstable();
            (authority, hashes.into())
        });
        (self.number, sorted.collect())
    }
}

/// The directory names among general names: only these can be a certificate's issuer.
fn directory_names(names: &[u8]) -> Parsed<Vec<IssuerHash>> {
    let mut names = reader(value(whole(names)?, Tag::Sequence)?)?;
    let mut found = Vec::new();
    while !names.is_finished() {
        let name = next(&mut names)?;
        if let Tag::ContextSpecific { number, .. } = name.tag() {
            if number == DIRECTORY_NAME {
                found.push(IssuerHash::of(name.value()));
            }
        }
    }
    match found.len() {
        0 => Err("an entry does not name the issuer of its certificate by a directory name"),
        1..=MAX_AUTHORITIES => Ok(found),
        _ => Err("an entry names too many issuers of its certificate"),
    }
}

/// Calls `visit` with the identifier and the content of each extension, until it fails.
fn for_each_extension(
    extensions: &[u8],
    mut visit: impl FnMut(&[u8], &[u8]) -> Parsed<()>,
) -> Parsed<()> {
    let mut extensions = reader(extensions)?;
    while !extensions.is_finished() {
        let mut extension = reader(value(next(&mut extensions)?, Tag::Sequence)?)?;
        let kind = value(next(&mut extension)?, Tag::ObjectIdentifier)?;
        let mut content = next(&mut extension)?;
        if content.tag() == Tag::Boolean {
            // Whether it is critical.
            content = next(&mut extension)?;
        }
        visit(kind, value(content, Tag::OctetString)?)?;
    }
    Ok(())
}

fn reader(bytes: &[u8]) -> Parsed<SliceReader<'_>> {
    SliceReader::new(bytes).map_err(|_| NO_LIST)
}

/// The only value in these bytes.
fn whole(der: &[u8]) -> Parsed<AnyRef<'_>> {
    AnyRef::from_der(der).map_err(|_| NO_LIST)
}

fn next<'a>(reader: &mut SliceReader<'a>) -> Parsed<AnyRef<'a>> {
    AnyRef::decode(reader).map_err(|_| NO_LIST)
}

fn value(any: AnyRef<'_>, tag: Tag) -> Parsed<&[u8]> {
    match any.tag() == tag {
        true => Ok(any.value()),
        false => Err(NO_LIST),
    }
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
