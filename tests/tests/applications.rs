//! Further real software, each through everything in one life: frozen and brought back,
//! rehearsed beside the app that runs on and beside the one that is to end, its memory there
//! at once and brought as it is touched, left running under load, twice beside itself.
//!
//! The cross product, in which each of these is done to each by itself, is long:
//!
//! ```sh
//! cargo test -p appshot-tests --test scenarios -- --include-ignored
//! APPSHOT_TEST_LAZY=1 cargo test -p appshot-tests --test scenarios -- --include-ignored
//! cargo test -p appshot-tests --test rehearsal -- --include-ignored
//! cargo test -p appshot-tests --test soak -- --include-ignored
//! ```

use anyhow::{Context, Result, ensure};
use appshot_tests::app::{App, Place};
use appshot_tests::applications;
use appshot_tests::load::under_load;
use appshot_tests::scenario::{self, Manner, Moment, Server};
use appshot_tests::trial::verified;
use appshot_tests::verdict::{PATIENCE, need_root, on_own_thread, skip, switched_on};
use libsnap::nsthread;
use libsnap::restore::pager;
use libsnap::target::{Memory, Network, RestoreOptions, RunOptions, SnapshotOptions};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// One at a time: they are heavy.
static ALONE: Mutex<()> = Mutex::new(());
const CYCLES: usize = 2;

type SetUp = fn(&Place, scenario::Drive<'_>) -> Result<()>;

fn trial(test: &'static str, set_up: SetUp, beside: bool) {
    on_own_thread(test, move || {
        let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        need_root()?;
        if switched_on("APPSHOT_TEST_NO_SNAPSHOT") {
            return skip("snapshots, which APPSHOT_TEST_NO_SNAPSHOT turns off");
        }
        set_up(&Place::new(test)?, &|place, server| one_life(place, server, beside))
    });
}

macro_rules! application {
    ($name:ident, $state:ident) => {
        #[test]
        fn $name() {
            trial(
                stringify!($name),
                applications::$name,
                stringify!($state) == "in_memory",
            );
        }
    };
}
appshot_tests::each_application!(application);

fn one_life(place: &Place, server: &Server<'_>, beside: bool) -> Result<()> {
    let mut manner = InTurns {
        place,
        app: None,
        cycle: 0,
    };
    scenario::drive_cycles(place, server, &mut manner, CYCLES, |manner| {
        under_load(server, manner.app()?, &place.path("appshot-running"))?;
        if beside {
            twice(place, server, manner).context("two instances side by side")?;
        }
        Ok(())
    })
}

/// Each cycle freezes and restores in another way than the one before.
struct InTurns<'a> {
    place: &'a Place,
    app: Option<App>,
    cycle: usize,
}

impl InTurns<'_> {
    fn app(&self) -> Result<&App> {
        self.app.as_ref().context("the app does not run")
    }

    fn shot(&self) -> PathBuf {
        self.place.path(&format!("appshot-{}", self.cycle))
    }

    fn is_even(&self) -> bool {
        self.cycle.is_multiple_of(2)
    }

    fn take(&self, shot: &Path, leave_running: bool, verify: bool) -> Result<()> {
        let options = SnapshotOptions {
            leave_running,
            verify,
            ..SnapshotOptions::default()
        };
        let report = self.app()?.snapshot(shot, &options)?;
        ensure!(report.rehearsal.is_some() == verify, "whether there was a rehearsal");
        report
            .rehearsal
            .map_or(Ok(()), |rehearsal| verified(rehearsal, shot).map(drop))
    }
}

impl Manner for InTurns<'_> {
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

    /// In every second cycle one that is left running comes first: two in a row.
    fn freeze(&mut self) -> Result<()> {
        if !self.is_even() {
            let beside = self.place.path("beside");
            self.take(&beside, true, true).context("while it runs on")?;
            std::fs::remove_dir_all(beside)?;
        }
        self.take(&self.shot(), false, self.is_even())?;
        self.app.take().context("the app does not run")?.wait_gone()
    }

    fn restore(&mut self) -> Result<()> {
        let memory = if self.is_even() { Memory::Eager } else { Memory::Lazy };
        let options = RestoreOptions {
            memory,
            ..RestoreOptions::default()
        };
        self.app = Some(self.place.restore_with(&self.shot(), options)?);
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        self.app.take().map_or(Ok(()), App::end)
    }

    fn look(&mut self, _: &Server<'_>, moment: Moment) -> Result<()> {
        if moment == Moment::CycleEnd {
            ensure!(pager::settle(PATIENCE), "memory is owed to the app");
            std::fs::remove_dir_all(self.shot())?;
            self.cycle += 1;
        }
        Ok(())
    }
}

/// Two of one appshot, each with a network of its own: alike after like use, and one knows
/// nothing of the other. Then the app goes on as one of its own again.
fn twice(place: &Place, server: &Server<'_>, manner: &mut InTurns<'_>) -> Result<()> {
    scenario::settle(server)?;
    let state = (server.state)()?;
    scenario::settle(server)?;
    manner.take(&manner.shot(), false, false)?;
    manner.app.take().context("the app does not run")?.wait_gone()?;
    let instance = |memory| {
        let options = RestoreOptions {
            memory,
            network: Network::Own,
            ..RestoreOptions::default()
        };
        place.restore_with(&manner.shot(), options)
    };
    let both = [instance(Memory::Eager)?, instance(Memory::Lazy)?];
    let found = |at: usize| inside(&both[at], || (server.state)());
    let used = |at: usize| inside(&both[at], || (server.use_it)());
    ensure!(found(0)? == state && found(1)? == state, "not both are what was frozen");
    used(0)?;
    ensure!(found(1)? == state, "one has changed the other");
    used(1)?;
    let [one, other] = [found(0)?, found(1)?];
    ensure!(one == other, "alike use, {one} and {other}");
    for app in both {
        app.end()?;
    }
    manner.restore()
}

/// Does something in the network of an instance.
fn inside<T>(app: &App, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let named = || app.instance.name.clone();
    nsthread::inside(app.instance.root, &["net"], act)?.with_context(named)
}
