//! A node over a long time, under real clients, with printed counts. What takes minutes is
//! left out unless it is asked for:
//!
//! ```sh
//! cargo test --release -p appshot-tests --test node -- --include-ignored --nocapture --test-threads=1
//! ```
//!
//! `APPSHOT_NODE_CYCLES` (1000), `_BURSTS` (20), `_CLIENTS` (1000), `_SWEEP` (400), `_APPS`
//! (200), `_SLEEPING` (1000), `_USERS` (500) and `_KILLS` (200) say how much each does; the trials of
//! every day do little.

use anyhow::{Context, Result, ensure};
use appshot_tests::clients::free_port;
use appshot_tests::node::{Node, python};
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, Random, poll};
use nodekit::local::{http_get, redis};
use serde_json::Value;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How much is done: what the environment says, all of it otherwise.
fn many(name: &str, all: usize) -> usize {
    let told = std::env::var(format!("APPSHOT_NODE_{name}")).ok();
    told.and_then(|told| told.parse().ok()).unwrap_or(all)
}

const IDLE: &str = "[idle]\ntimeout = \"1s\"\ncpu = 60.0\n";

/// How long each of many answers took.
#[derive(Debug, Default)]
struct Took(Vec<Duration>);

impl Took {
    fn ask<T>(&mut self, ask: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let answer = ask()?;
        self.0.push(began.elapsed());
        Ok(answer)
    }

    /// `median 3.1 ms, p99 20.4 ms, longest 31.0 ms`
    fn told(mut self) -> String {
        self.0.sort_unstable();
        let at = |share: f64| {
            #[allow(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss
            )]
            let at = (share * (self.0.len().max(1) - 1) as f64) as usize;
            self.0.get(at).map_or(0.0, |took| took.as_secs_f64() * 1000.0)
        };
        format!(
            "median {:.1} ms, p99 {:.1} ms, longest {:.1} ms",
            at(0.5),
            at(0.99),
            at(1.0)
        )
    }
}

/// Counts what it is asked, one connection a request.
const COUNTER: &str = r#"
import http.server, sys
count = 0
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global count
        count += 1
        told = b"%d" % count
        self.send_response(200); self.send_header("content-length", str(len(told))); self.end_headers()
        self.wfile.write(told)
    def log_message(self, *_): pass
class Server(http.server.HTTPServer):
    request_queue_size = 4096
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

fn count(port: u16) -> Result<u64> {
    let answer = http_get(port, "/")?;
    let told = answer.rsplit("\r\n").next().unwrap_or_default();
    told.trim().parse().with_context(|| format!("no count: {answer:?}"))
}

/// A server that keeps a count, and a client that asks for it.
struct Server {
    name: &'static str,
    manifest: String,
    port: u16,
    ask: fn(u16) -> Result<u64>,
}

fn servers(directory: &str) -> Result<Vec<Server>> {
    let ports = [free_port()?, free_port()?, free_port()?, free_port()?];
    let listen = |port: u16| format!("[[listen]]\ntcp = \"127.0.0.1:{port}\"\n{IDLE}");
    let script = format!("{directory}/count.js");
    std::fs::write(
        &script,
        "let count = 0; require('http').createServer((_, to) => to.end(String(++count)))\
         .listen({ port: Number(process.argv[2]), host: '127.0.0.1', backlog: 4096 });",
    )?;
    let conf = format!("{directory}/nginx.conf");
    std::fs::write(
        &conf,
        format!(
            "daemon off; worker_processes 1; pid {directory}/nginx.pid; error_log stderr;\n\
             events {{ worker_connections 2048; }}\n\
             http {{ access_log off; client_body_temp_path {directory}; proxy_temp_path {directory}; \
             fastcgi_temp_path {directory}; uwsgi_temp_path {directory}; scgi_temp_path {directory};\n\
             server {{ listen 127.0.0.1:{} backlog=4096; keepalive_timeout 0; return 200 '$connection'; }} }}",
            ports[2]
        ),
    )?;
    Ok(vec![
        Server {
            name: "python",
            manifest: python(COUNTER, ports[0], IDLE),
            port: ports[0],
            ask: count,
        },
        Server {
            name: "node",
            manifest: format!(
                "[start]\ncommand = [\"node\", {script:?}, \"{}\"]\n{}",
                ports[1],
                listen(ports[1])
            ),
            port: ports[1],
            ask: count,
        },
        Server {
            name: "nginx",
            manifest: format!("[start]\ncommand = [\"nginx\", \"-c\", {conf:?}]\n{}", listen(ports[2])),
            port: ports[2],
            ask: count,
        },
        Server {
            name: "redis",
            manifest: format!(
                "[start]\ncommand = [\"redis-server\", \"--port\", \"{}\", \"--save\", \"\"]\n{}",
                ports[3],
                listen(ports[3])
            ),
            port: ports[3],
            ask: |port| {
                let answer = redis(port, &["INCR", "count"])?;
                let digits: String = answer.chars().filter(char::is_ascii_digit).collect();
                digits.parse().with_context(|| format!("no count: {answer:?}"))
            },
        },
    ])
}

