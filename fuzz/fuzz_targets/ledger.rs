//! A line of the usage ledger, a rate card, a period.
#![no_main]

use libfuzzer_sys::fuzz_target;
use usage::card::Card;
use usage::period::Period;
use usage::record::{Line, write};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(line) = Line::parse(bytes) {
        let _ = line.follows(&[0; 32]);
        let (again, hash) = write(&line.record, &[0; 32]).unwrap();
        let read = Line::parse(again.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!((read.follows(&[0; 32]), &read.record), (Some(hash), &line.record));
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Card::parse(text);
        let _ = text.parse::<Period>();
    }
});
