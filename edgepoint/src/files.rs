//! What daemons before this one have written: one file an app, `deployed/NAME.json`.

use crate::manifest::Manifest;
use crate::node::Deployment;
use control::Control;
use libsnap::error::Result;
use libsnap::store::{Store, read_json, remove_file, stems};

/// Takes them over, all or none; they go once that is synced. One that cannot be read stays.
pub fn adopt(store: &Store, control: &Control) -> Result<()> {
    let dir = store.data_dir().join("deployed");
    if !dir.exists() {
        return Ok(());
    }
    let (mut apps, mut paths) = (Vec::new(), Vec::new());
    for name in stems(&dir, ".json")? {
        let path = dir.join(format!("{name}.json"));
        // As a deployment, so that nothing is taken over that could not be read later.
        match read_json::<Deployment>(&path) {
            Ok(Some(deployment)) => {
                apps.push((name, serde_json::json!(deployment)));
                paths.push(path);
            }
            Ok(None) => {}
            Err(error) => tracing::error!(app = name, %error, "is not taken over"),
        }
    }
    control.adopt(&apps)?;
    for path in &paths {
        remove_file(path)?;
    }
    if !paths.is_empty() {
        tracing::info!(apps = paths.len(), "taken over from files");
    }
    // Not empty, it stays.
    let _ = std::fs::remove_dir(&dir);
    Ok(())
}

/// Names of which there is a record, an appshot or a log.
pub fn named(store: &Store) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for (dir, suffix) in [
        (store.run_dir().join("apps"), ".json"),
        (store.data_dir().join("appshots"), ".appshot"),
        (store.data_dir().join("logs"), ".log"),
    ] {
        if dir.exists() {
            names.extend(stems(&dir, suffix)?);
        }
    }
    Ok(names)
}

/// Removes what instances and versions of an app have written that are there no more.
pub fn forget_logs(store: &Store, manifest: &Manifest) -> Result<()> {
    let dir = store.data_dir().join("logs");
    if !dir.exists() {
        return Ok(());
    }
    for name in stems(&dir, ".log")?.iter().filter(|name| manifest.has_name(name)) {
        // One that has a record was run by somebody else meanwhile.
        if store.find(name)?.is_none() {
            store.remove_log(name)?;
        }
    }
    Ok(())
}
