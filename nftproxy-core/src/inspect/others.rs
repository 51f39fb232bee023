//! Tables of others that come before ours, and kube-proxy's.

use super::finding::{Finding, Kind, Severity};
use super::kube_proxy;
use crate::model::IpFamily;
use crate::neighbour::{Act, BaseChain, Neighbour};
use crate::ruleset::Table;
use crate::ruleset::schema::{Hook, PRIORITY_DSTNAT, PRIORITY_GUARD, PRIORITY_SRCNAT};

/// `NF_INET_FORWARD`
const FORWARD: u32 = 2;
/// `NF_INET_INGRESS` of the family `inet`
const INET_INGRESS: u32 = 5;

/// Whether kube-proxy serves, or has served, Services by this table. Its canary chains, and those
/// that the kubelet makes, do not count.
pub fn is_kube_proxys(neighbour: &Neighbour) -> bool {
    neighbour.table == kube_proxy::TABLE
        || neighbour
            .chains
            .iter()
            .any(|chain| kube_proxy::serves(chain))
}

/// What others' tables mean for ours.
pub(super) fn judge(table: &Table, neighbours: &[Neighbour], mut found: impl FnMut(Finding)) {
    for neighbour in neighbours {
        let families = match neighbour.family {
            "ip" => Some(IpFamily::V4),
            "ip6" => Some(IpFamily::V6),
            "inet" | "netdev" | "bridge" => None,
            _ => continue,
        };
        let finding = |severity, kind, message: String, effect: &str| Finding {
            severity,
            kind,
            family: families,
            service_port: None,
            object: format!("table {} {}", neighbour.family, neighbour.table),
            message,
            effect: effect.into(),
        };
        if is_kube_proxys(neighbour) {
            let (severity, effect) = if neighbour.is_dormant {
                (Severity::Note, "it is dormant, so no packet meets it")
            } else {
                (
                    Severity::Warning,
                    "it translates Services too; stop kube-proxy, and remove its rules with `nftproxy cleanup`, which takes ours away as well until the proxy is started again",
                )
            };
            found(finding(
                severity,
                Kind::KubeProxy,
                "it has kube-proxy's rules".into(),
                effect,
            ));
            continue;
        }
        if neighbour.is_dormant {
            continue;
        }
        for base in &neighbour.base_chains {
            let at = |message: String| format!("chain {} {message}", base.name);
            if let Some((severity, message, effect)) = verdict(table, neighbour, base) {
                found(finding(severity, Kind::Preempted, at(message), effect));
            }
        }
    }
}

/// What a base chain can do to Service traffic before our chains see it.
fn verdict(
    table: &Table,
    neighbour: &Neighbour,
    base: &BaseChain,
) -> Option<(Severity, String, &'static str)> {
    let BaseChain {
        chain_type,
        hook,
        priority,
        drops_by_default,
        ..
    } = base;
    let acts = neighbour.acts(&base.name);
    let [dstnat, guard, srcnat] = [PRIORITY_DSTNAT, PRIORITY_GUARD, PRIORITY_SRCNAT]
        .map(|priority| priority + table.priority_offset());
    let is_ip = matches!(neighbour.family, "ip" | "ip6" | "inet");
    let at_our_hook = is_ip
        && [Hook::Prerouting, Hook::Output]
            .map(Hook::number)
            .contains(hook);
    let is_early =
        neighbour.family == "netdev" || neighbour.family == "inet" && *hook == INET_INGRESS;
    let place = format!("(priority {priority})");
    let may = |what: &str| format!("{place} {what}");
    if at_our_hook && acts.contains(&Act::Notrack) && *priority < PRIORITY_CONNTRACK {
        return Some((
            Severity::Warning,
            may("hides packets from connection tracking"),
            "what it hides is not translated",
        ));
    }
    if at_our_hook && acts.contains(&Act::Dnat) && *priority <= dstnat {
        let same = *priority == dstnat && chain_type == "nat";
        return Some((
            Severity::Warning,
            may(if same {
                "translates destinations at the same priority as we do"
            } else {
                "translates destinations before we do"
            }),
            "what it translates is no Service traffic any more, nor filtered by its source ranges",
        ));
    }
    if at_our_hook && acts.contains(&Act::Dnat) && *priority <= guard && chain_type == "nat" {
        return Some((
            Severity::Note,
            may("translates destinations that we leave"),
            "it wins over refusals and drops",
        ));
    }
    let comes_first = is_early || at_our_hook && *priority <= dstnat;
    if comes_first && (*drops_by_default || acts.contains(&Act::Drop)) {
        return Some((
            Severity::Warning,
            may(if *drops_by_default {
                "drops what it does not accept, before our chains"
            } else {
                "drops packets before our chains"
            }),
            "what it drops does not reach a Service",
        ));
    }
    if comes_first && acts.contains(&Act::Queue) {
        return Some((
            Severity::Warning,
            may("hands packets to a program before our chains"),
            "the program decides over them",
        ));
    }
    if comes_first && chain_type == "nat" && acts.contains(&Act::VerdictMap) {
        return Some((
            Severity::Note,
            may("asks a verdict map before our chains"),
            "what its elements do was not looked at",
        ));
    }
    let is_postrouting = is_ip && *hook == Hook::Postrouting.number() && chain_type == "nat";
    if is_postrouting && acts.contains(&Act::Snat) && *priority < srcnat {
        return Some((
            Severity::Note,
            may("translates sources before we do"),
            "clients that it translates are not remembered by session affinity",
        ));
    }
    let is_filter = is_ip && *hook == FORWARD && *drops_by_default;
    is_filter.then(|| {
        (
            Severity::Note,
            may("drops forwarded packets that it does not accept"),
            "it sees connections with their endpoint as destination, and must let them through",
        )
    })
}

