//! What has happened to apps and providers.

use crate::{Control, Logged};
use libsnap::error::Result;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One entry of the log, as it is shown.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// They count up; what was removed leaves a gap.
    pub id: u64,
    pub unix_ms: u64,
    pub kind: String,
    pub app: Option<String>,
    pub provider: Option<String>,
    /// What belongs to this kind.
    pub told: Value,
}

/// Which of them.
#[derive(Clone, Debug, Default)]
pub struct Query {
    /// Those that came later than this one.
    pub after: u64,
    pub app: Option<String>,
    pub provider: Option<String>,
    /// No more than these: the first, or with `newest` the last.
    pub limit: u32,
    pub newest: bool,
}

impl Control {
    /// Adds to the log; answers the number of the last.
    pub fn tell(&self, events: &[Logged]) -> Result<u64> {
        self.engine.append(events)
    }

    pub fn events(&self, query: &Query) -> Result<Vec<Event>> {
        self.engine.events(query)
    }
}
