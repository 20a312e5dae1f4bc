//! Who may ask from elsewhere, and what for.
//!
//! A token is 256 random bits. Only its digest is kept: who reads the file cannot ask with
//! what stands there. (It cannot be guessed, so no slow digest is needed.)

use crate::{Change, Control, Entry, Expect, Lasting, key};
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::store::{closest, now_unix_ms, validate};
use ring::rand::{SecureRandom, SystemRandom};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const PROVIDERS: &str = "provider/";
const TOKENS: &str = "token/";

/// What a token begins with, so that one is known where it should not be.
pub const TOKEN_PREFIX: &str = "appshot_";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    pub name: String,
    /// Whom its apps may run as (`USER[:GROUP]`); the first where a manifest does not say.
    pub users: Vec<String>,
    pub created_unix_ms: u64,
    /// When its token was made.
    pub rotated_unix_ms: u64,
    #[serde(default)]
    pub quota: Quota,
}

/// What a provider may have; no limit where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quota {
    /// Apps that are deployed.
    #[serde(default)]
    pub apps: Option<u64>,
    /// Instances of all its apps together that run, come or go.
    #[serde(default)]
    pub instances: Option<u64>,
    /// Bytes that these have.
    #[serde(default)]
    pub memory: Option<u64>,
    /// Bytes of its apps' appshots on disk.
    #[serde(default)]
    pub appshots: Option<u64>,
}

/// A provider and its new token, which is shown this once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Issued {
    #[serde(flatten)]
    pub provider: Provider,
    pub token: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    provider: String,
    /// It is good until then; for ever without.
    until_unix_ms: Option<u64>,
}

impl Control {
    pub fn add_provider(&self, name: &str, users: Vec<String>, quota: Quota) -> Result<Issued> {
        validate(name)?;
        let now = now_unix_ms()?;
        let provider = Provider {
            name: name.to_owned(),
            users,
            created_unix_ms: now,
            rotated_unix_ms: now,
            quota,
        };
        let (token, kept) = new_token(name)?;
        let changes = [Change::put(key(PROVIDERS, name), &provider, Expect::Absent)?, kept];
        self.engine
            .commit(&changes, Lasting::Synced)
            .map_err(|error| match error.kind {
                Kind::Conflict => Error::new(Kind::Conflict, format!("there is a provider {name} already"))
                    .fix("`appshot provider rotate` gives it another token")
                    .state("nothing was changed"),
                _ => error,
            })?;
        Ok(Issued { provider, token })
    }

    pub fn providers(&self) -> Result<Vec<Provider>> {
        self.engine.list(PROVIDERS)?.iter().map(understand).collect()
    }

    pub fn provider(&self, name: &str) -> Result<Provider> {
        understand(&self.provider_entry(name)?)
    }

    fn provider_entry(&self, name: &str) -> Result<Entry> {
        validate(name)?;
        self.engine.get(&key(PROVIDERS, name))?.map_or_else(
            || {
                let error = Error::new(Kind::NotFound, format!("there is no provider {name}"));
                let known = self.providers()?;
                Err(match closest(name, known.iter().map(|known| known.name.as_str())) {
                    Some(near) => error.fix(format!("did you mean {near}?")),
                    None => error.fix("`appshot provider list` lists those that there are"),
                })
            },
            Ok,
        )
    }

    /// Has its apps run as these, from now on.
    pub fn allow(&self, name: &str, users: Vec<String>) -> Result<Provider> {
        let entry = self.provider_entry(name)?;
        let provider = Provider {
            users,
            ..understand(&entry)?
        };
        let change = Change::put(entry.key, &provider, Expect::Revision(entry.revision))?;
        self.engine.commit(&[change], Lasting::Synced)?;
        Ok(provider)
    }

    /// Changes what it may have, from now on: what it has stays.
    pub fn limit(&self, name: &str, change: impl FnOnce(&mut Quota)) -> Result<Provider> {
        let entry = self.provider_entry(name)?;
        let mut provider: Provider = understand(&entry)?;
        change(&mut provider.quota);
        let change = Change::put(entry.key, &provider, Expect::Revision(entry.revision))?;
        self.engine.commit(&[change], Lasting::Synced)?;
        Ok(provider)
    }

    /// Gives it another token; those that it has are good for so long yet.
    pub fn rotate(&self, name: &str, grace: Duration) -> Result<Issued> {
        let entry = self.provider_entry(name)?;
        let now = now_unix_ms()?;
        let provider = Provider {
            rotated_unix_ms: now,
            ..understand(&entry)?
        };
        let until = now.saturating_add(u64::try_from(grace.as_millis()).unwrap_or(u64::MAX));
        let (token, kept) = new_token(name)?;
        let unchanged = Expect::Revision(entry.revision);
        let mut changes = vec![Change::put(entry.key, &provider, unchanged)?, kept];
        for (old, token) in self.tokens_of(name)? {
            let until = token.until_unix_ms.map_or(until, |other| other.min(until));
            let expect = Expect::Revision(old.revision);
            changes.push(match until > now {
                true => Change::put(
                    old.key,
                    &Token {
                        until_unix_ms: Some(until),
                        ..token
                    },
                    expect,
                )?,
                false => Change::delete(old.key, expect),
            });
        }
        self.engine.commit(&changes, Lasting::Synced)?;
        Ok(Issued { provider, token })
    }

