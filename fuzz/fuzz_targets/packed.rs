//! The packed form, with a digest that fits.
//!
//! ```text
//! cargo +nightly fuzz run packed -- -max_len=65536 -max_total_time=60
//! ```
//!
//! Seed the corpus with packed appshots, less their last 32 bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsnap::image::parse_packed;

fuzz_target!(|bytes: &[u8]| {
    let _ = parse_packed(bytes);
    let digest = blake3::hash(bytes);
    let _ = parse_packed(&[bytes, digest.as_bytes()].concat());
});
