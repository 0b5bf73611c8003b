//! Journals at work, with their threads, on one log in memory.

use super::*;
use crate::testing::{
    id, insert, key_line, open, options, secret, store, Common, Memory, LAYOUT, USELESS,
};
use rekindle_core::{Limits, Reference};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use tempfile::TempDir;

const HOUR_MS: u64 = 3_600_000;

/// A log, and the key files of those who use it.
struct Fleet {
    name: Vec<u8>,
    log: Memory,
    folder: TempDir,
}

struct Node {
    /// Ends the scope when dropped.
    _reference: Reference<Common>,
    scope: Arc<Scope<Common>>,
}

/// Waits for what the threads will have done.
fn until(what: &str, mut is_done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_done() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Whole and at once: what reads it meanwhile sees the old one or the new one.
fn write_keys(path: &Path, names: &[&str]) {
    let text: String = names.iter().map(|name| key_line(name)).collect();
    let new = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&new).unwrap();
    io::Write::write_all(&mut file, text.as_bytes()).unwrap();
    fs::rename(new, path).unwrap();
}

fn limits(max_sessions: u64) -> Limits {
    Limits {
        max_bytes: 100_000_000,
        max_sessions,
        lifetime_ms: HOUR_MS,
    }
}

/// Events are the process's, and whoever takes them takes those of other tests as well.
static OTHERS: Mutex<Vec<Event>> = Mutex::new(Vec::new());

/// For those whom they concern, but not the model's.
pub fn put_events_aside() {
    let mut events = OTHERS.lock();
    let taken = crate::take_events().into_iter();
    events.extend(taken.filter(|event| event.scope != b"model"));
}

impl Fleet {
    /// Events and log are found by its name.
    fn new(name: &str) -> Fleet {
        let fleet = Fleet {
            name: name.into(),
            log: Memory::default(),
            folder: tempfile::tempdir().unwrap(),
        };
        write_keys(&fleet.key_file("keys"), &["a", "b"]);
        fleet
    }

    fn key_file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn options(&self) -> Options {
        options(&self.name, self.key_file("keys"))
    }

    fn node(&self) -> Node {
        self.node_with(self.options(), limits(u64::MAX))
    }

    /// A node that has read what is in the log.
    fn replayed(&self) -> Node {
        let node = self.node();
        node.wait_for_replay();
        node
    }

    fn node_with(&self, options: Options, limits: Limits) -> Node {
        let (reference, scope) = open(&self.name, limits);
        let reader = self.log.reader(0, usize::MAX);
        let journal = Journal::start(&scope, options, self.log.writer(), reader).unwrap();
        assert!(scope.attach(journal));
        Node {
            _reference: reference,
            scope,
        }
    }

    fn keys(&self) -> Keys {
        let file = self.options().keys;
        file.load().unwrap().0
    }

    /// A record that another node could have written, which is made so long after now.
    fn sealed(&self, after_ms: i64, lifetime_ms: u64, body: &Body) -> Record {
        let made_ms = wall_ms().saturating_add_signed(after_ms);
        let stamp = Stamp {
            writer: 1,
            made_ms,
            expires_ms: made_ms + lifetime_ms,
        };
        seal(&self.keys(), &Context::new(&self.name, LAYOUT), stamp, body).unwrap()
    }

    /// A session that another node made so long after now.
    fn sealed_birth(&self, n: u32, after_ms: i64) -> Record {
        let body = Body::Birth {
            id: &id(n),
            secret: &secret(n),
            template: &content_hash(b"template"),
            certificate: b"",
            tail: b"",
        };
        self.sealed(after_ms, HOUR_MS, &body)
    }

    fn append_template(&self) {
        let body = Body::Template(b"template");
        let record = self.sealed(0, 2 * HOUR_MS, &body);
        self.log.append(Lane::Control, record);
    }

    /// What happened to this fleet's journals since the last call.
    fn events(&self) -> Vec<Happened> {
        let mut events = OTHERS.lock();
        events.extend(crate::take_events());
        let (own, others) = events.drain(..).partition(|event| event.scope == self.name);
        *events = others;
        let own: Vec<Event> = own;
        own.into_iter().map(|event| event.what).collect()
    }
}

