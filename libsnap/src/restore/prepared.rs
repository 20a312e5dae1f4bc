//! An instance that lacks only what is known when it is asked for.
//!
//! ```text
//!   make:    husks of the whole tree, their memory or who brings it, its protection
//!            ............................. it may wait here, stopped and traced
//!   finish:  name, clocks | open files | descriptors | threads | signals, timers, rights | registers
//! ```
//!
//! Nothing that others could see is made ahead: no port is bound, no file of the app's
//! opened for good, no clock started.

use super::eager::Eager;
use super::fill::{self, Empty, Wanted};
use super::huge;
use super::itself::Itself;
use super::opened::Opened;
use super::pager::{Left, Pager, Rest};
use super::place::{self, Mapped, Protect, Shared};
use super::revert::{self, Made, Point};
use super::script::{self, Running, Script};
use super::skeleton::Skeleton;
use super::spare::Spare;
use super::state::{Inherited, Threads, Waits};
use super::vdso::Vdso;
use super::{From, Phases, state, threads};
use crate::cgroup;
use crate::clocks::Timeline;
use crate::error::{Error, Kind, OrFail, Result};
use crate::files::held::Held;
use crate::files::mqueue;
use crate::files::{self, Builder};
use crate::identity::{self, Directory, Origin};
use crate::ids::{FileId, HostPid, ShmId};
use crate::image::records::{FileKind, SocketState};
use crate::image::{Appshot, Core};
use crate::ipc;
use crate::launch::{bind_all, no_cgroup};
use crate::netns;
use crate::network;
use crate::nsthread::Door;
use crate::sys::memory::Span;
use crate::sys::ptrace::Regs;
use crate::target::{Bind, Instance, Memory, Network, PidMode, RestoreOptions, Time};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

/// What has to be known of the options to prepare an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    pub pids: PidMode,
    pub memory: Memory,
    pub network: Network,
    pub renewed: bool,
    pub revertible: bool,
    pub as_itself: bool,
    /// It finds something at another place than others ([`Bind`]): it is made once it is asked for.
    ///
    /// [`Bind`]: crate::target::Bind
    pub bound: bool,
    pub force_vdso_bridge: bool,
}

impl Way {
    pub fn of(options: &RestoreOptions) -> Way {
        Way {
            pids: options.pids,
            memory: options.memory,
            // What it joins is known when it is finished; its init stays where nothing is.
            network: match options.joins {
                Some(_) => Network::Own,
                None => options.network,
            },
            renewed: options.identity.renewed,
            revertible: options.revertible,
            as_itself: options.as_itself,
            bound: !options.binds.is_empty(),
            force_vdso_bridge: options.force_vdso_bridge,
        }
    }

    /// The network that this comes to.
    pub(super) fn network(self, shot: &Appshot) -> Network {
        match self.network {
            Network::Auto if is_bound(shot) => Network::Own,
            Network::Auto => Network::Host,
            asked => asked,
        }
    }
}

/// Dropped, it is undone.
#[derive(Debug)]
pub struct Prepared {
    from: From,
    way: Way,
    skeleton: Skeleton,
    /// What its processes share, held by us.
    shared: Shared,
    vdsos: Vec<Vdso>,
    /// Who brings the memory that is not there yet.
    pager: Option<Pager>,
    /// Where the instance finds what it is.
    directory: Option<Directory>,
    /// What it had used when it was ready, before anybody asked for it.
    ahead: Option<cgroup::Counters>,
}

