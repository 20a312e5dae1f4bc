//! What the resource manager decides, and why: when an app sleeps, what keeps it awake and
//! what wakes it though nobody comes.

use anyhow::{Context, Result, ensure};
use appshot_tests::clients::free_port;
use appshot_tests::node::{Node, python};
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, need_program, poll};
use libsnap::store::now_unix_ms;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

/// Answers each line on a connection that stays open. `work SECONDS` takes so long on the
/// processor, `wait SECONDS` without it; what else it is told it runs as a statement.
const TALK: &str = r#"
import os, socket, subprocess, sys, threading, time
kept = {}
def told(line):
    word, _, rest = line.partition(" ")
    if word == "wait":
        time.sleep(float(rest))
    elif word == "work":
        until = time.monotonic() + float(rest)
        while time.monotonic() < until: pass
    else:
        exec(line, globals())
    return "done"
def serve(peer):
    with peer, peer.makefile("rw") as lines:
        for line in lines:
            lines.write(told(line.strip()) + "\n"); lines.flush()
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
"#;

fn open(port: u16) -> Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Says a line and hears the answer.
fn say(stream: &mut TcpStream, line: &str) -> Result<()> {
    stream.write_all(format!("{line}\n").as_bytes())?;
    hear(stream)
}

fn hear(stream: &mut TcpStream) -> Result<()> {
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).context("no answer")?;
    ensure!(&answer == b"done\n", "{answer:?}");
    Ok(())
}

/// The same over a connection of its own.
fn tell(port: u16, line: &str) -> Result<()> {
    say(&mut open(port)?, line)
}

/// Each condition is told with what was decided by, by the daemon and by the command.
#[test]
fn why_it_is_awake() {
    in_place("why_it_is_awake", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let rules = "[idle]\ntimeout = \"1s\"\ncpu = 20.0\n[instances]\nmax = 3\n[capacity]\nconnections = 1\n";
        node.deploy(app, &python(TALK, port, rules))?;
        let mut first = open(port)?;
        say(&mut first, "wait 0")?;
        let open_one = node.holds(app, "connections", false)?;
        ensure!(
            (open_one["value"].as_f64(), open_one["limit"].as_f64()) == (Some(1.0), Some(0.0)),
            "{open_one}"
        );
        let more = [open(port)?, open(port)?];
        poll("three to be needed", PATIENCE, || {
            let instances = node.why(app)?["instances"].clone();
            let carried = instances["carried"][0].clone();
            ensure!(carried["name"] == "connections", "{carried}");
            let all = (&instances["count"], &instances["least"], &carried["value"]);
            Ok((all.0 == 3 && all.1 == 3 && all.2.as_f64() > Some(2.5)).then_some(()))
        })
        .with_context(|| format!("{:?}", node.why(app)))?;
        let told = node.registry.appshot(&["status", "--why", app])?;
        ensure!(told.contains("3 instances; 3 to 3 are needed"), "{told}");
        drop((first, more));
        node.holds(app, "connections", true)?;
        node.reach(app, "asleep")?;
        // It is asleep before its timers have been read.
        poll("wakers to be told", PATIENCE, || {
            let told = node.registry.appshot(&["status", "--why", app])?;
            let waker = "woken by request: who connects to 127.0.0.1";
            Ok(told.contains(waker).then_some(()))
        })?;
        // Work of its own, told as a share of a processor.
        tell(port, "threading.Thread(target=told, args=('work 3',)).start()")?;
        let work = node.holds(app, "work", false)?;
        let (value, since) = (work["value"].as_f64(), work["since_unix_ms"].as_u64());
        ensure!(value > Some(20.0) && work["limit"].as_f64() == Some(20.0), "{work}");
        let told = node.registry.appshot(&["status", "--why", app])?;
        ensure!(
            told.lines()
                .any(|line| line.starts_with("work ") && line.contains(" no ")),
            "{told}"
        );
        let over = node.holds(app, "work", true)?;
        ensure!(over["since_unix_ms"].as_u64() > since, "{over}");
        let asleep = node.reach(app, "asleep")?;
        let why = node.why(app)?;
        ensure!(why["since_unix_ms"] == asleep["since_unix_ms"], "{why}");
        ensure!(
            why["conditions"]
                .as_array()
                .is_some_and(|all| all.iter().all(|one| one["holds"] == true)),
            "{why}"
        );
        let unknown = node.registry.appshot(&["status", "--why", "nobody"]);
        ensure!(unknown.is_err(), "{unknown:?}");
        node.end()
    });
}

