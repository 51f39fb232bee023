//! The node `node-1` of the recorded cluster: its network namespace, the API server beside it, and
//! the rules that must be in its kernel.
//!
//! Entry point: [`RecordedNode`].

use std::net::IpAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use nftproxy_core::apply::Kernel;
use nftproxy_core::apply::netlink::Netlink;
use nftproxy_core::compile::{Compiled, compile};
use nftproxy_core::model::{DetectLocal, Node, NodePortAddresses, State, V4, V6};
use nftproxy_core::ruleset::FamilyRuleset;

use crate::apiserver::{ApiServer, Resource};
use crate::daemon::Daemon;
use crate::fixtures::{NODE_NAME, canonical, read};
use crate::netns::Namespace;
use crate::traffic::patience;

/// The addresses of the node.
pub const NODE_IPS: [&str; 2] = ["172.18.0.2", "fd00:172:18::2"];
/// Where its pods are.
pub const PODS: &str = "10.244.0.0/16";
const ZONE: &str = "eu-1a";
/// Both families' tables, as far as they are there.
pub type Tables = (Option<FamilyRuleset<V4>>, Option<FamilyRuleset<V6>>);

/// A namespace with the node's addresses, which `nftproxy` finds nothing wrong with.
#[derive(Debug)]
pub struct RecordedNode {
    /// Where it is.
    pub namespace: Namespace,
}

impl RecordedNode {
    /// Makes one, without rules.
    ///
    /// # Errors
    ///
    /// Those of [`Namespace::new`].
    pub fn new() -> Result<Self> {
        let namespace = Namespace::new("node")?;
        for ip in NODE_IPS {
            namespace.exec(&["ip", "addr", "add", ip, "dev", "lo"])?;
        }
        for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            namespace.sysctl(key, "1")?;
        }
        Ok(Self { namespace })
    }

    /// Starts an API server of the recorded cluster, over plain HTTP.
    ///
    /// # Errors
    ///
    /// Fails if there is no free port, or a recording cannot be read.
    pub fn serve(&self) -> Result<ApiServer> {
        let server = self.namespace.run(ApiServer::start)?;
        load(&server)?;
        Ok(server)
    }

    /// Starts `nftproxy run` as this node's proxy, with more arguments.
    ///
    /// # Errors
    ///
    /// Those of [`Daemon::start`].
    pub fn start(&self, arguments: &[&str]) -> Result<Daemon> {
        let common = [
            "run",
            "--hostname-override",
            NODE_NAME,
            "--cluster-cidr",
            PODS,
        ];
        Daemon::start(&self.namespace, &[&common, arguments].concat())
    }

    /// What the kernel holds.
    ///
    /// # Errors
    ///
    /// Fails if the kernel cannot be asked.
    pub fn listed(&self) -> Result<Tables> {
        self.namespace.run(|| {
            let mut netlink = Netlink::open()?;
            let v4 = Kernel::<V4>::list(&mut netlink)?;
            let v6 = Kernel::<V6>::list(&mut netlink)?;
            Ok((
                v4.map(|table| canonical(&table.ruleset)),
                v6.map(|table| canonical(&table.ruleset)),
            ))
        })
    }

    /// Waits until the kernel holds the rules that follow from `state` on `node`.
    ///
    /// # Panics
    ///
    /// If that takes longer than ten seconds, or in an emulated machine a minute.
    #[track_caller]
    pub fn wait_for_rules(&self, daemon: &Daemon, state: &State, node: &Node) {
        let Compiled { v4, v6, .. } = compile(state, node);
        let wanted = (Some(canonical(&v4)), Some(canonical(&v6)));
        let deadline = Instant::now() + 10 * patience();
        loop {
            let found = self.listed().expect("the kernel can be asked");
            if found == wanted {
                return;
            }
            if Instant::now() > deadline {
                let wanted = lines(&canonical(&v4));
                let found = found.0.as_ref().map(lines).unwrap_or_default();
                let missing: Vec<_> = wanted.iter().filter(|line| !found.contains(line)).collect();
                let extra: Vec<_> = found.iter().filter(|line| !wanted.contains(line)).collect();
                panic!(
                    "missing {missing:#?}, too many {extra:#?}, log:\n{}",
                    daemon.log()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn lines(ruleset: &FamilyRuleset<V4>) -> Vec<String> {
    let elements = ruleset.elements.iter();
    elements
        .map(|element| format!("{}: {}", element.set(), element.nft()))
        .collect()
}

/// The node as its proxy should see it.
///
/// # Panics
///
/// Never: its addresses are such.
pub fn model() -> Node {
    let address = |ip: &str| -> IpAddr { ip.parse().expect("it is an address") };
    let only = |ip: &str| NodePortAddresses::Only([address(ip)].into());
    Node {
        zone: Some(ZONE.into()),
        detect_local: DetectLocal::Cidrs(vec![PODS.parse().expect("it is a range")]),
        node_port_addresses_v4: only(NODE_IPS[0]),
        node_port_addresses_v6: only(NODE_IPS[1]),
        ips: NODE_IPS.map(address).to_vec(),
        ..Node::default()
    }
}

/// Gives a server the recorded cluster, in place of what it had.
///
/// # Errors
///
/// Fails if a recording cannot be read.
pub fn load(server: &ApiServer) -> Result<()> {
    for resource in Resource::ALL {
        let file = format!("{}.json", resource.plural());
        server.load_list(resource, &read(&file))?;
    }
    Ok(())
}