impl Node {
    fn journal(&self) -> &Journal {
        self.scope.attached().unwrap()
    }

    fn store(&self) -> &ServerStore<Common> {
        store(&self.scope)
    }

    /// As the NIF does.
    fn born_with(&self, n: u32, template: &[u8], certificate: &[u8]) {
        let store = self.store();
        let template = Common::intern(store, template).unwrap();
        let content = Arc::clone(template.content());
        assert!(insert(store, n, template, certificate));
        let lifetime_ms = store.limits().lifetime_ms;
        let journal = self.journal();
        journal.born(&id(n), &secret(n), content, certificate, b"", lifetime_ms);
    }

    fn born(&self, n: u32) {
        self.born_with(n, b"template", b"");
    }

    fn forget(&self, n: u32) {
        let store = self.store();
        self.journal().forget(&id(n), store.limits().lifetime_ms);
        store.delete(SessionKey::Id(&id(n)));
    }

    fn flush(&self) {
        self.journal().flush(self.store().limits().lifetime_ms);
        self.scope.clear();
    }

    fn revoke(&self, wanted: &[Wanted]) {
        let lifetime_ms = self.store().limits().lifetime_ms;
        self.journal().revoke(wanted, lifetime_ms);
        let selectors: Vec<_> = wanted.iter().map(Wanted::selector).collect();
        self.store().revoke(&selectors);
    }

    fn has(&self, n: u32) -> bool {
        let key = id(n);
        let peeked = self
            .store()
            .peek(SessionKey::Id(&key), now_ms(), |session| {
                assert_eq!(*session.secret, secret(n));
                assert!(session.template.is_some());
            });
        peeked.is_some()
    }

    fn report(&self) -> Report {
        self.journal().report()
    }

    fn skipped(&self, reason: Skipped) -> u64 {
        self.report().skipped[reason.index()]
    }

    fn skipped_at_all(&self) -> u64 {
        self.report().skipped.iter().sum()
    }

    fn wait_for_replay(&self) {
        until("the replay", || self.report().replay_ms.is_some());
    }

    /// Until everything is in the log.
    fn wait_for_writing(&self, records: u64) {
        until("the writing", || self.report().written >= records);
    }

    /// Until so many records are read.
    fn wait_for_reading(&self, records: u64) {
        until("the reading", || self.report().read >= records);
    }
}

fn key_of(record: &Record) -> String {
    let length = usize::from(record[34]);
    String::from_utf8_lossy(&record[35..35 + length]).into_owned()
}

fn expires_ms(record: &Record) -> u64 {
    u64::from_be_bytes(record[26..34].try_into().unwrap())
}

#[test]
fn a_session_is_found_on_another_node_as_it_was() {
    let fleet = Fleet::new("shared");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.born(1);
    one.born_with(2, b"another", b"certificate");
    until("sessions", || other.has(1) && other.has(2));
    let seen = other
        .store()
        .peek(SessionKey::Id(&id(2)), now_ms(), |session| {
            (
                session.template.unwrap().content().bytes().to_vec(),
                session.certificate.unwrap().der().into_owned(),
            )
        });
    assert_eq!(
        seen.unwrap(),
        (b"another".to_vec(), b"certificate".to_vec())
    );
    let mut verified = Vec::new();
    other.store().page(0, 10, now_ms(), |listed| {
        let certificate = listed.session.certificate;
        verified.push((listed.is_certified, certificate.map_or(0, |der| der.len())))
    });
    verified.sort();
    assert_eq!(verified, [(false, 0), (true, 11)]);
    let report = other.report();
    assert_eq!((report.read, report.applied, report.known), (4, 2, 0));
    assert_eq!((report.dropped, other.skipped_at_all()), (0, 0));
    until("health", || other.report().health == Some(Ok(())));
}

