//! An API server that does as a test tells it, request by request, over plain HTTP/1.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use integration::daemon::Daemon;
use integration::netns::Namespace;

/// A request as it was received.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) at: Instant,
    /// The target of the request line.
    pub(crate) target: String,
    /// Lines `name: value`, names in lower case.
    pub(crate) headers: Vec<String>,
}

impl Request {
    pub(crate) fn is_watch(&self) -> bool {
        self.target.contains("watch=true")
    }

    pub(crate) fn is_streaming_list(&self) -> bool {
        self.target.contains("sendInitialEvents=true")
    }

    pub(crate) fn is_for(&self, plural: &str) -> bool {
        let path = self.target.split('?').next().unwrap();
        path.ends_with(&format!("/{plural}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.headers
            .iter()
            .find_map(|line| line.strip_prefix(&prefix))
    }
}

/// What is answered.
pub(crate) enum Answer {
    /// Status, further header lines, body.
    Whole(u16, &'static str, String),
    /// Events, after which the watch stays open.
    Open(Vec<String>),
}

impl Answer {
    /// A failure with a `Status` object.
    pub(crate) fn refuse(code: u16, message: &str) -> Self {
        let status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": code, "reason": "Refused", "message": message,
        });
        Self::Whole(code, "", status.to_string())
    }

    /// An empty list of the right kind.
    pub(crate) fn empty_list(request: &Request) -> Self {
        let kind = [
            ("services", "Service"),
            ("endpointslices", "EndpointSlice"),
            ("nodes", "Node"),
            ("servicecidrs", "ServiceCIDR"),
        ]
        .into_iter()
        .find(|(plural, _)| request.is_for(plural))
        .map_or("Unknown", |(_, kind)| kind);
        let list = serde_json::json!({
            "kind": format!("{kind}List"), "apiVersion": "v1",
            "metadata": {"resourceVersion": "7"}, "items": [],
        });
        Self::Whole(200, "", list.to_string())
    }

    /// As a server without streaming lists: lists are empty, watches stay open.
    pub(crate) fn plain(request: &Request) -> Self {
        if request.is_streaming_list() {
            Self::refuse(422, "sendInitialEvents is forbidden")
        } else if request.is_watch() {
            Self::Open(Vec::new())
        } else {
            Self::empty_list(request)
        }
    }
}

/// A running server. Its threads end with the process.
pub(crate) struct Scripted {
    pub(crate) addr: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Scripted {
    /// Starts one in a namespace; `answer` is called for each request.
    pub(crate) fn start(
        namespace: &Namespace,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let listener = namespace.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
        let addr = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let seen = requests.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, seen) = (answer.clone(), seen.clone());
                thread::spawn(move || serve(stream, &*answer, &seen));
            }
        });
        Self { addr, requests }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits until there is a request that meets the condition.
    #[track_caller]
    pub(crate) fn wait_for(&self, what: &str, condition: impl Fn(&Request) -> bool) -> Request {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            if let Some(request) = self.requests().into_iter().find(|r| condition(r)) {
                return request;
            }
            assert!(Instant::now() < deadline, "waited in vain for {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn serve(stream: TcpStream, answer: &dyn Fn(&Request) -> Answer, seen: &Mutex<Vec<Request>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    while let Some(request) = read(&mut reader) {
        seen.lock().unwrap().push(request.clone());
        let sent = match answer(&request) {
            Answer::Whole(status, headers, body) => write!(
                stream,
                "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{headers}\
                 Content-Length: {}\r\n\r\n{body}",
                body.len()
            ),
            Answer::Open(events) => {
                let head = "HTTP/1.1 200 X\r\nContent-Type: application/json\r\n\r\n";
                let lines: String = events.iter().map(|event| format!("{event}\n")).collect();
                let _ = stream.write_all((head.to_owned() + &lines).as_bytes());
                // Until the client goes.
                let _ = reader.read_line(&mut String::new());
                return;
            }
        };
        if sent.is_err() {
            return;
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Request> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    let first = lines.first()?;
    let target = first.split(' ').nth(1)?.to_owned();
    let headers = lines[1..].iter().map(|line| {
        let (name, value) = line.split_once(": ").unwrap();
        format!("{}: {value}", name.to_lowercase())
    });
    Some(Request {
        at: Instant::now(),
        target,
        headers: headers.collect(),
    })
}

/// A namespace for a node whose loopback works, and that the proxy finds nothing wrong with.
pub(crate) fn node() -> Namespace {
    let namespace = Namespace::new("node").unwrap();
    for key in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
        namespace.sysctl(key, "1").unwrap();
    }
    namespace
}

/// Starts the proxy of `node-1` with these arguments.
pub(crate) fn start(namespace: &Namespace, arguments: &[&str]) -> Daemon {
    let name = ["run", "--hostname-override", "node-1"];
    Daemon::start(namespace, &[&name, arguments].concat()).unwrap()
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
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
