//! A forger: edits an appshot and gives it new digests and a new seal, so that
//! it opens as if it had been written so.
//!
//! It knows the layout as `libsnap::image` draws it and uses nothing of the
//! writer, which would refuse to seal what a reader refuses.
//!
//! ```text
//!   2.core:  header | pages | notes                | program headers
//!                             ^ JSON edited, so all behind it moves
//! ```

use anyhow::{Context, Result, ensure};
use libsnap::image::{DIGESTS, FORMAT, Leaves};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Note types of `libsnap::image`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    Process = 0x4150_5301,
    /// Of every thread.
    Thread = 0x4150_5302,
    Mappings = 0x4150_5303,
    /// Of the cores that borrow pages: a list of [address, bytes, lender, offset].
    Borrowed = 0x4150_5304,
}

impl Record {
    fn read(self, content: &[u8]) -> Result<Value> {
        match self {
            Record::Borrowed => {
                let entries = content.as_chunks::<8>().0.as_chunks::<4>().0.iter();
                let words = entries.map(|entry| entry.iter().map(|word| u64::from_le_bytes(*word)).collect());
                Ok(words.collect::<Vec<Vec<u64>>>().into())
            }
            _ => Ok(serde_json::from_slice(content)?),
        }
    }

    fn bytes(self, value: &Value) -> Result<Vec<u8>> {
        match self {
            Record::Borrowed => {
                let entries: Vec<[u64; 4]> = serde_json::from_value(value.clone())?;
                Ok(entries.into_iter().flatten().flat_map(u64::to_le_bytes).collect())
            }
            _ => Ok(serde_json::to_vec(value)?),
        }
    }
}

/// An appshot directory in the forger's hands.
#[derive(Debug)]
pub struct Forger {
    dir: PathBuf,
    /// The records of the manifest, as JSON.
    pub manifest: Value,
}

impl Forger {
    /// Copies an appshot to `dest` and opens the copy.
    pub fn copy(appshot: &Path, dest: &Path) -> Result<Forger> {
        fs::create_dir(dest)?;
        for entry in fs::read_dir(appshot)? {
            let entry = entry?;
            fs::copy(entry.path(), dest.join(entry.file_name()))?;
        }
        let bytes = fs::read(dest.join("manifest"))?;
        let line = bytes.iter().position(|byte| *byte == b'\n').context("no seal line")?;
        Ok(Forger {
            dir: dest.to_owned(),
            manifest: serde_json::from_slice(&bytes[line + 1..])?,
        })
    }

    /// Cores of the living processes, parents first.
    pub fn cores(&self) -> Vec<String> {
        let processes = self.manifest["processes"].as_array().into_iter().flatten();
        processes
            .filter_map(|entry| Some(entry["life"]["alive"]["part"].as_str()?.to_owned()))
            .collect()
    }

    /// Edits this record in every core.
    pub fn edit(&self, record: Record, edit: impl Fn(&mut Value)) -> Result<()> {
        for part in self.cores() {
            let path = self.dir.join(part);
            fs::write(&path, with_edited_notes(&fs::read(&path)?, record, &edit)?)?;
        }
        Ok(())
    }

    /// Sizes and digests of all parts, then the seal.
    pub fn seal(mut self) -> Result<PathBuf> {
        let mut leaves = Leaves::default();
        for part in self.manifest["parts"].as_array_mut().context("no parts")? {
            let path = self.dir.join(part["name"].as_str().context("no name")?);
            if part["name"] == DIGESTS {
                fs::write(&path, leaves.bytes())?;
            }
            let bytes = fs::read(path)?;
            leaves.push_content(&bytes);
            part["bytes"] = bytes.len().into();
            part["blake3"] = blake3::hash(&bytes).to_hex().to_string().into();
        }
        let json = serde_json::to_vec(&self.manifest)?;
        let mut bytes = format!("APPSHOT {FORMAT} {} {}\n", json.len(), blake3::hash(&json).to_hex()).into_bytes();
        bytes.extend(json);
        fs::write(self.dir.join("manifest"), bytes)?;
        Ok(self.dir)
    }
}

const PHDR_BYTES: usize = 56;

fn word(bytes: &[u8], at: usize) -> Result<u64> {
    let word = bytes.get(at..at + 8).and_then(|b| b.first_chunk());
    word.map(|b| u64::from_le_bytes(*b)).context("a short core")
}

fn half(bytes: &[u8], at: usize) -> Result<usize> {
    let half = bytes.get(at..at + 4).and_then(|b| b.first_chunk());
    half.map(|b| u32::from_le_bytes(*b) as usize).context("a short note")
}

/// The notes of a core: where they begin, and their bytes.
pub fn notes(core: &[u8]) -> Result<(usize, &[u8])> {
    let headers = word(core, 32)? as usize;
    let (offset, bytes) = (word(core, headers + 8)? as usize, word(core, headers + 32)? as usize);
    let notes = core.get(offset..offset + bytes).context("notes outside the core")?;
    Ok((offset, notes))
}

fn with_edited_notes(core: &[u8], record: Record, edit: &impl Fn(&mut Value)) -> Result<Vec<u8>> {
    let (offset, old) = notes(core)?;
    let headers = word(core, 32)? as usize;
    let new = edited(old, record, edit)?;
    let mut out = core[..offset].to_vec();
    out.extend(&new);
    out.resize(out.len().next_multiple_of(8), 0);
    let moved = out.len();
    out.extend(&core[headers..]);
    out[32..40].copy_from_slice(&(moved as u64).to_le_bytes());
    out[moved + 32..moved + 40].copy_from_slice(&(new.len() as u64).to_le_bytes());
    // The headers of absent pages name the next stored page: never one behind the notes.
    ensure!(
        (out.len() - moved).is_multiple_of(PHDR_BYTES),
        "a core with a section header",
    );
    Ok(out)
}

fn edited(notes: &[u8], record: Record, edit: &impl Fn(&mut Value)) -> Result<Vec<u8>> {
    let (mut out, mut rest) = (Vec::new(), notes);
    while !rest.is_empty() {
        let (name, content, kind) = (half(rest, 0)?, half(rest, 4)?, half(rest, 8)?);
        let start = (12 + name).next_multiple_of(4);
        let end = (start + content).next_multiple_of(4);
        let note = rest.get(..end).context("a cut note")?;
        if kind == record as usize {
            let mut value = record.read(&note[start..start + content])?;
            edit(&mut value);
            let json = record.bytes(&value)?;
            out.extend(&note[..4]);
            out.extend((json.len() as u32).to_le_bytes());
            out.extend(&note[8..start]);
            out.extend(&json);
            out.resize(out.len().next_multiple_of(4), 0);
        } else {
            out.extend(note);
        }
        rest = &rest[end..];
    }
    Ok(out)
}
