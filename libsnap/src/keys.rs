//! Memory protection keys (pkeys(7)): which of them a process has allocated, which one the
//! kernel has taken for memory that can only be executed (mprotect(2)), and what a thread may do
//! with the memory that has one (PKRU).
//!
//! Which mapping has which key tells smaps; PKRU is one of the registers. What is allocated
//! is asked without changing it: pkey_mprotect(2) of an address that no process has judges the key
//! first. The key for what can only be executed answers as one that is free. So all others are
//! allocated and freed again in the same batch: the one that nobody gets is it.
//!
//! A new process gets the same numbers: the kernel gives the lowest that is free.

use crate::error::{Error, Result};
use crate::executor::{Batch, CallId};
use crate::ids::HostPid;
use crate::image::ProcessImage;
use crate::image::records::{Keys, Vma};
use crate::kernel;
use crate::restore::script::Script;
use crate::sys::memory::PAGE;
use crate::sys::{self, Sys, ptrace};
use nix::errno::Errno;
use std::ops::Range;
use std::sync::OnceLock;

/// Besides key 0, which all memory has that was given no other.
const NUMBERS: Range<u32> = 1..16;
/// Of PKRU: what is forbidden with memory that has key 0.
const ORDINARY: u32 = 3;
/// Of PKRU, as execve(2) leaves it: memory with any key but 0 is forbidden.
const FRESH: u32 = 0x5555_5554;
/// PKRU among the state components of the processor.
const COMPONENT: u32 = 9;
/// In an xsave area: a bit for each component that is not as at the begin.
const XSTATE_BV: usize = 512;

/// Where PKRU stands in an xsave area; `None` where the processor, or the kernel, has no keys.
fn place() -> Option<usize> {
    static PLACE: OnceLock<Option<usize>> = OnceLock::new();
    *PLACE.get_or_init(|| {
        let has = kernel::xcr0() & 1 << COMPONENT != 0;
        has.then(|| sys::xsave_offset(COMPONENT) as usize)
    })
}

/// Whether processes can have any here.
pub fn are_there() -> bool {
    place().is_some()
}

/// What a thread with these registers may do.
fn rights(xsave: &[u8]) -> Option<u32> {
    let place = place()?;
    let word = xsave.get(place..place + 4)?;
    Some(u32::from_le_bytes(word.try_into().unwrap_or_default()))
}

/// The same of a thread that stands still.
pub fn rights_of(tid: HostPid) -> Sys<Option<u32>> {
    match place() {
        Some(_) => Ok(rights(&ptrace::get_xsave(tid)?)),
        None => Ok(None),
    }
}

/// Whether they are in the way of foreign code, which has ordinary memory.
pub fn hinder(rights: u32) -> bool {
    rights & ORDINARY != 0
}

/// Those with which it can run.
pub fn unhindered(rights: u32) -> u32 {
    rights & !ORDINARY
}

/// Puts them among registers.
pub fn put(xsave: &mut [u8], rights: u32) {
    let Some(place) = place().filter(|place| xsave.len() >= place + 4) else {
        return;
    };
    xsave[place..place + 4].copy_from_slice(&rights.to_le_bytes());
    xsave[XSTATE_BV + COMPONENT as usize / 8] |= 1 << (COMPONENT % 8);
}

/// Gives them to a thread that stands still.
pub fn give(tid: HostPid, rights: u32) -> Sys<()> {
    if !are_there() {
        return Ok(());
    }
    let mut xsave = ptrace::get_xsave(tid)?;
    if self::rights(&xsave) == Some(rights) {
        return Ok(());
    }
    put(&mut xsave, rights);
    ptrace::set_xsave(tid, &xsave)
}

/// What a process is asked.
#[derive(Clone, Debug)]
pub struct Asked {
    known: Vec<CallId>,
    gained: Vec<CallId>,
}

impl Asked {
    /// `None` where there are no keys. What the thread that is asked may do with memory of keys
    /// that are free has to be given back to it.
    pub fn ask(batch: &mut Batch) -> Option<Asked> {
        const NOWHERE: u64 = 0xffff_ffff_ffff_0000;
        const PKEY_DISABLE_ACCESS: u64 = 1;
        place()?;
        let known = NUMBERS.map(|key| {
            let args = [NOWHERE, PAGE, 0, u64::from(key)];
            batch.call("pkey_mprotect", libc::SYS_pkey_mprotect, &args)
        });
        let known = known.collect();
        let gained = NUMBERS.map(|_| batch.call("pkey_alloc", libc::SYS_pkey_alloc, &[0, PKEY_DISABLE_ACCESS]));
        let gained: Vec<CallId> = gained.collect();
        for got in &gained {
            let freed = batch.call("pkey_free", libc::SYS_pkey_free, &[0]);
            batch.hand_on(*got, freed, 0);
        }
        Some(Asked { known, gained })
    }

