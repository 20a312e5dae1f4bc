//! One request on its way to an app, and the answer on its way back.

use super::body::{Answer, Metered, Progress, Seen, Sent};
use super::queue::{Full, Permit};
use super::receipt::{Moment, Receipt};
use super::replies::{self, Refusal};
use super::routes::host_of;
use super::rules::{Network, Protocol};
use super::serve::Active;
use super::traffic::One;
use super::upstream::Lease;
use super::{App, Proxy, Target, headers, tunnel};
use crate::status::{Activation, State, Status};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::{Authority, Scheme};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use nodekit::traces::{self, Place, Span, SpanKind};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// Who asks, and how.
#[derive(Clone, Debug)]
pub struct Caller {
    pub address: IpAddr,
    pub scheme: &'static str,
    /// The address as it is told to apps.
    pub named: HeaderValue,
}

impl Caller {
    pub fn new(address: IpAddr, scheme: &'static str) -> Caller {
        let named = HeaderValue::try_from(address.to_canonical().to_string());
        Caller {
            address,
            scheme,
            // An address has nothing that a field may not have.
            named: named.unwrap_or(HeaderValue::from_static("unknown")),
        }
    }
}

/// A request that nobody has got is sent so often.
const TRIES: u32 = 4;
/// Between two tries to connect.
const AGAIN: Duration = Duration::from_millis(5);
/// How soon it is looked after an app that has not answered.
const LATE_YET: Duration = Duration::from_millis(20);
/// A running app that refuses connections for so long will not answer.
const REFUSES: Duration = Duration::from_secs(2);

/// What lives as long as the answer is on its way. The connection is free before the next
/// request is let in.
#[derive(Debug)]
pub struct InFlight {
    _lease: Lease,
    _permit: Option<Permit>,
    _quiet: Option<One>,
    app: Arc<App>,
    _active: Active,
    /// Ends with the answer.
    _span: Span,
}

impl Seen for InFlight {
    fn passed(&self, bytes: u64) {
        self.app.traffic.bytes_out.inc_by(bytes);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.app.traffic.served.inc();
    }
}

pub type Answered = Response<Answer<InFlight>>;

impl Proxy {
    /// Never fails: what goes wrong is an answer, too.
    pub async fn answer(
        &self,
        caller: &Caller,
        trust: &[Network],
        active: Active,
        request: Request<Incoming>,
    ) -> Answered {
        let began = std::time::Instant::now();
        let (target, host) = match self.route(&request) {
            Ok(found) => found,
            Err(refusal) => return unserved(None, began, Duration::ZERO, refusal.answer()),
        };
        let app = &*target.app;
        let span = span(app, caller, &request, began);
        let forward = Forward {
            client: headers::client(request.headers(), caller.address, trust),
            came: app.moment(began),
            queued: Duration::ZERO,
            target: &target,
            host,
            caller,
            span,
            trust,
        };
        let (answer, receipt) = forward.go(active, request).await;
        receipt.tell(&app.name, answer.status().as_u16());
        // That of a wake says nothing of how many instances it takes.
        if app.timed && ["warm", "cloned"].contains(&receipt.kind) {
            app.traffic.answers.note(receipt.total);
        }
        let status = answer.status().as_u16();
        self.0
            .traffic
            .answered((&app.name, &app.traffic), status, receipt.kind, receipt.total);
        answer
    }

    fn route(&self, request: &Request<Incoming>) -> Result<(Target, Authority), Refusal> {
        let wrong = |because: &str| Refusal::new(StatusCode::BAD_REQUEST, because);
        if request.method() == Method::CONNECT {
            return Err(Refusal::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this is no proxy to anywhere",
            ));
        }
        let authority = headers::authority(request).map_err(wrong)?;
        let (host, path) = (host_of(authority.as_str()), request.uri().path());
        let target = self.table().find(host, path).cloned();
        let target = target.ok_or_else(|| {
            let because = format!("no app on this node is for {host}{path}");
            Refusal::new(StatusCode::NOT_FOUND, because)
        })?;
        Ok((target, authority))
    }
}

