//! epoll(7): which descriptors are watched, for what.
//!
//! Read from `/proc/PID/fdinfo`. An epoll instance knows each file by the number
//! it had in the process that added it, so the watches are added again inside
//! that process, once its descriptors are in place (also because a signalfd is
//! bound to the process that watches it). A number that was closed or replaced
//! since, while a duplicate keeps the file, is found with kcmp(2) and taken for
//! the moment of adding.
//! Refused: a watched file that no descriptor of the app leads to.

use super::{Context, Description, Refused, refused};
use crate::error::{OrFail, Result};
use crate::ids::{FdNum, FileId};
use crate::image::records::{EpollWatch, FileKind};
use crate::sys::task;
use std::cmp::Ordering;
use std::os::fd::OwnedFd;

pub fn capture(context: &Context<'_>, description: &Description) -> Result<FileKind, Refused> {
    let lines = description.found.info.all("tfd").map(parse).collect::<Option<Vec<_>>>();
    let Some(lines) = lines else {
        return refused("its watches cannot be read", "report this kernel's fdinfo");
    };
    let mut watches: Vec<EpollWatch> = Vec::new();
    for (fd, events, data, ino) in lines {
        // Watches made with one number at different times, in the kernel's order.
        let nth = watches.iter().filter(|w| w.fd == FdNum(fd)).count() as u32;
        let is = |d: &Description| is_watched(description, (fd, nth), d);
        let under = watched(context, description.id, fd, ino).filter(|d| is(d));
        let found = under.or_else(|| context.by_inode(ino).find(|d| is(d)));
        let Some(file) = found else {
            if context.may_be_in_flight() {
                continue;
            }
            return refused(
                format!(
                    "it watches the file that was descriptor {fd}, to which no descriptor of the app leads any more"
                ),
                "let the app remove a file from epoll before it closes it",
            );
        };
        watches.push(EpollWatch {
            fd: FdNum(fd),
            file: file.id,
            events,
            data,
            away: under.is_none(),
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
        after("ino:")
            .and_then(|ino| u64::from_str_radix(ino, 16).ok())
            .unwrap_or(0),
    ))
}

/// The file that number `fd` names in a process that holds the epoll instance.
fn watched<'a>(context: &'a Context<'_>, epoll: FileId, fd: i32, ino: u64) -> Option<&'a Description> {
    let holders = context.fds.iter().filter(|fds| fds.iter().any(|e| e.file == epoll));
    let named = holders
        .flat_map(|fds| fds.iter().filter(|e| e.fd == FdNum(fd)))
        .map(|e| e.file);
    named
        .filter_map(|file| context.descriptions.get(file.0 as usize))
        .find(|d| d.found.key.1 == ino)
}

/// Whether the `target` of the instance, number and count, is this file. (KCMP_EPOLL_TFD).
fn is_watched(epoll: &Description, target: (i32, u32), file: &Description) -> bool {
    let (epoll, file) = (&epoll.found, &file.found);
    task::kcmp_epoll(file.pid, file.fd, epoll.pid, epoll.fd, target) == Ok(Ordering::Equal)
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
