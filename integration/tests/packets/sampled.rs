//! Random Services, and what becomes of real packets to them.
//!
//! A packet may end in any way that `oracle` allows, which reads the behaviour contract literally;
//! and `trace` must find just these ways in the rules that the kernel holds. All randomness comes
//! from a fixed seed, and which of several allowed endpoints answers is left open. It knows no
//! rules itself, only what their outcomes look like in the lab. Read [`check_sample`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::thread;
use std::time::Duration;

use integration::lab::{Dual, NODE, NODE_SECOND, POD_GATEWAY};
use integration::manifest::{
    Conditions, ENDPOINT_PORT, Endpoint, SERVICE_PORT, cluster_ip, external_ip, load_balancer_ip,
    node_port, service, service_cidr, slices,
};
use integration::netns::in_sandbox;
use integration::traffic::{Outcome, ProbeOptions, Protocol, probe};
use nftproxy_core::apply::Kernel;
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::k8s;
use nftproxy_core::model::{
    DetectLocal, EndpointAddress, Family, Node, NodePortAddresses, State, V4, V6,
};
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::trace::{self, Packet, trace};
use serde_json::{Value, json};

use crate::bed::{Bed, HOST_NETWORK, POD1, POD2, POD3, REMOTE, SERVERS, Source};
use crate::common::{Twin, is_local};
use crate::oracle;
use crate::services::retype;

const N_SERVICES: u8 = 50;
/// The number of no Service. Some Services have its external and load-balancer IPs, and others its
/// NodePort, for which they then compete.
const SHARED: u8 = 200;
const OTHER_PORT: u16 = SERVICE_PORT + 1;
const N_PROBES: usize = 400;
pub(crate) const N_THREADS: usize = 8;
/// How many of the probes may be refused, and how many may have to wait for nothing.
const MAX_UNANSWERED: usize = 80;
const REFUSED: &str = "refused";
pub(crate) const SILENCE: &str = "timeout";

const SOURCE_RANGES: [&str; 14] = [
    "192.0.2.0/24",
    "192.0.2.10/32",
    "192.0.2.100/32",
    "10.244.1.0/24",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "0.0.0.0/0",
    "2001:db8:1::/64",
    "2001:db8:1::10/128",
    "2001:db8:1::100/128",
    "fd00:10:244:1::/64",
    "::/1",
    "8000::/1",
    "::/0",
];

/// Numbers that look random and are the same in every run, by the generator SplitMix64.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        usize::try_from(mixed % u64::try_from(n).unwrap()).unwrap()
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

/// The node, and the objects as the proxy and the oracle get them.
pub(crate) struct Cluster {
    pub(crate) node: Node,
    /// By the number of their Service.
    objects: BTreeMap<u8, Vec<Value>>,
    pub(crate) state: State,
}

impl Cluster {
    pub(crate) fn sample(dice: &mut Dice, node: Node) -> Self {
        let objects: BTreeMap<_, _> = (1..=N_SERVICES)
            .map(|number| (number, sample_objects(dice, number)))
            .collect();
        let state = state_of(objects.values().flatten());
        Self {
            node,
            objects,
            state,
        }
    }

    pub(crate) fn write(&self, bed: &Bed) {
        for (number, objects) in &self.objects {
            bed.manifests.put(&name_of(*number), objects).unwrap();
        }
        bed.manifests.put("cidr", &[service_cidr()]).unwrap();
        // Without a Node object, NodePorts are accepted everywhere, and there is no zone.
        if let Some(zone) = &self.node.zone {
            let node = integration::manifest::node("node", NODE, Some(zone));
            bed.manifests.put("node", &[node]).unwrap();
        }
    }
}

fn name_of(number: u8) -> String {
    format!("service-{number}")
}

fn state_of<'a>(objects: impl Iterator<Item = &'a Value>) -> State {
    let (mut state, mut problems) = (State::default(), Vec::new());
    for object in objects {
        let json = object.clone();
        if object["kind"] == "Service" {
            let object = serde_json::from_value(json).unwrap();
            if let Some(service) = k8s::service(&object, &mut problems) {
                state.apply_service(service);
            }
        } else {
            let object = serde_json::from_value(json).unwrap();
            if let Some(slice) = k8s::endpoint_slice(&object, "node", &mut problems) {
                state.apply_slice(slice);
            }
        }
    }
    let cidr = serde_json::from_value(service_cidr()).unwrap();
    state.apply_service_cidr("kubernetes", k8s::service_cidrs(&cidr, &mut problems));
    assert_eq!(problems, []);
    state
}

