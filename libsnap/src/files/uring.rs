//! io_uring(7): rings, what stands in them, what is registered.
//!
//! ```text
//!   taken    entries that the kernel has taken     replayed: as many requests that do nothing
//!   told     completions that it has put down      (IORING_OP_NOP), with a completion or without
//!   memory   of rings and entries, both mapped     put back behind them
//! ```
//!
//! The kernel counts by itself, and programs go by its counters, so a fresh ring has to come
//! to the same numbers. What no interface tells (flags, what is in flight, which files are
//! registered) is read from the kernel's memory ([`KernelMemory`]), files by their address.
//! A ring for one thread alone (IORING_SETUP_SINGLE_ISSUER) is begun here and finished by that
//! thread; buffers are registered by the process that has them. Requests that wait until their
//! file is ready and have done nothing yet are made again by whom they are of, in the place of as many of
//! those that do nothing: of an app that waits for clients there are always some.
//! Refused: other requests in flight, rings that a kernel thread submits for, rings in the app's
//! own memory, rings of buffers, restrictions, personalities.

use super::{Context, Description, Refused, refused};
use crate::error::{OrFail, Result};
use crate::ids::{FileId, HostPid, VirtualPid};
use crate::image::limits;
use crate::image::records::{FileKind, Manifest, UringBuffer, UringEvents, UringFile, UringRecord, UringRequest};
use crate::kernel_memory::{KernelMemory, Unread};
use crate::pages;
use crate::proc;
use crate::sys::Sys;
use crate::sys::memory::PAGE;
use crate::sys::uring::{self as sys, Memory, Params};
use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// IOPOLL, CLAMP, SUBMIT_ALL, COOP_TASKRUN, TASKRUN_FLAG, SQE128, CQE32, SINGLE_ISSUER,
/// DEFER_TASKRUN, NO_SQARRAY; and what says how it was made.
pub const CARRIED: u32 = 1
    | 1 << 7
    | 1 << 8
    | 1 << 9
    | sys::SETUP_SQE128
    | sys::SETUP_CQE32
    | sys::SETUP_SINGLE_ISSUER
    | sys::SETUP_DEFER_TASKRUN
    | sys::SETUP_NO_SQARRAY
    | sys::SETUP_R_DISABLED;
/// Of no meaning once it is made, unless a kernel thread submits.
const MADE_BY: u32 = sys::SETUP_CQSIZE | sys::SETUP_CLAMP | sys::SETUP_ATTACH_WQ;
/// For each of these a thread of the app is asked.
const ROUNDS_MAX: u32 = 1 << 16;

/// Where descriptors and mappings of rings lead.
pub const LINK: &str = "anon_inode:[io_uring]";

const OUT_OF_REACH: &str = "run the app without io_uring";

impl From<Unread> for Refused {
    fn from(unread: Unread) -> Refused {
        match unread {
            Unread::Unknown(member) => (
                format!("this kernel does not tell what it keeps for it ({member})"),
                "run Linux 6.16 or later with its types (CONFIG_DEBUG_INFO_BTF), or the app without io_uring"
                    .to_owned(),
            ),
            Unread::Denied(errno) => super::denied(errno),
        }
    }
}

pub fn capture(context: &Context<'_>, description: &Description) -> Result<FileKind, Refused> {
    let kernel = KernelMemory::open()?;
    let at = kernel.u64(kernel.file(&description.dup)?, "file.private_data")?;
    let look = Look {
        kernel,
        at,
        context,
        description,
    };
    let flags = look.flags()?;
    let waiting = look.at_rest(flags)?;
    look.plain()?;
    let unread = |errno| Refused::from(Unread::Denied(errno));
    let memory = |region, offset| {
        let bytes = look.region(region)? * PAGE;
        let memory = Memory::map(&description.dup, offset, bytes as usize).map_err(unread)?;
        let own = HostPid(std::process::id() as i32);
        let name = frame(own, memory.address()).ok_or_else(|| unread(nix::Error::EPERM))?;
        Ok::<_, Refused>((name, memory.bytes().map_err(unread)?))
    };
    let (rings, rings_content) = memory("io_ring_ctx.ring_region", sys::OFF_SQ_RING)?;
    let (entries, entries_content) = memory("io_ring_ctx.sq_region", sys::OFF_SQES)?;
    let word = |member| look.kernel.u32(at, member);
    let record = UringRecord {
        rings,
        entries,
        flags,
        sq_entries: word("io_ring_ctx.sq_entries")?,
        cq_entries: word("io_ring_ctx.cq_entries")?,
        taken: word("io_ring_ctx.cached_sq_head")?,
        told: word("io_ring_ctx.cached_cq_tail")?,
        rings_content,
        entries_content,
        submitter: look.submitter(flags)?,
        clock: word("io_ring_ctx.clockid")? as i32,
        events: look.events()?,
        files: look.files()?,
        slots: (
            word("io_ring_ctx.file_alloc_start")?,
            word("io_ring_ctx.file_alloc_end")?,
        ),
        buffers: look.buffers(rings)?,
        user: look.user(),
        workers: look.workers()?,
        registered: look.registered()?,
        waiting,
    };
    replayable(&record)?;
    Ok(FileKind::Uring(Box::new(record)))
}

/// Whether it is for one thread alone, and somebody's.
pub fn is_of_one_thread(flags: u32) -> bool {
    flags & sys::SETUP_SINGLE_ISSUER != 0 && flags & sys::SETUP_R_DISABLED == 0
}

pub fn is_replayable(record: &UringRecord) -> bool {
    replayable(record).is_ok()
}

fn replayable(record: &UringRecord) -> Result<(), Refused> {
    if record.taken.max(record.told) > limits::URING_REPLAYED || record.wound().is_none() {
        return refused(
            "more requests than a new one can be brought to were made with it",
            "let the app make it anew once in a while",
        );
    }
    let rounds = record.taken / record.sq_entries.min(record.cq_entries).max(1);
    if record.submitter.is_some() && (rounds > ROUNDS_MAX || record.wound() < Some(record.told)) {
        return refused(
            "more completions than a new one for one thread alone (IORING_SETUP_SINGLE_ISSUER) can be brought to \
             have come in it",
            "let the app make it anew once in a while, or without that",
        );
    }
    Ok(())
}