impl Prepared {
    /// `name` is that of the cgroup, where no spare brings one along.
    pub(super) fn make(
        from: &From,
        way: Way,
        vdsos: Vec<Vdso>,
        spare: &mut Option<Spare>,
        (name, binds): (Option<&str>, &[Bind]),
        phases: &mut Phases<'_>,
    ) -> Result<Prepared> {
        let shot = from.shot();
        phases.start("skeleton")?;
        let network = way.network(shot);
        let skeleton = match spare.take_if(|spare| spare.suits(shot, way.pids)) {
            Some(mut spare) => {
                if let From::Disk(_) = from {
                    // This may take long.
                    spare.calm();
                }
                spare.turn_into(shot, network)?
            }
            None => {
                spare.as_mut().map(Spare::calm);
                crate::timed::prune();
                let group = cgroup::create(name.unwrap_or(&shot.manifest.app))?;
                Skeleton::build(shot, way.pids, network, group)?
            }
        };
        bind_all(binds, skeleton.any())?;
        Prepared::within(from, way, vdsos, skeleton, phases)
    }

    /// In this skeleton, which is made for it.
    pub(super) fn within(
        from: &From,
        way: Way,
        vdsos: Vec<Vdso>,
        mut skeleton: Skeleton,
        phases: &mut Phases<'_>,
    ) -> Result<Prepared> {
        let shot = from.shot();
        phases.start("objects")?;
        let directory = Directory::open(&skeleton.view())?;
        ipc::widen(skeleton.base(), ipc::Content::of(&shot.manifest))?;
        if skeleton.has_network {
            netns::restore(skeleton.base(), &shot.manifest)?;
        }
        skeleton.part(shot)?;
        let (mut shared, attached) = Shared::make(shot, &skeleton, Itself::of(way, shot)?.as_ref())?;
        let queues = ipc::restore(skeleton.base(), ipc::Content::of(&shot.manifest))?;
        shared.opened.extend(queues);
        skeleton.furnish(shot)?;
        skeleton.mount(shot, &mut shared)?;
        let mut prepared = Prepared {
            from: from.clone(),
            way,
            skeleton,
            shared,
            vdsos,
            pager: None,
            directory,
            ahead: None,
        };
        prepared.pager = prepared.fill(Protect::All, phases)?;
        drop(attached);
        Ok(prepared)
    }

    /// One that never runs, and is full.
    pub(super) fn template(
        from: &From,
        way: Way,
        skeleton: Skeleton,
        vdsos: Vec<Vdso>,
        phases: &mut Phases<'_>,
    ) -> Result<Prepared> {
        let template = Prepared {
            from: from.clone(),
            way: Way {
                memory: Memory::Eager,
                ..way
            },
            skeleton,
            shared: Shared::default(),
            vdsos,
            pager: None,
            directory: None,
            ahead: None,
        };
        template.fill(Protect::Forked, phases)?;
        Ok(Prepared { way, ..template })
    }

    /// One that has been forked off a template.
    pub(super) fn forked(
        from: &From,
        way: Way,
        skeleton: Skeleton,
        vdsos: Vec<Vdso>,
        shared: Shared,
    ) -> Result<Prepared> {
        Ok(Prepared {
            directory: Directory::open(&skeleton.view())?,
            from: from.clone(),
            way,
            skeleton,
            shared,
            vdsos,
            pager: None,
            ahead: None,
        })
    }

    /// Gives the processes their memory, or answers who brings it.
    fn fill(&self, protect: Protect, phases: &mut Phases<'_>) -> Result<Option<Pager>> {
        let kept = match &self.from {
            From::Disk(opened) => return self.bring(opened, protect, phases),
            From::Memory(kept) => kept,
        };
        phases.start("memory")?;
        let shot = &kept.shot;
        let itself = Itself::of(self.way, shot)?;
        let mut mapped = Mapped::new(&self.shared, itself.as_ref());
        let reading = self.start_all(|at, script| {
            let (core, vdso) = (&shot.cores[at], &self.vdsos[at]);
            self.skeleton.begin_work(script, at, shot)?;
            let filled = (vdso, self.way.renewed);
            place::mappings_with(&self.skeleton, script, kept, at, &mut mapped, filled)?;
            self.skeleton.end_work(script, at, shot)?;
            place::collapse(script, &huge::had(core))?;
            place::protection(script, core, vdso, protect)
        })?;
        mapped.told(script::finish_all(reading), shot, &self.skeleton.view())?;
        Ok(None)
    }

