//! Bad input for the edgepoint, by its API and by the command line: each is refused with its
//! reason, and nothing is changed. (Manifests have their table beside their parser.)

use anyhow::{Context, Result, ensure};
use appshot_tests::installed::Registry;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::need_program;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;

/// It is deployed, and cannot be started.
const THERE: &str =
    "app = \"there\"\n[start]\ncommand = [\"/no/such/program\"]\n[[listen]]\nunix = \"/nowhere/there.sock\"\n";

fn manifest(text: &str) -> String {
    json!({ "manifest": text }).to_string()
}

/// Method, path, header, body; the status, and what is said.
type Request = (&'static str, &'static str, &'static str, String, u16, &'static str);

fn requests() -> Vec<Request> {
    let there = || manifest(THERE);
    let text = |body: &str| body.to_owned();
    let none = String::new;
    let put = |from: &str, to: &str| manifest(&THERE.replacen(from, to, 1));
    vec![
        // What is no request of ours.
        ("GET", "/", "", none(), 404, "nothing at this path"),
        ("GET", "/v1", "", none(), 404, "nothing at this path"),
        ("GET", "/v2/apps", "", none(), 404, "nothing at this path"),
        ("GET", "/v1/apps/", "", none(), 404, "nothing at this path"),
        ("GET", "/v1/apps/there/", "", none(), 404, "nothing at this path"),
        ("GET", "/v1/apps/there/nothing", "", none(), 404, "nothing at this path"),
        ("PATCH", "/v1/apps/there", "", none(), 405, "does not take this method"),
        ("DELETE", "/v1/apps", "", none(), 405, "does not take this method"),
        (
            "GET",
            "/v1/apps/there/suspend",
            "",
            none(),
            405,
            "does not take this method",
        ),
        ("POST", "/v1/events", "", none(), 405, "does not take this method"),
        // Bodies.
        ("POST", "/v1/apps", "", none(), 422, "EOF while parsing"),
        ("POST", "/v1/apps", "", text("{"), 422, "EOF while parsing"),
        ("POST", "/v1/apps", "", text("[]"), 422, "expected struct Deploy"),
        ("POST", "/v1/apps", "", text("{}"), 422, "missing field `manifest`"),
        (
            "POST",
            "/v1/apps",
            "",
            text("{\"manifest\":7}"),
            422,
            "expected a string",
        ),
        (
            "POST",
            "/v1/apps",
            "",
            text("{\"manifest\":\"\",\"more\":1}"),
            422,
            "unknown field `more`",
        ),
        (
            "POST",
            "/v1/apps",
            "",
            text("{\"manifest\":\"\\ud800\"}"),
            422,
            "unexpected end of hex escape",
        ),
        ("POST", "/v1/apps", "", manifest("\u{0}"), 422, "line 1"),
        ("POST", "/v1/apps", "", manifest("app = \"x\""), 422, "missing field"),
        (
            "POST",
            "/v1/apps",
            "",
            manifest(&"#".repeat(64 << 10)),
            422,
            "missing field",
        ),
        (
            "POST",
            "/v1/apps",
            "",
            manifest(&"#".repeat((64 << 10) + 1)),
            422,
            "too long",
        ),
        ("POST", "/v1/apps", "", manifest(&"[".repeat(60_000)), 422, "line 1"),
        (
            "POST",
            "/v1/apps",
            "",
            put("[[listen]]", "[[listn]]"),
            422,
            "did you mean listen?",
        ),
        // What is there already.
        (
            "POST",
            "/v1/apps",
            "",
            put("/no/such", "/another"),
            409,
            "with another manifest",
        ),
        (
            "POST",
            "/v1/apps",
            "",
            put("\"there\"", "\"there.2\""),
            409,
            "would have the same names",
        ),
        (
            "POST",
            "/v1/apps",
            "",
            put("\"there\"", "\"there-2\""),
            409,
            "listens on /nowhere/there.sock",
        ),
        (
            "POST",
            "/v1/apps",
            "",
            put("\"there\"", "\"there.v2\""),
            409,
            "the same names",
        ),
        (
            "POST",
            "/v1/apps",
            "",
            manifest(&format!("{THERE}[[route]]\nhost = \"x.example\"\n")),
            409,
            "with another manifest",
        ),
        (
            "POST",
            "/v1/apps",
            "",
            manifest(&format!(
                "{}[[route]]\nhost = \"x.example\"\n",
                THERE.replace("there", "routed")
            )),
            503,
            "no HTTP entry",
        ),
        // Apps.
        ("GET", "/v1/apps/absent", "", none(), 404, "no app absent is deployed"),
        ("GET", "/v1/apps/thre", "", none(), 404, "did you mean there?"),
        ("GET", "/v1/apps/..", "", none(), 404, ""),
        (
            "GET",
            "/v1/apps/%2e%2e%2fcontrol.db",
            "",
            none(),
            404,
            "no app ../control.db",
        ),
        ("GET", "/v1/apps/%ff", "", none(), 400, ""),
        (
            "GET",
            "/v1/apps/there?wait=happy",
            "",
            none(),
            422,
            "unknown variant `happy`",
        ),
        ("GET", "/v1/apps/there?wait=", "", none(), 422, "unknown variant"),
        ("GET", "/v1/apps/there?timeout=soon", "", none(), 422, "invalid digit"),
        ("GET", "/v1/apps/there?timeout=-1", "", none(), 422, "invalid digit"),
        (
            "GET",
            "/v1/apps/there?waitt=running",
            "",
            none(),
            422,
            "unknown field `waitt`",
        ),
        (
            "PUT",
            "/v1/apps/other",
            "",
            there(),
            422,
            "the manifest is that of there",
        ),
        (
            "PUT",
            "/v1/apps/absent",
            "if-match: *",
            put("\"there\"", "\"absent\""),
            412,
            "no app absent",
        ),
        (
            "PUT",
            "/v1/apps/there",
            "if-none-match: *",
            there(),
            412,
            "is deployed already",
        ),
        ("PUT", "/v1/apps/there", "if-match: \"0\"", there(), 412, "its tag is"),
        ("PUT", "/v1/apps/there", "if-match: 0", there(), 422, "in quotes"),
        (
            "PUT",
            "/v1/apps/there",
            "if-match: \"a\", \"b\"",
            there(),
            422,
            "in quotes",
        ),
        ("PUT", "/v1/apps/there", "if-match: \"\"", there(), 422, "in quotes"),
        (
            "PUT",
            "/v1/apps/there",
            "if-none-match: \"0\"",
            there(),
            422,
            "nothing but *",
        ),
        (
            "PUT",
            "/v1/apps/there",
            "",
            put("/nowhere/there.sock", "/nowhere/other.sock"),
            409,
            "who comes there would be refused",
        ),
        (
            "PUT",
            "/v1/apps/there",
            "",
            put("[start]", "provider = \"x\"\n[start]"),
            409,
            "it is of provider local",
        ),
        (
            "PUT",
            "/v1/apps/there",
            "",
            put("/no/such", "/another"),
            409,
            "cannot be handed over",
        ),
        ("POST", "/v1/apps/absent/rollback", "", none(), 404, "no app absent"),
        ("POST", "/v1/apps/there/rollback", "", none(), 409, "no other version"),
        ("POST", "/v1/apps/absent/suspend", "", none(), 404, "no app absent"),
        ("POST", "/v1/apps/absent/resume", "", none(), 404, "no app absent"),
        ("DELETE", "/v1/apps/absent", "", none(), 404, "no app absent"),
        ("DELETE", "/v1/apps/there", "if-match: \"0\"", none(), 412, "its tag is"),
        // Instances.
        ("PUT", "/v1/apps/there/scale", "", none(), 422, "EOF while parsing"),
        (
            "PUT",
            "/v1/apps/there/scale",
            "",
            text("{\"min\":1}"),
            422,
            "missing field `max`",
        ),
        (
            "PUT",
            "/v1/apps/there/scale",
            "",
            text("{\"min\":-1,\"max\":1}"),
            422,
            "expected usize",
        ),
        (
            "PUT",
            "/v1/apps/there/scale",
            "",
            text("{\"min\":1.5,\"max\":2}"),
            422,
            "expected usize",
        ),
        (
            "PUT",
            "/v1/apps/there/scale",
            "",
            text("{\"min\":0,\"max\":0}"),
            422,
            "from 1 to 100",
        ),
        (
            "PUT",
            "/v1/apps/there/scale",
            "",
            text("{\"min\":0,\"max\":101}"),
            422,
            "from 1 to 100",
        ),
        (
            "PUT",
            "/v1/apps/there/scale",
            "",
            text("{\"min\":3,\"max\":2}"),
            422,
            "min is more than",
        ),
        (
            "PUT",
            "/v1/apps/there/scale",
            "",
            text("{\"min\":0,\"max\":2}"),
            422,
            "cannot scale there",
        ),
        (
            "PUT",
            "/v1/apps/absent/scale",
            "",
            text("{\"min\":1,\"max\":1}"),
            404,
            "no app absent",
        ),
        // Logs and events.
        ("GET", "/v1/apps/absent/logs", "", none(), 404, "no app absent"),
        (
            "GET",
            "/v1/apps/there/logs?of=other",
            "",
            none(),
            404,
            "no instance other",
        ),
        (
            "GET",
            "/v1/apps/there/logs?of=../../etc/passwd",
            "",
            none(),
            404,
            "no instance",
        ),
        ("GET", "/v1/apps/there/logs?after=x", "", none(), 422, "invalid digit"),
        (
            "GET",
            "/v1/apps/there/logs?lines=3",
            "",
            none(),
            422,
            "unknown field `lines`",
        ),
        ("GET", "/v1/events?after=-1", "", none(), 422, "invalid digit"),
        (
            "GET",
            "/v1/events?after=99999999999999999999",
            "",
            none(),
            422,
            "too large",
        ),
        ("GET", "/v1/events?after=18446744073709551615", "", none(), 200, ""),
        ("GET", "/v1/events?limit=x", "", none(), 422, "invalid digit"),
        ("GET", "/v1/events?wait=1s", "", none(), 422, "invalid digit"),
        ("GET", "/v1/events?since=1", "", none(), 422, "unknown field `since`"),
        // Providers.
        ("POST", "/v1/providers", "", none(), 422, "EOF while parsing"),
        (
            "POST",
            "/v1/providers",
            "",
            text("{\"name\":\"x\"}"),
            422,
            "missing field `users`",
        ),
        (
            "POST",
            "/v1/providers",
            "",
            text("{\"name\":\"x\",\"users\":[]}"),
            422,
            "names nobody",
        ),
        (
            "POST",
            "/v1/providers",
            "",
            text("{\"name\":\"x\",\"users\":[\"no-such-user\"]}"),
            422,
            "there is no user",
        ),
        (
            "POST",
            "/v1/providers",
            "",
            text("{\"name\":\"x\",\"users\":[\"root:no-such-group\"]}"),
            422,
            "there is no group",
        ),
        (
            "POST",
            "/v1/providers",
            "",
            text("{\"name\":\"a b\",\"users\":[\"root\"]}"),
            422,
            "cannot be the name",
        ),
        (
            "POST",
            "/v1/providers",
            "",
            text("{\"name\":\"\",\"users\":[\"root\"]}"),
            422,
            "it is empty",
        ),
        (
            "POST",
            "/v1/providers",
            "",
            text("{\"name\":\"acme\",\"users\":[\"root\"]}"),
            409,
            "already",
        ),
        (
            "PUT",
            "/v1/providers/absent/users",
            "",
            text("{\"users\":[\"root\"]}"),
            404,
            "no provider absent",
        ),
        (
            "PUT",
            "/v1/providers/acme/users",
            "",
            text("{\"users\":[]}"),
            422,
            "names nobody",
        ),
        (
            "POST",
            "/v1/providers/acm/rotate",
            "",
            text("{}"),
            404,
            "did you mean acme?",
        ),
        (
            "POST",
            "/v1/providers/acme/rotate",
            "",
            text("{\"grace\":\"soon\"}"),
            422,
            "cannot understand grace",
        ),
        (
            "POST",
            "/v1/providers/acme/rotate",
            "",
            text("{\"grace\":5}"),
            422,
            "expected a string",
        ),
        ("DELETE", "/v1/providers/absent", "", none(), 404, "no provider absent"),
    ]
}

