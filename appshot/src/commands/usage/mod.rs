//! `usage`: the ledger of this node, and the bill that is made of it.

mod events;
mod keep;
mod over_time;

use crate::cli;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::store::{Store, now_unix_ms};
use nodekit::out;
use rust_decimal::Decimal;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use usage::bill::{Bill, rows};
use usage::card::{Cards, NONE};
use usage::export::{self, Format, Summary};
use usage::meter::Meter;
use usage::statement;
use usage::verify::{Report, hold_against, verify};

pub fn usage(store: &Store, command: &cli::Usage, quiet: bool) -> Result<u8> {
    match command {
        cli::Usage::Show(args) => show(store, args),
        cli::Usage::Export(args) => export(store, args, quiet),
        cli::Usage::Statement(args) => statement(store, args),
        cli::Usage::Events(args) => events::events(store, args),
        cli::Usage::Explain(args) => events::explain(store, args),
        cli::Usage::Verify(args) => verify_all(store, args),
        cli::Usage::Correct(args) => keep::correct(store, args),
        cli::Usage::Compact(args) => keep::compact(store, args),
        cli::Usage::Top(args) => over_time::top(store, args),
        cli::Usage::Chart(args) => over_time::chart(store, args),
    }
}

fn open(store: &Store, args: &cli::Billed) -> Result<Bill> {
    let usage = store.usage_dir();
    let cards = match args.rates.is_empty() {
        true => Cards::of(&usage)?,
        false => Cards::read(&args.rates)?,
    };
    Bill::open(&usage, cards, args.period.as_ref(), now_unix_ms()?)
}

fn export(store: &Store, args: &cli::UsageExport, quiet: bool) -> Result<u8> {
    let bill = open(store, &args.billed)?;
    let wanted = bill.wanted(args.billed.provider.as_deref());
    let format = args.format.into();
    let summary = to(args.output.as_deref(), |out| {
        export::write(&bill.hours, &wanted, format, out)
    })?;
    if !quiet {
        eprintln!("{}", told(&summary));
    }
    Ok(0)
}

fn statement(store: &Store, args: &cli::UsageStatement) -> Result<u8> {
    let bill = open(store, &args.billed)?;
    let (wanted, now) = (bill.wanted(args.billed.provider.as_deref()), now_unix_ms()?);
    to(args.output.as_deref(), |out| {
        statement::write(&bill.hours, &wanted, now, out)
    })?;
    Ok(0)
}

/// To this file, or to stdout.
fn to<T>(path: Option<&Path>, write: impl FnOnce(&mut (dyn Write + Send)) -> Result<T>) -> Result<T> {
    match path.filter(|path| path.as_os_str() != "-") {
        Some(path) => to_file(path, write),
        None => write(&mut BufWriter::new(out::Stream::stdout())),
    }
}

/// Visible once it is whole.
fn to_file<T>(path: &Path, write: impl FnOnce(&mut (dyn Write + Send)) -> Result<T>) -> Result<T> {
    let what = || format!("cannot write {}", path.display());
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    let finished = (|| {
        let mut out = BufWriter::new(File::create(temporary).or_fail(what)?);
        let written = write(&mut out)?;
        let file = out.into_inner().or_fail(what)?;
        file.sync_all().or_fail(what)?;
        std::fs::rename(temporary, path).or_fail(what)?;
        Ok(written)
    })();
    finished.inspect_err(|_| drop(std::fs::remove_file(temporary)))
}

/// `12 rows, 0.123456 EUR`
fn told(summary: &Summary) -> String {
    let rows = usize::try_from(summary.rows).unwrap_or(usize::MAX);
    let mut told = out::count(rows, "row", "rows");
    for (currency, cost) in summary.cost.iter().filter(|(_, cost)| !cost.is_zero()) {
        told += &format!(", {cost} {currency}");
    }
    if summary.without_card > 0 {
        told += &format!("; {} without a rate card cost nothing", summary.without_card);
    }
    if summary.corrections > 0 {
        told += &format!("; {} correct others", summary.corrections);
    }
    if summary.gaps > 0 {
        told += &format!("; {} tell of gaps", summary.gaps);
    }
    told
}

/// What one app has used.
#[derive(Debug, Default, Serialize)]
struct Shown {
    provider: String,
    app: String,
    instances: usize,
    restores: i128,
    cpu_ns: i128,
    /// Bytes held, times nanoseconds.
    memory_byte_ns: i128,
    stored_byte_ns: i128,
    requests: i128,
    sent_bytes: i128,
    /// Core-nanoseconds that were kept ready, less those that are credited.
    reserved_ns: i128,
    gaps: u64,
    cost: Decimal,
    currency: Option<String>,
    #[serde(skip)]
    accounts: BTreeSet<String>,
}

