//! The JSON of a manifest, behind a seal that fits.
//!
//! ```text
//! fuzz/run.sh 60 manifest
//! ```
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsnap::image::parse_manifest;

fuzz_target!(|json: &[u8]| {
    // As it is, for the seal line itself.
    let _ = parse_manifest(json);
    let seal = format!("APPSHOT 2 {} {}\n", json.len(), blake3::hash(json).to_hex());
    let _ = parse_manifest(&[seal.as_bytes(), json].concat());
});
