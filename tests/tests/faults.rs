//! Bad input and faults. Each ends in an error that says what became of the app,
//! and the judge sees that the app runs as before and that nothing is left.

use anyhow::{Context, Result, bail, ensure};
use appshot_tests::app::{App, Place};
use appshot_tests::disk::SmallDisk;
use appshot_tests::installed::Installed;
use appshot_tests::judge::{
    Changes, Fingerprint, HostState, judge_nothing_left, judge_untouched, listening_ports_of, tree,
};
use appshot_tests::programs;
use appshot_tests::scenario::Manner;
use appshot_tests::trial::in_place as trial;
use appshot_tests::verdict::{PATIENCE, need_program, poll, skip};
use libsnap::error::{Error, Kind};
use libsnap::ids::HostPid;
use libsnap::sys::task;
use libsnap::target::{Allow, Memory, PidMode, RestoreOptions, RunOptions, SnapshotOptions, Target};
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A program of `tests/apps` that has said ready.
fn ready_app(place: &Place, program: &Path, options: RunOptions) -> Result<App> {
    let file = |name: &str| place.path(name).display().to_string();
    let command = vec![program.display().to_string(), file("ready"), file("go")];
    let mut app = place.run_with(RunOptions { command, ..options })?;
    poll("ready", PATIENCE, || {
        ensure!(app.try_exit()?.is_none(), "the program ended early");
        Ok(place.path("ready").exists().then_some(()))
    })?;
    Ok(app)
}

fn start(place: &Place, program: &str) -> Result<App> {
    ready_app(place, &programs::build(program)?, RunOptions::default())
}

/// Says go; the program has to find itself intact.
fn passes(place: &Place, mut app: App) -> Result<()> {
    fs::write(place.path("go"), "")?;
    let code = app.wait_exit()?;
    ensure!(code == 0, "exit code {code}");
    Ok(())
}

/// The error of a call that has to fail, of one of these kinds, told in full.
fn fails<T>(what: &str, result: Result<T>, kinds: &[Kind]) -> Result<Error> {
    let Err(error) = result else {
        bail!("{what}: expected an error, got success")
    };
    let Some(error) = error.downcast_ref::<Error>() else {
        bail!("{what}: not an error of the engine: {error:#}");
    };
    ensure!(
        kinds.contains(&error.kind),
        "{what}: expected {kinds:?}, got {:?}: {error}",
        error.kind
    );
    ensure!(!error.what.is_empty(), "{what}: an error without a subject");
    let told = error.because.is_some() || !error.refusals.is_empty() || error.fix.is_some();
    ensure!(told, "{what}: an error without a cause: {error}");
    Ok(error.clone())
}

fn names(error: &Error, word: &str) -> Result<()> {
    ensure!(error.to_string().contains(word), "expected {word:?} in: {error}");
    Ok(())
}

// ------------------------------------------------------------------ bad targets

/// The snapshot of this pid fails in this way and leaves no file.
fn refuses_pid(place: &Place, pid: i32, kinds: &[Kind]) -> Result<Error> {
    let shot = place.path("appshot");
    let target = Target::Pid(HostPid(pid));
    let options = SnapshotOptions::default();
    let before = Fingerprint::of_one(pid);
    let taken = libsnap::snapshot::snapshot(&target, &shot, &options, &mut |_| {});
    let error = fails(&format!("snapshot of pid {pid}"), taken.map_err(Into::into), kinds)?;
    names(&error, &pid.to_string())?;
    ensure!(!shot.exists(), "a failed snapshot left {}", shot.display());
    judge_untouched(&before, &Fingerprint::of_one(pid), Changes::ALL)?;
    // `check` says so before anything is touched.
    if let Ok(report) = libsnap::snapshot::check(&target, &options) {
        ensure!(
            !report.refusals.is_empty(),
            "check of pid {pid} found nothing to refuse"
        );
    }
    Ok(error)
}

#[test]
fn no_such_pid() {
    trial("no_such_pid", |place| {
        // The largest number a pid can have; it is never given out.
        refuses_pid(place, 4_194_304, &[Kind::NotFound]).map(drop)
    });
}

#[test]
fn pid_1() {
    trial("pid_1", |place| {
        refuses_pid(place, 1, &[Kind::Refused, Kind::Usage]).map(drop)
    });
}

