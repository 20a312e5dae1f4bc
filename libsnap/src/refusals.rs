//! Collecting what cannot be carried, all at once, before anything is touched.

use crate::error::{Error, Kind, Refusal, Result};
use crate::ids::HostPid;
use crate::proc;

#[derive(Debug, Default)]
pub struct Refusals(Vec<Refusal>);

impl Refusals {
    pub fn add(&mut self, pid: HostPid, object: impl Into<String>, reason: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Refusal {
            pid: pid.0,
            comm: proc::comm(pid),
            object: object.into(),
            reason: reason.into(),
            fix: fix.into(),
        });
    }

    pub fn into_vec(self) -> Vec<Refusal> {
        self.0
    }

    /// An error that lists them all, if there are any.
    pub fn into_result(self, subject: &str) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let mut error = Error::new(
            Kind::Refused,
            format!("cannot snapshot {subject}: part of its state cannot be carried"),
        )
        .fix("see each line")
        .state("the app was not changed and is running");
        error.refusals = self.0;
        Err(error)
    }
}
