//! A server that is kept from accepting: it goes on with what it has, and no one is lost.

use anyhow::{Context, Result, ensure};
use appshot_tests::trial::in_place;
use appshot_tests::verdict::{PATIENCE, need_program, poll};
use libsnap::drain::{Drain, Shared};
use libsnap::freeze;
use libsnap::ids::HostPid;
use libsnap::sys::diag;
use libsnap::target::Target;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

/// Its socket is its standard input. One thread for each connection.
const WAITS: &str = r"
import socket, threading
def serve(peer):
    with peer:
        while (asked := peer.recv(100)): peer.sendall(asked)
server = socket.socket(fileno=0)
server.setblocking(True)
while True:
    threading.Thread(target=serve, args=[server.accept()[0]]).start()
";

/// One thread for all, which is told of connections.
const IS_TOLD: &str = r"
import selectors, socket
server = socket.socket(fileno=0)
server.setblocking(False)
wait = selectors.DefaultSelector()
wait.register(server, selectors.EVENT_READ)
while True:
    for key, _ in wait.select():
        if key.fileobj is server:
            try: wait.register(server.accept()[0], selectors.EVENT_READ)
            except BlockingIOError: pass
        elif (asked := key.fileobj.recv(100)): key.fileobj.sendall(asked)
        else: wait.unregister(key.fileobj); key.fileobj.close()
";

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn echo(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [0];
    stream.write_all(b"?")?;
    stream.read_exact(&mut byte)?;
    ensure!(&byte == b"?");
    Ok(())
}

fn drains(python: PathBuf, program: &str, blocks: bool) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let local = listener.local_addr()?;
    let file = std::fs::File::from(OwnedFd::from(listener.try_clone()?));
    let inode = file.metadata()?.ino();
    let child = Command::new(python)
        .args(["-c", program])
        .stdin(listener.as_fd().try_clone_to_owned()?)
        .spawn()?;
    let server = Server(child);
    let client = || -> Result<TcpStream> {
        let stream = TcpStream::connect(local)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    let mut before = client()?;
    echo(&mut before)?;
    let waiting = || -> Result<usize> {
        let all = diag::tcp_connections(nix::libc::AF_INET)?;
        let here = all.iter().filter(|one| one.local == local && one.inode == 0);
        Ok(here.count())
    };
    let mut late = Vec::new();
    // On a thread that ends: so the server is let go.
    std::thread::scope(|scope| {
        let tried = scope.spawn(|| -> Result<()> {
            let target = Target::Pid(HostPid(server.0.id().cast_signed()));
            let frozen = freeze::freeze_with(&target, &[], freeze::before_unnoted(&target)?)?;
            let mut drain = Drain::begin(frozen, vec![Shared { inode, blocks }])?;
            let mut round = 0;
            let met = drain.until(PATIENCE, || {
                round += 1;
                if round < 3 {
                    late.push(client().map_err(|e| libsnap::error::Error::failed(e.to_string()))?);
                }
                Ok(round > 100)
            })?;
            ensure!(met && waiting()? == 2, "{} wait", waiting()?);
            // What it has it goes on with.
            let other = std::thread::spawn(move || echo(&mut before).map(|()| before));
            let served = drain.until(PATIENCE, || Ok(other.is_finished()))?;
            ensure!(served, "it does not go on");
            let _open = other.join().expect("it does not panic")?;
            ensure!(waiting()? == 2, "{} wait", waiting()?);
            ensure!(!drain.until(Duration::from_millis(20), || Ok(false))?);
            Ok(())
        });
        tried.join().expect("it does not panic")
    })?;
    ensure!(late.len() == 2);
    for stream in &mut late {
        echo(stream).context("after it was let go")?;
    }
    poll("all to be accepted", PATIENCE, || Ok((waiting()? == 0).then_some(())))
}

#[test]
fn one_that_waits_for_connections() {
    in_place("one_that_waits_for_connections", |_| {
        drains(need_program(&["python3", "/usr/bin/python3"])?, WAITS, true)
    });
}

#[test]
fn one_that_is_told_of_connections() {
    in_place("one_that_is_told_of_connections", |_| {
        drains(need_program(&["python3", "/usr/bin/python3"])?, IS_TOLD, false)
    });
}
