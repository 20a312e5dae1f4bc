//! Parts while they are written: cut into blocks, which other threads hash and
//! write.
//!
//! ```text
//!   put --> block --> queue --> thread: BLAKE3, pwrite --+
//!            ^                                           |
//!            +---------------- empty buffers ------------+
//! ```
//!
//! Whoever reads an app's memory only copies it, and what is in the queue is
//! written when the app may be running again.

use super::digest::{self, BLOCK, ChainingValue};
use crate::error::{Error, Kind, OrFail, Result};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Blocks that wait to be written. More would only take memory.
const QUEUE: usize = 16;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads that write, for all parts of an appshot.
#[derive(Debug)]
pub struct Press {
    jobs: Option<SyncSender<Job>>,
    empty: Mutex<Receiver<Vec<u8>>>,
    threads: Vec<JoinHandle<()>>,
    failed: Arc<Mutex<Option<Error>>>,
    /// All that were begun; `None` until finished.
    parts: Mutex<BTreeMap<String, Option<Finished>>>,
}

/// A part of which everything was given.
#[derive(Clone, Debug)]
pub struct Finished {
    pub part: Arc<Written>,
    pub bytes: u64,
}

#[derive(Debug)]
struct Job {
    part: Arc<Written>,
    block: u64,
    /// Nothing else is in the part.
    whole: bool,
    bytes: Vec<u8>,
}

/// A part with the digests of the blocks that were meant to be written.
#[derive(Debug)]
pub struct Written {
    pub file: File,
    name: String,
    values: Mutex<Vec<(u64, ChainingValue)>>,
}

impl Written {
    /// Of the part, once the press has finished.
    pub fn digest(&self) -> blake3::Hash {
        let mut values = locked(&self.values).clone();
        values.sort_unstable_by_key(|(block, _)| *block);
        let values: Vec<ChainingValue> = values.into_iter().map(|(_, value)| value).collect();
        digest::merged(&values)
    }
}

impl Job {
    fn work(&self) -> Result<()> {
        let value = digest::of_block(self.block, &self.bytes, self.whole);
        locked(&self.part.values).push((self.block, value));
        self.part
            .file
            .write_all_at(&self.bytes, self.block * BLOCK as u64)
            .or_fail(|| format!("cannot write appshot part {}", self.part.name))
    }
}

impl Press {
    pub fn start() -> io::Result<Press> {
        let (jobs, queue) = mpsc::sync_channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        let (emptied, empty) = mpsc::channel();
        let failed = Arc::default();
        let threads = (0..digest::processors()).map(|_| {
            let (queue, emptied, failed) = (Arc::clone(&queue), emptied.clone(), Arc::clone(&failed));
            thread::Builder::new().spawn(move || work(&queue, &emptied, &failed))
        });
        Ok(Press {
            threads: threads.collect::<io::Result<_>>()?,
            jobs: Some(jobs),
            empty: Mutex::new(empty),
            failed,
            parts: Mutex::default(),
        })
    }

    /// Begins a part of a name that was not used yet, in a file that is made then.
    pub fn begin(self: &Arc<Self>, name: &str, file: impl FnOnce() -> io::Result<File>) -> Result<PartFile> {
        let cannot = || format!("cannot write appshot part {name:?}");
        let mut parts = locked(&self.parts);
        if parts.contains_key(name) {
            return Err(Error::new(Kind::Usage, cannot()).because("it is written twice"));
        }
        let file = file().or_fail(cannot)?;
        parts.insert(name.to_owned(), None);
        Ok(PartFile {
            press: Arc::clone(self),
            part: Arc::new(Written {
                file,
                name: name.to_owned(),
                values: Mutex::default(),
            }),
            first: Vec::new(),
            buffer: Vec::new(),
            bytes: 0,
        })
    }

    fn buffer(&self) -> Vec<u8> {
        locked(&self.empty).try_recv().unwrap_or_default()
    }

    fn give(&self, job: Job) -> Result<()> {
        if let Some(error) = &*locked(&self.failed) {
            return Err(error.clone());
        }
        let gone = || Error::failed("the threads that write are gone");
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())
    }

    /// Waits until everything is written; every part must be finished.
    pub fn finish(self: Arc<Self>) -> Result<Vec<(String, Finished)>> {
        let parts = std::mem::take(&mut *locked(&self.parts));
        let finished = parts.into_iter().map(|(name, part)| match part {
            Some(part) => Ok((name, part)),
            None => Err(Error::failed(format!("part {name} was begun and not finished"))),
        });
        let finished = finished.collect::<Result<_>>()?;
        if let Some(mut press) = Arc::into_inner(self) {
            press.wait();
            if let Some(error) = locked(&press.failed).take() {
                return Err(error);
            }
        }
        Ok(finished)
    }

    fn wait(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            thread.join().expect("writing does not panic");
        }
    }
}

