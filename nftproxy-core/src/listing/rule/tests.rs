//! What versions of nft(8) make of our rules, and what is none of ours.

use super::super::token::Tokens;
use super::*;
use crate::model::{V4, V6};
use crate::ruleset::expr::Verdict;
use crate::ruleset::name::ChainName;
use crate::ruleset::schema::DataType;

fn text<F: Family>(rule: &str) -> Option<String> {
    let words: Vec<_> = Tokens::new(rule).collect();
    read::<F>(&words).map(|rule| rule.text)
}

#[test]
fn each_version_of_nft_has_its_own_words() {
    for (listed, ours) in [
        (
            "reject with tcp reset",
            "meta l4proto tcp reject with tcp reset",
        ),
        (
            "meta l4proto 6 reject with tcp reset",
            "meta l4proto tcp reject with tcp reset",
        ),
        ("reject with icmp port-unreachable", "reject"),
        ("reject with icmp type port-unreachable", "reject"),
        ("fib daddr type 2 return", "fib daddr type local return"),
        (
            "ct status 0x20 jump remember",
            "ct status dnat jump remember",
        ),
        (
            "ct status & dnat != 0 jump remember",
            "ct status dnat jump remember",
        ),
        (
            "meta mark & 0x00004000 != 0x00000000 meta mark set meta mark ^ 0x00004000 masquerade fully-random",
            "meta mark & 0x4000 != 0 meta mark set meta mark ^ 0x4000 masquerade fully-random",
        ),
        (
            "dnat ip to meta l4proto . @th,16,16 . numgen random mod 2 map @node-port-endpoints",
            "dnat ip addr . port to meta l4proto . th dport . numgen random mod 2 map @node-port-endpoints",
        ),
        (
            "tcp dport != 0 update @affinity { ip saddr . ct original ip daddr . meta l4proto . ct original proto-dst timeout 3h : ip daddr . tcp dport }",
            "tcp dport != 0 update @affinity { ip saddr . ct original ip daddr . meta l4proto . ct original proto-dst timeout 10800s : ip daddr . tcp dport }",
        ),
        (
            "dnat ip to meta l4proto . th dport . jhash ip saddr mod 9 seed 0x6e667470 map @node-port-endpoints",
            "dnat ip addr . port to meta l4proto . th dport . jhash ip saddr mod 9 seed 0x6e667470 map @node-port-endpoints",
        ),
        (
            "iifname != \"eth*\" ip daddr @cluster-ips drop",
            "iifname != \"eth*\" ip daddr @cluster-ips drop",
        ),
        ("ip saddr 10.0.0.1 drop", "ip saddr 10.0.0.1/32 drop"),
    ] {
        assert_eq!(text::<V4>(listed).as_deref(), Some(ours), "{listed}");
    }
    assert_eq!(
        text::<V6>("ip6 daddr fd00::/48 drop").as_deref(),
        Some("ip6 daddr fd00::/48 drop")
    );
}

#[test]
fn what_we_write_reads_back() {
    let sets = SetName::ALL.into_iter().chain(SetName::OPTIONAL);
    let mut statements: Vec<Statement<V4>> = sets
        .filter(|set| SlotMap::of(*set).is_none())
        .flat_map(|set| {
            [
                Statement::In(set),
                Statement::NotIn(set),
                Statement::Vmap(set),
                Statement::VmapOriginal(set, Protocol::Udp),
            ]
        })
        .filter(|statement| match statement {
            // Others have no verdict.
            Statement::VmapOriginal(set, _) => schema(*set).data == DataType::Verdict,
            _ => true,
        })
        .collect();
    for draw in [Draw::Random, Draw::Hash] {
        statements.extend(SlotMap::ALL.map(|map| Statement::DnatToSlot {
            map: map.set(),
            draw,
            n: 7,
        }));
    }
    let prefix = |negate| Match {
        value: ([10, 1, 0, 0].into(), 13),
        negate,
    };
    let name = |negate| Match {
        value: InterfaceName::new("cni0").unwrap(),
        negate,
    };
    for negate in [false, true] {
        statements.extend([
            Statement::Saddr(prefix(negate)),
            Statement::Daddr(prefix(negate)),
            Statement::Iifname(name(negate)),
            Statement::IifnamePrefix(name(negate)),
        ]);
    }
    statements.extend([
        Statement::OriginalIn(SetName::ClusterIps),
        Statement::OriginalNotIn(SetName::NodePortIps),
        Statement::SaddrIsLocal,
        Statement::DaddrIsLocal,
        Statement::L4Proto(Protocol::Sctp),
        Statement::HasMark(0x4000),
        Statement::IsDnat,
        Statement::SetMark(1),
        Statement::ClearMark(1 << 31),
        Statement::Remember(Protocol::Tcp, 77.try_into().unwrap()),
        Statement::DnatToRemembered,
        Statement::Masquerade,
        Statement::Counter,
        Statement::Reject(Reject::PortUnreachable),
        Statement::Verdict(Verdict::Drop),
        Statement::Verdict(Verdict::Accept),
        Statement::Verdict(Verdict::Return),
        Statement::Verdict(Verdict::Jump(ChainName::Remember)),
    ]);
    for statement in statements {
        let rule = Rule::new([statement]);
        let words: Vec<_> = Tokens::new(&rule.text).collect();
        assert_eq!(read::<V4>(&words), Some(rule.clone()), "{}", rule.text);
    }
}

#[test]
fn what_is_said_of_a_rule_is_nothing_that_it_does() {
    let said = text::<V4>("jump services comment \"as it was\"");
    assert_eq!(said, text::<V4>("jump services"));
    assert!(said.is_some());
}

#[test]
fn other_rules_are_not_ours() {
    for rule in [
        "continue",
        "counter packets many bytes 0 drop",
        "ip saddr 10.0.0.1 continue",
        "tcp dport 80 drop",
        "masquerade",
        "dnat to 10.0.0.1",
        "meta mark set 0x4000",
        "meta mark & 0x4000 == 0x4000 drop",
        "ip daddr . meta l4proto vmap @services",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen inc mod 2 map @endpoints",
        "dnat ip to ip daddr . meta l4proto . th dport . jhash ip saddr mod 2 seed 0x1 map @endpoints",
        "dnat ip to ip daddr . meta l4proto . th dport . jhash ip saddr mod 2 map @endpoints",
        "dnat ip to ip daddr . meta l4proto . th dport . jhash ip daddr mod 2 seed 0x6e667470 map @endpoints",
        "dnat ip to ip daddr . meta l4proto . th dport . symhash mod 2 map @endpoints",
        "goto elsewhere",
        // As it was before.
        "meta l4proto tcp update @affinity { ip saddr . ct original ip daddr . meta l4proto . ct original proto-dst timeout 1h : ip daddr . tcp dport }",
        "tcp dport != 0 update @affinity { ip saddr timeout 1h : ip daddr . tcp dport }",
        "",
    ] {
        assert_eq!(text::<V4>(rule), None, "{rule}");
    }
}

#[test]
fn times_are_read_in_seconds() {
    for (text, expected) in [
        ("1h", 3600),
        ("1d2h3m4s", 93784),
        ("77", 77),
        ("3600s", 3600),
    ] {
        assert_eq!(seconds(text), Some(expected), "{text}");
    }
    for text in ["1h5", "h1x", "100ms", ""] {
        assert_eq!(seconds(text), None, "{text}");
    }
}
