//! The proxy mode of the local dispatcher: one HTTP entry for all apps of the node.
//!
//! ```text
//!   client ──HTTP/1, HTTP/2──> --http ADDRESS:PORT
//!                                │  routes: host and path -> an app
//!                                │  queue:  no more at once than its instances may carry
//!                                v
//!                  connection to the app's own listening socket ──> whichever instance accepts
//!                                │
//!                                └ nobody runs: the bell rings, as for any client
//! ```
//!
//! The address behind a route is the app's listening socket, which this daemon holds. All
//! instances of an app share it, so the kernel gives each connection to one that has time to
//! accept: one address serves them all, and the least busy gets most. There is no list of
//! instances here to keep up to date, and waking needs no word of its own: to connect is to
//! wake. A thousand who come at once ring one bell.
//!
//! It runs on threads of its own, one a processor, each with its part of the clients, so that
//! traffic keeps nobody waiting who decides about apps. HTTP itself is hyper's, both ways: nothing here reads or writes a message.

mod body;
mod forward;
mod headers;
mod queue;
mod receipt;
mod replies;
mod routes;
pub mod rules;
pub mod serve;
pub mod tls;
pub mod traffic;
mod tunnel;
mod upstream;
mod workers;

use crate::manifest::{INSTANCES_MAX, Manifest};
use crate::status::Status;
use libsnap::error::{Error, Kind, Result};
use nodekit::traces::Place;
use queue::Gate;
use routes::Table;
use rules::{Quiet, Timeouts, Waiting};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;
use tokio::sync::watch;
use traffic::{Families, Told, Traffic};
use upstream::Upstream;

/// An unused connection is kept for this part of the time after which the app sleeps.
const KEPT_PART: u32 = 4;
const KEPT_MAX: Duration = Duration::from_secs(2);

/// All that is routed. Clones are the same.
#[derive(Clone, Debug)]
pub struct Proxy(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    table: RwLock<Table<Target>>,
    apps: Mutex<BTreeMap<String, Arc<App>>>,
    traffic: Families,
    /// Somebody can come.
    is_open: AtomicBool,
}

/// Where a route leads to.
#[derive(Clone, Debug)]
struct Target {
    app: Arc<App>,
    upstream: Arc<Upstream>,
}

/// An app, as requests see it.
#[derive(Debug)]
struct App {
    name: String,
    provider: String,
    status: watch::Receiver<Status>,
    quiet: Vec<Quiet>,
    waiting: Waiting,
    timeouts: Timeouts,
    gate: Arc<Gate>,
    traffic: Traffic,
    upstreams: Vec<Arc<Upstream>>,
    /// How long its answers take decides about its instances.
    timed: bool,
    /// Its owner has it fall asleep: who comes waits until it does.
    resting: AtomicBool,
    /// Spans of requests that wait for it, in the order in which they came.
    asking: Mutex<Vec<Place>>,
}

/// A request waits for the app as long as this lives.
struct Asking<'a> {
    app: &'a App,
    place: Place,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if self.place.is_known() {
            self.app.asking().retain(|place| *place != self.place);
        }
    }
}

impl App {
    fn asking(&self) -> MutexGuard<'_, Vec<Place>> {
        self.asking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn asks(&self, place: Place) -> Asking<'_> {
        if place.is_known() {
            self.asking().push(place.clone());
        }
        Asking { app: self, place }
    }
}

impl Proxy {
    pub fn new(traffic: Families) -> Proxy {
        Proxy(Arc::new(Inner {
            table: RwLock::default(),
            apps: Mutex::default(),
            traffic,
            is_open: AtomicBool::new(false),
        }))
    }

