//! `nftproxy explain`: what becomes of a connection, and why.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use nftproxy_core::inspect::{Explanation, OfFamily, Query, Way, dot, explain, svg};
use nftproxy_core::listing::Listing;
use nftproxy_core::model::{Family, IpFamily, Protocol, Service, V4, V6};
use nftproxy_core::trace::{Outcome, Packet};
use serde::Serialize;

use super::args::{Basis, ExplainArgs, ExplainFormat};
use super::inputs::{self, Cluster, Progress};
use super::list::{DocumentEndpoint, document_endpoint, endpoint_text};
use super::paint::{self, Paint};
use crate::config::Settings;

/// The version of the JSON document. It changes when what is there changes its meaning.
const DOCUMENT_VERSION: u32 = 1;
/// Clients outside of clusters, RFC 5737 and RFC 3849.
const OUTSIDE: (Ipv4Addr, Ipv6Addr) = (
    Ipv4Addr::new(198, 51, 100, 1),
    Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
);
/// The interface of a packet that came in by one that nobody named.
const SOME_INTERFACE: &str = "(any)";

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Document<'a> {
    version: u32,
    from: IpAddr,
    to: IpAddr,
    port: u16,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_interface: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    service_port: Option<&'a str>,
    by: &'static str,
    ways: Vec<DocumentWay>,
    #[serde(skip_serializing_if = "Option::is_none")]
    desired_ways: Option<Vec<DocumentWay>>,
    reasons: &'a [String],
    endpoints: Vec<DocumentEndpoint<'a>>,
}

#[derive(Debug, Serialize)]
struct DocumentWay {
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    masquerade: Option<bool>,
    /// An exact fraction, such as `1/3`.
    share: String,
    steps: Vec<DocumentStep>,
}

#[derive(Debug, Serialize)]
struct DocumentStep {
    chain: String,
    /// From 1.
    rule: usize,
    text: String,
}

/// Follows a connection, prints, and says by the exit code how it ends.
pub(crate) fn run(args: &ExplainArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let progress = Progress::new();
    let is_this_kernel = inputs::is_this_kernel(&args.observed);
    let uses_kernel = args.by != Basis::Desired
        && !(is_this_kernel && !args.desired.manifests.is_empty() && args.by == Basis::Both);
    progress.tell("reading what is desired");
    let cluster = match args.by {
        Basis::Kernel => None,
        Basis::Desired | Basis::Both => Some(inputs::cluster(
            &args.desired,
            settings,
            is_this_kernel && uses_kernel,
        )?),
    };
    progress.tell("reading the rules");
    let listing = uses_kernel
        .then(|| inputs::listing(&args.observed, &[IpFamily::V4, IpFamily::V6]))
        .transpose()?;
    if let Some(listing) = &listing
        && let Some(unread) = listing.unread.first()
    {
        bail!("the listing cannot be read as a whole: {unread}");
    }
    let local = match &cluster {
        Some(cluster) => cluster.local.clone(),
        None if is_this_kernel => {
            nftproxy_core::host::addresses().context("asking for this host's addresses")?
        }
        None => args.desired.node.ips.clone(),
    };
    let ends = ends(args, cluster.as_ref(), &local)?;
    drop(progress);
    let inputs = Inputs {
        args,
        cluster: cluster.as_ref(),
        listing: listing.as_ref(),
        local,
    };
    match (ends.from, ends.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => inputs.run::<V4>(from, to, &ends),
        (IpAddr::V6(from), IpAddr::V6(to)) => inputs.run::<V6>(from, to, &ends),
        (from, to) => bail!("{from} and {to} are not of one family"),
    }
}

/// The two ends of a connection.
struct Ends {
    from: IpAddr,
    to: IpAddr,
    port: u16,
    protocol: Protocol,
    is_from_node: bool,
}

struct Inputs<'a> {
    args: &'a ExplainArgs,
    cluster: Option<&'a Cluster>,
    listing: Option<&'a Listing>,
    local: Vec<IpAddr>,
}

