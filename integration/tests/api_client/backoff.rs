//! What the proxy does when the server fails: how often it asks, and what it says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use integration::netns::in_sandbox;

use super::scripted::{Answer, Request, Scripted, node, start};

/// Requests for watches of Services that are no lists.
fn service_watches(server: &Scripted) -> Vec<Request> {
    let requests = server.requests().into_iter();
    requests
        .filter(|r| r.is_for("services") && r.is_watch() && !r.is_streaming_list())
        .collect()
}

#[test]
fn watches_that_end_at_once_are_asked_for_ever_more_seldom() {
    in_sandbox(|| {
        let namespace = node();
        let server = Scripted::start(&namespace, |request| {
            if request.is_watch() {
                Answer::Whole(200, "", String::new())
            } else {
                Answer::empty_list(request)
            }
        });
        let mut daemon = start(&namespace, &["--master", &server.url()]);
        daemon
            .wait_for_log("watches end as soon as they begin")
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while service_watches(&server).len() < 4 {
            assert!(Instant::now() < deadline, "{}", daemon.log());
            thread::sleep(Duration::from_millis(20));
        }
        let watches = service_watches(&server);
        for (pair, least) in watches.windows(2).zip([0.8, 1.6, 3.2]) {
            let pause = pair[1].at.duration_since(pair[0].at).as_secs_f64();
            assert!(pause >= least, "{pause} < {least}");
        }
        let log = daemon.log();
        assert_eq!(log.matches("watch failed; retrying").count(), 1, "{log}");
    });
}

#[test]
fn retry_after_is_honoured() {
    in_sandbox(|| {
        let namespace = node();
        let has_refused = AtomicBool::new(false);
        let server = Scripted::start(&namespace, move |request| {
            if request.is_for("services") && !has_refused.swap(true, Ordering::Relaxed) {
                return Answer::Whole(429, "Retry-After: 3\r\n", "too many".to_owned());
            }
            Answer::plain(request)
        });
        let mut daemon = start(&namespace, &["--master", &server.url()]);
        daemon.wait_for_log("answers 429: too many").unwrap();
        daemon
            .wait_for_log("list complete\" kind=\"Service\"")
            .unwrap();
        let of_services = server
            .requests()
            .into_iter()
            .filter(|r| r.is_for("services"));
        let times: Vec<_> = of_services.map(|r| r.at).collect();
        assert!(times[1].duration_since(times[0]) >= Duration::from_secs(3));
    });
}

/// Versions that are forgotten again and again are no reason to list again and again.
#[test]
fn expired_versions_are_listed_anew_and_no_faster_than_other_failures() {
    in_sandbox(|| {
        let namespace = node();
        let server = Scripted::start(&namespace, |request| {
            if request.is_watch() && !request.is_streaming_list() {
                let status = r#"{"kind":"Status","code":410,"reason":"Expired","message":"old"}"#;
                return Answer::Whole(
                    200,
                    "",
                    format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n"),
                );
            }
            Answer::plain(request)
        });
        let mut daemon = start(
            &namespace,
            &["--master", &server.url(), "--kube-api-qps=-1"],
        );
        daemon.wait_for_log("answers 410 Expired: old").unwrap();
        thread::sleep(Duration::from_secs(3));
        let n_watches = service_watches(&server).len();
        assert!((2..=4).contains(&n_watches), "{n_watches}");
        // The first list may come from a cache, what follows an expired version may not.
        let of_services = server.requests().into_iter();
        let lists: Vec<_> = of_services
            .filter(|r| r.is_for("services") && !r.is_watch())
            .collect();
        assert!(lists[0].target.contains("resourceVersion=0"), "{lists:?}");
        assert!(!lists[1].target.contains("resourceVersion="), "{lists:?}");
    });
}

#[test]
fn the_log_has_the_cause_that_holds_now() {
    in_sandbox(|| {
        let namespace = node();
        let phase = Arc::new(AtomicUsize::new(0));
        let current = phase.clone();
        let server = Scripted::start(&namespace, move |request| {
            match current.load(Ordering::Relaxed) {
                0 => Answer::refuse(503, "not ready"),
                1 => Answer::refuse(401, "who are you"),
                _ => Answer::plain(request),
            }
        });
        let mut daemon = start(&namespace, &["--master", &server.url()]);
        daemon
            .wait_for_log("answers 503 Refused: not ready")
            .unwrap();
        phase.store(1, Ordering::Relaxed);
        daemon
            .wait_for_log("answers 401 Refused: who are you")
            .unwrap();
        phase.store(2, Ordering::Relaxed);
        let back = Instant::now();
        daemon
            .wait_for_log("list complete\" kind=\"Service\"")
            .unwrap();
        daemon
            .wait_for_log("list complete\" kind=\"EndpointSlice\"")
            .unwrap();
        assert!(back.elapsed() < Duration::from_secs(4), "{}", daemon.log());
        daemon.wait_for_log("watch works again").unwrap();
        assert_eq!(daemon.log().matches("not ready").count(), 1);
    });
}

#[test]
fn a_node_knocks_once_at_a_time_and_comes_in_when_the_server_is_there() {
    in_sandbox(|| {
        let namespace = node();
        // A port where nobody listens yet.
        let addr = Scripted::start(&namespace, Answer::plain).addr;
        let free = namespace.run(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
        let closed = free.local_addr().unwrap();
        drop(free);
        let closed = format!("http://{closed}");
        let mut daemon = start(&namespace, &["--master", &closed]);
        daemon
            .wait_for_log("the API server cannot be reached; retrying")
            .unwrap();
        thread::sleep(Duration::from_secs(2));
        let log = daemon.log();
        let warnings: Vec<_> = log
            .lines()
            .filter(|line| line.starts_with('W') && line.contains("API server"))
            .collect();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        drop(daemon);

        // With another server in the list, the first one that is down holds nothing up.
        let servers = format!("{closed},http://{addr}");
        let mut daemon = start(&namespace, &["--api-servers", &servers]);
        daemon.wait_for_log("using another API server").unwrap();
        daemon
            .wait_for_log("list complete\" kind=\"Service\"")
            .unwrap();
    });
}

/// A firewall forgot the connection, say: packets vanish, and nobody says so.
#[test]
fn a_connection_that_dies_without_a_word_is_noticed() {
    in_sandbox(|| {
        let namespace = node();
        let server = Scripted::start(&namespace, Answer::plain);
        let daemon = start(&namespace, &["--master", &server.url()]);
        server.wait_for("a watch", |r| {
            r.is_for("services") && r.is_watch() && !r.is_streaming_list()
        });
        let rules = format!(
            "table ip cut {{ chain output {{ type filter hook output priority 0; \
             tcp sport {0} drop; tcp dport {0} drop; }}; }}",
            server.addr.port()
        );
        namespace
            .exec_with_input(&["nft", "-f", "-"], &rules)
            .unwrap();
        let start = Instant::now();
        while !daemon.log().contains("the connection broke") {
            // client-go needs 45 seconds, and only over HTTP/2.
            assert!(
                start.elapsed() < Duration::from_secs(45),
                "{}",
                daemon.log()
            );
            thread::sleep(Duration::from_millis(50));
        }
        println!("noticed after {:?}", start.elapsed());
        namespace
            .exec(&["nft", "delete", "table", "ip", "cut"])
            .unwrap();
        let n_watches = service_watches(&server).len();
        let back = Instant::now();
        while service_watches(&server).len() == n_watches {
            assert!(back.elapsed() < Duration::from_secs(10), "{}", daemon.log());
            thread::sleep(Duration::from_millis(20));
        }
    });
}
