//! Instances that each have an address: in a network namespace of their own, joined to a bridge
//! of the node (veth(4)).
//!
//! ```text
//!   node   bridge appshot0, 10.213.0.1/16
//!            ├── as0ad50007 ═══ eth0, 10.213.0.7/16, default via 10.213.0.1    web
//!            └── as0ad500c1 ═══ eth0, 10.213.0.193/16                         web.2
//! ```
//!
//! The namespace of an app's first instance is kept as long as the app is deployed: it sleeps and
//! wakes in it, so waking makes nothing, its address stays, and so do connections that are carried.
//! Those of further instances end with them.
//!
//! Who has which address the kernel knows: the name of the node's end is made of it, and there can
//! be only one of a name. Instances do not reach each other: their ports are isolated, and what
//! one sends to another by way of the node is prohibited. Whether they reach what is beyond the
//! node is its owner's to say (forwarding, and translation of addresses).

use crate::manifest::Manifest;
use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::ids::HostPid;
use libsnap::nsthread;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkInfo, LinkMessage};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::rule::RuleAction;
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};

/// What instances call their end.
const DEVICE: &str = "eth0";
/// Prefixes between which there are addresses enough, and not too many.
const PREFIXES: std::ops::RangeInclusive<u8> = 8..=29;
/// Addresses that are tried, at most.
const TRIES: usize = 4096;
/// A namespace that nobody has any more takes this long to go.
const GOING: Duration = Duration::from_secs(1);
const GONE_YET: Duration = Duration::from_millis(10);
/// Before the node's main table, behind that of its own addresses (ip-rule(8)).
const RULE: u32 = 24_944;

/// The addresses that this node has for instances.
#[derive(Debug, Default)]
pub struct Addresses {
    pool: Option<Pool>,
    /// Those of apps that may sleep, and have no device after a boot.
    reserved: Mutex<BTreeMap<Ipv4Addr, String>>,
}

#[derive(Clone, Copy, Debug)]
struct Pool {
    subnet: Ipv4Net,
    /// Index of the bridge.
    bridge: u32,
}

/// Where one instance is.
#[derive(Debug)]
pub struct Network {
    pub address: Ipv4Addr,
    /// As long as it is open, or somebody is in it, it is there.
    pub namespace: OwnedFd,
}

impl Addresses {
    /// Gives instances addresses of this subnet, by a bridge that is made if need be.
    pub fn begin(subnet: Ipv4Net, bridge: &str) -> Result<Addresses> {
        let what = || format!("cannot give instances addresses of {subnet}");
        if !PREFIXES.contains(&subnet.prefix_len()) {
            return Err(Error::new(Kind::Usage, what())
                .because(format!("its prefix is {}", subnet.prefix_len()))
                .fix("from /8 to /29, such as 10.213.0.0/16"));
        }
        let subnet = subnet.trunc();
        let runtime = runtime()?;
        let told = |errno: Errno| {
            let error = match errno {
                Errno::EPERM => Error::new(Kind::Unavailable, what())
                    .needs("CAP_NET_ADMIN")
                    .fix("run it as root"),
                Errno::EEXIST => {
                    return Error::new(Kind::Conflict, what())
                        .because(format!("{bridge} is a device of another kind"))
                        .fix("name the bridge otherwise with --bridge");
                }
                Errno::EOPNOTSUPP => Error::new(Kind::Unavailable, what())
                    .needs("bridges and veth in the kernel (CONFIG_BRIDGE, CONFIG_VETH)"),
                _ => Error::failed(what()),
            };
            error.because(format!("{bridge}: {errno}"))
        };
        let handle = connect(&runtime).or_fail(what)?;
        let bridge = runtime.block_on(have_bridge(&handle, bridge, subnet)).map_err(told)?;
        Ok(Addresses {
            pool: Some(Pool { subnet, bridge }),
            reserved: Mutex::default(),
        })
    }

