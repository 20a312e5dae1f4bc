//! The command line as a process, as far as it needs no engine.

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn appshot(&self, words: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_appshot"))
            .args(words)
            .env("APPSHOT_RUN_DIR", self.path().join("run"))
            .env("APPSHOT_DATA_DIR", self.path().join("data"))
            .output()
            .unwrap()
    }

    fn json(&self, words: &[&str]) -> Value {
        serde_json::from_slice(&self.appshot(words).stdout).unwrap()
    }

    fn put_appshot(&self, name: &str) {
        let dir = self.path().join("data/appshots");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(format!("{name}.appshot")), "sealed").unwrap();
    }
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn a_fresh_machine_has_no_apps() {
    let place = Place::new();
    assert_eq!(place.json(&["ps", "-o", "json"]), Value::Array(Vec::new()));
    let text = place.appshot(&["ps"]);
    assert_eq!(text.status.code(), Some(0));
    assert!(text.stdout.starts_with(b"NAME"));
}

#[test]
fn exit_codes_tell_the_class() {
    let place = Place::new();
    let code = |words: &[&str]| place.appshot(words).status.code();
    assert_eq!(code(&["frobnicate"]), Some(2));
    assert_eq!(code(&["run", "--name", "Bad Name", "--", "true"]), Some(2));
    for words in [
        ["snapshot", "nobody"],
        ["restore", "nobody"],
        ["restore", "./nobody.appshot"],
        ["inspect", "nobody"],
        ["check", "nobody"],
        ["check", "4194305"],
        ["kill", "nobody"],
        ["rm", "nobody"],
        ["logs", "nobody"],
    ] {
        let output = place.appshot(&words);
        assert_eq!(output.status.code(), Some(3), "{words:?}: {}", stderr(&output));
        assert!(output.stdout.is_empty(), "{words:?}");
        assert!(stderr(&output).starts_with("appshot: "), "{words:?}");
    }
}

#[test]
fn a_near_name_is_suggested() {
    let place = Place::new();
    place.put_appshot("redis");
    let output = place.appshot(&["kill", "redsi"]);
    assert!(
        stderr(&output).contains("did you mean \"redis\"?"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_app_asleep_is_not_lost_by_mistake() {
    let place = Place::new();
    place.put_appshot("web");
    assert_eq!(place.json(&["ps", "-o", "json"])[0]["state"], "asleep");
    assert_eq!(place.appshot(&["rm", "web"]).status.code(), Some(5));
    assert_eq!(place.appshot(&["rm", "web", "--appshot"]).status.code(), Some(0));
    assert_eq!(place.json(&["ps", "-o", "json"]), Value::Array(Vec::new()));
}

#[test]
fn logs_are_shown() {
    let place = Place::new();
    place.put_appshot("web");
    let logs = place.path().join("data/logs");
    std::fs::create_dir_all(&logs).unwrap();
    std::fs::write(logs.join("web.log"), "hello\n").unwrap();
    assert_eq!(place.appshot(&["logs", "web"]).stdout, b"hello\n");
}

#[test]
fn packagers_get_manuals_and_completions() {
    let place = Place::new();
    let dir = place.path().join("share");
    let dir = dir.to_str().unwrap();
    assert_eq!(place.appshot(&["--generate", dir]).status.code(), Some(0));
    assert!(Path::new(dir).join("man/man1/appshot.1").exists());
    assert!(Path::new(dir).join("completions/appshot.bash").exists());
    let bash = place.appshot(&["completions", "bash"]);
    assert!(bash.stdout.starts_with(b"_appshot()"));
}

/// The hidden lives answer on stdout and never reach the argument parser.
#[test]
fn a_worker_without_a_request_fails_in_form() {
    let place = Place::new();
    let output = place.appshot(&["--worker"]);
    assert_eq!(output.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["failed"]["kind"], "failed");
}