/// Files keep it awake: one by the life of a process, others as long as they are renewed.
#[test]
fn it_holds_itself_awake() {
    in_place("it_holds_itself_awake", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        node.deploy(
            app,
            &python(TALK, port, "[idle]\ntimeout = \"1s\"\ncpu = 50.0\nhold = \"3s\"\n"),
        )?;
        let held = |names: &[&str]| -> Result<Value> {
            poll("it to be held", PATIENCE, || {
                let holds = node.condition(app, "holds")?;
                let by: Vec<&str> = holds["detail"]
                    .as_str()
                    .map_or_else(Vec::new, |by| by.split(", ").collect());
                Ok((by == names).then_some(holds))
            })
            .with_context(|| format!("{:?}", node.why(app)))
        };
        tell(port, "kept['job'] = subprocess.Popen(['/bin/sleep', '4'])")?;
        tell(
            port,
            "open('/run/appshot-instance/awake/job', 'w').write(str(kept['job'].pid))",
        )?;
        tell(port, "open('/run/appshot-instance/awake/lease', 'w')")?;
        tell(port, "open('/run/appshot-instance/awake/.hidden', 'w')")?;
        tell(port, "os.mkdir('/run/appshot-instance/awake/directory')")?;
        tell(port, "open('/run/appshot-instance/awake/gone', 'w').write('1234567')")?;
        held(&["job", "lease"])?;
        // The lease is over, the job is not: it is no child of anybody who waits.
        held(&["job"])?;
        ensure!(node.status(app)?["state"] == "running", "{}", node.status(app)?);
        let began = Instant::now();
        node.reach(app, "asleep")?;
        ensure!(began.elapsed() > Duration::from_millis(900), "the job held it no more");
        // What it had is not there after a sleep.
        tell(port, "assert os.listdir('/run/appshot-instance/awake') == []")?;
        tell(
            port,
            "open('/run/appshot-instance/awake/by-hand', 'w').write(str(os.getpid()))",
        )?;
        held(&["by-hand"])?;
        tell(port, "os.remove('/run/appshot-instance/awake/by-hand')")?;
        node.reach(app, "asleep")?;
        node.end()
    });
}

/// Connections over which nothing is under way do not keep it awake, where it says so: they
/// are closed by its sleep. A request without an answer is never cut off.
#[test]
fn idle_connections_are_closed() {
    in_place("idle_connections_are_closed", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let backend = TcpListener::bind("127.0.0.1:0")?;
        let at = backend.local_addr()?.port();
        let rules = "[idle]\ntimeout = \"1s\"\ncpu = 50.0\nconnections = \"busy\"\nmade = \"busy\"\n";
        node.deploy(app, &python(TALK, port, rules))?;
        for round in 0..3 {
            let (mut idle, mut busy) = (open(port)?, open(port)?);
            say(&mut idle, "wait 0")?;
            // One that it has made, and that it has asked nothing over.
            say(
                &mut idle,
                &format!("kept['to'] = socket.create_connection(('127.0.0.1', {at}))"),
            )?;
            let (mut peer, _) = backend.accept()?;
            busy.write_all(b"wait 4\n")?;
            node.holds(app, "connections", false)?;
            let began = Instant::now();
            hear(&mut busy).with_context(|| format!("round {round}"))?;
            ensure!(
                began.elapsed() > Duration::from_secs(2),
                "round {round}: it did not wait"
            );
            node.reach(app, "asleep")?;
            for closed in [&mut idle, &mut busy, &mut peer] {
                closed.set_read_timeout(Some(PATIENCE))?;
                let end = closed.read(&mut [0; 1]);
                ensure!(!matches!(end, Ok(1..)), "round {round}: {end:?}");
            }
            tell(port, "wait 0")?;
        }
        // It has asked somebody, who does not answer: that keeps it awake until he does.
        tell(
            port,
            &format!("kept['to'] = socket.create_connection(('127.0.0.1', {at}))"),
        )?;
        let (mut peer, _) = backend.accept()?;
        tell(port, "kept['to'].sendall(b'?')")?;
        peer.read_exact(&mut [0; 1])?;
        let made = node.holds(app, "made-connections", false)?;
        ensure!(made["unit"] == "busy", "{made}");
        std::thread::sleep(Duration::from_secs(2));
        ensure!(node.status(app)?["state"] == "running", "{}", node.status(app)?);
        peer.write_all(b"!")?;
        tell(port, "kept['to'].recv(1)")?;
        node.reach(app, "asleep")?;
        node.end()
    });
}

