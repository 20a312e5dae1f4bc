//! A counter behind the HTTP server of python, node, go and java: one shape,
//! four languages. The count lives in memory only.

use super::{App, Workload, detached, missing_program, nonce};
use crate::net;
use crate::place::Place;
use anyhow::{Result, ensure};
use std::path::PathBuf;
use std::process::Command;

const COUNTED: u64 = 7;
/// Debian's own, not one that a version manager puts in its place.
pub const PYTHON: &str = "/usr/bin/python3";

/// A server program in some language.
#[derive(Debug)]
pub struct Http {
    name: &'static str,
    /// The interpreter and its Debian package.
    program: &'static str,
    package: &'static str,
    /// What stands before the port and the nonce.
    arguments: Vec<PathBuf>,
    /// What runs, where it is not the interpreter.
    binary: Option<PathBuf>,
    missing: Option<String>,
}

impl Http {
    pub fn python(place: &Place) -> Self {
        let script = written(place, "server.py", include_str!("../programs/server.py"));
        Http::new("python", PYTHON, "python3", vec![script])
    }

    pub fn node(place: &Place) -> Self {
        let script = written(place, "server.js", include_str!("../programs/server.js"));
        Http::new("node", "node", "nodejs", vec![script])
    }

    pub fn go(place: &Place) -> Self {
        let source = written(place, "server.go", include_str!("../programs/server.go"));
        let binary = place.disk().join("go-server");
        let mut build = Command::new("go");
        build.args(["build", "-o"]).arg(&binary).arg(source);
        // The standard library takes many seconds, so it is kept, where the tests keep theirs.
        let cache = std::env::temp_dir().join("appshot-go-cache");
        build.env("GO111MODULE", "off").env("GOFLAGS", "").env("GOCACHE", cache);
        build.env("GOPATH", place.disk().join("go"));
        let compiled = crate::command::run(&mut build, place.disk());
        let mut go = Http::new("go", "go", "golang-go", Vec::new());
        let failed = |e| format!("go (apt-get install golang-go): {e:#}");
        go.missing = go.missing.or(compiled.err().map(failed));
        go.binary = Some(binary);
        go
    }

    pub fn java(place: &Place) -> Self {
        let source = written(place, "Server.java", include_str!("../programs/Server.java"));
        let mut javac = Command::new("javac");
        javac.arg("-d").arg(place.disk()).arg(source);
        let compiled = crate::command::run(&mut javac, place.disk());
        let arguments = vec![
            // No file in /tmp that other virtual machines tidy away.
            "-XX:-UsePerfData".into(),
            "-cp".into(),
            place.disk().into(),
            "Server".into(),
        ];
        let mut java = Http::new("java", "java", "openjdk-17-jdk-headless", arguments);
        let no_compiler = || "javac (apt-get install openjdk-17-jdk-headless)".to_owned();
        java.missing = java.missing.or(compiled.is_err().then(no_compiler));
        java
    }

    fn new(name: &'static str, program: &'static str, package: &'static str, arguments: Vec<PathBuf>) -> Self {
        let missing = missing_program(program, package);
        Http {
            name,
            program,
            package,
            arguments,
            binary: None,
            missing,
        }
    }
}

pub fn written(place: &Place, name: &str, text: &str) -> PathBuf {
    let path = place.disk().join(name);
    // A program that could not be written fails at start, and says so there.
    let _ = std::fs::write(&path, text);
    path
}

impl Workload for Http {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> String {
        let ask = if self.binary.is_some() { "version" } else { "--version" };
        let version = crate::command::version(self.program.as_ref(), ask);
        format!("HTTP server with a counter; {} {version}", self.package)
    }

    fn missing(&self) -> Option<String> {
        self.missing.clone()
    }

    fn prepare(&self, _place: &Place) -> Result<Box<dyn App>> {
        Ok(Box::new(Server {
            port: net::free_port()?,
            nonce: nonce(),
            program: self.binary.clone().unwrap_or_else(|| self.program.into()),
            arguments: self.arguments.clone(),
        }))
    }

    fn memory_bytes(&self) -> usize {
        256 << 20
    }
}

struct Server {
    port: u16,
    nonce: u64,
    program: PathBuf,
    arguments: Vec<PathBuf>,
}

impl Server {
    fn expect(&self, path: &str, count: u64) -> Result<()> {
        let body = net::http_get(self.port, path)?;
        let wanted = format!("{} {count}", self.nonce);
        ensure!(body == wanted, "{path} answers {body:.60}, not {wanted}");
        Ok(())
    }
}

impl App for Server {
    fn command(&self) -> Command {
        let mut command = detached(&self.program);
        command.args(&self.arguments);
        command.args([self.port.to_string(), self.nonce.to_string()]);
        command
    }

    fn answers(&self) -> Result<()> {
        let body = net::http_get(self.port, "/ping")?;
        ensure!(body.starts_with(&self.nonce.to_string()), "answers {body:.60}");
        Ok(())
    }

    fn fill(&self) -> Result<()> {
        (1..=COUNTED).try_for_each(|count| self.expect("/count", count))
    }

    fn verify(&self, _tree: &[i32]) -> Result<()> {
        self.expect("/ping", COUNTED)?;
        self.expect("/count", COUNTED + 1)
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }

    fn work(&self) -> Result<()> {
        net::http_get(self.port, "/work").map(drop)
    }
}
