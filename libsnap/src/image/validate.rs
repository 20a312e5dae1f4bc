//! What must hold for the app as a whole.
//!
//! An appshot comes from anywhere; its digests only say that it is as it was
//! sealed. These checks let the restorer rely on every reference and number.

use super::fault::{corrupt, ensure};
use super::process::Core;
use super::records::{FileKind, Life, Manifest, Part, SnapEntry, VmaKind};
use super::{FORMAT, MANIFEST, limits, validate_files};
use crate::error::Result;
use crate::ids::VirtualPid;
use std::collections::{BTreeMap, BTreeSet};

/// Letters, digits, `.`, `_`, `-`; not hidden. Such a name is a file of the
/// directory and nothing else.
pub fn is_part_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=limits::NAME_BYTES).contains(&name.len())
        && name.bytes().all(plain)
        && !name.starts_with('.')
        && name != MANIFEST
}

/// The manifest by itself.
pub fn manifest(manifest: &Manifest) -> Result<()> {
    let part = MANIFEST;
    ensure(manifest.format == FORMAT, part, || "format")?;
    ensure(is_app_id(&manifest.app), part, || {
        format!("app id {:?} is not allowed", shown(&manifest.app))
    })?;
    text(part, "product", &manifest.product, limits::TEXT_BYTES)?;
    text(part, "hostname", &manifest.hostname, 64)?;
    text(part, "domainname", &manifest.domainname, 64)?;
    text(part, "kernel_release", &manifest.needs.kernel_release, 256)?;
    ensure(
        is_digest(&manifest.needs.vdso_blake3) || manifest.needs.vdso_blake3.is_empty(),
        part,
        || "vdso_blake3 is not a digest",
    )?;
    let xsave = usize::try_from(manifest.needs.xsave_bytes).unwrap_or(usize::MAX);
    ensure(limits::XSAVE_BYTES.contains(&xsave), part, || {
        format!("an xsave area of {xsave} bytes")
    })?;
    parts(&manifest.parts)?;
    processes(&manifest.processes)?;
    validate_files::all(manifest)?;
    part_references(manifest)
}

/// An app id names directories and cgroups at the destination.
fn is_app_id(app: &str) -> bool {
    (1..=limits::NAME_BYTES).contains(&app.len())
        && !app.starts_with('.')
        && !app.contains('/')
        && !app.chars().any(char::is_control)
}

