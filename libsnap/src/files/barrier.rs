//! Keeps the peers of TCP connections away while nobody has these: a table of packet filters
//! (nf_tables, Linux 3.13; the family for both versions of IP since 3.14) in their network,
//! whose only rules drop what comes over them, and what the kernel would send by itself.
//!
//! ```text
//!   snapshot: raised ── queues read ── app ended           restored: connected ── lifted
//!                └──── lifted where the app goes on ───┘
//! ```
//!
//! What comes meanwhile is as lost on its way: the peer sends it again. Without that the kernel,
//! which knows of no such connection, would tell the peer to end it. The table has the name that
//! the appshot has for it, and outlives us: it goes with its network, with the restore, or with
//! the appshot.

use super::segment;
use crate::error::{Error, Kind, OrFail, Result};
use crate::sys::Sys;
use crate::sys::diag::{self, attribute};
use crate::{nsthread, proc};
use std::collections::HashSet;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Packets with it are let through: they are ours.
pub const MARK: u32 = 0x4150_5354;

/// Of 16 random letters behind it.
const PREFIX: &str = "appshot-";

const TABLE: u16 = 0;
const NEW: u16 = 0;
const CHAIN: u16 = 3;
const RULE: u16 = 6;
const DELETE_TABLE: u16 = 2;

/// For IPv4 and IPv6 (`NFPROTO_INET`).
const BOTH: u8 = 1;

/// One end and its peer.
pub type Way = (SocketAddr, SocketAddr);

/// A table of this name, in the network in which it was made or looked for.
#[derive(Debug)]
pub struct Barrier {
    netlink: OwnedFd,
    name: String,
    /// Lifted when this is dropped.
    ours: bool,
}

/// A name that no table has.
pub fn new_name() -> Result<String> {
    let mut random = [0; 8];
    crate::sys::random(&mut random).or_fail(|| "cannot draw a name")?;
    Ok(format!("{PREFIX}{:016x}", u64::from_ne_bytes(random)))
}

