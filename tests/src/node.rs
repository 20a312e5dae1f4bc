//! A node of its own with the daemons that it takes, and any number of apps.

use crate::app::Place;
use crate::installed::{Daemon, Registry};
use crate::verdict::{PATIENCE, poll};
use anyhow::{Context, Result, ensure};
use nodekit::client::Client;
use serde_json::{Value, json};

/// Daemons are killed when this is dropped, and all apps are ended.
#[derive(Debug)]
pub struct Node {
    pub edgepointd: Daemon,
    pub restored: Daemon,
    pub snapd: Daemon,
    pub registry: Registry,
}

impl Node {
    /// With these arguments of its `edgepointd`.
    pub fn new(place: &Place, arguments: &[&str]) -> Result<Node> {
        let registry = Registry::new(place)?;
        registry.show_log(place)?;
        Ok(Node {
            snapd: registry.daemon("snapd", "")?,
            restored: registry.daemon("restored", "")?,
            edgepointd: registry.daemon_with("edgepointd", arguments, "")?,
            registry,
        })
    }

    /// Kills the daemon, or has it stop, and starts it again; does something in between.
    pub fn replace<T>(
        self,
        well: bool,
        arguments: &[&str],
        meanwhile: impl FnOnce() -> Result<T>,
    ) -> Result<(Node, T)> {
        match well {
            true => self.edgepointd.stop()?,
            false => drop(self.edgepointd),
        }
        let done = meanwhile()?;
        let edgepointd = self.registry.daemon_with("edgepointd", arguments, "")?;
        Ok((Node { edgepointd, ..self }, done))
    }

    pub fn client(&self) -> &Client {
        &self.edgepointd.client
    }

    /// Deploys an app and waits until it runs.
    pub fn deploy(&self, app: &str, manifest: &str) -> Result<Value> {
        let manifest = format!("app = {app:?}\n{manifest}");
        let _: Value = self.client().post("/v1/apps", &json!({ "manifest": manifest }))?;
        self.reach(app, "running")
    }

    pub fn status(&self, app: &str) -> Result<Value> {
        Ok(self.client().get(&format!("/v1/apps/{app}"))?)
    }

    /// What it is awake or asleep for.
    pub fn why(&self, app: &str) -> Result<Value> {
        Ok(self.client().get(&format!("/v1/apps/{app}/why"))?)
    }

    /// One of its conditions, as soon as it is told.
    pub fn condition(&self, app: &str, name: &str) -> Result<Value> {
        poll(&format!("the condition {name}"), PATIENCE, || {
            let why = self.why(app)?;
            let all = why["conditions"].as_array().context("no conditions")?;
            Ok(all.iter().find(|condition| condition["name"] == name).cloned())
        })
    }

    /// Waits until a condition holds, or does not.
    pub fn holds(&self, app: &str, name: &str, holds: bool) -> Result<Value> {
        let what = format!("{name} of {app} to be {holds}");
        let now = poll(&what, PATIENCE, || {
            let condition = self.condition(app, name)?;
            Ok((condition["holds"] == holds).then_some(condition))
        });
        now.with_context(|| format!("{:?}", self.why(app)))
    }

    /// Waits until the app is in this state.
    pub fn reach(&self, app: &str, state: &str) -> Result<Value> {
        let path = format!("/v1/apps/{app}?wait={state}&timeout=60");
        let status: Value = self.client().get(&path)?;
        ensure!(status["state"] == state, "not {state}: {status}; {:?}", self.why(app));
        Ok(status)
    }

    pub fn count(&self, app: &str, what: &str) -> Result<u64> {
        self.status(app)?["counts"][what].as_u64().context("no count")
    }

    /// Removes all apps; nothing is left of them.
    pub fn end(self) -> Result<()> {
        let apps: Vec<Value> = self.client().get("/v1/apps")?;
        for app in apps.iter().filter_map(|app| app["app"].as_str()) {
            let _: Value = self.client().delete(&format!("/v1/apps/{app}"))?;
        }
        let known = self.registry.appshot(&["ps", "-o", "json"])?;
        ensure!(known.trim() == "[]", "{known}");
        [self.edgepointd, self.restored, self.snapd]
            .into_iter()
            .try_for_each(Daemon::stop)
    }
}

/// A python program as an app that listens at a port: its first argument.
pub fn python(program: &str, port: u16, rules: &str) -> String {
    format!(
        "[start]\ncommand = [\"/usr/bin/python3\", \"-c\", '''{program}''', \"{port}\"]\n\
         [[listen]]\ntcp = \"127.0.0.1:{port}\"\n{rules}\n"
    )
}
