//! What the kernel keeps and tells nobody, read from its memory by the names that its types
//! give it (BTF, `/sys/kernel/btf/vmlinux`). Nothing is written there.

use crate::sys::Sys;
use crate::sys::bpf::{Peek, WORDS};
use std::collections::HashMap;
use std::fs;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

/// Members of the kernel's types by `type.member`, in bytes from the begin of the type.
#[derive(Debug, Default)]
struct Offsets(HashMap<&'static str, u64>);

/// Why nothing can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// The kernel does not tell its types, or lacks a member of this name.
    Unknown(&'static str),
    Denied(nix::Error),
}

impl From<nix::Error> for Unread {
    fn from(errno: nix::Error) -> Unread {
        Unread::Denied(errno)
    }
}

/// A door to the memory of the kernel.
#[derive(Debug)]
pub struct KernelMemory {
    peek: &'static Peek,
    offsets: &'static Offsets,
}

/// All that is asked for.
const MEMBERS: [&str; 130] = [
    "task_struct.files",
    "task_struct.pid",
    "task_struct.io_uring",
    "task_struct.pid_links",
    "task_struct.self_exec_id",
    "task_struct.signal",
    "task_struct.thread_node",
    "task_struct.cred",
    "task_struct.nsproxy",
    "signal_struct.thread_head",
    "cred.security",
    "landlock_ruleset.num_layers",
    "file.f_inode",
    "inode.i_private",
    "pid.tasks",
    "pid.numbers",
    "files_struct.fdt",
    "fdtable.fd",
    "fdtable.close_on_exec",
    "file.private_data",
    "socket.sk",
    "sock.sk_shutdown",
    "tcp_sock.md5sig_info",
    "io_rings.sq",
    "io_rings.cq",
    "io_ring_ctx.flags",
    "io_ring_ctx.submitter_task",
    "io_ring_ctx.clockid",
    "io_ring_ctx.cached_sq_head",
    "io_ring_ctx.sq_entries",
    "io_ring_ctx.file_table",
    "io_ring_ctx.buf_table",
    "io_ring_ctx.submit_state",
    "io_ring_ctx.io_bl_xa",
    "io_ring_ctx.cached_cq_tail",
    "io_ring_ctx.cq_entries",
    "io_ring_ctx.io_ev_fd",
    "io_ring_ctx.work_llist",
    "io_ring_ctx.file_alloc_start",
    "io_ring_ctx.file_alloc_end",
    "io_ring_ctx.restrictions",
    "io_ring_ctx.zcrx_ctxs",
    "io_ring_ctx.personalities",
    "io_ring_ctx.tctx_list",
    "io_ring_ctx.iowq_limits",
    "io_ring_ctx.nr_req_allocated",
    "io_ring_ctx.sq_region",
    "io_ring_ctx.ring_region",
    "io_ring_ctx.param_region",
    "io_restriction.registered",
    "io_submit_state.free_list",
    "io_rsrc_data.nr",
    "io_rsrc_data.nodes",
    "io_rsrc_node.tag",
    "io_rsrc_node.file_ptr",
    "io_rsrc_node.buf",
    "io_mapped_ubuf.ubuf",
    "io_mapped_ubuf.len",
    "io_mapped_ubuf.nr_bvecs",
    "io_mapped_ubuf.folio_shift",
    "io_mapped_ubuf.is_kbuf",
    "io_mapped_ubuf.bvec",
    "io_mapped_region.pages",
    "io_mapped_region.nr_pages",
    "io_ev_fd.cq_ev_fd",
    "io_ev_fd.eventfd_async",
    "io_tctx_node.task",
    "io_tctx_node.ctx_node",
    "io_uring_task.registered_rings",
    "io_ring_ctx.cancel_table",
    "io_hash_table.hbs",
    "io_hash_table.hash_bits",
    "io_hash_bucket.",
    "io_hash_bucket.list",
    "io_kiocb.hash_node",
    "io_kiocb.opcode",
    "io_kiocb.flags",
    "io_kiocb.cqe",
    "io_kiocb.file",
    "io_kiocb.tctx",
    "io_kiocb.link",
    "io_kiocb.apoll_events",
    "io_kiocb.poll_refs",
    "io_ring_ctx.retry_llist",
    "io_cqe.user_data",
    "io_uring_task.task",
    "io_accept.addr",
    "io_accept.addr_len",
    "io_accept.flags",
    "io_accept.iou_flags",
    "io_accept.file_slot",
    "io_sr_msg.buf",
    "io_sr_msg.len",
    "io_sr_msg.done_io",
    "io_sr_msg.msg_flags",
    "io_sr_msg.flags",
    "kiocb.ki_pos",
    "io_rw.addr",
    "io_rw.len",
    "io_rw.flags",
    "xarray.xa_head",
    "bio_vec.bv_page",
    "bio_vec.bv_offset",
    "page.",
    "mqueue_inode_info.vfs_inode",
    "mqueue_inode_info.msg_tree",
    "mqueue_inode_info.attr",
    "mqueue_inode_info.notify",
    "mqueue_inode_info.notify_owner",
    "mqueue_inode_info.notify_self_exec_id",
    "mqueue_inode_info.notify_sock",
    "mqueue_inode_info.notify_cookie",
    "mqueue_inode_info.ucounts",
    "mqueue_inode_info.qsize",
    "mq_attr.mq_maxmsg",
    "mq_attr.mq_msgsize",
    "mq_attr.mq_curmsgs",
    "ucounts.uid",
    "rb_root.rb_node",
    "rb_node.rb_left",
    "rb_node.rb_right",
    "posix_msg_tree_node.rb_node",
    "posix_msg_tree_node.msg_list",
    "msg_msg.",
    "msg_msg.m_list",
    "msg_msg.m_type",
    "msg_msg.m_ts",
    "msg_msg.next",
    "msg_msgseg.",
    "sk_buff.data",
];

impl KernelMemory {
    pub fn open() -> Result<KernelMemory, Unread> {
        if crate::sys::lacks("bpf") {
            return Err(Unread::Denied(nix::Error::EPERM));
        }
        static OFFSETS: OnceLock<Offsets> = OnceLock::new();
        let offsets = OFFSETS.get_or_init(|| {
            let types = fs::read("/sys/kernel/btf/vmlinux").unwrap_or_default();
            Offsets::find(&types).unwrap_or_default()
        });
        // The kernel examines a program when it is loaded: that takes longer than its use.
        static PEEK: OnceLock<Sys<Peek>> = OnceLock::new();
        let peek = PEEK.get_or_init(Peek::new).as_ref().map_err(|errno| *errno)?;
        let kernel = KernelMemory { peek, offsets };
        // Tasks are told by numbers of the first PID namespace.
        static IS_FIRST: OnceLock<bool> = OnceLock::new();
        let is_first = || {
            let own = kernel.current().and_then(|task| kernel.u32(task, "task_struct.pid"));
            own == Ok(nix::unistd::gettid().as_raw() as u32)
        };
        match IS_FIRST.get_or_init(is_first) {
            true => Ok(kernel),
            false => Err(Unread::Denied(nix::Error::EPERM)),
        }
    }

    /// In bytes; of `type.` its size.
    pub fn offset(&self, member: &'static str) -> Result<u64, Unread> {
        self.offsets.0.get(member).copied().ok_or(Unread::Unknown(member))
    }

    pub fn u64(&self, object: u64, member: &'static str) -> Result<u64, Unread> {
        Ok(self.peek.words(object.wrapping_add(self.offset(member)?))?[0])
    }

    pub fn u32(&self, object: u64, member: &'static str) -> Result<u32, Unread> {
        self.u64(object, member).map(|word| word as u32)
    }

    pub fn u8(&self, object: u64, member: &'static str) -> Result<u8, Unread> {
        self.u64(object, member).map(|word| word as u8)
    }

    /// Where a part of an object stands.
    pub fn part(&self, object: u64, member: &'static str) -> Result<u64, Unread> {
        Ok(object.wrapping_add(self.offset(member)?))
    }

    pub fn words(&self, address: u64, count: usize) -> Result<Vec<u64>, Unread> {
        let mut all = Vec::with_capacity(count);
        for at in (0..count).step_by(WORDS) {
            let words = self.peek.words(address.wrapping_add(8 * at as u64))?;
            all.extend(&words[..WORDS.min(count - at)]);
        }
        Ok(all)
    }

    /// Nothing is read of a page that holds none of them: it may not be there.
    pub fn bytes(&self, address: u64, count: usize) -> Result<Vec<u8>, Unread> {
        const AT_ONCE: usize = 8 * WORDS;
        let before = (address % AT_ONCE as u64) as usize;
        let mut all = Vec::with_capacity(before + count + AT_ONCE);
        while all.len() < before + count {
            let words = self
                .peek
                .words(address.wrapping_sub(before as u64).wrapping_add(all.len() as u64))?;
            all.extend(words.into_iter().flat_map(u64::to_le_bytes));
        }
        all.truncate(before + count);
        Ok(all.split_off(before))
    }

    /// The `task_struct` of the calling thread.
    pub fn current(&self) -> Result<u64, Unread> {
        Ok(self.peek.current()?)
    }

    /// Those of all threads of a process, of which this is a pidfd; ESRCH: it was reaped.
    pub fn threads(&self, pidfd: &impl AsRawFd) -> Result<Vec<u64>, Unread> {
        const THREADS_MAX: usize = 65536;
        let file = self.file(pidfd)?;
        let number = match self.u64(self.u64(file, "file.f_inode")?, "inode.i_private")? {
            // Before Linux 6.9 all pidfds share an inode, which has none.
            0 => self.u64(file, "file.private_data")?,
            number => number,
        };
        let link = match self.u64(number, "pid.tasks")? {
            0 => return Err(Unread::Denied(nix::Error::ESRCH)),
            link => link,
        };
        let main = link.wrapping_sub(self.offset("task_struct.pid_links")?);
        let list = self.part(self.u64(main, "task_struct.signal")?, "signal_struct.thread_head")?;
        let mut tasks = Vec::new();
        // Of a process that runs, what is read may be gone meanwhile, and anything in its place.
        let mut next = self.words(list, 1)?[0];
        while next != list && tasks.len() < THREADS_MAX {
            tasks.push(next.wrapping_sub(self.offset("task_struct.thread_node")?));
            next = self.words(next, 1)?[0];
        }
        Ok(tasks)
    }

    /// The `struct file` behind a descriptor of ours.
    pub fn file(&self, fd: &impl AsRawFd) -> Result<u64, Unread> {
        let files = self.u64(self.peek.current()?, "task_struct.files")?;
        let table = self.u64(self.u64(files, "files_struct.fdt")?, "fdtable.fd")?;
        Ok(self.peek.words(table.wrapping_add(8 * fd.as_raw_fd() as u64))?[0])
    }
}

/// A reader of little-endian words; whoever reads too far gets none.
struct Words<'a>(&'a [u8]);

