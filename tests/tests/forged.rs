//! Appshots that ask for more than they may: each is a real one, edited, with new
//! digests and a new seal, so that it opens. Each is refused by name before a
//! process exists, and nothing is left of the attempt.

use anyhow::{Context, Result, bail, ensure};
use appshot_tests::app::Place;
use appshot_tests::forge::{Forger, Record};
use appshot_tests::installed::Registry;
use appshot_tests::judge::{HostState, judge_nothing_left};
use appshot_tests::programs;
use appshot_tests::trial::in_place as trial;
use appshot_tests::verdict::{PATIENCE, need_program, poll, skip};
use libsnap::error::{Error, Kind};
use libsnap::target::{Allow, Memory, RestoreOptions, RunOptions, SnapshotOptions};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

/// A user without a name here, and without rights.
const NOBODY: u32 = 4711;
const NET_ADMIN: u64 = 1 << 12;
const IPC_LOCK: u64 = 1 << 14;
const SYS_RESOURCE: u64 = 1 << 24;
const NET_BIND_SERVICE: u64 = 1 << 10;

/// A copy of an appshot of this program, in the forger's hands.
fn forger(place: &Place, program: &str, uid: Option<u32>) -> Result<Forger> {
    let file = |name: &str| place.path(name).display().to_string();
    let app = place.run_with(RunOptions {
        command: vec![
            programs::build(program)?.display().to_string(),
            file("ready"),
            file("go"),
        ],
        uid,
        gid: uid,
        ..RunOptions::default()
    })?;
    poll("ready", PATIENCE, || Ok(place.path("ready").exists().then_some(())))?;
    app.freeze(&place.path("genuine"))?;
    app.wait_gone()?;
    Forger::copy(&place.path("genuine"), &place.path("forged"))
}

fn options(allow: Allow) -> RestoreOptions {
    RestoreOptions {
        allow,
        ..RestoreOptions::default()
    }
}

/// Sealed again, it is refused with these words, and nothing was started.
fn refused(place: &Place, forger: Forger, allow: Allow, words: &str) -> Result<()> {
    let shot = forger.seal()?;
    let Err(error) = place.restore_with(&shot, options(allow)) else {
        bail!("it was restored: {words:?} got through")
    };
    let error = error.downcast_ref::<Error>().context("not an error of the engine")?;
    ensure!(
        [Kind::Refused, Kind::Failed].contains(&error.kind),
        "{:?}: {error}",
        error.kind
    );
    ensure!(error.to_string().contains(words), "expected {words:?} in: {error}");
    ensure!(
        error.state.as_deref() == Some("nothing was started"),
        "too late: {error}"
    );
    judge_nothing_left(&place.scope(), &HostState::default())
}

/// The genuine appshot is restored with these same rights, and is intact.
fn genuine_passes(place: &Place, allow: Allow) -> Result<()> {
    let mut app = place
        .restore_with(&place.path("genuine"), options(allow))
        .context("the genuine one")?;
    fs::write(place.path("go"), "")?;
    let code = app.wait_exit()?;
    ensure!(code == 0, "exit code {code}");
    Ok(())
}

fn only(uid: u32) -> Allow {
    Allow {
        uids: Some(vec![uid]),
        gids: Some(vec![uid]),
        capabilities: 0,
        ..Allow::default()
    }
}

/// An edit of every thread of an app that runs as nobody, whose caller allows just that.
fn of_nobody(test: &'static str, words: &'static str, edit: fn(&mut Value)) {
    trial(test, move |place| {
        let forger = forger(place, "pipes", Some(NOBODY))?;
        forger.edit(Record::Thread, edit)?;
        refused(place, forger, only(NOBODY), words)?;
        genuine_passes(place, only(NOBODY))
    });
}

/// An edit of the manifest, which nobody may be allowed.
fn of_manifest(
    test: &'static str,
    program: &'static str,
    words: &'static str,
    edit: impl FnOnce(&Place, &mut Value) + Send + 'static,
) {
    trial(test, move |place| {
        let mut forger = forger(place, program, None)?;
        edit(place, &mut forger.manifest);
        refused(place, forger, Allow::default(), words)
    });
}

/// The first file of this kind.
fn file<'a>(manifest: &'a mut Value, kind: &str) -> &'a mut Value {
    let mut files = manifest["files"].as_array_mut().into_iter().flatten();
    files
        .find(|file| !file["kind"][kind].is_null())
        .expect("the program has such a file")
}

fn socket(manifest: &mut Value) -> &mut Value {
    &mut file(manifest, "socket")["kind"]["socket"]
}

/// The tool itself: what it seals opens, and is the app.
#[test]
fn resealed_unchanged() {
    trial("resealed_unchanged", |place| {
        let forger = forger(place, "pipes", None)?;
        for record in [Record::Process, Record::Thread, Record::Mappings] {
            forger.edit(record, |_| {})?;
        }
        let shot = forger.seal()?;
        let mut app = place.restore(&shot)?;
        fs::write(place.path("go"), "")?;
        ensure!(app.wait_exit()? == 0);
        Ok(())
    });
}

// ---------------------------------------------------------------- who it wants to be

#[test]
fn user_0() {
    of_nobody("user_0", "user 0", |thread| {
        thread["creds"]["uid"] = json!([0, 0, 0, 0])
    });
}

#[test]
fn saved_user_0() {
    of_nobody("saved_user_0", "user 0", |thread| thread["creds"]["uid"][2] = json!(0));
}

#[test]
fn group_0() {
    of_nobody("group_0", "group 0", |thread| thread["creds"]["groups"] = json!([0]));
}

#[test]
fn all_capabilities() {
    of_nobody("all_capabilities", "capabilities", |thread| {
        thread["creds"]["cap_permitted"] = json!(0xff_ffff_ffff_u64);
        thread["creds"]["cap_effective"] = json!(0xff_ffff_ffff_u64);
    });
}

/// User 0 without capabilities gains those of its bounding set with the next execve.
#[test]
fn capabilities_at_the_next_exec() {
    trial("capabilities_at_the_next_exec", |place| {
        let forger = forger(place, "pipes", None)?;
        forger.edit(Record::Thread, |thread| {
            for set in ["cap_permitted", "cap_effective", "cap_inheritable", "cap_ambient"] {
                thread["creds"][set] = json!(0);
            }
        })?;
        refused(place, forger, only(0), "capabilities")
    });
}

