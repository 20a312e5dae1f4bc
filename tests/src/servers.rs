//! Real software, and what to do with it: how each is started, filled, used, and
//! what of it must be equal before and after.

use crate::app::Place;
use crate::clients::{free_port, http_get, redis};
use crate::judge::tree;
use crate::programs;
use crate::scenario::{Drive, Server};
use crate::verdict::{PATIENCE, need_program, poll};
use anyhow::{Context, Result, ensure};
use libsnap::target::RunOptions;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|&word| word.to_owned()).collect()
}

pub(crate) fn options(command: &[&str]) -> RunOptions {
    RunOptions {
        command: words(command),
        ..RunOptions::default()
    }
}

pub(crate) fn path_text(path: &Path) -> String {
    path.display().to_string()
}

pub(crate) fn servers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("servers")
}

pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {error}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

// ------------------------------------------------------------------------ redis

/// 100,000 keys of 1,000 bytes, answering.
pub fn redis_server(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = need_program(&["redis-server"])?;
    let port = free_port()?;
    let (dir, port_text) = (path_text(place.dir()), port.to_string());
    drive(
        place,
        &Server {
            options: options(&[
                &path_text(&program),
                "--port",
                &port_text,
                "--bind",
                "127.0.0.1",
                "--dir",
                &dir,
                "--save",
                "",
                "--appendonly",
                "no",
                "--enable-debug-command",
                "yes",
            ]),
            port: Some(port),
            // 100 MB: 100 000 keys of 1000 bytes.
            fill: &|_| redis(port, &["DEBUG", "POPULATE", "100000", "key", "1000"]).map(drop),
            state: &|| {
                let size = redis(port, &["DBSIZE"])?;
                Ok(format!("{size} {}", redis(port, &["DEBUG", "DIGEST"])?))
            },
            use_it: &|| {
                let count: u64 = redis(port, &["INCR", "counter"])?.parse()?;
                redis(port, &["SET", &format!("fresh-{count}"), "value", "EX", "10000"])?;
                let value = redis(port, &["GET", "key:99999"])?;
                ensure!(value.starts_with("value:99999"), "key:99999 is {value}");
                Ok(())
            },
            steady: true,
            grows: false,
            finish: None,
            request: Some(|port| redis(port, &["INCR", "load"]).map(drop)),
        },
    )
}

// ------------------------------------------------------------------------ nginx

fn nginx_configuration(place: &Place, port: u16) -> Result<PathBuf> {
    let dir = path_text(place.dir());
    let html = place.path("html");
    std::fs::create_dir(&html)?;
    std::fs::write(html.join("index.html"), "a page\n".repeat(10_000))?;
    let file = place.path("nginx.conf");
    std::fs::write(
        &file,
        format!(
            "user root; daemon off; worker_processes 2; pid {dir}/nginx.pid;\n\
             error_log {dir}/error.log;\n\
             events {{ worker_connections 64; }}\n\
             http {{\n access_log {dir}/access.log; keepalive_requests 100000000;\n\
             client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;\n\
             fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
             server {{ listen 127.0.0.1:{port}; root {dir}/html;\n\
             location = /status {{ stub_status; }} }} }}\n"
        ),
    )?;
    Ok(file)
}

/// A master and two workers that serve pages and count together.
pub fn nginx(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = need_program(&["nginx", "/usr/sbin/nginx"])?;
    let port = free_port()?;
    let file = path_text(&nginx_configuration(place, port)?);
    drive(
        place,
        &Server {
            options: options(&[&path_text(&program), "-c", &file, "-e", "stderr"]),
            port: Some(port),
            fill: &|top| {
                let processes = tree(top).len();
                ensure!(processes >= 3, "master and two workers, but {processes} processes");
                Ok(())
            },
            state: &|| http_get(port, "/index.html"),
            use_it: &|| {
                // Counters in memory that the workers share.
                let (first, second) = (nginx_requests(port)?, nginx_requests(port)?);
                ensure!(second > first && first > 1, "requests: {first}, then {second}");
                Ok(())
            },
            steady: true,
            grows: false,
            finish: None,
            request: Some(|port| http_get(port, "/index.html").map(drop)),
        },
    )
}

