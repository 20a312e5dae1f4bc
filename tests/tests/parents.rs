//! Appshots that are taken on another one, by the programs as they are used.

use anyhow::{Context, Result, ensure};
use appshot_tests::app::Place;
use appshot_tests::installed::Registry;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, poll};
use libsnap::image::{self, Appshot};
use libsnap::target::Instance;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

/// Processes of a tree that tell, each time they are asked to by a file, a digest of their
/// memory, and change a little of it each time they are told to.
const TREE: &str = r#"
import hashlib, os, sys, time
base = sys.argv[1]
data = [bytes([i % 251]) * 4096 for i in range(3000)]
number = 0
for child in range(1, 4):
    if os.fork() == 0:
        number = child
        break
changes = 0
open(f"{base}-ready-{number}", "w").close()
while True:
    time.sleep(0.01)
    if os.path.exists(f"{base}-change-{changes + 1}"):
        changes += 1
        for i in range(number, 3000, 500):
            data[i] = bytes([(i + changes * 7 + number) % 251]) * 4096
        open(f"{base}-changed-{number}-{changes}", "w").close()
    for ask in [name for name in os.listdir(os.path.dirname(base)) if ".ask." in name]:
        told = f"{os.path.dirname(base)}/{ask.replace('.ask.', '.told.')}-{number}"
        if not os.path.exists(told):
            digest = hashlib.sha256()
            for block in data:
                digest.update(block)
            with open(told + "+", "w") as file:
                file.write(f"{changes} {digest.hexdigest()}")
            os.rename(told + "+", told)
"#;

const PROCESSES: usize = 4;

struct Tree<'a> {
    place: &'a Place,
    registry: Registry,
    asked: std::cell::Cell<usize>,
}

impl Tree<'_> {
    fn run(place: &Place) -> Result<Tree<'_>> {
        let registry = Registry::new(place)?;
        let base = place.path("tree").display().to_string();
        let words = [
            "-q",
            "run",
            "-d",
            "--name",
            place.unique(),
            "--",
            "/usr/bin/python3",
            "-c",
        ];
        registry.appshot(&[&words[..], &[TREE, &base]].concat())?;
        let tree = Tree {
            place,
            registry,
            asked: std::cell::Cell::new(0),
        };
        (0..PROCESSES).try_for_each(|number| tree.there(&format!("tree-ready-{number}")))?;
        Ok(tree)
    }

    fn there(&self, name: &str) -> Result<()> {
        poll(name, PATIENCE, || Ok(self.place.path(name).exists().then_some(())))
    }

    fn change(&self, number: usize) -> Result<()> {
        let word = self.place.path(&format!("tree-change-{number}"));
        fs::write(&word, "")?;
        (0..PROCESSES).try_for_each(|process| self.there(&format!("tree-changed-{process}-{number}")))?;
        // Nothing to an instance of before.
        Ok(fs::remove_file(word)?)
    }

    /// What its processes say of themselves.
    fn told(&self) -> Result<Vec<String>> {
        let number = self.asked.replace(self.asked.get() + 1);
        let ask = self.place.path(&format!("n.ask.{number}"));
        fs::write(&ask, "")?;
        let told = (0..PROCESSES).map(|process| {
            let answer = self.place.path(&format!("n.told.{number}-{process}"));
            poll("an answer", PATIENCE, || Ok(fs::read_to_string(&answer).ok()))
        });
        let told = told.collect::<Result<Vec<String>>>()?;
        fs::remove_file(ask)?;
        Ok(told)
    }

    fn snapshot(&self, tag: &str, more: &[&str]) -> Result<()> {
        let words = ["-q", "snapshot", self.place.unique(), "--leave-running", "--tag", tag];
        self.registry.appshot(&[&words[..], more].concat()).map(drop)
    }

    fn path(&self, tag: &str) -> PathBuf {
        self.registry.data.join(format!("appshots/{tag}.appshot"))
    }

    /// What must not work is refused with these words.
    fn refused(&self, words: &[&str], because: &str) -> Result<()> {
        let Err(error) = self.registry.appshot(words) else {
            anyhow::bail!("{words:?} went through");
        };
        ensure!(error.to_string().contains(because), "expected {because:?} in: {error}");
        Ok(())
    }

    /// An instance of the appshot says the same as the app did.
    fn restored(&self, tag: &str, expected: &[String]) -> Result<()> {
        let name = format!("{}-back", self.place.unique());
        self.registry.appshot(&["-q", "restore", "-d", tag, "--name", &name])?;
        ensure!(self.told()? == expected, "{tag} is another");
        self.end(&name)
    }

    fn end(&self, name: &str) -> Result<()> {
        self.registry.appshot(&["kill", "-s", "KILL", "--wait", name])?;
        self.registry.appshot(&["rm", name]).map(drop)
    }

    /// How much of the memory of its processes it stores, shares and borrows.
    fn parts(&self, tag: &str) -> Result<(u64, u64, u64)> {
        let shot = Appshot::open(&self.path(tag))?;
        let (own, all) = (shot.manifest.parts.len(), shot.cores.iter());
        let mut parts = (0, 0, 0);
        for (core, segment) in all.flat_map(|core| core.segments.iter().map(move |segment| (core, segment))) {
            match segment.part {
                part if part == core.part => parts.0 += segment.bytes,
                part if part < own => parts.1 += segment.bytes,
                _ => parts.2 += segment.bytes,
            }
        }
        Ok(parts)
    }
}

