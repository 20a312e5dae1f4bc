//! BLAKE3 over large files, at the speed of memory.
//!
//! BLAKE3 is a tree: aligned blocks of a power-of-two size can be hashed apart
//! and merged. Reading uses that to let each thread hash a block while it is
//! still in its cache. Writing uses it too, and to hash memory pages before the
//! file header in front of them is known.

use super::source::Source;
pub use blake3::hazmat::ChainingValue;
use blake3::hazmat::{self, HasherExt, Mode};
use blake3::{Hash, Hasher};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// What is hashed as one subtree.
pub const BLOCK: usize = 1 << 20;
/// What is read at once: small enough to be hashed out of the L2 cache.
const STEP: usize = 128 << 10;
/// More threads gain nothing: memory bandwidth is the limit then.
const THREADS_MAX: usize = 8;

/// As many threads as help.
pub fn processors() -> usize {
    thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX)
}

/// Digest of the first `bytes` of a source.
pub fn of(source: &(impl Source + ?Sized), bytes: u64) -> io::Result<Hash> {
    let mut hashes = of_all(&[bytes], processors(), |_, at, buffer| source.fill_at(buffer, at))?;
    Ok(hashes.remove(0))
}

/// Digests of sources of these lengths, by up to `threads` threads. `fetch`
/// fills a buffer from source N at an offset. Each byte is fetched once; all
/// but the last buffer of a source are of the same length, a multiple of the
/// page size. The first error ends it.
pub fn of_all<E: Send>(
    lengths: &[u64],
    threads: usize,
    fetch: impl Fn(usize, u64, &mut [u8]) -> Result<(), E> + Sync,
) -> Result<Vec<Hash>, E> {
    let plan = Plan::new(lengths);
    let next = AtomicU64::new(0);
    let work = || plan.work(&next, &fetch);
    let helpers = plan.end().min(threads as u64).saturating_sub(1);
    let mut hashed = thread::scope(|scope| {
        // Without a helper it only takes longer.
        let help = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (0..helpers).map_while(help).collect();
        let mut all = work()?;
        for helper in helpers {
            all.append(&mut helper.join().expect("hashing does not panic")?);
        }
        Ok(all)
    })?;
    hashed.sort_unstable_by_key(|(unit, _)| *unit);
    let values: Vec<ChainingValue> = hashed.into_iter().map(|(_, value)| value).collect();
    let bounds = plan.starts.windows(2);
    Ok(bounds
        .map(|bound| merged(&values[bound[0] as usize..bound[1] as usize]))
        .collect())
}

/// What is hashed at a time, by number: the blocks of all sources, one after another.
struct Plan<'a> {
    lengths: &'a [u64],
    /// The number of each source's first block, and the end.
    starts: Vec<u64>,
}

/// At least one: nothing has a digest too.
fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK as u64).max(1)
}