/// By default each connection keeps it awake, whatever goes over it.
#[test]
fn open_connections_keep_it_awake() {
    in_place("open_connections_keep_it_awake", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let backend = TcpListener::bind("127.0.0.1:0")?;
        let at = backend.local_addr()?.port();
        node.deploy(app, &python(TALK, port, "[idle]\ntimeout = \"1s\"\ncpu = 50.0\n"))?;
        tell(
            port,
            &format!("kept['to'] = socket.create_connection(('127.0.0.1', {at}))"),
        )?;
        let peer = backend.accept()?;
        node.holds(app, "made-connections", false)?;
        ensure!(
            node.count(app, "sleeps_refused")? == 0,
            "it was tried: {}",
            node.status(app)?
        );
        tell(port, "kept['to'].close()")?;
        node.reach(app, "asleep")?;
        drop(peer);
        node.end()
    });
}

/// When it will be woken by this.
fn waker(node: &Node, app: &str, cause: &str) -> Result<u64> {
    poll(&format!("{cause} to be told"), PATIENCE, || {
        let why = node.why(app)?;
        let mut wakers = why["wakers"].as_array().context("no wakers")?.iter();
        let waker = wakers.find(|waker| waker["cause"] == cause);
        Ok(waker.and_then(|waker| waker["at_unix_ms"].as_u64()))
    })
}

/// What it arms, by all ways that there are; each notes the time of the day at which it ran.
const TIMERS: [(&str, &str); 6] = [
    (
        "sleep",
        "threading.Thread(target=lambda: (time.sleep(6), note())).start()",
    ),
    ("itimer", "signal.setitimer(signal.ITIMER_REAL, 6)"),
    (
        "select",
        "threading.Thread(target=lambda: (select.select([], [], [], 6), note())).start()",
    ),
    (
        "epoll",
        "kept['poll'] = select.epoll(); \
         threading.Thread(target=lambda: (kept['poll'].poll(6), note())).start()",
    ),
    // This one waits for another thread.
    ("all", "threading.Timer(6, note).start()"),
    (
        "timerfd",
        "libc = ctypes.CDLL(None); fd = libc.timerfd_create(1, 0); \
         libc.timerfd_settime(fd, 0, (ctypes.c_long * 4)(0, 0, 6, 0), None); \
         threading.Thread(target=lambda: (os.read(fd, 8), note())).start()",
    ),
];

/// It is woken just before one of its timers is due, and runs when it is.
#[test]
fn its_timers_wake_it() {
    in_place("its_timers_wake_it", |place| {
        let node = Node::new(place, &[])?;
        let file = |name: &str| place.path(&format!("{name}.ran"));
        let apps: Vec<(String, u16, &str, &str)> = TIMERS
            .iter()
            .map(|(name, arm)| Ok((format!("{}-{name}", place.unique()), free_port()?, *name, *arm)))
            .collect::<Result<_>>()?;
        let deploy = |app: &str, port: u16, name: &str, rules: &str| {
            let note = format!(
                "import ctypes, select, signal\ndef note(*_): open({:?}, 'w').write(str(time.time()))\n\
                 signal.signal(signal.SIGALRM, note)\n",
                file(name)
            );
            let rules = format!("[idle]\ntimeout = \"1s\"\ncpu = 50.0\n{rules}");
            node.deploy(app, &python(&format!("import time\n{note}{TALK}"), port, &rules))
        };
        for (app, port, name, _) in &apps {
            let rules = if *name == "all" { "timers = \"all\"\n" } else { "" };
            deploy(app, *port, name, rules)?;
        }
        let off = format!("{}-off", place.unique());
        let port_off = free_port()?;
        deploy(&off, port_off, "off", "timers = \"off\"\n")?;
        tell(port_off, TIMERS[0].1)?;
        let mut armed = Vec::new();
        for (app, port, _, arm) in &apps {
            node.reach(app, "asleep")?;
            tell(*port, arm)?;
            armed.push(now_unix_ms()?);
        }
        for ((app, _, name, _), armed) in apps.iter().zip(&armed) {
            node.reach(app, "asleep")?;
            let at = waker(&node, app, "timer").with_context(|| format!("{name}: {:?}", node.why(app)))?;
            ensure!(
                (armed + 4000..armed + 6200).contains(&at),
                "{name}: {at}, armed {armed}"
            );
        }
        for ((app, _, name, _), armed) in apps.iter().zip(&armed) {
            let read = || std::fs::read_to_string(file(name)).ok()?.parse().ok();
            let ran: f64 = poll("it to run", PATIENCE, || Ok(read()))
                .with_context(|| format!("{name}: {:?}", node.status(app)))?;
            let status = node.status(app)?;
            ensure!(status["last"]["cause"] == "timer", "{name}: {status}");
            let record = node.registry.appshot(&["ps", "-o", "json"])?;
            ensure!(record.contains("timer"), "{record}");
            #[allow(clippy::cast_precision_loss)]
            let late = ran * 1000.0 - *armed as f64 - 6000.0;
            eprintln!("{name}: ran {late:.0} ms after it was due");
            ensure!((-300.0..1500.0).contains(&late), "{name}: {late} ms late");
        }
        // Where timers do not count its time stands still, and nothing wakes it.
        let status = node.reach(&off, "asleep")?;
        ensure!(status["last"]["cause"] != "timer", "{status}");
        ensure!(!file("off").exists(), "it ran");
        node.end()
    });
}