impl Inputs<'_> {
    fn run<F: OfFamily>(
        &self,
        from: F::Address,
        to: F::Address,
        ends: &Ends,
    ) -> anyhow::Result<ExitCode> {
        let input_interface = match &self.args.iif {
            Some(name) => Some(name.clone()),
            None if ends.is_from_node => None,
            None => Some(SOME_INTERFACE.to_owned()),
        };
        let query = Query::<F> {
            packet: Packet {
                source: from,
                destination: to,
                protocol: ends.protocol.number(),
                destination_port: ends.port,
                input_interface,
                mark: 0,
            },
            local: self.local.clone(),
        };
        let node_of = |ip| self.cluster?.places.get(&ip).cloned();
        let desired = self.cluster.map(Cluster::desired);
        let explanation = explain::<F>(desired, self.listing, &query, &node_of)
            .context("the rules cannot be followed")?;
        paint::print(&match self.args.output {
            ExplainFormat::Text => self.text(&query, &explanation, ends, Paint::of_stdout()),
            ExplainFormat::Json => paint::json(&document(&query, &explanation, ends))?,
            ExplainFormat::Dot => dot(&query, &explanation),
            ExplainFormat::Svg => svg(&query, &explanation),
        })?;
        let is_bad = |way: &Way<F>| matches!(way.outcome, Outcome::Drop | Outcome::Refuse { .. });
        let is_bad = explanation.ways.iter().any(is_bad) || explanation.desired.is_some();
        Ok(ExitCode::from(u8::from(is_bad)))
    }

    fn text<F: OfFamily>(
        &self,
        query: &Query<F>,
        explanation: &Explanation<F>,
        ends: &Ends,
        paint: Paint,
    ) -> String {
        let mut out = String::new();
        let to = std::net::SocketAddr::new(ends.to, ends.port);
        let what = match &explanation.service_port {
            Some(service_port) => format!(" ({service_port})"),
            None => String::new(),
        };
        let by = if explanation.is_found {
            "by the rules that are there"
        } else {
            "by the rules that are desired"
        };
        let head = format!(
            "{} → {to}/{}{what}, {by}:",
            ends.from,
            ends.protocol.nft_name()
        );
        let _ = writeln!(out, "{}", paint.strong(&head));
        ways_text(&mut out, &explanation.ways, self.cluster, paint);
        if let Some(ways) = &explanation.desired {
            let _ = writeln!(out, "{}", paint.bad("but the cluster asks for:"));
            ways_text(&mut out, ways, self.cluster, paint);
        }
        let _ = writeln!(out, "why:");
        for reason in &explanation.reasons {
            let _ = writeln!(out, "  {reason}");
        }
        if query.packet.input_interface.as_deref() == Some(SOME_INTERFACE)
            && asks_interface(explanation)
        {
            let _ = writeln!(
                out,
                "  rules ask for the interface it comes in by: name it with --iif"
            );
        }
        let left_out: Vec<_> = explanation
            .endpoints
            .iter()
            .filter(|endpoint| !endpoint.is_used() || endpoint.reason_locally().is_some())
            .collect();
        if !left_out.is_empty() {
            let _ = writeln!(out, "endpoints left out:");
            for endpoint in left_out {
                let node = self
                    .cluster
                    .and_then(|cluster| cluster.places.get(&endpoint.address.ip()));
                let node = node.map(|node| format!(" [{node}]")).unwrap_or_default();
                let _ = writeln!(out, "  {}{node}", endpoint_text(endpoint, paint));
            }
        }
        for steps in distinct_steps(&explanation.ways) {
            let _ = writeln!(out, "{}", steps.0);
            for (number, step) in steps.1.iter().enumerate() {
                let _ = writeln!(out, "  {}. {step}", number + 1);
            }
        }
        out
    }
}

fn asks_interface<F: Family>(explanation: &Explanation<F>) -> bool {
    let mut steps = explanation.ways.iter().flat_map(|way| &way.steps);
    steps.any(|step| step.text.contains("iifname"))
}

/// The steps of each kind of way: those to endpoints differ by the last number only.
fn distinct_steps<F: Family>(ways: &[Way<F>]) -> Vec<(String, &[nftproxy_core::trace::Step])> {
    let mut shown: Vec<(String, &[_])> = Vec::new();
    for way in ways {
        let chains = |steps: &[nftproxy_core::trace::Step]| -> Vec<_> {
            steps.iter().map(|step| (step.chain, step.rule)).collect()
        };
        if !shown
            .iter()
            .any(|(_, steps)| chains(steps) == chains(&way.steps))
        {
            shown.push((format!("steps to {}:", way.outcome), &way.steps));
        }
    }
    shown
}

fn ways_text<F: Family>(
    out: &mut String,
    ways: &[Way<F>],
    cluster: Option<&Cluster>,
    paint: Paint,
) {
    for way in ways {
        let node = match way.outcome {
            Outcome::Endpoint { endpoint, .. } => {
                let ip: IpAddr = endpoint.address.into();
                cluster
                    .and_then(|cluster| cluster.places.get(&ip))
                    .map(|node| format!(" on {node}"))
            }
            _ => None,
        };
        let text = match way.outcome {
            Outcome::Endpoint { .. } => paint.good(&way.outcome.to_string()),
            Outcome::Pass { .. } => way.outcome.to_string(),
            Outcome::Drop | Outcome::Refuse { .. } => paint.bad(&way.outcome.to_string()),
        };
        let share = way.share.to_string();
        let _ = writeln!(out, "  {share:>5}  {text}{}", node.unwrap_or_default());
    }
}

