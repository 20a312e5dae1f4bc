//! Everything that can be refused is refused here, before a process exists.

use super::rights;
use super::vdso::{self, Vdso};
use crate::error::{Error, Kind, Result};
use crate::files::{repair, sockets};
use crate::hugetlb;
use crate::identity;
use crate::image::records::{ExternalFile, FileKind, OpenFile};
use crate::image::{Appshot, Core};
use crate::keys;
use crate::launch::on_host;
use crate::memory;
use crate::target::{Allow, Bind, Notice, PidMode, RestoreOptions, signal_name};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;

/// Refuses, or answers how each process comes to its vdso.
pub fn check(shot: &Appshot, options: &RestoreOptions) -> Result<Vec<Vdso>> {
    let vdsos = here(shot, options.force_vdso_bridge)?;
    allowed(shot, options)?;
    Ok(vdsos)
}

/// The same, but for what depends on who asks, and when.
pub fn here(shot: &Appshot, force_vdso_bridge: bool) -> Result<Vec<Vdso>> {
    needed()?;
    connects(shot)?;
    processor(shot)?;
    hugetlb::fits(shot)?;
    vdso::plan(shot, force_vdso_bridge)
}

/// Whether its files are as they were, the caller allows what it asks for, and it hears
/// what the caller tells it.
pub fn allowed(shot: &Appshot, options: &RestoreOptions) -> Result<()> {
    let allow = &options.allow;
    let seen = Seen::default();
    options.binds.iter().try_for_each(Bind::sensible)?;
    if options.pids == PidMode::Host && !options.binds.is_empty() {
        return Err(on_host("restore"));
    }
    if options.pids == PidMode::Host
        && shot
            .cores
            .first()
            .is_some_and(|core| !core.image.process.namespaces.is_empty())
    {
        return Err(
            refused("its first process is in namespaces beside the app's own, of which it has none here")
                .fix("restore it into a new PID namespace (--pids=new)"),
        );
    }
    // What is bound there is another one, and looked for once it is.
    let here = |file: &&ExternalFile| !options.binds.iter().any(|bind| bind.has(&file.path));
    for file in shot.manifest.external.iter().filter(here) {
        external(file, &seen, allow)?;
    }
    rights::check(shot, &seen, allow)?;
    options.notices.iter().try_for_each(|notice| heard(shot, *notice))
}

/// A signal that nobody waits for would end the app, or tell it nothing.
fn heard(shot: &Appshot, notice: Notice) -> Result<()> {
    let deaf = |core: &&Core| {
        let action = core.image.process.sigactions.get(notice.signal as usize - 1);
        let handled = action
            .is_some_and(|action| action.handler != libc::SIG_DFL as u64 && action.handler != libc::SIG_IGN as u64);
        let bit = 1 << (notice.signal - 1);
        !handled && !core.image.threads.iter().any(|thread| thread.record.sigmask & bit != 0)
    };
    let told = if notice.all { &shot.cores[..] } else { &shot.cores[..1] };
    match told.iter().find(deaf) {
        None => Ok(()),
        Some(core) => {
            let signal = signal_name(notice.signal);
            let pid = core.image.process.pid;
            Err(refused(format!("process {pid} does not handle {signal}"))
                .fix("name a signal that it has a handler for"))
        }
    }
}

/// What the names of an appshot lead to here, looked up once.
#[derive(Debug, Default)]
pub struct Seen(RefCell<HashMap<String, Option<Metadata>>>);

impl Seen {
    /// Links followed; `None` where there is nothing.
    pub fn metadata(&self, path: &str) -> Option<Metadata> {
        let mut known = self.0.borrow_mut();
        if let Some(known) = known.get(path) {
            return known.clone();
        }
        let found = fs::metadata(path).ok();
        known.insert(path.to_owned(), found.clone());
        found
    }
}

pub fn refused(because: impl std::fmt::Display) -> Error {
    Error::refused("cannot restore this appshot")
        .because(because)
        .state("nothing was started")
}

/// Restoring makes namespaces and chooses PIDs.
fn needed() -> Result<()> {
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
    crate::kernel::require_unfiltered("cannot restore an appshot").map_err(|e| e.state("nothing was started"))
}

/// Both ends of a TCP connection are made in repair mode.
fn connects(shot: &Appshot) -> Result<()> {
    let is_end = |file: &OpenFile| match &file.kind {
        FileKind::Socket(socket) => sockets::is_end(socket),
        _ => false,
    };
    if !shot.manifest.files.iter().any(is_end) || repair::works() {
        return Ok(());
    }
    Err(Error::new(Kind::Unavailable, "cannot restore this appshot")
        .because("it has a TCP connection, and none can be made as it was (TCP_REPAIR)")
        .needs("CAP_NET_ADMIN, Linux 4.19")
        .fix("run as root")
        .state("nothing was started"))
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
    match shot.cores.iter().any(|core| keys::uses(&core.image)) {
        true => keys::require_given(),
        false => Ok(()),
    }
}

/// A file the app maps or reads must be the one it knew. Those of the instance's own directory
/// are its own: each has others, of the same names.
fn external(file: &ExternalFile, seen: &Seen, allow: &Allow) -> Result<()> {
    let path = &file.path;
    if identity::is_file(path) {
        return Ok(());
    }
    let Some(meta) = seen.metadata(path) else {
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
