//! The `Status` object, which says why the server refuses.

use std::time::Duration;

use http::HeaderMap;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::wire::Encoding;
use super::wire::message::{self, Number, One, Text, message};
use super::wire::protobuf::{Unreadable, unwrap};

/// What may be read of an answer whose status says enough.
const MAX_LENGTH: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
/// What is shown of an answer that is no Status.
const MAX_MESSAGE: usize = 200;

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// 0 if it has none.
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) retry_after: Option<Duration>,
}

/// The object as it is sent.
#[derive(Default)]
struct Sent {
    message: String,
    reason: String,
    details: Option<Details>,
    code: i32,
}

message!(Sent {
    3 "message" message: Text,
    4 "reason" reason: Text,
    5 "details" details: One,
    6 "code" code: Number,
});

#[derive(Default)]
struct Details {
    retry_after_seconds: i32,
}

message!(Details {
    5 "retryAfterSeconds" retry_after_seconds: Number,
});

/// Reads the body of an answer, as far as it says something.
pub(super) async fn read(headers: &HeaderMap, body: Incoming) -> Status {
    let collected = timeout(PATIENCE, Limited::new(body, MAX_LENGTH).collect()).await;
    let Ok(Ok(body)) = collected else {
        return Status::default();
    };
    let body = body.to_bytes();
    let known = match Encoding::of(headers) {
        Ok(encoding) => Status::decode(encoding, &body).ok(),
        Err(_) => None,
    };
    known.unwrap_or_else(|| Status {
        // A gateway's page, say.
        message: first_line(&body),
        ..Status::default()
    })
}

fn first_line(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or_default().chars().take(MAX_MESSAGE).collect()
}

impl Status {
    /// Decodes one, in protobuf with its envelope.
    pub(super) fn decode(encoding: Encoding, bytes: &[u8]) -> Result<Self, Unreadable> {
        let bytes = match encoding {
            Encoding::Json => bytes,
            Encoding::Protobuf => unwrap(bytes)?,
        };
        let sent: Sent = message::decode(encoding, bytes)?;
        let seconds = sent
            .details
            .map_or(0, |details| details.retry_after_seconds);
        let seconds = u64::try_from(seconds).unwrap_or_default();
        Ok(Self {
            code: u16::try_from(sent.code).unwrap_or_default(),
            reason: sent.reason,
            message: sent.message,
            retry_after: (seconds > 0).then(|| Duration::from_secs(seconds)),
        })
    }
}
