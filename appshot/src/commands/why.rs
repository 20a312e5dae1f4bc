//! `status --why`: the conditions by which an app sleeps or does not, and what would wake it.

use super::apps::text;
use libsnap::error::Result;
use libsnap::store::now_unix_ms;
use nodekit::args::Format;
use nodekit::client::Client;
use nodekit::out;
use serde_json::Value;

pub fn show(client: &Client, app: &str, format: Format) -> Result<u8> {
    let told: Value = client.get(&format!("/v1/apps/{app}/why"))?;
    let now = now_unix_ms()?;
    out::show(format, &told, |told| tell(told, now))?;
    Ok(0)
}

/// ```text
/// web has been running for 12s: it works: 11.0 % of a processor
/// SLEEPS WHEN  HOLDS  VALUE  LIMIT               FOR  DETAIL
/// work         no     11     2 % of a processor  3s
/// ```
fn tell(told: &Value, now: u64) -> String {
    let mut lines = format!(
        "{} has been {} for {}",
        text(told, "app"),
        text(told, "state"),
        since(told, now)
    );
    if let Some(why) = told["why"].as_str() {
        lines += &format!(": {}", why.replace('\n', ";"));
    }
    lines.push('\n');
    let conditions = list(&told["conditions"]);
    if !conditions.is_empty() {
        lines += &table("SLEEPS WHEN", &conditions, now);
    }
    let instances = &told["instances"];
    if instances.is_object() {
        let number = |key: &str| instances[key].as_u64().unwrap_or_default();
        lines += &format!(
            "{} instances; {} to {} are needed, {} to {} may be\n",
            number("count"),
            number("least"),
            number("most"),
            number("min"),
            number("max")
        );
        lines += &table("ENOUGH WHEN", &list(&instances["carried"]), now);
    }
    for waker in list(&told["wakers"]) {
        let at = waker["at_unix_ms"].as_u64();
        let left = at.map(|at| format!(" in {:.1} s", at.saturating_sub(now) as f64 / 1000.0));
        lines += &format!(
            "woken by {}{}: {}\n",
            text(waker, "cause"),
            left.unwrap_or_default(),
            text(waker, "detail")
        );
    }
    lines
}

fn list(value: &Value) -> Vec<&Value> {
    value.as_array().into_iter().flatten().collect()
}

fn since(value: &Value, now: u64) -> String {
    out::age(value["since_unix_ms"].as_u64().unwrap_or_default(), now)
}

fn table(first: &str, conditions: &[&Value], now: u64) -> String {
    let amount = |condition: &Value, key: &str| {
        let amount = condition[key].as_f64();
        let short = |amount| format!("{amount:.1}").trim_end_matches(".0").to_owned();
        amount.map_or_else(|| "-".to_owned(), short)
    };
    let row = |condition: &&Value| {
        vec![
            text(condition, "name").to_owned(),
            if condition["holds"] == true { "yes" } else { "no" }.to_owned(),
            amount(condition, "value"),
            format!("{} {}", amount(condition, "limit"), text(condition, "unit")),
            since(condition, now),
            condition["detail"].as_str().unwrap_or_default().to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = conditions.iter().map(row).collect();
    out::table(&[first, "HOLDS", "VALUE", "LIMIT", "FOR", "DETAIL"], &rows)
}
