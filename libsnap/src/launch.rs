//! Starting processes in namespaces of their own: new apps, and the husks in
//! which restored ones are built.
//!
//! ```text
//!   caller ── clone3(new PID, IPC, UTS, mount namespaces; into the cgroup) ──> init (1)
//!     app:      init ── fork ──> command (2)
//!     restore:  init ── clone3 by the executor ──> the app's processes
//! ```
//!
//! The init is a program of one page (`sys::blob`) that reaps and passes the
//! app's exit status on. It is not part of an appshot: each instance gets its own.

use crate::cgroup::{self, Limits};
use crate::error::{Error, Kind, OrFail, Result};
use crate::identity::{self, Origin};
use crate::ids::HostPid;
use crate::network;
use crate::proc;
use crate::sys::blob::{self, Role};
use crate::sys::exec::{self, Program};
use crate::sys::ptrace::{self, Stop};
use crate::sys::task::{self, CLONE_INTO_CGROUP, CloneArgs, Forked};
use crate::sys::{Sys, fd as sysfd};
use crate::target::{Bind, Identity, Instance, Network, Phase, PidMode, RunOptions, Stdio};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat};
use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Where the init program is loaded; anything that is free in it will do.
pub const INIT_ADDRESS: u64 = 0x1_0000_0000;
/// The app's first process is the second of its namespace.
pub const ROOT: i32 = 2;

/// What a new instance has for itself (clone(2)).
pub const NAMESPACES: u64 = (libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNS) as u64;

/// The init program, as a file to execute.
pub fn init_file(role: Role) -> Result<OwnedFd> {
    let failed = || "cannot make the init program";
    const MFD_EXEC: u32 = 0x10;
    let file = sysfd::memfd("appshot-init", libc::MFD_CLOEXEC | MFD_EXEC)
        .or_else(|_| sysfd::memfd("appshot-init", libc::MFD_CLOEXEC))
        .or_fail(failed)?;
    let mut file = File::from(file);
    file.write_all(&blob::init_program(INIT_ADDRESS, role))
        .or_fail(failed)?;
    // A file open for writing cannot be executed (ETXTBSY).
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let readable = File::open(path).or_fail(failed)?;
    Ok(readable.into())
}

/// The namespaces a new process gets, and what is set up in them.
#[derive(Debug, Default)]
pub struct Place {
    pub pids: PidMode,
    pub cgroup: Option<PathBuf>,
    /// Host and domain name.
    pub names: Option<(String, String)>,
    /// Files in the instance's own directory ([`identity`]).
    pub files: Vec<OwnFile>,
    /// The PID it must get (in its innermost namespace).
    pub pid: Option<i32>,
    /// A network namespace of its own, with a loopback device and nothing else.
    pub own_network: bool,
    /// One that is there.
    pub joins: Option<Arc<OwnedFd>>,
    /// Of its cgroup.
    pub limits: Limits,
    /// Whose secrets are.
    pub owner: Option<(u32, u32)>,
    pub binds: Vec<Bind>,
}

/// A file that an instance finds in its own directory.
#[derive(Debug)]
pub struct OwnFile {
    path: CString,
    text: String,
    mode: u32,
}

/// Mode of what is no secret.
const PUBLIC: u32 = 0o644;

impl Bind {
    /// In the mount namespace of this thread.
    fn mount(&self) -> Sys<()> {
        let none = None::<&str>;
        mount(Some(&self.to), &self.at, none, MsFlags::MS_BIND, none)
    }

    /// Whether this path, as the app has it, is at or below it.
    pub fn has(&self, path: &str) -> bool {
        Path::new(path).starts_with(&self.at)
    }

    /// Refuses what is no place.
    pub fn sensible(&self) -> Result<()> {
        let is_plain = |path: &Path| path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        if !is_plain(&self.at) || !is_plain(&self.to) || self.at == Path::new("/") {
            let what = format!("cannot have {} at {}", self.to.display(), self.at.display());
            return Err(Error::new(Kind::Usage, what)
                .because("both are named from / on, without `..`, and / stays")
                .state("nothing was started"));
        }
        Ok(())
    }
}