#[test]
fn nonsense_pids() {
    trial("nonsense_pids", |place| {
        for pid in [0, -1, i32::MIN, i32::MAX] {
            refuses_pid(place, pid, &[Kind::Usage, Kind::NotFound])?;
        }
        Ok(())
    });
}

#[test]
fn kernel_thread() {
    trial("kernel_thread", |place| {
        if !fs::read("/proc/2/cmdline")?.is_empty() {
            return skip("kernel threads in this PID namespace");
        }
        refuses_pid(place, 2, &[Kind::Refused, Kind::Usage]).map(drop)
    });
}

#[test]
fn ourselves() {
    trial("ourselves", |place| {
        let pid = i32::try_from(std::process::id())?;
        refuses_pid(place, pid, &[Kind::Refused, Kind::Usage, Kind::Conflict]).map(drop)
    });
}

/// A plain child, ended and reaped when dropped.
struct Plain(Child);

impl Plain {
    fn start(place: &Place, command: &[&str]) -> Result<Plain> {
        let mut child = Command::new(command[0]);
        child.args(&command[1..]).current_dir(place.dir());
        child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Plain(child.spawn().with_context(|| format!("{command:?}"))?))
    }

    fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.0.id())?)
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn zombie() {
    trial("zombie", |place| {
        let child = Plain::start(place, &["true"])?;
        let pid = child.pid()?;
        poll("a zombie", PATIENCE, || {
            let print = Fingerprint::take(pid);
            Ok(print.processes.get(&pid).is_some_and(|p| p.zombie).then_some(()))
        })?;
        refuses_pid(place, pid, &[Kind::Refused, Kind::NotFound]).map(drop)
    });
}

#[test]
fn traced() {
    trial("traced", |place| {
        let strace = need_program(&["strace"])?.display().to_string();
        let tracer = Plain::start(place, &[&strace, "-qq", "-o", "/dev/null", "sleep", "1000"])?;
        let tracer_pid = tracer.pid()?;
        let pid = poll("strace to trace", PATIENCE, || {
            let print = Fingerprint::take(tracer_pid);
            let traced = |p: &appshot_tests::judge::Process| {
                p.comm == "sleep" && p.threads.values().all(|t| t.tracer == tracer_pid.to_string())
            };
            Ok(print.processes.iter().find(|(_, p)| traced(p)).map(|(pid, _)| *pid))
        })?;
        let error = refuses_pid(place, pid, &[Kind::Conflict])?;
        let named = names(&error, &tracer_pid.to_string());
        // Ended by its number: the tracer's end would only let it go.
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        named
    });
}

/// Ended from outside at many moments of a snapshot: it succeeds or fails, and
/// leaves nothing in either case.
#[test]
fn gone_half_way() {
    trial("gone_half_way", |place| {
        for step in 0..20u64 {
            let _ = fs::remove_file(place.path("ready"));
            let app = start(place, "threads100")?;
            let shot = place.path(&format!("appshot-{step}"));
            let victim = nix::unistd::Pid::from_raw(app.instance.root.0);
            let killer = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_micros(step * step * 100));
                nix::sys::signal::kill(victim, nix::sys::signal::Signal::SIGKILL)
            });
            let taken = app.freeze_running(&shot);
            ensure!(killer.join().is_ok(), "the killing thread panicked");
            if let Err(error) = taken {
                let kinds = [Kind::Failed, Kind::NotFound, Kind::Refused];
                fails("snapshot of a dying app", Err::<(), _>(error), &kinds)?;
                ensure!(!shot.exists(), "a failed snapshot left {}", shot.display());
            }
            app.end()?;
        }
        Ok(())
    });
}

// ------------------------------------------------------------- damaged appshots

