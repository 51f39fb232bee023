//! What holds while Services and endpoints change: nobody is cut off, and contested addresses go to
//! the same Service whatever the order.

use std::net::SocketAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::daemon::Daemon;
use integration::lab::{Dual, NODE};
use integration::manifest::{
    Endpoint, SERVICE_PORT, cluster_ip, external_ip, load_balancer_ip, node_port, service,
    service_cidr, slices,
};
use integration::netns::in_sandbox;
use integration::traffic::{Flow, Protocol, Stream};
use serde_json::{Value, json};

use crate::bed::{
    Bed, HOST_NETWORK, POD1, POD2, POD3, REMOTE, SERVERS, Source, destination_addresses,
};

const N_UPDATES: usize = 200;
/// Consecutive ones have anything from everything to nothing in common.
const ENDPOINTS: [&[Endpoint]; 6] = [
    &[POD1],
    &[POD1, POD2, POD3],
    &[POD2],
    &[POD3, REMOTE],
    &[HOST_NETWORK, POD2],
    &[POD1, POD2, POD3, REMOTE],
];

const BUSY: u8 = 1;
const NEIGHBOUR: u8 = 2;

/// What the busy Service is like after so many updates: every aspect comes round at its own pace.
fn busy(step: usize) -> [Value; 3] {
    let mut service = service("busy", BUSY);
    for port in service["spec"]["ports"].as_array_mut().unwrap() {
        port["nodePort"] = json!(busy_node_port(step));
    }
    if step.is_multiple_of(5) {
        let more = external_ip(BUSY + 100).both();
        let ips = service["spec"]["externalIPs"].as_array_mut().unwrap();
        ips.extend(more.map(|ip| json!(ip)));
    }
    let [v4, v6] = slices("busy", ENDPOINTS[step % ENDPOINTS.len()]);
    [service, v4, v6]
}

fn busy_node_port(step: usize) -> u16 {
    31000 + u16::try_from(step % 3).unwrap()
}

fn v4(address: Dual, port: u16) -> SocketAddr {
    (address.v4, port).into()
}

fn v6(address: Dual, port: u16) -> SocketAddr {
    (address.v6, port).into()
}

/// Waits until both families have been synced so often; each update is to be a sync of its own.
fn wait_for_syncs(daemon: &Daemon, n_syncs: usize) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while daemon
        .log()
        .matches("SyncProxyRules complete\" ipFamily=\"IPv6\"")
        .count()
        < n_syncs
    {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        sleep(Duration::from_millis(5));
    }
}

/// S-20, S-19: hundreds of updates of every aspect of a Service.
#[test]
fn updates_under_traffic_cut_nobody_off() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.manifests.put("busy", &busy(0)).unwrap();
        let [slice_v4, slice_v6] = slices("neighbour", &[POD1, REMOTE]);
        let neighbour = service("neighbour", NEIGHBOUR);
        bed.manifests
            .put("neighbour", &[neighbour, slice_v4, slice_v6])
            .unwrap();
        let daemon = bed.start_proxy();

        let mut flow = Flow::open(&bed.lab.client, v4(cluster_ip(BUSY), SERVICE_PORT)).unwrap();
        let stream = |source: Source, protocol, to| {
            let stream = Stream::start(source.namespace(&bed.lab), protocol, to);
            (format!("{protocol} from {source:?} to {to}"), stream)
        };
        let streams = [
            stream(
                Source::Pod3,
                Protocol::Tcp,
                v4(cluster_ip(BUSY), SERVICE_PORT),
            ),
            stream(
                Source::Client,
                Protocol::Tcp,
                v6(external_ip(BUSY), SERVICE_PORT),
            ),
            // Its endpoints stay, since what is on its way to one that goes may be lost with UDP.
            stream(
                Source::Client,
                Protocol::Udp,
                v4(NODE, node_port(NEIGHBOUR)),
            ),
        ];
        for step in 1..=N_UPDATES {
            bed.manifests.put("busy", &busy(step)).unwrap();
            wait_for_syncs(&daemon, step + 1);
            assert_eq!(flow.ping().unwrap(), "pod1", "after {step} updates");
        }

        for (what, stream) in streams {
            let counts = stream.stop();
            let is_server = |name: &String| SERVERS.iter().any(|(server, _)| server == name);
            assert!(counts.keys().all(is_server), "{what}: {counts:?}");
            let n_probes: usize = counts.values().sum();
            assert!(n_probes >= N_UPDATES, "{what}: only {n_probes} probes");
        }

        // The last update is in force, and nothing is left of the one before.
        let [endpoint] = ENDPOINTS[N_UPDATES % ENDPOINTS.len()] else {
            panic!("the last update leaves one endpoint");
        };
        assert_eq!(endpoint.address, POD2.address);
        let now = v6(NODE, busy_node_port(N_UPDATES));
        bed.check_one(Source::Client, Protocol::Tcp, now, "pod2");
        let before = v6(NODE, busy_node_port(N_UPDATES - 1));
        bed.check_one(Source::Client, Protocol::Tcp, before, "refused");
    });
}

