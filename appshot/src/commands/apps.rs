//! `deploy`, `update`, `rollback`, `apps`, `status`, `suspend`, `resume`, `scale`, `remove`:
//! deployed apps, by asking `edgepointd`.

use super::node;
use crate::cli;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::store::{now_unix_ms, validate};
use nodekit::args::Dirs;
use nodekit::client::{Client, Header, Method};
use nodekit::out;
use serde_json::{Value, json};
use std::io::Read;
use std::path::Path;

fn client(dirs: &Dirs, edgepoint: &cli::Edgepoint) -> Result<Client> {
    node::client(dirs, &edgepoint.node)
}

/// Asks for a change of an app.
fn change(client: &Client, method: Method, path: &str, asked: &cli::Asked, body: &Value) -> Result<Value> {
    // It has to be there.
    let any = || "*".to_owned();
    let tag = asked.if_match.as_ref().map_or_else(any, |tag| format!("\"{tag}\""));
    let now = if asked.no_wait { "?timeout=0" } else { "" };
    let headers: [Header<'_>; 1] = [("if-match", &tag)];
    Ok(client
        .ask_with(method, &format!("/v1/apps/{path}{now}"), &headers, body)?
        .1)
}

/// Returns when the app is up.
pub fn deploy(dirs: &Dirs, args: &cli::Deploy, quiet: bool) -> Result<u8> {
    let client = client(dirs, &args.edgepoint)?;
    let body = sent(&client, &args.manifest)?;
    let mut status: Value = client.post("/v1/apps", &body)?;
    let app = text(&status, "app").to_owned();
    if !args.no_wait && text(&status, "state") == "starting" {
        status = client.get(&format!("/v1/apps/{app}?wait=running"))?;
    }
    out::show(args.edgepoint.output.format, &status, |_| format!("{app}\n"))?;
    failed(&status)?;
    if !quiet {
        eprintln!("{}", sentence(&status));
    }
    Ok(0)
}

fn read(path: &Path) -> Result<String> {
    let what = || format!("cannot read the manifest {}", path.display());
    let mut text = String::new();
    match path.to_str() {
        Some("-") => std::io::stdin()
            .lock()
            .read_to_string(&mut text)
            .map(drop)
            .or_fail(what)?,
        _ => {
            text = std::fs::read_to_string(path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => Error::new(Kind::NotFound, what()).because(error),
                _ => Error::failed(what()).because(error),
            })?
        }
    }
    Ok(text)
}

/// The manifest, for a request. The archive that it names as a path beside it is sent before, unless
/// it is there.
fn sent(client: &Client, path: &Path) -> Result<Value> {
    let manifest = read(path)?;
    let named: Option<Coming> = toml::from_str(&manifest).ok();
    let Some(archive) = named.as_ref().and_then(|named| named.start.archive.as_ref()) else {
        return Ok(json!({ "manifest": manifest }));
    };
    let archive = path.parent().unwrap_or(Path::new("")).join(archive);
    let what = || format!("cannot read the archive {}", archive.display());
    let size = archive.metadata().or_fail(what)?.len();
    if size > ARCHIVE_BYTES_MAX {
        return Err(Error::new(Kind::Usage, what()).because("it is longer than 256 MiB"));
    }
    let bytes = std::fs::read(&archive).or_fail(what)?;
    let digest = blake3::hash(&bytes).to_hex().to_string();
    let provider = named.as_ref().and_then(|named| named.provider.as_ref());
    let whose = provider.map_or_else(String::new, |provider| format!("?provider={provider}"));
    let place = format!("/v1/archives/{digest}{whose}");
    match client.get::<Value>(&place) {
        Err(error) if error.kind == Kind::NotFound => client.put_bytes::<Value>(&place, bytes)?,
        there => there?,
    };
    Ok(json!({ "manifest": manifest, "digest": digest }))
}

/// As the daemon has it.
const ARCHIVE_BYTES_MAX: u64 = 256 << 20;

/// What of a manifest says what comes with it.
#[derive(serde::Deserialize)]
struct Coming {
    provider: Option<String>,
    start: Start,
}

#[derive(serde::Deserialize)]
struct Start {
    archive: Option<String>,
}

