//! What apps of a provider are told that stands in no manifest and in no appshot.
//!
//! Values are kept as they are, in a file that only root may read (`control.db`).

use crate::{Change, Control, Entry, Expect, Lasting, key};
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::identity::is_name;
use libsnap::store::{closest, now_unix_ms};
use serde::{Deserialize, Serialize};

const SECRETS: &str = "secret/";
/// A key, a certificate.
const SECRET_BYTES_MAX: usize = 64 << 10;
/// All of one provider together: an app may be told them all at once, in one request.
const ALL_BYTES_MAX: usize = 128 << 10;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    value: String,
    changed_unix_ms: u64,
}

/// What is shown of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    pub name: String,
    pub provider: String,
    pub changed_unix_ms: u64,
}

impl Control {
    /// Whoever starts or wakes from now on is told this.
    pub fn put_secret(&self, provider: &str, name: &str, value: &str) -> Result<Secret> {
        let wrong = |because: &str, fix: &str| {
            Err(Error::new(Kind::Usage, format!("cannot keep the secret {name:?}"))
                .because(because)
                .fix(fix)
                .state("nothing was changed"))
        };
        if !is_name(name) {
            return wrong("it is to be the name of a file", "letters, digits, '_', '-' and '.'");
        }
        if value.len() > SECRET_BYTES_MAX {
            return wrong("it is too long", "64 KiB at most");
        }
        let own = path(provider, name);
        let others = self.engine.list(&path(provider, ""))?.into_iter();
        let others = others.filter(|other| other.key != own);
        let has: usize = others.map(|other| other.key.len() + other.value.len()).sum();
        if has + own.len() + value.len() > ALL_BYTES_MAX {
            return wrong(
                "there would be too many",
                "128 KiB at most, all together; remove others",
            );
        }
        let kept = Kept {
            value: value.to_owned(),
            changed_unix_ms: now_unix_ms()?,
        };
        let change = Change::put(own, &kept, Expect::Anything)?;
        self.engine.commit(&[change], Lasting::Synced)?;
        Ok(Secret {
            name: name.to_owned(),
            provider: provider.to_owned(),
            changed_unix_ms: kept.changed_unix_ms,
        })
    }

    /// The value of one.
    pub fn secret(&self, provider: &str, name: &str) -> Result<String> {
        Ok(understand(&self.secret_entry(provider, name)?)?.value)
    }

    /// Those of a provider, by name.
    pub fn secrets(&self, provider: &str) -> Result<Vec<Secret>> {
        let prefix = path(provider, "");
        let all = self.engine.list(&prefix)?.into_iter();
        all.map(|entry| {
            Ok(Secret {
                name: entry.key.strip_prefix(&prefix).unwrap_or_default().to_owned(),
                provider: provider.to_owned(),
                changed_unix_ms: understand(&entry)?.changed_unix_ms,
            })
        })
        .collect()
    }

    /// Who has been told it keeps it.
    pub fn remove_secret(&self, provider: &str, name: &str) -> Result<Secret> {
        let entry = self.secret_entry(provider, name)?;
        let change = Change::delete(entry.key.clone(), Expect::Revision(entry.revision));
        self.engine.commit(&[change], Lasting::Synced)?;
        Ok(Secret {
            name: name.to_owned(),
            provider: provider.to_owned(),
            changed_unix_ms: understand(&entry)?.changed_unix_ms,
        })
    }

    /// With all that its provider has, as changes.
    pub(crate) fn without_secrets(&self, provider: &str) -> Result<Vec<Change>> {
        let all = self.engine.list(&path(provider, ""))?.into_iter();
        Ok(all
            .map(|entry| Change::delete(entry.key, Expect::Revision(entry.revision)))
            .collect())
    }

    fn secret_entry(&self, provider: &str, name: &str) -> Result<Entry> {
        // Nothing else is the name of one.
        let entry = is_name(name)
            .then(|| self.engine.get(&path(provider, name)))
            .transpose()?;
        entry.flatten().map_or_else(
            || {
                let error = Error::new(Kind::NotFound, format!("{provider} has no secret {name}"));
                let known = self.secrets(provider)?;
                Err(match closest(name, known.iter().map(|known| known.name.as_str())) {
                    Some(near) => error.fix(format!("did you mean {near}?")),
                    None => error.fix(format!("`appshot secret set {name}` makes it")),
                })
            },
            Ok,
        )
    }
}

fn path(provider: &str, name: &str) -> String {
    key(SECRETS, &format!("{provider}/{name}"))
}

fn understand(entry: &Entry) -> Result<Kept> {
    serde_json::from_str(&entry.value).or_fail(|| format!("cannot understand {}", entry.key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_provider_has_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open(dir.path()).unwrap();
        control.put_secret("acme", "db", "one").unwrap();
        control.put_secret("acme", "db", "two").unwrap();
        control.put_secret("acmes", "db", "other").unwrap();
        control.put_secret("acme", "key", "k").unwrap();
        assert_eq!(control.secret("acme", "db").unwrap(), "two");
        let names: Vec<String> = control
            .secrets("acme")
            .unwrap()
            .into_iter()
            .map(|secret| secret.name)
            .collect();
        assert_eq!(names, ["db", "key"]);
        for (provider, name, told) in [
            ("acme", "dn", "did you mean db?"),
            ("bolt", "db", "appshot secret set db"),
            ("acme", "../acmes/db", "no secret"),
        ] {
            let error = control.secret(provider, name).unwrap_err();
            assert!(
                error.kind == Kind::NotFound && error.to_string().contains(told),
                "{error}"
            );
        }
        for (name, value) in [("a/b", "x"), ("", "x"), ("long", &*"x".repeat(SECRET_BYTES_MAX + 1))] {
            assert_eq!(control.put_secret("acme", name, value).unwrap_err().kind, Kind::Usage);
        }
        control.remove_secret("acme", "db").unwrap();
        assert!(control.secret("acme", "db").is_err());
        assert_eq!(control.secret("acmes", "db").unwrap(), "other");
    }
}