/// Each server sleeps and wakes so often, under a client that asks again as soon as it
/// sleeps: each request is answered, and the count goes on. All of them at once.
fn cycles(name: &'static str, each: usize) {
    in_place(name, move |place| {
        let node = Node::new(place, &[])?;
        let servers = servers(&place.path("").display().to_string())?;
        std::thread::scope(|scope| {
            let all: Vec<_> = servers
                .iter()
                .map(|server| {
                    let (node, app) = (&node, format!("{}-{}", place.unique(), server.name));
                    scope.spawn(move || cycles_of(node, &app, server, each))
                })
                .collect();
            all.into_iter()
                .try_for_each(|one| one.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
        })?;
        node.end()
    });
}

fn cycles_of(node: &Node, app: &str, server: &Server, each: usize) -> Result<()> {
    let name = server.name;
    node.deploy(app, &server.manifest)?;
    let (mut last, mut took) = ((server.ask)(server.port)?, Took::default());
    for cycle in 0..each {
        node.reach(app, "asleep")?;
        let now = took
            .ask(|| (server.ask)(server.port))
            .with_context(|| format!("{name}: cycle {cycle}"))?;
        ensure!(now > last, "{name}: cycle {cycle}: {now} came after {last}");
        last = now;
    }
    let status = node.status(app)?;
    println!(
        "{name}: {each} cycles, 0 failed; {}; counts {}",
        took.told(),
        status["counts"]
    );
    ensure!(status["counts"]["failures"] == 0, "{status}");
    Ok(())
}

#[test]
fn some_cycles() {
    cycles("some_cycles", 2);
}

#[test]
#[ignore = "takes half an hour"]
fn a_thousand_cycles() {
    cycles("a_thousand_cycles", many("CYCLES", 1000));
}

/// So many clients come at the same moment to one that sleeps: all are answered, by one
/// restore.
fn bursts(name: &'static str, clients: usize, rounds: usize) {
    in_place(name, move |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        node.deploy(app, &python(COUNTER, port, IDLE))?;
        let mut last = count(port)?;
        let mut took = Took::default();
        for round in 0..rounds {
            node.reach(app, "asleep")?;
            let wakes = node.count(app, "wakes")?;
            // Few threads, many clients: all ask before any of them listens.
            let began = Instant::now();
            let ask = |_| -> Result<TcpStream> {
                let mut stream = TcpStream::connect(("127.0.0.1", port))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                Ok(stream)
            };
            let asked: Vec<TcpStream> = (0..clients).map(ask).collect::<Result<_>>()?;
            for (client, mut stream) in asked.into_iter().enumerate() {
                let mut answer = String::new();
                let read = stream.read_to_string(&mut answer);
                read.with_context(|| format!("round {round}, client {client}"))?;
                ensure!(answer.contains(" 200 "), "round {round}, client {client}: {answer:?}");
                took.0.push(began.elapsed());
            }
            let now = count(port)?;
            let expected = last + u64::try_from(clients)? + 1;
            ensure!(now == expected, "round {round}: {now}, not {expected}");
            last = now;
            let woken = node.count(app, "wakes")?;
            ensure!(woken == wakes + 1, "round {round}: woken {} times", woken - wakes);
        }
        println!(
            "{clients} at once, {rounds} times: 0 lost, {rounds} restores; {}",
            took.told()
        );
        node.end()
    });
}

#[test]
fn some_bursts() {
    bursts("some_bursts", 200, 2);
}

#[test]
#[ignore = "takes minutes"]
fn bursts_of_a_thousand() {
    bursts("bursts_of_a_thousand", many("CLIENTS", 1000), many("BURSTS", 20));
}

