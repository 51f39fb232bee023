//! The rules that follow from the objects, worked out anew each time, and those in the kernel.
//!
//! Entry points: [`Expected::of`] and [`Expected::wait`].

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use integration::apiserver::Resource;
use integration::fixtures::canonical;
use integration::lab::{Lab, NODE, NODE_SECOND};
use nftproxy_core::apply::Kernel;
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::compile::{Compiled, compile};
use nftproxy_core::diff::Observed;
use nftproxy_core::k8s;
use nftproxy_core::model::{
    DetectLocal, Family, IpFamily, Node, NodeInfo, NodePortAddresses, State, V4, V6,
};
use nftproxy_core::ruleset::FamilyRuleset;
use nftproxy_core::ruleset::name::{ChainName, Pick};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::api::Api;

/// The name of the node.
pub(crate) const NODE_NAME: &str = "node";
/// Where NodePorts are served (`--nodeport-addresses`).
pub(crate) const NODE_PORT_ADDRESSES: &str = "192.0.2.0/24,2001:db8:1::/64";
/// Where pods are (`--cluster-cidr`).
pub(crate) const PODS: &str = "10.244.0.0/16,fd00:10:244::/48";

/// Both families' rules, without what history may leave its mark on.
pub(crate) struct Expected {
    v4: Wanted<V4>,
    v6: Wanted<V6>,
}

struct Wanted<F: Family> {
    ruleset: FamilyRuleset<F>,
    /// Pick chains that are needed. Others may stay, whatever is in them: nothing leads there.
    picks: BTreeSet<Pick>,
}

impl<F: Family> Wanted<F> {
    fn new(ruleset: &FamilyRuleset<F>) -> Self {
        Self {
            ruleset: canonical(ruleset),
            picks: ruleset.picks.clone(),
        }
    }

    fn may_stay(&self, chain: &ChainName) -> bool {
        matches!(chain, ChainName::Pick(pick) if !self.picks.contains(pick))
    }
}

impl Expected {
    /// What follows from the objects, on a node that has these addresses besides its own.
    pub(crate) fn of(api: &Api, more_addresses: &[IpAddr]) -> Result<Self> {
        let state = state(api)?;
        let node = node(api, more_addresses)?;
        let Compiled { v4, v6, .. } = compile(&state, &node);
        Ok(Self {
            v4: Wanted::new(&v4),
            v6: Wanted::new(&v6),
        })
    }

    /// In which points the kernel differs, in words; empty if in none.
    fn difference(&self, lab: &Lab) -> Result<Vec<String>> {
        let (v4, v6) = lab.node.run(|| -> Result<_> {
            let mut netlink = Netlink::open()?;
            let v4 = Kernel::<V4>::list(&mut netlink)?;
            let v6 = Kernel::<V6>::list(&mut netlink)?;
            Ok((v4, v6))
        })?;
        let mut differences = difference(&self.v4, v4.as_ref());
        differences.extend(difference(&self.v6, v6.as_ref()));
        Ok(differences)
    }

    /// Waits until the kernel differs in nothing, and returns in what it still does at the end.
    /// Meanwhile `watch` is called again and again.
    pub(crate) fn wait(
        &self,
        lab: &Lab,
        patience: Duration,
        mut watch: impl FnMut(),
    ) -> Result<Vec<String>> {
        let deadline = Instant::now() + patience;
        loop {
            watch();
            let differences = self.difference(lab)?;
            if differences.is_empty() || Instant::now() > deadline {
                return Ok(differences);
            }
            sleep(Duration::from_millis(10));
        }
    }

    /// The names of chains, and elements as nft wants to see them deleted.
    pub(crate) fn objects(&self, is_ipv6: bool) -> Objects {
        if is_ipv6 {
            objects(&self.v6.ruleset)
        } else {
            objects(&self.v4.ruleset)
        }
    }
}

/// What there is to be damaged in a table.
pub(crate) struct Objects {
    pub(crate) chains: Vec<String>,
    /// Set and key.
    pub(crate) elements: Vec<(String, String)>,
}

