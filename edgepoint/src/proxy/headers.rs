//! What a proxy changes in the heads of messages (RFC 9110, 7.6; RFC 9113, 8.2).

use super::forward::Caller;
use super::rules::Network;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::Authority;
use hyper::{Request, Version};
use std::net::IpAddr;

/// For the next hop only, besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Takes out what was for us, and answers the protocol to which the sender wants to upgrade.
pub fn take_hop_by_hop(headers: &mut HeaderMap, version: Version) -> Option<HeaderValue> {
    let for_us = |name: &&HeaderName| **name == header::TE || HOP_BY_HOP.contains(name);
    // Few are there, mostly, and to look for each of them would take longer.
    let mut named: Vec<HeaderName> = headers.keys().filter(for_us).cloned().collect();
    if named.is_empty() {
        return None;
    }
    let trailers = tokens(headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    let mut upgrades = false;
    for token in tokens(headers, &header::CONNECTION) {
        upgrades |= token.eq_ignore_ascii_case("upgrade");
        if !["close", "keep-alive"].contains(&token) {
            named.extend(token.parse());
        }
    }
    let upgrade = match version {
        Version::HTTP_11 if upgrades => headers.remove(header::UPGRADE),
        _ => None,
    };
    for name in named {
        headers.remove(name);
    }
    if trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    upgrade
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter();
    values
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
}

/// Asks the next hop to upgrade, or agrees to.
pub fn put_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, protocol);
}

/// For whom a request is. One, and only one, may be named.
pub fn authority<B>(request: &Request<B>) -> Result<Authority, &'static str> {
    let mut hosts = request.headers().get_all(header::HOST).into_iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err("it names more than one host");
    }
    if let Some(authority) = request.uri().authority() {
        // Of HTTP/2, or of a request meant for a proxy: it comes before `Host`.
        return match authority.as_str().contains('@') {
            true => Err("its host holds a user"),
            false => Ok(authority.clone()),
        };
    }
    let host = host.ok_or("it names no host")?;
    let authority: Authority = host.as_bytes().try_into().map_err(|_| "its host is no host")?;
    match authority.as_str().contains('@') {
        true => Err("its host holds a user"),
        false => Ok(authority),
    }
}

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const REAL: HeaderName = HeaderName::from_static("x-real-ip");

/// Who asks: who has connected, or for whom he says that he asks where he is trusted.
pub fn client(headers: &HeaderMap, peer: IpAddr, trust: &[Network]) -> IpAddr {
    let trusted = |address: IpAddr| trust.iter().any(|network| network.has(address));
    let said: Vec<IpAddr> = match trusted(peer) {
        true => tokens(headers, &FOR)
            .map_while(|address| address.parse().ok())
            .collect(),
        false => Vec::new(),
    };
    // The last one that is none of ours was seen by one of ours.
    let stranger = said.iter().rev().find(|address| !trusted(**address));
    stranger.or(said.first()).copied().unwrap_or(peer)
}

/// Tells the app who asks, and how. What the client says of that itself counts only where
/// it is one that is trusted.
pub fn put_forwarded(headers: &mut HeaderMap, caller: &Caller, host: &HeaderValue, trust: &[Network]) {
    let mut chain = caller.named.clone();
    if trust.iter().any(|network| network.has(caller.address.to_canonical())) {
        let before: Vec<&str> = tokens(headers, &FOR).chain(chain.to_str()).collect();
        if let Ok(longer) = HeaderValue::try_from(before.join(", ")) {
            chain = longer;
        }
    } else {
        for name in [PROTO, HOST, REAL, header::FORWARDED] {
            headers.remove(name);
        }
    }
    headers.insert(FOR, chain);
    if !headers.contains_key(PROTO) {
        headers.insert(PROTO, HeaderValue::from_static(caller.scheme));
    }
    if !headers.contains_key(HOST) {
        headers.insert(HOST, host.clone());
    }
}

/// HTTP/2 may split cookies over several fields, HTTP/1 may not.
pub fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> = headers
        .get_all(header::COOKIE)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_is_for_one_hop_goes_no_further() {
        let mut one = headers(&[
            ("connection", "keep-alive, X-Secret"),
            ("connection", "close"),
            ("x-secret", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip, trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("x-kept", "1"),
        ]);
        assert_eq!(take_hop_by_hop(&mut one, Version::HTTP_11), None, "not named");
        assert_eq!(one, headers(&[("x-kept", "1"), ("te", "trailers")]));
        let mut socket = headers(&[("connection", "Upgrade"), ("upgrade", "websocket")]);
        let upgrade = take_hop_by_hop(&mut socket, Version::HTTP_11);
        assert_eq!(upgrade, Some(HeaderValue::from_static("websocket")));
        assert!(socket.is_empty());
    }

    #[test]
    fn one_host_is_named() {
        let ask = |uri: &str, hosts: &[&str]| {
            let mut request = Request::builder().uri(uri);
            for host in hosts {
                request = request.header("host", *host);
            }
            authority(&request.body(()).unwrap()).map(|authority| authority.to_string())
        };
        assert_eq!(ask("/", &["a.example:80"]).as_deref(), Ok("a.example:80"));
        assert_eq!(ask("http://b.example/", &["a.example"]).as_deref(), Ok("b.example"));
        for (uri, hosts) in [
            ("/", &[][..]),
            ("/", &["a", "a"]),
            ("/", &["a b"]),
            ("/", &["user@a"]),
            ("/", &[""]),
            ("http://u@b/", &["b"]),
        ] {
            assert!(ask(uri, hosts).is_err(), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn a_stranger_says_nothing_of_himself() {
        let said = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-proto", "https"),
            ("forwarded", "for=1.1.1.1"),
        ];
        let host = HeaderValue::from_static("a.example");
        let caller = Caller::new(IpAddr::from([10, 0, 0, 1]), "http");
        let mut strange = headers(&said);
        put_forwarded(&mut strange, &caller, &host, &[]);
        let plain = headers(&[
            ("x-forwarded-for", "10.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-forwarded-host", "a.example"),
        ]);
        assert_eq!(strange, plain);
        let mut known = headers(&said);
        put_forwarded(&mut known, &caller, &host, &["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(known["x-forwarded-for"], "1.1.1.1, 10.0.0.1");
        assert_eq!(known["x-forwarded-proto"], "https");
    }

    #[test]
    fn who_asks_through_one_who_is_trusted() {
        let trust = ["10.0.0.0/8".parse().unwrap()];
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let through =
            |said: &'static str, peer: &str| client(&headers(&[("x-forwarded-for", said)]), address(peer), &trust);
        assert_eq!(through("1.1.1.1, 2.2.2.2, 10.0.0.7", "10.0.0.1"), address("2.2.2.2"));
        assert_eq!(through("1.1.1.1", "3.3.3.3"), address("3.3.3.3"));
        assert_eq!(through("10.0.0.7", "10.0.0.1"), address("10.0.0.7"));
        assert_eq!(through("unknown", "10.0.0.1"), address("10.0.0.1"));
    }

    #[test]
    fn cookies_are_one() {
        let mut split = headers(&[("cookie", "a=1"), ("cookie", "b=2")]);
        join_cookies(&mut split);
        assert_eq!(split, headers(&[("cookie", "a=1; b=2")]));
    }
}
