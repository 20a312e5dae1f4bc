//! Namespaces that processes of an app have made for themselves, below those that the app has
//! anyway (namespaces(7), unshare(2)).
//!
//! Each has a number, its position in the manifest, in the order in which processes come to them;
//! a process names those that it is in. At a restore the first one that is to be in it makes it,
//! and the others enter it (`restore/apart.rs`).
//!
//! Kept of an app that was started as one (where it has no init of its own, not those of its first
//! process): UTS (names), cgroup (where the app's cgroup is its root), IPC ([`crate::ipc`]), network
//! ([`crate::netns`]; sockets are of the one in which they were made), mount ([`crate::mounts`]; files
//! are of the one in which they were opened).
//! Refused: one that a process outside the app is in, too, or that is mounted (`ip netns`): it
//! would be another one afterwards. POSIX message queues in it, and what a process that has left
//! it still has of its System V objects.

use crate::error::{OrFail, Result};
use crate::ids::{HostPid, VirtualPid};
use crate::image::records::{Namespace, Vma, VmaKind};
use crate::ipc::{self, Objects};
use crate::memory::ShmTable;
use crate::mounts::Views;
use crate::netns;
use crate::nsthread::Door;
use crate::proc;
use crate::refusals::Refusals;
use crate::shared;
use crate::survey;
use crate::sys::fd as sysfd;
use crate::target::Target;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

/// A kind of namespace that is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Uts,
    Cgroup,
    Ipc,
    Net,
    Mnt,
}

impl Kind {
    pub const ALL: [Kind; 5] = [Kind::Uts, Kind::Cgroup, Kind::Ipc, Kind::Net, Kind::Mnt];

    /// Below `/proc/PID/ns`.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Uts => "uts",
            Kind::Cgroup => "cgroup",
            Kind::Ipc => "ipc",
            Kind::Net => "net",
            Kind::Mnt => "mnt",
        }
    }

    pub fn named(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// CLONE_NEW*
    pub fn flag(self) -> i32 {
        match self {
            Kind::Uts => libc::CLONE_NEWUTS,
            Kind::Cgroup => libc::CLONE_NEWCGROUP,
            Kind::Ipc => libc::CLONE_NEWIPC,
            Kind::Net => libc::CLONE_NEWNET,
            Kind::Mnt => libc::CLONE_NEWNS,
        }
    }
}

impl Namespace {
    pub fn kind(&self) -> Kind {
        match self {
            Namespace::Uts { .. } => Kind::Uts,
            Namespace::Cgroup => Kind::Cgroup,
            Namespace::Ipc(_) => Kind::Ipc,
            Namespace::Net { .. } => Kind::Net,
            Namespace::Mnt(_) => Kind::Mnt,
        }
    }
}

/// Kinds that a descriptor of the app may lead to. Its clocks begin after its files are opened: time is
/// none of them.
pub const OPENED: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// Of what an app is looked at.
#[derive(Debug)]
pub struct Looked<'a> {
    pub target: &'a Target,
    pub numbers: &'a [(HostPid, VirtualPid)],
    /// The app's own IPC namespace, and what is in it.
    pub own: (&'a ipc::Space, &'a Objects),
    /// Mappings of the same processes, as far as they were looked at.
    pub mapped: &'a [Vec<Vma>],
    pub mounts: &'a Views,
    /// Segments that nobody has attached are opened, files of mounts copied.
    pub take: bool,
}

impl Looked<'_> {
    /// How many mappings there are of each segment of an IPC namespace, by its id.
    fn mappings_of(&self, number: Option<u32>, shm: &mut ShmTable) -> BTreeMap<i32, i64> {
        let of_it = shm.records_mut().filter(|record| record.namespace == number);
        let ids: BTreeMap<_, i32> = of_it
            .filter_map(|record| Some((record.id, record.kind.sysv_id()?)))
            .collect();
        let mut mapped = BTreeMap::new();
        if ids.is_empty() {
            return mapped;
        }
        for vma in self.mapped.iter().flatten() {
            if let VmaKind::Shm { shm, .. } = vma.kind
                && let Some(id) = ids.get(&shm)
            {
                *mapped.entry(*id).or_default() += 1;
            }
        }
        mapped
    }

    /// Ids of segments that are mapped in other IPC namespaces.
    fn ids_beside(&self, number: Option<u32>, shm: &mut ShmTable) -> BTreeSet<i32> {
        let others = shm.records_mut().filter(|record| record.namespace != number);
        others.filter_map(|record| record.kind.sysv_id()).collect()
    }

    /// Whether what is mapped by the id of a segment is that of this namespace: as many may be mapped of
    /// another one's, where processes have changed places.
    fn are_of(&self, (number, space): (Option<u32>, &ipc::Space), id: i32, shm: &mut ShmTable) -> bool {
        let mut records = shm.records_mut();
        let record = records.find(|record| record.namespace == number && record.kind.sysv_id() == Some(id));
        let record = record.map(|record| record.id);
        let spaces = self.numbers.iter().zip(self.mapped);
        let mappings = spaces.flat_map(|((pid, _), vmas)| vmas.iter().map(move |vma| (pid, vma)));
        let mut its = mappings
            .filter(|(_, vma)| matches!(vma.kind, VmaKind::Shm { shm, .. } if Some(shm) == record))
            .map(|(pid, vma)| File::open(format!("/proc/{pid}/map_files/{:x}-{:x}", vma.start, vma.end)));
        let Ok(segment) = space.segment_handle(id) else {
            return false;
        };
        its.all(|file| file.is_ok_and(|file| sysfd::handle(&file).is_ok_and(|handle| handle == segment)))
    }
}

