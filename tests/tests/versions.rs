//! Versions of a deployed app: a new one takes over from the old one under clients that
//! always send, and who comes is answered by one of them.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::clients::{free_port, http_get};
use appshot_tests::installed::{Daemon, Registry};
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, need_program, poll};
use libsnap::error::Error;
use nodekit::client::Client;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

struct Node<'a> {
    registry: &'a Registry,
    _snapd: Daemon,
    _restored: Daemon,
    edgepointd: Option<Daemon>,
    app: &'a str,
}

impl<'a> Node<'a> {
    fn new(registry: &'a Registry, app: &'a str, manifest: &str) -> Result<Node<'a>> {
        let node = Node {
            _snapd: registry.daemon("snapd", "")?,
            _restored: registry.daemon("restored", "")?,
            edgepointd: Some(registry.daemon("edgepointd", "")?),
            registry,
            app,
        };
        let _: Value = node.client()?.post("/v1/apps", &json!({ "manifest": manifest }))?;
        node.reach("running")?;
        Ok(node)
    }

    fn client(&self) -> Result<&Client> {
        Ok(&self.edgepointd.as_ref().context("no daemon")?.client)
    }

    fn path(&self) -> String {
        format!("/v1/apps/{}", self.app)
    }

    fn reach(&self, state: &str) -> Result<Value> {
        let path = format!("{}?wait={state}&timeout=60", self.path());
        let status: Value = self.client()?.get(&path)?;
        ensure!(status["state"] == state, "not {state}: {status}");
        Ok(status)
    }

    fn status(&self) -> Result<Value> {
        Ok(self.client()?.get(&self.path())?)
    }

    fn update(&self, manifest: &str) -> Result<Value, Error> {
        let client = self.client().map_err(|e| Error::failed(e.to_string()))?;
        client.put(&self.path(), &json!({ "manifest": manifest }))
    }

    fn rollback(&self) -> Result<Value, Error> {
        let client = self.client().map_err(|e| Error::failed(e.to_string()))?;
        client.post(&format!("{}/rollback", self.path()), &json!({}))
    }

    /// Serves this version, and keeps these.
    fn has(&self, version: u64, kept: &[u64]) -> Result<()> {
        let status = self.status()?;
        let told = status["kept"].as_array().into_iter().flatten();
        let told: Vec<u64> = told.filter_map(|one| one["version"].as_u64()).collect();
        ensure!(
            status["version"] == version && told == kept,
            "not {version}, {kept:?}: {status}"
        );
        let mut wanted: Vec<String> = kept.iter().map(|number| format!("{}.v{number}", self.app)).collect();
        wanted.sort();
        ensure!(self.beside()? == wanted, "{:?}, not {wanted:?}", self.beside()?);
        Ok(())
    }

    /// What there is beside the version that serves: appshots and apps.
    fn beside(&self) -> Result<Vec<String>> {
        let views: Vec<Value> = serde_json::from_str(&self.registry.appshot(&["ps", "-o", "json"])?)?;
        let names = views.iter().filter_map(|view| view["name"].as_str());
        let mut names: Vec<String> = names.filter(|name| *name != self.app).map(str::to_owned).collect();
        names.sort();
        Ok(names)
    }

    fn end(self) -> Result<()> {
        let _: Value = self.client()?.delete(&self.path())?;
        let known = self.registry.appshot(&["ps", "-o", "json"])?;
        ensure!(known.trim() == "[]", "{known}");
        Ok(())
    }
}

impl Node<'_> {
    /// Killed, and begun again.
    fn begin_again(&mut self, meanwhile: impl FnOnce() -> Result<()>) -> Result<()> {
        drop(self.edgepointd.take());
        meanwhile()?;
        self.edgepointd = Some(self.registry.daemon("edgepointd", "")?);
        Ok(())
    }

    fn appshot(&self, name: &str) -> PathBuf {
        self.registry.data.join(format!("appshots/{name}.appshot"))
    }
}

