//! What a manifest says of each instance, and of how an app comes up: probes and what warms it,
//! limits, values of its own, a network of its own.

use anyhow::{Context, Result, ensure};
use appshot_tests::clients::free_port;
use appshot_tests::node::{Node, python};
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, poll};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Answers over HTTP what the path asks for.
const ANSWERS: &str = r#"
import http.server, os, socket, subprocess, sys, threading, time
asked, kept = {}, []
def answer(word, value):
    if word == "health":
        return 200 if asked["health"] > 3 else 503, "so far"
    if word == "warm":
        return 200, "warm"
    if word == "times":
        return 200, str(asked.get(value, 0))
    if word == "var":
        return 200, open("/run/appshot-instance/vars/" + value).read()
    if word == "secret":
        path = "/run/appshot-instance/secrets/" + value
        try:
            return 200, "%s %o %d" % (open(path).read(), os.stat(path).st_mode & 0o777, os.stat(path).st_uid)
        except OSError as error:
            return 200, error.strerror
    if word == "note":
        log = kept[0] if kept else open("/srv/appshot-trial/PLACE/log", "a+")
        kept[:] = [log]
        if value: log.write(value + "\n"); log.flush()
        log.seek(0)
        return 200, log.read()
    if word == "eat":
        kept.append(bytearray(b"x") * (int(value) << 20))
        return 200, "eaten"
    if word == "burn":
        begin, until = time.monotonic(), time.process_time() + int(value) / 1000
        while time.process_time() < until: pass
        return 200, str(time.monotonic() - begin)
    if word == "fork":
        children = []
        try:
            for _ in range(int(value)):
                children.append(subprocess.Popen(["/bin/sleep", "60"]))
        except OSError as error:
            return 200, "%d: %s" % (len(children), error.strerror)
        finally:
            for child in children: child.kill(); child.wait()
        return 200, str(len(children))
    if word == "reach":
        try:
            socket.create_connection(("127.0.0.1", int(value)), 2).close()
            return 200, "reached"
        except OSError as error:
            return 200, error.strerror or "timed out"
    if word == "peer":
        host, _, port = value.partition(":")
        try:
            with socket.create_connection((host, int(port)), 2) as peer:
                return 200, peer.recv(99).decode()
        except OSError as error:
            return 200, error.strerror or "timed out"
    if word == "keep":
        host, _, port = value.partition(":")
        kept.append(socket.create_connection((host, int(port)), 2))
        return 200, kept[-1].recv(99).decode()
    if word == "datagram":
        host, _, port = value.partition(":")
        asked["datagrams"] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        asked["datagrams"].connect((host, int(port)))
        return 200, "connected"
    if word == "seen":
        asked["datagrams"].settimeout(2)
        asked["datagrams"].send(b"who?")
        return 200, asked["datagrams"].recv(99).decode() + " " + open("/run/appshot-instance/vars/WHO").read()
    if word == "kept":
        kept[0].sendall(value.encode())
        return 200, kept[0].recv(99).decode()
    if word in ("listen", "listen-to-all"):
        server = socket.create_server(("127.0.0.1" if word == "listen" else "", int(value)))
        def accept():
            while True: server.accept()[0].close()
        threading.Thread(target=accept, daemon=True).start()
        return 200, "listens"
    if word == "hold":
        time.sleep(int(value) / 1000)
        return 200, open("/run/appshot-instance/vars/WHO").read()
    return 404, "what?"
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        word, _, value = self.path[1:].partition("/")
        asked[word] = asked.get(word, 0) + 1
        status, text = answer(word, value)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"#;

/// Status and body of an answer, over a connection of its own.
fn ask(port: u16, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("{answer:?}"))?;
    let status = head.split(' ').nth(1).context("no status")?.parse()?;
    Ok((status, body.to_owned()))
}

fn told(port: u16, path: &str) -> Result<String> {
    let (status, body) = ask(port, path)?;
    ensure!(status == 200, "{path}: {status} {body}");
    Ok(body)
}

/// What so many at once are answered, all different ones.
fn all_told<T: Ord + Send + 'static>(
    clients: usize,
    ask: impl Fn() -> Result<T> + Copy + Send + 'static,
) -> BTreeSet<T> {
    let asked: Vec<_> = (0..clients).map(|_| std::thread::spawn(ask)).collect();
    let answers = asked.into_iter().filter_map(|asked| asked.join().ok());
    answers.filter_map(Result::ok).collect()
}

