//! What a process of a restored app has through its namespaces and through /proc:
//! network, host name, clocks, what it says of itself.
//!
//! ```text
//!   grown:     network namespace                        all others inherit it
//!   prepared:  oom_score_adj, coredump_filter; 0: /proc/ROOT/ns   root: 1: timens_offsets
//!   wanted:    a network namespace that is named
//!              root: host name; unshare(CLONE_NEWTIME), offsets, setns    the app's time begins
//!              others: setns to the root's
//! ```
//!
//! A time namespace takes its offsets until the first process enters it, and only a
//! process of one thread can (time_namespaces(7)). So the clocks come after all that
//! takes long, and before the threads.

use super::apart;
use super::place;
use super::script::Script;
use super::skeleton::{self, Husk, Skeleton};
use crate::error::Result;
use crate::image::Appshot;
use crate::image::records::{Manifest, ProcessRecord};
use crate::launch::loopback_up;
use crate::namespaces::Kind;
use crate::proc;
use std::os::fd::{AsRawFd, OwnedFd};

const NEWTIME: u64 = 0x80;
const NEWNET: u64 = libc::CLONE_NEWNET as u64;
/// What a prepared process has open, until it gets the app's descriptors.
const NAMESPACES: u64 = 0;
const OFFSETS: u64 = 1;

/// What a husk has, which an app may want just so, as far as that is known.
#[derive(Debug, Default)]
pub struct Had {
    names: [Option<String>; 2],
    says: [Option<String>; 2],
}

/// What a process says of itself in /proc.
const SAYS: [&str; 2] = ["oom_score_adj", "coredump_filter"];

impl Had {
    pub fn read(skeleton: &Skeleton, root: &Husk) -> Result<Had> {
        // struct utsname: six names of 65 bytes; the host's is the second.
        const NAME: usize = 65;
        let mut batch = skeleton.batch();
        let names = batch.space(6 * NAME);
        batch.must("uname", libc::SYS_uname, &[names.address]);
        skeleton::run(&skeleton.executor, root, &mut batch)?;
        let name = |at: usize| {
            let bytes = &batch.read(names)[at * NAME..(at + 1) * NAME];
            let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
            Some(String::from_utf8_lossy(text).into_owned())
        };
        let says = SAYS.map(|file| Some(proc::text(root.pid, file).ok()?.trim().to_owned()));
        Ok(Had {
            names: [name(1), name(5)],
            says,
        })
    }
}

/// Host and domain name of an instance, as long as they may be.
fn names<'a>(manifest: &'a Manifest, hostname: Option<&'a str>) -> [&'a str; 2] {
    let host = hostname.unwrap_or(&manifest.hostname);
    let end = (0..=64).rev().find(|end| host.is_char_boundary(*end)).unwrap_or(0);
    [&host[..end], &manifest.domainname]
}

impl Skeleton {
    /// Gives the instance a network namespace with nothing but a loopback device. Before
    /// the rest of the tree is made.
    pub(super) fn leave_network(&mut self) -> Result<()> {
        self.has_network = true;
        let first = self.init.as_ref().or(self.early.as_ref());
        for (at, husk) in first.into_iter().chain(self.early.as_ref()).enumerate() {
            let mut script = Script::new(self.executor, husk.pid, &husk.regs);
            if at == 0 {
                make_network(&mut script)?;
            } else if self.init.is_some() {
                open(&mut script, "/proc/1/ns/net", libc::O_RDONLY)?;
                script.must("setns", libc::SYS_setns, &[0, NEWNET])?;
                script.must("close", libc::SYS_close, &[0])?;
            }
            script.flush()?;
        }
        Ok(())
    }

    /// What each process does first, while it has no descriptor.
    pub(super) fn begin_work(&self, script: &mut Script<'_>, at: usize, shot: &Appshot) -> Result<()> {
        let unknown = Had::default();
        // The others are made by one that has changed already.
        let had = if at == 0 { &self.had } else { &unknown };
        say(script, &shot.cores[at].image.process, &had.says)
    }

    /// The last that each process does before it waits for what it becomes.
    pub(super) fn end_work(&self, script: &mut Script<'_>, at: usize, shot: &Appshot) -> Result<()> {
        place::close_all(script, self.restorer)?;
        // Who has its descriptor table opens what all need.
        if self.is_template || !self.owners.has_files(at) {
            return Ok(());
        }
        let root = shot.manifest.processes[0].pid;
        let directory = format!("/proc/{root}/ns");
        open_as(script, &directory, libc::O_PATH | libc::O_DIRECTORY, NAMESPACES)?;
        if at == 0 {
            open_as(script, "/proc/self/timens_offsets", libc::O_WRONLY, OFFSETS)?;
        }
        Ok(())
    }

    /// Has all processes of the app that are in its own network be in this one, before they open anything: what /proc
    /// tells of a network is that of who opens it.
    pub(super) fn join(&self, network: &OwnedFd, shot: &Appshot) -> Result<()> {
        let own = |(at, _): &(usize, &Husk)| self.is_in(shot, *at, Kind::Net).is_none();
        for (at, husk) in self.husks.iter().enumerate().filter(own) {
            let mut script = Script::new(self.executor, husk.pid, &husk.regs);
            // The lowest number that is free.
            let number = self.lowest_free(at);
            place::take(&mut script, self.restorer, network.as_raw_fd(), number as i32)?;
            script.must("setns(CLONE_NEWNET)", libc::SYS_setns, &[number, NEWNET])?;
            script.must("close", libc::SYS_close, &[number])?;
            script.flush()?;
        }
        Ok(())
    }

