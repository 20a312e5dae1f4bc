//! Who may ask from elsewhere: for root.

use crate::node::Node;
use crate::quota::{Limits, Shown};
use axum::Json;
use axum::extract::{Path, State as Extract};
use control::{Issued, Provider, Quota};
use libsnap::error::{Error, Kind, Result};
use libsnap::units::parse_span;
use nodekit::args::User;
use nodekit::reply::{Body, Reply};
use serde::Deserialize;
use serde_json::json;
use std::time::Duration;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Add {
    name: String,
    users: Vec<String>,
    /// What it may have; anything without.
    #[serde(default)]
    quota: Limits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Users {
    users: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotate {
    /// How long those that it has are good yet.
    grace: Option<String>,
}

pub async fn list(Extract(node): Extract<Node>) -> Reply<Vec<Shown>> {
    let (providers, stored) = (node.control.providers()?, node.stored().await?);
    let shown = providers.into_iter().map(|provider| node.shown(provider, &stored));
    Ok(Json(shown.collect()))
}

pub async fn show(Extract(node): Extract<Node>, Path(name): Path<String>) -> Reply<Shown> {
    let provider = node.control.provider(&name)?;
    Ok(Json(node.shown(provider, &node.stored().await?)))
}

/// From now on: what it has stays, and it gets nothing more.
pub async fn limit(Extract(node): Extract<Node>, Path(name): Path<String>, Body(limits): Body<Limits>) -> Reply<Shown> {
    let provider = node.control.limit(&name, |quota| limits.change(quota))?;
    node.limited(&name, provider.quota);
    node.events.tell_of("provider-limited", &name, json!(provider.quota));
    Ok(Json(node.shown(provider, &node.stored().await?)))
}

pub async fn add(Extract(node): Extract<Node>, Body(request): Body<Add>) -> Reply<Issued> {
    if ["local", "root"].contains(&request.name.as_str()) {
        let error = Error::new(Kind::Usage, format!("cannot have the provider {}", request.name));
        return Err(error
            .because("apps of nobody are local's, and root is the node's owner")
            .fix("name it otherwise")
            .into());
    }
    sensible(&request.name, &request.users)?;
    let mut quota = Quota::default();
    request.quota.change(&mut quota);
    let issued = node.control.add_provider(&request.name, request.users, quota)?;
    node.limited(&request.name, quota);
    let users = json!({ "users": issued.provider.users, "quota": quota });
    node.events.tell_of("provider-added", &request.name, users);
    Ok(Json(issued))
}

pub async fn allow(
    Extract(node): Extract<Node>,
    Path(name): Path<String>,
    Body(request): Body<Users>,
) -> Reply<Provider> {
    sensible(&name, &request.users)?;
    let provider = node.control.allow(&name, request.users)?;
    let users = json!({ "users": provider.users });
    node.events.tell_of("provider-allowed", &name, users);
    Ok(Json(provider))
}

pub async fn rotate(
    Extract(node): Extract<Node>,
    Path(name): Path<String>,
    Body(request): Body<Rotate>,
) -> Reply<Issued> {
    let grace = match request.grace.as_deref().map(parse_span) {
        None => Duration::ZERO,
        Some(Ok(grace)) => grace,
        Some(Err(because)) => {
            return Err(Error::new(Kind::Usage, "cannot understand grace")
                .because(because)
                .into());
        }
    };
    let issued = node.control.rotate(&name, grace)?;
    let told = json!({ "grace_ms": u64::try_from(grace.as_millis()).unwrap_or(u64::MAX) });
    node.events.tell_of("provider-rotated", &name, told);
    Ok(Json(issued))
}

pub async fn remove(Extract(node): Extract<Node>, Path(name): Path<String>) -> Reply<Provider> {
    let provider = node.control.remove_provider(&name)?;
    node.limited(&name, Quota::default());
    node.events.tell_of("provider-removed", &name, json!({}));
    Ok(Json(provider))
}

/// Its apps have to run as somebody, and not as root because nobody thought of it.
fn sensible(name: &str, users: &[String]) -> Result<()> {
    let wrong = |because: String| Error::new(Kind::Usage, format!("cannot have the provider {name}")).because(because);
    if users.is_empty() {
        return Err(wrong("it names nobody whom its apps may run as".to_owned())
            .fix("such as users = [\"www-data\"]; root is everything on this node"));
    }
    let parse = |user: &String| user.parse::<User>().map(drop);
    users.iter().try_for_each(parse).map_err(wrong)
}
