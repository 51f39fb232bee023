//! Both encodings against what `k8s-openapi` reads, on recordings of a real server.

use std::fmt::Debug;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use nftproxy_core::k8s;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::*;

macro_rules! recorded {
    ($name:literal) => {
        include_bytes!(concat!(
            "../../../../../integration/fixtures/cluster-small/",
            $name
        ))
    };
}

/// The frames of a streaming list in protobuf.
fn protobuf_frames(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk::<4>() {
        let (frame, rest) = rest.split_at(u32::from_be_bytes(*length) as usize);
        frames.push(frame);
        stream = rest;
    }
    frames
}

fn lines(stream: &[u8]) -> Vec<&[u8]> {
    stream
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .collect()
}

/// What an event means, in the model's terms.
fn meaning<K: Object, M: Debug>(event: WatchEvent<K>, convert: &impl Fn(&K) -> M) -> String {
    let name = |object: &K| object.metadata().name.clone().unwrap();
    match event {
        WatchEvent::Applied(Item::Good(object)) => {
            format!("applied {} {:?}", name(&object), convert(&object))
        }
        WatchEvent::Applied(Item::Bad(object, error)) => {
            panic!("{}: {error}", name(&object))
        }
        WatchEvent::Deleted(object) => format!("deleted {}", name(&object)),
        WatchEvent::Bookmark { ends_list, version } => {
            assert!(!version.is_empty());
            format!("bookmark {ends_list}")
        }
        other => panic!("{:?}", std::mem::discriminant(&other)),
    }
}

/// What `k8s-openapi` reads of an event in JSON.
fn expected<K: DeserializeOwned, M: Debug>(line: &[u8], convert: &impl Fn(&K) -> M) -> String {
    let event: Json = serde_json::from_slice(line).unwrap();
    let metadata = &event["object"]["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    match event["type"].as_str().unwrap() {
        "ADDED" | "MODIFIED" => {
            let object: K = serde_json::from_value(event["object"].clone()).unwrap();
            format!("applied {name} {:?}", convert(&object))
        }
        "DELETED" => format!("deleted {name}"),
        "BOOKMARK" => format!(
            "bookmark {}",
            metadata["annotations"]["k8s.io/initial-events-end"] == "true"
        ),
        other => panic!("{other}"),
    }
}

fn check<K: Object + DeserializeOwned, M: Debug>(
    jsonl: &[u8],
    protobuf: &[u8],
    convert: impl Fn(&K) -> M,
) {
    let jsonl = lines(jsonl);
    let protobuf = protobuf_frames(protobuf);
    assert!(jsonl.len() > 1);
    assert_eq!(jsonl.len(), protobuf.len());
    for (line, frame) in jsonl.into_iter().zip(protobuf) {
        let expected = expected(line, &convert);
        let json = WatchEvent::decode(Encoding::Json, line).unwrap();
        assert_eq!(meaning(json, &convert), expected);
        let event = WatchEvent::decode(Encoding::Protobuf, frame).unwrap();
        assert_eq!(meaning(event, &convert), expected);
    }
}

/// A Service in the model's terms, with when it was created left out: the two streams were
/// recorded from two clusters.
fn service(object: &Service) -> impl Debug + use<> {
    let mut problems = Vec::new();
    let mut service = k8s::service(object, &mut problems);
    if let Some(service) = &mut service {
        assert!(service.created > 1_700_000_000, "{}", service.created);
        service.created = 0;
    }
    (service, problems)
}

#[test]
fn both_encodings_mean_what_whole_objects_mean() {
    check(
        recorded!("watchlist-services.jsonl"),
        recorded!("watchlist-services.pb"),
        service,
    );
    check(
        recorded!("watchlist-endpointslices.jsonl"),
        recorded!("watchlist-endpointslices.pb"),
        |slice: &EndpointSlice| {
            let mut problems = Vec::new();
            (
                k8s::endpoint_slice(slice, "node-1", &mut problems),
                problems,
            )
        },
    );
    check(
        recorded!("watchlist-servicecidrs.jsonl"),
        recorded!("watchlist-servicecidrs.pb"),
        |object: &ServiceCIDR| k8s::service_cidrs(object, &mut Vec::new()),
    );
    check(
        recorded!("watchlist-nodes.jsonl"),
        recorded!("watchlist-nodes.pb"),
        |node| k8s::node_info(node, &mut Vec::new()),
    );
}

