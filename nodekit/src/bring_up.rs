//! Bringing an app up as a person asked: attached, with us as its supervisor,
//! or detached, under one of its own.

use crate::args::Format;
use crate::start::{Start, Started};
use crate::{detach, out, supervise};
use libsnap::error::Result;
use libsnap::store::State;
use libsnap::target::Instance;

/// How the caller wants it.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    pub detach: bool,
    pub quiet: bool,
    pub format: Format,
}

/// Answers the exit code of the program.
pub fn bring_up(start: Start, manner: Manner) -> Result<u8> {
    match manner.detach {
        true => detached(start, manner),
        false => attached(start, manner.quiet),
    }
}

fn detached(start: Start, manner: Manner) -> Result<u8> {
    let started = detach::spawn(start)?;
    out::show(manner.format, &started.instance, |instance| {
        format!("{}\n", instance.name)
    })?;
    if manner.format == Format::Text && !manner.quiet {
        eprintln!("{}", told(&started.instance));
    }
    Ok(0)
}

/// `web runs: 3 processes, pid 4312, up in 1.4 ms`
pub fn told(instance: &Instance) -> String {
    format!(
        "{} runs: {}, pid {}, up in {}",
        instance.name,
        out::count(instance.processes, "process", "processes"),
        instance.root,
        out::millis(instance.total_micros)
    )
}

fn attached(start: Start, quiet: bool) -> Result<u8> {
    let mut start = start.attached();
    let Started { app, .. } = start.go()?;
    let code = supervise::supervise(&start.store, &app)?;
    if !quiet
        && let Some(now) = start.store.find(&app.name)?
        && now.same_instance(&app)
        && now.state() == State::Asleep
    {
        let place = now.appshot.unwrap_or_default();
        eprintln!("{} is asleep in {}", app.name, place.display());
    }
    // Wait statuses fit: an exit code has 8 bits, 128 + 64 signals.
    Ok(u8::try_from(code).unwrap_or(u8::MAX))
}
