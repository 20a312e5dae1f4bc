//! TCP connections with peers outside go on where they were (`--tcp=established`). Network namespaces
//! are the hosts: one of the peers, two on which the app is, one after the other; all by one bridge.

use anyhow::{Context, Result, bail, ensure};
use appshot_tests::app::{App, Place};
use appshot_tests::clients::free_port;
use appshot_tests::installed::Registry;
use appshot_tests::servers::Postgres;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, need_root, poll};
use libsnap::error::{Error, Kind};
use libsnap::target::{HeldDescriptor, RestoreOptions, RunOptions, SnapshotOptions, TcpPolicy};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const APP: [&str; 2] = ["10.96.0.2", "fd96::2"];
const PEER: [&str; 2] = ["10.96.0.1", "fd96::1"];

/// Three hosts; the second has the app's addresses, until they move to the third.
struct Lan {
    names: [String; 3],
}

impl Lan {
    fn new() -> Result<Lan> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let unique = format!("est{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let names = ["c", "s", "t"].map(|host| format!("{unique}{host}"));
        let lan = Lan { names };
        let [peers, one, other] = &lan.names;
        for name in &lan.names {
            ip(&format!("netns add {name}"))?;
            ip(&format!("-n {name} link set lo up"))?;
        }
        ip(&format!("-n {peers} link add br0 type bridge"))?;
        for (at, host) in [one, other].into_iter().enumerate() {
            ip(&format!(
                "-n {peers} link add port{at} type veth peer name eth0 netns {host}"
            ))?;
            ip(&format!("-n {peers} link set port{at} master br0 up"))?;
            ip(&format!("-n {host} link set eth0 up"))?;
        }
        ip(&format!("-n {peers} link set br0 up"))?;
        lan.address(0, "br0", PEER, "add")?;
        lan.address(1, "eth0", APP, "add")?;
        Ok(lan)
    }

    fn address(&self, host: usize, device: &str, addresses: [&str; 2], what: &str) -> Result<()> {
        let name = &self.names[host];
        ip(&format!("-n {name} addr {what} {}/24 dev {device}", addresses[0]))?;
        let nodad = if what == "add" { " nodad" } else { "" };
        ip(&format!(
            "-n {name} addr {what} {}/64 dev {device}{nodad}",
            addresses[1]
        ))
    }

    /// The app's addresses are the third host's too, where nobody looks for them yet.
    fn arrives(&self) -> Result<()> {
        self.address(2, "eth0", APP, "add")
    }

    /// And that one's alone.
    fn leaves(&self) -> Result<()> {
        self.address(1, "eth0", APP, "del")?;
        ip(&format!("-n {} neigh flush all", self.names[0]))
    }

    fn open(&self, host: usize) -> Result<File> {
        Ok(File::open(Path::new("/run/netns").join(&self.names[host]))?)
    }

