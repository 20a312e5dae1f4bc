//! Which pages a tree of processes holds, by their frames and by their content.

use anyhow::{Context, Result};
use std::collections::HashSet;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::FileExt;

const PAGE: u64 = 4096;
/// Bits of an entry of /proc/PID/pagemap.
const PRESENT: u64 = 1 << 63;
const OF_A_FILE: u64 = 1 << 61;
const FRAME: u64 = (1 << 55) - 1;

/// Pages that are not zero and come from no file: what an appshot must hold.
#[derive(Debug, Default)]
pub struct Unique {
    frames: HashSet<u64>,
    contents: HashSet<u64>,
}

impl Unique {
    /// Looks through the memory of processes that hold still.
    pub fn of(pids: &[i32]) -> Result<Unique> {
        let mut unique = Unique::default();
        for pid in pids {
            unique.add(*pid).with_context(|| format!("memory of {pid}"))?;
        }
        Ok(unique)
    }

    /// Bytes, each frame counted once.
    pub fn frame_bytes(&self) -> u64 {
        self.frames.len() as u64 * PAGE
    }

    /// Bytes, each content counted once.
    pub fn content_bytes(&self) -> u64 {
        self.contents.len() as u64 * PAGE
    }

    fn add(&mut self, pid: i32) -> Result<()> {
        let open = |name: &str| File::open(format!("/proc/{pid}/{name}"));
        let (pagemap, memory) = (open("pagemap")?, open("mem")?);
        for line in std::fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
            if let Some(mapping) = Mapping::parse(line) {
                self.add_mapping(&mapping, &pagemap, &memory)?;
            }
        }
        Ok(())
    }

    fn add_mapping(&mut self, mapping: &Mapping, pagemap: &File, memory: &File) -> Result<()> {
        let pages = usize::try_from((mapping.end - mapping.start) / PAGE)?;
        let mut entries = vec![0; pages * 8];
        pagemap.read_exact_at(&mut entries, mapping.start / PAGE * 8)?;
        let mut page = vec![0; usize::try_from(PAGE)?];
        for (index, entry) in entries.chunks_exact(8).enumerate() {
            let entry = u64::from_le_bytes(entry.try_into()?);
            let counts = entry & PRESENT != 0 && (entry & OF_A_FILE == 0 || mapping.anonymous);
            if !counts || self.frames.contains(&(entry & FRAME)) {
                continue;
            }
            memory.read_exact_at(&mut page, mapping.start + index as u64 * PAGE)?;
            if page.iter().any(|byte| *byte != 0) {
                self.frames.insert(entry & FRAME);
                let mut hasher = DefaultHasher::new();
                page.hash(&mut hasher);
                self.contents.insert(hasher.finish());
            }
        }
        Ok(())
    }
}

/// A line of /proc/PID/maps.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    /// No file stands behind it that would be there after a restore.
    anonymous: bool,
}

impl Mapping {
    /// `None` for what the kernel brings itself, and for what cannot be read.
    fn parse(line: &str) -> Option<Mapping> {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let mode = fields.next()?;
        let path = fields.nth(3).unwrap_or_default();
        if path.starts_with("[v") || !mode.starts_with('r') {
            return None;
        }
        Some(Mapping {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            anonymous: ["", "/dev/zero", "/SYSV", "/memfd:", "["].iter().any(|kind| {
                if kind.is_empty() {
                    path.is_empty()
                } else {
                    path.starts_with(kind)
                }
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_are_told_apart() {
        let heap = Mapping::parse("1000-3000 rw-p 00000000 00:00 0   [heap]").unwrap();
        assert_eq!((heap.start, heap.end, heap.anonymous), (0x1000, 0x3000, true));
        let file = Mapping::parse("1000-3000 r-xp 00000000 fe:00 77  /usr/bin/cat").unwrap();
        assert!(!file.anonymous);
        assert_eq!(Mapping::parse("1000-3000 r-xp 00000000 00:00 0 [vdso]"), None);
        assert_eq!(Mapping::parse("1000-3000 ---p 00000000 00:00 0"), None);
    }

    #[test]
    fn a_page_is_counted_once() {
        let me = i32::try_from(std::process::id()).unwrap();
        let same = vec![7u8; 64 * 4096];
        let unique = Unique::of(&[me, me]).unwrap();
        assert!(unique.frame_bytes() >= 63 * PAGE);
        assert!(unique.content_bytes() <= unique.frame_bytes() - 62 * PAGE);
        drop(same);
    }
}
