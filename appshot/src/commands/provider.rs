//! `provider`: who may ask this node from elsewhere, and with which token.

use super::node;
use crate::cli;
use libsnap::error::Result;
use libsnap::store::{now_unix_ms, validate};
use libsnap::units;
use nodekit::args::{Dirs, Format};
use nodekit::client::Client;
use nodekit::out;
use serde_json::{Value, json};

pub fn provider(dirs: &Dirs, command: &cli::Provider) -> Result<u8> {
    let client = |edgepoint: &cli::Edgepoint| node::client(dirs, &edgepoint.node);
    match command {
        cli::Provider::Add(args) => {
            let body = json!({ "name": args.name, "users": args.users });
            let issued: Value = client(&args.edgepoint)?.post("/v1/providers", &body)?;
            issue(&issued, args.edgepoint.output.format)
        }
        cli::Provider::List(args) => list(&client(&args.edgepoint)?, args),
        cli::Provider::Allow(args) => {
            validate(&args.name)?;
            let path = format!("/v1/providers/{}/users", args.name);
            let changed: Value = client(&args.edgepoint)?.put(&path, &json!({ "users": args.users }))?;
            out::show(args.edgepoint.output.format, &changed, |changed| {
                format!("apps of {} may run as {}\n", args.name, users(changed))
            })?;
            Ok(0)
        }
        cli::Provider::Rotate(args) => {
            validate(&args.name)?;
            let path = format!("/v1/providers/{}/rotate", args.name);
            let body = json!({ "grace": args.grace.map(units::span) });
            let issued: Value = client(&args.edgepoint)?.post(&path, &body)?;
            issue(&issued, args.edgepoint.output.format)
        }
        cli::Provider::Remove(args) => {
            validate(&args.name)?;
            let removed: Value = client(&args.edgepoint)?.delete(&format!("/v1/providers/{}", args.name))?;
            out::show(args.edgepoint.output.format, &removed, |_| {
                format!("{} is removed, its tokens are good no more\n", args.name)
            })?;
            Ok(0)
        }
    }
}

/// The token alone on stdout, to go into a file.
fn issue(issued: &Value, format: Format) -> Result<u8> {
    out::show(format, issued, |issued| {
        format!("{}\n", issued["token"].as_str().unwrap_or_default())
    })?;
    eprintln!(
        "the token of {} is shown this once; it goes into the file of --token-file, or into APPSHOT_TOKEN",
        issued["name"].as_str().unwrap_or_default()
    );
    Ok(0)
}

fn list(client: &Client, args: &cli::Providers) -> Result<u8> {
    let all: Vec<Value> = client.get("/v1/providers")?;
    let now = now_unix_ms()?;
    out::show(args.edgepoint.output.format, &all, |all| {
        let age = |provider: &Value, key: &str| out::age(provider[key].as_u64().unwrap_or_default(), now) + " ago";
        let row = |provider: &Value| {
            vec![
                provider["name"].as_str().unwrap_or_default().to_owned(),
                users(provider),
                age(provider, "created_unix_ms"),
                age(provider, "rotated_unix_ms"),
            ]
        };
        let rows: Vec<Vec<String>> = all.iter().map(row).collect();
        out::table(&["PROVIDER", "RUNS AS", "ADDED", "TOKEN MADE"], &rows)
    })?;
    Ok(0)
}

fn users(provider: &Value) -> String {
    let users = provider["users"].as_array().into_iter().flatten();
    users.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}
