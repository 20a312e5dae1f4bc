//! Telling an app what is done to it, as its owner declared: signals, HTTP requests,
//! and the files of those who take part by themselves ([`libsnap::participants`]).
//!
//! ```text
//!   before a snapshot                        after a restore
//!     phase: snapshot T                        phase: restored G   there before the app runs
//!     signals       until they are taken       signals             wait for it when it runs
//!     requests      until 2xx                  requests            until 2xx
//!     participants  until they have answered   participants        waited for if required
//! ```
//!
//! Each may take its time (`timeout_ms`). Before a snapshot a failure means that there is
//! none, and the app runs on. After a restore it is told; where an answer is required the
//! instance is ended and the restore has failed.
//!
//! A request is a POST with a JSON body, made from within the app's network namespace:
//! `{"phase":"snapshot","app":..}` or `{"phase":"restored","app":..,"generation":..}`. Its
//! connection must not be in the appshot: the app's end of it is waited for, too.

use crate::{client, process};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri};
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::ids::HostPid;
use libsnap::participants::{Asking, Directory, RESTORED};
use libsnap::proc::{self, Fields};
use libsnap::target::{Hook, Hooks, Instance, Notice, Target, signal_name};
use libsnap::{freeze, nsthread, survey};
use rustix::process::{Signal, pidfd_send_signal};
use serde_json::{Value, json};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(5);
/// So often is looked whether somebody has answered.
const INTERVAL: Duration = Duration::from_millis(2);
/// So much of an answer is shown.
const SHOWN_CHARS_MAX: usize = 200;

/// Whether the one who waits has given up.
type Cancelled<'a> = &'a dyn Fn() -> bool;

/// Tells the app, and waits for its answers; what is answered is to be kept until the
/// snapshot is over.
pub fn before_snapshot(hooks: &Hooks, target: &Target, cancelled: Cancelled<'_>) -> Result<Option<Asking>> {
    if hooks.none {
        return Ok(None);
    }
    let failed = |mut error: Error| {
        error.what = format!("cannot snapshot {}: {}", survey::subject(target), error.what);
        error.state("the app is running as before")
    };
    if !hooks.before_snapshot.is_empty() {
        survey::await_memory(target, cancelled)?;
        survey::admissible(target)?;
        // Before anybody is told: one that makes no sense.
        hooks.before_snapshot.iter().try_for_each(sensible).map_err(failed)?;
    }
    let asking = Asking::begin(target)?;
    let until = Until {
        time: time(hooks),
        cancelled,
    };
    let body = json!({ "phase": "snapshot", "app": survey::app_name(target) });
    for hook in &hooks.before_snapshot {
        let told = match hook {
            Hook::Signal(notice) => signal(target, *notice, until),
            Hook::Http(url) => post(survey::root(target), url, &body, until.time).map(drop),
        };
        told.map_err(failed)?;
    }
    if let Some(asking) = &asking {
        answered(|| asking.behind(), until).map_err(failed)?;
    }
    Ok(asking)
}

/// What is left to tell an app that runs again: its files and signals are there already.
/// Answers what went wrong, where that does not matter.
pub fn after_restore(hooks: &Hooks, instance: &Instance) -> Result<Vec<String>> {
    if hooks.none {
        return Ok(Vec::new());
    }
    let directory = || Directory::of(instance.root);
    let mut warnings = Vec::new();
    let requests = hooks.after_restore.iter().filter_map(|hook| match hook {
        Hook::Http(url) => Some(url),
        Hook::Signal(_) => None,
    });
    for url in requests {
        let phase = directory().and_then(|directory| directory.phase()).unwrap_or_default();
        let generation = phase.strip_prefix(RESTORED).map(str::trim);
        let body = json!({ "phase": RESTORED, "app": instance.name, "generation": generation });
        match post(instance.root, url, &body, time(hooks)) {
            Ok(()) => {}
            Err(error) if hooks.required => return Err(of_instance(instance, error)),
            Err(error) => warnings.push(of_instance(instance, error).to_string()),
        }
    }
    if hooks.required
        && let Some(directory) = directory()
    {
        let until = Until {
            time: time(hooks),
            cancelled: &|| false,
        };
        answered(|| directory.behind(), until).map_err(|error| of_instance(instance, error))?;
    }
    Ok(warnings)
}

/// Signals that are to wait for a restored app.
pub fn notices(hooks: &Hooks) -> Vec<Notice> {
    let told = hooks.after_restore.iter().filter(|_| !hooks.none);
    let signals = told.filter_map(|hook| match hook {
        Hook::Signal(notice) => Some(*notice),
        Hook::Http(_) => None,
    });
    signals.collect()
}

