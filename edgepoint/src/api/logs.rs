//! What an app has written, from where who asks has read it.

use super::answer::Asked;
use crate::caller::Caller;
use crate::node::Node;
use axum::extract::{Path, State as Extract};
use axum::{Extension, Json};
use libsnap::error::{Error, Kind, OrFail, Result};
use nodekit::daemon::Stopping;
use nodekit::reply::Reply;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::time::Duration;
use tokio::time::Instant;

/// In one answer, at most.
const BYTES_MAX: u64 = 1 << 20;
const WAIT_MAX: u64 = 60;
/// How often a log is looked at for which somebody waits.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// Of the instance or version of this name; of the first one without.
    of: Option<String>,
    /// From this byte on; the last megabyte without.
    after: Option<u64>,
    /// Where there is nothing yet, the answer waits so many seconds for it.
    wait: Option<u64>,
}

#[derive(Debug, Serialize)]
pub struct Log {
    /// What is no UTF-8 is replaced.
    text: String,
    /// To ask for what comes later.
    next: u64,
}

pub async fn read(
    Extract(node): Extract<Node>,
    Extension(caller): Extension<Caller>,
    Extension(mut stopping): Extension<Stopping>,
    Path(app): Path<String>,
    Asked(which): Asked<Which>,
) -> Reply<Log> {
    let name = which.of.unwrap_or_else(|| app.clone());
    may_read(&node, &caller, &app, &name)?;
    let path = node.store.log_path(&name);
    let deadline = Instant::now() + Duration::from_secs(which.wait.unwrap_or(0).min(WAIT_MAX));
    loop {
        let log = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Log {
                text: String::new(),
                next: 0,
            },
            opened => part(
                &opened.or_fail(|| format!("cannot open the log of {name}"))?,
                which.after,
            )?,
        };
        if !log.text.is_empty() || Instant::now() >= deadline || *stopping.borrow_and_update() {
            // Meanwhile it may have become somebody else's.
            may_read(&node, &caller.again(&node.control)?, &app, &name)?;
            return Ok(Json(log));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether this is the name of the app, of an instance of it, or of a version that it keeps, and
/// who asks may read of it now.
fn may_read(node: &Node, caller: &Caller, app: &str, name: &str) -> Result<()> {
    let manifest = node.manifest_of(app, caller)?;
    let is_kept = |number| {
        let versions = node.read(app)?.versions;
        Ok::<_, Error>(versions.kept.iter().any(|kept| kept.number == number))
    };
    let is_its = match manifest.version_named(name) {
        _ if name == app => true,
        Some(number) => is_kept(number)?,
        None if manifest.has_instance(name) => {
            let record = node.store.find(name)?;
            record.is_some_and(|record| record.from == Some(node.store.appshot_path(app)))
        }
        None => false,
    };
    match is_its {
        true => Ok(()),
        false => Err(Error::new(Kind::NotFound, format!("app {app} has no instance {name}"))
            .fix(format!("`appshot status {app}` lists those that it has"))),
    }
}

/// As much as fits; a letter that is not whole yet comes with the next.
fn part(log: &File, after: Option<u64>) -> Result<Log> {
    let what = || "cannot read the log";
    let length = log.metadata().or_fail(what)?.len();
    // It may have begun anew.
    let from = after.filter(|after| *after <= length);
    let from = from.unwrap_or_else(|| after.map_or(length.saturating_sub(BYTES_MAX), |_| 0));
    let wanted = usize::try_from((length - from).min(BYTES_MAX)).unwrap_or(0);
    let mut bytes = vec![0; wanted];
    let read = log.read_at(&mut bytes, from).or_fail(what)?;
    bytes.truncate(read);
    if let Err(error) = std::str::from_utf8(&bytes)
        && error.error_len().is_none()
    {
        bytes.truncate(error.valid_up_to());
    }
    Ok(Log {
        text: String::from_utf8_lossy(&bytes).into_owned(),
        next: from + bytes.len() as u64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_come_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        std::fs::write(&path, "grü").unwrap();
        let log = |after| part(&File::open(&path).unwrap(), after).unwrap();
        assert_eq!((log(None).text.as_str(), log(None).next), ("grü", 4));
        std::fs::write(&path, &"grün".as_bytes()[..3]).unwrap();
        assert_eq!((log(Some(0)).text.as_str(), log(Some(0)).next), ("gr", 2));
        std::fs::write(&path, "grün").unwrap();
        assert_eq!((log(Some(2)).text.as_str(), log(Some(2)).next), ("ün", 5));
        assert_eq!(log(Some(5)).text, "");
        assert_eq!(log(Some(99)).text, "grün", "it has begun anew");
        std::fs::write(&path, [b'a', 0xff, b'b']).unwrap();
        assert_eq!(log(Some(0)).text, "a\u{fffd}b");
        std::fs::write(&path, "x".repeat(3 << 20)).unwrap();
        assert_eq!(log(None).next, 3 << 20);
        assert_eq!((log(Some(5)).text.len(), log(Some(5)).next), (1 << 20, 5 + (1 << 20)));
    }
}
