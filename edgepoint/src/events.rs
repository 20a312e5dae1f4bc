//! Tells the log what happens, on a thread of its own: nobody waits for a disk to be told.
//!
//! What is told within the same moment is written at once. Of a daemon that is killed the
//! last few milliseconds are missing.

use control::{Control, Logged};
use libsnap::error::{Error, Result};
use libsnap::store::now_unix_ms;
use serde_json::Value;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::watch;

/// Written together, at most.
const TOGETHER: usize = 1000;

/// Clones tell the same log.
#[derive(Clone, Debug)]
pub struct Events {
    sender: Sender<Logged>,
    /// How often it was added to: who waits for more looks again then.
    pub added: watch::Receiver<u64>,
}

impl Events {
    pub fn begin(data_dir: &Path) -> Result<Events> {
        // Of its own: while it syncs others go on.
        let control = Control::look(data_dir)?.ok_or_else(|| Error::failed("the log of events is gone"))?;
        let (sender, told) = channel();
        let (adding, added) = watch::channel(0);
        std::thread::spawn(move || write(&control, &told, &adding));
        Ok(Events { sender, added })
    }

    /// About an app of this provider; `told` is an object.
    pub fn tell(&self, kind: &str, app: &str, provider: &str, told: Value) {
        self.send(kind, Some(app), provider, told);
    }

    /// About a provider.
    pub fn tell_of(&self, kind: &str, provider: &str, told: Value) {
        self.send(kind, None, provider, told);
    }

    fn send(&self, kind: &str, app: Option<&str>, provider: &str, told: Value) {
        let event = Logged {
            unix_ms: now_unix_ms().unwrap_or_default(),
            app: app.map(str::to_owned),
            provider: Some(provider.to_owned()),
            kind: kind.to_owned(),
            told,
        };
        // Its thread lives as long as this.
        let _ = self.sender.send(event);
    }
}

fn write(control: &Control, told: &Receiver<Logged>, adding: &watch::Sender<u64>) {
    while let Ok(first) = told.recv() {
        let events: Vec<Logged> = std::iter::once(first)
            .chain(told.try_iter().take(TOGETHER - 1))
            .collect();
        if let Err(error) = control.tell(&events) {
            tracing::error!(%error, missing = events.len(), "the log of events has a gap");
        }
        adding.send_modify(|times| *times += 1);
    }
}
