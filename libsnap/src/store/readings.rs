//! The last counters of an instance, left for whoever meters it.
//!
//! ```text
//! RUN_DIR/usage/INSTANCE.json      what the cgroup had counted when it went
//! ```
//!
//! Nobody can ask a cgroup that is gone, so who removes it looks at it before. That is
//! done where usage is metered at all: where `DATA_DIR/usage` is there. Who takes a
//! reading into its books removes the file; it stays while nobody does.

use super::{App, Store, boot, files, now_unix_ms};
use crate::cgroup::{self, Counters};
use crate::clocks;
use crate::error::{Error, Result};
use crate::network::Traffic;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Of what is written here.
const VERSION: u32 = 1;

/// What was last seen of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    pub version: u32,
    pub boot_id: String,
    /// When it ended: CLOCK_BOOTTIME of that boot, and the calendar.
    pub boot_ns: u64,
    pub unix_ms: u64,
    /// Its record, with how it ended.
    pub app: App,
    pub counters: Counters,
    /// What had gone through the network that it had joined, where that could be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
}

impl Store {
    /// Where usage is kept; who meters makes it.
    pub fn usage_dir(&self) -> PathBuf {
        self.data_dir().join("usage")
    }

    /// Where last readings are left.
    pub fn readings_dir(&self) -> PathBuf {
        self.run_dir().join("usage")
    }

    /// Removes the cgroup of an app that has ended, at `ended_ns` of CLOCK_BOOTTIME, if it is
    /// still there, and leaves its last counters. What is left in it is killed.
    pub fn clear_cgroup(&self, app: &App, ended_ns: u64) -> Result<()> {
        let Some(cgroup) = app.cgroup.as_deref().filter(|path| path.exists()) else {
            return Ok(());
        };
        if !app.instance.is_empty() && self.usage_dir().exists() {
            // What still runs is counted, too.
            cgroup::kill(cgroup);
            if let Err(error) = self.leave_reading(app, cgroup, ended_ns) {
                tracing::warn!(app = app.name, %error, "its last use is not told");
            }
        }
        cgroup::destroy(cgroup)
    }

    fn leave_reading(&self, app: &App, cgroup: &Path, ended_ns: u64) -> Result<()> {
        let failed = |e| Error::failed(format!("cannot read the counters of {}", cgroup.display())).because(e);
        let since_ms = clocks::boottime_ns().saturating_sub(ended_ns) / 1_000_000;
        let reading = Reading {
            version: VERSION,
            boot_id: boot::id()?,
            boot_ns: ended_ns,
            unix_ms: now_unix_ms()?.saturating_sub(since_ms),
            app: app.clone(),
            counters: cgroup::counters(cgroup).map_err(failed)?,
            traffic: app.network.and_then(|network| network.traffic().ok()),
        };
        let path = self.reading_path(&app.instance);
        if files::write_json(&path, &reading).is_ok() {
            return Ok(());
        }
        // The directory does not outlive a boot.
        files::directory(&self.readings_dir(), 0o700)?;
        files::write_json(&path, &reading)
    }

    fn reading_path(&self, instance: &str) -> PathBuf {
        self.readings_dir().join(format!("{instance}.json"))
    }

    /// The readings that nobody has taken yet, by instance. One that cannot be read, or is
    /// of a version that we do not know, stays and is told.
    pub fn readings(&self) -> Result<Vec<Reading>> {
        let dir = self.readings_dir();
        if !dir.exists() {
            return Ok(Vec::new());
        }
        let mut readings = Vec::new();
        for instance in files::stems(&dir, ".json")? {
            match files::read_json::<Reading>(&self.reading_path(&instance)) {
                Ok(Some(reading)) if reading.version == VERSION && reading.app.instance == instance => {
                    readings.push(reading);
                }
                Ok(Some(_)) => tracing::warn!(instance, "a reading of another version or instance stays"),
                Ok(None) => {}
                Err(error) => tracing::warn!(instance, %error, "a reading stays"),
            }
        }
        Ok(readings)
    }

    /// Forgets a reading that was taken.
    pub fn remove_reading(&self, reading: &Reading) -> Result<()> {
        files::remove(&self.reading_path(&reading.app.instance))
    }
}
