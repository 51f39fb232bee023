//! Requests to the API servers.
//!
//! Over HTTP/2 one connection serves all; over HTTP/1 each watch has its own. Whoever needs a
//! connection while there is no server waits for the one attempt that is made at a time, so that a
//! node knocks once, however many watches it has. Entry point: [`Client::get`].

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, PROXY_AUTHORIZATION, RETRY_AFTER, USER_AGENT,
};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use tokio::sync::Mutex as AsyncMutex;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::rustls::ClientConfig;
use tracing::{info, warn};

use super::access::{Access, Server};
use super::backoff;
use super::connect::{Body, Sender, Way, connect};
use super::credentials::Credentials;
use super::failure::{Failure, cause};
use super::limit::Limit;
use crate::error::chain;
use crate::metrics::ApiMetrics;
use crate::version;

/// For a TCP connection while the outage is young: what got lost is not waited for.
const EAGER_TCP_TIMEOUT: Duration = Duration::from_secs(2);
const TCP_TIMEOUT: Duration = Duration::from_secs(10);
/// A server answers within its own limit of a minute, or not at all.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(70);
/// Longer waits are no better.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(120);

pub(super) struct Client {
    servers: Vec<Server>,
    access: Access,
    accept: HeaderValue,
    limit: Limit,
    metrics: ApiMetrics,
    gate: AsyncMutex<Gate>,
    /// HTTP/1 connections, some of which may be busy.
    http1: Mutex<Vec<Idle>>,
}

/// The way to the servers: held by whoever connects.
#[derive(Default)]
struct Gate {
    /// The server in use, as an index.
    server: usize,
    http2: Option<(http2::SendRequest<Body>, Settings)>,
    /// Whether the server speaks HTTP/1, so that connections are made side by side.
    is_http1: bool,
    outage: Option<Outage>,
}

struct Outage {
    since: Instant,
    n_attempts: u32,
    last_attempt: Instant,
    next_attempt: Instant,
    /// As it was logged.
    cause: String,
}

/// The TLS settings that a connection was made with.
type Settings = Option<Arc<ClientConfig>>;

struct Idle {
    sender: hyper::client::conn::http1::SendRequest<Body>,
    server: usize,
    settings: Settings,
}

/// A way to send one request.
struct Ready {
    sender: Sender,
    server: usize,
    settings: Settings,
    /// Whether it served before, and so may have ended since.
    is_used: bool,
}

/// An answer with status 200.
pub(super) struct Response {
    pub(super) headers: HeaderMap,
    pub(super) body: Incoming,
    /// Which server it is from, as an index.
    pub(super) server: usize,
}

/// What is asked of a server.
pub(super) struct Question {
    pub(super) method: Method,
    /// With its query.
    pub(super) path: String,
    /// With its type.
    pub(super) body: Option<(&'static str, Bytes)>,
}

impl Client {
    pub(super) fn new(
        mut access: Access,
        accept: HeaderValue,
        limit: Limit,
        metrics: ApiMetrics,
    ) -> Self {
        Self {
            servers: std::mem::take(&mut access.servers),
            access,
            accept,
            limit,
            metrics,
            gate: AsyncMutex::default(),
            http1: Mutex::default(),
        }
    }

    pub(super) fn metrics(&self) -> &ApiMetrics {
        &self.metrics
    }

    pub(super) fn n_servers(&self) -> usize {
        self.servers.len()
    }

    /// Asks for a path with its query. Returns once the head of the answer is there.
    pub(super) async fn get(&self, path: &str) -> Result<Response, Failure> {
        let question = Question {
            method: Method::GET,
            path: path.to_owned(),
            body: None,
        };
        self.ask(&question).await
    }

