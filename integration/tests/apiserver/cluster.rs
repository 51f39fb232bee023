//! The recorded cluster as a server, and what to expect of it.

use std::thread;
use std::time::{Duration, Instant};

use integration::apiserver::ApiServer;
use integration::node::load;
use serde_json::{Value, json};

pub(crate) const TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) const SERVICES: &str = include_str!("../../fixtures/cluster-small/services.json");
pub(crate) const SLICES: &str = include_str!("../../fixtures/cluster-small/endpointslices.json");
pub(crate) const NODES: &str = include_str!("../../fixtures/cluster-small/nodes.json");
pub(crate) const SERVICE_CIDRS: &str =
    include_str!("../../fixtures/cluster-small/servicecidrs.json");
pub(crate) const WATCH_SERVICES: &str =
    include_str!("../../fixtures/cluster-small/watch-services.jsonl");
pub(crate) const WATCH_SLICES: &str =
    include_str!("../../fixtures/cluster-small/watch-endpointslices.jsonl");
pub(crate) const WATCH_LIST_UNSUPPORTED: &str =
    include_str!("../../fixtures/cluster-small/watch-list-unsupported.jsonl");
pub(crate) const AFTER: &str = include_str!("../../fixtures/cluster-small/after.yaml");

pub(crate) const PATH_OF_SERVICES: &str = "/api/v1/services";
pub(crate) const PATH_OF_SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";

pub(crate) fn cluster_small() -> ApiServer {
    let server = ApiServer::start().unwrap();
    load(&server).unwrap();
    server
}

pub(crate) fn service(name: &str, cluster_ip: &str, labels: Value) -> Value {
    json!({
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": {"namespace": "shop", "name": name, "labels": labels},
        "spec": {"clusterIP": cluster_ip},
    })
}

pub(crate) fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

pub(crate) fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect()
}

pub(crate) fn summary(kind: &str, name: &str, version: &str) -> (String, String, String) {
    (kind.to_owned(), name.to_owned(), version.to_owned())
}

#[track_caller]
pub(crate) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + TIMEOUT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
