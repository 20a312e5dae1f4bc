//! System calls in another process, in batches.
//!
//! ```text
//!   stopped thread --infect--> in the target: code page, data area
//!        |                          ^
//!        |   run(batch): write entries, rip = code, rbx = entries, continue,
//!        |               wait for int3, read results back
//!        +----- cure: unmap both, give the thread its registers and mask back
//! ```
//!
//! The first system call (mmap) uses a `syscall` instruction that is already in the
//! target (in its vdso, or any executable mapping): nothing of the app is written to.
//! It maps memory that can be written and executed both: code and data
//! apart would take two stops more, and while it is there the app's own code does not
//! run, in no thread. Where such memory is not allowed (PR_SET_MDWE, execmem of
//! SELinux) the two are apart. A thread that sat in a system call
//! keeps `orig_rax` and the restart code of its registers, so the kernel
//! restarts that call when the thread goes on, as if nothing had happened.
//!
//! When the tracer dies the kernel lets the thread run on from wherever its
//! registers are. In a thread of an app that must be harmless at every moment:
//!
//! ```text
//!   gate: `syscall` as pause(2) --> stop at entry: now mmap, and return to park
//!                                                     |
//!   park: an instruction of the target that jumps to itself  (stop at exit)
//!   blob: ends in pause(2), not in a trap whose signal would kill
//! ```
//!
//! So a thread that lost its tracer makes at most the call or batch it was sent
//! for, and waits, its signals blocked, until [`crate::journal`] brings it back.
//! A husk has no park: it dies with the tracer.

use crate::error::{Error, OrFail, Result};
use crate::ids::HostPid;
use crate::sys::blob::{self, ENTRY_BYTES, Entry, MAKES_THREAD, MUST};
use crate::sys::memory::{self, PAGE, Span};
use crate::sys::ptrace::{self, Regs, Stop, reg};
use crate::sys::task::CloneArgs;
use crate::sys::{Sys, check_raw};
use serde::{Deserialize, Serialize};

/// Entries of one batch at most.
const ENTRIES_MAX: usize = 1000;
const ENTRIES_BYTES: u64 = ((ENTRIES_MAX + 1) * ENTRY_BYTES).next_multiple_of(4096) as u64;
pub const PAYLOAD_BYTES: u64 = 256 * 1024;
/// What the executor takes of the target's address space.
pub const FOOTPRINT: u64 = PAGE + ENTRIES_BYTES + PAYLOAD_BYTES;
/// Before the entries: the word in which a parked thread says that it is done.
const DONE_BYTES: u64 = 16;
/// Of threads that work at the same time: calls and bytes of a batch of each.
pub const SLICE_ENTRIES: usize = 160;
pub const SLICE_PAYLOAD: usize = 4096;
const SLICE_BYTES: u64 = DONE_BYTES + ((SLICE_ENTRIES + 1) * ENTRY_BYTES + SLICE_PAYLOAD) as u64;
const _: () = assert!(SLICE_BYTES.is_multiple_of(8));
const _: () = assert!(DONE_BYTES + ((ENTRIES_MAX + 1) * ENTRY_BYTES) as u64 <= ENTRIES_BYTES);

/// How a thread is made to do a system call before the executor is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// A `syscall` instruction in the target.
    pub at: u64,
    /// Where the thread stays after the call; `None` for a husk.
    park: Option<Park>,
}

/// An instruction in the target that jumps to itself, with these flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Park {
    at: u64,
    flags: u64,
}

impl Gate {
    /// The gate of a husk, which need not be held.
    pub fn of_husk(at: u64) -> Gate {
        Gate { at, park: None }
    }

    /// Whether it is still there.
    pub fn stands(&self, pid: HostPid) -> bool {
        let reads = |at: u64| {
            let mut pair = [0; 2];
            memory::read(pid, at, &mut pair).map(|_| pair)
        };
        let parks = |park: Park| reads(park.at).is_ok_and(|pair| jumps_to_itself(&pair) == Some(park.flags));
        reads(self.at) == Ok(SYSCALL) && self.park.is_none_or(parks)
    }

