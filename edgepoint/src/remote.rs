//! The API for providers who are elsewhere: over TCP with TLS, and with a token.
//!
//! ```text
//!   client ── TLS ──> Authorization: Bearer appshot_... ──> whose? ──> the same routes
//!                            └── nobody's: 401, before anything of the request is read
//! ```

use crate::caller::Caller;
use crate::node::Node;
use crate::proxy::serve::bind;
use crate::proxy::tls::Certificate;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use hyper::body::{Frame, SizeHint};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use libsnap::error::{Error, Kind, OrFail, Result};
use nodekit::daemon::Stopping;
use nodekit::reply::Failure;
use rcgen::{CertificateParams, DnType, KeyPair};
use std::collections::HashMap;
use std::fs::OpenOptions;
use std::hash::Hash;
use std::io::Write;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// The handshake, and the head of a request, have to come within this.
const HEAD: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Connections at once; others wait in the backlog.
const CLIENTS: usize = 256;
/// Requests of one provider at once, those that wait among them: others are to have room.
const REQUESTS: usize = 64;
/// And of one address: nobody without a token takes all of them.
const OF_ADDRESS: usize = 32;
/// So many letters of a path are logged: who writes it may be anybody.
const PATH_LOGGED: usize = 200;
/// After a connection could not be accepted.
const PAUSE: Duration = Duration::from_millis(50);
/// What is under way at the end may take so long.
const DRAIN: Duration = Duration::from_secs(10);

/// Bound sockets, and what is shown there.
#[derive(Debug)]
pub struct Remote(Option<(Vec<Arc<StdListener>>, Arc<Certificate>)>);

impl Remote {
    /// Listens at these addresses, if any.
    pub fn new(addresses: &[SocketAddr], tls: Option<&Path>, data_dir: &Path) -> Result<Remote> {
        if addresses.is_empty() {
            return Ok(Remote(None));
        }
        let certificate = match tls {
            Some(path) => Certificate::read(path)?,
            None => Certificate::read(&own_certificate(data_dir, addresses)?)?,
        };
        let listeners = bind(addresses, &[])?;
        Ok(Remote(Some((listeners, certificate))))
    }

