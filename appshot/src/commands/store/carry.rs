//! `store export` and `import`: an appshot as one file, for travel.

use crate::cli;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::image::{self, Packed};
use libsnap::store::Store;
use nodekit::out;
use std::fs::File;
use std::io::{self, IsTerminal, stdin, stdout};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

/// Names the file where it is not stdout.
pub fn export(store: &Store, args: &cli::StoreExport, quiet: bool) -> Result<u8> {
    let path = store.resolve_appshot(&args.appshot)?;
    let bytes = match is_stream(&args.file) {
        false => image::pack(&path, &args.file, args.level)?,
        true if stdout().is_terminal() => return Err(terminal("an appshot cannot be written to a terminal")),
        true => {
            let what = || "cannot write to stdout";
            let mut stream = File::from(stdout().as_fd().try_clone_to_owned().or_fail(what)?);
            image::pack_to(&path, &mut stream, args.level)?
        }
    };
    if !is_stream(&args.file) {
        out::print(&format!("{}\n", args.file.display()))?;
    }
    if !quiet {
        eprintln!("packed into {}", out::bytes(bytes));
    }
    Ok(0)
}

/// Into the store, or where the caller says; names where it is.
pub fn import(store: &Store, args: &cli::StoreImport) -> Result<u8> {
    let made = match &args.dest {
        Some(dir) => {
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            packed(&args.file, parent.unwrap_or(Path::new(".")))?.unpack(dir, |_| Ok(()))?
        }
        None => into_store(store, args)?,
    };
    out::print(&format!("{}\n", made.display()))?;
    Ok(0)
}

fn into_store(store: &Store, args: &cli::StoreImport) -> Result<PathBuf> {
    let packed = packed(&args.file, store.data_dir())?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None if is_stream(&args.file) => packed.manifest().app.clone(),
        None => nodekit::start::named_by(&args.file)?,
    };
    libsnap::store::validate(&name)?;
    let _busy = store.try_lock(&name)?;
    let room = store.room(&name)?;
    let fits = |unpacked: &Path| match room {
        Some(room) => room
            .holds(image::sizes(unpacked).1)
            .map_err(|error| error.state("nothing was kept")),
        None => Ok(()),
    };
    packed.unpack(&store.new_appshot_path(&name, args.replace)?, fits)?;
    store.settle(&name)?;
    Ok(store.appshot_path(&name))
}

/// A stream is put aside first, on the disk of `dir`, in a file without a name: its index
/// comes last.
fn packed(file: &Path, dir: &Path) -> Result<Packed> {
    if !is_stream(file) {
        return Packed::open(file);
    }
    if stdin().is_terminal() {
        return Err(terminal("an appshot cannot be read from a terminal"));
    }
    let aside = tempfile::tempfile_in(dir).and_then(|mut aside| {
        io::copy(&mut stdin().lock(), &mut aside)?;
        Ok(aside)
    });
    Packed::read(aside.or_fail(|| "cannot read stdin")?)
}

fn is_stream(file: &Path) -> bool {
    file == Path::new("-")
}

fn terminal(what: &str) -> Error {
    Error::new(Kind::Usage, what).fix("name a file, or redirect it")
}