/// The page frame that a process has at this address.
pub fn frame(pid: HostPid, address: u64) -> Option<u64> {
    const PRESENT: u64 = 1 << 63;
    const FRAME: u64 = (1 << 55) - 1;
    let mut entry = [0; 8];
    let pagemap = pages::pagemap(pid).ok()?;
    pagemap.read_exact_at(&mut entry, address / PAGE * 8).ok()?;
    let entry = u64::from_ne_bytes(entry);
    (entry & PRESENT != 0 && entry & FRAME != 0).then_some(entry & FRAME)
}

/// Requests (`struct io_kiocb`) of a ring that wait for their file.
fn waiting(kernel: &KernelMemory, at: u64) -> Result<Vec<u64>, Unread> {
    const BITS_MAX: u32 = 16;
    let table = kernel.part(at, "io_ring_ctx.cancel_table")?;
    let buckets = kernel.u64(table, "io_hash_table.hbs")?;
    let bits = kernel.u32(table, "io_hash_table.hash_bits")?.min(BITS_MAX);
    let size = kernel.offset("io_hash_bucket.")?;
    let mut found = Vec::new();
    for nth in 0..1u64 << bits {
        let bucket = buckets.wrapping_add(nth * size);
        let mut next = kernel.u64(bucket, "io_hash_bucket.list")?;
        while next != 0 && found.len() <= limits::URING_WAITING {
            found.push(next.wrapping_sub(kernel.offset("io_kiocb.hash_node")?));
            next = kernel.words(next, 1)?[0];
        }
    }
    Ok(found)
}

/// A ring with requests that wait, as it was captured: what is asked of the app afterwards lets its
/// threads go on in the kernel for a moment, and they may do what is waited for.
#[derive(Debug)]
pub struct Seen {
    ring: OwnedFd,
    flags: u32,
    at: u64,
    told: u32,
    waiting: Vec<u64>,
}

impl Seen {
    /// Of a ring that the app has open as long as it is asked about.
    pub fn of(description: &Description, kind: &FileKind) -> Result<Option<Seen>, Unread> {
        let FileKind::Uring(record) = kind else {
            return Ok(None);
        };
        if record.waiting.is_empty() {
            return Ok(None);
        }
        let kernel = KernelMemory::open()?;
        let at = kernel.u64(kernel.file(&description.dup)?, "file.private_data")?;
        Ok(Some(Seen {
            ring: description
                .dup
                .try_clone()
                .map_err(|_| Unread::Denied(nix::Error::EMFILE))?,
            flags: record.flags,
            at,
            told: record.told,
            waiting: waiting(&kernel, at)?,
        }))
    }

    /// Whether nothing has come of it since.
    pub fn is_current(&self) -> bool {
        let now = KernelMemory::open().and_then(|kernel| {
            Ok((
                kernel.u32(self.at, "io_ring_ctx.cached_cq_tail")?,
                waiting(&kernel, self.at)?,
            ))
        });
        now.is_ok_and(|(told, waiting)| told == self.told && waiting == self.waiting)
    }

    /// The app is about to be killed. On its way it would do what came meanwhile, and take a connection
    /// with it that is for whoever comes after: it has nothing to wait for any more. (For a ring
    /// that is told of when it asks, nothing is done on that way.)
    pub fn give_up(&self) {
        if self.flags & sys::SETUP_DEFER_TASKRUN == 0
            && let Err(errno) = sys::cancel_all(&self.ring)
        {
            tracing::warn!(%errno, "requests of an io_uring are not cancelled");
        }
    }
}

/// A ring of the app, as the kernel has it.
struct Look<'a> {
    kernel: KernelMemory,
    /// Its `io_ring_ctx`.
    at: u64,
    context: &'a Context<'a>,
    description: &'a Description,
}