/// A chain of three: each stores what has changed, and is what the app was; its parents
/// are kept until it is flattened, or gone.
#[test]
fn a_chain() {
    in_place("a_chain", |place| {
        let tree = Tree::run(place)?;
        tree.snapshot("a", &[])?;
        tree.is_shared()?;
        let first = tree.told()?;
        let (own, shared, _) = tree.parts("a")?;
        ensure!(shared > 2 * own, "{own} bytes stored, {shared} shared");
        tree.change(1)?;
        let second = tree.told()?;
        tree.snapshot("b", &["--parent", "a"])?;
        tree.change(2)?;
        let third = tree.told()?;
        tree.snapshot("c", &["--parent", "b"])?;
        for tag in ["b", "c"] {
            let (less, _, borrowed) = tree.parts(tag)?;
            ensure!(
                less < own / 2 && borrowed > own,
                "{tag}: {less} bytes stored, {borrowed} borrowed"
            );
        }
        tree.end_app()?;
        tree.refused(&["rm", "--appshot", "a"], "b.appshot")?;
        tree.refused(&["flatten", "a"], "needs no other")?;
        tree.refused(&["flatten", "b"], "c.appshot")?;
        for (tag, told) in [("a", &first), ("b", &second), ("c", &third)] {
            tree.restored(tag, told)?;
        }
        let shown = tree.registry.appshot(&["inspect", "c"])?;
        let parent = shown.lines().filter(|line| line.starts_with("parent")).count();
        ensure!(parent == 2 && shown.contains("from parents"), "{shown}");
        // Packed, it is whole.
        let packed = place.path("c.packed").display().to_string();
        tree.registry.appshot(&["-q", "store", "export", "c", "-o", &packed])?;
        tree.registry
            .appshot(&["-q", "store", "import", &packed, "--name", "d"])?;
        ensure!(
            tree.parts("d")?.2 == 0 && image::needed(&tree.path("d"))?.is_empty(),
            "packed"
        );
        ensure!(tree.registry.appshot(&["diff", "c", "d"])?.is_empty(), "packed");
        let told = tree.registry.appshot(&["diff", "a", "b"]);
        ensure!(told.is_err(), "the app has changed its memory: {told:?}");
        tree.restored("d", &third)?;
        tree.registry.appshot(&["-q", "flatten", "c"])?;
        ensure!(tree.parts("c")?.2 == 0, "flattened");
        let (flat, shared, _) = tree.parts("c")?;
        ensure!(shared > flat, "{flat} bytes stored, {shared} shared");
        tree.restored("c", &third)?;
        tree.registry.appshot(&["rm", "--appshot", "c"])?;
        tree.registry.appshot(&["rm", "--appshot", "b"])?;
        tree.registry.appshot(&["rm", "--appshot", "a"]).map(drop)
    });
}