#[test]
fn real_time_priority() {
    of_nobody("real_time_priority", "CAP_SYS_NICE", |thread| {
        thread["sched"]["policy"] = json!(1);
        thread["sched"]["priority"] = json!(99);
    });
}

/// A caller that may make namespaces but not become another user.
#[test]
fn user_0_from_a_caller_who_is_not() {
    trial("user_0_from_a_caller_who_is_not", |place| {
        let setpriv = need_program(&["setpriv"])?;
        let registry = Registry::new(place)?;
        let forger = forger(place, "pipes", Some(NOBODY))?;
        forger.edit(Record::Thread, |thread| thread["creds"]["uid"] = json!([0, 0, 0, 0]))?;
        let shot = forger.seal()?;
        for entry in fs::read_dir(&shot)? {
            chown(entry?.path(), Some(NOBODY), Some(NOBODY))?;
        }
        chown(&shot, Some(NOBODY), Some(NOBODY))?;
        fs::create_dir(place.path("registry"))?;
        for dir in ["registry/run", "registry/data"] {
            fs::create_dir(place.path(dir))?;
            chown(place.path(dir), Some(NOBODY), Some(NOBODY))?;
        }
        let caps = "-all,+sys_admin,+sys_ptrace,+checkpoint_restore";
        let id = NOBODY.to_string();
        let output = registry
            .command_under(&setpriv, &["--reuid", &id, "--regid", &id, "--clear-groups"], "appshot")
            .args(["restore", "-d", "--name", place.unique()])
            .arg(&shot)
            .output()?;
        ensure!(output.status.code() == Some(6), "without any right: {output:?}");
        let output = registry
            .command_under(
                &setpriv,
                &[
                    "--reuid",
                    &id,
                    "--regid",
                    &id,
                    "--clear-groups",
                    "--inh-caps",
                    caps,
                    "--ambient-caps",
                    caps,
                ],
                "appshot",
            )
            .args(["restore", "-d", "--name", place.unique()])
            .arg(&shot)
            .output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(4),
            "exit code {:?}: {told}",
            output.status.code()
        );
        ensure!(told.contains("user 0"), "{told}");
        Ok(())
    });
}

// ---------------------------------------------------------------- what it wants to have

#[test]
fn set_user_id_file() {
    trial("set_user_id_file", |place| {
        let mut forger = forger(place, "unlinked_file", None)?;
        let shmem = forger.manifest["shmem"].as_array_mut().context("no shared memory")?;
        let mut unlinked = shmem.iter_mut().filter(|shm| !shm["kind"]["unlinked"].is_null());
        unlinked.next().context("no unlinked file")?["kind"]["unlinked"]["mode"] = json!(0o4755);
        let allow = Allow {
            uids: Some(vec![0]),
            ..Allow::default()
        };
        refused(place, forger, allow.clone(), "set-user-ID")?;
        genuine_passes(place, allow)
    });
}

#[test]
fn device_node() {
    of_manifest("device_node", "regular_files", "device", |place, manifest| {
        let node = place.path("node");
        let mode = Mode::from_bits_truncate(0o600);
        // The machine's memory.
        mknod(&node, SFlag::S_IFCHR, mode, makedev(1, 1)).expect("root makes nodes");
        file(manifest, "path")["kind"]["path"]["path"] = json!(node);
    });
}

/// Opening it would wait for ever.
#[test]
fn fifo_as_a_file() {
    of_manifest("fifo_as_a_file", "regular_files", "special file", |place, manifest| {
        let fifo = place.path("fifo");
        nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).expect("a fifo is made");
        file(manifest, "path")["kind"]["path"]["path"] = json!(fifo);
    });
}

/// Its content would be written over.
#[test]
fn file_as_a_fifo() {
    of_manifest("file_as_a_fifo", "pipes", "a fifo", |place, manifest| {
        let file = place.path("precious");
        fs::write(&file, "precious").expect("a file is written");
        manifest["pipes"][0]["fifo"] = json!(file);
    });
}

/// The directories of the program, its libraries and its files.
fn own_directories(place: &Place) -> Result<Vec<PathBuf>> {
    let program = programs::build("regular_files")?;
    let programs = program.parent().context("no directory")?.to_owned();
    Ok(vec![place.dir().to_owned(), programs, "/usr".into()])
}

fn outside(test: &'static str, name: fn(&Place) -> Result<PathBuf>) {
    trial(test, move |place| {
        let allow = Allow {
            paths: Some(own_directories(place)?),
            ..Allow::default()
        };
        let mut forger = forger(place, "regular_files", None)?;
        file(&mut forger.manifest, "path")["kind"]["path"]["path"] = json!(name(place)?);
        refused(place, forger, allow.clone(), "not below")?;
        genuine_passes(place, allow)
    });
}

#[test]
fn path_outside() {
    outside("path_outside", |_| Ok("/etc/shadow".into()));
}

#[test]
fn path_outside_through_a_link() {
    outside("path_outside_through_a_link", |place| {
        symlink("/etc", place.path("link"))?;
        Ok(place.path("link/shadow"))
    });
}

#[test]
fn path_that_leads_up() {
    of_manifest("path_that_leads_up", "regular_files", "leads up", |place, manifest| {
        let up = format!("{}/../../etc/shadow", place.dir().display());
        file(manifest, "path")["kind"]["path"]["path"] = json!(up);
    });
}

#[test]
fn root_directory() {
    trial("root_directory", |place| {
        let forger = forger(place, "pipes", Some(NOBODY))?;
        forger.edit(Record::Process, |process| process["root"] = json!("/etc"))?;
        refused(place, forger, only(NOBODY), "root directory")
    });
}

#[test]
fn raw_socket() {
    of_manifest("raw_socket", "udp", "no snapshot carries", |_, manifest| {
        let socket = socket(manifest);
        socket["domain"] = json!(40);
        socket["kind"] = json!(3);
        socket["protocol"] = json!(0x300);
    });
}

fn becomes(manifest: &mut Value, domain: i32, protocol: i32, state: Value) {
    let socket = socket(manifest);
    socket["domain"] = json!(domain);
    socket["kind"] = json!(3);
    socket["protocol"] = json!(protocol);
    socket["state"] = state;
    socket["options"] = json!([]);
    socket["queue"] = json!([]);
}

