//! Manual pages and completions, made from the definition of the arguments:
//! `PROGRAM --generate DIR`, for packagers.

use clap::{Command, ValueEnum};
use clap_complete::Shell;
use libsnap::error::{OrFail, Result};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

const GENERATE: &str = "--generate";

/// The directory, where the arguments ask for nothing else.
pub fn asked() -> Option<PathBuf> {
    let mut arguments = std::env::args_os().skip(1);
    match (arguments.next(), arguments.next(), arguments.next()) {
        (Some(first), Some(dir), None) if first == OsStr::new(GENERATE) => Some(dir.into()),
        _ => None,
    }
}

/// Writes `man/man1/*.1` and `completions/` below `dir`.
pub fn write(program: Command, dir: &Path) -> Result<u8> {
    let what = || format!("cannot write into {}", dir.display());
    scripts(program.clone(), &dir.join("completions")).or_fail(what)?;
    manuals(program, &dir.join("man/man1")).or_fail(what)?;
    Ok(0)
}

/// One page a program, and one a subcommand.
fn manuals(program: Command, dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(program, dir)
}

fn scripts(mut program: Command, dir: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let name = program.get_name().to_owned();
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut program, &name, dir)?;
    }
    Ok(())
}
