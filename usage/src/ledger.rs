//! Writing the ledger: one process, one batch at a time.
//!
//! ```text
//!   append ──> waiting ──sync──> encode, write, fdatasync ──> it stands
//!                 ^                        │ error: the file is cut back to what stood,
//!                 └────────────────────────┘ the batch waits, less what is outdated
//! ```

use crate::books::Books;
use crate::read::{self, DIRECTORY, Entry, segment_path, segments};
use crate::record;
use crate::record::{Body, Checkpoint, End, Gap, Hash, Head, Moment, Record, Use, VERSION, hex};
use ed25519_dalek::{Signer, SigningKey};
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::identity::{random, uuid};
use libsnap::store::{Lock, directory, sync_parent};
use std::collections::{HashMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A longer segment is followed by another one.
const SEGMENT_BYTES: u64 = 16 << 20;

/// What a checkpoint signs: this, and the hash before it.
pub const SIGNED: &[u8] = b"appshot-ledger-1";

#[derive(Debug)]
pub struct Ledger {
    usage: PathBuf,
    node: String,
    boot_id: String,
    key: SigningKey,
    file: File,
    segment: u64,
    /// Where the file ends, what its last line hashes to, the next number: as synced.
    length: u64,
    hash: Hash,
    seq: u64,
    waiting: Vec<(Moment, Body)>,
    books: Books,
    /// Accounts that have ended lately.
    ended: HashSet<String>,
    segment_bytes: u64,
    _only: Lock,
}

/// What was found when the ledger was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    pub records: u64,
    /// Of a torn last line that was cut off.
    pub cut_bytes: u64,
}

impl Ledger {
    /// Opens the ledger below `usage` for writing; makes it, with a name and a key for
    /// this node, where there is none. A second writer is refused.
    pub fn open(usage: &Path, boot_id: &str, now: Moment) -> Result<(Ledger, Found)> {
        directory(&usage.join(DIRECTORY), 0o700)?;
        let only = Lock::try_take(&usage.join("lock"))?.ok_or_else(|| {
            Error::new(
                Kind::Conflict,
                format!("cannot write the ledger in {}", usage.display()),
            )
            .because("another process does")
            .fix("stop the other perfd")
        })?;
        let node = named(usage)?;
        let key = key(usage)?;
        let (mut books, mut ended) = (Books::default(), HashSet::new());
        let Some((segment, reached)) = last(usage, &mut books, &mut ended)? else {
            let ledger = Ledger::first(usage, node, boot_id, key, now, only)?;
            return Ok((ledger, Found::default()));
        };
        books.begin();
        if reached.node.as_ref() != Some(&node) {
            return Err(
                Error::failed(format!("the ledger in {} is another node's", usage.display()))
                    .because(format!(
                        "it is of node {}, this is node {node}",
                        reached.node.unwrap_or_default()
                    ))
                    .fix("move it elsewhere, or bring its own files `node` and `key` back"),
            );
        }
        if reached.key != hex(key.verifying_key().as_bytes()) {
            return Err(
                Error::failed(format!("the ledger in {} is signed with another key", usage.display()))
                    .because("the file `key` is not the one that it was begun with")
                    .fix("bring that file back, or move the ledger elsewhere"),
            );
        }
        for closed in segments(usage)?.into_iter().filter(|number| *number < segment) {
            pack(usage, closed)?;
        }
        let path = segment_path(usage, segment);
        let what = || format!("cannot open {}", path.display());
        let mut file = OpenOptions::new().write(true).open(&path).or_fail(what)?;
        let length = reached.end.offset;
        if reached.torn_bytes > 0 {
            file.set_len(length).and_then(|()| file.sync_all()).or_fail(what)?;
        }
        file.seek(SeekFrom::Start(length)).or_fail(what)?;
        let found = Found {
            records: reached.records,
            cut_bytes: reached.torn_bytes,
        };
        let ledger = Ledger {
            usage: usage.to_owned(),
            node,
            boot_id: boot_id.to_owned(),
            key,
            file,
            segment,
            length,
            hash: reached.hash,
            seq: reached.next_seq,
            waiting: Vec::new(),
            books,
            ended,
            segment_bytes: SEGMENT_BYTES,
            _only: only,
        };
        Ok((ledger, found))
    }

    fn first(usage: &Path, node: String, boot_id: &str, key: SigningKey, now: Moment, only: Lock) -> Result<Ledger> {
        let mut ledger = Ledger {
            usage: usage.to_owned(),
            node,
            boot_id: boot_id.to_owned(),
            key,
            file: File::open("/dev/null").or_fail(|| "cannot open /dev/null")?,
            segment: 0,
            length: 0,
            hash: Hash::default(),
            seq: 0,
            waiting: Vec::new(),
            books: Books::default(),
            ended: HashSet::new(),
            segment_bytes: SEGMENT_BYTES,
            _only: only,
        };
        ledger.next_segment(now)?;
        Ok(ledger)
    }

