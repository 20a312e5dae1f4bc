//! What is answered here, without an app.

use super::body::Answer;
use super::rules::Quiet;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};

/// Why a request gets no answer of an app.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub because: String,
    /// It may be worth another try after so many seconds.
    again: Option<u32>,
}

impl Refusal {
    pub fn new(status: StatusCode, because: impl Into<String>) -> Refusal {
        Refusal {
            status,
            because: because.into(),
            again: None,
        }
    }

    /// Just now.
    pub fn busy(because: impl Into<String>) -> Refusal {
        Refusal {
            again: Some(1),
            ..Refusal::new(StatusCode::SERVICE_UNAVAILABLE, because)
        }
    }

    pub fn answer<T>(&self) -> Response<Answer<T>> {
        let mut response = text(self.status, format!("{}: {}\n", self.status, self.because));
        if let Some(seconds) = self.again {
            response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::REQUEST_TIMEOUT {
            // The rest of its body may still come.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }
}

fn text<T>(status: StatusCode, body: impl Into<Bytes>) -> Response<Answer<T>> {
    let mut response = Response::new(Answer::Own(Full::new(body.into())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// For an app that does not run.
pub fn quiet<T>(quiet: &Quiet) -> Response<Answer<T>> {
    let status = StatusCode::from_u16(quiet.status).unwrap_or(StatusCode::OK);
    text(status, quiet.body.clone())
}

/// Seen by a person while the app wakes. It asks again by itself, and each time the wake goes
/// on. 503, so that neither caches nor search engines take it for the page that was wanted.
pub fn waiting<T>() -> Response<Answer<T>> {
    const PAGE: &str = "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
        <meta name=\"viewport\" content=\"width=device-width\">\
        <meta http-equiv=\"refresh\" content=\"1\"><title>One moment</title>\
        <style>body{font:1.1rem system-ui,sans-serif;display:grid;place-items:center;height:90vh;\
        color:#444}</style></head>\
        <body><p>This application is waking up. The page comes by itself.</p></body></html>\n";
    let mut response = text(StatusCode::SERVICE_UNAVAILABLE, PAGE);
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/html; charset=utf-8"),
    );
    headers.insert(header::RETRY_AFTER, 1.into());
    response
}
