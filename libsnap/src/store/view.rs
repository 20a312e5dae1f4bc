//! An app as it is shown: its record, its state and its appshot together.

use super::{App, AppshotEntry, State, Store};
use crate::ids::HostPid;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// An app as commands and daemons show it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct View {
    pub name: String,
    pub state: State,
    /// Of an exited app; unknown when its supervisor was killed before it.
    pub exit: Option<i32>,
    pub root: Option<HostPid>,
    pub init: Option<HostPid>,
    pub cgroup: Option<PathBuf>,
    pub command: Vec<String>,
    pub started_unix_ms: Option<u64>,
    pub log: Option<PathBuf>,
    pub from: Option<PathBuf>,
    pub supervisor: Option<HostPid>,
    /// Where its state is kept, if it is.
    pub appshot: Option<PathBuf>,
}

impl App {
    pub fn view(&self, store: &Store) -> View {
        let stored = store.appshot_path(&self.name);
        View {
            name: self.name.clone(),
            state: self.state(),
            exit: self.exit,
            root: Some(self.root),
            init: self.init,
            cgroup: self.cgroup.clone(),
            command: self.command.clone(),
            started_unix_ms: Some(self.started_unix_ms),
            log: self.log.clone(),
            from: self.from.clone(),
            supervisor: self.supervisor,
            appshot: self.appshot.clone().or(Some(stored)).filter(|p| p.exists()),
        }
    }
}

impl View {
    /// An appshot without a record: put here by hand, or older than the last boot.
    pub fn of_appshot(entry: &AppshotEntry) -> View {
        View {
            name: entry.name.clone(),
            state: State::Asleep,
            exit: None,
            root: None,
            init: None,
            cgroup: None,
            command: Vec::new(),
            started_unix_ms: None,
            log: None,
            from: None,
            supervisor: None,
            appshot: Some(entry.path.clone()),
        }
    }

    pub fn alive(&self) -> bool {
        matches!(self.state, State::Running | State::Frozen)
    }
}
