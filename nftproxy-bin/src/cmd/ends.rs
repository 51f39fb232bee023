//! The two ends of a connection, by what people call them. Entry point: [`ends`].

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context, bail, ensure};
use nftproxy_core::host;
use nftproxy_core::inspect::services;
use nftproxy_core::model::{
    IpFamily, Locality, Protocol, Service, ServicePort, SliceEndpoints, V4, V6,
};

use super::inputs::Cluster;

/// Clients outside of clusters, RFC 5737 and RFC 3849.
const OUTSIDE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
);

/// The two ends of a connection.
pub(super) struct Ends {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) port: u16,
    pub(super) protocol: Protocol,
    /// Whether a process of this node connects.
    pub(super) is_from_node: bool,
}

/// Finds out which addresses are meant.
pub(super) fn ends(
    from: &str,
    to: &str,
    has_interface: bool,
    cluster: Option<&Cluster>,
    local: &[IpAddr],
) -> anyhow::Result<Ends> {
    // The node goes by its own address; a bridge's may come before it among those of the host.
    let own: Vec<IpAddr> = match cluster {
        Some(cluster) => cluster.node.ips.to_vec(),
        None => host::guess_node_ips(),
    };
    let known = own.iter().filter(|ip| local.contains(ip)).chain(local);
    let of_node = |fits: &dyn Fn(&IpAddr) -> bool| {
        let mut known = known.clone().filter(|ip| !ip.is_loopback());
        known
            .find(|ip| fits(ip))
            .copied()
            .context("the addresses of this node are not known: name them with --node-ip")
    };
    let (place, protocol) = match to.rsplit_once('/') {
        Some((place, protocol))
            if Protocol::from_kubernetes(&protocol.to_uppercase()).is_some() =>
        {
            (place, Protocol::from_kubernetes(&protocol.to_uppercase()))
        }
        Some((_, protocol))
            if to.matches('/').count() == 2 || !to.contains(':') && protocol.len() < 3 =>
        {
            bail!("{protocol:?} is no protocol that Services have")
        }
        _ => (to, None),
    };
    let (name, port) = host_and_port(place)?;
    let family = match from.parse() {
        Ok(ip) => Some(IpFamily::of(ip)),
        Err(_) => None,
    };
    let of_family = |ip: &IpAddr| family.is_none_or(|family| IpFamily::of(*ip) == family);
    let (to, port, protocol) = if let Ok(ip) = name.parse::<IpAddr>() {
        let port = port.context("TO needs a port, as in 10.96.0.10:53/udp")?;
        (
            ip,
            port.parse()
                .with_context(|| format!("{port:?} is no port"))?,
            protocol.unwrap_or(Protocol::Tcp),
        )
    } else if name == "node" {
        let port = port.context("TO needs a port, as in node:30080")?;
        (
            of_node(&of_family)?,
            port.parse()
                .with_context(|| format!("{port:?} is no port"))?,
            protocol.unwrap_or(Protocol::Tcp),
        )
    } else {
        service_end(service(name, cluster)?, cluster, port, protocol, family)?
    };
    let family = IpFamily::of(to);
    let from = match from {
        "outside" => match family {
            IpFamily::V4 => OUTSIDE.0.into(),
            IpFamily::V6 => OUTSIDE.1.into(),
        },
        "node" => of_node(&|ip| IpFamily::of(*ip) == family)?,
        name => match name.parse() {
            Ok(ip) => ip,
            Err(_) => endpoint_of(service(name, cluster)?, cluster, family)?,
        },
    };
    Ok(Ends {
        from,
        to,
        port,
        protocol,
        is_from_node: !has_interface && local.contains(&from),
    })
}

/// `10.0.0.1:80`, `[fd00::1]:80`, `fd00::1`, `shop/api:http` or `shop/api`.
fn host_and_port(text: &str) -> anyhow::Result<(&str, Option<&str>)> {
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest
            .split_once(']')
            .with_context(|| format!("{text:?} lacks a bracket"))?;
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None => Ok((host, None)),
        };
    }
    if text.matches(':').count() > 1 {
        return Ok((text, None));
    }
    Ok(match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    })
}

