//! Traces of sleeps and wakes, as a collector gets them that reads by the published
//! definitions: what belongs below what, and when.

use anyhow::{Context, Result, bail, ensure};
use appshot_tests::app::Place;
use appshot_tests::clients::free_port;
use appshot_tests::installed::Registry;
use appshot_tests::node::{Node, python};
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, need_program, note, poll, skip};
use nodekit::local::connect;
use serde_json::Value;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Clocks are read one after the other.
const NANOS_APART: u64 = 2_000_000;

/// What takes traces, in a process of its own; killed when this is dropped.
struct Collector {
    child: Child,
    port: u16,
    file: PathBuf,
}

impl Drop for Collector {
    fn drop(&mut self) {
        let _ = self.child.kill().and_then(|()| self.child.wait());
    }
}

impl Collector {
    fn begin(place: &Place, port: u16) -> Result<Collector> {
        let python = Path::new("/opt/appshot-tests/bin/python3");
        if !Path::new("/opt/appshot-tests/traces").exists() {
            return skip("opentelemetry-proto (`tests/setup.sh`)");
        }
        let (script, file) = (script("collector.py"), place.path("spans"));
        let child = Command::new(python)
            .arg(script)
            .arg(port.to_string())
            .arg(&file)
            .stdin(Stdio::null())
            .spawn()?;
        let collector = Collector { child, port, file };
        poll("the collector to listen", PATIENCE, || Ok(connect(port).ok()))?;
        Ok(collector)
    }

    fn spans(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let lines = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        Ok(lines.map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// The spans of this trace, once there is one of each of these names, and what all are below.
    fn trace(&self, id: &str, names: &[&str]) -> Result<Trace> {
        let found = poll("the whole trace", PATIENCE, || {
            let spans: Vec<Value> = self.spans()?.into_iter().filter(|span| span["trace"] == id).collect();
            let has = |name: &&str| spans.iter().any(|span| span["name"] == *name);
            let is_root = |span: &Value| span["parent"] == "" || span["parent"] == CLIENT_SPAN;
            let hangs = |span: &Value| is_root(span) || spans.iter().any(|other| other["span"] == span["parent"]);
            if !spans.iter().all(hangs) {
                return Ok(None);
            }
            Ok(names.iter().all(has).then_some(Trace(spans)))
        });
        found.with_context(|| format!("{names:?} of {id}: {:#?}", self.spans()))
    }
}

/// Spans that belong together.
struct Trace(Vec<Value>);

impl Trace {
    fn below(&self, parent: &str) -> Vec<&Value> {
        self.0.iter().filter(|span| span["parent"] == parent).collect()
    }

    /// The one with this name below that span; it lies within it.
    fn child(&self, parent: &Value, name: &str) -> Result<&Value> {
        let below = self.below(text(parent, "span"));
        let named: Vec<&&Value> = below.iter().filter(|span| span["name"] == name).collect();
        let [child] = named[..] else {
            bail!("{} {name} below {parent}: {:#?}", named.len(), self.0);
        };
        let (above, own) = (times(parent)?, times(child)?);
        ensure!(
            above.0 <= own.0 + NANOS_APART && own.1 <= above.1 + NANOS_APART,
            "{name} is not within what it is below: {child} {parent}"
        );
        Ok(child)
    }
}

fn text<'a>(span: &'a Value, key: &str) -> &'a str {
    span[key].as_str().unwrap_or_default()
}

fn times(span: &Value) -> Result<(u64, u64)> {
    let read = |key: &str| span[key].as_u64().with_context(|| format!("no {key}: {span}"));
    let (begin, end) = (read("begin")?, read("end")?);
    ensure!(begin <= end, "it ends before it begins: {span}");
    Ok((begin, end))
}

fn service(span: &Value) -> &str {
    text(&span["resource"], "service.name")
}

fn script(name: &str) -> String {
    let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers");
    servers.join(name).display().to_string()
}

/// A node whose daemons send traces there, with an HTTP entry.
fn node(place: &Place, collector: u16, http: u16) -> Result<Node> {
    node_with(place, collector, &["--http", &format!("127.0.0.1:{http}")])
}

/// The same with these arguments of its `edgepointd`.
fn node_with(place: &Place, collector: u16, arguments: &[&str]) -> Result<Node> {
    let registry = Registry::new(place)?;
    registry.show_log(place)?;
    let endpoint = format!("http://127.0.0.1:{collector}");
    let begin = |name: &'static str, arguments: &[&str]| {
        let mut command = registry.command(name);
        command
            .args(arguments)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
            .env("OTEL_BSP_SCHEDULE_DELAY", "100");
        registry.begin(name, command)
    };
    Ok(Node {
        snapd: begin("snapd", &[])?,
        restored: begin("restored", &[])?,
        edgepointd: begin("edgepointd", arguments)?,
        registry,
    })
}