/// The namespaces of an app below its own, and who is in them.
#[derive(Clone, Debug, Default)]
pub struct Found {
    spaces: Vec<Space>,
    of: HashMap<HostPid, Vec<u32>>,
}

/// One of them.
#[derive(Clone, Debug)]
struct Space {
    kind: Kind,
    /// Where its links in /proc lead, as `uts:[4026532177]`.
    link: String,
    members: Vec<HostPid>,
}

impl Found {
    /// A process is in a namespace of this kind that is not the app's own.
    pub fn enter(&mut self, pid: HostPid, kind: Kind, link: String) {
        let known = self.spaces.iter().position(|space| space.link == link);
        let at = known.unwrap_or_else(|| {
            self.spaces.push(Space {
                kind,
                link,
                members: Vec::new(),
            });
            self.spaces.len() - 1
        });
        self.spaces[at].members.push(pid);
        self.of.entry(pid).or_default().push(at as u32);
    }

    /// Numbers of those that a process is in, ascending.
    pub fn of(&self, pid: HostPid) -> Vec<u32> {
        let mut numbers = self.of.get(&pid).cloned().unwrap_or_default();
        numbers.sort_unstable();
        numbers
    }

    /// The one of this kind that a process is in, where that is not the app's own.
    pub fn which(&self, pid: HostPid, kind: Kind) -> Option<u32> {
        let mut numbers = self.of.get(&pid)?.iter().copied();
        numbers.find(|number| self.spaces[*number as usize].kind == kind)
    }

    /// The one to which a link in /proc leads.
    pub fn by_link(&self, link: &str) -> Option<u32> {
        (0..)
            .zip(&self.spaces)
            .find(|(_, space)| space.link == link)
            .map(|(number, _)| number)
    }

    /// Whether a process is in none but the app's own.
    pub fn is_home(&self, pid: HostPid) -> bool {
        !self.of.contains_key(&pid)
    }

