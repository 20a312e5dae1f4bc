//! What the store holds, what it takes, and who needs it.
//!
//! ```text
//!            a record whose app sleeps in it ───┐
//!   a record whose instance was restored of it ─┼──> needed: no rule removes it
//!               an appshot that borrows pages ──┤
//!       a deployed app, its versions included ──┘
//! ```

use super::{App, SUFFIX, Store, files, names};
use crate::error::Result;
use crate::image::{self, Glance};
use crate::rehearsal::mark::{self, Mark};
use crate::restore::working_set;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// An appshot of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub name: String,
    pub path: PathBuf,
    /// These three are unknown where the manifest cannot be read.
    pub app: Option<String>,
    pub created_unix_ms: Option<u64>,
    pub processes: Option<usize>,
    /// Length of its files when it is not packed.
    pub bytes: u64,
    /// What it takes on disk, with its working set. Holes are not counted.
    pub disk_bytes: u64,
    /// Length of the file, where it is packed.
    pub packed_bytes: Option<u64>,
    /// Appshots that it borrows pages of.
    pub parents: Vec<String>,
    pub needed_by: Vec<Need>,
    /// How its last rehearsal on this machine went.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub rehearsed: Option<Mark>,
    /// Why its manifest cannot be read.
    pub problem: Option<String>,
    /// Tells it from one that takes its place: of the directory or file.
    #[serde(skip)]
    inode: u64,
    /// Of its manifest, and those of its parents: hexadecimal.
    #[serde(skip)]
    identity: String,
    #[serde(skip)]
    borrows_from: Vec<String>,
}

/// Who needs an appshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Need {
    /// The app of this name sleeps in it.
    Asleep(String),
    /// The instance of this name was restored from it, and runs.
    Instance(String),
    /// The appshot of this name borrows pages of it.
    Child(String),
    /// The app of this name is deployed, and this is its appshot, or that of a version of it
    /// (`NAME.vN`). No record tells after a boot.
    Deployed(String),
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::Asleep(app) => write!(f, "app {app} sleeps in it"),
            Need::Instance(app) => write!(f, "app {app} was restored from it and runs"),
            Need::Child(appshot) => write!(f, "appshot {appshot} borrows pages of it"),
            Need::Deployed(app) => write!(f, "app {app} is deployed"),
        }
    }
}

impl Stored {
    /// Looks at what stands at `path`.
    fn read(name: String, path: PathBuf, inode: u64) -> Stored {
        let (bytes, on_disk) = image::sizes(&path);
        let working_set = working_set::path(&path).map_or(0, |path| image::sizes(&path).1);
        let mut stored = Stored {
            name,
            path,
            app: None,
            created_unix_ms: None,
            processes: None,
            bytes,
            disk_bytes: on_disk + working_set,
            packed_bytes: None,
            parents: Vec::new(),
            needed_by: Vec::new(),
            rehearsed: None,
            problem: None,
            inode,
            identity: String::new(),
            borrows_from: Vec::new(),
        };
        match image::glance(&stored.path) {
            Ok(glance) => stored.says(glance),
            Err(error) => stored.problem = Some(error.because.unwrap_or(error.what)),
        }
        stored
    }

    fn says(&mut self, glance: Glance) {
        let Glance { manifest, identity, .. } = glance;
        if glance.packed_bytes.is_some() {
            self.bytes = manifest.parts.iter().map(|part| part.bytes).sum();
        }
        self.packed_bytes = glance.packed_bytes;
        self.app = Some(manifest.app);
        self.created_unix_ms = Some(manifest.created_unix_ms);
        self.processes = Some(manifest.processes.len());
        self.identity = identity.to_hex().to_string();
        self.borrows_from = manifest.parents.into_iter().map(|parent| parent.identity).collect();
    }

    /// Who keeps it from being removed, in words.
    pub fn needs(&self) -> Option<String> {
        let told: Vec<String> = self.needed_by.iter().map(Need::to_string).collect();
        (!told.is_empty()).then(|| told.join("; "))
    }
}

