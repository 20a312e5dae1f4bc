//! The engine of one node: SQLite, in one file.
//!
//! It is in WAL mode: a reader sees what was committed, whoever is writing, in another process
//! as well; who is killed in the middle of a change has not made it. Taken instead of own files
//! because several entries change together, and several programs look at it.
//!
//! ```text
//!   control.db            application_id APPC, user_version 1
//!   control.db-wal, -shm  SQLite's
//!   control.db.last       a copy: as it was when the daemon last began
//! ```
//!
//! What was not written by us, or by a later version of us, is refused and left as it is.

use crate::engine::{Change, Engine, Entry, Expect, Lasting, Logged};
use crate::events::{Event, Query};
use crate::overtaken;
use libsnap::error::{Error, Kind, OrFail, Result};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// `APPC`, in the header of the file (sqlite.org/fileformat2.html, offset 68).
const APPLICATION_ID: i32 = 0x4150_5043;
const VERSION: i32 = 1;
/// How long another program's change is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many of the log are kept, and a few more.
const EVENTS_KEPT: i64 = 100_000;
const EVENTS_MORE: i64 = 1000;

const SCHEMA: &str = "
CREATE TABLE counter (revision INTEGER NOT NULL) STRICT;
INSERT INTO counter VALUES (0);
CREATE TABLE entries (key TEXT PRIMARY KEY, value TEXT NOT NULL, revision INTEGER NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    unix_ms INTEGER NOT NULL,
    kind TEXT NOT NULL,
    app TEXT,
    provider TEXT,
    told TEXT NOT NULL
) STRICT;
CREATE INDEX events_of_app ON events (app, id);
CREATE INDEX events_of_provider ON events (provider, id);
";

#[derive(Debug)]
pub struct Sqlite {
    path: PathBuf,
    connection: Mutex<Connection>,
}

