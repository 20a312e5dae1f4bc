//! What `snapd` answers; `openapi.json` describes it.

use crate::series::{self, AllSeries};
use axum::extract::{ConnectInfo, Path, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use libsnap::error::{Error, Kind, Result};
use libsnap::store::{Store, Stored, View};
use libsnap::target::{CheckReport, Hooks, OutsidePolicy, SnapshotOptions, SnapshotReport, TcpPolicy};
use nodekit::jobs::{self, Job, Place, Snapshot};
use nodekit::peer::Peer;
use nodekit::periodic::Series;
use nodekit::reply::{self, Body, Reply, on_own_thread};
use nodekit::start::sensible_cause;
use nodekit::traces::{self, SpanKind};
use nodekit::worker;
use serde::Deserialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

pub fn router(store: Store) -> Router {
    let routes = Router::new()
        .route("/v1/snapshots", post(snapshot))
        .route("/v1/check", post(check))
        .route("/v1/apps", get(apps))
        .route("/v1/apps/{name}", get(app))
        .route("/v1/appshots", get(appshots))
        .route("/v1/appshots/{name}", delete(remove_appshot))
        .route("/v1/series", post(begin_series).get(list_series))
        .route("/v1/series/{name}", delete(end_series));
    let daemon = Daemon {
        store,
        series: AllSeries::default(),
    };
    reply::complete(routes, "snapd", include_str!("../openapi.json")).with_state(daemon)
}

#[derive(Clone, Debug)]
struct Daemon {
    store: Store,
    series: AllSeries,
}

/// Name of an app, or a PID as number or text.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Which {
    Pid(u32),
    Name(String),
}

