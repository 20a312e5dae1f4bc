//! The appshot format: what a frozen app looks like on disk.
//!
//! Nothing in here calls the kernel for anything but files. An appshot opens,
//! verifies and lists on any Linux machine, without rights.
//!
//! # The directory
//!
//! ```text
//! NAME.appshot/          0700
//!   manifest             0600  the seal, then the records of the whole app
//!   2.core               0600  one ELF core file per live process, named by virtual PID
//!   shm-0.data ...       0600  raw content of shared memory and unlinked files
//!   digests              0600  BLAKE3 of each 64 KiB of these, see [`leaves`]
//! ```
//!
//! It is written under a hidden name next to its destination and renamed when
//! every byte is on disk, read back and verified. So a directory of the final
//! name is whole, or was damaged later, which its digests show: the manifest
//! holds the size and BLAKE3 digest of every other file, the seal those of the
//! manifest. Files that the manifest does not list are refused.
//!
//! # `manifest`
//!
//! ```text
//! APPSHOT 3 <n> <64 hex digits>\n     version, size and BLAKE3 of what follows
//! { ... }                             n bytes: records::Manifest as JSON, to the end
//! ```
//!
//! # `<vpid>.core`
//!
//! An ELF core file that `gdb` and `readelf` understand. All numbers are
//! little-endian; nothing lies between or after the areas below.
//!
//! ```text
//!      0  Elf64_Ehdr (64 bytes), zeroes up to 4096
//!           e_type ET_CORE, e_machine EM_X86_64, e_phoff = P
//!           e_phnum, or PN_XNUM (0xffff) from 65535 headers on
//!   4096  memory pages, back to back; pages of zeroes are holes of the file. In address
//!         order unless the app ran on while they were copied: then pages that it made
//!         meanwhile come behind, and what is of no segment any more is a hole
//!      N  notes; each is
//!           u32 name size with NUL, u32 content size, u32 type,
//!           name padded to 4, content padded to 4
//!           for every thread, the first is the main thread:
//!             "CORE"     1 NT_PRSTATUS     336  ids at 32, registers (27 x u64) at 112
//!             "CORE"     2 NT_FPREGSET     512  first 512 bytes of the xsave area
//!             "LINUX"    0x202 NT_X86_XSTATE    the xsave area
//!             "APPSHOT"  0x41505302             ThreadRecord as JSON
//!           then once:
//!             "CORE"     3 NT_PRPSINFO     136  for gdb only
//!             "CORE"     6 NT_AUXV              for gdb only
//!             "CORE"     0x46494c45 NT_FILE     for gdb only
//!             "APPSHOT"  0x41505301             ProcessRecord as JSON
//!             "APPSHOT"  0x41505303             Vec<Vma> as JSON
//!             "APPSHOT"  0x41505304             only if pages are borrowed: for each run
//!                        4 x u64: address, bytes, lender (from 1 on), offset in its file
//!         zeroes up to a multiple of 8
//!      S  Elf64_Shdr (64 bytes) with the number of headers in sh_info,
//!           only if e_phnum is PN_XNUM
//!      P  Elf64_Phdr (56 bytes each) up to the end of the file
//!           PT_NOTE
//!           PT_LOAD for each run of stored pages, never across two mappings;
//!             p_memsz reaches to the next run, so that gdb shows zeroes between.
//!             Addresses ascend, p_offset need not; no two have a byte in common
//!           PT_LOAD with p_filesz 0 for a mapping that starts with absent pages;
//!             its p_offset is that of the next stored page
//! ```
//!
//! Our notes have large type numbers because gdb reads types it knows
//! whatever the name: an "APPSHOT" note of type 2 would be taken for
//! floating-point registers.
//!
//! # Borrowed pages
//!
//! A page that another core holds is stored once. The manifest lists the cores that
//! lend (`lenders`): of this appshot, whose processes share pages since a fork, or of
//! another one (`parents`) from which this one differs in little. A core's table of
//! borrowed pages tells where in their files the pages are:
//!
//! ```text
//!   7.core  pages: own | borrowed ---lender 1---> 2.core     stored pages, the same appshot
//!                      | borrowed ---lender 2---> 7.core of web.appshot, a parent
//! ```
//!
//! What is borrowed is stored there: never borrowed again. A page is stored, or borrowed,
//! or neither. A parent stands in the same directory and is told by its *identity*, the BLAKE3 of its manifest file,
//! which this manifest seals; so each leaf that is borrowed is verified with the digest of
//! the appshot that holds it. Where a parent is missing or another, nothing can be
//! restored, and nothing is packed: [`flatten`] writes an appshot that needs no other.
//!
//! gdb shows borrowed pages as zeroes, since their headers have no bytes of this file;
//! [`whole_core`] writes a core that has them.
//!
//! # The packed form
//!
//! See [`packed`].
//!
//! # Reading
//!
//! [`Appshot::open`] checks in this order: the seal, the manifest by itself,
//! the names and sizes of all files, their digests, the cores by themselves,
//! and all references between them. [`Appshot::open_to_verify`] leaves the
//! digests for later: a restore verifies them while it builds processes, and lets
//! none run before. The descriptors that are verified are kept; nobody opens a
//! part by name afterwards. Every length is held against
//! [`limits`] before memory is taken for it.

use std::ops::Range;

mod blocks;
#[cfg(test)]
mod borrow_tests;
pub mod compare;
mod core_read;
#[cfg(test)]
mod core_tests;
mod core_write;
mod digest;
mod elf;
mod fault;
mod flatten;
mod leaves;
mod lenders;
pub mod limits;
mod look;
mod manifest;
pub mod mounts;
mod notes;
pub mod packed;
mod parents;
mod process;
mod reader;
pub mod records;
#[cfg(test)]
pub(crate) mod sample;
mod source;
mod staging;
mod validate;
mod validate_files;
mod validate_ipc;
mod validate_namespaces;
mod validate_process;
#[cfg(test)]
mod validate_tests;
mod writer;

pub use blocks::Memory;
pub use core_read::parse as parse_core;
pub use core_write::{CoreWriter, Layout};
pub use digest::{LEAF, processors};
pub use flatten::{flatten, flatten_in_place, whole_core};
pub use leaves::{DIGESTS, Leaves, Pieces};
pub use lenders::Former;
pub use look::{Damage, Glance, damage, glance, sizes};
pub use manifest::parse as parse_manifest;
pub use notes::decode as parse_notes;
pub use packed::{Packed, pack, pack_to, parse as parse_packed, unpack};
pub use parents::{Needed, children, identity, needed};
pub use process::{Core, Place, ProcessImage, Segment, ThreadImage};
pub use reader::{Appshot, Digests};
pub use source::Source;
pub use staging::{abandoned, sweep};
pub use writer::{BlobWriter, Sealed, Unsealed, Writer, core_name};

/// Version of the format that is written, and the only one that is read.
pub const FORMAT: u32 = 3;

/// Name of the part that seals the others.
pub const MANIFEST: &str = "manifest";

/// The only page size of x86-64.
pub const PAGE: u64 = 4096;

/// The runs of pages that are not all zero, in bytes that begin with a page.
pub fn data_runs(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    const STEP: usize = PAGE as usize;
    static ZERO: [u8; STEP] = [0; STEP];
    let is_data = |start: usize| {
        let page = &bytes[start..bytes.len().min(start + STEP)];
        *page != ZERO[..page.len()]
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = (at..bytes.len()).step_by(STEP).find(|page| is_data(*page))?;
        let end = (start..bytes.len()).step_by(STEP).find(|page| !is_data(*page));
        at = end.unwrap_or(bytes.len());
        Some(start..at)
    })
}
