//! Health-check node ports: what load balancers are told about this node.
//!
//! The answer comes from a listener of the proxy, not from a rule; so these tests speak HTTP.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::lab::{Dual, NODE, NODE_SECOND};
use integration::manifest::{Endpoint, node_port, service, slices};
use integration::netns::{Namespace, in_sandbox};
use serde_json::{Value, json};

use crate::bed::{Bed, POD1, POD2, REMOTE, Source, terminating};

const NUMBER: u8 = 1;
const HEALTH_PORT: u16 = 32001;
const LOOPBACK: Dual = Dual {
    v4: Ipv4Addr::LOCALHOST,
    v6: Ipv6Addr::LOCALHOST,
};
const ANYBODY: &[Source] = &[Source::Client, Source::Pod3, Source::Host, Source::Node2];

/// A Service that load balancers may ask about.
fn local_service() -> Value {
    let mut service = service("web", NUMBER);
    service["spec"]["externalTrafficPolicy"] = json!("Local");
    service["spec"]["healthCheckNodePort"] = json!(HEALTH_PORT);
    service
}

impl Bed {
    fn put_web(&self, service: Value, endpoints: &[Endpoint]) {
        let [v4, v6] = slices("web", endpoints);
        self.manifests.put("web", &[service, v4, v6]).unwrap();
    }

    /// Waits until all sources get this answer at the health-check node port of these addresses:
    /// status and weight, or `refused`.
    #[track_caller]
    fn check_health(&self, sources: &[Source], addresses: &[IpAddr], wanted: &str) {
        for source in sources {
            for ip in addresses {
                let to = SocketAddr::new(*ip, HEALTH_PORT);
                let deadline = Instant::now() + Duration::from_secs(10);
                loop {
                    let found = status_and_weight(source.namespace(&self.lab), to);
                    if found == wanted {
                        break;
                    }
                    assert!(
                        Instant::now() < deadline,
                        "from {source:?} to {to}: waited for {wanted:?}, last was {found:?}"
                    );
                    sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

/// The whole answer, as load balancers get it.
fn ask(namespace: &Namespace, to: SocketAddr) -> io::Result<String> {
    const TIMEOUT: Duration = Duration::from_secs(1);
    namespace.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, TIMEOUT)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        // This is the path the e2e tests of Kubernetes ask for.
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

fn status_and_weight(namespace: &Namespace, to: SocketAddr) -> String {
    let answer = match ask(namespace, to) {
        Ok(answer) => answer,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => return "refused".into(),
        Err(error) => return error.to_string(),
    };
    let mut lines = answer.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1));
    let weight = lines.find_map(|line| line.strip_prefix("X-Load-Balancing-Endpoint-Weight: "));
    match (status, weight) {
        (Some(status), Some(weight)) => format!("{status} {weight}"),
        _ => answer,
    }
}

/// S-135, S-144, O-121
#[test]
fn the_answer_follows_endpoints_and_policy() {
    in_sandbox(|| {
        let bed = Bed::new();
        let check = |wanted| bed.check_health(ANYBODY, &NODE.both(), wanted);
        bed.put_web(local_service(), &[POD1, POD2, REMOTE]);
        let _daemon = bed.start_proxy();
        check("200 2");
        let answer = ask(&bed.lab.client, (NODE.v6, HEALTH_PORT).into()).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(
            body,
            "{\n\t\"service\": {\n\t\t\"namespace\": \"default\",\n\t\t\"name\": \"web\"\n\t},\n\
             \t\"localEndpoints\": 2,\n\t\"serviceProxyHealthy\": true\n}"
        );

        bed.put_web(local_service(), &[REMOTE]);
        check("503 0");
        bed.put_web(local_service(), &[POD1, REMOTE]);
        check("200 1");
        let mut service = local_service();
        service["spec"]["externalTrafficPolicy"] = json!("Cluster");
        bed.put_web(service, &[POD1, REMOTE]);
        check("refused");
        bed.put_web(local_service(), &[POD1, REMOTE]);
        check("200 1");
        let mut service = local_service();
        service["spec"]["type"] = json!("ClusterIP");
        bed.put_web(service, &[POD1, REMOTE]);
        check("refused");

        // S-5, S-59: a family without ClusterIP has nothing.
        let mut service = local_service();
        service["spec"]["ipFamilies"] = json!(["IPv6"]);
        service["spec"]["clusterIPs"] = json!([service["spec"]["clusterIPs"][1]]);
        bed.put_web(service, &[POD1, POD2]);
        bed.check_health(ANYBODY, &[NODE.v6.into()], "200 2");
        bed.check_health(ANYBODY, &[NODE.v4.into()], "refused");
        bed.manifests.remove("web").unwrap();
        check("refused");
    });
}

/// S-138
#[test]
fn terminating_endpoints_serve_but_are_not_healthy() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_web(local_service(), &[POD1]);
        let _daemon = bed.start_proxy();
        bed.check_health(ANYBODY, &NODE.both(), "200 1");
        bed.put_web(local_service(), &[terminating(POD1)]);
        bed.check_health(ANYBODY, &NODE.both(), "503 0");
        bed.check(&[Source::Client], NODE, node_port(NUMBER), "pod1");
    });
}

