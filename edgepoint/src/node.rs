//! The apps that are deployed on this node: their agents, and their files.

use crate::addresses::{Addresses, Network};
use crate::agent::{Agent, Order};
use crate::api::answer::{Condition, Halt};
use crate::budget::{self, Budget, Charge};
use crate::caller::Caller;
use crate::demand::{Demand, Looks};
use crate::events::Events;
use crate::manifest::{Instances, Manifest};
use crate::metrics::Metrics;
use crate::proxy::{self, Proxy};
use crate::spares::Spares;
use crate::status::{Counts, State, Status};
use crate::versions::{Switch, Versions};
use crate::why::{Told, Why};
use control::{Control, Kept, Lasting, Quota};
use libsnap::error::{Error, Kind, Result};
use libsnap::store::{App, Store, closest, now_unix_ms};
use libsnap::target::{Bind, HeldDescriptor, Identity, RunOptions};
use nodekit::args::Dirs;
use nodekit::client::Client;
use nodekit::keeper::Keeper;
use nodekit::reply::on_own_thread;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Orders that wait for an agent, at most.
const ORDERS: usize = 16;

/// What is written down of a deployed app.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deployment {
    pub manifest: Manifest,
    /// When the version that serves was.
    pub deployed_unix_ms: u64,
    #[serde(default)]
    pub versions: Versions,
    /// Its owner wants it to sleep.
    #[serde(default)]
    pub suspended: bool,
    /// What it had when it fell asleep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// How many instances its manifest asks for, where its owner has it have others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declared: Option<Instances>,
    /// Of its first instance, where that has one for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
}

impl Deployment {
    /// The manifest as it was deployed.
    pub fn declared(&self) -> Manifest {
        let mut manifest = self.manifest.clone();
        manifest.instances = self.declared.unwrap_or(manifest.instances);
        manifest
    }

    pub fn scale(&mut self, bounds: Instances) {
        let declared = self.declared().instances;
        self.manifest.instances = bounds;
        self.declared = (declared != bounds).then_some(declared);
    }

    /// Tells whether its owner has decided something about it meanwhile.
    pub fn etag(&self) -> String {
        let decided = serde_json::json!([self.manifest, self.versions.current, self.suspended]);
        blake3::hash(decided.to_string().as_bytes()).to_hex()[..16].to_owned()
    }
}

/// An app that nobody else changes meanwhile.
#[derive(Debug)]
pub struct Held {
    pub deployment: Deployment,
    _changing: tokio::sync::OwnedMutexGuard<()>,
}

/// Clones are the same node.
#[derive(Clone, Debug)]
pub struct Node {
    pub store: Store,
    pub control: Control,
    pub events: Events,
    pub snapd: Client,
    pub restored: Client,
    /// Has the sockets of the apps when this daemon is not there.
    pub keeper: Keeper,
    pub metrics: Arc<Metrics>,
    pub proxy: Proxy,
    pub budget: Arc<Budget>,
    pub looks: Arc<Looks>,
    /// What `restored` keeps for who may come: it is charged, too, and given up first.
    pub spares: Arc<Spares>,
    /// That instances may have for themselves.
    pub addresses: Arc<Addresses>,
    apps: Arc<Mutex<BTreeMap<String, Handle>>>,
    /// Held from the first look at what is deployed until the app is there: names, addresses,
    /// routes and quotas are about others, too.
    deploying: Arc<Mutex<()>>,
    /// Told when a quota is another one.
    pub limited: Arc<tokio::sync::Notify>,
    /// Of providers that have any, as they are written down.
    quotas: Arc<Mutex<BTreeMap<String, Quota>>>,
}

/// An agent, from outside.
#[derive(Clone, Debug)]
pub struct Handle {
    pub manifest: Manifest,
    status: watch::Receiver<Status>,
    orders: mpsc::Sender<Order>,
    switches: mpsc::Sender<Switch>,
    /// Held while another version is made.
    changing: Arc<tokio::sync::Mutex<()>>,
    demand: Arc<Demand>,
    why: Arc<Why>,
}

