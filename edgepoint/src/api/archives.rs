//! Files that come with a manifest, sent before it.

use super::answer::Asked;
use super::secrets::Of;
use crate::archives;
use crate::caller::Caller;
use crate::node::Node;
use axum::body::Body;
use axum::extract::{Path, State as Extract};
use axum::{Extension, Json};
use libsnap::error::{Error, Kind};
use nodekit::reply::Reply;
use serde::Serialize;

#[derive(Debug, Serialize)]
pub struct Archive {
    digest: String,
    provider: String,
}

/// Whether it need not be sent again.
pub async fn show(
    Extract(node): Extract<Node>,
    Extension(caller): Extension<Caller>,
    Path(digest): Path<String>,
    Asked(of): Asked<Of>,
) -> Reply<Archive> {
    let provider = of.provider(&caller, &node)?;
    match archives::find(&node.store, &provider, &digest) {
        Some(path) => {
            archives::touch(&path);
            Ok(Json(Archive { digest, provider }))
        }
        None => Err(Error::new(Kind::NotFound, format!("{provider} has no archive {digest}")).into()),
    }
}

pub async fn put(
    Extract(node): Extract<Node>,
    Extension(caller): Extension<Caller>,
    Path(digest): Path<String>,
    Asked(of): Asked<Of>,
    body: Body,
) -> Reply<Archive> {
    let provider = of.provider(&caller, &node)?;
    archives::take(&node.store, &provider, &digest, body).await?;
    // Who has sent it may have been removed meanwhile.
    caller.again(&node.control)?;
    Ok(Json(Archive { digest, provider }))
}
