//! Making room: what nothing needs is removed, the oldest first.

use super::{Need, Store, Stored, now_unix_ms};
use crate::error::Result;
use crate::units::{bytes, span};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::hash::Hash;
use std::path::PathBuf;
use std::time::Duration;

/// What goes. What is needed ([`Need`]) never does, nor what cannot be read. Without
/// any rule only leftovers go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// So many of the newest of each app stay, one by default; if there is no other
    /// rule, all others go.
    pub keep: Option<usize>,
    /// Those that are older go.
    pub older_than: Option<Duration>,
    /// The oldest go until the store takes no more bytes.
    pub quota: Option<u64>,
}

/// What was collected, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Files of killed writers and removers, working sets of appshots that are gone.
    pub leftovers: Vec<Leftover>,
    pub removed: Vec<Judged>,
    pub kept: Vec<Judged>,
    pub freed_bytes: u64,
    /// What the store takes afterwards.
    pub disk_bytes: u64,
    /// So much of that is beyond the quota of the rules.
    pub excess_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    pub path: PathBuf,
    pub disk_bytes: u64,
    pub why: String,
}

impl Leftover {
    pub(super) fn new(path: PathBuf, why: &str) -> Leftover {
        Leftover {
            disk_bytes: crate::image::sizes(&path).1,
            path,
            why: why.to_owned(),
        }
    }
}

/// An appshot, and why it stays or goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    pub name: String,
    pub disk_bytes: u64,
    pub why: String,
}

impl Judged {
    fn new(stored: &Stored, why: String) -> Judged {
        Judged {
            name: stored.name.clone(),
            disk_bytes: stored.disk_bytes,
            why,
        }
    }
}

impl Rules {
    fn newest(&self) -> usize {
        self.keep.unwrap_or(1)
    }

    /// Why an appshot has to go, of which so many of its app are newer, while the
    /// store takes `used` bytes.
    fn against(&self, stored: &Stored, newer: usize, used: u64, now: u64) -> Option<String> {
        let (app, created) = (stored.app.as_ref()?, stored.created_unix_ms?);
        if newer < self.newest() {
            return None;
        }
        let age = Duration::from_millis(now.saturating_sub(created));
        let beyond = || format!("{newer} of app {app} are newer");
        match (self.keep, self.older_than, self.quota) {
            (_, Some(limit), _) if age > limit => Some(format!("it is older than {}, {}", span(limit), beyond())),
            (_, _, Some(quota)) if used > quota => Some(format!("the store takes {}, {}", bytes(used), beyond())),
            (Some(_), None, None) => Some(beyond()),
            _ => None,
        }
    }

    /// Why an appshot stays.
    fn in_favour(&self, stored: &Stored, newer: usize) -> String {
        match (stored.needs(), &stored.problem) {
            (Some(needs), _) => needs,
            (None, Some(problem)) => format!("it cannot be read: {problem}"),
            (None, None) if *self == Rules::default() => "no rule is against it".to_owned(),
            (None, None) if newer < self.newest() => match newer {
                0 => "it is the newest of its app".to_owned(),
                _ => format!("it is among the newest {} of its app", self.newest()),
            },
            (None, None) => "the rules allow it".to_owned(),
        }
    }
}

impl Store {
    /// Removes what nothing needs and the rules are against; with `dry_run` tells what
    /// it would remove.
    pub fn collect(&self, rules: &Rules, dry_run: bool) -> Result<Collected> {
        let mut collected = Collected {
            leftovers: self.leftovers(),
            ..Collected::default()
        };
        collected.freed_bytes = collected.leftovers.iter().map(|left| left.disk_bytes).sum();
        let mut used = self.disk_bytes();
        match dry_run {
            true => used -= collected.freed_bytes.min(used),
            false => {
                self.recover()?;
                self.settle_all();
                used = self.disk_bytes();
            }
        }
        let now = now_unix_ms()?;
        let mut all = self.inventory()?;
        let newer = newer_ones(&all, |stored| stored.app.clone());
        let newer = |stored: &Stored| newer.get(&stored.name).copied().unwrap_or_default();
        let against = |stored: &Stored, used| rules.against(stored, newer(stored), used, now);
        let gone = self.remove_each(&mut all, used, dry_run, against);
        let freed: u64 = gone.removed.iter().map(|gone| gone.disk_bytes).sum();
        let stays = |stored: &Stored| {
            let excepted = gone.excepted.get(&stored.name).cloned();
            Judged::new(
                stored,
                excepted.unwrap_or_else(|| rules.in_favour(stored, newer(stored))),
            )
        };
        collected.kept = all.iter().map(stays).collect();
        collected.removed = gone.removed;
        collected.freed_bytes += freed;
        collected.disk_bytes = match dry_run {
            true => used.saturating_sub(freed),
            false => self.disk_bytes(),
        };
        collected.excess_bytes = rules
            .quota
            .map_or(0, |quota| collected.disk_bytes.saturating_sub(quota));
        Ok(collected)
    }

