//! The test bed: the lab with a server on every host that can be an endpoint, and a proxy to be.
//!
//! It knows nothing of what is to be tested. Entry point: [`Bed::new`].

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use integration::daemon::Daemon;
use integration::lab::{CLIENT, Dual, Lab, NODE, NODE2, PODS, REMOTE_POD};
use integration::manifest::{
    Conditions, ENDPOINT_PORT, Endpoint, Folder, SERVICE_PORT, cluster_ip, external_ip,
    load_balancer_ip, node_port, service, slices,
};
use integration::netns::{Namespace, unsupported};
use integration::traffic::{Outcome, ProbeOptions, Protocol, Server, patience, probe};
use serde_json::Value;

pub(crate) const POD1: Endpoint = on("node", PODS[0]);
pub(crate) const POD2: Endpoint = on("node", PODS[1]);
pub(crate) const POD3: Endpoint = on("node", PODS[2]);
pub(crate) const REMOTE: Endpoint = on("node2", REMOTE_POD);
/// A process in the node's own network.
pub(crate) const HOST_NETWORK: Endpoint = on("node", NODE);

/// The names the servers of the endpoints have.
pub(crate) const SERVERS: [(&str, Dual); 5] = [
    ("pod1", PODS[0]),
    ("pod2", PODS[1]),
    ("pod3", PODS[2]),
    ("remote", REMOTE_POD),
    ("node", NODE),
];

const fn on(node: &'static str, address: Dual) -> Endpoint {
    Endpoint {
        address,
        node: Some(node),
        conditions: Conditions::READY,
        for_zone: None,
        for_node: None,
    }
}

pub(crate) const fn with(endpoint: Endpoint, conditions: Conditions) -> Endpoint {
    Endpoint {
        conditions,
        ..endpoint
    }
}

pub(crate) const fn terminating(endpoint: Endpoint) -> Endpoint {
    with(endpoint, Conditions::TERMINATING)
}

/// The endpoint in a slice that does not say where it is.
pub(crate) const fn placeless(endpoint: Endpoint) -> Endpoint {
    Endpoint {
        node: None,
        ..endpoint
    }
}

/// Where connections come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A pod on the node that is often an endpoint itself.
    Pod1,
    /// A pod on the node that is no endpoint in the table.
    Pod3,
    /// A process of the node.
    Host,
    /// The outside host.
    Client,
    /// The pod on the other node, with its address.
    RemotePod,
    /// A process of the other node.
    Node2,
}

impl Source {
    pub(crate) const ALL: [Self; 6] = [
        Self::Pod1,
        Self::Pod3,
        Self::Host,
        Self::Client,
        Self::RemotePod,
        Self::Node2,
    ];

    pub(crate) fn address(self) -> Dual {
        match self {
            Self::Pod1 => PODS[0],
            Self::Pod3 => PODS[2],
            Self::Host => NODE,
            Self::Client => CLIENT,
            Self::RemotePod => REMOTE_POD,
            Self::Node2 => NODE2,
        }
    }

    /// The interface of the node that its packets come in by.
    pub(crate) fn input_interface(self) -> Option<&'static str> {
        match self {
            Self::Pod1 => Some("pod1"),
            Self::Pod3 => Some("pod3"),
            Self::Host => None,
            Self::Client | Self::RemotePod | Self::Node2 => Some("eth0"),
        }
    }

    pub(crate) fn namespace(self, lab: &Lab) -> &Namespace {
        match self {
            Self::Pod1 => &lab.pods[0],
            Self::Pod3 => &lab.pods[2],
            Self::Host => &lab.node,
            Self::Client => &lab.client,
            Self::RemotePod => &lab.remote_pod,
            Self::Node2 => &lab.node2,
        }
    }
}

/// Every kind of destination a Service has.
pub(crate) fn destinations(number: u8) -> [(Dual, u16); 4] {
    [
        (cluster_ip(number), SERVICE_PORT),
        (external_ip(number), SERVICE_PORT),
        (load_balancer_ip(number), SERVICE_PORT),
        (NODE, node_port(number)),
    ]
}

