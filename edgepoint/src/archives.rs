//! Files that come with a manifest: an archive (tar, plain or by gzip or zstd), unpacked for
//! each version that names it.
//!
//! ```text
//! DATA_DIR/archives/PROVIDER/BLAKE3   as it came, 0600; gone when no version names it any more
//! DATA_DIR/unpacking/                 0700: nobody but root is there while root unpacks
//! DATA_DIR/apps/APP/vN/               unpacked, for the app's user alone: where the version starts
//! ```
//!
//! What stands in an archive is its provider's word: no file of it comes out of the directory,
//! and all are of the user that the app runs as, without set-user-ID bits. Its headers are looked
//! through before anything is unpacked.

use crate::manifest::Manifest;
use crate::versions::Versions;
use axum::body::{Body, HttpBody};
use http_body_util::BodyExt;
use hyper::body::Bytes;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::store::{Store, directory, sync_parent};
use nodekit::reply::on_own_thread;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;

/// Of one archive, as it comes.
pub const BYTES_MAX: u64 = 256 << 20;
/// All of one provider together, as they came.
const ALL_BYTES_MAX: u64 = 2 << 30;
/// And of one, unpacked.
const UNPACKED_BYTES_MAX: u64 = 1 << 30;
const ENTRIES_MAX: usize = 100_000;
/// Of a long name, or of what else stands before an entry.
const HEADER_BYTES_MAX: u64 = 64 << 10;
/// One that nobody names yet is kept for so long: the manifest may be on its way.
const UNNAMED: Duration = Duration::from_secs(3600);
/// What comes has to be there within this.
const COMES: Duration = Duration::from_secs(600);

/// Whether this can be the digest of one: 64 lower-case hexadecimal digits.
pub fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn dir(store: &Store, provider: &str) -> PathBuf {
    store.data_dir().join("archives").join(provider)
}

/// Where an archive of a provider is, if it is there.
pub fn find(store: &Store, provider: &str, digest: &str) -> Option<PathBuf> {
    let path = dir(store, provider).join(digest);
    (is_digest(digest) && path.is_file()).then_some(path)
}

/// Where what a version has of its archive is.
fn place(store: &Store, app: &str, version: u32) -> PathBuf {
    store.data_dir().join("apps").join(app).join(format!("v{version}"))
}

fn refused(because: impl std::fmt::Display) -> Error {
    Error::new(Kind::Usage, "cannot keep the archive")
        .because(because)
        .state("nothing was kept")
}

/// One that comes; it is removed where it does not come to its end.
#[derive(Debug)]
struct Coming(PathBuf);

impl Drop for Coming {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Pieces between who receives and who writes.
const PIECES: usize = 8;

/// Takes in an archive as it comes.
pub async fn take(store: &Store, provider: &str, digest: &str, mut body: Body) -> Result<()> {
    if !is_digest(digest) {
        return Err(refused(format!("{digest:?} is no BLAKE3 digest")).fix("64 lower-case hexadecimal digits"));
    }
    if body.size_hint().lower() > BYTES_MAX {
        return Err(refused("it is longer than 256 MiB"));
    }
    let (pieces, come) = mpsc::channel::<Bytes>(PIECES);
    let (store, provider, digest) = (store.clone(), provider.to_owned(), digest.to_owned());
    let written = on_own_thread(move || write(&store, &provider, &digest, come));
    let all = async {
        let mut length = 0;
        while let Some(frame) = body.frame().await {
            let Ok(bytes) = frame.map_err(refused)?.into_data() else {
                continue;
            };
            length += bytes.len() as u64;
            if length > BYTES_MAX {
                return Err(refused("it is longer than 256 MiB"));
            }
            if pieces.send(bytes).await.is_err() {
                // Who writes tells why.
                break;
            }
        }
        drop(pieces);
        Ok(())
    };
    let came = tokio::time::timeout(COMES, async { tokio::join!(all, written) }).await;
    let (came, written) = came.map_err(|_| refused(format!("it did not come within {COMES:?}")))?;
    came.and(written)
}

fn write(store: &Store, provider: &str, digest: &str, mut pieces: mpsc::Receiver<Bytes>) -> Result<()> {
    let what = || "cannot keep the archive";
    let (root, dir) = (store.data_dir().join("archives"), dir(store, provider));
    directory(&root, 0o700)?;
    directory(&dir, 0o700)?;
    let others: u64 = files(&dir).map(|(_, size)| size).sum();
    let coming = Coming(dir.join(format!(".{digest}-{}", libsnap::identity::uuid()?)));
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&coming.0)
        .or_fail(what)?;
    let (mut hasher, mut length) = (blake3::Hasher::new(), 0);
    while let Some(bytes) = pieces.blocking_recv() {
        length += bytes.len() as u64;
        if others + length > ALL_BYTES_MAX {
            return Err(refused("those of the provider would have more than 2 GiB")
                .fix("remove apps, or deploy fewer versions"));
        }
        hasher.update(&bytes);
        file.write_all(&bytes).or_fail(what)?;
    }
    file.sync_all().or_fail(what)?;
    let hash = hasher.finalize().to_hex();
    if hash.as_str() != digest {
        return Err(refused(format!("it has the digest {hash}")).fix("send it again"));
    }
    let path = dir.join(digest);
    fs::rename(&coming.0, &path).or_fail(what)?;
    sync_parent(&path).or_fail(what)
}