#[test]
fn after_a_restart_sessions_are_there_and_revocations_hold() {
    let fleet = Fleet::new("restarted");
    let before = fleet.replayed();
    for n in 0..2500 {
        before.born(n);
        // Fewer than may wait.
        if n % 100 == 99 {
            before.wait_for_writing(u64::from(n));
        }
    }
    before.born_with(3000, b"template", b"certificate");
    before.forget(7);
    before.revoke(&[Wanted::Sha256(Sha256::digest(b"certificate").into())]);
    before.wait_for_writing(2501 + 1 + 2);
    drop(before);
    let after = fleet.replayed();
    for n in (0..2500).filter(|n| *n != 7) {
        assert!(after.has(n), "{n}");
    }
    // Not found and dropped again, but never there.
    assert!(!after.has(7) && !after.has(3000));
    assert_eq!(after.skipped(Skipped::Revoked), 2);
    assert_eq!((after.skipped_at_all(), after.report().applied), (2, 2499));
    assert_eq!(after.report().revocations, 2);
    let replayed = |what: &Happened| matches!(what, Happened::Replayed { sessions: 2499, .. });
    assert_eq!(
        fleet.events().iter().filter(|what| replayed(what)).count(),
        1
    );
    after.flush();
    after.wait_for_writing(1);
    drop(after);
    let empty = fleet.replayed();
    assert_eq!((empty.scope.sessions(), empty.report().applied), (0, 0));
    assert_eq!(empty.skipped(Skipped::Revoked), 2501);
}

#[test]
fn the_newest_sessions_are_replayed_first() {
    let fleet = Fleet::new("newest");
    let before = fleet.replayed();
    (0..10).for_each(|n| before.born(n));
    before.wait_for_writing(11);
    let after = fleet.node_with(fleet.options(), limits(3));
    after.wait_for_replay();
    let held: Vec<u32> = (0..10).filter(|n| after.has(*n)).collect();
    assert_eq!(held, [7, 8, 9]);
    assert_eq!(after.skipped(Skipped::Full), 7);
    // The oldest goes first, as if they had been made here.
    after.born(10);
    assert!(!after.has(7) && after.has(8));
}

#[test]
fn a_fresh_journal_forgets_what_is_in_the_log_for_good() {
    let fleet = Fleet::new("fresh");
    let before = fleet.replayed();
    before.born(1);
    before.wait_for_writing(2);
    drop(before);
    let mut options = fleet.options();
    (options.is_fresh, options.is_shared) = (true, false);
    let fresh = fleet.node_with(options, limits(u64::MAX));
    fresh.wait_for_writing(1);
    assert!(!fresh.has(1));
    assert_eq!(
        (fresh.report().read, fresh.report().replay_ms),
        (0, Some(0))
    );
    drop(fresh);
    let after = fleet.replayed();
    assert!(!after.has(1));
    assert_eq!(after.skipped(Skipped::Revoked), 1);
}

#[test]
fn a_log_that_fails_loses_nothing_that_is_not_counted() {
    let fleet = Fleet::new("failing");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.born(0);
    other.wait_for_reading(2);
    fleet.events();
    fleet.log.switch(|log| log.is_down = true);
    until("both to notice", || {
        one.born(0);
        [&one, &other].map(|node| matches!(node.report().health, Some(Err(_)))) == [true; 2]
    });
    let births = 1..1000;
    births.clone().for_each(|n| one.born(n));
    let dropped = one.report().dropped;
    assert!(dropped >= 100, "{dropped}");
    fleet.log.switch(|log| {
        (log.is_down, log.half_appends) = (false, 3);
        log.is_doubling = true;
    });
    until("sessions", || other.has(999) && one.report().queued == 0);
    until("health", || {
        [&one, &other].map(|node| node.report().health) == [Some(Ok(())), Some(Ok(()))]
    });
    let lost = births.filter(|n| !other.has(*n)).count() as u64;
    assert!(
        lost <= one.report().dropped && lost > 0,
        "{lost} of {dropped}"
    );
    assert_eq!(other.skipped_at_all(), 0);
    // What was appended twice was known.
    assert!(other.report().known > 0);
    let (mut downs, mut ups) = (0, 0);
    for what in fleet.events() {
        match what {
            Happened::Down(error) => {
                assert!(error.contains("it is down"), "{error}");
                downs += 1;
            }
            Happened::Up { .. } => ups += 1,
            what => panic!("{what:?}"),
        }
    }
    assert_eq!((downs, ups), (2, 2));
}

