//! Multicast groups that a socket has joined (ip(7), ipv6(7)).
//!
//! No call lists those of a socket. `/proc/PID/net/igmp` and `igmp6` list what is joined on
//! the machine; a socket tells of each whether it has joined it, and with what filter of
//! senders (MCAST_MSFILTER), which is an error where it has not.
//! Refused: filters of senders.

use super::{Context, Description, Refused, refused};
use crate::image::records::{SockOpt, SocketRecord};
use crate::proc;
use crate::sys::diag;

const MCAST_JOIN_GROUP: i32 = 42;
const MCAST_MSFILTER: i32 = 48;
const MCAST_EXCLUDE: u32 = 0;
/// `struct group_req`: the device, padding, the group as a sockaddr_storage.
const REQUEST_BYTES: usize = 8 + 128;
/// `struct group_filter`: the same, then what is done with how many senders, and those.
const MODE: usize = REQUEST_BYTES;
const COUNT: usize = MODE + 4;
const FILTER_BYTES: usize = COUNT + 4 + 128;

/// A group on a device, of the machine.
#[derive(Debug, PartialEq, Eq)]
struct Joined {
    level: i32,
    /// `struct group_req`.
    request: Vec<u8>,
}

impl Joined {
    fn new(level: i32, device: u32, family: i32, at: usize, group: &[u8]) -> Joined {
        let mut request = vec![0; REQUEST_BYTES];
        request[..4].copy_from_slice(&device.to_le_bytes());
        request[8..10].copy_from_slice(&(family as u16).to_le_bytes());
        request[8 + at..8 + at + group.len()].copy_from_slice(group);
        Joined { level, request }
    }
}

/// `1 lo : 1 V3`, then one line a group, with its address as a number of this machine.
fn parse_igmp(text: &str) -> Vec<Joined> {
    let mut device = 0;
    let mut found = Vec::new();
    for line in text.lines().skip(1) {
        let first = line.split_whitespace().next().unwrap_or_default();
        if line.starts_with(char::is_whitespace) {
            let group = u32::from_str_radix(first, 16).ok();
            let group =
                group.map(|group| Joined::new(libc::IPPROTO_IP, device, libc::AF_INET, 4, &group.to_le_bytes()));
            found.extend(group);
        } else {
            device = first.parse().unwrap_or(0);
        }
    }
    found
}

/// `1 lo ff020000000000000000000000000001 1 0000000C 0`
fn parse_igmp6(text: &str) -> Vec<Joined> {
    let group = |line: &str| {
        let mut words = line.split_whitespace();
        let (device, group) = (words.next()?.parse().ok()?, words.nth(1)?);
        let group = u128::from_str_radix(group, 16).ok()?;
        Some(Joined::new(
            libc::IPPROTO_IPV6,
            device,
            libc::AF_INET6,
            8,
            &group.to_be_bytes(),
        ))
    };
    text.lines().filter_map(group).collect()
}

/// What this socket has joined, as the options that join it again.
pub fn groups(
    context: &Context<'_>,
    description: &Description,
    record: &SocketRecord,
) -> Result<Vec<SockOpt>, Refused> {
    if record.kind == libc::SOCK_STREAM {
        return Ok(Vec::new());
    }
    let pid = context.beside(&description.dup);
    let read = |name| proc::text(pid, name).unwrap_or_default();
    let mut all = parse_igmp(&read("net/igmp"));
    if record.domain == libc::AF_INET6 {
        all.extend(parse_igmp6(&read("net/igmp6")));
    }
    let mut joined = Vec::new();
    for Joined { level, request } in all {
        let mut filter = request.clone();
        filter.resize(FILTER_BYTES, 0);
        if diag::getsockopt_of(&description.dup, level, MCAST_MSFILTER, &mut filter).is_err() {
            continue;
        }
        let word = |at: usize| filter[at..at + 4].try_into().map_or(u32::MAX, u32::from_le_bytes);
        if word(MODE) != MCAST_EXCLUDE || word(COUNT) != 0 {
            return refused(
                "it has joined a multicast group for some senders only, which is not carried yet",
                "let it join the group for all senders",
            );
        }
        joined.push(SockOpt {
            level,
            name: MCAST_JOIN_GROUP,
            value: request,
        });
    }
    // The machine lists them in another order each time.
    joined.sort_by(|one, other| one.value.cmp(&other.value));
    Ok(joined)
}

pub fn is_group(option: &SockOpt) -> bool {
    let level = [libc::IPPROTO_IP, libc::IPPROTO_IPV6].contains(&option.level);
    level && option.name == MCAST_JOIN_GROUP && option.value.len() == REQUEST_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_read_with_their_devices() {
        let text = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                    1\tlo        :     2      V3\n\t\t\t\t030201EF     1 0:00000000\t\t0\n\
                    \t\t\t\t010000E0     1 0:00000000\t\t0\n3\teth0      :     1      V3\n\t\t\t\tFB0000E0     1 0:00000000\t\t0\n";
        let found = parse_igmp(text);
        let told: Vec<(u8, &[u8])> = found.iter().map(|one| (one.request[0], &one.request[12..16])).collect();
        assert_eq!(
            told,
            [(1, &[239, 1, 2, 3][..]), (1, &[224, 0, 0, 1]), (3, &[224, 0, 0, 251])]
        );
        let found = parse_igmp6("3    eth0            ff020000000000000000000000000001     1 0000000C 0\n");
        assert_eq!(
            (found[0].request[0], found[0].request[16], found[0].request[31]),
            (3, 255, 1)
        );
    }
}
