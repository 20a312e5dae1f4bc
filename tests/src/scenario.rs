//! Puts real software through cycles: used, frozen, seen to be gone, brought
//! back, used again. What a cycle is stands here, how it is done in a [`Manner`].

use crate::app::Place;
use crate::clients::ensure_refused;
use crate::judge::{HostState, Scope, judge_nothing_left, open_connections, tree};
use crate::verdict::{PATIENCE, poll};
use anyhow::{Context, Result, ensure};
use libsnap::target::RunOptions;

/// What a scenario has to tell of its server.
#[derive(Clone)]
#[expect(missing_debug_implementations, reason = "it is made of closures")]
pub struct Server<'a> {
    pub options: RunOptions,
    pub port: Option<u16>,
    /// Brings it to a state worth keeping; gets the process above all others.
    pub fill: &'a dyn Fn(i32) -> Result<()>,
    /// Must be equal before the snapshot and after the restore.
    pub state: &'a dyn Fn() -> Result<String>,
    /// Uses it so that the state changes.
    pub use_it: &'a dyn Fn() -> Result<()>,
    /// It has as many processes at any time.
    pub steady: bool,
    /// It maps memory and opens files as it goes: what it has more is not ours.
    pub grows: bool,
    /// Lets it end by itself; its exit code then tells whether all was well.
    pub finish: Option<&'a dyn Fn() -> Result<()>>,
    /// One request under load, which may not fail.
    pub request: Option<fn(u16) -> Result<()>>,
}

/// Drives a server that a scenario has set up.
pub type Drive<'a> = &'a dyn Fn(&Place, &Server<'_>) -> Result<()>;

/// Where a cycle stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The snapshot comes next.
    BeforeFreeze,
    /// It runs again, and nobody has used it yet.
    AfterRestore,
    /// It has been used again.
    CycleEnd,
}

/// A way to start, freeze, and bring back one app.
pub trait Manner {
    fn start(&mut self, options: &RunOptions) -> Result<()>;
    /// The process above all others of the app.
    fn top(&self) -> i32;
    /// Its exit code, if it has ended.
    fn exited(&mut self) -> Result<Option<i32>>;
    /// Returns when the appshot is there and no process is left.
    fn freeze(&mut self) -> Result<()>;
    fn restore(&mut self) -> Result<()>;
    fn end(&mut self) -> Result<()>;

    /// What may be there of it while the app sleeps.
    fn asleep(&self) -> HostState {
        HostState::default()
    }

    /// Counts what must not grow.
    fn look(&mut self, _server: &Server<'_>, _moment: Moment) -> Result<()> {
        Ok(())
    }
}

/// `APPSHOT_CYCLES`, 3 unless told.
pub fn cycles() -> usize {
    let told = std::env::var("APPSHOT_CYCLES").ok();
    told.and_then(|n| n.parse().ok()).unwrap_or(3)
}

/// Start, all cycles, then `last` while it still runs, end.
pub fn drive<M: Manner>(
    place: &Place,
    server: &Server<'_>,
    manner: &mut M,
    last: impl FnOnce(&mut M) -> Result<()>,
) -> Result<()> {
    drive_cycles(place, server, manner, cycles(), last)
}

/// The same without a cycle: start, fill, `last`, end.
pub fn drive_alive<M: Manner>(
    place: &Place,
    server: &Server<'_>,
    manner: &mut M,
    last: impl FnOnce(&mut M) -> Result<()>,
) -> Result<()> {
    drive_cycles(place, server, manner, 0, last)
}

/// The same with so many cycles.
pub fn drive_cycles<M: Manner>(
    place: &Place,
    server: &Server<'_>,
    manner: &mut M,
    cycles: usize,
    last: impl FnOnce(&mut M) -> Result<()>,
) -> Result<()> {
    let scope = server.port.into_iter().fold(place.scope(), Scope::with_port);
    let before = HostState::take(&scope);
    let result =
        whole_life(server, manner, &scope, cycles, last).with_context(|| format!("its log: {:?}", place.log()));
    let ended = if result.is_err() { manner.end() } else { Ok(()) };
    let left = judge_nothing_left(&scope, &before);
    result.and(ended).and(left)
}

