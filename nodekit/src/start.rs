//! Bringing an app up: a new command, or an appshot.

use crate::hooks;
use libsnap::error::{Error, Kind, OrFail, Refusal, Result};
use libsnap::image::records::Manifest;
use libsnap::image::{Appshot, MANIFEST};
use libsnap::journal::Journal;
use libsnap::randomness;
use libsnap::restore::eager::Eager;
use libsnap::restore::spare::Spare;
use libsnap::restore::{self, Cancelled, From, Nursery, Prepared, Way};
use libsnap::store::{App, SUFFIX, Store};
use libsnap::sys::memory::Span;
use libsnap::target::{Hooks, Instance, Phase, RestoreOptions, RunOptions, Stdio};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The phase before those of the engine.
pub const UNPACK: &str = "unpack";

const CAUSE_BYTES_MAX: usize = 32;

/// A request to bring an app up. The process that goes through with it becomes
/// the app's parent and must supervise it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Start {
    pub store: Store,
    pub name: String,
    pub what: What,
    /// What the app is told, remembered in its record.
    #[serde(default)]
    pub hooks: Hooks,
    /// Why the app is brought up, for whoever reads its record.
    #[serde(default)]
    pub cause: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Run(RunOptions),
    Restore { appshot: PathBuf, options: RestoreOptions },
}

/// What shortens a restore, made before it was asked for.
#[derive(Debug, Default)]
pub struct Ready {
    /// The appshot that is asked for.
    pub from: Option<From>,
    /// Made by the thread that restores; what does not suit stays.
    pub spare: Option<Spare>,
    /// An instance of `from`, by the same thread, for those who want it so.
    pub prepared: Option<Prepared>,
    /// Of these, until they are gone or an app with a record.
    pub journal: Option<Journal>,
    /// How long it took to unpack the appshot.
    pub unpacked: Option<Phase>,
}

impl Ready {
    /// A husk in a cgroup of its own, and its journal.
    pub fn spare(store: &Store) -> Result<Ready> {
        let (group, journal) = own_group(store)?;
        Ok(Ready {
            spare: Some(Spare::make(group)?),
            journal,
            ..Ready::default()
        })
    }

    /// The same with an instance forked off a template, by a thread that may be eager.
    pub fn forked(store: &Store, nursery: &Nursery, eager: Option<&Eager>) -> Result<Ready> {
        let (group, journal) = own_group(store)?;
        Ok(Ready {
            prepared: Some(nursery.instance(group, eager)?),
            journal,
            ..Ready::default()
        })
    }

    /// For one that has time until it is asked for, and is likely to write to these pages.
    pub fn warmed(self, own: &[Span]) -> Result<Ready> {
        self.prepared.as_ref().map(|prepared| prepared.warm(own)).transpose()?;
        Ok(self)
    }

    /// The same with an instance that is prepared.
    pub fn prepared(store: &Store, from: From, way: Way) -> Result<Ready> {
        let (group, journal) = own_group(store)?;
        Ok(Ready {
            prepared: Some(restore::prepare(&from, way, group)?),
            from: Some(from),
            journal,
            ..Ready::default()
        })
    }

    fn is_all_for(&self, what: &What) -> bool {
        match (what, &self.from, &self.spare, &self.prepared) {
            (What::Restore { options, .. }, _, _, Some(prepared)) => prepared.way() == Way::of(options),
            (What::Restore { options, .. }, Some(from), Some(spare), None) => spare.suits(from.shot(), options.pids),
            _ => false,
        }
    }
}

/// A cgroup that no app's name leads to, and the journal of what waits in it.
fn own_group(store: &Store) -> Result<(Option<PathBuf>, Option<Journal>)> {
    let group = libsnap::cgroup::create_spare()?;
    let journal = group.as_deref().map(|group| Journal::spare(store, group)).transpose();
    let journal = journal.inspect_err(|_| drop(group.as_deref().map(libsnap::cgroup::destroy)))?;
    Ok((group, journal))
}

/// An app that has come up.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Started {
    pub instance: Instance,
    pub app: App,
}

impl Start {
    /// A new app.
    pub fn run(store: Store, options: RunOptions) -> Start {
        Start {
            store,
            name: options.name.clone(),
            what: What::Run(options),
            hooks: Hooks::default(),
            cause: None,
        }
    }

