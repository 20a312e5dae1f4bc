//! `appshot`: the command line.
#![forbid(unsafe_code)]

mod cli;
mod commands;
mod demo;

use cli::{Cli, Command};
use libsnap::error::Result;
use nodekit::program;
use std::process::ExitCode;

fn main() -> ExitCode {
    program::main("appshot", run)
}

fn run(cli: Cli) -> Result<u8> {
    let (dirs, quiet) = (cli.dirs, cli.quiet);
    match cli.command {
        Command::Run(args) => commands::run::run(&dirs.open()?, args, quiet),
        Command::Ps(args) => commands::ps::ps(&dirs.open()?, &args),
        Command::Snapshot(args) => commands::snapshot::snapshot(&dirs.open()?, args, quiet),
        Command::Restore(args) => commands::run::restore(&dirs.open()?, &args, quiet),
        Command::Clone(args) => commands::clone::clone(&dirs.open()?, &dirs, &args, quiet),
        Command::Revert(args) => commands::clone::revert(&dirs, &args),
        Command::Up(args) => commands::up::up(&dirs, &args),
        Command::Deploy(args) => commands::apps::deploy(&dirs, &args, quiet),
        Command::Update(args) => commands::apps::update(&dirs, &args),
        Command::Rollback(args) => commands::apps::order(&dirs, &args, "rollback"),
        Command::Scale(args) => commands::apps::scale(&dirs, &args),
        Command::Events(args) => commands::events::events(&dirs, &args),
        Command::Top(args) => commands::top::top(&dirs, &args),
        Command::Provider(command) => commands::provider::provider(&dirs, &command),
        Command::Secret(command) => commands::secret::secret(&dirs, &command),
        Command::Apps(args) => commands::apps::apps(&dirs, &args),
        Command::Status(args) => commands::apps::status(&dirs, &args),
        Command::Suspend(args) => commands::apps::order(&dirs, &args, "suspend"),
        Command::Resume(args) => commands::apps::order(&dirs, &args, "resume"),
        Command::Remove(args) => commands::apps::remove(&dirs, &args),
        Command::Inspect(args) => commands::inspect::inspect(&dirs.open()?, &args),
        Command::Check(args) => commands::snapshot::check(&dirs.open()?, &args),
        Command::Kill(args) => commands::end::kill(&dirs.open()?, &args),
        Command::Rm(args) => commands::end::rm(&dirs.open()?, &args),
        Command::Logs(args) => commands::logs::logs(&dirs, &args),
        Command::Store(command) => commands::store::store(&dirs, &command, quiet),
        Command::Usage(command) => commands::usage::usage(&dirs.open()?, &command, quiet),
        Command::Diff(args) => commands::diff::diff(&dirs.open()?, &args),
        Command::Rehearse(args) => commands::rehearse::rehearse(&dirs.open()?, &args, quiet),
        Command::Flatten(args) => commands::flatten::flatten(&dirs.open()?, &args, quiet),
        Command::Doctor(args) => commands::doctor::doctor(&args),
        Command::Demo(args) => demo::demo(&args),
        Command::Completions(args) => commands::completions::completions(&args),
    }
}