/// It is deployed and does not come up, and all of that is told.
fn cannot_come_up(node: &Node, app: &str, manifest: &str, told: &[&str]) -> Result<()> {
    let manifest = format!("app = {app:?}\n{manifest}");
    let _: Value = node.client().post("/v1/apps", &json!({ "manifest": manifest }))?;
    let failed = node.reach(app, "failed")?;
    let why = failed["why"].as_str().unwrap_or_default();
    ensure!(told.iter().all(|told| why.contains(told)), "{failed}");
    Ok(())
}

const SLEEPY: &str = "[idle]\ntimeout = \"1s\"\ncpu = 50.0\n";

#[test]
fn it_is_up_once_it_is_ready_and_warm() {
    in_place("it_is_up_once_it_is_ready_and_warm", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let rules = format!(
            "{SLEEPY}[ready]\nhttp = \"/health\"\n[[warmup]]\npath = \"/warm\"\ntimes = 5\n\
             [[warmup]]\npath = \"/var/WHO\"\nhost = \"shop.example\"\n[instance]\nvars = {{ WHO = \"{{app}}\" }}\n"
        );
        node.deploy(app, &python(ANSWERS, port, &rules))?;
        ensure!(told(port, "/times/health")? == "4" && told(port, "/times/warm")? == "5");
        node.reach(app, "asleep")?;
        ensure!(told(port, "/times/warm")? == "5", "it was not warm in its appshot");
        // One that answers badly does not come up, and that is told.
        let other = format!("{app}-x");
        let bad = python(ANSWERS, free_port()?, "[[warmup]]\npath = \"/nothing\"\n");
        cannot_come_up(&node, &other, &bad, &["GET /nothing: it answered 404"])?;
        let slow = format!("{app}-y");
        let never = python(
            ANSWERS,
            free_port()?,
            "[ready]\ntimeout = \"1s\"\nhttp = \"/nothing\"\n",
        );
        let why = "not ready after 1s: GET /nothing: it answered 404";
        cannot_come_up(&node, &slow, &never, &[why])?;
        node.end()
    });
}

#[test]
fn a_new_version_is_warm_before_it_serves() {
    in_place("a_new_version_is_warm_before_it_serves", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let rules = |times: u32| {
            format!("{SLEEPY}[ready]\nhttp = \"/health\"\n[[warmup]]\npath = \"/warm\"\ntimes = {times}\n")
        };
        node.deploy(app, &python(ANSWERS, port, &rules(2)))?;
        ensure!(told(port, "/times/warm")? == "2");
        let manifest = format!("app = {app:?}\n{}", python(ANSWERS, port, &rules(7)));
        std::fs::write(place.path("next.toml"), manifest)?;
        let path = place.path("next.toml").display().to_string();
        node.registry.appshot(&["update", &path])?;
        ensure!(
            told(port, "/times/warm")? == "7",
            "another version answers, or it is cold"
        );
        node.end()
    });
}

/// As it was started, as it was woken, and for its clones.
#[test]
fn limits_hold() {
    in_place("limits_hold", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let rules = format!("{SLEEPY}[limits]\nmemory = \"96M\"\ncpus = 0.25\nprocesses = 12\n");
        node.deploy(app, &python(ANSWERS, port, &rules))?;
        for woken in [false, true] {
            if woken {
                node.reach(app, "asleep")?;
            }
            let took: f64 = told(port, "/burn/150")?.parse()?;
            ensure!(took > 0.35, "150 ms of a processor in {took} s, woken: {woken}");
            let forked = told(port, "/fork/40")?;
            ensure!(forked.contains("temporarily unavailable"), "{forked}, woken: {woken}");
            ensure!(told(port, "/eat/20")? == "eaten");
        }
        // Beyond that the kernel ends it; it is brought back from its last appshot.
        let begun = node.count(app, "failures")?;
        ensure!(ask(port, "/eat/200").is_err(), "it has 200 MiB more");
        poll("it to be brought back", PATIENCE, || {
            Ok((node.count(app, "failures")? > begun && told(port, "/times/eat").is_ok()).then_some(()))
        })?;
        node.end()?;
        for controller in ["memory", "cpu", "pids"] {
            let left = std::path::PathBuf::from(format!("/sys/fs/cgroup/{controller}/appshot/{app}"));
            ensure!(!left.exists(), "{} is left", left.display());
        }
        Ok(())
    });
}

