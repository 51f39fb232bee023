//! Two proxies in one process and one network namespace, each with a table, Services and a mark (or
//! none) of its own: `two_instances 10.96.0.1:80=10.244.1.11:8080 10.96.0.2:80=10.244.1.12:8080`.
//! The first Service goes to the first proxy, and the second to the second one.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::error::Error;
use std::net::{IpAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nftproxy_core::driver::Driver;
use nftproxy_core::engine::{Engine, Event, Options, Outcome};
use nftproxy_core::model::{
    DetectLocal, Endpoint, EndpointSlice, Filter, Node, Protocol, Service, ServiceName,
    ServicePort, SlicePort, V4,
};
use nftproxy_core::ruleset::Table;

/// Takes the Services of one namespace. With objects of the API server, an annotation or label that
/// `k8s::ServiceOptions` keeps would tell them apart as well.
struct Of(&'static str);

impl Filter for Of {
    fn owns(&self, service: &Service) -> bool {
        service.name.parts().0 == self.0
    }
}

fn start(
    namespace: &'static str,
    table: Table,
    mark: Option<u32>,
) -> Result<Driver, Box<dyn Error>> {
    let pods: IpNet = "10.244.0.0/16".parse()?;
    let options = Options {
        table,
        node: Node {
            detect_local: DetectLocal::Cidrs(vec![pods]),
            masquerade_mark: mark,
            ..Node::default()
        },
        filter: Some(Arc::new(Of(namespace))),
        ..Options::default()
    };
    let driver = Driver::start(Engine::open(options, Instant::now())?, move |outcome| {
        if let Outcome::Failed { family, error } = outcome {
            eprintln!("{namespace}, {family}: {error}");
        }
    })?;
    Ok(driver)
}

/// Reads `ADDRESS=ENDPOINT`: a Service with a ClusterIP, and its slice.
fn parse(namespace: &str, text: &str) -> Result<(Service, EndpointSlice), Box<dyn Error>> {
    let (address, endpoint) = text.split_once('=').ok_or("ADDRESS=ENDPOINT is missing")?;
    let (address, endpoint): (SocketAddrV4, SocketAddrV4) = (address.parse()?, endpoint.parse()?);
    let name = ServiceName::new(namespace, "web")?;
    let port = ServicePort::new(Protocol::Tcp, address.port().try_into()?);
    let target = SlicePort::new(Protocol::Tcp, endpoint.port().try_into()?);
    let endpoints = [Endpoint::<V4>::ready(*endpoint.ip())];
    let slice = EndpointSlice::of(&name, [target], endpoints.into_iter().collect());
    let mut service = Service::at(name, (*address.ip()).into(), [port]);
    // A load balancer's address as well, from where all connections are masqueraded.
    let [.., last] = address.ip().octets();
    service.load_balancer_ips = [IpAddr::from([203, 0, 113, last])].into();
    Ok((service, slice))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [first, second] = &*arguments else {
        return Err("two Services are needed, as ADDRESS=ENDPOINT".into());
    };
    let (services, slices): (Vec<_>, Vec<_>) = [parse("first", first)?, parse("second", second)?]
        .into_iter()
        .unzip();
    let drivers = [
        start("first", Table::new("proxy-one", 0)?, Some(1 << 20))?,
        start("second", Table::new("proxy-two", 5)?, None)?,
    ];
    for driver in &drivers {
        // Both hear of everything, and take what is theirs.
        driver.handle().send(Event::Replaced {
            services: services.clone(),
            slices: slices.clone(),
        })?;
    }
    for driver in &drivers {
        driver.handle().wait_until_synced(Duration::from_secs(10))?;
    }
    println!("in the kernel");
    for driver in drivers {
        driver.join()?;
    }
    Ok(())
}