fn service<'a>(name: &str, cluster: Option<&'a Cluster>) -> anyhow::Result<&'a Service> {
    let cluster = cluster.with_context(|| {
        format!("{name:?} is no address, and Services are known by name only from the cluster or manifests")
    })?;
    let is_it =
        |service: &&Service| service.name.as_str() == name || service.name.parts().1 == name;
    let mut all = cluster.state.services().filter(is_it);
    let first = all
        .next()
        .with_context(|| format!("{name:?} is no address, nor a Service that is served here"))?;
    if let Some(second) = all.next() {
        bail!(
            "{name:?} is {} and {}, and maybe more: name the namespace",
            first.name,
            second.name
        );
    }
    Ok(first)
}

/// A Service as where a connection goes to: its ClusterIP, of the family in which it has endpoints
/// if that can be chosen, and its port by number or name.
fn service_end(
    service: &Service,
    cluster: Option<&Cluster>,
    port: Option<&str>,
    protocol: Option<Protocol>,
    family: Option<IpFamily>,
) -> anyhow::Result<(IpAddr, u16, Protocol)> {
    let name = &service.name;
    let v4 = service.cluster_ip::<V4>().map(IpAddr::from);
    let v6 = service.cluster_ip::<V6>().map(IpAddr::from);
    let of_family = |ip: &IpAddr| family.is_none_or(|family| IpFamily::of(*ip) == family);
    let ips = || [v4, v6].into_iter().flatten().filter(of_family);
    let has_endpoints = |ip: &IpAddr| {
        let slices = cluster.map_or(&[][..], |cluster| cluster.state.slices(name));
        slices.iter().any(|slice| match (&slice.endpoints, ip) {
            (SliceEndpoints::V4(endpoints), IpAddr::V4(_)) => !endpoints.is_empty(),
            (SliceEndpoints::V6(endpoints), IpAddr::V6(_)) => !endpoints.is_empty(),
            _ => false,
        })
    };
    let ip = ips().find(has_endpoints).or_else(|| ips().next());
    let ip = ip.with_context(|| format!("Service {name} has no ClusterIP of this family"))?;
    let fits = |candidate: &&ServicePort| {
        protocol.is_none_or(|protocol| candidate.protocol == protocol)
            && port.is_none_or(|port| {
                candidate.name.as_str() == port || candidate.port.to_string() == port
            })
    };
    let mut ports = service.ports.iter().filter(fits);
    match (ports.next(), ports.next(), port) {
        (Some(only), None, _) => Ok((ip, only.port.get(), only.protocol)),
        (Some(_), Some(_), None) => bail!("Service {name} has several ports: name one"),
        (Some(first), Some(_), Some(_)) => Ok((ip, first.port.get(), first.protocol)),
        // A port that the Service does not have is a question, too.
        (None, _, Some(port)) => {
            let number = port
                .parse()
                .with_context(|| format!("Service {name} has no port {port:?}"))?;
            Ok((ip, number, protocol.unwrap_or(Protocol::Tcp)))
        }
        (None, _, None) => bail!("Service {name} has no such port"),
    }
}

/// A Service as who connects: one of its endpoints, on this node if it has one here.
fn endpoint_of(
    service: &Service,
    cluster: Option<&Cluster>,
    family: IpFamily,
) -> anyhow::Result<IpAddr> {
    let cluster = cluster.context("endpoints are known only from the cluster or manifests")?;
    let rows = match family {
        IpFamily::V4 => services::<V4>(cluster.desired()),
        IpFamily::V6 => services::<V6>(cluster.desired()),
    };
    let name = service.name.as_str();
    let of_service = rows
        .iter()
        .filter(|row| row.service_port.split(':').next() == Some(name));
    let mut endpoints: Vec<_> = of_service.flat_map(|row| &row.endpoints).collect();
    endpoints.sort_by_key(|endpoint| endpoint.locality != Some(Locality::Local));
    ensure!(
        !endpoints.is_empty(),
        "Service {name} has no endpoints to connect from"
    );
    Ok(endpoints[0].address.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_from_their_ports() {
        for (text, expected) in [
            ("10.0.0.1:80", ("10.0.0.1", Some("80"))),
            ("[fd00::1]:80", ("fd00::1", Some("80"))),
            ("fd00::1", ("fd00::1", None)),
            ("shop/api:http", ("shop/api", Some("http"))),
            ("api", ("api", None)),
        ] {
            assert_eq!(host_and_port(text).unwrap(), expected, "{text}");
        }
        assert!(host_and_port("[fd00::1").is_err());
    }
}