/// A socket that nobody's app is to have, which may have no capability.
fn of_nobodys_socket(test: &'static str, words: &'static str, domain: i32, protocol: i32, state: Value) {
    trial(test, move |place| {
        let mut forger = forger(place, "udp", Some(NOBODY))?;
        becomes(&mut forger.manifest, domain, protocol, state);
        refused(place, forger, only(NOBODY), words)
    });
}

/// Bound to nothing it hears all packets.
#[test]
fn unbound_packet_socket() {
    let fresh = json!("fresh");
    of_nobodys_socket("unbound_packet_socket", "takes CAP_NET_RAW", 17, 0x300, fresh);
}

#[test]
fn unbound_raw_socket() {
    of_nobodys_socket("unbound_raw_socket", "takes CAP_NET_RAW", 2, 255, json!("fresh"));
}

/// A state in which there is no such socket.
#[test]
fn severed_packet_socket() {
    of_manifest("severed_packet_socket", "udp", "and severed", |_, manifest| {
        becomes(manifest, 17, 0x300, json!("severed"));
    });
}

/// NETLINK_XFRM, whose messages tell the host's keys, by the groups of its address.
#[test]
fn netlink_groups() {
    let in_a_group = json!({ "bound": { "name": "100000000000000001000000", "file": null } });
    of_nobodys_socket("netlink_groups", "takes CAP_NET_ADMIN", 16, 6, in_a_group);
}

/// The end of a connection that nobody ever made, with numbers of the forger's choice.
fn established() -> Value {
    json!({ "established": {
        "name": "020022b80a6000020000000000000000",
        "peer": "02001f900a6000010000000000000000",
        "connection": {
            "mss": 1460, "sack": true, "timestamps": false, "window": 65535,
            "peer_window_max": 65535, "clamp": 65535, "unsent": "474554",
        },
        "numbers": {
            "acknowledged": 1, "in_flight": 0, "received": 1, "told_at": 1, "peer_window": 65535,
            "timestamp": 0, "peer_ended": "no",
        },
    } })
}

/// To speak for an address as if somebody had connected there.
fn goes_on(test: &'static str, words: &'static str, edit: fn(&mut Value)) {
    trial(test, move |place| {
        let mut forger = forger(place, "udp", None)?;
        forger.manifest["barrier"] = json!("appshot-0123456789abcdef");
        becomes(&mut forger.manifest, 2, 6, established());
        let socket = socket(&mut forger.manifest);
        (socket["kind"], socket["options"], socket["queue"]) = (json!(1), json!([]), json!([]));
        edit(&mut forger.manifest);
        let allow = without(&forger, NET_ADMIN)?;
        refused(place, forger, allow, words)
    });
}

#[test]
fn connection_of_nobody() {
    goes_on("connection_of_nobody", "takes CAP_NET_ADMIN", |_| {});
}

#[test]
fn connection_without_barrier() {
    goes_on(
        "connection_without_barrier",
        "keeps the peer of its connection away",
        |manifest| {
            manifest["barrier"] = Value::Null;
        },
    );
}

/// A table of somebody else's.
#[test]
fn barrier_of_others() {
    goes_on("barrier_of_others", "its packet filters is malformed", |manifest| {
        manifest["barrier"] = json!("filter");
    });
}

#[test]
fn more_in_flight_than_there_is() {
    goes_on("more_in_flight_than_there_is", "connection is malformed", |manifest| {
        socket(manifest)["state"]["established"]["numbers"]["in_flight"] = json!(4);
    });
}

/// SO_ATTACH_REUSEPORT_CBPF: a program for the kernel that chooses who gets a connection.
#[test]
fn socket_option() {
    of_manifest("socket_option", "tcp_listener", "no snapshot carries", |_, manifest| {
        let option = json!({ "level": 1, "name": 51, "value": "00" });
        socket(manifest)["options"]
            .as_array_mut()
            .expect("options")
            .push(option);
    });
}

/// Larger than this host lets anybody have one.
#[test]
fn large_buffer() {
    trial("large_buffer", |place| {
        let mut forger = forger(place, "udp", None)?;
        let options = socket(&mut forger.manifest)["options"]
            .as_array_mut()
            .context("no options")?;
        options.retain(|option| (&option["level"], &option["name"]) != (&json!(1), &json!(8)));
        options.push(json!({ "level": 1, "name": 8, "value": "00000040" }));
        let allow = without(&forger, NET_ADMIN)?;
        refused(place, forger, allow, "a larger buffer than this host gives")
    });
}

/// More than the limit of who restores it.
#[test]
fn locked_memory() {
    trial("locked_memory", |place| {
        let forger = forger(place, "pipes", None)?;
        let allow = without(&forger, IPC_LOCK)?;
        forger.edit(Record::Mappings, |vmas| {
            for vma in vmas.as_array_mut().into_iter().flatten() {
                vma["flags"] = json!(["lo"]);
            }
        })?;
        forger.edit(Record::Process, |process| process["rlimits"][8] = json!([4096, 4096]))?;
        refused(place, forger, allow, "of memory locked")
    });
}

/// All but this capability, which the app has not either.
fn without(forger: &Forger, capability: u64) -> Result<Allow> {
    forger.edit(Record::Thread, |thread| {
        for set in ["cap_permitted", "cap_effective", "cap_bounding"] {
            let mask = thread["creds"][set].as_u64().unwrap_or(0);
            thread["creds"][set] = json!(mask & !(NET_ADMIN | IPC_LOCK | SYS_RESOURCE));
        }
    })?;
    Ok(Allow {
        capabilities: !capability,
        ..Allow::default()
    })
}

#[test]
fn low_port() {
    trial("low_port", |place| {
        let mut forger = forger(place, "tcp_listener", None)?;
        let name = &mut socket(&mut forger.manifest)["state"]["listening"]["name"];
        let bytes = name.as_str().context("no name")?;
        // Family, port 80, the rest.
        *name = json!(format!("{}0050{}", &bytes[..4], &bytes[8..]));
        let allow = Allow {
            capabilities: !NET_BIND_SERVICE,
            ..Allow::default()
        };
        // User 0 would have the capability again: so says the first refusal.
        forger.edit(Record::Thread, |thread| {
            for set in ["cap_permitted", "cap_effective", "cap_bounding"] {
                let mask = thread["creds"][set].as_u64().unwrap_or(0);
                thread["creds"][set] = json!(mask & !NET_BIND_SERVICE);
            }
        })?;
        refused(place, forger, allow, "port 80")
    });
}

