//! Real software: started, used, frozen, seen to be gone, restored, used again.
//!
//! `APPSHOT_CYCLES` (default 3) cycles in a row by the engine alone, after which no
//! process, descriptor, cgroup, mount or file may have been left. Then once more
//! with the original running on, under load. `soak` does the same with the
//! installed programs, and counts more.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::{App, Place};
use appshot_tests::applications;
use appshot_tests::clients::ensure_refused;
use appshot_tests::judge::{Changes, Fingerprint, HostState, judge_nothing_left, judge_untouched, own_descriptors};
use appshot_tests::load::{Requests, under_load};
use appshot_tests::scenario::{self, Manner, Moment, Server, settle};
use appshot_tests::servers::{self, Postgres};
use appshot_tests::verdict::{PATIENCE, need_root, on_own_thread, poll, switched_on};
use libsnap::error::{Error, Kind};
use libsnap::restore::pager;
use libsnap::target::{RunOptions, SnapshotOptions, TcpPolicy};
use std::io::Write;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

/// Descriptors of the threads that bring memory, once there are some.
const PAGERS: usize = 16;

/// One at a time: they are heavy, and the count of descriptors is of the whole process.
static ALONE: Mutex<()> = Mutex::new(());

fn trial(test: &'static str, drive: fn(&Place) -> Result<()>) {
    on_own_thread(test, move || {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        need_root()?;
        drive(&Place::new(test)?)
    });
}

macro_rules! scenario {
    ($name:ident, $weight:ident) => {
        #[test]
        fn $name() {
            trial(stringify!($name), |place| servers::$name(place, &by_the_engine));
        }
    };
}
appshot_tests::each_scenario!(scenario);

macro_rules! application {
    ($name:ident, $state:ident) => {
        #[test]
        #[ignore = "a long run: in one life by the suite applications"]
        fn $name() {
            trial(stringify!($name), |place| {
                applications::$name(place, &by_the_engine)
            });
        }
    };
}
appshot_tests::each_application!(application);

fn by_the_engine(place: &Place, server: &Server<'_>) -> Result<()> {
    if switched_on("APPSHOT_TEST_NO_SNAPSHOT") {
        return without_snapshot(place, server);
    }
    let mut engine = Engine {
        place,
        app: None,
        cycle: 0,
        descriptors: usize::MAX,
    };
    scenario::drive(place, server, &mut engine, |engine| {
        under_load(server, engine.app()?, &place.path("appshot-running"))
    })
}

/// libsnap in this process.
struct Engine<'a> {
    place: &'a Place,
    app: Option<App>,
    cycle: usize,
    descriptors: usize,
}

impl Engine<'_> {
    fn app(&self) -> Result<&App> {
        self.app.as_ref().context("the app does not run")
    }

    fn shot(&self) -> std::path::PathBuf {
        self.place.path(&format!("appshot-{}", self.cycle))
    }
}

impl Manner for Engine<'_> {
    fn start(&mut self, options: &RunOptions) -> Result<()> {
        self.app = Some(self.place.run_with(options.clone())?);
        Ok(())
    }

    fn top(&self) -> i32 {
        self.app.as_ref().map_or(0, App::top)
    }

    fn exited(&mut self) -> Result<Option<i32>> {
        self.app.as_mut().context("the app does not run")?.try_exit()
    }

    fn freeze(&mut self) -> Result<()> {
        self.app()?.freeze(&self.shot())?;
        self.app.take().context("the app does not run")?.wait_gone()
    }

    fn restore(&mut self) -> Result<()> {
        self.app = Some(self.place.restore(&self.shot())?);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.app.take().map_or(Ok(()), App::end)
    }

    fn look(&mut self, _: &Server<'_>, moment: Moment) -> Result<()> {
        match moment {
            Moment::BeforeFreeze => self.descriptors = self.descriptors.min(own_descriptors()),
            Moment::AfterRestore => {}
            Moment::CycleEnd => {
                std::fs::remove_dir_all(self.shot())?;
                self.cycle += 1;
                // Of an app that is gone nobody is owed anything any more.
                ensure!(pager::settle(PATIENCE), "memory is owed to an app that has ended");
                poll("working sets", PATIENCE, || {
                    Ok((own_descriptors() <= self.descriptors + PAGERS).then_some(()))
                })
                .ok();
                let now = own_descriptors();
                ensure!(
                    now <= self.descriptors + PAGERS,
                    "the engine leaks descriptors: {} became {now}",
                    self.descriptors
                );
            }
        }
        Ok(())
    }
}

