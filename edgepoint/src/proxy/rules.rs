//! What a manifest says about HTTP: which requests are for the app, and how they are met.

use crate::manifest::{Listen, Span};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// Requests that are for the app: of this host, below this path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub host: Host,
    /// Whole segments: `/api` is for `/api` and `/api/x`, and not for `/apix`.
    #[serde(default)]
    pub path: Prefix,
    /// One of the app's listeners, as it stands there; the first by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    #[serde(default)]
    pub protocol: Protocol,
}

/// What the app speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    #[default]
    #[serde(rename = "http1")]
    Http1,
    /// HTTP/2 without TLS from the first byte on, as gRPC servers do.
    #[serde(rename = "h2c")]
    H2c,
}

/// A name, `*.suffix` for all names below one, or `*` for every name. In lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host(String);

/// The longest name that DNS knows.
const HOST_MAX: usize = 253;

impl Host {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Host {
    type Error = String;

    fn try_from(text: String) -> Result<Host, String> {
        let host = text.to_ascii_lowercase();
        let wrong = |because: &str| Err(format!("{text:?} is no host: {because}"));
        let name = match host.strip_prefix("*.") {
            Some(name) => name,
            None if host == "*" => return Ok(Host(host)),
            None => &host,
        };
        if host.len() > HOST_MAX {
            return wrong("it is too long");
        }
        if name.contains('*') {
            return wrong("a * stands for whole names at the beginning only, as in *.example.com");
        }
        let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        if address.is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok()) {
            return Ok(Host(host));
        }
        if name.contains(':') {
            return wrong("it is named without a port; the port is that of --http");
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let label = |label: &str| (1..=63).contains(&label.len()) && label.chars().all(allowed);
        match name.split('.').all(label) {
            true => Ok(Host(host)),
            false => wrong("names are letters, digits and - between dots"),
        }
    }
}

impl From<Host> for String {
    fn from(host: Host) -> String {
        host.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The beginning of a path: `/`, or segments without a slash at the end.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Prefix(String);

impl Default for Prefix {
    fn default() -> Prefix {
        Prefix("/".to_owned())
    }
}

impl Prefix {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Prefix {
    type Error = String;

    fn try_from(text: String) -> Result<Prefix, String> {
        let wrong = |because: &str| Err(format!("{text:?} is no path: {because}"));
        let Some(rest) = text.strip_prefix('/') else {
            return wrong("it begins with /");
        };
        if rest.is_empty() {
            return Ok(Prefix(text));
        }
        if rest.ends_with('/') {
            return wrong("leave out the / at its end: it is for all that is below anyway");
        }
        if rest.split('/').any(|segment| ["", ".", ".."].contains(&segment)) {
            return wrong("a segment is empty, . or ..");
        }
        match rest.chars().all(|c| c.is_ascii_graphic() && !"?#".contains(c)) {
            true => Ok(Prefix(text)),
            false => wrong("it holds ?, # or what has to be percent-encoded"),
        }
    }
}

impl From<Prefix> for String {
    fn from(prefix: Prefix) -> String {
        prefix.0
    }
}

/// Requests that need no app: while it does not run they are answered here. What is given
/// has to fit all together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Quiet {
    /// With `*` for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// With `*` for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    /// Who connects: an address, or a network as `10.0.0.0/8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Network>,
    #[serde(default = "ok")]
    pub status: u16,
    #[serde(default)]
    pub body: String,
}

fn ok() -> u16 {
    200
}

/// Longer bodies belong into an app.
const BODY_MAX: usize = 64 << 10;

impl Quiet {
    /// Whether it speaks of such a request.
    pub fn fits(&self, path: &str, user_agent: &str, from: IpAddr) -> bool {
        self.path.as_ref().is_none_or(|pattern| like(pattern, path))
            && self.user_agent.as_ref().is_none_or(|pattern| like(pattern, user_agent))
            && self.from.as_ref().is_none_or(|network| network.has(from))
    }
}

/// Whether the text is as the pattern, in which a `*` stands for any text.
fn like(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

/// An address, or all of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network(IpNet);

impl Network {
    pub fn has(self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl std::str::FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Network, String> {
        let network = text.parse().or_else(|_| text.parse().map(IpAddr::into));
        network
            .map(Network)
            .map_err(|_| format!("{text:?} is neither an address nor a network as 10.0.0.0/8"))
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Network, String> {
        text.parse()
    }
}

impl From<Network> for String {
    fn from(network: Network) -> String {
        network.0.to_string()
    }
}

/// What a browser sees while the app wakes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Waiting {
    /// A page that asks again by itself, for people who navigate; all others wait.
    #[serde(default)]
    pub page: bool,
    /// Only where the wake takes longer than this.
    #[serde(default = "after")]
    pub after: Span,
}

fn after() -> Span {
    Span(Duration::from_millis(500))
}

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting {
            page: false,
            after: after(),
        }
    }
}

/// How long each may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Until an app that does not run does.
    pub wake: Span,
    /// Until a running app begins to answer.
    pub answer: Span,
    /// Between two parts of a body, either way.
    pub idle: Span,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            wake: Span(Duration::from_secs(30)),
            answer: Span(Duration::from_secs(60)),
            idle: Span(Duration::from_secs(300)),
        }
    }
}