    /// Names the instance that `appshot` becomes: as asked, or as the appshot
    /// is called.
    pub fn restore(store: Store, name_or_path: &str, mut options: RestoreOptions) -> Result<Start> {
        let appshot = store.resolve_appshot(name_or_path)?;
        let name = match &options.name {
            Some(name) => name.clone(),
            None if store.is_stored(&appshot, name_or_path) => name_or_path.to_owned(),
            None => named_by(&appshot)?,
        };
        libsnap::store::validate(&name)?;
        options.name = Some(name.clone());
        let stored = store.is_stored(&appshot, name_or_path).then_some(name_or_path);
        let hooks = declared(&store, [Some(&name), stored.filter(|stored| *stored != name)])?;
        let what = What::Restore { appshot, options };
        Ok(Start {
            store,
            name,
            what,
            hooks,
            cause: None,
        })
    }

    /// The same request with these hooks, beside those that were declared before.
    pub fn hooked(mut self, hooks: Hooks) -> Result<Start> {
        let mut named = hooks.before_snapshot.iter().chain(&hooks.after_restore);
        named.try_for_each(hooks::sensible)?;
        self.hooks = hooks.or(&self.hooks);
        Ok(self)
    }

    /// The same request with why it is made, one word.
    pub fn caused(mut self, cause: Option<String>) -> Result<Start> {
        self.cause = cause.map(sensible_cause).transpose()?;
        Ok(self)
    }

    /// Random state that clones of the app would share, where neither the app nor its
    /// owner has said that it is renewed after a restore.
    pub fn shared_randomness(&self) -> Result<Vec<Refusal>> {
        let What::Restore { appshot, .. } = &self.what else {
            return Ok(Vec::new());
        };
        if !self.hooks.after_restore.is_empty() && !self.hooks.none {
            return Ok(Vec::new());
        }
        let shot = Appshot::open_unverified_memory(appshot)?;
        match shot.manifest.participants.is_empty() {
            true => Ok(randomness::known(&shot)),
            false => Ok(Vec::new()),
        }
    }

    /// The same request for another instance.
    #[must_use]
    pub fn named(&self, name: String) -> Start {
        let mut other = self.clone();
        if let What::Restore { options, .. } = &mut other.what {
            options.name = Some(name.clone());
        }
        other.name = name;
        other
    }

    /// The same request with its output going to the app's log.
    #[must_use]
    pub fn logged(mut self) -> Start {
        let log = Stdio::Log(self.store.log_path(&self.name));
        *self.stdio() = log;
        self
    }

    /// The same request with our own stdin, stdout and stderr.
    #[must_use]
    pub fn attached(mut self) -> Start {
        *self.stdio() = Stdio::Inherit;
        self
    }

    fn stdio(&mut self) -> &mut Stdio {
        match &mut self.what {
            What::Run(options) => &mut options.stdio,
            What::Restore { options, .. } => &mut options.stdio,
        }
    }

    /// Brings the app up and writes its record.
    pub fn go(&mut self) -> Result<Started> {
        self.go_unless(&|| false)
    }

    /// The same; a restore is given up and undone once `cancelled` says so.
    pub fn go_unless(&mut self, cancelled: Cancelled<'_>) -> Result<Started> {
        self.go_with(cancelled, &mut Ready::default())
    }

    /// Unpacks the appshot where the store keeps it packed, and notes that.
    pub fn unpack(&self, ready: &mut Ready) -> Result<()> {
        let What::Restore { appshot, .. } = &self.what else {
            return Ok(());
        };
        let began = Instant::now();
        if self.store.unpack_stored(appshot)? {
            let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
            let name = UNPACK.to_owned();
            ready.unpacked = Some(Phase { name, micros });
        }
        Ok(())
    }

    /// The same with what was made ready by this thread.
    pub fn go_with(&mut self, cancelled: Cancelled<'_>, ready: &mut Ready) -> Result<Started> {
        let began_ns = libsnap::clocks::boottime_ns();
        // What is open already has been unpacked.
        if ready.from.is_none() {
            self.unpack(ready)?;
        }
        let _busy = self.store.try_lock(&self.name)?;
        self.make_room()?;
        if let What::Restore { options, .. } = &mut self.what {
            options.notices = hooks::notices(&self.hooks);
        }
        // The journal of a spare is there already.
        let _born = match (ready.is_all_for(&self.what), &mut ready.journal) {
            (true, Some(journal)) => journal.named(&self.name).map(|()| None)?,
            _ => Some(Journal::birth(&self.store, &self.name)?),
        };
        let mut instance = self.launch(cancelled, ready)?;
        if let Some(unpacked) = ready.unpacked.take() {
            instance.total_micros += unpacked.micros;
            instance.phases.insert(0, unpacked);
        }
        if matches!(self.what, What::Restore { .. }) {
            let told = hooks::after_restore(&self.hooks, &instance);
            instance.warnings = told.map_err(|error| {
                undo(&instance);
                error.state("it was ended; nothing was left behind")
            })?;
        }
        let app = self.record(&instance, began_ns).inspect_err(|_| undo(&instance))?;
        if ready.spare.is_none() && ready.prepared.is_none() {
            ready.journal = None;
        }
        Ok(Started { instance, app })
    }

