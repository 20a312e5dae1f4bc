//! Puts a program of `tests/apps` through freeze and restore.
//!
//! ```text
//! cycle          run, ready, freeze, gone, restore, go, exit 0
//! two_cycles     the same, frozen and restored twice before go
//! leave_running  run, ready, freeze and keep, untouched, go, exit 0; then restore, exit 0
//! side_by_side   run, ready, freeze, gone, restore twice, go, exit 0 both
//! host_pids      as cycle, with the same pids on the host
//! same           run, ready, freeze, restore without running, freeze: all as it was
//! verify         run, ready, freeze and rehearse beside the standing app, gone, restore, go, exit 0;
//!                before that the same while it runs on, untouched
//! warm           as two_cycles, from memory and in a husk that was there before
//! bridged        as two_cycles, as if restored under another kernel's vdso
//! ```

use crate::app::{App, Place};
use crate::judge::{Changes, Fingerprint, HostState, judge_nothing_left, judge_untouched};
use crate::verdict::{PATIENCE, need_root, note, on_own_thread, poll, skip, switched_on};
use crate::{app, programs};
use anyhow::{Context, Result, bail, ensure};
use libsnap::error::{Kind, Refusal};
use libsnap::image::{Appshot, compare};
use libsnap::rehearsal::Rehearsal;
use libsnap::target::{Network, PidMode, RestoreOptions, RunOptions, SnapshotOptions, SnapshotReport};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Runs a trial in a place of its own and judges what is left on the host.
#[track_caller]
pub fn in_place(test: &'static str, trial: impl FnOnce(&Place) -> Result<()> + Send + 'static) {
    on_own_thread(test, move || {
        need_root()?;
        if switched_on("APPSHOT_TEST_NO_SNAPSHOT") {
            return skip("snapshots, which APPSHOT_TEST_NO_SNAPSHOT turns off");
        }
        let place = Place::new(test)?;
        let before = HostState::take(&place.scope());
        let result = trial(&place).with_context(|| place.log());
        result.and(judge_nothing_left(&place.scope(), &before))
    });
}

/// What the harness has to know of a program.
#[derive(Clone, Copy, Debug)]
pub struct Traits {
    /// It holds something of which the host has one (a port, a file that it
    /// changes): a second instance cannot run beside or after it.
    pub alone: bool,
    /// Its timers tick all the time, whether it runs or not.
    pub ticking: bool,
    /// It is about time: the app stays away for a while before its restore.
    pub clocked: bool,
    /// The engine refuses it, by name, and leaves it untouched.
    pub refused: bool,
    /// It begins in a network of its own, and is restored into the host's.
    pub own_network: bool,
    /// It begins in a network of its own, and each instance of it has one.
    pub own_networks: bool,
    /// What it does all by itself while the judge looks.
    pub changes: Changes,
}

