//! The client's side: a free port, HTTP, a Redis connection that stays.

use anyhow::{Context, Result, bail};
use nodekit::local;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

/// A port that nothing uses. Below the ephemeral range, so that no client
/// socket takes it while its app is away.
pub fn free_port() -> Result<u16> {
    let start = 20_000 + u16::try_from(std::process::id() % 9_000)?;
    (start..32_000)
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .context("no free port")
}

pub fn http_get(port: u16, path: &str) -> Result<String> {
    Ok(local::http_get(port, path)?)
}

/// One Redis connection.
#[derive(Debug)]
pub struct Redis {
    stream: BufReader<TcpStream>,
}

impl Redis {
    pub fn connect(port: u16) -> Result<Self> {
        Ok(Redis {
            stream: BufReader::new(local::connect(port)?),
        })
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    /// Sends one inline command and answers its one value.
    pub fn ask(&mut self, command: &str) -> Result<Vec<u8>> {
        self.send(format!("{command}\r\n").as_bytes())?;
        self.reply()
    }

    pub fn reply(&mut self) -> Result<Vec<u8>> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let line = line.trim_end();
        match line.split_at_checked(1) {
            Some(("+" | ":", text)) => Ok(text.as_bytes().to_vec()),
            Some(("$", length)) => self.bulk(length.parse()?),
            _ => bail!("redis answered {line:?}"),
        }
    }

    fn bulk(&mut self, length: i64) -> Result<Vec<u8>> {
        let length = usize::try_from(length).context("no such key")?;
        let mut value = vec![0; length + 2];
        self.stream.read_exact(&mut value)?;
        value.truncate(length);
        Ok(value)
    }
}

/// Waits until the server has closed its end of every connection: neither side
/// carries established ones.
pub fn wait_quiet(port: u16) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    while connections(port)? > 0 {
        if Instant::now() > deadline {
            bail!("connections to port {port} stay open");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn connections(port: u16) -> Result<usize> {
    let held = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().unwrap_or_default();
        let state = fields.nth(1).unwrap_or_default();
        // Established, close-wait: those that a process still holds.
        local.ends_with(&format!(":{port:04X}")) && matches!(state, "01" | "08")
    };
    let v4 = std::fs::read_to_string("/proc/net/tcp")?;
    let v6 = std::fs::read_to_string("/proc/net/tcp6").unwrap_or_default();
    Ok(v4.lines().chain(v6.lines()).filter(held).count())
}
