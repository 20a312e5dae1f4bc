//! What `restored` answers; `openapi.json` describes it.

use crate::instances::Instances;
use crate::occasion::Occasion;
use crate::pool::{Held, Waiting};
use axum::extract::{ConnectInfo, Path, Query, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use libsnap::cgroup::Limits;
use libsnap::error::{Error, Kind, Result};
use libsnap::store::View;
use libsnap::target::{
    Allow, Bind, Hooks, Identity, Instance, Memory, Network, PidMode, RestoreOptions, RevertReport, Stdio, Time,
};
use nodekit::ending;
use nodekit::peer::Peer;
use nodekit::reply::{self, Body, Failure, Reply, on_own_thread};
use nodekit::start::Start;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

pub fn router(instances: Instances) -> Router {
    let routes = Router::new()
        .route("/v1/instances", post(create).get(list))
        .route("/v1/clones", post(clone))
        .route("/v1/prepare", post(prepare).get(prepared))
        .route("/v1/memory", get(memory))
        .route("/v1/memory/give-up", post(give_up))
        .route("/v1/instances/{name}", get(show).delete(remove))
        .route("/v1/instances/{name}/revert", post(revert));
    reply::complete(routes, "restored", include_str!("../openapi.json")).with_state(instances)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct InstanceRequest {
    /// Name of an appshot in the store, or an absolute path.
    appshot: String,
    name: Option<String>,
    #[serde(default)]
    pids: PidMode,
    #[serde(default = "lazy")]
    memory: Memory,
    #[serde(default)]
    network: Network,
    /// A network namespace to be in instead: number of a descriptor of the caller.
    netns: Option<i32>,
    #[serde(default)]
    identity: Identity,
    #[serde(default)]
    limits: Limits,
    /// What it finds at another place than others do.
    #[serde(default)]
    binds: Vec<Bind>,
    #[serde(default)]
    allow: Allow,
    /// What the app is told, beside what its owner declared.
    #[serde(default)]
    hooks: Hooks,
    /// Listening sockets that it gets back: numbers of descriptors of the caller.
    #[serde(default)]
    sockets: Vec<i32>,
    /// It can be reverted in place, and shares what it does not touch with the appshot.
    #[serde(default)]
    revertible: bool,
    /// Files are opened with the app's own rights.
    #[serde(default)]
    as_itself: bool,
    /// Connections that would go on with their peers come back as closed by these.
    #[serde(default)]
    tcp_close: bool,
    /// Why it is wanted, one word; kept in the record for who meters.
    cause: Option<String>,
    /// What its clocks make of the time since its snapshot.
    #[serde(default)]
    time: Time,
    /// It comes up once one of these can be read, of what is parked: numbers of descriptors of
    /// the caller.
    #[serde(default)]
    when: Vec<i32>,
    /// But not once this can.
    unless: Option<i32>,
}

fn lazy() -> Memory {
    Memory::Lazy
}

impl InstanceRequest {
    /// What it is to wait for, if that is said.
    fn occasion(&self, peer: Peer) -> Result<Option<Occasion>> {
        let unless = peer.descriptors(self.unless.as_slice())?.pop();
        match (&self.when[..], unless) {
            ([], None) => Ok(None),
            ([], Some(_)) => Err(Error::new(Kind::Usage, "there is no occasion that could be called off")
                .fix("say when it is to come up (\"when\"), or leave out \"unless\"")),
            (when, unless) => Occasion::new(&peer.descriptors(when)?, unless).map(Some),
        }
    }

    fn start(self, instances: &Instances, peer: Peer) -> Result<Start> {
        let held = peer.descriptors(&self.sockets)?;
        let joins = peer.descriptors(self.netns.as_slice())?.pop();
        let options = RestoreOptions {
            name: self.name,
            pids: self.pids,
            memory: if self.revertible { Memory::Shared } else { self.memory },
            network: self.network,
            joins,
            identity: self.identity,
            limits: self.limits,
            binds: self.binds,
            revertible: self.revertible,
            as_itself: self.as_itself,
            tcp_close: self.tcp_close,
            time: self.time,
            stdio: Stdio::default(),
            allow: self.allow,
            held,
            ..RestoreOptions::default()
        };
        if self.appshot.contains('/') && !self.appshot.starts_with('/') {
            return Err(Error::new(Kind::Usage, format!("path {} is relative", self.appshot))
                .because("the daemon's working directory is not yours"));
        }
        Start::restore(instances.store.clone(), &self.appshot, options)?
            .hooked(self.hooks)?
            .caused(self.cause)
    }
}

async fn create(
    State(instances): State<Instances>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<InstanceRequest>,
) -> Reply<Instance> {
    let occasion = request.occasion(peer)?;
    let start = request.start(&instances, peer)?;
    Ok(Json(match occasion {
        None => instances.bring_up(start).await?,
        Some(occasion) => instances.bring_up_at(occasion, start).await?,
    }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CloneRequest {
    /// Name of an appshot in the store, or an absolute path.
    appshot: String,
    /// How many.
    #[serde(default = "one")]
    count: usize,
    /// The clones are NAME-1, NAME-2 and so on; the appshot's name by default.
    name: Option<String>,
    #[serde(default = "auto")]
    network: Network,
    /// Values for each of them.
    #[serde(default)]
    vars: BTreeMap<String, String>,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    allow: Allow,
    /// What each is told, beside what its owner declared.
    #[serde(default)]
    hooks: Hooks,
    /// None where they would draw the same random numbers, as far as can be told.
    #[serde(default)]
    strict: bool,
    /// Listening sockets that all of them get: numbers of descriptors of the caller.
    #[serde(default)]
    sockets: Vec<i32>,
    /// Each can be reverted in place.
    #[serde(default)]
    revertible: bool,
    /// Files are opened with the app's own rights.
    #[serde(default)]
    as_itself: bool,
    /// Connections that would go on with their peers come back as closed by these.
    #[serde(default)]
    tcp_close: bool,
    /// Why it is wanted, one word; kept in the record for who meters.
    cause: Option<String>,
}

/// Two cannot have the same port.
fn auto() -> Network {
    Network::Auto
}

fn one() -> usize {
    1
}

/// Clones at once, at most.
const CLONES_MAX: usize = 10_000;

impl CloneRequest {
    fn starts(self, instances: &Instances, peer: Peer) -> Result<Vec<Start>> {
        if !(1..=CLONES_MAX).contains(&self.count) {
            return Err(
                Error::new(Kind::Usage, format!("{} clones are not possible", self.count))
                    .because(format!("from 1 to {CLONES_MAX} can be made at once")),
            );
        }
        let request = InstanceRequest {
            appshot: self.appshot,
            name: self.name,
            pids: PidMode::New,
            memory: Memory::Shared,
            network: self.network,
            netns: None,
            identity: Identity {
                renewed: true,
                vars: self.vars,
                ..Identity::default()
            },
            limits: self.limits,
            binds: Vec::new(),
            allow: self.allow,
            hooks: self.hooks,
            sockets: self.sockets,
            revertible: self.revertible,
            as_itself: self.as_itself,
            tcp_close: self.tcp_close,
            cause: self.cause,
            time: Time::Stands,
            when: Vec::new(),
            unless: None,
        };
        let first = request.start(instances, peer)?;
        if self.strict {
            unlike(&first)?;
        }
        let numbered = (1..).map(|number| format!("{}-{number}", first.name));
        // One after the other: to look at all apps would take longer than a clone.
        let free = numbered.filter(|name| !matches!(instances.store.find(name), Ok(Some(_))));
        Ok(free.take(self.count).map(|name| first.named(name)).collect())
    }
}

/// Refuses clones that would share random state.
fn unlike(first: &Start) -> Result<()> {
    let shared = first.shared_randomness()?;
    if shared.is_empty() {
        return Ok(());
    }
    let mut error = Error::refused(format!(
        "cannot clone {}: its clones would be too much alike",
        first.name
    ))
    .state("nothing was started");
    error.refusals = shared;
    Err(error)
}

async fn clone(
    State(instances): State<Instances>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<CloneRequest>,
) -> Reply<Vec<Instance>> {
    let starts = match request.strict {
        false => request.starts(&instances, peer)?,
        // Looks into files.
        true => {
            let instances = instances.clone();
            on_own_thread(move || request.starts(&instances, peer)).await?
        }
    };
    Ok(Json(instances.clone_all(starts).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrepareRequest {
    /// Name of an appshot in the store, or an absolute path.
    appshot: String,
    #[serde(default = "lazy")]
    memory: Memory,
    #[serde(default)]
    network: Network,
    /// An instance waits, too, for who restores it as this says and as is usual.
    #[serde(default)]
    instance: bool,
    /// The answer comes when it does, or is not to.
    #[serde(default)]
    ready: bool,
    /// It is restored so.
    #[serde(default)]
    as_itself: bool,
}

/// Reads and verifies now what the next restore would have to.
async fn prepare(State(instances): State<Instances>, Body(request): Body<PrepareRequest>) -> Reply<Prepared> {
    let path = instances.store.resolve_appshot(&request.appshot)?;
    let options = RestoreOptions {
        memory: request.memory,
        network: request.network,
        as_itself: request.as_itself,
        ..RestoreOptions::default()
    };
    let (asked, of, way) = (instances.clone(), path.clone(), options.clone());
    on_own_thread(move || asked.prepare(&of, &way, request.instance)).await?;
    Ok(Json(Prepared {
        appshot: request.appshot,
        ready: request.ready && instances.is_parked(&path, &options).await,
    }))
}

#[derive(Debug, Serialize)]
struct Prepared {
    appshot: String,
    /// It was waited for, and waits.
    ready: bool,
}

async fn prepared(State(instances): State<Instances>) -> Json<Vec<Waiting>> {
    Json(instances.prepared())
}

async fn memory(State(instances): State<Instances>) -> Reply<Held> {
    Ok(Json(on_own_thread(move || Ok(instances.memory())).await?))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GiveUp {
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct GivenUp {
    bytes: u64,
}

/// Somebody else needs the memory of what waits.
async fn give_up(State(instances): State<Instances>, Body(request): Body<GiveUp>) -> Reply<GivenUp> {
    let bytes = on_own_thread(move || Ok(instances.give_up(request.bytes))).await?;
    Ok(Json(GivenUp { bytes }))
}

async fn list(State(instances): State<Instances>) -> Reply<Vec<View>> {
    Ok(Json(instances.list()?))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Awaited {
    Exited,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShowQuery {
    wait: Option<Awaited>,
}

/// With `?wait=exited` the answer comes when the instance has ended, or when
/// the daemon stops: its state tells which.
async fn show(
    State(instances): State<Instances>,
    Path(name): Path<String>,
    query: Result<Query<ShowQuery>, axum::extract::rejection::QueryRejection>,
) -> Reply<View> {
    let Query(query) = query.map_err(|e| Failure(Error::new(Kind::Usage, e.body_text())))?;
    if let Some(Awaited::Exited) = query.wait {
        instances.wait_exited(&name).await?;
    }
    Ok(Json(instances.view(&name)?))
}

/// Puts the instance back to its appshot.
async fn revert(State(instances): State<Instances>, Path(name): Path<String>) -> Reply<RevertReport> {
    Ok(Json(instances.revert(&name).await?))
}

/// Ends the instance at once, and answers how it ended.
async fn remove(State(instances): State<Instances>, Path(name): Path<String>) -> Reply<View> {
    let app = instances.app(&name)?;
    let store = instances.store.clone();
    on_own_thread(move || ending::kill_all(&store, &app)).await?;
    tracing::info!(app = name, "killed");
    Ok(Json(instances.view(&name)?))
}
