//! Feeds a node with records that anybody with access to the log could have put there.

use crate::clock::now_ms;
use crate::node_memory::NodeMemory;
use crate::reader::Unread;
use crate::record::{content_hash, seal, seal_plain, Body, ContentHash, Context, Kind, Skipped};
use crate::record::{Stamp, Statement, Term};
use crate::revocations::{Knowledge, Known, RevocationId, Verdict};
use crate::shared::Shared;
use crate::target::{CertificateSelector, Target};
use crate::testing::{id, keys, open, options, secret, store, Common, LAYOUT};
use rekindle_core::{Arrival, Limits, Reference, Scope, SessionKey};
use rekindle_log::{Record, Stream};
use sha2::{Digest, Sha256};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

const SCOPE: &str = "hostile";
const KEYS: [&str; 2] = ["a", "b"];
const HOUR_MS: u64 = 3_600_000;
/// Sessions of another node.
const SESSIONS: u32 = 4;
const LOG: [u8; 8] = [5; 8];

/// A node with a few sessions.
pub struct Node {
    _reference: Reference<Common>,
    scope: Arc<Scope<Common>>,
    shared: Shared<Common>,
    valid: Vec<(Stream, Record)>,
}

/// Id, secret, certificate.
type Row = (Vec<u8>, Vec<u8>, Vec<u8>);

/// Everything that a record could change.
#[derive(Debug, PartialEq, Eq)]
struct Content {
    sessions: Vec<Row>,
    applied: u64,
    known: u64,
    revocations: usize,
    knowledge: Arc<Knowledge>,
    missing: u64,
    references: [usize; 3],
    questions: usize,
}

fn certificate(n: u32) -> Vec<u8> {
    vec![n as u8; 10 * (n % 2) as usize]
}

fn context() -> Context {
    Context::new(SCOPE.as_bytes(), LAYOUT)
}

fn stamp(after_ms: i64) -> Stamp {
    Stamp {
        log: LOG,
        writer: 1,
        made_ms: now_ms().saturating_add_signed(after_ms),
        lifetime_ms: HOUR_MS,
    }
}

fn nothing() -> Vec<u8> {
    Statement::default().encode()
}

/// A session of another node that knew no revocation.
fn sealed_session(n: u32, after_ms: i64, certificate: &[u8]) -> Record {
    let (id, secret, template): (_, _, ContentHash) = (id(n), secret(n), content_hash(b"template"));
    let body = Body::Session {
        id: &id,
        secret: &secret,
        template: &template,
        knowledge: &content_hash(&nothing()),
        certificate,
        tail: b"",
    };
    seal(&keys(&KEYS), &context(), stamp(after_ms), &body).expect("random bytes")
}

fn clock(revision: u64) -> Body<'static> {
    let zero_ms = crate::clock::wall_ms() as i64 - now_ms() as i64;
    Body::Clock { zero_ms, revision }
}

/// Records that the node knows already: a template, a knowledge, a clock, sessions.
fn known() -> Vec<(Stream, Record)> {
    let nothing = nothing();
    let bodies = [
        Body::Template(b"template"),
        Body::Knowledge(&nothing),
        clock(1),
    ];
    let seal = |body: &Body| seal(&keys(&KEYS), &context(), stamp(0), body).expect("random bytes");
    let control = bodies.iter().map(|body| (Stream::Control, seal(body)));
    let session = |n| (Stream::Sessions, sealed_session(n, 0, &certificate(n)));
    control.chain((0..SESSIONS).map(session)).collect()
}

/// For each kind, one or more records that the node does not know yet.
fn others(context: &Context) -> Vec<(Stream, Record)> {
    let (serial, name): (Box<[u8]>, Box<[u8]>) = ([1].into(), (*b"issuer").into());
    let targets = [
        Target::Session([1; 32]),
        Target::Certificate(CertificateSelector::Sha256(
            Sha256::digest(b"certificate").into(),
        )),
        Target::Certificate(CertificateSelector::Sha1([3; 20])),
        Target::Certificate(CertificateSelector::Issuer { name: name.clone() }),
        Target::Certificate(CertificateSelector::Serial { name, serial }),
        Target::All,
    ];
    let known = Known {
        upto: 9,
        ..Known::default()
    };
    let statement = Statement {
        knowledge: Knowledge {
            epoch: 5,
            origins: [(1, known)].into(),
        },
        lifetime_ms: 0,
        retired_keys: vec!["old".into()],
        lacked_keys: vec!["new".into()],
    };
    let statement = statement.encode();
    let mut bodies = vec![
        Body::Template(b"another template"),
        Body::Knowledge(&statement),
        clock(2),
        Body::Ask { nonce: 3 },
        Body::Answer {
            nonce: 4,
            knowledge: &[5; 16],
        },
        Body::Claim,
    ];
    let revocation = |(place, target)| Body::Revocation {
        id: RevocationId {
            origin: 1,
            counter: place as u64 + 1,
        },
        term: Term::new(HOUR_MS),
        target,
    };
    bodies.extend(targets.into_iter().enumerate().map(revocation));
    let seal = |body: &Body| seal(&keys(&KEYS), context, stamp(0), body).expect("random bytes");
    bodies
        .iter()
        .map(|body| (Stream::Control, seal(body)))
        .collect()
}

