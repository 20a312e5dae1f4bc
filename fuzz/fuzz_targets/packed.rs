//! The packed form, with a digest that fits.
//!
//! ```text
//! fuzz/run.sh 60 packed
//! ```
//!
//! Seeds are packed appshots, less their last 32 bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsnap::image::parse_packed;

fuzz_target!(|bytes: &[u8]| {
    let _ = parse_packed(bytes);
    let digest = blake3::hash(bytes);
    let _ = parse_packed(&[bytes, digest.as_bytes()].concat());
});
