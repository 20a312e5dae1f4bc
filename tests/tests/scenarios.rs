//! Real software: started, used, frozen, seen to be gone, restored, used again.
//!
//! `APPSHOT_CYCLES` (default 3) cycles in a row, after which no process,
//! descriptor, cgroup, mount or file may have been left. Then once more with
//! the original running on, under load.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::{App, Place};
use appshot_tests::clients::{ensure_refused, free_port, http_get, redis};
use appshot_tests::judge::{
    Changes, Fingerprint, HostState, Scope, judge_nothing_left, judge_untouched, open_connections, own_descriptors,
    tree,
};
use appshot_tests::verdict::{PATIENCE, need_program, need_root, on_own_thread, poll, switched_on};
use libsnap::error::{Error, Kind};
use libsnap::target::{RunOptions, SnapshotOptions, TcpPolicy};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// One at a time: they are heavy, and the count of descriptors is of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

/// What the driver has to know of a server.
struct Server<'a> {
    options: RunOptions,
    port: Option<u16>,
    /// Brings it to a state worth keeping.
    fill: &'a dyn Fn(&App) -> Result<()>,
    /// Must be equal before the snapshot and after the restore.
    state: &'a dyn Fn(&App) -> Result<String>,
    /// Uses it so that the state changes.
    use_it: &'a dyn Fn(&App) -> Result<()>,
    /// It has as many processes at any time.
    steady: bool,
    /// One request under load, which may not fail.
    request: Option<fn(u16) -> Result<()>>,
}

impl Server<'_> {
    fn load(&self) -> Result<Option<Load>> {
        self.port
            .zip(self.request)
            .map(|(port, request)| Load::start(port, request))
            .transpose()
    }
}

fn scenario(test: &'static str, drive: fn(&Place) -> Result<()>) {
    on_own_thread(test, move || {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        need_root()?;
        drive(&Place::new(test)?)
    });
}

fn cycles() -> usize {
    std::env::var("APPSHOT_CYCLES")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(3)
}

fn drive(place: &Place, server: &Server<'_>) -> Result<()> {
    let scope = server.port.into_iter().fold(place.scope(), Scope::with_port);
    let before = HostState::take(&scope);
    let result = all_cycles(place, server, &scope).with_context(|| format!("its log: {:?}", place.log()));
    let left = judge_nothing_left(&scope, &before);
    result.and(left)
}

fn all_cycles(place: &Place, server: &Server<'_>, scope: &Scope) -> Result<()> {
    let mut app = place.run_with(server.options.clone())?;
    poll("the server to answer", PATIENCE, || {
        ensure!(app.try_exit()?.is_none(), "the server ended");
        Ok((server.state)(&app).ok())
    })?;
    (server.fill)(&app)?;
    if switched_on("APPSHOT_TEST_NO_SNAPSHOT") {
        return without_snapshot(server, app);
    }
    let descriptors = own_descriptors();
    for number in 0..cycles() {
        let shot = place.path(&format!("appshot-{number}"));
        app = one_cycle(place, server, scope, app, &shot).with_context(|| format!("cycle {number}"))?;
        std::fs::remove_dir_all(&shot).or_else(|_| std::fs::remove_file(&shot))?;
        let now = own_descriptors();
        ensure!(
            now <= descriptors,
            "the engine leaks descriptors: {descriptors} became {now}"
        );
    }
    leave_running(place, server, &app)?;
    app.end()
}

/// Proves that the server and its clients are right by themselves.
fn without_snapshot(server: &Server<'_>, app: App) -> Result<()> {
    let load = server.load()?;
    (server.use_it)(&app)?;
    load.map_or(Ok(()), Load::finish)?;
    settle(server)?;
    let state = (server.state)(&app)?;
    let state_now = (server.state)(&app)?;
    ensure!(state == state_now, "state was {state}, is {state_now}");
    (server.use_it)(&app)?;
    settle(server)?;
    app.end()?;
    // Without an init above them the workers end a moment after their master.
    let Some(port) = server.port else {
        return Ok(());
    };
    poll("the port to be closed", PATIENCE, || Ok(ensure_refused(port).ok()))
}