impl Which {
    fn text(self) -> String {
        match self {
            Which::Pid(pid) => pid.to_string(),
            Which::Name(name) => name,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SnapshotRequest {
    target: Which,
    #[serde(default)]
    leave_running: bool,
    /// The appshot is rehearsed once it is sealed; what came of that is in the report.
    #[serde(default)]
    verify: bool,
    /// Memory is copied while the app runs; by default where it has much.
    precopy: Option<bool>,
    #[serde(default)]
    tcp: TcpPolicy,
    #[serde(default)]
    outside: OutsidePolicy,
    /// An appshot of the same app, by name or path: what it has is not stored again.
    parent: Option<String>,
    /// A new directory instead of the store.
    output: Option<PathBuf>,
    /// Name in the store instead of the app's.
    tag: Option<String>,
    #[serde(default)]
    replace: bool,
    /// Listening sockets of the app that the caller holds, by the caller's numbers: who
    /// waits there to be accepted is not lost.
    #[serde(default)]
    sockets: Vec<i32>,
    /// What the app is told before, beside what its owner declared.
    #[serde(default)]
    hooks: Hooks,
    /// Why it is taken, one word: `idle`, `update` ...; `operator` without it.
    cause: Option<String>,
}

impl SnapshotRequest {
    fn job(self, store: Store, peer: Peer) -> Result<Job> {
        let place = match self.output {
            Some(path) if path.is_relative() => return Err(relative("output", &path)),
            Some(_) if self.tag.is_some() || self.replace => return Err(both()),
            Some(path) => Place::Path(path),
            None => Place::Store {
                tag: self.tag,
                replace: self.replace,
            },
        };
        let parent = self.parent.as_ref().map(|parent| match parent.contains('/') {
            true if !parent.starts_with('/') => Err(relative("parent", parent.as_ref())),
            _ => store.resolve_appshot(parent),
        });
        let options = SnapshotOptions {
            leave_running: self.leave_running,
            verify: self.verify,
            precopy: self.precopy,
            parent: parent.transpose()?,
            tcp: self.tcp,
            outside: self.outside,
            held: peer.descriptors(&self.sockets)?,
            ..SnapshotOptions::default()
        };
        let target = self.target.text();
        Ok(Job::Snapshot(Snapshot {
            store,
            target,
            place,
            options,
            hooks: self.hooks,
            cause: self.cause.map(sensible_cause).transpose()?,
        }))
    }
}

fn relative(what: &str, path: &std::path::Path) -> Error {
    Error::new(Kind::Usage, format!("{what} {} is relative", path.display()))
        .because("the daemon's working directory is not yours")
}

fn both() -> Error {
    Error::new(Kind::Usage, "output excludes tag and replace")
}

/// The worker holds the app's lock: a second snapshot of it answers 409.
async fn snapshot(
    State(Daemon { store, .. }): State<Daemon>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Body(request): Body<SnapshotRequest>,
) -> Reply<SnapshotReport> {
    let mut span = traces::Place::here().begin(SpanKind::Internal, format_args!("snapshot"));
    let job = request.job(store, peer)?;
    let taken = on_own_thread(move || take(&job)).await;
    span.outcome(&taken);
    let report = taken?;
    span.note("appshot.app", report.app.clone());
    span.note(
        "appshot.memory_bytes",
        i64::try_from(report.memory_bytes).unwrap_or(i64::MAX),
    );
    span.place().steps(&report.phases, Instant::now());
    Ok(Json(report))
}

fn take(job: &Job) -> Result<SnapshotReport> {
    let step = &mut |step: &str| tracing::debug!(step, "snapshot");
    let report: SnapshotReport = worker::in_worker(job, step).inspect_err(|error| {
        tracing::warn!(kind = ?error.kind, %error, "snapshot failed");
    })?;
    for phase in &report.phases {
        tracing::info!(app = report.app, phase = phase.name, micros = phase.micros, "phase");
    }
    tracing::info!(
        app = report.app,
        appshot = %report.appshot.display(),
        processes = report.processes,
        memory_bytes = report.memory_bytes,
        frozen_micros = report.frozen_micros,
        total_micros = report.total_micros,
        "snapshot taken"
    );
    Ok(report)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CheckRequest {
    target: Which,
    #[serde(default)]
    tcp: TcpPolicy,
    #[serde(default)]
    outside: OutsidePolicy,
}

async fn check(State(Daemon { store, .. }): State<Daemon>, Body(request): Body<CheckRequest>) -> Reply<CheckReport> {
    let options = SnapshotOptions {
        leave_running: true,
        tcp: request.tcp,
        outside: request.outside,
        ..SnapshotOptions::default()
    };
    let report = on_own_thread(move || jobs::check(&store, &request.target.text(), options));
    Ok(Json(report.await?))
}

async fn apps(State(Daemon { store, .. }): State<Daemon>) -> Reply<Vec<View>> {
    Ok(Json(store.views()?))
}

async fn app(State(Daemon { store, .. }): State<Daemon>, Path(name): Path<String>) -> Reply<View> {
    Ok(Json(store.view(&name)?))
}

async fn appshots(State(Daemon { store, .. }): State<Daemon>) -> Reply<Vec<Stored>> {
    Ok(Json(on_own_thread(move || store.inventory()).await?))
}

/// Answers what was removed.
async fn remove_appshot(State(Daemon { store, .. }): State<Daemon>, Path(name): Path<String>) -> Reply<Stored> {
    let removed = on_own_thread(move || {
        let _busy = store.try_lock(&name)?;
        let stored = store.stored(&name)?;
        store.remove_appshot(&name).map(|()| stored)
    });
    let stored = removed.await?;
    tracing::info!(appshot = stored.name, "removed");
    Ok(Json(stored))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeriesRequest {
    target: Which,
    #[serde(default = "a_minute")]
    every_ms: u64,
    #[serde(default = "ten")]
    keep: usize,
    /// What the names of its appshots begin with, instead of the app's.
    name: Option<String>,
    precopy: Option<bool>,
    #[serde(default)]
    tcp: TcpPolicy,
    #[serde(default)]
    outside: OutsidePolicy,
}

fn a_minute() -> u64 {
    60_000
}

fn ten() -> usize {
    10
}

impl SeriesRequest {
    fn series(self, store: Store) -> Result<Series> {
        let every = Duration::from_millis(self.every_ms);
        let mut series = Series::new(store, self.target.text(), self.name, every, self.keep)?;
        series.options = SnapshotOptions {
            precopy: self.precopy,
            tcp: self.tcp,
            outside: self.outside,
            ..SnapshotOptions::default()
        };
        Ok(series)
    }
}

async fn begin_series(
    State(Daemon { store, series }): State<Daemon>,
    Body(request): Body<SeriesRequest>,
) -> Reply<series::View> {
    let wanted = request.series(store)?;
    Ok(Json(series.begin(wanted).await?))
}

async fn list_series(State(Daemon { series, .. }): State<Daemon>) -> Reply<Vec<series::View>> {
    Ok(Json(series.list()))
}

async fn end_series(State(Daemon { series, .. }): State<Daemon>, Path(name): Path<String>) -> Reply<series::View> {
    Ok(Json(series.end(&name)?))
}
