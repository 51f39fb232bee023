//! How lists are asked for, of servers that take one way and not another.

use std::sync::atomic::{AtomicBool, Ordering};

use integration::netns::in_sandbox;
use serde_json::json;

use super::scripted::{Answer, Request, Scripted, node, start};

fn service(name: &str, version: &str) -> serde_json::Value {
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"namespace": "a", "name": name, "resourceVersion": version},
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    })
}

fn event(kind: &str, object: &serde_json::Value) -> String {
    json!({"type": kind, "object": object}).to_string()
}

#[test]
fn streams_come_first_and_go_on_as_watches() {
    in_sandbox(|| {
        let namespace = node();
        let server = Scripted::start(&namespace, |request| {
            let end = json!({"kind": "Service", "metadata": {
                "resourceVersion": "9", "annotations": {"k8s.io/initial-events-end": "true"},
            }});
            if !request.is_streaming_list() {
                return Answer::refuse(500, "nobody should ask");
            }
            let mut events = vec![event("BOOKMARK", &end)];
            if request.is_for("services") {
                events.insert(0, event("ADDED", &service("web", "5")));
            }
            Answer::Open(events)
        });
        let mut daemon = start(&namespace, &["--master", &server.url()]);
        daemon
            .wait_for_log("list complete\" kind=\"Service\" count=1")
            .unwrap();
        assert!(
            daemon.log().contains("how=\"streamed\""),
            "{}",
            daemon.log()
        );
        daemon
            .wait_for_log("kind=\"EndpointSlice\" count=0")
            .unwrap();
        let first = server.wait_for("a list", |r| r.is_for("services"));
        assert!(
            first.target.contains("resourceVersionMatch=NotOlderThan"),
            "{first:?}"
        );
        assert!(
            first.target.contains("allowWatchBookmarks=true"),
            "{first:?}"
        );
        assert_eq!(
            first.header("accept"),
            Some("application/vnd.kubernetes.protobuf,application/json")
        );
        assert!(first.header("accept-encoding").is_none());
    });
}

/// Without streams and without a cache there are pages; one that is no longer there costs a list.
#[test]
fn pages_are_the_last_resort() {
    in_sandbox(|| {
        let namespace = node();
        let has_expired = AtomicBool::new(false);
        let server = Scripted::start(&namespace, move |request| {
            let list = |meta: serde_json::Value, name: &str| {
                let list = json!({
                    "kind": "ServiceList", "metadata": meta, "items": [service(name, "5")],
                });
                Answer::Whole(200, "", list.to_string())
            };
            let has = |text: &str| request.target.contains(text);
            if !request.is_for("services") || request.is_watch() {
                Answer::plain(request)
            } else if has("resourceVersion=") {
                Answer::refuse(400, "no resourceVersion here")
            } else if has("continue=c1") && !has_expired.swap(true, Ordering::Relaxed) {
                Answer::refuse(410, "the page is gone")
            } else if has("limit=500") {
                list(json!({"resourceVersion": "7", "continue": "c1"}), "one")
            } else {
                list(json!({"resourceVersion": "8"}), "two")
            }
        });
        let mut daemon = start(&namespace, &["--master", &server.url()]);
        daemon
            .wait_for_log("list complete\" kind=\"Service\" count=1")
            .unwrap();
        assert!(
            daemon.log().contains("how=\"in pages\""),
            "{}",
            daemon.log()
        );
        let watch = server.wait_for("a watch", |r| {
            r.is_for("services") && r.is_watch() && !r.is_streaming_list()
        });
        assert!(watch.target.contains("resourceVersion=8"), "{watch:?}");
    });
}

/// S-13: servers before 1.32 do not know the selector; headless Services are left out here then.
#[test]
fn servers_without_the_field_selector_are_asked_without() {
    in_sandbox(|| {
        let namespace = node();
        let has_selector = |request: &Request| request.target.contains("fieldSelector=spec.");
        let server = Scripted::start(&namespace, move |request| {
            if has_selector(request) {
                Answer::refuse(400, "field label not supported: spec.clusterIP")
            } else {
                Answer::plain(request)
            }
        });
        let mut daemon = start(&namespace, &["--master", &server.url()]);
        daemon.wait_for_log("has no such field selector").unwrap();
        daemon
            .wait_for_log("list complete\" kind=\"Service\"")
            .unwrap();
        let requests = server.requests();
        assert_eq!(requests.iter().filter(|r| has_selector(r)).count(), 1);
    });
}

/// An object that cannot be read leaves the others alone.
#[test]
fn one_bad_object_stops_nothing() {
    in_sandbox(|| {
        let namespace = node();
        let server = Scripted::start(&namespace, |request| {
            if !request.is_for("services") || request.is_watch() {
                return Answer::plain(request);
            }
            let mut bad = service("bad", "3");
            bad["spec"]["ports"] = "80".into();
            let list = json!({
                "kind": "ServiceList", "metadata": {"resourceVersion": "7"},
                "items": [bad, service("good", "4")],
            });
            Answer::Whole(200, "", list.to_string())
        });
        let mut daemon = start(&namespace, &["--master", &server.url()]);
        daemon
            .wait_for_log("list complete\" kind=\"Service\" count=2")
            .unwrap();
        daemon.wait_for_log("namespace=\"a\" name=\"bad\"").unwrap();
    });
}

/// ServiceCIDRs came with 1.33; a server that has none is asked once, and is no failure.
#[test]
fn servers_without_service_cidrs_are_served_as_well() {
    in_sandbox(|| {
        let namespace = node();
        let server = Scripted::start(&namespace, |request| {
            if request.is_for("servicecidrs") {
                Answer::refuse(404, "the server could not find the requested resource")
            } else {
                Answer::plain(request)
            }
        });
        let mut daemon = start(&namespace, &["--master", &server.url()]);
        daemon
            .wait_for_log("the API server has none of this kind\" kind=\"ServiceCIDR\"")
            .unwrap();
        daemon
            .wait_for_log("list complete\" kind=\"Service\"")
            .unwrap();
        std::thread::sleep(std::time::Duration::from_secs(3));
        let requests = server.requests();
        assert_eq!(
            requests.iter().filter(|r| r.is_for("servicecidrs")).count(),
            1
        );
        assert!(!daemon.log().contains("watch failed"), "{}", daemon.log());
    });
}
