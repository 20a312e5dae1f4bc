//! One task an app: it decides alone what becomes of it (see [`crate::status`]).
//!
//! What takes long runs on threads of its own; orders are taken up in the states that
//! last.

mod alarm;
mod armed;
mod memory;
mod need;
mod running;
mod versions;

use crate::addresses::{self, Network};
use crate::bell::Bell;
use crate::budget::{self, Charge};
use crate::demand::Demand;
use crate::instances::Instances;
use crate::manifest::{Instances as Bounds, Keep, Manifest};
use crate::metrics::Meter;
use crate::node::{Deployment, Node};
use crate::probe;
use crate::scale::Scale;
use crate::sockets::{self, Sockets};
use crate::status::{Activation, Cause, InstanceStatus, Kind, State, Status};
use crate::versions::Switch;
use crate::why::Why;
use armed::{Arming, Came as Comes};
use libsnap::due::Due;
use libsnap::error::{Error, OrFail, Result};
use libsnap::files::held;
use libsnap::image::Appshot;
use libsnap::network::is_network;
use libsnap::store::{App, State as AppState, now_unix_ms};
use libsnap::target::{Instance, Memory, Phase, RunOptions, SnapshotReport, TcpPolicy, Time};
use nodekit::reply::on_own_thread;
use nodekit::start::Start;
use nodekit::traces::{self, Place, Span, SpanKind};
use nodekit::{detach, ending};
use serde_json::{Value, json};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};

/// With more connections it stays awake, as long as they are open.
const CARRIED_MAX: usize = 1000;
/// How often one that starts is.
const LISTENS_YET: Duration = Duration::from_millis(10);
/// How often it is looked whether a woken app has accepted who had come, and how long.
const ACCEPTED_YET: Duration = Duration::from_millis(1);
const ACCEPTS: Duration = Duration::from_secs(2);
/// One that comes up in a network of its own is tried again for so long while its snapshot is refused:
/// what it asks others just then is answered soon.
pub const COMES_UP: Duration = Duration::from_secs(10);
pub const COMES_UP_YET: Duration = Duration::from_millis(100);
/// How long connections may stay open when an app is told to sleep.
const LET_GO: Duration = Duration::from_secs(5);
/// Before a failed one is tried again; doubled each time.
const BACK_OFF: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(60);

/// What an app's owner wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Asleep at once, and again as soon as it is.
    Suspend,
    Resume,
    Remove,
    /// So many instances, until another version says otherwise.
    Scale(Bounds),
    /// Of the node: asleep now where nobody is connected to it, as others need its memory.
    Yield,
}

impl Order {
    /// What the event is called when it is done.
    pub fn name(self) -> &'static str {
        match self {
            Order::Suspend => "suspended",
            Order::Resume => "resumed",
            Order::Remove => "removed",
            Order::Scale(_) => "scaled",
            Order::Yield => "yielded",
        }
    }
}

/// Why its snapshot is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    /// Nobody needs it.
    Idle,
    /// The node needs its memory.
    Pressure,
    /// Its owner has it sleep.
    Operator,
    /// Another version takes over.
    Update,
    /// For further instances; it goes on.
    ScaleOut,
    /// It goes on from there, with the node's sockets for its own.
    Deploy,
}

impl Occasion {
    fn name(self) -> &'static str {
        match self {
            Occasion::Idle => "idle",
            Occasion::Pressure => "pressure",
            Occasion::Operator => "operator",
            Occasion::Update => "update",
            Occasion::ScaleOut => "scale-out",
            Occasion::Deploy => "deploy",
        }
    }
}

/// What comes next.
#[derive(Debug)]
enum Next {
    Start,
    /// And why it is not asleep.
    Run(Option<String>),
    Sleep(Occasion),
    Wait,
    Wake(Cause),
    Suspended,
    /// Another version takes over.
    Switch,
    Failed(Error),
    Remove,
}

/// What has become of a command that was started.
enum Came {
    /// It listens there, and is to sleep now, or not.
    Up(Sockets, bool),
    /// It is to be removed.
    Not,
}