impl Look<'_> {
    fn flags(&self) -> Result<u32, Refused> {
        let flags = self.kernel.u32(self.at, "io_ring_ctx.flags")? & !MADE_BY;
        if flags & sys::SETUP_SQPOLL != 0 {
            return refused(
                "a thread of the kernel submits for it (IORING_SETUP_SQPOLL), which is not carried yet",
                "let the app make it without that",
            );
        }
        if flags & sys::SETUP_NO_MMAP != 0 {
            return refused(
                "it stands in memory of the app's own (IORING_SETUP_NO_MMAP), which is not carried yet",
                "let the app make it without that",
            );
        }
        if flags & !CARRIED != 0 {
            return refused(
                format!("it was made with flags that are not carried ({:#x})", flags & !CARRIED),
                "let the app make it without them",
            );
        }
        Ok(flags)
    }

    /// No completion waits outside of its ring, and nothing that was submitted is under way but
    /// what waits.
    fn at_rest(&self, flags: u32) -> Result<Vec<UringRequest>, Refused> {
        let info = &self.description.found.info;
        if !info.lines().any(|line| line.starts_with("CqOverflowList:")) {
            return refused("it is in use, so what it has is not told", "try again");
        }
        let overflown = info.lines().skip_while(|line| !line.starts_with("CqOverflowList:"));
        if overflown
            .skip(1)
            .any(|line| line.trim_start().starts_with("user_data="))
        {
            return refused(
                "completions that found no room wait for it",
                "let the app take completions, then try again",
            );
        }
        let in_flight = self.in_flight()?;
        if in_flight == 0 {
            return Ok(Vec::new());
        }
        let waiting = waiting(&self.kernel, self.at)?;
        let is_known = waiting.len() as u64 == in_flight && waiting.len() <= limits::URING_WAITING;
        if self.has_work()? || !is_known {
            return refused(
                format!("{in_flight} requests are in flight in it, and not all of them wait for a file to be ready"),
                "let the app wait for them or cancel them (IORING_OP_ASYNC_CANCEL), then try again",
            );
        }
        let alone = sys::SETUP_SINGLE_ISSUER | sys::SETUP_DEFER_TASKRUN;
        if flags & alone == sys::SETUP_SINGLE_ISSUER {
            return refused(
                "requests wait in it that nobody but its one thread may cancel (IORING_SETUP_SINGLE_ISSUER without \
                 DEFER_TASKRUN)",
                "let the app make it with both, or without",
            );
        }
        let mut files = HashMap::new();
        for other in self.context.descriptions {
            files.insert(self.kernel.file(&other.dup)?, other.id);
        }
        let mut mapped = HashMap::new();
        let found = waiting
            .into_iter()
            .map(|request| self.request(request, &files, &mut mapped));
        let mut found: Vec<UringRequest> = found.collect::<Result<_, _>>()?;
        found.sort_unstable();
        Ok(found)
    }

    /// What one of them was asked for, as far as it can be asked again. `mapped` is what was read of
    /// processes for others.
    fn request(
        &self,
        at: u64,
        files: &HashMap<u64, FileId>,
        mapped: &mut HashMap<HostPid, Vec<(u64, u64)>>,
    ) -> Result<UringRequest, Refused> {
        const FIXED_FILE: u8 = 1;
        const CANCELLED: u32 = 1 << 31;
        let kernel = &self.kernel;
        let operation = kernel.u8(at, "io_kiocb.opcode")?;
        let flags = kernel.u8(at, "io_kiocb.flags")? & !FIXED_FILE;
        let not_carried = || {
            refused(
                format!("a request of it waits that cannot be made again (IORING_OP of number {operation})"),
                "let the app wait by IORING_OP_POLL_ADD, or cancel it (IORING_OP_ASYNC_CANCEL), then try again",
            )
        };
        if flags & !sys::CQE_SKIP_SUCCESS != 0 || kernel.u64(at, "io_kiocb.link")? != 0 {
            return not_carried();
        }
        if kernel.u32(at, "io_kiocb.poll_refs")? & CANCELLED != 0 {
            return refused("a request of it is being cancelled", "try again");
        }
        let task = kernel.u64(kernel.u64(at, "io_kiocb.tctx")?, "io_uring_task.task")?;
        let pid = kernel.u32(task, "task_struct.pid")? as i32;
        let by = self.context.virtual_pid(pid);
        let file = files.get(&kernel.u64(at, "io_kiocb.file")?).copied();
        let holds = |id: FileId| {
            let own = self.context.members.iter().zip(self.context.fds);
            let mut own = own.filter(|(member, _)| Some(member.vpid) == by);
            own.any(|(_, fds)| fds.iter().any(|entry| entry.file == id))
        };
        let own = self.description.id;
        let file = file.filter(|file| *file != own && holds(*file) && holds(own));
        let (Some(by), Some(file)) = (by, file) else {
            return refused(
                "a request of it waits that is of a thread which is not the main one of its process, for itself, or \
                 for a file of which that has no descriptor any more",
                "let the app submit in its main thread, and keep its files open",
            );
        };
        let cqe = kernel.part(at, "io_kiocb.cqe")?;
        let mut request = UringRequest {
            user_data: kernel.u64(cqe, "io_cqe.user_data")?,
            operation,
            flags,
            priority: 0,
            by,
            file,
            offset: 0,
            address: 0,
            len: 0,
            how: 0,
        };
        match operation {
            sys::OP_POLL_ADD => {
                const MULTI: u32 = 1;
                const LEVEL: u32 = 1 << 3;
                let (once, edges) = (libc::EPOLLONESHOT as u32, libc::EPOLLET as u32);
                let events = kernel.u32(at, "io_kiocb.apoll_events")?;
                request.how = events & !(once | edges);
                request.len = if events & once == 0 { MULTI } else { 0 };
                request.len |= if events & edges == 0 { LEVEL } else { 0 };
            }
            sys::OP_ACCEPT if kernel.u32(at, "io_accept.file_slot")? == 0 => {
                request.address = kernel.u64(at, "io_accept.addr")?;
                request.offset = kernel.u64(at, "io_accept.addr_len")?;
                request.how = kernel.u32(at, "io_accept.flags")?;
                request.priority = kernel.u32(at, "io_accept.iou_flags")? as u16;
            }
            sys::OP_RECV if kernel.u32(at, "io_sr_msg.done_io")? == 0 => {
                /// What the kernel notes for itself.
                const NOTES: u16 = 3 << 14;
                request.address = kernel.u64(at, "io_sr_msg.buf")?;
                request.len = kernel.u32(at, "io_sr_msg.len")?;
                request.how = kernel.u32(at, "io_sr_msg.msg_flags")?;
                request.priority = kernel.u32(at, "io_sr_msg.flags")? as u16 & !NOTES;
            }
            sys::OP_READ => {
                request.address = kernel.u64(at, "io_rw.addr")?;
                request.len = kernel.u32(at, "io_rw.len")?;
                request.how = kernel.u32(at, "io_rw.flags")?;
                request.offset = kernel.u64(at, "kiocb.ki_pos")?;
            }
            _ => return not_carried(),
        }
        if !request.is_carried() {
            return not_carried();
        }
        let mapped = mapped.entry(HostPid(pid)).or_insert_with_key(|pid| {
            let all = proc::maps(*pid).unwrap_or_default();
            let own = all.iter().filter(|mapping| mapping.name != LINK);
            own.map(|mapping| (mapping.start, mapping.end)).collect()
        });
        if !request.has_room(mapped.iter().copied()) {
            return refused(
                "a request of it waits that is to write where the app has no memory, or a ring",
                "let the app cancel it (IORING_OP_ASYNC_CANCEL), then try again",
            );
        }
        Ok(request)
    }

    /// Requests that the kernel has made and has not put aside to use them again.
    fn in_flight(&self) -> Result<u64, Refused> {
        let made = u64::from(self.kernel.u32(self.at, "io_ring_ctx.nr_req_allocated")?);
        let state = self.kernel.part(self.at, "io_ring_ctx.submit_state")?;
        let mut next = self.kernel.u64(state, "io_submit_state.free_list")?;
        let mut aside = 0;
        while next != 0 && aside < made {
            aside += 1;
            // Of an app that runs it may have been used meanwhile.
            next = self.kernel.words(next, 1).map_or(0, |words| words[0]);
        }
        Ok((made - aside).max(u64::from(self.has_work()?)))
    }

    /// What its only thread is about to do for it.
    fn has_work(&self) -> Result<bool, Unread> {
        let lists = ["io_ring_ctx.work_llist", "io_ring_ctx.retry_llist"];
        let first = lists.map(|list| self.kernel.u64(self.at, list));
        Ok(first[0]? != 0 || first[1]? != 0)
    }

    /// It has nothing that is not carried.
    fn plain(&self) -> Result<(), Refused> {
        let some = |member| {
            let part = self.kernel.part(self.at, member)?;
            Ok::<_, Unread>(self.kernel.u64(part, "xarray.xa_head")? != 0)
        };
        let restrictions = self.kernel.part(self.at, "io_ring_ctx.restrictions")?;
        if some("io_ring_ctx.io_bl_xa")? {
            return refused(
                "buffers are provided to it (IORING_REGISTER_PBUF_RING), which is not carried yet",
                "let the app register its buffers, or name them in requests",
            );
        }
        if some("io_ring_ctx.personalities")? {
            return refused(
                "personalities are registered with it, which are not carried yet",
                "let the app submit with its own credentials",
            );
        }
        if self.kernel.u8(restrictions, "io_restriction.registered")? != 0 {
            return refused(
                "it is restricted (IORING_REGISTER_RESTRICTIONS), which is not carried yet",
                "let the app make it without that",
            );
        }
        if some("io_ring_ctx.zcrx_ctxs")? || self.region("io_ring_ctx.param_region")? != 0 {
            return refused(
                "memory is registered with it for receiving or waiting, which is not carried yet",
                "let the app make it without that",
            );
        }
        if self
            .description
            .found
            .info
            .get("NAPI")
            .is_some_and(|napi| napi != "disabled")
        {
            return refused(
                "it polls network devices (IORING_REGISTER_NAPI), which is not carried yet",
                "let the app make it without that",
            );
        }
        Ok(())
    }

    fn region(&self, member: &'static str) -> Result<u64, Unread> {
        let region = self.kernel.part(self.at, member)?;
        Ok(u64::from(self.kernel.u32(region, "io_mapped_region.nr_pages")?))
    }

    /// The thread that alone may submit.
    fn submitter(&self, flags: u32) -> Result<Option<VirtualPid>, Refused> {
        let task = self.kernel.u64(self.at, "io_ring_ctx.submitter_task")?;
        if flags & sys::SETUP_SINGLE_ISSUER == 0 || task == 0 {
            return Ok(None);
        }
        let pid = self.kernel.u32(task, "task_struct.pid")? as i32;
        match self.context.virtual_pid(pid) {
            Some(pid) => Ok(Some(pid)),
            None => refused(
                "it is for one thread alone that is not the main one of its process (IORING_SETUP_SINGLE_ISSUER)",
                "let the app make it without that, or in its main thread",
            ),
        }
    }

    fn events(&self) -> Result<Option<UringEvents>, Refused> {
        let events = self.kernel.u64(self.at, "io_ring_ctx.io_ev_fd")?;
        if events == 0 {
            return Ok(None);
        }
        let counter = self.kernel.u64(events, "io_ev_fd.cq_ev_fd")?;
        let only_async = self.kernel.u32(events, "io_ev_fd.eventfd_async")? & 1 != 0;
        for other in self.context.descriptions {
            let is_eventfd = other.found.link == "anon_inode:[eventfd]";
            if is_eventfd && self.kernel.u64(self.kernel.file(&other.dup)?, "file.private_data")? == counter {
                let file = other.id;
                return Ok(Some(UringEvents { file, only_async }));
            }
        }
        refused(
            "it tells an eventfd to which no descriptor of the app leads",
            "let the app keep the eventfd open, or unregister it",
        )
    }

    fn nodes(&self, member: &'static str) -> Result<Vec<u64>, Unread> {
        let table = self.kernel.part(self.at, member)?;
        let count = self.kernel.u32(table, "io_rsrc_data.nr")? as usize;
        let nodes = self.kernel.u64(table, "io_rsrc_data.nodes")?;
        self.kernel.words(nodes, count)
    }

    fn files(&self) -> Result<Vec<UringFile>, Refused> {
        /// What the kernel notes of a file in its address.
        const NOTES: u64 = 7;
        let nodes = self.nodes("io_ring_ctx.file_table")?;
        let mut known = HashMap::new();
        if !nodes.is_empty() {
            for other in self.context.descriptions {
                known.insert(self.kernel.file(&other.dup)?, other.id);
            }
        }
        let mut files = Vec::with_capacity(nodes.len());
        for node in nodes {
            if node == 0 {
                files.push(UringFile::default());
                continue;
            }
            let address = self.kernel.u64(node, "io_rsrc_node.file_ptr")? & !NOTES;
            let tag = self.kernel.u64(node, "io_rsrc_node.tag")?;
            let Some(file) = known.get(&address).copied() else {
                return refused(
                    "a file is registered with it to which no descriptor of the app leads",
                    "let the app keep its files open, or install them (IORING_OP_FIXED_FD_INSTALL)",
                );
            };
            files.push(UringFile { file: Some(file), tag });
        }
        Ok(files)
    }

    /// The process that has buffers registered with it: where several have the ring, it
    /// cannot be told.
    fn user(&self) -> Option<VirtualPid> {
        let holders = self.context.members.iter().zip(self.context.fds);
        let mut holders = holders.filter(|(_, fds)| fds.iter().any(|entry| entry.file == self.description.id));
        let first = holders.next()?.0.vpid;
        holders.next().is_none().then_some(first)
    }

    fn buffers(&self, rings: u64) -> Result<Vec<UringBuffer>, Refused> {
        let nodes = self.nodes("io_ring_ctx.buf_table")?;
        if nodes.is_empty() {
            return Ok(Vec::new());
        }
        let user = self
            .user()
            .and_then(|user| self.context.members.iter().find(|m| m.vpid == user));
        let Some(user) = user.filter(|_| nodes.len() <= limits::URING_BUFFERS) else {
            return refused(
                "more buffers than are carried are registered with it, or several processes have it",
                "let the app register less, and close it in other processes",
            );
        };
        nodes.iter().map(|node| self.buffer(*node, rings, user.pid)).collect()
    }

    fn buffer(&self, node: u64, rings: u64, user: HostPid) -> Result<UringBuffer, Refused> {
        if node == 0 {
            return Ok(UringBuffer::default());
        }
        let buffer = self.kernel.u64(node, "io_rsrc_node.buf")?;
        let address = self.kernel.u64(buffer, "io_mapped_ubuf.ubuf")?;
        let bytes = u64::from(self.kernel.u32(buffer, "io_mapped_ubuf.len")?);
        let is_foreign = self.kernel.u8(buffer, "io_mapped_ubuf.is_kbuf")? != 0;
        if is_foreign || !self.is_there(buffer, address, rings, user)? {
            return refused(
                "a buffer is registered with it whose memory is not what the app has there by now",
                "let the app register its buffers anew",
            );
        }
        Ok(UringBuffer {
            address,
            bytes,
            tag: self.kernel.u64(node, "io_rsrc_node.tag")?,
        })
    }

    /// Whether the frames that the kernel has of a buffer are those that its process has.
    fn is_there(&self, buffer: u64, address: u64, rings: u64, user: HostPid) -> Result<bool, Unread> {
        let size = self.kernel.offset("page.")?;
        let region = self.kernel.part(self.at, "io_ring_ctx.ring_region")?;
        let known = self
            .kernel
            .words(self.kernel.u64(region, "io_mapped_region.pages")?, 1)?[0];
        let first = known.wrapping_sub(rings.wrapping_mul(size));
        let count = self.kernel.u32(buffer, "io_mapped_ubuf.nr_bvecs")? as usize;
        let piece = 1u64 << (self.kernel.u32(buffer, "io_mapped_ubuf.folio_shift")? & 31);
        let pieces = self
            .kernel
            .words(self.kernel.part(buffer, "io_mapped_ubuf.bvec")?, 2 * count)?;
        let mut at = address;
        for [page, place] in pieces.as_chunks::<2>().0 {
            // Length, then offset.
            let frame_of = page.wrapping_sub(first) / size + (place >> 32) / PAGE;
            if frame(user, at) != Some(frame_of) {
                return Ok(false);
            }
            at = (at / piece + 1) * piece;
        }
        Ok(true)
    }

    fn workers(&self) -> Result<Option<(u32, u32)>, Unread> {
        let limits = self.kernel.u64(self.at, "io_ring_ctx.iowq_limits")?;
        Ok((limits != 0).then_some((limits as u32, (limits >> 32) as u32)))
    }

    /// Threads that have it among those of their own (IORING_REGISTER_RING_FDS), and where.
    fn registered(&self) -> Result<Vec<(VirtualPid, u32)>, Refused> {
        const SLOTS: usize = 16;
        const USERS_MAX: usize = 65536;
        let own = self.kernel.file(&self.description.dup)?;
        let list = self.kernel.part(self.at, "io_ring_ctx.tctx_list")?;
        let mut found = Vec::new();
        let mut next = self.kernel.words(list, 1)?[0];
        for _ in 0..USERS_MAX {
            if next == list {
                return Ok(found);
            }
            let user = next.wrapping_sub(self.kernel.offset("io_tctx_node.ctx_node")?);
            let task = self.kernel.u64(user, "io_tctx_node.task")?;
            let pid = self.kernel.u32(task, "task_struct.pid")? as i32;
            let rings = self.kernel.u64(task, "task_struct.io_uring")?;
            let rings = self.kernel.part(rings, "io_uring_task.registered_rings")?;
            let rings = self.kernel.words(rings, SLOTS)?;
            for (slot, _) in (0..).zip(rings).filter(|(_, ring)| *ring == own) {
                match self.context.virtual_pid(pid) {
                    Some(pid) => found.push((pid, slot)),
                    None => {
                        return refused(
                            "a thread that is not the main one has registered it (IORING_REGISTER_RING_FDS)",
                            "let the app register it in its main thread, or not at all",
                        );
                    }
                }
            }
            next = self.kernel.words(next, 1)?[0];
        }
        refused("its users cannot be told", OUT_OF_REACH)
    }
}

