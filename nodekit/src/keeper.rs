//! A process that keeps descriptors of a daemon open while that one is not there.
//!
//! ```text
//!   daemon ── keep NAME, numbers ──> keeper: takes them (pidfd_getfd(2))
//!      X
//!   the next one ── list ──> names and numbers; takes them from the keeper
//! ```
//!
//! One line of JSON each way. It takes from the process that asks and from no other, and
//! ends when there is nothing left to keep.

use crate::hidden::{self, Life};
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::ids::HostPid;
use libsnap::sys::task::{pidfd_getfd, pidfd_open};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// How often it looks whether it can still be reached.
const LOOK: u16 = 5000;
const LINE_MAX: u64 = 1 << 20;
/// One may just be ending, or another daemon may just have begun one.
const TRIES: usize = 5;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Ask {
    /// Instead of what was kept under this name.
    Keep {
        name: String,
        numbers: Vec<i32>,
    },
    Drop {
        name: String,
    },
    List,
}

/// What it keeps, by its own numbers.
type Kept = BTreeMap<String, Vec<i32>>;

/// The keeper at a socket, whether it runs or not.
#[derive(Clone, Debug)]
pub struct Keeper {
    socket: PathBuf,
}

impl Keeper {
    pub fn new(socket: PathBuf) -> Keeper {
        Keeper { socket }
    }

    /// All that is kept, as descriptors of this process.
    pub fn list(&self) -> Result<BTreeMap<String, Vec<OwnedFd>>> {
        let what = || "cannot take back what is kept";
        let Ok(stream) = UnixStream::connect(&self.socket) else {
            return Ok(BTreeMap::new());
        };
        let pid = getsockopt(&stream, PeerCredentials).or_fail(what)?.pid();
        let keeper = pidfd_open(HostPid(pid)).or_fail(what)?;
        let take = |number| pidfd_getfd(keeper.as_fd(), number).or_fail(what);
        let kept = ask(stream, &Ask::List)?.into_iter();
        kept.map(|(name, numbers)| Ok((name, numbers.into_iter().map(take).collect::<Result<_>>()?)))
            .collect()
    }

    /// Has these kept, by a keeper that is started if need be.
    pub fn keep(&self, name: &str, descriptors: &[OwnedFd]) -> Result<()> {
        let request = Ask::Keep {
            name: name.to_owned(),
            numbers: descriptors.iter().map(AsRawFd::as_raw_fd).collect(),
        };
        let mut last = Error::failed("cannot have descriptors kept");
        for _ in 0..TRIES {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => match ask(stream, &request) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error,
                },
                Err(_) => self.start()?,
            }
        }
        Err(last)
    }

    pub fn forget(&self, name: &str) -> Result<()> {
        match UnixStream::connect(&self.socket) {
            Ok(stream) => ask(stream, &Ask::Drop { name: name.to_owned() }).map(drop),
            // Then nothing is kept.
            Err(_) => Ok(()),
        }
    }

    fn start(&self) -> Result<()> {
        let what = || "cannot start the keeper of descriptors";
        let mut child = hidden::spawn_anew(Life::Keeper)?;
        let mut line = serde_json::to_vec(&self.socket).or_fail(what)?;
        line.push(b'\n');
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(&line).or_fail(what)?;
        }
        let mut answer = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout.read_to_string(&mut answer).or_fail(what)?;
        }
        // It is not waited for: it outlives us.
        match serde_json::from_str::<Result<(), Error>>(&answer) {
            Ok(started) => started,
            Err(_) => Err(Error::failed(what()).because("it has ended at once")),
        }
    }
}

fn ask(mut stream: UnixStream, request: &Ask) -> Result<Kept> {
    let what = || "the keeper of descriptors does not answer";
    let mut line = serde_json::to_vec(request).or_fail(what)?;
    line.push(b'\n');
    stream.write_all(&line).or_fail(what)?;
    let mut answer = String::new();
    BufReader::new(stream.take(LINE_MAX))
        .read_line(&mut answer)
        .or_fail(what)?;
    serde_json::from_str::<Result<Kept, Error>>(&answer).or_fail(what)?
}

/// The keeper's life; answers its exit code.
pub fn main() -> u8 {
    let listener = begin();
    let told = listener.as_ref().map(drop).map_err(Clone::clone);
    if let Ok(text) = serde_json::to_string(&told) {
        let _ = std::io::stdout().write_all(text.as_bytes());
        let _ = std::io::stdout().flush();
    }
    let Ok((listener, path)) = listener else { return 1 };
    if hidden::let_go().is_err() {
        return 1;
    }
    let mut held: BTreeMap<String, Vec<OwnedFd>> = BTreeMap::new();
    // Where its socket is gone nobody can reach it.
    while path.exists() {
        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, LOOK) != Ok(1) {
            continue;
        }
        let Ok((stream, _)) = listener.accept() else { continue };
        let dropped = serve(&stream, &mut held);
        if dropped && held.is_empty() {
            break;
        }
    }
    let _ = std::fs::remove_file(path);
    0
}

fn begin() -> Result<(UnixListener, PathBuf)> {
    hidden::own_session()?;
    let path: PathBuf = hidden::read_request()?;
    let what = || format!("cannot listen on {}", path.display());
    if UnixStream::connect(&path).is_ok() {
        return Err(Error::new(Kind::Conflict, what()).because("another keeper does"));
    }
    remove(&path).or_fail(what)?;
    let listener = UnixListener::bind(&path).or_fail(what)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).or_fail(what)?;
    Ok((listener, path))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether something was dropped.
fn serve(stream: &UnixStream, held: &mut BTreeMap<String, Vec<OwnedFd>>) -> bool {
    let mut line = String::new();
    let read = BufReader::new(stream.take(LINE_MAX)).read_line(&mut line);
    let Ok(request) = read
        .map_err(drop)
        .and_then(|_| serde_json::from_str::<Ask>(&line).map_err(drop))
    else {
        return false;
    };
    let dropped = matches!(request, Ask::Drop { .. });
    let answer = obey(stream, request, held);
    if let Ok(mut text) = serde_json::to_vec(&answer) {
        text.push(b'\n');
        let mut stream = stream;
        let _ = stream.write_all(&text);
    }
    dropped
}

fn obey(stream: &UnixStream, request: Ask, held: &mut BTreeMap<String, Vec<OwnedFd>>) -> Result<Kept> {
    match request {
        Ask::Keep { name, numbers } => {
            let what = || format!("cannot keep the descriptors of {name}");
            let pid = getsockopt(stream, PeerCredentials).or_fail(what)?.pid();
            let asking = pidfd_open(HostPid(pid)).or_fail(what)?;
            let taken = numbers.into_iter().map(|number| pidfd_getfd(asking.as_fd(), number));
            let taken = taken.collect::<Result<Vec<OwnedFd>, _>>().or_fail(what)?;
            held.insert(name, taken);
        }
        Ask::Drop { name } => drop(held.remove(&name)),
        Ask::List => {
            let numbers = |fds: &Vec<OwnedFd>| fds.iter().map(AsRawFd::as_raw_fd).collect();
            return Ok(held.iter().map(|(name, fds)| (name.clone(), numbers(fds))).collect());
        }
    }
    Ok(Kept::new())
}
