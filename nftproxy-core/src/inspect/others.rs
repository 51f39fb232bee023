//! Tables of others that come before ours, and kube-proxy's.

use std::borrow::Cow;
use std::collections::BTreeSet;

use super::finding::{Finding, Kind, Severity};
use super::kube_proxy;
use crate::model::IpFamily;
use crate::neighbour::{Act, BaseChain, Neighbour};
use crate::ruleset::Table;
use crate::ruleset::schema::{Hook, PRIORITY_DSTNAT, PRIORITY_GUARD, PRIORITY_SRCNAT};

/// `NF_INET_LOCAL_IN`
const INPUT: u32 = 1;
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

/// Chains that the kubelet makes, which drop what an address of loopback says of itself. That is no
/// endpoint, and they are on every node.
const KUBELETS: [&str; 1] = ["KUBE-FIREWALL"];

/// What others' tables mean for ours, where this mark asks for masquerading.
pub(super) fn judge(
    table: &Table,
    mark: Option<u32>,
    neighbours: &[Neighbour],
    mut found: impl FnMut(Finding),
) {
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
            let place = format!("chain {} (priority {})", base.name, base.priority);
            for (severity, message, effect) in Seat::new(table, neighbour, base).judgements(mark) {
                let message = format!("{place} {message}");
                found(finding(severity, Kind::Preempted, message, &effect));
            }
        }
    }
}

/// How bad it is, what a chain does, and what comes of it.
type Judgement = (Severity, String, Cow<'static, str>);

fn judgement(severity: Severity, message: impl Into<String>, effect: &'static str) -> Judgement {
    (severity, message.into(), effect.into())
}

/// A base chain, and where it is as seen from ours.
struct Seat<'a> {
    base: &'a BaseChain,
    acts: BTreeSet<Act>,
    /// The same without what the kubelet's chains do.
    own_acts: BTreeSet<Act>,
    /// Whether it sees the packets of one of our families after they have come in.
    is_ip: bool,
    /// Whether it sees packets before any hook of theirs.
    is_early: bool,
    dstnat: i32,
    guard: i32,
    srcnat: i32,
}

impl<'a> Seat<'a> {
    fn new(table: &Table, neighbour: &Neighbour, base: &'a BaseChain) -> Self {
        let at = |priority| priority + table.priority_offset();
        let is_early =
            neighbour.family == "netdev" || neighbour.family == "inet" && base.hook == INET_INGRESS;
        Self {
            base,
            acts: neighbour.acts(&base.name),
            own_acts: neighbour.acts_without(&base.name, &KUBELETS),
            is_ip: !is_early && matches!(neighbour.family, "ip" | "ip6" | "inet"),
            is_early,
            dstnat: at(PRIORITY_DSTNAT),
            guard: at(PRIORITY_GUARD),
            srcnat: at(PRIORITY_SRCNAT),
        }
    }

    /// What can become of Service traffic there: the worst thing before our chains and the worst
    /// behind them, and what becomes of its mark.
    fn judgements(&self, mark: Option<u32>) -> impl Iterator<Item = Judgement> {
        let first = self.translation().or_else(|| self.before());
        let mark = mark.and_then(|mark| self.mark(mark));
        [first, self.behind(), mark].into_iter().flatten()
    }

    fn is_at(&self, hook: Hook) -> bool {
        self.is_ip && self.base.hook == hook.number()
    }

    fn is_at_our_hook(&self) -> bool {
        self.is_at(Hook::Prerouting) || self.is_at(Hook::Output)
    }

    fn comes_first(&self) -> bool {
        self.is_early || self.is_at_our_hook() && self.base.priority <= self.dstnat
    }

    fn does(&self, act: Act) -> bool {
        self.acts.contains(&act)
    }