    /// A dead instance of this name may have left its cgroup, when its
    /// supervisor was killed or has not come to it yet.
    fn make_room(&self) -> Result<()> {
        match self.store.vacant(&self.name)? {
            Some(app) => self.store.clear_cgroup(&app, libsnap::clocks::boottime_ns()),
            None => Ok(()),
        }
    }

    fn launch(&self, cancelled: Cancelled<'_>, ready: &mut Ready) -> Result<Instance> {
        let (appshot, options) = match &self.what {
            What::Run(options) => return libsnap::launch::run(options),
            What::Restore { appshot, options } => (appshot, options),
        };
        match (ready.prepared.take_if(|it| it.way() == Way::of(options)), &ready.from) {
            (Some(prepared), _) => restore::finish(cancelled, prepared, options),
            (None, Some(from)) => restore::restore_from(cancelled, from, &mut ready.spare, options),
            (None, None) => restore::restore_unless(cancelled, appshot, options),
        }
    }

    fn record(&mut self, instance: &Instance, began_ns: u64) -> Result<App> {
        let log = match self.stdio() {
            Stdio::Log(path) => Some(path.clone()),
            _ => None,
        };
        let mut app = App::of_instance(instance, self.command(instance))?;
        app.name.clone_from(&self.name);
        app.log = log;
        app.coming_ns = app.started_boot_ns.saturating_sub(began_ns);
        app.cause.clone_from(&self.cause);
        app.hooks = Hooks {
            none: false,
            ..self.hooks.clone()
        };
        if let What::Restore { appshot, .. } = &self.what {
            app.from = Some(appshot.clone());
        }
        self.store.put(&app)?;
        Ok(app)
    }

    fn command(&self, instance: &Instance) -> Vec<String> {
        match &self.what {
            What::Run(options) => options.command.clone(),
            What::Restore { .. } => command_of(instance),
        }
    }
}

/// Why something is done, as one word.
pub fn sensible_cause(cause: String) -> Result<String> {
    let is_word = (1..=CAUSE_BYTES_MAX).contains(&cause.len())
        && cause.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    match is_word {
        true => Ok(cause),
        false => Err(Error::new(Kind::Usage, format!("{cause:?} is no cause"))
            .because("it is one word of lower-case letters, such as request")),
    }
}

/// The hooks of the first of these that has a record.
fn declared(store: &Store, names: [Option<&str>; 2]) -> Result<Hooks> {
    let mut records = names.into_iter().flatten().map(|name| store.find(name));
    let first = records.find_map(Result::transpose).transpose()?;
    Ok(first.map(|app| app.hooks).unwrap_or_default())
}

/// The app's name stands in the manifest of an appshot directory; a packed one
/// is called as its file is.
pub fn named_by(appshot: &Path) -> Result<String> {
    let manifest = appshot.join(MANIFEST);
    if manifest.exists() {
        return Ok(read_manifest(&manifest)?.app);
    }
    let name = appshot.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix(SUFFIX).unwrap_or(&name);
    Ok(libsnap::store::from_command(name))
}

/// Only for the name: the engine verifies the whole appshot by itself.
fn read_manifest(path: &Path) -> Result<Manifest> {
    let what = || format!("cannot read {}", path.display());
    let mut bytes = Vec::new();
    let limit = libsnap::image::limits::MANIFEST_BYTES + 1;
    let file = std::fs::File::open(path).or_fail(what)?;
    file.take(limit).read_to_end(&mut bytes).or_fail(what)?;
    libsnap::image::parse_manifest(&bytes)
}

/// The command line that a restored process shows.
fn command_of(instance: &Instance) -> Vec<String> {
    let text = libsnap::proc::read(format!("/proc/{}/cmdline", instance.root)).unwrap_or_default();
    text.split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// An app without a record could not be found again: it must not go on.
fn undo(instance: &Instance) {
    let child = nix::unistd::Pid::from_raw(instance.child().0);
    let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
    let _ = nix::sys::wait::waitpid(child, None);
    if let Some(cgroup) = &instance.cgroup {
        let _ = libsnap::cgroup::destroy(cgroup);
    }
}
