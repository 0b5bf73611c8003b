//! A scope's journal: two threads between its store and its log.

use crate::clock::{now_ms, wall_ms};
use crate::keys::{KeyFile, Keys, Version};
use crate::log::{Lane, LogError, LogReader, LogWriter, Record};
use crate::portable::{Content, Portable};
use crate::queue::{Batch, Birth, Note, Queue, Revoked};
use crate::record::{
    content_hash, open, seal, Body, ContentHash, Context, Opened, Skipped, Stamp, MAX_AHEAD_MS,
};
use crate::revocations::{Revocations, Wanted, MARGIN_MS};
use crate::status::{tell, Event, Happened, Part, Report, Status};
use chacha20poly1305::aead::Generate;
use parking_lot::{Mutex, RwLock};
use rekindle_core::{
    Arrival, Held, NewSession, Restored, Scope, ServerStore, SessionKey, Store, TemplateName,
};
use std::collections::HashMap;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

/// How often the writer looks after the key file.
const TICK: Duration = Duration::from_secs(1);

/// How soon what was written is made to outlive a power cut.
const SYNC_EVERY: Duration = Duration::from_millis(100);

/// How often what is too old is dropped from the log.
const TRIM_EVERY: Duration = Duration::from_secs(60);

/// How long to wait after the first failure; doubled until the longest.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// Records read in one go.
const PAGE: usize = if cfg!(test) { 50 } else { 1000 };

/// How long the reader waits for others' records.
const PATIENCE: Duration = Duration::from_millis(500);

/// Most templates of others to know.
const MAX_TEMPLATES: usize = 4096;

/// What a journal is opened with.
pub struct Options {
    /// The scope's name: records of one name are shared by whoever has the log and a key.
    pub scope: Vec<u8>,
    /// How sessions are written, see [`Context::new`].
    pub layout: Vec<u8>,
    /// The keys that records are sealed with.
    pub keys: KeyFile,
    /// Where the log is, in words, without any password.
    pub location: String,
    /// Whether other nodes read and write the log.
    pub is_shared: bool,
    /// Whether what is in the log is to be forgotten.
    pub is_fresh: bool,
}

/// A journal at work. It ends when it is dropped, after what was told to it is written.
pub struct Journal(Arc<Shared>);

struct Shared {
    options: Options,
    context: Context,
    /// By which records are known as this journal's own.
    writer: u64,
    /// When it was started, in milliseconds since 1970.
    began_ms: u64,
    /// The longest lifetime of a session that this journal knows to be in the log, in milliseconds: the scope's
    /// own may be changed, and other nodes' may be another.
    longest_ms: AtomicU64,
    queue: Queue,
    keys: RwLock<Option<Arc<Keys>>>,
    key_version: Mutex<Option<Version>>,
    revocations: Mutex<Revocations>,
    status: Status,
}

impl Journal {
    /// Starts the journal of a server scope: puts what is in the log into its store, and follows the log if it is
    /// shared. The threads do not keep the scope. An error is one of the system's: no thread, no random number.
    pub fn start<T: Portable>(
        scope: &Arc<Scope<T>>,
        options: Options,
        writer: Box<dyn LogWriter>,
        reader: Box<dyn LogReader>,
    ) -> io::Result<Journal> {
        let shared = Arc::new(Shared::new(scope, options)?);
        let journal = Journal(Arc::clone(&shared));
        if shared.options.is_fresh {
            journal.flush(lifetime_ms(scope));
        }
        let write = {
            let writer = Writer::new(Arc::clone(&shared), scope, writer);
            move || writer.run()
        };
        spawn("rekindle-writer", &shared, Part::Writer, write)?;
        if !shared.options.is_fresh {
            let read = {
                let reader = Reader::new(Arc::clone(&shared), scope, reader);
                move || reader.run()
            };
            spawn("rekindle-reader", &shared, Part::Reader, read)?;
        } else {
            shared.status.note_replay(0);
        }
        Ok(journal)
    }

