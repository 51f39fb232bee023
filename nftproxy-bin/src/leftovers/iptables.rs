//! Chains of kube-proxy's modes iptables and ipvs, with the jumps that lead to them.
//!
//! They may have been made by either backend of iptables, so both are asked, as far as they are
//! installed. What `iptables-save` prints says what is there; one input for `iptables-restore` per
//! table takes all of it away at once. Entry point: [`remove`].

use std::collections::BTreeSet;
use std::fs;

use nftproxy_core::inspect::kube_proxy::{CHAINS, PREFIXES};
use tracing::warn;

use super::program::run;

/// Both backends of both families; the last of each for systems that have but one name.
const BACKENDS: [&str; 6] = [
    "iptables-legacy",
    "iptables-nft",
    "ip6tables-legacy",
    "ip6tables-nft",
    "iptables",
    "ip6tables",
];

/// What the comments of kube-proxy's jumps start with.
const COMMENTS: [&str; 2] = ["kubernetes ", "kube-proxy "];

/// Removes all of it; how many chains there were.
pub(super) fn remove() -> anyhow::Result<usize> {
    let mut count = 0;
    let mut found = BTreeSet::new();
    let mut errors = Vec::new();
    for backend in BACKENDS {
        let is_needed = backend.contains('-') || !found.contains(family(backend));
        let save = format!("{backend}-save");
        let saved = match is_needed.then(|| run(&save, &[], "")).transpose() {
            Ok(Some(Some(saved))) => saved,
            Ok(_) => continue,
            Err(error) => {
                errors.push(error);
                continue;
            }
        };
        found.insert(family(backend));
        let (input, n) = restore_input(&saved);
        if n == 0 {
            continue;
        }
        match run(
            &format!("{backend}-restore"),
            &["--noflush", "-w", "5"],
            &input,
        ) {
            Ok(_) => count += n,
            Err(error) => errors.push(error),
        }
    }
    if found.is_empty() {
        warn_of_what_cannot_be_removed();
    }
    match errors.into_iter().next() {
        None => Ok(count),
        Some(error) => Err(error),
    }
}

fn family(backend: &str) -> &'static str {
    if backend.starts_with("ip6") {
        "ip6"
    } else {
        "ip"
    }
}

/// Without the programs, whether there is anything is all that can be told.
fn warn_of_what_cannot_be_removed() {
    for family in ["ip", "ip6"] {
        let tables = fs::read_to_string(format!("/proc/net/{family}_tables_names"));
        if tables.is_ok_and(|names| !names.trim().is_empty()) {
            warn!(
                family,
                "iptables is not installed here, and this node has tables of iptables-legacy; if \
                 kube-proxy ran in mode iptables or ipvs, its rules are still there"
            );
        }
    }
}

fn is_leftover(table: &str, chain: &str) -> bool {
    let fixed = CHAINS.iter().find(|(name, _)| *name == table);
    fixed.is_some_and(|(_, chains)| chains.contains(&chain))
        || table == "nat" && PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// One table as `iptables-save` prints it.
#[derive(Default)]
struct Saved<'a> {
    name: &'a str,
    chains: Vec<&'a str>,
    rules: Vec<&'a str>,
}

fn tables(saved: &str) -> Vec<Saved<'_>> {
    let mut tables: Vec<Saved<'_>> = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            tables.push(Saved {
                name,
                ..Saved::default()
            });
        } else if let Some(table) = tables.last_mut() {
            if let Some(chain) = line.strip_prefix(':') {
                table.chains.extend(chain.split(' ').next());
            } else if line.starts_with("-A ") {
                table.rules.push(line);
            }
        }
    }
    tables
}

/// The chain that a rule is in.
fn chain_of(rule: &str) -> &str {
    rule.split(' ').nth(1).unwrap_or_default()
}

/// The chain that a rule leads to.
fn target_of(rule: &str) -> Option<&str> {
    let mut words = rule.split(' ');
    words.find(|word| matches!(*word, "-j" | "-g"))?;
    words.next()
}

fn is_kube_proxys(rule: &str) -> bool {
    let comment = rule.split("--comment ").nth(1);
    let comment = comment.map(|text| text.trim_start_matches('"'));
    comment.is_some_and(|text| COMMENTS.iter().any(|start| text.starts_with(start)))
}

/// What takes everything of kube-proxy's away, and how many chains that are.
fn restore_input(saved: &str) -> (String, usize) {
    let (mut input, mut count) = (String::new(), 0);
    for table in tables(saved) {
        let chains = table.chains.iter().copied();
        let leftovers: BTreeSet<&str> = chains
            .filter(|chain| is_leftover(table.name, chain))
            .collect();
        let rules = || table.rules.iter().copied();
        let leads_in = |rule: &str| target_of(rule).is_some_and(|chain| leftovers.contains(chain));
        let (jumps, others): (Vec<&str>, Vec<&str>) = rules()
            .filter(|rule| !leftovers.contains(chain_of(rule)) && leads_in(rule))
            .partition(|rule| is_kube_proxys(rule));
        if leftovers.is_empty() {
            continue;
        }
        // Somebody else uses these. Emptied, they do nothing.
        let used: BTreeSet<&str> = others.into_iter().filter_map(target_of).collect();
        input += &format!("*{}\n", table.name);
        for chain in &leftovers {
            // This empties it as well.
            input += &format!(":{chain} - [0:0]\n");
        }
        for jump in jumps {
            input += &format!("-D {}\n", jump.trim_start_matches("-A "));
        }
        for chain in leftovers.iter().filter(|chain| !used.contains(*chain)) {
            input += &format!("-X {chain}\n");
            count += 1;
        }
        input += "COMMIT\n";
    }
    (input, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = "\
*mangle
:PREROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-PROXY-CANARY - [0:0]
COMMIT
*filter
:INPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
COMMIT
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-SETMARK - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SEP-ABC - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE
-A CNI-HOSTPORT-SETMARK -m comment --comment \"CNI portfwd masquerade mark\" -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d 10.96.0.1/32 -j KUBE-SVC-ABC
-A KUBE-SVC-ABC -j KUBE-SEP-ABC
COMMIT
";

    /// O-146, O-147, O-150: all of kube-proxy's goes, what the kubelet and others have stays, and a
    /// chain that others use is emptied.
    #[test]
    fn kube_proxys_chains_go_and_others_stay() {
        let (input, count) = restore_input(SAVED);
        assert_eq!(count, 5);
        assert_eq!(
            input,
            "\
*mangle
:KUBE-PROXY-CANARY - [0:0]
-X KUBE-PROXY-CANARY
COMMIT
*filter
:KUBE-FORWARD - [0:0]
-D FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-X KUBE-FORWARD
COMMIT
*nat
:KUBE-MARK-MASQ - [0:0]
:KUBE-SEP-ABC - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-D PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-X KUBE-SEP-ABC
-X KUBE-SERVICES
-X KUBE-SVC-ABC
COMMIT
"
        );
        assert_eq!(
            restore_input("*nat\n:PREROUTING ACCEPT [0:0]\nCOMMIT\n"),
            (String::new(), 0)
        );
    }
}
