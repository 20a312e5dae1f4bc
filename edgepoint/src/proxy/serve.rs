//! The HTTP entry: connections of clients, until the daemon stops.

use super::Proxy;
use super::body::Answer;
use super::forward::{Caller, InFlight};
use super::rules::Network;
use super::tls::Certificate;
pub use super::workers::Workers;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use libsnap::error::{OrFail, Result};
use nodekit::daemon::Stopping;
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// The head of a request has to come within this.
const HEAD: Duration = Duration::from_secs(10);
/// A connection without a request is closed after this.
const UNUSED: Duration = Duration::from_secs(60);
/// A client that takes nothing of an answer for so long gets no more of it.
const TAKES: Duration = Duration::from_secs(60);
/// One that has ended its side waits for its answer, or is gone: the network does not tell which
/// until something is sent. To whom nothing was for so long is taken to be gone.
const GONE: Duration = Duration::from_secs(5);
/// How often that is looked at, and whether what was sent came back.
const GONE_YET: Duration = Duration::from_millis(100);
/// Bytes of a head. Of fields it has 100 at most, for which hyper needs no memory of its own.
const HEAD_BYTES_MAX: u32 = 64 << 10;
/// Requests over one connection of HTTP/2 at a time.
const STREAMS_MAX: u32 = 256;
/// After a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(50);

/// How the entry is to be.
#[derive(Debug)]
pub struct Entry {
    /// Bound already; with a certificate they speak TLS.
    pub listeners: Vec<(Arc<StdListener>, Option<Arc<Certificate>>)>,
    /// Whose word counts about who asks.
    pub trust: Vec<Network>,
    /// Clients that are connected at once.
    pub clients: usize,
    /// What is in flight at the end may take so long.
    pub drain: Duration,
    pub workers: Workers,
}

/// The sockets of the entry are kept under this name while nobody serves; no app has it.
pub const KEPT: &str = ".http";

/// Listens on these addresses, with as long a backlog as the kernel allows: with a socket that
/// was kept where there is one, in which clients may wait.
pub fn bind(addresses: &[SocketAddr], kept: &[StdListener]) -> Result<Vec<Arc<StdListener>>> {
    let bind = |address: &SocketAddr| {
        let same = |listener: &&StdListener| listener.local_addr().is_ok_and(|local| local == *address);
        let listener = match kept.iter().find(same) {
            Some(listener) => listener.try_clone()?,
            None => StdListener::bind(address)?,
        };
        listener.set_nonblocking(true)?;
        crate::sockets::deepen(&listener)?;
        Ok::<_, io::Error>(Arc::new(listener))
    };
    addresses
        .iter()
        .map(|address| bind(address).or_fail(|| format!("cannot listen on {address}")))
        .collect()
}

struct Shared {
    proxy: Proxy,
    trust: Vec<Network>,
    server: auto::Builder<TokioExecutor>,
    room: Arc<Semaphore>,
}

/// Serves until it is told to stop, and what is in flight has ended or its time is up.
pub async fn serve(entry: Entry, proxy: Proxy, stopping: Stopping) {
    let shared = Arc::new(Shared {
        proxy,
        trust: entry.trust,
        server: server(),
        room: Arc::new(Semaphore::new(entry.clients)),
    });
    // They end with this; clients have no part in it.
    let workers = Arc::new(entry.workers);
    let graceful = Arc::new(GracefulShutdown::new());
    let mut accepting = JoinSet::new();
    for (listener, certificate) in entry.listeners {
        match ready_to_accept(&listener, certificate) {
            Ok((listener, tls)) => drop(accepting.spawn(accept(
                (listener, tls),
                shared.clone(),
                graceful.clone(),
                workers.clone(),
            ))),
            Err(error) => tracing::error!(%error, "nobody is let in there"),
        }
    }
    let mut stop = stopping;
    // The channel is closed where nobody can stop us any more.
    let _ = stop.wait_for(|stop| *stop).await;
    accepting.shutdown().await;
    let Ok(graceful) = Arc::try_unwrap(graceful) else {
        return;
    };
    let (open, all) = (graceful.count(), u32::try_from(entry.clients).unwrap_or(u32::MAX));
    let ended = async {
        graceful.shutdown().await;
        // Upgraded ones, too.
        drop(shared.room.acquire_many(all).await);
    };
    match tokio::time::timeout(entry.drain, ended).await {
        Ok(()) => tracing::info!(open, "all connections have ended"),
        Err(_) => tracing::warn!(open, drain = ?entry.drain, "connections are cut"),
    }
}

