//! Deployed apps: what is told of them, and what changes them.

use super::answer::{Asked, Condition, Halt, Shown, Tag, Wait};
use crate::agent::Order;
use crate::archives;
use crate::caller::Caller;
use crate::manifest::{BYTES_MAX, Instances, Manifest};
use crate::node::Node;
use crate::status::Status;
use axum::extract::{Path, State as Extract};
use axum::{Extension, Json};
use libsnap::error::{Error, Kind, OrFail, Result};
use nodekit::daemon::Stopping;
use nodekit::reply::Body;
use serde::Deserialize;
use serde_json::json;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deploy {
    /// TOML.
    manifest: String,
    /// Of the archive that it names as a path, and that was sent before.
    digest: Option<String>,
}

impl Deploy {
    /// What it comes with has to be there.
    fn parse(&self, node: &Node, caller: &Caller) -> Result<Manifest> {
        let mut manifest = match self.manifest.len() {
            0..=BYTES_MAX => Manifest::parse_with(&self.manifest, self.digest.as_deref())?,
            _ => return Err(Error::new(Kind::Usage, "the manifest is too long")),
        };
        caller.may_deploy(&mut manifest)?;
        if let Some(digest) = &manifest.start.digest {
            match archives::find(&node.store, &manifest.provider, digest) {
                Some(path) => archives::touch(&path),
                None => return Err(archives::missing(&manifest, digest)),
            }
        }
        Ok(manifest)
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    min: usize,
    max: usize,
}

type Answer = Result<Shown, Halt>;

pub async fn list(Extract(node): Extract<Node>, Extension(caller): Extension<Caller>) -> Json<Vec<Status>> {
    let mut all = node.all();
    all.retain(|status| caller.sees(&status.provider));
    Json(all)
}

pub async fn show(
    Extract(node): Extract<Node>,
    Extension(caller): Extension<Caller>,
    Extension(stopping): Extension<Stopping>,
    Path(app): Path<String>,
    Asked(wait): Asked<Wait>,
) -> Answer {
    let status = node.status(&app).map_err(|_| node.unknown(&app, &caller))?;
    // In time or not, it is told.
    wait.until(&node, &app, wait.deadline(), &stopping).await?;
    let status = status.borrow().clone();
    Ok(Shown::of(&node, status))
}

/// What asks for a change.
pub struct Change {
    node: Node,
    caller: Caller,
    stopping: Stopping,
    wait: Wait,
    condition: Condition,
}

impl Change {
    /// Answers when it is done and the state is there that the query names, or else with 202.
    /// It is done to its end, whoever waits.
    async fn answer(self, app: String, change: impl Future<Output = Answer> + Send + 'static) -> Answer {
        let deadline = self.wait.deadline();
        let change = tokio::spawn(change);
        let Ok(done) = tokio::time::timeout_at(deadline, change).await else {
            let status = self.node.status_of(&app, &self.caller)?.borrow().clone();
            return Ok(Shown::of(&self.node, status).accepted());
        };
        let shown = done.or_fail(|| format!("cannot change {app}"))??;
        if self.wait.is_empty() {
            return Ok(shown);
        }
        // Removed, it has no state.
        let Ok(status) = self.node.status_of(&app, &self.caller) else {
            return Ok(shown);
        };
        let reached = self.wait.until(&self.node, &app, deadline, &self.stopping).await?;
        let status = status.borrow().clone();
        let shown = Shown::of(&self.node, status);
        Ok(if reached { shown } else { shown.accepted() })
    }

    /// With who asks as it is known now, after the body has come.
    fn again(mut self) -> Result<Change> {
        self.caller = self.caller.again(&self.node.control)?;
        Ok(self)
    }

