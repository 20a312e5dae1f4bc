//! Parts while they are written: cut into blocks, which threads fill, hash and
//! write while they are in the processor's cache.
//!
//! ```text
//!   put(bytes or memory) --> block --> queue --> thread: read memory, BLAKE3, pwrite
//!   rewrite(offset, memory) -> leaf -> queue --> thread: read back, verify, change, BLAKE3, pwrite
//!   prove() --> fsync; block -> queue --> thread: read back, verify
//! ```
//!
//! Pages of zeroes are not written: the file has holes there. What is rewritten is
//! held against its digest first: the digests tell what was meant, never what the
//! disk returns.

use super::data_runs;
use super::digest::{self, BLOCK, ChainingValue, LEAF};
use super::source::Source;
use crate::error::{Error, Kind, OrFail, Result};
use crate::polite;
use nix::fcntl::{FallocateFlags, fallocate};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

/// Blocks that wait to be written. They may hold a megabyte each.
const QUEUE: usize = 8;

/// Memory from which blocks are filled.
pub trait Memory: std::fmt::Debug + Send + Sync {
    /// Reads these addresses, back to back, into all of `buffer`.
    fn read(&self, spans: &[Range<u64>], buffer: &mut [u8]) -> Result<()>;
}

/// What a part is made of.
#[derive(Debug)]
enum Piece {
    Bytes(Vec<u8>),
    Memory(Arc<dyn Memory>, Vec<Range<u64>>),
}

impl Piece {
    fn bytes(&self) -> usize {
        match self {
            Piece::Bytes(bytes) => bytes.len(),
            Piece::Memory(_, spans) => spans.iter().map(|span| (span.end - span.start) as usize).sum(),
        }
    }

    fn fill(&self, buffer: &mut [u8]) -> Result<()> {
        match self {
            Piece::Bytes(bytes) => {
                buffer.copy_from_slice(bytes);
                Ok(())
            }
            Piece::Memory(memory, spans) => memory.read(spans, buffer),
        }
    }
}

/// A block, or as much of it as was put.
#[derive(Debug, Default)]
struct Block {
    pieces: Vec<Piece>,
    bytes: usize,
}

impl Block {
    fn push_bytes(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len();
        match self.pieces.last_mut() {
            Some(Piece::Bytes(last)) => last.extend_from_slice(bytes),
            _ => self.pieces.push(Piece::Bytes(bytes.to_vec())),
        }
    }

    fn push_memory(&mut self, memory: &Arc<dyn Memory>, span: Range<u64>) {
        self.bytes += (span.end - span.start) as usize;
        match self.pieces.last_mut() {
            Some(Piece::Memory(last, spans)) if Arc::ptr_eq(last, memory) => match spans.last_mut() {
                Some(before) if before.end == span.start => before.end = span.end,
                _ => spans.push(span),
            },
            _ => self.pieces.push(Piece::Memory(Arc::clone(memory), vec![span])),
        }
    }

    /// Reads what it is made of.
    fn settle(&mut self) -> Result<()> {
        if self.pieces.iter().any(|piece| matches!(piece, Piece::Memory(..))) {
            let mut bytes = Vec::new();
            self.fill(&mut bytes)?;
            self.pieces = vec![Piece::Bytes(bytes)];
        }
        Ok(())
    }

