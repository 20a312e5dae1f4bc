//! System V semaphores and message queues (sysvipc(7)) of the IPC namespace that
//! the calling thread is in.

use super::{Sys, check};
use std::ptr::null_mut;

/// Owner and mode, as IPC_SET sets them.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
}

const GETPID: i32 = 11;
const GETALL: i32 = 13;
const SETALL: i32 = 17;

/// A new set; answers its id.
pub fn new_semaphores(key: i32, count: i32, mode: u32) -> Sys<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777) as i32;
    // SAFETY: only numbers are passed.
    check(i64::from(unsafe { libc::semget(key, count, flags) })).map(|id| id as i32)
}

/// `struct semid64_ds`.
fn semaphores_ds(id: i32) -> Sys<libc::semid_ds> {
    // SAFETY: all zeroes is a valid semid_ds; it lives across the call, which
    // fills it.
    unsafe {
        let mut ds: libc::semid_ds = std::mem::zeroed();
        check(i64::from(libc::semctl(id, 0, libc::IPC_STAT, &raw mut ds))).map(|_| ds)
    }
}

/// How many semaphores are in the set, and whether semop(2) ever changed it.
pub fn semaphores(id: i32) -> Sys<(usize, bool)> {
    semaphores_ds(id).map(|ds| (ds.sem_nsems as usize, ds.sem_otime != 0))
}

pub fn own_semaphores(id: i32, owner: Owner) -> Sys<()> {
    let mut ds = semaphores_ds(id)?;
    ds.sem_perm.uid = owner.uid;
    ds.sem_perm.gid = owner.gid;
    ds.sem_perm.mode = (owner.mode & 0o777) as _;
    // SAFETY: `ds` is live and only read.
    check(i64::from(unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut ds) })).map(drop)
}

/// The values of a set of `count` semaphores.
pub fn semaphore_values(id: i32, count: usize) -> Sys<Vec<u16>> {
    // The set may have been replaced: its size cannot change under one id.
    let mut values = vec![0u16; count];
    // SAFETY: a set has `count` semaphores for as long as it lives, so that many
    // half-words are written.
    check(i64::from(unsafe { libc::semctl(id, 0, GETALL, values.as_mut_ptr()) }))?;
    Ok(values)
}

pub fn set_semaphore_values(id: i32, values: &[u16]) -> Sys<()> {
    // SAFETY: the caller passes as many values as the set has; the kernel reads.
    check(i64::from(unsafe { libc::semctl(id, 0, SETALL, values.as_ptr()) })).map(drop)
}

/// The process that changed a semaphore last, in the caller's PID namespace.
pub fn semaphore_pid(id: i32, number: usize) -> Sys<i32> {
    // SAFETY: only numbers are passed.
    check(i64::from(unsafe { libc::semctl(id, number as i32, GETPID) })).map(|pid| pid as i32)
}

/// One operation: semaphore, change, flags.
pub type SemOp = (u16, i16, i16);

pub fn operate(id: i32, operations: &[SemOp]) -> Sys<()> {
    let mut list: Vec<libc::sembuf> = operations
        .iter()
        .map(|(sem_num, sem_op, sem_flg)| libc::sembuf {
            sem_num: *sem_num,
            sem_op: *sem_op,
            sem_flg: *sem_flg,
        })
        .collect();
    // SAFETY: the list is live and of the length passed.
    check(i64::from(unsafe { libc::semop(id, list.as_mut_ptr(), list.len()) })).map(drop)
}

/// A new queue; answers its id.
pub fn new_queue(key: i32, mode: u32) -> Sys<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777) as i32;
    // SAFETY: only numbers are passed.
    check(i64::from(unsafe { libc::msgget(key, flags) })).map(|id| id as i32)
}

fn queue_ds(id: i32) -> Sys<libc::msqid_ds> {
    // SAFETY: all zeroes is a valid msqid_ds; it lives across the call, which
    // fills it.
    unsafe {
        let mut ds: libc::msqid_ds = std::mem::zeroed();
        check(i64::from(libc::msgctl(id, libc::IPC_STAT, &mut ds))).map(|_| ds)
    }
}

