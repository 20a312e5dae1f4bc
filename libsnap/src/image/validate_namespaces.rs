//! What must hold for namespaces below the app's own.

use super::fault::ensure;
use super::process::Core;
use super::records::{FileKind, Manifest, Namespace, ShmKind, SocketState, VmaKind};
use super::validate::{count, text};
use super::{MANIFEST, limits, mounts};
use crate::error::Result;
use crate::namespaces::Kind;
use std::collections::{BTreeMap, BTreeSet};

const PART: &str = MANIFEST;

pub fn manifest(manifest: &Manifest) -> Result<()> {
    count(PART, "namespaces", manifest.namespaces.len(), limits::NAMESPACES)?;
    for one in &manifest.namespaces {
        namespace(manifest, one)?;
    }
    mounts::contents(manifest)?;
    for shm in manifest.shmem.iter().filter(|shm| shm.namespace.is_some()) {
        let fits = matches!(shm.kind, ShmKind::Sysv { .. }) && is_one(manifest, shm.namespace, Kind::Ipc);
        ensure(fits, PART, || {
            format!("shared memory {}: there is no such IPC namespace", shm.id)
        })?;
    }
    for file in &manifest.files {
        if let FileKind::Namespace { name, number } = &file.kind {
            let fits = number.is_none() || Kind::named(name).is_some_and(|kind| is_one(manifest, *number, kind));
            ensure(fits, PART, || format!("file {}: there is no such namespace", file.id))?;
        }
        if let FileKind::Path { namespace, .. } = &file.kind {
            ensure(is_one(manifest, *namespace, Kind::Mnt), PART, || {
                format!("file {}: there is no such mount namespace", file.id)
            })?;
        }
    }
    sockets(manifest)
}

/// Those that are connected are of one network.
fn sockets(manifest: &Manifest) -> Result<()> {
    let all = || {
        manifest.files.iter().filter_map(|file| match &file.kind {
            FileKind::Socket(socket) => Some(&**socket),
            _ => None,
        })
    };
    let networks: BTreeMap<u64, Option<u32>> = all().map(|socket| (socket.ino, socket.network)).collect();
    for socket in all() {
        let other = match &socket.state {
            SocketState::Paired { peer: other, .. }
            | SocketState::Joined { peer: other, .. }
            | SocketState::Waiting { listener: other, .. } => networks.get(other),
            _ => None,
        };
        let fits = is_one(manifest, socket.network, Kind::Net) && other.is_none_or(|other| *other == socket.network);
        ensure(fits, PART, || {
            format!(
                "socket {}: there is no such network, or its peer is in another",
                socket.ino
            )
        })?;
    }
    Ok(())
}

fn is_one(manifest: &Manifest, number: Option<u32>, kind: Kind) -> bool {
    let namespace = |number: u32| manifest.namespaces.get(number as usize);
    number.is_none_or(|number| namespace(number).is_some_and(|namespace| namespace.kind() == kind))
}

fn namespace(manifest: &Manifest, namespace: &Namespace) -> Result<()> {
    match namespace {
        Namespace::Uts { hostname, domainname } => {
            text(PART, "host name", hostname, limits::HOST_NAME_BYTES)?;
            text(PART, "domain name", domainname, limits::HOST_NAME_BYTES)
        }
        Namespace::Mnt(own) => mounts::valid(manifest, own),
        // The others with what is in those of the app's own.
        Namespace::Cgroup | Namespace::Ipc(_) | Namespace::Net { .. } => Ok(()),
    }
}

/// A process is in one of each kind, and in each is somebody.
pub fn app(manifest: &Manifest, cores: &[Core]) -> Result<()> {
    let all = &manifest.namespaces;
    let mut used: BTreeSet<u32> = BTreeSet::new();
    let segments = manifest
        .shmem
        .iter()
        .filter(|shm| matches!(shm.kind, ShmKind::Sysv { .. }));
    let segments: BTreeMap<_, _> = segments.map(|shm| (shm.id, shm.namespace)).collect();
    for image in cores.iter().map(|core| &core.image) {
        let process = &image.process;
        let numbers = &process.namespaces;
        let known = numbers.iter().all(|number| (*number as usize) < all.len());
        ensure(known && numbers.is_sorted_by(|one, next| one < next), PART, || {
            format!("process {}: there are no such namespaces: {numbers:?}", process.pid)
        })?;
        let kinds: BTreeSet<&str> = numbers
            .iter()
            .map(|number| all[*number as usize].kind().name())
            .collect();
        ensure(kinds.len() == numbers.len(), PART, || {
            format!("process {}: it is in two namespaces of one kind", process.pid)
        })?;
        used.extend(numbers);
        let mut numbers = numbers.iter().copied();
        let own = numbers.find(|number| all[*number as usize].kind() == Kind::Ipc);
        let attached = image.vmas.iter().filter_map(|vma| match vma.kind {
            VmaKind::Shm { shm, .. } => segments.get(&shm),
            _ => None,
        });
        ensure(attached.clone().all(|namespace| *namespace == own), PART, || {
            format!(
                "process {}: it has shared memory of an IPC namespace that it is not in",
                process.pid
            )
        })?;
    }
    ensure(used.len() == all.len(), PART, || "a namespace that no process is in")
}