    /// Whether a thread that stands at `rip` may be held by this gate or the
    /// executor at `base`.
    pub fn holds(&self, base: u64, rip: u64) -> bool {
        let parked = self.park.is_some_and(|park| park.at == rip);
        parked || [self.at, self.at + 2].contains(&rip) || (base..base + PAGE).contains(&rip)
    }
}

/// A place in the target where the executor stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Executor {
    base: u64,
    /// Batches end parked, not with a trap.
    parks: bool,
    room: Room,
}

/// Where batches stand, and how much room there is for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    done: u64,
    entries_max: usize,
    payload: u64,
    payload_bytes: usize,
}

impl Room {
    /// All there is behind the code.
    fn whole(base: u64) -> Room {
        Room {
            done: base + PAGE,
            entries_max: ENTRIES_MAX,
            payload: base + PAGE + ENTRIES_BYTES,
            payload_bytes: PAYLOAD_BYTES as usize,
        }
    }
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
#[derive(Clone, Debug)]
pub struct Batch {
    entries: Vec<Entry>,
    names: Vec<&'static str>,
    payload: Vec<u8>,
    room: Room,
    /// Where in the payload the first room for results is.
    answers: Option<usize>,
    /// The entry whose answer says that all is done.
    says_done: Option<usize>,
}

/// What a thread does as soon as it is made, on its own and untraced ([`Batch::thread`]).
/// Then it stays where it is.
#[derive(Debug)]
pub struct Program {
    batch: Batch,
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
            address: self.room.payload + offset as u64,
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
        self.entries[id.0].flags = MUST;
        id
    }