/// Bytes queued now and at most.
pub fn queue_bytes(id: i32) -> Sys<(u64, u64)> {
    queue_ds(id).map(|ds| (ds.__msg_cbytes, ds.msg_qbytes))
}

pub fn own_queue(id: i32, owner: Owner, bytes_max: u64) -> Sys<()> {
    let mut ds = queue_ds(id)?;
    ds.msg_perm.uid = owner.uid;
    ds.msg_perm.gid = owner.gid;
    ds.msg_perm.mode = (owner.mode & 0o777) as _;
    ds.msg_qbytes = bytes_max;
    // SAFETY: `ds` is live and only read.
    check(i64::from(unsafe { libc::msgctl(id, libc::IPC_SET, &mut ds) })).map(drop)
}

/// A copy of the message at a position; it stays queued (MSG_COPY, Linux 3.8,
/// CONFIG_CHECKPOINT_RESTORE). `None` behind the last. Type and bytes.
pub fn peek_message(id: i32, at: usize, bytes_max: usize) -> Sys<Option<(i64, Vec<u8>)>> {
    const MSG_COPY: i32 = 0o40000;
    let mut room = vec![0u8; 8 + bytes_max];
    // SAFETY: the buffer holds the type and `bytes_max` bytes.
    let got = unsafe {
        libc::msgrcv(
            id,
            room.as_mut_ptr().cast(),
            bytes_max,
            at as i64,
            MSG_COPY | libc::IPC_NOWAIT,
        )
    };
    match check(got as i64) {
        Ok(len) => {
            let data = room[8..8 + len as usize].to_vec();
            let kind = room.first_chunk::<8>().map_or(0, |word| i64::from_le_bytes(*word));
            Ok(Some((kind, data)))
        }
        Err(nix::Error::ENOMSG) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub fn send_message(id: i32, kind: i64, data: &[u8]) -> Sys<()> {
    let message: Vec<u8> = kind.to_le_bytes().iter().chain(data).copied().collect();
    // SAFETY: the buffer holds the type and `data.len()` bytes.
    check(i64::from(unsafe {
        libc::msgsnd(id, message.as_ptr().cast(), data.len(), libc::IPC_NOWAIT)
    }))
    .map(drop)
}

/// Sets the effective ids of this thread alone (libc's wrappers change all).
pub fn become_effective(uid: u32, gid: u32) -> Sys<()> {
    let keep = u32::MAX;
    let set = |number, id: u32| {
        // SAFETY: only numbers are passed.
        check(unsafe { libc::syscall(number, keep, id, keep) }).map(drop)
    };
    // Whoever is root changes the group first, whoever becomes root the user.
    if uid == 0 {
        set(libc::SYS_setresuid, uid)?;
        set(libc::SYS_setresgid, gid)
    } else {
        set(libc::SYS_setresgid, gid)?;
        set(libc::SYS_setresuid, uid)
    }
}

/// Sets the real user of this thread alone: to whom the kernel charges what it makes, and who may signal it.
pub fn become_real(uid: u32) -> Sys<()> {
    let keep = u32::MAX;
    // SAFETY: only numbers are passed.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, keep, keep) }).map(drop)
}

/// A segment attached to our own memory; dropped, it is detached.
#[derive(Debug)]
pub struct Seen {
    at: *mut libc::c_void,
}

/// Attaches a shared memory segment to read it.
pub fn attach_to_read(id: i32) -> Sys<Seen> {
    // SAFETY: the kernel chooses the address; nothing of ours is touched.
    let at = unsafe { libc::shmat(id, null_mut(), libc::SHM_RDONLY) };
    if at.addr() == usize::MAX {
        Err(nix::Error::last())
    } else {
        Ok(Seen { at })
    }
}

impl Seen {
    pub fn address(&self) -> u64 {
        self.at.addr() as u64
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        // SAFETY: attached by `attach_to_read`, and no reference into it exists.
        unsafe { libc::shmdt(self.at) };
    }
}
