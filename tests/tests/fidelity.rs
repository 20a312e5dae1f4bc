//! `docs/fidelity.md` says what comes back equal and what is refused. Its tables are made of
//! the code here, and the file must be as it is made:
//!
//! ```sh
//! APPSHOT_WRITE_DOCS=1 cargo test -p appshot-tests --test fidelity
//! ```
//!
//! - what a snapshot refuses: from the calls in `libsnap/src` that refuse something. Words
//!   that cannot be read from there are an error, so that none is left out.
//! - what is proved: from the list in `apps.rs` and the heads of the programs; of real software,
//!   from the lists in `scenario.rs` and the heads in `servers.rs` and `applications.rs`.

use anyhow::{Context, Result, bail, ensure};
use appshot_tests::programs;
use appshot_tests::verdict::switched_on;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_tables_are_those_of_the_code() -> Result<()> {
    let path = root().join("docs/fidelity.md");
    let old = fs::read_to_string(&path)?;
    let new = with_table(&old, "refusals", &refusals_table()?)?;
    let new = with_table(&new, "programs", &programs_table()?)?;
    let new = with_table(&new, "applications", &applications_table()?)?;
    if switched_on("APPSHOT_WRITE_DOCS") {
        return Ok(fs::write(&path, new)?);
    }
    let differs = old.lines().zip(new.lines()).find(|(old, new)| old != new);
    ensure!(
        old == new,
        "docs/fidelity.md is not as the code is: {differs:?}\n  to fix   \
         APPSHOT_WRITE_DOCS=1 cargo test -p appshot-tests --test fidelity"
    );
    Ok(())
}

/// The text with this table between its marks.
fn with_table(text: &str, name: &str, table: &str) -> Result<String> {
    let (begin, end) = (
        format!("<!-- {name}: made by tests/tests/fidelity.rs -->\n"),
        format!("<!-- end of {name} -->"),
    );
    let (before, rest) = text
        .split_once(&begin)
        .with_context(|| format!("no place for {name}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("no end of {name}"))?;
    Ok(format!("{before}{begin}\n{table}\n{end}{after}"))
}

// ---------------------------------------------------------------- what is refused

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Row {
    object: String,
    reason: String,
    fix: String,
}

fn refusals_table() -> Result<String> {
    let mut rows = Vec::new();
    for path in sources(&root().join("libsnap/src"))? {
        let text = fs::read_to_string(&path)?;
        let source = Source::new(&path, &text);
        rows.extend(source.rows()?);
    }
    rows.sort();
    rows.dedup();
    ensure!(rows.len() > 80, "only {} refusals were found", rows.len());
    let mut table = "| object | refused because | way out |\n|---|---|---|\n".to_owned();
    for Row { object, reason, fix } in rows {
        writeln!(table, "| {} | {} | {} |", cell(&object), cell(&reason), cell(&fix))?;
    }
    Ok(table)
}

fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('_', "\\_").replace('<', "\\<")
}

/// Everything that looks at a live app; what a restore refuses is told by its plan.
fn sources(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut entries: Vec<PathBuf> = fs::read_dir(dir)?.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap_or_default();
        let other = ["restore", "image", "store", "rehearsal", "sys"]
            .iter()
            .any(|other| name == *other);
        match path.is_dir() {
            true if !other => found.extend(sources(&path)?),
            false if path.extension().is_some_and(|end| end == "rs") => found.push(path),
            _ => {}
        }
    }
    Ok(found)
}

/// One file of the engine, without its tests.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
    /// The kernel object that its head names.
    object: String,
}

