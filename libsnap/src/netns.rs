//! What an app has changed in a network namespace of its own (network_namespaces(7)).
//!
//! Settings (`/proc/sys/net`) that are others than those of a new namespace are kept, and set
//! again in the new one before anything is opened in it. Where the app comes back into the
//! host's network or joins one that is there, they are its owner's, which is told.
//!
//! Refused: devices other than the loopback one, addresses, routes and rules that a new namespace
//! has not, packet filters, what was changed of the loopback device or its queue, permanent neighbours,
//! IPsec. Whoever needs such a network makes it and has the app join it.
//!
//! Left out: what only counts, keys that the kernel draws, and settings that cannot be written.

use crate::error::{OrFail, Result};
use crate::ids::HostPid;
use crate::image::records::{Loopback, Manifest};
use crate::launch;
use crate::nsthread::{self, Door};
use crate::refusals::Refusals;
use crate::sys::diag;
use crate::target::Target;
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::OnceLock;

const SETTINGS: &str = "/proc/sys/net";
/// Of one setting, as it is written.
pub const SETTING_BYTES_MAX: usize = 1024;

/// By name below [`SETTINGS`].
pub type Settings = BTreeMap<String, String>;

/// A network namespace as it is.
#[derive(Debug)]
struct Seen {
    loopback: Loopback,
    settings: Settings,
    /// What is not carried where it is another than in a new one: what it is, and all of it.
    rest: Vec<(&'static str, String)>,
}

impl Seen {
    /// That of this thread.
    fn here() -> Seen {
        let files = |names: &[&str]| names.iter().map(|name| table(name)).collect::<String>();
        let rest = vec![
            ("a network device of its own", devices()),
            (
                "a network device whose flags, MTU, queueing or names were changed",
                links().join(" ") + &queueing().join(" "),
            ),
            ("a permanent neighbour", neighbours().join(" ")),
            (
                "an address of its own",
                files(&["fib_trie", "if_inet6"]) + &addresses().join(" "),
            ),
            ("a route of its own", files(&["route"]) + &ipv6_routes()),
            (
                "a routing rule of its own",
                dumped(libc::NETLINK_ROUTE, libc::RTM_GETRULE, 12),
            ),
            (
                "packet filters of its own",
                files(&["ip_tables_names", "ip6_tables_names", "arp_tables_names"]) + &filters(),
            ),
            ("a policy or state of IPsec (ip-xfrm(8))", transforms()),
        ];
        Seen {
            loopback: loopback(),
            settings: settings(),
            rest,
        }
    }
}

/// A new namespace, with such a loopback device.
fn usual(loopback: Loopback) -> &'static io::Result<Seen> {
    static USUAL: [OnceLock<io::Result<Seen>>; 3] = [const { OnceLock::new() }; 3];
    USUAL[loopback as usize].get_or_init(|| {
        let look = || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            bring(loopback)?;
            Ok(Seen::here())
        };
        let looked = std::thread::scope(|scope| scope.spawn(look).join());
        looked.unwrap_or_else(|_| Err(io::Error::other("the thread that was to look has panicked")))
    })
}

/// Brings the loopback device of a new namespace, that of this thread, to be so.
fn bring(loopback: Loopback) -> io::Result<()> {
    match loopback {
        Loopback::Fresh => Ok(()),
        Loopback::Up => Ok(launch::raise_loopback()?),
        Loopback::Down => {
            launch::raise_loopback()?;
            Ok(launch::lower_loopback()?)
        }
    }
}

/// What that of this thread's namespace is.
fn loopback() -> Loopback {
    match launch::loopback_is_up() {
        true => Loopback::Up,
        false if addresses().is_empty() => Loopback::Fresh,
        false => Loopback::Down,
    }
}

/// Whether that of the network that a process is in is up.
pub fn has_loopback(pid: HostPid) -> bool {
    nsthread::inside(pid, &["net"], launch::loopback_is_up).unwrap_or(false)
}

/// One that is the app's alone, opened before the app stands still.
#[derive(Debug)]
pub struct Space(Option<Door>);

impl Space {
    /// That of `pid`, a process of this target; nothing is looked at where it is another's.
    pub fn open(pid: HostPid, target: &Target) -> io::Result<Space> {
        let inode = |owner: &str| Ok::<_, io::Error>(fs::metadata(format!("/proc/{owner}/ns/net"))?.ino());
        let Target::App { network, .. } = target else {
            return Ok(Space(None));
        };
        let its = inode(&pid.to_string())?;
        if its == inode("thread-self")? || Some(its) == *network || usual(Loopback::Up).is_err() {
            return Ok(Space(None));
        }
        Door::open(pid, &["net"]).map(|door| Space(Some(door)))
    }

