//! Serves a handler on a listener, whatever the clients do.
//!
//! A newcomer is always accepted: beyond a number of connections, the oldest is cut for it, which
//! is one that a healthy client is done with. So neither half-open connections nor thousands of
//! them keep a probe from being answered, and what they cost is bounded.
//! Entry point: [`serve`].

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::debug;

use super::Response;

/// Connections that a listener serves at a time.
const MAX_CONNECTIONS: usize = 256;
/// A client that has not asked by then, for the first time or again, is cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// A connection that is older takes no further request.
const LIFETIME: Duration = Duration::from_secs(90);
/// A client that has not read its answer by then, after that, is cut off.
const LAST_ANSWER: Duration = Duration::from_secs(10);
/// What the head of a request may take.
const MAX_HEAD: usize = 16 * 1024;
/// How long to wait when no connection can be accepted, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who answers requests.
pub(crate) trait Handler: Send + Sync + 'static {
    fn respond(&self, request: http::Request<Incoming>) -> impl Future<Output = Response> + Send;
}

/// Answers on a listener until it is aborted, which ends its connections as well.
pub(crate) async fn serve<H: Handler>(listener: TcpListener, handler: Arc<H>) {
    let mut connections = JoinSet::new();
    let mut by_age: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                by_age.retain(|connection| !connection.is_finished());
                if by_age.len() >= MAX_CONNECTIONS
                    && let Some(oldest) = by_age.pop_front()
                {
                    oldest.abort();
                }
                by_age.push_back(connections.spawn(serve_connection(stream, handler.clone())));
            }
            Err(error) => {
                debug!(%error, "a connection cannot be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_connection<H: Handler>(stream: TcpStream, handler: Arc<H>) {
    // Answers are small, and written at once.
    let _ = stream.set_nodelay(true);
    let respond = service_fn(|request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(handler.respond(request).await) }
    });
    let connection = http1::Builder::new()
        .title_case_headers(true)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), respond);
    let mut connection = pin!(connection);
    // A client that is slow, or speaks something else, is no concern of ours.
    if timeout(LIFETIME, connection.as_mut()).await.is_err() {
        connection.as_mut().graceful_shutdown();
        let _ = timeout(LAST_ANSWER, connection).await;
    }
}
