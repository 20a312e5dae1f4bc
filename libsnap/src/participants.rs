//! Programs that take part in what is done to them: files in the instance's own
//! directory ([`crate::identity`]), no library.
//!
//! ```text
//!   hooks/NAME   made by a program that takes part, one each
//!   phase        written by us, one line:
//!
//!     running              nothing is done
//!     snapshot TOKEN       a snapshot waits for those who take part
//!     restored GENERATION  since the last start this is another run of the app
//!
//!   running ──> snapshot T ──> (frozen) ──restore──> restored G ──> snapshot U ──> ...
//!      ^            │
//!      └────────────┘ the app goes on: left running, or the snapshot was given up
//! ```
//!
//! Who takes part answers by copying the line of `phase` into its file, as soon as it
//! has done what it has to: let go of connections, say, or renewed random numbers. A
//! snapshot is taken when every file holds the line. Names that begin with a dot do not
//! count: to write a file whole, write such a one and rename it.
//!
//! `phase` is replaced by a rename: it can be read whole at any time, and inotify(7) on
//! the directory tells IN_MOVED_TO. Where nobody takes part it stays as it is. The names
//! are in the appshot; after a restore their files are there again, empty.
//!
//! What stands below `hooks` was written by the app: nothing is followed, only
//! ordinary files are read.

use crate::error::{Error, OrFail, Result};
use crate::identity::{self, HOOKS, hex};
use crate::ids::HostPid;
use crate::image::limits;
use crate::journal::Journal;
use crate::survey;
use crate::sys::Sys;
use crate::target::Target;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{Mode, fstat, fstatat};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;

pub const RUNNING: &str = "running";
pub const SNAPSHOT: &str = "snapshot";
pub const RESTORED: &str = "restored";

pub(crate) const PHASE: &str = "phase";
/// Before it takes that one's place.
pub(crate) const NEXT_PHASE: &str = ".phase";
/// More of a file is not looked at: it is no answer.
pub(crate) const ANSWER_BYTES_MAX: u64 = 128;

/// More entries of a directory are not looked at.
const ENTRIES_MAX: usize = 10_000;

/// The directory of a live instance.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// That of the instance that this process belongs to, where it has one of its own.
    pub fn of(pid: HostPid) -> Option<Directory> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        // The root of another process is a link of the kernel's own.
        let path = format!("/proc/{pid}/root");
        let root = openat(AT_FDCWD, path.as_str(), flags, Mode::empty()).ok()?;
        let below = |path: &str| {
            let how = OpenHow::new().flags(flags);
            openat2(
                &root,
                path,
                how.resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS),
            )
        };
        let path = identity::DIRECTORY;
        let directory = below(path).ok()?;
        let above = fstatat(&directory, "..", nix::fcntl::AtFlags::empty()).ok()?;
        (fstat(&directory).ok()?.st_dev != above.st_dev).then_some(Directory(directory))
    }

    /// The line that stands in `phase`.
    pub fn phase(&self) -> Option<String> {
        let text = read(&self.0, PHASE)?;
        text.strip_suffix('\n').map(str::to_owned)
    }

    fn set_phase(&self, line: &str) -> Sys<()> {
        nix::unistd::unlinkat(&self.0, NEXT_PHASE, nix::unistd::UnlinkatFlags::NoRemoveDir).ok();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o644);
        let mut file = File::from(openat(&self.0, NEXT_PHASE, flags, mode)?);
        let written = file.write_all(format!("{line}\n").as_bytes());
        written.map_err(|error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
        renameat(&self.0, NEXT_PHASE, &self.0, PHASE)
    }

    pub(crate) fn part(&self, name: &str) -> Option<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        openat(&self.0, name, flags, Mode::empty()).ok()
    }

    /// Who takes part, in the order of their names.
    pub fn participants(&self) -> Vec<String> {
        self.names(HOOKS)
    }

    /// Files of a part, in the order of their names; those that do not count left out.
    pub(crate) fn names(&self, part: &str) -> Vec<String> {
        let Some(mut part) = self.part(part).and_then(|part| Dir::from_fd(part).ok()) else {
            return Vec::new();
        };
        let entries = part.iter().flatten().take(ENTRIES_MAX);
        let names = entries.filter_map(|entry| entry.file_name().to_str().ok().map(str::to_owned));
        let mut names: Vec<String> = names.filter(|name| identity::is_name(name)).collect();
        names.sort_unstable();
        names
    }

    /// Those who take part and have not answered to what stands in `phase`.
    pub fn behind(&self) -> Vec<String> {
        let (Some(phase), Some(hooks)) = (self.phase(), self.part(HOOKS)) else {
            return Vec::new();
        };
        let answered = |name: &String| read(&hooks, name).is_some_and(|text| text.trim_end() == phase);
        let mut participants = self.participants();
        participants.retain(|name| !answered(name));
        participants
    }
}

fn read(directory: &OwnedFd, name: &str) -> Option<String> {
    let mut text = String::new();
    let file = open(directory, name)?;
    file.take(ANSWER_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

/// An ordinary file that the app has written.
pub(crate) fn open(directory: &OwnedFd, name: &str) -> Option<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = File::from(openat(directory, name, flags, Mode::empty()).ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}

/// Those of an app that stands still, for its appshot. `directory` was opened before.
pub fn of(root: HostPid, directory: Option<&Directory>) -> Vec<String> {
    match directory {
        Some(directory) => directory.participants(),
        None => Directory::of(root).map_or_else(Vec::new, |directory| directory.participants()),
    }
}

/// A snapshot that those who take part have been asked for. Dropped, it is over for
/// them; should this process be killed before, its journal tells it.
#[derive(Debug)]
#[must_use]
pub struct Asking {
    directory: Directory,
    _journal: Journal,
}

impl Asking {
    /// Asks; `None` where nobody takes part.
    pub fn begin(target: &Target) -> Result<Option<Asking>> {
        let root = survey::root(target);
        let Some(directory) = Directory::of(root) else {
            return Ok(None);
        };
        let failed = || format!("cannot snapshot {}", survey::subject(target));
        match directory.participants().len() {
            0 => return Ok(None),
            1..=limits::PARTICIPANTS => {}
            more => {
                return Err(Error::refused(failed())
                    .because(format!("{more} take part in it"))
                    .fix(format!("remove files of {}", identity::HOOKS_DIRECTORY)));
            }
        }
        let asking = Asking {
            directory,
            _journal: Journal::asking(root)?,
        };
        let token = hex(&identity::random::<8>()?);
        let set = asking.directory.set_phase(&format!("{SNAPSHOT} {token}"));
        set.or_fail(|| format!("{}: those who take part cannot be asked", failed()))?;
        Ok(Some(asking))
    }

    /// Who has not answered yet.
    pub fn behind(&self) -> Vec<String> {
        self.directory.behind()
    }
}

impl Drop for Asking {
    /// Where the app has ended, nobody reads it.
    fn drop(&mut self) {
        over(&self.directory);
    }
}

fn over(directory: &Directory) {
    if let Err(error) = directory.set_phase(RUNNING) {
        tracing::warn!(%error, "who takes part in a snapshot does not hear that it is over");
    }
}

/// Of one whose asker was killed.
pub(crate) fn end_asking(root: HostPid) {
    if let Some(directory) = Directory::of(root) {
        over(&directory);
    }
}
