//! A node that is fed with records by hand, which whoever has the log could have put there.

use super::*;
use crate::record::{kind_of, seal_plain, Kind};
use crate::testing::{id, key_line, open, options, secret, store, Common, Memory, LAYOUT};
use rekindle_core::{Limits, Reference};
use sha2::{Digest, Sha256};

const SCOPE: &[u8] = b"hostile";
const HOUR_MS: u64 = 3_600_000;
/// Session 0 is the node's own, and the next come from another one.
const SESSIONS: u32 = 4;

/// A node with a few sessions.
pub struct Target {
    _reference: Reference<Common>,
    scope: Arc<Scope<Common>>,
    reader: Reader<Common>,
    valid: Vec<Record>,
}

/// Id, secret, certificate.
type Row = (Vec<u8>, Vec<u8>, Vec<u8>);

/// All that a record could change.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    sessions: Vec<Row>,
    applied: u64,
    known: u64,
    revocations: usize,
    templates: usize,
}

fn keys() -> Keys {
    Keys::parse(&(key_line("a") + &key_line("b"))).expect("two keys")
}

fn certificate(n: u32) -> Vec<u8> {
    vec![n as u8; 10 * (n % 2) as usize]
}

fn birth<'a>(
    id: &'a [u8; 32],
    secret: &'a [u8; 48],
    template: &'a ContentHash,
    certificate: &'a [u8],
) -> Body<'a> {
    Body::Birth {
        id,
        secret,
        template,
        certificate,
        tail: b"",
    }
}

fn stamp(made_ms: u64) -> Stamp {
    Stamp {
        writer: 1,
        made_ms,
        expires_ms: made_ms.saturating_add(HOUR_MS),
    }
}

fn sealed(keys: &Keys, context: &Context, made_ms: u64, body: &Body) -> Record {
    seal(keys, context, stamp(made_ms), body).expect("random bytes")
}

/// Of each kind one or more that are not known yet.
fn others(keys: &Keys, context: &Context, made_ms: u64) -> Vec<Record> {
    let hash = content_hash(b"template");
    let (serial, name) = (b"\x01".to_vec(), b"issuer".to_vec());
    let mut bodies = vec![
        Body::Template(b"another template"),
        Body::Forget(&[1; 32]),
        Body::Flush,
        Body::Revoke(Wanted::Sha256(Sha256::digest(b"certificate").into())),
        Body::Revoke(Wanted::Sha1([3; 20])),
        Body::Revoke(Wanted::Issuer {
            name: name.clone().into(),
        }),
        Body::Revoke(Wanted::Serial {
            name: name.into(),
            serial: serial.into(),
        }),
    ];
    let ids = [id(100), id(101)];
    let secrets = [secret(100), secret(101)];
    bodies.push(birth(&ids[0], &secrets[0], &hash, b""));
    bodies.push(birth(&ids[1], &secrets[1], &hash, b"certificate"));
    let sealed = |body: &Body| sealed(keys, context, made_ms, body);
    bodies.iter().map(sealed).collect()
}

impl Default for Target {
    fn default() -> Self {
        let limits = Limits {
            max_bytes: 10_000_000,
            max_sessions: 100,
            lifetime_ms: HOUR_MS,
        };
        let (reference, scope) = open(SCOPE, limits);
        let options = options(SCOPE, "/nonexistent".into());
        let shared = Arc::new(Shared::new(&scope, options).expect("a random number"));
        *shared.keys.write() = Some(Arc::new(keys()));
        let context = Context::new(SCOPE, LAYOUT);
        let hash = content_hash(b"template");
        let mut valid = vec![sealed(
            &keys(),
            &context,
            wall_ms(),
            &Body::Template(b"template"),
        )];
        for n in 0..SESSIONS {
            let (id, secret, certificate) = (id(n), secret(n), certificate(n));
            let body = birth(&id, &secret, &hash, &certificate);
            valid.push(sealed(&keys(), &context, wall_ms(), &body));
        }
        let mut target = Target {
            _reference: reference,
            reader: Reader::new(shared, &scope, Memory::default().reader(0, 1)),
            scope,
            valid: Vec::new(),
        };
        for record in &valid {
            assert_eq!(target.feed(record), None);
        }
        valid.extend(others(&keys(), &context, wall_ms()));
        target.valid = valid;
        target
    }
}

