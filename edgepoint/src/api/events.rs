//! The log of events, from where who asks has read it.

use super::answer::Asked;
use crate::caller::Caller;
use crate::node::Node;
use axum::extract::State as Extract;
use axum::{Extension, Json};
use control::{Event, Query};
use nodekit::daemon::Stopping;
use nodekit::reply::Reply;
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// In one answer, at most.
const LIMIT: u32 = 1000;
const WAIT_MAX: u64 = 60;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    app: Option<String>,
    /// Those that came later than this one; the newest without.
    after: Option<u64>,
    limit: Option<u32>,
    /// Where there is none yet, the answer waits so many seconds for one.
    wait: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct Events {
    events: Vec<Event>,
    /// To ask for those that come later.
    last: u64,
}

pub async fn read(
    Extract(node): Extract<Node>,
    Extension(caller): Extension<Caller>,
    Extension(mut stopping): Extension<Stopping>,
    Asked(which): Asked<Which>,
) -> Reply<Events> {
    let deadline = Instant::now() + Duration::from_secs(which.wait.unwrap_or(0).min(WAIT_MAX));
    let query = Query {
        // As high as they may count.
        after: which.after.unwrap_or(0).min(i64::MAX.unsigned_abs()),
        newest: which.after.is_none(),
        app: which.app,
        provider: caller.only().map(str::to_owned),
        limit: which.limit.unwrap_or(LIMIT).min(LIMIT),
    };
    let mut added = node.events.added.clone();
    loop {
        added.mark_unchanged();
        let events = node.control.events(&query)?;
        let last = events.last().map_or(query.after, |event| event.id);
        if !events.is_empty() || query.limit == 0 {
            return Ok(Json(Events { events, last }));
        }
        let more = tokio::select! {
            more = timeout_at(deadline, added.changed()) => matches!(more, Ok(Ok(()))),
            _ = stopping.wait_for(|stop| *stop) => false,
        };
        if !more {
            return Ok(Json(Events { events, last }));
        }
    }
}
