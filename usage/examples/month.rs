//! Writes the ledger of a month, for measurements: 200 apps, each woken once an hour for a
//! minute, with requests and appshots; 10 million records. Then exports it, and tells how
//! long that took and how much memory.
//!
//! ```sh
//! cargo build --release -p usage --example month
//! month DIR write [RECORDS_MILLIONS]
//! month DIR csv|json|parquet FILE
//! ```

use libsnap::error::{Error, OrFail, Result};
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::Instant;
use usage::bill::Bill;
use usage::card::{Card, Cards};
use usage::export::{self, Format};
use usage::ledger::Ledger;
use usage::record::{Account, AccountKind, Body, Counters, End, Moment, Source, State, Use};

/// 2026-10-01T00:00:00Z: a month that is over.
const START_MS: u64 = 1_790_812_800_000;
const HOURS: u64 = 744;
const APPS: u64 = 200;
const PROVIDERS: u64 = 12;

const CARD: &str = r#"
version = 1
id = "month"
valid_from = "2026-01-01T00:00:00Z"
currency = "EUR"
decimals = 9
[prices]
core_second = "0.000024"
memory_gib_second = "0.0000025"
storage_gib_second = "0.00000004"
restore = "0.00001"
sent_gib = "0.02"
[[tiers.request]]
up_to = "1000000"
price = "0.0000002"
[[tiers.request]]
price = "0.0000001"
"#;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        [dir, "write"] => write(Path::new(dir), 10.0),
        [dir, "write", millions] => write(Path::new(dir), millions.parse().or_fail(|| "no number")?),
        [dir, "csv", file] => export(Path::new(dir), Format::Csv, file),
        [dir, "json", file] => export(Path::new(dir), Format::Json, file),
        [dir, "parquet", file] => export(Path::new(dir), Format::Parquet, file),
        _ => Err(Error::failed("needs a directory, and what to do")),
    }
}

fn export(dir: &Path, format: Format, file: &str) -> Result<()> {
    let began = Instant::now();
    let mut cards = Cards::default();
    cards.add(Card::parse(CARD)?)?;
    let period = "2026-10".parse().map_err(|because: String| Error::failed(because))?;
    let bill = Bill::open(dir, cards, Some(&period), u64::MAX)?;
    let read = began.elapsed();
    let mut out = BufWriter::with_capacity(1 << 20, File::create(file).or_fail(|| "cannot make the export")?);
    let summary = export::write(&bill.hours, &bill.wanted(None), format, &mut out)?;
    let status = std::fs::read_to_string("/proc/self/status").or_fail(|| "no /proc")?;
    let peak = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap_or_default();
    println!(
        "{format:?}: {} rows, {:?}; read in {:.1} s, {:.1} s in all; {peak}",
        summary.rows,
        summary.cost,
        read.as_secs_f64(),
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn write(dir: &Path, millions: f64) -> Result<()> {
    // Of each hour and app: begin, end, use each second, requests and storage.
    let uses = ((millions * 1e6 / (HOURS * APPS) as f64) as u64)
        .saturating_sub(4)
        .max(1);
    let at = |second: u64| Moment {
        boot_ns: (second + 1000) * 1_000_000_000,
        unix_ms: START_MS + second * 1000,
    };
    std::fs::create_dir_all(dir).or_fail(|| "cannot make the directory")?;
    let mut ledger = Ledger::open(dir, "00000000-0000-4000-8000-000000000000", at(0))?.0;
    for app in 0..APPS {
        for (kind, source) in [
            (AccountKind::Store, Source::Files),
            (AccountKind::Traffic, Source::Dispatcher),
        ] {
            let (id, counters) = (lasting(kind, app), Counters::default());
            ledger.append(at(0), account(&id, app, kind, source, at(0), counters));
        }
    }
    for hour in 0..HOURS {
        // All at once, as they come in by the second.
        for second in 0..uses + 2 {
            for app in 0..APPS {
                let now = at(hour * 3600 + app * 17 % 1800 + second);
                one(&mut ledger, app, hour, second, uses, now);
            }
            if second % 20 == 0 {
                ledger.sync(at(hour * 3600))?;
            }
        }
        ledger.checkpoint(at(hour * 3600 + 3599));
        ledger.sync(at(hour * 3600 + 3599))?;
    }
    println!("{} records in {}", ledger.next_seq(), dir.display());
    Ok(())
}

fn one(ledger: &mut Ledger, app: u64, hour: u64, second: u64, uses: u64, at: Moment) {
    let id = format!("{:08x}-0000-4000-8000-{:012x}", app, hour);
    // Some numbers that differ, and never fall.
    let counters = Counters {
        cpu_ns: second * (1_000_000 + app * 7919),
        user_ns: second * 900_000,
        system_ns: second * 100_000,
        memory_byte_ns: u128::from(second) * u128::from((app + 1) << 20) * 1_000_000_000,
        memory_peak: (app + 1) << 20,
        running_ns: second * 1_000_000_000,
        restores: 1,
        ..Counters::default()
    };
    let state = State::Running;
    if second == 0 {
        ledger.append(
            at,
            account(&id, app, AccountKind::Restored, Source::CgroupV2, at, counters),
        );
    } else if second <= uses {
        ledger.append(at, Body::Use(Use { id, state, counters }));
    } else {
        let state = State::Asleep;
        ledger.append(at, Body::End(End { id, state, counters }));
        for kind in [AccountKind::Store, AccountKind::Traffic] {
            let is_store = kind == AccountKind::Store;
            let counters = Counters {
                stored_byte_ns: if is_store { u128::from(hour + 1) << 75 } else { 0 },
                requests: if is_store { 0 } else { (hour + 1) * (app + 3) },
                sent_bytes: if is_store { 0 } else { (hour + 1) * 123_457 },
                ..Counters::default()
            };
            let id = lasting(kind, app);
            let state = State::Running;
            ledger.append(at, Body::Use(Use { id, state, counters }));
        }
    }
}

fn provider(app: u64) -> String {
    format!("provider-{:02}", app % PROVIDERS)
}

fn lasting(kind: AccountKind, app: u64) -> String {
    let word = if kind == AccountKind::Store { "store" } else { "traffic" };
    format!("{word}:{}:app-{app:03}", provider(app))
}

fn account(id: &str, app: u64, kind: AccountKind, source: Source, at: Moment, counters: Counters) -> Body {
    Body::Account(Box::new(Account {
        id: id.to_owned(),
        app: format!("app-{app:03}"),
        provider: provider(app),
        kind,
        name: format!("app-{app:03}"),
        boot_id: "00000000-0000-4000-8000-000000000000".to_owned(),
        began_boot_ns: at.boot_ns,
        began_unix_ms: at.unix_ms,
        source,
        cause: (kind == AccountKind::Restored).then(|| "request".to_owned()),
        state: State::Running,
        counters,
    }))
}
