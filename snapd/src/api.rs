//! What `snapd` answers; `openapi.json` describes it.

use axum::extract::{Path, State};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use libsnap::error::{Error, Kind, Result};
use libsnap::store::{AppshotEntry, Store, View};
use libsnap::target::{CheckReport, Hooks, OutsidePolicy, SnapshotOptions, SnapshotReport, TcpPolicy};
use nodekit::jobs::{self, Job, Place, Snapshot};
use nodekit::reply::{self, Body, Reply, on_own_thread};
use nodekit::worker;
use serde::Deserialize;
use std::path::PathBuf;

pub fn router(store: Store) -> Router {
    let routes = Router::new()
        .route("/v1/snapshots", post(snapshot))
        .route("/v1/check", post(check))
        .route("/v1/apps", get(apps))
        .route("/v1/apps/{name}", get(app))
        .route("/v1/appshots", get(appshots))
        .route("/v1/appshots/{name}", delete(remove_appshot));
    reply::complete(routes, "snapd", include_str!("../openapi.json")).with_state(store)
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
    /// What the app is told before, beside what its owner declared.
    #[serde(default)]
    hooks: Hooks,
}

impl SnapshotRequest {
    fn job(self, store: Store) -> Result<Job> {
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
            precopy: self.precopy,
            parent: parent.transpose()?,
            tcp: self.tcp,
            outside: self.outside,
            ..SnapshotOptions::default()
        };
        let target = self.target.text();
        Ok(Job::Snapshot(Snapshot {
            store,
            target,
            place,
            options,
            hooks: self.hooks,
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
async fn snapshot(State(store): State<Store>, Body(request): Body<SnapshotRequest>) -> Reply<SnapshotReport> {
    let job = request.job(store)?;
    let report = on_own_thread(move || take(&job)).await?;
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

async fn check(State(store): State<Store>, Body(request): Body<CheckRequest>) -> Reply<CheckReport> {
    let options = SnapshotOptions {
        leave_running: true,
        tcp: request.tcp,
        outside: request.outside,
        ..SnapshotOptions::default()
    };
    let report = on_own_thread(move || jobs::check(&store, &request.target.text(), options));
    Ok(Json(report.await?))
}

async fn apps(State(store): State<Store>) -> Reply<Vec<View>> {
    Ok(Json(store.views()?))
}

async fn app(State(store): State<Store>, Path(name): Path<String>) -> Reply<View> {
    Ok(Json(store.view(&name)?))
}

async fn appshots(State(store): State<Store>) -> Reply<Vec<AppshotEntry>> {
    Ok(Json(store.appshots()?))
}

/// Answers what was removed.
async fn remove_appshot(State(store): State<Store>, Path(name): Path<String>) -> Reply<AppshotEntry> {
    let removed = on_own_thread(move || {
        let _busy = store.try_lock(&name)?;
        let entry = store.appshots()?.into_iter().find(|e| e.name == name);
        store.remove_appshot(&name)?;
        entry.ok_or_else(|| store.unknown(&name))
    });
    let entry = removed.await?;
    tracing::info!(appshot = entry.name, "removed");
    Ok(Json(entry))
}