impl Words<'_> {
    fn at(&self, at: usize) -> Option<u32> {
        let bytes = self.0.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }
}

/// One type of BTF: what follows its name stands at `members`.
struct Type {
    name: usize,
    kind: u32,
    count: usize,
    /// Offsets of its members have the width of bit fields in their upper byte.
    has_fields: bool,
    /// Or the type that it stands for.
    size: u32,
    members: usize,
}

const STRUCT: u32 = 4;
const UNION: u32 = 5;
/// Names and qualifiers of other types: typedef, volatile, const, restrict, a type tag.
const TRANSPARENT: [u32; 5] = [8, 9, 10, 11, 18];

impl Offsets {
    /// From the kernel's types, as `include/uapi/linux/btf.h` has them.
    fn find(btf: &[u8]) -> Option<Offsets> {
        const MAGIC: u32 = 0xeb9f;
        let words = Words(btf);
        if words.at(0)? & 0xffff != MAGIC {
            return None;
        }
        let head = words.at(4)? as usize;
        let section = |at: usize| Some((head + words.at(at)? as usize, words.at(at + 4)? as usize));
        let (types, types_len) = section(8)?;
        let (strings, strings_len) = section(16)?;
        let names = btf.get(strings..strings + strings_len)?;
        let all = types_of(&Words(btf.get(types..types + types_len)?))?;
        let types = btf.get(types..types + types_len)?;
        let seeker = Seeker {
            words: Words(types),
            all,
            names,
        };
        let mut wanted: HashMap<&str, Vec<(&'static str, &str)>> = HashMap::new();
        for whole in MEMBERS {
            let (own, member) = whole.split_once('.')?;
            wanted.entry(own).or_default().push((whole, member));
        }
        let mut found = HashMap::new();
        for of in &seeker.all {
            if ![STRUCT, UNION].contains(&of.kind) {
                continue;
            }
            for (whole, member) in wanted.get(seeker.name(of.name)).into_iter().flatten() {
                let at = match *member {
                    "" => Some(u64::from(of.size)),
                    member => seeker.member(of, member, 0),
                };
                if let Some(at) = at {
                    found.entry(*whole).or_insert(at);
                }
            }
        }
        Some(Offsets(found))
    }
}

struct Seeker<'a> {
    words: Words<'a>,
    /// By number, from 1 on.
    all: Vec<Type>,
    names: &'a [u8],
}