#[test]
fn revocations_are_made_up_for_when_the_log_is_back() {
    let fleet = Fleet::new("revoked");
    let (one, other) = (fleet.replayed(), fleet.replayed());
    one.born(1);
    one.born(2);
    one.born_with(3, b"template", b"certificate");
    until("sessions", || [1, 2, 3].iter().all(|n| other.has(*n)));
    fleet.log.switch(|log| log.is_down = true);
    one.forget(1);
    one.revoke(&[Wanted::Sha1(Sha1::digest(b"certificate").into())]);
    assert!(!one.has(1) && !one.has(3));
    one.born(4);
    // Born and revoked before either is written.
    one.born(5);
    one.forget(5);
    assert_eq!(one.report().dropped, 0);
    fleet
        .log
        .switch(|log| (log.is_down, log.half_appends) = (false, 2));
    until("revocations", || {
        !other.has(1) && !other.has(3) && other.has(4)
    });
    let is_written = || one.report().queued == 0 && one.report().health == Some(Ok(()));
    until("the writing", is_written);
    other.wait_for_reading(fleet.log.records().len() as u64);
    assert!(other.has(2) && !other.has(5));
    assert_eq!(other.skipped_at_all(), other.skipped(Skipped::Revoked));
    one.flush();
    until("the flush", || other.scope.sessions() == 0);
}

#[test]
fn a_repeated_revocation_drops_nothing_more() {
    let fleet = Fleet::new("repeated");
    fleet.append_template();
    let flush = fleet.sealed(0, HOUR_MS, &Body::Flush);
    let wanted = Wanted::Sha256(Sha256::digest(b"certificate").into());
    let revoke = fleet.sealed(0, HOUR_MS, &Body::Revoke(wanted));
    let node = fleet.replayed();
    node.born(1);
    node.born_with(2, b"template", b"certificate");
    // No news, but of sessions that were there.
    for (record, left) in [(&revoke, [true, false]), (&flush, [false, false])] {
        fleet.log.append(Lane::Control, record.clone());
        until("the revocation", || [node.has(1), node.has(2)] == left);
    }
    node.born(3);
    node.born_with(4, b"template", b"certificate");
    let read = node.report().read;
    for record in [&flush, &revoke, &flush] {
        fleet.log.append(Lane::Control, record.clone());
    }
    node.wait_for_reading(read + 3);
    assert!(node.has(3) && node.has(4));
}

/// The reader may have come to the log after others had read this node's sessions, and revoked them.
#[test]
fn what_was_revoked_before_the_replay_is_not_found_after_it() {
    for number in 0..3 {
        let fleet = Fleet::new(&format!("late {number}"));
        fleet.log.switch(|log| log.is_down = true);
        let node = fleet.node();
        node.born_with(1, b"template", b"certificate");
        let wanted = Wanted::Sha256(Sha256::digest(b"certificate").into());
        let id = id(1);
        let body = [Body::Forget(&id), Body::Flush, Body::Revoke(wanted)];
        let record = fleet.sealed(0, HOUR_MS, &body[number]);
        let old = fleet.sealed(-60_000, HOUR_MS, &Body::Flush);
        fleet.log.append(Lane::Control, record);
        fleet.log.append(Lane::Control, old);
        fleet.log.switch(|log| log.is_down = false);
        node.wait_for_replay();
        assert!(!node.has(1), "{number}");
    }
    // An old one is not for what was made since.
    let fleet = Fleet::new("late");
    fleet.log.switch(|log| log.is_down = true);
    let node = fleet.node();
    node.born_with(1, b"template", b"certificate");
    fleet
        .log
        .append(Lane::Control, fleet.sealed(-60_000, HOUR_MS, &Body::Flush));
    fleet.log.switch(|log| log.is_down = false);
    node.wait_for_replay();
    assert!(node.has(1));
}

