//! Names of apps: what is allowed, and which one was meant.

use crate::error::{Error, Kind, Result};

const LONGEST: usize = 63;

/// A name is `[a-z0-9][a-z0-9._-]{0,62}` with at least one letter: a number
/// alone is a PID wherever either is accepted.
pub fn validate(name: &str) -> Result<()> {
    let problem = if name.is_empty() {
        "it is empty"
    } else if name.len() > LONGEST {
        "it is longer than 63 characters"
    } else if !name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()) {
        "it must begin with a lower-case letter or a digit"
    } else if !name.chars().all(allowed) {
        "it may hold lower-case letters, digits, '.', '_' and '-'"
    } else if name.bytes().all(|b| b.is_ascii_digit()) {
        "a number alone would be taken for a PID"
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Usage, format!("{name:?} cannot be the name of an app")).because(problem))
}

fn allowed(c: char) -> bool {
    c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-')
}

/// A valid name made of a command's or file's name: `./My Server` is `my-server`.
pub fn from_command(command: &str) -> String {
    let base = command.rsplit('/').next().unwrap_or_default();
    let kept: String = base
        .to_ascii_lowercase()
        .chars()
        .map(|c| if allowed(c) { c } else { '-' })
        .collect();
    let name: String = kept
        .trim_matches(|c: char| !c.is_ascii_alphanumeric())
        .chars()
        .take(LONGEST)
        .collect();
    match validate(&name) {
        Ok(()) => name,
        Err(_) => "app".to_owned(),
    }
}

/// What the appshot of a version of an app is called that is not the one that serves.
pub fn version_name(app: &str, number: u32) -> String {
    format!("{app}.v{number}")
}

/// The number of the version of this app that is called so.
pub fn version_named(app: &str, name: &str) -> Option<u32> {
    let number = name.strip_prefix(app)?.strip_prefix(".v")?.parse().ok()?;
    (version_name(app, number) == name).then_some(number)
}

/// The candidate that was probably meant: at most a third of the letters differ.
pub fn closest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (distance(wanted, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= wanted.len().max(candidate.len()).div_ceil(3))
        .min()
        .map(|(_, candidate)| candidate)
}

/// Edit distance (Levenshtein), one row at a time.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["web", "a", "0a", "redis-6.2_x", &"a".repeat(63)] {
            assert!(validate(good).is_ok(), "{good}");
        }
        for bad in ["", "Web", "-a", ".", "..", "a/b", "a b", "12", "ä", &"a".repeat(64)] {
            assert_eq!(validate(bad).unwrap_err().kind, Kind::Usage, "{bad}");
        }
    }

    #[test]
    fn commands_become_names() {
        assert_eq!(from_command("/usr/bin/redis-server"), "redis-server");
        assert_eq!(from_command("./My Server"), "my-server");
        assert_eq!(from_command("/"), "app");
        assert_eq!(from_command("7"), "app");
    }

    #[test]
    fn the_nearest_name_is_found() {
        let names = ["web", "redis", "postgres"];
        assert_eq!(closest("redsi", names.into_iter()), Some("redis"));
        assert_eq!(closest("wep", names.into_iter()), Some("web"));
        assert_eq!(closest("nginx", names.into_iter()), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
