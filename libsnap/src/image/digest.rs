//! BLAKE3 over large files, at the speed of memory.
//!
//! BLAKE3 is a tree: aligned *leaves* of a power-of-two size can be hashed apart
//! and merged. Reading uses that to let each thread hash what is still in its
//! cache, and to verify one leaf without the others. Writing uses it too, and to
//! hash memory pages before the file header in front of them is known.

use super::source::Source;
pub use blake3::hazmat::ChainingValue;
use blake3::hazmat::{self, HasherExt, Mode};
use blake3::{Hash, Hasher};
use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

/// What one thread takes at a time: whole leaves.
pub const BLOCK: usize = 1 << 20;
/// What is hashed as one subtree, and can be verified alone.
pub const LEAF: usize = 64 << 10;
/// What is read at once: small enough to be hashed out of the L2 cache.
pub const STEP: usize = 2 * LEAF;
/// More threads gain nothing: memory bandwidth is the limit then.
const THREADS_MAX: usize = 8;

/// As many threads as help. The library reads several files for it: it is asked once.
pub fn processors() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX))
}

/// Digest of the first `bytes` of a source.
pub fn of(source: &(impl Source + ?Sized), bytes: u64) -> io::Result<Hash> {
    let leaves = of_all(&[bytes], processors(), |_, at, buffer| source.fill_at(buffer, at))?;
    Ok(merged(&leaves[0]))
}

/// The leaves of sources of these lengths, by up to `threads` threads. `fetch`
/// fills a buffer from source N at an offset. Each byte is fetched once; all
/// but the last buffer of a source are of the same length, a multiple of the
/// page size. The first error ends it.
pub fn of_all<E: Send>(
    lengths: &[u64],
    threads: usize,
    fetch: impl Fn(usize, u64, &mut [u8]) -> Result<(), E> + Sync,
) -> Result<Vec<Vec<ChainingValue>>, E> {
    let plan = Plan::new(lengths);
    let hashed = share_out(plan.end(), threads, |number, buffer| plan.hash(number, buffer, &fetch))?;
    let mut blocks = hashed.into_iter();
    let counts = plan.starts.windows(2).map(|bound| (bound[1] - bound[0]) as usize);
    Ok(counts
        .map(|count| blocks.by_ref().take(count).flatten().collect())
        .collect())
}

/// Has up to `threads` threads do the work of each number below `count`, with a
/// buffer of [`STEP`] bytes. The first error ends it.
pub fn share_out<T: Send, E: Send>(
    count: u64,
    threads: usize,
    work: impl Fn(u64, &mut [u8]) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let next = AtomicU64::new(0);
    let take = || {
        let mut buffer = vec![0; STEP];
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(done);
            }
            let result = work(number, &mut buffer).inspect_err(|_| {
                // Nobody needs the rest.
                next.store(count, Ordering::Relaxed);
            })?;
            done.push((number, result));
        }
    };
    let helpers = count.min(threads as u64).saturating_sub(1);
    let mut all = thread::scope(|scope| {
        // Without a helper it only takes longer.
        let help = |_| thread::Builder::new().spawn_scoped(scope, take).ok();
        let helpers: Vec<_> = (0..helpers).map_while(help).collect();
        let mut all = take()?;
        for helper in helpers {
            all.append(&mut helper.join().expect("hashing does not panic")?);
        }
        Ok(all)
    })?;
    all.sort_unstable_by_key(|(number, _)| *number);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}

/// What is hashed at a time, by number: the blocks of all sources, one after another.
struct Plan<'a> {
    lengths: &'a [u64],
    /// The number of each source's first block, and the end.
    starts: Vec<u64>,
}

/// At least one: nothing has a digest too.
pub fn block_count(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK as u64).max(1)
}

