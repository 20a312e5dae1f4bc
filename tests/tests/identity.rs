//! What makes a clone another one, and how an app hears of it: random numbers with and
//! without the recipes of `docs/recipes`, hooks, and those who take part by files.

use anyhow::{Context, Result, bail, ensure};
use appshot_tests::app::Place;
use appshot_tests::installed::Registry;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, need_program, poll};
use libsnap::ids::HostPid;
use libsnap::participants::Directory;
use libsnap::target::Instance;
use nodekit::local::{free_port, http_get};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

const RELEASE: &str = "release";

fn repository(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    root.join(path).display().to_string()
}

fn built(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// An app in a registry of its own.
struct Rig<'a> {
    place: &'a Place,
    registry: Registry,
}

impl<'a> Rig<'a> {
    fn new(place: &'a Place) -> Result<Rig<'a>> {
        let registry = Registry::new(place)?;
        registry.show_log(place)?;
        Ok(Rig { place, registry })
    }

    fn name(&self) -> &str {
        self.place.unique()
    }

    fn file(&self, name: &str) -> String {
        self.place.path(name).display().to_string()
    }

    /// Starts the app and waits until it says that it is ready.
    fn run(&self, words: &[&str], command: &[&str]) -> Result<Instance> {
        let ready = self.place.path("ready");
        let first = ["-q", "run", "-d", "-o", "json", "--name", self.name()];
        let words = [&first[..], words, &["--"], command].concat();
        let instance = serde_json::from_str(&self.registry.appshot(&words)?)?;
        poll("ready", PATIENCE, || Ok(ready.exists().then_some(())))?;
        fs::remove_file(ready)?;
        Ok(instance)
    }

    fn appshot(&self, words: &[&str]) -> Result<String> {
        self.registry.appshot(words)
    }

    /// What it was refused with.
    fn refused(&self, words: &[&str]) -> Result<String> {
        match self.appshot(words) {
            Ok(done) => bail!("appshot {words:?} was not refused: {done}"),
            Err(error) => Ok(format!("{error:#}")),
        }
    }

    /// Two clones; their names.
    fn clones(&self, words: &[&str]) -> Result<Vec<String>> {
        let words = [&["-q", "clone", self.name(), "-n", "2"], words].concat();
        Ok(self.appshot(&words)?.lines().map(str::to_owned).collect())
    }

    fn end(&self, names: &[String]) -> Result<()> {
        let mut names = names.iter();
        names.try_for_each(|name| self.appshot(&["kill", "-s", "KILL", "--wait", name]).map(drop))
    }

    /// What a clone draws when it is asked to.
    fn drawn(&self, name: &str) -> Result<BTreeMap<String, String>> {
        fs::write(self.file(&format!("ask-{name}")), "")?;
        let answer = self.file(&format!("drawn-{name}"));
        let text = poll("numbers", PATIENCE, || Ok(fs::read_to_string(&answer).ok()))?;
        fs::remove_file(answer)?;
        let words = text.split(' ').filter_map(|word| word.split_once('='));
        Ok(words
            .map(|(label, number)| (label.to_owned(), number.to_owned()))
            .collect())
    }

    /// Puts the app to sleep and clones it twice; answers of which generators both draw
    /// the same.
    fn alike(&self, words: &[&str]) -> Result<Vec<String>> {
        let names = self.clones(words)?;
        let [one, other] = [self.drawn(&names[0])?, self.drawn(&names[1])?];
        self.end(&names)?;
        ensure!(one.len() > 1 && one.keys().eq(other.keys()), "{one:?} {other:?}");
        let same = one.into_iter().filter(|(label, number)| other[label] == *number);
        Ok(same.map(|(label, _)| label).collect())
    }

    fn told(&self) -> String {
        fs::read_to_string(self.place.path("told")).unwrap_or_default()
    }
}

/// What an app is run with, and what of its random state is then in every clone.
struct Drawing<'a> {
    command: Vec<&'a str>,
    words: Vec<&'a str>,
    clone: Vec<&'a str>,
    alike: &'a [&'a str],
}