fn shop(place: &Place) -> Result<(String, String)> {
    let program = need_program(&["node"])?.display().to_string();
    let listen = format!("127.0.0.1:{}", free_port()?);
    let manifest = format!(
        "[start]\ncommand = [{program:?}, {:?}, {listen:?}, \"\"]\n[[listen]]\ntcp = {listen:?}\n\
         [[route]]\nhost = \"shop.example\"\n[idle]\ntimeout = \"1s\"\ncpu = 50.0\n",
        script("dispatch.js")
    );
    Ok((format!("{}-shop", place.unique()), manifest))
}

fn get(port: u16, path: &str, fields: &str) -> Result<String> {
    let mut stream = connect(port)?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n{fields}\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(answer)
}

const CLIENT: &str = "0af7651916cd43dd8448eb211c80319c";
const CLIENT_SPAN: &str = "b7ad6b7169203331";

/// The phases of the engine, as spans one after the other within that of the daemon.
fn phases_are(trace: &Trace, work: &Value, phases: &Value) -> Result<()> {
    let phases = phases.as_array().context("no phases")?;
    let (mut spans, within) = (trace.below(text(work, "span")), times(work)?);
    spans.sort_by_key(|span| span["begin"].as_u64());
    ensure!(
        spans.len() == phases.len() && !spans.is_empty(),
        "{spans:#?} {phases:?}"
    );
    let mut last = within.0;
    for (span, phase) in spans.iter().zip(phases) {
        let (begin, end) = times(span)?;
        let micros = phase["micros"].as_u64().context("no micros")?;
        ensure!(span["name"] == phase["name"], "{span} {phase}");
        ensure!((end - begin).abs_diff(micros * 1000) < NANOS_APART, "{span} {phase}");
        ensure!(last <= begin + NANOS_APART, "{span} begins before the last has ended");
        last = end;
    }
    ensure!(last <= within.1 + NANOS_APART, "phases last longer than their work");
    Ok(())
}