fn manifest(app: &str, port: u16, command: &[&str]) -> String {
    format!(
        "app = {app:?}\n[start]\ncommand = {command:?}\n[[listen]]\ntcp = \"127.0.0.1:{port}\"\n\
         [idle]\ntimeout = \"2s\"\ncpu = 50.0\n[ready]\ntimeout = \"3s\"\n"
    )
}

/// http.server of a directory whose file says which version it is.
fn python(place: &Place, port: u16, version: &str) -> Result<String> {
    let program = need_program(&["/usr/bin/python3"])?.display().to_string();
    let dir = place.path(version);
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("version"), version)?;
    let (port_text, dir) = (port.to_string(), dir.display().to_string());
    let command = [
        &program,
        "-m",
        "http.server",
        &port_text,
        "--bind",
        "127.0.0.1",
        "-d",
        &dir,
    ];
    Ok(manifest(place.unique(), port, &command))
}

/// Counts its requests, and says which version it is: `v1 17`.
fn node_counter(place: &Place, port: u16, version: &str) -> Result<String> {
    let program = need_program(&["node", "nodejs"])?.display().to_string();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers/version.js");
    let (script, port_text) = (script.display().to_string(), port.to_string());
    Ok(manifest(
        place.unique(),
        port,
        &[&program, &script, &port_text, version],
    ))
}

/// Asks all the time, from several threads, while something is done. Answers what was
/// answered, in order, without repetitions; each answer's first word tells the version.
fn under_load<T>(port: u16, threads: usize, act: impl FnOnce() -> Result<T>) -> Result<(T, Vec<String>)> {
    let (stop, told) = (AtomicBool::new(false), Mutex::new(Vec::<String>::new()));
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| -> Result<u64> {
                    let mut asked = 0;
                    while !stop.load(Ordering::Relaxed) {
                        let answer = http_get(port, "/version").with_context(|| format!("after {asked}"))?;
                        let version = answer.split_whitespace().next().unwrap_or_default().to_owned();
                        let mut told = told.lock().unwrap();
                        if told.last() != Some(&version) {
                            told.push(version);
                        }
                        asked += 1;
                    }
                    Ok(asked)
                })
            })
            .collect();
        std::thread::sleep(Duration::from_millis(300));
        let done = act();
        std::thread::sleep(Duration::from_millis(300));
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            let asked = client.join().expect("it does not panic")?;
            ensure!(asked > 0, "nobody was answered");
        }
        Ok((done?, told.lock().unwrap().clone()))
    })
}

type Make = fn(&Place, u16, &str) -> Result<String>;

/// Forth, back, and forth again.
fn takes_over(place: &Place, make: Make) -> Result<()> {
    let registry = Registry::new(place)?;
    registry.show_log(place)?;
    let port = free_port()?;
    let [first, second] = ["v1", "v2"].map(|version| make(place, port, version));
    let (first, second) = (first?, second?);
    let node = Node::new(&registry, place.unique(), &first)?;
    node.has(1, &[])?;
    let (_, told) = under_load(port, 1, || Ok(node.update(&second)?))?;
    ensure!(told == ["v1", "v2"], "{told:?}");
    node.has(2, &[1])?;
    let (_, told) = under_load(port, 1, || Ok(node.rollback()?))?;
    ensure!(told == ["v2", "v1"], "{told:?}");
    node.has(1, &[2])?;
    // Asleep, it is woken as the other one.
    node.reach("asleep")?;
    node.rollback()?;
    ensure!(node.status()?["state"] == "asleep", "{}", node.status()?);
    ensure!(http_get(port, "/version")?.starts_with("v2"), "not the other one");
    node.has(2, &[1])?;
    node.end()
}

#[test]
fn python_takes_over() {
    in_place("versions_python", |place| takes_over(place, python));
}

#[test]
fn node_takes_over() {
    in_place("versions_node", |place| takes_over(place, node_counter));
}