/// Mounts them in the mount namespace of an instance that does not run yet.
pub fn bind_all(binds: &[Bind], instance: HostPid) -> Result<()> {
    if binds.is_empty() {
        return Ok(());
    }
    let enter = || -> Result<()> {
        let own = File::open(format!("/proc/{instance}/ns/mnt")).or_fail(|| "cannot enter the instance's mounts")?;
        // Who shares its directories with other threads cannot enter (setns(2)).
        nix::sched::unshare(CloneFlags::CLONE_FS)
            .and_then(|()| setns(own, CloneFlags::CLONE_NEWNS))
            .or_fail(|| "cannot enter the instance's mounts")?;
        binds.iter().try_for_each(|bind| {
            let what = || format!("cannot have {} at {}", bind.to.display(), bind.at.display());
            bind.mount().or_fail(what)
        })
    };
    let done = std::thread::scope(|scope| scope.spawn(enter).join());
    done.unwrap_or_else(|_| Err(Error::failed("cannot enter the instance's mounts")))
}

/// A process between fork and exec.
#[derive(Debug)]
pub struct Started {
    pub pid: HostPid,
    /// Closed by exec; otherwise says which step failed.
    report: File,
    /// Held until the parent has done its part.
    go: OwnedFd,
}

/// What a child reports when a step before exec fails: step and errno.
const STEPS: [&str; 12] = [
    "start",
    "make its mounts private",
    "mount its /proc",
    "set its host name",
    "place its descriptors",
    "become its user",
    "execute the program",
    "mount its /dev/pts",
    "make its directory of values",
    "raise its loopback device",
    "bind what it is to find elsewhere",
    "join its network namespace",
];

/// What an app with the host's PIDs cannot have.
pub(crate) fn on_host(verb: &str) -> Error {
    Error::new(
        Kind::Usage,
        format!("cannot {verb} the app with places or values of its own"),
    )
    .because("with the PIDs of the host it has the host's mounts, too")
    .fix("--pids new")
    .state("nothing was started")
}

/// What is to be limited has none.
pub(crate) fn no_cgroup() -> Error {
    Error::new(Kind::Unavailable, "cannot limit the app")
        .because("this host has no cgroups")
        .fix("leave the limits out, or mount cgroup v2")
}

impl Place {
    /// Forks a process into this place. It waits for [`Started::go`], sets up
    /// its namespaces, then runs `then`, which executes a program or returns the
    /// step that failed. `then` may make plain system calls only.
    pub fn start(&self, then: impl FnOnce() -> (usize, Errno)) -> Result<Started> {
        let failed = || "cannot start a process";
        let (report_read, report_write) = pipe().or_fail(failed)?;
        let (go_read, go_write) = pipe().or_fail(failed)?;
        let group = self.group()?;
        match task::fork(&self.how(group.as_ref())) {
            Ok(Forked::Child) => {
                drop(go_write);
                let (step, errno) = self.child(&go_read, then);
                let report = [step as u8, errno as i32 as u8];
                nix::unistd::write(&report_write, &report).ok();
                task::exit_now(127)
            }
            Ok(Forked::Parent(pid)) => {
                self.join(pid).inspect_err(|_| reap(pid))?;
                Ok(Started {
                    pid,
                    report: report_read.into(),
                    go: go_write,
                })
            }
            Err(errno) => Err(self.cannot_fork(errno)),
        }
    }

    /// Has a process of ours execute a program in this place, and waits for that. `then` is
    /// as for [`Place::start`].
    fn execute(&self, then: impl FnOnce() -> (usize, Errno)) -> Result<HostPid> {
        let group = self.group()?;
        let (mut then, mut failure) = (Some(then), None);
        let spawned = task::spawn(self.how(group.as_ref()), &mut || {
            let done = self.set_up().map(|()| then.take().map(|then| then()));
            failure = done.unwrap_or_else(Some);
        });
        let pid = spawned.map_err(|errno| self.cannot_fork(errno))?;
        if let Some((step, errno)) = failure {
            reap(pid);
            return Err(not_started("a husk", step, errno));
        }
        self.join(pid).inspect_err(|_| reap(pid))?;
        Ok(pid)
    }

