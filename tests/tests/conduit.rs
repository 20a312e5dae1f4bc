//! The provider's way in: what is deployed is written down to stay, providers with tokens
//! elsewhere, requests that may be asked again, and what is told of it all.

use anyhow::{Context, Result, ensure};
use appshot_tests::clients::{free_port, http_get};
use appshot_tests::installed::{Daemon, Registry};
use appshot_tests::node as nodes;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, need_program, poll};
use libsnap::error::{Error, Kind};
use nodekit::client::Client;
use nodekit::local::connect;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A node, and the address at which it answers providers.
struct Node<'a> {
    registry: &'a Registry,
    _snapd: Daemon,
    _restored: Daemon,
    edgepointd: Option<Daemon>,
    api: String,
}

impl<'a> Node<'a> {
    fn new(registry: &'a Registry) -> Result<Node<'a>> {
        let mut node = Node {
            _snapd: registry.daemon("snapd", "")?,
            _restored: registry.daemon("restored", "")?,
            edgepointd: None,
            registry,
            api: format!("127.0.0.1:{}", free_port()?),
        };
        node.begin()?;
        Ok(node)
    }

    fn begin(&mut self) -> Result<()> {
        let daemon = self.registry.daemon_with("edgepointd", &["--api", &self.api], "")?;
        self.edgepointd = Some(daemon);
        Ok(())
    }

    fn kill(&mut self) {
        drop(self.edgepointd.take());
    }

    fn client(&self) -> Result<&Client> {
        Ok(&self.edgepointd.as_ref().context("no daemon")?.client)
    }

    fn get(&self, path: &str) -> Result<Value> {
        Ok(self.client()?.get(path)?)
    }

    fn deploy(&self, manifest: &str) -> Result<Value, Error> {
        let client = self.client().map_err(|error| Error::failed(error.to_string()))?;
        client.post("/v1/apps", &json!({ "manifest": manifest }))
    }

    /// Waits until the app is in this state.
    fn reach(&self, app: &str, state: &str) -> Result<Value> {
        let status = self.get(&format!("/v1/apps/{app}?wait={state}&timeout=60"))?;
        ensure!(status["state"] == state, "not {state}: {status}");
        Ok(status)
    }

    /// curl(1) at the Unix socket, or with a token at the address of the API.
    fn curl(&self, token: Option<&str>, words: &[&str], path: &str) -> Result<(u16, Value, String)> {
        let mut command = Command::new(need_program(&["/usr/bin/curl"])?);
        command.args(["-sS", "-m", "60", "-w", "\n%{http_code} %header{etag}"]);
        match token {
            None => {
                let socket = self.registry.run.join("edgepointd.sock");
                let url = format!("http://node{path}");
                command.arg("--unix-socket").arg(socket).args(words).arg(url);
            }
            Some(token) => {
                command.arg("--cacert").arg(self.registry.data.join("api.crt"));
                command.args(["-H", &format!("authorization: Bearer {token}")]);
                command.args(words).arg(format!("https://{}{path}", self.api));
            }
        }
        let output = command.output()?;
        let text = String::from_utf8(output.stdout)?;
        let error = String::from_utf8_lossy(&output.stderr);
        let (body, end) = text
            .rsplit_once('\n')
            .with_context(|| format!("curl {words:?} {path}: {error}"))?;
        let (code, etag) = end.split_once(' ').unwrap_or((end, ""));
        Ok((
            code.parse()?,
            serde_json::from_str(body).unwrap_or_default(),
            etag.to_owned(),
        ))
    }

    /// The command line, with the token, from elsewhere.
    fn elsewhere(&self, token: &Path, words: &[&str]) -> Result<Output> {
        let mut command = self.registry.command("appshot");
        // Nothing of this node is at hand.
        command
            .env("APPSHOT_RUN_DIR", "/nowhere")
            .env("APPSHOT_DATA_DIR", "/nowhere");
        command.env("APPSHOT_API", format!("https://{}", self.api));
        command
            .env("APPSHOT_TOKEN_FILE", token)
            .env("APPSHOT_API_CA", self.registry.data.join("api.crt"));
        Ok(command.args(words).output()?)
    }

    fn end(self, apps: &[&str]) -> Result<()> {
        for app in apps {
            let _: Value = self.client()?.delete(&format!("/v1/apps/{app}"))?;
        }
        ensure!(self.get("/v1/apps")? == json!([]), "something is left");
        let known = self.registry.appshot(&["ps", "-o", "json"])?;
        ensure!(known.trim() == "[]", "{known}");
        let pinned = self.registry.data.join("pinned").read_dir().map_or(0, Iterator::count);
        ensure!(pinned == 0, "{pinned} pins are left");
        Ok(())
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn server(app: &str, port: u16, word: &str) -> Result<String> {
    let node = need_program(&["/usr/bin/node", "/usr/local/bin/node"])?
        .display()
        .to_string();
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers/version.js");
    let command = [&node, &program.display().to_string(), &port.to_string(), word];
    Ok(format!(
        "app = {app:?}\n[start]\ncommand = {command:?}\n[[listen]]\ntcp = \"127.0.0.1:{port}\"\n\
         [idle]\ntimeout = \"1s\"\ncpu = 50.0\n[capacity]\nconnections = 50\n"
    ))
}

/// Killed at any moment of changes, the daemon has all of a change or nothing of it, and what
/// was told to be done is done.
#[test]
fn a_killed_daemon_has_written_all_or_nothing() {
    in_place("conduit_killed", |place| {
        let registry = Registry::new(place)?;
        let mut node = Node::new(&registry)?;
        let app = place.unique();
        let port = free_port()?;
        node.deploy(&server(app, port, "one")?)?;
        node.reach(app, "running")?;
        let mut told = (0, 4);
        for round in 0..12u64 {
            let client = node.client()?.clone();
            let path = format!("/v1/apps/{app}/scale");
            let asked = std::thread::spawn(move || {
                let mut last = None;
                for min in 0.. {
                    let body = json!({ "min": min % 3, "max": 4 + min % 5 });
                    match client.put::<Value>(&path, &body) {
                        Ok(_) => last = Some((min % 3, 4 + min % 5)),
                        Err(_) => return (last, (min % 3, 4 + min % 5)),
                    }
                }
                unreachable!("it ends when the daemon does")
            });
            std::thread::sleep(Duration::from_millis(5 + round * 7));
            node.kill();
            let (done, tried) = asked.join().ok().context("it has ended")?;
            node.begin()?;
            let bounds = node.get(&format!("/v1/apps/{app}"))?["bounds"].clone();
            let now = (bounds["min"].as_u64().unwrap_or(9), bounds["max"].as_u64().unwrap_or(9));
            let before = done.unwrap_or(told);
            // What was under way may have been done.
            ensure!(
                now == before || now == tried || round == 0,
                "round {round}: {now:?}, not {before:?} or {tried:?}"
            );
            told = now;
        }
        let check = sqlite(&registry.data.join("control.db"), "pragma integrity_check")?;
        ensure!(check.trim() == "ok", "{check}");
        ensure!(http_get(port, "/")?.contains("one"), "it does not serve");
        node.end(&[app])
    });
}

fn sqlite(path: &Path, sql: &str) -> Result<String> {
    let output = Command::new(need_program(&["/usr/bin/sqlite3"])?)
        .arg(path)
        .arg(sql)
        .output()?;
    ensure!(output.status.success(), "{}", said(&output));
    Ok(String::from_utf8(output.stdout)?)
}

/// A database that is not ours, or damaged, is refused, and apps go on; put right, what was
/// deployed is there again. Files of former daemons are taken over.
#[test]
fn what_is_written_down() {
    in_place("conduit_written", |place| {
        let registry = Registry::new(place)?;
        let mut node = Node::new(&registry)?;
        let (app, port) = (place.unique(), free_port()?);
        let manifest = server(app, port, "one")?.replace("1s", "300s");
        node.deploy(&manifest)?;
        node.reach(app, "running")?;
        let file = registry.data.join("control.db");
        // Somebody looks while it is written.
        let kept = sqlite(&file, "select value from entries where key like 'app/%'")?;
        ensure!(kept.contains(app), "{kept}");
        node.kill();
        sqlite(&file, "pragma wal_checkpoint(truncate)")?;
        let good = std::fs::read(&file)?;
        let mut later = good.clone();
        // user_version, 4 bytes from offset 60 (sqlite.org/fileformat2.html).
        later[63] = 7;
        let mut other = good.clone();
        other[68..72].copy_from_slice(b"MINE");
        let mut torn = good.clone();
        torn.truncate(good.len() / 2 + 100);
        for (bytes, told) in [
            (later, "later Appshot"),
            (other, "something else"),
            (b"nonsense ".repeat(1000), "no database"),
            (torn, "damaged"),
            (Vec::new(), "nothing is in it"),
        ] {
            for suffix in ["-wal", "-shm"] {
                let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
            }
            std::fs::write(&file, &bytes)?;
            let output = registry.command("edgepointd").output()?;
            let said = said(&output);
            ensure!(output.status.code() == Some(1) && said.contains(told), "{told}: {said}");
            ensure!(said.contains("apps that run go on"), "{said}");
            ensure!(std::fs::read(&file)? == bytes, "{told}: it was written to");
            ensure!(http_get(port, "/")?.contains("one"), "{told}: the app does not serve");
        }
        // As the message tells: the copy of the last start, or what it was before this trial.
        std::fs::write(&file, &good)?;
        node.begin()?;
        ensure!(node.reach(app, "running")?["app"] == app, "it is another one");
        let last = registry.data.join("control.db.last");
        node.kill();
        std::fs::rename(&last, &file)?;
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
        }
        node.begin()?;
        node.reach(app, "running")?;
        node.kill();
        // As daemons before had it.
        let value = sqlite(&file, "select value from entries where key like 'app/%'")?;
        for suffix in ["", "-wal", "-shm", ".last"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
        }
        let deployed = registry.data.join("deployed");
        std::fs::create_dir(&deployed)?;
        std::fs::write(deployed.join(format!("{app}.json")), value)?;
        std::fs::write(deployed.join("broken.json"), "{")?;
        node.begin()?;
        let status = node.reach(app, "running")?;
        ensure!(status["counts"]["starts"] == 0, "it was started again: {status}");
        ensure!(!deployed.join(format!("{app}.json")).exists(), "it was left");
        ensure!(deployed.join("broken.json").exists(), "it is gone");
        node.end(&[app])
    });
}

/// Providers from elsewhere: each its own apps, by tokens that can be changed.
#[test]
fn providers_and_tokens() {
    in_place("conduit_providers", |place| {
        let registry = Registry::new(place)?;
        let node = Node::new(&registry)?;
        let token = |words: &[&str]| -> Result<PathBuf> {
            let path = place.path(&format!("token-{}", words.join("-").replace('/', "")));
            std::fs::write(&path, registry.appshot(&[&["provider"], words].concat())?)?;
            Ok(path)
        };
        let read = |path: &Path| std::fs::read_to_string(path).map(|token| token.trim().to_owned());
        let acme = token(&["add", "acme", "--user", "nobody"])?;
        let other = token(&["add", "other", "--user", "www-data", "--user", "nobody"])?;
        let list = registry.appshot(&["provider", "list"])?;
        ensure!(list.contains("acme") && list.contains("www-data, nobody"), "{list}");
        let (app, port) = (place.unique(), free_port()?);
        let file = place.path("app.toml");
        // Without a user: its provider's first.
        let manifest = server(app, port, "one")?;
        std::fs::write(&file, &manifest)?;
        let file = file.display().to_string();
        let deployed = node.elsewhere(&acme, &["deploy", &file])?;
        ensure!(deployed.status.success(), "{}", said(&deployed));
        let status = node.reach(app, "running")?;
        ensure!(status["provider"] == "acme", "{status}");
        let root = status["root"].as_i64().context("no root")?;
        let owner = std::fs::read_to_string(format!("/proc/{root}/status"))?;
        let known = std::fs::read_to_string(format!("/proc/{root}/environ"))?;
        ensure!(owner.contains("Uid:\t65534\t65534"), "{owner}");
        // Its environment is not that of the daemon.
        let stranger = known
            .split('\0')
            .filter_map(|pair| pair.split_once('='))
            .find(|(key, _)| !["PATH", "LANG", "TZ", "HOME", "USER"].contains(key));
        ensure!(stranger.is_none() && known.contains("USER=nobody\0"), "{known:?}");
        // It sees its own, and root sees all.
        let apps = node.elsewhere(&acme, &["apps", "-o", "json"])?;
        let apps: Vec<Value> = serde_json::from_slice(&apps.stdout)?;
        ensure!(apps.len() == 1 && apps[0]["app"] == app, "{apps:?}");
        let none = node.elsewhere(&other, &["apps", "-o", "json"])?;
        ensure!(none.stdout.trim_ascii() == b"[]", "{}", said(&none));
        // Others do not learn that it is there.
        let (acme_token, other_token) = (read(&acme)?, read(&other)?);
        let path = format!("/v1/apps/{app}");
        let absent = node.curl(Some(&other_token), &[], "/v1/apps/absent")?.1.to_string();
        for (words, path) in [
            (&[][..], path.clone()),
            (&[], format!("/v1/apps/%{:02x}{}", app.as_bytes()[0], &app[1..])),
            (&["-X", "DELETE"], path.clone()),
            (&["-X", "POST"], format!("{path}/suspend")),
            (&["-X", "POST"], format!("{path}/resume")),
            (&["-X", "POST"], format!("{path}/rollback")),
            (&["-X", "PUT", "-d", "{\"min\":1,\"max\":1}"], format!("{path}/scale")),
            (&[], format!("{path}/logs")),
        ] {
            let (code, body, _) = node.curl(Some(&other_token), words, &path)?;
            ensure!(code == 404, "{words:?} {path}: {code} {body}");
            let text = body.to_string().replace(app, "absent");
            ensure!(text == absent, "{words:?} {path}: {body}, not {}", absent);
        }
        let events = node.curl(Some(&other_token), &[], "/v1/events")?.1;
        ensure!(
            events["events"]
                .as_array()
                .is_some_and(|all| all.iter().all(|one| one["provider"] == "other")),
            "{events}"
        );
        ensure!(
            node.curl(Some(&other_token), &[], "/v1/top")?.1["apps"] == json!([]),
            "it is in the table"
        );
        // What is taken is refused, without a word of whose it is.
        let taken = server(&format!("{app}-b"), port, "two")?;
        for (manifest, told) in [
            (manifest.clone(), "the name is taken"),
            (taken, "an app of somebody else listens on"),
            (
                server("elsewhere", free_port()?, "x")?.replace("[start]", "[start]\nuser = \"root\""),
                "may not run as",
            ),
            (
                server("elsewhere", free_port()?, "x")?.replace("[start]", "provider = \"acme\"\n[start]"),
                "of provider acme",
            ),
        ] {
            let body = json!({ "manifest": manifest }).to_string();
            let (code, body, _) = node.curl(Some(&other_token), &["-d", &body], "/v1/apps")?;
            let text = body.to_string();
            ensure!(
                [403, 409].contains(&code) && text.contains(told),
                "{code} {body}, not {told}"
            );
        }
        // What somebody has left under names that its instances would have is not its to read.
        let left = registry.data.join("logs/elsewhere.2.log");
        std::fs::write(&left, "a word")?;
        let body = json!({ "manifest": server("elsewhere", free_port()?, "x")? }).to_string();
        let (code, body, _) = node.curl(Some(&other_token), &["-d", &body], "/v1/apps")?;
        ensure!(
            code == 409 && body.to_string().contains("a log is there"),
            "{code} {body}"
        );
        std::fs::remove_file(&left)?;
        for of in [format!("{app}.2"), format!("{app}.v1")] {
            let (code, body, _) = node.curl(Some(&acme_token), &[], &format!("{path}/logs?of={of}"))?;
            ensure!(code == 404, "{of}: {code} {body}");
        }
        let refused = registry.appshot(&["provider", "add", "local", "--user", "nobody"]);
        ensure!(refused.is_err(), "a provider is called local");
        // The node is its owner's.
        for (words, path) in [
            (&[][..], "/metrics"),
            (&[], "/v1/traffic"),
            (&[], "/v1/providers"),
            (&["-d", "{\"name\":\"x\",\"users\":[\"root\"]}"], "/v1/providers"),
            (&["-X", "POST", "-d", "{}"], "/v1/providers/acme/rotate"),
            (
                &["-X", "PUT", "-d", "{\"users\":[\"root\"]}"],
                "/v1/providers/other/users",
            ),
            (&["-X", "DELETE"], "/v1/providers/acme"),
        ] {
            let (code, body, _) = node.curl(Some(&other_token), words, path)?;
            ensure!(code == 403, "{words:?} {path}: {code} {body}");
        }
        // Without a good token nothing at all, not even what is there.
        for token in ["", "appshot_00", &acme_token[..70], &format!("{acme_token}0")] {
            for path in ["/v1/apps", "/v1/healthz", "/nothing"] {
                let (code, body, _) = node.curl(Some(token), &[], path)?;
                ensure!(code == 401, "{token} {path}: {code} {body}");
            }
        }
        // What is not known to be the node gets no token.
        let mut command = registry.command("appshot");
        let url = format!("https://{}", node.api);
        command.args(["apps", "--api", &url, "--token-file"]).arg(&acme);
        let unknown = command.output()?;
        ensure!(unknown.status.code() == Some(6), "{}", said(&unknown));
        let mut command = registry.command("appshot");
        command.args(["apps", "--api", &url, "--token-file"]).arg(&acme);
        let fingerprint = fingerprint(&registry.data.join("api.crt"))?;
        let known = command.args(["--api-fingerprint", &fingerprint]).output()?;
        ensure!(known.status.success(), "{}", said(&known));
        let mut command = registry.command("appshot");
        command.args(["apps", "--api", &url, "--token-file"]).arg(&acme);
        let wrong = command.args(["--api-fingerprint", &"0".repeat(64)]).output()?;
        ensure!(
            wrong.status.code() == Some(6) && said(&wrong).contains(&fingerprint),
            "{}",
            said(&wrong)
        );
        // Tokens change.
        let second = read(&token(&["rotate", "acme", "--grace", "1h"])?)?;
        ensure!(
            node.curl(Some(&acme_token), &[], &path)?.0 == 200,
            "the former is no good"
        );
        let third = read(&token(&["rotate", "acme"])?)?;
        for (token, code) in [(&acme_token, 401), (&second, 401), (&third, 200)] {
            ensure!(node.curl(Some(token), &[], &path)?.0 == code, "not {code}");
        }
        let refused = registry.appshot(&["provider", "remove", "acme"]);
        ensure!(
            refused.is_err_and(|error| error.to_string().contains("has apps")),
            "it was removed"
        );
        let gone = node.curl(Some(&third), &["-X", "DELETE"], &path)?;
        ensure!(gone.0 == 200, "{gone:?}");
        registry.appshot(&["provider", "remove", "acme"])?;
        ensure!(node.curl(Some(&third), &[], "/v1/apps")?.0 == 401, "it is good still");
        let file = registry.data.join("control.db");
        for secret in [&acme_token, &second, &third, &other_token] {
            let kept = sqlite(
                &file,
                &format!("select count(*) from entries where value like '%{secret}%'"),
            )?;
            ensure!(kept.trim() == "0", "a token is written down");
        }
        node.end(&[])
    });
}

/// As openssl(1) tells it.
fn fingerprint(path: &Path) -> Result<String> {
    let output = Command::new(need_program(&["/usr/bin/openssl"])?)
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(path)
        .output()?;
    let text = String::from_utf8(output.stdout)?;
    let digits = text.trim().rsplit_once('=').context("no fingerprint")?.1;
    Ok(format!("sha256:{}", digits.replace(':', "").to_lowercase()))
}

/// Connections that say nothing, or nonsense, keep nobody else from being answered.
#[test]
fn who_says_nothing_keeps_nobody_waiting() {
    in_place("conduit_silent", |place| {
        let registry = Registry::new(place)?;
        let node = Node::new(&registry)?;
        let token = registry.appshot(&["provider", "add", "acme", "--user", "nobody"])?;
        let silent: Vec<std::net::TcpStream> = (0..100)
            .map(|_| std::net::TcpStream::connect(&node.api))
            .collect::<Result<_, _>>()?;
        let began = Instant::now();
        for _ in 0..5 {
            let (code, body, _) = node.curl(Some(token.trim()), &["--interface", "127.0.0.2"], "/v1/apps")?;
            ensure!(code == 200, "{code} {body}");
        }
        // One address has so many connections, and no more.
        let more = node.curl(Some(token.trim()), &[], "/v1/apps");
        ensure!(
            more.is_err() || more.is_ok_and(|(code, ..)| code == 0),
            "a 101st connection was taken"
        );
        ensure!(
            began.elapsed() < Duration::from_secs(5),
            "it took {:?}",
            began.elapsed()
        );
        drop(silent);
        // Nor does a provider that asks for more and more keep another one from it.
        let other = registry.appshot(&["provider", "add", "other", "--user", "nobody"])?;
        let script = format!(
            "for n in $(seq 80); do curl -s -m 20 --interface 127.0.0.$((2 + n % 4)) -o /dev/null -w '%{{http_code}} ' --cacert {} -H 'authorization: \
             Bearer {}' 'https://{}/v1/events?app=none&after=0&wait=4' & done; wait",
            registry.data.join("api.crt").display(),
            token.trim(),
            node.api
        );
        let many = Command::new("sh")
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(2500));
        let (code, body, _) = node.curl(Some(other.trim()), &[], "/v1/apps")?;
        ensure!(code == 200, "{code} {body}");
        let codes = String::from_utf8(many.wait_with_output()?.stdout)?;
        let count = |code: &str| codes.split(' ').filter(|one| *one == code).count();
        ensure!(count("200") + count("503") == 80 && count("200") >= 64, "{codes}");
        // More than an answer of ours could need.
        let body = format!("{{\"manifest\":\"{}\"}}", "#".repeat(3 << 20));
        let file = place.path("big");
        std::fs::write(&file, body)?;
        let (code, answer, _) = node.curl(
            Some(token.trim()),
            &["--data-binary", &format!("@{}", file.display())],
            "/v1/apps",
        )?;
        ensure!(code == 422 && answer["kind"] == "usage", "{code} {answer}");
        // It stops at once, whoever is connected.
        let _open = std::net::TcpStream::connect(&node.api)?;
        let mut node = node;
        let began = Instant::now();
        node.edgepointd.take().context("no daemon")?.stop()?;
        ensure!(
            began.elapsed() < Duration::from_secs(12),
            "it took {:?}",
            began.elapsed()
        );
        node.begin()?;
        ensure!(
            node.curl(Some(token.trim()), &[], "/v1/apps")?.0 == 200,
            "the certificate or the token is another"
        );
        node.end(&[])
    });
}

/// Asked again, nothing is done twice; what somebody else has changed meanwhile is not
/// overwritten; who does not wait is told later.
#[test]
fn asked_again() {
    in_place("conduit_again", |place| {
        let registry = Registry::new(place)?;
        let node = Node::new(&registry)?;
        let (app, port) = (place.unique(), free_port()?);
        let path = format!("/v1/apps/{app}");
        let put = |word: &str, more: &[&str], query: &str| -> Result<(u16, Value, String)> {
            let body = json!({ "manifest": server(app, port, word)? }).to_string();
            let words = [&["-X", "PUT", "-d", &body], more].concat();
            node.curl(None, &words, &format!("{path}{query}"))
        };
        // Nothing is there to be changed.
        let (code, body, _) = put("one", &["-H", "if-match: *"], "")?;
        ensure!(code == 412 && body["kind"] == "not_found", "{code} {body}");
        // Many at once: it is made once.
        std::thread::scope(|scope| {
            let asked: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| put("one", &[], "?wait=running")))
                .collect();
            asked.into_iter().try_for_each(|asked| {
                let (code, body, _) = asked.join().ok().context("it has ended")??;
                ensure!(code == 200 && body["state"] == "running", "{code} {body}");
                ensure!(body["version"] == 1 && body["counts"]["starts"] == 1, "{body}");
                Ok(())
            })
        })?;
        let (code, body, _) = put("one", &["-H", "if-none-match: *"], "")?;
        ensure!(code == 412, "{code} {body}");
        let (code, body, etag) = put("one", &[], "")?;
        ensure!(code == 200 && body["version"] == 1, "{code} {body}");
        ensure!(
            etag == format!("\"{}\"", body["etag"].as_str().unwrap_or_default()),
            "{etag} {body}"
        );
        // Falling asleep and waking are no changes of its owner.
        node.reach(app, "asleep")?;
        let (_, _, same) = node.curl(None, &[], &path)?;
        ensure!(same == etag, "{same} is not {etag}");
        let (code, body, _) = put("two", &["-H", "if-match: \"0000000000000000\""], "")?;
        ensure!(code == 412 && body["state"] == "nothing was changed", "{code} {body}");
        let (code, body, second) = put("two", &["-H", &format!("if-match: {etag}")], "")?;
        ensure!(code == 200 && body["version"] == 2 && second != etag, "{code} {body}");
        ensure!(http_get(port, "/")?.contains("two"), "it is another version");
        // The first answer may have been lost.
        let (code, body, _) = put("two", &[], "")?;
        ensure!(code == 200 && body["version"] == 2, "{code} {body}");
        for verb in ["rollback", "suspend", "resume"] {
            let words = ["-X", "POST", "-H", &format!("if-match: {etag}")];
            let (code, body, _) = node.curl(None, &words, &format!("{path}/{verb}"))?;
            ensure!(code == 412, "{verb}: {code} {body}");
        }
        let words = ["-X", "DELETE", "-H", &format!("if-match: {etag}")];
        ensure!(node.curl(None, &words, &path)?.0 == 412, "it was removed");
        // Two that have seen the same: one of them changes it.
        let (_, _, seen) = node.curl(None, &[], &path)?;
        let codes: Vec<u16> = std::thread::scope(|scope| {
            let scale = |max: u32| {
                let (body, seen) = (json!({ "min": 0, "max": max }).to_string(), format!("if-match: {seen}"));
                let path = format!("{path}/scale");
                let node = &node;
                scope.spawn(move || node.curl(None, &["-X", "PUT", "-d", &body, "-H", &seen], &path))
            };
            let asked: Vec<_> = (2..8).map(scale).collect();
            asked
                .into_iter()
                .map(|asked| Ok(asked.join().ok().context("it has ended")??.0))
                .collect::<Result<_>>()
        })?;
        let done = codes.iter().filter(|code| **code == 200).count();
        ensure!(
            done == 1 && codes.iter().all(|code| [200, 409, 412].contains(code)),
            "{codes:?}"
        );
        // Who does not wait.
        let (code, body, _) = put("three", &[], "?timeout=0")?;
        ensure!(
            code == 202 && body["changing"] == true && body["version"] == 2,
            "{code} {body}"
        );
        let (code, body, _) = put("four", &[], "?timeout=0")?;
        ensure!(code == 409, "{code} {body}");
        let (code, body, _) = node.curl(None, &[], &format!("{path}?wait=settled"))?;
        ensure!(
            code == 200 && body["version"] == 3 && body["changing"] == false,
            "{code} {body}"
        );
        let (code, body, _) = node.curl(None, &["-X", "POST"], &format!("{path}/suspend?wait=running&timeout=1"))?;
        ensure!(code == 202 && body["state"] == "suspended", "{code} {body}");
        let words = [
            "update",
            &place.path("same.toml").display().to_string(),
            "--if-match",
            "0",
        ];
        std::fs::write(place.path("same.toml"), server(app, port, "five")?)?;
        let stale = registry.command("appshot").args(words).output()?;
        ensure!(
            stale.status.code() == Some(5) && said(&stale).contains("its tag is"),
            "{}",
            said(&stale)
        );
        node.end(&[app])
    });
}

