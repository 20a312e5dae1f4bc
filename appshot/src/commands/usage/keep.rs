//! `usage correct` and `usage compact`: what is done to the ledger.

use crate::cli;
use libsnap::clocks::boottime_ns;
use libsnap::error::{Error, Kind, Result};
use libsnap::store::{Store, boot_id, now_unix_ms};
use nodekit::client::Client;
use nodekit::out;
use usage::archive::{Rules, Tidied, tidy};
use usage::correct::Asked;
use usage::ledger::Ledger;
use usage::record::{Body, Correction, Moment};

const DAY_MS: u64 = 86_400_000;

/// By `perfd`, which writes the ledger; without it, by ourselves.
pub fn correct(store: &Store, args: &cli::UsageCorrect) -> Result<u8> {
    let asked = Asked {
        event: args.event.clone(),
        count: args.count,
        reason: args.reason.clone(),
        period: args.period.clone(),
    };
    let perfd = Client::new(store.run_dir().join("perfd.sock"));
    let of = match perfd.answers() {
        true => perfd.post("/v1/usage/corrections", &asked)?,
        false => alone(store, &asked)?,
    };
    out::show(args.output.format, &of, sentence)?;
    Ok(0)
}

fn alone(store: &Store, asked: &Asked) -> Result<Correction> {
    let at = Moment {
        boot_ns: boottime_ns(),
        unix_ms: now_unix_ms()?,
    };
    let (mut ledger, _) = Ledger::open(&store.usage_dir(), &boot_id()?, at)?;
    let of = asked.plan(&store.usage_dir(), at.unix_ms)?;
    ledger.append(at, Body::Correction(Box::new(of.clone())));
    ledger.checkpoint(at);
    ledger.sync(at)?;
    Ok(of)
}

fn sentence(of: &Correction) -> String {
    let unit = of.meter.counted_unit();
    format!(
        "{} of {} ({}) is corrected by {} {unit}, {} {}, billed now\n",
        of.meter.name(),
        of.of.app,
        of.of.provider,
        of.count,
        of.cost,
        of.currency
    )
}

pub fn compact(store: &Store, args: &cli::UsageCompact) -> Result<u8> {
    let now = now_unix_ms()?;
    let since = |days: u64| now.saturating_sub(days * DAY_MS);
    if args.remove_after.is_some_and(|remove| remove < args.after) {
        return Err(
            Error::new(Kind::Usage, "records cannot be removed before they are compacted")
                .fix("give --remove-after more days than --after"),
        );
    }
    let rules = Rules {
        whole_since_ms: Some(since(args.after)),
        billed_since_ms: args.remove_after.map(since),
    };
    let tidied = tidy(&store.usage_dir(), &rules)?;
    out::show(args.output.format, &tidied, told)?;
    Ok(0)
}

fn told(tidied: &Tidied) -> String {
    format!(
        "{} segments compacted, {} removed but for what later bills need: {} before, {} now\n",
        tidied.compacted,
        tidied.removed,
        out::bytes(tidied.bytes_before),
        out::bytes(tidied.bytes_after)
    )
}