impl<'a> Source<'a> {
    fn new(path: &'a Path, text: &'a str) -> Source<'a> {
        let head = text.lines().next().unwrap_or_default().trim_start_matches("//! ");
        let object = match path.file_name().and_then(|name| name.to_str()) {
            Some("survey.rs") => "what is no app",
            Some("memory.rs") => "mapping",
            Some("mod.rs") => "descriptor",
            _ => head.split([':', '.', ';']).next().unwrap_or_default(),
        };
        Source {
            path,
            text: text.split("#[cfg(test)]").next().unwrap_or_default(),
            object: object.to_owned(),
        }
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (at, _) in self.text.match_indices('(') {
            let line_begin = self.text[..at].rfind('\n').map_or(0, |end| end + 1);
            let before = &self.text[line_begin..at];
            if before.trim_start().starts_with("//") {
                continue;
            }
            let is_call = |name: &str| before.ends_with(name);
            let arguments = || arguments(&self.text[at..]);
            if is_call("refusals.add") {
                let [_, object, reason, fix] = &arguments()?[..] else {
                    bail!("{}: a refusal of another form", self.place(at));
                };
                let object = self.words(object).unwrap_or_else(|| self.object.clone());
                self.row(at, Some(object), reason, fix, &mut rows)?;
            } else if is_call("refused")
                && !is_call("fn refused")
                && !is_call("Error::refused")
                && !is_call("is_refused")
            {
                let [reason, fix] = &arguments()?[..] else { continue };
                self.row(at, None, reason, fix, &mut rows)?;
            } else if !before.ends_with(|last: char| last.is_alphanumeric() || last == '_' || last == '!') {
                // A pair of sentences, after a flag where it stands in a table.
                let Ok(all) = arguments() else { continue };
                let pair = match &all[..] {
                    [reason, fix] => Some((reason, fix)),
                    [flag, reason, fix] if flag.len() < 8 => Some((reason, fix)),
                    _ => None,
                };
                let is_sentence =
                    |text: &&String| text.starts_with('"') && text.contains(' ') || text.starts_with("format!");
                if let Some((reason, fix)) = pair.filter(|(reason, fix)| is_sentence(reason) && is_sentence(fix)) {
                    self.row(at, None, reason, fix, &mut rows)?;
                }
            }
        }
        // One that is put together by itself.
        for (at, _) in self.text.match_indices("refusals.push(Refusal {") {
            let field = |name: &str| {
                let (_, rest) = self.text[at..].split_once(&format!("{name}: "))?;
                literal(rest)
            };
            let of = |name: &str| field(name).with_context(|| format!("{}: no {name}", self.place(at)));
            rows.push(Row {
                object: of("object")?,
                reason: of("reason")?,
                fix: of("fix")?,
            });
        }
        Ok(rows)
    }

    fn place(&self, at: usize) -> String {
        let line = self.text[..at].matches('\n').count() + 1;
        format!("{}:{line}", self.path.display())
    }

    fn row(&self, at: usize, object: Option<String>, reason: &str, fix: &str, rows: &mut Vec<Row>) -> Result<()> {
        if (reason, fix) == ("reason", "fix") {
            // What somebody else has refused is passed on.
            return Ok(());
        }
        let words = |text: &str| {
            let found = self.words(text);
            found.with_context(|| format!("{}: the words of {text:?} are not in the code", self.place(at)))
        };
        rows.push(Row {
            object: object.unwrap_or_else(|| self.object.clone()),
            reason: words(reason)?,
            fix: words(fix)?,
        });
        Ok(())
    }

    /// The first text in an argument, or in what it names.
    fn words(&self, argument: &str) -> Option<String> {
        if argument.contains('"') {
            return literal(argument);
        }
        let (name, part) = argument.rsplit_once('.').unwrap_or((argument, "0"));
        let name = name.rsplit("::").next()?;
        let all = fs::read_to_string(root().join("libsnap/src/survey.rs")).ok()?;
        let defined = [self.text, &all].into_iter().find_map(|text| {
            let of_let = text.split_once(&format!("let {name} = ")).map(|(_, rest)| rest);
            let of_const = || Some(text.split_once(&format!("const {name}: "))?.1.split_once(" = ")?.1);
            let rest = of_let.or_else(of_const)?;
            Some(rest.split_once(';')?.0.to_owned())
        })?;
        match part.parse::<usize>() {
            Ok(part) if defined.starts_with('(') => literal(arguments(&defined).ok()?.get(part)?),
            _ => literal(&defined),
        }
    }
}

