//! Requests that come to apps over the node's HTTP entry: real servers behind it, asleep or
//! not, and real clients before it.

use anyhow::{Context, Result, bail, ensure};
use appshot_tests::app::Place;
use appshot_tests::clients::free_port;
use appshot_tests::installed::{Daemon, Registry};
use appshot_tests::node::python;
use appshot_tests::servers::run;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, need_program, note, poll, skip};
use libsnap::error::{Error, Kind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nodekit::client::Client;
use nodekit::local::connect;
use serde_json::{Value, json};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A node with an HTTP entry, and apps.
struct Entry<'a> {
    place: &'a Place,
    registry: Registry,
    _snapd: Daemon,
    restored: Daemon,
    edgepointd: Option<Daemon>,
    /// Of the entry, and what it takes besides.
    port: u16,
    more: Vec<String>,
    apps: RefCell<Vec<String>>,
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        for app in self.apps.get_mut() {
            let _ = self.registry.appshot(&["kill", "-s", "KILL", "--wait", app]);
        }
    }
}

impl<'a> Entry<'a> {
    fn new(place: &'a Place) -> Result<Entry<'a>> {
        Entry::with(place, Vec::new())
    }

    fn with(place: &'a Place, more: Vec<String>) -> Result<Entry<'a>> {
        let (registry, port) = (Registry::new(place)?, free_port()?);
        registry.show_log(place)?;
        let mut entry = Entry {
            place,
            _snapd: registry.daemon("snapd", "")?,
            restored: registry.daemon("restored", "")?,
            edgepointd: None,
            registry,
            port,
            more,
            apps: RefCell::default(),
        };
        entry.begin()?;
        Ok(entry)
    }

    fn begin(&mut self) -> Result<()> {
        let http = format!("127.0.0.1:{}", self.port);
        let mut arguments = vec!["--http", &http, "--http-drain", "3s"];
        arguments.extend(self.more.iter().map(String::as_str));
        self.edgepointd = Some(self.registry.daemon_with("edgepointd", &arguments, "")?);
        Ok(())
    }

    fn client(&self) -> Result<&Client> {
        Ok(&self.edgepointd.as_ref().context("it has ended")?.client)
    }

    fn name(&self, app: &str) -> String {
        format!("{}-{app}", self.place.unique())
    }

    /// Deploys it under this name and waits until it runs.
    fn deploy(&self, app: &str, manifest: &str) -> Result<()> {
        let name = self.name(app);
        self.apps.borrow_mut().push(name.clone());
        let manifest = format!("app = {name:?}\n{manifest}");
        let _: Value = self.client()?.post("/v1/apps", &json!({ "manifest": manifest }))?;
        self.reach(app, "running").map(drop)
    }

    fn status(&self, app: &str) -> Result<Value> {
        Ok(self.client()?.get(&format!("/v1/apps/{}", self.name(app)))?)
    }

    fn reach(&self, app: &str, state: &str) -> Result<Value> {
        let path = format!("/v1/apps/{}?wait={state}&timeout=60", self.name(app));
        let status: Value = self.client()?.get(&path)?;
        ensure!(status["state"] == state, "not {state}: {status}");
        Ok(status)
    }

    fn wakes(&self, app: &str) -> Result<u64> {
        self.status(app)?["counts"]["wakes"].as_u64().context("no count")
    }

    fn traffic(&self, app: &str) -> Result<Value> {
        let all: Vec<Value> = self.client()?.get("/v1/traffic")?;
        let name = self.name(app);
        all.into_iter()
            .find(|one| one["app"] == name.as_str())
            .context("no traffic")
    }

    fn get(&self, host: &str, path: &str) -> Result<Answer> {
        get(self.port, host, path, "")
    }

    fn end(mut self) -> Result<()> {
        for app in std::mem::take(&mut *self.apps.borrow_mut()) {
            let _: Value = self.client()?.delete(&format!("/v1/apps/{app}"))?;
        }
        let left: Vec<Value> = self.client()?.get("/v1/traffic")?;
        ensure!(left.is_empty(), "{left:?}");
        let edgepointd = self.edgepointd.take().context("it has ended")?;
        edgepointd.stop()
    }
}

/// An answer of a connection that was closed after it.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn read(mut stream: impl Read) -> Result<Answer> {
        let mut all = Vec::new();
        stream.read_to_end(&mut all)?;
        let all = String::from_utf8_lossy(&all).into_owned();
        let (head, body) = all
            .split_once("\r\n\r\n")
            .with_context(|| format!("no answer: {all:?}"))?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        Ok(Answer {
            status,
            head: head.to_owned(),
            body: body.to_owned(),
        })
    }

    /// All values of this field.
    fn field(&self, name: &str) -> String {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let values = lines.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        values.map(|(_, value)| value).collect::<Vec<_>>().join(", ")
    }

    /// How the app came up for it.
    fn kind(&self) -> String {
        let timing = self.field("server-timing");
        let kind = timing.split("appshot;desc=\"").nth(1).unwrap_or_default();
        kind.split('"').next().unwrap_or_default().to_owned()
    }
}

/// Sends these bytes and reads until the connection is closed.
fn exchange(port: u16, request: &str) -> Result<Answer> {
    let mut stream = connect(port)?;
    stream.write_all(request.as_bytes())?;
    Answer::read(stream)
}

fn get(port: u16, host: &str, path: &str, fields: &str) -> Result<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{fields}\r\n");
    exchange(port, &request).with_context(|| format!("{host}{path}"))
}

/// A connection for one request after another; the answers have a length.
struct Kept(BufReader<TcpStream>);

impl Kept {
    fn new(port: u16) -> Result<Kept> {
        Ok(Kept(BufReader::new(connect(port)?)))
    }

    fn ask(&mut self, method: &str, host: &str, path: &str) -> Result<(u16, String)> {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut status, mut length) = (None, None);
        loop {
            let mut line = String::new();
            ensure!(self.0.read_line(&mut line)? > 0, "the connection was closed");
            if status.is_none() {
                status = Some(line.split(' ').nth(1).context("no status")?.parse()?);
            } else if line == "\r\n" {
                break;
            } else if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = Some(value.trim().parse()?);
            }
        }
        let mut body = vec![0; length.context("no length")?];
        self.0.read_exact(&mut body)?;
        Ok((status.context("no status")?, String::from_utf8(body)?))
    }
}

