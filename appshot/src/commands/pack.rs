//! `pack` and `unpack`: an appshot as one file, for travel; `flatten`: one that needs no
//! other.

use crate::cli;
use libsnap::error::{Error, Kind, Result};
use libsnap::restore::working_set;
use libsnap::store::Store;
use nodekit::out;

pub fn pack(store: &Store, args: &cli::Pack, quiet: bool) -> Result<u8> {
    let path = store.resolve_appshot(&args.appshot)?;
    let bytes = libsnap::image::pack(&path, &args.file)?;
    out::print(&format!("{}\n", args.file.display()))?;
    if !quiet {
        eprintln!("packed into {}", out::bytes(bytes));
    }
    Ok(0)
}

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
            working_set::remove(&path);
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

/// Into the store under the file's name, or where the caller says.
pub fn unpack(store: &Store, args: &cli::Unpack) -> Result<u8> {
    let name = match &args.tag {
        Some(tag) => tag.clone(),
        None => nodekit::start::named_by(&args.file)?,
    };
    let _busy = store.try_lock(&name)?;
    let dest = match &args.dest {
        Some(dir) => dir.clone(),
        None => store.new_appshot_path(&name, args.replace)?,
    };
    let made = libsnap::image::unpack(&args.file, &dest)?;
    let made = match args.dest {
        Some(_) => made,
        None => {
            store.settle(&name)?;
            store.appshot_path(&name)
        }
    };
    out::print(&format!("{}\n", made.display()))?;
    Ok(0)
}