/// `NF_IP_PRI_CONNTRACK`
const PRIORITY_CONNTRACK: i32 = -200;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listing;

    fn kinds(text: &str) -> Vec<(Severity, Kind)> {
        let table = Table::default();
        let listing = listing::read(text, &table);
        assert_eq!(listing.unread, []);
        let mut all = Vec::new();
        judge(&table, &listing.neighbours, |finding| {
            all.push((finding.severity, finding.kind));
        });
        all
    }

    fn chain(kind: &str, hook: &str, priority: i32, rest: &str) -> String {
        format!(
            "table ip other {{\nchain a {{\ntype {kind} hook {hook} priority {priority}; policy accept;\n{rest}\n}}\n}}\n"
        )
    }

    #[test]
    fn who_comes_first_and_can_do_harm_is_found() {
        use Severity::{Note, Warning};
        for (text, expected) in [
            (
                chain("nat", "prerouting", -100, "tcp dport 80 dnat to 10.0.0.1"),
                Some(Warning),
            ),
            (
                chain("nat", "output", -150, "tcp dport 80 redirect to :81"),
                Some(Warning),
            ),
            (
                chain("nat", "prerouting", -95, "tcp dport 80 dnat to 10.0.0.1"),
                Some(Note),
            ),
            (
                chain("nat", "prerouting", -80, "tcp dport 80 dnat to 10.0.0.1"),
                None,
            ),
            (
                chain("filter", "prerouting", -150, "ip saddr 10.0.0.1 drop"),
                Some(Warning),
            ),
            (
                chain("filter", "prerouting", 0, "ip saddr 10.0.0.1 drop"),
                None,
            ),
            (
                chain("filter", "prerouting", -300, "udp dport 53 notrack"),
                Some(Warning),
            ),
            (
                chain("filter", "output", -150, "queue num 1"),
                Some(Warning),
            ),
            (chain("nat", "postrouting", 50, "masquerade"), Some(Note)),
            (chain("nat", "postrouting", 100, "masquerade"), None),
            (
                chain("filter", "forward", 0, "accept").replace("policy accept", "policy drop"),
                Some(Note),
            ),
            (
                chain("filter", "prerouting", -150, "accept")
                    .replace("policy accept", "policy drop"),
                Some(Warning),
            ),
            (chain("nat", "prerouting", -100, "accept"), None),
            (
                chain("nat", "prerouting", -100, "jump b")
                    .replace("\n}\n}\n", "\n}\nchain b {\ndnat to 10.0.0.1\n}\n}\n"),
                Some(Warning),
            ),
        ] {
            let expected: Vec<_> = expected
                .map(|severity| (severity, Kind::Preempted))
                .into_iter()
                .collect();
            assert_eq!(kinds(&text), expected, "{text}");
        }
        let early = "table netdev x {\nchain a {\ntype filter hook ingress device \"eth0\" priority 0; policy accept;\ndrop\n}\n}\n";
        assert_eq!(kinds(early), [(Warning, Kind::Preempted)]);
    }

    #[test]
    fn kube_proxy_is_known_in_each_mode() {
        for text in [
            "table ip kube-proxy {\n}\n",
            "table ip nat {\nchain KUBE-SERVICES {\n}\n}\n",
            "table ip6 filter {\nchain KUBE-NODE-PORT {\n}\n}\n",
        ] {
            assert_eq!(
                kinds(text),
                [(Severity::Warning, Kind::KubeProxy)],
                "{text}"
            );
        }
        let kubelets =
            "table ip mangle {\nchain KUBE-KUBELET-CANARY {\n}\nchain KUBE-IPTABLES-HINT {\n}\n}\n";
        assert_eq!(kinds(kubelets), []);
        let asleep = "table ip kube-proxy {\nflags dormant\n}\n";
        assert_eq!(kinds(asleep), [(Severity::Note, Kind::KubeProxy)]);
    }
}