    /// Runs on a host.
    fn on<T: Send + 'static>(&self, host: usize, job: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let network = self.open(host)?;
        let inside = std::thread::spawn(move || setns(network, CloneFlags::CLONE_NEWNET).map(|()| job()));
        Ok(inside.join().map_err(|_| anyhow::anyhow!("a thread has panicked"))??)
    }

    /// Packet filters of a host, for people.
    fn filters(&self, host: usize) -> Result<usize> {
        self.on(host, || {
            let unique = |line: &&str| line.contains("appshot-");
            let listed = Command::new("nft").args(["list", "tables"]).output();
            listed.map(|out| String::from_utf8_lossy(&out.stdout).lines().filter(unique).count())
        })?
        .context("nft (Debian: nftables)")
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

fn ip(line: &str) -> Result<()> {
    let done = Command::new("ip").args(line.split(' ')).status()?;
    ensure!(done.success(), "ip {line}: {done}");
    Ok(())
}

/// The app, which does as it is told.
struct Speaker {
    app: App,
    orders: Orders,
}

/// The way to tell it.
struct Orders {
    path: PathBuf,
    answers: UnixDatagram,
}

/// How it is started, with the path of its orders.
fn command(place: &Place) -> [String; 4] {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("servers/speaker.py");
    let [script, orders] = [script, place.path("orders")].map(|path| path.display().to_string());
    ["python3".into(), "-S".into(), script, orders]
}

impl Speaker {
    fn start(place: &Place, lan: &Lan) -> Result<Speaker> {
        let network = lan.open(1)?;
        let app = place.run_with(RunOptions {
            command: command(place).to_vec(),
            joins: Some(HeldDescriptor::own(&network)),
            ..RunOptions::default()
        })?;
        let orders = Orders::to(place)?;
        Ok(Speaker { app, orders })
    }

    fn tell(&self, order: &str) -> Result<String> {
        self.orders.tell(order)
    }

    fn number(&self, order: &str) -> Result<usize> {
        Ok(self.tell(order)?.parse()?)
    }

    /// A snapshot has ended it.
    fn gone(self) -> Result<Orders> {
        self.app.wait_gone()?;
        Ok(self.orders)
    }
}

impl Orders {
    /// To the app of this place, once it hears them.
    fn to(place: &Place) -> Result<Orders> {
        let path = place.path("orders");
        let answers = UnixDatagram::bind(place.path("answers"))?;
        answers.set_read_timeout(Some(PATIENCE))?;
        poll("the app's orders", PATIENCE, || Ok(path.exists().then_some(())))?;
        Ok(Orders { path, answers })
    }

    /// Gives an order, and waits for the answer.
    fn tell(&self, order: &str) -> Result<String> {
        self.answers.send_to(order.as_bytes(), &self.path)?;
        let mut answer = vec![0; 65536];
        let got = loop {
            match self.answers.recv(&mut answer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                got => break got.with_context(|| format!("no answer to {order}"))?,
            }
        };
        let answer = String::from_utf8_lossy(&answer[..got]).into_owned();
        match answer.strip_prefix("ok ") {
            Some(answer) => Ok(answer.to_owned()),
            None => bail!("{order}: {answer}"),
        }
    }
}

/// The peer's end.
struct Peer {
    stream: TcpStream,
    sent: usize,
    read: usize,
}

/// As the app has it.
fn pattern(begin: usize, count: usize) -> Vec<u8> {
    (begin..begin + count).map(|at| at as u8).collect()
}

impl Peer {
    fn of(stream: TcpStream) -> Result<Peer> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Peer {
            stream,
            sent: 0,
            read: 0,
        })
    }

    fn send(&mut self, count: usize) -> Result<()> {
        self.stream.write_all(&pattern(self.sent, count))?;
        self.sent += count;
        Ok(())
    }

    fn fill(&mut self) -> Result<usize> {
        self.stream.set_nonblocking(true)?;
        let begin = self.sent;
        let done = loop {
            match self.stream.write(&pattern(self.sent, 65536)) {
                Ok(sent) => self.sent += sent,
                Err(error) => break error,
            }
        };
        self.stream.set_nonblocking(false)?;
        ensure!(done.kind() == ErrorKind::WouldBlock, "{done}");
        Ok(self.sent - begin)
    }

    fn take(&mut self, count: usize) -> Result<()> {
        let mut got = vec![0; count];
        self.stream
            .read_exact(&mut got)
            .with_context(|| format!("{count} bytes from {} on", self.read))?;
        ensure!(got == pattern(self.read, count), "other bytes from {} on", self.read);
        self.read += count;
        Ok(())
    }

    fn end(&mut self) -> Result<()> {
        let got = self.stream.read(&mut [0])?;
        ensure!(got == 0, "it has not ended");
        Ok(())
    }

    fn shut(&self) -> Result<()> {
        Ok(self.stream.shutdown(Shutdown::Write)?)
    }
}

/// A connection, told from both sides.
struct Talk<'a> {
    name: &'static str,
    app: &'a Speaker,
    peer: Peer,
}

impl Talk<'_> {
    fn app(&self, what: &str, more: &str) -> Result<String> {
        let answer = self.app.tell(&format!("{what} {} {more}", self.name));
        answer.with_context(|| self.name.to_owned())
    }

    fn both_ways(&mut self, count: usize) -> Result<()> {
        self.peer.send(count)?;
        self.app("take", &count.to_string())?;
        self.app("send", &count.to_string())?;
        self.peer.take(count).with_context(|| self.name.to_owned())
    }
}