    /// The cgroup that a process can be born in.
    fn group(&self) -> Result<Option<File>> {
        let group = self.cgroup.as_deref().filter(|_| cgroup::is_v2());
        group.map(File::open).transpose().or_fail(|| "cannot start a process")
    }

    /// Joins that in which it was not born (v1).
    fn join(&self, pid: HostPid) -> Result<()> {
        match &self.cgroup {
            Some(group) if !cgroup::is_v2() => cgroup::join(group, pid)?,
            _ => {}
        }
        match &self.cgroup {
            _ if self.limits.are_none() => Ok(()),
            Some(group) => cgroup::limit(group, &self.limits),
            None => Err(no_cgroup()),
        }
    }

    fn how(&self, group: Option<&File>) -> CloneArgs {
        CloneArgs {
            flags: if self.pids == PidMode::New { NAMESPACES } else { 0 }
                | if self.own_network { libc::CLONE_NEWNET as u64 } else { 0 }
                | if group.is_some() { CLONE_INTO_CGROUP } else { 0 },
            exit_signal: libc::SIGCHLD as u64,
            cgroup: group.map_or(0, |group| group.as_raw_fd() as u64),
            set_tid: self.pid.as_ref().map_or(0, |pid| std::ptr::from_ref(pid) as u64),
            set_tid_size: u64::from(self.pid.is_some()),
            ..CloneArgs::default()
        }
    }

    fn cannot_fork(&self, errno: Errno) -> Error {
        let error = match (errno, self.pid) {
            (Errno::EEXIST, Some(pid)) => {
                return Error::new(
                    Kind::Conflict,
                    format!("cannot restore: process number {pid} is in use on this host"),
                )
                .because(format!("pid {pid} is {}", proc::comm(HostPid(pid))))
                .fix("restore into a new PID namespace (--pids=new)");
            }
            (Errno::EPERM, _) => Error::new(Kind::Unavailable, "cannot make namespaces for the app")
                .needs("CAP_SYS_ADMIN (and CAP_CHECKPOINT_RESTORE to choose PIDs)")
                .fix("run as root"),
            _ => Error::failed("cannot start a process"),
        };
        error.because(format!("clone3: {errno}"))
    }

    fn child(&self, go: &OwnedFd, then: impl FnOnce() -> (usize, Errno)) -> (usize, Errno) {
        let mut byte = [0];
        if nix::unistd::read(go, &mut byte) != Ok(1) {
            return (0, Errno::ECANCELED);
        }
        match self.set_up() {
            Ok(()) => then(),
            Err(failure) => failure,
        }
    }

    fn set_up(&self) -> Result<(), (usize, Errno)> {
        if self.pids == PidMode::New {
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(|e| (1, e))?;
            for mounted in mounts() {
                mounted.mount().map_err(|e| (mounted.step, e))?;
            }
            self.own_files().map_err(|e| (8, e))?;
            for bind in &self.binds {
                bind.mount().map_err(|e| (10, e))?;
            }
        }
        if self.own_network {
            raise_loopback().map_err(|e| (9, e))?;
        }
        if let Some(network) = &self.joins {
            setns(network, CloneFlags::CLONE_NEWNET).map_err(|e| (11, e))?;
        }
        if let Some((host, domain)) = &self.names {
            nix::unistd::sethostname(host).map_err(|e| (3, e))?;
            task::setdomainname(domain).map_err(|e| (3, e))?;
        }
        Ok(())
    }
}

/// struct ifreq: a name of 16 bytes, flags (netdevice(7)).
pub fn loopback_up() -> [u8; 40] {
    let mut request = [0; 40];
    request[..2].copy_from_slice(b"lo");
    request[16..18].copy_from_slice(&((libc::IFF_UP | libc::IFF_RUNNING) as u16).to_le_bytes());
    request
}

/// Of this thread's network namespace.
pub(crate) fn raise_loopback() -> Sys<()> {
    let socket = nix::sys::socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    sysfd::ioctl_bytes(&socket, libc::SIOCSIFFLAGS, &mut loopback_up()).map(drop)
}