/// Of a client that has a trace: its request, what that waited for, and what the app was told.
#[test]
fn a_wake_is_one_trace() {
    in_place("a_wake_is_one_trace", |place| {
        let (collector, http) = (Collector::begin(place, free_port()?)?, free_port()?);
        let node = node(place, collector.port, http)?;
        let (app, manifest) = shop(place)?;
        node.deploy(&app, &manifest)?;
        node.reach(&app, "asleep")?;
        let fields = format!("traceparent: 00-{CLIENT}-{CLIENT_SPAN}-01\r\ntracestate: mine=1\r\n");
        let answer = get(http, "/head", &fields)?;
        let status = node.reach(&app, "running")?;
        ensure!(status["last"]["trace_id"] == CLIENT, "{status}");
        let trace = collector.trace(CLIENT, &["GET", "wake", "answer", "go", "restore"])?;
        let request = Trace::below(&trace, CLIENT_SPAN);
        let [request] = request[..] else {
            bail!("{request:#?}");
        };
        let noted = &request["attributes"];
        ensure!(
            request["kind"] == 2 && noted["appshot.kind"] == "woken" && noted["http.response.status_code"] == 200,
            "{request}"
        );
        ensure!(noted["appshot.app"] == app.as_str(), "{request}");
        trace.child(request, "queue")?;
        let upstream = trace.child(request, "GET")?;
        let wake = trace.child(request, "wake")?;
        ensure!(wake["attributes"]["appshot.kind"] == "woken", "{wake}");
        ensure!(wake["attributes"]["appshot.cause"] == "request", "{wake}");
        let answered = trace.child(upstream, "answer")?;
        // It is up, or has answered before that was told.
        let up = times(wake)?.1.min(times(answered)?.1);
        ensure!(times(answered)?.0.abs_diff(up) < NANOS_APART, "{answered} {wake}");
        let asked = trace.child(wake, "POST /v1/instances")?;
        let serves = trace.child(asked, "POST /v1/instances")?;
        ensure!((asked["kind"].as_u64(), serves["kind"].as_u64()) == (Some(3), Some(2)));
        let restore = trace.child(serves, "restore")?;
        let services = [request, wake, serves, restore].map(service);
        ensure!(
            services == ["edgepointd", "edgepointd", "restored", "restored"],
            "{services:?}"
        );
        phases_are(&trace, restore, &status["last"]["phases"])?;
        // The app's own spans belong below that of who asked it.
        let told = format!("00-{CLIENT}-{}-01", text(upstream, "span"));
        ensure!(answer.contains(&told) && answer.contains("mine=1"), "{told}: {answer}");
        ensure!(!answer.contains(CLIENT_SPAN), "{answer}");

        // It sleeps again: nobody asked for that.
        node.reach(&app, "asleep")?;
        let names = ["sleep", "snapshot", "survey"];
        let sleeps = poll("a sleep", PATIENCE, || {
            let all = collector.spans()?;
            let sleeps: Vec<Value> = all.into_iter().filter(|span| span["name"] == "sleep").collect();
            Ok((sleeps.len() > 1).then_some(sleeps))
        })?;
        let sleep = sleeps.last().context("none")?;
        ensure!(sleep["parent"] == "" && sleep["status"] != 2, "{sleep}");
        let trace = collector.trace(text(sleep, "trace"), &names)?;
        let asked = trace.child(sleep, "POST /v1/snapshots")?;
        let serves = trace.child(asked, "POST /v1/snapshots")?;
        let snapshot = trace.child(serves, "snapshot")?;
        ensure!(service(snapshot) == "snapd", "{snapshot}");
        ensure!(trace.below(text(snapshot, "span")).len() > 4, "no phases: {snapshot}");

        // Many come at once, each with a trace of its own: one has the wake, the others say which.
        let ids: Vec<String> = (1..=8).map(|number| format!("{number:032x}")).collect();
        std::thread::scope(|scope| {
            let ask = |id: &String| get(http, "/count", &format!("traceparent: 00-{id}-{CLIENT_SPAN}-01\r\n"));
            let asked: Vec<_> = ids.iter().map(|id| scope.spawn(move || ask(id))).collect();
            let answers = asked.into_iter().map(|asked| asked.join());
            answers
                .map(|answer| answer.ok().context("it panicked")?)
                .try_for_each(|a| a.map(drop))
        })?;
        let last = node.status(&app)?["last"]["trace_id"].clone();
        let mut linked = 0;
        let wake = collector.trace(last.as_str().context("no trace")?, &["wake"])?.0;
        let wake = wake.iter().find(|span| span["name"] == "wake").context("no wake")?;
        for id in &ids {
            let trace = collector.trace(id, &["queue"])?.0;
            ensure!(
                trace.iter().any(|span| span["name"] == "wake") == (last == id.as_str()),
                "{trace:#?}"
            );
            let links = trace
                .iter()
                .filter(|span| span["links"] == serde_json::json!([wake["span"]]));
            linked += links.count();
        }
        ensure!(linked == ids.len() - 1, "{linked} say which wake they waited for");

        // What is warm is two spans; what the client does not want is none, and the app hears so.
        let id = "f".repeat(32);
        get(http, "/count", &format!("traceparent: 00-{id}-{CLIENT_SPAN}-01\r\n"))?;
        let warm = collector.trace(&id, &["GET"])?;
        poll("both spans", PATIENCE, || {
            Ok((collector.trace(&id, &["GET"])?.0.len() == 2).then_some(()))
        })?;
        ensure!(warm.0.iter().all(|span| span["name"] == "GET"), "{:#?}", warm.0);
        let unwanted = "e".repeat(32);
        let answer = get(
            http,
            "/head",
            &format!("traceparent: 00-{unwanted}-{CLIENT_SPAN}-00\r\n"),
        )?;
        ensure!(
            answer.contains(&format!("00-{unwanted}-")) && !answer.contains("-01"),
            "{answer}"
        );
        node.end()?;
        ensure!(collector.spans()?.iter().all(|span| span["trace"] != unwanted.as_str()));
        Ok(())
    });
}

/// Whom the app answers itself we do not see: the wake is the root, and the app has accepted.
#[test]
fn a_wake_that_nobody_passes_on() {
    in_place("a_wake_that_nobody_passes_on", |place| {
        let collector = Collector::begin(place, free_port()?)?;
        let node = node(place, collector.port, free_port()?)?;
        let (app, port) = (format!("{}-own", place.unique()), free_port()?);
        let program =
            "import sys, http.server as h; h.test(h.SimpleHTTPRequestHandler, port=int(sys.argv[1]), bind='127.0.0.1')";
        node.deploy(&app, &python(program, port, "[idle]\ntimeout = \"1s\""))?;
        node.reach(&app, "asleep")?;
        get(port, "/", "").or_else(|error| match error.to_string().starts_with("HTTP/1.0 200") {
            true => Ok(String::new()),
            false => Err(error),
        })?;
        let status = node.reach(&app, "running")?;
        let id = status["last"]["trace_id"].as_str().context("no trace")?;
        let trace = collector.trace(id, &["wake", "accept", "restore"])?;
        let roots = trace.below("");
        let [wake] = roots[..] else { bail!("{roots:#?}") };
        ensure!(
            wake["name"] == "wake" && wake["attributes"]["appshot.cause"] == "request",
            "{wake}"
        );
        let accept = trace.0.iter().find(|span| span["name"] == "accept").context("none")?;
        ensure!(accept["parent"] == wake["span"] && accept["status"] != 2, "{accept}");
        ensure!(times(accept)?.0 + NANOS_APART >= times(wake)?.1, "{accept} {wake}");
        node.end()
    });
}

