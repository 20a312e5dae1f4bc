//! epoll(7): which descriptors are watched, for what.
//!
//! Read from `/proc/PID/fdinfo`. An epoll instance knows each file by the number
//! it had in the process that added it, so the watches are added again inside
//! that process, once its descriptors are in place (also because a signalfd is
//! bound to the process that watches it).
//! Refused: a watched file whose descriptor was closed or replaced since.

use super::{Context, Description, Refused, refused};
use crate::error::{OrFail, Result};
use crate::ids::{FdNum, FileId};
use crate::image::records::{EpollWatch, FileKind};
use std::os::fd::OwnedFd;

pub fn capture(context: &Context<'_>, description: &Description) -> Result<FileKind, Refused> {
    let lines = description.found.info.all("tfd").map(parse).collect::<Option<Vec<_>>>();
    let Some(lines) = lines else {
        return refused("its watches cannot be read", "report this kernel's fdinfo");
    };
    let mut watches = Vec::new();
    for (fd, events, data, ino) in lines {
        let Some(file) = watched(context, description.id, fd, ino) else {
            return refused(
                format!("it watches descriptor {fd}, which its process has closed or replaced since"),
                "let the app remove a file from epoll before it closes it",
            );
        };
        watches.push(EpollWatch {
            fd: FdNum(fd),
            file,
            events,
            data,
        });
    }
    // The kernel lists them in the order of its tree; keep one that is stable.
    watches.sort_by_key(|watch| watch.fd);
    Ok(FileKind::Epoll { watches })
}

/// `5 events: 19 data: 7f00000005 pos:0 ino:4d2 sdev:9`
fn parse(line: &str) -> Option<(i32, u32, u64, u64)> {
    let fd = line.split_whitespace().next()?.parse().ok()?;
    let after = |key: &str| line.split(key).nth(1)?.split_whitespace().next();
    Some((
        fd,
        u32::from_str_radix(after("events:")?, 16).ok()?,
        u64::from_str_radix(after("data:")?, 16).ok()?,
        after("ino:").and_then(|ino| u64::from_str_radix(ino, 16).ok()).unwrap_or(0),
    ))
}

/// The file that number `fd` names in a process that holds the epoll instance.
fn watched(context: &Context<'_>, epoll: FileId, fd: i32, ino: u64) -> Option<FileId> {
    let holders = context.fds.iter().filter(|fds| fds.iter().any(|e| e.file == epoll));
    holders.flat_map(|fds| fds.iter().filter(|e| e.fd == FdNum(fd))).map(|e| e.file).find(|file| {
        context.descriptions.get(file.0 as usize).is_some_and(|d| d.found.key.1 == ino)
    })
}

pub fn restore() -> Result<OwnedFd> {
    use nix::sys::epoll::{Epoll, EpollCreateFlags};
    let made = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).or_fail(|| "cannot make an epoll instance")?;
    Ok(made.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_watch_line_of_the_kernel() {
        let line = "6 events:       19 data:     7ffc00000006  pos:0 ino:3e8 sdev:9";
        assert_eq!(super::parse(line), Some((6, 0x19, 0x7ffc_0000_0006, 1000)));
    }
}