    /// Whether `calls` more calls with `payload` more bytes have room.
    pub fn has_room(&self, calls: usize, payload: usize) -> bool {
        let bytes = self.payload.len() + payload + 8 * calls;
        self.entries.len() + calls <= self.room.entries_max && bytes <= self.room.payload_bytes
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// A batch for a thread that this one is to make, behind what is in the payload now.
    /// `None`: there is no room for it.
    pub fn of_thread(&self) -> Option<Batch> {
        const CLONE: usize = size_of::<CloneArgs>() + 24;
        let room = self.has_room(1, CLONE + SLICE_BYTES as usize);
        let begin = self.payload.len().next_multiple_of(8) as u64;
        room.then(|| Batch {
            entries: Vec::new(),
            names: Vec::new(),
            payload: Vec::new(),
            room: Room {
                done: 0,
                entries_max: SLICE_ENTRIES,
                payload: self.room.payload + begin,
                payload_bytes: SLICE_PAYLOAD,
            },
            answers: None,
            says_done: None,
        })
    }

    /// Makes thread `tid`, which then does `own`, made for it just before.
    pub fn thread(&mut self, args: CloneArgs, tid: i32, own: Batch) -> Program {
        let mut batch = own;
        let payload = self.bytes(&batch.payload);
        debug_assert!(batch.payload.is_empty() || payload.address == batch.room.payload);
        batch.room.done = self.room.payload + self.payload.len().next_multiple_of(8) as u64;
        if let Some(at) = batch.says_done {
            batch.entries[at].copy_to = batch.room.done;
        }
        let stack = self.bytes(&batch.image());
        let set_tid = self.bytes(&tid.to_le_bytes());
        let args = CloneArgs {
            // It grows down, from a place that is not its end.
            stack: stack.address - DONE_BYTES,
            stack_size: DONE_BYTES,
            set_tid: set_tid.address,
            set_tid_size: 1,
            ..args
        };
        let args = self.bytes(&args.to_bytes());
        let call = self.must("clone3", libc::SYS_clone3, &[args.address, CloneArgs::SIZE]);
        self.entries[call.0].flags |= MAKES_THREAD;
        Program { batch }
    }

    /// The last call of a thread: it says that it is done when it is about to enter it.
    pub fn at_last(&mut self, name: &'static str, number: i64, args: &[u64]) -> CallId {
        let CallId(says_done) = self.must("gettid", libc::SYS_gettid, &[]);
        self.entries[says_done].copy_to = self.room.done;
        self.says_done = Some(says_done);
        self.call(name, number, args)
    }

    /// Where in the target the answer to a call is written.
    pub fn answer_at(&self, call: CallId) -> u64 {
        self.place_of(call, std::mem::offset_of!(Entry, result))
    }

    fn place_of(&self, call: CallId, offset: usize) -> u64 {
        self.room.done + DONE_BYTES + (call.0 * ENTRY_BYTES + offset) as u64
    }

    /// What a call answers becomes an argument of a later one.
    pub fn hand_on(&mut self, from: CallId, to: CallId, argument: usize) {
        const ARGS: usize = std::mem::offset_of!(Entry, args);
        self.entries[from.0].copy_to = self.place_of(to, ARGS + 8 * argument);
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
        // The word that says "done", not yet; another to keep the entries aligned.
        let mut image = vec![0; DONE_BYTES as usize];
        image.reserve((self.entries.len() + 1) * ENTRY_BYTES);
        for entry in self.entries.iter().chain([&end]) {
            let words = entry.to_words();
            words
                .iter()
                .for_each(|word| image.extend_from_slice(&word.to_le_bytes()));
        }
        image
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
        Executor {
            base,
            parks: false,
            room: Room::whole(base),
        }
    }

    /// The same for so many threads of one process that work at the same time: each has
    /// room for [`SLICE_ENTRIES`] calls and [`SLICE_PAYLOAD`] bytes.
    pub fn slices(self) -> impl Iterator<Item = Executor> {
        let first = self.room.payload;
        let slice = move |at: u64| {
            let done = first + at * SLICE_BYTES;
            let payload = done + DONE_BYTES + ((SLICE_ENTRIES + 1) * ENTRY_BYTES) as u64;
            let room = Room {
                done,
                entries_max: SLICE_ENTRIES,
                payload,
                payload_bytes: SLICE_PAYLOAD,
            };
            Executor { room, ..self }
        };
        (0..PAYLOAD_BYTES / SLICE_BYTES).map(slice)
    }

    /// The same, but batches end parked: [`Batch::at_last`].
    pub fn parking(self) -> Executor {
        Executor { parks: true, ..self }
    }

    pub fn span(&self) -> Span {
        Span {
            start: self.base,
            end: self.base + FOOTPRINT,
        }
    }

    /// Where the bytes of a batch stand in the target.
    pub fn payload(&self) -> u64 {
        self.room.payload
    }

    pub fn batch(&self) -> Batch {
        Batch {
            entries: Vec::new(),
            names: Vec::new(),
            payload: Vec::new(),
            room: self.room,
            answers: None,
            says_done: None,
        }
    }

    /// Maps the executor at `base` (free in the target) using thread `tid`,
    /// which is stopped with all signals blocked. Its registers are lost.
    pub fn infect(tid: HostPid, regs: &Regs, gate: Gate, base: u64) -> Result<Executor> {
        let executor = Executor {
            base,
            parks: gate.park.is_some(),
            room: Room::whole(base),
        };
        let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
        let mmap = |start: u64, len: u64, prot: i32| {
            let args = [start, len, prot as u64, flags, u64::MAX, 0];
            match gate.park {
                Some(_) => call_through(tid, regs, gate, libc::SYS_mmap, args),
                None => step_through(tid, regs, gate, libc::SYS_mmap, args),
            }
        };
        // Each call costs two stops, and the app stands still.
        let (code, data) = (libc::PROT_READ | libc::PROT_EXEC, libc::PROT_READ | libc::PROT_WRITE);
        let written = if mmap(base, FOOTPRINT, code | data)?.is_ok() {
            memory::write(tid, base, blob::executor())
        } else {
            mmap(base, PAGE, code)?.or_fail(|| format!("cannot map the executor into pid {tid}"))?;
            let mapped = mmap(base + PAGE, ENTRIES_BYTES + PAYLOAD_BYTES, data)?;
            mapped.and_then(|_| write_code(tid, base))
        };
        if let Err(errno) = written {
            call_through(tid, regs, gate, libc::SYS_munmap, [base, FOOTPRINT, 0, 0, 0, 0])?.ok();
            return Err(Error::failed(format!("cannot place the executor in pid {tid}")).because(errno));
        }
        Ok(executor)
    }

    /// Ignores SIGTRAP again, whose action the traps of batches have reset.
    pub fn ignore_trap(&self, tid: HostPid, regs: &Regs, gate: Gate, action: [u64; 4]) -> Result<()> {
        let bytes: Vec<u8> = action.iter().flat_map(|w| w.to_le_bytes()).collect();
        memory::write(tid, self.payload(), &bytes).map_err(|e| lost(tid, e))?;
        let args = [libc::SIGTRAP as u64, self.payload(), 0, 8, 0, 0];
        call_through(tid, regs, gate, libc::SYS_rt_sigaction, args)?
            .map(drop)
            .or_fail(|| format!("cannot give pid {tid} its action for SIGTRAP back"))
    }

    /// Unmaps the executor. The caller then gives the thread its registers back.
    pub fn cure(self, tid: HostPid, regs: &Regs, gate: Gate) -> Result<()> {
        let args = [self.base, FOOTPRINT, 0, 0, 0, 0];
        call_through(tid, regs, gate, libc::SYS_munmap, args)?
            .map(drop)
            .or_fail(|| format!("cannot unmap the executor from pid {tid}"))
    }

    /// The same for a husk that is about to get other registers: a step is one stop
    /// less. Its SIGTRAP gets the default action if it was ignored or blocked.
    pub fn cure_husk(self, tid: HostPid, regs: &Regs, gate: Gate) -> Result<()> {
        finish_cure(self.start_cure(tid, regs, gate)?)
    }

    /// Begins that, for [`finish_cure`].
    pub fn start_cure(self, tid: HostPid, regs: &Regs, gate: Gate) -> Result<Step> {
        let args = [self.base, FOOTPRINT, 0, 0, 0, 0];
        Step::start(tid, regs, gate, libc::SYS_munmap, args)
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
        let born = match self.parks {
            true => self.drive_parked(tid).map(|()| Vec::new())?,
            false => self.drive(tid)?,
        };
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
            .with(reg::RBX, self.entries())
            .with(reg::R12, if self.parks { self.done() } else { 0 })
            .with(reg::ORIG_RAX, u64::MAX);
        let image = batch.image();
        let pieces: [(u64, &[u8]); 2] = [(self.done(), &image), (batch.room.payload, &batch.payload)];
        let count = if batch.payload.is_empty() { 1 } else { 2 };
        let written = memory::write_all(tid, &pieces[..count]);
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
                Some(other) => return Err(astray(tid, other)),
                None => return Err(lost(nix::Error::ESRCH)),
            }
        }
    }

    /// The thread is done when it says so, on its way to park; then it is stopped.
    fn drive_parked(&self, tid: HostPid) -> Result<()> {
        let lost = |e| lost(tid, e);
        let mut rounds = 0u32;
        while memory::read_u64(tid, self.done()).map_err(lost)? == 0 {
            match ptrace::wait(tid, false).map_err(lost)? {
                None => ptrace::pause_briefly(&mut rounds),
                Some(Stop::Trap | Stop::Group(_)) => ptrace::cont(tid, 0).map_err(lost)?,
                Some(other) => return Err(astray(tid, other)),
            }
            if rounds > ptrace::SPINS && ptrace::is_dead(tid) {
                return Err(lost(nix::Error::ESRCH));
            }
        }
        ptrace::interrupt(tid).map_err(lost)?;
        match ptrace::wait(tid, true).map_err(lost)? {
            Some(Stop::Trap | Stop::Group(_)) => Ok(()),
            other => Err(other.map_or_else(|| lost(nix::Error::ESRCH), |stop| astray(tid, stop))),
        }
    }

    fn done(&self) -> u64 {
        self.room.done
    }

    fn entries(&self) -> u64 {
        self.room.done + DONE_BYTES
    }

    fn collect(&self, tid: HostPid, batch: &mut Batch) -> Sys<()> {
        let mut image = vec![0; batch.entries.len() * ENTRY_BYTES];
        memory::read(tid, self.entries(), &mut image)?;
        for (entry, words) in batch.entries.iter_mut().zip(words(&image).as_chunks::<10>().0) {
            entry.result = words[7];
        }
        if let Some(from) = batch.answers {
            memory::read(tid, batch.room.payload + from as u64, &mut batch.payload[from..])?;
        }
        Ok(())
    }
}