    /// Asks, and returns once the head of the answer is there.
    pub(super) async fn ask(&self, question: &Question) -> Result<Response, Failure> {
        let mut is_renewed = false;
        loop {
            let ready = self.ready(false).await?;
            // Attempts to connect are not counted, so that they use nothing up; nor are Events, which
            // have a limit of their own.
            if question.body.is_none() {
                self.limit.take().await;
            }
            let (response, server) = match self.send(ready, question).await {
                // The server closed it before the request arrived, which is its right.
                Err((error, true)) if error.is_broken() => {
                    let ready = self.ready(true).await?;
                    let answer = self.send(ready, question).await;
                    answer.map_err(|(error, _)| error)?
                }
                answer => answer.map_err(|(error, _)| error)?,
            };
            let status = response.status();
            let is_written = question.body.is_some() && status == StatusCode::CREATED;
            if status == StatusCode::OK || is_written {
                return Ok(Response {
                    headers: response.headers().clone(),
                    body: response.into_body(),
                    server,
                });
            }
            if status == StatusCode::UNAUTHORIZED {
                // What rotated may be known to us by now; a connection with an old certificate is
                // no good either.
                self.leave(server, false).await;
                let may_change = self.access.credentials.refused().await;
                if may_change && !std::mem::replace(&mut is_renewed, true) {
                    continue;
                }
            }
            let failure = refusal(response).await;
            if self.servers.len() > 1 && status.is_server_error() {
                self.leave(server, true).await;
            }
            return Err(failure);
        }
    }

    async fn send(
        &self,
        ready: Ready,
        question: &Question,
    ) -> Result<(http::Response<Incoming>, usize), (Failure, bool)> {
        let Ready {
            mut sender,
            server,
            settings,
            is_used,
        } = ready;
        let authorization = self.access.credentials.header().await;
        let authorization =
            authorization.map_err(|error| (Failure::Local(format!("{error:#}")), false))?;
        let is_http2 = matches!(sender, Sender::Http2(_));
        let request = self
            .request(server, question, authorization, is_http2)
            .map_err(|error| (Failure::Local(error.to_string()), false))?;
        let asked = Instant::now();
        let answer = timeout(ANSWER_TIMEOUT, sender.send(request)).await;
        let status = answer.as_ref().ok().and_then(|answer| answer.as_ref().ok());
        let host = self.servers[server].url.authority();
        self.metrics.requested(
            host.map_or("", |authority| authority.as_str()),
            question.method.as_str(),
            status.map(|response| response.status().as_u16()),
            (!question.path.contains("watch=true")).then(|| asked.elapsed()),
        );
        if let Sender::Http1(sender) = sender {
            // It is busy until the answer is read, and ready again afterwards.
            self.http1().push(Idle {
                sender,
                server,
                settings,
            });
        }
        match answer {
            Ok(Ok(response)) => Ok((response, server)),
            Ok(Err(error)) => Err((Failure::Broken(chain(&error)), is_used)),
            Err(_) => {
                self.leave(server, true).await;
                Err((Failure::Silent("no answer".into()), false))
            }
        }
    }

    fn request(
        &self,
        server: usize,
        question: &Question,
        authorization: Option<HeaderValue>,
        is_http2: bool,
    ) -> http::Result<Request<Body>> {
        let Server { url, proxy } = &self.servers[server];
        let Question { method, path, body } = question;
        let authority = url.authority().map_or("", |authority| authority.as_str());
        let scheme = url.scheme_str().unwrap_or_default();
        let prefix = url.path().trim_end_matches('/');
        // Without a tunnel, the proxy must be told where to go.
        let forwarding = proxy.as_ref().filter(|_| scheme == "http");
        let target = if is_http2 || forwarding.is_some() {
            format!("{scheme}://{authority}{prefix}{path}")
        } else {
            format!("{prefix}{path}")
        };
        let uri: Uri = target.parse()?;
        let mut request = Request::builder()
            .method(method.clone())
            .uri(uri)
            .header(ACCEPT, self.accept.clone())
            .header(USER_AGENT, user_agent());
        if !is_http2 {
            request = request.header(HOST, authority);
        }
        for (name, value) in &self.access.headers {
            request = request.header(name, value);
        }
        if let Some(value) = authorization {
            request = request.header(AUTHORIZATION, value);
        }
        if let Some(value) = forwarding.and_then(|proxy| proxy.authorization.as_ref()) {
            request = request.header(PROXY_AUTHORIZATION, value);
        }
        let (content_type, body) = match body {
            None => return request.body(Body::default()),
            Some((content_type, body)) => (*content_type, body.clone()),
        };
        request.header(CONTENT_TYPE, content_type).body(body.into())
    }

