//! What a provider may have: apps, instances at once, their memory, bytes of appshots.
//!
//! ```text
//!   deploy, scale, update ──> more than it may have? ── refused, told what it has
//!   wake, further instance ──> the same ── waits; the provider's own idle apps are asked to sleep
//! ```
//!
//! Who has as much as it may takes nothing from others: no app of theirs is asked for anything.
//! What a provider has when its quota becomes less stays; it gets nothing more. Appshots are
//! counted when something is deployed or updated, and stop no app from falling asleep: what is
//! awake has memory that others may want.

use crate::budget::Use;
use crate::manifest::Manifest;
use crate::node::Node;
use control::{Provider, Quota};
use libsnap::error::{Error, Result};
use libsnap::store::Stored;
use libsnap::units;
use nodekit::reply::on_own_thread;
use serde::Serialize;
use std::collections::BTreeSet;

/// What a provider has just now.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Used {
    pub apps: u64,
    pub instances: u64,
    pub memory: u64,
    pub appshots: u64,
}

/// A provider as it is shown.
#[derive(Debug, Serialize)]
pub struct Shown {
    #[serde(flatten)]
    pub provider: Provider,
    pub used: Used,
}

impl Node {
    /// Shows a provider with what it has, by what the [store holds](Node::stored).
    pub fn shown(&self, provider: Provider, stored: &[Stored]) -> Shown {
        let apps = self.apps_of(&provider.name);
        let Use { instances, memory } = self.budget.of(&apps);
        let used = Used {
            apps: apps.len() as u64,
            instances,
            memory,
            appshots: self.appshots_of(&provider.name, stored),
        };
        Shown { provider, used }
    }

    /// What the store holds.
    pub async fn stored(&self) -> Result<Vec<Stored>> {
        let store = self.store.clone();
        on_own_thread(move || store.inventory()).await
    }

    /// Bytes on disk of the appshots of a provider's apps, of all their versions.
    fn appshots_of(&self, provider: &str, stored: &[Stored]) -> u64 {
        let own = self.manifests_of(provider);
        let is_own = |name: &str| own.iter().any(|app| app.app == name || app.has_name(name));
        let of_own = stored.iter().filter(|stored| is_own(&stored.name));
        of_own.map(|stored| stored.disk_bytes).sum()
    }

    /// Refuses what would have its provider keep more appshots than it may.
    pub async fn may_store(&self, manifest: &Manifest) -> Result<()> {
        let Some(most) = self.quota(&manifest.provider).appshots else {
            return Ok(());
        };
        let has = self.appshots_of(&manifest.provider, &self.stored().await?);
        match has < most {
            true => Ok(()),
            false => Err(beyond(
                manifest,
                ("appshots", &units::bytes(most)),
                &units::bytes(has),
                "remove an app, or keep fewer versions (`[versions] keep`)",
            )),
        }
    }

    /// Refuses an app that its provider may not have, beside those that it has, or not with so
    /// many instances at least.
    pub fn may_have(&self, manifest: &Manifest) -> Result<()> {
        let quota = self.quota(&manifest.provider);
        let mut others = self.manifests_of(&manifest.provider);
        others.retain(|other| other.app != manifest.app);
        let apps = others.len() as u64;
        if let Some(most) = quota.apps.filter(|most| apps >= *most) {
            let has = apps.to_string();
            return Err(beyond(
                manifest,
                ("apps", &most.to_string()),
                &has,
                "remove one (`appshot remove`)",
            ));
        }
        let kept: u64 = others.iter().map(|other| other.instances.min as u64).sum();
        let least = kept + manifest.instances.min as u64;
        if let Some(most) = quota.instances.filter(|most| least > *most) {
            return Err(beyond(
                manifest,
                ("instances at once", &most.to_string()),
                &format!("{kept} that never sleep (instances.min), and would have {least}"),
                "have fewer of them stay awake",
            ));
        }
        Ok(())
    }

    /// Why an instance of this app has to wait though the node may have room: its provider has
    /// as much as it may. Idle apps of that provider are asked to sleep for it.
    pub fn beyond_quota(&self, app: &str, instance: &str, bytes: u64) -> Option<String> {
        let provider = self.provider_of(app)?;
        let quota = self.quota(&provider);
        let (instances, memory) = (quota.instances.unwrap_or(u64::MAX), quota.memory.unwrap_or(u64::MAX));
        if (instances, memory) == (u64::MAX, u64::MAX) {
            return None;
        }
        let apps = self.apps_of(&provider);
        let has = self.budget.beside(&apps, instance);
        let over = Use {
            instances: (has.instances + 1).saturating_sub(instances),
            memory: has.memory.saturating_add(bytes).saturating_sub(memory),
        };
        if over == Use::default() {
            return None;
        }
        self.make_way(&provider, app, over, &apps);
        Some(match over.instances {
            0 => format!(
                "for its provider's quota of memory: {provider} may have {}, has {}, and it needs {}",
                units::bytes(memory),
                units::bytes(has.memory),
                units::bytes(bytes)
            ),
            _ => format!(
                "for its provider's quota of instances: {provider} may have {instances} at once, and has {}",
                has.instances
            ),
        })
    }

    fn make_way(&self, provider: &str, app: &str, over: Use, apps: &BTreeSet<String>) {
        let promised = self.budget.promised(apps);
        let (mut instances, mut memory) = (promised.instances, promised.memory);
        for handle in self.idle(|other| other.provider == provider && other.app != app) {
            if instances >= over.instances && memory >= over.memory {
                return;
            }
            if let Some(bytes) = self.ask_to_sleep(&handle) {
                instances += 1;
                memory += bytes;
            }
        }
    }
}

fn beyond(manifest: &Manifest, (what, most): (&str, &str), has: &str, way_out: &str) -> Error {
    let provider = &manifest.provider;
    Error::refused(format!("cannot deploy {}", manifest.app))
        .because(format!("provider {provider} may have {what}: {most}, and has {has}"))
        .fix(format!(
            "{way_out}, or have the node's owner allow more: `appshot provider set {provider}`"
        ))
        .state("nothing was changed")
}

/// What is changed of a quota: a limit that is not named stays, one that is null is lifted.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    #[serde(deserialize_with = "named")]
    apps: Option<Option<u64>>,
    #[serde(deserialize_with = "named")]
    instances: Option<Option<u64>>,
    #[serde(deserialize_with = "named")]
    memory: Option<Option<u64>>,
    #[serde(deserialize_with = "named")]
    appshots: Option<Option<u64>>,
}

fn named<'de, D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<Option<u64>>, D::Error> {
    serde::Deserialize::deserialize(deserializer).map(Some)
}

impl Limits {
    pub fn change(&self, quota: &mut Quota) {
        let fields = [
            (&mut quota.apps, self.apps),
            (&mut quota.instances, self.instances),
            (&mut quota.memory, self.memory),
            (&mut quota.appshots, self.appshots),
        ];
        for (limit, named) in fields {
            *limit = named.unwrap_or(*limit);
        }
    }
}
