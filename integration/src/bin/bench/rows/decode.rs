//! From the API server's JSON to the model.

use std::time::Instant;

use anyhow::{Context as _, Result};
use integration::fixtures::{self, NODE_NAME};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nftproxy_core::k8s;
use nftproxy_core::model::{SliceEndpoints, State};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::{Job, Scale};
use crate::cluster::grouped;
use crate::measure::{Memory, spread};
use crate::table::Row;

const GROUP: &str = "decode";
const FLOOR: &str = "the same JSON parsed and thrown away";

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    let n_services = scale.pick(100, 10_000);
    let name = format!("{GROUP}, {} Services", grouped(n_services));
    vec![Job::new(name, move || rows(scale, n_services))]
}

fn rows(scale: Scale, n_services: u32) -> Result<Vec<Row>> {
    let services = recorded("services.json")?;
    let slices = recorded("endpointslices.json")?;
    let n_copies = (n_services as usize).div_ceil(services.len());
    let services = copies(&services, n_copies)?;
    let slices = copies(&slices, n_copies)?;

    let before = Memory::read()?.now;
    let mut state = State::default();
    decode_services(&services, &mut state)?;
    let with_services = Memory::read()?.now;
    decode_slices(&slices, &mut state)?;
    let with_slices = Memory::read()?.now;
    let n_endpoints = count_endpoints(&state);
    let n_services = state.services().count();

    let bytes_each = |mib: f64, n: usize| mib * f64::from(1 << 20) / n as f64;
    let services = row(scale, "Services", &services, decode_services)?
        .with("stored", n_services as f64)
        .with(
            "bytes stored each",
            bytes_each(with_services - before, n_services),
        );
    let slices = row(scale, "EndpointSlices", &slices, decode_slices)?
        .with("stored", n_endpoints as f64)
        .with(
            "bytes stored each",
            bytes_each(with_slices - with_services, n_endpoints),
        );
    Ok(vec![services, slices])
}

fn row(
    scale: Scale,
    kind: &str,
    objects: &[String],
    decode: impl Fn(&[String], &mut State) -> Result<()>,
) -> Result<Row> {
    let times = scale.few().repeat(|_| {
        let start = Instant::now();
        let mut state = State::default();
        decode(objects, &mut state)?;
        let ours = start.elapsed();
        let start = Instant::now();
        for object in objects {
            serde_json::from_str::<IgnoredAny>(object)?;
        }
        Ok((ours, start.elapsed()))
    })?;
    let (ours, floor): (Vec<_>, Vec<_>) = times.into_iter().unzip();
    let (ours, floor) = (spread(ours), spread(floor));
    let seconds = ours.p50 / 1e3;
    let megabytes = objects.iter().map(String::len).sum::<usize>() as f64 / 1e6;
    Ok(Row::ms(GROUP, FLOOR, kind.into(), ours, floor)
        .with("MB", megabytes)
        .with("MB/s", megabytes / seconds)
        .with("objects", objects.len() as f64)
        .with("objects/s", objects.len() as f64 / seconds))
}

/// The objects of a recorded list.
pub(super) fn recorded(file: &str) -> Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&fixtures::read(file))?;
    let items = list["items"].as_array().cloned();
    items.with_context(|| format!("{file} is not a list"))
}

/// So many copies of each object, each copy in namespaces of its own, as JSON.
fn copies(objects: &[Value], n_copies: usize) -> Result<Vec<String>> {
    let copy = |copy: usize, object: &Value| {
        let mut object = object.clone();
        let namespace = &mut object["metadata"]["namespace"];
        *namespace = format!("{}-{copy}", namespace.as_str().unwrap_or_default()).into();
        serde_json::to_string(&object).context("writing an object")
    };
    (0..n_copies)
        .flat_map(|number| objects.iter().map(move |object| copy(number, object)))
        .collect()
}

fn parse<T: DeserializeOwned>(object: &str) -> Result<T> {
    serde_json::from_str(object).context("reading a recorded object")
}

fn decode_services(objects: &[String], state: &mut State) -> Result<()> {
    let mut problems = Vec::new();
    for object in objects {
        if let Some(service) = k8s::service(&parse::<Service>(object)?, &mut problems) {
            state.apply_service(service);
        }
    }
    Ok(())
}

fn decode_slices(objects: &[String], state: &mut State) -> Result<()> {
    let mut problems = Vec::new();
    for object in objects {
        let slice = parse::<EndpointSlice>(object)?;
        if let Some(slice) = k8s::endpoint_slice(&slice, NODE_NAME, &mut problems) {
            state.apply_slice(slice);
        }
    }
    Ok(())
}

fn count_endpoints(state: &State) -> usize {
    let slices = state
        .services()
        .flat_map(|service| state.slices(&service.name));
    slices
        .map(|slice| match &slice.endpoints {
            SliceEndpoints::V4(endpoints) => endpoints.len(),
            SliceEndpoints::V6(endpoints) => endpoints.len(),
        })
        .sum()
}