/// Every kind of destination, in both families.
pub(crate) fn destination_addresses(number: u8) -> impl Iterator<Item = SocketAddr> {
    destinations(number)
        .into_iter()
        .flat_map(|(address, port)| address.both().map(|ip| (ip, port).into()))
}

/// The lab with its servers, and the folder the proxy will read.
pub(crate) struct Bed {
    pub(crate) lab: Lab,
    pub(crate) manifests: Folder,
    pub(crate) protocols: Vec<Protocol>,
    servers: Vec<(String, Server)>,
}

impl Bed {
    pub(crate) fn new() -> Self {
        let lab = Lab::new().unwrap();
        // The other node has no proxy, so it leaves Services to the node.
        for (family, gateway) in ["-4", "-6"].into_iter().zip(NODE.both()) {
            let gateway = gateway.to_string();
            let replace = ["ip", family, "route", "replace", "default", "via", &gateway];
            lab.node2.exec(&replace).unwrap();
        }
        let mut bed = Self {
            lab,
            manifests: Folder::new().unwrap(),
            protocols: vec![Protocol::Tcp, Protocol::Udp],
            servers: Vec::new(),
        };
        let to = (NODE.v4, ENDPOINT_PORT).into();
        match Server::start(&bed.lab.node, "node", Protocol::Sctp, to) {
            Ok(_) => bed.protocols.push(Protocol::Sctp),
            Err(error) if error.kind() == ErrorKind::Unsupported => unsupported(&error.to_string()),
            Err(error) => panic!("{error}"),
        }
        for (name, _) in SERVERS {
            bed.serve_endpoint(name);
        }
        bed
    }

    /// Starts the servers of the endpoint with this name.
    pub(crate) fn serve_endpoint(&mut self, name: &str) {
        let (name, address) = SERVERS
            .into_iter()
            .find(|(server, _)| *server == name)
            .unwrap();
        self.serve(|lab| host_of(lab, name), name, address, ENDPOINT_PORT);
    }

    /// Starts servers for both families and all protocols.
    pub(crate) fn serve(
        &mut self,
        host: impl Fn(&Lab) -> &Namespace,
        name: &str,
        address: Dual,
        port: u16,
    ) {
        for protocol in &self.protocols {
            for ip in address.both() {
                let to = SocketAddr::new(ip, port);
                let server = Server::start(host(&self.lab), name, *protocol, to);
                self.servers.push((name.to_owned(), server.unwrap()));
            }
        }
    }

    /// Ends the servers of this name and all their connections.
    pub(crate) fn stop_servers(&mut self, name: &str) {
        self.servers.retain(|(server, _)| server != name);
    }

    /// Makes a file for a Service and its endpoints; `change` makes the Service what it is to be.
    pub(crate) fn put(
        &self,
        name: &str,
        number: u8,
        endpoints: &[Endpoint],
        change: impl FnOnce(&mut Value),
    ) {
        let mut service = service(name, number);
        change(&mut service);
        let [v4, v6] = slices(name, endpoints);
        self.manifests.put(name, &[service, v4, v6]).unwrap();
    }

    /// Starts the proxy on the node, and waits for its first sync.
    pub(crate) fn start_proxy(&self) -> Daemon {
        self.start_proxy_with(&[])
    }

    /// Starts the proxy with more flags.
    pub(crate) fn start_proxy_with(&self, flags: &[&str]) -> Daemon {
        self.start_proxy_on(&self.lab.node, "node", flags)
    }

    /// Starts a proxy on one of the nodes.
    pub(crate) fn start_proxy_on(&self, host: &Namespace, name: &str, flags: &[&str]) -> Daemon {
        let folder = self.manifests.path().to_str().unwrap();
        let mut arguments = vec![
            "run",
            "--manifests",
            folder,
            "--hostname-override",
            name,
            "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48",
            "--iptables-min-sync-period=10ms",
            "-v=4",
        ];
        arguments.extend(flags);
        let mut daemon = Daemon::start(host, &arguments).unwrap();
        daemon.wait_for_log("ipFamily=\"IPv6\" full=true").unwrap();
        daemon
    }

