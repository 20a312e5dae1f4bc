//! Rows of what lies on the disk or in memory: the size of an image, its
//! verification, copies side by side.

use super::Lab;
use super::row::{Column, Row};
use crate::clock::{millis_between, now_ns};
use crate::engine::{After, Back, Call, Daemon, Engine};
use crate::measure::{self, megabytes};
use crate::pages::Unique;
use crate::{command, files, proc};
use anyhow::{Result, ensure};
use libsnap::image::Appshot;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A size differs little from one run to the next.
const IMAGES: usize = 3;
/// Until what is filled in the background is there.
const SETTLE: Duration = Duration::from_secs(1);

/// Size of an image; the floor is the memory that is unique and not zero.
pub fn image(lab: &Lab<'_>, workload: &str, row: &mut Row) -> Result<()> {
    let workload = lab.workload(workload)?;
    let scratch = lab.scratch()?;
    let ours = Call::new(scratch.path());
    let peer = lab.criu(scratch.path());
    for _ in 0..lab.runs.min(IMAGES) {
        for (column, engine) in [(Column::Ours, &ours as &dyn Engine), (Column::Peer, &peer)] {
            // An app for each: a snapshot can leave another one behind than it found.
            let app = workload.prepare(lab.place)?;
            let root = measure::start(&*app, engine, None)?;
            let tree = proc::tree(root);
            let unique = Unique::of(&tree)?;
            let before = proc::pss_bytes(&tree);
            let dest = scratch.path().join("appshot");
            let taken = engine.snapshot(root, &dest, After::Run);
            row.push(column, taken.and_then(|_| Ok(megabytes(files::disk_bytes(&dest)?))));
            files::remove(&dest);
            if column == Column::Ours {
                row.push(Column::Floor, Ok(megabytes(unique.frame_bytes())));
            }
            row.note(format!(
                "{}, {} processes: {:.1} MB where equal pages of different processes count once too; \
                 they hold {:.0} MB before the snapshot, {:.0} after it",
                column.name(),
                tree.len(),
                megabytes(unique.content_bytes()),
                megabytes(before),
                megabytes(proc::pss_bytes(&tree))
            ));
            proc::kill_all_below_me()?;
        }
    }
    Ok(())
}

/// What holding every byte against its digest takes longer than reading it.
pub fn verify(lab: &Lab<'_>, row: &mut Row) -> Result<()> {
    let workload = lab.workload("redis-100mb")?;
    let scratch = lab.scratch()?;
    let daemon = Daemon::new(scratch.path());
    let app = workload.prepare(lab.place)?;
    let root = measure::start(&*app, &daemon, None)?;
    let tree = proc::tree(root);
    let dir = scratch.path().join("appshot");
    daemon.snapshot(root, &dir, After::End)?;
    proc::wait_gone(&tree, Duration::from_secs(10))?;
    files::warm_cache(&dir)?;
    let per_100_mb = 100.0 / megabytes(files::disk_bytes(&dir)?);
    let threads = std::thread::available_parallelism()?.get();
    for _ in 0..lab.runs {
        let begin_ns = now_ns();
        files::warm_cache(&dir)?;
        let read_ns = now_ns();
        let (_appshot, digests) = Appshot::open_to_verify(&dir)?;
        digests.verify(threads)?;
        let read = millis_between(begin_ns, read_ns) * per_100_mb;
        let verified = millis_between(read_ns, now_ns()) * per_100_mb;
        row.push(Column::Ours, Ok((verified - read).max(0.0)));
        row.push(Column::Floor, Ok(read));
    }
    row.note(format!(
        "verified by {threads} threads apart from any restore; floor: reading the same files"
    ));
    app.forget()?;
    let (back, answered) = measure::restore_and_ask(&*app, &daemon, &dir);
    let back = back?;
    answered?;
    let phases: Vec<String> = back
        .phases
        .iter()
        .map(|phase| format!("{} {:.1}", phase.name, phase.micros as f64 / 1e3))
        .collect();
    row.note(format!("phases of a restore of it, ms: {}", phases.join(", ")));
    daemon.end(&back)
}

