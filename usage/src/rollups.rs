//! Use over time, for who watches a node: not for bills.
//!
//! ```text
//!   records of the ledger ──> seconds ──close──> 1 s, 1 min, 1 h, 1 d  in SQLite
//!        (cumulative)        of instance, app,      n, sum, squares, max, histogram
//!                            provider, node
//! ```
//!
//! What an account has counted between two records is spread over the seconds between them.
//! Mean, RMS and percentiles are over the seconds in which it used anything. Percentiles
//! are right within 2.5 %. The file may be removed: it is made anew from the ledger.

use crate::read::{self, read, segments};
use crate::record::{Body, Counters, Moment};
use libsnap::error::{Error, Kind, OrFail, Result};
use rusqlite::{Connection, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A second is complete when one that is so much newer was seen.
const OPEN_SECONDS: u64 = 5;
/// Use between records that are farther apart is told of the last so many seconds.
const SPREAD_SECONDS: u64 = 5;
/// A clock that falls by more was set.
const SET_BACK_SECONDS: u64 = 60;
/// Changed when what is stored changes: another file is made anew.
const VERSION: i64 = 1;

pub const FILE: &str = "rollups.sqlite";

/// How long a value stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Step {
    #[serde(rename = "1s")]
    Second,
    #[serde(rename = "1m")]
    Minute,
    #[serde(rename = "1h")]
    Hour,
    #[serde(rename = "1d")]
    Day,
}

impl Step {
    pub const ALL: [Step; 4] = [Step::Second, Step::Minute, Step::Hour, Step::Day];

    pub fn seconds(self) -> u64 {
        match self {
            Step::Second => 1,
            Step::Minute => 60,
            Step::Hour => 3600,
            Step::Day => 86_400,
        }
    }

    /// For how many seconds values stay.
    fn kept(self) -> u64 {
        match self {
            Step::Second => 600,
            Step::Minute => 2 * 86_400,
            Step::Hour => 400 * 86_400,
            Step::Day => 4000 * 86_400,
        }
    }

    /// Instances come and go by the thousand: of them only what is fresh is kept.
    fn has(self, by: By) -> bool {
        by != By::Instance || self <= Step::Minute
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    Instance,
    App,
    Provider,
    Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Measure {
    /// Processors in use.
    Cpu,
    /// Bytes held.
    Memory,
    /// A second.
    Requests,
    /// Bytes of answers a second.
    Sent,
}

const MEASURES: usize = 4;

impl Measure {
    fn index(self) -> usize {
        self as usize
    }
}

fn amounts(of: &Counters) -> [f64; MEASURES] {
    // Numbers for people: what doubles lose is nothing to them.
    [
        of.cpu_ns as f64 / 1e9,
        of.memory_byte_ns as f64 / 1e9,
        of.requests as f64,
        of.sent_bytes as f64,
    ]
}

/// What a measure was in some seconds.
#[derive(Clone, Debug, Default, PartialEq)]
struct Stat {
    sum: f64,
    squares: f64,
    max: f64,
    /// Seconds by size: `log(value, 1.05)`, rounded up.
    buckets: BTreeMap<i16, u32>,
}

const BASE: f64 = 1.05;

impl Stat {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.squares += value * value;
        self.max = self.max.max(value);
        if value > 0.0 {
            *self.buckets.entry(value.log(BASE).ceil() as i16).or_default() += 1;
        }
    }

    fn merge(&mut self, other: &Stat) {
        self.sum += other.sum;
        self.squares += other.squares;
        self.max = self.max.max(other.max);
        for (bucket, count) in &other.buckets {
            *self.buckets.entry(*bucket).or_default() += count;
        }
    }

    /// What it was at most in this part of `seconds`.
    fn percentile(&self, part: f64, seconds: u32) -> f64 {
        let zeroes = seconds.saturating_sub(self.buckets.values().sum());
        let mut left = (f64::from(seconds) * part).ceil() - f64::from(zeroes);
        if left <= 0.0 {
            return 0.0;
        }
        for (bucket, count) in &self.buckets {
            left -= f64::from(*count);
            if left <= 0.0 {
                // The middle of it.
                let middle = BASE.powi(i32::from(*bucket)) / (1.0 + (BASE - 1.0) / 2.0);
                return middle.min(self.max);
            }
        }
        self.max
    }

    fn pack(&self, out: &mut Vec<u8>) {
        for number in [self.sum, self.squares, self.max] {
            out.extend(number.to_le_bytes());
        }
        out.extend((self.buckets.len() as u16).to_le_bytes());
        for (bucket, count) in &self.buckets {
            out.extend(bucket.to_le_bytes());
            out.extend(count.to_le_bytes());
        }
    }

    fn unpack(bytes: &mut &[u8]) -> Option<Stat> {
        fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
            let (first, rest) = bytes.split_first_chunk::<N>()?;
            *bytes = rest;
            Some(*first)
        }
        let mut stat = Stat {
            sum: f64::from_le_bytes(take(bytes)?),
            squares: f64::from_le_bytes(take(bytes)?),
            max: f64::from_le_bytes(take(bytes)?),
            buckets: BTreeMap::new(),
        };
        for _ in 0..u16::from_le_bytes(take(bytes)?) {
            stat.buckets
                .insert(i16::from_le_bytes(take(bytes)?), u32::from_le_bytes(take(bytes)?));
        }
        Some(stat)
    }
}

