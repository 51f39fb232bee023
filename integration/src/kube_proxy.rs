//! What kube-proxy has in the kernel for Services as [`crate::manifest`] makes them, in its modes
//! nftables and iptables: the rules that a connection meets, in kube-proxy's words and order.
//!
//! Source ranges, node addresses for NodePorts and traffic policies are left out. Entry points:
//! [`nftables`] and [`iptables`].

use std::fmt::Write;
use std::net::IpAddr;

use crate::lab::Dual;
use crate::manifest::{
    ENDPOINT_PORT, SERVICE_PORT, cluster_ip, external_ip, load_balancer_ip, node_port,
};

/// Which protocols the ports of the Services have.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// A Service in namespace `default`.
#[derive(Clone, Copy, Debug)]
pub struct Service<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number, as in [`crate::manifest::service`].
    pub number: u8,
    /// Its endpoints.
    pub endpoints: &'a [Dual],
    /// For how many seconds clients keep their endpoint, if they do.
    pub affinity: Option<u32>,
}

/// The pods, whose connections to ClusterIPs keep their address.
const CLUSTER_CIDRS: [&str; 2] = ["10.244.0.0/16", "fd00:10:244::/48"];

/// The name of the set that has the clients of an endpoint.
pub fn affinity_set(service: &str, protocol: &str, endpoint: IpAddr) -> String {
    format!("affinity-{}", endpoint_name(service, protocol, endpoint))
}

fn endpoint_name(service: &str, protocol: &str, endpoint: IpAddr) -> String {
    let ip = endpoint.to_string().replace(':', ".");
    format!("5OJB2KTY-default/{service}/{protocol}/{protocol}__{ip}/{ENDPOINT_PORT}")
}

/// A script for `nft -f` that makes the tables of both families.
pub fn nftables(services: &[Service<'_>]) -> String {
    ["ip", "ip6"].map(|family| table(family, services)).concat()
}

fn table(family: &str, services: &[Service<'_>]) -> String {
    let is_v4 = family == "ip";
    let index = usize::from(!is_v4);
    let (kind, localhost) = if is_v4 {
        ("ipv4_addr", "127.0.0.0/8")
    } else {
        ("ipv6_addr", "::1")
    };
    let mut out = format!(
        "table {family} kube-proxy {{
    comment \"rules for kube-proxy\"
    map no-endpoint-services {{ type {kind} . inet_proto . inet_service : verdict; }}
    map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; }}
    map firewall-ips {{ type {kind} . inet_proto . inet_service : verdict; }}
    chain mark-for-masquerade {{ meta mark set meta mark or 0x4000; }}
    chain masquerading {{
        meta mark & 0x4000 == 0 return
        meta mark set meta mark xor 0x4000
        masquerade fully-random
    }}
    chain reject-chain {{ reject; }}
"
    );
    let (mut ips, mut ports) = (Vec::new(), Vec::new());
    for service in services {
        for protocol in PROTOCOLS {
            let base = format!("ULMVA6XW-default/{}/{protocol}/{protocol}", service.name);
            let verdict = format!("goto external-{base}");
            let at = |address: Dual| address.both()[index];
            let cluster_ip = at(cluster_ip(service.number));
            ips.push(format!(
                "{cluster_ip} . {protocol} . {SERVICE_PORT} : goto service-{base}"
            ));
            for ip in [
                external_ip(service.number),
                load_balancer_ip(service.number),
            ] {
                ips.push(format!(
                    "{} . {protocol} . {SERVICE_PORT} : {verdict}",
                    at(ip)
                ));
            }
            ports.push(format!(
                "{protocol} . {} : {verdict}",
                node_port(service.number)
            ));
            write_service(&mut out, family, index, service, protocol, &base);
        }
    }
    let (ips, ports) = (ips.join(", "), ports.join(", "));
    let _ = write!(
        out,
        "    map service-ips {{
        type {kind} . inet_proto . inet_service : verdict
        elements = {{ {ips} }}
    }}
    map service-nodeports {{
        type inet_proto . inet_service : verdict
        elements = {{ {ports} }}
    }}
    chain endpoints-check {{
        {family} daddr . meta l4proto . th dport vmap @no-endpoint-services
        fib daddr type local {family} daddr != {localhost} meta l4proto . th dport vmap @no-endpoint-nodeports
    }}
    chain firewall-check {{ {family} daddr . meta l4proto . th dport vmap @firewall-ips; }}
    chain services {{
        {family} daddr . meta l4proto . th dport vmap @service-ips
        fib daddr type local {family} daddr != {localhost} meta l4proto . th dport vmap @service-nodeports
    }}
