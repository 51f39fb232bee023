//! Streaming lists, and servers that have none.

use integration::apiserver::{Resource, StreamingLists};
use serde_json::{Value, json};

use crate::cluster::{NODES, TIMEOUT, cluster_small, parse, summary};
use crate::http::{Next, Response, assert_status, get, watch};

const PATH: &str = "/api/v1/nodes";
const QUERY: &str =
    "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";

fn message(body: &Value) -> &str {
    body["message"].as_str().unwrap()
}

#[test]
fn servers_refuse_what_they_do_not_have() {
    let server = cluster_small();
    let ask = || get(&server, &format!("{PATH}?watch=true&{QUERY}"));
    server.set_streaming_lists(StreamingLists::SwitchedOff);
    let answer = ask();
    assert_status(&answer, 422, "Invalid");
    assert_eq!(
        message(&answer.1),
        "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: \
         sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"
    );
    server.set_streaming_lists(StreamingLists::Unknown);
    let answer = ask();
    assert_status(&answer, 422, "Invalid");
    assert_eq!(
        message(&answer.1),
        "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: \
         resourceVersionMatch is forbidden for watch"
    );
}

#[test]
fn a_server_that_ignores_the_parameter_never_ends_the_initial_events() {
    let server = cluster_small();
    server.set_streaming_lists(StreamingLists::Ignored);
    let mut watch = watch(&server, PATH, &format!("{QUERY}&timeoutSeconds=1"));
    for (name, version) in [("node-1", "82"), ("node-2", "84"), ("node-3", "86")] {
        assert_eq!(watch.event_summary(), summary("ADDED", name, version));
    }
    server.delete(Resource::Nodes, "", "node-1").unwrap();
    assert_eq!(watch.event_summary(), summary("DELETED", "node-1", "330"));
    // The bookmark at its end is an ordinary one.
    let last = watch.event();
    assert_eq!(last["type"], "BOOKMARK");
    assert_eq!(
        last["object"]["metadata"],
        json!({"resourceVersion": "330"})
    );
    assert_eq!(watch.next(), Next::End);
}

#[test]
fn options_that_contradict_themselves_are_invalid() {
    let server = cluster_small();
    server.set_streaming_lists(StreamingLists::Served);
    for (query, culprit) in [
        (
            "watch=true&sendInitialEvents=true",
            "sendInitialEvents requires setting",
        ),
        (
            "watch=true&sendInitialEvents=false",
            "sendInitialEvents requires setting",
        ),
        (
            "watch=true&resourceVersionMatch=NotOlderThan",
            "is forbidden for watch unless sendInitialEvents is provided",
        ),
        (
            "sendInitialEvents=true",
            "sendInitialEvents is forbidden for list",
        ),
        (
            "resourceVersionMatch=Exact",
            "is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersionMatch=Exact&resourceVersion=0",
            "is forbidden for resourceVersion \"0\"",
        ),
        (
            "resourceVersionMatch=Exact&resourceVersion=9&continue=x",
            "is forbidden when continue is provided",
        ),
        (
            "resourceVersionMatch=Best&resourceVersion=9",
            "Unsupported value: \"Best\"",
        ),
    ] {
        let answer = get(&server, &format!("{PATH}?{query}"));
        assert_status(&answer, 422, "Invalid");
        assert!(
            message(&answer.1).contains(culprit),
            "{query}: {}",
            answer.1
        );
    }
}

#[test]
fn initial_events_may_be_declined() {
    let server = cluster_small();
    server.set_streaming_lists(StreamingLists::Served);
    let query = "sendInitialEvents=false&resourceVersionMatch=NotOlderThan";
    let mut watch = watch(&server, PATH, query);
    assert!(server.wait_for_watches(1, TIMEOUT));
    server.delete(Resource::Nodes, "", "node-2").unwrap();
    assert_eq!(watch.event_summary(), summary("DELETED", "node-2", "330"));
}

#[test]
fn a_cache_that_is_not_ready_has_no_watches_and_no_old_lists() {
    let server = cluster_small();
    server.set_cache_ready(Resource::Nodes, false);
    for query in ["watch=true", "resourceVersion=0", "resourceVersion=329"] {
        let path = format!("{PATH}?{query}");
        let response = Response::send(server.addr(), "GET", &path);
        assert_eq!(response.header("retry-after"), "1", "{query}");
        let answer = (response.status, response.body());
        assert_status(&answer, 429, "TooManyRequests");
        assert_eq!(message(&answer.1), "storage is (re)initializing");
        assert_eq!(answer.1["details"], json!({"retryAfterSeconds": 1}));
    }
    assert_eq!(get(&server, PATH), (200, parse(NODES)));
    assert_eq!(get(&server, "/api/v1/services?resourceVersion=0").0, 200);
    server.set_cache_ready(Resource::Nodes, true);
    assert_eq!(get(&server, &format!("{PATH}?resourceVersion=0")).0, 200);
}
