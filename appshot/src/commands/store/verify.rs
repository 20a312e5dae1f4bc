//! `store verify`: every byte against its digest.

use crate::cli;
use libsnap::error::{Kind, Result};
use libsnap::image::{self, Damage};
use libsnap::store::Store;
use nodekit::out;
use serde::Serialize;
use std::path::PathBuf;

#[derive(Debug, Serialize)]
struct Verified {
    name: String,
    path: PathBuf,
    whole: bool,
    damage: Vec<Damage>,
}

/// Ends with "failed" where something is damaged.
pub fn verify(store: &Store, args: &cli::StoreVerify) -> Result<u8> {
    let named = |name: &String| Ok((name.clone(), store.resolve_appshot(name)?));
    let appshots: Vec<(String, PathBuf)> = match args.appshots.is_empty() {
        true => store
            .appshots()?
            .into_iter()
            .map(|entry| (entry.name, entry.path))
            .collect(),
        false => args.appshots.iter().map(named).collect::<Result<_>>()?,
    };
    let verified = appshots.into_iter().map(|(name, path)| {
        let damage = image::damage(&path)?;
        Ok(Verified {
            name,
            path,
            whole: damage.is_empty(),
            damage,
        })
    });
    let verified: Vec<Verified> = verified.collect::<Result<_>>()?;
    out::show(args.output.format, &verified, |all| all.iter().map(told).collect())?;
    match verified.iter().all(|one| one.whole) {
        true => Ok(0),
        false => Ok(Kind::Failed.exit_code()),
    }
}

fn told(one: &Verified) -> String {
    if one.whole {
        return format!("{}: whole\n", one.name);
    }
    let lines = one.damage.iter();
    lines
        .map(|damage| format!("{}: {} is damaged: {}\n", one.name, damage.part, damage.because))
        .collect()
}
