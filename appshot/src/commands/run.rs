//! `run` and `restore`: bringing an app up, attached or detached.

use crate::cli;
use libsnap::error::Result;
use libsnap::store::{Store, from_command, validate};
use libsnap::target::RunOptions;
use nodekit::args::{Silence, hooks};
use nodekit::bring_up::{Manner, bring_up};
use nodekit::start::Start;

pub fn run(store: &Store, args: cli::Run, quiet: bool) -> Result<u8> {
    let name = match &args.name {
        Some(name) => name.clone(),
        None => free_name(store, &from_command(&args.command[0]))?,
    };
    validate(&name)?;
    let manner = Manner {
        detach: args.detach,
        quiet,
        format: args.output.format,
    };
    let hooks = hooks(Some(&args.before), Some(&args.after), args.patience, Silence::default());
    let start = Start::run(store.clone(), options(name, args));
    bring_up(start.hooked(hooks)?, manner)
}

fn options(name: String, args: cli::Run) -> RunOptions {
    RunOptions {
        name,
        command: args.command,
        env: args.env,
        cwd: args.cwd,
        uid: args.user.map(|user| user.uid),
        gid: args.user.and_then(|user| user.gid),
        hostname: args.hostname,
        pids: args.pids.into(),
        joins: args.joined.netns,
        limits: args.limits.limits(),
        vars: args.vars.into_iter().collect(),
        ..RunOptions::default()
    }
}

/// `redis-server`, or `redis-server-2` while that one is alive or asleep.
fn free_name(store: &Store, base: &str) -> Result<String> {
    let views = store.views()?;
    let taken = |name: &str| {
        let same = views.iter().find(|view| view.name == name);
        same.is_some_and(|view| view.alive() || view.appshot.is_some())
    };
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    let mut names = std::iter::once(base.to_owned()).chain(numbered);
    Ok(names.find(|name| !taken(name)).unwrap_or_default())
}

pub fn restore(store: &Store, args: &cli::Restore, quiet: bool) -> Result<u8> {
    let start = Start::restore(store.clone(), &args.appshot, args.how.options())?.hooked(args.how.hooks())?;
    let manner = Manner {
        detach: args.how.detach,
        quiet,
        format: args.output.format,
    };
    bring_up(start, manner)
}