/// The third number below `server accepts handled requests`.
fn nginx_requests(port: u16) -> Result<u64> {
    let status = http_get(port, "/status")?;
    let line = status.lines().nth(2).context("status has no third line")?;
    Ok(line
        .split_whitespace()
        .nth(2)
        .context("no number of requests")?
        .parse()?)
}

// ------------------------------------------------------------- servers that count

/// Servers of one protocol: `/` tells the state, `/add` counts, `/ticks` is a timer.
pub(crate) fn counter(place: &Place, drive: Drive<'_>, command: &[&str], port: u16) -> Result<()> {
    drive(
        place,
        &Server {
            options: options(command),
            port: Some(port),
            fill: &|_| (0..50).try_for_each(|_| http_get(port, "/add").map(drop)),
            state: &|| http_get(port, "/"),
            use_it: &|| {
                http_get(port, "/add")?;
                let ticks = || -> Result<u64> { Ok(http_get(port, "/ticks")?.parse()?) };
                let first = ticks()?;
                poll("the timer to tick", Duration::from_secs(20), || {
                    Ok((ticks()? > first).then_some(()))
                })
            },
            steady: true,
            // Compilers and collectors at work.
            grows: true,
            finish: None,
            request: Some(|port| http_get(port, "/add").map(drop)),
        },
    )
}

/// A counter, a timer and a buffer in memory, answering.
pub fn node(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["node", "nodejs"])?);
    let port = free_port()?;
    let script = path_text(&servers().join("counter.js"));
    counter(place, drive, &[&program, &script, &port.to_string()], port)
}

/// A counter in memory, goroutines that compute and are preempted.
pub fn go(place: &Place, drive: Drive<'_>) -> Result<()> {
    let compiler = need_program(&["go"])?;
    let binary = path_text(&place.path("counter"));
    let mut build = Command::new(compiler);
    build.args(["build", "-o", &binary]).arg(servers().join("counter.go"));
    build
        .env("GO111MODULE", "off")
        .env("CGO_ENABLED", "0")
        .env("GOFLAGS", "");
    run(build
        .env("GOPATH", place.path("go"))
        .env("GOCACHE", std::env::temp_dir().join("appshot-go-cache")))?;
    let port = free_port()?;
    counter(place, drive, &[&binary, &port.to_string()], port)
}

/// A counter in memory, the compiler and the collector at work.
pub fn java(place: &Place, drive: Drive<'_>) -> Result<()> {
    let (compiler, machine) = (need_program(&["javac"])?, need_program(&["java"])?);
    let dir = path_text(place.dir());
    run(Command::new(compiler)
        .args(["-d", &dir])
        .arg(servers().join("Counter.java")))?;
    let port = free_port()?;
    counter(
        place,
        drive,
        &[&path_text(&machine), "-cp", &dir, "Counter", &port.to_string()],
        port,
    )
}

/// Serves a directory, a thread for each request.
pub fn python_http_server(place: &Place, drive: Drive<'_>) -> Result<()> {
    let program = path_text(&need_program(&["/usr/bin/python3"])?);
    let html = place.path("html");
    std::fs::create_dir(&html)?;
    std::fs::write(html.join("file"), "content")?;
    let port = free_port()?;
    let command = [
        &program,
        "-m",
        "http.server",
        &port.to_string(),
        "--bind",
        "127.0.0.1",
        "-d",
        &path_text(&html),
    ];
    drive(
        place,
        &Server {
            options: options(&command),
            port: Some(port),
            fill: &|_| Ok(()),
            state: &|| Ok(format!("{} {}", http_get(port, "/")?, http_get(port, "/file")?)),
            use_it: &|| {
                let name = format!("made-{}", std::fs::read_dir(&html)?.count());
                std::fs::write(html.join(&name), "")?;
                let listing = http_get(port, "/")?;
                ensure!(listing.contains(&name), "{name} is not in {listing}");
                Ok(())
            },
            steady: true,
            // A thread a request, and an arena a thread.
            grows: true,
            finish: None,
            request: Some(|port| http_get(port, "/file").map(drop)),
        },
    )
}

