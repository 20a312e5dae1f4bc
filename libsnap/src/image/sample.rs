//! A rich app for the tests: two processes, threads, a zombie, every kind of file.

use super::process::{ProcessImage, ThreadImage};
use super::records::*;
use super::writer::{Sealed, Writer};
use crate::ids::{FdNum, FileId, ShmId, VirtualPid};
use std::io::Write;
use std::path::Path;

pub const HEAP: u64 = 0x5555_5555_0000;

pub fn write(dest: &Path) -> Sealed {
    try_write(dest, manifest(), &[process(2, 1), process(7, 2)]).unwrap()
}

/// Writes the sample memory with whatever records are given.
pub fn try_write(dest: &Path, manifest: Manifest, images: &[ProcessImage]) -> crate::error::Result<Sealed> {
    let writer = Writer::create(dest)?;
    for image in images {
        let mut core = writer.core(image.process.pid)?;
        core.pages(HEAP, 3, &memory())?;
        core.finish(image)?;
    }
    for (name, bytes) in [("shm-0.data", 5000), ("unlinked-3.data", 10)] {
        let mut blob = writer.blob(name)?;
        blob.write_all(&vec![0x5a; bytes]).unwrap();
        blob.finish()?;
    }
    writer.close()?.seal(manifest)
}

/// Page 0 full, 1 zero, 2 and 3 full, 4 zero.
pub fn memory() -> Vec<u8> {
    let mut bytes = vec![0; 5 * 4096];
    for page in [0, 2, 3] {
        for (at, byte) in bytes[page * 4096..][..4096].iter_mut().enumerate() {
            *byte = (at * 7 + page) as u8 | 1;
        }
    }
    bytes
}

pub fn manifest() -> Manifest {
    let entry = |pid, ppid, life| SnapEntry {
        pid: VirtualPid(pid),
        ppid: VirtualPid(ppid),
        pgid: VirtualPid(2),
        sid: VirtualPid(2),
        exit_signal: 17,
        comm: "sample".into(),
        stopped: None,
        shares_files: false,
        shares_state: false,
        life,
    };
    let alive = |pid: i32| Life::Alive {
        part: format!("{pid}.core"),
    };
    Manifest {
        format: super::FORMAT,
        product: "Appshot test".into(),
        app: "sample".into(),
        created_unix_ms: 1_700_000_000_000,
        needs: Needs {
            arch: "x86_64".into(),
            kernel_release: "6.18.0".into(),
            page_size: 4096,
            xsave_bytes: 832,
            xcr0: 7,
            vdso_blake3: blake3::hash(b"vdso").to_hex().to_string(),
        },
        clocks: Clocks {
            realtime_ns: 5,
            monotonic_ns: 6,
            boottime_ns: 7,
            stood_ns: 8,
        },
        hostname: "host".into(),
        domainname: "(none)".into(),
        processes: vec![
            entry(2, 1, alive(2)),
            entry(7, 2, alive(7)),
            entry(
                8,
                2,
                Life::Zombie {
                    wait_status: 9,
                    uid: 1000,
                },
            ),
        ],
        files: files(),
        pipes: vec![PipeRecord {
            ino: 77,
            fifo: None,
            capacity: 65536,
            data: b"queued".to_vec(),
            packets: vec![2, 4],
        }],
        shmem: vec![
            ShmRecord {
                id: ShmId(0),
                kind: ShmKind::Memfd {
                    name: "shared".into(),
                    seals: 1,
                    mode: 0o777,
                },
                namespace: None,
                bytes: 8192 + 904,
                runs: vec![(0, 4096), (8192, 904)],
                part: Some("shm-0.data".into()),
                page_bytes: 0,
            },
            ShmRecord {
                id: ShmId(1),
                kind: ShmKind::Unlinked {
                    path: "/tmp/gone".into(),
                    unnamed: false,
                    mode: 0o600,
                    uid: 0,
                    gid: 0,
                    mtime_ns: 5,
                },
                namespace: None,
                bytes: 10,
                runs: vec![(0, 10)],
                part: Some("unlinked-3.data".into()),
                page_bytes: 0,
            },
        ],
        semaphores: vec![SemRecord {
            perm: IpcPerm {
                id: 32768,
                mode: 0o600,
                ..IpcPerm::default()
            },
            operated: true,
            values: vec![3, 0],
            pids: vec![VirtualPid(2), VirtualPid(0)],
            undo: vec![SemUndo {
                pid: VirtualPid(7),
                number: 1,
                adjust: -5,
            }],
        }],
        barrier: Some("appshot-0123456789abcdef".into()),
        network_settings: [("ipv4/ip_forward".to_owned(), "1".to_owned())].into(),
        ipc_settings: [("kernel.sem".to_owned(), "250 32000 100 128".to_owned())].into(),
        queues: vec![QueueRecord {
            perm: IpcPerm::default(),
            bytes_max: 16384,
            messages: vec![QueuedMessage {
                kind: 5,
                data: b"five".to_vec(),
            }],
        }],
        namespaces: vec![
            Namespace::Uts {
                hostname: "inner".into(),
                domainname: "(none)".into(),
            },
            Namespace::Cgroup,
        ],
        posix_queues: vec![PosixQueue {
            ino: 66,
            name: "jobs".into(),
            unlinked: true,
            file: SocketFile {
                mode: 0o620,
                uid: 0,
                gid: 5,
            },
            charged: 0,
            messages_max: 10,
            bytes_max: 64,
            messages: vec![PosixMessage {
                priority: 9,
                data: b"high".to_vec(),
            }],
            atime_ns: 5,
            mtime_ns: -5,
            notice: Some(QueueNotice {
                pid: VirtualPid(2),
                how: NoticeKind::Signal { signal: 10, value: 3 },
            }),
        }],
        seccomp: vec![SeccompFilter {
            log: true,
            code: vec![0x7fff_0000_0000_0006],
        }],
        participants: vec!["pool".into()],
        lenders: Vec::new(),
        parents: Vec::new(),
        external: vec![ExternalFile {
            path: "/usr/bin/true".into(),
            dev: 1,
            ino: 2,
            size: 3,
            mtime_ns: -4,
            build_id: Some("00ff".into()),
            must_equal: true,
        }],
        parts: Vec::new(),
    }
}

