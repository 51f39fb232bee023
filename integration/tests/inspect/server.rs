//! What is desired, asked of an API server.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use integration::apiserver::ApiServer;
use integration::daemon::binary;
use integration::node;

use super::{recorded_cluster, recorded_listing};

/// A server says what manifests say, and is not followed for longer than that takes.
#[test]
fn a_server_and_manifests_come_to_the_same() {
    let server = ApiServer::start().unwrap();
    node::load(&server).unwrap();
    let manifests = recorded_cluster();
    let of_server = [
        vec!["--master".to_owned(), server.url()],
        manifests[2..].to_vec(),
    ]
    .concat();
    let listing = recorded_listing("nft-1.1.7.txt");
    let output = |command: &[&str], flags: &[String]| {
        let output = Command::new(binary().unwrap())
            .args(command)
            .args(flags)
            .arg("--ruleset")
            .arg(&listing)
            .env("NO_COLOR", "1")
            .output()
            .unwrap();
        let complaint = String::from_utf8(output.stderr).unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.is_empty(), "{command:?}: {complaint}");
        (output.status.code(), text)
    };
    for command in [
        &["audit", "-o", "json"][..],
        &["list", "--wide"],
        &["digest"],
        &["explain", "outside", "10.96.0.1:443"],
    ] {
        let (code, text) = output(command, &of_server);
        assert_eq!((code, text), output(command, &manifests), "{command:?}");
    }
    // Nobody goes on listening.
    let end = Instant::now() + Duration::from_secs(10);
    while server.open_watches() > 0 {
        assert!(Instant::now() < end, "{} watches", server.open_watches());
        sleep(Duration::from_millis(10));
    }
}