/// A collector that never answers, and one that is gone, keep nobody waiting.
#[test]
fn who_collects_keeps_nobody_waiting() {
    in_place("who_collects_keeps_nobody_waiting", |place| {
        let (mut collector, http) = (Collector::begin(place, free_port()?)?, free_port()?);
        let node = node(place, collector.port, http)?;
        let (app, manifest) = shop(place)?;
        node.deploy(&app, &manifest)?;
        let mut slowest = Vec::new();
        for how in ["taken", "never answered", "gone"] {
            match how {
                "never answered" => std::fs::write(place.path("spans.slow"), "")?,
                "gone" => collector.child.kill()?,
                _ => {}
            }
            node.reach(&app, "asleep")?;
            let began = Instant::now();
            get(http, "/count", "")?;
            let woken = began.elapsed();
            // More spans than wait anywhere.
            let mut all: Vec<Duration> = Vec::new();
            for _ in 0..1500 {
                let began = Instant::now();
                get(http, "/count", "")?;
                all.push(began.elapsed());
            }
            all.sort();
            ensure!(woken < Duration::from_secs(1), "{how}: {woken:?}");
            let (half, most) = (all[all.len() / 2], all[all.len() - 1]);
            ensure!(most < Duration::from_secs(1), "{how}: {most:?}");
            slowest.push(format!(
                "{how}: woken in {woken:.1?}, then {half:.1?} and at most {most:.1?}"
            ));
        }
        note("who_collects_keeps_nobody_waiting", &slowest.join("; "));
        let began = Instant::now();
        node.end()?;
        // Three daemons, each with what is left, for a second at most.
        ensure!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        Ok(())
    });
}

/// What waits for memory of the node, and what comes beside what is there, have spans of their own.
#[test]
fn waits_for_room_and_further_instances() {
    in_place("waits_for_room_and_further_instances", |place| {
        let collector = Collector::begin(place, free_port()?)?;
        // One that was never seen is taken to need 16 MiB.
        let limit = (20u64 << 20).to_string();
        let node = node_with(place, collector.port, &["--memory", &limit])?;
        let program = "import socket, sys, time\n\
                       server = socket.create_server(('127.0.0.1', int(sys.argv[1])))\n\
                       kept = []\n\
                       while True: kept.append(server.accept()[0])";
        let (first, second) = (
            format!("{}-first", place.unique()),
            format!("{}-second", place.unique()),
        );
        let ports = [free_port()?, free_port()?];
        node.deploy(&first, &python(program, ports[0], "[idle]\ntimeout = \"10m\""))?;
        let rules = "[idle]\ntimeout = \"10m\"\n[instances]\nmax = 2\n[capacity]\nconnections = 1\n";
        node.deploy(&second, &python(program, ports[1], rules))?;
        ensure!(node.count(&first, "sleeps")? == 1, "it has not made room");
        let named = |name: &'static str| {
            poll(name, PATIENCE, || {
                Ok(collector.spans()?.into_iter().find(|span| span["name"] == name))
            })
        };
        let room = named("room")?;
        let trace = collector.trace(text(&room, "trace"), &["start", "room"])?;
        let roots = trace.below("");
        let [start] = roots[..] else { bail!("{roots:#?}") };
        ensure!(
            start["name"] == "start" && start["attributes"]["appshot.app"] == second.as_str(),
            "{start}"
        );
        trace.child(start, "room")?;

        let _open = [connect(ports[1])?, connect(ports[1])?];
        let clone = named("clone")?;
        let noted = &clone["attributes"];
        ensure!(
            noted["appshot.app"] == second.as_str() && noted["appshot.kind"] == "cloned",
            "{clone}"
        );
        ensure!(noted["appshot.cause"] == "scale-out" && clone["status"] != 2, "{clone}");
        let trace = collector.trace(text(&clone, "trace"), &["clone", "restore"])?;
        let asked = trace.below(text(&clone, "span"));
        ensure!(
            asked.len() == 1 && text(asked[0], "name").starts_with("POST /v1/"),
            "{asked:#?}"
        );
        node.end()
    });
}
