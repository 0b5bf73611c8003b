//! Merges all lists into one view.

use crate::List;
use rekindle_core::{IssuerHash, IssuerLists, Known};
use std::collections::HashMap;
use std::sync::Arc;

/// The end of a list without `nextUpdate`.
const NEVER_S: u64 = u64::MAX;

/// A list that holds.
#[derive(Debug, Clone)]
pub struct Held {
    /// The list.
    pub list: Arc<List>,
    /// Whether its `nextUpdate` counts: without a newer list, no session of its certificates is resumed after that.
    pub has_end: bool,
}

/// When the newest list of each issuer was made. Delta lists do not count.
pub type Newest = HashMap<IssuerHash, u64>;

/// The newest of these lists.
pub fn newest<'a>(present: impl Iterator<Item = &'a Arc<List>>) -> Newest {
    let mut newest = Newest::new();
    for list in present.filter(|list| !list.is_delta) {
        let made_s = newest.entry(list.issuer).or_default();
        *made_s = list.this_update_s.max(*made_s);
    }
    newest
}

impl Held {
    /// A list that is there.
    pub fn present(list: &Arc<List>) -> Self {
        Held {
            list: Arc::clone(list),
            has_end: true,
        }
    }

    /// A list that is no longer there. If its issuer has made a newer one since, perhaps with another distribution point, this
    /// one may have no successor, and so its entries count, but not its `nextUpdate`.
    pub fn gone(list: &Arc<List>, newest: &Newest) -> Self {
        let newest = newest.get(&list.issuer);
        Held {
            list: Arc::clone(list),
            has_end: newest.is_none_or(|made_s| *made_s <= list.this_update_s),
        }
    }
}

/// Whether another list replaces a list that is no longer there: a newer one for the same certificates or for all, or the same
/// one. A delta list replaces only delta lists. A list for all certificates replaces an indirect one for a part of them only if it
/// names certificates of the same other authorities.
pub fn is_superseded(gone: &List, present: &[Arc<List>]) -> bool {
    present.iter().any(|other| {
        let covers_it = other.part == gone.part || other.part.is_empty();
        let has_all = !other.is_delta && covers_it && has_authorities_of(gone, other);
        other.issuer == gone.issuer
            && ((other.is_alike(gone) || has_all) && other.this_update_s > gone.this_update_s
                || **other == *gone)
    })
}

/// An indirect list names certificates of several authorities. Returns whether `other` names some of each that `list` does, apart
/// from the issuer.
fn has_authorities_of(list: &List, other: &List) -> bool {
    let named = |authority| other.revoked.iter().any(|(known, _)| *known == authority);
    let mut authorities = list.revoked.iter().map(|(authority, _)| *authority);
    authorities.all(|authority| authority == list.issuer || named(authority))
}

/// Merges all lists into the form that stores read.
///
/// If there are several lists for the same certificates, the latest `nextUpdate` decides until when they are current. The
/// entries of all count, because an entry too many costs one full handshake. A delta list contributes only entries: without
/// its base list it is never current.
///
/// A list without an end contributes only entries, too.
pub fn merge(lists: &[Held], is_complete: bool) -> Known {
    let mut ends: HashMap<(IssuerHash, &[u8]), u64> = HashMap::new();
    for Held { list, .. } in lists.iter().filter(|held| held.has_end) {
        let end = ends.entry((list.issuer, &list.part)).or_default();
        if !list.is_delta {
            *end = (*end).max(list.next_update_s.unwrap_or(NEVER_S));
        }
    }
    let mut merged: HashMap<IssuerHash, IssuerLists> = HashMap::new();
    for Held { list, has_end } in lists {
        // A delta list may cover another part than its base list.
        let end_of_part = || ends[&(list.issuer, &*list.part)];
        let has_base = || {
            ends.iter()
                .any(|((issuer, _), end)| *issuer == list.issuer && *end > 0)
        };
        let end = match has_end {
            true if end_of_part() > 0 || !has_base() => end_of_part(),
            _ => NEVER_S,
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
        resumed_with(issuer, &lists.iter().map(Held::present).collect::<Vec<_>>())
    }

    fn resumed_with(issuer: &str, lists: &[Held]) -> Vec<u8> {
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
            let certificate = certificate(&name(issuer), &[*serial]);
            let session = NewSession {
                key: SessionKey::Id(&id),
                secret: &[0; 48],
                template: None,
                certificate: Some(&certificate),
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

    #[test]
    fn a_list_that_is_gone_has_no_end_once_its_issuer_has_a_newer_one() {
        let made = |this_update, number, end, extensions| {
            let of = Crl {
                this_update,
                next_update: end,
                extensions,
                ..Crl::default()
            };
            let der = crl("ca", &[entry(&[number], &[])], of);
            Arc::new(parse(&der).unwrap().remove(0))
        };
        let (old, new) = (b"190101000000Z", b"190102000000Z");
        // The issuer gets a distribution point, or another one, or has none any more.
        for (before, after) in [
            (vec![], vec![part(1)]),
            (vec![part(1)], vec![part(2)]),
            (vec![part(1)], vec![]),
        ] {
            let gone = made(old, 1, PAST, before.clone());
            let resumed_beside = |present: Arc<List>| {
                let newest = newest([&present].into_iter());
                let lists = [Held::gone(&gone, &newest), Held::present(&present)];
                resumed_with("ca", &lists)
            };
            assert_eq!(resumed_beside(made(new, 2, FUTURE, after.clone())), [3, 4]);
            let is_gone = is_superseded(&gone, &[made(new, 2, FUTURE, after.clone())]);
            assert_eq!(is_gone, after.is_empty());
            // The newer one may end as well, and neither an older one nor changes have the place of the list.
            assert_eq!(resumed_beside(made(new, 2, PAST, after.clone())), []);
            assert_eq!(resumed_beside(made(old, 2, FUTURE, after.clone())), []);
            let changes = [after, vec![delta()]].concat();
            assert_eq!(resumed_beside(made(new, 2, FUTURE, changes)), []);
        }
        let newest = newest([].into_iter());
        let alone = Held::gone(&made(old, 1, PAST, vec![]), &newest);
        assert_eq!(resumed_with("ca", &[alone]), []);
    }

    #[test]
    fn an_indirect_list_that_is_gone_is_not_replaced_by_a_list_without_its_authorities() {
        let made = |this_update_s, extensions, authorities: &[&str]| {
            let mut list = Arc::into_inner(list("ca", &[1], FUTURE, extensions)).unwrap();
            list.this_update_s = this_update_s;
            let entries = authorities.iter();
            let entries = entries.map(|of| (IssuerHash::of(&name(of)), Arc::from([7_u64])));
            list.revoked.extend(entries);
            list
        };
        // The issuer's list of its own certificates has no distribution point, and its indirect one has one.
        let gone = made(1, vec![part(1)], &["other"]);
        let superseded = |newer: List| is_superseded(&gone, &[Arc::new(newer)]);
        assert!(!superseded(made(2, vec![], &[])));
        assert!(!superseded(made(2, vec![], &["third"])));
        assert!(superseded(made(2, vec![], &["third", "other"])));
        assert!(superseded(made(2, vec![part(1)], &[])));
        assert!(!superseded(made(0, vec![part(1)], &["other"])));
        // The same list in another file.
        assert!(superseded(made(1, vec![part(1)], &["other"])));
    }
}
