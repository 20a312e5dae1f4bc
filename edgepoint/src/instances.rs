//! Further instances of an app: clones of its appshot beside the first one.
//!
//! ```text
//!                                   ┌──> web     the first: started or woken; only it falls asleep
//!   client ──> listening socket ────┼──> web.2   a clone: comes when there is more than
//!                                   └──> web.3   the others may carry, ends when there is less
//! ```
//!
//! All accept from the same socket, so none can be told to accept no more. One that is to
//! end is stopped instead, and looked at while it can accept nothing:
//!
//! ```text
//!   stop ──> has it accepted anything that is open? ── no ──> kill
//!                            │ yes
//!                            └──> go on, and accept nothing (libsnap::drain), for a moment
//!                                        └── all are closed ──> kill
//!                                        └── they stay ──> let it go on, and try later
//! ```
//!
//! What it has accepted is a descriptor of it while it stands still: accept(2) does not end
//! in between. Or it is under way from one of its processes to another, and unread there.
//! One that waits with EPOLLEXCLUSIVE has to be found without a connection, and at a moment
//! in which nobody waits: of whom the kernel has told it alone nobody else would hear.

use crate::addresses;
use crate::budget::Charge;
use crate::manifest::{INSTANCES_MAX, Keep, Manifest};
use crate::node::{Node, Room};
use crate::sockets::{self, Sockets};
use crate::status::{Cause, InstanceStatus, Kind, State};
use crate::work::Work;
use libsnap::drain::{Drain, Shared};
use libsnap::error::{Error, Kind as ErrorKind, OrFail, Result};
use libsnap::holds;
use libsnap::image::Appshot;
use libsnap::restore::{Template, Way};
use libsnap::store::{App, Store, now_unix_ms};
use libsnap::target::{Identity, Instance, Memory, Network, PidMode, Target};
use libsnap::{freeze, survey};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nodekit::reply::on_own_thread;
use nodekit::traces::{Place, Span, SpanKind};
use nodekit::{ending, process};
use serde_json::json;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Instances that are made at the same time.
const AT_A_TIME: usize = 4;
/// After one that could not be made.
const REST: Duration = Duration::from_secs(2);
/// How long one stands still at most for a moment in which nobody waits.
const STILL_MAX: Duration = Duration::from_millis(3);
/// How long one accepts nothing while it does what it has accepted, or is looked at again
/// and again.
const PATIENCE: Duration = Duration::from_millis(500);
const BETWEEN: Duration = Duration::from_millis(5);
/// What one takes of the processors without a connection is seen over this.
const QUIET: Duration = Duration::from_millis(100);
/// After that it is let alone, each time for twice as long.
const ALONE: Duration = Duration::from_secs(1);
const ALONE_MAX: Duration = Duration::from_secs(60);

/// One that runs.
#[derive(Debug)]
pub struct Further {
    pub app: App,
    pub work: Work,
    pub charge: Charge,
    /// Of its own.
    address: Option<Ipv4Addr>,
    since_unix_ms: u64,
    /// It is not asked to end before, and how long that was put off.
    alone: Option<(Instant, Duration)>,
}

/// Those of one app.
#[derive(Debug)]
pub struct Instances {
    node: Node,
    manifest: Manifest,
    version: u32,
    pub live: Vec<Further>,
    /// Being made: name, since when, and what they will be charged with.
    coming: Vec<(String, u64, Charge)>,
    came: JoinSet<(String, Instant, Result<Instance>, Span)>,
    /// None is made before.
    rests: Option<Instant>,
    /// It waits for memory.
    waiting: Option<String>,
}

/// One that came up.
#[derive(Debug)]
pub struct Came {
    pub began: Instant,
    pub instance: Instance,
    pub span: Span,
}

impl Instances {
    pub fn new(node: Node, manifest: Manifest, version: u32) -> Instances {
        Instances {
            node,
            manifest,
            version,
            live: Vec::new(),
            coming: Vec::new(),
            came: JoinSet::new(),
            rests: None,
            waiting: None,
        }
    }

    /// Those that run, and those that come.
    pub fn count(&self) -> usize {
        self.live.len() + self.coming.len()
    }

    /// There may be more of them from now on, or fewer.
    pub fn scale(&mut self, manifest: Manifest) {
        self.manifest = manifest;
    }

