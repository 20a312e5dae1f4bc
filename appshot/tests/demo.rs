//! The demo as a person runs it. Without a server or the rights for it, it must
//! say so.

use std::path::Path;
use std::process::{Command, Output};

fn demo(temporary: &Path, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_appshot"))
        .arg("demo")
        .args(words)
        .env("TMPDIR", temporary)
        .output()
        .unwrap()
}

fn required() -> bool {
    std::env::var("APPSHOT_REQUIRE_ALL").is_ok_and(|value| !value.is_empty() && value != "0")
}

fn judge(output: &Output, temporary: &Path) {
    let error = String::from_utf8_lossy(&output.stderr);
    let table = String::from_utf8_lossy(&output.stdout);
    match output.status.code() {
        Some(0) => assert!(table.contains("the same server"), "{table}"),
        Some(6) if !required() => eprintln!("demo: skipped: {error}"),
        other => panic!("{other:?}: {table}{error}"),
    }
    let left: Vec<_> = temporary.read_dir().unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn every_server_comes_back() {
    for server in ["nginx", "redis-server", "python3"] {
        let temporary = tempfile::tempdir().unwrap();
        let output = demo(temporary.path(), &["--with", server]);
        judge(&output, temporary.path());
    }
}

#[test]
fn ctrl_c_leaves_nothing() {
    let temporary = tempfile::tempdir().unwrap();
    let output = Command::new("timeout")
        .args(["--signal", "INT", "0.05", env!("CARGO_BIN_EXE_appshot"), "demo"])
        .env("TMPDIR", temporary.path())
        .output()
        .unwrap();
    let left: Vec<_> = temporary.path().read_dir().unwrap().collect();
    assert!(left.is_empty(), "{left:?}: {}", String::from_utf8_lossy(&output.stderr));
}
