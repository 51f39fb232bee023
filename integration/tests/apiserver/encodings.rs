//! Protobuf and JSON over HTTP, byte for byte what a real server sent.

use integration::apiserver::{
    ApiServer, Encoding, Encodings, Fault, Resource, Rule, Status, StreamingLists,
};
use integration::fixtures::{path, read, with_sorted_fields};
use serde_json::{Value, json};

use crate::cluster::{PATH_OF_SERVICES, TIMEOUT, cluster_small, names, parse, service};
use crate::http::{Next, Response};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
const BOTH: &str = "application/vnd.kubernetes.protobuf, application/json";
const STREAMING_LIST: &str = "watch=true&sendInitialEvents=true\
                              &resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

/// Resource, path, name of the recording, and the resourceVersion of the recorded list.
const RECORDED: [(Resource, &str, &str, &str); 4] = [
    (Resource::Services, "/api/v1/services", "services", "140"),
    (
        Resource::EndpointSlices,
        "/apis/discovery.k8s.io/v1/endpointslices",
        "endpointslices",
        "130",
    ),
    (Resource::Nodes, "/api/v1/nodes", "nodes", "136"),
    (
        Resource::ServiceCidrs,
        "/apis/networking.k8s.io/v1/servicecidrs",
        "servicecidrs",
        "65",
    ),
];

fn recorded(file: &str) -> Vec<u8> {
    std::fs::read(path(file)).unwrap()
}

/// The events of a recorded streaming list up to its bookmark, and those after it.
fn recorded_events(name: &str) -> (Vec<Value>, Vec<String>) {
    let stream = read(&format!("watchlist-{name}.jsonl"));
    let mut lines = stream.lines();
    let initial = lines
        .by_ref()
        .map(parse)
        .take_while(|event| event["type"] == "ADDED")
        .collect();
    (initial, lines.map(str::to_owned).collect())
}

fn load(server: &ApiServer, resource: Resource, initial: &[Value], version: &str) {
    let items: Vec<_> = initial.iter().map(|event| &event["object"]).collect();
    let list = json!({"metadata": {"resourceVersion": version}, "items": items});
    server.load_list(resource, &list.to_string()).unwrap();
}

fn get(server: &ApiServer, path: &str, accept: &str) -> Response {
    Response::send_with(server.addr(), "GET", path, &[("Accept", accept)])
}

#[test]
fn lists_in_protobuf_are_as_recorded() {
    let server = ApiServer::start().unwrap();
    for (resource, path, name, version) in RECORDED {
        load(&server, resource, &recorded_events(name).0, version);
        let response = get(&server, path, BOTH);
        assert_eq!(response.status, 200);
        assert_eq!(response.header("content-type"), PROTOBUF);
        let (body, end) = response.bytes();
        assert_eq!(end, Next::End);
        let expected = with_sorted_fields(&recorded(&format!("list-{name}.pb")));
        assert!(body == expected, "{name}");
        assert_eq!(server.counters(resource).body_bytes, body.len() as u64);
    }
}

#[test]
fn streaming_lists_in_protobuf_are_as_recorded() {
    let server = ApiServer::start().unwrap();
    server.set_streaming_lists(StreamingLists::Served);
    for (resource, path, name, _) in RECORDED {
        let (initial, changes) = recorded_events(name);
        load(&server, resource, &initial, "140");
        let mut response = get(&server, &format!("{path}?{STREAMING_LIST}"), BOTH);
        assert_eq!(response.status, 200);
        assert_eq!(
            response.header("content-type"),
            "application/vnd.kubernetes.protobuf;stream=watch"
        );
        server.replay(resource, &changes.join("\n")).unwrap();
        let expected = with_sorted_fields(&recorded(&format!("watchlist-{name}.pb")));
        let mut body = Vec::new();
        while body.len() < expected.len() {
            body.append(&mut response.chunk().unwrap());
        }
        assert!(body == expected, "{name}");
    }
}

#[test]
fn what_was_agreed_on_is_recorded() {
    let server = cluster_small();
    let both = get(&server, PATH_OF_SERVICES, BOTH);
    assert_eq!(both.header("content-type"), PROTOBUF);
    let json = Response::send_with(
        server.addr(),
        "GET",
        PATH_OF_SERVICES,
        &[
            ("Accept", "application/json"),
            ("X-Who", "a"),
            ("X-Who", "b"),
        ],
    );
    assert_eq!(json.header("content-type"), "application/json");
    let table = get(
        &server,
        PATH_OF_SERVICES,
        "application/json;as=Table;v=v1;g=meta.k8s.io",
    );
    assert_eq!(table.status, 406);
    assert_eq!(table.body()["reason"], "NotAcceptable");

    let requests = server.requests();
    let encodings: Vec<_> = requests.iter().map(|request| request.encoding).collect();
    assert_eq!(
        encodings,
        [Some(Encoding::Protobuf), Some(Encoding::Json), None]
    );
    let statuses: Vec<_> = requests.iter().map(|request| request.status).collect();
    assert_eq!(statuses, [Some(200), Some(200), Some(406)]);
    assert_eq!(requests[1].headers["x-who"], "a, b");
    assert_eq!(requests[1].headers["accept"], "application/json");
    assert_eq!(requests[1].http_version, "1.1");
    assert_eq!(requests[1].client_certificate, None);
}