/// A fresh one of the same form. What is registered comes once all files are there.
pub fn restore(record: &UringRecord) -> Result<OwnedFd> {
    let begun = match record.submitter {
        // Nobody's yet: it becomes that of the thread that enables it.
        Some(_) => sys::SETUP_R_DISABLED,
        None => 0,
    };
    make(record, begun).map(|(fd, _)| fd).or_fail(failed)
}

fn failed() -> &'static str {
    "cannot make an io_uring again"
}

fn make(record: &UringRecord, more: u32) -> Sys<(OwnedFd, Params)> {
    let mut params = Params {
        flags: record.flags | more | sys::SETUP_CQSIZE,
        cq_entries: record.cq_entries,
        ..Params::default()
    };
    let fd = sys::setup(record.sq_entries, &mut params)?;
    match (params.sq_entries, params.cq_entries) == (record.sq_entries, record.cq_entries) {
        true => Ok((fd, params)),
        false => Err(nix::Error::EINVAL),
    }
}

/// Registers what belongs to rings, and brings those that are no thread's alone to where they
/// were.
pub fn finish(made: &HashMap<FileId, OwnedFd>, manifest: &Manifest) -> Result<()> {
    for (id, record) in all(manifest) {
        let ring = &made[&id];
        register(ring, record, made).or_fail(failed)?;
        if record.submitter.is_some() {
            continue;
        }
        // A thread that has submitted once is known to the ring as long as it lives.
        let wound = std::thread::scope(|scope| scope.spawn(|| wind(ring, record)).join());
        wound.unwrap_or(Err(nix::Error::ECANCELED)).or_fail(failed)?;
        if let Some(events) = &record.events {
            let (operation, mut fd) = events_argument(events, made[&events.file].as_raw_fd());
            sys::register(ring, operation, &mut fd, 1).or_fail(failed)?;
        }
    }
    Ok(())
}