/// That of a request, below that of the client.
fn span(app: &App, caller: &Caller, request: &Request<Incoming>, began: std::time::Instant) -> Span {
    if !traces::wanted() {
        return Span::default();
    }
    let method = request.method();
    let mut span = Place::of(request.headers()).begin_at(SpanKind::Server, format_args!("{method}"), began);
    span.note("http.request.method", method.to_string());
    span.note("url.scheme", caller.scheme);
    span.note("url.path", request.uri().path().to_owned());
    span.note("appshot.app", app.name.clone());
    span.note("appshot.provider", app.provider.clone());
    span
}

/// How a span has ended that was answered so.
fn answered(span: &mut Span, kind: &'static str, status: StatusCode) {
    span.note("appshot.kind", kind);
    span.note("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.fail(status.as_str().to_owned());
    }
}

/// With the receipt of an answer that is our own.
fn unserved(app: Option<&App>, began: std::time::Instant, queued: Duration, mut answer: Answered) -> Answered {
    let receipt = Receipt::of_none(began, queued);
    receipt.put(answer.headers_mut());
    if app.is_none() {
        tracing::debug!(status = answer.status().as_u16(), "request for no app");
    }
    answer
}

struct Forward<'a> {
    target: &'a Target,
    came: Moment,
    queued: Duration,
    host: Authority,
    caller: &'a Caller,
    span: Span,
    /// Who asks, perhaps through others.
    client: IpAddr,
    trust: &'a [Network],
}

/// A request as it is sent to the app, and what is left of it here.
struct Outgoing {
    request: Request<Sent>,
    progress: Option<Progress>,
    /// What the client upgrades to, and its end of it.
    upgrade: Option<hyper::upgrade::OnUpgrade>,
}

/// The head of the app's answer, and the connection on which the rest comes.
struct Arrived {
    response: Response<Incoming>,
    lease: Lease,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
}

