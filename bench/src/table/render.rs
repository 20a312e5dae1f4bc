//! The table as Markdown.

use super::Table;
use super::row::{Column, Row, Series};
use crate::stats::Summary;
use std::fmt::Write;

pub fn markdown(table: &Table) -> String {
    let m = &table.machine;
    let mut text = format!(
        "{} x {}, {:.0} GiB, Linux {}; peer: {}. Every cell: p50 / p99. A ratio is the \
         median of peer / ours, pair by pair.\n\n\
         | work | reach | ours | CRIU | CRIU lazy | ratio: CRIU, lazy | original | floor | ours / floor | runs | reached |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
        m.cpus, m.cpu, m.memory_gib, m.kernel, table.peer
    );
    for row in &table.rows {
        line(&mut text, row, &table.rows);
    }
    remarks(&mut text, &table.rows);
    text
}

fn line(text: &mut String, row: &Row, all: &[Row]) {
    let cell = |column| told(row.series.get(&column));
    let reach: Vec<String> = row.targets.iter().map(|target| row.told(*target)).collect();
    // Where more is better a ratio of this kind would mislead.
    let compares = row.unit != "%";
    let ratio = |column| {
        let ratio = row.ratio(column).filter(|_| compares);
        ratio.map_or_else(|| "-".to_owned(), |r| format!("{}x", number(r)))
    };
    let above = match (row.median(Column::Ours), row.median(Column::Floor)) {
        (Some(ours), Some(floor)) => format!("{}x", number(ours / floor)),
        _ => "-".to_owned(),
    };
    let runs = row.series.get(&Column::Ours).map_or(0, |side| side.values.len());
    let _ = writeln!(
        text,
        "| {} ({}) | {} | {} | {} | {} | {}, {} | {} | {} | {above} | {runs} | {} |",
        row.work,
        row.unit,
        reach.join("; "),
        cell(Column::Ours),
        cell(Column::Peer),
        cell(Column::PeerLazy),
        ratio(Column::Peer),
        ratio(Column::PeerLazy),
        cell(Column::Original),
        cell(Column::Floor),
        verdict(row, all),
    );
}

/// Yes, or what is not reached.
fn verdict(row: &Row, all: &[Row]) -> String {
    if row.targets.is_empty() {
        return "-".to_owned();
    }
    let judged: Vec<(String, Option<bool>)> = row
        .targets
        .iter()
        .map(|target| (row.told(*target), row.reached(*target, all)))
        .collect();
    let that = |wanted: Option<bool>| {
        let list: Vec<&str> = judged
            .iter()
            .filter(|(_, is)| *is == wanted)
            .map(|(told, _)| told.as_str())
            .collect();
        list.join("; ")
    };
    match (that(Some(false)), that(None)) {
        (no, unknown) if no.is_empty() && unknown.is_empty() => "yes".to_owned(),
        (no, unknown) if no.is_empty() => format!("not measured: {unknown}"),
        (no, unknown) if unknown.is_empty() => format!("**no**: {no}"),
        (no, unknown) => format!("**no**: {no} (not measured: {unknown})"),
    }
}

fn told(side: Option<&Series>) -> String {
    let Some(side) = side else {
        return "-".to_owned();
    };
    let failed = side.values.iter().filter(|value| value.is_none()).count();
    let figures = side
        .summary()
        .map(|Summary { median, p99, .. }| format!("{} / {}", number(median), number(p99)));
    match (figures, failed, &side.missing) {
        (Some(figures), 0, _) => figures,
        (Some(figures), failed, _) => format!("{figures} ({failed} of {} failed)", side.values.len()),
        (None, _, Some(missing)) if missing.starts_with("not built") => "not built".to_owned(),
        (None, _, Some(_)) => "not measured".to_owned(),
        (None, ..) => "failed".to_owned(),
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        v if v < 1.0 => format!("{value:.3}"),
        v if v < 10.0 => format!("{value:.2}"),
        v if v < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// What failed, what is missing, what else was seen.
fn remarks(text: &mut String, rows: &[Row]) {
    let mut lines = Vec::new();
    for row in rows {
        lines.extend(row.notes.iter().map(|note| format!("- `{}`: {note}", row.id)));
        for (column, side) in &row.series {
            let missing = side
                .missing
                .iter()
                .map(|why| format!("- `{}`, {}: {why}", row.id, column.name()));
            let failed = side.failures.iter();
            let failed = failed.map(|why| format!("- `{}`, {}, failed: {why}", row.id, column.name()));
            lines.extend(missing.chain(failed));
        }
    }
    if !lines.is_empty() {
        let _ = write!(text, "\n{}\n", lines.join("\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_tells_what_failed_and_what_is_not_built() {
        let mut side = Series::default();
        assert_eq!(told(None), "-");
        assert_eq!(told(Some(&side)), "failed");
        side.missing = Some("not built: no such command".to_owned());
        assert_eq!(told(Some(&side)), "not built");
        side.values = vec![Some(0.5), None, Some(0.5)];
        assert_eq!(told(Some(&side)), "0.500 / 0.500 (1 of 3 failed)");
    }
}
