//! One line of the ledger.
//!
//! ```text
//! DATA_DIR/usage/
//!   node                     name of this node, made at the first start
//!   key                      ed25519, 32 bytes, 0600: signs checkpoints
//!   lock                     held by the one that writes
//!   ledger/00000002.ledger   segments: lines of JSON, appended to and never changed
//!   ledger/00000001.ledger.zst   one that is complete, compressed
//!
//! {"v":1,"seq":7,"boot_ns":..,"unix_ms":..,"body":{"use":{..}},"hash":"<64 hex digits>"}\n
//! └───────────────────── covered ─────────────────────────┘
//! hash = BLAKE3(hash of the line before, 32 bytes ‖ covered bytes)
//! ```
//!
//! The first line of a segment is its head; the hash before it is the one that the head
//! names: that of the last line of the segment before, zeroes at first. `seq` counts
//! all lines, without a gap. Counters are cumulative since their account began, so any
//! number of lines may be lost or read twice without a wrong sum.
//!
//! A segment that was compacted (`Head::kept`) has gaps in its numbers. What stayed is
//! chained anew from its head on; the last but one is [`Sealed`] with the hash that the
//! whole segment ended in, which the next head names, and the last is a checkpoint: the
//! node's key answers for what stayed.

use crate::meter::Meter;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::store::Taken;
use rust_decimal::Decimal;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Of the format. Another one is refused.
pub const VERSION: u32 = 1;

/// The longest line that is read.
pub const LINE_BYTES_MAX: usize = 64 << 10;

/// When something was so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// CLOCK_BOOTTIME: durations come from it.
    pub boot_ns: u64,
    /// Calendar time: a label, which decides in which hour it is billed.
    pub unix_ms: u64,
}

/// A whole line but for its hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    pub v: u32,
    pub seq: u64,
    pub boot_ns: u64,
    pub unix_ms: u64,
    pub body: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Body {
    /// Of a segment.
    Head(Head),
    /// The meter began: what follows counts from this boot.
    Start(Start),
    /// An account is opened, or, at the head of a segment, carried over.
    Account(Box<Account>),
    /// What an account has counted by now.
    Use(Use),
    /// The same for the last time.
    End(End),
    /// The node's own counters: the other side of the books.
    Node(Node),
    /// Something was not metered.
    Gap(Gap),
    /// The hash before this line, signed.
    Checkpoint(Checkpoint),
    /// A row of the bill was wrong.
    Correction(Box<Correction>),
    /// What a segment ended in that was compacted.
    Sealed(Sealed),
    /// Snapshots of an instance.
    Snapshots(Snapshots),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    pub node: String,
    /// From 1.
    pub segment: u64,
    /// Hash of the last line of the segment before.
    pub prev: String,
    /// The public key that checkpoints are signed for, in hexadecimal.
    pub key: String,
    pub boot_id: String,
    /// What stayed of it; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
}

/// What is left of a segment that was compacted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kept {
    /// What bills are made of.
    Bills,
    /// What accounts that went on had counted at its end. There is no bill of it any more.
    Accounts,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    pub boot_id: String,
    pub product: String,
    /// Bytes of a torn last line that were cut off.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cut_bytes: u64,
}

/// What is metered together: one instance of an app, its appshots, its traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// UUID of the instance; `store:PROVIDER:APP` of appshots, `traffic:PROVIDER:APP`.
    pub id: String,
    pub app: String,
    pub provider: String,
    pub kind: AccountKind,
    /// Name of the instance.
    pub name: String,
    pub boot_id: String,
    /// When it began, which may be before it was seen.
    pub began_boot_ns: u64,
    pub began_unix_ms: u64,
    /// Where its counters come from.
    pub source: Source,
    /// Why it was brought up, where that was told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    pub state: State,
    pub counters: Counters,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AccountKind {
    /// From a command.
    Started,
    /// From an appshot.
    Restored,
    /// The appshots of an app.
    Store,
    /// What came to an app over HTTP.
    Traffic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// In ledgers of before.
    CgroupV2,
    CgroupV1,
    /// cgroup v2 for CPU time, /proc/PID/smaps_rollup for memory.
    Proc,
    /// Sizes of files.
    Files,
    /// The HTTP entry of the node.
    Dispatcher,
    /// A rate card: not metered, and in no ledger.
    Card,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Running,
    /// Held still by its cgroup.
    Frozen,
    Asleep,
    Exited,
    /// It is gone, and nobody has left its last counters.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Use {
    pub id: String,
    pub state: State,
    pub counters: Counters,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    pub id: String,
    /// What it is now.
    pub state: State,
    pub counters: Counters,
}

