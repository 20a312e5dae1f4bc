//! All of the ledger, held against itself; a bill, held against the ledger.

mod given;

pub use given::hold_against;

use crate::ledger::SIGNED;
use crate::read::{Entry, Reached, damaged, no_ledger, read};
use crate::record::{Body, Counters, Head, Node, State, unhex};
use ed25519_dalek::{Signature, VerifyingKey};
use libsnap::error::Result;
use serde::Serialize;
use std::collections::HashMap;
use std::path::Path;

/// How far apps and platform may be beyond what the node was busy for: a part of its time,
/// and the ticks in which the kernel counts.
const PART: u64 = 200;
const SLACK_NS: u64 = 100_000_000;
/// Counters that come from ticks miss a part of the time: so much is no reason to doubt them.
const UNTOLD_PART: u64 = 20;
/// Looks that are closer are taken together.
const INTERVAL_NS: u64 = 30_000_000_000;

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub node: Option<String>,
    pub segments: u64,
    pub records: u64,
    pub checkpoints: u64,
    /// Records behind the last checkpoint: chained, and not signed yet.
    pub unsigned: u64,
    pub accounts: u64,
    /// Bytes of a last line that is being written, or torn.
    pub torn_bytes: u64,
    /// Gaps that the meter has told.
    pub gaps: u64,
    pub first_gap: Option<String>,
    pub corrections: u64,
    /// Segments of which only what bills are made of is left.
    pub compacted: u64,
    /// Looks at the node's own counters, and the time between them.
    pub node_looks: u64,
    pub node_ns: u64,
    pub tenants_ns: u64,
    pub platform_ns: u64,
    /// Busy, and neither tenants' nor ours.
    pub others_ns: u64,
    pub idle_ns: u64,
    /// What a hypervisor had.
    pub steal_ns: u64,
    /// Of the time, what none of the node's counters tells, or tells beyond it.
    pub untold_ns: u64,
    /// Where tenants and platform together have more than the node.
    pub imbalances: Vec<String>,
}

#[derive(Default)]
struct Verifier {
    key: Option<VerifyingKey>,
    /// The segment that is being read.
    compacted: bool,
    counters: HashMap<String, (Counters, bool)>,
    node: Option<(u64, Node)>,
    report: Report,
}

/// Verifies chain, numbers, signatures, counters and the double entry of the ledger below
/// `usage`; fails at the first bad record, naming it.
pub fn verify(usage: &Path) -> Result<Report> {
    let mut verifier = Verifier::default();
    let reached = read(usage, 1, &mut |entry| verifier.take(entry))?;
    let Reached {
        segments,
        records,
        node,
        torn_bytes,
        compacted,
        ..
    } = reached;
    if records == 0 {
        return Err(no_ledger(usage));
    }
    let accounts = verifier.counters.len() as u64;
    let report = Report {
        node,
        segments,
        records,
        torn_bytes,
        compacted,
        accounts,
        ..verifier.report
    };
    Ok(report)
}

impl Verifier {
    fn take(&mut self, entry: &Entry) -> Result<()> {
        let bad = |because: &str| Err(damaged(entry.place, because));
        self.report.unsigned += 1;
        match &entry.record.body {
            Body::Head(head) => self.head(entry, head)?,
            Body::Checkpoint(checkpoint) => {
                let signature = unhex(&checkpoint.signature).map(|bytes| Signature::from_bytes(&bytes));
                let message = [SIGNED, &entry.before].concat();
                let good = |signature, key: &VerifyingKey| key.verify_strict(&message, &signature).is_ok();
                match (signature, &self.key) {
                    (Some(signature), Some(key)) if good(signature, key) => {}
                    _ => return bad("its signature is not that of this node's key"),
                }
                self.report.checkpoints += 1;
                self.report.unsigned = 0;
            }
            Body::Start(_) => self.node = None,
            Body::Account(account) => {
                let carried = self.counters.get(&account.id).map(|(counters, _)| *counters);
                if carried.is_some_and(|before| !account.counters.follows(&before)) {
                    return bad("counters of an account are lower than before");
                }
                self.counters.insert(account.id.clone(), (account.counters, false));
            }
            Body::Use(used) => self.count(entry, &used.id, &used.counters, false)?,
            Body::End(end) => {
                if matches!(end.state, State::Running | State::Frozen) {
                    return bad("an account ends, and runs");
                }
                self.count(entry, &end.id, &end.counters, true)?;
            }
            Body::Node(node) => self.node(entry, *node),
            Body::Correction(_) => self.report.corrections += 1,
            Body::Sealed(_) => {}
            Body::Snapshots(snapshots) if self.counters.contains_key(&snapshots.id) => {}
            Body::Snapshots(_) => return bad("snapshots are told of an account that was not opened"),
            Body::Gap(gap) => {
                self.report.gaps += 1;
                let first = &mut self.report.first_gap;
                first.get_or_insert_with(|| format!("{}: {}", entry.place, gap.reason));
            }
        }
        Ok(())
    }

