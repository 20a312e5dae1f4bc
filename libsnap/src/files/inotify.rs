//! inotify(7): the watched files and their watch numbers.
//!
//! `/proc/PID/fdinfo` names each watched file by a file handle, from which its
//! path is found. Refused: queued events, as nobody can queue any but by doing to files what they tell of,
//! and none with a cookie of its own (IN_MOVED_FROM); watched files without a name.

use super::{Builder, Context, Description, Refused, refused};
use crate::error::{Error, OrFail, Result};
use crate::ids::HostPid;
use crate::image::records::{FileKind, InotifyWatch};
use crate::sys::fd as sysfd;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Watch numbers are handed out one after another: reaching one that was given
/// late takes as many steps.
const WATCH_MAX: i32 = 100_000;

pub fn capture(context: &Context<'_>, description: &Description) -> Result<FileKind, Refused> {
    if sysfd::ioctl_i32(&description.dup, libc::FIONREAD).unwrap_or(0) > 0 {
        return refused(
            "inotify events that the app has not read: no call queues them, only changes of files do",
            "let the app read them, then try again",
        );
    }
    let lines = description
        .found
        .info
        .lines()
        .filter_map(|line| line.strip_prefix("inotify "));
    let owner = context.base;
    let mut watches = lines.map(|line| parse(owner, line)).collect::<Result<Vec<_>, _>>()?;
    watches.sort_by_key(|watch| watch.wd);
    Ok(FileKind::Inotify { watches })
}

/// `wd:1 ino:4d2 sdev:800001 mask:2 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:…`
fn parse(owner: HostPid, line: &str) -> Result<InotifyWatch, Refused> {
    let field = |key: &str| {
        line.split_whitespace()
            .find_map(|word| word.strip_prefix(key)?.strip_prefix(':'))
    };
    let hex = |key: &str| field(key).and_then(|v| u64::from_str_radix(v, 16).ok());
    let unknown = || {
        (
            "an inotify watch of unknown form".to_owned(),
            "remove the watch before the snapshot".to_owned(),
        )
    };
    let handle = field("f_handle").ok_or_else(unknown)?;
    let bytes: Vec<u8> = (0..handle.len() / 2)
        .filter_map(|i| u8::from_str_radix(&handle[2 * i..2 * i + 2], 16).ok())
        .collect();
    let path = path_of(
        owner,
        hex("sdev").ok_or_else(unknown)?,
        hex("fhandle-type").ok_or_else(unknown)? as i32,
        &bytes,
    );
    Ok(InotifyWatch {
        wd: hex("wd").ok_or_else(unknown)? as i32,
        path: path.ok_or_else(|| {
            (
                "an inotify watch on a file that cannot be found by a name in UTF-8".to_owned(),
                "remove the watch before the snapshot".to_owned(),
            )
        })?,
        mask: hex("mask").ok_or_else(unknown)? as u32,
    })
}

/// Tries the handle on each mount of the file's device that the app sees: its
/// instance's own directory is nobody else's.
fn path_of(owner: HostPid, device: u64, kind: i32, handle: &[u8]) -> Option<String> {
    // fdinfo shows the kernel's own device number: 20 bits of minor.
    let (major, minor) = (device >> 20, device & 0xf_ffff);
    let mounts = procfs::process::Process::new(owner.0).ok()?.mountinfo().ok()?;
    mounts
        .into_iter()
        .filter(|mount| mount.majmin == format!("{major}:{minor}"))
        .find_map(|mount| {
            let place = File::open(format!("/proc/{owner}/root{}", mount.mount_point.display())).ok()?;
            let file = sysfd::open_by_handle(place.as_fd(), kind, handle).ok()?;
            let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
            let path = path.to_str()?.to_owned();
            (path.starts_with('/') && !path.ends_with(" (deleted)")).then_some(path)
        })
}

pub fn restore(builder: &Builder<'_>, watches: &[InotifyWatch]) -> Result<OwnedFd> {
    let failed = || "cannot make an inotify instance";
    let made = Inotify::init(InitFlags::IN_CLOEXEC).or_fail(failed)?;
    for watch in watches {
        add(&made, &builder.view, watch)?;
    }
    Ok(made.into())
}

fn add(made: &Inotify, view: &str, watch: &InotifyWatch) -> Result<()> {
    let failed = || format!("cannot watch {} again", watch.path);
    if !(1..=WATCH_MAX).contains(&watch.wd) {
        return Err(Error::refused(failed()).because(format!("its watch number is {}", watch.wd)));
    }
    let mask = AddWatchFlags::from_bits_retain(watch.mask);
    let path = format!("{view}{}", watch.path);
    loop {
        let wd = made.add_watch(path.as_str(), mask).or_fail(failed)?;
        if wd.as_raw() == watch.wd {
            return Ok(());
        }
        made.rm_watch(wd).or_fail(failed)?;
        drain(made);
        if wd.as_raw() > watch.wd {
            return Err(Error::failed(failed()).because("its watch number is taken"));
        }
    }
}

/// Removing a watch leaves an IN_IGNORED event behind.
fn drain(made: &Inotify) {
    while sysfd::ioctl_i32(&made.as_fd(), libc::FIONREAD).unwrap_or(0) > 0 {
        if made.read_events().is_err() {
            break;
        }
    }
}