    /// Removes all but the newest of some appshots, which may be of one app only; answers
    /// what has gone, and what was to go and could not, but for lenders of pages. What is known of the store's
    /// appshots need not be looked at again the next time.
    pub fn keep_newest(
        &self,
        keep: usize,
        are: impl Fn(&Stored) -> bool,
        known: &mut Vec<Stored>,
    ) -> Result<(Vec<Judged>, Vec<Judged>)> {
        let mut all = self.inventory_since(known)?;
        let newer = newer_ones(&all, |stored| are(stored).then_some(()));
        let many = |stored: &Stored| are(stored) && newer.get(&stored.name).is_some_and(|newer| *newer >= keep);
        let why = || format!("{keep} newer ones are kept");
        let gone = self.remove_each(&mut all, 0, false, |stored, _| many(stored).then(why));
        let lends_only = |stored: &Stored| {
            let lends = |need: &Need| matches!(need, Need::Child(_));
            stored.needed_by.iter().all(lends) && !gone.excepted.contains_key(&stored.name)
        };
        let needed = all.iter().filter(|stored| many(stored) && !lends_only(stored));
        let needed = needed.map(|stored| {
            let excepted = gone.excepted.get(&stored.name).cloned();
            Judged::new(stored, excepted.or_else(|| stored.needs()).unwrap_or_default())
        });
        let needed = needed.collect();
        *known = all;
        Ok((gone.removed, needed))
    }

    /// Removes of `all`, from the first on, what nobody needs and something is `against`,
    /// as long as the store takes `used` bytes.
    fn remove_each(
        &self,
        all: &mut Vec<Stored>,
        mut used: u64,
        dry_run: bool,
        against: impl Fn(&Stored, u64) -> Option<String>,
    ) -> Gone {
        let mut gone = Gone::default();
        let next = |all: &[Stored], used, excepted: &HashMap<String, String>| {
            all.iter().enumerate().find_map(|(at, stored)| {
                let free = stored.needed_by.is_empty() && !excepted.contains_key(&stored.name);
                let why = free.then(|| against(stored, used));
                Some((at, why??))
            })
        };
        while let Some((at, why)) = next(all, used, &gone.excepted) {
            let kept = match dry_run {
                true => None,
                // What cannot be removed is no reason to keep the others.
                false => self.remove_unneeded(&all[at], all).unwrap_or_else(|error| {
                    let cause = error.because.map_or(String::new(), |cause| format!(": {cause}"));
                    Some(format!("{}{cause}", error.what))
                }),
            };
            if let Some(kept) = kept {
                gone.excepted.insert(all[at].name.clone(), kept);
                continue;
            }
            let removed = all.remove(at);
            used = used.saturating_sub(removed.disk_bytes);
            let borrowed = Need::Child(removed.name.clone());
            for other in all.iter_mut() {
                other.needed_by.retain(|need| *need != borrowed);
            }
            gone.removed.push(Judged::new(&removed, why));
        }
        gone
    }
}

/// What was removed, and why others could not be, by name.
#[derive(Debug, Default)]
struct Gone {
    removed: Vec<Judged>,
    excepted: HashMap<String, String>,
}

/// How many of the same group are newer, by name.
fn newer_ones<G: Hash + Eq>(oldest_first: &[Stored], group: impl Fn(&Stored) -> G) -> HashMap<String, usize> {
    let mut seen: HashMap<G, usize> = HashMap::new();
    let newest_first = oldest_first.iter().rev();
    newest_first
        .map(|stored| {
            let of_group = seen.entry(group(stored)).or_default();
            *of_group += 1;
            (stored.name.clone(), *of_group - 1)
        })
        .collect()
}
