//! Connections to an app's listening socket, and those that are kept for the next request.
//!
//! An open connection keeps an app awake, so one that nobody uses is closed soon, long
//! before the app would be put to sleep: none lives through a sleep. One that is used all the
//! time is closed after a while, too: it leads to one instance for ever, and who accepts the
//! next one may be another. So an instance that is to end comes to its end. When there are
//! more instances, or fewer, all are made anew at once.

use super::body::Sent;
use super::rules::Protocol;
use super::traffic::One;
use super::workers;
use crate::manifest::Listen;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prometheus_client::metrics::gauge::Gauge;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Requests over one connection of HTTP/2 at a time; more make another one.
const STREAMS_MAX: usize = 100;
/// No connection serves for longer, but for the request that it has.
const LIFE: Duration = Duration::from_secs(10);
/// A connection that is not free so soon after an answer is not kept.
const FREE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
enum Place {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// One listening socket of an app, as requests get there.
#[derive(Debug)]
pub struct Upstream {
    place: Place,
    protocol: Protocol,
    /// How long a connection is kept.
    idle: Duration,
    /// Requests over one connection at a time.
    streams: usize,
    /// Connections of an earlier one are not kept.
    age: AtomicU64,
    count: Gauge,
    /// By the thread that serves with them.
    kept: Vec<Mutex<Kept>>,
    /// One at a time makes a connection that many use.
    making: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Kept {
    /// Unused for the longest time first.
    free: VecDeque<Free>,
    shared: Vec<Arc<Shared>>,
    /// Connections of this thread that each serve a request, or are about to.
    leased: usize,
    /// Somebody closes them in time.
    watched: bool,
}

/// When a connection was made.
#[derive(Clone, Copy, Debug)]
struct Made {
    at: Instant,
    age: u64,
    /// The thread that sees to it.
    thread: usize,
}

#[derive(Debug)]
struct Free {
    sender: http1::SendRequest<Sent>,
    made: Made,
    since: Instant,
    _counts: One,
}

#[derive(Debug)]
struct Shared {
    sender: http2::SendRequest<Sent>,
    made: Made,
    streams: AtomicUsize,
    since: Mutex<Instant>,
}

/// A connection for one request. Dropped, it is kept for another, or closed where it did
/// not come to its end.
#[derive(Debug)]
pub struct Lease {
    home: Arc<Upstream>,
    /// It has served before.
    pub used: bool,
    keep: bool,
    made: Made,
    sender: Option<Sender>,
}

#[derive(Debug)]
enum Sender {
    Own(http1::SendRequest<Sent>),
    Shared(Arc<Shared>),
}

/// Why there is no answer.
#[derive(Debug)]
pub struct Unanswered {
    pub error: hyper::Error,
    /// The request, where nothing of it was sent.
    pub unsent: Option<Request<Sent>>,
}

impl Upstream {
    /// `requests` of one connection at a time, where that matters; `count` is of those that
    /// are kept.
    pub fn new(
        listen: &Listen,
        protocol: Protocol,
        idle: Duration,
        requests: Option<u32>,
        count: Gauge,
    ) -> Arc<Upstream> {
        let place = match (&listen.tcp, &listen.unix) {
            (Some(tcp), _) => Place::Tcp(SocketAddr::new(near(tcp.ip()), tcp.port())),
            (None, unix) => Place::Unix(unix.clone().unwrap_or_default()),
        };
        let streams = requests.and_then(|requests| usize::try_from(requests).ok());
        Arc::new(Upstream {
            place,
            protocol,
            idle,
            streams: streams.unwrap_or(STREAMS_MAX).clamp(1, STREAMS_MAX),
            age: AtomicU64::new(0),
            count,
            kept: (0..workers::count()).map(|_| Mutex::default()).collect(),
            making: tokio::sync::Mutex::default(),
        })
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Those of this thread.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        locked(&self.kept[workers::here()])
    }

    /// One that is kept, or else a new one, which is kept afterwards.
    pub async fn lease(self: &Arc<Upstream>, fresh: bool) -> io::Result<Lease> {
        match self.protocol {
            Protocol::Http1 => {
                if !fresh && let Some(free) = self.free() {
                    return Ok(self.leased(true, true, free.made, Sender::Own(free.sender)));
                }
                let made = self.now();
                Ok(self.leased(false, true, made, Sender::Own(self.dial_one().await?)))
            }
            Protocol::H2c => {
                let _making = self.making.lock().await;
                if !fresh && let Some(shared) = self.shared() {
                    return Ok(self.leased(true, true, shared.made, Sender::Shared(shared)));
                }
                let shared = self.dial_shared().await?;
                self.lock().shared.push(shared.clone());
                Ok(self.leased(false, true, shared.made, Sender::Shared(shared)))
            }
        }
    }

    fn leased(self: &Arc<Upstream>, used: bool, keep: bool, made: Made, sender: Sender) -> Lease {
        locked(&self.kept[made.thread]).leased += 1;
        Lease {
            home: self.clone(),
            used,
            keep,
            made,
            sender: Some(sender),
        }
    }

    /// A new one that is closed after one request.
    pub async fn lease_once(self: &Arc<Upstream>) -> io::Result<Lease> {
        let sender = match self.protocol {
            Protocol::Http1 => Sender::Own(self.dial_one().await?),
            Protocol::H2c => Sender::Shared(self.dial_shared().await?),
        };
        Ok(self.leased(false, false, self.now(), sender))
    }