"
    );
    for (chain_type, hook, priority, rule) in [
        (
            "filter",
            "prerouting",
            -110,
            "ct state new jump firewall-check",
        ),
        ("filter", "input", -110, "ct state new jump endpoints-check"),
        (
            "filter",
            "forward",
            -110,
            "ct state new jump endpoints-check",
        ),
        ("filter", "output", -110, "ct state new jump firewall-check"),
        ("nat", "prerouting", -100, "jump services"),
        ("nat", "output", -100, "jump services"),
        ("nat", "postrouting", 100, "jump masquerading"),
    ] {
        let _ = writeln!(
            out,
            "    chain {chain_type}-{hook} {{
        type {chain_type} hook {hook} priority {priority}; policy accept;
        {rule}
    }}"
        );
    }
    out + "}\n"
}

fn write_service(
    out: &mut String,
    family: &str,
    index: usize,
    service: &Service<'_>,
    protocol: &str,
    base: &str,
) {
    let mut choice = Vec::new();
    let mut known = String::new();
    for (number, endpoint) in service.endpoints.iter().enumerate() {
        let ip = endpoint.both()[index];
        let name = endpoint_name(service.name, protocol, ip);
        let mut update = String::new();
        if let Some(seconds) = service.affinity {
            let kind = if index == 0 { "ipv4_addr" } else { "ipv6_addr" };
            let _ = writeln!(
                out,
                "    set affinity-{name} {{ type {kind}; flags dynamic,timeout; timeout {seconds}s; }}"
            );
            update = format!("update @affinity-{name} {{ {family} saddr }}");
            let _ = writeln!(
                known,
                "        {family} saddr @affinity-{name} goto endpoint-{name}"
            );
        }
        let to = std::net::SocketAddr::new(ip, ENDPOINT_PORT);
        let _ = writeln!(
            out,
            "    chain endpoint-{name} {{
        {family} saddr {ip} jump mark-for-masquerade
        {update}
        meta l4proto {protocol} dnat to {to}
    }}"
        );
        choice.push(format!("{number} : goto endpoint-{name}"));
    }
    let cluster_ip = cluster_ip(service.number).both()[index];
    let cluster_cidr = CLUSTER_CIDRS[index];
    let (n, choice) = (choice.len(), choice.join(", "));
    let _ = writeln!(
        out,
        "    chain service-{base} {{
        {family} daddr {cluster_ip} {protocol} dport {SERVICE_PORT} {family} saddr != {cluster_cidr} jump mark-for-masquerade
{known}        numgen random mod {n} vmap {{ {choice} }}
    }}
    chain external-{base} {{
        jump mark-for-masquerade
        goto service-{base}
    }}"
    );
}

/// A script for `iptables-restore` (`is_v4`) or `ip6tables-restore`, with what matters to packets.
pub fn iptables(is_v4: bool, services: &[Service<'_>]) -> String {
    let index = usize::from(!is_v4);
    let mut chains = String::new();
    let mut rules = String::new();
    for service in services {
        for protocol in PROTOCOLS {
            let name = format!("{}{}", service.number, protocol.to_uppercase());
            let _ = writeln!(chains, ":KUBE-SVC-{name} - [0:0]\n:KUBE-EXT-{name} - [0:0]");
            let at = |address: Dual| address.both()[index];
            let to = format!("-p {protocol} -m {protocol} --dport {SERVICE_PORT}");
            let cluster_ip = at(cluster_ip(service.number));
            let cluster_cidr = CLUSTER_CIDRS[index];
            let _ = writeln!(
                rules,
                "-A KUBE-SERVICES -d {cluster_ip} {to} -j KUBE-SVC-{name}
-A KUBE-SVC-{name} ! -s {cluster_cidr} -d {cluster_ip} {to} -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -p {protocol} -m {protocol} --dport {} -j KUBE-EXT-{name}
-A KUBE-EXT-{name} -j KUBE-MARK-MASQ
-A KUBE-EXT-{name} -j KUBE-SVC-{name}",
                node_port(service.number)
            );
            for ip in [
                external_ip(service.number),
                load_balancer_ip(service.number),
            ] {
                let _ = writeln!(
                    rules,
                    "-A KUBE-SERVICES -d {} {to} -j KUBE-EXT-{name}",
                    at(ip)
                );
            }
            let n = service.endpoints.len();
            for (number, endpoint) in service.endpoints.iter().enumerate() {
                let ip = at(*endpoint);
                let chance = 1.0 / (n - number) as f64;
                let chance = format!("-m statistic --mode random --probability {chance:.10}");
                let chance = if number + 1 == n { "" } else { &chance };
                let to = std::net::SocketAddr::new(ip, ENDPOINT_PORT);
                let comment = format!("default/{}:{protocol}", service.name);
                let _ = writeln!(chains, ":KUBE-SEP-{name}{number} - [0:0]");
                let _ = writeln!(
                    rules,
                    "-A KUBE-SVC-{name} -m comment --comment \"{comment} -> {to}\" {chance} -j KUBE-SEP-{name}{number}
-A KUBE-SEP-{name}{number} -s {ip} -j KUBE-MARK-MASQ
-A KUBE-SEP-{name}{number} -p {protocol} -m {protocol} -j DNAT --to-destination {to}"
                );
            }
        }
    }
    format!(
        "*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
{chains}-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
{rules}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
COMMIT
"
    )
}