impl Traits {
    pub const PLAIN: Traits = Traits {
        alone: false,
        ticking: false,
        clocked: false,
        refused: false,
        own_network: false,
        own_networks: false,
        changes: Changes::NONE,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Cycle,
    TwoCycles,
    LeaveRunning,
    SideBySide,
    HostPids,
    Bridged,
    Warm,
    Clones,
    Same,
    Verify,
}

/// How long a program about time is away: longer than its tolerance.
const AWAY: Duration = Duration::from_millis(1500);

/// The exit code by which a program says that the machine lacks something.
const SKIPPED: i32 = 77;

/// Runs one program in one variant as a test.
#[track_caller]
pub fn check(program: &'static str, traits: Traits, variant: Variant) {
    let test = format!("{program}::{variant:?}");
    let name = test.clone();
    on_own_thread(&test, move || {
        if switched_on("APPSHOT_TEST_NO_SNAPSHOT") {
            return if variant == Variant::Cycle {
                without_snapshot(program)
            } else {
                Ok(())
            };
        }
        let mut place = Place::new(&name)?;
        if traits.own_networks {
            place.network = Network::Own;
        }
        Trial {
            test: &name,
            program,
            traits,
            place,
        }
        .judged(variant)
    });
}

/// Proves that the program is right by itself.
fn without_snapshot(program: &str) -> Result<()> {
    let place = Place::new(program)?;
    let log = std::fs::File::create(place.path("log"))?;
    let mut child = Command::new(programs::build(program)?)
        .args([place.path("ready"), place.path("go")])
        .current_dir(place.dir())
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()?;
    let early = poll("ready", PATIENCE, || {
        let ended = child.try_wait()?;
        Ok((ended.is_some() || place.path("ready").exists()).then_some(ended))
    })?;
    std::fs::write(place.path("go"), "")?;
    let status = match early {
        Some(status) => status,
        None => {
            poll("the end of the program", PATIENCE, || Ok(child.try_wait()?)).inspect_err(|_| drop(child.kill()))?
        }
    };
    let code = status.code().with_context(|| format!("{status}: {}", place.log()))?;
    judge_exit(code, &place)
}

/// A rehearsal that has verified the appshot; otherwise the error tells all that differs.
pub fn verified(rehearsal: Rehearsal, shot: &Path) -> Result<Rehearsal> {
    let all: Vec<String> = rehearsal.differences.iter().map(ToString::to_string).collect();
    let verified = rehearsal.into_result(shot, "the trial ends");
    verified.with_context(|| all.join("\n"))
}

fn judge_exit(code: i32, place: &Place) -> Result<()> {
    match code {
        0 => Ok(()),
        SKIPPED => {
            let log = place.log();
            skip(log.trim().trim_start_matches("skipped: needs ").to_owned())
        }
        other => bail!("exit code {other}: {}", place.log().trim()),
    }
}

struct Trial<'a> {
    test: &'a str,
    program: &'a str,
    traits: Traits,
    place: Place,
}

/// A snapshot that was taken, or the refusal that the program allows.
enum Taken {
    Appshot(PathBuf),
    Refused,
}