pub fn all(manifest: &Manifest) -> impl Iterator<Item = (FileId, &UringRecord)> {
    manifest.files.iter().filter_map(|file| match &file.kind {
        FileKind::Uring(record) => Some((file.id, &**record)),
        _ => None,
    })
}

/// Which operation registers the eventfd of this number, and its argument.
pub fn events_argument(events: &UringEvents, number: i32) -> (u32, [u64; 1]) {
    let operation = match events.only_async {
        true => sys::REGISTER_EVENTFD_ASYNC,
        false => sys::REGISTER_EVENTFD,
    };
    (operation, [u64::from(number as u32)])
}

/// `struct io_uring_rsrc_register`, and its size.
pub fn resources(count: usize, data: u64, tags: u64) -> ([u64; 4], u32) {
    ([count as u64, 0, data, tags], 32)
}

fn register(ring: &OwnedFd, record: &UringRecord, made: &HashMap<FileId, OwnedFd>) -> Sys<()> {
    const MONOTONIC: i32 = libc::CLOCK_MONOTONIC;
    if !record.files.is_empty() {
        let fds = record
            .files
            .iter()
            .map(|file| file.file.map_or(-1, |id| made[&id].as_raw_fd()));
        let fds: Vec<i32> = fds.collect();
        let tags: Vec<u64> = record.files.iter().map(|file| file.tag).collect();
        let (mut words, size) = resources(
            fds.len(),
            fds.as_ptr().expose_provenance() as u64,
            tags.as_ptr().expose_provenance() as u64,
        );
        sys::register(ring, sys::REGISTER_FILES2, &mut words, size)?;
        let (from, to) = record.slots;
        if (from, to) != (0, fds.len() as u32) {
            let mut range = [u64::from(from) | u64::from(to.saturating_sub(from)) << 32, 0];
            sys::register(ring, sys::REGISTER_FILE_ALLOC_RANGE, &mut range, 0)?;
        }
    }
    if record.clock != MONOTONIC {
        sys::register(ring, sys::REGISTER_CLOCK, &mut [u64::from(record.clock as u32), 0], 0)?;
    }
    if let Some((bounded, unbounded)) = record.workers {
        let mut limits = [u64::from(bounded) | u64::from(unbounded) << 32];
        sys::register(ring, sys::REGISTER_IOWQ_MAX_WORKERS, &mut limits, 2)?;
    }
    Ok(())
}

