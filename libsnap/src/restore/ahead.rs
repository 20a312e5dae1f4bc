//! Programs and libraries that an app needs first, read while it is being made.
//!
//! An app that was not needed for long finds nothing of its files in the page cache, and
//! would ask for them piece by piece, each after the one before. What the first second of
//! an instance had of them is known from one to the next ([`super::working_set`]); it is
//! asked for all at once (posix_fadvise(2), POSIX_FADV_WILLNEED) as soon as an appshot has
//! been opened. Nothing but time depends on it.

use super::eager;
use super::opened::Opened;
use super::working_set::Run;
use crate::ids::HostPid;
use crate::image::records::{Vma, VmaKind};
use crate::image::{Core, Segment};
use crate::sys::memory::{self, Span};
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;

/// What is read of each file, by offsets.
type Wanted<'a> = BTreeMap<&'a str, Vec<Range<u64>>>;

/// A file takes a few reads, one after the other, only to be found.
const THREADS: usize = 4;
/// More is not read ahead, whatever an appshot says.
const BYTES_MAX: u64 = 256 << 20;

/// Begins to read; nobody has to wait for it.
pub fn begin(opened: &Opened) {
    let cores = &opened.shot.cores;
    let known = opened.working_set();
    let known = known.iter().flat_map(|known| known.files().iter().copied());
    let mut left = BYTES_MAX;
    let runs = known.chain(changed(cores)).take_while(|run| {
        let fits = run.bytes <= left;
        left = left.saturating_sub(run.bytes);
        fits
    });
    let wanted = wanted(cores, runs).into_iter();
    let files: Vec<(PathBuf, Vec<Range<u64>>)> = wanted.map(|(path, ranges)| (path.into(), ranges)).collect();
    for share in files.chunks(files.len().div_ceil(THREADS).max(1)) {
        let share = share.to_vec();
        let read = move || {
            // Who begins it may be pinned, and come before others.
            eager::at_large();
            share.iter().for_each(|(path, ranges)| ask(path, ranges));
        };
        // Without a thread it is read when it is needed.
        thread::Builder::new().name("ahead".into()).spawn(read).ok();
    }
}

/// Which files' pages these processes, by their places among the cores, have now.
pub fn touched(opened: &Opened, processes: &[(usize, HostPid)]) -> Vec<Run> {
    let mut touched = Vec::new();
    for (core, pid) in processes {
        let Ok(pagemap) = File::open(format!("/proc/{pid}/pagemap")) else {
            continue;
        };
        for vma in &opened.shot.cores[*core].image.vmas {
            let mut found = Vec::new();
            if file(vma).is_some() {
                // Where the kernel cannot tell, nothing is known.
                memory::scan_files(&pagemap, vma.into(), &mut found).ok();
            }
            let run = |span: Span| Run {
                core: *core,
                address: span.start,
                bytes: span.len(),
            };
            touched.extend(found.into_iter().map(run));
        }
    }
    touched
}

fn file(vma: &Vma) -> Option<(&str, u64)> {
    match &vma.kind {
        VmaKind::PrivateFile { path, offset } | VmaKind::SharedFile { path, offset, .. } => Some((path, *offset)),
        _ => None,
    }
}

/// Pages of files that are written over.
fn changed(cores: &[Core]) -> impl Iterator<Item = Run> {
    cores.iter().enumerate().flat_map(|(core, of)| {
        let private = of
            .image
            .vmas
            .iter()
            .filter(|vma| matches!(vma.kind, VmaKind::PrivateFile { .. }));
        private.flat_map(move |vma| {
            let own = Segment::among(&of.segments, vma.start..vma.end);
            own.iter().map(move |segment| Run {
                core,
                address: segment.vaddr,
                bytes: segment.bytes,
            })
        })
    })
}

/// Where these runs lie in files, as far as there are such mappings.
fn wanted(cores: &[Core], runs: impl Iterator<Item = Run>) -> Wanted<'_> {
    let mut wanted = Wanted::new();
    for run in runs {
        let vmas = cores.get(run.core).map_or(&[][..], |core| &core.image.vmas);
        let first = vmas.partition_point(|vma| vma.end <= run.address);
        let end = run.address + run.bytes;
        for vma in vmas[first..].iter().take_while(|vma| vma.start < end) {
            let Some((path, offset)) = file(vma) else { continue };
            let span = run.address.max(vma.start)..end.min(vma.end);
            let begin = offset + (span.start - vma.start);
            let range = begin..begin + (span.end - span.start);
            wanted.entry(path).or_default().push(range);
        }
    }
    wanted
}

/// Devices and fifos may be mapped, too: to open one is an act.
fn ask(path: &Path, ranges: &[Range<u64>]) {
    if !fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file()) {
        return;
    }
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(path) else {
        return;
    };
    for range in ranges {
        let (offset, bytes) = (range.start.cast_signed(), (range.end - range.start).cast_signed());
        posix_fadvise(&file, offset, bytes, PosixFadviseAdvice::POSIX_FADV_WILLNEED).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::sample;

    /// What is known lies partly in no file at all, and of a process that there is not.
    #[test]
    fn runs_are_found_in_their_files() {
        let page = |core: usize, address: u64, pages: u64| Run {
            core,
            address,
            bytes: pages * 4096,
        };
        let segment = |vaddr: u64| Segment {
            vaddr,
            part: 0,
            offset: 0,
            bytes: 4096,
        };
        let core = Core {
            part: 0,
            image: sample::process(2, 1),
            segments: vec![segment(0x40_1000), segment(0x1000_0000)],
        };
        let cores = [core];
        let known = [
            page(0, 0x3f_f000, 3),
            page(0, 0x7f00_1000_0000, 1),
            page(0, 0x7fff_f000_4000, 1),
            page(1, 0x40_0000, 1),
            page(0, u64::MAX - 4095, 0),
        ];
        let found = wanted(&cores, known.into_iter().chain(changed(&cores)));
        assert_eq!(found.len(), 1);
        assert_eq!(found["/usr/bin/sample"], [0..2 * 4096, 4096..2 * 4096, 4096..2 * 4096]);
    }
}
