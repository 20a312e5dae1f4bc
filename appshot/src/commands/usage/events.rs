//! `usage events` and `usage explain`: the ledger, for people.

use super::open;
use crate::cli;
use libsnap::error::{Error, Kind, Result};
use libsnap::store::{Store, Taken};
use nodekit::out;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use usage::bill::{Row, rows};
use usage::books::hour_of;
use usage::meter::Meter;
use usage::period::{instant, second};
use usage::read::read;
use usage::record::{AccountKind, Body, Counters, State};

/// Something that happened.
#[derive(Debug, Serialize)]
struct Event {
    unix_ms: u64,
    seq: u64,
    app: Option<String>,
    /// Name of the instance.
    instance: Option<String>,
    account: Option<String>,
    what: String,
}

/// Snapshots that were told of already, by account and cause: the ledger tells how many there
/// have been.
#[derive(Default)]
struct Told(HashMap<(String, String), u64>);

impl Told {
    /// In words, those that are new.
    fn more(&mut self, id: &str, causes: &BTreeMap<String, Taken>) -> Option<String> {
        let new = causes.iter().filter_map(|(cause, taken)| {
            let before = self.0.insert((id.to_owned(), cause.clone()), taken.count).unwrap_or(0);
            match taken.count.saturating_sub(before) {
                0 => None,
                1 => Some(format!("snapshot: {cause}")),
                more => Some(format!("{more} snapshots: {cause}")),
            }
        });
        let new: Vec<String> = new.collect();
        (!new.is_empty()).then(|| new.join(", "))
    }
}

pub fn events(store: &Store, args: &cli::UsageEvents) -> Result<u8> {
    let mut told = Told::default();
    let mut names: HashMap<String, (String, String)> = HashMap::new();
    let mut events = Vec::new();
    let reached = read(&store.usage_dir(), 1, &mut |entry| {
        let record = &entry.record;
        let (id, what) = match &record.body {
            Body::Account(account) => {
                let named = (account.app.clone(), account.name.clone());
                let is_carried = names.insert(account.id.clone(), named).is_some();
                let how = match account.kind {
                    AccountKind::Started => "started",
                    AccountKind::Restored => "restored",
                    AccountKind::Store | AccountKind::Traffic => return Ok(()),
                };
                if is_carried {
                    return Ok(());
                }
                let cause = account
                    .cause
                    .as_ref()
                    .map_or(String::new(), |cause| format!(": {cause}"));
                (Some(account.id.clone()), format!("{how}{cause}"))
            }
            Body::End(end) => {
                let how = match end.state {
                    State::Asleep => "asleep",
                    State::Lost => "lost",
                    State::Exited | State::Running | State::Frozen => "exited",
                };
                let seconds = usage::money::quantity(end.counters.cpu_ns.into(), Meter::Core.per_unit())?;
                (
                    Some(end.id.clone()),
                    format!("{how}, after {} s of processor time", seconds.round_dp(3)),
                )
            }
            Body::Gap(gap) => (gap.id.clone(), format!("gap: {}", gap.reason)),
            Body::Start(start) => (None, format!("{} begins", start.product)),
            Body::Correction(of) => (
                Some(of.of.id.clone()),
                format!(
                    "row {} is corrected by {} {}: {}",
                    of.event,
                    of.count,
                    of.meter.counted_unit(),
                    of.reason
                ),
            ),
            Body::Snapshots(of) => {
                let Some(what) = told.more(&of.id, &of.causes) else {
                    return Ok(());
                };
                (Some(of.id.clone()), what)
            }
            Body::Head(_) | Body::Use(_) | Body::Node(_) | Body::Checkpoint(_) | Body::Sealed(_) => return Ok(()),
        };
        let (app, instance) = id.as_ref().and_then(|id| names.get(id)).cloned().unzip();
        if args.app.is_none() || app == args.app {
            events.push(Event {
                unix_ms: record.unix_ms,
                seq: record.seq,
                app,
                instance,
                account: id,
                what,
            });
        }
        Ok(())
    })?;
    if reached.records == 0 {
        return Err(usage::read::no_ledger(&store.usage_dir()));
    }
    out::show(args.output.format, &events, |events| {
        let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
        let row = |event: &Event| {
            vec![
                second(event.unix_ms),
                event.seq.to_string(),
                or_dash(&event.app),
                or_dash(&event.instance),
                event.what.clone(),
            ]
        };
        let rows: Vec<Vec<String>> = events.iter().map(row).collect();
        out::table(&["TIME", "RECORD", "APP", "INSTANCE", "WHAT"], &rows)
    })?;
    Ok(0)
}