/// Of this boot; nanoseconds of all processors together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub cpus: u64,
    /// From /proc/stat.
    pub busy_ns: u64,
    pub idle_ns: u64,
    pub steal_ns: u64,
    /// Of all accounts since the meter began, from their cgroups.
    pub tenants_ns: u64,
    /// Of our daemons and supervisors, since the meter began.
    pub platform_ns: u64,
    /// `busy_ns` is what tasks ran for, to the nanosecond, not what was seen at ticks.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub is_exact: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gap {
    /// Of one account; of all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// How long, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns: Option<u64>,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// ed25519, in hexadecimal.
    pub signature: String,
}

/// Whoever corrects says by how much the row counts more or less, and what that comes to:
/// closed months stay as they were, and the difference is billed when this is written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Correction {
    /// Id of the row.
    pub event: String,
    pub of: Whose,
    pub meter: Meter,
    /// Of the row, since the Unix epoch.
    pub hour: u64,
    /// Less where it is negative.
    pub count: i128,
    pub cost: Decimal,
    pub currency: String,
    pub card: String,
    pub reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// Of the last line that the segment had.
    pub hash: String,
    pub next_seq: u64,
    /// Lines that were left out.
    pub left_out: u64,
}

/// Snapshots of an instance since it began, by why they were taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshots {
    pub id: String,
    pub causes: BTreeMap<String, Taken>,
}

/// Who pays for what.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Whose {
    pub app: String,
    /// Id of the account.
    pub id: String,
    pub provider: String,
    /// Name of the instance.
    pub name: String,
    pub kind: AccountKind,
    pub source: Source,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
}

impl From<&Account> for Whose {
    fn from(account: &Account) -> Whose {
        Whose {
            app: account.app.clone(),
            id: account.id.clone(),
            provider: account.provider.clone(),
            name: account.name.clone(),
            kind: account.kind,
            source: account.source,
            cause: account.cause.clone(),
        }
    }
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        /// What an account has counted since it began. None ever falls.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct Counters {
            $($(#[$doc])* #[serde(default, skip_serializing_if = "is_zero")] pub $name: $type,)*
        }

        impl Counters {
            /// Each as high as the higher of both.
            pub fn raise(&mut self, other: &Counters) {
                $(self.$name = self.$name.max(other.$name);)*
            }

            /// Each as much as it is higher than `before`.
            #[must_use]
            pub fn since(&self, before: &Counters) -> Counters {
                Counters { $($name: self.$name.saturating_sub(before.$name),)* }
            }

            /// Each by as much as `more` says.
            pub fn add(&mut self, more: &Counters) {
                $(self.$name = self.$name.saturating_add(more.$name);)*
            }

            /// Whether none is lower than in `before`.
            pub fn follows(&self, before: &Counters) -> bool {
                $(self.$name >= before.$name)&&*
            }

            /// In few bytes: which are not zero, and these, seven bits a byte.
            pub fn pack(&self, out: &mut Vec<u8>) {
                let all = [$(u128::from(self.$name)),*];
                let set = (0..all.len()).filter(|index| all[*index] != 0);
                write_number(set.map(|index| 1 << index).sum(), out);
                all.into_iter().filter(|number| *number != 0).for_each(|number| write_number(number, out));
            }

            /// What [`Counters::pack`] has written, taken off the front of `bytes`.
            pub fn unpack(bytes: &mut &[u8]) -> Option<Counters> {
                let mut set = read_number(bytes)?;
                let mut next = || -> Option<u128> {
                    let is_set = set & 1 == 1;
                    set >>= 1;
                    if is_set { read_number(bytes) } else { Some(0) }
                };
                Some(Counters { $($name: next()?.try_into().ok()?,)* })
            }
        }
    };
}