fn whole_life<M: Manner>(
    server: &Server<'_>,
    manner: &mut M,
    scope: &Scope,
    cycles: usize,
    last: impl FnOnce(&mut M) -> Result<()>,
) -> Result<()> {
    manner.start(&server.options)?;
    poll("the server to answer", PATIENCE, || {
        ensure!(manner.exited()?.is_none(), "the server ended");
        Ok((server.state)().ok())
    })?;
    (server.fill)(manner.top())?;
    for number in 0..cycles {
        one_cycle(server, manner, scope).with_context(|| format!("cycle {number}"))?;
    }
    last(manner)?;
    let Some(finish) = server.finish else {
        return manner.end();
    };
    finish()?;
    let code = poll("its own end", PATIENCE, || manner.exited())?;
    ensure!(code == 0, "exit code {code}");
    manner.end()
}

fn one_cycle(server: &Server<'_>, manner: &mut impl Manner, scope: &Scope) -> Result<()> {
    (server.use_it)()?;
    settle(server)?;
    let state = (server.state)()?;
    settle(server)?;
    let processes = commands(manner.top());
    manner.look(server, Moment::BeforeFreeze)?;
    manner.freeze().context("snapshot")?;
    judge_nothing_left(scope, &manner.asleep()).context("after the snapshot")?;
    if let Some(port) = server.port {
        ensure_refused(port)?;
    }
    manner.restore().context("restore")?;
    manner.look(server, Moment::AfterRestore)?;
    let processes_now = commands(manner.top());
    ensure!(
        !server.steady || processes_now.len() == processes.len(),
        "processes were {processes:?}, are {processes_now:?}"
    );
    let state_now = (server.state)().context("first use after the restore")?;
    ensure!(state == state_now, "state was {state}, is {state_now}");
    (server.use_it)().context("use after the restore")?;
    settle(server)?;
    manner.look(server, Moment::CycleEnd)
}

/// What its processes are called.
fn commands(top: i32) -> Vec<String> {
    let command = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/comm"));
    let commands = tree(top)
        .into_iter()
        .map(|pid| format!("{pid} {}", command(pid).unwrap_or_default().trim()));
    commands.collect()
}

/// Waits until the server has closed what its clients have closed.
pub fn settle(server: &Server<'_>) -> Result<()> {
    let Some(port) = server.port else {
        return Ok(());
    };
    poll("connections to close", PATIENCE, || {
        Ok((open_connections(port) == 0).then_some(()))
    })
}

/// One use of `$test` for every scenario: its name in [`crate::servers`], and
/// whether a cycle of it is light.
#[macro_export]
macro_rules! each_scenario {
    ($test:ident) => {
        $test!(redis_server, heavy);
        $test!(nginx, light);
        $test!(postgresql, heavy);
        $test!(python_http_server, light);
        $test!(node, heavy);
        $test!(go, light);
        $test!(java, heavy);
        $test!(bash_pipeline, light);
        $test!(shell_on_a_terminal, light);
        $test!(threads_100, light);
        $test!(tree_of_100_processes, heavy);
        $test!(blocking_calls, light);
    };
}

/// One use of `$test` for every further application: its name in [`crate::applications`],
/// and whether what it holds is in memory, so that instances beside each other are
/// independent, or in files that they share.
#[macro_export]
macro_rules! each_application {
    ($test:ident) => {
        $test!(memcached, in_memory);
        $test!(beanstalkd, in_files);
        $test!(haproxy, in_memory);
        $test!(bind9, in_files);
        $test!(squid, in_files);
        $test!(erlang, in_memory);
        $test!(puma, in_files);
        $test!(perl, in_memory);
        $test!(bubblewrap, in_memory);
        $test!(gunicorn, in_memory);
        $test!(uvicorn, in_memory);
        $test!(tokio_uring, in_memory);
        $test!(java_pools, in_memory);
        $test!(sqlite, in_files);
        $test!(php_fpm, in_memory);
        $test!(mariadb, in_files);
        $test!(jupyter_kernel, in_memory);
        $test!(vim, in_files);
        $test!(htop, in_files);
        $test!(tmux, in_files);
        $test!(ffmpeg, in_files);
        $test!(gcc, in_files);
        $test!(stress_ng, in_files);
    };
}
