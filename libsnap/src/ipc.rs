//! System V IPC of the app's own namespace (sysvipc(7)).
//!
//! Shared memory is carried with its id, key, owner and mode. Refused:
//! semaphores, message queues, segments that no process has attached.

use crate::ids::HostPid;
use crate::image::records::ShmKind;
use crate::memory::ShmTable;
use crate::nsthread;
use crate::refusals::Refusals;
use crate::target::Target;
use std::collections::HashMap;
use std::fs;

/// Rows of one `/proc/sysvipc` table, each as its numbers.
type Rows = Vec<Vec<i64>>;

/// Completes the System V segments of `shm`; refuses what cannot be carried.
pub fn describe(pid: HostPid, target: &Target, shm: &mut ShmTable, refusals: &mut Refusals) {
    let Ok([segments, semaphores, queues]) = nsthread::inside(pid, &["ipc"], || ["shm", "sem", "msg"].map(read)) else {
        refusals.add(pid, "IPC namespace", "it cannot be entered", "run as root");
        return;
    };
    // In the host's namespace the rest belongs to others.
    let own = matches!(target, Target::App { init: Some(_), .. });
    if own {
        for (rows, what) in [(&semaphores, "semaphore set"), (&queues, "message queue")] {
            for row in rows {
                let object = format!("System V {what} {}", row.get(1).unwrap_or(&0));
                refusals.add(pid, object, "System V semaphores and message queues are not carried yet", "remove it before the snapshot (ipcrm)");
            }
        }
    }
    let mut by_id: HashMap<i64, Vec<i64>> = segments.into_iter().filter(|r| r.len() > 10).map(|row| (row[1], row)).collect();
    for record in shm.records_mut() {
        if let ShmKind::Sysv { id, key, mode, uid, gid, cuid, cgid } = &mut record.kind
            && let Some(row) = by_id.remove(&i64::from(*id))
        {
            // perms are printed in octal but read here as decimal digits
            *mode = u32::from_str_radix(&row[2].to_string(), 8).unwrap_or(0) & 0o777;
            *key = row[0] as i32;
            (*uid, *gid, *cuid, *cgid) = (row[7] as u32, row[8] as u32, row[9] as u32, row[10] as u32);
        }
    }
    for id in by_id.keys().filter(|_| own) {
        refusals.add(pid, format!("System V shared memory {id}"), "no process has it attached", "remove it before the snapshot (ipcrm -m)");
    }
}

fn read(table: &str) -> Rows {
    let text = fs::read_to_string(format!("/proc/sysvipc/{table}")).unwrap_or_default();
    let rows = text.lines().skip(1);
    rows.map(|line| line.split_whitespace().filter_map(|word| word.parse().ok()).collect()).collect()
}
