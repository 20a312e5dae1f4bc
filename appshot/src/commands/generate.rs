//! `completions`, and the hidden `generate` for packagers.

use crate::cli::{self, Cli};
use clap::CommandFactory;
use clap::ValueEnum;
use clap_complete::Shell;
use libsnap::error::{OrFail, Result};
use nodekit::out;
use std::path::Path;

const PROGRAM: &str = "appshot";

pub fn completions(args: &cli::Completions) -> Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), PROGRAM, &mut script);
    out::print(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

pub fn generate(args: &cli::Generate) -> Result<u8> {
    let what = || format!("cannot write into {}", args.dir.display());
    manuals(&args.dir.join("man")).or_fail(what)?;
    scripts(&args.dir.join("completions")).or_fail(what)?;
    Ok(0)
}

fn manuals(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::command(), dir)
}

fn scripts(dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut Cli::command(), PROGRAM, dir)?;
    }
    Ok(())
}
