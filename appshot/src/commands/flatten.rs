//! `flatten`: an appshot that needs no other.

use crate::cli;
use libsnap::error::{Error, Kind, Result};
use libsnap::store::Store;
use nodekit::out;

/// In its place, or to where the caller says.
pub fn flatten(store: &Store, args: &cli::Flatten, quiet: bool) -> Result<u8> {
    let path = store.resolve_appshot(&args.appshot)?;
    let name = store.stored_name(&path);
    let _busy = name.map(|name| store.try_lock(&name)).transpose()?;
    let parents = libsnap::image::needed(&path)?;
    let sealed = match &args.dest {
        Some(dest) => libsnap::image::flatten(&path, dest)?,
        None if parents.is_empty() => {
            return Err(Error::new(Kind::Conflict, format!("cannot flatten {}", path.display()))
                .because("it needs no other appshot")
                .state("nothing was touched"));
        }
        None => {
            libsnap::store::nobody_needs(&path, "flatten")?;
            let sealed = libsnap::image::flatten_in_place(&path)?;
            libsnap::beside::remove(&path);
            sealed
        }
    };
    out::print(&format!("{}\n", sealed.path.display()))?;
    if !quiet {
        let names: Vec<&str> = parents.iter().map(|parent| parent.name.as_str()).collect();
        let without = if names.is_empty() {
            "any other".into()
        } else {
            names.join(", ")
        };
        eprintln!(
            "needs {} on disk, and is whole without {without}",
            out::bytes(sealed.disk_bytes)
        );
    }
    Ok(0)
}
