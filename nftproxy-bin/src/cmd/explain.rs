//! `nftproxy explain`: what becomes of a connection, and why.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context, bail};
use nftproxy_core::inspect::{Explanation, OfFamily, Query, Way, dot, explain, svg};
use nftproxy_core::listing::Listing;
use nftproxy_core::model::{Family, IpFamily, V4, V6};
use nftproxy_core::trace::{Outcome, Packet};
use serde::Serialize;

use super::args::{Basis, ExplainArgs, ExplainFormat};
use super::ends::{Ends, ends};
use super::inputs::{self, Addresses, Cluster, Progress};
use super::list::{DocumentEndpoint, document_endpoint, endpoint_text};
use super::paint::{self, Paint};
use crate::config::Settings;
use crate::daemon::loopback;

/// The version of the JSON document. It changes when what is there changes its meaning.
const DOCUMENT_VERSION: u32 = 1;
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
    inputs::standard_input_once(args.desired.manifests.iter().chain(&args.observed.ruleset))?;
    let is_this_kernel = inputs::is_this_kernel(&args.observed);
    let by = args.by();
    let uses_kernel = by != Basis::Desired;
    progress.tell("reading what is desired");
    let addresses = if uses_kernel {
        Addresses::of_observed(&args.observed)
    } else {
        Addresses::of_desired(&args.observed)
    };
    // Manifests cost nothing to ask for names, and an API server may not be there.
    let is_known = by != Basis::Kernel || !args.desired.manifests.is_empty();
    let cluster = is_known
        .then(|| inputs::cluster(&args.desired, settings, addresses))
        .transpose()?;
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
    let ends = ends(
        &args.from,
        &args.to,
        args.iif.is_some(),
        cluster.as_ref(),
        &local,
    )?;
    drop(progress);
    let inputs = Inputs {
        args,
        cluster: cluster.as_ref().filter(|_| by != Basis::Kernel),
        listing: listing.as_ref(),
        local,
        has_relay: settings.node_ports_on_loopback,
    };
    match (ends.from, ends.to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => inputs.run::<V4>(from, to, &ends),
        (IpAddr::V6(from), IpAddr::V6(to)) => inputs.run::<V6>(from, to, &ends),
        (from, to) => bail!("{from} and {to} are not of one family"),
    }
}

struct Inputs<'a> {
    args: &'a ExplainArgs,
    cluster: Option<&'a Cluster>,
    listing: Option<&'a Listing>,
    local: Vec<IpAddr>,
    /// Whether the program relays NodePorts on loopback.
    has_relay: bool,
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
        let mut explanation = explain::<F>(desired, self.listing, &query, &node_of)
            .context("the rules cannot be followed")?;
        self.add_relay(&mut explanation, ends);
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

    /// What rules leave alone may be for the program itself, which relays NodePorts on loopback.
    fn add_relay<F: Family>(&self, explanation: &mut Explanation<F>, ends: &Ends) {
        let is_left = |way: &Way<F>| matches!(way.outcome, Outcome::Pass { .. });
        let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let is_there =
            loopback.contains(&ends.to) && (ends.is_from_node || ends.from.is_loopback());
        if !self.has_relay || !is_there || !explanation.ways.iter().all(is_left) {
            return;
        }
        let Some(cluster) = self.cluster else {
            let reason = "no rule is for NodePorts on loopback: the proxy itself listens there, and relays to the Service's ClusterIP";
            explanation.reasons = vec![reason.into()];
            return;
        };
        let at = SocketAddr::new(ends.to, ends.port);
        if let Some((name, to)) = loopback::relayed(&cluster.state, ends.protocol, at) {
            explanation.reasons = vec![format!(
                "no rule is for NodePorts on loopback: the proxy itself listens at {at}, and relays to the ClusterIP of {name}, {to}, as any process of this node"
            )];
            explanation.service_port = Some(name.to_string());
        }
    }

    fn text<F: OfFamily>(
        &self,
        query: &Query<F>,
        explanation: &Explanation<F>,
        ends: &Ends,
        paint: Paint,
    ) -> String {
        let mut out = String::new();
        let to = SocketAddr::new(ends.to, ends.port);
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
            let address = SocketAddr::new(endpoint.address.into(), endpoint.port.get());
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
