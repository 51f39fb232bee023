//! TCP connections, relayed as they are. Entry point: [`listen`].

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tracing::debug;

/// How long a Service may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The pause after there was no file descriptor to be had.
const PAUSE: Duration = Duration::from_millis(100);

/// Listens, and relays whoever comes; all of that ends with the task.
pub(super) async fn listen(
    at: SocketAddr,
    to: SocketAddr,
    room: Arc<Semaphore>,
) -> io::Result<JoinHandle<()>> {
    let listener = TcpListener::bind(at).await?;
    Ok(tokio::spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let client = match listener.accept().await {
                Ok((client, _)) => client,
                Err(error) => {
                    debug!(%at, %error, "a connection could not be accepted");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            // Those that have ended are forgotten.
            while connections.try_join_next().is_some() {}
            // Whoever finds no room is turned away, rather than left to wait.
            if let Ok(place) = room.clone().try_acquire_owned() {
                connections.spawn(async move {
                    if let Err(error) = relay(client, to).await {
                        debug!(%to, %error, "a relayed connection has failed");
                    }
                    drop(place);
                });
            }
        }
    }))
}

/// Copies both ways until both ends have finished, or either has failed.
async fn relay(mut client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(to)).await;
    let mut server = connected.map_err(|_| io::ErrorKind::TimedOut)??;
    // What comes in small pieces is to arrive in small pieces.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}
