//! The daemon as a process: what it answers.

use appshot_tests::daemon::{Daemon, Program, fails};
use libsnap::error::Kind;
use serde_json::{Value, json};

const PROGRAM: Program = Program {
    path: env!("CARGO_BIN_EXE_perfd"),
    arguments: &["--serve"],
};

appshot_tests::daemon_tests!(
    PROGRAM,
    json!({ "event": "nobodynobody", "count": 0, "reason": "a trial" })
);

#[test]
fn it_only_tells() {
    let daemon = Daemon::start(PROGRAM);
    let client = daemon.client();
    assert_eq!(client.get::<Value>("/v1/usage").unwrap(), json!([]));
    assert_eq!(fails(client.delete("/v1/usage")), Kind::Usage);
    assert_eq!(fails(client.get("/v1/bill")), Kind::NotFound);
}