fn document<'a, F: Family>(
    query: &'a Query<F>,
    explanation: &'a Explanation<F>,
    ends: &Ends,
) -> Document<'a> {
    let ways = |ways: &[Way<F>]| ways.iter().map(document_way).collect();
    Document {
        version: DOCUMENT_VERSION,
        from: ends.from,
        to: ends.to,
        port: ends.port,
        protocol: ends.protocol.nft_name(),
        input_interface: query
            .packet
            .input_interface
            .as_deref()
            .filter(|name| *name != SOME_INTERFACE),
        service_port: explanation.service_port.as_deref(),
        by: if explanation.is_found {
            "kernel"
        } else {
            "desired"
        },
        ways: ways(&explanation.ways),
        desired_ways: explanation.desired.as_deref().map(ways),
        reasons: &explanation.reasons,
        endpoints: explanation
            .endpoints
            .iter()
            .map(document_endpoint)
            .collect(),
    }
}

fn document_way<F: Family>(way: &Way<F>) -> DocumentWay {
    let (outcome, endpoint, masquerade) = match way.outcome {
        Outcome::Pass { masquerade } => ("pass", None, Some(masquerade)),
        Outcome::Endpoint {
            endpoint,
            masquerade,
        } => {
            let address = std::net::SocketAddr::new(endpoint.address.into(), endpoint.port.get());
            ("endpoint", Some(address.to_string()), Some(masquerade))
        }
        Outcome::Drop => ("drop", None, None),
        Outcome::Refuse { .. } => ("refuse", None, None),
    };
    let steps = way.steps.iter().map(|step| DocumentStep {
        chain: step.chain.to_string(),
        rule: step.rule + 1,
        text: step.text.clone(),
    });
    DocumentWay {
        outcome,
        endpoint,
        masquerade,
        share: way.share.to_string(),
        steps: steps.collect(),
    }
}

/// Finds out which addresses are meant.
fn ends(args: &ExplainArgs, cluster: Option<&Cluster>, local: &[IpAddr]) -> anyhow::Result<Ends> {
    let (place, protocol) = match args.to.rsplit_once('/') {
        Some((place, protocol))
            if Protocol::from_kubernetes(&protocol.to_uppercase()).is_some() =>
        {
            (place, Protocol::from_kubernetes(&protocol.to_uppercase()))
        }
        Some((_, protocol))
            if args.to.matches('/').count() == 2
                || !args.to.contains(':') && protocol.len() < 3 =>
        {
            bail!("{protocol:?} is no protocol that Services have")
        }
        _ => (args.to.as_str(), None),
    };
    let (name, port) = host_and_port(place)?;
    let family = match args.from.parse() {
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
        let ip = local
            .iter()
            .find(|ip| !ip.is_loopback() && of_family(ip))
            .context("the addresses of this node are not known: name them with --node-ip")?;
        (
            *ip,
            port.parse()
                .with_context(|| format!("{port:?} is no port"))?,
            protocol.unwrap_or(Protocol::Tcp),
        )
    } else {
        service_end(service(name, cluster)?, port, protocol, family)?
    };
    let family = IpFamily::of(to);
    let is_of = |ip: &&IpAddr| IpFamily::of(**ip) == family;
    let from = match args.from.as_str() {
        "outside" => match family {
            IpFamily::V4 => OUTSIDE.0.into(),
            IpFamily::V6 => OUTSIDE.1.into(),
        },
        "node" => *local
            .iter()
            .find(|ip| is_of(ip) && !ip.is_loopback())
            .context("the addresses of this node are not known: name them with --node-ip")?,
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
        is_from_node: args.iif.is_none() && local.contains(&from),
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

/// A Service as where a connection goes to: its ClusterIP, and its port by number or name.
fn service_end(
    service: &Service,
    port: Option<&str>,
    protocol: Option<Protocol>,
    family: Option<IpFamily>,
) -> anyhow::Result<(IpAddr, u16, Protocol)> {
    let name = &service.name;
    let v4 = service.cluster_ip::<V4>().map(IpAddr::from);
    let v6 = service.cluster_ip::<V6>().map(IpAddr::from);
    let ip = [v4, v6]
        .into_iter()
        .flatten()
        .find(|ip| family.is_none_or(|family| IpFamily::of(*ip) == family));
    let ip = ip.with_context(|| format!("Service {name} has no ClusterIP of this family"))?;
    let fits = |candidate: &&nftproxy_core::model::ServicePort| {
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
    use nftproxy_core::inspect::services;
    use nftproxy_core::model::Locality;
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
