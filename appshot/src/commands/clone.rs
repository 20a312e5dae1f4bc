//! `clone`: instances of an appshot that share its memory; `revert`: one is put back.

use crate::cli;
use libsnap::error::Result;
use libsnap::store::Store;
use libsnap::target::{Instance, Manner, RestoreOptions, RevertReport};
use nodekit::args::{Dirs, hooks};
use nodekit::bring_up::warn;
use nodekit::client::Client;
use nodekit::out;
use nodekit::start::Start;
use serde_json::json;
use std::collections::BTreeMap;

/// Their memory is served by `restored`, so that one has to run. Prints their names.
pub fn clone(store: &Store, dirs: &Dirs, args: &cli::Clone, quiet: bool) -> Result<u8> {
    let client = Client::new(dirs.socket(args.socket.clone(), "restored"));
    let hooks = hooks(None, Some(&args.after), args.patience, args.silence);
    let start = Start::restore(store.clone(), &args.appshot, RestoreOptions::default())?.hooked(hooks)?;
    // The daemon has a working directory of its own.
    let appshot = match store.resolve_appshot(&args.appshot)? {
        path if store.is_stored(&path, &args.appshot) => args.appshot.clone(),
        path => path.display().to_string(),
    };
    let vars: BTreeMap<_, _> = args.vars.iter().cloned().collect();
    let request = json!({
        "appshot": appshot,
        "count": args.count,
        "name": args.name,
        "network": args.network,
        "vars": vars,
        "limits": args.limits.limits(),
        "hooks": start.hooks,
        "strict": args.strict,
        "revertible": args.revertible,
        "tcp_close": args.tcp_close,
    });
    let clones: Vec<Instance> = client.post("/v1/clones", &request)?;
    out::show(args.output.format, &clones, |clones| {
        clones.iter().map(|clone| format!("{}\n", clone.name)).collect()
    })?;
    clones.iter().for_each(warn);
    if !quiet {
        // They run: now there is time for it.
        start
            .shared_randomness()?
            .iter()
            .for_each(|shared| out::warn(&shared.to_string()));
    }
    Ok(0)
}

/// Prints how it was done.
pub fn revert(dirs: &Dirs, args: &cli::Revert) -> Result<u8> {
    let client = Client::new(dirs.socket(args.socket.clone(), "restored"));
    libsnap::store::validate(&args.name)?;
    let report: RevertReport = client.post(&format!("/v1/instances/{}/revert", args.name), &json!({}))?;
    out::show(args.output.format, &report, |report| {
        let millis = report.total_micros as f64 / 1e3;
        match report.manner {
            Manner::InPlace => format!(
                "{} is back in place: {} pages in {millis:.1} ms\n",
                report.name, report.dirty_pages
            ),
            Manner::Anew => format!(
                "{} was restored anew in {millis:.1} ms: {}\n",
                report.name,
                report.because.as_deref().unwrap_or("it cannot be reverted in place")
            ),
        }
    })?;
    Ok(0)
}
