//! The `Status` object, which says why the server refuses.

use std::time::Duration;

use http::HeaderMap;
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use serde::Deserialize;
use tokio::time::timeout;

use super::wire::Encoding;
use super::wire::protobuf::{Fields, Unreadable, Value, unwrap};

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

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Json {
    code: Option<u16>,
    reason: Option<String>,
    message: Option<String>,
    details: Option<Details>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    retry_after_seconds: Option<u64>,
}

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
        match encoding {
            Encoding::Json => {
                let json: Json = serde_json::from_slice(bytes)?;
                let seconds = json.details.and_then(|details| details.retry_after_seconds);
                Ok(Self {
                    code: json.code.unwrap_or_default(),
                    reason: json.reason.unwrap_or_default(),
                    message: json.message.unwrap_or_default(),
                    retry_after: seconds.filter(|s| *s > 0).map(Duration::from_secs),
                })
            }
            Encoding::Protobuf => Self::from_protobuf(unwrap(bytes)?),
        }
    }

    fn from_protobuf(bytes: &[u8]) -> Result<Self, Unreadable> {
        let mut status = Self::default();
        let mut fields = Fields::new(bytes);
        while let Some((number, value)) = fields.next()? {
            match number {
                3 => status.message = value.string()?,
                4 => status.reason = value.string()?,
                5 => status.retry_after = retry_after(value)?,
                6 => status.code = u16::try_from(value.int32()?).unwrap_or_default(),
                _ => {}
            }
        }
        Ok(status)
    }
}

fn retry_after(details: Value<'_>) -> Result<Option<Duration>, Unreadable> {
    let mut fields = Fields::new(details.bytes()?);
    let mut seconds = 0;
    while let Some((number, value)) = fields.next()? {
        if number == 5 {
            seconds = u64::try_from(value.int32()?).unwrap_or_default();
        }
    }
    Ok((seconds > 0).then(|| Duration::from_secs(seconds)))
}