impl Plan<'_> {
    fn new(lengths: &[u64]) -> Plan<'_> {
        let mut starts = vec![0];
        starts.extend(lengths.iter().scan(0u64, |end, bytes| {
            *end += block_count(*bytes);
            Some(*end)
        }));
        Plan { lengths, starts }
    }

    fn end(&self) -> u64 {
        self.starts[self.lengths.len()]
    }

    fn hash<E>(
        &self,
        number: u64,
        buffer: &mut [u8],
        fetch: impl Fn(usize, u64, &mut [u8]) -> Result<(), E>,
    ) -> Result<Vec<ChainingValue>, E> {
        let source = self.starts.partition_point(|start| *start <= number) - 1;
        let length = self.lengths[source];
        let start = (number - self.starts[source]) * BLOCK as u64;
        let end = length.min(start + BLOCK as u64);
        let mut leaves = Vec::with_capacity(BLOCK / LEAF);
        // Nothing has a leaf too.
        for at in (start..end.max(start + 1)).step_by(STEP) {
            let step = (end - at).min(STEP as u64) as usize;
            fetch(source, at, &mut buffer[..step])?;
            leaves.extend(self::leaves(at, &buffer[..step], length));
        }
        Ok(leaves)
    }
}

/// How many leaves a source of this length has: at least one.
pub fn leaf_count(length: u64) -> u64 {
    length.div_ceil(LEAF as u64).max(1)
}

/// The leaves of these bytes, which begin a leaf at offset `at` of a source of
/// `length` bytes. All but the last one of the source are full.
pub fn leaves(at: u64, bytes: &[u8], length: u64) -> impl Iterator<Item = ChainingValue> {
    let whole = length <= LEAF as u64;
    let offsets = (at..at + bytes.len().max(1) as u64).step_by(LEAF);
    offsets.map(move |offset| {
        let start = (offset - at) as usize;
        let mut hasher = Hasher::new();
        hasher.set_input_offset(offset);
        hasher.update(&bytes[start..bytes.len().min(start + LEAF)]);
        match whole {
            true => *hasher.finalize().as_bytes(),
            false => hasher.finalize_non_root(),
        }
    })
}

/// The digest of a source by its leaves.
pub fn merged(leaves: &[ChainingValue]) -> Hash {
    match leaves {
        [whole] => Hash::from_bytes(*whole),
        many => merge_root(many),
    }
}

/// Merges at least two leaves, of which all but the last are full.
fn merge_root(values: &[ChainingValue]) -> Hash {
    let (left, right) = values.split_at(left_leaves(values.len()));
    hazmat::merge_subtrees_root(&merge(left), &merge(right), Mode::Hash)
}

fn merge(values: &[ChainingValue]) -> ChainingValue {
    if let [value] = values {
        return *value;
    }
    let (left, right) = values.split_at(left_leaves(values.len()));
    hazmat::merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
}

/// The left subtree has the largest power of two that leaves something right.
fn left_leaves(leaves: usize) -> usize {
    leaves.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes at which the tree changes its shape.
    #[test]
    fn equals_the_plain_digest() {
        let data: Vec<u8> = (0..5 * BLOCK + 77).map(|i| (i * 31 % 251) as u8).collect();
        for blocks in 0..=5 {
            for extra in [0, 1, 1024, 1025, 4096 + 7, LEAF, LEAF + 1, 3 * LEAF] {
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
        let lengths: [u64; 6] = std::array::from_fn(|at| data[at].len() as u64);
        let fetched = AtomicU64::new(0);
        let leaves = of_all(&lengths, 3, |at, offset, buffer: &mut [u8]| {
            fetched.fetch_add(buffer.len() as u64, Ordering::Relaxed);
            data[at].fill_at(buffer, offset)
        });
        let plain: Vec<Hash> = data.iter().map(|d| blake3::hash(d)).collect();
        let leaves = leaves.unwrap();
        let counts: Vec<u64> = leaves.iter().map(|l| l.len() as u64).collect();
        assert_eq!(counts, lengths.map(leaf_count));
        let hashes: Vec<Hash> = leaves.iter().map(|leaves| merged(leaves)).collect();
        assert_eq!(hashes, plain);
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
