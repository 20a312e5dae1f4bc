//! What a person may type.

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use libsnap::target::{Hooks, SnapshotOptions, signal_number};
use nodekit::args::{
    After, Before, Dirs, EXIT_CODES, JoinedNetwork, LimitArgs, Net, Output, Patience, Pids, Policies, RestoreArgs,
    Silence, User, hooks,
};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use usage::export::Format;
use usage::period::Period;

/// Freezes process trees into appshots and brings them back
#[derive(Debug, Parser)]
#[command(name = "appshot", version, after_help = EXIT_CODES, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub dirs: Dirs,
    /// Print nothing but results and errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a command as an app
    Run(Run),
    /// List the apps
    Ps(Ps),
    /// Freeze an app into an appshot
    Snapshot(Snapshot),
    /// Bring an appshot back to life
    Restore(Restore),
    /// Make instances of an appshot that share its memory; asks restored
    Clone(Clone),
    /// Put an instance back to its appshot, as if it had just been restored; asks restored
    Revert(Revert),
    /// Run the daemons of a node in front, and tell what its apps do, until Ctrl-C
    Up(Up),
    /// Deploy an app on this node: it sleeps while nobody uses it; asks edgepointd
    Deploy(Deploy),
    /// Have a new version of a deployed app serve, once it is seen to work; asks edgepointd
    Update(Update),
    /// Have the version of a deployed app serve again that did before; asks edgepointd
    Rollback(Deployed),
    /// List the deployed apps; asks edgepointd
    Apps(Apps),
    /// Tell the state of a deployed app and what keeps it there; asks edgepointd
    Status(Status),
    /// Put a deployed app to sleep until it is resumed; who comes waits; asks edgepointd
    Suspend(Deployed),
    /// Let a suspended app be woken again, or wake one that sleeps; asks edgepointd
    Resume(Deployed),
    /// Say how many instances of a deployed app there may be; asks edgepointd
    Scale(Scale),
    /// Tell what has happened to deployed apps; asks edgepointd
    Events(Events),
    /// Tell what deployed apps take, again and again on a terminal; asks edgepointd
    Top(Top),
    /// Let providers ask this node from elsewhere (edgepointd --api); asks edgepointd
    #[command(subcommand)]
    Provider(Provider),
    /// Keep what deployed apps are told that stands in no manifest and no appshot; asks edgepointd
    #[command(subcommand)]
    Secret(Secret),
    /// End a deployed app and forget it, with its appshot; asks edgepointd
    Remove(Deployed),
    /// Show what is in an appshot
    Inspect(Inspect),
    /// Tell in what the app of one appshot is not as in another
    Diff(Diff),
    /// Restore an appshot unseen, hold it against itself, and end that again
    Rehearse(Rehearse),
    /// Tell what a snapshot would refuse; touch nothing
    Check(Check),
    /// Send a signal to an app
    Kill(Kill),
    /// Forget an app that does not run
    Rm(Rm),
    /// Show the output of a detached or deployed app
    Logs(Logs),
    /// Look after the store: list, verify, make room, send appshots elsewhere
    #[command(subcommand)]
    Store(Store),
    /// Tell what apps have used, and make the bill of it
    #[command(subcommand)]
    Usage(Usage),
    /// Write an appshot anew so that it needs no parent
    Flatten(Flatten),
    /// Tell what the kernel offers and what is missing
    Doctor(Doctor),
    /// Show it all on a real server: freeze, gone, back, with the milliseconds
    Demo(Demo),
    /// Print the completions of a shell
    Completions(Completions),
}

#[derive(Args, Debug)]
pub struct Run {
    /// Name of the app [default: the command's]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Return when the app runs; its output goes to its log
    #[arg(short, long)]
    pub detach: bool,
    /// Set a variable in the app's environment
    #[arg(long, value_name = "KEY=VALUE", value_parser = variable)]
    pub env: Vec<String>,
    /// Working directory of the app
    #[arg(long, value_name = "DIR")]
    pub cwd: Option<PathBuf>,
    /// User and group to run as, by name or number [default group: the user's]
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<User>,
    /// Host name that the app sees
    #[arg(long, value_name = "NAME")]
    pub hostname: Option<String>,
    /// PIDs of the app on the host
    #[arg(long, value_enum, default_value_t)]
    pub pids: Pids,
    #[command(flatten)]
    pub joined: JoinedNetwork,
    /// A value that the app finds in the file /run/appshot-instance/vars/NAME; more than once
    /// for several
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = nodekit::args::variable)]
    pub vars: Vec<(String, String)>,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub before: Before,
    #[command(flatten)]
    pub after: After,
    #[command(flatten)]
    pub patience: Patience,
    #[command(flatten)]
    pub output: Output,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<String>,
}