/// The queue of `mqueue` that has a name, many messages and descriptors.
fn posix_queue(manifest: &mut Value) -> &mut Value {
    let mut queues = manifest["posix_queues"].as_array_mut().into_iter().flatten();
    queues
        .find(|queue| queue["unlinked"].is_null() && queue["messages"].as_array().is_some_and(|all| all.len() > 2))
        .expect("the program has such a queue")
}

/// An edit of a queue that no kernel would have made.
fn of_posix_queue(test: &'static str, words: &'static str, edit: fn(&mut Value)) {
    of_manifest(test, "mqueue", words, move |_, manifest| edit(posix_queue(manifest)));
}

#[test]
fn queue_with_a_path_for_a_name() {
    of_posix_queue("queue_with_a_path_for_a_name", "its name is malformed", |queue| {
        queue["name"] = json!("../tmp/queue");
    });
}

#[test]
fn queue_with_a_long_name() {
    of_posix_queue("queue_with_a_long_name", "its name is malformed", |queue| {
        queue["name"] = json!("x".repeat(256));
    });
}

#[test]
fn queue_without_an_end() {
    of_posix_queue("queue_without_an_end", "its size is malformed", |queue| {
        queue["messages_max"] = json!(u32::MAX);
    });
}

#[test]
fn queue_without_room() {
    of_posix_queue("queue_without_room", "holds more than it can", |queue| {
        queue["messages_max"] = json!(1);
    });
}

#[test]
fn queue_with_a_large_message() {
    of_posix_queue("queue_with_a_large_message", "holds more than it can", |queue| {
        queue["messages"][0]["data"] = json!("00".repeat(5001));
    });
}

#[test]
fn queue_with_a_priority_of_its_own() {
    of_posix_queue(
        "queue_with_a_priority_of_its_own",
        "order of messages is malformed",
        |queue| {
            queue["messages"][0]["priority"] = json!(32768);
        },
    );
}

#[test]
fn queue_out_of_order() {
    of_posix_queue("queue_out_of_order", "order of messages is malformed", |queue| {
        queue["messages"][0]["priority"] = json!(0);
    });
}

#[test]
fn queue_that_tells_nobody() {
    of_posix_queue(
        "queue_that_tells_nobody",
        "who is told of a message cannot be",
        |queue| {
            queue["notice"] = json!({ "pid": 77777, "how": { "signal": { "signal": 9, "value": 0 } } });
        },
    );
}

/// What it is to be told by is no netlink socket.
#[test]
fn queue_that_tells_through_a_file() {
    of_manifest(
        "queue_that_tells_through_a_file",
        "mqueue",
        "who is told of a message cannot be",
        |_, manifest| {
            let (pid, cookie) = (manifest["processes"][0]["pid"].clone(), "00".repeat(32));
            let how = json!({ "thread": { "file": file(manifest, "epoll")["id"], "cookie": cookie } });
            posix_queue(manifest)["notice"] = json!({ "pid": pid, "how": how });
        },
    );
}

#[test]
fn queue_twice() {
    of_manifest("queue_twice", "mqueue", "is listed twice", |_, manifest| {
        let mut other = posix_queue(manifest).clone();
        other["ino"] = json!(1);
        manifest["posix_queues"].as_array_mut().expect("queues").push(other);
    });
}

#[test]
fn queue_that_is_not_there() {
    of_manifest("queue_that_is_not_there", "mqueue", "is not listed", |_, manifest| {
        file(manifest, "mqueue")["kind"]["mqueue"]["ino"] = json!(1);
    });
}

#[test]
fn queue_without_name_and_descriptor() {
    of_manifest(
        "queue_without_name_and_descriptor",
        "mqueue",
        "nothing leads to it",
        |_, manifest| {
            let mut other = posix_queue(manifest).clone();
            other["ino"] = json!(1);
            other["unlinked"] = json!(true);
            manifest["posix_queues"]
                .as_array_mut()
                .expect("queues")
                .insert(0, other);
        },
    );
}

/// One of nobody, which is to be another's.
fn of_nobodys_queue(test: &'static str, edit: fn(&mut Value)) {
    trial(test, move |place| {
        let mut forger = forger(place, "mqueue_blocked", Some(NOBODY))?;
        edit(&mut forger.manifest["posix_queues"][0]);
        refused(place, forger, only(NOBODY), "user 0")?;
        genuine_passes(place, only(NOBODY))
    });
}

#[test]
fn queue_of_user_0() {
    of_nobodys_queue("queue_of_user_0", |queue| queue["file"]["uid"] = json!(0));
}

#[test]
fn queue_charged_to_user_0() {
    of_nobodys_queue("queue_charged_to_user_0", |queue| queue["charged"] = json!(0));
}

/// More than everybody may make them.
#[test]
fn large_queue() {
    trial("large_queue", |place| {
        let mut forger = forger(place, "mqueue", None)?;
        let allow = without(&forger, SYS_RESOURCE)?;
        posix_queue(&mut forger.manifest)["messages_max"] = json!(65536);
        refused(
            place,
            forger,
            allow,
            "larger than its namespace lets everybody make them",
        )
    });
}

/// Signals to a process that is not the app's.
#[test]
fn signals_outside() {
    of_manifest("signals_outside", "pipes", "signals go to no process", |_, manifest| {
        file(manifest, "pipe")["owner"] = json!({ "kind": 1, "id": 1, "signal": 9 });
    });
}

#[test]
fn namespaces() {
    of_manifest("namespaces", "pipes", "unknown variant", |_, manifest| {
        manifest["namespaces"] = json!([{ "pid": { "link": "/proc/1/ns/pid" } }]);
    });
}

#[test]
fn namespaces_that_nobody_is_in() {
    of_manifest(
        "namespaces_that_nobody_is_in",
        "namespace_uts",
        "no process is in",
        |_, manifest| {
            let more = manifest["namespaces"][0].clone();
            if let Some(all) = manifest["namespaces"].as_array_mut() {
                all.push(more);
            }
        },
    );
}

