//! The tables and their statements: append, read back, drop by age and by size.
//!
//! Records are numbered within their scope and stream. Ages are stored for ranges of records: all that were appended
//! within one minute of the log's open time. The scope's row has a running sum of each stream's bytes.

use super::engine::Failure;
use crate::{Batch, Record, Stream};
use rusqlite::{params, Connection, OptionalExtension, Transaction};

/// Increase it whenever the tables change.
pub(super) const LAYOUT: i64 = 2;

/// `next_*` is the number of the stream's next record. `open_ms` is how long the log has been open, in all; `until_ms`
/// is what it was when the range's last record was appended. Numbers of scopes are not used twice, because readers
/// remember them.
const TABLES: &str = "
    CREATE TABLE clock (id INTEGER PRIMARY KEY CHECK (id = 1), open_ms INTEGER NOT NULL) STRICT;
    INSERT INTO clock VALUES (1, 0);
    CREATE TABLE scope (
        id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, keep_ms INTEGER,
        next_control INTEGER NOT NULL DEFAULT 1, next_session INTEGER NOT NULL DEFAULT 1,
        control_bytes INTEGER NOT NULL DEFAULT 0, sessions_bytes INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE record (
        scope INTEGER NOT NULL, stream INTEGER NOT NULL, seq INTEGER NOT NULL, sealed BLOB NOT NULL,
        PRIMARY KEY (scope, stream, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE range (
        scope INTEGER NOT NULL, stream INTEGER NOT NULL, first INTEGER NOT NULL,
        begun_ms INTEGER NOT NULL, until_ms INTEGER NOT NULL,
        PRIMARY KEY (scope, stream, first)
    ) STRICT, WITHOUT ROWID;";

/// How long a range goes on. So long may a record stay beyond its age.
const RANGE_MS: i64 = 60_000;
/// Bytes of a record besides its content.
const RECORD_OVERHEAD_BYTES: i64 = 20;
/// How many pages one call gives back, so that others have to wait some milliseconds at most.
const PAGES_AT_ONCE: i64 = 1024;
/// Free pages that the file keeps for the next records.
const SPARE_PAGES: i64 = 256;

pub(super) const STREAMS: [Stream; 2] = [Stream::Control, Stream::Sessions];

fn number(stream: Stream) -> i64 {
    match stream {
        Stream::Control => 0,
        Stream::Sessions => 1,
    }
}

pub(super) fn create(db: &mut Connection) -> Result<(), Failure> {
    let begin = db.transaction()?;
    begin.execute_batch(TABLES)?;
    begin.pragma_update(None, "user_version", LAYOUT)?;
    Ok(begin.commit()?)
}

/// How long the log had been open when that was last stored, in milliseconds.
pub(super) fn clock_ms(db: &Connection) -> Result<i64, Failure> {
    Ok(db.query_row("SELECT open_ms FROM clock", [], |row| row.get(0))?)
}

pub(super) fn store_clock(db: &Connection, open_ms: i64) -> Result<(), Failure> {
    db.prepare_cached("UPDATE clock SET open_ms = ?")?
        .execute([open_ms])?;
    Ok(())
}

// ---- append ----

/// Appends the records of each scope.
pub(super) fn append(db: &mut Connection, batches: &[Batch], open_ms: i64) -> Result<(), Failure> {
    let append = db.transaction()?;
    // In the same transaction as the records that it dates, so that after a crash no record is younger than the clock.
    store_clock(&append, open_ms)?;
    for batch in batches {
        append_batch(&append, batch, open_ms)?;
    }
    Ok(append.commit()?)
}

fn append_batch(append: &Transaction, batch: &Batch, open_ms: i64) -> Result<(), Failure> {
    append
        .prepare_cached("INSERT INTO scope (name) VALUES (?) ON CONFLICT DO NOTHING")?
        .execute([batch.scope])?;
    let (scope, next) = find(append, batch.scope)?
        .ok_or_else(|| Failure::Damage("a scope is not where it was put".into()))?;
    let (next_control, control_bytes) = append_stream(
        append,
        scope,
        Stream::Control,
        next[0],
        batch.control,
        open_ms,
    )?;
    let (next_session, sessions_bytes) = append_stream(
        append,
        scope,
        Stream::Sessions,
        next[1],
        batch.sessions,
        open_ms,
    )?;
    append
        .prepare_cached(
            "UPDATE scope SET next_control = ?2, next_session = ?3,
                 control_bytes = control_bytes + ?4, sessions_bytes = sessions_bytes + ?5
             WHERE id = ?1",
        )?
        .execute([
            scope,
            next_control,
            next_session,
            control_bytes,
            sessions_bytes,
        ])?;
    Ok(())
}

/// Returns the next number, and how many bytes were added.
fn append_stream(
    append: &Transaction,
    scope: i64,
    stream: Stream,
    next: i64,
    records: &[Record],
    open_ms: i64,
) -> Result<(i64, i64), Failure> {
    if records.is_empty() {
        return Ok((next, 0));
    }
    extend_range(append, scope, stream, next, open_ms)?;
    let mut insert = append.prepare_cached("INSERT INTO record VALUES (?, ?, ?, ?)")?;
    let (mut seq, mut bytes) = (next, 0);
    for record in records {
        insert.execute(params![scope, number(stream), seq, record])?;
        seq = seq
            .checked_add(1)
            .ok_or_else(|| Failure::Damage("a stream has no number left".into()))?;
        bytes += size(record.len() as i64);
    }
    Ok((seq, bytes))
}

fn size(record_bytes: i64) -> i64 {
    record_bytes + RECORD_OVERHEAD_BYTES
}

/// Adds the records from `next` on to the newest range, or begins a new one.
fn extend_range(
    append: &Transaction,
    scope: i64,
    stream: Stream,
    next: i64,
    open_ms: i64,
) -> Result<(), Failure> {
    let newest: Option<(i64, i64)> = append
        .prepare_cached(
            "SELECT first, begun_ms FROM range WHERE scope = ? AND stream = ? ORDER BY first DESC LIMIT 1",
        )?
        .query_row([scope, number(stream)], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match newest {
        Some((first, _)) if first >= next => {
            return Err(Failure::Damage("ranges are out of order".into()));
        }
        Some((first, begun_ms)) if open_ms.saturating_sub(begun_ms) < RANGE_MS => append
            .prepare_cached(
                "UPDATE range SET until_ms = max(until_ms, ?4) WHERE scope = ?1 AND stream = ?2 AND first = ?3",
            )?
            .execute([scope, number(stream), first, open_ms])?,
        _ => append
            .prepare_cached("INSERT INTO range VALUES (?1, ?2, ?3, ?4, ?4)")?
            .execute([scope, number(stream), next, open_ms])?,
    };
    Ok(())
}

// ---- read ----

/// A scope's number, and the next number of each stream.
pub(super) fn find(db: &Connection, name: &str) -> Result<Option<(i64, [i64; 2])>, Failure> {
    let found = db
        .prepare_cached("SELECT id, next_control, next_session FROM scope WHERE name = ?")?
        .query_row([name], |row| Ok((row.get(0)?, [row.get(1)?, row.get(2)?])))
        .optional()?;
    let Some((scope, mut next)) = found else {
        return Ok(None);
    };
    for (stream, next) in STREAMS.into_iter().zip(&mut next) {
        let last: Option<i64> = db
            .prepare_cached("SELECT max(seq) FROM record WHERE scope = ? AND stream = ?")?
            .query_row([scope, number(stream)], |row| row.get(0))?;
        // The row and the records are on different pages, and one of these may be damaged.
        if last.is_some_and(|last| last >= *next) {
            return Err(Failure::Damage(
                "a record has no number of its stream".into(),
            ));
        }
        if *next < 1 {
            return Err(Failure::Damage("a stream's next number is negative".into()));
        }
    }
    Ok(Some((scope, next)))
}

/// The records of a stream below a number, newest first, and the number of the last one returned.
pub(super) fn older(
    db: &Connection,
    scope: i64,
    stream: Stream,
    before: i64,
    limit: usize,
) -> Result<(Vec<Record>, i64), Failure> {
    let mut select = db.prepare_cached(
        "SELECT seq, sealed FROM record WHERE scope = ? AND stream = ? AND seq < ?
         ORDER BY seq DESC LIMIT ?",
    )?;
    let mut rows = select.query(params![scope, number(stream), before, limit as i64])?;
    let (mut records, mut next) = (Vec::new(), before);
    while let Some(row) = rows.next()? {
        let seq: i64 = row.get(0)?;
        // Without this check, a damaged page could make the reader loop for ever.
        if seq >= next {
            return Err(Failure::Damage("records are out of order".into()));
        }
        next = seq;
        records.push(row.get(1)?);
    }
    Ok((records, next))
}

// ---- trim ----

/// What trimming needs to know about a scope.
pub(super) struct Books {
    pub(super) scope: i64,
    pub(super) name: String,
    pub(super) keep_ms: Option<i64>,
    pub(super) bytes: i64,
    /// For each stream with records: when its oldest and its newest range had their last record.
    pub(super) until_ms: [Option<(i64, i64)>; 2],
}

/// All scopes. Reads one row and four ranges per scope, however many records there are.
pub(super) fn books(db: &Connection) -> Result<Vec<Books>, Failure> {
    let mut select = db.prepare_cached(
        "SELECT id, name, keep_ms, control_bytes + sessions_bytes,
             (SELECT until_ms FROM range WHERE scope = id AND stream = 0 ORDER BY first LIMIT 1),
             (SELECT until_ms FROM range WHERE scope = id AND stream = 0 ORDER BY first DESC LIMIT 1),
             (SELECT until_ms FROM range WHERE scope = id AND stream = 1 ORDER BY first LIMIT 1),
             (SELECT until_ms FROM range WHERE scope = id AND stream = 1 ORDER BY first DESC LIMIT 1)
         FROM scope",
    )?;
    let books = select.query_map([], |row| {
        let both = |oldest: Option<i64>, newest: Option<i64>| oldest.zip(newest);
        Ok(Books {
            scope: row.get(0)?,
            name: row.get(1)?,
            keep_ms: row.get(2)?,
            bytes: row.get(3)?,
            until_ms: [
                both(row.get(4)?, row.get(5)?),
                both(row.get(6)?, row.get(7)?),
            ],
        })
    })?;
    Ok(books.collect::<Result<_, _>>()?)
}

/// Stores the open time and the scopes' bounds on age. Removes scopes without records.
pub(super) fn store_books(
    db: &mut Connection,
    open_ms: i64,
    keeps: &[(&str, i64)],
    empty: &[i64],
) -> Result<(), Failure> {
    let store = db.transaction()?;
    store_clock(&store, open_ms)?;
    for (name, keep_ms) in keeps {
        store
            .prepare_cached(
                "INSERT INTO scope (name, keep_ms) VALUES (?1, ?2) ON CONFLICT DO UPDATE SET keep_ms = ?2",
            )?
            .execute(params![name, keep_ms])?;
    }
    for scope in empty {
        store
            .prepare_cached(
                "DELETE FROM scope WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM record WHERE scope = ?1)",
            )?
            .execute([scope])?;
    }
    Ok(store.commit()?)
}

/// Records of a scope to drop.
pub(super) struct Excess {
    pub(super) scope: i64,
    pub(super) stream: Stream,
    pub(super) what: What,
}

/// Which records are to be dropped.
pub(super) enum What {
    /// Those that were appended at this time or before.
    UntilMs(i64),
    /// The oldest, while the scope takes more than these bytes.
    BeyondBytes(i64),
}

/// Drops records from the front of the list, about `limit` of them, and removes from the list what is done.
pub(super) fn drop_some(
    db: &mut Connection,
    excess: &mut Vec<Excess>,
    limit: usize,
) -> Result<(), Failure> {
    let drop = db.transaction()?;
    let (mut dropped, mut done) = (0, 0);
    for part in &*excess {
        if dropped >= limit {
            break;
        }
        let (end, bytes) = match part.what {
            What::UntilMs(until_ms) => (end_of(&drop, part, until_ms)?, i64::MAX),
            What::BeyondBytes(max_bytes) => {
                let taken: i64 = drop
                    .prepare_cached(
                        "SELECT control_bytes + sessions_bytes FROM scope WHERE id = ?",
                    )?
                    .query_row([part.scope], |row| row.get(0))?;
                (i64::MAX, taken.saturating_sub(max_bytes))
            }
        };
        let most = limit - dropped;
        let now = drop_oldest(&drop, part.scope, part.stream, end, bytes, most)?;
        dropped += now;
        if now == most {
            break;
        }
        done += 1;
    }
    drop.commit()?;
    excess.drain(..done);
    Ok(())
}

/// The first number of the first range that is younger than `until_ms`.
fn end_of(drop: &Transaction, part: &Excess, until_ms: i64) -> Result<i64, Failure> {
    let mut select = drop.prepare_cached(
        "SELECT first, until_ms FROM range WHERE scope = ? AND stream = ? ORDER BY first",
    )?;
    let mut rows = select.query([part.scope, number(part.stream)])?;
    while let Some(row) = rows.next()? {
        if row.get::<_, i64>(1)? > until_ms {
            return Ok(row.get(0)?);
        }
    }
    Ok(i64::MAX)
}

/// Drops the oldest records of a stream: those below `end`, until `bytes` are freed, and at most `limit` of them.
/// Returns how many.
fn drop_oldest(
    drop: &Transaction,
    scope: i64,
    stream: Stream,
    end: i64,
    bytes: i64,
    limit: usize,
) -> Result<usize, Failure> {
    let mut select = drop.prepare_cached(
        "SELECT seq, length(sealed) FROM record WHERE scope = ? AND stream = ? AND seq < ?
         ORDER BY seq LIMIT ?",
    )?;
    let mut rows = select.query(params![scope, number(stream), end, limit as i64])?;
    let (mut dropped, mut freed, mut last) = (0, 0, None);
    while freed < bytes {
        let Some(row) = rows.next()? else {
            break;
        };
        let seq: i64 = row.get(0)?;
        if last.is_some_and(|last| seq <= last) {
            return Err(Failure::Damage("records are out of order".into()));
        }
        last = Some(seq);
        freed += size(row.get(1)?);
        dropped += 1;
    }
    std::mem::drop(rows);
    let key = [scope, number(stream)];
    if let Some(last) = last {
        drop.prepare_cached("DELETE FROM record WHERE scope = ? AND stream = ? AND seq <= ?")?
            .execute([key[0], key[1], last])?;
        let column = match stream {
            Stream::Control => "control_bytes",
            Stream::Sessions => "sessions_bytes",
        };
        drop.prepare_cached(&format!(
            "UPDATE scope SET {column} = max(0, {column} - ?2) WHERE id = ?1"
        ))?
        .execute([scope, freed])?;
    }
    // The oldest remaining record belongs to the newest range that begins at or before it.
    drop.prepare_cached(
        "DELETE FROM range WHERE scope = ?1 AND stream = ?2 AND first < coalesce(
             (SELECT max(first) FROM range WHERE scope = ?1 AND stream = ?2 AND first <=
                 (SELECT min(seq) FROM record WHERE scope = ?1 AND stream = ?2)), 9223372036854775807)",
    )?
    .execute(key)?;
    Ok(dropped)
}

/// Gives a part of the file back to the disk if much of it is free. Returns whether it did.
pub(super) fn vacuum(db: &Connection) -> Result<bool, Failure> {
    let count = |pragma| db.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let free = count("freelist_count")?;
    if free <= SPARE_PAGES.max(count("page_count")? / 4) {
        return Ok(false);
    }
    // The pragma returns one row per page.
    db.pragma(None, "incremental_vacuum", PAGES_AT_ONCE, |_| Ok(()))?;
    // Only the checkpoint shortens the file.
    db.query_row("PRAGMA wal_checkpoint", [], |_| Ok(()))?;
    Ok(count("freelist_count")? < free)
}