#[derive(Args, Debug)]
pub struct Ps {
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct Snapshot {
    /// Name of an app, or a PID: the process tree below it
    #[arg(value_name = "NAME|PID")]
    pub target: String,
    /// Write the appshot to this new directory instead of the store
    #[arg(long = "to", alias = "out", value_name = "DIR", conflicts_with_all = ["tag", "replace"])]
    pub dest: Option<PathBuf>,
    /// Name in the store [default: the app's]
    #[arg(long, value_name = "NAME")]
    pub tag: Option<String>,
    /// Overwrite the appshot of that name
    #[arg(long)]
    pub replace: bool,
    /// Let the app go on; otherwise it ends once the appshot is sealed
    #[arg(long)]
    pub leave_running: bool,
    /// Rehearse the new appshot: restore it unseen and without running it, freeze that again,
    /// and hold the two against each other. An app that is to end waits for that, and goes on
    /// if the appshot is not verified (exit 7)
    #[arg(long)]
    pub verify: bool,
    /// Store only what differs from this appshot of the same app, which is needed from
    /// then on. It must stand in the same directory; give the new one a name with --tag
    #[arg(long, value_name = "NAME|PATH")]
    pub parent: Option<String>,
    /// Take one after the other while the app runs, such as every 30s, until Ctrl-C or the
    /// end of the app; they are called PREFIX-DATE-TIME
    #[arg(long, value_name = "TIME", value_parser = libsnap::units::parse_span, conflicts_with_all = ["dest", "tag", "replace", "parent", "verify"])]
    pub every: Option<Duration>,
    /// How many of these are kept; the oldest goes once a newer one is sealed. As many more
    /// may be there whose pages they borrow
    #[arg(long, value_name = "N", default_value_t = 10, requires = "every")]
    pub keep: usize,
    /// What their names begin with [default: the app's name]
    #[arg(long = "name", value_name = "PREFIX", requires = "every")]
    pub prefix: Option<String>,
    /// Copy memory while the app runs, so that it stands still for less [default: for
    /// large apps]
    #[arg(long, value_name = "yes|no", num_args = 0..=1, default_missing_value = "yes", value_parser = clap::builder::BoolishValueParser::new())]
    pub precopy: Option<bool>,
    #[command(flatten)]
    pub policies: Policies,
    #[command(flatten)]
    pub before: Before,
    #[command(flatten)]
    pub patience: Patience,
    #[command(flatten)]
    pub silence: Silence,
    #[command(flatten)]
    pub output: Output,
}

impl Snapshot {
    pub fn hooks(&self) -> Hooks {
        hooks(Some(&self.before), None, self.patience, self.silence)
    }

    pub fn options(&self) -> SnapshotOptions {
        SnapshotOptions {
            leave_running: self.leave_running,
            precopy: self.precopy,
            verify: self.verify,
            ..policies(self.policies)
        }
    }
}

pub fn policies(policies: Policies) -> SnapshotOptions {
    SnapshotOptions {
        tcp: policies.tcp.into(),
        outside: policies.outside.into(),
        ..SnapshotOptions::default()
    }
}

#[derive(Args, Debug)]
pub struct Restore {
    /// Name of an appshot in the store, or its path
    #[arg(value_name = "NAME|PATH")]
    pub appshot: String,
    #[command(flatten)]
    pub how: RestoreArgs,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct Clone {
    /// Name of an appshot in the store, or its path
    #[arg(value_name = "NAME|PATH")]
    pub appshot: String,
    /// How many
    #[arg(short = 'n', long, value_name = "N", default_value_t = 1)]
    pub count: usize,
    /// The clones are NAME-1, NAME-2 and so on [default: the appshot's name]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Network of each
    #[arg(long, value_enum, default_value_t = Net::Auto)]
    pub network: Net,
    /// A value that the clones find in the file /run/appshot-instance/vars/NAME; more
    /// than once for several
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = nodekit::args::variable)]
    pub vars: Vec<(String, String)>,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub after: After,
    #[command(flatten)]
    pub patience: Patience,
    #[command(flatten)]
    pub silence: Silence,
    /// Refuse to clone an app whose random numbers would be the same in each, as far as
    /// can be told
    #[arg(long)]
    pub strict: bool,
    /// Connections that would go on with their peers (snapshot --tcp=established) come back as closed by these
    #[arg(long)]
    pub tcp_close: bool,
    /// Note what each writes, so that already the first revert of it is done in place
    #[arg(long)]
    pub revertible: bool,
    /// Socket of restored [default: restored.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct Revert {
    /// Name of an instance that restored has restored
    #[arg(value_name = "INSTANCE")]
    pub name: String,
    /// Socket of restored [default: restored.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct Up {
    /// Deploy servers that this machine has, to try it; they are removed at the end
    #[arg(long)]
    pub demo: bool,
    /// Take HTTP requests here for all apps that have routes; several times for more addresses
    #[arg(long, value_name = "ADDR:PORT")]
    pub http: Vec<SocketAddr>,
    /// Answer providers here, over TLS; several times for more addresses
    #[arg(long, value_name = "ADDR:PORT")]
    pub api: Vec<SocketAddr>,
    /// Give instances addresses of this network, where their manifests ask for them
    #[arg(long, value_name = "NETWORK")]
    pub subnet: Option<String>,
}