    /// Whether it hides connections or sends them elsewhere, before ours do.
    fn translation(&self) -> Option<Judgement> {
        use Severity::{Note, Warning};
        let BaseChain {
            chain_type,
            priority,
            ..
        } = self.base;
        let is_nat = chain_type == "nat";
        if self.is_at_our_hook() && self.does(Act::Notrack) && *priority < PRIORITY_CONNTRACK {
            let message = "hides packets from connection tracking";
            return Some(judgement(
                Warning,
                message,
                "what it hides is not translated",
            ));
        }
        let translates = self.is_at_our_hook() && self.does(Act::Dnat);
        if translates && *priority <= self.dstnat {
            let message = if *priority == self.dstnat && is_nat {
                "translates destinations at the same priority as we do"
            } else {
                "translates destinations before we do"
            };
            let effect = "what it translates is no Service traffic any more, nor filtered by its source ranges";
            return Some(judgement(Warning, message, effect));
        }
        if translates && *priority <= self.guard && is_nat {
            let message = "translates destinations that we leave";
            return Some(judgement(Note, message, "it wins over refusals and drops"));
        }
        let is_postrouting = self.is_at(Hook::Postrouting) && is_nat;
        (is_postrouting && self.does(Act::Snat) && *priority < self.srcnat).then(|| {
            let effect = "clients that it translates are not remembered by session affinity";
            judgement(Note, "translates sources before we do", effect)
        })
    }

    /// What else it can do to packets that ours have not seen.
    fn before(&self) -> Option<Judgement> {
        use Severity::{Note, Warning};
        if !self.comes_first() {
            return None;
        }
        let (severity, message, effect) = if self.base.drops_by_default {
            (
                Warning,
                "drops what it does not accept, before our chains",
                "what it drops does not reach a Service",
            )
        } else if self.does(Act::Drop) {
            (
                Warning,
                "drops packets before our chains",
                "what it drops does not reach a Service",
            )
        } else if self.does(Act::Queue) {
            (
                Warning,
                "hands packets to a program before our chains",
                "the program decides over them",
            )
        } else if self.does(Act::Divert) {
            (
                Warning,
                "sends packets out of an interface before our chains",
                "what it sends does not reach a Service",
            )
        } else if self.does(Act::Rewrite) {
            (
                Warning,
                "rewrites addresses or ports before our chains",
                "what it rewrites may be no Service traffic any more, or that of another Service",
            )
        } else if self.does(Act::VerdictMap) {
            (
                Note,
                "asks a verdict map before our chains",
                "what elements it has was not seen, if it has any",
            )
        } else {
            return None;
        };
        Some(judgement(severity, message, effect))
    }

    /// What it can do to packets that ours have sent to an endpoint.
    fn behind(&self) -> Option<Judgement> {
        let is_forward = self.is_ip && self.base.hook == FORWARD;
        let is_input = self.is_ip && self.base.hook == INPUT;
        let is_behind = is_forward
            || is_input
            || self.is_at(Hook::Postrouting)
            || self.is_at_our_hook() && self.base.priority > self.dstnat;
        if !is_behind {
            return None;
        }
        let does = |act| self.own_acts.contains(&act);
        let (message, effect) = if is_forward && self.base.drops_by_default {
            (
                "drops forwarded packets that it does not accept",
                "it sees connections with their endpoint as destination, and must let them through",
            )
        } else if self.base.drops_by_default {
            (
                "drops what it does not accept, behind our chains",
                "it sees connections with their endpoint as destination, and must let them through",
            )
        } else if does(Act::Drop) {
            (
                "drops packets behind our chains",
                "it sees connections with their endpoint as destination, and may drop traffic to endpoints",
            )
        } else if does(Act::Queue) {
            (
                "hands packets to a program behind our chains",
                "the program may drop traffic to endpoints",
            )
        } else if does(Act::Rewrite) {
            (
                "rewrites addresses or ports behind our chains",
                "what it rewrites may not come to its endpoint",
            )
        } else if does(Act::VerdictMap) {
            (
                "asks a verdict map behind our chains",
                "what elements it has was not seen; they may drop traffic to endpoints",
            )
        } else {
            return None;
        };
        Some(judgement(Severity::Note, message, effect))
    }