    /// Until the daemon is told to stop.
    pub async fn serve(self, router: Router, node: Node, mut stopping: Stopping) {
        let Some((listeners, certificate)) = self.0 else {
            return;
        };
        let gate = Gate {
            node,
            under_way: Counts::default(),
        };
        let router = router.layer(from_fn_with_state(gate, admit));
        let room = (Arc::new(Semaphore::new(CLIENTS)), Counts::default());
        let graceful = Arc::new(GracefulShutdown::new());
        let mut accepting = tokio::task::JoinSet::new();
        for listener in listeners {
            let ready = listener.try_clone().and_then(TcpListener::from_std);
            match (ready.or_fail(|| "cannot listen"), certificate.acceptor(&[b"http/1.1"])) {
                (Ok(listener), Ok(tls)) => {
                    let address = listener.local_addr().ok();
                    tracing::info!(
                        ?address,
                        certificate = certificate.fingerprint(),
                        "providers are answered"
                    );
                    let (router, room, graceful) = (router.clone(), room.clone(), graceful.clone());
                    accepting.spawn(accept(listener, tls, router, room, graceful));
                }
                (Err(error), _) | (_, Err(error)) => tracing::error!(%error, "no provider is let in there"),
            }
        }
        tokio::spawn(certificate.follow());
        let _ = stopping.wait_for(|stop| *stop).await;
        accepting.shutdown().await;
        if let Ok(graceful) = Arc::try_unwrap(graceful) {
            let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
        }
    }
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
    (room, addresses): (Arc<Semaphore>, Counts<IpAddr>),
    graceful: Arc<GracefulShutdown>,
) {
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(HEAD_BYTES_MAX);
    loop {
        let Ok(place) = room.clone().acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, client)) => {
                // Others are to have room; it is told by the end of its connection.
                let Some(one) = addresses.enter(client.ip().to_canonical(), OF_ADDRESS) else {
                    continue;
                };
                let (tls, server, watcher) = (tls.clone(), server.clone(), graceful.watcher());
                let router = router.clone().layer(Extension(From(client)));
                tokio::spawn(async move {
                    let _held = (place, one);
                    let Some(stream) = secure(&tls, stream).await else {
                        return;
                    };
                    let connection = server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
                    // Its client's matter.
                    let _ = watcher.watch(connection).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn secure(tls: &TlsAcceptor, stream: TcpStream) -> Option<tokio_rustls::server::TlsStream<TcpStream>> {
    let _ = stream.set_nodelay(true);
    tokio::time::timeout(HEAD, tls.accept(stream)).await.ok()?.ok()
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
struct From(SocketAddr);

/// Who is let in.
#[derive(Clone, Debug)]
struct Gate {
    node: Node,
    /// Requests of each provider.
    under_way: Counts<String>,
}

/// How many there are of each.
#[derive(Clone, Debug)]
struct Counts<K>(Arc<Mutex<HashMap<K, usize>>>);

impl<K> Default for Counts<K> {
    fn default() -> Counts<K> {
        Counts(Arc::default())
    }
}

/// One of them, as long as this lives.
#[derive(Debug)]
struct Counted<K: Eq + Hash> {
    counts: Counts<K>,
    of: K,
}

impl<K: Clone + Eq + Hash> Counts<K> {
    /// One more, unless there are so many.
    fn enter(&self, of: K, most: usize) -> Option<Counted<K>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry(of.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        let counts = Counts(self.0.clone());
        Some(Counted { counts, of })
    }
}

impl<K: Eq + Hash> Drop for Counted<K> {
    fn drop(&mut self) {
        let mut all = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.of);
            }
        }
    }
}

/// An answer, and what is to live until all of it is sent or nobody takes it any more.
struct Held<T> {
    body: Body,
    _until_sent: T,
}

impl<T: Unpin> hyper::body::Body for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Finds out who asks, or says no. One line of log a request.
async fn admit(
    State(gate): State<Gate>,
    Extension(From(client)): Extension<From>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, began) = (request.method().clone(), Instant::now());
    let path: String = request.uri().path().chars().take(PATH_LOGGED).collect();
    let token = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.split_once(' '));
    let token = token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    let provider = match token.map(|(_, token)| gate.node.control.admit(token.trim())) {
        Some(Ok(provider)) => provider,
        None => None,
        Some(Err(error)) => return Failure(error).into_response(),
    };
    let Some(provider) = provider else {
        tracing::warn!(%client, %method, path, "turned away: no good token");
        return nobody(token.is_some());
    };
    let name = provider.name.clone();
    let Some(under_way) = gate.under_way.enter(name.clone(), REQUESTS) else {
        let error = Error::new(
            Kind::Unavailable,
            format!("{REQUESTS} requests of {name} are under way"),
        );
        return Failure(error.fix("ask again when some of them are answered")).into_response();
    };
    request.extensions_mut().insert(Caller::Provider(provider));
    let response = next.run(request).await;
    let (micros, status) = (began.elapsed().as_micros(), response.status().as_u16());
    tracing::info!(provider = name, %client, %method, path, status, micros, "answered");
    response.map(|body| {
        let _until_sent = under_way;
        Body::new(Held { body, _until_sent })
    })
}

fn nobody(had_one: bool) -> Response {
    let error = Error::refused("you may not use this node").because(match had_one {
        true => "the token is not good, or not any more",
        false => "there is no token in the request",
    });
    let error = error.fix("Authorization: Bearer TOKEN, with one that the node's owner has given you");
    (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], Json(error)).into_response()
}

/// `api.pem`, made where there is none, and `api.crt`, the certificate alone, to be given away.
fn own_certificate(data_dir: &Path, addresses: &[SocketAddr]) -> Result<PathBuf> {
    let path = data_dir.join("api.pem");
    if path.exists() {
        return Ok(path);
    }
    let what = || format!("cannot make a certificate in {}", data_dir.display());
    let host = nix::unistd::gethostname().or_fail(what)?.to_string_lossy().into_owned();
    let mut names = vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned(), host];
    names.extend(addresses.iter().map(|address| address.ip().to_string()));
    names.sort();
    names.dedup();
    let failed = |error: rcgen::Error| Error::new(Kind::Failed, what()).because(error);
    let mut params = CertificateParams::new(names).map_err(failed)?;
    params.distinguished_name.push(DnType::CommonName, "edgepointd");
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?.pem();
    write(&data_dir.join("api.crt"), 0o644, &certificate).or_fail(what)?;
    write(&path, 0o600, &(certificate + &key.serialize_pem())).or_fail(what)?;
    Ok(path)
}

/// Whole or not at all.
fn write(path: &Path, mode: u32, text: &str) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_so_many_at_once() {
        let counts = Counts::default();
        let mut held: Vec<_> = (0..3).map(|_| counts.enter("a", 3).unwrap()).collect();
        assert!(counts.enter("a", 3).is_none());
        assert!(counts.enter("b", 3).is_some(), "of others there are none");
        held.pop();
        assert!(counts.enter("a", 3).is_some());
        held.clear();
        assert!(counts.0.lock().unwrap().is_empty());
    }
}