impl Sqlite {
    /// `whole`: it is made where there is none, all of it is checked, and a copy made.
    pub fn open(path: &Path, whole: bool) -> Result<Sqlite> {
        if whole {
            // Nobody else may read what is in it; SQLite gives its other files the same mode.
            let made = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(path);
            made.or_fail(|| format!("cannot open {}", path.display()))?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags).map_err(|error| unusable(path, &error))?;
        begin(&connection, path, whole).map_err(|error| match error {
            Begin::Sqlite(error) => unusable(path, &error),
            Begin::Refused(error) => error,
        })?;
        Ok(Sqlite {
            path: path.to_owned(),
            connection: Mutex::new(connection),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A transaction of a thread that died is undone as it is dropped.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read<T>(&self, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T> {
        read(&self.lock()).map_err(|error| unusable(&self.path, &error))
    }

    /// Every change is one transaction, alone from its beginning on.
    fn write<T>(
        &self,
        lasting: Lasting,
        write: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<Result<T>>,
    ) -> Result<T> {
        let mut connection = self.lock();
        let all = || {
            // In WAL mode NORMAL syncs at checkpoints only.
            let synchronous = match lasting {
                Lasting::Synced => "FULL",
                Lasting::Written => "NORMAL",
            };
            connection.pragma_update(None, "synchronous", synchronous)?;
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let answer = write(&transaction)?;
            if answer.is_ok() {
                transaction.commit()?;
            }
            Ok(answer)
        };
        all().unwrap_or_else(|error| Err(unusable(&self.path, &error)))
    }
}

impl Engine for Sqlite {
    fn get(&self, key: &str) -> Result<Option<Entry>> {
        self.read(|connection| entry(connection, key))
    }

    fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.read(|connection| {
            let mut all = connection.prepare_cached(
                "SELECT key, value, revision FROM entries WHERE substr(key, 1, length(?1)) = ?1 AND key >= ?1 ORDER BY key",
            )?;
            all.query_map([prefix], of_row)?.collect()
        })
    }

    fn commit(&self, changes: &[Change], lasting: Lasting) -> Result<u64> {
        self.write(lasting, |transaction| {
            let revision: u64 = transaction.query_row(
                "UPDATE counter SET revision = revision + 1 RETURNING revision",
                [],
                |row| row.get(0),
            )?;
            for change in changes {
                let now = entry(transaction, &change.key)?.map(|entry| entry.revision);
                let as_expected = match change.expect {
                    Expect::Anything => true,
                    Expect::Absent => now.is_none(),
                    Expect::Revision(expected) => now == Some(expected),
                };
                if !as_expected {
                    return Ok(Err(overtaken(&change.key)));
                }
                match &change.value {
                    Some(value) => transaction
                        .prepare_cached("INSERT OR REPLACE INTO entries VALUES (?1, ?2, ?3)")?
                        .execute(params![change.key, value, revision])?,
                    None => transaction
                        .prepare_cached("DELETE FROM entries WHERE key = ?1")?
                        .execute([&change.key])?,
                };
            }
            Ok(Ok(revision))
        })
    }

    fn append(&self, events: &[Logged]) -> Result<u64> {
        self.write(Lasting::Written, |transaction| {
            let mut insert = transaction.prepare_cached(
                "INSERT INTO events (unix_ms, kind, app, provider, told) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?;
            for event in events {
                insert.execute(params![
                    event.unix_ms,
                    event.kind,
                    event.app,
                    event.provider,
                    event.told.to_string()
                ])?;
            }
            let last = transaction.last_insert_rowid();
            if last % EVENTS_MORE < i64::try_from(events.len()).unwrap_or(i64::MAX) {
                transaction.execute("DELETE FROM events WHERE id <= ?1", [last - EVENTS_KEPT])?;
            }
            Ok(Ok(last.unsigned_abs()))
        })
    }

    fn events(&self, query: &Query) -> Result<Vec<Event>> {
        let order = if query.newest { "DESC" } else { "ASC" };
        let of = |column: &str, number: u8, wanted: &Option<String>| match wanted {
            Some(_) => format!("AND {column} = ?{number}"),
            None => format!("AND ?{number} IS NULL"),
        };
        let text = format!(
            "SELECT id, unix_ms, kind, app, provider, told FROM events WHERE id > ?1 {} {} ORDER BY id {order} LIMIT ?4",
            of("app", 2, &query.app),
            of("provider", 3, &query.provider),
        );
        let mut events: Vec<Event> = self.read(|connection| {
            let mut all = connection.prepare_cached(&text)?;
            let values = params![query.after, query.app, query.provider, query.limit];
            all.query_map(values, event_of_row)?.collect()
        })?;
        if query.newest {
            events.reverse();
        }
        Ok(events)
    }
}

fn entry(connection: &Connection, key: &str) -> rusqlite::Result<Option<Entry>> {
    connection
        .prepare_cached("SELECT key, value, revision FROM entries WHERE key = ?1")?
        .query_row([key], of_row)
        .optional()
}

fn of_row(row: &Row<'_>) -> rusqlite::Result<Entry> {
    Ok(Entry {
        key: row.get(0)?,
        value: row.get(1)?,
        revision: row.get(2)?,
    })
}

fn event_of_row(row: &Row<'_>) -> rusqlite::Result<Event> {
    let told: String = row.get(5)?;
    Ok(Event {
        id: row.get(0)?,
        unix_ms: row.get(1)?,
        kind: row.get(2)?,
        app: row.get(3)?,
        provider: row.get(4)?,
        // We have written it.
        told: serde_json::from_str(&told).unwrap_or_default(),
    })
}

enum Begin {
    Sqlite(rusqlite::Error),
    Refused(Error),
}

impl From<rusqlite::Error> for Begin {
    fn from(error: rusqlite::Error) -> Begin {
        Begin::Sqlite(error)
    }
}

/// Finds out what it is before anything is written.
fn begin(connection: &Connection, path: &Path, whole: bool) -> Result<(), Begin> {
    connection.busy_timeout(PATIENCE)?;
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let (id, version) = (number("application_id")?, number("user_version")?);
    let refused = |because: String, fix: &str| Err(Begin::Refused(cannot_use(path, &because).fix(fix)));
    match (id, version, tables) {
        (0, 0, 0) => {}
        (APPLICATION_ID, VERSION, _) => {}
        (APPLICATION_ID, later, _) if later > VERSION => {
            return refused(
                format!("a later Appshot has written it: it is of version {later}, this program knows {VERSION}"),
                "use that one again",
            );
        }
        _ => {
            return refused(
                "it is a database of something else".to_owned(),
                "move it away, or name another directory with --data-dir",
            );
        }
    }
    if tables == 0 && with(path, ".last").exists() {
        return Err(Begin::Refused(damaged(path, &"nothing is in it, and there was")));
    }
    // What is removed is not to stay in free pages.
    connection.pragma_update(None, "secure_delete", true)?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return refused(
            format!("its file system allows no write-ahead log (the journal is {mode})"),
            "name a directory of a local file system with --data-dir",
        );
    }
    if tables == 0 {
        // Two programs may come here at once: the second finds it done.
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let made = number("user_version")? == VERSION;
        if !made {
            connection.execute_batch(SCHEMA)?;
            connection.pragma_update(None, "application_id", APPLICATION_ID)?;
            connection.pragma_update(None, "user_version", VERSION)?;
        }
        connection.execute_batch("COMMIT")?;
    }
    if whole {
        let found: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        if found != "ok" {
            return Err(Begin::Refused(damaged(path, &found)));
        }
        // What a killed daemon has left in the log goes to its place.
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        copy(connection, path)?;
        // A checkpoint syncs, for milliseconds: who tells the log does that, and nobody waits.
        connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    }
    Ok(())
}

/// What is whole now is worth a copy, for the day on which it is not.
fn copy(connection: &Connection, path: &Path) -> Result<(), Begin> {
    let (new, last) = (with(path, ".new"), with(path, ".last"));
    let what = || format!("cannot copy {} to {}", path.display(), last.display());
    let _ = std::fs::remove_file(&new);
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new);
    made.or_fail(what).map_err(Begin::Refused)?;
    connection.execute("VACUUM INTO ?1", [new.to_string_lossy()])?;
    std::fs::rename(&new, &last).or_fail(what).map_err(Begin::Refused)
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

fn cannot_use(path: &Path, because: &dyn std::fmt::Display) -> Error {
    Error::failed(format!("cannot use {}", path.display()))
        .because(because)
        .state("it was left as it is; apps that run go on")
}

fn damaged(path: &Path, because: &dyn std::fmt::Display) -> Error {
    let last = with(path, ".last");
    let error = cannot_use(path, &format!("it is damaged: {because}"));
    match last.exists() {
        true => error.fix(format!(
            "move it and its -wal and -shm away, and {} to its place: it is as all was when the daemon last began",
            last.display()
        )),
        false => error.fix("put back a copy of it"),
    }
}

fn unusable(path: &Path, error: &rusqlite::Error) -> Error {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => damaged(path, &"it is no database"),
        Some(ErrorCode::DatabaseCorrupt) => damaged(path, error),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            let mut told = cannot_use(path, &"another program has been changing it for 5 s");
            told.kind = Kind::Unavailable;
            told.fix("try again")
        }
        Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            let mut told = cannot_use(path, error);
            told.kind = Kind::Unavailable;
            told.needs("root, and a directory that can be written to")
        }
        Some(ErrorCode::DiskFull) => cannot_use(path, error).needs("room on its file system"),
        _ => cannot_use(path, error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn put(key: &str, value: &str, expect: Expect) -> Change {
        Change::put(key.to_owned(), &value, expect).unwrap()
    }

    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.db");
        (dir, path)
    }

    #[test]
    fn changes_are_made_together_or_not() {
        let (_dir, path) = place();
        let store = Sqlite::open(&path, true).unwrap();
        let first = store
            .commit(&[put("a/x", "1", Expect::Absent)], Lasting::Synced)
            .unwrap();
        let changes = [
            put("a/y", "2", Expect::Absent),
            put("a/x", "3", Expect::Revision(first + 1)),
        ];
        let error = store.commit(&changes, Lasting::Written).unwrap_err();
        assert_eq!(error.kind, Kind::Conflict);
        assert!(store.get("a/y").unwrap().is_none(), "nothing of it");
        let changes = [
            put("a/y", "2", Expect::Absent),
            put("a/x", "3", Expect::Revision(first)),
        ];
        let second = store.commit(&changes, Lasting::Written).unwrap();
        assert!(second > first);
        let other = Sqlite::open(&path, false).unwrap();
        let all = other.list("a/").unwrap();
        let all: Vec<_> = all
            .iter()
            .map(|entry| (&entry.key[..], &entry.value[..], entry.revision))
            .collect();
        assert_eq!(all, [("a/x", "\"3\"", second), ("a/y", "\"2\"", second)]);
        assert!(other.list("a/xy").unwrap().is_empty() && other.list("b").unwrap().is_empty());
        let gone = Change::delete("a/x".to_owned(), Expect::Revision(second));
        other.commit(std::slice::from_ref(&gone), Lasting::Written).unwrap();
        assert!(store.get("a/x").unwrap().is_none());
        assert_eq!(
            store.commit(&[gone], Lasting::Written).unwrap_err().kind,
            Kind::Conflict
        );
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            with(&path, ".last").metadata().unwrap().permissions().mode() & 0o777,
            0o600
        );
    }

