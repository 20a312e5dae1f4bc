//! What each account has used hour by hour: the ledger, read for a bill.
//!
//! Of an account and an hour only the highest counters are kept. What was used in an hour
//! is what they are higher by than all before: no order of the records, and none that is
//! read twice, changes that, and what is lost in between shows up later, once.
//!
//! ```text
//!   record ──> open account: highest of this hour, packed ones of the hours before
//!                   │ it ends
//!                   └──> sheet of each hour ──> a temporary file, when they grow
//! ```
//!
//! So memory is needed for the accounts that are open at the same time and for one hour,
//! however long the ledger is.

use crate::books::{Hour, hour_of};
use crate::meter::Meter;
use crate::period::instant;
use crate::read::{Reached, damaged, no_ledger, read};
use crate::record::{Body, Correction, Counters, Kept, Record, Whose, read_number, write_number};
use libsnap::error::{Error, Kind, OrFail, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Sheets that are longer together are written to a file.
const SHEETS_BYTES_MAX: usize = 32 << 20;

/// What an account has used in an hour, or what was corrected in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Part {
    pub whose: Whose,
    pub used: Counters,
    /// How often something was not metered, and why at first.
    pub gaps: Option<(u64, String)>,
    /// With the number of its record.
    pub correction: Option<(u64, Correction)>,
}

#[derive(Debug, Default)]
struct Open {
    /// Absent as long as only its use was read.
    whose: Option<Whose>,
    /// The last hour that was read, and what stood highest in it.
    hour: Hour,
    highest: Counters,
    /// The hours before, packed; one may be there twice.
    before: Vec<u8>,
    gaps: BTreeMap<Hour, (u64, String)>,
}

impl Open {
    fn raise(&mut self, hour: Hour, counters: &Counters) {
        if hour != self.hour {
            self.put_away();
            self.hour = hour;
            self.highest = Counters::default();
        }
        self.highest.raise(counters);
    }

    fn put_away(&mut self) {
        if self.highest != Counters::default() {
            write_number(self.hour.into(), &mut self.before);
            self.highest.pack(&mut self.before);
        }
    }

    /// What was used in each hour; hours without anything are left out.
    fn uses(&mut self) -> Vec<(Hour, Counters)> {
        self.put_away();
        let mut hours: BTreeMap<Hour, Counters> = BTreeMap::new();
        let mut packed = &self.before[..];
        while let Some(hour) = read_number(&mut packed).and_then(|hour| Hour::try_from(hour).ok()) {
            let counters = Counters::unpack(&mut packed).unwrap_or_default();
            hours.entry(hour).or_default().raise(&counters);
        }
        let mut before = Counters::default();
        let uses = hours.into_iter().filter_map(|(hour, counters)| {
            let mut now = before;
            now.raise(&counters);
            let used = now.since(&before);
            before = now;
            (used != Counters::default()).then_some((hour, used))
        });
        uses.collect()
    }
}

#[derive(Debug)]
pub struct Hours {
    /// Hours that are of interest; what was before is kept as one, what comes after is not.
    range: Range<Hour>,
    open: HashMap<String, Open>,
    /// Hashes of their ids.
    ended: HashSet<u64>,
    sheets: Sheets,
    providers: BTreeSet<String>,
    /// Of the row with this id, by how much all corrections there are change it.
    corrected: HashMap<String, i128>,
    /// After the newest record.
    until: Hour,
    /// The segment that is read, and until when there were others of which there is no bill.
    is_removed: bool,
    removed_until: Hour,
}

impl Hours {
    pub fn of(range: Range<Hour>) -> Hours {
        Hours {
            range,
            open: HashMap::new(),
            ended: HashSet::new(),
            sheets: Sheets {
                hours: BTreeMap::new(),
                bytes: 0,
                bytes_max: SHEETS_BYTES_MAX,
                file: None,
                file_bytes: 0,
            },
            providers: BTreeSet::new(),
            corrected: HashMap::new(),
            until: 0,
            is_removed: false,
            removed_until: 0,
        }
    }