impl Default for Node {
    fn default() -> Self {
        let limits = Limits {
            max_bytes: 10_000_000,
            max_sessions: 100,
            lifetime_ms: HOUR_MS,
        };
        let (reference, scope) = open(SCOPE, limits);
        let options = options(SCOPE, "/nonexistent".into());
        let memory = Arc::new(NodeMemory::new(None));
        let location = "memory".to_owned();
        let shared = Shared::new(&scope, options, memory, location, true, Arc::default())
            .expect("a random number");
        shared.set_keys(keys(&KEYS));
        shared.set_identity(LOG);
        let mut node = Node {
            _reference: reference,
            scope,
            shared,
            valid: known(),
        };
        for (stream, record) in node.valid.clone() {
            assert_eq!(node.feed(stream, &record), None);
        }
        node.valid.extend(others(&context()));
        let more = [(100, &b""[..]), (101, b"certificate")];
        let more = more.map(|(n, der)| (Stream::Sessions, sealed_session(n, 0, der)));
        node.valid.extend(more);
        node
    }
}

impl Node {
    /// What the node does with a record: the reason if it does not use it. Each record is counted once.
    fn feed(&self, stream: Stream, record: &[u8]) -> Option<Skipped> {
        let status = &self.shared.status;
        let counts = || {
            let skipped = status.skipped.iter().map(|count| count.load(Relaxed));
            (status.read.load(Relaxed), skipped.collect::<Vec<u64>>())
        };
        let (read, skipped) = counts();
        let record = record.to_vec();
        match stream {
            Stream::Control => self.shared.apply_control([&record], None),
            Stream::Sessions => {
                let store = store(&self.scope);
                let applied = self
                    .shared
                    .apply_session(store, &record, Arrival::Live, None);
                match applied {
                    Ok(()) => {}
                    Err(Unread::Skipped(reason)) => status.skip(reason),
                    Err(Unread::UnknownKnowledge(_)) => status.skip(Skipped::Template),
                }
            }
        }
        let (read_after, skipped_after) = counts();
        assert_eq!(read_after, read + 1);
        let mut reasons = Skipped::ALL
            .into_iter()
            .filter(|reason| skipped_after[reason.index()] != skipped[reason.index()]);
        let reason = reasons.next();
        assert!(reasons.next().is_none());
        let sum = |counts: &[u64]| counts.iter().sum::<u64>();
        let expected = sum(&skipped) + u64::from(reason.is_some());
        assert_eq!(sum(&skipped_after), expected);
        reason
    }

    fn content(&self) -> Content {
        let mut sessions = Vec::new();
        store(&self.scope).page(0, usize::MAX, now_ms(), |listed| {
            let SessionKey::Id(id) = listed.key else {
                unreachable!("there is no other key in a log")
            };
            let session = listed.session;
            let der = session.certificate;
            let der = der.map_or(Vec::new(), |der| der.der().into_owned());
            sessions.push((id.to_vec(), session.secret.to_vec(), der));
        });
        sessions.sort();
        let shared = &self.shared;
        let references = shared.references.lock();
        let revocations = shared.remembered.revocations();
        let replay = shared.replay.lock();
        Content {
            sessions,
            applied: shared.status.applied.load(Relaxed),
            known: shared.status.known.load(Relaxed),
            revocations: revocations.len(),
            knowledge: shared.remembered.knowledge(),
            missing: revocations.missing(),
            references: [
                references.templates.len(),
                references.knowledge.len(),
                references.clocks.len(),
            ],
            questions: replay.to_answer.len(),
        }
    }

    fn check_refused(&self, stream: Stream, record: &[u8]) {
        let before = self.content();
        assert!(self.feed(stream, record).is_some());
        assert_eq!(self.content(), before);
    }

