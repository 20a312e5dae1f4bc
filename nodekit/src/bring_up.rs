//! Bringing an app up as a person asked: attached, with us as its supervisor,
//! or detached, under one of its own.

use crate::args::Format;
use crate::start::{Start, Started, UNPACK};
use crate::{detach, out, signals, supervise};
use libsnap::error::{Error, Result};
use libsnap::store::State;
use libsnap::target::Instance;
use nix::sys::signalfd::SignalFd;

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
    warn(&started.instance);
    if manner.format == Format::Text && !manner.quiet {
        eprintln!("{}", told(&started.instance));
    }
    Ok(0)
}

/// `web runs: 3 processes, pid 4312, up in 1.4 ms`
pub fn told(instance: &Instance) -> String {
    let unpacked = unpacked(instance).map_or(String::new(), |took| format!(" ({took})"));
    format!(
        "{} runs: {}, pid {}, up in {}{unpacked}",
        instance.name,
        out::count(instance.processes, "process", "processes"),
        instance.root,
        out::millis(instance.total_micros)
    )
}

/// That the appshot was packed.
fn unpacked(instance: &Instance) -> Option<String> {
    let phase = instance.phases.iter().find(|phase| phase.name == UNPACK)?;
    Some(format!("its appshot was unpacked in {}", out::millis(phase.micros)))
}

/// What did not go as wanted; not a result.
pub fn warn(instance: &Instance) {
    for warning in &instance.warnings {
        out::warn(warning);
    }
}

/// A signal to end us gives up a restore; once the app runs, it is the app's.
fn attached(start: Start, quiet: bool) -> Result<u8> {
    let signals = signals::block()?;
    let mut start = start.attached();
    let Started { app, instance } = match start.go_unless(&|| signals::waiting(&signals)) {
        Ok(started) => started,
        Err(error) => return given_up(&signals, error),
    };
    if let Some(unpacked) = unpacked(&instance).filter(|_| !quiet) {
        eprintln!("{}: {unpacked}", app.name);
    }
    warn(&instance);
    let code = supervise::supervise(&start.store, &app, &signals)?;
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

/// The exit code is that of a program which the signal has ended.
fn given_up(signals: &SignalFd, error: Error) -> Result<u8> {
    let Ok(Some(signal)) = signals.read_signal() else {
        return Err(error);
    };
    out::complain("stopped", &error);
    Ok(u8::try_from(128 + signal.ssi_signo).unwrap_or(u8::MAX))
}
