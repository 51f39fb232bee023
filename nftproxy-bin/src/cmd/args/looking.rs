//! The command lines of what looks at rules: `list`, `audit`, `explain`, `diff`,
//! `digest` and `trace`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{FamilyChoice, NodeFlags, OutputFormat, needs_manifests};
use crate::config::ConfigFlags;

pub(super) const AUDIT_EXIT_CODES: &str = "\
Exit code: 0 if nothing is wrong (notes are no more than that), 1 if something is, 2 if it cannot be \
told, because something could not be read.

With --manifests and --ruleset it needs no privileges, no cluster and no kernel:
  kubectl get services,endpointslices,nodes,servicecidrs -A -o json > cluster.json
  nft list ruleset > node.nft      (as root, on the node; nft -j list ruleset works too)
  nftproxy audit --manifests cluster.json --ruleset node.nft --hostname-override NODE";

pub(super) const LIST_EXIT_CODES: &str = "\
Exit code: 0 if some Service is shown, 1 if none is, 2 if it cannot be told.";

pub(super) const EXPLAIN_EXIT_CODES: &str = "\
FROM and TO are an address, a Service as namespace/name or name, `node` for this node, or, as FROM \
only, `outside` for a client outside of the cluster. TO goes on with :PORT/PROTOCOL, as in \
10.96.0.10:53/udp, [fd00::10]:53/udp or shop/api:80/tcp; the protocol is TCP if it is left out, and \
of a Service with one port the port may be left out too.

Exit code: 0 if the connection is led to an endpoint or left alone, 1 if it is refused or dropped, or \
if kernel and cluster differ, 2 if it cannot be told.";

pub(super) const DIFF_EXIT_CODES: &str = "\
FROM and TO are `kernel` for this kernel, `cluster` for what the API server asks for, or a file: a \
listing of `nft list ruleset` or `nft -j list ruleset`, or manifests.

Exit code: 0 if nothing differs, 1 if something does, 2 if it cannot be told. Which slot an endpoint \
has does not count.";

pub(super) const DIGEST_EXIT_CODES: &str = "\
The digest is of all that decides over connections; which slot an endpoint has does not count. What \
stands behind `shared` is without what depends on the node, so that nodes can be compared with each \
other. It is the first half of the SHA-256 of the lines that `-o lines` prints for the family.

Exit code: 0, or 2 if it cannot be told.";

pub(super) const TRACE_EXIT_CODES: &str = "\
FROM and TO are as for `explain`; `outside` is anybody. The first packets of new connections are \
followed, from where connection tracking has seen them. For that a table of its own marks them, \
which the kernel takes away when this command ends, however it ends; no other table is touched.

Exit code: 0 if all that was seen went as explained and as the cluster asks for, 1 if not, 2 if \
nothing was seen or it cannot be told.";

/// Where desired state comes from. Without files it is the API server, as for `run`.
#[derive(Debug, Args)]
#[command(group = needs_manifests())]
pub(crate) struct DesiredFlags {
    /// Take Services, EndpointSlices, Nodes and ServiceCIDRs from this file or directory instead of
    /// a cluster: manifests, `kubectl get -o json`, or recorded lists in JSON or protobuf; `-` is
    /// standard input; may be repeated
    #[arg(
        long,
        value_name = "PATH",
        action = clap::ArgAction::Append,
        help_heading = "Manifests"
    )]
    pub(crate) manifests: Vec<PathBuf>,
    #[command(flatten)]
    pub(crate) node: NodeFlags,
}

/// Where observed state comes from.
#[derive(Debug, Args)]
pub(crate) struct ObservedFlags {
    /// Take what `nft list ruleset` or `nft -j list ruleset` printed from this file instead of this
    /// kernel; `-` is standard input
    #[arg(long, value_name = "FILE", help_heading = "Kernel state")]
    pub(crate) ruleset: Option<PathBuf>,
}

/// How results are printed, in one of a command's formats.
#[derive(Debug, Args)]
pub(crate) struct OutputFlags<Format: ValueEnum + Default + Send + Sync + 'static> {
    /// How to print
    #[arg(
        short,
        long,
        value_enum,
        value_name = "FORMAT",
        default_value_t = Format::default(),
        help_heading = "Output"
    )]
    pub(crate) output: Format,
    /// The IP family that is looked at
    #[arg(long, value_enum, default_value_t = FamilyChoice::Both, help_heading = "Output")]
    pub(crate) family: FamilyChoice,
}

