//! `pack` and `unpack`: an appshot as one file, for travel.

use crate::cli;
use libsnap::error::Result;
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