/// All measures of one thing in one slot.
#[derive(Clone, Debug, Default, PartialEq)]
struct Slot {
    /// Seconds in which it used anything.
    seconds: u32,
    stats: [Stat; MEASURES],
}

impl Slot {
    fn add(&mut self, values: &[f64; MEASURES]) {
        self.seconds += 1;
        self.stats
            .iter_mut()
            .zip(values)
            .for_each(|(stat, value)| stat.add(*value));
    }

    fn merge(&mut self, other: &Slot) {
        self.seconds += other.seconds;
        self.stats
            .iter_mut()
            .zip(&other.stats)
            .for_each(|(stat, other)| stat.merge(other));
    }

    fn pack(&self) -> Vec<u8> {
        let mut out = self.seconds.to_le_bytes().to_vec();
        self.stats.iter().for_each(|stat| stat.pack(&mut out));
        out
    }

    fn unpack(mut bytes: &[u8]) -> Option<Slot> {
        let (seconds, rest) = bytes.split_first_chunk()?;
        bytes = rest;
        let mut slot = Slot {
            seconds: u32::from_le_bytes(*seconds),
            ..Slot::default()
        };
        for stat in &mut slot.stats {
            *stat = Stat::unpack(&mut bytes)?;
        }
        Some(slot)
    }
}

/// Of one thing over a time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Told {
    pub name: String,
    /// When it began, in seconds since the Unix epoch; 0 of all.
    pub at: u64,
    /// Seconds in which it used anything.
    pub seconds: u32,
    /// Times seconds: core-seconds, byte-seconds, requests, bytes.
    pub sum: f64,
    pub mean: f64,
    pub rms: f64,
    pub max: f64,
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

impl Told {
    fn of(name: String, at: u64, slot: &Slot, measure: Measure) -> Told {
        let (stat, seconds) = (&slot.stats[measure.index()], f64::from(slot.seconds.max(1)));
        let percentile = |part| stat.percentile(part, slot.seconds);
        Told {
            name,
            at,
            seconds: slot.seconds,
            sum: stat.sum,
            mean: stat.sum / seconds,
            rms: (stat.squares / seconds).sqrt(),
            max: stat.max,
            p50: percentile(0.5),
            p95: percentile(0.95),
            p99: percentile(0.99),
        }
    }
}

type Thing = (By, Arc<str>);

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub step: Step,
    pub by: By,
    pub of: Measure,
    /// In seconds since the Unix epoch.
    pub since: u64,
}

const WHAT: &str = "cannot use the roll-ups of usage";

/// Reads what is kept.
#[derive(Debug)]
pub struct Rollups(Connection);

