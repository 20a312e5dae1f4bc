//! `snapd`: the daemon that takes snapshots.
#![forbid(unsafe_code)]

mod api;

use clap::Parser;
use libsnap::error::Result;
use nodekit::daemon::{self, DaemonArgs};
use nodekit::{hidden, out};
use std::process::ExitCode;

/// Takes snapshots of apps, asked over a Unix socket
#[derive(Debug, Parser)]
#[command(name = "snapd", version)]
struct Cli {
    #[command(flatten)]
    daemon: DaemonArgs,
}

fn main() -> ExitCode {
    if let Some(code) = hidden::dispatch() {
        return code;
    }
    out::finish("snapd", || run(&Cli::parse().daemon))
}

fn run(args: &DaemonArgs) -> Result<u8> {
    let store = args.dirs.open()?;
    daemon::run("snapd", args, |_| api::router(store))?;
    Ok(0)
}