/// Events, logs, the table, and how many instances there are.
#[test]
fn what_is_told() {
    in_place("conduit_told", |place| {
        let registry = Registry::new(place)?;
        let mut node = Node::new(&registry)?;
        let (app, port) = (place.unique(), free_port()?);
        let mut follow = registry.command("appshot");
        let mut follow = follow
            .args(["events", "-f", "-o", "json"])
            .stdout(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(follow.stdout.take().context("no stdout")?).lines();
        let (sender, told) = std::sync::mpsc::channel();
        let reading = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let _ = sender.send(serde_json::from_str::<Value>(&line).unwrap_or_default());
            }
        });
        let mut all = Vec::new();
        let mut until = |kind: &str, to: &str| -> Result<Value> {
            loop {
                let event = told
                    .recv_timeout(PATIENCE)
                    .with_context(|| format!("no {kind} {to}: {all:?}"))?;
                all.push(event["id"].as_u64().context("no id")?);
                if event["kind"] == kind && (to.is_empty() || event["told"]["to"] == to) {
                    return Ok(event);
                }
            }
        };
        let manifest = server(app, port, "one")?;
        node.deploy(&manifest)?;
        let event = until("deployed", "")?;
        ensure!(event["app"] == app && event["told"]["by"] == "root", "{event}");
        until("up", "")?;
        until("state", "asleep")?;
        ensure!(http_get(port, "/")?.contains("one"), "it does not serve");
        let event = until("up", "")?;
        ensure!(
            event["told"]["kind"] == "woken" && event["told"]["cause"] == "request",
            "{event}"
        );
        // A daemon that is started again is waited for, and nothing is told twice or left out.
        node.kill();
        node.begin()?;
        registry.appshot(&["suspend", app])?;
        until("suspended", "")?;
        ensure!(all.windows(2).all(|pair| pair[0] < pair[1]), "{all:?}");
        let _ = follow.kill();
        let _ = follow.wait();
        let _ = reading.join();
        let text = registry.appshot(&["events", app])?;
        ensure!(
            text.contains("deployed version 1 by root") && text.contains("woken in"),
            "{text}"
        );
        let last = registry.appshot(&["events", "-n", "1"])?;
        ensure!(
            last.lines().count() == 1 && last.contains("suspended by root"),
            "{last}"
        );
        registry.appshot(&["resume", app])?;
        // Plain, once.
        ensure!(http_get(port, "/")?.contains("one"), "it does not serve");
        let top = registry.appshot(&["top"])?;
        let line = top.lines().find(|line| line.starts_with(app)).context("no line")?;
        ensure!(
            top.starts_with("1 app deployed, 1 up; memory ") && line.contains(" MiB "),
            "{top}"
        );
        // As many as are wanted, at once, until a version says otherwise.
        let scaled = registry.appshot(&["scale", app, "3"])?;
        ensure!(scaled == format!("{app} may have 3 to 3 instances\n"), "{scaled}");
        let count = |wanted: usize| {
            poll(&format!("{wanted} instances"), PATIENCE, || {
                let status = node.get(&format!("/v1/apps/{app}"))?;
                let all = status["instances"].as_array().into_iter().flatten();
                let up = all.filter(|one| one["root"].is_number()).count();
                Ok((up == wanted).then_some(()))
            })
        };
        count(3)?;
        let wrong = registry.command("appshot").args(["scale", app, "0..101"]).output()?;
        ensure!(
            wrong.status.code() == Some(2) && said(&wrong).contains("from 1 to 100"),
            "{}",
            said(&wrong)
        );
        let none: Value = node.client()?.post("/v1/apps", &json!({ "manifest": manifest }))?;
        ensure!(
            none["bounds"] == json!({ "min": 3, "max": 3 }),
            "the same manifest: {none}"
        );
        // Killed and begun again it is so still.
        node.kill();
        node.begin()?;
        let count = |wanted: usize| {
            poll(&format!("{wanted} instances"), PATIENCE, || {
                let status = node.get(&format!("/v1/apps/{app}"))?;
                let all = status["instances"].as_array().into_iter().flatten();
                let up = all.filter(|one| one["root"].is_number()).count();
                Ok((up == wanted).then_some(()))
            })
        };
        count(3)?;
        registry.appshot(&["scale", app, "0..1"])?;
        count(1)?;
        node.reach(app, "asleep")?;
        // Its log, while it sleeps and after.
        let loud = place.path("loud.toml");
        let mut shell = manifest.replace(
            "command = [",
            "command = [\"sh\", \"-c\", \"echo begun; exec \\\"$@\\\"\", \"sh\", ",
        );
        shell = shell.replace(&format!("app = {app:?}"), &format!("app = \"{app}-b\""));
        let port_b = free_port()?;
        std::fs::write(&loud, shell.replace(&port.to_string(), &port_b.to_string()))?;
        registry.appshot(&["deploy", &loud.display().to_string()])?;
        let name = format!("{app}-b");
        let log = node.get(&format!("/v1/apps/{name}/logs"))?;
        ensure!(log["text"] == "begun\n" && log["next"] == 6, "{log}");
        let mut follow = registry.command("appshot");
        let mut follow = follow.args(["logs", "-f", &name]).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(follow.stdout.as_mut().context("no stdout")?).read_line(&mut line)?;
        ensure!(line == "begun\n", "{line}");
        ensure!(follow.try_wait()?.is_none(), "it has ended");
        let _ = follow.kill();
        let _ = follow.wait();
        node.end(&[app, &name])
    });
}