/// One that is there is about to be named.
pub fn touch(path: &Path) {
    if let Ok(file) = File::open(path) {
        let _ = file.set_modified(SystemTime::now());
    }
}

fn files(dir: &Path) -> impl Iterator<Item = (PathBuf, u64)> {
    let entries = dir.read_dir().into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.len())))
}

/// One that is named, and was not sent.
pub fn missing(manifest: &Manifest, digest: &str) -> Error {
    Error::new(Kind::NotFound, format!("cannot unpack the archive of {}", manifest.app))
        .because(format!("{} has no archive {digest}", manifest.provider))
        .fix("send it first: `appshot deploy` and `update` do, or PUT /v1/archives/DIGEST")
}

/// Has what a version starts from be there; answers where, if it has an archive.
pub fn ready(store: &Store, manifest: &Manifest, version: u32) -> Result<Option<PathBuf>> {
    let Some(digest) = &manifest.start.digest else {
        return Ok(None);
    };
    let place = place(store, &manifest.app, version);
    if place.is_dir() {
        return Ok(Some(place));
    }
    let failed = || format!("cannot unpack the archive of {}", manifest.app);
    let archive = find(store, &manifest.provider, digest).ok_or_else(|| missing(manifest, digest))?;
    let apps = store.data_dir().join("apps");
    directory(&apps, 0o711)?;
    directory(place.parent().unwrap_or(&apps), 0o711)?;
    open_the_way(store)?;
    let unpacking = store.data_dir().join("unpacking");
    directory(&unpacking, 0o700)?;
    let temporary = unpacking.join(format!("{}.v{version}", manifest.app));
    remove(&temporary)?;
    fs::DirBuilder::new().mode(0o700).create(&temporary).or_fail(failed)?;
    let unpacked = unpack(&archive, &temporary, manifest.owner()?);
    if let Err(error) = unpacked {
        remove(&temporary)?;
        return Err(Error::new(Kind::Usage, failed())
            .because(error)
            .fix("a tar archive, plain or by gzip or zstd, of files, directories and links"));
    }
    fs::rename(&temporary, &place).or_fail(failed)?;
    Ok(Some(place))
}

/// Who is no root finds what is his by its name, and nothing else: the data directory can be gone
/// through, and not listed. Others may have set its mode again.
pub fn open_the_way(store: &Store) -> Result<()> {
    let what = || format!("cannot let apps through {}", store.data_dir().display());
    if !store.data_dir().join("apps").exists() {
        return Ok(());
    }
    let mode = store.data_dir().metadata().or_fail(what)?.permissions().mode();
    fs::set_permissions(store.data_dir(), Permissions::from_mode(mode | 0o011)).or_fail(what)
}

