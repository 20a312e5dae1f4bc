//! What must hold for one process by itself.

use super::fault::ensure;
use super::process::{ProcessImage, Segment, ThreadImage};
use super::records::{ProcessRecord, Seccomp, Setting, SettingKind, VMA_FLAGS, Vma, VmaKind};
use super::validate::{count, path, process_id, text};
use super::validate_files::fd_number;
use super::{PAGE, limits};
use crate::error::Result;
use crate::ids::VirtualPid;
use std::collections::BTreeSet;

pub fn process(part: &str, image: &ProcessImage, segments: &[Segment]) -> Result<()> {
    record(part, &image.process)?;
    let tids = threads(part, image)?;
    for timer in &image.process.posix_timers {
        ensure(timer.thread.0 == 0 || tids.contains(&timer.thread), part, || {
            format!("timer {}: there is no thread {}", timer.id, timer.thread)
        })?;
    }
    vmas(part, &image.vmas)?;
    keys(part, image)?;
    segments_within(part, segments, &image.vmas)
}

fn settings(part: &str, settings: &[Setting]) -> Result<()> {
    count(part, "settings", settings.len(), limits::SETTINGS)?;
    settings.iter().try_for_each(|setting| match &setting.kind {
        SettingKind::MemoryPolicy { nodes } => count(part, "words of nodes", nodes.len(), limits::NODE_WORDS),
        _ => Ok(()),
    })
}

fn record(part: &str, process: &ProcessRecord) -> Result<()> {
    process_id(part, "pid", process.pid)?;
    for (what, name) in [("exe", &process.exe), ("cwd", &process.cwd), ("root", &process.root)] {
        path(part, what, name)?;
    }
    settings(part, &process.settings)?;
    let untold = process.untold_stops.len() + process.untold_continues.len();
    count(part, "children of which it has not heard", untold, limits::PROCESSES)?;
    ensure(process.umask <= 0o777, part, || format!("umask {:o}", process.umask))?;
    ensure((0..=2).contains(&process.dumpable), part, || {
        format!("dumpable {}", process.dumpable)
    })?;
    ensure((-1000..=1000).contains(&process.oom_score_adj), part, || {
        format!("oom_score_adj {}", process.oom_score_adj)
    })?;
    ensure(process.rlimits.len() == 16, part, || {
        format!("{} rlimits instead of 16", process.rlimits.len())
    })?;
    ensure(
        process.rlimits.iter().all(|(soft, hard)| soft <= hard),
        part,
        || "a soft limit above its hard limit",
    )?;
    ensure(process.sigactions.len() == 64, part, || {
        format!("{} signal actions instead of 64", process.sigactions.len())
    })?;
    count(part, "pending signals", process.pending.len(), limits::PENDING_SIGNALS)?;
    count(part, "timers", process.posix_timers.len(), limits::POSIX_TIMERS)?;
    let auxv = process.mm.auxv.len();
    ensure(auxv <= limits::AUXV_WORDS && auxv.is_multiple_of(2), part, || {
        format!("an auxiliary vector of {auxv} words")
    })?;
    let mut timers = BTreeSet::new();
    for timer in &process.posix_timers {
        ensure(timer.id >= 0 && timers.insert(timer.id), part, || {
            format!("timer {} is listed twice", timer.id)
        })?;
    }
    descriptors(part, process)
}

fn descriptors(part: &str, process: &ProcessRecord) -> Result<()> {
    count(part, "descriptors", process.fds.len(), limits::FDS_PER_PROCESS)?;
    let mut numbers = BTreeSet::new();
    for entry in &process.fds {
        fd_number(part, entry.fd)?;
        ensure(numbers.insert(entry.fd), part, || {
            format!("descriptor {} is listed twice", entry.fd)
        })?;
    }
    Ok(())
}

/// The main thread comes first and has the number of the process.
fn threads(part: &str, image: &ProcessImage) -> Result<BTreeSet<VirtualPid>> {
    count(part, "threads", image.threads.len(), limits::THREADS_PER_PROCESS)?;
    let main = image.threads.first().map(|thread| thread.record.tid);
    ensure(
        main == Some(image.process.pid),
        part,
        || "its first thread is not the main thread",
    )?;
    let mut tids = BTreeSet::new();
    for thread in &image.threads {
        let tid = thread.record.tid;
        process_id(part, "thread", tid)?;
        ensure(tids.insert(tid), part, || format!("thread {tid} is listed twice"))?;
        self::thread(part, thread)?;
    }
    Ok(tids)
}

fn thread(part: &str, thread: &ThreadImage) -> Result<()> {
    let record = &thread.record;
    settings(part, &record.settings)?;
    text(part, "comm", &record.comm, limits::COMM_BYTES)?;
    let bytes = record.comm_bytes.as_deref().unwrap_or_default();
    ensure(bytes.len() < 16 && !bytes.contains(&0), part, || {
        format!("the name of thread {} is too long or holds a NUL", record.tid)
    })?;
    count(part, "pending signals", record.pending.len(), limits::PENDING_SIGNALS)?;
    count(part, "groups", record.creds.groups.len(), limits::GROUPS)?;
    count(
        part,
        "affinity words",
        record.sched.affinity.len(),
        limits::AFFINITY_WORDS,
    )?;
    if let Seccomp::Filters(filters) = &record.seccomp {
        let most = limits::SECCOMP_PER_THREAD;
        ensure((1..=most).contains(&filters.len()), part, || {
            format!("thread {}: {} seccomp filters", record.tid, filters.len())
        })?;
    }
    ensure((0..=64).contains(&record.pdeathsig), part, || {
        format!("thread {}: parent death signal {}", record.tid, record.pdeathsig)
    })?;
    ensure((-20..=19).contains(&record.sched.nice), part, || {
        format!("thread {}: nice value {}", record.tid, record.sched.nice)
    })
}