/// Requests at all moments of falling asleep: each comes a little later after it was seen
/// to begin than the one before.
fn sweep(name: &'static str, requests: usize) {
    in_place(name, move |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        node.deploy(app, &python(COUNTER, port, IDLE))?;
        let (mut last, mut took) = (count(port)?, Took::default());
        let (mut went_on, began) = (0, node.count(app, "wakes")?);
        for request in 0..requests {
            let wakes = node.count(app, "wakes")?;
            let falling = || -> Result<bool> {
                let state = node.status(app)?["state"].clone();
                Ok(state == "falling-asleep" || state == "asleep")
            };
            let late = Instant::now() + PATIENCE;
            while !falling()? {
                ensure!(Instant::now() < late, "request {request}: {}", node.status(app)?);
                std::thread::sleep(Duration::from_micros(500));
            }
            // Over some 120 ms: a snapshot of it takes half of that.
            std::thread::sleep(Duration::from_micros(u64::try_from(request * 120_000 / requests)?));
            let now = took.ask(|| count(port)).with_context(|| format!("request {request}"))?;
            ensure!(now == last + 1, "request {request}: {now} came after {last}");
            last = now;
            went_on += usize::from(node.count(app, "wakes")? == wakes);
        }
        let woken = poll("wakes to be told", PATIENCE, || {
            Ok(Some(node.count(app, "wakes")? - began))
        })?;
        println!(
            "{requests} requests while it fell asleep: 0 lost; woken {woken} times, seen to go on {went_on} times; {}",
            took.told()
        );
        node.end()
    });
}

#[test]
fn some_of_the_sweep() {
    sweep("some_of_the_sweep", 8);
}

#[test]
#[ignore = "takes minutes"]
fn the_sweep() {
    sweep("the_sweep", many("SWEEP", 400));
}

/// Many apps, of which only some fit in memory at once, asked as a Zipf distribution has it.
fn crowd(name: &'static str, apps: usize, fit: usize, requests: usize) {
    in_place(name, move |place| {
        // One python has some 9 MiB, and 16 MiB is what one has that nobody knows.
        let memory = format!("{}M", 10 * fit + 8);
        let node = Node::new(place, &["--memory", &memory])?;
        let mut ports = Vec::new();
        for number in 0..apps {
            let port = free_port()?;
            let rules = "[idle]\ntimeout = \"20s\"\ncpu = 60.0\n";
            node.deploy(&format!("{}-{number}", place.unique()), &python(COUNTER, port, rules))?;
            ports.push(port);
        }
        let killed = oom_kills();
        let (next, took) = (AtomicUsize::new(0), Mutex::new(Took::default()));
        // The harmonic numbers, to choose by; a small generator of our own repeats itself.
        #[allow(clippy::cast_precision_loss)]
        let weights: Vec<f64> = (1..=apps).map(|rank| 1.0 / rank as f64).collect();
        let all: f64 = weights.iter().sum();
        let choose = |request: usize| {
            let mut state = (request as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            #[allow(clippy::cast_precision_loss)]
            let mut left = (state >> 11) as f64 / (1u64 << 53) as f64 * all;
            weights
                .iter()
                .position(|weight| {
                    left -= weight;
                    left < 0.0
                })
                .unwrap_or(0)
        };
        let client = || -> Result<()> {
            loop {
                let request = next.fetch_add(1, Ordering::Relaxed);
                if request >= requests {
                    return Ok(());
                }
                let app = choose(request);
                let began = Instant::now();
                count(ports[app]).with_context(|| format!("request {request}, to app {app}"))?;
                took.lock().expect("nobody panics").0.push(began.elapsed());
            }
        };
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4).map(|_| scope.spawn(client)).collect();
            clients
                .into_iter()
                .try_for_each(|one| one.join().expect("it does not panic"))
        })?;
        let statuses: Vec<Value> = node.client().get("/v1/apps")?;
        let sum = |what: &str| -> u64 { statuses.iter().filter_map(|one| one["counts"][what].as_u64()).sum() };
        println!(
            "{apps} apps, {memory} for all, {requests} requests: 0 failed, {} killed for memory; {} wakes, {} failures; {}",
            oom_kills() - killed,
            sum("wakes"),
            sum("failures"),
            took.into_inner()?.told()
        );
        ensure!(sum("failures") == 0, "failures");
        ensure!(oom_kills() == killed, "somebody was killed for memory");
        node.end()
    });
}

fn oom_kills() -> u64 {
    let text = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    line.and_then(|count| count.parse().ok()).unwrap_or(0)
}

#[test]
fn a_small_crowd() {
    crowd("a_small_crowd", 8, 2, 60);
}