impl Batch {
    fn first_failure(&self) -> Option<(&'static str, &Entry, nix::Error)> {
        self.entries.iter().zip(&self.names).find_map(|(entry, name)| {
            let errno = check_raw(entry.result as i64).err()?;
            (entry.flags & MUST != 0).then_some((*name, entry, errno))
        })
    }
}

impl Program {
    /// Its stack pointer, by which it is told from others.
    pub fn stack(&self) -> u64 {
        self.batch.room.done
    }

    /// Where it stands in the target.
    pub fn span(&self) -> Span {
        let Room { done, payload, .. } = self.batch.room;
        let entries = (self.batch.entries.len() + 1) * ENTRY_BYTES;
        Span {
            start: payload,
            end: done + DONE_BYTES + entries as u64,
        }
    }

    /// Whether the thread is done, going by what stands at `start` in the target; takes the
    /// results then.
    pub fn is_done(&mut self, memory: &[u8], start: u64) -> bool {
        let words = words(&memory[(self.stack() - start) as usize..(self.span().end - start) as usize]);
        let entries = words[DONE_BYTES as usize / 8..].as_chunks::<10>().0;
        for (entry, words) in self.batch.entries.iter_mut().zip(entries) {
            entry.result = words[7];
        }
        words[0] != 0
    }