/// Proves that the server and its clients are right by themselves.
fn without_snapshot(place: &Place, server: &Server<'_>) -> Result<()> {
    let mut app = place.run_with(server.options.clone())?;
    poll("the server to answer", PATIENCE, || Ok((server.state)().ok()))?;
    (server.fill)(app.top())?;
    let load = Requests::of(server)?;
    (server.use_it)()?;
    load.map_or(Ok(()), Requests::finish)?;
    settle(server)?;
    let state = (server.state)()?;
    let state_now = (server.state)()?;
    ensure!(state == state_now, "state was {state}, is {state_now}");
    (server.use_it)()?;
    settle(server)?;
    if let Some(finish) = server.finish {
        finish()?;
        ensure!(app.wait_exit()? == 0, "{}", place.log());
    }
    app.end()?;
    // Without an init above them the workers end a moment after their master.
    let Some(port) = server.port else {
        return Ok(());
    };
    poll("the port to be closed", PATIENCE, || Ok(ensure_refused(port).ok()))
}

// ------------------------------------------------------------------- PostgreSQL

/// A session with an open transaction, from outside the app, is refused by name;
/// with `--tcp=close` it is gone after restore and so are its changes.
#[test]
fn postgresql_open_transaction() {
    trial("postgresql_open_transaction", |place| {
        let postgres = Postgres::make(place)?;
        let scope = place.scope().with_port(postgres.port);
        let before = HostState::take(&scope);
        let app = place.run_with(postgres.options(place))?;
        let result = open_transaction(place, &postgres, app);
        result.and(judge_nothing_left(&scope, &before))
    });
}

fn open_transaction(place: &Place, postgres: &Postgres, app: App) -> Result<()> {
    postgres.wait_for()?;
    postgres.ask("create table t (x int); insert into t values (1)")?;
    let mut psql = postgres
        .tool("psql")
        .args(["-XAtq"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut session = psql.stdin.take().context("psql has no stdin")?;
    session.write_all(b"begin; update t set x = 2;\n")?;
    poll("the transaction to be open", PATIENCE, || {
        let open = "select count(*) from pg_stat_activity where state = 'idle in transaction'";
        Ok((postgres.ask(open)? == "1").then_some(()))
    })?;
    let result = refuse_then_close(place, postgres, app);
    drop(session);
    psql.wait()?;
    result
}

fn refuse_then_close(place: &Place, postgres: &Postgres, app: App) -> Result<()> {
    if switched_on("APPSHOT_TEST_NO_SNAPSHOT") {
        return app.end();
    }
    let shot = place.path("appshot");
    let before = Fingerprint::take(app.top());
    let error = app
        .freeze(&shot)
        .err()
        .context("a snapshot with an open session succeeded")?;
    let refusal = error.downcast_ref::<Error>().context("another error")?;
    ensure!(refusal.kind == Kind::Refused, "expected a refusal, got {refusal}");
    let port = postgres.port.to_string();
    ensure!(
        refusal
            .refusals
            .iter()
            .any(|r| r.object.contains(&port) || r.reason.contains(&port)),
        "the refusal does not name the connection on port {port}: {refusal}"
    );
    ensure!(!shot.exists(), "a refused snapshot left {}", shot.display());
    judge_untouched(&before, &Fingerprint::take(app.top()), Changes::ALL)?;
    let close = SnapshotOptions {
        tcp: TcpPolicy::Close,
        ..SnapshotOptions::default()
    };
    app.snapshot(&shot, &close).context("snapshot with tcp=close")?;
    app.wait_gone()?;
    let app = place.restore(&shot).context("restore")?;
    postgres.wait_for()?;
    ensure!(
        postgres.ask("select x from t")? == "1",
        "an uncommitted change became visible"
    );
    // The lock of the severed session has to go, or this would wait for ever.
    postgres.ask("set statement_timeout = '20s'; update t set x = 3")?;
    app.end()
}