    /// Waits until new connections have this outcome from every source, in both families and by
    /// every protocol, and sees that it stays so.
    #[track_caller]
    pub(crate) fn check(&self, sources: &[Source], address: Dual, port: u16, wanted: &str) {
        for source in sources {
            for ip in address.both() {
                for protocol in &self.protocols {
                    self.check_one(*source, *protocol, (ip, port).into(), wanted);
                }
            }
        }
    }

    /// Like [`check`](Self::check), for one kind of connection.
    #[track_caller]
    pub(crate) fn check_one(
        &self,
        source: Source,
        protocol: Protocol,
        to: SocketAddr,
        wanted: &str,
    ) {
        const N_PROBES: usize = 5;
        self.wait_for(source, protocol, to, &[wanted], N_PROBES);
    }

    /// Waits until new connections are spread over exactly these servers, in both families and by
    /// every protocol.
    #[track_caller]
    pub(crate) fn check_spread(&self, source: Source, address: Dual, port: u16, wanted: &[&str]) {
        // With three servers, one of them is missed by a chance of less than one in 10^6.
        const N_PROBES: usize = 40;
        for ip in address.both() {
            for protocol in &self.protocols {
                self.wait_for(source, *protocol, (ip, port).into(), wanted, N_PROBES);
            }
        }
    }

    /// Waits until so many probes in a row have these outcomes, each at least once.
    #[track_caller]
    fn wait_for(
        &self,
        source: Source,
        protocol: Protocol,
        to: SocketAddr,
        wanted: &[&str],
        n_probes: usize,
    ) {
        let namespace = source.namespace(&self.lab);
        let wanted: BTreeSet<_> = wanted.iter().map(|outcome| (*outcome).to_owned()).collect();
        // Silence takes its time, and one packet shows it as well as many.
        let (n_probes, timeout) = if wanted.contains("timeout") {
            (1, Duration::from_millis(200))
        } else {
            (n_probes, patience())
        };
        let options = ProbeOptions {
            from: None,
            timeout,
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let mut found = BTreeSet::new();
            for _ in 0..n_probes {
                let outcome = probe(namespace, protocol, to, options).to_string();
                let is_wanted = wanted.contains(&outcome);
                found.insert(outcome);
                if !is_wanted {
                    break;
                }
            }
            if found == wanted {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{protocol} from {source:?} to {to}: waited for {wanted:?}, last were {found:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until `server` answers there, in both families and by every protocol, and sees this
    /// source.
    #[track_caller]
    pub(crate) fn check_seen(
        &self,
        source: Source,
        address: Dual,
        port: u16,
        server: &str,
        seen: Dual,
    ) {
        let namespace = source.namespace(&self.lab);
        for (ip, seen) in address.both().into_iter().zip(seen.both()) {
            for protocol in &self.protocols {
                let deadline = Instant::now() + Duration::from_secs(10);
                loop {
                    let to = (ip, port).into();
                    let outcome = probe(namespace, *protocol, to, ProbeOptions::default());
                    match &outcome {
                        Outcome::Answer {
                            server: found,
                            seen_source,
                        } if found == server && *seen_source == seen => break,
                        _ => assert!(
                            Instant::now() < deadline,
                            "{protocol} from {source:?} to {to}: waited for {server} to see \
                             {seen}, last was {outcome:?}"
                        ),
                    }
                    thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

fn host_of<'a>(lab: &'a Lab, server: &str) -> &'a Namespace {
    match server {
        "pod1" => &lab.pods[0],
        "pod2" => &lab.pods[1],
        "pod3" => &lab.pods[2],
        "remote" => &lab.remote_pod,
        _ => &lab.node,
    }
}