#[test]
fn keys_are_rotated_without_any_session_lost() {
    let fleet = Fleet::new("rotated");
    let [one_keys, other_keys] = ["one", "other"].map(|name| fleet.key_file(name));
    let node = |path: &PathBuf| {
        let mut options = fleet.options();
        options.keys.path = path.clone();
        let node = fleet.node_with(options, limits(u64::MAX));
        node.wait_for_replay();
        node
    };
    write_keys(&one_keys, &["k1"]);
    write_keys(&other_keys, &["k1"]);
    let nodes = [node(&one_keys), node(&other_keys)];
    let mut n = 0;
    let mut shares = |sealing: [&str; 2]| {
        for (from, to, key) in [(0, 1, sealing[0]), (1, 0, sealing[1])] {
            n += 1;
            nodes[from].born(n);
            until("a session", || nodes[to].has(n));
            let records = fleet.log.records();
            assert_eq!(key_of(&records.last().unwrap().1), key);
        }
    };
    shares(["k1", "k1"]);
    // One node after the other learns of a key before any node seals with it.
    let steps: [(&[&str], &str, &str); 3] = [
        (&["k1", "k2"], "k1", "k1"),
        (&["k1", "k2", "k3"], "k1", "k2"),
        (&["k2", "k3"], "k2", "k2"),
    ];
    for (names, before, after) in steps {
        write_keys(&one_keys, names);
        nodes[0].journal().reload_keys().unwrap();
        shares([after, before]);
        write_keys(&other_keys, names);
        assert_eq!(nodes[1].journal().reload_keys().unwrap(), names);
        shares([after, after]);
    }
    for node in &nodes {
        assert_eq!(node.skipped_at_all(), 0);
    }
}

#[test]
fn a_key_is_known_as_soon_as_it_is_in_the_file() {
    let fleet = Fleet::new("new key");
    fleet.append_template();
    let node = fleet.replayed();
    for round in 0..5 {
        let names = [format!("k{round}"), "b".into()];
        write_keys(&fleet.key_file("keys"), &[&names[0], &names[1]]);
        fleet.log.append(Lane::Births, fleet.sealed_birth(round, 0));
        until("the session", || node.has(round));
    }
    assert_eq!(node.skipped(Skipped::Key), 0);
}

#[test]
fn keys_stay_in_force_while_their_file_is_not_there() {
    let fleet = Fleet::new("no file");
    let path = fleet.key_file("keys");
    let away = fleet.key_file("away");
    // With its folder, so that the file comes back as it was.
    let folder = fleet.folder.path();
    let folder_away = folder.with_extension("away");
    let mut options = fleet.options();
    options.keys.make = true;
    let (one, other) = (fleet.node_with(options, limits(u64::MAX)), fleet.replayed());
    one.wait_for_replay();
    let rights = |mode| fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    let is_up = || one.report().health == Some(Ok(()));
    let mut n = 0;
    let mut shares = || {
        n += 1;
        one.born(n);
        until("a session", || other.has(n));
    };
    shares();
    until("health", is_up);
    type Do<'a> = &'a dyn Fn();
    let spoil: [(Do, Do, &str); 3] = [
        (
            &|| fs::rename(folder, &folder_away).unwrap(),
            &|| fs::rename(&folder_away, folder).unwrap(),
            "No such file",
        ),
        (&|| rights(0o644), &|| rights(0o600), "mode 644"),
        (
            &|| fs::write(&path, "k1").unwrap(),
            &|| write_keys(&path, &["a", "b"]),
            "line 1",
        ),
    ];
    for (spoil, mend, error) in spoil {
        spoil();
        until(error, || !is_up());
        let said = one.report().health.unwrap().unwrap_err();
        assert!(said.contains(error) && said.contains("keys"), "{said}");
        shares();
        assert_eq!(one.report().keys, ["a", "b"]);
        mend();
        until("health", is_up);
        shares();
    }
    assert_eq!(other.skipped_at_all(), 0);
    // And by hand.
    fs::rename(&path, &away).unwrap();
    assert!(one
        .journal()
        .reload_keys()
        .unwrap_err()
        .contains("No such file"));
    fs::rename(&away, &path).unwrap();
    assert_eq!(one.journal().reload_keys().unwrap(), ["a", "b"]);
    assert!(is_up());
}