fn script(name: &str) -> String {
    let servers = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers");
    servers.join(name).display().to_string()
}

/// A manifest without a name: node with an answer for everything, asleep after a second.
fn node(place: &str, said: &str, more: &str) -> Result<String> {
    let program = need_program(&["node"])?.display().to_string();
    let listen = match place.starts_with('/') {
        true => format!("unix = {place:?}"),
        false => format!("tcp = {place:?}"),
    };
    Ok(format!(
        "[start]\ncommand = [{program:?}, {:?}, {place:?}, {said:?}]\n[[listen]]\n{listen}\n\
         [idle]\ntimeout = \"1s\"\ncpu = 50.0\n{more}",
        script("dispatch.js")
    ))
}

fn local() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free_port()?))
}

const SHOP: &str = "[[route]]\nhost = \"shop.example\"\n";

/// Debian's python has the modules of Debian.
const PYTHON: &str = "/usr/bin/python3";

fn need_module(name: &str) -> Result<()> {
    match Command::new(PYTHON).args(["-c", &format!("import {name}")]).output() {
        Ok(output) if output.status.success() => Ok(()),
        _ => skip(format!("the python module {name}")),
    }
}

/// Two apps, a Unix socket and a port; each asleep when it is asked.
#[test]
fn routes_by_host_and_path() {
    in_place("routes_by_host_and_path", |place| {
        let entry = Entry::new(place)?;
        let socket = place.path("shop.sock").display().to_string();
        entry.deploy("shop", &node(&socket, "the shop", SHOP)?)?;
        let routes = "[[route]]\nhost = \"shop.example\"\npath = \"/api\"\n[[route]]\nhost = \"*.example\"\n";
        entry.deploy("api", &node(&local()?, "the api", routes)?)?;
        for round in 0..3 {
            for (host, path, app) in [
                ("shop.example", "/", "the shop"),
                ("SHOP.example:8080", "/apix", "the shop"),
                ("shop.example", "/api/x?/y", "the api"),
                ("other.example", "/", "the api"),
            ] {
                let answer = entry.get(host, path)?;
                ensure!(answer.body.ends_with(app), "round {round}: {host}{path}: {answer:?}");
            }
            entry.reach("shop", "asleep")?;
            entry.reach("api", "asleep")?;
            let woken = entry.get("shop.example", "/")?;
            ensure!(woken.kind() == "woken", "{woken:?}");
            ensure!(
                woken.field("server-timing").contains("appshot-wake-go;dur="),
                "{woken:?}"
            );
            ensure!(entry.get("shop.example", "/")?.kind() == "warm");
        }
        ensure!(entry.get("example", "/")?.status == 404);
        // What another app has is not given twice.
        let manifest = format!("app = {:?}\n{}", entry.name("third"), node(&local()?, "", SHOP)?);
        let refused: Result<Value, Error> = entry.client()?.post("/v1/apps", &json!({ "manifest": manifest }));
        let error = refused.err().context("it was deployed")?;
        ensure!(error.kind == Kind::Conflict, "{error}");
        ensure!(error.to_string().contains(&entry.name("shop")), "{error}");
        let metrics = entry.client()?.text("/metrics")?;
        let served = format!("appshot_http_served_total{{app=\"{}\",", entry.name("shop"));
        ensure!(metrics.contains(&served), "{metrics}");
        entry.end()
    });
}