#[test]
fn a_server_may_lack_protobuf() {
    let server = cluster_small();
    server.set_encodings(Encodings::Json);
    assert_eq!(get(&server, PATH_OF_SERVICES, PROTOBUF).status, 406);
    let list = get(&server, PATH_OF_SERVICES, BOTH).body();
    assert_eq!(names(&list).len(), 17);

    server.set_encodings(Encodings::JsonRegardless);
    let response = get(&server, PATH_OF_SERVICES, PROTOBUF);
    assert_eq!(response.header("content-type"), "application/json");
    assert_eq!(response.body(), list);
}

#[test]
fn errors_come_in_the_encoding_agreed_on() {
    let server = cluster_small();
    server.inject(Rule::new(Fault::Refuse(Status::of(429).retry_after(7))).times(1));
    let response = get(&server, PATH_OF_SERVICES, BOTH);
    assert_eq!(response.status, 429);
    assert_eq!(response.header("content-type"), PROTOBUF);
    assert_eq!(response.header("retry-after"), "7");
    let (body, _) = response.bytes();
    let mut expected = b"k8s\0\x0a\x0c\x0a\x02v1\x12\x06Status\x12".to_vec();
    assert_eq!(body[..expected.len()], expected);
    // Metadata of three empty texts, and the status.
    expected = b"\x0a\x06\x0a\0\x12\0\x1a\0\x12\x07Failure\x1a\x2aToo many requests".to_vec();
    assert!(body.windows(expected.len()).any(|part| part == expected));
    // Details with nothing but the pause, then the code.
    expected = b"\x2a\x0a\x0a\0\x12\0\x1a\0\x28\x07\x32\0\x30\xad\x03\x1a\0\x22\0".to_vec();
    assert!(body.ends_with(&expected));
}

#[test]
fn what_protobuf_cannot_say_is_an_error_that_names_it() {
    let server = ApiServer::start().unwrap();
    let mut odd = service("odd", "10.96.0.1", json!({}));
    odd["spec"]["novelty"] = json!(1);
    let mut watch = get(&server, &format!("{PATH_OF_SERVICES}?watch=1"), PROTOBUF);
    assert!(server.wait_for_watches(1, TIMEOUT));
    server.upsert(odd).unwrap();
    let message = b"encoding a Service: spec: no field novelty is known";
    let frame = watch.chunk().unwrap();
    assert!(frame.windows(message.len()).any(|part| part == message));
    assert!(watch.chunk().unwrap().is_empty());
    let list = get(&server, PATH_OF_SERVICES, PROTOBUF);
    assert_eq!(list.status, 500);
    let message = b"encoding a ServiceList: item \"odd\": spec: no field novelty is known";
    let (body, _) = list.bytes();
    assert!(body.windows(message.len()).any(|part| part == message));
    assert_eq!(names(&get(&server, PATH_OF_SERVICES, "").body()), ["odd"]);
}

#[test]
fn large_lists_are_compressed_for_those_who_read_it() {
    let server = ApiServer::start().unwrap();
    server.set_compression(true);
    let ask = || {
        let headers = [("Accept-Encoding", "gzip"), ("Accept", "application/json")];
        Response::send_with(server.addr(), "GET", PATH_OF_SERVICES, &headers)
    };
    let mut i = 0;
    let mut add = |n| {
        for _ in 0..n {
            i += 1;
            let name = format!("{i:04}");
            server
                .upsert(service(&name, "10.96.0.1", json!({})))
                .unwrap();
        }
    };
    add(10);
    assert_eq!(ask().header("content-encoding"), "");
    add(1500);
    let plain = get(&server, PATH_OF_SERVICES, "application/json");
    assert_eq!(plain.header("content-encoding"), "");
    let plain = plain.bytes().0;
    assert!(plain.len() > 128 << 10);
    let response = ask();
    assert_eq!(response.header("content-encoding"), "gzip");
    let compressed = response.bytes().0;
    assert!(compressed.len() < plain.len() / 2);
    let mut decoder = flate2::read::GzDecoder::new(&compressed[..]);
    let mut body = Vec::new();
    std::io::Read::read_to_end(&mut decoder, &mut body).unwrap();
    assert!(body == plain);

    server.set_compression(false);
    assert_eq!(ask().header("content-encoding"), "");
}