const SERVER: &str = "import sys, http.server as h; \
    h.test(h.SimpleHTTPRequestHandler, h.ThreadingHTTPServer, port=int(sys.argv[1]), bind='127.0.0.1')";

/// What a provider may not have is refused or waits, told by name; nobody else's app gives way.
#[test]
fn what_a_provider_may_have() {
    in_place("conduit_quotas", |place| {
        let entry = free_port()?;
        let node = nodes::Node::new(place, &["--http", &format!("127.0.0.1:{entry}")])?;
        let (registry, name) = (&node.registry, |app: &str| format!("{}-{app}", place.unique()));
        let manifest = |app: &str, provider: &str, port: u16| {
            let host = format!("[[route]]\nhost = \"{app}.example\"\n[timeouts]\nwake = \"2s\"");
            format!(
                "app = {:?}\n{provider}{}",
                name(app),
                nodes::python(SERVER, port, &host)
            )
        };
        let deploy = |app: &str, provider: &str, port: u16| -> Result<Value, Error> {
            let manifest = manifest(app, provider, port);
            node.client().post("/v1/apps", &json!({ "manifest": manifest }))
        };
        let set = |words: &[&str]| registry.appshot(&[&["provider", "set", "acme"], words].concat());
        let get = |app: &str| -> Result<String> {
            let mut stream = connect(entry)?;
            write!(
                stream,
                "GET / HTTP/1.1\r\nHost: {app}.example\r\nConnection: close\r\n\r\n"
            )?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        };
        // One that may wait for its turn is served, within two seconds or later.
        let served = |app: &str| {
            poll("it to be served", PATIENCE, || {
                Ok(get(app)?.starts_with("HTTP/1.1 200").then_some(()))
            })
        };
        let acme = "provider = \"acme\"\n";
        registry.appshot(&[
            "provider",
            "add",
            "acme",
            "--user",
            "nobody",
            "--apps",
            "2",
            "--instances",
            "1",
        ])?;
        deploy("other", "", free_port()?)?;
        node.reach(&name("other"), "running")?;

        // One at once: the second has the first sleep, which is idle.
        let busy = free_port()?;
        deploy("first", acme, free_port()?)?;
        node.reach(&name("first"), "running")?;
        deploy("second", acme, busy)?;
        node.reach(&name("second"), "running")?;
        ensure!(node.status(&name("first"))?["state"] == "asleep");
        let refused = deploy("third", acme, free_port()?).err().context("a third app")?;
        ensure!(refused.kind == Kind::Refused, "{refused}");
        let told = format!("{refused} {:?}", refused.fix);
        for part in [
            "provider acme may have apps: 2, and has 2",
            "appshot remove",
            "appshot provider set acme",
        ] {
            ensure!(told.contains(part), "{part}: {told}");
        }
        ensure!(node.status(&name("third")).is_err(), "it is there");

        // The one that runs has a connection: the other waits, and its client is told for what.
        let open = connect(busy)?;
        node.holds(&name("second"), "connections", false)?;
        let answer = get("first")?;
        ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        ensure!(
            answer.contains("waits for its provider's quota of instances\n"),
            "{answer}"
        );
        let why = node.status(&name("first"))?["why"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        ensure!(why.contains("acme may have 1 at once, and has 1"), "{why}");
        drop(open);
        served("first")?;
        node.reach(&name("second"), "asleep")?;

        // Two, but not so much memory as that takes.
        let shown = set(&["--instances", "2", "--memory", "1M"])?;
        ensure!(
            shown.contains("instances  1/2") && shown.contains("/1.0 MiB"),
            "{shown}"
        );
        let _held = connect(node_port(&node, &name("first"))?)?;
        node.holds(&name("first"), "connections", false)?;
        let answer = get("second")?;
        ensure!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("quota of memory\n"),
            "{answer}"
        );
        set(&["--memory", "none"])?;
        served("second")?;

        // No more that never sleep than may run, and no version where appshots take all there may be.
        let bounds = json!({ "min": 3, "max": 3 });
        let scaled: Result<Value, Error> = node
            .client()
            .put(&format!("/v1/apps/{}/scale", name("second")), &bounds);
        let error = scaled.err().context("three instances")?;
        ensure!(error.to_string().contains("may have instances at once: 2"), "{error}");
        set(&["--appshots", "1K"])?;
        let path = format!("/v1/apps/{}", name("first"));
        let changed = json!({ "manifest": manifest("first", acme, free_port()?) });
        let updated: Result<Value, Error> = node.client().put(&path, &changed);
        let error = updated.err().context("another version")?;
        ensure!(error.to_string().contains("may have appshots: 1.0 KiB"), "{error}");

        // It is told, and stays over a restart.
        let used: Value = node.client().get("/v1/providers/acme")?;
        ensure!(used["used"]["apps"] == 2 && used["used"]["instances"] == 2, "{used}");
        ensure!(used["used"]["memory"].as_u64() > Some(1 << 20), "{used}");
        ensure!(used["used"]["appshots"].as_u64() > Some(1 << 10), "{used}");
        let said = json!({ "apps": 2, "instances": 2, "memory": null, "appshots": 1024 });
        ensure!(used["quota"] == said, "{used}");
        let list = registry.appshot(&["provider", "ls"])?;
        ensure!(list.contains(" 2/2 "), "{list}");
        let sleeps = node.count(&name("other"), "sleeps")?;
        ensure!(sleeps == 0, "an app of somebody else was asked to sleep");
        ensure!(set(&[]).is_err() && set(&["--apps", "many"]).is_err());
        let (node, ()) = node.replace(true, &["--http", &format!("127.0.0.1:{entry}")], || Ok(()))?;
        let again: Value = node.client().get("/v1/providers/acme")?;
        ensure!(again["quota"] == said, "{again}");
        let manifest = format!(
            "app = {:?}\n{acme}{}",
            name("third"),
            nodes::python(SERVER, free_port()?, "")
        );
        let third: Result<Value, Error> = node.client().post("/v1/apps", &json!({ "manifest": manifest }));
        ensure!(third.is_err(), "what may be had is forgotten");
        node.end()
    });
}