/// What only root may make, for who may become nobody.
#[test]
fn namespaces_of_nobody() {
    trial("namespaces_of_nobody", |place| {
        let mut forger = forger(place, "pipes", Some(NOBODY))?;
        forger.manifest["namespaces"] = json!(["cgroup"]);
        forger.edit(Record::Process, |process| process["namespaces"] = json!([0]))?;
        refused(place, forger, only(NOBODY), "wants namespaces of its own")
    });
}

#[test]
fn semaphores_of_others_beside() {
    trial("semaphores_of_others_beside", |place| {
        let mut forger = forger(place, "namespace_ipc", None)?;
        let all = forger.manifest["namespaces"].as_array_mut().context("namespaces")?;
        let objects = all.iter_mut().find_map(|one| one.get_mut("ipc")).context("IPC")?;
        objects["semaphores"][0]["perm"]["uid"] = json!(NOBODY);
        let allow = Allow {
            uids: Some(vec![0]),
            ..Allow::default()
        };
        refused(place, forger, allow, "belongs to user 4711")
    });
}

/// The first step of its mounts that binds, or makes a file system.
fn step<'m>(manifest: &'m mut Value, kind: &str) -> Result<&'m mut Value> {
    let all = manifest["namespaces"].as_array_mut().context("namespaces")?;
    let mounts = all.iter_mut().find_map(|one| one.get_mut("mnt")).context("mounts")?;
    let steps = mounts["steps"].as_array_mut().context("steps")?;
    steps.iter_mut().find_map(|step| step.get_mut(kind)).context("a step")
}

#[test]
fn mounts_of_another_place() {
    trial("mounts_of_another_place", |place| {
        let mut forger = forger(place, "namespace_mnt", None)?;
        step(&mut forger.manifest, "bind")?["from"] = json!("/root");
        let mut paths = own_directories(place)?;
        paths.push("/dev".into());
        let allow = Allow {
            paths: Some(paths),
            ..Allow::default()
        };
        refused(place, forger, allow, "/root/outer, which is not below")
    });
}

#[test]
fn mounted_files_elsewhere() {
    trial("mounted_files_elsewhere", |place| {
        let mut forger = forger(place, "namespace_mnt", None)?;
        let entries = &mut step(&mut forger.manifest, "mount")?["kind"]["tmpfs"]["entries"];
        let mut entries = entries.as_array_mut().context("files")?.iter_mut();
        let link = entries
            .find(|entry| !entry["kind"]["symlink"].is_null())
            .context("a link")?;
        link["name"] = json!("../../etc/cron.d/mine");
        refused(place, forger, Allow::default(), "in no directory")
    });
}

#[test]
fn mounted_files_of_others() {
    trial("mounted_files_of_others", |place| {
        let mut forger = forger(place, "namespace_mnt", None)?;
        step(&mut forger.manifest, "mount")?["kind"]["tmpfs"]["entries"][0]["uid"] = json!(4713);
        let allow = Allow {
            uids: Some(vec![0, NOBODY]),
            ..Allow::default()
        };
        refused(place, forger, allow, "makes a file of user 4713")
    });
}

/// A file of this kind in a file system that comes along: its path, and what it is.
fn mounted(manifest: &mut Value, is: impl Fn(&Value) -> bool) -> Result<(String, &mut Value)> {
    let mount = step(manifest, "mount")?;
    let root = mount["at"].as_str().context("a path")?.to_owned();
    let entries = mount["kind"]["tmpfs"]["entries"].as_array_mut().context("files")?;
    let mut entries = entries.iter_mut();
    let entry = entries.find(|entry| is(&entry["kind"])).context("such a file")?;
    let path = format!("{root}/{}", entry["name"].as_str().context("a name")?);
    Ok((path, &mut entry["kind"]))
}

fn link_to(manifest: &mut Value, to: &str) -> Result<String> {
    let (path, link) = mounted(manifest, |kind| !kind["symlink"].is_null())?;
    link["symlink"]["to"] = json!(to);
    Ok(path)
}

/// What the app has open there, only to read it, is to be this.
fn opens(manifest: &mut Value, path: &str) -> Result<()> {
    let files = manifest["files"].as_array_mut().context("files")?;
    let reads = |file: &&mut Value| file["flags"].as_i64().unwrap_or(0) & 3 == 0;
    let mut files = files.iter_mut().filter(reads);
    let file = files.find_map(|file| file["kind"].get_mut("path").filter(|path| !path["namespace"].is_null()));
    file.context("a file")?["path"] = json!(path);
    Ok(())
}

/// With other mounts of its own, the kernel refuses it.
fn of_mounts(test: &'static str, errno: &'static str, edit: fn(&mut Value) -> Result<()>) {
    trial(test, move |place| {
        let mut forger = forger(place, "namespace_mnt", None)?;
        edit(&mut forger.manifest)?;
        let shot = forger.seal()?;
        let Err(error) = place.restore_with(&shot, options(Allow::default())) else {
            bail!("it was restored")
        };
        ensure!(format!("{error:?}").contains(errno), "{error:?}");
        Ok(())
    });
}

/// A link in a file system that comes along leads to a file of the host's: nobody opens it by that.
#[test]
fn mounted_links() {
    of_mounts("mounted_links", "ELOOP", |manifest| {
        let path = link_to(manifest, "/etc/shadow")?;
        opens(manifest, &path)
    });
}

/// A FIFO of a file system that comes along is opened by nobody: who did would wait for ever.
#[test]
fn mounted_fifos() {
    of_mounts("mounted_fifos", "ENXIO", |manifest| {
        let (path, _) = mounted(manifest, |kind| *kind == json!("fifo"))?;
        opens(manifest, &path)
    });
}

/// What is mounted, unmounted or changed leads by no link of what was made before.
#[test]
fn mounts_by_a_link() {
    of_mounts("mounts_by_a_link", "ELOOP", |manifest| {
        let path = link_to(manifest, "/")?;
        let namespaces = manifest["namespaces"].as_array_mut().context("namespaces")?;
        let mut steps = namespaces
            .iter_mut()
            .filter_map(|namespace| namespace["mnt"]["steps"].as_array_mut());
        let unmount = json!({ "unmount": { "at": format!("{path}/proc") } });
        steps.next().context("steps")?.push(unmount);
        Ok(())
    });
}

