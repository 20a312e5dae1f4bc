//! The bill in a form that others read: FOCUS 1.4 columns as CSV, JSON or Parquet, CloudEvents.
//!
//! Decimals are strings in JSON and decimals in Parquet, moments are UTC with Z, ends of
//! periods are exclusive. Each row holds the hash of the one before it, so that none can be taken out unseen:
//! `x_RowHash = BLAKE3(x_PrevHash, newline, then each other field and a newline)`.

mod parquet;

use crate::bill::{self, Quality, Row, Wanted};
use crate::books::Hour;
use crate::hours::Hours;
use crate::meter::Meter;
use crate::period::instant;
use crate::record::{AccountKind, Source, hex};
use libsnap::error::{OrFail, Result};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Csv,
    /// One object a line.
    Json,
    Parquet,
    /// CloudEvents 1.0, one a line.
    CloudEvents,
}

/// What a column holds where it can hold more than text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    /// A decimal of at most 12 digits behind the point.
    Money,
    /// Of at most 18.
    Price,
    /// A whole number.
    Count,
    Moment,
}

/// The columns, in their order.
const COLUMNS: [(&str, Kind); 46] = [
    ("BilledCost", Kind::Money),
    ("BillingAccountId", Kind::Text),
    ("BillingAccountName", Kind::Text),
    ("BillingCurrency", Kind::Text),
    ("BillingPeriodEnd", Kind::Moment),
    ("BillingPeriodStart", Kind::Moment),
    ("ChargeCategory", Kind::Text),
    ("ChargeClass", Kind::Text),
    ("ChargeDescription", Kind::Text),
    ("ChargeFrequency", Kind::Text),
    ("ChargePeriodEnd", Kind::Moment),
    ("ChargePeriodStart", Kind::Moment),
    ("ConsumedQuantity", Kind::Count),
    ("ConsumedUnit", Kind::Text),
    ("ContractedCost", Kind::Money),
    ("ContractedUnitPrice", Kind::Price),
    ("EffectiveCost", Kind::Money),
    ("HostProviderName", Kind::Text),
    ("InvoiceIssuerName", Kind::Text),
    ("ListCost", Kind::Money),
    ("ListUnitPrice", Kind::Price),
    ("PricingCategory", Kind::Text),
    ("PricingQuantity", Kind::Money),
    ("PricingUnit", Kind::Text),
    ("RegionId", Kind::Text),
    ("RegionName", Kind::Text),
    ("ResourceId", Kind::Text),
    ("ResourceName", Kind::Text),
    ("ResourceType", Kind::Text),
    ("ServiceCategory", Kind::Text),
    ("ServiceName", Kind::Text),
    ("ServiceProviderName", Kind::Text),
    ("ServiceSubcategory", Kind::Text),
    ("SkuId", Kind::Text),
    ("SkuMeter", Kind::Text),
    ("SkuPriceId", Kind::Text),
    ("SubAccountId", Kind::Text),
    ("SubAccountName", Kind::Text),
    ("Tags", Kind::Text),
    ("x_EventId", Kind::Text),
    ("x_CorrectsEventId", Kind::Text),
    ("x_MeterSource", Kind::Text),
    ("x_Quality", Kind::Text),
    ("x_RateCardId", Kind::Text),
    ("x_PrevHash", Kind::Text),
    ("x_RowHash", Kind::Text),
];

/// Their names.
pub fn columns() -> impl Iterator<Item = &'static str> {
    COLUMNS.iter().map(|(name, _)| *name)
}

/// Those before the hashes.
const HASHED: usize = COLUMNS.len() - 2;

/// Who operates the node, as far as the bill knows.
const ISSUER: &str = "Appshot";

/// What was written.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    pub rows: u64,
    /// By currency, as decimals.
    pub cost: BTreeMap<String, Decimal>,
    /// Whole numbers by meter.
    pub counts: BTreeMap<&'static str, i128>,
    /// Rows for which there was no rate card.
    pub without_card: u64,
    /// Rows that tell a gap.
    pub gaps: u64,
    pub corrections: u64,
}

impl Summary {
    fn add(&mut self, row: &Row<'_>) {
        self.rows += 1;
        match self.cost.get_mut(row.currency) {
            Some(cost) => *cost += row.cost,
            None => drop(self.cost.insert(row.currency.to_owned(), row.cost)),
        }
        *self.counts.entry(row.meter.name()).or_default() += row.count;
        self.without_card += u64::from(row.card == crate::card::NONE && row.quality == Quality::Measured);
        self.gaps += u64::from(row.quality == Quality::Gap);
        self.corrections += u64::from(row.quality == Quality::Correction);
    }
}

const WHAT: &str = "cannot write the export";