    /// What it does to the mark that asks our chains for masquerading.
    fn mark(&self, mark: u32) -> Option<Judgement> {
        let is_before_postrouting = self.is_at_our_hook()
            || self.is_early
            || self.is_ip && self.base.hook == FORWARD
            || self.is_at(Hook::Postrouting) && self.base.priority <= self.srcnat;
        if !is_before_postrouting {
            return None;
        }
        let writes = || {
            self.acts.iter().filter_map(|act| match act {
                Act::Mark(write) => Some((write.sets & mark != 0, write.clears & mark != 0)),
                _ => None,
            })
        };
        // What is cleared before ours set it does no harm.
        let is_ahead = self.is_early || self.is_at_our_hook() && self.base.priority < self.dstnat;
        if writes().any(|bits| bits == (true, false)) {
            let effect = "what has that mark is masqueraded, whatever its Service wants";
            let message = format!("sets the mark {mark:#x}, which is ours");
            return Some(judgement(Severity::Warning, message, effect));
        }
        if !is_ahead && writes().any(|bits| bits == (false, true)) {
            let effect = "what loses that mark is not masqueraded, so that answers may not come back through this node";
            let message = format!("takes the mark {mark:#x} away, which is ours");
            return Some(judgement(Severity::Warning, message, effect));
        }
        writes().any(|(sets, _)| sets).then(|| {
            let effect = format!(
                "it cannot be told whether it changes {mark:#x}, which asks us to masquerade"
            );
            (Severity::Note, "writes marks".into(), effect.into())
        })
    }
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
        judge(&table, Some(0x4000), &listing.neighbours, |finding| {
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
                Some(Note),
            ),
            (
                chain("filter", "forward", 0, "tcp dport 8080 reject"),
                Some(Note),
            ),
            (chain("filter", "input", 0, "tcp dport 8080 drop"), Some(Note)),
            (chain("filter", "input", 0, "tcp dport 8080 accept"), None),
            (
                chain("filter", "forward", 0, "jump KUBE-FIREWALL").replace(
                    "\n}\n}\n",
                    "\n}\nchain KUBE-FIREWALL {\nip daddr 127.0.0.0/8 drop\n}\n}\n",
                ),
                None,
            ),
            (
                chain("filter", "prerouting", -150, "ip daddr vmap { 10.96.0.10 : drop }"),
                Some(Warning),
            ),
            (
                chain("filter", "prerouting", -150, "ip daddr vmap @m").replace(
                    "chain a",
                    "map m {\ntype ipv4_addr : verdict\nelements = { 10.96.0.10 : drop }\n}\nchain a",
                ),
                Some(Warning),
            ),
            (
                chain("filter", "prerouting", -150, "ip daddr vmap @m"),
                Some(Note),
            ),
            (
                chain("filter", "prerouting", -150, "ip daddr set 10.244.1.99"),
                Some(Warning),
            ),
            (chain("filter", "prerouting", -150, "ip ttl set 4"), None),
            (
                chain("filter", "prerouting", -150, "@th,16,16 set 0x50"),
                Some(Warning),
            ),
            (
                chain("filter", "prerouting", -150, "meta mark set 0x4000"),
                Some(Warning),
            ),
            (
                chain("filter", "prerouting", -150, "meta mark set meta mark | 0x8000"),
                None,
            ),
            (
                chain("filter", "prerouting", -150, "meta mark set mark or 0x4000"),
                Some(Warning),
            ),
            (chain("filter", "prerouting", -150, "meta mark set 0x1"), None),
            (
                chain("filter", "forward", 0, "meta mark set 0x1"),
                Some(Warning),
            ),
            (
                chain("filter", "prerouting", -150, "meta mark set ct mark"),
                Some(Note),
            ),
            (
                chain("filter", "prerouting", -150, "ct mark set 0x4000"),
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