/// Who comes before the timer is due changes nothing about when it is.
#[test]
fn a_timer_goes_on_while_it_sleeps() {
    in_place("a_timer_goes_on_while_it_sleeps", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        node.deploy(app, &python(TALK, port, "[idle]\ntimeout = \"1s\"\ncpu = 50.0\n"))?;
        tell(
            port,
            "threading.Thread(target=lambda: (time.sleep(7), kept.update(at=time.time()))).start()",
        )?;
        let armed = Instant::now();
        for _ in 0..2 {
            node.reach(app, "asleep")?;
            std::thread::sleep(Duration::from_millis(500));
            tell(port, "wait 0")?;
        }
        poll("the timer", PATIENCE, || {
            Ok(tell(port, "kept['at']").is_ok().then_some(()))
        })?;
        let took = armed.elapsed();
        ensure!((6..9).contains(&took.as_secs()), "{took:?}");
        node.end()
    });
}

/// Awake as long as its schedule says, and woken by it at the full minute.
#[test]
fn a_schedule() {
    in_place("a_schedule", |place| {
        let node = Node::new(place, &[])?;
        let [always, wakes] = ["always", "wakes"].map(|name| format!("{}-{name}", place.unique()));
        let idle = "[idle]\ntimeout = \"1s\"\ncpu = 50.0\n[schedule]\nzone = \"Asia/Tokyo\"\n";
        let rules = format!("{idle}awake = [{{ from = \"* * * * *\", for = \"1h\" }}]\n");
        node.deploy(&always, &python(TALK, free_port()?, &rules))?;
        let rules = format!("{idle}wake = [\"* * * * *\"]\n");
        node.deploy(&wakes, &python(TALK, free_port()?, &rules))?;
        let status = node.reach(&wakes, "asleep")?;
        ensure!(status["last"]["cause"] == "deploy", "{status}");
        let at = waker(&node, &wakes, "schedule")?;
        ensure!(at % 60_000 == 0 && at > now_unix_ms()? - 1000, "{at}");
        let woken = poll("it to be woken", Duration::from_secs(65), || {
            let status = node.status(&wakes)?;
            Ok((status["last"]["cause"] == "schedule").then_some(status))
        })?;
        let up = woken["last"]["unix_ms"].as_u64().context("no time")?;
        ensure!((at..at + 3000).contains(&up), "{woken}, not {at}");
        let schedule = node.holds(&always, "schedule", false)?;
        ensure!(schedule["detail"] == "* * * * *", "{schedule}");
        ensure!(node.count(&always, "sleeps")? == 0, "{}", node.status(&always)?);
        node.end()
    });
}

/// Answers each request with what it was asked for, and counts.
const HTTP: &str = r#"
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        told = self.path.encode()
        self.send_response(200); self.send_header("content-length", str(len(told))); self.end_headers()
        self.wfile.write(told)
    def log_message(self, *_): pass
