//! The recorded cluster, and what of a ruleset two ways of getting there may differ in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nftproxy_core::k8s;
use nftproxy_core::model::{Family, State};
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::ruleset::element::{Data, Element, Key};
use nftproxy_core::ruleset::name::{ChainName, SlotMap};
use serde_json::Value;

/// The node from which tests see the recorded cluster.
pub const NODE_NAME: &str = "node-1";

/// The path of a recorded file.
pub fn path(file: &str) -> PathBuf {
    [
        env!("CARGO_MANIFEST_DIR"),
        "fixtures",
        "cluster-small",
        file,
    ]
    .iter()
    .collect()
}

/// The contents of a recorded file.
///
/// # Panics
///
/// If there is no such file.
pub fn read(file: &str) -> String {
    std::fs::read_to_string(path(file)).expect("the fixture is part of the project")
}

/// The state that a recorded YAML list amounts to on [`NODE_NAME`].
///
/// # Panics
///
/// If the file is not a list of objects that can be used without a problem.
pub fn recorded(file: &str) -> State {
    let list: serde_norway::Value =
        serde_norway::from_str(&read(file)).expect("the fixture is YAML");
    let mut state = State::default();
    let mut problems = Vec::new();
    for item in list["items"].as_sequence().expect("the fixture is a list") {
        let object = item.clone();
        let fits = "a recorded object fits its type";
        match item["kind"].as_str() {
            Some("Service") => {
                let service = serde_norway::from_value(object).expect(fits);
                if let Some(service) = k8s::service(&service, &mut problems) {
                    state.apply_service(service);
                }
            }
            Some("EndpointSlice") => {
                let slice = serde_norway::from_value(object).expect(fits);
                if let Some(slice) = k8s::endpoint_slice(&slice, NODE_NAME, &mut problems) {
                    state.apply_slice(slice);
                }
            }
            Some("ServiceCIDR") => {
                let cidr = serde_norway::from_value(object).expect(fits);
                state.apply_service_cidr("kubernetes", k8s::service_cidrs(&cidr, &mut problems));
            }
            _ => {}
        }
    }
    assert_eq!(problems, []);
    state
}

/// Recorded protobuf with the keys in each `fieldsV1` in the order of their text.
///
/// A kube-apiserver sorts numbers among them as numbers; where they stand means nothing, and the
/// length stays the same.
///
/// # Panics
///
/// If a `fieldsV1` is no JSON.
pub fn with_sorted_fields(mut bytes: &[u8]) -> Vec<u8> {
    let start = b"{\"f:";
    let mut sorted = Vec::new();
    while let Some(i) = bytes.windows(start.len()).position(|part| part == start) {
        sorted.extend(&bytes[..i]);
        bytes = &bytes[i..];
        let mut values = serde_json::Deserializer::from_slice(bytes).into_iter::<Value>();
        let value = values.next().and_then(Result::ok);
        sorted.extend(value.expect("fieldsV1 is JSON").to_string().as_bytes());
        bytes = &bytes[values.byte_offset()..];
    }
    sorted.extend(bytes);
    sorted
}

/// The ruleset without what history may leave its mark on: chains that nothing needs, and which
/// slot an endpoint has.
pub fn canonical<F: Family>(ruleset: &FamilyRuleset<F>) -> FamilyRuleset<F> {
    let mut canonical = ruleset.clone();
    canonical.picks.clear();
    canonical.elements.clear();
    let is_used = |chain: &ChainName| {
        let leads_there = |element: &Element<F>| matches!(element.data(), Data::Verdict(verdict) if verdict.chain() == Some(*chain));
        !matches!(chain, ChainName::RememberFor(_)) || ruleset.elements.iter().any(leads_there)
    };
    canonical.skeleton.chains.retain(|chain, _| is_used(chain));
    let mut slots = BTreeMap::<_, Vec<_>>::new();
    for element in &ruleset.elements {
        match (element.key(), element.data(), SlotMap::of(element.set())) {
            (Key::Slot(destination, _), Data::Endpoint(endpoint), Some(map)) => {
                slots
                    .entry((map, *destination))
                    .or_default()
                    .push(*endpoint);
            }
            _ => drop(canonical.elements.insert(element.clone())),
        }
    }
    for ((map, destination), mut endpoints) in slots {
        endpoints.sort();
        let slots = (0..).zip(endpoints);
        canonical
            .elements
            .extend(slots.map(|(slot, endpoint)| Element::slot(map, destination, slot, endpoint)));
    }
    canonical
}