/// Refuses a hook that could never be followed.
pub fn sensible(hook: &Hook) -> Result<()> {
    match hook {
        Hook::Signal(_) => Ok(()),
        Hook::Http(url) => address(url).map(drop),
    }
}

fn of_instance(instance: &Instance, mut error: Error) -> Error {
    error.what = format!("{} was restored, but: {}", instance.name, error.what);
    error
}

fn time(hooks: &Hooks) -> Duration {
    hooks.timeout_ms.map_or(TIMEOUT, Duration::from_millis)
}

#[derive(Clone, Copy)]
struct Until<'a> {
    time: Duration,
    cancelled: Cancelled<'a>,
}

impl Until<'_> {
    /// Waits until it is so; `false` when the time was up before.
    fn holds(self, mut so: impl FnMut() -> bool) -> Result<bool> {
        let began = Instant::now();
        while !so() {
            if (self.cancelled)() {
                return Err(Error::failed("it was given up").because("the one who asked for it has cancelled it"));
            }
            if began.elapsed() > self.time {
                return Ok(false);
            }
            std::thread::sleep(INTERVAL);
        }
        Ok(true)
    }
}

/// Waits until nobody is behind.
fn answered(behind: impl Fn() -> Vec<String>, until: Until<'_>) -> Result<()> {
    let mut left = Vec::new();
    let all = until.holds(|| {
        left = behind();
        left.is_empty()
    })?;
    match all {
        true => Ok(()),
        false => Err(Error::refused(format!("{} did not answer", left.join(", ")))
            .because(format!(
                "its file in /run/appshot-instance/hooks does not say what `phase` says after {:?}",
                until.time
            ))
            .fix("give it more time (--hook-timeout), or ask nobody (--no-hooks)")),
    }
}

/// Sends the signal and waits until it is taken: its handler has begun, or the one who
/// waits for it has read it.
fn signal(target: &Target, notice: Notice, until: Until<'_>) -> Result<()> {
    let name = signal_name(notice.signal);
    let mut all = match notice.all {
        true => freeze::members(target)?,
        false => vec![survey::root(target)],
    };
    all.retain(|pid| !survey::is_zombie(*pid));
    let bit = 1u64 << (notice.signal - 1);
    if let Some(deaf) = all.iter().find(|pid| !hears(**pid, bit)) {
        return Err(
            Error::refused(format!("pid {deaf} ({}) does not handle {name}", proc::comm(*deaf)))
                .because("the signal would end it, or tell it nothing")
                .fix("name a signal that it has a handler for"),
        );
    }
    let number = Signal::from_named_raw(notice.signal)
        .ok_or_else(|| Error::new(Kind::Usage, format!("there is no signal {}", notice.signal)))?;
    for pid in &all {
        // One of many may just have ended.
        let sent = process::open(*pid).and_then(|held| pidfd_send_signal(&held, number).or_fail(|| "cannot signal it"));
        if !notice.all {
            sent?;
        }
    }
    let pending = |pid: &HostPid| {
        let status = Fields::status(*pid).unwrap_or_default();
        (status.hex("SigPnd") | status.hex("ShdPnd")) & bit != 0
    };
    match until.holds(|| !all.iter().any(pending))? {
        true => Ok(()),
        false => Err(Error::refused(format!("{name} was not taken within {:?}", until.time))
            .because("all threads of a process block it")
            .fix("give it more time (--hook-timeout)")),
    }
}

/// Whether the process has a handler for the signal, or blocks it to read it otherwise.
fn hears(pid: HostPid, bit: u64) -> bool {
    let status = Fields::status(pid).unwrap_or_default();
    (status.hex("SigCgt") | status.hex("SigBlk")) & bit != 0
}

/// Asks the app, in its network namespace. Anything but 2xx is a refusal, and so is
/// everything that comes between.
fn post(app: HostPid, url: &str, body: &Value, time: Duration) -> Result<()> {
    let (address, request) = request(url, body)?;
    let asked = ask(app, address, request, time).map_err(|error| error.because.unwrap_or(error.what));
    let because = match asked {
        Ok((status, _)) if status.is_success() => return Ok(()),
        Ok((status, text)) => {
            let text: String = String::from_utf8_lossy(&text).chars().take(SHOWN_CHARS_MAX).collect();
            format!("it answered {status} {text}").trim_end().to_owned()
        }
        Err(because) => because,
    };
    Err(Error::refused(format!("the hook {url} failed"))
        .because(because)
        .fix("give it more time (--hook-timeout), or tell the app nothing (--no-hooks)"))
}