impl Trial<'_> {
    fn judged(&self, variant: Variant) -> Result<()> {
        need_root()?;
        let scope = self.place.scope();
        let before = HostState::take(&scope);
        let result = self.run(variant);
        // A skipped or failed trial must leave nothing behind either.
        let left = judge_nothing_left(&scope, &before);
        result.and(left)
    }

    fn run(&self, variant: Variant) -> Result<()> {
        match variant {
            Variant::Cycle => self.cycles(1, PidMode::New, Place::restore),
            Variant::TwoCycles => self.cycles(2, PidMode::New, Place::restore),
            Variant::HostPids => self.cycles(1, PidMode::Host, Place::restore_host_pids),
            Variant::Bridged => self.cycles(2, PidMode::New, Place::restore_bridged),
            Variant::Warm => self.cycles(2, PidMode::New, Place::restore_warm),
            Variant::LeaveRunning => self.leave_running(),
            Variant::SideBySide => self.side_by_side(),
            Variant::Clones => self.clones(),
            Variant::Same => self.same(),
            Variant::Verify => self.verify(),
        }
    }

    fn cycles(&self, count: usize, pids: PidMode, restore: impl Fn(&Place, &Path) -> Result<App>) -> Result<()> {
        let mut app = self.start(pids)?;
        for number in 0..count {
            let numbers = app.pids();
            let Taken::Appshot(shot) = self.freeze(&app, number)? else {
                return self.finish_refused(app);
            };
            app.wait_gone()?;
            self.verify_gone()?;
            if pids == PidMode::Host {
                // What had lost its parent is reaped by the host's init, in its own time.
                let there = |pid: &i32| Path::new(&format!("/proc/{pid}")).exists();
                poll("its PIDs to be free", PATIENCE, || {
                    Ok((!numbers.iter().any(there)).then_some(()))
                })?;
            }
            self.stay_away();
            app = restore(&self.place, &shot).context("restore")?;
        }
        self.go()?;
        self.expect_success(app).context("after restore")
    }

    fn leave_running(&self) -> Result<()> {
        let app = self.start(PidMode::New)?;
        let before = Fingerprint::take(app.top());
        let shot = self.place.path("appshot-0");
        match app.freeze_running(&shot) {
            Ok(report) => self.plausible(&report, &shot)?,
            Err(error) => {
                self.refusal(error)?;
                return self.finish_refused(app);
            }
        }
        judge_untouched(&before, &Fingerprint::take(app.top()), self.traits.changes)?;
        self.go()?;
        self.expect_success(app).context("the original, after its snapshot")?;
        if self.traits.alone {
            return Ok(());
        }
        let app = self.place.restore(&shot).context("restore")?;
        self.expect_success(app)
            .context("the instance restored beside the original")
    }

    fn side_by_side(&self) -> Result<()> {
        let app = self.start(PidMode::New)?;
        let Taken::Appshot(shot) = self.freeze(&app, 0)? else {
            return self.finish_refused(app);
        };
        app.wait_gone()?;
        let first = self.place.restore(&shot).context("restore")?;
        let second = self.place.restore(&shot).context("restore of a second instance")?;
        self.go()?;
        self.expect_success(first).context("first instance")?;
        self.expect_success(second).context("second instance")
    }

    /// Two beside each other, where that can be.
    fn clones(&self) -> Result<()> {
        let app = self.start(PidMode::New)?;
        let Taken::Appshot(shot) = self.freeze(&app, 0)? else {
            return self.finish_refused(app);
        };
        app.wait_gone()?;
        self.stay_away();
        let count = if self.traits.alone { 1 } else { 2 };
        let (template, clones) = self.place.clones(&shot, count).context("clone")?;
        self.go()?;
        for (number, clone) in clones.into_iter().enumerate() {
            self.expect_success(clone).with_context(|| format!("clone {number}"))?;
        }
        drop(template);
        Ok(())
    }

    /// What is restored is what was frozen, record by record and page by page.
    fn same(&self) -> Result<()> {
        if !libsnap::cgroup::is_v2() {
            return skip("cgroup v2, to hold still what was restored");
        }
        if switched_on("APPSHOT_PRECOPY") || switched_on("APPSHOT_TEST_PARENT") {
            // What is copied while it runs, or frozen twice, does run in between.
            return Ok(());
        }
        let app = self.start(PidMode::New)?;
        let Taken::Appshot(first) = self.freeze(&app, 0)? else {
            return self.finish_refused(app);
        };
        app.wait_gone()?;
        let frozen = RestoreOptions {
            frozen: true,
            ..RestoreOptions::default()
        };
        let app = self.place.restore_with(&first, frozen).context("restore")?;
        let group = app.instance.cgroup.clone().context("a cgroup")?;
        poll("it to stand still", PATIENCE, || {
            Ok(libsnap::cgroup::is_still(&group).then_some(()))
        })?;
        let second = self.place.path("appshot-1");
        app.freeze(&second).context("snapshot of what was restored")?;
        app.wait_gone()?;
        let (one, other) = (Appshot::open(&first)?, Appshot::open(&second)?);
        let found = compare::differences(&one, &other)?;
        let told: Vec<String> = found.iter().map(ToString::to_string).collect();
        ensure!(
            told.is_empty() || self.traits.ticking,
            "it is not the same:\n{}",
            told.join("\n")
        );
        Ok(())
    }

    /// What is rehearsed beside the app that it was taken of is as it was, and neither the app
    /// that runs nor the one that is ended notices.
    fn verify(&self) -> Result<()> {
        if !libsnap::cgroup::is_v2() {
            return skip("cgroup v2, to hold still what was restored");
        }
        let app = self.start(PidMode::New)?;
        let before = Fingerprint::take(app.top());
        let [beside, last] = ["appshot-0", "appshot-1"].map(|name| self.place.path(name));
        let wanted = SnapshotOptions {
            verify: true,
            leave_running: true,
            ..SnapshotOptions::default()
        };
        match app.snapshot(&beside, &wanted) {
            Ok(report) => self.verified(report, &beside)?,
            Err(error) => {
                self.refusal(error)?;
                return self.finish_refused(app);
            }
        }
        judge_untouched(&before, &Fingerprint::take(app.top()), self.traits.changes)?;
        // One that ticks in between need not be found the same, and would then go on.
        let verify = !self.traits.ticking;
        let halting = SnapshotOptions {
            leave_running: false,
            verify,
            ..wanted
        };
        let report = app.snapshot(&last, &halting)?;
        if verify {
            self.verified(report, &last)?;
        }
        app.wait_gone()?;
        self.verify_gone()?;
        let app = self.place.restore(&last).context("restore")?;
        self.go()?;
        self.expect_success(app).context("after restore")
    }

    fn verified(&self, report: SnapshotReport, shot: &Path) -> Result<()> {
        self.plausible(&report, shot)?;
        let rehearsal = report.rehearsal.context("there was no rehearsal")?;
        if self.traits.ticking && rehearsal.failure.is_none() {
            return Ok(());
        }
        verified(rehearsal, shot).map(drop)
    }

    fn start(&self, pids: PidMode) -> Result<App> {
        let program = programs::build(self.program)?.display().to_string();
        let file = |name: &str| self.place.path(name).display().to_string();
        let mut app = self.place.run_with(RunOptions {
            command: vec![program, file("ready"), file("go")],
            env: vec!["APPSHOT_TEST_ENV=kept".to_owned()],
            pids,
            network: match self.traits.own_network || self.traits.own_networks {
                true => Network::Own,
                false => Network::Host,
            },
            ..RunOptions::default()
        })?;
        let ready = self.place.path("ready");
        let ended = poll("ready", PATIENCE, || {
            let ended = app.try_exit()?;
            Ok((ended.is_some() || ready.exists()).then_some(ended))
        })
        .with_context(|| self.place.log())?;
        match ended {
            None => Ok(app),
            Some(code) => {
                judge_exit(code, &self.place)?;
                bail!("the program ended before it was ready")
            }
        }
    }

    /// Takes an appshot that ends the app.
    fn freeze(&self, app: &App, number: usize) -> Result<Taken> {
        let shot = self.place.path(&format!("appshot-{number}"));
        let before = Fingerprint::take(app.top());
        let foreseen = self.check(app)?;
        match app.freeze(&shot) {
            Ok(report) => {
                ensure!(foreseen.is_empty(), "what was taken was to be refused: {foreseen:?}");
                self.plausible(&report, &shot)?;
                Ok(Taken::Appshot(shot))
            }
            Err(error) => {
                let refused = error
                    .downcast_ref::<libsnap::error::Error>()
                    .map(|error| error.refusals.clone());
                self.refusal(error)?;
                ensure!(
                    refused.as_ref() == Some(&foreseen),
                    "refused: {refused:?}; foreseen: {foreseen:?}"
                );
                let after = Fingerprint::take(app.top());
                judge_untouched(&before, &after, self.traits.changes)?;
                ensure!(!shot.exists(), "a refused snapshot left {}", shot.display());
                Ok(Taken::Refused)
            }
        }
    }

    /// What a check says of it, which knows everything that a snapshot does.
    fn check(&self, app: &App) -> Result<Vec<Refusal>> {
        let look = || libsnap::snapshot::check(&app.target(), &SnapshotOptions::default());
        if self.traits.changes.processes {
            // What forks and ends meanwhile may make a look fail, and no program that does is refused.
            look().ok();
            return Ok(Vec::new());
        }
        Ok(look()?.refusals)
    }

    fn plausible(&self, report: &SnapshotReport, shot: &Path) -> Result<()> {
        ensure!(!self.traits.refused, "it was to be refused");
        app::report_is_plausible(report, shot)
    }

    /// A refusal where it is allowed; any other error is the test's.
    fn refusal(&self, error: anyhow::Error) -> Result<()> {
        let cause = error.downcast_ref::<libsnap::error::Error>();
        let Some(cause) = cause.filter(|e| self.traits.refused && e.kind == Kind::Refused) else {
            return Err(error.context("snapshot"));
        };
        let Some(first) = cause.refusals.first() else {
            bail!("a refusal that names nothing: {error}");
        };
        note(self.test, &format!("refused: {first}"));
        Ok(())
    }

    /// The app whose snapshot was refused has to pass as if nothing had been.
    fn finish_refused(&self, app: App) -> Result<()> {
        self.go()?;
        self.expect_success(app).context("after a refused snapshot")
    }

    /// Nothing of the app runs; the temporary directory alone is still there.
    fn verify_gone(&self) -> Result<()> {
        judge_nothing_left(&self.place.scope(), &HostState::default()).context("after the snapshot")
    }

    fn stay_away(&self) {
        if self.traits.clocked {
            std::thread::sleep(AWAY);
        }
    }

    fn go(&self) -> Result<()> {
        Ok(std::fs::write(self.place.path("go"), "")?)
    }

    fn expect_success(&self, mut app: App) -> Result<()> {
        let code = app.wait_exit().with_context(|| self.place.log())?;
        judge_exit(code, &self.place)
    }
}

