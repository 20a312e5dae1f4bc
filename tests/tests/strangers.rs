//! Snapshots of processes that Appshot did not start: plain children in the
//! host's namespaces, in cgroups of others, of other users, in namespaces of
//! others. Each is carried, or refused by name before anything is touched.

use anyhow::{Context, Result, bail, ensure};
use appshot_tests::app::{App, Place};
use appshot_tests::judge::{Changes, Fingerprint, judge_untouched, tree};
use appshot_tests::programs;
use appshot_tests::trial::in_place as trial;
use appshot_tests::verdict::{PATIENCE, need_program, poll, skip};
use libsnap::error::{Error, Kind};
use libsnap::ids::HostPid;
use libsnap::target::{SnapshotOptions, Target};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What whoever started these tests left open would be the strangers', too.
fn keep_own_descriptors() -> Result<()> {
    for entry in fs::read_dir("/proc/self/fd")? {
        let number: i32 = entry?.file_name().to_string_lossy().parse()?;
        if number > 2 {
            // Gone meanwhile: it was the list's own.
            let _ = libsnap::sys::fd::fcntl(number, nix::libc::F_SETFD, i64::from(nix::libc::FD_CLOEXEC));
        }
    }
    Ok(())
}

/// A child of ours that is no app, ended with all below it and reaped when dropped.
struct Stranger {
    child: Child,
    /// The process that is snapshotted.
    pid: i32,
}

impl Stranger {
    /// Starts a program of `tests/apps`, below the words of `prefix` if any, and
    /// waits until it says ready.
    fn start(place: &Place, prefix: &[&str], program: &str, with: impl Fn(&mut Command)) -> Result<Stranger> {
        let _ = fs::remove_file(place.path("ready"));
        keep_own_descriptors()?;
        let binary = programs::build(program)?;
        let mut words: Vec<PathBuf> = prefix.iter().map(PathBuf::from).collect();
        words.extend([binary, place.path("ready"), place.path("go")]);
        let log = fs::File::options().create(true).append(true).open(place.path("log"))?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).current_dir(place.dir());
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        with(&mut command);
        let child = command.spawn().with_context(|| format!("{words:?}"))?;
        let top = i32::try_from(child.id())?;
        let mut stranger = Stranger { child, pid: top };
        poll("ready", PATIENCE, || {
            ensure!(stranger.child.try_wait()?.is_none(), "the program ended early");
            Ok(place.path("ready").exists().then_some(()))
        })?;
        // Below a program that waits for it.
        let comm: String = program.chars().take(15).collect();
        let named = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == comm);
        stranger.pid = tree(top).into_iter().find(named).context("the program is not there")?;
        Ok(stranger)
    }

    fn snapshot(&self, shot: &Path, options: &SnapshotOptions) -> Result<()> {
        let target = Target::Pid(HostPid(self.pid));
        let report = libsnap::snapshot::check(&target, options)?;
        let taken = libsnap::snapshot::snapshot(&target, shot, options, &mut |_| {});
        if let Err(error) = &taken {
            ensure!(
                error.kind != Kind::Refused || !report.refusals.is_empty(),
                "check found nothing to refuse, but the snapshot did: {error}"
            );
        }
        Ok(taken.map(drop)?)
    }

    /// Both `check` and the snapshot name this, and nothing is touched.
    fn is_refused(&self, place: &Place, names: &str) -> Result<()> {
        let before = Fingerprint::take(self.pid);
        let options = SnapshotOptions::default();
        let report = libsnap::snapshot::check(&Target::Pid(HostPid(self.pid)), &options)?;
        let told: Vec<String> = report.refusals.iter().map(ToString::to_string).collect();
        ensure!(
            told.iter().any(|t| t.contains(names)),
            "check names no {names:?}: {told:?}"
        );
        let shot = place.path("refused");
        let Err(error) = self.snapshot(&shot, &options) else {
            bail!("expected a refusal that names {names:?}, got an appshot")
        };
        let error = error.downcast::<Error>()?;
        ensure!(error.kind == Kind::Refused, "expected a refusal, got {error}");
        ensure!(error.to_string().contains(names), "expected {names:?} in: {error}");
        ensure!(!shot.exists(), "a refused snapshot left {}", shot.display());
        judge_untouched(&before, &Fingerprint::take(self.pid), Changes::NONE)
    }

    /// Says go to it and waits: it has to find itself intact.
    fn passes(mut self, place: &Place) -> Result<()> {
        fs::write(place.path("go"), "")?;
        let status = poll("the end of the program", PATIENCE, || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "{status}: {}", place.log());
        Ok(fs::remove_file(place.path("go"))?)
    }

    /// It and all below it, whose numbers may be given out again: what has lost
    /// its parent is reaped by the machine's init, in its own time.
    fn is_gone(&mut self, pids: &[i32]) -> Result<()> {
        poll("the end of the original", PATIENCE, || Ok(self.child.try_wait()?))?;
        let there = |pid: &i32| Path::new(&format!("/proc/{pid}")).exists();
        poll("the end of its children", PATIENCE, || {
            Ok((!pids.iter().any(there)).then_some(()))
        })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            for pid in tree(i32::try_from(self.child.id()).unwrap_or(-1)).into_iter().rev() {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
            }
        }
        let _ = self.child.wait();
    }
}