/// From many clients at once nothing is lost either.
#[test]
fn many_clients() {
    in_place("versions_many_clients", |place| {
        let registry = Registry::new(place)?;
        registry.show_log(place)?;
        let port = free_port()?;
        let node = Node::new(&registry, place.unique(), &node_counter(place, port, "v1")?)?;
        let second = node_counter(place, port, "v2")?;
        under_load(port, 6, || Ok(node.update(&second)?))?;
        node.has(2, &[1])?;
        for (serves, kept) in [(1, 2), (2, 1), (1, 2)] {
            under_load(port, 6, || Ok(node.rollback()?))?;
            node.has(serves, &[kept])?;
        }
        under_load(port, 6, || Ok(node.update(&second.replace("2s", "3s"))?))?;
        node.has(3, &[2, 1])?;
        node.rollback()?;
        node.has(1, &[2, 3])?;
        node.end()
    });
}

/// Both versions go on where they were when the other one took over.
#[test]
fn state_is_kept() {
    in_place("versions_state_is_kept", |place| {
        let registry = Registry::new(place)?;
        registry.show_log(place)?;
        let port = free_port()?;
        let node = Node::new(&registry, place.unique(), &node_counter(place, port, "v1")?)?;
        let ask = |wanted: &str| -> Result<()> {
            let answer = http_get(port, "/")?;
            ensure!(answer.trim() == wanted, "{answer}, not {wanted}");
            Ok(())
        };
        (1..=5).try_for_each(|count| ask(&format!("v1 {count}")))?;
        node.update(&node_counter(place, port, "v2")?)?;
        (1..=3).try_for_each(|count| ask(&format!("v2 {count}")))?;
        node.rollback()?;
        ask("v1 6")?;
        node.rollback()?;
        ask("v2 4")?;
        node.end()
    });
}

/// Older ones than are to be kept go.
#[test]
fn so_many_are_kept() {
    in_place("versions_so_many_are_kept", |place| {
        let registry = Registry::new(place)?;
        registry.show_log(place)?;
        let port = free_port()?;
        let keeps =
            |version: &str| -> Result<String> { Ok(node_counter(place, port, version)? + "[versions]\nkeep = 1\n") };
        let node = Node::new(&registry, place.unique(), &keeps("v1")?)?;
        for number in 2..=4 {
            node.update(&keeps(&format!("v{number}"))?)?;
            node.has(number, &[number - 1])?;
        }
        ensure!(http_get(port, "/")?.starts_with("v4 "), "another one serves");
        node.end()
    });
}

/// What does not come up, or cannot take over, changes nothing; the reason is told.
#[test]
fn what_cannot_take_over() {
    in_place("versions_what_cannot_take_over", |place| {
        let registry = Registry::new(place)?;
        registry.show_log(place)?;
        let (port, other) = (free_port()?, free_port()?);
        let first = node_counter(place, port, "v1")?;
        let node = Node::new(&registry, place.unique(), &first)?;
        let app = place.unique();
        let elsewhere = node_counter(place, port, "v2")?.replace(
            &format!("version.js\", \"{port}\""),
            &format!("version.js\", \"{other}\""),
        );
        let cases = [
            (
                manifest(app, port, &["sh", "-c", "echo it is broken; exit 3"]),
                "it is broken",
            ),
            (manifest(app, port, &["sh", "-c", "exit 3"]), "has ended"),
            (manifest(app, port, &["sleep", "1000"]), "does not listen on"),
            (elsewhere, "does not listen on"),
            (manifest(app, port, &["no-such-program"]), "no such program"),
            (node_counter(place, other, "v2")?, "who comes there would be refused"),
            (
                first.clone() + "[[listen]]\nunix = \"/tmp/x.sock\"\n",
                "cannot be handed over",
            ),
            (
                first.clone() + "[[listen]]\ntcp = \"10.1.2.3:80\"\n",
                "cannot be handed over",
            ),
            (format!("provider = \"other\"\n{first}"), "of provider local"),
            (first.replace(app, "another-app"), "the manifest is that of"),
            (first.clone() + "[versions]\nkeep = 21\n", "from 1 to 20"),
        ];
        for (manifest, because) in &cases {
            let (refused, told) = under_load(port, 1, || Ok(node.update(manifest)))?;
            let error = refused.err().with_context(|| format!("not refused: {manifest}"))?;
            ensure!(error.to_string().contains(because), "{error}, not {because}");
            ensure!(told == ["v1"], "{told:?}");
            node.has(1, &[])?;
        }
        let error = node.rollback().err().context("there is nothing to roll back to")?;
        ensure!(error.to_string().contains("no other version"), "{error}");
        node.end()
    });
}

