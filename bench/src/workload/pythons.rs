//! A Python that built some data and forked 64 children. One of them gives the
//! first answer; all are asked in the end.

use super::http::{PYTHON, written};
use super::{App, Workload, detached, missing_program, nonce};
use crate::net;
use crate::place::Place;
use anyhow::{Context, Result, ensure};
use std::path::PathBuf;
use std::process::Command;

const CHILDREN: usize = 64;
/// What a child adds to its sum: the entries it keeps for itself.
const OWN: usize = 100;
/// The entries that a child sums up.
const SHARE: usize = 300;

#[derive(Debug)]
pub struct Pythons {
    script: PathBuf,
}

impl Pythons {
    pub fn new(place: &Place) -> Self {
        Pythons {
            script: written(place, "pythons.py", include_str!("../programs/pythons.py")),
        }
    }
}

impl Workload for Pythons {
    fn name(&self) -> &'static str {
        "pythons-64"
    }

    fn about(&self) -> String {
        let version = crate::command::version(PYTHON.as_ref(), "--version");
        format!("a parent and {CHILDREN} children forked from it; {version}")
    }

    fn missing(&self) -> Option<String> {
        missing_program(PYTHON, "python3")
    }

    fn prepare(&self, _place: &Place) -> Result<Box<dyn App>> {
        Ok(Box::new(Family {
            port: net::free_port()?,
            nonce: nonce(),
            script: self.script.clone(),
        }))
    }

    fn memory_bytes(&self) -> usize {
        512 << 20
    }
}

struct Family {
    port: u16,
    nonce: u64,
    script: PathBuf,
}

/// The answer of child `number`, but for how often it was asked.
fn right(number: usize, told: &str) -> bool {
    let sum: usize = (number * SHARE..(number + 1) * SHARE).sum();
    let mut fields = told.split(':');
    fields.next() == Some(&number.to_string()) && fields.nth(1) == Some(&(sum + OWN).to_string())
}

impl Family {
    fn ask(&self, path: &str, children: usize) -> Result<()> {
        let body = net::http_get(self.port, path)?;
        let mut words = body.split(' ');
        let nonce = words.next().context("an empty answer")?;
        ensure!(nonce == self.nonce.to_string(), "answers {body:.60}");
        let told: Vec<&str> = words.collect();
        ensure!(told.len() == children, "{} children answer", told.len());
        let wrong = told.iter().enumerate().find(|(number, told)| !right(*number, told));
        ensure!(wrong.is_none(), "child answers {wrong:?}");
        Ok(())
    }
}

impl App for Family {
    fn command(&self) -> Command {
        let mut command = detached(PYTHON);
        command.arg(&self.script);
        command.args([self.port.to_string(), self.nonce.to_string()]);
        command
    }

    fn answers(&self) -> Result<()> {
        self.ask("/ping", 1)
    }

    fn fill(&self) -> Result<()> {
        self.ask("/all", CHILDREN)
    }

    fn verify(&self, tree: &[i32]) -> Result<()> {
        ensure!(tree.len() > CHILDREN, "{} processes", tree.len());
        self.ask("/all", CHILDREN)
    }

    fn port(&self) -> Option<u16> {
        Some(self.port)
    }
}
