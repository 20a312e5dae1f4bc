//! Rows of apps that sleep on a node: from the moment when a client comes until it has
//! its first answer.

use super::Lab;
use super::row::{Column, Row};
use crate::clock::{millis_between, now_ns};
use crate::node::{Node, until};
use crate::proc;
use crate::workload::App;
use anyhow::Result;
use std::process::Stdio;

/// Starts that it is held against.
const COLD: usize = 5;

pub fn measure(lab: &Lab<'_>, workload: &str, parked: bool, row: &mut Row) -> Result<()> {
    let scratch = lab.scratch()?;
    let app = lab.workload(workload)?.prepare(lab.place)?;
    let none: &[(&str, &[&str])] = &[("restored", &["--parked", "0"])];
    let node = Node::new(scratch.path(), if parked { &[] } else { none })?;
    node.deploy(&*app, "")?;
    app.fill()?;
    for _ in 0..lab.runs {
        node.reach("asleep")?;
        if parked {
            node.is_parked()?;
        }
        let begin_ns = now_ns();
        app.answers()?;
        row.push(Column::Ours, Ok(millis_between(begin_ns, now_ns())));
    }
    app.verify(&[])?;
    row.note("`original`: its own start, from the command to the first answer".to_owned());
    node.end()?;
    for _ in 0..lab.runs.min(COLD) {
        row.push(Column::Original, cold(&*app));
    }
    Ok(())
}

/// Its own start, from the command to the first answer.
fn cold(app: &dyn App) -> Result<f64> {
    let mut command = app.command();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begin_ns = now_ns();
    let mut child = command.spawn()?;
    let answered = until("an answer", || Ok(app.answers().is_ok()));
    let end_ns = now_ns();
    let pid = i32::try_from(child.id())?;
    for pid in proc::tree(pid) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    child.wait()?;
    answered.map(|()| millis_between(begin_ns, end_ns))
}
