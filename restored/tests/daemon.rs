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
        Daemon::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(dir: tempfile::TempDir) -> Daemon {
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
        self.dir.path().join("run/restored.sock")
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
    let mut command = Command::new(env!("CARGO_BIN_EXE_restored"));
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
                "post" => client.post(&path, &json!({ "appshot": "nobody" })),
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
    let post = |body: Value| fails(client.post("/v1/instances", &body));
    assert_eq!(post(json!({})), Kind::Usage);
    assert_eq!(post(json!({ "appshot": "web", "pids": "some" })), Kind::Usage);
    assert_eq!(post(json!({ "appshot": "here/web.appshot" })), Kind::Usage);
    assert_eq!(post(json!({ "appshot": "web" })), Kind::NotFound);
    assert_eq!(post(json!({ "appshot": "/nowhere/web.appshot" })), Kind::NotFound);
    assert_eq!(fails(client.get("/v1/instances/web?wait=forever")), Kind::Usage);
    assert_eq!(fails(client.get("/v1/instances/web?wait=exited")), Kind::NotFound);
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

/// Without its supervisor the end of an app is still seen, if not its code.
#[test]
fn apps_without_a_supervisor_are_followed() {
    let mut app = Command::new("sleep").arg("60").spawn().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = libsnap::store::Store::open(&dir.path().join("run"), &dir.path().join("data"));
    let store = store.unwrap();
    let instance = libsnap::target::Instance {
        name: "web".to_owned(),
        root: libsnap::ids::HostPid(i32::try_from(app.id()).unwrap()),
        init: None,
        cgroup: None,
        processes: 1,
        total_micros: 0,
        phases: Vec::new(),
    };
    let mut record = libsnap::store::App::of_instance(&instance, Vec::new()).unwrap();
    record.supervisor = None;
    record.from = Some(dir.path().to_owned());
    store.put(&record).unwrap();
    let daemon = Daemon::start_in(dir);
    let client = daemon.client();
    let before: Value = client.get("/v1/instances/web").unwrap();
    assert_eq!(before["state"], "running");
    let waiting = std::thread::spawn(move || client.get("/v1/instances/web?wait=exited"));
    app.kill().unwrap();
    app.wait().unwrap();
    let after: Value = waiting.join().unwrap().unwrap();
    assert_eq!((&after["state"], &after["exit"]), (&json!("exited"), &Value::Null));
}