// ------------------------------------------------------------------- PostgreSQL

const PG: &str = "/usr/lib/postgresql/15/bin";

/// A cluster in the place's directory, owned by the user postgres.
#[derive(Debug)]
pub struct Postgres {
    pub port: u16,
    uid: u32,
    gid: u32,
    data: PathBuf,
}

impl Postgres {
    pub fn make(place: &Place) -> Result<Postgres> {
        need_program(&["/usr/lib/postgresql/15/bin/postgres"])?;
        let user = nix::unistd::User::from_name("postgres")?.context("no user postgres")?;
        let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
        let data = place.path("data");
        std::fs::create_dir(&data)?;
        nix::unistd::chown(&data, Some(user.uid), Some(user.gid))?;
        let postgres = Postgres {
            port: free_port()?,
            uid,
            gid,
            data,
        };
        run(postgres
            .tool("initdb")
            .args(["--auth=trust", "-N", "-D"])
            .arg(&postgres.data))?;
        Ok(postgres)
    }

    pub fn uid(&self) -> u32 {
        self.uid
    }

    pub fn gid(&self) -> u32 {
        self.gid
    }

    /// A client program of this cluster.
    pub fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(Path::new(PG).join(name));
        command
            .uid(self.uid)
            .gid(self.gid)
            .current_dir("/")
            .env("LC_ALL", "C.UTF-8");
        command.env("PGHOST", "127.0.0.1").env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
        command
    }

    /// How the server is started.
    pub fn options(&self, place: &Place) -> RunOptions {
        RunOptions {
            uid: Some(self.uid),
            gid: Some(self.gid),
            ..options(&[
                &format!("{PG}/postgres"),
                "-D",
                &path_text(&self.data),
                "-p",
                &self.port.to_string(),
                "-h",
                "127.0.0.1",
                "-k",
                &path_text(place.dir()),
            ])
        }
    }

    /// One statement by psql.
    pub fn ask(&self, sql: &str) -> Result<String> {
        run(self.tool("psql").args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", sql]))
    }

    /// Sums that pgbench keeps equal in four tables, and the number of its rows.
    fn sums(&self) -> Result<String> {
        self.ask(
            "select (select sum(abalance) from pgbench_accounts), \
             (select sum(bbalance) from pgbench_branches), \
             (select sum(tbalance) from pgbench_tellers), \
             (select coalesce(sum(delta), 0) from pgbench_history), \
             (select count(*) from pgbench_history)",
        )
    }

    fn state(&self) -> Result<String> {
        let sums = match self.ask("select to_regclass('pgbench_accounts')")?.as_str() {
            "" => return Ok("empty".to_owned()),
            _ => self.sums()?,
        };
        let numbers: Vec<&str> = sums.split('|').collect();
        ensure!(numbers[..4].iter().all(|n| *n == numbers[0]), "sums differ: {sums}");
        Ok(sums)
    }

    pub fn wait_for(&self) -> Result<()> {
        poll("PostgreSQL to answer", PATIENCE, || Ok(self.ask("select 1").ok())).map(drop)
    }
}

