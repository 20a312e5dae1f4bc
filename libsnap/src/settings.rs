//! Settings of a thread or a process that one call tells and another sets (prctl(2),
//! membarrier(2), set_mempolicy(2), mbind(2)), and that no file of /proc shows at once.
//!
//! Each is asked in the batch that asks for the rest; only what differs from a fresh process
//! is recorded. A kernel that does not know one says so, and then nobody has set it.
//! What Landlock forbids is told by no call: see [`crate::hidden`].

use crate::error::{Error, Result};
use crate::executor::{Batch, CallId, Executor, Slot};
use crate::freeze::FrozenThread;
use crate::image::records::{MemoryPolicy, Setting, SettingKind, Vma, VmaKind};
use crate::restore::script::Calls;
use crate::sys::memory::{PAGE, Span};
use crate::sys::task;
use nix::errno::Errno;

const PR_SET_IO_FLUSHER: i32 = 57;
const PR_GET_IO_FLUSHER: i32 = 58;
const PR_SET_MDWE: i32 = 65;
const PR_GET_MDWE: i32 = 66;
const PR_SET_MEMORY_MERGE: i32 = 67;
const PR_GET_MEMORY_MERGE: i32 = 68;
const ARCH_GET_CPUID: u64 = 0x1011;
const ARCH_SET_CPUID: u64 = 0x1012;
const MCE_SET: u64 = 1;
const MCE_DEFAULT: u64 = 2;
const MEMBARRIER_GET_REGISTRATIONS: u64 = 1 << 9;
/// For expedited ones of all, of a process, that cores see, and of restartable sequences.
const MEMBARRIER_REGISTERS: u64 = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 8;
/// Of what PR_GET_SPECULATION_CTRL tells: that it can be set, and what is.
const SPEC_PRCTL: u64 = 1;
const SPEC_ENABLE: u64 = 2;
const SPEC_DISABLED: u64 = 4 | 8 | 16;
/// PR_SPEC_L1D_FLUSH: one that is off unless it is turned on.
const L1D_FLUSH: u64 = 2;
/// Room for the bits of as many nodes.
const NODES: usize = 1024;
const NODE_BYTES: usize = NODES / 8;

/// The system call that sets one to this value, and its arguments.
fn call(setting: &Setting) -> Option<(i64, Vec<u64>)> {
    let prctl = |args: [u64; 3]| Some((libc::SYS_prctl, [&args[..], &[0, 0]].concat()));
    let value = setting.value;
    match setting.kind {
        SettingKind::Tsc => prctl([libc::PR_SET_TSC as u64, value, 0]),
        SettingKind::Cpuid => Some((libc::SYS_arch_prctl, vec![ARCH_SET_CPUID, value])),
        SettingKind::MachineCheck => prctl([libc::PR_MCE_KILL as u64, MCE_SET, value]),
        SettingKind::IoFlusher => prctl([PR_SET_IO_FLUSHER as u64, value, 0]),
        SettingKind::Speculation(which) => prctl([libc::PR_SET_SPECULATION_CTRL as u64, u64::from(which), value]),
        SettingKind::WriteExecute => prctl([PR_SET_MDWE as u64, value, 0]),
        SettingKind::MemoryMerge => prctl([PR_SET_MEMORY_MERGE as u64, value, 0]),
        SettingKind::Membarrier => Some((libc::SYS_membarrier, vec![value, 0, 0])),
        SettingKind::LockFuture => Some((libc::SYS_mlockall, vec![value])),
        // Its nodes have to be in memory.
        SettingKind::MemoryPolicy { .. } => None,
    }
}

/// What a thread is asked.
#[derive(Debug)]
pub struct OfThread {
    tsc: (CallId, Slot),
    cpuid: CallId,
    machine_check: CallId,
    io_flusher: CallId,
    speculation: [CallId; 3],
    policy: (CallId, Slot),
}

impl OfThread {
    pub fn ask(batch: &mut Batch) -> OfThread {
        let tsc = batch.space(8);
        let policy = batch.space(8 + NODE_BYTES);
        let get = |option: i32, argument: u64| [option as u64, argument, 0, 0, 0];
        OfThread {
            tsc: (
                batch.call("prctl", libc::SYS_prctl, &get(libc::PR_GET_TSC, tsc.address)),
                tsc,
            ),
            cpuid: batch.call("arch_prctl", libc::SYS_arch_prctl, &[ARCH_GET_CPUID, 0]),
            machine_check: batch.call("prctl", libc::SYS_prctl, &get(libc::PR_MCE_KILL_GET, 0)),
            io_flusher: batch.call("prctl", libc::SYS_prctl, &get(PR_GET_IO_FLUSHER, 0)),
            speculation: [0, 1, L1D_FLUSH]
                .map(|which| batch.call("prctl", libc::SYS_prctl, &get(libc::PR_GET_SPECULATION_CTRL, which))),
            policy: {
                let args = [policy.address, policy.address + 8, NODES as u64, 0, 0];
                (batch.call("get_mempolicy", libc::SYS_get_mempolicy, &args), policy)
            },
        }
    }

