//! Random numbers that an app has in its memory, and every clone of it the same.
//!
//! Libraries seed a generator once and draw from it ever after: two clones of one
//! appshot draw the same numbers until somebody seeds it anew, which only the app can
//! do. Which libraries an app has is told by the symbols of the files that it has mapped
//! (elf(5)), and of a program linked without any by words in it. What the kernel gives
//! afresh each time (getrandom(2), glibc's `arc4random`, Go's `crypto/rand`) is nobody's
//! state; generators of an app's own cannot be told.

use crate::error::Refusal;
use crate::image::records::VmaKind;
use crate::image::{Appshot, Core};
use goblin::elf::header::header64::SIZEOF_EHDR;
use goblin::elf::section_header::{SHT_DYNSYM, SHT_SYMTAB};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};

/// A generator, by what betrays it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Generator {
    /// A symbol that its library defines.
    symbol: &'static str,
    /// Bytes of a program without symbols.
    word: Option<&'static [u8]>,
    name: &'static str,
    renewed_by: &'static str,
}

const GENERATORS: [Generator; 7] = [
    Generator {
        symbol: "RAND_bytes",
        word: Some(b"crypto/rand/rand_lib.c\0"),
        name: "OpenSSL's RAND_bytes",
        renewed_by: "RAND_poll()",
    },
    Generator {
        symbol: "PyInit__random",
        word: None,
        name: "Python's random",
        renewed_by: "random.seed()",
    },
    Generator {
        symbol: "JNI_CreateJavaVM",
        word: None,
        name: "Java's Random, ThreadLocalRandom and Math.random()",
        renewed_by: "new objects of java.util.Random, or SecureRandom instead",
    },
    Generator {
        symbol: "_ZN4node5StartEiPPc",
        word: None,
        name: "JavaScript's Math.random()",
        renewed_by: "a function of the app's own in its place",
    },
    Generator {
        symbol: "runtime.main",
        word: Some(b"\xff Go buildinf:"),
        name: "Go's math/rand",
        renewed_by: "rand.Seed()",
    },
    Generator {
        symbol: "gcry_randomize",
        word: None,
        name: "libgcrypt's gcry_randomize",
        renewed_by: "gcry_fast_random_poll()",
    },
    Generator {
        symbol: "gnutls_rnd",
        word: None,
        name: "GnuTLS's gnutls_rnd",
        renewed_by: "gnutls_rnd_refresh()",
    },
];

/// Tables of symbols are read up to this size, programs without any up to the other.
const TABLE_BYTES_MAX: u64 = 64 << 20;
const PROGRAM_BYTES_MAX: u64 = 1 << 30;
const PIECE_BYTES: usize = 1 << 20;

/// The generators that an app is known to have in its memory, each once.
pub fn known(shot: &Appshot) -> Vec<Refusal> {
    let (mut files, mut told, mut found) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for core in &shot.cores {
        for path in programs(core).filter(|path| files.insert(*path)) {
            // What cannot be read here is refused by the restore.
            for generator in of_file(path).unwrap_or_default() {
                if told.insert((path, generator)) {
                    found.push(refusal(core, path, generator));
                }
            }
        }
    }
    found
}

fn refusal(core: &Core, path: &str, generator: Generator) -> Refusal {
    let process = &core.image.process;
    Refusal {
        pid: process.pid.0,
        comm: core
            .image
            .threads
            .first()
            .map(|main| main.record.comm.clone())
            .unwrap_or_default(),
        object: format!("{path}: {}", generator.name),
        reason: "every clone would draw the same numbers".to_owned(),
        fix: format!(
            "have the app renew them ({}) and tell so: take part in /run/appshot-instance/hooks, or --after-restore",
            generator.renewed_by
        ),
    }
}

/// The files that it runs code of.
fn programs(core: &Core) -> impl Iterator<Item = &str> {
    core.image.vmas.iter().filter_map(|vma| match &vma.kind {
        VmaKind::PrivateFile { path, .. } if vma.prot & libc::PROT_EXEC as u32 != 0 => Some(path.as_str()),
        _ => None,
    })
}

fn of_file(path: &str) -> io::Result<Vec<Generator>> {
    let file = File::open(path)?;
    let tables = tables(&file)?;
    if tables.is_empty() {
        return words(&file);
    }
    let defined = |generator: &Generator| tables.iter().any(|table| table.defines(generator.symbol.as_bytes()));
    Ok(GENERATORS.into_iter().filter(defined).collect())
}

/// Symbols and their names.
struct Table {
    symbols: Vec<u8>,
    names: Vec<u8>,
}

