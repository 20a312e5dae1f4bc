//! What only a process itself can ask the kernel: a batch of questions, asked right
//! before it runs for the first time, and again before it is reverted. Answers must be
//! the same.

use crate::executor::{Batch, CallId, Executor, Slot};
use crate::files::sockets;
use crate::image::records::{FdEntry, FileKind, Keys, Manifest, SocketRecord, SocketState};
use crate::keys;
use nix::errno::Errno;
use std::ops::Range;

/// What was asked, and what the kernel said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    what: Asked,
    result: Result<u64, Errno>,
    bytes: Vec<u8>,
}

/// The call, the number of a descriptor where it is about one, and which of several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    call: &'static str,
    fd: Option<i32>,
    which: u64,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.fd {
            Some(fd) => write!(f, "{} of descriptor {fd}", self.call),
            None => write!(f, "{}", self.call),
        }
    }
}

/// Everything that one thread is asked, with its answers.
#[derive(Debug, Default)]
pub struct Answers {
    all: Vec<Answer>,
    /// The end of the heap (brk(2)), which may differ.
    pub brk: u64,
    /// Listening sockets, and how many connections wait there; these may differ.
    pub waiting: Vec<(i32, u32)>,
    /// Protection keys.
    keys: Option<Keys>,
}

impl Answers {
    /// What the kernel says otherwise now.
    pub fn differs(&self, now: &Answers) -> Option<String> {
        if self.all.len() != now.all.len() {
            return Some("what it was asked".to_owned());
        }
        if self.keys != now.keys {
            return Some("pkey_alloc".to_owned());
        }
        let mut pairs = self.all.iter().zip(&now.all);
        let other = pairs.find(|(was, is)| was != is);
        other.map(|(was, _)| was.what.to_string())
    }
}

#[derive(Clone, Debug)]
struct Question {
    what: Asked,
    call: CallId,
    answer: Option<(Slot, Range<usize>)>,
}

/// Questions to one thread; put together once, they are asked again and again.
#[derive(Clone, Debug)]
pub struct Questions {
    batch: Batch,
    asked: Vec<Question>,
    brk: Option<CallId>,
    /// Listening sockets: number, struct tcp_info.
    listening: Vec<(i32, Slot)>,
    keys: Option<keys::Asked>,
}

/// struct tcp_info: of a listening socket these hold the connections that wait and the
/// backlog.
const TCPI_STATE: Range<usize> = 0..1;
const TCPI_UNACKED: Range<usize> = 24..28;
const TCPI_SACKED: Range<usize> = 28..32;

impl Questions {
    /// For any thread.
    pub fn of_thread(executor: &Executor) -> Questions {
        let mut questions = Questions {
            batch: executor.batch(),
            asked: Vec::new(),
            brk: None,
            listening: Vec::new(),
            keys: None,
        };
        questions.thread();
        questions
    }

    /// For the main thread, which is asked for its process too.
    pub fn of_process(executor: &Executor, fds: &[FdEntry], manifest: &Manifest) -> Questions {
        let mut questions = Questions::of_thread(executor);
        questions.process();
        for entry in fds {
            questions.file(entry, &manifest.files[entry.file.0 as usize].kind);
        }
        questions
    }

    pub fn batch(&mut self) -> &mut Batch {
        &mut self.batch
    }

    /// Once the batch has run.
    pub fn answers(self) -> Answers {
        let batch = &self.batch;
        let one = |question: &Question| Answer {
            what: question.what,
            result: batch.result(question.call),
            bytes: match (&question.answer, batch.result(question.call)) {
                (Some((slot, range)), Ok(_)) => batch.read(*slot)[range.clone()].to_vec(),
                _ => Vec::new(),
            },
        };
        let waiting = self.listening.iter().map(|(fd, slot)| {
            let word = &batch.read(*slot)[TCPI_UNACKED];
            (*fd, u32::from_le_bytes(word.try_into().unwrap_or_default()))
        });
        Answers {
            all: self.asked.iter().map(one).collect(),
            brk: self.brk.and_then(|call| batch.result(call).ok()).unwrap_or(0),
            waiting: waiting.collect(),
            keys: self.keys.as_ref().and_then(|keys| keys.answers(batch)),
        }
    }

    /// A call whose result says all.
    fn result(&mut self, call: &'static str, which: u64, number: i64, args: &[u64]) {
        let asked = self.batch.call(call, number, args);
        let what = Asked { call, fd: None, which };
        self.asked.push(Question {
            what,
            call: asked,
            answer: None,
        });
    }

    /// A call that fills `len` bytes, of which some say all.
    fn filled(&mut self, what: Asked, number: i64, len: usize, kept: Range<usize>, args: impl FnOnce(u64) -> Vec<u64>) {
        let slot = self.batch.space(len);
        let call = self.batch.call(what.call, number, &args(slot.address));
        let answer = Some((slot, kept));
        self.asked.push(Question { what, call, answer });
    }

    fn words(&mut self, call: &'static str, which: u64, number: i64, len: usize, args: impl FnOnce(u64) -> Vec<u64>) {
        let what = Asked { call, fd: None, which };
        self.filled(what, number, len, 0..len, args);
    }

