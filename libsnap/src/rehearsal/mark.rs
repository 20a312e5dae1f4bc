//! How an appshot's rehearsal went, kept beside it ([`crate::beside`]).
//!
//! It is no part of the appshot and changes no digest. It tells of what was tried here: on
//! another machine the file is not there, and nothing is said.

use super::{Claim, Rehearsal};
use crate::beside::Note;
use crate::error::{OrFail, Result};
use crate::image;
use crate::store::now_unix_ms;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::Path;

/// Of what is written here.
const VERSION: u32 = 1;
/// A longer file was not written by us.
const BYTES_MAX: u64 = 1 << 20;

/// The outcome of the last rehearsal of an appshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mark {
    pub version: u32,
    /// Of the appshot: BLAKE3 of its manifest file, lower-case hex.
    pub identity: String,
    pub verified: bool,
    pub unix_ms: u64,
    /// Release of the kernel on which it was tried.
    pub kernel: String,
    /// Why it is not verified.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub because: Option<String>,
    /// What was not the machine's own in the rehearsal.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub apart: Vec<Claim>,
}

/// Writes down how the rehearsal of the appshot at `path` went, instead of what was known.
pub fn write(path: &Path, rehearsal: &Rehearsal) -> Result<Mark> {
    let failed = || format!("cannot mark {}", path.display());
    let kernel = nix::sys::utsname::uname().or_fail(failed)?;
    let mark = Mark {
        version: VERSION,
        identity: image::identity(path)?,
        verified: rehearsal.verified,
        unix_ms: now_unix_ms()?,
        kernel: kernel.release().to_string_lossy().into_owned(),
        because: rehearsal.because(),
        apart: rehearsal.apart.clone(),
    };
    Note::Rehearsed.write(path, &serde_json::to_vec_pretty(&mark).or_fail(failed)?)?;
    Ok(mark)
}

/// What is known of the appshot at `path`, which has this identity.
pub fn read(path: &Path, identity: &str) -> Option<Mark> {
    let mut bytes = Vec::new();
    let file = Note::Rehearsed.open(path)?;
    file.take(BYTES_MAX).read_to_end(&mut bytes).ok()?;
    let mark: Mark = serde_json::from_slice(&bytes).ok()?;
    (mark.version == VERSION && mark.identity == identity).then_some(mark)
}
