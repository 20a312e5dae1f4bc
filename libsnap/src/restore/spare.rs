//! A husk in waiting: what every app begins with, made before anyone asks for it.
//!
//! ```text
//!   made:     init (1), traced, the executor in it ── fork ──> root (2)
//!             new PID, IPC, UTS, mount namespaces,             leader of its session;
//!             /proc, /dev/pts, a cgroup                        its clocks are its own to set
//!   wanted:   host name, clocks, the number of a descriptor: the first calls of root
//! ```
//!
//! A time namespace takes its offsets until the first process enters it. So root
//! makes one for its children ahead, and enters it itself once they are known
//! (time_namespaces(7)); init follows.
//!
//! ptrace belongs to a thread: a spare can be used by the one that made it.

use super::eager::Eager;
use super::place;
use super::script::Script;
use super::skeleton::{self, Husk, Skeleton, adopted, fork_in, free_number, host_name};
use crate::clocks::Timeline;
use crate::error::Result;
use crate::ids::HostPid;
use crate::image::Appshot;
use crate::image::records::{Life, ProcessRecord, SnapEntry};
use crate::launch::{Place, ROOT};
use crate::proc;
use crate::sys::memory::Span;
use crate::sys::ptrace;
use crate::target::PidMode;
use std::fs;
use std::path::{Path, PathBuf};

/// The number under which a spare holds what its descriptors are taken through: the
/// last for which a process needs no larger table.
const RESTORER: i32 = 63;
/// Files of its own in /proc that the root has open: to look them up takes longer than
/// all else that is done with them.
const FILES: [&str; 2] = ["timens_offsets", "ns/time_for_children"];
const OFFSETS: i32 = RESTORER - 1;
const CLOCKS: i32 = RESTORER - 2;
const NEWTIME: u64 = 0x80;

/// Ended by dropping it, with its cgroup.
#[derive(Debug)]
pub struct Spare {
    skeleton: Skeleton,
    root: Husk,
    eager: Option<Eager>,
}

impl Spare {
    /// In this cgroup, which is the spare's own from now on.
    pub fn make(group: Option<PathBuf>) -> Result<Spare> {
        let place = Place {
            pids: PidMode::New,
            cgroup: group,
            ..Place::default()
        };
        crate::timed::prune();
        let (mut skeleton, init) = Skeleton::begin(place, RESTORER, Vec::new())?;
        let root = fork_in(&skeleton.executor, &init, ROOT, libc::SIGCHLD)?;
        skeleton.born.push(root.pid);
        let mut script = Script::new(skeleton.executor, root.pid, &root.regs);
        script.must("setsid", libc::SYS_setsid, &[])?;
        script.must("unshare(CLONE_NEWTIME)", libc::SYS_unshare, &[NEWTIME])?;
        for (file, number) in FILES.iter().zip((0..RESTORER).rev()) {
            let flags = if file.starts_with("ns") {
                libc::O_RDONLY
            } else {
                libc::O_WRONLY
            };
            open(&mut script, &format!("/proc/self/{file}"), flags)?;
            move_to(&mut script, 0, number)?;
        }
        place::clear(&skeleton, &mut script)?;
        script.flush()?;
        skeleton.had = Had::read(&skeleton, &root)?;
        skeleton.init = Some(init);
        // Its first look-up below /proc takes longer.
        for pid in &skeleton.born {
            let own = format!("/proc/{pid}/root{}", crate::identity::DIRECTORY);
            fs::symlink_metadata(own).ok();
        }
        Ok(Spare {
            skeleton,
            root,
            eager: None,
        })
    }

    /// To be called by its thread, which is about to wait for what the spare becomes:
    /// that will not wait for others. Answers the thread.
    pub fn await_eagerly(&mut self) -> Option<HostPid> {
        self.eager = Eager::begin();
        self.eager.as_ref().map(Eager::thread)
    }

    /// Takes that back.
    pub fn calm(&mut self) {
        self.eager = None;
    }

    pub fn group(&self) -> Option<&Path> {
        self.skeleton.group().map(PathBuf::as_path)
    }