fn one_cycle(place: &Place, server: &Server<'_>, scope: &Scope, app: App, shot: &Path) -> Result<App> {
    (server.use_it)(&app)?;
    settle(server)?;
    let state = (server.state)(&app)?;
    settle(server)?;
    let processes = tree(app.top()).len();
    app.freeze(shot).context("snapshot")?;
    app.wait_gone()?;
    judge_nothing_left(scope, &HostState::default()).context("after the snapshot")?;
    if let Some(port) = server.port {
        ensure_refused(port)?;
    }
    let app = place.restore(shot).context("restore")?;
    let processes_now = tree(app.top()).len();
    ensure!(
        !server.steady || processes_now == processes,
        "{processes} processes became {processes_now}"
    );
    let state_now = (server.state)(&app).context("first use after the restore")?;
    ensure!(state == state_now, "state was {state}, is {state_now}");
    (server.use_it)(&app).context("use after the restore")?;
    Ok(app)
}

/// Waits until the server has closed what its clients have closed.
fn settle(server: &Server<'_>) -> Result<()> {
    let Some(port) = server.port else {
        return Ok(());
    };
    poll("connections to close", PATIENCE, || {
        Ok((open_connections(port) == 0).then_some(()))
    })
}

/// The original runs on, under load: no request fails, nothing is changed.
fn leave_running(place: &Place, server: &Server<'_>, app: &App) -> Result<()> {
    let shot = place.path("appshot-running");
    let load = server.load()?;
    let before = Fingerprint::take(app.top());
    let options = SnapshotOptions {
        leave_running: true,
        tcp: if load.is_some() {
            TcpPolicy::Close
        } else {
            TcpPolicy::Refuse
        },
        ..SnapshotOptions::default()
    };
    let taken = app
        .snapshot(&shot, &options)
        .context("snapshot that leaves the app running");
    let untouched = judge_untouched(&before, &Fingerprint::take(app.top()), Changes::ALL);
    let served = load.map_or(Ok(()), Load::finish);
    taken?;
    untouched?;
    served?;
    (server.use_it)(app).context("use of the original after its snapshot")
}

/// Requests without pause, from before the snapshot to after it.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicUsize>,
    thread: JoinHandle<Result<()>>,
}

impl Load {
    /// Returns when the first request has been answered.
    fn start(port: u16, request: fn(u16) -> Result<()>) -> Result<Load> {
        let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (asked, count) = (Arc::clone(&stop), Arc::clone(&served));
        let thread = std::thread::spawn(move || {
            while !asked.load(Ordering::SeqCst) {
                request(port).context("request under load")?;
                count.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let load = Load { stop, served, thread };
        load.wait_for_another()?;
        Ok(load)
    }

    /// Until one more request has been answered, or one has failed.
    fn wait_for_another(&self) -> Result<()> {
        let start = self.served.load(Ordering::SeqCst);
        poll("requests to be served", PATIENCE, || {
            let more = self.served.load(Ordering::SeqCst) > start;
            Ok((more || self.thread.is_finished()).then_some(()))
        })
    }

    /// After further requests: did any fail?
    fn finish(self) -> Result<()> {
        let served = self.wait_for_another();
        self.stop.store(true, Ordering::SeqCst);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the load panicked"))?
            .and(served)
    }
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|&word| word.to_owned()).collect()
}

fn options(command: &[&str]) -> RunOptions {
    RunOptions {
        command: words(command),
        ..RunOptions::default()
    }
}

fn path_text(path: &Path) -> String {
    path.display().to_string()
}

fn servers() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("servers")
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {error}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

// ------------------------------------------------------------------------ redis

#[test]
fn redis_server() {
    scenario("redis_server", |place| {
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
                state: &|_| {
                    let size = redis(port, &["DBSIZE"])?;
                    Ok(format!("{size} {}", redis(port, &["DEBUG", "DIGEST"])?))
                },
                use_it: &|_| {
                    let count: u64 = redis(port, &["INCR", "counter"])?.parse()?;
                    redis(port, &["SET", &format!("fresh-{count}"), "value", "EX", "10000"])?;
                    let value = redis(port, &["GET", "key:99999"])?;
                    ensure!(value.starts_with("value:99999"), "key:99999 is {value}");
                    Ok(())
                },
                steady: true,
                request: Some(|port| redis(port, &["INCR", "load"]).map(drop)),
            },
        )
    });
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
             http {{\n access_log {dir}/access.log;\n\
             client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy;\n\
             fastcgi_temp_path {dir}/fastcgi; uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n\
             server {{ listen 127.0.0.1:{port}; root {dir}/html;\n\
             location = /status {{ stub_status; }} }} }}\n"
        ),
    )?;
    Ok(file)
}

