//! The name of every object in our tables. No other file holds these strings.

use std::fmt;
use std::num::NonZeroU32;

/// The table's name, the same in both families: `table ip nftproxy`, `table ip6 nftproxy`.
pub const TABLE: &str = "nftproxy";

/// The table's comment.
pub const TABLE_COMMENT: &str = "Kubernetes Services, managed by nftproxy";

/// Bytes that nft(8) accepts in the comment of an element (`NFTNL_UDATA_COMMENT_MAXLEN`).
pub const COMMENT_MAX_LEN: usize = 128;

/// Bytes the kernel accepts in a chain's or set's name, with its NUL (`NFT_NAME_MAXLEN`).
pub const NAME_MAX_LEN: usize = 256;

/// A set or map. The order is the one in which they are created and listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetName {
    /// ClusterIPs of the Services we proxy, with or without endpoints.
    ClusterIps,
    /// Addresses that accept NodePort connections; unused when all local addresses do.
    NodePortIps,
    /// Endpoints that need masquerading when they reach themselves.
    Hairpin,
    /// Load-balancer addresses, protocols and ports that only some sources may reach.
    Restricted,
    /// Virtual address, protocol, port, source range: who may reach a restricted one.
    AllowedSources,
    /// Virtual address, protocol, port → how connections to it behave.
    Services,
    /// External address, protocol, port → the pick among the cluster's endpoints.
    External,
    /// External address, protocol, port → the pick among this node's endpoints.
    Local,
    /// Virtual address, protocol, port, slot → endpoint.
    Endpoints,
    /// The same for this node's endpoints, under `externalTrafficPolicy: Local`.
    LocalEndpoints,
    /// Virtual address, protocol, port → refusal or drop for want of endpoints.
    Unavailable,
    /// External address, protocol, port under `externalTrafficPolicy: Local`.
    ExternalLocal,
    /// The NodePorts of Services with endpoints.
    NodePorts,
    /// As `external`, for NodePorts.
    ExternalNodePorts,
    /// As `local`, for NodePorts.
    LocalNodePorts,
    /// As `endpoints`, for NodePorts.
    NodePortEndpoints,
    /// As `local-endpoints`, for NodePorts.
    LocalNodePortEndpoints,
    /// As `unavailable`, for NodePorts.
    UnavailableNodePorts,
    /// As `external-local`, for NodePorts.
    ExternalLocalNodePorts,
    /// Virtual address, protocol, port with session affinity → for how long it is remembered.
    Sticky,
    /// As `sticky`, for NodePorts.
    StickyNodePorts,
    /// Client, address, protocol, port → the endpoint that the client had last. Rules write it.
    Affinity,
    /// Virtual address, protocol, port → whose connections are masqueraded. Only where no mark says
    /// so.
    Masqueraded,
    /// As `masqueraded`, for NodePorts.
    MasqueradedNodePorts,
}

impl SetName {
    /// Every set and map that each table has, in order.
    pub const ALL: [Self; 22] = [
        Self::ClusterIps,
        Self::NodePortIps,
        Self::Hairpin,
        Self::Restricted,
        Self::AllowedSources,
        Self::Services,
        Self::External,
        Self::Local,
        Self::Endpoints,
        Self::LocalEndpoints,
        Self::Unavailable,
        Self::ExternalLocal,
        Self::NodePorts,
        Self::ExternalNodePorts,
        Self::LocalNodePorts,
        Self::NodePortEndpoints,
        Self::LocalNodePortEndpoints,
        Self::UnavailableNodePorts,
        Self::ExternalLocalNodePorts,
        Self::Sticky,
        Self::StickyNodePorts,
        Self::Affinity,
    ];

    /// Sets and maps that a table may have, in order.
    pub const OPTIONAL: [Self; 2] = [Self::Masqueraded, Self::MasqueradedNodePorts];

    /// Sets and maps whose elements can count the new connections that meet them.
    pub const COUNTED: [Self; 8] = [
        Self::Services,
        Self::NodePorts,
        Self::Unavailable,
        Self::UnavailableNodePorts,
        Self::Endpoints,
        Self::LocalEndpoints,
        Self::NodePortEndpoints,
        Self::LocalNodePortEndpoints,
    ];