    /// What is left before it can wait until it is asked for.
    pub(super) fn complete(mut self) -> Result<Prepared> {
        self.skeleton
            .finish_init(self.pager.as_ref().map(|pager| &pager.hold))?;
        Ok(self)
    }

    /// What shortens its first answers, for one that has time until it is asked for: what
    /// files hold is mapped, and the first process has these pages for itself.
    pub fn warm(&self, own: &[Span]) -> Result<()> {
        let cores = &self.from.shot().cores;
        let warming = self.start_all(|at, script| {
            if at == 0 {
                place::have(script, own)?;
            }
            place::populate(script, &cores[at])
        })?;
        script::finish_all(warming)
    }

    /// The app's first process.
    pub fn root(&self) -> HostPid {
        self.skeleton.any()
    }

    pub(super) fn skeleton(&self) -> &Skeleton {
        &self.skeleton
    }

    /// That of the first process.
    pub(super) fn vdso(&self) -> &Vdso {
        &self.vdsos[0]
    }

    /// What it becomes an instance of.
    pub fn from(&self) -> &From {
        &self.from
    }

    pub fn way(&self) -> Way {
        self.way
    }

    /// Its cgroup, which stays the instance's.
    pub fn group(&self) -> Option<&std::path::Path> {
        self.skeleton.group().map(std::path::PathBuf::as_path)
    }

    /// Nobody has asked for it so far: what it has used, no instance has.
    pub fn waits(&mut self) {
        self.ahead = self.group().and_then(|group| cgroup::processor_counters(group).ok());
    }

    /// Reads what would have to be read of it when it is asked for.
    pub fn read_ahead(&mut self) {
        if self.skeleton.limits.is_none() {
            self.skeleton.inherited = Inherited::read(self.skeleton.any());
            self.skeleton.limits = Some(state::limits(self.skeleton.any()));
        }
    }

    /// To be called by its thread, which is about to wait until it is asked for: what is
    /// left to do then does not wait for others. Answers the thread.
    pub fn await_eagerly(&mut self) -> Option<HostPid> {
        self.read_ahead();
        self.skeleton.eager = Eager::begin();
        self.skeleton.eager.as_ref().map(Eager::thread)
    }

    /// Maps and fills what must be there before it runs. Answers who brings the rest.
    fn bring(&self, opened: &Arc<Opened>, protect: Protect, phases: &mut Phases<'_>) -> Result<Option<Pager>> {
        let (shot, skeleton, way) = (&opened.shot, &self.skeleton, self.way);
        let lazy = way.memory != Memory::Eager && way.pids == PidMode::New;
        let rest = match way.memory {
            Memory::Shared => Rest::WhenTouched,
            Memory::Eager | Memory::Lazy => Rest::Soon,
        };
        if rest == Rest::WhenTouched {
            opened.hold()?;
        }
        phases.start("mappings")?;
        let itself = Itself::of(way, shot)?;
        let mut mapped = Mapped::new(&self.shared, itself.as_ref());
        let mut numbers = vec![0; shot.cores.len()];
        let mapping = self.start_all(|at, script| {
            skeleton.begin_work(script, at, shot)?;
            let map = match skeleton.owners.has_files(at) {
                true => place::mappings,
                false => place::mappings_as_guest,
            };
            numbers[at] = map(skeleton, script, &shot.cores[at], &mut mapped, &self.vdsos[at])?;
            Ok(())
        })?;
        mapped.told(script::finish_all(mapping), shot, &skeleton.view())?;
        phases.start("memory")?;
        let empty = shot.cores.iter().zip(numbers).enumerate();
        let empty = empty.map(|(at, (core, number))| {
            let (new, noted) = (way.renewed, lazy && way.revertible);
            Empty::new(
                skeleton.husks[at].pid,
                number,
                core,
                &self.vdsos[at],
                Wanted { lazy, new, noted },
            )
        });
        let empty: Vec<Empty<'_>> = empty.collect();
        let closing = self.start_all(|at, script| skeleton.end_work(script, at, shot))?;
        let filled = fill::all(opened, &empty, phases.cancelled);
        script::finish_all(closing)?;
        filled?;
        // No process holds its userfaultfd any more: where nothing is left, what it had
        // registered is ordinary memory again.
        let left = empty.into_iter().enumerate().filter_map(|(core, empty)| {
            let (faults, owed) = empty.left()?;
            let pid = skeleton.husks[core].pid;
            Some(Left {
                core,
                pid,
                faults,
                owed,
            })
        });
        let left: Vec<Left> = left.collect();
        let owing: Vec<usize> = left.iter().map(|left| left.core).collect();
        let pager = match left.is_empty() {
            true => None,
            false => Some(Pager::start(opened, left, rest)?),
        };
        phases.start("protection")?;
        let protecting = self.start_all(|at, script| {
            if !owing.contains(&at) {
                place::collapse(script, &huge::had(&shot.cores[at]))?;
            }
            place::protection(script, &shot.cores[at], &self.vdsos[at], protect)
        })?;
        script::finish_all(protecting)?;
        Ok(pager)
    }

