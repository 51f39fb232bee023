//! Counters: how many new connections Services, endpoints and refusals have had.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::daemon::{Daemon, run};
use integration::lab::NODE;
use integration::manifest::{SERVICE_PORT, cluster_ip, load_balancer_ip, node_port};
use integration::netns::in_sandbox;
use integration::traffic::{ProbeOptions, Protocol, probe, probe_many};
use serde_json::{Value, json};

use crate::bed::{Bed, POD1, POD2, REMOTE, Source};

const COUNT: &str = "--count-connections";
const CLUSTER_CIDR: &str = "--cluster-cidr=10.244.0.0/16,fd00:10:244::/48";

impl Bed {
    fn scrape(&self) -> String {
        self.lab.node.run(|| {
            let mut stream = TcpStream::connect("127.0.0.1:10249").unwrap();
            let request = "GET /metrics HTTP/1.0\r\nConnection: close\r\n\r\n";
            stream.write_all(request.as_bytes()).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            answer
        })
    }

    /// The value of a series whose labels are among these, in the order of their names; 0 without.
    fn metric(&self, series: &str) -> u64 {
        let text = self.scrape();
        let line = text.lines().find_map(|line| line.strip_prefix(series));
        line.map_or(0, |value| value.trim().parse::<f64>().unwrap() as u64)
    }

    /// Waits until a series says this. It is never to say more.
    #[track_caller]
    fn wait_for_metric(&self, daemon: &Daemon, series: &str, wanted: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let found = self.metric(series);
            if found == wanted {
                return;
            }
            assert!(
                found < wanted && Instant::now() < deadline,
                "{series}: {found}, not {wanted}\n{}",
                daemon.log()
            );
            sleep(Duration::from_millis(200));
        }
    }

    fn command(&self, command: &str, more: &[&str]) -> (Option<i32>, String) {
        let folder = self.manifests.path().to_str().unwrap();
        let desired = [
            "--manifests",
            folder,
            "--hostname-override=node",
            CLUSTER_CIDR,
        ];
        let mut arguments = vec![command];
        arguments.extend(more);
        if command != "list" {
            arguments.extend(desired);
        }
        let output = run(&self.lab.node, &arguments).unwrap();
        (output.code, output.out + &output.err)
    }

    fn listed(&self, service: &str) -> Value {
        let (_, text) = self.command("list", &["--from=kernel", "-o=json", "--family=ipv4"]);
        let document: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
        let services = document["services"].as_array().unwrap();
        let wanted = services.iter().find(|it| it["servicePort"] == service);
        wanted.unwrap_or_else(|| panic!("{text}")).clone()
    }
}

fn series(name: &str, labels: &str) -> String {
    format!("nftproxy_{name}{{{labels}}}")
}

fn of_service(name: &str, service: &str) -> String {
    let labels =
        format!("ip_family=\"IPv4\",namespace=\"default\",port_name=\"tcp\",service=\"{service}\"");
    series(name, &labels)
}