/// What stands between a parenthesis and its end, at each comma of its own.
fn arguments(text: &str) -> Result<Vec<String>> {
    let (mut depth, mut all, mut now) = (0, Vec::new(), String::new());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' => {
                now.push('"');
                while let Some(inside) = characters.next() {
                    now.push(inside);
                    match inside {
                        '\\' => now.extend(characters.next()),
                        '"' => break,
                        _ => {}
                    }
                }
                continue;
            }
            // A character, not a lifetime.
            '\'' => {
                now.push('\'');
                let ahead: Vec<char> = characters.clone().take(3).collect();
                let length = match ahead[..] {
                    ['\\', _, '\''] => 3,
                    [_, '\'', ..] => 2,
                    _ => 0,
                };
                now.extend(characters.by_ref().take(length));
                continue;
            }
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        match (character, depth) {
            (_, 0) => {
                all.push(now);
                let trimmed = all.iter().map(|argument| argument.trim().to_owned());
                return Ok(trimmed.filter(|argument| !argument.is_empty()).collect());
            }
            ('(', 1) if now.is_empty() && all.is_empty() => {}
            (',', 1) => all.push(std::mem::take(&mut now)),
            (other, _) => now.push(other),
        }
    }
    bail!("a parenthesis that does not end")
}

/// The first text of an expression; what is filled in is an ellipsis.
fn literal(expression: &str) -> Option<String> {
    let mut characters = expression.split_once('"')?.1.chars();
    let mut text = String::new();
    while let Some(character) = characters.next() {
        match character {
            '"' => return Some(text),
            '\\' => match characters.next()? {
                '\n' => characters = characters.as_str().trim_start().chars(),
                other => text.push(other),
            },
            '{' => {
                characters.by_ref().find(|inside| *inside == '}');
                text.push('…');
            }
            other => text.push(other),
        }
    }
    None
}

// ---------------------------------------------------------------- what is proved

fn programs_table() -> Result<String> {
    let list = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apps.rs"))?;
    let mut table = "| object | program | restored equal, or refused by name |\n|---|---|---|\n".to_owned();
    for line in list.lines() {
        let Some(words) = line.strip_prefix("app_test!(").and_then(|rest| rest.split(')').next()) else {
            continue;
        };
        let mut words = words.split(", ");
        let program = words.next().context("a program without a name")?;
        let outcome = match words.any(|word| word == "refused") {
            true => "refused",
            false => "equal",
        };
        writeln!(table, "| {} | `{program}` | {outcome} |", cell(&head(program)?))?;
    }
    Ok(table)
}

/// The first sentence of a program.
fn head(program: &str) -> Result<String> {
    let text = fs::read_to_string(programs::source_dir().join(program).with_extension("c"))?;
    let comment = text.strip_prefix("/*").and_then(|rest| rest.split("*/").next());
    let comment = comment.with_context(|| format!("{program} does not say what it is about"))?;
    let words: Vec<&str> = comment.split_whitespace().filter(|word| *word != "*").collect();
    let sentence = words.join(" ");
    let end = sentence.find(". ").unwrap_or(sentence.len());
    Ok(sentence[..end].trim_end_matches('.').to_owned())
}

/// Real software: what each is, of which version it was tried, what it is doing when it is frozen.
fn applications_table() -> Result<String> {
    let mut table = "| application | version | what it was doing | restored equal, or refused by name |\n\
                     |---|---|---|---|\n"
        .to_owned();
    let heads = ["src/servers.rs", "src/applications.rs", "tests/applications.rs"];
    let heads: Vec<String> = heads.iter().map(|name| part(name)).collect::<Result<_>>()?;
    for (name, application, version, outcome) in APPLICATIONS {
        let told = heads.iter().find_map(|text| doing(text, name));
        let told = told.with_context(|| format!("{name} does not say what it is doing"))?;
        writeln!(table, "| {application} | {version} | {} | {outcome} |", cell(&told))?;
    }
    let all = listed()?;
    let known = |name: &str| APPLICATIONS.iter().any(|(known, ..)| *known == name);
    let unknown: Vec<&String> = all.iter().filter(|name| !known(name)).collect();
    ensure!(unknown.is_empty(), "of which version are {unknown:?}?");
    Ok(table)
}

/// A file of this crate.
fn part(name: &str) -> Result<String> {
    Ok(fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))?)
}