    fn prctl(&mut self, call: &'static str, option: i32, argument: u64) {
        let args = [option as u64, argument, 0, 0, 0];
        self.result(call, argument, libc::SYS_prctl, &args);
    }

    fn prctl_word(&mut self, call: &'static str, option: i32) {
        self.words(call, 0, libc::SYS_prctl, 8, |slot| vec![option as u64, slot, 0, 0, 0]);
    }

    fn thread(&mut self) {
        const PR_GET_TID_ADDRESS: i32 = 40;
        const PR_GET_IO_FLUSHER: i32 = 58;
        const ARCH_GET_CPUID: u64 = 0x1011;
        const KEYCTL_GET_KEYRING_ID: u64 = 0;
        const NODES: usize = 1024;
        // SS_ONSTACK in the second word comes of the stack pointer: the address and the
        // length say enough, and the flags that can be set beside it.
        self.words("sigaltstack", 0, libc::SYS_sigaltstack, 24, |slot| vec![0, slot]);
        self.prctl_word("PR_GET_TID_ADDRESS", PR_GET_TID_ADDRESS);
        self.prctl_word("PR_GET_PDEATHSIG", libc::PR_GET_PDEATHSIG);
        self.prctl_word("PR_GET_TSC", libc::PR_GET_TSC);
        self.prctl("PR_GET_SECUREBITS", libc::PR_GET_SECUREBITS, 0);
        self.prctl("PR_MCE_KILL_GET", libc::PR_MCE_KILL_GET, 0);
        self.prctl("PR_GET_IO_FLUSHER", PR_GET_IO_FLUSHER, 0);
        for which in 0..3 {
            self.prctl("PR_GET_SPECULATION_CTRL", libc::PR_GET_SPECULATION_CTRL, which);
        }
        self.result("ARCH_GET_CPUID", 0, libc::SYS_arch_prctl, &[ARCH_GET_CPUID, 0]);
        self.words("get_mempolicy", 0, libc::SYS_get_mempolicy, 8 + NODES / 8, |slot| {
            vec![slot, slot + 8, NODES as u64, 0, 0]
        });
        // The keyrings of the thread, its process and its session.
        for which in [-1i64, -2, -3] {
            let args = [KEYCTL_GET_KEYRING_ID, which as u64, 0];
            self.result("KEYCTL_GET_KEYRING_ID", which as u64, libc::SYS_keyctl, &args);
        }
    }

    fn process(&mut self) {
        const PR_GET_MDWE: i32 = 66;
        const PR_GET_MEMORY_MERGE: i32 = 68;
        const MEMBARRIER_CMD_GET_REGISTRATIONS: u64 = 1 << 9;
        const SHM_INFO: u64 = 14;
        const SEM_INFO: u64 = 19;
        const MSG_INFO: u64 = 12;
        for signal in 1..=64 {
            self.words("rt_sigaction", signal, libc::SYS_rt_sigaction, 32, |slot| {
                vec![signal, 0, slot, 8]
            });
        }
        self.prctl("PR_GET_DUMPABLE", libc::PR_GET_DUMPABLE, 0);
        self.prctl("PR_GET_THP_DISABLE", libc::PR_GET_THP_DISABLE, 0);
        self.prctl("PR_GET_MDWE", PR_GET_MDWE, 0);
        self.prctl("PR_GET_MEMORY_MERGE", PR_GET_MEMORY_MERGE, 0);
        self.prctl_word("PR_GET_CHILD_SUBREAPER", libc::PR_GET_CHILD_SUBREAPER);
        for timer in 0..3 {
            self.words("getitimer", timer, libc::SYS_getitimer, 32, |slot| vec![timer, slot]);
        }
        self.words("uname", 0, libc::SYS_uname, 390, |slot| vec![slot]);
        // How many System V objects there are.
        let shm = Asked {
            call: "SHM_INFO",
            fd: None,
            which: 0,
        };
        self.filled(shm, libc::SYS_shmctl, 64, 0..4, |slot| vec![0, SHM_INFO, slot]);
        self.words("SEM_INFO", 0, libc::SYS_semctl, 40, |slot| vec![0, 0, SEM_INFO, slot]);
        self.words("MSG_INFO", 0, libc::SYS_msgctl, 32, |slot| vec![0, MSG_INFO, slot]);
        // ECHILD: it has no children, ended ones neither.
        let any = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        let args = [libc::P_ALL as u64, 0, 0, any as u32 as u64, 0];
        self.result("waitid", 0, libc::SYS_waitid, &args);
        let registered = [MEMBARRIER_CMD_GET_REGISTRATIONS, 0, 0];
        self.result("membarrier", 0, libc::SYS_membarrier, &registered);
        self.brk = Some(self.batch.call("brk", libc::SYS_brk, &[0]));
        self.keys = keys::Asked::ask(&mut self.batch);
    }