/// Without the recipe `--strict` refuses, naming these; with it, it does not.
fn draws(rig: &Rig<'_>, named: &[&str], without: &Drawing<'_>, with: Option<&Drawing<'_>>) -> Result<()> {
    let daemon = rig.registry.daemon("restored", "")?;
    rig.run(&without.words, &without.command)?;
    rig.appshot(&["-q", "snapshot", rig.name()])?;
    let refused = rig.refused(&["clone", rig.name(), "--strict"])?;
    for word in named {
        ensure!(
            refused.contains(word) && refused.contains("nothing was started"),
            "{refused}"
        );
    }
    let alike = rig.alike(&without.clone)?;
    ensure!(alike == without.alike, "without the recipe the same: {alike:?}");
    if let Some(with) = with {
        rig.run(&with.words, &with.command)?;
        rig.appshot(&["-q", "snapshot", "--replace", rig.name()])?;
        let alike = rig.alike(&[&["--strict"], &with.clone[..]].concat())?;
        ensure!(alike == with.alike, "with the recipe the same: {alike:?}");
    }
    daemon.stop()
}

#[test]
fn python() {
    in_place("python", |place| {
        let python = need_program(&["/usr/bin/python3"])?.display().to_string();
        let (rig, script) = (Rig::new(place)?, repository("tests/random/draw.py"));
        let (dir, recipes) = (place.dir().display().to_string(), repository("docs/recipes"));
        let drawing = |recipe, words: &[&'static str], alike| Drawing {
            command: [python.as_str(), "-B", &script, &dir, recipe].to_vec(),
            words: words.to_vec(),
            clone: Vec::new(),
            alike,
        };
        draws(
            &rig,
            &[
                "python3",
                "libcrypto.so.3: OpenSSL's RAND_bytes",
                "Python's random",
                "--after-restore",
            ],
            &drawing("none", &[], &["openssl", "random"]),
            Some(&drawing(&recipes, &["--after-restore", "signal:USR2"], &[])),
        )
    });
}

/// A library that takes part, and a function in another one's place.
#[test]
fn node() {
    in_place("node", |place| {
        let [node, cc] = [need_program(&["node", "nodejs"])?, need_program(&["cc"])?].map(|p| p.display().to_string());
        let (rig, script) = (Rig::new(place)?, repository("tests/random/draw.cjs"));
        let (dir, library) = (place.dir().display().to_string(), rig.file("reseed.so"));
        let source = repository("docs/recipes/reseed.c");
        built(Command::new(cc).args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", &library, &source]))?;
        let (preload, require) = (format!("LD_PRELOAD={library}"), repository("docs/recipes/reseed.cjs"));
        draws(
            &rig,
            &["node", "OpenSSL's RAND_bytes", "Math.random()"],
            &Drawing {
                command: vec![&node, &script, &dir],
                words: Vec::new(),
                clone: Vec::new(),
                alike: &["math", "openssl"],
            },
            Some(&Drawing {
                command: vec![&node, "--require", &require, &script, &dir],
                words: vec!["--env", &preload],
                clone: vec!["--hook-required", "--hook-timeout", "60"],
                alike: &[],
            }),
        )
    });
}

#[test]
fn java() {
    in_place("java", |place| {
        let [compiler, java] = [need_program(&["javac"])?, need_program(&["java"])?].map(|p| p.display().to_string());
        let (rig, dir) = (Rig::new(place)?, place.dir().display().to_string());
        let sources = ["tests/random/Draw.java", "docs/recipes/Fresh.java"].map(repository);
        built(Command::new(compiler).args(["-d", &dir]).args(sources))?;
        let drawing = Drawing {
            command: vec![&java, "-Xmx64m", "-cp", &dir, "Draw", &dir],
            words: Vec::new(),
            clone: Vec::new(),
            alike: &["local", "math", "random"],
        };
        draws(&rig, &["java", "libjvm.so: Java's Random"], &drawing, None)
    });
}

#[test]
fn go() {
    in_place("go", |place| {
        let compiler = need_program(&["go"])?;
        let (rig, dir) = (Rig::new(place)?, place.dir().display().to_string());
        // One directory: a package.
        let sources = ["tests/random/draw.go", "docs/recipes/reseed.go"].map(repository);
        for source in &sources {
            let name = Path::new(source).file_name().context("a file")?;
            fs::copy(source, place.path(&name.to_string_lossy()))?;
        }
        let build = |name: &str, sources: &[&str]| -> Result<String> {
            let binary = rig.file(name);
            let mut build = Command::new(&compiler);
            build
                .args(["build", "-ldflags", "-s -w", "-o", &binary])
                .args(sources)
                .current_dir(place.dir());
            build
                .env("GO111MODULE", "off")
                .env("CGO_ENABLED", "0")
                .env("GOFLAGS", "")
                .env("GOPATH", place.path("go"))
                .env("GOCACHE", std::env::temp_dir().join("appshot-go-cache"));
            built(&mut build)?;
            Ok(binary)
        };
        let [without, with] = [
            build("plain", &["draw.go"])?,
            build("reseeding", &["draw.go", "reseed.go"])?,
        ];
        let drawing = |binary, words: &[&'static str], alike| Drawing {
            command: vec![binary, &dir],
            words: words.to_vec(),
            clone: Vec::new(),
            alike,
        };
        draws(
            &rig,
            &["Go's math/rand"],
            &drawing(&without, &[], &["math"]),
            Some(&drawing(&with, &["--after-restore", "signal:USR2"], &[])),
        )
    });
}

/// The server of `told.py`.
struct Server<'a> {
    rig: Rig<'a>,
    port: u16,
    script: String,
}