/// Where the daemon of the node is.
#[derive(Args, Debug)]
pub struct Node {
    /// Socket of edgepointd [default: edgepointd.sock in the run directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Ask a node elsewhere, with a token: https://HOST:PORT
    #[arg(long, value_name = "URL", env = "APPSHOT_API", help_heading = REMOTE)]
    pub api: Option<String>,
    /// The token, in a file [default: that in the environment variable APPSHOT_TOKEN]
    #[arg(long, value_name = "FILE", env = "APPSHOT_TOKEN_FILE", help_heading = REMOTE)]
    pub token_file: Option<PathBuf>,
    /// Who vouches for that node: a PEM file [default: whom the system trusts]
    #[arg(long, value_name = "FILE", env = "APPSHOT_API_CA", help_heading = REMOTE, conflicts_with = "api_fingerprint")]
    pub api_ca: Option<PathBuf>,
    /// Or the fingerprint of its certificate, as edgepointd tells it
    #[arg(long, value_name = "sha256:DIGITS", env = "APPSHOT_API_FINGERPRINT", help_heading = REMOTE)]
    pub api_fingerprint: Option<String>,
}

const REMOTE: &str = "A node elsewhere";

#[derive(Args, Debug)]
pub struct Edgepoint {
    #[command(flatten)]
    pub node: Node,
    #[command(flatten)]
    pub output: Output,
}

/// How a change is asked for.
#[derive(Args, Debug)]
pub struct Asked {
    /// Return at once; it is done whoever waits
    #[arg(long)]
    pub no_wait: bool,
    /// Only if nobody has changed it since this tag was told (`etag` of status -o json)
    #[arg(long, value_name = "TAG")]
    pub if_match: Option<String>,
}