impl Target {
    /// What becomes of a record: the reason if it is left out. Each is counted once.
    fn feed(&mut self, record: &[u8]) -> Option<Skipped> {
        let counts = |target: &Self| {
            let status = &target.reader.shared.status;
            let skipped = status.skipped.iter().map(|count| count.load(Relaxed));
            (status.read.load(Relaxed), skipped.collect::<Vec<u64>>())
        };
        let (read, skipped) = counts(self);
        assert!(self.reader.apply(record, Arrival::Live).is_ok());
        let (read_after, skipped_after) = counts(self);
        assert_eq!(read_after, read + 1);
        let mut reasons = Skipped::ALL
            .into_iter()
            .filter(|reason| skipped_after[reason.index()] != skipped[reason.index()]);
        let reason = reasons.next();
        assert!(reasons.next().is_none());
        let sum = |counts: &[u64]| counts.iter().sum::<u64>();
        assert_eq!(
            sum(&skipped_after),
            sum(&skipped) + u64::from(reason.is_some())
        );
        reason
    }

    fn content(&self) -> Content {
        let mut sessions = Vec::new();
        store(&self.scope).page(0, usize::MAX, now_ms(), |listed| {
            let SessionKey::Id(id) = listed.key else {
                unreachable!("there is no other key in a log")
            };
            let session = listed.session;
            sessions.push((
                id.to_vec(),
                session.secret.to_vec(),
                session
                    .certificate
                    .map_or(Vec::new(), |der| der.der().into_owned()),
            ));
        });
        sessions.sort();
        let shared = &self.reader.shared;
        Content {
            sessions,
            applied: shared.status.applied.load(Relaxed),
            known: shared.status.known.load(Relaxed),
            revocations: shared.revocations.lock().len(),
            templates: self.reader.templates.len(),
        }
    }
}

/// A change of a record. Places are taken modulo its length.
#[derive(Debug, Clone)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
#[allow(missing_docs)]
pub enum Edit {
    Flip(u16),
    Cut(u16),
    Drop(u16),
    Insert(u16, u8),
    /// From this place on it goes on as another one.
    Splice(u16, u8),
}

/// A record that is fed.
#[derive(Debug, Clone)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
#[allow(missing_docs)]
pub enum Feed {
    Bytes(Vec<u8>),
    /// One that another node wrote, changed.
    Edited(u8, Vec<Edit>),
    /// Sealed with a key of the fleet, but a body of any bytes: of another version, or of whoever has the key.
    Sealed {
        kind: u8,
        after_s: i16,
        lifetime_s: u16,
        body: Vec<u8>,
    },
    /// A session of another node, with its certificate.
    Session {
        n: u8,
        after_s: i16,
        certificate: Vec<u8>,
    },
}

/// Feeds a node with records, and panics if one that was not sealed with a key changes anything.
pub fn check(feeds: &[Feed]) {
    let mut target = Target::default();
    for feed in feeds {
        match feed {
            Feed::Bytes(bytes) => target.check_refused(bytes),
            Feed::Edited(which, edits) => {
                let record = target.edited(*which, edits);
                match target.valid.contains(&record) {
                    true => target.check_whole(&record),
                    false => target.check_refused(&record),
                }
            }
            Feed::Sealed {
                kind,
                after_s,
                lifetime_s,
                body,
            } => {
                let kind = kind_of(kind % 5 + 1).unwrap_or(Kind::Birth);
                let made_ms = wall_ms().saturating_add_signed(1000 * i64::from(*after_s));
                let stamp = Stamp {
                    writer: 2,
                    made_ms,
                    expires_ms: made_ms + 1000 * u64::from(*lifetime_s),
                };
                let context = Context::new(SCOPE, LAYOUT);
                let record = seal_plain(&keys(), &context, stamp, kind, body);
                target.check_whole(&record.expect("random bytes"));
            }
            Feed::Session {
                n,
                after_s,
                certificate,
            } => {
                let n = u32::from(*n);
                let (id, secret, hash) = (id(n), secret(n), content_hash(b"template"));
                let made_ms = wall_ms().saturating_add_signed(1000 * i64::from(*after_s));
                let context = Context::new(SCOPE, LAYOUT);
                let body = birth(&id, &secret, &hash, certificate);
                target.check_whole(&sealed(&keys(), &context, made_ms, &body));
            }
        }
    }
}

impl Target {
    fn check_refused(&mut self, record: &[u8]) {
        let before = self.content();
        assert!(self.feed(record).is_some());
        assert_eq!(self.content(), before);
    }