pub fn is_digest(text: &str) -> bool {
    text.len() == 64
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn parts(parts: &[Part]) -> Result<()> {
    count(MANIFEST, "parts", parts.len(), limits::PARTS)?;
    let mut names = BTreeSet::new();
    for part in parts {
        let shown = shown(&part.name);
        ensure(is_part_name(&part.name), MANIFEST, || {
            format!("part name {shown:?} is not allowed")
        })?;
        ensure(names.insert(&part.name), MANIFEST, || {
            format!("part {shown} is listed twice")
        })?;
        ensure(part.bytes <= limits::PART_BYTES, MANIFEST, || {
            format!("part {shown} is too large")
        })?;
        ensure(is_digest(&part.blake3), MANIFEST, || {
            format!("part {shown} has no digest")
        })?;
    }
    Ok(())
}

/// Parents stand before their children; 0 and 1 are outside the app.
fn processes(entries: &[SnapEntry]) -> Result<()> {
    count(MANIFEST, "processes", entries.len(), limits::PROCESSES)?;
    ensure(!entries.is_empty(), MANIFEST, || "it has no process")?;
    let mut seen = BTreeSet::new();
    for entry in entries {
        let pid = entry.pid;
        process_id(MANIFEST, "pid", pid)?;
        let outside = matches!(entry.ppid.0, 0 | 1);
        ensure(outside || seen.contains(&entry.ppid), MANIFEST, || {
            format!(
                "process {pid}: its parent {} does not stand before it",
                entry.ppid
            )
        })?;
        ensure(seen.insert(pid), MANIFEST, || {
            format!("process {pid} is listed twice")
        })?;
        for (what, id) in [("group", entry.pgid), ("session", entry.sid)] {
            ensure((0..=limits::PID_MAX).contains(&id.0), MANIFEST, || {
                format!("process {pid}: {what} {id}")
            })?;
        }
        ensure((0..=64).contains(&entry.exit_signal), MANIFEST, || {
            format!("process {pid}: exit signal {}", entry.exit_signal)
        })?;
        text(MANIFEST, "comm", &entry.comm, limits::COMM_BYTES)?;
        if let Life::Zombie { wait_status } = entry.life {
            ensure((0..=0xffff).contains(&wait_status), MANIFEST, || {
                format!("process {pid}: wait status {wait_status:#x}")
            })?;
        }
    }
    Ok(())
}

/// Each part is named by exactly one record, and each record's part is there.
fn part_references(manifest: &Manifest) -> Result<()> {
    let mut unused: BTreeMap<&str, u64> = manifest
        .parts
        .iter()
        .map(|part| (part.name.as_str(), part.bytes))
        .collect();
    let mut take = |name: &str, bytes: Option<u64>| {
        let found = unused.remove(name).ok_or_else(|| {
            corrupt(
                MANIFEST,
                format_args!(
                    "part {:?} is not listed, or named by two records",
                    shown(name)
                ),
            )
        })?;
        ensure(bytes.is_none_or(|bytes| bytes == found), MANIFEST, || {
            format!("part {name} has {found} bytes, its record says otherwise")
        })
    };
    for entry in &manifest.processes {
        if let Life::Alive { part } = &entry.life {
            take(part, None)?;
        }
    }
    for shm in &manifest.shmem {
        let stored: u64 = shm.runs.iter().map(|(_, bytes)| bytes).sum();
        match &shm.part {
            Some(part) => take(part, Some(stored))?,
            None => ensure(stored == 0, MANIFEST, || {
                format!("shared memory {} has no part", shm.id)
            })?,
        }
    }
    for file in &manifest.files {
        if let FileKind::Unlinked { part, .. } = &file.kind {
            take(part, None)?;
        }
    }
    ensure(unused.is_empty(), MANIFEST, || {
        format!(
            "part {} belongs to no record",
            unused.keys().next().unwrap_or(&"")
        )
    })
}

/// References between the cores and the manifest. Each has passed its own checks.
pub fn app(manifest: &Manifest, cores: &[Core]) -> Result<()> {
    let files: BTreeMap<_, _> = manifest
        .files
        .iter()
        .map(|file| (file.id, &file.kind))
        .collect();
    let shmem: BTreeSet<_> = manifest.shmem.iter().map(|shm| shm.id).collect();
    let live = manifest
        .processes
        .iter()
        .filter_map(|entry| match &entry.life {
            Life::Alive { part } => Some((entry, part.as_str())),
            Life::Zombie { .. } => None,
        });
    for ((entry, part), core) in live.zip(cores) {
        let image = &core.image;
        let ids = (image.process.pid, image.ppid, image.pgid, image.sid);
        ensure(
            ids == (entry.pid, entry.ppid, entry.pgid, entry.sid),
            part,
            || {
                format!(
                    "its ids are not those of process {} in the manifest",
                    entry.pid
                )
            },
        )?;
        ensure(
            image.comm == entry.comm,
            part,
            || "its name is not that in the manifest",
        )?;
        for entry in &image.process.fds {
            ensure(files.contains_key(&entry.file), part, || {
                format!("descriptor {}: there is no file {}", entry.fd, entry.file)
            })?;
        }
        if let Some(ctty) = image.process.ctty {
            let slave = matches!(files.get(&ctty), Some(FileKind::Pty(pty)) if !pty.master);
            ensure(slave, part, || {
                format!("controlling terminal: file {ctty} is not a terminal")
            })?;
        }
        for vma in &image.vmas {
            if let VmaKind::Shm { shm, .. } = vma.kind {
                ensure(shmem.contains(&shm), part, || {
                    format!("mapping {:#x}: there is no shared memory {shm}", vma.start)
                })?;
            }
        }
    }
    thread_ids(manifest, cores)
}

/// Threads and processes share one space of numbers.
fn thread_ids(manifest: &Manifest, cores: &[Core]) -> Result<()> {
    let mut tasks: BTreeSet<VirtualPid> =
        manifest.processes.iter().map(|entry| entry.pid).collect();
    for core in cores {
        for thread in core.image.threads.iter().skip(1) {
            let tid = thread.record.tid;
            ensure(tasks.insert(tid), MANIFEST, || {
                format!("thread {tid} exists twice")
            })?;
        }
    }
    for file in &manifest.files {
        if let FileKind::Pidfd { pid } = file.kind {
            ensure(tasks.contains(&pid), MANIFEST, || {
                format!("file {}: there is no process {pid}", file.id)
            })?;
        }
    }
    Ok(())
}

pub fn process_id(part: &str, what: &str, id: VirtualPid) -> Result<()> {
    ensure((1..=limits::PID_MAX).contains(&id.0), part, || {
        format!("{what} {id} is out of range")
    })
}

pub fn count(part: &str, what: &str, count: usize, limit: usize) -> Result<()> {
    ensure(count <= limit, part, || {
        format!("{count} {what} are more than {limit}")
    })
}

pub fn text(part: &str, what: &str, text: &str, limit: usize) -> Result<()> {
    ensure(text.len() <= limit && !text.contains('\0'), part, || {
        format!("{what} {:?} is too long or holds a NUL", shown(text))
    })
}

/// An absolute path that the kernel would take.
pub fn path(part: &str, what: &str, path: &str) -> Result<()> {
    text(part, what, path, limits::PATH_BYTES)?;
    ensure(path.starts_with('/'), part, || {
        format!("{what} {:?} is not absolute", shown(path))
    })
}

/// The start of an untrusted text, for an error.
pub fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::super::process::ProcessImage;
    use super::super::records::*;
    use super::super::{manifest, sample};
    use super::*;
    use crate::error::Kind;
    use crate::ids::{FdNum, FileId, ShmId};
    use proptest::prelude::*;

    /// What is wrong with a manifest after this change.
    fn manifest_with(change: impl FnOnce(&mut Manifest)) -> crate::error::Error {
        let mut manifest = sample::manifest();
        let part = |name: &str, bytes| Part {
            name: name.into(),
            bytes,
            blake3: blake3::hash(b"").to_hex().to_string(),
        };
        manifest.parts = vec![
            part("2.core", 1),
            part("7.core", 1),
            part("shm-0.data", 5000),
            part("unlinked-3.data", 10),
        ];
        assert!(manifest::parse(&manifest::encode(&manifest).unwrap()).is_ok());
        change(&mut manifest);
        manifest::parse(&manifest::encode(&manifest).unwrap()).expect_err("the change is refused")
    }

    #[test]
    fn other_versions_and_machines_are_refused() {
        assert_eq!(manifest_with(|m| m.format = 2).kind, Kind::Refused);
        assert_eq!(
            manifest_with(|m| m.needs.arch = "aarch64".into()).kind,
            Kind::Refused
        );
        assert_eq!(
            manifest_with(|m| m.needs.page_size = 65536).kind,
            Kind::Refused
        );
        let json = b"{}";
        let sealed = format!("APPSHOT 2 2 {}\n{{}}", blake3::hash(json).to_hex());
        let error = manifest::parse(sealed.as_bytes()).unwrap_err();
        assert_eq!(error.kind, Kind::Refused);
        assert!(error.what.contains("version 2"), "{error}");
        assert_eq!(error.state.as_deref(), Some("nothing was started"));
    }

    #[test]
    fn bad_manifests_are_refused() {
        let changes: Vec<(&str, Box<dyn FnOnce(&mut Manifest)>)> = vec![
            (
                "part name",
                Box::new(|m| m.parts[0].name = "../2.core".into()),
            ),
            ("part name", Box::new(|m| m.parts[0].name = ".core".into())),
            (
                "part name",
                Box::new(|m| m.parts[0].name = "manifest".into()),
            ),
            (
                "listed twice",
                Box::new(|m| m.parts[1].name = "2.core".into()),
            ),
            ("no digest", Box::new(|m| m.parts[0].blake3 = "00".into())),
            (
                "belongs to no record",
                Box::new(|m| {
                    let mut extra = m.parts[0].clone();
                    extra.name = "extra".into();
                    m.parts.push(extra);
                }),
            ),
            ("not listed", Box::new(|m| m.parts.clear())),
            (
                "its record says otherwise",
                Box::new(|m| m.parts[2].bytes = 4999),
            ),
            ("app id", Box::new(|m| m.app = "../up".into())),
            ("no process", Box::new(|m| m.processes.clear())),
            (
                "out of range",
                Box::new(|m| m.processes[0].pid = VirtualPid(0)),
            ),
            (
                "out of range",
                Box::new(|m| m.processes[0].pid = VirtualPid(4_194_305)),
            ),
            (
                "does not stand before it",
                Box::new(|m| m.processes[0].ppid = VirtualPid(7)),
            ),
            (
                "listed twice",
                Box::new(|m| m.processes[2].pid = VirtualPid(7)),
            ),
            ("listed twice", Box::new(|m| m.files[1].id = FileId(0))),
            ("pipe is not listed", Box::new(|m| m.pipes.clear())),
            (
                "shared memory is not listed",
                Box::new(|m| m.shmem[0].id = ShmId(4)),
            ),
            ("peer is not listed", Box::new(|m| drop(m.files.remove(11)))),
            (
                "watched file is not listed",
                Box::new(|m| drop(m.files.remove(1))),
            ),
            (
                "not absolute",
                Box::new(|m| m.external[0].path = "usr".into()),
            ),
            ("NUL", Box::new(|m| m.external[0].path = "/a\0b".into())),
            (
                "out of place",
                Box::new(|m| m.shmem[0].runs = vec![(8192, 4096), (0, 904)]),
            ),
            (
                "out of place",
                Box::new(|m| m.shmem[0].runs[1].1 = u64::MAX),
            ),
            ("capacity", Box::new(|m| m.pipes[0].capacity = 3)),
        ];
        for (expected, change) in changes {
            let error = manifest_with(change);
            assert!(error.what.contains(expected), "{expected:?} in {error}");
            assert_eq!(error.kind, Kind::Failed);
            assert_eq!(error.state.as_deref(), Some("nothing was started"));
        }
    }

    /// The writer does not seal what a reader would refuse.
    #[test]
    fn bad_processes_are_not_sealed() {
        let changes: Vec<(&str, Box<dyn FnOnce(&mut ProcessImage)>)> = vec![
            ("rlimits", Box::new(|p| p.process.rlimits.truncate(15))),
            (
                "signal actions",
                Box::new(|p| p.process.sigactions.push(SigAction::default())),
            ),
            ("listed twice", Box::new(|p| p.process.fds[1].fd = FdNum(0))),
            (
                "out of range",
                Box::new(|p| p.process.fds[1].fd = FdNum(-1)),
            ),
            (
                "no file 99",
                Box::new(|p| p.process.fds[1].file = FileId(99)),
            ),
            (
                "not a terminal",
                Box::new(|p| p.process.ctty = Some(FileId(0))),
            ),
            (
                "no shared memory",
                Box::new(|p| {
                    p.vmas[3].kind = VmaKind::Shm {
                        shm: ShmId(9),
                        offset: 0,
                        private: false,
                    };
                }),
            ),
            ("not the main thread", Box::new(|p| p.threads.swap(0, 1))),
            (
                "listed twice",
                Box::new(|p| p.threads[1].record.tid = VirtualPid(2)),
            ),
            ("no thread 20", Box::new(|p| p.threads.truncate(1))),
            (
                "exists twice",
                Box::new(|p| {
                    p.threads[1].record.tid = VirtualPid(8);
                    p.process.posix_timers.clear();
                }),
            ),
            ("xsave", Box::new(|p| p.threads[1].xsave.truncate(575))),
            ("xsave", Box::new(|p| p.threads[1].xsave.resize(20000, 0))),
            ("out of place", Box::new(|p| p.vmas.swap(5, 6))),
            (
                "out of place",
                Box::new(|p| p.vmas[6].end = 0x7fff_ffff_f000 + 4096),
            ),
            ("out of place", Box::new(|p| p.vmas[0].start = 0x1000)),
            ("out of place", Box::new(|p| p.vmas[4].start += 1)),
            (
                "unknown flag",
                Box::new(|p| p.vmas[0].flags.push("zz".into())),
            ),
            ("protection", Box::new(|p| p.vmas[0].prot = 8)),
            (
                "no private mapping",
                Box::new(|p| p.vmas[1].kind = VmaKind::Vdso),
            ),
            ("not absolute", Box::new(|p| p.process.cwd = "here".into())),
            ("ids are not those", Box::new(|p| p.sid = VirtualPid(5))),
        ];
        for (expected, change) in changes {
            let dir = tempfile::tempdir().unwrap();
            let mut first = sample::process(2, 1);
            change(&mut first);
            let images = [first, sample::process(7, 2)];
            let error = sample::try_write(&dir.path().join("bad"), sample::manifest(), &images)
                .unwrap_err();
            let text = error.to_string();
            assert!(text.contains(expected), "{expected:?} in {text}");
            assert_eq!(
                std::fs::read_dir(dir.path()).unwrap().count(),
                0,
                "nothing is left"
            );
        }
    }

    proptest! {
        /// Whatever stands in the JSON, reading it ends with an answer.
        #[test]
        fn random_manifests_never_panic(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<i64>(), 0..6u8), 1..6)
        ) {
            let mut value = serde_json::to_value(sample::manifest()).unwrap();
            for (place, number, how) in edits {
                let mut leaves = Vec::new();
                collect(&mut value, &mut leaves);
                let leaf = place.get(&leaves[..]);
                *value.pointer_mut(leaf).unwrap() = replacement(number, how);
            }
            let json = serde_json::to_vec(&value).unwrap();
            let mut bytes = format!("APPSHOT 1 {} {}\n", json.len(), blake3::hash(&json).to_hex()).into_bytes();
            bytes.extend(json);
            let _ = manifest::parse(&bytes);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            let _ = manifest::parse(&bytes);
            let _ = super::super::core_read::parse("core", &bytes[..]);
            let _ = super::super::packed::parse(&bytes);
        }
    }

    fn replacement(number: i64, how: u8) -> serde_json::Value {
        match how {
            0 => number.into(),
            1 => (number % 100).into(),
            2 => u64::MAX.into(),
            3 => serde_json::Value::Null,
            4 => serde_json::json!([]),
            _ => format!("/{number}").into(),
        }
    }

    /// JSON pointers of everything in a value.
    fn collect(value: &mut serde_json::Value, leaves: &mut Vec<String>) {
        fn walk(value: &serde_json::Value, at: String, leaves: &mut Vec<String>) {
            match value {
                serde_json::Value::Array(list) => {
                    for (index, item) in list.iter().enumerate() {
                        walk(item, format!("{at}/{index}"), leaves);
                    }
                }
                serde_json::Value::Object(map) => {
                    for (key, item) in map {
                        walk(item, format!("{at}/{key}"), leaves);
                    }
                }
                _ => {}
            }
            leaves.push(at);
        }
        walk(value, String::new(), leaves);
    }
}
