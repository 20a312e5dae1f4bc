//! What is asked of whatever keeps it.

use crate::events::{Event, Query};
use libsnap::error::{OrFail, Result};
use serde::Serialize;
use std::fmt::Debug;

/// Keeps entries, and a log. Every method is whole or has not happened, and is seen at once by
/// whoever asks then.
pub trait Engine: Debug + Send + Sync {
    fn get(&self, key: &str) -> Result<Option<Entry>>;

    /// All whose key begins so, by key.
    fn list(&self, prefix: &str) -> Result<Vec<Entry>>;

    /// All of these changes, or none where one expects what is not so
    /// ([`libsnap::error::Kind::Conflict`]). Answers their revision, which is higher than all
    /// before.
    fn commit(&self, changes: &[Change], lasting: Lasting) -> Result<u64>;

    /// Adds to the log; answers the number of the last.
    fn append(&self, events: &[Logged]) -> Result<u64>;

    /// Of the log, the oldest first.
    fn events(&self, query: &Query) -> Result<Vec<Event>>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    /// JSON.
    pub value: String,
    /// Of its last change.
    pub revision: u64,
}

/// What is written to an entry, and on what condition.
#[derive(Clone, Debug)]
pub struct Change {
    pub key: String,
    /// JSON; nothing is left of it with none.
    pub value: Option<String>,
    pub expect: Expect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Anything,
    Absent,
    /// It was not changed since.
    Revision(u64),
}

/// What a change outlives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// A crash of the machine, too.
    Synced,
    /// That of any program.
    Written,
}

/// What is added to the log.
#[derive(Clone, Debug)]
pub struct Logged {
    pub unix_ms: u64,
    pub app: Option<String>,
    pub provider: Option<String>,
    pub kind: String,
    /// A JSON object: what belongs to this kind.
    pub told: serde_json::Value,
}

impl Change {
    pub fn put(key: String, value: &impl Serialize, expect: Expect) -> Result<Change> {
        let value = serde_json::to_string(value).or_fail(|| format!("cannot write {key}"))?;
        let value = Some(value);
        Ok(Change { key, value, expect })
    }

    pub fn delete(key: String, expect: Expect) -> Change {
        let value = None;
        Change { key, value, expect }
    }
}
