//! Versions of an app: one serves, others are kept.
//!
//! ```text
//!   update:  its command ──> app.v2, beside the one that serves, in a network of its own
//!                              └─ listens ──> appshot app.v2 ──> verified
//!                                                                   │ the switch (agent::versions)
//!   rollback:                            kept: appshot app.v1 ──> verified
//! ```
//!
//! The appshot of the version that serves is called as the app is, all others `APP.vN`. The
//! app is written down with the one that serves: written, the switch is decided. Names follow it
//! ([`arrange`]), after a crash as well; what it does not name goes ([`tidy`]).

use crate::agent::{COMES_UP, COMES_UP_YET};
use crate::archives;
use crate::budget;
use crate::caller::Caller;
use crate::manifest::{Listen, Manifest};
use crate::metrics::Outcome;
use crate::node::{Deployment, Held, Node, Room};
use crate::probe;
use crate::sockets;
use crate::status::{Cause, State, Status};
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::files::held;
use libsnap::image::Appshot;
use libsnap::store::{Store, now_unix_ms};
use libsnap::target::{Network, RunOptions, SnapshotReport, TcpPolicy};
use nodekit::reply::on_own_thread;
use nodekit::start::Start;
use nodekit::traces::Place;
use nodekit::{detach, ending};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// What is known of the versions of an app, as it is written down.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Versions {
    /// The one that serves.
    pub current: u32,
    /// The highest number that was given out.
    pub last: u32,
    /// It has not been up yet: when it cannot be, the one before takes over again.
    #[serde(default)]
    pub untried: bool,
    /// Those that are kept; the one that served last comes last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<Version>,
}

impl Default for Versions {
    fn default() -> Versions {
        Versions {
            current: 1,
            last: 1,
            untried: false,
            kept: Vec::new(),
        }
    }
}

/// One that does not serve.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Version {
    pub number: u32,
    pub manifest: Manifest,
    pub deployed_unix_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

/// Asked of an agent: this version is to serve. Its appshot is there, verified.
#[derive(Debug)]
pub struct Switch {
    pub to: Version,
    pub since: Instant,
    pub reply: oneshot::Sender<Result<()>>,
}

impl Deployment {
    /// The same with this version serving, and the one that did kept.
    pub fn turned_to(&self, to: &Version) -> Deployment {
        let mut after = self.clone();
        let left = Version {
            number: self.versions.current,
            manifest: self.declared(),
            deployed_unix_ms: self.deployed_unix_ms,
            memory_bytes: self.memory_bytes,
        };
        let versions = &mut after.versions;
        versions.kept.retain(|kept| kept.number != to.number);
        versions.kept.push(left);
        let surplus = versions.kept.len().saturating_sub(to.manifest.versions.keep);
        versions.kept.drain(..surplus);
        versions.current = to.number;
        versions.last = versions.last.max(to.number);
        versions.untried = true;
        after.manifest = to.manifest.clone();
        after.declared = None;
        after.deployed_unix_ms = to.deployed_unix_ms;
        after.memory_bytes = to.memory_bytes;
        after
    }
}

/// Has the appshot of the version that serves called as the app is, and the one that was
/// called so as it is kept.
pub fn arrange(store: &Store, deployment: &Deployment) -> Result<()> {
    let (manifest, versions) = (&deployment.manifest, &deployment.versions);
    let own = manifest.version_name(versions.current);
    if !store.appshot_path(&own).exists() {
        return Ok(());
    }
    if let Some(left) = versions.kept.last()
        && store.appshot_path(&manifest.app).exists()
    {
        store.rename_appshot(&manifest.app, &manifest.version_name(left.number))?;
    }
    store.rename_appshot(&own, &manifest.app)
}

/// Removes whatever there is of versions that are not kept.
pub fn tidy(store: &Store, deployment: &Deployment) -> Result<()> {
    let (manifest, versions) = (&deployment.manifest, &deployment.versions);
    let records = store.list()?.into_iter().map(|app| app.name);
    let appshots = store.appshots()?.into_iter().map(|entry| entry.name);
    for name in records.chain(appshots) {
        let number = manifest.version_named(&name);
        if number.is_some_and(|number| !versions.kept.iter().any(|kept| kept.number == number)) {
            clear(store, &name)?;
        }
    }
    archives::tidy(store, &manifest.app, Some(versions))
}

