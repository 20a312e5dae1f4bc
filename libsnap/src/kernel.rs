//! What this kernel and processor can do, found out by trying.

use crate::error::{Error, Kind, Result};
use crate::ids::HostPid;
use crate::kernel_memory::KernelMemory;
use crate::sys::uffd::{self, Userfault};
use crate::sys::{fd as sysfd, memory as mem, ptrace, task};
use crate::target::Feature;
use std::fs;
use std::fs::File;
use std::sync::OnceLock;

/// State components of the processor that the kernel saves (XCR0).
pub fn xcr0() -> u64 {
    if !std::arch::is_x86_feature_detected!("xsave") {
        return 3; // x87 and SSE: what every x86-64 has
    }
    xgetbv()
}

fn xgetbv() -> u64 {
    crate::sys::xcr0()
}

/// Who is judged by a seccomp filter may neither read nor suspend those of others.
pub fn require_unfiltered(what: impl Into<String>) -> Result<()> {
    if is_filtered() {
        return Err(Error::new(Kind::Unavailable, what)
            .because("this process runs under a seccomp filter, and cannot suspend those of an app")
            .needs("to run without one")
            .fix("in a container: --security-opt seccomp=unconfined; in a systemd unit: no SystemCallFilter="));
    }
    Ok(())
}

/// Without it nobody can tell which descriptors and which memory processes share.
pub fn require_comparing(what: impl Into<String>) -> Result<()> {
    let own = crate::ids::HostPid(std::process::id() as i32);
    match task::kcmp(own, own, task::Compare::Vm, 0, 0) {
        Ok(_) => Ok(()),
        Err(errno) => Err(Error::new(Kind::Unavailable, what)
            .because(format!("what its processes share cannot be told: kcmp: {errno}"))
            .needs("a kernel with CONFIG_KCMP=y, and CAP_SYS_PTRACE")),
    }
}

/// What only the kernel's memory tells, where that cannot be read.
pub fn unseen() -> Vec<String> {
    const ONLY_THERE: [&str; 3] = [
        "rules of Landlock (landlock(7))",
        "keys of listening TCP sockets (TCP_MD5SIG)",
        "unconnected sockets that are to send no more (shutdown(2))",
    ];
    match KernelMemory::open() {
        Ok(_) => Vec::new(),
        Err(_) => ONLY_THERE.map(str::to_owned).to_vec(),
    }
}

fn is_filtered() -> bool {
    task::seccomp_mode().is_ok_and(|mode| mode != 0)
}

/// The vdso that this kernel gives to processes.
pub fn vdso() -> Option<Vec<u8>> {
    static FOUND: OnceLock<Option<Vec<u8>>> = OnceLock::new();
    FOUND.get_or_init(read_vdso).clone()
}

fn read_vdso() -> Option<Vec<u8>> {
    let own = crate::ids::HostPid(std::process::id() as i32);
    let mappings = crate::proc::text(own, "maps").ok()?;
    let line = mappings.lines().find(|line| line.ends_with("[vdso]"))?;
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let mut bytes = vec![0; (end - start) as usize];
    mem::read(own, start, &mut bytes).ok()?;
    Some(bytes)
}

/// Every kernel feature the engine uses, probed by use.
/// Whether smaps tells which mappings may have guards (MADV_GUARD_INSTALL); so it does where
/// there are none.
pub fn tells_guards() -> bool {
    static TOLD: OnceLock<bool> = OnceLock::new();
    *TOLD.get_or_init(|| {
        let Ok(page) = mem::Guarded::new() else { return true };
        let own = crate::proc::mappings(crate::ids::HostPid(std::process::id() as i32)).unwrap_or_default();
        let mut own = own.iter().filter(|m| (m.start..m.end).contains(&page.address()));
        own.any(|mapping| mapping.has(crate::memory::GUARDED))
    })
}

