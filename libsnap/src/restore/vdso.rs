//! The vdso: code and data that the kernel maps into every process.
//!
//! The app has addresses of it in its memory (auxv, resolved symbols). Where the
//! kernel's vdso is the one that the app knew, it is moved to where the app's was.
//! Another kernel has another one; then both are there:
//!
//! ```text
//!   app --call--> old place: the app's vdso as private memory   [vvar] not mapped
//!                   __vdso_clock_gettime: mov rax, X; jmp rax
//!                                                   |
//!                 free place: the kernel's own [vvar][vdso] <-+
//! ```
//!
//! Refused: a function that the kernel's vdso does not have, and a thread that is
//! inside a function of the old vdso, or will return into one: it would go on in
//! code that reads data which is no more.

use super::plan::refused;
use super::script::Script;
use super::skeleton::Skeleton;
use crate::error::{Error, OrFail, Result};
use crate::executor;
use crate::image::records::{Vma, VmaKind};
use crate::image::{Appshot, Core};
use crate::kernel;
use crate::proc::{self, Mapping};
use crate::sys::memory::{self as mem, Span};
use crate::sys::ptrace::{self, reg};
use goblin::elf::{Elf, sym};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

const REMAP: u64 = (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) as u64;
/// `mov rax, imm64; jmp rax`
const JUMP_BYTES: u64 = 12;
/// vdsos have 2 pages or so.
const IMAGE_MAX: u64 = 1 << 20;

/// How a process comes to its vdso.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Vdso {
    /// The kernel's own, at the place of the app's; none if the app has none.
    Own,
    /// The app's as memory, each function jumping into the kernel's own.
    Bridge(Vec<Jump>),
}

/// From an address in the app's vdso to an offset in the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Jump {
    from: u64,
    to: u64,
}

/// One for each core. Nothing is touched yet.
pub fn plan(shot: &Appshot, forced: bool) -> Result<Vec<Vdso>> {
    let own = kernel::vdso().ok_or_else(|| refused("this kernel gives processes no vdso"))?;
    let same = blake3::hash(&own).to_hex().to_string() == shot.manifest.needs.vdso_blake3;
    if same && !forced {
        return Ok(vec![Vdso::Own; shot.cores.len()]);
    }
    shot.cores
        .iter()
        .map(|core| bridge(shot, core, &own, &shot.manifest.needs.kernel_release))
        .collect()
}

fn bridge(shot: &Appshot, core: &Core, own: &[u8], release: &str) -> Result<Vdso> {
    let Some(vma) = core.image.vmas.iter().find(|vma| vma.kind == VmaKind::Vdso) else {
        return Ok(Vdso::Own);
    };
    let cannot = |why: String| {
        refused(format!("the vdso of this kernel is not that of {release}, and {why}"))
            .needs("the same kernel build")
            .fix("restore on a host that runs the kernel the appshot was taken on")
    };
    let old = stored(shot, core, vma).ok_or_else(|| cannot("the appshot does not hold the app's".into()))?;
    let functions = functions(&old).ok_or_else(|| cannot("the app's cannot be read".into()))?;
    let targets = self::functions(own).ok_or_else(|| cannot("the kernel's cannot be read".into()))?;
    if !apart(&functions, old.len() as u64) {
        return Err(cannot("the app's has no room for jumps".into()));
    }
    let jumps = functions.iter().map(|(name, function)| {
        let target = targets.get(name).ok_or_else(|| cannot(format!("it has no {name}")))?;
        Ok(Jump {
            from: vma.start + function.start,
            to: target.start,
        })
    });
    let jumps = jumps.collect::<Result<Vec<_>>>()?;
    nobody_inside(shot, core, vma, &functions).map_err(cannot)?;
    Ok(Vdso::Bridge(jumps))
}

/// The pages of a mapping, if all of them are in the core.
fn stored(shot: &Appshot, core: &Core, vma: &Vma) -> Option<Vec<u8>> {
    let len = vma.end - vma.start;
    let mut bytes = vec![0; usize::try_from(len).ok().filter(|_| len <= IMAGE_MAX)?];
    let whole = shot.read_memory(core, vma.start, &mut bytes).ok()?;
    whole.then_some(bytes)
}

/// Exported functions of a vdso with the offsets they take up. The image may be an
/// appshot's: anything.
pub fn functions(image: &[u8]) -> Option<BTreeMap<String, Span>> {
    let elf = Elf::parse(image).ok()?;
    let named = elf
        .dynsyms
        .iter()
        .filter(|symbol| symbol.st_type() == sym::STT_FUNC && symbol.st_value != 0);
    let mut found = BTreeMap::new();
    for symbol in named {
        let span = Span {
            start: symbol.st_value,
            end: symbol.st_value.checked_add(symbol.st_size)?,
        };
        found.insert(elf.dynstrtab.get_at(symbol.st_name)?.to_owned(), span);
    }
    (!found.is_empty()).then_some(found)
}