impl Plan<'_> {
    fn new(lengths: &[u64]) -> Plan<'_> {
        let mut starts = vec![0];
        starts.extend(lengths.iter().scan(0u64, |end, bytes| {
            *end += blocks(*bytes);
            Some(*end)
        }));
        Plan { lengths, starts }
    }

    fn end(&self) -> u64 {
        self.starts[self.lengths.len()]
    }

    /// Takes blocks until none is left.
    fn work<E>(
        &self,
        next: &AtomicU64,
        fetch: impl Fn(usize, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Vec<(u64, ChainingValue)>, E> {
        let mut buffer = vec![0; STEP];
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= self.end() {
                return Ok(done);
            }
            let value = self.hash(number, &mut buffer, &fetch).inspect_err(|_| {
                // Nobody needs the rest.
                next.store(self.end(), Ordering::Relaxed);
            })?;
            done.push((number, value));
        }
    }

    fn hash<E>(
        &self,
        number: u64,
        buffer: &mut [u8],
        fetch: impl Fn(usize, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<ChainingValue, E> {
        let source = self.starts.partition_point(|start| *start <= number) - 1;
        let block = number - self.starts[source];
        let start = block * BLOCK as u64;
        let end = self.lengths[source].min(start + BLOCK as u64);
        let mut hasher = block_hasher(block);
        for at in (start..end).step_by(STEP) {
            let step = (end - at).min(STEP as u64) as usize;
            fetch(source, at, &mut buffer[..step])?;
            hasher.update(&buffer[..step]);
        }
        Ok(closed(&hasher, blocks(self.lengths[source]) == 1))
    }
}

/// What a block of a source adds to its digest; `whole` where it is all of it.
pub fn of_block(block: u64, bytes: &[u8], whole: bool) -> ChainingValue {
    let mut hasher = block_hasher(block);
    hasher.update(bytes);
    closed(&hasher, whole)
}

fn closed(hasher: &Hasher, whole: bool) -> ChainingValue {
    if whole {
        *hasher.finalize().as_bytes()
    } else {
        hasher.finalize_non_root()
    }
}

/// The digest of a source by its blocks.
pub fn merged(values: &[ChainingValue]) -> Hash {
    match values {
        [whole] => Hash::from_bytes(*whole),
        many => merge_root(many),
    }
}

fn block_hasher(block: u64) -> Hasher {
    let mut hasher = Hasher::new();
    hasher.set_input_offset(block * BLOCK as u64);
    hasher
}

/// Merges at least two blocks, of which all but the last are full.
fn merge_root(values: &[ChainingValue]) -> Hash {
    let (left, right) = values.split_at(left_blocks(values.len()));
    hazmat::merge_subtrees_root(&merge(left), &merge(right), Mode::Hash)
}

fn merge(values: &[ChainingValue]) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let (left, right) = values.split_at(left_blocks(values.len()));
    hazmat::merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
}

/// The left subtree has the largest power of two that leaves something right.
fn left_blocks(blocks: usize) -> usize {
    blocks.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes at which the tree changes its shape.
    #[test]
    fn equals_the_plain_digest() {
        let data: Vec<u8> = (0..5 * BLOCK + 77).map(|i| (i * 31 % 251) as u8).collect();
        for blocks in 0..=5 {
            for extra in [0, 1, 1024, 1025, 4096 + 7] {
                let length = (blocks * BLOCK + extra).min(data.len());
                let plain = blake3::hash(&data[..length]);
                assert_eq!(of(&data[..length], length as u64).unwrap(), plain, "{length}");
            }
        }
    }

    #[test]
    fn many_at_once_and_each_byte_once() {
        let data: Vec<Vec<u8>> = [0, 5, BLOCK, 3 * BLOCK + 9, 1, 2 * BLOCK]
            .map(|bytes| (0..bytes).map(|i| (i * 31 % 251) as u8).collect())
            .to_vec();
        let lengths: Vec<u64> = data.iter().map(|d| d.len() as u64).collect();
        let fetched = AtomicU64::new(0);
        let hashes = of_all(&lengths, 3, |at, offset, buffer: &mut [u8]| {
            fetched.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            data[at].fill_at(buffer, offset)
        });
        let plain: Vec<Hash> = data.iter().map(|d| blake3::hash(d)).collect();
        assert_eq!(hashes.unwrap(), plain);
        assert_eq!(fetched.into_inner(), lengths.iter().sum::<u64>());
    }

    #[test]
    fn the_first_error_ends_it() {
        let failed = of_all(
            &[1 << 30, 5],
            2,
            |at, _, _: &mut [u8]| if at == 0 { Err("gone") } else { Ok(()) },
        );
        assert_eq!(failed, Err("gone"));
    }

    /// Run with `--release -- --ignored --nocapture` to see the throughput.
    #[test]
    #[ignore = "a measurement"]
    fn throughput() {
        let file = tempfile::tempfile().unwrap();
        let piece: Vec<u8> = (0..BLOCK).map(|i| (i * 31 % 251) as u8).collect();
        for _ in 0..1024 {
            std::io::Write::write_all(&mut &file, &piece).unwrap();
        }
        let many = piece.repeat(128);
        let start = std::time::Instant::now();
        std::hint::black_box(blake3::hash(&many));
        println!("128 MiB of memory hashed by one thread in {:?}", start.elapsed());
        for _ in 0..5 {
            let start = std::time::Instant::now();
            of(&file, 1 << 30).unwrap();
            println!("1 GiB of page cache verified in {:?}", start.elapsed());
        }
    }
}
