//! What /proc tells of a task. See proc(5).
//!
//! The files read while an app stands still (`smaps`, `fdinfo`) are parsed
//! here, and `stat`.

use crate::ids::HostPid;
use crate::sys::memory::Span;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Reads a file whose size nobody can tell before, as all of /proc are: in as few calls
/// as there can be.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let mut bytes = vec![0; 8 << 10];
    let mut filled = 0;
    loop {
        match file.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(got) => filled += got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if bytes.len() - filled < 4 << 10 {
            bytes.resize(2 * bytes.len(), 0);
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Reads such a file that is open from its begin: in one call where it is short.
pub fn read_again(file: &fs::File) -> io::Result<Vec<u8>> {
    const PIECE: usize = 4 << 10;
    let mut piece = [0; PIECE];
    let mut bytes = Vec::new();
    loop {
        let length = file.read_at(&mut piece, bytes.len() as u64)?;
        bytes.extend(&piece[..length]);
        // The kernel ends a piece early only where the next line has no room in it.
        if length < PIECE / 2 {
            return Ok(bytes);
        }
    }
}

/// What was read, by task and name.
type Kept = HashMap<(HostPid, &'static str), Vec<u8>>;

thread_local! {
    /// What was read since [`Still`].
    static KEPT: RefCell<Option<Kept>> = const { RefCell::new(None) };
}

/// Files and links that do not change while an app stands still.
const STILL: [&str; 6] = ["status", "comm", "maps", "exe", "cwd", "root"];

/// As long as it lives, this thread reads these of a task once only, and [`kept_stat`]:
/// the app stands still. (Pending signals change even then, and are read by ptrace.)
#[derive(Debug)]
#[must_use]
pub struct Still(());

impl Still {
    pub fn begin() -> Still {
        KEPT.set(Some(HashMap::new()));
        Still(())
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        KEPT.set(None);
    }
}

/// Reads `/proc/PID/NAME` as text; bytes that are not UTF-8 are replaced.
pub fn text(pid: HostPid, name: &str) -> io::Result<String> {
    bytes(pid, name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Reads `/proc/PID/NAME`.
pub fn bytes(pid: HostPid, name: &str) -> io::Result<Vec<u8>> {
    let read = || read(format!("/proc/{pid}/{name}"));
    match STILL.into_iter().find(|still| *still == name) {
        Some(name) => kept(pid, name, read),
        None => read(),
    }
}

fn kept(pid: HostPid, name: &'static str, read: impl FnOnce() -> io::Result<Vec<u8>>) -> io::Result<Vec<u8>> {
    let key = (pid, name);
    let kept = KEPT.with_borrow(|kept| kept.as_ref().map(|kept| kept.get(&key).cloned()));
    match kept {
        None => read(),
        Some(Some(bytes)) => Ok(bytes),
        Some(None) => {
            let bytes = read()?;
            KEPT.with_borrow_mut(|kept| kept.as_mut().map(|kept| kept.insert(key, bytes.clone())));
            Ok(bytes)
        }
    }
}

/// Where `/proc/PID/NAME` leads; bytes that are not UTF-8 are replaced.
pub fn link(pid: HostPid, name: &str) -> io::Result<String> {
    link_bytes(pid, name).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Where `/proc/PID/NAME` leads.
pub fn link_bytes(pid: HostPid, name: &str) -> io::Result<Vec<u8>> {
    let read = || fs::read_link(format!("/proc/{pid}/{name}")).map(|path| path.into_os_string().into_vec());
    match STILL.into_iter().find(|still| *still == name) {
        Some(name) => kept(pid, name, read),
        None => read(),
    }
}

pub fn comm(pid: HostPid) -> String {
    text(pid, "comm").map_or_else(|_| "?".into(), |name| name.trim_end().to_owned())
}

/// The name of a task as the kernel has it: it need not be text.
pub fn comm_bytes(tid: HostPid) -> Option<Vec<u8>> {
    let mut bytes = bytes(tid, "comm").ok()?;
    bytes.pop_if(|last| *last == b'\n');
    Some(bytes)
}

pub fn exists(pid: HostPid) -> bool {
    fs::exists(format!("/proc/{pid}/stat")).unwrap_or(false)
}

/// `key:` lines, as in `status` and `fdinfo`.
#[derive(Clone, Debug, Default)]
pub struct Fields(String);

impl Fields {
    pub fn new(text: String) -> Self {
        Fields(text)
    }

    pub fn status(tid: HostPid) -> io::Result<Self> {
        text(tid, "status").map(Fields)
    }

    pub fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next()
    }

    pub fn all<'a, 'k>(&'a self, key: &'k str) -> impl Iterator<Item = &'a str> + use<'a, 'k> {
        self.0
            .lines()
            .filter_map(move |line| line.strip_prefix(key)?.strip_prefix(':').map(str::trim))
    }

    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.0.lines()
    }

    pub fn hex(&self, key: &str) -> u64 {
        self.get(key).and_then(|v| u64::from_str_radix(v, 16).ok()).unwrap_or(0)
    }

    pub fn number(&self, key: &str) -> Option<i64> {
        self.get(key)?.split_whitespace().next()?.parse().ok()
    }

    pub fn octal(&self, key: &str) -> u32 {
        self.get(key).and_then(|v| u32::from_str_radix(v, 8).ok()).unwrap_or(0)
    }

    pub fn numbers<T: std::str::FromStr>(&self, key: &str) -> Vec<T> {
        self.get(key).map_or_else(Vec::new, |value| {
            value.split_whitespace().filter_map(|word| word.parse().ok()).collect()
        })
    }

    /// The number in the innermost PID namespace (`NSpid`, `NSpgid`, `NSsid`).
    pub fn innermost(&self, key: &str) -> i32 {
        self.numbers(key).last().copied().unwrap_or(0)
    }
}

/// The fields of `/proc/PID/stat` that are used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stat {
    pub state: u8,
    pub ppid: i32,
    pub pgrp: i32,
    pub session: i32,
    pub exit_signal: i32,
    pub tty: i32,
    pub start_time: u64,
    pub flags: u32,
    pub exit_code: i32,
    /// Where it ran last.
    pub processor: usize,
}

pub fn stat(pid: HostPid) -> io::Result<Stat> {
    text(pid, "stat").map(|text| parse_stat(&text))
}

/// The same, once only while the app stands still: not whether the task is dead.
pub fn kept_stat(pid: HostPid) -> io::Result<Stat> {
    kept_stat_text(pid).map(|text| parse_stat(&text))
}

fn kept_stat_text(pid: HostPid) -> io::Result<String> {
    let bytes = kept(pid, "stat", || read(format!("/proc/{pid}/stat")))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where the parts of a program lie, as `/proc/PID/stat` tells its tracer. The end of the
/// heap is not among them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Marks {
    pub start_code: u64,
    pub end_code: u64,
    pub start_stack: u64,
    pub start_data: u64,
    pub end_data: u64,
    pub start_brk: u64,
    pub arg_start: u64,
    pub arg_end: u64,
    pub env_start: u64,
    pub env_end: u64,
}

pub fn marks(pid: HostPid) -> io::Result<Marks> {
    let text = kept_stat_text(pid)?;
    let fields = stat_fields(&text);
    let at = |number: usize| fields.get(number - 3).and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok(Marks {
        start_code: at(26),
        end_code: at(27),
        start_stack: at(28),
        start_data: at(45),
        end_data: at(46),
        start_brk: at(47),
        arg_start: at(48),
        arg_end: at(49),
        env_start: at(50),
        env_end: at(51),
    })
}

/// The fields of `stat` after the last `)`: the name may hold anything. Numbers of proc(5)
/// count from 1 and the name is the second.
fn stat_fields(text: &str) -> Vec<&str> {
    let rest = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    rest.split_whitespace().collect()
}

/// Parses `stat`.
pub fn parse_stat(text: &str) -> Stat {
    let fields = stat_fields(text);
    let field = |number: usize| fields.get(number - 3).copied().unwrap_or("0");
    let int = |number: usize| field(number).parse().unwrap_or(0);
    Stat {
        state: field(3).as_bytes().first().copied().unwrap_or(b'?'),
        ppid: int(4),
        pgrp: int(5),
        session: int(6),
        tty: int(7),
        flags: field(9).parse().unwrap_or(0),
        start_time: field(22).parse().unwrap_or(0),
        exit_signal: int(38),
        exit_code: int(52),
        processor: field(39).parse().unwrap_or(0),
    }
}

/// Threads of a process, the main one first.
pub fn threads(pid: HostPid) -> io::Result<Vec<HostPid>> {
    let mut tids = numbered(&format!("/proc/{pid}/task"))?;
    tids.sort_by_key(|tid| (*tid != pid.0, *tid));
    Ok(tids.into_iter().map(HostPid).collect())
}

/// Children of all threads of a process.
pub fn children(pid: HostPid) -> io::Result<Vec<HostPid>> {
    let mut found = Vec::new();
    for tid in threads(pid)? {
        let list = text(pid, &format!("task/{tid}/children")).unwrap_or_default();
        found.extend(list.split_whitespace().filter_map(|n| n.parse().ok()).map(HostPid));
    }
    Ok(found)
}

/// Entries of a directory whose names are numbers, sorted.
pub fn numbered(dir: &str) -> io::Result<Vec<i32>> {
    let mut numbers: Vec<i32> = fs::read_dir(dir)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// One mapping as `/proc/PID/smaps` lists it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    pub start: u64,
    pub end: u64,
    pub read: bool,
    pub write: bool,
    pub exec: bool,
    pub shared: bool,
    pub offset: u64,
    pub dev: (u32, u32),
    pub ino: u64,
    pub name: String,
    pub flags: Vec<String>,
    /// In transparent huge pages of private memory.
    pub huge_bytes: u64,
    /// Protection key (pkeys(7)).
    pub key: u32,
    /// Of its pages, as the kernel manages them.
    pub page_bytes: u64,
}

impl Mapping {
    pub fn span(&self) -> Span {
        Span {
            start: self.start,
            end: self.end,
        }
    }

    pub fn has(&self, flag: &str) -> bool {
        self.flags.iter().any(|f| f == flag)
    }

    pub fn prot(&self) -> u32 {
        u32::from(self.read) | u32::from(self.write) << 1 | u32::from(self.exec) << 2
    }
}

/// All mappings without their flags, which the kernel tells only together with a look
/// at every page: 15 ms a GiB.
pub fn maps(pid: HostPid) -> io::Result<Vec<Mapping>> {
    text(pid, "maps").map(|text| parse_mappings(&text))
}

/// All mappings with their flags, in address order.
pub fn mappings(pid: HostPid) -> io::Result<Vec<Mapping>> {
    text(pid, "smaps").map(|text| parse_mappings(&text))
}

/// Parses `smaps`. Names of files are the app's: they may look like anything.
pub fn parse_mappings(text: &str) -> Vec<Mapping> {
    let mut found: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if let Some(last) = found.last_mut() {
                last.flags = flags.split_whitespace().map(str::to_owned).collect();
            }
        } else if let Some(huge) = line.strip_prefix("AnonHugePages:") {
            if let Some(last) = found.last_mut() {
                last.huge_bytes = kilobytes(huge);
            }
        } else if let Some(page) = line.strip_prefix("KernelPageSize:") {
            if let Some(last) = found.last_mut() {
                last.page_bytes = kilobytes(page);
            }
        } else if let Some(key) = line.strip_prefix("ProtectionKey:") {
            if let Some(last) = found.last_mut() {
                last.key = key.trim().parse().unwrap_or(0);
            }
        } else if let Some(mapping) = parse_header(line) {
            found.push(mapping);
        }
    }
    found
}

