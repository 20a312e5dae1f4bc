//! Small clients of servers on this machine, for whoever tries a real one: the
//! demo, the trials, the comparison. Each request has a connection of its own,
//! which the server closes: none is open when a snapshot is taken.

use libsnap::error::{Error, OrFail, Result};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// Larger answers are an error, not a reason to use up memory.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A port that nobody listens on just now.
pub fn free_port() -> Result<u16> {
    let what = || "cannot find a free port";
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).or_fail(what)?;
    Ok(listener.local_addr().or_fail(what)?.port())
}

/// A connection to `port` that does not wait for ever.
pub fn connect(port: u16) -> std::io::Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, CONNECT_PATIENCE)?;
    stream.set_read_timeout(Some(ANSWER_PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Nobody listens: the connection is refused, not just slow.
pub fn ensure_refused(port: u16) -> Result<()> {
    match connect(port) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => Err(Error::failed(format!("port {port} does not refuse connections")).because(e)),
        Ok(_) => Err(Error::failed(format!("port {port} still accepts connections"))),
    }
}

/// Sends `request` and reads all that comes back.
fn exchange(port: u16, request: &[u8]) -> Result<String> {
    let what = || format!("no answer from port {port}");
    let mut stream = connect(port).or_fail(what)?;
    stream.write_all(request).or_fail(what)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).or_fail(what)?;
    String::from_utf8(answer).or_fail(what)
}

/// The body of an answer with status 200. HTTP/1.0: no chunks, and the server
/// closes.
pub fn http_get(port: u16, path: &str) -> Result<String> {
    let answer = exchange(
        port,
        format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes(),
    )?;
    let wrong = || Error::failed(format!("GET {path} of port {port}: no good answer")).because(first_line(&answer));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(wrong)?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.to_owned()),
        _ => Err(wrong()),
    }
}

/// The answer of redis to one command; an array as it is on the wire. Then
/// redis itself closes the connection.
pub fn redis(port: u16, words: &[&str]) -> Result<String> {
    let mut request = encode(words);
    request.extend(encode(&["QUIT"]));
    let answer = exchange(port, &request)?;
    let value = answer.strip_suffix("+OK\r\n").and_then(decode);
    value.ok_or_else(|| Error::failed(format!("redis did not {}", words.join(" "))).because(first_line(&answer)))
}

fn encode(words: &[&str]) -> Vec<u8> {
    let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    let words: Vec<String> = words.collect();
    format!("*{}\r\n{}", words.len(), words.concat()).into_bytes()
}

/// `None` for an error. A key that is not there is an empty one here.
fn decode(answer: &str) -> Option<String> {
    let answer = answer.strip_suffix("\r\n")?;
    match answer.split_at_checked(1)? {
        ("+" | ":" | "*", value) => Some(value.to_owned()),
        ("$", "-1") => Some(String::new()),
        ("$", bulk) => Some(bulk.split_once("\r\n")?.1.to_owned()),
        _ => None,
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("it closed the connection").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_commands_are_framed() {
        assert_eq!(encode(&["GET", "k"]), b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
        assert_eq!(decode("$5\r\na\r\nbc\r\n").as_deref(), Some("a\r\nbc"));
        assert_eq!(decode("$-1\r\n").as_deref(), Some(""));
        assert_eq!(decode(":27\r\n").as_deref(), Some("27"));
        assert_eq!(decode("-ERR no\r\n"), None);
        assert_eq!(decode(""), None);
    }

    #[test]
    fn a_free_port_refuses() {
        let port = free_port().unwrap();
        ensure_refused(port).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        assert!(ensure_refused(port).is_err());
        drop(listener);
    }
}
