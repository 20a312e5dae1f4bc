//! One task an app: it decides alone what becomes of it (see [`crate::status`]).
//!
//! What takes long runs on threads of its own; orders are taken up in the states that
//! last.

use crate::bell::{Bell, readable};
use crate::manifest::Manifest;
use crate::metrics::Meter;
use crate::node::{Deployment, Node};
use crate::sockets::{self, Sockets};
use crate::status::{Activation, Cause, State, Status};
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::files::held;
use libsnap::image::Appshot;
use libsnap::store::{App, State as AppState, now_unix_ms};
use libsnap::target::{Instance, Phase, SnapshotReport};
use nodekit::reply::on_own_thread;
use nodekit::start::Start;
use nodekit::{detach, ending, process};
use serde_json::{Value, json};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};

/// How often a running app is looked at, at most.
const LOOK: Duration = Duration::from_secs(1);
/// How often one that starts is.
const LISTENS_YET: Duration = Duration::from_millis(10);
/// Before a failed one is tried again; doubled each time.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// An app that ran for so long has not failed just now.
const STEADY: Duration = Duration::from_secs(10);

/// What an app's owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Asleep at once, and again as soon as it is.
    Suspend,
    Resume,
    Remove,
}

/// What comes next.
#[derive(Debug)]
enum Next {
    Start,
    /// And why it is not asleep.
    Run(Option<String>),
    Sleep {
        suspended: bool,
    },
    Wait,
    Wake(Cause),
    Suspended,
    Failed(Error),
    Remove,
}

#[derive(Debug)]
pub struct Agent {
    node: Node,
    deployment: Deployment,
    status: watch::Sender<Status>,
    orders: mpsc::Receiver<Order>,
    /// Held as long as the app is deployed.
    sockets: Vec<OwnedFd>,
    /// Failures one after the other.
    failures: u32,
    /// Since when it runs.
    running: Instant,
}

impl Agent {
    pub fn new(
        node: Node,
        deployment: Deployment,
        sockets: Vec<OwnedFd>,
        (status, orders): (watch::Sender<Status>, mpsc::Receiver<Order>),
    ) -> Agent {
        Agent {
            node,
            deployment,
            status,
            orders,
            sockets,
            failures: 0,
            running: Instant::now(),
        }
    }

    fn manifest(&self) -> &Manifest {
        &self.deployment.manifest
    }

    fn name(&self) -> &str {
        &self.deployment.manifest.app
    }

    /// Until the app is removed.
    pub async fn live(mut self) {
        let mut next = self.find().unwrap_or_else(Next::Failed);
        loop {
            next = match next {
                Next::Start => self.start().await,
                Next::Run(why) => self.watch(why).await,
                Next::Sleep { suspended } => self.sleep(suspended).await,
                Next::Wait => self.wait().await,
                Next::Wake(cause) => self.wake(cause).await,
                Next::Suspended => self.rest().await,
                Next::Failed(error) => self.back_off(&error).await,
                Next::Remove => match self.remove().await {
                    Ok(()) => return self.meter().gone(),
                    Err(error) => Ok(Next::Failed(error)),
                },
            }
            .unwrap_or_else(Next::Failed);
        }
    }

    /// What there is when this daemon begins.
    fn find(&mut self) -> Result<Next> {
        let record = self.node.store.find(self.name())?;
        if let Some(app) = record.filter(App::alive) {
            tracing::info!(app = app.name, "runs: adopted");
            self.hold(Sockets::of(&app)?.listening)?;
            return Ok(Next::Run(None));
        }
        match self.appshot() {
            Some(path) => {
                if self.sockets.is_empty() {
                    // The keeper is gone too, as after a boot.
                    self.hold(held::make(&Appshot::open_unverified_memory(&path)?.manifest)?)?;
                }
                Ok(if self.deployment.suspended {
                    Next::Suspended
                } else {
                    Next::Wait
                })
            }
            None => Ok(Next::Start),
        }
    }

    /// The sockets of the app are these from now on.
    fn hold(&mut self, sockets: Vec<OwnedFd>) -> Result<()> {
        self.node.keeper.keep(self.name(), &sockets)?;
        self.sockets = sockets;
        Ok(())
    }

