//! Records that do not hold together are refused, each with its own words.

use super::mounts::{Entry, EntryKind, FileSystem, Mounts, Step, Tree};
use super::process::ProcessImage;
use super::records::*;
use super::{manifest, sample};
use crate::error::Kind;
use crate::ids::{FdNum, FileId, ShmId, VirtualPid};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Part of the expected error, and what is done to a good record.
type Change<T> = (&'static str, Box<dyn FnOnce(&mut T)>);

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
        part("digests", 4 * 32),
    ];
    assert!(manifest::parse(&manifest::encode(&manifest).unwrap()).is_ok());
    change(&mut manifest);
    manifest::parse(&manifest::encode(&manifest).unwrap()).expect_err("the change is refused")
}

#[test]
fn other_versions_and_machines_are_refused() {
    assert_eq!(manifest_with(|m| m.format = 1).kind, Kind::Refused);
    assert_eq!(manifest_with(|m| m.needs.arch = "aarch64".into()).kind, Kind::Refused);
    assert_eq!(manifest_with(|m| m.needs.page_size = 65536).kind, Kind::Refused);
    let json = b"{}";
    let sealed = format!("APPSHOT 1 2 {}\n{{}}", blake3::hash(json).to_hex());
    let error = manifest::parse(sealed.as_bytes()).unwrap_err();
    assert_eq!(error.kind, Kind::Refused);
    assert!(error.to_string().contains("version 1"), "{error}");
    assert_eq!(error.state.as_deref(), Some("nothing was started"));
}