/// Whether each function has room for a jump before the next one begins.
fn apart(functions: &BTreeMap<String, Span>, end: u64) -> bool {
    let mut starts: Vec<u64> = functions.values().map(|f| f.start).collect();
    starts.sort_unstable();
    starts.dedup();
    starts.push(end);
    starts
        .windows(2)
        .all(|pair| pair[0].checked_add(JUMP_BYTES).is_some_and(|end| end <= pair[1]))
}

/// No thread is in the middle of the old code or has an address there in the
/// frames of its stack. What it calls anew begins at the start of a function.
fn nobody_inside(shot: &Appshot, core: &Core, vma: &Vma, functions: &BTreeMap<String, Span>) -> Result<(), String> {
    let inside = |address: u64| {
        let offset = address.wrapping_sub(vma.start);
        functions.values().any(|f| f.start < offset && offset < f.end)
    };
    for thread in &core.image.threads {
        let tid = thread.record.tid;
        let rip = thread.regs[reg::RIP];
        let starts = functions.values().any(|f| vma.start + f.start == rip);
        if vma.start <= rip && rip < vma.end && !starts {
            return Err(format!("task {tid} is inside the app's"));
        }
        if stack_words(shot, core, thread.regs[reg::RSP])?.into_iter().any(inside) {
            return Err(format!("task {tid} may return into the app's"));
        }
    }
    Ok(())
}

/// The words from the stack pointer to the end of its mapping, as far as stored.
fn stack_words(shot: &Appshot, core: &Core, pointer: u64) -> Result<Vec<u64>, String> {
    let Some(stack) = core
        .image
        .vmas
        .iter()
        .find(|vma| vma.start <= pointer && pointer < vma.end)
    else {
        return Ok(Vec::new());
    };
    let mut words = Vec::new();
    for segment in core
        .segments
        .iter()
        .filter(|s| s.vaddr < stack.end && s.vaddr + s.bytes > pointer)
    {
        let skipped = (pointer & !7).saturating_sub(segment.vaddr);
        let len = segment.bytes.min(stack.end - segment.vaddr) - skipped;
        let mut bytes = vec![0; len as usize];
        shot.file(segment.part)
            .read_exact_at(&mut bytes, segment.offset + skipped)
            .map_err(|e| format!("a stack cannot be read: {e}"))?;
        words.extend(bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)));
    }
    Ok(words)
}

fn kernels(mappings: &[Mapping]) -> Vec<&Mapping> {
    mappings
        .iter()
        .filter(|m| ["[vdso]", "[vvar]", "[vvar_vclock]"].contains(&m.name.as_str()))
        .collect()
}

impl Vdso {
    pub fn is_bridge(&self) -> bool {
        matches!(self, Vdso::Bridge(_))
    }

    /// The mapping of the app's vdso where it is the kernel's own, which has its
    /// pages already.
    pub fn kept<'v>(&self, vmas: &'v [Vma]) -> Option<&'v Vma> {
        vmas.iter().find(|vma| vma.kind == VmaKind::Vdso && !self.is_bridge())
    }

    /// Brings the kernel's own vdso to where it will be.
    pub fn place(&self, skeleton: &Skeleton, script: &mut Script<'_>, vmas: &[Vma]) -> Result<()> {
        let ours = kernels(&skeleton.layout);
        match self {
            Vdso::Own => in_place(skeleton, script, &ours, vmas),
            Vdso::Bridge(_) => aside(skeleton, script, &ours, vmas),
        }
    }

    /// The `syscall` instruction of the kernel's own vdso, at its place in the app.
    pub fn gate(&self, skeleton: &Skeleton, vmas: &[Vma]) -> Option<executor::Gate> {
        let ours = skeleton.layout.iter().find(|m| m.name == "[vdso]")?;
        let apps = self.kept(vmas)?;
        Some(executor::Gate::of_husk(skeleton.gate.at - ours.start + apps.start))
    }

    /// Makes the functions of the app's vdso jump into the kernel's.
    pub fn patch(&self, script: &mut Script<'_>) -> Result<()> {
        let Vdso::Bridge(jumps) = self else { return Ok(()) };
        let failed = || "cannot connect the app's vdso with this kernel's";
        script.flush()?;
        let pid = script.tid();
        let mappings = proc::mappings(pid).or_fail(failed)?;
        let own = mappings
            .iter()
            .find(|m| m.name == "[vdso]")
            .ok_or_else(|| Error::failed(failed()))?;
        for jump in jumps {
            // Two words, the last four bytes of which stay as they are.
            let after = mem::read_u64(pid, jump.from + 8).or_fail(failed)?;
            let target = own.start + jump.to;
            let first = 0xb848 | target << 16;
            let second = target >> 48 | 0xe0ff << 16 | after & !0xffff_ffff;
            ptrace::poke(pid, jump.from, first).or_fail(failed)?;
            ptrace::poke(pid, jump.from + 8, second).or_fail(failed)?;
        }
        Ok(())
    }
}

