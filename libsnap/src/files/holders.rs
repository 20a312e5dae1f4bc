//! Who has a socket open (`/proc/PID/fd`).

use super::Member;
use crate::ids::HostPid;
use crate::proc;
use std::collections::{HashMap, HashSet};
use std::fs;

/// Which of these sockets, by their inodes, a process outside the app has open: the first of
/// each. Looks at all descriptors of the machine, about a microsecond each.
///
/// N.B. not what is in flight only, nor what was opened since.
pub fn outside(members: &[Member], sockets: &HashSet<u64>) -> HashMap<u64, HostPid> {
    let mut found = HashMap::new();
    // Our duplicates are none.
    let own = std::process::id() as i32;
    let inside: HashSet<i32> = members.iter().map(|member| member.pid.0).chain([own]).collect();
    for pid in proc::numbered("/proc").unwrap_or_default() {
        if inside.contains(&pid) {
            continue;
        }
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        for link in fds.filter_map(|fd| fs::read_link(fd.path()).ok()) {
            if let Some(socket) = link.to_str().and_then(socket).filter(|socket| sockets.contains(socket)) {
                found.entry(socket).or_insert(HostPid(pid));
            }
        }
    }
    found
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