    /// All of the ledger below `usage`, for a bill of these hours.
    pub fn read(usage: &Path, range: &Range<Hour>) -> Result<(Hours, Reached)> {
        let mut hours = Hours::of(range.clone());
        let reached = read(usage, 1, &mut |entry| {
            hours
                .take(&entry.record)
                .map_err(|because| damaged(entry.place, because))
        })?;
        if reached.records == 0 {
            return Err(no_ledger(usage));
        }
        if range.start < hours.removed_until {
            return Err(Error::new(Kind::NotFound, "there is no bill of this period any more")
                .because(format!("records until {} were removed", instant(hours.removed_until)))
                .fix("look for an export that was made before"));
        }
        hours.finish()?;
        Ok((hours, reached))
    }

    /// Fails with what is wrong with it.
    pub fn take(&mut self, record: &Record) -> Result<(), Error> {
        let hour = hour_of(record.unix_ms);
        self.until = self.until.max(hour + 1);
        let again = |id: &str| Error::failed(format!("an account is used that has ended: {id}"));
        match &record.body {
            Body::Account(account) => {
                if !self.open.contains_key(&account.id) && self.ended.contains(&hash(&account.id)) {
                    return Err(again(&account.id));
                }
                if !self.providers.contains(&account.provider) {
                    self.providers.insert(account.provider.clone());
                }
                let open = self.count(hour, &account.id, &account.counters);
                open.whose.get_or_insert_with(|| Whose::from(&**account));
            }
            Body::Use(used) => drop(self.count(hour, &used.id, &used.counters)),
            Body::End(end) => {
                if self.ended.contains(&hash(&end.id)) {
                    return Err(again(&end.id));
                }
                self.count(hour, &end.id, &end.counters);
                if let Some(open) = self.open.remove(&end.id) {
                    self.ended.insert(hash(&end.id));
                    self.close(&end.id, open)?;
                }
            }
            Body::Gap(gap) => {
                let open = gap.id.as_ref().and_then(|id| self.open.get_mut(id));
                if let Some(open) = open.filter(|_| self.range.contains(&hour)) {
                    let seen = open.gaps.entry(hour).or_insert_with(|| (0, gap.reason.clone()));
                    seen.0 += 1;
                }
            }
            Body::Correction(correction) => {
                *self.corrected.entry(correction.event.clone()).or_default() += correction.count;
                self.providers.insert(correction.of.provider.clone());
                if self.range.contains(&hour) {
                    let part = Part {
                        whose: correction.of.clone(),
                        used: Counters::default(),
                        gaps: None,
                        correction: Some((record.seq, (**correction).clone())),
                    };
                    self.sheets.add(hour, &part)?;
                }
            }
            Body::Head(head) => self.is_removed = head.kept == Some(Kept::Accounts),
            Body::Sealed(_) if self.is_removed => self.removed_until = self.removed_until.max(hour + 1),
            Body::Start(_) | Body::Node(_) | Body::Checkpoint(_) | Body::Sealed(_) | Body::Snapshots(_) => {}
        }
        Ok(())
    }

    fn count(&mut self, hour: Hour, id: &str, counters: &Counters) -> &mut Open {
        if !self.open.contains_key(id) {
            self.open.insert(id.to_owned(), Open::default());
        }
        let hour = hour.max(self.range.start.saturating_sub(1));
        let open = self.open.entry(id.to_owned()).or_default();
        if hour < self.range.end {
            open.raise(hour, counters);
        }
        open
    }

    fn close(&mut self, id: &str, mut open: Open) -> Result<()> {
        let mut gaps = std::mem::take(&mut open.gaps);
        let mut parts: BTreeMap<Hour, Counters> = open.uses().into_iter().collect();
        for hour in gaps.keys() {
            parts.entry(*hour).or_default();
        }
        parts.retain(|hour, _| self.range.contains(hour));
        if parts.is_empty() {
            return Ok(());
        }
        let whose = open.whose.ok_or_else(|| {
            Error::failed(format!("the ledger tells the use of {id}, and not whose it is"))
                .fix("`appshot usage verify` tells more")
        })?;
        for (hour, used) in parts {
            let part = Part {
                whose: whose.clone(),
                used,
                gaps: gaps.remove(&hour),
                correction: None,
            };
            self.sheets.add(hour, &part)?;
        }
        Ok(())
    }

