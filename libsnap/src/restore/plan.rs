//! Everything that can be refused is refused here, before a process exists.

use super::vdso::{self, Vdso};
use crate::error::{Error, Kind, Result};
use crate::image::Appshot;
use crate::image::records::{ExternalFile, VmaKind};
use crate::memory;
use crate::target::{Allow, PidMode, RestoreOptions};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Refuses, or answers how each process comes to its vdso.
pub fn check(shot: &Appshot, options: &RestoreOptions) -> Result<Vec<Vdso>> {
    rights()?;
    processor(shot)?;
    let vdsos = vdso::plan(shot, options.force_vdso_bridge)?;
    for file in &shot.manifest.external {
        external(file, &options.allow)?;
    }
    for core in &shot.cores {
        credentials(core, &options.allow)?;
    }
    if options.pids == PidMode::Host && shot.manifest.processes.iter().any(|p| p.pid.0 == 1) {
        return Err(refused("process number 1 cannot be given on the host").fix("use --pids=new"));
    }
    Ok(vdsos)
}

pub fn refused(because: impl std::fmt::Display) -> Error {
    Error::refused("cannot restore this appshot")
        .because(because)
        .state("nothing was started")
}

/// Restoring makes namespaces and chooses PIDs.
fn rights() -> Result<()> {
    use caps::{CapSet, Capability};
    for (wanted, also) in [
        (Capability::CAP_SYS_ADMIN, None),
        (Capability::CAP_SYS_PTRACE, None),
        (Capability::CAP_CHECKPOINT_RESTORE, Some(Capability::CAP_SYS_ADMIN)),
    ] {
        let has = |cap| caps::has_cap(None, CapSet::Effective, cap).unwrap_or(false);
        if !has(wanted) && !also.is_some_and(has) {
            return Err(Error::new(Kind::Unavailable, "cannot restore an appshot")
                .because(format!("this process has not the right {wanted}"))
                .needs(format!("{wanted}"))
                .fix("run as root")
                .state("nothing was started"));
        }
    }
    Ok(())
}

fn processor(shot: &Appshot) -> Result<()> {
    let needs = &shot.manifest.needs;
    if needs.page_size != crate::sys::memory::PAGE {
        return Err(refused(format!("it needs pages of {} bytes", needs.page_size)));
    }
    let here = crate::kernel::xcr0();
    let missing = needs.xcr0 & !here;
    if missing != 0 {
        return Err(refused(format!(
            "this processor lacks register sets that the app uses (XCR0 bits {missing:#x})"
        ))
        .needs(format!("a processor with XCR0 {:#x}", needs.xcr0)));
    }
    Ok(())
}

/// A file the app maps or reads must be the one it knew.
fn external(file: &ExternalFile, allow: &Allow) -> Result<()> {
    let path = &file.path;
    let Ok(meta) = fs::metadata(path) else {
        return Err(Error::new(Kind::NotFound, "cannot restore this appshot")
            .because(format!("the app needs {path}, which is missing"))
            .fix("install the same version of the package that holds it")
            .state("nothing was started"));
    };
    let mtime_ns = meta.mtime() * 1_000_000_000 + meta.mtime_nsec();
    let same = meta.len() == file.size && mtime_ns == file.mtime_ns;
    let fine = if file.must_equal {
        same
    } else {
        meta.len() >= file.size || meta.ino() == file.ino
    };
    if fine || allow.changed_files {
        return Ok(());
    }
    let fix = if file.build_id.is_some() && memory::build_id(path) == file.build_id {
        "it has the same build-id: if it is a copy you trust, pass --allow-changed-files"
    } else {
        "put the same version back, or pass --allow-changed-files"
    };
    let now = meta.len();
    Err(refused(format!(
        "{path} has changed since: {} bytes then, {now} now, or written since",
        file.size
    ))
    .fix(fix))
}

/// What the appshot asks for must lie within what the caller allows.
fn credentials(core: &crate::image::Core, allow: &Allow) -> Result<()> {
    for thread in &core.image.threads {
        let creds = &thread.record.creds;
        let tid = thread.record.tid;
        if let Some(uids) = &allow.uids
            && let Some(uid) = creds.uid.iter().find(|uid| !uids.contains(uid))
        {
            return Err(
                refused(format!("task {tid} wants to run as user {uid}, which is not allowed"))
                    .fix(format!("allow it with --allow-uid {uid}")),
            );
        }
        let wanted = creds.cap_permitted | creds.cap_effective | creds.cap_inheritable | creds.cap_ambient;
        let beyond = wanted & !(allow.capabilities & own_capabilities());
        if beyond != 0 {
            return Err(refused(format!(
                "task {tid} wants capabilities {beyond:#x} that are not allowed here"
            ))
            .fix("allow them, or restore with more rights"));
        }
    }
    let exe = &core.image.process.exe;
    let mapped = core
        .image
        .vmas
        .iter()
        .any(|vma| matches!(&vma.kind, VmaKind::PrivateFile { path, .. } if path == exe));
    if !mapped && !fs::exists(exe).unwrap_or(false) {
        return Err(refused(format!("its program {exe} is missing")));
    }
    Ok(())
}

fn own_capabilities() -> u64 {
    crate::proc::Fields::status(crate::ids::HostPid(std::process::id() as i32)).map_or(0, |s| s.hex("CapPrm"))
}
