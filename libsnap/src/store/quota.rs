//! How much the store may take.
//!
//! `DATA_DIR/quota` holds the number of bytes; there is none without it. It counts what
//! the files take on disk. A snapshot is held against it twice: before the app is
//! touched, by the memory that the app has, and before the appshot is sealed, by what
//! was written.

use super::{Store, files};
use crate::error::{Error, OrFail, Result};
use crate::units::bytes;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What a new appshot may take, and what that was reckoned from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Room {
    pub quota: u64,
    /// By others.
    pub taken: u64,
}

impl Room {
    pub fn bytes(self) -> u64 {
        self.quota.saturating_sub(self.taken)
    }

    /// Fails when what takes `wanted` bytes does not fit.
    pub fn holds(self, wanted: u64) -> Result<()> {
        if wanted <= self.bytes() {
            return Ok(());
        }
        let error = Error::refused(format!(
            "the appshot would exceed the quota of the store, {}",
            bytes(self.quota)
        ));
        let fix = match self.quota.checked_sub(wanted) {
            Some(rest) => format!("make room with `appshot store gc --quota {}K`, or ", rest >> 10),
            None => String::new(),
        };
        Err(error
            .because(format!("it takes {}, others take {}", bytes(wanted), bytes(self.taken)))
            .needs(format!("{} more", bytes(wanted - self.bytes())))
            .fix(fix + "raise the quota with `appshot store quota`"))
    }
}

impl Store {
    fn quota_path(&self) -> PathBuf {
        self.data_dir.join("quota")
    }

    /// In bytes; `None` is no limit.
    pub fn quota(&self) -> Result<Option<u64>> {
        let path = self.quota_path();
        let Some(bytes) = files::read_json::<u64>(&path)? else {
            return Ok(None);
        };
        Ok((bytes > 0).then_some(bytes))
    }

    pub fn set_quota(&self, quota: Option<u64>) -> Result<()> {
        let path = self.quota_path();
        let _one = files::Lock::take(&self.lock_path("store", "quota"))?;
        match quota {
            Some(bytes) => files::write_json(&path, &bytes)?,
            None => files::remove(&path)?,
        }
        files::sync_parent(&path).or_fail(|| format!("cannot write {}", path.display()))
    }

    /// What there is for a new appshot called `name`, in the place of the one that is
    /// there; `None` is no limit.
    pub fn room(&self, name: &str) -> Result<Option<Room>> {
        let Some(quota) = self.quota()? else { return Ok(None) };
        let replaced = crate::image::sizes(&self.appshot_path(name)).1;
        let taken = self.disk_bytes().saturating_sub(replaced);
        Ok(Some(Room { quota, taken }))
    }
}
