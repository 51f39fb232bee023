//! What the proxy does when the server refuses: how often it asks, and what it says.

use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use integration::apiserver::{Fault, Request, Resource, Rule, Status, StreamingLists, Verb};
use integration::netns::in_sandbox;

use super::bed::{Asked, Bed, of_kind, wait_until};

/// Seconds from each request to the next.
fn pauses(requests: &[Request]) -> Vec<f64> {
    let pairs = requests.windows(2);
    pairs
        .map(|pair| pair[1].at.duration_since(pair[0].at).as_secs_f64())
        .collect()
}

#[test]
fn watches_that_end_at_once_are_asked_for_ever_more_seldom() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.server.inject(Fault::EndWatch { after: 0 });
        let mut daemon = bed.start();
        daemon
            .wait_for_log("watches end as soon as they begin")
            .unwrap();
        bed.wait_for_rules(&daemon, "all.yaml");
        bed.wait_until_asked(Resource::Services, Asked::Watch, 4);
        let mut watches = of_kind(&bed.server, Resource::Services);
        watches.retain(|request| Asked::from(request) == Asked::Watch);
        for (pause, least) in pauses(&watches).into_iter().zip([0.8, 1.6, 3.2]) {
            assert!(pause >= least, "{pause} < {least}");
        }
        let log = daemon.log();
        assert_eq!(log.matches("watch failed; retrying").count(), 1, "{log}");
    });
}

/// Overloaded servers answer in plain text; those whose caches are not ready, as a `Status`.
#[test]
fn retry_after_is_honoured() {
    in_sandbox(|| {
        let bed = Bed::new();
        let overload = |seconds| Rule::new(Fault::overload(seconds)).times(1);
        bed.server.inject(overload(3).on(Resource::Services));
        bed.server.set_cache_ready(Resource::EndpointSlices, false);
        let mut daemon = bed.start();
        daemon
            .wait_for_log("answers 429: Too many requests, please try again later.")
            .unwrap();
        daemon.wait_for_log("storage is (re)initializing").unwrap();
        wait_until("two requests for slices", || {
            of_kind(&bed.server, Resource::EndpointSlices).len() == 2
        });
        bed.server.set_cache_ready(Resource::EndpointSlices, true);
        bed.wait_for_rules(&daemon, "all.yaml");
        let of_services = pauses(&of_kind(&bed.server, Resource::Services));
        assert!(of_services[0] >= 3.0, "{of_services:?}");
        let of_slices = pauses(&of_kind(&bed.server, Resource::EndpointSlices));
        assert!(of_slices[0] >= 1.0, "{of_slices:?}");
    });
}

/// Versions that are forgotten again and again are no reason to list again and again.
#[test]
fn expired_versions_are_listed_anew_and_no_faster_than_other_failures() {
    in_sandbox(|| {
        let bed = Bed::new();
        let expired = Fault::FailWatch {
            after: 0,
            status: Status::of(410).message("old"),
        };
        bed.server.set_streaming_lists(StreamingLists::SwitchedOff);
        bed.server.inject(Rule::new(expired).verb(Verb::Watch));
        let mut daemon = bed.start_with(&["--kube-api-qps=-1"]);
        daemon.wait_for_log("answers 410 Expired: old").unwrap();
        bed.wait_for_rules(&daemon, "all.yaml");
        thread::sleep(Duration::from_secs(3));
        let asked = bed.asked(Resource::Services);
        let count = |wanted| asked.iter().filter(|a| **a == wanted).count();
        assert!((2..=4).contains(&count(Asked::Watch)), "{asked:?}");
        // The first list may come from a cache, what follows an expired version may not.
        assert_eq!(count(Asked::Cached), 1, "{asked:?}");
        assert!(count(Asked::Latest) >= 1, "{asked:?}");
    });
}

#[test]
fn the_log_has_the_cause_that_holds_now() {
    in_sandbox(|| {
        let bed = Bed::new();
        let refuse = |code| bed.server.inject(Fault::Refuse(Status::of(code)));
        refuse(503);
        let mut daemon = bed.start();
        daemon.wait_for_log("answers 503").unwrap();
        bed.server.heal();
        refuse(401);
        daemon.wait_for_log("answers 401").unwrap();
        bed.server.heal();
        bed.wait_for_rules(&daemon, "all.yaml");
        daemon.wait_for_log("watch works again").unwrap();
        let log = daemon.log();
        for cause in ["answers 503", "answers 401"] {
            let lines = log.lines().filter(|line| line.contains(cause));
            // That of an Event is another matter.
            let lines = lines.filter(|line| !line.contains("an Event"));
            assert_eq!(lines.count(), 1, "{log}");
        }
    });
}

#[test]
fn a_node_knocks_once_at_a_time_and_comes_in_when_a_server_is_there() {
    in_sandbox(|| {
        let bed = Bed::new();
        // A port where nobody listens.
        let closed = bed.node.namespace.run(|| {
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}", free.local_addr().unwrap())
        });
        let mut daemon = bed.node.start(&["--master", &closed]).unwrap();
        daemon
            .wait_for_log("the API server cannot be reached; retrying")
            .unwrap();
        thread::sleep(Duration::from_secs(2));
        let log = daemon.log();
        let warnings = log.lines().filter(|line| line.starts_with('W'));
        let warnings = warnings.filter(|line| line.contains("API server"));
        assert_eq!(warnings.count(), 1, "{log}");
        drop(daemon);

        // With another server in the list, the first one that is down holds nothing up.
        let servers = format!("{closed},{}", bed.server.url());
        let mut daemon = bed.node.start(&["--api-servers", &servers]).unwrap();
        daemon.wait_for_log("using another API server").unwrap();
        bed.wait_for_rules(&daemon, "all.yaml");
    });
}