    /// Whether it can become this app: one whose root has the number and the session
    /// of ours, no child that stayed in another, and room for the executor.
    pub fn suits(&self, shot: &Appshot, pids: PidMode) -> bool {
        let wanted = adopted(&shot.manifest.processes, pids);
        let root = &wanted[0];
        let is_ours = (root.pid.0, root.sid) == (ROOT, root.pid)
            && root.exit_signal == libc::SIGCHLD
            && matches!(root.life, Life::Alive { .. });
        let stays = |entry: &SnapEntry| entry.ppid == root.pid && entry.sid != root.pid && entry.sid != entry.pid;
        let own = self.skeleton.executor.span();
        let meets = |span: Span| span.start < own.end && own.start < span.end;
        let mut vmas = shot.cores.iter().flat_map(|core| &core.image.vmas);
        // Someone may have killed it.
        let lives = ptrace::get_regs(self.root.pid).is_ok();
        pids == PidMode::New
            && lives
            && is_ours
            && !wanted[1..].iter().any(|entry| stays(entry) || entry.pid == root.pid)
            && !wanted.iter().any(|entry| entry.pid == root.ppid)
            && !vmas.any(|vma| meets(Span::from(vma)))
    }

    /// Becomes the skeleton of an app that it suits, with another host name if one is
    /// given.
    pub fn turn_into(self, shot: &Appshot, hostname: Option<&str>) -> Result<Skeleton> {
        let Spare {
            mut skeleton,
            root,
            eager,
        } = self;
        let wanted = adopted(&shot.manifest.processes, PidMode::New);
        skeleton.timeline = Timeline::begin(shot.manifest.clocks);
        skeleton.early = Some(root.clone());
        skeleton.unsettled = true;
        skeleton.host = host_name(&shot.manifest, hostname);
        skeleton.restorer = free_number(shot);
        // Several would work at the same time, or for long.
        let alone = wanted.len() == 1 && shot.cores.iter().all(|core| core.image.threads.len() == 1);
        skeleton.eager = eager.filter(|_| alone);
        if let Some(eager) = &skeleton.eager {
            eager.with(root.pid);
        }
        if wanted.len() > 1 {
            // What they fork has all of it from them.
            let mut script = Script::new(skeleton.executor, root.pid, &root.regs);
            settle(&skeleton, &mut script, shot)?;
            script.flush()?;
            if let Some(init) = skeleton.init.clone() {
                let mut script = Script::new(skeleton.executor, init.pid, &init.regs);
                follow(&mut script)?;
                move_to(&mut script, RESTORER, skeleton.restorer)?;
                script.flush()?;
            }
            skeleton.unsettled = false;
        }
        skeleton.grow(shot, &wanted)?;
        Ok(skeleton)
    }
}

/// What the root of a spare does before anything else to become the app's.
fn settle(skeleton: &Skeleton, script: &mut Script<'_>, shot: &Appshot) -> Result<()> {
    let had = &skeleton.had;
    let names = [
        (&skeleton.host, &had.host, "sethostname", libc::SYS_sethostname),
        (
            &shot.manifest.domainname,
            &had.domain,
            "setdomainname",
            libc::SYS_setdomainname,
        ),
    ];
    for (wanted, _, call, number) in names.into_iter().filter(|(wanted, has, ..)| wanted != has) {
        let batch = script.room(1, wanted.len())?;
        let name = batch.bytes(wanted.as_bytes()).address;
        batch.must(call, number, &[name, wanted.len() as u64]);
    }
    write(script, OFFSETS, &skeleton.timeline.offsets())?;
    script.must("setns", libc::SYS_setns, &[CLOCKS as u64, NEWTIME])?;
    script.must(
        "close_range",
        libc::SYS_close_range,
        &[CLOCKS as u64, OFFSETS as u64, 0],
    )?;
    move_to(script, RESTORER, skeleton.restorer)?;
    match shot.cores.first() {
        Some(root) => say(script, &root.image.process, &had.says),
        None => Ok(()),
    }
}

/// What it has, which an app may want just so.
#[derive(Debug, Default)]
pub struct Had {
    host: String,
    domain: String,
    says: [String; 2],
}

