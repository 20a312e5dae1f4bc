//! Digests of pieces of an appshot, so that a page can be verified and used before
//! the rest has been read.
//!
//! BLAKE3 is a tree. The part `digests` holds its nodes at 64 KiB: for each other
//! part, in the order of the manifest, one chaining value of 32 bytes per leaf
//! (the part's digest itself where it has one leaf). The manifest seals them.

use super::digest::{self, ChainingValue, LEAF};
use super::fault::{corrupt, ensure, unreadable};
use super::records::Part;
use super::source::Source;
use crate::error::Result;

/// Name of the part.
pub const DIGESTS: &str = "digests";
const VALUE: usize = size_of::<ChainingValue>();

/// The leaves of all parts, back to back.
#[derive(Debug, Default)]
pub struct Leaves(Vec<u8>);

impl Leaves {
    /// Adds those of the next part.
    pub fn push(&mut self, leaves: &[ChainingValue]) {
        self.0.extend(leaves.iter().flatten());
    }

    /// Adds those of the next part, which has this content.
    pub fn push_content(&mut self, content: &[u8]) {
        let own: Vec<ChainingValue> = digest::leaves(0, content, content.len() as u64).collect();
        self.push(&own);
    }

    /// The content of the part.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// How the manifest lists them.
    pub fn part(&self) -> Part {
        Part {
            name: DIGESTS.to_owned(),
            bytes: self.0.len() as u64,
            blake3: blake3::hash(&self.0).to_hex().to_string(),
        }
    }
}

/// The size of the part `digests` for these other parts.
pub fn bytes_for<'a>(parts: impl Iterator<Item = &'a Part>) -> u64 {
    parts.map(|part| digest::leaf_count(part.bytes) * VALUE as u64).sum()
}

/// Verified digests, to hold pieces of parts against. Parts go by their number.
#[derive(Debug)]
pub struct Pieces {
    values: Vec<u8>,
    /// Where each part's leaves begin, and its length; nothing of a part `digests`.
    parts: Vec<Option<(usize, u64)>>,
}

impl Pieces {
    /// Reads the part `digests` and verifies it. Its size has been checked.
    pub fn read(parts: &[Part], source: &(impl Source + ?Sized)) -> Result<Pieces> {
        let (own, others) = parts.split_last().ok_or_else(|| corrupt(DIGESTS, "it is missing"))?;
        let values = source.read_range(0, own.bytes).map_err(|e| unreadable(DIGESTS, e))?;
        ensure(blake3::hash(&values).to_hex().as_str() == own.blake3, DIGESTS, || {
            format!("its {} bytes do not match the digest they were sealed with", own.bytes)
        })?;
        let mut start = 0;
        let mut starts = Vec::with_capacity(parts.len());
        for part in others {
            starts.push(Some((start, part.bytes)));
            start += bytes_for(std::iter::once(part)) as usize;
        }
        starts.push(None);
        Ok(Pieces { values, parts: starts })
    }

    /// Adds a part of another appshot: its number here is the next one.
    pub fn add(&mut self, other: &Pieces, number: usize) {
        let found = other.parts.get(number).copied().flatten();
        let added = found.map(|(start, length)| {
            let bytes = digest::leaf_count(length) as usize * VALUE;
            let own = self.values.len();
            self.values
                .extend_from_slice(other.values.get(start..start + bytes).unwrap_or_default());
            (own, length)
        });
        self.parts.push(added);
    }

    /// Holds bytes of a part against their digests. They begin a leaf at `offset`,
    /// and end one. `part` is its name, for errors.
    pub fn verify(&self, number: usize, part: &str, offset: u64, bytes: &[u8]) -> Result<()> {
        let known = self.parts.get(number).copied().flatten();
        let (start, length) = known.ok_or_else(|| corrupt(DIGESTS, format_args!("nothing about {part}")))?;
        let whole = offset.is_multiple_of(LEAF as u64)
            && (bytes.len().is_multiple_of(LEAF) || offset + bytes.len() as u64 == length);
        let first = start + offset as usize / LEAF * VALUE;
        let mut sealed = self.values.get(first..).unwrap_or_default().chunks_exact(VALUE);
        let mut found = digest::leaves(offset, bytes, length);
        ensure(whole && found.all(|leaf| sealed.next() == Some(&leaf)), part, || {
            let end = offset + bytes.len() as u64;
            format!("bytes {offset} to {end} do not match the digests they were sealed with")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each byte counts, wherever it stands.
    #[test]
    fn pieces_are_verified_alone() {
        let length = 3 * LEAF + 77;
        let data: Vec<u8> = (0..length).map(|i| (i * 31 % 251) as u8).collect();
        let small = b"small";
        let mut leaves = Leaves::default();
        let parts = [("a", &data[..]), ("b", &small[..])].map(|(name, content)| {
            let own: Vec<_> = digest::leaves(0, content, content.len() as u64).collect();
            leaves.push(&own);
            let blake3 = digest::merged(&own).to_hex().to_string();
            let bytes = content.len() as u64;
            Part {
                name: name.to_owned(),
                bytes,
                blake3,
            }
        });
        assert_eq!(bytes_for(parts.iter()), leaves.bytes().len() as u64);
        let all = [&parts[..], &[leaves.part()]].concat();
        let pieces = Pieces::read(&all, leaves.bytes()).unwrap();
        for (offset, end) in [(0, LEAF), (LEAF, 3 * LEAF), (3 * LEAF, length), (0, length)] {
            let mut piece = data[offset..end].to_vec();
            pieces.verify(0, "a", offset as u64, &piece).unwrap();
            *piece.last_mut().unwrap() ^= 1;
            assert!(pieces.verify(0, "a", offset as u64, &piece).is_err());
            assert!(pieces.verify(0, "a", offset as u64, &data[offset..end - 1]).is_err());
        }
        pieces.verify(1, "b", 0, small).unwrap();
        assert!(pieces.verify(1, "b", 0, b"smalL").is_err());
        assert!(pieces.verify(2, "c", 0, small).is_err());
        let mut own = Pieces::read(&[Leaves::default().part()], Leaves::default().bytes()).unwrap();
        own.add(&pieces, 1);
        own.verify(1, "lent", 0, small).unwrap();
        assert!(own.verify(1, "lent", 0, b"smalL").is_err());
        assert!(own.verify(0, "digests", 0, small).is_err());
        let mut damaged = leaves.bytes().to_vec();
        damaged[40] ^= 1;
        assert!(Pieces::read(&all, &damaged[..]).is_err());
    }
}