    #[test]
    fn the_log_is_read_from_either_end() {
        let (_dir, path) = place();
        let store = Sqlite::open(&path, true).unwrap();
        let event = |app: &str, provider: &str| Logged {
            unix_ms: 7,
            app: Some(app.to_owned()),
            provider: Some(provider.to_owned()),
            kind: "state".to_owned(),
            told: serde_json::json!({ "to": "asleep" }),
        };
        let last = store
            .append(&[event("a", "p"), event("b", "q"), event("a", "p")])
            .unwrap();
        assert_eq!(last, 3);
        let ids = |query: Query| -> Vec<u64> {
            let query = Query {
                limit: query.limit.max(1),
                ..query
            };
            store.events(&query).unwrap().iter().map(|event| event.id).collect()
        };
        let query = Query {
            limit: 2,
            ..Query::default()
        };
        assert_eq!(ids(query.clone()), [1, 2]);
        assert_eq!(
            ids(Query {
                newest: true,
                ..query.clone()
            }),
            [2, 3]
        );
        assert_eq!(
            ids(Query {
                after: 2,
                ..query.clone()
            }),
            [3]
        );
        let of = |app: &str, provider: &str| Query {
            app: Some(app.to_owned()),
            provider: Some(provider.to_owned()),
            limit: 9,
            ..Query::default()
        };
        assert_eq!(ids(of("a", "p")), [1, 3]);
        assert!(ids(of("a", "q")).is_empty());
        let many: Vec<Logged> = (0..EVENTS_KEPT + EVENTS_MORE).map(|_| event("c", "r")).collect();
        let last = store.append(&many).unwrap();
        let first = ids(query)[0];
        assert_eq!(first, last - u64::try_from(EVENTS_KEPT).unwrap() + 1);
    }