/// The scenarios and applications.
fn listed() -> Result<Vec<String>> {
    let text = part("src/scenario.rs")?;
    let name = |line: &str| {
        let rest = line.trim().strip_prefix("$test!(")?;
        Some(rest.split_once(',')?.0.to_owned())
    };
    Ok(text.lines().filter_map(name).collect())
}

/// The comment above the function of this name.
fn doing(text: &str, name: &str) -> Option<String> {
    let before = ["\npub fn ", "\n#[test]\nfn "]
        .iter()
        .find_map(|start| Some(text.split_once(&format!("{start}{name}("))?.0))?;
    let mut lines: Vec<&str> = before
        .lines()
        .rev()
        .map_while(|line| line.strip_prefix("/// "))
        .collect();
    lines.reverse();
    let words = lines.join(" ");
    (!words.is_empty()).then(|| words.trim_end_matches('.').to_owned())
}

/// Name of the trial, name and version of what it was tried with, outcome.
const APPLICATIONS: &[(&str, &str, &str, &str)] = &[
    ("redis_server", "Redis", "7.0.15", "equal"),
    ("nginx", "nginx", "1.22.1", "equal"),
    ("postgresql", "PostgreSQL", "15.18", "equal"),
    ("python_http_server", "Python `http.server`", "3.11.2", "equal"),
    ("node", "Node.js", "20.20.2", "equal"),
    ("go", "Go `net/http`", "1.19.8", "equal"),
    ("java", "OpenJDK `HttpServer`", "17.0.15", "equal"),
    ("bash_pipeline", "bash, a pipeline", "5.2.15", "equal"),
    ("shell_on_a_terminal", "bash, interactive", "5.2.15", "equal"),
    ("threads_100", "a C program", "-", "equal"),
    ("tree_of_100_processes", "bash, a tree", "5.2.15", "equal"),
    ("blocking_calls", "18 C programs", "-", "equal"),
    ("memcached", "memcached", "1.6.18", "equal"),
    ("beanstalkd", "beanstalkd", "1.12", "equal"),
    ("haproxy", "HAProxy", "2.6.12", "equal"),
    ("bind9", "BIND", "9.18.49", "equal"),
    ("squid", "Squid", "5.7", "equal"),
    ("erlang", "Erlang/OTP", "25.2.3", "equal"),
    ("puma", "Puma on Ruby 3.1", "5.6.5", "equal"),
    ("perl", "Perl", "5.36.0", "equal"),
    ("bubblewrap", "bubblewrap", "0.8.0", "equal"),
    ("gunicorn", "Gunicorn", "20.1.0", "equal"),
    ("uvicorn", "Uvicorn on asyncio", "0.17.6", "equal"),
    ("tokio_uring", "tokio-uring, a server in Rust", "0.5.0", "equal"),
    ("java_pools", "OpenJDK, thread pools", "17.0.15", "equal"),
    ("sqlite", "SQLite in WAL mode", "3.40.1", "equal"),
    ("php_fpm", "PHP-FPM", "8.2.36", "equal"),
    ("mariadb", "MariaDB with io\\_uring", "10.11.19", "equal"),
    ("jupyter_kernel", "Jupyter kernel with NumPy 1.24.2", "6.17.0", "equal"),
    ("vim", "Vim (vim.tiny)", "9.0.1378", "equal"),
    ("htop", "htop", "3.2.2", "equal"),
    ("tmux", "tmux", "3.3a", "equal"),
    ("ffmpeg", "FFmpeg with x264 (imageio-ffmpeg of PyPI)", "7.0.2", "equal"),
    ("gcc", "GCC", "12.2.0", "equal"),
    ("stress_ng", "stress-ng `--verify`", "0.15.06", "equal"),
];

#[test]
fn words_are_read_as_the_compiler_does() -> Result<()> {
    let text = r#"(pid, format!("a {} (b)", x.y(",")), "c \
                   d", ')', 'x)"#;
    let all = arguments(text)?;
    assert_eq!(all.len(), 5, "{all:?}");
    assert_eq!(literal(&all[1]).as_deref(), Some("a … (b)"));
    assert_eq!(literal(&all[2]).as_deref(), Some("c d"));
    Ok(())
}
