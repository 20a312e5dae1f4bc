//! The rights of the app over files, had by who opens its files for it.
//!
//! Files are found by their names, and who may rename the directories on the way can have
//! them lead anywhere while the app sleeps. With the app's own rights they lead to nothing
//! that it could not have opened by itself. They are those of its first process: user and
//! group for access to files, and its other groups. While that user is not 0, the kernel
//! takes what would go around them from the thread (`CAP_DAC_OVERRIDE`, `CAP_FOWNER`,
//! `CAP_CHOWN`, ...: setfsuid(2), capabilities(7)), and gives it back with user 0.

use super::prepared::Way;
use super::script::Script;
use crate::error::{Error, Kind, OrFail, Result};
use crate::image::Appshot;
use crate::image::records::VmaKind;
use crate::sys::task::{securebits, set_groups};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, Gid, Uid, faccessat, getegid, geteuid, getgroups, setfsgid, setfsuid};

/// No user and no group: to be told what is, and change nothing.
const NONE: u32 = u32::MAX;
/// `SECBIT_NO_SETUID_FIXUP`: what goes around rights stays with the thread.
const KEEPS: u32 = 1 << 2;

#[derive(Debug)]
pub struct Itself {
    user: u32,
    group: u32,
    groups: Vec<u32>,
}

impl Itself {
    /// `None` where nobody asked for it, and for an app that opens files as user 0.
    pub fn of(way: Way, shot: &Appshot) -> Result<Option<Itself>> {
        let thread = shot.cores.first().and_then(|core| core.image.threads.first());
        let Some(creds) = thread.map(|thread| &thread.record.creds).filter(|_| way.as_itself) else {
            return Ok(None);
        };
        let (user, group) = (creds.uid[3], creds.gid[3]);
        if user == 0 {
            return Ok(None);
        }
        let failed = || format!("cannot open files as user {user}");
        if user == NONE || group == NONE {
            return Err(Error::refused(failed()).because("there is no such user or group"));
        }
        let bits = securebits().or_fail(failed)?;
        if bits & KEEPS != 0 || !geteuid().is_root() {
            return Err(Error::new(Kind::Unavailable, failed())
                .because("this process would keep rights of its own (it is not root, or has SECBIT_NO_SETUID_FIXUP)")
                .fix("restore it by a daemon that runs as root"));
        }
        let groups = creds.groups.clone();
        Ok(Some(Itself { user, group, groups }))
    }

    /// Does the job with these rights, in this thread alone.
    pub fn within<T>(&self, job: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = getgroups().or_fail(|| "cannot read the groups of this thread")?;
        let own: Vec<u32> = own.into_iter().map(Gid::as_raw).collect();
        let done = self.enter().and_then(|()| job());
        setfsuid(geteuid());
        setfsgid(getegid());
        let back = set_groups(&own).or_fail(|| "cannot take back the groups of this thread");
        back.and_then(|()| match setfsuid(Uid::from_raw(NONE)) == geteuid() {
            true => self.told(done),
            false => Err(Error::failed("this thread cannot take back its own rights")),
        })
    }

    fn enter(&self) -> Result<()> {
        set_groups(&self.groups).or_fail(|| self.failed())?;
        setfsgid(Gid::from_raw(self.group));
        setfsuid(Uid::from_raw(self.user));
        // They answer what was before, whatever they did.
        let now = (setfsuid(Uid::from_raw(NONE)), setfsgid(Gid::from_raw(NONE)));
        match now == (Uid::from_raw(self.user), Gid::from_raw(self.group)) {
            true => Ok(()),
            false => Err(Error::failed(self.failed()).because("the kernel refuses its user or group")),
        }
    }

    fn failed(&self) -> String {
        format!("cannot open files as user {}", self.user)
    }

    /// What the script does from here on is done with these rights.
    pub fn begin(&self, script: &mut Script<'_>) -> Result<()> {
        let batch = script.room(5, 4 * self.groups.len())?;
        let groups: Vec<u8> = self.groups.iter().flat_map(|group| group.to_ne_bytes()).collect();
        let groups = batch.bytes(&groups).address;
        batch.must("setgroups", libc::SYS_setgroups, &[self.groups.len() as u64, groups]);
        set(script, self.user, self.group)
    }

    /// Until here: it is root again, and in no other group.
    pub fn end(script: &mut Script<'_>) -> Result<()> {
        set(script, 0, 0)?;
        script.must("setgroups", libc::SYS_setgroups, &[0, 0]).map(drop)
    }

    /// A husk's script does not tell which of the files that the app has mapped it may not
    /// open: this does.
    pub fn named(&self, mut error: Error, shot: &Appshot, view: &str) -> Error {
        let files = shot.cores.iter().flat_map(|core| {
            let mapped = core.image.vmas.iter().filter_map(|vma| match &vma.kind {
                VmaKind::PrivateFile { path, .. } => Some((path, AccessFlags::R_OK)),
                VmaKind::SharedFile { path, writable, .. } if *writable => {
                    Some((path, AccessFlags::R_OK | AccessFlags::W_OK))
                }
                VmaKind::SharedFile { path, .. } => Some((path, AccessFlags::R_OK)),
                _ => None,
            });
            mapped.chain([(&core.image.process.exe, AccessFlags::R_OK)])
        });
        // Asked of the rights that the thread has just then (faccessat2, Linux 5.8).
        let denied = |(path, how): &(&String, AccessFlags)| {
            let path = format!("{view}{path}");
            faccessat(AT_FDCWD, path.as_str(), *how, AtFlags::AT_EACCESS) == Err(Errno::EACCES)
        };
        if is_denied(&error)
            && let Ok(Some((path, _))) = self.within(|| Ok(files.into_iter().find(denied)))
        {
            error.what = format!("cannot open {path}, which the app has mapped");
            error.because = Some(Errno::EACCES.to_string());
        }
        error
    }

    /// An error because of these rights says so.
    pub fn told<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|mut error| {
            if !is_denied(&error) {
                return error;
            }
            error.kind = Kind::Refused;
            error
                .needs(format!(
                    "rights that user {} has: its files are opened, made and removed with the rights of the app itself (as_itself)",
                    self.user
                ))
                .fix(format!(
                    "see where the name leads now, and let user {} open it; restore it without as_itself only if nobody but root can rename what is on the way",
                    self.user
                ))
        })
    }
}

fn is_denied(error: &Error) -> bool {
    let because = error.because.as_deref().unwrap_or_default();
    [Errno::EACCES, Errno::EPERM]
        .iter()
        .any(|no| because.contains(no.desc()))
}

/// setfsuid(2) and setfsgid(2) do not fail: they are asked what they did.
fn set(script: &mut Script<'_>, user: u32, group: u32) -> Result<()> {
    let both = [
        ("setfsgid", libc::SYS_setfsgid, group),
        ("setfsuid", libc::SYS_setfsuid, user),
    ];
    for (name, number, id) in both {
        script.must(name, number, &[u64::from(id)])?;
        let now = script.must(name, number, &[u64::from(NONE)])?;
        script.expect(now, "taking the rights of a user over files", u64::from(id));
    }
    Ok(())
}