/// The same bytes for each of many files come to more than one may have.
#[test]
fn mounted_again_and_again() {
    of_manifest(
        "mounted_again_and_again",
        "namespace_mnt",
        "content is not there",
        |_, manifest| {
            let Ok(mount) = step(manifest, "mount") else { return };
            let Some(entries) = mount["kind"]["tmpfs"]["entries"].as_array_mut() else {
                return;
            };
            let files = entries.iter().filter(|entry| entry["kind"]["file"]["runs"].is_array());
            let Some(mut again) = files
                .clone()
                .find(|entry| entry["kind"]["file"]["runs"] != json!([]))
                .cloned()
            else {
                return;
            };
            again["name"] = json!("zzz");
            entries.push(again);
        },
    );
}

#[test]
fn mount_options() {
    of_manifest("mount_options", "namespace_mnt", "option", |_, manifest| {
        if let Ok(step) = step(manifest, "mount") {
            step["options"]["usrquota"] = json!("");
        }
    });
}

/// A segment under the id that another one has in the app's own namespace.
#[test]
fn segments_elsewhere() {
    of_manifest(
        "segments_elsewhere",
        "namespace_ipc",
        "that it is not in",
        |_, manifest| {
            let all = manifest["shmem"].as_array_mut().into_iter().flatten();
            for segment in all.filter(|one| !one["kind"]["sysv"].is_null()) {
                if let Some(segment) = segment.as_object_mut() {
                    segment.remove("namespace");
                }
            }
        },
    );
}

#[test]
fn a_size_that_nobody_asks_for() {
    of_manifest(
        "a_size_that_nobody_asks_for",
        "sysv_shm",
        "bytes were asked for",
        |_, manifest| {
            let mut all = manifest["shmem"].as_array_mut().into_iter().flatten();
            let segment = all.find(|one| !one["kind"]["sysv"].is_null());
            segment.expect("it has a segment")["kind"]["sysv"]["asked_bytes"] = json!(1);
        },
    );
}

#[test]
fn a_zombie_of_another_user() {
    trial("a_zombie_of_another_user", |place| {
        let mut forger = forger(place, "zombies", None)?;
        let mut all = forger.manifest["processes"].as_array_mut().into_iter().flatten();
        let ended = all.find(|one| !one["life"]["zombie"].is_null()).context("a zombie")?;
        ended["life"]["zombie"]["uid"] = json!(NOBODY);
        let allow = Allow {
            uids: Some(vec![0, 4321]),
            ..Allow::default()
        };
        refused(place, forger, allow, "which has ended, was of user 4711")
    });
}

#[test]
fn cgroup_path() {
    of_manifest("cgroup_path", "pipes", "app id", |_, manifest| {
        manifest["app"] = json!("../../elsewhere")
    });
}

// ------------------------------------------------------------- filters of system calls

#[test]
fn seccomp_taken_off_a_thread() {
    trial("seccomp_taken_off_a_thread", |place| {
        let forger = forger(place, "seccomp", None)?;
        forger.edit(Record::Thread, |thread| {
            drop(thread.as_object_mut().map(|t| t.remove("seccomp")))
        })?;
        refused(place, forger, Allow::default(), "belong to no thread")
    });
}

#[test]
fn seccomp_removed_altogether() {
    trial("seccomp_removed_altogether", |place| {
        let mut forger = forger(place, "seccomp", None)?;
        forger.edit(Record::Thread, |thread| {
            drop(thread.as_object_mut().map(|t| t.remove("seccomp")))
        })?;
        drop(forger.manifest.as_object_mut().map(|m| m.remove("seccomp")));
        let allow = Allow {
            unconfined: false,
            ..Allow::default()
        };
        refused(place, forger, allow.clone(), "seccomp")?;
        genuine_passes(place, allow)
    });
}

// ------------------------------------------------------------------ sizes and places

#[test]
fn process_1() {
    of_manifest("process_1", "pipes", "process 1", |_, manifest| {
        manifest["processes"][0]["pid"] = json!(1)
    });
}

#[test]
fn huge_shared_memory() {
    of_manifest("huge_shared_memory", "memfd", "too large", |_, manifest| {
        manifest["shmem"][0]["bytes"] = json!(u64::MAX);
    });
}

#[test]
fn run_beyond_its_end() {
    of_manifest("run_beyond_its_end", "memfd", "out of place", |_, manifest| {
        manifest["shmem"][0]["runs"] = json!([[0, u64::MAX - 4095]]);
    });
}

fn of_mappings(test: &'static str, words: &'static str, edit: fn(&mut Value)) {
    trial(test, move |place| {
        let forger = forger(place, "pipes", None)?;
        forger.edit(Record::Mappings, edit)?;
        refused(place, forger, Allow::default(), words)
    });
}

#[test]
fn a_table_of_nobody() {
    of_manifest("a_table_of_nobody", "pipes", "shares with no process", |_, manifest| {
        manifest["processes"][0]["shares_files"] = json!(true);
    });
}

#[test]
fn directories_that_are_not_the_same() {
    trial("directories_that_are_not_the_same", |place| {
        let forger = forger(place, "shared_fd_table", None)?;
        forger.edit(Record::Process, |process| {
            process["umask"] = json!(process["pid"].as_i64().unwrap_or_default() & 0o77)
        })?;
        refused(place, forger, Allow::default(), "what it shares with its parent")
    });
}

/// An edit of what an app has in huge pages that were set aside.
fn of_huge_pages(test: &'static str, words: &'static str, edit: fn(&mut Forger) -> Result<()>) {
    trial(test, move |place| {
        if !Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB").exists() {
            return skip("huge pages of 2 MiB");
        }
        let mut forger = forger(place, "hugetlb_shared", None)?;
        edit(&mut forger)?;
        refused(place, forger, Allow::default(), words)
    });
}

fn in_huge_pages(manifest: &mut Value) -> impl Iterator<Item = &mut Value> {
    let all = manifest["shmem"].as_array_mut().into_iter().flatten();
    all.filter(|shm| shm["page_bytes"].is_u64())
}

/// A segment that was asked for as it is.
fn of_whole_pages(shm: &mut Value) {
    if let Some(segment) = shm["kind"].get_mut("sysv").and_then(Value::as_object_mut) {
        segment.remove("asked_bytes");
    }
}