#[test]
#[ignore = "takes minutes"]
fn a_crowd() {
    let apps = many("APPS", 200);
    crowd("a_crowd", apps, apps.div_ceil(10), 10 * apps);
}

/// Users come and go: instances follow them, and none is left.
fn ramp(name: &'static str, users: usize, step: Duration) {
    const SLOW: &str = r#"
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=4096)
while True:
    peer, _ = server.accept()
    with peer:
        peer.recv(100); time.sleep(0.01); peer.sendall(b"done")
"#;
    in_place(name, move |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let rules = "[idle]\ntimeout = \"2s\"\ncpu = 60.0\n[instances]\nmax = 12\n[capacity]\nconnections = 8\n";
        node.deploy(app, &python(SLOW, port, rules))?;
        let (wanted, over) = (AtomicUsize::new(1), AtomicBool::new(false));
        let took = Mutex::new(Took::default());
        let user = |number: usize| -> Result<()> {
            while !over.load(Ordering::Relaxed) {
                if number >= wanted.load(Ordering::Relaxed) {
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
                let began = Instant::now();
                let mut stream = TcpStream::connect(("127.0.0.1", port))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                stream.write_all(b"?")?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                ensure!(answer == "done", "{answer:?}");
                let _ = stream.shutdown(Shutdown::Both);
                took.lock().expect("nobody panics").0.push(began.elapsed());
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(())
        };
        let mut most = 0;
        std::thread::scope(|scope| -> Result<()> {
            let all: Vec<_> = (0..users)
                .map(|number| {
                    scope.spawn({
                        let user = &user;
                        move || user(number)
                    })
                })
                .collect();
            let way = [1, users / 10, users / 2, users, users / 2, users / 10, 1];
            let mut gone = Ok(());
            for now in way {
                wanted.store(now.max(1), Ordering::Relaxed);
                std::thread::sleep(step);
                let status = node.status(app)?;
                let running = status["instances"].as_array().map_or(0, Vec::len);
                most = most.max(running);
                println!("{now} users: {running} instances");
            }
            let one = poll("one instance for one user", PATIENCE, || {
                let status = node.status(app)?;
                Ok((status["instances"].as_array().map_or(0, Vec::len) == 1).then_some(()))
            });
            over.store(true, Ordering::Relaxed);
            for one in all {
                gone = gone.and(one.join().expect("it does not panic"));
            }
            gone.and(one).with_context(|| format!("{:?}", node.why(app)))
        })?;
        ensure!(most > 1, "there was one instance only");
        node.reach(app, "asleep")?;
        let status = node.status(app)?;
        println!(
            "1 to {users} users and back: 0 failed, {most} instances at most, none left; {}",
            took.into_inner()?.told()
        );
        ensure!(status["counts"]["failures"] == 0, "{status}");
        node.end()
    });
}

#[test]
fn a_small_ramp() {
    ramp("a_small_ramp", 40, Duration::from_millis(1500));
}

#[test]
#[ignore = "takes minutes"]
fn a_ramp() {
    ramp("a_ramp", many("USERS", 500), Duration::from_secs(10));
}

/// What so many sleeping apps take of the memory of the daemons.
fn sleeping(name: &'static str, apps: usize) {
    in_place(name, move |place| {
        let node = Node::new(place, &[])?;
        let pids = [node.edgepointd.pid(), node.restored.pid(), node.snapd.pid()];
        // What they have themselves, without pages of files.
        let memory = || -> Result<u64> {
            pids.iter()
                .map(|pid| {
                    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
                    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss_Anon:"));
                    Ok(line
                        .context("no Pss_Anon")?
                        .trim()
                        .trim_end_matches(" kB")
                        .trim()
                        .parse::<u64>()?)
                })
                .sum()
        };
        // The first ones have caches filled and instances parked.
        let (first, mut before) = (apps.min(40), 0);
        for number in 0..apps + first {
            let app = format!("{}-{number}", place.unique());
            let manifest = format!(
                "[start]\ncommand = [\"/usr/bin/python3\", \"-S\", \"-c\", \
                 \"import socket; s = socket.create_server((\'127.0.0.1\', {0})); s.accept()\"]\n\
                 [[listen]]\ntcp = \"127.0.0.1:{0}\"\n{IDLE}",
                free_port()?
            );
            node.deploy(&app, &manifest)?;
            let _: Value = node
                .client()
                .post(&format!("/v1/apps/{app}/suspend"), &serde_json::json!({}))?;
            let _: Value = node
                .client()
                .post(&format!("/v1/apps/{app}/resume"), &serde_json::json!({}))?;
            if number + 1 == first {
                std::thread::sleep(Duration::from_secs(3));
                before = memory()?;
            }
        }
        std::thread::sleep(Duration::from_secs(3));
        let more = memory()?.saturating_sub(before);
        let each = more / apps as u64;
        println!("{apps} more apps that sleep: {more} KiB in the daemons, {each} KiB each");
        ensure!(each < 100 || apps < 100, "{each} KiB each");
        node.end()
    });
}