/// Every new connection is counted once, where it is led and why it is not; in metrics that only
/// grow, in listings, and without anybody taking counters for damage.
#[test]
fn connections_are_counted_where_they_go() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put("web", 1, &[POD1, POD2], |_| {});
        bed.put("idle", 2, &[], |_| {});
        bed.put("far", 3, &[REMOTE], |service| {
            service["spec"]["externalTrafficPolicy"] = json!("Local");
        });
        bed.put("closed", 4, &[POD1], |service| {
            service["spec"]["loadBalancerSourceRanges"] = json!(["203.0.113.99/32"]);
        });
        let daemon = bed.start_proxy_with(&[COUNT]);
        // What was counted before the first reading is none of the totals.
        let all = series("connections_total", "ip_family=\"IPv4\"");
        bed.wait_for_metric(&daemon, &all, 0);
        assert!(bed.scrape().contains(&format!("\n{all} 0\n")));

        let at = |number, address: fn(u8) -> integration::lab::Dual| {
            SocketAddr::from((address(number).v4, SERVICE_PORT))
        };
        let client = Source::Client.namespace(&bed.lab);
        let pod = Source::Pod3.namespace(&bed.lab);
        probe_many(pod, Protocol::Tcp, at(1, cluster_ip), 20);
        probe_many(client, Protocol::Tcp, at(1, load_balancer_ip), 10);
        let to_node = SocketAddr::from((NODE.v4, node_port(1)));
        probe_many(client, Protocol::Tcp, to_node, 5);
        probe_many(pod, Protocol::Tcp, at(2, cluster_ip), 7);
        // A connection that gets no answer may ask again: it counts as often as it does.
        let impatient = ProbeOptions {
            from: None,
            timeout: Duration::from_millis(300),
        };
        for number in [3, 4] {
            let outcome = probe(
                client,
                Protocol::Tcp,
                at(number, load_balancer_ip),
                impatient,
            );
            assert_eq!(outcome.to_string(), "timeout");
        }
        let no_port = SocketAddr::from((cluster_ip(1).v4, 9));
        assert_eq!(
            probe(pod, Protocol::Tcp, no_port, impatient).to_string(),
            "refused"
        );

        bed.wait_for_metric(&daemon, &of_service("service_connections_total", "web"), 35);
        bed.wait_for_metric(&daemon, &of_service("service_connections_total", "far"), 1);
        bed.wait_for_metric(&daemon, &all, 36);
        for (reason, wanted) in [
            ("no-endpoints", 7),
            ("no-local-endpoints", 1),
            ("no-such-port", 1),
            ("no-such-cluster-ip", 0),
            ("source-ranges", 1),
        ] {
            let labels = format!("ip_family=\"IPv4\",reason=\"{reason}\"");
            bed.wait_for_metric(&daemon, &series("refusals_total", &labels), wanted);
        }
        let of_endpoint = |endpoint: std::net::Ipv4Addr| {
            let labels = format!(
                "endpoint=\"{endpoint}:8080\",ip_family=\"IPv4\",namespace=\"default\",port_name=\"tcp\",service=\"web\""
            );
            bed.metric(&series("endpoint_connections_total", &labels))
        };
        let of_endpoints = [POD1, POD2].map(|endpoint| of_endpoint(endpoint.address.v4));
        assert_eq!(of_endpoints.iter().sum::<u64>(), 35, "{of_endpoints:?}");
        assert!(of_endpoints.iter().all(|number| *number > 0));

        let web = bed.listed("default/web:tcp");
        let sum = |values: &Value| -> u64 {
            let values = values.as_array().unwrap();
            values
                .iter()
                .map(|it| it["connections"].as_u64().unwrap_or_default())
                .sum()
        };
        assert_eq!(
            (sum(&web["destinations"]), sum(&web["endpoints"])),
            (35, 35)
        );
        let (_, text) = bed.command("list", &["--from=kernel", "--wide", "web"]);
        assert!(
            text.contains("CONNECTIONS") && text.contains(" new connections"),
            "{text}"
        );

        // Nobody takes a counter for damage: live, in text, and in JSON.
        let (code, text) = bed.command("audit", &[]);
        assert_eq!(code, Some(0), "{text}");
        for flags in [
            &["nft", "list", "ruleset"][..],
            &["nft", "-j", "list", "ruleset"],
            &["nft", "-s", "list", "ruleset"],
        ] {
            let listing = bed.lab.node.exec(flags).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let file = folder.path().join("listing");
            std::fs::write(&file, listing).unwrap();
            let ruleset = format!("--ruleset={}", file.display());
            let (code, text) = bed.command("audit", &[&ruleset]);
            assert_eq!(code, Some(0), "{flags:?}: {text}");
            let (_, text) = bed.command("list", &["--from=kernel", &ruleset, "web"]);
            assert_eq!(
                text.contains("CONNECTIONS"),
                flags[1] != "-s",
                "{flags:?}: {text}"
            );
        }

        // Elements that are replaced start from nought; totals do not.
        bed.put("web", 1, &[POD1], |_| {});
        bed.check(&[Source::Pod3], cluster_ip(1), SERVICE_PORT, "pod1");
        // Totals may be a second old, and more on a slow machine. What the old elements counted last
        // may be lost.
        let start = Instant::now();
        let mut before = 0;
        loop {
            sleep(Duration::from_millis(1100));
            let now = bed.metric(&of_service("service_connections_total", "web"));
            assert!(now >= 35, "{now}");
            if now == before {
                break;
            }
            before = now;
            assert!(start.elapsed() < Duration::from_secs(60), "{before}");
        }
        probe_many(pod, Protocol::Tcp, at(1, cluster_ip), 6);
        let web = of_service("service_connections_total", "web");
        bed.wait_for_metric(&daemon, &web, before + 6);
        daemon.stop().unwrap();
    });
}

/// Switching it on and off makes the tables anew, and clients keep their endpoints.
#[test]
fn counting_is_switched_without_forgetting_clients() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put("sticky", 1, &[POD1, POD2, REMOTE], |service| {
            service["spec"]["sessionAffinity"] = json!("ClientIP");
        });
        let to = SocketAddr::from((cluster_ip(1).v4, SERVICE_PORT));
        let ask = |n| {
            let namespace = Source::Pod3.namespace(&bed.lab);
            let counts = probe_many(namespace, Protocol::Tcp, to, n);
            assert_eq!(counts.len(), 1, "{counts:?}");
            counts.into_keys().next().unwrap()
        };
        let counts = || {
            let rules = bed
                .lab
                .node
                .exec(&["nft", "list", "table", "ip", "nftproxy"]);
            rules.unwrap().matches("\t\tcounter\n").count()
        };
        let daemon = bed.start_proxy();
        let endpoint = ask(20);
        assert_eq!(counts(), 0);
        daemon.stop().unwrap();
        for (flags, wanted) in [(&[COUNT][..], 8), (&[COUNT], 8), (&[], 0), (&[COUNT], 8)] {
            let daemon = bed.start_proxy_with(flags);
            assert_eq!(ask(20), endpoint, "{flags:?}");
            assert_eq!(counts(), wanted, "{flags:?}");
            daemon.stop().unwrap();
        }
    });
}
