//! What waits in a pseudo-terminal, in both directions.
//!
//! The kernel has no way to look without taking. While the app stands still,
//! everything is read from both sides and put back at once; restore puts the
//! same in anew. Input has been through the line discipline already: it goes
//! back past it, a byte at a time (TIOCSTI), with modes under which nothing is
//! interpreted but what keeps the lines of canonical mode apart:
//!
//! ```text
//!   "ls\n" ^D "pw"    three reads: a line, end of file, nothing yet (not ended)
//!   l s \n 04 p w     as it is kept and fed: 04 ends a line, 16 quotes
//! ```

use super::{Refused, refused};
use crate::sys::{Sys, fd as sysfd};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::OnceLock;

const TCGETS2: u64 = 0x802c_542a;
const TCSETS2: u64 = 0x402c_542b;
/// Of `c_cc`.
const CC: usize = 17;
const END: u8 = 0x04;
const QUOTE: u8 = 0x16;
/// Input that is put back must fit the line discipline's 4096 bytes.
const INPUT_MAX: i32 = 2048;
/// How long the kernel may take to make room for output that was there before.
const ROOM_MS: u16 = 1000;

/// `struct termios2`: four words of flags, line discipline, 19 characters, speeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modes(pub [u8; 44]);

impl Modes {
    pub fn get(tty: &impl AsRawFd) -> Sys<Modes> {
        let mut modes = [0; 44];
        sysfd::ioctl_bytes(tty, TCGETS2, &mut modes).map(|_| Modes(modes))
    }

    fn set(mut self, tty: &impl AsRawFd) -> Sys<()> {
        sysfd::ioctl_bytes(tty, TCSETS2, &mut self.0).map(drop)
    }

    pub fn local(&self) -> u32 {
        u32::from_ne_bytes([self.0[12], self.0[13], self.0[14], self.0[15]])
    }

    pub fn line_discipline(&self) -> u8 {
        self.0[16]
    }

    fn canonical(&self) -> bool {
        self.local() & libc::ICANON != 0
    }

    /// Modes under which bytes pass as they are, except END and QUOTE in
    /// canonical mode.
    fn passing(mut self, canonical: bool) -> Modes {
        let local = if canonical { libc::ICANON | libc::IEXTEN } else { 0 };
        self.0[..8].fill(0);
        self.0[12..16].copy_from_slice(&local.to_ne_bytes());
        self.0[CC..CC + 19].fill(0);
        self.0[CC + libc::VMIN] = 1;
        if canonical {
            self.0[CC + libc::VEOF] = END;
            self.0[CC + libc::VLNEXT] = QUOTE;
        }
        self
    }
}

/// What waits: see `PtyRecord`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Queue {
    pub input: Vec<u8>,
    pub output: Vec<u8>,
}

/// What poll(2) reports now.
pub fn events(tty: &OwnedFd) -> PollFlags {
    wait(tty, PollTimeout::ZERO)
}

fn wait(tty: &OwnedFd, timeout: PollTimeout) -> PollFlags {
    let mut polled = [PollFd::new(
        tty.as_fd(),
        PollFlags::POLLIN | PollFlags::POLLOUT | PollFlags::POLLPRI,
    )];
    poll(&mut polled, timeout).ok();
    polled[0].revents().unwrap_or(PollFlags::empty())
}

/// Whether both queues can be read and put back. Whoever runs does not notice that it is asked.
pub fn can_be_looked_at(master: &OwnedFd, slave: &OwnedFd) -> Result<(), Refused> {
    if ![master, slave]
        .iter()
        .all(|side| events(side).contains(PollFlags::POLLOUT))
    {
        return refused(
            "a terminal whose queue is full or stopped (^S)",
            "let the app read it, or resume it (^Q), and try again",
        );
    }
    if sysfd::ioctl_i32(slave, libc::FIONREAD).unwrap_or(0) > INPUT_MAX {
        return refused(
            "a terminal with more than 2 KiB of input not yet read",
            "let the app read it, and try again",
        );
    }
    if !can_feed() {
        return refused(
            "this kernel does not let anybody put back what waits in a terminal (TIOCSTI)",
            "sysctl dev.tty.legacy_tiocsti=1",
        );
    }
    Ok(())
}

/// Reads both queues and puts them back.
pub fn look(master: &OwnedFd, slave: &OwnedFd, modes: &Modes, packets: bool) -> Result<Queue, Refused> {
    can_be_looked_at(master, slave)?;
    let looked = look_inside(master, slave, modes, packets);
    looked.or_else(|errno| {
        refused(
            format!("what waits in the terminal cannot be read: {errno}"),
            "try again",
        )
    })
}

fn look_inside(master: &OwnedFd, slave: &OwnedFd, modes: &Modes, packets: bool) -> Sys<Queue> {
    set_packets(master, false)?;
    let mut queue = Queue::default();
    let taken = take(master, slave, modes, &mut queue);
    let fed = feed(slave, modes, &queue);
    set_packets(master, packets)?;
    taken.and(fed).map(|()| queue)
}

/// TIOCPKT; nothing is pending in it afterwards.
pub fn set_packets(master: &OwnedFd, packets: bool) -> Sys<()> {
    sysfd::ioctl_bytes(master, libc::TIOCPKT, &mut i32::from(packets).to_ne_bytes()).map(drop)
}