#[test]
fn commands_have_limits_too() {
    in_place("commands_have_limits_too", |place| {
        let (node, name, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let (program, at) = (ANSWERS.to_owned(), port.to_string());
        let run = |limits: &[&str]| {
            let head = ["run", "--name", name, "-d", "--var", "WHO=me"];
            let tail = ["--", "/usr/bin/python3", "-c", &program, &at];
            node.registry.appshot(&[&head, limits, &tail].concat())
        };
        for (wrong, because) in [
            (["--limit-memory", "10k"], "1M at least"),
            (["--limit-cpus", "0"], "from 0.01"),
            (["--limit-processes", "0"], "not in"),
        ] {
            let refused = run(&wrong).err().map(|error| error.to_string()).unwrap_or_default();
            ensure!(refused.contains(because), "{wrong:?}: {refused}");
        }
        run(&["--limit-cpus", "0.25", "--limit-processes", "12"])?;
        let up = || poll("an answer", PATIENCE, || Ok(told(port, "/var/WHO").ok()));
        ensure!(up()? == "me");
        let limited = || -> Result<(f64, String)> { Ok((told(port, "/burn/100")?.parse()?, told(port, "/fork/40")?)) };
        let (took, forked) = limited()?;
        ensure!(took > 0.2 && forked.contains("unavailable"), "{took} s, {forked}");
        node.registry.appshot(&["snapshot", name])?;
        node.registry.appshot(&["restore", name, "-d"])?;
        let (took, forked) = limited()?;
        ensure!(took < 0.2 && forked == "40", "{took} s, {forked}: nobody limits it now");
        node.registry.appshot(&["snapshot", "--replace", name])?;
        node.registry
            .appshot(&["restore", name, "-d", "--limit-cpus", "0.25", "--limit-processes", "12"])?;
        let (took, forked) = limited()?;
        ensure!(took > 0.2 && forked.contains("unavailable"), "{took} s, {forked}");
        node.registry.appshot(&["kill", "-s", "KILL", "--wait", name])?;
        node.registry.appshot(&["rm", "--appshot", name])?;
        Ok(())
    });
}

/// Each finds values of its own, the first one and the clones beside it.
#[test]
fn each_has_values_of_its_own() {
    in_place("each_has_values_of_its_own", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let rules = format!(
            "{SLEEPY}[instances]\nmax = 3\n[capacity]\nconnections = 1\n\
             [instance]\nvars = {{ WHO = \"{{instance}} is number {{number}} of v{{version}}\" }}\n"
        );
        node.deploy(app, &python(ANSWERS, port, &rules))?;
        ensure!(told(port, "/var/WHO")? == format!("{app} is number 1 of v1"));
        node.reach(app, "asleep")?;
        ensure!(told(port, "/var/WHO")? == format!("{app} is number 1 of v1"));
        let mut who = BTreeSet::new();
        let until = Instant::now() + PATIENCE;
        while who.len() < 3 && Instant::now() < until {
            who.extend(all_told(4, move || told(port, "/hold/300")));
        }
        let all: Vec<String> = (1..=3)
            .map(|number| match number {
                1 => format!("{app} is number 1 of v1"),
                _ => format!("{app}.{number} is number {number} of v1"),
            })
            .collect();
        ensure!(who.iter().eq(all.iter()), "{who:?}");
        node.end()
    });
}