    /// One beside the app's own, in which a process is.
    pub fn beside(pid: HostPid) -> io::Result<Space> {
        Door::open(pid, &["net"]).map(|door| Space(Some(door)))
    }

    /// Settings that were changed. What else was is refused.
    pub fn look(&self, pid: HostPid, refusals: &mut Refusals) -> Settings {
        // Ours is made with its loopback device up.
        self.changed(pid, |_| Loopback::Up, refusals).1
    }

    /// The same, with what its loopback device is.
    pub fn look_beside(&self, pid: HostPid, refusals: &mut Refusals) -> (Loopback, Settings) {
        self.changed(pid, |seen| seen.loopback, refusals)
    }

    fn changed(
        &self,
        pid: HostPid,
        wanted: impl Fn(&Seen) -> Loopback,
        refusals: &mut Refusals,
    ) -> (Loopback, Settings) {
        let nothing = (Loopback::Fresh, Settings::new());
        let Some(door) = &self.0 else { return nothing };
        let Ok(seen) = door.inside(Seen::here) else {
            refusals.add(pid, "network namespace", "it cannot be entered", "run as root");
            return nothing;
        };
        let loopback = wanted(&seen);
        let Ok(usual) = usual(loopback) else { return nothing };
        for ((what, its), (_, usual)) in seen.rest.iter().zip(&usual.rest) {
            if its != usual {
                refusals.add(
                    pid,
                    "network namespace",
                    format!("{what} is in it, which is not carried"),
                    "make such a network outside the app, and let the app join it (--netns)",
                );
            }
        }
        let changed = |(name, value): &(String, String)| usual.settings.get(name) != Some(value);
        (loopback, seen.settings.into_iter().filter(changed).collect())
    }
}

/// Sets them in the namespace of `pid`, which was made for it: all others are as they were before.
/// Some change others, so a second round has those right.
pub fn restore(pid: HostPid, manifest: &Manifest) -> Result<()> {
    if manifest.network_settings.is_empty() {
        return Ok(());
    }
    let set = || set(settings(), &manifest.network_settings);
    nsthread::inside(pid, &["net"], set).or_fail(|| "cannot enter the app's network namespace")?
}

/// The same of one beside the app's own.
pub fn restore_beside(namespace: &OwnedFd, looks: Loopback, changed: &Settings) -> Result<()> {
    let failed = || "cannot make a network namespace of the app again";
    // It may have begun with the settings of that one.
    let usual = inherits().then(|| Some(usual(looks).as_ref().ok()?.settings.clone()));
    let restore = || {
        bring(looks).or_fail(failed)?;
        set(usual.flatten().unwrap_or_else(settings), changed)
    };
    Door::to("net", namespace)
        .and_then(|door| door.inside(restore))
        .or_fail(failed)?
}

/// Whether a new network has the settings of the one in which it is made (Linux 5.17).
fn inherits() -> bool {
    let how = fs::read_to_string(format!("{SETTINGS}/core/devconf_inherit_init_net"));
    how.is_ok_and(|how| how.trim() == "3")
}

/// Of this thread's namespace.
fn set(usual: Settings, changed: &Settings) -> Result<()> {
    const ROUNDS: usize = 2;
    let mut wanted = usual;
    wanted.extend(changed.clone());
    for _ in 0..ROUNDS {
        let now = settings();
        for (name, value) in wanted.iter().filter(|(name, value)| now.get(*name) != Some(value)) {
            let set = fs::write(format!("{SETTINGS}/{name}"), value);
            set.or_fail(|| format!("cannot set net/{name} to {value} in the app's network"))?;
        }
    }
    Ok(())
}

/// Those of this thread's network.
fn settings() -> Settings {
    let mut settings = Settings::new();
    read_below(Path::new(SETTINGS), &mut String::new(), &mut settings);
    settings
}

/// Whether a name may be that of a setting: nothing above or beside.
pub fn is_name(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    };
    name.len() <= 255 && name.split('/').all(is_part)
}