fn vmas(part: &str, vmas: &[Vma]) -> Result<()> {
    count(part, "mappings", vmas.len(), limits::VMAS_PER_PROCESS)?;
    let mut last_end = limits::ADDRESS_MIN;
    for vma in vmas {
        let at = || format!("mapping {:#x}-{:#x}", vma.start, vma.end);
        let aligned = vma.start.is_multiple_of(PAGE) && vma.end.is_multiple_of(PAGE);
        let placed = vma.start >= last_end && vma.start < vma.end && vma.end <= limits::ADDRESS_END;
        ensure(aligned && placed, part, || format!("{} is out of place", at()))?;
        last_end = vma.end;
        ensure(vma.prot <= 7, part, || format!("{}: protection {:#x}", at(), vma.prot))?;
        let known =
            vma.flags.len() <= limits::VMA_FLAGS && vma.flags.iter().all(|flag| VMA_FLAGS.contains(&flag.as_str()));
        ensure(known, part, || format!("{} has an unknown flag", at()))?;
        count(part, "guards", vma.guards.len(), limits::GUARDS_PER_VMA)?;
        let words = vma.policy.as_ref().map_or(0, |policy| policy.nodes.len());
        count(part, "words of nodes", words, limits::NODE_WORDS)?;
        let mut free = vma.start;
        for (start, end) in &vma.guards {
            let placed = *start >= free && start < end && *end <= vma.end;
            let aligned = start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE);
            ensure(placed && aligned, part, || format!("{}: a guard is out of place", at()))?;
            free = *end;
        }
        let offset = match &vma.kind {
            VmaKind::PrivateFile { path: name, offset } | VmaKind::SharedFile { path: name, offset, .. } => {
                path(part, "mapped file", name)?;
                *offset
            }
            VmaKind::Shm { offset, .. } => *offset,
            VmaKind::Uring { offset, .. } => *offset,
            VmaKind::Huge { page_bytes, had } => {
                huge(part, vma, *page_bytes, had)?;
                0
            }
            VmaKind::Anon | VmaKind::Vvar | VmaKind::Vdso => 0,
        };
        let end = offset
            .checked_add(vma.end - vma.start)
            .and_then(|end| i64::try_from(end).ok());
        ensure(offset.is_multiple_of(PAGE) && end.is_some(), part, || {
            format!("{}: offset {offset:#x}", at())
        })?;
    }
    Ok(())
}

/// All of it lies at the borders of huge pages.
fn huge(part: &str, vma: &Vma, page_bytes: u64, had: &[(u64, u64)]) -> Result<()> {
    count(part, "runs of huge pages", had.len(), limits::RUNS_PER_SHM)?;
    ensure(limits::is_huge_page(page_bytes), part, || {
        format!("mapping {:#x}: huge pages of {page_bytes} bytes", vma.start)
    })?;
    let mut free = vma.start;
    let mut ends = [vma.start, vma.end]
        .into_iter()
        .chain(had.iter().flat_map(|&(start, end)| [start, end]));
    let aligned = ends.all(|end| end.is_multiple_of(page_bytes));
    let placed = had.iter().all(|(start, end)| {
        let fits = *start >= free && start < end && *end <= vma.end;
        free = *end;
        fits
    });
    ensure(aligned && placed, part, || {
        format!("mapping {:#x}: a huge page is out of place", vma.start)
    })
}

/// One that the kernel has taken is nobody else's, and of what can only be executed.
fn keys(part: &str, image: &ProcessImage) -> Result<()> {
    const HIGHEST: u32 = 15;
    let keys = image.process.keys.unwrap_or_default();
    let own = keys.execute_only;
    ensure(own <= HIGHEST && keys.allocated & (1 | 1 << own) == 0, part, || {
        format!("protection keys {:#x}, {own}", keys.allocated)
    })?;
    for vma in image.vmas.iter().filter(|vma| vma.key != 0) {
        let is_kernels = matches!(vma.kind, VmaKind::Vvar | VmaKind::Vdso | VmaKind::Uring { .. });
        let fits = vma.key != own || vma.prot == libc::PROT_EXEC as u32;
        ensure(vma.key <= HIGHEST && !is_kernels && fits, part, || {
            format!("mapping {:#x}-{:#x}: protection key {}", vma.start, vma.end, vma.key)
        })?;
    }
    Ok(())
}

/// Stored pages belong to private mappings: those of shared ones would
/// overwrite what other processes see. Both lists ascend.
fn segments_within(part: &str, segments: &[Segment], vmas: &[Vma]) -> Result<()> {
    let mut vmas = vmas.iter().peekable();
    for segment in segments {
        while vmas.next_if(|vma| vma.end <= segment.vaddr).is_some() {}
        let inside = vmas.peek().is_some_and(|vma| {
            let private = matches!(
                vma.kind,
                VmaKind::Anon
                    | VmaKind::Huge { .. }
                    | VmaKind::PrivateFile { .. }
                    | VmaKind::Shm { private: true, .. }
                    | VmaKind::Vdso
            );
            private && vma.start <= segment.vaddr && segment.vaddr + segment.bytes <= vma.end
        });
        ensure(inside, part, || {
            format!("stored memory at {:#x} lies in no private mapping", segment.vaddr)
        })?;
    }
    Ok(())
}
