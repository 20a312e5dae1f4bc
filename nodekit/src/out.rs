//! Results go to stdout, everything else to stderr; the exit code tells the class.

use crate::args::Format;
use libsnap::error::{Error, Kind, OrFail, Result};
pub use libsnap::units::bytes;
use serde::Serialize;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// Runs a program's body and turns its answer into messages and an exit code.
pub fn finish(program: &str, body: impl FnOnce() -> Result<u8>) -> ExitCode {
    match body() {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            let error = with_rights(error);
            complain(program, &error);
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// Most of what fails without root fails for that reason.
fn with_rights(mut error: Error) -> Error {
    if error.kind == Kind::Failed && error.fix.is_none() && !nix::unistd::geteuid().is_root() {
        error.kind = Kind::Unavailable;
        return error
            .needs("root, or the capabilities that `appshot doctor` names")
            .fix("run it as root");
    }
    error
}

/// Prints an error. Nothing can be done when stderr is gone too.
pub fn complain(program: &str, error: &Error) {
    let text = harmless(&error.to_string(), true);
    let _ = writeln!(std::io::stderr(), "{program}: {text}");
}

/// Tells what is worth knowing and keeps nobody from going on.
pub fn warn(text: &str) {
    let _ = writeln!(std::io::stderr(), "warning: {}", harmless(text, true));
}

/// Writes to stdout. A reader that has seen enough (`| head`) ends the program
/// as it would end any other.
pub fn print(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        written => written.or_fail(|| "cannot write to stdout"),
    }
}

/// Stdout for what is long. A reader that has seen enough ends the program, as with
/// [`print`].
#[derive(Debug)]
pub struct Stream(std::io::Stdout);

impl Stream {
    pub fn stdout() -> Stream {
        Stream(std::io::stdout())
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.write(bytes) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            written => written,
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        match self.0.flush() {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            flushed => flushed,
        }
    }
}

/// Prints `value` as JSON, or the text made of it for people.
pub fn show<T: Serialize>(format: Format, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    match format {
        Format::Text => print(&harmless(&text(value), true)),
        Format::Json => {
            let json = serde_json::to_string_pretty(value).or_fail(|| "cannot write JSON")?;
            print(&(json + "\n"))
        }
    }
}

/// Names of processes, files and apps come from others: control characters in
/// them must not reach the terminal.
fn harmless(text: &str, lines: bool) -> String {
    let escaped = |c: char| c.is_control() && !(lines && c == '\n');
    text.chars()
        .map(|c| match escaped(c) {
            true => c.escape_default().to_string(),
            false => c.to_string(),
        })
        .collect()
}

/// Columns as wide as their widest cell, two blanks between them. A cell beyond the head
/// stands in a column without one.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let clean = |row: &Vec<String>| row.iter().map(|cell| harmless(cell, false)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(clean).collect();
    let head: Vec<String> = head.iter().map(|cell| (*cell).to_owned()).collect();
    let all = || std::iter::once(&head).chain(&rows);
    let columns = all().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = all().filter_map(|row| Some(row.get(column)?.chars().count()));
        cells.max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    all().map(|row| line(row, &widths)).collect()
}

fn line(row: &[String], widths: &[usize]) -> String {
    let cells: Vec<String> = row
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{cell:<width$}"))
        .collect();
    format!("{}\n", cells.join("  ").trim_end())
}

/// `12.3 ms`
pub fn millis(micros: u64) -> String {
    format!("{}.{:01} ms", micros / 1000, micros % 1000 / 100)
}

/// `1 process`, `3 processes`
pub fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// How long ago a moment was: `3s`, `5m`, `2h`, `9d`.
pub fn age(since_unix_ms: u64, now_unix_ms: u64) -> String {
    match now_unix_ms.saturating_sub(since_unix_ms) / 1000 {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [
            vec!["web".to_owned(), "1".to_owned()],
            vec!["postgres".to_owned(), String::new()],
        ];
        let text = table(&["NAME", "PID"], &rows);
        assert_eq!(text, "NAME      PID\nweb       1\npostgres\n");
    }

    #[test]
    fn control_characters_are_shown_not_sent() {
        let rows = [vec!["a\u{1b}[31m\nb".to_owned()]];
        assert_eq!(table(&["NAME"], &rows), "NAME\na\\u{1b}[31m\\nb\n");
        assert_eq!(harmless("a\n\tb", true), "a\n\\tb");
    }

    #[test]
    fn amounts_are_short() {
        assert_eq!(millis(12_345), "12.3 ms");
        assert_eq!(age(0, 7_200_000), "2h");
        assert_eq!(age(5, 0), "0s");
    }
}
