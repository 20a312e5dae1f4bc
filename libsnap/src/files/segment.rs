//! The segment of TCP by which a peer ends its side of a connection (RFC 9293), sent to a socket of this
//! network by us (raw(7), ipv6(7)).

use super::inet;
use crate::sys::{Sys, diag};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

/// Its acknowledgment is one that the socket has heard already.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub sequence: u32,
    pub acknowledged: u32,
    pub window: u16,
}

const TCP: u8 = libc::IPPROTO_TCP as u8;
/// As many as there may be: the socket may want that (IP_MINTTL).
const HOPS: u8 = 255;

impl Segment {
    /// A socket of this thread's network to send it by, with this mark (SO_MARK).
    pub fn socket(to: SocketAddr, mark: u32) -> Sys<OwnedFd> {
        let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = inet::socket(domain, libc::SOCK_RAW, libc::IPPROTO_RAW)?;
        diag::setsockopt(&socket, libc::SOL_SOCKET, libc::SO_MARK, &mark.to_ne_bytes())?;
        Ok(socket)
    }

    /// Sends it over the way by which the network reaches itself.
    pub fn send(&self, socket: &OwnedFd) -> Sys<()> {
        let (packet, to) = (self.packet(), self.address());
        diag::send_message(socket, &packet, Some(&to), None, &[]).map(drop)
    }

    /// `struct sockaddr_in`, `struct sockaddr_in6`, without a port.
    fn address(&self) -> Vec<u8> {
        match self.to.ip() {
            IpAddr::V4(ip) => [
                &(libc::AF_INET as u16).to_ne_bytes()[..],
                &[0; 2],
                &ip.octets(),
                &[0; 8],
            ]
            .concat(),
            IpAddr::V6(ip) => [
                &(libc::AF_INET6 as u16).to_ne_bytes()[..],
                &[0; 6],
                &ip.octets(),
                &[0; 4],
            ]
            .concat(),
        }
    }

    /// With the header of its IP; the kernel reckons that one's sum.
    fn packet(&self) -> Vec<u8> {
        let segment = self.segment();
        let len = segment.len() as u16;
        let [from, to] = self.addresses();
        let header = match from.len() {
            4 => [
                &[0x45, 0],
                &(20 + len).to_be_bytes()[..],
                &[0, 0, 0, 0, HOPS, TCP, 0, 0],
            ]
            .concat(),
            _ => [&[0x60, 0, 0, 0], &len.to_be_bytes()[..], &[TCP, HOPS]].concat(),
        };
        [header, from, to, segment].concat()
    }

    fn addresses(&self) -> [Vec<u8>; 2] {
        addresses(self.from.ip(), self.to.ip())
    }

    fn segment(&self) -> Vec<u8> {
        const WORDS: u8 = 5;
        const FIN_ACK: u8 = 0x11;
        let mut bytes = [
            &self.from.port().to_be_bytes()[..],
            &self.to.port().to_be_bytes(),
            &self.sequence.to_be_bytes(),
            &self.acknowledged.to_be_bytes(),
            &[WORDS << 4, FIN_ACK],
            &self.window.to_be_bytes(),
            &[0; 4],
        ]
        .concat();
        let len = bytes.len() as u32;
        let before = self.addresses().concat();
        let covered = [&before, &len.to_be_bytes()[..], &[0, 0, 0, TCP], &bytes].concat();
        bytes[16..18].copy_from_slice(&sum(&covered).to_be_bytes());
        bytes
    }
}

/// Two addresses as packets have them: as those of version 6 where one of them is.
pub fn addresses(one: IpAddr, other: IpAddr) -> [Vec<u8>; 2] {
    let are_short = one.is_ipv4() && other.is_ipv4();
    [one, other].map(|ip| match ip {
        IpAddr::V4(ip) if are_short => ip.octets().to_vec(),
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    })
}

/// The internet checksum (RFC 1071) of as many whole words.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter();
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum over what it covers, with itself, is nothing.
    #[test]
    fn sums_come_out() {
        for (from, to) in [("10.0.0.1:80", "10.0.0.2:4711"), ("[fd00::1]:80", "[fd00::2]:4711")] {
            let segment = Segment {
                from: from.parse().unwrap(),
                to: to.parse().unwrap(),
                sequence: 0xfedc_ba98,
                acknowledged: 0x0123_4567,
                window: 500,
            };
            let bytes = segment.segment();
            let mut before = segment.addresses().concat();
            before.extend([0, 0, 0, 20, 0, 0, 0, 6]);
            assert_eq!(sum(&[before, bytes].concat()), 0);
        }
    }
}
