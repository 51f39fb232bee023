//! What commands that look at things look at: what is desired, and what is in the kernel.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::apply::{ApplyError, Kernel, Refusal};
use nftproxy_core::diff::Observed;
use nftproxy_core::host;
use nftproxy_core::inspect::{Desired, Finding, is_kube_proxys, kube_proxy};
use nftproxy_core::listing::{self, Listing};
use nftproxy_core::model::{Family, IpFamily, Node, State};
use nftproxy_core::neighbour::Neighbour;
use nftproxy_core::ruleset::Table;
use nftproxy_core::ruleset::element::Element;
use tracing::warn;

use super::args::{DesiredFlags, NodeFlags, ObservedFlags};
use crate::config::Settings;
use crate::daemon::node::{self, NodeSettings};
use crate::source::once::{self, Snapshot};

/// What the cluster asks for, and what this node is.
pub(crate) struct Cluster {
    pub(crate) state: State,
    pub(crate) node: Node,
    /// The node of each endpoint's address, where it is known.
    pub(crate) places: BTreeMap<IpAddr, String>,
    /// This node's addresses, as far as they are known.
    pub(crate) local: Vec<IpAddr>,
}

impl Cluster {
    pub(crate) fn desired(&self) -> Desired<'_> {
        Desired {
            state: &self.state,
            node: &self.node,
        }
    }
}

/// Whose addresses are those of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Addresses {
    /// This host's, as in the proxy: what is looked at is its kernel.
    OfThisHost,
    /// Those that are said of the node, which may be any.
    AsTold,
    /// This host's, unless it is said of the node that it has others.
    OfThisHostUnlessTold,
}

impl Addresses {
    /// For what is desired alone, which a saved listing shows to be of any node.
    pub(crate) fn of_desired(observed: &ObservedFlags) -> Self {
        if is_this_kernel(observed) {
            Self::OfThisHostUnlessTold
        } else {
            Self::AsTold
        }
    }

    /// For what is compared with what is observed.
    pub(crate) fn of_observed(observed: &ObservedFlags) -> Self {
        if is_this_kernel(observed) {
            Self::OfThisHost
        } else {
            Self::AsTold
        }
    }

    /// This host's addresses, if it is the node; `said` is what a Node object says. Only a node
    /// that goes by a name of its own can be another one.
    fn interfaces(
        self,
        flags: &NodeFlags,
        settings: &Settings,
        said: &[IpAddr],
    ) -> anyhow::Result<Option<Vec<IpAddr>>> {
        if self == Self::AsTold {
            return Ok(None);
        }
        let here = host::addresses().context("asking for this host's addresses")?;
        let is_another = settings.node_name.is_some()
            && !said.is_empty()
            && !said.iter().any(|ip| here.contains(ip));
        let is_told = !flags.ips.is_empty() || is_another;
        Ok((self == Self::OfThisHost || !is_told).then_some(here))
    }
}

/// Asks for what is desired of a node that has these addresses.
///
/// # Errors
///
/// Fails if any of it cannot be had: what is missing would be taken for something that nobody
/// wants.
pub(crate) fn cluster(
    flags: &DesiredFlags,
    settings: &Settings,
    addresses: Addresses,
) -> anyhow::Result<Cluster> {
    let node_name = super::node_name(settings)?;
    let mut snapshot = if flags.manifests.is_empty() {
        once::from_server(settings, &node_name)?
    } else {
        once::from_files(&flags.manifests, settings, &node_name)?
    };
    for problem in &snapshot.problems {
        warn!("{problem}");
    }
    if !snapshot.problems.is_empty() {
        bail!(
            "{} of the manifests could not be read",
            snapshot.problems.len()
        );
    }
    let said = snapshot.node.as_ref().map(|node| node.ips.as_slice());
    let interfaces = addresses.interfaces(&flags.node, settings, said.unwrap_or_default())?;
    if interfaces.is_some() && !flags.manifests.is_empty() {
        // A proxy that reads manifests starts with the addresses of its host.
        let guessed = super::node_info(&flags.node).ips;
        let told = snapshot.node.take();
        snapshot.node = told.map(|told| node::with_addresses(told, &guessed));
    }
    Ok(complete(snapshot, &flags.node, settings, interfaces))
}

/// Adds what is known of the node. What the command line says counts more than a manifest.
pub(crate) fn complete(
    snapshot: Snapshot,
    flags: &NodeFlags,
    settings: &Settings,
    interfaces: Option<Vec<IpAddr>>,
) -> Cluster {
    let mut info = super::node_info(flags);
    if let Some(node) = snapshot.node {
        let zone = info.zone.take();
        if !flags.ips.is_empty() || node.ips.is_empty() {
            info = nftproxy_core::model::NodeInfo {
                ips: info.ips,
                ..node
            };
        } else {
            info = node;
        }
        info.zone = zone.or(info.zone);
    }
    let local = interfaces.unwrap_or_else(|| info.ips.clone());
    Cluster {
        state: snapshot.state,
        node: node::node(&NodeSettings::new(settings), &info, &local),
        places: snapshot.places,
        local,
    }
}

