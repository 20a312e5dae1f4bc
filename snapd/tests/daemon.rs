//! The daemon as a process: socket, answers, one owner, graceful stop.

use libsnap::error::{Error, Kind};
use nodekit::client::Client;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Daemon {
    dir: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    fn start() -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let child = command(dir.path()).spawn().unwrap();
        let daemon = Daemon { dir, child };
        let deadline = Instant::now() + Duration::from_secs(10);
        while !daemon.client().answers() {
            assert!(Instant::now() < deadline, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("run/snapd.sock")
    }

    fn client(&self) -> Client {
        Client::new(self.socket())
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(pid).status().unwrap().success());
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_snapd"));
    command
        .env("APPSHOT_RUN_DIR", dir.join("run"))
        .env("APPSHOT_DATA_DIR", dir.join("data"))
        .stderr(Stdio::null());
    command
}

fn fails(answer: Result<Value, Error>) -> Kind {
    answer.unwrap_err().kind
}

#[test]
fn it_answers_what_it_describes() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let api: Value = client.get("/v1/openapi.json").unwrap();
    for (path, methods) in api["paths"].as_object().unwrap() {
        let path = path.replace("{name}", "nobody");
        for method in methods.as_object().unwrap().keys() {
            let answer: Result<Value, Error> = match method.as_str() {
                "get" => client.get(&path),
                "post" => client.post(&path, &json!({ "target": "nobody" })),
                "delete" => client.delete(&path),
                other => panic!("{other} of {path} is not tried"),
            };
            if let Err(error) = answer {
                assert_eq!(error.kind, Kind::NotFound, "{method} {path}: {error}");
                assert!(error.what.contains("nobody"), "{method} {path}: {error}");
            }
        }
    }
}

#[test]
fn nonsense_is_told_as_such() {
    let daemon = Daemon::start();
    let client = daemon.client();
    let post = |body: Value| fails(client.post("/v1/snapshots", &body));
    assert_eq!(post(json!({})), Kind::Usage);
    assert_eq!(post(json!({ "target": "web", "colour": "red" })), Kind::Usage);
    assert_eq!(post(json!({ "target": "web", "output": "x" })), Kind::Usage);
    assert_eq!(post(json!({ "target": "Web" })), Kind::Usage);
    assert_eq!(post(json!({ "target": "web" })), Kind::NotFound);
    assert_eq!(post(json!({ "target": 4_194_305 })), Kind::NotFound);
    assert_eq!(fails(client.get("/v1/nothing")), Kind::NotFound);
    assert_eq!(fails(client.delete("/v1/apps")), Kind::Usage);
}

#[test]
fn a_second_daemon_is_refused_and_the_first_stops_cleanly() {
    let mut daemon = Daemon::start();
    let second = command(daemon.dir.path()).status().unwrap();
    assert_eq!(second.code(), Some(i32::from(Kind::Conflict.exit_code())));
    assert!(daemon.client().answers(), "the first was not disturbed");
    assert_eq!(daemon.terminate(), Some(0));
    assert!(!daemon.socket().exists());
}

#[test]
fn a_killed_daemon_leaves_nothing_in_the_way() {
    let mut daemon = Daemon::start();
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(daemon.socket().exists());
    daemon.child = command(daemon.dir.path()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while !daemon.client().answers() {
        assert!(Instant::now() < deadline, "no successor");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn appshots_are_listed_and_removed() {
    let daemon = Daemon::start();
    let appshot = daemon.dir.path().join("data/appshots/web.appshot");
    std::fs::write(&appshot, "sealed").unwrap();
    let client = daemon.client();
    let listed: Value = client.get("/v1/appshots").unwrap();
    assert_eq!(listed[0]["name"], "web");
    let app: Value = client.get("/v1/apps/web").unwrap();
    assert_eq!(app["state"], "asleep");
    let removed: Value = client.delete("/v1/appshots/web").unwrap();
    assert_eq!(removed["bytes"], 6);
    assert!(!appshot.exists());
}