    /// Notes that a session was stored just now, with its client's certificate, which is empty if there is none.
    /// Never waits for the log.
    pub fn born(
        &self,
        id: &[u8; 32],
        secret: &[u8; 48],
        content: Arc<Content>,
        certificate: &[u8],
        tail: &[u8],
        lifetime_ms: u64,
    ) {
        let made_ms = wall_ms();
        self.0.note_lifetime(lifetime_ms);
        let dropped = self.0.queue.push_birth(Box::new(Birth {
            id: *id,
            secret: *secret,
            content,
            certificate: certificate.into(),
            tail: tail.into(),
            made_ms,
            expires_ms: made_ms.saturating_add(lifetime_ms),
        }));
        self.0.status.dropped.fetch_add(dropped, Relaxed);
    }

    /// Counts a session that cannot be written.
    pub fn leave_out(&self) {
        self.0.status.dropped.fetch_add(1, Relaxed);
    }

    /// Revokes a session, here before it is dropped from the store, and everywhere else.
    pub fn forget(&self, id: &[u8; 32], lifetime_ms: u64) {
        self.revoke_all([Revoked::Session(*id)], lifetime_ms);
    }

    /// Revokes all sessions made until now, likewise.
    pub fn flush(&self, lifetime_ms: u64) {
        self.revoke_all([Revoked::All], lifetime_ms);
    }

    /// Revokes the sessions made with these certificates until now, likewise.
    pub fn revoke(&self, wanted: &[Wanted], lifetime_ms: u64) {
        let certificates = wanted.iter().cloned().map(Revoked::Certificate);
        self.revoke_all(certificates, lifetime_ms);
    }

    fn revoke_all(&self, what: impl IntoIterator<Item = Revoked>, lifetime_ms: u64) {
        let made_ms = wall_ms();
        let expires_ms = made_ms.saturating_add(self.0.keep_ms(lifetime_ms));
        for what in what {
            self.0.remember(&what, made_ms, expires_ms);
            self.0.queue.push_note(Note {
                what,
                made_ms,
                expires_ms,
            });
        }
    }

    /// Reads the key file anew, and tells the names of the keys, the newest last.
    pub fn reload_keys(&self) -> Result<Vec<String>, String> {
        self.0.load_keys()?;
        Ok(self.0.key_ids())
    }

    /// How the journal is.
    pub fn report(&self) -> Report {
        let shared = &self.0;
        let status = &shared.status;
        let (health, since_ms, last_error) = status.health();
        Report {
            location: shared.options.location.clone(),
            health,
            since_ms,
            last_error,
            queued: shared.queue.len() as u64,
            written: status.written.load(Relaxed),
            written_bytes: status.written_bytes.load(Relaxed),
            dropped: status.dropped.load(Relaxed),
            read: status.read.load(Relaxed),
            applied: status.applied.load(Relaxed),
            known: status.known.load(Relaxed),
            skipped: status
                .skipped
                .iter()
                .map(|count| count.load(Relaxed))
                .collect(),
            revocations: shared.revocations.lock().len() as u64,
            lag_ms: status.lag_ms.load(Relaxed),
            clock_ahead_ms: status.clock_ahead_ms.load(Relaxed),
            replay_ms: status.replay_ms.get().copied(),
            keys: shared.key_ids(),
            is_shared: shared.options.is_shared,
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.0.queue.close();
    }
}

impl Shared {
    fn new<T>(scope: &Scope<T>, options: Options) -> io::Result<Shared> {
        Ok(Shared {
            context: Context::new(&options.scope, &options.layout),
            options,
            writer: u64::try_generate().map_err(io::Error::other)?,
            began_ms: wall_ms(),
            longest_ms: AtomicU64::new(lifetime_ms(scope)),
            queue: Queue::default(),
            keys: RwLock::default(),
            key_version: Mutex::default(),
            revocations: Mutex::default(),
            status: Status::default(),
        })
    }

    fn remember(&self, what: &Revoked, made_ms: u64, expires_ms: u64) {
        let mut revocations = self.revocations.lock();
        match what {
            Revoked::Session(id) => revocations.forget(*id, expires_ms),
            Revoked::All => revocations.flush(made_ms, expires_ms),
            Revoked::Certificate(wanted) => {
                revocations.revoke(wanted.clone(), made_ms, expires_ms);
            }
        }
    }