    /// One of this thread. Where it has none at all, one of another before a new one is made:
    /// there are apps that serve one connection at a time.
    fn free(&self) -> Option<Free> {
        let (own, count) = (workers::here(), self.kept.len());
        let of = |kept: &mut Kept| {
            while let Some(free) = kept.free.pop_back() {
                if free.sender.is_ready() && self.serves_on(free.made) {
                    return Some(free);
                }
            }
            None
        };
        let mut kept = self.lock();
        match of(&mut kept) {
            None if kept.leased == 0 => {
                drop(kept);
                (own + 1..own + count).find_map(|thread| of(&mut locked(&self.kept[thread % count])))
            }
            found => found,
        }
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        let mut kept = self.lock();
        kept.shared.retain(|shared| !shared.sender.is_closed());
        let room = |shared: &&Arc<Shared>| {
            shared.streams.load(Ordering::Relaxed) < self.streams && self.serves_on(shared.made)
        };
        let shared = kept.shared.iter().find(room)?;
        shared.streams.fetch_add(1, Ordering::Relaxed);
        Some(shared.clone())
    }

    async fn dial_one(&self) -> io::Result<http1::SendRequest<Sent>> {
        match &self.place {
            Place::Tcp(address) => speak_one(tcp(address).await?).await,
            Place::Unix(path) => speak_one(UnixStream::connect(path).await?).await,
        }
    }

    /// For one request so far.
    async fn dial_shared(&self) -> io::Result<Arc<Shared>> {
        let made = self.now();
        let sender = match &self.place {
            Place::Tcp(address) => speak_shared(tcp(address).await?).await?,
            Place::Unix(path) => speak_shared(UnixStream::connect(path).await?).await?,
        };
        Ok(Arc::new(Shared {
            sender,
            made,
            streams: AtomicUsize::new(1),
            since: Mutex::new(Instant::now()),
        }))
    }

    fn keep(self: &Arc<Upstream>, sender: http1::SendRequest<Sent>, made: Made) {
        let since = Instant::now();
        locked(&self.kept[made.thread]).free.push_back(Free {
            sender,
            made,
            since,
            _counts: One::more(&self.count),
        });
        self.watch(made.thread);
    }

    /// Sees to it that what is kept for this thread is closed.
    fn watch(self: &Arc<Upstream>, thread: usize) {
        if std::mem::replace(&mut locked(&self.kept[thread]).watched, true) {
            return;
        }
        let (upstream, idle) = (Arc::downgrade(self), self.idle);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(idle / 4).await;
                let Some(upstream) = upstream.upgrade() else { return };
                if upstream.close(thread, idle) {
                    return;
                }
            }
        });
    }

    /// Closes what nobody has used for so long; answers whether nothing is left.
    fn close(&self, thread: usize, unused: Duration) -> bool {
        let mut kept = locked(&self.kept[thread]);
        kept.free
            .retain(|free| free.since.elapsed() < unused && self.serves_on(free.made));
        kept.shared.retain(|shared| {
            let since = *shared.since.lock().unwrap_or_else(PoisonError::into_inner);
            let used = shared.streams.load(Ordering::Relaxed) > 0 || since.elapsed() < unused;
            used && !shared.sender.is_closed()
        });
        kept.watched = !(kept.free.is_empty() && kept.shared.is_empty());
        !kept.watched
    }

    fn now(&self) -> Made {
        Made {
            at: Instant::now(),
            age: self.age.load(Ordering::Relaxed),
            thread: workers::here(),
        }
    }

    fn serves_on(&self, made: Made) -> bool {
        made.age == self.age.load(Ordering::Relaxed) && made.at.elapsed() < LIFE
    }

    /// Closes all that nobody uses, and others as soon as nobody does.
    pub fn release(&self) {
        self.age.fetch_add(1, Ordering::Relaxed);
        for mut kept in self.kept.iter().map(locked) {
            kept.free.clear();
            kept.shared.retain(|shared| shared.streams.load(Ordering::Relaxed) > 0);
        }
    }
}

fn locked(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where who listens on every address is reached.
fn near(listens: IpAddr) -> IpAddr {
    match listens {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

async fn tcp(address: &SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn speak_one<S>(stream: S) -> io::Result<http1::SendRequest<Sent>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Whatever ends it is told to who has sent a request.
    tokio::spawn(connection.with_upgrades());
    Ok(sender)
}

async fn speak_shared<S>(stream: S) -> io::Result<http2::SendRequest<Sent>>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let made = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (sender, connection) = made.map_err(io::Error::other)?;
    tokio::spawn(connection);
    Ok(sender)
}

impl Lease {
    /// Sends a request, and waits for the head of its answer.
    pub async fn send(&mut self, request: Request<Sent>) -> Result<Response<Incoming>, Box<Unanswered>> {
        let sent = match &mut self.sender {
            Some(Sender::Own(sender)) => sender.try_send_request(request).await,
            Some(Sender::Shared(shared)) => shared.sender.clone().try_send_request(request).await,
            None => unreachable!("it has its sender until it is dropped"),
        };
        sent.map_err(|mut failed| {
            let unsent = failed.take_message();
            Box::new(Unanswered {
                error: failed.into_error(),
                unsent,
            })
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let home = self.home.clone();
        locked(&home.kept[self.made.thread]).leased -= 1;
        match self.sender.take().filter(|_| self.keep) {
            Some(Sender::Own(mut sender)) => {
                let made = self.made;
                if sender.is_closed() || !home.serves_on(made) {
                    return;
                }
                if sender.is_ready() {
                    return home.keep(sender, made);
                }
                // The connection sees the end of the answer a moment later.
                tokio::spawn(async move {
                    if let Ok(Ok(())) = tokio::time::timeout(FREE, sender.ready()).await {
                        home.keep(sender, made);
                    }
                });
            }
            Some(Sender::Shared(shared)) => {
                *shared.since.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                shared.streams.fetch_sub(1, Ordering::Relaxed);
                home.watch(shared.made.thread);
            }
            None => {}
        }
    }
}