    fn fill(&self, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.resize(self.bytes, 0);
        let mut rest = &mut buffer[..];
        for piece in &self.pieces {
            let (own, others) = rest.split_at_mut(piece.bytes());
            piece.fill(own)?;
            rest = others;
        }
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The threads that write, for all parts of an appshot.
#[derive(Debug)]
pub struct Press {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
    state: Arc<State>,
    /// All that were begun; `None` until finished.
    parts: Mutex<BTreeMap<String, Option<Finished>>>,
}

#[derive(Debug, Default)]
struct State {
    failed: Mutex<Option<Error>>,
    /// Jobs that were given and are not done.
    open: Mutex<usize>,
    none_open: Condvar,
}

impl State {
    fn failure(&self) -> Result<()> {
        locked(&self.failed).clone().map_or(Ok(()), Err)
    }

    fn close_one(&self) {
        *locked(&self.open) -= 1;
        self.none_open.notify_all();
    }
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
    task: Task,
}

#[derive(Debug)]
enum Task {
    Write {
        at: u64,
        /// Bytes of the part so far. Only a part of one leaf is hashed otherwise than
        /// as a piece, and its one block is given at the end.
        length: u64,
        block: Block,
    },
    /// Of a leaf that is written, by number, and is not the last one.
    Rewrite { leaf: u64, changes: Vec<Change> },
    /// A block that was written, and is not the last one.
    Prove { block: u64 },
}

/// Pages of a leaf that get another content.
#[derive(Debug)]
struct Change {
    /// In the leaf.
    offset: usize,
    memory: Arc<dyn Memory>,
    span: Range<u64>,
}

impl Change {
    fn place(&self) -> Range<usize> {
        self.offset..self.offset + (self.span.end - self.span.start) as usize
    }
}

/// Pages without content.
#[derive(Debug)]
struct Nothing;

impl Memory for Nothing {
    fn read(&self, _: &[Range<u64>], buffer: &mut [u8]) -> Result<()> {
        buffer.fill(0);
        Ok(())
    }
}

/// A part with the digests of what was meant to be written.
#[derive(Debug)]
pub struct Written {
    pub file: File,
    name: String,
    /// The leaves of each block.
    leaves: Mutex<BTreeMap<u64, Vec<ChainingValue>>>,
    /// Of each block, a bit for each leaf that read back as it was meant.
    proved: Mutex<BTreeMap<u64, u64>>,
}

impl Written {
    /// Of the part, once the press has finished.
    pub fn leaves(&self) -> Vec<ChainingValue> {
        locked(&self.leaves).values().flatten().copied().collect()
    }

    /// Reads back what of a block was not read back since it was written. `length`: of
    /// the part; `buffer` holds a leaf.
    pub fn prove(&self, block: u64, length: u64, buffer: &mut [u8]) -> io::Result<()> {
        let meant = locked(&self.leaves).get(&block).cloned().unwrap_or_default();
        let mut proved = locked(&self.proved).get(&block).copied().unwrap_or(0);
        let whole = digest::leaf_count(length) - block * LEAVES;
        if meant.len() as u64 != whole.min(LEAVES) {
            return Err(self.reads_other(block * BLOCK as u64));
        }
        for (number, meant) in meant.iter().enumerate() {
            if proved & 1 << number != 0 {
                continue;
            }
            let start = block * BLOCK as u64 + (number * LEAF) as u64;
            let bytes = &mut buffer[..(length - start).min(LEAF as u64) as usize];
            self.file.fill_at(bytes, start)?;
            if digest::leaves(start, bytes, length).next() != Some(*meant) {
                return Err(self.reads_other(start));
            }
            proved |= 1 << number;
        }
        locked(&self.proved).insert(block, proved);
        Ok(())
    }

    fn reads_other(&self, start: u64) -> io::Error {
        let name = &self.name;
        io::Error::other(format!(
            "part {name} reads back other than it was written at byte {start}"
        ))
    }
}

impl Job {
    fn work(&self, buffer: &mut Vec<u8>) -> Result<()> {
        match &self.task {
            Task::Write { at, length, block } => {
                block.fill(buffer)?;
                self.part.write(*at, buffer, *length)
            }
            Task::Rewrite { leaf, changes } => self.part.rewrite(*leaf, changes, buffer),
            Task::Prove { block } => {
                buffer.resize(LEAF, 0);
                let proved = self.part.prove(*block, u64::MAX, buffer);
                proved.or_fail(|| cannot_write(&self.part.name))
            }
        }
    }
}

impl Written {
    fn write(&self, block: u64, bytes: &[u8], length: u64) -> Result<()> {
        let start = block * BLOCK as u64;
        let leaves = digest::leaves(start, bytes, length).collect();
        locked(&self.leaves).insert(block, leaves);
        locked(&self.proved).remove(&block);
        data_runs(bytes)
            .try_for_each(|run| self.file.write_all_at(&bytes[run.clone()], start + run.start as u64))
            .or_fail(|| cannot_write(&self.name))
    }

    fn rewrite(&self, leaf: u64, changes: &[Change], buffer: &mut Vec<u8>) -> Result<()> {
        let cannot = || cannot_write(&self.name);
        let start = leaf * LEAF as u64;
        // Not the whole of the part, nor its last leaf.
        let value = |bytes: &[u8]| digest::leaves(start, bytes, u64::MAX).next();
        buffer.resize(LEAF, 0);
        self.file.read_exact_at(buffer, start).or_fail(cannot)?;
        let (block, number) = (leaf / LEAVES, (leaf % LEAVES) as usize);
        let meant = locked(&self.leaves)
            .get(&block)
            .and_then(|all| all.get(number).copied());
        if meant != value(buffer) {
            return Err(Error::failed(cannot()).because(format!("byte {start} reads back other than it was written")));
        }
        if let Some(proved) = locked(&self.proved).get_mut(&block) {
            *proved &= !(1 << number);
        }
        for change in changes {
            change
                .memory
                .read(std::slice::from_ref(&change.span), &mut buffer[change.place()])?;
        }
        if let Some(leaves) = locked(&self.leaves).get_mut(&block)
            && let Some(value) = value(buffer)
        {
            leaves[number] = value;
        }
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for place in changes.iter().map(Change::place) {
            let at = start + place.start as u64;
            fallocate(&self.file, hole, at as i64, place.len() as i64).or_fail(cannot)?;
            data_runs(&buffer[place.clone()])
                .try_for_each(|run| {
                    let data = &buffer[place.start + run.start..place.start + run.end];
                    self.file.write_all_at(data, at + run.start as u64)
                })
                .or_fail(cannot)?;
        }
        Ok(())
    }
}

const LEAVES: u64 = (BLOCK / LEAF) as u64;

fn cannot_write(part: &str) -> String {
    format!("cannot write appshot part {part}")
}

impl Press {
    pub fn start() -> io::Result<Press> {
        let (jobs, queue) = mpsc::sync_channel(QUEUE);
        let queue = Arc::new(Mutex::new(queue));
        let state = Arc::<State>::default();
        let is_polite = polite::is_polite();
        let start = || {
            let (queue, state) = (Arc::clone(&queue), Arc::clone(&state));
            thread::Builder::new().spawn(move || work(&queue, &state, is_polite))
        };
        // One must be had; more are welcome.
        let mut threads = vec![start()?];
        threads.extend((1..digest::processors()).map_while(|_| start().ok()));
        Ok(Press {
            threads,
            jobs: Some(jobs),
            state,
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
                leaves: Mutex::default(),
                proved: Mutex::default(),
            }),
            first: Block::default(),
            last: Block::default(),
            changes: BTreeMap::new(),
            bytes: 0,
        })
    }