    fn note_lifetime(&self, lifetime_ms: u64) {
        if self.longest_ms.load(Relaxed) < lifetime_ms {
            self.longest_ms.fetch_max(lifetime_ms, Relaxed);
        }
    }

    /// How long what concerns all sessions of the log is of use.
    fn keep_ms(&self, lifetime_ms: u64) -> u64 {
        keep_ms(lifetime_ms.max(self.longest_ms.load(Relaxed)))
    }

    /// Those in force stay so if there are no others. None are made in their place: what was sealed with them
    /// could not be opened again.
    fn load_keys(&self) -> Result<(), String> {
        let mut loaded = self.key_version.lock();
        let file = KeyFile {
            path: self.options.keys.path.clone(),
            make: self.options.keys.make && self.keys.read().is_none(),
        };
        let result = file.load().map(|(keys, version)| {
            *loaded = Some(version);
            *self.keys.write() = Some(Arc::new(keys));
        });
        if result.is_err() {
            // To be tried again, also if the file comes back as it was.
            *loaded = None;
        }
        self.set(Part::Keys, result.clone());
        result
    }

    /// Reads the key file if it has changed.
    fn renew_keys(&self) {
        let found = self.options.keys.version();
        let is_new = found.is_none() || found != *self.key_version.lock();
        if is_new {
            // The error is in the status.
            let _ = self.load_keys();
        }
    }

    fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.read().clone()
    }

    fn key_ids(&self) -> Vec<String> {
        let ids = |keys: Arc<Keys>| keys.ids().into_iter().map(str::to_owned).collect();
        self.keys().map(ids).unwrap_or_default()
    }

    fn set(&self, part: Part, state: Result<(), String>) {
        if let Some(what) = self.status.set(part, state) {
            self.tell(what);
        }
    }

    fn tell(&self, what: Happened) {
        tell(Event {
            scope: self.options.scope.clone(),
            location: self.options.location.clone(),
            what,
        });
    }

    fn stamp(&self, made_ms: u64, expires_ms: u64) -> Stamp {
        Stamp {
            writer: self.writer,
            made_ms,
            expires_ms,
        }
    }
}

/// A panic ends one thread and not the node; the journal then says that it is down.
fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    part: Part,
    work: impl FnOnce() + Send + 'static,
) -> io::Result<()> {
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name(name.into())
        .spawn(move || {
            if catch_unwind(AssertUnwindSafe(work)).is_err() {
                shared.set(part, Err("a defect ended the journal's thread".into()));
            }
        })
        .map(drop)
}

// ---- from the store to the log ----

struct Writer<T> {
    shared: Arc<Shared>,
    scope: Weak<Scope<T>>,
    log: Box<dyn LogWriter>,
    /// When templates were last written, by the stores' clock. They have to be in the log as long as sessions that refer to them.
    announced: HashMap<ContentHash, u64>,
    unsynced: Option<Instant>,
    began: Instant,
    trimmed: Option<Instant>,
    lifetime_ms: u64,
}

impl<T: Portable> Writer<T> {
    fn new(shared: Arc<Shared>, scope: &Arc<Scope<T>>, log: Box<dyn LogWriter>) -> Self {
        Writer {
            shared,
            scope: Arc::downgrade(scope),
            log,
            announced: HashMap::new(),
            unsynced: None,
            began: Instant::now(),
            trimmed: None,
            lifetime_ms: lifetime_ms(scope),
        }
    }

    fn run(mut self) {
        while self.turn() {}
    }

    /// Tells if there is more to come.
    fn turn(&mut self) -> bool {
        let lifetime_ms = self.scope.upgrade().map(|scope| lifetime_ms(&scope));
        if let Some(lifetime_ms) = lifetime_ms.filter(|new| *new != self.lifetime_ms) {
            self.lifetime_ms = lifetime_ms;
            // They are to outlive sessions of the lifetime they were written in.
            self.announced.clear();
        }
        self.shared.renew_keys();
        self.tidy();
        let mut batch = self.shared.queue.take(self.patience());
        if batch.is_empty() {
            if batch.is_last {
                let _ = self.log.sync();
            }
            return !batch.is_last;
        }
        let is_written = self.write(&mut batch);
        if !is_written {
            self.give_up(batch);
        }
        is_written
    }

