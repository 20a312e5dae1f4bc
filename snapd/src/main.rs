//! `snapd`: the daemon that takes snapshots.
#![forbid(unsafe_code)]

mod api;
mod series;

use clap::Parser;
use libsnap::error::Result;
use nodekit::args::EXIT_CODES;
use nodekit::daemon::{self, DaemonArgs};
use nodekit::program;
use std::process::ExitCode;

/// Takes snapshots of apps, asked over a Unix socket
#[derive(Debug, Parser)]
#[command(name = "snapd", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    daemon: DaemonArgs,
}

fn main() -> ExitCode {
    program::main("snapd", |cli: Cli| run(&cli.daemon))
}

fn run(args: &DaemonArgs) -> Result<u8> {
    let store = args.dirs.open()?;
    daemon::run("snapd", args, |_| api::router(store))?;
    Ok(0)
}