    fn reserved(&self) -> MutexGuard<'_, BTreeMap<Ipv4Addr, String>> {
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses what this node has not got.
    pub fn suffice(&self, manifest: &Manifest) -> Result<()> {
        match manifest.network.address {
            true => self.pool(&manifest.app).map(drop),
            false => Ok(()),
        }
    }

    fn pool(&self, instance: &str) -> Result<Pool> {
        self.pool.ok_or_else(|| {
            Error::new(Kind::Unavailable, format!("cannot give {instance} an address"))
                .because("this node has none for instances")
                .fix("start edgepointd with --subnet, such as --subnet 10.213.0.0/16, or leave network.address out")
        })
    }

    /// Nobody but this app's first instance gets it.
    pub fn reserve(&self, app: &str, address: Ipv4Addr) {
        self.forget(app);
        self.reserved().insert(address, app.to_owned());
    }

    pub fn forget(&self, app: &str) {
        self.reserved().retain(|_, of| of != app);
    }

    /// Joins a network that was made before to the bridge again. Answers whether it is there.
    pub fn attach(&self, address: Ipv4Addr) -> Result<bool> {
        let Some(pool) = self.pool else { return Ok(false) };
        let attach = || {
            let runtime = runtime().map_err(|_| Errno::EAGAIN)?;
            let node = connect(&runtime).map_err(errno_of)?;
            runtime.block_on(pool.add_port(&node, &device_of(address), address))
        };
        match apart(attach) {
            Err(Errno::ENODEV) => Ok(false),
            done => done
                .map(|()| true)
                .or_fail(|| format!("cannot join the network of {address} to the bridge")),
        }
    }

    /// Makes a network for this instance, with the address that it had, if it had one, unless
    /// somebody else has got it.
    pub fn make(&self, instance: &str, had: Option<Ipv4Addr>) -> Result<Network> {
        let pool = self.pool(instance)?;
        let had = had.filter(|had| pool.subnet.contains(had) && *had != pool.gateway());
        let is_free = |address: &Ipv4Addr| self.reserved().get(address).is_none_or(|of| of == instance);
        let begin = Instant::now();
        for address in had
            .into_iter()
            .chain(pool.candidates(instance).filter(is_free).take(TRIES))
        {
            loop {
                match apart(|| pool.join(address)) {
                    Err(Errno::EEXIST) if Some(address) == had && begin.elapsed() < GOING => {
                        std::thread::sleep(GONE_YET);
                    }
                    Err(Errno::EEXIST) => break,
                    made => {
                        return made.or_fail(|| format!("cannot give {instance} the address {address}"));
                    }
                }
            }
        }
        Err(
            Error::new(Kind::Unavailable, format!("cannot give {instance} an address"))
                .because(format!("none of {} is free", pool.subnet))
                .fix("start edgepointd with a wider --subnet"),
        )
    }
}

/// The node's end.
fn device_of(address: Ipv4Addr) -> String {
    format!("as{:08x}", u32::from(address))
}

/// The address of an instance that runs.
pub fn of(root: HostPid) -> Option<Ipv4Addr> {
    let all = nsthread::inside(root, &["net"], nix::ifaddrs::getifaddrs).ok()?.ok()?;
    let own = all
        .filter(|one| one.interface_name == DEVICE)
        .filter_map(|one| one.address);
    own.filter_map(|address| address.as_sockaddr_in().map(nix::sys::socket::SockaddrIn::ip))
        .next()
}

/// The network that an instance is in.
pub fn namespace_of(root: HostPid) -> Result<OwnedFd> {
    let file = File::open(format!("/proc/{root}/ns/net"));
    file.map(OwnedFd::from)
        .or_fail(|| "cannot open the network of an instance")
}

/// The first of its addresses.
fn gateway_of(subnet: Ipv4Net) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(subnet.network()) + 1)
}

impl Pool {
    fn gateway(self) -> Ipv4Addr {
        gateway_of(self.subnet)
    }