    fn patience(&self) -> Duration {
        match self.unsynced {
            Some(since) => SYNC_EVERY.saturating_sub(since.elapsed()),
            None => TICK,
        }
    }

    fn tidy(&mut self) {
        if self
            .unsynced
            .is_some_and(|since| since.elapsed() >= SYNC_EVERY)
        {
            self.unsynced = None;
            let synced = self.log.sync();
            self.note(synced);
        }
        if let Some(trimmed) = self.trim_in_time() {
            self.note(trimmed);
        }
        if let Some(notice) = self.log.take_notice() {
            self.shared.tell(Happened::Noticed(notice));
        }
    }

    /// Drops what is too old where that is due.
    fn trim_in_time(&mut self) -> Option<Result<(), LogError>> {
        // Not before the lifetimes of others are known, or it takes long.
        let is_time = |since: Instant| since.elapsed() >= TRIM_EVERY;
        let is_known = self.shared.status.replay_ms.get().is_some() || is_time(self.began);
        if !is_known || !self.trimmed.is_none_or(is_time) {
            return None;
        }
        self.trimmed = Some(Instant::now());
        self.shared.revocations.lock().expire(wall_ms());
        let keep = Duration::from_millis(self.shared.keep_ms(self.lifetime_ms));
        Some(self.log.trim(keep))
    }

    /// Writes until it is done, and tells if it was. Once the journal ends it is tried for the last time.
    fn write(&mut self, batch: &mut Batch) -> bool {
        let mut retry = FIRST_RETRY;
        loop {
            let is_last_try = self.shared.queue.is_closed();
            let tried = self.try_write(batch);
            let is_done = tried.is_ok();
            self.note(tried);
            if is_done || is_last_try {
                return is_done;
            }
            // A log that is full has room again once what is too old is dropped. Whether it does, the next try tells.
            let _ = self.trim_in_time();
            self.shared.queue.pause(retry);
            retry = LAST_RETRY.min(2 * retry);
            self.shared.renew_keys();
            self.shared.queue.catch_up(batch);
        }
    }

    /// Counts what is not written, and tells of revocations: who replays the log will not know of them.
    fn give_up(&self, mut batch: Batch) {
        let (mut births, mut notes) = (0, 0);
        while !batch.is_empty() {
            births += batch.births.len();
            notes += batch.notes.len();
            batch = self.shared.queue.take(Duration::ZERO);
        }
        let status = &self.shared.status;
        status.dropped.fetch_add(births as u64, Relaxed);
        if notes > 0 {
            self.shared.tell(Happened::Noticed(format!(
                "{notes} revocations could not be written before the end: they do not hold where the log is read"
            )));
        }
    }