/// What the app is told, and what the client is.
#[test]
fn heads_and_bodies() {
    in_place("heads_and_bodies", |place| {
        let entry = Entry::new(place)?;
        entry.deploy("shop", &node(&local()?, "", SHOP)?)?;
        let said = "X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Private: 1\r\n\
             Connection: x-private\r\nProxy-Connection: keep-alive\r\nCookie: a=1\r\n";
        let answer = get(entry.port, "shop.example:99", "/head?a=%20b", said)?;
        let seen: Value = serde_json::from_str(&answer.body)?;
        ensure!(seen["url"] == "/head?a=%20b", "{seen}");
        let raw = seen["rawHeaders"].as_array().context("no fields")?;
        let texts: Vec<&str> = raw.iter().filter_map(Value::as_str).collect();
        let fields: Vec<String> = texts
            .chunks(2)
            .map(|pair| format!("{}={}", pair[0].to_ascii_lowercase(), pair[1]))
            .collect();
        for wanted in [
            "host=shop.example:99",
            "x-forwarded-for=127.0.0.1",
            "x-forwarded-proto=http",
            "x-forwarded-host=shop.example:99",
            "cookie=a=1",
        ] {
            ensure!(
                fields.iter().any(|field| field == wanted),
                "{wanted} is not in {fields:?}"
            );
        }
        for gone in ["forwarded=", "x-private", "proxy-connection"] {
            ensure!(
                !fields.iter().any(|field| field.starts_with(gone)),
                "{gone}: {fields:?}"
            );
        }
        let timed = entry.get("shop.example", "/timing")?;
        ensure!(
            timed.field("server-timing").starts_with("db;dur=1.5, appshot;desc="),
            "{timed:?}"
        );
        ensure!(timed.field("x-private").is_empty(), "{timed:?}");
        // Streamed both ways: the first part is there long before the last.
        let began = Instant::now();
        let mut stream = connect(entry.port)?;
        stream.write_all(b"GET /stream?n=5&ms=300 HTTP/1.1\r\nHost: shop.example\r\n\r\n")?;
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        while line != "0\n" {
            line.clear();
            ensure!(reader.read_line(&mut line)? > 0, "no first part");
        }
        ensure!(began.elapsed() < Duration::from_millis(1200), "{:?}", began.elapsed());
        let mut upload = connect(entry.port)?;
        upload.write_all(
            b"POST /echo HTTP/1.1\r\nHost: shop.example\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n",
        )?;
        let mut reader = BufReader::new(upload);
        let mut line = String::new();
        while line.trim() != "abc" {
            line.clear();
            ensure!(reader.read_line(&mut line)? > 0, "nothing comes back before the end");
        }
        // Answers without a body, over one connection.
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-m", "10", "-I", "-H", "Host: shop.example"]);
        let page = format!("http://127.0.0.1:{}/count", entry.port);
        let heads = run(curl.arg(&page).arg(format!("{page}?again")))?;
        ensure!(heads.matches("HTTP/1.1 200").count() == 2, "{heads}");
        // 20 MB there and back, over curl, by both versions.
        let file = place.path("upload");
        let data: Vec<u8> = (0..20_000_000u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        std::fs::write(&file, &data)?;
        for version in ["--http1.1", "--http2-prior-knowledge"] {
            let back = place.path("back");
            let mut curl = Command::new("curl");
            curl.args([
                "-sSf",
                version,
                "-H",
                "Host: shop.example",
                "-H",
                "Expect: 100-continue",
            ]);
            curl.args(["--data-binary", &format!("@{}", file.display()), "-o"])
                .arg(&back);
            run(curl.arg(format!("http://127.0.0.1:{}/echo", entry.port)))?;
            ensure!(std::fs::read(&back)? == data, "{version}: other bytes came back");
        }
        let traffic = entry.traffic("shop")?;
        ensure!(traffic["bytes_in"].as_u64() == Some(40_000_003), "{traffic}");
        ensure!(traffic["bytes_out"].as_u64() > Some(40_000_000), "{traffic}");
        entry.end()
    });
}

/// A thousand at once: one wake, and all are served.
#[test]
fn a_thousand_first_requests() {
    in_place("a_thousand_first_requests", |place| {
        let entry = Entry::new(place)?;
        entry.deploy("shop", &node(&local()?, "", SHOP)?)?;
        for round in 0..2u64 {
            entry.reach("shop", "asleep")?;
            let (wakes, port) = (entry.wakes("shop")?, entry.port);
            let request =
                "POST /count HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            let asked: Vec<TcpStream> = (0..1000)
                .map(|_| {
                    let mut stream = connect(port)?;
                    stream.write_all(request.as_bytes())?;
                    Ok(stream)
                })
                .collect::<Result<_>>()?;
            for (number, stream) in asked.into_iter().enumerate() {
                let answer = Answer::read(stream).with_context(|| format!("request {number}"))?;
                ensure!(answer.status == 200, "{number}: {answer:?}");
            }
            let count = entry.get("shop.example", "/count")?.body;
            ensure!(count == (1000 * (round + 1)).to_string(), "{count}");
            let now = entry.wakes("shop")?;
            ensure!(now == wakes + 1, "{now} wakes, and there were {wakes}");
        }
        entry.end()
    });
}

/// A client that ends its side once it has asked gets its answer, from an app that sleeps, too;
/// one that is gone keeps no place.
#[test]
fn who_has_said_all() {
    in_place("who_has_said_all", |place| {
        let entry = Entry::new(place)?;
        entry.deploy("shop", &node(&local()?, "", SHOP)?)?;
        let ask = |request: &str| -> Result<(Answer, Duration)> {
            let mut stream = connect(entry.port)?;
            stream.write_all(request.as_bytes())?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let began = Instant::now();
            Ok((Answer::read(stream)?, began.elapsed()))
        };
        let plain = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: shop.example\r\n\r\n");
        entry.reach("shop", "asleep")?;
        let (woken, _) = ask(&plain("/count"))?;
        ensure!(woken.status == 200 && woken.kind() == "woken", "{woken:?}");
        // Later, with a body, by the older version, and two at once.
        let (slow, took) = ask(&plain("/slow?ms=2000"))?;
        ensure!(
            slow.body == "slow" && took >= Duration::from_secs(2),
            "{slow:?} {took:?}"
        );
        let (echo, _) = ask("POST /echo HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 4\r\n\r\nback")?;
        ensure!(echo.status == 200 && echo.body.contains("back"), "{echo:?}");
        let (old, _) = ask("GET /count HTTP/1.0\r\nHost: shop.example\r\n\r\n")?;
        ensure!(old.status == 200, "{old:?}");
        let (both, _) = ask(&plain("/slow?ms=300").repeat(2))?;
        ensure!(
            both.body.ends_with("slow") && both.body.contains("HTTP/1.1 200"),
            "{both:?}"
        );
        // A part of a request is none: the app may have begun to answer what there is, and has
        // no end of it.
        let part = ask("POST /echo HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 4\r\n\r\nba");
        ensure!(
            part.is_err()
                || part.is_ok_and(|(answer, _)| answer.status != 200 || !answer.body.ends_with("\r\n0\r\n\r\n")),
            "half a body was a whole one"
        );
        // As long as something is sent to it, a client is there.
        let (stream, took) = ask(&plain("/stream?n=4&ms=2000"))?;
        ensure!(
            stream.body.contains('3') && took >= Duration::from_secs(8),
            "{stream:?} {took:?}"
        );
        // Reset it is gone at once; closed, a while later.
        for (how, within) in [("reset", 2), ("closed", 8)] {
            let mut gone = connect(entry.port)?;
            // Who closes with an answer unread says so.
            let asked = match how {
                "reset" => plain("/count") + &plain("/slow?ms=20000"),
                _ => plain("/slow?ms=20000"),
            };
            gone.write_all(asked.as_bytes())?;
            poll("it to be asked", PATIENCE, || {
                let busy = get(entry.port, "shop.example", "/busy", "")?.body;
                Ok((busy == "1").then_some(()))
            })?;
            drop(gone);
            let began = Instant::now();
            poll("it to be forgotten", PATIENCE, || {
                Ok((entry.traffic("shop")?["in_flight"] == 0).then_some(()))
            })?;
            ensure!(
                began.elapsed() < Duration::from_secs(within),
                "{how}: {:?}",
                began.elapsed()
            );
        }
        entry.end()
    });
}

/// As many at once as an instance may carry, some wait, others are told to come again.
#[test]
fn capacity_and_queue() {
    in_place("capacity_and_queue", |place| {
        let entry = Entry::new(place)?;
        let more = format!("{SHOP}[capacity]\nrequests = 2\nqueue = 3\n");
        let app = local()?;
        let direct: u16 = app.rsplit(':').next().unwrap_or_default().parse()?;
        entry.deploy("shop", &node(&app, "", &more)?)?;
        let late = "[[route]]\nhost = \"late.example\"\n[capacity]\nrequests = 1\nqueue_timeout = \"130ms\"\n";
        entry.deploy("late", &node(&local()?, "", late)?)?;
        let all = |host: &'static str, count: usize| -> Result<Vec<Answer>> {
            let port = entry.port;
            std::thread::scope(|scope| {
                let asked: Vec<_> = (0..count)
                    .map(|_| scope.spawn(move || get(port, host, "/slow?ms=700", "")))
                    .collect();
                asked
                    .into_iter()
                    .map(|asked| asked.join().expect("it does not panic"))
                    .collect()
            })
        };
        let answers = all("shop.example", 10)?;
        let (good, full): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
        ensure!((good.len(), full.len()) == (5, 5), "{answers:?}");
        for answer in full {
            ensure!(answer.status == 503 && answer.field("retry-after") == "1", "{answer:?}");
            ensure!(answer.body.contains("as many wait as may"), "{answer:?}");
        }
        let peak = entry.get("shop.example", "/peak")?.body;
        ensure!(peak == "2", "{peak} at once");
        let traffic = entry.traffic("shop")?;
        ensure!(traffic["turned_away"] == 5 && traffic["queued"] == 0, "{traffic}");
        let answers = all("late.example", 3)?;
        let late: Vec<_> = answers.iter().filter(|answer| answer.status == 503).collect();
        ensure!(late.len() == 2 && late[0].body.contains("no time"), "{answers:?}");
        // Who hangs up leaves the queue, and the app is told.
        let mut gone: Vec<TcpStream> = (0..4).map(|_| Ok(connect(entry.port)?)).collect::<Result<_>>()?;
        for stream in &mut gone {
            stream.write_all(b"GET /slow?ms=20000 HTTP/1.1\r\nHost: shop.example\r\n\r\n")?;
        }
        poll("the queue to fill", PATIENCE, || {
            let traffic = entry.traffic("shop")?;
            // Let in is not arrived yet; asked where it listens, the app tells.
            let busy = get(direct, "shop.example", "/busy", "")?.body;
            Ok((busy == "2" && traffic["in_flight"] == 2 && traffic["queued"] == 2).then_some(()))
        })?;
        drop(gone);
        poll("all to be forgotten", PATIENCE, || {
            let traffic = entry.traffic("shop")?;
            Ok((traffic["in_flight"] == 0 && traffic["queued"] == 0).then_some(()))
        })?;
        poll("the app to be told", PATIENCE, || {
            // Of those who wait some may come in before it is seen that they are gone, too.
            let aborted: u32 = entry.get("shop.example", "/aborted")?.body.parse()?;
            Ok((aborted >= 2).then_some(()))
        })?;
        entry.end()
    });
}

