//! Network namespaces that apps are made to join.

use crate::error::{Error, Kind, OrFail, Result};
use crate::nsthread::Door;
use crate::proc;
use crate::sys::fd;
use crate::target::HeldDescriptor;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

const NS_GET_NSTYPE: u64 = 0xb703;

/// Whether it is a network namespace (ioctl_ns(2), Linux 4.11).
pub fn is_network(descriptor: &OwnedFd) -> bool {
    fd::ioctl_value(descriptor, NS_GET_NSTYPE, 0) == Ok(libc::CLONE_NEWNET)
}

/// The one that an instance has joined, as it was then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joined {
    /// What tells it from all others.
    pub inode: u64,
    /// Open in the process that has brought the instance up, until it has noted its end.
    pub held: HeldDescriptor,
    /// What had gone through its devices.
    pub before: Traffic,
}

/// Opens the network namespace that is named, for an instance that is to be in it.
pub fn join(named: HeldDescriptor) -> Result<(Arc<OwnedFd>, Joined)> {
    let what = || "cannot join the network namespace that was named";
    let namespace = named.open().or_fail(what)?;
    if !is_network(&namespace) {
        return Err(Error::new(Kind::Usage, what())
            .because("it is no network namespace")
            .fix("such as /run/netns/NAME, made by `ip netns add NAME`, or /proc/PID/ns/net")
            .state("nothing was started"));
    }
    let joined = Joined::of(&namespace).or_fail(what)?;
    Ok((Arc::new(namespace), joined))
}

impl Joined {
    fn of(namespace: &OwnedFd) -> io::Result<Joined> {
        Ok(Joined {
            inode: inode(namespace)?,
            held: HeldDescriptor::own(namespace),
            before: Traffic::of(namespace)?,
        })
    }

    /// What has gone through its devices since, as long as it is held.
    pub fn traffic(&self) -> io::Result<Traffic> {
        let namespace = self.held.open()?;
        match inode(&namespace)? == self.inode {
            true => Ok(Traffic::of(&namespace)?.since(self.before)),
            false => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }
}

/// Bytes that went through the devices of a network namespace, headers included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

fn inode(namespace: &OwnedFd) -> io::Result<u64> {
    Ok(nix::sys::stat::fstat(namespace)?.st_ino)
}

impl Traffic {
    fn of(namespace: &OwnedFd) -> io::Result<Traffic> {
        let read = || proc::read("/proc/thread-self/net/dev");
        Ok(Traffic::parse(&Door::to_network(namespace)?.inside(read)??))
    }

    /// As net/dev of /proc tells it (proc_pid_net(5)); what stays inside (`lo`) does not count.
    pub fn parse(text: &[u8]) -> Traffic {
        let text = String::from_utf8_lossy(text);
        let devices = text.lines().filter_map(|line| line.split_once(':'));
        let outward = devices.filter(|(name, _)| name.trim() != "lo");
        outward.fold(Traffic::default(), |all, (_, counts)| {
            let counts: Vec<u64> = counts.split_whitespace().map(|one| one.parse().unwrap_or(0)).collect();
            let at = |index: usize| counts.get(index).copied().unwrap_or(0);
            Traffic {
                received_bytes: all.received_bytes + at(0),
                sent_bytes: all.sent_bytes + at(8),
            }
        })
    }

    /// What was counted since `before`.
    #[must_use]
    pub fn since(self, before: Traffic) -> Traffic {
        Traffic {
            received_bytes: self.received_bytes.saturating_sub(before.received_bytes),
            sent_bytes: self.sent_bytes.saturating_sub(before.sent_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_out_and_comes_in_is_counted() {
        let text = b"Inter-|   Receive                            |  Transmit\n \
            face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
            lo:     840      10    0    0    0     0          0         0      840      10    0    0    0     0       0          0\n  \
            eth0:  1200       9    0    0    0     0          0         0     3400      12    0    0    0     0       0          0\n  \
            eth1:     1       1    0    0    0     0          0         0        2       1    0    0    0     0       0          0\n";
        let both = Traffic {
            received_bytes: 1201,
            sent_bytes: 3402,
        };
        assert_eq!(Traffic::parse(text), both);
        assert_eq!(Traffic::parse(b"cut"), Traffic::default());
    }
}