    fn try_write(&mut self, batch: &Batch) -> Result<(), LogError> {
        let keys = self
            .shared
            .keys()
            .ok_or_else(|| LogError("there is no key to seal with".into()))?;
        let seal = |made_ms, expires_ms, body: &Body| {
            let stamp = self.shared.stamp(made_ms, expires_ms);
            seal(&keys, &self.shared.context, stamp, body).map_err(LogError)
        };
        let mut control: Vec<Record> = Vec::new();
        for note in &batch.notes {
            let body = match &note.what {
                Revoked::Session(id) => Body::Forget(id),
                Revoked::All => Body::Flush,
                Revoked::Certificate(wanted) => Body::Revoke(wanted.clone()),
            };
            control.push(seal(note.made_ms, note.expires_ms, &body)?);
        }
        let mut announced = Vec::new();
        for birth in &batch.births {
            let hash = birth.content.hash();
            if self.is_announced(hash) || announced.contains(hash) {
                continue;
            }
            let now_ms = wall_ms();
            let expires_ms = now_ms.saturating_add(self.shared.keep_ms(self.lifetime_ms));
            let body = Body::Template(birth.content.bytes());
            control.push(seal(now_ms, expires_ms, &body)?);
            announced.push(*hash);
        }
        let births: Vec<Record> = batch
            .births
            .iter()
            .map(|birth| {
                let body = Body::Birth {
                    id: &birth.id,
                    secret: &birth.secret,
                    template: birth.content.hash(),
                    certificate: &birth.certificate,
                    tail: &birth.tail,
                };
                seal(birth.made_ms, birth.expires_ms, &body)
            })
            .collect::<Result<_, _>>()?;
        for (lane, records) in [(Lane::Control, &control), (Lane::Births, &births)] {
            if records.is_empty() {
                continue;
            }
            self.log.append(lane, records)?;
            let bytes: usize = records.iter().map(Vec::len).sum();
            let status = &self.shared.status;
            status.written.fetch_add(records.len() as u64, Relaxed);
            status.written_bytes.fetch_add(bytes as u64, Relaxed);
        }
        let now_ms = now_ms();
        self.announced
            .extend(announced.into_iter().map(|hash| (hash, now_ms)));
        self.unsynced.get_or_insert_with(Instant::now);
        Ok(())
    }

    fn is_announced(&self, hash: &ContentHash) -> bool {
        let last = self.announced.get(hash);
        last.is_some_and(|last_ms| now_ms().saturating_sub(*last_ms) < self.lifetime_ms / 4)
    }

    fn note(&mut self, result: Result<(), LogError>) {
        if result.is_err() {
            // The log may have lost what it had.
            self.announced.clear();
        }
        self.shared
            .set(Part::Writer, result.map_err(|error| error.0));
    }
}

// ---- from the log to the store ----

struct Reader<T> {
    shared: Arc<Shared>,
    scope: Weak<Scope<T>>,
    log: Box<dyn LogReader>,
    templates: HashMap<ContentHash, Known>,
    /// The revocations of many sessions at once that were carried out here, by writer and time, with their expiry:
    /// their times alone do not tell, as those of another clock may be later.
    carried_out: HashMap<(u64, u64, Option<Wanted>), u64>,
}

/// A template that the log has.
struct Known {
    content: Box<[u8]>,
    /// Until when sessions may come that refer to it, in milliseconds since 1970.
    expires_ms: u64,
    /// While sessions have it.
    template: Option<TemplateName>,
}

/// The scope has ended, and with it the journal.
struct Ended;

impl<T: Portable> Reader<T> {
    fn new(shared: Arc<Shared>, scope: &Arc<Scope<T>>, log: Box<dyn LogReader>) -> Self {
        Reader {
            shared,
            scope: Arc::downgrade(scope),
            log,
            templates: HashMap::new(),
            carried_out: HashMap::new(),
        }
    }

    fn run(mut self) {
        // The scope's end is no news for the operator.
        let _ = self.try_run();
    }

    fn try_run(&mut self) -> Result<(), Ended> {
        self.retry(|log| log.mark())?;
        self.replay()?;
        while self.shared.options.is_shared {
            self.follow(PATIENCE)?;
        }
        Ok(())
    }

    /// Revocations first: no revoked session is found meanwhile. Then sessions, the newest first: those that
    /// are most likely to be wanted, and the store then has them in the order they were made in.
    fn replay(&mut self) -> Result<(), Ended> {
        let begun = Instant::now();
        for lane in [Lane::Control, Lane::Births] {
            loop {
                let records = self.retry(|log| log.older(lane, PAGE))?;
                if records.is_empty() {
                    break;
                }
                for record in &records {
                    self.apply(record, Arrival::Replayed)?;
                }
                if self.shared.options.is_shared && lane == Lane::Births {
                    self.follow(Duration::ZERO)?;
                }
            }
        }
        let took_ms = begun.elapsed().as_millis() as u64;
        let status = &self.shared.status;
        status.note_replay(took_ms);
        self.shared.tell(Happened::Replayed {
            sessions: status.applied.load(Relaxed),
            took_ms,
        });
        Ok(())
    }

