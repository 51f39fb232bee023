//! Lists: from the cache or page by page, each page of the same snapshot.
//!
//! It must not know of HTTP or encodings. Entry point: [`list`].

use serde_json::{Value, json};

use super::filter::Filter;
use super::query::{Query, number, text};
use super::resource::Resource;
use super::status::Status;
use super::store::Store;

pub(super) fn list(
    store: &Store,
    resource: Resource,
    filter: &Filter,
    query: &Query,
) -> Result<Value, Status> {
    let wanted = number(query, "resourceVersion")?;
    let limit = match number(query, "limit")? {
        // A real server answers "any version" from its cache, in one piece.
        Some(limit) if limit > 0 && wanted != Some(0) => Some(limit),
        _ => None,
    };
    let start = Start::parse(store, query, wanted, limit.is_some())?;
    let objects = store.objects_at(start.version);
    let mut rest = objects
        .iter()
        .filter(|(key, object)| **key > start.after && filter.is_in_namespace(object))
        .peekable();
    let mut items: Vec<&Value> = Vec::new();
    let mut last = "";
    while limit.is_none_or(|limit| items.len() < limit)
        && let Some((key, object)) = rest.next()
    {
        if filter.matches(object) {
            items.push(object);
        }
        last = key;
    }
    let mut metadata = json!({"resourceVersion": start.version.to_string()});
    // The real server looks no further than the limit either: what is left may all be filtered
    // out, the last page is then empty, and only without selectors is the rest counted.
    if rest.peek().is_some() {
        metadata["continue"] = format_continue(start.version, last).into();
        if !filter.has_selectors() {
            metadata["remainingItemCount"] = rest.count().into();
        }
    }
    Ok(json!({
        "kind": format!("{}List", resource.kind()),
        "apiVersion": resource.api_version(),
        "metadata": metadata,
        "items": items,
    }))
}

/// Where a list starts: a snapshot, and the key it goes on after.
struct Start {
    version: u64,
    after: String,
}

impl Start {
    fn parse(
        store: &Store,
        query: &Query,
        wanted: Option<u64>,
        has_limit: bool,
    ) -> Result<Self, Status> {
        if let Some(token) = text(query, "continue") {
            if wanted.is_some_and(|wanted| wanted != 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (version, after) = parse_continue(token)
                .filter(|(version, _)| *version <= store.version())
                .ok_or_else(|| Status::bad_request("continue key is not valid"))?;
            if version < store.horizon() {
                return Err(Status::expired(
                    "The provided continue parameter is too old to display a consistent list \
                     result.",
                ));
            }
            return Ok(Self { version, after });
        }

        let is_exact = match text(query, "resourceVersionMatch") {
            // With a limit, a version alone has always meant that very version.
            None => has_limit,
            Some(matching) => matching == "Exact",
        };
        let current = store.version();
        let version = match wanted {
            Some(wanted) if wanted > current => {
                return Err(Status::timeout(format!(
                    "Too large resource version: {wanted}, current: {current}"
                )));
            }
            // Version 0 is none: it stands for any.
            Some(wanted) if is_exact && wanted != 0 => wanted,
            _ => current,
        };
        if version < store.horizon() {
            return Err(Status::expired(
                "The resourceVersion for the provided list is too old.",
            ));
        }
        Ok(Self {
            version,
            after: String::new(),
        })
    }
}

/// A continue token: the version of the snapshot and the last key looked at.
fn format_continue(version: u64, last: &str) -> String {
    format!("{version}:{last}")
}

fn parse_continue(token: &str) -> Option<(u64, String)> {
    let (version, last) = token.split_once(':')?;
    Some((version.parse().ok()?, last.to_owned()))
}