impl Seeker<'_> {
    fn name(&self, at: usize) -> &str {
        let rest = self.names.get(at..).unwrap_or_default();
        let end = rest.iter().position(|byte| *byte == 0).unwrap_or(0);
        std::str::from_utf8(&rest[..end]).unwrap_or_default()
    }

    /// Bytes from the begin of a type to a member of its own or of one without a name in it.
    fn member(&self, of: &Type, wanted: &str, depth: u8) -> Option<u64> {
        const DEPTH_MAX: u8 = 8;
        (0..of.count).find_map(|nth| {
            let at = of.members + 12 * nth;
            let bits = match of.has_fields {
                true => self.words.at(at + 8)? & 0xff_ffff,
                false => self.words.at(at + 8)?,
            };
            let bytes = u64::from(bits / 8);
            match self.name(self.words.at(at)? as usize) {
                name if name == wanted => Some(bytes),
                "" if depth < DEPTH_MAX => {
                    let inner = self.compound(self.words.at(at + 4)?, 0)?;
                    Some(bytes + self.member(inner, wanted, depth + 1)?)
                }
                _ => None,
            }
        })
    }

    fn compound(&self, number: u32, depth: u8) -> Option<&Type> {
        let of = self.all.get((number as usize).checked_sub(1)?)?;
        match of.kind {
            STRUCT | UNION => Some(of),
            kind if TRANSPARENT.contains(&kind) && depth < 8 => self.compound(of.size, depth + 1),
            _ => None,
        }
    }
}

