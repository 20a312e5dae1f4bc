//! Clones of real servers by a running `restored`: two beside each other, each fully used
//! in a network of its own, that know nothing of each other; and what becomes of them when
//! the daemon is killed, when they are frozen themselves, when their appshot goes.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::installed::{Daemon, Registry};
use appshot_tests::judge::{HostState, Scope, judge_nothing_left, tree};
use appshot_tests::scenario::Server;
use appshot_tests::servers;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, poll};
use libsnap::nsthread;
use libsnap::target::Instance;
use serde_json::{Value, json};
use std::path::Path;

/// Those whose files more than one instance may use.
#[test]
fn redis() {
    check("clones_redis", |place| {
        servers::redis_server(place, &used_beside_each_other)
    });
}

#[test]
fn nginx() {
    check("clones_nginx", |place| servers::nginx(place, &used_beside_each_other));
}

#[test]
fn node() {
    check("clones_node", |place| servers::node(place, &used_beside_each_other));
}

#[test]
fn go() {
    check("clones_go", |place| servers::go(place, &used_beside_each_other));
}

#[test]
fn java() {
    check("clones_java", |place| servers::java(place, &used_beside_each_other));
}

#[test]
fn python() {
    check("clones_python", |place| {
        servers::python_http_server(place, &|place, server| beside(place, server, true))
    });
}

#[test]
fn after_the_daemon() {
    check("clones_after_the_daemon", |place| {
        servers::redis_server(place, &on_their_own)
    });
}

fn check(test: &'static str, body: fn(&Place) -> Result<()>) {
    in_place(test, body);
}

/// Starts the server, fills it, and puts it to sleep; answers what it held.
fn asleep(place: &Place, server: &Server<'_>, appshot: &Path) -> Result<String> {
    let app = place.run_with(server.options.clone())?;
    poll("the server to answer", PATIENCE, || Ok((server.state)().ok()))?;
    (server.fill)(app.top())?;
    let state = (server.state)()?;
    // The connection that asked is gone, too.
    poll("a snapshot", PATIENCE, || Ok(app.freeze(appshot).ok()))?;
    app.wait_gone()?;
    Ok(state)
}

fn cloned(daemon: &Daemon, appshot: &Path, place: &Place, count: usize) -> Result<Vec<Instance>> {
    let ask = json!({ "appshot": appshot, "count": count, "name": place.unique() });
    Ok(daemon.client.post("/v1/clones", &ask)?)
}

/// Does something in the network of a clone.
fn inside<T>(clone: &Instance, act: impl FnOnce() -> Result<T>) -> Result<T> {
    nsthread::inside(clone.root, &["net"], act)?.with_context(|| format!("in {}", clone.name))
}

fn scope(place: &Place, server: &Server<'_>) -> (Scope, HostState) {
    let scope = server.port.into_iter().fold(place.scope(), Scope::with_port);
    let before = HostState::take(&scope);
    (scope, before)
}

fn remove(daemon: &Daemon, clones: &[Instance]) -> Result<()> {
    for clone in clones {
        daemon
            .client
            .delete::<Value>(&format!("/v1/instances/{}", clone.name))?;
    }
    Ok(())
}

fn used_beside_each_other(place: &Place, server: &Server<'_>) -> Result<()> {
    beside(place, server, false)
}

/// `in_files`: what the server holds lies in files that all clones share.
fn beside(place: &Place, server: &Server<'_>, in_files: bool) -> Result<()> {
    let (scope, before) = scope(place, server);
    let registry = Registry::new(place)?;
    let appshot = place.path("appshot");
    let state = asleep(place, server, &appshot)?;
    let daemon = registry.daemon("restored", "")?;
    // Two rounds: what was prepared after the first is what the second gets.
    for round in 0..2 {
        let clones = cloned(&daemon, &appshot, place, 2)?;
        let found = |clone: &Instance| inside(clone, || (server.state)());
        for clone in &clones {
            let found = found(clone)?;
            ensure!(in_files || found == state, "round {round}: {} is another", clone.name);
        }
        for _ in 0..3 {
            inside(&clones[0], || (server.use_it)())?;
        }
        if !in_files {
            ensure!(found(&clones[1])? == state, "round {round}: one changed the other");
        }
        for _ in 0..3 {
            inside(&clones[1], || (server.use_it)())?;
        }
        let [one, other] = [found(&clones[0])?, found(&clones[1])?];
        ensure!(one == other, "round {round}: alike use, {one} and {other}");
        remove(&daemon, &clones)?;
    }
    daemon.stop()?;
    judge_nothing_left(&scope, &before)
}

/// Clones of one process are nobody's: they outlive the daemon that is killed, and can
/// be frozen and brought back as any other app.
fn on_their_own(place: &Place, server: &Server<'_>) -> Result<()> {
    let (scope, before) = scope(place, server);
    let registry = Registry::new(place)?;
    let appshot = place.path("appshot");
    let state = asleep(place, server, &appshot)?;
    let daemon = registry.daemon("restored", "")?;
    let clones = cloned(&daemon, &appshot, place, 2)?;
    let waiting = tree(daemon.pid());
    // Dropped, it is killed.
    drop(daemon);
    let clone = |pid: &i32| {
        clones
            .iter()
            .any(|clone| clone.root.0 == *pid || clone.child().0 == *pid)
    };
    let left = |pid: &&i32| !clone(pid) && Path::new(&format!("/proc/{pid}")).exists();
    poll("what waited to be gone", PATIENCE, || {
        Ok(waiting.iter().find(left).is_none().then_some(()))
    })?;
    std::fs::remove_dir_all(&appshot)?;
    for clone in &clones {
        ensure!(
            inside(clone, || (server.state)())? == state,
            "{} is another",
            clone.name
        );
        inside(clone, || (server.use_it)())?;
    }
    let used = inside(&clones[0], || (server.state)())?;
    // Its connections are gone before it is frozen.
    poll("a snapshot of a clone", PATIENCE, || {
        Ok(registry.appshot(&["-q", "snapshot", &clones[0].name]).ok())
    })?;
    let daemon = registry.daemon("restored", "")?;
    let ask = json!({ "appshot": clones[0].name, "network": "own", "name": format!("{}-again", place.unique()) });
    let again: Instance = daemon.client.post("/v1/instances", &ask)?;
    ensure!(
        inside(&again, || (server.state)())? == used,
        "the frozen clone is another"
    );
    inside(&again, || (server.use_it)())?;
    remove(&daemon, &[again])?;
    registry.appshot(&["kill", "-s", "KILL", "--wait", &clones[1].name])?;
    daemon.stop()?;
    judge_nothing_left(&scope, &before)
}