#[derive(Args, Debug)]
pub struct Deploy {
    /// The app's manifest (TOML); - for stdin
    #[arg(value_name = "FILE")]
    pub manifest: PathBuf,
    /// Return at once; otherwise when the app is up
    #[arg(long)]
    pub no_wait: bool,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct Apps {
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct Status {
    /// App id
    #[arg(value_name = "APP")]
    pub app: String,
    /// Return when it is in this state, or has failed; settled: it neither comes nor goes, and
    /// no other version of it is made
    #[arg(long, value_name = "STATE", value_parser = ["running", "asleep", "suspended", "settled"])]
    pub wait: Option<String>,
    /// Tell why it is awake or asleep, and has as many instances as it has
    #[arg(long, conflicts_with = "wait")]
    pub why: bool,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct Update {
    /// The manifest of the new version (TOML); - for stdin
    #[arg(value_name = "FILE")]
    pub manifest: PathBuf,
    #[command(flatten)]
    pub asked: Asked,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct Deployed {
    /// App id
    #[arg(value_name = "APP")]
    pub app: String,
    #[command(flatten)]
    pub asked: Asked,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct Scale {
    /// App id
    #[arg(value_name = "APP")]
    pub app: String,
    /// Just so many, or no fewer and no more than these: 3, or 0..4
    #[arg(value_name = "N|MIN..MAX", value_parser = bounds)]
    pub bounds: (usize, usize),
    #[command(flatten)]
    pub asked: Asked,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct Events {
    /// App id [default: all]
    #[arg(value_name = "APP")]
    pub app: Option<String>,
    /// Go on with those that come, until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    /// How many of those that there are; the newest
    #[arg(short = 'n', long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub lines: u32,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct Top {
    /// Look again after so long; once where stdout is no terminal
    #[arg(short, long, value_name = "TIME", default_value = "1s", value_parser = libsnap::units::parse_span)]
    pub interval: Duration,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Debug, Subcommand)]
pub enum Provider {
    /// Let a provider ask, and print its token: it is shown this once
    Add(ProviderAdd),
    /// List the providers, with what they have and may have
    #[command(visible_alias = "ls")]
    List(Providers),
    /// Show a provider: what it has, and what it may have
    Show(ProviderNamed),
    /// Say whom a provider's apps may run as, from now on
    Allow(ProviderAllow),
    /// Change what a provider may have; what it has stays
    Set(ProviderSet),
    /// Give a provider another token, and print it
    Rotate(ProviderRotate),
    /// Forget a provider and its tokens; it must have no apps
    Remove(ProviderNamed),
}

/// What a provider may have: `none` lifts a limit.
#[derive(Args, Clone, Copy, Debug)]
pub struct Quota {
    /// Apps that it may have deployed, or `none`
    #[arg(long, value_name = "COUNT", value_parser = limit)]
    pub apps: Option<Limit>,
    /// Instances of all its apps that may run at once, or `none`
    #[arg(long, value_name = "COUNT", value_parser = limit)]
    pub instances: Option<Limit>,
    /// Memory that these may have together, such as 2G, or `none`
    #[arg(long, value_name = "BYTES", value_parser = limit_of_bytes)]
    pub memory: Option<Limit>,
    /// What the appshots of its apps may take on disk, or `none`: with more it deploys nothing
    #[arg(long, value_name = "BYTES", value_parser = limit_of_bytes)]
    pub appshots: Option<Limit>,
}

/// None where there is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<u64>);

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        number => number
            .parse()
            .map(|number| Limit(Some(number)))
            .map_err(|_| "neither a number nor `none`".to_owned()),
    }
}

fn limit_of_bytes(text: &str) -> Result<Limit, String> {
    match text {
        "none" => Ok(Limit(None)),
        bytes => libsnap::units::parse_bytes(bytes).map(|bytes| Limit(Some(bytes))),
    }
}

#[derive(Args, Debug)]
pub struct ProviderSet {
    /// Name of the provider
    pub name: String,
    #[command(flatten)]
    pub quota: Quota,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct ProviderAllow {
    /// Name of the provider
    pub name: String,
    /// Whom its apps may run as, by name or number; the first where a manifest does not say.
    /// Who may be root has the node
    #[arg(long = "user", value_name = "USER[:GROUP]", required = true)]
    pub users: Vec<String>,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct ProviderAdd {
    /// Name of the provider
    pub name: String,
    /// Whom its apps may run as, by name or number; the first where a manifest does not say.
    /// Who may be root has the node
    #[arg(long = "user", value_name = "USER[:GROUP]", required = true)]
    pub users: Vec<String>,
    #[command(flatten)]
    pub quota: Quota,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct Providers {
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct ProviderRotate {
    /// Name of the provider
    pub name: String,
    /// How long the tokens that it has are good yet
    #[arg(long, value_name = "TIME", value_parser = libsnap::units::parse_span)]
    pub grace: Option<Duration>,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct ProviderNamed {
    /// Name of the provider
    pub name: String,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Debug, Subcommand)]
pub enum Secret {
    /// Set a secret to what comes on stdin, or to what a file holds; who starts or wakes from now
    /// on is told it
    Set(SecretSet),
    /// List the secrets, without their values
    #[command(visible_alias = "ls")]
    List(Secrets),
    /// Remove a secret
    #[command(visible_alias = "rm")]
    Remove(SecretNamed),
}

/// Whose secrets.
#[derive(Args, Debug)]
pub struct Secrets {
    /// Provider whose they are, for the node's owner
    #[arg(long, value_name = "NAME")]
    pub provider: Option<String>,
    #[command(flatten)]
    pub edgepoint: Edgepoint,
}

#[derive(Args, Debug)]
pub struct SecretSet {
    /// Name of the secret: that of its file in /run/appshot-instance/secrets
    pub name: String,
    /// What it is, instead of stdin
    #[arg(long, value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[command(flatten)]
    pub of: Secrets,
}

#[derive(Args, Debug)]
pub struct SecretNamed {
    /// Name of the secret
    pub name: String,
    #[command(flatten)]
    pub of: Secrets,
}

#[derive(Args, Debug)]
pub struct Inspect {
    /// Name of an appshot in the store, or its path
    #[arg(value_name = "NAME|PATH")]
    pub appshot: String,
    /// The processes
    #[arg(long)]
    pub tree: bool,
    /// Their descriptors
    #[arg(long)]
    pub fds: bool,
    /// Their sockets
    #[arg(long)]
    pub sockets: bool,
    /// Their mappings
    #[arg(long)]
    pub memory: bool,
    /// Hold every byte against its digest
    #[arg(long)]
    pub verify: bool,
    /// Write the core of this process, verified and with what it borrows, to a new file
    /// for gdb
    #[arg(long, num_args = 2, value_names = ["PID", "FILE"])]
    pub core: Vec<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Subcommand)]
pub enum Store {
    /// List the appshots, the oldest first, and who needs them
    Ls(StoreLs),
    /// Hold every byte against its digest, and name each damaged part
    Verify(StoreVerify),
    /// Remove what nothing needs, the oldest first
    ///
    /// Leftovers of killed writers go in any case. An appshot goes only by a rule, and
    /// never while an app sleeps in it, an instance that was restored from it runs, or
    /// another appshot borrows pages of it.
    Gc(StoreGc),
    /// Tell how much the store may take, or change it
    Quota(StoreQuota),
    /// Keep appshots compressed; a restore unpacks them
    Compress(StoreCompress),
    /// Write an appshot, compressed, into one file
    Export(StoreExport),
    /// Take in an exported appshot, once it is verified
    Import(StoreImport),
}

#[derive(Debug, Subcommand)]
pub enum Usage {
    /// List what each app has used in a month, and what that costs
    Show(UsageShow),
    /// Write the bill: a row for each hour, instance and meter
    ///
    /// CSV and JSON have the columns of FOCUS 1.4; JSON is one object a line.
    Export(UsageExport),
    /// Write the bill for people: one page of HTML with a chart of demand and charge
    Statement(UsageStatement),
    /// List when instances began and ended, and why, and what was not metered
    Events(UsageEvents),
    /// Tell where a row of the bill comes from: records, counters, price
    Explain(UsageExplain),
    /// Verify the ledger: its chain, signatures and counters, and the node's own counters
    /// against what was billed; make the bill again
    ///
    /// A bill that was exported before is held against the one that is made now, line by line.
    Verify(UsageVerify),
    /// Write down that a row of the bill should have counted more, or less
    ///
    /// The row stays as it is; the difference is billed in this month.
    Correct(UsageCorrect),
    /// Rewrite old parts of the ledger to what bills are made of
    Compact(UsageCompact),
    /// List what uses most: sum, mean, maximum, RMS and percentiles
    Top(UsageTop),
    /// Draw use over time
    Chart(UsageChart),
}

/// What is billed, and how.
#[derive(Args, Debug)]
pub struct Billed {
    /// Only of this provider
    #[arg(long, value_name = "PROVIDER")]
    pub provider: Option<String>,
    /// A month such as 2026-11, or a day of it such as 2026-11-29, in the time zone of the
    /// rate card [default: this month]
    #[arg(long, value_name = "PERIOD")]
    pub period: Option<Period>,
    /// A rate card; more than once for several [default: usage/rates/*.toml in the data
    /// directory]
    #[arg(long, value_name = "FILE")]
    pub rates: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub struct UsageShow {
    #[command(flatten)]
    pub billed: Billed,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// Comma-separated values with a header
    #[default]
    Csv,
    /// The same rows as JSON, one a line
    Json,
    /// The same rows as a table, with decimals and moments
    Parquet,
    /// Usage without costs as CloudEvents 1.0, one a line
    #[value(name = "cloudevents")]
    CloudEvents,
}

impl From<ExportFormat> for Format {
    fn from(format: ExportFormat) -> Format {
        match format {
            ExportFormat::Csv => Format::Csv,
            ExportFormat::Json => Format::Json,
            ExportFormat::Parquet => Format::Parquet,
            ExportFormat::CloudEvents => Format::CloudEvents,
        }
    }
}

#[derive(Args, Debug)]
pub struct UsageExport {
    #[command(flatten)]
    pub billed: Billed,
    /// How the rows are written
    #[arg(long, value_enum, default_value_t)]
    pub format: ExportFormat,
    /// The new file; - is stdout [default: -]
    #[arg(short = 'o', long = "output", value_name = "FILE|-")]
    pub output: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct UsageStatement {
    #[command(flatten)]
    pub billed: Billed,
    /// The new file; - is stdout [default: -]
    #[arg(short = 'o', long = "output", value_name = "FILE|-")]
    pub output: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct UsageEvents {
    /// Only of this app
    #[arg(long, value_name = "APP")]
    pub app: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct UsageExplain {
    /// Its x_EventId, or the first digits of it
    #[arg(value_name = "ID")]
    pub event: String,
    #[command(flatten)]
    pub billed: Billed,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct UsageVerify {
    /// A bill that was exported in whatever format with the same provider, period and rate
    /// cards
    #[arg(value_name = "BILL")]
    pub bill: Option<PathBuf>,
    #[command(flatten)]
    pub billed: Billed,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct UsageCorrect {
    /// Its x_EventId, or the first eight digits of it or more
    #[arg(value_name = "ID")]
    pub event: String,
    /// What it should have counted, in its ConsumedUnit
    #[arg(long, value_name = "COUNT")]
    pub count: u128,
    /// Why, in one line
    #[arg(long, value_name = "TEXT")]
    pub reason: String,
    /// Month of the row [default: this month]
    #[arg(long, value_name = "PERIOD")]
    pub period: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct UsageCompact {
    /// What is older than so many days
    #[arg(long, value_name = "DAYS", default_value_t = 35, value_parser = clap::value_parser!(u64).range(1..=36_500))]
    pub after: u64,
    /// After so many days remove records but for what later bills need
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(u64).range(1..=36_500))]
    pub remove_after: Option<u64>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Measure {
    /// Processors in use
    #[default]
    Cpu,
    /// Bytes held
    Memory,
    /// Requests a second
    Requests,
    /// Bytes of answers a second
    Sent,
}

impl From<Measure> for usage::rollups::Measure {
    fn from(of: Measure) -> Self {
        match of {
            Measure::Cpu => Self::Cpu,
            Measure::Memory => Self::Memory,
            Measure::Requests => Self::Requests,
            Measure::Sent => Self::Sent,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Step {
    #[value(name = "1s")]
    Second,
    #[default]
    #[value(name = "1m")]
    Minute,
    #[value(name = "1h")]
    Hour,
    #[value(name = "1d")]
    Day,
}

impl From<Step> for usage::rollups::Step {
    fn from(step: Step) -> Self {
        match step {
            Step::Second => Self::Second,
            Step::Minute => Self::Minute,
            Step::Hour => Self::Hour,
            Step::Day => Self::Day,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum By {
    Instance,
    #[default]
    App,
    Provider,
    Node,
}

impl From<By> for usage::rollups::By {
    fn from(by: By) -> Self {
        match by {
            By::Instance => Self::Instance,
            By::App => Self::App,
            By::Provider => Self::Provider,
            By::Node => Self::Node,
        }
    }
}

/// What is looked at, and how closely.
#[derive(Args, Debug)]
pub struct Looked {
    /// What is measured
    #[arg(long, value_enum, default_value_t)]
    pub of: Measure,
    /// How long a value stands for: 1s is kept for ten minutes, 1m for two days, 1h for 400
    /// days, 1d for ten years
    #[arg(long, value_enum, default_value_t)]
    pub step: Step,
    /// How far back [default: all that is kept]
    #[arg(long, value_name = "TIME", value_parser = libsnap::units::parse_span)]
    pub since: Option<std::time::Duration>,
}

#[derive(Args, Debug)]
pub struct UsageTop {
    #[command(flatten)]
    pub looked: Looked,
    /// What is compared
    #[arg(long, value_enum, default_value_t)]
    pub by: By,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct UsageChart {
    /// Name of an app, a provider or an instance [default: the node]
    #[arg(value_name = "NAME")]
    pub name: Option<String>,
    /// What it is the name of
    #[arg(long, value_enum, default_value_t)]
    pub by: By,
    #[command(flatten)]
    pub looked: Looked,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
#[command(after_help = "Exits with 1 where there is a difference, as diff(1).")]
pub struct Diff {
    /// Name of an appshot in the store, or its path
    #[arg(value_name = "NAME|PATH")]
    pub one: String,
    /// One of the same app that was taken later
    #[arg(value_name = "NAME|PATH")]
    pub other: String,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct Rehearse {
    /// Name of an appshot in the store, or its path
    #[arg(value_name = "NAME|PATH")]
    pub appshot: String,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct Flatten {
    /// Name of an appshot in the store, or its path
    #[arg(value_name = "NAME|PATH")]
    pub appshot: String,
    /// Write it to this new directory and leave the appshot as it is
    #[arg(short = 'o', long = "to", alias = "out", value_name = "DIR")]
    pub dest: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct StoreLs {
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct StoreVerify {
    /// Names of appshots in the store, or their paths [default: all of the store]
    #[arg(value_name = "NAME|PATH")]
    pub appshots: Vec<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct StoreGc {
    /// Only tell what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// The newest N of each app stay; without another rule, all others go [default with
    /// another rule: 1]
    #[arg(long, value_name = "N")]
    pub keep: Option<usize>,
    /// What is older goes, such as 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = libsnap::units::parse_span)]
    pub older_than: Option<Duration>,
    /// The oldest go until the store takes no more, such as 10G
    #[arg(long, value_name = "SIZE", value_parser = libsnap::units::parse_bytes)]
    pub quota: Option<u64>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct StoreQuota {
    /// How much all appshots may take on disk, such as 10G; "none" or 0 is no limit. A
    /// snapshot or import that would exceed it is refused
    #[arg(value_name = "SIZE|none", value_parser = quota)]
    pub quota: Option<u64>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct StoreCompress {
    /// Names of appshots in the store
    #[arg(
        value_name = "NAME",
        required_unless_present = "idle_for",
        conflicts_with = "idle_for"
    )]
    pub names: Vec<String>,
    /// All that were neither taken nor restored for so long, such as 1d
    #[arg(long, value_name = "TIME", value_parser = libsnap::units::parse_span)]
    pub idle_for: Option<Duration>,
    /// Level of compression (zstd), from 1, the fastest, to 19
    #[arg(long, value_name = "N", default_value_t = libsnap::image::packed::LEVEL, value_parser = level)]
    pub level: i32,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct StoreExport {
    /// Name of an appshot in the store, or its path
    #[arg(value_name = "NAME|PATH")]
    pub appshot: String,
    /// The new file; - is stdout
    #[arg(
        short = 'o',
        long = "output",
        alias = "out",
        value_name = "FILE|-",
        default_value = "-"
    )]
    pub file: PathBuf,
    /// Level of compression (zstd), from 1, the fastest, to 19
    #[arg(long, value_name = "N", default_value_t = libsnap::image::packed::LEVEL, value_parser = level)]
    pub level: i32,
}

#[derive(Args, Debug)]
pub struct StoreImport {
    /// An exported appshot; - is stdin
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// Name in the store [default: the file's; of stdin, the app's]
    #[arg(long, alias = "tag", value_name = "NAME")]
    pub name: Option<String>,
    /// Unpack to this new directory instead of the store
    #[arg(long = "to", value_name = "DIR", conflicts_with_all = ["name", "replace"])]
    pub dest: Option<PathBuf>,
    /// Overwrite the appshot of that name
    #[arg(long)]
    pub replace: bool,
}

fn quota(text: &str) -> Result<u64, String> {
    match text {
        "none" => Ok(0),
        size => libsnap::units::parse_bytes(size),
    }
}

fn level(text: &str) -> Result<i32, String> {
    let levels = libsnap::image::packed::LEVELS;
    let level = text.parse().ok().filter(|level| levels.contains(level));
    level.ok_or_else(|| format!("it is from {} to {}", levels.start(), levels.end()))
}

#[derive(Args, Debug)]
pub struct Check {
    /// Name of an app, or a PID
    #[arg(value_name = "NAME|PID")]
    pub target: String,
    #[command(flatten)]
    pub policies: Policies,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct Kill {
    /// Name of an app
    pub name: String,
    /// Signal for its first process; KILL ends all of the app at once
    #[arg(short, long, value_name = "SIGNAL", default_value = "TERM", value_parser = signal_number)]
    pub signal: i32,
    /// Return when the app has ended
    #[arg(short, long)]
    pub wait: bool,
}

#[derive(Args, Debug)]
pub struct Rm {
    /// Name of an app
    pub name: String,
    /// Delete its appshot too
    #[arg(long)]
    pub appshot: bool,
}

#[derive(Args, Debug)]
pub struct Logs {
    /// Name of an app
    pub name: String,
    /// Go on until the app ends; of a deployed app until Ctrl-C
    #[arg(short, long)]
    pub follow: bool,
    #[command(flatten)]
    pub node: Node,
}

#[derive(Args, Debug)]
pub struct Doctor {
    #[command(flatten)]
    pub output: Output,
}

#[derive(Args, Debug)]
pub struct Demo {
    /// The server [default: the first that is installed]
    #[arg(long, value_enum, value_name = "SERVER")]
    pub with: Option<crate::demo::Name>,
}

#[derive(Args, Debug)]
pub struct Completions {
    pub shell: Shell,
}

/// `3`, `1..4`
fn bounds(text: &str) -> Result<(usize, usize), String> {
    let number = |text: &str| {
        text.parse()
            .map_err(|_| "it is N or MIN..MAX, such as 3 or 0..4".to_owned())
    };
    let bounds = match text.split_once("..") {
        Some((min, max)) => (number(min)?, number(max)?),
        None => (number(text)?, number(text)?),
    };
    match bounds {
        (0, 0) => Err("none at all is `appshot suspend`".to_owned()),
        (min, max) if min > max => Err("the first is more than the second".to_owned()),
        bounds => Ok(bounds),
    }
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((key, _)) if !key.is_empty() => Ok(text.to_owned()),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("appshot").chain(words.iter().copied()))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_keeps_its_own_flags() {
        let words = ["run", "--name", "web", "-d", "--env", "A=1", "--user", "7:8"];
        let cli = parse(&[&words[..], &["--", "sh", "-c", "-d"]].concat()).unwrap();
        let Command::Run(run) = cli.command else {
            panic!("not run: {:?}", cli.command);
        };
        assert_eq!(run.command, ["sh", "-c", "-d"]);
        assert_eq!(run.user, Some(User { uid: 7, gid: Some(8) }));
        assert!(run.detach);
    }

    #[test]
    fn users_have_names_and_numbers() {
        assert_eq!("7".parse(), Ok(User { uid: 7, gid: None }));
        assert_eq!("root".parse(), Ok(User { uid: 0, gid: Some(0) }));
        assert_eq!("root:8".parse(), Ok(User { uid: 0, gid: Some(8) }));
        assert_eq!("7:root".parse(), Ok(User { uid: 7, gid: Some(0) }));
    }

    #[test]
    fn nonsense_is_refused() {
        for words in [
            &["run"][..],
            &["run", "--env", "x", "--", "true"],
            &["run", "--user", "no-such-user", "--", "true"],
            &["run", "--user", "0:", "--", "true"],
            &["snapshot", "web", "--to", "x", "--tag", "y"],
            &["snapshot", "web", "--tcp", "maybe"],
            &["snapshot", "web", "--every", "30"],
            &["snapshot", "web", "--every", "30s", "--tag", "y"],
            &["snapshot", "web", "--keep", "3"],
            &["snapshot", "web", "--every", "30s", "--verify"],
            &["kill", "web", "-s", "NOPE"],
            &["ps", "-o", "yaml"],
            &["store", "gc", "--quota", "10X"],
            &["store", "gc", "--older-than", "7"],
            &["store", "export", "web", "--level", "20"],
            &["store", "import", "x", "--to", "y", "--name", "z"],
            &["scale", "web", "0"],
            &["scale", "web", "3..1"],
            &["scale", "web", "1.."],
            &["events", "-n", "1001"],
            &["provider", "add", "acme"],
            &["usage", "export", "--period", "2026-13"],
            &["usage", "export", "--format", "xls"],
        ] {
            assert_eq!(parse(words).unwrap_err().exit_code(), 2, "{words:?}");
        }
        assert_eq!(parse(&["snap"]).unwrap_err().kind(), ErrorKind::InvalidSubcommand);
    }

    #[test]
    fn exit_codes_are_in_the_help() {
        let help = Cli::command().render_help().to_string();
        assert!(help.contains("Exit codes:") && help.contains("  6  unavailable") && help.contains("  7  "));
    }
}