    /// Sets the main thread of every process to work on a script of its own. Those that work in the
    /// descriptor table of another come first, one after the other, and leave it as it was.
    fn start_all(&self, mut write: impl FnMut(usize, &mut Script<'_>) -> Result<()>) -> Result<Vec<Running<'_>>> {
        let mut start = |at| {
            let mut script = self.skeleton.script(at);
            write(at, &mut script)?;
            script.start()
        };
        let all = 0..self.skeleton.husks.len();
        let (owners, guests): (Vec<usize>, Vec<usize>) = all.partition(|at| self.skeleton.owners.has_files(*at));
        guests.into_iter().try_for_each(|at| start(at)?.finish())?;
        owners.into_iter().map(start).collect()
    }

    /// Everything that is left. The app runs from then on.
    pub(super) fn finish(
        mut self,
        options: &RestoreOptions,
        begin: Instant,
        mut phases: Phases<'_>,
    ) -> Result<Instance> {
        let from = self.from.clone();
        let shot = from.shot();
        let name = options.name.clone().unwrap_or_else(|| shot.manifest.app.clone());
        phases.start("files")?;
        if self.pager.is_none() {
            self.skeleton.hasten(shot);
        }
        self.skeleton.timeline = match options.time {
            Time::Stands => Timeline::begin(shot.manifest.clocks),
            Time::Passes => Timeline::passed(shot.manifest.clocks),
        };
        let own = identity::files(&name, &options.identity, Origin::Restored(&shot.manifest.participants))?;
        let owner = shot.cores[0].image.threads.first().map_or((0, 0), |thread| {
            let creds = &thread.record.creds;
            (creds.uid[1], creds.gid[1])
        });
        // What it has open of these has to be there. That it was restored it hears later.
        if shot.manifest.external.iter().any(|file| identity::is_file(&file.path)) {
            identity::write(self.directory.as_ref(), &own, owner)?;
        }
        let (joined, network) = options.joins.map(network::join).transpose()?.unzip();
        if let Some(network) = &joined {
            self.skeleton.join(network, shot)?;
        }
        let files::Made { files, resumed } = self.files(shot, options, joined.as_deref())?;
        phases.start("processes")?;
        let hostname = options.identity.renewed.then_some(name.as_str());
        let waits = self.give(shot, &files, hostname)?;
        mqueue::after_notices(&shot.manifest, &files)?;
        drop(files);
        phases.start("identity")?;
        if options.identity.renewed {
            let mut husks = self.skeleton.husks.iter().zip(&shot.cores);
            husks.try_for_each(|(husk, core)| fill::renew(husk.pid, core))?;
        }
        identity::write(self.directory.as_ref(), &own, owner)?;
        let asked = match self.way.revertible {
            true => revert::ask(&self.skeleton, shot)?,
            false => None,
        };
        if !options.limits.are_none() {
            let group = self.group().ok_or_else(no_cgroup)?;
            cgroup::limit(group, &options.limits)?;
        }
        phases.start("go")?;
        state::registers(&self.skeleton, shot, &self.vdsos, waits)?;
        let point = match (&self.from, &self.pager) {
            (From::Disk(opened), Some(pager)) if self.way.revertible => Some(Arc::new(Point::arm(Made {
                opened,
                skeleton: &self.skeleton,
                pager,
                vdsos: &self.vdsos,
                renewed: self.way.renewed,
                asked,
            }))),
            _ => None,
        };
        let Prepared {
            mut skeleton,
            pager,
            way,
            ahead,
            ..
        } = self;
        skeleton.is_bound = options.dies_with_restorer;
        let group = skeleton.group().cloned();
        let has_network = skeleton.has_network;
        skeleton.notify(&options.notices)?;
        if options.frozen {
            if pager.is_some() {
                return Err(Error::new(Kind::Usage, "the app cannot be held still")
                    .because("its memory comes while it runs")
                    .fix("restore it with all its memory at once"));
            }
            // The init has work to do before.
            skeleton.finish_init(None)?;
            cgroup::hold(group.as_deref())?;
        }
        // What may fail is behind us.
        let resumed = match resumed {
            Some(resumed) if options.frozen => {
                resumed.complete()?;
                Some(Arc::new(resumed))
            }
            Some(resumed) => resumed.go().map(|()| None)?,
            None => None,
        };
        let (root, init, processes) = skeleton.let_go(pager.as_ref().map(|pager| &pager.hold))?;
        if let (Some(pager), Some(init)) = (pager, init) {
            pager.runs(init, &options.stdio)?;
        }
        let left_out = shot.manifest.network_settings.len();
        let warnings = match has_network || left_out == 0 {
            true => Vec::new(),
            false => vec![format!(
                "it had a network of its own with {left_out} settings changed (net.*): where it is now they are as its owner has them"
            )],
        };
        Ok(Instance {
            name,
            root,
            init: init.filter(|_| way.pids == PidMode::New),
            cgroup: group,
            processes,
            total_micros: begin.elapsed().as_micros() as u64,
            phases: phases.steps.end(),
            warnings,
            network,
            joined,
            ahead,
            point,
            resumed,
        })
    }

    /// Makes the app's open files, in our own process.
    fn files(&mut self, shot: &Appshot, options: &RestoreOptions, network: Option<&OwnedFd>) -> Result<files::Made> {
        let source = |(id, fd): (&ShmId, &OwnedFd)| (*id, format!("/proc/self/fd/{}", fd.as_raw_fd()));
        let ptys = std::mem::take(&mut self.skeleton.ptys);
        let opened = std::mem::take(&mut self.shared.opened);
        let skeleton = &self.skeleton;
        let builder = Builder {
            view: skeleton.view(),
            processes: &skeleton.numbers,
            base: skeleton.base(),
            namespaces: &skeleton.namespaces,
            members: (0..)
                .zip(&skeleton.namespaces)
                .map(|(number, _)| skeleton.member(shot, Some(number)))
                .collect(),
            network: match network {
                Some(network) => format!("/proc/self/fd/{}", network.as_raw_fd()),
                None => format!("/proc/{}/ns/net", skeleton.base()),
            },
            shm: &self.shared.shm.iter().map(source).collect(),
            stdio: &options.stdio,
            ttys: skeleton.open_ttys(&shot.manifest)?,
            timeline: skeleton.timeline,
            held: Held::take(&options.held, &shot.manifest)?,
            joined: network.is_some(),
            apart: skeleton.has_network && network.is_none(),
            closes: options.tcp_close,
        };
        let mut there = files::outside(&builder, &shot.manifest)?;
        there.extend(opened);
        let itself = Itself::of(self.way, shot)?;
        let make = || match &itself {
            Some(itself) => itself.within(|| files::restore_all(&builder, &shot.manifest, there, ptys)),
            None => files::restore_all(&builder, &shot.manifest, there, ptys),
        };
        let door = match network {
            Some(network) => Door::to_network(network),
            None if skeleton.has_network => Door::open(skeleton.base(), &["net"]),
            None => return make(),
        };
        let made = door.and_then(|door| door.inside(make));
        made.or_fail(|| "cannot enter the instance's network")?
    }

    /// Gives every process its descriptors, threads and state: one script each, where
    /// that will do. Answers what threads wait in already.
    fn give(&mut self, shot: &Appshot, files: &HashMap<FileId, OwnedFd>, hostname: Option<&str>) -> Result<Waits> {
        let skeleton = &mut self.skeleton;
        let regs: Vec<Regs> = skeleton.husks.iter().map(|husk| husk.regs).collect();
        let mut scripts: Vec<Script<'_>> = Vec::with_capacity(regs.len());
        for (at, regs) in regs.iter().enumerate() {
            let mut script = Script::new(skeleton.executor, skeleton.husks[at].pid, regs);
            skeleton.settle(&mut script, at, shot, hostname)?;
            if at == 0 && shot.cores.len() > 1 || !skeleton.owners.has_files(at) {
                script.flush()?;
            }
            scripts.push(script);
        }
        for ((at, core), script) in shot.cores.iter().enumerate().zip(&mut scripts) {
            let process = &core.image.process;
            let shared = !skeleton.owners.has_files(at);
            place::descriptors(script, skeleton.restorer, process, files, &shot.manifest, shared)?;
            place::rings(script, skeleton.restorer, core, files, &shot.manifest)?;
            if shared || skeleton.owners.are_guests_of(at) {
                script.flush()?;
            }
            if skeleton.owners.has_state(at) {
                state::file_system(script, process)?;
            }
            state::common(script, process)?;
        }
        let limits = skeleton.limits.take();
        let limits = limits.unwrap_or_else(|| state::limits(skeleton.any()));
        // Whose threads can make themselves, and no limit would be in their way.
        let simple =
            |core: &Core| threads::suits(core) && state::limits_to_set(&limits, &core.image.process).next().is_none();
        let simple: Vec<bool> = shot.cores.iter().map(simple).collect();
        if ipc::has_semaphores(&shot.manifest) || simple.contains(&false) {
            script::run_all(&mut scripts)?;
            for (at, core) in shot.cores.iter().enumerate().filter(|(at, _)| !simple[*at]) {
                state::threads(skeleton, at, core, &shot.manifest.seccomp)?;
            }
            ipc::adjust(skeleton, shot)?;
        }
        let mut waits = Waits::default();
        let mut again = place::Again::default();
        let mut becoming = Vec::with_capacity(scripts.len());
        for ((at, core), mut script) in shot.cores.iter().enumerate().zip(scripts) {
            let threads = match simple[at] {
                true => Threads::Ready,
                false => Threads::Bare,
            };
            if threads == Threads::Ready {
                threads::make(skeleton, at, core, &mut script, &mut waits)?;
            }
            let process = &core.image.process;
            let wait =
                &mut |script: &mut Script<'_>| place::wait_again(script, process, files, &shot.manifest, &mut again);
            becoming.push(state::process(skeleton, at, core, &limits, threads, script, wait)?);
        }
        state::finish_becoming(becoming, &mut waits)?;
        state::stops(skeleton, shot)?;
        Ok(waits)
    }
}

/// Whether the app has a port of the internet for itself.
fn is_bound(shot: &Appshot) -> bool {
    shot.manifest.files.iter().any(|file| match &file.kind {
        FileKind::Socket(socket) if socket.network.is_none() => {
            [libc::AF_INET, libc::AF_INET6].contains(&socket.domain) && socket.state != SocketState::Fresh
        }
        _ => false,
    })
}
