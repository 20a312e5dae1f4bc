//! Who speaks to a daemon: the kernel tells it (`SO_PEERCRED`).

use crate::reply::Failure;
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::Response;
use axum::serve::IncomingStream;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::ids::HostPid;
use libsnap::target::HeldDescriptor;
use nix::unistd::{Group, Uid, User};
use tokio::net::UnixListener;

/// Credentials of a client when it connected.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    pub pid: Option<i32>,
    pub ids: Option<(u32, u32)>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Peer {
        let cred = stream.io().peer_cred().ok();
        Peer {
            pid: cred.as_ref().and_then(tokio::net::unix::UCred::pid),
            ids: cred.map(|cred| (cred.uid(), cred.gid())),
        }
    }
}

impl Peer {
    /// What it has open under these numbers. Nobody else's: a daemon may take from every process.
    pub fn descriptors(self, numbers: &[i32]) -> Result<Vec<HeldDescriptor>> {
        if numbers.is_empty() {
            return Ok(Vec::new());
        }
        let pid = self.pid.map(HostPid);
        let pid = pid.ok_or_else(|| Error::new(Kind::Usage, "cannot tell whose descriptors these are"))?;
        Ok(numbers.iter().map(|fd| HeldDescriptor { pid, fd: *fd }).collect())
    }
}

/// Root, the daemon's own user, and the members of a group may ask.
#[derive(Clone, Debug)]
pub struct Gate {
    group: Option<Group>,
}

impl Gate {
    pub fn new(group: Option<&str>) -> Result<Gate> {
        let group = group.map(find_group).transpose()?;
        Ok(Gate { group })
    }

    pub fn gid(&self) -> Option<u32> {
        self.group.as_ref().map(|group| group.gid.as_raw())
    }

    fn admits(&self, peer: Peer) -> bool {
        peer.ids
            .is_some_and(|(uid, gid)| uid == 0 || uid == Uid::effective().as_raw() || self.is_member(uid, gid))
    }

    fn is_member(&self, uid: u32, gid: u32) -> bool {
        let Some(group) = &self.group else {
            return false;
        };
        group.gid.as_raw() == gid
            || User::from_uid(Uid::from_raw(uid))
                .ok()
                .flatten()
                .is_some_and(|user| group.mem.contains(&user.name))
    }
}

fn find_group(name: &str) -> Result<Group> {
    Group::from_name(name)
        .or_fail(|| format!("cannot look up the group {name}"))?
        .ok_or_else(|| {
            Error::new(Kind::Usage, format!("there is no group {name}"))
                .fix(format!("name one that is there, or make it with `groupadd {name}`"))
        })
}

/// Lets only admitted peers through.
pub async fn check(
    State(gate): State<Gate>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Result<Response, Failure> {
    if gate.admits(peer) {
        return Ok(next.run(request).await);
    }
    tracing::warn!(?peer, "turned away");
    Err(Failure(
        Error::refused("you may not use this daemon")
            .because("you are neither root nor a member of its group")
            .fix("ask as root, or start the daemon with --group"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32) -> Peer {
        let ids = Some((uid, gid));
        Peer { pid: None, ids }
    }

    #[test]
    fn root_and_the_group_are_admitted() {
        let group = Group {
            name: "ops".to_owned(),
            passwd: std::ffi::CString::default(),
            gid: nix::unistd::Gid::from_raw(4242),
            mem: vec!["root".to_owned()],
        };
        let gate = Gate { group: Some(group) };
        assert!(gate.admits(peer(0, 0)));
        assert!(gate.admits(peer(54_321, 4242)));
        assert!(!gate.admits(peer(54_321, 1)));
        assert!(gate.is_member(0, 7), "by name");
        assert!(!Gate { group: None }.admits(peer(54_321, 4242)));
        assert!(!gate.admits(Peer { pid: None, ids: None }));
    }

    #[test]
    fn an_unknown_group_is_told() {
        let error = Gate::new(Some("no-such-group-here")).unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
    }
}