/// What a daemon before has left half done, when nobody does anything yet.
pub fn begin(store: &Store) -> Result<()> {
    open_the_way(store)?;
    remove(&store.data_dir().join("unpacking"))?;
    let providers = store.data_dir().join("archives").read_dir();
    for provider in providers.into_iter().flatten().flatten() {
        let is_coming = |path: &Path| {
            path.file_name()
                .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
        };
        for (path, _) in files(&provider.path()).filter(|(path, _)| is_coming(path)) {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// Of a version that is made anew, or was not made.
pub fn forget(store: &Store, app: &str, version: u32) -> Result<()> {
    remove(&place(store, app, version))
}

/// What it unpacks to, whatever packs it.
fn plain(archive: &Path) -> std::io::Result<Box<dyn Read>> {
    let mut file = BufReader::new(File::open(archive)?);
    let mut magic = [0; 4];
    let known = file.read(&mut magic)?;
    let whole = std::io::Cursor::new(magic[..known].to_vec()).chain(file);
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(whole)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(whole)?),
        _ => Box::new(whole),
    })
}

fn wrong(because: impl Into<String>) -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::InvalidData, because.into())
}

/// Refuses one whose headers alone would take much memory, or which is too much unpacked.
fn look_through(archive: &Path) -> std::io::Result<()> {
    let mut looked = tar::Archive::new(plain(archive)?.take(UNPACKED_BYTES_MAX + 1));
    let (mut count, mut bytes) = (0, 0u64);
    for entry in looked.entries()?.raw(true) {
        let entry = entry?;
        let (kind, size) = (entry.header().entry_type(), entry.header().entry_size()?);
        let before = kind.is_gnu_longname()
            || kind.is_gnu_longlink()
            || kind.is_pax_local_extensions()
            || kind.is_pax_global_extensions();
        if before && size > HEADER_BYTES_MAX {
            return Err(wrong("a name in it is longer than 64 KiB"));
        }
        (count, bytes) = (count + 1, bytes.saturating_add(size));
        if count > ENTRIES_MAX {
            return Err(wrong(format!("it has more than {ENTRIES_MAX} entries")));
        }
        if bytes > UNPACKED_BYTES_MAX {
            return Err(wrong("unpacked it has more than 1 GiB"));
        }
    }
    match count {
        0 => Err(wrong("nothing is in it")),
        _ => Ok(()),
    }
}

fn unpack(archive: &Path, to: &Path, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    look_through(archive)?;
    let mut limited = tar::Archive::new(plain(archive)?.take(UNPACKED_BYTES_MAX + 1));
    limited.set_preserve_permissions(false);
    limited.set_overwrite(false);
    for entry in limited.entries()? {
        let mut entry = entry?;
        let (kind, path) = (entry.header().entry_type(), entry.path()?.into_owned());
        if kind.is_pax_global_extensions() || path.as_os_str() == OsStr::new("./") {
            continue;
        }
        if !(kind.is_file() || kind.is_dir() || kind.is_symlink() || kind.is_hard_link()) {
            return Err(wrong(format!("{} is neither file, directory nor link", path.display())));
        }
        if !entry.unpack_in(to)? {
            return Err(wrong(format!("{} leads out of it", path.display())));
        }
    }
    give(to, owner)
}

/// To the user that it is for. Nobody but root can come there yet, and the whole stays closed to others.
fn give(path: &Path, owner: Option<(u32, u32)>) -> std::io::Result<()> {
    let kind = path.symlink_metadata()?;
    if kind.is_dir() {
        for entry in path.read_dir()? {
            give(&entry?.path(), owner)?;
        }
    }
    match owner {
        Some((user, group)) => lchown(path, Some(user), Some(group)),
        None => Ok(()),
    }
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::failed(format!("cannot remove {}", path.display())).because(error))
        }
        _ => Ok(()),
    }
}

