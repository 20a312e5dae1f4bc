//! Apps that `edgepointd` keeps asleep until somebody comes: real servers, real clients,
//! and no request that is not answered.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::installed::{Daemon, Registry};
use appshot_tests::scenario::{Server, cycles};
use appshot_tests::servers;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, poll};
use libsnap::error::{Error, Kind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodekit::client::Client;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// A node with one app, and the daemons that it takes.
struct Node<'a> {
    registry: &'a Registry,
    snapd: Daemon,
    restored: Daemon,
    edgepointd: Daemon,
    app: &'a str,
}

impl<'a> Node<'a> {
    /// With this server as its app; answers the server's port, too.
    fn of_server(registry: &'a Registry, place: &'a Place, server: &Server<'_>) -> Result<(Node<'a>, u16)> {
        let port = server.port.context("it has no port")?;
        let manifest = manifest(place.unique(), server, port)?;
        Ok((Node::deploy(registry, place.unique(), &manifest)?, port))
    }

    fn deploy(registry: &'a Registry, app: &'a str, manifest: &str) -> Result<Node<'a>> {
        let node = Node {
            snapd: registry.daemon("snapd", "")?,
            restored: registry.daemon("restored", "")?,
            edgepointd: registry.daemon("edgepointd", "")?,
            registry,
            app,
        };
        let _: Value = node.client().post("/v1/apps", &json!({ "manifest": manifest }))?;
        node.reach("running")?;
        Ok(node)
    }

    fn client(&self) -> &Client {
        &self.edgepointd.client
    }

    fn status(&self) -> Result<Value> {
        Ok(self.client().get(&format!("/v1/apps/{}", self.app))?)
    }

    /// Waits until the app is in this state.
    fn reach(&self, state: &str) -> Result<Value> {
        let path = format!("/v1/apps/{}?wait={state}&timeout=60", self.app);
        let status: Value = self.client().get(&path)?;
        ensure!(status["state"] == state, "not {state}: {status}");
        Ok(status)
    }

    fn wakes(&self) -> Result<u64> {
        self.status()?["counts"]["wakes"].as_u64().context("no count")
    }

    /// Waits until it is told that the app has been woken so often: it may have answered
    /// before that.
    fn woken(&self, times: u64) -> Result<Value> {
        poll("the wake to be told", PATIENCE, || {
            let status = self.status()?;
            Ok((status["counts"]["wakes"] == times).then_some(status))
        })
    }

    /// Kills the daemon and starts it again, and does something in between.
    fn begin_again(self, meanwhile: impl FnOnce() -> Result<()>) -> Result<Node<'a>> {
        drop(self.edgepointd);
        meanwhile()?;
        Ok(Node {
            edgepointd: self.registry.daemon("edgepointd", "")?,
            ..self
        })
    }

    fn end(self) -> Result<()> {
        let _: Value = self.client().delete(&format!("/v1/apps/{}", self.app))?;
        let left: Vec<Value> = self.client().get("/v1/apps")?;
        ensure!(left.is_empty(), "{left:?}");
        let known = self.registry.appshot(&["ps", "-o", "json"])?;
        ensure!(known.trim() == "[]", "{known}");
        [self.edgepointd, self.restored, self.snapd]
            .into_iter()
            .try_for_each(Daemon::stop)
    }
}

fn registry(place: &Place) -> Result<Registry> {
    let registry = Registry::new(place)?;
    registry.show_log(place)?;
    Ok(registry)
}

/// What a provider would write of this server.
fn manifest(app: &str, server: &Server<'_>, port: u16) -> Result<String> {
    let options = &server.options;
    let mut text = format!("app = {app:?}\n[start]\ncommand = {:?}\n", options.command);
    if let Some(directory) = &options.cwd {
        writeln!(text, "directory = {:?}", directory.display().to_string())?;
    }
    if let Some(uid) = options.uid {
        writeln!(text, "user = \"{uid}:{}\"", options.gid.unwrap_or(uid))?;
    }
    let env = options.env.iter().filter_map(|pair| pair.split_once('='));
    let env: Vec<String> = env.map(|(key, value)| format!("{key} = {value:?}")).collect();
    writeln!(text, "env = {{ {} }}", env.join(", "))?;
    writeln!(text, "[[listen]]\ntcp = \"127.0.0.1:{port}\"\n[idle]\ntimeout = \"1s\"")?;
    // Some of them tick.
    writeln!(text, "cpu = 50.0")?;
    Ok(text)
}