    /// All of this kind, each with a process that is in it.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = (u32, HostPid)> {
        let of_kind = (0..).zip(&self.spaces).filter(move |(_, space)| space.kind == kind);
        of_kind.map(|(number, space)| (number, space.members[0]))
    }

    pub fn has(&self, kind: Kind) -> bool {
        self.all(kind).next().is_some()
    }

    /// Looks into all of them.
    pub fn look(&self, looked: &Looked<'_>, shm: &mut ShmTable, refusals: &mut Refusals) -> Result<Vec<Namespace>> {
        self.refuse_left(None, looked.own, looked, shm, refusals);
        if self.spaces.is_empty() {
            return Ok(Vec::new());
        }
        let own: Vec<HostPid> = looked.numbers.iter().map(|(pid, _)| *pid).collect();
        self.refuse_shared(&own, refusals);
        let spaces = (0..).zip(&self.spaces);
        let records = spaces.map(|(number, space)| {
            let pid = space.members[0];
            match space.kind {
                Kind::Uts => space.names(refusals),
                Kind::Cgroup => {
                    space.refuse_other_root(refusals);
                    Ok(Namespace::Cgroup)
                }
                Kind::Ipc => self.objects((number, space), looked, shm, refusals).map(Namespace::Ipc),
                Kind::Net => {
                    let network = netns::Space::beside(pid).or_fail(|| unentered(pid))?;
                    let (loopback, settings) = network.look_beside(pid, refusals);
                    Ok(Namespace::Net { loopback, settings })
                }
                Kind::Mnt => {
                    space.refuse_shared_directories(refusals);
                    space.refuse_lost_names(number, looked.mounts, refusals);
                    let mounts = looked.mounts.look((number, pid), looked.take, shm, refusals);
                    Ok(Namespace::Mnt(mounts))
                }
            }
        });
        records.collect()
    }

    fn objects(
        &self,
        (number, space): (u32, &Space),
        looked: &Looked<'_>,
        shm: &mut ShmTable,
        refusals: &mut Refusals,
    ) -> Result<Objects> {
        let pid = space.members[0];
        let opened = ipc::Space::of(pid, true).or_fail(|| unentered(pid))?;
        if opened.has_posix_queues() {
            refusals.add(
                pid,
                format!("{} namespace", space.kind.name()),
                "POSIX message queues are in it, which are not carried in one beside the app's own",
                "let the app remove them (mq_unlink)",
            );
        }
        let within = (Some(number), &opened);
        let objects = ipc::look(
            looked.numbers,
            looked.target,
            within,
            (shm, None),
            looked.take,
            refusals,
        );
        self.refuse_left(Some(number), (&opened, &objects), looked, shm, refusals);
        Ok(objects)
    }

    /// What processes that have left an IPC namespace (setns(2), unshare(2)) still have of it: segments that
    /// are attached, and that they changed a semaphore last. Nobody may be in that namespace any more: there
    /// are more mappings of an id then than this one knows of.
    fn refuse_left(
        &self,
        number: Option<u32>,
        (space, objects): (&ipc::Space, &Objects),
        looked: &Looked<'_>,
        shm: &mut ShmTable,
        refusals: &mut Refusals,
    ) {
        let is_in = |pid: &HostPid| self.which(*pid, Kind::Ipc) == number;
        let mut pids = looked.numbers.iter().map(|(pid, _)| *pid);
        let Some(first) = pids.clone().find(is_in).or(pids.next()) else {
            return;
        };
        let mapped = looked.mappings_of(number, shm);
        // To those of the host others are attached, too.
        let is_whole =
            self.has(Kind::Ipc) && !looked.mapped.is_empty() && (number.is_some() || ipc::is_own(looked.target));
        let told = match is_whole || !mapped.is_empty() {
            true => space.attachments().unwrap_or_default(),
            false => BTreeMap::new(),
        };
        let all: BTreeSet<&i32> = told.keys().chain(mapped.keys()).collect();
        let elsewhere = looked.ids_beside(number, shm);
        let mut strays = |id: &i32| {
            let [told, mapped] = [&told, &mapped].map(|counts| counts.get(id).copied().unwrap_or(0));
            let is_counted = told == mapped || told > mapped && !is_whole;
            !is_counted || mapped > 0 && elsewhere.contains(id) && !looked.are_of((number, space), *id, shm)
        };
        for id in all.into_iter().filter(|id| strays(id)) {
            refusals.add(
                first,
                format!("System V shared memory {id}"),
                "a process has it attached that is not in its namespace any more",
                "let the app detach it before it leaves that namespace",
            );
        }
        let outside = |vpid: &VirtualPid| {
            let known = looked.numbers.iter().find(|(_, own)| own == vpid);
            known.is_some_and(|(pid, _)| !is_in(pid))
        };
        for set in objects.semaphores.iter().filter(|set| set.pids.iter().any(outside)) {
            refusals.add(
                first,
                format!("System V semaphore set {}", set.perm.id),
                "a process changed it last that is not in its namespace any more",
                "let the app change it from within that namespace, or remove it",
            );
        }
    }

    /// What is not the app's alone.
    fn refuse_shared(&self, own: &[HostPid], refusals: &mut Refusals) {
        for pid in proc::numbered("/proc").unwrap_or_default().into_iter().map(HostPid) {
            if own.contains(&pid) {
                continue;
            }
            let kinds = Kind::ALL.into_iter().filter(|kind| self.has(*kind));
            let links = kinds.filter_map(|kind| proc::link(pid, &format!("ns/{}", kind.name())).ok());
            for space in links.filter_map(|link| self.spaces.iter().find(|space| space.link == link)) {
                refusals.add(
                    space.members[0],
                    format!("{} namespace", space.kind.name()),
                    format!("process {pid} ({}) outside the app is in it, too", proc::comm(pid)),
                    "let the app have one of its own",
                );
            }
        }
        let first = own.first().map_or("self".to_owned(), HostPid::to_string);
        let mounts = ["thread-self", &first].map(|owner| proc::read(format!("/proc/{owner}/mountinfo")));
        // A place may have any bytes for its name.
        let mounts = mounts.map(|text| String::from_utf8_lossy(&text.unwrap_or_default()).into_owned());
        for (space, at) in mounts
            .iter()
            .flat_map(|text| text.lines())
            .filter_map(|line| self.mounted(line))
        {
            refusals.add(
                space.members[0],
                format!("{} namespace", space.kind.name()),
                format!("it is mounted at {at}"),
                "let the app have one of its own, which nobody mounts",
            );
        }
    }

    /// The root of a mount of nsfs is the namespace (proc_pid_mountinfo(5)).
    fn mounted<'l>(&self, line: &'l str) -> Option<(&Space, &'l str)> {
        let mut words = line.split(' ').skip(3);
        let (root, at) = (words.next()?, words.next()?);
        let space = self.spaces.iter().find(|space| space.link == root)?;
        Some((space, at))
    }
}

