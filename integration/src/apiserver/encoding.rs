//! JSON or protobuf: which of them an answer comes in, and objects and events in either.
//!
//! It must not know what is asked for. Entry points: [`negotiate`] and [`Encoding`].

use bytes::Bytes;
use serde_json::{Value, json};

use super::protobuf;

const JSON: &str = "application/json";
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// What objects are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// `application/json`.
    Json,
    /// `application/vnd.kubernetes.protobuf`.
    Protobuf,
}

/// The encodings a server has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum Encodings {
    /// Both, as a kube-apiserver has.
    #[default]
    Both,
    /// JSON; who accepts nothing but protobuf gets 406.
    Json,
    /// JSON, whatever is accepted, as front ends answer that do not look at the header.
    JsonRegardless,
}

/// The encoding to answer in, or none if the client accepts none that there is.
///
/// As in a kube-apiserver the ranges count by their weight, then by their order; parameters that
/// ask for tables or partial objects make a range unacceptable, and so does `stream=watch`
/// unless a watch is asked for.
pub(super) fn negotiate(
    accept: Option<&str>,
    is_watch: bool,
    encodings: Encodings,
) -> Option<Encoding> {
    let accept = accept.unwrap_or("").trim();
    if accept.is_empty() || encodings == Encodings::JsonRegardless {
        return Some(Encoding::Json);
    }
    let mut ranges: Vec<_> = accept.split(',').filter_map(Range::parse).collect();
    // The sort is stable: what weighs the same keeps its order.
    ranges.sort_by(|a, b| b.weight.total_cmp(&a.weight));
    ranges.iter().find_map(|range| {
        let stream_fits = range.stream.is_none_or(|s| is_watch && s == "watch");
        if range.is_transformed || !stream_fits || range.weight <= 0.0 {
            return None;
        }
        match range.media_type {
            JSON | "application/*" | "*/*" => Some(Encoding::Json),
            PROTOBUF if encodings == Encodings::Both => Some(Encoding::Protobuf),
            _ => None,
        }
    })
}

struct Range<'a> {
    media_type: &'a str,
    weight: f32,
    stream: Option<&'a str>,
    is_transformed: bool,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let mut range = Self {
            media_type: parts.next().filter(|media_type| !media_type.is_empty())?,
            weight: 1.0,
            stream: None,
            is_transformed: false,
        };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim() {
                "q" => range.weight = value.trim().parse().ok()?,
                "stream" => range.stream = Some(value.trim()),
                "as" => range.is_transformed = true,
                _ => {}
            }
        }
        Some(range)
    }
}

impl Encoding {
    /// The type of a response: of a watch, or of anything else.
    pub(super) fn content_type(self, is_watch: bool) -> &'static str {
        match (self, is_watch) {
            (Self::Json, _) => JSON,
            (Self::Protobuf, false) => PROTOBUF,
            (Self::Protobuf, true) => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }

    /// An object or a list.
    pub(super) fn object(self, object: &Value) -> anyhow::Result<Bytes> {
        Ok(match self {
            Self::Json => object.to_string().into(),
            Self::Protobuf => protobuf::object(object)?.into(),
        })
    }

    /// One event of a watch, as a line or as a frame.
    ///
    /// # Errors
    ///
    /// If the object has what protobuf cannot say.
    pub fn event(self, kind: &str, object: &Value) -> anyhow::Result<Bytes> {
        Ok(match self {
            Self::Json => format!("{}\n", json!({"type": kind, "object": object})).into(),
            Self::Protobuf => protobuf::watch_event(kind, &protobuf::object(object)?).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: &str = "application/vnd.kubernetes.protobuf, application/json";

    #[test]
    fn the_first_acceptable_range_of_the_highest_weight_wins() {
        use Encoding::{Json, Protobuf};
        for (accept, is_watch, expected) in [
            ("", false, Some(Json)),
            ("*/*", false, Some(Json)),
            ("application/*", false, Some(Json)),
            (BOTH, false, Some(Protobuf)),
            (BOTH, true, Some(Protobuf)),
            (
                "application/json,application/vnd.kubernetes.protobuf",
                false,
                Some(Json),
            ),
            (
                "application/json;q=0.5,application/vnd.kubernetes.protobuf;q=0.9",
                false,
                Some(Protobuf),
            ),
            (
                "application/vnd.kubernetes.protobuf;q=0, */*",
                false,
                Some(Json),
            ),
            (
                "application/vnd.kubernetes.protobuf;stream=watch",
                true,
                Some(Protobuf),
            ),
            (
                "application/vnd.kubernetes.protobuf;stream=watch",
                false,
                None,
            ),
            (
                "application/vnd.kubernetes.protobuf;stream=watch, application/json",
                false,
                Some(Json),
            ),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                false,
                Some(Json),
            ),
            ("application/json;as=Table;v=v1;g=meta.k8s.io", false, None),
            ("application/cbor", false, None),
            ("text/html", false, None),
        ] {
            assert_eq!(
                negotiate(Some(accept), is_watch, Encodings::Both),
                expected,
                "{accept}"
            );
        }
        assert_eq!(negotiate(None, false, Encodings::Both), Some(Json));
    }

    #[test]
    fn servers_without_protobuf_differ_in_what_they_make_of_it() {
        let only = Some(PROTOBUF);
        assert_eq!(negotiate(only, false, Encodings::Json), None);
        assert_eq!(
            negotiate(Some(BOTH), false, Encodings::Json),
            Some(Encoding::Json)
        );
        assert_eq!(
            negotiate(only, false, Encodings::JsonRegardless),
            Some(Encoding::Json)
        );
    }
}