    /// All but the gateway's, in an order that is the instance's own.
    fn candidates(self, instance: &str) -> impl Iterator<Item = Ipv4Addr> {
        let first = u32::from(self.subnet.network()) + 2;
        let count = u32::from(self.subnet.broadcast()) - first;
        let digest = blake3::hash(instance.as_bytes());
        let begin = digest
            .as_bytes()
            .iter()
            .take(4)
            .fold(0, |all, byte| all << 8 | u32::from(*byte));
        (0..count).map(move |step| Ipv4Addr::from(first + (begin % count + step) % count))
    }

    /// Joins the node's end, of this name, to the bridge, where it is told who is behind it: what
    /// an instance says of that counts for nothing. Others than the node it does not reach.
    async fn add_port(self, node: &Handle, name: &str, address: Ipv4Addr) -> std::result::Result<(), Errno> {
        let port = index(node, name).await?.ok_or(Errno::ENODEV)?;
        let joined = LinkUnspec::new_with_index(port).controller(self.bridge).up().build();
        node.link().change(joined).execute().await.map_err(errno)?;
        let alone = LinkBridgePort::new(port).isolated(true).learning(false).flood(false);
        node.link().set_port(alone.build()).execute().await.map_err(errno)?;
        let behind = node
            .neighbours()
            .add_bridge(port, &hardware(address))
            .state(NeighbourState::Permanent);
        behind.replace().execute().await.map_err(errno)?;
        let known = node.neighbours().add(self.bridge, IpAddr::V4(address));
        let known = known
            .link_layer_address(&hardware(address))
            .state(NeighbourState::Permanent);
        known.replace().execute().await.map_err(errno)
    }

    /// By a thread that ends then: it stays in the network.
    fn join(self, address: Ipv4Addr) -> std::result::Result<Network, Errno> {
        let runtime = runtime().map_err(|_| Errno::EAGAIN)?;
        let node = connect(&runtime).map_err(errno_of)?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let namespace: OwnedFd = File::open("/proc/thread-self/ns/net").map_err(errno_of)?.into();
        let own = connect(&runtime).map_err(errno_of)?;
        runtime.block_on(async {
            add_pair(&node, address, &namespace).await?;
            self.add_port(&node, &device_of(address), address).await?;
            let device = index(&own, DEVICE).await?.ok_or(Errno::ENODEV)?;
            up(&own, index(&own, "lo").await?.ok_or(Errno::ENODEV)?).await?;
            let prefix = self.subnet.prefix_len();
            let named = own.address().add(device, IpAddr::V4(address), prefix);
            named.execute().await.map_err(errno)?;
            up(&own, device).await?;
            let out = RouteMessageBuilder::<Ipv4Addr>::new().gateway(self.gateway()).build();
            own.route().add(out).execute().await.map_err(errno)
        })?;
        Ok(Network { address, namespace })
    }
}

async fn add_pair(node: &Handle, address: Ipv4Addr, peer: &OwnedFd) -> std::result::Result<(), Errno> {
    let inner = LinkMessageBuilder::<LinkUnspec>::default()
        .name(DEVICE)
        .address(hardware(address))
        .setns_by_fd(peer.as_raw_fd());
    let pair = LinkVeth::new(&device_of(address), DEVICE).set_info_data(InfoData::Veth(InfoVeth::Peer(inner.build())));
    node.link().add(pair.build()).execute().await.map_err(errno)
}