class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 1024
Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

/// Who comes to the HTTP entry while the daemon is replaced waits, and is answered.
#[test]
fn the_entry_outlives_the_daemon() {
    in_place("the_entry_outlives_the_daemon", |place| {
        let (app, port, entry) = (place.unique(), free_port()?, free_port()?);
        let address = format!("127.0.0.1:{entry}");
        let arguments = ["--http", &address, "--http-drain", "1s"];
        let mut node = Node::new(place, &arguments)?;
        node.deploy(
            app,
            &python(
                HTTP,
                port,
                "[[route]]\nhost = \"*\"\n[idle]\ntimeout = \"1s\"\ncpu = 50.0\n",
            ),
        )?;
        for (round, well) in [false, true, false].into_iter().enumerate() {
            let ask = || -> Result<Vec<TcpStream>> {
                let ask = |number: i32| {
                    let mut stream = open(entry)?;
                    write!(stream, "GET /{number} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")?;
                    Ok(stream)
                };
                (0..50).map(ask).collect()
            };
            let (again, waiting) = node.replace(well, &arguments, ask)?;
            node = again;
            for (number, mut stream) in waiting.into_iter().enumerate() {
                let mut told = String::new();
                stream
                    .read_to_string(&mut told)
                    .with_context(|| format!("round {round}, request {number}"))?;
                let right = told.starts_with("HTTP/1.1 200") && told.ends_with(&format!("\r\n\r\n/{number}"));
                ensure!(right, "round {round}, request {number}: {told:?}");
            }
        }
        // Without an entry nobody has its port any more.
        let (node, ()) = node.replace(true, &[], || Ok(()))?;
        poll("the port to be free", PATIENCE, || {
            Ok(TcpStream::connect(("127.0.0.1", entry)).is_err().then_some(()))
        })?;
        node.end()
    });
}

/// What waits in case that somebody comes is counted, and given up before any app is.
#[test]
fn parked_instances_make_room() {
    in_place("parked_instances_make_room", |place| {
        let node = Node::new(place, &["--memory", "24M"])?;
        let [first, second] = ["first", "second"].map(|name| format!("{}-{name}", place.unique()));
        let held = || -> Result<u64> {
            let held: BTreeMap<String, u64> = node.restored.client.get("/v1/memory")?;
            Ok(held["prepared_bytes"] + held["kept_bytes"])
        };
        let idle = "[idle]\ntimeout = \"1s\"\ncpu = 50.0\n";
        let port = free_port()?;
        let large = format!("kept_bytes = bytearray(b'x' * (4 << 20))\n{TALK}");
        node.deploy(&first, &python(&large, port, idle))?;
        node.reach(&first, "asleep")?;
        poll("an instance to be parked", PATIENCE, || {
            Ok((held()? > (10 << 20)).then_some(()))
        })?;
        poll("that to be charged", PATIENCE, || {
            let text = node.client().text("/metrics")?;
            let mut lines = text.lines();
            let used = lines.find_map(|line| line.strip_prefix("appshot_node_memory_bytes{what=\"used\"} "));
            Ok((used.context("no memory")?.parse::<u64>()? > (10 << 20)).then_some(()))
        })?;
        let before = held()?;
        // With what is likely of this one there is no room for both.
        node.deploy(
            &second,
            &python(
                &format!("more = bytearray(b'y' * (16 << 20))\n{TALK}"),
                free_port()?,
                idle,
            ),
        )?;
        poll("room to be made", PATIENCE, || Ok((held()? < before).then_some(())))
            .with_context(|| format!("{before} and {:?}", held()))?;
        tell(port, "assert len(kept_bytes) == 4 << 20")?;
        node.end()
    });
}

/// Whether what is parked waits for who comes by itself.
fn armed(node: &Node) -> Result<bool> {
    let waiting: Vec<Value> = node.restored.client.get("/v1/prepare")?;
    Ok(waiting.iter().any(|row| row["armed"] == true && row["ready"] == 1))
}

fn until_armed(node: &Node, app: &str, is: bool) -> Result<()> {
    node.reach(app, "asleep")?;
    let what = format!("{app} to be armed: {is}");
    poll(&what, PATIENCE, || Ok((armed(node)? == is).then_some(())))
}

