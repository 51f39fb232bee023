//! Sockets to listen on, as Go opens them, and servers that keep trying to.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::sleep;
use tracing::{error, info};

use super::{Handler, serve};

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 1024;
/// How long after a failure a server tries again.
const RETRY: Duration = Duration::from_secs(5);

/// A server of the proxy's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Server {
    Healthz,
    Metrics,
}

impl Server {
    /// kube-proxy's words for its failure.
    fn failure(self) -> &'static str {
        match self {
            Self::Healthz => "Healthz server failed",
            Self::Metrics => "starting metrics server failed",
        }
    }
}

impl Server {
    /// The reason of kube-proxy's Event for its failure.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Healthz => "FailedToStartProxierHealthcheck",
            Self::Metrics => "FailedToStartMetricServer",
        }
    }
}

impl Failed {
    /// What an Event says of it.
    pub(crate) fn note(&self) -> String {
        let Self {
            address, source, ..
        } = self;
        format!(
            "{}: listening at {address}: {source}",
            self.server.failure()
        )
    }
}

/// A server could not be started, and must be.
#[derive(Debug, thiserror::Error)]
#[error("{}: listening at {address}", .server.failure())]
pub(crate) struct Failed {
    pub(crate) server: Server,
    address: SocketAddr,
    source: io::Error,
}

/// Serves at an address for ever. While it is taken it is tried again, unless `is_hard`.
pub(crate) async fn serve_at<H: Handler>(
    server: Server,
    address: SocketAddr,
    is_hard: bool,
    handler: Arc<H>,
) -> Result<Infallible, Failed> {
    loop {
        match listen(address) {
            Ok(listener) => {
                info!(?server, %address, "serving");
                serve(listener, handler.clone()).await;
            }
            Err(source) if is_hard => {
                return Err(Failed {
                    server,
                    address,
                    source,
                });
            }
            Err(error) => {
                let hint = if error.kind() == io::ErrorKind::AddrInUse {
                    "; is a kube-proxy running on this node?"
                } else {
                    ""
                };
                error!(%address, %error, "{}{hint}", server.failure());
            }
        }
        sleep(RETRY).await;
    }
}

/// Listens at an address. As in Go, either wildcard stands for both families, where there are two.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    if !address.ip().is_unspecified() {
        return listen_for_family(address);
    }
    let both = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match TcpSocket::new_v6() {
        Ok(socket) => {
            setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
            match finish(&socket, SocketAddr::new(both, address.port())) {
                Ok(()) => socket.listen(BACKLOG),
                // Without IPv6 there is the other one.
                Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                    listen_for_family(address)
                }
                Err(error) => Err(error),
            }
        }
        Err(_) => listen_for_family(address),
    }
}

/// Listens on a socket for one family, even where the address is that of all.
pub(crate) fn listen_for_family(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => {
            let socket = TcpSocket::new_v6()?;
            setsockopt(&socket, sockopt::Ipv6V6Only, &true)?;
            socket
        }
    };
    finish(&socket, address)?;
    socket.listen(BACKLOG)
}

fn finish(socket: &TcpSocket, address: SocketAddr) -> io::Result<()> {
    // Connections of before must not keep the port from being used again.
    socket.set_reuseaddr(true)?;
    socket.bind(address)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpStream;

    /// O-107: probes come by either family, whichever wildcard is configured.
    #[tokio::test]
    async fn a_wildcard_stands_for_both_families() {
        for wildcard in ["0.0.0.0:0", "[::]:0"] {
            let listener = listen(wildcard.parse().unwrap()).unwrap();
            let port = listener.local_addr().unwrap().port();
            for ip in ["127.0.0.1", "::1"] {
                let stream = TcpStream::connect((ip, port)).await;
                assert!(stream.is_ok(), "{wildcard} by {ip}: {stream:?}");
            }
        }
    }

    /// O-107
    #[tokio::test]
    async fn an_address_stands_for_itself() {
        let listener = listen("127.0.0.2:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(TcpStream::connect(("127.0.0.2", port)).await.is_ok());
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
        let listener = listen_for_family("[::]:0".parse().unwrap()).unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    }

    struct Nothing;

    impl Handler for Nothing {
        async fn respond(&self, _: http::Request<hyper::body::Incoming>) -> super::super::Response {
            http::Response::new(super::super::full("nothing"))
        }
    }

    /// O-30, O-108: a taken port is tried again; with `bindAddressHardFail` it ends the process.
    #[tokio::test(start_paused = true)]
    async fn a_taken_port_is_tried_again_or_is_the_end() {
        let taken = std::net::TcpListener::bind("127.0.0.4:0").unwrap();
        let address = taken.local_addr().unwrap();
        let failed = serve_at(Server::Metrics, address, true, Arc::new(Nothing)).await;
        let message = failed.map(|_| ()).unwrap_err().to_string();
        assert!(
            message.starts_with("starting metrics server failed"),
            "{message}"
        );

        let server = tokio::spawn(serve_at(Server::Healthz, address, false, Arc::new(Nothing)));
        sleep(RETRY / 2).await;
        drop(taken);
        assert!(TcpStream::connect(address).await.is_err(), "it waits");
        sleep(RETRY).await;
        assert!(TcpStream::connect(address).await.is_ok());
        server.abort();
    }
}