/// A Service and its slices.
fn sample_objects(dice: &mut Dice, number: u8) -> Vec<Value> {
    let name = name_of(number);
    let mut objects = vec![sample_service(dice, number)];
    for index in 0..1 + dice.below(2) {
        // The families differ in all but the Service.
        for family in [0, 1] {
            let has_hints = dice.one_in(2);
            let endpoints: Vec<_> = (0..dice.below(5))
                .map(|_| sample_endpoint(dice, has_hints))
                .collect();
            let mut slice = slices(&name, &endpoints)[family].clone();
            slice["metadata"]["name"] = json!(format!("{name}-{family}-{index}"));
            if dice.one_in(8) {
                slice["ports"].as_array_mut().unwrap().remove(dice.below(2));
            }
            objects.push(slice);
        }
    }
    objects
}

fn sample_service(dice: &mut Dice, number: u8) -> Value {
    let mut service = service(&name_of(number), number);
    let day = 1 + dice.below(3);
    service["metadata"]["creationTimestamp"] = json!(format!("2026-01-0{day}T00:00:00Z"));
    if dice.one_in(20) {
        let key = "service.kubernetes.io/service-proxy-name";
        service["metadata"]["labels"] = json!({key: "other"});
    }
    if dice.one_in(4) {
        let shared = load_balancer_ip(SHARED).both().map(|ip| json!({"ip": ip}));
        let ingress = &mut service["status"]["loadBalancer"]["ingress"];
        ingress.as_array_mut().unwrap().extend(shared);
    }

    let spec = &mut service["spec"];
    let external = [
        external_ip(number),
        external_ip(SHARED),
        load_balancer_ip(number),
    ];
    let external = external.into_iter().filter(|_| dice.one_in(2));
    spec["externalIPs"] = external.flat_map(Dual::both).map(|ip| json!(ip)).collect();
    if let Some(family) = dice.pick(&[None, None, None, Some(0), Some(1)]) {
        spec["ipFamilyPolicy"] = json!("SingleStack");
        for key in ["ipFamilies", "clusterIPs"] {
            spec[key] = json!([spec[key][family]]);
        }
        spec["clusterIP"] = spec["clusterIPs"][0].clone();
    }
    for key in ["internalTrafficPolicy", "externalTrafficPolicy"] {
        spec[key] = json!(dice.pick(&["Cluster", "Local"]));
    }
    if dice.one_in(3) {
        let ranges = (0..=dice.below(4)).map(|_| dice.pick(&SOURCE_RANGES));
        spec["loadBalancerSourceRanges"] = ranges.collect();
    }
    if dice.one_in(6) {
        spec["sessionAffinity"] = json!("ClientIP");
    }

    let ports = spec["ports"].as_array_mut().unwrap();
    // All but SCTP, which many kernels lack.
    ports.truncate(2);
    for port in &mut *ports {
        if dice.one_in(4) {
            port["port"] = json!(OTHER_PORT);
        }
        if dice.one_in(8) {
            port["nodePort"] = json!(node_port(SHARED));
        }
    }
    if dice.one_in(5) {
        ports.remove(dice.below(2));
    }
    let kinds = ["LoadBalancer", "LoadBalancer", "NodePort", "ClusterIP"];
    retype(&mut service, dice.pick(&kinds));
    if dice.one_in(3) {
        let methods = ["random", "source-hash", "source-hash", "maglev"];
        let weights = [
            "",
            "10.244.1.11=2",
            "10.244.1.12=0, fd00:10:244:1::12=0, 10.244.2.11=3",
        ];
        service["metadata"]["annotations"] = json!({
            "nftproxy.io/balancing": dice.pick(&methods),
            "nftproxy.io/weights": dice.pick(&weights),
        });
    }
    service
}