/// Names of all files of an appshot, itself where it is one file.
fn parts(shot: &Path) -> Result<Vec<PathBuf>> {
    if shot.is_file() {
        return Ok(vec![shot.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(shot)? {
        found.extend(parts(&entry?.path())?);
    }
    found.sort();
    Ok(found)
}

/// A restore has to fail and to leave nothing, while the damage is there.
fn refuses_appshot(place: &Place, shot: &Path, damage: &str) -> Result<Error> {
    let kinds = [Kind::Refused, Kind::Failed, Kind::NotFound, Kind::Usage];
    let error = fails(damage, place.restore(shot).map(drop), &kinds)?;
    judge_nothing_left(&place.scope(), &HostState::default()).with_context(|| damage.to_owned())?;
    Ok(error)
}

/// An appshot of a program whose state is in memory, files and pipes.
fn appshot_of(place: &Place, program: &str) -> Result<PathBuf> {
    let app = start(place, program)?;
    let shot = place.path("appshot");
    app.freeze(&shot).context("snapshot")?;
    app.wait_gone()?;
    Ok(shot)
}

#[test]
fn damaged_anywhere() {
    trial("damaged_anywhere", |place| {
        let shot = appshot_of(place, "pipes")?;
        for part in parts(&shot)? {
            flipped(place, &shot, &part)?;
            truncated(place, &shot, &part)?;
            extended(place, &shot, &part)?;
            missing(place, &shot, &part)?;
        }
        // Whole again, it is restored.
        passes(place, place.restore(&shot).context("restore of the repaired appshot")?)
    });
}

fn flipped(place: &Place, shot: &Path, part: &Path) -> Result<()> {
    let file = fs::OpenOptions::new().read(true).write(true).open(part)?;
    let len = file.metadata()?.len();
    let mut places = vec![0, 1, 4, 16, 63, len / 4, len / 2, len / 3 * 2, len.saturating_sub(1)];
    places.retain(|at| *at < len);
    for at in places {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 0x10], at)?;
        let result = refuses_appshot(place, shot, &format!("bit at {at} of {}", part.display()));
        file.write_all_at(&byte, at)?;
        result?;
    }
    Ok(())
}

fn truncated(place: &Place, shot: &Path, part: &Path) -> Result<()> {
    let whole = fs::read(part)?;
    for len in [0, whole.len() / 2, whole.len().saturating_sub(1)] {
        if len < whole.len() {
            fs::write(part, &whole[..len])?;
            let result = refuses_appshot(place, shot, &format!("{} cut to {len}", part.display()));
            fs::write(part, &whole)?;
            result?;
        }
    }
    Ok(())
}

fn extended(place: &Place, shot: &Path, part: &Path) -> Result<()> {
    let whole = fs::read(part)?;
    fs::write(part, [whole.as_slice(), b"x"].concat())?;
    let result = refuses_appshot(place, shot, &format!("a byte after {}", part.display()));
    fs::write(part, &whole)?;
    result.map(drop)
}

fn missing(place: &Place, shot: &Path, part: &Path) -> Result<()> {
    let aside = place.path("aside");
    fs::rename(part, &aside)?;
    let result = refuses_appshot(place, shot, &format!("without {}", part.display()));
    fs::rename(&aside, part)?;
    result.map(drop)
}

fn lazily() -> RestoreOptions {
    RestoreOptions {
        memory: Memory::Lazy,
        ..RestoreOptions::default()
    }
}

/// Damage in memory that comes while the app runs: it is ended before it could see
/// that, its log says why, and the appshot is known to be damaged.
#[test]
fn damaged_while_owed() {
    trial("damaged_while_owed", |place| {
        let shot = appshot_of(place, "lazy_watch")?;
        let size = |part: &PathBuf| part.metadata().map_or(0, |meta| meta.len());
        let core = parts(&shot)?.into_iter().max_by_key(size).context("no part")?;
        let file = fs::OpenOptions::new().read(true).write(true).open(&core)?;
        for eighth in 1..8 {
            let at = file.metadata()?.len() / 8 * eighth;
            let mut byte = [0];
            file.read_exact_at(&mut byte, at)?;
            file.write_all_at(&[byte[0] ^ 0x10], at)?;
            let mut app = place.restore_with(&shot, lazily()).context("lazy restore")?;
            let code = app.wait_exit()?;
            ensure!(code == 137, "exit code {code}: {}", place.log());
            let told = place.log().matches("the app is ended").count();
            ensure!(told == eighth as usize, "{told} times told: {}", place.log());
            ensure!(place.log().contains("do not match the digests"), "{}", place.log());
            ensure!(!place.path("wrong").exists(), "a wrong byte: {}", place.log());
            let found = libsnap::image::Appshot::open(&shot).map(drop).map_err(Into::into);
            fails("a damaged appshot", found, &[Kind::Refused, Kind::Failed])?;
            file.write_all_at(&byte, at)?;
        }
        passes(place, place.restore_with(&shot, lazily())?)
    });
}

/// Restored, until what it touched in its first second would be noted.
fn a_second_of(place: &Place, shot: &Path) -> Result<()> {
    let app = place.restore_with(shot, lazily())?;
    let init = app.top();
    poll("all its memory", PATIENCE, || {
        let fds = fs::read_dir(format!("/proc/{init}/fd"))?.count();
        Ok((fds == 0).then_some(()))
    })?;
    passes(place, app)?;
    fs::remove_file(place.path("go"))?;
    Ok(())
}

/// What the first instance needed comes first for the next one. One that is damaged,
/// another's or cannot be written is as good as none.
#[test]
fn working_sets() {
    trial("working_sets", |place| {
        let shot = appshot_of(place, "lazy_watch")?;
        let known = libsnap::restore::working_set::path(&shot).context("a path")?;
        a_second_of(place, &shot)?;
        // It is written after that second.
        let good = poll("a working set", PATIENCE, || Ok(fs::read(&known).ok()))?;
        let line = good.iter().position(|byte| *byte == b'\n').context("a line")?;
        ensure!(!good[..line].ends_with(b" 0"), "nothing of its program is known");
        let head = &good[..line.min("APPSHOT-WORKING-SET 2 ".len() + 64)];
        let mut damaged = good.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        let mut of_another = good.clone();
        let digit = &mut of_another["APPSHOT-WORKING-SET 2 ".len()];
        *digit = if *digit == b'0' { b'1' } else { b'0' };
        // One that is not believed is written anew, as if there were none.
        let bad = [
            ("a damaged one", &damaged[..]),
            ("another's", &of_another[..]),
            ("half of one", &good[..middle]),
            ("an empty one", b""),
        ];
        for (which, bad) in bad {
            fs::write(&known, bad)?;
            a_second_of(place, &shot)?;
            let replaced = || {
                Ok(fs::read(&known)
                    .is_ok_and(|now| now != bad && now.starts_with(head))
                    .then_some(()))
            };
            poll("another working set", PATIENCE, replaced).context(which)?;
        }
        // Only what we wrote ourselves is believed.
        fs::write(&known, &good)?;
        std::os::unix::fs::chown(&known, Some(4711), None)?;
        a_second_of(place, &shot)?;
        let own = || {
            Ok(fs::metadata(&known)
                .is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
                .then_some(()))
        };
        poll("a working set of ours", PATIENCE, own)?;
        fs::remove_file(&known)?;
        fs::create_dir(&known)?;
        a_second_of(place, &shot)?;
        ensure!(known.is_dir(), "something was written there");
        Ok(())
    });
}

#[test]
fn not_an_appshot() {
    trial("not_an_appshot", |place| {
        refuses_appshot(place, &place.path("nothing"), "no file")?;
        fs::write(place.path("empty"), "")?;
        refuses_appshot(place, &place.path("empty"), "an empty file")?;
        fs::create_dir(place.path("directory"))?;
        refuses_appshot(place, &place.path("directory"), "an empty directory")?;
        fs::write(place.path("noise"), [0xa5; 100_000])?;
        refuses_appshot(place, &place.path("noise"), "a file of something else")?;
        refuses_appshot(place, Path::new("/dev/zero"), "an endless device").map(drop)
    });
}

/// The version is read first: an appshot of another format says so.
#[test]
fn another_version() {
    trial("another_version", |place| {
        let shot = appshot_of(place, "eventfd")?;
        let manifest = shot.join("manifest");
        let text = fs::read_to_string(&manifest).context("no manifest in the appshot")?;
        // The seal line: `APPSHOT <version> <bytes> <digest>`.
        let (magic, rest) = text.split_once(' ').context("no seal line")?;
        let (_, rest) = rest.split_once(' ').context("no version")?;
        fs::write(&manifest, format!("{magic} 999 {rest}"))?;
        let error = refuses_appshot(place, &shot, "format 999")?;
        fs::write(&manifest, &text)?;
        names(&error, "999")?;
        passes(place, place.restore(&shot)?)
    });
}

// --------------------------------------------------------- the world has changed

/// A program and a library that are copies, so that they can be changed.
fn app_of_copies(place: &Place) -> Result<(App, PathBuf, PathBuf)> {
    let program = place.path("program");
    fs::copy(programs::build("threads100")?, &program)?;
    fs::create_dir(place.path("lib"))?;
    let library = place.path("lib").join("libc.so.6");
    fs::copy("/lib/x86_64-linux-gnu/libc.so.6", &library).context("the C library")?;
    let env = vec![format!("LD_LIBRARY_PATH={}", place.path("lib").display())];
    let app = ready_app(
        place,
        &program,
        RunOptions {
            env,
            ..RunOptions::default()
        },
    )?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", app.instance.root))?;
    ensure!(
        maps.contains("/lib/libc.so.6"),
        "the program does not use the copied library"
    );
    Ok((app, program, library))
}

#[test]
fn external_file_missing() {
    trial("external_file_missing", |place| {
        let (app, program, library) = app_of_copies(place)?;
        let shot = place.path("appshot");
        app.freeze(&shot)?;
        app.wait_gone()?;
        for file in [&program, &library] {
            let aside = place.path("aside");
            fs::rename(file, &aside)?;
            let result = refuses_appshot(place, &shot, &format!("without {}", file.display()));
            fs::rename(&aside, file)?;
            names(&result?, &file.display().to_string())?;
        }
        passes(place, place.restore(&shot)?)
    });
}

#[test]
fn external_file_changed() {
    trial("external_file_changed", |place| {
        let (app, program, library) = app_of_copies(place)?;
        let shot = place.path("appshot");
        app.freeze(&shot)?;
        app.wait_gone()?;
        for file in [&program, &library] {
            let aside = place.path("aside");
            fs::rename(file, &aside)?;
            // Same name, same length, another byte near the end.
            let mut bytes = fs::read(&aside)?;
            let at = bytes.len() - 100;
            bytes[at] ^= 1;
            fs::write(file, &bytes)?;
            fs::set_permissions(file, fs::metadata(&aside)?.permissions())?;
            let result = refuses_appshot(place, &shot, &format!("{} changed", file.display()));
            fs::rename(&aside, file)?;
            names(&result?, &file.display().to_string())?;
        }
        passes(place, place.restore(&shot)?)
    });
}

#[test]
fn port_taken() {
    trial("port_taken", |place| {
        let app = start(place, "block_accept")?;
        let ports = listening_ports_of(app.instance.root.0);
        let port = *ports.first().context("the program does not listen")?;
        let shot = place.path("appshot");
        app.freeze(&shot)?;
        app.wait_gone()?;
        let squatter = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).context("port not free")?;
        let error = fails("a taken port", place.restore(&shot).map(drop), &[Kind::Conflict])?;
        names(&error, &port.to_string())?;
        judge_nothing_left(&place.scope(), &HostState::default())?;
        drop(squatter);
        passes(place, place.restore(&shot).context("restore with the port free again")?)
    });
}