impl Had {
    fn read(skeleton: &Skeleton, root: &Husk) -> Result<Had> {
        // struct utsname: six names of 65 bytes; the host's is the second.
        const NAME: usize = 65;
        let mut batch = skeleton.batch();
        let names = batch.space(6 * NAME);
        batch.must("uname", libc::SYS_uname, &[names.address]);
        skeleton::run(&skeleton.executor, root, &mut batch)?;
        let name = |at: usize| {
            let bytes = &batch.read(names)[at * NAME..(at + 1) * NAME];
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            String::from_utf8_lossy(text).into_owned()
        };
        let says = SAYS.map(|file| proc::text(root.pid, file).unwrap_or_default().trim().to_owned());
        Ok(Had {
            host: name(1),
            domain: name(5),
            says,
        })
    }
}

/// What a process says of itself in /proc.
const SAYS: [&str; 2] = ["oom_score_adj", "coredump_filter"];

/// In a process that has no descriptor 0 yet.
fn say(script: &mut Script<'_>, process: &ProcessRecord, had: &[String; 2]) -> Result<()> {
    let wanted = [
        process.oom_score_adj.to_string(),
        // As the kernel shows it.
        format!("{:08x}", process.coredump_filter),
    ];
    for ((file, text), had) in SAYS.iter().zip(&wanted).zip(had) {
        if text == had {
            continue;
        }
        let prefix = if *file == "coredump_filter" { "0x" } else { "" };
        open(script, &format!("/proc/self/{file}"), libc::O_WRONLY)?;
        write(script, 0, &format!("{prefix}{text}"))?;
        script.must("close", libc::SYS_close, &[0])?;
    }
    Ok(())
}

/// The init takes the app's clocks over.
fn follow(script: &mut Script<'_>) -> Result<()> {
    open(script, &format!("/proc/{ROOT}/ns/time"), libc::O_RDONLY)?;
    script.must("setns", libc::SYS_setns, &[0, NEWTIME])?;
    script.must("close", libc::SYS_close, &[0]).map(drop)
}

fn open(script: &mut Script<'_>, path: &str, flags: i32) -> Result<()> {
    let batch = script.room(1, path.len() + 1)?;
    let name = batch.c_string(path).address;
    let opened = batch.must("open", libc::SYS_open, &[name, (flags | libc::O_CLOEXEC) as u64, 0]);
    script.expect(opened, "opening a file of /proc", 0);
    Ok(())
}

fn write(script: &mut Script<'_>, fd: i32, text: &str) -> Result<()> {
    let batch = script.room(1, text.len())?;
    let bytes = batch.bytes(text.as_bytes()).address;
    let written = batch.must("write", libc::SYS_write, &[fd as u64, bytes, text.len() as u64]);
    script.expect(written, "writing to a file of /proc", text.len() as u64);
    Ok(())
}

fn move_to(script: &mut Script<'_>, from: i32, to: i32) -> Result<()> {
    if from != to {
        script.must("dup3", libc::SYS_dup3, &[from as u64, to as u64, 0])?;
        script.must("close", libc::SYS_close, &[from as u64])?;
    }
    Ok(())
}

impl Skeleton {
    /// How each process begins its work, before it has any descriptor of the app.
    pub fn begin_work(&self, script: &mut Script<'_>, at: usize, shot: &Appshot) -> Result<()> {
        match at {
            0 if self.unsettled => settle(self, script, shot),
            _ => say(script, &shot.cores[at].image.process, &Default::default()),
        }
    }

    /// The number under which the init holds what descriptors are taken through.
    pub(super) fn number_in_init(&self) -> i32 {
        match self.unsettled {
            true => RESTORER,
            false => self.restorer,
        }
    }

    /// The init takes over the clocks of a root that was a spare's.
    pub(super) fn follow(&self, script: &mut Script<'_>) -> Result<()> {
        match self.unsettled {
            true => follow(script),
            false => Ok(()),
        }
    }

    /// The last that an init does by the executor.
    pub(super) fn leave(&self, script: &mut Script<'_>) -> Result<()> {
        script.must("close", libc::SYS_close, &[self.number_in_init() as u64])?;
        let batch = script.room(1, 16)?;
        let name = batch.c_string("appshot-init").address;
        batch.must("prctl", libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name, 0, 0, 0]);
        Ok(())
    }
}
