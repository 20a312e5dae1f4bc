//! What `edgepointd` answers; `openapi.json` describes it.
//!
//! What changes an app takes `If-Match` with the tag of an earlier answer, and does nothing
//! (412) where somebody has changed it since. Tags instead of leases: nobody holds anything,
//! so who is gone keeps nobody waiting, and it is what a distributed store can compare, too.

pub mod answer;
mod archives;
mod changes;
mod events;
mod logs;
mod providers;
mod secrets;
mod top;

use crate::caller::{Caller, own_only, root_only};
use crate::metrics::CONTENT_TYPE;
use crate::node::Node;
use crate::proxy::traffic;
use crate::why::Told;
use axum::extract::{Path, State as Extract};
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::response::IntoResponse;
use axum::routing::{MethodFilter, on};
use axum::{Extension, Json, Router};
use nodekit::daemon::Stopping;
use nodekit::reply::{self, Reply};

/// Whoever asks stands in the request, as a [`Caller`](crate::caller::Caller).
pub fn router(node: &Node, stopping: Stopping) -> Router {
    let routes = routes(node).router.layer(Extension(stopping));
    reply::complete(routes, "edgepointd", include_str!("../openapi.json")).with_state(node.clone())
}

fn routes(node: &Node) -> Routes<'_> {
    Routes::of(node)
        .roots(Method::GET, "/metrics", metrics)
        .roots(Method::GET, "/v1/traffic", traffic)
        .roots(Method::GET, "/v1/providers", providers::list)
        .roots(Method::POST, "/v1/providers", providers::add)
        .roots(Method::GET, "/v1/providers/{name}", providers::show)
        .roots(Method::PUT, "/v1/providers/{name}/users", providers::allow)
        .roots(Method::PUT, "/v1/providers/{name}/quota", providers::limit)
        .roots(Method::POST, "/v1/providers/{name}/rotate", providers::rotate)
        .roots(Method::DELETE, "/v1/providers/{name}", providers::remove)
        .owned(Method::GET, "/v1/apps", changes::list)
        .owned(Method::POST, "/v1/apps", changes::deploy)
        .owned(Method::GET, "/v1/apps/{name}", changes::show)
        .owned(Method::PUT, "/v1/apps/{name}", changes::put)
        .owned(Method::DELETE, "/v1/apps/{name}", changes::remove)
        .owned(Method::POST, "/v1/apps/{name}/rollback", changes::rollback)
        .owned(Method::POST, "/v1/apps/{name}/suspend", changes::suspend)
        .owned(Method::POST, "/v1/apps/{name}/resume", changes::resume)
        .owned(Method::PUT, "/v1/apps/{name}/scale", changes::scale)
        .owned(Method::GET, "/v1/apps/{name}/why", why)
        .owned(Method::GET, "/v1/apps/{name}/logs", logs::read)
        .owned(Method::GET, "/v1/archives/{digest}", archives::show)
        .owned(Method::PUT, "/v1/archives/{digest}", archives::put)
        .owned(Method::GET, "/v1/secrets", secrets::list)
        .owned(Method::PUT, "/v1/secrets/{secret}", secrets::put)
        .owned(Method::DELETE, "/v1/secrets/{secret}", secrets::remove)
        .owned(Method::GET, "/v1/events", events::read)
        .owned(Method::GET, "/v1/top", top::read)
}

/// Every route says whose it is, and is noted: the description is held against that.
struct Routes<'a> {
    node: &'a Node,
    router: Router<Node>,
    #[cfg_attr(not(test), allow(dead_code))]
    known: Vec<(Method, &'static str)>,
}

impl<'a> Routes<'a> {
    fn of(node: &'a Node) -> Routes<'a> {
        let (router, known) = (Router::new(), Vec::new());
        Routes { node, router, known }
    }

    /// For root.
    fn roots<T: 'static>(mut self, method: Method, path: &'static str, handler: impl Handler<T, Node>) -> Self {
        let route = on(filter(&method), handler).layer(from_fn(root_only));
        self.router = self.router.route(path, route);
        self.known.push((method, path));
        self
    }

    /// For providers, too; with a name in its path for the one whose app that is.
    fn owned<T: 'static>(mut self, method: Method, path: &'static str, handler: impl Handler<T, Node>) -> Self {
        let own = from_fn_with_state(self.node.clone(), own_only);
        self.router = self.router.route(path, on(filter(&method), handler).layer(own));
        self.known.push((method, path));
        self
    }
}

fn filter(method: &Method) -> MethodFilter {
    MethodFilter::try_from(method.clone()).unwrap_or(MethodFilter::GET)
}

async fn metrics(Extract(node): Extract<Node>) -> impl IntoResponse {
    ([("content-type", CONTENT_TYPE)], node.metrics.text(&node.budget))
}

async fn traffic(Extract(node): Extract<Node>) -> Json<Vec<traffic::Told>> {
    Json(node.proxy.told())
}

async fn why(
    Extract(node): Extract<Node>,
    Extension(caller): Extension<Caller>,
    Path(app): Path<String>,
) -> Reply<Told> {
    Ok(Json(node.why(&app).map_err(|_| node.unknown(&app, &caller))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addresses::Addresses;
    use nodekit::args::Dirs;
    use serde_json::Value;
    use std::collections::BTreeSet;

    #[test]
    fn what_is_described_is_there_and_the_other_way_round() {
        let dir = tempfile::tempdir().unwrap();
        let dirs = Dirs {
            run_dir: dir.path().join("run"),
            data_dir: dir.path().join("data"),
        };
        let node = Node::new(dirs.open_as_is().unwrap(), &dirs, Some(1 << 30), Addresses::default()).unwrap();
        let known: BTreeSet<(String, String)> = routes(&node)
            .known
            .iter()
            .map(|(method, path)| (method.as_str().to_lowercase(), (*path).to_owned()))
            // Those of every daemon.
            .chain(["healthz", "version", "openapi.json"].map(|path| ("get".to_owned(), format!("/v1/{path}"))))
            .collect();
        let api: Value = serde_json::from_str(include_str!("../openapi.json")).unwrap();
        let mut described = BTreeSet::new();
        for (path, methods) in api["paths"].as_object().unwrap() {
            for (method, told) in methods.as_object().unwrap() {
                described.insert((method.clone(), path.clone()));
                let parameters = told["parameters"].as_array().into_iter().flatten();
                let in_path = parameters.filter(|one| one["in"] == "path").count();
                assert_eq!(in_path, path.matches('{').count(), "{method} {path}");
            }
        }
        assert_eq!(known, described);
    }
}
