//! Tells that somebody has come to one of several listening sockets: once, until it is
//! armed again. A running app accepts by itself; of the thousand connections that it gets
//! in a second we hear of one.

use libsnap::error::{OrFail, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

#[derive(Debug)]
pub struct Bell {
    epoll: AsyncFd<Epolled>,
}

#[derive(Debug)]
struct Epolled(Epoll);

impl AsRawFd for Epolled {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// A descriptor that tasks can wait for.
#[expect(
    deprecated,
    reason = "sound with a type that owns its descriptor, and the successor is unsafe to call"
)]
pub fn readable<T: AsRawFd>(fd: T) -> std::io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, Interest::READABLE)
}

const ONCE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLONESHOT);

impl Bell {
    /// Not armed.
    pub fn new(sockets: &[OwnedFd]) -> Result<Bell> {
        let failed = || "cannot watch the sockets of the app";
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).or_fail(failed)?;
        for (number, socket) in (0..).zip(sockets) {
            let silent = EpollEvent::new(EpollFlags::EPOLLONESHOT, number);
            epoll.add(socket, silent).or_fail(failed)?;
        }
        let epoll = readable(Epolled(epoll)).or_fail(failed)?;
        Ok(Bell { epoll })
    }

    /// It rings at once where somebody waits already.
    pub fn arm(&self, sockets: &[OwnedFd]) -> Result<()> {
        self.set(sockets, ONCE)
    }

    fn set(&self, sockets: &[OwnedFd], flags: EpollFlags) -> Result<()> {
        for (number, socket) in (0..).zip(sockets) {
            let mut event = EpollEvent::new(flags, number);
            let set = self.epoll.get_ref().0.modify(socket, &mut event);
            set.or_fail(|| "cannot watch the sockets of the app")?;
        }
        Ok(())
    }

    /// It does not ring any more.
    pub fn disarm(&self, sockets: &[OwnedFd]) -> Result<()> {
        self.set(sockets, EpollFlags::EPOLLONESHOT)
    }

    /// Waits until it rings.
    pub async fn rung(&self) -> Result<()> {
        let failed = || "cannot wait for the sockets of the app";
        loop {
            let mut ready = self.epoll.readable().await.or_fail(failed)?;
            let mut events = [EpollEvent::empty(); 8];
            let heard = self
                .epoll
                .get_ref()
                .0
                .wait(&mut events, EpollTimeout::ZERO)
                .or_fail(failed)?;
            if heard > 0 {
                return Ok(());
            }
            ready.clear_ready();
        }
    }
}