impl Rollups {
    /// Those below `usage`, to be read by anybody.
    pub fn open(usage: &Path) -> Result<Rollups> {
        let path = usage.join(FILE);
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = Connection::open_with_flags(path, flags);
        let connection = connection.map_err(|error| {
            Error::new(Kind::NotFound, WHAT)
                .because(error)
                .fix("`perfd --serve` makes them")
        })?;
        connection.busy_timeout(Duration::from_secs(5)).or_fail(|| WHAT)?;
        Ok(Rollups(connection))
    }

    /// What each of them has used since then, who used most first.
    pub fn top(&self, question: &Question) -> Result<Vec<Told>> {
        let mut all: HashMap<String, Slot> = HashMap::new();
        self.each(question, None, |name, _, slot| {
            all.entry(name).or_default().merge(&slot)
        })?;
        let mut told: Vec<Told> = all
            .into_iter()
            .map(|(name, slot)| Told::of(name, 0, &slot, question.of))
            .collect();
        told.sort_by(|a, b| b.sum.total_cmp(&a.sum).then_with(|| a.name.cmp(&b.name)));
        Ok(told)
    }

    /// What one of them has used in each slot since then.
    pub fn over_time(&self, question: &Question, name: &str) -> Result<Vec<Told>> {
        let mut told = Vec::new();
        self.each(question, Some(name), |name, at, slot| {
            told.push(Told::of(name, at, &slot, question.of));
        })?;
        Ok(told)
    }

    fn each(&self, question: &Question, name: Option<&str>, mut take: impl FnMut(String, u64, Slot)) -> Result<()> {
        let (step, by) = (question.step.seconds(), question.by as i64);
        let sql = "SELECT name, slot, data FROM slots WHERE step = ?1 AND slot >= ?2 AND kind = ?3 \
                   AND (?4 IS NULL OR name = ?4) ORDER BY slot";
        let mut statement = self.0.prepare(sql).or_fail(|| WHAT)?;
        let first = question.since / step;
        let mut rows = statement
            .query(params![step.cast_signed(), first.cast_signed(), by, name])
            .or_fail(|| WHAT)?;
        while let Some(row) = rows.next().or_fail(|| WHAT)? {
            let row: rusqlite::Result<(String, i64, Vec<u8>)> =
                row.get(0).and_then(|name| Ok((name, row.get(1)?, row.get(2)?)));
            let (name, slot, data) = row.or_fail(|| WHAT)?;
            if let Some(data) = Slot::unpack(&data) {
                take(name, slot.cast_unsigned() * step, data);
            }
        }
        Ok(())
    }
}

/// Keeps them: one process.
#[derive(Debug)]
pub struct Keeper {
    connection: Connection,
    usage: PathBuf,
    accounts: HashMap<String, Account>,
    /// Seconds that are not complete, with the number of the first record that told of each.
    open: BTreeMap<u64, Open>,
    /// Up to here seconds are complete.
    closed: u64,
    /// Of the record that comes next.
    next_seq: u64,
    /// Complete slots that are not written yet.
    slots: HashMap<(Step, u64, Thing), Slot>,
}

#[derive(Debug)]
struct Account {
    things: [Thing; 4],
    counters: Counters,
    at: Moment,
}

#[derive(Debug, Default)]
struct Open {
    first_seq: u64,
    values: HashMap<Thing, [f64; MEASURES]>,
}

impl Keeper {
    /// Opens the roll-ups below `usage`, or makes them. [`Keeper::catch_up`] comes next.
    pub fn open(usage: &Path) -> Result<Keeper> {
        let path = usage.join(FILE);
        let connection = match Self::connect(&path) {
            Ok(connection) => connection,
            // Whatever it is, the ledger has it.
            Err(error) => {
                tracing::warn!(%error, "the roll-ups are made anew");
                for end in ["", "-wal", "-shm"] {
                    let _ = std::fs::remove_file(usage.join(format!("{FILE}{end}")));
                }
                Self::connect(&path).or_fail(|| WHAT)?
            }
        };
        let number = |name: &str| -> Result<u64> {
            let found = connection
                .query_row("SELECT value FROM numbers WHERE name = ?1", [name], |row| row.get(0))
                .optional()
                .or_fail(|| WHAT)?;
            Ok(found.map_or(0, i64::cast_unsigned))
        };
        let (seq, closed) = (number("seq")?, number("closed")?);
        Ok(Keeper {
            usage: usage.to_owned(),
            connection,
            accounts: HashMap::new(),
            open: BTreeMap::new(),
            closed,
            next_seq: seq,
            slots: HashMap::new(),
        })
    }