/// Requests over the entry make instances, each of which gets its part; they go again, and
/// nobody who asks on notices.
#[test]
fn instances_share_the_requests() {
    in_place("instances_share_the_requests", |place| {
        let entry = Entry::new(place)?;
        let more = format!("{SHOP}[instances]\nmax = 3\n[capacity]\nrequests = 2\n");
        entry.deploy("shop", &node(&local()?, "", &more)?)?;
        entry.reach("shop", "asleep")?;
        let (port, stop) = (entry.port, AtomicBool::new(false));
        let instances = || -> Result<usize> {
            let status = entry.status("shop")?;
            let all = status["instances"].as_array().context("no instances")?;
            Ok(all.iter().filter(|one| one["state"] == "running").count())
        };
        let hosts = std::thread::scope(|scope| {
            let stop = &stop;
            let asked: Vec<_> = (0..6)
                .map(|_| {
                    scope.spawn(move || {
                        let (mut client, mut hosts) = (Kept::new(port)?, BTreeSet::new());
                        while !stop.load(Ordering::Relaxed) {
                            let (status, host) = client.ask("GET", "shop.example", "/host?ms=50")?;
                            ensure!(status == 200, "{status}: {host}");
                            hosts.insert(host);
                        }
                        Ok(hosts)
                    })
                })
                .collect();
            // Who waits while they come up is told so.
            let late = scope.spawn(move || get(port, "shop.example", "/host?ms=50", ""));
            let grown = poll("three instances", PATIENCE, || Ok((instances()? == 3).then_some(())));
            let spread = grown.and_then(|()| {
                let begin = Instant::now();
                poll("no more to wait", PATIENCE, || {
                    let waited = entry.traffic("shop")?["queued"] == 0;
                    Ok((waited && begin.elapsed() > Duration::from_secs(3)).then_some(()))
                })
            });
            stop.store(true, Ordering::Relaxed);
            let late = late.join().expect("it does not panic")?;
            ensure!(["warm", "woken", "cloned"].contains(&&*late.kind()), "{late:?}");
            let mut hosts = BTreeSet::new();
            for one in asked {
                hosts.extend(one.join().expect("it does not panic")?);
            }
            spread.map(|()| hosts)
        })?;
        ensure!(hosts.len() == 3, "not all of them were asked: {hosts:?}");
        // One who asks on, slowly, is served by whoever is left.
        let mut client = Kept::new(port)?;
        poll("the further ones to go", PATIENCE, || {
            let told = client.ask("GET", "shop.example", "/host?ms=0")?;
            ensure!(told.0 == 200, "{told:?}");
            std::thread::sleep(Duration::from_millis(50));
            Ok((instances()? == 1).then_some(()))
        })?;
        entry.reach("shop", "asleep")?;
        ensure!(entry.get("shop.example", "/host")?.kind() == "woken");
        entry.end()
    });
}

/// One request after the other, however many come: 50 ms each.
const SERIAL: &str = "import sys, time, http.server as h
class Serial(h.BaseHTTPRequestHandler):
    def do_GET(self):
        time.sleep(0.05)
        self.send_response(200)
        self.send_header('content-length', '2')
        self.end_headers()
        self.wfile.write(b'ok')
h.test(Serial, h.HTTPServer, port=int(sys.argv[1]), bind='127.0.0.1')";

