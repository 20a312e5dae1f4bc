//! Raw socket addresses as text.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};

pub const NONE: &str = "-";

/// `127.0.0.1:80`, `[::1]:80`, `/run/x.sock`, `@abstract`, `port 7 groups 0x1`; hex of anything else.
pub fn text(raw: &[u8]) -> String {
    decode(raw).unwrap_or_else(|| raw.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn decode(raw: &[u8]) -> Option<String> {
    if raw.is_empty() {
        return Some(NONE.to_owned());
    }
    let family = u16::from_ne_bytes(bytes(raw, 0)?);
    match i32::from(family) {
        1 => Some(unix(&raw[2..])),
        2 => {
            let port = u16::from_be_bytes(bytes(raw, 2)?);
            let ip = Ipv4Addr::from(bytes::<4>(raw, 4)?);
            Some(SocketAddrV4::new(ip, port).to_string())
        }
        10 => {
            let port = u16::from_be_bytes(bytes(raw, 2)?);
            let ip = Ipv6Addr::from(bytes::<16>(raw, 8)?);
            let scope = u32::from_ne_bytes(bytes(raw, 24)?);
            Some(SocketAddrV6::new(ip, port, 0, scope).to_string())
        }
        16 => {
            let [port, groups] = [4, 8].map(|at| bytes(raw, at).map(u32::from_ne_bytes));
            Some(format!("port {} groups {:#x}", port?, groups?))
        }
        _ => None,
    }
}

fn bytes<const N: usize>(raw: &[u8], at: usize) -> Option<[u8; N]> {
    raw.get(at..at + N)?.try_into().ok()
}

/// An abstract name begins with a zero byte; a path ends at one.
fn unix(path: &[u8]) -> String {
    match path {
        [] => NONE.to_owned(),
        [0, name @ ..] => format!("@{}", name.escape_ascii()),
        path => {
            let end = path.iter().position(|byte| *byte == 0);
            path[..end.unwrap_or(path.len())].escape_ascii().to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_readable() {
        assert_eq!(
            text(&[2, 0, 0, 80, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
            "127.0.0.1:80"
        );
        let mut six = vec![10, 0, 0x18, 0xeb, 0, 0, 0, 0];
        six.extend([0; 15]);
        six.extend([1, 0, 0, 0, 0]);
        assert_eq!(text(&six), "[::1]:6379");
        assert_eq!(text(b"\x01\x00/run/x\x00"), "/run/x");
        assert_eq!(text(b"\x01\x00\x00name"), "@name");
        assert_eq!(text(&[1, 0]), "-");
        assert_eq!(text(&[]), "-");
    }

    #[test]
    fn what_is_not_understood_is_shown_as_it_is() {
        assert_eq!(text(&[2, 0, 0]), "020000");
        assert_eq!(text(&[16, 0, 7]), "100007");
        assert_eq!(text(&[1]), "01");
    }
}
