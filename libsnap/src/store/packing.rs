//! Appshots that the store keeps packed: `NAME.appshot` is a file then.
//!
//! ```text
//!                  pack                        exchange of names
//! NAME.appshot/  ───────> .NAME.appshot.next  ──────────────────> NAME.appshot
//!                <───────                     <──────────────────
//!                 unpack, when a restore asks for it
//! ```

use super::{Need, Store, Stored, now_unix_ms};
use crate::error::{Error, Kind, Result};
use crate::image;
use crate::restore::working_set;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

impl Store {
    /// Packs an appshot where it is; answers what it takes on disk now. Refused where
    /// its files are needed as they are.
    pub fn pack_stored(&self, name: &str, level: i32) -> Result<u64> {
        let _busy = self.try_lock(name)?;
        let stored = self.stored(name)?;
        if let Some(why) = needed_as_it_is(&stored) {
            return Err(Error::new(Kind::Conflict, format!("the appshot {name} is not packed"))
                .because(why)
                .state("nothing was touched"));
        }
        image::pack(&stored.path, &self.next_path(name), level)?;
        self.settle(name)?;
        Ok(image::sizes(&stored.path).1)
    }

    /// Those that are not packed and could be, and were not used for so long: since they
    /// were written, unpacked, or an instance that is known was restored from them.
    pub fn idle_for(&self, idle: Duration) -> Result<Vec<Stored>> {
        let (now, apps) = (now_unix_ms()?, self.list()?);
        let used = |stored: &Stored| {
            let written = |path: &Path| path.metadata().map_or(0, |meta| meta.mtime().unsigned_abs() * 1000);
            let restored = apps.iter().filter(|app| app.from.as_ref() == Some(&stored.path));
            let restored = restored.map(|app| app.started_unix_ms);
            let helped = working_set::path(&stored.path).map(|path| written(&path));
            restored
                .chain(helped)
                .chain([written(&stored.path)])
                .max()
                .unwrap_or_default()
        };
        let mut all = self.inventory()?;
        all.retain(|stored| {
            let idle_now = Duration::from_millis(now.saturating_sub(used(stored)));
            stored.app.is_some() && needed_as_it_is(stored).is_none() && idle_now >= idle
        });
        Ok(all)
    }

    /// Unpacks what the store keeps packed at `path`, verified; `false` where it does not.
    /// It may take more than the quota then: an app that sleeps is to wake.
    pub fn unpack_stored(&self, path: &Path) -> Result<bool> {
        let Some(name) = self.stored_name(path).filter(|_| path.is_file()) else {
            return Ok(false);
        };
        let _busy = self.wait_lock(&name)?;
        self.settle(&name)?;
        if !path.is_file() {
            return Ok(false);
        }
        image::unpack(path, &self.next_path(&name))?;
        self.settle(&name)?;
        Ok(true)
    }
}

fn needed_as_it_is(stored: &Stored) -> Option<String> {
    let reads = |need: &&Need| !matches!(need, Need::Asleep(_) | Need::Deployed(_));
    match stored.needed_by.iter().find(reads) {
        _ if stored.packed_bytes.is_some() => Some("it is already".to_owned()),
        Some(need) => Some(need.to_string()),
        None if !stored.parents.is_empty() => Some("it borrows pages of others".to_owned()),
        None => None,
    }
}
