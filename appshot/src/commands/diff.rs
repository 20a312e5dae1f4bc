//! `diff`: in what two appshots of an app differ.

use crate::cli;
use libsnap::error::Result;
use libsnap::image::{Appshot, compare};
use libsnap::store::Store;
use nodekit::out;

/// Every byte of both is verified first.
pub fn diff(store: &Store, args: &cli::Diff) -> Result<u8> {
    let open = |name: &str| Appshot::open(&store.resolve_appshot(name)?);
    let found = compare::differences(&open(&args.one)?, &open(&args.other)?)?;
    out::show(args.output.format, &found, |found| {
        found.iter().map(|difference| format!("{difference}\n")).collect()
    })?;
    Ok(u8::from(!found.is_empty()))
}