/// S-20, S-117: a TCP connection or SCTP association stays, whatever happens to its Service and to the proxy, and so does
/// its entry in connection tracking.
#[test]
fn connections_stay_whatever_happens() {
    in_sandbox(|| {
        const NUMBER: u8 = 1;
        let bed = Bed::new();
        let put = |endpoints: &[Endpoint], change: &dyn Fn(&mut Value)| {
            bed.put("web", NUMBER, endpoints, change);
        };
        put(&[POD1], &|_| {});
        let daemon = bed.start_proxy();
        let sources = [Source::Client, Source::Pod1, Source::Pod3, Source::Host];
        let connected = bed
            .protocols
            .iter()
            .filter(|protocol| **protocol != Protocol::Udp);
        let mut flows: Vec<_> = destination_addresses(NUMBER)
            .flat_map(|to| sources.map(|source| (source, to)))
            .flat_map(|(source, to)| {
                connected
                    .clone()
                    .map(move |protocol| (source, to, protocol))
            })
            .map(|(source, to, protocol)| {
                let which = format!("{protocol} from {source:?} to {to}");
                let flow = Flow::open_by(source.namespace(&bed.lab), *protocol, to);
                let flow = flow.unwrap_or_else(|error| panic!("{which}: {error}"));
                (which, flow)
            })
            .collect();
        let mut check = |after: &str| {
            for (which, flow) in &mut flows {
                match flow.ping() {
                    Ok(server) => assert_eq!(server, "pod1", "{which} after {after}"),
                    Err(error) => panic!("{which} after {after}: {error}"),
                }
            }
        };
        // What new connections meet shows that each change is in force.
        let new =
            |source, wanted| bed.check(&[source], load_balancer_ip(NUMBER), SERVICE_PORT, wanted);
        check("nothing");
        put(&[POD2], &|_| {});
        new(Source::Client, "pod2");
        check("its endpoint went");
        put(&[REMOTE], &|service| {
            service["spec"]["externalTrafficPolicy"] = json!("Local");
            service["spec"]["internalTrafficPolicy"] = json!("Local");
        });
        new(Source::Client, "timeout");
        check("policy Local left no endpoint");
        put(&[POD3], &|service| {
            service["spec"]["sessionAffinity"] = json!("ClientIP")
        });
        new(Source::Client, "pod3");
        check("session affinity");
        put(&[POD3], &|service| {
            service["spec"]["loadBalancerSourceRanges"] = json!(["198.18.0.0/32", "fd00::/128"]);
        });
        new(Source::Client, "timeout");
        check("source ranges that shut it out");
        put(&[], &|_| {});
        new(Source::Client, "refused");
        check("all endpoints went");
        bed.manifests.put("cidr", &[service_cidr()]).unwrap();
        bed.manifests.remove("web").unwrap();
        bed.check(&[Source::Pod3], cluster_ip(NUMBER), SERVICE_PORT, "timeout");
        check("the Service went");
        daemon.stop().unwrap();
        let _daemon = bed.start_proxy();
        check("a restart");

        let list = [
            "conntrack",
            "-L",
            "-p",
            "tcp",
            "--state",
            "ESTABLISHED",
            "-f",
        ];
        for (family, ip) in ["ipv4", "ipv6"].into_iter().zip(POD1.address.both()) {
            let list = bed.lab.node.exec(&[&list[..], &[family]].concat()).unwrap();
            let to_pod = format!("src={ip} ");
            let n_entries = list.lines().filter(|line| line.contains(&to_pod)).count();
            // Four kinds of destination, and each source.
            assert!(n_entries >= 4 * sources.len(), "{list}");
        }
    });
}

/// S-15: the older of two Services that claim an address has it, whatever came first.
#[test]
fn a_contested_external_ip_goes_to_the_older_service() {
    in_sandbox(|| {
        let mut bed = Bed::new();
        bed.serve(|lab| &lab.node, "listener", NODE, node_port(2));
        let contested = external_ip(50);
        let put = |name, number, created, endpoint| {
            let mut service = service(name, number);
            service["metadata"]["creationTimestamp"] = json!(created);
            service["spec"]["externalIPs"] = json!(contested.both());
            let [v4, v6] = slices(name, &[endpoint]);
            bed.manifests.put(name, &[service, v4, v6]).unwrap();
        };
        let check = |server| bed.check(&[Source::Client], contested, SERVICE_PORT, server);
        let conflict = "default/a-younger:tcp is not reachable at tcp 198.51.100.50:80, \
                        which default/b-older:tcp has already";

        let mut daemon = bed.start_proxy();
        put("a-younger", 2, "2026-01-02T00:00:00Z", POD2);
        check("pod2");
        put("b-older", 1, "2026-01-01T00:00:00Z", POD1);
        check("pod1");
        daemon.wait_for_log(conflict).unwrap();
        daemon.stop().unwrap();

        let mut daemon = bed.start_proxy();
        check("pod1");
        daemon.wait_for_log(conflict).unwrap();
        bed.manifests.remove("b-older").unwrap();
        check("pod2");

        // S-73: the destinations of a deleted Service are nobody's.
        let to = v4(NODE, node_port(2));
        bed.check_one(Source::Client, Protocol::Tcp, to, "pod2");
        bed.manifests.remove("a-younger").unwrap();
        bed.check_one(Source::Client, Protocol::Tcp, to, "listener");
    });
}
