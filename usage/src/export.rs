//! The bill in a form that others read: FOCUS 1.4 columns as CSV or JSON, CloudEvents.
//!
//! Decimals are strings in JSON, moments are UTC with Z, ends of periods are exclusive.
//! Each row holds the hash of the one before it, so that none can be taken out unseen:
//! `x_RowHash = BLAKE3(x_PrevHash, newline, then each other field and a newline)`.

use crate::bill::{self, Quality, Row, Wanted};
use crate::books::Books;
use crate::period::instant;
use crate::record::{AccountKind, Source, hex};
use libsnap::error::{OrFail, Result};
use rust_decimal::Decimal;
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    #[default]
    Csv,
    /// One object a line.
    Json,
    /// CloudEvents 1.0, one a line.
    CloudEvents,
}

/// The columns, in their order.
pub const COLUMNS: [&str; 46] = [
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "ContractedUnitPrice",
    "EffectiveCost",
    "HostProviderName",
    "InvoiceIssuerName",
    "ListCost",
    "ListUnitPrice",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "RegionId",
    "RegionName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceProviderName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "Tags",
    "x_EventId",
    "x_CorrectsEventId",
    "x_MeterSource",
    "x_Quality",
    "x_RateCardId",
    "x_PrevHash",
    "x_RowHash",
];

/// Who operates the node, as far as the bill knows.
const ISSUER: &str = "Appshot";

/// What was written.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    pub rows: u64,
    /// By currency, as decimals.
    pub cost: BTreeMap<String, Decimal>,
    /// Whole numbers by meter.
    pub counts: BTreeMap<&'static str, u128>,
    /// Rows for which there was no rate card.
    pub without_card: u64,
    /// Rows that tell a gap.
    pub gaps: u64,
}

impl Summary {
    fn add(&mut self, row: &Row<'_>) {
        self.rows += 1;
        *self.cost.entry(row.currency.to_owned()).or_default() += row.cost;
        *self.counts.entry(row.meter.name()).or_default() += row.count;
        self.without_card += u64::from(row.card == crate::card::NONE && row.quality == Quality::Measured);
        self.gaps += u64::from(row.quality == Quality::Gap);
    }
}

/// Writes all rows that are wanted.
pub fn write(books: &Books, wanted: &Wanted<'_>, format: Format, out: &mut dyn Write) -> Result<Summary> {
    let what = || "cannot write the export";
    let mut summary = Summary::default();
    let mut prev = hex(&[0; 32]);
    if format == Format::Csv {
        csv_line(out, &COLUMNS)?;
    }
    bill::rows(books, wanted, &mut |row| {
        summary.add(row);
        if format == Format::CloudEvents {
            return writeln!(out, "{}", cloud_event(row, wanted.node)).or_fail(what);
        }
        let fields = fields(row, wanted.node, &prev);
        match format {
            Format::Csv => csv_line(out, &fields)?,
            _ => json_row(out, &fields)?,
        }
        let [.., hash] = fields;
        prev = hash;
        Ok(())
    })?;
    out.flush().or_fail(what)?;
    Ok(summary)
}

fn csv_line<T: AsRef<[u8]>>(out: &mut dyn Write, fields: &[T]) -> Result<()> {
    let what = || "cannot write the export";
    let mut line = csv::Writer::from_writer(Vec::with_capacity(1024));
    line.write_record(fields).or_fail(what)?;
    let line = line.into_inner().or_fail(what)?;
    out.write_all(&line).or_fail(what)
}

/// A field without a value is null. The columns keep their order.
fn json_row(out: &mut dyn Write, fields: &[String; 46]) -> Result<()> {
    let mut line = String::with_capacity(2048);
    for (name, field) in COLUMNS.iter().zip(fields) {
        line.push(if line.is_empty() { '{' } else { ',' });
        let value = match (*name, field.is_empty()) {
            (_, true) => "null".to_owned(),
            ("Tags", _) => field.clone(),
            _ => Value::from(field.as_str()).to_string(),
        };
        line += &format!("\"{name}\":{value}");
    }
    writeln!(out, "{line}}}").or_fail(|| "cannot write the export")
}

