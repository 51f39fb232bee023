//! UDP, relayed by a socket for each client, so that answers find their way back. Entry point:
//! [`listen`].

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;
use tracing::debug;

/// A client that is silent for so long, in both directions, is forgotten. It is half of what
/// connection tracking gives to an answered flow.
const IDLE: Duration = Duration::from_secs(60);
/// Datagrams of one client that may wait; those beyond are lost, as on any way.
const QUEUE: usize = 64;
/// The longest datagram.
const DATAGRAM_MAX: usize = 65536;

/// Listens, and relays whatever comes; all of that ends with the task.
pub(super) async fn listen(
    at: SocketAddr,
    to: SocketAddr,
    room: Arc<Semaphore>,
) -> io::Result<JoinHandle<()>> {
    let socket = Arc::new(UdpSocket::bind(at).await?);
    Ok(tokio::spawn(async move {
        let mut clients = BTreeMap::<SocketAddr, Sender<Vec<u8>>>::new();
        let mut sessions = JoinSet::new();
        let mut buffer = vec![0; DATAGRAM_MAX];
        loop {
            // An error here is one of an answer that a client did not take.
            let Ok((len, client)) = socket.recv_from(&mut buffer).await else {
                continue;
            };
            while sessions.try_join_next().is_some() {}
            let datagram = buffer[..len].to_vec();
            let is_known = clients.get(&client).is_some_and(|known| !known.is_closed());
            if !is_known {
                clients.retain(|_, known| !known.is_closed());
                let Ok(place) = room.clone().try_acquire_owned() else {
                    continue;
                };
                let (sender, datagrams) = channel(QUEUE);
                clients.insert(client, sender);
                let socket = socket.clone();
                sessions.spawn(async move {
                    if let Err(error) = relay(&socket, client, to, datagrams).await {
                        debug!(%to, %error, "a UDP client is relayed no longer");
                    }
                    drop(place);
                });
            }
            if let Some(known) = clients.get(&client) {
                // A full queue loses the datagram.
                let _ = known.try_send(datagram);
            }
        }
    }))
}

/// Relays one client until it is idle.
async fn relay(
    socket: &UdpSocket,
    client: SocketAddr,
    to: SocketAddr,
    mut datagrams: Receiver<Vec<u8>>,
) -> io::Result<()> {
    let any = match to {
        SocketAddr::V4(_) => "0.0.0.0:0",
        SocketAddr::V6(_) => "[::]:0",
    };
    let server = UdpSocket::bind(any).await?;
    server.connect(to).await?;
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        tokio::select! {
            datagram = datagrams.recv() => {
                let Some(datagram) = datagram else { return Ok(()) };
                server.send(&datagram).await?;
            }
            received = server.recv(&mut buffer) => {
                let len = received?;
                socket.send_to(&buffer[..len], client).await?;
            }
            () = sleep(IDLE) => return Ok(()),
        }
    }
}