/// `ip link set lo down`
pub(crate) fn lower_loopback() -> Sys<()> {
    let socket = nix::sys::socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    let mut request = loopback_up();
    request[16..18].fill(0);
    sysfd::ioctl_bytes(&socket, libc::SIOCSIFFLAGS, &mut request).map(drop)
}

/// Of this thread's network namespace.
pub(crate) fn loopback_is_up() -> bool {
    let up = || -> Sys<bool> {
        let socket = nix::sys::socket::socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut request = loopback_up();
        sysfd::ioctl_bytes(&socket, libc::SIOCGIFFLAGS, &mut request)?;
        Ok(u16::from_le_bytes([request[16], request[17]]) & libc::IFF_UP as u16 != 0)
    };
    up().unwrap_or(false)
}

impl Place {
    /// What an instance finds in its own directory, where there is one.
    fn own_files(&self) -> Sys<()> {
        if self.files.is_empty() {
            return Ok(());
        }
        // Everybody's: which user an app is, and which it becomes, is its own affair.
        let everybody = Mode::from_bits_truncate(0o777);
        let directory = match nix::fcntl::open(identity::DIRECTORY, OFlag::O_DIRECTORY, Mode::empty()) {
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            opened => opened?,
        };
        let follow = FchmodatFlags::FollowSymlink;
        for part in [identity::HOOKS, identity::AWAKE] {
            nix::sys::stat::mkdirat(&directory, part, everybody)?;
            fchmodat(&directory, part, everybody, follow)?;
        }
        for part in [identity::VARS, identity::SECRETS] {
            let mode = Mode::from_bits_truncate(0o755);
            nix::sys::stat::mkdirat(&directory, part, mode)?;
            fchmodat(&directory, part, mode, follow)?;
        }
        for own in &self.files {
            let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CREAT;
            let fd = nix::fcntl::open(own.path.as_c_str(), flags, Mode::from_bits_truncate(own.mode))?;
            if let (Some((user, group)), false) = (self.owner, own.mode == PUBLIC) {
                nix::unistd::fchown(&fd, Some(user.into()), Some(group.into()))?;
            }
            fchmod(&fd, Mode::from_bits_truncate(own.mode))?;
            if nix::unistd::write(&fd, own.text.as_bytes())? < own.text.len() {
                return Err(Errno::ENOSPC);
            }
        }
        Ok(())
    }
}

/// A file system that an instance has for itself.
#[derive(Debug)]
pub struct Mounted {
    pub source: &'static str,
    pub at: &'static str,
    pub kind: Option<&'static str>,
    pub flags: u64,
    pub options: Option<&'static str>,
    /// The machine may have no such place.
    optional: bool,
    step: usize,
}

const NOTHING_RUNS: u64 = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;

/// In this order. Pseudo-terminals of its own: their numbers start at 0 and never collide
/// with those of another instance.
pub fn mounts() -> &'static [Mounted] {
    &[
        Mounted {
            source: "proc",
            at: "/proc",
            kind: Some("proc"),
            flags: NOTHING_RUNS,
            options: None,
            optional: false,
            step: 2,
        },
        Mounted {
            source: "devpts",
            at: "/dev/pts",
            kind: Some("devpts"),
            flags: libc::MS_NOSUID | libc::MS_NOEXEC,
            options: Some("gid=5,mode=620,ptmxmode=666"),
            optional: true,
            step: 7,
        },
        Mounted {
            source: "/dev/pts/ptmx",
            at: "/dev/ptmx",
            kind: None,
            flags: libc::MS_BIND,
            options: None,
            optional: true,
            step: 7,
        },
        Mounted {
            source: "appshot",
            at: identity::DIRECTORY,
            kind: Some("tmpfs"),
            flags: NOTHING_RUNS,
            options: Some("mode=755,size=8m"),
            optional: true,
            step: 8,
        },
    ]
}

impl Mounted {
    fn mount(&self) -> Sys<()> {
        let flags = MsFlags::from_bits_truncate(self.flags);
        match mount(Some(self.source), self.at, self.kind, flags, self.options) {
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ENODEV) if self.optional => Ok(()),
            mounted => mounted,
        }
    }
}

