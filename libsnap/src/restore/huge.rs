//! Transparent huge pages: which stretches of an app's memory become such.
//!
//! A restore fills small pages, and has the kernel put them together where there were huge
//! ones: MADV_COLLAPSE (Linux 6.1), which leaves no mark on the mapping. It is no more
//! than speed: where the kernel has none to give, or is older, pages stay small.

use super::fill::stored;
use crate::image::Core;
use crate::image::records::{Vma, VmaKind};
use crate::pages;
use crate::sys::memory::Span;

const HUGE: u64 = 2 << 20;

/// Those that were huge when the appshot was taken, as far as can be told: as many in each
/// mapping, of those that are stored for the most part.
pub fn had(core: &Core) -> Vec<Span> {
    let count = |vma: &Vma| (vma.huge_bytes / HUGE) as usize;
    joined(core.image.vmas.iter().flat_map(|vma| dense(core, vma).take(count(vma))))
}

/// Those that are worth it: half of each is stored.
pub fn worth(core: &Core) -> Vec<Span> {
    joined(core.image.vmas.iter().flat_map(|vma| dense(core, vma)))
}

fn dense<'a>(core: &'a Core, vma: &'a Vma) -> impl Iterator<Item = Span> + 'a {
    let first = vma.start.next_multiple_of(HUGE);
    let all = (first..vma.end)
        .step_by(HUGE as usize)
        .filter(|_| vma.kind == VmaKind::Anon);
    let spans = all.map(|start| Span {
        start,
        end: start + HUGE,
    });
    spans.filter(move |span| span.end <= vma.end && stored(&core.segments, *span) >= HUGE / 2)
}

fn joined(spans: impl Iterator<Item = Span>) -> Vec<Span> {
    let mut joined = Vec::new();
    spans.for_each(|span| pages::push(&mut joined, span));
    joined
}