fn files() -> Vec<OpenFile> {
    let socket = |ino, peer| {
        FileKind::Socket(Box::new(SocketRecord {
            ino,
            domain: 1,
            kind: 1,
            protocol: 0,
            network: None,
            state: SocketState::Paired {
                name: vec![1, 0],
                peer,
                file: None,
            },
            options: vec![SockOpt {
                level: 1,
                name: 7,
                value: vec![0, 1, 0, 0],
            }],
            shutdown: 1,
            queue: vec![Message {
                data: vec![1, 2, 255],
                from: Vec::new(),
                sender: None,
                rights: vec![FileId(0)],
            }],
        }))
    };
    let end = |ino, peer, port| {
        FileKind::Socket(Box::new(SocketRecord {
            ino,
            domain: 2,
            kind: 1,
            protocol: 6,
            network: None,
            state: SocketState::Joined {
                name: vec![2, 0, 0x9c, port, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0],
                peer,
                connection: Box::new(Connection {
                    mss: 65495,
                    scales: Some((7, 7)),
                    sack: true,
                    timestamps: true,
                    window: 65536,
                    peer_window_max: 65536,
                    clamp: 65536,
                    unsent: vec![0, 255],
                }),
            },
            options: Vec::new(),
            shutdown: 2,
            queue: Vec::new(),
        }))
    };
    let time = TimerValue {
        interval_ns: 0,
        value_ns: 10,
    };
    let kinds = vec![
        FileKind::Path {
            path: "/etc/passwd".into(),
            offset: 12,
            namespace: None,
        },
        FileKind::Pipe { ino: 77 },
        FileKind::Memfd {
            shm: ShmId(0),
            offset: 0,
        },
        FileKind::Unlinked {
            shm: ShmId(1),
            offset: 1,
        },
        FileKind::Eventfd {
            count: 3,
            semaphore: true,
        },
        FileKind::Timerfd {
            clock: 1,
            ticks: 0,
            settime_flags: 0,
            time,
        },
        FileKind::Signalfd { mask: 1 << 63 },
        FileKind::Epoll {
            watches: vec![EpollWatch {
                fd: FdNum(5),
                file: FileId(1),
                events: 1,
                data: u64::MAX,
                away: true,
            }],
        },
        FileKind::Inotify {
            watches: vec![InotifyWatch {
                wd: 1,
                path: "/tmp".into(),
                mask: 2,
            }],
        },
        FileKind::Pidfd { pid: VirtualPid(7) },
        socket(90, 91),
        socket(91, 90),
        FileKind::Pty(Box::new(PtyRecord {
            index: 0,
            termios: vec![0; 44],
            winsize: [24, 80, 0, 0],
            packet_mode: false,
            locked: false,
            foreground: VirtualPid(2),
            sid: VirtualPid(2),
            file: SocketFile {
                mode: 0o620,
                uid: 0,
                gid: 5,
            },
            input: b"ls".to_vec(),
            output: b"$ ".to_vec(),
        })),
        FileKind::Outside {
            what: "/dev/pts/3".into(),
        },
        FileKind::PtySlave {
            index: 0,
            through_tty: false,
        },
        FileKind::Uring(Box::new(UringRecord {
            rings: 4711,
            entries: 4712,
            flags: 1 << 8,
            sq_entries: 8,
            cq_entries: 16,
            taken: 3,
            told: 2,
            rings_content: vec![7; 64],
            entries_content: vec![8; 64],
            clock: 1,
            events: Some(UringEvents {
                file: FileId(4),
                only_async: false,
            }),
            files: vec![UringFile {
                file: Some(FileId(1)),
                tag: 9,
            }],
            slots: (0, 1),
            waiting: vec![UringRequest {
                user_data: 5,
                operation: 6,
                flags: 0,
                priority: 0,
                by: VirtualPid(2),
                file: FileId(4),
                offset: 0,
                address: 0,
                len: 0,
                how: 1,
            }],
            ..UringRecord::default()
        })),
        FileKind::Mqueue {
            ino: 66,
            offset: 0,
            cloexec: true,
        },
        end(95, 96, 1),
        end(96, 95, 2),
    ];
    let owner = Some(FileOwner {
        kind: 1,
        id: VirtualPid(2),
        signal: 29,
    });
    let file = |(id, kind)| OpenFile {
        id: FileId(id),
        flags: 0o100_002,
        owner,
        locks: Vec::new(),
        kind,
    };
    (0..).zip(kinds).map(file).collect()
}

