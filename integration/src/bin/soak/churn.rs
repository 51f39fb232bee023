//! Changes of objects, as users and controllers of a cluster make them. Entry point: [`change`].

use anyhow::Result;
use fastrand::Rng;
use integration::apiserver::Resource;
use integration::lab::NODE;
use integration::manifest::{SERVICE_CIDRS, node};
use serde_json::json;

use crate::api::{Api, Key};
use crate::journal::Journal;
use crate::objects::{namespace, one_in, one_of, service, slice};

/// Objects of this name are the cluster's own, and stay.
const KUBERNETES: &str = "kubernetes";

/// Changes something.
pub(crate) fn change(api: &mut Api, rng: &mut Rng, journal: &mut Journal) -> Result<()> {
    match rng.u8(..100) {
        0..35 => put_service(api, rng, journal)?,
        35..70 => put_slice(api, rng, journal)?,
        70..78 => delete(api, Resource::Services, rng, journal)?,
        78..86 => delete(api, Resource::EndpointSlices, rng, journal)?,
        86..90 => change_node(api, rng, journal)?,
        90..94 => change_cidr(api, rng, journal)?,
        94..99 => {
            let n = rng.usize(20..150);
            journal.note("burst", format_args!("of {n}"));
            for _ in 0..n {
                if rng.bool() {
                    api.put(service(rng))?;
                } else {
                    api.put(slice(rng))?;
                }
            }
        }
        _ => delete_namespace(api, rng, journal)?,
    }
    Ok(())
}

fn put_service(api: &mut Api, rng: &mut Rng, journal: &mut Journal) -> Result<()> {
    let service = service(rng);
    let metadata = &service["metadata"];
    journal.note(
        "service",
        format_args!("{}: {}", metadata["name"], service["spec"]["type"]),
    );
    api.put(service)
}

fn put_slice(api: &mut Api, rng: &mut Rng, journal: &mut Journal) -> Result<()> {
    let slice = slice(rng);
    let n = slice["endpoints"].as_array().map_or(0, Vec::len);
    journal.note(
        "slice",
        format_args!("{}: {n} endpoints", slice["metadata"]["name"]),
    );
    api.put(slice)
}

/// Whether an object may be deleted.
fn is_churn(key: &Key) -> bool {
    key.2.starts_with("churn-")
}

fn delete(api: &mut Api, resource: Resource, rng: &mut Rng, journal: &mut Journal) -> Result<()> {
    let keys = api.objects(resource).map(|(key, _)| key);
    let keys: Vec<_> = keys.filter(|key| is_churn(key)).cloned().collect();
    if keys.is_empty() {
        return Ok(());
    }
    let key = one_of(rng, &keys);
    journal.note(
        "delete",
        format_args!("{} {}/{}", resource.kind(), key.1, key.2),
    );
    api.delete(&key)
}

/// All there is in a namespace goes, as when that is deleted.
fn delete_namespace(api: &mut Api, rng: &mut Rng, journal: &mut Journal) -> Result<()> {
    let namespace = namespace(rng);
    let mut keys = Vec::new();
    for resource in [Resource::Services, Resource::EndpointSlices] {
        let theirs = api.objects(resource).map(|(key, _)| key);
        keys.extend(
            theirs
                .filter(|key| is_churn(key) && key.1 == namespace)
                .cloned(),
        );
    }
    journal.note(
        "namespace",
        format_args!("{namespace} with {} objects", keys.len()),
    );
    keys.iter().try_for_each(|key| api.delete(key))
}

fn change_node(api: &mut Api, rng: &mut Rng, journal: &mut Journal) -> Result<()> {
    let zone = one_of(rng, &[None, Some("a"), Some("b")]);
    let mut object = node("node", NODE, zone);
    if one_in(rng, 3) {
        object["spec"]["podCIDRs"] = json!(["10.244.1.0/24", "fd00:10:244:1::/64"]);
    }
    if one_in(rng, 3) {
        let taint = json!({"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"});
        object["spec"]["taints"] = json!([taint]);
    }
    journal.note("node", format_args!("zone {zone:?}"));
    api.put(object)
}

fn change_cidr(api: &mut Api, rng: &mut Rng, journal: &mut Journal) -> Result<()> {
    let number = rng.u8(1..4);
    let name = format!("churn-{number}");
    let exists = api
        .objects(Resource::ServiceCidrs)
        .find(|(key, _)| key.2 == name)
        .map(|(key, _)| key.clone());
    match exists {
        Some(key) if rng.bool() => {
            journal.note("service-cidr", format_args!("{name} deleted"));
            api.delete(&key)
        }
        _ => {
            journal.note("service-cidr", &name);
            let part = rng.u8(..4);
            api.put(json!({
                "apiVersion": "networking.k8s.io/v1",
                "kind": "ServiceCIDR",
                "metadata": {"name": name},
                "spec": {"cidrs": [
                    format!("10.97.{}.0/26", number * 4 + part),
                    format!("fd00:10:97:{number}::{part}00/120"),
                ]},
            }))
        }
    }
}

/// What every cluster has.
pub(crate) fn begin(api: &mut Api) -> Result<()> {
    api.put(node("node", NODE, None))?;
    api.put(json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": KUBERNETES},
        "spec": {"cidrs": SERVICE_CIDRS},
    }))
}
