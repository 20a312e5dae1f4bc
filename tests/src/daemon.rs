//! A daemon as a process, in a temporary directory, and what holds for every
//! daemon: [`daemon_tests!`].

use libsnap::error::{Error, Kind};
use nodekit::client::Client;
use serde_json::Value;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(10);

/// A program that serves, and its arguments for that.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub path: &'static str,
    pub arguments: &'static [&'static str],
}

impl Program {
    fn name(self) -> &'static str {
        self.path.rsplit('/').next().unwrap_or(self.path)
    }

    fn command(self, dir: &Path) -> Command {
        let mut command = Command::new(self.path);
        command
            .args(self.arguments)
            .env("APPSHOT_RUN_DIR", dir.join("run"))
            .env("APPSHOT_DATA_DIR", dir.join("data"))
            .env_remove("NOTIFY_SOCKET")
            .stderr(Stdio::null());
        command
    }
}

/// A daemon that answers; it ends with this value.
#[derive(Debug)]
pub struct Daemon {
    program: Program,
    pub dir: tempfile::TempDir,
    child: Child,
}

impl Daemon {
    pub fn start(program: Program) -> Daemon {
        Daemon::start_in(program, tempfile::tempdir().unwrap())
    }

    pub fn start_in(program: Program, dir: tempfile::TempDir) -> Daemon {
        let child = program.command(dir.path()).spawn().unwrap();
        let daemon = Daemon { program, dir, child };
        daemon.until_it_answers();
        daemon
    }