    /// A connection that can take a request; `is_new` asks for one that never served.
    async fn ready(&self, is_new: bool) -> Result<Ready, Failure> {
        let asked = Instant::now();
        let mut gate = self.gate.lock().await;
        if let Some(outage) = &gate.outage {
            // What was tried meanwhile was tried for all.
            if outage.last_attempt > asked {
                return Err(Failure::Unreachable);
            }
            sleep_until(outage.next_attempt).await;
        }
        let settings = self.settings().await?;
        if !is_new && let Some(ready) = self.reuse(&mut gate, &settings) {
            return Ok(ready);
        }
        if gate.is_http1 && gate.outage.is_none() {
            // All lists are to be asked for at once.
            let server = gate.server;
            drop(gate);
            let timeout = EAGER_TCP_TIMEOUT;
            return match self.connect(server, &settings, timeout).await {
                Ok(sender) => Ok(Ready {
                    sender,
                    server,
                    settings,
                    is_used: false,
                }),
                Err(error) => {
                    let mut gate = self.gate.lock().await;
                    // Whoever was first has said it, or has even mended it.
                    if gate.server == server && gate.outage.is_none() {
                        gate.is_http1 = false;
                        gate.failed(Instant::now(), &error);
                    }
                    Err(Failure::Unreachable)
                }
            };
        }
        self.connect_to_any(&mut gate, settings).await
    }

    fn reuse(&self, gate: &mut Gate, settings: &Settings) -> Option<Ready> {
        let server = gate.server;
        if let Some((sender, of_connection)) = &gate.http2
            && !sender.is_closed()
            && same(of_connection, settings)
        {
            return Some(Ready {
                sender: Sender::Http2(sender.clone()),
                server,
                settings: settings.clone(),
                is_used: true,
            });
        }
        gate.http2 = None;
        let mut idle = self.http1();
        idle.retain(|idle| !idle.sender.is_closed());
        let index = idle.iter().position(|idle| {
            idle.sender.is_ready() && idle.server == server && same(&idle.settings, settings)
        })?;
        let Idle { sender, .. } = idle.swap_remove(index);
        Some(Ready {
            sender: Sender::Http1(sender),
            server,
            settings: settings.clone(),
            is_used: true,
        })
    }

    /// Tries each server once, the one in use first.
    async fn connect_to_any(&self, gate: &mut Gate, settings: Settings) -> Result<Ready, Failure> {
        let started = Instant::now();
        let is_young = gate
            .outage
            .as_ref()
            .is_none_or(|outage| started.duration_since(outage.since) < backoff::YOUNG);
        let patience = if is_young {
            EAGER_TCP_TIMEOUT
        } else {
            TCP_TIMEOUT
        };
        let mut causes: Vec<String> = Vec::new();
        for offset in 0..self.servers.len() {
            let server = (gate.server + offset) % self.servers.len();
            match self.connect(server, &settings, patience).await {
                Ok(sender) => {
                    gate.works(&self.servers[server]);
                    if gate.server != server {
                        info!(server = %self.servers[server].url, "using another API server");
                    }
                    gate.server = server;
                    match &sender {
                        Sender::Http2(sender) => {
                            gate.http2 = Some((sender.clone(), settings.clone()));
                        }
                        Sender::Http1(_) => gate.is_http1 = true,
                    }
                    return Ok(Ready {
                        sender,
                        server,
                        settings,
                        is_used: false,
                    });
                }
                Err(cause) => causes.push(cause),
            }
        }
        gate.is_http1 = false;
        gate.failed(started, &causes.join("; "));
        Err(Failure::Unreachable)
    }