    /// A call about a descriptor, with its number in front.
    fn of(&mut self, fd: i32, call: &'static str, which: u64, number: i64, args: &[u64]) {
        let all: Vec<u64> = [fd as u64].into_iter().chain(args.iter().copied()).collect();
        let asked = self.batch.call(call, number, &all);
        let what = Asked {
            call,
            fd: Some(fd),
            which,
        };
        self.asked.push(Question {
            what,
            call: asked,
            answer: None,
        });
    }

    fn file(&mut self, entry: &FdEntry, kind: &FileKind) {
        const F_GETSIG: u64 = 11;
        const F_GETOWN_EX: u64 = 16;
        const F_GETLEASE: u64 = 1025;
        const F_GETPIPE_SZ: u64 = 1032;
        let fd = entry.fd.0;
        for command in [F_GETSIG, F_GETLEASE] {
            self.of(fd, "fcntl", command, libc::SYS_fcntl, &[command]);
        }
        let own = Asked {
            call: "F_GETOWN_EX",
            fd: Some(fd),
            which: 0,
        };
        self.filled(own, libc::SYS_fcntl, 8, 0..8, |slot| vec![fd as u64, F_GETOWN_EX, slot]);
        let listens = |kind: &FileKind| match kind {
            FileKind::Socket(socket) => {
                socket.domain != libc::AF_UNIX && matches!(socket.state, SocketState::Listening { .. })
            }
            _ => false,
        };
        match kind {
            // What epoll has to tell is told anew by who watches anew.
            FileKind::Path { .. } | FileKind::Outside { .. } | FileKind::Epoll { .. } => return,
            FileKind::Pipe { .. } => self.of(fd, "F_GETPIPE_SZ", 0, libc::SYS_fcntl, &[F_GETPIPE_SZ]),
            FileKind::Socket(socket) => self.socket(fd, socket, listens(kind)),
            _ => {}
        }
        if !listens(kind) {
            let waits = Asked {
                call: "FIONREAD",
                fd: Some(fd),
                which: 0,
            };
            self.filled(waits, libc::SYS_ioctl, 8, 0..4, |slot| {
                vec![fd as u64, libc::FIONREAD, slot]
            });
            self.poll(fd);
        }
    }

    /// Whether something waits there, or its other end is gone.
    fn poll(&mut self, fd: i32) {
        const EVENTS: i16 = libc::POLLIN | libc::POLLPRI | libc::POLLRDHUP;
        let asked = self
            .batch
            .words(&[u64::from(fd as u32) | u64::from(EVENTS as u16) << 32]);
        let now = self.batch.words(&[0, 0]);
        let args = [asked.address, 1, now.address, 0, 8];
        let call = self.batch.call("ppoll", libc::SYS_ppoll, &args);
        // How many have something to say: this one, or none.
        let what = Asked {
            call: "poll",
            fd: Some(fd),
            which: 0,
        };
        self.asked.push(Question {
            what,
            call,
            answer: None,
        });
    }

    fn socket(&mut self, fd: i32, record: &SocketRecord, listens: bool) {
        for (call, number) in [
            ("getsockname", libc::SYS_getsockname),
            ("getpeername", libc::SYS_getpeername),
        ] {
            let len = self.batch.words(&[128]).address;
            let what = Asked {
                call,
                fd: Some(fd),
                which: 0,
            };
            self.filled(what, number, 128, 0..128, |slot| vec![fd as u64, slot, len]);
        }
        for (level, name) in sockets::OPTIONS
            .into_iter()
            .filter(|(level, _)| sockets::has_level(record, *level))
        {
            self.option(fd, (level, name), 40, 0..40);
        }
        self.filter(fd);
        self.option(fd, (libc::SOL_SOCKET, libc::SO_ERROR), 8, 0..4);
        self.option(fd, (libc::SOL_SOCKET, libc::SO_ACCEPTCONN), 8, 0..4);
        let info = (libc::IPPROTO_TCP, libc::TCP_INFO);
        self.option(fd, info, 256, TCPI_STATE);
        let slot = self.option(fd, info, 256, TCPI_SACKED);
        if listens {
            self.listening.push((fd, slot));
        }
    }

    /// The length of its filter, in instructions: no room is given for them.
    fn filter(&mut self, fd: i32) {
        let (level, name) = sockets::FILTER;
        let what = Asked {
            call: "the length of its filter",
            fd: Some(fd),
            which: 0,
        };
        self.filled(what, libc::SYS_getsockopt, 8, 0..4, |count| {
            vec![fd as u64, level as u64, name as u64, 0, count]
        });
    }

    fn option(&mut self, fd: i32, (level, name): (i32, i32), bytes: usize, kept: Range<usize>) -> Slot {
        let len = self.batch.words(&[bytes as u64]).address;
        let slot = self.batch.space(bytes);
        let args = [fd as u64, level as u64, name as u64, slot.address, len];
        let call = self.batch.call("getsockopt", libc::SYS_getsockopt, &args);
        let which = (level as u64) << 32 | name as u64;
        let what = Asked {
            call: "a socket option",
            fd: Some(fd),
            which,
        };
        self.asked.push(Question {
            what,
            call,
            answer: Some((slot, kept)),
        });
        slot
    }
}