    /// `flags`: of the task, as `/proc/PID/stat` has them, where it must be asked for.
    pub fn answers(&self, batch: &Batch, flags: impl FnOnce() -> u32) -> Vec<Setting> {
        /// PF_MEMALLOC_NOIO and PF_LOCAL_THROTTLE.
        const IO_FLUSHER: u32 = 0x0018_0000;
        let mut found = Vec::new();
        let mut add = |kind: SettingKind, value: u64| found.push(Setting { kind, value });
        let tsc = batch.result(self.tsc.0).map(|_| batch.read_words(self.tsc.1)[0] as u32);
        if tsc == Ok(libc::PR_TSC_SIGSEGV as u32) {
            add(SettingKind::Tsc, libc::PR_TSC_SIGSEGV as u64);
        }
        if batch.result(self.cpuid) == Ok(0) {
            add(SettingKind::Cpuid, 0);
        }
        if let Ok(policy) = batch.result(self.machine_check)
            && policy != MCE_DEFAULT
        {
            add(SettingKind::MachineCheck, policy);
        }
        // To ask for it takes CAP_SYS_RESOURCE.
        let flushes = match batch.result(self.io_flusher) {
            Err(Errno::EPERM) => flags() & IO_FLUSHER == IO_FLUSHER,
            told => told == Ok(1),
        };
        if flushes {
            add(SettingKind::IoFlusher, 1);
        }
        for (which, call) in (0..).zip(self.speculation) {
            let told = batch.result(call).unwrap_or(0);
            let set = match u64::from(which) {
                L1D_FLUSH => told & SPEC_ENABLE,
                _ => told & SPEC_DISABLED,
            };
            if told & SPEC_PRCTL != 0 && set != 0 {
                add(SettingKind::Speculation(which), set);
            }
        }
        if let Some(MemoryPolicy { mode, nodes }) = policy(batch, self.policy) {
            add(SettingKind::MemoryPolicy { nodes }, mode);
        }
        found
    }
}

/// The answer of get_mempolicy(2), where it is not the default.
fn policy(batch: &Batch, (call, slot): (CallId, Slot)) -> Option<MemoryPolicy> {
    batch.result(call).ok()?;
    let told = batch.read_words(slot);
    let mode = told[0] & 0xffff_ffff;
    let mut nodes = told[1..].to_vec();
    nodes.truncate(nodes.iter().rposition(|word| *word != 0).map_or(0, |last| last + 1));
    (mode != libc::MPOL_DEFAULT as u64).then_some(MemoryPolicy { mode, nodes })
}

/// Asks a process on which nodes each of its mappings is to be.
pub fn ask_mappings(main: &FrozenThread, executor: &Executor, vmas: &mut [Vma]) -> Result<()> {
    const AT_ONCE: usize = 500;
    const MPOL_F_ADDR: u64 = 2;
    for some in vmas.chunks_mut(AT_ONCE) {
        let mut batch = executor.batch();
        let asked = some.iter().map(|vma| {
            let slot = batch.space(8 + NODE_BYTES);
            let args = [slot.address, slot.address + 8, NODES as u64, vma.start, MPOL_F_ADDR];
            (batch.call("get_mempolicy", libc::SYS_get_mempolicy, &args), slot)
        });
        let asked: Vec<(CallId, Slot)> = asked.collect();
        executor.run(main.tid, &main.regs, &mut batch)?;
        for (vma, asked) in some.iter_mut().zip(asked) {
            vma.policy = policy(&batch, asked).filter(|_| !matches!(vma.kind, VmaKind::Vvar | VmaKind::Vdso));
        }
    }
    Ok(())
}

/// mbind(2) of a mapping.
pub fn bind(script: &mut impl Calls, vma: &Vma) -> Result<()> {
    let Some(MemoryPolicy { mode, nodes }) = &vma.policy else {
        return Ok(());
    };
    let batch = script.room(1, 8 * nodes.len().max(1))?;
    let (place, count) = placed(batch, nodes);
    let args = [vma.start, vma.end - vma.start, *mode, place, count, 0];
    batch.must("mbind", libc::SYS_mbind, &args);
    Ok(())
}