/// Memory of `n` processes that were restored from one image, in MB.
pub fn copies(lab: &Lab<'_>, n: usize, row: &mut Row) -> Result<()> {
    let workload = lab.workload("block-100mb")?;
    let scratch = lab.scratch()?;
    let daemon = Daemon::new(scratch.path());
    let criu = lab.criu(scratch.path());
    for (column, engine) in [(Column::Ours, &daemon as &dyn Engine), (Column::Peer, &criu)] {
        let app = workload.prepare(lab.place)?;
        let root = measure::start(&*app, engine, None)?;
        let tree = proc::tree(root);
        let dir = scratch.path().join(engine.name());
        let taken = engine.snapshot(root, &dir, After::End);
        let held = taken.and_then(|_| {
            proc::wait_gone(&tree, Duration::from_secs(10))?;
            match column {
                Column::Ours => restored_copies(&daemon, &dir, n),
                _ => criu_copies(&criu.command("restore", &dir)?, scratch.path(), n),
            }
        });
        row.push(column, held);
        drop(app);
    }
    Ok(())
}

fn restored_copies(daemon: &Daemon, dir: &Path, n: usize) -> Result<f64> {
    let backs = (0..n).map(|_| daemon.restore(dir)).collect::<Result<Vec<Back>>>()?;
    std::thread::sleep(SETTLE);
    let trees: Vec<i32> = backs.iter().flat_map(|back| proc::tree(back.root)).collect();
    let held = held_mb(&trees);
    backs.iter().try_for_each(|back| daemon.end(back))?;
    Ok(held)
}

/// It restores only the same PIDs: each copy below a shell in a PID namespace.
fn criu_copies(restore: &Command, scratch: &Path, n: usize) -> Result<f64> {
    let done = |copy: usize| scratch.join(format!("copy-{copy}"));
    let mut shells = Vec::new();
    for copy in 0..n {
        let mut command = command::below(
            &[
                "unshare",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                "\"$@\" -d -v0 && : >\"$0\" && exec sleep 1000",
            ],
            &Command::new(done(copy)),
        );
        command.arg(restore.get_program()).args(restore.get_args());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.stdin(Stdio::null());
        shells.push(command.spawn()?);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    let result = loop {
        if (0..n).all(|copy| done(copy).exists()) {
            std::thread::sleep(SETTLE);
            let trees = shells.iter().filter_map(|shell| i32::try_from(shell.id()).ok());
            let copies: Vec<i32> = trees
                .flat_map(proc::tree)
                .filter(|pid| proc::name(*pid) == "beat")
                .collect();
            break if copies.len() == n {
                Ok(held_mb(&copies))
            } else {
                Err(copies.len())
            };
        }
        if Instant::now() > deadline {
            break Err(0);
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    for shell in &mut shells {
        let _ = shell.kill();
        let _ = shell.wait();
    }
    (0..n).for_each(|copy| files::remove(&done(copy)));
    let held = result.map_err(|copies| anyhow::anyhow!("{copies} of {n} copies run"))?;
    ensure!(held > 0.0, "no memory was seen");
    Ok(held)
}

/// Proportional set sizes and page tables.
fn held_mb(pids: &[i32]) -> f64 {
    let tables: u64 = pids.iter().filter_map(|pid| proc::page_table_bytes(*pid)).sum();
    megabytes(proc::pss_bytes(pids) + tables)
}

/// Kernel and user memory of the whole host, in bytes by kind, without caches of files.
pub fn host_parts() -> Result<[(&'static str, u64); 6]> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let mut parts = [
        ("AnonPages", 0),
        ("Shmem", 0),
        ("PageTables", 0),
        ("Slab", 0),
        ("KernelStack", 0),
        ("Percpu", 0),
    ];
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap_or_default().trim_end_matches(':');
        if let Some((_, bytes)) = parts.iter_mut().find(|(known, _)| *known == name) {
            let kib: u64 = words.next().unwrap_or_default().parse()?;
            *bytes = kib * 1024;
        }
    }
    ensure!(parts.iter().any(|(_, bytes)| *bytes > 0), "/proc/meminfo tells nothing");
    Ok(parts)
}
