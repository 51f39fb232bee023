//! Lists, watches and selectors as a real server has them.

use std::net::TcpStream;
use std::time::Duration;

use integration::apiserver::{ApiServer, Resource, StreamingLists};
use serde_json::{Value, json};

use crate::cluster::*;
use crate::http::{Next, Response, assert_status, get, watch};

#[test]
fn lists_are_as_recorded() {
    let server = cluster_small();
    for (path, recorded) in [
        (PATH_OF_SERVICES, SERVICES),
        (PATH_OF_SLICES, SLICES),
        ("/api/v1/nodes", NODES),
        ("/apis/networking.k8s.io/v1/servicecidrs", SERVICE_CIDRS),
    ] {
        assert_eq!(get(&server, path), (200, parse(recorded)));
        let any = format!("{path}?resourceVersion=0&limit=1");
        assert_eq!(get(&server, &any), (200, parse(recorded)));
    }
}

#[test]
fn watches_are_as_recorded() {
    let server = cluster_small();
    let early = |path| {
        watch(
            &server,
            path,
            "resourceVersion=329&allowWatchBookmarks=true",
        )
    };
    let mut services = early(PATH_OF_SERVICES);
    let mut slices = early(PATH_OF_SLICES);
    assert!(server.wait_for_watches(2, TIMEOUT));
    server.replay(Resource::Services, WATCH_SERVICES).unwrap();
    server
        .replay(Resource::EndpointSlices, WATCH_SLICES)
        .unwrap();
    for line in WATCH_SERVICES.lines() {
        assert_eq!(services.event(), parse(line));
    }
    for line in WATCH_SLICES.lines() {
        assert_eq!(slices.event(), parse(line));
    }

    // Resumed in the middle, the rest comes from history.
    let mut late = watch(&server, PATH_OF_SERVICES, "resourceVersion=345");
    assert_eq!(late.event_summary(), summary("DELETED", "redis", "349"));
    assert_eq!(late.event_summary(), summary("ADDED", "redis", "352"));
}

#[test]
fn pages_show_one_snapshot_until_it_expires() {
    let server = cluster_small();
    let recorded = parse(SERVICES);
    let mut path = format!("{PATH_OF_SERVICES}?limit=7");
    let mut items = Vec::new();
    let mut remaining = Vec::new();
    loop {
        let (status, page) = get(&server, &path);
        assert_eq!(status, 200);
        assert_eq!(page["metadata"]["resourceVersion"], "329");
        items.extend(page["items"].as_array().unwrap().clone());
        remaining.push(page["metadata"]["remainingItemCount"].as_u64());
        let Some(token) = page["metadata"]["continue"].as_str() else {
            break;
        };
        path = format!("{PATH_OF_SERVICES}?limit=7&continue={token}");
        // The later pages must not show what happens meanwhile.
        let late = format!("late-{}", remaining.len());
        server
            .upsert(service(&late, "10.96.0.99", json!({})))
            .unwrap();
        if remaining.len() == 1 {
            server
                .delete(Resource::Services, "shop", "payments")
                .unwrap();
        }
    }
    assert_eq!(remaining, [Some(10), Some(3), None]);
    assert_eq!(Value::from(items), recorded["items"]);

    let exact = format!("{PATH_OF_SERVICES}?resourceVersion=329&resourceVersionMatch=Exact");
    assert_eq!(get(&server, &exact), (200, recorded));
    server.compact();
    assert_status(&get(&server, &path), 410, "Expired");
    assert_status(&get(&server, &exact), 410, "Expired");
    // A list which only must not be older is still possible.
    let (status, list) = get(&server, &format!("{PATH_OF_SERVICES}?resourceVersion=329"));
    assert_eq!(status, 200);
    assert_eq!(names(&list).len(), 18);
}

