//! Servers that go, hang or forget, and come back: how soon that is noticed.
//!
//! Each case mostly waits, so all wait side by side in one test.

use std::thread;
use std::time::{Duration, Instant};

use integration::apiserver::{ApiServer, Resource, StreamingLists};
use integration::daemon::Daemon;
use integration::netns::in_sandbox;
use integration::node::load;

use super::bed::{Asked, Bed, of_kind, replay};

/// Pauses that grew by themselves would be longer than [`SOON`] by the end of such an outage.
const OUTAGE: Duration = Duration::from_secs(20);
/// Two seconds, and as much for a busy machine.
const SOON: Duration = Duration::from_secs(4);
/// Go's clients need 45 seconds to notice that nothing comes back.
const NOTICED: Duration = Duration::from_secs(40);

#[test]
fn outages_are_noticed_and_do_not_outlast_themselves() {
    in_sandbox(|| {
        thread::scope(|scope| {
            for case in [
                a_server_that_was_killed,
                a_server_that_was_restored,
                a_server_that_refuses,
                a_server_that_knows_nobody,
                packets_that_vanish,
                a_server_that_hangs,
                a_server_that_ignores_streaming_lists,
            ] {
                scope.spawn(case);
            }
        });
    });
}

fn started(bed: &Bed) -> Daemon {
    bed.server.set_streaming_lists(StreamingLists::Served);
    let daemon = bed.start();
    bed.wait_for_rules(&daemon, "all.yaml");
    assert!(bed.server.wait_for_watches(4, SOON));
    daemon
}

/// All kinds are watched again soon, and the rules are in step.
#[track_caller]
fn check_recovery(bed: &Bed, server: &ApiServer, daemon: &Daemon) {
    let back = Instant::now();
    assert!(server.wait_for_watches(4, SOON), "{}", daemon.log());
    bed.wait_for_rules(daemon, "after.yaml");
    assert!(back.elapsed() < SOON, "{}", daemon.log());
}

fn a_server_that_was_killed() {
    let bed = Bed::new();
    let daemon = started(&bed);
    let Bed { node, server, .. } = bed;
    let addr = server.addr();
    drop(server);
    thread::sleep(OUTAGE);
    // It comes back with a history of its own.
    let server = node.namespace.run(|| ApiServer::bind(addr).unwrap());
    load(&server).unwrap();
    server.set_streaming_lists(StreamingLists::Served);
    replay(&server);
    server.compact();
    let bed = Bed::with(node, server);
    check_recovery(&bed, &bed.server, &daemon);
}

/// It is back at what it was before some changes, so that a watch from there on would be silent.
fn a_server_that_was_restored() {
    let bed = Bed::new();
    let daemon = started(&bed);
    bed.replay();
    bed.wait_for_rules(&daemon, "after.yaml");
    let Bed { node, server, .. } = bed;
    let addr = server.addr();
    drop(server);
    thread::sleep(SOON / 2);
    let server = node.namespace.run(|| ApiServer::bind(addr).unwrap());
    load(&server).unwrap();
    server.set_streaming_lists(StreamingLists::Served);
    let bed = Bed::with(node, server);
    bed.wait_for_rules(&daemon, "all.yaml");
}

fn a_server_that_refuses() {
    let bed = Bed::new();
    let daemon = started(&bed);
    bed.server.refuse(true);
    bed.server.disconnect_watches();
    bed.replay();
    let before = bed.server.requests().len();
    thread::sleep(OUTAGE);
    // One watch asks about once a second, the others seldom.
    let n_requests = bed.server.requests().len() - before;
    assert!(n_requests < 60, "{n_requests}");
    // What was changed meanwhile must come by lists.
    bed.server.compact();
    bed.server.refuse(false);
    check_recovery(&bed, &bed.server, &daemon);
}

fn a_server_that_knows_nobody() {
    let bed = Bed::with_tls();
    let daemon = started(&bed);
    bed.server.require_token(Some("another"));
    bed.server.cut_connections();
    bed.replay();
    thread::sleep(OUTAGE);
    bed.server.require_token(None);
    check_recovery(&bed, &bed.server, &daemon);
}

/// A firewall forgot the connection, say.
fn packets_that_vanish() {
    let bed = Bed::new();
    let daemon = started(&bed);
    let port = bed.server.addr().port();
    let rules = format!(
        "table ip cut {{ chain output {{ type filter hook output priority 0; \
         tcp sport {port} drop; tcp dport {port} drop; }}; }}"
    );
    let namespace = &bed.node.namespace;
    namespace
        .exec_with_input(&["nft", "-f", "-"], &rules)
        .unwrap();
    bed.replay();
    wait_for_log(&daemon, "the connection broke");
    let delete = ["nft", "delete", "table", "ip", "cut"];
    namespace.exec(&delete).unwrap();
    bed.wait_for_rules(&daemon, "after.yaml");
}

/// Its kernel takes all packets, and no more comes of it. Over HTTP/2 it is asked.
fn a_server_that_hangs() {
    let bed = Bed::with_tls();
    let daemon = started(&bed);
    bed.server.silence_connections();
    bed.replay();
    wait_for_log(&daemon, "the connection broke");
    bed.wait_for_rules(&daemon, "after.yaml");
}

fn wait_for_log(daemon: &Daemon, text: &str) {
    let start = Instant::now();
    while !daemon.log().contains(text) {
        assert!(start.elapsed() < NOTICED, "{}", daemon.log());
        thread::sleep(Duration::from_millis(50));
    }
}

/// It takes the request for an ordinary watch, so that no bookmark ends the list.
fn a_server_that_ignores_streaming_lists() {
    let bed = Bed::new();
    bed.server.set_streaming_lists(StreamingLists::Ignored);
    let daemon = bed.start();
    wait_for_log(&daemon, "list complete\" kind=\"Node\"");
    wait_for_log(&daemon, "list complete\" kind=\"EndpointSlice\"");
    bed.wait_for_rules(&daemon, "all.yaml");
    for resource in Resource::ALL {
        let requests = of_kind(&bed.server, resource);
        assert_eq!(Asked::from(&requests[0]), Asked::Streamed);
        assert_eq!(Asked::from(&requests[1]), Asked::Cached);
    }
}