    fn names(&self, most: usize) -> impl Iterator<Item = String> {
        (2..=most).map(|number| self.manifest.instance_name(number))
    }

    /// Drops those that have ended, and takes up whoever runs and is not known: made for a
    /// daemon before this one. Their records tell.
    pub fn look(&mut self) -> Result<()> {
        self.look_for(self.manifest.instances.max)
    }

    /// The same, those among them that there may not be any more.
    pub fn look_for_all(&mut self) -> Result<()> {
        self.look_for(INSTANCES_MAX)
    }

    fn look_for(&mut self, most: usize) -> Result<()> {
        self.live.retain(|one| {
            let alive = one.app.alive();
            if !alive {
                tracing::warn!(app = one.app.name, "has ended");
            }
            alive
        });
        let appshot = self.node.store.appshot_path(&self.manifest.app);
        let names: Vec<String> = self.names(most).filter(|name| !self.is_known(name)).collect();
        for name in names {
            let Some(app) = self.node.store.find(&name)? else {
                continue;
            };
            if app.alive() && app.from.as_ref() == Some(&appshot) {
                tracing::info!(app = app.name, "runs: adopted");
                let charge = self.node.budget.charge(&self.manifest.app, &name, 0);
                self.take_up(app, charge);
            }
        }
        Ok(())
    }

    fn is_known(&self, name: &str) -> bool {
        self.live.iter().any(|one| one.app.name == name) || self.coming.iter().any(|(coming, ..)| coming == name)
    }

    fn take_up(&mut self, app: App, charge: Charge) {
        // Whoever was to end it may have been killed while it stood still.
        if let Some(group) = app.cgroup.as_deref().filter(|group| libsnap::cgroup::is_held(group)) {
            let _ = libsnap::cgroup::freeze(group, false);
        }
        self.live.push(Further {
            work: Work::of(&app),
            since_unix_ms: app.started_unix_ms,
            address: match self.manifest.network.address {
                true => addresses::of(app.root),
                false => None,
            },
            alone: None,
            charge,
            app,
        });
        self.live.sort_by_key(|one| (one.app.name.len(), one.app.name.clone()));
    }

    /// Has so many more made, as far as that goes now; each is likely to take so much.
    /// Answers what stands in the way.
    pub fn grow(&mut self, more: usize, bytes: u64, sockets: &[OwnedFd]) -> Result<Option<String>> {
        if self.rests.is_some_and(|until| Instant::now() < until) {
            return Ok(None);
        }
        for _ in 0..more.min(AT_A_TIME.saturating_sub(self.coming.len())) {
            let Some(name) = self.free_name()? else {
                return Ok(Some(
                    "there is no name for a further instance: others have them".to_owned(),
                ));
            };
            let charge = match self.node.room(&self.manifest.app, &name, bytes)? {
                Room::There(charge) => charge,
                Room::Waits(why) => {
                    self.waiting = Some(name);
                    return Ok(Some(format!("a further instance waits {why}")));
                }
            };
            self.waiting = None;
            let now = now_unix_ms().unwrap_or_default();
            self.coming.push((name.clone(), now, charge));
            let (node, manifest) = (self.node.clone(), self.manifest.clone());
            let (sockets, began) = (sockets::numbers(sockets), Instant::now());
            let (named, version) = (name.clone(), self.version);
            // Who waits for it came last.
            let asked = node.proxy.asked_last(&manifest.app);
            let span = asked.begin(SpanKind::Internal, format_args!("clone"));
            let place = span.place();
            let make = on_own_thread(move || make(&node, (&manifest, version), &named, &sockets, &place));
            self.came.spawn(async move { (name, began, make.await, span) });
        }
        Ok(None)
    }

    /// Whether one waits for memory.
    pub fn waits(&self) -> bool {
        self.waiting.is_some()
    }

    /// None is needed.
    pub fn give_up(&mut self) {
        if let Some(name) = self.waiting.take() {
            self.node.budget.give_up(&name);
        }
    }

