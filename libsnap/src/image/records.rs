//! The records of an appshot: what is known of each kernel object.
//!
//! A record is plain data: it holds no descriptor and calls no kernel. Records
//! are written as JSON (one note or one manifest field each), with unknown
//! fields refused, so that an appshot can be read, listed and compared on any
//! machine.

use super::mounts::Mounts;
use crate::ids::{FdNum, FileId, ShmId, VirtualPid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Everything that belongs to the app as a whole (the file `manifest`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the format, apart from the version of the product.
    pub format: u32,
    /// Product and version that wrote it, for people.
    pub product: String,
    /// App id.
    pub app: String,
    /// Milliseconds since the Unix epoch.
    pub created_unix_ms: u64,
    pub needs: Needs,
    pub clocks: Clocks,
    pub hostname: String,
    pub domainname: String,
    /// The snaplist: every process, parents before children.
    pub processes: Vec<SnapEntry>,
    /// Open file descriptions, shared by descriptors of all processes.
    pub files: Vec<OpenFile>,
    /// Pipes (and fifos), named by [`FileKind::Pipe`].
    pub pipes: Vec<PipeRecord>,
    /// Memory shared between mappings.
    pub shmem: Vec<ShmRecord>,
    /// System V semaphore sets and message queues.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub semaphores: Vec<SemRecord>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub queues: Vec<QueueRecord>,
    /// POSIX message queues of its own IPC namespace, named by [`FileKind::Mqueue`]. Those that have lost
    /// their names come first; then the oldest name.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub posix_queues: Vec<PosixQueue>,
    /// Settings of the app's own IPC namespace which are others than a new one has (`kernel.sem`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub ipc_settings: BTreeMap<String, String>,
    /// The same of a network namespace of its own, by name below `/proc/sys/net` (`ipv4/ip_forward`).
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub network_settings: BTreeMap<String, String>,
    /// By which name the peers of its [`SocketState::Established`] are kept away where it was.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub barrier: Option<String>,
    /// Namespaces that processes have made for themselves, below the app's own; processes name
    /// them by position.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub namespaces: Vec<Namespace>,
    /// Seccomp filters, each content once; threads name them by position.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub seccomp: Vec<SeccompFilter>,
    /// Names of those who take part in snapshots and restores ([`crate::participants`]).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub participants: Vec<String>,
    /// Files outside the appshot that must be there, unchanged, at restore.
    pub external: Vec<ExternalFile>,
    /// Parts from which cores borrow pages; cores name them by position, from 1 on.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub lenders: Vec<Lender>,
    /// Other appshots that hold pages of this one, each needed by a lender.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub parents: Vec<Parent>,
    /// The parts of this appshot with their digests.
    pub parts: Vec<Part>,
}

/// A namespace of an app, and what is in it (namespaces(7)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Namespace {
    Uts {
        hostname: String,
        domainname: String,
    },
    /// Of which the app's cgroup is the root.
    Cgroup,
    Ipc(IpcObjects),
    Net {
        loopback: Loopback,
        /// Settings which are others than those of a new one, by name below `/proc/sys/net`.
        #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
        settings: BTreeMap<String, String>,
    },
    Mnt(Mounts),
}

/// Semaphores and queues of an IPC namespace, and its settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpcObjects {
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub semaphores: Vec<SemRecord>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub queues: Vec<QueueRecord>,
    /// [`Manifest::ipc_settings`].
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub settings: BTreeMap<String, String>,
}

/// What the loopback device of a network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loopback {
    /// It was never up, and has no address.
    Fresh,
    Up,
    /// Down again, with its address.
    Down,
}

/// A core that holds pages of another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lender {
    /// Whose part it is, by position among the parents; this appshot's by default.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub parent: Option<u32>,
    pub part: String,
}

/// Another appshot, which stands in the same directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// BLAKE3 of its manifest file, lower-case hex: no other will do.
    pub identity: String,
    /// Its name when this appshot was taken. It may have another one by now.
    pub name: String,
}

/// One file of the appshot directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub name: String,
    pub bytes: u64,
    /// BLAKE3, lower-case hex.
    pub blake3: String,
}

