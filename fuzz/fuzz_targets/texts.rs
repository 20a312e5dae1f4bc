//! What /proc and sock_diag tell of an app: names in it are the app's choice.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsnap::proc::{Fields, parse_mappings, parse_stat};
use libsnap::sys::diag;

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    for mapping in parse_mappings(&text) {
        let _ = (mapping.span(), mapping.prot(), mapping.has("dd"));
    }
    let _ = parse_stat(&text);
    let fields = Fields::new(text.into_owned());
    for key in ["flags", "pos", "NSpid", "SigPnd", "lock"] {
        let _ = (fields.number(key), fields.octal(key), fields.hex(key), fields.innermost(key));
        let _ = fields.all(key).count();
    }
    let _ = diag::messages(bytes, &mut |body| {
        let _ = (diag::unix_message(body), diag::tcp_message(body));
    });
});