#[derive(Debug)]
pub struct Agent {
    node: Node,
    deployment: Deployment,
    status: watch::Sender<Status>,
    orders: mpsc::Receiver<Order>,
    switches: mpsc::Receiver<Switch>,
    /// The version that is to take over, and who waits for the one that has.
    switching: Option<Switch>,
    told: Option<oneshot::Sender<Result<()>>>,
    /// Held as long as the app is deployed.
    sockets: Vec<OwnedFd>,
    /// Connections that are held while it sleeps.
    carried: Vec<OwnedFd>,
    /// Where its first instance is, asleep or awake, if that has an address of its own.
    network: Option<Network>,
    demand: Arc<Demand>,
    why: Arc<Why>,
    further: Instances,
    scale: Scale,
    /// How the first instance came up, and what it is charged with; none while it sleeps.
    kind: Option<Kind>,
    charge: Option<Charge>,
    /// When no appshot could be taken of it while it went on.
    copy_refused: Option<Instant>,
    /// The timer that it sleeps until, where it does.
    due: Option<Due>,
    /// The same of one that was woken: it may not be due yet.
    awaited: Option<Due>,
    /// Told when one was asked to be parked for it.
    parking: Option<oneshot::Receiver<()>>,
    /// How long its last wake took.
    woken_in: Duration,
    /// Failures one after the other.
    failures: u32,
    /// Snapshots that failed one after the other, though nobody had come.
    refusals: u32,
    /// Since when it runs.
    running: Instant,
    /// What it does just now, for who collects traces; empty in states that last.
    span: Span,
}

impl Agent {
    pub fn new(
        node: Node,
        deployment: Deployment,
        sockets: Vec<OwnedFd>,
        (demand, why): (Arc<Demand>, Arc<Why>),
        (status, orders, switches): (watch::Sender<Status>, mpsc::Receiver<Order>, mpsc::Receiver<Switch>),
    ) -> Agent {
        let (networks, sockets): (Vec<OwnedFd>, Vec<_>) = sockets.into_iter().partition(is_network);
        let (sockets, carried): (Vec<OwnedFd>, _) = sockets.into_iter().partition(sockets::listens);
        let network = networks.into_iter().next().zip(deployment.address);
        demand.listens(&sockets, &node.looks);
        Agent {
            further: Instances::new(node.clone(), deployment.manifest.clone(), deployment.versions.current),
            node,
            deployment,
            status,
            orders,
            switches,
            switching: None,
            told: None,
            sockets,
            carried,
            network: network.map(|(namespace, address)| Network { address, namespace }),
            demand,
            why,
            scale: Scale::default(),
            kind: None,
            charge: None,
            copy_refused: None,
            due: None,
            awaited: None,
            parking: None,
            woken_in: Duration::ZERO,
            failures: 0,
            refusals: 0,
            running: Instant::now(),
            span: Span::default(),
        }
    }

    /// What it has to carry now.
    async fn load(&self) -> usize {
        self.demand.count(&*self.node.looks.look().await)
    }

    fn manifest(&self) -> &Manifest {
        &self.deployment.manifest
    }

    fn name(&self) -> &str {
        &self.deployment.manifest.app
    }

    /// Until the app is removed.
    pub async fn live(mut self) {
        self.notice(None);
        let mut next = self.find().unwrap_or_else(Next::Failed);
        loop {
            if !matches!(next, Next::Switch | Next::Run(_)) {
                // Dropped, they tell that it was given up.
                self.switching = None;
            }
            self.span = self.begins(&next);
            let came = match next {
                Next::Start => self.start().await,
                Next::Run(why) => self.watch(why).await,
                Next::Sleep(occasion) => self.sleep(occasion).await,
                Next::Wait => self.wait().await,
                Next::Wake(cause) => self.wake(cause).await,
                Next::Suspended => self.rest().await,
                Next::Switch => self.switch().await,
                Next::Failed(error) => self.back_off(&error).await,
                Next::Remove => match self.remove().await {
                    Ok(()) => return self.meter().gone(),
                    Err(error) => Ok(Next::Failed(error)),
                },
            };
            self.span.outcome(&came);
            self.span = Span::default();
            next = came.unwrap_or_else(Next::Failed);
        }
    }

    /// The span of what comes and goes; that of a wake belongs to the request which wants it.
    fn begins(&self, next: &Next) -> Span {
        let (name, place, cause) = match next {
            Next::Start => ("start", Place::default(), Some(Cause::Deploy)),
            Next::Wake(cause) => ("wake", self.node.proxy.asked_first(self.name()), Some(*cause)),
            Next::Sleep(_) => ("sleep", Place::default(), None),
            Next::Switch => ("switch", Place::default(), Some(Cause::Update)),
            _ => return Span::default(),
        };
        let mut span = place.begin(SpanKind::Internal, format_args!("{name}"));
        self.describe(&mut span, cause);
        span
    }

    fn describe(&self, span: &mut Span, cause: Option<Cause>) {
        if !traces::wanted() {
            return;
        }
        span.note("appshot.app", self.name().to_owned());
        span.note("appshot.provider", self.manifest().provider.clone());
        span.note("appshot.version", i64::from(self.deployment.versions.current));
        if let Some(cause) = cause {
            span.note("appshot.cause", cause.name());
        }
    }