#[test]
fn sessions_wait_for_a_key_that_may_be_used() {
    let fleet = Fleet::new("wrong rights");
    let path = fleet.key_file("keys");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let node = fleet.node();
    node.born(1);
    until("the error", || matches!(node.report().health, Some(Err(_))));
    assert_eq!(node.report().written, 0);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    node.wait_for_writing(2);
    until("health", || node.report().health == Some(Ok(())));
    assert_eq!(node.report().dropped, 0);
}

#[test]
fn templates_are_in_the_log_again_after_it_was_lost() {
    let fleet = Fleet::new("lost");
    let node = fleet.replayed();
    node.born(1);
    node.wait_for_writing(2);
    fleet.log.lose_all();
    fleet.log.switch(|log| log.half_appends = 1);
    node.born(2);
    node.wait_for_writing(4);
    let after = fleet.replayed();
    assert!(!after.has(1) && after.has(2));
    assert_eq!(after.skipped_at_all(), 0);
}

#[test]
fn a_template_that_cannot_be_used_costs_its_sessions_only() {
    let fleet = Fleet::new("useless");
    fleet.append_template();
    let node = fleet.replayed();
    let content = [USELESS, b" one"].concat();
    let template = fleet.sealed(0, HOUR_MS, &Body::Template(&content));
    fleet.log.append(Lane::Control, template);
    let missing = content_hash(b"missing");
    for (n, hash) in [(1, content_hash(&content)), (2, missing)] {
        let body = Body::Birth {
            id: &id(n),
            secret: &secret(n),
            template: &hash,
            certificate: b"",
            tail: b"",
        };
        let record = fleet.sealed(0, HOUR_MS, &body);
        fleet.log.append(Lane::Births, record);
    }
    fleet.log.append(Lane::Births, fleet.sealed_birth(3, 0));
    until("the session", || node.has(3));
    assert_eq!(
        (node.skipped(Skipped::Template), node.skipped_at_all()),
        (2, 2)
    );
    assert_eq!(node.store().templates(), 1);
}

#[test]
fn others_lifetimes_are_heeded() {
    let fleet = Fleet::new("lifetimes");
    let short = Limits {
        lifetime_ms: 60_000,
        ..limits(u64::MAX)
    };
    let long = fleet.replayed();
    let short = fleet.node_with(fleet.options(), short);
    short.wait_for_replay();
    long.born(1);
    until("the session", || short.has(1));
    // It ends where it is by the bounds there.
    assert!(short
        .store()
        .peek(SessionKey::Id(&id(1)), now_ms() + 59_000, |_| ())
        .is_some());
    assert!(short
        .store()
        .peek(SessionKey::Id(&id(1)), now_ms() + 60_000, |_| ())
        .is_none());
    short.forget(1);
    until("the revocation", || !long.has(1));
    let records = fleet.log.records();
    let of = |lane| records.iter().filter(move |record| record.0 == lane);
    let birth = &of(Lane::Births).next().unwrap().1;
    let forget = &of(Lane::Control).next_back().unwrap().1;
    // Else it would be back where it is read after that.
    assert!(expires_ms(forget) > expires_ms(birth));
}

/// Or it would be back for a while, where the clocks of who made it and who revoked it differ.
#[test]
fn a_revocation_outlives_its_session_by_what_clocks_may_differ() {
    let fleet = Fleet::new("outlived");
    let minute = Limits {
        lifetime_ms: 60_000,
        ..limits(u64::MAX)
    };
    let node = fleet.node_with(fleet.options(), minute);
    node.born(1);
    node.forget(1);
    node.wait_for_writing(3);
    let expiries = |lane| {
        let records = fleet.log.records().into_iter();
        let records = records.filter(move |record| record.0 == lane);
        records.map(|(_, record)| expires_ms(&record))
    };
    let revoked_until_ms = expiries(Lane::Control).min().unwrap();
    assert!(revoked_until_ms >= expiries(Lane::Births).max().unwrap() + 2 * MAX_AHEAD_MS);
}

/// A reader that notes what it is asked for.
struct Watched(Box<dyn LogReader>, Arc<Mutex<Vec<Option<Lane>>>>);