/// Who comes to it is answered; it reaches nobody. Started, woken, and in further instances.
#[test]
fn one_that_is_isolated_is_reached_and_reaches_nobody() {
    in_place("one_that_is_isolated_is_reached_and_reaches_nobody", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let outside = TcpListener::bind("127.0.0.1:0")?;
        let other = outside.local_addr()?.port();
        let open = format!("{app}-open");
        let open_port = free_port()?;
        node.deploy(&open, &python(ANSWERS, open_port, SLEEPY))?;
        ensure!(told(open_port, &format!("/reach/{other}"))? == "reached");
        let rules = format!(
            "{SLEEPY}[network]\nisolated = true\n[instances]\nmax = 2\n[capacity]\nconnections = 1\n\
             [instance]\nvars = {{ WHO = \"{{number}}\" }}\n"
        );
        node.deploy(app, &python(ANSWERS, port, &rules))?;
        // What it opens for itself is not for others, however often it wakes.
        let own = free_port()?;
        ensure!(told(port, &format!("/listen/{own}"))? == "listens");
        for _ in 0..3 {
            ensure!(TcpStream::connect(("127.0.0.1", own)).is_err(), "the host has {own}");
            ensure!(told(port, &format!("/reach/{own}"))? == "reached");
            let reached = told(port, &format!("/reach/{other}"))?;
            ensure!(reached == "Connection refused", "{reached}");
            node.reach(app, "asleep")?;
        }
        let both = poll("two to answer", PATIENCE, || {
            let who = all_told(3, move || told(port, "/hold/300"));
            Ok((who.len() == 2).then_some(who))
        })?;
        ensure!(both.iter().eq(["1", "2"]), "{both:?}");
        node.reach(app, "asleep")?;
        // A daemon that begins again has the same sockets.
        let (node, ()) = node.replace(false, &[], || {
            std::thread::sleep(Duration::from_millis(100));
            Ok(())
        })?;
        let reached = told(port, &format!("/reach/{other}"))?;
        ensure!(reached == "Connection refused", "{reached}");
        node.end()
    });
}

/// A bridge that is gone again with this, and its rule; nobody else has its subnet.
struct Bridge {
    name: String,
    subnet: String,
    gateway: String,
}

impl Bridge {
    fn new() -> Bridge {
        static MADE: AtomicUsize = AtomicUsize::new(0);
        let own = (std::process::id() as usize * 2 + MADE.fetch_add(1, Ordering::SeqCst)) % 250;
        Bridge {
            name: format!("as-trial-{own}"),
            subnet: format!("10.{own}.88.0/24"),
            gateway: format!("10.{own}.88.1"),
        }
    }

    fn arguments(&self) -> [&str; 4] {
        ["--subnet", &self.subnet, "--bridge", &self.name]
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        for arguments in [
            vec!["rule", "del", "iif", &self.name, "to", &self.subnet],
            vec!["link", "del", &self.name],
        ] {
            let _ = Command::new("ip").args(arguments).stderr(Stdio::null()).status();
        }
    }
}

