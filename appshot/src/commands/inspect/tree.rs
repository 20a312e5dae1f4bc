//! The snaplist as a tree.

use super::Inspection;
use libsnap::image::records::{Life, SnapEntry};

pub fn text(inspection: &Inspection) -> String {
    let entries = &inspection.manifest.processes;
    let is_top = |entry: &&SnapEntry| !entries.iter().any(|other| other.pid == entry.ppid);
    let mut text = String::new();
    for top in entries.iter().filter(is_top) {
        branch(inspection, top, 0, &mut text);
    }
    text
}

/// Parents stand before their children in the snaplist, so there is no cycle.
fn branch(inspection: &Inspection, entry: &SnapEntry, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    *text += &format!("{indent}{} {}{}\n", entry.pid, entry.comm, state(inspection, entry));
    let entries = &inspection.manifest.processes;
    for child in entries.iter().filter(|child| child.ppid == entry.pid) {
        branch(inspection, child, depth + 1, text);
    }
}

fn state(inspection: &Inspection, entry: &SnapEntry) -> String {
    if let Life::Zombie { wait_status, .. } = entry.life {
        return format!(" (zombie, wait status {wait_status:#x})");
    }
    let process = inspection
        .processes
        .iter()
        .find(|process| process.process.pid == entry.pid);
    match process {
        Some(process) if process.threads.len() > 1 => {
            format!(" {} ({} threads)", process.process.exe, process.threads.len())
        }
        Some(process) => format!(" {}", process.process.exe),
        None => String::new(),
    }
}