/// What the machine must offer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Needs {
    /// `x86_64`
    pub arch: String,
    /// `uname -r` where the appshot was taken; told, not required.
    pub kernel_release: String,
    pub page_size: u64,
    /// Size of the xsave area and the state components in use (XCR0).
    pub xsave_bytes: u32,
    pub xcr0: u64,
    /// BLAKE3 of the vdso image; another one is bridged at restore.
    pub vdso_blake3: String,
}

/// The app's clocks at the freeze, in nanoseconds. All times of timers and of
/// time-outs count from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clocks {
    pub realtime_ns: i64,
    pub monotonic_ns: i64,
    pub boottime_ns: i64,
    /// From the freeze until the last timer was read: the restored app's clocks
    /// go on from there.
    #[serde(default)]
    pub stood_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapEntry {
    pub pid: VirtualPid,
    /// 0 or 1: the parent is outside the app (its init).
    pub ppid: VirtualPid,
    pub pgid: VirtualPid,
    pub sid: VirtualPid,
    /// Signal its parent gets when it ends.
    pub exit_signal: i32,
    pub comm: String,
    pub life: Life,
    /// Stopped by job control, with this signal.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub stopped: Option<i32>,
    /// It has its parent's descriptor table (clone(2), CLONE_FILES).
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub shares_files: bool,
    /// It has its parent's working and root directory and umask (CLONE_FS).
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub shares_state: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// State in the part of this name (an ELF core file).
    Alive { part: String },
    /// Ended, not yet reaped; the wait status its parent will read.
    Zombie {
        wait_status: i32,
        /// Its real user, which its parent reads too (waitid(2)).
        #[serde(skip_serializing_if = "is_zero", default)]
        uid: u32,
    },
}

/// An ordinary file outside the appshot that the app maps or has open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExternalFile {
    pub path: String,
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    pub mtime_ns: i64,
    /// GNU build-id, lower-case hex, where the file is an ELF that has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub build_id: Option<String>,
    /// Content must be the same (mapped, or open read-only). Otherwise it may
    /// have grown since.
    pub must_equal: bool,
}

/// State of one process besides threads and memory (note type 0x41505301).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRecord {
    pub pid: VirtualPid,
    pub exe: String,
    pub cwd: String,
    pub root: String,
    pub umask: u32,
    pub personality: u64,
    /// `prctl(PR_GET_DUMPABLE)`: 0, 1 or 2.
    pub dumpable: i32,
    pub child_subreaper: bool,
    pub oom_score_adj: i32,
    pub coredump_filter: u32,
    pub thp_disable: bool,
    pub mm: MmRecord,
    /// `(soft, hard)` for RLIMIT_CPU (0) to RLIMIT_RTTIME (15).
    pub rlimits: Vec<(u64, u64)>,
    /// Signals 1 to 64.
    pub sigactions: Vec<SigAction>,
    /// Pending for the whole process, oldest first.
    pub pending: Vec<SigInfo>,
    /// ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF.
    pub itimers: [TimerValue; 3],
    pub posix_timers: Vec<PosixTimer>,
    pub fds: Vec<FdEntry>,
    /// Controlling terminal: the index of a pseudo-terminal of this app.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub ctty: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub settings: Vec<Setting>,
    /// Positions in [`Manifest::namespaces`] of those that it is in, ascending; of each other kind
    /// it is in the app's own.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub namespaces: Vec<u32>,
    /// Children that were stopped by job control, of which it has not asked yet (waitid(2), WSTOPPED).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub untold_stops: Vec<VirtualPid>,
    /// Those that were continued (WCONTINUED).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub untold_continues: Vec<VirtualPid>,
    /// Protection keys (pkeys(7)); without it the process has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub keys: Option<Keys>,
}

/// Which protection keys are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keys {
    /// By pkey_alloc(2): a bit for each, never that of key 0.
    #[serde(default)]
    pub allocated: u16,
    /// By the kernel, for memory that can only be executed; 0: there never was any.
    #[serde(skip_serializing_if = "is_zero", default)]
    pub execute_only: u32,
}