fn app_passes(place: &Place, mut app: App) -> Result<()> {
    fs::write(place.path("go"), "")?;
    let code = app.wait_exit()?;
    ensure!(code == 0, "exit code {code}: {}", place.log());
    Ok(fs::remove_file(place.path("go"))?)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pids {
    New,
    Both,
}

/// Kept running; then frozen, gone and restored, with new and with the same PIDs.
fn is_carried(
    place: &Place,
    prefix: &[&str],
    program: &str,
    pids: Pids,
    with: impl Fn(&mut Command) + Copy,
) -> Result<()> {
    let step = |what: &str| format!("{program}: {what}");
    let running = SnapshotOptions {
        leave_running: true,
        ..SnapshotOptions::default()
    };
    let stranger = Stranger::start(place, prefix, program, with)?;
    let before = Fingerprint::take(stranger.pid);
    stranger
        .snapshot(&place.path("kept"), &running)
        .with_context(|| step("kept running"))?;
    judge_untouched(&before, &Fingerprint::take(stranger.pid), Changes::NONE)?;
    stranger.passes(place).with_context(|| step("the original"))?;
    let mut stranger = Stranger::start(place, prefix, program, with)?;
    let pids_of_it = tree(stranger.pid);
    let shot = place.path("appshot");
    stranger
        .snapshot(&shot, &SnapshotOptions::default())
        .with_context(|| step("snapshot"))?;
    stranger.is_gone(&pids_of_it)?;
    drop(stranger);
    let app = place.restore(&shot).with_context(|| step("restore"))?;
    app_passes(place, app).with_context(|| step("after restore"))?;
    if pids == Pids::Both {
        let app = place
            .restore_host_pids(&shot)
            .with_context(|| step("restore with its PIDs"))?;
        app_passes(place, app).with_context(|| step("with its PIDs"))?;
    }
    fs::remove_dir_all(&shot)?;
    Ok(fs::remove_dir_all(place.path("kept"))?)
}

#[test]
fn plain_children() {
    trial("plain_children", |place| {
        for program in [
            "pipes",
            "threads100",
            "pending_signals",
            "posix_timers",
            "stopped_child",
            "zombies",
        ] {
            is_carried(place, &[], program, Pids::Both, |_| {})?;
        }
        Ok(())
    });
}

#[test]
fn of_another_user() {
    trial("of_another_user", |place| {
        for program in ["anon_memory", "shared_anon", "eventfd"] {
            is_carried(place, &[], program, Pids::Both, |command| {
                command.uid(65534).gid(65534);
            })?;
        }
        Ok(())
    });
}

/// A session of its own, as a service manager gives it.
#[test]
fn in_a_session_of_its_own() {
    trial("in_a_session_of_its_own", |place| {
        let setsid = need_program(&["setsid"])?.display().to_string();
        is_carried(place, &[&setsid], "block_cond", Pids::Both, |_| {})
    });
}

/// Two in one cgroup, as services share a slice: the other one is not stopped.
#[test]
fn in_a_shared_cgroup() {
    trial("in_a_shared_cgroup", |place| {
        let name = place.dir().file_name().context("a place without a name")?;
        let Some(group) = cgroup_root().map(|root| root.join(name)) else {
            return skip("a cgroup hierarchy");
        };
        fs::create_dir(&group)?;
        let result = beside_another(place, &group);
        let gone = poll("an empty cgroup", PATIENCE, || Ok(fs::remove_dir(&group).ok()));
        result.and(gone)
    });
}

fn cgroup_root() -> Option<PathBuf> {
    ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
        .iter()
        .map(PathBuf::from)
        .find(|root| root.join("cgroup.procs").exists())
}

fn beside_another(place: &Place, group: &Path) -> Result<()> {
    let enter = |stranger: &Stranger| fs::write(group.join("cgroup.procs"), stranger.pid.to_string());
    let mut neighbour = Command::new("sleep");
    neighbour.arg("1000").current_dir(place.dir()).stdin(Stdio::null());
    let mut neighbour = Neighbour(neighbour.spawn()?);
    fs::write(group.join("cgroup.procs"), neighbour.0.id().to_string())?;
    let mut stranger = Stranger::start(place, &[], "pipes", |_| {})?;
    enter(&stranger)?;
    let shot = place.path("appshot");
    stranger.snapshot(&shot, &SnapshotOptions::default())?;
    stranger.is_gone(&[])?;
    drop(stranger);
    ensure!(neighbour.0.try_wait()?.is_none(), "its neighbour ended");
    let status = fs::read_to_string(format!("/proc/{}/status", neighbour.0.id()))?;
    ensure!(status.contains("State:\tS"), "its neighbour does not sleep: {status}");
    app_passes(place, place.restore(&shot)?)
}

struct Neighbour(Child);

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Containers: each namespace that is not carried is refused by its name.
#[test]
fn in_other_namespaces() {
    trial("in_other_namespaces", |place| {
        let unshare = need_program(&["unshare"])?.display().to_string();
        for (option, name) in [
            ("--mount", "mnt namespace"),
            ("--ipc", "ipc namespace"),
            ("--uts", "uts namespace"),
            ("--net", "net namespace"),
            ("--user", "user namespace"),
            ("--cgroup", "cgroup namespace"),
        ] {
            let stranger = Stranger::start(place, &[&unshare, option], "pipes", |_| {})?;
            stranger.is_refused(place, name).with_context(|| option)?;
            stranger.passes(place).with_context(|| option)?;
        }
        // All of them, as a container has them; seen from outside and from its init.
        let words = [&unshare, "--mount", "--ipc", "--uts", "--pid", "--fork", "--mount-proc"];
        let mut stranger = Stranger::start(place, &words, "pipes", |_| {})?;
        stranger.is_refused(place, "mnt namespace")?;
        stranger.pid = i32::try_from(stranger.child.id())?;
        stranger.is_refused(place, "pid namespace")?;
        stranger.passes(place)
    });
}

/// A PID namespace or clocks of its own are the app's own after restore, too.
#[test]
fn in_carried_namespaces() {
    trial("in_carried_namespaces", |place| {
        let unshare = need_program(&["unshare"])?.display().to_string();
        let words = [&unshare, "--pid", "--fork"];
        let stranger = Stranger::start(place, &words, "pipes", |_| {})?;
        stranger.is_refused(place, "process 1: it is the init of a PID namespace")?;
        stranger.passes(place)?;
        let below_init = ["sh", "-c", "\"$0\" \"$@\"; exit $?"];
        let words = [&words[..], &below_init].concat();
        is_carried(place, &words, "pipes", Pids::New, |_| {})?;
        let words = [
            &unshare,
            "--time",
            "--monotonic",
            "100000",
            "--boottime",
            "200000",
            "--fork",
        ];
        for program in ["timerfd", "posix_timers", "timers_count"] {
            is_carried(place, &words, program, Pids::New, |_| {})?;
        }
        Ok(())
    });
}

/// Paths that are not UTF-8 are refused by name, never changed.
#[test]
fn with_names_that_are_no_text() {
    trial("with_names_that_are_no_text", |place| {
        let odd = place.dir().join(OsStr::from_bytes(b"caf\xe9"));
        fs::create_dir(&odd)?;
        let file = odd.join("file");
        fs::write(&file, "text")?;
        let stranger = Stranger::start(place, &[], "eventfd", |command| {
            command.current_dir(&odd);
        })?;
        stranger.is_refused(place, "current directory (")?;
        stranger.passes(place)?;
        let stranger = Stranger::start(place, &[], "eventfd", |command| {
            if let Ok(open) = fs::File::open(&file) {
                command.stdin(open);
            }
        })?;
        stranger.is_refused(place, "fd 0 (")?;
        stranger.passes(place)?;
        // A program of that name: its link and its mappings.
        let program = odd.join("eventfd");
        fs::copy(programs::build("eventfd")?, &program)?;
        let script = format!("exec {}/caf*/eventfd \"$1\" \"$2\"", place.dir().display());
        let stranger = Stranger::start(place, &["sh", "-c", &script], "eventfd", |_| {})?;
        stranger.is_refused(place, "program (")?;
        stranger.is_refused(place, "mapping (")?;
        stranger.passes(place)
    });
}

/// What leads outside is named, as for an app.
#[test]
fn with_a_socket_of_another() {
    trial("with_a_socket_of_another", |place| {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let theirs = std::os::fd::OwnedFd::from(theirs);
        let stranger = Stranger::start(place, &[], "eventfd", |command| {
            if let Ok(copy) = theirs.try_clone() {
                command.stdout(copy);
            }
        })?;
        drop(theirs);
        stranger.is_refused(place, "fd 1 (socket:")?;
        stranger.passes(place)?;
        drop(ours);
        Ok(())
    });
}