/// Ends the app of this name, and forgets it with its appshot and its log.
pub fn clear(store: &Store, name: &str) -> Result<()> {
    match store.find(name)? {
        Some(app) if app.alive() => ending::kill_all(store, &app)?,
        // With what its supervisor has to put away.
        Some(app) => ending::settle(store, &app, app.exit)?,
        None => {}
    }
    // Whoever takes a snapshot of it is done first.
    let _busy = store.wait_lock(name)?;
    store.remove(name)?;
    store.remove_log(name)?;
    match store.remove_appshot(name) {
        Err(error) if error.kind != Kind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// How long one that was told to take over may take for it, beyond what agents allow.
const PATIENCE: Duration = Duration::from_secs(120);
/// When it is looked again for what a killed daemon has left.
const LATER: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(4), Duration::from_secs(25)];
/// Lines of a log that are told of one that did not come up.
const LINES: usize = 5;
/// And of its end these are looked at.
const TOLD_BYTES_MAX: u64 = 64 << 10;

impl Node {
    /// Has a new version of a deployed app serve instead of the one that does. On a failure
    /// that one goes on.
    pub async fn update(&self, held: Held, manifest: Manifest, caller: &Caller) -> Result<Status> {
        let asked = caller.clone();
        self.change(held, Outcome::Updated, caller, |node, deployment| {
            node.update_now(deployment, manifest, asked)
        })
        .await
    }

    async fn update_now(self, deployment: Deployment, manifest: Manifest, caller: Caller) -> Result<()> {
        let state = self.status(&deployment.manifest.app)?.borrow().state;
        refuse(&deployment, &manifest, state)?;
        if let Some(because) = self.listens_there(&manifest, &caller) {
            return Err(cannot_update(&manifest.app, because).fix("choose another address, or remove that app"));
        }
        self.proxy.free(&manifest, &|app| self.called(app, &caller))?;
        let to = Version {
            number: deployment.versions.last + 1,
            manifest,
            deployed_unix_ms: now_unix_ms()?,
            memory_bytes: None,
        };
        let name = to.manifest.version_name(to.number);
        let (app, number) = (to.manifest.app.clone(), to.number);
        let made = self.make_version(&to, &name).await;
        let made = made.map_err(|error| said(&self.store, &name, error));
        let done = match made.and_then(|()| self.has_all(&to)) {
            Ok(()) => self.switch_to(to).await,
            Err(error) => Err(error),
        };
        if done.is_err() {
            let store = self.store.clone();
            let cleared = on_own_thread(move || {
                clear(&store, &name)?;
                archives::forget(&store, &app, number)
            });
            cleared.await?;
        }
        done
    }

    /// What a daemon that was killed had just started for an update has its record only
    /// some time after the next one has looked.
    pub fn tidy_later(&self, app: String) {
        let node = self.clone();
        tokio::spawn(async move {
            for pause in LATER {
                tokio::time::sleep(pause).await;
                let Ok(changing) = node.changing(&app) else { return };
                // An update removes what is in its way.
                let Ok(_busy) = changing.try_lock_owned() else { continue };
                let Ok(deployment) = node.read(&app) else { return };
                let store = node.store.clone();
                if let Err(error) = on_own_thread(move || tidy(&store, &deployment)).await {
                    tracing::warn!(app, %error, "cannot remove what is left of a version");
                }
            }
        });
    }

    /// Has the version serve again that did before.
    pub async fn rollback(&self, held: Held, caller: &Caller) -> Result<Status> {
        let asked = caller.clone();
        self.change(held, Outcome::RolledBack, caller, |node, deployment| {
            node.rollback_now(deployment, asked)
        })
        .await
    }

    async fn rollback_now(self, deployment: Deployment, caller: Caller) -> Result<()> {
        let Some(to) = deployment.versions.kept.last().cloned() else {
            return Err(cannot_update(
                &deployment.manifest.app,
                "no other version of it is kept",
            ));
        };
        caller
            .may_turn_to(&to.manifest)
            .map_err(|error| error.state("the version that serves goes on"))?;
        verify(&self.store, to.manifest.version_name(to.number)).await?;
        self.has_all(&to)
            .map_err(|error| error.state("the version that serves goes on"))?;
        self.switch_to(to).await
    }

    /// Whether there is what its instances are told and find.
    fn has_all(&self, to: &Version) -> Result<()> {
        self.secrets_of(&to.manifest)?;
        self.addresses.suffice(&to.manifest)?;
        to.manifest.binds_of(&to.manifest.app, to.number).map(drop)
    }

    /// One after the other, and to its end whoever asked for it.
    async fn change<F: Future<Output = Result<()>> + Send + 'static>(
        &self,
        held: Held,
        outcome: Outcome,
        caller: &Caller,
        change: impl FnOnce(Node, Deployment) -> F,
    ) -> Result<Status> {
        let (node, app, by) = (self.clone(), held.deployment.manifest.app.clone(), caller.clone());
        let (name, provider) = (app.clone(), held.deployment.manifest.provider.clone());
        let change = change(self.clone(), held.deployment.clone());
        let done = tokio::spawn(async move {
            let done = change.await;
            drop(held);
            let outcome = if done.is_ok() { outcome } else { Outcome::Failed };
            node.metrics.updated(&name, &provider, outcome);
            let version = node.status(&name).map(|status| status.borrow().version).ok();
            let error = done.as_ref().err().map(ToString::to_string);
            let told = json!({ "by": by.name(), "version": version, "error": error });
            let kind = if done.is_ok() { outcome.name() } else { "change-failed" };
            node.events.tell(kind, &name, &provider, told);
            if let Err(error) = &done {
                tracing::warn!(app = name, %error, "no other version");
            }
            done
        });
        done.await.or_fail(|| format!("cannot update {app}"))??;
        Ok(self.status(&app)?.borrow().clone())
    }

    /// Starts a version beside the one that serves, until it has an appshot of it.
    async fn make_version(&self, to: &Version, name: &str) -> Result<()> {
        let app = &to.manifest.app;
        let (store, stale) = (self.store.clone(), name.to_owned());
        let (of, number) = (app.clone(), to.number);
        on_own_thread(move || {
            clear(&store, &stale)?;
            archives::forget(&store, &of, number)
        })
        .await?;
        let _charge = match self.room(app, name, budget::UNKNOWN_BYTES)? {
            Room::There(charge) => charge,
            Room::Waits(why) => {
                self.budget.give_up(name);
                return Err(Error::new(
                    Kind::Unavailable,
                    format!("cannot start version {} of {app}", to.number),
                )
                .because(format!("it would have to wait {why}"))
                .fix("try again in a moment: apps that are idle were asked to sleep"));
            }
        };
        if let Some(appshot) = to.manifest.start.appshot.clone() {
            let (store, name, manifest) = (self.store.clone(), name.to_owned(), to.manifest.clone());
            return on_own_thread(move || copy(&store, &appshot, &name, &manifest)).await;
        }
        let (addresses, called) = (self.addresses.clone(), name.to_owned());
        let network = match to.manifest.network.address {
            true => Some(on_own_thread(move || addresses.make(&called, None)).await?),
            false => None,
        };
        let options = RunOptions {
            name: name.to_owned(),
            network: if network.is_some() { Network::Host } else { Network::Own },
            secrets: self.secrets_of(&to.manifest)?,
            ..self.run_options(&to.manifest, to.number, network.as_ref()).await?
        };
        let start = Start::run(self.store.clone(), options);
        let start = start
            .hooked(to.manifest.hooks.clone())?
            .caused(Some(Cause::Update.name().to_owned()))?;
        let began = Instant::now();
        let started = on_own_thread(move || detach::spawn(start)).await?;
        probe::up(&started.app, &to.manifest, began).await?;
        // It serves in another network.
        let tcp = match network {
            Some(_) => TcpPolicy::CloseIdle {
                accepted: false,
                made: true,
            },
            None => TcpPolicy::Refuse,
        };
        let request = json!({ "target": name, "replace": true, "tcp": tcp });
        loop {
            let taken: Result<SnapshotReport> = self.snapd.post_async("/v1/snapshots", &request, &Place::here()).await;
            match taken {
                Err(error) if error.kind == Kind::Refused && network.is_some() && began.elapsed() < COMES_UP => {
                    tracing::debug!(app, %error, "not yet");
                    tokio::time::sleep(COMES_UP_YET).await;
                }
                taken => break taken.map(drop)?,
            }
        }
        verify(&self.store, name.to_owned()).await
    }

    async fn switch_to(&self, to: Version) -> Result<()> {
        let app = to.manifest.app.clone();
        let (reply, answer) = oneshot::channel();
        let switch = Switch {
            to,
            since: Instant::now(),
            reply,
        };
        self.switches(&app)?
            .try_send(switch)
            .map_err(|_| cannot_update(&app, "it is being removed"))?;
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(done)) => done,
            Ok(Err(_)) => Err(cannot_update(
                &app,
                "it was given up: something else was to be done first",
            )),
            Err(_) => Err(cannot_update(&app, "it does not come to it")),
        }
    }
}

