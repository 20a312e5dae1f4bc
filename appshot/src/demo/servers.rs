//! The servers that the demo can use. Each counts its requests, in memory only.

use clap::ValueEnum;
use libsnap::error::{Error, Kind, OrFail, Result};
use nodekit::local;
use std::path::{Path, PathBuf};

/// A server and how to speak with it.
pub trait Server {
    fn about(&self) -> String;
    /// How many processes it has when it is up.
    fn processes(&self) -> usize;
    fn port(&self) -> u16;
    fn command(&self) -> Vec<String>;
    /// Asks once; answers how often it has been asked.
    fn ask(&self) -> Result<u64>;
    /// What must be the same afterwards.
    fn state(&self) -> Result<String>;
    /// What [`Server::fill`] puts into it, for people.
    fn fills(&self) -> String;
    /// What [`Server::state`] looks at, for people.
    fn keeps(&self) -> &'static str;
    fn fill(&self) -> Result<()> {
        Ok(())
    }
    /// Removes the files that it needed only to start.
    fn forget_configuration(&self) -> Result<()> {
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// A master and two workers
    Nginx,
    /// One process, several threads, 1000 keys
    RedisServer,
    /// Python's own HTTP server
    Python3,
}

/// The one with the most processes comes first.
const ALL: [Name; 3] = [Name::Nginx, Name::RedisServer, Name::Python3];

impl Name {
    fn program(self) -> &'static str {
        match self {
            Name::Nginx => "nginx",
            Name::RedisServer => "redis-server",
            Name::Python3 => "python3",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Name::Nginx => "nginx-light",
            other => other.program(),
        }
    }
}

/// The server that was asked for, or the first that is installed.
pub fn choose(wanted: Option<Name>, dir: &Path) -> Result<Box<dyn Server>> {
    let candidates = wanted.map_or(ALL.to_vec(), |name| vec![name]);
    let found = candidates.iter().find_map(|name| Some((*name, find(name.program())?)));
    let (name, program) = found.ok_or_else(|| missing(&candidates))?;
    let port = local::free_port()?;
    Ok(match name {
        Name::Nginx => Box::new(Nginx::prepare(program, port, dir)?),
        Name::RedisServer => Box::new(Redis { program, port }),
        Name::Python3 => Box::new(Python { program, port }),
    })
}

fn missing(candidates: &[Name]) -> Error {
    let programs: Vec<&str> = candidates.iter().map(|name| name.program()).collect();
    Error::new(Kind::Unavailable, "cannot run the demo")
        .because(format!("this machine has no {}", programs.join(", no ")))
        .fix(format!("apt-get install {}", candidates[0].package()))
        .state("nothing was started")
}

/// In PATH, or where Debian puts servers: the PATH of users leaves that out.
pub fn find(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/bin".into()]);
    let mut files = dirs.map(|dir| dir.join(program));
    files.find(|file| file.is_file())?.into_os_string().into_string().ok()
}

fn number(text: &str) -> Result<u64> {
    text.parse().or_fail(|| format!("{text:?} is not a count"))
}

/// nginx counts connections in memory that its workers share.
struct Nginx {
    program: String,
    port: u16,
    configuration: PathBuf,
}

impl Nginx {
    fn prepare(program: String, port: u16, dir: &Path) -> Result<Nginx> {
        let configuration = dir.join("nginx.conf");
        let text = nginx_configuration(dir, port, &format!("{:08x}", std::process::id()));
        std::fs::write(&configuration, text).or_fail(|| "cannot write nginx's configuration")?;
        Ok(Nginx {
            program,
            port,
            configuration,
        })
    }

    fn get(&self) -> Result<(u64, String)> {
        let body = local::http_get(self.port, "/")?;
        let wrong = || Error::failed(format!("nginx answers {body:?}"));
        let (count, word) = body.split_once(' ').ok_or_else(wrong)?;
        Ok((number(count)?, word.to_owned()))
    }
}

fn nginx_configuration(dir: &Path, port: u16, word: &str) -> String {
    let dir = dir.display();
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let temporary: String = kinds
        .iter()
        .map(|kind| format!("{kind}_temp_path {dir}/temp;\n"))
        .collect();
    format!(
        "daemon off; worker_processes 2; error_log stderr; pid {dir}/nginx.pid;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; {temporary}\
         server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"$connection {word}\"; }} }} }}\n"
    )
}

