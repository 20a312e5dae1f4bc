//! Descriptors: fcntl(2) by number, tee(2), passing them to other processes.

use super::{Sys, check};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Has this program open as many files as it may (RLIMIT_NOFILE): as many as an app, and more.
pub fn raise_limit() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or_default();
    if let Err(error) = setrlimit(Resource::RLIMIT_NOFILE, most, most) {
        tracing::debug!(%error, "the limit of descriptors stays");
    }
}

/// fcntl(2) with a plain number as argument.
pub fn fcntl(fd: i32, command: i32, argument: i64) -> Sys<i32> {
    // SAFETY: only commands that take no pointer are passed by the callers.
    check(i64::from(unsafe { libc::fcntl(fd, command, argument) })).map(|v| v as i32)
}

/// `F_GETOWN_EX`: kind and id.
pub fn owner(fd: &impl AsRawFd) -> Sys<(i32, i32)> {
    const F_GETOWN_EX: i32 = 16;
    let mut owner = [0i32; 2];
    // SAFETY: struct f_owner_ex is two ints, which `owner` provides.
    check(i64::from(unsafe {
        libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, owner.as_mut_ptr())
    }))?;
    Ok((owner[0], owner[1]))
}

pub fn set_owner(fd: &impl AsRawFd, kind: i32, id: i32) -> Sys<()> {
    const F_SETOWN_EX: i32 = 15;
    let owner = [kind, id];
    // SAFETY: struct f_owner_ex is two ints, which `owner` provides.
    check(i64::from(unsafe {
        libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, owner.as_ptr())
    }))
    .map(drop)
}

/// Duplicates up to `len` bytes of a pipe's content into another pipe.
pub fn tee(from: &impl AsRawFd, to: &impl AsRawFd, len: usize) -> Sys<usize> {
    // SAFETY: only descriptors and numbers are passed.
    let got = unsafe { libc::tee(from.as_raw_fd(), to.as_raw_fd(), len, libc::SPLICE_F_NONBLOCK) };
    check(got as libc::c_long).map(|n| n as usize)
}

/// Sends descriptors over a unix socket, at most 253 (SCM_MAX_FD).
pub fn send_fds(socket: &impl AsRawFd, fds: &[BorrowedFd<'_>]) -> Sys<()> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let data = [std::io::IoSlice::new(&[1])];
    let rights = [ControlMessage::ScmRights(&raw)];
    sendmsg::<()>(socket.as_raw_fd(), &data, &rights, MsgFlags::empty(), None).map(drop)
}

/// poll(2) without waiting: which of these events there are. Also those that nix has no
/// name for (POLLRDHUP).
pub fn events(fd: &impl AsRawFd, wanted: i16) -> Sys<i16> {
    let mut polled = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: wanted,
        revents: 0,
    };
    // SAFETY: `polled` is live, and one.
    check(i64::from(unsafe { libc::poll(&mut polled, 1, 0) }))?;
    Ok(polled.revents)
}

/// An ioctl that fills an `i32`.
pub fn ioctl_i32(fd: &impl AsRawFd, request: u64) -> Sys<i32> {
    let mut value = 0i32;
    // SAFETY: callers pass requests that write one int.
    check(i64::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), request, &raw mut value)
    }))?;
    Ok(value)
}

/// An ioctl that reads or fills a buffer of known size.
pub fn ioctl_bytes(fd: &impl AsRawFd, request: u64, buffer: &mut [u8]) -> Sys<i64> {
    // SAFETY: callers pass a buffer of the size that the request uses.
    check(i64::from(unsafe {
        libc::ioctl(fd.as_raw_fd(), request, buffer.as_mut_ptr())
    }))
}

/// An ioctl whose argument is a plain number.
pub fn ioctl_value(fd: &impl AsRawFd, request: u64, value: i32) -> Sys<i32> {
    // SAFETY: callers pass requests that take their argument by value.
    check(i64::from(unsafe { libc::ioctl(fd.as_raw_fd(), request, value) })).map(|v| v as i32)
}

pub fn eventfd(count: u32, flags: i32) -> Sys<OwnedFd> {
    // SAFETY: only numbers are passed.
    owned(unsafe { libc::eventfd(count, flags) })
}

pub fn signalfd(mask: u64, flags: i32) -> Sys<OwnedFd> {
    // SAFETY: the kernel's mask is 8 bytes at a live address.
    let got = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, 8, flags) };
    owned(check(got)? as i32)
}

pub fn memfd(name: &str, flags: u32) -> Sys<OwnedFd> {
    let name = std::ffi::CString::new(name).map_err(|_| nix::Error::EINVAL)?;
    // SAFETY: the name is a live C string.
    owned(unsafe { libc::memfd_create(name.as_ptr(), flags) })
}

pub fn timerfd(clock: i32, flags: i32) -> Sys<OwnedFd> {
    // SAFETY: only numbers are passed.
    owned(unsafe { libc::timerfd_create(clock, flags) })
}

/// Arms a timerfd, in nanoseconds: relative to now, or as TFD_TIMER_ABSTIME says.
pub fn timerfd_set(fd: &impl AsRawFd, flags: i32, value_ns: u64, interval_ns: u64) -> Sys<()> {
    let spec = libc::itimerspec {
        it_interval: timespec(interval_ns),
        it_value: timespec(value_ns),
    };
    // SAFETY: `spec` is live; no old value is asked for.
    check(i64::from(unsafe {
        libc::timerfd_settime(fd.as_raw_fd(), flags, &spec, std::ptr::null_mut())
    }))
    .map(drop)
}

