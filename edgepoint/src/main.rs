//! `edgepointd`: the daemon of a node. Apps are deployed there; those that nobody uses
//! sleep as appshots, and who comes to one wakes it.
//!
//! ```text
//!   client ──> listening socket ── held here ──> the app accepts, while it runs
//!                     │
//!                     └ somebody waits, and the app sleeps: restored brings it back
//! ```
#![forbid(unsafe_code)]

mod agent;
mod api;
mod bell;
mod budget;
mod demand;
mod instances;
mod manifest;
mod metrics;
mod node;
mod scale;
mod sockets;
mod status;
mod work;

use clap::Parser;
use libsnap::error::Result;
use libsnap::units::parse_bytes;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use node::Node;
use nodekit::args::EXIT_CODES;
use nodekit::daemon::{self, DaemonArgs};
use nodekit::program;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Keeps deployed apps asleep until they are needed, asked over a Unix socket
#[derive(Debug, Parser)]
#[command(name = "edgepointd", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Memory that all running apps together may have, such as 8G [default: what is available at
    /// the start, less a tenth of the machine's or 256 MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
}

fn main() -> ExitCode {
    program::main("edgepointd", |cli: Cli| run(&cli))
}

/// Apps that run go on when it stops; it takes them up again.
fn run(cli: &Cli) -> Result<u8> {
    let args = &cli.daemon;
    let store = args.dirs.open()?;
    let node = Node::new(store, &args.dirs, cli.memory)?;
    daemon::run("edgepointd", args, |_| {
        tokio::spawn(reap());
        if let Err(error) = node.take_up() {
            tracing::error!(%error, "cannot take up what is deployed");
        }
        api::router(node)
    })?;
    Ok(0)
}

/// Supervisors of apps and the keeper are our children, and end when they want to. What
/// other threads trace reports to those.
async fn reap() {
    let Ok(mut ended) = signal(SignalKind::child()) else {
        return;
    };
    let ours = WaitPidFlag::WNOHANG | WaitPidFlag::__WNOTHREAD;
    while ended.recv().await.is_some() {
        while waitpid(None, Some(ours)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
