//! `perfd`: what each app uses, and has used.
#![forbid(unsafe_code)]

mod corrections;
mod exports;
mod meter;
mod metering;
mod metrics;
mod rollups;

use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use clap::{Args, Parser};
use corrections::Corrections;
use libsnap::error::Result;
use libsnap::store::Store;
use meter::Meter;
use metering::Metering;
use metrics::Board;
use nodekit::args::{EXIT_CODES, Output};
use nodekit::daemon::{self, DaemonArgs};
use nodekit::reply::{self, Body, Failure, Reply};
use nodekit::{log, out, program};
use std::process::ExitCode;
use std::time::Duration;
use usage::archive::Rules;

/// Shows the CPU time and memory of each app, once or again and again; as a daemon it keeps
/// the usage ledger that bills are made of
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
    /// Serve as a daemon, and meter
    #[arg(long, conflicts_with_all = ["watch", "output"])]
    serve: bool,
    #[command(flatten)]
    keeping: Keeping,
}

/// What stays of the ledger.
#[derive(Args, Clone, Copy, Debug)]
struct Keeping {
    /// Compact what is older than so many days to what bills are made of; 0 never
    #[arg(long, value_name = "DAYS", default_value_t = 35, value_parser = clap::value_parser!(u64).range(0..=36_500))]
    compact_after: u64,
    /// Remove records that are older than so many days, but for what later bills need; 0 never
    #[arg(long, value_name = "DAYS", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=36_500))]
    remove_after: u64,
}

const DAY_MS: u64 = 86_400_000;

impl Keeping {
    /// At a moment.
    fn rules(self) -> impl Fn(u64) -> Rules + Send + 'static {
        let since = |now_ms: u64, days: u64| (days > 0).then(|| now_ms.saturating_sub(days * DAY_MS));
        move |now_ms| Rules {
            whole_since_ms: since(now_ms, self.compact_after),
            billed_since_ms: since(now_ms, self.remove_after),
        }
    }
}

fn main() -> ExitCode {
    program::main("perfd", |cli: Cli| run(&cli))
}

fn run(cli: &Cli) -> Result<u8> {
    let store = cli.daemon.dirs.open()?;
    if cli.serve {
        log::init(cli.daemon.log_format);
        let board = Board::default();
        let (corrections, asked) = corrections::channel();
        let metering = Metering::begin(&store, board.clone(), cli.keeping.rules(), asked)?;
        daemon::run("perfd", &cli.daemon, |_| router(store, board, corrections))?;
        drop(metering);
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

fn router(store: Store, board: Board, corrections: Corrections) -> Router {
    let routes = Router::new()
        .route("/v1/usage", get(usage))
        .route("/v1/usage/export", get(exports::export))
        .route("/v1/usage/rollups", get(rollups::tell))
        .route(
            "/v1/usage/corrections",
            post(move |State(store), Body(asked)| corrections::post(store, corrections, asked)),
        )
        .route("/metrics", get(move || metrics(board.clone())));
    reply::complete(routes, "perfd", include_str!("../openapi.json")).with_state(store)
}

async fn metrics(board: Board) -> Result<impl IntoResponse, Failure> {
    Ok(([("content-type", metrics::CONTENT_TYPE)], board.text()?))
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
