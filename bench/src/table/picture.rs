//! The pictures: restore time against memory size, memory against the number of
//! clones. Both axes are logarithmic: what grows with the memory is a slope.

use super::Table;
use super::row::{Column, Row};
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (760, 460);
const TEMPLATE_MB: f64 = 100.0;

/// One line of a picture.
struct Line {
    name: &'static str,
    colour: RGBColor,
    points: Vec<(f64, f64)>,
}

const COLOURS: [(Column, RGBColor); 4] = [
    (Column::Ours, RGBColor(0, 114, 178)),
    (Column::Peer, RGBColor(213, 94, 0)),
    (Column::PeerLazy, RGBColor(230, 159, 0)),
    (Column::Floor, RGBColor(120, 120, 120)),
];
const CLONES: RGBColor = RGBColor(0, 158, 115);

/// Draws what there are figures for.
pub fn draw(table: &Table, dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir)?;
    let times = COLOURS.map(|(column, colour)| Line {
        name: column.name(),
        colour,
        points: restores(&table.rows, column),
    });
    picture(
        &dir.join("restore.svg"),
        "Restore of redis until its first reply, page cache warm",
        ("memory of the app, MB", "ms, median"),
        &times,
    )?;
    let mut held: Vec<Line> = [(COLOURS[0], "restored copies"), (COLOURS[1], "CRIU, restored copies")]
        .map(|((column, colour), name)| Line {
            name,
            colour,
            points: copies(&table.rows, column),
        })
        .into();
    held.push(Line {
        name: "clones",
        colour: CLONES,
        points: clones(&table.rows),
    });
    picture(
        &dir.join("clones.svg"),
        "Memory of copies of one process of 100 MB",
        ("copies", "MB, all together"),
        &held,
    )
}

/// The rows of redis in its sizes.
fn restores(rows: &[Row], column: Column) -> Vec<(f64, f64)> {
    let sizes = rows.iter().filter(|row| row.id.starts_with("redis-"));
    sizes
        .filter_map(|row| Some((row.size_mb?, row.median(column)?)))
        .collect()
}

fn copies(rows: &[Row], column: Column) -> Vec<(f64, f64)> {
    rows.iter()
        .filter_map(|row| Some((row.id.strip_prefix("copies-")?.parse().ok()?, row.median(column)?)))
        .collect()
}

/// Those of clones tell kilobytes for each: the template comes on top, once.
fn clones(rows: &[Row]) -> Vec<(f64, f64)> {
    rows.iter()
        .filter_map(|row| {
            let n: f64 = row.id.strip_prefix("clones-")?.strip_suffix("-memory")?.parse().ok()?;
            Some((n, TEMPLATE_MB + n * row.median(Column::Ours)? * 1024.0 / 1e6))
        })
        .collect()
}

/// A little more than all values; `None` where there are none.
fn range(values: impl Iterator<Item = f64>) -> Option<std::ops::Range<f64>> {
    const MARGIN: f64 = 1.5;
    let values: Vec<f64> = values.filter(|value| *value > 0.0).collect();
    let least = values.iter().copied().min_by(f64::total_cmp)?;
    let most = values.iter().copied().max_by(f64::total_cmp)?;
    Some(least / MARGIN..most * MARGIN)
}

fn picture(path: &Path, title: &str, axes: (&str, &str), lines: &[Line]) -> Result<()> {
    let points = || lines.iter().flat_map(|line| line.points.iter());
    let x = range(points().map(|point| point.0));
    let y = range(points().map(|point| point.1));
    let (Some(x), Some(y)) = (x, y) else {
        return Ok(());
    };
    chart(path, title, axes, lines, x, y).map_err(|error| anyhow!("cannot draw {}: {error}", path.display()))
}

fn chart(
    path: &Path,
    title: &str,
    axes: (&str, &str),
    lines: &[Line],
    x: std::ops::Range<f64>,
    y: std::ops::Range<f64>,
) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 18))
        .margin(14)
        .margin_right(40)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x.log_scale(), y.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(axes.0)
        .y_desc(axes.1)
        .label_style(("sans-serif", 13))
        .x_label_formatter(&|value| value.to_string())
        .y_label_formatter(&|value| value.to_string())
        .draw()?;
    let drawn: Vec<&Line> = lines.iter().filter(|line| !line.points.is_empty()).collect();
    for (above, line) in drawn.iter().enumerate() {
        // The first is the widest: another that lies on it leaves its edges.
        let width = 2 * u32::try_from(drawn.len() - above)?;
        let style = line.colour.stroke_width(width);
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), style))?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
        let dots = line
            .points
            .iter()
            .map(|point| Circle::new(*point, width + 2, line.colour.filled()));
        chart.draw_series(dots)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .border_style(BLACK.mix(0.3))
        .background_style(WHITE.mix(0.9))
        .label_font(("sans-serif", 13))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_all_values() {
        assert_eq!(range([3.0, 250.0].into_iter()), Some(2.0..375.0));
        assert_eq!(range([0.0].into_iter()), None);
    }
}