/// Who comes to an app of which an instance is parked wakes it while `edgepointd` stands still,
/// and whatever has it called off keeps nobody from being answered.
#[test]
fn it_comes_up_by_itself() {
    in_place("it_comes_up_by_itself", |place| {
        let (mut node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        node.deploy(app, &python(TALK, port, "[idle]\ntimeout = \"1s\"\ncpu = 50.0\n"))?;
        tell(port, "rounds = 0")?;
        let round = |number| tell(port, &format!("rounds += 1; assert rounds == {number}"));
        until_armed(&node, app, true)?;
        let still = Pid::from_raw(node.edgepointd.pid());
        kill(still, Signal::SIGSTOP)?;
        let answered = round(1);
        kill(still, Signal::SIGCONT)?;
        answered.context("while edgepointd stands still")?;
        let status = node.reach(app, "running")?;
        ensure!(status["last"]["cause"] == "request", "{status}");
        // Many at once wake it once.
        until_armed(&node, app, true)?;
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..16).map(|_| scope.spawn(|| tell(port, "wait 0.2"))).collect();
            let mut clients = clients.into_iter();
            clients.try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
        })?;
        ensure!(node.count(app, "wakes")? == 2, "{}", node.status(app)?);
        // Its memory is wanted.
        until_armed(&node, app, true)?;
        let _: Value = node
            .restored
            .client
            .post("/v1/memory/give-up", &json!({ "bytes": 1u64 << 40 }))?;
        until_armed(&node, app, false)?;
        round(2)?;
        // Its owner has it sleep.
        until_armed(&node, app, true)?;
        let order = |node: &Node, what: &str| -> Result<()> {
            let _: Value = node.client().post(&format!("/v1/apps/{app}/{what}"), &json!({}))?;
            Ok(())
        };
        order(&node, "suspend")?;
        node.reach(app, "suspended")?;
        ensure!(!armed(&node)?, "it is suspended");
        let mut early = open(port)?;
        early.set_read_timeout(Some(Duration::from_millis(300)))?;
        ensure!(say(&mut early, "wait 0").is_err(), "answered while it is suspended");
        drop(early);
        order(&node, "resume")?;
        round(3)?;
        // Nobody may wake it behind the back of the next daemon.
        until_armed(&node, app, true)?;
        let restored = node.restored.client.clone();
        let (next, late) = node.replace(false, &[], || {
            poll("it to be called off", PATIENCE, || {
                let waiting: Vec<Value> = restored.get("/v1/prepare")?;
                Ok(waiting.iter().all(|row| row["armed"] == false).then_some(()))
            })?;
            let mut late = open(port)?;
            late.write_all(b"rounds += 1; assert rounds == 4\n")?;
            Ok(late)
        })?;
        node = next;
        hear(&mut { late }).context("who came while no daemon was there")?;
        // restored is killed while it waits.
        until_armed(&node, app, true)?;
        let Node {
            edgepointd,
            restored,
            snapd,
            registry,
        } = node;
        drop(restored);
        let restored = registry.daemon("restored", "")?;
        let node = Node {
            edgepointd,
            restored,
            snapd,
            registry,
        };
        round(5)?;
        node.end()
    });
}

/// A server that waits by io_uring alone sleeps as others do: its accept is still to come when it
/// wakes, once or for all.
#[test]
fn a_server_by_io_uring_sleeps() {
    in_place("a_server_by_io_uring_sleeps", |place| {
        let server = place.path("uring");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/servers/uring.c");
        let built = Command::new(need_program(&["cc"])?)
            .args(["-O1", "-Wall", "-Werror", "-o"])
            .args([server.as_os_str(), source.as_ref()])
            .status()?;
        ensure!(built.success(), "the server cannot be built");
        let node = Node::new(place, &[])?;
        let mut ports = Vec::new();
        for (number, how) in ["", ", \"again\""].into_iter().enumerate() {
            let (app, port) = (format!("{}-{number}", place.unique()), free_port()?);
            ports.push(port);
            let manifest = format!(
                "[start]\ncommand = [{server:?}, \"{port}\"{how}]\n[[listen]]\ntcp = \"127.0.0.1:{port}\"\n\
                 [idle]\ntimeout = \"1s\"\ncpu = 50.0\n"
            );
            node.deploy(&app, &manifest)?;
            for _ in 0..3 {
                node.reach(&app, "asleep")?;
                std::thread::scope(|scope| {
                    let clients: Vec<_> = (0..8).map(|_| scope.spawn(|| tell(port, "x"))).collect();
                    let mut clients = clients.into_iter();
                    clients.try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
                })?;
            }
            node.reach(&app, "asleep")?;
            ensure!(node.count(&app, "wakes")? == 3, "{}", node.status(&app)?);
            ensure!(node.count(&app, "failures")? == 0, "{}", node.status(&app)?);
        }
        // Who comes while it is on its way to sleep is not taken along.
        std::thread::scope(|scope| {
            let come = |port: u16| {
                (0..16).try_for_each(|number| {
                    std::thread::sleep(Duration::from_millis(1070 + 8 * number));
                    tell(port, "x").with_context(|| format!("number {number}"))
                })
            };
            let clients: Vec<_> = ports.iter().map(|port| scope.spawn(move || come(*port))).collect();
            let mut clients = clients.into_iter();
            clients.try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("it panicked"))?)
        })?;
        node.end()
    });
}

