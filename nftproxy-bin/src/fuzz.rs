//! The ways in for what others write, for fuzzing only (`cfg(fuzzing)`; see `fuzz/`).
//!
//! What objects come to goes the whole way to rules, in both families.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use nftproxy_core::compile::compile;
use nftproxy_core::engine;
use nftproxy_core::listing;
use nftproxy_core::model::{Family, Node, State};
use nftproxy_core::render;
use nftproxy_core::ruleset::{FamilyRuleset, Table};

use crate::config;
use crate::source::Event;
use crate::source::api::Object as ApiObject;
use crate::source::api::fuzz::{list, watch};
use crate::source::convert::{Convert, Nodes, Objects, ServiceCidrs, Services, Slices};
use crate::source::files::Converter;
use crate::source::manifests::{Change, Object, objects_in};

pub use crate::source::api::Encoding;

/// The node that some objects of the corpus are about.
const NODE_NAME: &str = "node-1";

/// Reads a manifest, or a recorded list.
pub fn manifest(bytes: &[u8]) {
    let mut converter = Converter::new(NODE_NAME, true);
    let objects = objects_in(bytes);
    to_rules(objects.iter().filter_map(|object| {
        let object = Object::clone(object);
        converter.event(Change::Apply(object))
    }));
}

/// Reads a configuration file.
pub fn configuration(bytes: &[u8]) {
    if let Ok(text) = str::from_utf8(bytes) {
        config::read_text(text);
    }
}

/// Reads the body of a list or of a watch. The first byte chooses the kind of object, and whether
/// it is a list; the second in how large pieces the body comes.
pub fn body(encoding: Encoding, bytes: &[u8]) {
    let Some(([choice, size], body)) = bytes.split_first_chunk() else {
        return;
    };
    let size = usize::from(*size) * 16 + 1;
    let is_list = choice & 4 != 0;
    let services = Services {
        allow_external_ips: true,
    };
    let slices = Slices {
        node_name: NODE_NAME.to_owned(),
        places: None,
    };
    match choice & 3 {
        0 => body_of::<core::Service, _>(encoding, is_list, body, size, services),
        1 => body_of::<EndpointSlice, _>(encoding, is_list, body, size, slices),
        2 => body_of::<core::Node, _>(encoding, is_list, body, size, Nodes),
        _ => body_of::<ServiceCIDR, _>(encoding, is_list, body, size, ServiceCidrs),
    }
}

fn body_of<K: ApiObject, C: Convert<K>>(
    encoding: Encoding,
    is_list: bool,
    body: &[u8],
    size: usize,
    convert: C,
) {
    let read = if is_list { list } else { watch };
    let mut converted = Objects::new(convert);
    let objects: Vec<K> = read(encoding, body, size);
    to_rules(
        objects
            .iter()
            .filter_map(|object| converted.applied(object)),
    );
}

/// Compiles what events amount to. The rules as text can be read again, and are the same then.
fn to_rules(events: impl Iterator<Item = Event>) {
    let mut state = State::default();
    let mut events = events.peekable();
    if events.peek().is_none() {
        return;
    }
    for event in events {
        match event {
            Event::Cluster(engine::Event::ServiceApplied(service)) => state.apply_service(service),
            Event::Cluster(engine::Event::ServiceCidrApplied(name, cidrs)) => {
                state.apply_service_cidr(&name, cidrs);
            }
            Event::SliceApplied { slice, .. } => state.apply_slice(slice),
            _ => {}
        }
    }
    let compiled = compile(&state, &Node::default());
    check(&compiled.v4, |listing| {
        listing.v4.map(|found| found.ruleset)
    });
    check(&compiled.v6, |listing| {
        listing.v6.map(|found| found.ruleset)
    });
    for note in compiled.notes {
        let _ = note.to_string();
    }
}

fn check<F: Family>(
    ruleset: &FamilyRuleset<F>,
    take: impl Fn(listing::Listing) -> Option<FamilyRuleset<F>>,
) {
    let listing = listing::read(&render::listing(ruleset), &Table::default());
    assert_eq!(listing.unread, []);
    let found = take(listing).expect("there is a table");
    assert_eq!(found.elements, ruleset.elements);
}
