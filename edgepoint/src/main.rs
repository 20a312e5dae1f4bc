//! `edgepointd`: the daemon of a node. Apps are deployed there; those that nobody uses
//! sleep as appshots, and who comes to one wakes it.
//!
//! ```text
//!   client ──> listening socket ── held here ──> the app accepts, while it runs
//!                     │
//!                     └ somebody waits, and the app sleeps: restored brings it back
//! ```
#![forbid(unsafe_code)]

mod addresses;
mod agent;
mod api;
mod archives;
mod bell;
mod budget;
mod caller;
mod demand;
mod events;
mod files;
mod instances;
mod manifest;
mod metrics;
mod node;
mod probe;
mod proxy;
mod quota;
mod remote;
mod scale;
mod schedule;
mod sockets;
mod spares;
mod status;
mod versions;
mod why;
mod work;

use addresses::Addresses;
use axum::Extension;
use caller::Caller;
use clap::Parser;
use ipnet::Ipv4Net;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::store::{Lock, Store};
use libsnap::units::{parse_bytes, parse_span};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use node::Node;
use nodekit::args::EXIT_CODES;
use nodekit::daemon::{self, DaemonArgs};
use nodekit::{descriptors, program};
use proxy::rules::Network;
use proxy::serve::{self, Entry};
use proxy::tls::Certificate;
use remote::Remote;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};

/// Keeps deployed apps asleep until they are needed, asked over a Unix socket
#[derive(Debug, Parser)]
#[command(name = "edgepointd", version, after_help = EXIT_CODES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    daemon: DaemonArgs,
    /// Take HTTP requests here for all apps that have routes; several times for more addresses
    #[arg(long, value_name = "ADDR:PORT")]
    http: Vec<SocketAddr>,
    /// The same over TLS
    #[arg(long, value_name = "ADDR:PORT", requires = "tls")]
    https: Vec<SocketAddr>,
    /// Certificate, chain and key for that, in one PEM file; read again when it changes
    #[arg(long, value_name = "FILE", requires = "https")]
    tls: Option<PathBuf>,
    /// Believe what clients of this network say about whom they ask for (X-Forwarded-For)
    #[arg(long, value_name = "NETWORK")]
    http_trust: Vec<Network>,
    /// Answer providers here, over TLS, who have a token (`appshot provider`); several times for
    /// more addresses
    #[arg(long, value_name = "ADDR:PORT")]
    api: Vec<SocketAddr>,
    /// Certificate, chain and key for that, in one PEM file; read again when it changes
    /// [default: one made by itself, api.pem in the data directory]
    #[arg(long, value_name = "FILE", requires = "api")]
    api_tls: Option<PathBuf>,
    /// How long HTTP requests may go on after a stop
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_span)]
    http_drain: Duration,
    /// Memory that all running apps together may have, such as 8G [default: what is available at
    /// the start, less a tenth of the machine's or 256 MiB]
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Give instances addresses of this network, where their manifests ask for them (network.address)
    #[arg(long, value_name = "NETWORK")]
    subnet: Option<Ipv4Net>,
    /// The bridge that they are joined to, which has the first of these addresses; made if need be
    #[arg(long, value_name = "NAME", default_value = "appshot0", requires = "subnet", value_parser = device)]
    bridge: String,
}

fn main() -> ExitCode {
    program::main("edgepointd", |cli: Cli| run(&cli))
}

/// As the kernel has names of devices.
fn device(text: &str) -> std::result::Result<String, String> {
    let is_one = (1..=15).contains(&text.len()) && !text.contains(['/', ':', ' ']) && !text.starts_with('.');
    match is_one {
        true => Ok(text.to_owned()),
        false => Err("the name of a device has 1 to 15 characters, no / : or space, and no . first".to_owned()),
    }
}

