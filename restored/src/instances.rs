//! The instances that this daemon has brought up.

use crate::occasion::Occasion;
use crate::pool::{Busy, Held, Job, Kind, Pool, Waiting, Watch};
use crate::reverts::{Reverts, Tried};
use crate::shelf::Shelf;
use libsnap::error::{Error, Kind as ErrorKind, Result};
use libsnap::restore::opened::Opened;
use libsnap::restore::{Prepared, Way};
use libsnap::store::{App, State, Store, View};
use libsnap::target::{Instance, Manner, RestoreOptions, RevertReport};
use nodekit::daemon::Stopping;
use nodekit::reply::on_own_thread;
use nodekit::start::{Ready, Start, What};
use nodekit::traces::{Place, SpanKind};
use nodekit::{ending, process, supervise};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// How soon one who waits for an instance sees that the daemon stops.
const STOP_INTERVAL: Duration = Duration::from_millis(200);

/// Clones that are made at the same time.
const AT_A_TIME: usize = 16;

#[derive(Clone, Debug)]
pub struct Instances {
    pub store: Store,
    stopping: Stopping,
    pool: Pool,
    shelf: Shelf,
    reverts: Reverts,
}

impl Instances {
    pub fn new(store: Store, stopping: Stopping, pool: Pool, shelf: Shelf) -> Instances {
        Instances {
            store,
            stopping,
            pool,
            shelf,
            reverts: Reverts::default(),
        }
    }

    /// Every app that was restored from an appshot and has a record.
    pub fn list(&self) -> Result<Vec<View>> {
        let mut views = self.store.views()?;
        views.retain(|view| view.from.is_some());
        Ok(views)
    }

    pub fn app(&self, name: &str) -> Result<App> {
        match self.store.get(name)? {
            app if app.from.is_some() => Ok(app),
            _ => Err(self.store.unknown(name)),
        }
    }

    pub fn view(&self, name: &str) -> Result<View> {
        Ok(self.app(name)?.view(&self.store))
    }

    /// Has an appshot at hand, and an instance of it where one is wanted, as long as others
    /// are not wanted more.
    pub fn prepare(&self, path: &Path, options: &RestoreOptions, instance: bool) -> Result<()> {
        if self.shelf.get(path, options.memory).is_none() {
            // That tells why.
            return Opened::open(path).map(drop);
        }
        if instance {
            let appshot = path.to_owned();
            let way = Way::of(options);
            self.pool.park(Kind { appshot, way });
        }
        Ok(())
    }

    /// Waits until that instance is there; answers whether it is.
    pub async fn is_parked(&self, path: &Path, options: &RestoreOptions) -> bool {
        let (appshot, way) = (path.to_owned(), Way::of(options));
        let (kind, mut stopping) = (Kind { appshot, way }, self.stopping.clone());
        tokio::select! {
            parked = self.pool.parked(&kind) => parked,
            _ = stopping.wait_for(|stop| *stop) => false,
        }
    }

    /// What waits to be asked for.
    pub fn prepared(&self) -> Vec<Waiting> {
        self.pool.waiting()
    }

    /// The memory that what waits has.
    pub fn memory(&self) -> Held {
        self.pool.memory()
    }

    /// Gives up so many bytes of it. Answers how many that were.
    pub fn give_up(&self, bytes: u64) -> u64 {
        let given = self.pool.give_up(bytes);
        tracing::info!(bytes, given, "gave up what waited: its memory is wanted");
        given
    }

    /// Restores on a thread that stays until the instance ends: ptrace is bound
    /// to its thread, and so is a parent-death signal that the engine may set.
    ///
    /// What it took belongs to the request that this task answers.
    pub async fn bring_up(&self, start: Start) -> Result<Instance> {
        let mut span = Place::here().begin(SpanKind::Internal, format_args!("restore"));
        span.note("appshot.app", start.name.clone());
        let brought = self.have_owned(start).await;
        span.outcome(&brought);
        if let Ok(instance) = &brought {
            let processes = i64::try_from(instance.processes).unwrap_or(i64::MAX);
            span.note("appshot.processes", processes);
            span.place().steps(&instance.phases, Instant::now());
        }
        brought
    }

