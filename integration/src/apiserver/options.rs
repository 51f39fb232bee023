//! Whether list and watch options make sense to a server, and which server.
//!
//! It must not know what is stored. Entry points: [`check_list`] and [`check_watch`].

use super::query::{Query, flag, text};
use super::status::Status;

/// What a server makes of streaming lists (`sendInitialEvents`).
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum StreamingLists {
    /// It has them.
    Served,
    /// It knows them, but its storage cannot: status 200 and a single ERROR event.
    #[default]
    WithoutStorage,
    /// They are switched off, as they are by default from 1.27 to 1.31: status 422.
    SwitchedOff,
    /// It knows them not and is strict about `resourceVersionMatch`, as 1.19 to 1.26 are:
    /// status 422, but for another parameter.
    Unknown,
    /// It ignores what it does not know: an ordinary watch, and no bookmark ends the initial
    /// events.
    Ignored,
}

/// Whether a watch is to begin with a streaming list; an error if its options make no sense.
pub(super) fn check_watch(query: &Query, streaming: StreamingLists) -> Result<bool, Status> {
    let matching = text(query, "resourceVersionMatch");
    let is_wanted = query.contains_key("sendInitialEvents");
    match streaming {
        StreamingLists::Ignored => return Ok(false),
        StreamingLists::Unknown => {
            return match matching {
                Some(_) => Err(forbidden("resourceVersionMatch", "is forbidden for watch")),
                None => Ok(false),
            };
        }
        _ => {}
    }
    if is_wanted && matching != Some("NotOlderThan") {
        return Err(Status::invalid_options(
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting \
             resourceVersionMatch to NotOlderThan",
        ));
    }
    if is_wanted && streaming == StreamingLists::SwitchedOff {
        return Err(forbidden(
            "sendInitialEvents",
            "is forbidden for watch unless the WatchList feature gate is enabled",
        ));
    }
    if matching.is_some() && !is_wanted {
        return Err(forbidden(
            "resourceVersionMatch",
            "is forbidden for watch unless sendInitialEvents is provided",
        ));
    }
    Ok(flag(query, "sendInitialEvents"))
}

pub(super) fn check_list(query: &Query, streaming: StreamingLists) -> Result<(), Status> {
    let is_known = !matches!(streaming, StreamingLists::Unknown | StreamingLists::Ignored);
    if is_known && query.contains_key("sendInitialEvents") {
        return Err(forbidden("sendInitialEvents", "is forbidden for list"));
    }
    let version = text(query, "resourceVersion");
    match text(query, "resourceVersionMatch") {
        None => Ok(()),
        Some(_) if version.is_none() => Err(forbidden(
            "resourceVersionMatch",
            "is forbidden unless resourceVersion is provided",
        )),
        Some(_) if text(query, "continue").is_some() => Err(forbidden(
            "resourceVersionMatch",
            "is forbidden when continue is provided",
        )),
        Some("Exact") if version == Some("0") => Err(forbidden(
            "resourceVersionMatch",
            "\"exact\" is forbidden for resourceVersion \"0\"",
        )),
        Some("Exact" | "NotOlderThan") => Ok(()),
        Some(other) => Err(Status::invalid_options(&format!(
            "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"\", \
             \"Exact\", \"NotOlderThan\""
        ))),
    }
}

fn forbidden(field: &str, why: &str) -> Status {
    Status::invalid_options(&format!("{field}: Forbidden: {field} {why}"))
}
