//! Which sessions are revoked: remembered for as long as one of them could come out of the log.

use rekindle_core::{is_same_name, issuer_and_serial, Selector};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::HashMap;

/// Client certificates whose sessions are revoked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// The one with this fingerprint.
    Sha256([u8; 32]),
    /// The one with this fingerprint.
    Sha1([u8; 20]),
    /// All of one authority.
    Issuer {
        /// The issuer's name as it is in the certificate, in DER.
        name: Box<[u8]>,
    },
    /// The one of an authority with this number.
    Serial {
        /// The issuer's name as it is in the certificate, in DER.
        name: Box<[u8]>,
        /// The value of the number in DER, without tag and length.
        serial: Box<[u8]>,
    },
}

impl Wanted {
    /// Whether a certificate, as DER, is meant.
    pub fn matches(&self, certificate: &[u8]) -> bool {
        match self {
            Wanted::Sha256(wanted) => Sha256::digest(certificate).as_slice() == wanted,
            Wanted::Sha1(wanted) => Sha1::digest(certificate).as_slice() == wanted,
            Wanted::Issuer { name } => {
                issuer_and_serial(certificate).is_some_and(|(issuer, _)| is_same_name(issuer, name))
            }
            Wanted::Serial { name, serial } => issuer_and_serial(certificate)
                .is_some_and(|(issuer, number)| *number == **serial && is_same_name(issuer, name)),
        }
    }

    /// The same for a store.
    pub fn selector(&self) -> Selector<'_> {
        match self {
            Wanted::Sha256(digest) => Selector::Sha256(digest),
            Wanted::Sha1(digest) => Selector::Sha1(digest),
            Wanted::Issuer { name } => Selector::Issuer(name),
            Wanted::Serial { name, serial } => Selector::Serial(name, serial),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Wanted::Sha256(wanted) => [&[1], &wanted[..]].concat(),
            Wanted::Sha1(wanted) => [&[2], &wanted[..]].concat(),
            Wanted::Issuer { name } => [&[3], &name[..]].concat(),
            Wanted::Serial { name, serial } => {
                let length = (serial.len() as u32).to_be_bytes();
                [&[4], &length[..], serial, name].concat()
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Wanted> {
        let (kind, rest) = bytes.split_first()?;
        Some(match kind {
            1 => Wanted::Sha256(rest.try_into().ok()?),
            2 => Wanted::Sha1(rest.try_into().ok()?),
            3 => Wanted::Issuer { name: rest.into() },
            4 => {
                let (length, rest) = rest.split_first_chunk()?;
                let length = u32::from_be_bytes(*length) as usize;
                let (serial, name) = rest.split_at_checked(length)?;
                Wanted::Serial {
                    name: name.into(),
                    serial: serial.into(),
                }
            }
            _ => return None,
        })
    }
}

/// What is revoked in one scope. Times are milliseconds since 1970.
#[derive(Default)]
pub(crate) struct Revocations {
    ids: HashMap<[u8; 32], u64>,
    /// All sessions made until then.
    flushed: Option<Until>,
    certificates: HashMap<Wanted, Until>,
}

#[derive(Clone, Copy)]
struct Until {
    made_ms: u64,
    expires_ms: u64,
}

/// Clocks of a fleet differ: what was made so shortly after a revocation, by its own node's clock, counts
/// as made before.
pub(crate) const MARGIN_MS: u64 = 2000;

impl Revocations {
    /// Revokes one session.
    pub fn forget(&mut self, id: [u8; 32], expires_ms: u64) {
        let expiry = self.ids.entry(id).or_default();
        *expiry = expires_ms.max(*expiry);
    }

    /// Revokes all sessions made until `made_ms`.
    pub fn flush(&mut self, made_ms: u64, expires_ms: u64) {
        self.flushed = Some(later(self.flushed, made_ms, expires_ms));
    }

    /// Revokes the sessions made with these certificates until `made_ms`.
    pub fn revoke(&mut self, wanted: Wanted, made_ms: u64, expires_ms: u64) {
        let former = self.certificates.get(&wanted).copied();
        self.certificates
            .insert(wanted, later(former, made_ms, expires_ms));
    }

    /// Whether a session is revoked.
    pub fn is_revoked(&self, id: &[u8; 32], made_ms: u64, certificate: Option<&[u8]>) -> bool {
        let covers = |until: &Until| made_ms <= until.made_ms.saturating_add(MARGIN_MS);
        self.ids.contains_key(id)
            || self.flushed.as_ref().is_some_and(covers)
            || certificate
                .filter(|_| !self.certificates.is_empty())
                .is_some_and(|certificate| {
                    self.candidates(certificate)
                        .iter()
                        .any(|wanted| self.certificates.get(wanted).is_some_and(covers))
                })
    }

    /// What a certificate could be revoked as.
    fn candidates(&self, certificate: &[u8]) -> Vec<Wanted> {
        let mut candidates = vec![
            Wanted::Sha256(Sha256::digest(certificate).into()),
            Wanted::Sha1(Sha1::digest(certificate).into()),
        ];
        if let Some((name, serial)) = issuer_and_serial(certificate) {
            let (name, serial): (Box<[u8]>, _) = (name.into(), serial.into());
            candidates.push(Wanted::Issuer { name: name.clone() });
            candidates.push(Wanted::Serial { name, serial });
        }
        candidates
    }

    /// Lets go of what no session can come for any more.
    pub fn expire(&mut self, now_ms: u64) {
        self.ids.retain(|_, expires_ms| *expires_ms > now_ms);
        self.certificates
            .retain(|_, until| until.expires_ms > now_ms);
        self.flushed = self.flushed.filter(|until| until.expires_ms > now_ms);
    }

    /// How many revocations are remembered.
    pub fn len(&self) -> usize {
        self.ids.len() + self.certificates.len() + usize::from(self.flushed.is_some())
    }
}

fn later(former: Option<Until>, made_ms: u64, expires_ms: u64) -> Until {
    let former = former.unwrap_or(Until {
        made_ms,
        expires_ms,
    });
    Until {
        made_ms: made_ms.max(former.made_ms),
        expires_ms: expires_ms.max(former.expires_ms),
    }
}

#[cfg(test)]
mod tests;