    async fn have_owned(&self, start: Start) -> Result<Instance> {
        let kind = kind(&start);
        let (job, answered) = self.job(start, None);
        self.pool.give(kind, job);
        match answered.await {
            Ok(result) => result,
            Err(_) => Err(Error::failed("the restoring thread died without an answer")),
        }
    }

    /// `again` is what is started anew where it cannot be reverted in place, if not the same.
    fn job(&self, start: Start, again: Option<Start>) -> (Job, oneshot::Receiver<Result<Instance>>) {
        let (answer, answered) = oneshot::channel();
        let (shelf, reverts) = (self.shelf.clone(), self.reverts.clone());
        let job = move |ready, busy| {
            let starts = (start.logged(), again.map(Start::logged));
            own(starts, &shelf, &reverts, ready, busy, answer)
        };
        (Box::new(job), answered)
    }

    /// Has what is parked of it come up at its occasion, and waits for that. Dropped before, it is
    /// parked as it was.
    pub async fn bring_up_at(&self, mut occasion: Occasion, mut start: Start) -> Result<Instance> {
        // It has other numbers for the same.
        let again = start.clone();
        if let What::Restore { options, .. } = &mut start.what {
            let mut named = options.held.iter_mut().chain(&mut options.joins);
            named.try_for_each(|fd| occasion.keep(fd))?;
        }
        let missed = || Error::new(ErrorKind::Unavailable, "nothing came up");
        let kind = kind(&start).ok_or_else(|| missed().because("nothing is parked of a command"))?;
        let (job, mut answered) = self.job(start, Some(again));
        let armed = self.pool.arm(&kind, occasion, job)?;
        let mut stopping = self.stopping.clone();
        let answer = tokio::select! {
            biased;
            answer = &mut answered => Some(answer),
            _ = stopping.wait_for(|stop| *stop) => None,
        };
        // Told to stop it is called off; it may have come already.
        drop(armed);
        let answer = match answer {
            Some(answer) => answer,
            None => answered.await,
        };
        answer.unwrap_or_else(|_| {
            Err(missed().because("it was called off, its memory was wanted, or restored was told to stop"))
        })
    }

    /// Brings up so many instances of one appshot that share its memory, some at a
    /// time. If one cannot be had, those that came up are ended again.
    pub async fn clone_all(&self, starts: Vec<Start>) -> Result<Vec<Instance>> {
        let mut made = Vec::with_capacity(starts.len());
        let mut failed = None;
        let mut starts = starts.into_iter().enumerate();
        let mut under_way = JoinSet::new();
        loop {
            while failed.is_none() && under_way.len() < AT_A_TIME {
                let Some((number, start)) = starts.next() else { break };
                let this = self.clone();
                let made = async move { this.bring_up(start).await.map(|instance| (number, instance)) };
                under_way.spawn(Place::here().within(made));
            }
            match under_way.join_next().await {
                None => break,
                Some(Ok(Ok(instance))) => made.push(instance),
                Some(Ok(Err(error))) => failed = Some(error),
                Some(Err(error)) => failed = Some(Error::failed("a clone was given up").because(error)),
            }
        }
        made.sort_unstable_by_key(|(number, _)| *number);
        let Some(error) = failed else {
            return Ok(made.into_iter().map(|(_, instance)| instance).collect());
        };
        for (_, instance) in made {
            let (app, store) = (self.app(&instance.name)?, self.store.clone());
            on_own_thread(move || ending::kill_all(&store, &app)).await?;
        }
        Err(error.state("nothing was left behind"))
    }

