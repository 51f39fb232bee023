//! A long line: what is sent over it takes its time, in both directions.
//!
//! It must not know what is sent. Entry point: [`Relay`].

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::background::Background;

/// Parts that may be on their way at a time; a line that is longer holds the sender up.
const PARTS: usize = 1024;
const PART_SIZE: usize = 64 << 10;

/// A port whose connections lead to another one; dropping it closes all.
pub struct Relay(Background);

impl Relay {
    /// Starts one on a free port of the IPv4 loopback address. A packet there takes half of
    /// `round_trip`, and so does one back; a new connection takes one round trip.
    ///
    /// # Errors
    ///
    /// Fails if there is no free port.
    pub fn start(to: SocketAddr, round_trip: Duration) -> io::Result<Self> {
        let addr = "127.0.0.1:0".parse().expect("it is an address");
        Background::start("relay", addr, move |socket| {
            tokio::spawn(relay(socket, to, round_trip));
        })
        .map(Self)
    }

    /// The address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.0.addr()
    }
}

async fn relay(socket: TcpStream, to: SocketAddr, round_trip: Duration) {
    // The handshake of TCP.
    sleep(round_trip).await;
    let Ok(server) = TcpStream::connect(to).await else {
        return;
    };
    for socket in [&socket, &server] {
        // Else Nagle's algorithm adds to the time.
        drop(socket.set_nodelay(true));
    }
    let (from_client, to_client) = socket.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::join!(
        line(from_client, to_server, round_trip / 2),
        line(from_server, to_client, round_trip / 2),
    );
}

/// One direction, up to the end of either side.
async fn line(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, time: Duration) {
    let (sender, mut receiver) = mpsc::channel(PARTS);
    let reading = async move {
        let mut buffer = vec![0; PART_SIZE];
        while let Ok(length @ 1..) = from.read(&mut buffer).await {
            let part = (Instant::now() + time, buffer[..length].to_vec());
            if sender.send(part).await.is_err() {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, part)) = receiver.recv().await {
            sleep_until(at).await;
            if to.write_all(&part).await.is_err() {
                return;
            }
        }
        // The other end may be gone.
        drop(to.shutdown().await);
    };
    tokio::join!(reading, writing);
}
