//! How lists are asked for, of servers that take one way and not another, and that break off.

use std::time::Duration;

use integration::apiserver::{
    Encoding, Encodings, Fault, Resource, Rule, Status, StreamingLists, Verb,
};
use integration::fixtures::recorded;
use integration::netns::in_sandbox;
use integration::node::model;
use serde_json::json;

use super::bed::{Asked, Bed, of_kind};

/// Longer than it takes to ask for something.
const SOON: Duration = Duration::from_secs(5);

/// Lists from the cache are refused, once for each kind.
fn refuse_cached_lists(bed: &Bed) {
    for resource in Resource::ALL {
        let refused = Fault::Refuse(Status::of(400).message("no resourceVersion here"));
        let rule = Rule::new(refused).on(resource).verb(Verb::List).times(1);
        bed.server.inject(rule);
    }
}

/// O-90: the best way that a server takes is found, and changes follow by watches, in both encodings.
#[test]
fn every_server_is_followed_in_its_best_way() {
    use Asked::{Cached, Page, Streamed, Watch};
    let without = [
        StreamingLists::WithoutStorage,
        StreamingLists::SwitchedOff,
        StreamingLists::Unknown,
    ];
    let mut cases = vec![(StreamingLists::Served, false, vec![Streamed], "streamed")];
    cases.extend(without.map(|lists| (lists, false, vec![Streamed, Cached, Watch], "whole")));
    let pages = vec![Streamed, Cached, Page, Watch];
    cases.push((StreamingLists::SwitchedOff, true, pages, "in pages"));
    in_sandbox(|| {
        for (lists, refuses_cached, expected, how) in &cases {
            for encoding in [Encoding::Protobuf, Encoding::Json] {
                let bed = Bed::new();
                bed.server.set_streaming_lists(*lists);
                if *refuses_cached {
                    refuse_cached_lists(&bed);
                }
                let name = if encoding == Encoding::Json {
                    bed.server.set_encodings(Encodings::JsonRegardless);
                    "json"
                } else {
                    "protobuf"
                };
                let mut daemon = bed.start();
                for kind in Resource::ALL.map(Resource::kind) {
                    let line = format!("list complete\" kind=\"{kind}\"");
                    daemon.wait_for_log(&line).unwrap();
                }
                bed.wait_for_rules(&daemon, "all.yaml");
                bed.replay();
                bed.wait_for_rules(&daemon, "after.yaml");
                assert!(bed.server.wait_for_watches(4, SOON), "{}", daemon.log());
                for resource in Resource::ALL {
                    let case = format!("{lists:?} {encoding:?} {resource:?}");
                    assert_eq!(bed.asked(resource), *expected, "{case}");
                    let requests = of_kind(&bed.server, resource);
                    let last = requests.last().unwrap();
                    assert_eq!(last.encoding, Some(encoding), "{case}");
                }
                let line = format!("encoding=\"{name}\" how=\"{how}\"");
                let log = daemon.log();
                assert_eq!(log.matches(&line).count(), Resource::ALL.len(), "{log}");
            }
        }
    });
}

/// What a request carries that no server refuses.
#[test]
fn requests_are_those_of_good_clients() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.server.set_streaming_lists(StreamingLists::Served);
        let daemon = bed.start();
        bed.wait_for_rules(&daemon, "all.yaml");
        let request = &of_kind(&bed.server, Resource::Services)[0];
        assert_eq!(request.query["resourceVersionMatch"], "NotOlderThan");
        assert_eq!(request.query["allowWatchBookmarks"], "true");
        assert_eq!(
            request.headers["accept"],
            "application/vnd.kubernetes.protobuf,application/json"
        );
        assert!(!request.headers.contains_key("accept-encoding"));
    });
}

/// A page that is no longer there costs a list, which is asked for whole.
#[test]
fn pages_that_expire_are_replaced_by_a_whole_list() {
    use Asked::{Cached, Latest, Page, Streamed, Watch};
    in_sandbox(|| {
        let bed = Bed::new();
        let mut state = recorded("all.yaml");
        // With the recorded ones they fill three pages of 500.
        for number in 0..1000 {
            let name = format!("more-{number}");
            let object = json!({
                "kind": "Service", "apiVersion": "v1",
                "metadata": {"namespace": "more", "name": name},
                "spec": {
                    "clusterIP": format!("10.96.{}.{}", 100 + number / 250, number % 250),
                    "ports": [{"port": 80}],
                },
            });
            let service = serde_json::from_value(object.clone()).unwrap();
            let service = nftproxy_core::k8s::service(&service, &mut Vec::new());
            state.apply_service(service.unwrap());
            bed.server.upsert(object).unwrap();
        }
        refuse_cached_lists(&bed);
        let gone = Fault::Refuse(Status::of(410).message("the page is gone"));
        let pages = Rule::new(gone).on(Resource::Services).verb(Verb::List);
        bed.server.inject(pages.skip(1).times(1));
        let daemon = bed.start();
        bed.node.wait_for_rules(&daemon, &state, &model());
        bed.wait_until_asked(Resource::Services, Watch, 1);
        assert_eq!(
            bed.asked(Resource::Services),
            [Streamed, Cached, Page, Page, Latest, Watch]
        );
    });
}

/// S-13: servers before 1.32 do not know the selector; headless Services are left out here then.
#[test]
fn servers_without_the_field_selector_are_asked_without() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.server.forget_field_label("spec.clusterIP");
        let mut daemon = bed.start();
        daemon.wait_for_log("has no such field selector").unwrap();
        bed.wait_for_rules(&daemon, "all.yaml");
        bed.replay();
        bed.wait_for_rules(&daemon, "after.yaml");
        let requests = of_kind(&bed.server, Resource::Services);
        let with = requests
            .iter()
            .filter(|r| r.query.contains_key("fieldSelector"));
        assert_eq!(with.count(), 1);
    });
}