/// A server on a node: asked while it sleeps, again and again.
fn sleeps_and_wakes(place: &Place, server: &Server<'_>) -> Result<()> {
    let registry = registry(place)?;
    let (node, _) = Node::of_server(&registry, place, server)?;
    let root = node.status()?["root"].as_i64().context("no root")?;
    (server.fill)(i32::try_from(root)?)?;
    for round in 0..4 {
        let state = (server.state)()?;
        node.reach("asleep")?;
        let wakes = node.wakes()?;
        let now = (server.state)().with_context(|| format!("round {round}"))?;
        ensure!(now == state, "round {round}: {now}, not {state}");
        let status = node.woken(wakes + 1).with_context(|| format!("round {round}"))?;
        ensure!(status["last"]["cause"] == "request", "round {round}: {status}");
        (server.use_it)().with_context(|| format!("round {round}"))?;
    }
    node.end()
}

macro_rules! sleeper {
    ($name:ident) => {
        #[test]
        fn $name() {
            in_place(concat!("edgepoint_", stringify!($name)), |place| {
                servers::$name(place, &sleeps_and_wakes)
            });
        }
    };
}
sleeper!(redis_server);
sleeper!(nginx);
sleeper!(node);
sleeper!(go);
sleeper!(java);
sleeper!(python_http_server);

/// Requests at all moments of falling asleep and of waking: each is answered, once.
#[test]
fn no_request_is_lost() {
    in_place("no_request_is_lost", |place| {
        servers::node(place, &|place, server| {
            let registry = registry(place)?;
            let (node, port) = Node::of_server(&registry, place, server)?;
            let add = server.request.context("no request")?;
            // It falls asleep a second after the last request, or a little later.
            for step in 0..30u64 {
                std::thread::sleep(Duration::from_millis(1000 + step * 20));
                add(port).with_context(|| format!("request {step}: {:?}", node.status()))?;
            }
            let state = (server.state)()?;
            let status = node.status()?;
            ensure!(status["counts"]["wakes"].as_u64() > Some(0), "it never slept: {status}");
            node.reach("asleep")?;
            // All at once: one restore, and nobody waits in vain.
            let wakes = node.wakes()?;
            std::thread::scope(|scope| {
                let asked: Vec<_> = (0..100).map(|_| scope.spawn(move || add(port))).collect();
                asked
                    .into_iter()
                    .try_for_each(|asked| asked.join().expect("it does not panic"))
            })?;
            node.woken(wakes + 1)?;
            let count = |state: &str| -> Result<u64> {
                let digits: String = state
                    .chars()
                    .skip_while(|c| !c.is_ascii_digit())
                    .take_while(char::is_ascii_digit)
                    .collect();
                Ok(digits.parse()?)
            };
            let (before, after) = (count(&state)?, count(&(server.state)()?)?);
            ensure!(after == before + 100, "{before} and 100 are not {after}");
            node.end()
        })
    });
}

/// Killed, the daemon leaves the app alone, and takes it up again: running or asleep.
#[test]
fn a_killed_daemon() {
    in_place("a_killed_daemon", |place| {
        servers::node(place, &|place, server| {
            let registry = registry(place)?;
            let (mut node, port) = Node::of_server(&registry, place, server)?;
            for round in 0..3 {
                (server.use_it)()?;
                let (state, root) = ((server.state)()?, node.status()?["root"].clone());
                node = node.begin_again(|| {
                    ensure!((server.state)()? == state, "round {round}: it was touched");
                    Ok(())
                })?;
                let status = node.reach("running")?;
                ensure!(status["root"] == root, "round {round}: {status}");
                node.reach("asleep")?;
                // Who comes while no daemon is there waits for the next one.
                let mut late = None;
                node = node.begin_again(|| {
                    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
                    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
                    late = Some(stream);
                    Ok(())
                })?;
                let told = answer(late.context("nobody came")?)?;
                ensure!(told.contains(&state), "round {round}: {told}, not {state}");
            }
            // Put to sleep by somebody else it is woken, too.
            node.reach("running")?;
            let state = (server.state)()?;
            registry.appshot(&["-q", "snapshot", "--replace", place.unique()])?;
            node.reach("asleep")?;
            ensure!((server.state)()? == state, "it is another one");
            // What was deployed before is not deployed twice.
            let manifest = manifest(place.unique(), server, port)?;
            let again: Value = node.client().post("/v1/apps", &json!({ "manifest": manifest }))?;
            ensure!(again["app"] == place.unique(), "{again}");
            let other = manifest.replace("1s", "2s");
            let refused: Result<Value, Error> = node.client().post("/v1/apps", &json!({ "manifest": other }));
            ensure!(refused.as_ref().is_err_and(|e| e.kind == Kind::Conflict), "{refused:?}");
            node.end()
        })
    });
}

