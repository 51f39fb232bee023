//! An endpoint goes that many clients are remembered for.

use std::net::Ipv4Addr;
use std::num::{NonZeroU16, NonZeroU32};

use anyhow::{Result, ensure};
use nftproxy_core::apply::Kernel as _;
use nftproxy_core::diff::Delta;
use nftproxy_core::model::{EndpointAddress, Protocol, SliceEndpoints, V4};
use nftproxy_core::ruleset::element::{Destination, Element};

use super::change::Running;
use super::{Job, Scale, sync_row};
use crate::cluster::{Cluster, Event, Size, destination, grouped};
use crate::floor::Bed;
use crate::table::Row;

const GROUP: &str = "affinity";
const FLOOR: &str = "the kernel's dumps of the map, thrown away, and the same batches";
const CLIENTS: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 0);
const AFFINITY_TIMEOUT: NonZeroU32 = NonZeroU32::new(10_800).expect("it is not zero");

pub(crate) fn jobs(scale: Scale) -> Vec<Job> {
    let n_clients = scale.pick(1_000, 100_000);
    let name = format!("{GROUP}, {} clients", grouped(n_clients));
    vec![Job::new(name, move || Ok(vec![row(scale, n_clients)?]))]
}

fn row(scale: Scale, n_clients: u32) -> Result<Row> {
    let bed = Bed::new()?;
    let size = Size::new(1, 100);
    let mut running = Running::start(&bed, Cluster::new(size))?;
    let [Event::Service(mut service), Event::Slice(slice)] =
        <[Event; 2]>::try_from(running.cluster.service_added(0))
            .expect("100 endpoints are a slice")
    else {
        unreachable!("a Service comes before its slices");
    };
    service.session_affinity = Some(AFFINITY_TIMEOUT);
    running.sync([Event::Service(service)])?;

    let SliceEndpoints::V4(endpoints) = &slice.endpoints else {
        unreachable!("the cluster is IPv4 only");
    };
    let port = slice.ports[0].port;
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|endpoint| EndpointAddress {
            address: endpoint.address,
            port,
        })
        .collect();
    let costs = scale.few().repeat(|n| {
        let endpoint = 1 + n;
        // All at first; later, those that were forgotten.
        let learned: Vec<_> = (0..n_clients)
            .map(|client| (client, client as usize % endpoints.len()))
            .filter(|(_, chosen)| n == 0 || *chosen == n as usize)
            .map(|(client, chosen)| remembered(client, endpoints[chosen]))
            .collect();
        running.syncer.kernel_mut().commit(&Delta {
            add_elements: learned,
            ..Delta::default()
        })?;
        let (gone, back) = running.cluster.removed(&running.state, 0, endpoint);
        let cost = running.sync([gone])?;
        let forgotten = cost.counts.deleted_elements;
        ensure!(
            forgotten > n_clients as usize / endpoints.len() / 2,
            "only {forgotten} elements were deleted"
        );
        running.sync([back])?;
        running.syncer.sweep_affinity()?;
        Ok(cost)
    })?;
    bed.clear::<V4>()?;
    let case = format!("endpoint removed, {} clients", grouped(n_clients));
    Ok(sync_row(GROUP, FLOOR, case, &costs))
}

fn remembered(client: u32, endpoint: EndpointAddress<V4>) -> Element<V4> {
    let (address, port): (Ipv4Addr, NonZeroU16) = destination(0);
    let destination = Destination {
        address: Some(address),
        protocol: Protocol::Tcp,
        port,
    };
    let client = Ipv4Addr::from_bits(CLIENTS.to_bits() + client);
    Element::remembered(client, destination, endpoint)
}