/// `   2048 kB`, in bytes.
fn kilobytes(text: &str) -> u64 {
    text.trim()
        .trim_end_matches(" kB")
        .parse::<u64>()
        .map_or(0, |number| number << 10)
}

/// `start-end perms offset maj:min inode   name`
fn parse_header(line: &str) -> Option<Mapping> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let mut words = rest.splitn(4, ' ');
    let perms = words.next()?.as_bytes();
    let offset = words.next()?;
    let (major, minor) = words.next()?.split_once(':')?;
    let (ino, name) = words.next()?.split_once(' ').unwrap_or(("0", ""));
    Some(Mapping {
        start,
        end: u64::from_str_radix(end, 16).ok()?,
        read: perms.first() == Some(&b'r'),
        write: perms.get(1) == Some(&b'w'),
        exec: perms.get(2) == Some(&b'x'),
        shared: perms.get(3) == Some(&b's'),
        offset: u64::from_str_radix(offset, 16).ok()?,
        dev: (
            u32::from_str_radix(major, 16).ok()?,
            u32::from_str_radix(minor, 16).ok()?,
        ),
        ino: ino.parse().unwrap_or(0),
        name: unescape(name.trim_start()),
        flags: Vec::new(),
        huge_bytes: 0,
        key: 0,
        page_bytes: 0,
    })
}