/// Something that is not as in a fresh process, by what sets it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    pub kind: SettingKind,
    pub value: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SettingKind {
    /// PR_SET_TSC.
    Tsc,
    /// ARCH_SET_CPUID.
    Cpuid,
    /// PR_MCE_KILL.
    MachineCheck,
    /// PR_SET_IO_FLUSHER.
    IoFlusher,
    /// PR_SET_SPECULATION_CTRL, of this kind of speculation.
    Speculation(u32),
    /// PR_SET_MDWE.
    WriteExecute,
    /// PR_SET_MEMORY_MERGE.
    MemoryMerge,
    /// membarrier(2), one way to be registered.
    Membarrier,
    /// mlockall(2) of what is mapped from now on.
    LockFuture,
    /// set_mempolicy(2), of which the value is the mode: 64 nodes a word.
    MemoryPolicy { nodes: Vec<u64> },
}

/// Marks in the address space (`prctl(2)` PR_SET_MM_MAP).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmRecord {
    pub start_code: u64,
    pub end_code: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub brk: u64,
    pub start_stack: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
    /// Pairs of words, as in `/proc/PID/auxv`.
    pub auxv: Vec<u64>,
}

/// `struct sigaction` as the kernel keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SigAction {
    pub handler: u64,
    pub flags: u64,
    pub restorer: u64,
    pub mask: u64,
}

/// A raw `siginfo_t`: 128 bytes as 16 words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SigInfo(pub [u64; 16]);

/// `struct itimerval`/`itimerspec` in nanoseconds; `value_ns` 0 means disarmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TimerValue {
    pub interval_ns: u64,
    /// When it is due, counted from the freeze; 0: not armed. On clocks of CPU
    /// time, which stood still: time left.
    pub value_ns: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosixTimer {
    pub id: i32,
    pub clock: i32,
    /// `sigev_notify`, with SIGEV_THREAD_ID where set.
    pub notify: i32,
    pub signal: i32,
    pub sigev_value: u64,
    /// Target thread of SIGEV_THREAD_ID (virtual), else 0.
    pub thread: VirtualPid,
    pub time: TimerValue,
    pub overrun: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FdEntry {
    pub fd: FdNum,
    pub file: FileId,
    pub cloexec: bool,
}

/// State of one thread (note type 0x41505302). Registers stand in the standard notes
/// NT_PRSTATUS and NT_X86_XSTATE beside it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ThreadRecord {
    pub tid: VirtualPid,
    pub comm: String,
    /// The name as the kernel has it, where that is no text, or begins or ends in
    /// blanks.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub comm_bytes: Option<Vec<u8>>,
    pub sigmask: u64,
    pub pending: Vec<SigInfo>,
    pub sigaltstack: AltStack,
    /// `set_tid_address`: cleared and woken when the thread ends.
    pub tid_address: u64,
    pub robust_list: (u64, u64),
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rseq: Option<Rseq>,
    pub creds: Creds,
    pub no_new_privs: bool,
    #[serde(skip_serializing_if = "Seccomp::is_off", default)]
    pub seccomp: Seccomp,
    pub pdeathsig: i32,
    pub timer_slack_ns: u64,
    pub sched: Sched,
    /// `ioprio_get(2)` of the thread; 0 when never set.
    pub ioprio: i32,
    pub blocked_in: Blocked,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub settings: Vec<Setting>,
}

/// A program that judges system calls (seccomp(2)).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeccompFilter {
    /// SECCOMP_FILTER_FLAG_LOG.
    pub log: bool,
    /// `struct sock_filter` as little-endian words: code, jt, jf, k.
    pub code: Vec<u64>,
}

/// What restricts a thread's system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    #[default]
    Off,
    /// read, write, exit and sigreturn only.
    Strict,
    /// Positions in [`Manifest::seccomp`], the oldest filter first.
    Filters(Vec<u32>),
}

impl Seccomp {
    pub fn is_off(&self) -> bool {
        *self == Seccomp::Off
    }

    /// The thread's filters, the oldest first.
    pub fn filters(&self) -> &[u32] {
        match self {
            Seccomp::Filters(filters) => filters,
            Seccomp::Off | Seccomp::Strict => &[],
        }
    }
}