/// The last file, an end of a TCP connection: who the other is, and what they have agreed on.
fn end(manifest: &mut Manifest) -> (&mut u64, &mut Connection) {
    match manifest.files.last_mut().map(|file| &mut file.kind) {
        Some(FileKind::Socket(socket)) => match &mut socket.state {
            SocketState::Joined { peer, connection, .. } => (peer, connection),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

fn end_socket(manifest: &mut Manifest) -> &mut SocketRecord {
    match manifest.files.last_mut().map(|file| &mut file.kind) {
        Some(FileKind::Socket(socket)) => socket,
        other => panic!("{other:?}"),
    }
}

/// Has a mount namespace with directories, and links, in one file system.
fn mount(manifest: &mut Manifest, at: &str, files: &[(&str, Option<&str>)]) {
    let entries = files.iter().map(|(name, to)| Entry {
        name: (*name).to_owned(),
        kind: match to {
            Some(to) => EntryKind::Symlink { to: (*to).to_owned() },
            None => EntryKind::Directory,
        },
        mode: 0o755,
        uid: 0,
        gid: 0,
        atime_ns: 0,
        mtime_ns: 0,
        attributes: Vec::new(),
    });
    let tree = Tree {
        root: "/".to_owned(),
        entries: entries.collect(),
        content: None,
    };
    let step = Step::Mount {
        at: at.to_owned(),
        flags: 0,
        source: "tmpfs".to_owned(),
        options: BTreeMap::new(),
        kind: FileSystem::Tmpfs(tree),
    };
    manifest.namespaces[1] = Namespace::Mnt(Mounts { steps: vec![step] });
}

fn opened(name: &str, number: Option<u32>) -> FileKind {
    FileKind::Namespace {
        name: name.into(),
        number,
    }
}

fn ring(manifest: &mut Manifest) -> &mut UringRecord {
    let mut files = manifest.files.iter_mut();
    let ring = files.find_map(|file| match &mut file.kind {
        FileKind::Uring(ring) => Some(&mut **ring),
        _ => None,
    });
    ring.expect("the sample has one")
}

#[test]
fn bad_manifests_are_refused() {
    let changes: Vec<Change<Manifest>> = vec![
        ("part name", Box::new(|m| m.parts[0].name = "../2.core".into())),
        ("part name", Box::new(|m| m.parts[0].name = ".core".into())),
        ("part name", Box::new(|m| m.parts[0].name = "manifest".into())),
        ("listed twice", Box::new(|m| m.parts[1].name = "2.core".into())),
        ("no digest", Box::new(|m| m.parts[0].blake3 = "00".into())),
        (
            "belongs to no record",
            Box::new(|m| {
                let mut extra = m.parts[0].clone();
                extra.name = "extra".into();
                m.parts[4].bytes += 32;
                m.parts.insert(0, extra);
            }),
        ),
        ("not listed", Box::new(|m| m.parts.clear())),
        ("its record says otherwise", Box::new(|m| m.parts[2].bytes = 4999)),
        ("app id", Box::new(|m| m.app = "../up".into())),
        ("no process", Box::new(|m| m.processes.clear())),
        ("out of range", Box::new(|m| m.processes[0].pid = VirtualPid(0))),
        ("out of range", Box::new(|m| m.processes[0].pid = VirtualPid(4_194_305))),
        (
            "does not stand before it",
            Box::new(|m| m.processes[0].ppid = VirtualPid(7)),
        ),
        ("listed twice", Box::new(|m| m.processes[2].pid = VirtualPid(7))),
        ("listed twice", Box::new(|m| m.files[1].id = FileId(0))),
        ("pipe is not listed", Box::new(|m| m.pipes.clear())),
        ("shared memory is not listed", Box::new(|m| m.shmem[0].id = ShmId(4))),
        ("peer is not listed", Box::new(|m| drop(m.files.remove(11)))),
        ("watched file is not listed", Box::new(|m| drop(m.files.remove(1)))),
        ("not absolute", Box::new(|m| m.external[0].path = "usr".into())),
        ("NUL", Box::new(|m| m.external[0].path = "/a\0b".into())),
        (
            "out of place",
            Box::new(|m| m.shmem[0].runs = vec![(8192, 4096), (0, 904)]),
        ),
        ("out of place", Box::new(|m| m.shmem[0].runs[1].1 = u64::MAX)),
        ("capacity", Box::new(|m| m.pipes[0].capacity = 3)),
        (
            "setting",
            Box::new(|m| drop(m.network_settings.insert("../kernel/core_pattern".into(), "1".into()))),
        ),
        (
            "setting",
            Box::new(|m| drop(m.network_settings.insert("ipv4/ip_forward".into(), "1\n2".into()))),
        ),
        (
            "setting",
            Box::new(|m| drop(m.ipc_settings.insert("kernel.core_pattern".into(), "1".into()))),
        ),
        (
            "setting",
            Box::new(|m| drop(m.ipc_settings.insert("kernel.sem".into(), "1 x".into()))),
        ),
        (
            "host name",
            Box::new(|m| {
                m.namespaces[0] = Namespace::Uts {
                    hostname: "x".repeat(65),
                    domainname: String::new(),
                };
            }),
        ),
        (
            "setting",
            Box::new(|m| {
                m.namespaces[0] = Namespace::Net {
                    loopback: Loopback::Up,
                    settings: [("../core_pattern".to_owned(), "1".to_owned())].into(),
                };
            }),
        ),
        (
            "setting",
            Box::new(|m| {
                let mut objects = IpcObjects::default();
                objects.settings.insert("kernel.core_pattern".into(), "1".into());
                m.namespaces[1] = Namespace::Ipc(objects);
            }),
        ),
        ("leads up", Box::new(|m| mount(m, "/../etc", &[("", None)]))),
        ("without a directory", Box::new(|m| mount(m, "/mnt", &[]))),
        ("in no directory", Box::new(|m| mount(m, "/mnt", &[("a", None)]))),
        (
            "in no directory",
            Box::new(|m| mount(m, "/mnt", &[("", None), ("..", None)])),
        ),
        (
            "in no directory",
            Box::new(|m| mount(m, "/mnt", &[("", None), ("a/b", None)])),
        ),
        // A link may lead anywhere.
        (
            "in no directory",
            Box::new(|m| mount(m, "/mnt", &[("", None), ("a", Some("/etc")), ("a/passwd", None)])),
        ),
        (
            "listed twice",
            Box::new(|m| mount(m, "/mnt", &[("", None), ("a", None), ("a", Some("b"))])),
        ),
        ("no such IPC namespace", Box::new(|m| m.shmem[0].namespace = Some(0))),
        ("no such network", Box::new(|m| end_socket(m).network = Some(1))),
        (
            "kind of namespace",
            Box::new(|m| m.files[0].kind = opened("time", None)),
        ),
        (
            "no such namespace",
            Box::new(|m| m.files[0].kind = opened("uts", Some(1))),
        ),
        ("name is malformed", Box::new(|m| m.posix_queues[0].name = "..".into())),
        ("name is malformed", Box::new(|m| m.posix_queues[0].name = "a/b".into())),
        ("name is malformed", Box::new(|m| m.posix_queues[0].name.clear())),
        ("size is malformed", Box::new(|m| m.posix_queues[0].bytes_max = 0)),
        ("more than it can", Box::new(|m| m.posix_queues[0].bytes_max = 3)),
        (
            "order of messages is malformed",
            Box::new(|m| m.posix_queues[0].messages[0].priority = 32768),
        ),
        ("message queue is not listed", Box::new(|m| m.posix_queues.clear())),
        ("nothing leads to it", Box::new(|m| drop(m.files.remove(16)))),
        (
            "listed twice",
            Box::new(|m| m.posix_queues.push(m.posix_queues[0].clone())),
        ),
        ("peer is not listed", Box::new(|m| *end(m).0 = 91)),
        ("peer is not listed", Box::new(|m| drop(m.files.pop()))),
        ("malformed", Box::new(|m| end(m).1.mss = 0)),
        ("malformed", Box::new(|m| ring(m).sq_entries = 7)),
        ("malformed", Box::new(|m| ring(m).taken = u32::MAX)),
        ("malformed", Box::new(|m| ring(m).slots = (0, 2))),
        // IORING_SETUP_SQPOLL, NO_MMAP, and for one thread alone that nobody is.
        ("malformed", Box::new(|m| ring(m).flags |= 1 << 1)),
        ("malformed", Box::new(|m| ring(m).flags |= 1 << 14)),
        (
            "malformed",
            Box::new(|m| (ring(m).flags, ring(m).submitter) = (1 << 12, None)),
        ),
        // One that is never made again, more than were taken, and of a file that is not there.
        ("malformed", Box::new(|m| ring(m).waiting[0].operation = 18)),
        ("malformed", Box::new(|m| ring(m).waiting = vec![ring(m).waiting[0]; 4])),
        (
            "registered file is not listed",
            Box::new(|m| ring(m).waiting[0].file = FileId(4711)),
        ),
        ("another ring's", Box::new(|m| ring(m).entries = 4711)),
        (
            "registered file is not listed",
            Box::new(|m| ring(m).files[0].file = Some(FileId(99))),
        ),
        ("malformed", Box::new(|m| end(m).1.window = u32::MAX)),
        ("malformed", Box::new(|m| end(m).1.scales = Some((15, 0)))),
    ];
    for (expected, change) in changes {
        let error = manifest_with(change);
        assert!(error.to_string().contains(expected), "{expected:?} in {error}");
        assert_eq!(error.kind, Kind::Failed);
        assert_eq!(error.state.as_deref(), Some("nothing was started"));
    }
}

/// The writer does not seal what a reader would refuse.
#[test]
fn bad_processes_are_not_sealed() {
    let changes: Vec<Change<ProcessImage>> = vec![
        ("rlimits", Box::new(|p| p.process.rlimits.truncate(15))),
        (
            "signal actions",
            Box::new(|p| p.process.sigactions.push(SigAction::default())),
        ),
        ("listed twice", Box::new(|p| p.process.fds[1].fd = FdNum(0))),
        ("out of range", Box::new(|p| p.process.fds[1].fd = FdNum(-1))),
        ("no file 99", Box::new(|p| p.process.fds[1].file = FileId(99))),
        ("controlling terminal", Box::new(|p| p.process.ctty = Some(9))),
        (
            "no shared memory",
            Box::new(|p| {
                p.vmas[3].kind = VmaKind::Shm {
                    shm: ShmId(9),
                    offset: 0,
                    private: false,
                    read_only: false,
                };
            }),
        ),
        ("not the main thread", Box::new(|p| p.threads.swap(0, 1))),
        ("listed twice", Box::new(|p| p.threads[1].record.tid = VirtualPid(2))),
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
        ("out of place", Box::new(|p| p.vmas[6].end = 0x7fff_ffff_f000 + 4096)),
        ("out of place", Box::new(|p| p.vmas[0].start = 0x1000)),
        ("out of place", Box::new(|p| p.vmas[4].start += 1)),
        ("unknown flag", Box::new(|p| p.vmas[0].flags.push("zz".into()))),
        ("protection", Box::new(|p| p.vmas[0].prot = 8)),
        ("no private mapping", Box::new(|p| p.vmas[1].kind = VmaKind::Vvar)),
        ("not absolute", Box::new(|p| p.process.cwd = "here".into())),
        ("protection key 16", Box::new(|p| p.vmas[0].key = 16)),
        // Taken by the kernel for what can only be executed.
        ("protection key 2", Box::new(|p| p.vmas[1].key = 2)),
        (
            "protection keys 0x1",
            Box::new(|p| {
                p.process.keys = Some(Keys {
                    allocated: 1,
                    execute_only: 0,
                });
            }),
        ),
        (
            "protection keys",
            Box::new(|p| {
                p.process.keys = Some(Keys {
                    allocated: 2,
                    execute_only: 99,
                });
            }),
        ),
        (
            "huge pages of 4096 bytes",
            Box::new(|p| {
                p.vmas[1].kind = VmaKind::Huge {
                    page_bytes: 4096,
                    had: Vec::new(),
                };
            }),
        ),
        (
            "a huge page is out of place",
            Box::new(|p| {
                p.vmas[1].kind = VmaKind::Huge {
                    page_bytes: 8192,
                    had: vec![(0, 8192)],
                };
            }),
        ),
        ("ids are not those", Box::new(|p| p.sid = VirtualPid(5))),
        ("no such namespaces", Box::new(|p| p.process.namespaces = vec![0, 2])),
        ("no such namespaces", Box::new(|p| p.process.namespaces = vec![1, 0])),
    ];
    for (expected, change) in changes {
        let dir = tempfile::tempdir().unwrap();
        let mut first = sample::process(2, 1);
        change(&mut first);
        let images = [first, sample::process(7, 2)];
        let error = sample::try_write(&dir.path().join("bad"), sample::manifest(), &images).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected), "{expected:?} in {text}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
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
        let _ = super::core_read::parse("core", &bytes[..]);
        let _ = super::packed::parse(&bytes);
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
                    // As a JSON pointer has it (RFC 6901).
                    let key = key.replace('~', "~0").replace('/', "~1");
                    walk(item, format!("{at}/{key}"), leaves);
                }
            }
            _ => {}
        }
        leaves.push(at);
    }
    walk(value, String::new(), leaves);
}
