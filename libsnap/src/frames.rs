//! Pages that processes of an app have shared since a fork: the same frame of memory,
//! until one of them writes to it. The appshot holds them once.
//!
//! Read from `/proc/PID/pagemap`, which tells frames only to who has CAP_SYS_ADMIN
//! (proc_pid_pagemap(5), Linux 4.2); without it nothing is found. All processes must
//! stand still. The kernel may still move a page to another frame: so the frame of the
//! first owner is read before and after those of the others, and a page that has moved
//! in between is taken for one of its own.

use crate::error::Result;
use crate::ids::HostPid;
use crate::image::Appshot;
use crate::image::records::{Vma, VmaKind};
use crate::pages;
use crate::sys::memory::{self as sys, PAGE, Span};
use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasherDefault, Hasher};

/// Pages that a process has in common with one that stands before it, at the same
/// addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Common {
    pub span: Span,
    /// The place of the first owner among the processes.
    pub owner: usize,
}

/// What is known of the frames of a process.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Frames {
    /// Ascending.
    pub common: Vec<Common>,
    /// Pages that others may have too, whoever they are; ascending.
    pub shared: Vec<Span>,
}

/// Bits of a word of pagemap.
const FRAME: u64 = (1 << 55) - 1;
/// Nobody else has it.
const EXCLUSIVE: u64 = 1 << 56;
const FILE_OR_SHARED: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;

/// The frame of a page that others may have too.
fn frame(word: u64) -> Option<u64> {
    let found = word & (PRESENT | SWAPPED | FILE_OR_SHARED | EXCLUSIVE) == PRESENT;
    Some(word & FRAME).filter(|frame| found && *frame != 0)
}

/// Looks for it among these ascending spans of each process, all of them readable
/// private pages. One answer a process.
pub fn look(processes: &[(HostPid, Vec<Span>)]) -> Result<Vec<Frames>> {
    let mut owners: HashMap<u64, (usize, u64), BuildHasherDefault<Mixed>> = HashMap::default();
    let mut found: Vec<Frames> = Vec::with_capacity(processes.len());
    let mut pagemaps = Vec::with_capacity(processes.len());
    for (at, (pid, spans)) in processes.iter().enumerate() {
        let pagemap = pages::pagemap(*pid)?;
        let mut own = Frames::default();
        each_frame(&pagemap, spans, |page, frame| {
            let (owner, address) = *owners.entry(frame).or_insert((at, page));
            if owner != at && address == page {
                push(&mut own.common, page, owner);
            }
            let end = page + PAGE;
            pages::push(&mut own.shared, Span { start: page, end });
        });
        found.push(own);
        pagemaps.push(pagemap);
    }
    drop_moved(&pagemaps, &owners, &mut found);
    Ok(found)
}

/// Leaves out what its owner no longer has in the frame where it was found.
fn drop_moved(pagemaps: &[File], owners: &HashMap<u64, (usize, u64), BuildHasherDefault<Mixed>>, found: &mut [Frames]) {
    for (owner, pagemap) in pagemaps.iter().enumerate() {
        let all = found.iter().flat_map(|own| &own.common);
        let lent = all.filter(|common| common.owner == owner);
        let lent: Vec<Span> = pages::union(&lent.map(|common| common.span).collect::<Vec<_>>(), &[]);
        if lent.is_empty() {
            continue;
        }
        let mut still = Vec::new();
        each_frame(pagemap, &lent, |page, frame| {
            if owners.get(&frame) == Some(&(owner, page)) {
                let end = page + PAGE;
                pages::push(&mut still, Span { start: page, end });
            }
        });
        let moved = pages::without(&lent, &still);
        if moved.is_empty() {
            continue;
        }
        for own in found.iter_mut() {
            let kept = own.common.iter().flat_map(|common| {
                let left = match common.owner == owner {
                    true => pages::without(&[common.span], &moved),
                    false => vec![common.span],
                };
                left.into_iter().map(|span| Common { span, ..*common })
            });
            own.common = kept.collect();
        }
    }
}

fn push(own: &mut Vec<Common>, page: u64, owner: usize) {
    match own.last_mut() {
        Some(last) if last.owner == owner && last.span.end == page => last.span.end += PAGE,
        _ => own.push(Common {
            span: Span {
                start: page,
                end: page + PAGE,
            },
            owner,
        }),
    }
}

