//! Small clients for real servers: those of `nodekit`, with the errors of a trial.

use anyhow::Result;
use nodekit::local;

pub fn free_port() -> Result<u16> {
    Ok(local::free_port()?)
}

pub fn ensure_refused(port: u16) -> Result<()> {
    Ok(local::ensure_refused(port)?)
}

pub fn http_get(port: u16, path: &str) -> Result<String> {
    Ok(local::http_get(port, path)?)
}

pub fn redis(port: u16, command: &[&str]) -> Result<String> {
    Ok(local::redis(port, command)?)
}
