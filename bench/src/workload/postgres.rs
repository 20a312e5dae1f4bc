//! PostgreSQL: a cluster of its own with one table. The first answer is that of
//! a SELECT, over a connection of its own.
//!
//! It runs as root, told that it does not: to read the limits of another user's
//! process the peer needs CAP_SYS_RESOURCE, which not every machine gives away.

use super::{App, Workload, detached, nonce};
use crate::net;
use crate::place::Place;
use anyhow::{Context, Result, bail, ensure};
use nodekit::local;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

const PROGRAMS: &str = "/usr/lib/postgresql/15/bin";
const ROWS: usize = 20_000;

#[derive(Debug)]
pub struct Postgres {
    /// The library that tells it so.
    pub preload: Option<PathBuf>,
}

impl Workload for Postgres {
    fn name(&self) -> &'static str {
        "postgres"
    }

    fn about(&self) -> String {
        let version = crate::command::version(&program("postgres"), "--version");
        format!("{ROWS} rows in one table; {version}")
    }

    fn missing(&self) -> Option<String> {
        let fix = || "PostgreSQL 15 (apt-get install postgresql-15)".to_owned();
        let no_compiler = || "cc (apt-get install gcc libc6-dev)".to_owned();
        let missing = (!program("postgres").exists()).then(fix);
        missing.or(self.preload.is_none().then(no_compiler))
    }

    fn prepare(&self, place: &Place) -> Result<Box<dyn App>> {
        let user = nix::unistd::User::from_name("postgres")?.context("no user postgres")?;
        let nonce = nonce();
        let data = place.disk().join(format!("postgres-{nonce}"));
        std::fs::create_dir(&data)?;
        nix::unistd::chown(&data, Some(user.uid), Some(user.gid))?;
        let server = Server {
            port: net::free_port()?,
            nonce,
            data,
            preload: self.preload.clone().context("no library to preload")?,
            uid: user.uid.as_raw(),
        };
        let mut initdb = detached("setpriv");
        initdb.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]);
        initdb.arg(program("initdb"));
        initdb.args(["--auth=trust", "--no-sync", "-D"]).arg(&server.data);
        crate::command::run(&mut initdb, place.disk())?;
        Ok(Box::new(server))
    }

    fn memory_bytes(&self) -> usize {
        256 << 20
    }
}

fn program(name: &str) -> PathBuf {
    Path::new(PROGRAMS).join(name)
}

struct Server {
    port: u16,
    nonce: u64,
    data: PathBuf,
    preload: PathBuf,
    uid: u32,
}

impl Server {
    fn ask(&self, query: &str) -> Result<String> {
        let mut stream = local::connect(self.port)?;
        let mut start = 196_608u32.to_be_bytes().to_vec();
        start.extend_from_slice(b"user\0postgres\0database\0postgres\0\0");
        send(&mut stream, None, &start)?;
        until_ready(&mut stream)?;
        send(&mut stream, Some(b'Q'), format!("{query}\0").as_bytes())?;
        until_ready(&mut stream)
    }
}

/// One message of the protocol, version 3: type, length with itself, body.
fn send(stream: &mut TcpStream, kind: Option<u8>, body: &[u8]) -> Result<()> {
    let mut message: Vec<u8> = kind.into_iter().collect();
    message.extend_from_slice(&u32::try_from(body.len() + 4)?.to_be_bytes());
    message.extend_from_slice(body);
    Ok(stream.write_all(&message)?)
}

/// Reads to ReadyForQuery; answers the first column of the last row.
fn until_ready(stream: &mut TcpStream) -> Result<String> {
    let mut value = String::new();
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
        let mut body = vec![0; usize::try_from(length)?.checked_sub(4).context("a short message")?];
        stream.read_exact(&mut body)?;
        match head[0] {
            b'Z' => return Ok(value),
            b'E' => bail!("postgres: {}", String::from_utf8_lossy(&body)),
            // Number of columns, length of the first, the first.
            b'D' => value = String::from_utf8_lossy(body.get(6..).unwrap_or_default()).into_owned(),
            _ => {}
        }
    }
}

impl App for Server {
    fn command(&self) -> Command {
        let mut command = detached(program("postgres"));
        command
            .env("LD_PRELOAD", &self.preload)
            .env("BENCH_UID", self.uid.to_string());
        command.arg("-D").arg(&self.data).args(["-p", &self.port.to_string()]);
        command.args(["-h", "127.0.0.1", "-k", "", "-c", "shared_buffers=64MB"]);
        // Workers that come and go would make one run differ from the next.
        command.args(["-c", "autovacuum=off"]);
        command
    }

    fn answers(&self) -> Result<()> {
        let answer = self.ask("select 6 * 7")?;
        ensure!(answer == "42", "answers {answer:.40}");
        Ok(())
    }

    fn fill(&self) -> Result<()> {
        let rows = format!(
            "create table t as select n, {} as nonce from generate_series(1, {ROWS}) n",
            self.nonce
        );
        self.ask(&rows).map(drop)
    }

    fn verify(&self, _tree: &[i32]) -> Result<()> {
        let sum = self.ask("select sum(n) || '/' || min(nonce) from t")?;
        let wanted = format!("{}/{}", ROWS * (ROWS + 1) / 2, self.nonce);
        ensure!(sum == wanted, "the table sums up to {sum}, not {wanted}");
        let written = self.ask("create temporary table u as select * from t; select count(*) from u")?;
        ensure!(written == ROWS.to_string(), "{written} rows written");
        Ok(())
    }

    fn system_v(&self) -> bool {
        true
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }
}
