//! What must hold for System V semaphores, message queues of both kinds, and settings of namespaces.

use super::fault::ensure;
use super::records::{IpcPerm, Manifest, Namespace, NoticeKind, PosixQueue, QueueRecord, SemRecord};
use super::validate::count;
use super::{MANIFEST, limits};
use crate::error::Result;
use crate::files::mqueue;
use crate::ids::VirtualPid;
use crate::ipc;
use crate::netns;
use std::collections::{BTreeMap, BTreeSet};

const PART: &str = MANIFEST;

pub fn all(manifest: &Manifest) -> Result<()> {
    let pids: BTreeSet<_> = manifest.processes.iter().map(|entry| entry.pid).collect();
    let own = (&manifest.semaphores[..], &manifest.queues[..], &manifest.ipc_settings);
    objects(own, &pids)?;
    posix_queues(manifest)?;
    network_settings(&manifest.network_settings)?;
    manifest.namespaces.iter().try_for_each(|namespace| match namespace {
        Namespace::Ipc(own) => objects((&own.semaphores, &own.queues, &own.settings), &pids),
        Namespace::Net { settings, .. } => network_settings(settings),
        Namespace::Uts { .. } | Namespace::Cgroup | Namespace::Mnt(_) => Ok(()),
    })
}

/// Of one IPC namespace.
type Objects<'a> = (&'a [SemRecord], &'a [QueueRecord], &'a BTreeMap<String, String>);

fn objects((sets, queues, settings): Objects<'_>, pids: &BTreeSet<VirtualPid>) -> Result<()> {
    count(PART, "semaphore sets", sets.len(), limits::SEMAPHORE_SETS)?;
    count(PART, "message queues", queues.len(), limits::QUEUES)?;
    perms("semaphore set", sets.iter().map(|set| set.perm))?;
    perms("message queue", queues.iter().map(|queue| queue.perm))?;
    sets.iter().try_for_each(|set| semaphores(set, pids))?;
    queues.iter().try_for_each(queue)?;
    settings.iter().try_for_each(setting)
}

fn network_settings(settings: &BTreeMap<String, String>) -> Result<()> {
    count(PART, "network settings", settings.len(), limits::NETWORK_SETTINGS)?;
    settings.iter().try_for_each(network_setting)
}

/// Only of the network namespace, which is made for the app.
fn network_setting((name, value): (&String, &String)) -> Result<()> {
    let is_plain = value.len() <= netns::SETTING_BYTES_MAX && !value.chars().any(char::is_control);
    ensure(netns::is_name(name) && is_plain, PART, || {
        format!("setting {name:?} of the network namespace: {value:?}")
    })
}

/// Nothing else below /proc/sys is ever written.
fn setting((name, value): (&String, &String)) -> Result<()> {
    let known = ipc::SETTINGS.iter().any(|(known, _)| known == name);
    let numbers = value.len() <= ipc::SETTING_BYTES_MAX
        && value
            .split(' ')
            .all(|number| number.parse::<u64>().is_ok() || number.parse::<i64>().is_ok());
    ensure(known && numbers, PART, || {
        format!("setting {name:?} of the IPC namespace: {value:?}")
    })
}

fn perms(what: &str, perms: impl Iterator<Item = IpcPerm>) -> Result<()> {
    let mut ids = BTreeSet::new();
    for perm in perms {
        let id = perm.id;
        ensure(id >= 0 && ids.insert(id), PART, || {
            format!("{what} {id} is listed twice, or no id")
        })?;
        ensure(perm.mode <= 0o777, PART, || {
            format!("{what} {id}: mode {:o}", perm.mode)
        })?;
    }
    Ok(())
}