fn sample_endpoint(dice: &mut Dice, has_hints: bool) -> Endpoint {
    let endpoint = dice.pick(&[POD1, POD2, POD3, REMOTE, HOST_NETWORK]);
    // Hints count only if every ready endpoint has one.
    let is_hinted = has_hints && !dice.one_in(8);
    Endpoint {
        node: endpoint.node.filter(|_| !dice.one_in(6)),
        conditions: dice.pick(&[
            Conditions::READY,
            Conditions::READY,
            Conditions::READY,
            Conditions::READY,
            Conditions::READY,
            Conditions::SERVING,
            Conditions::UNREADY,
            Conditions::TERMINATING,
            Conditions::TERMINATING,
            Conditions::ENDED,
            Conditions::TERMINATING_YET_READY,
        ]),
        for_zone: is_hinted.then(|| dice.pick(&["zone-a", "zone-b"])),
        for_node: (is_hinted && !dice.one_in(3)).then(|| dice.pick(&["node", "node2"])),
        ..endpoint
    }
}

/// Connections of one kind, made one after the other.
pub(crate) struct Probe {
    /// Of the Service it is about; it may meet another, or none.
    number: u8,
    pub(crate) source: Source,
    pub(crate) protocol: Protocol,
    pub(crate) to: SocketAddr,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            number,
            source,
            protocol,
            to,
        } = self;
        write!(f, "{protocol} from {source:?} to {to} of Service {number}")
    }
}

impl Probe {
    fn sample(dice: &mut Dice) -> Self {
        let number = 1 + u8::try_from(dice.below(N_SERVICES.into())).unwrap();
        let port = dice.pick(&[SERVICE_PORT, SERVICE_PORT, SERVICE_PORT, OTHER_PORT]);
        let (address, port) = dice.pick(&[
            (cluster_ip(number), port),
            (cluster_ip(number), port),
            (external_ip(number), port),
            (load_balancer_ip(number), port),
            (load_balancer_ip(number), port),
            (external_ip(SHARED), port),
            (load_balancer_ip(SHARED), port),
            (NODE, node_port(number)),
            (NODE, node_port(number)),
            (NODE, node_port(SHARED)),
            (NODE_SECOND, node_port(number)),
            (POD_GATEWAY, node_port(number)),
        ]);
        Self {
            number,
            source: dice.pick(&Source::ALL),
            protocol: dice.pick(&[Protocol::Tcp, Protocol::Udp]),
            to: (dice.pick(&address.both()), port).into(),
        }
    }

    /// The first packet of such a connection.
    pub(crate) fn packet<F: Twin>(&self) -> Packet<F> {
        let destination = F::address(self.to.ip()).unwrap();
        // What the node sends to an address of its own comes from there, too.
        let is_to_itself = self.source == Source::Host && is_local::<F>(destination);
        Packet {
            source: if is_to_itself {
                destination
            } else {
                F::of(self.source.address())
            },
            destination,
            protocol: if self.protocol == Protocol::Tcp {
                6
            } else {
                17
            },
            destination_port: self.to.port(),
            input_interface: self.source.input_interface().map(str::to_owned),
            mark: 0,
        }
    }

    /// What the client sees if its packet has this outcome.
    pub(crate) fn text<F: Twin>(&self, packet: &Packet<F>, outcome: &trace::Outcome<F>) -> String {
        match outcome {
            trace::Outcome::Endpoint {
                endpoint: EndpointAddress { address, port },
                masquerade,
            } => {
                assert_eq!(port.get(), ENDPOINT_PORT);
                let (server, _) = SERVERS
                    .into_iter()
                    .find(|(_, host)| F::of(*host) == *address)
                    .unwrap();
                self.answer_text(server, packet.source.into(), *masquerade)
            }
            trace::Outcome::Refuse { .. } => REFUSED.to_owned(),
            trace::Outcome::Drop => SILENCE.to_owned(),
            // Nobody listens there.
            trace::Outcome::Pass { .. } if is_local::<F>(packet.destination) => REFUSED.to_owned(),
            // The outside host, where it ends up, discards it. Only the trace tells it from a drop.
            trace::Outcome::Pass { .. } => SILENCE.to_owned(),
        }
    }

    fn answer_text(&self, server: &str, source: IpAddr, masquerade: bool) -> String {
        let (is_remote, family) = (server == "remote", usize::from(self.to.is_ipv6()));
        let is_behind_node = [Source::Pod1, Source::Pod3, Source::Host].contains(&self.source);
        let seen = match masquerade {
            // The answer does not come back by way of the node that has translated the request.
            false if is_remote && !is_behind_node => return SILENCE.to_owned(),
            false => source,
            // The address of the node that is next to the server.
            true if is_remote => NODE.both()[family],
            true => POD_GATEWAY.both()[family],
        };
        self.seen_text(server, seen)
    }