/// Who comes while nobody can restore is answered as soon as somebody can.
#[test]
fn daemons_that_are_not_there() {
    in_place("daemons_that_are_not_there", |place| {
        servers::node(place, &|place, server| {
            let registry = registry(place)?;
            let (node, port) = Node::of_server(&registry, place, server)?;
            (server.fill)(0)?;
            let state = (server.state)()?;
            node.reach("asleep")?;
            drop((node.restored, node.snapd));
            let mut early = std::net::TcpStream::connect(("127.0.0.1", port))?;
            early.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
            let edgepoint = &node.edgepointd.client;
            let path = format!("/v1/apps/{}", node.app);
            poll("the failure to be told", PATIENCE, || {
                let status: Value = edgepoint.get(&path)?;
                let told = status["why"].as_str().is_some_and(|why| why.contains("restored.sock"));
                Ok((status["state"] == "failed" && told).then_some(()))
            })?;
            let restored = registry.daemon("restored", "")?;
            let told = answer(early)?;
            ensure!(told.contains(&state), "{told}, not {state}");
            // Without snapd it goes on.
            poll("the refusal to be told", PATIENCE, || {
                let status: Value = edgepoint.get(&path)?;
                Ok((status["counts"]["sleeps_refused"].as_u64() > Some(0)).then_some(()))
            })?;
            ensure!((server.state)()? == state, "it was touched");
            let snapd = registry.daemon("snapd", "")?;
            let node = Node {
                restored,
                snapd,
                ..node
            };
            node.reach("asleep")?;
            node.end()
        })
    });
}

/// The whole node by one command, until Ctrl-C; one of its daemons is killed meanwhile.
#[test]
fn up() {
    in_place("up", |place| {
        servers::redis_server(place, &|place, server| {
            let registry = registry(place)?;
            let (app, port) = (place.unique(), server.port.context("it has no port")?);
            let file = place.path("app.toml");
            std::fs::write(&file, manifest(app, server, port)?)?;
            let mut up = registry.command("appshot");
            let mut up = up.arg("up").stdout(Stdio::null()).spawn()?;
            let edgepointd = Client::new(registry.run.join("edgepointd.sock"));
            poll("the node to be up", PATIENCE, || Ok(edgepointd.answers().then_some(())))?;
            registry.appshot(&["-q", "deploy", &file.display().to_string()])?;
            (server.fill)(0)?;
            let state = (server.state)()?;
            registry.appshot(&["status", app, "--wait", "asleep"])?;
            let pid = |name: &str| -> Result<i32> {
                let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", up.id()))?;
                let mut children = children.split(' ').filter_map(|pid| pid.parse::<i32>().ok());
                let comm = |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                children.find(|pid| comm(pid).trim() == name).context("no such child")
            };
            kill(Pid::from_raw(pid("restored")?), Signal::SIGKILL)?;
            ensure!((server.state)()? == state, "it is another one");
            registry.appshot(&["remove", app])?;
            kill(Pid::from_raw(i32::try_from(up.id())?), Signal::SIGINT)?;
            let status = up.wait()?;
            ensure!(status.success(), "it ended with {status}");
            Ok(())
        })
    });
}

const ECHO: &str = r#"
import selectors, socket, sys
path, port = sys.argv[1], int(sys.argv[2])
unix = socket.socket(socket.AF_UNIX); unix.bind(path); unix.listen(8)
tcp = socket.create_server(("127.0.0.1", port))
wait = selectors.DefaultSelector()
wait.register(unix, selectors.EVENT_READ); wait.register(tcp, selectors.EVENT_READ)
served = 0
while True:
    for key, _ in wait.select():
        peer, _ = key.fileobj.accept()
        with peer:
            served += 1
            peer.sendall(b"%d %s" % (served, peer.recv(100)))
