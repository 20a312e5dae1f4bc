//! What tells one instance from another, where the app finds it: files in a
//! directory that each instance has for itself.
//!
//! ```text
//! /run/appshot-instance/
//!   id           a UUID of this instance
//!   name         its name
//!   generation   32 hex digits that no other start or restore of the app has
//!   phase        what is done to it, see [`crate::participants`]
//!   vars/NAME    values given for this instance
//!   secrets/NAME the same, for the app's user alone to read
//!   hooks/NAME   what the app has there to be asked, see [`crate::participants`]
//!   awake/NAME   what it has there to be kept awake, see [`crate::holds`]
//! ```
//!
//! A program that keeps random numbers, keys or connections looks at `generation`
//! before it uses them, and renews them when it is another one. No library is
//! needed. The directory is a tmpfs in the instance's mount namespace; where the
//! host has no such directory and none can be made, there is none.
//!
//! All of it is there before the first instruction of the app, also after a restore.

use crate::error::{Error, Kind, OrFail, Result};
use crate::participants::{NEXT_PHASE, PHASE, RESTORED, RUNNING};
use crate::sys::Sys;
use crate::target::Identity;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FchmodatFlags, Mode, fchmod, fchmodat, fstat, fstatat, mkdirat};
use nix::unistd::fchown;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Where an instance finds what it is.
pub const DIRECTORY: &str = "/run/appshot-instance";
/// The part of it that the app writes to.
pub const HOOKS: &str = "hooks";
pub const HOOKS_DIRECTORY: &str = "/run/appshot-instance/hooks";
/// And this one.
pub const AWAKE: &str = "awake";
/// What is for this instance alone.
pub const VARS: &str = "vars";
/// The same, for nobody else to read.
pub const SECRETS: &str = "secrets";

const NAME_BYTES_MAX: usize = 128;
const VALUE_BYTES_MAX: usize = 64 << 10;

/// Makes the mount point; without it instances have no such directory.
pub fn prepare_host() {
    if !Path::new(DIRECTORY).exists()
        && let Err(error) = std::fs::create_dir_all(DIRECTORY)
    {
        tracing::debug!(%error, "no {DIRECTORY}");
    }
}

/// Random bytes from the kernel.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    crate::sys::random(&mut bytes)
        .map(|()| bytes)
        .or_fail(|| "cannot get random numbers")
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A random UUID (version 4, RFC 9562).
pub fn uuid() -> Result<String> {
    let mut bytes: [u8; 16] = random()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let text = hex(&bytes);
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &text[part]);
    Ok(parts.join("-"))
}

/// How an instance came to be.
#[derive(Clone, Copy, Debug)]
pub enum Origin<'a> {
    Started,
    /// With those who took part in its snapshot.
    Restored(&'a [String]),
}

/// Whether this is the name of a file of the directory and nothing else.
pub fn is_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.')
}

/// The files of a new instance: path below the directory, content.
pub fn files(name: &str, identity: &Identity, origin: Origin<'_>) -> Result<Vec<(String, String)>> {
    let generation = hex(&random::<16>()?);
    let phase = match origin {
        Origin::Started => RUNNING.to_owned(),
        Origin::Restored(_) => format!("{} {generation}", RESTORED),
    };
    let own = [
        ("id", uuid()?),
        ("name", name.to_owned()),
        ("generation", generation),
        (PHASE, phase),
    ];
    let mut files: Vec<(String, String)> = own.map(|(file, text)| (file.to_owned(), text + "\n")).to_vec();
    if let Origin::Restored(participants) = origin {
        files.extend(participants.iter().map(|own| (format!("{HOOKS}/{own}"), String::new())));
    }
    let vars = identity.vars.iter().map(|own| (VARS, own));
    let secrets = identity.secrets.iter().map(|own| (SECRETS, own));
    for (part, (variable, value)) in vars.chain(secrets) {
        if !is_name(variable) || value.len() > VALUE_BYTES_MAX {
            return Err(
                Error::new(Kind::Usage, format!("the variable {variable:?} is not allowed")).because(format!(
                    "names have up to {NAME_BYTES_MAX} letters, digits, '_', '-', '.', values up to {VALUE_BYTES_MAX} bytes"
                )),
            );
        }
        files.push((format!("{part}/{variable}"), value.clone()));
    }
    Ok(files)
}

