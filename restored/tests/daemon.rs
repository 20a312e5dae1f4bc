//! The daemon as a process: what it answers.

use appshot_tests::daemon::{Daemon, Program, fails};
use libsnap::error::Kind;
use serde_json::{Value, json};
use std::process::Command;

const PROGRAM: Program = Program {
    path: env!("CARGO_BIN_EXE_restored"),
    arguments: &[],
};

appshot_tests::daemon_tests!(PROGRAM, json!({ "appshot": "nobody" }));

#[test]
fn nonsense_is_told_as_such() {
    let daemon = Daemon::start(PROGRAM);
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
        warnings: Vec::new(),
        network: None,
        joined: None,
        ahead: None,
        point: None,
        resumed: None,
    };
    let mut record = libsnap::store::App::of_instance(&instance, Vec::new()).unwrap();
    record.supervisor = None;
    record.from = Some(dir.path().to_owned());
    store.put(&record).unwrap();
    let daemon = Daemon::start_in(PROGRAM, dir);
    let client = daemon.client();
    let before: Value = client.get("/v1/instances/web").unwrap();
    assert_eq!(before["state"], "running");
    let waiting = std::thread::spawn(move || client.get("/v1/instances/web?wait=exited"));
    app.kill().unwrap();
    app.wait().unwrap();
    let after: Value = waiting.join().unwrap().unwrap();
    assert_eq!((&after["state"], &after["exit"]), (&json!("exited"), &Value::Null));
}