pub fn cannot_update(app: &str, because: impl std::fmt::Display) -> Error {
    Error::new(Kind::Conflict, format!("cannot have another version of {app}"))
        .because(because)
        .state("the version that serves goes on")
}

/// Every byte of it against its digest.
async fn verify(store: &Store, name: String) -> Result<()> {
    let store = store.clone();
    on_own_thread(move || {
        let path = store.appshot_path(&name);
        match path.is_file() {
            // Packed: it is verified as it is unpacked.
            true => store.unpack_stored(&path).map(drop),
            false => Appshot::open(&path).map(drop),
        }
    })
    .await
}

/// An appshot of the store, or anywhere, under this name: all of it is verified, and it listens
/// where this manifest says.
pub fn copy(store: &Store, appshot: &str, name: &str, manifest: &Manifest) -> Result<()> {
    let from = store.resolve_appshot(appshot)?;
    let failed = |mut error: Error| {
        error.what = format!("cannot begin with the appshot {appshot}: {}", error.what);
        error
    };
    let _busy = store.wait_lock(name)?;
    let dest = store.new_appshot_path(name, true)?;
    if !from.is_file() {
        let shot = Appshot::open_unverified_memory(&from).map_err(failed)?;
        listens(manifest, &shot)?;
        libsnap::image::flatten(&from, &dest).map_err(failed)?;
        return store.settle(name);
    }
    libsnap::image::unpack(&from, &dest).map_err(failed)?;
    let sound = Appshot::open_unverified_memory(&dest).and_then(|shot| listens(manifest, &shot));
    match sound {
        Ok(()) => store.settle(name),
        Err(error) => {
            std::fs::remove_dir_all(&dest).or_fail(|| format!("cannot remove {}", dest.display()))?;
            Err(failed(error))
        }
    }
}