    fn apps(&self) -> MutexGuard<'_, BTreeMap<String, Arc<App>>> {
        self.0.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> RwLockReadGuard<'_, Table<Target>> {
        self.0.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Table<Target>)) {
        change(&mut self.0.table.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// There are sockets at which requests come.
    pub fn open(&self) {
        self.0.is_open.store(true, Ordering::Relaxed);
    }

    /// Refuses routes that another app has, or that nobody could come by, and hosts of which
    /// another provider has any. What that one is called depends on who asks.
    pub fn free(&self, manifest: &Manifest, called: &dyn Fn(&str) -> String) -> Result<()> {
        if !manifest.route.is_empty() && !self.0.is_open.load(Ordering::Relaxed) {
            return Err(Error::new(Kind::Unavailable, format!("cannot deploy {}", manifest.app))
                .because("it has routes, and this node has no HTTP entry")
                .fix("start edgepointd with --http ADDRESS:PORT, or leave [[route]] out")
                .state("nothing was changed"));
        }
        let table = self.table();
        for route in &manifest.route {
            let (host, path) = (&route.host, route.path.as_str());
            let theirs = |has: &&Target| has.app.provider != manifest.provider && has.app.name != manifest.app;
            if let Some(has) = table.around(host).find(theirs) {
                return Err(Error::new(Kind::Conflict, format!("cannot deploy {}", manifest.app))
                    .because(format!(
                        "{} has routes of {host}, or of hosts among which it is",
                        called(&has.app.name)
                    ))
                    .fix("choose another host: what a host is for is one provider's")
                    .state("nothing was changed"));
            }
            let Some(has) = table.exact(host, &route.path) else {
                continue;
            };
            if has.app.name != manifest.app {
                return Err(Error::new(Kind::Conflict, format!("cannot deploy {}", manifest.app))
                    .because(format!("{} has the route {host}{path}", called(&has.app.name)))
                    .fix("choose another host or path, or remove that app")
                    .state("nothing was changed"));
            }
        }
        Ok(())
    }

    /// From now on its routes lead to it.
    pub fn deploy(&self, manifest: &Manifest, status: watch::Receiver<Status>) {
        let traffic = match manifest.route.is_empty() {
            true => Traffic::default(),
            false => self.0.traffic.of(&manifest.app, &manifest.provider),
        };
        self.set(manifest, status, traffic);
    }

    /// The same app by other rules. Requests that wait by the old ones go on to it.
    pub fn replace(&self, manifest: &Manifest, status: watch::Receiver<Status>) {
        let Some(before) = self.apps().remove(&manifest.app) else {
            return;
        };
        self.change(|table| table.retain(|target| target.app.name != manifest.app));
        self.set(manifest, status, before.traffic.clone());
        before.gate.instances(INSTANCES_MAX);
    }

    fn set(&self, manifest: &Manifest, status: watch::Receiver<Status>, traffic: Traffic) {
        let capacity = &manifest.capacity;
        let kept = (manifest.idle.timeout.0 / KEPT_PART).min(KEPT_MAX);
        let mut upstreams = HashMap::new();
        let mut targets = Vec::new();
        for route in &manifest.route {
            // The manifest was looked through before.
            let Some(listen) = route.target(&manifest.listen) else {
                continue;
            };
            let made = || Upstream::new(listen, route.protocol, kept, capacity.requests, traffic.kept.clone());
            let upstream = upstreams
                .entry((listen.to_string(), route.protocol))
                .or_insert_with(made);
            targets.push((route, upstream.clone()));
        }
        let app = Arc::new(App {
            name: manifest.app.clone(),
            provider: manifest.provider.clone(),
            status,
            quiet: manifest.quiet.clone(),
            waiting: manifest.waiting.clone(),
            timeouts: manifest.timeouts.clone(),
            gate: Gate::new(
                capacity.requests,
                capacity.queue,
                capacity.queue_timeout.0,
                traffic.clone(),
            ),
            traffic,
            upstreams: upstreams.values().cloned().collect(),
            timed: capacity.response_time.is_some(),
            resting: AtomicBool::new(false),
            asking: Mutex::default(),
        });
        if !targets.is_empty() {
            self.change(|table| {
                for (route, upstream) in targets {
                    let app = app.clone();
                    table.insert(&route.host, &route.path, Target { app, upstream });
                }
            });
        }
        self.apps().insert(manifest.app.clone(), app);
    }

    pub fn forget(&self, app: &str) {
        let Some(gone) = self.apps().remove(app) else { return };
        if !gone.upstreams.is_empty() {
            self.change(|table| table.retain(|target| target.app.name != app));
        }
        // It may have had routes before.
        self.0.traffic.forget(app, &gone.provider);
    }

    /// What this app is asked for.
    pub fn traffic(&self, app: &str) -> Traffic {
        self.apps().get(app).map(|app| app.traffic.clone()).unwrap_or_default()
    }

    /// To which request a wake of this app belongs.
    pub fn asked_first(&self, app: &str) -> Place {
        let app = self.apps().get(app).cloned();
        app.and_then(|app| app.asking().first().cloned()).unwrap_or_default()
    }

    /// And a further instance.
    pub fn asked_last(&self, app: &str) -> Place {
        let app = self.apps().get(app).cloned();
        app.and_then(|app| app.asking().last().cloned()).unwrap_or_default()
    }

    /// So many instances of the app run.
    pub fn instances(&self, app: &str, count: usize) {
        if let Some(app) = self.apps().get(app)
            && app.gate.instances(count)
        {
            app.upstreams.iter().for_each(|upstream| upstream.release());
        }
    }

    /// The app is about to fall asleep: connections to it that nobody uses just now are
    /// closed. Where its owner wants that, none is made meanwhile.
    pub fn release(&self, app: &str, ordered: bool) {
        if let Some(app) = self.apps().get(app) {
            app.resting.store(ordered, Ordering::Relaxed);
            app.upstreams.iter().for_each(|upstream| upstream.release());
        }
    }

    /// Of every app: one that has no routes any more goes on with what it has counted when it
    /// has some again, and who bills for it is not to take that for new.
    pub fn told(&self) -> Vec<Told> {
        let apps = self.apps();
        apps.values().map(|app| app.traffic.tell(&app.name)).collect()
    }
}
