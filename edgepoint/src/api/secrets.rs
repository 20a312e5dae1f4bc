//! What apps are told that stands in no manifest: set and removed, and never shown again.

use super::answer::Asked;
use crate::caller::Caller;
use crate::manifest::local;
use crate::node::Node;
use axum::extract::{Path, State as Extract};
use axum::{Extension, Json};
use control::Secret;
use libsnap::error::Result;
use nodekit::reply::{Body, Reply};
use serde::Deserialize;
use serde_json::json;

/// Whose they are, where root asks.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Of {
    provider: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Value {
    value: String,
}

/// It stands in no log.
impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Value")
    }
}

impl Of {
    /// A provider has its own. Who asks is a provider still.
    pub fn provider(self, caller: &Caller, node: &Node) -> Result<String> {
        match (caller.clone().again(&node.control)?, self.provider) {
            (Caller::Provider(provider), _) => Ok(provider.name),
            (Caller::Root, Some(name)) if name != local() => Ok(node.control.provider(&name)?.name),
            (Caller::Root, _) => Ok(local()),
        }
    }
}

pub async fn list(
    Extract(node): Extract<Node>,
    Extension(caller): Extension<Caller>,
    Asked(of): Asked<Of>,
) -> Reply<Vec<Secret>> {
    Ok(Json(node.control.secrets(&of.provider(&caller, &node)?)?))
}

pub async fn put(
    Extract(node): Extract<Node>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Asked(of): Asked<Of>,
    Body(secret): Body<Value>,
) -> Reply<Secret> {
    let provider = of.provider(&caller, &node)?;
    let kept = node.control.put_secret(&provider, &name, &secret.value)?;
    node.events
        .tell_of("secret-set", &provider, json!({ "secret": name, "by": caller.name() }));
    Ok(Json(kept))
}

pub async fn remove(
    Extract(node): Extract<Node>,
    Extension(caller): Extension<Caller>,
    Path(name): Path<String>,
    Asked(of): Asked<Of>,
) -> Reply<Secret> {
    let provider = of.provider(&caller, &node)?;
    let removed = node.control.remove_secret(&provider, &name)?;
    node.events.tell_of(
        "secret-removed",
        &provider,
        json!({ "secret": name, "by": caller.name() }),
    );
    Ok(Json(removed))
}
