//! Connections that were upgraded: both ends say what they like, and it is counted as it goes.

use super::App;
use super::body::Answer;
use super::forward::{Answered, InFlight};
use super::headers;
use http_body_util::Full;
use hyper::Response;
use hyper::body::{Bytes, Incoming};
use hyper::header::HeaderValue;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Passes the app's consent on, and then whatever both say.
pub fn switch(
    app: &App,
    client: OnUpgrade,
    protocol: HeaderValue,
    mut response: Response<Incoming>,
    in_flight: InFlight,
) -> Answered {
    let upstream = hyper::upgrade::on(&mut response);
    let name = app.name.clone();
    let (received, sent) = (app.traffic.bytes_in.clone(), app.traffic.bytes_out.clone());
    let mut answer = response.map(|_| Answer::Own(Full::new(Bytes::new())));
    headers::put_upgrade(answer.headers_mut(), protocol);
    tokio::spawn(async move {
        let (Ok(upstream), Ok(client)) = (upstream.await, client.await) else {
            return;
        };
        let mut client = Counted {
            end: TokioIo::new(client),
            received,
            sent,
        };
        let ended = tokio::io::copy_bidirectional(&mut client, &mut TokioIo::new(upstream)).await;
        tracing::debug!(app = name, ?ended, "an upgraded connection has ended");
        drop(in_flight);
    });
    answer
}

/// One end, with what comes from it and goes to it.
struct Counted<S> {
    end: S,
    received: Counter,
    sent: Counter,
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.end).poll_read(cx, buf))?;
        self.received.inc_by((buf.filled().len() - before) as u64);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.end).poll_write(cx, buf))?;
        self.sent.inc_by(count as u64);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.end).poll_shutdown(cx)
    }
}
