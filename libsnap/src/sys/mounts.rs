//! Mounts as descriptors (open_tree(2), Linux 5.2), and extended attributes of files (xattr(7)).

use super::fd::owned;
use super::{Sys, check};
use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

pub const OPEN_TREE_CLONE: u32 = 1;
pub const OPEN_TREE_CLOEXEC: u32 = libc::O_CLOEXEC as u32;

/// A copy of the mount that is open there, without what is mounted below it: it shows all of its files.
pub fn copy(place: BorrowedFd<'_>) -> Sys<OwnedFd> {
    let flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH.cast_unsigned();
    // SAFETY: the path is a live, empty C string.
    let got = unsafe { libc::syscall(libc::SYS_open_tree, place.as_raw_fd(), c"".as_ptr(), flags) };
    owned(check(got)? as i32)
}

/// Has looks at files through this mount leave their times alone (mount_setattr(2), Linux 5.12).
pub fn leave_times(mount: BorrowedFd<'_>) -> Sys<()> {
    const MOUNT_ATTR_NOATIME: u64 = 0x10;
    const MOUNT_ATTR__ATIME: u64 = 0x70;
    let attributes = [MOUNT_ATTR_NOATIME, MOUNT_ATTR__ATIME, 0, 0];
    // SAFETY: struct mount_attr is four words, of which the call is told the size.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    })
    .map(drop)
}

/// The number of the mount that a path leads to, which no other mount has had (statx(2), Linux 6.8). `None`:
/// the kernel does not tell it.
pub fn number(path: &Path) -> Sys<Option<u64>> {
    const STATX_MNT_ID_UNIQUE: u32 = 0x4000;
    let path = c_path(path)?;
    // Whoever serves it may stand still.
    const AT_STATX_DONT_SYNC: i32 = 0x4000;
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC;
    // SAFETY: all zeroes is a valid statx, and both are live across the call.
    let told = unsafe {
        let mut told: libc::statx = std::mem::zeroed();
        let got = libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, STATX_MNT_ID_UNIQUE, &mut told);
        check(i64::from(got))?;
        told
    };
    Ok((told.stx_mask & STATX_MNT_ID_UNIQUE != 0).then_some(told.stx_mnt_id))
}

fn c_path(path: &Path) -> Sys<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| nix::Error::EINVAL)
}

/// The names of a file's extended attributes. A path of `/proc/self/fd` leads to what is open, be it a link.
pub fn attributes(path: &Path) -> Sys<Vec<CString>> {
    let path = c_path(path)?;
    // All of them together are no longer (XATTR_LIST_MAX).
    let mut names = vec![0u8; 65536];
    // SAFETY: both are live, and the buffer is as long as said.
    let got = unsafe { libc::listxattr(path.as_ptr(), names.as_mut_ptr().cast(), names.len()) };
    names.truncate(check(got as libc::c_long)? as usize);
    let names = names.split_inclusive(|byte| *byte == 0);
    Ok(names
        .filter_map(|name| CString::from_vec_with_nul(name.to_vec()).ok())
        .collect())
}

pub fn attribute(path: &Path, name: &CStr) -> Sys<Vec<u8>> {
    let path = c_path(path)?;
    // XATTR_SIZE_MAX.
    let mut value = vec![0u8; 65536];
    // SAFETY: all are live, and the buffer is as long as said.
    let got = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    value.truncate(check(got as libc::c_long)? as usize);
    Ok(value)
}

pub fn set_attribute(path: &Path, name: &CStr, value: &[u8]) -> Sys<()> {
    let path = c_path(path)?;
    // SAFETY: all are live, and the value is as long as said.
    let got = unsafe { libc::lsetxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    check(got.into()).map(drop)
}