impl LogReader for Watched {
    fn mark(&mut self) -> Result<(), LogError> {
        self.0.mark()
    }

    fn older(&mut self, lane: Lane, limit: usize) -> Result<Vec<Record>, LogError> {
        self.1.lock().push(Some(lane));
        self.0.older(lane, limit)
    }

    fn newer(&mut self, limit: usize, wait: Duration) -> Result<Vec<(Lane, Record)>, LogError> {
        self.1.lock().push(None);
        self.0.newer(limit, wait)
    }
}

#[test]
fn what_others_do_is_followed_during_a_long_replay() {
    let fleet = Fleet::new("long replay");
    fleet.append_template();
    for n in 0..3 * PAGE as u32 {
        fleet.log.append(Lane::Births, fleet.sealed_birth(n, 0));
    }
    let asked = Arc::default();
    let reader = Box::new(Watched(fleet.log.reader(0, usize::MAX), Arc::clone(&asked)));
    let (_reference, scope) = open(&fleet.name, limits(u64::MAX));
    let journal = Journal::start(&scope, fleet.options(), fleet.log.writer(), reader).unwrap();
    until("the replay", || journal.report().replay_ms.is_some());
    let (control, births) = (Some(Lane::Control), Some(Lane::Births));
    let expected = [control, control, births, None, births, None, births, None];
    assert_eq!(asked.lock()[..expected.len()], expected);
}

#[test]
fn a_session_has_the_time_that_is_left() {
    let fleet = Fleet::new("clocks");
    fleet.append_template();
    let minutes = |minutes: i64| minutes * 60_000;
    let node = fleet.replayed();
    for (n, after_ms) in [
        (1, minutes(-50)),
        (2, minutes(-61)),
        (3, minutes(4)),
        (4, minutes(6)),
    ] {
        fleet
            .log
            .append(Lane::Births, fleet.sealed_birth(n, after_ms));
    }
    node.wait_for_reading(5);
    assert_eq!(
        (1..=4).map(|n| node.has(n)).collect::<Vec<_>>(),
        [true, false, true, false]
    );
    assert_eq!(
        (
            node.skipped(Skipped::Expired),
            node.skipped(Skipped::Future)
        ),
        (1, 1)
    );
    let has_in = |n, minutes: u64| {
        let then_ms = now_ms() + minutes * 60_000;
        node.store()
            .peek(SessionKey::Id(&id(n)), then_ms, |_| ())
            .is_some()
    };
    assert!(has_in(1, 9) && !has_in(1, 10));
    // No more than a lifetime, whatever the clock of who made it.
    assert!(has_in(3, 59) && !has_in(3, 60));
    assert!(
        (minutes(50)..minutes(51)).contains(&(node.report().lag_ms as i64))
            || node.report().lag_ms == 0
    );
    // A revocation of a clock that is wrong holds all the same, and by its own time.
    node.born(5);
    fleet.log.append(
        Lane::Control,
        fleet.sealed(minutes(60), HOUR_MS, &Body::Forget(&id(5))),
    );
    fleet.log.append(
        Lane::Control,
        fleet.sealed(minutes(-59), HOUR_MS, &Body::Forget(&id(3))),
    );
    until("revocations", || !node.has(3) && !node.has(5));
}

#[test]
fn a_session_made_at_about_the_time_of_a_flush_counts_as_made_before() {
    let fleet = Fleet::new("margin");
    fleet.append_template();
    fleet
        .log
        .append(Lane::Control, fleet.sealed(-10_000, HOUR_MS, &Body::Flush));
    for (n, after_ms) in [(1, -11_000), (2, -8_500), (3, -7_500)] {
        fleet
            .log
            .append(Lane::Births, fleet.sealed_birth(n, after_ms));
    }
    let node = fleet.replayed();
    assert_eq!(
        (1..=3).map(|n| node.has(n)).collect::<Vec<_>>(),
        [false, false, true]
    );
    assert_eq!(node.skipped(Skipped::Revoked), 2);
}

