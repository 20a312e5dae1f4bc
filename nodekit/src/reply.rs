//! HTTP answers and requests of the daemons: JSON both ways, errors included.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use libsnap::error::{Error, Kind};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::Duration;

/// An error as an HTTP answer.
#[derive(Debug)]
pub struct Failure(pub Error);

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure(error)
    }
}

/// What a handler answers.
pub type Reply<T> = Result<Json<T>, Failure>;

fn status(kind: Kind) -> StatusCode {
    match kind {
        Kind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        Kind::Usage => StatusCode::UNPROCESSABLE_ENTITY,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Refused => StatusCode::FORBIDDEN,
        Kind::Conflict => StatusCode::CONFLICT,
        Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Unverified => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (status(self.0.kind), Json(self.0)).into_response()
    }
}

/// A body has to come within this: who asked may do less a long time after.
const BODY: Duration = Duration::from_secs(10);

/// A JSON body. Whatever its content type says, it is read as JSON; what does
/// not fit is told in our own form.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Body<T>, Failure> {
        let unreadable =
            |e: &dyn std::fmt::Display| Failure(Error::new(Kind::Usage, "cannot read the request").because(e));
        let whole = tokio::time::timeout(BODY, Bytes::from_request(request, state)).await;
        let whole = whole.map_err(|_| unreadable(&format!("its body did not come within {BODY:?}")))?;
        let bytes = whole.map_err(|e| unreadable(&e))?;
        let value = serde_json::from_slice(&bytes).map_err(|e| unreadable(&e))?;
        Ok(Body(value))
    }
}

/// A daemon's routes with those that every daemon has. The fallback for wrong
/// methods covers only the routes that stand before it.
pub fn complete<S: Clone + Send + Sync + 'static>(
    routes: Router<S>,
    name: &'static str,
    openapi: &'static str,
) -> Router<S> {
    let healthz = Json(json!({ "status": "ok" }));
    let version = Json(json!({
        "name": name,
        "version": env!("CARGO_PKG_VERSION"),
        "api": "v1",
    }));
    let json = [("content-type", "application/json")];
    routes
        .route("/v1/healthz", get(|| async { healthz }))
        .route("/v1/version", get(|| async { version }))
        .route("/v1/openapi.json", get(move || async move { (json, openapi) }))
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
}

async fn no_route() -> Failure {
    Failure(Error::new(Kind::NotFound, "there is nothing at this path").fix("GET /v1/openapi.json lists the paths"))
}

async fn no_method() -> (StatusCode, Json<Value>) {
    let error = Error::new(Kind::Usage, "this path does not take this method");
    (StatusCode::METHOD_NOT_ALLOWED, Json(json!(error)))
}

/// Runs blocking work on a thread of its own: ptrace is bound to its thread,
/// and so is the parent-death signal of a process made there.
pub async fn on_own_thread<T: Send + 'static>(
    work: impl FnOnce() -> libsnap::error::Result<T> + Send + 'static,
) -> libsnap::error::Result<T> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || drop(answer.send(work())));
    match answered.await {
        Ok(result) => result,
        Err(_) => Err(Error::failed("the request's thread died without an answer")),
    }
}