impl<'a> Forward<'a> {
    fn app(&self) -> &'a App {
        &self.target.app
    }

    async fn go(mut self, active: Active, request: Request<Incoming>) -> (Answered, Receipt) {
        match self.serve(active, request).await {
            Ok(served) => served,
            Err(own) => {
                answered(&mut self.span, "none", own.status());
                let receipt = Receipt::of_none(self.came.began, self.queued);
                (unserved(Some(self.app()), self.came.began, self.queued, *own), receipt)
            }
        }
    }

    /// The answer of the app, or one of our own.
    async fn serve(
        &mut self,
        active: Active,
        request: Request<Incoming>,
    ) -> Result<(Answered, Receipt), Box<Answered>> {
        let refuse = |refusal: Refusal| Box::new(refusal.answer());
        let app = self.app();
        let quiet = self.quiet(&request)?;
        let asking = app.asks(self.span.place());
        // Who is quiet stands in no queue: a probe asks whether the app lives.
        let permit = match quiet {
            true => None,
            false => Some(self.enter().await.map_err(refuse)?),
        };
        let waited = permit.as_ref().is_some_and(|permit| permit.waited);
        let quietly = quiet.then(|| One::more(&app.traffic.quiet_open));
        self.queued = self.came.began.elapsed();
        if waited || !self.came.running {
            let place = self.span.place();
            place.passed(format_args!("queue"), self.came.began, std::time::Instant::now());
        }
        let method = request.method();
        let mut upstream = self.span.place().begin(SpanKind::Client, format_args!("{method}"));
        let by = Instant::now() + app.timeouts.wake.0;
        let lease = match app.waiting.page && !self.came.running && is_navigation(&request) {
            true => Some(self.wait_or_page(by).await?),
            false => None,
        };
        let outgoing = self.outgoing(request, &upstream.place());
        let arrived = self.ask(outgoing, lease, quiet, by).await.map_err(|refusal| {
            upstream.fail(refusal.because.clone());
            refuse(refusal)
        })?;
        drop(asking);
        let head = std::time::Instant::now();
        let receipt = app.receipt(self.came, self.queued, waited).await;
        let status = arrived.response.status();
        self.belongs(upstream, receipt.wake.as_ref(), head, status);
        answered(&mut self.span, receipt.kind, status);
        let in_flight = InFlight {
            _lease: arrived.lease,
            _permit: permit,
            _quiet: quietly,
            app: self.target.app.clone(),
            _active: active,
            _span: std::mem::take(&mut self.span),
        };
        let answer = pass_on(app, arrived.response, arrived.upgrade, &receipt, in_flight);
        Ok((answer.map_err(refuse)?, receipt))
    }

    /// Sends the request until the app has got it, and waits for the head of the answer.
    async fn ask(
        &self,
        mut outgoing: Outgoing,
        mut lease: Option<Lease>,
        quiet: bool,
        by: Instant,
    ) -> Result<Arrived, Refusal> {
        let mut tries = 0;
        loop {
            let mut leased = match lease.take() {
                Some(lease) => lease,
                None => self.reach(tries > 0, quiet, by).await?,
            };
            tries += 1;
            let copy = copy_of(&outgoing.request, leased.used);
            let sent = tokio::select! {
                biased;
                sent = leased.send(outgoing.request) => sent,
                late = self.late(outgoing.progress.as_ref(), by) => return Err(late),
            };
            let unanswered = match sent {
                Ok(response) => {
                    return Ok(Arrived {
                        response,
                        lease: leased,
                        upgrade: outgoing.upgrade,
                    });
                }
                Err(unanswered) => unanswered,
            };
            if outgoing.progress.as_ref().is_some_and(Progress::has_stalled) {
                let because = "nothing more of the request's body came";
                return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, because));
            }
            match unanswered.unsent.or(copy) {
                Some(again) if tries < TRIES => outgoing.request = again,
                _ => {
                    tracing::info!(app = self.app().name, error = %unanswered.error, tries, "no answer");
                    let because = "the app closed the connection before it had answered; \
                         it may have got the request, so that was not sent again";
                    return Err(Refusal::new(StatusCode::BAD_GATEWAY, because));
                }
            }
        }
    }

    /// Whether nobody has to be woken for it; answered at once where nobody is awake.
    fn quiet(&self, request: &Request<Incoming>) -> Result<bool, Box<Answered>> {
        let app = self.app();
        let agent = request.headers().get(header::USER_AGENT);
        let agent = agent.and_then(|agent| agent.to_str().ok()).unwrap_or_default();
        let (path, from) = (request.uri().path(), self.client);
        let Some(quiet) = app.quiet.iter().find(|quiet| quiet.fits(path, agent, from)) else {
            app.traffic.requests.inc();
            return Ok(false);
        };
        app.traffic.quiet.inc();
        match self.came.running {
            true => Ok(true),
            false => Err(Box::new(replies::quiet(quiet))),
        }
    }

    async fn enter(&self) -> Result<Permit, Refusal> {
        let app = self.app();
        app.gate.enter(self.client).await.map_err(|full| {
            app.traffic.turned_away.inc();
            Refusal::busy(match full {
                Full::Queue => "the app has as many requests as it may have, and as many wait as may",
                Full::Late => "the app had no time for the request as long as it may wait",
            })
        })
    }

    /// A connection, once the app runs; where that takes long the page for people. The app
    /// is woken in either case.
    async fn wait_or_page(&self, by: Instant) -> Result<Lease, Box<Answered>> {
        let app = self.app();
        let woken = async {
            let lease = self.reach(false, false, by).await?;
            let mut status = app.status.clone();
            // Removed it does not run, and the request is told so on its way.
            let _ = status.wait_for(|status| status.state == State::Running).await;
            Ok::<_, Refusal>(lease)
        };
        match timeout(app.waiting.after.0, woken).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(refusal)) => Err(Box::new(refusal.answer())),
            Err(_) => Err(Box::new(replies::waiting())),
        }
    }

    /// A connection to the app, as soon as there can be one.
    async fn reach(&self, fresh: bool, quiet: bool, by: Instant) -> Result<Lease, Refusal> {
        let app = self.app();
        let mut refused = None;
        loop {
            self.reachable(by).await?;
            let leased = timeout_at(by, self.lease(fresh, quiet)).await;
            let error = match leased {
                Ok(Ok(lease)) => return Ok(lease),
                Ok(Err(error)) => error,
                Err(_) => return Err(Refusal::busy("the app takes no connection")),
            };
            let since = *refused.get_or_insert_with(Instant::now);
            let running = app.status.borrow().state == State::Running;
            if !passes(&error) || Instant::now() > by || running && since.elapsed() > REFUSES {
                tracing::info!(app = app.name, %error, "cannot be reached");
                return Err(Refusal::new(StatusCode::BAD_GATEWAY, "the app takes no connection"));
            }
            sleep(AGAIN).await;
        }
    }

    /// Who is quiet leaves no connection behind that would keep the app awake.
    async fn lease(&self, fresh: bool, quiet: bool) -> io::Result<Lease> {
        match quiet {
            true => {
                self.app().traffic.quiet_connections.inc();
                self.target.upstream.lease_once().await
            }
            false => self.target.upstream.lease(fresh).await,
        }
    }

    /// Waits until its socket is there, and somebody would hear who comes to it.
    async fn reachable(&self, by: Instant) -> Result<(), Refusal> {
        use State::{Asleep, FallingAsleep, Running, Waking};
        let (status, app) = (&self.app().status, self.app());
        let hears = |state: State| match state {
            Running | Asleep | Waking => true,
            // A snapshot that only idleness has asked for is given up for who comes.
            FallingAsleep => !app.resting.load(Ordering::Relaxed),
            _ => false,
        };
        if hears(status.borrow().state) {
            return Ok(());
        }
        let mut status = status.clone();
        match timeout_at(by, status.wait_for(|status| hears(status.state))).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(Refusal::new(StatusCode::NOT_FOUND, "the app was removed")),
            Err(_) => Err(self.not_in_time()),
        }
    }

    fn not_in_time(&self) -> Refusal {
        let status = self.app().status.borrow();
        // For what it waits, and not how much of that others have.
        let waits = status.why.as_deref().filter(|why| why.starts_with("waits "));
        let waits = waits.and_then(|why| why.split(':').next());
        let waits = waits.map_or(String::new(), |waits| format!(", and {waits}"));
        Refusal::busy(format!(
            "the app did not come up in time: it is {}{waits}",
            status.state.name()
        ))
    }

    /// Comes back when the app has let the request wait for too long.
    async fn late(&self, progress: Option<&Progress>, by: Instant) -> Refusal {
        let (app, mut by) = (self.app(), by);
        let mut since = Instant::now();
        // Most have answered by then, and nothing else is looked at for them.
        sleep(LATE_YET.min(app.timeouts.answer.0)).await;
        let mut status = app.status.clone();
        let runs = |status: &Status| status.state == State::Running;
        loop {
            if !runs(&status.borrow()) {
                match timeout_at(by, status.wait_for(runs)).await.map(|woken| woken.is_ok()) {
                    Ok(true) => since = Instant::now(),
                    Ok(false) => return Refusal::new(StatusCode::NOT_FOUND, "the app was removed"),
                    Err(_) => return self.not_in_time(),
                }
            }
            let stops = status.wait_for(|status| !runs(status));
            if timeout_at(since + app.timeouts.answer.0, stops).await.is_ok() {
                // It has ended, and comes back: who is not told so waits for it.
                by = Instant::now() + app.timeouts.wake.0;
                continue;
            }
            match progress.and_then(|progress| progress.since(since)) {
                // It was busy with the request, or the client is not done with it.
                Some(last) => since = last,
                None => return Refusal::new(StatusCode::GATEWAY_TIMEOUT, "the app does not answer"),
            }
        }
    }

    /// Ends the span of what was asked of the app with the head of its answer. The first answer
    /// after a wake is a span of its own; where the wake is another request's, this tells which.
    fn belongs(&mut self, mut upstream: Span, wake: Option<&Activation>, head: std::time::Instant, status: StatusCode) {
        let (own, place) = (self.span.place(), upstream.place());
        if let Some(wake) = wake.filter(|_| place.is_known()) {
            if wake.span.trace_id() != own.trace_id() {
                self.span.link(&wake.span);
            }
            // It may answer before that is told.
            let up = wake.up.map_or(head, |up| up.min(head));
            place.passed(format_args!("answer"), up, head);
        }
        upstream.note("http.response.status_code", i64::from(status.as_u16()));
        upstream.end_at(head);
    }

    /// The request as the app gets it.
    fn outgoing(&self, mut request: Request<Incoming>, place: &Place) -> Outgoing {
        let app = self.app();
        let h2c = self.target.upstream.protocol() == Protocol::H2c;
        let client = hyper::upgrade::on(&mut request);
        let (mut parts, body) = request.into_parts();
        let upgrade = headers::take_hop_by_hop(&mut parts.headers, parts.version).filter(|_| !h2c);
        let host = HeaderValue::try_from(self.host.as_str());
        // What is an authority is a value, too.
        let host = host.unwrap_or(HeaderValue::from_static(""));
        headers::put_forwarded(&mut parts.headers, self.caller, &host, self.trust);
        place.put(&mut parts.headers);
        // We have asked for the body already when the app reads it.
        parts.headers.remove(header::EXPECT);
        aim(&mut parts, &self.host, host, h2c);
        let upgrade = upgrade.map(|protocol| {
            headers::put_upgrade(&mut parts.headers, protocol);
            client
        });
        let (sent, progress) = match body.is_end_stream() {
            true => (Sent::Nothing, None),
            false => {
                let progress = Progress::new(app.traffic.bytes_in.clone());
                let body = Metered::new(body, app.timeouts.idle.0, progress.clone());
                (Sent::Stream(body), Some(progress))
            }
        };
        Outgoing {
            request: Request::from_parts(parts, sent),
            progress,
            upgrade,
        }
    }
}