/// The directory of an instance that is being made.
#[derive(Debug)]
pub struct Directory(OwnedFd);

impl Directory {
    /// That of the instance whose root directory is seen at `root`, if it has one.
    pub fn open(root: &str) -> Result<Option<Directory>> {
        let directory = PathBuf::from(format!("{root}{DIRECTORY}"));
        if !is_own(&directory) {
            return Ok(None);
        }
        let failed = || "cannot tell the instance what it is";
        let opened = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(&directory)
            .or_fail(failed)?;
        let opened = OwnedFd::from(opened);
        let everybody = Mode::from_bits_truncate(0o777);
        for part in [HOOKS, AWAKE] {
            mkdirat(&opened, part, everybody)
                .and_then(|()| fchmodat(&opened, part, everybody, FchmodatFlags::FollowSymlink))
                .or_fail(failed)?;
        }
        Ok(Some(Directory(opened)))
    }

    fn write(&self, files: &[(String, String)], owner: (u32, u32)) -> Sys<()> {
        for part in [VARS, SECRETS] {
            if files.iter().any(|(path, _)| is_in(part, path)) {
                let mode = Mode::from_bits_truncate(0o755);
                match mkdirat(&self.0, part, mode) {
                    Err(Errno::EEXIST) => {}
                    made => made.and_then(|()| fchmodat(&self.0, part, mode, FchmodatFlags::FollowSymlink))?,
                }
            }
        }
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        for (path, text) in files {
            let path = if path == PHASE { NEXT_PHASE } else { path };
            let file = openat(&self.0, path, flags, Mode::from_bits_truncate(mode(path)))?;
            if is_in(SECRETS, path) {
                fchown(&file, Some(owner.0.into()), Some(owner.1.into()))?;
            }
            if nix::unistd::write(&file, text.as_bytes())? < text.len() {
                return Err(Errno::ENOSPC);
            }
            // Whatever user its participant is.
            let mode = if path.starts_with(HOOKS) { 0o666 } else { mode(path) };
            fchmod(&file, Mode::from_bits_truncate(mode))?;
        }
        // Who watches the directory hears of it as of any other phase.
        renameat(&self.0, NEXT_PHASE, &self.0, PHASE)
    }
}

/// Whether a file of the directory is in this part of it.
fn is_in(part: &str, path: &str) -> bool {
    path.strip_prefix(part).is_some_and(|rest| rest.starts_with('/'))
}

/// What a file of the directory is made with.
pub fn mode(path: &str) -> u32 {
    if is_in(SECRETS, path) { 0o400 } else { 0o644 }
}

/// Whether this is a file of the instance's own directory, as it sees it.
pub fn is_file(path: &str) -> bool {
    Path::new(path).starts_with(DIRECTORY)
}

/// Writes the files of an instance. Where it has no directory of its own, that is an
/// error only if values were given for it. Secrets are the owner's (user and group).
pub fn write(directory: Option<&Directory>, files: &[(String, String)], owner: (u32, u32)) -> Result<()> {
    let vars = files.iter().any(|(path, _)| is_in(VARS, path) || is_in(SECRETS, path));
    match directory {
        Some(directory) => directory
            .write(files, owner)
            .or_fail(|| "cannot tell the instance what it is"),
        None if vars => Err(Error::new(Kind::Unavailable, "cannot give the instance its values")
            .because(format!("it has no {DIRECTORY}"))
            .fix(format!("make that directory (mkdir {DIRECTORY})"))),
        None => Ok(()),
    }
}