/// The kernel writes a newline in a name as `\012`.
fn unescape(name: &str) -> String {
    name.replace("\\012", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_with_flags_and_a_name_with_spaces() {
        let text = "7f00-8f00 rw-p 00002000 fe:01 77   /tmp/a file (deleted)\nSize: 4 kB\nVmFlags: rd wr mr mw me ac sd\n\
                    9000-a000 ---s 00000000 00:00 0 \nVmFlags: dd\n";
        let found = parse_mappings(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].name, "/tmp/a file (deleted)");
        assert_eq!((found[0].offset, found[0].dev, found[0].ino), (0x2000, (0xfe, 1), 77));
        assert!(found[0].has("ac") && found[0].prot() == 3 && !found[0].shared);
        assert!(found[1].shared && found[1].name.is_empty() && found[1].has("dd"));
    }

    #[test]
    fn our_own_mappings_parse_whole() {
        let pid = HostPid(std::process::id() as i32);
        let lines = text(pid, "maps").unwrap().lines().count();
        let found = mappings(pid).unwrap();
        assert!(found.len().abs_diff(lines) <= 2 && found.iter().any(|m| m.name == "[stack]"));
        assert!(found.is_sorted_by_key(|m| m.start));
    }

    #[test]
    fn fields_by_exact_key() {
        let fields = Fields::new("NSpid:\t12\t3\nSigPnd:\t00ff\nSig:\t1\n".into());
        assert_eq!(fields.innermost("NSpid"), 3);
        assert_eq!(fields.hex("SigPnd"), 0xff);
        assert_eq!(fields.number("Sig"), Some(1));
    }
}
