//! The recorded cluster's API server and the proxy beside it.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use integration::apiserver::{ApiServer, Request, Resource};
use integration::daemon::Daemon;
use integration::fixtures::{read, recorded};
use integration::node::{RecordedNode, load, model};
use integration::tls::Tls;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);

/// A node with an API server, which is to be prepared before the proxy starts.
pub(crate) struct Bed {
    pub(crate) node: RecordedNode,
    pub(crate) server: ApiServer,
    folder: TempDir,
}

impl Bed {
    /// One whose server speaks plain HTTP/1.
    pub(crate) fn new() -> Self {
        let node = RecordedNode::new().unwrap();
        let server = node.serve().unwrap();
        Self::with(node, server)
    }

    /// One whose server speaks TLS, and so HTTP/2.
    pub(crate) fn with_tls() -> Self {
        let node = RecordedNode::new().unwrap();
        let tls = Tls::loopback().unwrap();
        let server = node.namespace.run(|| {
            let loopback = "127.0.0.1:0".parse().unwrap();
            ApiServer::bind_tls(loopback, &tls).unwrap()
        });
        load(&server).unwrap();
        Self::with(node, server)
    }

    pub(crate) fn with(node: RecordedNode, server: ApiServer) -> Self {
        Self {
            node,
            server,
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// Starts the proxy, with more arguments.
    pub(crate) fn start_with(&self, arguments: &[&str]) -> Daemon {
        let path = self.folder.path().join("kubeconfig");
        fs::write(&path, self.server.kubeconfig()).unwrap();
        let kubeconfig = ["--kubeconfig", path.to_str().unwrap()];
        self.node.start(&[&kubeconfig, arguments].concat()).unwrap()
    }

    pub(crate) fn start(&self) -> Daemon {
        self.start_with(&[])
    }

    /// Waits until the rules are those of a recorded state of the cluster.
    #[track_caller]
    pub(crate) fn wait_for_rules(&self, daemon: &Daemon, file: &str) {
        self.node.wait_for_rules(daemon, &recorded(file), &model());
    }

    /// Leads from `all.yaml` to `after.yaml`.
    pub(crate) fn replay(&self) {
        replay(&self.server);
    }

    /// What has been asked for of a kind, in order.
    pub(crate) fn asked(&self, resource: Resource) -> Vec<Asked> {
        let requests = of_kind(&self.server, resource);
        requests.iter().map(Asked::from).collect()
    }

    /// Waits until a kind has been asked for in this way so often.
    #[track_caller]
    pub(crate) fn wait_until_asked(&self, resource: Resource, asked: Asked, n: usize) {
        wait_until(&format!("{resource:?} {asked:?} {n} times"), || {
            let all = self.asked(resource);
            all.iter().filter(|other| **other == asked).count() >= n
        });
    }
}

/// What a request for objects of a kind asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Streamed,
    /// A list of any version, as in the server's cache, or of one that is named.
    Cached,
    /// The first page of the latest list, or another.
    Page,
    /// Whether the server has come as far as a version.
    Confirm,
    /// The latest list, whole.
    Latest,
    Watch,
}

impl From<&Request> for Asked {
    fn from(request: &Request) -> Self {
        if request.is_streaming_list() {
            Self::Streamed
        } else if request.is_watch() {
            Self::Watch
        } else if request.query.get("limit").is_some_and(|limit| limit == "1") {
            Self::Confirm
        } else if request.query.contains_key("limit") {
            Self::Page
        } else if request.query.contains_key("resourceVersion") {
            Self::Cached
        } else {
            Self::Latest
        }
    }
}

/// Leads a server from `all.yaml` to `after.yaml`.
pub(crate) fn replay(server: &ApiServer) {
    for (resource, file) in [
        (Resource::Services, "watch-services.jsonl"),
        (Resource::EndpointSlices, "watch-endpointslices.jsonl"),
    ] {
        server.replay(resource, &read(file)).unwrap();
    }
}

/// The requests for objects of a kind.
pub(crate) fn of_kind(server: &ApiServer, resource: Resource) -> Vec<Request> {
    let mut requests = server.requests();
    requests.retain(|request| request.is_for(resource));
    requests
}

#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Writes a kubeconfig with these fields of the cluster and of the user, and returns its path.
pub(crate) fn kubeconfig(folder: &Path, cluster: &str, user: &str) -> String {
    let path = folder.join("kubeconfig");
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: x\n\
         clusters: [{{name: c, cluster: {{{cluster}}}}}]\n\
         users: [{{name: u, user: {{{user}}}}}]\n\
         contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n"
    );
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