counters! {
    cpu_ns: u64,
    /// Of it, in programs and in the kernel, where that is told.
    user_ns: u64,
    system_ns: u64,
    /// Bytes held, times nanoseconds.
    memory_byte_ns: u128,
    /// The most bytes at once that were seen.
    memory_peak: u64,
    read_bytes: u64,
    written_bytes: u64,
    running_ns: u64,
    /// Of appshots: for how long the app slept in them.
    asleep_ns: u64,
    /// Bytes of appshots, times nanoseconds.
    stored_byte_ns: u128,
    /// For how long nobody looked at its memory.
    unseen_ns: u64,
    /// From the command, or the appshot, until it ran.
    starting_ns: u64,
    restoring_ns: u64,
    snapshots: u64,
    /// For how long its snapshots were taken; of most of it the app runs.
    snapshotting_ns: u64,
    restores: u64,
    /// Answers that were given to the end.
    requests: u64,
    /// Of bodies, by the HTTP entry; of an instance that has joined a network, all that went
    /// through the devices of that.
    received_bytes: u64,
    sent_bytes: u64,
    /// For how long the app was wanted and waited for the node's memory.
    waited_ns: u64,
}

/// Seven bits a byte, the lowest first (LEB128).
pub fn write_number(mut number: u128, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

pub fn read_number(bytes: &mut &[u8]) -> Option<u128> {
    let (mut number, mut shift) = (0, 0);
    loop {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u128::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(number);
        }
        shift += 7;
    }
}

pub type Hash = [u8; 32];

pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = |byte: &u8| [byte >> 4, byte & 15].map(|digit| char::from(DIGITS[usize::from(digit)]));
    bytes.iter().flat_map(digits).collect()
}

