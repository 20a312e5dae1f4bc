//! Bounds on everything that is read from an appshot.
//!
//! They are far above what apps use and far below what would hurt the reader.
//! The writer is held to the same bounds, so that what is sealed can be opened.

/// The manifest with its seal. Queued pipe and socket data stand in it as hex.
pub const MANIFEST_BYTES: u64 = 512 << 20;
/// The seal line: `APPSHOT`, version, size, digest.
pub const SEAL_BYTES: usize = 128;
/// Parts of an appshot: cores and blobs.
pub const PARTS: usize = 16384;
pub const NAME_BYTES: usize = 255;
pub const PROCESSES: usize = 4096;
pub const THREADS_PER_PROCESS: usize = 32768;
pub const VMAS_PER_PROCESS: usize = 1 << 20;
pub const SEGMENTS_PER_CORE: u64 = 1 << 24;
/// Parts from which pages are borrowed, and appshots that such parts are of.
pub const LENDERS: usize = 1 << 16;
pub const PARENTS: usize = 256;
/// All notes of one core: 32768 threads with the largest xsave area fit.
pub const NOTES_BYTES: u64 = 2 << 30;
/// The content of one note.
pub const NOTE_BYTES: usize = 512 << 20;
/// From the legacy area with its header up to AMX and what may follow.
pub const XSAVE_BYTES: std::ops::RangeInclusive<usize> = 576..=16384;

/// Open file descriptions of the app.
pub const FILES: usize = 1 << 20;
pub const FDS_PER_PROCESS: usize = 1 << 20;
/// Largest descriptor number, from the kernel's default `fs.nr_open`.
pub const FD_MAX: i32 = 1 << 20;
pub const PIPES: usize = 1 << 20;
/// Different seccomp filters of the app, and those of one thread.
pub const SECCOMP_FILTERS: usize = 1 << 16;
pub const SECCOMP_PER_THREAD: usize = 8192;
/// BPF_MAXINSNS.
pub const SECCOMP_CODE: usize = 4096;
/// Settings of a network namespace: of each device some hundred.
pub const NETWORK_SETTINGS: usize = 4096;
/// __NEW_UTS_LEN.
pub const HOST_NAME_BYTES: usize = 64;
/// Namespaces of an app below its own.
pub const NAMESPACES: usize = PROCESSES;
/// What was done to a mount namespace; files of one mount, and what they hold together; attributes of one.
pub const MOUNTS: usize = 1 << 16;
pub const MOUNTED_FILES: usize = 1 << 16;
pub const MOUNTED_BYTES: u64 = 256 << 20;
pub const ATTRIBUTES: usize = 256;
/// System V semaphore sets, semaphores of one, adjustments of one; queues.
pub const SEMAPHORE_SETS: usize = 1 << 20;
pub const SEMAPHORES_PER_SET: usize = 65536;
pub const SEMAPHORE_VALUE: u16 = 32767;
pub const UNDOS_PER_SET: usize = 1 << 20;
pub const QUEUES: usize = 1 << 20;
pub const MESSAGES_PER_QUEUE: usize = 1 << 20;
/// POSIX message queues; HARD_MSGMAX, HARD_MSGSIZEMAX and MQ_PRIO_MAX of the kernel; what waits in all of
/// them; NOTIFY_COOKIE_LEN.
pub const POSIX_QUEUES: usize = 1 << 16;
pub const POSIX_MESSAGES: u32 = 65536;
pub const POSIX_MESSAGE_BYTES: u32 = 16 << 20;
pub const POSIX_PRIORITIES: u32 = 32768;
pub const POSIX_QUEUED_BYTES: u64 = 64 << 20;
pub const NOTICE_BYTES: usize = 32;
pub const SHMEM: usize = 1 << 20;
/// Programs of one app that take part in its snapshots.
pub const PARTICIPANTS: usize = 64;
pub const EXTERNAL: usize = 1 << 20;
pub const RUNS_PER_SHM: usize = 1 << 24;
pub const WATCHES_PER_FILE: usize = 1 << 20;
pub const PENDING_SIGNALS: usize = 1 << 20;
pub const POSIX_TIMERS: usize = 1 << 20;
pub const AUXV_WORDS: usize = 512;
pub const GUARDS_PER_VMA: usize = 1 << 20;
pub const VMA_FLAGS: usize = 32;
/// Of one thread or process; words of a memory policy's nodes.
pub const SETTINGS: usize = 64;
pub const NODE_WORDS: usize = 16;
pub const GROUPS: usize = 65536;
/// 64 CPUs a word.
pub const AFFINITY_WORDS: usize = 1024;
pub const SOCKET_OPTIONS: usize = 1024;
pub const SOCKET_OPTION_BYTES: usize = 65536;
/// `struct sockaddr_storage`.
pub const SOCKADDR_BYTES: usize = 128;
pub const MESSAGES_PER_SOCKET: usize = 1 << 20;
/// Segments, from the least that RFC 791 has a path carry; windows and their scale (RFC 7323).
pub const TCP_MSS: std::ops::RangeInclusive<u32> = 28..=65535;
pub const TCP_WINDOW: u32 = 1 << 30;
pub const TCP_WINDOW_SCALE: u8 = 14;
/// SCM_MAX_FD.
pub const RIGHTS_PER_MESSAGE: usize = 253;
pub const PIPE_CAPACITY: u32 = 1 << 31;
/// IORING_MAX_ENTRIES; the memory of as many, of 128 bytes each, with all the rest.
pub const URING_ENTRIES: u32 = 32768;
pub const URING_BYTES: usize = 8 << 20;
/// How much of an io_uring's past is made again.
pub const URING_REPLAYED: u32 = 1 << 26;
/// IORING_MAX_FIXED_FILES.
pub const URING_FILES: usize = 1 << 20;
pub const URING_BUFFERS: usize = 1024;
pub const URING_WAITING: usize = 16384;
/// `struct termios2`.
pub const TERMIOS_BYTES: usize = 44;
/// Indices of pseudo-terminals (`NR_UNIX98_PTY_MAX`).
pub const PTYS: u32 = 1 << 20;
/// The kernel buffers some 12 KiB a direction.
pub const PTY_QUEUE: usize = 1 << 16;

/// A path, also one longer than `PATH_MAX` that `d_path` can give.
pub const PATH_BYTES: usize = 65536;
/// 15 bytes in the kernel, three times as much after replacement of what is not UTF-8.
pub const COMM_BYTES: usize = 64;
pub const TEXT_BYTES: usize = 65536;

/// `PID_MAX_LIMIT` of 64-bit kernels.
pub const PID_MAX: i32 = 4_194_304;
/// Lowest address: `vm.mmap_min_addr` by default.
pub const ADDRESS_MIN: u64 = 0x10000;
/// End of the address space with four page-table levels, less the guard page.
pub const ADDRESS_END: u64 = 0x7fff_ffff_f000;

/// One part, packed or not.
pub const PART_BYTES: u64 = 1 << 44;
/// The index of a packed appshot.
pub const INDEX_BYTES: u64 = 16 << 20;

/// Sizes of huge pages that were set aside: a power of two, above an ordinary page.
pub fn is_huge_page(bytes: u64) -> bool {
    bytes.is_power_of_two() && bytes > super::PAGE && bytes <= 1 << 34
}
