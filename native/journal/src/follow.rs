//! Follows a log that other nodes write to. One thread does this for all scopes with this log.

use crate::backoff::Backoff;
use crate::clock::now_ms;
use crate::hub::Hub;
use crate::reader::Unread;
use crate::record::Skipped;
use crate::shared::{random_delay, Shared, COMPLETE_WITHIN_MS};
use crate::status::Part;
use crate::template::TemplateCodec;
use rekindle_core::Arrival;
use rekindle_log::{LogFollower, News, Record, Stream};
use std::sync::Arc;
use std::time::Duration;

/// Records read at once.
const PAGE: usize = if cfg!(test) { 50 } else { 1000 };

/// How long a read may wait for new records.
const WAIT: Duration = Duration::from_millis(500);

/// How often the thread looks for scopes to follow while it has none.
const TICK: Duration = Duration::from_millis(50);

pub(crate) struct Follower<T> {
    hub: Arc<Hub<T>>,
    log: Box<dyn LogFollower>,
    followed: Vec<Arc<Shared<T>>>,
    backoff: Backoff,
}

impl<T: TemplateCodec> Follower<T> {
    pub fn new(hub: Arc<Hub<T>>, log: Box<dyn LogFollower>) -> Self {
        Follower {
            hub,
            log,
            followed: Vec::new(),
            backoff: Backoff::default(),
        }
    }

    /// Follows until the hub has ended.
    pub fn run(mut self) {
        while !self.hub.has_ended() {
            if !self.turn() {
                self.hub.sleep_until_mark(TICK);
            }
        }
    }

    /// Reads once, unless there is nothing to follow or it must wait after an error. Returns whether it has read.
    pub fn turn(&mut self) -> bool {
        self.choose();
        if self.followed.is_empty() || !self.backoff.is_over() {
            return false;
        }
        let began_ms = now_ms();
        let found = self.log.newer(PAGE, WAIT);
        self.backoff.note(found.is_ok());
        let news = match found {
            Ok(news) => news,
            Err(error) => {
                for journal in &self.followed {
                    journal.set(Part::Follower, Err(error.0.clone()));
                    // The log may have lost records when it is back.
                    self.complete(journal);
                }
                return true;
            }
        };
        let refusal = |journal: &Shared<T>| {
            let mut refused = news.refused.iter();
            refused.find_map(|(scope, why)| (*scope == journal.name).then(|| why.0.clone()))
        };
        for journal in &self.followed {
            journal.set(Part::Follower, refusal(journal).map_or(Ok(()), Err));
        }
        self.apply(&news);
        if news.records.len() < PAGE {
            for journal in &self.followed {
                if refusal(journal).is_none() {
                    journal.note_read(began_ms);
                }
            }
        }
        true
    }

    /// Begins to follow scopes that were read up to a mark, and leaves those that have ended.
    fn choose(&mut self) {
        for (journal, mark) in self.hub.take_marks() {
            self.log.follow(&journal.name, &mark);
            self.followed.retain(|other| other.name != journal.name);
            self.followed.push(journal);
        }
        let ended = |journal: &Arc<Shared<T>>| journal.has_ended();
        for journal in self.followed.iter().filter(|journal| ended(journal)) {
            self.log.leave(&journal.name);
        }
        self.followed.retain(|journal| !ended(journal));
    }

    fn apply(&self, news: &News) {
        for journal in &self.followed {
            let of = |wanted: Stream| {
                let records = news.records.iter();
                records.filter_map(move |(scope, stream, record)| {
                    (*scope == journal.name && *stream == wanted).then_some(record)
                })
            };
            if of(Stream::Control).next().is_some() {
                let was_missing = journal.remembered.revocations().missing();
                journal.apply_control(of(Stream::Control), None);
                let missing = journal.remembered.revocations().missing();
                let mut replay = journal.replay.lock();
                if missing > 0 && !replay.is_held {
                    // The sessions are read once the missing revocations are there.
                    replay.is_held = true;
                    replay.want_replay(Duration::from_millis(100));
                } else if missing == 0 && was_missing > 0 && replay.is_held {
                    replay.want_replay(Duration::ZERO);
                }
            }
            apply_sessions(journal, of(Stream::Sessions));
            if news.lost.contains(&journal.name) {
                self.complete(journal);
            }
        }
    }

    fn complete(&self, journal: &Shared<T>) {
        let delay = random_delay(COMPLETE_WITHIN_MS);
        journal.replay.lock().want_scan(delay);
    }
}

fn apply_sessions<'a, T: TemplateCodec>(
    journal: &Shared<T>,
    records: impl Iterator<Item = &'a Record>,
) {
    if journal.replay.lock().is_held {
        // The replay will read them.
        return;
    }
    journal.with_store(|_, store| {
        for record in records {
            match journal.apply_session(store, record, Arrival::Live, None) {
                Ok(()) => {}
                Err(Unread::Skipped(reason)) => journal.status.skip(reason),
                Err(Unread::UnknownKnowledge(hash)) => {
                    journal.status.skip(Skipped::Template);
                    let mut replay = journal.replay.lock();
                    if !replay.settled.contains(&hash) && !replay.wants_replay {
                        replay.want_replay(Duration::from_secs(2));
                    }
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node_memory::NodeMemory;
    use crate::testing::{open, options, Common, Memory};
    use rekindle_core::Limits;
    use rekindle_log::{LogError, Mark};
    use std::collections::VecDeque;

    /// A follower that finds what a test says.
    struct Script(VecDeque<Result<News, LogError>>);

    impl LogFollower for Script {
        fn follow(&mut self, _: &Arc<str>, _: &Mark) {}
        fn leave(&mut self, _: &str) {}
        fn newer(&mut self, _: usize, _: Duration) -> Result<News, LogError> {
            self.0.pop_front().expect("a line of the script")
        }
    }

    #[test]
    fn a_refused_scope_is_down_and_the_others_are_not() {
        let hub = Hub::without_threads(Arc::new(Memory::new(true)));
        let limits = Limits {
            max_bytes: 100_000_000,
            max_sessions: 10,
            lifetime_ms: 3_600_000,
        };
        let opened = ["readable", "refused"].map(|name| open(name, limits));
        let [readable, refused] = [0, 1].map(|n| {
            let name = ["readable", "refused"][n];
            let (given, memory) = (options(name, "keys".into()), NodeMemory::new(None));
            let (scope, waker) = (&opened[n].1, Arc::clone(&hub.waker));
            let journal = Shared::new(scope, given, memory.into(), "log".into(), true, waker);
            let journal = Arc::new(journal.unwrap());
            hub.follow(&journal, Mark::default());
            journal
        });
        let why = || LogError("it may not be read".into());
        let refusal = || News {
            refused: vec![("refused".into(), why())],
            ..News::default()
        };
        let script = [Ok(refusal()), Ok(refusal()), Ok(News::default())];
        let mut follower = Follower::<Common>::new(hub, Box::new(Script(script.into())));
        let is_down = |journal: &Shared<Common>| journal.status.is_failing(Part::Follower);
        for _ in 0..2 {
            assert!(follower.turn());
            assert!(!is_down(&readable) && readable.may_trim());
            assert!(is_down(&refused) && !refused.may_trim());
            assert_eq!(refused.status.health().0, Some(Err(why().0)));
        }
        assert!(follower.turn());
        assert!(!is_down(&refused) && refused.may_trim());
    }
}
