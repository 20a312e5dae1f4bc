//! `store gc`: making room.

use crate::cli;
use libsnap::error::{Kind, Result};
use libsnap::store::{Collected, Rules, Store};
use nodekit::out;

/// Ends with "failed" where the store still takes more than the rules allow.
pub fn gc(store: &Store, args: &cli::StoreGc) -> Result<u8> {
    let rules = Rules {
        keep: args.keep,
        older_than: args.older_than,
        quota: args.quota,
    };
    let collected = store.collect(&rules, args.dry_run)?;
    out::show(args.output.format, &collected, |collected| {
        told(collected, args.dry_run)
    })?;
    match collected.excess_bytes {
        0 => Ok(0),
        _ => Ok(Kind::Failed.exit_code()),
    }
}

fn told(collected: &Collected, dry_run: bool) -> String {
    let (removed, freed) = match dry_run {
        true => ("would go", "would be freed"),
        false => ("removed", "freed"),
    };
    let mut text = String::new();
    for left in &collected.leftovers {
        let size = out::bytes(left.disk_bytes);
        text += &format!("{removed}  {} ({size}): {}\n", left.path.display(), left.why);
    }
    for gone in &collected.removed {
        text += &format!(
            "{removed}  {} ({}): {}\n",
            gone.name,
            out::bytes(gone.disk_bytes),
            gone.why
        );
    }
    for kept in &collected.kept {
        text += &format!("kept  {} ({}): {}\n", kept.name, out::bytes(kept.disk_bytes), kept.why);
    }
    text += &format!("{freed}: {}", out::bytes(collected.freed_bytes));
    text += &format!("; the store takes {}\n", out::bytes(collected.disk_bytes));
    match collected.excess_bytes {
        0 => text,
        excess => text + &format!("{} too much, but all that is left stays\n", out::bytes(excess)),
    }
}