#[test]
fn by_the_api() {
    in_place("nonsense_api", |place| {
        let registry = Registry::new(place)?;
        let node = registry.daemon("edgepointd", "")?;
        let socket = registry.run.join("edgepointd.sock");
        let curl = need_program(&["/usr/bin/curl"])?;
        let _: Value = node.client.post("/v1/apps", &json!({ "manifest": THERE }))?;
        let _: Value = node.client.get("/v1/apps/there?wait=failed")?;
        let body = json!({ "name": "acme", "users": ["nobody"] });
        let _: Value = node.client.post("/v1/providers", &body)?;
        let file = place.path("body");
        let requests = requests();
        ensure!(requests.len() >= 60, "{}", requests.len());
        for (method, path, header, body, code, told) in &requests {
            std::fs::write(&file, body)?;
            let mut command = Command::new(&curl);
            command.args([
                "-sS",
                "-m",
                "20",
                "--path-as-is",
                "-w",
                "\n%{http_code}",
                "-X",
                method,
                "--unix-socket",
            ]);
            command
                .arg(&socket)
                .arg("--data-binary")
                .arg(format!("@{}", file.display()));
            if !header.is_empty() {
                command.args(["-H", header]);
            }
            let output = command.arg(format!("http://node{path}")).output()?;
            let case = format!("{method} {path} {header} {:.60}", body);
            let text = String::from_utf8(output.stdout)?;
            let (answer, status) = text.rsplit_once('\n').context(case.clone())?;
            ensure!(status == code.to_string(), "{case}: {status}, not {code}: {answer}");
            if told.is_empty() {
                continue;
            }
            let error: libsnap::error::Error =
                serde_json::from_str(answer).with_context(|| format!("{case}: {answer}"))?;
            let said = error.to_string();
            ensure!(said.contains(told), "{case}: {said}, not {told}");
        }
        raw(&socket)?;
        // Nothing of all that was done.
        let apps: Vec<Value> = node.client.get("/v1/apps")?;
        ensure!(apps.len() == 1 && apps[0]["version"] == 1, "{apps:?}");
        ensure!(apps[0]["bounds"] == json!({ "min": 0, "max": 1 }), "{apps:?}");
        let providers: Vec<Value> = node.client.get("/v1/providers")?;
        ensure!(
            providers.len() == 1 && providers[0]["users"] == json!(["nobody"]),
            "{providers:?}"
        );
        let _: Value = node.client.delete("/v1/apps/there")?;
        node.stop()
    });
}

