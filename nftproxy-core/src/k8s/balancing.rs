//! Annotations that say how endpoints are chosen.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::parse_ip;
use crate::model::{Balancing, Method};

/// How the endpoints of a Service are chosen: `random`, `source-hash` or `maglev`.
pub const ANNOTATION_BALANCING: &str = "nftproxy.io/balancing";
/// Weights of a Service's endpoints: `10.244.1.5=3, 10.244.2.5=0`.
pub const ANNOTATION_WEIGHTS: &str = "nftproxy.io/weights";

/// The greatest weight.
const MAX_WEIGHT: u8 = 100;

/// What the annotations ask for; `None` for what every Service has without them.
pub(super) fn balancing(
    metadata: &ObjectMeta,
    problem: &mut impl FnMut(String),
) -> Option<Box<Balancing>> {
    let annotation = |key| metadata.annotations.as_ref()?.get(key).map(|it| it.trim());
    let balancing = Balancing {
        method: method(annotation(ANNOTATION_BALANCING), problem),
        weights: weights(annotation(ANNOTATION_WEIGHTS), problem),
    };
    (balancing != Balancing::default()).then(|| Box::new(balancing))
}

fn method(text: Option<&str>, problem: &mut impl FnMut(String)) -> Method {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Method::Random;
    };
    let known = Method::ALL.into_iter().find(|known| known.as_str() == text);
    known.unwrap_or_else(|| {
        problem(format!(
            "annotation {ANNOTATION_BALANCING}: {text:?} is unknown, and counts as random"
        ));
        Method::Random
    })
}

fn weights(text: Option<&str>, problem: &mut impl FnMut(String)) -> Box<[(IpAddr, u8)]> {
    let mut weights = BTreeMap::new();
    let entries = text.into_iter().flat_map(|text| text.split(','));
    for entry in entries.map(str::trim).filter(|entry| !entry.is_empty()) {
        let Some((address, weight)) = weight(entry) else {
            problem(format!(
                "annotation {ANNOTATION_WEIGHTS}: {entry:?} is not an endpoint's address with a \
                 weight from 0 to {MAX_WEIGHT}, as in 10.244.1.5=3"
            ));
            continue;
        };
        if weights.insert(address, weight).is_some() {
            problem(format!(
                "annotation {ANNOTATION_WEIGHTS}: {address} is there twice, and the last one counts"
            ));
        }
    }
    // What all have anyway need not be kept.
    weights.retain(|_, weight| *weight != 1);
    weights.into_iter().collect()
}

fn weight(entry: &str) -> Option<(IpAddr, u8)> {
    let (address, weight) = entry.split_once('=')?;
    let weight = weight.trim();
    // A sign is no digit, and would be taken.
    if !weight.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let weight = weight.parse().ok().filter(|weight| *weight <= MAX_WEIGHT)?;
    Some((parse_ip(address.trim())?, weight))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(method: Option<&str>, weights: Option<&str>) -> (Option<Box<Balancing>>, Vec<String>) {
        let annotations = [
            (ANNOTATION_BALANCING, method),
            (ANNOTATION_WEIGHTS, weights),
        ];
        let given = annotations
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())));
        let metadata = ObjectMeta {
            annotations: Some(given.collect()),
            ..ObjectMeta::default()
        };
        let mut problems = Vec::new();
        let balancing = balancing(&metadata, &mut |problem| problems.push(problem));
        (balancing, problems)
    }

    #[test]
    fn nothing_is_kept_of_what_all_have() {
        for (method, weights) in [
            (None, None),
            (Some("random"), None),
            (Some(""), Some("")),
            (Some(" random "), Some("10.244.1.5=1, fd00::5=1,")),
        ] {
            assert_eq!(read(method, weights), (None, Vec::new()));
        }
        assert_eq!(
            read(Some("maglev"), None).0,
            Some(Box::new(Balancing::new(Method::Maglev)))
        );
        let by_source = Some(Box::new(Balancing::new(Method::SourceHash)));
        assert_eq!(read(Some("source-hash"), None), (by_source, Vec::new()));
    }

    #[test]
    fn unknown_methods_count_as_random() {
        for text in ["Maglev", "rr", "maglev,random"] {
            let (balancing, problems) = read(Some(text), None);
            assert_eq!(balancing, None);
            let [problem] = problems.as_slice() else {
                panic!("{problems:?}")
            };
            assert!(
                problem.contains(text) && problem.contains("random"),
                "{problem}"
            );
        }
    }

    #[test]
    fn bad_weights_do_not_hurt_good_ones() {
        let text = "10.244.2.5=0,10.244.1.5 = 100, fd00::5=7, 10.244.1.6=101, x=1, 10.244.1.7, \
                    10.244.1.8=-1, 10.244.1.9=+2, 10.244.1.10=, 10.244.1.5=3";
        let (balancing, problems) = read(None, Some(text));
        let balancing = balancing.unwrap();
        let weight = |address: &str| balancing.weight(address.parse().unwrap());
        assert_eq!(weight("10.244.1.5"), 3, "the last one counts");
        assert_eq!(weight("10.244.2.5"), 0);
        assert_eq!(weight("fd00::5"), 7);
        assert_eq!(weight("10.244.1.6"), 1);
        assert_eq!(balancing.weights.len(), 3);
        assert!(balancing.weights.is_sorted());
        assert_eq!(problems.len(), 7, "{problems:?}");
    }
}
