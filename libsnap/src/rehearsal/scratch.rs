//! Namespaces in which a rehearsal takes place: what it makes, locks or binds there meets
//! nothing of the machine's, and goes with the thread that has entered them.
//!
//! ```text
//!   mount namespace     every directory of a claim: overlay(lower: the directory, upper: memory)
//!                       what is mounted below it is bound there again
//!   network namespace   loopback alone, which has the app's addresses; any other can be bound, and every
//!                       one is reached
//! ```
//!
//! The second appshot stands in such a copy of the first one's directory, which is its
//! parent there: where this process is killed, the kernel removes it. Needs overlayfs
//! (`CONFIG_OVERLAY_FS`).

use super::claims::Claim;
use crate::error::{Error, Kind, OrFail, Result};
use crate::identity;
use crate::image::Appshot;
use crate::image::compare::Difference;
use crate::image::records::ExternalFile;
use crate::launch;
use crate::sys::diag;
use crate::sys::fd as sysfd;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeSet;
use std::ffi::CStr;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Where its own files are: each instance mounts something else there.
const ROOM: &str = identity::DIRECTORY;

/// The namespaces of this thread.
#[derive(Debug)]
pub(super) struct Scratch {
    /// Memory that what is written goes to.
    room: File,
    /// How many copies have been made.
    copies: u32,
    /// Directories that stand for others.
    copied: Vec<PathBuf>,
}

impl Scratch {
    /// This thread is there from now on, with everything that it starts.
    pub fn enter(appshot: &Path, claims: &[Claim]) -> Result<Scratch> {
        identity::prepare_host();
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).map_err(|errno| {
            Error::new(Kind::Unavailable, "cannot make namespaces for a rehearsal")
                .because(errno)
                .needs("CAP_SYS_ADMIN")
        })?;
        let none = None::<&str>;
        let failed = || "cannot make room for a rehearsal";
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).or_fail(failed)?;
        mount(Some("appshot"), ROOM, Some("tmpfs"), MsFlags::empty(), Some("mode=700")).or_fail(failed)?;
        let mut scratch = Scratch {
            room: handle(Path::new(ROOM)).or_fail(failed)?,
            copies: 0,
            copied: Vec::new(),
        };
        let beside = scratch.beside();
        fs::create_dir(&beside).or_fail(failed)?;
        let appshots = appshot.parent().filter(|dir| !dir.as_os_str().is_empty());
        scratch.copy(appshots.unwrap_or(Path::new(".")), &beside)?;
        for dir in directories(claims) {
            scratch.stand_in(&dir)?;
        }
        network(claims).or_fail(|| "cannot make a network for a rehearsal")?;
        Ok(scratch)
    }

    /// A copy of the appshot's directory.
    pub fn beside(&self) -> PathBuf {
        Path::new(ROOM).join("appshots")
    }

    /// Whether this is so because files are copies or the instance's own, or because the app has
    /// gone on writing to one.
    pub fn explains(&self, one: &Appshot, difference: &Difference) -> bool {
        let mut parts = difference.what.split('/');
        if (parts.next(), parts.next()) != (Some("manifest"), Some("external")) {
            return false;
        }
        let mut files: Vec<&ExternalFile> = one.manifest.external.iter().collect();
        files.sort_by(|one, other| one.path.cmp(&other.path));
        let file = parts.next().and_then(|at| files.get(at.parse::<usize>().ok()?));
        // The instance has others of these.
        let is_own = file.is_some_and(|file| identity::is_file(&file.path));
        is_own
            || file.is_some_and(|file| match parts.next() {
                Some("ino") => self.copied.iter().any(|dir| Path::new(&file.path).starts_with(dir)),
                Some("size" | "mtime_ns") => !file.must_equal,
                _ => false,
            })
    }

    /// Mounts a copy of a directory in its place, unless that is one already.
    fn stand_in(&mut self, dir: &Path) -> Result<()> {
        if dir == Path::new("/") {
            return Err(Error::refused("cannot rehearse the appshot")
                .because("it has a lock, a socket or an unlinked file right in the root directory /")
                .fix("have the app put it into a directory"));
        }
        let mounts = mount_points()?;
        let on = mounts
            .iter()
            .filter(|point| dir.starts_with(point))
            .max_by_key(|point| point.as_os_str().len());
        let is_within = |copied: &PathBuf| dir.starts_with(copied) && on.is_none_or(|on| copied.starts_with(on));
        if self.copied.iter().any(is_within) {
            return Ok(());
        }
        // What would be hidden, the uppermost of each.
        let below = |point: &&PathBuf| point.starts_with(dir) && point.as_path() != dir;
        let mut kept: Vec<PathBuf> = mounts.iter().filter(below).cloned().collect();
        kept.sort();
        kept.dedup_by(|next, former| next.starts_with(&*former));
        let failed = || format!("cannot keep what is mounted below {}", dir.display());
        let held = kept
            .iter()
            .map(|point| handle(point))
            .collect::<std::io::Result<Vec<_>>>();
        let held = held.or_fail(failed)?;
        self.copy(dir, dir)?;
        for (point, file) in kept.iter().zip(&held) {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
            let none = None::<&str>;
            mount(Some(link(file).as_str()), point, none, flags, none).or_fail(failed)?;
        }
        self.copied.push(dir.to_owned());
        Ok(())
    }

    /// Mounts a copy on write of `dir` at `at`.
    fn copy(&mut self, dir: &Path, at: &Path) -> Result<()> {
        let failed = || format!("cannot make a copy on write of {}", dir.display());
        let lower = handle(dir).or_fail(failed)?;
        let meta = fs::metadata(dir).or_fail(failed)?;
        let own = PathBuf::from(format!("{}/{}", link(&self.room), self.copies));
        self.copies += 1;
        let [upper, work] = ["upper", "work"].map(|name| own.join(name));
        for made in [&own, &upper, &work] {
            DirBuilder::new().mode(0o700).create(made).or_fail(failed)?;
        }
        // The copy's root has these.
        std::os::unix::fs::chown(&upper, Some(meta.uid()), Some(meta.gid())).or_fail(failed)?;
        fs::set_permissions(&upper, fs::Permissions::from_mode(meta.mode() & 0o7777)).or_fail(failed)?;
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            link(&lower),
            upper.display(),
            work.display()
        );
        // Only with these can a file be found by its handle, as those are that inotify tells of.
        let found_by_handle = format!("{layers},index=on,nfs_export=on");
        let overlay = |options: &str| mount(Some("overlay"), at, Some("overlay"), MsFlags::empty(), Some(options));
        let mounted = overlay(&found_by_handle).or_else(|_| overlay(&layers));
        mounted.map_err(|errno| match errno {
            Errno::ENODEV => Error::new(Kind::Unavailable, failed())
                .because("this kernel has no overlayfs")
                .needs("CONFIG_OVERLAY_FS"),
            errno => Error::failed(failed()).because(errno),
        })
    }
}