/// An app that could not be brought up.
fn failed(status: &Value) -> Result<()> {
    match text(status, "state") {
        "failed" => Err(Error::failed(format!("app {} has failed", text(status, "app")))
            .because(text(status, "why"))
            .state("it is tried again; `appshot remove` forgets it")),
        _ => Ok(()),
    }
}

/// Returns when the new version serves, or will when it is woken.
pub fn update(dirs: &Dirs, args: &cli::Update) -> Result<u8> {
    let client = client(dirs, &args.edgepoint)?;
    let body = sent(&client, &args.manifest)?;
    let app = Named::of(body["manifest"].as_str().unwrap_or_default())?.app;
    let status = change(&client, Method::PUT, &app, &args.asked, &body)?;
    out::show(args.edgepoint.output.format, &status, |status| sentence(status) + "\n")?;
    Ok(0)
}

/// What is needed of a manifest to know what it is for; the daemon reads all of it.
#[derive(serde::Deserialize)]
struct Named {
    app: String,
}

impl Named {
    fn of(manifest: &str) -> Result<Named> {
        let named: Named = toml::from_str(manifest)
            .map_err(|error| Error::new(Kind::Usage, "cannot read the manifest").because(error.message()))?;
        validate(&named.app).map(|()| named)
    }
}

pub fn apps(dirs: &Dirs, args: &cli::Apps) -> Result<u8> {
    let apps: Vec<Value> = client(dirs, &args.edgepoint)?.get("/v1/apps")?;
    let now = now_unix_ms()?;
    out::show(args.edgepoint.output.format, &apps, |apps| {
        let rows: Vec<Vec<String>> = apps.iter().map(|app| row(app, now)).collect();
        out::table(
            &[
                "APP",
                "PROVIDER",
                "STATE",
                "FOR",
                "INSTANCES",
                "WAKES",
                "LAST WAKE",
                "LISTENS",
            ],
            &rows,
        )
    })?;
    Ok(0)
}

fn row(status: &Value, now_unix_ms: u64) -> Vec<String> {
    let since = status["since_unix_ms"].as_u64().unwrap_or_default();
    let last = status["last"]["total_micros"].as_u64().map(out::millis);
    vec![
        text(status, "app").to_owned(),
        text(status, "provider").to_owned(),
        text(status, "state").to_owned(),
        out::age(since, now_unix_ms),
        instances(status)
            .filter(|one| one["root"].is_number())
            .count()
            .to_string(),
        status["counts"]["wakes"].to_string(),
        last.unwrap_or_else(|| "-".to_owned()),
        listens(status),
    ]
}

pub fn status(dirs: &Dirs, args: &cli::Status) -> Result<u8> {
    validate(&args.app)?;
    if args.why {
        return super::why::show(&client(dirs, &args.edgepoint)?, &args.app, args.edgepoint.output.format);
    }
    let wait = args
        .wait
        .as_ref()
        .map_or(String::new(), |state| format!("?wait={state}"));
    let status: Value = client(dirs, &args.edgepoint)?.get(&format!("/v1/apps/{}{wait}", args.app))?;
    out::show(args.edgepoint.output.format, &status, |status| sentence(status) + "\n")?;
    match args.wait {
        Some(_) => failed(&status).map(|()| 0),
        None => Ok(0),
    }
}

pub fn order(dirs: &Dirs, args: &cli::Deployed, verb: &str) -> Result<u8> {
    validate(&args.app)?;
    let (client, path) = (client(dirs, &args.edgepoint)?, format!("{}/{verb}", args.app));
    let status = change(&client, Method::POST, &path, &args.asked, &json!({}))?;
    out::show(args.edgepoint.output.format, &status, |status| sentence(status) + "\n")?;
    Ok(0)
}

pub fn scale(dirs: &Dirs, args: &cli::Scale) -> Result<u8> {
    validate(&args.app)?;
    let (client, path) = (client(dirs, &args.edgepoint)?, format!("{}/scale", args.app));
    let (min, max) = args.bounds;
    let body = json!({ "min": min, "max": max });
    let status = change(&client, Method::PUT, &path, &args.asked, &body)?;
    out::show(args.edgepoint.output.format, &status, |status| {
        let bounds = &status["bounds"];
        format!(
            "{} may have {} to {} instances\n",
            args.app, bounds["min"], bounds["max"]
        )
    })?;
    Ok(0)
}