    /// Somebody with a key may do anything, but each record must be counted and have an allowed effect.
    fn check_whole(&self, stream: Stream, record: &[u8]) {
        let before = self.content();
        let reason = self.feed(stream, record);
        let after = self.content();
        if reason.is_some() {
            assert_eq!(after, before);
        }
        let revocations = self.shared.remembered.revocations();
        for (id, _, certificate) in &after.sessions {
            let id = id.as_slice().try_into().expect("an id");
            let certificate = (!certificate.is_empty()).then_some(&certificate[..]);
            let verdict = revocations.judge(id, certificate, &Arc::default());
            assert_ne!(verdict, Verdict::Revoked);
        }
    }

    fn edited(&self, which: u8, edits: &[Edit]) -> (Stream, Record) {
        let valid = |which: u8| &self.valid[usize::from(which) % self.valid.len()];
        let (mut stream, mut record) = valid(which).clone();
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
                    record.extend(valid(which).1.iter().skip(place));
                }
                Edit::Move => {
                    stream = match stream {
                        Stream::Control => Stream::Sessions,
                        Stream::Sessions => Stream::Control,
                    }
                }
            }
        }
        (stream, record)
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
    /// From this byte on it continues as another record.
    Splice(u16, u8),
    /// Moves to the other stream.
    Move,
}