fn semaphores(set: &SemRecord, pids: &BTreeSet<VirtualPid>) -> Result<()> {
    let id = set.perm.id;
    let total = set.values.len();
    ensure(
        (1..=limits::SEMAPHORES_PER_SET).contains(&total) && set.pids.len() == total,
        PART,
        || format!("semaphore set {id} of {total}"),
    )?;
    let small = set.values.iter().all(|v| *v <= limits::SEMAPHORE_VALUE);
    ensure(small, PART, || format!("semaphore set {id}: a value is too large"))?;
    count(PART, "adjustments", set.undo.len(), limits::UNDOS_PER_SET)?;
    let mut seen = BTreeSet::new();
    for undo in &set.undo {
        let fits = (-32768..=32767).contains(&undo.adjust) && undo.adjust != 0;
        let known = usize::from(undo.number) < total && pids.contains(&undo.pid);
        let once = seen.insert((undo.pid, undo.number));
        ensure(fits && known && once, PART, || {
            format!("semaphore set {id}: an adjustment of {}", undo.adjust)
        })?;
    }
    Ok(())
}

fn queue(queue: &QueueRecord) -> Result<()> {
    let id = queue.perm.id;
    count(
        PART,
        "queued messages",
        queue.messages.len(),
        limits::MESSAGES_PER_QUEUE,
    )?;
    let typed = queue.messages.iter().all(|message| message.kind > 0);
    ensure(typed, PART, || format!("message queue {id}: a message without a type"))
}

fn posix_queues(manifest: &Manifest) -> Result<()> {
    let queues = &manifest.posix_queues;
    count(PART, "POSIX message queues", queues.len(), limits::POSIX_QUEUES)?;
    let (mut inodes, mut names) = (BTreeSet::new(), BTreeSet::new());
    let opened = mqueue::opened(manifest);
    for queue in queues {
        let ino = queue.ino;
        let new = inodes.insert(ino) && (queue.unlinked || names.insert(&queue.name));
        ensure(new, PART, || format!("POSIX message queue {ino} is listed twice"))?;
        posix_queue(queue)?;
        // What has neither a name nor a descriptor is not there.
        let led = !queue.unlinked || opened.contains_key(&ino);
        ensure(led, PART, || format!("POSIX message queue {ino}: nothing leads to it"))?;
    }
    // Its name may be that of one that comes after it.
    ensure(
        queues.is_sorted_by_key(|queue| !queue.unlinked),
        PART,
        || "POSIX message queues without a name come behind others",
    )?;
    let messages = queues.iter().flat_map(|queue| &queue.messages);
    let bytes: u64 = messages.map(|message| message.data.len() as u64).sum();
    ensure(bytes <= limits::POSIX_QUEUED_BYTES, PART, || {
        format!("{bytes} bytes wait in POSIX message queues")
    })
}

fn posix_queue(queue: &PosixQueue) -> Result<()> {
    let ino = queue.ino;
    let malformed = |what: &'static str| move || format!("POSIX message queue {ino}: its {what} is malformed");
    let name = queue.name.as_str();
    let fits = (1..=limits::NAME_BYTES).contains(&name.len()) && ![".", ".."].contains(&name);
    ensure(fits && !name.contains(['/', '\0']), PART, malformed("name"))?;
    ensure(queue.file.mode <= 0o7777, PART, malformed("mode"))?;
    let sized = (1..=limits::POSIX_MESSAGES).contains(&queue.messages_max)
        && (1..=limits::POSIX_MESSAGE_BYTES).contains(&queue.bytes_max);
    ensure(sized, PART, malformed("size"))?;
    let held = queue.messages.len() <= queue.messages_max as usize
        && queue
            .messages
            .iter()
            .all(|message| message.data.len() <= queue.bytes_max as usize);
    ensure(held, PART, || {
        format!("POSIX message queue {ino} holds more than it can")
    })?;
    let ordered = queue.messages.is_sorted_by(|one, next| one.priority >= next.priority)
        && queue
            .messages
            .iter()
            .all(|message| message.priority < limits::POSIX_PRIORITIES);
    ensure(ordered, PART, malformed("order of messages"))?;
    let sound = match queue.notice.as_ref().map(|notice| &notice.how) {
        Some(NoticeKind::Signal { signal, .. }) => (0..=64).contains(signal),
        Some(NoticeKind::Thread { cookie, .. }) => cookie.len() == limits::NOTICE_BYTES,
        Some(NoticeKind::Nothing) | None => true,
    };
    ensure(sound, PART, malformed("notice"))
}