/// Connections that nobody uses just now stay open through a sleep, whoever made them; what
/// comes over one wakes the app, which is told of an end, too.
#[test]
fn connections_are_carried_through_a_sleep() {
    in_place("connections_are_carried_through_a_sleep", |place| {
        let (mut node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let rules = "[idle]\ntimeout = \"1s\"\ncpu = 50.0\nconnections = \"carried\"\nmade = \"carried\"\n";
        node.deploy(app, &python(TALK, port, rules))?;
        let mut clients = (0..4).map(|_| open(port)).collect::<Result<Vec<_>>>()?;
        for client in &mut clients {
            say(client, "kept['told'] = kept.get('told', 0) + 1")?;
        }
        // Something under way keeps it awake, and is answered. (In one tick of the kernel what is
        // asked cannot be told from what was answered.)
        std::thread::sleep(Duration::from_millis(20));
        say(&mut clients[0], "wait 2.5")?;
        ensure!(node.count(app, "sleeps")? == 0, "it slept with a request under way");
        // One that the app has made itself, and one that stays inside it.
        let outside = TcpListener::bind("127.0.0.1:0")?;
        let there = outside.local_addr()?.port();
        say(
            &mut clients[0],
            &format!("kept['made'] = socket.create_connection(('127.0.0.1', {there}))"),
        )?;
        let (mut made, _) = outside.accept()?;
        made.set_read_timeout(Some(PATIENCE))?;
        say(
            &mut clients[0],
            "s = socket.create_server(('127.0.0.1', 0)); kept['in'] = socket.create_connection(s.getsockname()), s.accept()[0], s",
        )?;
        for turn in 0..3 {
            node.reach(app, "asleep")?;
            let wakes = node.count(app, "wakes")?;
            if turn == 1 {
                // The daemon that held them is killed; they are kept.
                (node, ()) = node.replace(false, &[], || Ok(()))?;
                node.reach(app, "asleep")?;
            }
            say(&mut clients[turn], "assert kept['told'] == 4; wait = 0")?;
            if turn != 1 {
                // It may answer before that is counted.
                poll("it to be woken", PATIENCE, || {
                    Ok((node.count(app, "wakes")? == wakes + 1).then_some(()))
                })?;
            }
            // All the others, too, by the app that runs again.
            for client in &mut clients {
                say(
                    client,
                    "kept['in'][0].sendall(b'x'); assert kept['in'][1].recv(1) == b'x'",
                )?;
            }
        }
        // What comes over the one that it has made wakes it, and it answers there.
        say(
            &mut clients[0],
            "threading.Thread(target=lambda: kept['made'].sendall(kept['made'].recv(100).upper()), daemon=True).start()",
        )?;
        node.reach(app, "asleep")?;
        made.write_all(b"hello")?;
        let mut answer = [0; 5];
        made.read_exact(&mut answer)
            .context("no answer over what it has made")?;
        ensure!(&answer == b"HELLO", "{answer:?}");
        // Its own end is seen at once: nobody else holds it open.
        say(&mut clients[0], "kept['made'].close()")?;
        ensure!(made.read(&mut answer)? == 0, "it is open still");
        // So is a client's, by the app.
        node.reach(app, "asleep")?;
        let wakes = node.count(app, "wakes")?;
        drop(clients.pop());
        poll("it to be woken by that", PATIENCE, || {
            Ok((node.count(app, "wakes")? > wakes).then_some(()))
        })?;
        node.reach(app, "asleep")?;
        // One that is reset meanwhile is no reason not to wake.
        let reset = open(port)?;
        node.reach(app, "asleep")?;
        let wakes = node.count(app, "wakes")?;
        let linger = nix::libc::linger {
            l_onoff: 1,
            l_linger: 0,
        };
        nix::sys::socket::setsockopt(&reset, nix::sys::socket::sockopt::Linger, &linger)?;
        drop(reset);
        poll("it to be woken by that", PATIENCE, || {
            Ok((node.count(app, "wakes")? > wakes).then_some(()))
        })?;
        say(&mut clients[0], "assert kept['told'] == 4")?;
        ensure!(node.count(app, "failures")? == 0, "{}", node.status(app)?);
        node.reach(app, "asleep")?;
        // Removed while it sleeps: they end.
        let _: Value = node.client().delete(&format!("/v1/apps/{app}"))?;
        let mut first = clients.remove(0);
        let ended = first.read(&mut answer);
        ensure!(
            ended.as_ref().is_ok_and(|count| *count == 0) || ended.is_err(),
            "{ended:?}"
        );
        node.end()
    });
}

/// A client that asks at any moment over a connection that stays, while its server falls asleep
/// and wakes again and again.
#[test]
fn no_word_over_a_carried_connection_is_lost() {
    in_place("no_word_over_a_carried_connection_is_lost", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let rules = "[idle]\ntimeout = \"1s\"\ncpu = 90.0\nconnections = \"carried\"\n";
        node.deploy(app, &python(TALK, port, rules))?;
        let mut clients = (0..3).map(|_| open(port)).collect::<Result<Vec<_>>>()?;
        // From well before the time-out to well after.
        let cycles = 24;
        for cycle in 0..cycles {
            std::thread::sleep(Duration::from_millis(960 + 10 * cycle));
            let at = usize::try_from(cycle)? % clients.len();
            say(&mut clients[at], "kept['n'] = kept.get('n', 0) + 1").with_context(|| format!("cycle {cycle}"))?;
        }
        say(&mut clients[0], &format!("assert kept['n'] == {cycles}"))?;
        let sleeps = node.count(app, "sleeps")?;
        ensure!(sleeps > 3, "it slept {sleeps} times");
        node.end()
    });
}

