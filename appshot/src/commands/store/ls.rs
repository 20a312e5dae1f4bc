//! `store ls`: the appshots, what they take, and who needs them.

use crate::cli;
use libsnap::error::Result;
use libsnap::rehearsal::mark::Mark;
use libsnap::store::{Store, Stored, now_unix_ms};
use nodekit::out;

pub fn ls(store: &Store, args: &cli::StoreLs) -> Result<u8> {
    let now = now_unix_ms()?;
    out::show(args.output.format, &store.inventory()?, |all| {
        let rows: Vec<Vec<String>> = all.iter().map(|stored| row(stored, now)).collect();
        let head = [
            "NAME",
            "APP",
            "TAKEN",
            "PROCESSES",
            "SIZE",
            "ON DISK",
            "PACKED",
            "PARENTS",
            "REHEARSED",
            "NEEDED",
        ];
        out::table(&head, &rows)
    })?;
    Ok(0)
}

/// What a rehearsal has shown.
fn outcome(mark: &Mark) -> String {
    match mark.verified {
        true => "verified".to_owned(),
        false => "NOT verified".to_owned(),
    }
}

fn row(stored: &Stored, now: u64) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let parents = Some(stored.parents.join(" ")).filter(|names| !names.is_empty());
    let problem = stored.problem.as_ref().map(|problem| format!("unreadable: {problem}"));
    vec![
        stored.name.clone(),
        or_dash(stored.app.clone()),
        or_dash(stored.created_unix_ms.map(|then| out::age(then, now) + " ago")),
        or_dash(stored.processes.map(|count| count.to_string())),
        out::bytes(stored.bytes),
        out::bytes(stored.disk_bytes),
        or_dash(stored.packed_bytes.map(out::bytes)),
        or_dash(parents),
        or_dash(stored.rehearsed.as_ref().map(outcome)),
        or_dash(stored.needs().or(problem)),
    ]
}
