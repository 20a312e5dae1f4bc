//! Small clients: one connection a request, read until the server closes it,
//! so that none is open when the snapshot is taken.

use libsnap::error::{Error, OrFail, Result};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// A port that nobody listens on just now.
pub fn free_port() -> Result<u16> {
    let what = || "cannot find a free port";
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).or_fail(what)?;
    Ok(listener.local_addr().or_fail(what)?.port())
}

fn connect(port: u16) -> std::io::Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
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

/// The body of an answer with status 200.
pub fn http_get(port: u16) -> Result<String> {
    let answer = exchange(port, b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let wrong = || Error::failed(format!("port {port} answers something else")).because(first_line(&answer));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(wrong)?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(body.trim_end().to_owned()),
        _ => Err(wrong()),
    }
}

/// The answer of redis to one command, as it is on the wire. Then redis itself
/// closes the connection.
pub fn redis(port: u16, words: &[&str]) -> Result<String> {
    let mut request = encode(words);
    request.extend(encode(&["QUIT"]));
    let answer = exchange(port, &request)?;
    match answer.strip_suffix("+OK\r\n") {
        Some(answer) if !answer.starts_with('-') => Ok(answer.trim_end().to_owned()),
        _ => Err(Error::failed("redis did not do it").because(first_line(&answer))),
    }
}

fn encode(words: &[&str]) -> Vec<u8> {
    let words = words.iter().map(|word| format!("${}\r\n{word}\r\n", word.len()));
    let words: Vec<String> = words.collect();
    format!("*{}\r\n{}", words.len(), words.concat()).into_bytes()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or("it closed the connection").to_owned()
}

/// Nobody listens: the connection is refused, not just slow.
pub fn ensure_refused(port: u16) -> Result<()> {
    match connect(port) {
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(()),
        Err(e) => Err(Error::failed(format!("port {port} does not refuse connections")).because(e)),
        Ok(_) => Err(Error::failed(format!("port {port} still accepts connections"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redis_commands_are_framed() {
        assert_eq!(encode(&["GET", "k"]), b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
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