/// Where rows go.
enum Sink<'a> {
    Csv(Box<csv::Writer<&'a mut dyn Write>>),
    Json(&'a mut dyn Write),
    Parquet(Box<parquet::Table<'a>>),
    CloudEvents(&'a mut dyn Write),
}

/// Writes all rows that are wanted.
pub fn write(hours: &Hours, wanted: &Wanted<'_>, format: Format, out: &mut (dyn Write + Send)) -> Result<Summary> {
    // Before anything is written.
    bill::is_known(hours, wanted)?;
    let mut sink = match format {
        Format::Csv => {
            let mut csv = csv::Writer::from_writer(out as &mut dyn Write);
            csv.write_record(columns()).or_fail(|| WHAT)?;
            Sink::Csv(Box::new(csv))
        }
        Format::Json => Sink::Json(out),
        Format::Parquet => Sink::Parquet(Box::new(parquet::Table::begin(out)?)),
        Format::CloudEvents => Sink::CloudEvents(out),
    };
    let mut summary = Summary::default();
    let (mut fields, mut prev) = (Fields::default(), hex(&[0; 32]));
    bill::rows(hours, wanted, &mut |row| {
        summary.add(row);
        if let Sink::CloudEvents(out) = &mut sink {
            return writeln!(out, "{}", cloud_event(row, wanted.node)).or_fail(|| WHAT);
        }
        fields.of(row, wanted.node, &mut prev);
        match &mut sink {
            Sink::Csv(csv) => csv.write_record(fields.iter()).or_fail(|| WHAT),
            Sink::Json(out) => json_row(out, &fields),
            Sink::Parquet(table) => table.add(&fields),
            Sink::CloudEvents(_) => Ok(()),
        }
    })?;
    match sink {
        Sink::Csv(mut csv) => csv.flush().or_fail(|| WHAT)?,
        Sink::Json(out) | Sink::CloudEvents(out) => out.flush().or_fail(|| WHAT)?,
        Sink::Parquet(table) => table.end()?,
    }
    Ok(summary)
}

/// A field without a value is null. The columns keep their order.
fn json_row(out: &mut dyn Write, fields: &Fields) -> Result<()> {
    let mut line = Vec::with_capacity(2048);
    for ((name, _), field) in COLUMNS.iter().zip(fields.iter()) {
        line.push(if line.is_empty() { b'{' } else { b',' });
        line.push(b'"');
        line.extend_from_slice(name.as_bytes());
        line.extend_from_slice(b"\":");
        match (*name, field) {
            (_, "") => line.extend_from_slice(b"null"),
            ("Tags", _) => line.extend_from_slice(field.as_bytes()),
            _ => serde_json::to_writer(&mut line, field).or_fail(|| WHAT)?,
        }
    }
    line.extend_from_slice(b"}\n");
    out.write_all(&line).or_fail(|| WHAT)
}

/// The fields of a row: one text in which a newline ends each, as it is hashed.
#[derive(Debug, Default)]
struct Fields {
    text: String,
    ends: Vec<usize>,
    /// Hours that were told last, with their text.
    instants: Vec<(Hour, String)>,
}

impl Fields {
    fn iter(&self) -> impl Iterator<Item = &str> {
        let begins = std::iter::once(0).chain(self.ends.iter().map(|end| end + 1));
        begins.zip(&self.ends).map(|(begin, end)| &self.text[begin..*end])
    }

    fn text(&mut self, field: &str) {
        self.text.push_str(field);
        self.end();
    }

    fn tell(&mut self, field: impl std::fmt::Display) {
        let _ = write!(self.text, "{field}");
        self.end();
    }

    fn end(&mut self) {
        self.ends.push(self.text.len());
        self.text.push('\n');
    }

    /// The same few hours come again and again.
    fn moment(&mut self, hour: Hour) {
        let known = self.instants.iter().position(|(known, _)| *known == hour);
        let index = known.unwrap_or_else(|| {
            self.instants.truncate(7);
            self.instants.insert(0, (hour, instant(hour)));
            0
        });
        self.text.push_str(&self.instants[index].1);
        self.end();
    }

    /// Those of a row, in the order of [`COLUMNS`]; `prev` is the hash of the row before, then
    /// of this one.
    fn of(&mut self, row: &Row<'_>, node: &str, prev: &mut String) {
        self.text.clear();
        self.ends.clear();
        let whose = row.whose;
        let is_new = row.quality == Quality::Correction && row.hour < row.month.start;
        let (category, subcategory, kind) = match (row.meter, whose.kind) {
            (Meter::Reserved, _) => ("Compute", "Serverless Compute", "Guarantee"),
            (_, AccountKind::Store) => ("Storage", "Object Storage", "Appshots"),
            (_, AccountKind::Traffic) => ("Networking", "Application Networking", "Requests"),
            (Meter::Sent, _) => ("Networking", "Network Connectivity", "Instance"),
            (_, AccountKind::Started | AccountKind::Restored) => ("Compute", "Serverless Compute", "Instance"),
        };
        self.tell(row.cost); // BilledCost
        self.text(&whose.provider); // BillingAccountId
        self.text(&whose.provider); // BillingAccountName
        self.text(row.currency); // BillingCurrency
        self.moment(row.month.end); // BillingPeriodEnd
        self.moment(row.month.start); // BillingPeriodStart
        self.text(if row.quality == Quality::Credit {
            "Credit"
        } else {
            "Usage"
        }); // ChargeCategory
        self.text(if is_new { "Correction" } else { "" }); // ChargeClass
        match &row.remark {
            Some(remark) => self.tell(format_args!("{} ({remark})", row.meter.description())),
            None => self.text(row.meter.description()),
        } // ChargeDescription
        self.text(if row.quality == Quality::Reserved {
            "Recurring"
        } else {
            "Usage-Based"
        }); // ChargeFrequency
        self.moment(row.hour + 1); // ChargePeriodEnd
        self.moment(row.hour); // ChargePeriodStart
        self.tell(row.count); // ConsumedQuantity
        self.text(row.meter.counted_unit()); // ConsumedUnit
        self.tell(row.list_cost); // ContractedCost
        self.tell(row.price); // ContractedUnitPrice
        self.tell(row.cost); // EffectiveCost
        self.text(ISSUER); // HostProviderName
        self.text(ISSUER); // InvoiceIssuerName
        self.tell(row.list_cost); // ListCost
        self.tell(row.price); // ListUnitPrice
        self.text("Standard"); // PricingCategory
        self.tell(row.quantity); // PricingQuantity
        self.text(row.meter.unit()); // PricingUnit
        self.text(node); // RegionId
        self.text(node); // RegionName
        self.text(&whose.id); // ResourceId
        self.text(&whose.name); // ResourceName
        self.text(kind); // ResourceType
        self.text(category); // ServiceCategory
        self.text("Appshot edgepoint"); // ServiceName
        self.text(ISSUER); // ServiceProviderName
        self.text(subcategory); // ServiceSubcategory
        self.text(row.meter.name()); // SkuId
        self.text(row.meter.description()); // SkuMeter
        self.tell(format_args!("{}/{}", row.card, row.meter.name())); // SkuPriceId
        self.text(&whose.app); // SubAccountId
        self.text(&whose.app); // SubAccountName
        self.tags(row, node); // Tags
        self.text(&row.event_id); // x_EventId
        self.text(row.corrects.unwrap_or_default()); // x_CorrectsEventId
        self.text(source(whose.source)); // x_MeterSource
        self.text(row.quality.name()); // x_Quality
        self.text(row.card); // x_RateCardId
        debug_assert_eq!(self.ends.len(), HASHED);
        let mut hasher = blake3::Hasher::new();
        hasher
            .update(prev.as_bytes())
            .update(b"\n")
            .update(self.text.as_bytes());
        let hash = hex(hasher.finalize().as_bytes());
        self.text(prev); // x_PrevHash
        self.text(&hash); // x_RowHash
        *prev = hash;
    }

    fn tags(&mut self, row: &Row<'_>, node: &str) {
        let quoted = |text: &str| Value::from(text).to_string();
        self.text.push('{');
        if let Some(cause) = &row.whose.cause {
            let _ = write!(self.text, "\"cause\":{},", quoted(cause));
        }
        self.tell(format_args!(
            "\"instance\":{},\"node\":{}}}",
            quoted(&row.whose.name),
            quoted(node)
        ));
    }
}

fn source(source: Source) -> &'static str {
    match source {
        Source::CgroupV2 => "cgroup-v2",
        Source::CgroupV1 => "cgroup-v1",
        Source::Proc => "proc",
        Source::Files => "files",
        Source::Dispatcher => "dispatcher",
        Source::Card => "rate-card",
    }
}

/// Usage alone: what it costs is for whoever takes it in.
fn cloud_event(row: &Row<'_>, node: &str) -> Value {
    let mut event = json!({
        "specversion": "1.0",
        "id": row.event_id,
        "source": format!("/edgepoint/{node}"),
        "type": "appshot.usage.v1",
        "subject": format!("{}/{}", row.whose.provider, row.whose.app),
        "time": instant(row.hour),
        "datacontenttype": "application/json",
        "data": {
            "meter": row.meter.name(),
            "unit": row.meter.counted_unit(),
            "quantity": row.count.to_string(),
            "period_start": instant(row.hour),
            "period_end": instant(row.hour + 1),
            "account": row.whose.id,
            "instance": row.whose.name,
            "restored": row.whose.kind == AccountKind::Restored,
            "quality": row.quality.name(),
        },
    });
    if let Some(corrects) = row.corrects {
        event["data"]["corrects"] = json!(corrects);
    }
    event
}