fn wind(ring: &OwnedFd, record: &UringRecord) -> Sys<()> {
    let mut winder = Winder::new(ring, record)?;
    while let Some(count) = winder.step()? {
        if sys::submit(ring, count)? != count {
            return Err(nix::Error::EIO);
        }
    }
    winder.tell_more(ring)?;
    winder.put_back()
}

/// Brings a fresh ring to the counters and the content of a record, by steps that somebody
/// submits.
#[derive(Debug)]
pub struct Winder<'a> {
    record: &'a UringRecord,
    params: Params,
    rings: Memory,
    entries: Memory,
    taken: u32,
    told: u32,
    /// What stands in the entries tells no completion.
    silent: bool,
    /// Up to here requests are that do nothing.
    end: u32,
    /// Up to here the app has taken completions.
    read: u32,
}

/// Bytes of the rings, and of what is submitted, in whole pages.
fn sizes_of(record: &UringRecord, params: &Params) -> [u64; 2] {
    let [entry, completion] = record.wide();
    let completions = params.cq_off[5] + record.cq_entries * completion;
    let order = match record.flags & sys::SETUP_NO_SQARRAY {
        0 => params.sq_off[6] + 4 * record.sq_entries,
        _ => 0,
    };
    let entries = record.sq_entries * entry;
    [completions.max(order), entries].map(|bytes| u64::from(bytes).next_multiple_of(PAGE))
}