/// A version that cannot be restored gives way to the one before.
#[test]
fn falls_back() {
    in_place("versions_falls_back", |place| {
        let registry = Registry::new(place)?;
        registry.show_log(place)?;
        let port = free_port()?;
        let node = Node::new(&registry, place.unique(), &node_counter(place, port, "v1")?)?;
        ensure!(http_get(port, "/")?.trim() == "v1 1", "not v1");
        node.reach("asleep")?;
        let status = node.update(&node_counter(place, port, "v2")?)?;
        ensure!(status["state"] == "asleep", "{status}");
        damage(&node.appshot(place.unique()))?;
        let answer = http_get(port, "/")?;
        ensure!(answer.trim() == "v1 2", "{answer}");
        node.has(1, &[])?;
        let status = node.status()?;
        let notice = status["notice"].as_str().unwrap_or_default();
        ensure!(notice.contains("version 2 could not be restored"), "{status}");
        let told = registry.appshot(&["status", place.unique()])?;
        ensure!(told.contains("version 2 could not be restored"), "{told}");
        // One that is kept is verified, too, before it may serve.
        node.update(&node_counter(place, port, "v3")?)?;
        node.has(3, &[1])?;
        damage(&node.appshot(&format!("{}.v1", place.unique())))?;
        ensure!(node.rollback().is_err(), "a damaged one serves");
        ensure!(http_get(port, "/")?.starts_with("v3"), "another one serves");
        node.end()
    });
}

/// Who stays connected is not cut off: the old version goes on, and takes others again. A
/// listener can be added, and goes with a rollback.
#[test]
fn listeners_and_connections() {
    in_place("versions_listeners_and_connections", |place| {
        let registry = Registry::new(place)?;
        registry.show_log(place)?;
        let (port, more) = (free_port()?, free_port()?);
        let node = Node::new(&registry, place.unique(), &node_counter(place, port, "v1")?)?;
        let second = node_counter(place, port, "v2")?.replace("\"v2\"]", &format!("\"v2\", \"{more}\"]"))
            + &format!("[[listen]]\ntcp = \"127.0.0.1:{more}\"\n");
        let mut stays = TcpStream::connect(("127.0.0.1", port))?;
        stays.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n")?;
        ensure!(http_get(port, "/")?.starts_with("v1 "), "not v1");
        let (refused, told) = under_load(port, 1, || Ok(node.update(&second)))?;
        let error = refused.err().context("who was connected was cut off")?;
        ensure!(error.to_string().contains("connections are open: 1"), "{error}");
        ensure!(told == ["v1"], "{told:?}");
        node.has(1, &[])?;
        stays.write_all(b"Connection: close\r\n\r\n")?;
        let mut answer = String::new();
        stays.read_to_string(&mut answer)?;
        ensure!(answer.contains("v1 "), "{answer}");
        node.update(&second)?;
        ensure!(http_get(port, "/")?.starts_with("v2 "), "not v2");
        ensure!(http_get(more, "/")?.starts_with("v2 "), "it does not listen on both");
        node.rollback()?;
        ensure!(http_get(port, "/")?.starts_with("v1 "), "not v1");
        ensure!(http_get(more, "/").is_err(), "somebody listens where nobody should");
        node.rollback()?;
        ensure!(http_get(more, "/")?.starts_with("v2 "), "it does not listen on both");
        let metrics = node.client()?.text("/metrics")?;
        for (name, value) in [
            ("appshot_app_version{", " 2"),
            ("outcome=\"failed\"", " 1"),
            ("outcome=\"updated\"", " 1"),
            ("outcome=\"rolled-back\"", " 2"),
        ] {
            let line = metrics.lines().find(|line| line.contains(name)).context(name)?;
            ensure!(line.ends_with(value), "{line}");
        }
        node.end()
    });
}