fn take(master: &OwnedFd, slave: &OwnedFd, modes: &Modes, queue: &mut Queue) -> Sys<()> {
    if modes.canonical() {
        // One read a line. N.B. lines first: leaving canonical mode joins them.
        while let Some(line) = read(slave)? {
            encode_line(&line, &mut queue.input);
        }
    }
    modes.passing(false).set(slave)?;
    while let Some(bytes) = read(slave)? {
        if modes.canonical() {
            encode(&bytes, &mut queue.input)
        } else {
            queue.input.extend(bytes)
        }
    }
    while let Some(bytes) = read(master)? {
        queue.output.extend(bytes);
    }
    Ok(())
}

/// What can be read without waiting. A poll that finds nothing has first
/// flushed what was under way.
fn read(tty: &OwnedFd) -> Sys<Option<Vec<u8>>> {
    if !events(tty).contains(PollFlags::POLLIN) {
        return Ok(None);
    }
    let mut bytes = vec![0; 8192];
    match nix::unistd::read(tty, &mut bytes) {
        Ok(len) => {
            bytes.truncate(len);
            Ok(Some(bytes))
        }
        Err(Errno::EAGAIN) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn encode_line(line: &[u8], to: &mut Vec<u8>) {
    match line.split_last() {
        Some((b'\n', rest)) => {
            encode(rest, to);
            to.push(b'\n');
        }
        _ => {
            encode(line, to);
            to.push(END);
        }
    }
}

fn encode(bytes: &[u8], to: &mut Vec<u8>) {
    for byte in bytes {
        if [b'\n', END, QUOTE].contains(byte) {
            to.push(QUOTE);
        }
        to.push(*byte);
    }
}

/// Fills empty queues; the terminal has `modes` afterwards.
pub fn feed(slave: &OwnedFd, modes: &Modes, queue: &Queue) -> Sys<()> {
    modes.passing(modes.canonical()).set(slave)?;
    let fed = queue.input.iter().try_for_each(|byte| insert(slave, *byte));
    let written = write(slave, &queue.output);
    modes.set(slave)?;
    fed.and(written)
}

fn insert(tty: &impl AsRawFd, byte: u8) -> Sys<()> {
    sysfd::ioctl_bytes(tty, libc::TIOCSTI, &mut [byte]).map(drop)
}

fn write(slave: &OwnedFd, mut bytes: &[u8]) -> Sys<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(slave, bytes) {
            Ok(len) => bytes = &bytes[len..],
            Err(Errno::EAGAIN) if wait(slave, PollTimeout::from(ROOM_MS)).contains(PollFlags::POLLOUT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Some kernels (6.2 to 6.5) can forbid TIOCSTI to everybody: tried once, on a
/// terminal of our own.
fn can_feed() -> bool {
    static CAN: OnceLock<bool> = OnceLock::new();
    *CAN.get_or_init(|| nix::pty::openpty(None, None).is_ok_and(|pair| insert(&pair.slave, b'x').is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_without_newline_are_ended_and_specials_quoted() {
        let mut to = Vec::new();
        encode_line(b"ls\n", &mut to);
        encode_line(b"", &mut to);
        encode(b"a\x04\nb", &mut to);
        assert_eq!(to, b"ls\n\x04a\x16\x04\x16\nb");
    }

    /// A pair with these modes and something typed at the master.
    fn pair(canonical: bool, typed: &[u8]) -> (OwnedFd, OwnedFd, Modes) {
        let pair = nix::pty::openpty(None, None).unwrap();
        sysfd::fcntl(
            pair.slave.as_raw_fd(),
            libc::F_SETFL,
            i64::from(libc::O_RDWR | libc::O_NONBLOCK),
        )
        .unwrap();
        let mut modes = Modes::get(&pair.slave).unwrap();
        let local = modes.local() & !libc::ECHO & if canonical { !0 } else { !libc::ICANON };
        modes.0[12..16].copy_from_slice(&local.to_ne_bytes());
        modes.set(&pair.slave).unwrap();
        // The output first: what is typed may stop the terminal.
        nix::unistd::write(&pair.slave, b"out\n").unwrap();
        nix::unistd::write(&pair.master, typed).unwrap();
        (pair.master, pair.slave, modes)
    }

    #[test]
    fn looking_leaves_lines_ends_and_a_started_line() {
        let (master, slave, modes) = pair(true, b"one\ntwo\x04\x04q\x16\x04uo\n ha");
        for _ in 0..2 {
            let queue = look(&master, &slave, &modes, false).unwrap();
            assert_eq!(queue.input, b"one\ntwo\x04\x04q\x16\x04uo\n ha");
            assert_eq!(queue.output, b"out\r\n");
            assert_eq!(Modes::get(&slave), Ok(modes));
        }
        nix::unistd::write(&master, b"lf\n").unwrap();
        let reads: Vec<Vec<u8>> = std::iter::from_fn(|| read(&slave).unwrap()).collect();
        assert_eq!(reads, [&b"one\n"[..], b"two", b"", b"q\x04uo\n", b" half\n"]);
        assert_eq!(read(&master).unwrap().unwrap(), b"out\r\n");
    }

    #[test]
    fn looking_leaves_raw_input() {
        let (master, slave, modes) = pair(false, b"a\x04\x16b");
        let queue = look(&master, &slave, &modes, true).unwrap();
        assert_eq!(queue.input, b"a\x04\x16b");
        assert_eq!(read(&slave).unwrap().unwrap(), b"a\x04\x16b");
        assert_eq!(read(&master).unwrap().unwrap(), b"\0out\r\n");
    }

    #[test]
    fn a_stopped_terminal_is_refused() {
        let (master, slave, modes) = pair(true, b"\x13");
        assert!(!events(&slave).contains(PollFlags::POLLOUT));
        assert!(look(&master, &slave, &modes, false).unwrap_err().0.contains("stopped"));
    }
}
