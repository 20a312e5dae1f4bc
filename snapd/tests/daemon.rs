//! The daemon as a process: what it answers.

use appshot_tests::daemon::{Daemon, Program, fails};
use libsnap::error::Kind;
use serde_json::{Value, json};

const PROGRAM: Program = Program {
    path: env!("CARGO_BIN_EXE_snapd"),
    arguments: &[],
};

appshot_tests::daemon_tests!(PROGRAM, json!({ "target": "nobody" }));

#[test]
fn nonsense_is_told_as_such() {
    let daemon = Daemon::start(PROGRAM);
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
fn appshots_are_listed_and_removed() {
    let daemon = Daemon::start(PROGRAM);
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