/// Sees that no more than one of these is standard input, which can be read once.
///
/// # Errors
///
/// Fails if several are.
pub(crate) fn standard_input_once<'a>(
    paths: impl IntoIterator<Item = &'a PathBuf>,
) -> anyhow::Result<()> {
    let n = paths
        .into_iter()
        .filter(|path| path.as_os_str() == "-")
        .count();
    anyhow::ensure!(
        n < 2,
        "standard input (`-`) can be read once only, and is given {n} times"
    );
    Ok(())
}

/// Whether what is observed is this kernel.
pub(crate) fn is_this_kernel(flags: &ObservedFlags) -> bool {
    flags.ruleset.is_none()
}

/// Asks for what is in the kernel, or was when a listing was saved.
///
/// # Errors
///
/// Fails if the kernel cannot be asked, or the file cannot be read.
pub(crate) fn listing(flags: &ObservedFlags, families: &[IpFamily]) -> anyhow::Result<Listing> {
    let table = Table::default();
    match &flags.ruleset {
        Some(path) => Ok(listing::read(&text(path)?, &table)),
        None => kernel(families),
    }
}

/// Where desired state comes from, for people.
pub(crate) fn desired_text(flags: &DesiredFlags) -> String {
    let paths = flags
        .manifests
        .iter()
        .map(|path| path.display().to_string());
    let paths: Vec<_> = paths.collect();
    if paths.is_empty() {
        "the API server".into()
    } else {
        paths.join(", ")
    }
}

/// Where observed state comes from, for people.
pub(crate) fn observed_text(flags: &ObservedFlags) -> String {
    match &flags.ruleset {
        None => "this host's kernel".into(),
        Some(path) if path == Path::new("-") => "a listing on standard input".into(),
        Some(path) => path.display().to_string(),
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin()
            .read_to_end(&mut bytes)
            .context("reading the listing from standard input")?;
    } else {
        bytes = std::fs::read(path)
            .with_context(|| format!("reading the listing {}", path.display()))?;
    }
    // Comments of others may hold anything; what is ours is ASCII.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn kernel(families: &[IpFamily]) -> anyhow::Result<Listing> {
    let mut netlink = Netlink::open().context("opening the kernel's nf_tables")?;
    let ours = Table::default();
    let mut listing = Listing::default();
    if families.contains(&IpFamily::V4) {
        listing.v4 = table(&mut netlink).context("listing table ip nftproxy")?;
    }
    if families.contains(&IpFamily::V6) {
        listing.v6 = table(&mut netlink).context("listing table ip6 nftproxy")?;
    }
    let is_ours = |neighbour: &Neighbour| {
        matches!(neighbour.family, "ip" | "ip6") && neighbour.table == ours.name()
    };
    // Those of kube-proxy say enough by their names.
    let neighbours =
        netlink.neighbours_and_rules(|neighbour| !is_ours(neighbour) && !is_kube_proxys(neighbour));
    listing.neighbours = neighbours.context("listing others' tables")?;
    listing.neighbours.retain(|neighbour| !is_ours(neighbour));
    Ok(listing)
}

/// Our table of a family, with what it has counted.
fn table<F: Family>(netlink: &mut Netlink) -> Result<Option<Observed<F>>, ApplyError> {
    let mut table: Option<Observed<F>> = netlink.list()?;
    if let Some(table) = &mut table
        && table.ruleset.skeleton.set_options.counts
    {
        table.counts = netlink.read_counts(usize::MAX)?;
    }
    Ok(table)
}

/// Adds what session affinity has learned to what was asked of this kernel. That may be more than
/// all else, and most have no use for it; in a saved listing it is there.
///
/// # Errors
///
/// Fails if the kernel cannot be asked.
pub(crate) fn add_learned(listing: &mut Listing) -> anyhow::Result<()> {
    fn learned<F: Family>(netlink: &mut Netlink) -> Result<Vec<Element<F>>, ApplyError> {
        match netlink.list_affinity() {
            // Without the map, it is what is missing.
            Err(error) if error.refusal().is_some_and(Refusal::is_not_found) => Ok(Vec::new()),
            learned => learned,
        }
    }
    let mut netlink = Netlink::open().context("opening the kernel's nf_tables")?;
    let what = "listing what session affinity has learned";
    if let Some(v4) = &mut listing.v4 {
        v4.remembered = learned(&mut netlink).context(what)?;
    }
    if let Some(v6) = &mut listing.v6 {
        v6.remembered = learned(&mut netlink).context(what)?;
    }
    Ok(())
}

/// What may serve Services on this host beside nf_tables.
pub(crate) fn outside_of_nftables() -> Vec<Finding> {
    let read = |path: &str| match std::fs::read_to_string(path) {
        Ok(text) => Some(text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(String::new()),
        Err(_) => None,
    };
    let ipvs = read("/proc/net/ip_vs");
    let [v4, v6] = ["/proc/net/ip_tables_names", "/proc/net/ip6_tables_names"].map(read);
    kube_proxy::outside_of_nftables(
        ipvs.as_deref(),
        [(IpFamily::V4, v4.as_deref()), (IpFamily::V6, v6.as_deref())],
    )
}

/// Says on a terminal what is being done, and wipes it out when it is done.
pub(crate) struct Progress {
    is_terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    pub(crate) fn tell(&self, what: &str) {
        if self.is_terminal {
            // Nothing is lost if nobody can read it.
            let _ = write!(std::io::stderr(), "\r\x1b[K{what} …");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
