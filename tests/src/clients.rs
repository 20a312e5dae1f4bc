//! Small clients for real servers, on std alone. Each request has a connection
//! of its own, which is closed when the answer is in: none is open when the
//! snapshot is taken.

use anyhow::{Context, Result, bail, ensure};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Larger answers are an error, not a reason to use up memory.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// A port that nobody listens on just now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

fn connect(port: u16) -> Result<TcpStream> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Nobody listens: the connection is refused, not just slow.
pub fn ensure_refused(port: u16) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    match TcpStream::connect_timeout(&address, Duration::from_secs(5)) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error).context("expected a refused connection"),
        Ok(_) => bail!("port {port} still accepts connections"),
    }
}

/// The body of an answer with status 200.
pub fn http_get(port: u16, path: &str) -> Result<String> {
    let mut stream = connect(port)?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").context("answer without a header")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    ensure!(
        status == "200",
        "GET {path}: {}",
        head.lines().next().unwrap_or_default()
    );
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return unchunk(body);
    }
    Ok(body.to_owned())
}

fn unchunk(mut body: &str) -> Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("chunk without a size")?;
        let size = usize::from_str_radix(size.trim(), 16)?;
        if size == 0 {
            return Ok(whole);
        }
        whole.push_str(rest.get(..size).context("truncated chunk")?);
        body = rest
            .get(size..)
            .and_then(|r| r.strip_prefix("\r\n"))
            .context("chunk without an end")?;
    }
}

/// Sends one redis command; the answer as text (arrays are not needed here).
pub fn redis(port: u16, command: &[&str]) -> Result<String> {
    let mut stream = connect(port)?;
    let mut request = format!("*{}\r\n", command.len());
    for word in command {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(request.as_bytes())?;
    let mut reader = BufReader::new(stream.take(ANSWER_BYTES_MAX));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let line = line.trim_end();
    match line.chars().next() {
        Some('+' | ':') => Ok(line[1..].to_owned()),
        Some('$') => bulk(&mut reader, &line[1..]),
        _ => bail!("redis {command:?}: {line}"),
    }
}

fn bulk(reader: &mut impl Read, length: &str) -> Result<String> {
    if length == "-1" {
        return Ok(String::new());
    }
    let mut data = vec![0; length.parse()?];
    reader.read_exact(&mut data)?;
    Ok(String::from_utf8(data)?)
}

/// Asks again and again over one connection.
pub type Ask = Box<dyn FnMut() -> Result<()> + Send>;

/// One connection to redis, which counts.
pub fn redis_connection(port: u16) -> Result<Ask> {
    let mut stream = BufReader::new(connect(port)?);
    let mut last = 0;
    Ok(Box::new(move || {
        stream.get_mut().write_all(b"INCR load\r\n")?;
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let count: u64 = line
            .trim()
            .strip_prefix(':')
            .with_context(|| format!("redis: {line:?}"))?
            .parse()?;
        ensure!(count > last, "{count} came after {last}");
        last = count;
        Ok(())
    }))
}

/// One connection that is kept alive, asking for this page.
pub fn http_connection(port: u16, path: &'static str) -> Result<Ask> {
    let mut stream = BufReader::new(connect(port)?);
    Ok(Box::new(move || {
        write!(stream.get_mut(), "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
        let (mut length, mut lines) = (None, 0);
        loop {
            let mut line = String::new();
            ensure!(stream.read_line(&mut line)? > 0, "the connection was closed");
            ensure!(lines > 0 || line.contains(" 200 "), "GET {path}: {line}");
            lines += 1;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = Some(value.trim().parse()?);
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length.context("an answer without a length")?];
        Ok(stream.read_exact(&mut body)?)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() -> Result<()> {
        assert_eq!(unchunk("5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n")?, "hello!");
        assert!(unchunk("5\r\nhel").is_err());
        Ok(())
    }

    #[test]
    fn a_free_port_refuses() -> Result<()> {
        let port = free_port()?;
        ensure_refused(port)?;
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
        assert!(ensure_refused(port).is_err());
        drop(listener);
        Ok(())
    }
}
