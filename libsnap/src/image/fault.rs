//! Errors of a reader that trusts nothing.
//!
//! Whatever is wrong with an appshot is found before a process exists; each
//! error says so.

use super::{MANIFEST, records::Needs};
use crate::error::{Error, Result};
use std::fmt::Display;

const STATE: &str = "nothing was started";

/// The content of a part is not what a writer can have written.
pub fn corrupt(part: &str, detail: impl Display) -> Error {
    Error::failed(format!("cannot open the appshot: {part}"))
        .because(detail)
        .fix("take the appshot again, or fetch an undamaged copy")
        .state(STATE)
}

/// A part cannot be read, which says nothing about its content.
pub fn unreadable(part: &str, cause: impl Display) -> Error {
    Error::failed(format!("cannot open the appshot: {part} cannot be read"))
        .because(cause)
        .state(STATE)
}

/// The appshot is whole, but for another reader or another machine.
pub fn unsupported(detail: impl Display, needs: impl Into<String>) -> Error {
    Error::refused(format!("cannot open the appshot: {MANIFEST}"))
        .because(detail)
        .needs(needs)
        .state(STATE)
}

/// Refuses an appshot of another architecture.
pub fn require_machine(needs: &Needs) -> Result<()> {
    if needs.arch != "x86_64" {
        let arch: String = needs.arch.chars().take(32).collect();
        return Err(unsupported(
            format_args!("it was taken on {arch:?}"),
            "a machine and an Appshot of that architecture",
        ));
    }
    if needs.page_size != super::PAGE {
        return Err(unsupported(
            format_args!("its pages have {} bytes", needs.page_size),
            "a machine with pages of that size",
        ));
    }
    Ok(())
}

/// Fails with [`corrupt`] unless the condition holds; the text is only made then.
pub fn ensure<D: Display>(holds: bool, part: &str, detail: impl FnOnce() -> D) -> Result<()> {
    if holds { Ok(()) } else { Err(corrupt(part, detail())) }
}