"#;

/// Unix sockets and those of the internet; suspended, and resumed.
#[test]
fn sockets_of_both_kinds() {
    in_place("sockets_of_both_kinds", |place| {
        let registry = registry(place)?;
        let (app, port) = (place.unique(), appshot_tests::clients::free_port()?);
        let path = place.path("echo.sock");
        let manifest = format!(
            "app = {app:?}\n[start]\ncommand = [\"/usr/bin/python3\", \"-c\", '''{ECHO}''', {path:?}, \"{port}\"]\n\
             [[listen]]\ntcp = \"127.0.0.1:{port}\"\n[[listen]]\nunix = {path:?}\n[idle]\ntimeout = \"1s\"\n"
        );
        let node = Node::deploy(&registry, app, &manifest)?;
        for round in 0..3 {
            node.reach("asleep")?;
            ensure!(ask(UnixStream::connect(&path)?)? == format!("{} ?", 2 * round + 1));
            node.reach("asleep")?;
            ensure!(ask(std::net::TcpStream::connect(("127.0.0.1", port))?)? == format!("{} ?", 2 * round + 2));
        }
        registry.appshot(&["suspend", app])?;
        let mut waiting = std::net::TcpStream::connect(("127.0.0.1", port))?;
        waiting.write_all(b"?")?;
        std::thread::sleep(Duration::from_millis(1500));
        ensure!(node.status()?["state"] == "suspended", "{}", node.status()?);
        registry.appshot(&["resume", app])?;
        ensure!(answer(waiting)? == "7 ?", "who waited was not served");
        // What ends is brought back as it was last asleep.
        let root = node.woken(7)?["root"].as_i64().context("no root")?;
        ensure!(Command::new("kill").args(["-9", &root.to_string()]).status()?.success());
        poll("it to be back", PATIENCE, || {
            let status = node.status()?;
            Ok((status["last"]["cause"] == "recovery" && status["state"] == "running").then_some(()))
        })?;
        node.end()?;
        ensure!(
            !Path::new(&path).exists() || UnixStream::connect(&path).is_err(),
            "somebody listens"
        );
        Ok(())
    });
}

/// One connection after the other, each for a while; it tells by which host name.
const SLOW: &str = r#"
import socket, sys, time
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
while True:
    peer, _ = server.accept()
    with peer:
        asked = peer.recv(100)
        time.sleep(0.1)
        peer.sendall(b"%s %s" % (socket.gethostname().encode(), asked))
"#;

fn slow(app: &str, port: u16, more: &str) -> String {
    format!(
        "app = {app:?}\n{more}\n[start]\ncommand = [\"/usr/bin/python3\", \"-c\", '''{SLOW}''', \"{port}\"]\n\
         [[listen]]\ntcp = \"127.0.0.1:{port}\"\n[idle]\ntimeout = \"2s\"\ncpu = 50.0\n"
    )
}

/// So many clients that ask again and again, each over a new connection, as long as it
/// takes. Answers by whom they were answered, too.
fn asked_by<T>(clients: usize, port: u16, until: impl FnOnce() -> Result<T>) -> Result<(BTreeSet<String>, T)> {
    let over = AtomicBool::new(false);
    let client = || -> Result<BTreeSet<String>> {
        let mut hosts = BTreeSet::new();
        while !over.load(Ordering::Relaxed) {
            let stream = TcpStream::connect(("127.0.0.1", port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let told = ask(stream)?;
            let host = told
                .strip_suffix(" ?")
                .with_context(|| format!("no answer: {told:?}"))?;
            hosts.insert(host.to_owned());
        }
        Ok(hosts)
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        let done = until();
        over.store(true, Ordering::Relaxed);
        let mut hosts = BTreeSet::new();
        for client in clients {
            hosts.append(&mut client.join().expect("it does not panic")?);
        }
        done.map(|done| (hosts, done))
    })
}

impl Node<'_> {
    /// Waits until so many instances run, and no others come.
    fn instances(&self, count: usize) -> Result<Vec<Value>> {
        poll(&format!("{count} instances"), PATIENCE, || {
            let status = self.status()?;
            let instances = status["instances"].as_array().context("no instances")?;
            let all_run = instances.iter().all(|one| one["state"] == "running");
            Ok((all_run && instances.len() == count).then(|| instances.clone()))
        })
        .with_context(|| format!("{:?}", self.status()))
    }
}