/// Whether a snapshot gives a table such a name.
pub fn is_name(name: &str) -> bool {
    let drawn = name.strip_prefix(PREFIX).unwrap_or_default();
    drawn.len() == 16 && drawn.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether this thread's network has packet filters, and lets us make some.
pub fn works() -> bool {
    let make_and_remove = || {
        let name = new_name().ok()?;
        let mut changes = begin(&name);
        changes.push((DELETE_TABLE, 0, named(TABLE_NAME, &name)));
        Barrier::of(&name).and_then(|barrier| barrier.change(&changes)).ok()
    };
    make_and_remove().is_some()
}

const EXCLUSIVE: i32 = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

/// What a table has before any rule.
fn begin(name: &str) -> Vec<Change> {
    let mut changes = vec![(TABLE | NEW, EXCLUSIVE | libc::NLM_F_ACK, named(TABLE_NAME, name))];
    changes.extend(CHAINS.map(|which| (CHAIN | NEW, EXCLUSIVE, chain(name, which))));
    changes
}

/// Kind, flags and attributes of a message.
type Change = (u16, i32, Vec<u8>);

impl Barrier {
    /// In this thread's network.
    fn of(name: &str) -> Sys<Barrier> {
        Ok(Barrier {
            netlink: diag::netlink(libc::NETLINK_NETFILTER)?,
            name: name.to_owned(),
            ours: false,
        })
    }

    /// Raises it in this thread's network until it is dropped, unless it stands there already.
    pub fn raise(name: &str, ways: &[Way]) -> Result<Barrier> {
        let failed = || "cannot keep peers away from TCP connections (nf_tables)";
        let told = |errno: nix::Error| match errno {
            nix::Error::EPERM => Error::new(Kind::Unavailable, failed())
                .because(errno)
                .needs("CAP_NET_ADMIN in that network"),
            errno => Error::new(Kind::Unavailable, failed())
                .because(errno)
                .needs("packet filters of the kernel (CONFIG_NF_TABLES, CONFIG_NF_TABLES_INET)"),
        };
        const APPEND: i32 = libc::NLM_F_CREATE | libc::NLM_F_APPEND;
        /// A batch may be as long as half a socket's buffer.
        const AT_ONCE: usize = 50;
        let mut barrier = Barrier::of(name).or_fail(failed)?;
        // Whatever comes of it: what was made goes again.
        barrier.ours = true;
        match barrier.change(&begin(name)) {
            Err(nix::Error::EEXIST) => {
                barrier.ours = false;
                return Ok(barrier);
            }
            made => made.map_err(told)?,
        }
        for ways in ways.chunks(AT_ONCE) {
            let rules = ways
                .iter()
                .flat_map(|way| CHAINS.map(|which| (RULE | NEW, APPEND, rule(name, which, way))));
            barrier.change(&rules.collect::<Vec<_>>()).map_err(told)?;
        }
        Ok(barrier)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// It outlives this.
    pub fn stays(&mut self) {
        self.ours = false;
    }

    /// Lets the peers through again. None may be there any more.
    pub fn lift(&self) -> Result<()> {
        match self.change(&[(DELETE_TABLE, libc::NLM_F_ACK, named(TABLE_NAME, &self.name))]) {
            Ok(()) | Err(nix::Error::ENOENT) => Ok(()),
            Err(errno) => Err(Error::failed(format!("cannot remove the packet filters {}", self.name))
                .because(errno)
                .fix(format!("nft delete table inet {}", self.name))),
        }
    }

    /// All of these or none (nfnetlink: a batch). What fails is told whether it is asked for or not.
    fn change(&self, changes: &[Change]) -> Sys<()> {
        const NFNL_SUBSYS_NFTABLES: u16 = 10;
        const BATCH_BEGIN: u16 = 16;
        const BATCH_END: u16 = 17;
        // `struct nfgenmsg`: family, version, and whose the batch is in the other byte order.
        let around = [0, 0, 0, NFNL_SUBSYS_NFTABLES as u8];
        let mut batch = diag::request_of(BATCH_BEGIN, libc::NLM_F_REQUEST, &around);
        for (kind, flags, attributes) in changes {
            let body = [&[BOTH, 0, 0, 0], attributes.as_slice()].concat();
            let flags = libc::NLM_F_REQUEST | flags;
            batch.extend(diag::request_of(NFNL_SUBSYS_NFTABLES << 8 | kind, flags, &body));
        }
        batch.extend(diag::request_of(BATCH_END, libc::NLM_F_REQUEST, &around));
        diag::order(&self.netlink, &batch)
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = self.lift()
        {
            tracing::warn!(%error, "peers of TCP connections are kept away");
        }
    }
}

/// Lets the peers through again in whichever network the table stands: of all that some process is in,
/// and of those that have a name (ip-netns(8)).
pub fn lift_anywhere(name: &str) {
    let lift = || Barrier::of(name).map(|barrier| barrier.lift());
    let named = fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let pids = proc::numbered("/proc").unwrap_or_default().into_iter();
    let all = pids.map(|pid| format!("/proc/{pid}/ns/net").into()).chain(named);
    let mut seen = HashSet::new();
    for network in all.filter_map(|path: PathBuf| File::open(path).ok()) {
        let is_new = network.metadata().is_ok_and(|meta| seen.insert(meta.ino()));
        let lifted = || nsthread::Door::to_network(&network.into())?.inside(lift);
        if is_new && let Ok(Ok(Err(error))) = lifted() {
            tracing::warn!(%error, "peers of TCP connections are kept away");
        }
    }
}

const TABLE_NAME: u16 = 1;

fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    const NLA_F_NESTED: u16 = 1 << 15;
    attribute(kind | NLA_F_NESTED, &parts.concat())
}

fn named(kind: u16, name: &str) -> Vec<u8> {
    attribute(kind, &[name.as_bytes(), &[0]].concat())
}

/// A number as packet filters have it.
fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

/// Name and hook (`NF_INET_LOCAL_IN`, `NF_INET_LOCAL_OUT`): what comes from peers, what goes to them.
type Which = (&'static str, u32);

const FROM: Which = ("from", 1);
const TO: Which = ("to", 3);
const CHAINS: [Which; 2] = [FROM, TO];

/// Sees what comes, or goes, before everybody else.
fn chain(table: &str, (chain, hook): Which) -> Vec<u8> {
    const CHAIN_TABLE: u16 = 1;
    const NAME: u16 = 3;
    const HOOK: u16 = 4;
    const TYPE: u16 = 7;
    const HOOK_NUMBER: u16 = 1;
    const HOOK_PRIORITY: u16 = 2;
    const FIRST: i32 = -400;
    [
        named(CHAIN_TABLE, table),
        named(NAME, chain),
        nested(HOOK, &[number(HOOK_NUMBER, hook), number(HOOK_PRIORITY, FIRST as u32)]),
        named(TYPE, "filter"),
    ]
    .concat()
}

/// Drops what comes over this way, or goes, without our mark.
fn rule(table: &str, which: Which, (own, peer): &Way) -> Vec<u8> {
    const RULE_TABLE: u16 = 1;
    const RULE_CHAIN: u16 = 2;
    const EXPRESSIONS: u16 = 4;
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    let (source, target) = if which == FROM { (peer, own) } else { (own, peer) };
    let [from, to] = &segment::addresses(source.ip(), target.ip());
    let (family, at) = match from.len() {
        4 => (libc::NFPROTO_IPV4, 12),
        _ => (libc::NFPROTO_IPV6, 8),
    };
    let ports = [source.port().to_be_bytes(), target.port().to_be_bytes()].concat();
    let is = [
        told(FAMILY_KEY),
        compared(true, &[family as u8]),
        told(PROTOCOL_KEY),
        compared(true, &[libc::IPPROTO_TCP as u8]),
        loaded(NETWORK, at, from.len()),
        compared(true, from),
        loaded(NETWORK, at + from.len() as u32, to.len()),
        compared(true, to),
        loaded(TRANSPORT, 0, ports.len()),
        compared(true, &ports),
        told(MARK_KEY),
        compared(false, &MARK.to_ne_bytes()),
        dropped(),
    ];
    [
        named(RULE_TABLE, table),
        named(RULE_CHAIN, which.0),
        nested(EXPRESSIONS, &is),
    ]
    .concat()
}

/// Keys of `meta`.
const MARK_KEY: u32 = 3;
const FAMILY_KEY: u32 = 15;
const PROTOCOL_KEY: u32 = 16;

/// The register that what is compared goes through (NFT_REG_1), and the one of the verdict.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;

fn expression(name: &str, data: &[Vec<u8>]) -> Vec<u8> {
    const ELEMENT: u16 = 1;
    const NAME: u16 = 1;
    const DATA: u16 = 2;
    nested(ELEMENT, &[named(NAME, name), nested(DATA, data)])
}

/// Loads what is known of the packet.
fn told(key: u32) -> Vec<u8> {
    expression("meta", &[number(1, REGISTER), number(2, key)])
}

/// Loads bytes of a header.
fn loaded(base: u32, offset: u32, bytes: usize) -> Vec<u8> {
    expression(
        "payload",
        &[
            number(1, REGISTER),
            number(2, base),
            number(3, offset),
            number(4, bytes as u32),
        ],
    )
}

/// Goes on where what was loaded is this, or is not.
fn compared(equal: bool, value: &[u8]) -> Vec<u8> {
    const VALUE: u16 = 1;
    let operation = u32::from(!equal);
    let data = nested(3, &[attribute(VALUE, value)]);
    expression("cmp", &[number(1, REGISTER), number(2, operation), data])
}

fn dropped() -> Vec<u8> {
    const VALUE_VERDICT: u16 = 2;
    const CODE: u16 = 1;
    const NF_DROP: u32 = 0;
    let verdict = nested(2, &[nested(VALUE_VERDICT, &[number(CODE, NF_DROP)])]);
    expression("immediate", &[number(1, VERDICT), verdict])
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    #[test]
    fn names_are_drawn() {
        let name = new_name().unwrap();
        assert!(is_name(&name) && name != new_name().unwrap());
        for other in [
            "",
            "appshot-",
            "appshot-0123456789abcdeg",
            "filter",
            "appshot-0123456789abcdef0",
        ] {
            assert!(!is_name(other), "{other}");
        }
    }

    /// What is sent over it comes once it is lifted, and all else comes at once.
    #[test]
    fn peers_are_kept_away() {
        let apart = std::thread::spawn(|| {
            if unshare(CloneFlags::CLONE_NEWNET).is_err() || crate::launch::raise_loopback().is_err() || !works() {
                return;
            }
            let far = |port| SocketAddr::from(([10, 0, 0, 1], port));
            let many: Vec<Way> = (1..1000).map(|port| (far(port), far(4711))).collect();
            let name = new_name().unwrap();
            let barrier = Barrier::raise(&name, &many).unwrap();
            assert!(barrier.ours && !Barrier::raise(&name, &many).unwrap().ours);
            drop(barrier);
            assert!(Barrier::raise(&name, &[]).unwrap().ours, "it stands still");
            for ip in ["127.0.0.1", "::1"] {
                let listener = TcpListener::bind((ip, 0)).unwrap();
                let connect = || {
                    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
                    let (other, _) = listener.accept().unwrap();
                    other.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                    (one, other)
                };
                let ((mut one, mut other), (mut beside, mut heard)) = (connect(), connect());
                let name = new_name().unwrap();
                let way = (other.local_addr().unwrap(), other.peer_addr().unwrap());
                let barrier = Barrier::raise(&name, &[way]).unwrap();
                assert!(barrier.ours && !Barrier::raise(&name, &[way]).unwrap().ours);
                for sender in [&mut one, &mut beside] {
                    sender.write_all(b"x").unwrap();
                }
                assert!(other.read(&mut [0]).is_err());
                assert_eq!(heard.read(&mut [0]).unwrap(), 1);
                barrier.lift().unwrap();
                barrier.lift().unwrap();
                other.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                assert_eq!(other.read(&mut [0]).unwrap(), 1);
            }
        });
        apart.join().unwrap();
    }
}