    fn connect(path: &Path) -> rusqlite::Result<Connection> {
        let connection = Connection::open(path)?;
        // What a crash takes the ledger gives back.
        connection.execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF; PRAGMA auto_vacuum = FULL;")?;
        let version: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
        if version != VERSION {
            connection.execute_batch(&format!(
                "DROP TABLE IF EXISTS slots; DROP TABLE IF EXISTS numbers;
                 CREATE TABLE slots (step INTEGER, slot INTEGER, kind INTEGER, name TEXT, data BLOB,
                     PRIMARY KEY (step, slot, kind, name)) WITHOUT ROWID;
                 CREATE TABLE numbers (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
                 PRAGMA user_version = {VERSION};"
            ))?;
        }
        Ok(connection)
    }

    /// Reads what the ledger has and they do not: from the segment on in which that begins.
    pub fn catch_up(&mut self) -> Result<()> {
        let (usage, seq) = (self.usage.clone(), self.next_seq);
        let numbers = segments(&usage)?;
        let mut from = numbers.last().copied().unwrap_or(1);
        while from > 1 && read::head(&usage, from)?.seq > seq {
            from -= 1;
        }
        let mut number = 0;
        read(&usage, from, &mut |entry| {
            let record = &entry.record;
            let at = Moment {
                boot_ns: record.boot_ns,
                unix_ms: record.unix_ms,
            };
            self.take(record.seq, at, &record.body, record.seq < seq);
            number += 1;
            match number % 100_000 {
                0 => self.write(),
                _ => Ok(()),
            }
        })?;
        self.write()
    }

    /// Records that were written, the first of them with this number.
    pub fn tell(&mut self, first_seq: u64, batch: &[(Moment, Body)]) {
        // What was read while it was opened is told again.
        let skip = usize::try_from(self.next_seq.saturating_sub(first_seq)).unwrap_or(usize::MAX);
        for (seq, (at, body)) in (first_seq..).zip(batch).skip(skip) {
            self.take(seq, *at, body, false);
        }
    }

    /// `known` ones only tell from where others count.
    fn take(&mut self, seq: u64, at: Moment, body: &Body, known: bool) {
        self.next_seq = seq + 1;
        let (id, counters) = match body {
            Body::Account(account) => {
                let thing = |by, name: &str| (by, Arc::from(name));
                let new = Account {
                    things: [
                        thing(By::Instance, &account.name),
                        thing(By::App, &account.app),
                        thing(By::Provider, &account.provider),
                        thing(By::Node, "node"),
                    ],
                    counters: account.counters,
                    at: Moment {
                        boot_ns: account
                            .began_boot_ns
                            .max(at.boot_ns.saturating_sub(SPREAD_SECONDS * 1_000_000_000)),
                        unix_ms: account.began_unix_ms,
                    },
                };
                self.accounts.entry(account.id.clone()).or_insert(new);
                return;
            }
            Body::Use(used) => (&used.id, &used.counters),
            Body::End(end) => (&end.id, &end.counters),
            _ => return,
        };
        let Some(account) = self.accounts.get_mut(id) else {
            return;
        };
        let more = counters.since(&account.counters);
        let passed_ns = at.boot_ns.saturating_sub(account.at.boot_ns);
        (account.counters, account.at) = (*counters, at);
        let things = account.things.clone();
        if matches!(body, Body::End(_)) {
            self.accounts.remove(id);
        }
        if known {
            return;
        }
        self.spread(seq, at.unix_ms, passed_ns, &more, &things);
    }

    fn spread(&mut self, seq: u64, unix_ms: u64, passed_ns: u64, more: &Counters, things: &[Thing; 4]) {
        let mut values = amounts(more);
        let passed_ms = (passed_ns / 1_000_000).clamp(1, SPREAD_SECONDS * 1000);
        // Memory is a level: of a longer time only so much.
        if passed_ns > SPREAD_SECONDS * 1_000_000_000 {
            values[Measure::Memory.index()] *= (SPREAD_SECONDS * 1_000_000_000) as f64 / passed_ns as f64;
        }
        let begin = unix_ms.saturating_sub(passed_ms);
        if unix_ms / 1000 + SET_BACK_SECONDS < self.closed {
            // The clock was set back: what comes is told of now.
            self.close(u64::MAX);
            self.closed = begin / 1000;
        }
        for second in begin / 1000..=unix_ms.saturating_sub(1) / 1000 {
            let part = (unix_ms.min((second + 1) * 1000) - begin.max(second * 1000)) as f64 / passed_ms as f64;
            let second = second.max(self.closed + 1);
            let open = self.open.entry(second).or_insert_with(|| Open {
                first_seq: seq,
                values: HashMap::new(),
            });
            for thing in things {
                let sums = open.values.entry(thing.clone()).or_default();
                sums.iter_mut()
                    .zip(values)
                    .for_each(|(sum, value)| *sum += value * part);
            }
        }
        let newest = self.open.keys().next_back().copied().unwrap_or_default();
        self.close(newest.saturating_sub(OPEN_SECONDS));
    }

    /// Takes these seconds into their slots: they are complete.
    fn close(&mut self, before: u64) {
        while let Some(first) = self.open.first_entry()
            && *first.key() < before
        {
            let (second, open) = first.remove_entry();
            self.closed = self.closed.max(second);
            for (thing, values) in open.values {
                for step in Step::ALL.into_iter().filter(|step| step.has(thing.0)) {
                    let key = (step, second / step.seconds(), thing.clone());
                    self.slots.entry(key).or_default().add(&values);
                }
            }
        }
    }

    /// Writes what is complete, and removes what is too old.
    pub fn write(&mut self) -> Result<()> {
        let seq = self.open.values().map(|open| open.first_seq).min();
        let slots = std::mem::take(&mut self.slots);
        let closed = self.closed;
        let written = (|| -> rusqlite::Result<()> {
            let transaction = self.connection.transaction()?;
            {
                let mut old = transaction
                    .prepare("SELECT data FROM slots WHERE step = ?1 AND slot = ?2 AND kind = ?3 AND name = ?4")?;
                let mut new = transaction.prepare("REPLACE INTO slots VALUES (?1, ?2, ?3, ?4, ?5)")?;
                for ((step, slot, (by, name)), mut more) in slots {
                    let key = (step.seconds().cast_signed(), slot.cast_signed(), by as i64);
                    let before: Option<Vec<u8>> = match step {
                        Step::Second => None,
                        _ => old
                            .query_row(params![key.0, key.1, key.2, &*name], |row| row.get(0))
                            .optional()?,
                    };
                    if let Some(before) = before.as_deref().and_then(Slot::unpack) {
                        more.merge(&before);
                    }
                    new.execute(params![key.0, key.1, key.2, &*name, more.pack()])?;
                }
                for step in Step::ALL {
                    let oldest = closed.saturating_sub(step.kept()) / step.seconds();
                    let remove = "DELETE FROM slots WHERE step = ?1 AND slot < ?2";
                    transaction.execute(remove, params![step.seconds().cast_signed(), oldest.cast_signed()])?;
                }
                let mut number = transaction.prepare("REPLACE INTO numbers VALUES (?1, ?2)")?;
                number.execute(params!["closed", closed.cast_signed()])?;
                if let Some(seq) = seq {
                    number.execute(params!["seq", seq.cast_signed()])?;
                }
            }
            transaction.commit()
        })();
        written.or_fail(|| WHAT)
    }
}

#[cfg(test)]
mod tests;
