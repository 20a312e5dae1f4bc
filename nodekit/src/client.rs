//! Asks a daemon over its Unix socket, or elsewhere over TLS ([`remote`](crate::remote)),
//! blocking or within a runtime.

use crate::remote::Remote;
use crate::traces::{Place, SpanKind};
use http_body_util::{BodyExt, Full, Limited};
pub use hyper::Method;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioIo};
use libsnap::error::{Error, Kind, OrFail, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::UnixStream;

const ANSWER_BYTES_MAX: usize = 64 << 20;

/// A daemon.
#[derive(Clone, Debug)]
pub struct Client {
    at: At,
}

#[derive(Clone, Debug)]
enum At {
    Socket(PathBuf, Box<Kept>),
    Elsewhere(Arc<Remote>),
}

/// One header of a request.
pub type Header<'a> = (&'static str, &'a str);

impl Client {
    pub fn new(socket: PathBuf) -> Client {
        let kept = kept(socket.clone());
        Client {
            at: At::Socket(socket, Box::new(kept)),
        }
    }

    pub fn elsewhere(remote: Remote) -> Client {
        let at = At::Elsewhere(Arc::new(remote));
        Client { at }
    }

    /// Whether a daemon listens there.
    pub fn answers(&self) -> bool {
        self.get::<serde_json::Value>("/v1/healthz").is_ok()
    }

    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::GET, path, Bytes::new())
    }

    /// What is no JSON.
    pub fn text(&self, path: &str) -> Result<String> {
        let (status, answer) = self.exchange(request(Method::GET, path, Bytes::new())?)?;
        match status.is_success() {
            true => String::from_utf8(answer.into()).or_fail(|| format!("cannot understand the answer for {path}")),
            false => understand(status, &answer),
        }
    }

    pub fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.ask(Method::DELETE, path, Bytes::new())
    }

    pub fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.ask(Method::POST, path, json(body)?)
    }

    pub fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T> {
        self.ask(Method::PUT, path, json(body)?)
    }

    /// What is no JSON is sent.
    pub fn put_bytes<T: DeserializeOwned>(&self, path: &str, body: Vec<u8>) -> Result<T> {
        let mut request = request(Method::PUT, path, Bytes::from(body))?;
        let kind = hyper::header::HeaderValue::from_static("application/octet-stream");
        request.headers_mut().insert("content-type", kind);
        let (status, answer) = self.exchange(request)?;
        understand(status, &answer)
    }

    /// [`Client::post`] by a task, over a connection that is kept for the next one. Spans of
    /// the daemon that is asked belong there.
    pub async fn post_async<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize, place: &Place) -> Result<T> {
        let mut request = request(Method::POST, path, json(body)?)?;
        let mut span = place.begin(SpanKind::Client, format_args!("POST {path}"));
        span.place().put(request.headers_mut());
        let answered = match &self.at {
            At::Socket(socket, kept) => over(kept, socket, request).await,
            At::Elsewhere(remote) => remote.exchange(request).await,
        };
        let answer = answered.and_then(|(status, answer)| understand(status, &answer));
        span.outcome(&answer);
        answer
    }

    /// The same by who may wait.
    pub fn post_below<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize, place: &Place) -> Result<T> {
        block_on(self.post_async(path, body, place))?
    }

    fn ask<T: DeserializeOwned>(&self, method: Method, path: &str, body: Bytes) -> Result<T> {
        let (status, answer) = self.exchange(request(method, path, body)?)?;
        understand(status, &answer)
    }

    /// Any of these, with further headers; the status of the answer, too.
    pub fn ask_with<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: &[Header<'_>],
        body: &impl Serialize,
    ) -> Result<(StatusCode, T)> {
        let mut request = request(method, path, json(body)?)?;
        for (name, value) in headers {
            let value = value
                .parse()
                .or_fail(|| format!("cannot ask with the {name} {value}"))?;
            request.headers_mut().insert(*name, value);
        }
        let (status, answer) = self.exchange(request)?;
        Ok((status, understand(status, &answer)?))
    }

    fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
        block_on(self.at.exchange(request))?
    }
}

/// In a runtime of its own.
pub(crate) fn block_on<F: Future>(work: F) -> Result<F::Output> {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().or_fail(|| "cannot start the client")?;
    Ok(runtime.block_on(work))
}

impl At {
    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
        match self {
            At::Socket(socket, _) => exchange(socket, request).await,
            At::Elsewhere(remote) => remote.exchange(request).await,
        }
    }
}

fn json(body: &impl Serialize) -> Result<Bytes> {
    let body = serde_json::to_vec(body).or_fail(|| "cannot write the request")?;
    Ok(Bytes::from(body))
}

fn request(method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(body))
        .or_fail(|| format!("cannot ask for {path}"))
}

fn out_of_reach(socket: &Path) -> String {
    format!("cannot reach the daemon at {}", socket.display())
}

fn unavailable(socket: &Path, because: impl std::fmt::Display) -> Error {
    Error::new(Kind::Unavailable, out_of_reach(socket))
        .because(because)
        .fix("start the daemon, or name its socket")
}

async fn exchange(socket: &Path, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await.map_err(|e| unavailable(socket, e))?;
    converse(stream, request).await.map_err(|error| match error.because {
        Some(because) => Error::failed(out_of_reach(socket)).because(because),
        None => error,
    })
}

/// Connections to a daemon that wait for the next request: it need not be woken twice for one,
/// to accept it and to hear it. They are of the runtime that has made them.
type Kept = legacy::Client<Here, Full<Bytes>>;

/// As many as are ever wanted at once, nearly.
const KEPT_MAX: usize = 4;

fn kept(socket: PathBuf) -> Kept {
    legacy::Client::builder(TokioExecutor::new())
        .pool_idle_timeout(None)
        .pool_max_idle_per_host(KEPT_MAX)
        .build(Here(socket))
}

/// Connects to this socket, whatever is asked for.
#[derive(Clone, Debug)]
struct Here(PathBuf);

impl tower_service::Service<Uri> for Here {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<UnixStream>>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connected = UnixStream::connect(self.0.clone());
        Box::pin(async { connected.await.map(TokioIo::new) })
    }
}

/// One that was closed meanwhile, before it got anything of the request, is replaced.
async fn over(kept: &Kept, socket: &Path, mut request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)> {
    let what = || out_of_reach(socket);
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = format!("http://localhost{path}").parse().or_fail(what)?;
    let response = kept.request(request).await.map_err(|error| {
        let because = innermost(&error);
        match error.is_connect() {
            true => unavailable(socket, because),
            false => Error::failed(what()).because(because),
        }
    })?;
    let (status, body) = (response.status(), response.into_body());
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    Ok((status, body.or_fail(what)?.to_bytes()))
}

/// What has led to it at first.
fn innermost(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.last().map_or_else(String::new, ToString::to_string)
}

/// One request and its answer over a connection that is closed when this returns.
pub async fn converse<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes)>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let failed = || "no answer";
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .or_fail(failed)?;
    // Ends with the exchange; its error, if any, is the sender's too.
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.or_fail(failed)?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX);
    let body = body.collect().await.or_fail(|| "no whole answer")?;
    drop(sender);
    let _ = connection.await;
    Ok((status, body.to_bytes()))
}

/// A failure comes back as the error that the daemon met.
fn understand<T: DeserializeOwned>(status: StatusCode, answer: &[u8]) -> Result<T> {
    let what = || format!("cannot understand the daemon's answer ({status})");
    match status.is_success() {
        true => serde_json::from_slice(answer).or_fail(what),
        false => Err(serde_json::from_slice::<Error>(answer).or_fail(what)?),
    }
}