/// Whether there is room for an instance.
#[derive(Debug)]
pub enum Room {
    There(Charge),
    /// It waits from now on: for what, and why there is none.
    Waits(String),
}

impl Node {
    /// How a version is run for the first time, with its archive unpacked; archives that no
    /// version names go. It may have a network of its own.
    pub async fn run_options(
        &self,
        manifest: &Manifest,
        version: u32,
        network: Option<&Network>,
    ) -> Result<RunOptions> {
        let (store, manifest) = (self.store.clone(), manifest.clone());
        let mut named = Some(BTreeSet::new());
        for kept in self.control.apps::<Deployment>()? {
            let Ok(deployment) = kept.value else {
                // What cannot be read may name any.
                named = None;
                break;
            };
            let versions = deployment.versions.kept.iter().map(|kept| &kept.manifest);
            for manifest in versions.chain([&deployment.manifest]) {
                let digest = manifest.start.digest.clone();
                let named = named.iter_mut();
                let digest = digest.map(|digest| (manifest.provider.clone(), digest));
                named.for_each(|named| named.extend(digest.clone()));
            }
        }
        let address = network.map(|network| network.address);
        let joins = network.map(|network| HeldDescriptor::own(&network.namespace));
        on_own_thread(move || {
            let files = crate::archives::ready(&store, &manifest, version)?;
            if let Some(named) = named {
                crate::archives::collect(&store, &named);
            }
            let options = manifest.run_options(version, files.as_deref(), address)?;
            Ok(RunOptions { joins, ..options })
        })
        .await
    }

    /// What one of its instances is told, which may have an address, and where it finds what.
    pub fn own_of(
        &self,
        manifest: &Manifest,
        (instance, address): (&str, Option<Ipv4Addr>),
        version: u32,
    ) -> Result<(Identity, Vec<Bind>)> {
        let identity = Identity {
            renewed: false,
            vars: manifest.vars_of((instance, address), version),
            secrets: self.secrets_of(manifest)?,
        };
        Ok((identity, manifest.binds_of(instance, version)?))
    }

    /// What an app's instances are told that is in no manifest.
    pub fn secrets_of(&self, manifest: &Manifest) -> Result<BTreeMap<String, String>> {
        let names = manifest.secrets.iter();
        names
            .map(|name| {
                let value = self.control.secret(&manifest.provider, name)?;
                Ok((name.clone(), value))
            })
            .collect()
    }