/// Each instance has one of its own: it is what others see of it, and stays as long as the app is
/// deployed. Instances do not reach each other.
#[test]
fn instances_have_addresses() {
    in_place("instances_have_addresses", |place| {
        let bridge = Bridge::new();
        let (app, port) = (place.unique(), free_port()?);
        let rules = format!(
            "{SLEEPY}[network]\naddress = true\n[instances]\nmax = 2\n[capacity]\nconnections = 1\n\
             [instance]\nvars = {{ WHO = \"{{address}}\" }}\n"
        );
        let manifest = python(ANSWERS, port, &rules);
        let node = Node::new(place, &[])?;
        let refused = node.deploy(app, &manifest).unwrap_err().to_string();
        ensure!(refused.contains("--subnet 10.213.0.0/16"), "{refused}");
        let (node, ()) = node.replace(true, &bridge.arguments(), || Ok(()))?;
        node.deploy(app, &manifest)?;

        // Who listens on the node tells who has come.
        let outside = TcpListener::bind((bridge.gateway.as_str(), 0))?;
        let other = format!("{}:{}", bridge.gateway, outside.local_addr()?.port());
        std::thread::spawn(move || {
            for mut stream in outside.incoming().flatten() {
                let peer = stream.peer_addr().map(|peer| peer.ip().to_string());
                let _ = stream.write_all(peer.unwrap_or_default().as_bytes());
            }
        });
        let first = told(port, "/var/WHO")?;
        for _ in 0..3 {
            ensure!(told(port, &format!("/peer/{other}"))? == first);
            ensure!(node.reach(app, "asleep")?["address"] == first.as_str());
        }
        // What it opens for itself is at its address alone.
        let own = free_port()?;
        ensure!(told(port, &format!("/listen-to-all/{own}"))? == "listens");
        ensure!(TcpStream::connect(("127.0.0.1", own)).is_err(), "the host has {own}");
        TcpStream::connect((first.as_str(), own)).context("at its address")?;
        // Whom it asks by datagrams sees each at its address, too.
        let datagrams = UdpSocket::bind((bridge.gateway.as_str(), 0))?;
        let asked = format!("/datagram/{}:{}", bridge.gateway, datagrams.local_addr()?.port());
        std::thread::spawn(move || {
            let mut piece = [0; 8];
            while let Ok((_, peer)) = datagrams.recv_from(&mut piece) {
                let _ = datagrams.send_to(peer.ip().to_string().as_bytes(), peer);
            }
        });
        ensure!(told(port, &asked)? == "connected");
        ensure!(told(port, "/seen")? == format!("{first} {first}"));
        // Further instances are of what falls asleep now.
        node.reach(app, "asleep")?;

        let both = poll("two to answer", PATIENCE, || {
            let who = all_told(3, move || told(port, "/hold/300"));
            Ok((who.len() == 2).then_some(who))
        })?;
        let second = both.iter().find(|who| **who != first).context("no other address")?;
        let known = node.status(app)?;
        ensure!(known["instances"][1]["address"] == second.as_str(), "{known}");
        TcpStream::connect((second.as_str(), own)).context("at the other's address")?;
        let seen = all_told(6, move || told(port, "/seen"));
        let right = |seen: &String| seen.split_once(' ').is_some_and(|(seen, own)| seen == own);
        ensure!(!seen.is_empty() && seen.iter().all(right), "{seen:?}");
        let reached = all_told(6, {
            let asked: &'static str = format!("/peer/{second}:{own}").leak();
            move || told(port, asked)
        });
        ensure!(!reached.is_empty(), "nobody was asked");
        node.reach(app, "asleep")?;
        let reached = told(port, &format!("/peer/{second}:{own}"))?;
        ensure!(reached != first && !reached.is_empty(), "{reached}");
        node.reach(app, "asleep")?;
        // That of the second has gone with it.
        let gone = poll("its device to go", PATIENCE, || {
            let shown = Command::new("ip")
                .args(["-o", "link", "show", "master", &bridge.name])
                .output()?;
            Ok((String::from_utf8_lossy(&shown.stdout).lines().count() == 1).then_some(()))
        });
        gone?;

        // A daemon that begins again has the same.
        let (node, ()) = node.replace(false, &bridge.arguments(), || {
            std::thread::sleep(Duration::from_millis(100));
            Ok(())
        })?;
        for _ in 0..2 {
            // Whichever instance answers.
            let seen = told(port, &format!("/peer/{other}"))?;
            ensure!(seen == first || seen == *second, "{seen}: {first}, {second}");
            ensure!(node.reach(app, "asleep")?["address"] == first.as_str());
        }
        let (node, ()) = node.replace(false, &bridge.arguments(), || Ok(()))?;
        ensure!(told(port, &format!("/peer/{other}"))? == first);
        node.end()
    });
}

/// A connection that it has made through its network goes on through its sleeps, and a version
/// that comes up beside the one that serves reaches others, too.
#[test]
fn what_it_has_made_from_its_address_is_carried() {
    in_place("what_it_has_made_from_its_address_is_carried", |place| {
        let bridge = Bridge::new();
        let (node, app, port) = (Node::new(place, &bridge.arguments())?, place.unique(), free_port()?);
        let outside = TcpListener::bind((bridge.gateway.as_str(), 0))?;
        let other = format!("{}:{}", bridge.gateway, outside.local_addr()?.port());
        // Echoes, each connection for itself; tells how many came.
        let came = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&came);
        std::thread::spawn(move || {
            for mut stream in outside.incoming().flatten() {
                counted.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    let _ = stream.write_all(b"hello");
                    let mut piece = [0; 64];
                    while let Ok(length @ 1..) = stream.read(&mut piece) {
                        let _ = stream.write_all(&piece[..length]);
                    }
                });
            }
        });
        // It needs the other one to come up, as of a database.
        let first = format!("answer('keep', '{other}')\n");
        let program = ANSWERS.replacen("class Handler", &format!("{first}class Handler"), 1);
        let rules = "[idle]\ntimeout = \"1s\"\ncpu = 50.0\nmade = \"carried\"\n[network]\naddress = true\n\
                     [instance]\nvars = { WHO = \"{version}\" }\n";
        node.deploy(app, &python(&program, port, rules))?;
        for round in 0..5 {
            let said = told(port, &format!("/kept/round-{round}"))?;
            ensure!(said == format!("round-{round}"), "{said}");
            node.reach(app, "asleep")?;
        }
        ensure!(came.load(Ordering::SeqCst) == 1, "it has connected again");
        let path = format!("/v1/apps/{app}");
        for (version, awake) in [(2, false), (3, true)] {
            let next = python(&program, port, &format!("{rules}[versions]\nkeep = 1{version}\n"));
            let manifest = format!("app = {app:?}\n{next}");
            if awake {
                // With a connection that the new version is not to have.
                ensure!(told(port, &format!("/keep/{other}")).is_ok());
            }
            let _: Value = node.client().put(&path, &json!({ "manifest": manifest }))?;
            ensure!(told(port, "/var/WHO")? == version.to_string());
            node.reach(app, "asleep")?;
        }
        ensure!(came.load(Ordering::SeqCst) == 4, "{came:?} connections");
        let _: Value = node.client().delete(&path)?;
        // One that stays awake for each has what it has made while it came up all the same.
        let open = rules.replace("made = \"carried\"\n", "");
        node.deploy(app, &python(&program, port, &open))?;
        ensure!(told(port, "/kept/still")? == "still");
        ensure!(came.load(Ordering::SeqCst) == 5, "{came:?} connections");
        node.end()
    });
}