/// Instances follow how many ask at once, and nobody who asks notices.
#[test]
fn instances_follow_their_clients() {
    in_place("instances_follow_their_clients", |place| {
        let registry = registry(place)?;
        let (app, port) = (place.unique(), appshot_tests::clients::free_port()?);
        let rules = "[instances]\nmax = 4\n[capacity]\nconnections = 2\n";
        let node = Node::deploy(&registry, app, &(slow(app, port, "") + rules))?;
        let names = |count: usize| -> Vec<String> {
            let further = (2..=count).map(|number| format!("{app}.{number}"));
            std::iter::once(app.to_owned()).chain(further).collect()
        };
        for round in 0..2 {
            let (one, ()) = asked_by(1, port, || node.instances(1).map(drop))?;
            ensure!(one.len() == 1, "round {round}: {one:?}");
            let (many, ()) = asked_by(8, port, || {
                let instances = node.instances(4)?;
                let told: Vec<&str> = instances.iter().filter_map(|one| one["name"].as_str()).collect();
                ensure!(told == names(4), "round {round}: {told:?}");
                let mut further = instances.iter().skip(1);
                let cloned = further.all(|one| one["kind"] == "cloned" && one["root"].is_i64());
                ensure!(cloned, "round {round}: {instances:?}");
                let known = registry.appshot(&["ps"])?;
                ensure!(names(4).iter().all(|name| known.contains(name)), "{known}");
                std::thread::sleep(Duration::from_secs(1));
                Ok(())
            })?;
            ensure!(many.len() == 4, "round {round}: {many:?}");
            // As many as one may carry: without a pause each instance has one of them.
            asked_by(2, port, || node.instances(1).map(drop)).with_context(|| format!("round {round}"))?;
            let known = registry.appshot(&["ps"])?;
            ensure!(!known.contains(&format!("{app}.")), "{known}");
            node.reach("asleep")?;
        }
        let text = node.client().text("/metrics")?;
        let mut counts = text.lines().filter(|line| line.contains("activation_seconds_count"));
        let clones = counts.find(|line| line.contains("cause=\"scale-out\",kind=\"cloned\""));
        ensure!(clones.is_some_and(|line| line.ends_with(" 6")), "{text}");
        node.end()
    });
}

/// Killed in the middle of making and ending instances, the daemon leaves none that the
/// next one does not know, and makes none twice.
#[test]
fn instances_outlive_the_daemon() {
    in_place("instances_outlive_the_daemon", |place| {
        let registry = registry(place)?;
        let (app, port) = (place.unique(), appshot_tests::clients::free_port()?);
        let rules = "[instances]\nmax = 4\n[capacity]\nconnections = 2\n";
        let mut node = Node::deploy(&registry, app, &(slow(app, port, "") + rules))?;
        let roots = |instances: &[Value]| -> BTreeSet<i64> {
            instances.iter().filter_map(|one| one["root"].as_i64()).collect()
        };
        // What the registry knows of processes of this app.
        let known = || -> Result<BTreeSet<i64>> {
            let views: Vec<Value> = serde_json::from_str(&registry.appshot(&["ps", "-o", "json"])?)?;
            let alive = views.iter().filter(|view| view["state"] == "running");
            Ok(alive.filter_map(|view| view["root"].as_i64()).collect())
        };
        for millis in [30, 80, 130, 180, 230] {
            (_, node) = asked_by(8, port, || {
                std::thread::sleep(Duration::from_millis(millis));
                let again = node.begin_again(|| Ok(()))?;
                let instances = again.instances(4)?;
                ensure!(
                    known()? == roots(&instances),
                    "{millis} ms: {:?}, {instances:?}",
                    known()?
                );
                Ok(again)
            })
            .with_context(|| format!("{millis} ms"))?;
            // And while they go.
            (_, node) = asked_by(1, port, || {
                poll("the first to go", PATIENCE, || {
                    let left = node.status()?["instances"].as_array().map_or(0, Vec::len);
                    Ok((left < 4).then_some(()))
                })?;
                let before = known()?;
                let again = node.begin_again(|| Ok(()))?;
                again.instances(1)?;
                ensure!(known()?.is_subset(&before), "{millis} ms: {:?}, {before:?}", known()?);
                Ok(again)
            })
            .with_context(|| format!("{millis} ms, going"))?;
            ensure!(known()?.len() == 1, "{:?}", known()?);
        }
        // One that ends is replaced when it is needed.
        asked_by(8, port, || node.instances(4).map(drop)).context("one more time")?;
        let second = node.instances(4)?[1]["root"].as_i64().context("no root")?;
        kill(Pid::from_raw(i32::try_from(second)?), Signal::SIGKILL)?;
        node.instances(3)?;
        // The first comes back while the others go on.
        let first = node.status()?["root"].as_i64().context("no root")?;
        kill(Pid::from_raw(i32::try_from(first)?), Signal::SIGKILL)?;
        // Who comes before it is gone may be accepted by it still.
        poll("its end", PATIENCE, || {
            Ok((node.status()?["root"] != first).then_some(()))
        })?;
        let back = poll("it to be back", PATIENCE, || {
            asked_by(4, port, || {
                std::thread::sleep(Duration::from_millis(200));
                Ok(())
            })
            .context("without the first")?;
            let status = node.status()?;
            Ok((status["last"]["cause"] == "recovery" && status["state"] == "running").then_some(status))
        })?;
        ensure!(back["root"] != first, "{back}");
        node.end()
    });
}