/// Removes what versions have had that are not kept; all of it where there are none.
pub fn tidy(store: &Store, app: &str, versions: Option<&Versions>) -> Result<()> {
    let dir = store.data_dir().join("apps").join(app);
    let Some(versions) = versions else {
        return remove(&dir);
    };
    let kept = versions.kept.iter().map(|kept| kept.number);
    let kept: BTreeSet<String> = kept
        .chain([versions.current])
        .map(|number| format!("v{number}"))
        .collect();
    for entry in dir.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // One that is just made has a number that no version has had.
        let is_new = name
            .strip_prefix('v')
            .and_then(|number| number.parse::<u32>().ok())
            .is_some_and(|number| number > versions.last);
        if !is_new && !kept.contains(&name) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes archives that none of these names (provider and digest) and that are not new.
pub fn collect(store: &Store, named: &BTreeSet<(String, String)>) {
    let providers = store.data_dir().join("archives");
    for provider in providers.read_dir().into_iter().flatten().flatten() {
        let name = provider.file_name().to_string_lossy().into_owned();
        for (path, _) in files(&provider.path()) {
            let digest = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let age = path.metadata().and_then(|meta| meta.modified()).ok();
            let age = age.and_then(|at| SystemTime::now().duration_since(at).ok());
            if !named.contains(&(name.clone(), digest)) && age.is_some_and(|age| age > UNNAMED) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, tar::EntryType, &[u8], u32)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, content, mode) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_mode(*mode);
            let link = kind.is_symlink() || kind.is_hard_link();
            header.set_size(if link { 0 } else { content.len() as u64 });
            let name = path.as_bytes();
            header.as_old_mut().name[..name.len()].copy_from_slice(name);
            if link {
                header.as_old_mut().linkname[..content.len()].copy_from_slice(content);
            }
            header.set_cksum();
            builder.append(&header, if link { &[][..] } else { content }).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn unpacked(bytes: &[u8]) -> (tempfile::TempDir, std::io::Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("archive"), dir.path().join("to"));
        fs::write(&from, bytes).unwrap();
        fs::create_dir(&to).unwrap();
        let done = unpack(&from, &to, None);
        (dir, done)
    }

    #[test]
    fn all_kinds_of_archives_are_unpacked() {
        let plain = archive(&[
            ("site", tar::EntryType::Directory, b"", 0o755),
            ("site/run", tar::EntryType::Regular, b"#!/bin/sh\n", 0o6755),
            ("site/link", tar::EntryType::Symlink, b"run", 0o777),
        ]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        for bytes in [
            plain.clone(),
            gzip.finish().unwrap(),
            zstd::encode_all(&plain[..], 1).unwrap(),
        ] {
            let (dir, done) = unpacked(&bytes);
            done.unwrap();
            let run = dir.path().join("to/site/run");
            assert_eq!(fs::read(&run).unwrap(), b"#!/bin/sh\n");
            assert_eq!(run.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
            assert_eq!(
                fs::read_link(dir.path().join("to/site/link")).unwrap(),
                Path::new("run")
            );
        }
    }

    #[test]
    fn nothing_comes_out_of_its_directory() {
        for (entries, told) in [
            (vec![("../out", tar::EntryType::Regular, &b"x"[..], 0o644)], "leads out"),
            (vec![("dev", tar::EntryType::Char, &b""[..], 0o644)], "neither file"),
            (vec![("fifo", tar::EntryType::Fifo, &b""[..], 0o644)], "neither file"),
            (
                vec![
                    ("there", tar::EntryType::Symlink, &b".."[..], 0o777),
                    ("there/out", tar::EntryType::Regular, &b"x"[..], 0o644),
                ],
                "",
            ),
            (vec![], "nothing is in it"),
        ] {
            let (dir, done) = unpacked(&archive(&entries));
            let error = done.unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
            assert!(!dir.path().join("out").exists());
        }
        assert!(unpacked(b"no archive at all, and long enough to be none").1.is_err());
    }

    #[test]
    fn digests_are_told_from_other_names() {
        assert!(is_digest(&"0a".repeat(32)));
        for other in ["", "0A", &"0A".repeat(32), &"0a".repeat(31), "../../../etc/passwd"] {
            assert!(!is_digest(other), "{other}");
        }
    }
}
