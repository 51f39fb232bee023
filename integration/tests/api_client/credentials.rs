//! Addresses and credentials, as Go's clients take them.

use std::fs;

use integration::netns::in_sandbox;

use integration::node::RecordedNode;

use super::bed::{Bed, kubeconfig, wait_until};

#[test]
fn a_server_without_a_scheme_is_http() {
    in_sandbox(|| {
        let bed = Bed::new();
        let folder = tempfile::tempdir().unwrap();
        let cluster = format!("server: '{}'", bed.server.addr());
        let path = kubeconfig(folder.path(), &cluster, "");
        let daemon = bed.node.start(&["--kubeconfig", &path]).unwrap();
        bed.wait_for_rules(&daemon, "all.yaml");
    });
}

#[test]
fn tokens_are_trimmed_and_read_anew_when_they_are_refused() {
    in_sandbox(|| {
        let bed = Bed::new();
        bed.server.require_token(Some("new"));
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        fs::write(&token, "old\r\n").unwrap();
        let cluster = format!("server: '{}'", bed.server.url());
        let path = kubeconfig(folder.path(), &cluster, "tokenFile: token");
        let mut daemon = bed.node.start(&["--kubeconfig", &path]).unwrap();
        wait_until("the old token", || {
            let requests = bed.server.requests();
            let last = requests.last();
            last.is_some_and(|request| request.headers["authorization"] == "Bearer old")
        });
        daemon.wait_for_log("answers 401").unwrap();
        fs::write(&token, "new\n").unwrap();
        bed.wait_for_rules(&daemon, "all.yaml");
    });
}

#[test]
fn what_cannot_be_used_ends_the_process_with_one_line() {
    in_sandbox(|| {
        let node = RecordedNode::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        for (cluster, user, culprit) in [
            (
                "server: 'http://a'",
                "token: \"tok\\n\"",
                "token: it has characters",
            ),
            ("server: 'http://a'", "tokenFile: missing", "missing"),
            ("server: 'a b'", "", "server: \"a b\""),
            ("server: ''", "", "its cluster has no server"),
            (
                "server: 'https://a', certificate-authority-data: eA",
                "",
                "certificate-authority",
            ),
            (
                "server: 'https://a', certificate-authority: missing.crt",
                "",
                "missing.crt",
            ),
            ("server: 'http://a', proxy-url: 'ftp://x'", "", "ftp://x"),
        ] {
            let path = kubeconfig(folder.path(), cluster, user);
            let mut daemon = node.start(&["--kubeconfig", &path]).unwrap();
            assert_eq!(daemon.wait().unwrap(), Some(1), "{}", daemon.log());
            // Quotation marks are escaped in the log.
            daemon.wait_for_log(&culprit.replace('"', "\\\"")).unwrap();
            let errors = daemon.log();
            let errors: Vec<_> = errors.lines().filter(|l| l.starts_with('E')).collect();
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains(&path), "{errors:?}");
        }
    });
}