/// Another instance has the connection, and goes on over it.
#[test]
fn connection_taken() {
    trial("connection_taken", |place| {
        let app = start(place, "tcp_streams")?;
        let shot = place.path("appshot");
        app.freeze(&shot)?;
        app.wait_gone()?;
        let first = place.restore(&shot).context("first restore")?;
        let second = place.restore(&shot).map(drop);
        let error = fails("a taken connection", second, &[Kind::Conflict])?;
        names(&error, "there is one with these addresses")?;
        passes(place, first)
    });
}

/// A process outside got an end from the app, and goes on to run.
#[test]
fn connection_shared_with_others() {
    trial("connection_shared_with_others", |place| {
        let app = start(place, "tcp_streams")?;
        let links = fs::read_dir(format!("/proc/{}/fd", app.instance.root))?.flatten();
        let is_socket =
            |link: &Path| fs::read_link(link).is_ok_and(|to| to.display().to_string().starts_with("socket:"));
        let first = links
            .map(|entry| entry.path())
            .find(|link| is_socket(link))
            .context("no socket")?;
        let number: i32 = first
            .file_name()
            .and_then(|name| name.to_str())
            .context("no number")?
            .parse()?;
        let pidfd = task::pidfd_open(app.instance.root)?;
        let end = task::pidfd_getfd(pidfd.as_fd(), number)?;
        let mut other = Command::new("sleep").arg("1000").stdin(end).spawn()?;
        let error = fails("a shared end", app.freeze(&place.path("appshot")), &[Kind::Refused]);
        let named = error.and_then(|error| {
            names(
                &error,
                &format!("a process outside the app has open too: pid {}", other.id()),
            )
        });
        other.kill()?;
        other.wait()?;
        named?;
        let shot = place.path("again");
        app.freeze(&shot)?;
        app.wait_gone()?;
        passes(place, place.restore(&shot)?)
    });
}

