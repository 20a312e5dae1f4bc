//! Traces of what the daemons do: OpenTelemetry's spans, sent by OTLP over HTTP to a collector
//! that the standard environment names. Without it nothing here does anything.
//!
//! ```text
//!   span ends ──> queue ──(a thread of its own, every 5 s)──> collector
//!                   └ full: it is dropped
//! ```
//!
//! Nobody waits for the collector: who is slow or gone misses spans. What was measured before
//! a span is known (phases of a restore) becomes spans afterwards, with the times measured.
//!
//! One daemon tells another where its spans belong by the `traceparent` of W3C Trace Context,
//! which any client of an HTTP entry may send, too.

use crate::client::{block_on, converse};
use async_trait::async_trait;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, Uri};
use libsnap::error::{Error, Kind, OrFail, Result};
use libsnap::target::Phase;
use opentelemetry::propagation::TextMapPropagator;
pub use opentelemetry::trace::SpanKind;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, Status, TraceContextExt, Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_http::{HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider, Span as Recorded};
use std::borrow::Cow;
use std::fmt::Arguments;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};
use tokio::net::TcpStream;

/// What is left at the end has so long to go.
const PARTING: Duration = Duration::from_secs(1);
/// The standard's, for one exchange with the collector.
const EXCHANGE: Duration = Duration::from_secs(10);

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

static SENT: OnceLock<(SdkTracerProvider, SdkTracer)> = OnceLock::new();

/// Begins to send traces where the environment has a collector for them. A daemon goes on
/// without them where that cannot be.
pub fn begin(daemon: &'static str) {
    match provider(daemon) {
        Ok(None) => {}
        Ok(Some(provider)) => {
            let tracer = provider.tracer(daemon);
            // Only the first call counts.
            let _ = SENT.set((provider, tracer));
        }
        Err(error) => tracing::error!(%error, fix = error.fix, "goes on without traces"),
    }
}

/// What has not gone yet goes now, if the collector takes it at once.
pub fn end() {
    if let Some((provider, _)) = SENT.get() {
        let _ = provider.shutdown_with_timeout(PARTING);
    }
}

/// Whether anybody wants traces.
pub fn wanted() -> bool {
    SENT.get().is_some()
}

/// What the environment says about this: that for traces before that for all signals.
fn says(of_traces: &str, of_all: &str) -> Option<String> {
    let said = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    said(of_traces).or_else(|| said(of_all))
}

fn provider(daemon: &'static str) -> Result<Option<SdkTracerProvider>> {
    let is = |name: &str, wanted: &str| std::env::var(name).is_ok_and(|value| value.eq_ignore_ascii_case(wanted));
    let endpoint = says("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT");
    let Some(endpoint) = endpoint.filter(|_| !is("OTEL_SDK_DISABLED", "true") && !is("OTEL_TRACES_EXPORTER", "none"))
    else {
        return Ok(None);
    };
    let protocol = says("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL");
    suits(&endpoint, protocol.as_deref())?;
    let timeout = says("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT");
    let timeout = timeout.and_then(|millis| millis.parse().ok());
    let collector = Collector {
        timeout: timeout.map_or(EXCHANGE, Duration::from_millis),
        fails: AtomicBool::new(false),
    };
    let exporter = SpanExporter::builder().with_http().with_http_client(collector);
    let exporter = exporter
        .build()
        .or_fail(|| format!("cannot send traces to {endpoint}"))?;
    let mut resource = Resource::builder();
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        resource = resource.with_service_name(daemon);
    }
    if let Ok(host) = nix::unistd::gethostname() {
        let host = host.to_string_lossy().into_owned();
        resource = resource.with_attribute(KeyValue::new("host.name", host));
    }
    let resource = resource
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    tracing::info!(endpoint, "traces are sent");
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource);
    Ok(Some(provider.build()))
}

fn suits(endpoint: &str, protocol: Option<&str>) -> Result<()> {
    let error = |because: String, fix: &str| {
        let what = format!("cannot send traces to {endpoint}");
        Err(Error::new(Kind::Usage, what).because(because).fix(fix))
    };
    if let Some(other) = protocol.filter(|protocol| *protocol != "http/protobuf") {
        return error(
            format!("OTEL_EXPORTER_OTLP_PROTOCOL is {other}, and only http/protobuf is spoken here"),
            "leave it out, and name the collector's port for OTLP over HTTP (4318 as a rule)",
        );
    }
    match endpoint.parse::<Uri>() {
        Ok(uri) if uri.scheme_str() == Some("http") && uri.host().is_some() => Ok(()),
        _ => error(
            "it does not begin with http:// and a host".to_owned(),
            "name a collector on this machine, such as http://localhost:4318; it may send on by TLS",
        ),
    }
}