/// The recordings have no annotations of ours.
#[test]
fn annotations_of_ours_are_read_in_both_encodings() {
    let (method, weights) = ("maglev", "10.244.1.5=3, fd00::5=0");
    let json = format!(
        r#"{{"metadata": {{"name": "web", "namespace": "a", "annotations": {{
            "nftproxy.io/balancing": "{method}", "other": "x", "nftproxy.io/weights": "{weights}"
        }}}}, "spec": {{"clusterIP": "10.96.0.1"}}}}"#
    );
    let field =
        |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8], content].concat();
    let annotation = |key: &str, value: &str| {
        let entry = [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
        field(12, &entry)
    };
    let metadata = [
        field(1, b"web"),
        field(3, b"a"),
        annotation("nftproxy.io/weights", weights),
        annotation("other", "x"),
        annotation("nftproxy.io/balancing", method),
    ]
    .concat();
    // Lengths below 128 are one byte.
    assert!(metadata.len() < 128);
    let protobuf = [field(1, &metadata), field(2, &field(3, b"10.96.0.1"))].concat();

    let whole: Service = serde_json::from_str(&json).unwrap();
    let expected = k8s::service(&whole, &mut Vec::new()).unwrap();
    assert!(expected.balancing.is_some());
    for (encoding, bytes) in [
        (Encoding::Json, json.as_bytes()),
        (Encoding::Protobuf, &protobuf[..]),
    ] {
        let object = Service::decode(encoding, bytes).unwrap();
        assert_eq!(object.metadata.annotations.as_ref().unwrap().len(), 2);
        let mut problems = Vec::new();
        assert_eq!(
            k8s::service(&object, &mut problems).as_ref(),
            Some(&expected)
        );
        assert!(problems.is_empty());
    }
}

/// Nothing that a server, or a wire, may do to an object ends in a panic.
#[test]
fn damaged_frames_are_errors() {
    for frame in protobuf_frames(recorded!("watchlist-services.pb")) {
        for end in 0..frame.len() {
            let _ = WatchEvent::<Service>::decode(Encoding::Protobuf, &frame[..end]);
            let mut damaged = frame.to_vec();
            damaged[end] ^= 0x55;
            let _ = WatchEvent::<Service>::decode(Encoding::Protobuf, &damaged);
        }
    }
    for line in lines(recorded!("watchlist-services.jsonl")).iter().take(3) {
        for end in 0..line.len() {
            assert!(WatchEvent::<Service>::decode(Encoding::Json, &line[..end]).is_err());
        }
    }
}

#[test]
fn an_object_that_cannot_be_read_keeps_its_name() {
    let json = br#"{"metadata": {"name": "web", "namespace": "a"}, "spec": {"ports": "x"}}"#;
    let item = Item::<Service>::decode(Encoding::Json, json).unwrap();
    let Item::Bad(object, error) = item else {
        panic!()
    };
    assert_eq!(object.metadata.name.as_deref(), Some("web"));
    assert!(error.to_string().contains("x"), "{error}");
    assert!(Item::<Service>::decode(Encoding::Json, b"{\"metadata\": 3}").is_err());
}

#[test]
fn null_and_unknown_fields_do_no_harm() {
    let json = br#"{"kind": "EndpointSlice", "metadata": {"name": "a", "labels": null,
        "annotations": null, "creationTimestamp": null}, "endpoints": null, "ports": null,
        "addressType": "IPv4", "later": [{"x": 1}]}"#;
    let slice = EndpointSlice::decode(Encoding::Json, json).unwrap();
    assert_eq!(slice.metadata.name.as_deref(), Some("a"));
    let json = br#"{"metadata": {}, "spec": {"ports": [{"port": 80, "targetPort": "http"}],
        "sessionAffinityConfig": {"clientIP": null}}, "status": {"loadBalancer": {}}}"#;
    let service = Service::decode(Encoding::Json, json).unwrap();
    assert_eq!(service.spec.unwrap().ports.unwrap()[0].port, 80);
}

#[test]
fn errors_are_read_in_both_encodings() {
    let line = lines(recorded!("watch-list-unsupported.jsonl"))[0];
    let WatchEvent::<Service>::Error(status) = WatchEvent::decode(Encoding::Json, line).unwrap()
    else {
        panic!()
    };
    assert_eq!(
        (status.code, status.reason.as_str()),
        (500, "InternalError")
    );

    // message, reason, details with retryAfterSeconds, code
    let status = b"\x1a\x02no\x22\x07Expired\x2a\x02\x28\x03\x30\x9a\x03";
    let unknown = [b"k8s\0\x12", &[status.len() as u8][..], status].concat();
    let raw = [&[0x0a, unknown.len() as u8][..], &unknown].concat();
    let event = [b"\x0a\x05ERROR\x12", &[raw.len() as u8][..], &raw].concat();
    let event = WatchEvent::<Service>::decode(Encoding::Protobuf, &event).unwrap();
    let WatchEvent::Error(status) = event else {
        panic!()
    };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    assert_eq!(status.retry_after, Some(std::time::Duration::from_secs(3)));
}