/// Refuses an appshot of an app that does not listen where its manifest says.
pub fn listens(manifest: &Manifest, shot: &Appshot) -> Result<()> {
    let names: Vec<&[u8]> = held::places(&shot.manifest).collect();
    match sockets::first_missing(&names, &manifest.listen, manifest.network.is_own()) {
        None => Ok(()),
        Some(first) => Err(
            Error::new(Kind::Usage, format!("app {} does not come up", manifest.app))
                .because(format!("the app of its appshot does not listen on {first}"))
                .fix("name the listeners that it has: `appshot inspect` shows them"),
        ),
    }
}

/// Of a log that may be of any length.
fn end_of(path: &Path) -> std::io::Result<Vec<u8>> {
    let log = File::open(path)?;
    let from = log.metadata()?.len().saturating_sub(TOLD_BYTES_MAX);
    let mut end = vec![0; TOLD_BYTES_MAX as usize];
    let read = log.read_at(&mut end, from)?;
    end.truncate(read);
    Ok(end)
}

/// With what it has said itself, as its log goes.
fn said(store: &Store, name: &str, error: Error) -> Error {
    let log = end_of(&store.log_path(name)).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().rev().take(LINES).collect();
    let mut error = error.state("the version that serves goes on, nothing of the new one is left");
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    // The log goes, too.
    error.fix = Some(match lines.is_empty() {
        true => "it has written nothing".to_owned(),
        false => format!("it has written: {}", lines.join("\n           ")),
    });
    error
}