/// What to do with the system call in which the thread was interrupted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocked {
    /// It was in user code, or the call had ended: registers are complete.
    No,
    /// The kernel's restart code (-ERESTART…) stands in rax: the kernel
    /// restarts the call, or ends it with EINTR for a handler, as it would have.
    Restart,
    /// A call with a relative time-out, this long after the freeze: it is entered
    /// again for what is left then.
    Timed { left_ns: u64 },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AltStack {
    pub sp: u64,
    pub flags: i32,
    pub size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rseq {
    pub pointer: u64,
    pub size: u32,
    pub signature: u32,
    /// The critical section it was in the middle of; 0 for none.
    #[serde(default)]
    pub section: u64,
}

/// Credentials of a thread (`credentials(7)`, `capabilities(7)`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Creds {
    /// Real, effective, saved, file system.
    pub uid: [u32; 4],
    pub gid: [u32; 4],
    pub groups: Vec<u32>,
    pub cap_inheritable: u64,
    pub cap_permitted: u64,
    pub cap_effective: u64,
    pub cap_bounding: u64,
    pub cap_ambient: u64,
    pub securebits: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sched {
    pub policy: u32,
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    /// CPU mask, 64 CPUs a word.
    pub affinity: Vec<u64>,
    /// SCHED_DEADLINE; of an ordinary thread the slice that it has asked for.
    #[serde(skip_serializing_if = "is_none", default)]
    pub runtime_ns: u64,
    #[serde(skip_serializing_if = "is_none", default)]
    pub deadline_ns: u64,
    #[serde(skip_serializing_if = "is_none", default)]
    pub period_ns: u64,
}

/// Two-letter flags of `/proc/PID/smaps` that a mapping keeps; a restore applies
/// them again.
pub const VMA_FLAGS: [&str; 14] = [
    "dc", "dd", "wf", "hg", "nh", "mg", "sr", "rr", "lo", "lf", "nr", "gd", "dp", "sl",
];

/// One mapping (note type 0x41505303 holds all of a process, in address order).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vma {
    pub start: u64,
    pub end: u64,
    /// PROT_READ (1), PROT_WRITE (2), PROT_EXEC (4).
    pub prot: u32,
    pub kind: VmaKind,
    /// Two-letter flags of `/proc/PID/smaps` that are re-applied
    /// (`dc dd wf hg nh mg sr rr lo lf nr gd dp sl`).
    pub flags: Vec<String>,
    /// How much of it was in transparent huge pages (`AnonHugePages` of smaps).
    #[serde(skip_serializing_if = "is_none", default)]
    pub huge_bytes: u64,
    /// Parts of it that nobody may touch, from and to (MADV_GUARD_INSTALL).
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub guards: Vec<(u64, u64)>,
    /// mbind(2).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy: Option<MemoryPolicy>,
    /// Protection key (pkeys(7)).
    #[serde(skip_serializing_if = "is_zero", default)]
    pub key: u32,
}

/// On which nodes memory is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryPolicy {
    /// MPOL_BIND and so on, with flags.
    pub mode: u64,
    /// 64 nodes a word.
    pub nodes: Vec<u64>,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VmaKind {
    /// Private anonymous memory, heap and stacks.
    Anon,
    /// A private mapping of a file; changed pages are in the core file.
    PrivateFile {
        path: String,
        offset: u64,
    },
    /// A shared mapping of a file; the file holds the content.
    /// `writable` tells whether the descriptor must be open for writing.
    SharedFile {
        path: String,
        offset: u64,
        writable: bool,
    },
    /// A mapping of a shared-memory object. `private` is a private mapping of it, `read_only` a shared one
    /// that mprotect(2) cannot make writable.
    Shm {
        shm: ShmId,
        offset: u64,
        private: bool,
        #[serde(skip_serializing_if = "std::ops::Not::not", default)]
        read_only: bool,
    },
    /// Memory of an io_uring, by its name there; the offset says which it is.
    Uring {
        memory: u64,
        offset: u64,
    },
    /// Private memory in huge pages that were set aside (MAP_HUGETLB).
    Huge {
        page_bytes: u64,
        /// Where there are pages, from and to.
        had: Vec<(u64, u64)>,
    },
    /// `[vvar]`, `[vvar_vclock]`: provided by the kernel.
    Vvar,
    Vdso,
}

