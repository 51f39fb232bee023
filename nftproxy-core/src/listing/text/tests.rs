//! Tables of others, what is broken, and what is foreign in ours.

use super::*;
use crate::listing;
use crate::neighbour::Act;
use crate::ruleset::Table;

#[test]
fn priorities_are_numbers_or_names() {
    for (words, expected) in [
        (&["-100"][..], Some(-100)),
        (&["dstnat"], Some(-100)),
        (&["dstnat", "-", "10"], Some(-110)),
        (&["srcnat", "+", "5"], Some(105)),
        (&["elsewhere"], None),
        (&[], None),
    ] {
        assert_eq!(priority(words), expected, "{words:?}");
    }
}

/// What nft(8) makes of the tables of other programs.
const OTHERS: &str = r#"
table ip nat { # handle 3
	chain PREROUTING {
		type nat hook prerouting priority dstnat; policy accept;
		fib daddr type local counter packets 0 bytes 0 jump DOCKER
	}

	chain DOCKER {
		iifname "drop" return
		tcp dport 80 counter packets 0 bytes 0 dnat to 172.17.0.2:80 comment "reject"
		meta l4proto tcp xt target "REDIRECT"
	}
}
table inet filter {
	flags dormant
	set blocked {
		type ipv4_addr
		flags interval
		elements = { 10.0.0.0/8,
			     192.0.2.1-192.0.2.9 counter packets 1 bytes 2 }
	}
	flowtable f {
		hook ingress priority filter
		devices = { eth0 }
	}
	counter c {
		packets 0 bytes 0
	}
	chain input {
		type filter hook input priority filter; policy drop;
		tcp dport { 22, 80,
			443 } accept
		ip saddr @blocked drop
	}
	chain empty { }
	chain one { accept }
}
table netdev early {
	chain in {
		type filter hook ingress device "eth0" priority -500; policy accept;
	}
}
"#;

#[test]
fn tables_of_others_are_read_for_what_they_may_do() {
    let listing = listing::read(OTHERS, &Table::default());
    assert_eq!(listing.unread, []);
    assert_eq!((listing.v4, listing.v6), (None, None));
    let [nat, filter, early] = listing.neighbours.as_slice() else {
        panic!("{:?}", listing.neighbours)
    };
    assert_eq!((nat.family, nat.table.as_str()), ("ip", "nat"));
    assert_eq!(nat.chains, ["PREROUTING", "DOCKER"]);
    assert_eq!(nat.base_chains[0].priority, -100);
    assert_eq!(nat.acts("PREROUTING"), [Act::Dnat].into());
    assert!(filter.is_dormant && filter.base_chains[0].drops_by_default);
    assert_eq!(filter.chains, ["input", "empty", "one"]);
    assert_eq!(filter.acts("input"), [Act::Drop].into());
    assert_eq!(early.base_chains[0].priority, -500);
}

#[test]
fn what_cannot_be_read_is_told_with_its_line() {
    for (text, line, why) in [
        (
            "table ip nftproxy {\n\tchain refuse {\n\t\treject\n",
            2,
            "chain refuse does not end",
        ),
        (
            "table ip nftproxy {\n\tset cluster-ips {\n",
            2,
            "set cluster-ips does not end",
        ),
        (
            "table ip nftproxy {\n\tset cluster-ips {\n\t\ttypeof ip daddr\n\t\telements = { 10.96.0.1,\n",
            4,
            "the elements of cluster-ips do not end",
        ),
        ("table ip nftproxy {\n", 1, "table ip nftproxy does not end"),
        (
            "\nError: no such file\n",
            2,
            "no table starts with `Error: no such file`",
        ),
        ("table ip", 1, "the name of a table is missing"),
        (
            "table ip x {\n\tchain y {\n\t\ttype nat hook output priority soon; policy accept;\n\t}\n}\n",
            3,
            "chain y has a priority that cannot be read",
        ),
    ] {
        let listing = listing::read(text, &Table::default());
        let unread: Vec<_> = listing
            .unread
            .iter()
            .map(|unread| (unread.line, unread.why.as_str()))
            .collect();
        assert_eq!(unread, [(line, why)], "{text}");
    }
}

#[test]
fn what_is_not_ours_in_our_table_is_foreign() {
    let text = r#"table ip nftproxy {
	flags dormant
	comment "x"
	set cluster-ips {
		type ipv6_addr
		elements = { fd00::1 }
	}
	set strange {
		type ipv4_addr
	}
	map services {
		typeof ip daddr . meta l4proto . th dport : verdict
		elements = { 10.96.0.1 . tcp . 80 : goto elsewhere, 10.96.0.2 . tcp . "http" : drop }
	}
	ct helper ftp {
		type "ftp" protocol tcp
	}
	chain strange {
		accept
	}
	chain services {
		ip saddr 10.0.0.1 accept
	}
	chain output {
		type nat hook output priority 0; policy accept;
		jump services
	}
}
"#;
    let listing = listing::read(text, &Table::default());
    assert_eq!(listing.unread, []);
    let observed = listing.v4.unwrap();
    for foreign in [
        "table flag dormant",
        "set cluster-ips of another type",
        "set strange",
        "element { 10.96.0.1 . tcp . 80 : goto elsewhere } of services",
        "ct helper ftp",
        "chain strange",
        "chain output at another hook",
    ] {
        assert!(
            observed.foreign.iter().any(|what| what == foreign),
            "{foreign}: {:?}",
            observed.foreign
        );
    }
    let elements: Vec<_> = observed
        .ruleset
        .elements
        .iter()
        .map(|element| element.nft())
        .collect();
    assert_eq!(elements, ["10.96.0.2 . tcp . 80 : drop"]);
}
