//! The log in a folder, for one node: an SQLite database that this process alone has open.
//!
//! SQLite was chosen by measurements with a million records of 250 bytes, in batches of 50 to 500 and an fsync every
//! 200 ms. SQLite wrote 270,000 records/s (3 s of CPU, 700 MB written, 280 MB kept) and read 2,400,000/s newest first;
//! dropping half of them took a second, and memory peaked at 8 MB. fjall 2.11 wrote 100,000/s (2.3 s of CPU, 530 MB
//! written), with a pause of half a second, three threads and 33 MB; it cannot open a log with a damaged byte in one of
//! its smaller files, it lets a second process in, and its next major version needs a newer Rust. redb 2.6 wrote
//! 170,000/s, but to drop 50,000 of 100,000 records it took three seconds, wrote 780 MB and blew up a file of 50 MB to
//! 830 MB. LMDB was not tried: it maps its file, so a truncated file or a full disk can kill the node.
//!
//! - A commit reaches the write-ahead log, so it outlives the process. [`sync`](LogWriter::sync) makes it outlive a
//!   power cut; SQLite itself does so at each checkpoint.
//! - No wall clock is read. A record's age is how long the log has been open since the record was appended. The log
//!   stores its total open time with each append, with each trim, and when it is closed.
//! - After any error the database is closed, and the next call opens it again.
//! - SQLite goes on with files that somebody else has removed or cut short, and what it writes then is lost with the
//!   process. So a few `stat`s check the files before each use.
//! - The folder and the files must belong to the user who runs this process, and nobody else may write to them.

mod engine;
mod tables;

use crate::{
    Batch, Bounds, Log, LogError, LogFollower, LogReader, LogWriter, Mark, Record, Stream,
};
use engine::{Failure, Handle, Open};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tables::{Books, Excess, What};

/// How long a trim may take. The next one does the rest.
const TRIM: Duration = Duration::from_secs(3);
/// How many records one transaction drops, so that others have to wait some milliseconds at most.
const DROPPED_AT_ONCE: usize = 2000;
/// How long `append` tries batches one by one if the disk has no room for all of them.
const ONE_BY_ONE: Duration = Duration::from_secs(3);

/// A log in a folder, for all scopes of a node. It stays open until all `Folder`s of this path, with their writers and
/// readers, are gone.
pub struct Folder(Arc<Handle>);

impl Folder {
    /// The log in this folder. First use makes or opens it.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Folder(Arc::new(Handle::new(path.into())))
    }
}

impl Log for Folder {
    fn location(&self) -> String {
        self.0.asked.display().to_string()
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn writer(&self) -> Box<dyn LogWriter> {
        Box::new(FolderWriter(Arc::clone(&self.0)))
    }

    fn reader(&self) -> Box<dyn LogReader> {
        Box::new(FolderReader {
            folder: Arc::clone(&self.0),
            place: None,
        })
    }

    fn follower(&self) -> Option<Box<dyn LogFollower>> {
        None
    }
}

struct FolderWriter(Arc<Handle>);

impl LogWriter for FolderWriter {
    /// Appends in one transaction. If the disk has no room for it, tries each batch alone, as some may be small.
    fn append(&mut self, batches: &[Batch]) -> Result<Vec<Result<(), LogError>>, LogError> {
        if batches.is_empty() {
            return Ok(Vec::new());
        }
        let mut results = Vec::with_capacity(batches.len());
        let appended = self.0.with("append to", |open| {
            let Err(all) = try_append(open, batches) else {
                return Ok(());
            };
            if batches.len() == 1 || !all.is_full() {
                return Err(all);
            }
            let reason = all.reason();
            let begun = Instant::now();
            for batch in batches {
                results.push(if begun.elapsed() < ONE_BY_ONE {
                    match try_append(open, std::slice::from_ref(batch)) {
                        Err(failure) if failure.is_full() => Err(failure.reason()),
                        other => Ok(other?),
                    }
                } else {
                    Err(reason.clone())
                });
            }
            Ok(())
        });
        match appended {
            Ok(()) if results.is_empty() => Ok(vec![Ok(()); batches.len()]),
            Ok(()) => {
                let location = self.0.asked.display();
                let log_error =
                    |why| LogError(format!("cannot append to the log in {location}: {why}"));
                Ok(results
                    .into_iter()
                    .map(|result| result.map_err(log_error))
                    .collect())
            }
            // Earlier batches may be in the log or not: the caller appends them again.
            Err(error) => Err(error),
        }
    }

