//! `events`: what has happened to deployed apps, a line each.

use super::node;
use crate::cli;
use libsnap::error::Result;
use libsnap::store::validate;
use nodekit::args::{Dirs, Format};
use nodekit::out;
use serde_json::Value;
use usage::period::second;

/// So long an answer waits for the next one.
const WAIT: u64 = 30;

pub fn events(dirs: &Dirs, args: &cli::Events) -> Result<u8> {
    let client = node::client(dirs, &args.edgepoint.node)?;
    let mut of = String::new();
    if let Some(app) = &args.app {
        validate(app)?;
        of = format!("&app={app}");
    }
    let first: Value = client.get(&format!("/v1/events?limit={}{of}", args.lines))?;
    let mut last = tell(&first, args.edgepoint.output.format)?;
    if args.follow && args.lines == 0 {
        // None is wanted of those that there are. Where there are none, all that come are.
        let newest: Value = client.get(&format!("/v1/events?limit=1{of}"))?;
        last = newest["last"].as_u64().unwrap_or_default();
    }
    if !args.follow {
        return Ok(0);
    }
    loop {
        let path = format!("/v1/events?after={last}&wait={WAIT}{of}");
        let more: Value = node::patiently(|| client.get(&path))?;
        last = tell(&more, args.edgepoint.output.format)?.max(last);
    }
}

/// Answers the number of the last.
fn tell(answer: &Value, format: Format) -> Result<u64> {
    for event in answer["events"].as_array().into_iter().flatten() {
        match format {
            Format::Json => out::print(&format!("{event}\n"))?,
            Format::Text => out::show(Format::Text, event, line)?,
        }
    }
    Ok(answer["last"].as_u64().unwrap_or_default())
}

/// `2026-11-29T09:30:00Z  web  asleep, from falling-asleep`
fn line(event: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = &event["told"];
    let of = event["app"].as_str().or(event["provider"].as_str()).unwrap_or("-");
    let what = match event["kind"].as_str().unwrap_or_default() {
        "state" => format!("{}, from {}", text(&told["to"]), text(&told["from"])),
        "up" => {
            let took = out::millis(told["total_micros"].as_u64().unwrap_or_default());
            format!("{} in {took}, by {}", text(&told["kind"]), text(&told["cause"]))
        }
        kind => kind.to_owned(),
    };
    let more: Vec<String> = [("version", &told["version"]), ("by", &told["by"])]
        .into_iter()
        .filter(|(_, value)| !value.is_null())
        .map(|(key, value)| format!(" {key} {}", value.as_str().map_or(value.to_string(), str::to_owned)))
        .collect();
    let why = ["why", "error"].iter().find_map(|key| told[*key].as_str());
    let why = why.map_or(String::new(), |why| format!(": {}", lines(why)));
    let when = second(event["unix_ms"].as_u64().unwrap_or_default());
    format!("{when}  {of:<20} {what}{}{why}\n", more.concat())
}

/// An error in one line.
fn lines(text: &str) -> String {
    let lines = text
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("; ")
}
