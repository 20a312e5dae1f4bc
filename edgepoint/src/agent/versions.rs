//! Another version takes over.
//!
//! ```text
//!   running ── accepts nothing, until what is open has ended ──> still ──> asleep
//!      ^                    │                                                │
//!      └─ too long, refused ┘                        the app is written down: decided
//!                                                                            │
//!   running <── the new one is woken, with the sockets <── names follow, sockets are held
//!                   └── it cannot be: the one before takes over again
//! ```
//!
//! Who comes meanwhile waits in the backlog of the sockets, which are held all the time.

use super::{Agent, Next, Occasion};
use crate::instances::{self, Instances};
use crate::metrics::Outcome;
use crate::status::{Cause, State};
use crate::versions::{self, Switch, Version, cannot_update};
use libsnap::cgroup;
use libsnap::error::{Error, Result};
use libsnap::files::held;
use libsnap::image::Appshot;
use libsnap::store::App;
use nodekit::reply::on_own_thread;
use std::time::{Duration, Instant};

/// How long who is connected may stay, until the app goes on as it was.
pub(super) const LEAVE_MAX: Duration = Duration::from_secs(10);
/// After a snapshot that was refused: somebody had come at that moment.
const AGAIN: Duration = Duration::from_millis(20);

impl Agent {
    /// Has the version serve that is to.
    pub(super) async fn switch(&mut self) -> Result<Next> {
        let Some(switch) = self.switching.take() else {
            return self.find();
        };
        if switch.reply.is_closed() {
            return self.find();
        }
        let ran = self.running_app().is_ok();
        if ran && let Err(error) = self.lie_down(&switch).await {
            let error = error.state("the version that serves goes on");
            let why = error.to_string();
            let _ = switch.reply.send(Err(error));
            return match self.running_app() {
                Ok(_) => Ok(Next::Run(Some(why))),
                Err(_) => self.ended().await,
            };
        }
        let changed = self.change_to(&switch.to).await;
        let next = match ran {
            true if changed.is_ok() => Next::Wake(Cause::Update),
            true => Next::Wake(Cause::Recovery),
            false if self.deployment.suspended => Next::Suspended,
            false => Next::Wait,
        };
        match changed {
            // Told once it is up.
            Ok(()) if ran => self.told = Some(switch.reply),
            changed => {
                self.prepare();
                let _ = switch.reply.send(changed);
            }
        }
        Ok(next)
    }

    /// It sleeps as soon as it has done what it does; it takes on nothing more until then.
    async fn lie_down(&mut self, switch: &Switch) -> Result<()> {
        let to = switch.to.number;
        self.turn(State::FallingAsleep, Some(format!("version {to} takes over")));
        self.node.proxy.release(self.name(), true);
        let (began, had) = (Instant::now(), self.measure().await);
        loop {
            let app = self.running_app()?;
            let left = LEAVE_MAX.saturating_sub(began.elapsed());
            let sockets = crate::sockets::copies(&self.sockets)?;
            let (store, resting) = (self.node.store.clone(), app.clone());
            let made = self.manifest().idle.made;
            let busy = on_own_thread(move || instances::rest(&store, &resting, (&sockets, made), left)).await;
            let done = match busy {
                Ok(None) => self.snapshot(Occasion::Update).await.map_err(|error| (error, true)),
                Ok(Some(why)) => Err((cannot_update(self.name(), why), false)),
                Err(error) => Err((error, false)),
            };
            match done {
                Ok(report) => return self.fell_asleep(&report, had),
                Err((error, again)) => {
                    let_go_on(&app);
                    if !again || began.elapsed() > LEAVE_MAX || self.running_app().is_err() {
                        return Err(error);
                    }
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// Everything here is this version's from now on. Nobody runs.
    async fn change_to(&mut self, to: &Version) -> Result<()> {
        let shot =
            Appshot::open_unverified_memory(&self.node.store.appshot_path(&to.manifest.version_name(to.number)))?;
        versions::listens(&to.manifest, &shot)?;
        let sockets = held::complete(&shot.manifest, &self.sockets, |name| to.manifest.opens(name))
            .map_err(|error| error.state("the version that serves goes on"))?;
        let (before, after) = (self.deployment.clone(), self.deployment.turned_to(to));
        self.node.save(&after)?;
        if let Err(error) = self.arrange(after.clone()).await {
            self.node.save(&before)?;
            self.arrange(before).await?;
            return Err(error);
        }
        let rules_differ =
            before.manifest.rules() != after.manifest.rules() || before.manifest.capacity != after.manifest.capacity;
        tracing::info!(
            app = self.name(),
            from = before.versions.current,
            to = to.number,
            "version"
        );
        self.deployment = after;
        // They are of the version that has left.
        self.carried.clear();
        self.hold(sockets)?;
        self.further = Instances::new(self.node.clone(), to.manifest.clone(), to.number);
        self.copy_refused = None;
        self.node.takes_over(&self.deployment, rules_differ);
        self.notice(None);
        Ok(())
    }

    async fn arrange(&self, deployment: crate::node::Deployment) -> Result<()> {
        let store = self.node.store.clone();
        on_own_thread(move || {
            versions::arrange(&store, &deployment)?;
            versions::tidy(&store, &deployment)
        })
        .await
    }

    /// What is to be known of its versions, for who asks.
    pub(super) fn notice(&self, notice: Option<String>) {
        let deployment = &self.deployment;
        self.meter().version(deployment.versions.current);
        self.status.send_modify(|status| {
            status.listen = deployment.manifest.listen.iter().map(ToString::to_string).collect();
            status.written(deployment);
            status.notice = notice;
        });
    }

    /// It is up: the version that it is of can be.
    pub(super) fn tried(&mut self) -> Result<()> {
        if let Some(told) = self.told.take() {
            let _ = told.send(Ok(()));
        }
        if self.deployment.versions.untried {
            self.deployment.versions.untried = false;
            self.node.save(&self.deployment)?;
        }
        Ok(())
    }

    /// A version that cannot be restored gives way to the one before.
    pub(super) async fn fall_back(&mut self, error: Error) -> Result<Next> {
        let bad = self.deployment.versions.current;
        let Some(to) = self.deployment.versions.kept.last().cloned() else {
            return Err(error);
        };
        self.change_to(&to).await?;
        self.deployment.versions.kept.retain(|kept| kept.number != bad);
        self.node.save(&self.deployment)?;
        self.arrange(self.deployment.clone()).await?;
        let what = format!(
            "version {bad} could not be restored: version {} serves again",
            to.number
        );
        tracing::error!(app = self.name(), %error, what);
        self.node
            .metrics
            .updated(self.name(), &self.manifest().provider, Outcome::FellBack);
        let told = serde_json::json!({ "version": to.number, "error": error.to_string() });
        self.node
            .events
            .tell(Outcome::FellBack.name(), self.name(), &self.manifest().provider, told);
        self.notice(Some(format!("{what} ({error})")));
        let error = Error::failed(format!("version {bad} of {} could not be restored", self.name()))
            .because(error)
            .state(format!("version {} serves again", to.number));
        if let Some(told) = self.told.take() {
            let _ = told.send(Err(error));
        }
        Ok(Next::Wake(Cause::Recovery))
    }
}

/// Where it was held still.
pub(super) fn let_go_on(app: &App) {
    if let Some(group) = app.cgroup.as_deref().filter(|group| cgroup::is_held(group)) {
        let _ = cgroup::freeze(group, false);
    }
}