    fn sync(&mut self) -> Result<(), LogError> {
        self.0.with("sync", Open::sync)
    }

    /// Drops records of all scopes, also of those that nobody opens any more. Their bound on age is the last one that
    /// was asked for, or, if there was none, the longest of any scope.
    ///
    /// If the log has only records to drop, it is removed as a whole: it may have filled the disk, and dropping records
    /// one by one would need room.
    fn trim(&mut self, scopes: &[Bounds]) -> Result<(), LogError> {
        let begun = Instant::now();
        let bounds: HashMap<&str, &Bounds> =
            scopes.iter().map(|scope| (scope.scope, scope)).collect();
        self.0.remove_if("trim", |open| {
            let books = tables::books(&open.db)?;
            let horizons = horizons(&books, &bounds, open.clock.now_ms());
            Ok(is_spent(&books, &horizons))
        })?;
        let mut excess = self.0.with("trim", |open| {
            let books = tables::books(&open.db)?;
            let now_ms = open.clock.now_ms();
            store(open, &books, &bounds, now_ms)?;
            Ok(excess(&books, &bounds, now_ms))
        })?;
        while !excess.is_empty() && begun.elapsed() < TRIM {
            self.0.with("trim", |open| {
                tables::drop_some(&mut open.db, &mut excess, DROPPED_AT_ONCE)
            })?;
        }
        let bytes = self.0.with("trim", |open| {
            let books = tables::books(&open.db)?.into_iter();
            Ok(books
                .map(|scope| (scope.name, u64::try_from(scope.bytes).unwrap_or(0)))
                .collect())
        })?;
        self.0.set_bytes(bytes);
        while begun.elapsed() < TRIM && self.0.with("trim", |open| tables::vacuum(&open.db))? {}
        Ok(())
    }

    fn bytes(&self, scope: &str) -> Option<u64> {
        self.0.bytes(scope)
    }

