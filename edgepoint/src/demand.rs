//! What an app is asked for: connections to where it listens, and requests that others
//! have for it. Whoever decides over its instances reads it here, and nowhere else.

use crate::proxy::traffic::Traffic;
use libsnap::sys::diag;
use nodekit::reply::on_own_thread;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Of one app; its agent, the node and who brings it requests have the same one.
#[derive(Debug, Default)]
pub struct Demand {
    /// Where it listens.
    places: Mutex<Vec<Place>>,
    /// Connections, open or waiting to be accepted, when they were counted last.
    connections: AtomicUsize,
    /// What the HTTP entry has for it.
    pub traffic: Traffic,
    /// When somebody needed it last.
    needed_unix_ms: AtomicU64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Tcp(SocketAddr),
    /// As the kernel has it.
    Unix(Vec<u8>),
}

impl Demand {
    pub fn new(traffic: Traffic) -> Demand {
        Demand {
            traffic,
            ..Demand::default()
        }
    }

    /// It listens at these from now on.
    pub fn listens(&self, sockets: &[OwnedFd], looks: &Looks) {
        let places: Vec<Place> = sockets.iter().filter_map(Place::of).collect();
        let kinds = places.iter().fold(0, |kinds, place| kinds | place.kind());
        looks.kinds.fetch_or(kinds, Ordering::Relaxed);
        *self.places.lock().unwrap_or_else(PoisonError::into_inner) = places;
    }

    /// Counts its connections. Answers what it has to carry.
    pub fn count(&self, open: &Open) -> usize {
        let places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let connections = places.iter().map(|place| open.at(place)).sum();
        self.connections.store(connections, Ordering::Relaxed);
        self.load()
    }

    /// What it has to carry as far as that is known: a request that the entry has sent on
    /// is a connection, too. Connections that it only keeps, or has for quiet requests, are
    /// nobody's need.
    pub fn load(&self) -> usize {
        self.connections()
            .saturating_sub(self.traffic.unneeded())
            .max(self.traffic.wanted())
    }

    /// Connections to it when they were counted last, needed or not.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Somebody needs it.
    pub fn needed(&self) {
        let now = libsnap::store::now_unix_ms().unwrap_or_default();
        self.needed_unix_ms.store(now, Ordering::Relaxed);
    }

    pub fn needed_unix_ms(&self) -> u64 {
        self.needed_unix_ms.load(Ordering::Relaxed)
    }
}

/// What has to be looked at.
const V4: u8 = 1;
const V6: u8 = 2;
const UNIX: u8 = 4;

impl Place {
    fn kind(&self) -> u8 {
        match self {
            Place::Tcp(SocketAddr::V4(_)) => V4,
            Place::Tcp(SocketAddr::V6(_)) => V6,
            Place::Unix(_) => UNIX,
        }
    }

    /// Where a socket is bound.
    fn of(socket: &OwnedFd) -> Option<Place> {
        let name = diag::address(socket, false).ok()?;
        match i32::from(u16::from_le_bytes(name.get(..2)?.try_into().ok()?)) {
            libc::AF_UNIX => Some(Place::Unix(name[2..].to_vec())),
            _ => Some(Place::Tcp(libsnap::files::inet::show_address(&name)?.parse().ok()?)),
        }
    }
}

/// The connections of this network namespace at one moment.
#[derive(Debug, Default)]
pub struct Open {
    /// Their own ends, by port.
    tcp: HashMap<u16, Vec<IpAddr>>,
    /// How many, by where they are bound.
    unix: HashMap<Vec<u8>, usize>,
}

impl Open {
    /// None are there where the kernel does not tell.
    fn look(kinds: u8) -> Open {
        let mut open = Open::default();
        if let Err(errno) = open.fill(kinds) {
            tracing::warn!(%errno, "cannot count connections: `appshot doctor` tells what is missing");
        }
        open
    }

    fn fill(&mut self, kinds: u8) -> nix::Result<()> {
        const LISTEN: u8 = 10;
        for (kind, family) in [(V4, libc::AF_INET), (V6, libc::AF_INET6)] {
            if kinds & kind == 0 {
                continue;
            }
            for connection in diag::tcp_connections(family)? {
                let ends = self.tcp.entry(connection.local.port()).or_default();
                ends.push(connection.local.ip());
            }
        }
        if kinds & UNIX == 0 {
            return Ok(());
        }
        for socket in diag::unix_sockets()?.into_values() {
            // One that nobody has accepted shows in the queue of where it waits.
            let count = if socket.state == LISTEN {
                socket.queue.0 as usize
            } else {
                1
            };
            if !socket.name.is_empty() {
                *self.unix.entry(socket.name).or_default() += count;
            }
        }
        Ok(())
    }

    fn at(&self, place: &Place) -> usize {
        match place {
            Place::Tcp(own) => {
                let (ip, ends) = (own.ip().to_canonical(), self.tcp.get(&own.port()));
                let ends = ends.into_iter().flatten();
                ends.filter(|end| ip.is_unspecified() || **end == ip).count()
            }
            Place::Unix(name) => self.unix.get(name).copied().unwrap_or(0),
        }
    }
}

/// One look at all connections serves everybody who asks within this.
const FRESH: Duration = Duration::from_millis(40);

/// Looks at connections, of the kinds that apps listen for.
#[derive(Debug, Default)]
pub struct Looks {
    kinds: AtomicU8,
    last: Mutex<Option<(Instant, Arc<Open>)>>,
}

impl Looks {
    fn fresh(&self) -> Option<Arc<Open>> {
        let (at, open) = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()?;
        (at.elapsed() < FRESH).then_some(open)
    }

    fn keep(&self, open: Open) -> Arc<Open> {
        let open = Arc::new(open);
        let last = (Instant::now(), Arc::clone(&open));
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(last);
        open
    }

    /// What is open now. Others go on meanwhile.
    pub async fn look(&self) -> Arc<Open> {
        if let Some(open) = self.fresh() {
            return open;
        }
        let kinds = self.kinds.load(Ordering::Relaxed);
        let open = on_own_thread(move || Ok(Open::look(kinds))).await;
        self.keep(open.unwrap_or_default())
    }

    /// The same for who cannot wait. Takes some milliseconds at most.
    pub fn look_now(&self) -> Arc<Open> {
        let kinds = self.kinds.load(Ordering::Relaxed);
        self.fresh().unwrap_or_else(|| self.keep(Open::look(kinds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn connections_of_both_kinds_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(dir.path().join("socket")).unwrap();
        let tcp = TcpListener::bind("[::]:0").unwrap();
        let port = tcp.local_addr().unwrap().port();
        let demand = Demand::default();
        let (sockets, looks) = (
            [unix.try_clone().unwrap().into(), tcp.try_clone().unwrap().into()],
            Looks::default(),
        );
        demand.listens(&sockets, &looks);
        let count = || demand.count(&Open::look(looks.kinds.load(Ordering::Relaxed)));
        assert_eq!(count(), 0);
        let first = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let second = UnixStream::connect(dir.path().join("socket")).unwrap();
        assert_eq!(count(), 2, "who waits counts");
        let accepted = (tcp.accept().unwrap(), unix.accept().unwrap());
        assert_eq!(count(), 2, "and who was accepted");
        demand.traffic.kept.set(1);
        assert_eq!(demand.load(), 1, "one is only kept");
        demand.traffic.in_flight.set(5);
        assert_eq!(demand.load(), 5);
        drop((accepted, first, second));
        demand.traffic.kept.set(0);
        demand.traffic.in_flight.set(0);
        assert_eq!(count(), 0);
    }
}
