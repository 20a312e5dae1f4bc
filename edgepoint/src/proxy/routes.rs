//! Which app a request is for: by host, then by path.
//!
//! An exact host comes before `*.suffix`, a longer suffix before a shorter one, `*` last. Of
//! one host the longest path wins, by whole segments. Where a host has no route for the path
//! the next host that fits is asked. What is found costs a look-up for each label and segment,
//! however many routes there are.

use super::rules::{Host, Prefix};
use std::borrow::Cow;
use std::collections::HashMap;

/// Routes of all apps. `T` is what a route leads to.
#[derive(Clone, Debug)]
pub struct Table<T> {
    /// By [`key`].
    hosts: HashMap<String, HashMap<String, T>>,
}

impl<T> Default for Table<T> {
    fn default() -> Table<T> {
        Table { hosts: HashMap::new() }
    }
}

impl<T> Table<T> {
    /// What this very route leads to.
    pub fn exact(&self, host: &Host, path: &Prefix) -> Option<&T> {
        self.hosts.get(key(host))?.get(path.as_str())
    }

    /// What routes of this host lead to, of hosts among which it is, and of those among it.
    pub fn around(&self, host: &Host) -> impl Iterator<Item = &T> {
        let near = move |other: &str| covers(key(host), other) || covers(other, key(host));
        let hosts = self.hosts.iter().filter(move |(other, _)| near(other));
        hosts.flat_map(|(_, paths)| paths.values())
    }

    pub fn insert(&mut self, host: &Host, path: &Prefix, to: T) {
        let paths = self.hosts.entry(key(host).to_owned()).or_default();
        paths.insert(path.as_str().to_owned(), to);
    }

    /// Only those stay for which this holds.
    pub fn retain(&mut self, mut stays: impl FnMut(&T) -> bool) {
        for paths in self.hosts.values_mut() {
            paths.retain(|_, to| stays(to));
        }
        self.hosts.retain(|_, paths| !paths.is_empty());
    }

    /// What a request of this host and path is for. The host has no port.
    pub fn find(&self, host: &str, path: &str) -> Option<&T> {
        let mut host = Cow::Borrowed(host.trim_end_matches('.'));
        if host.bytes().any(|byte| byte.is_ascii_uppercase()) {
            host.to_mut().make_ascii_lowercase();
        }
        let of = |key: &str| longest(self.hosts.get(key)?, path);
        let suffixes = host.match_indices('.').map(|(dot, _)| &host[dot..]);
        std::iter::once(&*host).chain(suffixes).chain(["*"]).find_map(of)
    }
}

/// What routes of a host are found by: `.suffix` for `*.suffix`, else the host.
fn key(host: &Host) -> &str {
    match host.as_str().strip_prefix('*') {
        Some(suffix) if !suffix.is_empty() => suffix,
        _ => host.as_str(),
    }
}

/// Whether requests for the other host, both by their keys, may come to routes of this one.
fn covers(host: &str, other: &str) -> bool {
    host == "*" || host == other || host.starts_with('.') && other.ends_with(host)
}

fn longest<'a, T>(paths: &'a HashMap<String, T>, path: &str) -> Option<&'a T> {
    let mut rest = path;
    while !rest.is_empty() {
        if let Some(found) = paths.get(rest) {
            return Some(found);
        }
        rest = &rest[..rest.rfind('/').unwrap_or(0)];
    }
    paths.get("/")
}

/// The host of an authority: without a port.
pub fn host_of(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !host.ends_with(':') => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(routes: &[(&str, &str)]) -> Table<String> {
        let mut table = Table::default();
        for (host, path) in routes {
            let (host, path) = (
                Host::try_from((*host).to_owned()).unwrap(),
                Prefix::try_from((*path).to_owned()).unwrap(),
            );
            table.insert(&host, &path, format!("{host}{}", path.as_str()));
        }
        table
    }

    #[test]
    fn the_most_exact_route_wins() {
        let table = table(&[
            ("shop.example", "/"),
            ("shop.example", "/api"),
            ("shop.example", "/api/v2"),
            ("admin.example", "/admin"),
            ("*.example", "/"),
            ("*.eu.example", "/"),
            ("*", "/status"),
        ]);
        for (host, path, to) in [
            ("shop.example", "/", "shop.example/"),
            ("shop.example", "/x/y", "shop.example/"),
            ("SHOP.example.", "/", "shop.example/"),
            ("shop.example", "/api", "shop.example/api"),
            ("shop.example", "/api/", "shop.example/api"),
            ("shop.example", "/api/v2/x", "shop.example/api/v2"),
            ("shop.example", "/api/v22", "shop.example/api"),
            ("shop.example", "/apix", "shop.example/"),
            ("other.example", "/api", "*.example/"),
            ("a.b.example", "/", "*.example/"),
            ("a.eu.example", "/", "*.eu.example/"),
            ("eu.example", "/", "*.example/"),
            // The exact host has nothing for it: the next one that fits is asked.
            ("admin.example", "/admin/x", "admin.example/admin"),
            ("admin.example", "/", "*.example/"),
            ("elsewhere.test", "/status/x", "*/status"),
            ("", "/status", "*/status"),
            ("shop.example", "*", "shop.example/"),
        ] {
            assert_eq!(table.find(host, path).map(String::as_str), Some(to), "{host}{path}");
        }
        for (host, path) in [("elsewhere.test", "/"), ("example", "/"), ("xexample", "/")] {
            assert_eq!(table.find(host, path), None, "{host}{path}");
        }
    }

    #[test]
    fn hosts_that_share_names() {
        let table = table(&[("a.shop.example", "/api"), ("*.example", "/"), ("b.test", "/")]);
        let around = |host: &str| {
            let host = Host::try_from(host.to_owned()).unwrap();
            let mut found: Vec<&str> = table.around(&host).map(String::as_str).collect();
            found.sort_unstable();
            found
        };
        let (a, all, b) = ("a.shop.example/api", "*.example/", "b.test/");
        assert_eq!(around("a.shop.example"), [all, a]);
        assert_eq!(around("*.shop.example"), [all, a]);
        assert_eq!(around("*"), [all, a, b]);
        assert_eq!(around("other.example"), [all]);
        assert_eq!(around("*.b.test"), [""; 0]);
        assert_eq!(around("example"), [""; 0]);
        assert_eq!(around("ashop.test"), [""; 0]);
    }

    #[test]
    fn what_is_removed_is_gone() {
        let mut table = table(&[("a.example", "/"), ("b.example", "/")]);
        table.retain(|to| to.starts_with('b'));
        assert_eq!(table.find("a.example", "/"), None);
        assert!(table.find("b.example", "/x").is_some());
    }

    #[test]
    fn ports_are_no_part_of_a_host() {
        for (authority, host) in [
            ("shop.example", "shop.example"),
            ("shop.example:8080", "shop.example"),
            ("[::1]:80", "[::1]"),
            ("[::1]", "[::1]"),
            ("127.0.0.1:1", "127.0.0.1"),
        ] {
            assert_eq!(host_of(authority), host);
        }
    }
}
