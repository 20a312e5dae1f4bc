//! Writes an appshot: parts, then the seal.

use super::blocks::{Finished, PartFile, Press};
use super::core_write::CoreWriter;
use super::digest;
use super::leaves::{DIGESTS, Leaves};
use super::lenders::{Former, Lenders};
use super::reader::Appshot;
use super::records::{Manifest, Part};
use super::source::Source;
use super::staging::Staging;
use super::{MANIFEST, manifest, validate};
use crate::error::{Error, Kind, OrFail, Result};
use crate::ids::VirtualPid;
use crate::polite;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

/// The name of the part that holds a process.
pub fn core_name(pid: VirtualPid) -> String {
    format!("{pid}.core")
}

/// An appshot in the making. Parts may be written from several threads.
/// Whatever is not sealed is removed on drop.
#[must_use = "an appshot exists once it is sealed"]
#[derive(Debug)]
pub struct Writer {
    // Before the directory: nothing is written any more when that is removed.
    press: Arc<Press>,
    staging: Staging,
    lenders: Arc<Lenders>,
    former: Option<Arc<Former>>,
}

/// A complete appshot, on disk under its name.
#[derive(Clone, Debug)]
pub struct Sealed {
    pub path: PathBuf,
    /// Disk space taken.
    pub disk_bytes: u64,
}

impl Writer {
    /// `dest` must not exist; its parent must.
    pub fn create(dest: &Path) -> Result<Writer> {
        Writer::to(Staging::create(dest)?, dest)
    }

    /// `dest` is replaced once the new one is sealed.
    pub fn replace(dest: &Path) -> Result<Writer> {
        Writer::to(Staging::replace(dest)?, dest)
    }

    fn to(staging: Staging, dest: &Path) -> Result<Writer> {
        Ok(Writer {
            staging,
            press: Arc::new(Press::start().or_fail(|| format!("cannot write appshot {}", dest.display()))?),
            lenders: Arc::default(),
            former: None,
        })
    }

    /// The same; what is in `former` as well is borrowed from there.
    pub fn create_on(dest: &Path, former: Former) -> Result<Writer> {
        Ok(Writer {
            former: Some(Arc::new(former)),
            ..Writer::create(dest)?
        })
    }

    /// Begins the part that holds one process.
    pub fn core(&self, pid: VirtualPid) -> Result<CoreWriter> {
        let base = self.former.as_ref().and_then(|former| former.base(pid));
        let part = self.part(&core_name(pid))?;
        CoreWriter::new(part, Arc::clone(&self.lenders), base)
    }

    /// Throws away a part of a process that is gone.
    pub fn discard(&self, core: CoreWriter) -> Result<()> {
        let path = self.staging.path().join(core.name());
        core.forget();
        std::fs::remove_file(&path).or_fail(|| format!("cannot remove {}", path.display()))
    }

    /// Begins a part of raw bytes.
    pub fn blob(&self, name: &str) -> Result<BlobWriter> {
        Ok(BlobWriter(self.part(name)?))
    }

    fn part(&self, name: &str) -> Result<PartFile> {
        let cannot = || format!("cannot write appshot part {name:?}");
        if !validate::is_part_name(name) {
            return Err(Error::new(Kind::Usage, cannot()).because("the name is not allowed"));
        }
        self.press.begin(name, || self.staging.create_file(name))
    }

    /// Waits until all parts are written: no memory is read any more.
    pub fn close(self) -> Result<Unsealed> {
        let cannot = || format!("cannot write appshot {}", self.staging.dest().display());
        let parts = self.press.finish().map_err(|e| {
            let cause = e.because.map_or(String::new(), |cause| format!(": {cause}"));
            Error::failed(cannot()).because(format!("{}{cause}", e.what))
        })?;
        Ok(Unsealed {
            parts,
            lenders: self.lenders,
            staging: self.staging,
        })
    }
}

/// An appshot without its manifest; removed on drop.
#[must_use = "an appshot exists once it is sealed"]
#[derive(Debug)]
pub struct Unsealed {
    parts: Vec<(String, Finished)>,
    lenders: Arc<Lenders>,
    staging: Staging,
}

impl Unsealed {
    /// Disk space that the parts take.
    pub fn disk_bytes(&self) -> Result<u64> {
        let files = self.parts.iter().map(|(_, finished)| &finished.part.file);
        let sum: io::Result<u64> = files.map(disk_usage).sum();
        sum.or_fail(|| format!("cannot measure appshot {}", self.staging.dest().display()))
    }

