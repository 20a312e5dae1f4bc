//! The appshot at a glance.

use super::Inspection;
use libsnap::image::records::{Life, Manifest, Parent};
use libsnap::rehearsal::mark::Mark;
use libsnap::store::now_unix_ms;
use nodekit::out;

pub fn text(inspection: &Inspection) -> String {
    let manifest = &inspection.manifest;
    let mut lines = vec![
        ("app", manifest.app.clone()),
        ("appshot", inspection.path.display().to_string()),
        ("taken", taken(manifest)),
        ("format", format!("{}, by {}", manifest.format, manifest.product)),
        ("host name", manifest.hostname.clone()),
        ("processes", processes(inspection)),
        ("memory", memory(inspection)),
        ("objects", objects(manifest)),
        ("needs", needs(manifest)),
        ("verified", verified(inspection)),
    ];
    lines.extend(inspection.rehearsed.as_ref().map(|mark| ("rehearsed", rehearsed(mark))));
    let memory = lines
        .iter()
        .position(|(label, _)| *label == "memory")
        .unwrap_or_default();
    let more = borrowed(inspection).map(|value| ("borrowed", value));
    let parents = manifest.parents.iter().map(|parent| ("parent", self::parent(parent)));
    lines.splice(memory + 1..memory + 1, more.into_iter().chain(parents));
    lines
        .iter()
        .map(|(label, value)| format!("{label:<10} {value}\n"))
        .collect()
}

/// `verified 3h ago, on Linux 6.1.0-18-amd64`
fn rehearsed(mark: &Mark) -> String {
    let ago = now_unix_ms().map_or_else(|_| "before".to_owned(), |now| out::age(mark.unix_ms, now) + " ago");
    let found = match &mark.because {
        Some(because) => format!(": {because}"),
        None => String::new(),
    };
    let outcome = if mark.verified { "verified" } else { "NOT verified" };
    format!("{outcome} {ago}, on Linux {}{found}", mark.kernel)
}

fn taken(manifest: &Manifest) -> String {
    match now_unix_ms() {
        Ok(now) => format!("{} ago", out::age(manifest.created_unix_ms, now)),
        Err(_) => format!("{} ms after 1970", manifest.created_unix_ms),
    }
}

fn processes(inspection: &Inspection) -> String {
    let zombies = inspection
        .manifest
        .processes
        .iter()
        .filter(|entry| matches!(entry.life, Life::Zombie { .. }));
    let threads: usize = inspection.processes.iter().map(|p| p.threads.len()).sum();
    format!(
        "{} alive with {}, {}",
        inspection.processes.len(),
        out::count(threads, "thread", "threads"),
        out::count(zombies.count(), "zombie", "zombies")
    )
}

fn memory(inspection: &Inspection) -> String {
    let runs = inspection.processes.iter().flat_map(|p| &p.stored);
    let shared = inspection.manifest.shmem.iter().flat_map(|shm| &shm.runs);
    format!(
        "{} private, {} shared",
        out::bytes(runs.map(|run| run.bytes).sum()),
        out::bytes(shared.map(|(_, length)| length).sum())
    )
}

/// How much of the private memory is stored elsewhere.
fn borrowed(inspection: &Inspection) -> Option<String> {
    let runs = || inspection.processes.iter().flat_map(|process| &process.stored);
    let of = |of_parent: bool| -> u64 {
        let lent = runs().filter(|run| run.lender.as_ref().is_some_and(|l| l.parent.is_some() == of_parent));
        lent.map(|run| run.bytes).sum()
    };
    let (shared, parents) = (of(false), of(true));
    let all: u64 = runs().map(|run| run.bytes).sum();
    (shared + parents > 0).then(|| {
        format!(
            "{} of it from other processes, {} from parents; {} of its own",
            out::bytes(shared),
            out::bytes(parents),
            out::bytes(all - shared - parents)
        )
    })
}

fn parent(parent: &Parent) -> String {
    format!("{}, needed as long as this one is: {}", parent.name, parent.identity)
}

fn objects(manifest: &Manifest) -> String {
    let mut objects = vec![
        out::count(manifest.files.len(), "open file", "open files"),
        out::count(manifest.pipes.len(), "pipe", "pipes"),
        out::count(manifest.shmem.len(), "shared memory", "shared memories"),
    ];
    let (queues, namespaces) = (manifest.posix_queues.len(), manifest.namespaces.len());
    objects.extend((queues > 0).then(|| out::count(queues, "POSIX message queue", "POSIX message queues")));
    objects.extend(
        (namespaces > 0).then(|| out::count(namespaces, "namespace beside its own", "namespaces beside its own")),
    );
    objects.join(", ")
}

fn needs(manifest: &Manifest) -> String {
    format!(
        "{}, xsave features {:#x}, {}; taken on kernel {}",
        manifest.needs.arch,
        manifest.needs.xcr0,
        out::count(manifest.external.len(), "file outside", "files outside"),
        manifest.needs.kernel_release
    )
}

fn verified(inspection: &Inspection) -> String {
    match inspection.verified {
        true => "every byte".to_owned(),
        false => "structure only; --verify reads every byte".to_owned(),
    }
}