#[test]
fn pages_stop_at_the_limit_even_when_the_rest_does_not_match() {
    let server = ApiServer::start().unwrap();
    for (name, labels) in [("a", json!({"x": "1"})), ("b", json!({}))] {
        server.upsert(service(name, "10.96.0.1", labels)).unwrap();
    }
    let path = format!("{PATH_OF_SERVICES}?labelSelector=x&limit=1");
    let (_, page) = get(&server, &path);
    assert_eq!(names(&page), ["a"]);
    assert_eq!(page["metadata"]["remainingItemCount"], Value::Null);
    let token = page["metadata"]["continue"].as_str().unwrap();
    let (_, page) = get(&server, &format!("{path}&continue={token}"));
    assert_eq!(names(&page), [""; 0]);
    assert_eq!(page["metadata"], json!({"resourceVersion": "3"}));
}

#[test]
fn selectors_choose_objects() {
    let server = ApiServer::start().unwrap();
    for object in [
        service("plain", "10.96.0.1", json!({})),
        service("headless", "None", json!({"app": "db"})),
        service(
            "other",
            "fd00::1",
            json!({"app": "web", "example.com/name": "x"}),
        ),
    ] {
        server.upsert(object).unwrap();
    }
    let cases = [
        ("", &["headless", "other", "plain"][..]),
        ("labelSelector=", &["headless", "other", "plain"]),
        ("labelSelector=app", &["headless", "other"]),
        ("labelSelector=!app", &["plain"]),
        (
            "labelSelector=%21example.com%2Fname",
            &["headless", "plain"],
        ),
        ("labelSelector=app%3Ddb", &["headless"]),
        ("labelSelector=app%3D%3Dweb", &["other"]),
        ("labelSelector=app!%3Ddb", &["other", "plain"]),
        ("labelSelector=app,app!%3Ddb", &["other"]),
        ("fieldSelector=spec.clusterIP!%3DNone", &["other", "plain"]),
        ("fieldSelector=spec.clusterIP%3Dfd00::1", &["other"]),
        (
            "fieldSelector=spec.type%3D",
            &["headless", "other", "plain"],
        ),
        ("fieldSelector=metadata.name%3Dplain", &["plain"]),
        ("fieldSelector=metadata.namespace%3Delsewhere", &[]),
        (
            "labelSelector=app&fieldSelector=spec.clusterIP!%3DNone",
            &["other"],
        ),
    ];
    for (query, expected) in cases {
        let (_, list) = get(&server, &format!("{PATH_OF_SERVICES}?{query}"));
        assert_eq!(names(&list), expected, "{query}");
    }
    for query in [
        "labelSelector=app%20in%20(db,web)",
        "labelSelector=,",
        "fieldSelector=status.phase%3DRunning",
        "fieldSelector=metadata.name",
        "limit=many",
    ] {
        let answer = get(&server, &format!("{PATH_OF_SERVICES}?{query}"));
        assert_status(&answer, 400, "BadRequest");
    }
}

#[test]
fn namespaces_and_names_are_in_the_path() {
    let server = cluster_small();
    let (_, list) = get(&server, "/api/v1/namespaces/edge/services");
    assert_eq!(names(&list), ["proxy-mode-lb", "third-party", "v6only"]);
    let (_, page) = get(&server, "/api/v1/namespaces/edge/services?limit=2");
    assert_eq!(page["metadata"]["remainingItemCount"], 1);
    let (status, node) = get(&server, "/api/v1/nodes/node-2");
    assert_eq!((status, &node["kind"]), (200, &json!("Node")));
    let (status, slice) = get(
        &server,
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
    );
    assert_eq!((status, &slice["kind"]), (200, &json!("EndpointSlice")));
    let (status, version) = get(&server, "/version");
    assert_eq!((status, &version["major"]), (200, &json!("1")));

    for path in [
        "/",
        "/api/v1/pods",
        "/api/v1/services/kubernetes",
        "/api/v1/namespaces/default/nodes",
        "/apis/networking.k8s.io/v1/services",
        "/api/v1/nodes/node-9",
    ] {
        assert_status(&get(&server, path), 404, "NotFound");
    }
    let response = Response::send(server.addr(), "DELETE", "/api/v1/nodes/node-1");
    assert_status(&(405, response.body()), 405, "MethodNotAllowed");
}