    /// All apps together may have so many bytes of memory.
    pub fn new(store: Store, dirs: &Dirs, memory: Option<u64>, addresses: Addresses) -> Result<Node> {
        let metrics: Arc<Metrics> = Arc::default();
        let control = Control::open(store.data_dir())?;
        crate::files::adopt(&store, &control)?;
        let mut node = Node {
            proxy: Proxy::new(metrics.traffic.clone()),
            events: Events::begin(store.data_dir())?,
            control,
            store,
            snapd: Client::new(dirs.socket(None, "snapd")),
            restored: Client::new(dirs.socket(None, "restored")),
            keeper: Keeper::new(dirs.run_dir.join("edgepoint-keeper.sock")),
            metrics,
            budget: Budget::new(0),
            looks: Arc::default(),
            spares: Arc::default(),
            addresses: Arc::new(addresses),
            apps: Arc::default(),
            deploying: Arc::default(),
            quotas: Arc::default(),
            limited: Arc::default(),
        };
        for provider in node.control.providers()? {
            node.limited(&provider.name, provider.quota);
        }
        let limit = memory.map_or_else(|| node.memory_by_default(), Ok)?;
        node.budget = Budget::new(limit);
        tracing::info!(limit, "bytes of memory for all apps together");
        Ok(node)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        self.apps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What apps have that run already is theirs.
    fn memory_by_default(&self) -> Result<u64> {
        let deployed: Vec<String> = self.control.owners()?.into_iter().map(|(app, _)| app).collect();
        let running = self.store.list()?.into_iter().filter(App::alive);
        let ours = running.filter(|app| {
            let first = app.name.rsplit_once('.').map_or("", |(first, _)| first);
            deployed.iter().any(|name| *name == app.name || name == first)
        });
        Ok(budget::by_default(ours.filter_map(|app| budget::of(&app)).sum()))
    }

    /// Begins with what was deployed before. Within a runtime.
    pub fn take_up(&self) -> Result<()> {
        crate::archives::begin(&self.store)?;
        let mut kept = self.keeper.list().unwrap_or_else(|error| {
            tracing::error!(%error, "sockets are made anew");
            BTreeMap::new()
        });
        let known = self.control.apps::<Deployment>()?;
        let names: Vec<String> = known.iter().map(|kept| kept.app.clone()).collect();
        for Kept { app, value, .. } in known {
            let sockets = kept.remove(&app).unwrap_or_default();
            self.store.pin(&app)?;
            match value {
                Ok(deployment) => {
                    let address = deployment.address;
                    address
                        .iter()
                        .for_each(|address| self.addresses.reserve(&app, *address));
                    self.begin(deployment, sockets);
                    self.tidy_later(app);
                }
                Err(error) => tracing::error!(app, %error, "is not taken up"),
            }
        }
        // Of apps whose removal was not finished, or that a killed daemon was about to deploy.
        for app in self.store.pinned()?.iter().filter(|app| !names.contains(app)) {
            self.store.unpin(app)?;
        }
        kept.retain(|name, _| name != proxy::serve::KEPT);
        kept.keys().try_for_each(|name| self.keeper.forget(name))
    }

    /// Writes down what is deployed, to stay.
    pub fn save(&self, deployment: &Deployment) -> Result<()> {
        let app = &deployment.manifest.app;
        self.store.pin(app)?;
        self.control.put_app(app, deployment, Lasting::Synced)
    }

    /// Writes down what may be lost: it helps to know it.
    pub fn note(&self, deployment: &Deployment) -> Result<()> {
        let app = &deployment.manifest.app;
        self.control.put_app(app, deployment, Lasting::Written)
    }

    pub fn forget(&self, app: &str) -> Result<()> {
        self.control.forget_app(app)?;
        self.store.unpin(app)?;
        self.lock().remove(app);
        self.addresses.forget(app);
        self.proxy.forget(app);
        Ok(())
    }

    /// Deploys an app; nothing is changed where the same one is deployed.
    pub fn deploy(&self, manifest: Manifest, caller: &Caller) -> Result<watch::Receiver<Status>> {
        let taken = |because: &str| {
            Error::new(Kind::Conflict, format!("cannot deploy {}", manifest.app))
                .because(because)
                .state("nothing was changed")
        };
        let _alone = self.deploying.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = self.lock().get(&manifest.app) {
            return match self.read(&manifest.app)?.declared() == manifest {
                true => Ok(handle.status.clone()),
                false if !caller.sees(&handle.manifest.provider) => {
                    Err(taken("the name is taken on this node").fix("name it otherwise"))
                }
                false => Err(taken("an app of this name is deployed with another manifest")
                    .fix("make it its next version: `appshot update`")),
            };
        }
        if let Some(other) = self
            .lock()
            .values()
            .map(|handle| &handle.manifest)
            .find(|other| other.has_name(&manifest.app) || manifest.has_name(&other.app))
        {
            return Err(taken(&format!(
                "instances or versions of it and of {} would have the same names",
                caller.calls(&other.app, &other.provider)
            ))
            .fix("name it otherwise"));
        }
        if self.store.find(&manifest.app)?.is_some() || self.store.appshot_path(&manifest.app).exists() {
            return Err(
                taken("an app or an appshot of this name is there, which was not deployed").fix(format!(
                    "name it otherwise, or remove that one: `appshot rm {}`",
                    manifest.app
                )),
            );
        }
        if let Some(name) = crate::files::named(&self.store)?
            .iter()
            .find(|name| manifest.has_name(name))
        {
            return Err(taken(
                "an app, an appshot or a log is there that is called as an instance or a version of it would be",
            )
            .fix(match caller {
                Caller::Root => format!("name it otherwise, or remove {name}, and its log of that name"),
                Caller::Provider(_) => "name it otherwise".to_owned(),
            }));
        }
        if let Some(because) = self.listens_there(&manifest, caller) {
            return Err(taken(&because).fix("choose another address, or remove that app"));
        }
        self.addresses.suffice(&manifest)?;
        self.proxy.free(&manifest, &|app| self.called(app, caller))?;
        self.may_have(&manifest)?;
        // What somebody has left who ran under this name.
        self.store.remove_log(&manifest.app)?;
        let deployment = Deployment {
            manifest,
            deployed_unix_ms: now_unix_ms()?,
            versions: Versions::default(),
            suspended: false,
            memory_bytes: None,
            declared: None,
            address: None,
        };
        if let Err(error) = self.save(&deployment) {
            let _ = self.store.unpin(&deployment.manifest.app);
            return Err(error);
        }
        let (app, provider) = (&deployment.manifest.app, &deployment.manifest.provider);
        let told = serde_json::json!({ "by": caller.name(), "version": deployment.versions.current });
        self.events.tell("deployed", app, provider, told);
        Ok(self.begin(deployment, Vec::new()))
    }

    /// Another app that listens where this one is to.
    pub fn listens_there(&self, manifest: &Manifest, caller: &Caller) -> Option<String> {
        self.lock().values().find_map(|handle| {
            let theirs = &handle.manifest.listen;
            let mut own = manifest.listen.iter().filter(|_| handle.manifest.app != manifest.app);
            let shared = own.find(|own| theirs.iter().any(|their| own.covers(their) || their.covers(own)))?;
            let other = caller.calls(&handle.manifest.app, &handle.manifest.provider);
            Some(format!("{other} listens on {shared}"))
        })
    }

    /// What a provider may have.
    pub fn quota(&self, provider: &str) -> Quota {
        let quotas = self.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        quotas.get(provider).copied().unwrap_or_default()
    }

    /// A provider may have this from now on.
    pub fn limited(&self, provider: &str, quota: Quota) {
        let mut quotas = self.quotas.lock().unwrap_or_else(PoisonError::into_inner);
        match quota == Quota::default() {
            true => drop(quotas.remove(provider)),
            false => drop(quotas.insert(provider.to_owned(), quota)),
        }
        drop(quotas);
        self.limited.notify_waiters();
    }

    pub fn apps_of(&self, provider: &str) -> BTreeSet<String> {
        let own = self.manifests_of(provider).into_iter();
        own.map(|manifest| manifest.app).collect()
    }

    pub fn manifests_of(&self, provider: &str) -> Vec<Manifest> {
        let apps = self.lock();
        let own = apps.values().filter(|handle| handle.manifest.provider == provider);
        own.map(|handle| handle.manifest.clone()).collect()
    }

    /// What who asks is told of another app.
    pub fn called(&self, app: &str, caller: &Caller) -> String {
        caller.calls(app, &self.provider_of(app).unwrap_or_default())
    }

    pub fn provider_of(&self, app: &str) -> Option<String> {
        let apps = self.lock();
        apps.get(app).map(|handle| handle.manifest.provider.clone())
    }

    pub fn manifest_of(&self, app: &str, caller: &Caller) -> Result<Manifest> {
        Ok(self.handle_of(app, caller)?.manifest)
    }

    /// Nobody else changes it as long as this is held, and it is as the condition wants it.
    pub fn hold(&self, app: &str, condition: &Condition, caller: &Caller) -> Result<Held, Halt> {
        let changing = self.handle_of(app, caller)?.changing.try_lock_owned().map_err(|_| {
            Error::new(Kind::Conflict, format!("cannot change {app}"))
                .because("it is being changed already")
                .fix("wait for that: `appshot status --wait settled`")
                .state("nothing was changed")
        })?;
        let deployment = self.read(app)?;
        if !caller.sees(&deployment.manifest.provider) {
            return Err(self.unknown(app, caller).into());
        }
        let etag = deployment.etag();
        match condition.holds(&etag) {
            true => Ok(Held {
                deployment,
                _changing: changing,
            }),
            false => Err(Halt::Stale(
                Error::new(Kind::Conflict, format!("cannot change {app}"))
                    .because(format!("it was changed meanwhile: its tag is {etag} now"))
                    .fix("look at it again, and ask with that tag")
                    .state("nothing was changed"),
            )),
        }
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
            instances: Vec::new(),
            bounds: manifest.instances,
            counts: Counts::default(),
            last: None,
            version: deployment.versions.current,
            deployed_unix_ms: deployment.deployed_unix_ms,
            kept: Vec::new(),
            notice: None,
            address: deployment.address.filter(|_| manifest.network.address),
        });
        self.proxy.deploy(&manifest, told.clone());
        let (orders, ordered) = mpsc::channel(ORDERS);
        let (switches, switched) = mpsc::channel(1);
        let demand = Arc::new(Demand::new(self.proxy.traffic(&manifest.app)));
        let why: Arc<Why> = Arc::default();
        let handle = Handle {
            demand: Arc::clone(&demand),
            why: Arc::clone(&why),
            manifest: manifest.clone(),
            status: told.clone(),
            orders,
            switches,
            changing: Arc::default(),
        };
        self.lock().insert(manifest.app, handle);
        let known = (demand, why);
        tokio::spawn(Agent::new(self.clone(), deployment, sockets, known, (status, ordered, switched)).live());
        told
    }

    /// What an app is has changed with its version.
    pub fn takes_over(&self, deployment: &Deployment, rules_differ: bool) {
        let app = &deployment.manifest.app;
        let Some(status) = self.lock().get_mut(app).map(|handle| {
            handle.manifest = deployment.manifest.clone();
            handle.status.clone()
        }) else {
            return;
        };
        if rules_differ {
            self.proxy.replace(&deployment.manifest, status);
        }
    }

    /// What is written down of an app.
    pub fn read(&self, app: &str) -> Result<Deployment> {
        let missing = || Error::failed(format!("nothing is written down of app {app}"));
        self.control.app(app)?.ok_or_else(missing)?.value
    }

    pub fn switches(&self, app: &str) -> Result<mpsc::Sender<Switch>> {
        Ok(self.handle(app)?.switches)
    }

    pub fn changing(&self, app: &str) -> Result<Arc<tokio::sync::Mutex<()>>> {
        Ok(self.handle(app)?.changing)
    }

    /// Room for an instance that is to come and will have so much memory. Where there is
    /// none it waits from now on, idle apps are asked to sleep, and it may ask again. Where its
    /// provider has as much as it may, that one's other apps are.
    ///
    /// All who ask are tasks of one thread: nobody takes room between the look and the charge.
    pub fn room(&self, app: &str, instance: &str, bytes: u64) -> Result<Room> {
        if let Some(why) = self.beyond_quota(app, instance, bytes) {
            self.budget.give_up(instance);
            return Ok(Room::Waits(why));
        }
        if let Some(charge) = self.budget.take(app, instance, bytes)? {
            return Ok(Room::There(charge));
        }
        self.relieve();
        Ok(Room::Waits(format!("for memory: {}", self.budget.told(bytes))))
    }

    /// Asks apps to sleep to which nobody is connected, until who waits for memory will
    /// have it: those of the lowest priority first, and of these the one that was needed
    /// least recently.
    pub fn relieve(&self) {
        let mut missing = self.budget.missing();
        if missing == 0 {
            return;
        }
        missing = missing.saturating_sub(self.give_up_spares(missing));
        if missing == 0 {
            return;
        }
        for handle in self.idle(|_| true) {
            if missing == 0 {
                break;
            }
            missing = missing.saturating_sub(self.ask_to_sleep(&handle).unwrap_or(0));
        }
    }

    /// Those of these apps to which nobody is connected, the least valuable first.
    pub fn idle(&self, of: impl Fn(&Manifest) -> bool) -> Vec<Handle> {
        let open = self.looks.look_now();
        let mut idle: Vec<_> = self
            .lock()
            .values()
            .filter(|handle| of(&handle.manifest))
            .filter(|handle| handle.manifest.instances.min == 0 && handle.status.borrow().state == State::Running)
            .filter(|handle| handle.demand.count(&open) == 0)
            .map(|handle| (handle.manifest.priority, handle.demand.needed_unix_ms(), handle.clone()))
            .collect();
        idle.sort_by_key(|(priority, needed, _)| (*priority, *needed));
        idle.into_iter().map(|(_, _, handle)| handle).collect()
    }

    /// Answers how much memory that will free, where it may be asked.
    pub fn ask_to_sleep(&self, handle: &Handle) -> Option<u64> {
        let app = &handle.manifest.app;
        let bytes = self.budget.could_yield(app)?;
        handle.orders.try_send(Order::Yield).ok()?;
        tracing::info!(app, bytes, "asked to sleep: its memory is wanted");
        self.budget.yields(app, bytes);
        Some(bytes)
    }

    pub fn all(&self) -> Vec<Status> {
        self.lock()
            .values()
            .map(|handle| handle.status.borrow().clone())
            .collect()
    }

    fn handle(&self, app: &str) -> Result<Handle> {
        let handle = self.lock().get(app).cloned();
        // Who may not see all has been told before it came to this.
        handle.ok_or_else(|| self.unknown(app, &Caller::Root))
    }

    /// Of an app that who asks sees.
    fn handle_of(&self, app: &str, caller: &Caller) -> Result<Handle> {
        let handle = self.lock().get(app).cloned();
        let handle = handle.filter(|handle| caller.sees(&handle.manifest.provider));
        handle.ok_or_else(|| self.unknown(app, caller))
    }

    /// That there is no such app, among those that are seen.
    pub fn unknown(&self, app: &str, caller: &Caller) -> Error {
        let error = Error::new(Kind::NotFound, format!("no app {app} is deployed"));
        let apps = self.lock();
        let seen = apps.values().filter(|handle| caller.sees(&handle.manifest.provider));
        match closest(app, seen.map(|handle| handle.manifest.app.as_str())) {
            Some(near) => error.fix(format!("did you mean {near}?")),
            None => error.fix("`appshot apps` lists those that are"),
        }
    }

    /// Why it is in the state that it is in.
    pub fn why(&self, app: &str) -> Result<Told> {
        let handle = self.handle(app)?;
        let status = handle.status.borrow().clone();
        Ok(handle.why.tell(app, (status.state, status.since_unix_ms), status.why))
    }

    pub fn status(&self, app: &str) -> Result<watch::Receiver<Status>> {
        Ok(self.handle(app)?.status)
    }

    pub fn status_of(&self, app: &str, caller: &Caller) -> Result<watch::Receiver<Status>> {
        Ok(self.handle_of(app, caller)?.status)
    }

    /// Gives an order and waits until the app is in the state that it leads to.
    pub async fn order(&self, app: &str, order: Order, caller: &Caller) -> Result<Status> {
        let handle = self.handle_of(app, caller)?;
        let told = || Error::new(Kind::Conflict, format!("app {app} is being removed"));
        handle.orders.send(order).await.map_err(|_| told())?;
        let mut status = handle.status;
        let reached = |status: &Status| match order {
            Order::Suspend => [State::Suspended, State::Failed].contains(&status.state),
            Order::Resume => !matches!(status.state, State::Suspended | State::Failed),
            Order::Scale(bounds) => status.bounds == bounds,
            Order::Remove | Order::Yield => false,
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