#[test]
fn pid_taken() {
    trial("pid_taken", |place| {
        let host = RunOptions {
            pids: PidMode::Host,
            ..RunOptions::default()
        };
        let app = ready_app(place, &programs::build("threads100")?, host)?;
        let shot = place.path("appshot");
        app.freeze(&shot)?;
        app.wait_gone()?;
        let first = place.restore_host_pids(&shot).context("first restore")?;
        let before = Fingerprint::take(first.top());
        let second = place.restore_host_pids(&shot).map(drop);
        let error = fails("a taken pid", second, &[Kind::Conflict])?;
        names(&error, &first.instance.root.to_string())?;
        judge_untouched(&before, &Fingerprint::take(first.top()), Changes::NONE)?;
        passes(place, first)
    });
}

/// The kernel shows an empty message that waits to one snapshot only: the next must not
/// leave it out, and has to tell. The first has it.
#[test]
fn empty_messages_that_were_seen_before() {
    trial("empty_messages_that_were_seen_before", |place| {
        let app = start(place, "empty_between")?;
        let first = place.path("first");
        app.freeze_running(&first)?;
        let before = Fingerprint::take(app.top());
        for next in ["second", "third"] {
            let error = fails(next, app.freeze(&place.path(next)), &[Kind::Refused])?;
            ensure!(error.refusals.len() == 3, "expected three sockets in: {error}");
            names(&error, "empty message")?;
        }
        judge_untouched(&before, &Fingerprint::take(app.top()), Changes::NONE)?;
        passes(place, app)?;
        passes(place, place.restore(&first)?)
    });
}

