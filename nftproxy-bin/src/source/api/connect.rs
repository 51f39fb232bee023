//! One connection to an API server: TCP, a proxy's tunnel, TLS, HTTP.
//!
//! A connection over which nothing comes back is given up by the kernel, or over HTTP/2 by a ping
//! that is not answered, so that no watch stays on it. Entry point: [`connect`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::pki_types::ServerName;
use tower_service::Service;

use super::access::Server;
use super::url;

/// A silent connection is asked after this by the kernel, and again after each interval. It is the
/// server's kernel that answers, so that it costs the server nothing.
const TCP_KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
const TCP_KEEPALIVE_PROBES: u32 = 3;
/// What is sent and not confirmed for so long has been sent in vain. It is just after the last
/// probe, whose count the kernel does not look at once there is such a limit.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(19);
/// Through a proxy the kernel knows only how the proxy fares; so the server is asked as well, as
/// Go's clients ask it after 30 s.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(15);
/// What the server may send before we have read it. More would be held in memory when we are
/// slower; less would hold lists up over long ways.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// For a proxy's answer, and for TLS.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A proxy's answer is a few lines.
const MAX_PROXY_ANSWER: usize = 16 << 10;

/// What there is to send over a connection beside headers: nothing, but for Events.
pub(super) type Body = Full<Bytes>;

/// A way to send requests. Over HTTP/2 clones send side by side.
pub(super) enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Sender {
    pub(super) async fn send(
        &mut self,
        request: Request<Body>,
    ) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::Http1(sender) => sender.send_request(request).await,
            Self::Http2(sender) => sender.send_request(request).await,
        }
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("connecting to {0}")]
    Tcp(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("proxy {0}")]
    Proxy(String, #[source] std::io::Error),
    #[error("proxy {0} answers {1:?}")]
    Refused(String, String),
    #[error("{0:?} is no name that a certificate can have")]
    Name(String),
    #[error("TLS with {0}")]
    Tls(String, #[source] std::io::Error),
    #[error("HTTP with {0}")]
    Http(String, #[source] hyper::Error),
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How a server is reached.
pub(super) struct Way<'a> {
    pub(super) server: &'a Server,
    /// Needed for `https`.
    pub(super) tls: Option<Arc<ClientConfig>>,
    pub(super) tls_server_name: Option<&'a str>,
    /// For a proxy that is spoken to by TLS.
    pub(super) proxy_tls: Option<Arc<ClientConfig>>,
    pub(super) tcp_timeout: Duration,
}

/// Connects.
pub(super) async fn connect(way: Way<'_>) -> Result<Sender, ConnectError> {
    let url = &way.server.url;
    let authority = format!("{}:{}", url.host().unwrap_or_default(), url::port(url));
    let is_https = url.scheme_str() == Some("https");
    let mut stream = match &way.server.proxy {
        None => tcp(url, way.tcp_timeout).await?,
        Some(proxy) => {
            let stream = tcp(&proxy.url, way.tcp_timeout).await?;
            match &way.proxy_tls {
                Some(config) => tls(stream, config, url::host(&proxy.url)).await?.0,
                None => stream,
            }
        }
    };
    // Without TLS a proxy is asked for each request; that is a matter of the requests.
    if let Some(proxy) = way.server.proxy.as_ref().filter(|_| is_https) {
        let name = proxy.url.to_string();
        let tunnelled = tunnel(&mut stream, &authority, proxy.authorization.as_ref());
        let answer = match timeout(HANDSHAKE_TIMEOUT, tunnelled).await {
            Ok(answer) => answer,
            Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
        };
        let status = answer.map_err(|error| ConnectError::Proxy(name.clone(), error))?;
        // `HTTP/1.1 200 Connection established`
        if !status
            .split(' ')
            .nth(1)
            .is_some_and(|code| code.starts_with('2'))
        {
            return Err(ConnectError::Refused(name, status));
        }
    }
    let mut is_http2 = false;
    if let Some(config) = way.tls.as_ref().filter(|_| is_https) {
        let name = way.tls_server_name.unwrap_or_else(|| url::host(url));
        (stream, is_http2) = tls(stream, config, name).await?;
    }
    http(stream, is_http2)
        .await
        .map_err(|error| ConnectError::Http(authority, error))
}

async fn tcp(url: &http::Uri, patience: Duration) -> Result<Box<dyn Stream>, ConnectError> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(TCP_KEEPALIVE_IDLE));
    connector.set_keepalive_interval(Some(TCP_KEEPALIVE_INTERVAL));
    connector.set_keepalive_retries(Some(TCP_KEEPALIVE_PROBES));
    connector.set_tcp_user_timeout(Some(TCP_USER_TIMEOUT));
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        let host = url.host().unwrap_or_default();
        ConnectError::Tcp(format!("{host}:{}", url::port(url)), error)
    };
    // The name is looked up in this time as well.
    match timeout(patience, connector.call(url.clone())).await {
        Ok(Ok(stream)) => Ok(Box::new(stream.into_inner())),
        Ok(Err(error)) => Err(failed(error.into())),
        Err(_) => Err(failed("no answer in time".into())),
    }
}

/// Asks a proxy for a tunnel, and returns the first line of its answer.
async fn tunnel(
    stream: &mut (impl Stream + ?Sized),
    authority: &str,
    authorization: Option<&HeaderValue>,
) -> std::io::Result<String> {
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").into_bytes();
    if let Some(value) = authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(value.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    stream.write_all(&request).await?;
    let mut answer = Vec::new();
    // The server says nothing before we do, so nothing follows the answer.
    while !answer.windows(4).any(|end| end == b"\r\n\r\n") {
        if answer.len() > MAX_PROXY_ANSWER {
            return Err(std::io::Error::other("its answer does not end"));
        }
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let text = String::from_utf8_lossy(&answer);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Speaks TLS, and says whether the server chose HTTP/2.
async fn tls(
    stream: Box<dyn Stream>,
    config: &Arc<ClientConfig>,
    name: &str,
) -> Result<(Box<dyn Stream>, bool), ConnectError> {
    let server_name =
        ServerName::try_from(name.to_owned()).map_err(|_| ConnectError::Name(name.to_owned()))?;
    let connecting = TlsConnector::from(config.clone()).connect(server_name, stream);
    let stream = match timeout(HANDSHAKE_TIMEOUT, connecting).await {
        Ok(stream) => stream,
        Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
    }
    .map_err(|error| ConnectError::Tls(name.to_owned(), error))?;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok((Box::new(stream), is_http2))
}

async fn http(stream: Box<dyn Stream>, is_http2: bool) -> hyper::Result<Sender> {
    let io = TokioIo::new(stream);
    // How a connection ends is told to the requests on it.
    if is_http2 {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(io)
            .await?;
        tokio::spawn(connection);
        Ok(Sender::Http2(sender))
    } else {
        let (sender, connection) = http1::handshake(io).await?;
        tokio::spawn(connection);
        Ok(Sender::Http1(sender))
    }
}