#[test]
fn an_object_enters_and_leaves_a_filtered_watch() {
    let server = ApiServer::start().unwrap();
    let mut watch = watch(
        &server,
        PATH_OF_SERVICES,
        "resourceVersion=1&labelSelector=!hidden&fieldSelector=spec.clusterIP!%3DNone",
    );
    assert!(server.wait_for_watches(1, TIMEOUT));
    let web = |ip, labels| server.upsert(service("web", ip, labels)).unwrap();
    web("10.96.0.1", json!({}));
    web("10.96.0.2", json!({}));
    web("10.96.0.2", json!({"hidden": ""}));
    web("10.96.0.3", json!({"hidden": ""}));
    web("10.96.0.4", json!({}));
    web("None", json!({}));
    server.delete(Resource::Services, "shop", "web").unwrap();
    web("10.96.0.5", json!({}));
    server.delete(Resource::Services, "shop", "web").unwrap();

    assert_eq!(watch.event_summary(), summary("ADDED", "web", "2"));
    assert_eq!(watch.event_summary(), summary("MODIFIED", "web", "3"));
    let hidden = watch.event();
    assert_eq!(hidden["type"], "DELETED");
    // The last state the client was allowed to see, with the version of the change.
    assert_eq!(hidden["object"]["metadata"]["labels"], json!({}));
    assert_eq!(hidden["object"]["metadata"]["resourceVersion"], "4");
    assert_eq!(watch.event_summary(), summary("ADDED", "web", "6"));
    assert_eq!(watch.event_summary(), summary("DELETED", "web", "7"));
    assert_eq!(watch.event_summary(), summary("ADDED", "web", "9"));
    assert_eq!(watch.event_summary(), summary("DELETED", "web", "10"));
}

#[test]
fn a_watch_without_a_version_starts_with_the_objects() {
    let server = cluster_small();
    for query in ["", "resourceVersion=0"] {
        let mut nodes = watch(&server, "/api/v1/nodes", query);
        assert_eq!(nodes.event_summary(), summary("ADDED", "node-1", "82"));
        assert_eq!(nodes.event_summary(), summary("ADDED", "node-2", "84"));
        assert_eq!(nodes.event_summary(), summary("ADDED", "node-3", "86"));
    }
}

#[test]
fn bookmarks_go_to_those_who_asked() {
    let server = cluster_small();
    let from = "resourceVersion=329";
    let bookmarked = &format!("{from}&allowWatchBookmarks=true&timeoutSeconds=2");
    let mut with = watch(&server, PATH_OF_SLICES, bookmarked);
    let mut without = watch(&server, PATH_OF_SLICES, &format!("{from}&timeoutSeconds=2"));
    assert!(server.wait_for_watches(2, TIMEOUT));
    server.bookmark();
    assert_eq!(with.event_summary(), summary("BOOKMARK", "", "329"));
    // The timeout brings another one, and a proper end.
    assert_eq!(with.event_summary(), summary("BOOKMARK", "", "329"));
    assert_eq!(with.next(), Next::End);
    assert_eq!(without.next(), Next::End);
    assert_eq!(server.open_watches(), 0);
}