// -------------------------------------------------------------------- giving up

/// The snapshot gives up because a task does not stop. Calls of other tasks that
/// the attempt interrupted go on as if nothing had been.
#[test]
fn a_task_that_does_not_stop() {
    trial("a_task_that_does_not_stop", |place| {
        let file = |name: &str| place.path(name).display().to_string();
        let program = programs::build("block_beside_vfork")?.display().to_string();
        let mut installed = Installed::new(place, false)?;
        installed.start(&RunOptions {
            command: vec![program, file("ready"), file("go")],
            ..RunOptions::default()
        })?;
        let result = given_up(place, &mut installed);
        result.and(installed.end())
    });
}

fn given_up(place: &Place, installed: &mut Installed<'_>) -> Result<()> {
    poll("ready", PATIENCE, || Ok(place.path("ready").exists().then_some(())))?;
    // In their calls: only then has the attempt something to interrupt.
    poll("sleeping threads", PATIENCE, || {
        let mut calls = Vec::new();
        for pid in tree(installed.top()) {
            for task in fs::read_dir(format!("/proc/{pid}/task"))? {
                calls.push(fs::read_to_string(task?.path().join("syscall"))?);
            }
        }
        let waiting = format!("{} ", nix::libc::SYS_epoll_wait);
        Ok((calls.iter().filter(|call| call.starts_with(&waiting)).count() == 8).then_some(()))
    })?;
    for _ in 0..2 {
        let Err(error) = installed.freeze() else {
            bail!("a task in vfork was stopped")
        };
        ensure!(error.to_string().contains("uninterruptible"), "{error:#}");
        ensure!(installed.exited()?.is_none(), "it ended: {}", place.log());
    }
    fs::write(place.path("go"), "")?;
    let code = poll("the end of the program", PATIENCE, || installed.exited())?;
    ensure!(code == 0, "exit code {code}");
    Ok(())
}

// ------------------------------------------------------------------ destinations

#[test]
fn disk_full() {
    trial("disk_full", |place| {
        let app = start(place, "anon_after")?;
        for size in ["16k", "256k", "4m"] {
            let disk = SmallDisk::mount(place.path(&format!("disk-{size}")), size)?;
            let before = Fingerprint::take(app.top());
            let taken = app.freeze(&disk.0.join("appshot"));
            fails("a full disk", taken, &[Kind::Unavailable, Kind::Failed])?;
            judge_untouched(&before, &Fingerprint::take(app.top()), Changes::NONE)?;
            leaves_empty(&disk)?;
        }
        passes(place, app)
    });
}

