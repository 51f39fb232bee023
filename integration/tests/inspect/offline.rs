//! Saved listings, without privileges.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use integration::daemon::binary;
use integration::fixtures;
use nftproxy_core::inspect::{Desired, Kind, Severity, audit};
use nftproxy_core::listing;
use nftproxy_core::model::{DetectLocal, IpFamily, Node, NodePortAddresses};
use nftproxy_core::ruleset::Table;
use serde_json::Value;

use super::{LISTINGS, recorded_cluster, recorded_listing, schema};

struct Output {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs the program with something on its standard input.
fn run(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(binary().unwrap())
        .args(arguments)
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Whoever does not read it closes it.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let output = child.wait_with_output().unwrap();
    Output {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Audits a listing against the recorded cluster.
fn audit_text(text: &str, more: &[&str]) -> Output {
    let cluster = recorded_cluster();
    let mut arguments = vec!["audit", "--ruleset", "-"];
    arguments.extend(cluster.iter().map(String::as_str));
    arguments.extend(more);
    run(&arguments, text)
}

fn read(file: &str) -> String {
    std::fs::read_to_string(recorded_listing(file)).unwrap()
}

/// The only thing that is wrong in the recordings is a table of another program; a second one may
/// drop what is on its way to an endpoint.
#[test]
fn listings_of_each_version_are_read_alike() {
    let mut documents = Vec::new();
    for file in LISTINGS {
        let Output { code, out, err } = audit_text(&read(file), &["-o", "json"]);
        assert_eq!(code, Some(1), "{file}: {out}{err}");
        let document: Value = serde_json::from_str(&out).unwrap();
        schema::check("audit", &document);
        documents.push((file, document));
    }
    let (_, first) = &documents[0];
    let findings = first["findings"].as_array().unwrap();
    let kinds: Vec<_> = findings.iter().map(|finding| &finding["kind"]).collect();
    assert_eq!(kinds, ["preempted", "preempted"], "{first:#}");
    assert_eq!(first["scope"]["otherTables"], 2);
    for (file, document) in &documents {
        assert_eq!(document, first, "{file}");
    }
}

/// 1 is an answer of theirs, so it is none to a command line that they do not know.
#[test]
fn a_wrong_command_line_cannot_be_told() {
    for command in ["audit", "list", "explain", "diff", "digest", "trace"] {
        let Output { code, out, err } = run(&[command, "--nonsense"], "");
        assert_eq!((code, out.as_str()), (Some(2), ""), "{command}: {err}");
        assert!(
            err.contains("--nonsense") && err.contains("Usage: "),
            "{err}"
        );
    }
    for line in [&["run", "--nonsense"][..], &["--nonsense"]] {
        assert_eq!(run(line, "").code, Some(1), "{line:?}");
    }
}

fn node() -> Node {
    let ips: [IpAddr; 2] = [
        "172.18.0.2".parse().unwrap(),
        "fd00:172:18::2".parse().unwrap(),
    ];
    let cidrs = ["10.244.0.0/16", "fd00:10:244::/48"];
    Node {
        zone: Some("eu-1a".into()),
        detect_local: DetectLocal::Cidrs(cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect()),
        node_port_addresses_v4: NodePortAddresses::Only([ips[0]].into()),
        node_port_addresses_v6: NodePortAddresses::Only([ips[1]].into()),
        ips: ips.into(),
        ..Node::default()
    }
}

/// Every element, rule and chain whose line is taken away is missed.
#[test]
fn nothing_can_be_taken_away_unnoticed() {
    let state = fixtures::recorded("all.yaml");
    let node = node();
    let desired = Desired {
        state: &state,
        node: &node,
    };
    let table = Table::default();
    let families = [IpFamily::V4, IpFamily::V6];
    let text = read("nft-1.1.7.txt");
    let whole = listing::read(&text, &table);
    let report = audit(desired, &whole, &table, &families, |_| ());
    assert!(
        report
            .findings
            .iter()
            .all(|finding| finding.kind == Kind::Preempted),
        "{:#?}",
        report.findings
    );

    let lines: Vec<_> = text.lines().collect();
    let (mut n, mut n_named) = (0, 0);
    let mut in_ours = false;
    for (index, line) in lines.iter().enumerate() {
        if line.starts_with("table") {
            in_ours = line.contains("nftproxy");
        }
        let is_rule = line.starts_with("\t\t")
            && !line.contains("typeof")
            && !line.contains("elements = ")
            && !line.trim_start().starts_with("type ")
            && !line.contains("flags ")
            && !line.contains("size ");
        // Elements in the middle of their set, and rules.
        if !in_ours || !is_rule || line.ends_with('}') && !line.contains("affinity {") {
            continue;
        }
        let without: Vec<_> = lines
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index)
            .map(|(_, line)| *line)
            .collect();
        let damaged = listing::read(&without.join("\n"), &table);
        assert_eq!(damaged.unread, [], "{line}");
        let report = audit(desired, &damaged, &table, &families, |_| ());
        let mut errors = report
            .findings
            .iter()
            .filter(|finding| finding.severity == Severity::Error)
            .peekable();
        assert!(errors.peek().is_some(), "nobody misses {line}");
        n += 1;
        n_named += usize::from(errors.any(|finding| finding.service_port.is_some()));
    }
    assert!(
        n > 100 && n_named > 40,
        "{n} lines, {n_named} with a Service"
    );
}

/// What session affinity has learned is right if the Service has it, whoever the client is.
#[test]
fn what_is_remembered_is_looked_at() {
    let extra = |text: &str| {
        let Output { out, err, .. } = audit_text(text, &["-o", "json"]);
        let document: Value = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{out}{err}"));
        let findings = document["findings"].as_array().unwrap().iter();
        let of_ours = findings.filter(|finding| finding["kind"] != "preempted");
        let told = of_ours.map(|finding| {
            let text = |key| finding[key].as_str().unwrap_or_default();
            format!(
                "{} {}: {}",
                text("servicePort"),
                text("object"),
                text("message")
            )
        });
        told.collect::<Vec<_>>()
    };
    let text = read("nft-1.0.6.txt");
    let elements = text.split("map endpoints {").nth(1).unwrap();
    let slot = elements.split("elements = { ").nth(1).unwrap();
    let (key, rest) = slot.split_once(" : ").unwrap();
    let (destination, _) = key.rsplit_once(" . ").unwrap();
    let endpoint = rest.split(',').next().unwrap();
    let remembering = |endpoint: &str| {
        let element =
            format!("192.0.2.7 . {destination} timeout 3h expires 2h59m59s992ms : {endpoint}");
        let flags = "flags dynamic,timeout\n";
        text.replacen(
            flags,
            &format!("{flags}\t\telements = {{ {element} }}\n"),
            1,
        )
    };
    assert_eq!(extra(&remembering(endpoint)), [""; 0]);
    let told = extra(&remembering("10.9.9.9 . 80"));
    assert_eq!(told.len(), 1, "{told:#?}");
    let message = format!(
        "map affinity: {{ 192.0.2.7 . {destination} : 10.9.9.9 . 80 }} should not be there"
    );
    assert!(
        told[0].ends_with(&message) && told[0].contains('/'),
        "{told:#?}"
    );

    let text = read("nft-1.0.6.json");
    let concatenation = |text: &str| {
        let part = |part: &str| match part.parse::<u16>() {
            Ok(number) => number.to_string(),
            Err(_) => format!("\"{part}\""),
        };
        let parts: Vec<_> = text.split(" . ").map(part).collect();
        format!("{{\"concat\": [{}]}}", parts.join(", "))
    };
    let remembering = |key: &str, endpoint: &str| {
        let head = "\"size\": 1000000, \"flags\": [\"timeout\"]";
        let data = concatenation(endpoint);
        let element =
            format!("{{\"elem\": {{\"val\": {key}, \"timeout\": 10800, \"expires\": 9}}}}");
        text.replacen(head, &format!("{head}, \"elem\": [[{element}, {data}]]"), 1)
    };
    let key = concatenation(&format!("192.0.2.7 . {destination}"));
    assert_eq!(extra(&remembering(&key, endpoint)), [""; 0]);
    assert_eq!(extra(&remembering(&key, "10.9.9.9 . 80")), told);
    let told = extra(&remembering("\"*\"", "10.9.9.9 . 80"));
    assert!(told[0].contains("of affinity"), "{told:#?}");
}

/// What the cluster asks for may come from another program, too.
#[test]
fn manifests_are_read_from_standard_input() {
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/example.yaml");
    let text = std::fs::read_to_string(example).unwrap();
    let of = |path: &str, input: &str| {
        let Output { code, out, err } = run(&["list", "--manifests", path], input);
        assert_eq!(code, Some(0), "{err}");
        out
    };
    let listed = of("-", &text);
    assert!(listed.contains("shop/"), "{listed}");
    assert_eq!(listed, of(example, ""));
    for both in [
        &["audit", "--manifests", "-", "--ruleset", "-"][..],
        &[
            "explain",
            "node",
            "10.0.0.1:80",
            "--manifests=-",
            "--ruleset=-",
        ],
        &["diff", "-", "-"],
    ] {
        let Output { code, err, .. } = run(both, &text);
        assert_eq!(code, Some(2), "{err}");
        assert!(
            err.contains("standard input (`-`) can be read once"),
            "{err}"
        );
    }
}

/// A Service by name is asked for where it has endpoints, unless the client has one family only.
#[test]
fn a_service_by_name_is_met_where_it_has_endpoints() {
    const MANIFEST: &str = r#"
apiVersion: v1
kind: Service
metadata: {name: six, namespace: shop}
spec: {clusterIP: "fd00:10:96::6", clusterIPs: ["fd00:10:96::6", 10.96.0.6], ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: six-1, namespace: shop, labels: {kubernetes.io/service-name: six}}
addressType: IPv6
endpoints: [{addresses: ["fd00:10:244::5"]}]
ports: [{port: 8080}]
"#;
    let asked = |from: &str| {
        let arguments = ["explain", from, "shop/six", "--manifests", "-"];
        let Output { out, err, .. } = run(&arguments, MANIFEST);
        let first = out.lines().next().unwrap_or_else(|| panic!("{err}"));
        first.split(' ').nth(2).unwrap().to_owned()
    };
    assert_eq!(asked("outside"), "[fd00:10:96::6]:80/tcp");
    assert_eq!(asked("198.51.100.7"), "10.96.0.6:80/tcp");
}

/// A listing that is cut off is no clean one, wherever it ends.
#[test]
fn a_listing_that_is_cut_off_is_told() {
    let table = Table::default();
    for file in ["nft-1.0.6.txt", "nft-1.0.6.json"] {
        let text = read(file);
        let ours = text.find("nftproxy").unwrap();
        let end = text.trim_end().len();
        let mut cuts: Vec<_> = (ours..end).step_by(997).chain([end - 1]).collect();
        cuts.retain(|cut| text.is_char_boundary(*cut));
        for cut in cuts {
            let listing = listing::read(&text[..cut], &table);
            let is_between_tables =
                file.ends_with("txt") && text[..cut].trim_end().ends_with("\n}");
            assert!(
                !listing.unread.is_empty() || is_between_tables,
                "{file} cut at {cut}"
            );
        }
    }
    let text = read("nft-1.0.6.txt");
    let Output { code, out, .. } = audit_text(&text[..text.len() / 2], &[]);
    assert_eq!(code, Some(2), "{out}");
    assert!(out.contains("could not be read: line "), "{out}");
}

#[test]
fn what_is_no_listing_and_what_is_not_there_cannot_be_told() {
    for text in ["hello", "{}", "{\"nftables\": 7}", "{"] {
        assert_eq!(audit_text(text, &[]).code, Some(2), "{text}");
    }
    // Nothing at all is a kernel without tables, or what is left of a failure.
    let Output { code, out, .. } = audit_text("", &[]);
    assert_eq!(code, Some(2));
    assert!(
        out.contains("table ip nftproxy: it does not exist"),
        "{out}"
    );
    let gone = run(
        &["audit", "--manifests", "/nonexistent", "--ruleset", "-"],
        "",
    );
    assert_eq!(gone.code, Some(2));
    assert!(gone.err.contains("/nonexistent"), "{}", gone.err);
    let file = run(
        &[
            "audit",
            "--manifests",
            "/dev/null",
            "--ruleset",
            "/nonexistent",
        ],
        "",
    );
    assert_eq!(file.code, Some(2));
}

/// Damage of kinds that the tool was not written for one by one.
#[test]
fn damage_is_named() {
    let text = read("nft-1.1.3.txt");
    for (from, to, wanted) in [
        (
            "\tchain refuse {\n",
            "\tflags dormant\n\tchain refuse {\n",
            "table flag dormant",
        ),
        ("jump guard", "jump refuse", "it lacks the rule: jump guard"),
        (
            "reject with tcp reset",
            "drop",
            "it lacks the rule: meta l4proto tcp reject with tcp reset",
        ),
        (
            "typeof ip saddr . ip daddr\n",
            "typeof ip daddr\n",
            "set hairpin of another type",
        ),
        (
            "hook output priority dstnat;",
            "hook output priority filter;",
            "chain output at another hook",
        ),
        (
            "hook output priority dstnat; policy accept;",
            "hook output priority dstnat; policy drop;",
            "chain output of another type or policy",
        ),
        (
            "0x00004000",
            "0x00008000",
            "it lacks the rule: meta mark set meta mark | 0x4000",
        ),
        (
            "numgen random mod 2 map @endpoints",
            "numgen random mod 1 map @endpoints",
            "chain pick-2: it lacks the rule: dnat",
        ),
        (
            "tcp . 6379 : goto pick-1",
            "tcp . 6379 : goto pick-9",
            "leads from here to chain pick-9, which does not exist",
        ),
    ] {
        assert!(text.contains(from), "{from}");
        let Output { code, out, .. } = audit_text(&text.replacen(from, to, 1), &["--limit", "0"]);
        assert_eq!(code, Some(1), "{from}: {out}");
        assert!(out.contains(wanted), "{wanted} is missing from {out}");
    }
}

#[test]
fn services_are_listed_from_either_side() {
    let cluster = recorded_cluster();
    let cluster: Vec<_> = cluster.iter().map(String::as_str).collect();
    let listing = recorded_listing("nft-1.0.6.json");
    let kernel = ["--from", "kernel", "--ruleset", listing.to_str().unwrap()];
    let services = |arguments: &[&str]| {
        let all = [&["list", "-o", "json"], arguments].concat();
        let Output { code, out, err } = run(&all, "");
        assert_eq!(code, Some(0), "{err}");
        let document: Value = serde_json::from_str(&out).unwrap();
        schema::check("list", &document);
        document["services"].as_array().unwrap().clone()
    };
    // What is used is the same, whoever says so.
    let used = |services: &[Value]| -> Vec<String> {
        let mut used = Vec::new();
        for service in services {
            let endpoints = service["endpoints"].as_array().unwrap().iter();
            let is_used = |endpoint: &&Value| endpoint["used"] == true;
            let addresses: Vec<_> = endpoints
                .filter(is_used)
                .map(|endpoint| endpoint["address"].to_string())
                .collect();
            used.push(format!(
                "{} {} {addresses:?}",
                service["servicePort"], service["family"]
            ));
        }
        used
    };
    let (desired, found) = (services(&cluster), services(&kernel));
    assert!(desired.len() > 20);
    assert_eq!(used(&desired), used(&found));

    let filtered = services(&[&cluster[..], &["--namespace", "games", "--port", "7777"]].concat());
    assert!(
        !filtered.is_empty()
            && filtered
                .iter()
                .all(|row| row["servicePort"] == "games/lobby:game")
    );
    let nothing = run(
        &[&["list"], &cluster[..], &["no-such-service"]].concat(),
        "",
    );
    assert_eq!((nothing.code, nothing.out.as_str()), (Some(1), ""));
    let wide = run(
        &[&["list", "--wide", "games/lobby"], &cluster[..]].concat(),
        "",
    );
    assert!(
        wide.out.contains("(not from outside: on another node)"),
        "{}",
        wide.out
    );
}

#[test]
fn connections_are_explained_in_kubernetes_terms() {
    let cluster = recorded_cluster();
    let cluster: Vec<_> = cluster.iter().map(String::as_str).collect();
    let explain = |from: &str, to: &str, more: &[&str]| {
        let all = [&["explain", from, to], &cluster[..], more].concat();
        run(&all, "")
    };
    let drop = explain("outside", "node:30777/udp", &[]);
    assert_eq!(drop.code, Some(1), "{}{}", drop.out, drop.err);
    assert!(
        drop.out.contains(
            "externalTrafficPolicy Local, and no usable endpoint on this node; 2 usable on "
        ),
        "{}",
        drop.out
    );
    let json = explain("10.244.1.77", "data/redis", &["-o", "json"]);
    assert_eq!(json.code, Some(0), "{}", json.err);
    let document: Value = serde_json::from_str(&json.out).unwrap();
    schema::check("explain", &document);
    assert_eq!(document["ways"][0]["share"], "1");
    assert_eq!(document["servicePort"], "data/redis:redis");
    for (to, why) in [
        ("10.96.255.254:80", "no Service that is served here has it"),
        ("10.96.0.1:81", "its Service has no such port (81)"),
        ("8.8.8.8:53/udp", "so it is left alone"),
    ] {
        let out = explain("10.244.1.77", to, &[]).out;
        assert!(out.contains(why), "{to}: {out}");
    }
    for (to, why) in [
        ("nobody:80", "is no address, nor a Service"),
        ("10.96.0.1", "TO needs a port"),
        ("10.96.0.1:x", "is no port"),
    ] {
        let output = explain("outside", to, &[]);
        assert_eq!(output.code, Some(2), "{to}");
        assert!(output.err.contains(why), "{to}: {}", output.err);
    }

    // A listing that differs is believed, and the difference is told.
    let damaged =
        read("nft-1.0.6.txt").replace("tcp . 6379 : goto pick-1", "tcp . 6379 : goto refuse");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(damaged.as_bytes()).unwrap();
    let both = explain(
        "10.244.1.77",
        "198.51.100.30:6379",
        &["--ruleset", file.path().to_str().unwrap()],
    );
    assert_eq!(both.code, Some(1), "{}", both.err);
    assert!(
        both.out.contains("by the rules that are there"),
        "{}",
        both.out
    );
    assert!(
        both.out.contains("but the cluster asks for:"),
        "{}",
        both.out
    );
    let svg = explain("outside", "203.0.113.10:80", &["-o", "svg"]).out;
    assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
    let dot = explain("outside", "203.0.113.10:80", &["-o", "dot"]).out;
    assert!(dot.starts_with("digraph"), "{dot}");
}

/// What differs is told as Services, and the script brings one side to the other.
/// One digest for all that is the same.
#[test]
fn digests_depend_on_nothing_but_what_decides() {
    let cluster = recorded_cluster();
    let digest = |more: &[&str]| {
        let mut arguments = vec!["digest"];
        arguments.extend(cluster.iter().map(String::as_str));
        arguments.extend(more);
        let Output { code, out, err } = run(&arguments, "");
        assert_eq!(code, Some(0), "{err}");
        out
    };
    let desired = digest(&[]);
    for file in LISTINGS {
        let path = recorded_listing(file);
        let found = digest(&["--from", "kernel", "--ruleset", path.to_str().unwrap()]);
        assert_eq!(found, desired, "{file}");
    }
    // Who names a listing means it.
    let damaged = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/damaged.nft");
    let found = digest(&["--from", "kernel", "--ruleset", damaged]);
    assert_ne!(found, desired);
    assert_eq!(digest(&["--ruleset", damaged]), found);
    let document: Value = serde_json::from_str(&digest(&["-o", "json"])).unwrap();
    schema::check("digest", &document);
    let first = document["families"][0]["digest"].as_str().unwrap();
    assert!(desired.contains(first));
    let lines = digest(&["-o", "lines", "--family", "ipv4"]);
    assert_eq!(
        lines.lines().count() as u64,
        document["families"][0]["lines"].as_u64().unwrap()
    );

    let nothing = run(
        &["digest", "--from", "kernel", "--ruleset", "-"],
        "table ip other {\n}\n",
    );
    assert_eq!(nothing.code, Some(2), "{}", nothing.out);
}

#[test]
fn two_states_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let text = read("nft-1.0.6.txt");
    let manifests = fixtures::path("all.yaml");
    let flags = [
        "--hostname-override",
        fixtures::NODE_NAME,
        "--cluster-cidr",
        "10.244.0.0/16,fd00:10:244::/48",
    ];
    let diff = |from: &str, to: &str, more: &[&str]| {
        run(&[&["diff", from, to], &flags[..], more].concat(), "")
    };
    let before = write("before.nft", &text);
    let json = recorded_listing("nft-1.1.7.json");
    // The same by another version, in another format, and as the cluster has it.
    for to in [json.to_str().unwrap(), manifests.to_str().unwrap()] {
        let Output { code, out, err } = diff(&before, to, &[]);
        assert_eq!(
            (code, out.as_str()),
            (Some(0), "nothing differs\n"),
            "{to}: {err}"
        );
    }
    let after = write(
        "after.nft",
        &text.replace("tcp . 6379 : goto pick-1", "tcp . 6379 : goto refuse"),
    );
    let Output { code, out, .. } = diff(&before, &after, &["-o", "json"]);
    assert_eq!(code, Some(1));
    let document: Value = serde_json::from_str(&out).unwrap();
    schema::check("diff", &document);
    assert_eq!(document["services"][0]["servicePort"], "data/redis:redis");
    let Output { out, .. } = diff(&before, &after, &["-o", "nft"]);
    assert_eq!(
        out,
        "delete element ip nftproxy external { 198.51.100.30 . tcp . 6379 : goto pick-1 }\n\
         add element ip nftproxy external { 198.51.100.30 . tcp . 6379 : goto refuse }\n"
    );
    assert_eq!(diff(&before, "/nonexistent", &[]).code, Some(2));
    let broken = write("broken.nft", &text[..text.len() / 2]);
    assert_eq!(diff(&before, &broken, &[]).code, Some(2));
}