pub fn remove(dirs: &Dirs, args: &cli::Deployed) -> Result<u8> {
    validate(&args.app)?;
    let client = client(dirs, &args.edgepoint)?;
    let status = change(&client, Method::DELETE, &args.app, &args.asked, &json!({}))?;
    out::show(args.edgepoint.output.format, &status, |_| match args.asked.no_wait {
        true => format!("{} is being removed\n", args.app),
        false => format!("{} is removed\n", args.app),
    })?;
    Ok(0)
}

/// `web                  running         woken by request in 1.4 ms`
pub fn told(status: &Value) -> String {
    let (app, state) = (text(status, "app"), text(status, "state"));
    let how = match (state, &status["last"]) {
        ("running", last) if last.is_object() => format!(
            "{} by {} in {}",
            text(last, "kind"),
            text(last, "cause"),
            out::millis(last["total_micros"].as_u64().unwrap_or_default())
        ),
        ("failed", _) => text(status, "why").replace('\n', ";"),
        _ => String::new(),
    };
    format!("{app:<20} {state:<15} {how}").trim_end().to_owned()
}

/// `web is asleep, listens on 0.0.0.0:8080; up last in 1.4 ms (woken: request)`
fn sentence(status: &Value) -> String {
    let mut told = format!(
        "{} is {}, listens on {}",
        text(status, "app"),
        text(status, "state"),
        listens(status)
    );
    if let Some(micros) = status["last"]["total_micros"].as_u64() {
        let (kind, cause) = (text(&status["last"], "kind"), text(&status["last"], "cause"));
        told += &format!("; up last in {} ({kind}: {cause})", out::millis(micros));
    }
    told += &format!("\n  version  {}", versions(status));
    if let Some(address) = status["address"].as_str() {
        told += &format!("\n  address  {address}");
    }
    if let Some(notice) = status["notice"].as_str() {
        told += &format!("\n  notice  {}", notice.replace('\n', "\n    "));
    }
    if let Some(why) = status["why"].as_str() {
        told += &format!("\n  why  {why}");
    }
    if instances(status).nth(1).is_some() {
        let now = now_unix_ms().unwrap_or_default();
        let rows: Vec<Vec<String>> = instances(status).map(|one| instance(one, now)).collect();
        let head = ["INSTANCE", "STATE", "FOR", "PID", "KIND", "ADDRESS"];
        told += &format!("\n{}", out::table(&head, &rows));
    }
    told.trim_end().to_owned()
}

/// `2, deployed 5m ago; kept: 1 (3d ago)`
fn versions(status: &Value) -> String {
    let now = now_unix_ms().unwrap_or_default();
    let ago = |one: &Value| out::age(one["deployed_unix_ms"].as_u64().unwrap_or_default(), now);
    let mut told = format!("{}, deployed {} ago", status["version"], ago(status));
    let kept = status["kept"].as_array().into_iter().flatten();
    let kept: Vec<String> = kept
        .map(|one| format!("{} ({} ago)", one["version"], ago(one)))
        .collect();
    if !kept.is_empty() {
        told += &format!("; kept: {}", kept.join(", "));
    }
    told
}

fn instances(status: &Value) -> impl Iterator<Item = &Value> {
    status["instances"].as_array().into_iter().flatten()
}

fn instance(one: &Value, now_unix_ms: u64) -> Vec<String> {
    let since = one["since_unix_ms"].as_u64().unwrap_or_default();
    vec![
        text(one, "name").to_owned(),
        text(one, "state").to_owned(),
        out::age(since, now_unix_ms),
        one["root"]
            .as_i64()
            .map_or_else(|| "-".to_owned(), |pid| pid.to_string()),
        text(one, "kind").to_owned(),
        // Else it has the node's.
        one["address"].as_str().unwrap_or("-").to_owned(),
    ]
}

fn listens(status: &Value) -> String {
    let all = status["listen"].as_array().into_iter().flatten();
    all.filter_map(Value::as_str).collect::<Vec<_>>().join(", ")
}

pub(super) fn text<'a>(status: &'a Value, key: &str) -> &'a str {
    status[key].as_str().unwrap_or("-")
}
