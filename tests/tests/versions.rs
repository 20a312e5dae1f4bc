//! Versions of a deployed app: a new one takes over from the old one under clients that
//! always send, and who comes is answered by one of them.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::clients::{free_port, http_get};
use appshot_tests::installed::{Daemon, Registry};
use appshot_tests::trial::in_place;
use appshot_tests::verdict::need_program;
use libsnap::error::Error;
use nodekit::client::Client;
use serde_json::{Value, json};
use std::path::Path;
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
