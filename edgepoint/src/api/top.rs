//! What the instances of all apps take, in one look.

use crate::caller::Caller;
use crate::node::Node;
use crate::status::{Counts, State, Status};
use axum::extract::State as Extract;
use axum::{Extension, Json};
use libsnap::cgroup;
use libsnap::store::now_unix_ms;
use nodekit::reply::{Reply, on_own_thread};
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Top {
    unix_ms: u64,
    /// Of the node, for root.
    memory: Option<Memory>,
    apps: Vec<Line>,
}

#[derive(Debug, Serialize)]
struct Memory {
    limit_bytes: u64,
    used_bytes: u64,
}

#[derive(Debug, Serialize)]
struct Line {
    app: String,
    provider: String,
    state: State,
    since_unix_ms: u64,
    /// Those that run.
    instances: usize,
    /// CPU time since they began. What cannot be read is absent, not zero.
    cpu_ns: Option<u64>,
    memory_bytes: Option<u64>,
    /// Over the HTTP entry, since the daemon began.
    requests: u64,
    counts: Counts,
    last_micros: Option<u64>,
}

pub async fn read(Extract(node): Extract<Node>, Extension(caller): Extension<Caller>) -> Reply<Top> {
    let memory = caller.only().is_none().then(|| Memory {
        limit_bytes: node.budget.limit(),
        used_bytes: node.budget.used(),
    });
    let requests = node.proxy.told();
    let mut all = node.all();
    all.retain(|status| caller.sees(&status.provider));
    let apps = on_own_thread(move || {
        let line = |status: Status| {
            let requests = requests.iter().find(|told| told.app == status.app);
            line(&node, status, requests.map_or(0, |told| told.requests))
        };
        Ok(all.into_iter().map(line).collect())
    })
    .await?;
    Ok(Json(Top {
        unix_ms: now_unix_ms()?,
        memory,
        apps,
    }))
}

fn line(node: &Node, status: Status, requests: u64) -> Line {
    let running = status.instances.iter().filter(|one| one.root.is_some());
    let usages: Vec<_> = running
        .map(|one| {
            let app = node.store.find(&one.name).ok()??;
            cgroup::usage(app.cgroup.as_deref()?).ok()
        })
        .collect();
    let cpu = usages.iter().map(|usage| Some(usage.as_ref()?.cpu_ns));
    let memory = usages.iter().map(|usage| usage.as_ref()?.memory_bytes);
    Line {
        instances: usages.len(),
        cpu_ns: cpu.sum(),
        memory_bytes: memory.sum(),
        app: status.app,
        provider: status.provider,
        state: status.state,
        since_unix_ms: status.since_unix_ms,
        requests,
        counts: status.counts,
        last_micros: status.last.map(|last| last.total_micros),
    }
}
