//! Mappings, and how much of each is stored.

use super::{Inspection, Process};
use libsnap::image::records::{ShmKind, ShmRecord, Vma, VmaKind};
use nodekit::out;

pub fn text(inspection: &Inspection) -> String {
    let rows: Vec<Vec<String>> = inspection
        .processes
        .iter()
        .flat_map(|process| process.mappings.iter().map(move |vma| row(process, vma)))
        .collect();
    let mappings = out::table(&["PID", "RANGE", "PROT", "SIZE", "STORED", "WHAT"], &rows);
    match inspection.manifest.shmem.is_empty() {
        true => mappings,
        false => mappings + "\n" + &shared(&inspection.manifest.shmem),
    }
}

fn row(process: &Process, vma: &Vma) -> Vec<String> {
    let runs = process.stored.iter();
    let within = runs.filter(|run| (vma.start..vma.end).contains(&run.vaddr));
    vec![
        process.process.pid.to_string(),
        format!("{:012x}-{:012x}", vma.start, vma.end),
        prot(vma.prot),
        out::bytes(vma.end - vma.start),
        out::bytes(within.map(|run| run.bytes).sum()),
        what(&vma.kind),
    ]
}

fn prot(bits: u32) -> String {
    let letters = [(1, 'r'), (2, 'w'), (4, 'x')];
    let letter = |(bit, letter)| if bits & bit == 0 { '-' } else { letter };
    letters.into_iter().map(letter).collect()
}

fn what(kind: &VmaKind) -> String {
    match kind {
        VmaKind::Anon => "anonymous".to_owned(),
        VmaKind::Huge { page_bytes, .. } => format!("anonymous, pages of {}", out::bytes(*page_bytes)),
        VmaKind::PrivateFile { path, offset } => format!("{path} at {offset:#x}, private"),
        VmaKind::SharedFile { path, offset, .. } => format!("{path} at {offset:#x}, shared"),
        VmaKind::Shm { shm, offset, .. } => format!("memory {shm} at {offset:#x}"),
        VmaKind::Uring { offset, .. } => format!("io_uring at {offset:#x}"),
        VmaKind::Vvar => "vvar".to_owned(),
        VmaKind::Vdso => "vdso".to_owned(),
    }
}

fn shared(memories: &[ShmRecord]) -> String {
    let rows: Vec<Vec<String>> = memories.iter().map(shared_row).collect();
    out::table(&["MEMORY", "KIND", "SIZE", "STORED"], &rows)
}

fn shared_row(shm: &ShmRecord) -> Vec<String> {
    let kind = match &shm.kind {
        ShmKind::Anon => "shared anonymous".to_owned(),
        ShmKind::Memfd { name, .. } => format!("memfd {name}"),
        ShmKind::Unlinked { path, .. } => format!("unlinked {path}"),
        ShmKind::Sysv { id, key, .. } => format!("System V {id}, key {key:#x}"),
    };
    let kind = match shm.page_bytes {
        0 => kind,
        huge => format!("{kind}, pages of {}", out::bytes(huge)),
    };
    vec![
        shm.id.to_string(),
        kind,
        out::bytes(shm.bytes),
        out::bytes(shm.runs.iter().map(|(_, length)| length).sum()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protection_reads_like_proc_maps() {
        assert_eq!(prot(5), "r-x");
        assert_eq!(prot(0), "---");
    }
}
