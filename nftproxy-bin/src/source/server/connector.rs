//! Connections: TCP that notices when nobody is left at the other end, proxies, TLS.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::proxy::Proxies;

/// A connection is there after so long, or never.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection without any word is asked after this time whether it still is one, as client-go
/// asks over HTTP/2; the kernel does it, which costs the server a packet.
pub(super) const KEEPALIVE: Duration = Duration::from_secs(30);
/// And given up so much later.
pub(super) const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(15);
/// So often it is asked in that time.
const KEEPALIVE_PROBES: u32 = 3;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Makes connections.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    proxies: Arc<Proxies>,
    /// `None` where no server speaks TLS.
    tls: Option<Arc<ClientConfig>>,
    /// The name in the server's certificate, if it is not that of the URL.
    server_name: Option<Arc<str>>,
}

impl Connector {
    pub(super) fn new(
        proxies: Proxies,
        tls: Option<ClientConfig>,
        server_name: Option<&str>,
    ) -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_TIMEOUT / KEEPALIVE_PROBES));
        tcp.set_keepalive_retries(Some(KEEPALIVE_PROBES));
        // Keepalive counts only while nothing waits to be acknowledged.
        tcp.set_tcp_user_timeout(Some(KEEPALIVE + KEEPALIVE_TIMEOUT));
        Self {
            tcp,
            proxies: Arc::new(proxies),
            tls: tls.map(Arc::new),
            server_name: server_name.map(Into::into),
        }
    }

    async fn connect(self, url: Uri) -> Result<Stream, Error> {
        let is_https = url.scheme_str() == Some("https");
        let (io, is_proxied) = match self.proxies.for_url(&url) {
            None => (boxed(self.tcp.clone().call(url.clone()).await?), false),
            Some(proxy) if proxy.scheme_str().is_some_and(|s| s.starts_with("socks5")) => {
                let mut socks = SocksV5::new(proxy.clone(), self.tcp.clone());
                if let Some((user, password)) = credentials(proxy) {
                    socks = socks.with_auth(user, password);
                }
                (boxed(socks.call(url.clone()).await?), false)
            }
            Some(proxy) if is_https => {
                let mut tunnel = Tunnel::new(without_credentials(proxy), ToProxy(self.clone()));
                if let Some(authorization) = basic(proxy) {
                    tunnel = tunnel.with_auth(authorization);
                }
                let stream = tunnel.call(url.clone()).await?;
                (stream.into_inner().io, false)
            }
            // It is asked for the whole URL.
            Some(proxy) => {
                let stream = ToProxy(self.clone()).call(proxy.clone()).await?;
                (stream.into_inner().io, true)
            }
        };
        if !is_https {
            return Ok(Stream {
                io,
                is_http2: false,
                is_proxied,
            });
        }
        let config = self.tls.as_ref().ok_or("there is no TLS configuration")?;
        let name = match &self.server_name {
            Some(name) => name.as_ref(),
            None => url.host().unwrap_or_default().trim_matches(['[', ']']),
        };
        tls(io, config.clone(), name).await
    }
}

async fn tls(io: BoxedIo, config: Arc<ClientConfig>, name: &str) -> Result<Stream, Error> {
    let name = ServerName::try_from(name.to_owned())?;
    let stream = TlsConnector::from(config).connect(name, io).await?;
    let is_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    Ok(Stream {
        io: Box::new(stream),
        is_http2,
        is_proxied: false,
    })
}

fn boxed<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(io: TokioIo<T>) -> BoxedIo {
    Box::new(io.into_inner())
}

/// User and password in a proxy's URL, decoded.
fn credentials(proxy: &Uri) -> Option<(String, String)> {
    let (credentials, _) = proxy.authority()?.as_str().rsplit_once('@')?;
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let decode = |text| {
        percent_encoding::percent_decode_str(text)
            .decode_utf8_lossy()
            .into_owned()
    };
    Some((decode(user), decode(password)))
}

fn basic(proxy: &Uri) -> Option<HeaderValue> {
    use base64::Engine as _;
    let (user, password) = credentials(proxy)?;
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    HeaderValue::try_from(format!("Basic {encoded}")).ok()
}

fn without_credentials(proxy: &Uri) -> Uri {
    let mut parts = proxy.clone().into_parts();
    let authority = proxy.authority().map(|authority| authority.as_str());
    if let Some((_, host)) = authority.and_then(|authority| authority.rsplit_once('@'))
        && let Ok(host) = host.parse()
    {
        parts.authority = Some(host);
    }
    Uri::from_parts(parts).unwrap_or_else(|_| proxy.clone())
}

/// Connects to the proxy itself.
#[derive(Clone)]
struct ToProxy(Connector);

impl Service<Uri> for ToProxy {
    type Response = TokioIo<Stream>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, proxy: Uri) -> Self::Future {
        let Self(mut connector) = self.clone();
        Box::pin(async move {
            let io = boxed(connector.tcp.call(proxy.clone()).await?);
            let stream = match (proxy.scheme_str(), &connector.tls) {
                (Some("https"), Some(config)) => {
                    // What is said to a proxy is HTTP/1.
                    let mut config = ClientConfig::clone(config);
                    config.alpn_protocols.clear();
                    let host = proxy.host().unwrap_or_default();
                    tls(io, Arc::new(config), host.trim_matches(['[', ']'])).await?
                }
                _ => Stream {
                    io,
                    is_http2: false,
                    is_proxied: true,
                },
            };
            Ok(TokioIo::new(stream))
        })
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            match tokio::time::timeout(CONNECT_TIMEOUT, connector.connect(url)).await {
                Ok(connected) => connected.map(TokioIo::new),
                Err(_) => {
                    let seconds = CONNECT_TIMEOUT.as_secs();
                    Err(format!("no connection within {seconds} s").into())
                }
            }
        })
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

type BoxedIo = Box<dyn Io>;

/// A connection to a server.
pub(super) struct Stream {
    io: BoxedIo,
    is_http2: bool,
    is_proxied: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.is_proxied);
        if self.is_http2 {
            connected.negotiated_h2()
        } else {
            connected
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buffer)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
