//! How an instance differs from others.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::Pace;
use crate::model::{Filter, Node};
use crate::ruleset::Table;

/// How an instance differs from others on the node. The default is the node's only proxy, as
/// kube-proxy would be.
///
/// ```
/// # use nftproxy_core::engine::{Families, Options};
/// # use nftproxy_core::model::Node;
/// # use nftproxy_core::ruleset::Table;
/// let options = Options {
///     table: Table::new("my-cni", 5)?,
///     families: Families::V4,
///     node: Node {
///         masquerade_mark: None,
///         ..Node::default()
///     },
///     ..Options::default()
/// };
/// # Ok::<(), nftproxy_core::ruleset::TableError>(())
/// ```
#[derive(Debug)]
pub struct Options {
    /// The table, the same in both families.
    pub table: Table,
    /// The network namespace; `None` for that of the thread that opens the engine.
    pub namespace: Option<OwnedFd>,
    /// Which families there are.
    pub families: Families,
    /// This node, until [`Event::NodeChanged`](super::Event::NodeChanged) says otherwise; the mark
    /// is part of it.
    pub node: Node,
    /// For how long after its start the engine waits for
    /// [`Event::NodeChanged`](super::Event::NodeChanged), once all else is there. Zero if it is not
    /// expected.
    pub node_patience: Duration,
    /// When to sync.
    pub pace: Pace,
    /// Whether the tables are held, where the kernel can (from 6.9 on): for as long as the engine
    /// lives nobody else can change them, and after it they stay. A table that is there already
    /// without being held is made anew once, with what it remembers of clients.
    pub holds_tables: bool,
    /// Whether clients are told of endpoints that are gone: for five minutes whoever still sends to
    /// one by a Service's address over TCP gets a reset, rather than hang until TCP gives up. A table
    /// beside the proxy's does it (`nftproxy-gone`), which is there only while there are such.
    pub fails_fast: bool,
    /// Another proxy's table, such as kube-proxy's, that the first sync of each family removes in the
    /// same transaction that makes ours; `None` to leave all others alone. Clients with session
    /// affinity keep the endpoints they have there, as far as its sets are kube-proxy's. That proxy
    /// must not be running any more, or it makes its table anew.
    pub takes_over: Option<Table>,
    /// Which Services and endpoints are taken; `None` for all.
    pub filter: Option<Arc<dyn Filter>>,
    /// Who forgets UDP flows that changed rules do not reach.
    pub flows: FlowOption,
    /// Whether memory that only a large sync needed is given back to the system after it. It is the
    /// whole process's heap that is trimmed, which takes about a millisecond for each 10 MB.
    pub trims_heap: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            table: Table::default(),
            namespace: None,
            families: Families::Both,
            node: Node::default(),
            node_patience: Duration::ZERO,
            pace: Pace::default(),
            holds_tables: false,
            fails_fast: false,
            takes_over: None,
            filter: None,
            flows: FlowOption::Forget,
            trims_heap: true,
        }
    }
}

/// Which families an instance has tables in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Families {
    /// IPv4 and IPv6.
    #[default]
    Both,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

impl Families {
    pub(super) fn has_v4(self) -> bool {
        self != Self::V6
    }

    pub(super) fn has_v6(self) -> bool {
        self != Self::V4
    }
}

/// Who forgets UDP flows that changed rules do not reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlowOption {
    /// The engine itself, as a task of its own: looking through a large connection tracking table
    /// may hold the next sync up for tens of milliseconds.
    #[default]
    Forget,
    /// Somebody else: [`Outcome::FlowsLeft`](super::Outcome::FlowsLeft) says which, for a
    /// [`Forgetter`](super::flows::Forgetter) on another thread, say.
    HandOver,
    /// Nobody.
    Ignore,
}
