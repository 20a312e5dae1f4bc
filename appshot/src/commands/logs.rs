//! `logs`: the output of a detached app.

use super::node;
use crate::cli;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::store::{App, Store, validate};
use nodekit::args::Dirs;
use nodekit::client::Client;
use nodekit::{out, process};
use serde_json::Value;
use std::fs::File;
use std::io::copy;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often a followed log is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

pub fn logs(dirs: &Dirs, args: &cli::Logs) -> Result<u8> {
    validate(&args.name)?;
    let client = node::client(dirs, &args.node)?;
    let is_elsewhere = node::is_elsewhere(&args.node);
    if is_elsewhere || (args.follow && client.get::<Value>(&format!("/v1/apps/{}", args.name)).is_ok()) {
        return of_deployed(&client, args);
    }
    let store = &dirs.open()?;
    let app = store.find(&args.name)?;
    let path = log_of(store, &args.name, app.as_ref())?;
    let mut log = open(&path)?;
    pour(&mut log)?;
    if let Some(app) = app.filter(|_| args.follow) {
        follow(&app, &mut log)?;
    }
    Ok(0)
}

/// As the daemon tells it: it goes on while the app sleeps, and after.
fn of_deployed(client: &Client, args: &cli::Logs) -> Result<u8> {
    let mut next = String::new();
    loop {
        let path = format!(
            "/v1/apps/{}/logs?wait={}{next}",
            args.name,
            if args.follow { 30 } else { 0 }
        );
        let log: Value = match args.follow {
            true => node::patiently(|| client.get(&path))?,
            false => client.get(&path)?,
        };
        out::print(log["text"].as_str().unwrap_or_default())?;
        let is_more = log["text"].as_str().is_some_and(|text| !text.is_empty());
        next = format!("&after={}", log["next"]);
        if !args.follow && !is_more {
            return Ok(0);
        }
    }
}

/// A log outlives the record: an app that fell asleep before a reboot has one.
fn log_of(store: &Store, name: &str, app: Option<&App>) -> Result<PathBuf> {
    let path = app
        .and_then(|app| app.log.clone())
        .unwrap_or_else(|| store.log_path(name));
    match (path.exists(), app) {
        (true, _) => Ok(path),
        (false, None) => Err(store.unknown(name)),
        (false, Some(_)) => {
            Err(Error::new(Kind::NotFound, format!("app {name} has no log")).because("it was not started with -d"))
        }
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).or_fail(|| format!("cannot open {}", path.display()))
}

/// Whatever has been added since the last time. A closed stdout ends us quietly.
fn pour(log: &mut File) -> Result<()> {
    match copy(log, &mut std::io::stdout().lock()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        copied => copied.map(drop).or_fail(|| "cannot copy the log"),
    }
}

/// What was written before the end is read after it.
fn follow(app: &App, log: &mut File) -> Result<()> {
    let Ok(child) = process::open_child(app) else {
        return pour(log);
    };
    while !process::wait(&child, Some(INTERVAL))? {
        pour(log)?;
    }
    pour(log)
}
