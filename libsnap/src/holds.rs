//! What keeps an app awake: files in the instance's own directory ([`crate::identity`]),
//! no library.
//!
//! ```text
//!   awake/NAME   made by the app: it is not to sleep as long as this is there
//!
//!     holds a PID, of the app as it sees itself:   until that process ends, at most
//!     holds anything else, or nothing:             until so long after it was written last
//! ```
//!
//! Each is one hold, and they are counted: the app may sleep when none is left. A holder
//! that dies does not hold for ever: its PID is gone, or its file is not written any more
//! (touch(1) does). Names that begin with a dot do not count. After a restore there is none.
//!
//! What stands there was written by the app: nothing is followed, only ordinary files are
//! read, and no more of them than [`HOLDS_MAX`].

use crate::freeze;
use crate::identity::AWAKE;
use crate::participants::{ANSWER_BYTES_MAX, Directory, open};
use crate::proc::Fields;
use crate::store::App;
use std::collections::HashSet;
use std::io::Read;
use std::time::{Duration, SystemTime};

/// So many files are looked at.
pub const HOLDS_MAX: usize = 1000;

/// The names of those that hold the app awake now. One without a PID does so for this long
/// after it was written; where that is no time at all, none does.
pub fn of(app: &App, unrenewed: Duration) -> Vec<String> {
    let directory = Directory::of(app.root).filter(|_| !unrenewed.is_zero());
    let Some(directory) = directory else {
        return Vec::new();
    };
    let mut names = directory.names(AWAKE);
    names.truncate(HOLDS_MAX);
    let Some(files) = directory.part(AWAKE).filter(|_| !names.is_empty()) else {
        return Vec::new();
    };
    let living = living(app);
    names.retain(|name| {
        let Some(file) = open(&files, name) else { return false };
        let written = file.metadata().and_then(|meta| meta.modified()).ok();
        let mut text = String::new();
        // What is no text is no PID.
        let _ = file.take(ANSWER_BYTES_MAX).read_to_string(&mut text);
        match text.trim().parse::<i32>() {
            Ok(pid) => living.contains(&pid),
            Err(_) => written.is_some_and(|written| is_fresh(written, unrenewed)),
        }
    });
    names
}

/// One of the future was written just now, by a clock that was set back since.
fn is_fresh(written: SystemTime, unrenewed: Duration) -> bool {
    written.elapsed().map_or(true, |age| age < unrenewed)
}

/// Processes of the app by the numbers that it gives them, without those that have ended.
fn living(app: &App) -> HashSet<i32> {
    let members = app.target().and_then(|target| freeze::members(&target));
    let members = members.unwrap_or_default().into_iter();
    let status = members.filter_map(|pid| Fields::status(pid).ok());
    let lives = |status: &Fields| !status.get("State").is_some_and(|state| state.starts_with(['Z', 'X']));
    status.filter(lives).map(|status| status.innermost("NSpid")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_renewed_holds_no_more() {
        let (now, second) = (SystemTime::now(), Duration::from_secs(1));
        assert!(is_fresh(now, second));
        assert!(!is_fresh(now - 2 * second, second));
        assert!(is_fresh(now + 5 * second, second));
        assert!(!is_fresh(now, Duration::ZERO));
    }
}