fn fields(row: &Row<'_>, node: &str, prev: &str) -> [String; 46] {
    let account = row.account;
    let is_gap = row.quality == Quality::Gap;
    let provider = account.provider.clone();
    let description = match &row.remark {
        Some(remark) => format!("{} ({remark})", row.meter.description()),
        None => row.meter.description().to_owned(),
    };
    let mut tags = json!({ "instance": account.name, "node": node });
    if let Some(cause) = &account.cause {
        tags["cause"] = json!(cause);
    }
    let (category, subcategory, kind) = match account.kind {
        AccountKind::Store => ("Storage", "Object Storage", "Appshots"),
        AccountKind::Traffic => ("Networking", "Application Networking", "Requests"),
        AccountKind::Started | AccountKind::Restored => ("Compute", "Serverless Compute", "Instance"),
    };
    let mut fields = COLUMNS.map(|column| match column {
        "BilledCost" | "EffectiveCost" => row.cost.to_string(),
        "ListCost" | "ContractedCost" => row.list_cost.to_string(),
        "ListUnitPrice" | "ContractedUnitPrice" => row.price.to_string(),
        "BillingAccountId" | "BillingAccountName" => provider.clone(),
        "BillingCurrency" => row.currency.to_owned(),
        "BillingPeriodStart" => instant(row.month.start),
        "BillingPeriodEnd" => instant(row.month.end),
        "ChargeCategory" => "Usage".to_owned(),
        "ChargeDescription" => description.clone(),
        "ChargeFrequency" => "Usage-Based".to_owned(),
        "ChargePeriodStart" => instant(row.hour),
        "ChargePeriodEnd" => instant(row.hour + 1),
        "ConsumedQuantity" => row.count.to_string(),
        "ConsumedUnit" => row.meter.counted_unit().to_owned(),
        "HostProviderName" | "InvoiceIssuerName" | "ServiceProviderName" => ISSUER.to_owned(),
        "PricingCategory" => "Standard".to_owned(),
        "PricingQuantity" => row.quantity.to_string(),
        "PricingUnit" => row.meter.unit().to_owned(),
        "RegionId" | "RegionName" => node.to_owned(),
        "ResourceId" => account.id.clone(),
        "ResourceName" => account.name.clone(),
        "ResourceType" => kind.to_owned(),
        "ServiceCategory" => category.to_owned(),
        "ServiceSubcategory" => subcategory.to_owned(),
        "ServiceName" => "Appshot edgepoint".to_owned(),
        "SkuId" => row.meter.name().to_owned(),
        "SkuMeter" => row.meter.description().to_owned(),
        "SkuPriceId" => format!("{}/{}", row.card, row.meter.name()),
        "SubAccountId" | "SubAccountName" => account.app.clone(),
        "Tags" => tags.to_string(),
        "x_EventId" => row.event_id.clone(),
        "x_MeterSource" => source(account.source).to_owned(),
        "x_Quality" => if is_gap { "gap" } else { "measured" }.to_owned(),
        "x_RateCardId" => row.card.to_owned(),
        "x_PrevHash" => prev.to_owned(),
        // ChargeClass and x_CorrectsEventId are of corrections; x_RowHash follows.
        _ => String::new(),
    });
    fields[45] = row_hash(prev, &fields);
    fields
}

fn row_hash(prev: &str, fields: &[String; 46]) -> String {
    let mut hasher = blake3::Hasher::new();
    hasher.update(prev.as_bytes()).update(b"\n");
    for field in &fields[..44] {
        hasher.update(field.as_bytes()).update(b"\n");
    }
    hex(hasher.finalize().as_bytes())
}

fn source(source: Source) -> &'static str {
    match source {
        Source::CgroupV2 => "cgroup-v2",
        Source::CgroupV1 => "cgroup-v1",
        Source::Proc => "proc",
        Source::Files => "files",
        Source::Dispatcher => "dispatcher",
    }
}

/// Usage alone: what it costs is for whoever takes it in.
fn cloud_event(row: &Row<'_>, node: &str) -> Value {
    json!({
        "specversion": "1.0",
        "id": row.event_id,
        "source": format!("/edgepoint/{node}"),
        "type": "appshot.usage.v1",
        "subject": format!("{}/{}", row.account.provider, row.account.app),
        "time": instant(row.hour),
        "datacontenttype": "application/json",
        "data": {
            "meter": row.meter.name(),
            "unit": row.meter.counted_unit(),
            "quantity": row.count.to_string(),
            "period_start": instant(row.hour),
            "period_end": instant(row.hour + 1),
            "account": row.account.id,
            "instance": row.account.name,
            "restored": row.account.kind == AccountKind::Restored,
            "quality": row.quality.name(),
        },
    })
}
