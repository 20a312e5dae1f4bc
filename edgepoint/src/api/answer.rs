//! Answers about an app, and what requests have in common.

use crate::node::Node;
use crate::status::{State, Status};
use axum::Json;
use axum::extract::FromRequestParts;
use axum::http::header::{ETAG, IF_MATCH, IF_NONE_MATCH};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use libsnap::error::{Error, Kind, Result};
use nodekit::daemon::Stopping;
use nodekit::reply::Failure;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::Instant;

/// Why there is no answer.
#[derive(Debug)]
pub enum Halt {
    Failed(Error),
    /// It is not as the request expects it (412).
    Stale(Error),
}

impl From<Error> for Halt {
    fn from(error: Error) -> Halt {
        Halt::Failed(error)
    }
}

impl IntoResponse for Halt {
    fn into_response(self) -> Response {
        match self {
            Halt::Failed(error) => Failure(error).into_response(),
            Halt::Stale(error) => (StatusCode::PRECONDITION_FAILED, Json(error)).into_response(),
        }
    }
}

/// An app as it is answered.
#[derive(Debug, Serialize)]
pub struct Shown {
    #[serde(flatten)]
    status: Status,
    /// Changes with whatever its owner decides about it.
    etag: Option<String>,
    /// A change of its version is under way.
    changing: bool,
    #[serde(skip)]
    code: StatusCode,
}

impl Shown {
    pub fn of(node: &Node, status: Status) -> Shown {
        Shown {
            // One that is gone has none.
            etag: node.read(&status.app).ok().map(|deployment| deployment.etag()),
            changing: node.changing(&status.app).is_ok_and(|lock| lock.try_lock().is_err()),
            status,
            code: StatusCode::OK,
        }
    }

    /// It is not done yet.
    pub fn accepted(self) -> Shown {
        let code = StatusCode::ACCEPTED;
        Shown { code, ..self }
    }
}

impl IntoResponse for Shown {
    fn into_response(self) -> Response {
        let mut headers = HeaderMap::new();
        if let Some(etag) = self.etag.as_ref().and_then(|etag| format!("\"{etag}\"").parse().ok()) {
            headers.insert(ETAG, etag);
        }
        (self.code, headers, Json(self)).into_response()
    }
}

/// Query parameters; what does not fit is told in our own form.
#[derive(Debug)]
pub struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Asked<T>, Failure> {
        match axum::extract::Query::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(query)) => Ok(Asked(query)),
            Err(error) => Err(Failure(
                Error::new(Kind::Usage, "cannot read the query").because(error.body_text()),
            )),
        }
    }
}

/// On what condition something is to be done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// It is there, and with a tag this is its state.
    pub matches: Option<Tag>,
    /// It is not there.
    pub absent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tag {
    Any,
    This(String),
}

impl Condition {
    pub fn holds(&self, etag: &str) -> bool {
        match &self.matches {
            Some(Tag::This(wanted)) => wanted == etag,
            Some(Tag::Any) | None => true,
        }
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Condition {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Condition, Failure> {
        let header = |name: HeaderName| match parts.headers.get(&name).map(|value| value.to_str()) {
            None => Ok(None),
            Some(Ok("*")) => Ok(Some(Tag::Any)),
            Some(Ok(text)) => match text.strip_prefix('"').and_then(|text| text.strip_suffix('"')) {
                Some(tag) if !tag.is_empty() && !tag.contains('"') => Ok(Some(Tag::This(tag.to_owned()))),
                _ => Err(unreadable(&name, "such as \"0123456789abcdef\", in quotes, or *")),
            },
            Some(Err(_)) => Err(unreadable(&name, "it has no letters but those of ASCII")),
        };
        let absent = match header(IF_NONE_MATCH)? {
            None => false,
            Some(Tag::Any) => true,
            Some(Tag::This(_)) => return Err(unreadable(&IF_NONE_MATCH, "nothing but * is known here")),
        };
        Ok(Condition {
            matches: header(IF_MATCH)?,
            absent,
        })
    }
}

fn unreadable(name: &HeaderName, because: &str) -> Failure {
    Failure(Error::new(Kind::Usage, format!("cannot understand the header {name}")).because(because))
}

/// The longest that an answer is waited for.
const WAIT_MAX: u64 = 600;

/// `?wait=STATE&timeout=SECONDS`
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wait {
    /// The answer comes when the app is in this state, or has failed.
    wait: Option<Until>,
    /// Or after so many seconds.
    timeout: Option<u64>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Until {
    Starting,
    Running,
    FallingAsleep,
    Asleep,
    Waking,
    Suspended,
    Failed,
    Removing,
    /// No change of its version is under way, and it neither comes nor goes.
    Settled,
}

impl Until {
    fn state(self) -> Option<State> {
        match self {
            Until::Starting => Some(State::Starting),
            Until::Running => Some(State::Running),
            Until::FallingAsleep => Some(State::FallingAsleep),
            Until::Asleep => Some(State::Asleep),
            Until::Waking => Some(State::Waking),
            Until::Suspended => Some(State::Suspended),
            Until::Failed => Some(State::Failed),
            Until::Removing => Some(State::Removing),
            Until::Settled => None,
        }
    }
}

impl Wait {
    /// Waits as long as the query says, or the daemon stops; whether it is so then.
    pub async fn until(&self, node: &Node, app: &str, deadline: Instant, stopping: &Stopping) -> Result<bool> {
        let Some(until) = self.wait else {
            return Ok(true);
        };
        let mut status = node.status(app)?;
        let changing = node.changing(app)?;
        let reached = async {
            match until.state() {
                Some(state) => {
                    let reached = |status: &Status| [state, State::Failed].contains(&status.state);
                    // Or it is gone.
                    status.wait_for(reached).await.is_ok()
                }
                None => {
                    drop(changing.lock().await);
                    status.wait_for(|status| status.state.lasts()).await.is_ok()
                }
            }
        };
        let mut stopping = stopping.clone();
        tokio::select! {
            reached = tokio::time::timeout_at(deadline, reached) => Ok(reached.unwrap_or(false)),
            _ = stopping.wait_for(|stop| *stop) => Ok(false),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.wait.is_none()
    }

    pub fn deadline(&self) -> Instant {
        let seconds = self.timeout.unwrap_or(WAIT_MAX).min(WAIT_MAX);
        Instant::now() + Duration::from_secs(seconds)
    }
}