impl Store {
    /// All appshots, the oldest first; those of an unknown age before.
    pub fn inventory(&self) -> Result<Vec<Stored>> {
        self.inventory_since(&[])
    }

    /// The same, without looking again at those that are known.
    pub(super) fn inventory_since(&self, known: &[Stored]) -> Result<Vec<Stored>> {
        let mut all = Vec::new();
        for name in files::stems(&self.appshots_dir(), SUFFIX)? {
            let path = self.appshot_path(&name);
            // It may go between the listing and the look.
            let Ok(meta) = path.metadata() else { continue };
            let same = |stored: &&Stored| stored.name == name && stored.inode == meta.ino();
            match known.iter().find(same) {
                Some(stored) => all.push(stored.clone()),
                None => all.push(Stored::read(name, path, meta.ino())),
            }
        }
        let apps = self.list()?;
        let deployed = self.pinned()?;
        for stored in &mut all {
            stored.parents.clear();
            stored.rehearsed = mark::read(&stored.path, &stored.identity);
            stored.needed_by = apps.iter().filter_map(|app| need_of(app, &stored.path)).collect();
            let of_it = |app: &&String| **app == stored.name || names::version_named(app, &stored.name).is_some();
            let deployed = deployed.iter().filter(of_it).cloned().map(Need::Deployed);
            stored.needed_by.extend(deployed);
        }
        let lent = |lender: &Stored| {
            let borrow = |other: &&Stored| other.borrows_from.contains(&lender.identity);
            let names = all.iter().filter(borrow).map(|child| child.name.clone());
            names.collect::<Vec<String>>()
        };
        let children: Vec<Vec<String>> = all.iter().map(lent).collect();
        for (at, children) in children.into_iter().enumerate() {
            let parent = all[at].name.clone();
            for child in all.iter_mut().filter(|child| children.contains(&child.name)) {
                child.parents.push(parent.clone());
            }
            all[at].needed_by.extend(children.into_iter().map(Need::Child));
        }
        all.sort_by(|a, b| (a.created_unix_ms, &a.name).cmp(&(b.created_unix_ms, &b.name)));
        Ok(all)
    }

    /// One of them.
    pub fn stored(&self, name: &str) -> Result<Stored> {
        names::validate(name)?;
        let found = self.inventory()?.into_iter().find(|stored| stored.name == name);
        found.ok_or_else(|| self.no_appshot(name))
    }

    /// What the store takes on disk: appshots, those being written, working sets.
    pub fn disk_bytes(&self) -> u64 {
        let entries = self.appshots_dir().read_dir().into_iter().flatten().flatten();
        entries.map(|entry| image::sizes(&entry.path()).1).sum()
    }

    /// Removes an appshot unless somebody needs it by now; answers who does.
    pub(super) fn remove_unneeded(&self, stored: &Stored, known: &[Stored]) -> Result<Option<String>> {
        let _busy = self.try_lock(&stored.name)?;
        let now = self.inventory_since(known)?;
        let Some(now) = now.into_iter().find(|now| now.name == stored.name) else {
            return Ok(None);
        };
        if now.inode != stored.inode {
            return Ok(Some("another has taken its place meanwhile".to_owned()));
        }
        match now.needs() {
            Some(needs) => Ok(Some(needs)),
            None => self.delete_appshot(&stored.name).map(|()| None),
        }
    }
}

/// Whether this record is of an app that needs the appshot at `path`. Where two paths
/// lead to one appshot, it is the same.
fn need_of(app: &App, path: &Path) -> Option<Need> {
    let is_it = |other: &Option<PathBuf>| {
        let other = other.as_deref().and_then(|other| other.metadata().ok());
        let own = path.metadata().ok();
        other
            .zip(own)
            .is_some_and(|(a, b)| (a.dev(), a.ino()) == (b.dev(), b.ino()))
    };
    match app.alive() {
        _ if is_it(&app.appshot) => Some(Need::Asleep(app.name.clone())),
        true if is_it(&app.from) => Some(Need::Instance(app.name.clone())),
        _ => None,
    }
}