/// The app's answer as the client gets it.
fn pass_on(
    app: &App,
    mut response: Response<Incoming>,
    upgrade: Option<hyper::upgrade::OnUpgrade>,
    receipt: &Receipt,
    in_flight: InFlight,
) -> Result<Answered, Refusal> {
    let version = response.version();
    let agreed = headers::take_hop_by_hop(response.headers_mut(), version);
    receipt.put(response.headers_mut());
    // An app of 1.0 is no reason to close the client's connection.
    *response.version_mut() = Version::HTTP_11;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return match (upgrade, agreed) {
            (Some(client), Some(protocol)) => Ok(tunnel::switch(app, client, protocol, response, in_flight)),
            _ => {
                let because = "the app switched to a protocol that nobody has asked for";
                Err(Refusal::new(StatusCode::BAD_GATEWAY, because))
            }
        };
    }
    let idle = app.timeouts.idle.0;
    Ok(response.map(|body| Answer::App(Box::new(Metered::new(body, idle, in_flight)))))
}

/// Each protocol has its own way to name the host.
fn aim(parts: &mut Parts, authority: &Authority, host: HeaderValue, h2c: bool) {
    let path = parts.uri.path_and_query().cloned();
    let mut uri = Uri::default().into_parts();
    uri.path_and_query = path;
    if h2c {
        parts.version = Version::HTTP_2;
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(authority.clone());
        parts.headers.remove(header::HOST);
    } else {
        parts.version = Version::HTTP_11;
        headers::join_cookies(&mut parts.headers);
        parts.headers.insert(header::HOST, host);
    }
    if let Ok(uri) = Uri::from_parts(uri) {
        parts.uri = uri;
    }
    parts.extensions.clear();
}

/// The same once more, where the connection may have been closed before the request came
/// there, and no harm is done if it was not (RFC 9110, 9.2.2).
fn copy_of(request: &Request<Sent>, used: bool) -> Option<Request<Sent>> {
    if !(used && request.method().is_idempotent() && matches!(request.body(), Sent::Nothing)) {
        return None;
    }
    let mut copy = Request::new(Sent::Nothing);
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    *copy.version_mut() = request.version();
    Some(copy)
}

/// A person who wants to see a page.
fn is_navigation(request: &Request<Incoming>) -> bool {
    let says = |name: &str| {
        let value = request.headers().get(name);
        value.and_then(|value| value.to_str().ok())
    };
    request.method() == Method::GET
        && says("accept").is_some_and(|accept| accept.contains("text/html"))
        && says("sec-fetch-mode").is_none_or(|mode| mode == "navigate")
}

/// It may be otherwise a moment later: the socket is not there yet, or its backlog is full.
fn passes(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, NotFound, WouldBlock};
    [ConnectionRefused, ConnectionReset, NotFound, WouldBlock].contains(&error.kind())
}
