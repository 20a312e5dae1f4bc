//! Redis with keys of 1 KiB that do not compress.

use super::{App, Load, Workload, detached, missing_program, nonce};
use crate::net;
use crate::place::Place;
use anyhow::{Context, Result, ensure};
use std::process::Command;

const VALUE_BYTES: usize = 1024;
const BATCH: u64 = 500;
/// Keys that are compared after a restore.
const SAMPLES: u64 = 500;

#[derive(Debug)]
pub struct Redis {
    pub name: &'static str,
    pub keys: u64,
}

impl Workload for Redis {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> String {
        let version = crate::command::version("redis-server".as_ref(), "--version");
        format!("{} keys of {VALUE_BYTES} bytes; {version}", self.keys)
    }

    fn missing(&self) -> Option<String> {
        missing_program("redis-server", "redis-server").or_else(|| missing_program("redis-benchmark", "redis-tools"))
    }

    fn prepare(&self, _place: &Place) -> Result<Box<dyn App>> {
        let port = net::free_port()?;
        Ok(Box::new(Server {
            port,
            keys: self.keys,
            nonce: nonce(),
        }))
    }

    fn memory_bytes(&self) -> usize {
        let keys = usize::try_from(self.keys).unwrap_or(usize::MAX);
        (32 << 20) + keys.saturating_mul(VALUE_BYTES + VALUE_BYTES / 4)
    }
}

struct Server {
    port: u16,
    keys: u64,
    nonce: u64,
}

impl Server {
    fn load(&self, redis: &mut net::Redis) -> Result<()> {
        let mut key = 0;
        while key < self.keys {
            let end = (key + BATCH).min(self.keys);
            let mut batch = Vec::new();
            (key..end).for_each(|key| push_set_command(&mut batch, key));
            redis.send(&batch)?;
            for _ in key..end {
                redis.reply()?;
            }
            key = end;
        }
        Ok(())
    }
}

/// The value of a key: pseudo-random bytes that begin from the key.
fn value(key: u64) -> Vec<u8> {
    let mut state = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut value = Vec::with_capacity(VALUE_BYTES);
    while value.len() < VALUE_BYTES {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        value.extend_from_slice(&state.to_le_bytes());
    }
    value
}

fn push_set_command(batch: &mut Vec<u8>, key: u64) {
    let name = format!("key:{key}");
    let length = name.len();
    let head = format!("*3\r\n$3\r\nSET\r\n${length}\r\n{name}\r\n${VALUE_BYTES}\r\n");
    batch.extend_from_slice(head.as_bytes());
    batch.extend_from_slice(&value(key));
    batch.extend_from_slice(b"\r\n");
}

impl App for Server {
    fn command(&self) -> Command {
        let mut command = detached("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &self.port.to_string()]);
        command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]);
        command
    }

    fn answers(&self) -> Result<()> {
        let answer = net::Redis::connect(self.port)?.ask("PING")?;
        ensure!(answer == b"PONG", "PING: {answer:?}");
        Ok(())
    }

    fn fill(&self) -> Result<()> {
        let mut redis = net::Redis::connect(self.port)?;
        self.load(&mut redis)?;
        redis.ask(&format!("SET nonce {}", self.nonce))?;
        Ok(())
    }

    fn verify(&self, _tree: &[i32]) -> Result<()> {
        let mut redis = net::Redis::connect(self.port)?;
        let size = redis.ask("DBSIZE")?;
        ensure!(size == (self.keys + 1).to_string().into_bytes(), "DBSIZE is {size:?}");
        ensure!(redis.ask("GET nonce")? == self.nonce.to_string().into_bytes());
        for sample in 0..SAMPLES.min(self.keys) {
            let key = sample * self.keys / SAMPLES.min(self.keys);
            let got = redis.ask(&format!("GET key:{key}"))?;
            ensure!(got == value(key), "key:{key} has another value");
        }
        redis.ask("SET after restore")?;
        ensure!(redis.ask("GET after")? == b"restore");
        Ok(())
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }

    /// Values of another size each time: jemalloc has something to do.
    fn work(&self) -> Result<()> {
        let size = 100 + crate::clock::now_ns() % 3000;
        let mut load = Load::command(self.port);
        load.args(["-c", "8", "-n", "5000", "-r", "20000", "-t", "set,get"]);
        load.args(["-d", &size.to_string()]);
        let status = load.status().context("cannot start redis-benchmark")?;
        ensure!(status.success(), "redis-benchmark: {status}");
        Ok(())
    }

    fn load(&self) -> Result<Load> {
        let reading = ["-t", "get", "-r", "100000"].as_slice();
        let writing = ["-t", "set", "-r", "10000", "-d", "1024"].as_slice();
        let start = |arguments: &[&str]| {
            let mut command = Load::command(self.port);
            command.args(["-c", "2", "-n", "1000000000"]).args(arguments).spawn()
        };
        Ok(Load {
            clients: vec![start(reading)?, start(writing)?],
        })
    }

    fn served(&self) -> Result<u64> {
        let info = net::Redis::connect(self.port)?.ask("INFO stats")?;
        let info = String::from_utf8(info)?;
        let count = info
            .lines()
            .find_map(|line| line.strip_prefix("total_commands_processed:"));
        Ok(count.context("no count of commands")?.trim().parse()?)
    }
}
