//! What a person is told when something cannot be done.
//!
//! Every failure of the engine has the same five parts, printed one to a line:
//!
//! ```text
//! cannot snapshot pid 4312 (postgres): fd 17 is a TCP connection to 10.0.0.9:5432
//!   because  an established connection cannot be carried
//!   needs    the peer to accept a reconnect
//!   to fix   pass --tcp=close
//!   state    the app was not changed and is running
//! ```

use serde::{Deserialize, Serialize};
use std::fmt;

/// The class of a failure. It decides the exit code and the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A step failed (exit 1).
    Failed,
    /// The request makes no sense (exit 2).
    Usage,
    /// The named app, process or appshot does not exist (exit 3).
    NotFound,
    /// The state cannot be carried, or the appshot asks for more than is allowed (exit 4).
    Refused,
    /// A number, name or port is taken, or another tracer is there (exit 5).
    Conflict,
    /// The kernel, a right or a resource is missing (exit 6).
    Unavailable,
    /// A new appshot is there, and its rehearsal has failed (exit 7).
    Unverified,
}

impl Kind {
    /// Exit code of the command-line tools, as documented in their manual.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Refused => 4,
            Kind::Conflict => 5,
            Kind::Unavailable => 6,
            Kind::Unverified => 7,
        }
    }
}

/// A failure of the engine, told in the form above.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Error {
    pub kind: Kind,
    /// The step and the subject: `cannot snapshot pid 4312 (postgres): fd 17 is …`.
    pub what: String,
    /// The cause, usually the failed call and its errno.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub because: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub needs: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fix: Option<String>,
    /// In what state the app is now.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<String>,
    /// All refusals at once, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub refusals: Vec<Refusal>,
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Error {
            kind,
            what: what.into(),
            because: None,
            needs: None,
            fix: None,
            state: None,
            refusals: Vec::new(),
        }
    }

    pub fn failed(what: impl Into<String>) -> Self {
        Self::new(Kind::Failed, what)
    }

    pub fn refused(what: impl Into<String>) -> Self {
        Self::new(Kind::Refused, what)
    }

    /// What and why on one line, as part of another failure.
    pub fn in_short(&self) -> String {
        let because = self.because.iter().map(|because| format!(": {because}"));
        format!("{}{}", self.what, because.collect::<String>())
    }

    #[must_use]
    pub fn because(mut self, cause: impl fmt::Display) -> Self {
        self.because.get_or_insert(cause.to_string());
        self
    }

    #[must_use]
    pub fn needs(mut self, needs: impl Into<String>) -> Self {
        self.needs.get_or_insert(needs.into());
        self
    }

    #[must_use]
    pub fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix.get_or_insert(fix.into());
        self
    }

    /// States what became of the app. The first statement wins: it was made
    /// nearest to the event.
    #[must_use]
    pub fn state(mut self, state: impl Into<String>) -> Self {
        self.state.get_or_insert(state.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        for refusal in &self.refusals {
            write!(f, "\n  refused  {refusal}")?;
        }
        for (label, text) in [
            ("because", &self.because),
            ("needs", &self.needs),
            ("to fix", &self.fix),
            ("state", &self.state),
        ] {
            if let Some(text) = text {
                write!(f, "\n  {label:<8} {text}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// One piece of state that cannot be carried, named before anything is touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Host PID of the process that holds it.
    pub pid: i32,
    pub comm: String,
    /// The object: `fd 17 (io_uring)`, `mapping 7f00-7f10 (hugetlb)`.
    pub object: String,
    pub reason: String,
    /// The way out.
    pub fix: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "pid {} ({}): {}: {}; to fix: {}",
            self.pid, self.comm, self.object, self.reason, self.fix
        )
    }
}

/// Adds a step to a plain I/O or errno result: `open(..).or_fail(|| "cannot …")`.
pub trait OrFail<T> {
    fn or_fail<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: fmt::Display> OrFail<T> for std::result::Result<T, E> {
    fn or_fail<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error::failed(what()).because(cause))
    }
}
