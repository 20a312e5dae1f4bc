//! The shape of every program: its hidden lives, what packagers ask for, then
//! what a person typed.

use crate::{generate, hidden, out};
use clap::Parser;
use libsnap::error::Result;
use std::process::ExitCode;

/// A whole `main`. Hidden lives never reach the argument parser.
pub fn main<C: Parser>(name: &str, body: impl FnOnce(C) -> Result<u8>) -> ExitCode {
    if let Some(code) = hidden::dispatch() {
        return code;
    }
    out::finish(name, || match generate::asked() {
        Some(dir) => generate::write(C::command(), &dir),
        None => body(C::parse()),
    })
}
