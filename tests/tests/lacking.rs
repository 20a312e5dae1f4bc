//! Kernels that lack something, by forcing what is tried (`APPSHOT_LACKS`, in a debug build): what
//! stands in does the same, and where nothing can the snapshot is refused and the app untouched.
//! The small programs run as a whole where PAGEMAP_SCAN and userfaultfd are lacking: `.ci/run`.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::installed::Registry;
use appshot_tests::judge::{Changes, Fingerprint, judge_untouched};
use appshot_tests::programs;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, poll};
use serde_json::Value;
use std::process::Output;

/// What a command answers on a kernel that lacks this.
fn lacking(registry: &Registry, feature: &str, words: &[&str]) -> Result<Output> {
    let mut command = registry.command("appshot");
    Ok(command.env("APPSHOT_LACKS", feature).args(words).output()?)
}

/// A program that stands where it can be frozen, under the place's name.
fn started(place: &Place, registry: &Registry, program: &str) -> Result<i32> {
    started_with(place, registry, program, "LANG=C")
}

fn started_with(place: &Place, registry: &Registry, program: &str, variable: &str) -> Result<i32> {
    let path = programs::build(program)?.display().to_string();
    let [ready, go] = ["ready", "go"].map(|name| place.path(name).display().to_string());
    let name = place.unique();
    registry.appshot(&["run", "--name", name, "-d", "--env", variable, "--", &path, &ready, &go])?;
    poll("ready", PATIENCE, || Ok(place.path("ready").exists().then_some(())))?;
    let all: Vec<Value> = serde_json::from_str(&registry.appshot(&["ps", "-o", "json"])?)?;
    let pid = all.iter().find_map(|app| app["root"].as_i64());
    Ok(i32::try_from(pid.context("the app runs")?)?)
}

fn ended(place: &Place, registry: &Registry) -> Result<()> {
    registry
        .appshot(&["kill", "-s", "KILL", "--wait", place.unique()])
        .map(drop)
}

/// It says so, and the app is as it was; where nothing is lacking it is frozen.
fn refused(test: &'static str, feature: &'static str, needs: &'static str) {
    in_place(test, move |place| {
        let registry = Registry::new(place)?;
        let pid = started(place, &registry, "shared_offsets")?;
        let before = Fingerprint::take(pid);
        let refused = lacking(&registry, feature, &["snapshot", place.unique()])?;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(!refused.status.success(), "a snapshot without {feature}: {told}");
        ensure!(told.contains(needs), "expected {needs:?} in: {told}");
        judge_untouched(&before, &Fingerprint::take(pid), Changes::NONE)?;
        registry.appshot(&["snapshot", place.unique()])?;
        registry.appshot(&["restore", place.unique(), "-d"])?;
        ended(place, &registry)
    });
}

#[test]
fn without_kcmp_no_one_can_tell_what_is_shared() {
    refused("lacking::kcmp", "kcmp", "CONFIG_KCMP");
}

#[test]
fn without_rseq_configuration_threads_would_be_told_wrong_processors() {
    refused("lacking::rseq", "rseq_configuration", "Linux 5.13");
}

/// As of a C library that knows of none (before 2.35): nothing is lost.
#[test]
fn without_rseq_configuration_who_has_registered_nothing_is_frozen() {
    in_place("lacking::no_rseq", |place| {
        let registry = Registry::new(place)?;
        started_with(
            place,
            &registry,
            "shared_offsets",
            "GLIBC_TUNABLES=glibc.pthread.rseq=0",
        )?;
        let taken = lacking(&registry, "rseq_configuration", &["snapshot", place.unique()])?;
        let told = String::from_utf8_lossy(&taken.stderr).into_owned();
        ensure!(taken.status.success(), "a snapshot of who has registered none: {told}");
        registry.appshot(&["restore", place.unique(), "-d"])?;
        ended(place, &registry)
    });
}

/// Rings are refused by name; what else only the kernel's memory tells is named as not seen.
#[test]
fn without_the_kernels_memory_it_is_told_what_is_not_seen() {
    in_place("lacking::bpf", |place| {
        let registry = Registry::new(place)?;
        let pid = started(place, &registry, "uring")?;
        let before = Fingerprint::take(pid);
        let check = lacking(&registry, "bpf", &["check", place.unique(), "-o", "json"])?;
        let told: Value = serde_json::from_slice(&check.stdout)?;
        ensure!(
            check.status.code() == Some(4),
            "a check of a ring that nobody can read: {told}"
        );
        let reasons = told["refusals"].to_string();
        ensure!(
            reasons.contains("what the kernel keeps for it cannot be read"),
            "{told}"
        );
        ensure!(told["unseen"].to_string().contains("Landlock"), "{told}");
        judge_untouched(&before, &Fingerprint::take(pid), Changes::NONE)?;
        let here: Value = serde_json::from_str(&registry.appshot(&["check", place.unique(), "-o", "json"])?)?;
        ensure!(here.get("unseen").is_none(), "{here}");
        ended(place, &registry)
    });
}

/// Lazy memory needs userfaultfd: it comes at once where that is lacking.
#[test]
fn without_userfaultfd_memory_comes_at_once() {
    in_place("lacking::userfaultfd", |place| {
        let registry = Registry::new(place)?;
        started(place, &registry, "anon_memory")?;
        registry.appshot(&["snapshot", place.unique()])?;
        // It ends with the code of the program, which looks at all of it.
        std::fs::write(place.path("go"), "")?;
        let words = ["restore", place.unique(), "--memory", "lazy"];
        let restored = lacking(&registry, "userfaultfd,pagemap_scan", &words)?;
        let told = String::from_utf8_lossy(&restored.stderr).into_owned();
        ensure!(restored.status.success(), "a lazy restore without userfaultfd: {told}");
        Ok(())
    });
}
