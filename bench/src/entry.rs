//! What clients of a node get once its app is awake: by handoff, beside the same app
//! without us; and through the HTTP entry, beside nginx and haproxy as reverse proxies in
//! front of the same instance. The clients are wrk's.

use crate::machine::Machine;
use crate::node::{Node, until};
use crate::place::Place;
use crate::stats::{Summary, ratio};
use crate::workload::{App, Nginx, Workload, missing_program};
use crate::{command, net};
use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use std::fmt::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Connections of clients, all of them busy all the time.
const CONNECTIONS: [usize; 3] = [1, 32, 128];
const SECONDS: usize = 2;
/// A second at first, so that connections to the app are there.
const WARM_UP: usize = 1;

#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    programs: Vec<String>,
    runs: usize,
    rows: Vec<Row>,
}

/// One side, with so many connections.
#[derive(Debug, Serialize)]
struct Row {
    side: &'static str,
    connections: usize,
    /// Requests a second, in each round.
    rates: Vec<Option<f64>>,
    /// Milliseconds within which 99 of 100 answers came.
    p99: Vec<Option<f64>>,
    failures: Vec<String>,
}

/// What is asked at which port.
struct Side {
    name: &'static str,
    port: u16,
}

/// A program that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let tree = i32::try_from(self.0.id()).map(crate::proc::tree).unwrap_or_default();
        crate::proc::kill_tree(&tree);
        let _ = self.0.wait();
    }
}

fn start(mut command: Command) -> Result<Running> {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn();
    Ok(Running(child.with_context(|| format!("cannot start {command:?}"))?))
}

/// Measures all sides in turn, `runs` times.
pub fn measure(place: &Place, runs: usize) -> Result<Report> {
    for (program, package) in [("wrk", "wrk"), ("nginx", "nginx-light"), ("haproxy", "haproxy")] {
        if let Some(missing) = missing_program(program, package) {
            bail!("needs {missing}");
        }
    }
    let bare = Nginx.prepare(place)?;
    let _bare = start(bare.command())?;
    until("the bare app", || Ok(bare.answers().is_ok()))?;

    let entry = net::free_port()?;
    let http = format!("127.0.0.1:{entry}");
    // Nobody else takes it.
    let taken = TcpListener::bind(&http)?;
    let app = Nginx.prepare(place)?;
    let port = port(&*app)?;
    drop(taken);
    let node = Node::new(place.disk(), &[("edgepointd", &["--http", &http])])?;
    node.deploy(&*app, "[[route]]\nhost = \"*\"\n")?;
    // Whoever answers from now on was frozen and came back.
    node.reach("asleep")?;
    app.answers()?;

    let nginx = net::free_port()?;
    let _nginx = start(reverse_nginx(place.disk(), nginx, port)?)?;
    until("nginx as a proxy", || Ok(net::http_get(nginx, "/").is_ok()))?;
    let haproxy = net::free_port()?;
    let _haproxy = start(reverse_haproxy(place.disk(), haproxy, port)?)?;
    until("haproxy", || Ok(net::http_get(haproxy, "/").is_ok()))?;

    let side = |name, port| Side { name, port };
    let sides = [
        side("bare app", self::port(&*bare)?),
        side("handoff", port),
        side("HTTP entry", entry),
        side("nginx", nginx),
        side("haproxy", haproxy),
    ];
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        rows.extend(turns(&sides, connections, runs, place.disk()));
    }
    node.end()?;
    Ok(Report {
        machine: Machine::read(),
        programs: vec![
            command::version("wrk".as_ref(), "-v"),
            command::version("nginx".as_ref(), "-v"),
            command::version("haproxy".as_ref(), "-v"),
        ],
        runs,
        rows,
    })
}

fn port(app: &dyn App) -> Result<u16> {
    app.port().context("it has no port")
}

fn turns(sides: &[Side], connections: usize, runs: usize, scratch: &Path) -> Vec<Row> {
    let row = |side: &Side| Row {
        side: side.name,
        connections,
        rates: Vec::new(),
        p99: Vec::new(),
        failures: Vec::new(),
    };
    let mut rows: Vec<Row> = sides.iter().map(row).collect();
    for round in 0..runs {
        eprintln!("{connections} connections: round {} of {runs}", round + 1);
        for (side, row) in sides.iter().zip(&mut rows) {
            let asked = ask(side.port, connections, WARM_UP, scratch)
                .and_then(|_| ask(side.port, connections, SECONDS, scratch))
                .map_err(|error| row.failures.push(format!("{error:#}")))
                .ok();
            row.rates.push(asked.map(|(rate, _)| rate));
            row.p99.push(asked.map(|(_, p99)| p99));
        }
    }
    rows
}

