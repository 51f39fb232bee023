//! What the nft(8) of this system cannot do, though the kernel and we can. Entry point: [`loadable`].

use std::sync::LazyLock;

use crate::netns::{Namespace, unsupported};

/// nft 1.0.6 swaps the bytes of a protocol's number before it looks for it in a set of intervals,
/// which kernel 6.12.117 refuses, and 6.18.44 does not.
static REFUSES_SOURCE_RANGES: LazyLock<bool> = LazyLock::new(|| {
    let script = "table ip t {
        set s { type ipv4_addr . inet_proto . inet_service; flags interval; }
        chain c { ip daddr . meta l4proto . th dport @s drop; }
    }";
    let result = Namespace::new("trial")
        .and_then(|namespace| namespace.exec_with_input(&["nft", "-f", "-"], script));
    let is_refused = result.is_err_and(|error| error.to_string().contains("not supported"));
    if is_refused {
        unsupported("nft's rules for source ranges (ours are taken)");
    }
    is_refused
});

/// Whether nft can bring all our rules into this kernel.
pub fn can_load_all() -> bool {
    !*REFUSES_SOURCE_RANGES
}

/// A script or listing without the rules that nft cannot bring into this kernel.
pub fn loadable(text: &str) -> String {
    let is_loadable = |line: &&str| can_load_all() || !line.contains("!= @allowed-sources drop");
    let mut lines = text
        .lines()
        .filter(is_loadable)
        .collect::<Vec<_>>()
        .join("\n");
    lines.push('\n');
    lines
}