    pub(crate) fn seen_text(&self, server: &str, seen: IpAddr) -> String {
        // From the node to itself any of its addresses will do, as all of them can be answered.
        if self.source == Source::Host && server == "node" {
            "node sees itself".to_owned()
        } else {
            format!("{server} sees {seen}")
        }
    }

    /// All that the client may see.
    fn allowed<F: Twin>(&self, cluster: &Cluster) -> BTreeSet<String> {
        let packet = self.packet::<F>();
        oracle::outcomes(&cluster.state, &cluster.node, &packet)
            .iter()
            .map(|outcome| self.text(&packet, outcome))
            .collect()
    }

    /// What the client sees of some connections.
    fn observe(&self, bed: &Bed, allowed: &BTreeSet<String>) -> BTreeSet<String> {
        let is_silent = allowed.contains(SILENCE);
        let n_connections = if is_silent && allowed.len() == 1 {
            1
        } else {
            3
        };
        let options = ProbeOptions {
            from: None,
            // An answer that is late is no error where silence is allowed.
            timeout: Duration::from_millis(if is_silent { 200 } else { 3000 }),
        };
        let namespace = self.source.namespace(&bed.lab);
        let mut observed = BTreeSet::new();
        for _ in 0..n_connections {
            let text = match probe(namespace, self.protocol, self.to, options) {
                Outcome::Answer {
                    server,
                    seen_source,
                } => self.seen_text(&server, seen_source),
                other => other.to_string(),
            };
            let is_allowed = allowed.contains(&text);
            observed.insert(text);
            if !is_allowed {
                break;
            }
        }
        observed
    }

    /// Compares what is observed and what is traced with what is allowed; what is wrong, if
    /// anything is.
    fn check<F: Twin>(
        &self,
        cluster: &Cluster,
        bed: &Bed,
        rules: &FamilyRuleset<F>,
    ) -> Option<String> {
        let Cluster {
            state,
            node,
            objects,
        } = cluster;
        let packet = self.packet::<F>();
        let outcomes = oracle::outcomes(state, node, &packet);
        let traced: BTreeSet<_> = trace(rules, &packet, &is_local::<F>)
            .unwrap()
            .into_keys()
            .collect();
        let allowed = self.allowed::<F>(cluster);
        let observed = self.observe(bed, &allowed);

        let n_servers = observed.iter().filter(|text| *text != SILENCE).count();
        let is_sticky = oracle::affinity(state, node, &packet).is_some();
        let fault = if !observed.is_subset(&allowed) {
            "it is not what is allowed"
        } else if is_sticky && n_servers > 1 {
            "session affinity allows one server only"
        } else if traced != outcomes {
            "the trace is not what is allowed"
        } else {
            return None;
        };
        let addressee = oracle::addressee_name(state, node, &packet);
        let objects: Vec<_> = objects[&self.number].iter().map(Value::to_string).collect();
        Some(format!(
            "{self}: {fault}\n  observed {observed:?}\n  allowed {allowed:?}\n  \
             by the contract {outcomes:?}\n  by the trace {traced:?}\n  {packet:?}\n  \
             it is for {addressee:?}; objects of Service {}:\n  {}",
            self.number,
            objects.join("\n  ")
        ))
    }
}

/// Probes that differ from each other. If two were alike, session affinity would let the one
/// disturb the other.
pub(crate) fn sample_probes(dice: &mut Dice, cluster: &Cluster) -> Vec<Probe> {
    let mut probes: Vec<Probe> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut n_unanswered = BTreeMap::from([(REFUSED, 0), (SILENCE, 0)]);
    while probes.len() < N_PROBES {
        let probe = Probe::sample(dice);
        let is_alike = |other: &Probe| {
            (other.source, other.protocol, other.to) == (probe.source, probe.protocol, probe.to)
        };
        if probes.iter().any(is_alike) {
            continue;
        }
        let allowed = match probe.to {
            SocketAddr::V4(_) => probe.allowed::<V4>(cluster),
            SocketAddr::V6(_) => probe.allowed::<V6>(cluster),
        };
        let mut counts = n_unanswered.iter_mut();
        if let Some((_, count)) = counts.find(|(text, _)| allowed.contains(**text)) {
            if *count == MAX_UNANSWERED {
                continue;
            }
            *count += 1;
        }
        seen.extend(allowed);
        probes.push(probe);
    }
    // A sample without one of these would show little.
    for text in [REFUSED, SILENCE] {
        assert!(seen.contains(text), "nothing of the sample is {text}");
    }
    for (server, _) in SERVERS {
        let is_its = |text: &&String| text.starts_with(server);
        let n_sources = seen.iter().filter(is_its).count();
        assert!(n_sources > 2, "{server} sees too few sources: {seen:?}");
    }
    probes
}