    /// A part that was begun and is not to be.
    pub fn forget(&self, name: &str) {
        locked(&self.parts).remove(name);
    }

    fn give(&self, job: Job) -> Result<()> {
        self.state.failure()?;
        let gone = || Error::failed("the threads that write are gone");
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        *locked(&self.state.open) += 1;
        jobs.send(job).map_err(|_| {
            self.state.close_one();
            gone()
        })
    }

    /// Waits until everything that was given is written: its memory is read.
    fn drain(&self) -> Result<()> {
        let mut open = locked(&self.state.open);
        while *open > 0 {
            open = self.state.none_open.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
        drop(open);
        self.state.failure()
    }

    /// Waits until everything is written; every part must be finished.
    pub fn finish(self: Arc<Self>) -> Result<Vec<(String, Finished)>> {
        let parts = std::mem::take(&mut *locked(&self.parts));
        let finished = parts.into_iter().map(|(name, part)| match part {
            Some(part) => Ok((name, part)),
            None => Err(Error::failed(format!("part {name} was begun and not finished"))),
        });
        let finished = finished.collect::<Result<_>>()?;
        let mut press = Arc::into_inner(self).ok_or_else(|| Error::failed("a part is still being finished"))?;
        press.wait();
        press.state.failure().map(|()| finished)
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
fn work(queue: &Mutex<Receiver<Job>>, state: &State, is_polite: bool) {
    let mut buffer = Vec::new();
    loop {
        let next = locked(queue).recv();
        let Ok(job) = next else { return };
        if state.failure().is_ok()
            && let Err(error) = polite::piece(is_polite, || job.work(&mut buffer))
        {
            locked(&state.failed).get_or_insert(error);
        }
        state.close_one();
    }
}

/// A part being filled. Its methods may fail because of what was put before.
#[derive(Debug)]
pub struct PartFile {
    press: Arc<Press>,
    part: Arc<Written>,
    /// The first block, kept until the end: a header in it is filled in last.
    first: Block,
    /// The block that is being filled, if it is another one.
    last: Block,
    /// What is to be rewritten of blocks that were given, by leaf.
    changes: BTreeMap<u64, Vec<Change>>,
    bytes: u64,
}

impl PartFile {
    pub fn name(&self) -> &str {
        &self.part.name
    }

    /// Bytes put so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (block, room) = self.room();
            let (fits, rest) = bytes.split_at(bytes.len().min(room));
            block.push_bytes(fits);
            self.advance(fits.len())?;
            bytes = rest;
        }
        Ok(())
    }

    /// Puts what is at these addresses now, or when a thread comes to read it.
    pub fn put_memory(&mut self, memory: &Arc<dyn Memory>, mut span: Range<u64>) -> Result<()> {
        while !span.is_empty() {
            let (block, room) = self.room();
            let end = span.end.min(span.start + room as u64);
            block.push_memory(memory, span.start..end);
            self.advance((end - span.start) as usize)?;
            span.start = end;
        }
        Ok(())
    }

    /// The block to fill and how much it still takes.
    fn room(&mut self) -> (&mut Block, usize) {
        let block = if self.first.bytes < BLOCK {
            &mut self.first
        } else {
            &mut self.last
        };
        let room = BLOCK - block.bytes;
        (block, room)
    }

    fn advance(&mut self, bytes: usize) -> Result<()> {
        self.bytes += bytes as u64;
        if self.last.bytes == BLOCK {
            self.give_last()?;
        }
        Ok(())
    }

    fn give_last(&mut self) -> Result<()> {
        let at = (self.bytes - 1) / BLOCK as u64;
        let last = std::mem::take(&mut self.last);
        self.give(at, last)
    }

    fn give(&self, at: u64, block: Block) -> Result<()> {
        let length = self.bytes;
        self.give_task(Task::Write { at, length, block })
    }

    fn give_task(&self, task: Task) -> Result<()> {
        let part = Arc::clone(&self.part);
        self.press.give(Job { part, task })
    }

    /// Waits until all memory that was put is read.
    pub fn settle(&mut self) -> Result<()> {
        self.first.settle()?;
        self.last.settle()?;
        self.press.drain()?;
        // Zeroes at its end were not written: the file is shorter yet than what is changed.
        let sized = self.part.file.set_len(self.bytes);
        sized.or_fail(|| cannot_write(&self.part.name))?;
        self.give_changes()?;
        self.press.drain()
    }

    /// Puts on disk what is settled, and reads it back: only what is written later is
    /// left to be.
    pub fn prove(&self) -> Result<()> {
        let sized = self.part.file.set_len(self.bytes);
        let synced = sized.and_then(|()| self.part.file.sync_data());
        synced.or_fail(|| cannot_write(&self.part.name))?;
        let blocks: Vec<u64> = locked(&self.part.leaves).keys().copied().collect();
        for block in blocks {
            self.give_task(Task::Prove { block })?;
        }
        self.press.drain()
    }

    /// Puts whole pages in the place of others that were put, and settled, before.
    /// The memory is read now, or when a thread comes to it.
    pub fn rewrite(&mut self, mut at: u64, memory: &Arc<dyn Memory>, mut span: Range<u64>) -> Result<()> {
        while !span.is_empty() {
            let leaf = at / LEAF as u64;
            let end = span.end.min(span.start + (leaf + 1) * LEAF as u64 - at);
            let part = span.start..end;
            let (block, offset) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            if block == 0 {
                Self::change(&mut self.first, offset, memory, part)?;
            } else if self.last.bytes > 0 && block == (self.bytes - 1) / BLOCK as u64 {
                Self::change(&mut self.last, offset, memory, part)?;
            } else {
                let change = Change {
                    offset: (at % LEAF as u64) as usize,
                    memory: Arc::clone(memory),
                    span: part,
                };
                self.changes.entry(leaf).or_default().push(change);
            }
            at += end - span.start;
            span.start = end;
        }
        Ok(())
    }

    /// Nothing is stored there any more.
    pub fn erase(&mut self, at: u64, bytes: u64) -> Result<()> {
        let nothing: Arc<dyn Memory> = Arc::new(Nothing);
        self.rewrite(at, &nothing, 0..bytes)
    }

    fn change(block: &mut Block, offset: usize, memory: &Arc<dyn Memory>, span: Range<u64>) -> Result<()> {
        block.settle()?;
        let bytes = (span.end - span.start) as usize;
        match block.pieces.first_mut() {
            Some(Piece::Bytes(all)) if offset + bytes <= all.len() => memory.read(&[span], &mut all[offset..][..bytes]),
            _ => Err(Error::failed("memory is rewritten that was not put")),
        }
    }

    /// Gives what is to be rewritten, which nobody else may be writing.
    fn give_changes(&mut self) -> Result<()> {
        for (leaf, changes) in std::mem::take(&mut self.changes) {
            self.give_task(Task::Rewrite { leaf, changes })?;
        }
        Ok(())
    }

    /// Throws the part away.
    pub fn forget(self) {
        self.press.forget(&self.part.name);
    }

    /// Other first bytes than were put.
    pub fn replace_start(&mut self, bytes: &[u8]) {
        if let Some(Piece::Bytes(start)) = self.first.pieces.first_mut() {
            start[..bytes.len()].copy_from_slice(bytes);
        }
    }

    /// Gives the rest, which is written when the press has finished.
    pub fn finish(mut self) -> Result<()> {
        self.part
            .file
            .set_len(self.bytes)
            .or_fail(|| cannot_write(&self.part.name))?;
        self.give_changes()?;
        if self.last.bytes > 0 {
            self.give_last()?;
        }
        let first = std::mem::take(&mut self.first);
        self.give(0, first)?;
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
    use super::super::PAGE;
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
                digest::merged(&finished.part.leaves()),
                blake3::hash(&back),
                "{size} in pieces of {piece}"
            );
        }
    }

    /// Each address holds a byte that tells it; page 3 is zero.
    #[derive(Debug)]
    struct Told;

    fn told(address: u64) -> u8 {
        if address / PAGE == 3 { 0 } else { (address % 251) as u8 }
    }

    impl Memory for Told {
        fn read(&self, spans: &[Range<u64>], buffer: &mut [u8]) -> Result<()> {
            let addresses = spans.iter().cloned().flatten();
            buffer
                .iter_mut()
                .zip(addresses)
                .for_each(|(byte, address)| *byte = told(address));
            Ok(())
        }
    }

    #[test]
    fn memory_is_read_in_its_order() {
        let memory: Arc<dyn Memory> = Arc::new(Told);
        let spans = [
            PAGE..6 * PAGE,
            9 * PAGE..10 * PAGE + 3 * BLOCK as u64,
            1 << 30..(1 << 30) + PAGE,
        ];
        let press = Arc::new(Press::start().unwrap());
        let mut part = press.begin("x", tempfile::tempfile).unwrap();
        part.put(&[7; PAGE as usize]).unwrap();
        for span in &spans {
            part.put_memory(&memory, span.clone()).unwrap();
        }
        part.put(b"end").unwrap();
        part.replace_start(&[8]);
        part.finish().unwrap();
        let (_, finished) = press.finish().unwrap().remove(0);
        let mut expected = vec![7; PAGE as usize];
        expected[0] = 8;
        expected.extend(spans.into_iter().flatten().map(told));
        expected.extend(b"end");
        let mut back = vec![0; expected.len()];
        finished.part.file.read_exact_at(&mut back, 0).unwrap();
        assert!(back == expected);
        assert_eq!(digest::merged(&finished.part.leaves()), blake3::hash(&back));
    }

    /// In the first block, in blocks that are written, in the last one.
    #[test]
    fn what_is_rewritten_has_its_digest() {
        let memory: Arc<dyn Memory> = Arc::new(Told);
        let mut expected: Vec<u8> = (0..3 * BLOCK + 3 * LEAF).map(|i| (i * 31 % 251) as u8 | 1).collect();
        let press = Arc::new(Press::start().unwrap());
        let mut part = press.begin("x", tempfile::tempfile).unwrap();
        part.put(&expected).unwrap();
        part.settle().unwrap();
        let places = [1, 14, 256, 271, 300, 768, 769].map(|page| (page * PAGE, PAGE..6 * PAGE));
        for (at, span) in &places {
            part.rewrite(*at, &memory, span.clone()).unwrap();
        }
        for (at, span) in places {
            let new: Vec<u8> = span.map(told).collect();
            expected[at as usize..at as usize + new.len()].copy_from_slice(&new);
        }
        part.erase(400 * PAGE, 40 * PAGE).unwrap();
        expected[400 * PAGE as usize..440 * PAGE as usize].fill(0);
        part.put(b"end").unwrap();
        expected.extend(b"end");
        part.finish().unwrap();
        let (_, finished) = press.finish().unwrap().remove(0);
        let mut back = vec![0; expected.len()];
        finished.part.file.read_exact_at(&mut back, 0).unwrap();
        assert!(back == expected);
        assert_eq!(digest::merged(&finished.part.leaves()), blake3::hash(&back));
        let blocks = std::os::unix::fs::MetadataExt::blocks(&finished.part.file.metadata().unwrap());
        assert!(
            blocks * 512 <= expected.len() as u64 - 40 * PAGE,
            "{blocks}: erased pages are holes"
        );
    }

    /// A change on disk must not get a digest of its own by a rewrite beside it.
    #[test]
    fn what_was_damaged_is_not_rewritten() {
        let memory: Arc<dyn Memory> = Arc::new(Told);
        let press = Arc::new(Press::start().unwrap());
        let mut part = press.begin("2.core", tempfile::tempfile).unwrap();
        part.put(&vec![1; 3 * BLOCK]).unwrap();
        part.settle().unwrap();
        part.part.file.write_all_at(b"\0", BLOCK as u64 + 9).unwrap();
        part.rewrite(BLOCK as u64 + PAGE, &memory, PAGE..2 * PAGE).unwrap();
        let finished = part.finish().and_then(|()| press.finish().map(drop));
        let error = finished.unwrap_err();
        assert!(error.to_string().contains("reads back other"), "{error}");
    }

    /// What was read back once is read again where it was rewritten, and nowhere else.
    #[test]
    fn what_is_rewritten_is_read_back_again() {
        let memory: Arc<dyn Memory> = Arc::new(Told);
        let press = Arc::new(Press::start().unwrap());
        let mut part = press.begin("2.core", tempfile::tempfile).unwrap();
        part.put(&vec![1; 4 * BLOCK]).unwrap();
        part.settle().unwrap();
        part.prove().unwrap();
        let (block, leaf) = (BLOCK as u64, LEAF as u64);
        part.rewrite(block + PAGE, &memory, PAGE..2 * PAGE).unwrap();
        part.settle().unwrap();
        let mut read = Vec::new();
        for at in [block + 9, block + leaf + 9] {
            part.part.file.write_all_at(b"\0", at).unwrap();
            read.push(part.part.prove(1, u64::MAX, &mut [0; LEAF]).is_ok());
            part.part.file.write_all_at(b"\x01", at).unwrap();
        }
        assert_eq!(read, [false, true]);
        part.part.prove(1, u64::MAX, &mut [0; LEAF]).unwrap();
        part.finish().unwrap();
        press.finish().unwrap();
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
