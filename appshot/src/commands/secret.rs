//! `secret`: what deployed apps are told that stands in no manifest and no appshot.

use super::node;
use crate::cli;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::identity::is_name;
use libsnap::store::{now_unix_ms, validate};
use nodekit::args::Dirs;
use nodekit::out;
use serde_json::{Value, json};
use std::io::Read;

/// More than any secret has: that is refused by the daemon.
const READ_BYTES_MAX: u64 = 1 << 20;

pub fn secret(dirs: &Dirs, command: &cli::Secret) -> Result<u8> {
    match command {
        cli::Secret::Set(args) => {
            let (path, value) = (path(Some(&args.name), &args.of)?, read(args)?);
            let client = node::client(dirs, &args.of.edgepoint.node)?;
            let kept: Value = client.put(&path, &json!({ "value": value }))?;
            out::show(args.of.edgepoint.output.format, &kept, |_| {
                format!("{} is set\n", args.name)
            })?;
        }
        cli::Secret::List(args) => {
            let client = node::client(dirs, &args.edgepoint.node)?;
            let all: Vec<Value> = client.get(&path(None, args)?)?;
            let now = now_unix_ms()?;
            out::show(args.edgepoint.output.format, &all, |all| {
                let row = |secret: &Value| {
                    let text = |key: &str| secret[key].as_str().unwrap_or_default().to_owned();
                    let changed = out::age(secret["changed_unix_ms"].as_u64().unwrap_or_default(), now) + " ago";
                    vec![text("name"), text("provider"), changed]
                };
                let rows: Vec<Vec<String>> = all.iter().map(row).collect();
                out::table(&["SECRET", "PROVIDER", "CHANGED"], &rows)
            })?;
        }
        cli::Secret::Remove(args) => {
            let client = node::client(dirs, &args.of.edgepoint.node)?;
            let removed: Value = client.delete(&path(Some(&args.name), &args.of)?)?;
            out::show(args.of.edgepoint.output.format, &removed, |_| {
                format!("{} is removed\n", args.name)
            })?;
        }
    }
    Ok(0)
}

fn path(name: Option<&String>, of: &cli::Secrets) -> Result<String> {
    let mut path = "/v1/secrets".to_owned();
    if let Some(name) = name {
        if !is_name(name) {
            return Err(
                Error::new(Kind::Usage, format!("{name:?} cannot be the name of a secret"))
                    .fix("letters, digits, '_', '-' and '.'"),
            );
        }
        path += &format!("/{name}");
    }
    if let Some(provider) = &of.provider {
        validate(provider)?;
        path += &format!("?provider={provider}");
    }
    Ok(path)
}

/// Without the end of its only line, which an editor or echo(1) puts there.
fn read(args: &cli::SecretSet) -> Result<String> {
    let what = || format!("cannot read the secret {}", args.name);
    let mut text = String::new();
    match &args.file {
        Some(path) => std::fs::File::open(path)
            .or_fail(|| format!("cannot read {}", path.display()))?
            .take(READ_BYTES_MAX)
            .read_to_string(&mut text),
        None => std::io::stdin().take(READ_BYTES_MAX).read_to_string(&mut text),
    }
    .or_fail(what)?;
    match text.strip_suffix('\n') {
        Some(line) if !line.contains('\n') => Ok(line.to_owned()),
        _ => Ok(text),
    }
}
