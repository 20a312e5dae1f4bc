//! The notes of a core file by themselves, without the ELF around them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsnap::image::parse_notes;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(image) = parse_notes("core", bytes) {
        assert!(!image.threads.is_empty());
    }
});
