//! Asking an app that comes up from its command: whether it is ready, and what warms it.
//!
//! ```text
//!   command ──> it listens ──> GET ready.http: 200 to 399 ──> [[warmup]] ──> up; its appshot may be taken
//! ```
//!
//! Both may take `ready.timeout`. It is asked in its own network namespace: a new version is there alone.

use crate::manifest::Manifest;
use crate::sockets::Sockets;
use libsnap::error::{Error, Result};
use libsnap::store::App;
use nodekit::hooks;
use nodekit::reply::on_own_thread;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// Between two questions whether it is ready.
const AGAIN: Duration = Duration::from_millis(50);

/// Waits until it is up; answers where it listens.
pub async fn up(app: &App, manifest: &Manifest, began: Instant) -> Result<Sockets> {
    let sockets = Sockets::wait(app, manifest, began).await?;
    ready(app, manifest, began).await?;
    warm(app, manifest).await?;
    Ok(sockets)
}

async fn ready(app: &App, manifest: &Manifest, began: Instant) -> Result<()> {
    let (Some(path), Some(address)) = (&manifest.ready.http, manifest.asked_at(manifest.ready.to.as_deref())) else {
        return Ok(());
    };
    let patience = manifest.ready.timeout.0;
    loop {
        let left = patience.saturating_sub(began.elapsed());
        let because = match get(app, address, &address.to_string(), path, left).await {
            Ok(status) if is_good(status) => return Ok(()),
            Ok(status) => format!("it answered {status}"),
            Err(error) => error.because.unwrap_or(error.what),
        };
        if !app.alive() || began.elapsed() + AGAIN > patience {
            return Err(failed(
                app,
                &format!("it is not ready after {patience:?}: GET {path}: {because}"),
            ));
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn warm(app: &App, manifest: &Manifest) -> Result<()> {
    let (began, patience) = (Instant::now(), manifest.ready.timeout.0);
    for warmup in &manifest.warmup {
        let Some(address) = manifest.asked_at(warmup.to.as_deref()) else {
            continue;
        };
        let host = warmup.host.clone().unwrap_or_else(|| address.to_string());
        for _ in 0..warmup.times {
            let left = patience.saturating_sub(began.elapsed());
            let because = match get(app, address, &host, &warmup.path, left).await {
                _ if left.is_zero() => format!("not all of it is done after {patience:?}"),
                Ok(status) if is_good(status) => continue,
                Ok(status) => format!("it answered {status}"),
                Err(error) => error.because.unwrap_or(error.what),
            };
            let path = &warmup.path;
            return Err(failed(app, &format!("it cannot be warmed: GET {path}: {because}")));
        }
    }
    Ok(())
}

fn is_good(status: u16) -> bool {
    (200..400).contains(&status)
}

async fn get(app: &App, address: SocketAddr, host: &str, path: &str, time: Duration) -> Result<u16> {
    let (root, host, path) = (app.root, host.to_owned(), path.to_owned());
    // A moment at least, so that it is asked once.
    let time = time.max(AGAIN);
    on_own_thread(move || hooks::get(root, address, &host, &path, time).map(|status| status.as_u16())).await
}

fn failed(app: &App, because: &str) -> Error {
    Error::failed(format!("app {} does not come up", app.name))
        .because(because)
        .fix(format!("`appshot logs {}` tells more", app.name))
}