    fn follow(&mut self, wait: Duration) -> Result<(), Ended> {
        let records = self.retry(|log| log.newer(PAGE, wait))?;
        for (_, record) in &records {
            self.apply(record, Arrival::Live)?;
        }
        if let Ok(Some(ahead_ms)) = self.log.clock_ahead_ms() {
            self.shared.status.clock_ahead_ms.store(ahead_ms, Relaxed);
        }
        Ok(())
    }

    /// Asks the log until it answers.
    fn retry<R>(
        &mut self,
        mut ask: impl FnMut(&mut dyn LogReader) -> Result<R, LogError>,
    ) -> Result<R, Ended> {
        let mut retry = FIRST_RETRY;
        loop {
            if self.scope.strong_count() == 0 || self.shared.queue.is_closed() {
                return Err(Ended);
            }
            match ask(&mut *self.log) {
                Ok(answer) => {
                    self.shared.set(Part::Reader, Ok(()));
                    return Ok(answer);
                }
                Err(error) => self.shared.set(Part::Reader, Err(error.0)),
            }
            self.shared.queue.pause(retry);
            retry = LAST_RETRY.min(2 * retry);
        }
    }

    fn apply(&mut self, record: &[u8], arrival: Arrival) -> Result<(), Ended> {
        let scope = self.scope.upgrade().ok_or(Ended)?;
        let Store::Server(store) = scope.store() else {
            return Err(Ended);
        };
        self.shared.status.read.fetch_add(1, Relaxed);
        let applied = self.open(record).and_then(|opened| {
            // What this process has written it has done.
            if opened.stamp.writer == self.shared.writer {
                return Ok(());
            }
            self.apply_opened(&scope, store, &opened, arrival)
        });
        if let Err(reason) = applied {
            self.shared.status.skip(reason);
        }
        Ok(())
    }

    fn open(&self, record: &[u8]) -> Result<Opened, Skipped> {
        let open = || {
            let keys = self.shared.keys().ok_or(Skipped::Key)?;
            open(&keys, &self.shared.context, record, wall_ms())
        };
        open().or_else(|reason| {
            if reason != Skipped::Key {
                return Err(reason);
            }
            // A key may have been added a moment ago.
            self.shared.renew_keys();
            open()
        })
    }

    fn apply_opened(
        &mut self,
        scope: &Scope<T>,
        store: &ServerStore<T>,
        opened: &Opened,
        arrival: Arrival,
    ) -> Result<(), Skipped> {
        let Stamp {
            made_ms,
            expires_ms,
            ..
        } = opened.stamp;
        let revoked = match opened.body()? {
            Body::Birth {
                id,
                secret,
                template,
                certificate,
                tail,
            } => {
                self.shared
                    .note_lifetime(expires_ms.saturating_sub(made_ms));
                let template = self.template(store, template)?;
                // Held until the session is stored: it is revoked before, or found by whoever revokes it.
                let revocations = self.shared.revocations.lock();
                let certificate = (!certificate.is_empty()).then_some(certificate);
                if revocations.is_revoked(id, made_ms, certificate) {
                    return Err(Skipped::Revoked);
                }
                let times = self.times(store, opened.stamp, arrival);
                let (born_ms, now_ms) = times.ok_or(Skipped::Expired)?;
                let session = NewSession {
                    key: SessionKey::Id(id),
                    secret,
                    template: Some(template),
                    certificate,
                    tail,
                };
                let restored = store.restore(session, born_ms, arrival, now_ms);
                drop(revocations);
                return self.note_restored(restored);
            }
            Body::Template(content) => {
                return self.learn(content, expires_ms);
            }
            Body::Forget(id) => Revoked::Session(*id),
            Body::Flush => Revoked::All,
            Body::Revoke(wanted) => Revoked::Certificate(wanted),
        };
        self.shared.remember(&revoked, made_ms, expires_ms);
        // What was made before this journal has come to nothing that is in the store.
        let is_older = arrival == Arrival::Replayed
            && made_ms.saturating_add(MARGIN_MS) < self.shared.began_ms;
        match revoked {
            Revoked::Session(id) => {
                store.delete(SessionKey::Id(&id));
            }
            _ if is_older || !self.is_first(opened.stamp, &revoked) => {}
            Revoked::All => {
                scope.clear();
            }
            Revoked::Certificate(wanted) => {
                store.revoke(&[wanted.selector()]);
            }
        }
        Ok(())
    }