    /// What there is when this daemon begins.
    fn find(&mut self) -> Result<Next> {
        crate::versions::arrange(&self.node.store, &self.deployment)?;
        crate::versions::tidy(&self.node.store, &self.deployment)?;
        self.further.look_for_all()?;
        let record = self.node.store.find(self.name())?;
        let own = self.manifest().network;
        if let Some(app) = record.filter(App::alive) {
            if own.is_own() && app.from.is_none() {
                // It was just coming up, where nobody can come to it.
                ending::kill_all(&self.node.store, &app)?;
                return Ok(Next::Start);
            }
            tracing::info!(app = app.name, "runs: adopted");
            versions::let_go_on(&app);
            self.carried.clear();
            match Sockets::of(&app) {
                // The keeper has them, as a rule.
                Err(error) if error.kind == libsnap::error::Kind::Refused && !self.sockets.is_empty() => {
                    tracing::warn!(app = app.name, %error, "its sockets are those that were kept");
                    let kept = std::mem::take(&mut self.sockets);
                    self.hold(kept)?;
                }
                // What it has opened in a network of its own is for itself.
                sockets => self.hold(sockets::of_here(sockets?.listening)?)?,
            }
            self.take_up_network()?;
            if own.address && self.network.is_none() {
                // Nobody has kept it, and it is in it.
                self.network = addresses::of(app.root)
                    .zip(addresses::namespace_of(app.root).ok())
                    .map(|(address, namespace)| Network { address, namespace });
                self.keep()?;
            }
            self.kind = Some(app.from.as_ref().map_or(Kind::Started, |_| Kind::Woken));
            return Ok(Next::Run(None));
        }
        match self.appshot() {
            Some(_) if self.further.count() > 0 => {
                if self.sockets.is_empty() {
                    let listening = Sockets::of(&self.further.live[0].app)?.listening;
                    self.hold(sockets::of_here(listening)?)?;
                }
                Ok(Next::Wake(Cause::Recovery))
            }
            Some(_) => {
                self.take_up_network()?;
                // The keeper may be gone too, as after a boot.
                self.hold_all()?;
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
        for socket in &sockets {
            sockets::deepen(socket).or_fail(|| "cannot make room for who comes")?;
        }
        let named = sockets::named(&sockets, &self.manifest().listen)?;
        self.demand.listens(&named, &self.node.looks);
        self.sockets = sockets;
        self.keep()
    }

    /// Has others keep what is held here, should this daemon end.
    fn keep(&self) -> Result<()> {
        let network = self.network.iter().map(|network| &network.namespace);
        let all = sockets::copies(self.sockets.iter().chain(&self.carried).chain(network))?;
        self.node.keeper.keep(self.name(), &all)
    }

    /// The bridge may be another one by now, or there may be none any more.
    fn take_up_network(&mut self) -> Result<()> {
        let Some(network) = &self.network else { return Ok(()) };
        if self.manifest().network.address && !self.node.addresses.attach(network.address)? {
            // Nobody can be reached from it.
            self.network = None;
        }
        Ok(())
    }

    /// Sees to it that there is a network for its first instance, where that is to have an address
    /// of its own, and to no other.
    async fn have_network(&mut self) -> Result<()> {
        match (self.manifest().network.address, &self.network) {
            (true, None) => {}
            (false, Some(_)) => {
                self.network = None;
                return self.keep();
            }
            _ => return Ok(()),
        }
        let (addresses, name) = (self.node.addresses.clone(), self.name().to_owned());
        let had = self.deployment.address;
        let network = on_own_thread(move || addresses.make(&name, had)).await?;
        self.node.addresses.reserve(self.name(), network.address);
        if had != Some(network.address) {
            self.deployment.address = Some(network.address);
            self.node.save(&self.deployment)?;
            self.status.send_modify(|status| status.written(&self.deployment));
        }
        self.network = Some(network);
        self.keep()
    }

    /// What the app gets back when it wakes.
    fn all_held(&self) -> Result<Vec<OwnedFd>> {
        sockets::copies(self.sockets.iter().chain(&self.carried))
    }

    /// Connections that are to be carried through its sleep, as far as that is wanted.
    async fn to_carry(&self, occasion: Occasion) -> Result<Vec<OwnedFd>> {
        let idle = &self.manifest().idle;
        // As it comes up, to be woken at once: those that it has made then it is to have.
        let comes_up = occasion == Occasion::Deploy && self.network.is_some();
        let wanted = |accepted: bool| match accepted {
            true => idle.connections == Keep::Carried,
            false => idle.made == Keep::Carried || comes_up,
        };
        if !(wanted(true) || wanted(false)) || [Occasion::ScaleOut, Occasion::Update].contains(&occasion) {
            return Ok(Vec::new());
        }
        let sockets = Sockets::aside(&self.running_app()?).await?;
        if sockets.outside.len() > CARRIED_MAX {
            return Ok(Vec::new());
        }
        let outside = sockets.outside.into_iter();
        Ok(outside
            .filter_map(|(connection, accepted)| wanted(accepted).then_some(connection))
            .collect())
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
                let told = json!({ "from": status.state, "to": state, "why": why });
                self.node.events.tell("state", &status.app, &status.provider, told);
            }
            (status.state, status.why) = (state, why);
        });
        self.show();
    }

    /// Tells of its instances what there is to tell.
    fn show(&self) {
        let root = self.running_app().ok().map(|app| app.root);
        let (state, since_unix_ms) = {
            let status = self.status.borrow();
            (status.state, status.since_unix_ms)
        };
        let has_one = root.is_some() || [State::Starting, State::Waking].contains(&state);
        let first = has_one.then(|| InstanceStatus {
            name: self.name().to_owned(),
            root,
            state,
            since_unix_ms,
            kind: self.kind.filter(|_| root.is_some()),
            address: self.network.as_ref().map(|network| network.address),
        });
        let instances: Vec<_> = first.into_iter().chain(self.further.statuses()).collect();
        let running = instances.iter().filter(|one| one.root.is_some()).count();
        self.meter().instances(running);
        self.node.proxy.instances(self.name(), running);
        self.status.send_if_modified(|status| {
            let differs = (status.root, &status.instances) != (root, &instances);
            (status.root, status.instances) = (root, instances);
            differs
        });
    }

    fn because(&self, why: String) {
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
        self.release()?;
        if let Some(next) = self.room(State::Starting, budget::UNKNOWN_BYTES).await? {
            return Ok(next);
        }
        if let Some(appshot) = self.manifest().start.appshot.clone() {
            return self.take_over(appshot).await;
        }
        let began = Instant::now();
        self.have_network().await?;
        let version = self.deployment.versions.current;
        let options = RunOptions {
            secrets: self.node.secrets_of(self.manifest())?,
            ..self
                .node
                .run_options(self.manifest(), version, self.network.as_ref())
                .await?
        };
        let start = Start::run(self.node.store.clone(), options);
        let start = start
            .hooked(self.manifest().hooks.clone())?
            .caused(Some(Cause::Deploy.name().to_owned()))?;
        let started = on_own_thread(move || detach::spawn(start)).await?;
        self.turn(State::Starting, None);
        let (sockets, suspended) = match self.until_up(&started.app, began).await {
            Ok(Came::Up(sockets, suspended)) => (sockets, suspended),
            Ok(Came::Not) => return Ok(Next::Remove),
            Err(error) => return self.end_started(started.app, error).await,
        };
        if self.manifest().network.is_own() {
            return match self.turn_outward(&sockets.listening).await {
                Ok(()) if suspended => {
                    self.suspended(true)?;
                    Ok(Next::Suspended)
                }
                Ok(()) => Ok(Next::Wake(Cause::Deploy)),
                Err(error) => self.end_started(started.app, error).await,
            };
        }
        self.hold(sockets.listening)?;
        self.came_up(Cause::Deploy, Kind::Started, began, started.instance.phases);
        self.copy().await;
        Ok(match suspended {
            true => Next::Sleep(Occasion::Operator),
            false => Next::Run(None),
        })
    }

    /// Waits until it is up. That may take long, and orders are taken up meanwhile.
    async fn until_up(&mut self, app: &App, began: Instant) -> Result<Came> {
        let manifest = self.manifest().clone();
        let up = probe::up(app, &manifest, began);
        tokio::pin!(up);
        let mut suspended = false;
        loop {
            tokio::select! {
                up = &mut up => return Ok(Came::Up(up?, suspended)),
                order = self.orders.recv() => match order {
                    Some(Order::Remove) | None => return Ok(Came::Not),
                    Some(Order::Suspend) => suspended = true,
                    Some(Order::Resume) => suspended = false,
                    Some(Order::Scale(bounds)) => self.rescale(bounds)?,
                    Some(Order::Yield) => self.node.budget.stays(self.name(), true),
                },
            }
        }
    }

    /// Of no use: it is started again later.
    async fn end_started(&self, app: App, error: Error) -> Result<Next> {
        let store = self.node.store.clone();
        // It may have ended.
        let _ = on_own_thread(move || ending::kill_all(&store, &app)).await;
        Err(error)
    }

    /// Nobody can come to it where it has come up: it listens in a network that is its own. It
    /// gets sockets of the node instead.
    async fn turn_outward(&mut self, listening: &[OwnedFd]) -> Result<()> {
        // The node would be reached at more addresses than was said.
        let names = sockets::addresses(listening);
        if let Some(first) = sockets::first_missing(&names, &self.manifest().listen, true) {
            return Err(Error::failed(format!("app {} does not come up", self.name()))
                .because(format!("it does not listen on {first}, but on more than that"))
                .fix("have the [[listen]] of an app with a network of its own say just where it listens, such as 0.0.0.0:8080"));
        }
        let (had, began) = (self.measure().await, Instant::now());
        let report = loop {
            match self.snapshot(Occasion::Deploy).await {
                Err(error) if error.kind == libsnap::error::Kind::Refused && began.elapsed() < COMES_UP => {
                    tracing::debug!(app = self.name(), %error, "not yet");
                    tokio::time::sleep(COMES_UP_YET).await;
                }
                taken => break taken?,
            }
        };
        self.fell_asleep(&report, had)?;
        self.hold_all()
    }

    /// It begins with an appshot that is there already, as if it had fallen asleep.
    async fn take_over(&mut self, appshot: String) -> Result<Next> {
        let (store, name) = (self.node.store.clone(), self.name().to_owned());
        let manifest = self.manifest().clone();
        on_own_thread(move || crate::versions::copy(&store, &appshot, &name, &manifest)).await?;
        self.hold_all()?;
        self.prepare();
        Ok(match self.manifest().instances.min {
            0 => Next::Wait,
            _ => Next::Wake(Cause::Deploy),
        })
    }

    /// Of an app that sleeps: as its appshot has them, where nobody has kept them.
    fn hold_all(&mut self) -> Result<()> {
        let shot = Appshot::open_unverified_memory(&self.node.store.appshot_path(self.name()))?;
        self.carried = held::carried(&shot.manifest, std::mem::take(&mut self.carried));
        let sockets = held::complete(&shot.manifest, &self.sockets, |name| self.manifest().opens(name))?;
        self.hold(sockets)
    }

    fn came_up(&mut self, cause: Cause, kind: Kind, began: Instant, phases: Vec<Phase>) {
        self.demand.needed();
        self.why.begin();
        self.scale.begin();
        self.awaited = self.due.take();
        (self.running, self.kind) = (Instant::now(), Some(kind));
        let span = std::mem::take(&mut self.span);
        let activation = self.activation(span, cause, kind, began, phases);
        self.status.send_modify(|status| {
            match kind {
                Kind::Started => status.counts.starts += 1,
                _ => status.counts.wakes += 1,
            }
            status.last = Some(activation);
        });
    }

    fn activation(&self, mut span: Span, cause: Cause, kind: Kind, began: Instant, phases: Vec<Phase>) -> Activation {
        let (total_micros, up) = (micros(began), Instant::now());
        self.describe(&mut span, Some(cause));
        span.note("appshot.kind", kind.name());
        let place = span.place();
        span.end_at(up);
        tracing::info!(app = self.name(), ?cause, kind = kind.name(), total_micros, "up");
        let activation = Activation {
            cause,
            kind,
            unix_ms: now_unix_ms().unwrap_or_default(),
            total_micros,
            phases,
            trace_id: place.trace_id(),
            span: place,
            up: Some(up),
        };
        self.meter().came_up(&activation);
        self.node
            .events
            .tell("up", self.name(), &self.manifest().provider, json!(activation));
        activation
    }

    /// It was put to sleep by somebody else, or has ended by itself.
    async fn ended(&mut self) -> Result<Next> {
        self.charge = None;
        self.further.give_up();
        let (store, name) = (self.node.store.clone(), self.name().to_owned());
        let record = on_own_thread(move || {
            // Who has ended it notes how, holding the lock.
            let _busy = store.wait_lock(&name)?;
            store.find(&name)
        })
        .await?;
        if record.as_ref().is_some_and(|app| app.state() == AppState::Asleep) {
            return Ok(match self.further.count() {
                0 => Next::Wait,
                _ => Next::Wake(Cause::Recovery),
            });
        }
        let exit = record.and_then(|app| app.exit);
        let how = exit.map_or(String::new(), |code| format!(" with {code}"));
        Err(Error::failed(format!("app {} has ended{how}", self.name())))
    }

    /// Takes its snapshot; it goes on where that is refused.
    async fn sleep(&mut self, occasion: Occasion) -> Result<Next> {
        let suspended = occasion == Occasion::Operator;
        self.turn(State::FallingAsleep, None);
        self.let_go(suspended).await;
        let had = self.measure().await;
        match self.snapshot(occasion).await {
            Ok(report) => {
                self.fell_asleep(&report, had)?;
                self.prepare();
                if suspended {
                    self.suspended(true)?;
                    return Ok(Next::Suspended);
                }
                Ok(Next::Wait)
            }
            Err(error) => {
                tracing::info!(app = self.name(), %error, "goes on");
                self.span.fail(error.to_string());
                // Somebody may have come at that moment.
                let asked = self.load().await > 0;
                self.node.budget.stays(self.name(), !asked);
                self.refusals += u32::from(!asked);
                self.meter().refused();
                self.status.send_modify(|status| status.counts.sleeps_refused += 1);
                match self.running_app() {
                    Ok(_) => Ok(Next::Run(Some(error.to_string()))),
                    Err(_) => self.ended().await,
                }
            }
        }
    }

    fn fell_asleep(&mut self, report: &SnapshotReport, had: Option<u64>) -> Result<()> {
        tracing::info!(
            app = self.name(),
            micros = report.total_micros,
            bytes = report.memory_bytes,
            "asleep"
        );
        self.charge = None;
        self.deployment.memory_bytes = had.or(self.deployment.memory_bytes);
        self.meter().slept();
        self.refusals = 0;
        self.status.send_modify(|status| status.counts.sleeps += 1);
        self.node.note(&self.deployment)
    }

    async fn snapshot(&mut self, occasion: Occasion) -> Result<SnapshotReport> {
        let leave_running = occasion == Occasion::ScaleOut;
        self.carried = self.to_carry(occasion).await?;
        if !self.carried.is_empty() {
            // Should this daemon end while the app does.
            self.keep()?;
        }
        let held = sockets::numbers(self.sockets.iter().chain(&self.carried));
        let request = json!({
            "target": self.name(),
            "replace": true,
            "leave_running": leave_running,
            "cause": occasion.name(),
            "sockets": held,
            "tcp": match occasion {
                Occasion::ScaleOut => TcpPolicy::Refuse,
                Occasion::Update => self.manifest().idle.tcp(false),
                _ => self.manifest().idle.tcp(true),
            },
        });
        let place = self.span.place();
        let taken: Result<SnapshotReport> = self.node.snapd.post_async("/v1/snapshots", &request, &place).await;
        if !self.carried.is_empty() {
            let carried = std::mem::take(&mut self.carried);
            let shot = taken
                .as_ref()
                .ok()
                .map(|report| Appshot::open_unverified_memory(&report.appshot));
            if let Some(Ok(shot)) = shot {
                self.carried = held::carried(&shot.manifest, carried);
            }
            self.keep()?;
        }
        taken
    }

    /// Connections are the app's alone: were they held here, nobody would hear that it closes one.
    pub(super) fn release(&mut self) -> Result<()> {
        if self.carried.is_empty() {
            return Ok(());
        }
        self.carried.clear();
        self.keep()
    }

    /// Has an appshot to make further instances of, where it may have some. It goes on
    /// where that is refused, and is asked for one again later.
    async fn copy(&mut self) -> bool {
        if self.manifest().instances.max == 1 || self.appshot().is_some() {
            return true;
        }
        if self.copy_refused.is_some_and(|at| at.elapsed() < BACK_OFF_MAX) {
            return false;
        }
        match self.snapshot(Occasion::ScaleOut).await {
            Ok(_) => true,
            Err(error) => {
                self.copy_refused = Some(Instant::now());
                tracing::info!(app = self.name(), %error, "has no appshot for further instances yet");
                false
            }
        }
    }

    /// Connections that the proxy only keeps are no reason to refuse a snapshot. Where its owner
    /// has it sleep, requests under way have a while to end.
    async fn let_go(&self, ordered: bool) {
        self.node.proxy.release(self.name(), ordered);
        let (begin, app) = (Instant::now(), self.running_app());
        let open = || {
            let sockets = Sockets::of(app.as_ref().ok()?).ok()?;
            (self.kept(&sockets) != (0, 0)).then_some(())
        };
        while ordered && begin.elapsed() < LET_GO && open().is_some() {
            tokio::time::sleep(LISTENS_YET).await;
        }
    }

    /// Has its appshot at hand for who comes next, and an instance, where the node has room
    /// for that. It is no matter where that fails.
    fn prepare(&mut self) {
        self.parking = None;
        let bytes = self.deployment.memory_bytes.unwrap_or(budget::UNKNOWN_BYTES);
        // What finds places of its own is made for one instance.
        if !self.manifest().place.is_empty() {
            return;
        }
        let Some(coming) = self.node.spare(bytes) else {
            return;
        };
        let (node, mut request) = (self.node.clone(), self.likeness());
        request["instance"] = json!(true);
        let (told, parking) = oneshot::channel();
        self.parking = Some(parking);
        std::thread::spawn(move || {
            let asked = node.restored.post::<Value>("/v1/prepare", &request);
            node.is_parked(coming);
            asked.is_ok_and(|_| told.send(()).is_ok())
        });
    }

    /// How long nobody has to need it before it sleeps: longer where that was refused.
    fn patience(&self) -> Duration {
        let usual = self.manifest().idle.timeout.0;
        let longer = usual.saturating_mul(2u32.saturating_pow(self.refusals));
        longer.min(BACK_OFF_MAX).max(usual)
    }

    fn suspended(&mut self, suspended: bool) -> Result<()> {
        self.deployment.suspended = suspended;
        self.node.save(&self.deployment)
    }

    /// Its owner has it have so many instances.
    fn rescale(&mut self, bounds: Bounds) -> Result<()> {
        let before = self.deployment.clone();
        self.deployment.scale(bounds);
        if let Err(error) = self.node.save(&self.deployment) {
            self.deployment = before;
            return Err(error);
        }
        self.further.scale(self.deployment.manifest.clone());
        self.node.takes_over(&self.deployment, false);
        self.status.send_modify(|status| status.written(&self.deployment));
        Ok(())
    }

    /// Until somebody comes, or it is time.
    async fn wait(&mut self) -> Result<Next> {
        self.charge = None;
        self.turn(State::Asleep, None);
        if self.manifest().instances.min > 0 {
            return Ok(Next::Wake(Cause::Recovery));
        }
        if self.sockets.is_empty() {
            self.hold_all()?;
        }
        let held = self.all_held()?;
        let bell = Bell::new(&held)?;
        bell.arm(&held)?;
        let alarm = self.alarm().await;
        tokio::pin!(alarm);
        let mut arming = self.arming();
        let woken = loop {
            tokio::select! {
                rung = bell.rung(), if !arming.is_armed() => break rung.map(|()| Next::Wake(Cause::Request)),
                came = arming.next() => match came {
                    Comes::Parked(true) => {
                        arming = self.arm().await;
                        if arming.is_armed() {
                            bell.disarm(&held)?;
                        }
                    }
                    Comes::Parked(false) => arming = Arming::Not,
                    Comes::Up(Ok(instance)) => {
                        arming = Arming::Not;
                        break self.came_up_armed(*instance);
                    }
                    Comes::Up(Err(error)) => {
                        tracing::debug!(app = self.name(), %error, "does not come up by itself");
                        arming = Arming::Not;
                        bell.arm(&held)?;
                    }
                },
                () = self.node.limited.notified(), if arming.is_armed() => {
                    match std::mem::replace(&mut arming, Arming::Not).call_off().await {
                        Some(instance) => break self.came_up_armed(instance),
                        None => bell.arm(&held)?,
                    }
                }
                cause = &mut alarm => break Ok(Next::Wake(cause)),
                Some(switch) = self.switches.recv() => {
                    self.switching = Some(switch);
                    break Ok(Next::Switch);
                }
                order = self.orders.recv() => match order {
                    Some(Order::Suspend) => break self.suspended(true).map(|()| Next::Suspended),
                    Some(Order::Resume) => break Ok(Next::Wake(Cause::Operator)),
                    Some(Order::Scale(bounds)) => match self.rescale(bounds) {
                        Ok(()) if bounds.min == 0 => {}
                        result => break result.map(|()| Next::Wake(Cause::Operator)),
                    },
                    Some(Order::Yield) => {}
                    Some(Order::Remove) | None => break Ok(Next::Remove),
                },
            }
        };
        self.why.wakers(Vec::new());
        match arming.call_off().await {
            Some(instance) => self.nevertheless(instance, woken),
            None => woken,
        }
    }

    async fn wake(&mut self, cause: Cause) -> Result<Next> {
        let began = Instant::now();
        self.demand.needed();
        let bytes = self.deployment.memory_bytes.unwrap_or(budget::UNKNOWN_BYTES);
        if let Some(next) = self.room(State::Waking, bytes).await? {
            return Ok(next);
        }
        let request = match self.request(cause).await {
            Err(error) if self.deployment.versions.untried => return self.fall_back(error).await,
            request => request?,
        };
        let (restored, place) = (&self.node.restored, self.span.place());
        let told = async {
            // That it wakes is told once the request is on its way: telling takes as long as a restore.
            tokio::task::yield_now().await;
            self.turn(State::Waking, None);
        };
        let (woken, ()) = tokio::join!(restored.post_async("/v1/instances", &request, &place), told);
        let woken: Instance = match woken {
            // Nobody is there to restore anything.
            Err(error) if error.kind == libsnap::error::Kind::Unavailable => return Err(error),
            Err(error) if self.deployment.versions.untried => return self.fall_back(error).await,
            woken => woken?,
        };
        self.woken(cause, began, woken)
    }

    fn woken(&mut self, cause: Cause, began: Instant, instance: Instance) -> Result<Next> {
        self.woken_in = began.elapsed();
        self.release()?;
        self.came_up(cause, Kind::Woken, began, instance.phases);
        self.follow_accept(cause)?;
        self.tried()?;
        Ok(Next::Run(None))
    }

    /// What brings its first instance up.
    async fn request(&mut self, cause: Cause) -> Result<Value> {
        if self.sockets.is_empty() {
            self.hold_all()?;
        }
        let version = self.deployment.versions.current;
        self.have_network().await?;
        let address = self.network.as_ref().map(|network| network.address);
        let (identity, binds) = self.node.own_of(self.manifest(), (self.name(), address), version)?;
        let mut request = self.likeness();
        let own = json!({
            "name": self.name(),
            "netns": self.network.as_ref().map(|network| network.namespace.as_raw_fd()),
            // Of one that was never up all is verified before it runs.
            "memory": if self.deployment.versions.untried { Memory::Eager } else { Memory::Lazy },
            "identity": identity,
            "binds": binds,
            "hooks": self.manifest().hooks,
            "limits": libsnap::cgroup::Limits::from(self.manifest().limits),
            "cause": cause.name(),
            "sockets": sockets::numbers(self.sockets.iter().chain(&self.carried)),
            // What waits for a timer has to see it coming.
            "time": if self.due.is_some() { Time::Passes } else { Time::Stands },
        });
        if let (Some(request), Value::Object(own)) = (request.as_object_mut(), own) {
            request.extend(own);
        }
        Ok(request)
    }

    /// Whom the app answers itself we do not see: how long it took until nobody waited at its
    /// sockets any more belongs to the trace of the wake.
    fn follow_accept(&self, cause: Cause) -> Result<()> {
        let (place, up) = match &self.status.borrow().last {
            Some(woken) if cause == Cause::Request && woken.span.is_known() => (woken.span.clone(), woken.up),
            _ => return Ok(()),
        };
        let up = up.unwrap_or_else(Instant::now);
        let mut span = place.begin_at(SpanKind::Internal, format_args!("accept"), up);
        let sockets = sockets::copies(&self.sockets)?;
        tokio::spawn(async move {
            let begin = Instant::now();
            while sockets::somebody_waits(&sockets) {
                if begin.elapsed() > ACCEPTS {
                    return span.fail("somebody waits still");
                }
                tokio::time::sleep(ACCEPTED_YET).await;
            }
        });
        Ok(())
    }

    /// Until it is resumed.
    async fn rest(&mut self) -> Result<Next> {
        self.charge = None;
        self.turn(State::Suspended, None);
        loop {
            let order = tokio::select! {
                order = self.orders.recv() => order,
                Some(switch) = self.switches.recv() => {
                    self.switching = Some(switch);
                    return Ok(Next::Switch);
                }
            };
            match order {
                Some(Order::Suspend | Order::Yield) => {}
                Some(Order::Scale(bounds)) => self.rescale(bounds)?,
                Some(Order::Resume) => {
                    self.suspended(false)?;
                    return Ok(match self.manifest().instances.min {
                        0 => Next::Wait,
                        _ => Next::Wake(Cause::Operator),
                    });
                }
                Some(Order::Remove) | None => return Ok(Next::Remove),
            }
        }
    }

    /// Tries again after a while.
    async fn back_off(&mut self, error: &Error) -> Result<Next> {
        tracing::warn!(app = self.name(), kind = ?error.kind, %error, "failed");
        if self.running_app().is_err() {
            self.charge = None;
        }
        self.meter().failed();
        self.status.send_modify(|status| status.counts.failures += 1);
        self.turn(State::Failed, Some(error.to_string()));
        let pause = BACK_OFF * 2u32.saturating_pow(self.failures.min(10));
        self.failures += 1;
        tokio::select! {
            () = tokio::time::sleep(pause.min(BACK_OFF_MAX)) => {}
            order = self.orders.recv() => match order {
                Some(Order::Remove) | None => return Ok(Next::Remove),
                Some(Order::Scale(bounds)) => self.rescale(bounds)?,
                Some(Order::Suspend | Order::Resume | Order::Yield) => {}
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
        self.carried.clear();
        self.charge = None;
        self.further.remove().await?;
        let (node, name) = (self.node.clone(), self.name().to_owned());
        let mut deployment = self.deployment.clone();
        on_own_thread(move || {
            if let Some(app) = node.store.find(&name)? {
                if app.alive() {
                    ending::kill_all(&node.store, &app)?;
                }
                let _busy = node.store.wait_lock(&name)?;
                node.store.remove(&name)?;
            }
            // Who has the name next is not to read what this one has written.
            node.store.remove_log(&name)?;
            deployment.versions.kept.clear();
            crate::versions::tidy(&node.store, &deployment)?;
            crate::files::forget_logs(&node.store, &deployment.manifest)?;
            crate::archives::tidy(&node.store, &name, None)?;
            match node.store.remove_appshot(&name) {
                Err(error) if error.kind != libsnap::error::Kind::NotFound => return Err(error),
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