fn read_below(directory: &Path, name: &mut String, settings: &mut Settings) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries {
        let before = name.len();
        if before > 0 {
            name.push('/');
        }
        name.push_str(&entry.file_name().to_string_lossy());
        let path = entry.path();
        let meta = entry.metadata();
        if meta.as_ref().is_ok_and(fs::Metadata::is_dir) {
            read_below(&path, name, settings);
        } else if meta.is_ok_and(|meta| meta.permissions().mode() & 0o600 == 0o600)
            && is_name(name)
            && !is_left_out(name)
            && let Some(value) = value_of(&path)
        {
            settings.insert(name.clone(), value);
        }
        name.truncate(before);
    }
}

/// The kernel draws it, or counts.
fn is_left_out(name: &str) -> bool {
    ["fastopen_key", "stable_secret", "_count", "/flush"]
        .iter()
        .any(|end| name.ends_with(end))
}

fn value_of(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let value = text.split_whitespace().collect::<Vec<_>>().join(" ");
    (value.len() <= SETTING_BYTES_MAX).then_some(value)
}

fn table(name: &str) -> String {
    fs::read_to_string(format!("/proc/thread-self/net/{name}")).unwrap_or_default()
}

fn devices() -> String {
    let names = table("dev");
    let names = names.lines().filter_map(|line| line.split_once(':'));
    names.map(|(name, _)| name.trim().to_owned() + " ").collect()
}

