//! A CNI that has Services in types of its own: `cni 10.96.0.1:80=10.244.1.11:8080,10.244.1.12:8080`
#![allow(clippy::print_stdout, clippy::print_stderr)]
use std::error::Error;
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use nftproxy_core::driver::Driver;
use nftproxy_core::engine::{Engine, Event, Options, Outcome};
use nftproxy_core::model::*;

/// What the CNI has of a Service: where it is, and where its backends are.
struct Balancer(SocketAddrV4, Vec<SocketAddrV4>);

impl Balancer {
    fn to_model(&self, number: usize) -> Result<(Service, EndpointSlice), Box<dyn Error>> {
        let Self(address, backends) = self;
        let name = ServiceName::new("cni", &format!("balancer-{number}"))?;
        let port = ServicePort::new(Protocol::Tcp, address.port().try_into()?);
        let backend = backends.first().ok_or("no backend")?.port().try_into()?;
        let endpoints = backends.iter().map(|at| Endpoint::<V4>::ready(*at.ip()));
        let ports = [SlicePort::new(Protocol::Tcp, backend)];
        let slice = EndpointSlice::of(&name, ports, endpoints.collect());
        Ok((Service::at(name, (*address.ip()).into(), [port]), slice))
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut balancers = Vec::new();
    for (number, argument) in std::env::args().skip(1).enumerate() {
        let (address, backends) = argument.split_once('=').ok_or("ADDRESS=BACKEND,…")?;
        let backends = backends
            .split(',')
            .map(str::parse)
            .collect::<Result<_, _>>()?;
        balancers.push(Balancer(address.parse()?, backends).to_model(number)?);
    }
    let (services, slices) = balancers.into_iter().unzip();

    let engine = Engine::open(Options::default(), Instant::now())?;
    let driver = Driver::start(engine, |outcome| {
        if let Outcome::Failed { .. } | Outcome::NoteAppeared { .. } = outcome {
            eprintln!("{outcome:?}");
        }
    })?;
    driver.handle().send(Event::Replaced { services, slices })?;
    driver.handle().wait_until_synced(Duration::from_secs(10))?;
    println!("in the kernel");
    Ok(driver.join()?)
}
