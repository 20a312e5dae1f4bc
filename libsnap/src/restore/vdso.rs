//! The vdso: code and data that the kernel maps into every process.
//!
//! The app has addresses of it in its memory (auxv, resolved symbols), so the
//! husk's vdso is moved to where the app's was. That is right as long as it is
//! the same vdso; an appshot of another one is refused.

use super::skeleton::Skeleton;
use crate::error::{Error, Result};
use crate::executor::{self, FOOTPRINT};
use crate::image::records::{Vma, VmaKind};
use crate::proc::Mapping;
use crate::sys::memory::Span;

const REMAP: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;

pub fn place(skeleton: &Skeleton, at: usize, vmas: &[Vma]) -> Result<()> {
    let ours: Vec<&Mapping> = skeleton.layout.iter().filter(|m| ["[vdso]", "[vvar]", "[vvar_vclock]"].contains(&m.name.as_str())).collect();
    let theirs: Vec<&Vma> = vmas.iter().filter(|v| matches!(v.kind, VmaKind::Vvar | VmaKind::Vdso)).collect();
    let mut batch = skeleton.batch();
    if theirs.is_empty() {
        for mapping in ours {
            batch.must("munmap", libc::SYS_munmap, &[mapping.start, mapping.end - mapping.start]);
        }
        return skeleton.run(at, &mut batch).map(drop);
    }
    let alike = ours.len() == theirs.len()
        && ours.iter().zip(&theirs).all(|(a, b)| a.end - a.start == b.end - b.start && (a.name == "[vdso]") == (b.kind == VmaKind::Vdso));
    if !alike {
        return Err(Error::refused("the vdso of this kernel has another layout than the app's").fix("restore on a host with the same kernel"));
    }
    let temporary = if overlap(&ours, &theirs) { Some(free_place(skeleton, &ours, vmas)?) } else { None };
    let base = ours[0].start;
    if let Some(temporary) = temporary {
        for mapping in &ours {
            let len = mapping.end - mapping.start;
            batch.must("mremap", libc::SYS_mremap, &[mapping.start, len, len, REMAP, temporary + (mapping.start - base)]);
        }
    }
    for (mapping, vma) in ours.iter().zip(&theirs) {
        let from = temporary.map_or(mapping.start, |t| t + (mapping.start - base));
        let len = mapping.end - mapping.start;
        if from != vma.start {
            batch.must("mremap", libc::SYS_mremap, &[from, len, len, REMAP, vma.start]);
        }
    }
    skeleton.run(at, &mut batch).map(drop)
}

fn overlap(ours: &[&Mapping], theirs: &[&Vma]) -> bool {
    ours.iter().any(|a| theirs.iter().any(|b| a.start < b.end && b.start < a.end && a.start != b.start))
}

/// A place that neither the husk nor the app uses.
fn free_place(skeleton: &Skeleton, ours: &[&Mapping], vmas: &[Vma]) -> Result<u64> {
    let mut used: Vec<Span> = vmas.iter().map(|v| Span { start: v.start, end: v.end }).collect();
    used.extend(ours.iter().map(|m| m.span()));
    used.push(skeleton.executor.span());
    executor::find_hole(&mut used, FOOTPRINT).ok_or_else(|| Error::refused("no room to move the vdso"))
}