#[test]
fn nginx() {
    scenario("nginx", |place| {
        let program = need_program(&["nginx", "/usr/sbin/nginx"])?;
        let port = free_port()?;
        let file = path_text(&nginx_configuration(place, port)?);
        drive(
            place,
            &Server {
                options: options(&[&path_text(&program), "-c", &file, "-e", "stderr"]),
                port: Some(port),
                fill: &|app| {
                    let processes = tree(app.top()).len();
                    ensure!(processes >= 3, "master and two workers, but {processes} processes");
                    Ok(())
                },
                state: &|_| http_get(port, "/index.html"),
                use_it: &|_| {
                    // Counters in memory that the workers share.
                    let (first, second) = (nginx_requests(port)?, nginx_requests(port)?);
                    ensure!(second > first && first > 1, "requests: {first}, then {second}");
                    Ok(())
                },
                steady: true,
                request: Some(|port| http_get(port, "/index.html").map(drop)),
            },
        )
    });
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
fn counter(place: &Place, command: &[&str], port: u16) -> Result<()> {
    drive(
        place,
        &Server {
            options: options(command),
            port: Some(port),
            fill: &|_| (0..50).try_for_each(|_| http_get(port, "/add").map(drop)),
            state: &|_| http_get(port, "/"),
            use_it: &|_| {
                http_get(port, "/add")?;
                let ticks = || -> Result<u64> { Ok(http_get(port, "/ticks")?.parse()?) };
                let first = ticks()?;
                poll("the timer to tick", Duration::from_secs(20), || {
                    Ok((ticks()? > first).then_some(()))
                })
            },
            steady: true,
            request: Some(|port| http_get(port, "/add").map(drop)),
        },
    )
}

#[test]
fn node() {
    scenario("node", |place| {
        let program = path_text(&need_program(&["node", "nodejs"])?);
        let port = free_port()?;
        let script = path_text(&servers().join("counter.js"));
        counter(place, &[&program, &script, &port.to_string()], port)
    });
}

#[test]
fn go() {
    scenario("go", |place| {
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
        counter(place, &[&binary, &port.to_string()], port)
    });
}

#[test]
fn java() {
    scenario("java", |place| {
        let (compiler, machine) = (need_program(&["javac"])?, need_program(&["java"])?);
        let dir = path_text(place.dir());
        run(Command::new(compiler)
            .args(["-d", &dir])
            .arg(servers().join("Counter.java")))?;
        let port = free_port()?;
        counter(
            place,
            &[&path_text(&machine), "-cp", &dir, "Counter", &port.to_string()],
            port,
        )
    });
}

#[test]
fn python_http_server() {
    scenario("python_http_server", |place| {
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
                state: &|_| Ok(format!("{} {}", http_get(port, "/")?, http_get(port, "/file")?)),
                use_it: &|_| {
                    let name = format!("made-{}", std::fs::read_dir(&html)?.count());
                    std::fs::write(html.join(&name), "")?;
                    let listing = http_get(port, "/")?;
                    ensure!(listing.contains(&name), "{name} is not in {listing}");
                    Ok(())
                },
                steady: true,
                request: Some(|port| http_get(port, "/file").map(drop)),
            },
        )
    });
}

// ------------------------------------------------------------------- PostgreSQL

const PG: &str = "/usr/lib/postgresql/15/bin";

/// A cluster in the place's directory, owned by the user postgres.
struct Postgres {
    port: u16,
    uid: u32,
    gid: u32,
    data: PathBuf,
}