/// Established, with data under way in every place where it can be; half closed from either side, or from both.
const KINDS: [&str; 12] = [
    "idle",
    "fresh",
    "unread",
    "unsent",
    "both_full",
    "peer_ended",
    "peer_ended_full",
    "app_ended",
    "app_ended_full",
    "last_ack",
    "closing",
    "made_by_app",
];

fn open<'a>(app: &'a Speaker, lan: &Lan, name: &'static str, version: usize, port: u16) -> Result<Talk<'a>> {
    let stream = match name {
        "made_by_app" => {
            let peer: IpAddr = PEER[version].parse()?;
            let listener = lan.on(0, move || TcpListener::bind((peer, 0)))??;
            app.tell(&format!("connect {name} {peer} {}", listener.local_addr()?.port()))?;
            listener.accept()?.0
        }
        _ => {
            let to = SocketAddr::new(APP[version].parse()?, port);
            let stream = lan.on(0, move || TcpStream::connect(to))??;
            app.tell(&format!("accept {name} {}", APP[version]))?;
            stream
        }
    };
    let peer = Peer::of(stream)?;
    Ok(Talk { name, app, peer })
}

/// Before the app is frozen. Answers how much waits: for the app, for the peer.
fn before(talk: &mut Talk<'_>) -> Result<(usize, usize)> {
    if talk.name != "fresh" {
        talk.both_ways(1000)?;
    }
    let number = |text: String| text.parse::<usize>();
    Ok(match talk.name {
        "idle" | "made_by_app" => {
            talk.app("option", "1 9 1")?;
            talk.app("option", "6 1 1")?;
            talk.app("option", "6 4 77")?;
            talk.app("option", "6 18 5000")?;
            (0, 0)
        }
        "unread" => {
            talk.peer.send(10_000)?;
            (10_000, 0)
        }
        "unsent" => (0, number(talk.app("fill", "")?)?),
        "both_full" => (talk.peer.fill()?, number(talk.app("fill", "")?)?),
        "peer_ended" => {
            talk.peer.shut()?;
            (0, 0)
        }
        "peer_ended_full" => {
            let waits = number(talk.app("fill", "")?)?;
            talk.peer.send(10)?;
            talk.peer.shut()?;
            (10, waits)
        }
        "app_ended" => {
            talk.app("shut", "")?;
            (0, 0)
        }
        "app_ended_full" => {
            let waits = number(talk.app("fill", "")?)?;
            talk.app("shut", "")?;
            (0, waits)
        }
        "last_ack" => {
            let waits = number(talk.app("fill", "")?)?;
            talk.peer.shut()?;
            talk.app("end", "")?;
            talk.app("shut", "")?;
            (0, waits)
        }
        "closing" => {
            let waits = number(talk.app("fill", "")?)?;
            talk.app("shut", "")?;
            talk.peer.send(10)?;
            talk.peer.shut()?;
            (10, waits)
        }
        _ => (0, 0),
    })
}

/// While nobody is there.
fn meanwhile(name: &str, peer: &mut Peer) -> Result<usize> {
    match ["idle", "unread", "app_ended"].contains(&name) {
        true => peer.send(5000).map(|()| 5000),
        false => Ok(0),
    }
}

fn after(talk: &mut Talk<'_>, waits: (usize, usize)) -> Result<()> {
    talk.app("take", &waits.0.to_string())?;
    talk.peer.take(waits.1).with_context(|| talk.name.to_owned())?;
    let ended_by_peer = ["peer_ended", "peer_ended_full", "closing"].contains(&talk.name);
    let ended_by_app = ["app_ended", "app_ended_full", "last_ack", "closing"].contains(&talk.name);
    if ended_by_peer {
        talk.app("end", "")?;
    }
    if ended_by_app {
        talk.peer.end().with_context(|| talk.name.to_owned())?;
    }
    match (ended_by_peer || talk.name == "last_ack", ended_by_app) {
        (false, false) => talk.both_ways(200_000)?,
        (true, false) => {
            talk.app("send", "100000")?;
            talk.peer.take(100_000)?;
        }
        (false, true) => {
            talk.peer.send(100_000)?;
            talk.app("take", "100000")?;
        }
        (true, true) => {}
    }
    talk.app("close", "")?;
    if !ended_by_app {
        talk.peer.end().with_context(|| talk.name.to_owned())?;
    }
    Ok(())
}