impl<'a> Server<'a> {
    fn new(place: &'a Place) -> Result<Server<'a>> {
        need_program(&["/usr/bin/python3"])?;
        Ok(Server {
            rig: Rig::new(place)?,
            port: free_port()?,
            script: repository("tests/random/told.py"),
        })
    }

    fn run(&self, words: &[&str]) -> Result<Instance> {
        let (dir, port) = (self.rig.place.dir().display().to_string(), self.port.to_string());
        self.rig
            .run(words, &["/usr/bin/python3", "-B", &self.script, &dir, &port])
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    fn ensure_well(&self) -> Result<()> {
        ensure!(http_get(self.port, "/")? == "here");
        Ok(())
    }
}

/// Who is told before the snapshot, is told once, and its connection is not in the way.
#[test]
fn told_before_a_snapshot() {
    in_place("told_before_a_snapshot", |place| {
        let server = Server::new(place)?;
        let rig = &server.rig;
        // Declared when it is started; the first of these is taken instead once.
        let declared = [
            "--before-snapshot",
            "signal:USR1",
            "--before-snapshot",
            &server.url("ok"),
        ];
        server.run(&declared)?;
        let name = rig.name();
        rig.appshot(&["-q", "snapshot", "--leave-running", "--tag", &format!("{name}-a"), name])?;
        let asked = format!("signal 10 to server\nPOST /ok {{\"app\":\"{name}\",\"phase\":\"snapshot\"}}\n");
        ensure!(rig.told() == asked, "{}", rig.told());
        let snapshot = |words: &[&str]| {
            let words = [&["-q", "snapshot", name, "--leave-running"], words].concat();
            rig.refused(&words)
        };
        fs::remove_file(place.path("told"))?;
        let all = ["--before-snapshot", "signal-all:USR2", "--tag", &format!("{name}-b")];
        rig.appshot(&[&["-q", "snapshot", name, "--leave-running"], &all[..]].concat())?;
        let both = |told: &str| ["server", "helper"].map(|role| told.contains(&format!("signal 12 to {role}\n")));
        poll("both to be told", PATIENCE, || {
            Ok((both(&rig.told()) == [true; 2]).then_some(()))
        })?;
        for (hook, named) in [
            (server.url("refuse"), "503 Service Unavailable busy with a migration"),
            (format!("http://127.0.0.1:{}/ok", free_port()?), "Connection refused"),
            ("signal:HUP".to_owned(), "does not handle SIGHUP"),
            ("http://example.org/".to_owned(), "neither an address nor localhost"),
        ] {
            let refused = snapshot(&["--tag", "never", "--before-snapshot", &hook])?;
            let states = refused.contains("the app is running as before");
            ensure!(refused.contains(named) && states, "{hook}: {refused}");
            server.ensure_well()?;
        }
        let hang = server.url("hang");
        let late = snapshot(&["--tag", "never", "--hook-timeout", "0.2", "--before-snapshot", &hang])?;
        ensure!(late.contains("no answer within 200ms"), "{late}");
        server.ensure_well()?;
        fs::write(place.path(RELEASE), "")?;
        // Whatever is wrong with the hooks, without them it goes.
        poll("the server to let go", PATIENCE, || {
            Ok(rig.appshot(&["-q", "snapshot", "--no-hooks", name]).ok())
        })?;
        ensure!(!rig.registry.data.join("appshots/never.appshot").exists());
        rig.appshot(&["-q", "restore", "-d", name])?;
        server.ensure_well()?;
        rig.end(&[name.to_owned()])
    });
}

#[test]
fn told_after_a_restore() {
    in_place("told_after_a_restore", |place| {
        let server = Server::new(place)?;
        let (rig, name) = (&server.rig, place.unique());
        let told = |lines: usize, words: &[&str]| -> Result<String> {
            let _ = fs::remove_file(place.path("told"));
            let mut command = rig.registry.command("appshot");
            let output = command
                .args(["-q", "restore", "-d", "-o", "json", name])
                .args(words)
                .output()?;
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success(), "{error}");
            let instance: Instance = serde_json::from_slice(&output.stdout)?;
            let own = format!("/proc/{}/root/run/appshot-instance", instance.root);
            let [phase, generation] = ["phase", "generation"].map(|file| fs::read_to_string(format!("{own}/{file}")));
            ensure!(phase? == format!("restored {}", generation.as_deref().unwrap_or_default()));
            server.ensure_well()?;
            let told = poll("it to be told", PATIENCE, || {
                Ok(Some(rig.told()).filter(|told| told.lines().count() >= lines))
            })?;
            let told = told.replace(generation?.trim(), "GENERATION");
            rig.appshot(&["-q", "snapshot", "--replace", name])?;
            Ok(told + &error)
        };
        server.run(&["--after-restore", "signal:USR2", "--after-restore", &server.url("ok")])?;
        rig.appshot(&["-q", "snapshot", name])?;
        let declared = format!("{{\"app\":\"{name}\",\"generation\":\"GENERATION\",\"phase\":\"restored\"}}");
        // The second time by the record of the restored one.
        for _ in 0..2 {
            let told = told(2, &[])?;
            ensure!(told == format!("signal 12 to server\nPOST /ok {declared}\n"), "{told}");
        }
        let refuse = server.url("refuse");
        let warned = told(1, &["--after-restore", &refuse])?;
        ensure!(warned.contains("warning: ") && warned.contains("503"), "{warned}");
        let required = ["restore", "-d", name, "--hook-required", "--after-restore", &refuse];
        let refused = rig.refused(&required)?;
        ensure!(
            refused.contains("503") && refused.contains("nothing was left behind"),
            "{refused}"
        );
        let deaf = rig.refused(&["restore", "-d", name, "--after-restore", "signal:HUP"])?;
        ensure!(deaf.contains("does not handle SIGHUP"), "{deaf}");
        ensure!(told(0, &["--no-hooks"])?.is_empty(), "{}", rig.told());
        let all = told(2, &["--after-restore", "signal-all:USR1"])?;
        let lines: std::collections::BTreeSet<&str> = all.lines().collect();
        ensure!(lines == ["signal 10 to helper", "signal 10 to server"].into(), "{all}");
        // By the daemon, too.
        let daemon = rig.registry.daemon("restored", "")?;
        let refused = rig.refused(&["clone", name, "--hook-required", "--after-restore", &refuse])?;
        ensure!(refused.contains("503"), "{refused}");
        daemon.stop()
    });
}

/// An app that has a file of its own directory open when it is frozen has that of the instance
/// which it becomes.
#[test]
fn what_is_open_of_its_own() {
    in_place("what_is_open_of_its_own", |place| {
        let rig = Rig::new(place)?;
        let [ready, go, told] = ["ready", "go", "told"].map(|name| rig.file(name));
        let script = format!(
            "exec 9</run/appshot-instance/name; touch {ready}; while [ ! -e {go} ]; do sleep 0.02; done; \
             cat <&9 >{told}.next; mv {told}.next {told}; exec sleep 1000"
        );
        rig.run(&[], &["/bin/sh", "-c", &script])?;
        rig.appshot(&["-q", "snapshot", rig.name()])?;
        let other = format!("{}-other", rig.name());
        rig.appshot(&["-q", "restore", rig.name(), "-d", "--name", &other])?;
        fs::write(&go, "")?;
        poll("its name", PATIENCE, || {
            Ok((rig.told() == format!("{other}\n")).then_some(()))
        })?;
        rig.end(&[other])
    });
}

fn phase(instance: &Instance) -> Result<String> {
    let directory = Directory::of(instance.root).context("it has no directory of its own")?;
    directory.phase().context("it has no phase")
}

/// By files only, in a shell.
#[test]
fn who_takes_part_is_asked() {
    in_place("who_takes_part_is_asked", |place| {
        let (rig, name) = (Rig::new(place)?, place.unique());
        let script = format!(
            "touch {}; . {}",
            rig.file("ready"),
            repository("docs/recipes/take-part.sh")
        );
        let command = ["/bin/sh", "-c", &script];
        let running = rig.run(&[], &command)?;
        let patient = ["--hook-timeout", "60"];
        poll("its file", PATIENCE, || {
            let directory = Directory::of(running.root).context("it has no directory of its own")?;
            Ok((directory.participants() == ["script"]).then_some(()))
        })?;
        rig.appshot(
            &[
                &["-q", "snapshot", "--leave-running", "--tag", &format!("{name}-a"), name],
                &patient[..],
            ]
            .concat(),
        )?;
        ensure!(phase(&running)? == "running");
        rig.appshot(&[&["-q", "snapshot", name], &patient[..]].concat())?;
        ensure!(place.log() == "before a snapshot\n".repeat(2), "{}", place.log());
        let words = [
            &["-q", "restore", "-d", "-o", "json", "--hook-required", name],
            &patient[..],
        ]
        .concat();
        let restored: Instance = serde_json::from_str(&rig.appshot(&words)?)?;
        let generation = phase(&restored)?.replace("restored ", "");
        let said = place.log();
        ensure!(
            said.ends_with(&format!("restored as generation {generation}\n")),
            "{said}"
        );
        // Its file is there again, and it is asked again.
        rig.appshot(&[&["-q", "snapshot", "--replace", name], &patient[..]].concat())?;
        ensure!(place.log().matches("before a snapshot").count() == 3, "{}", place.log());
        Ok(())
    });
}

/// Somebody who never answers, as another user.
#[test]
fn who_does_not_answer_is_named() {
    in_place("who_does_not_answer_is_named", |place| {
        let (rig, name) = (Rig::new(place)?, place.unique());
        let script = format!(
            ": > /run/appshot-instance/hooks/mute; : > /run/appshot-instance/hooks/.no; touch {}; exec sleep 1000",
            rig.file("ready")
        );
        let user = ["--user", "65534:65534"];
        let running = rig.run(&user, &["/bin/sh", "-c", &script])?;
        let refused = rig.refused(&["snapshot", name, "--hook-timeout", "0.2"])?;
        let named = ["mute did not answer", "the app is running as before", "--no-hooks"];
        ensure!(named.iter().all(|word| refused.contains(word)), "{refused}");
        ensure!(phase(&running)? == "running");
        // Whoever asks may be killed.
        let mut asking = rig.registry.command("appshot");
        let mut asking = asking
            .args(["-q", "snapshot", name, "--hook-timeout", "600"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        poll("to be asked", PATIENCE, || {
            Ok(phase(&running)?.starts_with("snapshot ").then_some(()))
        })?;
        let worker = child_of(asking.id())?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(worker.0), nix::sys::signal::Signal::SIGKILL)?;
        ensure!(!asking.wait()?.success());
        poll("the end of that", PATIENCE, || {
            Ok((phase(&running)? == "running").then_some(()))
        })?;
        rig.appshot(&["-q", "snapshot", "--no-hooks", name])?;
        let refused = rig.refused(&["restore", "-d", name, "--hook-required", "--hook-timeout", "0.2"])?;
        ensure!(refused.contains("mute did not answer"), "{refused}");
        rig.appshot(&["-q", "restore", "-d", name])?;
        rig.end(&[name.to_owned()])
    });
}

/// Its only child.
fn child_of(pid: u32) -> Result<HostPid> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(HostPid(
        text.trim().parse().with_context(|| format!("children: {text}"))?,
    ))
}