#[test]
fn more_huge_pages_than_there_are() {
    of_huge_pages(
        "more_huge_pages_than_there_are",
        "huge pages of 2048 kB are free",
        |forger| {
            for shm in in_huge_pages(&mut forger.manifest) {
                shm["bytes"] = json!(1_u64 << 39);
                of_whole_pages(shm);
            }
            Ok(())
        },
    );
}

#[test]
fn huge_pages_of_no_size() {
    of_huge_pages("huge_pages_of_no_size", "huge pages of 12288 bytes", |forger| {
        in_huge_pages(&mut forger.manifest).for_each(|shm| shm["page_bytes"] = json!(12288));
        Ok(())
    });
}

#[test]
fn huge_pages_of_a_size_that_is_not_there() {
    of_huge_pages(
        "huge_pages_of_a_size_that_is_not_there",
        "no huge pages of 64 kB",
        |forger| {
            for shm in in_huge_pages(&mut forger.manifest) {
                shm["page_bytes"] = json!(65536);
                of_whole_pages(shm);
            }
            Ok(())
        },
    );
}

#[test]
fn a_huge_page_out_of_place() {
    of_mappings("a_huge_page_out_of_place", "a huge page is out of place", |vmas| {
        let anonymous = vmas
            .as_array_mut()
            .into_iter()
            .flatten()
            .find(|vma| vma["kind"] == "anon");
        let vma = anonymous.expect("it has anonymous memory");
        vma["kind"] = json!({"huge": {"page_bytes": 1 << 30, "had": []}});
    });
}

#[test]
fn a_protection_key_that_no_processor_has() {
    of_mappings("a_protection_key_that_no_processor_has", "protection key 16", |vmas| {
        vmas[0]["key"] = json!(16)
    });
}

#[test]
fn the_key_of_what_is_only_executed_allocated() {
    trial("the_key_of_what_is_only_executed_allocated", |place| {
        let forger = forger(place, "pipes", None)?;
        forger.edit(Record::Process, |process| {
            process["keys"] = json!({"allocated": 2, "execute_only": 1});
        })?;
        refused(place, forger, Allow::default(), "protection keys")
    });
}

#[test]
fn overlapping_mappings() {
    of_mappings("overlapping_mappings", "out of place", |vmas| {
        vmas[1]["start"] = vmas[0]["start"].clone()
    });
}

#[test]
fn mapping_of_the_kernels_half() {
    of_mappings("mapping_of_the_kernels_half", "out of place", |vmas| {
        let last = vmas.as_array().map_or(0, Vec::len) - 1;
        vmas[last]["end"] = json!(u64::MAX - 4095);
    });
}

#[test]
fn mapping_at_zero() {
    of_mappings("mapping_at_zero", "out of place", |vmas| vmas[0]["start"] = json!(0));
}

// ------------------------------------------------------------ where its names lead

/// An appshot of a program that runs as nobody, with all its files in a directory of its own.
fn in_own_directory(place: &Place, program: &str) -> Result<PathBuf> {
    let own = place.path("own");
    fs::create_dir(&own)?;
    chown(&own, Some(NOBODY), Some(NOBODY))?;
    let file = |name: &str| own.join(name).display().to_string();
    let app = place.run_with(RunOptions {
        command: vec![
            programs::build(program)?.display().to_string(),
            file("ready"),
            file("go"),
        ],
        uid: Some(NOBODY),
        gid: Some(NOBODY),
        ..RunOptions::default()
    })?;
    poll("ready", PATIENCE, || Ok(own.join("ready").exists().then_some(())))?;
    // Root's own: it is not the app that opens it again.
    let options = SnapshotOptions {
        log: Some(place.path("log")),
        ..SnapshotOptions::default()
    };
    app.snapshot(&place.path("genuine"), &options)?;
    app.wait_gone()?;
    Ok(own)
}

fn as_itself(memory: Memory) -> RestoreOptions {
    RestoreOptions {
        as_itself: true,
        memory,
        ..RestoreOptions::default()
    }
}

/// A directory of root that has what this one has, but its sockets.
fn of_root(own: &Path, secret: &Path) -> Result<Vec<(PathBuf, u32)>> {
    fs::create_dir(secret)?;
    for entry in fs::read_dir(own)? {
        let (entry, copy) = (entry?, |name| secret.join(name));
        let (kind, copy) = (entry.file_type()?, copy(entry.file_name()));
        if kind.is_fifo() {
            nix::unistd::mkfifo(&copy, Mode::S_IRUSR | Mode::S_IWUSR)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), &copy)?;
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o600))?;
            // As if nobody had written to it since.
            fs::File::open(&copy)?.set_modified(entry.metadata()?.modified()?)?;
        }
    }
    listed(secret)
}

/// What is in a directory, with owners.
fn listed(dir: &Path) -> Result<Vec<(PathBuf, u32)>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        all.push((entry.path(), entry.metadata()?.uid()));
    }
    all.sort();
    Ok(all)
}

/// Its owner has the directory lead to one of root's while the app sleeps. Restored as
/// itself, the app does not get there; otherwise it would, with the rights of who restores.
fn led_astray(test: &'static str, program: &'static str) {
    trial(test, move |place| {
        let (own, aside, secret) = (
            in_own_directory(place, program)?,
            place.path("aside"),
            place.path("secret"),
        );
        let before = of_root(&own, &secret)?;
        fs::rename(&own, &aside)?;
        symlink(&secret, &own)?;
        for memory in [Memory::Eager, Memory::Lazy] {
            let Err(error) = place.restore_with(&place.path("genuine"), as_itself(memory)) else {
                bail!("it was restored with files of root")
            };
            let error = error.downcast_ref::<Error>().context("not an error of the engine")?;
            ensure!(
                error.what.contains(&own.display().to_string()),
                "it names no file: {error}"
            );
            ensure!(error.kind == Kind::Refused, "{:?}: {error}", error.kind);
            ensure!(
                error.needs.as_ref().is_some_and(|needs| needs.contains("user 4711")) && error.fix.is_some(),
                "{error}"
            );
            ensure!(error.state.as_deref() == Some("nothing was left behind"), "{error}");
            judge_nothing_left(&place.scope(), &HostState::default())?;
            ensure!(listed(&secret)? == before, "something is in the directory of root");
        }
        drop(place.restore_with(&place.path("genuine"), RestoreOptions::default())?);
        // What that was allowed to.
        fs::remove_file(&own)?;
        fs::rename(&aside, &own)?;
        let mut app = place.restore_with(&place.path("genuine"), as_itself(Memory::Eager))?;
        fs::write(own.join("go"), "")?;
        let code = app.wait_exit()?;
        ensure!(code == 0, "exit code {code}: {}", place.log());
        Ok(())
    });
}