fn types_of(words: &Words<'_>) -> Option<Vec<Type>> {
    let mut all = Vec::new();
    let mut at = 0;
    while at < words.0.len() {
        let info = words.at(at + 4)?;
        let (kind, count) = (info >> 24 & 31, (info & 0xffff) as usize);
        all.push(Type {
            name: words.at(at)? as usize,
            kind,
            count,
            has_fields: info >> 31 != 0,
            size: words.at(at + 8)?,
            members: at + 12,
        });
        // Integers, arrays, struct, union, enum, prototypes, variables, sections, tags, enum64.
        at += 12
            + match kind {
                1 | 14 | 17 => 4,
                3 => 12,
                4 | 5 | 15 | 19 => 12 * count,
                6 | 13 => 8 * count,
                _ => 0,
            };
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_by_what_it_is_made_of() {
        let Ok(memory) = KernelMemory::open() else {
            return; // without the right to it
        };
        let (one, other) = (
            fs::File::open("/proc/self/exe").unwrap(),
            fs::File::open("/dev/null").unwrap(),
        );
        let again = one.try_clone().unwrap();
        let file = |of: &fs::File| memory.file(of).unwrap();
        assert_eq!(file(&one), file(&again));
        assert_ne!(file(&one), file(&other));
        // Heads and tails had lines of the cache for themselves before (Linux 6.1).
        assert!([Ok(8), Ok(128)].contains(&memory.offset("io_rings.cq")));
        assert_eq!(memory.offset("page."), Ok(64));
    }

    #[test]
    fn a_process_that_was_reaped_has_no_threads() {
        let Ok(memory) = KernelMemory::open() else {
            return; // without the right to it
        };
        let mut child = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let pidfd = crate::sys::task::pidfd_open(crate::ids::HostPid(child.id() as i32)).unwrap();
        assert_eq!(memory.threads(&pidfd).unwrap().len(), 1);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(memory.threads(&pidfd), Err(Unread::Denied(nix::Error::ESRCH)));
    }

    #[test]
    fn bytes_begin_anywhere() {
        let Ok(memory) = KernelMemory::open() else {
            return; // without the right to it
        };
        let task = memory.current().unwrap();
        let pid = memory.part(task, "task_struct.pid").unwrap();
        let own = nix::unistd::gettid().as_raw().to_le_bytes();
        assert_eq!(memory.bytes(pid, 4).unwrap(), own);
        assert_eq!(memory.bytes(pid + 1, 2).unwrap(), own[1..3]);
        assert_eq!(memory.bytes(pid - 300, 304).unwrap()[300..], own);
        assert!(memory.bytes(pid, 0).unwrap().is_empty());
    }

    #[test]
    fn what_is_no_btf_has_no_members() {
        for bytes in [&b""[..], b"\x9f\xeb\x01\x00", &[0xff; 64]] {
            assert!(Offsets::find(bytes).is_none_or(|found| found.0.is_empty()));
        }
    }
}