/// Where nodes stand for a call, and how many they are: the kernel takes one less than it is
/// told.
fn placed(batch: &mut Batch, nodes: &[u64]) -> (u64, u64) {
    match nodes.is_empty() {
        true => (0, 0),
        false => (batch.words(nodes).address, nodes.len() as u64 * 64 + 1),
    }
}

/// What a process is asked.
#[derive(Debug)]
pub struct OfProcess {
    write_execute: CallId,
    memory_merge: CallId,
    membarrier: CallId,
    locked: CallId,
    resident: (CallId, Slot),
}

impl OfProcess {
    /// `ours`: memory that was just mapped for us, of which the last page is not used yet. What
    /// is mapped shows what mlockall(2) has asked for: the kernel refuses to call it cold, and
    /// has all of it there at once unless it is locked when it is used.
    pub fn ask(batch: &mut Batch, ours: Span) -> OfProcess {
        const MADV_COLD: u64 = 20;
        let resident = batch.space(8);
        let last = ours.end - PAGE;
        let locked = batch.call("madvise", libc::SYS_madvise, &[last, PAGE, MADV_COLD]);
        let is_there = batch.call("mincore", libc::SYS_mincore, &[last, PAGE, resident.address]);
        let mut get = |option: i32| batch.call("prctl", libc::SYS_prctl, &[option as u64, 0, 0, 0, 0]);
        OfProcess {
            write_execute: get(PR_GET_MDWE),
            memory_merge: get(PR_GET_MEMORY_MERGE),
            membarrier: batch.call(
                "membarrier",
                libc::SYS_membarrier,
                &[MEMBARRIER_GET_REGISTRATIONS, 0, 0],
            ),
            locked,
            resident: (is_there, resident),
        }
    }

    pub fn answers(&self, batch: &Batch) -> Vec<Setting> {
        let value = |call| batch.result(call).unwrap_or(0);
        let one = |kind, value| (value != 0).then_some(Setting { kind, value });
        // One call for each way to be registered. Before Linux 6.3 nobody is told which were taken:
        // who did is to find it so, and for the others it changes nothing.
        let registered = batch
            .result(self.membarrier)
            .unwrap_or_else(|_| task::membarrier_commands() & MEMBARRIER_REGISTERS);
        let ways = (0..32).map(|bit| registered & 1 << bit);
        let ways = ways.filter_map(|way| one(SettingKind::Membarrier, way));
        let merge = one(SettingKind::MemoryMerge, value(self.memory_merge));
        let write_execute = one(SettingKind::WriteExecute, value(self.write_execute));
        let lock = (batch.result(self.locked) == Err(Errno::EINVAL)).then(|| {
            let there = batch.result(self.resident.0).is_ok() && batch.read_words(self.resident.1)[0] & 1 != 0;
            let on_fault = if there { 0 } else { libc::MCL_ONFAULT };
            let value = (libc::MCL_FUTURE | on_fault) as u64;
            Setting {
                kind: SettingKind::LockFuture,
                value,
            }
        });
        ways.chain(merge).chain(write_execute).chain(lock).collect()
    }
}

/// Whether it is set while the process may still do everything: to lock memory takes a
/// limit or a right that it may not have any more.
pub fn is_early(setting: &Setting) -> bool {
    setting.kind == SettingKind::LockFuture
}

/// Sets them again.
pub fn restore<'a>(script: &mut impl Calls, settings: impl IntoIterator<Item = &'a Setting>) -> Result<()> {
    for setting in settings {
        if let SettingKind::MemoryPolicy { nodes } = &setting.kind {
            let batch = script.room(1, 8 * nodes.len().max(1))?;
            let (place, count) = placed(batch, nodes);
            batch.must("set_mempolicy", libc::SYS_set_mempolicy, &[setting.value, place, count]);
            continue;
        }
        let Some((number, args)) = call(setting) else {
            return Err(Error::failed("a setting that no call sets"));
        };
        script.must("a setting", number, &args)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_set_by_a_call() {
        let one = |kind, value| call(&Setting { kind, value });
        let (number, args) = one(SettingKind::Speculation(1), 4).unwrap();
        assert_eq!((number, &args[..]), (libc::SYS_prctl, &[53, 1, 4, 0, 0][..]));
        assert_eq!(one(SettingKind::MemoryPolicy { nodes: vec![1] }, 2), None);
    }
}