/// Gives an instance another generation.
pub fn renew(root: &str) -> Result<()> {
    let directory = PathBuf::from(format!("{root}{DIRECTORY}"));
    if !is_own(&directory) {
        return Ok(());
    }
    let generation = hex(&random::<16>()?) + "\n";
    std::fs::write(directory.join("generation"), generation).or_fail(|| "cannot tell the instance what it is")
}

/// What the files of an instance looked like; changed by whoever writes to them. Paths are
/// below the directory, which itself comes first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Marks(Vec<(PathBuf, [i64; 6])>);

impl Marks {
    pub fn of(root: &str) -> Marks {
        let mut marks = Marks::default();
        let directory = PathBuf::from(format!("{root}{DIRECTORY}"));
        if is_own(&directory) {
            marks.add(&directory, PathBuf::new(), true);
        }
        marks.now(root)
    }

    fn add(&mut self, directory: &Path, path: PathBuf, is_directory: bool) {
        let entries = is_directory
            .then(|| std::fs::read_dir(directory.join(&path)).ok())
            .flatten();
        self.0.push((path.clone(), [0; 6]));
        for entry in entries.into_iter().flatten().flatten() {
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            self.add(directory, path.join(entry.file_name()), is_directory);
        }
    }

    /// The same files as they look now. Where there are others, directories look otherwise.
    pub fn now(&self, root: &str) -> Marks {
        let path = format!("{root}{DIRECTORY}");
        let directory = File::options()
            .read(true)
            .custom_flags(libc::O_DIRECTORY | libc::O_PATH)
            .open(path)
            .ok();
        let mark = |path: &Path| {
            let directory = directory.as_ref()?;
            let stat = match path.as_os_str().is_empty() {
                true => fstat(directory),
                false => fstatat(directory, path, AtFlags::AT_SYMLINK_NOFOLLOW),
            };
            let stat = stat.ok()?;
            Some([
                stat.st_ino as i64,
                i64::from(stat.st_mode),
                stat.st_mtime,
                stat.st_mtime_nsec,
                stat.st_ctime,
                stat.st_ctime_nsec,
            ])
        };
        let marks = self.0.iter();
        Marks(
            marks
                .map(|(path, _)| (path.clone(), mark(path).unwrap_or_default()))
                .collect(),
        )
    }
}

/// Whether a file system of its own is mounted there.
fn is_own(directory: &Path) -> bool {
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
    match (device(directory), directory.parent().and_then(device)) {
        (Some(own), Some(above)) => own != above,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn each_is_another_one() {
        let identity = Identity::default();
        let of =
            |files: &[(String, String)], name: &str| files.iter().find(|(file, _)| file == name).unwrap().1.clone();
        let (one, other) = (
            files("web", &identity, Origin::Started).unwrap(),
            files("web", &identity, Origin::Restored(&["pool".to_owned()])).unwrap(),
        );
        for file in ["id", "generation"] {
            assert_ne!(of(&one, file), of(&other, file));
        }
        let id = of(&one, "id");
        assert_eq!((id.len(), id.as_bytes()[14]), (37, b'4'), "{id}");
        assert_eq!(of(&one, "name"), "web\n");
        assert_eq!(of(&one, "phase"), "running\n");
        assert_eq!(of(&other, "phase"), format!("restored {}", of(&other, "generation")));
        assert_eq!(of(&other, "hooks/pool"), "");
    }

    #[test]
    fn names_of_values_are_names_of_files() {
        for name in ["", "a/b", "..", ".x", "a b", &"x".repeat(200)] {
            let vars = BTreeMap::from([(name.to_owned(), String::new())]);
            let refused = files(
                "web",
                &Identity {
                    vars,
                    ..Identity::default()
                },
                Origin::Started,
            );
            assert_eq!(refused.unwrap_err().kind, Kind::Usage, "{name:?}");
        }
    }
}
