//! What brings up an instance that was asked for ahead: that a descriptor of who asked can be
//! read, such as a socket at which somebody comes. The thread that has the instance waits for
//! that by itself, and nobody stands in between.

use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::target::HeldDescriptor;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use std::os::fd::OwnedFd;
use std::sync::Arc;

const COMES: u64 = 0;
const IS_OFF: u64 = 1;

#[derive(Debug)]
pub struct Occasion {
    epoll: Epoll,
    off: Off,
    /// Descriptors of who asked, who may have others under these numbers when it comes.
    kept: Vec<OwnedFd>,
}

/// Calls an occasion off.
#[derive(Clone, Debug)]
pub struct Off(Arc<EventFd>);

impl Off {
    pub fn call(&self) {
        // Full, it has been called already.
        let _ = self.0.write(1);
    }

    pub fn is_of(&self, occasion: &Occasion) -> bool {
        Arc::ptr_eq(&self.0, &occasion.off.0)
    }
}

fn take(fd: HeldDescriptor) -> Result<OwnedFd> {
    fd.open()
        .or_fail(|| format!("cannot take descriptor {} of who asks", fd.fd))
}

impl Occasion {
    /// It comes once one of these can be read, and is off once that can.
    pub fn new(when: &[HeldDescriptor], unless: Option<HeldDescriptor>) -> Result<Occasion> {
        let failed = || "cannot wait for descriptors of who asks";
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        let off = EventFd::from_value_and_flags(0, flags).or_fail(failed)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).or_fail(failed)?;
        let readable = |number| EpollEvent::new(EpollFlags::EPOLLIN, number);
        epoll.add(&off, readable(IS_OFF)).or_fail(failed)?;
        let mut occasion = Occasion {
            epoll,
            off: Off(Arc::new(off)),
            kept: Vec::new(),
        };
        let all = when.iter().map(|fd| (*fd, COMES));
        for (fd, number) in all.chain(unless.map(|fd| (fd, IS_OFF))) {
            let own = take(fd)?;
            occasion.epoll.add(&own, readable(number)).map_err(|errno| {
                Error::new(Kind::Usage, failed())
                    .because(errno)
                    .fix("sockets, pipes and eventfds can be waited for")
            })?;
            occasion.kept.push(own);
        }
        Ok(occasion)
    }

    /// The same descriptor, whatever becomes of the one that was named.
    pub fn keep(&mut self, fd: &mut HeldDescriptor) -> Result<()> {
        let own = take(*fd)?;
        *fd = HeldDescriptor::own(&own);
        self.kept.push(own);
        Ok(())
    }

    pub fn off(&self) -> Off {
        self.off.clone()
    }

    /// Waits until it comes, or is off; answers whether it came. Where both are so, it is off.
    pub fn comes(&self) -> bool {
        let mut events = [EpollEvent::empty(); 8];
        loop {
            match self.epoll.wait(&mut events, EpollTimeout::NONE) {
                Ok(0) | Err(nix::Error::EINTR) => {}
                Ok(heard) => return events[..heard].iter().all(|event| event.data() == COMES),
                Err(_) => return false,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn it_comes_or_is_off() {
        let (end, mut other) = std::io::pipe().unwrap();
        let (unless, mut never) = std::io::pipe().unwrap();
        let new = || Occasion::new(&[HeldDescriptor::own(&end)], Some(HeldDescriptor::own(&unless))).unwrap();
        let off = new();
        off.off().call();
        assert!(!off.comes());
        assert!(off.off().is_of(&off) && !off.off().is_of(&new()));
        let comes = new();
        other.write_all(b"x").unwrap();
        assert!(comes.comes());
        never.write_all(b"x").unwrap();
        assert!(!comes.comes(), "both");
    }

    #[test]
    fn a_file_is_no_occasion() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let error = Occasion::new(&[HeldDescriptor::own(&file)], None).unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
    }
}