/// Time left and interval of a timerfd, in nanoseconds. One that has fallen due
/// and was not read is set going again, and its ticks are counted.
pub fn timerfd_get(fd: &impl AsRawFd) -> Sys<(u64, u64)> {
    // SAFETY: all zeroes is a valid itimerspec.
    let mut spec: libc::itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: `spec` is live for the call.
    check(i64::from(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), &mut spec) }))?;
    let ns = |t: libc::timespec| t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64;
    Ok((ns(spec.it_value), ns(spec.it_interval)))
}

pub fn timespec(ns: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: (ns / 1_000_000_000) as i64,
        tv_nsec: (ns % 1_000_000_000) as i64,
    }
}

/// Takes ownership of a descriptor that a call just returned.
pub fn owned(fd: i32) -> Sys<OwnedFd> {
    let fd = check(i64::from(fd))?;
    // SAFETY: the kernel just gave us this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

pub fn flock(fd: i32, how: i32) -> Sys<()> {
    // SAFETY: only numbers are passed.
    check(i64::from(unsafe { libc::flock(fd, how) })).map(drop)
}

/// What tells a file from all others of its file system, its inode's generation with it
/// (name_to_handle_at(2)).
pub fn handle(fd: &impl AsRawFd) -> Sys<Vec<u8>> {
    /// MAX_HANDLE_SZ, after `handle_bytes` and `handle_type`.
    const ROOM: usize = 128;
    const HEAD: usize = 8;
    let mut handle = [0u32; (HEAD + ROOM) / 4];
    handle[0] = ROOM as u32;
    let mut mount = 0i32;
    // SAFETY: the name is a live C string, `handle` has the room that it tells, `mount` is an int.
    check(unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            fd.as_raw_fd(),
            c"".as_ptr(),
            handle.as_mut_ptr(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    })?;
    let bytes = handle[0] as usize;
    let words = handle.iter().flat_map(|word| word.to_ne_bytes());
    Ok(words.skip(HEAD).take(bytes).collect())
}

/// A file by its handle (open_by_handle_at(2)), as O_PATH.
pub fn open_by_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> Sys<OwnedFd> {
    let mut bytes = Vec::with_capacity(8 + handle.len());
    bytes.extend_from_slice(&(handle.len() as u32).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(handle);
    // SAFETY: struct file_handle is length, type and that many bytes, as laid out here.
    let got = unsafe {
        libc::syscall(
            libc::SYS_open_by_handle_at,
            mount.as_raw_fd(),
            bytes.as_ptr(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    owned(check(got)? as i32)
}

/// The directory of the POSIX message queues of this thread's IPC namespace, mounted nowhere
/// (fsopen(2), Linux 5.2). A look at it leaves its times alone.
pub fn message_queues() -> Sys<OwnedFd> {
    const FSOPEN_CLOEXEC: i32 = 1;
    const FSCONFIG_CMD_CREATE: i32 = 6;
    const MOUNT_ATTR_NOATIME: i32 = 16;
    let nothing = std::ptr::null::<u8>();
    // SAFETY: the name is a live C string.
    let opened = check(unsafe { libc::syscall(libc::SYS_fsopen, c"mqueue".as_ptr(), FSOPEN_CLOEXEC) })?;
    let opened = owned(opened as i32)?;
    let fd = opened.as_raw_fd();
    // SAFETY: the command takes neither key nor value.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, nothing, nothing, 0) })?;
    // SAFETY: only numbers are passed.
    owned(check(unsafe { libc::syscall(libc::SYS_fsmount, fd, FSOPEN_CLOEXEC, MOUNT_ATTR_NOATIME) })? as i32)
}

pub fn socket(domain: i32, kind: i32, protocol: i32) -> Sys<OwnedFd> {
    // SAFETY: only numbers are passed.
    owned(unsafe { libc::socket(domain, kind, protocol) })
}

pub fn socketpair(domain: i32, kind: i32) -> Sys<(OwnedFd, OwnedFd)> {
    let mut pair = [0i32; 2];
    // SAFETY: `pair` is room for two descriptors.
    check(i64::from(unsafe {
        libc::socketpair(domain, kind | libc::SOCK_CLOEXEC, 0, pair.as_mut_ptr())
    }))?;
    Ok((owned(pair[0])?, owned(pair[1])?))
}

pub fn listen(fd: &impl AsRawFd, backlog: i32) -> Sys<()> {
    // SAFETY: only numbers are passed.
    check(i64::from(unsafe { libc::listen(fd.as_raw_fd(), backlog) })).map(drop)
}

pub fn accept(fd: i32) -> Sys<OwnedFd> {
    // SAFETY: no address is asked for.
    owned(unsafe { libc::accept4(fd, std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC) })
}

pub fn shutdown(fd: &impl AsRawFd, how: i32) -> Sys<()> {
    // SAFETY: only numbers are passed.
    check(i64::from(unsafe { libc::shutdown(fd.as_raw_fd(), how) })).map(drop)
}