    /// Shorter segments, for trials.
    #[must_use]
    pub fn with_segments_of(mut self, bytes: u64) -> Ledger {
        self.segment_bytes = bytes;
        self
    }

    pub fn node(&self) -> &str {
        &self.node
    }

    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    /// The accounts that have not ended, with what waits to be written.
    pub fn books(&self) -> &Books {
        &self.books
    }

    /// To be written with the next [`Ledger::sync`].
    pub fn append(&mut self, at: Moment, body: Body) {
        if let Body::End(end) = &body {
            self.ended.insert(end.id.clone());
        }
        self.books.note(&body);
        self.waiting.push((at, body));
    }

    /// The number of the next record.
    pub fn next_seq(&self) -> u64 {
        self.seq
    }

    /// Whether an account has ended since [`Ledger::forget_ended`], or shortly before the
    /// ledger was opened.
    pub fn has_ended(&self, id: &str) -> bool {
        self.ended.contains(id)
    }

    /// Nobody will tell of them any more.
    pub fn forget_ended(&mut self) {
        self.ended.clear();
    }

    /// Signs what stands then.
    pub fn checkpoint(&mut self, at: Moment) {
        let signature = String::new();
        self.append(at, Body::Checkpoint(Checkpoint { signature }));
    }

    /// Returns when all that was appended is on the disk, with it. Where that fails it waits
    /// for the next time, and what is there is as it was.
    pub fn sync(&mut self, now: Moment) -> Result<Vec<(Moment, Body)>> {
        if self.waiting.is_empty() {
            return Ok(Vec::new());
        }
        let (bytes, hash, seq) = self.encode(&self.waiting, self.hash, self.seq)?;
        let written = self.file.write_all(&bytes).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            self.retreat(now, &error);
            return Err(Error::failed(format!(
                "cannot write the ledger {}",
                segment_path(&self.usage, self.segment).display()
            ))
            .because(error)
            .fix("make room on its file system")
            .state("apps run on; what they use is counted, and written as soon as that works"));
        }
        self.length += bytes.len() as u64;
        (self.hash, self.seq) = (hash, seq);
        let written = std::mem::take(&mut self.waiting);
        if self.length > self.segment_bytes {
            self.next_segment(now)?;
        }
        Ok(written)
    }

    fn encode(&self, batch: &[(Moment, Body)], mut hash: Hash, mut seq: u64) -> Result<(Vec<u8>, Hash, u64)> {
        let mut bytes = Vec::new();
        for (at, body) in batch {
            let body = match body {
                Body::Checkpoint(_) => Body::Checkpoint(sign(&self.key, &hash)),
                body => body.clone(),
            };
            let record = Record {
                v: VERSION,
                seq,
                boot_ns: at.boot_ns,
                unix_ms: at.unix_ms,
                body,
            };
            let (line, next) = record::write(&record, &hash)?;
            bytes.extend_from_slice(&line);
            hash = next;
            seq += 1;
        }
        Ok((bytes, hash, seq))
    }

    /// Cuts off what was half written. Of each account the newest counters wait.
    fn retreat(&mut self, now: Moment, error: &std::io::Error) {
        let cut = self.file.set_len(self.length);
        let cut = cut.and_then(|()| self.file.seek(SeekFrom::Start(self.length)));
        if let Err(error) = cut {
            tracing::error!(%error, "the ledger's torn end stays until perfd starts again");
        }
        let mut newest: HashMap<&String, usize> = HashMap::new();
        for (index, (_, body)) in self.waiting.iter().enumerate() {
            if let Body::Use(Use { id, .. }) | Body::End(End { id, .. }) = body {
                newest.insert(id, index);
            }
        }
        let keep: Vec<bool> = self
            .waiting
            .iter()
            .enumerate()
            .map(|(index, (_, body))| match body {
                Body::Use(used) => newest.get(&used.id) == Some(&index),
                Body::Node(_) | Body::Checkpoint(_) => false,
                _ => true,
            })
            .collect();
        let mut keep = keep.into_iter();
        self.waiting.retain(|_| keep.next().unwrap_or(true));
        let is_told = |(_, body): &(Moment, Body)| matches!(body, Body::Gap(Gap { id: None, .. }));
        if !self.waiting.iter().any(is_told) {
            let reason = format!("the ledger could not be written: {error}");
            let gap = Gap {
                id: None,
                ns: None,
                reason,
            };
            self.waiting.push((now, Body::Gap(gap)));
        }
    }

    /// Ends this segment and begins the next with all accounts that are open. Visible
    /// once it is whole.
    fn next_segment(&mut self, now: Moment) -> Result<()> {
        let number = self.segment + 1;
        let head = Head {
            node: self.node.clone(),
            segment: number,
            prev: hex(&self.hash),
            key: hex(self.key.verifying_key().as_bytes()),
            boot_id: self.boot_id.clone(),
            kept: None,
        };
        let mut batch = vec![(now, Body::Head(head))];
        let carried = self.books.accounts().into_iter();
        batch.extend(carried.map(|account| (now, Body::Account(Box::new(account)))));
        let signature = String::new();
        batch.push((now, Body::Checkpoint(Checkpoint { signature })));
        let (bytes, hash, seq) = self.encode(&batch, self.hash, self.seq)?;

        let path = segment_path(&self.usage, number);
        let what = || format!("cannot make {}", path.display());
        let temporary = path.with_file_name(".next");
        let mut file = private(&temporary).or_fail(what)?;
        file.write_all(&bytes)
            .and_then(|()| file.sync_all())
            .and_then(|()| std::fs::rename(&temporary, &path))
            .or_fail(what)?;
        // From now on it is there, and nothing may be appended to the one before.
        (self.file, self.segment) = (file, number);
        (self.length, self.hash, self.seq) = (bytes.len() as u64, hash, seq);
        sync_parent(&path).or_fail(what)?;
        match number {
            1 => Ok(()),
            _ => pack(&self.usage, number - 1),
        }
    }
}