    fn until_it_answers(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.client().answers() {
            assert!(Instant::now() < deadline, "the daemon does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn socket(&self) -> PathBuf {
        self.dir
            .path()
            .join("run")
            .join(format!("{}.sock", self.program.name()))
    }

    pub fn client(&self) -> Client {
        Client::new(self.socket())
    }

    fn terminate(&mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The class of a failure.
pub fn fails(answer: Result<Value, Error>) -> Kind {
    answer.unwrap_err().kind
}

/// The tests that every daemon passes: `daemon_tests!(Program {..}, body)`,
/// where the body is that of a POST about `nobody`.
#[macro_export]
macro_rules! daemon_tests {
    ($program:expr, $body:expr) => {
        #[test]
        fn it_answers_what_it_describes() {
            $crate::daemon::it_answers_what_it_describes($program, &$body);
        }

        #[test]
        fn a_second_daemon_is_refused_and_the_first_stops_cleanly() {
            $crate::daemon::a_second_daemon_is_refused_and_the_first_stops_cleanly($program);
        }

        #[test]
        fn a_killed_daemon_leaves_nothing_in_the_way() {
            $crate::daemon::a_killed_daemon_leaves_nothing_in_the_way($program);
        }

        #[test]
        fn the_service_manager_is_told() {
            $crate::daemon::the_service_manager_is_told($program);
        }
    };
}

pub fn it_answers_what_it_describes(program: Program, body: &Value) {
    let daemon = Daemon::start(program);
    let client = daemon.client();
    let api: Value = client.get("/v1/openapi.json").unwrap();
    for (path, methods) in api["paths"].as_object().unwrap() {
        let path = ["{name}", "{secret}", "{digest}"]
            .iter()
            .fold(path.clone(), |path, place| path.replace(place, "nobody"));
        for (method, told) in methods.as_object().unwrap() {
            // What is sent there is for a trial of its own.
            if told["requestBody"]["content"]["application/octet-stream"].is_object() {
                continue;
            }
            let own = &told["requestBody"]["content"]["application/json"]["example"];
            let body = if own.is_null() { body } else { own };
            let is_json = told["responses"]["200"]["content"]["application/json"].is_object();
            let answer: Result<Value, Error> = match method.as_str() {
                "get" if !is_json => client.text(&path).map(Value::from),
                "get" => client.get(&path),
                "post" => client.post(&path, body),
                "put" => client.put(&path, body),
                "delete" => client.delete(&path),
                other => panic!("{other} of {path} is not tried"),
            };
            match answer {
                // There is no such thing, or nothing to do with it.
                Err(error) => {
                    assert_ne!(error.kind, Kind::Usage, "{method} {path}: {error}");
                    assert!(error.what.contains("nobody"), "{method} {path}: {error}");
                }
                Ok(answer) if is_json => {
                    let schema = &told["responses"]["200"]["content"]["application/json"]["schema"];
                    fits(&api, &[schema], &answer, &format!("{method} {path}"));
                }
                Ok(_) => {}
            }
        }
    }
}

/// Whether an answer has what these schemas together describe, and nothing else.
pub fn fits(api: &Value, schemas: &[&Value], answer: &Value, at: &str) {
    let parts: Vec<&Value> = schemas.iter().flat_map(|schema| parts(api, schema, answer)).collect();
    let property = |key: &str| {
        parts
            .iter()
            .map(|part| &part["properties"][key])
            .find(|found| !found.is_null())
    };
    match answer {
        Value::Object(fields) if parts.iter().any(|part| part["properties"].is_object()) => {
            for (key, value) in fields {
                let found = property(key).unwrap_or_else(|| panic!("{at}: {key} is not described"));
                fits(api, &[found], value, &format!("{at}: {key}"));
            }
            for key in parts.iter().flat_map(|part| part["required"].as_array()).flatten() {
                assert!(answer.get(key.as_str().unwrap()).is_some(), "{at}: {key} is missing");
            }
        }
        Value::Array(items) => {
            let described: Vec<&Value> = parts.iter().map(|part| &part["items"]).collect();
            assert!(
                described.iter().any(|items| !items.is_null()),
                "{at}: no array is described"
            );
            items.iter().for_each(|item| fits(api, &described, item, at));
        }
        Value::Object(_) => {
            assert!(
                parts.iter().any(|part| part["type"] == "object"),
                "{at}: no object is described"
            );
        }
        _ => assert!(
            parts
                .iter()
                .any(|part| part.is_object() && !part["properties"].is_object()),
            "{at}: {answer} is not described"
        ),
    }
}

/// What a schema is made of, as far as it is about such a value.
fn parts<'a>(api: &'a Value, schema: &'a Value, value: &Value) -> Vec<&'a Value> {
    if let Some(name) = schema["$ref"].as_str() {
        let pointer = name.trim_start_matches('#');
        let found = api.pointer(pointer).unwrap_or_else(|| panic!("there is no {name}"));
        return parts(api, found, value);
    }
    let members = ["allOf", "oneOf"]
        .iter()
        .flat_map(|key| schema[key].as_array())
        .flatten();
    let all: Vec<&Value> = members.flat_map(|member| parts(api, member, value)).collect();
    let is_null = |part: &Value| part["type"] == "null";
    match all.is_empty() {
        true => vec![schema],
        false => all
            .into_iter()
            .filter(|part| is_null(part) == value.is_null())
            .collect(),
    }
}

pub fn a_second_daemon_is_refused_and_the_first_stops_cleanly(program: Program) {
    let mut daemon = Daemon::start(program);
    let second = program.command(daemon.dir.path()).status().unwrap();
    assert_eq!(second.code(), Some(i32::from(Kind::Conflict.exit_code())));
    assert!(daemon.client().answers(), "the first was not disturbed");
    assert_eq!(daemon.terminate(), Some(0));
    assert!(!daemon.socket().exists());
}

pub fn a_killed_daemon_leaves_nothing_in_the_way(program: Program) {
    let mut daemon = Daemon::start(program);
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert!(daemon.socket().exists());
    daemon.child = program.command(daemon.dir.path()).spawn().unwrap();
    daemon.until_it_answers();
}

/// `Type=notify` of its unit: ready once it answers, stopping when told to.
pub fn the_service_manager_is_told(program: Program) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut command = program.command(dir.path());
    let child = command.env("NOTIFY_SOCKET", &path).spawn().unwrap();
    let mut daemon = Daemon { program, dir, child };
    assert_eq!(told(&manager), "READY=1");
    assert!(daemon.client().answers(), "ready means that it answers");
    assert_eq!(daemon.terminate(), Some(0));
    assert_eq!(told(&manager), "STOPPING=1");
}

fn told(manager: &UnixDatagram) -> String {
    let mut buffer = [0; 64];
    let length = manager.recv(&mut buffer).unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}
