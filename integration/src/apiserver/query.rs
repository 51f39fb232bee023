//! The decoded parameters of a query.
//!
//! It must not know which parameters there are. Entry point: [`parse`].

use std::collections::BTreeMap;
use std::str::FromStr;

use super::status::Status;

pub(super) type Query = BTreeMap<String, String>;

pub(super) fn parse(query: &str) -> Query {
    form_urlencoded::parse(query.as_bytes())
        .into_owned()
        .collect()
}

/// A boolean parameter, which in Kubernetes is true unless absent or set to false.
pub(super) fn flag(query: &Query, name: &str) -> bool {
    query
        .get(name)
        .is_some_and(|value| !matches!(value.as_str(), "false" | "0"))
}

/// A parameter that is not empty.
pub(super) fn text<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    query
        .get(name)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

pub(super) fn number<T: FromStr>(query: &Query, name: &str) -> Result<Option<T>, Status> {
    text(query, name)
        .map(|value| {
            value
                .parse()
                .map_err(|_| Status::bad_request(format!("{name}: Invalid value: {value:?}")))
        })
        .transpose()
}