/// Where the app comes back.
#[derive(Clone, Copy, PartialEq)]
enum To {
    Same,
    Other,
}

fn options(leave_running: bool, verify: bool) -> SnapshotOptions {
    SnapshotOptions {
        tcp: TcpPolicy::Established,
        leave_running,
        verify,
        ..SnapshotOptions::default()
    }
}

fn restored(place: &Place, lan: &Lan, shot: &Path, host: usize, close: bool) -> Result<App> {
    let network = lan.open(host)?;
    place.restore_with(
        shot,
        RestoreOptions {
            joins: Some(HeldDescriptor::own(&network)),
            tcp_close: close,
            ..RestoreOptions::default()
        },
    )
}

fn go_on(test: &'static str, version: usize, to: To) {
    in_place(test, move |place| {
        need_root()?;
        let lan = Lan::new()?;
        let mut app = Speaker::start(place, &lan)?;
        let port = u16::try_from(app.number(&format!("listen {}", APP[version]))?)?;
        let mut talks = Vec::new();
        for name in KINDS {
            let mut talk = open(&app, &lan, name, version, port)?;
            let waits = before(&mut talk)?;
            talks.push((name, talk.peer, waits));
        }
        // What is under way is there.
        std::thread::sleep(Duration::from_millis(300));
        let states = |app: &Speaker| -> Result<Vec<String>> {
            let state = |name: &&str| {
                let options = app.tell(&format!("options {name}"))?;
                Ok(format!("{name}: {} {options}", app.tell(&format!("state {name}"))?))
            };
            KINDS.iter().map(state).collect()
        };
        let had = states(&app)?;
        // It goes on with them, and nothing is in the way.
        app.app.snapshot(&place.path("running"), &options(true, false))?;
        ensure!(lan.filters(1)? == 0, "the peers of one that goes on are kept away");
        ensure!(states(&app)? == had);
        let shot = place.path("appshot");
        let report = app.app.snapshot(&shot, &options(false, true))?;
        ensure!(!report.is_unverified(), "{:?}", report.rehearsal);
        let orders = app.gone()?;
        ensure!(lan.filters(1)? == 1, "nothing keeps the peers away");
        let mut more = Vec::new();
        for (name, mut peer, waits) in talks {
            let sent = meanwhile(name, &mut peer)?;
            more.push((name, peer, (waits.0 + sent, waits.1)));
        }
        std::thread::sleep(Duration::from_millis(700));
        let host = match to {
            To::Same => 1,
            To::Other => {
                lan.arrives()?;
                2
            }
        };
        let back = restored(place, &lan, &shot, host, false)?;
        app = Speaker { app: back, orders };
        ensure!(lan.filters(host)? == 0, "the peers are kept away still");
        if to == To::Other {
            lan.leaves()?;
        }
        // An end that was heard already is told again until that is heard.
        let is_back = || Ok((states(&app)? == had).then_some(()));
        poll("the states of before", PATIENCE, is_back).with_context(|| format!("{had:?}, then {:?}", states(&app)))?;
        for (name, peer, waits) in more {
            let mut talk = Talk { name, app: &app, peer };
            after(&mut talk, waits)?;
        }
        app.app.end()
    });
}

#[test]
fn version_4() {
    go_on("established_version_4", 0, To::Same);
}

#[test]
fn version_6() {
    go_on("established_version_6", 1, To::Same);
}

#[test]
fn version_4_elsewhere() {
    go_on("established_version_4_elsewhere", 0, To::Other);
}

#[test]
fn version_6_elsewhere() {
    go_on("established_version_6_elsewhere", 1, To::Other);
}

