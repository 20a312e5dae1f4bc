//! What an appshot says waits in a terminal, put into a real one and looked at:
//! it ends, and what was seen goes in again unchanged. Needs root (TIOCSTI).
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsnap::files::pty_queue::{Modes, Queue, feed, look};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use std::os::fd::OwnedFd;

fn pair() -> Option<(OwnedFd, OwnedFd)> {
    let pair = nix::pty::openpty(None, None).ok()?;
    for side in [&pair.master, &pair.slave] {
        fcntl(side, FcntlArg::F_SETFL(OFlag::O_RDWR | OFlag::O_NONBLOCK)).ok()?;
    }
    Some((pair.master, pair.slave))
}

/// In a fresh terminal with these modes.
fn through(modes: Option<Modes>, canonical: bool, queue: &Queue) -> Option<(Modes, Queue)> {
    let (master, slave) = pair()?;
    let mut modes = modes.or_else(|| Modes::get(&slave).ok())?;
    let local = modes.local() & !nix::libc::ECHO & !nix::libc::ICANON;
    let local = local | if canonical { nix::libc::ICANON } else { 0 };
    modes.0[12..16].copy_from_slice(&local.to_ne_bytes());
    feed(&slave, &modes, queue).ok()?;
    Some((modes, look(&master, &slave, &modes, false).ok()?))
}

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else { return };
    let canonical = first & 1 == 1;
    let (input, output) = rest.split_at(rest.len().min(usize::from(first >> 1) * 8));
    let queue = Queue {
        input: input.to_vec(),
        output: output.to_vec(),
    };
    if let Some((modes, seen)) = through(None, canonical, &queue) {
        let (_, again) = through(Some(modes), canonical, &seen).expect("what was seen fits");
        assert_eq!(seen.input, again.input);
        // Only what is printed is processed on its way out.
        if let Some((_, third)) = through(Some(modes), canonical, &again) {
            assert_eq!(again.input, third.input);
        }
    }
});
