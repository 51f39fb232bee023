//! What the server remembers of requests.
//!
//! It must not know how they are answered. Entry points: [`Request`] and [`Counters`].

use std::collections::BTreeMap;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, Version};

use super::encoding::Encoding;
use super::query::{Query, flag};
use super::resource::Resource;

/// One request as the server received it, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// When it came.
    pub at: Instant,
    /// The method in capitals.
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// The decoded query parameters.
    pub query: BTreeMap<String, String>,
    /// The headers by their names in lower case; values of the same name are joined by `, `, and
    /// what is not ASCII is left out.
    pub headers: BTreeMap<String, String>,
    /// The version of HTTP: `1.0`, `1.1` or `2`.
    pub http_version: &'static str,
    /// The encoding that the client and the server have agreed on, if any.
    pub encoding: Option<Encoding>,
    /// The certificate of the client in DER, if it showed one.
    pub client_certificate: Option<Vec<u8>>,
    /// The HTTP status of the answer; none before there is one.
    pub status: Option<u16>,
}

impl Request {
    pub(super) fn new(parts: &Parts, query: Query, client_certificate: Option<Vec<u8>>) -> Self {
        Self {
            at: Instant::now(),
            method: parts.method.to_string(),
            path: parts.uri.path().to_owned(),
            query,
            headers: headers(&parts.headers),
            http_version: match parts.version {
                Version::HTTP_2 => "2",
                Version::HTTP_10 => "1.0",
                _ => "1.1",
            },
            encoding: None,
            client_certificate,
            status: None,
        }
    }

    /// Whether it is for objects of this kind.
    pub fn is_for(&self, resource: Resource) -> bool {
        let plural = self.path.rsplit('/').next();
        plural == Some(resource.plural())
    }

    /// Whether it asks for a watch, be it a streaming list or not.
    pub fn is_watch(&self) -> bool {
        flag(&self.query, "watch")
    }

    /// Whether it asks for a streaming list.
    pub fn is_streaming_list(&self) -> bool {
        self.is_watch() && flag(&self.query, "sendInitialEvents")
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

fn headers(map: &HeaderMap) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::<_, String>::new();
    for (name, value) in map {
        let value = value.to_str().unwrap_or("");
        headers
            .entry(name.to_string())
            .and_modify(|values| {
                values.push_str(", ");
                values.push_str(value);
            })
            .or_insert_with(|| value.to_owned());
    }
    headers
}

/// What has been asked of one resource since the start, and how much was answered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    /// Requests for single objects.
    pub gets: usize,
    /// Requests for lists; each page counts.
    pub lists: usize,
    /// Requests for watches, streaming lists included.
    pub watches: usize,
    /// Bytes of bodies handed to connections, as compressed as they were sent.
    pub body_bytes: u64,
}
