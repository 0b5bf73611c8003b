//! What all lists together say.

use crate::List;
use rekindle_core::{IssuerHash, IssuerLists, Known};
use std::collections::HashMap;
use std::sync::Arc;

/// A list without an end.
const NEVER_S: u64 = u64::MAX;

/// Whether a list that is no longer there says nothing that another one does not say better: it is newer, or the same.
pub fn is_superseded(gone: &List, present: &[Arc<List>]) -> bool {
    present.iter().any(|other| {
        let is_alike =
            (other.issuer, other.is_delta, &other.part) == (gone.issuer, gone.is_delta, &gone.part);
        is_alike && (other.this_update_s > gone.this_update_s || **other == *gone)
    })
}

/// All of them, as stores look at them.
///
/// Of several lists for the same certificates, the newest tells until when they are current; entries of all count, as an
/// entry too many costs one full handshake. A list that has only what has changed counts in entries alone: without
/// the list that it goes with, it is current never.
pub fn merge(lists: &[Arc<List>], is_complete: bool) -> Known {
    let mut ends: HashMap<(IssuerHash, &[u8]), u64> = HashMap::new();
    for list in lists {
        let end = ends.entry((list.issuer, &list.part)).or_default();
        if !list.is_delta {
            *end = (*end).max(list.next_update_s.unwrap_or(NEVER_S));
        }
    }
    let mut merged: HashMap<IssuerHash, IssuerLists> = HashMap::new();
    for list in lists {
        // A change may be for another part than the list that it goes with.
        let is_base = ends[&(list.issuer, &*list.part)] > 0;
        let has_base = || {
            ends.iter()
                .any(|((issuer, _), end)| *issuer == list.issuer && *end > 0)
        };
        let end = match is_base || !has_base() {
            true => ends[&(list.issuer, &*list.part)],
            false => NEVER_S,
        };
        for (authority, revoked) in &list.revoked {
            let of_authority = merged.entry(*authority).or_insert_with(|| IssuerLists {
                current_until_s: NEVER_S,
                revoked: Vec::new(),
            });
            of_authority.current_until_s = of_authority.current_until_s.min(end);
            of_authority.revoked.push(Arc::clone(revoked));
        }
    }
    Known::new(merged, is_complete)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;
    use crate::testing::{certificate, crl, entry, extension, name, tlv, Crl};
    use rekindle_core::{Limits, Lists, NewSession, ServerStore, SessionKey, Trust};

    const PAST: &[u8] = b"200101000000Z";
    const FUTURE: &[u8] = b"490101000000Z";

    fn list(
        issuer: &str,
        serials: &[u8],
        next_update: &'static [u8],
        extensions: Vec<Vec<u8>>,
    ) -> Arc<List> {
        let entries: Vec<_> = serials
            .iter()
            .map(|serial| entry(&[*serial], &[]))
            .collect();
        let of = Crl {
            next_update,
            extensions,
            ..Crl::default()
        };
        Arc::new(parse(&crl(issuer, &entries, of)).unwrap().remove(0))
    }

    fn delta() -> Vec<u8> {
        extension(&[0x55, 0x1d, 27], true, &tlv(2, &[1]))
    }

    fn part(number: u8) -> Vec<u8> {
        extension(&[0x55, 0x1d, 28], true, &tlv(0x30, &[number]))
    }

    /// Which of the certificates 1 to 4 of an authority a store lets resume.
    fn resumed(issuer: &str, lists: &[Arc<List>]) -> Vec<u8> {
        let store = ServerStore::<()>::new(Limits {
            max_bytes: 1 << 20,
            max_sessions: 100,
            lifetime_ms: 1000,
        });
        let known = Lists::new();
        known.publish(merge(lists, true));
        store.set_trust(Trust {
            lists: Some(Arc::new(known)),
            ..Trust::default()
        });
        let is_resumed = |serial: &u8| {
            let id = [*serial; 32];
            let session = NewSession {
                key: SessionKey::Id(&id),
                secret: &[0; 48],
                template: None,
                certificate: Some(&certificate(&name(issuer), &[*serial])),
                tail: b"",
            };
            store.insert(session, 0).unwrap();
            store.lookup(SessionKey::Id(&id), 0, |_| ()).is_some()
        };
        (1..5).filter(is_resumed).collect()
    }

    #[test]
    fn entries_of_all_lists_of_an_issuer_count() {
        let lists = [
            list("ca", &[1], FUTURE, vec![]),
            list("CA", &[2], FUTURE, vec![delta()]),
        ];
        assert_eq!(resumed("ca", &lists), [3, 4]);
        assert_eq!(resumed("other", &lists), [1, 2, 3, 4]);
    }

    #[test]
    fn the_newest_of_several_lists_tells_how_long_they_are_current() {
        let (old, new) = (
            list("ca", &[1], PAST, vec![]),
            list("ca", &[2], FUTURE, vec![]),
        );
        assert_eq!(resumed("ca", std::slice::from_ref(&old)), []);
        assert_eq!(resumed("other", std::slice::from_ref(&old)), [1, 2, 3, 4]);
        assert_eq!(resumed("ca", &[old, new]), [3, 4]);
    }

    #[test]
    fn each_part_of_an_issuers_certificates_needs_a_list_that_is_current() {
        let of = |number, end| list("ca", &[number], end, vec![part(number)]);
        assert_eq!(resumed("ca", &[of(1, FUTURE), of(2, FUTURE)]), [3, 4]);
        assert_eq!(resumed("ca", &[of(1, FUTURE), of(2, PAST)]), []);
    }

    #[test]
    fn changes_need_the_list_that_they_go_with() {
        let changes = list("ca", &[1], FUTURE, vec![delta()]);
        assert_eq!(resumed("ca", std::slice::from_ref(&changes)), []);
        let whole = list("ca", &[2], FUTURE, vec![]);
        assert_eq!(resumed("ca", &[changes, Arc::clone(&whole)]), [3, 4]);
        let old_changes = list("ca", &[1], PAST, vec![delta()]);
        assert_eq!(resumed("ca", &[old_changes, whole]), [3, 4]);
        let in_part = list("ca", &[1], FUTURE, vec![delta(), part(1)]);
        let whole = list("ca", &[2], FUTURE, vec![]);
        assert_eq!(resumed("ca", &[in_part, whole]), [3, 4]);
    }
}
