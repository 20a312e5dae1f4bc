//! System calls in another process, in batches.
//!
//! ```text
//!   stopped thread --infect--> two mappings in the target: code page, data area
//!        |                          ^
//!        |   run(batch): write entries, rip = code, rbx = entries, continue,
//!        |               wait for int3, read results back
//!        +----- cure: unmap both, give the thread its registers and mask back
//! ```
//!
//! The first system calls (the two mmaps) use a `syscall` instruction that is
//! already in the target (in its vdso, or any executable mapping): nothing of the
//! app is written to. A thread that sat in a system call
//! keeps `orig_rax` and the restart code of its registers, so the kernel
//! restarts that call when the thread goes on, as if nothing had happened.

use crate::error::{Error, OrFail, Result};
use crate::ids::HostPid;
use crate::sys::blob::{self, ENTRY_BYTES, Entry};
use crate::sys::memory::{self, PAGE, Span};
use crate::sys::ptrace::{self, Regs, Stop, reg};
use crate::sys::{Sys, check_raw};

/// Entries of one batch at most.
const ENTRIES_MAX: usize = 1000;
const ENTRIES_BYTES: u64 = ((ENTRIES_MAX + 1) * ENTRY_BYTES).next_multiple_of(4096) as u64;
pub const PAYLOAD_BYTES: u64 = 256 * 1024;
/// What the executor takes of the target's address space.
pub const FOOTPRINT: u64 = PAGE + ENTRIES_BYTES + PAYLOAD_BYTES;

/// A place in the target where the executor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Executor {
    base: u64,
}

/// Index of a call in its batch.
#[derive(Clone, Copy, Debug)]
pub struct CallId(usize);

/// Bytes in the payload of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Slot {
    /// Address in the target.
    pub address: u64,
    offset: usize,
    len: usize,
}

/// System calls to be made, and the bytes they point at.
#[derive(Debug)]
pub struct Batch {
    entries: Vec<Entry>,
    names: Vec<&'static str>,
    payload: Vec<u8>,
    payload_base: u64,
    /// Where in the payload the first room for results is.
    answers: Option<usize>,
}

impl Batch {
    /// Puts bytes in the payload, aligned to 8. Only [`Batch::space`] is read back.
    pub fn bytes(&mut self, bytes: &[u8]) -> Slot {
        let slot = self.put(bytes.len());
        self.payload[slot.offset..slot.offset + slot.len].copy_from_slice(bytes);
        slot
    }

    pub fn words(&mut self, words: &[u64]) -> Slot {
        let bytes: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
        self.bytes(&bytes)
    }

    pub fn c_string(&mut self, text: impl AsRef<[u8]>) -> Slot {
        let mut bytes = text.as_ref().to_vec();
        bytes.push(0);
        self.bytes(&bytes)
    }

    /// Zeroed room for a result.
    pub fn space(&mut self, len: usize) -> Slot {
        let slot = self.put(len);
        self.answers.get_or_insert(slot.offset);
        slot
    }

    fn put(&mut self, len: usize) -> Slot {
        let offset = self.payload.len().next_multiple_of(8);
        self.payload.resize(offset + len, 0);
        Slot {
            address: self.payload_base + offset as u64,
            offset,
            len,
        }
    }

    /// A call that may fail; look at its result.
    pub fn call(&mut self, name: &'static str, number: i64, args: &[u64]) -> CallId {
        let mut entry = Entry {
            number: number as u64,
            ..Entry::default()
        };
        entry.args[..args.len()].copy_from_slice(args);
        self.entries.push(entry);
        self.names.push(name);
        CallId(self.entries.len() - 1)
    }

    /// A call that must succeed: the batch ends there otherwise, and `run` fails.
    pub fn must(&mut self, name: &'static str, number: i64, args: &[u64]) -> CallId {
        let id = self.call(name, number, args);
        self.entries[id.0].flags = 1;
        id
    }