/// Further instances end before another version takes over.
#[test]
fn further_instances() {
    in_place("versions_further_instances", |place| {
        let registry = Registry::new(place)?;
        registry.show_log(place)?;
        let port = free_port()?;
        let several = |version: &str| -> Result<String> {
            Ok(node_counter(place, port, version)? + "[instances]\nmin = 2\nmax = 2\n")
        };
        let node = Node::new(&registry, place.unique(), &several("v1")?)?;
        let two = || {
            poll("two instances", PATIENCE, || {
                let status = node.status()?;
                let running = status["instances"].as_array().into_iter().flatten();
                Ok((running.filter(|one| one["root"].is_number()).count() == 2).then_some(()))
            })
        };
        two()?;
        let (_, told) = under_load(port, 1, || Ok(node.update(&several("v2")?)?))?;
        ensure!(told == ["v1", "v2"], "{told:?}");
        two()?;
        let (_, told) = under_load(port, 1, || Ok(node.rollback()?))?;
        ensure!(told == ["v2", "v1"], "{told:?}");
        node.end()
    });
}

/// Changes a byte in the middle of the largest part.
fn damage(appshot: &Path) -> Result<()> {
    let parts = std::fs::read_dir(appshot)?.collect::<std::io::Result<Vec<_>>>()?;
    let size = |path: &Path| path.metadata().map_or(0, |meta| meta.len());
    let part = parts.iter().map(|part| part.path()).max_by_key(|path| size(path));
    let part = part.context("an empty appshot")?;
    let mut bytes = std::fs::read(&part)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    Ok(std::fs::write(part, bytes)?)
}

/// Killed at any moment of an update, one version serves, and nothing of another is left
/// but what is kept.
#[test]
fn killed_daemon() {
    in_place("versions_killed_daemon", |place| {
        let registry = Registry::new(place)?;
        registry.show_log(place)?;
        let port = free_port()?;
        let mut node = Node::new(&registry, place.unique(), &node_counter(place, port, "v1")?)?;
        let (mut serves, mut kept) = (1, Vec::new());
        let mut finished = 0;
        for round in 0..14u64 {
            let client = node.client()?.clone();
            let (path, next) = (node.path(), node_counter(place, port, &format!("r{round}"))?);
            std::thread::scope(|scope| -> Result<()> {
                let update = scope.spawn(move || client.put::<Value>(&path, &json!({ "manifest": next })));
                std::thread::sleep(Duration::from_millis(10 + round * 60));
                let answer = http_get(port, "/");
                node.begin_again(|| Ok(()))?;
                let _ = update.join().expect("it does not panic");
                answer.map(drop)
            })?;
            let answer = http_get(port, "/").with_context(|| format!("round {round}"))?;
            let status = node.status()?;
            let now = status["version"].as_u64().context("no version")?;
            let is_new = answer.starts_with(&format!("r{round} "));
            ensure!(is_new == (now != serves), "round {round}: {answer}, {status}");
            if is_new {
                finished += 1;
                kept.push(serves);
                if kept.len() > 2 {
                    kept.remove(0);
                }
                serves = now;
            }
            poll("nothing to be left", PATIENCE, || Ok(node.has(serves, &kept).ok()))
                .with_context(|| format!("round {round}: {:?}, {kept:?}", node.beside()))?;
        }
        eprintln!("{finished} of 14 were finished");
        // Decided, and killed before names followed, or between them.
        node.update(&node_counter(place, port, "last")?)?;
        node.reach("asleep")?;
        let status = node.status()?;
        let (last, app) = (status["version"].as_u64().context("no version")?, place.unique());
        for half in [false, true] {
            let own = node.appshot(app);
            let (new, old) = (
                node.appshot(&format!("{app}.v{last}")),
                node.appshot(&format!("{app}.v{serves}")),
            );
            node.begin_again(|| {
                std::fs::rename(&own, new)?;
                if !half {
                    std::fs::rename(old, &own)?;
                }
                Ok(())
            })?;
            let answer = http_get(port, "/")?;
            ensure!(answer.starts_with("last "), "{answer}");
            node.reach("asleep")?;
        }
        node.rollback()?;
        ensure!(node.status()?["version"] == serves, "{}", node.status()?);
        node.end()
    });
}
