//! JSON that is read from others: what a request may ask for, the registry's
//! records, the error that a daemon answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use libsnap::error::Error;
use libsnap::store::{self, App};
use libsnap::target::{RestoreOptions, RunOptions, SnapshotOptions};
use serde_json::from_slice;

fuzz_target!(|json: &[u8]| {
    let _ = from_slice::<SnapshotOptions>(json);
    if let Ok(options) = from_slice::<RestoreOptions>(json) {
        let _ = options.name.as_deref().map(store::validate);
    }
    if let Ok(options) = from_slice::<RunOptions>(json) {
        let _ = store::validate(&options.name);
    }
    if let Ok(app) = from_slice::<App>(json) {
        let _ = (app.child(), app.target());
    }
    if let Ok(error) = from_slice::<Error>(json) {
        let _ = error.to_string();
    }
    let text = String::from_utf8_lossy(json);
    let name = store::from_command(&text);
    assert!(store::validate(&name).is_ok(), "{name:?}");
});