/// What a manifest says about HTTP, as a whole.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rules<'a> {
    pub listen: &'a [Listen],
    pub routes: &'a [Route],
    pub quiet: &'a [Quiet],
    pub waiting: &'a Waiting,
    pub timeouts: &'a Timeouts,
}

impl Rules<'_> {
    /// What is wrong, and the way out.
    pub fn sensible(&self) -> Result<(), (String, String)> {
        let wrong = |because: String, fix: &str| Err((because, fix.to_owned()));
        for (at, route) in self.routes.iter().enumerate() {
            let shown = format!("{}{}", route.host, route.path.as_str());
            if route.target(self.listen).is_none() {
                let to = route.to.as_deref().unwrap_or_default();
                return wrong(
                    format!("the route {shown} leads to {to}, where the app does not listen"),
                    "name one of its listeners as it stands in [[listen]]",
                );
            }
            let same = |other: &Route| (&other.host, &other.path) == (&route.host, &route.path);
            if self.routes[..at].iter().any(same) {
                return wrong(format!("the route {shown} stands there twice"), "leave one out");
            }
        }
        if self.routes.is_empty() && (!self.quiet.is_empty() || self.waiting.page) {
            return wrong(
                "it has [[quiet]] or [waiting], and no [[route]]: nobody reads its requests".to_owned(),
                "[[route]] with host = \"NAME\"",
            );
        }
        for quiet in self.quiet {
            if (&quiet.path, &quiet.user_agent, &quiet.from) == (&None, &None, &None) {
                return wrong(
                    "a [[quiet]] speaks of every request: the app would never wake".to_owned(),
                    "path, user_agent or from",
                );
            }
            if !(200..=599).contains(&quiet.status) {
                return wrong(
                    format!("a [[quiet]] has {} as its status", quiet.status),
                    "a number from 200 to 599",
                );
            }
            if quiet.body.len() > BODY_MAX {
                return wrong("the body of a [[quiet]] is too long".to_owned(), "64 KiB at most");
            }
        }
        let times = [
            ("waiting.after", self.waiting.after),
            ("timeouts.wake", self.timeouts.wake),
            ("timeouts.answer", self.timeouts.answer),
            ("timeouts.idle", self.timeouts.idle),
        ];
        match times.iter().find(|(_, time)| time.0.is_zero()) {
            Some((name, _)) => wrong(format!("{name} is no time at all"), "such as 30s"),
            None => Ok(()),
        }
    }
}

impl Route {
    /// The listener that it leads to.
    pub fn target<'a>(&self, listen: &'a [Listen]) -> Option<&'a Listen> {
        match &self.to {
            Some(to) => listen.iter().find(|listen| listen.to_string() == *to),
            None => listen.first(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("/health", "/health", true),
            ("/health", "/healthy", false),
            ("kube-probe*", "kube-probe/1.29", true),
            ("kube-probe*", "curl kube-probe", false),
            ("*bot*", "Googlebot/2.1", true),
            ("*bot", "bot/2.1", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c", false),
            ("a*a", "a", false),
            ("*", "", true),
            ("", "x", false),
        ] {
            assert_eq!(like(pattern, text), fits, "{pattern} {text}");
        }
    }

    #[test]
    fn who_asks_quietly() {
        let quiet = |text: &str| toml::from_str::<Quiet>(text).unwrap();
        let both = quiet("path = \"/health\"\nfrom = \"10.0.0.0/8\"");
        assert!(both.fits("/health", "", [10, 1, 2, 3].into()));
        assert!(!both.fits("/health", "", [11, 1, 2, 3].into()));
        assert!(!both.fits("/", "", [10, 1, 2, 3].into()));
        let one = quiet("from = \"192.0.2.1\"");
        assert!(one.fits("/", "", "::ffff:192.0.2.1".parse().unwrap()));
        assert!(!one.fits("/", "", [192, 0, 2, 2].into()));
    }

    #[test]
    fn hosts_and_paths() {
        for host in [
            "shop.example",
            "*.Example.com",
            "*",
            "localhost",
            "127.0.0.1",
            "[::1]",
            "a_b",
        ] {
            assert!(Host::try_from(host.to_owned()).is_ok(), "{host}");
        }
        for host in [
            "",
            "a..b",
            "*x.example",
            "a.*.b",
            "shop:80",
            "http://shop",
            "a b",
            "*.",
            "ü",
        ] {
            assert!(Host::try_from(host.to_owned()).is_err(), "{host}");
        }
        for path in ["/", "/api", "/api/v1", "/a%20b", "/.well-known"] {
            assert!(Prefix::try_from(path.to_owned()).is_ok(), "{path}");
        }
        for path in ["", "api", "/api/", "//", "/a//b", "/a/../b", "/a?b", "/a b", "/ü"] {
            assert!(Prefix::try_from(path.to_owned()).is_err(), "{path}");
        }
    }
}