impl<'a> Winder<'a> {
    /// One that has come to where it was, but for what waits.
    pub fn wound(ring: &OwnedFd, record: &'a UringRecord) -> Sys<Winder<'a>> {
        // Where things stand is told when one is made.
        let (_, params) = make(record, sys::SETUP_R_DISABLED)?;
        // What lies behind the end of a ring is mapped, and not there.
        let sizes = [&record.rings_content, &record.entries_content].map(|content| content.len() as u64);
        if sizes != sizes_of(record, &params) {
            return Err(nix::Error::EINVAL);
        }
        let map = |offset, content: &[u8]| Memory::map(ring, offset, content.len());
        let at = params.cq_off[0] as usize;
        let word = record.rings_content.get(at..at + 4).ok_or(nix::Error::EINVAL)?;
        let read = u32::from_ne_bytes(word.try_into().map_err(|_| nix::Error::EINVAL)?);
        let is_sound = record.told.wrapping_sub(read) <= record.cq_entries;
        let winder = Winder {
            record,
            params,
            read: if is_sound { read } else { record.told },
            rings: map(sys::OFF_SQ_RING, &record.rings_content)?,
            entries: map(sys::OFF_SQES, &record.entries_content)?,
            taken: 0,
            told: 0,
            silent: false,
            end: record.wound().ok_or(nix::Error::EINVAL)?,
        };
        Ok(winder)
    }

    /// One that is fresh.
    pub fn new(ring: &OwnedFd, record: &'a UringRecord) -> Sys<Winder<'a>> {
        let winder = Winder::wound(ring, record)?;
        winder.fill(0)?;
        if record.flags & sys::SETUP_NO_SQARRAY == 0 {
            let order: Vec<u8> = (0..record.sq_entries).flat_map(u32::to_ne_bytes).collect();
            winder.rings.write(winder.params.sq_off[6] as usize, &order)?;
        }
        Ok(winder)
    }

    fn entry_bytes(&self) -> usize {
        self.record.wide()[0] as usize
    }

    /// Requests that do nothing, with these flags in their second byte.
    fn fill(&self, flags: u8) -> Sys<()> {
        let mut entry = vec![0; self.entry_bytes()];
        entry[1] = flags;
        self.entries.write(0, &entry.repeat(self.record.sq_entries as usize))
    }

    /// Readies the next requests; answers how many are to be submitted.
    pub fn step(&mut self) -> Sys<Option<u32>> {
        let left = self.end - self.taken;
        let loud = (self.record.told - self.told).min(left);
        if left == 0 {
            return Ok(None);
        }
        if loud == 0 && !self.silent {
            self.fill(sys::CQE_SKIP_SUCCESS)?;
            self.silent = true;
        }
        let room = self.record.sq_entries.min(self.record.cq_entries);
        let count = if loud > 0 { loud.min(self.free()?) } else { left }.min(room);
        self.taken += count;
        self.told += if loud > 0 { count } else { 0 };
        self.rings.publish(self.params.sq_off[1] as usize, self.taken)?;
        Ok(Some(count))
    }

    /// How many completions have room; the kernel is told of as many unread ones as there are by now.
    fn free(&self) -> Sys<u32> {
        let read = self.told.min(self.read);
        self.rings.publish(self.params.cq_off[0] as usize, read)?;
        Ok(self.record.cq_entries - (self.told - read))
    }

    /// More completions than there were requests come from another ring (IORING_OP_MSG_RING,
    /// Linux 5.18).
    fn tell_more(&mut self, ring: &OwnedFd) -> Sys<()> {
        const MSG_RING: u8 = 40;
        const ENTRIES: u32 = 1024;
        if self.told == self.record.told {
            return Ok(());
        }
        let mut params = Params::default();
        let teller = sys::setup(ENTRIES, &mut params)?;
        let len = params.sq_off[6].max(params.cq_off[5] + 16 * params.cq_entries) + 4 * ENTRIES;
        let rings = Memory::map(&teller, sys::OFF_SQ_RING, len as usize)?;
        let entries = Memory::map(&teller, sys::OFF_SQES, 64 * ENTRIES as usize)?;
        let mut entry = [0; 64];
        entry[0] = MSG_RING;
        entry[4..8].copy_from_slice(&ring.as_raw_fd().to_ne_bytes());
        entries.write(0, &entry.repeat(ENTRIES as usize))?;
        let order: Vec<u8> = (0..ENTRIES).flat_map(u32::to_ne_bytes).collect();
        rings.write(params.sq_off[6] as usize, &order)?;
        let mut sent = 0;
        while self.told < self.record.told {
            let left = self.record.told - self.told;
            let count = left.min(ENTRIES).min(self.free()?);
            rings.publish(params.cq_off[0] as usize, sent)?;
            sent += count;
            self.told += count;
            rings.publish(params.sq_off[1] as usize, sent)?;
            if sys::submit(&teller, count)? != count {
                return Err(nix::Error::EIO);
            }
        }
        Ok(())
    }

    /// The content comes last: it has the counters too, and those of the kernel have to be the
    /// same by then.
    pub fn put_back(&self) -> Sys<()> {
        let at = [self.params.sq_off[0], self.params.cq_off[1]];
        for (at, expected) in at.into_iter().zip([self.end, self.record.told]) {
            if self.rings.word(at as usize)? != expected {
                return Err(nix::Error::EIO);
            }
        }
        self.entries.write(0, &self.record.entries_content)?;
        let mut rings = self.record.rings_content.clone();
        for (at, word) in at.into_iter().zip([self.end, self.record.told]) {
            rings[at as usize..][..4].copy_from_slice(&word.to_ne_bytes());
        }
        self.rings.write(0, &rings)
    }

    /// Readies what waited for its file, by this descriptor of it, to be submitted next: after so
    /// many of the same ring.
    pub fn ready(&mut self, nth: u32, request: &UringRequest, fd: i32) -> Sys<()> {
        self.taken = self.end + nth;
        self.told = self.rings.word(self.params.cq_off[1] as usize)?;
        let at = self.taken & (self.record.sq_entries - 1);
        let mut entry = vec![0; self.entry_bytes()];
        entry[..64].copy_from_slice(&request.entry(fd));
        self.entries.write(at as usize * entry.len(), &entry)?;
        match self.record.flags & sys::SETUP_NO_SQARRAY {
            0 => self.rings.write(self.place(at), &at.to_ne_bytes()),
            _ => Ok(()),
        }
    }

    /// Where it stands which entry comes next.
    fn place(&self, at: u32) -> usize {
        self.params.sq_off[6] as usize + 4 * at as usize
    }

    /// Once it is submitted: what stood in its place, unless the kernel has refused it.
    pub fn waits(&mut self, request: &UringRequest) -> Sys<()> {
        let at = self.taken & (self.record.sq_entries - 1);
        let (size, place) = (self.entry_bytes(), self.place(at));
        let had = &self.record.entries_content[at as usize * size..][..size];
        self.entries.write(at as usize * size, had)?;
        if self.record.flags & sys::SETUP_NO_SQARRAY == 0 {
            self.rings.write(place, &self.record.rings_content[place..place + 4])?;
        }
        self.refused(request)
    }

    /// Whether a completion since then tells of an error that nobody who waited has met.
    fn refused(&mut self, request: &UringRequest) -> Sys<()> {
        const NEVER: [i32; 4] = [libc::EBADF, libc::EOPNOTSUPP, libc::ENOMEM, libc::EINVAL];
        // That is also what an accept is told of a listener that was shut down.
        let never = if request.operation == sys::OP_ACCEPT {
            &NEVER[..3]
        } else {
            &NEVER
        };
        let tail = self.rings.word(self.params.cq_off[1] as usize)?;
        if tail.wrapping_sub(self.told) > self.record.cq_entries {
            return Err(nix::Error::EIO);
        }
        let size = self.record.wide()[1] as usize;
        while self.told != tail {
            let slot = (self.told & (self.record.cq_entries - 1)) as usize;
            let at = self.params.cq_off[5] as usize + slot * size;
            let data = u64::from(self.rings.word(at)?) | u64::from(self.rings.word(at + 4)?) << 32;
            let result = self.rings.word(at + 8)? as i32;
            if data == request.user_data && never.contains(&result.wrapping_neg()) {
                return Err(nix::Error::from_raw(-result));
            }
            self.told = self.told.wrapping_add(1);
        }
        Ok(())
    }
}

impl UringRecord {
    /// Bytes of an entry, and of a completion.
    fn wide(&self) -> [u32; 2] {
        let size = |wide, flag| if self.flags & flag != 0 { 2 * wide } else { wide };
        [size(64, sys::SETUP_SQE128), size(16, sys::SETUP_CQE32)]
    }

    /// How many entries were taken before those that wait.
    pub fn wound(&self) -> Option<u32> {
        self.taken.checked_sub(u32::try_from(self.waiting.len()).ok()?)
    }
}

impl UringRequest {
    /// Its entry (`struct io_uring_sqe`).
    fn entry(&self, fd: i32) -> [u8; 64] {
        let mut entry = [0; 64];
        (entry[0], entry[1]) = (self.operation, self.flags);
        entry[2..4].copy_from_slice(&self.priority.to_ne_bytes());
        entry[4..8].copy_from_slice(&fd.to_ne_bytes());
        entry[8..16].copy_from_slice(&self.offset.to_ne_bytes());
        entry[16..24].copy_from_slice(&self.address.to_ne_bytes());
        entry[24..28].copy_from_slice(&self.len.to_ne_bytes());
        entry[28..32].copy_from_slice(&self.how.to_ne_bytes());
        entry[32..40].copy_from_slice(&self.user_data.to_ne_bytes());
        entry
    }

    /// Whether it is one that is made again, with nothing in it that is not.
    pub fn is_carried(&self) -> bool {
        const POLL_MULTI_LEVEL: u32 = 1 | 1 << 3;
        let priorities = match self.operation {
            sys::OP_POLL_ADD if (self.address, self.offset, self.len & !POLL_MULTI_LEVEL) == (0, 0, 0) => 0,
            // MULTISHOT, DONTWAIT, POLL_FIRST.
            sys::OP_ACCEPT if self.len == 0 => 7,
            // POLL_FIRST.
            sys::OP_RECV if self.offset == 0 => 1,
            sys::OP_READ => 0,
            _ => return false,
        };
        self.priority & !priorities == 0 && self.flags & !sys::CQE_SKIP_SUCCESS == 0
    }

    /// Whether what the kernel may write for it lies in these mappings, which stand in order.
    pub fn has_room(&self, mapped: impl Iterator<Item = (u64, u64)> + Clone) -> bool {
        /// `struct sockaddr_storage`.
        const ADDRESS_BYTES: u64 = 128;
        let is_there = |start: u64, bytes: u64| {
            let Some(end) = start.checked_add(bytes) else {
                return false;
            };
            let mut at = start;
            for (from, to) in mapped.clone() {
                if from <= at && at < to {
                    at = to;
                }
            }
            at >= end
        };
        match self.operation {
            sys::OP_RECV | sys::OP_READ => is_there(self.address, u64::from(self.len)),
            sys::OP_ACCEPT if self.address != 0 || self.offset != 0 => {
                is_there(self.address, ADDRESS_BYTES) && is_there(self.offset, 4)
            }
            _ => true,
        }
    }
}

/// Number and argument of a ring among those of a thread.
pub fn ring_argument(slot: u32, fd: i32) -> [u64; 2] {
    [u64::from(slot), u64::from(fd as u32)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(taken: u32, told: u32) -> Option<UringRecord> {
        let mut record = UringRecord {
            sq_entries: 8,
            cq_entries: 16,
            taken,
            told,
            clock: libc::CLOCK_MONOTONIC,
            ..UringRecord::default()
        };
        let (_, params) = make(&record, 0).ok()?;
        let ends = [params.sq_off[6] + 4 * 8, params.cq_off[5] + 16 * 16];
        let bytes = u64::from(ends[0].max(ends[1])).next_multiple_of(PAGE);
        record.rings_content = vec![0; bytes as usize];
        record.entries_content = vec![0; PAGE as usize];
        let word = |at: u32, value: u32, to: &mut Vec<u8>| {
            to[at as usize..at as usize + 4].copy_from_slice(&value.to_ne_bytes());
        };
        word(params.sq_off[0], taken, &mut record.rings_content);
        word(params.cq_off[1], told, &mut record.rings_content);
        Some(record)
    }

    #[test]
    fn what_the_kernel_may_write_is_memory_of_the_app() {
        let mapped = [(0x1000, 0x3000), (0x3000, 0x4000), (0x8000, 0x9000)];
        let request = |operation, address, len, offset| UringRequest {
            user_data: 0,
            operation,
            flags: 0,
            priority: 0,
            by: VirtualPid(2),
            file: FileId(1),
            offset,
            address,
            len,
            how: 0,
        };
        let has_room = |request: UringRequest| request.has_room(mapped.into_iter());
        for (address, len, expected) in [
            (0x1000, 0x3000, true),
            (0x2fff, 2, true),
            (0x0fff, 2, false),
            (0x3fff, 2, false),
            (0x5000, 1, false),
            (0x8fff, 1, true),
            (u64::MAX, 2, false),
        ] {
            assert_eq!(
                has_room(request(sys::OP_READ, address, len, 0)),
                expected,
                "{address:#x}"
            );
            assert_eq!(
                has_room(request(sys::OP_RECV, address, len, 0)),
                expected,
                "{address:#x}"
            );
        }
        assert!(has_room(request(sys::OP_ACCEPT, 0, 0, 0)));
        assert!(has_room(request(sys::OP_ACCEPT, 0x1000, 0, 0x8ffc)));
        assert!(!has_room(request(sys::OP_ACCEPT, 0x1000, 0, 0x8ffd)));
        assert!(!has_room(request(sys::OP_ACCEPT, 0x3fff, 0, 0x8000)));
        assert!(request(sys::OP_READ, 1, 1, 1).is_carried());
        // IORING_OP_OPENAT; what is of no meaning in a poll; a flag.
        assert!(!request(18, 0, 0, 0).is_carried());
        assert!(!request(sys::OP_POLL_ADD, 1, 1, 0).is_carried());
        let linked = UringRequest {
            flags: 1 << 2,
            ..request(sys::OP_READ, 0, 0, 0)
        };
        assert!(!linked.is_carried());
    }

    #[test]
    fn a_fresh_ring_comes_to_any_counters() {
        for (taken, told) in [(0, 0), (1, 1), (1000, 1000), (1000, 7), (7, 1000), (0, 33)] {
            let Some(record) = record(taken, told) else {
                return; // where io_uring is turned off
            };
            let ring = restore(&record).unwrap();
            wind(&ring, &record).unwrap();
            let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", ring.as_raw_fd())).unwrap();
            let info = crate::proc::Fields::new(info);
            let counters = ["SqHead", "CqTail", "CachedSqHead", "CachedCqTail"].map(|name| info.number(name));
            assert_eq!(counters, [taken, told, taken, told].map(|n| Some(i64::from(n))));
        }
    }
}