fn pipe() -> nix::Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
}

impl Started {
    /// Lets the child go on.
    pub fn go(&self) -> Result<()> {
        nix::unistd::write(&self.go, &[1])
            .map(drop)
            .or_fail(|| "the new process has ended")
    }

    /// Waits until the child executes its program, or tells why it could not.
    pub fn executed(mut self, what: &str) -> Result<HostPid> {
        let mut report = [0u8; 2];
        match self.report.read(&mut report) {
            Ok(2) => {
                reap(self.pid);
                let errno = Errno::from_raw(i32::from(report[1]));
                Err(not_started(what, usize::from(report[0]), errno))
            }
            _ => Ok(self.pid),
        }
    }
}

fn not_started(what: &str, step: usize, errno: Errno) -> Error {
    let step = STEPS.get(step).unwrap_or(&"start");
    Error::failed(format!("cannot start {what}")).because(format!("cannot {step}: {errno}"))
}

/// Ends a child of ours and takes its status.
pub fn reap(pid: HostPid) {
    let pid = nix::unistd::Pid::from_raw(pid.0);
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).ok();
    while nix::sys::wait::waitpid(pid, Some(nix::sys::wait::WaitPidFlag::__WALL)) == Err(Errno::EINTR) {}
}

/// What the app's command will have as 0, 1 and 2.
fn stdio_files(stdio: &Stdio) -> Result<Option<[File; 2]>> {
    let null = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")
            .or_fail(|| "cannot open /dev/null")
    };
    Ok(match stdio {
        Stdio::Inherit => None,
        Stdio::Null => Some([null()?, null()?]),
        Stdio::Log(path) => {
            let log = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
            Some([
                null()?,
                log.or_fail(|| format!("cannot open the log {}", path.display()))?,
            ])
        }
    })
}

/// Starts a command as a new app, in its own namespaces and cgroup. The caller
/// is the parent of [`Instance::child`] and must reap it.
pub fn run(options: &RunOptions) -> Result<Instance> {
    let begin = Instant::now();
    let program = program(options)?;
    options.binds.iter().try_for_each(Bind::sensible)?;
    let own = !(options.binds.is_empty() && options.vars.is_empty() && options.secrets.is_empty());
    if options.pids == PidMode::Host && own {
        return Err(on_host("start"));
    }
    let (joined, network) = options.joins.map(network::join).transpose()?.unzip();
    let stdio = stdio_files(&options.stdio)?;
    let group = cgroup::create(&options.name)?;
    let place = Place {
        pids: options.pids,
        names: names(options),
        cgroup: group.clone(),
        files: own_files(options)?,
        own_network: options.network == Network::Own,
        joins: joined.clone(),
        limits: options.limits,
        owner: options.uid.map(|uid| (uid, options.gid.unwrap_or(uid))),
        binds: options.binds.clone(),
        ..Place::default()
    };
    let started = start_command(&place, options, &program, stdio.as_ref());
    let (root, init) = started.inspect_err(|_| {
        group.as_deref().map(cgroup::destroy);
    })?;
    Ok(Instance {
        name: options.name.clone(),
        root,
        init,
        cgroup: group,
        processes: 1,
        total_micros: begin.elapsed().as_micros() as u64,
        phases: vec![Phase {
            name: "start".into(),
            micros: begin.elapsed().as_micros() as u64,
        }],
        warnings: Vec::new(),
        network,
        joined,
        ahead: None,
        point: None,
        resumed: None,
    })
}

fn own_files(options: &RunOptions) -> Result<Vec<OwnFile>> {
    identity::prepare_host();
    let own = Identity {
        renewed: false,
        vars: options.vars.clone(),
        secrets: options.secrets.clone(),
    };
    let files = identity::files(&options.name, &own, Origin::Started)?.into_iter();
    let files = files.map(|(path, text)| {
        let mode = identity::mode(&path);
        let path = CString::new(format!("{}/{path}", identity::DIRECTORY))?;
        Ok(OwnFile { path, text, mode })
    });
    let files: std::result::Result<_, std::ffi::NulError> = files.collect();
    files.or_fail(|| "cannot name the instance's files")
}