    /// Whether `calls` more calls with `payload` more bytes have room.
    pub fn has_room(&self, calls: usize, payload: usize) -> bool {
        self.entries.len() + calls <= ENTRIES_MAX && self.payload.len() + payload + 8 * calls <= PAYLOAD_BYTES as usize
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What the call returned; only after `run`.
    pub fn result(&self, call: CallId) -> Sys<u64> {
        check_raw(self.entries[call.0].result as i64).map(|v| v as u64)
    }

    pub fn read(&self, slot: Slot) -> &[u8] {
        &self.payload[slot.offset..slot.offset + slot.len]
    }

    pub fn read_words(&self, slot: Slot) -> Vec<u64> {
        words(self.read(slot))
    }

    fn image(&self) -> Vec<u8> {
        let end = Entry {
            number: u64::MAX,
            ..Entry::default()
        };
        self.entries
            .iter()
            .chain([&end])
            .flat_map(|entry| entry.to_words())
            .flat_map(u64::to_le_bytes)
            .collect()
    }
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|c| u64::from_le_bytes(*c))
        .collect()
}

/// A task born while a batch ran (by clone3), stopped before its first instruction.
pub type Born = Vec<HostPid>;

impl Executor {
    /// An executor that stands at `base` already (inherited through fork).
    pub fn at(base: u64) -> Self {
        Executor { base }
    }

    pub fn span(&self) -> Span {
        Span {
            start: self.base,
            end: self.base + FOOTPRINT,
        }
    }

    /// Where the bytes of a batch stand in the target.
    pub fn payload(&self) -> u64 {
        self.base + PAGE + ENTRIES_BYTES
    }

    pub fn batch(&self) -> Batch {
        Batch {
            entries: Vec::new(),
            names: Vec::new(),
            payload: Vec::new(),
            payload_base: self.payload(),
            answers: None,
        }
    }

    /// Maps the executor at `base` (free in the target) using thread `tid`,
    /// which is stopped with all signals blocked. Its registers are lost.
    pub fn infect(tid: HostPid, regs: &Regs, gate: u64, base: u64) -> Result<Executor> {
        let executor = Executor { base };
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let mmap = |start: u64, len: u64, prot: i32| {
            let args = [start, len, prot as u64, flags, u64::MAX, 0];
            call_through(tid, regs, gate, libc::SYS_mmap, args)
        };
        mmap(base, PAGE, libc::PROT_READ | libc::PROT_EXEC)?
            .or_fail(|| format!("cannot map the executor into pid {tid}"))?;
        let data = ENTRIES_BYTES + PAYLOAD_BYTES;
        let mapped = mmap(base + PAGE, data, libc::PROT_READ | libc::PROT_WRITE)?;
        let written = mapped.and_then(|_| write_code(tid, base));
        if let Err(errno) = written {
            call_through(tid, regs, gate, libc::SYS_munmap, [base, FOOTPRINT, 0, 0, 0, 0])?.ok();
            return Err(Error::failed(format!("cannot place the executor in pid {tid}")).because(errno));
        }
        Ok(executor)
    }

    /// Ignores SIGTRAP again, whose action the traps of batches have reset.
    pub fn ignore_trap(&self, tid: HostPid, regs: &Regs, gate: u64, action: [u64; 4]) -> Result<()> {
        let bytes: Vec<u8> = action.iter().flat_map(|w| w.to_le_bytes()).collect();
        memory::write(tid, self.payload(), &bytes).map_err(|e| lost(tid, e))?;
        let args = [libc::SIGTRAP as u64, self.payload(), 0, 8, 0, 0];
        call_through(tid, regs, gate, libc::SYS_rt_sigaction, args)?
            .map(drop)
            .or_fail(|| format!("cannot give pid {tid} its action for SIGTRAP back"))
    }

    /// Unmaps the executor. The caller then gives the thread its registers back.
    pub fn cure(self, tid: HostPid, regs: &Regs, gate: u64) -> Result<()> {
        let args = [self.base, FOOTPRINT, 0, 0, 0, 0];
        call_through(tid, regs, gate, libc::SYS_munmap, args)?
            .map(drop)
            .or_fail(|| format!("cannot unmap the executor from pid {tid}"))
    }