/// One test module a program, one test a variant:
/// `app_test!(pipes)`, `app_test!(tcp_listener, alone)`.
#[macro_export]
macro_rules! app_test {
    ($program:ident, alone $(, $trait:ident)*) => {
        mod $program {
            $crate::variant_test!(cycle, Cycle, $program, alone $(, $trait)*);
            $crate::variant_test!(two_cycles, TwoCycles, $program, alone $(, $trait)*);
            $crate::variant_test!(leave_running, LeaveRunning, $program, alone $(, $trait)*);
            $crate::variant_test!(warm, Warm, $program, alone $(, $trait)*);
            $crate::variant_test!(clones, Clones, $program, alone $(, $trait)*);
            $crate::variant_test!(same, Same, $program, alone $(, $trait)*);
            $crate::variant_test!(verify, Verify, $program, alone $(, $trait)*);
        }
    };
    ($program:ident $(, $trait:ident)*) => {
        mod $program {
            $crate::variant_test!(cycle, Cycle, $program $(, $trait)*);
            $crate::variant_test!(two_cycles, TwoCycles, $program $(, $trait)*);
            $crate::variant_test!(leave_running, LeaveRunning, $program $(, $trait)*);
            $crate::variant_test!(warm, Warm, $program $(, $trait)*);
            $crate::variant_test!(clones, Clones, $program $(, $trait)*);
            $crate::variant_test!(same, Same, $program $(, $trait)*);
            $crate::variant_test!(verify, Verify, $program $(, $trait)*);
            $crate::variant_test!(side_by_side, SideBySide, $program $(, $trait)*);
        }
    };
}

