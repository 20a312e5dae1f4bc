//! Empty messages that one look at a queue hides from the next.
//!
//! SO_PEEK_OFF leads over the messages of a socket, but over each empty one only once:
//! the kernel marks it as looked at, and skips it from then on (`peeked` of its sk_buff,
//! Linux 6.18). Only as the first of its queue it shows again, to a look without an
//! offset. So what was seen of a queue with an empty message in it is noted in a small
//! file, until nobody has the socket any more:
//!
//! ```text
//!   RUN_DIR/looked/INODE     "?"                      before the look
//!                            one word a message: 0 where it is empty, else a digest
//! ```
//!
//! A queue gives away its first and takes at its end. What a later look sees is therefore
//! what is left of the noted one, then what has come since: where an empty message may
//! be among what is left, the socket is refused.

use super::{Refused, refused};
use crate::image::records::Message;
use crate::proc;
use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

const EMPTY: u64 = 0;
const BEGUN: &str = "?";

fn notes() -> PathBuf {
    crate::store::run_dir().join("looked")
}

/// A look at the queue of a socket that keeps messages apart.
#[derive(Debug)]
pub struct Look {
    path: PathBuf,
    /// What an earlier look saw; nobody knows where that one was broken off.
    former: Option<Vec<u64>>,
}

impl Look {
    /// Notes that the socket of this inode is looked at. Nothing may be looked at before.
    pub fn begin(ino: u64) -> Result<Look, Refused> {
        let path = notes().join(ino.to_string());
        let former = match fs::read_to_string(&path) {
            Ok(text) => parse(&text),
            Err(_) => Some(Vec::new()),
        };
        let begun = fs::create_dir_all(notes()).and_then(|()| fs::write(&path, BEGUN));
        begun.map_err(|e| {
            (
                format!("cannot note that its queue is looked at: {e}"),
                "try again".into(),
            )
        })?;
        Ok(Look { path, former })
    }

    /// Notes what was seen: all but what `former` hides.
    pub fn end<'m>(self, queue: impl Iterator<Item = &'m Message>) -> Result<(), Refused> {
        let seen: Vec<u64> = queue.map(digest).collect();
        if self.former.is_none_or(|former| hides(&former, &seen)) {
            return refused(
                "an empty message that an earlier snapshot has seen may wait in it: the kernel shows it once only",
                "let the app receive what is queued in it",
            );
        }
        let noted = match seen.contains(&EMPTY) {
            true => {
                let words: Vec<String> = seen.iter().map(u64::to_string).collect();
                fs::write(&self.path, words.join(" "))
            }
            false => fs::remove_file(&self.path),
        };
        // What stands there says less: the next look is refused.
        noted.or_else(|e| refused(format!("cannot note what is queued in it: {e}"), "try again"))
    }
}

/// `None` where the look was not ended.
fn parse(text: &str) -> Option<Vec<u64>> {
    text.split(' ').map(|word| word.parse().ok()).collect()
}

fn digest(message: &Message) -> u64 {
    if message.data.is_empty() {
        return EMPTY;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&message.from).update(&message.data);
    let first = hasher
        .finalize()
        .as_bytes()
        .first_chunk()
        .map_or(1, |word| u64::from_le_bytes(*word));
    first.max(1)
}

/// Whether an empty message of `former` may wait behind the first of the queue, of which
/// `seen` is what shows.
fn hides(former: &[u64], seen: &[u64]) -> bool {
    let filled = |queue: &[u64]| -> Vec<u64> { queue.iter().copied().filter(|word| *word != EMPTY).collect() };
    let shown = filled(seen);
    let may_be_left = |rest: &[u64]| {
        let first = [rest, seen].map(|queue| queue.first() == Some(&EMPTY));
        first[0] == first[1] && shown.starts_with(&filled(rest))
    };
    let rests = (0..former.len()).map(|from| &former[from..]);
    rests.filter(|rest| rest[1..].contains(&EMPTY)).any(may_be_left)
}

/// Forgets sockets that nobody has any more.
pub fn prune() {
    let noted: Vec<i64> = fs::read_dir(notes())
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    if noted.is_empty() {
        return;
    }
    let fds = |pid: &i32| fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = proc::numbered("/proc").unwrap_or_default();
    let open: HashSet<String> = links
        .iter()
        .flat_map(fds)
        .filter_map(|fd| Some(fs::read_link(fd.path()).ok()?.display().to_string()))
        .collect();
    for ino in noted {
        if !open.contains(&format!("socket:[{ino}]")) {
            fs::remove_file(notes().join(ino.to_string())).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_queue_may_hide_empty_messages() {
        let former = [11, EMPTY, EMPTY, 12, EMPTY];
        assert!(hides(&former, &[11, 12]), "all is left");
        assert!(hides(&former, &[11, 12, 13, EMPTY]), "and some has come");
        assert!(hides(&former, &[EMPTY, 12]), "one or two before 12");
        assert!(hides(&former, &[12]));
        assert!(!hides(&former, &[EMPTY]), "the last, which shows");
        assert!(!hides(&former, &[12, 11][1..]), "11 has come again, 12 would show");
        assert!(!hides(&former, &[13]));
        assert!(!hides(&former, &[]));
        assert!(!hides(&[EMPTY], &[EMPTY, 14]));
        assert!(!hides(&[], &[EMPTY, 14]));
    }

    #[test]
    fn a_look_that_was_broken_off_is_told_from_an_ended_one() {
        assert_eq!(parse(BEGUN), None);
        assert_eq!(parse("0 17 0"), Some(vec![0, 17, 0]));
    }
}
