//! The life of a daemon: arguments, log, socket, readiness, requests, graceful stop.

use crate::args::Dirs;
use crate::listen::{self, Listening};
use crate::notify::{self, notify};
use crate::peer::{Gate, Peer};
use crate::traces::{self, Place, SpanKind};
use crate::{log, peer, signals};
use axum::Router;
use axum::extract::{ConnectInfo, MatchedPath, Request};
use axum::http::Method;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use clap::Args;
use libsnap::error::{OrFail, Result};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::Instrument;

/// Arguments of every daemon.
#[derive(Args, Clone, Debug)]
pub struct DaemonArgs {
    #[command(flatten)]
    pub dirs: Dirs,
    /// Socket to listen on [default: NAME.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Members of this group may use the socket, besides root
    #[arg(long, value_name = "GROUP")]
    pub group: Option<String>,
    /// How the log is written
    #[arg(long, value_enum, default_value_t)]
    pub log_format: log::Format,
}

/// Becomes true when the daemon is told to stop: who waits must give up.
pub type Stopping = watch::Receiver<bool>;

/// Serves until SIGTERM or SIGINT; requests that are being worked on are
/// finished, new ones no longer taken.
pub fn run(name: &'static str, args: &DaemonArgs, router: impl FnOnce(Stopping) -> Router) -> Result<()> {
    run_beside(name, args, |stopping| (router(stopping), std::future::ready(())))
}

/// The same with something beside the router: what was begun before the stop goes on until
/// that has ended, too.
pub fn run_beside<F: Future<Output = ()>>(
    name: &'static str,
    args: &DaemonArgs,
    parts: impl FnOnce(Stopping) -> (Router, F),
) -> Result<()> {
    log::init(args.log_format);
    traces::begin(name);
    signals::unblock()?;
    // One thread: what blocks has its own, and a request need not wake others on its way.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_fail(|| "cannot start the runtime")?;
    let served = runtime.block_on(serve(name, args, parts));
    traces::end();
    served
}

async fn serve<F: Future<Output = ()>>(
    name: &'static str,
    args: &DaemonArgs,
    parts: impl FnOnce(Stopping) -> (Router, F),
) -> Result<()> {
    let gate = Gate::new(args.group.as_deref())?;
    let (listener, listening) = listen::bind(&args.dirs.socket(args.socket.clone(), name), &gate)?;
    let stopping = stop_signals()?;
    let (router, beside) = parts(stopping.clone());
    let router = router
        .layer(from_fn(traced))
        .layer(from_fn(logged))
        .layer(from_fn_with_state(gate, peer::check));
    tracing::info!(name, socket = %listening.path.display(), "ready");
    notify(notify::READY);
    let (served, ()) = tokio::join!(answer(listener, router, stopping), beside);
    tracing::info!(name, "stopped");
    drop::<Listening>(listening);
    served
}

async fn answer(listener: UnixListener, router: Router, mut stopping: Stopping) -> Result<()> {
    axum::serve(listener, router.into_make_service_with_connect_info::<Peer>())
        .with_graceful_shutdown(async move {
            let _ = stopping.wait_for(|stop| *stop).await;
            notify(notify::STOPPING);
        })
        .await
        .or_fail(|| "cannot serve")
}

fn stop_signals() -> Result<Stopping> {
    let what = || "cannot take signals";
    let mut terminate = signal(SignalKind::terminate()).or_fail(what)?;
    let mut interrupt = signal(SignalKind::interrupt()).or_fail(what)?;
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping: finishing the requests under way");
        stop.send_replace(true);
        // The channel must stay open for those who wait on it.
        std::future::pending::<()>().await;
    });
    Ok(stopping)
}

static REQUESTS: AtomicU64 = AtomicU64::new(1);

/// One line of log a request, and its number on every line that it causes.
async fn logged(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    let id = REQUESTS.fetch_add(1, Ordering::Relaxed);
    let uid = peer.ids.map(|(uid, _)| uid);
    let span = tracing::info_span!("request", request_id = id, uid, pid = peer.pid);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    async move {
        let began = Instant::now();
        let response = next.run(request).await;
        let (micros, status) = (began.elapsed().as_micros(), response.status().as_u16());
        // The answer does not wait for the log.
        let told = async move { tracing::info!(%method, path, status, micros, "answered") };
        tokio::spawn(told.in_current_span());
        response
    }
    .instrument(span)
    .await
}

/// A span for each request that changes something, below that of who asks.
async fn traced(request: Request, next: Next) -> Response {
    if !traces::wanted() || request.method() == Method::GET {
        return next.run(request).await;
    }
    let method = request.method().clone();
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map_or("", MatchedPath::as_str).to_owned();
    let mut span = Place::of(request.headers()).begin(SpanKind::Server, format_args!("{method} {path}"));
    let response = span.place().within(next.run(request)).await;
    let status = response.status();
    span.note("http.request.method", method.to_string());
    span.note("http.route", path);
    span.note("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail(status.to_string());
    }
    response
}