fn names(options: &RunOptions) -> Option<(String, String)> {
    let own = nix::unistd::gethostname().ok()?.to_string_lossy().into_owned();
    let host = options.hostname.clone().unwrap_or(own);
    (options.pids == PidMode::New).then(|| (host, "(none)".to_owned()))
}

/// What a command may know of the environment of who runs it for somebody else.
const KEPT: [&str; 5] = ["PATH", "LANG", "TZ", "HOME", "USER"];

fn program(options: &RunOptions) -> Result<Program> {
    let [name, ..] = options.command.as_slice() else {
        return Err(Error::new(Kind::Usage, "no command given").fix("appshot run --name NAME -- COMMAND [ARG...]"));
    };
    let path = find_program(name, options.cwd.as_deref())?;
    let goes_on = |key: &OsString| !options.clear_env || KEPT.iter().any(|kept| key == kept);
    let mut env: Vec<String> = std::env::vars_os()
        .filter(|(key, _)| goes_on(key))
        .map(|(key, value)| format!("{}={}", key.to_string_lossy(), value.to_string_lossy()))
        .collect();
    for pair in &options.env {
        let key = pair.split('=').next().unwrap_or("");
        env.retain(|old| !old.strip_prefix(key).is_some_and(|rest| rest.starts_with('=')));
        env.push(pair.clone());
    }
    Program::new(&path, &options.command, &env).or_fail(|| "the command or its environment holds a NUL byte")
}

/// As execvp(3) finds it.
fn find_program(name: &str, cwd: Option<&Path>) -> Result<String> {
    let runnable = |path: &Path| {
        let at = cwd.map_or_else(|| path.to_owned(), |dir| dir.join(path));
        nix::unistd::access(&at, nix::unistd::AccessFlags::X_OK).is_ok() && at.is_file()
    };
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![name.into()]
    } else {
        let path = std::env::var("PATH").unwrap_or_else(|_| "/usr/local/bin:/usr/bin:/bin".into());
        path.split(':').map(|dir| Path::new(dir).join(name)).collect()
    };
    let found = candidates.into_iter().find(|path| runnable(path));
    found.map(|path| path.to_string_lossy().into_owned()).ok_or_else(|| {
        Error::new(Kind::NotFound, format!("cannot start {name}"))
            .because("no such program that may be executed")
            .fix("name a program of PATH, or its path")
            .state("nothing was started")
    })
}

fn start_command(
    place: &Place,
    options: &RunOptions,
    program: &Program,
    stdio: Option<&[File; 2]>,
) -> Result<(HostPid, Option<HostPid>)> {
    let init_file = init_file(Role::Init(ROOT))?;
    let init_program = Program::new("", &["appshot-init".into()], &[]).or_fail(|| "cannot name the init")?;
    let cwd = options.cwd.clone();
    let user = options.uid.map(|uid| {
        (
            uid,
            options.gid.unwrap_or(uid),
            groups_of(uid, options.gid.unwrap_or(uid)),
        )
    });
    let command = || exec_command(program, cwd.as_deref(), user.as_ref(), stdio);
    let started = match place.pids {
        PidMode::Host => place.start(command)?,
        PidMode::New => place.start(|| {
            match task::fork(&CloneArgs {
                exit_signal: libc::SIGCHLD as u64,
                ..CloneArgs::default()
            }) {
                Ok(Forked::Child) => command(),
                Ok(Forked::Parent(_)) => become_init(&init_program, init_file.as_fd()),
                Err(errno) => (0, errno),
            }
        })?,
    };
    started.go()?;
    let pid = started.executed(&options.command[0])?;
    match place.pids {
        PidMode::Host => Ok((pid, None)),
        PidMode::New => match proc::children(pid).unwrap_or_default().first() {
            Some(root) => Ok((*root, Some(pid))),
            // It has ended already: init is about to end with its status.
            None => Ok((pid, Some(pid))),
        },
    }
}