    /// Runs the batch in thread `tid`. Fails when a call that must succeed did
    /// not, naming it.
    pub fn run(&self, tid: HostPid, regs: &Regs, batch: &mut Batch) -> Result<Born> {
        self.start(tid, regs, batch)?;
        self.finish(tid, batch)
    }

    /// Sends the thread into the batch and does not wait for it.
    pub fn start(&self, tid: HostPid, regs: &Regs, batch: &Batch) -> Result<()> {
        self.load(tid, regs, batch)?;
        ptrace::cont(tid, 0).map_err(|e| lost(tid, e))
    }

    /// Waits until a batch that was started is done, as [`Executor::run`] does.
    pub fn finish(&self, tid: HostPid, batch: &mut Batch) -> Result<Born> {
        let born = self.drive(tid)?;
        self.collect(tid, batch).map_err(|e| lost(tid, e))?;
        match batch.first_failure() {
            None => Ok(born),
            Some((name, entry, errno)) => {
                for child in born {
                    ptrace::cont(child, libc::SIGKILL).ok();
                }
                Err(Error::failed(format!("{name} failed in pid {tid}"))
                    .because(format!("{name}({}): {errno}", arguments(entry))))
            }
        }
    }

    /// Writes the batch and points the thread at it.
    fn load(&self, tid: HostPid, regs: &Regs, batch: &Batch) -> Result<()> {
        let start = regs
            .with(reg::RIP, self.base)
            .with(reg::RBX, self.base + PAGE)
            .with(reg::ORIG_RAX, u64::MAX);
        let written = memory::write(tid, self.base + PAGE, &batch.image()).and_then(|()| {
            if batch.payload.is_empty() {
                Ok(())
            } else {
                memory::write(tid, batch.payload_base, &batch.payload)
            }
        });
        written
            .and_then(|()| ptrace::set_regs(tid, &start))
            .map_err(|e| lost(tid, e))
    }

    fn drive(&self, tid: HostPid) -> Result<Born> {
        let lost = |e| lost(tid, e);
        let mut born = Vec::new();
        loop {
            match ptrace::wait(tid, true).map_err(lost)? {
                Some(Stop::Signal(libc::SIGTRAP)) => return Ok(born),
                Some(Stop::Event(_)) => {
                    let child = ptrace::event_message(tid).map_err(lost)?;
                    born.push(HostPid(child as i32));
                    ptrace::cont(tid, 0).map_err(lost)?;
                }
                // An INTERRUPT that came late; the stop of job control, which a
                // tracer may run a task in.
                Some(Stop::Trap | Stop::Group(_)) => ptrace::cont(tid, 0).map_err(lost)?,
                other => {
                    let at = ptrace::get_regs(tid).map_or(0, |r| r.get(reg::RIP));
                    return Err(Error::failed(format!(
                        "pid {tid} stopped unexpectedly in the middle of a batch: {other:?} at {at:#x}"
                    )));
                }
            }
        }
    }

    fn collect(&self, tid: HostPid, batch: &mut Batch) -> Sys<()> {
        let mut image = vec![0; batch.entries.len() * ENTRY_BYTES];
        memory::read(tid, self.base + PAGE, &mut image)?;
        for (entry, words) in batch.entries.iter_mut().zip(words(&image).as_chunks::<10>().0) {
            entry.result = words[7];
        }
        if let Some(from) = batch.answers {
            memory::read(tid, batch.payload_base + from as u64, &mut batch.payload[from..])?;
        }
        Ok(())
    }
}

impl Batch {
    fn first_failure(&self) -> Option<(&'static str, &Entry, nix::Error)> {
        self.entries.iter().zip(&self.names).find_map(|(entry, name)| {
            let errno = check_raw(entry.result as i64).err()?;
            (entry.flags & 1 != 0).then_some((*name, entry, errno))
        })
    }
}