/// What is no HTTP at all, or too much of it.
fn raw(socket: &std::path::Path) -> Result<()> {
    let long = format!("GET /v1/apps HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(1 << 20));
    let many = format!("GET /v1/apps HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(1000));
    let path = format!("GET /v1/apps/{} HTTP/1.1\r\nhost: x\r\n\r\n", "x".repeat(100_000));
    for text in [
        "nonsense\r\n\r\n",
        "GET /v1/apps HTTP/9.9\r\n\r\n",
        "GET  HTTP/1.1\r\n\r\n",
        "POST /v1/apps HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
        "POST /v1/apps HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        "POST /v1/apps HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "\u{0}\u{1}\u{2}",
        &long,
        &many,
        &path,
    ] {
        let mut stream = UnixStream::connect(socket)?;
        // It may be closed before all is said.
        let _ = stream.write_all(text.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        ensure!(!answer.starts_with("HTTP/1.1 2"), "{:.40}: {answer}", text);
    }
    Ok(())
}

/// The words; the exit code, and what is said.
const COMMANDS: &[(&[&str], i32, &str)] = &[
    (&["deploy"], 2, "required arguments were not provided"),
    (&["deploy", "/no/such/file"], 3, "cannot read the manifest"),
    (&["deploy", "/"], 1, "cannot read the manifest"),
    (&["deploy", "/dev/null"], 2, "missing field `app`"),
    (&["deploy", "/dev/null", "--nowait"], 2, "--no-wait"),
    (&["update", "/dev/null"], 2, "missing field `app`"),
    (&["update", "ABSENT"], 3, "no app absent is deployed"),
    (&["status"], 2, "required arguments were not provided"),
    (&["status", "a b"], 2, "cannot be the name"),
    (&["status", ""], 2, "it is empty"),
    (&["status", "7"], 2, "taken for a PID"),
    (&["status", "../there"], 2, "must begin with"),
    (&["status", "there/../there"], 2, "it may hold"),
    (&["status", "there?wait=x"], 2, "it may hold"),
    (&["status", "absent"], 3, "no app absent is deployed"),
    (&["status", "thre"], 3, "did you mean there?"),
    (&["status", "there", "--wait", "happy"], 2, "possible values"),
    (&["status", "there", "-o", "yaml"], 2, "possible values"),
    (&["apps", "there"], 2, "unexpected argument"),
    (
        &["apps", "--socket", "/no/such.sock"],
        6,
        "cannot reach the daemon at /no/such.sock",
    ),
    (&["rollback", "there"], 5, "no other version"),
    (&["rollback", "absent"], 3, "no app absent"),
    (&["rollback", "there", "--if-match", "0"], 5, "its tag is"),
    (&["rollback", "there", "--if-match", ""], 2, "in quotes"),
    (
        &["rollback", "there", "--if-match", "a\nb"],
        1,
        "cannot ask with the if-match",
    ),
    (&["suspend", "absent"], 3, "no app absent"),
    (&["resume", "absent"], 3, "no app absent"),
    (&["remove", "absent"], 3, "no app absent"),
    (&["remove", "there", "--if-match", "0"], 5, "its tag is"),
    (&["scale", "there"], 2, "required arguments were not provided"),
    (&["scale", "there", "0"], 2, "appshot suspend"),
    (&["scale", "there", "0..0"], 2, "appshot suspend"),
    (&["scale", "there", "many"], 2, "such as 3 or 0..4"),
    (&["scale", "there", "-1"], 2, "unexpected argument"),
    (&["scale", "there", "1.5"], 2, "such as 3 or 0..4"),
    (&["scale", "there", "1...3"], 2, "such as 3 or 0..4"),
    (&["scale", "there", "4..2"], 2, "more than the second"),
    (&["scale", "there", "0..1000"], 2, "from 1 to 100"),
    (&["scale", "there", "99999999999999999999"], 2, "such as 3 or 0..4"),
    (&["scale", "there", "0..4"], 2, "nothing says when"),
    (&["scale", "absent", "1"], 3, "no app absent"),
    (&["events", "a b"], 2, "cannot be the name"),
    (&["events", "-n", "1001"], 2, "not in 0..=1000"),
    (&["events", "-n", "-1"], 2, "unexpected argument"),
    (&["top", "--interval", "1"], 2, "invalid value"),
    (&["top", "--interval", "soon"], 2, "invalid value"),
    (&["logs", "a b"], 2, "cannot be the name"),
    (&["logs", "absent"], 3, "absent"),
    (&["logs", "-f", "absent"], 3, "absent"),
    (&["provider"], 2, "Usage"),
    (&["provider", "add", "x"], 2, "--user"),
    (
        &["provider", "add", "x", "--user", "no-such-user"],
        2,
        "there is no user",
    ),
    (&["provider", "add", "a b", "--user", "root"], 2, "cannot be the name"),
    (&["provider", "add", "acme", "--user", "root"], 5, "already"),
    (
        &["provider", "allow", "absent", "--user", "root"],
        3,
        "no provider absent",
    ),
    (&["provider", "rotate", "absent"], 3, "no provider absent"),
    (&["provider", "rotate", "../acme"], 2, "must begin with"),
    (&["provider", "rotate", "acme", "--grace", "soon"], 2, "invalid value"),
    (&["provider", "remove", "acm"], 3, "did you mean acme?"),
    (&["apps", "--api", "https://127.0.0.1:1"], 2, "there is no token"),
    (
        &["apps", "--api", "http://127.0.0.1:1", "--token-file", "TOKEN"],
        2,
        "in the clear",
    ),
    (
        &["apps", "--api", "127.0.0.1:1", "--token-file", "TOKEN"],
        2,
        "https://",
    ),
    (&["apps", "--api", "nonsense", "--token-file", "TOKEN"], 2, "https://"),
    (
        &["apps", "--api", "https://", "--token-file", "TOKEN"],
        2,
        "it is no URL",
    ),
    (
        &["apps", "--api", "https://x/v1", "--token-file", "TOKEN"],
        2,
        "it has a path",
    ),
    (
        &["apps", "--api", "https://127.0.0.1:1", "--token-file", "/no/such"],
        1,
        "cannot read the token",
    ),
    (
        &["apps", "--api", "https://127.0.0.1:1", "--token-file", "/dev/null"],
        2,
        "the token is empty",
    ),
    (
        &["apps", "--api", "https://127.0.0.1:1", "--token-file", "TWO"],
        2,
        "or no token",
    ),
    (
        &[
            "apps",
            "--api",
            "https://127.0.0.1:1",
            "--token-file",
            "TOKEN",
            "--api-ca",
            "/dev/null",
        ],
        1,
        "there is none in it",
    ),
    (
        &[
            "apps",
            "--api",
            "https://127.0.0.1:1",
            "--token-file",
            "TOKEN",
            "--api-fingerprint",
            "ab",
        ],
        2,
        "64 hexadecimal",
    ),
    (
        &[
            "apps",
            "--api",
            "https://127.0.0.1:1",
            "--token-file",
            "TOKEN",
            "--api-fingerprint",
            "DIGITS",
        ],
        6,
        "cannot reach the node at 127.0.0.1:1",
    ),
    (&["store", "gc", "--keep", "-1"], 2, "unexpected argument"),
];

#[test]
fn by_the_command_line() {
    in_place("nonsense_commands", |place| {
        let registry = Registry::new(place)?;
        let node = registry.daemon("edgepointd", "")?;
        let _: Value = node.client.post("/v1/apps", &json!({ "manifest": THERE }))?;
        let _: Value = node.client.get("/v1/apps/there?wait=failed")?;
        registry.appshot(&["provider", "add", "acme", "--user", "nobody"])?;
        let file = |name: &str, text: &str| -> Result<String> {
            std::fs::write(place.path(name), text)?;
            Ok(place.path(name).display().to_string())
        };
        let absent = file("absent", &THERE.replace("there", "absent"))?;
        let (token, two) = (file("token", "appshot_00\n")?, file("two", "a b\n")?);
        ensure!(COMMANDS.len() >= 60, "{}", COMMANDS.len());
        for (words, code, told) in COMMANDS {
            let digits = "0".repeat(64);
            let words: Vec<&str> = words
                .iter()
                .map(|word| match *word {
                    "ABSENT" => absent.as_str(),
                    "TOKEN" => token.as_str(),
                    "TWO" => two.as_str(),
                    "DIGITS" => digits.as_str(),
                    word => word,
                })
                .collect();
            let output = registry.command("appshot").args(&words).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.code() == Some(*code),
                "{words:?}: {:?}: {said}",
                output.status
            );
            ensure!(said.contains(told), "{words:?}: {said}, not {told}");
            ensure!(output.stdout.is_empty(), "{words:?}: something on stdout");
        }
        for (words, told) in [
            (&["--api", "here"][..], "invalid value"),
            (&["--api-tls", "/dev/null"], "--api <ADDR:PORT>"),
            (
                &["--api", "127.0.0.1:0", "--api-tls", "/no/such"],
                "cannot take the certificate of /no/such",
            ),
            (&["--api", "127.0.0.1:0", "--api-tls", "/dev/null"], "one PEM file"),
            (&["--api", "192.0.2.1:1"], "cannot listen on 192.0.2.1:1"),
        ] {
            let mut other = registry.command("edgepointd");
            let dirs = [("APPSHOT_RUN_DIR", "other/run"), ("APPSHOT_DATA_DIR", "other/data")];
            other.envs(dirs.map(|(key, dir)| (key, place.path(dir))));
            let output = other.args(words).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(output.status.code().is_some_and(|code| code > 0), "{words:?}: {said}");
            ensure!(said.contains(told), "{words:?}: {said}, not {told}");
        }
        let apps: Vec<Value> = node.client.get("/v1/apps")?;
        ensure!(apps.len() == 1 && apps[0]["version"] == 1, "{apps:?}");
        let _: Value = node.client.delete("/v1/apps/there")?;
        node.stop()
    });
}