/// An app that gets slower the more ask it: instances come until answers are in time again, and
/// go when few ask.
#[test]
fn answers_in_time() {
    in_place("answers_in_time", |place| {
        let entry = Entry::new(place)?;
        let rules = format!(
            "[idle]\ntimeout = \"2s\"\ncpu = 60.0\n{SHOP}[instances]\nmax = 8\n[capacity]\nresponse_time = \"200ms\""
        );
        entry.deploy("shop", &python(SERIAL, free_port()?, &rules))?;
        let (port, stop) = (entry.port, AtomicBool::new(false));
        let instances = || -> Result<usize> {
            let all = entry.status("shop")?["instances"].clone();
            let all = all.as_array().context("no instances")?;
            Ok(all.iter().filter(|one| one["state"] == "running").count())
        };
        let why = || -> Result<Value> {
            let told: Value = entry.client()?.get(&format!("/v1/apps/{}/why", entry.name("shop")))?;
            let carried = told["instances"]["carried"].as_array().context("not told")?;
            let time = carried.iter().find(|one| one["name"] == "response-time");
            Ok(time.with_context(|| format!("{told}"))?.clone())
        };
        let took = std::thread::scope(|scope| -> Result<Vec<(Instant, Duration)>> {
            let stop = &stop;
            let asked: Vec<_> = (0..6)
                .map(|_| {
                    scope.spawn(move || -> Result<Vec<(Instant, Duration)>> {
                        let mut took = Vec::new();
                        while !stop.load(Ordering::Relaxed) {
                            let began = Instant::now();
                            let answer = get(port, "shop.example", "/", "")?;
                            ensure!(answer.status == 200, "{answer:?}");
                            took.push((began, began.elapsed()));
                        }
                        Ok(took)
                    })
                })
                .collect();
            let slow = poll("it to be told", PATIENCE, || {
                Ok(why().ok().filter(|time| time["holds"] == false).map(drop))
            });
            // Long enough for one more to show, and all of the last look to be of that.
            let enough = slow.and_then(|()| {
                let mut since = None;
                poll("answers in time", Duration::from_secs(60), || {
                    let well = why()?["holds"] == true && instances()? > 1;
                    since = since.filter(|_| well).or(well.then(Instant::now));
                    Ok(since
                        .filter(|since| since.elapsed() > Duration::from_secs(3))
                        .map(|_| ()))
                })
            });
            let count = instances();
            stop.store(true, Ordering::Relaxed);
            let mut all = Vec::new();
            for one in asked {
                all.extend(one.join().expect("it does not panic")?);
            }
            enough.with_context(|| format!("{:?} instances; {:?}", instances(), why()))?;
            let count = count?;
            ensure!((2..=8).contains(&count), "{count} instances");
            note("answers_in_time", &format!("{count} instances"));
            Ok(all)
        })?;
        let p95 = |of: &dyn Fn(&Instant) -> bool| {
            let mut all: Vec<Duration> = took.iter().filter(|(at, _)| of(at)).map(|(_, took)| *took).collect();
            all.sort();
            all.get(all.len() * 95 / 100).copied().unwrap_or_default()
        };
        let times = took.iter().map(|(at, _)| *at);
        let (first, last) = (times.clone().min().context("none")?, times.max().context("none")?);
        let before = p95(&|at| *at < first + Duration::from_secs(1));
        let after = p95(&|at| *at + Duration::from_secs(2) > last);
        note(
            "answers_in_time",
            &format!("95 of 100 within {before:.0?} at first, {after:.0?} at last"),
        );
        ensure!(
            before > Duration::from_millis(240) && after < before * 4 / 5,
            "{before:?} {after:?}"
        );
        // One who asks on alone is answered fast, and needs no more than one.
        let alone = Instant::now();
        poll("the others to go", Duration::from_secs(60), || {
            get(port, "shop.example", "/", "")?;
            std::thread::sleep(Duration::from_millis(20));
            Ok((instances()? == 1).then_some(()))
        })?;
        note(
            "answers_in_time",
            &format!("one instance {:.0?} later", alone.elapsed()),
        );
        entry.reach("shop", "asleep")?;
        entry.end()
    });
}

