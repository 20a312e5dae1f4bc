//! `restored`: the daemon that restores appshots and owns what it restored.
#![forbid(unsafe_code)]

mod api;
mod instances;
mod occasion;
mod pool;
mod reverts;
mod shelf;
mod templates;
mod watcher;

use clap::Parser;
use instances::Instances;
use libsnap::error::Result;
use libsnap::restore::pager;
use nodekit::args::EXIT_CODES;
use nodekit::daemon::{self, DaemonArgs};
use nodekit::{ending, program};
use pool::Pool;
use shelf::Shelf;
use std::process::ExitCode;
use std::time::Duration;
use watcher::Watcher;

/// How long the memory of all instances may take to be brought at the end.
const SETTLING: Duration = Duration::from_secs(60);

/// Restores appshots and supervises the instances, asked over a Unix socket
#[derive(Debug, Parser)]
#[command(name = "restored", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Of so many apps that sleep, those that fell asleep last, one instance each waits
    /// with its memory in place
    #[arg(long, value_name = "COUNT", default_value_t = pool::PARKED)]
    parked: usize,
}

fn main() -> ExitCode {
    program::main("restored", |cli: Cli| run(&cli))
}

/// What a killed predecessor left behind is followed from the socket's first
/// moment: only its owner may do so.
fn run(cli: &Cli) -> Result<u8> {
    let args = &cli.daemon;
    let store = args.dirs.open()?;
    let watcher = Watcher::start()?;
    let mut waiting = None;
    let served = daemon::run("restored", args, |stopping| {
        if let Err(error) = ending::adopt_orphans(&store) {
            tracing::warn!(%error, "cannot look for apps without a supervisor");
        }
        let shelf = Shelf::default();
        let pool = waiting.insert(Pool::new(store.clone(), shelf.clone(), watcher, cli.parked));
        api::router(Instances::new(store, stopping, pool.clone(), shelf))
    });
    if let Some(pool) = waiting {
        pool.end();
    }
    // The instances go on without us: what they are owed, they get now.
    if !pager::settle(SETTLING) {
        tracing::warn!("instances end with this daemon: their memory could not be brought in time");
    }
    served.map(|()| 0)
}