    /// `None`: it has none.
    pub fn answers(&self, batch: &Batch) -> Option<Keys> {
        let known = NUMBERS.zip(&self.known);
        let known = known.filter(|(_, call)| batch.result(**call) == Err(Errno::ENOMEM));
        let allocated = known.fold(0, |all, (key, _)| all | 1 << key);
        let gained = self.gained.iter().filter_map(|call| batch.result(*call).ok());
        let there = gained.fold(allocated, |all, key| all | 1u16.checked_shl(key as u32).unwrap_or(0));
        let mut missing = NUMBERS.filter(|key| there & 1 << key == 0);
        let execute_only = missing.next().filter(|_| missing.next().is_none()).unwrap_or(0);
        (allocated != 0 || execute_only != 0).then_some(Keys {
            allocated,
            execute_only,
        })
    }
}

/// The highest that a process or a mapping of it has.
fn highest(image: &ProcessImage) -> u32 {
    let Keys {
        allocated,
        execute_only,
    } = image.process.keys.unwrap_or_default();
    let mapped = image.vmas.iter().map(|vma| vma.key).max().unwrap_or(0);
    mapped.max(execute_only).max(allocated.checked_ilog2().unwrap_or(0))
}

/// Whether it needs a processor that has them.
pub fn uses(image: &ProcessImage) -> bool {
    highest(image) != 0 || image.threads.iter().any(|thread| differs(&thread.xsave))
}

fn differs(xsave: &[u8]) -> bool {
    rights(xsave).is_some_and(|rights| rights != FRESH)
}

/// Allocates all that mappings are to have. Memory may have one that was freed.
pub fn allocate(script: &mut Script<'_>, image: &ProcessImage) -> Result<()> {
    let keys = image.process.keys.unwrap_or_default();
    for key in NUMBERS.start..=highest(image) {
        if key == keys.execute_only {
            take_execute_only(script)?;
        } else {
            let call = script.must("pkey_alloc", libc::SYS_pkey_alloc, &[0, 0])?;
            script.expect(call, "allocating a protection key", u64::from(key));
        }
    }
    Ok(())
}

/// The kernel takes the lowest that is free, and keeps it.
fn take_execute_only(script: &mut Script<'_>) -> Result<()> {
    let at = script.executor().span().end;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE) as u64;
    let args = [at, PAGE, libc::PROT_EXEC as u64, flags, u64::MAX, 0];
    script.must("mmap", libc::SYS_mmap, &args)?;
    script.must("munmap", libc::SYS_munmap, &[at, PAGE]).map(drop)
}

/// Frees those that the process has not.
pub fn free(script: &mut Script<'_>, image: &ProcessImage) -> Result<()> {
    let keys = image.process.keys.unwrap_or_default();
    let has = |key: u32| key == keys.execute_only || keys.allocated & 1 << key != 0;
    for key in (NUMBERS.start..=highest(image)).filter(|key| !has(*key)) {
        script.must("pkey_free", libc::SYS_pkey_free, &[u64::from(key)])?;
    }
    Ok(())
}

/// What the kernel would give a key to by itself is mapped otherwise at first.
pub fn is_execute_only(prot: u32) -> bool {
    prot == libc::PROT_EXEC as u32
}

/// Gives a mapping its protection, and its key.
pub fn protect(script: &mut Script<'_>, vma: &Vma, keys: Option<Keys>) -> Result<()> {
    let args = [vma.start, vma.end - vma.start, u64::from(vma.prot), u64::from(vma.key)];
    let by_itself = vma.key != 0 && keys.is_some_and(|keys| keys.execute_only == vma.key);
    let named = vma.key != 0 || is_execute_only(vma.prot) && are_there();
    match named && !by_itself {
        true => script.must("pkey_mprotect", libc::SYS_pkey_mprotect, &args),
        false => script.must("mprotect", libc::SYS_mprotect, &args[..3]),
    }
    .map(drop)
}

/// Whether a thread can be given what it may do: Linux 5.14 to 6.1 take no PKRU from a tracer.
/// Asks a child.
pub fn require_given() -> Result<()> {
    static GIVEN: OnceLock<bool> = OnceLock::new();
    let works = *GIVEN.get_or_init(|| {
        kernel::of_child(|child| give(child, 0).and_then(|()| rights_of(child)))
            .is_some_and(|rights| rights == Ok(Some(0)))
    });
    match works {
        true => Ok(()),
        false => Err(
            Error::new(crate::error::Kind::Unavailable, "cannot restore this appshot")
                .because(
                    "the app uses memory protection keys (pkeys), and a thread cannot be given its rights here (PKRU)",
                )
                .needs("a processor with protection keys (pku), and a kernel that takes PKRU from a tracer (Linux 6.2)")
                .fix("restore it on a machine that has both")
                .state("nothing was started"),
        ),
    }
}
