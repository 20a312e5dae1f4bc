//! The bill for people: one page of HTML, with a chart of demand and charge over time.
//!
//! It needs nothing from elsewhere: no script, no font, no picture. The chart is SVG: per
//! hour, what each app took of a processor, and what it was charged for, beside what the
//! peak of all would have cost if it had been kept up all the time.

use crate::bill::{Quality, Row, Wanted, rows};
use crate::books::Hour;
use crate::card::NONE;
use crate::hours::Hours;
use crate::meter::Meter;
use crate::money;
use crate::period::{instant, second};
use libsnap::error::{OrFail, Result};
use rust_decimal::Decimal;
use rust_decimal::prelude::ToPrimitive;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;

/// Apps with a colour of their own; the others share the last.
const COLOURS: [&str; 13] = [
    "#3060a0", "#c05020", "#308050", "#8050a0", "#a08020", "#208090", "#b03070", "#607020", "#6070d0", "#803020",
    "#50a070", "#b080d0", "#707070",
];

#[derive(Clone, Debug, Default)]
struct App {
    provider: String,
    name: String,
    counts: BTreeMap<Meter, i128>,
    costs: BTreeMap<Meter, Decimal>,
    cost: Decimal,
    by_cause: BTreeMap<String, (i128, Decimal)>,
    gaps: u64,
    /// Processor time and charge by hour.
    hours: BTreeMap<Hour, (i128, Decimal)>,
}

#[derive(Debug, Default)]
struct Sums {
    apps: BTreeMap<(String, String), App>,
    currency: Option<String>,
    cards: BTreeMap<String, u64>,
    without_card: u64,
    remarks: BTreeMap<String, u64>,
    corrections: Vec<(String, Decimal)>,
}

impl Sums {
    fn add(&mut self, row: &Row<'_>) {
        let whose = row.whose;
        let key = (whose.provider.clone(), whose.app.clone());
        let app = self.apps.entry(key).or_default();
        (app.provider, app.name) = (whose.provider.clone(), whose.app.clone());
        *app.counts.entry(row.meter).or_default() += row.count;
        *app.costs.entry(row.meter).or_default() += row.cost;
        app.cost += row.cost;
        app.gaps += u64::from(row.quality == Quality::Gap);
        if row.meter == Meter::Restores {
            let cause = whose.cause.as_deref().unwrap_or("not told");
            let seen = app.by_cause.entry(cause.to_owned()).or_default();
            seen.0 += row.count;
            seen.1 += row.cost;
        }
        if row.quality == Quality::Correction {
            // Of an hour that is not on this page.
            let remark = row.remark.clone().unwrap_or_default();
            self.corrections.push((remark, row.cost));
        } else {
            let hour = app.hours.entry(row.hour).or_default();
            hour.0 += if row.meter == Meter::Core { row.count } else { 0 };
            hour.1 += row.cost;
        }
        match row.card {
            NONE => self.without_card += u64::from(row.quality == Quality::Measured),
            card => {
                self.currency = Some(row.currency.to_owned());
                *self.cards.entry(card.to_owned()).or_default() += 1;
            }
        }
        if let Some(remark) = row.remark.as_ref().filter(|_| row.quality == Quality::Gap) {
            *self.remarks.entry(remark.clone()).or_default() += 1;
        }
    }

    fn total(&self) -> Decimal {
        self.apps.values().map(|app| app.cost).sum()
    }

    /// What the processor time of each app's busiest hour would have cost in so many hours,
    /// at the price that was paid for processor time on the average.
    fn for_the_peak(&self, hours: usize) -> Option<(i128, Decimal)> {
        let of_hour = |app: &App| app.hours.values().map(|(cpu, _)| *cpu).collect::<Vec<i128>>();
        let peak: i128 = self
            .apps
            .values()
            .filter_map(|app| of_hour(app).into_iter().max())
            .sum();
        let used: i128 = self.apps.values().flat_map(of_hour).sum();
        let paid: Decimal = self.apps.values().filter_map(|app| app.costs.get(&Meter::Core)).sum();
        let times = exact(peak)? * Decimal::from(hours as u64) / exact(used)?;
        Some((peak, (paid * times).round_dp(6)))
    }
}

fn exact(number: i128) -> Option<Decimal> {
    let number = Decimal::try_from_i128_with_scale(number, 0).ok();
    number.filter(|number| !number.is_zero())
}

