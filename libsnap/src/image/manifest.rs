//! The manifest with its seal, as bytes.

use super::fault::{corrupt, ensure, require_machine, unsupported};
use super::records::Manifest;
use super::{FORMAT, MANIFEST, limits, validate};
use crate::error::{Error, Result};

/// Seal line and JSON.
pub fn encode(manifest: &Manifest) -> Result<Vec<u8>> {
    let json = serde_json::to_vec(manifest).map_err(|e| Error::failed("cannot write the manifest").because(e))?;
    let mut bytes = seal(&json).into_bytes();
    bytes.extend(json);
    if bytes.len() as u64 > limits::MANIFEST_BYTES {
        return Err(Error::failed("cannot write the manifest")
            .because(format!("{} bytes are more than the format allows", bytes.len())));
    }
    Ok(bytes)
}

fn seal(json: &[u8]) -> String {
    format!("APPSHOT {FORMAT} {} {}\n", json.len(), blake3::hash(json).to_hex())
}

/// Verifies the seal and everything that can be said about the manifest by itself.
pub fn parse(bytes: &[u8]) -> Result<Manifest> {
    ensure(
        bytes.len() as u64 <= limits::MANIFEST_BYTES,
        MANIFEST,
        || "it is too large",
    )?;
    let line_bytes = bytes
        .iter()
        .take(limits::SEAL_BYTES)
        .position(|byte| *byte == b'\n')
        .ok_or_else(|| corrupt(MANIFEST, "the seal line is missing"))?;
    let (line, json) = bytes.split_at(line_bytes + 1);
    check_version(line)?;
    // The line has no freedom: it is compared with the one for this content.
    ensure(
        line == seal(json).as_bytes(),
        MANIFEST,
        || "its content does not match its seal",
    )?;
    let manifest: Manifest =
        serde_json::from_slice(json).map_err(|e| corrupt(MANIFEST, format_args!("record: {e}")))?;
    if manifest.format != FORMAT {
        return Err(other_version(manifest.format));
    }
    require_machine(&manifest.needs)?;
    validate::manifest(&manifest)?;
    Ok(manifest)
}

/// The version comes first, since it decides what the rest means.
fn check_version(line: &[u8]) -> Result<()> {
    let mut words = line.split(|byte| *byte == b' ');
    ensure(words.next() == Some(b"APPSHOT"), MANIFEST, || "this is not an appshot")?;
    let version = words
        .next()
        .and_then(|word| str::from_utf8(word).ok())
        .and_then(|word| word.parse::<u32>().ok())
        .ok_or_else(|| corrupt(MANIFEST, "the seal line has no version"))?;
    if version == FORMAT {
        Ok(())
    } else {
        Err(other_version(version))
    }
}

fn other_version(version: u32) -> Error {
    unsupported(
        format_args!("its format is version {version}, this Appshot reads version {FORMAT}"),
        "the version of Appshot that wrote it, or a newer one that still reads it",
    )
}
