//! The few ELF structures of a core file, as bytes.
//!
//! `elf(5)`; written for x86-64 little-endian only.

/// ELF header with the zeroes behind it: memory pages start page-aligned.
pub const HEADER_BYTES: u64 = 4096;
pub const PHDR_BYTES: u64 = 56;
pub const SHDR_BYTES: u64 = 64;
const EHDR_BYTES: u16 = 64;

/// In e_phnum: the number does not fit and stands in section header 0.
const PN_XNUM: u64 = 0xffff;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
/// Magic, ELFCLASS64, ELFDATA2LSB, EV_CURRENT, ELFOSABI_NONE.
const IDENT: [u8; 16] = [0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// Where the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tables {
    pub phoff: u64,
    pub phnum: u64,
}

impl Tables {
    /// With this many headers, their number stands in a section header that
    /// lies right before them.
    pub fn extended(phnum: u64) -> bool {
        phnum >= PN_XNUM
    }

    /// The first page of the file.
    pub fn header(&self) -> Vec<u8> {
        let extended = Self::extended(self.phnum);
        let mut page = Vec::with_capacity(4096);
        page.extend(IDENT);
        page.extend(ET_CORE.to_le_bytes());
        page.extend(EM_X86_64.to_le_bytes());
        page.extend(1u32.to_le_bytes()); // e_version
        page.extend(0u64.to_le_bytes()); // e_entry
        page.extend(self.phoff.to_le_bytes());
        let shoff = if extended { self.phoff - SHDR_BYTES } else { 0 };
        page.extend(shoff.to_le_bytes());
        page.extend(0u32.to_le_bytes()); // e_flags
        page.extend(EHDR_BYTES.to_le_bytes());
        page.extend((PHDR_BYTES as u16).to_le_bytes());
        let phnum = if extended { PN_XNUM } else { self.phnum };
        page.extend((phnum as u16).to_le_bytes());
        page.extend(if extended { SHDR_BYTES as u16 } else { 0 }.to_le_bytes());
        page.extend(u16::from(extended).to_le_bytes()); // e_shnum
        page.extend(0u16.to_le_bytes()); // e_shstrndx
        page.resize(HEADER_BYTES as usize, 0);
        page
    }

    /// Section header 0, which holds nothing but the number.
    pub fn section_header(&self) -> [u8; SHDR_BYTES as usize] {
        let mut header = [0; SHDR_BYTES as usize];
        let number = u32::try_from(self.phnum).expect("limited");
        header[44..48].copy_from_slice(&number.to_le_bytes());
        header
    }

    /// Reads e_phoff and e_phnum; the section header is asked for when it is
    /// needed. The caller compares both with [`Tables::header`] and
    /// [`Tables::section_header`], so that no other field has any freedom.
    pub fn read<E>(
        page: &[u8; HEADER_BYTES as usize],
        section_header: impl FnOnce(u64) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let phoff = u64_at(page, 32);
        let phnum = match u64::from(u16_at(page, 56)) {
            PN_XNUM => u64::from(u32_at(&section_header(u64_at(page, 40))?, 44)),
            phnum => phnum,
        };
        Ok(Tables { phoff, phnum })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Load,
    Note,
}

/// A program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phdr {
    pub kind: Kind,
    /// PROT_* bits, which ELF numbers the other way round.
    pub prot: u32,
    pub offset: u64,
    pub vaddr: u64,
    pub file_bytes: u64,
    pub memory_bytes: u64,
}

impl Phdr {
    pub fn bytes(&self) -> [u8; PHDR_BYTES as usize] {
        let (kind, align) = match self.kind {
            Kind::Load => (1u32, 4096),
            Kind::Note => (4u32, 4),
        };
        let mut out = [0; PHDR_BYTES as usize];
        out[0..4].copy_from_slice(&kind.to_le_bytes());
        out[4..8].copy_from_slice(&swap_prot(self.prot).to_le_bytes());
        let words = [self.offset, self.vaddr, 0, self.file_bytes, self.memory_bytes, align];
        for (slot, word) in out[8..].chunks_exact_mut(8).zip(words) {
            slot.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// `None` for anything that [`Phdr::bytes`] does not write.
    pub fn read(bytes: &[u8; PHDR_BYTES as usize]) -> Option<Self> {
        let header = Phdr {
            kind: match u32_at(bytes, 0) {
                1 => Kind::Load,
                4 => Kind::Note,
                _ => return None,
            },
            prot: swap_prot(u32_at(bytes, 4)),
            offset: u64_at(bytes, 8),
            vaddr: u64_at(bytes, 16),
            file_bytes: u64_at(bytes, 32),
            memory_bytes: u64_at(bytes, 40),
        };
        (header.bytes() == *bytes).then_some(header)
    }
}

/// PROT_READ, WRITE, EXEC are 1, 2, 4; PF_R, W, X are 4, 2, 1.
fn swap_prot(bits: u32) -> u32 {
    (bits & 2) | ((bits & 1) << 2) | ((bits >> 2) & 1)
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, at))
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, at))
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, at))
}

/// The offset is a constant of a structure whose size was checked.
fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of N bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for phnum in [1, 0xfffe, 0xffff, 0x10000, 1 << 24] {
            let tables = Tables { phoff: 8192, phnum };
            let page: [u8; 4096] = tables.header().try_into().unwrap();
            let section = |at| {
                assert_eq!(at, 8192 - SHDR_BYTES);
                Ok::<_, ()>(tables.section_header().to_vec())
            };
            assert_eq!(Tables::read(&page, section), Ok(tables));
        }
        let load = Phdr {
            kind: Kind::Load,
            prot: 5,
            offset: 4096,
            vaddr: 0x40_0000,
            file_bytes: 4096,
            memory_bytes: 8192,
        };
        assert_eq!(Phdr::read(&load.bytes()), Some(load));
    }

    /// An independent reader sees the same.
    #[test]
    fn goblin_agrees() {
        let tables = Tables { phoff: 4096, phnum: 3 };
        let header = goblin::elf::Elf::parse_header(&tables.header()).unwrap();
        assert_eq!(header.e_type, goblin::elf::header::ET_CORE);
        assert_eq!(header.e_machine, goblin::elf::header::EM_X86_64);
        assert_eq!((header.e_phoff, header.e_phnum, header.e_phentsize), (4096, 3, 56));
    }
}