/// The index of a bridge of this name that has the first address of the subnet.
async fn have_bridge(node: &Handle, name: &str, subnet: Ipv4Net) -> std::result::Result<u32, Errno> {
    let first = gateway_of(subnet);
    // Without one of its own it has that of some port, and another one when that goes.
    let bridge = LinkBridge::new(name).address(hardware(first)).build();
    let made = node.link().add(bridge).execute().await.map_err(errno);
    made.or_else(unless_there)?;
    let link = link(node, name).await?.ok_or(Errno::ENODEV)?;
    let kind = LinkInfo::Kind(InfoKind::Bridge);
    let is_bridge = |one: &LinkAttribute| matches!(one, LinkAttribute::LinkInfo(all) if all.contains(&kind));
    if !link.attributes.iter().any(is_bridge) {
        return Err(Errno::EEXIST);
    }
    let bridge = link.header.index;
    // What instances say by IPv6 is not for the node.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    let named = node.address().add(bridge, IpAddr::V4(first), subnet.prefix_len());
    named.execute().await.map_err(errno).or_else(unless_there)?;
    up(node, bridge).await?;
    let apart = node.rule().add().v4().input_interface(name).priority(RULE);
    let apart = apart.destination_prefix(subnet.network(), subnet.prefix_len());
    let apart = apart.action(RuleAction::Prohibit).execute().await.map_err(errno);
    if let Err(error) = apart.or_else(unless_there) {
        tracing::warn!(%error, "instances can reach each other where this node forwards (CONFIG_IP_MULTIPLE_TABLES)");
    }
    Ok(bridge)
}

/// Locally administered, and always the same: who knows it from before is right.
fn hardware(address: Ipv4Addr) -> Vec<u8> {
    [&[0x02, 0x61], &address.octets()[..]].concat()
}

fn unless_there(errno: Errno) -> std::result::Result<(), Errno> {
    if errno == Errno::EEXIST { Ok(()) } else { Err(errno) }
}

async fn up(handle: &Handle, index: u32) -> std::result::Result<(), Errno> {
    let up = LinkUnspec::new_with_index(index).up().build();
    handle.link().change(up).execute().await.map_err(errno)
}

async fn index(handle: &Handle, name: &str) -> std::result::Result<Option<u32>, Errno> {
    Ok(link(handle, name).await?.map(|link| link.header.index))
}

async fn link(handle: &Handle, name: &str) -> std::result::Result<Option<LinkMessage>, Errno> {
    let mut found = std::pin::pin!(handle.link().get().match_name(name).execute());
    match found.try_next().await.map_err(errno) {
        Err(Errno::ENODEV) => Ok(None),
        found => found,
    }
}

fn errno(error: rtnetlink::Error) -> Errno {
    match error {
        rtnetlink::Error::NetlinkError(told) => Errno::from_raw(told.raw_code().abs()),
        _ => Errno::EPROTO,
    }
}

fn errno_of(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EPROTO))
}

/// That of one thread, which asks and waits.
fn runtime() -> Result<Runtime> {
    let runtime = Builder::new_current_thread().enable_io().build();
    runtime.or_fail(|| "cannot ask the kernel about networks")
}

/// Speaks to the network that this thread is in now.
fn connect(runtime: &Runtime) -> std::io::Result<Handle> {
    let _within = runtime.enter();
    let (connection, handle, _) = new_connection()?;
    runtime.spawn(connection);
    Ok(handle)
}

/// On a thread that does nothing else.
fn apart<T: Send>(work: impl FnOnce() -> std::result::Result<T, Errno> + Send) -> std::result::Result<T, Errno> {
    let done = std::thread::scope(|scope| scope.spawn(work).join());
    done.unwrap_or(Err(Errno::EPROTO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_tried_once() {
        let pool = Pool {
            subnet: "10.1.2.0/29".parse().unwrap(),
            bridge: 1,
        };
        for instance in ["web", "web.2", "shop"] {
            let mut all: Vec<u8> = pool.candidates(instance).map(|address| address.octets()[3]).collect();
            all.sort_unstable();
            assert_eq!(all, [2, 3, 4, 5, 6], "{instance}");
        }
    }

    #[test]
    fn a_subnet_without_room_is_refused() {
        let error = Addresses::begin("10.1.2.0/30".parse().unwrap(), "unused").unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
    }
}
