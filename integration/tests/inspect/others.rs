//! Others' tables, as the kernel has them and as listings do: an audit finds the same in both.

use std::collections::BTreeSet;

use integration::daemon::{Output, run};
use integration::netns::{Namespace, in_sandbox};
use serde_json::Value;

/// What an audit finds about others' chains, and how bad the worst of it is.
fn preempted(host: &Namespace, more: &[&str]) -> BTreeSet<(String, String)> {
    let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/example.yaml");
    let arguments = ["audit", "-o", "json", "--manifests", manifests];
    let Output { out, err, .. } = run(host, &[&arguments, more].concat()).unwrap();
    let document: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
    assert_eq!(document["unread"], Value::Array(Vec::new()), "{out}");
    let findings = document["findings"].as_array().unwrap().iter();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    findings
        .filter(|finding| finding["kind"] == "preempted")
        .map(|finding| {
            let [severity, object, message] =
                ["severity", "object", "message"].map(|key| text(finding, key));
            (severity, format!("{object}: {message}"))
        })
        .collect()
}

/// A table with a chain at a hook, and what stands before the chain.
fn table(family: &str, hook: &str, before: &str, rules: &str) -> String {
    format!(
        "table {family} other {{\n{before}\nchain a {{\ntype {hook}; policy accept;\n{rules}\n}}\n}}\n"
    )
}

const EARLY: &str = "filter hook prerouting priority -150";
const NAT: &str = "nat hook prerouting priority -105";
const FORWARD: &str = "filter hook forward priority 0";
const POSTROUTING: &str = "filter hook postrouting priority -150";

