//! The client of kube through everything that happens to a watch.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use integration::apiserver::Resource;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use serde_json::Value;
use std::time::Duration;

use crate::cluster::{
    AFTER, PATH_OF_SERVICES, TIMEOUT, WATCH_SERVICES, WATCH_SLICES, cluster_small, wait_until,
};

/// Objects by kind, namespace and name.
type Objects = BTreeMap<(String, String, String), Value>;

fn insert(objects: &mut Objects, mut object: Value) {
    // `kubectl get`, which printed what the end should be, leaves them out.
    object["metadata"]
        .as_object_mut()
        .unwrap()
        .remove("managedFields");
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    let metadata = &object["metadata"];
    let key = (
        text(&object["kind"]),
        text(&metadata["namespace"]),
        text(&metadata["name"]),
    );
    objects.insert(key, object);
}

/// Follows one resource for ever, as the proxy does: paged lists, then watches.
async fn follow(client: kube::Client, resource: Resource, objects: Arc<Mutex<Objects>>) {
    let (group, version) = resource
        .api_version()
        .split_once('/')
        .unwrap_or(("", resource.api_version()));
    let api_resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: resource.api_version().to_owned(),
        kind: resource.kind().to_owned(),
        plural: resource.plural().to_owned(),
    };
    let api: Api<DynamicObject> = Api::all_with(client, &api_resource);
    let value = |object: DynamicObject| {
        let mut value = serde_json::to_value(object).unwrap();
        value["kind"] = resource.kind().into();
        value["apiVersion"] = resource.api_version().into();
        value
    };
    let mut events = watcher::watcher(api, watcher::Config::default().page_size(5)).boxed();
    let mut listed = Objects::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(object)) => insert(&mut listed, value(object)),
            Ok(Event::InitDone) => {
                let mut objects = objects.lock().unwrap();
                objects.retain(|(kind, ..), _| kind != resource.kind());
                objects.append(&mut listed);
            }
            Ok(Event::Apply(object)) => insert(&mut objects.lock().unwrap(), value(object)),
            Ok(Event::Delete(object)) => {
                let key = (
                    resource.kind().to_owned(),
                    object.metadata.namespace.unwrap_or_default(),
                    object.metadata.name.unwrap(),
                );
                objects.lock().unwrap().remove(&key);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

#[test]
fn kube_follows_through_a_disconnect_and_a_compaction() {
    let after: Value = serde_norway::from_str(AFTER).unwrap();
    let mut expected = Objects::new();
    for object in after["items"].as_array().unwrap() {
        insert(&mut expected, object.clone());
    }

    let server = cluster_small();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let kubeconfig = Kubeconfig::from_yaml(&server.kubeconfig()).unwrap();
    let client = runtime.block_on(async {
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .unwrap();
        kube::Client::try_from(config).unwrap()
    });
    let objects = Arc::new(Mutex::new(Objects::new()));
    for resource in Resource::ALL {
        runtime.spawn(follow(client.clone(), resource, objects.clone()));
    }
    let n_service_lists = || {
        let is_first_page = |query: &BTreeMap<_, _>| {
            !query.contains_key("watch") && !query.contains_key("continue")
        };
        let requests = server.requests();
        requests
            .iter()
            .filter(|r| r.path == PATH_OF_SERVICES && is_first_page(&r.query))
            .count()
    };
    let replay = |range: std::ops::Range<usize>| {
        for (resource, stream) in [
            (Resource::Services, WATCH_SERVICES),
            (Resource::EndpointSlices, WATCH_SLICES),
        ] {
            let lines: Vec<_> = stream.lines().collect();
            let end = range.end.min(lines.len());
            server
                .replay(resource, &lines[range.start..end].join("\n"))
                .unwrap();
        }
    };

    assert!(server.wait_for_watches(4, TIMEOUT));
    replay(0..1);
    server.disconnect_watches();
    replay(1..2);
    assert!(server.wait_for_watches(4, TIMEOUT));
    assert_eq!(n_service_lists(), 1, "a lost watch is resumed");

    replay(2..3);
    server.refuse(true);
    server.disconnect_watches();
    replay(3..usize::MAX);
    server.compact();
    server.refuse(false);
    assert!(server.wait_for_watches(4, TIMEOUT));
    assert_eq!(n_service_lists(), 2, "an expired watch needs a new list");

    wait_until("the objects to be complete", || {
        objects.lock().unwrap().len() == expected.len()
    });
    assert_eq!(*objects.lock().unwrap(), expected);
}