    fn free_name(&self) -> Result<Option<String>> {
        let store = &self.node.store;
        for name in self
            .names(self.manifest.instances.max)
            .filter(|name| !self.is_known(name))
        {
            if !store.appshot_path(&name).exists() && !store.find(&name)?.is_some_and(|app| app.alive()) {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// Waits for the next one that is made; for ever where none is.
    pub async fn next(&mut self) -> Result<Came> {
        let Some(joined) = self.came.join_next().await else {
            return std::future::pending().await;
        };
        let (name, began, made, mut span) = joined.or_fail(|| "an instance was given up")?;
        let at = self.coming.iter().position(|(coming, ..)| *coming == name);
        let charge = at.map(|at| self.coming.remove(at).2);
        let made = made.and_then(|instance| Ok((self.node.store.get(&name)?, instance)));
        span.outcome(&made);
        match (made, charge) {
            (Ok((app, instance)), Some(charge)) => {
                self.rests = None;
                self.take_up(app, charge);
                Ok(Came { began, instance, span })
            }
            (Err(error), _) => {
                self.rests = Some(Instant::now() + REST);
                Err(error)
            }
            (Ok(_), None) => Err(Error::failed(format!("nobody waits for {name}"))),
        }
    }

    /// Those that were let alone for a while are asked again.
    pub fn hurry(&mut self) {
        self.live.iter_mut().for_each(|one| one.alone = None);
    }

    /// Ends so many of them that nobody needs, the last first. Answers why others stay.
    pub async fn shrink(&mut self, fewer: usize, sockets: &[OwnedFd]) -> Result<Option<String>> {
        let mut left = fewer;
        for at in (0..self.live.len()).rev() {
            let one = &mut self.live[at];
            if left == 0 || one.alone.is_some_and(|(until, _)| Instant::now() < until) {
                continue;
            }
            let (store, app) = (self.node.store.clone(), one.app.clone());
            let sockets = sockets::copies(sockets)?;
            let (name, hold) = (app.name.clone(), self.manifest.idle.hold.0);
            let made = self.manifest.idle.made;
            let floor = Some(self.manifest.idle.cpu).filter(|floor| one.work.last() > *floor);
            // It may be busy with something else, or have ended just now.
            let end = move || match &holds::of(&app, hold)[..] {
                [] => end_unneeded(&store, &app, (&sockets, made), floor),
                held => Ok(Some(format!("it holds itself awake: {}", held.join(", ")))),
            };
            let why = match on_own_thread(end).await {
                Ok(None) => {
                    tracing::info!(app = name, "is not needed any more: ended");
                    self.live.remove(at);
                    left -= 1;
                    continue;
                }
                Ok(Some(needed)) => format!("{name}: {needed}"),
                Err(error) => error.to_string(),
            };
            let pause = one.alone.map_or(ALONE, |(_, pause)| (pause * 2).min(ALONE_MAX));
            one.alone = Some((Instant::now() + pause, pause));
            // The next one later: there may be more to carry meanwhile.
            return Ok(Some(why));
        }
        Ok(None)
    }

    /// Ends all of them, whatever they do, and those of which only a record is left.
    pub async fn remove(&mut self) -> Result<()> {
        self.give_up();
        while !self.coming.is_empty() {
            let _ = self.next().await;
        }
        self.look_for_all()?;
        let ours: Vec<App> = self.live.drain(..).map(|one| one.app).collect();
        let names: Vec<String> = self.names(INSTANCES_MAX).collect();
        let (store, appshot) = (
            self.node.store.clone(),
            self.node.store.appshot_path(&self.manifest.app),
        );
        on_own_thread(move || {
            for app in &ours {
                if app.alive() {
                    ending::kill_all(&store, app)?;
                }
            }
            for name in names {
                if store
                    .find(&name)?
                    .is_some_and(|app| app.from.as_ref() == Some(&appshot))
                {
                    forget(&store, &name)?;
                    store.remove_log(&name)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// For who asks what there is.
    pub fn statuses(&self) -> impl Iterator<Item = InstanceStatus> {
        let live = self.live.iter().map(|one| InstanceStatus {
            name: one.app.name.clone(),
            root: Some(one.app.root),
            state: State::Running,
            since_unix_ms: one.since_unix_ms,
            address: one.address,
            kind: Some(Kind::Cloned),
        });
        let coming = self.coming.iter().map(|(name, since_unix_ms, _)| InstanceStatus {
            name: name.clone(),
            root: None,
            state: State::Waking,
            since_unix_ms: *since_unix_ms,
            address: None,
            kind: Some(Kind::Cloned),
        });
        live.chain(coming)
    }
}

fn make(
    node: &Node,
    (manifest, version): (&Manifest, u32),
    name: &str,
    sockets: &[i32],
    place: &Place,
) -> Result<Instance> {
    let (app, as_itself) = (&manifest.app, manifest.has_own_user());
    let own = match manifest.network.address {
        true => Some(node.addresses.make(name, None)?),
        false => None,
    };
    let address = own.as_ref().map(|own| own.address);
    let (identity, binds) = node.own_of(manifest, (name, address), version)?;
    let request = json!({
        "appshot": app,
        "name": name,
        "memory": memory_of_clones(&node.store.appshot_path(app), manifest)?,
        "network": Network::from(manifest.network),
        "netns": own.as_ref().map(|own| own.namespace.as_raw_fd()),
        "as_itself": as_itself,
        "identity": Identity { renewed: true, ..identity },
        "binds": binds,
        "hooks": manifest.hooks,
        "limits": libsnap::cgroup::Limits::from(manifest.limits),
        "cause": Cause::ScaleOut.name(),
        "sockets": sockets,
    });
    match node.restored.post_below("/v1/instances", &request, place) {
        Err(error) if error.kind == ErrorKind::Conflict => {
            Err(error.state("it is looked for again: it may be one that was made before"))
        }
        made => made,
    }
}

/// Clones share memory where they are forked off a template: then they need restored no
/// more once they run. Others would.
fn memory_of_clones(appshot: &Path, manifest: &Manifest) -> Result<Memory> {
    let way = Way {
        pids: PidMode::New,
        memory: Memory::Shared,
        network: manifest.network.into(),
        renewed: true,
        revertible: false,
        as_itself: manifest.has_own_user(),
        bound: !manifest.place.is_empty(),
        force_vdso_bridge: false,
    };
    let suits = Template::suits(&Appshot::open_unverified_memory(appshot)?, way);
    Ok(if suits { Memory::Shared } else { Memory::Lazy })
}

/// Ends an instance that nobody needs, or answers what it is needed for. One that has
/// worked lately must take less of a processor than this when it has no connections: else
/// the work is its own. The calling thread has to end then.
fn end_unneeded(
    store: &Store,
    app: &App,
    (listening, made): (&[OwnedFd], Keep),
    floor: Option<f64>,
) -> Result<Option<String>> {
    {
        let _busy = store.try_lock(&app.name)?;
        let target = app.target()?;
        let child = process::open_child(app)?;
        let why = match Sockets::of(app)?.exclusive {
            true => kill_at_rest(app, &target, (listening, made))?,
            false => kill_drained(app, &target, (listening, made), floor)?,
        };
        if why.is_some() {
            return Ok(why);
        }
        process::wait(&child, Some(ending::KILL_PATIENCE))?;
    }
    ending::settle(store, app, Some(128 + ending::SIGKILL))?;
    forget(store, &app.name).map(|()| None)
}

/// Kills it at once where it has no connection, or as soon as it has closed those that it
/// has, in which time it accepts none.
fn kill_drained(
    app: &App,
    target: &Target,
    (listening, made): (&[OwnedFd], Keep),
    floor: Option<f64>,
) -> Result<Option<String>> {
    let frozen = freeze::freeze_with(target, &[], freeze::before_unnoted(target)?)?;
    let mut why = needed(&Sockets::of_stopped(app)?, made);
    if why.is_none() && floor.is_none() {
        frozen.kill(target, || ());
        return Ok(None);
    }
    let mut drain = Drain::begin(frozen, shared_ones(listening)?)?;
    // Twice: from one process to another nothing is on its way for so long.
    let (mut idle, mut work) = (0, Work::of(app));
    let drained = drain.until(PATIENCE, || {
        why = needed(&Sockets::of_stopped(app)?, made);
        if why.is_some() {
            (idle, work) = (0, Work::of(app));
            return Ok(false);
        }
        idle += 1;
        let Some(floor) = floor else { return Ok(idle > 1) };
        let share = work.share(app, QUIET);
        why = Some(format!("it works: {share:.1} % of a processor"));
        Ok(work.looks() > 0 && share <= floor)
    })?;
    if !drained {
        return Ok(why);
    }
    process::signal(app, ending::SIGKILL)?;
    drain.ended(ending::KILL_PATIENCE);
    Ok(None)
}

/// Waits for a moment in which it has no connection, and nobody waits for one.
fn kill_at_rest(app: &App, target: &Target, (listening, made): (&[OwnedFd], Keep)) -> Result<Option<String>> {
    let since = Instant::now();
    loop {
        let mut why = needed(&Sockets::of(app)?, made);
        if why.is_none() {
            let frozen = freeze::freeze_with(target, &[], freeze::before_unnoted(target)?)?;
            why = needed(&Sockets::of_stopped(app)?, made);
            while why.is_none() && somebody_waits(listening)? {
                let too_long = frozen.since.elapsed() > STILL_MAX;
                why = too_long.then(|| "somebody waits to be accepted".to_owned());
            }
            if why.is_none() {
                frozen.kill(target, || ());
                return Ok(None);
            }
        }
        if since.elapsed() > PATIENCE {
            return Ok(why);
        }
        std::thread::sleep(BETWEEN);
    }
}

/// Has the first instance accept nothing until it has no connection, and holds it still
/// from then on; answers what it is needed for where that takes too long, and it goes on.
/// One that waits with EPOLLEXCLUSIVE, or has no cgroup, or is told of its snapshot, goes on
/// in any case: a snapshot of it is tried. The calling thread has to end then.
pub fn rest(
    store: &Store,
    app: &App,
    (listening, made): (&[OwnedFd], Keep),
    patience: Duration,
) -> Result<Option<String>> {
    let _busy = store.try_lock(&app.name)?;
    let Some(group) = app.cgroup.as_deref().filter(|_| app.hooks.before_snapshot.is_empty()) else {
        return Ok(None);
    };
    let target = app.target()?;
    if Sockets::of(app)?.exclusive {
        return Ok(None);
    }
    // Held still, it could not come to have the rest of its memory.
    let since = Instant::now();
    survey::await_memory(&target, &|| since.elapsed() > patience)?;
    let frozen = freeze::freeze_with(&target, &[], freeze::before_unnoted(&target)?)?;
    let mut drain = Drain::begin(frozen, shared_ones(listening)?)?;
    let (mut why, mut idle) = (None, 0);
    // Twice: from one process to another nothing is on its way for so long.
    let drained = drain.until(patience, || {
        why = needed(&Sockets::of_stopped(app)?, made);
        idle = if why.is_none() { idle + 1 } else { 0 };
        Ok(idle > 1)
    })?;
    if drained {
        drain.hold(group)?;
    }
    Ok(why)
}

/// Connections that it has made are closed where nothing is under way over them, if its manifest
/// says that of such.
fn needed(sockets: &Sockets, made: Keep) -> Option<String> {
    let idle = if made == Keep::Open { 0 } else { sockets.made_idle };
    match (sockets.connections - idle, sockets.unread) {
        (0, 0) => None,
        (0, _) => Some("its processes have something to tell each other".to_owned()),
        (open, _) => Some(format!("connections are open: {open}")),
    }
}

fn shared_ones(listening: &[OwnedFd]) -> Result<Vec<Shared>> {
    let shared = listening.iter().map(shared).collect::<std::io::Result<_>>();
    shared.or_fail(|| "cannot tell the sockets of the app")
}

fn shared(socket: &OwnedFd) -> std::io::Result<Shared> {
    let flags = OFlag::from_bits_retain(fcntl(socket, FcntlArg::F_GETFL)?);
    Ok(Shared {
        inode: std::fs::File::from(socket.try_clone()?).metadata()?.ino(),
        blocks: !flags.contains(OFlag::O_NONBLOCK),
    })
}

fn somebody_waits(listening: &[OwnedFd]) -> Result<bool> {
    let fds = listening
        .iter()
        .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
    let ready = poll(&mut fds.collect::<Vec<_>>(), PollTimeout::ZERO);
    Ok(ready.or_fail(|| "cannot watch the sockets of the app")? > 0)
}

fn forget(store: &Store, name: &str) -> Result<()> {
    let _busy = store.wait_lock(name)?;
    store.remove(name)
}
