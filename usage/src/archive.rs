//! What is old takes less room: segments are rewritten to what bills are made of, later to
//! what later bills need. The ledger stays one chain, from its first segment on.
//!
//! ```text
//!   head, 50,000 lines ──> head (kept: bills), of each account and hour the last line,
//!                          begins, ends, gaps, corrections, seal, signature
//!                      ──> head (kept: accounts), of accounts that went on the last line,
//!                          seal, signature
//! ```
//!
//! The last two segments stay: who appends reads them.

use crate::books::{Hour, hour_of};
use crate::ledger::{key, sign, write_packed};
use crate::read::{self, Reached, damaged, packed_path, segments};
use crate::record::{self, Body, Hash, Head, Kept, Record, Sealed, hex, unhex};
use ed25519_dalek::SigningKey;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::store::Lock;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// From when on records stay; all without it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// Whole since this moment, in milliseconds since the Unix epoch.
    pub whole_since_ms: Option<u64>,
    /// Billed since this moment.
    pub billed_since_ms: Option<u64>,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tidied {
    pub compacted: u64,
    /// To what later bills need.
    pub removed: u64,
    pub bytes_before: u64,
    pub bytes_after: u64,
}

/// Rewrites what the rules say. Whoever appends or reads meanwhile is not disturbed.
pub fn tidy(usage: &Path, rules: &Rules) -> Result<Tidied> {
    let mut tidied = Tidied::default();
    let numbers = segments(usage)?;
    let _only = Lock::try_take(&usage.join("tidy.lock"))?.ok_or_else(|| {
        Error::new(Kind::Conflict, "cannot compact the ledger")
            .because("another process does")
            .fix("try again when it has finished")
    })?;
    // A clock that was wrong for a while makes nothing older than what came before.
    let mut closed_ms = 0;
    for number in numbers.iter().take(numbers.len().saturating_sub(2)) {
        let head = read::head(usage, *number)?.head;
        let next = read::head(usage, number + 1)?;
        closed_ms = next.unix_ms.max(closed_ms);
        let is_before = |since: Option<u64>| since.is_some_and(|since| closed_ms < since);
        let kept = match (is_before(rules.billed_since_ms), is_before(rules.whole_since_ms)) {
            (true, _) => Kept::Accounts,
            (false, true) => Kept::Bills,
            (false, false) => break,
        };
        let path = packed_path(usage, *number);
        if head.kept >= Some(kept) || !path.exists() {
            continue;
        }
        let bytes = || {
            path.metadata()
                .map(|meta| meta.len())
                .or_fail(|| "cannot look at the ledger")
        };
        tidied.bytes_before += bytes()?;
        rewrite(usage, *number, &next.head, kept)?;
        tidied.bytes_after += bytes()?;
        match kept {
            Kept::Bills => tidied.compacted += 1,
            Kept::Accounts => tidied.removed += 1,
        }
    }
    Ok(tidied)
}

fn rewrite(usage: &Path, number: u64, next: &Head, kept: Kept) -> Result<()> {
    let mut records = Vec::new();
    let reached = read::one(usage, number, &mut |entry| {
        records.push(entry.record.clone());
        Ok(())
    })?;
    // One that was compacted before has its seal.
    let (hash, next_seq, left_out) = match records.iter().find_map(|record| match &record.body {
        Body::Sealed(sealed) => Some(sealed.clone()),
        _ => None,
    }) {
        Some(sealed) => {
            let hash = unhex(&sealed.hash).unwrap_or_default();
            (hash, sealed.next_seq, sealed.left_out)
        }
        None => (reached.hash, reached.next_seq, 0),
    };
    if unhex(&next.prev) != Some(hash) {
        return Err(damaged(reached.end, "the next segment does not follow it"));
    }
    let count = records.len();
    let stay = match kept {
        Kept::Bills => for_bills(&records),
        Kept::Accounts => for_accounts(&records),
    };
    let mut stays = stay.iter();
    records.retain(|_| stays.next().copied().unwrap_or_default());
    let left_out = left_out + (count - records.len()) as u64;
    let sealed = Sealed {
        hash: hex(&hash),
        next_seq,
        left_out,
    };
    let text = chain(records, &reached, kept, sealed, &key(usage)?)?;
    write_packed(&packed_path(usage, number), ".compacted", &mut &text[..])
}

/// The lines of what stays, with their seal.
fn chain(records: Vec<Record>, was: &Reached, kept: Kept, sealed: Sealed, key: &SigningKey) -> Result<Vec<u8>> {
    let (mut text, mut hash, mut last) = (Vec::new(), Hash::default(), None);
    let mut write = |record: Record, hash: &mut Hash| -> Result<()> {
        let (line, next) = record::write(&record, hash)?;
        text.extend_from_slice(&line);
        *hash = next;
        Ok(())
    };
    for mut record in records {
        if let Body::Head(head) = &mut record.body {
            head.kept = Some(kept);
            hash = unhex(&head.prev).ok_or_else(|| damaged(was.end, "its head names no segment before it"))?;
        }
        last = Some(record.clone());
        write(record, &mut hash)?;
    }
    let last = last.ok_or_else(|| damaged(was.end, "the segment has no head"))?;
    let seq = sealed.next_seq - 1;
    let end = |body| Record {
        seq,
        body,
        ..last.clone()
    };
    write(end(Body::Sealed(sealed)), &mut hash)?;
    let signed = Body::Checkpoint(sign(key, &hash));
    write(end(signed), &mut hash)?;
    Ok(text)
}

/// Which records make a difference to a bill, and to who looks at what happened.
fn for_bills(records: &[Record]) -> Vec<bool> {
    // What stood at the end of each hour.
    let mut last: HashMap<(&str, Hour), usize> = HashMap::new();
    for (index, record) in records.iter().enumerate() {
        let hour = hour_of(record.unix_ms);
        match &record.body {
            Body::Use(used) => last.insert((&used.id, hour), index),
            Body::Node(_) => last.insert(("", hour), index),
            _ => None,
        };
    }
    let last: HashSet<usize> = last.into_values().collect();
    let stays = |(index, record): (usize, &Record)| match record.body {
        Body::Use(_) | Body::Node(_) => last.contains(&index),
        Body::Checkpoint(_) | Body::Sealed(_) => false,
        _ => true,
    };
    records.iter().enumerate().map(stays).collect()
}

/// Which records tell what accounts had counted that went on.
fn for_accounts(records: &[Record]) -> Vec<bool> {
    let ended = |record: &Record| match &record.body {
        Body::End(end) => Some(end.id.clone()),
        _ => None,
    };
    let ended: HashSet<String> = records.iter().filter_map(ended).collect();
    let mut last: HashMap<&str, usize> = HashMap::new();
    for (index, record) in records.iter().enumerate() {
        if let Body::Use(used) = &record.body {
            last.insert(&used.id, index);
        }
    }
    let stays = |(index, record): (usize, &Record)| match &record.body {
        Body::Head(_) => true,
        Body::Account(account) => !ended.contains(&account.id),
        Body::Use(used) => !ended.contains(&used.id) && last.get(&*used.id) == Some(&index),
        _ => false,
    };
    records.iter().enumerate().map(stays).collect()
}

#[cfg(test)]
mod tests;