    /// Whoever can write to the log can repeat what is in it.
    fn is_first(&mut self, stamp: Stamp, revoked: &Revoked) -> bool {
        if self.carried_out.len() == self.carried_out.capacity() {
            let now_ms = wall_ms();
            self.carried_out
                .retain(|_, expires_ms| *expires_ms > now_ms);
        }
        let wanted = match revoked {
            Revoked::Certificate(wanted) => Some(wanted.clone()),
            _ => None,
        };
        let key = (stamp.writer, stamp.made_ms, wanted);
        self.carried_out.insert(key, stamp.expires_ms).is_none()
    }

    /// When a session was made by the store's clock, and the present. `None` if it has had its time: that of who
    /// made it, or the store's.
    fn times(&self, store: &ServerStore<T>, stamp: Stamp, arrival: Arrival) -> Option<(u64, u64)> {
        let (now_ms, now_wall_ms) = (now_ms(), wall_ms());
        let lifetime_ms = store.limits().lifetime_ms;
        let age_ms = now_wall_ms.saturating_sub(stamp.made_ms);
        if arrival == Arrival::Live {
            self.shared.status.lag_ms.store(age_ms, Relaxed);
        }
        let left_ms = stamp
            .expires_ms
            .saturating_sub(now_wall_ms)
            .min(lifetime_ms.saturating_sub(age_ms));
        let born_ms = now_ms.checked_sub(lifetime_ms - left_ms)?;
        (left_ms > 0).then_some((born_ms, now_ms))
    }

    fn note_restored(&self, restored: Restored) -> Result<(), Skipped> {
        let status = &self.shared.status;
        match restored {
            Restored::Stored => status.applied.fetch_add(1, Relaxed),
            Restored::Known => status.known.fetch_add(1, Relaxed),
            Restored::NoRoom => return Err(Skipped::Full),
        };
        Ok(())
    }

    fn learn(&mut self, content: &[u8], expires_ms: u64) -> Result<(), Skipped> {
        let hash = content_hash(content);
        if let Some(known) = self.templates.get_mut(&hash) {
            known.expires_ms = known.expires_ms.max(expires_ms);
            return Ok(());
        }
        if self.templates.len() >= MAX_TEMPLATES {
            let now_ms = wall_ms();
            self.templates.retain(|_, known| known.expires_ms > now_ms);
        }
        if self.templates.len() >= MAX_TEMPLATES {
            return Err(Skipped::Template);
        }
        let known = Known {
            content: content.into(),
            expires_ms,
            template: None,
        };
        self.templates.insert(hash, known);
        Ok(())
    }

    /// A hold on a template.
    fn template<'a>(
        &mut self,
        store: &'a ServerStore<T>,
        hash: &ContentHash,
    ) -> Result<Held<'a, T>, Skipped> {
        let known = self.templates.get_mut(hash).ok_or(Skipped::Template)?;
        let name = known.template;
        if let Some(template) = name.and_then(|name| store.hold_template(name)) {
            return Ok(template);
        }
        let template = T::intern(store, &known.content).ok_or(Skipped::Template)?;
        known.template = Some(template.name());
        Ok(template)
    }
}

fn lifetime_ms<T>(scope: &Scope<T>) -> u64 {
    match scope.store() {
        Store::Server(store) => store.limits().lifetime_ms,
        Store::Client(_) => 0,
    }
}

/// How long records are of use: sessions for a lifetime, and the templates they refer to, which were written up to a
/// quarter of one before. And longer by what the clocks of two nodes may differ: a revocation must not end before
/// a session that it is for.
fn keep_ms(lifetime_ms: u64) -> u64 {
    lifetime_ms
        .saturating_add(lifetime_ms / 4)
        .saturating_add(2 * MAX_AHEAD_MS)
}

#[cfg(any(test, fuzzing))]
pub mod hostile;
#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