fn lost(tid: HostPid, errno: nix::Error) -> Error {
    Error::failed(format!("cannot run system calls in pid {tid}")).because(errno)
}

fn arguments(entry: &Entry) -> String {
    let shown: Vec<String> = entry.args.iter().map(|a| format!("{a:#x}")).collect();
    shown.join(", ")
}

fn write_code(tid: HostPid, base: u64) -> Sys<()> {
    let mut code = blob::executor().to_vec();
    code.resize(code.len().next_multiple_of(8), 0xcc);
    for (at, word) in words(&code).into_iter().enumerate() {
        ptrace::poke(tid, base + 8 * at as u64, word)?;
    }
    Ok(())
}

/// Registers of a thread about to make a system call at `gate`.
pub fn call_registers(regs: &Regs, gate: u64, number: i64, args: [u64; 6]) -> Regs {
    regs.with(reg::RIP, gate)
        .with(reg::RAX, number as u64)
        .with(reg::ORIG_RAX, u64::MAX)
        .with(reg::RDI, args[0])
        .with(reg::RSI, args[1])
        .with(reg::RDX, args[2])
        .with(reg::R10, args[3])
        .with(reg::R8, args[4])
        .with(reg::R9, args[5])
}

/// One system call through a `syscall` instruction at `gate` in the target.
pub fn call_through(tid: HostPid, regs: &Regs, gate: u64, number: i64, args: [u64; 6]) -> Result<Sys<u64>> {
    let set = call_registers(regs, gate, number, args);
    // Stops at the entry and at the exit: unlike the trap of a single step, these
    // leave the action for SIGTRAP alone.
    let failed = || format!("cannot make a system call in pid {tid}");
    ptrace::set_regs(tid, &set).or_fail(failed)?;
    for _ in 0..2 {
        ptrace::to_syscall(tid).or_fail(failed)?;
        await_syscall_stop(tid)?;
    }
    let after = ptrace::get_regs(tid).or_fail(failed)?;
    Ok(check_raw(after.get(reg::RAX) as i64).map(|v| v as u64))
}

/// Waits until a task that was sent [`ptrace::to_syscall`] is there.
pub fn await_syscall_stop(tid: HostPid) -> Result<()> {
    let failed = || format!("cannot make a system call in pid {tid}");
    loop {
        match ptrace::wait(tid, true).or_fail(failed)? {
            Some(Stop::Signal(libc::SIGTRAP)) => return Ok(()),
            Some(Stop::Trap | Stop::Group(_) | Stop::Event(_)) => ptrace::to_syscall(tid).or_fail(failed)?,
            _ => return Err(Error::failed(format!("pid {tid} ended in the middle of a system call"))),
        }
    }
}

/// Finds a `syscall` instruction (0f 05) in one of the executable spans.
pub fn find_gate(pid: HostPid, executable: &[Span]) -> Result<u64> {
    let mut buffer = vec![0u8; 64 * 1024];
    for span in executable {
        let mut at = span.start;
        while at < span.end {
            let len = (span.end - at).min(buffer.len() as u64) as usize;
            if memory::read(pid, at, &mut buffer[..len]).is_err() {
                break;
            }
            if let Some(found) = buffer[..len].windows(2).position(|pair| pair == [0x0f, 0x05]) {
                return Ok(at + found as u64);
            }
            at += len as u64;
        }
    }
    Err(Error::refused(format!("cannot enter pid {pid}"))
        .because("none of its executable mappings holds a `syscall` instruction"))
}

/// The lowest hole of `len` bytes (plus a page of distance) that is free in all
/// of the spans, which need not be sorted.
pub fn find_hole(used: &mut [Span], len: u64) -> Option<u64> {
    const FLOOR: u64 = 0x20_0000;
    const CEILING: u64 = 0x7000_0000_0000;
    used.sort_by_key(|span| span.start);
    let mut at = FLOOR;
    for span in used.iter() {
        if span.start >= at + len + PAGE {
            break;
        }
        at = at.max(span.end + PAGE);
    }
    (at + len < CEILING).then_some(at)
}
