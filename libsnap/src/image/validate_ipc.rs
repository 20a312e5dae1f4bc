//! What must hold for System V semaphores and message queues, and for settings of namespaces.

use super::fault::ensure;
use super::records::{IpcPerm, Manifest, Namespace, QueueRecord, SemRecord};
use super::validate::count;
use super::{MANIFEST, limits};
use crate::error::Result;
use crate::ids::VirtualPid;
use crate::ipc;
use crate::netns;
use std::collections::{BTreeMap, BTreeSet};

const PART: &str = MANIFEST;

pub fn all(manifest: &Manifest) -> Result<()> {
    let pids: BTreeSet<_> = manifest.processes.iter().map(|entry| entry.pid).collect();
    let own = (&manifest.semaphores[..], &manifest.queues[..], &manifest.ipc_settings);
    objects(own, &pids)?;
    network_settings(&manifest.network_settings)?;
    manifest.namespaces.iter().try_for_each(|namespace| match namespace {
        Namespace::Ipc(own) => objects((&own.semaphores, &own.queues, &own.settings), &pids),
        Namespace::Net { settings, .. } => network_settings(settings),
        Namespace::Uts { .. } | Namespace::Cgroup => Ok(()),
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
