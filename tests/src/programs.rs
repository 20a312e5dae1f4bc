//! Builds the C programs of `tests/apps`, once, when they have changed.

use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Warnings are errors: a test program must not be wrong itself.
const FLAGS: &[&str] = &["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O1", "-g", "-pthread"];

pub fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("apps")
}

/// Names of all programs.
pub fn all() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(source_dir())? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "c") {
            names.extend(path.file_stem().and_then(|s| s.to_str()).map(str::to_owned));
        }
    }
    names.sort();
    Ok(names)
}

/// One build at a time. The variants of a program begin together: a second
/// build would replace the file that the first variant runs, and an app whose
/// program has lost its name is refused.
static BUILDING: Mutex<()> = Mutex::new(());

/// The executable of this program, built if its source is newer.
pub fn build(name: &str) -> Result<PathBuf> {
    build_file(&source_dir().join(format!("{name}.c")))
}

/// The same of a program that stands elsewhere, under a name that no other has.
pub fn build_file(source: &Path) -> Result<PathBuf> {
    let _one = BUILDING.lock().unwrap_or_else(PoisonError::into_inner);
    let name = source.file_stem().context("a source has a name")?;
    let binary = output_dir()?.join(name);
    let newest = modified(source)?.max(headers_modified()?);
    if !modified(&binary).is_ok_and(|built| built > newest) {
        compile(source, &binary)?;
    }
    Ok(binary)
}

/// Other tests may run the old file: the new one takes its name when complete.
fn compile(source: &Path, binary: &Path) -> Result<()> {
    let thread = std::thread::current().id();
    let partial = binary.with_extension(format!("{}-{thread:?}", std::process::id()));
    let done = Command::new("cc")
        .args(FLAGS)
        .arg("-o")
        .args([partial.as_path(), source])
        .output()
        .context("cannot run cc (package build-essential)")?;
    if !done.status.success() {
        bail!("{}: {}", source.display(), String::from_utf8_lossy(&done.stderr));
    }
    std::fs::rename(&partial, binary).context("cannot name the built program")
}

fn headers_modified() -> Result<SystemTime> {
    let headers = ["check.h", "registers.h", "tcp_pair.h"].map(|name| modified(&source_dir().join(name)));
    headers
        .into_iter()
        .try_fold(SystemTime::UNIX_EPOCH, |newest, header| Ok(newest.max(header?)))
}

fn modified(path: &Path) -> Result<SystemTime> {
    let meta = std::fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok(meta.modified()?)
}

/// `target/debug/test-apps`.
fn output_dir() -> Result<PathBuf> {
    let dir = profile_dir()?.join("test-apps");
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// `target/debug`, found from the test's own place in `deps`.
fn profile_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe()?;
    match exe.parent().and_then(Path::parent) {
        Some(profile) => Ok(profile.to_owned()),
        None => bail!("no target directory above {}", exe.display()),
    }
}
