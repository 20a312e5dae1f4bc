//! `provider`: who may ask this node from elsewhere, and with which token.

use super::node;
use crate::cli;
use libsnap::error::{Error, Kind, Result};
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
            let body = json!({ "name": args.name, "users": args.users, "quota": limits(&args.quota) });
            let issued: Value = client(&args.edgepoint)?.post("/v1/providers", &body)?;
            issue(&issued, args.edgepoint.output.format)
        }
        cli::Provider::List(args) => list(&client(&args.edgepoint)?, args),
        cli::Provider::Show(args) => {
            validate(&args.name)?;
            let shown: Value = client(&args.edgepoint)?.get(&format!("/v1/providers/{}", args.name))?;
            show(args.edgepoint.output.format, &shown)
        }
        cli::Provider::Set(args) => {
            validate(&args.name)?;
            let limits = limits(&args.quota);
            if limits.as_object().is_none_or(serde_json::Map::is_empty) {
                return Err(Error::new(Kind::Usage, format!("nothing is said of {}", args.name))
                    .fix("name a limit, such as --apps 5 or --memory none"));
            }
            let path = format!("/v1/providers/{}/quota", args.name);
            let changed: Value = client(&args.edgepoint)?.put(&path, &limits)?;
            show(args.edgepoint.output.format, &changed)
        }
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

/// What is named, null where it is to have no limit.
fn limits(quota: &cli::Quota) -> Value {
    let named = [
        ("apps", quota.apps),
        ("instances", quota.instances),
        ("memory", quota.memory),
        ("appshots", quota.appshots),
    ];
    let named = named
        .into_iter()
        .filter_map(|(what, limit)| Some((what.to_owned(), json!(limit?.0))));
    Value::Object(named.collect())
}

/// What a provider has of something, and may have: `2/5`, or what it has where it may have any.
fn share(provider: &Value, what: &str, bytes: bool) -> String {
    let told = |count: &Value| {
        let count = count.as_u64()?;
        Some(if bytes { units::bytes(count) } else { count.to_string() })
    };
    let has = told(&provider["used"][what]).unwrap_or_default();
    told(&provider["quota"][what]).map_or(has.clone(), |most| format!("{has}/{most}"))
}

/// Everything that may be limited; the last two are bytes.
const LIMITED: [(&str, bool); 4] = [
    ("apps", false),
    ("instances", false),
    ("memory", true),
    ("appshots", true),
];

fn show(format: Format, shown: &Value) -> Result<u8> {
    out::show(format, shown, |shown| {
        let mut text = format!(
            "{}: its apps run as {}\n",
            shown["name"].as_str().unwrap_or_default(),
            users(shown)
        );
        for (what, bytes) in LIMITED {
            text += &format!("  {what:9}  {}\n", share(shown, what, bytes));
        }
        text
    })?;
    Ok(0)
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
            let mut row = vec![
                provider["name"].as_str().unwrap_or_default().to_owned(),
                users(provider),
            ];
            row.extend(LIMITED.map(|(what, bytes)| share(provider, what, bytes)));
            row.extend(["created_unix_ms", "rotated_unix_ms"].map(|key| age(provider, key)));
            row
        };
        let rows: Vec<Vec<String>> = all.iter().map(row).collect();
        let heads = [
            "PROVIDER",
            "RUNS AS",
            "APPS",
            "INSTANCES",
            "MEMORY",
            "APPSHOTS",
            "ADDED",
            "TOKEN MADE",
        ];
        out::table(&heads, &rows)
    })?;
    Ok(0)
}

fn users(provider: &Value) -> String {
    let users = provider["users"].as_array().into_iter().flatten();
    users.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}
