//! `restore`: brings one appshot back, with or without the daemon.
#![forbid(unsafe_code)]

use clap::Parser;
use libsnap::error::Result;
use libsnap::store::Store;
use libsnap::target::Instance;
use nodekit::args::{Dirs, EXIT_CODES, Format, Output, RestoreArgs};
use nodekit::bring_up::{Manner, bring_up, told, warn};
use nodekit::client::Client;
use nodekit::start::{Start, What};
use nodekit::{out, program};
use serde_json::json;
use std::path::PathBuf;
use std::process::ExitCode;

/// Brings an appshot back to life
///
/// With -d it asks `restored`, where that one answers; otherwise, and without
/// -d always, it restores by itself.
#[derive(Debug, Parser)]
#[command(name = "restore", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    dirs: Dirs,
    /// An appshot: its path, or its name in the store
    #[arg(value_name = "FILE|NAME")]
    appshot: String,
    #[command(flatten)]
    how: RestoreArgs,
    /// Do not ask the daemon
    #[arg(long)]
    standalone: bool,
    /// Socket of the daemon [default: restored.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print nothing but results and errors
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
}

fn main() -> ExitCode {
    program::main("restore", |cli: Cli| run(&cli))
}

fn run(cli: &Cli) -> Result<u8> {
    let store = cli.dirs.open()?;
    let client = Client::new(cli.dirs.socket(cli.socket.clone(), "restored"));
    if cli.how.detach && !cli.standalone && client.answers() {
        return ask(cli, store, &client);
    }
    let start = Start::restore(store, &cli.appshot, cli.how.options())?.hooked(cli.how.hooks())?;
    let manner = Manner {
        detach: cli.how.detach,
        quiet: cli.quiet,
        format: cli.output.format,
    };
    bring_up(start, manner)
}

/// The daemon gets what we understood: an absolute path and a name.
fn ask(cli: &Cli, store: Store, client: &Client) -> Result<u8> {
    let start = Start::restore(store, &cli.appshot, cli.how.options())?.hooked(cli.how.hooks())?;
    let What::Restore { appshot, options } = &start.what else {
        return Ok(0);
    };
    let request = json!({
        "appshot": appshot,
        "name": start.name,
        "pids": options.pids,
        "memory": options.memory,
        "network": options.network,
        "netns": options.joins.map(|joins| joins.fd),
        "identity": options.identity,
        "limits": options.limits,
        "allow": options.allow,
        "hooks": start.hooks,
    });
    let instance: Instance = client.post("/v1/instances", &request)?;
    out::show(cli.output.format, &instance, |instance| format!("{}\n", instance.name))?;
    warn(&instance);
    if !cli.quiet && cli.output.format == Format::Text {
        eprintln!("{}", told(&instance));
    }
    Ok(0)
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