#[test]
fn streaming_lists_are_refused_unless_switched_on() {
    let server = cluster_small();
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let path = format!("/api/v1/nodes?watch=true&{query}");
    assert_eq!(get(&server, &path), (200, parse(WATCH_LIST_UNSUPPORTED)));

    server.set_streaming_lists(StreamingLists::Served);
    let mut nodes = watch(&server, "/api/v1/nodes", query);
    assert_eq!(nodes.event_summary(), summary("ADDED", "node-1", "82"));
    assert_eq!(nodes.event_summary(), summary("ADDED", "node-2", "84"));
    assert_eq!(nodes.event_summary(), summary("ADDED", "node-3", "86"));
    let end = nodes.event();
    assert_eq!(end["type"], "BOOKMARK");
    assert_eq!(
        end["object"]["metadata"],
        json!({
            "resourceVersion": "329",
            "annotations": {"k8s.io/initial-events-end": "true"},
        })
    );
    server.delete(Resource::Nodes, "", "node-1").unwrap();
    assert_eq!(nodes.event_summary(), summary("DELETED", "node-1", "330"));

    let unmatched = "/api/v1/nodes?watch=true&sendInitialEvents=true";
    assert_status(&get(&server, unmatched), 422, "Invalid");
}

#[test]
fn a_watch_from_before_a_compaction_has_expired() {
    let server = cluster_small();
    let mut open = watch(&server, "/api/v1/nodes", "resourceVersion=329");
    assert!(server.wait_for_watches(1, TIMEOUT));
    server.compact();
    let path = "/api/v1/nodes?watch=true&resourceVersion=329";
    let (status, event) = get(&server, path);
    assert_eq!((status, &event["type"]), (200, &json!("ERROR")));
    assert_status(&(410, event["object"].clone()), 410, "Expired");
    server.set_expired_watch_is_http_error(true);
    assert_status(&get(&server, path), 410, "Expired");

    // A new list is followed by a watch as ever, and the open one goes on.
    let (_, list) = get(&server, "/api/v1/nodes");
    assert_eq!(list["metadata"]["resourceVersion"], "330");
    let mut new = watch(&server, "/api/v1/nodes", "resourceVersion=330");
    server.delete(Resource::Nodes, "", "node-3").unwrap();
    for watch in [&mut open, &mut new] {
        assert_eq!(watch.event_summary(), summary("DELETED", "node-3", "331"));
    }
}

#[test]
fn misfortunes_happen_on_demand() {
    let server = cluster_small();
    let mut cut = watch(&server, "/api/v1/nodes", "resourceVersion=329");
    assert!(server.wait_for_watches(1, TIMEOUT));
    server.disconnect_watches();
    assert_eq!(server.open_watches(), 0);
    assert!(!server.wait_for_watches(1, Duration::from_millis(10)));
    assert_eq!(cut.next(), Next::Cut);

    server.refuse(true);
    for path in ["/version", "/api/v1/nodes", "/api/v1/nodes?watch=true"] {
        assert_status(&get(&server, path), 503, "ServiceUnavailable");
    }
    server.refuse(false);
    assert_eq!(get(&server, "/api/v1/nodes?labelSelector=!a%2Fb").0, 200);
    let requests = server.requests();
    assert_eq!(requests.len(), 5);
    assert_eq!(requests[4].method, "GET");
    assert_eq!(requests[4].path, "/api/v1/nodes");
    assert_eq!(requests[4].query["labelSelector"], "!a/b");

    // A client which goes away no longer counts.
    drop(watch(&server, "/api/v1/nodes", ""));
    wait_until("the watch to be gone", || server.open_watches() == 0);

    let mut open = watch(&server, "/api/v1/nodes", "resourceVersion=329");
    let addr = server.addr();
    drop(server);
    assert_eq!(open.next(), Next::Cut);
    assert!(TcpStream::connect(addr).is_err());
}

#[test]
fn bad_input_is_an_error_and_changes_nothing() {
    let server = cluster_small();
    assert!(server.load_list(Resource::Nodes, "{}").is_err());
    assert!(server.upsert(json!({"metadata": {"name": "x"}})).is_err());
    assert!(server.upsert(json!({"kind": "Node"})).is_err());
    assert!(server.delete(Resource::Nodes, "", "node-9").is_err());
    assert!(server.replay(Resource::Nodes, "{}").is_err());
    assert_eq!(get(&server, "/api/v1/nodes"), (200, parse(NODES)));
}