/// Many more apps than fit: who needs one gets it, and those go that nobody needs.
#[test]
fn a_node_with_little_memory() {
    in_place("a_node_with_little_memory", |place| {
        const APPS: usize = 12;
        const LIMIT: u64 = 32 << 20;
        let registry = registry(place)?;
        let names: Vec<String> = (0..APPS).map(|number| format!("{}-{number}", place.unique())).collect();
        let (_snapd, restored) = (registry.daemon("snapd", "")?, registry.daemon("restored", "")?);
        let edgepointd = registry.daemon_with("edgepointd", &["--memory", &LIMIT.to_string()], "")?;
        let client = &edgepointd.client;
        let mut ports = Vec::new();
        for (number, name) in names.iter().enumerate() {
            let port = appshot_tests::clients::free_port()?;
            // The last is worth more than all others.
            let more = if number + 1 == APPS { "priority = 1" } else { "" };
            let manifest = slow(name, port, more).replace("timeout = \"2s\"", "timeout = \"10m\"");
            let _: Value = client.post("/v1/apps", &json!({ "manifest": manifest }))?;
            let up: Value = client.get(&format!("/v1/apps/{name}?wait=running&timeout=60"))?;
            ensure!(up["counts"]["starts"] == 1, "{up}");
            ports.push(port);
        }
        let ask_for = |number: usize| -> Result<()> {
            let stream = TcpStream::connect(("127.0.0.1", ports[number]))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let told = ask(stream)?;
            ensure!(told.ends_with(" ?"), "no answer: {told:?}");
            Ok(())
        };
        let running = || -> Result<Vec<usize>> {
            let all: Vec<Value> = client.get("/v1/apps")?;
            let state = |name: &String| all.iter().find(|app| app["app"] == **name).map(|app| &app["state"]);
            let runs = |number: &usize| state(&names[*number]).is_some_and(|state| state == "running");
            Ok((0..APPS).filter(runs).collect())
        };
        let used = || -> Result<u64> {
            let text = client.text("/metrics")?;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("appshot_node_memory_bytes{what=\"used\"} "));
            Ok(line.context("it is not told")?.parse()?)
        };
        // One after the other: each that is woken sends away who was needed before all
        // others, but for the one of priority.
        let last = APPS - 1;
        ask_for(last)?;
        for number in [0, 1, 2, 3, 4, 5, 6, 7, 0, 1] {
            let before = running()?;
            ask_for(number)?;
            let told: Value = client.get(&format!("/v1/apps/{}?wait=running", names[number]))?;
            ensure!(told["counts"]["failures"] == 0, "{told}");
            let now = running()?;
            ensure!(
                now.contains(&last) && now.contains(&number),
                "{number}: {before:?}, {now:?}"
            );
            // What an app has shows only when it runs.
            let taken = used()?;
            ensure!(
                taken < LIMIT * 5 / 4,
                "{now:?}: {taken} of {LIMIT}; in waiting: {}; {}",
                restored.client.text("/v1/memory")?,
                client.text("/v1/top")?
            );
            ensure!(now.len() < APPS - 3, "{now:?} do not fit");
        }
        // Many at once, some of them much more than others.
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..4)
                .map(|seed| {
                    scope.spawn(move || {
                        let mut random = seed * 7919 + 17u64;
                        (0..40).try_for_each(|_| {
                            random = random
                                .wrapping_mul(6_364_136_223_846_793_005)
                                .wrapping_add(1_442_695_040_888_963_407);
                            // The nth comes about 1/n as often as the first.
                            let uniform = (random >> 11) as f64 / (1u64 << 53) as f64;
                            let number = ((APPS + 1) as f64).powf(uniform) as usize - 1;
                            ask_for(number).with_context(|| format!("app {number}"))
                        })
                    })
                })
                .collect();
            clients
                .into_iter()
                .try_for_each(|client| client.join().expect("it does not panic"))
        })?;
        // All are needed at once, and not all fit: who does not waits, and is served when
        // others are done.
        let mut all: Vec<TcpStream> = ports
            .iter()
            .map(|port| TcpStream::connect(("127.0.0.1", *port)))
            .collect::<std::io::Result<_>>()?;
        poll("one to wait", PATIENCE, || {
            let apps: Vec<Value> = client.get("/v1/apps")?;
            let waits = |app: &&Value| app["why"].as_str().is_some_and(|why| why.contains("waits for memory"));
            let Some(app) = apps.iter().find(waits).and_then(|app| app["app"].as_str()) else {
                return Ok(None);
            };
            let line = format!("appshot_app_waits_for_memory{{app=\"{app}\",provider=\"local\"}} 1");
            Ok(client.text("/metrics")?.contains(&line).then_some(()))
        })?;
        all.iter_mut().try_for_each(|stream| stream.write_all(b"?"))?;
        for (number, stream) in all.into_iter().enumerate() {
            stream.set_read_timeout(Some(PATIENCE))?;
            let told =
                answer(stream).with_context(|| format!("app {number}: {:?}", client.get::<Value>("/v1/apps")))?;
            ensure!(told.ends_with(" ?"), "app {number}: {told:?}");
        }
        for name in &names {
            let status: Value = client.get(&format!("/v1/apps/{name}"))?;
            ensure!(status["counts"]["failures"] == 0, "{status}");
            let _: Value = client.delete(&format!("/v1/apps/{name}"))?;
        }
        Ok(())
    });
}

