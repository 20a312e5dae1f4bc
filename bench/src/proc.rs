//! Process trees, read from /proc: who belongs to it, its memory, its end.

use anyhow::{Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

/// Parent of every process, with zombies left out.
fn parents() -> HashMap<i32, i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return HashMap::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(|pid| Some((pid, live_parent(pid)?)))
        .collect()
}

fn live_parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (!matches!(state, "Z" | "X")).then_some(parent)
}

/// `root` and everything below it.
pub fn tree(root: i32) -> Vec<i32> {
    let parents = parents();
    let below = |pid: i32| {
        let mut at = Some(pid);
        while let Some(pid) = at {
            if pid == root {
                return true;
            }
            at = parents.get(&pid).copied();
        }
        false
    };
    parents.keys().copied().filter(|pid| below(*pid)).collect()
}

/// Proportional set size of the processes, in bytes.
pub fn pss_bytes(pids: &[i32]) -> u64 {
    pids.iter().filter_map(|pid| rollup_bytes(*pid, "Pss:")).sum()
}

/// Bytes that the processes touch while `while_asking` runs: what had its
/// accessed bit set since they all were cleared.
pub fn touched_bytes(pids: &[i32], while_asking: impl FnOnce() -> Result<()>) -> Result<u64> {
    for pid in pids {
        fs::write(format!("/proc/{pid}/clear_refs"), "1")?;
    }
    while_asking()?;
    Ok(pids.iter().filter_map(|pid| rollup_bytes(*pid, "Referenced:")).sum())
}

/// One field of a process's smaps, over all of its mappings.
fn rollup_bytes(pid: i32, field: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

/// Memory of a process's page tables.
pub fn page_table_bytes(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmPTE:"))?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kib * 1024)
}

/// The name of a process; empty where there is none.
pub fn name(pid: i32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    comm.trim_end().to_owned()
}

/// Bytes that only these processes hold: what each wrote since it was forked.
pub fn private_bytes(pids: &[i32]) -> u64 {
    pids.iter().filter_map(|pid| rollup_bytes(*pid, "Private_Dirty:")).sum()
}

/// Threads of one process.
pub fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

/// Kills these processes. Who is gone already is no failure.
pub fn kill_tree(pids: &[i32]) {
    for pid in pids {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
}

/// Kills and reaps whatever is still below this process. All it ever starts
/// stays there, because orphans come back to it.
pub fn kill_all_below_me() -> Result<()> {
    let me = getpid().as_raw();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let left: Vec<i32> = tree(me).into_iter().filter(|pid| *pid != me).collect();
        kill_tree(&left);
        if !reap() && left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("processes that do not die: {left:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reaps every dead child; true while there are children.
fn reap() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
}

/// Waits until these processes have ended, and reaps them: orphans come to
/// this process as zombies, which still hold their numbers.
pub fn wait_gone(pids: &[i32], limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    for pid in pids {
        while fs::exists(format!("/proc/{pid}"))? {
            let _ = waitpid(Pid::from_raw(*pid), Some(WaitPidFlag::WNOHANG));
            if Instant::now() > deadline {
                bail!("pid {pid} is still there after {limit:?}");
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    Ok(())
}