    /// As [`Batch::answer_at`].
    pub fn answer_at(&self, call: CallId) -> u64 {
        self.batch.answer_at(call)
    }

    /// A call that had to succeed and did not.
    pub fn judge(&self, pid: HostPid) -> Result<()> {
        match self.batch.first_failure() {
            None => Ok(()),
            Some((name, entry, errno)) => Err(Error::failed(format!("{name} failed in a thread of pid {pid}"))
                .because(format!("{name}({}): {errno}", arguments(entry)))),
        }
    }
}

pub fn lost(tid: HostPid, errno: nix::Error) -> Error {
    Error::failed(format!("cannot run system calls in pid {tid}")).because(errno)
}

fn astray(tid: HostPid, stop: Stop) -> Error {
    let at = ptrace::get_regs(tid).map_or(0, |r| r.get(reg::RIP));
    Error::failed(format!(
        "pid {tid} stopped unexpectedly in the middle of a batch: {stop:?} at {at:#x}"
    ))
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

/// A system call that blocks for ever, changes nothing and has no arguments.
const HARMLESS: i64 = libc::SYS_pause;

/// One system call through the gate. The thread enters the kernel with a harmless
/// call, which becomes the wanted one while it is stopped there, and returns to
/// the park.
pub fn call_through(tid: HostPid, regs: &Regs, gate: Gate, number: i64, args: [u64; 6]) -> Result<Sys<u64>> {
    let enter = regs
        .with(reg::RIP, gate.at)
        .with(reg::RAX, HARMLESS as u64)
        .with(reg::ORIG_RAX, u64::MAX);
    let call = regs
        .with(reg::RIP, gate.park.map_or(gate.at + 2, |park| park.at))
        .with(reg::EFLAGS, gate.park.map_or(regs.get(reg::EFLAGS), |park| park.flags))
        .with(reg::RAX, -i64::from(libc::ENOSYS) as u64)
        .with(reg::ORIG_RAX, number as u64)
        .with(reg::RDI, args[0])
        .with(reg::RSI, args[1])
        .with(reg::RDX, args[2])
        .with(reg::R10, args[3])
        .with(reg::R8, args[4])
        .with(reg::R9, args[5]);
    let failed = || format!("cannot make a system call in pid {tid}");
    for set in [enter, call] {
        ptrace::set_regs(tid, &set).or_fail(failed)?;
        ptrace::to_syscall(tid, 0).or_fail(failed)?;
        await_syscall_stop(tid)?;
    }
    let after = ptrace::get_regs(tid).or_fail(failed)?;
    Ok(check_raw(after.get(reg::RAX) as i64).map(|v| v as u64))
}

/// The same for a husk, or what dies with us as one: a step is one stop, not two.
fn step_through(tid: HostPid, regs: &Regs, gate: Gate, number: i64, args: [u64; 6]) -> Result<Sys<u64>> {
    Step::start(tid, regs, gate, number, args)?.finish()
}

/// Such a call under way.
#[derive(Debug)]
#[must_use = "the task is at work until it is finished"]
pub struct Step(HostPid);

impl Step {
    fn start(tid: HostPid, regs: &Regs, gate: Gate, number: i64, args: [u64; 6]) -> Result<Step> {
        let set = ptrace::set_regs(tid, &call_registers(regs, gate, number, args));
        set.and_then(|()| ptrace::single_step(tid)).or_fail(|| stepless(tid))?;
        Ok(Step(tid))
    }

    fn finish(self) -> Result<Sys<u64>> {
        let Step(tid) = self;
        let failed = || stepless(tid);
        while ptrace::wait(tid, true).or_fail(failed)? != Some(Stop::Signal(libc::SIGTRAP)) {
            ptrace::single_step(tid).or_fail(failed)?;
        }
        let after = ptrace::get_regs(tid).or_fail(failed)?;
        Ok(check_raw(after.get(reg::RAX) as i64).map(|v| v as u64))
    }
}

fn stepless(tid: HostPid) -> String {
    format!("cannot make a system call in pid {tid}")
}

/// Waits until a husk has no executor any more.
pub fn finish_cure(step: Step) -> Result<()> {
    let Step(tid) = step;
    step.finish()?
        .map(drop)
        .or_fail(|| format!("cannot unmap the executor from pid {tid}"))
}

/// Registers of a thread that is about to make a system call at the gate of a husk.
pub fn call_registers(regs: &Regs, gate: Gate, number: i64, args: [u64; 6]) -> Regs {
    regs.with(reg::RIP, gate.at)
        .with(reg::RAX, number as u64)
        .with(reg::ORIG_RAX, u64::MAX)
        .with(reg::RDI, args[0])
        .with(reg::RSI, args[1])
        .with(reg::RDX, args[2])
        .with(reg::R10, args[3])
        .with(reg::R8, args[4])
        .with(reg::R9, args[5])
}

/// Waits until a task that was sent [`ptrace::to_syscall`] is at its next entry to
/// or exit from a system call; these stops come without a signal.
pub fn await_syscall_stop(tid: HostPid) -> Result<()> {
    let failed = || format!("cannot make a system call in pid {tid}");
    loop {
        match ptrace::wait(tid, true).or_fail(failed)? {
            Some(Stop::Syscall) => return Ok(()),
            Some(Stop::Trap | Stop::Group(_) | Stop::Event(_)) => ptrace::to_syscall(tid, 0).or_fail(failed)?,
            _ => return Err(Error::failed(format!("pid {tid} ended in the middle of a system call"))),
        }
    }
}

/// The instruction `syscall`.
const SYSCALL: [u8; 2] = [0x0f, 0x05];

/// A `syscall` instruction in one of the executable spans.
pub fn find_gate(pid: HostPid, executable: &[Span]) -> Result<Gate> {
    let at = find(pid, executable, |pair| (pair == SYSCALL).then_some(()));
    let (at, ()) =
        at.ok_or_else(|| cannot_enter(pid, "none of its executable mappings holds a `syscall` instruction"))?;
    Ok(Gate::of_husk(at))
}

/// The same with a park: for a thread that must outlive its tracer.
pub fn find_held_gate(pid: HostPid, executable: &[Span]) -> Result<Gate> {
    let Gate { at, .. } = find_gate(pid, executable)?;
    let park = find(pid, executable, jumps_to_itself);
    let (park, flags) = park.ok_or_else(|| {
        cannot_enter(
            pid,
            "none of its executable mappings holds a jump to itself, where it would be safe if we died",
        )
    })?;
    let park = Some(Park { at: park, flags });
    Ok(Gate { at, park })
}

fn cannot_enter(pid: HostPid, because: &str) -> Error {
    Error::refused(format!("cannot enter pid {pid}")).because(because)
}

/// Flags with which the two bytes are a jump by -2: `jmp` (eb fe), or a
/// conditional one (70 to 7f, fe) whose condition they meet. Code that was never
/// meant as such will do.
fn jumps_to_itself(pair: &[u8]) -> Option<u64> {
    const INTERRUPTS: u64 = 0x202;
    // O, C, Z, C (below or equal), S, P, S (less: unlike O), Z (less or equal).
    const MEETS: [u64; 8] = [0x800, 1, 0x40, 1, 0x80, 4, 0x80, 0x40];
    match pair {
        [0xeb, 0xfe] => Some(INTERRUPTS),
        // An odd condition is the opposite of the even one before it.
        [code @ 0x70..=0x7f, 0xfe] if code % 2 == 1 => Some(INTERRUPTS),
        [code @ 0x70..=0x7f, 0xfe] => Some(INTERRUPTS | MEETS[usize::from(code - 0x70) / 2]),
        _ => None,
    }
}

/// The first two bytes that `wanted` takes, in the order of the spans.
fn find<T>(pid: HostPid, spans: &[Span], wanted: impl Fn(&[u8]) -> Option<T>) -> Option<(u64, T)> {
    let longest = spans.iter().map(Span::len).max().unwrap_or(0);
    let mut buffer = vec![0u8; longest.min(64 << 10) as usize];
    for span in spans {
        let mut at = span.start;
        while at < span.end {
            let len = (span.end - at).min(buffer.len() as u64) as usize;
            if memory::read(pid, at, &mut buffer[..len]).is_err() {
                break;
            }
            let pairs = buffer[..len].windows(2).enumerate();
            if let Some(found) = pairs
                .filter_map(|(offset, pair)| Some((at + offset as u64, wanted(pair)?)))
                .next()
            {
                return Some(found);
            }
            at += len as u64;
        }
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_to_itself_are_known_by_their_flags() {
        assert_eq!(jumps_to_itself(&[0xeb, 0xfe]), Some(0x202));
        assert_eq!(jumps_to_itself(&[0x7a, 0xfe]), Some(0x206), "parity");
        assert_eq!(jumps_to_itself(&[0x7e, 0xfe]), Some(0x242), "less or equal");
        assert_eq!(jumps_to_itself(&[0x75, 0xfe]), Some(0x202), "not equal");
        assert_eq!(jumps_to_itself(&[0x75, 0xfd]), None);
        assert_eq!(jumps_to_itself(&[0xe8, 0xfe]), None);
    }

    /// Every program has the vdso: it alone must do.
    #[test]
    fn our_own_vdso_has_a_gate_and_a_park() {
        let own = HostPid(std::process::id() as i32);
        let maps = crate::proc::mappings(own).unwrap();
        let vdso: Vec<Span> = maps.iter().filter(|m| m.name == "[vdso]").map(|m| m.span()).collect();
        let gate = find_held_gate(own, &vdso).unwrap();
        let inside = |at: u64| vdso.iter().any(|span| (span.start..span.end).contains(&at));
        assert!(inside(gate.at) && gate.park.is_some_and(|park| inside(park.at)));
    }
}
