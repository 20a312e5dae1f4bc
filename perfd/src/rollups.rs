//! Use over time: a thread of its own keeps it, `GET /v1/usage/rollups` tells it.

use axum::Json;
use axum::extract::{Query, State};
use libsnap::error::Result;
use libsnap::store::Store;
use nodekit::reply::{Reply, on_own_thread};
use serde::Deserialize;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};
use usage::record::{Body, Moment};
use usage::rollups::{self, By, Keeper, Measure, Question, Step, Told};

const WRITE: Duration = Duration::from_secs(10);

type Batch = (u64, Vec<(Moment, Body)>);

/// To that thread.
#[derive(Debug)]
pub struct Rollups(mpsc::Sender<Batch>);

impl Rollups {
    pub fn begin(usage: &Path) -> Rollups {
        let (sender, batches) = mpsc::channel();
        let told = |error| tracing::error!(%error, "no roll-ups are kept until perfd starts again");
        match Keeper::open(usage) {
            Ok(keeper) => drop(std::thread::spawn(move || keep(keeper, &batches).unwrap_or_else(told))),
            Err(error) => told(error),
        }
        Rollups(sender)
    }

    /// Records that stand in the ledger now.
    pub fn tell(&self, first_seq: u64, records: Vec<(Moment, Body)>) {
        let _ = self.0.send((first_seq, records));
    }
}

fn keep(mut keeper: Keeper, batches: &mpsc::Receiver<Batch>) -> Result<()> {
    keeper.catch_up()?;
    let mut write_at = Instant::now() + WRITE;
    loop {
        match batches.recv_timeout(write_at.saturating_duration_since(Instant::now())) {
            Ok((first_seq, records)) => keeper.tell(first_seq, &records),
            Err(RecvTimeoutError::Timeout) => {
                write_at = Instant::now() + WRITE;
                keeper.write()?;
            }
            // What is not written the ledger has.
            Err(RecvTimeoutError::Disconnected) => return keeper.write(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    #[serde(default = "minute")]
    step: Step,
    #[serde(default = "app")]
    by: By,
    #[serde(default = "cpu")]
    of: Measure,
    /// Unix seconds; all without it.
    since: Option<u64>,
    /// Of this one over time; of all in sum without it.
    name: Option<String>,
}

fn minute() -> Step {
    Step::Minute
}

fn app() -> By {
    By::App
}

fn cpu() -> Measure {
    Measure::Cpu
}

pub async fn tell(State(store): State<Store>, Query(asked): Query<Asked>) -> Reply<Vec<Told>> {
    let usage = store.usage_dir();
    let told = on_own_thread(move || {
        let question = Question {
            step: asked.step,
            by: asked.by,
            of: asked.of,
            since: asked.since.unwrap_or_default(),
        };
        let rollups = rollups::Rollups::open(&usage)?;
        match &asked.name {
            Some(name) => rollups.over_time(&question, name),
            None => rollups.top(&question),
        }
    });
    Ok(Json(told.await?))
}