pub fn process(pid: i32, ppid: i32) -> ProcessImage {
    let fds = (0..17).map(|n| FdEntry {
        fd: FdNum(n),
        file: FileId(n as u32),
        cloexec: n > 2,
    });
    // As the manifest has them.
    let children = [7, 8].map(VirtualPid).into_iter().filter(|_| pid == 2);
    ProcessImage {
        process: ProcessRecord {
            pid: VirtualPid(pid),
            exe: "/usr/bin/sample".into(),
            cwd: "/".into(),
            root: "/".into(),
            umask: 0o22,
            personality: 0,
            dumpable: 1,
            child_subreaper: false,
            oom_score_adj: -5,
            coredump_filter: 0x33,
            thp_disable: false,
            mm: MmRecord {
                brk: HEAP,
                auxv: vec![6, 4096, 0, 0],
                ..MmRecord::default()
            },
            rlimits: vec![(1024, u64::MAX); 16],
            sigactions: vec![
                SigAction {
                    handler: 1,
                    ..SigAction::default()
                };
                64
            ],
            pending: vec![SigInfo([3; 16])],
            itimers: [TimerValue::default(); 3],
            posix_timers: vec![PosixTimer {
                id: 0,
                clock: 1,
                notify: 4,
                signal: 34,
                sigev_value: 9,
                thread: VirtualPid(pid * 10),
                time: TimerValue {
                    interval_ns: 1,
                    value_ns: 2,
                },
                overrun: 0,
            }],
            fds: fds.collect(),
            settings: vec![Setting {
                kind: SettingKind::Membarrier,
                value: 16,
            }],
            ctty: Some(0),
            namespaces: vec![0, 1],
            untold_stops: children.clone().take(1).collect(),
            untold_continues: children.skip(1).collect(),
            keys: Some(Keys {
                allocated: 0b1010,
                execute_only: 2,
            }),
        },
        comm: "sample".into(),
        ppid: VirtualPid(ppid),
        pgid: VirtualPid(2),
        sid: VirtualPid(2),
        threads: vec![thread(pid), thread(pid * 10)],
        vmas: vmas(),
    }
}

