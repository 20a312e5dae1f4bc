//! `store`: what a person does with the appshots of the store.

mod carry;
mod compress;
mod gc;
mod ls;
mod verify;

use crate::cli;
use libsnap::error::Result;
use libsnap::store::Store;
use nodekit::args::Dirs;
use nodekit::out;
use serde::Serialize;

pub fn store(dirs: &Dirs, command: &cli::Store, quiet: bool) -> Result<u8> {
    match command {
        cli::Store::Ls(args) => ls::ls(&dirs.open()?, args),
        cli::Store::Verify(args) => verify::verify(&dirs.open()?, args),
        cli::Store::Gc(args) => gc::gc(&dirs.open_as_is()?, args),
        cli::Store::Quota(args) => quota(&dirs.open()?, args),
        cli::Store::Compress(args) => compress::compress(&dirs.open()?, args),
        cli::Store::Export(args) => carry::export(&dirs.open()?, args, quiet),
        cli::Store::Import(args) => carry::import(&dirs.open()?, args),
    }
}

#[derive(Debug, Serialize)]
struct Quota {
    /// No limit without it.
    quota: Option<u64>,
    disk_bytes: u64,
}

fn quota(store: &Store, args: &cli::StoreQuota) -> Result<u8> {
    if let Some(bytes) = args.quota {
        store.set_quota(Some(bytes).filter(|bytes| *bytes > 0))?;
    }
    let now = Quota {
        quota: store.quota()?,
        disk_bytes: store.disk_bytes(),
    };
    out::show(args.output.format, &now, |now| {
        let quota = now.quota.map_or("none".to_owned(), out::bytes);
        format!("{quota}; {} are taken\n", out::bytes(now.disk_bytes))
    })?;
    Ok(0)
}