fn show(store: &Store, args: &cli::UsageShow) -> Result<u8> {
    let bill = open(store, &args.billed)?;
    let mut apps: BTreeMap<(String, String), Shown> = BTreeMap::new();
    rows(&bill.hours, &bill.wanted(args.billed.provider.as_deref()), &mut |row| {
        let key = (row.whose.provider.clone(), row.whose.app.clone());
        let shown = apps.entry(key).or_default();
        let sum = match row.meter {
            Meter::Core => &mut shown.cpu_ns,
            Meter::Memory => &mut shown.memory_byte_ns,
            Meter::Storage => &mut shown.stored_byte_ns,
            Meter::Restores => &mut shown.restores,
            Meter::Requests => &mut shown.requests,
            Meter::Sent => &mut shown.sent_bytes,
            Meter::Reserved => &mut shown.reserved_ns,
        };
        *sum += row.count;
        shown.gaps += u64::from(row.quality == usage::bill::Quality::Gap);
        shown.cost += row.cost;
        if row.card != NONE {
            shown.currency = Some(row.currency.to_owned());
        }
        if row.is_of_instance() {
            shown.accounts.insert(row.whose.id.clone());
        }
        Ok(())
    })?;
    let apps: Vec<Shown> = apps
        .into_iter()
        .map(|((provider, app), shown)| Shown {
            provider,
            app,
            instances: shown.accounts.len(),
            ..shown
        })
        .collect();
    let head = [
        "APP",
        "PROVIDER",
        "INSTANCES",
        "RESTORES",
        "CPU",
        "MEMORY",
        "STORED",
        "REQUESTS",
        "GAPS",
        "COST",
    ];
    out::show(args.output.format, &apps, |apps| {
        let rows: Vec<Vec<String>> = apps.iter().map(row).collect();
        out::table(&head, &rows)
    })?;
    Ok(0)
}

fn row(shown: &Shown) -> Vec<String> {
    let quantity = |count, meter: Meter| {
        let exact = usage::money::quantity(count, meter.per_unit());
        exact.map_or_else(|_| "-".to_owned(), |quantity| quantity.round_dp(3).to_string())
    };
    let cost = match &shown.currency {
        Some(currency) => format!("{} {currency}", shown.cost),
        None => "no rate card".to_owned(),
    };
    vec![
        shown.app.clone(),
        shown.provider.clone(),
        shown.instances.to_string(),
        shown.restores.to_string(),
        format!("{} s", quantity(shown.cpu_ns, Meter::Core)),
        format!("{} GiB s", quantity(shown.memory_byte_ns, Meter::Memory)),
        format!("{} GiB s", quantity(shown.stored_byte_ns, Meter::Storage)),
        shown.requests.to_string(),
        shown.gaps.to_string(),
        cost,
    ]
}

/// What the ledger is like, and the bill that it comes to.
#[derive(Serialize)]
struct Verified {
    #[serde(flatten)]
    report: Report,
    bill: Summary,
    /// The one that was held against it.
    same: Option<PathBuf>,
}

fn verify_all(store: &Store, args: &cli::UsageVerify) -> Result<u8> {
    let report = verify(&store.usage_dir())?;
    let bill = open(store, &args.billed)?;
    let provider = args.billed.provider.as_deref();
    let summary = match &args.bill {
        None => export::write(&bill.hours, &bill.wanted(provider), Format::Csv, &mut std::io::sink())?,
        Some(path) => {
            let name = path.display().to_string();
            let file = File::open(path).or_fail(|| format!("cannot read {name}"))?;
            hold_against(&bill, provider, BufReader::new(file), &name)?
        }
    };
    let verified = Verified {
        report,
        bill: summary,
        same: args.bill.clone(),
    };
    out::show(args.output.format, &verified, sentences)?;
    match verified.report.imbalances.first() {
        None => Ok(0),
        Some(first) => Err(Error::new(Kind::Failed, "the two sides of the books do not agree").because(first)),
    }
}

fn sentences(verified: &Verified) -> String {
    let report = &verified.report;
    let part = |ns: u64| format!("{:.2} %", ns as f64 * 100.0 / report.node_ns as f64);
    let mut text = format!(
        "the ledger is whole: {} records in {} segments, {} accounts, {} signatures\n",
        report.records, report.segments, report.accounts, report.checkpoints
    );
    if report.node_ns > 0 {
        text += &format!(
            "of the node's time, apps had {}, the platform {}, others {}, a hypervisor {}, and {} was idle; {} is not told by the kernel\n",
            part(report.tenants_ns),
            part(report.platform_ns),
            part(report.others_ns),
            part(report.steal_ns),
            part(report.idle_ns),
            part(report.untold_ns)
        );
    }
    if report.compacted > 0 {
        text += &format!("{} segments are compacted\n", report.compacted);
    }
    if report.corrections > 0 {
        text += &format!("{} rows are corrected\n", report.corrections);
    }
    if report.unsigned > 0 {
        text += &format!("{} records are newer than the last signature\n", report.unsigned);
    }
    if report.torn_bytes > 0 {
        text += &format!(
            "{} bytes of a last record are not whole: it is being written, or torn\n",
            report.torn_bytes
        );
    }
    if let Some(first) = &report.first_gap {
        text += &format!("{} gaps; the first at {first}\n", report.gaps);
    }
    let same = verified
        .same
        .as_ref()
        .map(|path| format!(", as {} has it", path.display()));
    text + &format!(
        "the bill comes to {}{}\n",
        told(&verified.bill),
        same.unwrap_or_default()
    )
}
