//! `top`: what deployed apps take, as a table that is drawn again and again on a terminal,
//! and once where there is none.

use super::node;
use crate::cli;
use libsnap::error::Result;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nodekit::args::{Dirs, Format};
use nodekit::client::Client;
use nodekit::{out, signals};
use rustix::termios::tcgetwinsize;
use serde_json::Value;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::time::Duration;

/// Where it is looked at once only, shares are told of this long.
const SHARE: Duration = Duration::from_millis(500);
/// Another screen, without a cursor, and back.
const BEGIN: &str = "\x1b[?1049h\x1b[?25l";
const END: &str = "\x1b[?25h\x1b[?1049l";
/// To the corner; what is right of it goes, what is below.
const HOME: &str = "\x1b[H";
const CLEAR_RIGHT: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

pub fn top(dirs: &Dirs, args: &cli::Top) -> Result<u8> {
    let client = node::client(dirs, &args.edgepoint.node)?;
    let look = || client.get::<Value>("/v1/top");
    if args.edgepoint.output.format == Format::Json {
        out::show(Format::Json, &look()?, |_| String::new())?;
        return Ok(0);
    }
    if !std::io::stdout().is_terminal() {
        let before = look()?;
        std::thread::sleep(SHARE);
        let now = look()?;
        out::show(Format::Text, &now, |now| page(&before, now))?;
        return Ok(0);
    }
    // What cannot be reached is told before the screen is another.
    let first = look()?;
    out::print(BEGIN)?;
    let done = live(&client, first, args.interval);
    out::print(END)?;
    done.map(|()| 0)
}

/// Until Ctrl-C.
fn live(client: &Client, mut before: Value, interval: Duration) -> Result<()> {
    let signals = signals::block()?;
    let mut pause = SHARE.min(interval);
    loop {
        let mut fds = [PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX)).is_ok_and(|ready| ready > 0) {
            return Ok(());
        }
        pause = interval;
        let (text, now) = match client.get::<Value>("/v1/top") {
            Ok(now) => (page(&before, &now), Some(now)),
            // It may be started again.
            Err(error) => (format!("{error}\n"), None),
        };
        let size = tcgetwinsize(std::io::stdout()).ok();
        let (rows, columns) = size.map_or((24, 80), |size| (size.ws_row.into(), size.ws_col.into()));
        out::print(&screen(&text, rows, columns))?;
        before = now.unwrap_or(before);
    }
}

/// As much of it as there is room for.
fn screen(text: &str, rows: usize, columns: usize) -> String {
    let line = |line: &str| {
        line.chars()
            .filter(|c| !c.is_control())
            .take(columns)
            .collect::<String>()
    };
    let lines: Vec<String> = text.lines().take(rows.saturating_sub(1)).map(line).collect();
    let lines: String = lines.iter().map(|line| format!("{line}{CLEAR_RIGHT}\r\n")).collect();
    format!("{HOME}{lines}{CLEAR_BELOW}")
}

fn page(before: &Value, now: &Value) -> String {
    let apps: Vec<&Value> = now["apps"].as_array().into_iter().flatten().collect();
    let up = apps.iter().filter(|app| app["instances"].as_u64() > Some(0)).count();
    let mut head = format!("{} deployed, {up} up", out::count(apps.len(), "app", "apps"));
    if let (Some(used), Some(limit)) = (
        now["memory"]["used_bytes"].as_u64(),
        now["memory"]["limit_bytes"].as_u64(),
    ) {
        head += &format!("; memory {} of {}", out::bytes(used), out::bytes(limit));
    }
    let mut rows: Vec<(u64, Vec<String>)> = apps.iter().map(|app| row(app, before, now)).collect();
    // Who takes most comes first.
    rows.sort_by(|(a, row), (b, other)| b.cmp(a).then_with(|| row.cmp(other)));
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(_, row)| row).collect();
    let titles = [
        "APP",
        "PROVIDER",
        "STATE",
        "FOR",
        "INSTANCES",
        "CPU",
        "MEMORY",
        "REQUESTS",
        "WAKES",
        "LAST WAKE",
    ];
    format!("{head}\n\n{}", out::table(&titles, &rows))
}

/// With what it is sorted by: thousandths of a processor.
fn row(app: &Value, before: &Value, now: &Value) -> (u64, Vec<String>) {
    let unknown = || "-".to_owned();
    let text = |key: &str| app[key].as_str().unwrap_or("-").to_owned();
    let time = now["unix_ms"].as_u64().unwrap_or_default();
    let former = before["apps"].as_array().into_iter().flatten();
    let former = former.into_iter().find(|one| one["app"] == app["app"]);
    let span_ms = time.saturating_sub(before["unix_ms"].as_u64().unwrap_or(time));
    // Those of no instance are none.
    let cpu_ns = app["cpu_ns"].as_u64().filter(|_| app["instances"].as_u64() > Some(0));
    let thousandths = cpu_ns.zip(former.and_then(|one| one["cpu_ns"].as_u64()));
    // It counts anew with each instance.
    let thousandths = thousandths.map(|(now, before)| now.saturating_sub(before) / 1000 / span_ms.max(1));
    let share = thousandths.map(|parts| format!("{}.{} %", parts / 10, parts % 10));
    let columns = vec![
        text("app"),
        text("provider"),
        text("state"),
        out::age(app["since_unix_ms"].as_u64().unwrap_or_default(), time),
        app["instances"].to_string(),
        share.unwrap_or_else(unknown),
        app["memory_bytes"]
            .as_u64()
            .filter(|bytes| *bytes > 0)
            .map_or_else(unknown, out::bytes),
        app["requests"].to_string(),
        app["counts"]["wakes"].to_string(),
        app["last_micros"].as_u64().map_or_else(unknown, out::millis),
    ];
    (thousandths.unwrap_or_default(), columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_page_has_the_busiest_first() {
        let look = |unix_ms: u64, busy: u64| {
            let app = |name: &str, cpu: Option<u64>| {
                json!({"app": name, "provider": "local", "state": "running", "since_unix_ms": 0, "instances": 1,
                    "cpu_ns": cpu, "memory_bytes": 2 << 20, "requests": 3, "counts": {"wakes": 4}, "last_micros": 1500})
            };
            json!({"unix_ms": unix_ms, "memory": {"limit_bytes": 1 << 30, "used_bytes": 4 << 20},
                "apps": [app("idle", Some(5)), app("busy", Some(busy)), app("gone", None)]})
        };
        let text = page(&look(1000, 0), &look(3000, 1_500_000_000));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "3 apps deployed, 3 up; memory 4.0 MiB of 1.0 GiB");
        assert!(lines[3].starts_with("busy") && lines[3].contains("75.0 %"), "{text}");
        assert!(lines[3].ends_with("3         4      1.5 ms"), "{text}");
        assert!(lines[4].starts_with("gone") && lines[5].starts_with("idle"), "{text}");
        let drawn = screen(&text, 4, 20);
        assert_eq!(drawn.matches(CLEAR_RIGHT).count(), 3);
        assert!(drawn.lines().all(|line| line.len() < 20 + 12), "{drawn}");
    }
}
