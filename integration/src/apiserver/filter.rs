//! Which objects a list or watch asks for: namespace, label selector and field selector.
//!
//! It must not know whether a list or a watch asks. Entry point: [`Filter`].

use std::collections::BTreeSet;

use serde_json::Value;

use super::query::Query;
use super::resource::Resource;
use super::status::Status;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Filter {
    namespace: Option<String>,
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl Filter {
    pub(super) fn parse(
        resource: Resource,
        namespace: Option<&str>,
        query: &Query,
        unknown_fields: &BTreeSet<String>,
    ) -> Result<Self, Status> {
        let fields = requirements(query.get("fieldSelector"))?;
        for Requirement { key, test } in &fields {
            let is_comparison = matches!(test, Test::Equals(_) | Test::Differs(_));
            let is_known = resource.selectable_fields().contains(&key.as_str())
                && !unknown_fields.contains(key);
            if !is_comparison || !is_known {
                return Err(Status::bad_request(format!(
                    "field label not supported: {key}"
                )));
            }
        }
        Ok(Self {
            namespace: namespace.map(str::to_owned),
            labels: requirements(query.get("labelSelector"))?,
            fields,
        })
    }

    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whether it selects by anything else than the namespace.
    pub(super) fn has_selectors(&self) -> bool {
        !(self.labels.is_empty() && self.fields.is_empty())
    }

    pub(super) fn is_in_namespace(&self, object: &Value) -> bool {
        self.namespace
            .as_ref()
            .is_none_or(|namespace| object["metadata"]["namespace"] == **namespace)
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        // A selectable field always exists for the selector, if need be as an empty string.
        let field = |key: &str| {
            let value = key.split('.').fold(object, |value, part| &value[part]);
            Some(value.as_str().unwrap_or(""))
        };
        self.is_in_namespace(object)
            && self.labels.iter().all(|r| r.holds(label(&r.key)))
            && self.fields.iter().all(|r| r.holds(field(&r.key)))
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: Test,
}

#[derive(Debug, PartialEq, Eq)]
enum Test {
    Exists,
    Absent,
    Equals(String),
    Differs(String),
}

impl Requirement {
    fn parse(text: &str) -> Option<Self> {
        let (key, test) = if let Some((key, value)) = text.split_once("!=") {
            (key, Test::Differs(value.to_owned()))
        } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
            (key, Test::Equals(value.to_owned()))
        } else if let Some(key) = text.strip_prefix('!') {
            (key, Test::Absent)
        } else {
            (text, Test::Exists)
        };
        let is_valid = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        (!key.is_empty() && key.chars().all(is_valid)).then(|| Self {
            key: key.to_owned(),
            test,
        })
    }

    fn holds(&self, value: Option<&str>) -> bool {
        match &self.test {
            Test::Exists => value.is_some(),
            Test::Absent => value.is_none(),
            Test::Equals(wanted) => value == Some(wanted),
            Test::Differs(unwanted) => value != Some(unwanted),
        }
    }
}

/// Parses a selector. Set-based requirements (`in`, `notin`) are refused, not ignored.
fn requirements(selector: Option<&String>) -> Result<Vec<Requirement>, Status> {
    let Some(selector) = selector.filter(|selector| !selector.is_empty()) else {
        return Ok(Vec::new());
    };
    selector
        .split(',')
        .map(|text| {
            Requirement::parse(text)
                .ok_or_else(|| Status::bad_request(format!("unable to parse requirement: {text}")))
        })
        .collect()
}