/// Instances end under clients that ask without a pause: none of them notices.
fn instances_end_unnoticed(place: &Place, server: &Server<'_>) -> Result<()> {
    let registry = registry(place)?;
    let (app, port) = (place.unique(), server.port.context("it has no port")?);
    let request = server.request.context("no request")?;
    let rules = "[instances]\nmax = 4\n[capacity]\nconnections = 4\n";
    let node = Node::deploy(&registry, app, &(manifest(app, server, port)? + rules))?;
    for round in 0..cycles() {
        // Some that are only connected, for there to be more instances.
        let open: Vec<_> = (0..13)
            .map(|_| TcpStream::connect(("127.0.0.1", port)))
            .collect::<std::io::Result<_>>()?;
        node.instances(4).with_context(|| format!("round {round}"))?;
        drop(open);
        let over = AtomicBool::new(false);
        let asked = std::thread::scope(|scope| {
            let client = || {
                let mut asked = 0u64;
                while !over.load(Ordering::Relaxed) {
                    request(port).with_context(|| format!("request {asked}"))?;
                    asked += 1;
                }
                anyhow::Ok(asked)
            };
            let clients = [scope.spawn(client), scope.spawn(client)];
            let done = node.instances(1);
            over.store(true, Ordering::Relaxed);
            let asked = clients
                .into_iter()
                .map(|client| client.join().expect("it does not panic"));
            let asked = asked.sum::<Result<u64>>()?;
            done.map(|_| asked)
        });
        let asked = asked.with_context(|| format!("round {round}"))?;
        ensure!(asked > 20, "round {round}: only {asked} requests");
    }
    node.reach("asleep")?;
    request(port)?;
    node.end()
}

macro_rules! many {
    ($name:ident, $server:ident) => {
        #[test]
        fn $name() {
            in_place(stringify!($name), |place| {
                servers::$server(place, &instances_end_unnoticed)
            });
        }
    };
}
many!(many_nginx, nginx);
many!(many_node, node);
many!(many_go, go);