    /// Forgets it, its tokens and its secrets. It must have no apps.
    pub fn remove_provider(&self, name: &str) -> Result<Provider> {
        let entry = self.provider_entry(name)?;
        let apps = self.apps::<Owned>()?;
        let own: Vec<&str> = apps
            .iter()
            .filter(|app| app.value.as_ref().is_ok_and(|app| app.manifest.provider == name))
            .map(|app| app.app.as_str())
            .collect();
        if !own.is_empty() {
            return Err(Error::new(Kind::Conflict, format!("provider {name} has apps"))
                .because(own.join(", "))
                .fix("remove them first: `appshot remove`")
                .state("nothing was changed"));
        }
        let mut changes = vec![Change::delete(entry.key.clone(), Expect::Revision(entry.revision))];
        changes.extend(
            self.tokens_of(name)?
                .into_iter()
                .map(|(old, _)| Change::delete(old.key, Expect::Revision(old.revision))),
        );
        changes.extend(self.without_secrets(name)?);
        self.engine.commit(&changes, Lasting::Synced)?;
        understand(&entry)
    }

    fn tokens_of(&self, name: &str) -> Result<Vec<(Entry, Token)>> {
        let all = self.engine.list(TOKENS)?.into_iter();
        let read = all.map(|entry| Ok((understand::<Token>(&entry)?, entry)));
        read.filter(|read| {
            read.as_ref()
                .map_or(true, |(token, _): &(Token, _)| token.provider == name)
        })
        .map(|read| read.map(|(token, entry)| (entry, token)))
        .collect()
    }

    /// Whose token this is, if it is good.
    pub fn admit(&self, token: &str) -> Result<Option<Provider>> {
        let Some(entry) = self.engine.get(&key(TOKENS, &digest(token)))? else {
            return Ok(None);
        };
        let token: Token = understand(&entry)?;
        if token
            .until_unix_ms
            .is_some_and(|until| now_unix_ms().is_ok_and(|now| now >= until))
        {
            return Ok(None);
        }
        match self.provider(&token.provider) {
            Err(error) if error.kind == Kind::NotFound => Ok(None),
            provider => provider.map(Some),
        }
    }

    /// The provider of each app.
    pub fn owners(&self) -> Result<Vec<(String, String)>> {
        let apps = self.apps::<Owned>()?.into_iter();
        Ok(apps
            .filter_map(|app| Some((app.app, app.value.ok()?.manifest.provider)))
            .collect())
    }
}

/// What is of interest of a deployed app here.
#[derive(Deserialize)]
struct Owned {
    manifest: OwnedManifest,
}

#[derive(Deserialize)]
struct OwnedManifest {
    provider: String,
}

fn understand<T: serde::de::DeserializeOwned>(entry: &Entry) -> Result<T> {
    serde_json::from_str(&entry.value).or_fail(|| format!("cannot understand what is written down as {}", entry.key))
}

fn new_token(provider: &str) -> Result<(String, Change)> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::failed("cannot make a token").because("the kernel gives no random bytes"))?;
    let token = format!("{TOKEN_PREFIX}{}", blake3::Hash::from_bytes(bytes).to_hex());
    let kept = Token {
        provider: provider.to_owned(),
        until_unix_ms: None,
    };
    let change = Change::put(key(TOKENS, &digest(&token)), &kept, Expect::Absent)?;
    Ok((token, change))
}

fn digest(token: &str) -> String {
    blake3::hash(token.as_bytes()).to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_opens_until_it_is_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open(dir.path()).unwrap();
        let issued = control
            .add_provider("acme", vec!["www-data".to_owned()], Quota::default())
            .unwrap();
        let who = |token: &str| control.admit(token).unwrap().map(|provider| provider.name);
        assert_eq!(who(&issued.token).as_deref(), Some("acme"));
        for other in ["", "appshot_", &issued.token[..60], &issued.token.to_uppercase()] {
            assert_eq!(who(other), None, "{other}");
        }
        assert_eq!(
            control
                .add_provider("acme", Vec::new(), Quota::default())
                .unwrap_err()
                .kind,
            Kind::Conflict
        );
        let second = control.rotate("acme", Duration::from_secs(60)).unwrap();
        assert!(
            who(&issued.token).is_some() && who(&second.token).is_some(),
            "for a while"
        );
        let third = control.rotate("acme", Duration::ZERO).unwrap();
        assert!(who(&issued.token).is_none() && who(&second.token).is_none());
        assert!(who(&third.token).is_some());
        control.remove_provider("acme").unwrap();
        assert_eq!(who(&third.token), None);
        assert_eq!(control.rotate("acme", Duration::ZERO).unwrap_err().kind, Kind::NotFound);
        // What is on disk is no token.
        for file in dir.path().read_dir().unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            for token in [&issued.token, &second.token, &third.token] {
                assert!(!bytes.windows(token.len()).any(|part| part == token.as_bytes()));
            }
        }
    }

    #[test]
    fn who_has_apps_stays() {
        let dir = tempfile::tempdir().unwrap();
        let control = Control::open(dir.path()).unwrap();
        control.add_provider("acme", Vec::new(), Quota::default()).unwrap();
        let limited = control.limit("acme", |quota| quota.apps = Some(1)).unwrap();
        assert_eq!(control.provider("acme").unwrap(), limited);
        let app = serde_json::json!({ "manifest": { "provider": "acme" } });
        control.put_app("web", &app, Lasting::Written).unwrap();
        assert_eq!(control.owners().unwrap(), [("web".to_owned(), "acme".to_owned())]);
        assert_eq!(control.remove_provider("acme").unwrap_err().kind, Kind::Conflict);
        control.forget_app("web").unwrap();
        control.remove_provider("acme").unwrap();
        assert!(control.providers().unwrap().is_empty());
    }
}