    /// There is no more to read.
    pub fn finish(&mut self) -> Result<()> {
        let open: BTreeMap<String, Open> = std::mem::take(&mut self.open).into_iter().collect();
        open.into_iter().try_for_each(|(id, open)| self.close(&id, open))
    }

    /// All parts of an hour, by app and account.
    pub fn sheet(&self, hour: Hour) -> Result<Vec<Part>> {
        let mut parts = self.sheets.read(hour)?;
        let number = |part: &Part| part.correction.as_ref().map(|(seq, _)| *seq);
        parts.sort_by(|a, b| (&a.whose, number(a)).cmp(&(&b.whose, number(b))));
        Ok(parts)
    }

    pub fn range(&self) -> &Range<Hour> {
        &self.range
    }

    /// The hour after the newest record.
    pub fn until(&self) -> Hour {
        self.until
    }

    pub fn providers(&self) -> &BTreeSet<String> {
        &self.providers
    }

    /// By how much corrections change the row with this id, of whatever month they are.
    pub fn corrected(&self, event: &str) -> i128 {
        self.corrected.get(event).copied().unwrap_or_default()
    }

    /// What all accounts have used of this, over all hours.
    pub fn total(&self, meter: Meter) -> Result<u128> {
        let mut total = 0;
        for hour in self.sheets.hours.keys() {
            total += self.sheet(*hour)?.iter().map(|part| meter.of(&part.used)).sum::<u128>();
        }
        Ok(total)
    }
}

/// Ten million accounts have two with the same one once in 400,000 ledgers; such a ledger
/// would be refused.
fn hash(id: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    hasher.finish()
}

/// Parts by hour, as lines of JSON.
#[derive(Debug)]
struct Sheets {
    hours: BTreeMap<Hour, Sheet>,
    bytes: usize,
    bytes_max: usize,
    file: Option<File>,
    file_bytes: u64,
}

#[derive(Debug, Default)]
struct Sheet {
    lines: Vec<u8>,
    /// Where there is more of it in the file, and how long.
    spilled: Vec<(u64, usize)>,
}

const WHAT: &str = "cannot keep the bill in a temporary file";

impl Sheets {
    fn add(&mut self, hour: Hour, part: &Part) -> Result<()> {
        let lines = &mut self.hours.entry(hour).or_default().lines;
        let before = lines.len();
        serde_json::to_writer(&mut *lines, part).or_fail(|| WHAT)?;
        lines.push(b'\n');
        self.bytes += lines.len() - before;
        match self.bytes > self.bytes_max {
            true => self.spill().map_err(|error| error.fix("make room in TMPDIR, or /tmp")),
            false => Ok(()),
        }
    }

    fn spill(&mut self) -> Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(tempfile::tempfile().or_fail(|| WHAT)?),
        };
        for sheet in self.hours.values_mut().filter(|sheet| !sheet.lines.is_empty()) {
            let lines = std::mem::take(&mut sheet.lines);
            file.write_all(&lines).or_fail(|| WHAT)?;
            sheet.spilled.push((self.file_bytes, lines.len()));
            self.file_bytes += lines.len() as u64;
        }
        self.bytes = 0;
        Ok(())
    }

    fn read(&self, hour: Hour) -> Result<Vec<Part>> {
        let Some(sheet) = self.hours.get(&hour) else {
            return Ok(Vec::new());
        };
        let mut parts = Vec::new();
        let mut parse = |lines: &[u8]| {
            for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                parts.push(serde_json::from_slice(line).or_fail(|| WHAT)?);
            }
            Ok(())
        };
        for (offset, length) in &sheet.spilled {
            let mut lines = vec![0; *length];
            let file = self.file.as_ref().ok_or_else(|| Error::failed(WHAT))?;
            file.read_exact_at(&mut lines, *offset).or_fail(|| WHAT)?;
            parse(&lines)?;
        }
        parse(&sheet.lines)?;
        Ok(parts)
    }
}

#[cfg(test)]
mod tests;