/// Supplementary groups of a user, as login gives them.
fn groups_of(uid: u32, gid: u32) -> Vec<u32> {
    let user = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    let name = user.and_then(|user| std::ffi::CString::new(user.name).ok());
    let groups = name.and_then(|name| nix::unistd::getgrouplist(&name, gid.into()).ok());
    groups.map_or_else(|| vec![gid], |groups| groups.into_iter().map(|g| g.as_raw()).collect())
}

fn exec_command(
    program: &Program,
    cwd: Option<&Path>,
    user: Option<&(u32, u32, Vec<u32>)>,
    stdio: Option<&[File; 2]>,
) -> (usize, Errno) {
    let prepared = || -> Result<(), (usize, Errno)> {
        nix::unistd::setsid().map_err(|e| (0, e))?;
        if let Some([input, output]) = stdio {
            for (from, to) in [(input, 0), (output, 1), (output, 2)] {
                exec::place(from.as_raw_fd(), to).map_err(|e| (4, e))?;
            }
        }
        exec::close_on_exec_from(3).map_err(|e| (4, e))?;
        if let Some((uid, gid, groups)) = user {
            exec::become_user(*uid, *gid, groups).map_err(|e| (5, e))?;
        }
        if let Some(cwd) = cwd {
            nix::unistd::chdir(cwd).map_err(|e| (6, e))?;
        }
        Ok(())
    };
    if let Err(failure) = prepared() {
        return failure;
    }
    exec::reset_signals();
    (6, program.exec())
}

fn become_init(program: &Program, file: BorrowedFd<'_>) -> (usize, Errno) {
    // Nothing of ours stays open in it, not even stdio.
    nix::unistd::setsid().ok();
    if let Err(errno) = exec::close_on_exec_from(0) {
        return (4, errno);
    }
    exec::reset_signals();
    (6, program.exec_fd(file))
}

/// Starts a husk: an almost empty process, stopped in a loop of its program, all its
/// registers zero but for `rip`, `rsp` and those of the processor's mode; traced by this
/// thread, it dies when that does. Descriptor `socket` is open in it as number `number`;
/// nothing else is.
pub fn husk(place: &Place, socket: BorrowedFd<'_>, number: i32, options: i32) -> Result<HostPid> {
    let file = init_file(Role::Husk)?;
    let program = Program::new("", &["appshot-init".into()], &[]).or_fail(|| "cannot name the init")?;
    let high = sysfd::fcntl(file.as_raw_fd(), libc::F_DUPFD_CLOEXEC, i64::from(number) + 1)
        .or_fail(|| "cannot place a descriptor")?;
    let high = sysfd::owned(high).or_fail(|| "cannot place a descriptor")?;
    let pid = place.execute(|| {
        nix::unistd::setsid().ok();
        let placed = exec::place(socket.as_raw_fd(), number).and_then(|()| exec::close_on_exec_from(0));
        let kept = placed.and_then(|()| sysfd::fcntl(number, libc::F_SETFD, 0));
        if let Err(errno) = kept {
            return (4, errno);
        }
        exec::reset_signals();
        (6, program.exec_fd(high.as_fd()))
    })?;
    stop_husk(pid, options).inspect_err(|_| reap(pid))?;
    Ok(pid)
}

fn stop_husk(pid: HostPid, options: i32) -> Result<()> {
    let failed = || "cannot start a husk";
    ptrace::seize(pid, options).map_err(|errno| {
        Error::new(Kind::Unavailable, "cannot trace a new process")
            .because(errno)
            .needs("CAP_SYS_PTRACE")
    })?;
    ptrace::interrupt(pid).or_fail(failed)?;
    loop {
        match ptrace::wait(pid, true).or_fail(failed)? {
            Some(Stop::Trap) => break,
            // Sent to our process group, as by Ctrl-C, before it had one of its own: we
            // have the signal too.
            Some(Stop::Signal(_)) => ptrace::cont(pid, 0).or_fail(failed)?,
            stop => return Err(Error::failed(failed()).because(format!("it came to {stop:?}"))),
        }
    }
    let regs = ptrace::get_regs(pid).or_fail(failed)?;
    ptrace::set_regs(pid, &regs.out_of_call()).or_fail(failed)
}
