//! `store compress`: appshots that are packed where they are.

use crate::cli;
use libsnap::error::Result;
use libsnap::store::{Store, Stored};
use nodekit::out;
use serde::Serialize;

#[derive(Debug, Serialize)]
struct Compressed {
    name: String,
    /// On disk, before and now.
    before_bytes: u64,
    disk_bytes: u64,
}

/// The first that cannot be packed ends it.
pub fn compress(store: &Store, args: &cli::StoreCompress) -> Result<u8> {
    let chosen: Vec<Stored> = match args.idle_for {
        Some(idle) => store.idle_for(idle)?,
        None => args
            .names
            .iter()
            .map(|name| store.stored(name))
            .collect::<Result<_>>()?,
    };
    let compressed = chosen.into_iter().map(|stored| {
        let disk_bytes = store.pack_stored(&stored.name, args.level)?;
        Ok(Compressed {
            name: stored.name,
            before_bytes: stored.disk_bytes,
            disk_bytes,
        })
    });
    let compressed: Vec<Compressed> = compressed.collect::<Result<_>>()?;
    out::show(args.output.format, &compressed, |all| all.iter().map(told).collect())?;
    Ok(0)
}

fn told(one: &Compressed) -> String {
    let (before, now) = (out::bytes(one.before_bytes), out::bytes(one.disk_bytes));
    format!("{}: {before} on disk, now {now}\n", one.name)
}