    fn appshot(&self) -> Option<std::path::PathBuf> {
        let path = self.node.store.appshot_path(self.name());
        path.exists().then_some(path)
    }

    fn meter(&self) -> Meter<'_> {
        Meter {
            metrics: &self.node.metrics,
            app: self.name(),
            provider: &self.manifest().provider,
        }
    }

    fn turn(&self, state: State, why: Option<String>) {
        let now = now_unix_ms().unwrap_or_default();
        let root = self.running_app().ok().map(|app| app.root);
        self.meter().turn(self.status.borrow().state, state);
        self.status.send_modify(|status| {
            if status.state != state {
                tracing::info!(
                    app = status.app,
                    from = status.state.name(),
                    to = state.name(),
                    why,
                    "state"
                );
                status.since_unix_ms = now;
            }
            (status.state, status.why, status.root) = (state, why, root);
        });
    }

    fn why(&self, why: String) {
        let why = Some(why);
        self.status.send_if_modified(|status| {
            let differs = status.why != why;
            status.why = why;
            differs
        });
    }

    fn running_app(&self) -> Result<App> {
        let app = self.node.store.get(self.name())?;
        match app.alive() {
            true => Ok(app),
            false => Err(Error::failed(format!("app {} has ended", app.name))),
        }
    }

    /// Runs its command, and waits until it listens where it is to.
    async fn start(&mut self) -> Result<Next> {
        self.turn(State::Starting, None);
        let began = Instant::now();
        let start = Start::run(self.node.store.clone(), self.manifest().run_options()?);
        let start = start
            .hooked(self.manifest().hooks.clone())?
            .caused(Some(Cause::Deploy.name().to_owned()))?;
        let started = on_own_thread(move || detach::spawn(start)).await?;
        self.turn(State::Starting, None);
        match self.listens(&started.app, began).await {
            Ok(sockets) => {
                self.hold(sockets)?;
                self.came_up(Cause::Deploy, "started", began, started.instance.phases);
                Ok(Next::Run(None))
            }
            Err(error) => {
                let (store, app) = (self.node.store.clone(), started.app);
                // It may have ended.
                let _ = on_own_thread(move || ending::kill_all(&store, &app)).await;
                Err(error)
            }
        }
    }

    async fn listens(&self, app: &App, began: Instant) -> Result<Vec<OwnedFd>> {
        loop {
            let failed = || Error::failed(format!("app {} does not come up", self.name()));
            let log = format!("`appshot logs {}` tells more", self.name());
            if self.running_app().is_err() {
                return Err(failed().because("it has ended").fix(log));
            }
            let sockets = Sockets::of(app)?;
            match &sockets.missing(&self.manifest().listen)[..] {
                [] => return Ok(sockets.listening),
                [first, ..] if began.elapsed() > self.manifest().ready.timeout.0 => {
                    let because = format!(
                        "it does not listen on {first} after {:?}",
                        self.manifest().ready.timeout.0
                    );
                    return Err(failed().because(because).fix(log));
                }
                _ => tokio::time::sleep(LISTENS_YET).await,
            }
        }
    }

    fn came_up(&mut self, cause: Cause, kind: &str, began: Instant, phases: Vec<Phase>) {
        self.running = Instant::now();
        let total_micros = micros(began);
        tracing::info!(app = self.name(), ?cause, kind, total_micros, "up");
        let activation = Activation {
            cause,
            kind: kind.to_owned(),
            unix_ms: now_unix_ms().unwrap_or_default(),
            total_micros,
            phases,
        };
        self.meter().came_up(&activation);
        self.status.send_modify(|status| {
            match kind {
                "started" => status.counts.starts += 1,
                _ => status.counts.wakes += 1,
            }
            status.last = Some(activation);
        });
    }

    /// Until nobody needs it.
    async fn watch(&mut self, why: Option<String>) -> Result<Next> {
        self.turn(State::Running, why);
        let Ok(app) = self.running_app() else {
            return self.ended().await;
        };
        let Ok(child) = process::open_child(&app) else {
            return self.ended().await;
        };
        let child = readable(child).or_fail(|| "cannot watch the app")?;
        let idle = self.manifest().idle.clone();
        let bell = Bell::new(&self.sockets)?;
        let mut look = tokio::time::interval(LOOK.min(idle.timeout.0 / 4));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut needed, mut armed) = (Instant::now(), false);
        let mut worked = Work::of(&app);
        loop {
            tokio::select! {
                _ = child.readable() => return self.ended().await,
                order = self.orders.recv() => match order {
                    Some(Order::Suspend) => return Ok(Next::Sleep { suspended: true }),
                    Some(Order::Resume) => {}
                    Some(Order::Remove) | None => return Ok(Next::Remove),
                },
                rung = bell.rung(), if armed => {
                    rung?;
                    (needed, armed) = (Instant::now(), false);
                    self.why("somebody came just now".to_owned());
                }
                _ = look.tick() => {
                    if self.running.elapsed() > STEADY {
                        self.failures = 0;
                    }
                    if !armed {
                        bell.arm(&self.sockets)?;
                        armed = true;
                    }
                    let share = worked.share(&app);
                    if share > idle.cpu {
                        needed = Instant::now();
                        self.why(format!("it works: {share:.1} % of a processor"));
                    }
                    if needed.elapsed() < idle.timeout.0 {
                        continue;
                    }
                    match Sockets::of(&app)?.connections {
                        0 => return Ok(Next::Sleep { suspended: false }),
                        open => {
                            needed = Instant::now();
                            self.why(format!("connections are open: {open}"));
                        }
                    }
                }
            }
        }
    }

    /// It was put to sleep by somebody else, or has ended by itself.
    async fn ended(&self) -> Result<Next> {
        let (store, name) = (self.node.store.clone(), self.name().to_owned());
        let record = on_own_thread(move || {
            // Who has ended it notes how, holding the lock.
            let _busy = store.wait_lock(&name)?;
            store.find(&name)
        })
        .await?;
        if record.as_ref().is_some_and(|app| app.state() == AppState::Asleep) {
            return Ok(Next::Wait);
        }
        let exit = record.and_then(|app| app.exit);
        let how = exit.map_or(String::new(), |code| format!(" with {code}"));
        Err(Error::failed(format!("app {} has ended{how}", self.name())))
    }

    /// Takes its snapshot; it goes on where that is refused.
    async fn sleep(&mut self, suspended: bool) -> Result<Next> {
        self.turn(State::FallingAsleep, None);
        let snapd = self.node.snapd.clone();
        let request = json!({
            "target": self.name(),
            "replace": true,
            "sockets": sockets::numbers(&self.sockets),
        });
        let taken: Result<SnapshotReport> = on_own_thread(move || snapd.post("/v1/snapshots", &request)).await;
        match taken {
            Ok(report) => {
                tracing::info!(
                    app = self.name(),
                    micros = report.total_micros,
                    bytes = report.memory_bytes,
                    "asleep"
                );
                self.meter().slept();
                self.prepare();
                self.status.send_modify(|status| status.counts.sleeps += 1);
                match suspended {
                    true => {
                        self.suspended(true)?;
                        Ok(Next::Suspended)
                    }
                    false => Ok(Next::Wait),
                }
            }
            Err(error) => {
                tracing::info!(app = self.name(), %error, "goes on");
                self.meter().refused();
                self.status.send_modify(|status| status.counts.sleeps_refused += 1);
                match self.running_app() {
                    Ok(_) => Ok(Next::Run(Some(error.to_string()))),
                    Err(_) => self.ended().await,
                }
            }
        }
    }

    /// Has its appshot at hand for who comes next, and an instance. It is no matter where that fails.
    fn prepare(&self) {
        let restored = self.node.restored.clone();
        let request = json!({ "appshot": self.name(), "instance": true });
        std::thread::spawn(move || restored.post::<Value>("/v1/prepare", &request));
    }

    fn suspended(&mut self, suspended: bool) -> Result<()> {
        self.deployment.suspended = suspended;
        self.node.save(&self.deployment)
    }

    /// Until somebody comes.
    async fn wait(&mut self) -> Result<Next> {
        self.turn(State::Asleep, None);
        let bell = Bell::new(&self.sockets)?;
        bell.arm(&self.sockets)?;
        tokio::select! {
            rung = bell.rung() => rung.map(|()| Next::Wake(Cause::Request)),
            order = self.orders.recv() => Ok(match order {
                Some(Order::Suspend) => {
                    self.suspended(true)?;
                    Next::Suspended
                }
                Some(Order::Resume) => Next::Wake(Cause::Operator),
                Some(Order::Remove) | None => Next::Remove,
            }),
        }
    }

    async fn wake(&mut self, cause: Cause) -> Result<Next> {
        self.turn(State::Waking, None);
        let began = Instant::now();
        let restored = self.node.restored.clone();
        let request = json!({
            "appshot": self.name(),
            "name": self.name(),
            "memory": "lazy",
            "cause": cause.name(),
            "sockets": sockets::numbers(&self.sockets),
        });
        let woken: Result<Instance> = on_own_thread(move || restored.post("/v1/instances", &request)).await;
        let woken = woken?;
        self.came_up(cause, "woken", began, woken.phases);
        Ok(Next::Run(None))
    }

    /// Until it is resumed.
    async fn rest(&mut self) -> Result<Next> {
        self.turn(State::Suspended, None);
        loop {
            match self.orders.recv().await {
                Some(Order::Suspend) => {}
                Some(Order::Resume) => {
                    self.suspended(false)?;
                    return Ok(Next::Wait);
                }
                Some(Order::Remove) | None => return Ok(Next::Remove),
            }
        }
    }

    /// Tries again after a while.
    async fn back_off(&mut self, error: &Error) -> Result<Next> {
        tracing::warn!(app = self.name(), kind = ?error.kind, %error, "failed");
        self.meter().failed();
        self.status.send_modify(|status| status.counts.failures += 1);
        self.turn(State::Failed, Some(error.to_string()));
        let pause = BACK_OFF * 2u32.saturating_pow(self.failures.min(10));
        self.failures += 1;
        tokio::select! {
            () = tokio::time::sleep(pause.min(BACK_OFF_MAX)) => {}
            order = self.orders.recv() => match order {
                Some(Order::Remove) | None => return Ok(Next::Remove),
                Some(Order::Suspend | Order::Resume) => {}
            },
        }
        Ok(match (self.running_app(), self.appshot()) {
            (Ok(_), _) => Next::Run(None),
            (Err(_), Some(_)) => Next::Wake(Cause::Recovery),
            (Err(_), None) => Next::Start,
        })
    }

    /// Ends the app and forgets it, with its appshot.
    async fn remove(&mut self) -> Result<()> {
        self.turn(State::Removing, None);
        self.sockets.clear();
        let (node, name) = (self.node.clone(), self.name().to_owned());
        on_own_thread(move || {
            if let Some(app) = node.store.find(&name)? {
                if app.alive() {
                    ending::kill_all(&node.store, &app)?;
                }
                let _busy = node.store.wait_lock(&name)?;
                node.store.remove(&name)?;
                node.store.remove_log(&name)?;
            }
            match node.store.remove_appshot(&name) {
                Err(error) if error.kind != Kind::NotFound => return Err(error),
                _ => node.keeper.forget(&name)?,
            }
            node.forget(&name)
        })
        .await
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// What an app takes of a processor.
struct Work {
    at: Instant,
    cpu_ns: Option<u64>,
}

impl Work {
    fn of(app: &App) -> Work {
        let group = app.cgroup.as_deref();
        Work {
            at: Instant::now(),
            cpu_ns: group.and_then(|group| libsnap::cgroup::cpu_ns(group).ok()),
        }
    }

    /// Since the last look, in percent of one; none where that is not known.
    fn share(&mut self, app: &App) -> f64 {
        let now = Work::of(app);
        let before = std::mem::replace(self, now);
        let (Some(before_ns), Some(now_ns)) = (before.cpu_ns, self.cpu_ns) else {
            return 0.0;
        };
        let passed = self.at.duration_since(before.at).as_nanos().max(1);
        now_ns.saturating_sub(before_ns) as f64 * 100.0 / passed as f64
    }
}
