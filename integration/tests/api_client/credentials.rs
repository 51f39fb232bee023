//! Addresses and credentials, as Go's clients take them.

use std::fs;

use integration::netns::in_sandbox;

use super::scripted::{Answer, Scripted, kubeconfig, node, start};

#[test]
fn a_server_without_a_scheme_is_http() {
    in_sandbox(|| {
        let namespace = node();
        let folder = tempfile::tempdir().unwrap();
        let server = Scripted::start(&namespace, Answer::plain);
        let cluster = format!("server: '{}'", server.addr);
        let path = kubeconfig(folder.path(), &cluster, "");
        let mut daemon = start(&namespace, &["--kubeconfig", &path]);
        daemon
            .wait_for_log("list complete\" kind=\"Service\"")
            .unwrap();
    });
}

#[test]
fn tokens_are_trimmed_and_read_anew_when_they_are_refused() {
    in_sandbox(|| {
        let namespace = node();
        let folder = tempfile::tempdir().unwrap();
        let server = Scripted::start(&namespace, |request| {
            match request.header("authorization") {
                Some("Bearer new") => Answer::plain(request),
                _ => Answer::refuse(401, "Unauthorized"),
            }
        });
        let token = folder.path().join("token");
        fs::write(&token, "old\r\n").unwrap();
        let cluster = format!("server: '{}'", server.url());
        let path = kubeconfig(folder.path(), &cluster, "tokenFile: token");
        let mut daemon = start(&namespace, &["--kubeconfig", &path]);
        server.wait_for("the old token", |r| {
            r.header("authorization") == Some("Bearer old")
        });
        daemon.wait_for_log("answers 401").unwrap();
        fs::write(&token, "new\n").unwrap();
        daemon
            .wait_for_log("list complete\" kind=\"Service\"")
            .unwrap();
    });
}

#[test]
fn what_cannot_be_used_ends_the_process_with_one_line() {
    in_sandbox(|| {
        let namespace = node();
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
            let mut daemon = start(&namespace, &["--kubeconfig", &path]);
            assert_eq!(daemon.wait().unwrap(), Some(1), "{}", daemon.log());
            daemon.wait_for_log(culprit).unwrap();
            let errors = daemon.log();
            let errors: Vec<_> = errors.lines().filter(|l| l.starts_with('E')).collect();
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains(&path), "{errors:?}");
        }
    });
}
