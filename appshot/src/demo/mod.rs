//! `demo`: the main job on a real server, step by step, with the milliseconds.
//!
//! It uses what `run -d`, `snapshot` and `restore -d` use, on a registry of its
//! own in a temporary directory. Everything it makes is removed when it ends,
//! also by an error or Ctrl-C.

mod scene;
mod servers;

use crate::cli;
use libsnap::error::{Error, Kind, Result};
use nodekit::out;
pub use servers::{Name, find};

use scene::Scene;
use servers::Server;
use std::time::{Duration, Instant};

pub fn demo(args: &cli::Demo) -> Result<u8> {
    able()?;
    let mut scene = Scene::open()?;
    let server = servers::choose(args.with, scene.dir())?;
    out::print(&format!("{}\n\n{}", server.about(), head()))?;
    let played = play(&mut scene, &*server);
    // Also after an error: the steps so far stand in the table, then the error.
    let cleared = step("clean up", || {
        scene
            .clear()
            .map(|()| "nothing is left of it on this machine".to_owned())
    });
    played.and(cleared)?;
    out::print("\nIt is the same server: same state, same PIDs, same descriptors, same port.\n")?;
    Ok(0)
}

/// Tells every right and feature that is missing, before anything is started.
fn able() -> Result<()> {
    let features = libsnap::kernel::features();
    let missing: Vec<_> = features.iter().filter(|f| f.required && !f.present).collect();
    let Some(first) = missing.first() else {
        return Ok(());
    };
    let lines = missing.iter().map(|f| format!("{} ({})", f.name, f.needed_for));
    Err(Error::new(Kind::Unavailable, "cannot run the demo")
        .because("this process lacks what freezing and restoring needs")
        .needs(lines.collect::<Vec<_>>().join(", "))
        .fix(format!("{}; `appshot doctor` tells all", first.how))
        .state("nothing was started"))
}

/// The story. Each step leaves one line.
fn play(scene: &mut Scene, server: &dyn Server) -> Result<()> {
    step("start", || start(scene, server))?;
    let mut before = None;
    step("use", || {
        let seen = use_it(scene, server)?;
        let told = format!("{}: {} so far", server.fills(), seen.count);
        before = Some(seen);
        Ok(told)
    })?;
    std::thread::sleep(SETTLE);
    scene.remember()?;
    step("snapshot", || scene.snapshot())?;
    step("gone", || gone(scene))?;
    step("restore", || scene.restore())?;
    step("use again", || match &before {
        Some(before) => use_again(scene, server, before),
        None => Ok(String::new()),
    })
}

/// A server may need a moment to close a connection whose answer it has sent.
const SETTLE: Duration = Duration::from_millis(20);

/// Requests of the step "use".
const REQUESTS: u64 = 25;

/// What has to come back.
struct Seen {
    state: String,
    count: u64,
}

fn start(scene: &mut Scene, server: &dyn Server) -> Result<String> {
    let port = server.port();
    scene.start(server.command(), port)?;
    scene.until("the server answers", |scene| {
        Ok(scene.processes()?.len() == server.processes() && server.ask().is_ok())
    })?;
    // What stood in it is in the server's memory now, and must come from there.
    server.forget_configuration()?;
    Ok(format!("{}, port {port}", scene.told_pids()?))
}

fn use_it(scene: &Scene, server: &dyn Server) -> Result<Seen> {
    scene.interrupted()?;
    server.fill()?;
    let state = server.state()?;
    let mut count = 0;
    for _ in 0..REQUESTS {
        count = server.ask()?;
    }
    Ok(Seen { state, count })
}

fn gone(scene: &Scene) -> Result<String> {
    scene.ensure_gone()?;
    scene.ensure_refused()?;
    Ok("no process is left; the port refuses connections".to_owned())
}

fn use_again(scene: &Scene, server: &dyn Server, before: &Seen) -> Result<String> {
    scene.interrupted()?;
    // Before a request opens a descriptor.
    same("its processes", scene.processes()?.as_slice(), scene.remembered())?;
    let count = server.ask()?;
    same("its count", count, before.count + 1)?;
    let state = server.state()?;
    same("its state", state.as_str(), before.state.as_str())?;
    Ok(format!("the next count is {count}; {} is as before", server.keeps()))
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, now: T, wanted: T) -> Result<()> {
    match now == wanted {
        true => Ok(()),
        false => {
            Err(Error::failed(format!("{what} did not come back"))
                .because(format!("it is {now:?} instead of {wanted:?}")))
        }
    }
}

fn head() -> String {
    line("STEP", "MS", "WHAT IS SEEN")
}

fn line(step: &str, took: &str, seen: &str) -> String {
    format!("{step:<10} {took:>8}  {seen}\n")
}

/// Does one step and prints its line.
fn step(name: &str, work: impl FnOnce() -> Result<String>) -> Result<()> {
    let began = Instant::now();
    let told = work();
    let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    let took = format!("{}.{}", micros / 1000, micros % 1000 / 100);
    let seen = told.as_deref().unwrap_or("not done");
    out::print(&line(name, &took, seen))?;
    told.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_did_not_come_back_is_told() {
        assert!(same("its count", 7, 7).is_ok());
        let error = same("its count", 1, 26).unwrap_err();
        assert_eq!(error.kind, Kind::Failed);
        assert!(error.to_string().contains("it is 1 instead of 26"), "{error}");
    }

    #[test]
    fn a_failed_step_is_told_and_passed_on() {
        let result = step("start", || Err(Error::failed("no")));
        assert_eq!(result.unwrap_err().what, "no");
    }
}