pub fn features() -> Vec<Feature> {
    let own = crate::ids::HostPid(std::process::id() as i32);
    let feature = |name: &str, present, required, needed_for: &str, how: &str| Feature {
        name: name.into(),
        present,
        required,
        needed_for: needed_for.into(),
        how: how.into(),
    };
    let cap = |cap| caps::has_cap(None, caps::CapSet::Effective, cap).unwrap_or(false);
    vec![
        feature(
            "x86_64",
            cfg!(target_arch = "x86_64"),
            true,
            "everything",
            "an x86-64 machine",
        ),
        feature(
            "CAP_SYS_PTRACE",
            cap(caps::Capability::CAP_SYS_PTRACE),
            true,
            "stopping and reading an app",
            "run as root",
        ),
        feature(
            "CAP_SYS_ADMIN",
            cap(caps::Capability::CAP_SYS_ADMIN),
            true,
            "namespaces, reading shared memory",
            "run as root",
        ),
        feature(
            "CAP_CHECKPOINT_RESTORE",
            cap(caps::Capability::CAP_CHECKPOINT_RESTORE),
            false,
            "choosing PIDs without CAP_SYS_ADMIN",
            "Linux 5.9, run as root",
        ),
        feature(
            "CAP_SYS_RESOURCE",
            cap(caps::Capability::CAP_SYS_RESOURCE),
            false,
            "raising hard resource limits of a restored app",
            "run with the right; otherwise hard limits stay as they are",
        ),
        feature(
            "no seccomp filter",
            !is_filtered(),
            true,
            "entering apps that may have some",
            "in a container: --security-opt seccomp=unconfined",
        ),
        feature(
            "pidfd_getfd",
            pidfd_getfd_works(),
            true,
            "reading descriptors of an app",
            "Linux 5.6",
        ),
        feature(
            "kcmp",
            task::kcmp(own, own, task::Compare::Vm, 0, 0).is_ok(),
            true,
            "finding shared descriptors",
            "CONFIG_KCMP=y",
        ),
        feature(
            "clone3 set_tid",
            set_tid_works(),
            true,
            "restoring PIDs",
            "Linux 5.5, CONFIG_CHECKPOINT_RESTORE=y",
        ),
        feature(
            "map_files",
            fs::read_dir("/proc/self/map_files").is_ok(),
            true,
            "shared memory",
            "CONFIG_CHECKPOINT_RESTORE=y",
        ),
        feature(
            "rseq configuration",
            rseq_configuration_works(),
            false,
            "restartable sequences",
            "Linux 5.13",
        ),
        feature(
            "cgroup v2",
            crate::cgroup::is_v2(),
            false,
            "holding an app together; being born into its cgroup",
            "mount cgroup2; groups of v1 are the fallback",
        ),
        feature(
            "bpf(2), BTF",
            KernelMemory::open().is_ok_and(|memory| memory.offset("io_ring_ctx.nr_req_allocated").is_ok()),
            false,
            "io_uring at rest; POSIX message queues; seeing rules of Landlock, keys of listening sockets, sockets that send no more",
            "Linux 6.16, CONFIG_DEBUG_INFO_BTF; run as root",
        ),
        feature(
            "PAGEMAP_SCAN",
            pagemap_scan_works(),
            false,
            "finding pages fast",
            "Linux 6.7; /proc/PID/pagemap is the fallback",
        ),
        feature(
            "userfaultfd",
            uffd::create().and_then(Userfault::begin).is_ok(),
            false,
            "putting memory in place fast",
            "CONFIG_USERFAULTFD=y; process_vm_writev is the fallback",
        ),
        feature(
            "userfaultfd WP_ASYNC",
            crate::precopy::works(),
            false,
            "copying the memory of an app while it runs",
            "Linux 6.7, CONFIG_PTE_MARKER_UFFD_WP=y; all is copied while the app stands still otherwise",
        ),
        feature(
            "time namespace",
            fs::exists("/proc/self/ns/time").unwrap_or(false),
            false,
            "clocks that do not jump",
            "Linux 5.6, CONFIG_TIME_NS=y",
        ),
        feature(
            "unix_diag",
            crate::sys::diag::unix_sockets().is_ok(),
            true,
            "pairing unix sockets",
            "CONFIG_UNIX_DIAG",
        ),
        feature(
            "TCP_REPAIR",
            crate::files::repair::works(),
            false,
            "keeping TCP connections inside an app",
            "Linux 4.19, run as root",
        ),
        feature(
            "inet_diag",
            crate::sys::diag::tcp_connections(libc::AF_INET).is_ok(),
            false,
            "counting connections of deployed apps: who needs further instances, and who may give its memory away",
            "CONFIG_INET_DIAG, CONFIG_INET_TCP_DIAG",
        ),
    ]
}