impl Tree<'_> {
    /// The app that ran on has no more memory than before.
    fn is_shared(&self) -> Result<()> {
        let views: Vec<Value> = serde_json::from_str(&self.registry.appshot(&["ps", "-o", "json"])?)?;
        let own = views.iter().find(|view| view["name"] == self.place.unique());
        let root = own.context("it is not listed")?["root"].clone();
        let rollup = fs::read_to_string(format!("/proc/{root}/smaps_rollup"))?;
        let kilobytes = |field: &str| {
            let line = rollup.lines().find_map(|line| line.strip_prefix(field));
            let number = line.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
            number.with_context(|| format!("no {field} in {rollup}"))
        };
        let (all, part) = (kilobytes("Anonymous:")?, kilobytes("Pss_Anon:")?);
        ensure!(part < all / 2, "{part} kB of {all} are its own after a snapshot");
        Ok(())
    }

    fn end_app(&self) -> Result<()> {
        self.end(self.place.unique())
    }
}

/// From a daemon: instances of an appshot that it keeps or has opened, and clones. A
/// parent that goes or is damaged meanwhile is noticed.
#[test]
fn instances_and_clones() {
    in_place("instances_and_clones", |place| {
        let tree = Tree::run(place)?;
        tree.snapshot("a", &[])?;
        tree.change(1)?;
        let told = tree.told()?;
        let daemon = tree.registry.daemon("snapd", "")?;
        let ask = json!({ "target": place.unique(), "leave_running": true, "parent": "a", "tag": "b" });
        let _: Value = daemon.client.post("/v1/snapshots", &ask)?;
        let refused = daemon.client.delete::<Value>("/v1/appshots/a").expect_err("b needs it");
        ensure!(refused.to_string().contains("b.appshot"), "{refused}");
        let ask =
            json!({ "target": place.unique(), "leave_running": true, "parent": "a", "tag": "a", "replace": true });
        let refused = daemon
            .client
            .post::<Value>("/v1/snapshots", &ask)
            .expect_err("its parent");
        ensure!(refused.to_string().contains("place of its parent"), "{refused}");
        daemon.stop()?;
        tree.end_app()?;
        let daemon = tree.registry.daemon("restored", "")?;
        let name = format!("{}-back", place.unique());
        let ask = json!({ "appshot": "b", "name": name });
        for _ in 0..2 {
            let up: Instance = daemon.client.post("/v1/instances", &ask)?;
            ensure!(up.processes == PROCESSES && tree.told()? == told, "another one");
            daemon.client.delete::<Value>(&format!("/v1/instances/{name}"))?;
        }
        let clones: Vec<Instance> = daemon
            .client
            .post("/v1/clones", &json!({ "appshot": "b", "count": 1 }))?;
        ensure!(tree.told()? == told, "another clone");
        tree.end(&clones[0].name)?;
        let (parent, aside) = (tree.path("a"), place.path("aside"));
        fs::rename(&parent, &aside)?;
        let missing = daemon
            .client
            .post::<Instance>("/v1/instances", &ask)
            .expect_err("no parent");
        ensure!(missing.to_string().contains("a.appshot, which is missing"), "{missing}");
        fs::rename(&aside, &parent)?;
        flip(&parent.join("2.core"))?;
        let damaged = daemon
            .client
            .post::<Instance>("/v1/instances", &ask)
            .expect_err("damage");
        ensure!(damaged.to_string().contains("a.appshot/2.core"), "{damaged}");
        daemon.stop()
    });
}

/// Changes a byte in each leaf.
fn flip(part: &Path) -> Result<()> {
    let mut bytes = fs::read(part)?;
    bytes.iter_mut().skip(5000).step_by(65536).for_each(|byte| *byte ^= 1);
    fs::write(part, bytes).with_context(|| part.display().to_string())
}
