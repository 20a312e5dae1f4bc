//! `restored`: the daemon that restores appshots and owns what it restored.
#![forbid(unsafe_code)]

mod api;
mod instances;

use clap::Parser;
use libsnap::error::Result;
use nodekit::args::EXIT_CODES;
use nodekit::daemon::{self, DaemonArgs};
use nodekit::{ending, program};
use std::process::ExitCode;

/// Restores appshots and supervises the instances, asked over a Unix socket
#[derive(Debug, Parser)]
#[command(name = "restored", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    daemon: DaemonArgs,
}

fn main() -> ExitCode {
    program::main("restored", |cli: Cli| run(&cli.daemon))
}

/// What a killed predecessor left behind is followed from the socket's first
/// moment: only its owner may do so.
fn run(args: &DaemonArgs) -> Result<u8> {
    let store = args.dirs.open()?;
    daemon::run("restored", args, |stopping| {
        if let Err(error) = ending::adopt_orphans(&store) {
            tracing::warn!(%error, "cannot look for apps without a supervisor");
        }
        api::router(instances::Instances::new(store, stopping))
    })?;
    Ok(0)
}