/// What a driver of PostgreSQL may want besides.
pub type DrivePostgres<'a> = &'a dyn Fn(&Place, &Server<'_>, &Postgres) -> Result<()>;

/// Tables of pgbench, between its transactions.
pub fn postgresql(place: &Place, drive: Drive<'_>) -> Result<()> {
    with_postgresql(place, &|place, server, _| drive(place, server))
}

pub fn with_postgresql(place: &Place, drive: DrivePostgres<'_>) -> Result<()> {
    let postgres = Postgres::make(place)?;
    drive(
        place,
        &Server {
            options: postgres.options(place),
            port: Some(postgres.port),
            fill: &|_| run(postgres.tool("pgbench").args(["-i", "-s", "2", "-q"])).map(drop),
            state: &|| postgres.state(),
            use_it: &|| {
                let done = run(postgres.tool("pgbench").args(["-c", "2", "-t", "50", "-n"]))?;
                ensure!(done.contains("100/100"), "pgbench: {done}");
                Ok(())
            },
            steady: false,
            grows: true,
            finish: None,
            request: None,
        },
        &postgres,
    )
}

// ----------------------------------------------------------------- shell and trees

/// Each line of `numbers` is one more than the line before: none lost, none doubled.
fn numbers_in_order(file: &Path) -> Result<u64> {
    let text = std::fs::read_to_string(file)?;
    let mut last = 0;
    // The last line may be half written.
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let number: u64 = line.trim().parse()?;
        ensure!(number == last + 1, "{number} came after {last}");
        last = number;
    }
    Ok(last)
}

/// Numbers on their way through three processes and their pipes.
pub fn bash_pipeline(place: &Place, drive: Drive<'_>) -> Result<()> {
    let shell = path_text(&need_program(&["bash"])?);
    let script = path_text(&servers().join("pipeline.sh"));
    let file = place.path("numbers");
    drive(
        place,
        &Server {
            options: options(&[&shell, &script, &path_text(place.dir())]),
            port: None,
            fill: &|_| Ok(()),
            // The state moves on by itself: what must hold is its order.
            state: &|| numbers_in_order(&file).map(|_| "in order".to_owned()),
            use_it: &|| {
                let start = numbers_in_order(&file)?;
                poll("numbers to come through the pipes", PATIENCE, || {
                    Ok((numbers_in_order(&file)? > start + 3).then_some(()))
                })
            },
            steady: false,
            grows: true,
            finish: None,
            request: None,
        },
    )
}

/// 100 processes in three generations that say again and again that they live.
pub fn tree_of_100_processes(place: &Place, drive: Drive<'_>) -> Result<()> {
    let shell = path_text(&need_program(&["bash"])?);
    let script = path_text(&servers().join("tree.sh"));
    drive(
        place,
        &Server {
            options: options(&[&shell, &script, &path_text(place.dir())]),
            port: None,
            fill: &|top| {
                let count = tree(top).len();
                ensure!(count >= 100, "{count} processes");
                Ok(())
            },
            state: &|| everyone_speaks(place),
            // Each has to say again that it lives, under the number it had.
            use_it: &|| {
                let before = everyone_speaks(place)?;
                for entry in std::fs::read_dir(place.dir())? {
                    let path = entry?.path();
                    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
                    if name.starts_with("alive-") {
                        std::fs::remove_file(&path)?;
                    }
                }
                let after = everyone_speaks(place)?;
                ensure!(before == after, "numbers were {before}, are {after}");
                Ok(())
            },
            steady: true,
            // Each opens a fifo again and again.
            grows: true,
            finish: None,
            request: None,
        },
    )
}

/// Waits until no file is half written.
fn everyone_speaks(place: &Place) -> Result<String> {
    poll("100 processes to speak", PATIENCE, || Ok(everyone(place).ok()))
}

/// Names and numbers of the 100 processes that have spoken.
fn everyone(place: &Place) -> Result<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(place.dir())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_owned();
        if name.starts_with("alive-") {
            let pid = std::fs::read_to_string(&path)?;
            ensure!(pid.ends_with('\n'), "{name} is half written");
            all.push(format!("{name}={}", pid.trim()));
        }
    }
    ensure!(all.len() == 100, "{} of 100 have spoken", all.len());
    all.sort();
    Ok(all.join(" "))
}

// -------------------------------------------------------------------- terminals