#[test]
fn some_that_sleep() {
    sleeping("some_that_sleep", 5);
}

#[test]
#[ignore = "takes minutes"]
fn a_thousand_that_sleep() {
    sleeping("a_thousand_that_sleep", many("SLEEPING", 1000));
}

/// Processes that serve at this port: whose last argument it is.
fn servers_at(port: u16) -> usize {
    let last = format!("\0{port}\0");
    let all = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let commands = all.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    commands.filter(|command| command.ends_with(last.as_bytes())).count()
}

/// Daemons are killed at any moment, each alone and all at once, while clients ask an app that sleeps
/// in between: each request is answered, there is never a second instance, and in the end nothing
/// is left.
fn kills(name: &'static str, rounds: usize) {
    in_place(name, move |place| {
        let (mut node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        node.deploy(app, &python(COUNTER, port, IDLE))?;
        let (stopped, answers, back) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        let took = Mutex::new(Took::default());
        let done = std::thread::scope(|scope| -> Result<()> {
            let client = scope.spawn(|| -> Result<()> {
                let (mut random, mut last) = (Random(7), 0);
                while !stopped.load(Ordering::Relaxed) {
                    let mut one = Took::default();
                    let now = one
                        .ask(|| count(port))
                        .with_context(|| format!("after {answers:?} answers"))?;
                    took.lock().map(|mut all| all.0.extend(one.0)).ok();
                    answers.fetch_add(1, Ordering::Relaxed);
                    // It went on from its last appshot: it had ended with who brought its memory.
                    back.fetch_add(usize::from(now <= last), Ordering::Relaxed);
                    last = now;
                    std::thread::sleep(Duration::from_millis(random.below(2500)));
                }
                Ok(())
            });
            let mut random = Random(11);
            let killed = (0..rounds).try_for_each(|round| -> Result<()> {
                std::thread::sleep(Duration::from_millis(random.below(700)));
                ensure!(!client.is_finished(), "the client has given up");
                let which = random.below(4);
                let daemons = [&mut node.edgepointd, &mut node.restored, &mut node.snapd];
                for (at, daemon) in (0..).zip(daemons) {
                    if which == at || which == 3 {
                        daemon.child.kill()?;
                        daemon.child.wait()?;
                    }
                }
                std::thread::sleep(Duration::from_millis(random.below(200)));
                if which == 1 || which == 3 {
                    node.restored = node.registry.daemon("restored", "")?;
                }
                if which == 2 || which == 3 {
                    node.snapd = node.registry.daemon("snapd", "")?;
                }
                if which == 0 || which == 3 {
                    node.edgepointd = node.registry.daemon_with("edgepointd", &[], "")?;
                }
                poll("no second instance", PATIENCE, || {
                    Ok((servers_at(port) <= 1).then_some(()))
                })
                .with_context(|| format!("round {round}: {} of them", servers_at(port)))
            });
            stopped.store(true, Ordering::Relaxed);
            let asked = client.join().expect("it does not panic");
            killed.and(asked)
        });
        done.with_context(|| format!("{:?}", node.status(app)))?;
        let answers = answers.load(Ordering::Relaxed);
        println!(
            "{name}: {rounds} kills, {answers} answers, {back:?} from an earlier appshot; {}",
            took.into_inner().unwrap_or_default().told()
        );
        ensure!(answers > 0, "nobody asked");
        let appshot = node.registry.data.join(format!("appshots/{app}.appshot"));
        if appshot.exists() {
            libsnap::image::Appshot::open(&appshot).context("its appshot is not whole")?;
        }
        node.end()?;
        ensure!(servers_at(port) == 0, "it is left");
        Ok(())
    });
}

#[test]
fn some_kills() {
    kills("some_kills", many("KILLS", 12));
}

#[test]
#[ignore = "takes minutes"]
fn two_hundred_kills() {
    kills("two_hundred_kills", many("KILLS", 200));
}