/// `None` for what is no whole number of bytes in lower-case hexadecimal digits.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let (bytes, mut out) = (text.as_bytes(), [0; N]);
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if bytes.len() != 2 * N {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// Between what a hash covers and its digits.
const BEFORE_HASH: &str = ",\"hash\":\"";
const AFTER_HASH: &str = "\"}";

fn chain(before: &Hash, covered: &[u8]) -> Hash {
    let mut hasher = blake3::Hasher::new();
    hasher.update(before);
    hasher.update(covered);
    *hasher.finalize().as_bytes()
}

/// The line of a record, with its newline, and its hash.
pub fn write(record: &Record, before: &Hash) -> Result<(Vec<u8>, Hash)> {
    let mut line = serde_json::to_vec(record).or_fail(|| "cannot write a record")?;
    line.pop();
    let hash = chain(before, &line);
    line.extend_from_slice(BEFORE_HASH.as_bytes());
    line.extend_from_slice(hex(&hash).as_bytes());
    line.extend_from_slice(AFTER_HASH.as_bytes());
    line.push(b'\n');
    Ok((line, hash))
}

/// A line without its newline, taken apart; whether its hash is right is not looked at.
#[derive(Clone, Debug)]
pub struct Line {
    pub record: Record,
    hash: Hash,
    covered: Vec<u8>,
}

impl Line {
    pub fn parse(line: &[u8]) -> Result<Line> {
        let wrong = |because: &str| Error::failed("this is no record").because(because);
        let end = line
            .len()
            .checked_sub(BEFORE_HASH.len() + 64 + AFTER_HASH.len())
            .ok_or_else(|| wrong("the line is too short"))?;
        let (covered, rest) = line.split_at(end);
        let digits = std::str::from_utf8(rest).ok();
        let digits = digits.and_then(|rest| rest.strip_prefix(BEFORE_HASH)?.strip_suffix(AFTER_HASH));
        let hash = digits
            .and_then(unhex)
            .ok_or_else(|| wrong("it does not end in a hash"))?;
        let mut text = covered.to_vec();
        text.push(b'}');
        let record = parse(&text)?;
        text.pop();
        let covered = text;
        Ok(Line { record, hash, covered })
    }

    /// The hash, if it is the one that follows `before`.
    pub fn follows(&self, before: &Hash) -> Option<Hash> {
        (chain(before, &self.covered) == self.hash).then_some(self.hash)
    }
}

fn parse(text: &[u8]) -> Result<Record> {
    /// The version alone, whatever else a later one holds.
    #[derive(Deserialize)]
    struct Version {
        v: u32,
    }
    let newer = |v: u32| {
        Error::new(Kind::Unavailable, format!("a record is of version {v}"))
            .because(format!("this program knows version {VERSION} only"))
            .fix("use the program that has written it, or a later one")
    };
    match serde_json::from_slice::<Record>(text) {
        Ok(record) if record.v == VERSION => Ok(record),
        Ok(record) => Err(newer(record.v)),
        Err(error) => match serde_json::from_slice(text) {
            Ok(Version { v }) if v != VERSION => Err(newer(v)),
            _ => Err(Error::failed("this is no record").because(error)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            v: VERSION,
            seq: 3,
            boot_ns: 5,
            unix_ms: 7,
            body: Body::Use(Use {
                id: "x".to_owned(),
                state: State::Running,
                counters: Counters {
                    cpu_ns: 1,
                    memory_byte_ns: u128::from(u64::MAX) * 3,
                    ..Counters::default()
                },
            }),
        }
    }

    #[test]
    fn a_line_comes_back() {
        let before = [7; 32];
        let (line, hash) = write(&record(), &before).unwrap();
        let read = Line::parse(line.strip_suffix(b"\n").unwrap()).unwrap();
        assert_eq!(read.record, record());
        assert_eq!(read.follows(&before), Some(hash));
        assert_eq!(read.follows(&[8; 32]), None);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let before = [7; 32];
        let (mut line, _) = write(&record(), &before).unwrap();
        line.pop();
        for bit in 0..line.len() * 8 {
            line[bit / 8] ^= 1 << (bit % 8);
            let seen = Line::parse(&line).map_or(true, |line| line.follows(&before).is_none());
            assert!(seen, "bit {bit}");
            line[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn a_newer_version_is_told() {
        let newer = Record { v: 2, ..record() };
        let (line, _) = write(&newer, &[0; 32]).unwrap();
        let error = Line::parse(line.strip_suffix(b"\n").unwrap()).unwrap_err();
        assert_eq!(error.kind, Kind::Unavailable, "{error}");
    }

    #[test]
    fn counters_are_packed_and_come_back() {
        let mut packed = Vec::new();
        let all = [
            Counters::default(),
            Counters {
                cpu_ns: u64::MAX,
                memory_byte_ns: u128::MAX,
                waited_ns: 127,
                ..Counters::default()
            },
        ];
        all.iter().for_each(|counters| counters.pack(&mut packed));
        let mut left = &packed[..];
        assert_eq!(all.map(|_| Counters::unpack(&mut left).unwrap()), all);
        assert!(left.is_empty());
        assert_eq!(Counters::unpack(&mut &packed[1..9]), None);
    }

    #[test]
    fn counters_only_rise() {
        let high = Counters {
            cpu_ns: 5,
            restores: 1,
            ..Counters::default()
        };
        let low = Counters {
            cpu_ns: 3,
            memory_byte_ns: 9,
            ..Counters::default()
        };
        assert!(!low.follows(&high));
        assert_eq!(low.since(&high).cpu_ns, 0);
        let mut raised = low;
        raised.raise(&high);
        assert_eq!((raised.cpu_ns, raised.memory_byte_ns, raised.restores), (5, 9, 1));
    }
}