/// Probes are answered for an app that sleeps, and keep none awake.
#[test]
fn quiet_requests() {
    in_place("quiet_requests", |place| {
        let entry = Entry::new(place)?;
        let more = format!(
            "{SHOP}[[quiet]]\npath = \"/count\"\nuser_agent = \"kube-probe*\"\nfrom = \"127.0.0.0/8\"\n\
             status = 202\nbody = \"asleep\"\n"
        );
        entry.deploy("shop", &node(&local()?, "", &more)?)?;
        let probe = || get(entry.port, "shop.example", "/count", "User-Agent: kube-probe/1.29\r\n");
        // It runs: it is asked itself, and falls asleep all the same.
        let began = Instant::now();
        let mut passed = 0;
        loop {
            let answer = probe()?;
            match (answer.status, answer.body.as_str()) {
                (200, "0") => passed += 1,
                (202, "asleep") => break,
                _ => bail!("{answer:?}"),
            }
            ensure!(
                began.elapsed() < PATIENCE,
                "it does not fall asleep: {}",
                entry.status("shop")?
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        ensure!(passed > 0, "it was never asked");
        entry.reach("shop", "asleep")?;
        for _ in 0..50 {
            ensure!(probe()?.status == 202);
        }
        ensure!(entry.wakes("shop")? == 0 && entry.status("shop")?["state"] == "asleep");
        let traffic = entry.traffic("shop")?;
        ensure!(
            traffic["requests"] == 0 && traffic["quiet"].as_u64() > Some(50),
            "{traffic}"
        );
        // Others are no probes.
        ensure!(entry.get("shop.example", "/count")?.kind() == "woken");
        entry.end()
    });
}

/// A person sees a page while the app wakes, a program waits.
#[test]
fn waiting_page() {
    in_place("waiting_page", |place| {
        let entry = Entry::new(place)?;
        let more = format!("{SHOP}[waiting]\npage = true\nafter = \"1ms\"\n");
        entry.deploy("shop", &node(&local()?, "the shop", &more)?)?;
        let person = "Accept: text/html,*/*\r\nSec-Fetch-Mode: navigate\r\n";
        for round in 0..2 {
            entry.reach("shop", "asleep")?;
            let page = get(entry.port, "shop.example", "/", person)?;
            ensure!(
                page.status == 503 && page.body.contains("refresh"),
                "round {round}: {page:?}"
            );
            ensure!(page.field("retry-after") == "1" && page.field("cache-control") == "no-store");
            entry.reach("shop", "running")?;
            let shown = get(entry.port, "shop.example", "/", person)?;
            ensure!(shown.body == "the shop", "round {round}: {shown:?}");
            entry.reach("shop", "asleep")?;
            for program in ["Accept: */*\r\n", "Accept: text/html\r\nSec-Fetch-Mode: cors\r\n"] {
                entry.reach("shop", "asleep")?;
                let waited = get(entry.port, "shop.example", "/", program)?;
                ensure!(waited.body == "the shop", "round {round}: {waited:?}");
            }
        }
        entry.end()
    });
}

/// One connection, on which somebody asks at all moments of falling asleep and waking.
#[test]
fn keep_alive_over_sleeps() {
    in_place("keep_alive_over_sleeps", |place| {
        let entry = Entry::new(place)?;
        entry.deploy("shop", &node(&local()?, "", SHOP)?)?;
        let mut client = Kept::new(entry.port)?;
        for step in 0..30u32 {
            std::thread::sleep(Duration::from_millis(u64::from(900 + step * 20)));
            let (status, count) = client
                .ask("POST", "shop.example", "/count")
                .with_context(|| format!("step {step}: {:?}", entry.status("shop")))?;
            ensure!((status, count) == (200, (step + 1).to_string()), "step {step}");
        }
        let wakes = entry.wakes("shop")?;
        ensure!(wakes > 5, "it slept only {wakes} times");
        // Put to sleep by its owner in the middle of it all.
        let name = entry.name("shop");
        let registry = &entry.registry;
        std::thread::scope(|scope| {
            let orders = scope.spawn(move || {
                for _ in 0..4 {
                    registry.appshot(&["suspend", &name])?;
                    std::thread::sleep(Duration::from_millis(100));
                    registry.appshot(&["resume", &name])?;
                    std::thread::sleep(Duration::from_millis(400));
                }
                Ok::<_, anyhow::Error>(())
            });
            let mut count = 30;
            while !orders.is_finished() {
                count += 1;
                let told = client.ask("POST", "shop.example", "/count")?;
                ensure!(told == (200, count.to_string()), "{told:?}, not {count}");
                std::thread::sleep(Duration::from_millis(5));
            }
            orders.join().expect("it does not panic")
        })?;
        entry.end()
    });
}

/// What becomes of a connection that the app closes, and of what cannot be answered.
#[test]
fn apps_that_fail() {
    in_place("apps_that_fail", |place| {
        let mut entry = Entry::new(place)?;
        let more = format!("{SHOP}[timeouts]\nanswer = \"1s\"\nidle = \"1s\"\nwake = \"3s\"\n");
        entry.deploy("shop", &node(&local()?, "", &more)?)?;
        let mut client = Kept::new(entry.port)?;
        // It hangs up after each answer, and the next request meets that in any state. What
        // does no harm is sent again.
        for round in 0..50 {
            let told = client.ask("GET", "shop.example", "/last")?;
            ensure!(told == (200, "last".to_owned()), "round {round}: {told:?}");
        }
        for round in 0..20 {
            client.ask("GET", "shop.example", "/last")?;
            std::thread::sleep(Duration::from_millis(20));
            let told = client.ask("POST", "shop.example", "/count")?;
            ensure!(told.0 == 200, "round {round}: {told:?}");
        }
        ensure!(entry.get("shop.example", "/count")?.body == "20", "it was asked twice");
        for (path, status, because) in [
            ("/drop", 502, "before it had answered"),
            ("/garbage", 502, "before it had answered"),
            ("/slow?ms=5000", 504, "does not answer"),
        ] {
            let answer = entry.get("shop.example", path)?;
            ensure!(
                answer.status == status && answer.body.contains(because),
                "{path}: {answer:?}"
            );
        }
        let cut = get(entry.port, "shop.example", "/cut", "")?;
        ensure!(cut.status == 200 && cut.body == "part", "{cut:?}");
        // A client that lets the app wait, and one that does not finish its head.
        let stalled = exchange(
            entry.port,
            "POST /echo HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 9\r\n\r\n",
        )?;
        ensure!([200, 408].contains(&stalled.status), "{stalled:?}");
        let slow = exchange(entry.port, "GET / HTTP/1.1\r\nHost: sh")?;
        ensure!(slow.status == 408, "{slow:?}");
        // Nobody can wake it.
        entry.reach("shop", "asleep")?;
        kill(Pid::from_raw(entry.restored.pid()), Signal::SIGKILL)?;
        let answer = entry.get("shop.example", "/")?;
        ensure!(answer.status == 503 && answer.field("retry-after") == "1", "{answer:?}");
        ensure!(answer.body.contains("did not come up in time"), "{answer:?}");
        entry.restored = entry.registry.daemon("restored", "")?;
        poll("it to be back", PATIENCE, || {
            Ok((entry.get("shop.example", "/count")?.body == "20").then_some(()))
        })?;
        // Killed under a request it is brought back, and others wait for that.
        let port = entry.port;
        let slow = "POST /slow?ms=900 HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        let asked = std::thread::spawn(move || exchange(port, slow));
        poll("it to be asked", PATIENCE, || {
            Ok((entry.traffic("shop")?["in_flight"] == 1).then_some(()))
        })?;
        std::thread::sleep(Duration::from_millis(50));
        let root = entry.status("shop")?["root"].as_i64().context("no root")?;
        kill(Pid::from_raw(i32::try_from(root)?), Signal::SIGKILL)?;
        let answer = asked.join().expect("it does not panic")?;
        ensure!(answer.status == 502, "{answer:?}");
        poll("it to be back", PATIENCE, || {
            Ok((entry.get("shop.example", "/count")?.status == 200).then_some(()))
        })?;
        entry.end()
    });
}

/// WebSocket, by a real client and server; and any other protocol.
#[test]
fn upgrades() {
    in_place("upgrades", |place| {
        need_module("websockets")?;
        let entry = Entry::new(place)?;
        let port = free_port()?;
        let manifest = format!(
            "[start]\ncommand = [{PYTHON:?}, {:?}, \"serve\", \"{port}\"]\n[[listen]]\ntcp = \"127.0.0.1:{port}\"\n\
             [idle]\ntimeout = \"1s\"\ncpu = 50.0\n{SHOP}",
            script("dispatch_socket.py")
        );
        entry.deploy("shop", &manifest)?;
        for _ in 0..2 {
            let wakes = entry.wakes("shop")?;
            entry.reach("shop", "asleep")?;
            let mut ask = Command::new(PYTHON);
            ask.arg(script("dispatch_socket.py"));
            ask.args(["ask", "ws://shop.example/", &entry.port.to_string(), "3"]);
            ensure!(run(&mut ask)? == "still there?");
            let now = entry.wakes("shop")?;
            ensure!(
                now == wakes + 1,
                "an open connection did not keep it awake: {wakes}, {now}"
            );
        }
        let traffic = entry.traffic("shop")?;
        ensure!(traffic["bytes_in"].as_u64() > Some(10_000), "{traffic}");
        let raw = "[[route]]\nhost = \"raw.example\"\n";
        entry.deploy("raw", &node(&local()?, "", raw)?)?;
        entry.reach("raw", "asleep")?;
        let mut stream = connect(entry.port)?;
        stream.write_all(
            b"GET / HTTP/1.1\r\nHost: raw.example\r\nConnection: Upgrade\r\nUpgrade: anything/7\r\n\r\nearly",
        )?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            ensure!(reader.read_line(&mut head)? > 0, "{head}");
        }
        ensure!(head.starts_with("HTTP/1.1 101 "), "{head}");
        ensure!(head.to_ascii_lowercase().contains("upgrade: anything/7"), "{head}");
        let mut early = [0; 5];
        reader.read_exact(&mut early)?;
        ensure!(&early == b"early");
        stream.write_all(b"late")?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut rest = String::new();
        reader.read_to_string(&mut rest)?;
        ensure!(rest == "late", "{rest}");
        entry.end()
    });
}

/// gRPC, by a real client and server: trailers, failures, streams both ways.
#[test]
fn grpc() {
    in_place("grpc", |place| {
        need_module("grpc")?;
        let entry = Entry::new(place)?;
        let port = free_port()?;
        let manifest = format!(
            "[start]\ncommand = [{PYTHON:?}, {:?}, \"serve\", \"{port}\"]\n[[listen]]\ntcp = \"127.0.0.1:{port}\"\n\
             [idle]\ntimeout = \"1s\"\ncpu = 50.0\n[[route]]\nhost = \"shop.example\"\nprotocol = \"h2c\"\n",
            script("dispatch_grpc.py")
        );
        entry.deploy("shop", &manifest)?;
        for _ in 0..3 {
            let mut ask = Command::new(PYTHON);
            ask.arg(script("dispatch_grpc.py"));
            ask.args(["ask", &entry.port.to_string(), "shop.example"]);
            ensure!(run(&mut ask)? == "done");
            entry.reach("shop", "asleep")?;
        }
        ensure!(entry.wakes("shop")? == 2);
        entry.end()
    });
}

/// Over TLS, by both versions; with another certificate a while later.
#[test]
fn tls() {
    in_place("tls", |place| {
        let port = free_port()?;
        let pem = place.path("tls.pem");
        let certify = || -> Result<String> {
            let [key, certificate] = ["key", "crt"].map(|end| place.path(&format!("new.{end}")));
            let mut openssl = Command::new(need_program(&["openssl"])?);
            openssl.args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
            ]);
            openssl.args([
                "-subj",
                "/CN=shop.example",
                "-addext",
                "subjectAltName=DNS:shop.example",
                "-keyout",
            ]);
            run(openssl.arg(&key).arg("-out").arg(&certificate))?;
            let text = std::fs::read_to_string(&certificate)?;
            std::fs::write(&pem, text.clone() + &std::fs::read_to_string(&key)?)?;
            Ok(text)
        };
        let authority = place.path("authority.pem");
        std::fs::write(&authority, certify()?)?;
        let more = [
            "--https",
            &format!("127.0.0.1:{port}"),
            "--tls",
            &pem.display().to_string(),
        ];
        let entry = Entry::with(place, more.map(str::to_owned).into())?;
        entry.deploy("shop", &node(&local()?, "", SHOP)?)?;
        let curl = |version: &str| {
            let mut curl = Command::new("curl");
            curl.args(["-sS", "-m", "20", "-w", " %{http_version}", version, "--cacert"])
                .arg(&authority);
            curl.arg("--resolve").arg(format!("shop.example:{port}:127.0.0.1"));
            run(curl.arg(format!("https://shop.example:{port}/head")))
        };
        for (version, told) in [("--http1.1", "} 1.1"), ("--http2", "} 2")] {
            entry.reach("shop", "asleep")?;
            let answer = curl(version)?;
            ensure!(answer.ends_with(told), "{version}: {answer}");
            ensure!(
                answer.contains("\"x-forwarded-proto\",\"https\""),
                "{version}: {answer}"
            );
        }
        // What is no TLS ends its connection, and nothing else.
        ensure!(exchange(port, "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n").is_err());
        std::fs::write(&pem, "half a file")?;
        std::thread::sleep(Duration::from_secs(11));
        ensure!(curl("--http2").is_ok(), "the former certificate is gone");
        std::fs::write(&authority, certify()?)?;
        poll("the new certificate", PATIENCE, || Ok(curl("--http2").ok()))?;
        entry.end()
    });
}