/// Asks for a number that is taken: EEXIST where numbers can be chosen.
fn set_tid_works() -> bool {
    let taken = std::process::id();
    let args = task::CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        set_tid: &raw const taken as u64,
        set_tid_size: 1,
        ..task::CloneArgs::default()
    };
    matches!(task::fork(&args), Err(nix::Error::EEXIST))
}

fn rseq_configuration_works() -> bool {
    of_child(ptrace::rseq).is_some_and(|told| told.is_ok())
}

/// Asks about a child that is traced and stands still.
pub fn of_child<T>(ask: impl FnOnce(HostPid) -> T) -> Option<T> {
    let args = task::CloneArgs {
        exit_signal: libc::SIGCHLD as u64,
        ..task::CloneArgs::default()
    };
    let child = match task::fork(&args) {
        Ok(task::Forked::Parent(child)) => child,
        Ok(task::Forked::Child) => {
            nix::unistd::pause();
            task::exit_now(0)
        }
        Err(_) => return None,
    };
    let stopped = ptrace::seize(child, libc::PTRACE_O_EXITKILL)
        .and_then(|()| ptrace::interrupt(child))
        .and_then(|()| ptrace::wait(child, true));
    let told = stopped.is_ok().then(|| ask(child));
    crate::launch::reap(child);
    told
}

fn pidfd_getfd_works() -> bool {
    use std::os::fd::AsFd;
    let own = crate::ids::HostPid(std::process::id() as i32);
    let Ok(probe) = sysfd::memfd("probe", 0) else {
        return false;
    };
    use std::os::fd::AsRawFd;
    task::pidfd_open(own)
        .and_then(|pidfd| task::pidfd_getfd(pidfd.as_fd(), probe.as_raw_fd()))
        .is_ok()
}

fn pagemap_scan_works() -> bool {
    let page = [0u8; 1];
    let start = (page.as_ptr() as u64) & !4095;
    let span = mem::Span {
        start,
        end: start + 4096,
    };
    File::open("/proc/self/pagemap").is_ok_and(|file| mem::scan_pages(&file, span, &mut Vec::new()).is_ok())
}

#[cfg(test)]
mod tests {
    /// Directives that make systemd set one (systemd.exec(5)).
    const FILTERING: [&str; 15] = [
        "SystemCallFilter",
        "SystemCallArchitectures",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "MemoryDenyWriteExecute",
        "LockPersonality",
        "ProtectClock",
        "ProtectHostname",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectKernelTunables",
        "PrivateDevices",
        "DynamicUser",
    ];

    #[test]
    fn the_units_set_no_seccomp_filter() {
        for unit in ["snapd", "restored"] {
            let path = format!("{}/../packaging/systemd/{unit}.service", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(path).unwrap();
            let names = text
                .lines()
                .filter_map(|line| line.split_once('='))
                .map(|(name, _)| name);
            let filtering: Vec<&str> = names.filter(|name| FILTERING.contains(name)).collect();
            assert!(filtering.is_empty(), "{unit}: {filtering:?}");
        }
    }
}
