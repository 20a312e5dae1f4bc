//! Whether the bill is right: loads that know what they used, a meter that is killed, and
//! a bill that another program computes again.

use anyhow::{Context, Result, ensure};
use appshot_tests::clients::{free_port, http_get};
use appshot_tests::disk::SmallDisk;
use appshot_tests::installed::Daemon;
use appshot_tests::loads::{CARD, Counted, INIT_NS, Loads, Used, focus_toolkit};
use appshot_tests::node::python;
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, Random, need_program, note, poll};
use nix::time::{clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

#[test]
fn processor_time_is_what_was_used() {
    in_place("processor_time_is_what_was_used", |place| {
        let loads = Loads::new(place)?;
        let _restored = loads.registry.daemon("restored", "")?;
        let perfd = loads.perfd()?;
        let name = &loads.name;
        loads.start(name, 1, 2000)?;
        loads.registry.appshot(&["snapshot", name])?;
        // The first one could not tell: it has ended in its snapshot.
        loads.registry.appshot(&["restore", name, "-d"])?;
        loads.burn(name, 2)?;
        let second = loads.end(name)?;
        loads.registry.appshot(&["clone", name, "-n", "3"])?;
        let clones: Vec<String> = (1..=3).map(|number| format!("{name}-{number}")).collect();
        for clone in &clones {
            loads.burn(clone, 2)?;
        }
        let used: Vec<Used> = clones.iter().map(|clone| loads.end(clone)).collect::<Result<_>>()?;
        loads.settled()?;
        perfd.stop()?;

        let counted = loads.counted()?;
        ensure!(counted.len() == 5, "{counted:?}");
        ensure!(counted.iter().all(|counted| counted.ended), "{counted:?}");
        let first = counted[0].get("cpu_ns");
        ensure!(
            (2_000_000_000..2_000_000_000 + 2 * u128::from(INIT_NS)).contains(&first),
            "{first}"
        );
        counted[1].cpu_is(second)?;
        // How long each came up, and was taken, and why.
        ensure!(
            counted[0].get("starting_ns") > 0 && counted[0].get("restoring_ns") == 0,
            "{counted:?}"
        );
        ensure!(
            counted[0].get("snapshots") == 1 && counted[0].get("snapshotting_ns") > 0,
            "{counted:?}"
        );
        let events = loads.registry.appshot(&["usage", "events"])?;
        ensure!(events.contains("snapshot: operator"), "{events}");
        for (clone, used) in clones.iter().zip(used) {
            let of = counted
                .iter()
                .find(|counted| counted.name == *clone)
                .context("no clone")?;
            of.cpu_is(used)?;
            ensure!(of.get("restores") == 1 && of.get("restoring_ns") > 0, "{of:?}");
        }
        loads.verify()?;
        loads.recompute()
    });
}

/// An instance that was made ready before anybody asked for it has used that for the platform.
#[test]
fn what_was_made_ahead_is_not_billed() {
    in_place("what_was_made_ahead_is_not_billed", |place| {
        let loads = Loads::new(place)?;
        let restored = loads.registry.daemon("restored", "")?;
        let perfd = loads.perfd()?;
        let name = &loads.name;
        loads.start(name, 200, 20)?;
        loads.registry.appshot(&["snapshot", name])?;
        let _: Value = restored
            .client
            .post("/v1/prepare", &json!({ "appshot": name, "instance": true }))?;
        poll("one to wait", PATIENCE, || {
            let waiting: Vec<Value> = restored.client.get("/v1/prepare")?;
            Ok(waiting.iter().any(|one| one["ready"] == 1).then_some(()))
        })?;
        let before = processor_times()?;
        let _: Value = restored
            .client
            .post("/v1/instances", &json!({ "appshot": name, "name": name }))?;
        let record = loads.registry.run.join(format!("apps/{name}.json"));
        let record: Value = serde_json::from_str(&std::fs::read_to_string(record)?)?;
        let ahead = record["ahead"]["cpu_ns"].as_u64().context("nothing was made ahead")?;
        loads.burn(name, 2)?;
        let mut used = loads.end(name)?;
        // The kernel tells it of what its process had used when nobody had asked for it yet, too.
        let root = record["root"].as_i64().context("no root")?;
        let own = before.get(&root).context("it was not made ahead")?;
        used.cpu_ns -= own;
        loads.settled()?;
        perfd.stop()?;
        let counted = loads.counted()?;
        note(
            "what_was_made_ahead_is_not_billed",
            &format!(
                "{:.2} ms ahead, {:.2} by its own process; then {:.2} ms used, {:.2} are billed",
                ahead as f64 / 1e6,
                *own as f64 / 1e6,
                used.cpu_ns as f64 / 1e6,
                counted[1].get("cpu_ns") as f64 / 1e6
            ),
        );
        ensure!(ahead > 0, "{record}");
        counted[1].cpu_is(used)?;
        // Its own end, which it cannot tell of, and nothing of what came before.
        ensure!(
            counted[1].get("cpu_ns") < u128::from(used.cpu_ns + ahead),
            "{ahead} ns ahead, {used:?}, {counted:?}"
        );
        loads.verify()?;
        loads.recompute()
    });
}

/// What each process has used so far, in nanoseconds (clock_getcpuclockid(3)).
fn processor_times() -> Result<BTreeMap<i64, u64>> {
    let names = std::fs::read_dir("/proc")?.flatten().map(|entry| entry.file_name());
    let pids = names.filter_map(|name| name.to_str()?.parse::<i32>().ok());
    let times = pids.filter_map(|pid| {
        let clock = clock_getcpuclockid(Pid::from_raw(pid)).ok()?;
        let used = Duration::from(clock_gettime(clock).ok()?);
        Some((i64::from(pid), u64::try_from(used.as_nanos()).ok()?))
    });
    Ok(times.collect())
}

#[test]
fn memory_is_held_times_time() {
    in_place("memory_is_held_times_time", |place| {
        let loads = Loads::new(place)?;
        let perfd = loads.perfd()?;
        let name = &loads.name;
        loads.start(name, 200, 1)?;
        std::thread::sleep(Duration::from_secs(20));
        let used = loads.end(name)?;
        loads.settled()?;
        perfd.stop()?;
        let counted = loads.counted()?;
        let (told, held) = (counted[0].get("memory_byte_ns"), used.byte_ns);
        // The program's own pages, some 700 KiB, come on top. Looks are farther apart than it
        // takes until memory is there.
        let own = (1 << 20) * u128::from(used.lived_ns);
        let apart = held / 200 + u128::from(used.bytes) * u128::from(used.touched_ns) / 4;
        ensure!(
            (held - apart..=held + own + apart).contains(&told),
            "{told} counted, {held} held: {used:?}"
        );
        ensure!(counted[0].get("unseen_ns") == 0, "{counted:?}");
        Ok(())
    });
}

#[test]
fn nothing_is_lost_while_nobody_meters() {
    in_place("nothing_is_lost_while_nobody_meters", |place| {
        let loads = Loads::new(place)?;
        let name = &loads.name;
        let perfd = loads.perfd()?;
        loads.start(name, 1, 300)?;
        perfd.stop()?;
        // One goes on, others come and go.
        loads.burn(name, 2)?;
        let other = format!("{name}-b");
        loads.start(&other, 1, 300)?;
        let others = loads.end(&other)?;
        let perfd = loads.perfd()?;
        let own = loads.end(name)?;
        loads.settled()?;
        perfd.stop()?;
        let counted = loads.counted()?;
        ensure!(counted.len() == 2, "{counted:?}");
        counted[0].cpu_is(own)?;
        counted[1].cpu_is(others)?;
        // What could not be seen is told.
        ensure!(
            counted.iter().all(|counted| counted.get("unseen_ns") > 100_000_000),
            "{counted:?}"
        );
        let report = loads.verify()?;
        ensure!(report["gaps"].as_u64() >= Some(2), "{report}");
        loads.recompute()
    });
}

/// As after a loss of power: nothing of the run directory is there, and the last record
/// is torn.
#[test]
fn after_a_crash_of_the_machine_little_is_lost() {
    in_place("after_a_crash_of_the_machine_little_is_lost", |place| {
        let loads = Loads::new(place)?;
        let name = &loads.name;
        let mut perfd = loads.perfd()?;
        loads.start(name, 100, 1000)?;
        loads.burn(name, 2)?;
        std::thread::sleep(Duration::from_millis(700));
        perfd.child.kill()?;
        perfd.child.wait()?;
        // What it used is known to us, and to nobody else.
        let used = loads.end(name)?;
        std::fs::remove_dir_all(&loads.registry.run)?;
        let segment = loads.usage_dir().join("ledger/00000001.ledger");
        let whole = std::fs::read(&segment)?;
        std::fs::write(&segment, &whole[..whole.len() - 40])?;

        let perfd = loads.perfd()?;
        poll("the account to be closed", PATIENCE, || {
            let counted = loads.counted()?;
            Ok(counted.iter().all(|counted| counted.ended).then_some(()))
        })?;
        perfd.stop()?;
        let counted = loads.counted()?;
        ensure!(counted.len() == 1, "{counted:?}");
        let second = 1_000_000_000;
        let cpu = counted[0].get("cpu_ns");
        // The last record that was whole may be two seconds old by now.
        ensure!(
            cpu <= u128::from(used.cpu_ns + INIT_NS) && cpu + 2 * second >= used.cpu_ns.into(),
            "{cpu} ns counted, {} ns used",
            used.cpu_ns
        );
        let (memory, held) = (counted[0].get("memory_byte_ns"), used.byte_ns);
        ensure!(
            memory <= held + (1 << 20) * u128::from(used.lived_ns),
            "{memory}, {held}"
        );
        ensure!(memory + 3 * second * u128::from(used.bytes) >= held, "{memory}, {held}");
        let report = loads.verify()?;
        ensure!(
            report["gaps"].as_u64() >= Some(2),
            "the cut and the loss are told: {report}"
        );
        loads.recompute()
    });
}

/// The app runs on, what it uses meanwhile is counted, and the gap is told.
#[test]
fn a_full_disk_costs_no_count() {
    in_place("a_full_disk_costs_no_count", |place| {
        let loads = Loads::new(place)?;
        std::fs::create_dir_all(&loads.registry.data)?;
        let disk = SmallDisk::mount(loads.usage_dir(), "4m")?;
        let name = &loads.name;
        let perfd = loads.perfd()?;
        loads.start(name, 10, 300)?;
        let fill = disk.0.join("fill");
        let full = std::fs::write(&fill, vec![1; 5 << 20]);
        ensure!(full.is_err(), "the disk is not full");
        loads.burn(name, 2)?;
        // More than the last page of the ledger has room for.
        let others: Vec<String> = (0..8).map(|number| format!("{name}-{number}")).collect();
        for other in &others {
            loads.start(other, 1, 50)?;
        }
        std::thread::sleep(Duration::from_secs(3));
        ensure!(perfd.client.answers(), "perfd has ended");
        // One whose whole life nobody could write down, until there is room.
        let mut used = vec![loads.end(&others[0])?];
        loads.burn(name, 3)?;
        std::fs::remove_file(&fill)?;
        for one in others[1..].iter().chain([name]) {
            used.push(loads.end(one)?);
        }
        loads.settled()?;
        perfd.stop()?;
        let counted = loads.counted()?;
        ensure!(counted.len() == 9 && counted.iter().all(|of| of.ended), "{counted:?}");
        for (one, used) in others.iter().chain([name]).zip(used) {
            let of = counted.iter().find(|of| of.name == *one).context("not counted")?;
            of.cpu_is(used)?;
        }
        let report = loads.verify()?;
        let told = report["first_gap"].as_str().unwrap_or_default();
        ensure!(told.contains("could not be written"), "{report}");
        loads.recompute()
    });
}

/// Two ends of a wire: one on this host, one in a network namespace. Both go with this.
struct Wire {
    name: String,
    own: String,
}

impl Wire {
    fn new() -> Result<Wire> {
        let number = std::process::id() % 250;
        let wire = Wire {
            name: format!("as-wire-{number}"),
            own: format!("10.{number}.89.1"),
        };
        let (name, other) = (&wire.name, format!("10.{number}.89.2/30"));
        for line in [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name eth0 netns {name}"),
            format!("addr add {}/30 dev {name}", wire.own),
            format!("link set {name} up"),
            format!("-n {name} addr add {other} dev eth0"),
            format!("-n {name} link set eth0 up"),
            format!("-n {name} link set lo up"),
        ] {
            let done = Command::new("ip").args(line.split(' ')).status()?;
            ensure!(done.success(), "ip {line}");
        }
        Ok(wire)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        // The device goes with it.
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

/// Sends as much as it is asked for, each time over a connection of its own.
const SENDS: &str = r#"
import socket, sys
while True:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as peer:
            wanted = peer.recv(8, socket.MSG_WAITALL)
            if len(wanted) == 8:
                peer.sendall(bytes(int(wanted)))
                peer.shutdown(socket.SHUT_WR)
                peer.recv(1)
    except OSError:
        pass
"#;

/// What an instance has sent and received through a network that it has joined is counted with it:
/// no less than its data, and little beyond that, for headers.
#[test]
fn bytes_of_a_network_are_of_the_instance_that_joined_it() {
    in_place("bytes_of_a_network_are_of_the_instance_that_joined_it", |place| {
        let (loads, wire) = (Loads::new(place)?, Wire::new()?);
        let perfd = loads.perfd()?;
        let server = TcpListener::bind((wire.own.as_str(), 0))?;
        let port = server.local_addr()?.port().to_string();
        let ask = |bytes: usize| {
            let (mut stream, _) = server.accept()?;
            write!(stream, "{bytes:08}")?;
            let came = std::io::copy(&mut stream, &mut std::io::sink())?;
            ensure!(came == bytes as u64, "{came} came");
            Ok(())
        };
        let (name, netns) = (loads.name.as_str(), wire.name.as_str());
        let command = ["/usr/bin/python3", "-c", SENDS, &wire.own, &port];
        let run = ["run", "--name", name, "-d", "--netns", netns, "--"];
        loads.registry.appshot(&[&run[..], &command].concat())?;
        ask(3 << 20)?;
        ask(1 << 20)?;
        loads.registry.appshot(&["snapshot", "--tcp", "close", name])?;
        let _restored = loads.registry.daemon("restored", "")?;
        let restore = ["-d", "--netns", netns, name];
        let restored = loads.registry.command("restore").args(restore).output()?;
        ensure!(
            restored.status.success(),
            "{}",
            String::from_utf8_lossy(&restored.stderr)
        );
        // The one that was closed may wait still.
        while ask(2 << 20).is_err() {}
        // Who has named the network is not there any more.
        loads.registry.appshot(&["revert", name])?;
        while ask(5 << 20).is_err() {}
        loads.registry.appshot(&["kill", "-s", "KILL", "--wait", name])?;
        loads.settled()?;
        perfd.stop()?;
        let counted = loads.counted()?;
        ensure!(counted.len() == 3 && counted.iter().all(|of| of.ended), "{counted:?}");
        for (of, mib) in counted.iter().zip([4, 2, 5]) {
            let (sent, received) = (of.get("sent_bytes"), of.get("received_bytes"));
            let data = mib << 20;
            ensure!((data..data + data / 20).contains(&sent), "{sent} of {data} sent");
            ensure!((1..data / 20).contains(&received), "{received} received");
        }
        loads.recompute()
    });
}

/// As many as APPSHOT_KILLS says: 500 take some minutes.
fn kills() -> usize {
    let told = std::env::var("APPSHOT_KILLS").ok().and_then(|text| text.parse().ok());
    told.unwrap_or(40)
}

#[test]
fn killed_at_any_time_it_counts_once() {
    in_place("killed_at_any_time_it_counts_once", |place| {
        let loads = Loads::new(place)?;
        let name = &loads.name;
        let mut perfd = loads.perfd()?;
        loads.start(name, 100, 50)?;
        let mut used = BTreeMap::new();
        let mut random = Random(std::process::id().into());
        let began = Instant::now();
        for round in 0..kills() {
            // Something that comes and goes, and a load that goes on.
            let brief = format!("{name}-{round}");
            loads.start(&brief, 1, 20)?;
            if round % 5 == 4 {
                loads.burn(name, u32::try_from(round / 5)? + 2)?;
            }
            std::thread::sleep(Duration::from_millis(random.below(120)));
            // Killed before, at or after the end of that.
            if random.below(2) == 1 {
                used.insert(brief.clone(), loads.end(&brief)?);
            }
            perfd.child.kill()?;
            perfd.child.wait()?;
            if !used.contains_key(&brief) {
                used.insert(brief.clone(), loads.end(&brief)?);
            }
            perfd = loads.perfd()?;
        }
        let lasted = began.elapsed();
        used.insert(name.clone(), loads.end(name)?);
        loads.settled()?;
        perfd.stop()?;
        let report = loads.verify()?;
        let counted = loads.counted()?;
        ensure!(
            counted.len() == used.len(),
            "{} counted, {} were there",
            counted.len(),
            used.len()
        );
        for of in &counted {
            let own = used[&of.name];
            of.cpu_is(own).with_context(|| format!("{report}"))?;
            // Never more than was held, never less than was seen of it.
            let (told, held) = (of.get("memory_byte_ns"), own.byte_ns);
            let unseen = of.get("unseen_ns") * u128::from(own.bytes + (1 << 20));
            let base = (2 << 20) * u128::from(own.lived_ns);
            ensure!(told <= held + base, "{}: {told} counted, {held} held", of.name);
            // A begin that is found a quarter of a second later is half counted.
            let begins = 150_000_000 * u128::from(own.bytes);
            ensure!(
                told + unseen + begins >= held,
                "{}: {told} counted, {held} held, {} ns unseen in {lasted:?}",
                of.name,
                of.get("unseen_ns")
            );
        }
        loads.recompute()
    });
}

/// Burns so many milliseconds for each request, and says what it has used for it.
const BURNER: &str = r#"
import sys, time
from http.server import HTTPServer, BaseHTTPRequestHandler
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        began = time.process_time_ns()
        while time.process_time_ns() < began + 20_000_000:
            pass
        body = str(time.process_time_ns() - began).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *a):
        pass
HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"#;

/// Asks an app that falls asleep in between. Answers how many answers came and what was used
/// for them.
fn ask_until(stopped: &AtomicBool, port: u16) -> Result<(u64, u64)> {
    let (mut answers, mut used_ns) = (0, 0);
    while !stopped.load(Ordering::Relaxed) {
        used_ns += http_get(port, "/")?.trim().parse::<u64>().context("no number")?;
        answers += 1;
        // Mostly longer than it may be idle.
        std::thread::sleep(Duration::from_millis(if answers % 4 == 0 { 200 } else { 2200 }));
    }
    Ok((answers, used_ns))
}

/// Any of the daemons is killed at any time, while apps come and go by each of them: `snapd`
/// takes snapshots of one, `restored` restores others, `edgepointd` puts one to sleep and
/// wakes it for requests. No use is counted twice and none is lost.
#[test]
fn whichever_daemon_is_killed_it_counts_once() {
    in_place("whichever_daemon_is_killed_it_counts_once", |place| {
        let loads = Loads::new(place)?;
        let (name, registry) = (&loads.name, &loads.registry);
        const DAEMONS: [&str; 4] = ["perfd", "restored", "snapd", "edgepointd"];
        let start = |daemon| registry.daemon(daemon, "");
        let mut daemons: Vec<Daemon> = DAEMONS.into_iter().map(start).collect::<Result<_>>()?;
        let (asked, template, port) = (format!("{name}-asked"), format!("{name}-t"), free_port()?);
        let manifest = format!(
            "app = {asked:?}\nprovider = \"acme\"\n{}",
            python(BURNER, port, "[idle]\ntimeout = \"1s\"\ncpu = 50.0")
        );
        let began = Instant::now();
        let _: Value = daemons[3].client.post("/v1/apps", &json!({ "manifest": manifest }))?;
        let _: Value = daemons[3]
            .client
            .get(&format!("/v1/apps/{asked}?wait=running&timeout=60"))?;
        loads.start(&template, 1, 20)?;
        registry.appshot(&["snapshot", &template])?;
        loads.start(name, 100, 50)?;
        let mut used = BTreeMap::new();
        let mut random = Random(std::process::id().into());
        let stopped = AtomicBool::new(false);
        let (answers, told_ns) = std::thread::scope(|scope| -> Result<(u64, u64)> {
            let asks = scope.spawn(|| ask_until(&stopped, port));
            let rounds = (0..kills()).try_for_each(|round| -> Result<()> {
                let brief = format!("{name}-{round}");
                registry.appshot(&["restore", &template, "-d", "--name", &brief])?;
                let snapshot = (round % 3 == 0)
                    .then(|| {
                        let mut command = registry.command("appshot");
                        command.args(["snapshot", name, "--leave-running", "--replace"]);
                        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()
                    })
                    .transpose()?;
                if round % 5 == 4 {
                    loads.burn(name, u32::try_from(round / 5)? + 2)?;
                }
                std::thread::sleep(Duration::from_millis(random.below(150)));
                let before = random.below(2) == 1;
                if before {
                    used.insert(brief.clone(), loads.end(&brief)?);
                }
                let which = random.below(4) as usize;
                daemons[which].child.kill()?;
                daemons[which].child.wait()?;
                if !before {
                    used.insert(brief.clone(), loads.end(&brief)?);
                }
                daemons[which] = start(DAEMONS[which])?;
                // It may have lost its daemon; the app goes on.
                snapshot.map(|mut child| child.wait()).transpose()?;
                Ok(())
            });
            stopped.store(true, Ordering::Relaxed);
            let asked = asks.join().map_err(|_| anyhow::anyhow!("who asks has panicked"))?;
            rounds.and(asked)
        })?;
        used.insert(name.clone(), loads.end(name)?);
        let _: Value = daemons[3].client.delete(&format!("/v1/apps/{asked}"))?;
        loads.settled()?;
        let lasted = began.elapsed();
        daemons.into_iter().rev().try_for_each(Daemon::stop)?;
        loads.verify()?;
        let counted = loads.counted()?;
        for (name, used) in &used {
            let all: Vec<&Counted> = counted.iter().filter(|of| of.name == *name).collect();
            ensure!(all.len() == 1, "{name} is counted {} times", all.len());
            all[0].cpu_is(*used)?;
        }
        let of_asked: Vec<&Counted> = counted.iter().filter(|of| of.name == asked).collect();
        let total = |meter| of_asked.iter().map(|of| of.get(meter)).sum::<u128>();
        let (lives, cpu, told) = (of_asked.len() as u128, total("cpu_ns"), u128::from(told_ns));
        note(
            "whichever_daemon_is_killed_it_counts_once",
            &format!(
                "{} kills in {:.0} s: {answers} answers used {:.3} s, {:.3} s are billed in {lives} lives",
                kills(),
                lasted.as_secs_f64(),
                told as f64 / 1e9,
                cpu as f64 / 1e9
            ),
        );
        ensure!(of_asked.iter().all(|of| of.ended), "{of_asked:?}");
        // Besides: its interpreter's start, what each wake needs, and the HTTP of each answer.
        let besides = 1_000_000_000 + lives * 40_000_000 + u128::from(answers) * 4_000_000;
        ensure!(
            (told..=told + besides).contains(&cpu),
            "{answers} answers used {told} ns, {cpu} are billed"
        );
        // There never were two of it.
        ensure!(total("running_ns") <= lasted.as_nanos(), "{of_asked:?}, {lasted:?}");
        loads.recompute()
    });
}

/// Two apps of which one has room at a time: each wake sends the other away, and both are billed
/// for what they have done, once.
#[test]
fn who_makes_room_for_others_is_counted_once() {
    in_place("who_makes_room_for_others_is_counted_once", |place| {
        let loads = Loads::new(place)?;
        let perfd = loads.perfd()?;
        let _snapd = loads.registry.daemon("snapd", "")?;
        let _restored = loads.registry.daemon("restored", "")?;
        // Of two interpreters that each hold 40 MiB.
        let edgepointd = loads.registry.daemon_with("edgepointd", &["--memory", "64M"], "")?;
        let program = BURNER.replace("20_000_000", "200_000_000").replace(
            "import sys, time",
            "import sys, time\nheld = bytearray(b'x') * (40 << 20)",
        );
        let mut apps = Vec::new();
        for provider in ["acme", "bolt"] {
            let (app, port) = (format!("{}-{provider}", loads.name), free_port()?);
            let rules = "[idle]\ntimeout = \"10m\"\ncpu = 50.0";
            let manifest = format!(
                "app = {app:?}\nprovider = {provider:?}\n{}",
                python(&program, port, rules)
            );
            let _: Value = edgepointd.client.post("/v1/apps", &json!({ "manifest": manifest }))?;
            let _: Value = edgepointd
                .client
                .get(&format!("/v1/apps/{app}?wait=running&timeout=60"))?;
            apps.push((app, port, 0u64));
        }
        for _ in 0..4 {
            for (_, port, used) in &mut apps {
                *used += http_get(*port, "/")?.trim().parse::<u64>().context("no number")?;
                // What it has is known a moment later.
                std::thread::sleep(Duration::from_millis(1200));
            }
        }
        for (app, ..) in &apps {
            let _: Value = edgepointd.client.delete(&format!("/v1/apps/{app}"))?;
        }
        loads.settled()?;
        perfd.stop()?;
        let counted = loads.counted()?;
        let events = loads.registry.appshot(&["usage", "events"])?;
        ensure!(events.contains("snapshot: pressure"), "nobody made room: {events}");
        for (app, _, used) in &apps {
            let lives: Vec<&Counted> = counted.iter().filter(|of| of.name == *app).collect();
            let told: u128 = lives.iter().map(|of| of.get("cpu_ns")).sum();
            ensure!(lives.len() > 2 && lives.iter().all(|of| of.ended), "{lives:?}");
            // The start of the interpreter, and each life's init and restore, come on top.
            let most = u128::from(used + 500_000_000) + lives.len() as u128 * u128::from(INIT_NS);
            note(
                "who_makes_room_for_others_is_counted_once",
                &format!("{used} ns used in {} lives, {told} counted", lives.len()),
            );
            ensure!((u128::from(*used)..most).contains(&told), "{app}: {told}, {used} used");
        }
        loads.verify()?;
        loads.recompute()
    });
}

#[test]
fn the_bill_of_a_node_is_read_by_others() {
    in_place("the_bill_of_a_node_is_read_by_others", |place| {
        let toolkit = focus_toolkit()?;
        let loads = Loads::new(place)?;
        let python = need_program(&["python3"])?;
        let perfd = loads.perfd()?;
        let registry = &loads.registry;
        let _snapd = registry.daemon("snapd", "")?;
        let _restored = registry.daemon("restored", "")?;
        let edgepointd = registry.daemon("edgepointd", "")?;
        let (name, port) = (&loads.name, free_port()?);
        let manifest = format!(
            "app = {name:?}\nprovider = \"acme\"\n[start]\ncommand = [{:?}, \"-m\", \"http.server\", \"{port}\", \
             \"--directory\", {:?}]\n[[listen]]\ntcp = \"0.0.0.0:{port}\"\n[idle]\ntimeout = \"1s\"\ncpu = 50.0\n",
            python.display().to_string(),
            loads.dir.display().to_string(),
        );
        let _: Value = edgepointd.client.post("/v1/apps", &json!({ "manifest": manifest }))?;
        let wait = |state: &str| -> Result<Value> {
            let path = format!("/v1/apps/{name}?wait={state}&timeout=60");
            Ok(edgepointd.client.get(&path)?)
        };
        for _ in 0..2 {
            wait("asleep")?;
            http_get(port, "/")?;
        }
        let other = format!("{name}-other");
        loads.start(&other, 20, 1000)?;
        loads.end(&other)?;
        let _: Value = edgepointd.client.delete(&format!("/v1/apps/{name}"))?;
        loads.settled()?;

        let period = &loads.month;
        let told = perfd
            .client
            .text(&format!("/v1/usage/export?provider=acme&period={period}"))?;
        let export = loads.dir.join("acme.csv");
        std::fs::write(&export, &told)?;
        ensure!(told.lines().count() > 6, "{told}");
        ensure!(!told.contains(&other), "of another provider: {told}");
        let unknown = perfd.client.text("/v1/usage/export?provider=acne");
        ensure!(
            unknown.is_err_and(|error| error.to_string().contains("acme")),
            "no such provider"
        );
        let valid = Command::new(toolkit)
            .args(["validate", "--dataset", "cost-and-usage"])
            .arg(&export)
            .output()?;
        ensure!(
            valid.status.success(),
            "{}{}",
            String::from_utf8_lossy(&valid.stdout),
            String::from_utf8_lossy(&valid.stderr)
        );
        perfd.stop()?;
        let causes: Vec<Value> = loads
            .records()?
            .iter()
            .map(|record| record["body"]["account"]["cause"].clone())
            .filter(|cause| !cause.is_null())
            .collect();
        ensure!(causes == ["deploy", "request", "request"], "{causes:?}");
        let events = registry.appshot(&["usage", "events", "--app", name])?;
        ensure!(events.matches("restored: request").count() == 2, "{events}");
        ensure!(events.matches("asleep, after").count() >= 2, "{events}");
        let card = loads.dir.join("card.toml").display().to_string();
        std::fs::write(&card, CARD)?;
        let shown = registry.appshot(&["usage", "show", "--provider", "acme", "--rates", &card])?;
        ensure!(
            shown
                .lines()
                .next()
                .is_some_and(|head| head.ends_with("REQUESTS  GAPS  COST")),
            "{shown}"
        );
        ensure!(shown.lines().skip(1).all(|row| row.ends_with("EUR")), "{shown}");
        let statement = registry.appshot(&["usage", "statement", "--provider", "acme", "--rates", &card])?;
        ensure!(
            statement.contains("Usage of acme") && statement.contains("<td>request</td><td>2</td>"),
            "{statement}"
        );
        let json = registry.appshot(&["usage", "export", "--rates", &card, "--format", "json"])?;
        let row: Value = serde_json::from_str(json.lines().next().context("no row")?)?;
        let id = row["x_EventId"].as_str().context("no id")?;
        let told: Value =
            serde_json::from_str(&registry.appshot(&["usage", "explain", id, "--rates", &card, "-o", "json"])?)?;
        ensure!(
            told["cost"] == row["BilledCost"] && told["after_record"].is_string(),
            "{told}"
        );
        let accounts = loads.counted()?;
        let restores: u128 = accounts.iter().map(|counted| counted.get("restores")).sum();
        ensure!(restores == 2, "{accounts:?}");
        let shown: Value = serde_json::from_str(&registry.appshot(&["usage", "show", "-o", "json"])?)?;
        ensure!(shown[0]["provider"] == "acme" && shown[0]["instances"] == 3, "{shown}");
        ensure!(shown[0]["currency"].is_null() && shown[0]["cost"] == "0", "{shown}");
        loads.verify()?;
        loads.recompute()
    });
}

#[test]
fn further_instances_are_of_their_app() {
    in_place("further_instances_are_of_their_app", |place| {
        let loads = Loads::new(place)?;
        let python = need_program(&["python3"])?;
        let perfd = loads.perfd()?;
        let _snapd = loads.registry.daemon("snapd", "")?;
        let _restored = loads.registry.daemon("restored", "")?;
        let edgepointd = loads.registry.daemon("edgepointd", "")?;
        let (name, port) = (&loads.name, free_port()?);
        let manifest = format!(
            "app = {name:?}\nprovider = \"acme\"\n[start]\ncommand = [{:?}, \"-m\", \"http.server\", \"{port}\"]\n\
             [[listen]]\ntcp = \"0.0.0.0:{port}\"\n[instances]\nmin = 2\nmax = 2\n[capacity]\nconnections = 9\n",
            python.display().to_string(),
        );
        let _: Value = edgepointd.client.post("/v1/apps", &json!({ "manifest": manifest }))?;
        poll("two instances", PATIENCE, || {
            let status: Value = edgepointd.client.get(&format!("/v1/apps/{name}"))?;
            let running = |one: &&Value| one["state"] == "running";
            let count = status["instances"]
                .as_array()
                .context("no instances")?
                .iter()
                .filter(running)
                .count();
            Ok((count == 2).then_some(()))
        })?;
        let _: Value = edgepointd.client.delete(&format!("/v1/apps/{name}"))?;
        loads.settled()?;
        perfd.stop()?;
        let accounts: Vec<Value> = loads
            .records()?
            .iter()
            .map(|record| record["body"]["account"].clone())
            .filter(|account| account["kind"] == "started" || account["kind"] == "restored")
            .collect();
        let of = |key: &str| accounts.iter().map(|account| account[key].clone()).collect::<Vec<_>>();
        ensure!(
            of("app") == [name.as_str(); 2] && of("provider") == ["acme"; 2],
            "{accounts:?}"
        );
        ensure!(of("name") == [name.clone(), format!("{name}.2")], "{accounts:?}");
        ensure!(of("cause") == ["deploy", "scale-out"], "{accounts:?}");
        ensure!(
            loads.counted()?.iter().all(|counted| counted.ended),
            "{:?}",
            loads.counted()?
        );
        loads.verify()?;
        loads.recompute()
    });
}

#[test]
fn requests_over_http_are_billed() {
    in_place("requests_over_http_are_billed", |place| {
        let loads = Loads::new(place)?;
        let python = need_program(&["python3"])?;
        let perfd = loads.perfd()?;
        let _snapd = loads.registry.daemon("snapd", "")?;
        let _restored = loads.registry.daemon("restored", "")?;
        let (name, port, entry) = (&loads.name, free_port()?, free_port()?);
        let listens = format!("127.0.0.1:{entry}");
        let edgepointd = loads.registry.daemon_with("edgepointd", &["--http", &listens], "")?;
        let files = place.path("files");
        std::fs::create_dir(&files)?;
        std::fs::write(files.join("x"), vec![b'x'; 10_000])?;
        let manifest = format!(
            "app = {name:?}\nprovider = \"acme\"\n[start]\ncommand = [{:?}, \"-m\", \"http.server\", \"{port}\", \
             \"--directory\", {:?}]\n[[listen]]\ntcp = \"127.0.0.1:{port}\"\n[[route]]\nhost = \"localhost\"\n",
            python.display().to_string(),
            files.display().to_string(),
        );
        let _: Value = edgepointd.client.post("/v1/apps", &json!({ "manifest": manifest }))?;
        let _: Value = edgepointd
            .client
            .get(&format!("/v1/apps/{name}?wait=running&timeout=60"))?;
        for _ in 0..7 {
            ensure!(http_get(entry, "/x")?.len() == 10_000, "another answer");
        }
        let traffic = || -> Result<Value> {
            let records = loads.records()?;
            let of = |record: &Value| record["body"]["use"]["id"] == format!("traffic:acme:{name}");
            let last = records.into_iter().rfind(of);
            Ok(last.map_or(Value::Null, |record| record["body"]["use"]["counters"].clone()))
        };
        poll("seven requests in the ledger", PATIENCE, || {
            Ok((traffic()?["requests"] == 7).then_some(()))
        })?;
        let sent = traffic()?["sent_bytes"].as_u64().unwrap_or_default();
        ensure!((70_000..71_000).contains(&sent), "{sent} bytes of 70000");
        let _: Value = edgepointd.client.delete(&format!("/v1/apps/{name}"))?;
        loads.settled()?;
        perfd.stop()?;
        ensure!(traffic()?["requests"] == 7, "{}", traffic()?);
        loads.verify()?;
        loads.recompute()
    });
}

#[test]
fn what_makes_no_sense_is_refused() {
    in_place("what_makes_no_sense_is_refused", |place| {
        let loads = Loads::new(place)?;
        let none = loads
            .registry
            .appshot(&["usage", "show"])
            .map_err(|error| error.to_string());
        ensure!(
            none.as_ref().is_err_and(|error| error.contains("there is no ledger")),
            "{none:?}"
        );
        loads.perfd()?.stop()?;
        std::fs::write(place.path("text"), "hello")?;
        let (dir, text) = (
            place.dir().display().to_string(),
            place.path("text").display().to_string(),
        );
        let nowhere = place.path("nowhere/bill.csv").display().to_string();
        let cases: &[(&[&str], &str)] = &[
            (&["export", "--period", "2999-01"], "no usage of this period"),
            (&["export", "--period", "1960-01"], "before 1970"),
            (&["export", "--period", "2026-1"], "no month"),
            (&["export", "--provider", "nobody"], "no usage of a provider"),
            (&["export", "--format", "xls"], "invalid value"),
            (&["export", "-o", &nowhere], "cannot write"),
            (&["export", "--rates", &nowhere], "cannot read the rate card"),
            (&["export", "--rates", &dir], "cannot read the rate card"),
            (&["export", "--rates", &text], "no rate card"),
            (&["statement", "--period", "2999-01"], "no usage of this period"),
            (&["explain", "00000000"], "no row"),
            (
                &["correct", "00000000", "--count", "5", "--reason", "a trial"],
                "no row",
            ),
            (&["correct", "00000000", "--count", "5", "--reason", ""], "the reason"),
            (
                &["correct", "00000000", "--count", "5", "--reason", "two\nlines"],
                "the reason",
            ),
            (
                &["correct", "00000000", "--count", "-5", "--reason", "a trial"],
                "unexpected argument",
            ),
            (
                &[
                    "correct", "00000000", "--count", "5", "--reason", "x", "--period", "now",
                ],
                "cannot read the period",
            ),
            (&["compact", "--after", "0"], "is not in"),
            (
                &["compact", "--after", "40", "--remove-after", "30"],
                "before they are compacted",
            ),
            (&["top", "--step", "2s"], "invalid value"),
            (&["top", "--since", "yesterday"], "invalid value"),
            (&["chart", "nobody"], "nothing is known"),
        ];
        for (words, told) in cases {
            let all = [&["usage"], *words].concat();
            match loads.registry.appshot(&all) {
                Ok(answer) => anyhow::bail!("{words:?} is not refused: {answer}"),
                Err(error) => ensure!(error.to_string().contains(told), "{words:?}: {told}: {error}"),
            }
        }
        ensure!(!place.path("nowhere").exists(), "it was made");
        Ok(())
    });
}