/// The directories of these claims that are there, links followed; those that others are in
/// come first.
fn directories(claims: &[Claim]) -> BTreeSet<PathBuf> {
    let named = claims.iter().filter_map(Claim::directory);
    named.filter_map(|dir| dir.canonicalize().ok()).collect()
}

fn handle(path: &Path) -> std::io::Result<File> {
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_CLOEXEC)
        .open(path)
}

/// A name of an open file that holds whatever is mounted over its own.
fn link(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Where something is mounted in this thread's namespace.
fn mount_points() -> Result<Vec<PathBuf>> {
    let failed = || "cannot list what is mounted";
    let own = procfs::process::Process::new(nix::unistd::gettid().as_raw()).or_fail(failed)?;
    let mounts = own.mountinfo().or_fail(failed)?;
    Ok(mounts.into_iter().map(|mount| mount.mount_point).collect())
}

/// Makes this thread's network one in which all of an app's addresses can be had.
fn network(claims: &[Claim]) -> crate::sys::Sys<()> {
    launch::raise_loopback()?;
    let netlink = diag::netlink(libc::NETLINK_ROUTE)?;
    for claim in claims {
        if let Claim::Address(address) = claim
            && let Ok(address) = address.parse::<SocketAddr>()
            && let Err(errno) = diag::order(&netlink, &to_have(address.ip()))
        {
            // Such as one of its own already. What needs it fails then.
            tracing::debug!(%errno, %address, "not an address of the rehearsal's");
        }
    }
    for (family, route) in [("ipv4", route as fn() -> _), ("ipv6", route6)] {
        // The machine may be without one of the two; what needs it then fails.
        let own = format!("/proc/sys/net/{family}/ip_nonlocal_bind");
        if fs::write(own, "1").is_ok() {
            route()?;
        }
    }
    Ok(())
}

/// The first device of a network namespace: loopback.
const LOOPBACK_INDEX: i32 = 1;

/// Asks for an address of the loopback device, that alone: `struct ifaddrmsg` (rtnetlink(7)).
fn to_have(ip: IpAddr) -> Vec<u8> {
    const OWN: i32 = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let (family, octets) = match ip {
        IpAddr::V4(ip) => (libc::AF_INET, ip.octets().to_vec()),
        IpAddr::V6(ip) => (libc::AF_INET6, ip.octets().to_vec()),
    };
    let bits = 8 * octets.len() as u8;
    let mut body = vec![family as u8, bits, libc::IFA_F_NODAD as u8, libc::RT_SCOPE_UNIVERSE];
    body.extend(LOOPBACK_INDEX.to_ne_bytes());
    for kind in [libc::IFA_LOCAL, libc::IFA_ADDRESS] {
        body.extend(diag::attribute(kind, &octets));
    }
    diag::request_of(libc::RTM_NEWADDR, OWN, &body)
}

const RTF_UP: u16 = 1;
const LOOPBACK: &CStr = c"lo";

/// Everything is reached by the loopback device: `struct rtentry` (route(8), SIOCADDRT).
fn route() -> crate::sys::Sys<()> {
    let mut entry = [0; 120];
    let family = (libc::AF_INET as u16).to_ne_bytes();
    // rt_dst, rt_gateway, rt_genmask, each a struct sockaddr.
    for at in [8, 24, 40] {
        entry[at..at + 2].copy_from_slice(&family);
    }
    entry[56..58].copy_from_slice(&RTF_UP.to_ne_bytes());
    entry[88..96].copy_from_slice(&(LOOPBACK.as_ptr() as usize).to_ne_bytes());
    let socket = sysfd::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)?;
    sysfd::ioctl_bytes(&socket, libc::SIOCADDRT, &mut entry).map(drop)
}

/// The same of IPv6: `struct in6_rtmsg` (ipv6(7)).
fn route6() -> crate::sys::Sys<()> {
    let mut entry = [0; 80];
    // Three addresses of 16 bytes; type, length of the prefix, of the source's; metric.
    entry[56..60].copy_from_slice(&1u32.to_ne_bytes());
    entry[72..76].copy_from_slice(&u32::from(RTF_UP).to_ne_bytes());
    entry[76..80].copy_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    let socket = sysfd::socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)?;
    sysfd::ioctl_bytes(&socket, libc::SIOCADDRT, &mut entry).map(drop)
}