#[test]
fn a_node_leaves_its_own_records_alone() {
    let fleet = Fleet::new("own");
    let node = fleet.replayed();
    node.born(1);
    node.flush();
    node.born(2);
    node.wait_for_reading(4);
    assert!(node.has(2));
    // As if evicted.
    node.store().delete(SessionKey::Id(&id(2)));
    for (lane, record) in fleet.log.records() {
        fleet.log.append(lane, record);
    }
    node.wait_for_reading(8);
    assert_eq!(node.scope.sessions(), 0);
    let report = node.report();
    assert_eq!(
        (report.applied, report.known, node.skipped_at_all()),
        (0, 0, 0)
    );
}

#[test]
fn what_was_told_is_written_before_the_end() {
    let fleet = Fleet::new("ended");
    let node = fleet.replayed();
    let shared = Arc::downgrade(&node.journal().0);
    for n in 0..200 {
        node.born(n);
    }
    node.forget(0);
    drop(node);
    until("the threads' end", || shared.strong_count() == 0);
    assert_eq!(fleet.log.records().len(), 1 + 200 + 1);
}

#[test]
fn the_threads_end_where_the_log_is_down() {
    let fleet = Fleet::new("ended down");
    fleet.log.switch(|log| log.is_down = true);
    let node = fleet.node();
    let shared = Arc::clone(&node.journal().0);
    node.born(1);
    // The writer has it, and tries again and again.
    until("the writer", || node.report().queued == 0);
    node.born(2);
    node.forget(2);
    drop(node);
    until("the threads' end", || Arc::strong_count(&shared) == 1);
    assert_eq!(shared.status.dropped.load(Relaxed), 2);
    let notices = fleet.events().into_iter();
    let notices: Vec<_> = notices
        .filter(|what| matches!(what, Happened::Noticed(what) if what.starts_with("1 revocations")))
        .collect();
    assert_eq!(notices.len(), 1);
}

#[test]
fn a_journal_ends_also_if_its_scope_goes_on() {
    let fleet = Fleet::new("journal only");
    let (_reference, scope) = open(b"journal only", limits(u64::MAX));
    let reader = fleet.log.reader(0, usize::MAX);
    let journal = Journal::start(&scope, fleet.options(), fleet.log.writer(), reader).unwrap();
    let shared = Arc::downgrade(&journal.0);
    drop(journal);
    until("the threads' end", || shared.strong_count() == 0);
}

#[test]
fn nobody_waits_for_a_log_that_hangs() {
    let fleet = Fleet::new("hanging");
    let node = fleet.replayed();
    node.born(1);
    node.wait_for_writing(2);
    let (done, is_done) = mpsc::channel();
    let hanging = fleet.log.hang();
    let calls = thread::spawn(move || {
        for n in 2..2000 {
            node.born(n);
            node.forget(n - 1);
            assert!(node.has(n) && !node.has(n - 1));
        }
        node.flush();
        node.revoke(&[Wanted::Sha1([0; 20])]);
        assert!(node.report().queued > 0 && node.report().dropped > 0);
        node.journal().reload_keys().unwrap();
        drop(node);
        done.send(()).unwrap();
    });
    let ended = is_done.recv_timeout(Duration::from_secs(30));
    drop(hanging);
    assert!(ended.is_ok() && calls.join().is_ok());
}

#[test]
fn a_defect_ends_a_thread_and_not_the_node() {
    let fleet = Fleet::new("defect");
    let node = fleet.replayed();
    node.born(1);
    let body = Body::Template(crate::testing::POISON);
    fleet
        .log
        .append(Lane::Control, fleet.sealed(0, HOUR_MS, &body));
    let hash = content_hash(crate::testing::POISON);
    let body = Body::Birth {
        id: &id(2),
        secret: &secret(2),
        template: &hash,
        certificate: b"",
        tail: b"",
    };
    fleet
        .log
        .append(Lane::Births, fleet.sealed(0, HOUR_MS, &body));
    until(
        "the end",
        || matches!(node.report().health, Some(Err(error)) if error.contains("defect")),
    );
    // Sessions are still written.
    node.born(3);
    node.wait_for_writing(3);
    node.forget(1);
    assert!(node.has(3) && !node.has(1));
}
