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
mod manifest;
mod node;
mod sockets;
mod status;

use clap::Parser;
use libsnap::error::Result;
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
}

fn main() -> ExitCode {
    program::main("edgepointd", |cli: Cli| run(&cli.daemon))
}

/// Apps that run go on when it stops; it takes them up again.
fn run(args: &DaemonArgs) -> Result<u8> {
    let store = args.dirs.open()?;
    let node = Node::new(store, &args.dirs)?;
    daemon::run("edgepointd", args, |_| {
        tokio::spawn(reap());
        if let Err(error) = node.take_up() {
            tracing::error!(%error, "cannot take up what is deployed");
        }
        api::router(node)
    })?;
    Ok(0)
}

/// Supervisors of apps and the keeper are our children, and end when they want to.
async fn reap() {
    let Ok(mut ended) = signal(SignalKind::child()) else {
        return;
    };
    while ended.recv().await.is_some() {
        while waitpid(None, Some(WaitPidFlag::WNOHANG)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
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