/// One peer, one instance: another one is told so, or finds the connection closed.
#[test]
fn once() {
    in_place("established_once", |place| {
        need_root()?;
        let lan = Lan::new()?;
        let mut app = Speaker::start(place, &lan)?;
        let port = u16::try_from(app.number(&format!("listen {}", APP[0]))?)?;
        let talk = open(&app, &lan, "idle", 0, port)?;
        let mut peer = talk.peer;
        let check = |policy| {
            let options = SnapshotOptions {
                tcp: policy,
                ..SnapshotOptions::default()
            };
            libsnap::snapshot::check(&app.app.target(), &options).map(|report| report.refusals.len())
        };
        ensure!(check(TcpPolicy::Refuse)? == 1 && check(TcpPolicy::Established)? == 0);
        let shot = place.path("appshot");
        app.app.snapshot(&shot, &options(false, false))?;
        let orders = app.gone()?;
        // One that fails leaves the peer where it is.
        let taken = lan.on(1, move || TcpListener::bind((APP[0], port)))??;
        ensure!(
            restored(place, &lan, &shot, 1, false).is_err(),
            "its port was another's"
        );
        drop(taken);
        ensure!(lan.filters(1)? == 1, "the peer was let through");
        app = Speaker {
            app: restored(place, &lan, &shot, 1, false)?,
            orders,
        };
        let mut talk = Talk {
            name: "idle",
            app: &app,
            peer,
        };
        talk.both_ways(1000)?;
        let Err(error) = restored(place, &lan, &shot, 1, false) else {
            bail!("two have the connection");
        };
        // With a path of its own for its orders it is the connection that another one has.
        let own = place.path("own");
        std::fs::rename(&app.orders.path, &own)?;
        ensure!(
            restored(place, &lan, &shot, 1, false).is_err(),
            "two have the connection"
        );
        std::fs::rename(&own, &app.orders.path)?;
        let kind = error.downcast_ref::<Error>().map(|error| error.kind);
        ensure!(kind == Some(Kind::Conflict), "{error:#}");
        talk.both_ways(1000)?;
        peer = talk.peer;
        app.app.end()?;
        // Once its app has ended the peer hears of it.
        peer.end()?;
        std::fs::remove_file(&app.orders.path).ok();
        app.app = restored(place, &lan, &shot, 1, true)?;
        app.tell("end idle")?;
        app.app.end()
    });
}

/// An app that the command has started, with one connection.
struct Registered<'a> {
    name: &'a str,
    lan: &'a Lan,
    registry: &'a Registry,
    orders: Orders,
    peer: Peer,
}

fn registered(test: &'static str, trial: fn(&mut Registered<'_>) -> Result<()>) {
    in_place(test, move |place| {
        need_root()?;
        let lan = Lan::new()?;
        let registry = Registry::new(place)?;
        let name = place.unique();
        let run = ["run", "-d", "--name", name, "--netns", &lan.names[1], "--"];
        let command = command(place);
        let command = command.iter().map(String::as_str);
        registry.appshot(&run.into_iter().chain(command).collect::<Vec<_>>())?;
        let done = Registered::new(place, &lan, &registry).and_then(|mut one| trial(&mut one));
        let _ = registry.appshot(&["kill", name]);
        done
    });
}