/// All that a request of rtnetlink(7) lists: of each the head as far as it is told by `shown`, where it is,
/// and the attributes of these kinds.
fn listed(
    kind: u16,
    asked: &[u8],
    shown: impl Fn(&[u8]) -> Option<String>,
    is_shown: impl Fn(u16) -> bool,
) -> Vec<String> {
    let mut all = Vec::new();
    let mut each = |body: &[u8]| {
        let (head, mut rest) = body.split_at(asked.len().min(body.len()));
        let Some(mut told) = shown(head) else { return };
        while let Some(length) = rest
            .first_chunk::<2>()
            .map(|bytes| usize::from(u16::from_ne_bytes(*bytes)))
        {
            let Some(attribute) = rest.get(..length).filter(|_| length >= 4) else {
                break;
            };
            if is_shown(u16::from_ne_bytes([attribute[2], attribute[3]])) {
                told += &format!("{attribute:x?}");
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        all.push(told);
    };
    diag::dump_all(libc::NETLINK_ROUTE, kind, asked, &mut each).ok();
    all
}

/// All addresses, without what counts: how long they have been there.
fn addresses() -> Vec<String> {
    const IFA_CACHEINFO: u16 = 6;
    /// struct ifaddrmsg
    const HEAD: usize = 8;
    let shown = |head: &[u8]| Some(format!("{head:x?}"));
    listed(libc::RTM_GETADDR, &[0; HEAD], shown, |kind| kind != IFA_CACHEINFO)
}

/// All devices, without what counts.
fn links() -> Vec<String> {
    /// struct ifinfomsg
    const HEAD: usize = 16;
    const IFLA_PROTO_DOWN: u16 = 39;
    const IFLA_GSO_MAX_SEGS: u16 = 40;
    const IFLA_GSO_MAX_SIZE: u16 = 41;
    const IFLA_XDP: u16 = 43;
    const IFLA_PROP_LIST: u16 = 52;
    let shown = [
        libc::IFLA_ADDRESS,
        libc::IFLA_BROADCAST,
        libc::IFLA_IFNAME,
        libc::IFLA_MTU,
        libc::IFLA_QDISC,
        libc::IFLA_TXQLEN,
        libc::IFLA_LINKMODE,
        libc::IFLA_IFALIAS,
        libc::IFLA_GROUP,
        IFLA_PROTO_DOWN,
        IFLA_GSO_MAX_SEGS,
        IFLA_GSO_MAX_SIZE,
        IFLA_XDP,
        IFLA_PROP_LIST,
    ];
    let head = |head: &[u8]| Some(format!("{head:x?}"));
    listed(libc::RTM_GETLINK, &[0; HEAD], head, |kind| shown.contains(&kind))
}

/// How devices queue (tc(8)).
fn queueing() -> Vec<String> {
    const TCA_KIND: u16 = 1;
    /// struct tcmsg, of which the last word counts.
    const HEAD: usize = 20;
    let shown = |head: &[u8]| Some(format!("{:x?}", head.get(..HEAD - 4)?));
    listed(libc::RTM_GETQDISC, &[0; HEAD], shown, |kind| kind == TCA_KIND)
}

/// Those that stay until they are removed (NUD_PERMANENT), and those that are answered for (NTF_PROXY).
fn neighbours() -> Vec<String> {
    const NUD_PERMANENT: u16 = 0x80;
    const NTF_PROXY: u8 = 8;
    const NDA_DST: u16 = 1;
    const NDA_LLADDR: u16 = 2;
    /// struct ndmsg: of a device, in a state, with flags.
    const HEAD: usize = 12;
    let lasting = |head: &[u8]| {
        let (state, flags) = (u16::from_ne_bytes([*head.get(8)?, *head.get(9)?]), *head.get(10)?);
        (state & NUD_PERMANENT != 0 || flags & NTF_PROXY != 0).then(|| format!("{head:x?}"))
    };
    let mut asked = [0; HEAD];
    let mut all = Vec::new();
    for flags in [0, NTF_PROXY] {
        asked[10] = flags;
        let shown = |kind| [NDA_DST, NDA_LLADDR].contains(&kind);
        all.extend(listed(libc::RTM_GETNEIGH, &asked, lasting, shown));
    }
    all
}

/// Policies and states of IPsec (`XFRM_MSG_GETPOLICY`, `XFRM_MSG_GETSA`).
fn transforms() -> String {
    const XFRM_MSG_GETSA: u16 = 0x12;
    const XFRM_MSG_GETPOLICY: u16 = 0x15;
    let dumped = |kind| dumped(libc::NETLINK_XFRM, kind, 0);
    dumped(XFRM_MSG_GETPOLICY) + &dumped(XFRM_MSG_GETSA)
}

/// Without what counts: how often each is referred to and used.
fn ipv6_routes() -> String {
    let text = table("ipv6_route");
    let lines = text.lines().map(|line| {
        let words = line.split_whitespace().enumerate();
        let words = words.filter(|(at, _)| !(6..=7).contains(at)).map(|(_, word)| word);
        words.collect::<Vec<_>>().join(" ") + "\n"
    });
    lines.collect()
}

/// Tables of nftables (`NFT_MSG_GETTABLE`).
fn filters() -> String {
    const NFT_MSG_GETTABLE: u16 = 10 << 8 | 1;
    dumped(libc::NETLINK_NETFILTER, NFT_MSG_GETTABLE, 4)
}

/// All that a netlink request without arguments lists; nothing where the kernel has no such thing.
fn dumped(protocol: i32, kind: u16, header_bytes: usize) -> String {
    let mut all = String::new();
    let mut each = |body: &[u8]| all += &format!("{body:x?}");
    diag::dump_all(protocol, kind, &vec![0; header_bytes], &mut each).ok();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_else() {
        assert!(is_name("ipv4/conf/lo/rp_filter"));
        for name in ["", "../kernel/core_pattern", "ipv4//x", "/ipv4", "ipv4/..", "ipv4/a b"] {
            assert!(!is_name(name), "{name}");
        }
    }

    #[test]
    fn a_changed_device_is_seen() {
        let mtus = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).ok()?;
            let before = links();
            // struct ifinfomsg of the first device, and IFLA_MTU.
            let mut asked = [0u8; 24];
            asked[4] = 1;
            asked[16..20].copy_from_slice(&[8, 0, 4, 0]);
            asked[20..].copy_from_slice(&1400u32.to_ne_bytes());
            let fd = diag::netlink(libc::NETLINK_ROUTE).unwrap();
            let how = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
            diag::order(&fd, &diag::request_of(libc::RTM_SETLINK, how, &asked)).unwrap();
            Some((before, links()))
        });
        let Some((before, after)) = mtus.join().unwrap() else {
            return;
        };
        assert_eq!((before.len(), after.len()), (1, 1));
        assert_ne!(before, after);
    }

    #[test]
    fn a_new_namespace_is_as_a_new_one() {
        for loopback in [Loopback::Fresh, Loopback::Up, Loopback::Down] {
            let Ok(usual) = usual(loopback) else { return };
            let again = std::thread::spawn(move || {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                bring(loopback).unwrap();
                Seen::here()
            });
            let again = again.join().unwrap();
            assert_eq!((usual.loopback, again.loopback), (loopback, loopback));
            assert_eq!(usual.settings, again.settings);
            assert_eq!(usual.rest, again.rest);
            assert!(
                usual.settings.contains_key("ipv4/ip_forward"),
                "{:?}",
                usual.settings.keys()
            );
        }
    }
}