/// To the place of the app's, which is the same.
fn in_place(skeleton: &Skeleton, script: &mut Script<'_>, ours: &[&Mapping], vmas: &[Vma]) -> Result<()> {
    let theirs: Vec<&Vma> = vmas
        .iter()
        .filter(|v| matches!(v.kind, VmaKind::Vvar | VmaKind::Vdso))
        .collect();
    if theirs.is_empty() {
        return ours.iter().try_for_each(|mapping| unmap(script, mapping));
    }
    let alike = ours.len() == theirs.len()
        && ours
            .iter()
            .zip(&theirs)
            .all(|(a, b)| a.end - a.start == b.end - b.start && (a.name == "[vdso]") == (b.kind == VmaKind::Vdso));
    if !alike {
        return Err(
            Error::refused("the vdso of this kernel has another layout than the app's")
                .fix("restore on a host with the same kernel"),
        );
    }
    let temporary = if overlap(ours, &theirs) {
        Some(free_place(skeleton, ours, vmas)?)
    } else {
        None
    };
    let base = ours[0].start;
    if let Some(temporary) = temporary {
        for mapping in ours {
            let len = mapping.end - mapping.start;
            let to = temporary + (mapping.start - base);
            script.must("mremap", libc::SYS_mremap, &[mapping.start, len, len, REMAP, to])?;
        }
    }
    for (mapping, vma) in ours.iter().zip(&theirs) {
        let from = temporary.map_or(mapping.start, |t| t + (mapping.start - base));
        let len = mapping.end - mapping.start;
        if from != vma.start {
            script.must("mremap", libc::SYS_mremap, &[from, len, len, REMAP, vma.start])?;
        }
    }
    Ok(())
}

/// Takes a mapping of the husk away.
pub fn unmap(script: &mut Script<'_>, mapping: &Mapping) -> Result<()> {
    let args = [mapping.start, mapping.end - mapping.start];
    script.must("munmap", libc::SYS_munmap, &args).map(drop)
}

/// Out of the way of everything the app has. Code and data keep their distance.
fn aside(skeleton: &Skeleton, script: &mut Script<'_>, ours: &[&Mapping], vmas: &[Vma]) -> Result<()> {
    let Some(first) = ours.first() else { return Ok(()) };
    let place = free_place(skeleton, ours, vmas)?;
    for mapping in ours {
        let len = mapping.end - mapping.start;
        let to = place + (mapping.start - first.start);
        script.must("mremap", libc::SYS_mremap, &[mapping.start, len, len, REMAP, to])?;
    }
    Ok(())
}

fn overlap(ours: &[&Mapping], theirs: &[&Vma]) -> bool {
    ours.iter().any(|a| {
        theirs
            .iter()
            .any(|b| a.start < b.end && b.start < a.end && a.start != b.start)
    })
}

/// A place that neither the husk nor the app uses.
fn free_place(skeleton: &Skeleton, ours: &[&Mapping], vmas: &[Vma]) -> Result<u64> {
    let mut used: Vec<Span> = vmas.iter().map(Span::from).collect();
    used.extend(ours.iter().map(|m| m.span()));
    used.push(skeleton.executor.span());
    let start = ours.first().map_or(0, |m| m.start);
    let len = ours.last().map_or(0, |m| m.end) - start;
    executor::find_hole(&mut used, len).ok_or_else(|| Error::refused("no room to move the vdso"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_functions_of_this_kernels_vdso() {
        let image = kernel::vdso().unwrap();
        let functions = functions(&image).unwrap();
        assert!(functions.contains_key("__vdso_clock_gettime"), "{functions:?}");
        assert_eq!(
            functions["clock_gettime"].start,
            functions["__vdso_clock_gettime"].start
        );
        assert!(apart(&functions, image.len() as u64));
    }

    #[test]
    fn a_broken_image_has_no_functions() {
        let mut image = kernel::vdso().unwrap();
        assert_eq!(functions(&image[..100]), None);
        for at in 0..image.len() {
            image[at] ^= 0xff;
            functions(&image);
            image[at] ^= 0xff;
        }
    }
}