fn ready_to_accept(
    listener: &StdListener,
    certificate: Option<Arc<Certificate>>,
) -> Result<(TcpListener, Option<TlsAcceptor>)> {
    let tls = certificate
        .as_ref()
        .map(|shown| shown.acceptor(&[b"h2", b"http/1.1"]))
        .transpose()?;
    if let Some(certificate) = certificate {
        tokio::spawn(certificate.follow());
    }
    let listener = listener.try_clone().and_then(TcpListener::from_std);
    Ok((listener.or_fail(|| "cannot listen")?, tls))
}

fn server() -> auto::Builder<TokioExecutor> {
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        // `Client::gone` sees to that.
        .half_close(true)
        // `Line::slow` sees to that: it answers, and knows connections without a first byte.
        .header_read_timeout(None)
        .max_buf_size(HEAD_BYTES_MAX as usize);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_concurrent_streams(STREAMS_MAX)
        .keep_alive_interval(UNUSED)
        .keep_alive_timeout(HEAD);
    server
}

async fn accept(
    (listener, tls): (TcpListener, Option<TlsAcceptor>),
    shared: Arc<Shared>,
    graceful: Arc<GracefulShutdown>,
    workers: Arc<Workers>,
) {
    loop {
        // Who has no room waits in the backlog.
        let Ok(room) = shared.room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, address)) => {
                let _ = stream.set_nodelay(true);
                let Ok(stream) = stream.into_std() else { continue };
                let (all, tls, watcher) = (shared.clone(), tls.clone(), graceful.watcher());
                workers.next().spawn(async move {
                    let Ok(stream) = TcpStream::from_std(stream) else {
                        return;
                    };
                    let client = Client {
                        line: Line::new(room),
                        stream: Arc::new(stream),
                        address,
                    };
                    match tls {
                        None => client.plain(all, watcher).await,
                        Some(tls) => client.secured(tls, all, watcher).await,
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One who has connected.
struct Client {
    line: Arc<Line>,
    stream: Arc<TcpStream>,
    address: SocketAddr,
}

impl Client {
    fn wire(&self) -> Wire {
        Wire {
            stream: self.stream.clone(),
            line: self.line.clone(),
        }
    }

    async fn plain(self, shared: Arc<Shared>, watcher: Watcher) {
        if self.serve(self.wire(), "http", shared, watcher).await == Some(Slow::Head) {
            // The connection is hyper's no more.
            let told = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
            let _ = self.stream.try_write(told);
        }
    }

    async fn secured(self, tls: TlsAcceptor, shared: Arc<Shared>, watcher: Watcher) {
        match tokio::time::timeout(HEAD, tls.accept(self.wire())).await {
            Ok(Ok(stream)) => {
                self.line.rests();
                self.serve(stream, "https", shared, watcher).await;
            }
            Ok(Err(error)) => tracing::debug!(client = %self.address, %error, "no TLS"),
            Err(_) => tracing::debug!(client = %self.address, "no TLS in time"),
        }
    }

    /// Comes back when nobody is there any more who waits for an answer.
    async fn gone(&self) {
        // What it sends is no such moment; the end of that is.
        let ended = self.stream.ready(Interest::PRIORITY).await;
        let since = Instant::now();
        while ended.is_ok() {
            let reset = !matches!(self.stream.take_error(), Ok(None));
            let waits = self.line.requests.load(Ordering::Relaxed) > 0;
            if reset || waits && since.max(self.line.sending().last).elapsed() > GONE {
                return;
            }
            tokio::time::sleep(GONE_YET).await;
        }
        std::future::pending().await
    }

    /// Until it ends, or the client lets us wait for too long.
    async fn serve<S>(&self, stream: S, scheme: &'static str, shared: Arc<Shared>, watcher: Watcher) -> Option<Slow>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let caller = Caller::new(self.address.ip(), scheme);
        let server = shared.server.clone();
        // Of this connection alone: what all have is counted on all processors.
        let own = Arc::new((shared, caller));
        let service = service_fn(|request: Request<Incoming>| {
            let (active, own) = (self.line.active(&request), own.clone());
            async move {
                let (shared, caller) = &*own;
                Ok::<Served, Infallible>(shared.proxy.answer(caller, &shared.trust, active, request).await)
            }
        });
        let served = server.serve_connection_with_upgrades(TokioIo::new(stream), service);
        tokio::select! {
            ended = watcher.watch(served) => {
                if let Err(error) = ended {
                    tracing::debug!(client = %self.address, error, "a connection has ended");
                }
                None
            }
            slow = self.line.slow() => Some(slow),
            () = self.gone() => Some(Slow::Gone),
        }
    }
}

type Served = Response<Answer<InFlight>>;

/// A client's connection, as far as it matters whether it is used.
#[derive(Debug)]
struct Line {
    requests: AtomicUsize,
    /// Something of a request came that is not there as a whole yet.
    begun: AtomicBool,
    /// It speaks HTTP/2, which sees to itself.
    framed: AtomicBool,
    since: Mutex<Instant>,
    sending: Mutex<Sending>,
    /// Also as long as an upgraded connection lives.
    _room: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct Sending {
    /// The client has taken nothing since then.
    stuck: Option<Instant>,
    /// When something was sent to it last.
    last: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Slow {
    Head,
    Unused,
    Stuck,
    Gone,
}

/// A request is being answered as long as this lives.
#[derive(Debug)]
pub struct Active(Arc<Line>);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.rests();
        self.0.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Line {
    fn new(room: OwnedSemaphorePermit) -> Arc<Line> {
        Arc::new(Line {
            _room: room,
            requests: AtomicUsize::new(0),
            begun: AtomicBool::new(false),
            framed: AtomicBool::new(false),
            since: Mutex::new(Instant::now()),
            sending: Mutex::new(Sending {
                stuck: None,
                last: Instant::now(),
            }),
        })
    }

    fn since(&self) -> MutexGuard<'_, Instant> {
        self.since.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn active(self: &Arc<Line>, request: &Request<Incoming>) -> Active {
        self.framed
            .store(request.version() == hyper::Version::HTTP_2, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        Active(self.clone())
    }

    /// Nothing is begun.
    fn rests(&self) {
        *self.since() = Instant::now();
        self.begun.store(false, Ordering::Relaxed);
    }

    fn heard(&self) {
        if self.requests.load(Ordering::Relaxed) == 0 && !self.begun.swap(true, Ordering::Relaxed) {
            *self.since() = Instant::now();
        }
    }

    fn sending(&self) -> MutexGuard<'_, Sending> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes back when the client has let us wait for too long.
    async fn slow(&self) -> Slow {
        loop {
            let begun = self.begun.load(Ordering::Relaxed) && !self.framed.load(Ordering::Relaxed);
            let (slow, limit) = match begun {
                true => (Slow::Head, HEAD),
                false => (Slow::Unused, UNUSED),
            };
            let waited = self.since().elapsed();
            if self.sending().stuck.is_some_and(|since| since.elapsed() > TAKES) {
                return Slow::Stuck;
            } else if self.requests.load(Ordering::Relaxed) > 0 {
                tokio::time::sleep(HEAD).await;
            } else if waited < limit {
                tokio::time::sleep((limit - waited).min(HEAD)).await;
            } else {
                return slow;
            }
        }
    }
}

/// The bytes of a client's connection.
#[derive(Debug)]
struct Wire {
    stream: Arc<TcpStream>,
    line: Arc<Line>,
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            match self.read_to_its_end(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => {
                    let count = read?;
                    buf.advance(count);
                    if count > 0 {
                        self.line.heard();
                    }
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl Wire {
    /// Reads what is there. Where that is less than there is room for, there is no more, and the
    /// kernel need not be asked to hear that: epoll(7), of edges.
    fn read_to_its_end(&self, room: &mut [u8]) -> io::Result<usize> {
        let (mut count, size) = (None, room.len());
        let read = self.stream.try_io(Interest::READABLE, || {
            let read = nix::unistd::read(&*self.stream, room)?;
            count = Some(read);
            match 0 < read && read < size {
                // As if it had been asked once more.
                true => Err(io::ErrorKind::WouldBlock.into()),
                false => Ok(()),
            }
        });
        count.map_or_else(|| read.map(|()| 0), Ok)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            let ready = self.stream.poll_write_ready(cx);
            if ready.is_pending() {
                self.line.sending().stuck.get_or_insert_with(Instant::now);
            }
            ready!(ready)?;
            match self.stream.try_write_vectored(bufs) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => {
                    *self.line.sending() = Sending {
                        stuck: None,
                        last: Instant::now(),
                    };
                    return Poll::Ready(written);
                }
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        use nix::sys::socket::{Shutdown, shutdown};
        use std::os::fd::AsRawFd;
        Poll::Ready(shutdown(self.stream.as_raw_fd(), Shutdown::Write).map_err(io::Error::from))
    }
}