/// Each instance is told what its provider keeps: by the manifest's name, for its user alone, as
/// it is by then. In no appshot.
#[test]
fn secrets_are_told_and_kept_nowhere() {
    in_place("secrets_are_told_and_kept_nowhere", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let set = |name: &str, value: &str| {
            let path = place.path("value");
            std::fs::write(&path, value)?;
            let path = path.display().to_string();
            node.registry.appshot(&["secret", "set", name, "--file", &path])
        };
        let manifest = |rules: &str| {
            let whole = python(ANSWERS, port, &format!("{SLEEPY}{rules}"));
            whole.replacen("[start]", "secrets = [\"db\", \"key\"]\n[start]\nuser = \"nobody\"", 1)
        };
        set("db", "first-value-of-db\n")?;
        // One that is not there yet is told, and no reason to give up.
        let why = ["has no secret key", "appshot secret set key"];
        cannot_come_up(&node, app, &manifest(""), &why)?;
        set("key", "two\nlines\n")?;
        poll("it to be tried again", PATIENCE, || {
            Ok((node.status(app)?["state"] == "running").then_some(()))
        })?;
        let nobody = nix::unistd::User::from_name("nobody")?.context("nobody")?.uid;
        ensure!(told(port, "/secret/db")? == format!("first-value-of-db 400 {nobody}"));
        ensure!(told(port, "/secret/key")?.starts_with("two\nlines\n 400"));
        node.reach(app, "asleep")?;
        set("db", "second-value-of-db")?;
        ensure!(told(port, "/secret/db")? == format!("second-value-of-db 400 {nobody}"));
        let listed = node.registry.appshot(&["secret", "ls"])?;
        ensure!(listed.contains("db") && !listed.contains("value-of"), "{listed}");
        node.registry.appshot(&["secret", "rm", "key"])?;
        let again = node.registry.appshot(&["secret", "rm", "key"]);
        ensure!(again.is_err_and(|error| error.to_string().contains("has no secret key")));
        for (name, because) in [("a/b", "cannot be the name"), ("..", "cannot be the name")] {
            let refused = set(name, "x").err().map(|error| error.to_string()).unwrap_or_default();
            ensure!(refused.contains(because), "{name}: {refused}");
        }
        node.end()
    });
}

/// What an appshot has of a secret is what the app has read.
#[test]
fn an_appshot_has_no_secret_that_was_not_read() {
    in_place("an_appshot_has_no_secret_that_was_not_read", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let path = place.path("value");
        std::fs::write(&path, "never-read-by-anybody")?;
        let path = path.display().to_string();
        node.registry.appshot(&["secret", "set", "idle", "--file", &path])?;
        let whole = python(ANSWERS, port, SLEEPY).replacen("[start]", "secrets = [\"idle\"]\n[start]", 1);
        node.deploy(app, &whole)?;
        node.reach(app, "asleep")?;
        let appshot = node.registry.data.join(format!("appshots/{app}.appshot"));
        for entry in std::fs::read_dir(&appshot)? {
            let bytes = std::fs::read(entry?.path())?;
            let found = bytes.windows(21).any(|window| window == b"never-read-by-anybody");
            ensure!(!found, "it is in the appshot");
        }
        ensure!(told(port, "/secret/idle")?.starts_with("never-read-by-anybody"));
        node.end()
    });
}