    /// Completes the appshot. `manifest.parts` and what is borrowed is filled in here. When this
    /// returns, every byte has been read back, compared, and is on disk.
    pub fn seal(self, mut manifest: Manifest) -> Result<Sealed> {
        let cannot = || format!("cannot seal appshot {}", self.staging.dest().display());
        let parts = self.parts;
        // What is read back comes from memory: the disk need not have it before.
        thread::scope(|scope| {
            let sync = || {
                let mut files = parts.iter().map(|(_, finished)| &finished.part.file);
                files.try_for_each(File::sync_data)
            };
            let syncing = thread::Builder::new().spawn_scoped(scope, sync);
            verify(&parts).or_fail(cannot)?;
            match syncing {
                Ok(thread) => thread.join().expect("syncing does not panic"),
                Err(_) => sync(),
            }
            .or_fail(cannot)
        })?;
        let mut disk_bytes = 0;
        let mut leaves = Leaves::default();
        manifest.parts.clear();
        for (name, finished) in parts {
            disk_bytes += disk_usage(&finished.part.file).or_fail(cannot)?;
            let own = finished.part.leaves();
            manifest.parts.push(Part {
                name,
                bytes: finished.bytes,
                blake3: digest::merged(&own).to_hex().to_string(),
            });
            leaves.push(&own);
        }
        let mut file = self.staging.create_file(DIGESTS).or_fail(cannot)?;
        let written = file.write_all(leaves.bytes()).and_then(|()| file.sync_all());
        written.or_fail(cannot)?;
        disk_bytes += disk_usage(&file).or_fail(cannot)?;
        manifest.parts.push(leaves.part());
        (manifest.lenders, manifest.parents) = self.lenders.records();
        let bytes = manifest::encode(&manifest)?;
        let mut file = self.staging.create_file(MANIFEST).or_fail(cannot)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).or_fail(cannot)?;
        disk_bytes += disk_usage(&file).or_fail(cannot)?;
        // Opened as a reader would: nothing is sealed that cannot be restored.
        Appshot::open_unverified_memory(self.staging.path())
            .map_err(|e| Error::failed(cannot()).because(e.because.unwrap_or(e.what)))?;
        Ok(Sealed {
            path: self.staging.commit()?,
            disk_bytes,
        })
    }
}

/// Reads back what of all parts was not read back since it was written.
fn verify(parts: &[(String, Finished)]) -> io::Result<()> {
    let mut blocks = Vec::new();
    for (_, Finished { part, bytes }) in parts {
        if part.file.bytes()? != *bytes {
            return Err(io::Error::other(
                "a part reads back longer or shorter than it was written",
            ));
        }
        blocks.extend((0..digest::block_count(*bytes)).map(|block| (part, *bytes, block)));
    }
    let is_polite = polite::is_polite();
    digest::share_out(blocks.len() as u64, digest::processors(), |number, buffer| {
        let (part, bytes, block) = blocks[number as usize];
        polite::piece(is_polite, || part.prove(block, bytes, buffer))
    })
    .map(drop)
}

fn disk_usage(file: &File) -> io::Result<u64> {
    // st_blocks counts 512 bytes, whatever the file system's blocks are.
    Ok(file.metadata()?.blocks() * 512)
}

/// A part of raw bytes. Without [`BlobWriter::finish`] the appshot cannot be sealed.
#[must_use = "a part counts once it is finished"]
#[derive(Debug)]
pub struct BlobWriter(PartFile);

