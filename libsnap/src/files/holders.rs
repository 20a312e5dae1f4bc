//! Who has a socket open (`/proc/PID/fd`).

use super::Member;
use crate::ids::HostPid;
use crate::proc;
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// Which of these sockets, by their inodes, a process outside the app has open: the first of
/// each. Looks at all descriptors of the machine, a few microseconds each.
///
/// N.B. not what is in flight only, nor what was opened since. Our duplicates are none, nor
/// are those that a fork of ours for something else has until it runs its own program.
pub fn outside(members: &[Member], sockets: &HashSet<u64>) -> HashMap<u64, HostPid> {
    let mut found = HashMap::new();
    let own = program("self");
    let inside: HashSet<i32> = members.iter().map(|member| member.pid.0).collect();
    for pid in proc::numbered("/proc").unwrap_or_default() {
        if inside.contains(&pid) {
            continue;
        }
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for link in fds.filter_map(|fd| fs::read_link(fd.path()).ok()) {
            let one = link.to_str().and_then(socket).filter(|socket| sockets.contains(socket));
            let Some(socket) = one else {
                continue;
            };
            if own.is_some() && own == program(&pid.to_string()) {
                break;
            }
            found.entry(socket).or_insert(HostPid(pid));
        }
    }
    found
}

/// Device and inode.
fn program(pid: &str) -> Option<(u64, u64)> {
    let meta = fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((meta.dev(), meta.ino()))
}

/// `socket:[4711]`
fn socket(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_by_its_link() {
        assert_eq!(socket("socket:[4711]"), Some(4711));
        assert_eq!(socket("pipe:[4711]"), None);
        assert_eq!(socket("socket:[]"), None);
    }
}