/// Who gets them. Asked on a thread on which nobody waits.
#[derive(Debug)]
struct Collector {
    timeout: Duration,
    /// Told once, not each time.
    fails: AtomicBool,
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> std::result::Result<Response<Bytes>, HttpError> {
        let to = request.uri().clone();
        let sent = block_on(send(request, self.timeout)).and_then(|sent| sent);
        let fails = match &sent {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(answer.status().to_string()),
            Err(error) => Some(error.to_string()),
        };
        match (self.fails.swap(fails.is_some(), Ordering::Relaxed), fails) {
            (false, Some(because)) => tracing::warn!(%to, because, "the collector takes no traces: they are dropped"),
            (true, None) => tracing::info!(%to, "the collector takes traces again"),
            _ => {}
        }
        Ok(sent?)
    }
}

async fn send(request: Request<Bytes>, timeout: Duration) -> Result<Response<Bytes>> {
    let (mut parts, body) = request.into_parts();
    let uri = std::mem::take(&mut parts.uri);
    let nowhere = || format!("{uri} is no address of a collector");
    let host = uri.host().unwrap_or_default();
    let (bare, port) = (host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(80));
    let named = HeaderValue::try_from(format!("{host}:{port}")).or_fail(nowhere)?;
    parts.headers.insert(HOST, named);
    parts.uri = uri
        .path_and_query()
        .map_or("/", |path| path.as_str())
        .parse()
        .or_fail(nowhere)?;
    let exchange = async {
        let stream = TcpStream::connect((bare, port))
            .await
            .or_fail(|| format!("cannot reach {uri}"))?;
        converse(stream, Request::from_parts(parts, Full::new(body))).await
    };
    let answered = tokio::time::timeout(timeout, exchange).await;
    let (status, body) = answered.or_fail(|| format!("{uri} does not answer"))??;
    let mut response = Response::new(body);
    *response.status_mut() = status;
    Ok(response)
}

/// Where a span belongs: below another one, or nowhere yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Place(Option<SpanContext>);

tokio::task_local! {
    static HERE: Place;
}

impl Place {
    /// What a request says. Nowhere where nobody wants traces.
    pub fn of(headers: &HeaderMap) -> Place {
        if !wanted() || !headers.contains_key(TRACEPARENT) {
            return Place::default();
        }
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(headers));
        Place(Some(context.span().span_context().clone()).filter(SpanContext::is_valid))
    }

    /// That of the request which this task answers.
    pub fn here() -> Place {
        HERE.try_with(Place::clone).unwrap_or_default()
    }

    /// What a task does here belongs there.
    pub async fn within<F: Future>(self, work: F) -> F::Output {
        HERE.scope(self, work).await
    }

    pub fn is_known(&self) -> bool {
        self.0.is_some()
    }

    /// Of all spans that belong together.
    pub fn trace_id(&self) -> Option<String> {
        self.0.as_ref().map(|context| context.trace_id().to_string())
    }

    /// As W3C Trace Context has it.
    pub fn traceparent(&self) -> Option<String> {
        let context = self.0.as_ref()?;
        let flags = context.trace_flags().to_u8();
        Some(format!("00-{}-{}-{flags:02x}", context.trace_id(), context.span_id()))
    }

    /// Tells who is asked. What else the headers said of it stays only where it is true of this.
    pub fn put(&self, headers: &mut HeaderMap) {
        let Some(value) = self.traceparent().and_then(|told| HeaderValue::try_from(told).ok()) else {
            return;
        };
        if Place::of(headers).0.map(|said| said.trace_id()) != self.0.as_ref().map(SpanContext::trace_id) {
            headers.remove(TRACESTATE);
        }
        headers.insert(TRACEPARENT, value);
    }

    /// Begins a span below this.
    pub fn begin(&self, kind: SpanKind, name: Arguments<'_>) -> Span {
        match wanted() {
            true => self.begin_at(kind, name, Instant::now()),
            false => Span::default(),
        }
    }

    /// The same of one that began before.
    pub fn begin_at(&self, kind: SpanKind, name: Arguments<'_>, began: Instant) -> Span {
        match wanted() {
            true => self.make(kind, name, moment(began)),
            false => Span::default(),
        }
    }

    fn make(&self, kind: SpanKind, name: Arguments<'_>, began: SystemTime) -> Span {
        let Some((_, tracer)) = SENT.get() else {
            return Span::default();
        };
        let name = name
            .as_str()
            .map_or_else(|| Cow::Owned(name.to_string()), Cow::Borrowed);
        let span = SpanBuilder::from_name(name).with_kind(kind).with_start_time(began);
        let above = match &self.0 {
            Some(context) => Context::new().with_remote_span_context(context.clone()),
            None => Context::new(),
        };
        Span(Some(Box::new(tracer.build_with_context(span, &above))))
    }

    /// A span of what has passed between these moments.
    pub fn passed(&self, name: Arguments<'_>, began: Instant, ended: Instant) {
        if wanted() {
            // The time of the day is read once for both.
            let begin = moment(began);
            let mut span = self.make(SpanKind::Internal, name, begin);
            span.end(begin + ended.saturating_duration_since(began));
        }
    }

    /// Spans of steps one after the other, the last of which has ended at that moment.
    pub fn steps(&self, phases: &[Phase], ended: Instant) {
        let spent = phases.iter().map(|phase| Duration::from_micros(phase.micros)).sum();
        let Some(mut at) = ended.checked_sub(spent).filter(|_| wanted()) else {
            return;
        };
        for phase in phases {
            let end = at + Duration::from_micros(phase.micros);
            self.passed(format_args!("{}", phase.name), at, end);
            at = end;
        }
    }
}