/// Writes the statement of what is wanted.
pub fn write(hours: &Hours, wanted: &Wanted<'_>, made_unix_ms: u64, out: &mut dyn Write) -> Result<()> {
    let mut sums = Sums::default();
    rows(hours, wanted, &mut |row| {
        sums.add(row);
        Ok(())
    })?;
    let page = page(&sums, wanted, made_unix_ms)?;
    out.write_all(page.as_bytes())
        .and_then(|()| out.flush())
        .or_fail(|| "cannot write the statement")
}

fn page(sums: &Sums, wanted: &Wanted<'_>, made_unix_ms: u64) -> Result<String> {
    let range = wanted.period.wanted();
    let whose = wanted.provider.unwrap_or("all providers");
    let currency = sums.currency.as_deref().unwrap_or("");
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>Usage of {whose}</title>\n<style>{STYLE}</style></head><body>\n\
         <h1>Usage of {whose}</h1>\n<p>From {from} until {until}, on node {node}. \
         Made {made}.</p>\n",
        whose = escape(whose),
        from = instant(range.start),
        until = instant(range.end),
        node = escape(wanted.node),
        made = second(made_unix_ms),
    );
    let _ = match sums.currency {
        Some(_) => writeln!(page, "<p class=\"total\">Total: {} {currency}</p>", sums.total()),
        None => writeln!(
            page,
            "<p class=\"total\">There is no rate card: nothing is charged.</p>"
        ),
    };
    if sums.apps.is_empty() {
        page += "<p>Nothing was used.</p>\n";
    } else {
        page += &table(sums)?;
        page += &charts(sums, currency);
        page += &causes(sums);
        page += &peak(sums, currency);
    }
    page += &notes(sums);
    page += "</body></html>\n";
    Ok(page)
}

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse}th,td{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}\
th:first-child,td:first-child,th:nth-child(2),td:nth-child(2){text-align:left}\
.total{font-size:1.3em}svg{width:100%;height:auto}svg text{font:11px sans-serif;fill:#444}\
.key span{margin-right:1.5em}.key i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}";

fn table(sums: &Sums) -> Result<String> {
    let mut table = "<table><tr><th>App</th><th>Provider</th>".to_owned();
    let is_kept = sums.apps.values().any(|app| app.counts.contains_key(&Meter::Reserved));
    let meters = || Meter::ALL.into_iter().chain(is_kept.then_some(Meter::Reserved));
    for meter in meters() {
        let _ = write!(table, "<th>{}<br>{}</th>", meter.description(), meter.unit());
    }
    table += "<th>Charge</th></tr>\n";
    for app in sums.apps.values() {
        let _ = write!(
            table,
            "<tr><td>{}</td><td>{}</td>",
            escape(&app.name),
            escape(&app.provider)
        );
        for meter in meters() {
            let count = app.counts.get(&meter).copied().unwrap_or_default();
            let quantity = money::quantity(count, meter.per_unit())?.round_dp(3);
            let _ = write!(table, "<td>{quantity}</td>");
        }
        let _ = writeln!(table, "<td>{}</td></tr>", app.cost);
    }
    Ok(table + "</table>\n")
}

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 200.0;
const LEFT: f64 = 70.0;

fn charts(sums: &Sums, currency: &str) -> String {
    let hours = || sums.apps.values().flat_map(|app| app.hours.keys());
    let (Some(first), Some(last)) = (hours().min(), hours().max()) else {
        return String::new();
    };
    let range = *first..*last + 1;
    let mut charts = "<h2>Demand and charge over time</h2>\n<p class=\"key\">".to_owned();
    for (app, colour) in sums.apps.values().zip(colours()) {
        let _ = write!(
            charts,
            "<span><i style=\"background:{colour}\"></i>{}</span>",
            escape(&app.name)
        );
    }
    charts += "</p>\n";
    // Numbers for a picture: the loss of precision does not show.
    let cores = |hour: &(i128, Decimal)| hour.0 as f64 / 3.6e12;
    charts += &chart("Processors in use, on the average of each hour", sums, &range, &cores);
    if sums.currency.is_some() {
        let charge = |hour: &(i128, Decimal)| hour.1.to_f64().unwrap_or_default();
        charts += &chart(&format!("Charge of each hour, {currency}"), sums, &range, &charge);
    }
    charts
}

fn colours() -> impl Iterator<Item = &'static str> {
    COLOURS.into_iter().chain(std::iter::repeat(COLOURS[6]))
}

