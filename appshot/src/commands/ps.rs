//! `ps`: the apps and what they do.

use crate::cli;
use libsnap::error::Result;
use libsnap::store::{State, Store, View, now_unix_ms};
use nodekit::out;

pub fn ps(store: &Store, args: &cli::Ps) -> Result<u8> {
    let now = now_unix_ms()?;
    out::show(args.output.format, &store.views()?, |views| text(views, now))?;
    Ok(0)
}

fn text(views: &[View], now: u64) -> String {
    let rows: Vec<Vec<String>> = views.iter().map(|view| row(view, now)).collect();
    out::table(&["NAME", "STATE", "PID", "STARTED", "COMMAND"], &rows)
}

fn row(view: &View, now: u64) -> Vec<String> {
    let started = view.started_unix_ms.map(|then| out::age(then, now) + " ago");
    vec![
        view.name.clone(),
        state(view),
        live_pid(view),
        started.unwrap_or_default(),
        what(view),
    ]
}

fn state(view: &View) -> String {
    match (view.state, view.exit) {
        (State::Exited, Some(code)) => format!("exited ({code})"),
        (State::Exited, None) => "exited (?)".to_owned(),
        (state, _) => state.to_string(),
    }
}

fn live_pid(view: &View) -> String {
    match (view.alive(), view.root) {
        (true, Some(root)) => root.to_string(),
        _ => "-".to_owned(),
    }
}

fn what(view: &View) -> String {
    match (&view.appshot, view.command.is_empty()) {
        (Some(path), true) => path.display().to_string(),
        _ => view.command.join(" "),
    }
}