/// Requests a second, and milliseconds within which 99 of 100 answers came.
fn ask(port: u16, connections: usize, seconds: usize, scratch: &Path) -> Result<(f64, f64)> {
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", "--latency", "-c", &connections.to_string()]);
    wrk.args(["-d", &seconds.to_string()])
        .arg(format!("http://127.0.0.1:{port}/"));
    let told = command::run(&mut wrk, scratch)?.stdout;
    parse(&told).with_context(|| format!("wrk tells: {told}"))
}

fn parse(told: &str) -> Result<(f64, f64)> {
    let after = |key: &str| {
        let line = told.lines().find_map(|line| line.trim().strip_prefix(key));
        line.map(str::trim).with_context(|| format!("no {key}"))
    };
    ensure!(
        !told.contains("Non-2xx") && !told.contains("Socket errors"),
        "not all answers were good"
    );
    Ok((after("Requests/sec:")?.parse()?, millis(after("99%")?)?))
}

fn millis(text: &str) -> Result<f64> {
    let (number, unit) = text.split_at(text.find(char::is_alphabetic).context("no unit")?);
    let number: f64 = number.parse()?;
    Ok(match unit {
        "us" => number / 1e3,
        "ms" => number,
        "s" => number * 1e3,
        _ => bail!("{unit} is no unit of time"),
    })
}

fn reverse_nginx(dir: &Path, port: u16, to: u16) -> Result<Command> {
    let config = dir.join("proxy-nginx.conf");
    let here = dir.display();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("{kind}_temp_path {here}/proxy-temp;\n"))
        .collect();
    std::fs::write(
        &config,
        format!(
            "daemon off; user root; worker_processes 2; error_log /dev/null; pid {here}/proxy-pid;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 100000000; {temporary}\
             upstream app {{ server 127.0.0.1:{to}; keepalive 256; keepalive_requests 100000000; }}\n\
             server {{ listen 127.0.0.1:{port};\n\
             location / {{ proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n"
        ),
    )?;
    let mut command = Command::new("nginx");
    command.args(["-e", "/dev/null", "-c"]).arg(config);
    Ok(command)
}

fn reverse_haproxy(dir: &Path, port: u16, to: u16) -> Result<Command> {
    let config = dir.join("haproxy.cfg");
    std::fs::write(
        &config,
        format!(
            "global\n  nbthread 2\n  maxconn 1000\n\
             defaults\n  mode http\n  http-reuse always\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n\
             frontend in\n  bind 127.0.0.1:{port}\n  default_backend app\n\
             backend app\n  server app 127.0.0.1:{to}\n"
        ),
    )?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(config);
    Ok(command)
}

impl Report {
    pub fn markdown(&self) -> String {
        let m = &self.machine;
        let mut text = format!(
            "{} x {}, {:.0} GiB, Linux {}; {}. {} rounds of {SECONDS} s, all sides in turn; medians. The app is \
             nginx with a short answer; ratios are medians of pairs: handoff to the bare app, the others to nginx.\n\n\
             | connections | side | requests/s | ratio | p99 (ms) | failed |\n|---|---|---|---|---|---|\n",
            m.cpus,
            m.cpu,
            m.memory_gib,
            m.kernel,
            self.programs.join(", "),
            self.runs
        );
        for row in &self.rows {
            self.line(&mut text, row);
        }
        for row in &self.rows {
            for why in &row.failures {
                let _ = writeln!(text, "\n- {}, {} connections: {why}", row.side, row.connections);
            }
        }
        text
    }

    fn line(&self, text: &mut String, row: &Row) {
        let beside = if row.side == "handoff" { "bare app" } else { "nginx" };
        let same = |other: &&Row| other.connections == row.connections && other.side == beside;
        let beside = self.rows.iter().find(same);
        // More is better: the other way round than with times.
        let ratio = beside.and_then(|beside| ratio(&beside.rates, &row.rates));
        let told = |values: &[Option<f64>], digits| {
            let values: Vec<f64> = values.iter().flatten().copied().collect();
            Summary::of(&values).map_or_else(|| "-".to_owned(), |s| format!("{:.digits$}", s.median))
        };
        let ratio = match ratio.filter(|_| row.side != "bare app") {
            Some(ratio) => format!("{ratio:.3}"),
            None => "-".to_owned(),
        };
        let failed = row.rates.iter().filter(|rate| rate.is_none()).count();
        let _ = writeln!(
            text,
            "| {} | {} | {} | {ratio} | {} | {failed} |",
            row.connections,
            row.side,
            told(&row.rates, 0),
            told(&row.p99, 2),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_tells_is_understood() {
        let told = "  Latency Distribution\n     50%  310.00us\n     99%    1.25ms\n\
                    Requests/sec:  95338.39\nTransfer/sec:     14.91MB\n";
        assert_eq!(parse(told).unwrap(), (95338.39, 1.25));
        let bad = format!("{told}  Non-2xx or 3xx responses: 7\n");
        assert!(parse(&bad).is_err());
        assert_eq!(millis("310.00us").unwrap(), 0.31);
        assert!(millis("3").is_err());
    }
}