/// Apps that run go on when it stops; it takes them up again.
fn run(cli: &Cli) -> Result<u8> {
    let args = &cli.daemon;
    let store = args.dirs.open()?;
    let _alone = alone(&store)?;
    let addresses = cli.subnet.map(|subnet| Addresses::begin(subnet, &cli.bridge));
    let node = Node::new(
        store,
        &args.dirs,
        cli.memory,
        addresses.transpose()?.unwrap_or_default(),
    )?;
    let entry = entry(cli, &node)?;
    let remote = Remote::new(&cli.api, cli.api_tls.as_deref(), node.store.data_dir())?;
    if entry.is_some() {
        node.proxy.open();
    }
    let kept = node.clone();
    daemon::run_beside("edgepointd", args, |stopping| {
        tokio::spawn(reap());
        if let Err(error) = node.take_up() {
            tracing::error!(%error, "cannot take up what is deployed");
        }
        tokio::spawn(node.clone().follow_spares());
        let (proxy, stopped) = (node.proxy.clone(), stopping.clone());
        let http = async move {
            if let Some((runtime, entry)) = entry {
                // What goes wrong there was told there.
                let _ = runtime.spawn(serve::serve(entry, proxy, stopping)).await;
                runtime.shutdown_background();
            }
        };
        let router = api::router(&node, stopped.clone());
        let elsewhere = remote.serve(router.clone(), node, stopped);
        let beside = async move {
            let ((), ()) = tokio::join!(http, elsewhere);
        };
        (router.layer(Extension(Caller::Root)), beside)
    })?;
    // With no app there is nothing to wait for.
    if kept.all().is_empty() {
        kept.keeper.forget(serve::KEPT)?;
    }
    Ok(0)
}

/// The apps of a directory have one daemon, wherever it listens.
fn alone(store: &Store) -> Result<Lock> {
    let what = || format!("cannot take the apps in {}", store.data_dir().display());
    Lock::try_take(&store.data_dir().join(".edgepointd.lock"))?.ok_or_else(|| {
        Error::new(Kind::Conflict, what())
            .because("another edgepointd has them")
            .fix("stop that one, or name another directory with --data-dir")
    })
}

/// Threads of their own for HTTP, and its sockets, where it is wanted.
fn entry(cli: &Cli, node: &Node) -> Result<Option<(Runtime, Entry)>> {
    if cli.http.is_empty() && cli.https.is_empty() {
        node.keeper.forget(serve::KEPT)?;
        return Ok(None);
    }
    let kept = node.keeper.list().unwrap_or_else(|error| {
        tracing::error!(%error, "the sockets of the HTTP entry are made anew");
        BTreeMap::new()
    });
    let kept: Vec<TcpListener> = kept
        .into_iter()
        .filter(|(name, _)| name == serve::KEPT)
        .flat_map(|(_, sockets)| sockets)
        .map(TcpListener::from)
        .collect();
    let certificate = cli.tls.as_deref().map(Certificate::read).transpose()?;
    let plain = serve::bind(&cli.http, &kept)?;
    let secured = serve::bind(&cli.https, &kept)?;
    let all: Vec<OwnedFd> = plain
        .iter()
        .chain(&secured)
        .map(|listener| listener.as_fd().try_clone_to_owned())
        .collect::<std::io::Result<_>>()
        .or_fail(|| "cannot have the sockets of the HTTP entry kept")?;
    // Who comes while this daemon is not there waits for the next one.
    node.keeper.keep(serve::KEPT, &all)?;
    let plain = plain.into_iter().map(|listener| (listener, None));
    let secured = secured.into_iter().map(|listener| (listener, certificate.clone()));
    let descriptors = usize::try_from(descriptors::raise()).unwrap_or(usize::MAX);
    let entry = Entry {
        listeners: plain.chain(secured).collect(),
        trust: cli.http_trust.clone(),
        // Each has one on both sides, and the apps have some.
        clients: (descriptors / 4).clamp(1, CLIENTS_MAX),
        drain: cli.http_drain,
        workers: serve::Workers::begin()?,
    };
    // Only who comes is seen there.
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(1).thread_name("http").enable_all().build();
    Ok(Some((runtime.or_fail(|| "cannot start threads for HTTP")?, entry)))
}

/// More connections than this are a flood.
const CLIENTS_MAX: usize = 100_000;

/// Supervisors of apps and the keeper are our children, and end when they want to. What
/// other threads trace reports to those.
async fn reap() {
    let Ok(mut ended) = signal(SignalKind::child()) else {
        return;
    };
    let ours = WaitPidFlag::WNOHANG | WaitPidFlag::__WNOTHREAD;
    while ended.recv().await.is_some() {
        while waitpid(None, Some(ours)).is_ok_and(|status| status != WaitStatus::StillAlive) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }
}
