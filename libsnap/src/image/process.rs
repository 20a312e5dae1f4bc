//! One live process as it stands in a core file.

use super::records::{ProcessRecord, ThreadRecord, Vma};
use crate::ids::VirtualPid;
use std::ops::Range;

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
    /// What holds them. As a core file tells it: 0 is the file itself, N is lender N-1
    /// of the manifest. In an [`Appshot`](super::Appshot): the number of a part.
    pub part: usize,
    /// In that file; a multiple of the page size.
    pub offset: u64,
    pub bytes: u64,
}

impl Segment {
    pub fn place(&self) -> Place {
        Place {
            part: self.part,
            offset: self.offset,
        }
    }

    /// Behind its last byte.
    pub fn end(&self) -> u64 {
        self.vaddr + self.bytes
    }

    /// Those of `segments`, which ascend, that hold any of these addresses.
    pub fn among(segments: &[Segment], addresses: Range<u64>) -> &[Segment] {
        let first = segments.partition_point(|segment| segment.end() <= addresses.start);
        let rest = &segments[first..];
        &rest[..rest.partition_point(|segment| segment.vaddr < addresses.end)]
    }

    /// The one of `segments`, which ascend, that holds this address.
    pub fn at(segments: &[Segment], address: u64) -> Option<&Segment> {
        let first = segments.partition_point(|segment| segment.end() <= address);
        segments.get(first).filter(|segment| segment.vaddr <= address)
    }
}

/// Where bytes are stored: the number of a part, and an offset in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub part: usize,
    pub offset: u64,
}

impl Place {
    /// So many bytes behind.
    pub fn ahead(self, bytes: u64) -> Place {
        Place {
            offset: self.offset + bytes,
            ..self
        }
    }
}

/// What a core file says.
#[derive(Debug)]
pub struct Core {
    /// The number of its part.
    pub part: usize,
    pub image: ProcessImage,
    /// In address order. Pages of private anonymous mappings that no segment covers are
    /// zero.
    pub segments: Vec<Segment>,
}
