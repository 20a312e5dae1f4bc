//! `GET /v1/usage/export`: the bill, as it is made.

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::response::{IntoResponse, Response};
use hyper::body::Frame;
use libsnap::error::{Error, Kind, Result};
use libsnap::store::{Store, now_unix_ms};
use nodekit::reply::{Failure, on_own_thread};
use serde::Deserialize;
use std::io::{BufWriter, Write};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use usage::bill::Bill;
use usage::card::Cards;
use usage::export::{self, Format};
use usage::period::Period;

/// Pieces that wait for a slow reader.
const PIECES: usize = 4;
const PIECE_BYTES: usize = 64 << 10;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// All without one.
    provider: Option<String>,
    /// This month without one.
    period: Option<String>,
    format: Option<String>,
}

pub async fn export(State(store): State<Store>, Query(asked): Query<Asked>) -> std::result::Result<Response, Failure> {
    let (format, content_type) = match asked.format.as_deref() {
        None | Some("csv") => (Format::Csv, "text/csv"),
        Some("json") => (Format::Json, "application/x-ndjson"),
        Some("parquet") => (Format::Parquet, "application/vnd.apache.parquet"),
        Some("cloudevents") => (Format::CloudEvents, "application/x-ndjson"),
        Some(other) => {
            let error = Error::new(Kind::Usage, format!("there is no format {other:?}"));
            return Err(error.fix("csv, json, parquet or cloudevents").into());
        }
    };
    let now = now_unix_ms()?;
    let period: Option<Period> = match &asked.period {
        Some(text) => Some(
            text.parse()
                .map_err(|because: String| Error::new(Kind::Usage, "cannot read the period").because(because))?,
        ),
        None => None,
    };
    let usage = store.usage_dir();
    let ready = on_own_thread(move || Bill::open(&usage, Cards::of(&usage)?, period.as_ref(), now));
    let bill = ready.await?;
    let (pieces, body) = mpsc::channel(PIECES);
    std::thread::spawn(move || {
        let told = pieces.clone();
        let mut out = BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces));
        let written = export::write(&bill.hours, &bill.wanted(asked.provider.as_deref()), format, &mut out);
        if let Err(error) = written {
            let _ = told.blocking_send(Err(error));
        }
    });
    first(body, content_type).await
}

/// What fails before the first piece is an answer of its own.
async fn first(
    mut pieces: mpsc::Receiver<Result<Bytes>>,
    content_type: &'static str,
) -> std::result::Result<Response, Failure> {
    let first = match pieces.recv().await {
        Some(Err(error)) => return Err(error.into()),
        Some(Ok(bytes)) => Some(bytes),
        None => None,
    };
    let body = Body::new(Streamed { first, pieces });
    Ok(([("content-type", content_type)], body).into_response())
}

struct Pieces(mpsc::Sender<Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map(|()| bytes.len())
            .map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

struct Streamed {
    first: Option<Bytes>,
    pieces: mpsc::Receiver<Result<Bytes>>,
}

impl hyper::body::Body for Streamed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let piece = self.pieces.poll_recv(context);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
