//! What `edgepointd` answers; `openapi.json` describes it.

use crate::agent::Order;
use crate::manifest::{BYTES_MAX, Manifest};
use crate::metrics::CONTENT_TYPE;
use crate::node::Node;
use crate::proxy::traffic::Told;
use crate::status::{State, Status};
use crate::why::Told as Why;
use axum::extract::{Path, Query, State as Extract};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use libsnap::error::{Error, Kind};
use nodekit::reply::{self, Body, Failure, Reply};
use serde::Deserialize;
use std::time::Duration;

pub fn router(node: Node) -> Router {
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/v1/traffic", get(traffic))
        .route("/v1/apps", post(deploy).get(list))
        .route("/v1/apps/{name}", get(show).put(update).delete(remove))
        .route("/v1/apps/{name}/why", get(why))
        .route("/v1/apps/{name}/rollback", post(rollback))
        .route("/v1/apps/{name}/suspend", post(suspend))
        .route("/v1/apps/{name}/resume", post(resume));
    reply::complete(routes, "edgepointd", include_str!("../openapi.json")).with_state(node)
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Deploy {
    /// TOML.
    manifest: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wait {
    /// The answer comes when the app is in this state, or has failed.
    wait: Option<State>,
    /// Or after so many seconds.
    timeout: Option<u64>,
}

/// The longest that an answer is waited for.
const WAIT_MAX: u64 = 600;

impl Deploy {
    fn parse(&self) -> libsnap::error::Result<Manifest> {
        match self.manifest.len() {
            0..=BYTES_MAX => Manifest::parse(&self.manifest),
            _ => Err(Error::new(Kind::Usage, "the manifest is too long")),
        }
    }
}

async fn deploy(Extract(node): Extract<Node>, Body(request): Body<Deploy>) -> Reply<Status> {
    let status = node.deploy(request.parse()?)?;
    Ok(Json(status.borrow().clone()))
}

async fn update(Extract(node): Extract<Node>, Path(app): Path<String>, Body(request): Body<Deploy>) -> Reply<Status> {
    Ok(Json(node.update(&app, request.parse()?).await?))
}

async fn rollback(Extract(node): Extract<Node>, Path(app): Path<String>) -> Reply<Status> {
    Ok(Json(node.rollback(&app).await?))
}

async fn metrics(Extract(node): Extract<Node>) -> impl IntoResponse {
    ([("content-type", CONTENT_TYPE)], node.metrics.text(&node.budget))
}

async fn traffic(Extract(node): Extract<Node>) -> Json<Vec<Told>> {
    Json(node.proxy.told())
}

async fn list(Extract(node): Extract<Node>) -> Json<Vec<Status>> {
    Json(node.all())
}

async fn show(
    Extract(node): Extract<Node>,
    Path(app): Path<String>,
    query: Result<Query<Wait>, axum::extract::rejection::QueryRejection>,
) -> Reply<Status> {
    let Query(query) = query.map_err(|e| Failure(Error::new(Kind::Usage, e.body_text())))?;
    let mut status = node.status(&app)?;
    if let Some(state) = query.wait {
        let patience = Duration::from_secs(query.timeout.unwrap_or(WAIT_MAX).min(WAIT_MAX));
        let reached = |status: &Status| [state, State::Failed].contains(&status.state);
        // In time or not, it is told.
        let _ = tokio::time::timeout(patience, status.wait_for(reached)).await;
    }
    Ok(Json(status.borrow().clone()))
}

async fn why(Extract(node): Extract<Node>, Path(app): Path<String>) -> Reply<Why> {
    Ok(Json(node.why(&app)?))
}

async fn suspend(Extract(node): Extract<Node>, Path(app): Path<String>) -> Reply<Status> {
    Ok(Json(node.order(&app, Order::Suspend).await?))
}

async fn resume(Extract(node): Extract<Node>, Path(app): Path<String>) -> Reply<Status> {
    Ok(Json(node.order(&app, Order::Resume).await?))
}

async fn remove(Extract(node): Extract<Node>, Path(app): Path<String>) -> Reply<Status> {
    Ok(Json(node.order(&app, Order::Remove).await?))
}