    /// Whoever has a key may have anything done, but not what is neither counted nor allowed.
    fn check_whole(&mut self, record: &[u8]) {
        let before = self.content();
        let reason = self.feed(record);
        let after = self.content();
        if reason.is_some() {
            assert_eq!(after, before);
        }
        let revocations = self.reader.shared.revocations.lock();
        for (id, ..) in &after.sessions {
            let id = id.as_slice().try_into().expect("an id");
            assert!(!revocations.is_revoked(id, u64::MAX, None));
        }
    }

    fn edited(&self, which: u8, edits: &[Edit]) -> Record {
        let valid = |which: u8| &self.valid[usize::from(which) % self.valid.len()];
        let mut record = valid(which).clone();
        for edit in edits {
            let place = |place: u16| usize::from(place) % record.len().max(1);
            match *edit {
                Edit::Flip(bit) => {
                    let place = place(bit / 8);
                    if let Some(byte) = record.get_mut(place) {
                        *byte ^= 1 << (bit % 8);
                    }
                }
                Edit::Cut(at) => record.truncate(place(at)),
                Edit::Drop(at) => {
                    let place = place(at);
                    record.drain(place..(place + 1).min(record.len()));
                }
                Edit::Insert(at, byte) => record.insert(place(at).min(record.len()), byte),
                Edit::Splice(at, which) => {
                    let place = place(at);
                    record.truncate(place);
                    record.extend(valid(which).iter().skip(place));
                }
            }
        }
        record
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use std::collections::HashSet;

    /// Nothing of these is applied, and each is counted under one reason.
    fn refuses(records: impl IntoIterator<Item = Record>) -> Vec<(Skipped, u64)> {
        let mut target = Target::default();
        refuses_at(&mut target, records)
    }

    fn refuses_at(
        target: &mut Target,
        records: impl IntoIterator<Item = Record>,
    ) -> Vec<(Skipped, u64)> {
        let before = target.content();
        let mut fed = 0;
        let mut counts = [0; Skipped::ALL.len()];
        for record in records {
            let reason = target.feed(&record);
            counts[reason.expect("a record that is left out").index()] += 1;
            fed += 1;
        }
        assert_eq!(target.content(), before);
        assert_eq!(counts.iter().sum::<u64>(), fed);
        let counts = Skipped::ALL.into_iter().zip(counts);
        counts.filter(|(_, count)| *count > 0).collect()
    }

    fn reasons(records: impl IntoIterator<Item = Record>) -> Vec<Skipped> {
        refuses(records)
            .into_iter()
            .map(|(reason, _)| reason)
            .collect()
    }

    fn context() -> Context {
        Context::new(SCOPE, LAYOUT)
    }

    #[test]
    fn what_is_changed_below_is_accepted_as_it_is() {
        let mut target = Target::default();
        for record in target.valid.clone() {
            let reason = target.feed(&record);
            // The flush is for all of them.
            let is_birth = record[1] == Kind::Birth as u8;
            let is_after = is_birth && target.content().sessions.is_empty();
            assert_eq!(reason, is_after.then_some(Skipped::Revoked));
        }
        assert_eq!(target.content().revocations, 6);
        assert_eq!(target.content().templates, 2);
    }

    /// Of one body, with one nonce, one record would come of it again.
    #[test]
    fn no_nonce_comes_twice() {
        let (keys, context, now_ms) = (keys(), context(), wall_ms());
        let records: HashSet<Record> = (0..1000)
            .map(|_| sealed(&keys, &context, now_ms, &Body::Flush))
            .collect();
        assert_eq!(records.len(), 1000);
    }

    #[test]
    fn every_bit_counts() {
        let target = Target::default();
        let flipped = target.valid.iter().flat_map(|record| {
            (0..8 * record.len()).map(|bit| {
                let mut record = record.clone();
                record[bit / 8] ^= 1 << (bit % 8);
                record
            })
        });
        let counts = refuses(flipped.collect::<Vec<_>>());
        let count = |wanted| {
            let found = counts.iter().find(|(reason, _)| *reason == wanted);
            found.map_or(0, |(_, count)| *count)
        };
        let records = target.valid.len() as u64;
        assert!(count(Skipped::Version) >= 8 * records);
        assert!(count(Skipped::Scope) >= 4 * 8 * records);
        assert!(count(Skipped::Layout) >= 4 * 8 * records);
        assert!(count(Skipped::Key) >= 8 * records);
        // Writer, nonce, body and tag.
        assert!(count(Skipped::Forged) >= (8 + 24 + 16) * 8 * records);
    }

    #[test]
    fn every_length_counts() {
        let target = Target::default();
        let valid = || target.valid.iter();
        let short = valid().flat_map(|record| (0..record.len()).map(|len| record[..len].to_vec()));
        let expected = [Skipped::Malformed, Skipped::Forged];
        assert_eq!(reasons(short.collect::<Vec<_>>()), expected);
        let long =
            valid().flat_map(|record| (1..100).map(|more| [&record[..], &vec![0; more]].concat()));
        assert_eq!(reasons(long.collect::<Vec<_>>()), [Skipped::Forged]);
        let huge = valid().map(|record| [&record[..], &vec![0; 1 << 20]].concat());
        assert_eq!(reasons(huge.collect::<Vec<_>>()), [Skipped::Malformed]);
    }

    #[test]
    fn records_of_other_scopes_and_layouts_are_left_out() {
        let now_ms = wall_ms();
        let mut elsewhere = others(&keys(), &Context::new(b"another", LAYOUT), now_ms);
        assert_eq!(reasons(elsewhere.clone()), [Skipped::Scope]);
        // Made to look like ours.
        let ours = others(&keys(), &context(), now_ms);
        for (record, ours) in elsewhere.iter_mut().zip(&ours) {
            record[2..6].copy_from_slice(&ours[2..6]);
        }
        assert_eq!(reasons(elsewhere), [Skipped::Forged]);
        let is_of_layout = |record: &Record| record[6..10] != [0; 4];
        let other_layout = others(&keys(), &Context::new(SCOPE, b"another"), now_ms);
        let (mut of_layout, of_any): (Vec<_>, Vec<_>) =
            other_layout.into_iter().partition(is_of_layout);
        assert_eq!((of_layout.len(), of_any.len()), (3, 6));
        assert_eq!(refuses(of_layout.clone()), [(Skipped::Layout, 3)]);
        let tag = ours.iter().find(|record| is_of_layout(record)).unwrap()[6..10].to_vec();
        for record in &mut of_layout {
            record[6..10].copy_from_slice(&tag);
        }
        assert_eq!(refuses(of_layout), [(Skipped::Forged, 3)]);
        // Revocations are for all layouts.
        let mut target = Target::default();
        for record in of_any {
            assert_eq!(target.feed(&record), None);
        }
        assert_eq!(target.content().sessions, []);
    }

    /// Their tags are the same, as an attacker could have searched for.
    #[test]
    fn names_are_told_apart_in_full() {
        let scopes = [&b"scope 14615"[..], b"scope 27230"];
        let layouts = [&b"layout 68445"[..], b"layout 85142"];
        let [here, other_scope, other_layout] = [(0, 0), (1, 0), (0, 1)]
            .map(|(scope, layout)| Context::new(scopes[scope], layouts[layout]));
        for birth in target_births(&here) {
            let opened_in = |context| super::super::open(&keys(), context, &birth, wall_ms());
            assert!(opened_in(&here).is_ok());
            for other in [&other_scope, &other_layout] {
                assert_eq!(opened_in(other).err(), Some(Skipped::Forged));
            }
        }
    }

    #[test]
    fn a_name_does_not_run_into_the_next() {
        let record = others(&keys(), &Context::new(b"hostilel", b"ayout"), wall_ms());
        let ours = others(&keys(), &context(), wall_ms());
        let records = record.into_iter().zip(ours).map(|(mut record, ours)| {
            record[2..10].copy_from_slice(&ours[2..10]);
            record
        });
        assert_eq!(reasons(records), [Skipped::Forged]);
    }

    #[test]
    fn keys_are_told_apart() {
        let now_ms = wall_ms();
        let same_name = key_line("x").replacen('x', "a", 1);
        let imposter = Keys::parse(&same_name).unwrap();
        let records = others(&imposter, &context(), now_ms);
        assert_eq!(reasons(records), [Skipped::Forged]);
        let unknown = Keys::parse(&key_line("x")).unwrap();
        let mut records = others(&unknown, &context(), now_ms);
        assert_eq!(reasons(records.clone()), [Skipped::Key]);
        for record in &mut records {
            assert_eq!(record[35], b'x');
            record[35] = b'b';
        }
        assert_eq!(reasons(records), [Skipped::Forged]);
    }

    #[test]
    fn versions_and_times_are_heeded() {
        let now_ms = wall_ms();
        let mut newer = others(&keys(), &context(), now_ms);
        newer.iter_mut().for_each(|record| record[0] = 3);
        assert_eq!(reasons(newer), [Skipped::Version]);
        let expired = others(&keys(), &context(), now_ms - HOUR_MS);
        assert_eq!(reasons(expired.clone()), [Skipped::Expired]);
        let mut prolonged = expired;
        for record in &mut prolonged {
            record[26..34].copy_from_slice(&u64::MAX.to_be_bytes());
        }
        assert_eq!(reasons(prolonged), [Skipped::Forged]);
        let future = others(&keys(), &context(), now_ms + 2 * MAX_AHEAD_MS);
        let mut target = Target::default();
        let (sessions, revocations): (Vec<_>, Vec<_>) = future
            .into_iter()
            .partition(|record| record[1] <= Kind::Template as u8);
        assert_eq!(refuses_at(&mut target, sessions), [(Skipped::Future, 3)]);
        for record in revocations {
            assert_eq!(target.feed(&record), None);
        }
        // Far enough to overflow anything.
        let stamp = Stamp {
            writer: 1,
            made_ms: u64::MAX,
            expires_ms: u64::MAX,
        };
        let flush = seal(&keys(), &context(), stamp, &Body::Flush).unwrap();
        assert_eq!(target.feed(&flush), None);
        assert_eq!(
            refuses_at(&mut target, target_births(&context())),
            [(Skipped::Revoked, 2)]
        );
    }

    fn target_births(context: &Context) -> Vec<Record> {
        let others = others(&keys(), context, wall_ms());
        let is_birth = |record: &Record| record[1] == Kind::Birth as u8;
        others.into_iter().filter(is_birth).collect()
    }

    #[test]
    fn what_is_repeated_after_a_revocation_stays_revoked() {
        let wanted = |n| Wanted::Sha256(Sha256::digest(certificate(n)).into());
        let ids = [id(0), id(1), id(2), id(3)];
        let forgets = ids.each_ref().map(Body::Forget);
        let revocations: [&[Body]; 3] = [
            &forgets,
            &[Body::Flush],
            &[Body::Revoke(wanted(1)), Body::Revoke(wanted(3))],
        ];
        for (bodies, left) in revocations.into_iter().zip([0, 0, 2]) {
            let mut target = Target::default();
            for body in bodies {
                let record = sealed(&keys(), &context(), wall_ms(), body);
                assert_eq!(target.feed(&record), None);
            }
            assert_eq!(target.content().sessions.len(), left);
            let births = target.valid[1..=SESSIONS as usize].to_vec();
            for record in births {
                let before = target.content().sessions;
                let is_held = target.feed(&record).is_none();
                assert_eq!(
                    (is_held, target.content().sessions),
                    (
                        left == 2 && before.iter().any(|session| session.0 == id_of(&record)),
                        before
                    )
                );
            }
            assert_eq!(target.content().sessions.len(), left);
        }
    }

    fn id_of(record: &Record) -> Vec<u8> {
        let opened = super::super::open(&keys(), &context(), record, wall_ms())
            .ok()
            .unwrap();
        match opened.body() {
            Ok(Body::Birth { id, .. }) => id.to_vec(),
            _ => panic!("not a session"),
        }
    }

    fn edit() -> impl Strategy<Value = Edit> {
        prop_oneof![
            any::<u16>().prop_map(Edit::Flip),
            (0..300u16).prop_map(Edit::Cut),
            (0..300u16).prop_map(Edit::Drop),
            (0..300u16, any::<u8>()).prop_map(|(at, byte)| Edit::Insert(at, byte)),
            (0..300u16, any::<u8>()).prop_map(|(at, which)| Edit::Splice(at, which)),
        ]
    }

    fn feed() -> impl Strategy<Value = Feed> {
        let sealed = (
            any::<u8>(),
            any::<i16>(),
            any::<u16>(),
            vec(any::<u8>(), 0..200),
        );
        let session = (any::<u8>(), any::<i16>(), vec(any::<u8>(), 0..200));
        prop_oneof![
            vec(any::<u8>(), 0..300).prop_map(Feed::Bytes),
            (any::<u8>(), vec(edit(), 0..4)).prop_map(|(which, edits)| Feed::Edited(which, edits)),
            session.prop_map(|(n, after_s, certificate)| Feed::Session {
                n,
                after_s,
                certificate
            }),
            sealed.prop_map(|(kind, after_s, lifetime_s, body)| Feed::Sealed {
                kind,
                after_s,
                lifetime_s,
                body
            }),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn nothing_that_is_not_sealed_changes_anything(feeds in vec(feed(), 0..40)) {
            check(&feeds);
        }
    }
}
