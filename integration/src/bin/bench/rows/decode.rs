//! From what the API server sends to the model, in either encoding.

use std::time::Instant;

use anyhow::{Context as _, Result};
use bytes::{Buf as _, Bytes};
use integration::apiserver::{self, Resource};
use integration::fixtures::{self, NODE_NAME};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use nftproxy_bin::bench::{self, Encoding};
use nftproxy_core::model::{SliceEndpoints, State};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::Value;

use super::{Job, Scale};
use crate::cluster::grouped;
use crate::measure::{Memory, spread};
use crate::table::Row;

const GROUP: &str = "decode";
const FLOOR: &str = "the same objects in JSON, parsed and thrown away";

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    let n_services = scale.pick(100, 10_000);
    let name = format!("{GROUP}, {} Services", grouped(n_services));
    vec![Job::new(name, move || rows(scale, n_services))]
}

fn rows(scale: Scale, n_services: u32) -> Result<Vec<Row>> {
    let services = recorded("services.json")?;
    let slices = recorded("endpointslices.json")?;
    let n_copies = (n_services as usize).div_ceil(services.len());
    let services = copies(&services, n_copies, Resource::Services);
    let slices = copies(&slices, n_copies, Resource::EndpointSlices);

    let (of_services, of_slices) = (frames(JSON, &services)?, frames(JSON, &slices)?);
    let before = Memory::read()?.now;
    let mut state = State::default();
    decode_services(JSON, &of_services, &mut state)?;
    let with_services = Memory::read()?.now;
    decode_slices(JSON, &of_slices, &mut state)?;
    let with_slices = Memory::read()?.now;
    drop((of_services, of_slices));
    let n_endpoints = count_endpoints(&state);
    let n_services = state.services().count();

    let bytes_each = |mib: f64, n: usize| mib * f64::from(1 << 20) / n as f64;
    let mut rows = Vec::new();
    for encoding in [PROTOBUF, JSON] {
        let of_services = row::<Service>(scale, "Services", encoding, &services, decode_services)?;
        rows.push(of_services.with("stored", n_services as f64).with(
            "bytes stored each",
            bytes_each(with_services - before, n_services),
        ));
        let name = "EndpointSlices";
        let of_slices = row::<EndpointSlice>(scale, name, encoding, &slices, decode_slices)?;
        rows.push(of_slices.with("stored", n_endpoints as f64).with(
            "bytes stored each",
            bytes_each(with_slices - with_services, n_endpoints),
        ));
    }
    Ok(rows)
}

fn row<K: DeserializeOwned>(
    scale: Scale,
    kind: &str,
    coding: Coding,
    objects: &[Value],
    decode: impl Fn(Coding, &[Bytes], &mut State) -> Result<()>,
) -> Result<Row> {
    let frames = frames(coding, objects)?;
    let texts: Vec<_> = objects.iter().map(Value::to_string).collect();
    let times = scale.few().repeat(|_| {
        let start = Instant::now();
        let mut state = State::default();
        decode(coding, &frames, &mut state)?;
        let ours = start.elapsed();
        let start = Instant::now();
        for text in &texts {
            serde_json::from_str::<IgnoredAny>(text)?;
        }
        let floor = start.elapsed();
        let start = Instant::now();
        for text in &texts {
            serde_json::from_str::<K>(text)?;
        }
        Ok((ours, floor, start.elapsed()))
    })?;
    let ours = spread(times.iter().map(|(ours, ..)| *ours));
    let floor = spread(times.iter().map(|(_, floor, _)| *floor));
    let whole = spread(times.iter().map(|(.., whole)| *whole));
    let seconds = ours.p50 / 1e3;
    let megabytes = frames.iter().map(Bytes::len).sum::<usize>() as f64 / 1e6;
    Ok(
        Row::ms(GROUP, FLOOR, format!("{kind}, {}", coding.0), ours, floor)
            .with("whole objects ms", whole.p50)
            .with("MB", megabytes)
            .with("MB/s", megabytes / seconds)
            .with("objects", objects.len() as f64)
            .with("objects/s", objects.len() as f64 / seconds),
    )
}

/// The objects of a recorded list.
pub(super) fn recorded(file: &str) -> Result<Vec<Value>> {
    let list: Value = serde_json::from_str(&fixtures::read(file))?;
    let items = list["items"].as_array().cloned();
    items.with_context(|| format!("{file} is not a list"))
}

/// So many copies of each object, each copy in namespaces of its own, with their kind.
fn copies(objects: &[Value], n_copies: usize, resource: Resource) -> Vec<Value> {
    let copy = |copy: usize, object: &Value| {
        let mut object = object.clone();
        let namespace = &mut object["metadata"]["namespace"];
        *namespace = format!("{}-{copy}", namespace.as_str().unwrap_or_default()).into();
        object["kind"] = resource.kind().into();
        object["apiVersion"] = resource.api_version().into();
        object
    };
    let copies = (0..n_copies).map(|number| objects.iter().map(move |object| copy(number, object)));
    copies.flatten().collect()
}

/// Name, how the program calls it, and how the server does.
type Coding = (&'static str, Encoding, apiserver::Encoding);
const JSON: Coding = ("JSON", Encoding::Json, apiserver::Encoding::Json);
const PROTOBUF: Coding = (
    "protobuf",
    Encoding::Protobuf,
    apiserver::Encoding::Protobuf,
);

/// The objects as events of a watch, without what tells one from the next.
fn frames((_, encoding, of_server): Coding, objects: &[Value]) -> Result<Vec<Bytes>> {
    let frame = |object| {
        let mut frame = of_server.event("ADDED", object)?;
        if encoding == Encoding::Protobuf {
            // The length.
            frame.advance(4);
        }
        Ok(frame)
    };
    objects.iter().map(frame).collect()
}

fn decode_services((_, encoding, _): Coding, frames: &[Bytes], state: &mut State) -> Result<()> {
    for frame in frames {
        if let Some(service) = bench::service(encoding, frame).map_err(anyhow::Error::msg)? {
            state.apply_service(service);
        }
    }
    Ok(())
}

fn decode_slices((_, encoding, _): Coding, frames: &[Bytes], state: &mut State) -> Result<()> {
    for frame in frames {
        let slice = bench::slice(encoding, frame, NODE_NAME).map_err(anyhow::Error::msg)?;
        if let Some(slice) = slice {
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
