//! `doctor`: what the kernel offers, what it is needed for, how to get it.

use crate::cli;
use libsnap::error::{Kind, Result};
use libsnap::target::Feature;
use nodekit::out;

pub fn doctor(args: &cli::Doctor) -> Result<u8> {
    let features = libsnap::kernel::features();
    out::show(args.output.format, &features, |features| text(features))?;
    match features.iter().any(|f| f.required && !f.present) {
        true => Ok(Kind::Unavailable.exit_code()),
        false => Ok(0),
    }
}

fn text(features: &[Feature]) -> String {
    let rows: Vec<Vec<String>> = features.iter().map(row).collect();
    out::table(&["FEATURE", "STATE", "NEEDED FOR", "TO GET IT"], &rows)
}

fn row(feature: &Feature) -> Vec<String> {
    let state = match (feature.present, feature.required) {
        (true, _) => "present",
        (false, true) => "MISSING",
        (false, false) => "absent",
    };
    let how = if feature.present { "" } else { &feature.how };
    vec![
        feature.name.clone(),
        state.to_owned(),
        feature.needed_for.clone(),
        how.to_owned(),
    ]
}