/// O-123: it is answered whether or not there is a health server.
#[test]
fn no_health_server_is_needed() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_web(local_service(), &[POD1]);
        let _daemon = bed.start_proxy_with(&["--healthz-port=0"]);
        bed.check_health(ANYBODY, &NODE.both(), "200 1");
    });
}

/// O-120: with `primary`, the default.
#[test]
fn only_the_primary_address_answers_by_default() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_web(local_service(), &[POD1]);
        let _daemon = bed.start_proxy();
        bed.check_health(ANYBODY, &NODE.both(), "200 1");
        bed.check_health(ANYBODY, &NODE_SECOND.both(), "refused");
        bed.check_health(&[Source::Host], &LOOPBACK.both(), "refused");
    });
}

/// O-107, O-120: the addresses are those that accept NodePorts; all of them is a wildcard, of one
/// family only.
#[test]
fn the_addresses_follow_those_of_node_ports() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.put_web(local_service(), &[POD1]);
        let mut daemon =
            bed.start_proxy_with(&["--nodeport-addresses=192.0.2.10/32,192.0.2.12/32,::/0"]);
        bed.check_health(ANYBODY, &NODE.both(), "200 1");
        bed.check_health(ANYBODY, &[NODE_SECOND.v6.into()], "200 1");
        bed.check_health(ANYBODY, &[NODE_SECOND.v4.into()], "refused");
        bed.check_health(&[Source::Host], &[LOOPBACK.v6.into()], "200 1");
        bed.check_health(&[Source::Host], &[LOOPBACK.v4.into()], "refused");

        let new = Ipv4Addr::new(192, 0, 2, 12);
        let with_prefix = format!("{new}/24");
        let ip = |what| {
            bed.lab
                .node
                .exec(&["ip", "addr", what, &with_prefix, "dev", "eth0"])
        };
        ip("add").unwrap();
        bed.check_health(ANYBODY, &[new.into()], "200 1");
        ip("del").unwrap();
        daemon
            .wait_for_log("port=32001 addresses=\"{192.0.2.10}\"")
            .unwrap();
        bed.check_health(ANYBODY, &[NODE.v4.into()], "200 1");
    });
}

/// O-120: a port that is taken at one address is given up at the others of the family.
#[test]
fn a_port_that_is_taken_is_tried_again() {
    in_sandbox(|| {
        let bed = Bed::new();
        let occupant = bed
            .lab
            .node
            .run(|| std::net::TcpListener::bind((NODE_SECOND.v4, HEALTH_PORT)))
            .unwrap();
        bed.put_web(local_service(), &[POD1]);
        let mut daemon =
            bed.start_proxy_with(&["--nodeport-addresses=192.0.2.10/31,2001:db8:1::10/124"]);
        daemon.wait_for_log("Failed to start healthcheck").unwrap();
        bed.check_health(ANYBODY, &[NODE.v6.into(), NODE_SECOND.v6.into()], "200 1");
        bed.check_health(ANYBODY, &[NODE.v4.into()], "refused");

        drop(occupant);
        let other = service("other", NUMBER + 1);
        bed.manifests.put("other", &[other]).unwrap();
        bed.check_health(ANYBODY, &[NODE.v4.into(), NODE_SECOND.v4.into()], "200 1");
    });
}