/// The same path leads to another place in each instance, for files that it had open, too.
#[test]
fn a_path_leads_to_other_places() {
    in_place("a_path_leads_to_other_places", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let at = std::path::PathBuf::from("/srv/appshot-trial").join(app);
        std::fs::create_dir_all(&at)?;
        let program = ANSWERS.replace("PLACE", app);
        let to = place.path("places").display().to_string();
        let rules = format!(
            "{SLEEPY}[[place]]\nat = {at:?}\nto = \"{to}/{{instance}}\"\n[instances]\nmax = 2\n\
             [capacity]\nconnections = 1\n[instance]\nvars = {{ WHO = \"{{number}}\" }}\n"
        );
        node.deploy(app, &python(&program, port, &rules))?;
        ensure!(told(port, "/note/one")? == "one\n");
        let first = place.path("places").join(app).join("log");
        ensure!(std::fs::read_to_string(&first)? == "one\n", "it is not there");
        node.reach(app, "asleep")?;
        // It has the file open in its appshot; what the file holds by then is the place's affair.
        std::fs::write(&first, "one\nby another\n")?;
        ensure!(told(port, "/note/two")? == "one\nby another\ntwo\n");
        // A second one has a place of its own.
        let second = place.path("places").join(format!("{app}.2"));
        std::fs::create_dir_all(&second)?;
        std::fs::write(second.join("log"), "of the second\n")?;
        poll("the second to answer", PATIENCE, || {
            let who = all_told(3, move || told(port, "/hold/300"));
            Ok((who.len() == 2).then_some(()))
        })?;
        let notes = poll("both to have told", PATIENCE, || {
            let notes = all_told(3, move || (told(port, "/hold/100"), told(port, "/note/")).1);
            Ok((notes.len() == 2).then_some(notes))
        })?;
        ensure!(
            notes.iter().any(|note| note.starts_with("of the second")) && notes.iter().any(|note| note.contains("two")),
            "{notes:?}"
        );
        ensure!(!at.join("log").exists(), "the host has it");
        node.end()?;
        Ok(std::fs::remove_dir_all(&at)?)
    });
}

/// An appshot that is there already is deployed, and copied: what becomes of it does not matter.
#[test]
fn it_begins_with_an_appshot() {
    in_place("it_begins_with_an_appshot", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let (old, at) = (format!("{app}-old"), port.to_string());
        let words = [
            "run",
            "--name",
            &old,
            "-d",
            "--",
            "/usr/bin/python3",
            "-c",
            ANSWERS,
            &at,
        ];
        node.registry.appshot(&words)?;
        poll("an answer", PATIENCE, || Ok(told(port, "/warm").ok()))?;
        told(port, "/warm")?;
        node.registry.appshot(&["snapshot", &old])?;
        let manifest = |listen: u16, from: &str| {
            format!("[start]\nappshot = {from:?}\n[[listen]]\ntcp = \"127.0.0.1:{listen}\"\n{SLEEPY}")
        };
        let other = format!("{app}-wrong");
        for (listen, from, because) in [
            (free_port()?, &*old, "does not listen on 127.0.0.1"),
            (port, "nobody", "nobody"),
        ] {
            cannot_come_up(&node, &other, &manifest(listen, from), &[because])?;
            let _: Value = node.client().delete(&format!("/v1/apps/{other}"))?;
        }
        let text = format!("app = {app:?}\n{}", manifest(port, &old));
        let _: Value = node.client().post("/v1/apps", &json!({ "manifest": text }))?;
        node.reach(app, "asleep")?;
        node.registry.appshot(&["rm", "--appshot", &old])?;
        ensure!(told(port, "/times/warm")? == "2", "it is another one");
        node.reach(app, "asleep")?;
        ensure!(told(port, "/times/times")? == "2");
        node.end()
    });
}