/// Memory shared by mappings and descriptors; its content is in a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShmRecord {
    pub id: ShmId,
    pub kind: ShmKind,
    /// Position in [`Manifest::namespaces`] of the IPC namespace that a System V segment is in,
    /// where that is not the app's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub namespace: Option<u32>,
    pub bytes: u64,
    /// Runs of data `(offset, length)`; the part holds them back to back.
    pub runs: Vec<(u64, u64)>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub part: Option<String>,
    /// Of huge pages that were set aside (hugetlb); 0: its pages are ordinary ones.
    #[serde(skip_serializing_if = "is_none", default)]
    pub page_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ShmKind {
    /// `mmap(MAP_SHARED|MAP_ANONYMOUS)`.
    Anon,
    Memfd {
        name: String,
        seals: i32,
        mode: u32,
    },
    /// A regular file that has no name any more; `path` is the last one it had.
    /// `unnamed`: it never had one (O_TMPFILE), and the last part of `path` means nothing.
    Unlinked {
        path: String,
        #[serde(skip_serializing_if = "std::ops::Not::not", default)]
        unnamed: bool,
        mode: u32,
        uid: u32,
        gid: u32,
        mtime_ns: i64,
    },
    /// System V shared memory.
    Sysv {
        id: i32,
        /// That it was made with, where it is removed.
        key: i32,
        mode: u32,
        uid: u32,
        gid: u32,
        cuid: u32,
        cgid: u32,
        /// It ends with its last attachment (IPC_RMID).
        #[serde(skip_serializing_if = "std::ops::Not::not", default)]
        removed: bool,
        /// It stays in memory (SHM_LOCK).
        #[serde(skip_serializing_if = "std::ops::Not::not", default)]
        locked: bool,
        /// The size that was asked for, where huge pages made it more.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        asked_bytes: Option<u64>,
    },
}

impl ShmKind {
    /// The id of a segment of System V.
    pub fn sysv_id(&self) -> Option<i32> {
        match self {
            ShmKind::Sysv { id, .. } => Some(*id),
            _ => None,
        }
    }
}

/// What all System V objects have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IpcPerm {
    pub id: i32,
    pub key: i32,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// The creator, who keeps rights over the object.
    pub cuid: u32,
    pub cgid: u32,
}

/// A set of System V semaphores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SemRecord {
    pub perm: IpcPerm,
    /// semop(2) has changed the set: its `sem_otime` is not 0.
    pub operated: bool,
    pub values: Vec<u16>,
    /// Who changed each last; 0: nobody, or a process that is gone.
    pub pids: Vec<VirtualPid>,
    /// What the end of a process does to the set (SEM_UNDO).
    pub undo: Vec<SemUndo>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SemUndo {
    pub pid: VirtualPid,
    pub number: u16,
    /// Added to the value when the process ends; -32768 to 32767, not 0.
    pub adjust: i32,
}

/// A System V message queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueRecord {
    pub perm: IpcPerm,
    pub bytes_max: u64,
    /// The oldest first.
    pub messages: Vec<QueuedMessage>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueuedMessage {
    pub kind: i64,
    #[serde(with = "hex_bytes")]
    pub data: Vec<u8>,
}

/// A POSIX message queue (mq_overview(7)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosixQueue {
    /// Inode where the appshot was taken: its name in the appshot.
    pub ino: u64,
    /// As the kernel has it, without a slash.
    pub name: String,
    /// It has lost this name, and is there by its descriptors alone.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub unlinked: bool,
    pub file: SocketFile,
    /// To whom it is charged (RLIMIT_MSGQUEUE): the real user of who made it.
    pub charged: u32,
    pub messages_max: u32,
    pub bytes_max: u32,
    /// In the order in which they would be received.
    pub messages: Vec<PosixMessage>,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub notice: Option<QueueNotice>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PosixMessage {
    pub priority: u32,
    #[serde(with = "hex_bytes")]
    pub data: Vec<u8>,
}

/// Who is to be told of the next message in an empty queue (mq_notify(3)).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueNotice {
    pub pid: VirtualPid,
    pub how: NoticeKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NoticeKind {
    /// SIGEV_NONE.
    Nothing,
    /// SIGEV_SIGNAL.
    Signal { signal: i32, value: u64 },
    /// SIGEV_THREAD: these bytes, through this netlink socket.
    Thread {
        file: FileId,
        #[serde(with = "hex_bytes")]
        cookie: Vec<u8>,
    },
}

/// A pipe: its two ends are [`OpenFile`]s.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipeRecord {
    /// Inode of the pipe where the appshot was taken: its name in the appshot.
    pub ino: u64,
    /// Path of a fifo; none for a pipe.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fifo: Option<String>,
    pub capacity: u32,
    #[serde(with = "hex_bytes")]
    pub data: Vec<u8>,
    /// Lengths of the packets that `data` consists of; none for plain bytes.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub packets: Vec<u32>,
}

