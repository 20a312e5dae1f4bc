//! The apps that are deployed on this node: their agents, and their files.

use crate::agent::{Agent, Order};
use crate::manifest::Manifest;
use crate::metrics::Metrics;
use crate::proxy::Proxy;
use crate::status::{Counts, State, Status};
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::store::{self, Store, closest, now_unix_ms};
use nodekit::args::Dirs;
use nodekit::client::Client;
use nodekit::keeper::Keeper;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Orders that wait for an agent, at most.
const ORDERS: usize = 16;

/// What is kept of a deployed app, in a file of its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    pub manifest: Manifest,
    pub deployed_unix_ms: u64,
    /// Its owner wants it to sleep.
    #[serde(default)]
    pub suspended: bool,
}

/// Clones are the same node.
#[derive(Clone, Debug)]
pub struct Node {
    pub store: Store,
    pub snapd: Client,
    pub restored: Client,
    /// Has the sockets of the apps when this daemon is not there.
    pub keeper: Keeper,
    pub metrics: Arc<Metrics>,
    pub proxy: Proxy,
    apps: Arc<Mutex<BTreeMap<String, Handle>>>,
}

/// An agent, from outside.
#[derive(Clone, Debug)]
struct Handle {
    manifest: Manifest,
    status: watch::Receiver<Status>,
    orders: mpsc::Sender<Order>,
}

const SUFFIX: &str = ".json";

impl Node {
    pub fn new(store: Store, dirs: &Dirs) -> Result<Node> {
        let metrics: Arc<Metrics> = Arc::default();
        let node = Node {
            proxy: Proxy::new(metrics.traffic.clone()),
            store,
            snapd: Client::new(dirs.socket(None, "snapd")),
            restored: Client::new(dirs.socket(None, "restored")),
            keeper: Keeper::new(dirs.run_dir.join("edgepoint-keeper.sock")),
            metrics,
            apps: Arc::default(),
        };
        store::directory(&node.directory(), 0o700)?;
        Ok(node)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self) -> PathBuf {
        self.store.data_dir().join("deployed")
    }

    fn path(&self, app: &str) -> PathBuf {
        self.directory().join(format!("{app}{SUFFIX}"))
    }

    /// Begins with what was deployed before. Within a runtime.
    pub fn take_up(&self) -> Result<()> {
        let mut kept = self.keeper.list().unwrap_or_else(|error| {
            tracing::error!(%error, "sockets are made anew");
            BTreeMap::new()
        });
        for name in store::stems(&self.directory(), SUFFIX)? {
            match store::read_json::<Deployment>(&self.path(&name)) {
                Ok(Some(deployment)) => drop(self.begin(deployment, kept.remove(&name).unwrap_or_default())),
                Ok(None) => {}
                Err(error) => tracing::error!(app = name, %error, "is not taken up"),
            }
        }
        // Of apps whose removal was not finished.
        kept.keys().try_for_each(|name| self.keeper.forget(name))
    }

    /// Writes down what is deployed, to stay.
    pub fn save(&self, deployment: &Deployment) -> Result<()> {
        let path = self.path(&deployment.manifest.app);
        store::write_json(&path, deployment)?;
        let synced = std::fs::File::open(&path).and_then(|file| file.sync_all());
        let synced = synced.and_then(|()| store::sync_parent(&path));
        synced.or_fail(|| format!("cannot write {}", path.display()))
    }

    pub fn forget(&self, app: &str) -> Result<()> {
        store::remove_file(&self.path(app))?;
        self.lock().remove(app);
        self.proxy.forget(app);
        Ok(())
    }

    /// Deploys an app; nothing is changed where the same one is deployed.
    pub fn deploy(&self, manifest: Manifest) -> Result<watch::Receiver<Status>> {
        let taken = |because: &str| {
            Error::new(Kind::Conflict, format!("cannot deploy {}", manifest.app))
                .because(because)
                .state("nothing was changed")
        };
        if let Some(handle) = self.lock().get(&manifest.app) {
            return match handle.manifest == manifest {
                true => Ok(handle.status.clone()),
                false => Err(taken("an app of this name is deployed with another manifest")
                    .fix(format!("remove it first: `appshot remove {}`", manifest.app))),
            };
        }
        if self.store.find(&manifest.app)?.is_some() || self.store.appshot_path(&manifest.app).exists() {
            return Err(
                taken("an app or an appshot of this name is there, which was not deployed").fix(format!(
                    "name it otherwise, or remove that one: `appshot rm {}`",
                    manifest.app
                )),
            );
        }
        self.proxy.free(&manifest)?;
        let deployment = Deployment {
            manifest,
            deployed_unix_ms: now_unix_ms()?,
            suspended: false,
        };
        self.save(&deployment)?;
        Ok(self.begin(deployment, Vec::new()))
    }

    fn begin(&self, deployment: Deployment, sockets: Vec<OwnedFd>) -> watch::Receiver<Status> {
        let manifest = deployment.manifest.clone();
        let (status, told) = watch::channel(Status {
            app: manifest.app.clone(),
            provider: manifest.provider.clone(),
            state: State::Starting,
            since_unix_ms: now_unix_ms().unwrap_or_default(),
            why: None,
            listen: manifest.listen.iter().map(ToString::to_string).collect(),
            root: None,
            counts: Counts::default(),
            last: None,
        });
        self.proxy.deploy(&manifest, told.clone());
        let (orders, ordered) = mpsc::channel(ORDERS);
        let handle = Handle {
            manifest: manifest.clone(),
            status: told.clone(),
            orders,
        };
        self.lock().insert(manifest.app, handle);
        tokio::spawn(Agent::new(self.clone(), deployment, sockets, (status, ordered)).live());
        told
    }

    pub fn all(&self) -> Vec<Status> {
        self.lock()
            .values()
            .map(|handle| handle.status.borrow().clone())
            .collect()
    }

    fn handle(&self, app: &str) -> Result<Handle> {
        let apps = self.lock();
        apps.get(app).cloned().ok_or_else(|| {
            let error = Error::new(Kind::NotFound, format!("no app {app} is deployed"));
            match closest(app, apps.keys().map(String::as_str)) {
                Some(near) => error.fix(format!("did you mean {near}?")),
                None => error.fix("`appshot apps` lists those that are"),
            }
        })
    }

    pub fn status(&self, app: &str) -> Result<watch::Receiver<Status>> {
        Ok(self.handle(app)?.status)
    }

    /// Gives an order and waits until the app is in the state that it leads to.
    pub async fn order(&self, app: &str, order: Order) -> Result<Status> {
        let handle = self.handle(app)?;
        let told = || Error::new(Kind::Conflict, format!("app {app} is being removed"));
        handle.orders.send(order).await.map_err(|_| told())?;
        let mut status = handle.status;
        let reached = |status: &Status| match order {
            Order::Suspend => [State::Suspended, State::Failed].contains(&status.state),
            Order::Resume => !matches!(status.state, State::Suspended | State::Failed),
            Order::Remove => false,
        };
        let waited = tokio::time::timeout(ORDER_PATIENCE, status.wait_for(reached)).await;
        let in_time = waited.is_ok();
        drop(waited);
        let now = status.borrow().clone();
        match in_time && (order, now.state) != (Order::Suspend, State::Failed) {
            // Or it is gone.
            true => Ok(now),
            false => {
                let error = Error::failed(format!("app {app} is {} still", now.state.name()));
                Err(match now.why {
                    Some(why) => error.because(why),
                    None => error,
                })
            }
        }
    }
}

/// What is ordered is done within this, or told to fail.
const ORDER_PATIENCE: Duration = Duration::from_secs(60);