/// Files come along with a manifest: each version has its own, for its user, as long as it is kept.
#[test]
fn files_come_along() {
    in_place("files_come_along", |place| {
        let (node, app, port) = (Node::new(place, &[])?, place.unique(), free_port()?);
        let pack = |text: &str| -> Result<()> {
            let site = place.path("site");
            std::fs::create_dir_all(site.join("data"))?;
            std::fs::write(
                site.join("server.py"),
                ANSWERS.replace("/srv/appshot-trial/PLACE/log", "data/text"),
            )?;
            std::fs::write(site.join("data/text"), text)?;
            let packed = std::process::Command::new("tar")
                .args(["-czf"])
                .arg(place.path("site.tar.gz"))
                .arg("-C")
                .arg(&site)
                .args(["server.py", "data"])
                .status()?;
            ensure!(packed.success(), "tar");
            Ok(())
        };
        let manifest = |more: &str| {
            format!(
                "app = {app:?}\n[start]\ncommand = [\"/usr/bin/python3\", \"server.py\", \"{port}\"]\nuser = \"nobody\"\n\
                 archive = \"site.tar.gz\"\n{more}[[listen]]\ntcp = \"127.0.0.1:{port}\"\n{SLEEPY}"
            )
        };
        let path = place.path("app.toml");
        let deploy = |verb: &str, more: &str| {
            std::fs::write(&path, manifest(more))?;
            node.registry.appshot(&[verb, &path.display().to_string()])
        };
        pack("first\n")?;
        deploy("deploy", "")?;
        ensure!(told(port, "/note/more")? == "first\nmore\n");
        let own = node.registry.data.join(format!("apps/{app}"));
        let nobody = nix::unistd::User::from_name("nobody")?.context("nobody")?.uid.as_raw();
        let meta = std::fs::metadata(own.join("v1/data/text"))?;
        ensure!(std::os::unix::fs::MetadataExt::uid(&meta) == nobody, "it is root's");
        let whole = std::fs::metadata(own.join("v1"))?;
        let mode = std::os::unix::fs::PermissionsExt::mode(&whole.permissions()) & 0o777;
        ensure!(mode == 0o700, "others may come to it: {mode:o}");
        node.reach(app, "asleep")?;
        ensure!(told(port, "/note/again")? == "first\nmore\nagain\n");
        // The same again changes nothing; other files are another version.
        deploy("update", "")?;
        ensure!(node.status(app)?["version"] == 1, "{}", node.status(app)?);
        pack("second\n")?;
        deploy("update", "")?;
        ensure!(told(port, "/note/")? == "second\n");
        node.registry.appshot(&["rollback", app])?;
        ensure!(told(port, "/note/")? == "first\nmore\nagain\n");
        ensure!(own.join("v2").is_dir(), "it is kept, and its files are not");
        // What makes no sense is told.
        let zeroes = "0".repeat(64);
        for (more, because) in [
            ("directory = \"../etc\"\n".to_owned(), "leads out of the archive"),
            ("directory = \"/etc\"\n".to_owned(), "leads out of the archive"),
        ] {
            let refused = deploy("update", &more)
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            ensure!(refused.contains(because), "{more}: {refused}");
        }
        std::fs::remove_file(place.path("site.tar.gz"))?;
        let refused = deploy("update", "")
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        ensure!(refused.contains("cannot read the archive"), "{refused}");
        let other = format!("{app}-x");
        let text = manifest("")
            .replace(app, &other)
            .replace("archive = \"site.tar.gz\"", &format!("digest = {zeroes:?}"));
        let text = text.replace(&port.to_string(), &free_port()?.to_string());
        let refused = node.client().post::<Value>("/v1/apps", &json!({ "manifest": text }));
        ensure!(refused.is_err_and(|error| error.to_string().contains("has no archive")));
        // An update that fails leaves nothing for the next one, which has the same number.
        let broken = place.path("site.tar.gz");
        std::fs::write(&broken, b"no archive, for sure")?;
        let refused = deploy("update", "")
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default();
        ensure!(refused.contains("cannot unpack the archive"), "{refused}");
        pack("third\n")?;
        deploy("update", "")?;
        ensure!(told(port, "/note/")? == "third\n");
        let wrong = node
            .client()
            .put_bytes::<Value>(&format!("/v1/archives/{zeroes}"), b"other".to_vec());
        ensure!(wrong.is_err_and(|error| error.to_string().contains("it has the digest")));
        let wrong = node
            .client()
            .put_bytes::<Value>("/v1/archives/..%2Fx", b"other".to_vec());
        ensure!(wrong.is_err_and(|error| error.to_string().contains("is no BLAKE3 digest")));
        let _: Value = node.client().delete(&format!("/v1/apps/{app}"))?;
        ensure!(!own.exists(), "its files are left");
        node.end()
    });
}
