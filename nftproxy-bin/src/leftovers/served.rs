//! What kube-proxy's rules of mode iptables do with connections, as `iptables-save` prints them.
//! Entry point: [`served`].

use std::net::IpAddr;

use nftproxy_core::model::{EndpointAddress, Family, IpFamily, Protocol};
use nftproxy_core::neighbour::{Served, Treatment};
use nftproxy_core::ruleset::element::Destination;

use super::program::run;

/// Asks all programs that are there; `None` if none knows of rules.
pub(crate) fn served<F: Family>() -> anyhow::Result<Option<Served<F>>> {
    let programs = match F::FAMILY {
        IpFamily::V4 => ["iptables-nft-save", "iptables-legacy-save", "iptables-save"],
        IpFamily::V6 => [
            "ip6tables-nft-save",
            "ip6tables-legacy-save",
            "ip6tables-save",
        ],
    };
    for program in programs {
        if let Some(saved) = run(program, &[], "")? {
            let served = read::<F>(&saved);
            if !served.destinations.is_empty() {
                return Ok(Some(served));
            }
        }
    }
    Ok(None)
}

fn read<F: Family>(saved: &str) -> Served<F> {
    let mut served = Served::default();
    for line in saved.lines() {
        let Some(rule) = line.strip_prefix("-A ") else {
            continue;
        };
        if let Some((service_port, endpoint)) = endpoint::<F>(rule) {
            let endpoints = served.endpoints.entry(service_port).or_default();
            endpoints.insert(endpoint);
        } else if let Some((destination, treatment)) = destination::<F>(rule) {
            // What is served to some counts as served.
            let known = served.destinations.entry(destination).or_insert(treatment);
            *known = (*known).min(treatment);
        }
    }
    served
}

/// The word after an option.
fn value<'a>(rule: &'a str, option: &str) -> Option<&'a str> {
    let mut words = rule.split(' ');
    words.find(|word| *word == option)?;
    words.next()
}

fn destination<F: Family>(rule: &str) -> Option<(Destination<F>, Treatment)> {
    let address = match rule.split(' ').next()? {
        "KUBE-NODEPORTS" => None,
        "KUBE-SERVICES" | "KUBE-EXTERNAL-SERVICES" => match value(rule, "-d") {
            Some(range) => {
                let ip: IpAddr = range.split('/').next()?.parse().ok()?;
                Some(F::address(ip)?)
            }
            // A NodePort without endpoints.
            None => None,
        },
        _ => return None,
    };
    let treatment = match value(rule, "-j")? {
        "REJECT" => Treatment::Refused,
        "DROP" => Treatment::Dropped,
        chain
            if chain.starts_with("KUBE-SVC-")
                || chain.starts_with("KUBE-SVL-")
                || chain.starts_with("KUBE-EXT-") =>
        {
            Treatment::Served
        }
        _ => return None,
    };
    let destination = Destination {
        address,
        protocol: Protocol::from_kubernetes(&value(rule, "-p")?.to_uppercase())?,
        port: value(rule, "--dport")?.parse().ok()?,
    };
    Some((destination, treatment))
}

/// `-A KUBE-SVC-… --comment "namespace/name:port -> address:port" … -j KUBE-SEP-…`
fn endpoint<F: Family>(rule: &str) -> Option<(String, EndpointAddress<F>)> {
    if !value(rule, "-j")?.starts_with("KUBE-SEP-") {
        return None;
    }
    let (_, rest) = rule.split_once("--comment \"")?;
    let (service_port, endpoint) = rest.split_once('"')?.0.split_once(" -> ")?;
    let (address, port) = endpoint.rsplit_once(':')?;
    let ip: IpAddr = address.trim_matches(['[', ']']).parse().ok()?;
    let endpoint = EndpointAddress {
        address: F::address(ip)?,
        port: port.parse().ok()?,
    };
    Some((service_port.to_owned(), endpoint))
}

#[cfg(test)]
mod tests {
    use nftproxy_core::model::{V4, V6};

    use super::*;

    #[test]
    fn rules_are_read_as_they_are_saved() {
        let saved = "*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES -d 10.96.0.10/32 -p udp -m comment --comment \"kube-system/kube-dns:dns cluster IP\" -m udp --dport 53 -j KUBE-SVC-TCOU
-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment \"a/b:c\" -m tcp --dport 30080 -j KUBE-EXT-ABC
-A KUBE-SVC-TCOU -m comment --comment \"kube-system/kube-dns:dns -> 10.244.0.2:53\" -m statistic --mode random --probability 0.5 -j KUBE-SEP-1
-A KUBE-SVC-TCOU -m comment --comment \"kube-system/kube-dns:dns -> [fd00::2]:53\" -j KUBE-SEP-2
COMMIT
*filter
-A KUBE-EXTERNAL-SERVICES -p tcp -m comment --comment \"a/b:c has no local endpoints\" -m addrtype --dst-type LOCAL -m tcp --dport 30080 -j DROP
-A KUBE-SERVICES -d 10.96.0.11/32 -p tcp -m comment --comment \"d/e has no endpoints\" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
";
        let served = read::<V4>(saved);
        let found = served.destinations.iter();
        let found: Vec<_> = found
            .map(|(at, treatment)| format!("{at} {treatment}"))
            .collect();
        assert_eq!(found.len(), 3, "{found:?}");
        for expected in ["10.96.0.10", "10.96.0.11", "30080"] {
            assert_eq!(
                found.iter().filter(|it| it.contains(expected)).count(),
                1,
                "{found:?}"
            );
        }
        assert_eq!(
            found.iter().filter(|it| it.ends_with("served")).count(),
            2,
            "{found:?}"
        );
        assert_eq!(
            found.iter().filter(|it| it.ends_with("refused")).count(),
            1,
            "{found:?}"
        );
        assert_eq!(served.endpoints["kube-system/kube-dns:dns"].len(), 1);
        assert_eq!(
            read::<V6>(saved).endpoints["kube-system/kube-dns:dns"].len(),
            1
        );
    }
}