impl BlobWriter {
    pub fn finish(self) -> Result<()> {
        self.0.finish()
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.put(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::digest::BLOCK;
    use super::super::sample;
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn nothing_is_left_of_an_unsealed_appshot() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("x.appshot");
        let writer = Writer::create(&dest).unwrap();
        let mut blob = writer.blob("a.data").unwrap();
        blob.write_all(b"data").unwrap();
        assert_eq!(writer.blob("a.data").unwrap_err().kind, Kind::Usage);
        assert_eq!(writer.blob("../a").unwrap_err().kind, Kind::Usage);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let error = writer.close().unwrap_err();
        assert!(error.to_string().contains("not finished"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_name_must_be_free() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("x.appshot");
        sample::write(&dest);
        assert_eq!(Writer::create(&dest).unwrap_err().kind, Kind::Conflict);
        let late = dir.path().join("late.appshot");
        let writer = Writer::create(&late).unwrap();
        std::fs::create_dir(&late).unwrap();
        let error = writer.staging.commit().unwrap_err();
        assert_eq!(error.kind, Kind::Conflict, "taken meanwhile");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    /// What the disk returns is compared with what was meant, not with itself.
    #[test]
    fn a_changed_part_is_not_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::create(&dir.path().join("x.appshot")).unwrap();
        let mut blob = writer.blob("a.data").unwrap();
        blob.write_all(&vec![1; 3 * BLOCK]).unwrap();
        blob.finish().unwrap();
        let appshot = writer.close().unwrap();
        let part = appshot.staging.path().join("a.data");
        let file = std::fs::OpenOptions::new().write(true).open(part).unwrap();
        file.write_all_at(b"\0", 2 * BLOCK as u64).unwrap();
        let error = appshot.seal(sample::manifest()).unwrap_err();
        assert!(error.to_string().contains("reads back other"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn memory_twice_or_without_mapping_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::create(&dir.path().join("x.appshot")).unwrap();
        let mut core = writer.core(VirtualPid(2)).unwrap();
        core.pages(sample::HEAP, 3, &sample::memory()).unwrap();
        assert_eq!(core.stored_bytes(), 5 * 4096);
        assert!(core.pages(sample::HEAP, 3, &[1; 4096]).is_err(), "twice");
        assert!(
            core.pages(sample::HEAP + 5 * 4096, 3, &[1; 4095]).is_err(),
            "not whole pages"
        );
        core.pages(0x6000_0000_0000, 3, &[1; 4096]).unwrap();
        let error = core.finish(&sample::process(2, 1)).unwrap_err();
        assert!(error.to_string().contains("no mapping"), "{error}");
    }

    /// Each page tells its address and a version.
    #[derive(Debug)]
    struct Version(u8);

    impl crate::image::Memory for Version {
        fn read(&self, spans: &[std::ops::Range<u64>], buffer: &mut [u8]) -> Result<()> {
            let pages = spans.iter().flat_map(|span| span.clone().step_by(4096));
            for (page, vaddr) in buffer.chunks_exact_mut(4096).zip(pages) {
                page[..8].copy_from_slice(&vaddr.to_le_bytes());
                page[8] = self.0;
            }
            Ok(())
        }
    }

    /// As of an app that ran on while it was copied: pages change, go and come.
    #[test]
    fn what_was_replaced_and_kept_is_read_back() {
        const PAGE: u64 = 4096;
        let base = sample::HEAP + 3 * PAGE;
        let at = |from: u64, to: u64| base + from * PAGE..base + to * PAGE;
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::create(&dir.path().join("x.appshot")).unwrap();
        let mut core = writer.core(VirtualPid(2)).unwrap();
        let [old, new]: [Arc<dyn crate::image::Memory>; 2] = [Arc::new(Version(1)), Arc::new(Version(2))];
        core.memory(at(2, 9), 3, &old).unwrap();
        core.settle().unwrap();
        let kept = [(at(1, 4), 3), (at(4, 5), 1), (at(7, 10), 3)];
        core.retain(&kept).unwrap();
        let missing: Vec<_> = [at(1, 3), at(8, 10)]
            .into_iter()
            .flat_map(|span| core.replace(span, &new).unwrap())
            .collect();
        assert_eq!(missing, [at(1, 2), at(9, 10)]);
        for span in missing {
            core.memory(span, 3, &new).unwrap();
        }
        let mut image = sample::process(2, 1);
        image.process.fds.clear();
        core.finish(&image).unwrap();
        let unsealed = writer.close().unwrap();
        let (_, finished) = &unsealed.parts[0];
        let (_, segments) = crate::image::core_read::parse("2.core", &finished.part.file).unwrap();
        let mut found = Vec::new();
        for segment in segments {
            for page in (0..segment.bytes).step_by(4096) {
                let mut bytes = [0; 9];
                finished
                    .part
                    .file
                    .read_exact_at(&mut bytes, segment.offset + page)
                    .unwrap();
                let (vaddr, version) = bytes.split_at(8);
                assert_eq!(u64::from_le_bytes(vaddr.try_into().unwrap()), segment.vaddr + page);
                found.push(((segment.vaddr + page - base) / PAGE, version[0]));
            }
        }
        assert_eq!(found, [(1, 2), (2, 2), (3, 1), (4, 1), (7, 1), (8, 2), (9, 2)]);
    }

    /// Run with `--release -- --ignored --nocapture` to see the throughput.
    #[test]
    #[ignore = "a measurement"]
    fn throughput() {
        let mut bytes = vec![0; 64 << 20];
        for (page, chunk) in bytes.chunks_exact_mut(4096).enumerate() {
            chunk.fill(page as u8 | 1);
        }
        let dir = tempfile::tempdir().unwrap();
        let writer = Writer::create(&dir.path().join("x.appshot")).unwrap();
        let mut core = writer.core(VirtualPid(2)).unwrap();
        let start = std::time::Instant::now();
        for round in 0..16 {
            for (slice, chunk) in bytes.chunks(1 << 20).enumerate() {
                let vaddr = 0x1000_0000 + round * (64 << 20) + (slice as u64) * (1 << 20);
                core.pages(vaddr, 3, chunk).unwrap();
            }
        }
        core.finish(&sample::process(2, 1)).ok();
        writer.close().ok();
        println!("1 GiB of memory written in {:?}", start.elapsed());
    }
}
