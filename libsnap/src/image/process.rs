//! One live process as it stands in a core file.

use super::records::{ProcessRecord, ThreadRecord, Vma};
use crate::ids::VirtualPid;
use std::fs::File;

/// `struct user_regs_struct` as words.
pub const REGISTERS: usize = 27;

#[derive(Clone, Debug, PartialEq)]
pub struct ThreadImage {
    pub record: ThreadRecord,
    /// `struct user_regs_struct` (`PTRACE_GETREGSET` NT_PRSTATUS).
    pub regs: [u64; REGISTERS],
    /// `PTRACE_GETREGSET` NT_X86_XSTATE.
    pub xsave: Vec<u8>,
}

/// Everything of a process but its memory.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessImage {
    pub process: ProcessRecord,
    /// That of the main thread.
    pub comm: String,
    pub ppid: VirtualPid,
    pub pgid: VirtualPid,
    pub sid: VirtualPid,
    /// The main thread first.
    pub threads: Vec<ThreadImage>,
    /// In address order.
    pub vmas: Vec<Vma>,
}

/// A run of stored pages. It lies within one mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub vaddr: u64,
    /// In the core file; a multiple of the page size.
    pub offset: u64,
    pub bytes: u64,
}

/// A verified core file.
#[derive(Debug)]
pub struct Core {
    /// The descriptor whose content was verified: read memory from here.
    pub file: File,
    pub image: ProcessImage,
    /// In address order. Pages of private anonymous mappings that no segment
    /// covers are zero.
    pub segments: Vec<Segment>,
}