#[test]
fn a_file_led_astray() {
    led_astray("a_file_led_astray", "regular_files");
}

#[test]
fn a_mapped_file_led_astray() {
    led_astray("a_mapped_file_led_astray", "shared_file");
}

#[test]
fn a_socket_led_astray() {
    led_astray("a_socket_led_astray", "unix_listen");
}

#[test]
fn a_fifo_led_astray() {
    led_astray("a_fifo_led_astray", "fifos");
}

/// The rest comes back with the app's own rights too, however its memory comes.
#[test]
fn restored_as_itself() {
    const PROGRAMS: [&str; 7] = [
        "unlinked_file",
        "memfd",
        "pipes",
        "inotify",
        "unix_pairs",
        "private_file",
        "pty",
    ];
    trial("restored_as_itself", |place| {
        let ways = [Memory::Eager, Memory::Lazy, Memory::Shared].into_iter().cycle();
        for (program, memory) in PROGRAMS.into_iter().zip(ways) {
            let own = in_own_directory(place, program)?;
            let mut app = place.restore_with(&place.path("genuine"), as_itself(memory))?;
            fs::write(own.join("go"), "")?;
            let code = app.wait_exit()?;
            ensure!(code == 0, "{program}: exit code {code}");
            fs::remove_dir_all(&own)?;
            fs::remove_dir_all(place.path("genuine"))?;
        }
        Ok(())
    });
}

// ------------------------------------------------------------------ borrowed pages

/// An edit of the first page that each process has from another, and of the manifest.
fn of_borrowed(test: &'static str, words: &'static str, edit: fn(&mut Value), lenders: fn(&mut Value)) {
    trial(test, move |place| {
        let mut forger = forger(place, "forked_pages", None)?;
        forger.edit(Record::Borrowed, |table| edit(&mut table[0]))?;
        lenders(&mut forger.manifest);
        refused(place, forger, Allow::default(), words)
    });
}

fn as_it_is(_: &mut Value) {}

#[test]
fn borrowed_beyond_the_end() {
    of_borrowed(
        "borrowed_beyond_the_end",
        "where it stores none",
        |entry| entry[3] = json!(1u64 << 40),
        as_it_is,
    );
}

/// Notes and tables are no memory.
#[test]
fn borrowed_header() {
    of_borrowed("borrowed_header", "out of place", |entry| entry[3] = json!(0), as_it_is);
}

#[test]
fn borrowed_of_nobody() {
    of_borrowed(
        "borrowed_of_nobody",
        "unknown lender",
        |entry| entry[2] = json!(99),
        as_it_is,
    );
}

#[test]
fn borrowed_of_itself() {
    of_borrowed(
        "borrowed_of_itself",
        "out of place",
        |entry| entry[2] = json!(0),
        as_it_is,
    );
}

/// The lender is one of those that borrow: from itself, the others from what it borrows.
#[test]
fn borrowed_in_a_circle() {
    of_borrowed("borrowed_in_a_circle", "unknown lender", as_it_is, |manifest| {
        manifest["lenders"][0]["part"] = last_part(manifest);
    });
}

/// The part of the last process, from which nobody can have forked.
fn last_part(manifest: &Value) -> Value {
    let last = manifest["processes"].as_array().and_then(|all| all.last());
    last.map_or(Value::Null, |last| last["life"]["alive"]["part"].clone())
}

#[test]
fn borrowed_and_stored() {
    trial("borrowed_and_stored", |place| {
        let forger = forger(place, "forked_pages", None)?;
        let shot = libsnap::image::Appshot::open(&place.path("genuine"))?;
        let core = shot.cores.last().context("no core")?;
        let mut own = core.segments.iter().filter(|segment| segment.part == core.part);
        let stored = own.next_back().context("it stores nothing")?.vaddr;
        forger.edit(Record::Borrowed, |table| {
            let last = table.as_array().map_or(0, Vec::len) - 1;
            table[last][0] = json!(stored);
            table[last][1] = json!(4096);
        })?;
        refused(place, forger, Allow::default(), "both stored and borrowed")
    });
}

#[test]
fn a_lender_for_nobody() {
    of_borrowed("a_lender_for_nobody", "nothing is borrowed", as_it_is, |manifest| {
        let part = last_part(manifest);
        let lenders = manifest["lenders"].as_array_mut();
        lenders.map(|all| all.push(json!({ "part": part }))).unwrap_or_default();
    });
}

#[test]
fn a_part_of_no_parent() {
    of_borrowed("a_part_of_no_parent", "unknown parent", as_it_is, |manifest| {
        manifest["lenders"][0]["parent"] = json!(0);
    });
}

/// Nobody is led to look elsewhere than beside the appshot.
#[test]
fn a_parent_elsewhere() {
    of_borrowed("a_parent_elsewhere", "beside it", as_it_is, |manifest| {
        manifest["lenders"][0]["parent"] = json!(0);
        manifest["parents"] = json!([{ "identity": "0".repeat(64), "name": "../genuine" }]);
    });
}

/// A digest that was not made anew is told as such.
#[test]
fn only_the_seal_is_new() {
    trial("only_the_seal_is_new", |place| {
        let mut forger = forger(place, "pipes", None)?;
        forger.edit(Record::Mappings, |_| {})?;
        let core: &Path = &place.path("forged").join(&forger.cores()[0]);
        let kept = fs::read(core)?;
        forger.manifest["product"] = json!("someone else");
        let shot = forger.seal()?;
        let mut bytes = kept;
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(shot.join(core.file_name().unwrap_or_default()), bytes)?;
        let error = place
            .restore(&shot)
            .map(drop)
            .err()
            .context("a flipped bit got through")?;
        ensure!(error.to_string().contains("digest"), "{error}");
        Ok(())
    });
}