fn thread(tid: i32) -> ThreadImage {
    let mut regs = [0; 27];
    regs[16] = 0x40_1000; // rip
    regs[17] = 0x33; // cs
    regs[19] = 0x7fff_0000_1000; // rsp
    ThreadImage {
        record: ThreadRecord {
            settings: vec![Setting {
                kind: SettingKind::MemoryPolicy { nodes: vec![1] },
                value: 2,
            }],
            tid: VirtualPid(tid),
            comm: "sample".into(),
            comm_bytes: Some(b"s\xff ".to_vec()),
            sigmask: 1 << 40,
            pending: Vec::new(),
            sigaltstack: AltStack {
                sp: 1,
                flags: 2,
                size: 3,
            },
            tid_address: 0x1234,
            robust_list: (0x5678, 24),
            rseq: Some(Rseq {
                pointer: 0x9abc,
                size: 32,
                signature: 0x5305_3053,
                section: 0,
            }),
            creds: Creds {
                groups: vec![4, 27],
                cap_bounding: u64::MAX,
                ..Creds::default()
            },
            no_new_privs: false,
            seccomp: Seccomp::Filters(vec![0, 0]),
            pdeathsig: 0,
            timer_slack_ns: 50_000,
            sched: Sched {
                affinity: vec![3],
                runtime_ns: 1,
                deadline_ns: 2,
                period_ns: 3,
                ..Sched::default()
            },
            ioprio: 0,
            blocked_in: Blocked::Timed { left_ns: 17 },
        },
        regs,
        xsave: xsave(),
    }
}

/// x87, SSE and AVX; gdb takes the components from the XCR0 at byte 464.
fn xsave() -> Vec<u8> {
    let mut bytes = vec![0; 832];
    bytes[464] = 7;
    for (at, byte) in bytes.iter_mut().enumerate().skip(576) {
        *byte = (at % 13) as u8;
    }
    bytes
}

fn vmas() -> Vec<Vma> {
    let vma = |start: u64, pages: u64, prot, kind| Vma {
        start,
        end: start + pages * 4096,
        prot,
        kind,
        flags: vec!["dd".into()],
        huge_bytes: 0,
        guards: Vec::new(),
        policy: None,
        key: 0,
    };
    let path = || "/usr/bin/sample".to_string();
    vec![
        vma(
            0x40_0000,
            4,
            5,
            VmaKind::PrivateFile {
                path: path(),
                offset: 0,
            },
        ),
        // The stored run of pages 2 and 3 crosses from one mapping to the next.
        vma(HEAP, 3, 3, VmaKind::Anon),
        vma(HEAP + 3 * 4096, 100, 3, VmaKind::Anon),
        vma(
            0x7f00_0000_0000,
            2,
            3,
            VmaKind::Shm {
                shm: ShmId(0),
                offset: 4096,
                private: false,
                read_only: false,
            },
        ),
        vma(
            0x7f00_1000_0000,
            1,
            1,
            VmaKind::SharedFile {
                path: path(),
                offset: 4096,
                writable: false,
            },
        ),
        vma(0x7fff_f000_0000, 4, 1, VmaKind::Vvar),
        vma(0x7fff_f000_4000, 2, 5, VmaKind::Vdso),
    ]
}
