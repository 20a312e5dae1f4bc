//! The appshots of the registry, and how one takes the place of another.

use super::collect::Leftover;
use super::{Store, files, names};
use crate::beside;
use crate::error::{Error, Kind, OrFail, Result};
use crate::files::barrier;
use crate::image::glance;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Ending of an appshot's file or directory name.
pub const SUFFIX: &str = ".appshot";
/// That of a successor.
const NEXT: &str = ".appshot.next";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppshotEntry {
    pub name: String,
    pub path: PathBuf,
    pub bytes: u64,
}

impl Store {
    pub(super) fn appshots_dir(&self) -> PathBuf {
        self.data_dir.join("appshots")
    }

    pub fn appshot_path(&self, name: &str) -> PathBuf {
        self.appshots_dir().join(format!("{name}{SUFFIX}"))
    }

    pub(super) fn next_path(&self, name: &str) -> PathBuf {
        self.appshots_dir().join(format!(".{name}{NEXT}"))
    }

    pub fn appshots(&self) -> Result<Vec<AppshotEntry>> {
        let names = files::stems(&self.appshots_dir(), SUFFIX)?;
        Ok(names.into_iter().map(|name| self.entry(name)).collect())
    }

    fn entry(&self, name: String) -> AppshotEntry {
        let path = self.appshot_path(&name);
        let bytes = crate::image::sizes(&path).0;
        AppshotEntry { name, path, bytes }
    }

    /// The appshot meant by a name, or by a path (anything with a `/`, or a
    /// file of that name right here).
    pub fn resolve_appshot(&self, name_or_path: &str) -> Result<PathBuf> {
        let given = Path::new(name_or_path);
        if name_or_path.contains('/') || name_or_path.ends_with(SUFFIX) {
            return match given.exists() {
                true => files::absolute(given),
                false => Err(Error::new(
                    Kind::NotFound,
                    format!("there is no appshot {}", given.display()),
                )),
            };
        }
        names::validate(name_or_path)?;
        self.stored_appshot(name_or_path)
    }

    /// The name under which the store keeps the appshot at `path`, if it does.
    pub fn stored_name(&self, path: &Path) -> Option<String> {
        let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
        self.is_stored(path, name).then(|| name.to_owned())
    }

    /// Whether `path` is what the store keeps under `name`.
    pub fn is_stored(&self, path: &Path, name: &str) -> bool {
        path == self.appshot_path(name)
    }

    /// A halting snapshot may have put it elsewhere (`--to`): the record knows.
    fn stored_appshot(&self, name: &str) -> Result<PathBuf> {
        let recorded = self.find(name)?.and_then(|app| app.appshot);
        recorded
            .into_iter()
            .chain([self.appshot_path(name)])
            .find(|path| path.exists())
            .ok_or_else(|| self.no_appshot(name))
    }

    pub(super) fn no_appshot(&self, name: &str) -> Error {
        let known = self.appshots().unwrap_or_default();
        let error = Error::new(Kind::NotFound, format!("there is no appshot of {name:?}"));
        match names::closest(name, known.iter().map(|entry| entry.name.as_str())) {
            Some(near) if near != name => error.fix(format!("did you mean {near:?}?")),
            _ => error.fix(format!("take one with `appshot snapshot {name}`")),
        }
    }

    /// Where a new appshot is to be written. With `replace` that is beside the
    /// old one, until [`Store::settle`] puts it in its place.
    pub fn new_appshot_path(&self, name: &str, replace: bool) -> Result<PathBuf> {
        names::validate(name)?;
        let path = self.appshot_path(name);
        match (path.exists(), replace) {
            (false, _) => Ok(path),
            (true, true) => nobody_needs(&path, "replace").map(|()| self.next_path(name)),
            (true, false) => Err(already_there(&path)),
        }
    }

    /// Puts a sealed successor in the place of the old appshot. Called under
    /// the lock of `name`, also by the next command after a crash: a file under
    /// the successor's name is whole, for it was renamed to it when sealed.
    pub fn settle(&self, name: &str) -> Result<()> {
        let (next, path) = (self.next_path(name), self.appshot_path(name));
        if !next.exists() {
            return Ok(());
        }
        let what = || format!("cannot put the new appshot in place of {}", path.display());
        if path.exists() {
            renameat2(AT_FDCWD, &next, AT_FDCWD, &path, RenameFlags::RENAME_EXCHANGE).or_fail(what)?;
            files::sync_parent(&path).or_fail(what)?;
            return delete(&next);
        }
        std::fs::rename(&next, &path).or_fail(what)?;
        files::sync_parent(&path).or_fail(what)
    }

    /// Puts every sealed successor in its place whose name nobody is busy with.
    pub(super) fn settle_all(&self) {
        let entries = self.appshots_dir().read_dir().into_iter().flatten().flatten();
        for entry in entries {
            let file = entry.file_name().to_string_lossy().into_owned();
            let name = file.strip_prefix('.').and_then(|file| file.strip_suffix(NEXT));
            if let Some(Ok(Some(_busy))) = name.map(|name| self.lock_if_free(name)) {
                let _ = self.settle(name.unwrap_or_default());
            }
        }
    }