pub(crate) fn list<F: Family>(bed: &Bed) -> FamilyRuleset<F>
where
    Netlink: Kernel<F>,
{
    let observed = bed
        .lab
        .node
        .run(|| Kernel::<F>::list(&mut Netlink::open().unwrap()).unwrap());
    observed.unwrap().ruleset
}

/// Probes a sampled cluster. `node` is what the proxy is to make of its flags.
fn check_sample(seed: u64, node: Node, flags: &[&str]) {
    in_sandbox(|| {
        let mut dice = Dice(seed);
        let cluster = Cluster::sample(&mut dice, node);
        let probes = sample_probes(&mut dice, &cluster);

        let bed = Bed::new();
        cluster.write(&bed);
        let daemon = bed.start_proxy_with(flags);
        let (v4, v6) = (list::<V4>(&bed), list::<V6>(&bed));

        let check = |probe: &Probe| match probe.to {
            SocketAddr::V4(_) => probe.check(&cluster, &bed, &v4),
            SocketAddr::V6(_) => probe.check(&cluster, &bed, &v6),
        };
        // Much of the time is waiting for drops. A few faults of each thread say enough.
        let wrong: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = probes
                .chunks(N_PROBES / N_THREADS)
                .map(|probes| {
                    let wrong = || probes.iter().filter_map(check).take(2).collect::<Vec<_>>();
                    scope.spawn(wrong)
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(
            wrong.is_empty(),
            "{}\nlog:\n{}",
            wrong.join("\n"),
            daemon.log()
        );
    });
}

/// The node as the proxy knows it from its Node object.
pub(crate) fn known_node() -> Node {
    let only = |ip: IpAddr| NodePortAddresses::Only([ip].into());
    Node {
        zone: Some("zone-a".into()),
        node_port_addresses_v4: only(NODE.v4.into()),
        node_port_addresses_v6: only(NODE.v6.into()),
        ips: NODE.both().into(),
        ..Node::default()
    }
}

/// S-60 to S-72, and with them S-1, S-4 to S-6, S-15 to S-17, S-25, S-26, S-29 to S-33, S-40 to
/// S-48, S-50 to S-56, S-85 to S-91, S-96, S-103, S-104, S-106, S-107 and S-110 to S-113: whatever
/// Services and endpoints there are, each packet ends in one of the ways that these rules allow.
/// Pods are told by address.
#[test]
fn sampled_services_where_pods_are_told_by_address() {
    let pods = ["10.244.0.0/16", "fd00:10:244::/48"];
    let node = Node {
        detect_local: DetectLocal::Cidrs(pods.map(|cidr| cidr.parse().unwrap()).into()),
        ..known_node()
    };
    check_sample(1, node, &[]);
}

/// The same where pods are told by interface, all ClusterIP traffic is masqueraded (S-89),
/// NodePorts are accepted at all addresses (S-55), and the zone is not known (S-46).
#[test]
fn sampled_services_where_pods_are_told_by_interface() {
    let node = Node {
        detect_local: DetectLocal::InterfaceNamePrefix("pod".parse().unwrap()),
        masquerade_all: true,
        ..Node::default()
    };
    let flags = [
        "--detect-local-mode=InterfaceNamePrefix",
        "--pod-interface-name-prefix=pod",
        "--masquerade-all",
        "--nodeport-addresses=0.0.0.0/0,::/0",
    ];
    check_sample(2, node, &flags);
}

/// The same where nobody is known to be a pod (S-52, S-74).
#[test]
fn sampled_services_where_pods_are_not_told() {
    check_sample(3, known_node(), &["--cluster-cidr="]);
}
