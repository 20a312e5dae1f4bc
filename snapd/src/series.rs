//! Series of snapshots that this daemon takes. They end with it, and with their app.

use libsnap::error::{Error, Kind, Result};
use libsnap::target::SnapshotReport;
use nodekit::periodic::{End, Event, Series, Stop};
use serde::Serialize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct AllSeries(Arc<Mutex<Vec<Running>>>);

#[derive(Debug)]
struct Running {
    view: View,
    stop: Stop,
}

/// A series as it is shown.
#[derive(Clone, Debug, Serialize)]
pub struct View {
    /// What the names of its appshots begin with.
    pub name: String,
    pub target: String,
    pub every_ms: u64,
    pub keep: usize,
    pub taken: u64,
    /// Fell due while another was taken.
    pub skipped: u64,
    pub last: Option<SnapshotReport>,
    /// Why the last one failed, if it did.
    pub problem: Option<Error>,
}

type Answer = oneshot::Sender<Result<View>>;

impl AllSeries {
    pub fn list(&self) -> Vec<View> {
        self.all().iter().map(|running| running.view.clone()).collect()
    }

    /// Begins a series; the answer comes with its first appshot.
    pub async fn begin(&self, series: Series) -> Result<View> {
        let stop = Stop::new()?;
        self.add(&series, &stop)?;
        let (answer, answered) = oneshot::channel();
        let this = self.clone();
        std::thread::spawn(move || this.run(&series, &stop, answer));
        match answered.await {
            Ok(first) => first,
            Err(_) => Err(Error::failed("the series ended before its first snapshot")),
        }
    }

    /// Ends a series; what is being taken is undone.
    pub fn end(&self, name: &str) -> Result<View> {
        let all = self.all();
        let running = all.iter().find(|running| running.view.name == name);
        let running = running.ok_or_else(|| Error::new(Kind::NotFound, format!("there is no series {name:?}")))?;
        running.stop.stop();
        Ok(running.view.clone())
    }

    fn all(&self) -> MutexGuard<'_, Vec<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, series: &Series, stop: &Stop) -> Result<()> {
        let mut all = self.all();
        if all.iter().any(|running| running.view.name == series.prefix) {
            return Err(
                Error::new(Kind::Conflict, format!("there is already a series {}", series.prefix))
                    .fix("end that one first, or name this one"),
            );
        }
        let view = View {
            name: series.prefix.clone(),
            target: series.target.clone(),
            every_ms: u64::try_from(series.every.as_millis()).unwrap_or(u64::MAX),
            keep: series.keep,
            taken: 0,
            skipped: 0,
            last: None,
            problem: None,
        };
        let stop = stop.clone();
        all.push(Running { view, stop });
        Ok(())
    }

    fn run(&self, series: &Series, stop: &Stop, answer: Answer) {
        let mut answer = Some(answer);
        let end = series.run(stop, &mut |event| {
            let mut all = self.all();
            let Some(running) = all.iter_mut().find(|running| running.view.name == series.prefix) else {
                return;
            };
            running.view.see(&event);
            if let Some(answer) = answer.take() {
                let _ = answer.send(Ok(running.view.clone()));
            }
        });
        self.all().retain(|running| running.view.name != series.prefix);
        match end {
            Ok(end) => tracing::info!(series = series.prefix, gone = end == End::Gone, "series ended"),
            Err(error) => {
                tracing::warn!(series = series.prefix, kind = ?error.kind, %error, "series failed");
                if let Some(answer) = answer {
                    let _ = answer.send(Err(error));
                }
            }
        }
    }
}

impl View {
    fn see(&mut self, event: &Event<'_>) {
        match event {
            Event::Taken(report) => {
                tracing::info!(series = self.name, appshot = %report.appshot.display(), "snapshot taken");
                self.taken += 1;
                self.problem = None;
                self.last = Some((*report).clone());
            }
            Event::Skipped { count, took } => {
                tracing::warn!(series = self.name, count, took = took.as_millis(), "skipped");
                self.skipped += u64::from(*count);
            }
            Event::Failed(error) => {
                tracing::warn!(series = self.name, kind = ?error.kind, %error, "snapshot failed");
                self.problem = Some((*error).clone());
            }
            Event::Removed(appshot) => tracing::info!(series = self.name, appshot, "removed"),
            Event::Needed(kept) => tracing::info!(series = self.name, appshot = kept.name, why = kept.why, "kept"),
            Event::PutOff { stood, next } => tracing::warn!(
                series = self.name,
                stood_ms = stood.as_millis(),
                next_ms = next.as_millis(),
                "put off, so that the app runs for nine tenths of the time"
            ),
        }
    }
}
