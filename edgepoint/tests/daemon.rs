//! The daemon as a process: what it answers, and to what it says no.

use appshot_tests::daemon::{Daemon, Program, fails};
use libsnap::error::Kind;
use serde_json::{Value, json};

const PROGRAM: Program = Program {
    path: env!("CARGO_BIN_EXE_edgepointd"),
    arguments: &[],
};

/// It is deployed, and fails at once.
const NOBODY: &str = r#"
app = "nobody"
start.command = ["/no/such/program"]
listen = [{ unix = "/nowhere" }]
"#;

appshot_tests::daemon_tests!(PROGRAM, json!({ "manifest": NOBODY }));

#[test]
fn what_makes_no_sense_is_refused() {
    let daemon = Daemon::start(PROGRAM);
    let client = daemon.client();
    assert_eq!(client.get::<Value>("/v1/apps").unwrap(), json!([]));
    let deploy = |body: Value| fails(client.post("/v1/apps", &body));
    assert_eq!(deploy(json!({})), Kind::Usage);
    assert_eq!(deploy(json!({ "manifest": 7 })), Kind::Usage);
    assert_eq!(deploy(json!({ "manifest": "", "more": 1 })), Kind::Usage);
    assert_eq!(deploy(json!({ "manifest": "app = \"x\"" })), Kind::Usage);
    assert_eq!(deploy(json!({ "manifest": "#".repeat(2 << 20) })), Kind::Usage);
    // This node has no HTTP entry.
    let routed = format!("{NOBODY}route = [{{ host = \"x.example\", path = \"/\" }}]\n");
    assert_eq!(deploy(json!({ "manifest": routed })), Kind::Unavailable);
    assert_eq!(fails(client.get("/v1/apps/nobody")), Kind::NotFound);
    assert_eq!(fails(client.get("/v1/apps/nobody?wait=happy")), Kind::Usage);
    assert_eq!(fails(client.delete("/v1/apps/nobody")), Kind::NotFound);
    for verb in ["suspend", "resume"] {
        assert_eq!(
            fails(client.post(&format!("/v1/apps/nobody/{verb}"), &json!({}))),
            Kind::NotFound
        );
    }
    assert_eq!(client.get::<Value>("/v1/apps").unwrap(), json!([]));
}

/// What a scraper gets: an app that failed, by name.
#[test]
fn it_tells_its_metrics() {
    let daemon = Daemon::start(PROGRAM);
    let client = daemon.client();
    let _: Value = client.post("/v1/apps", &json!({ "manifest": NOBODY })).unwrap();
    let _: Value = client.get("/v1/apps/nobody?wait=failed&timeout=30").unwrap();
    let text = client.text("/metrics").unwrap();
    for line in [
        "appshot_app_state{app=\"nobody\",provider=\"local\",state=\"failed\"} 1",
        "appshot_app_state{app=\"nobody\",provider=\"local\",state=\"starting\"} 0",
        "appshot_failures_total{app=\"nobody\",provider=\"local\"} 1",
        "# EOF",
    ] {
        assert!(text.lines().any(|has| has == line), "{line} is not in\n{text}");
    }
}
