//! Small clients for real servers: those of `nodekit`, with the errors of a trial.

use anyhow::{Context, Result, ensure};
use nodekit::local::{self, connect};
use std::io::{BufRead, BufReader, Read, Write};

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

/// Sends this over a connection of its own, and reads all that comes back.
pub fn exchange(port: u16, request: &[u8]) -> Result<String> {
    let mut stream = connect(port)?;
    stream.write_all(request)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Asks again and again over one connection.
pub type Ask = Box<dyn FnMut() -> Result<()> + Send>;

/// One connection to redis, which counts.
pub fn redis_connection(port: u16) -> Result<Ask> {
    let mut stream = BufReader::new(connect(port)?);
    let mut last = 0;
    Ok(Box::new(move || {
        stream.get_mut().write_all(b"INCR load\r\n")?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let count: u64 = line
            .trim()
            .strip_prefix(':')
            .with_context(|| format!("redis: {line:?}"))?
            .parse()?;
        ensure!(count > last, "{count} came after {last}");
        last = count;
        Ok(())
    }))
}

/// One connection that is kept alive, asking for this page.
pub fn http_connection(port: u16, path: &'static str) -> Result<Ask> {
    let mut stream = BufReader::new(connect(port)?);
    Ok(Box::new(move || {
        write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let (mut length, mut lines) = (None, 0);
        loop {
            let mut line = String::new();
            ensure!(stream.read_line(&mut line)? > 0, "the connection was closed");
            ensure!(lines > 0 || line.contains(" 200 "), "GET {path}: {line}");
            lines += 1;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = Some(value.trim().parse()?);
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length.context("an answer without a length")?];
        Ok(stream.read_exact(&mut body)?)
    }))
}