#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    pub(crate) desired: DesiredFlags,
    #[command(flatten)]
    pub(crate) observed: ObservedFlags,
    #[command(flatten)]
    pub(crate) output: OutputFlags<AuditFormat>,
    /// Print no more findings than so many as text or on a page; 0 prints all [default: 200 as
    /// text, 2000 on a page]
    #[arg(long, value_name = "N", help_heading = "Output")]
    pub(crate) limit: Option<usize>,
    #[command(flatten)]
    pub(crate) config: ConfigFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum AuditFormat {
    #[default]
    Text,
    Json,
    /// A page for browsers, in one file
    Html,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Show Services as desired, or as they are in the kernel or a saved listing [default: kernel
    /// with --ruleset, else desired]
    #[arg(long, value_enum, help_heading = "Kernel state")]
    from: Option<Origin>,
    #[command(flatten)]
    pub(crate) desired: DesiredFlags,
    #[command(flatten)]
    pub(crate) observed: ObservedFlags,
    /// Show Services of this namespace
    #[arg(short, long, value_name = "NAME", help_heading = "Filters")]
    pub(crate) namespace: Option<String>,
    /// Show the Service of this name, as name or namespace/name, with or without :port
    #[arg(value_name = "SERVICE")]
    pub(crate) name: Option<String>,
    /// Show Services that have this address, or an endpoint at it
    #[arg(long, value_name = "IP", help_heading = "Filters")]
    pub(crate) address: Option<IpAddr>,
    /// Show Services that have this port or nodePort
    #[arg(long, value_name = "PORT", help_heading = "Filters")]
    pub(crate) port: Option<u16>,
    /// Show endpoints, with the reason for those that are not used, and notes
    #[arg(short, long, help_heading = "Output")]
    pub(crate) wide: bool,
    /// Go on with what changes in the kernel, until interrupted; takes `--from kernel`
    #[arg(long, conflicts_with = "ruleset", help_heading = "Kernel state")]
    pub(crate) watch: bool,
    #[command(flatten)]
    pub(crate) output: OutputFlags<OutputFormat>,
    #[command(flatten)]
    pub(crate) config: ConfigFlags,
}

/// Where what is listed comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Origin {
    Desired,
    Kernel,
}

impl Origin {
    /// Who names a listing means it.
    fn or_of(this: Option<Self>, observed: &ObservedFlags) -> Self {
        this.unwrap_or(if observed.ruleset.is_some() {
            Self::Kernel
        } else {
            Self::Desired
        })
    }
}

impl ListArgs {
    pub(crate) fn origin(&self) -> Origin {
        Origin::or_of(self.from, &self.observed)
    }
}

impl DigestArgs {
    pub(crate) fn origin(&self) -> Origin {
        Origin::or_of(self.from, &self.observed)
    }
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// Who connects
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// Where to, with port and protocol
    #[arg(value_name = "TO:PORT/PROTO")]
    pub(crate) to: String,
    /// The interface by which the connection comes in [default: any, unless FROM is this node]
    #[arg(long, value_name = "NAME")]
    pub(crate) iif: Option<String>,
    /// Which rules to follow: those of the kernel or listing, those desired, or both [default:
    /// both, and with --manifests but no --ruleset those desired]
    #[arg(long, value_enum, help_heading = "Kernel state")]
    by: Option<Basis>,
    #[command(flatten)]
    pub(crate) desired: DesiredFlags,
    #[command(flatten)]
    pub(crate) observed: ObservedFlags,
    /// How to print
    #[arg(
        short,
        long,
        value_enum,
        value_name = "FORMAT",
        default_value_t = ExplainFormat::Text,
        help_heading = "Output"
    )]
    pub(crate) output: ExplainFormat,
    #[command(flatten)]
    pub(crate) config: ConfigFlags,
}

impl ExplainArgs {
    /// Whose rules to follow. Manifests alone are no reason to ask the kernel, which may be that of
    /// another node.
    pub(crate) fn by(&self) -> Basis {
        let is_offline = !self.desired.manifests.is_empty() && self.observed.ruleset.is_none();
        self.by.unwrap_or(if is_offline {
            Basis::Desired
        } else {
            Basis::Both
        })
    }
}

/// Whose rules a connection is followed through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Basis {
    Kernel,
    Desired,
    Both,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExplainFormat {
    Text,
    Json,
    /// A graph for Graphviz
    Dot,
    /// A picture
    Svg,
}

#[derive(Debug, Args)]
pub(crate) struct DiffArgs {
    /// What there is
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// What is to be there
    #[arg(value_name = "TO")]
    pub(crate) to: String,
    #[command(flatten)]
    pub(crate) node: NodeFlags,
    #[command(flatten)]
    pub(crate) output: OutputFlags<DiffFormat>,
    #[command(flatten)]
    pub(crate) config: ConfigFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum DiffFormat {
    /// Services, and the script
    #[default]
    Text,
    Json,
    /// The script alone
    Nft,
}

#[derive(Debug, Args)]
pub(crate) struct DigestArgs {
    /// Digest what is desired, or what is in the kernel or a saved listing [default: kernel with
    /// --ruleset, else desired]
    #[arg(long, value_enum, help_heading = "Kernel state")]
    from: Option<Origin>,
    #[command(flatten)]
    pub(crate) desired: DesiredFlags,
    #[command(flatten)]
    pub(crate) observed: ObservedFlags,
    #[command(flatten)]
    pub(crate) output: OutputFlags<DigestFormat>,
    #[command(flatten)]
    pub(crate) config: ConfigFlags,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum DigestFormat {
    #[default]
    Text,
    Json,
    /// The lines that the digests are of
    Lines,
}

#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// Who connects
    #[arg(value_name = "FROM")]
    pub(crate) from: String,
    /// Where to, with port and protocol
    #[arg(value_name = "TO:PORT/PROTO")]
    pub(crate) to: String,
    /// End after so many packets; 0 goes on
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Limits")]
    pub(crate) count: usize,
    /// End after so many seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 60,
        help_heading = "Limits"
    )]
    pub(crate) timeout: u64,
    #[command(flatten)]
    pub(crate) desired: DesiredFlags,
    #[command(flatten)]
    pub(crate) config: ConfigFlags,
}
