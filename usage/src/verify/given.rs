//! A bill that was given to somebody, held against what the ledger comes to.

use crate::bill::Bill;
use crate::export::{self, Format, Summary};
use libsnap::error::{Error, Kind, Result};
use std::io::{self, BufRead, Write};

/// How much of a line that differs is shown, from where it does.
const SHOWN: usize = 60;

/// Makes the bill again and holds it against `given`, byte by byte. Fails with the first line
/// that is otherwise.
pub fn hold_against(
    bill: &Bill,
    provider: Option<&str>,
    mut given: impl BufRead + Send,
    name: &str,
) -> Result<Summary> {
    let unread = |error| Error::failed(format!("cannot read {name}")).because(error);
    let format = format_of(given.fill_buf().map_err(unread)?);
    let mut against = Against {
        given,
        line: 0,
        made: Vec::new(),
        differs: None,
    };
    let written = export::write(&bill.hours, &bill.wanted(provider), format, &mut against);
    let ended = match &written {
        Ok(_) => against.end(),
        Err(_) => Ok(()),
    };
    if let Some(because) = against.differs {
        let what = format!("{name} is not the bill that this ledger comes to");
        return Err(Error::new(Kind::Failed, what).because(because).fix(
            "name the provider, period and rate cards that it was made with; while a period is not over its bill \
                 grows",
        ));
    }
    ended.map_err(unread)?;
    written
}

/// By how it begins.
fn format_of(begin: &[u8]) -> Format {
    let first = begin.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let is_event = || {
        let mark = b"\"specversion\"";
        first.windows(mark.len()).any(|part| part == mark)
    };
    match first {
        [b'P', b'A', b'R', b'1', ..] => Format::Parquet,
        [b'{', ..] if is_event() => Format::CloudEvents,
        [b'{', ..] => Format::Json,
        _ => Format::Csv,
    }
}

/// What is written to it has to be what it reads.
struct Against<R> {
    given: R,
    line: u64,
    /// Of the line that is being written.
    made: Vec<u8>,
    differs: Option<String>,
}

impl<R: BufRead> Against<R> {
    /// Holds the line that was made against the next one.
    fn hold(&mut self) -> io::Result<()> {
        let differs = || Err(io::Error::other("it differs"));
        if self.differs.is_some() {
            // A buffer that is dropped is written once more.
            return differs();
        }
        let mut given = Vec::with_capacity(self.made.len());
        self.given.read_until(b'\n', &mut given)?;
        self.line += 1;
        if given == self.made {
            self.made.clear();
            return Ok(());
        }
        let same = given.iter().zip(&self.made).take_while(|(a, b)| a == b).count();
        let shown = |line: &[u8]| match line.len() - same {
            0 => "ends".to_owned(),
            _ => {
                let rest = &line[same..(same + SHOWN).min(line.len())];
                format!("says {:?}", String::from_utf8_lossy(rest.trim_ascii_end()))
            }
        };
        self.differs = Some(format!(
            "line {}, behind {same} bytes: the bill {}, the ledger {}",
            self.line,
            shown(&given),
            shown(&self.made)
        ));
        differs()
    }

    /// No more is made, so there must be no more.
    fn end(&mut self) -> io::Result<()> {
        if !self.made.is_empty() {
            self.hold()?;
        }
        match self.given.fill_buf()?.is_empty() {
            true => Ok(()),
            false => self.hold(),
        }
    }
}

impl<R: BufRead> Write for Against<R> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.made.extend_from_slice(part);
            if part.ends_with(b"\n") {
                self.hold()?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(given: &str, made: &str) -> Option<String> {
        let mut against = Against {
            given: given.as_bytes(),
            line: 0,
            made: Vec::new(),
            differs: None,
        };
        let written = made.as_bytes().chunks(3).try_for_each(|part| against.write_all(part));
        if written.is_ok() {
            let _ = against.end();
        }
        against.differs
    }

    #[test]
    fn the_first_line_that_differs_is_named() {
        assert_eq!(hold("a,1\nb,2\n", "a,1\nb,2\n"), None);
        assert_eq!(hold("", ""), None);
        let told = "line 2, behind 2 bytes: the bill says \"3\", the ledger says \"2\"";
        assert_eq!(hold("a,1\nb,3\nc,4\n", "a,1\nb,2\nc,9\n").as_deref(), Some(told));
        let told = "line 2, behind 0 bytes: the bill ends, the ledger says \"b,2\"";
        assert_eq!(hold("a,1\n", "a,1\nb,2\n").as_deref(), Some(told));
        let told = "line 2, behind 0 bytes: the bill says \"b,2\", the ledger ends";
        assert_eq!(hold("a,1\nb,2\n", "a,1\n").as_deref(), Some(told));
    }
}
