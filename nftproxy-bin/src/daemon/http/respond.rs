//! Answers, with the headers that kube-proxy's have.

use std::convert::Infallible;

use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http_body_util::{Either, Full, StreamBody};
use hyper::body::Frame;

type Once = stream::Once<std::future::Ready<Result<Frame<Bytes>, Infallible>>>;

/// A body that is there at once, sent with its length or, as kube-proxy sends metrics, in chunks.
pub(crate) type Body = Either<Full<Bytes>, StreamBody<Once>>;
pub(crate) type Response = http::Response<Body>;

pub(super) const PLAIN_TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";

/// A body with a length.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Either::Left(Full::new(bytes.into()))
}

/// A body without one.
pub(super) fn chunked(bytes: impl Into<Bytes>) -> Body {
    let frame = Ok(Frame::data(bytes.into()));
    Either::Right(StreamBody::new(stream::once(std::future::ready(frame))))
}

/// An answer of this type; browsers are told not to guess another.
pub(super) fn typed(
    status: StatusCode,
    content_type: &'static str,
    bytes: impl Into<Bytes>,
) -> Response {
    let mut response = bare(status, content_type, full(bytes));
    let nosniff = HeaderValue::from_static("nosniff");
    response
        .headers_mut()
        .insert(X_CONTENT_TYPE_OPTIONS, nosniff);
    response
}

/// The same without that.
pub(super) fn bare(status: StatusCode, content_type: &str, body: Body) -> Response {
    let mut response = http::Response::new(body);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_str(content_type).expect("media types are ASCII");
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// What Go's server says of errors: a line of text.
pub(super) fn error(status: StatusCode, line: &str) -> Response {
    typed(status, PLAIN_TEXT, format!("{line}\n"))
}

pub(super) fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "404 page not found")
}

/// A header of a request as text; empty if there is none.
pub(super) fn header(parts: &http::request::Parts, name: http::HeaderName) -> String {
    // Lists may be spread over several headers.
    let values = parts.headers.get_all(name).iter();
    let values: Vec<_> = values.filter_map(|value| value.to_str().ok()).collect();
    values.join(",")
}
