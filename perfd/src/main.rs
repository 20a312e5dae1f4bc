//! `perfd`: what each app uses.
#![forbid(unsafe_code)]

mod meter;

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use clap::Parser;
use libsnap::error::Result;
use libsnap::store::Store;
use meter::Meter;
use nodekit::args::{EXIT_CODES, Output};
use nodekit::daemon::{self, DaemonArgs};
use nodekit::reply::{self, Reply};
use nodekit::{out, program};
use std::process::ExitCode;
use std::time::Duration;

/// Shows the CPU time and memory of each app, once, again and again, or over a Unix socket
#[derive(Debug, Parser)]
#[command(name = "perfd", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    daemon: DaemonArgs,
    #[command(flatten)]
    output: Output,
    /// Show the list again every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
    /// Serve as a daemon
    #[arg(long, conflicts_with_all = ["watch", "output"])]
    serve: bool,
}

fn main() -> ExitCode {
    program::main("perfd", |cli: Cli| run(&cli))
}

fn run(cli: &Cli) -> Result<u8> {
    let store = cli.daemon.dirs.open()?;
    if cli.serve {
        daemon::run("perfd", &cli.daemon, |_| router(store))?;
        return Ok(0);
    }
    loop {
        out::show(cli.output.format, &meter::read(&store)?, |all| meter::text(all))?;
        let Some(seconds) = cli.watch else {
            return Ok(0);
        };
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

fn router(store: Store) -> Router {
    let routes = Router::new().route("/v1/usage", get(usage));
    reply::complete(routes, "perfd", include_str!("../openapi.json")).with_state(store)
}

async fn usage(State(store): State<Store>) -> Reply<Vec<Meter>> {
    Ok(Json(meter::read(&store)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["perfd", "--watch", "0"]).is_err());
        assert!(Cli::try_parse_from(["perfd", "--serve", "--watch", "1"]).is_err());
    }
}