/// What cannot be the next version of this one.
fn refuse(deployment: &Deployment, manifest: &Manifest, state: State) -> Result<()> {
    let old = &deployment.manifest;
    let refused = |because: String, fix: &str| Err(cannot_update(&old.app, because).fix(fix));
    if manifest.app != old.app {
        return refused(format!("the manifest is that of {}", manifest.app), "name the same app");
    }
    if manifest.provider != old.provider {
        return refused(format!("it is of provider {}", old.provider), "name the same provider");
    }
    if let Some(gone) = old.listen.iter().find(|listen| !manifest.listen.contains(listen)) {
        return refused(
            format!("the new version does not listen on {gone}: who comes there would be refused"),
            "keep all listeners; others may be added",
        );
    }
    if let Some(cannot) = manifest.listen.iter().find(|listen| !can_be_shared(listen)) {
        return refused(
            format!("{cannot} cannot be handed over: two versions cannot be bound to it at once"),
            "listen on a port of all addresses, or of 127.0.0.1 or ::1; else remove the app and deploy it again",
        );
    }
    match state {
        State::Starting | State::Failed | State::Removing => refused(
            format!("it is {}", state.name()),
            "remove it and deploy it again, or wait",
        ),
        _ => Ok(()),
    }
}

/// Whether it is also there in a network namespace that has a loopback device only.
fn can_be_shared(listen: &Listen) -> bool {
    let everywhere = |tcp: SocketAddr| tcp.ip().is_unspecified() || tcp.ip().is_loopback();
    listen.tcp.is_some_and(everywhere)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Deployment {
        // As it was written before there were versions.
        let old = r#"{"manifest": {"app": "web", "provider": "acme", "start": {"command": ["web"]},
            "listen": [{"tcp": "0.0.0.0:80"}]}, "deployed_unix_ms": 1}"#;
        serde_json::from_str(old).unwrap()
    }

    fn numbers(deployment: &Deployment) -> (u32, Vec<u32>) {
        let kept = deployment.versions.kept.iter().map(|kept| kept.number);
        (deployment.versions.current, kept.collect())
    }

    #[test]
    fn they_are_kept_in_the_order_in_which_they_served() {
        let mut now = deployment();
        assert_eq!(numbers(&now), (1, vec![]));
        for number in 2..=4 {
            let to = Version {
                number,
                manifest: now.manifest.clone(),
                deployed_unix_ms: number.into(),
                memory_bytes: None,
            };
            now = now.turned_to(&to);
        }
        assert_eq!(numbers(&now), (4, vec![2, 3]), "two are kept");
        let back = now.turned_to(&now.versions.kept.last().unwrap().clone());
        assert_eq!((numbers(&back), back.deployed_unix_ms), ((3, vec![2, 4]), 3));
        let forth = back.turned_to(&back.versions.kept.last().unwrap().clone());
        assert_eq!(numbers(&forth), (4, vec![2, 3]));
        assert_eq!(forth.versions.last, 4);
        let text = serde_json::to_string(&forth).unwrap();
        let read: Deployment = serde_json::from_str(&text).unwrap();
        assert_eq!(numbers(&read), numbers(&forth));
    }

    #[test]
    fn what_cannot_be_handed_over_is_named() {
        let old = deployment();
        for (change, told) in [
            ("0.0.0.0:81", "does not listen on 0.0.0.0:80"),
            ("10.0.0.1:80", "does not listen on 0.0.0.0:80"),
        ] {
            let mut manifest = old.manifest.clone();
            manifest.listen[0].tcp = change.parse().ok();
            let error = refuse(&old, &manifest, State::Running).unwrap_err();
            assert!(error.to_string().contains(told), "{error}");
        }
        let mut manifest = old.manifest.clone();
        manifest.priority = 1;
        assert!(refuse(&old, &manifest, State::Running).is_ok());
        assert!(refuse(&old, &manifest, State::Failed).is_err());
    }
}