/// Orders are heard while an app comes up, however long that takes.
#[test]
fn orders_are_heard_while_it_starts() {
    in_place("orders_are_heard_while_it_starts", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        // It never listens: nobody waits for that who wants it gone.
        let never = "import time; time.sleep(3600)";
        let manifest = format!(
            "app = \"{app}-never\"\n{}",
            python(never, port, "[ready]\ntimeout = \"5m\"\n[capacity]\nconnections = 9\n")
        );
        let _: Value = node.client().post("/v1/apps", &json!({ "manifest": manifest }))?;
        let never = format!("{app}-never");
        poll("its command to run", PATIENCE, || {
            Ok(node
                .registry
                .appshot(&["ps", "-o", "json"])?
                .contains(&never)
                .then_some(()))
        })?;
        let _: Value = node
            .client()
            .put(&format!("/v1/apps/{never}/scale"), &json!({ "min": 1, "max": 2 }))?;
        let began = Instant::now();
        let _: Value = node.client().delete(&format!("/v1/apps/{never}"))?;
        ensure!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        ensure!(
            node.registry.appshot(&["ps", "-o", "json"])?.trim() == "[]",
            "it is left"
        );
        // It listens after a while, and is to sleep then.
        let late = format!("import time; time.sleep(3)\n{TALK}");
        let manifest = format!("app = \"{app}\"\n{}", python(&late, port, ""));
        let _: Value = node.client().post("/v1/apps", &json!({ "manifest": manifest }))?;
        let _: Value = node.client().post(&format!("/v1/apps/{app}/suspend"), &json!({}))?;
        let status = node.reach(app, "suspended")?;
        ensure!(
            (status["counts"]["starts"].as_u64(), status["counts"]["sleeps"].as_u64()) == (Some(1), Some(1)),
            "{status}"
        );
        let _: Value = node.client().post(&format!("/v1/apps/{app}/resume"), &json!({}))?;
        tell(port, "wait 0")?;
        node.end()
    });
}