    fn take_notice(&mut self) -> Option<String> {
        self.0.take_notice()
    }
}

fn try_append(open: &mut Open, batches: &[Batch]) -> Result<(), Failure> {
    let now_ms = open.clock.now_ms();
    tables::append(&mut open.db, batches, now_ms)?;
    open.has_appended();
    Ok(())
}

fn millis(time: Duration) -> i64 {
    time.as_millis().try_into().unwrap_or(i64::MAX)
}

/// For each scope, a time: records that were appended then or before are too old now.
fn horizons(books: &[Books], bounds: &HashMap<&str, &Bounds>, now_ms: i64) -> Vec<i64> {
    let keep_ms = |scope: &Books| match bounds.get(&*scope.name) {
        Some(bounds) => Some(millis(bounds.keep)),
        None => scope.keep_ms,
    };
    let asked = bounds.values().map(|bounds| millis(bounds.keep));
    let longest_ms = books.iter().filter_map(keep_ms).chain(asked).max();
    let keeps = books.iter().map(|scope| keep_ms(scope).or(longest_ms));
    keeps
        .map(|keep_ms| keep_ms.map_or(i64::MIN, |keep_ms| now_ms.saturating_sub(keep_ms)))
        .collect()
}

/// Whether there are records and all of them are too old.
fn is_spent(books: &[Books], horizons: &[i64]) -> bool {
    let is_too_old = |(scope, horizon_ms): (&Books, &i64)| {
        let streams = scope.until_ms.iter().flatten();
        streams
            .clone()
            .all(|(_, newest_ms)| newest_ms <= horizon_ms)
    };
    let has_records = books.iter().any(|scope| scope.until_ms != [None, None]);
    has_records && books.iter().zip(horizons).all(is_too_old)
}

/// Stores how long the log has been open, and the bounds on age that have changed.
fn store(
    open: &mut Open,
    books: &[Books],
    bounds: &HashMap<&str, &Bounds>,
    now_ms: i64,
) -> Result<(), Failure> {
    let known: HashMap<&str, Option<i64>> = books
        .iter()
        .map(|scope| (&*scope.name, scope.keep_ms))
        .collect();
    let keeps: Vec<(&str, i64)> = bounds
        .iter()
        .map(|(name, bounds)| (*name, millis(bounds.keep)))
        .filter(|(name, keep_ms)| known.get(name) != Some(&Some(*keep_ms)))
        .collect();
    let empty: Vec<i64> = books
        .iter()
        .filter(|scope| scope.until_ms == [None, None] && !bounds.contains_key(&*scope.name))
        .map(|scope| scope.scope)
        .collect();
    tables::store_books(&mut open.db, now_ms, &keeps, &empty)
}

/// The records to drop: first those that are too old, then the oldest sessions of scopes that are too large.
fn excess(books: &[Books], bounds: &HashMap<&str, &Bounds>, now_ms: i64) -> Vec<Excess> {
    let mut excess = Vec::new();
    for (scope, horizon_ms) in books.iter().zip(horizons(books, bounds, now_ms)) {
        for (stream, until_ms) in tables::STREAMS.into_iter().zip(scope.until_ms) {
            if until_ms.is_some_and(|(oldest_ms, _)| oldest_ms <= horizon_ms) {
                excess.push(Excess {
                    scope: scope.scope,
                    stream,
                    what: What::UntilMs(horizon_ms),
                });
            }
        }
    }
    for scope in books {
        let Some(bounds) = bounds.get(&*scope.name) else {
            continue;
        };
        let max_bytes = i64::try_from(bounds.max_bytes).unwrap_or(i64::MAX);
        if scope.bytes > max_bytes {
            excess.push(Excess {
                scope: scope.scope,
                stream: Stream::Sessions,
                what: What::BeyondBytes(max_bytes),
            });
        }
    }
    excess
}

struct FolderReader {
    folder: Arc<Handle>,
    /// `None` before the first mark, and for a scope that has no records.
    place: Option<Place>,
}

/// A reader's position.
struct Place {
    generation: u64,
    scope: i64,
    /// For each stream, records below this number are still to be read.
    before: [i64; 2],
}

impl LogReader for FolderReader {
    fn mark(&mut self, scope: &str) -> Result<Mark, LogError> {
        self.place = self.folder.with("read", |open| {
            let found = tables::find(&open.db, scope)?;
            Ok(found.map(|(scope, before)| Place {
                generation: open.generation,
                scope,
                before,
            }))
        })?;
        let ends = self.place.as_ref().map_or([1, 1], |place| place.before);
        Ok(Mark(ends.map(|end| (0, end as u64)).into()))
    }

    fn older(&mut self, stream: Stream, limit: usize) -> Result<Vec<Record>, LogError> {
        let Some(place) = &mut self.place else {
            return Ok(Vec::new());
        };
        let before = match stream {
            Stream::Control => &mut place.before[0],
            Stream::Sessions => &mut place.before[1],
        };
        let (records, next) = self.folder.with("read", |open| {
            // If the log was begun again since, it has no record from before the mark.
            if open.generation != place.generation {
                return Ok((Vec::new(), *before));
            }
            tables::older(&open.db, place.scope, stream, *before, limit)
        })?;
        *before = next;
        Ok(records)
    }
}