impl Postgres {
    fn make(place: &Place) -> Result<Postgres> {
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

    fn tool(&self, name: &str) -> Command {
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

    fn options(&self, place: &Place) -> RunOptions {
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

    fn ask(&self, sql: &str) -> Result<String> {
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

    fn wait_for(&self) -> Result<()> {
        poll("PostgreSQL to answer", PATIENCE, || Ok(self.ask("select 1").ok())).map(drop)
    }
}

#[test]
fn postgresql() {
    scenario("postgresql", |place| {
        let postgres = Postgres::make(place)?;
        drive(
            place,
            &Server {
                options: postgres.options(place),
                port: Some(postgres.port),
                fill: &|_| run(postgres.tool("pgbench").args(["-i", "-s", "2", "-q"])).map(drop),
                state: &|_| postgres.state(),
                use_it: &|_| {
                    let done = run(postgres.tool("pgbench").args(["-c", "2", "-t", "50", "-n"]))?;
                    ensure!(done.contains("100/100"), "pgbench: {done}");
                    Ok(())
                },
                steady: false,
                request: None,
            },
        )
    });
}

/// A session with an open transaction, from outside the app, is refused by name;
/// with `--tcp=close` it is gone after restore and so are its changes.
#[test]
fn postgresql_open_transaction() {
    scenario("postgresql_open_transaction", |place| {
        let postgres = Postgres::make(place)?;
        let scope = place.scope().with_port(postgres.port);
        let before = HostState::take(&scope);
        let app = place.run_with(postgres.options(place))?;
        let result = open_transaction(place, &postgres, app);
        result.and(judge_nothing_left(&scope, &before))
    });
}

fn open_transaction(place: &Place, postgres: &Postgres, app: App) -> Result<()> {
    postgres.wait_for()?;
    postgres.ask("create table t (x int); insert into t values (1)")?;
    let mut psql = postgres
        .tool("psql")
        .args(["-XAtq"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut session = psql.stdin.take().context("psql has no stdin")?;
    session.write_all(b"begin; update t set x = 2;\n")?;
    poll("the transaction to be open", PATIENCE, || {
        let open = "select count(*) from pg_stat_activity where state = 'idle in transaction'";
        Ok((postgres.ask(open)? == "1").then_some(()))
    })?;
    let result = refuse_then_close(place, postgres, app);
    drop(session);
    psql.wait()?;
    result
}

fn refuse_then_close(place: &Place, postgres: &Postgres, app: App) -> Result<()> {
    if switched_on("APPSHOT_TEST_NO_SNAPSHOT") {
        return app.end();
    }
    let shot = place.path("appshot");
    let before = Fingerprint::take(app.top());
    let error = app
        .freeze(&shot)
        .err()
        .context("a snapshot with an open session succeeded")?;
    let refusal = error.downcast_ref::<Error>().context("another error")?;
    ensure!(refusal.kind == Kind::Refused, "expected a refusal, got {refusal}");
    let port = postgres.port.to_string();
    ensure!(
        refusal
            .refusals
            .iter()
            .any(|r| r.object.contains(&port) || r.reason.contains(&port)),
        "the refusal does not name the connection on port {port}: {refusal}"
    );
    ensure!(!shot.exists(), "a refused snapshot left {}", shot.display());
    judge_untouched(&before, &Fingerprint::take(app.top()), Changes::ALL)?;
    let close = SnapshotOptions {
        tcp: TcpPolicy::Close,
        ..SnapshotOptions::default()
    };
    app.snapshot(&shot, &close).context("snapshot with tcp=close")?;
    app.wait_gone()?;
    let app = place.restore(&shot).context("restore")?;
    postgres.wait_for()?;
    ensure!(
        postgres.ask("select x from t")? == "1",
        "an uncommitted change became visible"
    );
    // The lock of the severed session has to go, or this would wait for ever.
    postgres.ask("set statement_timeout = '20s'; update t set x = 3")?;
    app.end()
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

#[test]
fn bash_pipeline() {
    scenario("bash_pipeline", |place| {
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
                state: &|_| numbers_in_order(&file).map(|_| "in order".to_owned()),
                use_it: &|_| {
                    let start = numbers_in_order(&file)?;
                    poll("numbers to come through the pipes", PATIENCE, || {
                        Ok((numbers_in_order(&file)? > start + 3).then_some(()))
                    })
                },
                steady: false,
                request: None,
            },
        )
    });
}

#[test]
fn tree_of_100_processes() {
    scenario("tree_of_100_processes", |place| {
        let shell = path_text(&need_program(&["bash"])?);
        let script = path_text(&servers().join("tree.sh"));
        drive(
            place,
            &Server {
                options: options(&[&shell, &script, &path_text(place.dir())]),
                port: None,
                fill: &|app| {
                    let count = tree(app.top()).len();
                    ensure!(count >= 100, "{count} processes");
                    Ok(())
                },
                state: &|_| everyone_speaks(place),
                // Each has to say again that it lives, under the number it had.
                use_it: &|_| {
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
                request: None,
            },
        )
    });
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
fn type_and_see(place: &Place, line: &str, answer: &str) -> Result<()> {
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
#[test]
fn shell_on_a_terminal() {
    scenario("shell_on_a_terminal", |place| {
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
                state: &|_| {
                    ask("echo \"st\"ate=$secret:$(tty):$(jobs -r | wc -l):", "state=")?;
                    let screen = std::fs::read(place.path("screen"))?;
                    let screen = String::from_utf8_lossy(&screen);
                    let told = screen.rsplit("state=").next().unwrap_or_default();
                    Ok(told.lines().next().unwrap_or_default().to_owned())
                },
                use_it: &|_| {
                    // Told by what ^C is to end: the shell's own child may still ignore it.
                    ask("sh -c 'echo st\"\"arted; exec sleep 500'", "started")?;
                    ask("\u{3}echo go''es on", "goes on")
                },
                steady: false,
                request: None,
            },
        )
    });
}