/// The variant of a program that keeps its pids on the host.
#[macro_export]
macro_rules! host_pids_test {
    ($program:ident $(, $trait:ident)*) => {
        $crate::variant_test!($program, HostPids, $program $(, $trait)*);
    };
}

/// The variant of a program that calls a vdso which is not its own.
#[macro_export]
macro_rules! bridged_test {
    ($program:ident $(, $trait:ident)*) => {
        $crate::variant_test!($program, Bridged, $program $(, $trait)*);
    };
}

#[macro_export]
macro_rules! variant_test {
    ($test:ident, $variant:ident, $program:ident $(, $trait:ident)*) => {
        #[test]
        fn $test() {
            use $crate::trial::{Traits, Variant, check};
            #[allow(unused_mut)]
            let mut traits = Traits::PLAIN;
            $($crate::app_trait!(traits, $trait);)*
            check(stringify!($program), traits, Variant::$variant);
        }
    };
}

/// Words of [`app_test!`].
#[macro_export]
macro_rules! app_trait {
    ($traits:ident, alone) => {
        $traits.alone = true
    };
    ($traits:ident, ticking) => {
        $traits.ticking = true
    };
    ($traits:ident, clocked) => {
        $traits.clocked = true
    };
    ($traits:ident, refused) => {
        $traits.refused = true
    };
    ($traits:ident, own_networks) => {
        $traits.own_networks = true
    };
    ($traits:ident, own_network) => {
        $traits.own_network = true
    };
    // It forks, maps and opens all the time.
    ($traits:ident, restless) => {
        $traits.changes = $crate::judge::Changes::ALL
    };
    // A handler runs now and then.
    ($traits:ident, handlers) => {
        $traits.changes.masks = true
    };
}