    /// The name in the kernel.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ClusterIps => "cluster-ips",
            Self::NodePortIps => "node-port-ips",
            Self::Hairpin => "hairpin",
            Self::Restricted => "restricted",
            Self::AllowedSources => "allowed-sources",
            Self::Services => "services",
            Self::External => "external",
            Self::Local => "local",
            Self::Endpoints => "endpoints",
            Self::LocalEndpoints => "local-endpoints",
            Self::Unavailable => "unavailable",
            Self::ExternalLocal => "external-local",
            Self::NodePorts => "node-ports",
            Self::ExternalNodePorts => "external-node-ports",
            Self::LocalNodePorts => "local-node-ports",
            Self::NodePortEndpoints => "node-port-endpoints",
            Self::LocalNodePortEndpoints => "local-node-port-endpoints",
            Self::UnavailableNodePorts => "unavailable-node-ports",
            Self::ExternalLocalNodePorts => "external-local-node-ports",
            Self::Sticky => "sticky",
            Self::StickyNodePorts => "sticky-node-ports",
            Self::Affinity => "affinity",
            Self::Masqueraded => "masqueraded",
            Self::MasqueradedNodePorts => "masqueraded-node-ports",
        }
    }

    /// The set of this name in the kernel.
    pub fn parse(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter().chain(Self::OPTIONAL);
        all.find(|set| set.as_str() == name)
    }
}

impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A chain: one of a fixed handful, or a pick chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainName {
    /// Refuses a connection, so that the client is told at once.
    Refuse,
    /// Masquerades connections from anywhere; only where no mark asks for it.
    MasqueradeExternal,
    /// Masquerades connections of the node's own processes; only where no mark asks for it.
    MasqueradeExternalLocal,
    /// Finds out by where a connection was sent to whether it is to be masqueraded; only where no
    /// mark says so.
    Masquerading,
    /// Masquerades, then picks among the cluster's endpoints.
    External,
    /// `externalTrafficPolicy: Local`.
    ExternalLocal,
    /// As `external`, for NodePorts.
    ExternalNodePort,
    /// As `external-local`, for NodePorts.
    ExternalLocalNodePort,
    /// NodePorts, by their policy.
    NodePorts,
    /// Looks up a virtual address, then a NodePort.
    Services,
    /// What becomes of connections that nobody has translated.
    Guard,
    /// Base chain, there only while a Service has source ranges: drops other sources, before
    /// anybody's DNAT.
    PreroutingSourceRanges,
    /// The same for connections of the node's own processes.
    OutputSourceRanges,
    /// Base chain: connections that come in.
    Prerouting,
    /// Base chain: connections of the node's own processes.
    Output,
    /// Base chain: what `prerouting` left untranslated.
    PreroutingGuard,
    /// Base chain: what `output` left untranslated.
    OutputGuard,
    /// Remembers which endpoint a client got, if it got one with session affinity.
    Remember,
    /// Base chain: connections that end on this host, for `remember`.
    Input,
    /// Base chain: source addresses.
    Postrouting,
    /// No packet comes here; the comment of its one rule tells of the table.
    About,
    /// Remembers an endpoint for so many seconds: `remember-10800`.
    RememberFor(NonZeroU32),
    /// Picks an endpoint, at random or by the client's address.
    Pick(Pick),
}

impl ChainName {
    /// The chains whose names are fixed, in order of creation.
    pub const FIXED: [Self; 21] = [
        Self::Refuse,
        Self::MasqueradeExternal,
        Self::MasqueradeExternalLocal,
        Self::Masquerading,
        Self::External,
        Self::ExternalLocal,
        Self::ExternalNodePort,
        Self::ExternalLocalNodePort,
        Self::NodePorts,
        Self::Services,
        Self::Guard,
        Self::PreroutingSourceRanges,
        Self::OutputSourceRanges,
        Self::Prerouting,
        Self::Output,
        Self::PreroutingGuard,
        Self::OutputGuard,
        Self::Remember,
        Self::Input,
        Self::Postrouting,
        Self::About,
    ];

    /// The chain of this name in the kernel.
    pub fn parse(name: &str) -> Option<Self> {
        let remember_for = || parse_number(name.strip_prefix(REMEMBER_PREFIX)?);
        Pick::parse(name)
            .map(Self::Pick)
            .or_else(|| remember_for().map(Self::RememberFor))
            .or_else(|| {
                Self::FIXED
                    .into_iter()
                    .find(|chain| chain.fixed_name() == Some(name))
            })
    }

    fn fixed_name(&self) -> Option<&'static str> {
        Some(match self {
            Self::Refuse => "refuse",
            Self::MasqueradeExternal => "masquerade-external",
            Self::MasqueradeExternalLocal => "masquerade-external-local",
            Self::Masquerading => "masquerading",
            Self::External => "external",
            Self::ExternalLocal => "external-local",
            Self::ExternalNodePort => "external-node-port",
            Self::ExternalLocalNodePort => "external-local-node-port",
            Self::NodePorts => "node-ports",
            Self::Services => "services",
            Self::Guard => "guard",
            Self::PreroutingSourceRanges => "prerouting-source-ranges",
            Self::OutputSourceRanges => "output-source-ranges",
            Self::Prerouting => "prerouting",
            Self::Output => "output",
            Self::PreroutingGuard => "prerouting-guard",
            Self::OutputGuard => "output-guard",
            Self::Remember => "remember",
            Self::Input => "input",
            Self::Postrouting => "postrouting",
            Self::About => "about",
            Self::RememberFor(_) | Self::Pick(_) => return None,
        })
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pick(pick) => pick.fmt(f),
            Self::RememberFor(seconds) => write!(f, "{REMEMBER_PREFIX}{seconds}"),
            fixed => f.write_str(fixed.fixed_name().unwrap_or_default()),
        }
    }
}

