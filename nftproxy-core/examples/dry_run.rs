//! What would change, without touching the kernel: compares the table that is there with the one
//! that should be, and prints a script for nft(8) that would lead from one to the other.
//! `dry_run 10.96.0.1:80=10.244.1.11:8080,10.244.1.12:8080`
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::net::SocketAddrV4;

use nftproxy_core::apply::Kernel;
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::compile::compile;
use nftproxy_core::diff::diff;
use nftproxy_core::model::{
    Endpoint, EndpointSlice, Node, Protocol, Service, ServiceName, ServicePort, SlicePort, State,
    V4,
};
use nftproxy_core::render;

fn main() -> Result<(), Box<dyn Error>> {
    let mut state = State::default();
    for (number, argument) in std::env::args().skip(1).enumerate() {
        let (address, endpoints) = argument.split_once('=').ok_or("ADDRESS=ENDPOINT,…")?;
        let address: SocketAddrV4 = address.parse()?;
        let endpoints = endpoints
            .split(',')
            .map(str::parse)
            .collect::<Result<Vec<SocketAddrV4>, _>>()?;
        let name = ServiceName::new("cni", &format!("balancer-{number}"))?;
        let port = ServicePort::new(Protocol::Tcp, address.port().try_into()?);
        let target = endpoints.first().ok_or("an endpoint is missing")?.port();
        let target = SlicePort::new(Protocol::Tcp, target.try_into()?);
        let ready = endpoints.iter().map(|at| Endpoint::<V4>::ready(*at.ip()));
        state.apply_slice(EndpointSlice::of(&name, [target], ready.collect()));
        state.apply_service(Service::at(name, (*address.ip()).into(), [port]));
    }
    let compiled = compile(&state, &Node::default());
    for note in &compiled.notes {
        eprintln!("{note}");
    }
    // Listing takes the same right as changing: CAP_NET_ADMIN.
    let observed = Kernel::<V4>::list(&mut Netlink::open()?)?;
    // The fewest changes keep the slots that endpoints have; a running proxy does, and so the order
    // of slots may differ from what is compiled from nothing.
    let delta = diff(observed.as_ref(), &compiled.v4);
    if delta.is_empty() {
        println!("nothing would change");
    } else {
        print!("{}", render::delta(&delta));
    }
    Ok(())
}
