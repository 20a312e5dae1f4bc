//! Bodies on their way: never held as a whole, counted, and not waited for for ever.

use http_body_util::Full;
use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};
use prometheus_client::metrics::counter::Counter;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Nothing came of a body for too long.
#[derive(Debug)]
pub struct Stalled;

impl fmt::Display for Stalled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing more of the body came")
    }
}

impl std::error::Error for Stalled {}

/// A body that somebody sends, with what is to live as long as it does.
#[derive(Debug)]
pub struct Metered<T> {
    body: Incoming,
    idle: Duration,
    waits: Option<Pin<Box<Sleep>>>,
    kept: T,
}

impl<T: Seen + Unpin> Metered<T> {
    pub fn new(body: Incoming, idle: Duration, kept: T) -> Metered<T> {
        Metered {
            body,
            idle,
            waits: None,
            kept,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending => {
                self.kept.waits();
                let idle = self.idle;
                let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                match waits.as_mut().poll(cx) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        self.kept.stalled();
                        Poll::Ready(Some(Err(Stalled.into())))
                    }
                }
            }
            Poll::Ready(frame) => {
                self.waits = None;
                self.kept.moved();
                if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
                    self.kept.passed(data.len() as u64);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
        }
    }
}

/// Hears how a body gets on.
pub trait Seen {
    /// So much of it has come.
    fn passed(&self, bytes: u64);
    /// Its sender lets it wait.
    fn waits(&self) {}
    fn moved(&self) {}
    fn stalled(&self) {}
}

/// How the body of a request gets on, for who waits for the answer.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Steps>);

#[derive(Debug, Default)]
struct Steps {
    bytes: Counter,
    moved: Mutex<Option<Instant>>,
    waits: AtomicBool,
    stalled: AtomicBool,
}

impl Progress {
    /// What comes of it is counted here.
    pub fn new(bytes: Counter) -> Progress {
        Progress(Arc::new(Steps {
            bytes,
            ..Steps::default()
        }))
    }

    /// Since when the app has had nothing to do for the body, where that is later than this:
    /// it has got a part of it, or waits for one now.
    pub fn since(&self, before: Instant) -> Option<Instant> {
        if self.0.waits.load(Ordering::Relaxed) {
            return Some(Instant::now());
        }
        let moved = *self.0.moved.lock().unwrap_or_else(PoisonError::into_inner);
        moved.filter(|moved| *moved > before)
    }

    /// The client has let us wait for too long.
    pub fn has_stalled(&self) -> bool {
        self.0.stalled.load(Ordering::Relaxed)
    }
}

impl Seen for Progress {
    fn passed(&self, bytes: u64) {
        self.0.bytes.inc_by(bytes);
    }

    fn waits(&self) {
        self.0.waits.store(true, Ordering::Relaxed);
    }

    fn moved(&self) {
        self.0.waits.store(false, Ordering::Relaxed);
        *self.0.moved.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn stalled(&self) {
        self.0.stalled.store(true, Ordering::Relaxed);
    }
}

/// What the app is sent.
#[derive(Debug)]
pub enum Sent {
    Nothing,
    Stream(Metered<Progress>),
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Sent::Nothing => Poll::Ready(None),
            Sent::Stream(body) => body.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Sent::Nothing => true,
            Sent::Stream(body) => body.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Sent::Nothing => SizeHint::with_exact(0),
            Sent::Stream(body) => body.body.size_hint(),
        }
    }
}

/// What the client is answered: by the app, or said here.
#[derive(Debug)]
pub enum Answer<T> {
    App(Box<Metered<T>>),
    Own(Full<Bytes>),
}

impl<T: Seen + Unpin> Body for Answer<T> {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.get_mut() {
            Answer::App(body) => body.poll(cx),
            Answer::Own(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(|never| match never {}))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Answer::App(body) => body.body.is_end_stream(),
            Answer::Own(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Answer::App(body) => body.body.size_hint(),
            Answer::Own(body) => body.size_hint(),
        }
    }
}
