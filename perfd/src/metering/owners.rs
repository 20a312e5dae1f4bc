//! Whose an instance is.

use control::Control;
use libsnap::store::{App, Store, version_named};
use std::collections::BTreeMap;

/// Who pays for what was not deployed.
const LOCAL: &str = "local";

/// The deployed apps and their providers.
#[derive(Debug, Default)]
pub struct Owners(BTreeMap<String, String>);

impl Owners {
    /// Anew. Where that is not to be had just now, what was known before is true still.
    pub fn look(&mut self, store: &Store) {
        let read = Control::look(store.data_dir()).and_then(|control| match control {
            Some(control) => control.owners(),
            None => Ok(Vec::new()),
        });
        match read {
            Ok(owners) => self.0 = owners.into_iter().collect(),
            Err(error) => tracing::error!(%error, "whose apps are may have changed"),
        }
    }

    /// The app that an instance is of: itself; the deployed app whose further instance it
    /// is (`APP.2`); the app from whose appshot it was made.
    pub fn app_of(&self, app: &App, store: &Store) -> String {
        let from = app.from.as_deref().and_then(|path| {
            let name = path.file_name()?.to_str()?.strip_suffix(libsnap::store::SUFFIX)?;
            (store.appshot_path(name) == path).then_some(name)
        });
        let own = self.app_named(&app.name);
        match from {
            Some(from) if own == app.name && !self.0.contains_key(&own) => self.app_named(from),
            _ => own,
        }
    }

    /// The same, where only a name is known.
    pub fn app_named(&self, name: &str) -> String {
        let base = name.rsplit_once('.').filter(|(base, number)| {
            let is_instance = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
            // A version that does not serve is of its app, too.
            (is_instance || version_named(base, name).is_some()) && self.0.contains_key(*base)
        });
        match base {
            Some((base, _)) if !self.0.contains_key(name) => base.to_owned(),
            _ => name.to_owned(),
        }
    }

    pub fn provider(&self, app: &str) -> &str {
        self.0.get(app).map_or(LOCAL, String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn further_instances_are_of_their_app() {
        let deployed = ["web", "db.7"].map(|app| (app.to_owned(), "acme".to_owned()));
        let owners = Owners(deployed.into());
        assert_eq!(owners.app_named("web.2"), "web");
        assert_eq!(owners.app_named("web.v12"), "web");
        assert_eq!(owners.app_named("web"), "web");
        assert_eq!(owners.app_named("db.7"), "db.7");
        assert_eq!(owners.app_named("other.2"), "other.2");
        for other in ["web.x", "web.v", "web.v007"] {
            assert_eq!(owners.app_named(other), other);
        }
        assert_eq!(owners.provider("web"), "acme");
        assert_eq!(owners.provider("other"), LOCAL);
    }
}