/// Some are always there, and work asks for more of them; its owner may have all sleep.
#[test]
fn rules_of_instances() {
    in_place("rules_of_instances", |place| {
        let registry = registry(place)?;
        let (app, port) = (place.unique(), appshot_tests::clients::free_port()?);
        let works = slow(app, port, "").replace("time.sleep(0.1)", "[hash(str(n)) for n in range(600000)]");
        let rules = "[instances]\nmin = 2\nmax = 3\n[capacity]\ncpu = 30.0\n";
        let node = Node::deploy(&registry, app, &(works + rules))?;
        node.instances(2)?;
        asked_by(2, port, || node.instances(3).map(drop))?;
        node.instances(2)?;
        std::thread::sleep(Duration::from_secs(3));
        ensure!(node.status()?["counts"]["sleeps"] == 0, "{}", node.status()?);
        let second = node.instances(2)?[1]["root"].as_i64().context("no root")?;
        kill(Pid::from_raw(i32::try_from(second)?), Signal::SIGKILL)?;
        poll("another one", PATIENCE, || {
            let instances = node.instances(2)?;
            Ok((instances[1]["root"] != second).then_some(()))
        })?;
        registry.appshot(&["suspend", app])?;
        let status = node.status()?;
        ensure!(
            status["state"] == "suspended" && status["instances"] == json!([]),
            "{status}"
        );
        registry.appshot(&["resume", app])?;
        node.instances(2)?;
        let told = registry.appshot(&["status", app])?;
        ensure!(told.contains(&format!("{app}.2")) && told.contains("cloned"), "{told}");
        // Another app cannot be called as one of them.
        let other = slow(&format!("{app}.3"), port, "");
        let refused: Result<Value, Error> = node.client().post("/v1/apps", &json!({ "manifest": other }));
        ensure!(refused.as_ref().is_err_and(|e| e.kind == Kind::Conflict), "{refused:?}");
        node.end()
    });
}

/// Killed at any moment of ending an instance, the daemon leaves all as it was, or has
/// ended it: nobody who asks notices, and the next daemon goes on.
#[test]
fn a_daemon_that_dies_as_it_ends_an_instance() {
    in_place("a_daemon_that_dies_as_it_ends_an_instance", |place| {
        let registry = registry(place)?;
        let (app, port) = (place.unique(), appshot_tests::clients::free_port()?);
        let rules = "[instances]\nmax = 2\n[capacity]\nconnections = 2\n";
        let manifest = slow(app, port, "").replace("timeout = \"2s\"", "timeout = \"1s\"") + rules;
        let mut node = Node::deploy(&registry, app, &manifest)?;
        let mut died = 0;
        for moment in [1, 2, 3, 4, 6, 9, 13, 19, 28, 40, 60, 90] {
            asked_by(4, port, || node.instances(2).map(drop)).with_context(|| format!("moment {moment}"))?;
            (_, node) = asked_by(2, port, || {
                drop(node.edgepointd);
                let mut doomed = registry.daemon("edgepointd", &format!("edgepointd:{moment}"))?;
                poll("the end of the instance, or of the daemon", PATIENCE, || {
                    if doomed.child.try_wait()?.is_some() {
                        died += 1;
                        return Ok(Some(()));
                    }
                    let status: Result<Value, Error> = doomed.client.get(&format!("/v1/apps/{app}"));
                    let one =
                        status.is_ok_and(|status| status["instances"].as_array().is_some_and(|all| all.len() == 1));
                    Ok(one.then_some(()))
                })?;
                drop(doomed);
                let next = Node {
                    edgepointd: registry.daemon("edgepointd", "")?,
                    ..node
                };
                next.instances(1)?;
                Ok(next)
            })
            .with_context(|| format!("moment {moment}"))?;
            let known = registry.appshot(&["ps"])?;
            ensure!(!known.contains(&format!("{app}.")), "moment {moment}: {known}");
        }
        ensure!(died > 5, "it died {died} times only");
        node.end()
    });
}

fn ask(mut stream: impl Read + Write) -> Result<String> {
    stream.write_all(b"?")?;
    answer(stream)
}

fn answer(mut stream: impl Read) -> Result<String> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