fn objects<F: Family>(ruleset: &FamilyRuleset<F>) -> Objects {
    let chains = ruleset.skeleton.chains.keys();
    let elements = ruleset.elements.iter().map(|element| {
        let text = element.nft();
        let key = text.split(" comment ").next().unwrap_or_default();
        let key = key.split(" : ").next().unwrap_or_default();
        (element.set().to_string(), key.to_owned())
    });
    Objects {
        chains: chains.map(ToString::to_string).collect(),
        elements: elements.collect(),
    }
}

fn difference<F: Family>(wanted: &Wanted<F>, found: Option<&Observed<F>>) -> Vec<String> {
    let Some(found) = found else {
        return vec![format!("{:?}: no table", F::FAMILY)];
    };
    let foreign = found.foreign.iter().map(|what| format!("foreign: {what}"));
    let mut differences: Vec<_> = foreign.collect();
    let mut found = canonical(&found.ruleset);
    let chains = &mut found.skeleton.chains;
    chains.retain(|chain, _| !wanted.may_stay(chain));
    let wanted = &wanted.ruleset;
    for element in wanted.elements.difference(&found.elements) {
        differences.push(format!("missing in {}: {}", element.set(), element.nft()));
    }
    for element in found.elements.difference(&wanted.elements) {
        differences.push(format!("too many in {}: {}", element.set(), element.nft()));
    }
    if wanted.skeleton.sets != found.skeleton.sets {
        differences.push("other sets".to_owned());
    }
    let (wanted, found) = (&wanted.skeleton.chains, &found.skeleton.chains);
    let names = wanted.keys().chain(found.keys());
    for name in names {
        if wanted.get(name) != found.get(name) {
            differences.push(format!("chain {name}"));
        }
    }
    for difference in &mut differences {
        difference.insert_str(
            0,
            if F::FAMILY == IpFamily::V4 {
                "ip: "
            } else {
                "ip6: "
            },
        );
    }
    differences
}

/// The objects as their Kubernetes types.
fn typed<T: DeserializeOwned>(api: &Api, resource: Resource) -> Result<Vec<T>> {
    let typed = |(_, object): (_, &Value)| {
        serde_json::from_value(object.clone()).with_context(|| format!("reading {object}"))
    };
    api.objects(resource).map(typed).collect()
}

fn state(api: &Api) -> Result<State> {
    let mut state = State::default();
    // What cannot be used is left out, as the program does.
    let mut problems = Vec::new();
    for object in typed(api, Resource::Services)? {
        if let Some(service) = k8s::service(&object, &mut problems) {
            state.apply_service(service);
        }
    }
    for object in typed(api, Resource::EndpointSlices)? {
        if let Some(slice) = k8s::endpoint_slice(&object, NODE_NAME, &mut problems) {
            state.apply_slice(slice);
        }
    }
    let cidrs: Vec<k8s_openapi::api::networking::v1::ServiceCIDR> =
        typed(api, Resource::ServiceCidrs)?;
    for object in &cidrs {
        let name = object.metadata.name.clone().unwrap_or_default();
        state.apply_service_cidr(&name, k8s::service_cidrs(object, &mut problems));
    }
    Ok(state)
}

fn node(api: &Api, more_addresses: &[IpAddr]) -> Result<Node> {
    let objects = typed(api, Resource::Nodes)?;
    let object = objects.first().context("the node is always there")?;
    let info: NodeInfo = k8s::node_info(object, &mut Vec::new());
    let own = [NODE, NODE_SECOND].map(|address| address.both());
    let addresses: Vec<_> = own
        .as_flattened()
        .iter()
        .chain(more_addresses)
        .copied()
        .collect();
    let ranges = NODE_PORT_ADDRESSES.split(',').map(str::parse);
    let ranges: Vec<_> = ranges.collect::<Result<_, _>>()?;
    let within = |family| NodePortAddresses::within(&ranges, &addresses, family);
    let families = [IpFamily::V4, IpFamily::V6];
    Ok(Node {
        zone: info.zone.clone(),
        detect_local: DetectLocal::Cidrs(
            PODS.split(',').map(str::parse).collect::<Result<_, _>>()?,
        ),
        node_port_addresses_v4: within(IpFamily::V4),
        node_port_addresses_v6: within(IpFamily::V6),
        ips: families
            .into_iter()
            .filter_map(|family| info.ip(family))
            .collect(),
        ..Node::default()
    })
}