impl Drop for Press {
    fn drop(&mut self) {
        self.wait();
    }
}

/// Takes jobs until nobody gives any more. After a failure they are thrown away.
fn work(queue: &Mutex<Receiver<Job>>, emptied: &Sender<Vec<u8>>, failed: &Mutex<Option<Error>>) {
    loop {
        let next = locked(queue).recv();
        let Ok(mut job) = next else { return };
        if locked(failed).is_none()
            && let Err(error) = job.work()
        {
            locked(failed).get_or_insert(error);
        }
        job.bytes.clear();
        // Nobody takes it when the last block has been given.
        let _ = emptied.send(job.bytes);
    }
}

/// A part being filled.
#[derive(Debug)]
pub struct PartFile {
    press: Arc<Press>,
    part: Arc<Written>,
    /// The first block, kept until the end: a header in it is filled in last.
    first: Vec<u8>,
    /// The block that is being filled, if it is another one.
    buffer: Vec<u8>,
    bytes: u64,
}

impl PartFile {
    pub fn name(&self) -> &str {
        &self.part.name
    }

    /// Bytes given so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// May fail because of what was given before.
    pub fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let block = if self.first.len() < BLOCK {
                &mut self.first
            } else {
                &mut self.buffer
            };
            let (fits, rest) = bytes.split_at(bytes.len().min(BLOCK - block.len()));
            block.extend_from_slice(fits);
            self.bytes += fits.len() as u64;
            bytes = rest;
            if self.buffer.len() == BLOCK {
                self.give_buffer()?;
            }
        }
        Ok(())
    }

    fn give_buffer(&mut self) -> Result<()> {
        let block = (self.bytes - 1) / BLOCK as u64;
        let bytes = std::mem::replace(&mut self.buffer, self.press.buffer());
        self.give(block, false, bytes)
    }

    fn give(&self, block: u64, whole: bool, bytes: Vec<u8>) -> Result<()> {
        self.press.give(Job {
            part: Arc::clone(&self.part),
            block,
            whole,
            bytes,
        })
    }

    /// Other first bytes than were given.
    pub fn replace_start(&mut self, bytes: &[u8]) {
        self.first[..bytes.len()].copy_from_slice(bytes);
    }

    /// Gives the rest, which is written when the press has finished.
    pub fn finish(mut self) -> Result<()> {
        if !self.buffer.is_empty() {
            self.give_buffer()?;
        }
        let first = std::mem::take(&mut self.first);
        self.give(0, self.bytes <= BLOCK as u64, first)?;
        let finished = Finished {
            part: self.part,
            bytes: self.bytes,
        };
        locked(&self.press.parts).insert(finished.part.name.clone(), Some(finished));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes at which the digest's tree changes its shape, in pieces of any size.
    #[test]
    fn what_is_written_has_its_digest() {
        let data: Vec<u8> = (0..3 * BLOCK + 77).map(|i| (i * 31 % 251) as u8).collect();
        let sizes = [0, 5, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, data.len()];
        for (size, piece) in sizes.iter().flat_map(|size| [(*size, 1000), (*size, 2 * BLOCK)]) {
            let press = Arc::new(Press::start().unwrap());
            let mut part = press.begin("x", tempfile::tempfile).unwrap();
            for bytes in data[..size].chunks(piece) {
                part.put(bytes).unwrap();
            }
            part.finish().unwrap();
            let (name, finished) = press.finish().unwrap().remove(0);
            let mut back = vec![0; size];
            finished.part.file.read_exact_at(&mut back, 0).unwrap();
            assert_eq!((&*name, finished.bytes, &back[..]), ("x", size as u64, &data[..size]));
            assert_eq!(
                finished.part.digest(),
                blake3::hash(&back),
                "{size} in pieces of {piece}"
            );
        }
    }

    #[test]
    fn a_failure_is_told_and_ends_the_rest() {
        let press = Arc::new(Press::start().unwrap());
        let full = || File::options().write(true).open("/dev/full");
        let mut part = press.begin("2.core", full).unwrap();
        let piece = vec![1; BLOCK];
        let error = (0..1000).find_map(|_| part.put(&piece).err()).unwrap();
        assert!(
            error.to_string().contains("cannot write appshot part 2.core"),
            "{error}"
        );
        drop(part);
        let error = press.finish().unwrap_err();
        assert!(error.to_string().contains("not finished"), "{error}");
    }
}
