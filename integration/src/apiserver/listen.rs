//! Connections to requests: TLS, then either version of HTTP.
//!
//! It must not know what answers are. Entry point: [`serve`].

use std::convert::Infallible;
use std::sync::Arc;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::Shared;
use super::answer::answer;
use super::connection::{Connection, Wire};

/// Serves a connection in a task of its own.
pub(super) fn serve(socket: TcpStream, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    // Else Nagle's algorithm holds events back.
    drop(socket.set_nodelay(true));
    let connection = {
        let mut state = shared.lock();
        let connection = Connection::new(state.is_frozen);
        state.connections.push(connection.clone());
        connection
    };
    let wire = Wire {
        socket,
        connection: connection.clone(),
    };
    tokio::spawn(async move {
        tokio::select! {
            () = serve_connection(wire, tls, shared.clone()) => {}
            () = connection.cut_asked() => {}
        }
        shared
            .lock()
            .connections
            .retain(|other| !Arc::ptr_eq(other, &connection));
    });
}

async fn serve_connection(wire: Wire, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let Some(tls) = tls else {
        return serve_http(wire, None, shared).await;
    };
    // A client that does not like the server's certificate goes away here.
    let Ok(stream) = tls.accept(wire).await else {
        return;
    };
    let (_, session) = stream.get_ref();
    let certificate = session
        .peer_certificates()
        .and_then(|chain| chain.first())
        .map(|certificate| certificate.to_vec());
    serve_http(stream, certificate, shared).await;
}

async fn serve_http<S>(stream: S, certificate: Option<Vec<u8>>, shared: Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let (parts, _body) = request.into_parts();
        let answer = answer(shared.clone(), parts, certificate.clone());
        async { Ok::<_, Infallible>(answer.await) }
    });
    // How it ends is the client's affair, or asked for.
    drop(
        auto::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(stream), service)
            .await,
    );
}