    /// The lowest number that is free in a process that waits for what it becomes.
    fn lowest_free(&self, at: usize) -> u64 {
        match self.owners.files(at) {
            0 => OFFSETS + 1,
            _ => NAMESPACES + 1,
        }
    }

    /// The time of the app begins, and its name is known. The root comes before the
    /// others.
    pub(super) fn settle(
        &self,
        script: &mut Script<'_>,
        at: usize,
        shot: &Appshot,
        hostname: Option<&str>,
    ) -> Result<()> {
        if at == 0 {
            if self.init.is_some() {
                let names = names(&shot.manifest, hostname);
                match self.is_in(shot, at, Kind::Uts) {
                    Some(_) => apart::name(&self.own(Kind::Uts)?, names)?,
                    None => self.rename(script, names)?,
                }
            }
            script.must("unshare(CLONE_NEWTIME)", libc::SYS_unshare, &[NEWTIME])?;
            write(script, OFFSETS, &self.timeline.offsets())?;
            enter_time(script, "time_for_children", OFFSETS + 1)?;
            // Others may work in its descriptor table.
            script.must("close", libc::SYS_close, &[OFFSETS + 1]).map(drop)
        } else {
            enter_time(script, "time", self.lowest_free(at))?;
            if self.owners.has_files(at) {
                return Ok(());
            }
            script.must("close", libc::SYS_close, &[self.lowest_free(at)]).map(drop)
        }
    }

    fn rename(&self, script: &mut Script<'_>, names: [&str; 2]) -> Result<()> {
        const CALLS: [(&str, i64); 2] = [
            ("sethostname", libc::SYS_sethostname),
            ("setdomainname", libc::SYS_setdomainname),
        ];
        let both = names.into_iter().zip(&self.had.names).zip(CALLS);
        for ((wanted, _), (call, number)) in both.filter(|((wanted, had), _)| had.as_deref() != Some(wanted)) {
            let batch = script.room(1, wanted.len())?;
            let name = batch.bytes(wanted.as_bytes()).address;
            batch.must(call, number, &[name, wanted.len() as u64]);
        }
        Ok(())
    }

    /// The last that an init does by the executor.
    pub(super) fn leave(&self, script: &mut Script<'_>) -> Result<()> {
        script.must("close", libc::SYS_close, &[self.restorer as u64])?;
        let batch = script.room(1, 16)?;
        let name = batch.c_string("appshot-init").address;
        batch.must("prctl", libc::SYS_prctl, &[libc::PR_SET_NAME as u64, name, 0, 0, 0]);
        Ok(())
    }
}

/// As `ip link set lo up` does (netdevice(7)).
/// A network namespace with a loopback device, of a process that has no descriptor 0.
pub(super) fn make_network(script: &mut Script<'_>) -> Result<()> {
    script.must("unshare(CLONE_NEWNET)", libc::SYS_unshare, &[NEWNET])?;
    raise_loopback(script)
}

fn raise_loopback(script: &mut Script<'_>) -> Result<()> {
    let socket = [libc::AF_INET as u64, libc::SOCK_DGRAM as u64, 0];
    let made = script.must("socket", libc::SYS_socket, &socket)?;
    script.expect(made, "making a socket", 0);
    let request = loopback_up();
    let batch = script.room(1, request.len())?;
    let request = batch.bytes(&request).address;
    batch.must(
        "ioctl(SIOCSIFFLAGS)",
        libc::SYS_ioctl,
        &[0, libc::SIOCSIFFLAGS, request],
    );
    script.must("close", libc::SYS_close, &[0]).map(drop)
}

/// In a process that has no descriptor 0 yet.
fn say(script: &mut Script<'_>, process: &ProcessRecord, had: &[Option<String>; 2]) -> Result<()> {
    let wanted = [
        process.oom_score_adj.to_string(),
        // As the kernel shows it.
        format!("{:08x}", process.coredump_filter),
    ];
    for ((file, text), had) in SAYS.iter().zip(&wanted).zip(had) {
        if had.as_ref() == Some(text) {
            continue;
        }
        let prefix = if *file == "coredump_filter" { "0x" } else { "" };
        open(script, &format!("/proc/self/{file}"), libc::O_WRONLY)?;
        write(script, 0, &format!("{prefix}{text}"))?;
        script.must("close", libc::SYS_close, &[0])?;
    }
    Ok(())
}

/// `number` is the lowest that is free.
fn enter_time(script: &mut Script<'_>, name: &str, number: u64) -> Result<()> {
    let batch = script.room(1, name.len() + 1)?;
    let name = batch.c_string(name).address;
    let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as u64;
    let opened = batch.must("openat", libc::SYS_openat, &[NAMESPACES, name, flags, 0]);
    script.expect(opened, "opening a time namespace", number);
    script.must("setns", libc::SYS_setns, &[number, NEWTIME]).map(drop)
}

fn open(script: &mut Script<'_>, path: &str, flags: i32) -> Result<()> {
    open_as(script, path, flags, 0)
}

fn open_as(script: &mut Script<'_>, path: &str, flags: i32, number: u64) -> Result<()> {
    let batch = script.room(1, path.len() + 1)?;
    let name = batch.c_string(path).address;
    let opened = batch.must("open", libc::SYS_open, &[name, (flags | libc::O_CLOEXEC) as u64, 0]);
    script.expect(opened, "opening a file of /proc", number);
    Ok(())
}

fn write(script: &mut Script<'_>, fd: u64, text: &str) -> Result<()> {
    let batch = script.room(1, text.len())?;
    let bytes = batch.bytes(text.as_bytes()).address;
    let written = batch.must("write", libc::SYS_write, &[fd, bytes, text.len() as u64]);
    script.expect(written, "writing to a file of /proc", text.len() as u64);
    Ok(())
}