    async fn order(self, app: String, order: Order) -> Answer {
        let (node, caller, condition) = (self.node.clone(), self.caller.clone(), self.condition.clone());
        let name = app.clone();
        self.answer(app, async move {
            let provider = node.manifest_of(&name, &caller)?.provider;
            // Nobody changes it in between, where that matters.
            let _held = match condition.matches {
                Some(Tag::This(_)) => Some(node.hold(&name, &condition, &caller)?),
                Some(Tag::Any) | None => None,
            };
            let status = node.order(&name, order, &caller).await?;
            let told = match order {
                Order::Scale(bounds) => json!({ "by": caller.name(), "bounds": bounds }),
                _ => json!({ "by": caller.name() }),
            };
            node.events.tell(order.name(), &name, &provider, told);
            Ok(Shown::of(&node, status))
        })
        .await
    }
}

impl axum::extract::FromRequestParts<Node> for Change {
    type Rejection = axum::response::Response;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        node: &Node,
    ) -> Result<Change, axum::response::Response> {
        use axum::response::IntoResponse;
        let Extension(caller) = Extension::from_request_parts(parts, node)
            .await
            .map_err(IntoResponse::into_response)?;
        let Extension(stopping) = Extension::from_request_parts(parts, node)
            .await
            .map_err(IntoResponse::into_response)?;
        let Asked(wait) = Asked::from_request_parts(parts, node)
            .await
            .map_err(IntoResponse::into_response)?;
        let condition = Condition::from_request_parts(parts, node)
            .await
            .map_err(IntoResponse::into_response)?;
        Ok(Change {
            node: node.clone(),
            caller,
            stopping,
            wait,
            condition,
        })
    }
}

/// Done again with the same manifest it changes nothing.
pub async fn deploy(change: Change, Body(request): Body<Deploy>) -> Answer {
    let change = change.again()?;
    let manifest = request.parse(&change.node, &change.caller)?;
    make(change, manifest).await
}

async fn make(change: Change, manifest: Manifest) -> Answer {
    let (node, caller) = (change.node.clone(), change.caller.clone());
    let app = manifest.app.clone();
    change
        .answer(app, async move {
            node.may_store(&manifest).await?;
            let status = node.deploy(manifest, &caller)?.borrow().clone();
            Ok(Shown::of(&node, status))
        })
        .await
}

/// Has this manifest serve, whether the app is there or not: made, made a version of it, or
/// left alone where it serves already.
pub async fn put(change: Change, Path(app): Path<String>, Body(request): Body<Deploy>) -> Answer {
    let change = change.again()?;
    let manifest = request.parse(&change.node, &change.caller)?;
    if manifest.app != app {
        return Err(Halt::Failed(
            Error::new(Kind::Usage, format!("cannot deploy {app}"))
                .because(format!("the manifest is that of {}", manifest.app))
                .fix("name the same app"),
        ));
    }
    let (node, caller, condition) = (change.node.clone(), change.caller.clone(), change.condition.clone());
    // One that somebody else has made meanwhile is refused by its name.
    if node.provider_of(&app).is_none_or(|provider| !caller.sees(&provider)) {
        return match condition.matches {
            None => make(change, manifest).await,
            Some(_) => Err(Halt::Stale(node.unknown(&app, &caller))),
        };
    }
    if condition.absent {
        let there = Error::new(Kind::Conflict, format!("app {app} is deployed already"));
        return Err(Halt::Stale(there.state("nothing was changed")));
    }
    let name = app.clone();
    change
        .answer(app, async move {
            let held = node.hold(&name, &condition, &caller)?;
            let status = match held.deployment.declared() == manifest {
                true => node.status(&name)?.borrow().clone(),
                false => {
                    node.addresses.suffice(&manifest)?;
                    node.may_have(&manifest)?;
                    node.may_store(&manifest).await?;
                    node.update(held, manifest, &caller).await?
                }
            };
            Ok(Shown::of(&node, status))
        })
        .await
}

pub async fn rollback(change: Change, Path(app): Path<String>) -> Answer {
    let (node, caller, condition) = (change.node.clone(), change.caller.clone(), change.condition.clone());
    let name = app.clone();
    change
        .answer(app, async move {
            node.manifest_of(&name, &caller)?;
            let held = node.hold(&name, &condition, &caller)?;
            let status = node.rollback(held, &caller).await?;
            Ok(Shown::of(&node, status))
        })
        .await
}

pub async fn suspend(change: Change, Path(app): Path<String>) -> Answer {
    change.order(app, Order::Suspend).await
}

pub async fn resume(change: Change, Path(app): Path<String>) -> Answer {
    change.order(app, Order::Resume).await
}

pub async fn remove(change: Change, Path(app): Path<String>) -> Answer {
    change.order(app, Order::Remove).await
}

/// How many instances there may be, until another version says otherwise.
pub async fn scale(change: Change, Path(app): Path<String>, Body(bounds): Body<Bounds>) -> Answer {
    let Bounds { min, max } = bounds;
    let bounds = Instances { min, max };
    let change = change.again()?;
    let manifest = change.node.manifest_of(&app, &change.caller)?;
    let scaled = Manifest {
        instances: bounds,
        ..manifest
    };
    scaled.counts("scale")?;
    change.node.may_have(&scaled)?;
    change.order(app, Order::Scale(bounds)).await
}
