//! Terminals. One that the app was started on leads outside: it is refused or
//! replaced by the restorer's stdio. Refused: pseudo-terminals whose master the
//! app holds.

use super::{Context, Description, Found, Refused, refused};
use crate::error::{Error, Result};
use crate::image::records::{FileKind, PtyRecord};
use crate::target::OutsidePolicy;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

/// Character devices that are terminals: virtual consoles and serial lines,
/// /dev/tty and friends, pty slaves.
pub fn is_terminal(found: &Found) -> bool {
    let device = std::fs::metadata(&found.link).map_or(0, |meta| meta.rdev());
    found.mode & libc::S_IFMT == libc::S_IFCHR && matches!(nix::sys::stat::major(device), 4 | 5 | 136..=143)
}

pub fn capture(context: &Context<'_>, description: &Description) -> Result<FileKind, Refused> {
    let link = &description.found.link;
    if link.ends_with("/ptmx") || context.descriptions.iter().any(|d| d.found.link.ends_with("/ptmx")) {
        return refused("pseudo-terminals made by the app are not carried yet", "end what uses the terminal first");
    }
    match context.options.outside {
        OutsidePolicy::Replace => Ok(FileKind::Outside { what: link.clone() }),
        OutsidePolicy::Refuse => refused(
            "the terminal the app was started on is outside the app",
            "pass --outside=replace to give the restored app its restorer's stdio instead",
        ),
    }
}

#[derive(Debug, Default)]
pub struct Ptys;

impl Ptys {
    pub fn open(&mut self, record: &PtyRecord) -> Result<OwnedFd> {
        Err(Error::refused(format!("cannot restore pseudo-terminal {}", record.index)))
    }
}
