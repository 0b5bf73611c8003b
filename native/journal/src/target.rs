//! What a revocation revokes: a session, sessions of client certificates, or everything.

use rekindle_core::{is_same_name, issuer_and_serial, Selector};
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The sessions that a revocation revokes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The session with this id.
    Session([u8; 32]),
    /// All sessions.
    All,
    /// Sessions made with these client certificates.
    Certificate(CertificateSelector),
}

/// Selects client certificates.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateSelector {
    /// The one with this fingerprint.
    Sha256([u8; 32]),
    /// The one with this fingerprint.
    Sha1([u8; 20]),
    /// All of one authority.
    Issuer {
        /// The issuer's name as it is in the certificate, in DER.
        name: Box<[u8]>,
    },
    /// The one with this serial number of an authority.
    Serial {
        /// The issuer's name as it is in the certificate, in DER.
        name: Box<[u8]>,
        /// The serial number's DER value, without tag and length.
        serial: Box<[u8]>,
    },
}

impl CertificateSelector {
    /// Whether it selects a certificate, given as DER.
    pub fn matches(&self, certificate: &[u8]) -> bool {
        match self {
            CertificateSelector::Sha256(digest) => Sha256::digest(certificate).as_slice() == digest,
            CertificateSelector::Sha1(digest) => Sha1::digest(certificate).as_slice() == digest,
            CertificateSelector::Issuer { name } => {
                issuer_and_serial(certificate).is_some_and(|(issuer, _)| is_same_name(issuer, name))
            }
            CertificateSelector::Serial { name, serial } => issuer_and_serial(certificate)
                .is_some_and(|(issuer, number)| *number == **serial && is_same_name(issuer, name)),
        }
    }

    /// The same selector for a store.
    pub fn selector(&self) -> Selector<'_> {
        match self {
            CertificateSelector::Sha256(digest) => Selector::Sha256(digest),
            CertificateSelector::Sha1(digest) => Selector::Sha1(digest),
            CertificateSelector::Issuer { name } => Selector::Issuer(name),
            CertificateSelector::Serial { name, serial } => Selector::Serial(name, serial),
        }
    }
}

impl Target {
    /// Encodes it for a record or a file.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Target::Session(id) => [&[1], &id[..]].concat(),
            Target::All => vec![2],
            Target::Certificate(CertificateSelector::Sha256(digest)) => {
                [&[3], &digest[..]].concat()
            }
            Target::Certificate(CertificateSelector::Sha1(digest)) => [&[4], &digest[..]].concat(),
            Target::Certificate(CertificateSelector::Issuer { name }) => [&[5], &name[..]].concat(),
            Target::Certificate(CertificateSelector::Serial { name, serial }) => {
                let length = (serial.len() as u32).to_be_bytes();
                [&[6], &length[..], serial, name].concat()
            }
        }
    }

    /// The reverse of [`encode`](Self::encode).
    pub fn decode(bytes: &[u8]) -> Option<Target> {
        let (kind, rest) = bytes.split_first()?;
        Some(match kind {
            1 => Target::Session(rest.try_into().ok()?),
            2 => rest.is_empty().then_some(Target::All)?,
            3 => Target::Certificate(CertificateSelector::Sha256(rest.try_into().ok()?)),
            4 => Target::Certificate(CertificateSelector::Sha1(rest.try_into().ok()?)),
            5 => Target::Certificate(CertificateSelector::Issuer { name: rest.into() }),
            6 => {
                let (length, rest) = rest.split_first_chunk()?;
                let length = u32::from_be_bytes(*length) as usize;
                let (serial, name) = rest.split_at_checked(length)?;
                Target::Certificate(CertificateSelector::Serial {
                    name: name.into(),
                    serial: serial.into(),
                })
            }
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_survive_encoding() {
        let (name, serial): (Box<[u8]>, Box<[u8]>) = ([1, 2, 3].into(), [4, 5].into());
        for target in [
            Target::Session([7; 32]),
            Target::All,
            Target::Certificate(CertificateSelector::Sha256([8; 32])),
            Target::Certificate(CertificateSelector::Sha1([9; 20])),
            Target::Certificate(CertificateSelector::Issuer { name: name.clone() }),
            Target::Certificate(CertificateSelector::Serial { name, serial }),
        ] {
            let bytes = target.encode();
            assert_eq!(Target::decode(&bytes), Some(target));
        }
        for wrong in [
            &[][..],
            &[0],
            &[1, 2],
            &[2, 0],
            &[3; 32],
            &[6, 0, 0, 0, 9],
            &[7],
        ] {
            assert_eq!(Target::decode(wrong), None, "{wrong:?}");
        }
    }
}
