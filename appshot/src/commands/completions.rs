//! `completions`: for the shell of the person who asks.

use crate::cli::{self, Cli};
use clap::CommandFactory;
use libsnap::error::Result;
use nodekit::out;

pub fn completions(args: &cli::Completions) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "appshot", &mut script);
    out::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}
