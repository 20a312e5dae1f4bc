//! nginx: a master and two workers. Its answer stands in its configuration,
//! which is removed once read: a restored server can only have it in memory.

use super::{App, Workload, detached, missing_program, nonce};
use crate::net;
use crate::place::Place;
use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const PROCESSES: usize = 3;

#[derive(Debug)]
pub struct Nginx;

impl Workload for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn about(&self) -> String {
        let version = crate::command::version("nginx".as_ref(), "-v");
        format!("master and 2 workers; {version}")
    }

    fn missing(&self) -> Option<String> {
        missing_program("nginx", "nginx-light")
    }

    fn prepare(&self, place: &Place) -> Result<Box<dyn App>> {
        let (port, nonce) = (net::free_port()?, nonce());
        let dir = place.disk().join(format!("nginx-{port}"));
        std::fs::create_dir_all(&dir)?;
        let config = dir.join("nginx.conf");
        std::fs::write(&config, configuration(&dir, port, nonce))?;
        Ok(Box::new(Server { port, nonce, config }))
    }
}

fn configuration(dir: &Path, port: u16, nonce: u64) -> String {
    let dir = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {dir}/temp;\n"))
        .collect();
    format!(
        "daemon off; user root; worker_processes 2; error_log /dev/null; pid {dir}/pid;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; keepalive_requests 100000000; {temporary}\
         server {{ listen 127.0.0.1:{port}; location / {{ return 200 \"{nonce}\"; }} }} }}\n"
    )
}

struct Server {
    port: u16,
    nonce: u64,
    config: PathBuf,
}

impl App for Server {
    fn command(&self) -> Command {
        let mut command = detached("nginx");
        command.args(["-e", "/dev/null", "-c"]).arg(&self.config);
        command
    }

    fn answers(&self) -> Result<()> {
        let body = net::http_get(self.port, "/ping")?;
        ensure!(body == self.nonce.to_string(), "answers {body:.40}");
        Ok(())
    }

    fn fill(&self) -> Result<()> {
        Ok(std::fs::remove_file(&self.config)?)
    }

    fn verify(&self, tree: &[i32]) -> Result<()> {
        let nginx = |pid: &&i32| {
            let comm = std::fs::read_to_string(format!("/proc/{pid}/comm"));
            comm.is_ok_and(|comm| comm.trim() == "nginx")
        };
        let processes = tree.iter().filter(nginx).count();
        ensure!(processes == PROCESSES, "{processes} processes");
        (0..20).try_for_each(|_| self.answers())
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }
}