impl Space {
    fn names(&self, refusals: &mut Refusals) -> Result<Namespace> {
        let pid = self.members[0];
        let door = Door::open(pid, &["uts"]).or_fail(|| unentered(pid))?;
        let (hostname, domainname) = survey::host_names(pid, &door, refusals)?;
        Ok(Namespace::Uts { hostname, domainname })
    }

    /// Directories and programs have to be found by their names in the mounts that a process is in.
    fn refuse_lost_names(&self, number: u32, mounts: &Views, refusals: &mut Refusals) {
        let key = |path: &str| fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
        let names = [
            ("root directory", "root"),
            ("current directory", "cwd"),
            ("program", "exe"),
        ];
        for (pid, (what, link)) in self.members.iter().flat_map(|pid| names.map(|name| (pid, name))) {
            let Ok(name) = proc::link(*pid, link) else { continue };
            let there = mounts.view(number, &name).and_then(|view| key(&view));
            if there.is_none() || there != key(&format!("/proc/{pid}/{link}")) {
                refusals.add(
                    *pid,
                    format!("{what} ({name})"),
                    "it cannot be reached by its name in the mounts that the process has for itself",
                    "let the process change to one that has its name there",
                );
            }
        }
    }

    /// Who enters mounts has directories for itself (setns(2)).
    fn refuse_shared_directories(&self, refusals: &mut Refusals) {
        for pid in &self.members {
            let parent = proc::kept_stat(*pid).map_or(HostPid(0), |stat| HostPid(stat.ppid));
            if self.members.contains(&parent) && shared::with_parent(*pid, parent).1 {
                refusals.add(
                    *pid,
                    format!("{} namespace", self.kind.name()),
                    "it shares its directories with its parent there (CLONE_FS)",
                    "let it have directories of its own",
                );
            }
        }
    }

    /// All that are in it have its root for their cgroup (cgroup_namespaces(7)), as they will have
    /// once they make it again in the app's.
    fn refuse_other_root(&self, refusals: &mut Refusals) {
        for pid in &self.members {
            let seen = Door::open(*pid, &["cgroup"]).and_then(|door| door.inside(|| proc::text(*pid, "cgroup"))?);
            let is_root = |text: &String| text.lines().all(|line| line.ends_with(":/"));
            if !seen.as_ref().is_ok_and(is_root) {
                refusals.add(
                    *pid,
                    format!("{} namespace", self.kind.name()),
                    "its root is not the cgroup of the app",
                    "let the app make it while it is in its own cgroup",
                );
            }
        }
    }
}

fn unentered(pid: HostPid) -> String {
    format!("cannot enter the namespaces of pid {pid}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_share_one_have_its_number() {
        let mut found = Found::default();
        found.enter(HostPid(5), Kind::Cgroup, "cgroup:[1]".into());
        found.enter(HostPid(5), Kind::Uts, "uts:[7]".into());
        found.enter(HostPid(6), Kind::Uts, "uts:[8]".into());
        found.enter(HostPid(7), Kind::Uts, "uts:[7]".into());
        let numbers = [5, 6, 7, 8].map(|pid| found.of(HostPid(pid)));
        assert_eq!(numbers, [vec![0, 1], vec![2], vec![1], vec![]]);
    }

    #[test]
    fn a_mount_of_one_is_seen() {
        let mut found = Found::default();
        found.enter(HostPid(5), Kind::Uts, "uts:[7]".into());
        let mounted = |root: &str| {
            let line = format!("40 29 0:4 {root} /run/kept rw shared:9 - nsfs nsfs rw");
            found.mounted(&line).map(|(_, at)| at.to_owned())
        };
        assert_eq!(mounted("uts:[7]").as_deref(), Some("/run/kept"));
        assert_eq!(mounted("uts:[70]"), None);
    }
}