/// Stacked bars, one an hour.
fn chart(title: &str, sums: &Sums, range: &std::ops::Range<Hour>, value: &dyn Fn(&(i128, Decimal)) -> f64) -> String {
    let hours = (range.end - range.start) as f64;
    let mut stack: BTreeMap<Hour, f64> = BTreeMap::new();
    let mut highest: BTreeMap<Hour, f64> = BTreeMap::new();
    for app in sums.apps.values() {
        for (hour, of) in &app.hours {
            *highest.entry(*hour).or_default() += value(of);
        }
    }
    let top = highest.values().copied().fold(0.0, f64::max);
    let scale = if top > 0.0 { HEIGHT / top } else { 0.0 };
    let width = (WIDTH - LEFT) / hours;
    let mut svg = format!(
        "<h3>{}</h3>\n<svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"{}\">\n",
        escape(title),
        HEIGHT + 30.0,
        escape(title)
    );
    for line in 0..=4 {
        let y = HEIGHT - HEIGHT * f64::from(line) / 4.0 + 5.0;
        let _ = writeln!(
            svg,
            "<path d=\"M{LEFT} {y:.1}H{WIDTH}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 4.0,
            short(top * f64::from(line) / 4.0)
        );
    }
    for (app, colour) in sums.apps.values().zip(colours()) {
        for (hour, of) in &app.hours {
            let height = value(of) * scale;
            let base = stack.entry(*hour).or_default();
            let x = LEFT + (hour - range.start) as f64 * width;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.2}\" y=\"{:.2}\" width=\"{:.2}\" height=\"{height:.2}\" fill=\"{colour}\"><title>{} {}: {}</title></rect>",
                HEIGHT + 5.0 - *base - height,
                (width * 0.9).max(0.3),
                escape(&app.name),
                instant(*hour),
                short(value(of))
            );
            *base += height;
        }
    }
    let _ = write!(
        svg,
        "<text x=\"{LEFT}\" y=\"{y}\">{}</text><text x=\"{WIDTH}\" y=\"{y}\" text-anchor=\"end\">{}</text>\n</svg>\n",
        instant(range.start),
        instant(range.end),
        y = HEIGHT + 22.0
    );
    svg
}

/// Four digits that count.
fn short(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        _ if number >= 100.0 => format!("{number:.0}"),
        _ if number >= 0.01 => format!("{number:.3}"),
        _ => format!("{number:.2e}"),
    }
}

fn causes(sums: &Sums) -> String {
    let mut table = String::new();
    for app in sums.apps.values() {
        for (cause, (count, cost)) in &app.by_cause {
            let _ = writeln!(
                table,
                "<tr><td>{}</td><td>{}</td><td>{count}</td><td>{cost}</td></tr>",
                escape(&app.name),
                escape(cause)
            );
        }
    }
    match table.is_empty() {
        true => table,
        false => format!(
            "<h2>Why apps were restored</h2>\n<table><tr><th>App</th><th>Cause</th><th>Restores</th><th>Charge</th></tr>\n{table}</table>\n"
        ),
    }
}

fn peak(sums: &Sums, currency: &str) -> String {
    let hours = sums.apps.values().flat_map(|app| app.hours.keys());
    let hours = match (hours.clone().min(), hours.max()) {
        (Some(first), Some(last)) => usize::try_from(last + 1 - first).unwrap_or(usize::MAX),
        _ => return String::new(),
    };
    let Some((peak, cost)) = sums.for_the_peak(hours).filter(|_| sums.currency.is_some()) else {
        return String::new();
    };
    let paid: Decimal = sums.apps.values().filter_map(|app| app.costs.get(&Meter::Core)).sum();
    format!(
        "<h2>Against fixed capacity</h2>\n<p>In their busiest hours the apps had {} processors in use. Kept for all {hours} hours \
         from the first use to the last, and paid at the same price, their time would have cost {cost} {currency}; it did \
         cost {paid} {currency}.</p>\n",
        short(peak as f64 / 3.6e12)
    )
}

fn notes(sums: &Sums) -> String {
    let mut notes = "<h2>Notes</h2>\n<ul>\n".to_owned();
    for (card, rows) in &sums.cards {
        let _ = writeln!(notes, "<li>{rows} rows by the rate card {}</li>", escape(card));
    }
    if sums.without_card > 0 {
        let _ = writeln!(
            notes,
            "<li>{} rows without a rate card cost nothing</li>",
            sums.without_card
        );
    }
    for (remark, cost) in &sums.corrections {
        let _ = writeln!(notes, "<li>A {}: {cost}</li>", escape(remark));
    }
    for (remark, rows) in &sums.remarks {
        let _ = writeln!(notes, "<li>A gap, in {rows} rows: {}</li>", escape(remark));
    }
    notes += "<li>Each row of an hour, instance and meter is rounded once, half to even. <code>appshot usage export</code> \
              has all of them, and <code>appshot usage verify</code> verifies the ledger that they come from.</li>\n</ul>\n";
    notes
}

/// Names come from others.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests;