/// Tables, and how bad what they do is.
fn tables() -> Vec<(String, &'static [&'static str])> {
    const WARNING: &[&str] = &["warning"];
    const NOTE: &[&str] = &["note"];
    const NOTHING: &[&str] = &[];
    let verdicts = |elements: &str| {
        format!("map m {{\ntype ipv4_addr : verdict; flags interval;\n{elements}\n}}")
    };
    let dropping = verdicts("elements = { 10.96.0.0/16 : drop }");
    let harmless = verdicts("elements = { 10.96.0.10 : accept }");
    let translating = "chain e {\ndnat to 10.244.1.99\n}";
    let by_name = format!(
        "{translating}\n{}",
        verdicts("elements = { 10.96.0.10 : goto e }")
    );
    // Of our name, and none of ours.
    let namesake = "table inet nftproxy {\nchain a {\ntype filter hook prerouting priority -150;\ntcp dport 80 drop\n}\nchain b {\ntype nat hook prerouting priority -105;\ntcp dport 80 dnat ip to 10.244.1.99\n}\n}\n";
    let namesake_in = |family: &str| {
        namesake
            .replace("inet", family)
            .replace("dnat ip to", "dnat to")
    };
    vec![
        (namesake.to_owned(), &["warning", "warning"]),
        (
            namesake_in("ip").replace("nftproxy", "nftproxy2"),
            &["warning", "warning"],
        ),
        (
            table("ip", EARLY, "", "ip daddr vmap { 10.96.0.10 : drop }"),
            WARNING,
        ),
        (table("ip", EARLY, &dropping, "ip daddr vmap @m"), WARNING),
        (table("inet", EARLY, &dropping, "ip daddr vmap @m"), WARNING),
        (table("ip", EARLY, &harmless, "ip daddr vmap @m"), NOTHING),
        (table("ip", EARLY, &verdicts(""), "ip daddr vmap @m"), NOTE),
        (
            table(
                "ip",
                EARLY,
                "",
                "ip daddr . tcp dport vmap { 10.96.0.10 . 80 : drop }",
            ),
            WARNING,
        ),
        (
            table(
                "ip",
                NAT,
                translating,
                "ip daddr vmap { 10.96.0.10 : goto e }",
            ),
            WARNING,
        ),
        (table("ip", NAT, &by_name, "ip daddr vmap @m"), WARNING),
        (
            table(
                "ip",
                EARLY,
                "",
                "ip daddr 10.96.0.10 ip daddr set 10.244.1.99",
            ),
            WARNING,
        ),
        (
            table(
                "inet",
                EARLY,
                "",
                "ip daddr 10.96.0.10 ip daddr set 10.244.1.99",
            ),
            WARNING,
        ),
        (table("inet", EARLY, "", "ip6 daddr set fd00::1"), WARNING),
        (table("ip6", EARLY, "", "ip6 saddr set fd00::1"), WARNING),
        (
            table("ip", EARLY, "", "tcp dport 80 tcp dport set 81"),
            WARNING,
        ),
        (table("ip", EARLY, "", "@nh,128,32 set 0x0a000001"), WARNING),
        (table("ip", EARLY, "", "ip ttl set 5"), NOTHING),
        (table("ip", EARLY, "", "ip dscp set cs1"), NOTHING),
        (table("inet", EARLY, "", "ip6 hoplimit set 5"), NOTHING),
        (table("ip", EARLY, "", "meta mark set 0x4000"), WARNING),
        (
            table("ip", EARLY, "", "meta mark set meta mark | 0x4000"),
            WARNING,
        ),
        (
            table(
                "ip",
                EARLY,
                "",
                "meta mark set meta mark & 0xffff0000 ^ 0x4001",
            ),
            WARNING,
        ),
        (
            table("ip", EARLY, "", "meta mark set meta mark | 0x8000"),
            NOTHING,
        ),
        (table("ip", EARLY, "", "meta mark set 0x1"), NOTHING),
        (table("ip", EARLY, "", "meta mark set ct mark"), NOTE),
        (table("ip", EARLY, "", "meta mark set ct mark | 0x1"), NOTE),
        (
            table(
                "ip",
                EARLY,
                "",
                "meta mark set ip daddr map { 10.96.0.10 : 0x4000 }",
            ),
            NOTE,
        ),
        (table("ip", EARLY, "", "ct mark set meta mark"), NOTHING),
        (table("ip", FORWARD, "", "meta mark set 0x1"), WARNING),
        (
            table(
                "ip",
                POSTROUTING,
                "",
                "meta mark set meta mark & 0xffffbfff",
            ),
            WARNING,
        ),
        (table("inet", FORWARD, "", "tcp dport 8080 drop"), NOTE),
        (
            table("inet", FORWARD, "", "tcp dport 8080 reject with tcp reset"),
            NOTE,
        ),
        (table("ip", FORWARD, &dropping, "ip daddr vmap @m"), NOTE),
        (
            table("ip", FORWARD, "", "tcp dport { 80, 8080 } accept"),
            NOTHING,
        ),
        (
            table(
                "ip",
                EARLY,
                "",
                "iifname vmap { \"drop\" : accept, \"lo\" : continue }",
            ),
            NOTHING,
        ),
    ]
}

#[test]
fn kernel_and_listings_tell_the_same_of_others() {
    in_sandbox(|| {
        for (script, severities) in tables() {
            let host = Namespace::new("others").unwrap();
            host.exec_with_input(&["nft", "-f", "-"], &script).unwrap();
            let found = preempted(&host, &[]);
            let found_severities: Vec<_> = found.iter().map(|(severity, _)| severity).collect();
            assert_eq!(found_severities, severities, "{script}\n{found:#?}");
            let folder = tempfile::tempdir().unwrap();
            for flags in [&[][..], &["-j"]] {
                let listing = host.exec(&[&["nft"], flags, &["list", "ruleset"]].concat());
                let file = folder.path().join("listing");
                std::fs::write(&file, listing.unwrap()).unwrap();
                let by_listing = preempted(&host, &["--ruleset", file.to_str().unwrap()]);
                assert_eq!(by_listing, found, "{flags:?} {script}");
            }
        }
    });
}