impl<'a> Registered<'a> {
    fn new(place: &'a Place, lan: &'a Lan, registry: &'a Registry) -> Result<Registered<'a>> {
        let orders = Orders::to(place)?;
        let port: u16 = orders.tell(&format!("listen {}", APP[0]))?.parse()?;
        let to = SocketAddr::new(APP[0].parse()?, port);
        let peer = Peer::of(lan.on(0, move || TcpStream::connect(to))??)?;
        orders.tell(&format!("accept one {}", APP[0]))?;
        Ok(Registered {
            name: place.unique(),
            lan,
            registry,
            orders,
            peer,
        })
    }

    /// A snapshot that is killed at this moment; whether it was done before, and what it said.
    fn snapshot(&self, words: &[&str], moment: usize) -> Result<(bool, String)> {
        let mut command = self.registry.command("appshot");
        command
            .args(["snapshot", "--tcp=established"])
            .args(words)
            .arg(self.name);
        let taken = command.env("APPSHOT_DIE_AT", format!("--worker:{moment}")).output()?;
        let said = format!("moment {moment}: {}", String::from_utf8_lossy(&taken.stderr));
        Ok((taken.status.success(), said))
    }

    /// Both ways, and nothing is in the way.
    fn goes_on(&mut self) -> Result<()> {
        self.peer.send(100)?;
        self.orders.tell("take one 100")?;
        self.orders.tell("send one 100")?;
        self.peer.take(100)?;
        ensure!(self.lan.filters(1)? == 0, "the peer is kept away");
        Ok(())
    }
}

/// More moments than any of these snapshots has.
const ENOUGH: usize = 5000;

/// Whoever takes the snapshot is killed at every moment: the connection goes on, and nothing is in its way.
#[test]
fn killed() {
    registered("established_killed", |one| {
        for moment in (1..ENOUGH).step_by(5) {
            let (done, said) = one.snapshot(&["--leave-running", "--tag", "kept"], moment)?;
            one.goes_on().with_context(|| said)?;
            if done {
                ensure!(moment > 50, "it was killed at {moment} moments only");
                // Put to sleep, and given up.
                one.registry.appshot(&["snapshot", "--tcp=established", one.name])?;
                ensure!(one.lan.filters(1)? == 1, "nothing keeps the peer away");
                one.registry.appshot(&["rm", "--appshot", one.name])?;
                ensure!(one.lan.filters(1)? == 0, "a peer is kept away from what is gone");
                return Ok(());
            }
        }
        bail!("the snapshot has more than {ENOUGH} moments")
    });
}

/// More than one batch of filters has room for, paced ones among them, and peers that end their sides while
/// the snapshot is taken.
#[test]
fn many() {
    const COUNT: usize = 400;
    in_place("established_many", |place| {
        need_root()?;
        let lan = Lan::new()?;
        let mut app = Speaker::start(place, &lan)?;
        let port = u16::try_from(app.number(&format!("listen {}", APP[0]))?)?;
        let to = SocketAddr::new(APP[0].parse()?, port);
        let mut peers = Vec::new();
        for at in 0..COUNT {
            let peer = lan.on(0, move || TcpStream::connect(to))??;
            app.tell(&format!("accept {at} {}", APP[0]))?;
            // Slow: there is always something to be sent.
            if at % 10 == 0 {
                app.tell(&format!("option {at} 1 47 2000000"))?;
            }
            let waits = if at % 4 == 0 {
                app.number(&format!("fill {at}"))?
            } else {
                0
            };
            peers.push((at, Peer::of(peer)?, waits));
        }
        let shot = place.path("appshot");
        let (ended, read) = std::thread::scope(|scope| {
            let ends = scope.spawn(|| -> Result<Vec<usize>> {
                let ending = peers.iter().filter(|(at, ..)| at % 3 == 1);
                let ended = ending.map(|(at, peer, _)| {
                    std::thread::sleep(Duration::from_micros(300));
                    peer.shut().map(|()| *at)
                });
                ended.collect()
            });
            let taken = app.app.snapshot(&shot, &options(false, false));
            (ends.join(), taken)
        });
        read?;
        let ended = ended.map_err(|_| anyhow::anyhow!("a thread has panicked"))??;
        let orders = app.gone()?;
        std::thread::sleep(Duration::from_millis(500));
        app = Speaker {
            app: restored(place, &lan, &shot, 1, false)?,
            orders,
        };
        ensure!(lan.filters(1)? == 0, "the peers are kept away still");
        for (at, mut peer, waits) in peers {
            let who = || format!("connection {at}");
            peer.take(waits).with_context(who)?;
            match ended.contains(&at) {
                true => app.tell(&format!("end {at}")).map(drop).with_context(who)?,
                false => {
                    peer.send(10)?;
                    app.tell(&format!("take {at} 10")).with_context(who)?;
                }
            }
            app.tell(&format!("send {at} 10")).with_context(who)?;
            peer.take(10).with_context(who)?;
        }
        app.app.end()
    });
}

/// Whoever takes the snapshot that ends the app is killed at many moments: the connection goes on in the app that
/// runs then, or in the next one.
#[test]
fn killed_at_the_end() {
    registered("established_killed_at_the_end", |one| {
        let registry = one.registry;
        let runs = || {
            let told = registry.appshot(&["ps", "-o", "json"]);
            told.map(|told| told.contains("\"running\""))
        };
        let mut was_done = false;
        for moment in (101..ENOUGH).step_by(7) {
            let (done, said) = one.snapshot(&["--replace"], moment)?;
            let said = || said.clone();
            // Whoever brings in order what is left has time for it.
            std::thread::sleep(Duration::from_millis(300));
            if !poll("the app's state", PATIENCE, || Ok(runs().ok())).with_context(said)? {
                let restore = ["restore", "-d", "--netns", &one.lan.names[1], one.name];
                registry.appshot(&restore).with_context(said)?;
            }
            one.goes_on().with_context(said)?;
            if done && was_done {
                return Ok(());
            }
            was_done |= done;
        }
        bail!("the snapshot has more than {ENOUGH} moments")
    });
}

/// A transaction of psql, and one of redis, begun before the server was frozen and ended after it is back.
#[test]
fn transactions() {
    in_place("established_transactions", |place| {
        need_root()?;
        let postgres = Postgres::make(place)?;
        let app = place.run_with(postgres.options(place))?;
        postgres.wait_for()?;
        postgres.ask("create table t (x int)")?;
        let mut psql = postgres.tool("psql");
        let mut psql = psql
            .args(["-XAtq"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (mut asked, mut told) = (
            psql.stdin.take().context("stdin")?,
            psql.stdout.take().context("stdout")?,
        );
        asked.write_all(b"begin; insert into t values (7); select 'begun';\n")?;
        told.read_exact(&mut [0; 6])?;
        let shot = place.path("appshot");
        app.snapshot(&shot, &options(false, true))?;
        app.wait_gone()?;
        asked.write_all(b"select sum(x) from t; commit;\n")?;
        std::thread::sleep(Duration::from_millis(300));
        let app = place.restore(&shot)?;
        drop(asked);
        let mut rest = String::new();
        told.read_to_string(&mut rest)?;
        ensure!(psql.wait()?.success() && rest == "7\n", "{rest:?}");
        postgres.wait_for()?;
        ensure!(postgres.ask("select sum(x) from t")? == "7", "it was not committed");
        app.end()
    });
}

/// A client of redis that has begun one, and another one that waits for what is published.
#[test]
fn redis_clients() {
    in_place("established_redis_clients", |place| {
        need_root()?;
        let port = free_port()?;
        let text = port.to_string();
        let app = place.run(&["redis-server", "--port", &text, "--save", "", "--bind", "127.0.0.1"])?;
        let connect = || poll("redis", PATIENCE, || Ok(TcpStream::connect(("127.0.0.1", port)).ok()));
        let ask = |stream: &mut TcpStream, asked: &str, answer: &str| -> Result<()> {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(asked.as_bytes())?;
            let mut got = vec![0; answer.len()];
            stream.read_exact(&mut got).with_context(|| asked.to_owned())?;
            ensure!(
                got == answer.as_bytes(),
                "{asked:?}: {:?}",
                String::from_utf8_lossy(&got)
            );
            Ok(())
        };
        let (mut one, mut listens) = (connect()?, connect()?);
        ask(&mut one, "MULTI\r\nSET a 1\r\n", "+OK\r\n+QUEUED\r\n")?;
        ask(
            &mut listens,
            "SUBSCRIBE news\r\n",
            "*3\r\n$9\r\nsubscribe\r\n$4\r\nnews\r\n:1\r\n",
        )?;
        let shot = place.path("appshot");
        app.snapshot(&shot, &options(false, true))?;
        app.wait_gone()?;
        // Asked while nobody is there.
        one.write_all(b"PUBLISH news x\r\n")?;
        std::thread::sleep(Duration::from_millis(300));
        let app = place.restore(&shot)?;
        ask(&mut one, "EXEC\r\n", "+QUEUED\r\n*2\r\n+OK\r\n:1\r\n")?;
        ask(&mut listens, "", "*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$1\r\nx\r\n")?;
        app.end()
    });
}
