//! Seeds for the fuzz targets, made from real appshots:
//! `cargo run -p appshot-tests --example seeds -- fuzz/corpus`, as root.
//!
//! The memory is left out of them but for a page, which the processes of a tree borrow
//! from the first one: what is parsed is what stands around it.

use anyhow::{Context, Result};
use appshot_tests::app::Place;
use appshot_tests::verdict::{PATIENCE, poll};
use appshot_tests::{forge, programs};
use libsnap::image::{self, Appshot, Writer};
use libsnap::target::{RestoreOptions, RunOptions, SnapshotOptions};
use std::fs;
use std::path::{Path, PathBuf};

/// Between them: threads, timers, signals, every kind of open file, System V
/// objects, filters, terminals, trees.
const PROGRAMS: &[&str] = &[
    "credentials_thread",
    "ctty",
    "epoll",
    "eventfd",
    "fifos",
    "file_locks",
    "inotify",
    "memfd_sealed",
    "pending_signals",
    "pidfd",
    "pipes",
    "posix_timers",
    "pty",
    "regular_files",
    "seccomp_threads",
    "sessions",
    "signalfd",
    "stopped_child",
    "sysv_msg",
    "sysv_sem",
    "sysv_shm",
    "tcp_listener",
    "timerfd",
    "udp",
    "unix_listen",
    "unix_pairs",
    "unlinked_file",
    "zombies",
];

fn main() -> Result<()> {
    let out = PathBuf::from(std::env::args().nth(1).context("usage: seeds CORPUS")?);
    for program in PROGRAMS {
        of_program(&out, program).with_context(|| (*program).to_owned())?;
    }
    texts(&out)?;
    requests(&out)?;
    seed(&out, "vdso", "kernel", &libsnap::kernel::vdso().context("no vdso")?)?;
    let own = fs::read("/proc/self/exe")?;
    seed(&out, "vdso", "head", &own[..own.len().min(4096)])?;
    seed(&out, "terminal", "lines", b"\x05one\ntwo\x04\x16\x04 ha")?;
    seed(&out, "terminal", "raw", b"\x04one\ntwo\x04\x16\x04 ha")
}

fn seed(out: &Path, target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let dir = out.join(target);
    fs::create_dir_all(&dir)?;
    fs::write(dir.join(name), bytes).with_context(|| dir.display().to_string())
}

/// Frozen, then written again with one page of its memory.
fn of_program(out: &Path, program: &str) -> Result<()> {
    let place = Place::new(program)?;
    let file = |name: &str| place.path(name).display().to_string();
    let app = place.run_with(RunOptions {
        command: vec![
            programs::build(program)?.display().to_string(),
            file("ready"),
            file("go"),
        ],
        ..RunOptions::default()
    })?;
    poll("ready", PATIENCE, || Ok(place.path("ready").exists().then_some(())))?;
    let whole = place.path("whole");
    app.freeze_running(&whole)?;
    app.end()?;
    let lean = with_a_page(&Appshot::open(&whole)?, &place.path("lean"))?;
    let manifest = fs::read(lean.join("manifest"))?;
    let line = manifest
        .iter()
        .position(|byte| *byte == b'\n')
        .context("no seal line")?;
    seed(out, "manifest", program, &manifest[line + 1..])?;
    for entry in fs::read_dir(&lean)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.ends_with(".core") {
            let core = fs::read(&path)?;
            let name = format!("{program}-{name}");
            seed(out, "core", &name, &core)?;
            seed(out, "notes", &name, forge::notes(&core)?.1)?;
        }
    }
    let packed = place.path("packed");
    image::pack(&lean, &packed)?;
    let packed = fs::read(&packed)?;
    seed(out, "packed", program, &packed[..packed.len() - 32])
}

fn with_a_page(shot: &Appshot, dest: &Path) -> Result<PathBuf> {
    let writer = Writer::create(dest)?;
    let page = shot.cores[0].segments.first().context("it has no memory")?.vaddr;
    let mut first = None;
    for core in &shot.cores {
        let mut to = writer.core(core.image.process.pid)?;
        let has_it = core.segments.iter().any(|s| (s.vaddr..s.end()).contains(&page));
        match &first {
            Some(first) if has_it => to.borrow(page..page + image::PAGE, first)?,
            Some(_) => {}
            None => to.pages(page, 3, &[1; image::PAGE as usize])?,
        }
        let layout = to.finish(&core.image)?;
        first.get_or_insert(layout);
    }
    for part in shot.manifest.parts.iter().filter(|part| !part.name.ends_with(".core")) {
        let mut blob = writer.blob(&part.name)?;
        std::io::copy(&mut shot.part(&part.name)?, &mut blob)?;
        blob.finish()?;
    }
    Ok(writer.close()?.seal(shot.manifest.clone())?.path)
}

fn texts(out: &Path) -> Result<()> {
    for name in ["smaps", "stat", "status", "fdinfo/0"] {
        seed(
            out,
            "texts",
            &name.replace('/', "-"),
            &fs::read(format!("/proc/self/{name}"))?,
        )?;
    }
    Ok(())
}

fn requests(out: &Path) -> Result<()> {
    let error = libsnap::error::Error::refused("no").because("so").fix("else");
    seed(out, "requests", "run", &serde_json::to_vec(&RunOptions::default())?)?;
    seed(
        out,
        "requests",
        "restore",
        &serde_json::to_vec(&RestoreOptions::default())?,
    )?;
    seed(
        out,
        "requests",
        "snapshot",
        &serde_json::to_vec(&SnapshotOptions::default())?,
    )?;
    seed(out, "requests", "error", &serde_json::to_vec(&error)?)
}
