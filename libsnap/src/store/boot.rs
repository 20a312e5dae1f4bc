//! Records do not outlive the boot in which they were written.
//!
//! Where the run directory is no tmpfs it survives a reboot, with records whose
//! PIDs and start times mean other processes now, or that a crash of the machine
//! left half-written.

use super::files::{self, Lock};
use crate::error::{OrFail, Result};
use std::path::Path;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The kernel's name of this boot.
pub fn id() -> Result<String> {
    let text = std::fs::read_to_string(BOOT_ID).or_fail(|| format!("cannot read {BOOT_ID}"))?;
    Ok(text.trim_end().to_owned())
}

/// Removes what another boot left in the run directory.
pub fn sweep(run_dir: &Path) -> Result<()> {
    let now = std::fs::read(BOOT_ID).or_fail(|| format!("cannot read {BOOT_ID}"))?;
    let mark = run_dir.join("boot");
    if is_of(&mark, &now) {
        return Ok(());
    }
    let _one = Lock::take(&run_dir.join("boot.lock"))?;
    if is_of(&mark, &now) {
        return Ok(());
    }
    empty(&run_dir.join("apps"))?;
    std::fs::write(&mark, &now).or_fail(|| format!("cannot write {}", mark.display()))
}

fn is_of(mark: &Path, boot: &[u8]) -> bool {
    std::fs::read(mark).is_ok_and(|marked| marked == boot)
}

fn empty(dir: &Path) -> Result<()> {
    let entries = dir.read_dir().or_fail(|| format!("cannot list {}", dir.display()))?;
    entries.flatten().try_for_each(|entry| files::remove(&entry.path()))
}