    #[test]
    fn what_is_not_ours_is_refused_and_left_alone() {
        let (_dir, path) = place();
        drop(Sqlite::open(&path, true).unwrap());
        let tell = |sql: &str| Connection::open(&path).unwrap().execute_batch(sql).unwrap();
        let refused = |told: &str| {
            let before = std::fs::read(&path).unwrap();
            for whole in [true, false] {
                let error = Sqlite::open(&path, whole).unwrap_err().to_string();
                assert!(error.contains(told) && error.contains("apps that run go on"), "{error}");
            }
            assert_eq!(std::fs::read(&path).unwrap(), before);
        };
        tell("PRAGMA user_version = 9");
        refused("later Appshot");
        tell("PRAGMA user_version = 1; PRAGMA application_id = 5");
        refused("something else");
        std::fs::write(&path, "").unwrap();
        refused("nothing is in it");
        std::fs::write(&path, "nonsense that is long enough to be looked at".repeat(100)).unwrap();
        refused("no database");
    }

    #[test]
    fn what_is_damaged_is_told_with_the_way_out() {
        let (_dir, path) = place();
        {
            let store = Sqlite::open(&path, true).unwrap();
            let text = "x".repeat(300);
            for number in 0..200 {
                let change = put(&format!("app/{number:03}"), &text, Expect::Absent);
                store.commit(&[change], Lasting::Written).unwrap();
            }
        }
        drop(Sqlite::open(&path, true).unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        assert!(bytes.len() > 40_000, "{}", bytes.len());
        for at in (8192..40_000).step_by(512) {
            bytes[at..at + 64].fill(0xa5);
        }
        std::fs::write(&path, bytes).unwrap();
        let error = Sqlite::open(&path, true).unwrap_err().to_string();
        assert!(
            error.contains("damaged") && error.contains("control.db.last"),
            "{error}"
        );
        // As it is told.
        std::fs::rename(with(&path, ".last"), &path).unwrap();
        assert_eq!(Sqlite::open(&path, true).unwrap().list("app/").unwrap().len(), 200);
    }
}
