//! Misfortunes: each happens to whom it should, as often as it should.

use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use integration::apiserver::{ApiServer, Counters, Fault, Resource, Rule, Status, Verb};
use serde_json::json;

use crate::cluster::{
    NODES, PATH_OF_SERVICES, TIMEOUT, cluster_small, parse, service, summary, wait_until,
};
use crate::http::{Next, Response, assert_status, get, request, watch};

const NODES_PATH: &str = "/api/v1/nodes";

/// Long enough to say that nothing comes.
const A_WHILE: Duration = Duration::from_millis(200);

/// Whether nothing comes for a while and the connection stays.
fn is_silent(stream: &mut impl Read, set_timeout: impl FnOnce(Duration)) -> bool {
    set_timeout(A_WHILE);
    let result = stream.read(&mut [0]);
    matches!(result, Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
}

#[test]
fn refusals_are_as_the_server_says_them() {
    let server = cluster_small();
    for (code, reason) in [
        (400, "BadRequest"),
        (401, "Unauthorized"),
        (403, "Forbidden"),
        (404, "NotFound"),
        (410, "Expired"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
        (504, "Timeout"),
    ] {
        server.inject(Rule::new(Fault::Refuse(Status::of(code))).times(1));
        let response = Response::send(server.addr(), "GET", NODES_PATH);
        assert_eq!(response.header("retry-after"), "");
        assert_status(&(response.status, response.body()), code, reason);
    }
    server.inject(Fault::Refuse(
        Status::of(503).retry_after(3).message("at rest"),
    ));
    let response = Response::send(server.addr(), "GET", "/version");
    assert_eq!(response.header("retry-after"), "3");
    assert_eq!(response.body()["message"], "at rest");
    server.heal();
    assert_eq!(get(&server, NODES_PATH), (200, parse(NODES)));
    assert_eq!(server.counters(Resource::Nodes).lists, 10);
}

#[test]
fn a_token_may_be_required() {
    let server = cluster_small();
    server.require_token(Some("secret"));
    assert_status(&get(&server, NODES_PATH), 401, "Unauthorized");
    for (authorization, status) in [("Bearer wrong", 401), ("Bearer secret", 200)] {
        let headers = [("Authorization", authorization)];
        let response = Response::send_with(server.addr(), "GET", NODES_PATH, &headers);
        assert_eq!(response.status, status);
    }
    server.require_token(None);
    assert_eq!(get(&server, NODES_PATH).0, 200);
}

#[test]
fn an_old_server_does_not_know_every_field() {
    let server = cluster_small();
    server.forget_field_label("spec.clusterIP");
    let path = format!("{PATH_OF_SERVICES}?fieldSelector=spec.clusterIP!%3DNone");
    for path in [path.clone(), format!("{path}&watch=true")] {
        let answer = get(&server, &path);
        assert_status(&answer, 400, "BadRequest");
        assert_eq!(
            answer.1["message"],
            "field label not supported: spec.clusterIP"
        );
    }
    let known = format!("{PATH_OF_SERVICES}?fieldSelector=metadata.name%3Dx");
    assert_eq!(get(&server, &known).0, 200);
}

#[test]
fn watches_end_as_told() {
    let server = cluster_small();
    server.inject(Rule::new(Fault::EndWatch { after: 0 }).times(1));
    let mut at_once = watch(&server, NODES_PATH, "");
    assert_eq!(at_once.next(), Next::End);

    let rule = Rule::new(Fault::EndWatch { after: 4 }).on(Resource::Nodes);
    server.inject(rule.times(1));
    let mut later = watch(&server, NODES_PATH, "");
    for (name, version) in [("node-1", "82"), ("node-2", "84"), ("node-3", "86")] {
        assert_eq!(later.event_summary(), summary("ADDED", name, version));
    }
    server.delete(Resource::Nodes, "", "node-1").unwrap();
    assert_eq!(later.event_summary(), summary("DELETED", "node-1", "330"));
    assert_eq!(later.next(), Next::End);
    assert_eq!(server.open_watches(), 0);

    server.inject(
        Rule::new(Fault::FailWatch {
            after: 1,
            status: Status::of(410),
        })
        .verb(Verb::Watch)
        .times(1),
    );
    assert_eq!(get(&server, NODES_PATH).0, 200);
    let mut failing = watch(&server, NODES_PATH, "");
    assert_eq!(failing.event_summary(), summary("ADDED", "node-2", "84"));
    let error = failing.event();
    assert_eq!(error["type"], "ERROR");
    assert_status(&(410, error["object"].clone()), 410, "Expired");
    assert_eq!(failing.next(), Next::End);
}

#[test]
fn bodies_break_off_where_told() {
    let server = cluster_small();
    let whole = Response::send(server.addr(), "GET", NODES_PATH).bytes().0;
    server.inject(Rule::new(Fault::Cut { after: 1000 }).times(1));
    let cut = Response::send(server.addr(), "GET", NODES_PATH).bytes();
    assert!(cut == (whole[..1000].to_vec(), Next::Cut), "{:?}", cut.1);
    server.inject(Rule::new(Fault::Truncate { after: 1000 }).times(1));
    let truncated = Response::send(server.addr(), "GET", NODES_PATH).bytes();
    assert!(
        truncated == (whole[..1000].to_vec(), Next::End),
        "{:?}",
        truncated.1
    );

    let events = watch(&server, NODES_PATH, "timeoutSeconds=1").bytes().0;
    for (fault, end) in [
        (Fault::Cut { after: 100 }, Next::Cut),
        (Fault::Truncate { after: 100 }, Next::End),
    ] {
        server.inject(Rule::new(fault).times(1));
        let broken = watch(&server, NODES_PATH, "").bytes();
        assert!(broken == (events[..100].to_vec(), end), "{:?}", broken.1);
    }
    // Nothing of this is held against the next.
    assert_eq!(get(&server, NODES_PATH), (200, parse(NODES)));
    let expected = 2 * whole.len() + 2000 + events.len() + 200;
    assert_eq!(
        server.counters(Resource::Nodes),
        Counters {
            gets: 0,
            lists: 4,
            watches: 3,
            body_bytes: expected as u64,
        }
    );
}

#[test]
fn frames_may_be_absurdly_long() {
    let server = cluster_small();
    let fault = Fault::HugeFrame {
        after: 1,
        length: 1 << 20,
    };
    server.inject(fault);
    let mut json = watch(&server, NODES_PATH, "");
    assert_eq!(json.event_summary(), summary("ADDED", "node-1", "82"));
    let mut bytes = 0;
    while bytes < 1 << 20 {
        let chunk = json.chunk().unwrap();
        assert!(!chunk.is_empty() && !chunk.contains(&b'\n'));
        bytes += chunk.len();
    }
    let path = format!("{NODES_PATH}?watch=true");
    let headers = [("Accept", "application/vnd.kubernetes.protobuf")];
    let mut protobuf = Response::send_with(server.addr(), "GET", &path, &headers);
    let frame = protobuf.chunk().unwrap();
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap());
    assert_eq!(frame.len(), 4 + length as usize);
    assert_eq!(protobuf.chunk().unwrap(), (1_u32 << 20).to_be_bytes());
    // Both stay open, and nothing follows what was announced.
    assert_eq!(server.open_watches(), 2);
    server.bookmark();
    server.delete(Resource::Nodes, "", "node-1").unwrap();
    assert_eq!(server.open_watches(), 2);
}

#[test]
fn other_servers_answer_in_its_place() {
    let server = cluster_small();
    server.inject(Rule::new(Fault::captive_portal()).times(1));
    let response = Response::send(server.addr(), "GET", NODES_PATH);
    assert_eq!(
        (response.status, response.header("content-type")),
        (200, "text/html")
    );
    assert!(response.bytes().0.starts_with(b"<!DOCTYPE html>"));

    server.inject(Rule::new(Fault::overload(2)).times(1));
    let response = Response::send(server.addr(), "GET", NODES_PATH);
    assert_eq!(response.status, 429);
    assert_eq!(response.header("retry-after"), "2");
    assert_eq!(response.header("content-type"), "text/plain; charset=utf-8");

    server.inject(Fault::Verbatim {
        status: 99,
        headers: Vec::new(),
        body: "x".into(),
    });
    let answer = get(&server, NODES_PATH);
    assert_status(&answer, 500, "InternalError");
    assert_eq!(
        answer.1["message"],
        "the fault is no answer: invalid status code"
    );
}

#[test]
fn requests_and_connections_fall_silent() {
    let server = cluster_small();
    server.inject(Rule::new(Fault::Silence).verb(Verb::List).times(1));
    let mut unanswered = request(server.addr(), "GET", NODES_PATH, &[]);
    assert!(server.wait_for_requests(1, TIMEOUT));
    assert!(is_silent(&mut unanswered.try_clone().unwrap(), |t| {
        unanswered.set_read_timeout(Some(t)).unwrap();
    }));
    assert_eq!(server.requests()[0].status, None);

    server.freeze(true);
    let mut frozen = request(server.addr(), "GET", NODES_PATH, &[]);
    wait_until("the connection to be accepted", || {
        server.open_connections() == 2
    });
    assert!(is_silent(&mut frozen.try_clone().unwrap(), |t| {
        frozen.set_read_timeout(Some(t)).unwrap();
    }));
    assert_eq!(server.requests().len(), 1);
    server.freeze(false);
    assert_eq!(get(&server, NODES_PATH).0, 200);

    // All that is left is to cut them.
    server.cut_connections();
    wait_until("the connections to be gone", || {
        server.open_connections() == 0
    });
    let mut rest = Vec::new();
    for stream in [&mut unanswered, &mut frozen] {
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        // A reset is an end as well.
        drop(stream.read_to_end(&mut rest));
    }
    assert!(rest.is_empty());
}

#[test]
fn a_dead_connection_says_nothing_of_changes() {
    let server = ApiServer::start().unwrap();
    let stream = request(
        server.addr(),
        "GET",
        &format!("{PATH_OF_SERVICES}?watch=true"),
        &[],
    );
    assert!(server.wait_for_watches(1, TIMEOUT));
    let mut timeout = stream.try_clone().unwrap();
    let mut watch = Response::receive(stream).unwrap();
    let add = |name| {
        server
            .upsert(service(name, "10.96.0.1", json!({})))
            .unwrap()
    };
    add("a");
    assert_eq!(watch.event_summary(), summary("ADDED", "a", "2"));
    server.silence_connections();
    add("b");
    assert!(is_silent(&mut timeout.try_clone().unwrap(), |t| {
        timeout.set_read_timeout(Some(t)).unwrap();
    }));
    assert_eq!(server.open_connections(), 1);
    server.cut_connections();
    timeout.set_read_timeout(Some(TIMEOUT)).unwrap();
    assert_eq!(timeout.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn answers_take_their_time() {
    let server = cluster_small();
    server.set_delay(A_WHILE);
    let start = Instant::now();
    assert_eq!(get(&server, NODES_PATH).0, 200);
    assert!(start.elapsed() >= A_WHILE);
}

#[test]
fn bookmarks_come_by_themselves() {
    let server = cluster_small();
    let query = "resourceVersion=329&allowWatchBookmarks=true";
    let mut watch = watch(&server, NODES_PATH, query);
    server.set_bookmark_period(Some(Duration::from_millis(10)));
    for _ in 0..3 {
        assert_eq!(watch.event_summary(), summary("BOOKMARK", "", "329"));
    }
}
