//! A network policy takes endpoints away: `filter 10.96.0.1:80=10.244.1.11:8080,10.244.1.12:8080`.
//! Each line on standard input is an endpoint's address, forbidden if it was allowed and allowed if
//! it was forbidden.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nftproxy_core::driver::Driver;
use nftproxy_core::engine::{Engine, Event, Options};
use nftproxy_core::model::{
    Endpoint, EndpointSlice, EndpointView, Filter, Protocol, Service, ServiceName, ServicePort,
    SlicePort, V4,
};

#[derive(Default)]
struct Policy {
    forbidden: Mutex<BTreeSet<IpAddr>>,
}

impl Policy {
    fn toggle(&self, address: IpAddr) {
        let mut forbidden = self
            .forbidden
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if !forbidden.remove(&address) {
            forbidden.insert(address);
        }
    }
}

impl Filter for Policy {
    fn allows(&self, _: &Service, endpoint: &EndpointView) -> bool {
        let forbidden = self
            .forbidden
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        !forbidden.contains(&endpoint.address)
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let argument = std::env::args()
        .nth(1)
        .ok_or("ADDRESS=ENDPOINT,… is missing")?;
    let (address, endpoints) = argument.split_once('=').ok_or("ADDRESS=ENDPOINT,…")?;
    let address: SocketAddrV4 = address.parse()?;
    let endpoints = endpoints
        .split(',')
        .map(str::parse)
        .collect::<Result<Vec<SocketAddrV4>, _>>()?;
    let name = ServiceName::new("default", "web")?;
    let port = ServicePort::new(Protocol::Tcp, address.port().try_into()?);
    let target = endpoints.first().ok_or("an endpoint is missing")?.port();
    let ready = endpoints.iter().map(|at| Endpoint::<V4>::ready(*at.ip()));
    let target = SlicePort::new(Protocol::Tcp, target.try_into()?);
    let slice = EndpointSlice::of(&name, [target], ready.collect());
    let service = Service::at(name.clone(), (*address.ip()).into(), [port]);

    let policy = Arc::new(Policy::default());
    let options = Options {
        filter: Some(policy.clone()),
        ..Options::default()
    };
    let driver = Driver::start(Engine::open(options, Instant::now())?, |_| {})?;
    let handle = driver.handle();
    handle.send(Event::Replaced {
        services: vec![service],
        slices: vec![slice],
    })?;
    handle.wait_until_synced(Duration::from_secs(10))?;
    println!("in the kernel");
    for line in std::io::stdin().lines() {
        policy.toggle(line?.trim().parse()?);
        handle.send(Event::FilterChanged(Some([name.clone()].into())))?;
        handle.wait_until_synced(Duration::from_secs(10))?;
        println!("in the kernel");
    }
    Ok(driver.stop()?)
}
