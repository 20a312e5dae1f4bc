//! What a node is to do and has done: deployed apps, providers and their tokens, events.
//!
//! ```text
//!   edgepointd ──┐                                  ┌── sqlite: control.db of one node
//!   perfd     ───┼──> Control ──> dyn Engine ───────┤
//!   appshot   ───┘    app/NAME                      └── (one that members share)
//!                     provider/NAME
//!                     token/DIGEST
//!                     secret/PROVIDER/NAME
//! ```
//!
//! All of it is what members of a cluster will share. So an [`Engine`] can no more than a
//! distributed one can, too: entries of a key, each with a revision; changes that are made
//! together if nobody was faster; and a log. What processes do on this machine, and what they
//! hold, is not in here: that is told by the machine.
#![forbid(unsafe_code)]

mod engine;
mod events;
mod providers;
mod secrets;
mod sqlite;

pub use engine::{Change, Engine, Entry, Expect, Lasting, Logged};
pub use events::{Event, Query};
pub use providers::{Issued, Provider, Quota, TOKEN_PREFIX};
pub use secrets::Secret;

use libsnap::error::{Error, Kind, OrFail, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const APPS: &str = "app/";

/// Clones are the same.
#[derive(Clone, Debug)]
pub struct Control {
    engine: Arc<dyn Engine>,
}

/// An app as it is written down.
#[derive(Clone, Debug)]
pub struct Kept<T> {
    pub app: String,
    pub revision: u64,
    /// Or why it cannot be read.
    pub value: Result<T>,
}

impl Control {
    /// Of the node whose data are in this directory; it is made where there is none. For the
    /// daemon: all of it is checked, and a copy is made of what is whole.
    pub fn open(data_dir: &Path) -> Result<Control> {
        Ok(Control {
            engine: Arc::new(sqlite::Sqlite::open(&path(data_dir), true)?),
        })
    }

    /// The same for who only looks; `None` where there is none.
    pub fn look(data_dir: &Path) -> Result<Option<Control>> {
        let path = path(data_dir);
        if !path.exists() {
            return Ok(None);
        }
        let engine = Arc::new(sqlite::Sqlite::open(&path, false)?);
        Ok(Some(Control { engine }))
    }

    /// All apps, by name.
    pub fn apps<T: DeserializeOwned>(&self) -> Result<Vec<Kept<T>>> {
        Ok(self.engine.list(APPS)?.into_iter().map(Kept::of).collect())
    }

    pub fn app<T: DeserializeOwned>(&self, name: &str) -> Result<Option<Kept<T>>> {
        Ok(self.engine.get(&key(APPS, name))?.map(Kept::of))
    }

    /// Writes down an app, to stay or only if nothing happens to the machine.
    pub fn put_app(&self, name: &str, value: &impl Serialize, lasting: Lasting) -> Result<()> {
        let change = Change::put(key(APPS, name), value, Expect::Anything)?;
        self.engine.commit(&[change], lasting).map(drop)
    }

    /// Takes in apps that nobody has written down here yet, all or none.
    pub fn adopt(&self, apps: &[(String, serde_json::Value)]) -> Result<()> {
        let known: Vec<Entry> = self.engine.list(APPS)?;
        let new = apps
            .iter()
            .map(|(name, value)| (key(APPS, name), value))
            .filter(|(key, _)| known.iter().all(|entry| entry.key != *key));
        let changes: Result<Vec<Change>> = new
            .map(|(key, value)| Change::put(key, value, Expect::Absent))
            .collect();
        self.engine.commit(&changes?, Lasting::Synced).map(drop)
    }

    pub fn forget_app(&self, name: &str) -> Result<()> {
        let change = Change::delete(key(APPS, name), Expect::Anything);
        self.engine.commit(&[change], Lasting::Synced).map(drop)
    }
}

impl<T: DeserializeOwned> Kept<T> {
    fn of(entry: Entry) -> Kept<T> {
        let app = entry.key.strip_prefix(APPS).unwrap_or(&entry.key).to_owned();
        let value = serde_json::from_str(&entry.value)
            .or_fail(|| format!("cannot understand what is written down of app {app}"));
        Kept {
            app,
            revision: entry.revision,
            value,
        }
    }
}

/// The file of a node.
fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("control.db")
}

fn key(kind: &str, name: &str) -> String {
    format!("{kind}{name}")
}

/// Somebody was faster.
fn overtaken(key: &str) -> Error {
    Error::new(Kind::Conflict, format!("{key} was changed by somebody else meanwhile"))
        .fix("look at it again")
        .state("nothing was changed")
}