/// One of the four maps from slot to endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SlotMap {
    /// `endpoints`
    Endpoints,
    /// `local-endpoints`
    LocalEndpoints,
    /// `node-port-endpoints`
    NodePortEndpoints,
    /// `local-node-port-endpoints`
    LocalNodePortEndpoints,
}

impl SlotMap {
    /// All four.
    pub const ALL: [Self; 4] = [
        Self::Endpoints,
        Self::LocalEndpoints,
        Self::NodePortEndpoints,
        Self::LocalNodePortEndpoints,
    ];

    /// The map's name.
    pub fn set(self) -> SetName {
        match self {
            Self::Endpoints => SetName::Endpoints,
            Self::LocalEndpoints => SetName::LocalEndpoints,
            Self::NodePortEndpoints => SetName::NodePortEndpoints,
            Self::LocalNodePortEndpoints => SetName::LocalNodePortEndpoints,
        }
    }

    fn pick_prefix(self) -> &'static str {
        match self {
            Self::Endpoints => "pick-",
            Self::LocalEndpoints => "pick-local-",
            Self::NodePortEndpoints => "pick-node-port-",
            Self::LocalNodePortEndpoints => "pick-local-node-port-",
        }
    }
}

/// How one of several slots is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Draw {
    /// At random.
    Random,
    /// By a hash of the client's address.
    Hash,
}

/// The chain that picks one of `n` slots of a map: `pick-3`, `pick-local-3` and so on; or that does
/// so by a hash of the client's address: `hash-pick-3`; or that tries the remembered endpoint first:
/// `sticky-pick-3`, `sticky-hash-pick-3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pick {
    /// Where the endpoints are.
    pub map: SlotMap,
    /// How one is chosen.
    pub draw: Draw,
    /// How many slots there are.
    pub n: NonZeroU32,
    /// Whether there is session affinity.
    pub sticky: bool,
}

const STICKY_PREFIX: &str = "sticky-";
const HASH_PREFIX: &str = "hash-";
const REMEMBER_PREFIX: &str = "remember-";

/// Reads a number in the only spelling that we write: no sign, no leading zero.
fn parse_number(digits: &str) -> Option<NonZeroU32> {
    let number: NonZeroU32 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

impl Pick {
    fn parse(name: &str) -> Option<Self> {
        let plain = name.strip_prefix(STICKY_PREFIX);
        let (rest, sticky) = (plain.unwrap_or(name), plain.is_some());
        let (rest, draw) = match rest.strip_prefix(HASH_PREFIX) {
            Some(rest) => (rest, Draw::Hash),
            None => (rest, Draw::Random),
        };
        SlotMap::ALL.into_iter().find_map(|map| {
            let n = parse_number(rest.strip_prefix(map.pick_prefix())?)?;
            Some(Self {
                map,
                draw,
                n,
                sticky,
            })
        })
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sticky = if self.sticky { STICKY_PREFIX } else { "" };
        let hash = match self.draw {
            Draw::Random => "",
            Draw::Hash => HASH_PREFIX,
        };
        write!(f, "{sticky}{hash}{}{}", self.map.pick_prefix(), self.n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for set in SetName::ALL.into_iter().chain(SetName::OPTIONAL) {
            assert_eq!(SetName::parse(set.as_str()), Some(set));
        }
        let number = NonZeroU32::new(12).unwrap();
        let picks = SlotMap::ALL.into_iter().flat_map(|map| {
            [Draw::Random, Draw::Hash]
                .into_iter()
                .flat_map(move |draw| {
                    [false, true].map(|sticky| {
                        ChainName::Pick(Pick {
                            map,
                            draw,
                            n: number,
                            sticky,
                        })
                    })
                })
        });
        let picks = picks.chain([ChainName::RememberFor(number)]);
        for chain in ChainName::FIXED.into_iter().chain(picks) {
            assert_eq!(ChainName::parse(&chain.to_string()), Some(chain));
            assert!(chain.to_string().len() < NAME_MAX_LEN);
        }
    }

    #[test]
    fn other_spellings_are_not_ours() {
        for name in [
            "pick-0",
            "pick-03",
            "pick-+3",
            "pick-",
            "pick-local-",
            "hash-",
            "hash-sticky-pick-3",
            "hash-hash-pick-3",
            "pick-4294967296",
            "",
        ] {
            assert_eq!(ChainName::parse(name), None, "{name}");
        }
    }
}