    /// Puts an instance back to its appshot: in place where it can be, else by ending it
    /// and restoring it under its name.
    pub async fn revert(&self, name: &str) -> Result<RevertReport> {
        let begin = Instant::now();
        let app = self.app(name)?;
        let known = self.reverts.of(&app)?;
        let store = self.store.clone();
        let (again, _joined, because) = match on_own_thread(move || known.in_place(&store)).await? {
            Tried::Done(report) => return Ok(report),
            Tried::Anew(start, joined, because) => (start, joined, because),
        };
        tracing::info!(app = name, because, "reverted anew");
        let store = self.store.clone();
        on_own_thread(move || match ending::kill_all(&store, &app) {
            Err(error) if [State::Running, State::Frozen].contains(&app.state()) => Err(error),
            _ => ending::settle(&store, &app, Some(128 + ending::SIGKILL)),
        })
        .await?;
        let restored = self.bring_up(*again).await;
        let instance = restored.map_err(|error| error.state("the instance was ended, and is not there any more"))?;
        Ok(RevertReport {
            name: instance.name,
            manner: Manner::Anew,
            because: Some(because),
            dirty_pages: 0,
            total_micros: begin.elapsed().as_micros() as u64,
            phases: instance.phases,
        })
    }

    /// Waits until the instance has ended and that is written down, or until
    /// the daemon stops.
    pub async fn wait_exited(&self, name: &str) -> Result<()> {
        let (app, this) = (self.app(name)?, self.clone());
        on_own_thread(move || this.follow(&app)).await
    }

    fn follow(&self, app: &App) -> Result<()> {
        let Ok(child) = process::open_child(app) else {
            return Ok(());
        };
        while !process::wait(&child, Some(STOP_INTERVAL))? {
            if *self.stopping.borrow() {
                return Ok(());
            }
        }
        ending::written_down(&self.store, app).map(drop)
    }
}

fn kind(start: &Start) -> Option<Kind> {
    match &start.what {
        What::Restore { appshot, options } => Some(Kind {
            appshot: appshot.clone(),
            way: Way::of(options),
        }),
        What::Run(_) => None,
    }
}

fn own(
    (mut start, again): (Start, Option<Start>),
    shelf: &Shelf,
    reverts: &Reverts,
    mut ready: Ready,
    busy: Busy,
    answer: oneshot::Sender<Result<Instance>>,
) -> Option<Watch> {
    // Where that fails, so does the restore, and says why.
    let _ = start.unpack(&mut ready);
    if let What::Restore { appshot, options } = &start.what {
        ready.from = shelf.get(appshot, options.memory);
        // The appshot may have been replaced since it was prepared.
        let is_of = |prepared: &mut Prepared| ready.from.as_ref().is_some_and(|from| from.is(prepared.from()));
        if ready.prepared.take_if(|prepared| !is_of(prepared)).is_some() {
            ready.journal = None;
        }
    }
    let started = start.go_with(&|| false, &mut ready);
    let told = started.as_ref().map(|started| started.instance.clone());
    let noted = told
        .as_ref()
        .ok()
        .map(|instance| reverts.note(again.as_ref().unwrap_or(&start), instance));
    let _ = answer.send(told.map_err(Clone::clone));
    drop(busy);
    // A husk that did not suit.
    drop(ready);
    let started = match started {
        Ok(started) => started,
        Err(error) => {
            tracing::warn!(app = start.name, kind = ?error.kind, %error, "restore failed");
            return None;
        }
    };
    log(&started.instance);
    let child = started.instance.child();
    let at_end = Box::new(move || {
        match supervise::reap(&start.store, &started.app) {
            Ok(code) => tracing::info!(app = start.name, code, "ended"),
            Err(error) => tracing::warn!(app = start.name, %error, "cannot reap"),
        }
        drop(noted);
    });
    Some(Watch { child, at_end })
}

fn log(instance: &Instance) {
    for phase in &instance.phases {
        tracing::info!(app = instance.name, phase = phase.name, micros = phase.micros, "phase");
    }
    tracing::info!(
        app = instance.name,
        processes = instance.processes,
        pid = instance.root.0,
        total_micros = instance.total_micros,
        "restored"
    );
}