/// Pages of the first process of this appshot, forked off a template, that it has for
/// itself by now: it has written to them. At most so many. Nothing where that would take
/// long to tell.
pub fn own(pid: HostPid, shot: &Appshot, most: usize) -> Vec<Span> {
    const BYTES_MAX: u64 = 1 << 30;
    let Some(core) = shot.cores.first() else {
        return Vec::new();
    };
    let kept = |vma: &&Vma| {
        let private = matches!(vma.kind, VmaKind::Anon | VmaKind::PrivateFile { .. });
        private && vma.prot & libc::PROT_WRITE as u32 != 0
    };
    let spans: Vec<Span> = core.image.vmas.iter().filter(kept).map(Span::from).collect();
    let (Ok(pagemap), true) = (
        pages::pagemap(pid),
        spans.iter().map(Span::len).sum::<u64>() <= BYTES_MAX,
    ) else {
        return Vec::new();
    };
    let (mut found, mut left) = (Vec::new(), most);
    for span in spans {
        let read = sys::pagemap_words(&pagemap, span, |page, word| {
            if left > 0 && word & (PRESENT | FILE_OR_SHARED | EXCLUSIVE) == PRESENT | EXCLUSIVE {
                left -= 1;
                let end = page + PAGE;
                pages::push(&mut found, Span { start: page, end });
            }
        });
        if read.is_err() {
            break;
        }
    }
    found
}

/// Shows the frames that may be shared. What cannot be read is none.
fn each_frame(pagemap: &File, spans: &[Span], mut see: impl FnMut(u64, u64)) {
    for span in spans {
        let read = sys::pagemap_words(pagemap, *span, |page, word| {
            if let Some(frame) = frame(word) {
                see(page, frame);
            }
        });
        if let Err(error) = read {
            tracing::debug!(%error, "frames are not told");
        }
    }
}

/// A hash of numbers that nobody chooses to collide.
#[derive(Debug, Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, number: u64) {
        // The upper bits and the lower ones both count.
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    /// A forked process: what it did not write is common, what it wrote is not.
    #[test]
    fn a_fork_has_its_pages_in_common() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: needs CAP_SYS_ADMIN");
            return;
        }
        let script = "import mmap,os,sys,ctypes\n\
                      m=mmap.mmap(-1,64*4096,flags=mmap.MAP_PRIVATE|mmap.MAP_ANONYMOUS)\n\
                      for i in range(64): m[i*4096]=i+1\n\
                      at=ctypes.addressof(ctypes.c_char.from_buffer(m))\n\
                      child=os.fork()\n\
                      if child==0:\n m[5*4096]=99\n\
                      else: print(at,child,flush=True)\n\
                      sys.stdin.read()\n";
        let mut python = std::process::Command::new("python3");
        let piped = python
            .args(["-c", script])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let Ok(mut parent) = piped.spawn() else {
            eprintln!("skipped: needs python3");
            return;
        };
        let mut line = String::new();
        let out = parent.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
        let numbers: Vec<u64> = line.split_whitespace().map(|word| word.parse().unwrap()).collect();
        let (start, child) = (numbers[0], HostPid(numbers[1] as i32));
        let whole = vec![Span {
            start,
            end: start + 64 * PAGE,
        }];
        let both = [(HostPid(parent.id() as i32), whole.clone()), (child, whole)];
        // The child writes its page in its own time.
        let found = (0..1000).find_map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let found = look(&both).unwrap();
            (found[1].common.len() == 2).then_some(found)
        });
        parent.stdin.take().unwrap().flush().unwrap();
        parent.wait().unwrap();
        let found = found.unwrap();
        assert_eq!(found[0].common, []);
        let at = |from: u64, to: u64| Common {
            span: Span {
                start: start + from * PAGE,
                end: start + to * PAGE,
            },
            owner: 0,
        };
        assert_eq!(found[1].common, [at(0, 5), at(6, 64)]);
        let shared = [at(0, 5).span, at(6, 64).span];
        assert_eq!((&found[0].shared[..], &found[1].shared[..]), (&shared[..], &shared[..]));
    }
}