/// Told to stop it ends what is in flight, as far as that is done in time.
#[test]
fn a_graceful_stop() {
    in_place("a_graceful_stop", |place| {
        let mut entry = Entry::new(place)?;
        entry.deploy("shop", &node(&local()?, "", SHOP)?)?;
        entry.reach("shop", "asleep")?;
        let (port, began) = (entry.port, Instant::now());
        let mut unused = Kept::new(port)?;
        ensure!(unused.ask("GET", "shop.example", "/count")?.0 == 200);
        let ends = std::thread::spawn(move || get(port, "shop.example", "/slow?ms=1500", ""));
        let cut = std::thread::spawn(move || get(port, "shop.example", "/stream?n=100&ms=200", ""));
        poll("both to be asked", PATIENCE, || {
            Ok((entry.traffic("shop")?["in_flight"] == 2).then_some(()))
        })?;
        let daemon = entry.edgepointd.take().context("it has ended")?;
        kill(Pid::from_raw(daemon.pid()), Signal::SIGTERM)?;
        poll("what is not used to be closed", PATIENCE, || {
            Ok(unused.ask("GET", "shop.example", "/count").is_err().then_some(()))
        })?;
        // Who comes now waits for the next one.
        let late = std::thread::spawn(move || get(port, "shop.example", "/count", ""));
        let answer = ends.join().expect("it does not panic")?;
        ensure!(answer.status == 200, "{answer:?}");
        let cut = cut.join().expect("it does not panic")?;
        ensure!(cut.status == 200 && !cut.body.contains("\n99\n"), "{cut:?}");
        daemon.stop()?;
        ensure!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
        // The next one takes everything up: routes, and the app as it is.
        entry.begin()?;
        ensure!(late.join().expect("it does not panic")?.status == 200);
        entry.reach("shop", "asleep")?;
        drop(entry.edgepointd.take());
        entry.begin()?;
        ensure!(entry.get("shop.example", "/count")?.kind() == "woken");
        entry.end()
    });
}