/// Spans have the time of the day.
fn moment(at: Instant) -> SystemTime {
    let (now, day) = (Instant::now(), SystemTime::now());
    match at.checked_duration_since(now) {
        Some(later) => day + later,
        None => day - now.duration_since(at),
    }
}

/// Something that is done; it ends when this is dropped. Empty where nobody wants traces.
#[derive(Debug, Default)]
#[must_use]
pub struct Span(Option<Box<Recorded>>);

impl Span {
    /// Where that belongs which is done for it.
    pub fn place(&self) -> Place {
        Place(self.0.as_ref().map(|span| span.span_context().clone()))
    }

    pub fn note(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// It has to do with that one, which is below another.
    pub fn link(&mut self, other: &Place) {
        if let (Some(span), Some(other)) = (&mut self.0, &other.0) {
            span.add_link(other.clone(), Vec::new());
        }
    }

    pub fn fail(&mut self, because: impl Into<Cow<'static, str>>) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(because));
        }
    }

    /// It failed where this did.
    pub fn outcome<T>(&mut self, result: &Result<T>) {
        if let (Some(_), Err(error)) = (&self.0, result) {
            self.fail(error.to_string());
        }
    }

    pub fn end_at(mut self, ended: Instant) {
        if self.0.is_some() {
            self.end(moment(ended));
        }
    }

    fn end(&mut self, ended: SystemTime) {
        if let Some(span) = &mut self.0 {
            span.end_with_timestamp(ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_told_before_anything_is_sent() {
        for (endpoint, protocol, told) in [
            ("https://collector:4318", None, "does not begin with http://"),
            ("collector:4318", None, "does not begin with http://"),
            ("http://", None, "does not begin with http://"),
            (
                "http://collector:4317",
                Some("grpc"),
                "OTEL_EXPORTER_OTLP_PROTOCOL is grpc",
            ),
        ] {
            let error = suits(endpoint, protocol).unwrap_err();
            assert!(error.because.as_deref().unwrap_or_default().contains(told), "{error:?}");
            assert!(error.fix.is_some(), "{error:?}");
        }
        for endpoint in ["http://localhost:4318", "http://[::1]:4318/otlp", "http://collector"] {
            suits(endpoint, Some("http/protobuf")).unwrap();
        }
    }

    #[test]
    fn without_a_collector_nothing_is_made() {
        let mut headers = HeaderMap::new();
        let said = HeaderValue::from_static("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        headers.insert(TRACEPARENT, said.clone());
        headers.insert(TRACESTATE, HeaderValue::from_static("vendor=1"));
        let place = Place::of(&headers);
        assert_eq!(place, Place::default());
        let span = place.begin(SpanKind::Server, format_args!("GET"));
        span.place().put(&mut headers);
        assert!(span.0.is_none());
        assert_eq!(
            (headers.len(), &headers[TRACEPARENT]),
            (2, &said),
            "the client's goes on"
        );
    }
}