/// Where a row comes from.
#[derive(Debug, Default, Serialize)]
struct Explained {
    event_id: String,
    app: String,
    provider: String,
    account: String,
    instance: String,
    cause: Option<String>,
    hour: String,
    meter: &'static str,
    counted: i128,
    counted_unit: &'static str,
    quantity: String,
    unit: &'static str,
    rate_card: String,
    price: String,
    list_cost: String,
    cost: String,
    currency: String,
    remark: Option<String>,
    /// Counters before the hour and at its end, with the records that tell them.
    before: u128,
    before_record: Option<String>,
    after: u128,
    after_record: Option<String>,
}

pub fn explain(store: &Store, args: &cli::UsageExplain) -> Result<u8> {
    let bill = open(store, &args.billed)?;
    let mut found: Option<(Explained, Meter, u64)> = None;
    rows(&bill.hours, &bill.wanted(args.billed.provider.as_deref()), &mut |row| {
        if row.event_id.starts_with(&args.event) {
            if found.is_some() {
                return Err(
                    Error::new(Kind::Usage, format!("several rows begin with {}", args.event))
                        .fix("give more of its digits"),
                );
            }
            found = Some((of_row(row), row.meter, row.hour));
        }
        Ok(())
    })?;
    let Some((mut explained, meter, hour)) = found else {
        return Err(Error::new(Kind::NotFound, format!("no row has the id {}", args.event))
            .fix("`appshot usage export` has the ids of a month (x_EventId); name another one with --period"));
    };
    read(&store.usage_dir(), 1, &mut |entry| {
        let (id, counters): (&String, &Counters) = match &entry.record.body {
            Body::Account(account) => (&account.id, &account.counters),
            Body::Use(used) => (&used.id, &used.counters),
            Body::End(end) => (&end.id, &end.counters),
            _ => return Ok(()),
        };
        let count = meter.of(counters);
        if *id != explained.account {
            return Ok(());
        }
        let place = Some(format!("{} at {}", entry.record.seq, entry.place));
        let of = hour_of(entry.record.unix_ms);
        if of < hour && (explained.before_record.is_none() || count > explained.before) {
            (explained.before, explained.before_record) = (count, place);
        } else if of == hour && (explained.after_record.is_none() || count > explained.after) {
            (explained.after, explained.after_record) = (count, place);
        }
        Ok(())
    })?;
    out::show(args.output.format, &explained, sentences)?;
    Ok(0)
}

fn of_row(row: &Row<'_>) -> Explained {
    let whose = row.whose;
    Explained {
        event_id: row.event_id.clone(),
        app: whose.app.clone(),
        provider: whose.provider.clone(),
        account: whose.id.clone(),
        instance: whose.name.clone(),
        cause: whose.cause.clone(),
        hour: instant(row.hour),
        meter: row.meter.name(),
        counted: row.count,
        counted_unit: row.meter.counted_unit(),
        quantity: row.quantity.to_string(),
        unit: row.meter.unit(),
        rate_card: row.card.to_owned(),
        price: row.price.to_string(),
        list_cost: row.list_cost.to_string(),
        cost: row.cost.to_string(),
        currency: row.currency.to_owned(),
        remark: row.remark.clone(),
        ..Explained::default()
    }
}

fn sentences(of: &Explained) -> String {
    let record = |record: &Option<String>| {
        record
            .as_ref()
            .map_or("nothing".to_owned(), |at| format!("record {at}"))
    };
    let mut text = format!(
        "{} of {} ({}), instance {} ({})\nin the hour from {}\n",
        of.meter, of.app, of.provider, of.instance, of.account, of.hour
    );
    if let Some(cause) = &of.cause {
        text += &format!("it was brought up by {cause}\n");
    }
    text += &format!(
        "  before   {} {}: {}\n  after    {}: {}\n  counted  {}, which is {} {}\n  price    {} {} each, card {}\n  cost     {} {}",
        of.before,
        of.counted_unit,
        record(&of.before_record),
        of.after,
        record(&of.after_record),
        of.counted,
        of.quantity,
        of.unit,
        of.price,
        of.currency,
        of.rate_card,
        of.cost,
        of.currency
    );
    if let Some(remark) = &of.remark {
        text += &format!(" ({remark}; else {})", of.list_cost);
    }
    text + "\n"
}