/// Requests that are none, and what is said of each.
#[test]
fn bad_requests() {
    in_place("bad_requests", |place| {
        let entry = Entry::new(place)?;
        entry.deploy("shop", &node(&local()?, "", SHOP)?)?;
        let host = "Host: shop.example\r\n";
        let long = |count| "x".repeat(count);
        let cases = [
            ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
            (format!("GET / HTTP/1.1\r\n{host}{host}\r\n"), 400),
            ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.1\r\nHost: me@shop.example\r\n\r\n".to_owned(), 400),
            ("GET / HTTP/1.1\r\nHost: nobody.test\r\n\r\n".to_owned(), 404),
            (format!("GET http://nobody.test/ HTTP/1.1\r\n{host}\r\n"), 404),
            (
                "CONNECT shop.example:443 HTTP/1.1\r\nHost: shop.example:443\r\n\r\n".to_owned(),
                405,
            ),
            (format!("GET / HTTP/3.7\r\n{host}\r\n"), 400),
            (format!("G\u{7f}T / HTTP/1.1\r\n{host}\r\n"), 400),
            (format!("GET / HTTP/1.1\r\n{host}no colon\r\n\r\n"), 400),
            (format!("GET / HTTP/1.1\r\n{host}A : b\r\n\r\n"), 400),
            (format!("GET / HTTP/1.1\r\n{host} folded: b\r\n\r\n"), 400),
            (
                format!("POST /echo HTTP/1.1\r\n{host}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"),
                400,
            ),
            (
                format!("POST /echo HTTP/1.1\r\n{host}Content-Length: 3, 4\r\n\r\nabcd"),
                400,
            ),
            (
                format!("POST /echo HTTP/1.1\r\n{host}Content-Length: -3\r\n\r\nabc"),
                400,
            ),
            (
                format!("POST /echo HTTP/1.1\r\n{host}Content-Length: +3\r\n\r\nabc"),
                400,
            ),
            (
                format!("POST /echo HTTP/1.1\r\n{host}Transfer-Encoding: gzip\r\n\r\nabc"),
                400,
            ),
            (
                format!("POST /echo HTTP/1.1\r\n{host}Transfer-Encoding: chunked, gzip\r\n\r\nabc"),
                400,
            ),
            (
                format!("POST /echo HTTP/1.0\r\n{host}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
                400,
            ),
            (format!("GET /{} HTTP/1.1\r\n{host}\r\n", long(70_000)), 431),
            (format!("GET / HTTP/1.1\r\n{host}X: {}\r\n\r\n", long(70_000)), 431),
            (format!("GET / HTTP/1.1\r\n{host}{}\r\n", "x: y\r\n".repeat(200)), 431),
        ];
        for (request, status) in cases {
            let shown: String = request.chars().take(80).collect();
            let answer = exchange_all(entry.port, &request).with_context(|| shown.clone())?;
            ensure!(answer.status == status, "{shown:?}: {answer:?}");
        }
        // A second request inside of the first is never seen as one.
        let inner = format!("POST /count HTTP/1.1\r\n{host}Content-Length: 0\r\n\r\n");
        for (fields, body) in [
            (
                "Content-Length: 6\r\nTransfer-Encoding: chunked",
                format!("0\r\n\r\n{inner}"),
            ),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 60",
                format!("0\r\n\r\n{inner}"),
            ),
            ("Transfer-Encoding: xchunked\r\nContent-Length: 0", inner.clone()),
            ("Transfer-Encoding : chunked\r\nContent-Length: 0", inner.clone()),
            ("Transfer-Encoding: chunked", format!("x\r\n{inner}")),
            ("Transfer-Encoding: chunked", format!("ffffffffffffffffff\r\n{inner}")),
        ] {
            let request = format!("POST /echo HTTP/1.1\r\n{host}{fields}\r\n\r\n{body}");
            // An answer or none: what counts is what the app has seen.
            let _ = exchange_all(entry.port, &request);
        }
        let count = entry.get("shop.example", "/count")?.body;
        ensure!(count == "0", "{count} requests were smuggled");
        // What is no HTTP at all ends a connection, and nothing else.
        for noise in [
            "\0\0\0\0\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            "\r\n\r\n\r\nquit\r\n\r\n",
        ] {
            let _ = exchange_all(entry.port, noise);
        }
        ensure!(entry.get("shop.example", "/count")?.status == 200);
        entry.end()
    });
}

/// As `exchange`, where the answer may come before everything is sent.
fn exchange_all(port: u16, request: &str) -> Result<Answer> {
    let mut stream = connect(port)?;
    let _ = stream.write_all(request.as_bytes());
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        all.extend(&buffer[..count]);
        if all.windows(4).any(|end| end == b"\r\n\r\n") {
            // What refuses does so in its first answer.
            break;
        }
    }
    Answer::read(&all[..])
}