    fn head(&mut self, entry: &Entry, head: &Head) -> Result<()> {
        let key = unhex(&head.key).and_then(|bytes| VerifyingKey::from_bytes(&bytes).ok());
        let Some(key) = key else {
            return Err(damaged(entry.place, "it names no public key"));
        };
        if self.key.is_some_and(|before| before != key) {
            return Err(damaged(entry.place, "it names another key than the segment before"));
        }
        if self.compacted && self.report.unsigned > 1 {
            return Err(damaged(
                entry.place,
                "the segment before it was compacted, and nobody has signed it",
            ));
        }
        (self.key, self.compacted) = (Some(key), head.kept.is_some());
        Ok(())
    }

    fn count(&mut self, entry: &Entry, id: &str, now: &Counters, ends: bool) -> Result<()> {
        let bad = |because: &str| Err(damaged(entry.place, format!("{because}: {id}")));
        let Some((before, ended)) = self.counters.get_mut(id) else {
            return bad("an account is used that was not opened");
        };
        if *ended {
            return bad("an account is used that has ended");
        }
        if !now.follows(before) {
            return bad("counters of an account are lower than before");
        }
        (*before, *ended) = (*now, ends);
        Ok(())
    }

    /// The double entry: what apps and we have used is part of what the node was busy for.
    fn node(&mut self, entry: &Entry, now: Node) {
        self.report.node_looks += 1;
        let at = entry.record.boot_ns;
        let (then, before) = *self.node.get_or_insert((at, now));
        if at.saturating_sub(then) >= INTERVAL_NS {
            self.node = Some((at, now));
            let since = |now: u64, before: u64| now.saturating_sub(before);
            let time = since(at, then) * now.cpus;
            let (busy, idle) = (since(now.busy_ns, before.busy_ns), since(now.idle_ns, before.idle_ns));
            let tenants = since(now.tenants_ns, before.tenants_ns);
            let platform = since(now.platform_ns, before.platform_ns);
            let slack = time / PART + SLACK_NS * now.cpus;
            let steal = since(now.steal_ns, before.steal_ns);
            let told = busy + idle + steal;
            // Tasks are not charged with the time of interrupts where the kernel tells these apart
            // (IRQ_TIME_ACCOUNTING), and those that come to an idle processor are nobody's: some may
            // be missing even then. There cannot be more.
            let beyond_max = match now.is_exact && before.is_exact {
                true => slack,
                false => time / UNTOLD_PART + slack,
            };
            let is_beyond = told > time + beyond_max;
            if tenants + platform > busy + slack {
                self.report.imbalances.push(format!(
                    "{}: apps and platform used {} ns, the node was busy for {busy} ns",
                    entry.place,
                    tenants + platform
                ));
            }
            if is_beyond || told + time / UNTOLD_PART + slack < time {
                self.report.imbalances.push(format!(
                    "{}: {} processors for {} ns, and the node tells {told} ns",
                    entry.place,
                    now.cpus,
                    since(at, then)
                ));
            }
            self.report.node_ns += time;
            self.report.tenants_ns += tenants;
            self.report.platform_ns += platform;
            self.report.others_ns += busy.saturating_sub(tenants + platform);
            self.report.idle_ns += idle;
            self.report.steal_ns += steal;
            self.report.untold_ns += told.abs_diff(time);
        }
    }
}

#[cfg(test)]
mod tests;