/// Asks the app for a path, in its network namespace; answers the status.
pub fn get(app: HostPid, address: SocketAddr, host: &str, path: &str, time: Duration) -> Result<StatusCode> {
    let request = Request::get(path)
        .header("host", host)
        .header("user-agent", concat!("appshot/", env!("CARGO_PKG_VERSION")))
        .header("connection", "close")
        .body(Full::default())
        .or_fail(|| format!("cannot ask for {path}"))?;
    ask(app, address, request, time).map(|(status, _)| status)
}

/// What the app answers, once it has closed the connection too.
fn ask(
    app: HostPid,
    address: SocketAddr,
    request: Request<Full<Bytes>>,
    time: Duration,
) -> Result<(StatusCode, Bytes)> {
    let deadline = Instant::now() + time;
    let connect = || TcpStream::connect_timeout(&address, time);
    let failed = || format!("cannot connect to {address}");
    let stream = nsthread::inside(app, &["net"], connect).and_then(|connected| connected);
    let stream = stream.or_fail(failed)?;
    let own = stream.local_addr().or_fail(failed)?;
    stream.set_nonblocking(true).or_fail(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .or_fail(failed)?;
    let answer = runtime.block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream).or_fail(failed)?;
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, client::converse(stream, request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Error::failed(format!("no answer within {time:?}"))),
        }
    })?;
    while (answer.0.is_success() || answer.0.is_redirection()) && holds_connection(app, address.port(), own.port()) {
        if Instant::now() > deadline {
            return Err(Error::failed("its server does not close the connection"));
        }
        std::thread::sleep(INTERVAL);
    }
    Ok(answer)
}

/// Whether a process has the other end of the connection open, as the tables of the
/// network namespace tell (proc_pid_net(5)): without a process there is no inode.
fn holds_connection(app: HostPid, own: u16, peer: u16) -> bool {
    ["net/tcp", "net/tcp6"].iter().any(|table| {
        let text = proc::text(app, table).unwrap_or_default();
        text.lines().any(|line| is_connection(line, own, peer))
    })
}

/// `1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000 0 0 4711 ...`
fn is_connection(line: &str, own: u16, peer: u16) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    let port = |at: usize| {
        words
            .get(at)?
            .rsplit_once(':')
            .and_then(|(_, port)| u16::from_str_radix(port, 16).ok())
    };
    port(1) == Some(own) && port(2) == Some(peer) && words.get(9).is_some_and(|inode| *inode != "0")
}

fn request(url: &str, body: &Value) -> Result<(SocketAddr, Request<Full<Bytes>>)> {
    let (address, uri) = address(url)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::post(path)
        .header("host", uri.authority().map_or("", |authority| authority.as_str()))
        .header("content-type", "application/json")
        .header("connection", "close")
        .body(Full::new(Bytes::from(body.to_string())))
        .or_fail(|| format!("cannot ask {url}"))?;
    Ok((address, request))
}

/// Names are not looked up: what they mean here need not be what they mean to the app.
fn address(url: &str) -> Result<(SocketAddr, Uri)> {
    let wrong = |because: String| Error::new(Kind::Usage, format!("{url} is no hook")).because(because);
    let uri: Uri = url.parse().map_err(|error| wrong(format!("{error}")))?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = uri.host().unwrap_or_default();
    let port = match authority
        .strip_prefix(host)
        .map(|rest| rest.strip_prefix(':').unwrap_or(rest))
    {
        Some("") => 80,
        Some(port) => port.parse().map_err(|_| wrong(format!("{port:?} is no port")))?,
        None => return Err(wrong("it names a user".to_owned())),
    };
    let host = match host.trim_matches(['[', ']']) {
        "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
        host => host
            .parse()
            .map_err(|_| wrong(format!("{host:?} is neither an address nor localhost")))?,
    };
    Ok((SocketAddr::new(host, port), uri))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_addresses() {
        let of = |url: &str| {
            address(url)
                .map(|(address, _)| address.to_string())
                .map_err(|error| error.kind)
        };
        assert_eq!(of("http://localhost/x").as_deref(), Ok("127.0.0.1:80"));
        assert_eq!(of("http://[::1]:7/x?y").as_deref(), Ok("[::1]:7"));
        for url in [
            "http://example.org/",
            "http://",
            "http:/x",
            "http://127.0.0.1:99999/",
            "http://a@127.0.0.1/",
        ] {
            assert_eq!(of(url), Err(Kind::Usage), "{url}");
        }
    }

    #[test]
    fn the_servers_end_of_a_connection_is_known() {
        let line = "   1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4711 1";
        assert!(is_connection(line, 8080, 50000));
        assert!(!is_connection(line, 50000, 8080));
        assert!(!is_connection(&line.replace(" 4711", " 0"), 8080, 50000));
        assert!(!is_connection("", 1, 2));
    }
}