/// An object that cannot be read leaves the others alone.
#[test]
fn one_bad_object_stops_nothing() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.server.set_encodings(Encodings::Json);
        let bad = json!({
            "kind": "Service", "apiVersion": "v1",
            "metadata": {"namespace": "a", "name": "bad"},
            "spec": {"clusterIP": "10.96.3.3", "ports": "80"},
        });
        bed.server.upsert(bad).unwrap();
        let mut daemon = bed.start();
        daemon.wait_for_log("namespace=\"a\" name=\"bad\"").unwrap();
        bed.wait_for_rules(&daemon, "all.yaml");
    });
}

/// O-89: ServiceCIDRs came with 1.33; a server that has none is asked once, and is no failure.
#[test]
fn servers_without_service_cidrs_are_served_as_well() {
    in_sandbox(|| {
        let bed = Bed::new();
        let absent = Fault::Refuse(Status::of(404));
        bed.server
            .inject(Rule::new(absent).on(Resource::ServiceCidrs));
        let mut daemon = bed.start();
        daemon
            .wait_for_log("the API server has none of this kind\" kind=\"ServiceCIDR\"")
            .unwrap();
        daemon.wait_for_log("ipFamily=\"IPv4\" full=true").unwrap();
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(of_kind(&bed.server, Resource::ServiceCidrs).len(), 1);
        assert!(!daemon.log().contains("watch failed"), "{}", daemon.log());
    });
}

/// No list is taken for complete that is not, and what a broken one brought is no harm.
#[test]
fn lists_that_break_off_are_asked_for_again() {
    in_sandbox(|| {
        for (lists, verb) in [
            (StreamingLists::Served, Verb::Watch),
            (StreamingLists::SwitchedOff, Verb::List),
        ] {
            for fault in [Fault::Cut { after: 3000 }, Fault::Truncate { after: 3000 }] {
                let bed = Bed::new();
                bed.server.set_streaming_lists(lists);
                let rule = Rule::new(fault).on(Resource::EndpointSlices).verb(verb);
                bed.server.inject(rule.times(1));
                let mut daemon = bed.start();
                daemon
                    .wait_for_log("list complete\" kind=\"Service\"")
                    .unwrap();
                bed.wait_for_rules(&daemon, "all.yaml");
                assert!(of_kind(&bed.server, Resource::EndpointSlices).len() > 1);
            }
        }
    });
}

/// 410 comes as an event in the midst of a watch, and the list that is to mend it breaks off.
/// Objects stay in force meanwhile, and nothing is lost or doubled.
#[test]
fn versions_that_are_forgotten_in_the_midst_lose_nothing() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.server.set_streaming_lists(StreamingLists::Served);
        let daemon = bed.start();
        bed.wait_for_rules(&daemon, "all.yaml");
        let before = bed.node.listed().unwrap();
        assert!(bed.server.wait_for_watches(4, SOON));

        let slices = |fault| Rule::new(fault).on(Resource::EndpointSlices).times(1);
        let expired = Fault::FailWatch {
            after: 0,
            status: Status::of(410),
        };
        bed.server.inject(slices(expired));
        bed.server.inject(slices(Fault::Cut { after: 2000 }));
        bed.server.disconnect_watches();
        bed.wait_until_asked(Resource::EndpointSlices, Asked::Streamed, 2);
        // One list broke off.
        assert!(bed.node.listed().unwrap() == before, "{}", daemon.log());
        // Whatever lost only its connection has another before that is lost, too.
        bed.wait_until_asked(Resource::Services, Asked::Watch, 1);
        assert!(bed.server.wait_for_watches(4, SOON), "{}", daemon.log());

        let services = |fault| Rule::new(fault).on(Resource::Services).times(1);
        let expired = Fault::FailWatch {
            after: 2,
            status: Status::of(410),
        };
        bed.server.inject(services(expired));
        bed.server.disconnect_watches();
        bed.replay();
        bed.wait_for_rules(&daemon, "after.yaml");
        bed.wait_until_asked(Resource::Services, Asked::Streamed, 2);
        let mut asked = bed.asked(Resource::Services);
        // Each connection that was lost costs it a watch.
        asked.retain(|asked| *asked != Asked::Confirm);
        asked.dedup();
        assert_eq!(asked, [Asked::Streamed, Asked::Watch, Asked::Streamed]);
    });
}

/// Over HTTP/2 one connection serves all; when it is lost, watches go on where they were.
#[test]
fn one_connection_with_tls_serves_all() {
    in_sandbox(|| {
        let bed = Bed::with_tls();
        bed.server.set_streaming_lists(StreamingLists::Served);
        let daemon = bed.start();
        bed.wait_for_rules(&daemon, "all.yaml");
        assert_eq!(bed.server.open_connections(), 1);
        bed.server.cut_connections();
        bed.replay();
        bed.wait_for_rules(&daemon, "after.yaml");
        for resource in Resource::ALL {
            bed.wait_until_asked(resource, Asked::Watch, 1);
            let asked = bed.asked(resource);
            assert_eq!(asked, [Asked::Streamed, Asked::Confirm, Asked::Watch]);
        }
        assert_eq!(bed.server.open_connections(), 1);
        for request in bed.server.requests() {
            assert_eq!(request.http_version, "2", "{request:?}");
            assert_eq!(request.encoding, Some(Encoding::Protobuf), "{request:?}");
        }
    });
}
