//! Which encodings answers of the API server may have: `clientConnection.acceptContentTypes` and
//! `contentType`.
//!
//! Entry point: [`accept`].

use super::file::{ClientConnection, PROTOBUF};

const JSON: &str = "application/json";

/// The value of the header `Accept`: what is asked for and can be decoded, in the given order. Go's
/// clients take anything if that fails, so JSON comes last unless it is named before.
pub(super) fn accept(connection: &ClientConnection, warnings: &mut Vec<String>) -> String {
    let ClientConnection {
        accept_content_types,
        content_type,
        ..
    } = connection;
    let (field, text) = if accept_content_types.is_empty() {
        ("contentType", content_type.as_str())
    } else {
        ("acceptContentTypes", accept_content_types.as_str())
    };
    let mut types: Vec<&str> = Vec::new();
    for entry in text.split(',') {
        let name = entry.split(';').next().unwrap_or_default().trim();
        let known = match name {
            PROTOBUF => PROTOBUF,
            JSON | "*/*" | "application/*" => JSON,
            "" => continue,
            other => {
                warnings.push(format!(
                    "clientConnection.{field}: {other} is not supported and left out"
                ));
                continue;
            }
        };
        if !types.contains(&known) {
            types.push(known);
        }
    }
    if accept_content_types.is_empty() && !types.contains(&JSON) || types.is_empty() {
        types.push(JSON);
    }
    types.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// O-17, O-18: JSON and protobuf; what is neither is warned of.
    #[test]
    fn what_can_be_decoded_is_asked_for_in_the_given_order() {
        for (accept_content_types, content_type, expected, n_warnings) in [
            (
                "",
                PROTOBUF,
                "application/vnd.kubernetes.protobuf,application/json",
                0,
            ),
            ("", JSON, "application/json", 0),
            ("", "application/cbor", "application/json", 1),
            (JSON, PROTOBUF, "application/json", 0),
            (PROTOBUF, JSON, "application/vnd.kubernetes.protobuf", 0),
            (
                "application/cbor, application/vnd.kubernetes.protobuf;q=1,*/*",
                JSON,
                "application/vnd.kubernetes.protobuf,application/json",
                1,
            ),
        ] {
            let connection = ClientConnection {
                accept_content_types: accept_content_types.to_owned(),
                content_type: content_type.to_owned(),
                ..ClientConnection::default()
            };
            let mut warnings = Vec::new();
            assert_eq!(accept(&connection, &mut warnings), expected);
            assert_eq!(warnings.len(), n_warnings, "{warnings:?}");
        }
    }
}