impl Table {
    /// `struct Elf64_Sym`: offset of the name (4), kind (1), visibility (1), section (2), value
    /// (8), size (8). Section 0 has what is defined elsewhere.
    fn defines(&self, name: &[u8]) -> bool {
        self.symbols.as_chunks::<24>().0.iter().any(|symbol| {
            let at = u32::from_le_bytes([symbol[0], symbol[1], symbol[2], symbol[3]]) as usize;
            let own = self.names.get(at..).and_then(|names| names.strip_prefix(name));
            own.is_some_and(|rest| rest.first() == Some(&0)) && symbol[6..8] != [0, 0]
        })
    }
}

/// `struct Elf64_Shdr`: name (4), kind (4), flags (8), address (8), offset (8), size (8), link
/// (4) and more.
struct Section {
    kind: u32,
    offset: u64,
    bytes: u64,
    link: usize,
}

impl Section {
    fn parse(header: &[u8; 64]) -> Section {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| header[at + byte]));
        let long = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| header[at + byte]));
        Section {
            kind: word(4),
            offset: long(24),
            bytes: long(32),
            link: word(40) as usize,
        }
    }

    fn read(&self, file: &File) -> io::Result<Vec<u8>> {
        read(file, self.offset, self.bytes)
    }
}

fn tables(file: &File) -> io::Result<Vec<Table>> {
    let header = read(file, 0, SIZEOF_EHDR as u64)?;
    let header = goblin::elf::Elf::parse_header(&header).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    let sections = read(file, header.e_shoff, u64::from(header.e_shnum) * 64)?;
    let sections: Vec<Section> = sections.as_chunks().0.iter().map(Section::parse).collect();
    let tables = sections
        .iter()
        .filter(|own| [SHT_DYNSYM, SHT_SYMTAB].contains(&own.kind));
    let tables = tables.filter_map(|own| Some((own, sections.get(own.link)?)));
    let read = tables.map(|(symbols, names)| {
        Ok(Table {
            symbols: symbols.read(file)?,
            names: names.read(file)?,
        })
    });
    read.collect()
}

fn read(file: &File, offset: u64, bytes: u64) -> io::Result<Vec<u8>> {
    let sound = bytes <= TABLE_BYTES_MAX && offset.saturating_add(bytes) <= file.metadata()?.size();
    if !sound {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut read = vec![0; bytes as usize];
    file.read_exact_at(&mut read, offset)?;
    Ok(read)
}

/// Those whose words stand in a program.
fn words(file: &File) -> io::Result<Vec<Generator>> {
    let mut left: Vec<(Generator, &[u8])> = GENERATORS
        .into_iter()
        .filter_map(|own| Some((own, own.word?)))
        .collect();
    let longest = left.iter().map(|(_, word)| word.len()).max().unwrap_or_default();
    let (mut piece, mut kept, mut offset) = (vec![0; PIECE_BYTES], 0, 0);
    let mut found = Vec::new();
    while offset < PROGRAM_BYTES_MAX {
        let got = file.read_at(&mut piece[kept..], offset)?;
        if got == 0 {
            break;
        }
        let end = kept + got;
        left.retain(|(generator, word)| {
            let stands = piece[..end].windows(word.len()).any(|window| window == *word);
            found.extend(stands.then_some(*generator));
            !stands
        });
        // A word may stand across two pieces.
        kept = longest.min(end);
        piece.copy_within(end - kept..end, 0);
        offset += got as u64;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn names(path: &str) -> Vec<&'static str> {
        of_file(path).unwrap().iter().map(|own| own.symbol).collect()
    }

    /// A library that the tests' own programs have, one that has none, and no library.
    #[test]
    fn libraries_are_told_by_their_symbols() {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps.split_whitespace().find(|word| word.contains("libc.so")).unwrap();
        assert!(names(libc).is_empty());
        assert!(tables(&File::open(libc).unwrap()).unwrap()[0].defines(b"getrandom"));
        assert!(!tables(&File::open(libc).unwrap()).unwrap()[0].defines(b"getrando"));
        assert!(of_file("/proc/self/status").is_err());
    }

    #[test]
    fn words_are_found_across_pieces() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![1; PIECE_BYTES - 5]).unwrap();
        file.write_all(b"\xff Go buildinf:").unwrap();
        file.write_all(&vec![1; PIECE_BYTES]).unwrap();
        let found: Vec<_> = words(&file).unwrap().iter().map(|own| own.name).collect();
        assert_eq!(found, ["Go's math/rand"]);
    }
}
