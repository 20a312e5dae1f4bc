//! A core file: ELF structures, notes and records.
//!
//! ```text
//! fuzz/run.sh 60 core
//! ```
//!
//! The seeds matter: the layout is so strict that random bytes hardly get past
//! the header.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsnap::image::parse_core;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((image, segments)) = parse_core("core", bytes) {
        assert!(!image.threads.is_empty());
        let mut address = 0;
        for segment in segments {
            // What another part lends is held against that one, with the whole appshot.
            assert!(segment.part > 0 || segment.offset + segment.bytes <= bytes.len() as u64);
            assert!(segment.vaddr >= address && segment.bytes > 0);
            address = segment.end();
        }
    }
});
