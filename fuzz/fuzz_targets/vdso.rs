//! ELF images that are not ours: the vdso in an appshot, the head of a file that
//! an app has mapped.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsnap::memory::parse_build_id;
use libsnap::restore::vdso::functions;

fuzz_target!(|bytes: &[u8]| {
    if let Some(found) = functions(bytes) {
        assert!(found.values().all(|span| span.start <= span.end));
    }
    let _ = parse_build_id(&bytes[..bytes.len().min(4096)]);
});