    /// Removes what killed writers and removers left half-way.
    pub(super) fn sweep(&self) {
        crate::image::sweep(&self.appshots_dir());
        for left in self.left() {
            let _ = std::fs::remove_dir_all(&left.path).or_else(|_| std::fs::remove_file(&left.path));
        }
    }

    /// What [`Store::sweep`] would remove.
    pub(super) fn leftovers(&self) -> Vec<Leftover> {
        let dir = self.appshots_dir();
        let abandoned = crate::image::abandoned(&dir);
        let abandoned = abandoned.map(|(path, _owned)| Leftover::new(path, "its writer was killed"));
        abandoned.chain(self.left()).collect()
    }

    fn left(&self) -> impl Iterator<Item = Leftover> {
        let entries = self.appshots_dir().read_dir().into_iter().flatten().flatten();
        entries.filter_map(|entry| {
            let doomed = entry.file_name().to_string_lossy().starts_with(DOOMED);
            match entry.path() {
                path if doomed => Some(Leftover::new(path, "who removed it was killed")),
                path if beside::is_left(&path) => Some(Leftover::new(path, "it was beside an appshot that is gone")),
                _ => None,
            }
        })
    }

    /// Deletes the stored appshot of `name`, unless another borrows pages of it.
    pub fn remove_appshot(&self, name: &str) -> Result<()> {
        names::validate(name)?;
        nobody_needs(&self.appshot_path(name), "remove")?;
        self.delete_appshot(name)
    }

    /// Has the stored appshot of `from` called `to`, with the record of an app that sleeps in
    /// it. What is called so now is replaced.
    pub fn rename_appshot(&self, from: &str, to: &str) -> Result<()> {
        let _busy = [self.try_lock(from)?, self.try_lock(to)?];
        let (path, new) = (self.appshot_path(from), self.appshot_path(to));
        for path in [&path, &new] {
            nobody_needs(path, "rename")?;
            beside::remove(path);
        }
        if new.exists() {
            self.delete_appshot(to)?;
        }
        let what = || format!("cannot rename the appshot {}", path.display());
        std::fs::rename(&path, &new).or_fail(what)?;
        files::sync_parent(&new).or_fail(what)?;
        let record = self.find(from)?;
        self.remove(to)?;
        if let Some(mut app) = record.filter(|app| app.appshot.as_ref() == Some(&path)) {
            (app.name, app.appshot) = (to.to_owned(), Some(new));
            self.put(&app)?;
            self.remove(from)?;
        }
        Ok(())
    }

    pub(super) fn delete_appshot(&self, name: &str) -> Result<()> {
        let path = self.appshot_path(name);
        match path.exists() {
            true => delete(&path).map(|()| beside::remove(&path)),
            false => Err(self.no_appshot(name)),
        }
    }
}

/// Refuses to touch an appshot that others cannot be restored without (they are taken on
/// it as parent), unless it cannot be read at all.
pub fn nobody_needs(path: &Path, what: &str) -> Result<()> {
    let children = crate::image::children(path).unwrap_or_default();
    let Some(first) = children.first() else { return Ok(()) };
    let names: Vec<String> = children
        .iter()
        .map(|child| child.file_name().unwrap_or_default().display().to_string())
        .collect();
    Err(
        Error::new(Kind::Conflict, format!("cannot {what} the appshot {}", path.display()))
            .because(format!("memory of {} is stored in it only", names.join(", ")))
            .fix(format!(
                "make that one whole first, with `appshot flatten {}`, or remove it",
                first.display()
            ))
            .state("nothing was touched"),
    )
}

fn already_there(path: &Path) -> Error {
    Error::new(
        Kind::Conflict,
        format!("there is already an appshot {}", path.display()),
    )
    .fix("pass --replace to overwrite it, or name the new one with --tag or --to")
    .state("nothing was touched")
}

/// An appshot under such a name is being deleted.
const DOOMED: &str = ".doomed-";

/// Hidden first, then deleted: an interrupted deletion never shows half an
/// appshot. Whoever finds the hidden name may go on with it.
fn delete(path: &Path) -> Result<()> {
    let what = || format!("cannot remove the appshot {}", path.display());
    // Nobody goes on with its connections from then on.
    if let Some(barrier) = glance(path).ok().and_then(|glance| glance.manifest.barrier) {
        barrier::lift_anywhere(&barrier);
    }
    let doomed = path.with_file_name(format!(
        "{DOOMED}{}-{}",
        std::process::id(),
        path.file_name().unwrap_or_default().display()
    ));
    std::fs::rename(path, &doomed).or_fail(what)?;
    files::sync_parent(path).or_fail(what)?;
    let removed = match doomed.is_dir() {
        true => std::fs::remove_dir_all(&doomed),
        false => std::fs::remove_file(&doomed),
    };
    match removed {
        Err(_) if !doomed.exists() => Ok(()),
        removed => removed.or_fail(what),
    }
}