/// Of many who deploy at the same moment under one name, or at one address, one has it.
#[test]
fn one_of_many_deploys() {
    in_place("conduit_one_of_many", |place| {
        let node = nodes::Node::new(place, &[])?;
        let deploy = |app: String, port: u16, said: &str| -> Result<Value, Error> {
            let manifest = format!(
                "app = {app:?}\n{}",
                nodes::python(&format!("{SERVER} # {said}"), port, "")
            );
            node.client().post("/v1/apps", &json!({ "manifest": manifest }))
        };
        for (what, one_name) in [("name", true), ("address", false)] {
            let (port, said) = (free_port()?, ["a", "b", "c", "d", "e", "f", "g", "h"]);
            let done: Vec<Result<Value, Error>> = std::thread::scope(|scope| {
                let all: Vec<_> = said
                    .iter()
                    .map(|said| {
                        let last = if one_name { "one" } else { *said };
                        let app = format!("{}-{what}-{last}", place.unique());
                        scope.spawn(|| deploy(app, port, said))
                    })
                    .collect();
                let answers = all.into_iter().map(|one| one.join());
                answers.map(|answer| answer.expect("it does not panic")).collect()
            });
            let (had, refused): (Vec<_>, Vec<_>) = done.iter().partition(|answer| answer.is_ok());
            ensure!(had.len() == 1, "{what}: {done:?}");
            for answer in refused {
                let error = answer.as_ref().err().context("partitioned")?;
                ensure!(error.kind == Kind::Conflict, "{what}: {error}");
            }
        }
        let deployed: Vec<Value> = node.client().get("/v1/apps")?;
        ensure!(deployed.len() == 2, "{deployed:?}");
        node.end()
    });
}

fn node_port(node: &nodes::Node, app: &str) -> Result<u16> {
    let status = node.status(app)?;
    let listen = status["listen"][0].as_str().context("it listens nowhere")?;
    Ok(listen.rsplit(':').next().context("no port")?.parse()?)
}
