//! An HTTP proxy as hosts have it in `HTTPS_PROXY`: tunnels (`CONNECT`) and plain requests with
//! an absolute URL, all recorded.
//!
//! It must not know what goes through it. Entry point: [`ForwardProxy`].

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::TcpStream;

use crate::background::Background;

/// Longer heads than this are refused.
const MAX_HEAD: usize = 64 << 10;

/// What the proxy was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyRequest {
    /// The method in capitals, `CONNECT` for a tunnel.
    pub method: String,
    /// The host and port of a tunnel, or an absolute URL.
    pub target: String,
    /// The headers by their names in lower case; of several with one name, the last.
    pub headers: BTreeMap<String, String>,
}

/// A running proxy; dropping it closes the port and everything that goes through it.
///
/// The listening socket is bound on the calling thread, and so lives in the network namespace of
/// that thread, as do the connections that the proxy makes.
pub struct ForwardProxy {
    background: Background,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Where every connection goes, whatever it asks for.
    destination: Option<SocketAddr>,
}

#[derive(Default)]
struct State {
    requests: Vec<ProxyRequest>,
    refusal: Option<u16>,
}

impl Shared {
    /// A panic elsewhere does not matter here: the test which caused it fails anyway.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ForwardProxy {
    /// Starts a proxy on a free port of the IPv4 loopback address, which connects to where it is
    /// told.
    pub fn start() -> io::Result<Self> {
        Self::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), None)
    }

    /// Starts a proxy on a free port of the IPv4 loopback address, which connects to
    /// `destination` whatever it is told, so that names need not exist.
    pub fn start_to(destination: SocketAddr) -> io::Result<Self> {
        Self::bind(
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            Some(destination),
        )
    }

    /// Starts a proxy on `addr`, with the destination of all connections if they have one.
    pub fn bind(addr: SocketAddr, destination: Option<SocketAddr>) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            destination,
            ..Shared::default()
        });
        let serving = shared.clone();
        let background = Background::start("forward-proxy", addr, move |client| {
            let shared = serving.clone();
            tokio::spawn(async move {
                // A connection that is lost on either side is lost on both, and that is all.
                drop(forward(client, &shared).await);
            });
        })?;
        Ok(Self { background, shared })
    }

    /// The address the proxy listens on.
    pub fn addr(&self) -> SocketAddr {
        self.background.addr()
    }

    /// The URL of the proxy, as environment variables have it.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr())
    }

    /// Answers new requests with this HTTP status, 407 say; with none, lets them through again.
    pub fn refuse(&self, status: Option<u16>) {
        self.shared.lock().refusal = status;
    }

    /// All requests since the start, in order of arrival, refused ones included.
    pub fn requests(&self) -> Vec<ProxyRequest> {
        self.shared.lock().requests.clone()
    }
}

async fn forward(mut client: TcpStream, shared: &Shared) -> io::Result<()> {
    let (head, rest) = read_head(&mut client).await?;
    let Some((request, version)) = parse(&head) else {
        return answer(&mut client, 400).await;
    };
    let refusal = {
        let mut state = shared.lock();
        state.requests.push(request.clone());
        state.refusal
    };
    if let Some(status) = refusal {
        return answer(&mut client, status).await;
    }
    let is_tunnel = request.method == "CONNECT";
    let (authority, path) = if is_tunnel {
        (request.target.as_str(), "")
    } else {
        let Some(url) = request.target.strip_prefix("http://") else {
            return answer(&mut client, 400).await;
        };
        url.split_at(url.find('/').unwrap_or(url.len()))
    };
    let Ok(mut server) = connect(authority, shared.destination).await else {
        return answer(&mut client, 502).await;
    };
    if is_tunnel {
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
    } else {
        let path = if path.is_empty() { "/" } else { path };
        server
            .write_all(origin_head(&head, &request.method, path, version).as_bytes())
            .await?;
    }
    server.write_all(&rest).await?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

/// The head of a request up to the empty line, and what has come after it.
async fn read_head(client: &mut TcpStream) -> io::Result<(String, Vec<u8>)> {
    let end = b"\r\n\r\n";
    let mut bytes = Vec::new();
    loop {
        if client.read_buf(&mut bytes).await? == 0 || bytes.len() > MAX_HEAD {
            return Err(ErrorKind::InvalidData.into());
        }
        if let Some(i) = bytes.windows(end.len()).position(|part| part == end) {
            let rest = bytes.split_off(i + end.len());
            let head = String::from_utf8(bytes).map_err(|_| ErrorKind::InvalidData)?;
            return Ok((head, rest));
        }
    }
}

/// The request and the version of HTTP that a head says.
fn parse(head: &str) -> Option<(ProxyRequest, &str)> {
    let mut lines = head.lines();
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let request = ProxyRequest {
        method: method.to_owned(),
        target: target.to_owned(),
        headers,
    };
    Some((request, version))
}

/// The head as the server is to see it. The connection is good for this one request, as the next
/// one may be for another server.
fn origin_head(head: &str, method: &str, path: &str, version: &str) -> String {
    let mut origin = format!("{method} {path} {version}\r\n");
    for line in head.lines().skip(1).filter(|line| !line.is_empty()) {
        let name = line.split(':').next().unwrap_or("").to_ascii_lowercase();
        if !name.starts_with("proxy-") && name != "connection" {
            origin.push_str(line);
            origin.push_str("\r\n");
        }
    }
    origin.push_str("Connection: close\r\n\r\n");
    origin
}

async fn connect(authority: &str, destination: Option<SocketAddr>) -> io::Result<TcpStream> {
    match destination {
        Some(destination) => TcpStream::connect(destination).await,
        None if authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
        {
            TcpStream::connect(authority).await
        }
        None => TcpStream::connect(format!("{authority}:80")).await,
    }
}

async fn answer(client: &mut TcpStream, status: u16) -> io::Result<()> {
    let head =
        format!("HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    client.write_all(head.as_bytes()).await
}