/// A record to feed.
#[derive(Debug, Clone)]
#[cfg_attr(fuzzing, derive(arbitrary::Arbitrary))]
#[allow(missing_docs)]
pub enum Feed {
    Bytes(bool, Vec<u8>),
    /// A record of another node, with a change.
    Edited(u8, Vec<Edit>),
    /// A record that is sealed with a key of the fleet but has any bytes as its body: of another version, or of
    /// somebody with the key.
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

/// Feeds a node with records. Panics if a record that was not sealed with a key changes anything.
pub fn check(feeds: &[Feed]) {
    let node = Node::default();
    for feed in feeds {
        match feed {
            Feed::Bytes(is_control, bytes) => {
                let stream = match is_control {
                    true => Stream::Control,
                    false => Stream::Sessions,
                };
                node.check_refused(stream, bytes);
            }
            Feed::Edited(which, edits) => {
                let edited = node.edited(*which, edits);
                match node.valid.contains(&edited) {
                    true => node.check_whole(edited.0, &edited.1),
                    false => node.check_refused(edited.0, &edited.1),
                }
            }
            Feed::Sealed {
                kind,
                after_s,
                lifetime_s,
                body,
            } => {
                let kind = Kind::ALL[usize::from(*kind) % Kind::ALL.len()];
                let stamp = Stamp {
                    lifetime_ms: 1000 * u64::from(*lifetime_s),
                    ..stamp(1000 * i64::from(*after_s))
                };
                let record = seal_plain(&keys(&KEYS), &context(), stamp, kind, body);
                node.check_whole(kind.stream(), &record.expect("random bytes"));
            }
            Feed::Session {
                n,
                after_s,
                certificate,
            } => {
                let after_ms = 1000 * i64::from(*after_s);
                let record = sealed_session((*n).into(), after_ms, certificate);
                node.check_whole(Stream::Sessions, &record);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Keys;
    use crate::testing::key_line;
    use proptest::collection::vec;
    use proptest::prelude::*;

    /// None of these records is applied, and each is counted under one reason.
    fn reasons(records: impl IntoIterator<Item = (Stream, Record)>) -> Vec<Skipped> {
        let node = Node::default();
        let before = node.content();
        let reasons = (records.into_iter())
            .map(|(stream, record)| node.feed(stream, &record).expect("one that is left out"));
        let mut reasons: Vec<_> = reasons.collect();
        assert_eq!(node.content(), before);
        reasons.sort();
        reasons.dedup();
        reasons
    }

    #[test]
    fn what_is_changed_below_is_accepted_as_it_is() {
        let node = Node::default();
        assert_eq!(node.content().sessions.len(), SESSIONS as usize);
        for (stream, record) in node.valid.clone() {
            let reason = node.feed(stream, &record);
            // One revocation covers all of them: their knowledge is older.
            let is_after = stream == Stream::Sessions && node.content().sessions.is_empty();
            assert_eq!(reason, is_after.then_some(Skipped::Revoked));
        }
        let content = node.content();
        assert_eq!((content.revocations, content.missing), (6, 3));
        assert_eq!(content.references, [2, 2, 1]);
        assert_eq!(content.questions, 1);
    }

    #[test]
    fn records_of_other_logs_and_streams_are_left_out() {
        let stamp = Stamp {
            log: [6; 8],
            ..stamp(0)
        };
        let body = Body::Template(b"another template");
        let mut record = seal(&keys(&KEYS), &context(), stamp, &body).unwrap();
        let left_out = |record: &Record| reasons([(Stream::Control, record.clone())]);
        assert_eq!(left_out(&record), [Skipped::Log]);
        // The tag is changed to that of this scope.
        record[10..18].copy_from_slice(&LOG);
        assert_eq!(left_out(&record), [Skipped::Forged]);
        let moved = Node::default().valid.into_iter();
        let moved = moved.map(|(stream, record)| match stream {
            Stream::Control => (Stream::Sessions, record),
            Stream::Sessions => (Stream::Control, record),
        });
        assert_eq!(reasons(moved), [Skipped::Log]);
    }

    #[test]
    fn records_of_other_scopes_layouts_and_versions_are_left_out() {
        let elsewhere = Context::new(b"another", LAYOUT);
        assert_eq!(reasons(others(&elsewhere)), [Skipped::Scope]);
        let is_of_layout = |record: &Record| record[6..10] != [0; 4];
        let elsewhere = others(&Context::new(SCOPE.as_bytes(), b"another"));
        let (of_layout, of_any): (Vec<_>, Vec<_>) =
            (elsewhere.into_iter()).partition(|(_, record)| is_of_layout(record));
        assert_eq!((of_layout.len(), of_any.len()), (1, 11));
        assert_eq!(reasons(of_layout), [Skipped::Layout]);
        // Revocations count for all layouts.
        let node = Node::default();
        for (stream, record) in of_any {
            assert_eq!(node.feed(stream, &record), None);
        }
        assert_eq!(node.content().sessions, []);
        for version in [0, 3, 5, 255] {
            let mut other = Node::default().valid;
            other.iter_mut().for_each(|(_, record)| record[0] = version);
            assert_eq!(reasons(other), [Skipped::Version]);
        }
    }

    #[test]
    fn keys_are_told_apart() {
        let seal_with = |line: &str| {
            let keys = Keys::parse(line).unwrap();
            let seal = |body| seal(&keys, &context(), stamp(0), &body).unwrap();
            [Body::Template(b"another template"), Body::Ask { nonce: 1 }].map(seal)
        };
        let control = |records: [Record; 2]| records.map(|record| (Stream::Control, record));
        let imposter = key_line("x").replacen('x', "a", 1);
        let records = control(seal_with(&imposter));
        assert_eq!(reasons(records), [Skipped::Forged]);
        let mut records = seal_with(&key_line("x"));
        assert_eq!(reasons(control(records.clone())), [Skipped::Key]);
        for record in &mut records {
            assert_eq!(record[43], b'x');
            record[43] = b'b';
        }
        assert_eq!(reasons(control(records)), [Skipped::Forged]);
    }

    #[test]
    fn times_are_heeded() {
        let session = |after_ms| [(Stream::Sessions, sealed_session(100, after_ms, b""))];
        let hour_ms = HOUR_MS as i64;
        assert_eq!(reasons(session(-hour_ms - 1000)), [Skipped::Expired]);
        assert_eq!(reasons(session(hour_ms)), [Skipped::Future]);
        let mut prolonged = session(-hour_ms - 1000);
        prolonged[0].1[34..42].copy_from_slice(&u64::MAX.to_be_bytes());
        assert_eq!(reasons(prolonged), [Skipped::Expired]);
        let mut younger = session(-hour_ms - 1000);
        let now = now_ms().to_be_bytes();
        younger[0].1[26..34].copy_from_slice(&now);
        assert_eq!(reasons(younger), [Skipped::Forged]);
    }

    fn edit() -> impl Strategy<Value = Edit> {
        prop_oneof![
            any::<u16>().prop_map(Edit::Flip),
            (0..300u16).prop_map(Edit::Cut),
            (0..300u16).prop_map(Edit::Drop),
            (0..300u16, any::<u8>()).prop_map(|(at, byte)| Edit::Insert(at, byte)),
            (0..300u16, any::<u8>()).prop_map(|(at, which)| Edit::Splice(at, which)),
            Just(Edit::Move),
        ]
    }

    fn feed() -> impl Strategy<Value = Feed> {
        let bytes = |most| vec(any::<u8>(), 0..most);
        let sealed = (any::<u8>(), any::<i16>(), any::<u16>(), bytes(200));
        let session = (any::<u8>(), any::<i16>(), bytes(200));
        prop_oneof![
            (any::<bool>(), bytes(300)).prop_map(|(is_control, it)| Feed::Bytes(is_control, it)),
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
            cases: 64,
            failure_persistence: None,
            ..ProptestConfig::default()
        })]

        #[test]
        fn nothing_that_is_not_sealed_changes_anything(feeds in vec(feed(), 0..40)) {
            check(&feeds);
        }
    }
}