/// Signs the hash of the line before.
pub(crate) fn sign(key: &SigningKey, hash: &Hash) -> Checkpoint {
    let signature = key.sign(&[SIGNED, hash].concat());
    Checkpoint {
        signature: hex(&signature.to_bytes()),
    }
}

/// Compresses a segment that is complete; it is there all the time, whole.
fn pack(usage: &Path, number: u64) -> Result<()> {
    let (plain, packed) = (segment_path(usage, number), read::packed_path(usage, number));
    if !plain.exists() {
        return Ok(());
    }
    let what = || format!("cannot pack {}", plain.display());
    // One that is there is whole: it has got its name last.
    if !packed.exists() {
        let mut from = File::open(&plain).or_fail(what)?;
        write_packed(&packed, ".packed", &mut from)?;
    }
    std::fs::remove_file(&plain).or_fail(what)
}

/// Writes a packed segment; under its name it is whole.
pub(crate) fn write_packed(packed: &Path, temporary: &str, from: &mut dyn Read) -> Result<()> {
    let what = || format!("cannot write {}", packed.display());
    let temporary = packed.with_file_name(temporary);
    let mut file = private(&temporary).or_fail(what)?;
    let mut encoder = zstd::Encoder::new(&mut file, 0).or_fail(what)?;
    encoder
        .include_checksum(true)
        .and_then(|()| std::io::copy(from, &mut encoder))
        .and_then(|_| encoder.finish().map(drop))
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, packed))
        .and_then(|()| sync_parent(packed))
        .or_fail(what)
}

/// The last segment, read, and who has ended in it and in the one before.
fn last(usage: &Path, books: &mut Books, ended: &mut HashSet<String>) -> Result<Option<(u64, read::Reached)>> {
    let Some(number) = segments(usage)?.pop() else {
        return Ok(None);
    };
    let from = number.saturating_sub(1).max(1);
    let reached = read::read(usage, from, &mut |entry: &Entry| {
        if let Body::End(end) = &entry.record.body {
            ended.insert(end.id.clone());
        }
        books.take(&entry.record);
        Ok(())
    })?;
    match reached.records {
        // It became visible whole: this was not us.
        0 => Err(read::damaged(reached.end, "the segment has no head")),
        _ => Ok(Some((number, reached))),
    }
}

/// The name of this node.
fn named(usage: &Path) -> Result<String> {
    let path = usage.join("node");
    let what = || format!("cannot read {}", path.display());
    if !path.exists() {
        keep(&path, uuid()?.as_bytes())?;
    }
    let name = std::fs::read_to_string(&path).or_fail(what)?.trim().to_owned();
    match !name.is_empty() && name.len() <= 64 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    {
        true => Ok(name),
        false => Err(Error::failed(what()).because("it holds no name of a node")),
    }
}

pub(crate) fn key(usage: &Path) -> Result<SigningKey> {
    let path = usage.join("key");
    let what = || format!("cannot read {}", path.display());
    if !path.exists() {
        keep(&path, &random::<32>()?)?;
    }
    let mut bytes = Vec::new();
    let file = File::open(&path).or_fail(what)?;
    file.take(33).read_to_end(&mut bytes).or_fail(what)?;
    let bytes: [u8; 32] = bytes
        .try_into()
        .map_err(|_| Error::failed(what()).because("a key has 32 bytes"))?;
    Ok(SigningKey::from_bytes(&bytes))
}

fn private(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Writes a file that stays.
fn keep(path: &Path, bytes: &[u8]) -> Result<()> {
    let what = || format!("cannot write {}", path.display());
    let temporary = path.with_extension("tmp");
    let mut file = private(&temporary).or_fail(what)?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| std::fs::rename(&temporary, path))
        .and_then(|()| sync_parent(path))
        .or_fail(what)
}

#[cfg(test)]
mod tests;