/// An open file description.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenFile {
    pub id: FileId,
    /// Flags of `fcntl(F_GETFL)`.
    pub flags: i32,
    /// `F_SETOWN_EX` type and id (0: of nobody, or of somebody who has ended), F_SETSIG; absent
    /// when never set.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub owner: Option<FileOwner>,
    /// Advisory locks held through this description.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub locks: Vec<FileLock>,
    pub kind: FileKind,
}

/// An advisory lock: flock(2), or fcntl(2) of an open file description or a process. Or a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(deny_unknown_fields)]
pub struct FileLock {
    pub kind: LockKind,
    pub write: bool,
    pub start: u64,
    /// 0: to the end of the file, however long it grows.
    pub len: u64,
    /// Owner of a process lock.
    pub pid: VirtualPid,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "snake_case")]
pub enum LockKind {
    Flock,
    OpenFile,
    Process,
    /// F_SETLEASE, by this process.
    Lease,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileOwner {
    /// F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP.
    pub kind: i32,
    pub id: VirtualPid,
    pub signal: i32,
}

/// What an open file description refers to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// Regular file, directory or device by path.
    Path {
        path: String,
        offset: u64,
        /// The mount namespace in which it has this name, where that is not the app's own.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        namespace: Option<u32>,
    },
    /// A regular file that has no name any more: an object of its own.
    Unlinked {
        shm: ShmId,
        offset: u64,
    },
    /// One end of a pipe or fifo; the access mode is in the flags.
    Pipe {
        ino: u64,
    },
    Memfd {
        shm: ShmId,
        offset: u64,
    },
    Eventfd {
        count: u64,
        semaphore: bool,
    },
    Timerfd {
        clock: i32,
        ticks: u64,
        settime_flags: i32,
        time: TimerValue,
    },
    Signalfd {
        mask: u64,
    },
    Epoll {
        watches: Vec<EpollWatch>,
    },
    Inotify {
        watches: Vec<InotifyWatch>,
    },
    Pidfd {
        pid: VirtualPid,
    },
    /// A namespace, opened by a link below `/proc/PID/ns` of this name: the app's own, or one of
    /// [`Manifest::namespaces`].
    Namespace {
        name: String,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        number: Option<u32>,
    },
    Uring(Box<UringRecord>),
    /// A POSIX message queue; the offset is that of its text (read(2)).
    Mqueue {
        ino: u64,
        offset: u64,
        /// Its flags show that it was opened with O_CLOEXEC, whatever its descriptors have.
        #[serde(skip_serializing_if = "std::ops::Not::not", default)]
        cloexec: bool,
    },
    Socket(Box<SocketRecord>),
    /// The master of a pseudo-terminal, with the state of both sides.
    Pty(Box<PtyRecord>),
    /// The slave of the pseudo-terminal with this index, opened as
    /// `/dev/pts/INDEX`, or as `/dev/tty` by a process that it controls.
    PtySlave {
        index: u32,
        through_tty: bool,
    },
    /// Something outside the app that the caller said is to be replaced
    /// (the terminal or pipe the app was started on, as stdin, stdout, stderr).
    Outside {
        what: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpollWatch {
    /// Number under which it was added.
    pub fd: FdNum,
    pub file: FileId,
    pub events: u32,
    pub data: u64,
    /// The number names another file now, or none: another descriptor keeps
    /// the watched one.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub away: bool,
}

impl EpollWatch {
    /// It was made for one event (EPOLLONESHOT), which has come: it tells nothing more,
    /// not even errors, until it is changed.
    pub fn is_disarmed(&self) -> bool {
        /// EP_PRIVATE_BITS of the kernel: WAKEUP, ONESHOT, ET, EXCLUSIVE.
        const PRIVATE: u32 = 0xf << 28;
        self.events & !PRIVATE == 0
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InotifyWatch {
    pub wd: i32,
    pub path: String,
    pub mask: u32,
}

/// An io_uring at rest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UringRecord {
    /// Names of its memories in the appshot: that of its rings, and that of what is submitted.
    pub rings: u64,
    pub entries: u64,
    /// IORING_SETUP_*, without those that only say how large it was to be.
    pub flags: u32,
    pub sq_entries: u32,
    pub cq_entries: u32,
    /// How many entries the kernel has taken, and how many completions it has told.
    pub taken: u32,
    pub told: u32,
    #[serde(with = "hex_bytes")]
    pub rings_content: Vec<u8>,
    #[serde(with = "hex_bytes")]
    pub entries_content: Vec<u8>,
    /// The only thread that may submit (IORING_SETUP_SINGLE_ISSUER).
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub submitter: Option<VirtualPid>,
    pub clock: i32,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub events: Option<UringEvents>,
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub files: Vec<UringFile>,
    /// Places among them that the kernel chooses from, from and to.
    pub slots: (u32, u32),
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub buffers: Vec<UringBuffer>,
    /// The only process that has it, where there is but one: the buffers are its.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub user: Option<VirtualPid>,
    /// Limits of its workers, bounded and unbounded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub workers: Option<(u32, u32)>,
    /// Main threads that have registered it for themselves, and under which number.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub registered: Vec<(VirtualPid, u32)>,
    /// Requests among those taken that wait for their file to be ready.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub waiting: Vec<UringRequest>,
}

impl UringRecord {
    pub fn memories(&self) -> [u64; 2] {
        [self.rings, self.entries]
    }
}

/// A request of an io_uring that waits, and has done nothing yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UringRequest {
    /// What its completion is told by.
    pub user_data: u64,
    /// IORING_OP_*.
    pub operation: u8,
    /// IOSQE_*.
    pub flags: u8,
    pub priority: u16,
    /// Whose it is: the main thread of this process has one descriptor at least of the ring, and of the
    /// file.
    pub by: VirtualPid,
    pub file: FileId,
    /// As they stand in its entry.
    pub offset: u64,
    pub address: u64,
    pub len: u32,
    pub how: u32,
}

/// The eventfd that is told of completions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UringEvents {
    pub file: FileId,
    /// IORING_REGISTER_EVENTFD_ASYNC.
    pub only_async: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UringFile {
    /// None: a place without one.
    pub file: Option<FileId>,
    pub tag: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UringBuffer {
    /// 0: a place without one.
    pub address: u64,
    pub bytes: u64,
    pub tag: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PtyRecord {
    pub index: u32,
    /// `struct termios2` of the slave.
    #[serde(with = "hex_bytes")]
    pub termios: Vec<u8>,
    pub winsize: [u16; 4],
    pub packet_mode: bool,
    pub locked: bool,
    /// Owner and mode of `/dev/pts/INDEX`.
    pub file: SocketFile,
    /// Foreground process group, 0 for none.
    pub foreground: VirtualPid,
    /// The session that it controls, 0 for none.
    pub sid: VirtualPid,
    /// Written by the master, not yet read by the slave. In canonical mode 0x04
    /// ends a line that has no newline, and 0x16 quotes the byte after it.
    #[serde(with = "hex_bytes")]
    pub input: Vec<u8>,
    /// Written by the slave, not yet read by the master.
    #[serde(with = "hex_bytes")]
    pub output: Vec<u8>,
}

/// A socket of any family that is carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketRecord {
    /// Inode where the appshot was taken: its name in the appshot.
    pub ino: u64,
    pub domain: i32,
    pub kind: i32,
    pub protocol: i32,
    /// Position in [`Manifest::namespaces`] of the network that it was made in, where that is not
    /// the app's own.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub network: Option<u32>,
    pub state: SocketState,
    /// Raw socket options `(level, name, value)`, set in this order.
    pub options: Vec<SockOpt>,
    /// Bits: 1 receive, 2 send.
    pub shutdown: u8,
    /// Queued data not yet read by the app, one entry a message (one for a stream).
    pub queue: Vec<Message>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    #[serde(with = "hex_bytes")]
    pub data: Vec<u8>,
    /// Raw address of the sender, where it has one.
    #[serde(with = "hex_bytes")]
    pub from: Vec<u8>,
    /// Who sent it (SCM_CREDENTIALS), where the kernel noted that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub sender: Option<Sender>,
    /// Descriptors that come with it (SCM_RIGHTS), by the files that they lead to.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub rights: Vec<FileId>,
}

/// `struct ucred`, the process by the app's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sender {
    pub pid: VirtualPid,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SockOpt {
    pub level: i32,
    pub name: i32,
    #[serde(with = "hex_bytes")]
    pub value: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SocketState {
    /// Neither bound nor connected.
    Fresh,
    /// Bound; raw `sockaddr` bytes. `file` is the owner and mode of a unix path.
    Bound {
        #[serde(with = "hex_bytes")]
        name: Vec<u8>,
        file: Option<SocketFile>,
    },
    Listening {
        #[serde(with = "hex_bytes")]
        name: Vec<u8>,
        file: Option<SocketFile>,
        backlog: i32,
    },
    /// Unix: connected with the socket of this inode, inside the app.
    /// 0: the peer has been closed. `file` is that of a path bound by a
    /// datagram socket; the name of an accepted stream is its listener's.
    Paired {
        #[serde(with = "hex_bytes")]
        name: Vec<u8>,
        peer: u64,
        #[serde(skip_serializing_if = "Option::is_none", default)]
        file: Option<SocketFile>,
    },
    /// Unix: connected to the listener of this inode, inside the app, which has not accepted
    /// it yet; the others before it come first.
    Waiting {
        #[serde(with = "hex_bytes")]
        name: Vec<u8>,
        listener: u64,
        place: u32,
    },
    /// UDP connected to an address.
    Connected {
        #[serde(with = "hex_bytes")]
        name: Vec<u8>,
        #[serde(with = "hex_bytes")]
        peer: Vec<u8>,
    },
    /// TCP: connected with the socket of this inode, inside the app, whose name is the
    /// address of the peer.
    Joined {
        #[serde(with = "hex_bytes")]
        name: Vec<u8>,
        peer: u64,
        connection: Box<Connection>,
    },
    /// TCP: a connection to outside that goes on where it was (`--tcp=established`).
    Established {
        #[serde(with = "hex_bytes")]
        name: Vec<u8>,
        #[serde(with = "hex_bytes")]
        peer: Vec<u8>,
        connection: Box<Connection>,
        numbers: Numbers,
    },
    /// A connection to outside that is restored as closed by its peer (`--tcp=close`).
    Severed,
    /// TCP: a connection to outside that somebody holds open, and gives back with the restore. Where
    /// nobody does it is as severed.
    Carried {
        #[serde(with = "hex_bytes")]
        name: Vec<u8>,
        #[serde(with = "hex_bytes")]
        peer: Vec<u8>,
        /// What tells it from all others of that boot (SO_COOKIE).
        cookie: u64,
    },
}

/// What an end of a TCP connection and a peer outside the app count by (RFC 9293).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Numbers {
    /// Of the first byte that is not acknowledged: of [`Connection::unsent`], or after all.
    pub acknowledged: u32,
    /// How many of these bytes were sent already.
    pub in_flight: u32,
    /// Of the next byte that comes; the peer's end does not count.
    pub received: u32,
    /// Of the segment by which the peer has told its window last, and that window.
    pub told_at: u32,
    pub peer_window: u32,
    /// The clock of its time stamps (TCP_TIMESTAMP), where they have agreed on these.
    pub timestamp: u32,
    pub peer_ended: PeerEnd,
}

/// Whether the peer has ended its side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerEnd {
    #[default]
    No,
    /// Before the app has ended its own, which it may not have.
    First,
    /// After that.
    Second,
}

/// A TCP connection as one end has it. Its sequence numbers are nobody else's where both are the
/// app's, and not kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// The largest segment that the peer takes.
    pub mss: u32,
    /// By what powers of two the peer's windows and its own are told, where they are.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub scales: Option<(u8, u8)>,
    pub sack: bool,
    pub timestamps: bool,
    /// How much more it has said that the peer may send.
    pub window: u32,
    /// The most that the peer has ever said.
    pub peer_window_max: u32,
    /// TCP_WINDOW_CLAMP.
    pub clamp: u32,
    /// What the app has written to it and the peer has not received, or not told so.
    #[serde(with = "hex_bytes")]
    pub unsent: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SocketFile {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// Bytes as lower-case hex in JSON.
pub mod hex_bytes {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            text.push(char::from(DIGITS[usize::from(byte >> 4)]));
            text.push(char::from(DIGITS[usize::from(byte & 15)]));
        }
        to.serialize_str(&text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        if !text.len().is_multiple_of(2) || !text.is_ascii() {
            return Err(D::Error::custom("hex text of odd length or with other letters"));
        }
        (0..text.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&text[at..at + 2], 16).map_err(D::Error::custom))
            .collect()
    }
}