    async fn connect(
        &self,
        server: usize,
        settings: &Settings,
        tcp_timeout: Duration,
    ) -> Result<Sender, String> {
        let server = &self.servers[server];
        let is_tls_proxy = |proxy: &super::proxy::Proxy| proxy.url.scheme_str() == Some("https");
        let proxy_tls = server.proxy.as_ref().is_some_and(is_tls_proxy);
        let proxy_tls = proxy_tls.then(super::tls::for_proxies).transpose();
        let way = Way {
            server,
            tls: settings.clone(),
            tls_server_name: self.access.tls_server_name.as_deref(),
            proxy_tls: proxy_tls.map_err(|error| format!("{error:#}"))?,
            tcp_timeout,
        };
        connect(way).await.map_err(|error| {
            let text = chain(&error);
            match &server.proxy {
                Some(proxy) => format!("{} by proxy {}: {text}", server.url, proxy.url),
                None => format!("{}: {text}", server.url),
            }
        })
    }

    /// The TLS settings as of now, if a server needs any.
    async fn settings(&self) -> Result<Settings, Failure> {
        let is_https = |server: &Server| server.url.scheme_str() == Some("https");
        if !self.servers.iter().any(is_https) {
            return Ok(None);
        }
        let local = |error: anyhow::Error| Failure::Local(format!("{error:#}"));
        let credential = match &self.access.credentials {
            Credentials::Exec(exec) => Some(exec.credential().await.map_err(local)?),
            _ => None,
        };
        let identity = credential.as_ref().and_then(|c| c.identity.as_ref());
        self.access.tls.config(identity).map(Some).map_err(local)
    }

    /// Has the next request use another connection, and another server if there is one and
    /// `for_another` says so.
    async fn leave(&self, server: usize, for_another: bool) {
        let mut gate = self.gate.lock().await;
        if gate.server != server {
            return;
        }
        gate.http2 = None;
        self.http1().retain(|idle| !idle.sender.is_ready());
        if for_another && self.servers.len() > 1 {
            gate.server = (server + 1) % self.servers.len();
            gate.is_http1 = false;
            let to = &self.servers[gate.server].url;
            info!(from = %self.servers[server].url, %to, "turning to another API server");
        }
    }

    fn http1(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.http1.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gate {
    fn failed(&mut self, started: Instant, text: &str) {
        let now = Instant::now();
        let outage = self.outage.get_or_insert_with(|| Outage {
            since: started,
            n_attempts: 0,
            last_attempt: now,
            next_attempt: now,
            cause: String::new(),
        });
        let age = now.duration_since(outage.since);
        // The time that the attempt took was a pause as well.
        outage.next_attempt = started + backoff::search_pause(outage.n_attempts, age);
        outage.n_attempts += 1;
        outage.last_attempt = now;
        let cause = cause(text);
        if outage.cause != cause {
            warn!(error = text, "the API server cannot be reached; retrying");
            outage.cause = cause;
        }
    }

    fn works(&mut self, server: &Server) {
        if let Some(outage) = self.outage.take() {
            let seconds = outage.since.elapsed().as_secs();
            info!(server = %server.url, seconds, "the API server can be reached again");
        }
    }
}

fn same(one: &Settings, other: &Settings) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// As Go's clients have it, so that those who count clients by it find the program's name.
fn user_agent() -> HeaderValue {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&path).file_name().unwrap_or_default();
    let name = name.to_string_lossy();
    let (version, architecture) = (env!("CARGO_PKG_VERSION"), version::architecture());
    let agent = format!("{name}/{version} (linux/{architecture}) kubernetes/nftproxy");
    HeaderValue::try_from(agent).unwrap_or(HeaderValue::from_static("nftproxy"))
}

/// What an answer that is no 200 says.
async fn refusal(response: http::Response<Incoming>) -> Failure {
    let (head, body) = response.into_parts();
    let retry_after = retry_after(&head.headers);
    let status = super::status::read(&head.headers, body).await;
    Failure::Answer {
        code: head.status.as_u16(),
        reason: status.reason,
        message: status.message,
        retry_after: retry_after.or(status.retry_after),
    }
}

/// In seconds; Kubernetes has no use for dates.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers
        .get(RETRY_AFTER)?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}