impl Server for Nginx {
    fn about(&self) -> String {
        "nginx: a master and two workers".to_owned()
    }

    fn processes(&self) -> usize {
        3
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn command(&self) -> Vec<String> {
        let file = self.configuration.to_string_lossy().into_owned();
        let words = [&self.program, "-e", "stderr", "-c", &file];
        words.map(str::to_owned).to_vec()
    }

    fn ask(&self) -> Result<u64> {
        Ok(self.get()?.0)
    }

    fn state(&self) -> Result<String> {
        Ok(self.get()?.1)
    }

    fn fills(&self) -> String {
        "GET / tells a word and counts".to_owned()
    }

    fn keeps(&self) -> &'static str {
        "the word (its file is gone)"
    }

    fn forget_configuration(&self) -> Result<()> {
        std::fs::remove_file(&self.configuration).or_fail(|| "cannot remove nginx's configuration")
    }
}

struct Redis {
    program: String,
    port: u16,
}

const KEYS: usize = 1000;

fn keys() -> impl Iterator<Item = String> {
    (0..KEYS).map(|number| format!("key-{number}"))
}

impl Server for Redis {
    fn about(&self) -> String {
        "redis-server: one process, several threads, nothing on disk".to_owned()
    }

    fn processes(&self) -> usize {
        1
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn command(&self) -> Vec<String> {
        let port = self.port.to_string();
        let words = [&self.program, "--bind", "127.0.0.1", "--port", &port, "--save", ""];
        words.map(str::to_owned).to_vec()
    }

    fn ask(&self) -> Result<u64> {
        number(&local::redis(self.port, &["INCR", "count"])?)
    }

    fn state(&self) -> Result<String> {
        let keys: Vec<String> = keys().collect();
        let words: Vec<&str> = ["MGET"].into_iter().chain(keys.iter().map(String::as_str)).collect();
        local::redis(self.port, &words)
    }

    fn fills(&self) -> String {
        format!("{KEYS} keys set; INCR counts")
    }

    fn keeps(&self) -> &'static str {
        "every key"
    }

    fn fill(&self) -> Result<()> {
        let pairs: Vec<String> = keys()
            .flat_map(|key| [key.clone(), format!("value of {key}")])
            .collect();
        let words: Vec<&str> = ["MSET"].into_iter().chain(pairs.iter().map(String::as_str)).collect();
        local::redis(self.port, &words).map(drop)
    }
}

struct Python {
    program: String,
    port: u16,
}

/// The module `http.server`, with an answer that needs memory.
const PYTHON: &str = "
import http.server, itertools, secrets, sys
count, word = itertools.count(1), secrets.token_hex(16)
class Counter(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f'{next(count)} {word}'.encode())
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Counter).serve_forever()
";

impl Python {
    fn get(&self) -> Result<(u64, String)> {
        let body = local::http_get(self.port, "/")?;
        let wrong = || Error::failed(format!("python3 answers {body:?}"));
        let (count, word) = body.split_once(' ').ok_or_else(wrong)?;
        Ok((number(count)?, word.to_owned()))
    }
}

impl Server for Python {
    fn about(&self) -> String {
        "python3: the HTTP server of its library".to_owned()
    }

    fn processes(&self) -> usize {
        1
    }

    fn port(&self) -> u16 {
        self.port
    }

    fn command(&self) -> Vec<String> {
        let port = self.port.to_string();
        [&self.program, "-c", PYTHON, &port].map(str::to_owned).to_vec()
    }

    fn ask(&self) -> Result<u64> {
        Ok(self.get()?.0)
    }

    fn state(&self) -> Result<String> {
        Ok(self.get()?.1)
    }

    fn fills(&self) -> String {
        "GET / tells a random word and counts".to_owned()
    }

    fn keeps(&self) -> &'static str {
        "the word"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_server_is_told_with_its_package() {
        let error = missing(&ALL);
        assert_eq!(error.kind, Kind::Unavailable);
        assert!(error.to_string().contains("apt-get install nginx-light"), "{error}");
        assert!(find("no-such-program-here").is_none());
        assert!(find("sh").is_some());
    }
}
