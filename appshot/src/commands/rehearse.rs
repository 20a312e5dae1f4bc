//! `rehearse`: whether an appshot comes back as it was, without anybody noticing.

use crate::cli;
use libsnap::error::{Error, Kind, Result};
use libsnap::rehearsal::{self, Rehearsal, mark};
use libsnap::store::Store;
use libsnap::target::{SnapshotOptions, TcpPolicy};
use nodekit::args::Format;
use nodekit::out;

/// Whatever it was taken with, nobody is at the other end of its connections.
pub fn rehearse(store: &Store, args: &cli::Rehearse, quiet: bool) -> Result<u8> {
    let path = store.resolve_appshot(&args.appshot)?;
    if path.is_file() && !store.unpack_stored(&path)? {
        return Err(Error::new(Kind::Usage, format!("cannot rehearse {}", path.display()))
            .because("it is packed")
            .fix("take it into the store first, with `appshot store import`"));
    }
    let options = SnapshotOptions {
        tcp: TcpPolicy::Close,
        ..SnapshotOptions::default()
    };
    let rehearsal = rehearsal::rehearse(&path, &options, &|| false);
    mark::write(&path, &rehearsal)?;
    out::show(args.output.format, &rehearsal, |_| format!("{}\n", path.display()))?;
    let is_told = !quiet && args.output.format == Format::Text;
    if is_told {
        eprint!("{}", told(&rehearsal));
    }
    rehearsal.into_result(&path, "nothing of it is left")?;
    Ok(0)
}

/// `verified: restored and frozen again in 84.1 ms, all as it was`, and what was apart; or in
/// what it differs.
pub fn told(rehearsal: &Rehearsal) -> String {
    let took = out::millis(rehearsal.micros);
    if !rehearsal.verified {
        let lines = rehearsal
            .differences
            .iter()
            .map(|found| format!("  differs  {found}\n"));
        return lines.collect();
    }
    let mut text = format!("verified: restored and frozen again in {took}, all as it was\n");
    if !rehearsal.apart.is_empty() {
        text += "  not tried is whether these are free, of which it had its own:\n";
    }
    for claim in &rehearsal.apart {
        text += &format!("  apart    {claim}\n");
    }
    text
}