/// Types a command and waits for its answer on the screen.
pub(crate) fn type_and_see(place: &Place, line: &str, answer: &str) -> Result<()> {
    let seen = || -> Result<usize> {
        let screen = std::fs::read(place.path("screen"))?;
        Ok(String::from_utf8_lossy(&screen).matches(answer).count())
    };
    let before = seen()?;
    let mut keys = std::fs::File::options()
        .read(true)
        .write(true)
        .open(place.path("keys"))?;
    keys.write_all(format!("{line}\n").as_bytes())?;
    poll(&format!("{answer:?} on the screen"), PATIENCE, || {
        Ok((seen()? > before).then_some(()))
    })
}

/// An interactive shell with job control: its variables, its background job,
/// and that ^C reaches what stands in the foreground and nothing else.
pub fn shell_on_a_terminal(place: &Place, drive: Drive<'_>) -> Result<()> {
    let python = path_text(&need_program(&["python3"])?);
    need_program(&["bash"])?;
    let script = path_text(&servers().join("terminal.py"));
    nix::unistd::mkfifo(&place.path("keys"), nix::sys::stat::Mode::from_bits_truncate(0o600))?;
    let ask = |command: &str, answer: &str| type_and_see(place, command, answer);
    drive(
        place,
        &Server {
            options: options(&[&python, &script, &path_text(place.dir())]),
            port: None,
            fill: &|_| ask("secret=kept; sleep 1000 & echo fi''lled", "filled"),
            state: &|| {
                ask("echo \"st\"ate=$secret:$(tty):$(jobs -r | wc -l):", "state=")?;
                let screen = std::fs::read(place.path("screen"))?;
                let screen = String::from_utf8_lossy(&screen);
                let told = screen.rsplit("state=").next().unwrap_or_default();
                Ok(told.lines().next().unwrap_or_default().to_owned())
            },
            use_it: &|| {
                // Told by what ^C is to end: the shell's own child may still ignore it.
                ask("sh -c 'echo st\"\"arted; exec sleep 500'", "started")?;
                ask("\u{3}echo go''es on", "goes on")
            },
            steady: false,
            grows: true,
            finish: None,
            request: None,
        },
    )
}

// ------------------------------------------------- programs that judge themselves

/// Programs of `tests/apps` together under one shell, which ends with 0 if every
/// one of them found its own state intact.
fn self_checking(place: &Place, drive: Drive<'_>, names: &[&str]) -> Result<()> {
    let shell = path_text(&need_program(&["bash"])?);
    let mut command = vec![shell, path_text(&servers().join("checks.sh")), path_text(place.dir())];
    for name in names {
        command.push(path_text(&programs::build(name)?));
    }
    let words: Vec<&str> = command.iter().map(String::as_str).collect();
    let ready = || -> Result<String> {
        let all = names.iter().all(|name| place.path(&format!("ready-{name}")).exists());
        ensure!(
            all && !place.path("failed").exists(),
            "not ready, or failed: {}",
            place.log()
        );
        Ok("ready".to_owned())
    };
    drive(
        place,
        &Server {
            options: options(&words),
            port: None,
            fill: &|_| Ok(()),
            state: &ready,
            use_it: &|| ready().map(drop),
            steady: true,
            grows: false,
            finish: Some(&|| Ok(std::fs::write(place.path("go"), "")?)),
            request: None,
        },
    )
}

/// 100 threads of a program that checks each of them.
pub fn threads_100(place: &Place, drive: Drive<'_>) -> Result<()> {
    self_checking(place, drive, &["threads100"])
}

/// Each call must block until its program hears go, however often it was frozen in it.
pub fn blocking_calls(place: &Place, drive: Drive<'_>) -> Result<()> {
    let names = [
        "block_accept",
        "block_cond",
        "block_epoll_wait",
        "block_flock",
        "block_futex",
        "block_handler",
        "block_msgrcv",
        "block_pause",
        "block_pipe_read",
        "block_pipe_write",
        "block_poll",
        "block_ppoll",
        "block_pselect",
        "block_recv",
        "block_semop",
        "block_sigsuspend",
        "block_sigtimedwait",
        "block_waitpid",
    ];
    self_checking(place, drive, &names)
}