/// Packing and unpacking onto a disk that fills up at several points.
#[test]
fn disk_full_for_travel() {
    trial("disk_full_for_travel", |place| {
        let shot = appshot_of(place, "anon_after")?;
        let packed = place.path("packed");
        let bytes = libsnap::image::pack(&shot, &packed, libsnap::image::packed::LEVEL)?;
        let whole: u64 = parts(&shot)?
            .iter()
            .map(|part| part.metadata().map_or(0, |m| m.len()))
            .sum();
        for tenth in [1, 3, 5, 7, 9] {
            let size = |bytes: u64| (bytes * tenth / 10).next_multiple_of(4096).to_string();
            let disk = SmallDisk::mount(place.path(&format!("pack-{tenth}")), &size(bytes))?;
            let full =
                libsnap::image::pack(&shot, &disk.0.join("packed"), libsnap::image::packed::LEVEL).map_err(Into::into);
            fails("a full disk", full, &[Kind::Unavailable, Kind::Failed])?;
            leaves_empty(&disk)?;
            let disk = SmallDisk::mount(place.path(&format!("unpack-{tenth}")), &size(whole))?;
            let full = libsnap::image::unpack(&packed, &disk.0.join("appshot")).map_err(Into::into);
            fails("a full disk", full, &[Kind::Unavailable, Kind::Failed])?;
            leaves_empty(&disk)?;
        }
        let again = place.path("again");
        libsnap::image::unpack(&packed, &again)?;
        passes(place, place.restore(&again).context("restore of the unpacked appshot")?)
    });
}

fn leaves_empty(disk: &SmallDisk) -> Result<()> {
    let left: Vec<_> = fs::read_dir(&disk.0)?.flatten().map(|e| e.path()).collect();
    ensure!(left.is_empty(), "left on a small disk: {left:?}");
    Ok(())
}

#[test]
fn destination_exists() {
    trial("destination_exists", |place| {
        let app = start(place, "eventfd")?;
        let shot = place.path("appshot");
        fs::create_dir(&shot)?;
        fs::write(shot.join("precious"), "kept")?;
        let before = Fingerprint::take(app.top());
        let kinds = [Kind::Conflict, Kind::Usage, Kind::Failed];
        fails("a destination that exists", app.freeze(&shot), &kinds)?;
        ensure!(
            fs::read_to_string(shot.join("precious"))? == "kept",
            "it was overwritten"
        );
        let kinds = [Kind::NotFound, Kind::Usage, Kind::Failed, Kind::Unavailable];
        fails("no such directory", app.freeze(&place.path("no/such/appshot")), &kinds)?;
        judge_untouched(&before, &Fingerprint::take(app.top()), Changes::NONE)?;
        passes(place, app)
    });
}

// ------------------------------------------------------------------------ rights

/// An appshot may only ask for what the caller allows.
#[test]
fn more_than_allowed() {
    trial("more_than_allowed", |place| {
        let shot = appshot_of(place, "credentials_thread")?;
        for (what, allow) in [
            (
                "users",
                Allow {
                    uids: Some(vec![4711]),
                    ..Allow::default()
                },
            ),
            (
                "one of its users",
                Allow {
                    uids: Some(vec![0]),
                    ..Allow::default()
                },
            ),
            (
                "one of its groups",
                Allow {
                    gids: Some(vec![0, 55]),
                    ..Allow::default()
                },
            ),
            (
                "capabilities",
                Allow {
                    capabilities: 0,
                    ..Allow::default()
                },
            ),
        ] {
            let options = RestoreOptions {
                allow,
                ..RestoreOptions::default()
            };
            let restored = place.restore_with(&shot, options).map(drop);
            fails(&format!("{what} not allowed"), restored, &[Kind::Refused])?;
            judge_nothing_left(&place.scope(), &HostState::default()).context(what)?;
        }
        let allow = Allow {
            uids: Some(vec![0, 65, 66, 67]),
            gids: Some(vec![0, 55, 56, 57]),
            ..Allow::default()
        };
        let options = RestoreOptions {
            allow,
            ..RestoreOptions::default()
        };
        passes(
            place,
            place.restore_with(&shot, options).context("all its users allowed")?,
        )
    });
}

/// An appshot holds secrets: nobody but its owner reads it.
#[test]
fn appshot_is_private() {
    trial("appshot_is_private", |place| {
        use std::os::unix::fs::PermissionsExt;
        let shot = appshot_of(place, "eventfd")?;
        for part in parts(&shot)? {
            let mode = fs::metadata(&part)?.permissions().mode();
            ensure!(mode & 0o077 == 0, "{} has mode {mode:o}", part.display());
        }
        let mode = fs::metadata(&shot)?.permissions().mode();
        ensure!(mode & 0o077 == 0, "{} has mode {mode:o}", shot.display());
        Ok(())
    });
}
